# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Video-MME, scored only."""

import os
from pathlib import Path
from typing import Any

from ..metrics.videomme import videomme as metric
from .common import Record, list_records, load_records

TITLE = "Video-MME"
FILES = ("videomme*.jsonl", "videomme*.json")
SCORERS = ("d2vlm", "lmms_eval")
ORIGINAL_NAMES = {}


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records `{id, duration, answer}`, or the official list of videos with their `questions`."""
    records = load_records(path)
    if "questions" not in records[0]:
        return records
    groups = ("duration", "domain", "sub_category", "video_id")
    return [
        {
            "id": str(question["question_id"]),
            **{name: video[name] for name in groups if name in video},
            **{name: question[name] for name in ("answer", "options", "task_type") if name in question},
        }
        for video in records
        for question in video["questions"]
    ]


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """The official list of videos, with a `response` to each of their `questions`."""
    return [
        {"id": str(question["question_id"]), "text": question["response"]}
        for video in list_records(path, "questions")
        for question in video["questions"]
        if "response" in question
    ]


score = metric
