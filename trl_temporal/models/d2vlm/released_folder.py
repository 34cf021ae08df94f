# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Folders of weights, read and written one tensor at a time."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from huggingface_hub import HfApi, snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# Small enough that a conversion needs little memory beside it: one shard is in memory at a time.
MAX_SHARD_SIZE = "1GB"
ADAPTER_FILE, ADAPTER_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
TRAINED_FILE = "pytorch_model.safetensors"
# PEFT's wrappers in the names of the LoRA layout.
WRAPPER_PREFIX, WRAPPED_LAYER = "base_model.model.", ".base_layer."


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message names the file or tensor and what to do about it."""


class StoredTensor(NamedTuple):
    """
    A tensor that is still on disk.

    Args:
        file (`Path`):
            The file that holds it.
        key (`str`):
            Its name in there.
        shape (`tuple[int, ...]`):
            Its shape.
        dtype (`torch.dtype`):
            Its type.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        """The tensor itself; of a `.safetensors` file only its own bytes are read."""
        if self.file.suffix == ".bin":
            return _load_bin(self.file)[self.key].clone()
        with safe_open(self.file, framework="pt") as opened:
            return opened.get_tensor(self.key)

    def lazy(self) -> "LazyTensor":
        """The same, to be written."""
        return LazyTensor(self.shape, self.dtype, self.read)


class LazyTensor(NamedTuple):
    """
    A tensor to write, made when its turn comes.

    Args:
        shape (`tuple[int, ...]`):
            Its shape.
        dtype (`torch.dtype`):
            Its type.
        make (`Callable`):
            Returns it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    def cast(self, dtype: torch.dtype | None) -> "LazyTensor":
        """The same in another floating type; integers, and without a type all tensors, stay as they are."""
        return self if dtype is None or not self.dtype.is_floating_point else self._replace(dtype=dtype)


@dataclass
class ReleasedFolder:
    """
    What is in a released folder.

    Args:
        path (`Path`):
            The folder.
        config (`dict`):
            Its config.json.
        tensors (`dict[str, StoredTensor]`):
            All tensors but the LoRA factors, by released name, those of the base folder included.
        adapter (`dict[str, StoredTensor]`):
            The LoRA factors by their names in `adapter_model.safetensors`; empty for full weights.
        adapter_config (`dict`, *optional*):
            `adapter_config.json`.
        files (`dict[str, list[str]]`):
            Names in `adapter_model.safetensors` and `pytorch_model.safetensors`; empty for full weights.
        replaced (`dict[str, str]`):
            Tensors that are there twice, as `file: name`, and why this one is not used.
    """

    path: Path
    config: dict
    tensors: dict[str, StoredTensor]
    adapter: dict[str, StoredTensor] = field(default_factory=dict)
    adapter_config: dict | None = None
    files: dict[str, list[str]] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)


@dataclass
class ConversionReport:
    """
    What became of every tensor.

    Args:
        destination (`Path`):
            The folder that was written.
        used (`dict[str, str]`):
            Name in the source to name in the destination, value unchanged (but for a change of type).
        joined (`dict[str, str]`):
            The same for tensors that were put together or taken apart.
        merged (`dict[str, str]`):
            The same for LoRA factors that went into a weight.
        ignored (`dict[str, str]`):
            Name in the source to the reason why it was left out.
        new (`dict[str, str]`):
            Name in the destination to how it was made, where the source has nothing for it.
        notes (`list[str]`):
            What else to know.
    """

    destination: Path
    used: dict[str, str] = field(default_factory=dict)
    joined: dict[str, str] = field(default_factory=dict)
    merged: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def first_line(error: Exception) -> str:
    """What an error says, without the explanations that follow."""
    return str(error).partition("\n")[0]


def fetch(source: str) -> Path:
    """
    The folder of a checkpoint: a local one, or a download.

    Args:
        source (`str`):
            A folder, `org/name` on the Hub, or `org/name/folder/in/it`.

    Returns:
        `Path`

    Raises:
        ConversionError: if it is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    repository, inside = "/".join(source.split("/")[:2]), "/".join([*source.split("/")[2:], ""])
    try:
        small = [f"{inside}{kind}" for kind in ("*.json", "*.txt", "*.model", "adapter/*")]
        folder = Path(snapshot_download(repository, allow_patterns=small)) / inside
        read_json(folder / "config.json")  # a repository of several folders says so before their weights come
        weights = [f"{inside}{kind}" for kind in ("*.safetensors", "*.bin")]
        snapshot_download(repository, allow_patterns=weights, ignore_patterns=[f"{inside}*/*"])
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConversionError(
            f"{source!r} is neither a folder here nor a repository on the Hub that can be read: {first_line(error)}"
        ) from error
    return folder


def read_json(file: Path) -> dict:
    """
    A JSON file of a checkpoint.

    Raises:
        ConversionError: if it is missing or broken.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        inside = sorted(path.parent.name for path in file.parent.glob(f"*/{file.name}"))
        hint = f" Its folders {', '.join(inside)} have one: pass one of them." if inside else ""
        raise ConversionError(
            f"{file.parent} has no {file.name}: it is not the folder of a checkpoint.{hint}"
        ) from None
    except ValueError as error:
        raise ConversionError(f"{file} is not valid JSON ({error}): download it again.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} is no JSON object: download it again.")
    return content


def list_tensors(file: Path) -> dict[str, StoredTensor]:
    """
    What a file of weights holds, without reading it.

    Args:
        file (`Path`):
            A `.safetensors` or `.bin` file.

    Returns:
        `dict[str, StoredTensor]`

    Raises:
        ConversionError: if the file is broken.
    """
    try:
        if file.suffix == ".bin":
            tensors = torch.load(file, map_location="meta", weights_only=True)
            return {
                name: StoredTensor(file, name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
            }
        with safe_open(file, framework="pt") as opened:
            # A tensor of a mapped file: nothing is read before its values are looked at.
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(file, name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
            }
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise ConversionError(
            f"{file} cannot be read ({first_line(error)}): it may be cut off, download it again."
        ) from error


def list_weights(folder: Path) -> dict[str, StoredTensor]:
    """
    The full weights of a folder, in one file or in shards.

    Args:
        folder (`Path`):
            The folder.

    Returns:
        `dict[str, StoredTensor]`: by name; empty if the folder has no full weights.

    Raises:
        ConversionError: if a shard, or a tensor in it, is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return list_tensors(folder / name)
        index_file = folder / f"{name}.index.json"
        if index_file.is_file():
            return _list_shards(index_file)
    for pattern in ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"):
        if shards := sorted(folder.glob(pattern)):
            raise ConversionError(
                f"{folder} has {shards[0].name} but no index of the shards: add the *.index.json file."
            )
    return {}


def _list_shards(index_file: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index_file).get("weight_map")
    if not weight_map:
        raise ConversionError(f"{index_file} has no `weight_map`: download it again.")
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        if not (index_file.parent / shard).is_file():
            raise ConversionError(
                f"{index_file.parent} has no {shard}, which {index_file.name} names: a shard is missing, download it."
            )
        tensors.update(list_tensors(index_file.parent / shard))
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ConversionError(f"{shard} has no tensor {name!r}, which {index_file.name} places there.")
    return tensors


def open_released_folder(path: Path, base: str | None = None) -> ReleasedFolder:
    """
    Finds the tensors of a released folder, of either layout: full weights, or what was trained (LoRA factors in
    `adapter_model.safetensors`, whole tensors in `pytorch_model.safetensors`) on top of a base folder.

    Args:
        path (`Path`):
            The folder.
        base (`str`, *optional*):
            Folder or Hub repository with the tensors that were not trained. Defaults to the one that config.json
            names, if it is here.

    Returns:
        [`ReleasedFolder`]

    Raises:
        ConversionError: if weights are missing or broken.
    """
    config = read_json(path / "config.json")
    if not (path / ADAPTER_FILE).is_file() and not (path / TRAINED_FILE).is_file():
        if (path / ADAPTER_CONFIG_FILE).is_file():
            raise ConversionError(f"{path} has {ADAPTER_CONFIG_FILE} but no {ADAPTER_FILE}: download it.")
        tensors = list_weights(path)
        if not tensors:
            raise ConversionError(
                f"{path} has no weights: neither model.safetensors nor shards of it (or pytorch_model.bin), nor "
                f"{ADAPTER_FILE} and {TRAINED_FILE}."
            )
        return ReleasedFolder(path, config, tensors)

    in_adapter = list_tensors(path / ADAPTER_FILE) if (path / ADAPTER_FILE).is_file() else {}
    in_trained = list_tensors(path / TRAINED_FILE) if (path / TRAINED_FILE).is_file() else {}
    # Biases and embeddings can stand beside the factors. The released loader reads `pytorch_model.safetensors` last.
    factors = {name: stored for name, stored in in_adapter.items() if ".lora_" in name}
    own = {unwrap(name): stored for name, stored in in_adapter.items() if name not in factors}
    replaced = {}
    for name, stored in in_trained.items():
        if unwrap(name) in own:
            replaced[f"{ADAPTER_FILE}: {name}"] = f"{TRAINED_FILE} has it too, which counts"
        own[unwrap(name)] = stored
    folder = _base_folder(path, config, base, own)
    tensors = list_weights(folder)
    if not tensors:
        raise ConversionError(
            f"The base folder {folder} has no full weights (model.safetensors, or shards with an index)."
        )
    for name in own.keys() & tensors.keys():
        replaced[f"base: {name}"] = "the folder has its own, trained"
    return ReleasedFolder(
        path,
        config,
        {**tensors, **own},
        adapter=factors,
        adapter_config=read_json(path / ADAPTER_CONFIG_FILE) if factors else None,
        files={ADAPTER_FILE: list(in_adapter), TRAINED_FILE: list(in_trained)},
        replaced=replaced,
    )


def unwrap(name: str) -> str:
    """The name of a tensor without what PEFT puts around it."""
    return name.removeprefix(WRAPPER_PREFIX).replace(WRAPPED_LAYER, ".")


def _base_folder(path: Path, config: dict, base: str | None, own: dict[str, StoredTensor]) -> Path:
    """Where the frozen tensors are; the released loader takes `model_name_or_path` of config.json."""
    if base is not None:
        return fetch(base)
    named = config.get("model_name_or_path")
    for candidate in (named, path / named) if named else ():
        if Path(candidate).is_dir() and Path(candidate).resolve() != path.resolve():
            return Path(candidate)
    parts = (
        "model.vision_tower.",
        "model.qformer_",
        "model.embed_tokens.",
        "model.layers.",
        "model.norm.",
        "lm_head.",
    )
    missing = [f"{part}*" for part in parts if not any(name.startswith(part) for name in own)]
    raise ConversionError(
        f"{path} holds only what was trained; {', '.join(missing)} are in the folder that it was trained from"
        f"{f', {named!r}, which is not here' if named else ''}. Pass that folder or its Hub repository (for D2VLM the "
        "stage-2 model of E.T. Chat) with --base."
    )


def write_shards(
    folder: Path, tensors: dict[str, LazyTensor], max_shard_size: int | str = MAX_SHARD_SIZE, description: str = ""
) -> None:
    """
    Writes `model.safetensors`, or shards and their index. Only the tensors of one shard are in memory at a time.

    Args:
        folder (`Path`):
            Where to.
        tensors (`dict[str, LazyTensor]`):
            The tensors by name.
        max_shard_size (`int` or `str`, *optional*, defaults to `"1GB"`):
            Largest size of a shard, in bytes or like `"1GB"`.
        description (`str`, *optional*, defaults to `""`):
            Label of the progress bar.
    """
    sizes = {name: torch.empty(lazy.shape, dtype=lazy.dtype, device="meta") for name, lazy in tensors.items()}
    plan = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)
    with tqdm(total=len(tensors), desc=description, unit="tensor") as bar:
        for filename, names in plan.filename_to_tensors.items():
            write_tensors(folder / filename, {name: tensors[name] for name in names}, bar)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def write_tensors(file: Path, tensors: dict[str, LazyTensor], bar: tqdm | None = None) -> None:
    """Writes one `.safetensors` file; its tensors are in memory together."""
    shard = {}
    for name, lazy in tensors.items():
        shard[name] = lazy.make().to(lazy.dtype).contiguous()
        if bar is not None:
            bar.update()
    save_file(shard, file, metadata={"format": "pt"})
    _load_bin.cache_clear()  # what was read of a mapped file counts as memory of this process


def write_json(file: Path, content: dict) -> None:
    """Writes a JSON file as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def new_folder(destination: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to fill that appears under its name only when it is complete.

    Args:
        destination (`str` or `os.PathLike`):
            Its name; must not exist, or be empty.

    Yields:
        `Path`: a sibling to write to. It is renamed at the end, or removed on any error.

    Raises:
        ConversionError: if the destination holds something.
    """
    destination = Path(os.path.abspath(destination))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConversionError(f"{destination} exists and is not empty: remove it, or choose another destination.")
    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        _load_bin.cache_clear()


def push_folder(folder: str | os.PathLike, repository: str) -> str:
    """Uploads a folder to the Hub and returns its address."""
    api = HfApi()
    repository = api.create_repo(repository, exist_ok=True).repo_id
    return str(api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Convert to transformers"))
