# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Intervals in the text of an answer: the one parser of the `fixed` scoring."""

import math
import re
import unicodedata
from typing import NamedTuple

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−～~"), "-")
_CLOCK = r"\d{1,3}:\d{1,2}(?::\d{1,2})?(?:\.\d+)?"
_NUMBER = rf"(?:{_CLOCK}|\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d[\d.]*)"
_UNIT = r"\s*+(?:seconds?\b|secs?\b\.?|s\b\.?)?+\s*+"  # possessive: long runs of spaces take no longer
# A minus sign right in front makes the number negative (with a space it is a bullet). A digit or point in front means
# that we are in the middle of a number.
_RANGE = re.compile(
    rf"(?P<minus>(?<![\w.])-)?(?<![\d.:,])(?P<start>{_NUMBER}){_UNIT}(?:-|\bto\b|\buntil\b|\btill\b)\s*(?P<end>-?{_NUMBER})"
)
_BETWEEN = re.compile(rf"\bbetween\s+(?P<start>{_NUMBER}){_UNIT}and\s+(?P<end>{_NUMBER})")
_PAIR = re.compile(r"[\[(]\s*(?P<start>-?\d[\d.]*)\s*s?\s*,\s*(?P<end>-?\d[\d.]*)\s*s?\s*[\])]")
_ENDS = re.compile(
    rf"\b(?:start|begin)\w*\b[^\d\n]{{0,30}}(?P<start>{_NUMBER})[^\d]{{0,40}}\b(?:end|finish|stop)\w*\b[^\d\n]{{0,30}}"
    rf"(?P<end>{_NUMBER})"
)


class ReadSpans(NamedTuple):
    """
    What [`read_spans`] found.

    Attributes:
        spans (`list[tuple[float, float]]`):
            Intervals in seconds, start before or at the end, in the order of the text.
        problems (`list[tuple[str, str]]`):
            Kind and detail of what is not as it should be, see [`~trl_temporal.evaluation.metrics.scores.PROBLEMS`].
    """

    spans: list[tuple[float, float]]
    problems: list[tuple[str, str]]


def read_spans(text: str) -> ReadSpans:
    """
    Read the intervals of an answer.

    Understood are `12.5 - 15`, `12.5s to 15s`, `from 12 until 15`, `between 12 and 15`, `00:12 - 00:15.5`,
    `[12.5, 15]`, and, where none of these occurs, `starts at 12 ... ends at 15`; with any dash, and digits of any
    script. An interval with a negative number, or one that is none (`3..5`), is left out and reported, one that runs
    backwards is turned round and reported.

    Args:
        text (`str`):
            The answer, or the part of it that should hold intervals.

    Returns:
        [`ReadSpans`]

    Example:
        >>> from trl_temporal.evaluation.metrics.time_text import read_spans
        >>> read_spans("It happens from 3.5s to 9s, and again at 00:15 – 00:12.").spans
        [(3.5, 9.0), (12.0, 15.0)]
        >>> read_spans("3..5 - 9")
        ReadSpans(spans=[], problems=[('malformed number', '3..5 - 9')])
    """
    spans, problems = [], []
    for match in find_intervals(normalize_times(text)):
        span, problem = interval_of(match)
        if span is not None:
            spans.append(span)
        if problem is not None:
            problems.append((problem, match[0].strip()[:80]))
    return ReadSpans(spans, problems)


def split_at_spans(text: str) -> list[tuple[tuple[float, float] | None, str]]:
    """
    Cut an answer at its intervals.

    Args:
        text (`str`):
            The answer.

    Returns:
        `list` of intervals and the text behind each of them, up to the next one. The first entry has no interval: it
        is the text before all of them. Intervals that [`read_spans`] leaves out stay in the text. The text is that of
        [`normalize_times`], in lower case.

    Example:
        >>> from trl_temporal.evaluation.metrics.time_text import split_at_spans
        >>> split_at_spans("Steps: 1 - 3, cut it. 4 - 9, fry it.")
        [(None, 'steps: '), ((1.0, 3.0), ', cut it. '), ((4.0, 9.0), ', fry it.')]
    """
    text = normalize_times(text)
    parts, span, start = [], None, 0
    for match in find_intervals(text):
        next_span, _ = interval_of(match)
        if next_span is None:
            continue
        parts.append((span, text[start : match.start()]))
        span, start = next_span, match.end()
    return [*parts, (span, text[start:])]


def find_intervals(text: str) -> list[re.Match]:
    """
    Where a text speaks of intervals.

    Args:
        text (`str`):
            Text of [`normalize_times`].

    Returns:
        `list[re.Match]`: in the order of the text, to be read by [`interval_of`].
    """
    found = sorted(
        (match for pattern in (_RANGE, _BETWEEN, _PAIR) for match in pattern.finditer(text)), key=re.Match.start
    )
    return found or list(_ENDS.finditer(text))


def interval_of(match: re.Match) -> tuple[tuple[float, float] | None, str | None]:
    """
    The interval of a match.

    Args:
        match (`re.Match`):
            Of [`find_intervals`].

    Returns:
        `tuple`: start and end in seconds, `None` where a number is none, and the kind of what is wrong, if anything.
    """
    start_s, end_s = to_seconds(match["start"]), to_seconds(match["end"])
    if start_s is None or end_s is None or match.groupdict().get("minus"):
        return None, "malformed number"
    if end_s < start_s:
        return (end_s, start_s), "reversed"
    return (start_s, end_s), None


def check_spans(spans: list) -> ReadSpans:
    """
    Intervals that a model gave as numbers, under the rules of [`read_spans`].

    Args:
        spans (`list` of `[start_s, end_s]`):
            Intervals in seconds.

    Returns:
        [`ReadSpans`]: without those that are no two finite numbers from 0 on.

    Example:
        >>> from trl_temporal.evaluation.metrics.time_text import check_spans
        >>> check_spans([[1, 2], [4, 3], [5, float("nan")]]).spans
        [(1.0, 2.0), (3.0, 4.0)]
    """
    kept, problems = [], []
    for span in spans:
        try:
            start_s, end_s = map(float, span)
        except (TypeError, ValueError):
            start_s = end_s = math.nan
        if isinstance(span, str | dict):  # "12" would be the interval from 1 to 2
            start_s = end_s = math.nan
        if not (math.isfinite(start_s) and math.isfinite(end_s) and min(start_s, end_s) >= 0):
            problems.append(("malformed number", str(span)[:80]))
            continue
        if end_s < start_s:
            problems.append(("reversed", str(span)[:80]))
            start_s, end_s = end_s, start_s
        kept.append((start_s, end_s))
    return ReadSpans(kept, problems)


def normalize_times(text: str) -> str:
    """
    Text in lower case with ASCII digits and hyphens, so that one pattern reads every script.

    Args:
        text (`str`):
            Any text.

    Returns:
        `str`: the same text for a pattern.

    Example:
        >>> from trl_temporal.evaluation.metrics.time_text import normalize_times
        >>> normalize_times("１２ — ٣٤ S")
        '12 - 34 s'
    """
    text = unicodedata.normalize("NFKC", text).translate(_DASHES).lower()
    if text.isascii():
        return text
    return "".join(str(unicodedata.digit(char, char)) if char.isdigit() else char for char in text)


def to_seconds(number: str) -> float | None:
    """
    Seconds of a time in text.

    Args:
        number (`str`):
            `"12.5"`, `"1,200"`, `"01:15"` or `"00:01:15.5"`.

    Returns:
        `float` or `None`: `None` where the text is no time from 0 on.

    Example:
        >>> from trl_temporal.evaluation.metrics.time_text import to_seconds
        >>> to_seconds("01:15"), to_seconds("3..5")
        (75.0, None)
    """
    try:
        if ":" in number:
            seconds = 0.0
            for part in number.split(":"):
                seconds = 60 * seconds + float(part)
        else:
            # A full stop may end the sentence behind the number.
            seconds = float(number.replace(",", "").removesuffix("."))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
