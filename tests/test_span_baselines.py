# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest

from trl_temporal.evaluation.metrics.spans_metric import span_scores
from trl_temporal.evaluation.span_baselines import (
    constant_span,
    constant_span_predictions,
    frame_oracle_predictions,
)


def random_rows(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for index, duration_s in enumerate(rng.uniform(5, 60, num_rows)):
        start_s, end_s = np.sort(rng.uniform(0, duration_s, 2))
        rows.append({"id": str(index), "spans": [[start_s, end_s]], "duration": duration_s})
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_no_other_span_of_the_grid_scores_higher(seed):
    rows = random_rows(6, seed)
    scored = {}
    for first in range(10):
        for last in range(first + 1, 11):
            predictions = constant_span_predictions(rows, (first / 10, last / 10))
            scored[first / 10, last / 10] = span_scores(predictions, rows).metrics["mIoU"]
    assert scored[constant_span(rows, num_steps=10)] == pytest.approx(max(scored.values()))


def test_many_rows_give_what_their_repetition_gives(monkeypatch):
    rows = random_rows(30)
    once = constant_span(rows)
    monkeypatch.setattr("trl_temporal.evaluation.span_baselines.BATCH_SIZE", 7)
    assert constant_span(rows * 3) == once


def test_rows_without_a_span_are_named():
    with pytest.raises(ValueError, match=r"row 1 \(id 'b'\)"):
        constant_span([*random_rows(1), {"id": "b", "spans": [], "duration": 3.0}])
    with pytest.raises(ValueError, match="no rows"):
        constant_span([])
    with pytest.raises(ValueError, match="num_steps"):
        constant_span(random_rows(2), num_steps=0)


def test_the_oracle_is_the_best_answer_in_frames():
    rows = random_rows(50)
    times_s = [np.linspace(0, row["duration"], 9)[:-1] for row in rows]
    oracle = span_scores(frame_oracle_predictions(rows, times_s), rows).metrics["mIoU"]
    best = []
    for row, frames_s in zip(rows, times_s, strict=True):
        edges_s = np.append(frames_s, row["duration"])
        answers = [[edges_s[first], edges_s[last]] for first in range(8) for last in range(first + 1, 9)]
        predictions = [{"id": row["id"], "spans": [answer]} for answer in answers]
        best.append(max(span_scores([one], [row]).metrics["mIoU"] for one in predictions))
    # The time rule takes the nearest edges, which is the best answer but for spans about as short as a frame.
    assert 0.97 * np.mean(best) < oracle <= np.mean(best) + 1e-9


def test_more_frames_raise_the_ceiling():
    rows = random_rows(100)
    ceilings = [
        span_scores(frame_oracle_predictions(rows, num_frames=number), rows).metrics["mIoU"] for number in (8, 32, 512)
    ]
    assert ceilings == sorted(ceilings) and ceilings[2] > 98
