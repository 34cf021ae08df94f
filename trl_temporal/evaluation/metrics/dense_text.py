# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Events in the text of a dense answer: intervals with their captions."""

import bisect
import re
from typing import NamedTuple

import numpy as np

from ...data.grammar import EVI_END
from .time_text import find_intervals, interval_of, normalize_times

# What may stand between the start of a sentence and the interval that opens it: "2. From (", "- Step 3: [".
_OPENING = re.compile(
    r"(?:\A|[.!?;:。\n>])(?P<opening>\s*(?:[-*•#]+\s*)?(?:\d+[.)]\s*)?(?:(?:step|event|scene|clip|segment)\s*\d*[:.)]?\s*)?"
    r"(?:(?:from|at|in|during|times?|timestamps?)\b:?\s*)?[(\[\"']*\s*)\Z"
)
_OPENING_LENGTH = 60
# No way back (`*+`) into long runs of spaces, where one attempt per place would take forever.
_SECONDS = r"\s*+(?:seconds?\b|secs?\b|s\b)?+"
_AFTER_INTERVAL = re.compile(rf"{_SECONDS}[\s,:;.、)\]\"'|>*-]*+(?:(?:description|captions?)\s*:\s*)?")
_NO_CAPTION = re.compile(rf"{_SECONDS}[\W_]*+\Z")
_BEFORE_INTERVAL = re.compile(r"[\s(\[,:-]*(?:\b(?:from|between|at|in|during)\s*)?[(\[]*\Z")


class ReadEvents(NamedTuple):
    """
    What [`read_events`] found.

    Attributes:
        events (`list[tuple[float, float, str]]`):
            Start and end in seconds, start first, and the caption, in the order of the text.
        problems (`list[tuple[str, str]]`):
            Kind and detail of what is not as it should be, see [`~trl_temporal.evaluation.metrics.scores.PROBLEMS`].
    """

    events: list[tuple[float, float, str]]
    problems: list[tuple[str, str]]


def read_events(text: str) -> ReadEvents:
    """
    Read the events of a dense answer: each an interval, and the text up to the next one as its caption.

    Intervals are those of [`~trl_temporal.evaluation.metrics.time_text.read_spans`]. One in the middle of a sentence
    belongs to the caption (`boil for 5 - 10 minutes`), unless both its numbers have decimals or are clock times, or it
    stands between commas. Numbering and bullets are left out. Where text stands only in front of intervals, as in
    `pour the oil (12 - 20)`, that is their caption. If the text holds `</evi>`, only what follows is read.

    Args:
        text (`str`):
            The answer.

    Returns:
        [`ReadEvents`]

    Example:
        >>> from trl_temporal.evaluation.metrics.dense_text import read_events
        >>> read_events("12.0 - 20.5, pour the oil. 21 - 30 seconds, boil for 5-10 minutes.").events
        [(12.0, 20.5, 'pour the oil.'), (21.0, 30.0, 'boil for 5-10 minutes.')]
        >>> read_events("1. From 00:12 to 00:20: Stir.\\n2. From 00:21 to 00:30: Serve.").events
        [(12.0, 20.0, 'Stir.'), (21.0, 30.0, 'Serve.')]
    """
    text = text.partition(EVI_END)[2] if EVI_END in text else text
    # The patterns read normalised text, whose length may differ; captions are cut from the text itself.
    parts = [text] if text.isascii() else list(text)
    normalized = [normalize_times(part) for part in parts]
    plain = "".join(normalized)
    ends = [0] if text.isascii() else np.cumsum([0, *map(len, normalized)]).tolist()

    def cut(start: int, end: int) -> str:
        if not text.isascii():
            start, end = bisect.bisect_left(ends, start), bisect.bisect_left(ends, end)
        return text[start:end].strip().rstrip(",")

    matches = find_intervals(plain)
    # Where each event begins, with the words that open it.
    begins, previous_end = [], 0
    for match in matches:
        begins.append(_event_start(plain, match, previous_end))
        previous_end = match.end()
    heads = [(match, begin) for match, begin in zip(matches, begins, strict=True) if begin is not None]
    heads = heads or [(match, match.start()) for match in matches]
    captions = []
    if heads and _NO_CAPTION.match(plain, heads[-1][0].end()) and cut(0, heads[0][1]):
        previous_end = 0
        for match, _ in heads:
            begin = _AFTER_INTERVAL.match(plain, previous_end).end() if previous_end else 0
            window = max(begin, match.start() - _OPENING_LENGTH)
            captions.append(cut(begin, _BEFORE_INTERVAL.search(plain, window, match.start()).start()))
            previous_end = match.end()
    else:
        stops = [*(begin for _, begin in heads), len(plain)][1:]
        for (match, _), stop in zip(heads, stops, strict=True):
            begin = _AFTER_INTERVAL.match(plain, match.end()).end()
            captions.append(cut(begin, stop) if begin < stop else "")

    events, problems = [], []
    for (match, _), caption in zip(heads, captions, strict=True):
        span, problem = interval_of(match)
        if problem is not None:
            problems.append((problem, match[0].strip()[:80]))
        if span is not None:
            events.append((*span, caption))
    return ReadEvents(events, problems)


def _event_start(plain: str, match: re.Match, previous_end: int) -> int | None:
    """Where the words that open an event with this interval begin; `None` if the interval is part of a caption."""
    window = max(previous_end, match.start() - _OPENING_LENGTH)
    opening = _OPENING.search(plain[window : match.start()])
    if opening and (opening.start() > 0 or window == previous_end):
        return window + opening.start("opening")
    is_between_commas = plain[window : match.start()].rstrip().endswith(",") and plain.startswith(
        (",", ":"), match.end()
    )
    has_decimals = all("." in match[name].rstrip(".") or ":" in match[name] for name in ("start", "end"))
    return match.start() if is_between_commas or has_decimals else None
