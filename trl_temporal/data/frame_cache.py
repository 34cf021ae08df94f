# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Decoded frames on disk, so that training does not decode the same video at every step."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np

from ..models.d2vlm.processing_d2vlm import D2VLMProcessor
from ..video import Video, VideoError, load_row_video


class FrameCache:
    """
    Reads the sampled frames of a row's video, from disk where they were decoded before.

    An entry is keyed by the video (path, size and modification time of the file or of every frame of the folder, crop)
    and by how it is sampled, so that a changed file or setting is decoded anew. Frames come back memory-mapped.

    Args:
        root (`str` or `None`):
            Folder of the cache; `None` decodes every time.
        fps (`float`, *optional*):
            Frames per second of video. Exactly one of `fps` and `num_frames` is given.
        num_frames (`int`, *optional*):
            Exactly this many frames of every video, at the midpoints of equal parts, for processors that stack the
            videos of a batch. A video with fewer is an error: a frame is never shown twice.
        size (`int` or `None`):
            Height and width of the frames in pixels; `None` for that of the video.
        max_frames (`int`, *optional*):
            Longer videos are sampled more thinly. Not with `num_frames`.
        center_crop (`bool`, *optional*, defaults to `False`):
            Cut the middle square out of frames, instead of resizing whole frames to a square.
        backend (`str`, *optional*, defaults to `"pyav"`):
            Decoder, see [`~trl_temporal.video.load_video`].

    Example:

    ```python
    >>> read_video = FrameCache("frames", fps=2.0, size=64)
    >>> video = read_video({"path": "clip.mp4"})  # doctest: +SKIP
    >>> video.frames.shape, video.timestamps_s  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        root: str | os.PathLike | None,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        size: int | None,
        max_frames: int | None = None,
        center_crop: bool = False,
        backend: str = "pyav",
    ):
        if (fps is None) == (num_frames is None) or (num_frames is not None and max_frames is not None):
            raise ValueError(
                "Give either fps, with max_frames if there is a limit, or num_frames, but got "
                f"fps={fps}, max_frames={max_frames}, num_frames={num_frames}."
            )
        self.root = None if root is None else Path(root)
        self.sampling = {
            "fps": fps,
            "num_frames": num_frames,
            "size": size,
            "max_frames": max_frames,
            "center_crop": center_crop,
            "backend": backend,
        }

    def __call__(self, entry: str | dict) -> Video:
        """
        Reads one video.

        Args:
            entry (`str` or `dict`):
                A path, or `{path, start_s, end_s, frames_dir, frames, fps}` with unused fields `None`.

        Returns:
            [`~trl_temporal.video.Video`].

        Raises:
            VideoError: if the video cannot be read, or has fewer than `num_frames` frames.
        """
        stem = None if self.root is None else self._stem(entry)
        if stem is None:
            return self._load(entry)
        frames_file, info_file = stem.with_suffix(".npy"), stem.with_suffix(".json")
        # Written last: its frames are whole. What a crash of the machine or a full disk has torn is decoded anew.
        if info_file.exists():
            with suppress(ValueError, OSError, EOFError):
                info = json.loads(info_file.read_text())
                info["timestamps_s"] = np.asarray(info["timestamps_s"])
                return Video(frames=np.load(frames_file, mmap_mode="r"), **info)
        video = self._load(entry)
        stem.parent.mkdir(parents=True, exist_ok=True)
        temporary = stem.with_name(f".{stem.name}.{uuid4().hex}.npy")
        np.save(temporary, video.frames)
        os.replace(temporary, frames_file)
        info = {
            "timestamps_s": video.timestamps_s.tolist(),
            "duration_s": video.duration_s,
            "path": video.path,
            "warnings": video.warnings,
        }
        temporary.write_text(json.dumps(info))
        os.replace(temporary, info_file)
        return video

    def _load(self, entry: str | dict) -> Video:
        video = load_row_video(entry, **self.sampling)
        num_frames = self.sampling["num_frames"]
        if num_frames is not None and len(video.frames) != num_frames:
            raise VideoError(
                f"{video.path}: num_frames={num_frames} asks for more frames than there are, "
                f"{len(video.frames)} in {video.duration_s:.3g} s. Lower num_frames, sample by fps, or leave the video"
                " out."
            )
        return video

    def _stem(self, entry: str | dict) -> Path | None:
        entry = {"path": entry} if isinstance(entry, str) else entry
        path = entry.get("path") or entry.get("frames_dir")
        files = entry.get("frames") if path is None else [path]
        # Frames in memory need no cache, and for what is not there the loader has the right words.
        if not isinstance(files, list) or not all(isinstance(file, str) and os.path.exists(file) for file in files):
            return None
        key = {
            "entry": {name: value for name, value in entry.items() if value is not None},
            "paths": [os.path.abspath(file) for file in files],
            "versions": [_version(file) for file in files],
            "sampling": self.sampling,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return self.root / digest[:2] / digest


def _version(path: str) -> list:
    """Size and modification time of a file; of a folder, those of its files: writing into one leaves the folder's."""
    if os.path.isdir(path):
        return [[name, *_version(os.path.join(path, name))] for name in sorted(os.listdir(path))]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def processor_sampling(processor: D2VLMProcessor) -> dict:
    """
    How the processor of a D2VLM wants videos to be read.

    Args:
        processor ([`D2VLMProcessor`]):
            Its `num_frames` goes before `fps` and `max_frames`.

    Returns:
        `dict`: arguments of [`FrameCache`].
    """
    sampling = {"fps": processor.fps, "max_frames": processor.max_frames}
    if processor.num_frames is not None:
        sampling = {"num_frames": processor.num_frames}
    return {**sampling, "size": processor.image_size, "center_crop": processor.center_crop}
