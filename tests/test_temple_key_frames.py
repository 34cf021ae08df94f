# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Sharpness and the key frames of a clip."""

import math

import numpy as np
import pytest

from trl_temporal.synthesis.temple_key_frames import key_frames, sharpness


def smoothed(picture, times):
    """The picture, blurred again and again."""
    picture = picture.astype(np.float64)
    for _ in range(times):
        for axis in (0, 1):
            picture = (np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) / 4
    return picture.round().astype(np.uint8)


@pytest.mark.parametrize("shape", [(2, 2), (2, 9), (7, 5), (48, 64)])
def test_sharpness_is_that_of_opencv(shape):
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    for gray in (noise, smoothed(noise, 2), np.where(noise > 127, np.uint8(255), np.uint8(0))):
        laplacian = cv2.Laplacian(cv2.GaussianBlur(gray, (3, 3), 0), cv2.CV_16S, ksize=3)
        assert sharpness(gray) == cv2.convertScaleAbs(laplacian).mean()


def test_blur_is_less_sharp():
    noise = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    found = [sharpness(smoothed(noise, times)) for times in range(6)]
    assert found == sorted(found, reverse=True) and len(set(found)) == 6
    assert sharpness(np.full((4, 4), 7, dtype=np.uint8)) == 0


def test_the_sharp_frame_is_chosen():
    noise = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
    blurred, sharp = sharpness(smoothed(noise, 8)), sharpness(noise)
    sharpness_of = np.full(60, blurred)
    sharpness_of[[17, 43]] = sharp  # near the centres 20 and 40
    assert key_frames(1000, sharpness_of) == [1017, 1043]
    sharpness_of[[17, 43]] = blurred
    sharpness_of[[10, 30, 50]] = sharp  # at the edges of the windows, where nothing counts
    assert key_frames(1000, sharpness_of) == [1020, 1040]


@pytest.mark.parametrize("num_frames", range(1, 120))
def test_the_formula_written_the_slow_way(num_frames):
    rng = np.random.default_rng(num_frames)
    start, sharpness_of = int(rng.integers(0, 1000)), rng.random(num_frames)
    interval = num_frames / 3
    half = math.floor(interval) // 2
    expected = []
    for part in (1, 2):
        centre = int(start + part * interval)
        scores = {
            centre + d: sharpness_of[centre + d - start] * math.cos(math.pi * d / (2 * half))
            for d in range(-half, half)
        }
        expected.append(max(scores, key=scores.get) if scores else centre)
    found = key_frames(start, sharpness_of)
    assert found == expected
    assert all(type(frame) is int and start <= frame < start + num_frames for frame in found)
