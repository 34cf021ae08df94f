# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Captions of dense answers, compared on events whose interval was found."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...data.grammar import normalize, parse_captions
from ...spans import iou_matrix
from .grounding import IOU_ROUNDING, Row, scored_spans, truth_spans

if TYPE_CHECKING:
    from ..generation import GroundedAnswer

MATCH_IOU = 0.5


def word_f1(truth: str, predicted: str) -> float:
    """
    F1 of two texts as bags of words.

    Args:
        truth (`str`):
            True text.
        predicted (`str`):
            Predicted text.

    Returns:
        `float`: 1 for equal bags, 0 for bags without a common word.

    Example:
        >>> from trl_temporal.evaluation.metrics.dense_caption import word_f1
        >>> word_f1("The red disc blinks", "The blue disc blinks.")
        0.75
    """
    truth_words, predicted_words = Counter(normalize(truth).split()), Counter(normalize(predicted).split())
    num_words = truth_words.total() + predicted_words.total()
    return 2 * (truth_words & predicted_words).total() / num_words if num_words else 1.0


def match_captions(row: Row, answer: "GroundedAnswer") -> list[tuple[str, str | None]]:
    """
    Pair every true event of a dense row with the answer's caption of the interval that overlaps it most.

    Args:
        row (`Mapping`):
            Row with `spans` and `captions`.
        answer (`GroundedAnswer`):
            Its answer.

    Returns:
        `list[tuple[str, str or None]]`: true and predicted caption of every event; the latter is `None` where no
        interval reaches an IoU of 0.5.
    """
    truth, captions = truth_spans(row), list(row["captions"])
    if len(truth) != len(captions):
        raise ValueError(
            f"row {row.get('id')!r} has {len(captions)} captions for {len(truth)} spans; give one caption per span"
        )
    predicted = scored_spans(answer)
    if not truth or not predicted:
        return [(caption, None) for caption in captions]
    predicted_captions = parse_captions(answer.text)
    iou = iou_matrix(truth, predicted)
    best = iou.argmax(axis=1)
    found = iou.max(axis=1) >= MATCH_IOU - IOU_ROUNDING
    return [
        (caption, predicted_captions[index] if is_found else None)
        for caption, index, is_found in zip(captions, best, found, strict=True)
    ]


def caption_scores(rows: Sequence[Row], answers: Sequence["GroundedAnswer"]) -> dict[str, np.ndarray]:
    """
    Caption counts of every dense row, to be summed over rows.

    Args:
        rows (`Sequence[Mapping]`):
            Dense rows with `spans` and `captions`.
        answers (`Sequence[GroundedAnswer]`):
            Their answers, in the same order.

    Returns:
        `dict[str, np.ndarray]`: arrays of shape `(rows,)`: `events` (true events), `matched` (those found at an IoU of
        0.5), `exact` (those whose caption is also right, word for word after normalisation) and `word_f1` (sum of the
        word F1 over the matched events).
    """
    scores = []
    for row, answer in zip(rows, answers, strict=True):
        pairs = match_captions(row, answer)
        matched = [(truth, predicted) for truth, predicted in pairs if predicted is not None]
        exact = sum(normalize(truth) == normalize(predicted) for truth, predicted in matched)
        scores.append((len(pairs), len(matched), exact, sum(word_f1(*pair) for pair in matched)))
    columns = np.array(scores, dtype=float).reshape(-1, 4).T
    return dict(zip(("events", "matched", "exact", "word_f1"), columns, strict=True))


def exchange_chance(texts_per_row: Sequence[Sequence[str]], kinds: Sequence[str] | None = None) -> float:
    """
    Exact match that answering with the text of another row reaches.

    This is the expected value of a permutation baseline over all permutations, so it needs no seed.

    Args:
        texts_per_row (`Sequence[Sequence[str]]`):
            True texts (captions, or one answer) of every row.
        kinds (`Sequence[str]`, *optional*):
            Kind of every row: texts are exchanged among the rows of one kind. By default all rows are of one kind.

    Returns:
        `float`: probability that a text equals one drawn from the other rows; 0 when there is no other row.

    Example:
        >>> from trl_temporal.evaluation.metrics.dense_caption import exchange_chance
        >>> exchange_chance([["yes"], ["yes"], ["no"]])  # mean of 1/2, 1/2 and 0
        0.3333333333333333
    """
    rows_of_kind = defaultdict(list)
    for texts, kind in zip(texts_per_row, kinds or [""] * len(texts_per_row), strict=True):
        rows_of_kind[kind].append(Counter(normalize(text) for text in texts))
    num_texts = 0
    expected_hits = 0.0
    for rows in rows_of_kind.values():
        totals = sum(rows, Counter())
        num_texts += totals.total()
        for row in rows:
            num_others = totals.total() - row.total()
            if num_others:
                expected_hits += sum(count * (totals[text] - count) for text, count in row.items()) / num_others
    return expected_hits / num_texts if num_texts else 0.0
