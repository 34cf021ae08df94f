# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What a number for spans is read against: the best answer that looks at nothing, and the best that sampled frames allow.

Both give predictions, `{"id", "spans"}`, for [`~trl_temporal.evaluation.metrics.spans_metric.span_scores`].
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..spans import Span

Row = Mapping[str, Any]

BATCH_SIZE = 1024  # rows that are compared with all candidates together


def constant_span(rows: Sequence[Row], num_steps: int = 50) -> tuple[float, float]:
    """
    The span that, answered to every row, has the highest mean IoU: a prior for models that may have learned no more.

    Args:
        rows (`Sequence[Mapping]`):
            Training rows with `duration` in seconds and `spans`, of which the first counts.
        num_steps (`int`, *optional*, defaults to `50`):
            Candidates start and end at multiples of the duration divided by this.

    Returns:
        `tuple[float, float]`: start and end as shares of the duration.

    Raises:
        `ValueError`: there are no rows, or one has no span or no duration.

    Example:
        >>> from trl_temporal.evaluation.span_baselines import constant_span
        >>> rows = [{"id": "a", "spans": [[2, 4]], "duration": 10}, {"id": "b", "spans": [[5, 9]], "duration": 20}]
        >>> constant_span(rows)
        (0.2, 0.4)
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it has to be 1 or more")
    first, last = np.triu_indices(num_steps + 1, k=1)
    starts, ends = first / num_steps, last / num_steps
    true = _relative_spans(rows)
    total = np.zeros(len(starts))
    for begin in range(0, len(true), BATCH_SIZE):
        true_starts, true_ends = true[begin : begin + BATCH_SIZE].T[..., None]
        shared = np.clip(np.minimum(true_ends, ends) - np.maximum(true_starts, starts), 0, None)
        total += (shared / (true_ends - true_starts + ends - starts - shared)).sum(axis=0)
    best = int(total.argmax())
    return float(starts[best]), float(ends[best])


def constant_span_predictions(rows: Iterable[Row], span: tuple[float, float]) -> list[dict[str, Any]]:
    """
    The same span for every row.

    Args:
        rows (`Iterable[Mapping]`):
            Rows with `id` and `duration` in seconds.
        span (`tuple[float, float]`):
            Of [`constant_span`], on rows of another split.

    Returns:
        `list[dict]`: `id` and `spans` in seconds.

    Example:
        >>> from trl_temporal.evaluation.span_baselines import constant_span_predictions
        >>> constant_span_predictions([{"id": "a", "duration": 10}], (0.25, 0.5))
        [{'id': 'a', 'spans': [[2.5, 5.0]]}]
    """
    return [{"id": row["id"], "spans": [[share * row["duration"] for share in span]]} for row in rows]


def frame_oracle_predictions(
    rows: Iterable[Row], timestamps_s: Iterable[Sequence[float] | None] | None = None, num_frames: int = 96
) -> list[dict[str, Any]]:
    """
    The ceiling of every head that answers in frames: each true span as the frames that belong to it, and these read
    back as seconds by the time rule.

    Args:
        rows (`Iterable[Mapping]`):
            Rows with `id`, `spans` and `duration` in seconds.
        timestamps_s (`Iterable` of `Sequence[float]`, *optional*):
            Times of the sampled frames of each row in seconds, such as the column `object_times_s`. Defaults to those
            of `num_frames` frames at the midpoints of equal parts.
        num_frames (`int`, *optional*, defaults to `96`):
            Frames of each video where `timestamps_s` is not given.

    Returns:
        `list[dict]`: `id` and `spans` in seconds.

    Example:
        >>> from trl_temporal.evaluation.span_baselines import frame_oracle_predictions
        >>> frame_oracle_predictions([{"id": "a", "spans": [[2.2, 5.1]], "duration": 8.0}], num_frames=8)
        [{'id': 'a', 'spans': [[2.5, 5.5]]}]
    """
    from ..models.grounded_videodit.grounding_heads import frames_to_spans, spans_to_frames

    rows = list(rows)
    if timestamps_s is None:
        timestamps_s = [(np.arange(num_frames) + 0.5) / num_frames * row["duration"] for row in rows]
    predictions = []
    for row, times_s in zip(rows, timestamps_s, strict=True):
        frames = spans_to_frames(row["spans"], times_s, row["duration"])
        predictions.append({"id": row["id"], "spans": frames_to_spans(frames, times_s, row["duration"])})
    return predictions


def _relative_spans(rows: Iterable[Row]) -> np.ndarray:
    """First span of each row as shares of the duration, `(rows, 2)`."""
    relative = []
    for index, row in enumerate(rows):
        if not row.get("spans") or not row.get("duration"):
            raise ValueError(f"row {index} (id {row.get('id')!r}) has no span or no duration; leave such rows out")
        relative.append([value_s / row["duration"] for value_s in Span(*row["spans"][0])])
    if not relative:
        raise ValueError("there are no rows to find the best constant span for")
    return np.array(relative)
