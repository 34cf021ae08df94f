# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Interval F1 at several IoU thresholds, with the counts and the baselines that it cannot be read without."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.grammar import EVI
from ...spans import iou_matrix

if TYPE_CHECKING:
    from ..generation import GroundedAnswer

Row = Mapping[str, Any]
Interval = Sequence[float]  # [start_s, end_s], or a Span

IOU_THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
# 7 s of 10 s has an IoU of 0.7 up to rounding, and counts as a hit.
IOU_ROUNDING = 1e-9


def truth_spans(row: Row) -> list[Interval]:
    """
    The intervals that the response of a row should name.

    Args:
        row (`Mapping`):
            Row with `spans`, and `response_spans` where the response's intervals differ from the evidence stage's.

    Returns:
        `list`: `[start_s, end_s]` pairs, in the order of the response's `<evi>`.
    """
    spans = row.get("response_spans")
    return list(row["spans"] if spans is None else spans)


def scored_spans(answer: "GroundedAnswer") -> list[Interval]:
    """
    The intervals of an answer that are scored: those of the response stage.

    Args:
        answer (`GroundedAnswer`):
            Answer of a model.

    Returns:
        `list`: spans in the order of the response's `<evi>`. Empty when their number differs from the number of
        `<evi>` in the text: which interval belongs to which part of the text is then unknown, and the answer scores 0.
    """
    return list(answer.response) if answer.text.count(EVI) == len(answer.response) else []


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def interval_f1(truth: Sequence[Interval], predicted: Sequence[Interval]) -> np.ndarray:
    """
    F1 of a set of intervals, at every threshold of `IOU_THRESHOLDS`.

    Recall is the share of true intervals that some prediction meets, precision the share of predictions that meet some
    true interval: the form of temporal action localisation in E.T. Bench, without one-to-one matching.

    Args:
        truth (`Sequence`):
            True intervals in seconds.
        predicted (`Sequence`):
            Predicted intervals in seconds.

    Returns:
        `np.ndarray` of shape `(4,)`: 1 where both are empty, 0 where only one is.

    Example:
        >>> from trl_temporal.evaluation.metrics.grounding import interval_f1
        >>> interval_f1([[0, 10]], [[0, 6]]).tolist()
        [1.0, 1.0, 1.0, 0.0]
    """
    if len(truth) == 0 or len(predicted) == 0:
        return np.full(len(IOU_THRESHOLDS), float(len(truth) == len(predicted)))
    # (true intervals, predicted intervals, thresholds)
    hits = iou_matrix(truth, predicted)[:, :, None] >= np.array(IOU_THRESHOLDS) - IOU_ROUNDING
    return _f1(precision=hits.any(axis=0).mean(axis=0), recall=hits.any(axis=1).mean(axis=0))


def _named(f1: np.ndarray, num_truth: np.ndarray, num_predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of all rows: `f1` is `(rows, thresholds)`, the counts are `(rows,)`."""
    return {
        "f1": f1.mean(axis=1),
        **{f"f1@{threshold}": f1[:, index] for index, threshold in enumerate(IOU_THRESHOLDS)},
        "count_accuracy": (num_predicted == num_truth).astype(float),
        "over_answering": (num_predicted > num_truth).astype(float),
    }


def _score(truths: list[list[Interval]], predictions: list[list[Interval]]) -> dict[str, np.ndarray]:
    f1 = [interval_f1(truth, predicted) for truth, predicted in zip(truths, predictions, strict=True)]
    return _named(
        np.array(f1).reshape(-1, len(IOU_THRESHOLDS)),
        num_truth=np.array([len(truth) for truth in truths]),
        num_predicted=np.array([len(predicted) for predicted in predictions]),
    )


def grounding_f1(rows: Sequence[Row], answers: Sequence["GroundedAnswer"]) -> dict[str, np.ndarray]:
    """
    Grounding scores of every row, from the intervals of the response stage.

    Args:
        rows (`Sequence[Mapping]`):
            Rows with `spans`.
        answers (`Sequence[GroundedAnswer]`):
            Their answers, in the same order.

    Returns:
        `dict[str, np.ndarray]`: arrays of shape `(rows,)`: `f1` (mean over the thresholds), `f1@0.1`, `f1@0.3`,
        `f1@0.5`, `f1@0.7`, `count_accuracy` (1 where the number of intervals is exact) and `over_answering` (1 where
        there are too many). F1 alone rewards answering too much, so it is never shown without the last two.
    """
    return _score([truth_spans(row) for row in rows], [scored_spans(answer) for answer in answers])


def all_events_baseline(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """
    Scores of answering every event of the video to every question.

    Args:
        rows (`Sequence[Mapping]`):
            Rows with `spans` and `all_spans`.

    Returns:
        `dict[str, np.ndarray]`: the same arrays as [`grounding_f1`].
    """
    return _score([truth_spans(row) for row in rows], [list(row["all_spans"]) for row in rows])


def chance_baseline(
    rows: Sequence[Row], durations_s: Sequence[float], num_draws: int = 100, seed: int = 0
) -> dict[str, np.ndarray]:
    """
    Scores of one random interval per question: the length of one of the rows' events, at a uniform place.

    Args:
        rows (`Sequence[Mapping]`):
            Rows with `spans`, and `all_spans` where known.
        durations_s (`Sequence[float]`):
            Duration of every row's video in seconds.
        num_draws (`int`, *optional*, defaults to `100`):
            Intervals drawn per row; the scores are their means.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `dict[str, np.ndarray]`: the same arrays as [`grounding_f1`].
    """
    truths = [truth_spans(row) for row in rows]
    events = [span for row, truth in zip(rows, truths, strict=True) for span in row.get("all_spans") or truth]
    lengths_s = np.array([end_s - start_s for start_s, end_s in events])
    f1 = np.zeros((len(rows), len(IOU_THRESHOLDS)))
    rng = np.random.default_rng(seed)
    for index, (truth, duration_s) in enumerate(zip(truths, durations_s, strict=True)):
        if not truth:  # no interval is right: F1 is 0
            continue
        drawn_s = np.minimum(rng.choice(lengths_s, num_draws), duration_s)
        starts_s = rng.uniform(0, duration_s - drawn_s)
        drawn = np.stack([starts_s, starts_s + drawn_s], axis=1)
        hits = iou_matrix(truth, drawn)[:, :, None] >= np.array(IOU_THRESHOLDS) - IOU_ROUNDING
        f1[index] = _f1(precision=hits.any(axis=0).astype(float), recall=hits.mean(axis=0)).mean(axis=0)
    return _named(f1, num_truth=np.array([len(truth) for truth in truths]), num_predicted=np.ones(len(rows)))
