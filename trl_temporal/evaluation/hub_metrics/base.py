# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What all metrics for `evaluate` share: the way in and out."""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

from ..metrics.scores import Scores


def metric_info(description: str, citation: str = "") -> evaluate.MetricInfo:
    """
    What `evaluate` wants to know of a metric.

    Args:
        description (`str`):
            Text about the metric, and from a line `Args:` on about its inputs.
        citation (`str`, *optional*, defaults to `""`):
            BibTeX of the benchmark.

    Returns:
        `evaluate.MetricInfo`: with `predictions` and `references` as strings: [`ScoresMetric`] stores every dictionary
        as JSON, as dictionaries of different fields have no common schema.
    """
    about, args, inputs = description.strip().partition("\nArgs:")
    return evaluate.MetricInfo(
        description=about.strip(),
        citation=citation.strip(),
        inputs_description=f"\n{args.strip()}{inputs}\n",
        features=Features({"predictions": Value("string"), "references": Value("string")}),
    )


class ScoresMetric(evaluate.Metric):
    """
    A metric whose predictions and references are lists of dictionaries, found by their ids and not by their places.

    A subclass defines `_info` with [`metric_info`], and `_compute` with [`rows`] and [`result`]. Its name in snake
    case is the metric's. Metric files import this module and not this class: `evaluate` takes the first metric class
    that it finds in a file.
    """

    def add_batch(self, *, predictions: Sequence[Mapping] | None = None, references: Sequence[Mapping] | None = None):
        """
        Add predictions and references, in any order and number.

        Args:
            predictions (`Sequence[Mapping]`, *optional*):
                Predictions.
            references (`Sequence[Mapping]`, *optional*):
                References.
        """
        # `evaluate` stores the two as columns of one table, so that the shorter one is filled up.
        pairs = list(zip_longest(_as_list(predictions), _as_list(references)))
        super().add_batch(
            predictions=[_dumps(prediction) for prediction, _ in pairs],
            references=[_dumps(reference) for _, reference in pairs],
        )

    def add(self, *, prediction: Mapping | None = None, reference: Mapping | None = None):
        """
        Add one prediction, one reference, or both.

        Args:
            prediction (`Mapping`, *optional*):
                Prediction.
            reference (`Mapping`, *optional*):
                Reference.
        """
        self.add_batch(predictions=[prediction], references=[reference])


def rows(column: Sequence[str]) -> list[dict[str, Any]]:
    """
    The dictionaries of a column.

    Args:
        column (`Sequence[str]`):
            What [`ScoresMetric`] stored.

    Returns:
        `list[dict]`: without the places that were filled up.

    Example:
        >>> from trl_temporal.evaluation.hub_metrics.base import rows
        >>> rows(['{"id": "a"}', "null"])
        [{'id': 'a'}]
    """
    return [row for row in map(json.loads, column) if row is not None]


def result(scores: Scores) -> dict[str, Any]:
    """
    What a metric returns.

    Args:
        scores (`Scores`):
            What the function returned.

    Returns:
        `dict`: its metrics, `num_samples`, and `problems`: how often each kind of problem came up.

    Example:
        >>> from trl_temporal.evaluation.hub_metrics.base import result
        >>> from trl_temporal.evaluation.metrics.scores import Problem, Scores
        >>> result(Scores({"mIoU": 50.0}, [Problem("a", "missing")], num_samples=2))
        {'mIoU': 50.0, 'num_samples': 2, 'problems': {'missing': 1}}
    """
    return {**scores.metrics, "num_samples": scores.num_samples, "problems": scores.problem_counts()}


def _as_list(values: Sequence[Mapping] | None) -> list[Mapping]:
    return [] if values is None else list(values)


def _dumps(row: Mapping | None) -> str:
    return json.dumps(row, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON has no word for: numbers and arrays of numpy, and sequences such as [`Span`]."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else list(value)
