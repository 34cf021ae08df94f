# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The masks in the columns of a row: what tells them from others, and those of the frames of its video."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from ..data.errors import ColumnError, RowError
from .masks import decode_masks


def objects_id(row: dict) -> str | None:
    """
    What tells the objects of a row from others, for an encoder that sees their masks.

    Args:
        row (`dict`):
            A row, with the columns of `OBJECT_FEATURES` or without.

    Returns:
        `str` or `None`: a hash of its nouns in any order, the union of its masks and their times; `None` for a row
        without masks.

    Raises:
        RowError: if there is not one time for each mask.

    Example:

    ```python
    >>> masks = {"height": 2, "width": 2, "union": [[1, 3]], "tracks": []}
    >>> row = {"object_nouns": ["dog", "cat"], "object_masks": masks, "object_times_s": [0.5]}
    >>> objects_id(row) == objects_id({**row, "object_nouns": ["cat", "dog"]})
    True
    >>> objects_id(row) == objects_id({**row, "object_nouns": ["dog"]})
    False
    ```
    """
    if not _has_masks(row):
        return None
    masks = row["object_masks"]
    runs = [np.asarray(frame, dtype="<i8") for frame in masks["union"]]
    shape = [sorted(row.get("object_nouns") or []), masks["height"], masks["width"], list(map(len, runs))]
    digest = hashlib.sha256(json.dumps(shape).encode())
    digest.update(np.concatenate(runs).tobytes())
    digest.update(np.asarray(row["object_times_s"], dtype="<f8").tobytes())
    return digest.hexdigest()


def masks_at(row: dict, timestamps_s: np.ndarray) -> np.ndarray | None:
    """
    The union of the masks of a row's objects (M_t of Eq. 6) in the frames of its video: that of the nearest time, of
    two as near that of the earlier.

    Args:
        row (`dict`):
            A row, with the columns of `OBJECT_FEATURES` or without.
        timestamps_s (`np.ndarray` of shape `(T,)`):
            Times of the frames in seconds.

    Returns:
        `np.ndarray` of shape `(T, height, width)`, bool, or `None` for a row without masks.

    Raises:
        RowError: if there is not one time for each mask, or the runs of a mask do not cover it.

    Example:

    ```python
    >>> masks = {"height": 1, "width": 2, "union": [[1, 1], [0, 2]], "tracks": []}
    >>> masks_at({"object_masks": masks, "object_times_s": [0.5, 1.5]}, [0.0, 1.0, 2.0]).tolist()
    [[[False, True]], [[False, True]], [[True, True]]]
    ```
    """
    if not _has_masks(row):
        return None
    masks = row["object_masks"]
    try:
        union = decode_masks(masks["union"], masks["height"], masks["width"])
    except ValueError as error:
        raise RowError(f"column 'object_masks': {error}.") from error
    return union[nearest(row["object_times_s"], timestamps_s)]


def nearest(times_s: Sequence[float], timestamps_s: Sequence[float]) -> np.ndarray:
    """
    Which of some times is nearest to each timestamp: the way from the frames of the object stage to those of a model.

    Args:
        times_s (`Sequence[float]`):
            Times in seconds, such as the column `object_times_s`.
        timestamps_s (`Sequence[float]`):
            Times of the frames of a video in seconds.

    Returns:
        `np.ndarray` of as many integers as there are timestamps. Of two times as near it is the first.

    Example:

    ```python
    >>> nearest([0.5, 1.5], [0.0, 1.0, 1.2, 9.0]).tolist()
    [0, 0, 1, 1]
    ```
    """
    return np.abs(np.subtract.outer(np.asarray(timestamps_s), np.asarray(times_s))).argmin(axis=1)


def _has_masks(row: dict) -> bool:
    masks = row.get("object_masks")
    if masks is None or masks["union"] is None:  # a null of Arrow may come back as a structure of nulls
        return False
    num_masks, num_times = len(masks["union"]), len(row.get("object_times_s") or ())
    if num_masks != num_times or num_masks == 0:
        fault = f"has masks of {num_masks} frames, but 'object_times_s' has {num_times} times"
        mend = "Run `trl-temporal objects extract` again, and keep all the columns that it adds"
        raise ColumnError("object_masks", fault, mend)
    return True


__all__ = ["masks_at", "nearest", "objects_id"]
