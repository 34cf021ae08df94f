# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Answers to questions about videos, as options (NExT-QA) or in words (MSVD-QA, ActivityNet-QA)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...data.grammar import normalize, parse_answer
from .choices import answer_index, answer_part, given_pairs, percentage, read_answer
from .dense_caption import word_f1
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions

Judge = Callable[[str, str, str], "bool | float"]

_ARTICLES = ("a", "an", "the")


def videoqa(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
    judge: Judge | None = None,
) -> Scores:
    """
    Score answers to questions, with options or without.

    Args:
        predictions (`Sequence[Mapping]`):
            Answers: `id` and `text`.
        references (`Sequence[Mapping]`):
            Samples: `id`; with `options` (texts) and `answer` (a letter, `"B. text"`, or the text of an option), or
            without options and with `answer` (the right words, or a list of several ways to say it). A `judge` also
            needs `question`.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: every sample counts, and [`read_choice`] reads options. `"original"`: options as lmms-eval reads
            them in NExT-QA, on the predictions that are there, and words by the judge only, as the original is one.
        judge (`Callable`, *optional*):
            Function of question, right answer and predicted answer that says whether the last is right, or how much of
            it (0 to 1). Called for open questions with an answer only; the right answer is the first one.

    Returns:
        [`Scores`]: percentages, as far as there are such samples. `accuracy`: right options. `exact_match`: answers in
        the right words, but for case, punctuation and articles. `word_f1`: their overlap as bags of words. `judge`:
        mean of the judge's answers.

    Raises:
        ValueError: if `scoring` does not exist, a sample's answer is none of its options, the judge says something
            else than 0 to 1, or open questions come with `scoring="original"` without a judge.

    Example:
        >>> from trl_temporal.evaluation.metrics.videoqa import videoqa
        >>> samples = [{"id": "0", "answer": "a dog"}, {"id": "1", "options": ["run", "jump"], "answer": "jump"}]
        >>> videoqa([{"id": "0", "text": "Dog."}, {"id": "1", "text": "(B)"}], samples).metrics
        {'accuracy': 100.0, 'exact_match': 100.0, 'word_f1': 100.0}
    """
    check_scoring(scoring)
    problems: list[Problem] = []
    matched = match_predictions([reference["id"] for reference in references], predictions, problems)
    is_fixed = scoring == "fixed"
    pairs = list(zip(references, matched, strict=True)) if is_fixed else given_pairs(predictions, references)
    closed = [(reference, prediction) for reference, prediction in pairs if reference.get("options")]
    opened = [(reference, prediction) for reference, prediction in pairs if not reference.get("options")]
    metrics = {}
    if closed:
        score = _is_right if is_fixed else _original_score
        metrics["accuracy"] = percentage([score(*pair, problems) for pair in closed])
    if opened and is_fixed:
        answers = [_answer(*pair, problems) for pair in opened]
        truths = [_truths(reference) for reference, _ in opened]
        metrics["exact_match"] = percentage(
            [bool(answer) and answer in map(_words, truth) for answer, truth in zip(answers, truths, strict=True)]
        )
        metrics["word_f1"] = percentage(
            [
                max(word_f1(_words(each), answer) for each in truth) if answer else 0.0
                for answer, truth in zip(answers, truths, strict=True)
            ]
        )
    if opened and not is_fixed and judge is None:
        raise ValueError("the original scorer of open questions is a judge: pass one, or use scoring='fixed'")
    if opened and judge is not None:
        metrics["judge"] = percentage([_judged(judge, *pair) for pair in opened])
    return Scores(metrics, problems, num_samples=len(pairs))


def _is_right(reference: Mapping[str, Any], prediction: Mapping[str, Any] | None, problems: list[Problem]) -> bool:
    options = reference["options"]
    truth = answer_index(reference["answer"], options)
    if prediction is None:
        return False
    return read_answer(str(reference["id"]), prediction.get("text"), len(options), options, problems) == truth


def _truths(reference: Mapping[str, Any]) -> list[str]:
    answer = reference["answer"]
    return [answer] if isinstance(answer, str) else list(answer)


def _words(text: str) -> str:
    words = normalize(text).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _answer(reference: Mapping[str, Any], prediction: Mapping[str, Any] | None, problems: list[Problem]) -> str:
    if prediction is None:
        return ""
    answer = _words(parse_answer(answer_part(prediction.get("text"))))
    if not answer:
        problems.append(Problem(str(reference["id"]), "empty"))
    return answer


def _judged(judge: Judge, reference: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> float:
    answer = parse_answer(answer_part(prediction.get("text"))) if prediction is not None else ""
    if not answer:
        return 0.0
    verdict = float(judge(reference["question"], _truths(reference)[0], answer))
    if not 0 <= verdict <= 1:
        raise ValueError(f"the judge said {verdict} about {reference['id']!r}; it must say 0 to 1")
    return verdict


def _original_score(reference: Mapping[str, Any], prediction: Mapping[str, Any], problems: list[Problem]) -> float:
    text, options = prediction.get("text"), [option.strip() for option in reference["options"]]
    if not isinstance(text, str):
        problems.append(Problem(str(reference["id"]), "crash", f"the prediction is {text!r}"))
        return 0.0
    choice = parse_multi_choice_response(text, options)
    if choice is None:  # the original draws an option, without a seed: this is the mean over its draws
        problems.append(Problem(str(reference["id"]), "unparsable", text[:80]))
        return 1 / len(options)
    return float(choice == answer_index(reference["answer"], reference["options"]))


def parse_multi_choice_response(text: str, options: Sequence[str]) -> int | None:
    """
    The option that lmms-eval reads in NExT-QA, by the rules of MMMU.

    Args:
        text (`str`):
            A model's text.
        options (`Sequence[str]`):
            Texts of the options.

    Returns:
        `int` or `None`: of the letters in brackets, else in front of a space, else in front of a full stop, else the
        options named in a text of more than five words, the last one; `None` where the original draws one.

    Example:
        >>> from trl_temporal.evaluation.metrics.videoqa import parse_multi_choice_response
        >>> parse_multi_choice_response("(A) or (B)", ["run", "jump"]), parse_multi_choice_response("run", ["run"])
        (1, None)
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = [chr(ord("A") + index) for index in range(len(options))]
    in_brackets = [index for index, letter in enumerate(letters) if f"({letter})" in text]
    if in_brackets:
        return max(in_brackets, key=lambda index: text.rfind(f"({letters[index]})"))
    found = [index for index, letter in enumerate(letters) if f"{letter} " in text]
    found = found or [index for index, letter in enumerate(letters) if f"{letter}." in text]
    if found:
        # The original looks for the last one with spaces on both sides, which may be none.
        return max(found, key=lambda index: text.rfind(f" {letters[index]} "))
    lower = text.lower()
    if len(text.split()) > 5:
        found = [index for index, option in enumerate(options) if option.lower() in lower]
    return max(found, key=lambda index: lower.rfind(options[index].lower())) if found else None
