# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""QVHighlights: all windows of a clip that match a query, and how salient its parts are."""

import os
from pathlib import Path
from typing import Any

from ..metrics.qvhighlights import qvhighlights as metric
from ..run_folder import SavedAnswer
from .common import Record, answer_spans, evaluation_row, line_records, span_prediction

TITLE = "QVHighlights"
FILES = ("highlight_val_release.jsonl", "*highlight*val*.jsonl")
SCORERS = ()
ORIGINAL_NAMES = {}
PROMPTS = {
    "evidence": {"grounding": 'When does this happen? "{event}" Name every time.'},
    "text": {
        "grounding": 'When does this happen in the video: "{event}"? Answer only with the start and the end in '
        "seconds of every time that it does, the best first, in the form: start - end, start - end"
    },
}


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records of the release with their `qid` as `id`."""
    return [{**record, "id": str(record["qid"])} for record in line_records(path, "qid")]


def make_row(reference: Record, prompts: dict[str, str]) -> dict[str, Any]:
    """The row of a record."""
    return evaluation_row(
        id=reference["id"],
        source="qvhighlights",
        task="grounding",
        video=f"{reference['vid']}.mp4",
        question=prompts["grounding"].format(event=reference["query"].strip().removesuffix(".").rstrip()),
        spans=reference["relevant_windows"],
        duration=reference["duration"],
    )


def to_prediction(answer: SavedAnswer, reference: Record) -> dict[str, Any]:
    """What the metric takes."""
    return span_prediction(answer)


def to_original(answers: list[SavedAnswer], references: list[Record]) -> dict[str, Any]:
    """A submission: the windows in the order of the text, all with the score 1, since words have none."""
    records = {reference["id"]: reference for reference in references}
    lines = []
    for answer in answers:
        record = records[answer.id]
        windows = [[start_s, end_s, 1.0] for start_s, end_s in answer_spans(answer)]
        fields = {name: record[name] for name in ("qid", "query", "vid")}
        lines.append({**fields, "pred_relevant_windows": windows})
    return {"predictions_submission.jsonl": lines}


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """A submission: lines `{qid, pred_relevant_windows, pred_saliency_scores}`."""
    names = {"pred_relevant_windows": "windows", "pred_saliency_scores": "saliency"}
    return [
        {"id": str(line["qid"]), **{ours: line[theirs] for theirs, ours in names.items() if theirs in line}}
        for line in line_records(path, "qid")
    ]


score = metric
