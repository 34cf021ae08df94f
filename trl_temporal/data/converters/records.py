# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the converters share: the loop over records, mending spans, finding videos, and counting what was done."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..grammar import EVI, EVI_END, format_dense, format_grounding
from ..rows import sft_row
from ..schema import RowError, validate_row
from .annotation_files import Record, RecordFault
from .templates import as_event, instruction

OnBadRecord = Literal["raise", "skip"]
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")

# An interval may stick out of the video by a second or by a twentieth of it, whichever is more: labels and durations
# are rounded. It is clipped then; further out it is taken for times of another video or another unit.
OVERHANG_S, OVERHANG_RATIO = 1.0, 0.05
MAX_DURATION_S = 7 * 24 * 3600.0  # no video of these benchmarks comes near it; a larger number is no seconds


class RecordError(ValueError):
    """A record that cannot be converted. The message names the file, the record, the field, the fault and the mend."""


@dataclass
class ConversionReport:
    """
    What a conversion did, counted while the rows are read.

    Attributes:
        records (`int`):
            Records of the source.
        rows (`int`):
            Rows made of them.
        segments (`int`):
            Annotated intervals in the records that were used.
        tasks (`Counter`):
            Rows of each task.
        changes (`Counter`):
            How often something was mended, by what was done, e.g. `"intervals clipped"`.
        skipped (`list[dict]`):
            `file`, `record` and `reason` of every record that was left out.
        videos (`set[str]`):
            Names of the videos in the records that were used.
        missing_videos (`set[str]`):
            Those of them that are not in `video_root`.
        rows_without_video (`int`):
            Rows left out because their video is missing.
        looked_for_videos (`bool`):
            Whether there was a `video_root` to look into.
    """

    records: int = 0
    rows: int = 0
    segments: int = 0
    tasks: Counter = field(default_factory=Counter)
    changes: Counter = field(default_factory=Counter)
    skipped: list[dict[str, str]] = field(default_factory=list)
    videos: set[str] = field(default_factory=set)
    missing_videos: set[str] = field(default_factory=set)
    rows_without_video: int = 0
    looked_for_videos: bool = False


# Makes the rows of one record. It counts what it mends, and the record's intervals as "segments", in the counter.
MakeRows = Callable[[Record, Counter], Iterable[dict[str, Any]]]


def rows_of_records(
    path: str | os.PathLike,
    records: Iterable[Record],
    make_rows: MakeRows,
    *,
    video_root: str | os.PathLike | None,
    on_bad_record: OnBadRecord,
    report: ConversionReport | None,
    kind: str = "sft",
) -> Iterator[dict[str, Any]]:
    """
    Convert records one after another: check every row, find its video, and count.

    A record is used whole or not at all. Rows whose video is not in `video_root` are counted and left out.

    Args:
        path (`str` or `os.PathLike`):
            File that the records come from, for messages.
        records (`Iterable[Record]`):
            Records, as one of the readers below yields them.
        make_rows (`Callable`):
            Makes the rows of a record, with the name of the video for a path; raises [`RecordFault`].
        video_root (`str` or `os.PathLike`, *optional*):
            Folder to look for the videos in. Without it the names are kept, and no video is looked for.
        on_bad_record (`str`):
            `"raise"` stops at the first bad record, `"skip"` counts it, lists it and goes on.
        report (`ConversionReport`, *optional*):
            Counts what is done.
        kind (`str`, *optional*, defaults to `"sft"`):
            Kind of the rows, see [`~trl_temporal.data.schema.validate_row`].

    Returns:
        `Iterator[dict]`: the rows.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.
    """
    if on_bad_record not in ("raise", "skip"):
        raise ValueError(f"on_bad_record is {on_bad_record!r}; it must be 'raise' or 'skip'")
    report = ConversionReport() if report is None else report
    videos = VideoFinder(video_root)
    report.looked_for_videos = video_root is not None
    ids: set[str] = set()
    for record in records:
        report.records += 1
        changes: Counter = Counter()
        try:
            if isinstance(record.data, RecordFault):
                raise record.data
            rows = list(make_rows(record, changes))
            _check_names(rows)
            new_ids = {row["id"] for row in rows}
            if len(new_ids) < len(rows) or new_ids & ids:
                twice = sorted(new_ids & ids) or sorted(new_ids)
                raise RecordFault("id", f"makes the row '{twice[0]}' a second time", "Remove or rename the duplicate")
            for row in rows:
                validate_row(row, kind=kind)
        except (RecordFault, RowError) as error:
            if on_bad_record == "raise":
                raise RecordError(f"{path}, {record.where}, {error}") from None
            report.skipped.append({"file": str(path), "record": record.where, "reason": str(error)})
            continue
        ids |= new_ids
        report.segments += changes.pop("segments", 0)
        report.changes += changes
        for row in rows:
            name = row["videos"][0]["path"]
            report.videos.add(name)
            found = videos.find(name)
            if found is None:
                report.missing_videos.add(name)
                report.rows_without_video += 1
                continue
            row["videos"][0]["path"] = found
            report.rows += 1
            report.tasks[row["task"]] += 1
            yield row


def _check_names(rows: list[dict[str, Any]]) -> None:
    if not rows:
        raise RecordFault("record", "makes no row", "Give it an event or a question, or remove it")
    for row in rows:
        names = {**{key: row.get(key) for key in ("id", "source", "task")}, "video": row["videos"][0]["path"]}
        for key, name in names.items():
            if not isinstance(name, str | None) or key == "video" and not name:
                raise RecordFault(key, f"is {name!r:.60}", "Write a text")


class VideoFinder:
    """Finds the file of a video by the name that an annotation file gives it, with or without its suffix."""

    def __init__(self, root: str | os.PathLike | None):
        self.root = None if root is None else Path(root)
        if self.root is not None and not self.root.is_dir():
            raise FileNotFoundError(f"video_root '{root}' is not a folder. Give the folder that holds the videos.")
        self._found: dict[str, str | None] = {}
        self._below_root: dict[str, list[str]] | None = None

    def find(self, name: str) -> str | None:
        """
        Path of a video, or `None` where it is not there.

        It is looked for at `root/name`, then with other suffixes, and a name without a folder then anywhere below
        the root, where it has to be the only file of this name. Without a root the answer is the name.
        """
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> str | None:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in VIDEO_SUFFIXES:  # a dot inside an id is no suffix
            stem, suffix = name, ""
        if self.root is None:
            return name if suffix else f"{name}.mp4"
        names = ([name] if suffix else []) + [stem + other for other in VIDEO_SUFFIXES]
        for candidate in names:
            if (self.root / candidate).is_file():
                return str(self.root / candidate)
        if os.path.dirname(name):
            return None
        if self._below_root is None:
            self._below_root = _videos_by_stem(self.root)
        found = self._below_root.get(stem, [])
        return found[0] if len(found) == 1 else None


def _videos_by_stem(root: Path) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEO_SUFFIXES:
                paths.setdefault(stem, []).append(os.path.join(folder, name))
    return paths


def event_rows(
    source: str, video: str, duration_s: float | None, spans: list[list[float]], captions: list[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of a video with captioned events in time order: a dense one, and a grounding one per different caption."""

    def row(name: str, task: str, kind: str, answer: list[list[float]], response: str, **words) -> dict[str, Any]:
        row_id = f"{source}-{video}-{name}"
        return sft_row(
            id=row_id,
            source=source,
            task=task,
            video={"path": video},
            question=instruction(kind, row_id, seed, **words),
            response=response,
            spans=answer,
            all_spans=spans,
            duration=duration_s,
            captions=captions if task == "dense" else (),
        )

    yield row("dense", "dense", "dense", spans, format_dense(captions))
    for index, caption in enumerate(dict.fromkeys(captions)):
        answer = [span for span, other in zip(spans, captions, strict=True) if other == caption]
        kind = "grounding" if len(answer) == 1 else "grounding_all"
        response = format_grounding(len(answer))
        yield row(f"grounding-{index}", "grounding", kind, answer, response, event=as_event(caption))


def get(record: dict[str, Any], key: str, type_: type | tuple[type, ...], *, what: str) -> Any:
    """A field of a record, which has to be there and of this type; `what` says in the message what it should be."""
    value = record.get(key)
    if value is None:
        raise RecordFault(key, "is missing", f"Give it {what}")
    if not isinstance(value, type_) or isinstance(value, bool):
        raise RecordFault(key, f"is {value!r:.60}", f"Give it {what}")
    return value


def get_name(record: dict[str, Any], key: str) -> str:
    """A field of a record that names something: taken as it is, and not empty."""
    name = get(record, key, str, what="a name")
    if not name.strip():
        raise RecordFault(key, f"is {name!r}", "Give it a name")
    return name


def get_text(record: dict[str, Any], key: str) -> str:
    """A field of a record that is a text with something in it."""
    return clean_text(key, get(record, key, str, what="a text"))


def clean_text(key: str, text: Any) -> str:
    """A text in one line, with single spaces; an empty one, or one with a marker of the responses, is a fault."""
    if not isinstance(text, str) or not text.strip(" .\n\t"):
        raise RecordFault(key, f"is {text!r}, which says nothing", "Fill it in, or remove the record")
    if EVI in text or EVI_END in text:
        raise RecordFault(key, f"holds {EVI} or {EVI_END}", "Remove it; the responses get their own")
    return " ".join(text.split())


def get_duration(record: dict[str, Any], key: str = "duration") -> float | None:
    """The duration of a record's video in seconds, where it is given."""
    return check_duration(key, record.get(key))


def check_duration(key: str, duration_s: Any) -> float | None:
    """A duration in seconds, as a float; `None` stays `None`."""
    if duration_s is None:
        return None
    if not _is_number(duration_s) or not 0 < duration_s <= MAX_DURATION_S:
        raise RecordFault(key, f"is {duration_s!r}", "Give the length of the video in seconds, or leave it out")
    return float(duration_s)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def pair_up(key: str, intervals: Any) -> list[list[float]]:
    """Intervals that are written flat, `[s, e, s, e]`, or nested, `[[s, e], [s, e]]`, as pairs."""
    if not isinstance(intervals, list):
        raise RecordFault(key, f"is {intervals!r:.60}", "Write [start_s, end_s, start_s, end_s, ...]")
    if any(isinstance(entry, list) for entry in intervals):
        pairs = intervals
    else:
        if len(intervals) % 2:
            fault = f"has {len(intervals)} numbers, an odd count"
            raise RecordFault(key, fault, "Give every interval a start and an end")
        pairs = [intervals[i : i + 2] for i in range(0, len(intervals), 2)]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise RecordFault(key, f"has {pair!r:.60} for an interval", "Write [start_s, end_s], two numbers")
    return pairs


def mend_spans(
    key: str, intervals: Any, duration_s: float | None, changes: Counter, *, moments: bool = False
) -> list[list[float]]:
    """
    Bring intervals into the form of the rows: `[start_s, end_s]`, forwards and inside the video.

    An interval that runs backwards is turned round, and one that sticks out a little is clipped; both are counted.

    Args:
        key (`str`):
            Field that they come from, for messages.
        intervals (`list`):
            Seconds, flat (`[s, e, s, e]`) or nested (`[[s, e], [s, e]]`).
        duration_s (`float`, *optional*):
            Length of the video, where it is known.
        changes (`Counter`):
            Counts what is mended, and the intervals as `"segments"`.
        moments (`bool`, *optional*, defaults to `False`):
            Allow zero length, as questions about a moment have it. Such intervals are not counted as segments.

    Returns:
        `list[list[float]]`: the spans.

    Raises:
        [`RecordFault`]: an interval is no pair of finite numbers, has no length, or lies further out.

    Example:

    ```python
    >>> from collections import Counter
    >>> from trl_temporal.data.converters.records import mend_spans
    >>> changes = Counter()
    >>> mend_spans("tgt", [5, 2, 9, 10.4], 10.0, changes)
    [[2.0, 5.0], [9.0, 10.0]]
    >>> dict(changes)
    {'intervals turned round': 1, 'intervals clipped': 1, 'segments': 2}
    ```
    """
    spans = []
    limit_s = math.inf if duration_s is None else duration_s
    for pair in pair_up(key, intervals):
        if not all(map(math.isfinite, pair)):
            raise RecordFault(key, f"has the interval {pair}", "Give both ends in seconds")
        start_s, end_s = sorted(map(float, pair))
        changes["intervals turned round"] += pair[0] > pair[1]
        if start_s == end_s and not moments:
            raise RecordFault(key, f"has an interval of zero length, at {start_s} s", "Give it an end after its start")
        overhang_s = max(-start_s, end_s - limit_s)
        if overhang_s > 0:
            allowed_s = max(OVERHANG_S, OVERHANG_RATIO * (duration_s or 0.0))
            if overhang_s > allowed_s or end_s <= 0 or start_s >= limit_s:
                fault = f"has the interval {pair}, which is not inside the video (0 to {limit_s} s)"
                raise RecordFault(key, fault, "Check that the times are seconds of this video")
            start_s, end_s = max(start_s, 0.0), min(end_s, limit_s)
            changes["intervals clipped"] += 1
        spans.append([start_s, end_s])
    if not moments:
        changes["segments"] += len(spans)
    return spans


def in_time_order(
    spans: list[list[float]], captions: list[str], changes: Counter
) -> tuple[list[list[float]], list[str]]:
    """Events and their captions by start, then end. Events that stood in another order are counted."""
    order = sorted(range(len(spans)), key=lambda i: spans[i])
    if order != list(range(len(spans))):
        changes["lists of events put in time order"] += 1
    return [spans[i] for i in order], [captions[i] for i in order]


def spans_of_videos(
    records: Iterable[Record], read: Callable[[Record, Counter], tuple[str, float | None, list[list[float]]]]
) -> dict[str, list[list[float]]]:
    """
    All different spans of each video of a file, in time order, for the all-events baseline.

    `read` gives the video, its duration and the spans of a record. Bad records are passed over here: they are reported
    when their rows are made.
    """
    spans: dict[str, set[tuple[float, float]]] = {}
    for record in records:
        if isinstance(record.data, RecordFault):
            continue
        try:
            video, _, found = read(record, Counter())
        except RecordFault:
            continue
        spans.setdefault(video, set()).update(map(tuple, found))
    return {video: [list(span) for span in sorted(found)] for video, found in spans.items()}
