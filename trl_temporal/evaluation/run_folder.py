# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The folder of an evaluation: settings, answers in shards that are written as they come, and results."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ..data.shards import write_whole

SETTINGS_FILE = "settings.json"
ANSWERS_FOLDER = "answers"
SIMILARITIES = ("salience", "logits", "cosines")


@dataclass
class SavedAnswer:
    """
    An answer of a run, with what it is scored and analysed by.

    Attributes:
        id (`str`):
            Id of the row.
        text (`str`):
            The response; with `<evi>` where it refers to `response`, if the model has evidence tokens.
        evidence (`list[list[float]]` or `None`):
            Intervals of the evidence stage in seconds; `None` of a model without one.
        response (`list[list[float]]` or `None`):
            Intervals of the `<evi>` in `text`, in order; `None` of a model that writes its times as text.
        truth (`list[list[float]]`):
            True intervals of the row.
        duration_s (`float`):
            Duration of the video in seconds.
        timestamps_s (`list[float]`):
            Timestamps of the frames that the model saw, in seconds.
        task (`str`):
            Task of the row.
        fault (`str`):
            Why there is no answer, if its video could not be read.
        similarities (`dict[str, np.ndarray]`):
            `"salience"`, `"logits"` and `"cosines"` of shape `(E, T)`: every `<evi>` of both stages, in order, with
            every frame. Empty of a model without evidence tokens.
    """

    id: str
    text: str
    evidence: list[list[float]] | None
    response: list[list[float]] | None
    truth: list[list[float]]
    duration_s: float
    timestamps_s: list[float]
    task: str = ""
    fault: str = ""
    similarities: dict[str, np.ndarray] = field(default_factory=dict)


def write_answers(run_dir: str | os.PathLike, shard: int, answers: Sequence[SavedAnswer]) -> None:
    """
    Write the answers of a shard. Once its `.jsonl` is there, the shard is whole.

    Args:
        run_dir (`str` or `os.PathLike`):
            Folder of the run.
        shard (`int`):
            Number of the shard.
        answers (`Sequence[SavedAnswer]`):
            Its answers, in the order of the rows.
    """
    folder = Path(run_dir) / ANSWERS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{number}.{name}": np.ascontiguousarray(values, dtype=np.float32)
        for number, answer in enumerate(answers)
        for name, values in answer.similarities.items()
    }
    lines = [{name: value for name, value in vars(answer).items() if name != "similarities"} for answer in answers]
    save_file(arrays, folder / f"{shard:05d}.safetensors")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(folder / f"{shard:05d}.jsonl", text)


def has_answers(run_dir: str | os.PathLike, shard: int) -> bool:
    """Whether a shard is there, whole."""
    return (Path(run_dir) / ANSWERS_FOLDER / f"{shard:05d}.jsonl").is_file()


def read_answers(run_dir: str | os.PathLike, with_similarities: bool = True) -> Iterator[SavedAnswer]:
    """
    Read the answers of a run, shard after shard, in the order of its rows.

    Args:
        run_dir (`str` or `os.PathLike`):
            Folder of the run, finished or not.
        with_similarities (`bool`, *optional*, defaults to `True`):
            Whether to read the arrays too.

    Returns:
        `Iterator[SavedAnswer]`

    Raises:
        FileNotFoundError: if the folder has no answers.
    """
    paths = sorted((Path(run_dir) / ANSWERS_FOLDER).glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(
            f"{run_dir} has no answers. Pass the folder that `trl-temporal eval` wrote (--output)."
        )
    for path in paths:
        arrays = load_file(path.with_suffix(".safetensors")) if with_similarities else {}
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                similarities = {
                    name: arrays[f"{number}.{name}"] for name in SIMILARITIES if f"{number}.{name}" in arrays
                }
                yield SavedAnswer(**json.loads(line), similarities=similarities)


def read_settings(run_dir: str | os.PathLike) -> dict[str, Any]:
    """
    Read what a run was made with.

    Args:
        run_dir (`str` or `os.PathLike`):
            Folder of the run.

    Returns:
        `dict`: see [`~trl_temporal.evaluation.runner.evaluate_model`].

    Raises:
        FileNotFoundError: if it is not the folder of a run.
    """
    path = Path(run_dir) / SETTINGS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} has no {SETTINGS_FILE}. Pass the folder that `trl-temporal eval` wrote.")
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON that every reader takes: NaN and infinity, which JSON does not know, as text."""
    write_whole(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_whole(path, "".join(json.dumps(_plain(record), ensure_ascii=False) + "\n" for record in records))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
