# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Entries of the columns `videos` and `images` of a row, in all forms in which they come."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from PIL import Image

from .errors import ColumnError

SOURCES = ("path", "frames_dir", "frames")  # one of them says where a video is
# What files are, by their names. A GIF may be either.
VIDEO_SUFFIXES = ("3gp", "avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "webm", "wmv")
IMAGE_SUFFIXES = ("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp")


class VideoEntry(TypedDict):
    """One entry of the `videos` column: a file, or frames, whole or cropped. Unused fields are `None` or not there."""

    path: NotRequired[str | None]
    start_s: NotRequired[float | None]
    end_s: NotRequired[float | None]
    frames_dir: NotRequired[str | None]
    frames: NotRequired[list | None]
    fps: NotRequired[float | None]


def without_none(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


def coerce_videos(value: Any) -> list[VideoEntry]:
    """
    Bring the `videos` cell of a row into its one form, a list of entries without unused fields.

    Args:
        value (`str`, `os.PathLike`, `dict`, a list of these, or `None`):
            Cell of the `videos` column. A dictionary is a [`VideoEntry`] or what `datasets.Video(decode=False)`
            returns (`{"path": ..., "bytes": None}`).

    Returns:
        `list[dict]`: one [`VideoEntry`] per video.

    Raises:
        [`RowError`]: an entry names no source or two, has an unknown key, holds encoded bytes or a decoder, is frames
            without their rate, or has a crop or a rate that cannot be.

    Example:

    ```python
    >>> from trl_temporal.data.schema import coerce_videos
    >>> coerce_videos(["a.mp4", {"path": "b.mp4", "start_s": 2.0, "end_s": None}])
    [{'path': 'a.mp4'}, {'path': 'b.mp4', 'start_s': 2.0}]
    ```
    """
    if value is None:
        return []
    return [_coerce_video(entry) for entry in (value if isinstance(value, list) else [value])]


_FRAMES_EXAMPLE = '{"frames": ["1.jpg", "2.jpg"], "fps": 2.0}'
_FRAMES_MEND = f"Write the frames with how many of them make a second: {_FRAMES_EXAMPLE}"


def _coerce_video(entry: Any) -> VideoEntry:
    if isinstance(entry, str | os.PathLike):
        entry = {"path": os.fspath(entry)}
    if isinstance(entry, list | np.ndarray):
        fault = "has an entry that is a list of frames, which says nothing of their times"
        raise ColumnError("videos", fault, _FRAMES_MEND)
    if not isinstance(entry, dict):
        fault = f"has an entry of type {type(entry).__name__}"
        raise ColumnError("videos", fault, "Give the path of the file, or cast to `datasets.Video(decode=False)`")
    entry = without_none(entry)
    if "bytes" in entry:
        raise ColumnError("videos", "holds an encoded video in 'bytes'", "Write it to a file and give its path")
    known = VideoEntry.__annotations__
    for key in entry:
        if key not in known:
            raise ColumnError("videos", f"has the unknown key '{key}'", f"Remove it; the keys are {', '.join(known)}")
    if sum(source in entry for source in SOURCES) != 1:
        mend = "Give it one of 'path', 'frames_dir' and 'frames'"
        raise ColumnError("videos", "has an entry with no source or two", mend)
    if "frames" in entry:
        _check_frames(entry)
    elif ("frames_dir" in entry) != ("fps" in entry):
        raise ColumnError(
            "videos", "has 'frames_dir' or 'fps' alone", "Give a folder of frames, and only it, its 'fps'"
        )
    elif has_suffix(entry.get("path"), IMAGE_SUFFIXES):
        fault = f"names an image, {entry['path']!r:.80}"
        mend = 'Put it into \'images\', with a part {"type": "image"}; frames of a video are one entry '
        raise ColumnError("videos", fault, mend + _FRAMES_EXAMPLE)
    for key in ("start_s", "end_s", "fps"):
        if not isinstance(entry.get(key, 0.0), int | float):
            raise ColumnError("videos", f"has '{key}' {entry[key]!r:.60}", "Give a number")
    if not 0 < entry.get("fps", 1.0) < math.inf:
        raise ColumnError("videos", f"has 'fps' {entry['fps']}", "Give the positive number of frames per second")
    start_s, end_s = entry.get("start_s", 0.0), entry.get("end_s", math.inf)
    if not 0 <= start_s < end_s:
        raise ColumnError("videos", f"has an impossible crop, {start_s} s to {end_s} s", "Use 0 <= start_s < end_s")
    return entry


def _check_frames(entry: VideoEntry) -> None:
    frames = entry["frames"]
    if not isinstance(frames, list | np.ndarray) or len(frames) == 0:
        fault = f"has 'frames' that are {frames!r:.60}"
        raise ColumnError("videos", fault, "Write them as a list of images, with at least one")
    if "fps" not in entry:
        raise ColumnError("videos", "has 'frames' without 'fps', so without times", _FRAMES_MEND)
    for frame in frames:
        _check_image("videos", frame)


def video_key(entry: VideoEntry) -> str:
    """
    What tells an entry of `videos` from others: entries with equal keys show the same.

    Args:
        entry (`dict`):
            As of [`coerce_videos`].

    Returns:
        `str`: the entry as JSON, with images that are held in memory by a hash of their pixels or bytes.

    Example:

    ```python
    >>> from trl_temporal.data.schema import video_key
    >>> video_key({"path": "a.mp4", "end_s": 2.0})
    '{"end_s": 2.0, "path": "a.mp4"}'
    ```
    """
    return json.dumps(entry, sort_keys=True, default=_hash)


def _hash(value: Any) -> str | list:
    """Of what JSON cannot hold: arrays, PIL images, bytes and paths."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    pixels = np.asarray(value.convert("RGB") if isinstance(value, Image.Image) else value)
    return [*pixels.shape, hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()]


def coerce_images(value: Any) -> list[Any]:
    """
    Bring the `images` cell of a row into its one form, a list.

    Args:
        value (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `dict`, a list of these, or `None`):
            Cell of the `images` column. A dictionary is what `datasets.Image(decode=False)` returns (`{"path": ...,
            "bytes": ...}`).

    Returns:
        `list`: the images as they were given; [`~trl_temporal.video.open_image`] reads them.

    Raises:
        [`RowError`]: an entry is a video, or nothing that holds an image.

    Example:

    ```python
    >>> from trl_temporal.data.schema import coerce_images
    >>> coerce_images("a.png")
    ['a.png']
    ```
    """
    if value is None:
        return []
    images = value if isinstance(value, list) else [value]
    for image in images:
        _check_image("images", image)
    return images


def _check_image(column: str, image: Any) -> None:
    """That something can be an image; whether it is one shows when it is read."""
    if isinstance(image, Image.Image | np.ndarray):
        return
    place = '\'videos\', with a part {"type": "video"}'
    fields = image
    if isinstance(image, str | os.PathLike):
        fields = {"path": os.fspath(image)}
    if not isinstance(fields, dict):
        mend = f"Give a path, a PIL image, an array, or a 'path' or 'bytes'; a video belongs into {place}"
        raise ColumnError(column, f"has an image of type {type(image).__name__}", mend)
    fields = without_none(fields)
    of_video = fields.keys() & (VideoEntry.__annotations__.keys() - {"path"})
    if of_video or has_suffix(fields.get("path"), VIDEO_SUFFIXES):
        mend = f"Put it into {place}" if column == "images" else "Name the images that are its frames, or its 'path'"
        raise ColumnError(column, f"has a video among its images, {fields.get('path', fields)!r:.80}", mend)
    if not fields or fields.keys() - {"path", "bytes"}:
        raise ColumnError(column, f"has the image {fields!r:.80}", "Give it a 'path' or 'bytes', and nothing else")


def has_suffix(path: str | None, suffixes: Sequence[str]) -> bool:
    """Whether a path ends in one of the suffixes, in letters of any size."""
    return path is not None and path.lower().endswith(tuple(f".{suffix}" for suffix in suffixes))
