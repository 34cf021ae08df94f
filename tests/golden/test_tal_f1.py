# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Our interval F1 against the scorer that the paper's table was made with."""

import json
from pathlib import Path

import numpy as np
import pytest

from trl_temporal.evaluation.metrics.grounding import interval_f1

CASES = json.loads((Path(__file__).parent / "tal_f1.json").read_text())["cases"]


def as_spans(intervals: list[list[float]]) -> list[tuple[float, float]]:
    """The scorer swaps reversed intervals, and an empty one hits nothing; a span of ours is never empty."""
    return [(min(ends), max(ends) if ends[0] != ends[1] else ends[0] + 1e-7) for ends in intervals]


@pytest.mark.parametrize("case", CASES)
def test_interval_f1_equals_the_released_scorer(case):
    scores = [
        interval_f1(as_spans(sample["truth"]), as_spans(sample["predicted"])) if sample["predicted"] else np.zeros(4)
        for sample in case["samples"]
    ]
    f1 = np.mean(scores, axis=0)
    expected = [case["expected"][f"F1@{threshold}"] for threshold in (0.1, 0.3, 0.5, 0.7)]
    np.testing.assert_allclose(f1, expected, atol=1e-5)
    assert f1.mean() == pytest.approx(case["expected"]["F1"], abs=1e-5)
