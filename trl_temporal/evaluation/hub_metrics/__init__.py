# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The metrics for the `evaluate` library: one folder each, to load by path or to publish as a Hub space."""

from pathlib import Path

METRICS = (
    "charades_sta",
    "didemo",
    "etbench",
    "mvbench",
    "nextgqa",
    "qvhighlights",
    "spans_metric",
    "tempcompass",
    "videomme",
    "videoqa",
    "vinoground",
    "youcook2",
)


def metric_path(name: str) -> str:
    """
    Where a metric lies on this machine, for `evaluate.load`.

    Args:
        name (`str`):
            Name of the metric, one of `METRICS`.

    Returns:
        `str`: its file.

    Raises:
        ValueError: if there is no such metric.

    Example:
        >>> from trl_temporal.evaluation.hub_metrics import metric_path
        >>> metric_path("mvbench").endswith("mvbench.py")
        True
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; choose from {', '.join(METRICS)}")
    return str(Path(__file__).parent / name / f"{name}.py")
