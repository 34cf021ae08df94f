# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Vinoground, scored only."""

import os
from pathlib import Path
from typing import Any

from ..metrics.vinoground import vinoground as metric
from .common import Record, load_records

TITLE = "Vinoground"
FILES = ("vinoground*.jsonl", "vinoground*.json")
SCORERS = ()
ORIGINAL_NAMES = {}


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records `{id, answer}`, with `index` for `id` as in the benchmark's own rows."""
    return [{"id": str(record["index"]), **record} if "index" in record else record for record in load_records(path)]


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """Records `{index, pred}`."""
    records = load_records(path)
    return [{"id": str(record["index"]), "text": record["pred"]} for record in records]


score = metric
