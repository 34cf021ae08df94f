# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
A detector and a tracker for EventWorld, which find objects by their colours alone; both again with faults; and the
exact truth. For tests, examples, and to measure what the quality of masks does. No weights are needed.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.event_world_scene import COLOURS, World
from ..data.object_world import object_masks
from ..video import Video
from .detect import Detections, Detector
from .masks import mask_boxes
from .stage import ObjectStageConfig, ground_objects
from .track import Tracker

# White has no hue, so it is not found.
HUES = tuple(colour for colour in COLOURS if colour != "white")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Of the colour's own signal, 0 to 255: that of a dimmed object is above 30, that of noise below 15.
MIN_SIGNAL = 20.0
CORE_SHARE = 0.006  # of the picture: less than the smallest object, so that these pixels are all inside of it
# Files hold colours at half the resolution of brightness, so edges are looked for in both, and mostly in the latter.
LUMA_WEIGHT = 3.0
COLOUR_SHARE = 0.15  # of an object's own signal: what has less is not of its colour
EDGE_SHARE = 0.5  # of the way from the background to the object
BATCH_SIZE = 16  # frames that are looked at together


def _directions() -> np.ndarray:
    """Unit vectors `(hues, 3)` from the grey of the same brightness to each colour."""
    colours = np.array([COLOURS[hue] for hue in HUES], dtype=np.float32)
    hues = colours - colours.mean(axis=1, keepdims=True)
    return hues / np.linalg.norm(hues, axis=1, keepdims=True)


def _find(frames: np.ndarray, hue: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask `(T, height, width)` of a colour, and how well what is found has it, `(T,)`: 0 where there is none."""
    parts = [_find_batch(frames[first : first + BATCH_SIZE], hue) for first in range(0, len(frames), BATCH_SIZE)]
    masks, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return masks, scores


def _find_batch(frames: np.ndarray, hue: int) -> tuple[np.ndarray, np.ndarray]:
    num_frames, height, width, _ = frames.shape
    pixels = frames.reshape(num_frames, height * width, 3).astype(np.float32)
    pixels -= np.median(pixels[:, ::5], axis=1, keepdims=True)  # the background
    hues = pixels - pixels.mean(axis=2, keepdims=True)
    signals = hues @ _directions().T
    signal = np.where(signals.argmax(axis=2) == hue, signals[..., hue], 0)

    num_core = max(1, round(CORE_SHARE * height * width))
    core = np.argpartition(-signal, num_core - 1, axis=1)[:, :num_core]
    peak = np.take_along_axis(signal, core, axis=1).mean(axis=1)
    features = np.concatenate([hues, LUMA_WEIGHT * (pixels @ LUMA)[..., None]], axis=2)
    object_feature = np.take_along_axis(features, core[..., None], axis=1).mean(axis=1)
    length = np.square(object_feature).sum(axis=1)
    way = np.einsum("tpc,tc->tp", features, object_feature) / np.maximum(length, 1e-6)[:, None]

    is_seen = peak > MIN_SIGNAL
    masks = (way > EDGE_SHARE) & (signal > COLOUR_SHARE * peak[:, None]) & is_seen[:, None]
    own = object_feature[:, :3]
    cosine = own @ _directions()[hue] / np.maximum(np.linalg.norm(own, axis=1), 1e-6)
    scores = np.where(masks.any(axis=1), np.clip(cosine, 0, 1), 0)
    return masks.reshape(num_frames, height, width), scores.astype(np.float32)


@dataclass(frozen=True)
class ColourDetector:
    """
    Finds the nouns of EventWorld in its frames: a noun is where its colour is. It does not look at shapes, as no two
    objects of a video share a colour.

    Example:
        >>> from trl_temporal.data.object_world import render_video, simulate_object_world
        >>> from trl_temporal.objects.colours import ColourDetector
        >>> world = simulate_object_world(0, 12)
        >>> found = ColourDetector()(render_video(world, num_frames=8).frames, [world.objects[0].name, "kite"])
        >>> found.scores.min(axis=0).round(1).tolist()
        [1.0, 0.0]
    """

    def __call__(self, frames: np.ndarray, nouns: Sequence[str]) -> Detections:
        """
        Looks for nouns in frames.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
                RGB.
            nouns (`Sequence[str]`):
                What to look for. One without a colour of `HUES` is found nowhere.

        Returns:
            [`~trl_temporal.objects.detect.Detections`]: scores are cosines between colours.
        """
        scores = np.zeros((len(frames), len(nouns)), dtype=np.float32)
        boxes = np.zeros((len(frames), len(nouns), 4), dtype=np.float32)
        for index, noun in enumerate(nouns):
            for hue in set(noun.lower().split()) & set(HUES):
                masks, scores[:, index] = _find(frames, HUES.index(hue))
                boxes[:, index] = mask_boxes(masks)
        return Detections(scores, boxes)


@dataclass(frozen=True)
class ColourTracker:
    """
    Follows the colour that there is most of in a box.

    Example:
        >>> from trl_temporal.data.object_world import render_video, simulate_object_world
        >>> from trl_temporal.objects.colours import ColourDetector, ColourTracker
        >>> world = simulate_object_world(0, 12)
        >>> frames = render_video(world, num_frames=8).frames
        >>> boxes = ColourDetector()(frames, [world.objects[0].name]).boxes
        >>> ColourTracker()(frames, 2, boxes[2], backward=True).any(axis=(2, 3)).all()
        np.True_
    """

    def __call__(self, frames: np.ndarray, start: int, boxes: np.ndarray, backward: bool) -> np.ndarray:
        """
        Tracks objects.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
                RGB.
            start (`int`):
                Frame in which the boxes are.
            boxes (`np.ndarray` of shape `(num_objects, 4)`):
                Left, top, right and bottom edge of each object as shares of width and height.
            backward (`bool`):
                Whether to track to the first frame too.

        Returns:
            `np.ndarray` of shape `(num_objects, num_frames, height, width)`, bool: empty where nothing has the colour,
            and before `start` without `backward`.
        """
        height, width = frames.shape[1:3]
        masks = np.zeros((len(boxes), *frames.shape[:3]), dtype=bool)
        in_start = np.stack([_find(frames[start : start + 1], hue)[0][0] for hue in range(len(HUES))])
        for mask, box in zip(masks, boxes, strict=True):
            left, top, right, bottom = np.rint(np.asarray(box) * [width, height, width, height]).astype(int)
            areas = in_start[:, top:bottom, left:right].sum(axis=(1, 2))
            if areas.any():
                mask[:] = _find(frames, int(areas.argmax()))[0]
        if not backward:
            masks[:, :start] = False
        return masks


def _fault_rng(seed: int, frames: np.ndarray) -> np.random.Generator:
    """The same video has the same faults, in any order of videos and in any process."""
    return np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(frames))])


def _is_missed(rng: np.random.Generator, num_frames: int, num_objects: int, miss_rate: float, late_start: float):
    is_missed = rng.random((num_frames, num_objects)) < miss_rate
    is_missed[: round(late_start * num_frames)] = True
    return is_missed


def _check_faults(miss_rate: float, jitter_px: float, late_start: float) -> None:
    if not (0 <= miss_rate <= 1 and 0 <= late_start <= 1 and jitter_px >= 0):
        raise ValueError(
            f"miss_rate is {miss_rate}, jitter_px {jitter_px} and late_start {late_start}; the first and the last are "
            "shares, 0 to 1, and the jitter is 0 or more pixels"
        )


@dataclass(frozen=True)
class NoisyDetector:
    """
    A detector with faults. They depend on the pixels of the video and the seed, and on nothing that happens in it.

    Args:
        detect (`Callable`, *optional*, defaults to [`ColourDetector`]):
            The detector. Its `repr` says what is cached, so one of your own is best a dataclass.
        miss_rate (`float`, *optional*, defaults to `0.1`):
            Share of frames in which a noun is missed.
        jitter_px (`float`, *optional*, defaults to `1.0`):
            Standard deviation in pixels of where a box is.
        late_start (`float`, *optional*, defaults to `0.0`):
            Share of the video, at its beginning, in which nothing is found.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the faults.

    Raises:
        `ValueError`: a number cannot be.

    Example:
        >>> from trl_temporal.data.object_world import render_video, simulate_object_world
        >>> from trl_temporal.objects.colours import NoisyDetector
        >>> world = simulate_object_world(0, 12)
        >>> detect = NoisyDetector(miss_rate=0.25, late_start=0.25)
        >>> found = detect(render_video(world, num_frames=8).frames, [world.objects[0].name])
        >>> (found.scores[:, 0] > 0).tolist()
        [False, False, True, True, True, True, True, False]
    """

    detect: Detector = ColourDetector()
    miss_rate: float = 0.1
    jitter_px: float = 1.0
    late_start: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_faults(self.miss_rate, self.jitter_px, self.late_start)

    def __call__(self, frames: np.ndarray, nouns: Sequence[str]) -> Detections:
        """Looks for nouns in frames, as any detector, see [`ColourDetector`]."""
        scores, boxes = self.detect(frames, nouns)
        rng = _fault_rng(self.seed, frames)
        is_missed = _is_missed(rng, *scores.shape, self.miss_rate, self.late_start)
        height, width = frames.shape[1:3]
        shift = rng.normal(0, self.jitter_px, (*scores.shape, 2)) / [width, height]
        boxes = np.clip(boxes + np.tile(shift, 2), 0, 1)
        return Detections(
            np.where(is_missed, 0, scores).astype(np.float32),
            np.where(is_missed[..., None], 0, boxes).astype(np.float32),
        )


@dataclass(frozen=True)
class NoisyTracker:
    """
    A tracker with faults: masks that are empty or beside the object. They depend on the pixels of the video and the
    seed, and on nothing that happens in it.

    Args:
        track (`Callable`, *optional*, defaults to [`ColourTracker`]):
            The tracker. Its `repr` says what is cached, so one of your own is best a dataclass.
        miss_rate (`float`, *optional*, defaults to `0.1`):
            Share of frames in which an object's mask is empty.
        jitter_px (`float`, *optional*, defaults to `1.0`):
            Standard deviation in pixels of where a mask is, to either side.
        late_start (`float`, *optional*, defaults to `0.0`):
            Share of the video, at its beginning, in which masks are empty.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the faults.

    Raises:
        `ValueError`: a number cannot be.

    Example:
        >>> from trl_temporal.objects.colours import NoisyTracker
        >>> NoisyTracker(late_start=0.5)
        NoisyTracker(track=ColourTracker(), miss_rate=0.1, jitter_px=1.0, late_start=0.5, seed=0)
    """

    track: Tracker = ColourTracker()
    miss_rate: float = 0.1
    jitter_px: float = 1.0
    late_start: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_faults(self.miss_rate, self.jitter_px, self.late_start)

    def __call__(self, frames: np.ndarray, start: int, boxes: np.ndarray, backward: bool) -> np.ndarray:
        """Tracks objects, as any tracker, see [`ColourTracker`]."""
        masks = self.track(frames, start, boxes, backward)
        num_objects, num_frames, height, width = masks.shape
        rng = _fault_rng(self.seed, frames)
        is_missed = _is_missed(rng, num_frames, num_objects, self.miss_rate, self.late_start).T
        shift = np.rint(rng.normal(0, self.jitter_px, (2, num_objects, num_frames, 1))).astype(int)
        rows, columns = np.arange(height) - shift[0], np.arange(width) - shift[1]
        objects, times = np.ogrid[:num_objects, :num_frames]
        place = rows.clip(0, height - 1)[..., None], columns.clip(0, width - 1)[..., None, :]
        moved = masks[objects[..., None, None], times[..., None, None], *place]
        moved &= ((rows >= 0) & (rows < height))[..., None] & ((columns >= 0) & (columns < width))[..., None, :]
        return moved & ~is_missed[..., None, None]


def oracle_objects(
    world: World, video: Video, nouns: Sequence[str], config: ObjectStageConfig | None = None
) -> dict[str, Any]:
    """
    What [`~trl_temporal.objects.stage.ground_objects`] gives with a detector and a tracker that are never wrong.

    Args:
        world (`World`):
            What is in the video.
        video ([`~trl_temporal.video.Video`]):
            Its square frames with their times.
        nouns (`Sequence[str]`):
            Names of objects of the world, each once.
        config ([`~trl_temporal.objects.stage.ObjectStageConfig`], *optional*):
            Settings.

    Returns:
        `dict`: the cells of `OBJECT_FEATURES`.

    Raises:
        `ValueError`: the world has no such object.

    Example:
        >>> from trl_temporal.data.object_world import render_video, simulate_object_world
        >>> from trl_temporal.objects.colours import oracle_objects
        >>> world = simulate_object_world(0, 12)
        >>> cells = oracle_objects(world, render_video(world, num_frames=8), [world.objects[0].name])
        >>> cells["object_nouns"], cells["grounding_status"]
        (['purple cross'], 'ok')
    """
    masks = object_masks(world, nouns, video.timestamps_s, size=video.frames.shape[1])
    scores = masks.any(axis=(2, 3)).T.astype(np.float32)

    def track(frames: np.ndarray, start: int, boxes: np.ndarray, backward: bool) -> np.ndarray:
        is_shown = backward | (np.arange(len(frames)) >= start)
        return masks & is_shown[:, None, None]

    found = Detections(scores, mask_boxes(masks).swapaxes(0, 1))
    return ground_objects(video, nouns, lambda frames, nouns: found, track, config)
