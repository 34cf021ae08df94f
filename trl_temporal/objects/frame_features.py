# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The features that the frozen frame encoders of Grounded-VideoDiT make of videos, in the feature cache.

Everything before the fusion is frozen. An encoder that sees the masks of a question's objects makes something else of
a video for each set of objects: its features are stored once for each video with its nouns, masks and their times. One
that does not makes the same of a video for every question.

The noise that an encoder draws comes from what tells features from others, their `id` in the cache. Each video is
encoded alone, since sums differ in their last bits with what else is in a batch. So the same features come out in any
order, after a kill, and without the cache.

A frame encoder is a module as described in [`trl_temporal.models.grounded_videodit.frame_encoders`], with

- `uses_masks` (`bool`): whether its features depend on the masks
- `settings()`: what its features depend on besides its `state_dict`, as a dictionary of JSON's types and tensors

Letters in shapes: `T` frames of a video, `n_v` tokens of a frame, `d_v` their size.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch

from ..data.errors import ColumnError, RowError
from ..data.feature_cache import CachedVideo, FeatureCache, VideoIds, stored_keys
from ..data.feature_cache_build import Item, Prepared, check_build, fill_cache, info_of
from ..data.feature_cache_report import GIB, BuildReport
from ..data.feature_key import FeatureCacheError, hash_tensors, key_differences
from ..data.frame_cache import FrameCache
from ..data.schema import coerce_videos, video_key, without_video_decoding
from ..video import VideoError
from .row_masks import masks_at, objects_id

FeatureType = Literal["float16", "bfloat16", "float32"]

# Of a row: what tells it, shows its video and its objects.
COLUMNS = ("id", "videos", "object_nouns", "object_masks", "object_times_s")


def frame_feature_key(
    encoder: torch.nn.Module, sampling: dict[str, Any], dtype: FeatureType = "float16"
) -> dict[str, Any]:
    """
    What stored features of frames depend on. It reads all weights of the encoder, about a second for a gigabyte.

    Args:
        encoder (`torch.nn.Module`):
            Frame encoder.
        sampling (`dict`):
            How frames are sampled: the `sampling` of a [`~trl_temporal.data.frame_cache.FrameCache`].
        dtype (`str`, *optional*, defaults to `"float16"`):
            Type that features are stored in.

    Returns:
        `dict`: of JSON's types, with the parts of [`~trl_temporal.data.feature_key.feature_key`]. `vision` are the
        encoder's settings.

    Raises:
        ValueError: if features cannot be stored in this type.
        FeatureCacheError: if the weights of the encoder are not loaded.

    Example:

    ```python
    >>> from trl_temporal.data.frame_cache import FrameCache
    >>> read_video = FrameCache(None, num_frames=96, size=224)
    >>> key = frame_feature_key(encoder, read_video.sampling)  # doctest: +SKIP
    ```
    """
    if dtype not in ("float16", "bfloat16", "float32"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float16', 'bfloat16' or 'float32'")
    tensors = {f"state.{name}": value for name, value in encoder.state_dict().items()}
    settings = _without_tensors(encoder.settings(), "settings", tensors)
    settings |= {
        "uses_masks": encoder.uses_masks,
        "tokens_per_frame": encoder.tokens_per_frame,
        "hidden_size": encoder.hidden_size,
    }
    key = {
        "sampling": sampling,
        "processor": {},  # frames go into the encoder as they are read
        "vision": settings,
        "dtype": dtype,
        "weights": hash_tensors(tensors),
    }
    return json.loads(json.dumps(key))  # tuples as lists, as they come back from the file


def _without_tensors(settings: dict[str, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Settings of JSON's types; tensors among them go to `tensors`."""
    plain = {}
    for name, value in settings.items():
        if isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value):
            value = dict(enumerate(value))  # so that a message names the setting that differs
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}.{name}"] = value
        elif isinstance(value, dict):
            plain[str(name)] = _without_tensors(value, f"{prefix}.{name}", tensors)
        else:
            plain[str(name)] = value
    return plain


def build_frame_features(
    rows: Sequence[dict],
    root: str | os.PathLike,
    encoder: torch.nn.Module,
    read_video: FrameCache,
    *,
    dtype: FeatureType = "float16",
    num_threads: int = 2,
    shard_bytes: int = GIB,
    min_free_bytes: int = 5 * GIB,
    on_bad_sample: Literal["raise", "skip"] = "raise",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> BuildReport:
    """
    Encodes the videos of rows, with their objects where the encoder sees masks, that a cache lacks. It estimates disk
    and time, writes and goes on after a kill as [`~trl_temporal.data.feature_cache_build.build_feature_cache`] does.

    Args:
        rows (`Sequence[dict]`):
            Rows with a column `videos`, such as a `datasets.Dataset`, and the columns of `OBJECT_FEATURES` where the
            objects of their questions were found. The encoder is given no masks for a row without.
        root (`str` or `os.PathLike`):
            Folder of caches; this one gets a folder of its own in it.
        encoder (`torch.nn.Module`):
            Frame encoder, on the device to use; put in evaluation mode for the call.
        read_video ([`~trl_temporal.data.frame_cache.FrameCache`]):
            Reader of the entries, sampling as in training. Masks are those of the nearest time.
        dtype (`str`, *optional*, defaults to `"float16"`):
            Type that features are stored in: `"float16"`, `"bfloat16"` or `"float32"`.
        num_threads (`int`, *optional*, defaults to `2`):
            Videos that are decoded at a time.
        shard_bytes (`int`, *optional*, defaults to 1 GiB):
            Size of a file, which is gathered in memory.
        min_free_bytes (`int`, *optional*, defaults to 5 GiB):
            What has to stay free on the disk.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            For a video that cannot be read or masks that cannot be used: `"raise"` names the row; `"skip"` goes on and
            lists its rows in `skipped.jsonl` in the folder of the cache.
        rank, world_size (`int`, *optional*):
            Which part of the videos to encode, of how many. Several processes may fill one cache.
        progress (`bool`, *optional*, defaults to `True`):
            Show the estimate and a progress bar.

    Returns:
        [`~trl_temporal.data.feature_cache_report.BuildReport`], which counts a video once for each set of objects.

    Raises:
        RowError: if a row has two videos, or masks without times.
        FeatureCacheError: if the disk would be too full, or features are not finite or of another shape than the
            encoder says.
        VideoError: if a sample is bad and `on_bad_sample` is `"raise"`, or all are.

    Example:

    ```python
    >>> read_video = FrameCache(None, num_frames=96, size=224)
    >>> report = build_frame_features(rows, "features", encoder, read_video)  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
    ```
    """
    begun = time.perf_counter()
    rows = object_rows(rows)
    items = distinct_samples(rows, encoder.uses_masks)
    check_build(items, on_bad_sample)
    cache = FeatureCache.create(root, frame_feature_key(encoder, read_video.sampling, dtype))

    def prepare(item: Item) -> Prepared:
        return _prepare(item, rows, cache, read_video)

    report = fill_cache(
        cache,
        items,
        prepare,
        encoder,
        _FrameEncoder(encoder, dtype),
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


def object_rows(rows: Sequence[dict]) -> Sequence[dict]:
    """Rows without the columns that features do not depend on, where these would cost time to read."""
    if not isinstance(rows, datasets.Dataset):
        return rows
    rows = rows.select_columns([name for name in COLUMNS if name in rows.column_names])
    return without_video_decoding(rows.with_format(None))


def distinct_samples(rows: Sequence[dict], uses_masks: bool) -> list[Item]:
    """The distinct videos of rows, with their objects if an encoder sees masks, and the rows that show them."""
    items: dict[tuple[str, str | None], Item] = {}
    for index, row in enumerate(rows):
        name = f"row {index}" + ("" if row.get("id") is None else f" (id {row['id']!r})")
        if row.get("videos"):
            item = _item_of(row, uses_masks, name)
            item = items.setdefault((video_key(item.entry), item.objects), item)
            item.rows.append((index, row.get("id")))
    return list(items.values())


def _item_of(row: dict, uses_masks: bool, name: str) -> Item:
    try:
        entries = coerce_videos(row.get("videos"))
        if len(entries) != 1:
            raise ColumnError("videos", f"has {len(entries)} videos", "A frame encoder takes one a row")
        return Item(entries[0], objects=objects_id(row) if uses_masks else None)
    except RowError as error:
        raise RowError(f"{name}, {error}") from None


def _prepare(item: Item, rows: Sequence[dict], ids: VideoIds, read_video: FrameCache) -> Prepared:
    """Reads the frames of a video and the masks of its objects, if `ids` is a cache that does not have them."""
    prepared = Prepared(item)
    try:
        prepared.id = ids.video_id(item.entry, item.objects)
        if isinstance(ids, FeatureCache) and ids.has_id(prepared.id):
            return prepared
        begun = time.perf_counter()
        video = read_video(item.entry)
        prepared.read_s = time.perf_counter() - begun
        begun = time.perf_counter()
        inputs = {"frames": torch.from_numpy(np.ascontiguousarray(video.frames.transpose(0, 3, 1, 2)))[None]}
        if item.objects is not None:
            masks = masks_at(rows[item.rows[0][0]], video.timestamps_s)
            inputs["masks"] = torch.from_numpy(np.ascontiguousarray(masks))[None]
        prepared.process_s = time.perf_counter() - begun
    except VideoError as error:
        prepared.fault = error
        return prepared
    except RowError as error:  # masks that are damaged
        prepared.fault = VideoError(str(error))
        return prepared
    prepared.inputs, prepared.info = inputs, info_of(video, "")
    return prepared


class _FrameEncoder:
    """Encodes videos with a frame encoder, each alone."""

    def __init__(self, encoder: torch.nn.Module, dtype: FeatureType):
        self.encoder, self.dtype = encoder, getattr(torch, dtype)

    def add(self, prepared: Prepared) -> list[tuple[Prepared, torch.Tensor]]:
        return self.encode([prepared])

    def finish(self) -> list[tuple[Prepared, torch.Tensor]]:
        return []

    def encode(self, batch: list[Prepared]) -> list[tuple[Prepared, torch.Tensor]]:
        return [(prepared, self._encode(prepared)) for prepared in batch]

    @torch.no_grad()
    def _encode(self, prepared: Prepared) -> torch.Tensor:
        """Features `(1, T * n_v, d_v)`, without the reference features: these are those of an encoder in a list."""
        device = next(self.encoder.parameters()).device
        inputs = {name: value.to(device) for name, value in prepared.inputs.items()}
        frame_mask = torch.ones(inputs["frames"].shape[:2], dtype=torch.bool, device=device)
        path = prepared.info["path"]
        try:
            made = self.encoder(inputs["frames"], frame_mask, inputs.get("masks"), [prepared.id])
        except ValueError as error:  # frames that are too small, as a rule those of every video
            raise FeatureCacheError(f"{path}: {type(self.encoder).__name__} does not take it: {error}") from error
        size = (self.encoder.tokens_per_frame, self.encoder.hidden_size)
        if made.z.shape != (1, frame_mask.shape[1], *size):
            raise FeatureCacheError(
                f"{path}: {type(self.encoder).__name__} makes features of shape {tuple(made.z.shape)} of it; by its "
                f"`tokens_per_frame` and `hidden_size` they should have {(1, frame_mask.shape[1], *size)}."
            )
        features = made.z.flatten(1, 2).to(self.dtype).cpu().contiguous()
        if not features.isfinite().all():
            raise FeatureCacheError(
                f"{path}: the frame encoder makes values of it that are not finite in {self.dtype}. Store them as "
                "bfloat16 or float32 (`dtype`), and load the encoder in one of these."
            )
        return features


class FrameFeatureReader:
    """
    Reads the features of the video of a row. Made by [`FrameFeatureReader.open`]; workers of a data loader and ranks
    may share it, whether they are forked or spawned.

    Args:
        cache ([`~trl_temporal.data.feature_cache.FeatureCache`]):
            Cache that [`build_frame_features`] has filled.

    Attributes:
        key (`dict`): of [`frame_feature_key`], with the encoder's `uses_masks`, `tokens_per_frame` and `hidden_size`
            in its part `vision`.
        uses_masks (`bool`): whether the features of a video depend on the objects of a row.

    Example:

    ```python
    >>> reader = FrameFeatureReader.open("features", encoder, read_video.sampling)  # doctest: +SKIP
    >>> video = reader(dataset[0])  # doctest: +SKIP
    >>> video.features.shape, video.num_frames  # doctest: +SKIP
    (torch.Size([1, 96, 1536]), 96)
    ```
    """

    def __init__(self, cache: FeatureCache):
        self.cache, self.key = cache, cache.key
        self.uses_masks: bool = cache.key["vision"]["uses_masks"]

    @classmethod
    def open(
        cls,
        root: str | os.PathLike,
        encoder: torch.nn.Module,
        sampling: dict[str, Any],
        dtype: FeatureType = "float16",
    ) -> "FrameFeatureReader":
        """
        The features of an encoder.

        Args:
            root (`str` or `os.PathLike`):
                Folder that caches were built in.
            encoder (`torch.nn.Module`):
                Frame encoder.
            sampling (`dict`):
                The `sampling` of a [`~trl_temporal.data.frame_cache.FrameCache`].
            dtype (`str`, *optional*, defaults to `"float16"`):
                Type that features are stored in.

        Returns:
            [`FrameFeatureReader`]

        Raises:
            FeatureCacheError: if there are none. The message says in what those that come closest differ.
        """
        return cls(FeatureCache.open(root, frame_feature_key(encoder, sampling, dtype)))

    @classmethod
    def open_stored(cls, root: str | os.PathLike, sampling: dict[str, Any]) -> "FrameFeatureReader":
        """
        The only features of frame encoders in a folder that were sampled like this, whatever encoder has made them:
        for where the encoder is not there to be compared, or diffusers is not installed.

        Args:
            root (`str` or `os.PathLike`):
                Folder that caches were built in.
            sampling (`dict`):
                The `sampling` of a [`~trl_temporal.data.frame_cache.FrameCache`].

        Returns:
            [`FrameFeatureReader`]

        Raises:
            FeatureCacheError: if there are none, or those of several encoders.
        """
        sampling = json.loads(json.dumps(sampling))
        stored = {folder: key for folder, key in stored_keys(Path(root)).items() if "uses_masks" in key["vision"]}
        if not stored:
            raise FeatureCacheError(
                f"{root} holds no features of frame encoders. Build them: `trl-temporal cache build --model MODEL "
                "--dataset ROWS --output DIR`, or `build_frame_features`."
            )
        found = {folder: key for folder, key in stored.items() if key["sampling"] == sampling}
        if not found:
            closest = min((key_differences(key, {**key, "sampling": sampling}) for key in stored.values()), key=len)
            raise FeatureCacheError(
                f"{root} holds features of frame encoders, but of other frames. Those that come closest differ in "
                f"(theirs != of this run): {'; '.join(closest)}. Sample like them, or build others beside them by "
                "`trl-temporal cache build`."
            )
        if len(found) > 1:
            raise FeatureCacheError(
                f"{root} holds features of several encoders or types ({', '.join(folder.name for folder in found)}). "
                "Say by which encoder they are to be (`FrameFeatureReader.open`), or keep each in a folder of its own."
            )
        ((folder, key),) = found.items()
        return cls(FeatureCache(folder, key))

    def __len__(self) -> int:
        return len(self.cache)

    def __contains__(self, row: dict) -> bool:
        return self.cache.has_id(self._find(row)[1])

    def __call__(self, row: dict) -> CachedVideo:
        """
        Reads the features of the video of a row.

        Args:
            row (`dict`):
                A row with one video; of an encoder that sees masks with its objects, as when they were built.

        Returns:
            [`~trl_temporal.data.feature_cache.CachedVideo`]: `features` of shape `(1, T * n_v, d_v)`, frame by frame.

        Raises:
            RowError: if the row has no video or two, or masks without times.
            VideoError: if the features are not in the cache, or the video not where the row says.
        """
        item, video = self._find(row)
        if not self.cache.has_id(video):
            objects = f" with the objects {sorted(row.get('object_nouns') or [])}, as in this row," * self.uses_masks
            raise VideoError(
                f"row {row.get('id')!r}: {video_key(item.entry):.200}{objects} is not among the {len(self)} in the "
                f"feature cache {self.cache.folder}. Run `trl-temporal cache build` (or `build_frame_features`) again "
                "with these rows; it adds what is missing."
            )
        return self.cache.read(video)

    def _find(self, row: dict) -> tuple[Item, str]:
        """What a row shows, and its `id` in the cache."""
        name = f"row {row.get('id')!r}"
        item = _item_of(row, self.uses_masks, name)
        try:
            return item, self.cache.video_id(item.entry, item.objects)
        except VideoError as error:
            raise VideoError(f"{name}: {error}") from None


class LiveFrameFeatures:
    """
    Makes the features of the video of a row, the same that a [`FrameFeatureReader`] reads: for where nothing is
    stored, such as a question about a new video.

    Args:
        encoder (`torch.nn.Module`):
            Frame encoder, on the device to use; put in evaluation mode.
        read_video ([`~trl_temporal.data.frame_cache.FrameCache`]):
            Reader of videos.
        dtype (`str`, *optional*, defaults to `"float16"`):
            Type of the features, as they were stored for training.

    Example:

    ```python
    >>> make_features = LiveFrameFeatures(encoder, read_video)  # doctest: +SKIP
    >>> make_features(row).features.shape  # doctest: +SKIP
    torch.Size([1, 96, 1536])
    ```
    """

    def __init__(self, encoder: torch.nn.Module, read_video: FrameCache, dtype: FeatureType = "float16"):
        self.encoder, self.read_video = encoder.eval(), read_video
        self._encoder, self._ids = _FrameEncoder(encoder, dtype), VideoIds()

    def __call__(self, row: dict) -> CachedVideo:
        """
        Makes the features of the video of a row.

        Args:
            row (`dict`):
                A row with one video, and its objects or none.

        Returns:
            [`~trl_temporal.data.feature_cache.CachedVideo`], on the CPU.

        Raises:
            RowError: if the row has no video or two, or masks without times.
            VideoError: if the video cannot be read or its masks are damaged.
        """
        name = f"row {row.get('id')!r}"
        item = _item_of(row, self.encoder.uses_masks, name)
        item.rows.append((0, row.get("id")))
        prepared = _prepare(item, [row], self._ids, self.read_video)
        if prepared.fault is not None:
            raise VideoError(f"{name}: {prepared.fault}") from prepared.fault
        ((_, features),) = self._encoder.encode([prepared])
        info = {**prepared.info, "timestamps_s": np.asarray(prepared.info["timestamps_s"])}
        return CachedVideo(features=features, inputs=prepared.kept, **info)


__all__ = [
    "FrameFeatureReader",
    "LiveFrameFeatures",
    "build_frame_features",
    "distinct_samples",
    "frame_feature_key",
    "object_rows",
]
