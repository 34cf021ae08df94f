# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Charades-STA: one interval for one sentence, scored by R1@IoU and mIoU."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.grammar import EVI_END
from .intervals import iou_pairs
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions
from .spans_metric import RECALL_THRESHOLDS, answered_spans, first_spans, hull_overlap, recall_metrics, true_spans

SCORERS = ("d2vlm", "etchat", "lmms_eval")

_KEYWORD = re.compile("start|end|happen")
_D2VLM_NUMBER = r"\d+(?:\.+\d*)?"  # also "3..5", which is no number: the original stops there
_D2VLM_RANGE = re.compile(rf"(?<!\d)({_D2VLM_NUMBER})\s*-\s*({_D2VLM_NUMBER})")
_D2VLM_TO = re.compile(rf"(?<!\d)({_D2VLM_NUMBER})\s* to \s*({_D2VLM_NUMBER})")
_LMMS_NUMBER = r"\d+(?:\.\d+)?"
_LMMS_RANGE = re.compile(rf"(?<!\d)({_LMMS_NUMBER})\s*[–-]\s*({_LMMS_NUMBER})")
_LMMS_RANGE_OF_SECONDS = re.compile(rf"(?<!\d)({_LMMS_NUMBER})\s*(?:s\s*)?[–-]\s*({_LMMS_NUMBER})")
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?"
_CLOCK_RANGE = re.compile(rf"\b({_CLOCK})\s*[–-]\s*({_CLOCK})\b")
_LMMS_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"  # part of the prompt, which some models repeat


def charades_sta(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
    scorer: str = "d2vlm",
) -> Scores:
    """
    Scores on Charades-STA.

    Args:
        predictions (`Sequence[Mapping]`):
            One per query: `id`, and `text` (the whole answer) or `spans` (`[[start_s, end_s], ...]`, used instead of
            the text). The first interval counts.
        references (`Sequence[Mapping]`):
            Records of TimeChat's annotation file: `id`, `image_id`, `caption`, `timestamp` (`[start_s, end_s]`).
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: all queries are in the denominator. `"original"`: equal to the scorer named by `scorer`.
        scorer (`str`, *optional*, defaults to `"d2vlm"`):
            - `"d2vlm"`: converts with [`to_timechat`], then averages over the predictions that have an interval: one
              that cannot be read, or is missing, is left out. Its `mIOU` is a share, its recalls are percentages. A
              prediction of NaN has IoU 1.
            - `"etchat"`: float32, averages over all predictions, shares rounded to 3 decimals. It takes intervals;
              from `text` they are read as in fixed scoring.
            - `"lmms_eval"`: reads every "to" as a hyphen, also within words, and averages over the different pairs
              of query and interval of the predictions. Of equal ones the last answer counts.

    Returns:
        [`Scores`]: fixed: `R1@0.3`, `R1@0.5`, `R1@0.7` and `mIoU` in percent. Original: the scorer's own keys:
        `IOU 0.3`, `IOU 0.5`, `IOU 0.7`, `mIOU`; `R3`, `R5`, `R7`, `mIoU`; or `IOU@3`, `IOU@5`, `IOU@7`, `mIOU`; its
        counts are in `details`. Answers at which it would stop with an error are listed as `"crash"` and count as
        having no interval.

    Raises:
        ValueError: if `scoring` or `scorer` does not exist, or references are faulty.

    Example:
        >>> from trl_temporal.evaluation.metrics.charades_sta import charades_sta
        >>> query = {"image_id": "3MSZA.mp4", "caption": "person turn a light on."}
        >>> references = [{"id": 0, "timestamp": [24, 30], **query}]
        >>> predictions = [{"id": "0", "text": "24.0 - 29.0 </evi>The event happens in 24.0 - 27.0."}]
        >>> charades_sta(predictions, references).metrics
        {'R1@0.3': 100.0, 'R1@0.5': 100.0, 'R1@0.7': 0.0, 'mIoU': 50.0}
    """
    check_scoring(scoring)
    if scorer not in SCORERS:
        raise ValueError(f"scorer is {scorer!r}; it must be one of {SCORERS}")
    if scoring == "fixed":
        return _fixed(predictions, references)
    if scorer == "d2vlm":
        return _d2vlm(predictions, references)
    if scorer == "etchat":
        return _etchat(predictions, references)
    return _lmms_eval(predictions, references)


def to_timechat(
    samples: Sequence[Mapping[str, Any]], problems: list[Problem] | None = None
) -> dict[str, dict[str, Any] | list]:
    """
    Answers in the form of E.T. Bench as a prediction file in TimeChat's form, as D2VLM's conversion makes it.

    Args:
        samples (`Sequence[Mapping]`):
            Answers: `idx`, `video`, `q` (the question, with the query in single quotes), `a`
            (`EVIDENCE </evi> ANSWER`). Where `task` and `source` are there, only `tvg` of `charades_sta` is taken.
        problems (`list[Problem]`, *optional*):
            Gets the answers at which the original conversion stops with an error.

    Returns:
        `dict`: of every `idx`, as text, `{"timestamp": [start_s, end_s], "vid", "query"}`, or `[]` where the
        conversion would stop.

    Example:
        >>> from trl_temporal.evaluation.metrics.charades_sta import to_timechat
        >>> question = "Localize the event 'person opens a door'."
        >>> answer = "2.0 - 7.9 </evi>It is in 9.6 - 3."
        >>> to_timechat([{"idx": 7, "video": "charades/AMT7R.mp4", "q": question, "a": answer}])
        {'7': {'timestamp': [3.0, 9.6], 'vid': 'AMT7R.mp4', 'query': 'person opens a door. '}}
    """
    problems = [] if problems is None else problems
    converted: dict[str, dict[str, Any] | list] = {}
    for sample in samples:
        if sample.get("task", "tvg") != "tvg" or sample.get("source", "charades_sta") != "charades_sta":
            continue
        sample_id = str(sample["idx"])
        quoted = sample["q"].split("'")
        try:
            timestamp = d2vlm_timestamp(sample["a"])
            query = quoted[1]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            problems.append(Problem(sample_id, "crash", f"{type(error).__name__}: {sample['a']!r:.60}"))
            converted[sample_id] = []
        else:
            video = sample["video"].split("/")[-1]
            converted[sample_id] = {"timestamp": timestamp, "vid": video, "query": f"{query}. "}
    return converted


def d2vlm_timestamp(text: str) -> list[float]:
    """
    The interval that D2VLM's conversion takes from an answer: the answer's first, else the evidence's first.

    Args:
        text (`str`):
            `EVIDENCE </evi> ANSWER`.

    Returns:
        `list[float]`: `[start_s, end_s]`.

    Raises:
        KeyError, TypeError, ValueError: where the original stops: no interval at all, an answer without evidence, and
            a number such as `3..5`.

    Example:
        >>> from trl_temporal.evaluation.metrics.charades_sta import d2vlm_timestamp
        >>> d2vlm_timestamp("2.5 - 7.9 </evi>not visible")
        [2.5, 7.9]
    """
    evidence, *others = text.lower().split(EVI_END)
    answer = others[-1] if others else ""
    answered = _ranges(answer, _D2VLM_RANGE) or _ranges(answer, _D2VLM_TO)
    if not answered:
        lines = [line for line in re.split(r"[!?\n]", answer) if _KEYWORD.search(line)]
        matches = [re.search(r"\b(\d+\.\d+|\d+)\b", line) for line in lines]
        numbers = [float(match[0]) for match in matches if match]
        answered = list(zip(numbers[::2], numbers[1::2], strict=False))
    of_evidence = _ranges(evidence, _D2VLM_RANGE) if others else []
    if not answered and not of_evidence:
        raise KeyError("index")  # the original looks up a field that its samples do not have
    if not of_evidence:
        raise TypeError("the original makes a tensor of evidence that is not there")
    return _in_order(*answered[0]) if answered else list(of_evidence[0])


def _ranges(text: str, pattern: re.Pattern) -> list[tuple[float, float]]:
    return [(float(start), float(end)) for start, end in pattern.findall(text)]


def lmms_times(text: str) -> list[list[float]]:
    """
    The interval that lmms-eval reads from an answer.

    Args:
        text (`str`):
            The answer.

    Returns:
        `list`: one `[start_s, end_s]`, or none.

    Example:
        >>> from trl_temporal.evaluation.metrics.charades_sta import lmms_times
        >>> lmms_times("from 3 to 9"), lmms_times("It starts at 3.5\\nand ends at 9"), lmms_times("at 12")
        ([[3.0, 9.0]], [[3.5, 9.0]], [])
    """
    text = text.lower().replace(_LMMS_EXAMPLE, "").replace("to", "-")
    lines = re.split(r"[!?\n]", text)
    lines = [line for line in lines if _KEYWORD.search(line)] or lines
    for pattern in (_CLOCK_RANGE, _LMMS_RANGE):
        match = next(filter(None, map(pattern.search, lines)), None)
        if match:
            return [_in_order(*map(_seconds, match.groups()))]
    clocks = [clock for line in lines for clock in re.findall(rf"\b{_CLOCK}\b", line)]
    numbers = [match[0] for line in lines if (match := re.search(rf"\b{_LMMS_NUMBER}\b", line))]
    for times in (clocks, numbers):
        if len(times) >= 2:
            return [_in_order(_seconds(times[0]), _seconds(times[1]))]
    match = next(filter(None, map(_LMMS_RANGE_OF_SECONDS.search, lines)), None)
    return [_in_order(float(match[1]), float(match[2]))] if match else []


def _seconds(time: str) -> float:
    hours, minutes, seconds = [0.0, 0.0, *map(float, time.split(":"))][-3:]
    return hours * 3600 + minutes * 60 + seconds


def _in_order(start_s: float, end_s: float) -> list[float]:
    return [start_s, end_s] if end_s > start_s else [end_s, start_s]


def _fixed(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Scores:
    problems: list[Problem] = []
    ids = [str(reference["id"]) for reference in references]
    truth = [true_spans(reference["id"], [reference["timestamp"]]) for reference in references]
    matched = match_predictions(ids, predictions, problems)
    durations_s = [reference.get("duration") for reference in references]
    answered = first_spans(ids, matched, problems, durations_s)
    iou = iou_pairs(answered, np.array(truth).reshape(-1, 2))
    return Scores(recall_metrics(iou), problems, len(references))


def _given_span(prediction: Mapping[str, Any]) -> list[float] | None:
    """The first of the spans, as it is, or `None`; TypeError or ValueError where it is no pair of numbers."""
    if len(prediction["spans"]) == 0:
        return None
    start_s, end_s = prediction["spans"][0]
    return [float(start_s), float(end_s)]


def _d2vlm(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Scores:
    problems: list[Problem] = []
    timestamps: dict[str, list[float] | None] = {}
    for prediction in predictions:
        sample_id, timestamp = str(prediction["id"]), None
        if sample_id in timestamps:
            problems.append(Problem(sample_id, "duplicate", "the last one counts"))
        try:
            given = prediction.get("spans") is not None
            timestamp = _given_span(prediction) if given else d2vlm_timestamp(prediction.get("text") or "")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(Problem(sample_id, "crash", f"{type(error).__name__}: {prediction.get('text')!r:.60}"))
        timestamps[sample_id] = timestamp

    true_timestamps = {str(reference["id"]): reference["timestamp"] for reference in references}
    unknown = timestamps.keys() - true_timestamps.keys()
    problems.extend(Problem(sample_id, "unknown id") for sample_id in timestamps if sample_id in unknown)
    problems.extend(Problem(sample_id, "missing") for sample_id in true_timestamps if sample_id not in timestamps)
    # Without an interval an answer is compared as [0, 0] but not counted; of an unknown id, counted but not compared.
    num = sum(timestamp is not None for timestamp in timestamps.values())
    shared = [sample_id for sample_id in true_timestamps if sample_id in timestamps]
    iou, hull = _hull_iou(
        [true_timestamps[sample_id] for sample_id in shared],
        [timestamps[sample_id] or [0, 0] for sample_id in shared],
    )
    for index in np.flatnonzero(hull == 0):
        problems.append(Problem(shared[index], "crash", "two equal points: the original divides by 0"))
    hits = {str(threshold): int((iou >= threshold).sum()) for threshold in (0, *RECALL_THRESHOLDS)}
    sum_iou = _running_sum(iou)
    if num == 0:
        problems.append(Problem("", "crash", "no prediction has an interval: the original divides by 0"))
    metrics = {
        **{f"IOU {threshold}": _divide(hits[str(threshold)] * 100, num) for threshold in RECALL_THRESHOLDS},
        "mIOU": _divide(sum_iou, num),
    }
    return Scores(metrics, problems, num, {"num": num, "Result": {**hits, "miou": sum_iou}})


def _etchat(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Scores:
    problems: list[Problem] = []
    true_timestamps = {str(reference["id"]): sorted(reference["timestamp"]) for reference in references}
    truth, answered = [], []
    total = failed = 0
    for prediction in predictions:
        sample_id = str(prediction["id"])
        if sample_id not in true_timestamps:
            problems.append(Problem(sample_id, "unknown id"))
            continue
        total += 1
        spans = prediction.get("spans")
        if spans is None:
            spans = answered_spans(sample_id, prediction, problems)
        try:
            start_s, end_s = map(float, spans[0])
        except (TypeError, ValueError, IndexError):
            failed += 1
            continue
        truth.append(true_timestamps[sample_id])
        answered.append([start_s, end_s])
    a = np.array(truth, dtype=np.float32).reshape(-1, 2)
    b = np.array(answered, dtype=np.float32).reshape(-1, 2)
    overlap = np.maximum(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = overlap / ((a[:, 1] - a[:, 0]) + (b[:, 1] - b[:, 0]) - overlap)
    iou = np.where(np.isfinite(iou), iou, 0).astype(np.float64)
    if total == 0:
        problems.append(Problem("", "crash", "no predictions: the original divides by 0"))
    metrics = {
        **{
            f"R{10 * threshold:.0f}": round(_divide(int((iou >= threshold).sum()), total), 3)
            for threshold in RECALL_THRESHOLDS
        },
        "mIoU": round(_divide(_running_sum(iou), total), 3),
    }
    return Scores(metrics, problems, total, {"total": total, "failed": failed})


def _lmms_eval(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Scores:
    problems: list[Problem] = []
    by_id = {str(reference["id"]): reference for reference in references}
    answers: dict[tuple[str, str, str], tuple[str, Mapping[str, Any]]] = {}
    for prediction in predictions:
        sample_id = str(prediction["id"])
        if sample_id not in by_id:
            problems.append(Problem(sample_id, "unknown id"))
            continue
        reference = by_id[sample_id]
        key = (reference["image_id"], reference["caption"], str(list(reference["timestamp"])))
        if key in answers:
            problems.append(Problem(sample_id, "duplicate", f"same query as {answers[key][0]}: the last one counts"))
        answers[key] = (sample_id, prediction)
    truth, answered = [], []
    for sample_id, prediction in answers.values():
        times = []
        try:
            if prediction.get("spans") is not None:
                times = [_given_span(prediction)] if len(prediction["spans"]) else []
            else:
                times = lmms_times(prediction.get("text") or "")
        except (TypeError, ValueError, AttributeError):
            pass  # as the original, which counts it as wrong
        if not times:
            problems.append(Problem(sample_id, "unparsable", f"{prediction.get('text')!r:.60}"))
        start_s, end_s = by_id[sample_id]["timestamp"]
        truth.append([start_s, end_s])
        answered.append(times[0] if times else [end_s + 10, end_s + 20])  # overlaps with nothing
    iou, _ = _hull_iou(truth, answered)
    total = len(iou)
    metrics = {
        **{
            f"IOU@{10 * threshold:.0f}": _divide(int((iou >= threshold).sum()) * 100, total)
            for threshold in RECALL_THRESHOLDS
        },
        "mIOU": _divide(_running_sum(iou) * 100, total),
    }
    return Scores(metrics, problems, total)


def _hull_iou(truth: list, answered: list) -> tuple[np.ndarray, np.ndarray]:
    """Overlap as a share of the hull; and the hull, where it is 0 the share is 0."""
    overlap, hull = hull_overlap(np.array(truth, float).reshape(-1, 2), np.array(answered, float).reshape(-1, 2))
    with np.errstate(invalid="ignore"):  # a number of 400 digits is infinite
        return np.where(0 > overlap, 0, overlap) / np.where(hull == 0, 1, hull), hull


def _running_sum(values: np.ndarray) -> float:
    return float(np.cumsum(values)[-1]) if len(values) else 0.0  # one after the other, as a loop adds them


def _divide(value: float, count: int) -> float:
    return value / count if count else 0.0
