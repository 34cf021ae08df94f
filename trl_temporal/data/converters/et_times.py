# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Times in the texts of E.T. Instruct and E.T. Bench: `<vid>` placeholders, or numbers ("2.5 - 4.8 seconds")."""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

from ..grammar import EVI
from .annotation_files import RecordFault
from .records import mend_spans

VID = "<vid>"

GROUNDING_TASKS = ("tvg", "epm", "tal", "evs", "vhd", "tem")
DENSE_TASKS = ("dvc", "slc", "tvc")
QA_TASKS = ("gvq", "rvq", "rvc", "rar", "eca", "evc")
TASK_OF = {
    **dict.fromkeys(GROUNDING_TASKS, "grounding"),
    **dict.fromkeys(DENSE_TASKS, "dense"),
    **dict.fromkeys(QA_TASKS, "qa"),
}

# Tasks whose answers may be single times: a highlight, a tag of a timeline. At the 1 fps that the release is made for,
# such a time is one frame, which lasts a second.
MOMENT_TASKS = ("vhd", "tvc")
MOMENT_S = 1.0

_JOIN = r"\s*(?:-|–|—|to|until)\s*"
_UNIT = r"(?:\s*(?:seconds?|secs?|s)\b)?"
_NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?![\w%])"
_IN_PLACEHOLDERS = re.compile(rf"{VID}{_UNIT}(?:{_JOIN}{VID}{_UNIT})?", re.IGNORECASE)
_IN_NUMBERS = re.compile(
    rf"(?P<start>\d+(?:\.\d+)?){_UNIT}{_JOIN}(?P<end>\d+(?:\.\d+)?)(?![\w.]*\d){_UNIT}"
    rf"|(?P<moment>{_NUMBER}){_UNIT}",
    re.IGNORECASE,
)
_TOLERANCE_S = 0.5  # texts round the times, to a decimal or to seconds

# The released questions end by asking for a form of answer that is not the form of our responses.
_FORMAT_REQUEST = re.compile(r"\s*The format of your (?:response|answer) should be\b.*", re.IGNORECASE | re.DOTALL)


class TimeInText(NamedTuple):
    """A time in a text: the characters that it takes, and its one or two values in seconds."""

    begin: int
    end: int
    values: list[float]


def flatten(key: str, times: Any) -> list[float]:
    """The values of `src` or `tgt`, which are written flat, nested, or as a single number."""
    if times is None:
        return []
    if isinstance(times, int | float) and not isinstance(times, bool):
        return [times]
    if not isinstance(times, list):
        raise RecordFault(key, f"is {times!r:.60}", "Write a list of seconds")
    flat = []
    for entry in times:
        flat += flatten(key, entry)
    if not all(map(math.isfinite, flat)):
        raise RecordFault(key, "has a time that is no finite number", "Give seconds")
    return flat


def find_times(text: str, key: str, values: list[float], *, moments: bool) -> list[TimeInText]:
    """
    Find where a text speaks of its times.

    Args:
        text (`str`):
            A question or an answer.
        key (`str`):
            Field that holds the values, for messages.
        values (`list[float]`):
            The times in order. With placeholders each takes the next values; in a text with numbers, those numbers
            are the times that agree with the next values, so that "2 - 3 eggs" is none.
        moments (`bool`):
            Allow single times, not only intervals.

    Returns:
        `list[TimeInText]`: one entry per interval or moment.

    Raises:
        [`RecordFault`]: the text and the values do not go together.

    Example:

    ```python
    >>> from trl_temporal.data.converters.et_times import find_times
    >>> find_times("It happens in <vid> - <vid>.", "tgt", [2.5, 4.8], moments=False)
    [TimeInText(begin=14, end=27, values=[2.5, 4.8])]
    >>> find_times("2.5 - 4.8 seconds, break 2 - 3 eggs.", "tgt", [2.5, 4.8], moments=False)
    [TimeInText(begin=0, end=17, values=[2.5, 4.8])]
    ```
    """
    if not moments and len(values) % 2:
        raise RecordFault(key, f"has {len(values)} times, an odd count", "Give every interval a start and an end")
    if VID in text.lower():
        return _find_placeholders(text, key, values, moments)
    return _find_numbers(text, key, values, moments)


def _find_placeholders(text: str, key: str, values: list[float], moments: bool) -> list[TimeInText]:
    num_placeholders = text.lower().count(VID)
    if num_placeholders != len(values):
        fault = f"has {len(values)} times, but the text has {num_placeholders} {VID}"
        raise RecordFault(key, fault, f"Give each {VID} its time")
    found, position = [], 0
    for match in _IN_PLACEHOLDERS.finditer(text):
        count = match[0].lower().count(VID)
        if count == 1 and not moments:
            raise RecordFault(key, f"has the text '{match[0]}' for an interval", f"Write '{VID} - {VID}'")
        found.append(TimeInText(match.start(), match.end(), values[position : position + count]))
        position += count
    return found


def _find_numbers(text: str, key: str, values: list[float], moments: bool) -> list[TimeInText]:
    found, position = [], 0
    for match in _IN_NUMBERS.finditer(text):
        numbers = [match["moment"]] if match["moment"] else [match["start"], match["end"]]
        if len(numbers) == 1 and not moments:
            continue
        expected = values[position : position + len(numbers)]
        near = (abs(float(number) - value) <= _TOLERANCE_S for number, value in zip(numbers, expected, strict=False))
        if len(expected) == len(numbers) and all(near):
            found.append(TimeInText(match.start(), match.end(), expected))
            position += len(numbers)
    if position != len(values):
        fault = f"has {len(values)} times, but the text names only {position} of them in order"
        raise RecordFault(key, fault, "Write the times of the text into the field, in the order of the text")
    return found


def intervals_in(text: str) -> list[TimeInText]:
    """All intervals that a text spells out in numbers, for answers whose times are nowhere else."""
    pairs = ((match, match["start"], match["end"]) for match in _IN_NUMBERS.finditer(text) if match["start"])
    return [TimeInText(match.start(), match.end(), [float(start), float(end)]) for match, start, end in pairs]


def spans_of_times(key: str, times: list[TimeInText], duration_s: float | None, changes: Counter) -> list[list[float]]:
    """The intervals as spans inside the video. A moment becomes the second around it, and is counted."""
    intervals = []
    for time in times:
        if len(time.values) == 2:
            intervals.append(time.values)
            continue
        moment_s = time.values[0]
        if moment_s < 0 or moment_s > (math.inf if duration_s is None else duration_s):
            raise RecordFault(key, f"has the time {moment_s}, outside the video (0 to {duration_s} s)", "Check it")
        last_s = math.inf if duration_s is None else max(duration_s - MOMENT_S, 0)
        start_s = min(max(moment_s - MOMENT_S / 2, 0), last_s)
        end_s = start_s + MOMENT_S
        intervals.append([start_s, end_s if duration_s is None else min(end_s, duration_s)])
        changes["moments widened to a second"] += 1
    return mend_spans(key, intervals, duration_s, changes)


def convert_question(
    text: str, src: Any, duration_s: float | None, changes: Counter
) -> tuple[str, list[list[float]] | None]:
    """
    A question without `<image>` and the request for a form of answer, and with `<evi>` for its times.

    Returns the question and its `prompt_spans`; `None` where it refers to no time.
    """
    text = text.replace("<image>", "").strip()
    if EVI in text:
        raise RecordFault("question", f"holds {EVI}", "Remove it")
    without_request = _FORMAT_REQUEST.sub("", text).strip()
    if without_request and without_request != text:
        text = without_request
        changes["requests for a form of answer removed"] += 1
    values = flatten("src", src)
    times = find_times(text, "src", values, moments=True)
    if not text:
        raise RecordFault("question", "is empty", "Fill it in, or remove the record")
    if not times:
        return text, None
    intervals = [time.values if len(time.values) == 2 else time.values * 2 for time in times]
    for time in reversed(times):
        text = text[: time.begin] + EVI + text[time.end :]
    return text, mend_spans("src", intervals, duration_s, changes, moments=True)
