# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""YouCook2: every step of a cooking video, with its caption."""

import os
from pathlib import Path
from typing import Any

from ...data.grammar import parse_captions
from ..metrics.dense_text import read_events
from ..metrics.youcook2 import youcook2 as metric
from ..run_folder import SavedAnswer
from .common import Record, evaluation_row, load_json

TITLE = "YouCook2"
FILES = ("val.json", "youcook2_val*.json", "youcookii_annotations_trainval.json")
SCORERS = ()
ORIGINAL_NAMES = {"CIDER": "CIDEr", "SODA_c_2": "SODA_c"}
PROMPTS = {
    "evidence": {"dense": "Which steps does the video show, and when?"},
    "text": {
        "dense": "Which steps of a recipe does the video show, and when? Write one line for each step, with its start "
        "and its end in seconds, in the form: start - end, description"
    },
}


def read_references(path: Path) -> list[dict[str, Any]]:
    """TimeChat's records `{image_id, duration, segments, pure_cap}`; the original file is brought into that form."""
    content = load_json(path)
    if "database" not in content:
        return [{**record, "id": record["image_id"]} for record in content["annotations"]]
    return [
        {
            "id": f"{video}.mp4",
            "image_id": f"{video}.mp4",
            "duration": record["duration"],
            "segments": [step["segment"] for step in record["annotations"]],
            "pure_cap": ". ".join(step["sentence"] for step in record["annotations"]),
        }
        for video, record in content["database"].items()
        if record["subset"] == "validation"
    ]


def make_row(reference: Record, prompts: dict[str, str]) -> dict[str, Any]:
    """The row of a record."""
    return evaluation_row(
        id=reference["id"],
        source="youcook2",
        task="dense",
        video=reference["image_id"],
        question=prompts["dense"],
        spans=reference["segments"],
        duration=reference["duration"],
    )


def to_prediction(answer: SavedAnswer, reference: Record) -> dict[str, Any]:
    """What the metric takes: intervals with their captions, or the text to read them from."""
    given = {"text": answer.text} if answer.response is None else {"events": _events(answer)}
    return {"id": answer.id, **given}


def _events(answer: SavedAnswer) -> list[dict[str, Any]]:
    if answer.response is None:
        events = read_events(answer.text).events
    else:
        captions = parse_captions(answer.text)
        events = [(*span, caption) for span, caption in zip(answer.response, captions, strict=False)]
    return [{"timestamp": [start_s, end_s], "caption": caption} for start_s, end_s, caption in events]


def to_original(answers: list[SavedAnswer], references: list[Record]) -> dict[str, Any]:
    """Files in the form of the released scorer: `{video: [{timestamp, caption}, ...]}`."""
    return {"predictions_timechat.json": {answer.id: _events(answer) for answer in answers}}


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """TimeChat's `{video: [{timestamp, caption}, ...]}`."""
    return [{"id": video, "events": events} for video, events in load_json(path).items()]


score = metric
