# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The factors of a factorised preference: each makes a response that is wrong in exactly one way.

A factor is a pure function `(spans, captions, rng, duration_s) -> Change`. `rng` makes every choice, the input is not
changed, and where a factor cannot be applied it raises [`InfeasibleFactor`]. Where there is a place at all, it is
found: places are drawn from the exact set of allowed ones, not by trial. `captions` is empty where events have none of
their own. Texts to falsify are only named (`Change.falsify`), because a language model falsifies many at a time.

The paper (D2VLM, section 5) names the factors and gives no ranges; those below are this package's own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.grammar import EVI, EVI_END, normalize

Interval = Sequence[float]  # [start_s, end_s]

TEMPORAL_FACTORS = ("shift", "add", "delete", "merge")
TEXT_FACTORS = ("distort", "repeat")
FACTORS = TEMPORAL_FACTORS + TEXT_FACTORS

# A shift is at most the event's length, and at least this far, so that it is seen at one frame a second.
MIN_SHIFT_S = 2.0
MAX_SHIFT_IOU = 0.5
HARD_SHIFT_S = (1.0, 2.0)
# An added event is as long as a true one, or shorter where the video is too full for that.
ADD_SCALES = (1.0, 0.8, 0.6, 0.4, 0.2)
MAX_ADD_IOU = 0.1
# New times are whole milliseconds. Bounds are kept with this margin, so that rounding does not pass them.
DECIMALS = 3
MARGIN_S = 0.002
# Shorter events are moments: there is nothing to move, and no length for an added one.
MIN_EVENT_S = 0.01


class InfeasibleFactor(ValueError):
    """
    A row does not allow a factor, such as deleting the only event.

    Args:
        factor (`str`):
            Name of the factor.
        reason (`str`):
            Why it cannot be applied.
        row_id (`str`, *optional*):
            Name of the row.
    """

    def __init__(self, factor: str, reason: str, row_id: str | None = None):
        super().__init__(factor, reason, row_id)  # all of them, or the error could not leave a worker process
        self.factor, self.reason, self.row_id = factor, reason, row_id

    def __str__(self) -> str:
        row = "" if self.row_id is None else f"row {self.row_id!r}: "
        return f"{row}no '{self.factor}': {self.reason}"


@dataclass(frozen=True)
class Change:
    """
    The events of a rejected response.

    Args:
        spans (`list[list[float]]`):
            `[start_s, end_s]` of each event.
        captions (`list[str]`):
            Caption of each event; empty where the events have none.
        factor_args (`dict`):
            What was changed; JSON-able.
        falsify (`list[int]`, *optional*):
            Captions that are still to be falsified.
    """

    spans: list[list[float]]
    captions: list[str]
    factor_args: dict[str, Any]
    falsify: list[int] = field(default_factory=list)


def shift(
    spans: Sequence[Interval],
    captions: Sequence[str],
    rng: np.random.Generator,
    duration_s: float,
    *,
    hard: bool = False,
) -> Change:
    """
    Move up to half of the events, at least one; their lengths, their order and the text stay.

    A moved event has an IoU under 0.5 with every true one and is moved by at least 2 s and at most its own length (or
    4 s, for shorter events).

    Args:
        spans (`Sequence` of `[start_s, end_s]`):
            Spans of the response's events.
        captions (`Sequence[str]`):
            Caption of each event, or nothing.
        rng (`np.random.Generator`):
            Makes every choice.
        duration_s (`float`):
            Duration of the video.
        hard (`bool`, *optional*, defaults to `False`):
            Move by 1 to 2 s instead, whatever the IoU is then: hard negatives.

    Returns:
        [`Change`]: `factor_args` is `{"shifted": [{"event", "delta_s"}, ...]}`.

    Raises:
        [`InfeasibleFactor`]: no event has such a place.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.factors import shift
        >>> shift([[4.0, 8.0]], [], np.random.default_rng(0), 20.0).spans
        [[6.54, 10.54]]
    """
    _need_events("shift", spans, 1)
    new = [list(span) for span in spans]
    num_moved = int(rng.integers(1, math.ceil(len(spans) / 2) + 1))
    moved = []
    for i in _permuted(rng, len(spans)):
        start_s, end_s = spans[i]
        if places := _shift_places(spans, new, i, duration_s, hard):
            new[i] = _place(_draw_place(rng, places), end_s - start_s, duration_s)
            moved.append({"event": i, "delta_s": round(new[i][0] - start_s, DECIMALS)})
        if len(moved) == num_moved:
            break
    if not moved:
        raise InfeasibleFactor("shift", _no_shift(hard))
    return Change(new, list(captions), {"shifted": sorted(moved, key=lambda move: move["event"])})


def add(
    spans: Sequence[Interval],
    captions: Sequence[str],
    rng: np.random.Generator,
    duration_s: float,
    *,
    all_spans: Sequence[Interval] = (),
) -> Change:
    """
    Report an event that is not there, in its place in time, with the caption of a neighbour, which is to be falsified.

    It is as long as one of the true events, or shorter where the video is too full. It has an IoU under 0.1 with every
    event of the video, and covers less than a tenth of any event of the response and the other way round.

    Args:
        spans (`Sequence` of `[start_s, end_s]`):
            Spans of the response's events.
        captions (`Sequence[str]`):
            Caption of each event, or nothing.
        rng (`np.random.Generator`):
            Makes every choice.
        duration_s (`float`):
            Duration of the video.
        all_spans (`Sequence` of `[start_s, end_s]`, *optional*):
            Other events of the video.

    Returns:
        [`Change`]: `factor_args` is `{"event", "span"}`, with `"neighbour"` where there are captions.

    Raises:
        [`InfeasibleFactor`]: the video has no such place.
    """
    _need_events("add", spans, 1)
    for i in _permuted(rng, len(spans)):
        length_s, places = _add_places(spans, i, duration_s, all_spans)
        if places:
            break
    else:
        raise InfeasibleFactor("add", NO_ADD)
    false_span = _place(_draw_place(rng, places), length_s, duration_s)
    position = sum(span[0] <= false_span[0] for span in spans)
    new_spans, new_captions = [list(span) for span in spans], list(captions)
    new_spans.insert(position, false_span)
    factor_args: dict[str, Any] = {"event": position, "span": false_span}
    if captions:
        neighbour = min(max(position - int(rng.integers(2)), 0), len(spans) - 1)
        new_captions.insert(position, captions[neighbour])
        factor_args["neighbour"] = neighbour
    return Change(new_spans, new_captions, factor_args, falsify=[position] if captions else [])


def delete(spans: Sequence[Interval], captions: Sequence[str], rng: np.random.Generator, duration_s: float) -> Change:
    """
    Leave out up to half of the events, at least one; never all. See [`shift`] for the arguments.

    Returns:
        [`Change`]: `factor_args` is `{"deleted": [event, ...]}`.
    """
    _need_events("delete", spans, 2)
    deleted = _draw_events(rng, len(spans), len(spans) // 2)
    kept = [i for i in range(len(spans)) if i not in deleted]
    return Change([list(spans[i]) for i in kept], [captions[i] for i in kept if captions], {"deleted": deleted})


def merge(spans: Sequence[Interval], captions: Sequence[str], rng: np.random.Generator, duration_s: float) -> Change:
    """
    Report two adjacent events as one, from the first's start to the second's end, with one of their captions.

    The nearer two events are, the likelier they are merged: theirs is the boundary that blurs. See [`shift`] for the
    arguments.

    Returns:
        [`Change`]: `factor_args` is `{"merged": [event, event + 1]}`, with `"kept_caption"` where there are captions.
    """
    _need_events("merge", spans, 2)
    likeliness = [1 / (0.5 + max(0.0, after[0] - before[1])) for before, after in zip(spans, spans[1:], strict=False)]
    first = _draw_weighted(rng, likeliness)
    new_spans, new_captions = [list(span) for span in spans], list(captions)
    pair = spans[first : first + 2]
    new_spans[first : first + 2] = [[min(span[0] for span in pair), max(span[1] for span in pair)]]
    factor_args: dict[str, Any] = {"merged": [first, first + 1]}
    if captions:
        kept = first + int(rng.integers(2))
        new_captions[first : first + 2] = [captions[kept]]
        factor_args["kept_caption"] = kept
    return Change(new_spans, new_captions, factor_args)


def distort(spans: Sequence[Interval], captions: Sequence[str], rng: np.random.Generator, duration_s: float) -> Change:
    """
    Choose up to half of the texts, at least one, to be falsified; the spans stay. See [`shift`] for the arguments.

    Args:
        captions (`Sequence[str]`):
            Caption of each event, or the one answer of a question.

    Returns:
        [`Change`]: what to falsify. Who does it fills `factor_args`.
    """
    if not captions:
        raise InfeasibleFactor("distort", NO_TEXT)
    chosen = _draw_events(rng, len(captions), math.ceil(len(captions) / 2))
    return Change([list(span) for span in spans], list(captions), {}, falsify=chosen)


def repeat(spans: Sequence[Interval], captions: Sequence[str], rng: np.random.Generator, duration_s: float) -> Change:
    """
    Give an event the caption of the event before it; the spans stay. See [`shift`] for the arguments.

    Returns:
        [`Change`]: `factor_args` is `{"event": event}`.
    """
    _need_events("repeat", captions, 2)
    words = [normalize(caption) for caption in captions]
    candidates = [i for i in range(1, len(captions)) if words[i] != words[i - 1]]
    if not candidates:
        raise InfeasibleFactor("repeat", NO_REPEAT)
    event = candidates[int(rng.integers(len(candidates)))]
    new_captions = list(captions)
    new_captions[event] = captions[event - 1]
    return Change([list(span) for span in spans], new_captions, {"event": event})


FACTOR_FUNCTIONS: dict[str, Callable[..., Change]] = {
    "shift": shift,
    "add": add,
    "delete": delete,
    "merge": merge,
    "distort": distort,
    "repeat": repeat,
}

NO_ADD = f"the video has no place with IoU under {MAX_ADD_IOU} with every true event"
NO_TEXT = "the row has neither captions nor an answer"
NO_REPEAT = "every caption is equal to the one before it"


def _no_shift(hard: bool) -> str:
    if hard:
        return f"no event has a place {HARD_SHIFT_S[0]:g} to {HARD_SHIFT_S[1]:g} s away"
    return f"no event has a place with IoU under {MAX_SHIFT_IOU} with every true event"


def why_not(
    factor: str,
    spans: Sequence[Interval],
    captions: Sequence[str],
    duration_s: float,
    *,
    all_spans: Sequence[Interval] = (),
    hard: bool = False,
) -> str:
    """
    Say why a factor cannot be applied, without applying it: the reason that the factor's function would raise.

    Args:
        factor (`str`):
            Name of the factor.
        spans, captions, duration_s, all_spans, hard:
            As for the factors.

    Returns:
        `str`: the reason; empty if the factor can be applied.

    Example:
        >>> from trl_temporal.synthesis.factors import why_not
        >>> why_not("delete", [[4.0, 8.0]], [], 20.0)
        'it needs 2 events, the row has 1'
    """
    num_needed = {"shift": 1, "add": 1, "delete": 2, "merge": 2, "distort": 0, "repeat": 2}[factor]
    num_events = len(captions if factor == "repeat" else spans)
    if num_events < num_needed:
        return f"it needs {num_needed} events, the row has {num_events}"
    if factor == "shift" and not any(_shift_places(spans, spans, i, duration_s, hard) for i in range(num_events)):
        return _no_shift(hard)
    if factor == "add" and not any(_add_places(spans, i, duration_s, all_spans)[1] for i in range(num_events)):
        return NO_ADD
    if factor == "distort" and not captions:
        return NO_TEXT
    if factor == "repeat" and not any(_differ(*pair) for pair in zip(captions, captions[1:], strict=False)):
        return NO_REPEAT
    return ""


def is_false_version(text: str, source: str) -> bool:
    """
    Whether a text can stand for a falsified one: it says something, not what `source` says, and holds no marker.

    Args:
        text (`str`):
            The falsified text.
        source (`str`):
            The true one.
    """
    return EVI not in text and EVI_END not in text and normalize(text) not in ("", normalize(source))


def _need_events(factor: str, events: Sequence, at_least: int) -> None:
    if len(events) < at_least:
        raise InfeasibleFactor(factor, f"it needs {at_least} events, the row has {len(events)}")


def _differ(caption: str, other: str) -> bool:
    return caption != other and normalize(caption) != normalize(other)


# Drawing


def _permuted(rng: np.random.Generator, number: int) -> list[int]:
    return [0] if number == 1 else rng.permutation(number).tolist()


def _draw_events(rng: np.random.Generator, num_events: int, at_most: int) -> list[int]:
    """From 1 to `at_most` different events, in order."""
    size = int(rng.integers(1, at_most + 1))
    return sorted(_permuted(rng, num_events)[:size])


def _draw_weighted(rng: np.random.Generator, weights: Sequence[float]) -> int:
    point = rng.random() * sum(weights)
    for i, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return i
    return len(weights) - 1


# Places: lists of intervals that the start of an event may lie in


def _shift_places(
    spans: Sequence[Interval], others: Sequence[Interval], i: int, duration_s: float, hard: bool
) -> list[tuple[float, float]]:
    """Where event `i` may start instead. It stays behind the event before it in `others`, and before the next."""
    start_s, end_s = spans[i]
    length_s = end_s - start_s
    if length_s < MIN_EVENT_S:
        return []
    low_s, high_s = 0.0, duration_s - length_s
    if i > 0 and others[i - 1][0] <= start_s:
        low_s = max(low_s, others[i - 1][0])
    if i + 1 < len(others) and others[i + 1][0] >= start_s:
        high_s = min(high_s, others[i + 1][0])
    near_s, far_s = HARD_SHIFT_S if hard else (MIN_SHIFT_S, max(length_s, 2 * MIN_SHIFT_S))
    places = [
        (max(low_s, start_s - far_s), min(high_s, start_s - near_s)),
        (max(low_s, start_s + near_s), min(high_s, start_s + far_s)),
    ]
    # A true event in the way is one that the moved event must not be taken for; so it is with hard ones if equal.
    true_spans = [span for j, span in enumerate(spans) if j != i] if hard else spans
    max_iou = 1 - 1e-6 if hard else MAX_SHIFT_IOU
    for span in true_spans:
        other_s = span[1] - span[0]
        overlap_s = max_iou / (1 + max_iou) * (length_s + other_s)  # IoU = overlap / (both - overlap)
        if overlap_s <= min(length_s, other_s):
            places = _without(places, span[0] + overlap_s - length_s, span[1] - overlap_s)
    return _wide_enough(places)


def _add_places(
    spans: Sequence[Interval], i: int, duration_s: float, all_spans: Sequence[Interval]
) -> tuple[float, list[tuple[float, float]]]:
    """Length of a false event like event `i`, and where it may start."""
    true_s = spans[i][1] - spans[i][0]
    for scale in ADD_SCALES:
        length_s = true_s * scale
        if length_s < MIN_EVENT_S:
            break
        places = [(0.0, duration_s - length_s)]
        for span in spans:
            overlap_s = MAX_ADD_IOU * min(length_s, span[1] - span[0])
            places = _without(places, span[0] + overlap_s - length_s, span[1] - overlap_s)
        for span in all_spans:
            other_s = span[1] - span[0]
            overlap_s = MAX_ADD_IOU / (1 + MAX_ADD_IOU) * (length_s + other_s)
            if overlap_s <= min(length_s, other_s):
                places = _without(places, span[0] + overlap_s - length_s, span[1] - overlap_s)
        if places := _wide_enough(places):
            return length_s, places
    return 0.0, []


def _without(places: list[tuple[float, float]], low_s: float, high_s: float) -> list[tuple[float, float]]:
    """The places outside of an interval."""
    low_s, high_s = low_s - MARGIN_S, high_s + MARGIN_S
    left = []
    for start_s, end_s in places:
        if high_s <= start_s or low_s >= end_s:
            left.append((start_s, end_s))
            continue
        if start_s < low_s:
            left.append((start_s, low_s))
        if high_s < end_s:
            left.append((high_s, end_s))
    return left


def _wide_enough(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [place for place in places if place[1] - place[0] >= MARGIN_S]


def _draw_place(rng: np.random.Generator, places: list[tuple[float, float]]) -> float:
    """A start, evenly from all of them."""
    start_s, end_s = places[0] if len(places) == 1 else places[_draw_weighted(rng, [b - a for a, b in places])]
    return start_s + rng.random() * (end_s - start_s)


def _place(start_s: float, length_s: float, duration_s: float) -> list[float]:
    start_s = round(start_s, DECIMALS)
    return [start_s, min(round(start_s + length_s, DECIMALS), duration_s)]
