# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What a model reads of masks, straight from their run lengths: no pixel is written, so that a batch is made fast."""

from collections.abc import Sequence
from itertools import chain

import numpy as np


class MaskRuns:
    """
    Masks as of [`~trl_temporal.objects.masks.encode_masks`], one behind the other.

    Args:
        counts (`Sequence[Sequence[int]]`):
            Run lengths of each mask.
        height, width (`int`):
            Size of a mask in pixels.

    Raises:
        `ValueError`: the runs of a mask do not cover it, or one is negative.

    Example:

    ```python
    >>> runs = MaskRuns([[1, 3], [4]], height=2, width=2)
    >>> runs.shares(side=1).tolist()
    [[[0.75]], [[0.0]]]
    >>> runs.boxes().tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    ```
    """

    def __init__(self, counts: Sequence[Sequence[int]], height: int, width: int):
        self.height, self.width, self.num_masks = height, width, len(counts)
        lengths = np.fromiter(map(len, counts), dtype=np.int64, count=self.num_masks)
        runs = np.fromiter(chain.from_iterable(counts), dtype=np.int64, count=lengths.sum())
        ends_at = lengths.cumsum()
        # Of all masks, which stand one behind the other: the pixel behind each run, and whether the run is inside.
        self._ends = runs.cumsum()
        self._inside = (np.arange(len(runs)) - np.repeat(ends_at - lengths, lengths)) % 2 == 1
        size = height * width
        whole = lengths.all() and (self._ends[ends_at - 1] == size * np.arange(1, self.num_masks + 1)).all()
        if not whole or (runs < 0).any():
            raise ValueError(f"the runs of a mask do not sum to its {height}x{width} pixels")
        self._run, self._starts = runs, self._ends - runs

    def shares(self, side: int) -> np.ndarray:
        """
        How much of each place of a grid the masks cover, as [`masks_to_grid`] has it of pixels.

        Args:
            side (`int`):
                Rows and columns of the grid.

        Returns:
            `np.ndarray` of shape `(num_masks, side, side)`, float32 in `[0, 1]`.
        """
        number = np.arange(side)
        (top, bottom), (left, right) = (
            (number * length // side, -(-(number + 1) * length // side)) for length in (self.height, self.width)
        )
        edges = np.stack([top, bottom], axis=1).ravel()
        columns = np.arange(self.num_masks * self.width) * self.height
        # Pixels inside before each edge of each column; they are counted down the columns, as runs go.
        before = np.interp(
            columns[:, None] + edges, np.r_[0, self._ends], np.r_[0, (self._inside * self._run).cumsum()]
        )
        inside = np.diff(before.reshape(self.num_masks, self.width, side, 2), axis=-1)[..., 0]
        inside = np.pad(inside.cumsum(axis=1), ((0, 0), (1, 0), (0, 0)))
        pixels = (inside[:, right] - inside[:, left]).swapaxes(1, 2)
        return (pixels / np.outer(bottom - top, right - left)).astype(np.float32)

    def boxes(self) -> np.ndarray:
        """
        The box around each mask.

        Returns:
            `np.ndarray` of shape `(num_masks, 4)`, float32: as of [`~trl_temporal.objects.masks.mask_boxes`].
        """
        inside = self._inside & (self._run > 0)
        mask, first = np.divmod(self._starts[inside], self.height * self.width)
        last = first + self._run[inside] - 1
        (left, top), (right, bottom) = np.divmod(first, self.height), np.divmod(last, self.height)
        wraps = right > left  # into the next column
        top, bottom = np.where(wraps, 0, top), np.where(wraps, self.height - 1, bottom)
        boxes = np.zeros((self.num_masks, 4))
        shown, starts = np.unique(mask, return_index=True)
        if len(shown):
            for number, (edge, find) in enumerate(
                [(left, np.minimum), (top, np.minimum), (right + 1, np.maximum), (bottom + 1, np.maximum)]
            ):
                boxes[shown, number] = find.reduceat(edge, starts)
        return (boxes / [self.width, self.height, self.width, self.height]).astype(np.float32)


__all__ = ["MaskRuns"]
