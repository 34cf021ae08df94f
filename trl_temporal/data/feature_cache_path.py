# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal cache build`: a data set and the name of a model to a feature cache, here or in several processes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from datatrove.pipeline.base import PipelineStep
from peft import PeftModel
from transformers import PreTrainedModel

from ..models.d2vlm.processing_d2vlm import D2VLMProcessor
from .chat_inputs import DEFAULT_FPS, DEFAULT_MAX_FRAMES
from .feature_cache_build import BuildReport, Item, build_feature_cache, distinct_videos
from .frame_cache import FrameCache
from .schema import video_key, without_video_decoding
from .shards import Executor, run_shards, shard_range, write_whole
from .validation import load_rows


def read_videos_of(
    processor,
    fps: float | None = None,
    max_frames: int | None = None,
    num_frames: int | None = None,
    backend: str = "pyav",
) -> FrameCache:
    """
    A reader that samples for a processor as the trainers do.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model.
        fps, max_frames (*optional*):
            Frames per second, and at most. Default to those of a D2VLM's processor; for others to 1 and 128.
        num_frames (`int`, *optional*):
            Exactly so many frames of every video instead.
        backend (`str`, *optional*, defaults to `"pyav"`):
            Decoder.

    Returns:
        [`~trl_temporal.data.frame_cache.FrameCache`], which keeps nothing on disk.
    """
    is_d2vlm = isinstance(processor, D2VLMProcessor)
    if num_frames is None:
        fps = fps or (processor.fps if is_d2vlm else DEFAULT_FPS)
        max_frames = max_frames or (processor.max_frames if is_d2vlm else DEFAULT_MAX_FRAMES)
    return FrameCache(
        None,
        fps=fps,
        num_frames=num_frames,
        size=processor.image_size if is_d2vlm else None,
        max_frames=max_frames,
        center_crop=is_d2vlm and processor.center_crop,
        backend=backend,
    )


class _BuildStep(PipelineStep):
    """Encodes the videos of one shard. It knows only names, so that it is small to send to a worker."""

    name, type = "encode videos", "trl_temporal"

    def __init__(self, build: Callable[..., BuildReport], device: str | None):
        super().__init__()
        self.build, self.device = build, device
        self.work_dir = ""

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        report = self.build_shard(rank, world_size, progress=False)
        write_whole(Path(self.work_dir, f"report-{rank:05d}.txt"), str(report))
        return data

    def build_shard(self, rank: int, world_size: int, progress: bool) -> BuildReport:
        device = self.device
        if device is None:
            device = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        return self.build(device=device, rank=rank, world_size=world_size, progress=progress)


def _build(path: str, root: str, load: Callable, sampling: dict, options: dict, device: str, **shard) -> BuildReport:
    """Encodes the videos of a shard with a model that is loaded for it."""
    model, processor = load()
    read_video = read_videos_of(processor, **sampling)
    return build_feature_cache(_rows_of(path), root, model.to(device), processor, read_video, **shard, **options)


def _rows_of(path: str) -> list[dict]:
    rows = []
    for split in load_rows(path).values():
        if isinstance(split, datasets.Dataset):
            names = [name for name in ("id", "videos") if name in split.column_names]
            split = without_video_decoding(split.select_columns(names).with_format(None))
        rows.extend(split)
    return rows


def build_path(
    path: str | os.PathLike,
    root: str | os.PathLike,
    load: Callable[[], tuple[PreTrainedModel | PeftModel, Any]],
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    num_frames: int | None = None,
    device: str | None = None,
    num_workers: int = 1,
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
    **options,
) -> int:
    """
    Encodes the videos of a data set and prints what came of it: `trl-temporal cache build`.

    Args:
        path (`str` or `os.PathLike`):
            A data set as in [`~trl_temporal.data.validation.load_rows`].
        root (`str` or `os.PathLike`):
            Folder of caches.
        load (`Callable`):
            Loads the model and its processor; called in every process.
        fps, max_frames, num_frames (*optional*):
            As of [`read_videos_of`].
        device (`str`, *optional*):
            Device of the model. Defaults to the GPUs in turn, else the CPU.
        num_workers, executor, executor_args:
            As of [`~trl_temporal.data.shards.run_shards`]; a single worker runs in this process.
        **options:
            Of [`build_feature_cache`].

    Returns:
        `int`: the exit code, 0.
    """
    sampling = {"fps": fps, "max_frames": max_frames, "num_frames": num_frames}
    path = str(Path(path).absolute()) if os.path.exists(path) else str(path)  # a worker may be elsewhere
    return run_build(
        partial(_build, path, str(Path(root).absolute()), load, sampling, options),
        lambda: distinct_videos(_rows_of(path)),
        root,
        [repr(load), sampling, repr(sorted(options.items()))],
        device=device,
        num_workers=num_workers,
        executor=executor,
        executor_args=executor_args,
    )


def run_build(
    build: Callable[..., BuildReport],
    find_items: Callable[[], list[Item]],
    root: str | os.PathLike,
    made_of: list,
    *,
    device: str | None,
    num_workers: int,
    executor: Executor,
    executor_args: dict[str, Any] | None,
) -> int:
    """
    Fills a cache here or in several processes, and prints what came of it.

    Args:
        build (`Callable`):
            Fills the part of a rank: called with `device`, `rank`, `world_size` and `progress` in every process.
        find_items (`Callable`):
            The items of all ranks; called where there are several.
        root (`str` or `os.PathLike`):
            Folder of caches.
        made_of (`list`):
            Of JSON's types: what is done with another one is not done with this one.
        device, num_workers, executor, executor_args:
            As of [`build_path`].

    Returns:
        `int`: the exit code, 0.
    """
    step = _BuildStep(build, device)
    if executor == "local" and num_workers == 1:
        print(step.build_shard(0, 1, progress=True))
        return 0
    items = find_items()
    # What is done of other videos, or shared out otherwise, is not done of these.
    digest = hashlib.sha256(json.dumps([*made_of, num_workers]).encode())
    for item in items:
        digest.update((video_key(item.entry) + (item.objects or "")).encode())
    work_dir = Path(root, f".build-{digest.hexdigest()[:16]}")
    step.work_dir = str(work_dir.absolute())
    done = run_shards(
        step,
        [len(shard_range(len(items), rank, num_workers)) for rank in range(num_workers)],
        work_dir / "datatrove",
        executor=executor,
        num_workers=num_workers,
        executor_args=executor_args,
        progress="Encoding videos",
    )
    if not done:
        print("Submitted. Run the same command again when the jobs are done.")
        return 0
    for rank in range(num_workers):
        print((work_dir / f"report-{rank:05d}.txt").read_text(encoding="utf-8"))
    shutil.rmtree(work_dir)
    return 0


__all__ = ["build_path", "read_videos_of", "run_build"]
