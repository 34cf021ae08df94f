# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""DiDeMo: one description, marked by several annotators in pieces of five seconds."""

import os
from pathlib import Path
from typing import Any

from ..metrics.didemo import didemo as metric
from ..run_folder import SavedAnswer
from .common import Record, evaluation_row, list_records, load_json, span_prediction

TITLE = "DiDeMo"
FILES = ("test_data.json", "val_data.json")
SCORERS = ()
ORIGINAL_NAMES = {"rank1": "Rank@1", "rank5": "Rank@5", "miou": "mIoU"}
PROMPTS = {
    "evidence": {"grounding": 'When does this happen: "{event}"?'},
    "text": {
        "grounding": 'When does this happen in the video: "{event}"? Answer only with its start and its end in '
        "seconds, in the form: start - end"
    },
}
PIECE_S = 5.0


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records `{annotation_id, video, description, times}` with their `id`."""
    records = list_records(path, "times")
    return [{**record, "id": str(record.get("annotation_id", index))} for index, record in enumerate(records)]


def make_row(reference: Record, prompts: dict[str, str]) -> dict[str, Any]:
    """The row of a record; its truth is the first annotator's, for the analysis."""
    first, last = reference["times"][0]
    event = reference["description"].strip().removesuffix(".").rstrip()
    return evaluation_row(
        id=reference["id"],
        source="didemo",
        task="grounding",
        video=reference["video"],
        question=prompts["grounding"].format(event=event),
        spans=[[first * PIECE_S, (last + 1) * PIECE_S]],
    )


def to_prediction(answer: SavedAnswer, reference: Record) -> dict[str, Any]:
    """What the metric takes."""
    return span_prediction(answer)


def to_original(answers: list[SavedAnswer], references: list[Record]) -> dict[str, Any]:
    """Nothing: the official scorer wants a ranking of 21 segments, which an answer in words does not have."""
    return {}


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """The official form: ranked segments of every record, a list in the order of the annotations."""
    rankings = load_json(path)
    if len(rankings) != len(references):
        raise ValueError(f"{path}: ranks {len(rankings)} records, but the annotations have {len(references)}.")
    return [{"id": record["id"], "segments": segments} for record, segments in zip(references, rankings, strict=True)]


score = metric
