# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Features of videos on disk, for models whose vision tower is frozen: what it makes of a video is computed once.

A folder holds any number of caches, each in a folder of its own with a `key.json` that says what its features depend
on. A cache is a set of safetensors files; a file is there whole or not at all, and its header is the index.
[`~trl_temporal.data.feature_cache_build.build_feature_cache`] fills it. Letters in shapes: `videos` distinct videos,
`D` planes of features (Qwen3-VL has some for deeper layers), `N` video tokens, `H` hidden size, `L` tokens of a row.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import BatchFeature, PreTrainedModel

from ..models.d2vlm.processing_d2vlm import D2VLMProcessor, frames_per_step
from ..video import VideoError
from .feature_key import FeatureCacheError, key_differences, stock_processor, vision_tensors
from .frame_cache import _version
from .media import coerce_videos, video_key
from .shards import write_whole


@dataclass
class CachedVideo:
    """
    What a model needs of a video.

    Args:
        features (`torch.Tensor` of shape `(D, N, H)`):
            Its features as of `encode_videos`, mapped from the file: to be read, not to be written to.
        inputs (`dict[str, torch.Tensor]`):
            What the processor made of it besides pixels, such as `video_grid_thw`, each with a first dimension of 1.
        placeholder (`str`):
            What the processor writes into a prompt in place of the video token; of frame encoders empty.
        timestamps_s (`np.ndarray` of shape `(num_frames,)`):
            Timestamps of the sampled frames in seconds.
        duration_s (`float`):
            Duration of the video in seconds.
        num_frames (`int`):
            Number of sampled frames.
        path (`str`):
            Where the video was when it was encoded.
    """

    features: torch.Tensor
    inputs: dict[str, torch.Tensor]
    placeholder: str
    timestamps_s: np.ndarray
    duration_s: float
    num_frames: int
    path: str


class VideoIds:
    """What tells videos from each other: their content, wherever their files are. Hashes are kept, files are not."""

    def __init__(self):
        self._contents: dict[str, str] = {}  # hashes by files and their versions, so that known ones are not read

    def video_id(self, entry: str | dict, objects: str | None = None) -> str:
        """
        What tells an entry of `videos` from others: its content, its crop and its rate, wherever it is.

        Args:
            entry (`str` or `dict`):
                Entry of the column `videos`.
            objects (`str`, *optional*):
                What else its features depend on: of a frame encoder that sees masks, a hash of the objects and masks
                of a row.

        Returns:
            `str`: 32 hexadecimal digits.

        Raises:
            VideoError: if its file is not there.
        """
        (entry,) = coerce_videos(entry)
        parts = [self.content(entry), float(entry.get("start_s") or 0)]
        parts += [entry.get("end_s") and float(entry["end_s"]), entry.get("fps")]
        parts += [] if objects is None else [objects]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def content(self, entry: dict) -> str:
        """Hash of the bytes of a video, or of its frames."""
        source = self.source(entry)
        if source is None:
            return hashlib.sha256(video_key({"frames": entry["frames"]}).encode()).hexdigest()
        if source not in self._contents:
            self._contents[source] = hashlib.sha256("".join(map(_hash_path, _files_of(entry))).encode()).hexdigest()
        return self._contents[source]

    def source(self, entry: dict) -> str | None:
        """The files of an entry with their versions, or `None` for frames in memory."""
        files = _files_of(entry)
        if files is None:
            return None
        missing = [file for file in files if not os.path.exists(file)]
        if missing:
            raise VideoError(
                f"{missing[0]}: no such file or folder; check the path (relative to {os.getcwd()}). The feature cache "
                "needs it to tell that it has not changed."
            )
        return json.dumps([[os.path.abspath(file), _version(file)] for file in files])


class FeatureCache(VideoIds):
    """
    Reads the features of videos. Made by [`FeatureCache.open`]; workers of a data loader and ranks may share it,
    whether they are forked or spawned.

    Args:
        folder (`Path`):
            Folder of one key.
        key (`dict`):
            Of [`feature_key`].

    Example:

    ```python
    >>> key = feature_key(model, processor, read_video.sampling)  # doctest: +SKIP
    >>> cache = FeatureCache.open("features", key)  # doctest: +SKIP
    >>> cache.check_frozen(model)  # doctest: +SKIP
    >>> cache.get({"path": "clip.mp4"}).features.shape  # doctest: +SKIP
    torch.Size([1, 3072, 2048])
    ```
    """

    def __init__(self, folder: Path, key: dict[str, Any]):
        super().__init__()
        self.folder, self.key = folder, key
        self._files: dict[str, str] = {}  # of each video
        self._handles: dict[str, safe_open] = {}
        for path in sorted(folder.glob("*.contents.json")):
            self._contents |= json.loads(path.read_text(encoding="utf-8"))
        self._saved = set(self._contents)
        for path in sorted(folder.glob("*.safetensors")):
            self.add_file(path.name)

    @classmethod
    def open(cls, root: str | os.PathLike, key: dict[str, Any]) -> "FeatureCache":
        """
        The cache of a key.

        Args:
            root (`str` or `os.PathLike`):
                Folder that caches were built in.
            key (`dict`):
                Of [`feature_key`].

        Returns:
            [`FeatureCache`]

        Raises:
            FeatureCacheError: if there is none with this key. The message compares it with the one that comes closest.
        """
        stored = stored_keys(Path(root))
        for folder, other in stored.items():
            if other == key:
                return cls(folder, key)
        build = "Build it: `trl-temporal cache build --model MODEL --dataset ROWS --output DIR`"
        if not stored:
            raise FeatureCacheError(f"{root} holds no features. {build}.")
        closest = min((key_differences(other, key) for other in stored.values()), key=len)
        raise FeatureCacheError(
            f"{root} holds features, but not of this run. Those that come closest differ in (theirs != of this run): "
            f"{'; '.join(closest)}. Run with what they were built with, or build others beside them with what this "
            "run has, by `trl-temporal cache build`."
        )

    @classmethod
    def create(cls, root: str | os.PathLike, key: dict[str, Any]) -> "FeatureCache":
        """The cache of a key as by [`FeatureCache.open`], or an empty one."""
        root = Path(root)
        for folder, other in stored_keys(root).items():
            if other == key:
                return cls(folder, key)
        folder = root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "key.json", json.dumps(key, indent=2))
        return cls(folder, key)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, entry: str | dict) -> bool:
        return self.video_id(entry) in self._files

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handles": {}}  # open files stay in their process

    def get(self, entry: str | dict) -> CachedVideo:
        """
        Reads one video. Its file is compared with the one that was encoded by size and time of change, and by its
        bytes if these differ; it is not decoded.

        Args:
            entry (`str` or `dict`):
                Entry of the column `videos`.

        Returns:
            [`CachedVideo`]

        Raises:
            VideoError: if the video is not in the cache, or not where the entry says.
        """
        video = self.video_id(entry)
        if video not in self._files:
            raise VideoError(
                f"{_name_of(entry)}: not among the {len(self)} videos of the feature cache {self.folder}. Run "
                "`trl-temporal cache build` again with these rows; it adds what is missing."
            )
        return self.read(video)

    def read(self, video: str) -> CachedVideo:
        """Reads the video of an id as of [`FeatureCache.video_id`]."""
        handle = self._handle(self._files[video])
        info = json.loads(zlib.decompress(handle.get_tensor(f"{video}.info").numpy().tobytes()))
        info["timestamps_s"] = np.asarray(info["timestamps_s"])
        inputs = {name: handle.get_tensor(f"{video}.{name}") for name in info.pop("input_names")}
        return CachedVideo(features=handle.get_tensor(f"{video}.features"), inputs=inputs, **info)

    def check_frozen(self, model: PreTrainedModel | PeftModel) -> None:
        """
        Refuses a model whose features would change in training.

        Args:
            model (`PreTrainedModel` or `PeftModel`):
                The model as it will be trained.

        Raises:
            FeatureCacheError: if a parameter that features of a video depend on requires gradients.
        """
        trained = [name for name, value in vision_tensors(model).items() if value.requires_grad]
        if trained:
            raise FeatureCacheError(
                f"{len(trained)} parameters behind the cached features require gradients, such as {trained[0]}: after "
                f"one step the features in {self.folder} would be those of another model. Freeze the vision tower and "
                "the projector (and keep LoRA out of them), or train without the feature cache."
            )

    def is_known(self, entry: dict, objects: str | None = None) -> bool:
        """Whether a video is in the cache, without reading it: false of one that was moved."""
        try:
            return self.source(entry) in self._contents and self.has_id(self.video_id(entry, objects))
        except VideoError:
            return False

    def has_id(self, video: str) -> bool:
        """Whether there is a video with this id, as of [`FeatureCache.video_id`]."""
        return video in self._files

    def file_of(self, video: str) -> Path:
        """The file with the video of an id."""
        return self.folder / self._files[video]

    def save_contents(self, stem: str) -> None:
        """Writes down the hashes that were computed since the last time."""
        new = {source: self._contents[source] for source in list(self._contents) if source not in self._saved}
        if new:
            write_whole(self.folder / f"{stem}.contents.json", json.dumps(new))
            self._saved |= new.keys()

    def add_file(self, name: str) -> None:
        """Takes in a file of features."""
        suffix = ".features"
        for tensor in self._handle(name).keys():
            if tensor.endswith(suffix):
                self._files[tensor.removesuffix(suffix)] = name

    def _handle(self, name: str) -> safe_open:
        if name not in self._handles:
            try:
                self._handles[name] = safe_open(self.folder / name, framework="pt")
            except SafetensorError as error:
                raise FeatureCacheError(
                    f"{self.folder / name}: damaged ({error}), as by a copy that was cut short. Copy it again, or "
                    "delete it and run `trl-temporal cache build` again."
                ) from error
        return self._handles[name]


def stored_keys(root: Path) -> dict[Path, dict[str, Any]]:
    """The caches in a folder, with their keys."""
    return {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob("*/key.json"))}


def _files_of(entry: dict) -> list[str] | None:
    """The files or the folder that an entry reads, or `None` for frames in memory."""
    if "frames" not in entry:
        return [entry.get("path") or entry["frames_dir"]]
    files = [
        frame["path"] if isinstance(frame, dict) and not frame.get("bytes") else frame for frame in entry["frames"]
    ]
    return list(map(os.fspath, files)) if all(isinstance(file, str | os.PathLike) for file in files) else None


def _hash_path(path: str) -> str:
    if os.path.isdir(path):
        return json.dumps([[name, _hash_path(os.path.join(path, name))] for name in sorted(os.listdir(path))])
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name_of(entry: str | dict) -> str:
    (entry,) = coerce_videos(entry)
    return entry.get("path") or entry.get("frames_dir") or f"the list of {len(entry['frames'])} frames"


def encode_cached_prompts(
    processor,
    texts: Sequence[str],
    videos: Sequence[CachedVideo],
    video_index: Sequence[int],
    padding_side: str = "left",
) -> BatchFeature:
    r"""
    Prompts with the tokens of their videos, as the processor makes them, and the features in place of pixels.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model: of a D2VLM, or of a model of transformers.
        texts (`Sequence[str]`):
            Rendered chats without images.
        videos (`Sequence[CachedVideo]`):
            The distinct videos.
        video_index (`Sequence[int]`):
            Video of each text, -1 for none.
        padding_side (`str`, *optional*, defaults to `"left"`):
            `"left"` for generation, `"right"` for training.

    Returns:
        `BatchFeature`: `input_ids` and `attention_mask` `(rows, L)`, and `mm_token_type_ids` where the processor of a
        model of transformers makes them. With videos also, each once, `video_features` `(D, N, H)`,
        `num_video_features` `(videos,)` and what the processor made besides pixels (`video_grid_thw`, ...), and
        `video_index` `(rows,)`; for a D2VLM `frame_index` `(rows, L)` and `frame_mask` `(videos, T)`; for a model of
        transformers `num_frames` `(videos,)`, frames as it merges them.

    Raises:
        ValueError: if a text has a video token and no video, or the other way round.
    """
    stock, is_d2vlm = stock_processor(processor), isinstance(processor, D2VLMProcessor)
    expanded = []
    for row, (text, index) in enumerate(zip(texts, video_index, strict=True)):
        count = text.count(stock.video_token)
        if count != (index >= 0):
            raise ValueError(
                f"Row {row} of the batch has {count} placeholders {stock.video_token} and {int(index >= 0)} video; "
                "they must agree and be at most one. Does the chat template render the part {'type': 'video'}?"
            )
        expanded.append(text.replace(stock.video_token, videos[index].placeholder) if count else text)
    # Most templates write the first token themselves; some leave it to the tokenizer.
    first = stock.tokenizer.bos_token
    starts = first is not None and texts[0].startswith(first)
    data = dict(
        stock.tokenizer(
            expanded,
            padding=True,
            padding_side=padding_side,
            add_special_tokens=not starts and (stock is not processor or not is_d2vlm),
            return_tensors="pt",
            return_token_type_ids=False,
        )
    )
    if not is_d2vlm and "mm_token_type_ids" in stock.model_input_names:
        data["mm_token_type_ids"] = torch.tensor(stock.create_mm_token_type_ids(data["input_ids"]))
    if not videos:
        return BatchFeature(data)
    data |= {name: torch.cat([video.inputs[name] for video in videos]) for name in videos[0].inputs}
    data["video_features"] = torch.cat([video.features for video in videos], dim=1)
    data["num_video_features"] = torch.tensor([video.features.shape[1] for video in videos])
    data["video_index"] = torch.tensor(video_index)
    if not is_d2vlm:
        data["num_frames"] = torch.tensor([num_steps(stock, video.num_frames) for video in videos])
        return BatchFeature(data)
    steps = torch.tensor([len(processor.frame_timestamps(video.timestamps_s)) for video in videos])
    data["frame_mask"] = torch.arange(int(steps.max())) < steps[:, None]
    if stock is processor:
        is_frame = data["input_ids"] == processor.video_token_id
        data["frame_index"] = torch.where(is_frame, is_frame.cumsum(-1) - 1, -1)
    else:
        shown = torch.where(data["video_index"] >= 0, steps[data["video_index"]], 0)
        data["frame_index"] = processor._frame_index(data["input_ids"], shown)
    return BatchFeature(data)


def is_cached(videos: Sequence) -> bool:
    """Whether the videos of a batch, `None` for none, are [`CachedVideo`]."""
    return any(isinstance(video, CachedVideo) for video in videos)


def num_steps(processor, num_frames: int) -> int:
    """Frames of a video as a model of transformers merges them."""
    return -(-num_frames // frames_per_step(processor))


__all__ = [
    "CachedVideo",
    "FeatureCache",
    "FeatureCacheError",
    "VideoIds",
    "encode_cached_prompts",
    "is_cached",
    "num_steps",
    "stored_keys",
]
