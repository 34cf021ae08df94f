# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Anybody's rows: a data set in the contract of `trl_temporal.data.schema`, with grounding, dense and QA tasks."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.grammar import EVI
from ...data.schema import validate_row
from ...spans import Span
from ..evaluator import evaluate_answers
from ..generation import GroundedAnswer
from ..metrics.dense_text import read_events
from ..metrics.grounding import truth_spans
from ..metrics.scores import Problem, Scores, match_predictions
from ..metrics.spans_metric import span_scores
from ..metrics.time_text import check_spans, split_at_spans
from ..run_folder import SavedAnswer
from ..table import BASELINES
from .common import Record, line_records

TITLE = "Rows"
FILES = ()
SCORERS = ()
ORIGINAL_NAMES = {}
PROMPTS = {
    "evidence": {task: "{question}" for task in ("grounding", "dense", "qa")},
    "text": {
        "grounding": "{question} Answer only with the start and the end in seconds of every such event, in the form: "
        "start - end, start - end",
        "dense": "{question} Write one line for each event, with its start and its end in seconds, in the form: "
        "start - end, description",
        "qa": "{question} Answer in a few words.",
    },
}
POINT_S = 1e-6
COUNTS = ("stage_mismatch", "malformed")  # the other metrics are shares


def as_references(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """
    Rows as references.

    Raises:
        RowError: if a row breaks the contract; the message names it.
        ValueError: if a row has no id.
    """
    references = []
    for index, row in enumerate(rows):
        row = dict(row)
        if not row.get("id"):
            raise ValueError(f"row {index} has no id; give every row one, by which its answer is found")
        validate_row(row, kind="sft")
        references.append(row)
    return references


def make_row(reference: Record, prompts: dict[str, str]) -> dict[str, Any]:
    """The row with its question in the wording of its task."""
    wording = prompts[reference["task"]]
    if wording == "{question}":
        return dict(reference)
    messages = [dict(message) for message in reference["prompt"]]
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = wording.format(question=content)
    else:
        last = max(index for index, part in enumerate(content) if part["type"] == "text")
        parts = [dict(part) for part in content]
        parts[last]["text"] = wording.format(question=parts[last]["text"])
        messages[-1]["content"] = parts
    return {**reference, "prompt": messages}


def to_prediction(answer: SavedAnswer, reference: Record) -> dict[str, Any]:
    """What [`score`] takes."""
    if answer.response is None:
        return {"id": answer.id, "text": answer.text}
    return {"id": answer.id, "text": answer.text, "evidence": answer.evidence, "response": answer.response}


def to_original(answers: list[SavedAnswer], references: list[Record]) -> dict[str, Any]:
    """Nothing: our own form is the original one here."""
    return {}


def read_predictions(path: str | os.PathLike, references: list[Record]) -> list[dict[str, Any]]:
    """Lines `{id, text}`, with times in the text, or with `<evi>` and `response`."""
    return line_records(path, "id")


def score(predictions: Sequence[Mapping[str, Any]], references: Sequence[Record], *, scoring: str = "fixed") -> Scores:
    """
    Scores of rows of the data contract, as percentages.

    Args:
        predictions (`Sequence[Mapping]`):
            `{"id", "text"}` with times in words, or `{"id", "text", "response", "evidence"}` with `<evi>` in the text
            and its intervals in seconds.
        references (`Sequence[Mapping]`):
            Rows with `task`, and the columns of that task.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            There is no other one.

    Returns:
        [`~trl_temporal.evaluation.metrics.scores.Scores`]: the metrics of
        [`~trl_temporal.evaluation.evaluator.evaluate_answers`], its baselines under `details["baselines"]`, and for
        grounding rows also `R1@0.3`, `R1@0.5`, `R1@0.7` and `mIoU` of
        [`~trl_temporal.evaluation.metrics.spans_metric.span_scores`].
    """
    if scoring != "fixed":
        raise ValueError(f"scoring is {scoring!r}, but rows of one's own have no original scorer; use 'fixed'")
    problems: list[Problem] = []
    ids = [str(reference["id"]) for reference in references]
    matched = match_predictions(ids, predictions, problems)
    answers = [
        _answer(prediction, reference, problems) for prediction, reference in zip(matched, references, strict=True)
    ]
    result = evaluate_answers(references, answers)
    metrics = {name: value if name in COUNTS else 100 * value for name, value in result.metrics.items()}

    grounding = [index for index, row in enumerate(references) if row["task"] == "grounding"]
    if grounding:
        truths = [{**references[i], "spans": truth_spans(references[i])} for i in grounding]
        spans = [{"id": ids[i], "spans": list(map(list, answers[i].response))} for i in grounding]
        first = span_scores(spans, truths).metrics
        metrics |= {f"grounding_{name}": first[name] for name in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")}
    baselines: dict[str, dict[str, float]] = {}
    for title, suffix in BASELINES.items():
        names = [name for name in metrics if name.endswith(f"_{suffix}")]
        if names:
            baselines[title] = {name.removesuffix(f"_{suffix}"): metrics.pop(name) for name in names}
    return Scores(metrics, problems, len(references), {"baselines": baselines})


def _answer(prediction: Mapping[str, Any] | None, reference: Record, problems: list[Problem]) -> GroundedAnswer:
    text = str((prediction or {}).get("text") or "")
    evidence = _spans((prediction or {}).get("evidence") or [], reference, problems)
    if prediction is not None and not text:
        problems.append(Problem(str(reference["id"]), "empty"))
    if (prediction or {}).get("response") is not None or EVI in text:
        response = _spans((prediction or {}).get("response") or [], reference, problems)
    elif reference["task"] == "dense":
        events = read_events(text).events
        response = _spans([event[:2] for event in events], reference, problems)
        text = " ".join(f"{EVI} {caption}" for _, _, caption in events)
    else:
        parts = split_at_spans(text)
        response = _spans([span for span, _ in parts if span is not None], reference, problems)
        if response:  # without an interval, the words stay as they are
            text = "".join((EVI if span is not None else "") + words for span, words in parts)
    none = np.zeros((0, 0))
    return GroundedAnswer(text, evidence, response, none, np.zeros(0), float(reference.get("duration") or 0.0))


def _spans(given: Sequence[Sequence[float]], reference: Record, problems: list[Problem]) -> list[Span]:
    read = check_spans(list(given))
    problems.extend(Problem(str(reference["id"]), kind, detail) for kind, detail in read.problems)
    # A point has no length, which a span must have: the shortest one at its place overlaps as little.
    return [Span(start_s, max(end_s, start_s + POINT_S)) for start_s, end_s in read.spans]
