# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
TempCompass: temporal perception, asked as multiple choice, yes or no, and caption matching.

Its fourth task, captioning, needs a language model as judge and is left out.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...data.grammar import normalize
from .choices import answer_part, given_pairs, percentage, read_choice
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions

TASKS = ("multi-choice", "yes_no", "caption_matching")
DIMENSIONS = ("action", "direction", "speed", "order", "attribute_change")


class Rating(NamedTuple):
    """
    What a rule made of an answer.

    Attributes:
        is_right (`bool`):
            Whether the answer is right.
        is_matched (`bool`):
            Whether the rule could read it.
    """

    is_right: bool
    is_matched: bool


_UNREAD = Rating(False, False)


def tempcompass(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], *, scoring: Scoring = "fixed"
) -> Scores:
    """
    Score answers to TempCompass without a judge.

    Args:
        predictions (`Sequence[Mapping]`):
            Answers: `id` and `text`.
        references (`Sequence[Mapping]`):
            Samples: `id`, `task` (`"multi-choice"`, `"yes_no"` or `"caption_matching"`), `dim` (`"action"`,
            `"direction"`, `"speed"`, `"order"` or `"attribute_change"`), and the benchmark's `question` and `answer`.
            [`from_records`] makes both lists of the benchmark's own files.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: every sample counts, and the readers of the other benchmarks read the answers. `"original"`: the
            benchmark's rules with `--disable_llm`, rounded to one decimal, on the predictions that are there.

    Returns:
        [`Scores`]: percentages. `Avg` is the mean over the tasks; each task has `<task>/avg`, one `<task>/<dim>` for
        every dimension with samples, and `<task>/match_rate`, the share of answers that the rules could read: all
        others are wrong here, and go to ChatGPT in the original's default mode.

    Raises:
        ValueError: if `scoring`, a task or a dimension does not exist, or a question does not hold its answer.

    Example:
        >>> from trl_temporal.evaluation.metrics.tempcompass import tempcompass
        >>> samples = [{"id": "0", "task": "yes_no", "dim": "speed", "question": "Is it fast?", "answer": "yes"}]
        >>> tempcompass([{"id": "0", "text": "I think yes."}], samples).metrics
        {'Avg': 100.0, 'yes_no/avg': 100.0, 'yes_no/speed': 100.0, 'yes_no/match_rate': 100.0}
    """
    check_scoring(scoring)
    for reference in references:
        if reference["task"] not in TASKS or reference["dim"] not in DIMENSIONS:
            raise ValueError(
                f"the sample {reference['id']!r} has task {reference['task']!r} and dim {reference['dim']!r}; "
                f"they must be among {TASKS} and {DIMENSIONS}"
            )
    problems: list[Problem] = []
    matched = match_predictions([reference["id"] for reference in references], predictions, problems)
    if scoring == "fixed":
        pairs = list(zip(references, matched, strict=True))
        ratings = [_rate(reference, prediction, problems) for reference, prediction in pairs]
    else:
        pairs = given_pairs(predictions, references)
        ratings = [original_rating(reference, prediction.get("text")) for reference, prediction in pairs]
        problems.extend(
            Problem(str(prediction["id"]), "crash", f"the prediction is {prediction['text']!r}")
            for _, prediction in pairs
            if not isinstance(prediction.get("text"), str | None)
        )
    of_task = defaultdict(list)
    for (reference, _), rating in zip(pairs, ratings, strict=True):
        of_task[reference["task"]].append((reference["dim"], rating))
    metrics = {}
    for task in TASKS:
        if task in of_task:
            metrics |= {f"{task}/{name}": value for name, value in _table(of_task[task]).items()}
            _check_dimensions(task, of_task[task], scoring, problems)
    averages = [metrics[f"{task}/avg"] for task in TASKS if task in of_task]
    metrics = {"Avg": sum(averages) / len(averages) if averages else 0.0, **metrics}
    if scoring == "original":
        metrics = {name: round(value, 1) for name, value in metrics.items()}
    return Scores(metrics, problems, num_samples=len(pairs))


def from_records(
    records: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], task: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Predictions and references of one of the benchmark's own files.

    Args:
        records (`Mapping`):
            `{video: {dim: [{"question", "answer", "prediction"}, ...]}}`, as the benchmark's scripts write them.
        task (`str`):
            Task of the file.

    Returns:
        `tuple[list[dict], list[dict]]`: predictions and references for [`tempcompass`], with ids
        `"<task>/<video>/<dim>/<index>"`. Records without `prediction` or `response` give no prediction.

    Example:
        >>> from trl_temporal.evaluation.metrics.tempcompass import from_records, tempcompass
        >>> records = {"7": {"order": [{"question": "Is it?", "answer": "no", "prediction": "No."}]}}
        >>> tempcompass(*from_records(records, "yes_no")).metrics["Avg"]
        100.0
    """
    predictions, references = [], []
    for video, dims in records.items():
        for dim, samples in dims.items():
            for index, sample in enumerate(samples):
                sample_id = f"{task}/{video}/{dim}/{index}"
                question, answer = sample["question"], sample["answer"]
                references.append({"id": sample_id, "task": task, "dim": dim, "question": question, "answer": answer})
                for field in ("prediction", "response"):
                    if field in sample:
                        predictions.append({"id": sample_id, "text": sample[field]})
                        break
    return predictions, references


def _table(samples: Sequence[tuple[str, Rating]]) -> dict[str, float]:
    right = [rating.is_right for _, rating in samples]
    table = {"avg": percentage(right)}
    for dim in DIMENSIONS:
        of_dim = [rating.is_right for sample_dim, rating in samples if sample_dim == dim]
        if of_dim:
            table[dim] = percentage(of_dim)
    num_matched = sum(rating.is_matched for _, rating in samples)
    return {**table, "match_rate": num_matched / len(samples) * 100}  # in the original's order: it may end in 5


def _check_dimensions(
    task: str, samples: Sequence[tuple[str, Rating]], scoring: Scoring, problems: list[Problem]
) -> None:
    missing = [dim for dim in DIMENSIONS if dim not in {sample_dim for sample_dim, _ in samples}]
    if scoring == "original" and missing:  # the original divides by the number of questions of every dimension
        problems.append(Problem(task, "crash", f"no question about {', '.join(missing)}"))


def _rate(reference: Mapping[str, Any], prediction: Mapping[str, Any] | None, problems: list[Problem]) -> Rating:
    if reference["task"] == "yes_no":
        truth, read = reference["answer"].strip().lower() == "yes", _read_yes_no
        if reference["answer"].strip().lower() not in ("yes", "no"):
            raise ValueError(f"the answer of {reference['id']!r} is {reference['answer']!r}, not yes or no")
    else:
        labels, options = _options(reference["question"])
        label = re.split("[.:)]", reference["answer"])[0].strip()
        if label not in labels:
            raise ValueError(f"the answer of {reference['id']!r} is none of the options in its question")
        truth = labels.index(label)

        def read(text: str) -> int | None:
            if labels[0][-1].isdigit():  # "Option 1": the reader knows letters
                text = re.sub(r"(?<![\w.])[1-9](?!\w|\.\d)", lambda match: chr(ord("A") + int(match[0]) - 1), text)
            return read_choice(text, len(options), options)

    if prediction is None:
        return _UNREAD
    text = answer_part(prediction.get("text"))
    answer = read(text)
    if answer is None:
        problems.append(Problem(str(reference["id"]), "unparsable" if text else "empty", text[:80]))
        return _UNREAD
    return Rating(answer == truth, True)


def _read_yes_no(text: str) -> bool | None:
    """The first word if it is yes or no, else the only one of the two in the text."""
    words = normalize(text).split()
    found = {word for word in words if word in ("yes", "no")}
    if words and words[0] in found:
        return words[0] == "yes"
    return "yes" in found if len(found) == 1 else None


def _options(question: str) -> tuple[list[str], list[str]]:
    """Labels and texts of the lines `A. text`, `Caption A: text` or `Option 1: text`."""
    found = re.findall(r"^\s*((?:\w+ )?[A-Z1-9])[.:)]\s*(.*\S)", question, re.MULTILINE)
    return [label for label, _ in found], [option for _, option in found]


def original_rating(reference: Mapping[str, Any], text: str | None) -> Rating:
    """
    The benchmark's own rules with `--disable_llm`.

    Args:
        reference (`Mapping`):
            Sample with `task`, `question` and `answer`.
        text (`str` or `None`):
            The answer.

    Returns:
        [`Rating`]: wrong where no rule matches.

    Example:
        >>> from trl_temporal.evaluation.metrics.tempcompass import original_rating
        >>> original_rating({"task": "yes_no", "question": "Is it?", "answer": "no"}, "Nothing moves.")
        Rating(is_right=True, is_matched=True)
    """
    if not isinstance(text, str):
        return _UNREAD
    text = text.replace("</s>", "").strip()
    rules = {"multi-choice": _original_choice, "yes_no": _original_yes_no, "caption_matching": _original_caption}
    is_right = rules[reference["task"]](text, reference["question"], reference["answer"])
    return _UNREAD if is_right is None else Rating(is_right, True)


def _original_choice(text: str, question: str, answer: str) -> bool | None:
    if text == answer:
        return True
    # "D. still." is D, "(D)", "d", "D ." and "still" are nothing.
    if text in ("A", "B", "C", "D") or re.match(r"[ABCD][.)]", text):
        return text[0] == answer[0]
    return None


def _original_yes_no(text: str, question: str, answer: str) -> bool | None:
    # Only the first letters count: "Yesterday" is yes, "nothing" and "not" are no.
    found = re.match("yes|no", text.lower())
    return found[0] == answer if found else None


def _original_caption(text: str, question: str, answer: str) -> bool | None:
    lines = question.split("\n")[1:]
    labels = [line.split(": ")[0] for line in lines]
    captions = [line.split(": ")[1] for line in lines]
    letters = [re.sub("Sentence |Option |Caption ", "", label) for label in labels]
    # Of several that fit, the last rule decides.
    read = None
    if text in lines:
        read = text
    for caption in captions:
        if caption == text or (") " in text and caption == text.split(") ")[1]):
            read = caption
    for label in labels + letters:
        if label in (text, text.replace(".", "")):
            read = label
    if read is None:
        return None
    label, caption = answer.split(": ")[:2]
    return read in (answer, answer.split(":")[0], caption, label.split()[-1])
