# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""NExT-GQA: multiple-choice answers that must be grounded in a segment of the video."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .choices import read_choice
from .intervals import ROUNDING, iou_pairs
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions
from .spans_metric import answered_spans, first_spans, flat_spans, hull_overlap, percentage, true_spans

NUM_OPTIONS = 5
MIN_IOP = 0.5  # an answer is grounded if at least half of its interval lies in a segment


def nextgqa(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
) -> Scores:
    """
    Scores on NExT-GQA.

    IoP is the share of the answered interval that lies in a segment. In both modes IoU and IoP are each the best over
    the segments of the question, which may be different ones, and a point inside a segment has IoP 1 and IoU 0: it is
    the limit of short intervals.

    Args:
        predictions (`Sequence[Mapping]`):
            One per question: `id`, `spans` (`[[start_s, end_s], ...]`) or `text` (the whole answer), of which the
            first interval counts, and `choice` (the chosen option's index, or what the references' `answer` is
            compared with). Without `choice` the option is read from the text.
        references (`Sequence[Mapping]`):
            Questions, see [`nextgqa_references`]: `id` (`"<video>_<question>"`), `segments`
            (`[[start_s, end_s], ...]`), `duration` in seconds, and optionally `answer` and `options`.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: all questions are in the denominator. `"original"`: equal to `eval_ground`, which leaves out
            questions without a prediction, gives reversed intervals 0, and rounds to one decimal. Where it would stop
            for want of an interval, the question is left out and listed as `"crash"`.

    Returns:
        [`Scores`]: percentages `Acc@GQA` (right answers with IoP of at least .5), `mIoP`, `IoP@0.3`, `IoP@0.5`,
        `mIoU`, `IoU@0.3`, `IoU@0.5`. Fixed: with `Acc@QA` (right answers) where the references have answers, and
        without either accuracy where they have not. Original: `Acc@GQA` is then 0.

    Raises:
        ValueError: if `scoring` does not exist, references are faulty, or only some of them have an answer.

    Example:
        >>> from trl_temporal.evaluation.metrics.nextgqa import nextgqa, nextgqa_references
        >>> references = nextgqa_references({"42": {"duration": 30, "location": {"1": [[5, 15]]}}}, {"42_1": 2})
        >>> predictions = [{"id": "42_1", "text": "8.0 - 18.0 </evi> (C) It is in 8.0 - 18.0."}]
        >>> scores = nextgqa(predictions, references).metrics
        >>> scores["Acc@GQA"], round(scores["mIoP"], 1), round(scores["mIoU"], 1)
        (100.0, 70.0, 53.8)
    """
    check_scoring(scoring)
    if scoring == "original":
        return _original(predictions, references)

    problems: list[Problem] = []
    ids = [str(reference["id"]) for reference in references]
    segments, counts = flat_spans([true_spans(reference["id"], reference["segments"]) for reference in references])
    for index in np.flatnonzero(counts == 0):
        raise ValueError(f"the question {ids[index]!r} has no segment; give at least one")
    matched = match_predictions(ids, predictions, problems)
    answered = first_spans(ids, matched, problems, [reference.get("duration") for reference in references])
    iou, iop = _best(*_overlaps(segments, np.repeat(answered, counts, axis=0)), counts)

    metrics = {}
    has_answer = [reference.get("answer") is not None for reference in references]
    if any(has_answer):
        if not all(has_answer):
            raise ValueError(f"the question {ids[has_answer.index(False)]!r} has no answer; give all of them, or none")
        choices = [_choice(*triple, problems) for triple in zip(ids, matched, references, strict=True)]
        is_right = np.array(
            [
                choice is not None and str(choice) == str(reference["answer"])
                for choice, reference in zip(choices, references, strict=True)
            ],
            dtype=bool,
        )
        metrics["Acc@GQA"] = percentage(is_right & (iop >= MIN_IOP - ROUNDING))
    for name, values in (("IoP", iop), ("IoU", iou)):
        metrics[f"m{name}"] = percentage(values)
        metrics[f"{name}@0.3"] = percentage(values >= 0.3 - ROUNDING)
        metrics[f"{name}@0.5"] = percentage(values >= 0.5 - ROUNDING)
    if any(has_answer):
        metrics["Acc@QA"] = percentage(is_right)
    return Scores(metrics, problems, len(references))


def nextgqa_references(
    gsub: Mapping[str, Mapping[str, Any]], answers: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """
    The questions of an annotation file.

    Args:
        gsub (`Mapping`):
            Content of `gsub_val.json` or `gsub_test.json`:
            `{video: {"duration": seconds, "location": {question: [[start_s, end_s], ...]}}}`.
        answers (`Mapping`, *optional*):
            Of every `"<video>_<question>"` the index of the right option, or `{"answer": index, "options": texts}`.

    Returns:
        `list[dict]`: references for [`nextgqa`], in the order of the file.

    Raises:
        ValueError: if `answers` lacks a question.

    Example:
        >>> from trl_temporal.evaluation.metrics.nextgqa import nextgqa_references
        >>> nextgqa_references({"42": {"duration": 30, "location": {"1": [[5, 15]]}}})
        [{'id': '42_1', 'segments': [[5, 15]], 'duration': 30}]
    """
    references = []
    for video, annotation in gsub.items():
        for question, segments in annotation["location"].items():
            reference = {"id": f"{video}_{question}", "segments": segments, "duration": annotation["duration"]}
            if answers is not None:
                if reference["id"] not in answers:
                    raise ValueError(f"the question {reference['id']!r} has no answer; give all of them, or none")
                answer = answers[reference["id"]]
                reference |= answer if isinstance(answer, Mapping) else {"answer": answer}
            references.append(reference)
    return references


def spans_from_shares(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """
    Predictions in seconds from those in shares of the duration, as models with a Gaussian over the video give them.

    Args:
        predictions (`Sequence[Mapping]`):
            `id` and `spans`, `[[start, end], ...]` as shares of the video's duration, and any other fields.
        references (`Sequence[Mapping]`):
            Questions with `id` and `duration` in seconds. Predictions for other questions stay as they are.

    Returns:
        `list[dict]`: the predictions with `spans` in seconds, rounded to a tenth as the original scorer does it.

    Example:
        >>> from trl_temporal.evaluation.metrics.nextgqa import spans_from_shares
        >>> spans_from_shares([{"id": "42_1", "spans": [[0.25, 0.5]]}], [{"id": "42_1", "duration": 33}])
        [{'id': '42_1', 'spans': [[8.2, 16.5]]}]
    """
    durations_s = {str(reference["id"]): reference["duration"] for reference in references}
    converted = []
    for prediction in predictions:
        spans = prediction["spans"]
        if str(prediction["id"]) in durations_s:
            spans = np.round(np.asarray(spans, dtype=float) * durations_s[str(prediction["id"])], 1).tolist()
        converted.append({**prediction, "spans": spans})
    return converted


def original_overlaps(segments: np.ndarray, answered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    IoU and IoP of pairs as the original scorer computes them.

    Args:
        segments (`np.ndarray` of shape `(pairs, 2)`):
            True segments in seconds.
        answered (`np.ndarray` of shape `(pairs, 2)`):
            Answered intervals in seconds, in any order of their ends.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: both of shape `(pairs,)`; negative for a gap between the two.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.nextgqa import original_overlaps
        >>> [x.tolist() for x in original_overlaps(np.array([[0, 10], [0, 10]]), np.array([[5, 15], [4, 4]]))]
        [[0.3333333333333333, 0.0], [0.5, 1.0]]
    """
    overlap, hull = hull_overlap(segments, answered)
    length = answered[:, 1] - answered[:, 0]
    iou = np.where(hull > 0, overlap / np.where(hull > 0, hull, 1), 0.0)
    iop = np.where(length > 0, overlap / np.where(length > 0, length, 1), 0.0)
    is_point = answered[:, 0] == answered[:, 1]
    is_inside = (segments[:, 0] <= answered[:, 0]) & (answered[:, 0] <= segments[:, 1])
    return np.where(is_point, 0.0, iou), np.where(is_point, is_inside.astype(float), iop)


def _overlaps(segments: np.ndarray, answered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    overlap = np.minimum(segments[:, 1], answered[:, 1]) - np.maximum(segments[:, 0], answered[:, 0])
    length = answered[:, 1] - answered[:, 0]
    iop = np.where(length > 0, np.maximum(overlap, 0) / np.where(length > 0, length, 1), overlap == 0)
    return iou_pairs(segments, answered), iop


def _best(iou: np.ndarray, iop: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best of every question's segments, at least 0."""
    best = np.zeros((2, len(counts)))
    has_segments = counts > 0
    if has_segments.any():
        starts = (np.cumsum(counts) - counts)[has_segments]
        best[:, has_segments] = np.maximum(np.maximum.reduceat(np.stack([iou, iop]), starts, axis=1), 0)
    return best[0], best[1]


def _choice(
    sample_id: str, prediction: Mapping[str, Any] | None, reference: Mapping[str, Any], problems: list[Problem]
) -> Any:
    if prediction is None or prediction.get("choice") is not None:
        return prediction and prediction["choice"]
    text, options = prediction.get("text"), reference.get("options")
    choice = None
    if isinstance(text, str):
        choice = read_choice(text, len(options) if options else NUM_OPTIONS, options)
        if not text.strip():
            return None  # listed as empty
    if choice is None:
        problems.append(Problem(sample_id, "unparsable", "no option is chosen"))
    return choice


def _original(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Scores:
    problems: list[Problem] = []
    by_id = {str(prediction["id"]): prediction for prediction in predictions}
    known = {str(reference["id"]) for reference in references}
    problems.extend(Problem(sample_id, "unknown id") for sample_id in by_id if sample_id not in known)
    has_answers = any(reference.get("answer") is not None for reference in references)
    kept, answered = [], []
    for reference in references:
        sample_id = str(reference["id"])
        if sample_id not in by_id:
            problems.append(Problem(sample_id, "missing"))
            continue
        spans = by_id[sample_id].get("spans")
        if spans is None:
            spans = answered_spans(sample_id, by_id[sample_id], problems)
        try:
            start_s, end_s = map(float, spans[0])
        except (TypeError, ValueError, IndexError, KeyError):
            problems.append(Problem(sample_id, "crash", "no interval"))
            continue
        kept.append(reference)
        answered.append((start_s, end_s))

    segments, counts = flat_spans([reference["segments"] for reference in kept])
    pairs = np.repeat(np.array(answered, dtype=float).reshape(-1, 2), counts, axis=0)
    iou, iop = _best(*original_overlaps(segments, pairs), counts)
    num_right = 0
    for index in np.flatnonzero(iop >= MIN_IOP) if has_answers else ():
        sample_id = str(kept[index]["id"])
        choice = _choice(sample_id, by_id[sample_id], kept[index], problems)
        num_right += choice is not None and choice == kept[index].get("answer")

    num = len(kept)
    if num == 0:
        problems.append(Problem("", "crash", "no question has a prediction: the original divides by 0"))
    numbers = {
        "Acc@GQA": num_right / max(num, 1) * 100,
        "mIoP": _running_sum(iop) / max(num, 1) * 100,
        "IoP@0.3": (iop >= 0.3).sum() / max(num, 1) * 100,
        "IoP@0.5": (iop >= 0.5).sum() / max(num, 1) * 100,
        "mIoU": _running_sum(iou) / max(num, 1) * 100,
        "IoU@0.3": (iou >= 0.3).sum() / max(num, 1) * 100,
        "IoU@0.5": (iou >= 0.5).sum() / max(num, 1) * 100,
    }
    return Scores({name: float(f"{number:.1f}") for name, number in numbers.items()}, problems, num)


def _running_sum(values: np.ndarray) -> float:
    return float(np.cumsum(values)[-1]) if len(values) else 0.0  # one after the other, as a loop adds them
