# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The factors of a factorised preference: each makes a worse response that is wrong in exactly one way.

Every factor is a pure function `(row, rng, distort) -> RejectedResponse`. `row` is a row with `completion`, `spans`,
`captions` (task `dense`), `answer` (task `qa`) and `duration`; `rng` makes every choice; `distort(text, rng)` returns
a caption or an answer that is false in one fact. A factor that a row does not allow raises `InfeasibleFactor`.

The paper (D2VLM, section 5) names the factors and gives no ranges; those below are this package's own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.grammar import format_dense, format_grounding, format_qa, normalize
from ..spans import iou_matrix

Distort = Callable[[str, np.random.Generator], str]
Row = dict[str, Any]

# A shift is a share of the event's length, and at least this far (or half the length, for events under 4 s).
SHIFT_SHARE = (0.3, 1.0)
MIN_SHIFT_S = 2.0
MAX_SHIFT_IOU = 0.5
MAX_ADD_IOU = 0.1
# An added event is as long as a true one, or shorter where the video is too full for that.
ADD_SCALES = (1.0, 0.8, 0.6, 0.4, 0.2)
# Places or texts that are tried before a factor gives up.
NUM_DRAWS = 64


class InfeasibleFactor(ValueError):
    """
    A row does not allow a factor, such as deleting the only event.

    Args:
        factor (`str`):
            Name of the factor.
        row_id (`str`):
            Name of the row.
        reason (`str`):
            Why it cannot be applied.
    """

    def __init__(self, factor: str, row_id: str, reason: str):
        super().__init__(factor, row_id, reason)
        self.factor = factor
        self.row_id = row_id
        self.reason = reason

    def __str__(self) -> str:
        return f"row {self.row_id!r}: no '{self.factor}': {self.reason}"


@dataclass(frozen=True)
class RejectedResponse:
    """
    A response that is worse than the row's own.

    Args:
        response (`str`):
            The whole text, evidence stage included.
        spans (`list[list[float]]`):
            `[start_s, end_s]` of each of its events.
        factor_args (`dict`):
            What was changed; JSON-able.
    """

    response: str
    spans: list[list[float]]
    factor_args: dict[str, Any]


def response_text(row: Row) -> str:
    """The text of a row's `completion`, whether its content is a string or a list of parts."""
    content = row["completion"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _spans(row: Row) -> list[list[float]]:
    return [list(span) for span in row["spans"]]


def _respond(row: Row, num_events: int, captions: Sequence[str], answer: str) -> str:
    if row["task"] == "dense":
        return format_dense(captions)
    return format_grounding(num_events) if row["task"] == "grounding" else format_qa(answer, num_events)


def _check(factor: str, row: Row, tasks: Sequence[str], min_events: int = 1) -> None:
    if row["task"] not in tasks:
        raise InfeasibleFactor(factor, row["id"], f"it does not apply to the task '{row['task']}'")
    if len(row["spans"]) < min_events:
        raise InfeasibleFactor(factor, row["id"], f"it needs {min_events} events, the row has {len(row['spans'])}")
    if row.get("response_spans"):
        raise InfeasibleFactor(factor, row["id"], "the response refers to other spans than its evidence stage")
    # The parts of a response are rebuilt, so they must be what the response is made of.
    if response_text(row) != _respond(row, len(row["spans"]), row["captions"], row["answer"]):
        raise ValueError(
            f"row {row['id']!r}: the completion is not what `trl_temporal.data.grammar` makes of the row's captions, "
            f"answer and number of spans; write it with those functions"
        )


def _draw_indices(rng: np.random.Generator, num_events: int, at_most: int) -> list[int]:
    """From 1 to `at_most` different events, in order."""
    size = int(rng.integers(1, at_most + 1))
    return sorted(rng.choice(num_events, size=size, replace=False).tolist())


def _distorted(factor: str, row: Row, text: str, rng: np.random.Generator, distort: Distort) -> str:
    for _ in range(NUM_DRAWS):
        false_text = distort(text, rng)
        if normalize(false_text) != normalize(text):
            return false_text
    raise InfeasibleFactor(factor, row["id"], f"`distort` returned {text!r} unchanged {NUM_DRAWS} times")


def shift(row: Row, rng: np.random.Generator, distort: Distort) -> RejectedResponse:
    """Move up to half of the events, at least one, away from where any true event of the row is; the text stays."""
    _check("shift", row, ("dense", "grounding", "qa"))
    spans, duration_s = _spans(row), row["duration"]
    indices = _draw_indices(rng, len(spans), math.ceil(len(spans) / 2))
    moved = []
    for i in indices:
        start_s, end_s = spans[i]
        length_s = end_s - start_s
        # All draws at once, the first good one counts.
        deltas_s = np.maximum(rng.uniform(*SHIFT_SHARE, NUM_DRAWS) * length_s, min(MIN_SHIFT_S, length_s / 2))
        starts_s = start_s + deltas_s * rng.choice([-1, 1], NUM_DRAWS)
        starts_s = np.clip(starts_s, 0, max(0, duration_s - length_s))
        candidates = np.stack([starts_s, np.minimum(starts_s + length_s, duration_s)], axis=1)
        good = (iou_matrix(candidates, row["spans"]) < MAX_SHIFT_IOU).all(axis=1)
        if not good.any():
            reason = f"event {i} has no place with IoU under {MAX_SHIFT_IOU} with every true event"
            raise InfeasibleFactor("shift", row["id"], reason)
        spans[i] = candidates[good.argmax()].tolist()
        moved.append({"event": i, "delta_s": spans[i][0] - start_s})
    return RejectedResponse(response_text(row), spans, {"shifted": moved})


def add(row: Row, rng: np.random.Generator, distort: Distort) -> RejectedResponse:
    """Report an event that is not there, in its place in time; in a dense row with a neighbour's falsified caption."""
    _check("add", row, ("dense", "grounding"))
    spans, captions = _spans(row), list(row["captions"])
    start_s, end_s = spans[rng.integers(len(spans))]
    false_span = None
    for scale in ADD_SCALES:
        length_s = (end_s - start_s) * scale
        if length_s > row["duration"]:
            continue
        starts_s = rng.uniform(0, row["duration"] - length_s, NUM_DRAWS)
        candidates = np.stack([starts_s, np.minimum(starts_s + length_s, row["duration"])], axis=1)
        good = (iou_matrix(candidates, spans) < MAX_ADD_IOU).all(axis=1)
        if good.any():
            false_span = candidates[good.argmax()].tolist()
            break
    if false_span is None:
        reason = f"the video has no place with IoU under {MAX_ADD_IOU} with every true event"
        raise InfeasibleFactor("add", row["id"], reason)

    position = sum(span[0] <= false_span[0] for span in spans)
    factor_args: dict[str, Any] = {"event": position, "span": false_span}
    if row["task"] == "dense":
        neighbour = int(np.clip(position - rng.integers(2), 0, len(spans) - 1))
        caption = _distorted("add", row, captions[neighbour], rng, distort)
        captions.insert(position, caption)
        factor_args |= {"neighbour": neighbour, "caption": caption}
    spans.insert(position, false_span)
    return RejectedResponse(_respond(row, len(spans), captions, ""), spans, factor_args)


def delete(row: Row, rng: np.random.Generator, distort: Distort) -> RejectedResponse:
    """Leave out up to half of the events, at least one."""
    _check("delete", row, ("dense", "grounding"), min_events=2)
    spans = _spans(row)
    deleted = _draw_indices(rng, len(spans), len(spans) // 2)
    kept = [i for i in range(len(spans)) if i not in deleted]
    captions = [row["captions"][i] for i in kept] if row["task"] == "dense" else []
    return RejectedResponse(_respond(row, len(kept), captions, ""), [spans[i] for i in kept], {"deleted": deleted})


def merge(row: Row, rng: np.random.Generator, distort: Distort) -> RejectedResponse:
    """Report two adjacent events as one, from the first's start to the second's end, with one of their captions."""
    _check("merge", row, ("dense", "grounding"), min_events=2)
    spans, captions = _spans(row), list(row["captions"])
    gaps_s = np.array([max(0, after[0] - before[1]) for before, after in zip(spans[:-1], spans[1:], strict=True)])
    # Near events are merged more often: theirs is the boundary that blurs.
    weights = 1 / (0.5 + gaps_s)
    first = int(rng.choice(len(gaps_s), p=weights / weights.sum()))
    pair = spans[first : first + 2]
    spans[first : first + 2] = [[min(span[0] for span in pair), max(span[1] for span in pair)]]
    factor_args: dict[str, Any] = {"merged": [first, first + 1]}
    if row["task"] == "dense":
        kept = first + int(rng.integers(2))
        captions[first : first + 2] = [captions[kept]]
        factor_args["kept_caption"] = kept
    return RejectedResponse(_respond(row, len(spans), captions, ""), spans, factor_args)


def distort_text(row: Row, rng: np.random.Generator, distort: Distort) -> RejectedResponse:
    """Falsify the answer, or up to half of the captions, at least one; the spans stay."""
    _check("distort", row, ("dense", "qa"))
    captions, answer = list(row["captions"]), row["answer"]
    if row["task"] == "qa":
        answer = _distorted("distort", row, answer, rng, distort)
        changed = [{"from": row["answer"], "to": answer}]
    else:
        changed = []
        for i in _draw_indices(rng, len(captions), math.ceil(len(captions) / 2)):
            captions[i] = _distorted("distort", row, captions[i], rng, distort)
            changed.append({"event": i, "from": row["captions"][i], "to": captions[i]})
    return RejectedResponse(_respond(row, len(row["spans"]), captions, answer), _spans(row), {"distorted": changed})


def repeat(row: Row, rng: np.random.Generator, distort: Distort) -> RejectedResponse:
    """Give an event the caption of the event before it; the spans stay."""
    _check("repeat", row, ("dense",), min_events=2)
    captions = list(row["captions"])
    candidates = [i for i in range(1, len(captions)) if normalize(captions[i]) != normalize(captions[i - 1])]
    if not candidates:
        raise InfeasibleFactor("repeat", row["id"], "every caption is equal to the one before it")
    event = candidates[rng.integers(len(candidates))]
    captions[event] = captions[event - 1]
    return RejectedResponse(format_dense(captions), _spans(row), {"event": event})


Factor = Callable[[Row, np.random.Generator, Distort], RejectedResponse]
TEMPORAL_FACTORS: dict[str, Factor] = {"shift": shift, "add": add, "delete": delete, "merge": merge}
TEXT_FACTORS: dict[str, Factor] = {"distort": distort_text, "repeat": repeat}
FACTORS: tuple[str, ...] = (*TEMPORAL_FACTORS, *TEXT_FACTORS)
