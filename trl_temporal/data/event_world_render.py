# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""EventWorld's pixels, at any time and size."""

import math
from functools import cache

import numpy as np

from .event_world_scene import COLOURS, SIDE, World, cycle, object_motion

BACKGROUND = 30.0
WALKER_GREY, WALKER_HALF = 120.0, 5.0
PATCH_GREY, PATCH_CONTRAST, PATCH_HALF = 75.0, 35.0, 6.0
NOISE_SIGMA = 5.0
CROSS_ARM = 5 / 16


def _covered(pixels: np.ndarray, center: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Share of each unit pixel (given by its left edge) that the interval `center +- half` covers."""
    return np.clip(np.minimum(pixels + 1, center + half) - np.maximum(pixels, center - half), 0, 1)


def coverage(shape: str, columns: np.ndarray, rows: np.ndarray, x, y, radius) -> np.ndarray:
    """Share of each pixel inside the shape, `(N, P, P)`, from columns and rows `(N, P)` and x, y, radius `(N, 1)`."""
    if shape == "disc":
        distance = np.sqrt((columns + 0.5 - x)[:, None, :] ** 2 + (rows + 0.5 - y)[:, :, None] ** 2)
        return np.clip(radius[:, :, None] - distance + 0.5, 0, 1)
    wide = _covered(columns, x, radius)[:, None, :], _covered(rows, y, radius)[:, :, None]
    if shape == "square":
        return wide[0] * wide[1]
    arm = radius * CROSS_ARM
    thin = _covered(columns, x, arm)[:, None, :], _covered(rows, y, arm)[:, :, None]
    return wide[0] * thin[1] + thin[0] * wide[1] - thin[0] * thin[1]


def _paint(frames: np.ndarray, frame_ids: np.ndarray, shape: str, x, y, radius, colour: np.ndarray) -> None:
    """Blend one shape into `frames[frame_ids]` in place; only a patch around it is touched. Lengths in 1/128."""
    size = frames.shape[1]
    x, y, radius = (np.asarray(value, dtype=np.float32)[:, None] * (size / SIDE) for value in (x, y, radius))
    patch = min(size, math.ceil(2 * radius.max()) + 3)
    first_column = np.clip(np.floor(x - patch / 2), 0, size - patch).astype(np.int64)
    first_row = np.clip(np.floor(y - patch / 2), 0, size - patch).astype(np.int64)
    columns, rows = first_column + np.arange(patch), first_row + np.arange(patch)
    share = coverage(shape, columns.astype(np.float32), rows.astype(np.float32), x, y, radius)[..., None]
    place = frame_ids[:, None, None], rows[:, :, None], columns[:, None, :]
    below = frames[place]
    frames[place] = below + share * (colour[:, None, None, :].astype(np.float32) - below)


@cache
def _noise_bank() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)


def _noise(seed: int, index: int, times_s: np.ndarray, size: int) -> np.ndarray:
    """Gaussian noise `(T, size, size, 3)`: a frame reads the bank from a place hashed from the world and its time."""
    key = np.rint(times_s * 1e6).astype(np.uint64)
    for value in (seed, index):
        key = (key ^ np.uint64(value)) * np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        key ^= key >> np.uint64(32)
    length = size * size * 3
    windows = np.lib.stride_tricks.sliding_window_view(_noise_bank(), length)
    return windows[key % np.uint64(len(windows))].reshape(len(times_s), size, size, 3)


def render(world: World, times_s: np.ndarray, size: int = 128) -> np.ndarray:
    """
    Pixels of a world at the given times, without a video file.

    Args:
        world (`World`):
            The world.
        times_s (`np.ndarray` of shape `(T,)`):
            Times in seconds.
        size (`int`, *optional*, defaults to `128`):
            Side of the square frames in pixels, at most 512. A smaller size looks like the area average of a larger.

    Returns:
        `np.ndarray` of shape `(T, size, size, 3)`, uint8: RGB frames.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.data.event_world import render, simulate
        >>> render(simulate(0, 7), np.arange(0, 4, 0.5), size=64).shape
        (8, 64, 64, 3)
    """
    times_s = np.asarray(times_s, dtype=np.float64)
    num_frames = len(times_s)
    everywhere = np.arange(num_frames)
    distractors = world.distractors
    frames = np.full((num_frames, size, size, 3), BACKGROUND, dtype=np.float32)
    if num_frames == 0:
        return frames.astype(np.uint8)

    # Distractors first: they never hide an object.
    bright = np.sign(cycle(times_s, distractors.patch_rate, distractors.patch_phase))
    grey = np.repeat(PATCH_GREY + PATCH_CONTRAST * bright[:, None], 3, axis=1)
    patch = [np.full(num_frames, value) for value in (*distractors.patch_xy, PATCH_HALF)]
    _paint(frames, everywhere, "square", *patch, grey)
    for walk in distractors.walks:
        (shown,) = np.nonzero((times_s >= walk.start_s) & (times_s < walk.end_s))
        if len(shown) == 0:
            continue
        progress = (times_s[shown] - walk.start_s) / (walk.end_s - walk.start_s)
        x = walk.start_xy[0] + progress * (walk.end_xy[0] - walk.start_xy[0])
        y = walk.start_xy[1] + progress * (walk.end_xy[1] - walk.start_xy[1]) + 6 * np.sin(4 * np.pi * progress)
        grey = np.full((len(shown), 3), WALKER_GREY)
        _paint(frames, shown, "square", x, y, np.full(len(shown), WALKER_HALF), grey)

    for object_index, world_object in enumerate(world.objects):
        events = [event for event in world.events if event.object_index == object_index]
        x, y, radius, brightness = object_motion(world_object, events, times_s)
        colour = brightness[:, None] * np.array(COLOURS[world_object.colour])
        _paint(frames, everywhere, world_object.shape, x, y, radius, colour)

    flicker = 1 + distractors.flicker * cycle(times_s, distractors.flicker_rate, distractors.flicker_phase)
    frames *= flicker.astype(np.float32)[:, None, None, None]
    # The average of n x n noisy pixels has 1/n of their noise.
    frames += np.float32(NOISE_SIGMA * min(1, size / SIDE)) * _noise(world.seed, world.index, times_s, size)
    frames += 0.5
    return np.clip(frames, 0, 255, out=frames).astype(np.uint8)
