# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A detector and a tracker that know colours, for tests of what is done with what real ones find."""

import numpy as np

from trl_temporal.objects.detect import Detections
from trl_temporal.objects.masks import mask_boxes

# Colours of the objects that the oracles know, and how far a channel of theirs may be off.
COLORS = {"red box": (220, 30, 30), "blue box": (30, 30, 220)}
TOLERANCE = 60


def color_mask(frames: np.ndarray, noun: str) -> np.ndarray:
    """Where an object's colour is, `(num_frames, height, width)`."""
    return (np.abs(frames.astype(int) - COLORS[noun]) < TOLERANCE).all(axis=-1)


def oracle_detect(frames: np.ndarray, nouns) -> Detections:
    """A detector that sees colours and is sure of them: score .9 where there is one."""
    masks = np.stack(
        [color_mask(frames, noun) if noun in COLORS else np.zeros(frames.shape[:3], bool) for noun in nouns], axis=1
    )
    return Detections(np.float32(0.9) * masks.any(axis=(2, 3)), mask_boxes(masks))


def oracle_track(frames: np.ndarray, start: int, boxes: np.ndarray, backward: bool) -> np.ndarray:
    """A tracker that follows the colour in the middle of a box."""
    height, width = frames.shape[1:3]
    masks = []
    for left, top, right, bottom in boxes:
        color = frames[start, int((top + bottom) / 2 * height), int((left + right) / 2 * width)].astype(int)
        masks.append((np.abs(frames.astype(int) - color) < TOLERANCE).all(axis=-1))
        if not backward:
            masks[-1][:start] = False
    return np.stack(masks)
