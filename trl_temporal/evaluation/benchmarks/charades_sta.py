# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Charades-STA: one sentence, one interval."""

import os
from pathlib import Path
from typing import Any

from ...data.converters.charades_sta import text_records
from ..metrics.charades_sta import charades_sta as metric
from ..run_folder import SavedAnswer
from .common import Record, answer_spans, evaluation_row, load_json, span_prediction

TITLE = "Charades-STA"
FILES = ("charades_sta_test.txt", "charades_sta_test*.json")
SCORERS = ("d2vlm", "etchat", "lmms_eval")
# What the original scorers call the numbers of the `fixed` scoring.
ORIGINAL_NAMES = {
    **{"IOU 0.3": "R1@0.3", "IOU 0.5": "R1@0.5", "IOU 0.7": "R1@0.7", "mIOU": "mIoU"},
    **{"R3": "R1@0.3", "R5": "R1@0.5", "R7": "R1@0.7"},
    **{"IOU@3": "R1@0.3", "IOU@5": "R1@0.5", "IOU@7": "R1@0.7"},
}
PROMPTS = {
    "evidence": {"grounding": 'When does this happen: "{event}"?'},
    "text": {
        "grounding": 'When does this happen in the video: "{event}"? Answer only with its start and its end in '
        "seconds, in the form: start - end"
    },
}


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records `{id, image_id, caption, timestamp}` of the original text file or TimeChat's JSON."""
    if path.suffix == ".json":
        records = load_json(path)["annotations"]
    else:
        records = [record.data for record in text_records(path)]
        for number, record in enumerate(records, start=1):
            if isinstance(record, Exception):
                raise ValueError(f"{path}, line {number}: {record}")
    return [{**record, "id": str(record.get("id", index))} for index, record in enumerate(records)]


def make_row(reference: Record, prompts: dict[str, str]) -> dict[str, Any]:
    """The row of a record."""
    event = reference["caption"].strip().removesuffix(".").rstrip()
    return evaluation_row(
        id=reference["id"],
        source="charades_sta",
        task="grounding",
        video=reference["image_id"],
        question=prompts["grounding"].format(event=event),
        spans=[reference["timestamp"]],
    )


def to_prediction(answer: SavedAnswer, reference: Record) -> dict[str, Any]:
    """What the metric takes."""
    return span_prediction(answer)


def to_original(answers: list[SavedAnswer], references: list[Record]) -> dict[str, Any]:
    """The form of TimeChat's scorer, which D2VLM uses: `{id: {timestamp, vid, query}}`, `[]` without an interval."""
    records = {reference["id"]: reference for reference in references}
    content: dict[str, Any] = {}
    for answer in answers:
        record, first = records[answer.id], answer_spans(answer)[:1]
        names = {"vid": record["image_id"], "query": record["caption"]}
        content[answer.id] = {"timestamp": list(first[0]), **names} if first else []
    return {"predictions_timechat.json": content}


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """TimeChat's `{id: {timestamp, ...}}`, or E.T. Chat's list of samples `{idx, a}`."""
    content = load_json(path)
    if isinstance(content, dict):
        return [{"id": key, "spans": [value["timestamp"]] if value else []} for key, value in content.items()]
    return [{"id": str(sample["idx"]), "text": sample["a"]} for sample in content]


score = metric
