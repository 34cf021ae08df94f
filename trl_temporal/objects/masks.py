# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Binary masks of objects in the frames of a video: as a compact column of a data set, their union and their boxes.

A mask is stored as COCO's run lengths: how many pixels are outside, inside, outside, ... down the columns, from the
left. `pycocotools` and other tools read a frame's `{"size": [height, width], "counts": [...]}` as it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def encode_masks(masks: np.ndarray) -> list[list[int]]:
    """
    Run lengths of masks.

    Args:
        masks (`np.ndarray` of shape `(num_frames, height, width)`, bool):
            One mask for each frame.

    Returns:
        `list[list[int]]`: COCO's `counts` of each frame. They sum to `height * width`, and only the first, the pixels
        outside before the first one inside, may be 0.

    Raises:
        `ValueError`: the array has another shape, another type, or frames without pixels.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.masks import encode_masks
        >>> encode_masks(np.array([[[False, True], [True, True]], [[True, True], [True, True]]]))
        [[1, 3], [0, 4]]
    """
    masks = _checked(masks, 3)
    num_frames, height, width = masks.shape
    pixels = masks.transpose(0, 2, 1).reshape(num_frames, width * height)
    # A border of "outside" before the first pixel, and of "the other side" behind the last, ends every run.
    bordered = np.concatenate([np.zeros((num_frames, 1), bool), pixels, ~pixels[:, -1:]], axis=1)
    frames, ends = np.nonzero(bordered[:, 1:] != bordered[:, :-1])
    split = np.split(ends, np.searchsorted(frames, np.arange(1, num_frames)))
    return [np.diff(of_frame, prepend=0).tolist() for of_frame in split] if num_frames else []


def decode_masks(counts: Sequence[Sequence[int]], height: int, width: int) -> np.ndarray:
    """
    Masks of run lengths.

    Args:
        counts (`Sequence[Sequence[int]]`):
            As of [`encode_masks`].
        height, width (`int`):
            Size of a mask in pixels.

    Returns:
        `np.ndarray` of shape `(num_frames, height, width)`, bool.

    Raises:
        `ValueError`: the runs of a frame do not cover it, or one is negative.

    Example:
        >>> from trl_temporal.objects.masks import decode_masks
        >>> decode_masks([[1, 3]], height=2, width=2).tolist()
        [[[False, True], [True, True]]]
    """
    masks = np.zeros((len(counts), width * height), dtype=bool)
    for frame, runs in enumerate(counts):
        runs = np.asarray(runs, dtype=np.int64)
        if (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(
                f"frame {frame}: the runs of the mask sum to {runs.sum()}, but a mask of {height}x{width} has "
                f"{height * width} pixels; extract the objects again, the column is damaged or of another size"
            )
        masks[frame] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return masks.reshape(-1, width, height).transpose(0, 2, 1)


def union_mask(masks: np.ndarray) -> np.ndarray:
    """
    Union of the objects' masks in each frame, Eq. 6 of Grounded-VideoDiT: `M_t = OR_i m_{i,t}`.

    Args:
        masks (`np.ndarray` of shape `(num_objects, num_frames, height, width)`, bool):
            One track for each object.

    Returns:
        `np.ndarray` of shape `(num_frames, height, width)`, bool: empty without objects.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.masks import union_mask
        >>> union_mask(np.array([[[[True, False]]], [[[False, False]]]])).tolist()
        [[[True, False]]]
    """
    return _checked(masks, 4).any(axis=0)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """
    The box around each mask.

    Args:
        masks (`np.ndarray` of shape `(..., height, width)`, bool):
            Masks.

    Returns:
        `np.ndarray` of shape `(..., 4)`, float32: left, top, right and bottom edge as shares of width and height, 0 to
        1; all 0 for an empty mask.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.masks import mask_boxes
        >>> mask_boxes(np.array([[False, True, True, False], [False, False, True, False]])).tolist()
        [0.25, 0.0, 0.75, 1.0]
    """
    masks = np.asarray(masks, dtype=bool)
    height, width = masks.shape[-2:]
    edges = []
    for inside, length in ((masks.any(axis=-2), width), (masks.any(axis=-1), height)):
        first, last = inside.argmax(axis=-1), length - inside[..., ::-1].argmax(axis=-1)
        edges.append((first / length, np.where(inside.any(axis=-1), last / length, 0.0)))
    (left, right), (top, bottom) = edges
    return np.stack([left, top, right, bottom], axis=-1).astype(np.float32)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    Intersection over union of every box of `a` with every box of `b`.

    Args:
        a (`np.ndarray` of shape `(num_a, 4)`):
            Left, top, right and bottom edges.
        b (`np.ndarray` of shape `(num_b, 4)`):
            The same.

    Returns:
        `np.ndarray` of shape `(num_a, num_b)`: 0 where neither box has an area.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.masks import box_iou
        >>> box_iou(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 0.5], [0, 0, 0, 0]])).tolist()
        [[0.5, 0.0]]
    """
    a, b = np.asarray(a, dtype=np.float64)[:, None], np.asarray(b, dtype=np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b))
    total = area_a + area_b - shared
    return np.divide(shared, total, out=np.zeros_like(total), where=total > 0)


def pack_masks(tracks: np.ndarray, union: np.ndarray) -> dict[str, Any]:
    """
    The cell of a data set for the masks of a sample.

    Args:
        tracks (`np.ndarray` of shape `(num_objects, num_frames, height, width)`, bool):
            The mask of each object.
        union (`np.ndarray` of shape `(num_frames, height, width)`, bool):
            What the frame encoder is given: their union, or all ones where there is no track.

    Returns:
        `dict`: `height` and `width` (`int`), `union` and `tracks`: the run lengths of each frame, and of each frame of
        each object.

    Raises:
        `ValueError`: the shapes do not agree.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.masks import pack_masks, unpack_masks
        >>> cell = pack_masks(np.zeros((1, 2, 4, 4), bool), np.ones((2, 4, 4), bool))
        >>> cell
        {'height': 4, 'width': 4, 'union': [[0, 16], [0, 16]], 'tracks': [[[16], [16]]]}
        >>> [masks.shape for masks in unpack_masks(cell)]
        [(1, 2, 4, 4), (2, 4, 4)]
    """
    tracks, union = _checked(tracks, 4), _checked(union, 3)
    if tracks.shape[1:] != union.shape:
        raise ValueError(f"the tracks have shape {tracks.shape} and the union {union.shape}: frames or sizes differ")
    height, width = union.shape[1:]
    encoded = [encode_masks(track) for track in tracks]
    return {"height": height, "width": width, "union": encode_masks(union), "tracks": encoded}


def unpack_masks(cell: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """
    The masks of a cell, see [`pack_masks`].

    Args:
        cell (`dict`):
            A cell of the column `object_masks`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: tracks of shape `(num_objects, num_frames, height, width)` and union of shape
        `(num_frames, height, width)`, bool.

    Raises:
        `ValueError`: the runs of a frame do not cover it.
    """
    height, width = cell["height"], cell["width"]
    union = decode_masks(cell["union"], height, width)
    tracks = [decode_masks(track, height, width) for track in cell["tracks"]]
    return np.stack(tracks) if tracks else np.zeros((0, *union.shape), dtype=bool), union


def _checked(masks: np.ndarray, num_dimensions: int) -> np.ndarray:
    masks = np.asarray(masks)
    if masks.ndim != num_dimensions or masks.dtype != bool or 0 in masks.shape[-2:]:
        names = ["objects", "frames", "height", "width"][-num_dimensions:]
        raise ValueError(
            f"masks have shape {masks.shape} and type {masks.dtype}; they have to be bool of shape "
            f"({', '.join(names)}) with pixels: threshold logits with `> 0` first"
        )
    return masks
