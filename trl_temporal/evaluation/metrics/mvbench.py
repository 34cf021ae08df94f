# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""MVBench: accuracy of multiple-choice answers on 20 temporal tasks."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from .choices import answer_index, given_pairs, percentage, read_answer
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions

MAX_OPTIONS = 5

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def mvbench(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
    scorer: Literal["d2vlm", "lmms_eval"] = "d2vlm",
) -> Scores:
    """
    Score answers to MVBench.

    Args:
        predictions (`Sequence[Mapping]`):
            Answers: `id` and `text`.
        references (`Sequence[Mapping]`):
            Samples: `id`, `task`, `answer` (`"(B) text"`, a letter, or the text of an option), and `options` (texts)
            where known.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: every sample counts, and [`read_choice`] reads the answers. `"original"`: as `scorer` does, on
            the predictions that are there.
        scorer (`str`, *optional*, defaults to `"d2vlm"`):
            The original: `"d2vlm"`, or `"lmms_eval"`. Without effect on `"fixed"`.

    Returns:
        [`Scores`]: percentages. `Avg` is the mean over the tasks, the number of the papers, `Total` that over the
        samples, then one accuracy per task. Only papers report `Avg`, the original scorers do not.

    Raises:
        ValueError: if `scoring` or `scorer` does not exist, or a sample's answer is none of its options.

    Example:
        >>> from trl_temporal.evaluation.metrics.mvbench import mvbench
        >>> samples = [{"id": "0", "task": "action_count", "answer": "(B) two", "options": ["one", "two", "three"]}]
        >>> mvbench([{"id": "0", "text": "</evi>The answer is B."}], samples).metrics
        {'Avg': 100.0, 'Total': 100.0, 'action_count': 100.0}
    """
    check_scoring(scoring)
    if scorer not in ("d2vlm", "lmms_eval"):
        raise ValueError(f"scorer is {scorer!r}; it must be 'd2vlm' or 'lmms_eval'")
    problems: list[Problem] = []
    matched = match_predictions([reference["id"] for reference in references], predictions, problems)
    if scoring == "fixed":
        scored = [
            (reference["task"], _is_right(reference, prediction, problems))
            for reference, prediction in zip(references, matched, strict=True)
        ]
    else:
        score = _d2vlm_score if scorer == "d2vlm" else _lmms_score
        scored = [
            (reference["task"], score(reference, prediction, problems))
            for reference, prediction in given_pairs(predictions, references)
        ]
        scored = [(task, is_right) for task, is_right in scored if is_right is not None]
    if scoring == "original" and scorer == "d2vlm":
        metrics = {name: round(value, 2) for name, value in _accuracies(scored, _d2vlm_percentage).items()}
    else:
        metrics = _accuracies(scored, percentage)
    return Scores(metrics, problems, num_samples=len(scored))


def _accuracies(scored: list[tuple[str, bool]], percentage: Callable[[list[bool]], float]) -> dict[str, float]:
    of_task = defaultdict(list)
    for task, is_right in scored:
        of_task[task].append(is_right)
    accuracies = {task: percentage(of_task[task]) for task in sorted(of_task)}
    mean = sum(accuracies.values()) / len(accuracies) if accuracies else 0.0
    return {"Avg": mean, "Total": percentage([is_right for _, is_right in scored]), **accuracies}


def _is_right(reference: Mapping[str, Any], prediction: Mapping[str, Any] | None, problems: list[Problem]) -> bool:
    options = reference.get("options")
    truth = answer_index(reference["answer"], options)
    if prediction is None:
        return False
    num_options = len(options) if options else MAX_OPTIONS
    return read_answer(str(reference["id"]), prediction.get("text"), num_options, options, problems) == truth


def _d2vlm_score(reference: Mapping[str, Any], prediction: Mapping[str, Any], problems: list[Problem]) -> bool:
    answer, options, text = reference["answer"], reference.get("options"), prediction.get("text")
    if not re.match(r"\([A-Za-z]\) .", answer):  # the form of the original's records
        index = answer_index(answer, options)
        answer = f"({chr(ord('A') + index)}) {options[index] if options else ''}"
    if answer.endswith(") "):
        problems.append(Problem(str(reference["id"]), "crash", "the answer is a letter without its text"))
    if not isinstance(text, str):
        problems.append(Problem(str(reference["id"]), "crash", f"the prediction is {text!r}"))
        return False
    return check_ans(text.replace("</evi>", ""), answer)


def _d2vlm_percentage(right: Sequence[bool]) -> float:
    return sum(right) / len(right) * 100 if len(right) else 0.0  # this order decides how x.xx5 is rounded


def check_ans(prediction: str, answer: str) -> bool:
    """
    D2VLM's test of an answer to MVBench.

    Args:
        prediction (`str`):
            A model's text, without `</evi>`.
        answer (`str`):
            `"(B) text"`.

    Returns:
        `bool`: whether it counts as right. The original asks whether the first word is part of `"(b)"`, so that an
        empty answer and `")"` are always right.

    Example:
        >>> from trl_temporal.evaluation.metrics.mvbench import check_ans
        >>> check_ans("B.", "(B) two"), check_ans("", "(B) two"), check_ans("The answer is B", "(B) two")
        (True, True, False)
    """
    first = prediction.lower().split(" ")[0]
    option = answer.lower().split(" ")[0]
    return first.replace(".", "") in option or option in first


def _lmms_score(reference: Mapping[str, Any], prediction: Mapping[str, Any], problems: list[Problem]) -> bool | None:
    text = prediction.get("text")
    if not isinstance(text, str):
        problems.append(Problem(str(reference["id"]), "crash", f"the prediction is {text!r}"))
        return False
    if text == "":  # the original leaves empty answers out of the denominator
        return None
    letter = chr(ord("A") + answer_index(reference["answer"], reference.get("options")))
    return mcq_acc(letter, text)


def mcq_acc(answer: str, prediction: str) -> bool:
    """
    lmms-eval's test of an answer to MVBench.

    Args:
        answer (`str`):
            Letter of the right option.
        prediction (`str`):
            A model's text.

    Returns:
        `bool`: whether it counts as right: the original takes the first letter A to E that stands alone, in either
        case, so that `"a dog"` chooses A.

    Example:
        >>> from trl_temporal.evaluation.metrics.mvbench import mcq_acc
        >>> mcq_acc("A", "(A) two"), mcq_acc("A", "a dog"), mcq_acc("B", "A or B")
        (True, True, False)
    """
    return _lmms_letter(prediction) == _lmms_letter(answer)


def _lmms_letter(text: str) -> str:
    labelled = re.match(r"([A-E])\.\s*.+$", text.strip(), re.IGNORECASE)
    if labelled:
        return labelled[1].upper()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    cleaned = text
    has_thousands = re.search(r"\d,\d", text)
    for mark in _PUNCTUATION:
        is_between_words = f"{mark} " not in text and f" {mark}" not in text and not has_thousands
        cleaned = cleaned.replace(mark, " " if is_between_words else "")
    # The original hands the flag UNICODE (32) over as the number of full stops to remove.
    cleaned = re.sub(r"\.(?!\d)", "", cleaned, count=32)
    cleaned = cleaned.strip("'").strip('"').strip(")").strip("(").strip().lower()
    letter = re.search(r"\b[a-e]\b", cleaned, re.IGNORECASE)
    return letter[0].upper() if letter else cleaned
