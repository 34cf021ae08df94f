# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Sampled video frames with the decoder's own timestamps.

Every backend follows one rule: a frame is on screen from its pts until the next frame's, so the frame sampled for a
target time is the last one whose pts is not after it. Frame indices divided by an average frame rate are never used:
on videos with a variable frame rate they are off by seconds.
"""

import io
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .video_backends import (
    FrameBuffer,
    Sampling,
    VideoError,
    choose_frames,
    decode,
    header_duration_s,
    load_decord,
    load_pyav,
    load_torchcodec,
    nothing_decodable,
    open_video,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Video",
    "VideoError",
    "VideoInfo",
    "load_frames",
    "load_frames_dir",
    "load_row_video",
    "load_video",
    "open_image",
    "probe_video",
]

ANIMATIONS = ("GIF", "PNG", "WEBP")  # formats of images that may hold a film; in others more images are not times


@dataclass
class VideoInfo:
    """What the header of a video says (nothing but the first frame is decoded)."""

    path: str
    duration_s: float | None
    num_frames: int | None
    average_fps: float | None
    width: int
    height: int
    codec: str


@dataclass
class Video:
    """
    Sampled frames of a video, or of a crop of it.

    Attributes:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
            The frames in RGB.
        timestamps_s (`np.ndarray` of shape `(num_frames,)`, float64):
            When each frame comes on screen, strictly increasing, in seconds from the first frame of the video or from
            the start of the crop. A frame that is already on screen when the crop starts has timestamp 0.
        duration_s (`float`):
            Length of the video or crop, as decoded.
        path (`str`):
            The file (or folder of frames) that was read.
        warnings (`list[str]`):
            What was wrong with the file without being fatal. Each was also issued through `warnings.warn`.
    """

    frames: np.ndarray
    timestamps_s: np.ndarray
    duration_s: float
    path: str
    warnings: list[str] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        return len(self.frames)


def load_video(
    path: str | os.PathLike,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    size: int | tuple[int, int] | None = None,
    center_crop: bool = False,
    backend: Literal["pyav", "torchcodec", "decord"] = "pyav",
) -> Video:
    """
    Decode sampled frames of a video file, with their real timestamps.

    Exactly one of `fps` and `num_frames` is given. Where several targets fall on one decoded frame it is returned
    once, so a short or slow video may give fewer frames than asked for.

    Args:
        path (`str` or `os.PathLike`):
            A local video file.
        fps (`float`, *optional*):
            Sample the frames on screen at 0, 1 / `fps`, 2 / `fps`, ... seconds.
        num_frames (`int`, *optional*):
            Sample the frames on screen at the midpoints of this many equal parts.
        max_frames (`int`, *optional*):
            If `fps` asks for more frames than this, sample `max_frames` equal parts instead.
        start_s (`float`, *optional*):
            Start of a crop in seconds. Decoding starts at the key frame before it.
        end_s (`float`, *optional*):
            End of a crop in seconds. Decoding stops there.
        size (`int` or `tuple[int, int]`, *optional*):
            Resize to `(height, width)`, or to a square of this side. Done frame by frame while decoding.
        center_crop (`bool`, *optional*, defaults to `False`):
            Keep the proportions and cut `size` out of the middle, where resizing alone would distort the picture.
        backend (`str`, *optional*, defaults to `"pyav"`):
            `"pyav"` decodes in sequence and holds only the sampled frames. `"torchcodec"` (exact seek mode) and
            `"decord"` need the extra of that name. All three choose the same frames.

    Returns:
        [`Video`]: the frames, their timestamps, the decoded duration, and what was wrong with the file.

    Raises:
        VideoError: If the file is missing, empty, not a video, without a decodable frame, or the crop lies outside it.
        ImportError: If the backend is not installed.

    Example:
        >>> video = load_video("clip.mp4", fps=1, size=224)  # doctest: +SKIP
        >>> video.frames.shape, video.timestamps_s[:3]  # doctest: +SKIP
        ((10, 224, 224, 3), array([0., 1., 2.]))
    """
    loaders = {"pyav": load_pyav, "torchcodec": load_torchcodec, "decord": load_decord}
    if backend not in loaders:
        raise ValueError(f"backend must be one of {', '.join(loaders)}, but is {backend!r}.")
    path = os.fspath(path)
    sampling = Sampling(path, fps, num_frames, max_frames, start_s, end_s, size, center_crop)
    with open_video(path) as (container, stream):  # the other backends' words for a bad file are no clearer
        header_s = header_duration_s(container, stream)
    buffer = FrameBuffer(sampling.size, sampling.center_crop)
    total_s, notes = loaders[backend](sampling, buffer, header_s)
    return _finish(sampling, buffer, total_s, header_s, notes)


def load_frames_dir(
    frames_dir: str | os.PathLike,
    declared_fps: float,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    size: int | tuple[int, int] | None = None,
    center_crop: bool = False,
) -> Video:
    """
    Sample frames from a folder of `.jpg`, `.jpeg` or `.png` files, sorted by name (`9.jpg` before `10.jpg`).

    Args:
        frames_dir (`str` or `os.PathLike`):
            The folder.
        declared_fps (`float`):
            How many of the files make a second: file `i` is on screen from `i / declared_fps` seconds.
        fps, num_frames, max_frames, start_s, end_s, size, center_crop:
            As in [`load_video`].

    Returns:
        [`Video`]

    Raises:
        VideoError: If the folder is missing or has no frames, the rate is missing, or a file is not an image.
    """
    frames_dir = os.fspath(frames_dir)
    sampling = Sampling(frames_dir, fps, num_frames, max_frames, start_s, end_s, size, center_crop)
    _check_declared_fps(frames_dir, declared_fps)
    if not os.path.isdir(frames_dir):
        raise VideoError(f"{frames_dir}: no such folder of frames; check the path (relative to {os.getcwd()}).")
    names = [name for name in os.listdir(frames_dir) if name.lower().endswith((".jpg", ".jpeg", ".png"))]
    if not names:
        raise VideoError(f"{frames_dir}: no .jpg or .png files in this folder; extract the frames into it first.")
    # Numbers compare as numbers, so that frames named without leading zeros keep their order.
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    return _sample_images([os.path.join(frames_dir, name) for name in names], declared_fps, sampling)


def load_frames(
    frames: Sequence[Any],
    declared_fps: float,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    size: int | tuple[int, int] | None = None,
    center_crop: bool = False,
) -> Video:
    """
    Sample frames from a list of images.

    Args:
        frames (`Sequence`, or `np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
            The frames in order, each anything that [`open_image`] takes.
        declared_fps (`float`):
            How many of them make a second: frame `i` is on screen from `i / declared_fps` seconds.
        fps, num_frames, max_frames, start_s, end_s, size, center_crop:
            As in [`load_video`].

    Returns:
        [`Video`]

    Raises:
        VideoError: If there are no frames, the rate is missing, or one of them is not an image.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.video import load_frames
        >>> load_frames(np.zeros((8, 16, 16, 3), dtype=np.uint8), 4.0, fps=1).timestamps_s
        array([0., 1.])
    """
    name = f"list of {len(frames)} frames"
    sampling = Sampling(name, fps, num_frames, max_frames, start_s, end_s, size, center_crop)
    _check_declared_fps(name, declared_fps)
    if len(frames) == 0:
        raise VideoError(f"{name}: there is nothing to see in it; give it frames, or leave the row out.")
    return _sample_images(frames, declared_fps, sampling)


def _check_declared_fps(name: str, declared_fps: float | None) -> None:
    if declared_fps is None or not (math.isfinite(declared_fps) and declared_fps > 0):
        raise VideoError(
            f"{name}: a list or folder of frames needs the fps they were taken at, but got {declared_fps}."
        )


def _sample_images(images: Sequence[Any], declared_fps: float, sampling: Sampling) -> Video:
    times_s = np.arange(len(images)) / declared_fps
    total_s = len(images) / declared_fps
    buffer = FrameBuffer(sampling.size, sampling.center_crop)
    for index in choose_frames(times_s, sampling.targets_s(total_s)):
        try:
            pixels = np.asarray(open_image(images[index]))
        except VideoError as error:
            if isinstance(images[index], str | os.PathLike):
                raise  # it names the file
            raise VideoError(f"{sampling.path}, frame {index}: {error}") from None
        buffer.add_pixels(times_s[index], pixels)
    return _finish(sampling, buffer, total_s, None, [])


def open_image(image: Any) -> "Image":
    """
    Open an image in any form in which a row may hold one.

    Args:
        image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `dict`):
            A path, an image, an array of shape `(height, width, 3)` of uint8, or the `{"path", "bytes"}` that
            `datasets.Image(decode=False)` gives.

    Returns:
        `PIL.Image.Image`: in RGB, and upright where a camera noted how it was held.

    Raises:
        VideoError: If it is not a readable image, or a film in an image's format.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.video import open_image
        >>> open_image(np.zeros((2, 3, 3), dtype=np.uint8)).size
        (3, 2)
    """
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise VideoError(
                f"an array of {image.dtype} of shape {image.shape} is no image; give uint8 of (height, width, 3)."
            )
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    name, source = image, image
    if isinstance(image, dict):
        data = image.get("bytes")
        name = image.get("path") or "an encoded image"
        source = image.get("path") if data is None else io.BytesIO(data)
    if not isinstance(source, str | os.PathLike | io.BytesIO):
        raise VideoError(
            f"{image!r:.80} is no image; give a path, a PIL image, an array, or 'path' or 'bytes' of one."
        )
    try:
        with Image.open(source) as opened:
            if opened.format in ANIMATIONS and opened.is_animated:
                raise VideoError(
                    f"{name}: is a film of {opened.n_frames} pictures, not an image; put it into 'videos', or save "
                    "the picture that is meant."
                )
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL calls a damaged PNG a syntax error
        mend = "check the path, or write the image again; a video goes into 'videos'"
        raise VideoError(f"{name}: not a readable image ({error}); {mend}.") from error


def load_row_video(entry: str | dict[str, Any], **sampling) -> Video:
    """
    Load an entry of a row's `videos` column.

    Args:
        entry (`str` or `dict`):
            A path, or a struct with `path` (a file), or with `frames_dir` (a folder) or `frames` (a list of images)
            and the `fps` they were taken at; each with an optional crop `start_s`, `end_s`. Null fields count as
            absent.
        sampling:
            Keyword arguments of [`load_video`] (for frames, those of [`load_frames_dir`]).

    Returns:
        [`Video`]

    Raises:
        VideoError: If the entry names no video or two, has an unknown field, or the video cannot be read.
    """
    if isinstance(entry, str | os.PathLike):
        return load_video(entry, **sampling)
    given = {name: value for name, value in entry.items() if value is not None}
    shown = f"{entry!r:.200}"  # frames in memory would fill pages
    unknown = sorted(given.keys() - {"path", "start_s", "end_s", "frames_dir", "frames", "fps"})
    if unknown:
        raise VideoError(
            f"{shown}: unknown fields {unknown}; a video has path, start_s, end_s, frames_dir, frames, fps."
        )
    if len(given.keys() & {"path", "frames_dir", "frames"}) != 1:
        raise VideoError(f"{shown}: a video entry needs either a path or a frames_dir or frames (with their fps).")
    crop = {name: given[name] for name in ("start_s", "end_s") if name in given}
    if "path" not in given:
        sampling.pop("backend", None)  # images have no decoder to choose
        if "frames" in given:
            return load_frames(given["frames"], given.get("fps"), **crop, **sampling)
        return load_frames_dir(given["frames_dir"], given.get("fps"), **crop, **sampling)
    if "fps" in given:
        raise VideoError(
            f"{shown}: fps declares the rate of a frames_dir or of frames; a video file brings its own timestamps."
        )
    return load_video(given["path"], **crop, **sampling)


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """
    Read the header of a video file and decode its first frame, to see that it can be read.

    Args:
        path (`str` or `os.PathLike`):
            A local video file.

    Returns:
        [`VideoInfo`]: duration, number of frames and frame rate as the header has them (`None` where it has not; in a
        truncated file they are too large), and the picture's size as shown, that is after rotation.

    Raises:
        VideoError: If the file is missing, empty, not a video, or without a decodable frame.
    """
    path = os.fspath(path)
    with open_video(path) as (container, stream):
        frame = next(decode(container, stream, []), None)
        if frame is None:
            raise nothing_decodable(path)
        sideways = frame.rotation % 180 != 0
        return VideoInfo(
            path=path,
            duration_s=header_duration_s(container, stream),
            num_frames=stream.frames or None,
            average_fps=float(stream.average_rate) if stream.average_rate else None,
            width=frame.height if sideways else frame.width,
            height=frame.width if sideways else frame.height,
            codec=stream.codec_context.name,
        )


def _finish(
    sampling: Sampling, buffer: FrameBuffer, total_s: float | None, header_s: float | None, notes: list[str]
) -> Video:
    """Check what was decoded against what was asked. `total_s` is `None` if decoding stopped before the end."""
    path = sampling.path
    if total_s is not None and header_s is not None and header_s - total_s > max(0.5, 0.02 * header_s):
        notes.append(
            f"truncated or damaged: the header says {header_s:.2f} s, but only {total_s:.2f} s of video decode; "
            "spans after that have no frames"
        )
    if total_s is not None and 0 < total_s <= sampling.start_s:
        raise VideoError(
            f"{path}: the crop starts at {sampling.start_s} s, but the video ends at {total_s:.3f} s; "
            "correct start_s, or leave the row out." + "".join(f" ({note})" for note in notes)
        )
    if not buffer.times_s:
        raise nothing_decodable(path)
    if total_s is not None and math.isfinite(sampling.end_s) and sampling.end_s - total_s > 0.1:
        notes.append(f"the crop is asked to end at {sampling.end_s} s, but the video ends at {total_s:.3f} s")
    if buffer.size_changed:
        notes.append(f"the picture size changes on the way; all frames are resized to {buffer.size}")
    for note in notes:
        warnings.warn(f"{path}: {note}.", stacklevel=3)
    end_s = sampling.end_s if total_s is None else min(sampling.end_s, total_s)
    timestamps_s = np.maximum(np.array(buffer.times_s) - sampling.start_s, 0.0)
    return Video(buffer.frames(), timestamps_s, end_s - sampling.start_s, path, notes)
