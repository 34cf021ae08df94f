# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
CPU time of scoring made-up predictions: arrays against plain Python loops on the same numbers, and whole metrics.

    python benchmarks/span_scoring.py [NUM_QUERIES]

Exits with 1 if the loops give other numbers, or are not at least 3 times slower.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed, too

from trl_temporal.evaluation.metrics.charades_sta import charades_sta  # noqa: E402
from trl_temporal.evaluation.metrics.intervals import iou_pairs  # noqa: E402
from trl_temporal.evaluation.metrics.qvhighlights import (  # noqa: E402
    IOU_THRESHOLDS,
    average_precision,
    qvhighlights,
)
from trl_temporal.evaluation.metrics.spans_metric import best_iou, span_scores  # noqa: E402

DURATION_S, NUM_WINDOWS, NUM_TRUE, NUM_CLIPS = 150, 10, 4, 75
MIN_FACTOR = 3


def loop_iou(a: list[float], b: list[float]) -> float:
    overlap = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return overlap / ((a[1] - a[0]) + (b[1] - b[0]) - overlap)


def loop_best_iou(answered: list, truth: list) -> list[float]:
    return [max(loop_iou(a, b) for b in true) for spans, true in zip(answered, truth, strict=True) for a in spans]


def loop_precision(answered: list, truth: list) -> list[list[float]]:
    queries = []
    for spans, true in zip(answered, truth, strict=True):
        table = [[loop_iou(a, b) for b in true] for a in spans]
        precisions = []
        for threshold in IOU_THRESHOLDS.tolist():
            free, hits = set(range(len(true))), []
            for row in table:
                best = max(free, key=row.__getitem__, default=None)
                hits.append(best is not None and row[best] >= threshold)
                if hits[-1]:
                    free.remove(best)
            precision, best_behind, gained = sum(hits), 0.0, 0.0
            for rank in range(len(hits), 0, -1):
                best_behind = max(best_behind, precision / rank)
                if hits[rank - 1]:
                    precision -= 1
                    gained += best_behind
            precisions.append(gained / len(true))
        queries.append(precisions)
    return queries


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    start = time.process_time()
    return function(*args), time.process_time() - start


def compare(name: str, fast: Callable, loop: Callable) -> bool:
    (numbers, seconds), (expected, loop_seconds) = timed(fast), timed(loop)
    difference = float(np.abs(numbers - np.array(expected)).max())
    factor = loop_seconds / seconds
    print(f"{name}: {seconds:.3f} s, in loops {loop_seconds:.3f} s: {factor:.1f} times; difference {difference:.0e}")
    return difference < 1e-12 and factor >= MIN_FACTOR


def main() -> int:
    num_queries = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rng = np.random.default_rng(0)
    truth = np.sort(rng.uniform(0, DURATION_S, (num_queries, NUM_TRUE, 2)), axis=2).round(2)
    near = truth[:, rng.integers(0, NUM_TRUE, NUM_WINDOWS)] + rng.normal(0, 3, (num_queries, NUM_WINDOWS, 2))
    answered = np.sort(np.clip(near, 0, DURATION_S), axis=2).round(2) + [0, 0.01]
    true_lists, answered_lists = truth.tolist(), answered.tolist()
    print(f"{num_queries:,} queries with {NUM_WINDOWS} windows and {NUM_TRUE} true ones")

    flat_truth, flat_answered = truth.reshape(-1, 2), answered.reshape(-1, 2)
    counts = np.full(num_queries, NUM_WINDOWS), np.full(num_queries, NUM_TRUE)
    is_answered, is_true = np.ones((num_queries, NUM_WINDOWS), bool), np.ones((num_queries, NUM_TRUE), bool)
    passed = [
        compare(
            "best IoU",
            lambda: best_iou(flat_answered, counts[0], flat_truth, counts[1]),
            lambda: loop_best_iou(answered_lists, true_lists),
        ),
        compare(
            "mAP at 10 thresholds",
            lambda: average_precision(
                iou_pairs(answered[:, :, None], truth[:, None]), is_answered, is_true, IOU_THRESHOLDS
            ),
            lambda: loop_precision(answered_lists, true_lists),
        ),
    ]

    predictions, queries = [], []
    for index, (windows, true) in enumerate(zip(answered_lists, true_lists, strict=True)):
        text = "It happens in " + ", ".join(f"{start_s:.2f} - {end_s:.2f}" for start_s, end_s in windows)
        saliency = rng.normal(size=NUM_CLIPS).tolist()
        scored = [[*window, float(score)] for window, score in zip(windows, rng.random(NUM_WINDOWS), strict=True)]
        predictions.append({"id": index, "text": text, "windows": scored, "saliency": saliency})
        clips = np.flatnonzero(rng.random(NUM_CLIPS) < 0.3).tolist()
        ratings = rng.integers(0, 5, (len(clips), 3)).tolist()
        rated = {"relevant_clip_ids": clips, "saliency_scores": ratings}
        queries.append({"qid": index, "duration": DURATION_S, "relevant_windows": true, **rated})
    samples = [{"id": index, "spans": true, "timestamp": true[0]} for index, true in enumerate(true_lists)]
    for name, metric, references in (
        ("span_scores, text", span_scores, samples),
        ("charades_sta, text", charades_sta, samples),
        ("qvhighlights with saliency", qvhighlights, queries),
    ):
        print(f"{name}: {timed(metric, predictions, references)[1]:.2f} s")
    original = lambda *args: qvhighlights(*args, scoring="original")  # noqa: E731
    print(f"qvhighlights, original scoring: {timed(original, predictions, queries)[1]:.2f} s")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
