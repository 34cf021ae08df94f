# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The object stage on one video, Sec. III-A of Grounded-VideoDiT: detect, gate, track, and what is stored of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ..video import Video, VideoError
from .detect import Detections, Detector
from .gate import DETECTION_THRESHOLD, FLOOR, PERSISTENCE, find_start, gate_span, order_objects, thresholds_of
from .masks import pack_masks, union_mask
from .track import Tracker

FULL_SHARE = 0.95  # of the picture: a mask that leaves nothing out

_INT, _FLOAT, _SECONDS, _TEXT = (datasets.Value(name) for name in ("int32", "float32", "float64", "string"))
_RUNS = datasets.List(datasets.List(_INT))
# The columns that the stage adds to a data set.
OBJECT_FEATURES = datasets.Features(
    {
        "object_nouns": datasets.List(_TEXT),
        "object_masks": {"height": _INT, "width": _INT, "union": _RUNS, "tracks": datasets.List(_RUNS)},
        "object_boxes": datasets.List(datasets.List(datasets.List(_FLOAT))),
        "object_scores": datasets.List(datasets.List(_FLOAT)),
        "object_order": datasets.List(_INT),
        "object_times_s": datasets.List(_SECONDS),
        "object_start_s": _SECONDS,
        "object_span": datasets.List(_SECONDS),
        "grounding_status": _TEXT,
    }
)


@dataclass(frozen=True)
class ObjectStageConfig:
    """
    Settings of the object stage.

    Args:
        num_frames (`int`, *optional*, defaults to `96`):
            Frames of each video, at the midpoints of equal parts. Fewer where the video has fewer.
        max_side (`int`, *optional*, defaults to `640`):
            Pixels of the longer side of the frames that the detector and the tracker see; smaller ones stay.
        mask_side (`int`, *optional*, defaults to `224`):
            Pixels of the longer side of the masks that are stored.
        detection_threshold (`float` or `Mapping[str, float]`, *optional*, defaults to `0.25`):
            Score from which a noun counts as seen, `tau_i` of Eq. 3; a mapping gives nouns their own.
        and_gate_persistence (`int`, *optional*, defaults to `3`):
            Frames in a row that have to show all nouns, `K` of Eq. 4.
        fallback_floor (`float`, *optional*, defaults to `0.1`):
            Score that the least certain noun needs in the frame that tracking starts in where none passes Eq. 3.
        strict_gate (`bool`, *optional*, defaults to `False`):
            As in the paper: nothing is tracked where the gate never opens.
        track_backward (`bool`, *optional*, defaults to `True`):
            Track to the first frame too. The paper does not (Eq. 5).
        gate_min_span (`int`, *optional*, defaults to `1`):
            Frames of the shortest span of Step 5, `L`.

    Raises:
        `ValueError`: a number cannot be.

    Example:
        >>> from trl_temporal.objects.stage import ObjectStageConfig
        >>> ObjectStageConfig(num_frames=16).and_gate_persistence
        3
    """

    num_frames: int = 96
    max_side: int = 640
    mask_side: int = 224
    detection_threshold: float | Mapping[str, float] = DETECTION_THRESHOLD
    and_gate_persistence: int = PERSISTENCE
    fallback_floor: float = FLOOR
    strict_gate: bool = False
    track_backward: bool = True
    gate_min_span: int = 1

    def __post_init__(self) -> None:
        for name in ("num_frames", "max_side", "mask_side", "and_gate_persistence", "gate_min_span"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be 1 or more")
        if not 0 <= self.fallback_floor <= 1:
            raise ValueError(f"fallback_floor is {self.fallback_floor}; scores lie in 0 to 1")
        thresholds_of(["a noun"], self.detection_threshold)


def ground_objects(
    video: Video, nouns: Sequence[str], detect: Detector, track: Tracker, config: ObjectStageConfig | None = None
) -> dict[str, Any]:
    """
    Find the objects of a question in its video.

    Args:
        video ([`~trl_temporal.video.Video`]):
            The frames with their times.
        nouns (`Sequence[str]`):
            What to look for, each once.
        detect (`Callable`):
            Detector, see [`trl_temporal.objects.detect`].
        track (`Callable`):
            Tracker, see [`trl_temporal.objects.track`].
        config ([`ObjectStageConfig`], *optional*):
            Settings.

    Returns:
        `dict`: the cells of `OBJECT_FEATURES` for T frames and M nouns:

        - `object_nouns` (`list[str]`): the nouns;
        - `object_masks` (`dict`): see [`~trl_temporal.objects.masks.pack_masks`]. Nouns that are not tracked have
          empty masks, and the union is all ones if none is;
        - `object_boxes` (`(T, M, 4)`), `object_scores` (`(T, M)`): the detector's best region of each noun, Eq. 2;
        - `object_order` (`list[int]`): tracked nouns, the best first, without a second one for the same thing;
        - `object_times_s` (`list[float]`): when each frame comes on screen, in seconds;
        - `object_start_s` (`float` or `None`): where tracking starts;
        - `object_span` (`[start_s, end_s]` or `None`): the span baseline of Step 5;
        - `grounding_status` (`str`): as of [`~trl_temporal.objects.gate.find_start`], with `track_lost:<noun>` (its
          mask is empty where it starts or at the end) and `mask_full` (nothing but objects).

    Raises:
        VideoError: the video has no frames, or times that do not increase or are after its end.
        [`~trl_temporal.objects.nouns.NounError`]: the detector cannot look for a noun.
        `ValueError`: a detector or tracker gives arrays of another shape, or what is no score or no box.

    Example:

    ```python
    >>> from trl_temporal.objects.detect import ModelDetector
    >>> from trl_temporal.objects.stage import ground_objects
    >>> from trl_temporal.objects.track import Sam2Tracker
    >>> from trl_temporal.video import load_video
    >>> video = load_video("clip.mp4", num_frames=96)  # doctest: +SKIP
    >>> ground_objects(video, ["dog"], ModelDetector(), Sam2Tracker())["grounding_status"]  # doctest: +SKIP
    'ok'
    ```
    """
    config = config or ObjectStageConfig()
    _check_video(video)
    num_frames, height, width = video.frames.shape[:3]
    found = _detect(video, nouns, detect)
    decision = find_start(
        found.scores,
        nouns,
        config.detection_threshold,
        config.and_gate_persistence,
        config.fallback_floor,
        config.strict_gate,
    )
    used, notes = list(decision.used), [] if decision.status == "ok" else [decision.status]

    small = tuple(max(1, round(side * min(1.0, config.mask_side / max(height, width)))) for side in (height, width))
    tracks = np.zeros((len(nouns), num_frames, *small), dtype=bool)
    order = []
    if decision.start is None:
        union = np.ones((num_frames, *small), dtype=bool)
    else:
        boxes = found.boxes[decision.start, used]
        masks = np.asarray(track(video.frames, decision.start, boxes, config.track_backward))
        expected = (len(used), num_frames, height, width)
        if masks.shape != expected or masks.dtype != bool:
            raise ValueError(
                f"{video.path}: the tracker gave masks of shape {masks.shape} and type {masks.dtype}; they have to be "
                f"bool of shape {expected}: (objects, frames, height, width)"
            )
        lost = ~masks[:, [decision.start, -1]].any(axis=(2, 3)).all(axis=1)
        notes += [f"track_lost:{nouns[index]}" for index, is_lost in zip(used, lost, strict=True) if is_lost]
        rows, columns = (_nearest(old, new) for old, new in zip((height, width), small, strict=True))
        tracks[used] = masks[:, :, rows[:, None], columns]
        union = union_mask(tracks)
        if union.mean() > FULL_SHARE:
            notes.append("mask_full")
        order = [used[index] for index in order_objects(found.scores[:, used], boxes)]

    span = gate_span(decision.gate, video.timestamps_s, video.duration_s, config.gate_min_span)
    return {
        "object_nouns": list(nouns),
        "object_masks": pack_masks(tracks, union),
        "object_boxes": np.round(found.boxes, 5).tolist(),
        "object_scores": np.round(found.scores, 5).tolist(),
        "object_order": order,
        "object_times_s": video.timestamps_s.tolist(),
        "object_start_s": None if decision.start is None else float(video.timestamps_s[decision.start]),
        "object_span": None if span is None else list(span),
        "grounding_status": ";".join(notes) or "ok",
    }


def _check_video(video: Video) -> None:
    times_s = np.asarray(video.timestamps_s)
    if len(video.frames) == 0 or len(times_s) != len(video.frames):
        raise VideoError(f"{video.path}: has {len(video.frames)} frames and {len(times_s)} times; it needs one each.")
    if not (np.isfinite(times_s).all() and (np.diff(times_s) > 0).all() and times_s[-1] < video.duration_s):
        raise VideoError(
            f"{video.path}: the times of its frames have to increase and end before its duration, "
            f"{video.duration_s} s; read it with load_video, or write it again with ffmpeg."
        )


def _detect(video: Video, nouns: Sequence[str], detect: Detector) -> Detections:
    num_frames = len(video.frames)
    if len(nouns) == 0:
        return Detections(np.zeros((num_frames, 0), np.float32), np.zeros((num_frames, 0, 4), np.float32))
    scores, boxes = (np.asarray(array, dtype=np.float32) for array in detect(video.frames, nouns))
    if scores.shape != (num_frames, len(nouns)) or boxes.shape != (num_frames, len(nouns), 4):
        raise ValueError(
            f"{video.path}: the detector gave scores of shape {scores.shape} and boxes of shape {boxes.shape} for "
            f"{num_frames} frames and {len(nouns)} nouns; it needs {(num_frames, len(nouns))} and "
            f"{(num_frames, len(nouns), 4)}"
        )
    if not ((scores >= 0) & (scores <= 1)).all():  # a NaN is neither
        raise ValueError(f"{video.path}: the detector gave scores that are not 0 to 1; it has to give no logits")
    if not ((boxes >= 0) & (boxes <= 1)).all() or (boxes[..., :2] > boxes[..., 2:]).any():
        raise ValueError(
            f"{video.path}: the detector gave boxes that are none; they have to be left, top, right and bottom edge "
            "as shares of width and height, 0 to 1"
        )
    return Detections(scores, boxes)


def _nearest(old: int, new: int) -> np.ndarray:
    """Pixels that stay when a side shrinks. Masks stay binary, as Eq. 6 wants them."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)
