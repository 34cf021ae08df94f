# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""NExT-GQA: a question with five answers, and the segments that show the right one."""

import csv
import os
from pathlib import Path
from typing import Any

from ...data.converters.templates import lettered
from ..metrics.choices import read_choice
from ..metrics.nextgqa import nextgqa as metric
from ..metrics.nextgqa import nextgqa_references
from ..run_folder import SavedAnswer
from .common import Record, answer_spans, evaluation_row, load_json, span_prediction

TITLE = "NExT-GQA"
FILES = ("test.csv", "val.csv", "nextgqa_*.csv")
SCORERS = ()
ORIGINAL_NAMES = {}
PROMPTS = {
    "evidence": {"qa": "{question}\n{options}\nWhich answer is right, and which part of the video shows it?"},
    "text": {
        "qa": "{question}\n{options}\nAnswer with the letter of the right option, and with the start and the end in "
        "seconds of the part of the video that shows it, in the form: (letter) start - end"
    },
}
NUM_OPTIONS = 5


def read_references(path: Path) -> list[dict[str, Any]]:
    """Questions of `test.csv` or `val.csv` with the segments of the `gsub_` file beside it."""
    head, _, split = path.stem.rpartition("_")
    segments_path = path.with_name(f"{head}_gsub_{split}.json" if head else f"gsub_{split}.json")
    if not segments_path.is_file():
        raise FileNotFoundError(f"{path}: there is no '{segments_path.name}' beside it. Put the segments there.")
    with open(path, encoding="utf-8-sig", newline="") as file:
        questions = {f"{line['video_id']}_{line['qid']}": line for line in csv.DictReader(file)}
    references = []
    for reference in nextgqa_references(load_json(segments_path)):
        line = questions.get(reference["id"])
        if line is None:
            raise ValueError(f"{path}: has no question {reference['id']}. Take both files of one split.")
        options = [line[f"a{index}"] for index in range(NUM_OPTIONS)]
        words = {"video": line["video_id"], "question": line["question"], "options": options}
        references.append({**reference, **words, "answer": options.index(line["answer"])})
    return references


def make_row(reference: Record, prompts: dict[str, str]) -> dict[str, Any]:
    """The row of a question."""
    question = reference["question"] + ("" if reference["question"].endswith(("?", ".", "!")) else "?")
    options = "\n".join(lettered(reference["options"]))
    return evaluation_row(
        id=reference["id"],
        source="nextgqa",
        task="qa",
        video=f"{reference['video']}.mp4",
        question=prompts["qa"].format(question=question, options=options),
        spans=reference["segments"],
        duration=reference["duration"],
    )


def to_prediction(answer: SavedAnswer, reference: Record) -> dict[str, Any]:
    """What the metric takes."""
    return {**span_prediction(answer), "choice": read_choice(answer.text, NUM_OPTIONS, reference["options"])}


def to_original(answers: list[SavedAnswer], references: list[Record]) -> dict[str, Any]:
    """The two files of the released scorer: intervals, and options by their numbers."""
    records = {reference["id"]: reference for reference in references}
    spans, choices = {}, {}
    for answer in answers:
        record = records[answer.id]
        if first := answer_spans(answer)[:1]:
            spans[answer.id] = first[0]
        choice = read_choice(answer.text, NUM_OPTIONS, record["options"])
        choices[answer.id] = {"answer": record["answer"], "prediction": choice}
    return {"predictions_ground.json": spans, "predictions_qa.json": choices}


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """`{video_question: [start_s, end_s]}`, with the choices in a file that has `qa` where this one has `ground`."""
    path = Path(path)
    spans = load_json(path)
    choices_path = path.with_name(path.name.replace("ground", "qa"))
    choices = load_json(choices_path) if choices_path != path and choices_path.is_file() else {}
    return [
        {"id": key, "spans": [span], **({"choice": choices[key]["prediction"]} if key in choices else {})}
        for key, span in spans.items()
    ]


score = metric
