# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Filling a feature cache: `trl-temporal cache build`."""

import json
import os
import shutil
import statistics
import sys
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

import datasets
import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PreTrainedModel

from ..models.d2vlm.modeling_d2vlm_backbone import encode_videos
from ..models.d2vlm.processing_d2vlm import D2VLMBackboneProcessor, D2VLMProcessor, video_arguments
from ..video import Video, VideoError
from .chat_inputs import takes_any_length
from .feature_cache import FeatureCache, num_steps
from .feature_cache_report import GIB, BuildReport, duration_text, size_text
from .feature_key import FeatureCacheError, feature_key, stock_processor, vision_part
from .frame_cache import FrameCache
from .schema import RowError, coerce_videos, video_key, without_video_decoding
from .shards import shard_range, write_whole

NUM_FIRST = 8  # videos, spread over all, from which disk and time are estimated
NUM_READ_BACK = 32  # videos whose reading is timed at the end
ABANDONED_S = 600  # a file that nobody has written to for so long is left over from a killed process


@dataclass
class Item:
    """A distinct video, or video with masks for a frame encoder that sees them, and the rows that show it."""

    entry: dict
    rows: list[tuple[int, Any]] = field(default_factory=list)  # the index and the id of each
    objects: str | None = None  # as of `FeatureCache.video_id`


@dataclass
class Prepared:
    """A video as the tower takes it, or what is wrong with it."""

    item: Item
    id: str | None = None
    fault: VideoError | None = None
    inputs: dict[str, torch.Tensor] | None = None
    kept: dict[str, torch.Tensor] = field(default_factory=dict)  # what is stored beside the features
    info: dict | None = None
    read_s: float = 0.0
    process_s: float = 0.0


class Encoder(Protocol):
    """Makes features `(D, N, H)` of prepared videos; it may gather some to encode them together."""

    def add(self, prepared: Prepared) -> list[tuple[Prepared, torch.Tensor]]:
        """Takes a video; returns those with their features that were encoded now."""

    def finish(self) -> list[tuple[Prepared, torch.Tensor]]:
        """Encodes the others."""

    def encode(self, batch: list[Prepared]) -> list[tuple[Prepared, torch.Tensor]]:
        """Encodes videos together."""


def build_feature_cache(
    videos: Iterable[dict | str],
    root: str | os.PathLike,
    model: PreTrainedModel | PeftModel,
    processor,
    read_video: FrameCache,
    *,
    batch_size: int = 4,
    num_threads: int = 2,
    shard_bytes: int = GIB,
    min_free_bytes: int = 5 * GIB,
    on_bad_sample: Literal["raise", "skip"] = "raise",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> BuildReport:
    """
    Encodes the videos that a cache lacks.

    The first videos, spread over all, are encoded one after the other: from these it estimates disk and time, prints
    both, and stops before anything is written if the disk would not hold it. Features are gathered to files of
    `shard_bytes`, which are in place whole or not at all: called again after a kill, it goes on behind the last one.

    Args:
        videos (`Iterable` of `dict` or `str`):
            Rows with a column `videos`, such as a `datasets.Dataset`, or entries of such a column.
        root (`str` or `os.PathLike`):
            Folder of caches; this one gets a folder of its own in it.
        model (`PreTrainedModel` or `PeftModel`):
            A D2VLM, or a model of a family in `BACKBONES`, on the device to use; put in evaluation mode for the call.
        processor (`ProcessorMixin`):
            Its processor.
        read_video ([`~trl_temporal.data.frame_cache.FrameCache`]):
            Reader of the entries, sampling as in training.
        batch_size (`int`, *optional*, defaults to `4`):
            Videos in the vision tower together.
        num_threads (`int`, *optional*, defaults to `2`):
            Videos that are decoded at a time; each takes its frames in full size in memory.
        shard_bytes (`int`, *optional*, defaults to 1 GiB):
            Size of a file, which is gathered in memory.
        min_free_bytes (`int`, *optional*, defaults to 5 GiB):
            What has to stay free on the disk.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            For a video that cannot be read or processed: `"raise"` names it and its first row; `"skip"` goes on and
            lists its rows in `skipped.jsonl` in the folder of the cache, with `index`, `id` and `reason`.
        rank, world_size (`int`, *optional*):
            Which part of the videos to encode, of how many. Several processes may fill one cache.
        progress (`bool`, *optional*, defaults to `True`):
            Show the estimate and a progress bar.

    Returns:
        [`BuildReport`]

    Raises:
        FeatureCacheError: if the disk would be too full, or the tower makes values that are not finite.
        VideoError: if a video is bad and `on_bad_sample` is `"raise"`, or all are.

    Example:

    ```python
    >>> read_video = FrameCache(None, fps=1.0, size=None, max_frames=128)
    >>> report = build_feature_cache(rows, "features", model, processor, read_video)  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
    ```
    """
    begun = time.perf_counter()
    items = distinct_videos(videos)
    check_build(items, on_bad_sample)
    cache = FeatureCache.create(root, feature_key(model, processor, read_video.sampling))

    def prepare(item: Item) -> Prepared:
        return _prepare(item, cache, read_video, processor)

    report = fill_cache(
        cache,
        items,
        prepare,
        model,
        _VideoEncoder(model, processor, cache.key["dtype"], batch_size),
        num_threads=num_threads,
        shard_bytes=shard_bytes,
        min_free_bytes=min_free_bytes,
        on_bad_sample=on_bad_sample,
        rank=rank,
        world_size=world_size,
        progress=progress,
    )
    report.seconds = time.perf_counter() - begun
    return report


def check_build(items: Sequence[Item], on_bad_sample: str) -> None:
    """Refuses what cannot be built before anything is read or written."""
    if on_bad_sample not in ("raise", "skip"):
        raise ValueError(f"on_bad_sample is {on_bad_sample!r}; it must be 'raise' or 'skip'")
    if not items:
        raise ValueError("there is no video to encode; give rows with videos, or paths")


def fill_cache(
    cache: FeatureCache,
    items: Sequence[Item],
    prepare: Callable[[Item], Prepared],
    module: torch.nn.Module,
    encoder: Encoder,
    *,
    num_threads: int,
    shard_bytes: int,
    min_free_bytes: int,
    on_bad_sample: Literal["raise", "skip"],
    rank: int,
    world_size: int,
    progress: bool,
) -> BuildReport:
    """
    Encodes the items of a rank that a cache lacks, see [`build_feature_cache`].

    Args:
        cache ([`~trl_temporal.data.feature_cache.FeatureCache`]):
            The cache.
        items (`Sequence[Item]`):
            What it is to hold, of all ranks.
        prepare (`Callable`):
            Reads an item, in several threads; what is wrong with its video becomes the `fault`. Without `inputs` if
            the cache has the item's `id`.
        module (`torch.nn.Module`):
            Put in evaluation mode for the call.
        encoder (`Encoder`):
            Makes features of what was read.
        num_threads, shard_bytes, min_free_bytes, on_bad_sample, rank, world_size, progress:
            As of [`build_feature_cache`].

    Returns:
        [`BuildReport`], without `seconds`.

    Raises:
        FeatureCacheError: if the disk would be too full.
        VideoError: if a video is bad and `on_bad_sample` is `"raise"`, or all are.
    """
    items = [items[number] for number in shard_range(len(items), rank, world_size)]
    report = BuildReport(cache.folder, len(items))
    left = [item for item in items if not cache.is_known(item.entry, item.objects)]
    first = left[:: -(-len(left) // NUM_FIRST) or 1]
    rest = [item for item in left if not any(item is other for other in first)]

    writer = _Writer(cache, rank, min_free_bytes)
    bad: list[Prepared] = []
    claimed: set[str] = set()  # a video may be there under two names

    def is_wanted(prepared: Prepared) -> bool:
        if prepared.fault is not None:
            if on_bad_sample == "raise":
                raise VideoError(
                    f"{_describe(prepared)} Mend or remove it, or leave such rows out with on_bad_sample='skip'."
                ) from prepared.fault
            bad.append(prepared)
        if prepared.inputs is None or prepared.id in claimed:
            return False
        claimed.add(prepared.id)
        return True

    was_training = module.training
    module.eval()
    bar = tqdm(total=len(left), desc="Encoding videos", disable=not progress)
    try:
        measured = []
        for item in first:
            prepared = prepare(item)
            if is_wanted(prepared):
                start = time.perf_counter()
                ((_, features),) = encoder.encode([prepared])
                measured.append((prepared.read_s, prepared.process_s, time.perf_counter() - start))
                writer.add(prepared, features)
            bar.update()
        if measured:
            report.read_s, report.process_s, report.encode_s = map(statistics.median, zip(*measured, strict=True))
            bytes_each = writer.waiting_bytes / len(measured)
            all_bytes = writer.waiting_bytes + int(len(rest) * world_size * bytes_each)  # others fill the disk too
            writer.check_disk(all_bytes, f"{len(left) * world_size} videos")
            if progress:
                seconds = sum(map(sum, measured)) * (1 + len(rest) / len(measured))
                bar.write(
                    f"{len(left)} videos to encode: about {size_text(all_bytes)} of the "
                    f"{size_text(writer.free_bytes())} that are free, and {duration_text(seconds)} at most, by the "
                    f"first {len(measured)}."
                )
        try:
            for prepared in _read_ahead(prepare, rest, num_threads):
                if is_wanted(prepared):
                    for done, features in encoder.add(prepared):
                        writer.add(done, features)
                        if writer.waiting_bytes >= shard_bytes:
                            writer.flush()
                bar.update()
            for done, features in encoder.finish():
                writer.add(done, features)
        finally:  # what is encoded stays, whatever is wrong with the next one
            writer.flush()
    finally:
        bar.close()
        module.train(was_training)
    _write_skipped(cache.folder, rank, world_size, bad)
    report.num_new, report.num_skipped, report.num_bytes = len(writer.ids), len(bad), writer.num_bytes
    if items and len(bad) == len(items):
        raise VideoError(f"no video can be used. The first: {_describe(bad[0])}")
    if writer.ids:
        report.cached_s = _time_reading(cache, writer.ids)
    return report


def distinct_videos(videos: Iterable[dict | str]) -> list[Item]:
    """The distinct entries of rows or entries, each with the index and the id of the rows that show it."""
    if isinstance(videos, datasets.Dataset):
        names = [name for name in ("id", "videos") if name in videos.column_names]
        videos = without_video_decoding(videos.select_columns(names).with_format(None))
    items: dict[str, Item] = {}
    for index, row in enumerate(videos):
        is_row = isinstance(row, dict) and not row.keys() & {"path", "frames_dir", "frames"}
        try:
            entries = coerce_videos(row.get("videos") if is_row else row)
        except RowError as error:
            raise RowError(f"row {index}, {error}") from None
        for entry in entries:
            item = items.setdefault(video_key(entry), Item(entry))
            item.rows.append((index, row.get("id") if is_row else None))
    return list(items.values())


def _prepare(item: Item, cache: FeatureCache, read_video: FrameCache, processor) -> Prepared:
    """Reads and processes a video, if the cache has none with its content."""
    prepared = Prepared(item)
    try:
        prepared.id = cache.video_id(item.entry)
        if cache.has_id(prepared.id):
            return prepared
        begun = time.perf_counter()
        video = read_video(item.entry)
        prepared.read_s = time.perf_counter() - begun
        begun = time.perf_counter()
        prepared.inputs, placeholder = _process(processor, video)
        prepared.process_s = time.perf_counter() - begun
        prepared.kept = {name: value for name, value in prepared.inputs.items() if not name.startswith("pixel")}
        prepared.kept.pop("frame_mask", None)  # depends on the other videos of a batch
    except VideoError as error:
        prepared.fault = error
        return prepared
    except ValueError as error:  # a processor that has its own idea of what a video is
        prepared.fault = VideoError(f"{type(processor).__name__} does not take it: {error}")
        return prepared
    prepared.info = info_of(video, placeholder)
    return prepared


def info_of(video: Video, placeholder: str) -> dict[str, Any]:
    """What is stored of a video besides tensors."""
    return {
        "placeholder": placeholder,
        "timestamps_s": np.asarray(video.timestamps_s).tolist(),
        "duration_s": float(video.duration_s),
        "num_frames": len(video.frames),
        "path": video.path,
    }


def _process(processor, video: Video) -> tuple[dict[str, torch.Tensor], str]:
    """What the processor makes of one video, and of its token in a prompt."""
    if isinstance(processor, D2VLMProcessor) and not isinstance(processor, D2VLMBackboneProcessor):
        return processor.pad_frames([video.frames]), processor.video_token * len(video.frames)
    stock = stock_processor(processor)
    data = stock(
        text=[stock.video_token],
        **video_arguments(stock, [video.frames], [video.timestamps_s], [video.duration_s]),
        return_text_replacement_offsets=True,
        return_tensors="pt",
    )
    placeholder = data["text_replacement_offsets"][0][0]["replacement"]
    of_text = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "text_replacement_offsets")
    return {name: value for name, value in data.items() if name not in of_text}, placeholder


class _VideoEncoder:
    """Gathers videos that the model takes together, and encodes them."""

    def __init__(self, model: PreTrainedModel | PeftModel, processor, dtype: str, batch_size: int):
        self.part, decoder = vision_part(model)
        self.base = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
        self.is_tower, self.processor = decoder is None, stock_processor(processor)
        self.any_length = not self.is_tower and takes_any_length(self.processor)
        self.dtype, self.batch_size = getattr(torch, dtype), batch_size
        self.waiting: dict[int, list[Prepared]] = {}

    def add(self, prepared: Prepared) -> list[tuple[Prepared, torch.Tensor]]:
        """Takes a video; returns those with their features that were encoded now, a full batch."""
        length = 0 if self.any_length else prepared.info["num_frames"]
        self.waiting.setdefault(length, []).append(prepared)
        fullest = max(self.waiting, key=lambda length: len(self.waiting[length]))
        waits_long = sum(map(len, self.waiting.values())) >= 2 * self.batch_size  # every one with its pixels
        full = len(self.waiting[fullest]) == self.batch_size
        return self.encode(self.waiting.pop(fullest)) if full or waits_long else []

    def finish(self) -> list[tuple[Prepared, torch.Tensor]]:
        """Encodes the others."""
        return [one for length in list(self.waiting) for one in self.encode(self.waiting.pop(length))]

    @torch.no_grad()
    def encode(self, batch: list[Prepared]) -> list[tuple[Prepared, torch.Tensor]]:
        device = next(self.part.parameters()).device
        inputs = {}
        for name in batch[0].inputs:
            value = torch.cat([prepared.inputs[name] for prepared in batch])
            inputs[name] = value.to(device, self.dtype if name.startswith("pixel_values") else None)
        if self.is_tower:
            features, counts = self.base.encode_videos(**inputs)
        else:
            steps = [num_steps(self.processor, prepared.info["num_frames"]) for prepared in batch]
            features, counts = encode_videos(self.part, inputs, torch.tensor(steps, device=device))
        encoded = [part.to(self.dtype).cpu().contiguous() for part in features.split(counts.tolist(), dim=1)]
        for prepared, part in zip(batch, encoded, strict=True):
            if not part.isfinite().all():
                raise FeatureCacheError(
                    f"{prepared.info['path']}: the vision tower makes values of it that are not finite in "
                    f"{self.dtype}. Load the model in bfloat16 or float32."
                )
        return list(zip(batch, encoded, strict=True))


class _Writer:
    """Gathers features and writes them to files whose names only this process knows."""

    def __init__(self, cache: FeatureCache, rank: int, min_free_bytes: int):
        self.cache, self.rank, self.min_free_bytes = cache, rank, min_free_bytes
        self.waiting: dict[str, torch.Tensor] = {}
        self.ids: list[str] = []
        self.waiting_bytes = self.num_bytes = 0
        for partial in cache.folder.glob(".*.part"):
            if time.time() - partial.stat().st_mtime > ABANDONED_S:
                partial.unlink(missing_ok=True)

    def add(self, prepared: Prepared, features: torch.Tensor) -> None:
        info = {**prepared.info, "input_names": sorted(prepared.kept)}
        packed = np.frombuffer(zlib.compress(json.dumps(info).encode()), dtype=np.uint8)
        tensors = {"features": features, "info": torch.from_numpy(packed.copy()), **prepared.kept}
        self.waiting |= {f"{prepared.id}.{name}": value.contiguous() for name, value in tensors.items()}
        self.waiting_bytes += sum(value.nbytes for value in tensors.values())
        self.ids.append(prepared.id)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.cache.folder).free

    def check_disk(self, num_bytes: int, what: str) -> None:
        """Refuses to write what would leave too little of the disk."""
        if self.free_bytes() - num_bytes < self.min_free_bytes:
            raise FeatureCacheError(
                f"The features of {what} take about {size_text(num_bytes)}, but {self.cache.folder} has "
                f"{size_text(self.free_bytes())} free, of which {size_text(self.min_free_bytes)} are to stay so "
                "(`min_free_bytes`). Give another folder, free some space, lower fps or max_frames, let the processor "
                "make frames smaller, or take a smaller `dtype`."
            )

    def flush(self) -> None:
        """Writes what is there to a file, which nobody sees before it is whole."""
        stem = f"{self.rank:05d}-{uuid4().hex[:12]}"
        if self.waiting:
            self.check_disk(self.waiting_bytes, "the next videos")
            name = f"{stem}.safetensors"
            partial = self.cache.folder / f".{name}.part"
            try:
                save_file(self.waiting, partial)
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(partial, self.cache.folder / name)
            finally:
                partial.unlink(missing_ok=True)
            self.cache.add_file(name)
            self.num_bytes += self.waiting_bytes
            self.waiting, self.waiting_bytes = {}, 0
        self.cache.save_contents(stem)


def _read_ahead(prepare: Callable[[Item], Prepared], items: list[Item], num_threads: int) -> Iterator[Prepared]:
    """What `prepare` makes of items, in order; the next ones are made meanwhile."""
    with ThreadPoolExecutor(num_threads) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(prepare, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _describe(prepared: Prepared) -> str:
    index, id = prepared.item.rows[0]
    name = f"row {index}" + ("" if id is None else f" (id {id!r})")
    return f"{name}: {prepared.fault}"


def _write_skipped(folder: Path, rank: int, world_size: int, bad: list[Prepared]) -> None:
    path = folder / ("skipped.jsonl" if world_size == 1 else f"skipped-{rank:05d}.jsonl")
    if not bad:
        path.unlink(missing_ok=True)
        return
    records = [
        {"index": index, "id": id, "reason": str(prepared.fault)}
        for prepared in bad
        for index, id in prepared.item.rows
    ]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records))
    warnings.warn(
        f"skipped {len(bad)} videos, of {len(records)} rows, that cannot be used; {path} says which and why",
        stacklevel=4,
    )


def _time_reading(cache: FeatureCache, ids: list[str]) -> float:
    """Median seconds in which the features of a video come from the disk."""
    ids = ids[:: -(-len(ids) // NUM_READ_BACK)]
    if sys.platform == "linux":  # they were written just now: ask the system to forget them
        for path in {cache.file_of(video) for video in ids}:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    seconds = []
    for video in ids:
        begun = time.perf_counter()
        cache.read(video).features.clone()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


__all__ = ["BuildReport", "build_feature_cache", "check_build", "distinct_videos", "fill_cache"]
