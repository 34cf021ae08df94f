# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Times and captions in answers, read as the released scorers of E.T. Bench read them.

What they get wrong is kept: this is for `scoring="original"` alone. Errors that a function raises are the errors with
which the released scorers stop.
"""

import re
from typing import NamedTuple

from ...data.grammar import EVI_END

Interval = list[float]

# Digits, full stops, digits: "3..5" is matched, and is no number. Possessive, and never begun in the middle of digits:
# the same matches as without, in linear time.
_NUMBER = r"\d++(?:\.++\d*+)?+"
_RANGE = re.compile(rf"(?<!\d)({_NUMBER})\s*+-\s*({_NUMBER})")
_RANGE_IN_WORDS = re.compile(rf"(?<!\d)({_NUMBER})\s* to \s*({_NUMBER})")
_SENTENCE_END = re.compile(r"[!?\n]")
_EVENT_WORDS = ("start", "end", "happen")
_FIRST_NUMBER = re.compile(r"\b(\d+\.\d+\b|\b\d+)\b")

_LABELLED_START = re.compile(rf"start(?:ing)? time: ({_NUMBER})")
_LABELLED_END = re.compile(rf"end(?:ing)? time: ({_NUMBER})")
_LABELLED_PAIR = re.compile(rf"start time {_NUMBER}, end time {_NUMBER}")
_CLOCK = re.compile(rf"(?<!\d){_NUMBER}:{_NUMBER}")
_LONE_NUMBER = re.compile(r"\d+\.*\d*(?!\.)")

_MIN_CAPTION = 5  # characters that a caption must have more than
_MIN_SENTENCE = 7
_RADIUS_S = 20  # around a single time


class Captions(NamedTuple):
    """
    Captions of an answer with their intervals.

    Attributes:
        intervals (`list[list[float]]`):
            Intervals in seconds, one a caption.
        captions (`list[str]`):
            The captions.
        evidence (`list[list[float]]`):
            Intervals of the evidence, as written, whatever their order.
    """

    intervals: list[Interval]
    captions: list[str]
    evidence: list[Interval]


def read_intervals(text: str, drop_full_stops: bool = False) -> list[Interval] | None:
    """
    Intervals of a text: `a - b`, else `a to b`, else the first numbers of sentences that tell starts and ends.

    Args:
        text (`str`):
            Any text.
        drop_full_stops (`bool`, *optional*, defaults to `False`):
            Take full stops behind the numbers of `a - b` for the end of a sentence.

    Returns:
        `list[list[float]]` or `None`: intervals in seconds, start first.

    Raises:
        ValueError: on `3..5 - 9`, and on `5.. - 9` where full stops are kept.

    Example:
        >>> from trl_temporal.evaluation.metrics.etbench_text import read_intervals
        >>> read_intervals("-5 - 10-20"), read_intervals("It starts at 7.5.\\nIt ends at 3.")
        ([[5.0, 10.0]], [[3.0, 7.5]])
    """
    text = text.lower()
    found = _RANGE.findall(text)
    if found and drop_full_stops:
        found = [(start.rstrip("."), end.rstrip(".")) for start, end in found]
    pairs = [(float(start), float(end)) for start, end in found or _RANGE_IN_WORDS.findall(text)]
    if not pairs:
        sentences = [part for part in _SENTENCE_END.split(text) if any(word in part for word in _EVENT_WORDS)]
        matches = [match for match in map(_FIRST_NUMBER.search, sentences) if match]
        times = [float(match[1]) for match in matches]
        pairs = list(zip(times[::2], times[1::2], strict=False))
    return [[start, end] if end > start else [end, start] for start, end in pairs] or None


def read_both_halves(text: str) -> tuple[list[Interval] | None, list[Interval] | None]:
    """
    Intervals of the answer and of the evidence of `EVIDENCE </evi> ANSWER`.

    Args:
        text (`str`):
            The whole text. Between several `</evi>` it is left out.

    Returns:
        `tuple`: intervals of the answer, start first, and those of the evidence as written; each `None` where there is
        none, both where the text has no `</evi>`.

    Raises:
        ValueError: on numbers such as `3..5`, and on `5.. - 9` in the evidence.

    Example:
        >>> from trl_temporal.evaluation.metrics.etbench_text import read_both_halves
        >>> read_both_halves("9 - 4 </evi> It happens in 3.. - 9..")
        ([[3.0, 9.0]], [[9.0, 4.0]])
    """
    pieces = text.lower().split(EVI_END)
    if len(pieces) < 2:
        return None, None
    evidence = [[float(start), float(end)] for start, end in _RANGE.findall(pieces[0])]
    return read_intervals(pieces[-1], drop_full_stops=True), evidence or None


def read_captions(text: str) -> Captions | None:
    """
    Captions of an answer, by the scorers for answers without evidence.

    Args:
        text (`str`):
            The whole text.

    Returns:
        [`Captions`] or `None`: without evidence.

    Example:
        >>> from trl_temporal.evaluation.metrics.etbench_text import read_captions
        >>> read_captions("Well then: 1 - 3, Cut it. 4 - 9, fry it.")  # what stands first is the first caption
        Captions(intervals=[[1.0, 3.0], [4.0, 9.0]], captions=['well then:', 'cut it.'], evidence=[])
    """
    try:
        intervals, captions = _events(text.lower())
    except (ValueError, AssertionError):
        return None
    return _sorted_captions(text, intervals, captions, [])


def read_captions_of_answer(text: str) -> Captions | None:
    """
    Captions of the answer in `EVIDENCE </evi> ANSWER`.

    Args:
        text (`str`):
            The whole text. What stands behind a second `</evi>` is left out.

    Returns:
        [`Captions`] or `None`: with the intervals of the evidence. Where the answer has no caption, it is looked for
        in the whole text.

    Raises:
        ValueError: on "start time 5, end time 10": the original returns two values where three are expected.

    Example:
        >>> from trl_temporal.evaluation.metrics.etbench_text import read_captions_of_answer
        >>> read_captions_of_answer("1 - 3 </evi>1 - 3, Cut it.")
        Captions(intervals=[[1.0, 3.0]], captions=['cut it.'], evidence=[[1.0, 3.0]])
    """
    pieces = text.split(EVI_END)
    if len(pieces) < 2:
        return None
    evidence, answer = (re.sub(r"\.{2,}", " ", piece.lower()) for piece in pieces[:2])
    try:
        intervals, captions = _events(answer)
    except AssertionError as error:
        raise ValueError(str(error)) from None
    evidence = [[float(start), float(end)] for start, end in _RANGE.findall(evidence)]
    return _sorted_captions(text, intervals, captions, evidence)


def _events(text: str) -> tuple[list[Interval], list[str]]:
    """Intervals, and captions that stand beside them, in lower case, as many as there are of both."""
    matches = list(_RANGE.finditer(text))
    intervals = [[float(match[1]), float(match[2])] for match in matches]
    chunks: list[str] = []
    if matches:
        for match in matches:  # by value, not by place: "1 - 2" is also cut out of "11 - 25"
            text = text.replace(match[0], "\n")
        chunks = text.replace("seconds", "").split("\n")
    else:
        starts, ends = _LABELLED_START.findall(text), _LABELLED_END.findall(text)
        if starts and ends:
            intervals = [[float(start), float(end)] for start, end in zip(starts, ends, strict=False)]
            chunks = re.findall(r"description: (.*)", text) or re.findall(r"\*\s*(.*)", text)
        elif _LABELLED_PAIR.search(text):
            raise AssertionError("the original stops at 'start time 5, end time 10'")
    # Chunks that are too short go, and those behind them move to the interval before.
    captions = [chunk.strip().strip(", ").rstrip() for chunk in chunks if len(chunk) > _MIN_CAPTION]
    number = min(len(intervals), len(captions))
    return intervals[:number], captions[:number]


def _sorted_captions(
    text: str, intervals: list[Interval], captions: list[str], evidence: list[Interval]
) -> Captions | None:
    if not intervals:
        found = _first_timed_sentence(text)
        if found is None:
            return None
        intervals, captions = [found[0]], [found[1]]
    return Captions([[min(interval), max(interval)] for interval in intervals], captions, evidence)


def _first_timed_sentence(text: str) -> tuple[Interval, str] | None:
    """The first sentence or line that begins with a time: a single time stands for the 20 s on both sides of it."""
    if "\n" in text:
        sentences = [line for line in text.split("\n") if len(line) > _MIN_SENTENCE]
    else:
        sentences = [f"{part}." for part in text.split(".") if len(part) > _MIN_SENTENCE]
    for sentence in sentences:
        parts = [part.strip(",") for part in sentence.split("seconds")]
        try:
            interval = _interval_of_words(parts[0])
        except ValueError:
            continue
        if interval is not None:
            return interval, parts[-1].strip()
    return None


def _interval_of_words(words: str) -> Interval | None:
    match = _RANGE.search(words)
    if match:
        return _rounded(match[1], match[2])
    clocks = _CLOCK.findall(words)
    if words.count(":") == 1:
        if not clocks:
            raise ValueError("a colon without a time")
        return _rounded(*_around(_minutes(clocks[0])))
    if words.count(":") == 2:
        if len(clocks) != 2:
            raise ValueError("two colons without two times")
        return _rounded(_minutes(clocks[0]), _minutes(clocks[1]))
    numbers = _LONE_NUMBER.findall(words)
    if len(numbers) == 1:
        return _rounded(*_around(float(numbers[0])))
    return _rounded(*numbers) if len(numbers) == 2 else None


def _minutes(clock: str) -> int:
    minutes, seconds = clock.split(":")
    return int(minutes) * 60 + int(seconds)


def _around(time_s: float) -> tuple[str, str]:
    if time_s > _RADIUS_S:
        return f"{time_s - _RADIUS_S}", f"{time_s + _RADIUS_S}"
    return f"{time_s}", f"{time_s + 2 * _RADIUS_S}"


def _rounded(start: str | float, end: str | float) -> Interval:
    # Both go through text, where the "-" of an exponent ("1e-05") separates too.
    start, end = f"{start} - {end}".split("-")[:2]
    return [round(float(start.strip()), 2), round(float(end.strip()), 2)]
