# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Bench: twelve tasks about events."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from ...data.converters.et_times import TASK_OF, convert_question
from ...data.converters.templates import lettered
from ..metrics.etbench import etbench as metric
from ..metrics.etbench import etbench_id
from ..run_folder import SavedAnswer
from .common import Record, answer_text, evaluation_row, list_records, span_prediction

TITLE = "E.T. Bench"
FILES = ("etbench_vid_v1.0.json", "etbench_txt_v1.0.json")
SCORERS = ("d2vlm", "etchat", "etchat_strict_rvq", "d2vlm_looser")
ORIGINAL_NAMES = {}
# The samples bring their questions. What they ask for as the form of an answer is left out: a model with evidence
# tokens has its own, and for the others it is said here.
PROMPTS = {
    "evidence": {task: "{question}" for task in ("grounding", "dense", "qa", "grounded_qa", "moment")},
    "text": {
        "grounding": "{question} Answer only with the start and the end in seconds of every such event, in the form: "
        "start - end, start - end",
        "moment": "{question} Answer only with the second at which it is best seen, in the form: start - end",
        "dense": "{question} Write one line for each event, with its start and its end in seconds, in the form: "
        "start - end, description",
        "qa": "{question}\nAnswer only with the letter of the right option, in the form: (letter)",
        "grounded_qa": "{question}\nAnswer with the letter of the right option, and with the start and the end in "
        "seconds of the part of the video that shows it, in the form: (letter) start - end",
    },
}
_PROMPT_OF = {"gvq": "grounded_qa", "vhd": "moment"}


def read_references(path: Path) -> list[dict[str, Any]]:
    """Records of the release, with their `id`."""
    return [{**record, "id": etbench_id(record)} for record in _samples(path, "task")]


def _samples(path: Path, key: str) -> list[dict[str, Any]]:
    """Those of a file, or of all files of a folder: the release writes one for each process."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [sample for file in files for sample in list_records(file, key)]


def make_row(reference: Record, prompts: dict[str, str]) -> dict[str, Any]:
    """The row of a sample."""
    task = TASK_OF[reference["task"]]
    question, prompt_spans = convert_question(reference["q"], reference.get("src"), reference["duration"], Counter())
    options = [
        " - ".join(map(str, option)) if isinstance(option, list) else option for option in reference.get("o") or []
    ]
    if not all(option in question for option in options):
        question = "\n".join([question, *lettered(options)])
    prompt = prompts[_PROMPT_OF.get(reference["task"], task)]
    return evaluation_row(
        id=reference["id"],
        source=f"etbench/{reference['task']}/{reference['source']}",
        task=task,
        video=reference["video"],
        question=prompt.format(question=question),
        spans=_pairs(reference.get("tgt")),
        duration=reference["duration"],
        prompt_spans=prompt_spans,
    )


def _pairs(tgt: Any) -> list[list[float]]:
    """`tgt` is one pair, a list of pairs, or (vhd) a list of the annotators' lists of pairs."""
    if not tgt:
        return []
    if not isinstance(tgt[0], list):
        return [tgt]
    return [pair for entry in tgt for pair in (entry if isinstance(entry[0], list) else [entry])]


def to_prediction(answer: SavedAnswer, reference: Record) -> dict[str, Any]:
    """What the metric takes. Captions are read from the text, where each stands behind its interval."""
    if TASK_OF[reference["task"]] == "grounding":
        return span_prediction(answer)
    return {"id": answer.id, "text": answer_text(answer)}


def to_original(answers: list[SavedAnswer], references: list[Record]) -> dict[str, Any]:
    """The form of the release: the samples with the answer under `a`."""
    records = {reference["id"]: reference for reference in references}
    samples = []
    for answer in answers:
        sample = {key: value for key, value in records[answer.id].items() if key != "id"}
        samples.append({**sample, "a": answer_text(answer)})
    return {"predictions_etbench.json": samples}


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """The form of the release: samples with the answer under `a`, a file or a folder of them."""
    return _samples(Path(path), "a")


score = metric
