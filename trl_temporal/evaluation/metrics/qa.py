# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Answers in words, and the evidence that goes with them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...data.grammar import normalize, parse_answer
from .grounding import Row, interval_f1, scored_spans, truth_spans

if TYPE_CHECKING:
    from ..generation import GroundedAnswer


def question_text(row: Row) -> str:
    """
    The question of a row.

    Args:
        row (`Mapping`):
            Row with `prompt`.

    Returns:
        `str`: the text parts of the user's last turn.
    """
    content = [message for message in row["prompt"] if message["role"] == "user"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def question_kind(row: Row) -> str:
    """
    Kind of a question: its first two words (`"what does"`, `"which object"`), which decide what an answer looks like.

    Args:
        row (`Mapping`):
            Row with `prompt`.

    Returns:
        `str`: the two words after normalisation.
    """
    return " ".join(normalize(question_text(row)).split()[:2])


def qa_scores(rows: Sequence[Row], answers: Sequence["GroundedAnswer"]) -> dict[str, np.ndarray]:
    """
    Scores of every question-answering row.

    Args:
        rows (`Sequence[Mapping]`):
            Rows with `answer` and `spans`.
        answers (`Sequence[GroundedAnswer]`):
            Their answers, in the same order.

    Returns:
        `dict[str, np.ndarray]`: arrays of shape `(rows,)`: `exact_match` (1 where the words are right after
        normalisation, whatever the evidence) and `evidence_f1` (F1 of the response's intervals, mean over the
        thresholds).
    """
    pairs = list(zip(rows, answers, strict=True))
    exact = [normalize(parse_answer(answer.text)) == normalize(row["answer"]) for row, answer in pairs]
    evidence_f1 = [interval_f1(truth_spans(row), scored_spans(answer)).mean() for row, answer in pairs]
    return {"exact_match": np.array(exact, dtype=float), "evidence_f1": np.array(evidence_f1, dtype=float)}
