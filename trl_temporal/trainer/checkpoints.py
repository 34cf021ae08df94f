# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Which checkpoints are whole, and what the order of the rows in them depends on.

transformers writes a checkpoint into its final folder, file by file, `trainer_state.json` last. The trainers of this
package put `whole.json` in front of it, when all ranks have written their part: the size of every file, and the
settings that decide which rows come next.
"""

import hashlib
import json
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import datasets
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

from ..data.shards import write_whole

MARK_NAME = "whole.json"
SAMPLED_ROWS = 256
# Of transformers, PEFT (with several adapters in folders of their own) and FSDP.
WEIGHTS = ("**/*model*.safetensors", "**/*model*.bin", "*model.safetensors.index.json", "pytorch_model_fsdp_0")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or not be continued from. The message names it and what to do."""


def checkpoint_fault(folder: str | os.PathLike) -> str | None:
    """
    What is missing from a checkpoint.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of a checkpoint, by a trainer of this package or by any other of transformers.

    Returns:
        `str`: why training cannot continue from it; `None` for a whole checkpoint.

    Example:

    ```python
    >>> from trl_temporal.trainer.checkpoints import checkpoint_fault
    >>> checkpoint_fault("outputs/checkpoint-0")
    'there is no such folder'
    ```
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if _read_json(folder / TRAINER_STATE_NAME) is None:
        return f"{TRAINER_STATE_NAME}, which is written last, is missing or cut off"
    if not (folder / MARK_NAME).exists():
        return _missing_file(folder) or _torn_file(folder)
    mark = _read_json(folder / MARK_NAME)
    if mark is None:
        return f"{MARK_NAME} is cut off"
    for name, size in mark["files"].items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def last_whole_checkpoint(output_dir: str | os.PathLike, warn: bool = True) -> str | None:
    """
    The newest checkpoint that training can continue from.

    Args:
        output_dir (`str` or `os.PathLike`):
            Output folder of a run.
        warn (`bool`, *optional*, defaults to `True`):
            Warn of newer ones that are not whole.

    Returns:
        `str`: its folder; `None` if there is none.

    Example:

    ```python
    >>> from trl_temporal.trainer.checkpoints import last_whole_checkpoint
    >>> print(last_whole_checkpoint("outputs"))
    None
    ```
    """
    steps = {
        int(folder.name.removeprefix("checkpoint-")): folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", folder.name)
    }
    for _, folder in sorted(steps.items(), reverse=True):
        fault = checkpoint_fault(folder)
        if fault is None:
            return str(folder)
        if warn:
            warnings.warn(f"{folder} is not whole ({fault}) and is passed over", stacklevel=2)
    return None


def mark_whole(folder: str | os.PathLike, settings: dict[str, Any]) -> None:
    """
    Writes down that a checkpoint has all its files but `trainer_state.json`.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the checkpoint.
        settings (`dict`):
            What [`changed_settings`] compares.
    """
    folder = Path(folder)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    write_whole(folder / MARK_NAME, json.dumps({"files": files, "settings": settings}, indent=2))


def unmark(folder: str | os.PathLike) -> None:
    """
    Takes the marks of being whole off a checkpoint that will be written again.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the checkpoint, if there is one.
    """
    for name in (TRAINER_STATE_NAME, MARK_NAME):
        Path(folder, name).unlink(missing_ok=True)


def changed_settings(folder: str | os.PathLike, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """
    Settings of a run that differ from those of a checkpoint.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the checkpoint.
        settings (`dict`):
            Settings of this run.

    Returns:
        `dict[str, tuple]`: by name the value in the checkpoint and the one now; empty for a checkpoint of another
        trainer, which has none.
    """
    before = (_read_json(Path(folder, MARK_NAME)) or {"settings": {}})["settings"]
    return {
        name: (before[name], value) for name, value in settings.items() if name in before and before[name] != value
    }


def describe_rows(dataset: datasets.Dataset | datasets.IterableDataset) -> dict[str, Any]:
    """
    What tells a data set from one with other rows, or the same in another order.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows with `prompt`, and `id` where they have one.

    Returns:
        `dict`: `rows`, how many there are, and `sample`, a hash of the ids and prompts of some; empty for a stream,
        which would have to be read to its end.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_temporal.trainer.checkpoints import describe_rows
    >>> describe_rows(Dataset.from_dict({"prompt": ["When?", "Why?"]}))
    {'rows': 2, 'sample': 'bf98730f823a9820'}
    ```
    """
    if isinstance(dataset, datasets.IterableDataset):
        return {}
    columns = [name for name in ("id", "prompt") if name in dataset.column_names]
    sampled = sorted({number * len(dataset) // SAMPLED_ROWS for number in range(SAMPLED_ROWS)})
    rows = dataset.select_columns(columns).with_format(None)[sampled]
    return {"rows": len(dataset), "sample": hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:16]}


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _missing_file(folder: Path) -> str | None:
    """Which part of a checkpoint of any trainer is not there."""
    sharded = (folder / "latest").exists()  # DeepSpeed's: names the folder with the weights and the optimizer
    if sharded:
        shards = folder / (folder / "latest").read_text(encoding="utf-8").strip()
        if not shards.is_dir() or not any(shards.iterdir()):
            return f"DeepSpeed's {shards.name} is missing"
    elif not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return "the weights are missing"
    for index in folder.glob("*.index.json"):
        shards = _read_json(index)
        if shards is None:
            return f"{index.name} is cut off"
        missing = sorted(name for name in shards["weight_map"].values() if not (folder / name).exists())
        if missing:
            return f"{missing[0]} is missing"
    if not sharded and not any(folder.glob("optimizer*")):
        return "it holds the model without the optimizer, as `save_only_model=True` leaves it"
    if not sharded and not (folder / "scheduler.pt").exists():
        return "scheduler.pt is missing"
    numbers = sorted(int(path.stem.removeprefix("rng_state_")) for path in folder.glob("rng_state_*.pth"))
    if not (folder / "rng_state.pth").exists() and (not numbers or numbers != list(range(len(numbers)))):
        return "rng_state.pth, or that of one of the ranks, is missing"
    return None


def _torn_file(folder: Path) -> str | None:
    """Which file is cut off; an end that is there vouches for the rest."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
        if path.suffix == ".safetensors":
            try:
                safe_open(path, framework="pt")
            except (SafetensorError, OSError):
                return f"{path.name} is cut off"
    return None
