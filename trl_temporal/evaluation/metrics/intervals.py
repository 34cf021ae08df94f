# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Overlap of intervals as models answer them: points, reversed and endless ones are data here, not errors."""

import numpy as np

# An interval of 7 s in one of 10 s has an IoU of 0.7 up to rounding, and counts as a hit.
ROUNDING = 1e-9


def _ratio(intersection: np.ndarray, union: np.ndarray, is_same: np.ndarray) -> np.ndarray:
    # Two points have no union: they agree if they are the same.
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), is_same.astype(float))


def iou_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    IoU of intervals with their counterparts.

    Args:
        a (`np.ndarray` of shape `(..., 2)`):
            Intervals in seconds, start before end.
        b (`np.ndarray` of a shape that broadcasts with it):
            The same.

    Returns:
        `np.ndarray` of shape `(...,)`: values in `[0, 1]`; of two points 1 if they are the same.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.intervals import iou_pairs
        >>> iou_pairs(np.array([[0, 10], [5, 5]]), np.array([[0, 7], [5, 5]])).tolist()
        [0.7, 1.0]
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    intersection = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    intersection = np.maximum(intersection, 0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection
    return _ratio(intersection, union, (a == b).all(axis=-1))


def iou_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    IoU of every interval of `a` with every interval of `b`.

    Args:
        a (`np.ndarray` of shape `(n, 2)`):
            Intervals in seconds, start before end.
        b (`np.ndarray` of shape `(m, 2)`):
            The same.

    Returns:
        `np.ndarray` of shape `(n, m)`: values in `[0, 1]`.

    Example:
        >>> from trl_temporal.evaluation.metrics.intervals import iou_table
        >>> iou_table([[0, 2], [1, 3]], [[0, 2]]).round(2).tolist()
        [[1.0], [0.33]]
    """
    a = np.asarray(a, dtype=np.float64).reshape(-1, 1, 2)
    return iou_pairs(a, np.asarray(b, dtype=np.float64).reshape(1, -1, 2))
