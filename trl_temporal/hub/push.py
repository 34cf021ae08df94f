# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Uploads to the Hub: models, data sets and metrics: `trl-temporal push`."""

import json
import os
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import CommitInfo, DatasetCardData, HfApi

from ..data.schema import coerce_videos
from ..data.validation import load_rows
from ..evaluation.hub_metrics import METRICS
from ..evaluation.hub_metrics.space import write_space
from .card import PLACEHOLDER, name_model, write_plain_card

KINDS = ("model", "dataset", "metric")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
# What training leaves behind: nobody who uses the model needs it.
LEFT_OUT = ("checkpoint-*/*", "runs/*", "wandb/*", "training_args.bin", "skipped_*.jsonl", "*.partial-*", ".*", "*/.*")
LEFT_OUT += ("cache-*.arrow", "*/cache-*.arrow")  # what `datasets` has computed from the rows
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def push(
    folder: str | os.PathLike,
    repository: str,
    *,
    kind: str = "model",
    private: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """
    Upload a folder to the Hub.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of a model, an adapter or a data set; of a metric its name, or the folder that
            [`~trl_temporal.evaluation.hub_metrics.space.write_space`] wrote.
        repository (`str`):
            Where to, `"user/name"`; made where there is none.
        kind (`str`, *optional*, defaults to `"model"`):
            `"model"` for models and adapters, `"dataset"` or `"metric"`, which becomes a space.
        private (`bool`, *optional*, defaults to `False`):
            Whether a new repository is private.
        revision (`str`, *optional*):
            Branch to upload to; made where there is none. Defaults to `main`.

    Returns:
        `huggingface_hub.CommitInfo`: with the commit's hash, `oid`, to pin it by.

    Raises:
        ValueError: if the folder is not of the kind, holds pickles, or could not be loaded by others.

    Example:

    ```python
    >>> from trl_temporal.hub.push import push
    >>> push("outputs/merged", "user/model", private=True).oid  # doctest: +SKIP
    ```
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}; choose from {', '.join(KINDS)}")
    if repository.count("/") != 1:
        raise ValueError(f"{repository!r} is no repository: name it as user/name")
    folder = Path(folder)
    if kind == "metric":
        return _push_metric(folder, repository, private, revision)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if kind == "dataset":
        return _push_dataset(folder, repository, private, revision)
    return _push_model(folder, repository, private, revision)


def _push_model(folder: Path, repository: str, private: bool, revision: str | None) -> CommitInfo:
    files = _files(folder)
    _refuse_pickles(folder, files)
    is_adapter = (folder / "adapter_config.json").exists()
    if not is_adapter and not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no model: it has neither config.json nor adapter_config.json")
    if not any(file.endswith(".safetensors") for file in files):
        raise ValueError(f"{folder} has no weights: there is no .safetensors file in it")
    base = None
    if is_adapter:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not base or os.path.isdir(base) or base.count("/") != 1:
            raise ValueError(
                f"The adapter in {folder} is for {base!r}, which nobody else has. Push that model and write its "
                "repository into `base_model_name_or_path` of adapter_config.json, or merge the two first: "
                "`trl-temporal merge`."
            )
    card = folder / "README.md"
    before = card.read_bytes() if card.exists() else None
    if before is None or PLACEHOLDER in before.decode():
        write_plain_card(folder, repository, base)
    else:
        name_model(card, repository, base)
    try:
        # Shards of before would be left beside those of now, and loaded in their place.
        return _upload(folder, repository, "model", private, revision, delete_patterns=WEIGHTS)
    finally:  # the folder may go to another repository too, by its name there
        card.unlink() if before is None else card.write_bytes(before)


def _push_dataset(folder: Path, repository: str, private: bool, revision: str | None) -> CommitInfo:
    _refuse_pickles(folder, _files(folder))
    splits = load_rows(folder)
    if not (folder / "README.md").exists():
        _write_data_card(folder, repository, splits)
    for split, rows in splits.items():
        of_machine = sum(map(_names_own_path, rows))
        if of_machine:
            print(
                f"{of_machine} of {len(rows)} rows of {split} name their video by a path of this machine, which "
                "others do not have and will see. The videos are not uploaded with them."
            )
    return _upload(folder, repository, "dataset", private, revision, delete_patterns=("*.arrow", "*.parquet"))


def _names_own_path(row: dict[str, Any]) -> bool:
    entries = coerce_videos(row.get("videos"))
    return any(os.path.isabs(entry.get("path") or entry.get("frames_dir") or "") for entry in entries)


def _push_metric(folder: Path, repository: str, private: bool, revision: str | None) -> CommitInfo:
    name = folder.name
    if repository.split("/")[1] != name:
        raise ValueError(
            f"a metric is loaded by the name of its repository: push {name} to {repository.split('/')[0]}/{name}"
        )
    if folder.is_dir():
        if not (folder / f"{name}.py").exists():
            raise ValueError(f"{folder} is no metric: it has no {name}.py")
        return _upload(folder, repository, "space", private, revision, space_sdk="gradio")
    if str(folder) not in METRICS:
        raise ValueError(f"{folder} is neither a folder nor a metric; the metrics are {', '.join(METRICS)}")
    with tempfile.TemporaryDirectory() as space:
        return _upload(write_space(name, space), repository, "space", private, revision, space_sdk="gradio")


def _files(folder: Path) -> list[str]:
    """What would be uploaded, as paths in the folder."""
    found = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(fnmatch(path, pattern) for pattern in LEFT_OUT)]


def _refuse_pickles(folder: Path, files: Sequence[str]) -> None:
    found = [file for file in files if any(fnmatch(file, pattern) for pattern in PICKLES)]
    if found:
        raise ValueError(
            f"{folder} holds pickles ({', '.join(found[:3])}{', ...' if found[3:] else ''}), which run code on the "
            "machine of whoever loads them. Save weights as safetensors, and remove the rest."
        )


def _upload(
    folder: Path,
    repository: str,
    repo_type: str,
    private: bool,
    revision: str | None,
    delete_patterns: Sequence[str] = (),
    **of_space: str,
) -> CommitInfo:
    api = HfApi()
    api.create_repo(repository, repo_type=repo_type, private=private, exist_ok=True, **of_space)
    if revision is not None:
        api.create_branch(repository, branch=revision, repo_type=repo_type, exist_ok=True)
    return api.upload_folder(
        folder_path=folder,
        repo_id=repository,
        repo_type=repo_type,
        revision=revision,
        commit_message=f"Upload {folder.name} with trl_temporal",
        ignore_patterns=list(LEFT_OUT),
        delete_patterns=list(delete_patterns) or None,
    )


def _write_data_card(folder: Path, repository: str, splits: dict[str, datasets.Dataset]) -> None:
    """Says which files are which split: of a folder of `save_to_disk` the Hub would not know."""
    is_one = (folder / "dataset_info.json").exists() and not (folder / "dataset_dict.json").exists()
    saved = is_one or (folder / "dataset_dict.json").exists()
    files = [{"split": split, "path": "data-*.arrow" if is_one else f"{split}/data-*.arrow"} for split in splits]
    data = DatasetCardData(
        task_categories=["video-text-to-text"],
        tags=["temporal-grounding", "trl_temporal"],
        configs=[{"config_name": "default", "data_files": files}] if saved else None,
    )
    counts = "\n".join(f"| {split} | {len(rows):,} |" for split, rows in splits.items())
    text = (
        f"# {repository}\n\nRows for `trl_temporal`; spans are in seconds.\n\n| split | rows |\n|---|---|\n{counts}\n"
    )
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
