# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""DiDeMo: descriptions of moments, marked by several annotators in pieces of five seconds."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..grammar import format_grounding
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_durations, read_json_list
from .records import (
    ConversionReport,
    OnBadRecord,
    check_duration,
    get,
    get_name,
    get_text,
    mend_spans,
    pair_up,
    rows_of_records,
    spans_of_videos,
)
from .templates import as_event, instruction

PIECE_S = 5.0
MAX_PIECES = 6  # what lies behind 30 seconds was not annotated


def read_didemo(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
    durations: str | os.PathLike | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read DiDeMo: a grounding row per description.

    Of the intervals that the annotators marked, the one that most of them agree on is taken, and the first such one of
    the file where several are equally frequent. An interval `[first, last]` counts pieces of five seconds, both ends
    included: `[1, 4]` is 5 s to 25 s.

    Args:
        src (`str` or `os.PathLike`):
            `train_data.json`, `val_data.json` or `test_data.json`: a list of `{"annotation_id", "description",
            "video", "times", "num_segments"}`.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos; another suffix than in the file will do. Rows of missing videos are counted and
            left out.
        seed (`int`, *optional*, defaults to `0`):
            With the row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.
        durations (`str` or `os.PathLike`, *optional*):
            File with the durations of the videos, JSON `{video: seconds}` or CSV, which the annotations do not hold.
            With it the last piece is clipped to the end of the video.

    Returns:
        `Iterator[dict]`: rows of the data contract. `all_spans` holds every interval of the video in this file.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_didemo
    >>> rows = list(read_didemo("val_data.json", video_root="videos"))  # doctest: +SKIP
    ```
    """
    known_s = read_durations(durations)

    def read(record: Record, changes: Counter) -> tuple[str, float | None, list[list[float]]]:
        video = get_name(record.data, "video")
        duration_s = check_duration("duration", known_s.get(os.path.splitext(video)[0]))
        start_s, end_s = _agreed(record.data)
        if duration_s is not None and start_s < duration_s < end_s <= duration_s + PIECE_S:
            end_s = duration_s  # the last piece of a video is as long as what is left of it
        return video, duration_s, mend_spans("times", [[start_s, end_s]], duration_s, changes)

    records = list(read_json_list(src))
    all_spans = spans_of_videos(records, read)

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        video, duration_s, spans = read(record, changes)
        row_id = f"didemo-{record.data.get('annotation_id', record.index)}"
        event = as_event(get_text(record.data, "description"))
        yield sft_row(
            id=row_id,
            source="didemo",
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


def _agreed(record: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the interval that most annotators marked."""
    times = pair_up("times", get(record, "times", list, what="[[first, last], ...], one per annotator"))
    num_pieces = record.get("num_segments", MAX_PIECES)
    if num_pieces not in range(1, MAX_PIECES + 1):
        raise RecordFault("num_segments", f"is {num_pieces!r:.60}", f"Give the number of pieces, 1 to {MAX_PIECES}")
    for first, last in times:
        if not (first in range(num_pieces) and last in range(num_pieces) and first <= last):
            fault = f"has [{first}, {last}], but the video has pieces 0 to {num_pieces - 1}"
            raise RecordFault("times", fault, "Write [first, last] in pieces of five seconds")
    if not times:
        raise RecordFault("times", "is empty", "Give the interval of an annotator, or remove the record")
    # `most_common` keeps the order of the file among equals.
    (first, last), _ = Counter(map(tuple, times)).most_common(1)[0]
    return first * PIECE_S, (last + 1) * PIECE_S
