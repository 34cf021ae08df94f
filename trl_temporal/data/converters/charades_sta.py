# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Charades-STA: one sentence and its interval, as the original text file or as TimeChat's JSON file."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..grammar import format_grounding
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_durations, read_json_object, read_text
from .records import (
    ConversionReport,
    OnBadRecord,
    check_duration,
    get,
    get_name,
    get_text,
    mend_spans,
    rows_of_records,
    spans_of_videos,
)
from .templates import as_event, instruction

_LINE = re.compile(r"(?P<video>\S+)\s+(?P<start>\S+)\s+(?P<end>\S+)\s*##(?P<caption>.*)")


def read_charades_sta(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
    durations: str | os.PathLike | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read Charades-STA: a grounding row per sentence.

    Args:
        src (`str` or `os.PathLike`):
            `charades_sta_test.txt` (lines `VIDEO start end##sentence`), or TimeChat's `.json`
            (`{"annotations": [{"image_id", "caption", "timestamp", "id"}]}`).
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            With the row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.
        durations (`str` or `os.PathLike`, *optional*):
            File with the durations of the videos, which neither form holds: `Charades_v1_test.csv`, or JSON
            `{video: seconds}`. Without it the durations stay unknown, and intervals are not compared with them.

    Returns:
        `Iterator[dict]`: rows of the data contract. `all_spans` holds every interval of the video in this file.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_charades_sta
    >>> rows = list(read_charades_sta("charades_sta_test.txt", video_root="Charades_v1"))  # doctest: +SKIP
    ```
    """
    records = list(_json_records(src) if Path(src).suffix == ".json" else text_records(src))
    known_s = read_durations(durations)
    if durations is not None:
        known_s = {f"{video}{suffix}": seconds for video, seconds in known_s.items() for suffix in ("", ".mp4")}

    def read(record: Record, changes: Counter) -> tuple[str, float | None, list[list[float]]]:
        video = get_name(record.data, "image_id")
        duration_s = check_duration("duration", known_s.get(video))
        interval = get(record.data, "timestamp", list, what="[start_s, end_s]")
        return video, duration_s, mend_spans("timestamp", [interval], duration_s, changes)

    all_spans = spans_of_videos(records, read)

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        video, duration_s, spans = read(record, changes)
        row_id = f"charades_sta-{record.data.get('id', record.index)}"
        event = as_event(get_text(record.data, "caption"))
        yield sft_row(
            id=row_id,
            source="charades_sta",
            task="grounding",
            video={"path": video},
            question=instruction("grounding", row_id, seed, event=event),
            response=format_grounding(1),
            spans=spans,
            all_spans=all_spans[video],
            duration=duration_s,
        )

    yield from rows_of_records(
        src, records, make_rows, video_root=video_root, on_bad_record=on_bad_record, report=report
    )


def _json_records(path: str | os.PathLike) -> Iterator[Record]:
    annotations = read_json_object(path).get("annotations")
    if not isinstance(annotations, list):
        raise ValueError(f"{path}: has no list 'annotations'. Pass TimeChat's file of Charades-STA, or the text file.")
    for index, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            annotation = RecordFault("record", f"is {annotation!r:.60}", "Write an object")
        yield Record(f"record {index}", index, annotation)


def text_records(path: str | os.PathLike) -> Iterator[Record]:
    """Lines of the original file as records `{image_id, timestamp, caption}`."""
    for index, line in enumerate(read_text(path).splitlines()):
        if line.strip():
            yield Record(f"line {index + 1}", index, _read_line(line))


def _read_line(line: str) -> dict[str, Any] | RecordFault:
    match = _LINE.fullmatch(line.strip())
    try:
        interval = [float(match["start"]), float(match["end"])]
    except (TypeError, ValueError):
        return RecordFault("line", f"is {line!r:.80}", "Write 'VIDEO start end##sentence'")
    return {"image_id": match["video"], "timestamp": interval, "caption": match["caption"]}
