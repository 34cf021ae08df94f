# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Video-MME: accuracy of multiple-choice answers about short, medium and long videos."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .choices import answer_index, given_pairs, percentage, read_answer
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions

DURATIONS = ("short", "medium", "long")
NUM_OPTIONS = 4
GROUPS = ("domain", "sub_category", "task_type")

_NUM_VIDEOS = 300  # of every duration
# Removed anywhere in the text, in this order.
_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",  # the original lacks a comma between the two
    "Best answer:",
    "Best option: ",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)

_LMMS_PHRASES = (
    *(f"{before}answer is" for before in ("", "the ", "correct ", "the correct ", "best ", "the best ", "my ")),
    *(f"{before}option is" for before in ("correct ", "the correct ", "best ", "the best ")),
    *(f"{before}choice is" for before in ("", "the ", "correct ", "the correct ", "my ")),
    *("i choose", "i select", "i pick", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
# Forms of an option, those of higher priority first.
_LMMS_FORMS = ("({})", "{}.", "{}:", "{})", "{} ")


def videomme(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
    scorer: Literal["d2vlm", "lmms_eval"] = "d2vlm",
) -> Scores:
    """
    Score answers to Video-MME.

    Args:
        predictions (`Sequence[Mapping]`):
            Answers: `id` and `text`.
        references (`Sequence[Mapping]`):
            Samples: `id` (the benchmark's `question_id`), `duration` (`"short"`, `"medium"` or `"long"`), `answer`
            (a letter), and, where known, `options`, `domain`, `sub_category`, `task_type` and `video_id`.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: every sample counts, and [`read_choice`] reads the answers. `"original"`: as `scorer` does, on
            the predictions that are there.
        scorer (`str`, *optional*, defaults to `"d2vlm"`):
            The original: `"d2vlm"`, which is the benchmark's own with more prefixes, or `"lmms_eval"`. Without effect
            on `"fixed"`.

    Returns:
        [`Scores`]: percentages `Overall`, `short`, `medium` and `long`, as far as there are such samples. `details`
        has one dictionary for each of `domain`, `sub_category` and `task_type` that all references have.

    Raises:
        ValueError: if `scoring` or `scorer` does not exist, or a sample's duration or answer is not one of the
            benchmark's.

    Example:
        >>> from trl_temporal.evaluation.metrics.videomme import videomme
        >>> samples = [{"id": "001-1", "duration": "short", "answer": "C"}]
        >>> videomme([{"id": "001-1", "text": "The best answer is: C."}], samples).metrics
        {'Overall': 100.0, 'short': 100.0}
    """
    check_scoring(scoring)
    if scorer not in ("d2vlm", "lmms_eval"):
        raise ValueError(f"scorer is {scorer!r}; it must be 'd2vlm' or 'lmms_eval'")
    for reference in references:
        if reference["duration"] not in DURATIONS:
            raise ValueError(f"the duration of {reference['id']!r} is {reference['duration']!r}, none of {DURATIONS}")
    problems: list[Problem] = []
    matched = match_predictions([reference["id"] for reference in references], predictions, problems)
    if scoring == "fixed":
        pairs = list(zip(references, matched, strict=True))
        right = [_is_right(reference, prediction, problems) for reference, prediction in pairs]
    else:
        pairs = given_pairs(predictions, references)
        texts = [_original_text(prediction, problems) for _, prediction in pairs]
        letters = [extract_characters_regex(text) if scorer == "d2vlm" else extract_mcq_answer(text) for text in texts]
        if scorer == "d2vlm":  # the original leaves answers without a letter out of the denominator
            pairs = [pair for pair, letter in zip(pairs, letters, strict=True) if letter]
            letters = [letter for letter in letters if letter]
            _check_videos(references, problems)
        right = [letter == reference["answer"] for (reference, _), letter in zip(pairs, letters, strict=True)]
    samples = [reference for reference, _ in pairs]
    metrics = {"Overall": percentage(right), **_by_group(samples, right, "duration")}
    details = {
        group: _by_group(samples, right, group)
        for group in GROUPS
        if all(reference.get(group) is not None for reference in references)
    }
    metrics = {name: metrics[name] for name in ("Overall", *DURATIONS) if name in metrics}
    if scoring == "original" and scorer == "d2vlm":
        metrics = {name: round(metrics.get(name, 0.0), 1) for name in ("Overall", *DURATIONS)}
    return Scores(metrics, problems, len(right), details)


def _by_group(samples: Sequence[Mapping[str, Any]], right: Sequence[bool], group: str) -> dict[str, float]:
    of_group = defaultdict(list)
    for sample, is_right in zip(samples, right, strict=True):
        of_group[sample[group]].append(is_right)
    return {name: percentage(of_group[name]) for name in sorted(of_group)}


def _is_right(reference: Mapping[str, Any], prediction: Mapping[str, Any] | None, problems: list[Problem]) -> bool:
    options = reference.get("options")
    truth = answer_index(reference["answer"], options)
    if prediction is None:
        return False
    return read_answer(str(reference["id"]), prediction.get("text"), NUM_OPTIONS, options, problems) == truth


def _original_text(prediction: Mapping[str, Any], problems: list[Problem]) -> str:
    text = prediction.get("text")
    if isinstance(text, str):
        return text
    problems.append(Problem(str(prediction["id"]), "crash", f"the prediction is {text!r}"))
    return ""


def _check_videos(references: Sequence[Mapping[str, Any]], problems: list[Problem]) -> None:
    """The benchmark's own scorer asserts that every duration has all its videos."""
    if not all("video_id" in reference for reference in references):
        return
    for duration in DURATIONS:
        videos = {reference["video_id"] for reference in references if reference["duration"] == duration}
        if len(videos) != _NUM_VIDEOS:
            problems.append(Problem(duration, "crash", f"{len(videos)} videos, the original wants {_NUM_VIDEOS}"))


def extract_characters_regex(text: str) -> str:
    """
    The letter that Video-MME's own scorer reads, with D2VLM's prefixes.

    Args:
        text (`str`):
            A model's text.

    Returns:
        `str`: the first capital A to D before the first full stop, even one inside a word; empty if there is none.

    Example:
        >>> from trl_temporal.evaluation.metrics.videomme import extract_characters_regex
        >>> extract_characters_regex("The answer is (C)."), extract_characters_regex("Because of A")
        ('C', 'B')
    """
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    letter = re.search("[ABCD]", text.replace("</evi>", "").split(".")[0])
    return letter[0] if letter else ""


def extract_mcq_answer(text: str) -> str:
    """
    The letter that lmms-eval's scorer of Video-MME reads.

    Args:
        text (`str`):
            A model's text.

    Returns:
        `str`: A to D: of the letters at the start, else at the end, else behind a phrase, else in brackets, ... the
        last one; empty if there is none. A letter behind a phrase may be far behind it, and inside a word.

    Example:
        >>> from trl_temporal.evaluation.metrics.videomme import extract_mcq_answer
        >>> extract_mcq_answer("The answer is (C)."), extract_mcq_answer("A or B"), extract_mcq_answer("Best of all")
        ('C', 'A', 'B')
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    lower = text.lower()
    ends = [lower.find(phrase) + len(phrase) for phrase in _LMMS_PHRASES if phrase in lower]
    found = []  # (priority, position, letter)
    for letter in "ABCD":
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((9, len(text), letter))
        found += [(7, text.find(letter, end), letter) for end in ends]
        forms = [form.format(letter) for form in _LMMS_FORMS]
        found += [(6 - rank, text.rfind(form), letter) for rank, form in enumerate(forms)]
        found.append((0, text.rfind(letter), letter))
    found = [candidate for candidate in found if candidate[1] >= 0]
    return max(found)[2] if found else ""
