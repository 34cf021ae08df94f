# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Two key frames of a clip: sharp ones near a third and two thirds of it."""

import math

import numpy as np

NUM_KEY_FRAMES = 2


def sharpness(gray: np.ndarray) -> float:
    """
    How sharp a picture is: the mean size of its Laplacian, behind a 3x3 Gaussian blur that takes away noise.

    Equals OpenCV's `GaussianBlur(3, 3)`, `Laplacian(CV_16S, ksize=3)` and `convertScaleAbs`, which ends at 255.

    Args:
        gray (`np.ndarray` of shape `(height, width)`, uint8):
            The picture, two pixels or more wide and high.

    Returns:
        `float`: from 0 (a plain surface) to 255.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.temple_key_frames import sharpness
        >>> edge = np.repeat(np.uint8([[0, 0, 0, 200, 200, 200]]), 6, axis=0)
        >>> slope = np.repeat(np.uint8([[0, 40, 80, 120, 160, 200]]), 6, axis=0)
        >>> sharpness(edge) > sharpness(slope)
        True
    """
    padded = np.pad(gray.astype(np.int16), 1, mode="reflect")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:] + 8) >> 4
    padded = np.pad(blurred, 1, mode="reflect")
    corners = padded[:-2, :-2] + padded[:-2, 2:] + padded[2:, :-2] + padded[2:, 2:]
    laplacian = 2 * corners - 8 * blurred
    return float(np.minimum(np.abs(laplacian), 255).mean())


def key_frames(start_frame: int, sharpness_of: np.ndarray) -> list[int]:
    """
    Choose the key frames of a clip: around a third and two thirds of it, the frame whose sharpness is largest when
    weighted by a cosine that is 1 there and 0 half way to the next.

    Args:
        start_frame (`int`):
            First frame of the clip.
        sharpness_of (`np.ndarray` of shape `(num_frames,)`):
            Sharpness of the frames of the clip.

    Returns:
        `list[int]`: two frame indices, counted as `start_frame` is.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.temple_key_frames import key_frames
        >>> key_frames(100, np.ones(30))
        [110, 120]
    """
    interval = len(sharpness_of) / (NUM_KEY_FRAMES + 1)
    half = math.floor(interval) // 2
    offsets = np.arange(-half, half)
    chosen = []
    for part in range(1, NUM_KEY_FRAMES + 1):
        centre = int(start_frame + part * interval) - start_frame
        best = 0
        if half > 0:  # in a clip of fewer than six frames there is only the centre
            weights = np.cos(np.pi * offsets / (2 * half))
            best = int(offsets[np.argmax(sharpness_of[centre + offsets] * weights)])
        chosen.append(start_frame + centre + best)
    return chosen
