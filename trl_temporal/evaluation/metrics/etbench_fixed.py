# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Bench with every sample in the denominator: one function a task, on the samples of one source."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...data.grammar import EVI, EVI_END, normalize, parse_captions
from .choices import read_answer
from .dense_text import read_events
from .grounding import IOU_THRESHOLDS
from .intervals import ROUNDING, iou_pairs, iou_table
from .scores import Problem
from .sentence_similarity import SentenceEncoder
from .time_text import check_spans, normalize_times, read_spans, to_seconds

Span = tuple[float, float]

OPTION_TASKS = ("rar", "eca", "rvq")
CAPTION_TASKS = ("dvc", "slc")
TASKS = (*OPTION_TASKS, "tvg", "epm", "tal", "evs", "vhd", *CAPTION_TASKS, "tem", "gvq")

_TIME = re.compile(r"(?<![\w.:-])\d[\d.,:]*")
_HITS_FROM = np.array(IOU_THRESHOLDS) - ROUNDING


class Answer(NamedTuple):
    """
    A sample with the prediction for it.

    Attributes:
        id (`str`):
            The sample.
        record (`Mapping`):
            Its record in the benchmark.
        text (`str`):
            The whole answer; empty where there is none.
        spans (`list`, *optional*):
            Intervals that were given as numbers.
        is_given (`bool`):
            Whether there is a prediction.
    """

    id: str
    record: Mapping[str, Any]
    text: str
    spans: list | None
    is_given: bool


def make_answer(sample_id: str, record: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> Answer:
    """
    Take the text and the intervals from a prediction, whatever these are.

    Args:
        sample_id (`str`):
            The sample.
        record (`Mapping`):
            Its record in the benchmark.
        prediction (`Mapping`, *optional*):
            `text` and `spans`, each of which may be missing.

    Returns:
        [`Answer`]
    """
    if prediction is None:
        return Answer(sample_id, record, "", None, is_given=False)
    text, spans = prediction.get("text"), prediction.get("spans")
    if spans is not None:
        spans = list(spans) if isinstance(spans, Iterable) else [spans]
    return Answer(sample_id, record, text if isinstance(text, str) else "", spans, is_given=True)


def check_record(sample_id: str, record: Mapping[str, Any]) -> None:
    """
    Refuse a record that cannot be scored.

    Args:
        sample_id (`str`):
            The sample.
        record (`Mapping`):
            Its record in the benchmark.

    Raises:
        ValueError: if the task is none of E.T. Bench, or its ground truth is missing or malformed.
    """
    task = record["task"]
    if task not in TASKS:
        raise ValueError(f"{sample_id}: the task is {task!r}; those of E.T. Bench are {', '.join(TASKS)}")
    if task in (*OPTION_TASKS, "gvq"):
        options, index = record.get("o"), record.get("p")
        if not (options and isinstance(index, int) and 0 <= index < len(options)):
            raise ValueError(f"{sample_id}: `p` must be the index of one of the options `o`, but is {index!r}")
    if task not in OPTION_TASKS:
        try:
            truth = _truth(record)
        except (IndexError, KeyError, TypeError, ValueError):
            truth = np.zeros((0, 2))
        if not len(truth) or not np.isfinite(truth).all():
            raise ValueError(f"{sample_id}: `tgt` must hold intervals in seconds, but is {record.get('tgt')!r:.80}")
        if task in CAPTION_TASKS and len(record.get("g") or []) != len(truth):
            raise ValueError(f"{sample_id}: `g` must hold one caption for each of the {len(truth)} intervals of `tgt`")


def score_source(
    task: str, answers: Sequence[Answer], encoder: SentenceEncoder | None, problems: list[Problem]
) -> dict[str, float]:
    """
    Score the samples of one source of a task.

    Args:
        task (`str`):
            Task of E.T. Bench.
        answers (`Sequence[Answer]`):
            Samples with their predictions, at least one.
        encoder ([`SentenceEncoder`], *optional*):
            Sentence model, for the similarity of captions.
        problems (`list[Problem]`):
            Gets what is wrong with the answers.

    Returns:
        `dict`: `Total` samples and `Failed` ones that could not be read; all else percentages.
    """
    if task in OPTION_TASKS:
        choices = [_choice(answer, problems) for answer in answers]
        return _counts(choices) | {
            "Acc": _percent([a.record["p"] == choice for a, choice in zip(answers, choices, strict=True)])
        }
    if task in CAPTION_TASKS:
        return _score_captions(answers, encoder, problems)
    spans = [_spans(answer, problems) for answer in answers]
    truths = [_truth(answer.record) for answer in answers]
    if task == "tal":
        return _counts(spans) | _thresholds("F1", "F1", [_set_f1(a, b) for a, b in zip(truths, spans, strict=True)])
    if task == "evs":
        return _counts(spans) | {"F1": _percent([_summary_f1(a, b) for a, b in zip(truths, spans, strict=True)])}
    if task == "vhd":
        return _counts(spans) | {"F1": _percent([_is_highlight(a, b) for a, b in zip(truths, spans, strict=True)])}
    ious = _first_ious(truths, spans)
    if task == "gvq":
        choices = [_choice(answer, problems) for answer in answers]
        is_right = np.array([answer.record["p"] == choice for answer, choice in zip(answers, choices, strict=True)])
        ious = np.where(is_right, ious, 0)
        failed = [choice if found else None for choice, found in zip(choices, spans, strict=True)]
        return _counts(failed) | _recalls("R", "mRec", ious) | {"Acc": _percent(is_right)}
    names = ("R", "mRec") if task == "tem" else ("F1", "F1")
    return _counts(spans) | _recalls(*names, ious)


# --- Reading ---


def _truth(record: Mapping[str, Any]) -> np.ndarray:
    """True intervals of shape `(n, 2)`, of all annotators together."""
    truth = record["tgt"]
    if record["task"] == "vhd" and isinstance(truth[0][0], list | tuple):
        truth = [segment for annotator in truth for segment in annotator]
    return np.sort(np.array(truth, dtype=np.float64).reshape(-1, 2), axis=1)


def _answer_text(answer: Answer) -> str:
    """What follows the evidence."""
    _, end, rest = answer.text.partition(EVI_END)
    return rest if end else answer.text


def _spans(answer: Answer, problems: list[Problem]) -> list[Span]:
    if not answer.is_given:
        return []
    text = _answer_text(answer)
    spans, found = read_spans(text) if answer.spans is None else check_spans(answer.spans)
    if not spans and answer.record["task"] == "vhd" and answer.spans is None:
        match = _TIME.search(normalize_times(text))
        time_s = to_seconds(match[0].rstrip(",:")) if match else None
        spans = [] if time_s is None else [(time_s, time_s)]
    problems.extend(Problem(answer.id, *problem) for problem in found)
    _report(answer, spans, problems)
    return spans


def _report(answer: Answer, spans: list[Span], problems: list[Problem]) -> None:
    """Answers without an interval, and with one behind the end of the video."""
    if not spans:
        text = _answer_text(answer).strip()
        problems.append(Problem(answer.id, "unparsable" if answer.spans or text else "empty", text[:80]))
    duration_s = answer.record.get("duration")
    late = [span for span in spans if isinstance(duration_s, int | float) and span[1] > duration_s + ROUNDING]
    if late:
        detail = f"{late[0][0]} - {late[0][1]} of {duration_s} s"
        problems.append(
            Problem(answer.id, "out of duration", f"{detail}, and {len(late) - 1} more" if late[1:] else detail)
        )


def _choice(answer: Answer, problems: list[Problem]) -> int | None:
    if not answer.is_given:
        return None
    options = [
        " - ".join(map(str, option)) if isinstance(option, list | tuple) else str(option)
        for option in answer.record["o"]
    ]
    return read_answer(answer.id, answer.text, len(options), options, problems)


def _events(answer: Answer, problems: list[Problem]) -> tuple[list[Span], list[str]]:
    """Intervals with their captions."""
    if not answer.is_given:
        return [], []
    events, found = read_events(answer.text)
    if answer.spans is not None:
        text = _answer_text(answer)
        captions = parse_captions(text) if EVI in text else [caption for *_, caption in events]
        checked = [check_spans([span]) for span in answer.spans]
        found = [problem for _, of_span in checked for problem in of_span]
        pairs = itertools.zip_longest(checked, captions[: len(checked)], fillvalue="")
        events = [(*spans[0], caption) for (spans, _), caption in pairs if spans]
    problems.extend(Problem(answer.id, *problem) for problem in found)
    spans = [(start_s, end_s) for start_s, end_s, _ in events]
    _report(answer, spans, problems)
    return spans, [normalize(caption) for *_, caption in events]


# --- Scores ---


def _counts(found: Sequence[Any]) -> dict[str, int]:
    return {"Total": len(found), "Failed": sum(entry is None or entry == [] for entry in found)}


def _percent(values: Sequence[float] | np.ndarray) -> float:
    return 100 * float(np.mean(values))


def _thresholds(name: str, mean_name: str, scores: Sequence[np.ndarray] | np.ndarray) -> dict[str, float]:
    """Means over samples of scores of shape `(samples, thresholds)`."""
    means = 100 * np.mean(scores, axis=0)
    numbers = {f"{name}@{threshold}": float(mean) for threshold, mean in zip(IOU_THRESHOLDS, means, strict=True)}
    return numbers | {mean_name: float(means.mean())}


def _recalls(name: str, mean_name: str, ious: np.ndarray) -> dict[str, float]:
    return {"mIoU": _percent(ious)} | _thresholds(name, mean_name, ious[:, None] >= _HITS_FROM)


def _first_ious(truths: list[np.ndarray], spans: list[list[Span]]) -> np.ndarray:
    """IoU of every sample's first interval with the true one that it overlaps most; 0 without an interval."""
    ious = np.zeros(len(spans))
    read = [index for index, of_sample in enumerate(spans) if of_sample]
    if read:
        sizes = [len(truths[index]) for index in read]
        first = np.repeat(np.array([spans[index][0] for index in read]), sizes, axis=0)
        pairs = iou_pairs(np.concatenate([truths[index] for index in read]), first)
        ious[read] = np.maximum.reduceat(pairs, np.cumsum([0, *sizes[:-1]]))
    return ious


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    total = precision + recall
    return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0)


def _precision_recall(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of predicted and of true intervals that overlap one of the other kind, for every threshold."""
    if not table.size:
        return np.zeros(len(_HITS_FROM)), np.zeros(len(_HITS_FROM))
    return tuple((table.max(axis=axis)[:, None] >= _HITS_FROM).mean(axis=0) for axis in (0, 1))


def _set_f1(truth: np.ndarray, spans: list[Span]) -> np.ndarray:
    return _f1(*_precision_recall(iou_table(truth, spans)))


def _summary_f1(truth: np.ndarray, spans: list[Span]) -> float:
    """F1 of the seconds that two sets of intervals cover, each second once."""
    if not spans:
        return 0.0
    true, predicted = _union(truth), _union(np.array(spans))
    shared = np.minimum(true[:, None, 1], predicted[None, :, 1]) - np.maximum(true[:, None, 0], predicted[None, :, 0])
    true_s, predicted_s = ((union[:, 1] - union[:, 0]).sum() for union in (true, predicted))
    if true_s + predicted_s == 0:  # moments alone
        return float(np.array_equal(true, predicted))
    return min(1.0, float(2 * np.maximum(shared, 0).sum() / (true_s + predicted_s)))


def _union(intervals: np.ndarray) -> np.ndarray:
    """Intervals of shape `(n, 2)` that cover the same, without overlaps, in order."""
    intervals = intervals[np.lexsort(intervals.T[::-1])]
    ends = np.maximum.accumulate(intervals[:, 1])
    is_first = np.concatenate([[True], intervals[1:, 0] > ends[:-1]])
    return np.stack([intervals[is_first, 0], ends[np.append(is_first[1:], True)]], axis=1)


def _is_highlight(truth: np.ndarray, spans: list[Span]) -> bool:
    """Whether the middle of the first interval lies in a highlight of any annotator."""
    if not spans:
        return False
    middle = spans[0][0] + (spans[0][1] - spans[0][0]) / 2
    return bool(((truth[:, 0] <= middle + ROUNDING) & (middle <= truth[:, 1] + ROUNDING)).any())


def _score_captions(
    answers: Sequence[Answer], encoder: SentenceEncoder | None, problems: list[Problem]
) -> dict[str, float]:
    events = [_events(answer, problems) for answer in answers]
    tables = [iou_table(spans, _truth(answer.record)) for answer, (spans, _) in zip(answers, events, strict=True)]
    # Recall of the true intervals is the maximum over predicted ones, which here are the rows.
    recall, precision = np.mean([_precision_recall(table) for table in tables], axis=0)
    f1 = _f1(precision, recall)
    scores = _counts([spans for spans, _ in events])
    scores |= {f"F1@{threshold}": 100 * float(value) for threshold, value in zip(IOU_THRESHOLDS, f1, strict=True)}
    scores["F1"] = _percent(f1)
    if encoder is None:
        return scores
    true_captions = [[normalize(str(caption)) for caption in answer.record["g"]] for answer in answers]
    captions = [of_sample for _, of_sample in events]
    encoder.encode([caption for of_sample in (*captions, *true_captions) for caption in of_sample])  # in large batches
    similarities = [
        _similarity(*of_sample, encoder) for of_sample in zip(tables, captions, true_captions, strict=True)
    ]
    return scores | {"SentSim": _percent(similarities)}


def _similarity(table: np.ndarray, captions: list[str], true_captions: list[str], encoder: SentenceEncoder) -> float:
    """
    Mean similarity of captions with that of the event which they overlap most, over the thresholds.

    A caption that overlaps none, or says nothing, counts 0; so does a sample without captions.
    """
    if not captions:
        return 0.0
    cosines = np.clip(encoder.encode(captions) @ encoder.encode(true_captions).T, 0, 1).astype(np.float64)
    cosines[[not caption for caption in captions]] = 0
    cosines[np.array(captions)[:, None] == np.array(true_captions)] = 1
    best = table.max(axis=1, keepdims=True)
    # Of equally good events the one that is most like the caption.
    similarity = np.where(table >= best - ROUNDING, cosines, 0).max(axis=1)
    return float((similarity[:, None] * (best >= _HITS_FROM)).mean())
