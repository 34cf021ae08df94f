# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Decoded frames on disk, so that training does not decode the same video at every step."""

import hashlib
import json
import os
from pathlib import Path
from uuid import uuid4

import numpy as np

from ..video import Video, load_row_video


class FrameCache:
    """
    Reads the sampled frames of a row's video, from disk where they were decoded before.

    An entry is keyed by the video (path, size and modification time of the file or of every frame of the folder, crop)
    and by how it is sampled, so that a changed file or setting is decoded anew. Frames come back memory-mapped.

    Args:
        root (`str` or `None`):
            Folder of the cache; `None` decodes every time.
        fps (`float`):
            Frames per second of video.
        size (`int` or `None`):
            Height and width of the frames in pixels; `None` for that of the video.
        max_frames (`int`, *optional*):
            Longer videos are sampled more thinly.
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
        fps: float,
        size: int | None,
        max_frames: int | None = None,
        center_crop: bool = False,
        backend: str = "pyav",
    ):
        self.root = None if root is None else Path(root)
        self.sampling = {
            "fps": fps,
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
                A path, or `{path, start_s, end_s, frames_dir, fps}` with unused fields `None`.

        Returns:
            [`~trl_temporal.video.Video`].

        Raises:
            VideoError: if the video cannot be read.
        """
        if self.root is None:
            return load_row_video(entry, **self.sampling)
        stem = self._stem(entry)
        if stem is None:
            return load_row_video(entry, **self.sampling)
        frames_file, info_file = stem.with_suffix(".npy"), stem.with_suffix(".json")
        if info_file.exists():  # written last: its frames are whole
            info = json.loads(info_file.read_text())
            info["timestamps_s"] = np.asarray(info["timestamps_s"])
            return Video(frames=np.load(frames_file, mmap_mode="r"), **info)
        video = load_row_video(entry, **self.sampling)
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

    def _stem(self, entry: str | dict) -> Path | None:
        entry = {"path": entry} if isinstance(entry, str) else entry
        path = entry.get("path") or entry.get("frames_dir")
        if path is None or not os.path.exists(path):
            return None  # the loader has the right words for it
        key = {
            "entry": {name: value for name, value in entry.items() if value is not None},
            "path": os.path.abspath(path),
            "version": _version(path),
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
