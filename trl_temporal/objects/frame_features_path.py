# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal cache build` for a model with frame encoders: a data set to stored features of frames."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from ..data.feature_cache_path import run_build
from ..data.feature_cache_report import BuildReport
from ..data.frame_cache import FrameCache
from ..data.shards import Executor
from ..data.validation import load_rows
from ..video import Video, load_row_video
from .frame_features import build_frame_features, distinct_samples, object_rows


class _UpToNumFrames(FrameCache):
    """Gives a video with fewer than `num_frames` frames all that it has: these models pad, and stack no videos."""

    def _load(self, entry: str | dict) -> Video:
        return load_row_video(entry, **self.sampling)


def read_frames_of(
    processor,
    fps: float | None = None,
    max_frames: int | None = None,
    num_frames: int | None = None,
    size: int | None = None,
    backend: str = "pyav",
) -> FrameCache:
    """
    A reader of the frames that a model's encoders are given.

    Args:
        processor (`GroundedVideoDiTProcessor`):
            Processor of the model, whose `num_frames` are taken unless there is another sampling.
        fps, max_frames (*optional*):
            Frames per second, and at most.
        num_frames (`int`, *optional*):
            So many frames of every video instead, or all where it has fewer.
        size (`int`, *optional*):
            Pixels along each side of the frames. Defaults to the processor's `image_size`.
        backend (`str`, *optional*, defaults to `"pyav"`):
            Decoder.

    Returns:
        [`~trl_temporal.data.frame_cache.FrameCache`], which keeps nothing on disk.
    """
    if fps is None and num_frames is None:
        if max_frames is not None:
            raise ValueError(f"max_frames={max_frames} needs fps; give num_frames for exactly so many")
        num_frames = processor.num_frames
    sampling = {"fps": fps, "max_frames": max_frames, "num_frames": num_frames, "size": size or processor.image_size}
    return _UpToNumFrames(None, **sampling, backend=backend)


def build_frame_features_path(
    path: str | os.PathLike,
    root: str | os.PathLike,
    load: Callable[[], tuple[torch.nn.Module, FrameCache]],
    *,
    device: str | None = None,
    num_workers: int = 1,
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
    **options,
) -> int:
    """
    Encodes the videos of a data set with a frame encoder and prints what came of it.

    Args:
        path (`str` or `os.PathLike`):
            A data set as in [`~trl_temporal.data.validation.load_rows`].
        root (`str` or `os.PathLike`):
            Folder of caches.
        load (`Callable`):
            Loads the frame encoder, with the reader of its videos; called in every process.
        device (`str`, *optional*):
            Device of the encoder. Defaults to the GPUs in turn, else the CPU.
        num_workers, executor, executor_args:
            As of [`~trl_temporal.data.shards.run_shards`]; a single worker runs in this process.
        **options:
            Of [`~trl_temporal.objects.frame_features.build_frame_features`].

    Returns:
        `int`: the exit code, 0.
    """
    path = str(Path(path).absolute()) if os.path.exists(path) else str(path)  # a worker may be elsewhere
    return run_build(
        partial(_build, path, str(Path(root).absolute()), load, options),
        # For the progress bar. Whether sets of objects count is known to the encoder, which only the workers load.
        lambda: distinct_samples(_rows_of(path), uses_masks=True),
        root,
        [repr(load), repr(sorted(options.items()))],
        device=device,
        num_workers=num_workers,
        executor=executor,
        executor_args=executor_args,
    )


def _build(path: str, root: str, load: Callable, options: dict, device: str, **shard) -> BuildReport:
    """Encodes the videos of a shard with an encoder that is loaded for it."""
    encoder, read_video = load()
    return build_frame_features(_rows_of(path), root, encoder.to(device), read_video, **shard, **options)


def _rows_of(path: str) -> Sequence[dict]:
    """Rows of all splits. Their masks are read when they are needed: those of a large data set fill the memory."""
    return ConcatDataset([object_rows(split) for split in load_rows(path).values()])


__all__ = ["build_frame_features_path", "read_frames_of"]
