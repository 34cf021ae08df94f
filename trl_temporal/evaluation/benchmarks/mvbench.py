# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""MVBench, scored only."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from ..metrics.mvbench import mvbench as metric
from .common import Record, list_records, load_records

TITLE = "MVBench"
FILES = ("mvbench*.jsonl", "mvbench*.json")
SCORERS = ("d2vlm", "lmms_eval")
ORIGINAL_NAMES = {}


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records `{id, task, options, answer}`, or D2VLM's list of predictions `{pred, task_type, A}`."""
    records = load_records(path)
    if "task_type" not in records[0]:
        return records
    return [
        {"id": id, "task": record["task_type"], "answer": record["A"]}
        for id, record in zip(_ids(records), records, strict=True)
    ]


def _ids(records: list[Record]) -> list[str]:
    """Task and place within it: the predictions have no ids."""
    counts: Counter = Counter()
    ids = []
    for record in records:
        ids.append(f"{record['task_type']}/{counts[record['task_type']]}")
        counts[record["task_type"]] += 1
    return ids


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """D2VLM's list of predictions `{pred, task_type, A}`."""
    records = list_records(path, "pred")
    return [{"id": id, "text": record["pred"]} for id, record in zip(_ids(records), records, strict=True)]


score = metric
