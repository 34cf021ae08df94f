# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""TempCompass, scored only."""

import os
from pathlib import Path
from typing import Any

from ..metrics.tempcompass import TASKS, from_records
from ..metrics.tempcompass import tempcompass as metric
from .common import Record, load_json, load_records

TITLE = "TempCompass"
FILES = ("tempcompass*.jsonl", "*.json")
SCORERS = ()
ORIGINAL_NAMES = {}


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records `{id, task, dim, question, answer}`, or an official file, which is named after its task."""
    return load_records(path) if path.suffix == ".jsonl" else _official(path)[1]


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """An official file `{video: {dim: [{question, answer, prediction}]}}`, named after its task."""
    return _official(Path(path))[0]


def _official(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if path.stem not in TASKS:
        raise ValueError(f"{path}: the file tells its task by its name, which must be one of {', '.join(TASKS)}")
    return from_records(load_json(path), path.stem)


score = metric
