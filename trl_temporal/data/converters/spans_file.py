# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Plain files with one event a line, `video,start,end,caption`, and captions of whole videos."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..grammar import format_qa
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_csv, read_json_lines, read_json_object
from .records import (
    ConversionReport,
    OnBadRecord,
    check_duration,
    clean_text,
    event_rows,
    get,
    get_name,
    in_time_order,
    mend_spans,
    rows_of_records,
)
from .templates import instruction

SOURCE = "spans_file"


def read_spans_file(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read a plain list of events: per video a dense row and a grounding row per different caption.

    Args:
        src (`str` or `os.PathLike`):
            `.csv` with the columns `video,start,end,caption` (a fifth, `duration`, may be there), or `.jsonl` with
            objects that have these keys. The lines of a video need not stand together. A `.json` with captions of
            whole videos, `{video: [caption, ...]}`, has no events: it gives a question-answering row without evidence
            per caption.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            With the row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad videos. A bad line makes its video bad: without that event,
            the dense row would be wrong.
        report (`ConversionReport`, *optional*):
            Counts what is done.

    Returns:
        `Iterator[dict]`: rows of the data contract.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from trl_temporal.data.converters import read_spans_file
    >>> path = Path(tempfile.mkdtemp()) / "events.csv"
    >>> _ = path.write_text("video,start,end,caption\\na.mp4,0.5,2,A cat jumps\\na.mp4,3,4.5,A dog barks\\n")
    >>> [(row["task"], row["spans"]) for row in read_spans_file(path)]
    [('dense', [[0.5, 2.0], [3.0, 4.5]]), ('grounding', [[0.5, 2.0]]), ('grounding', [[3.0, 4.5]])]
    ```
    """
    if Path(src).suffix == ".json":
        records = _captioned_videos(src)
        yield from rows_of_records(
            src,
            records,
            lambda record, changes: _caption_rows(record, seed),
            video_root=video_root,
            on_bad_record=on_bad_record,
            report=report,
        )
        return

    columns = ("video", "start", "end", "caption")
    lines = read_json_lines(src) if Path(src).suffix == ".jsonl" else read_csv(src, columns)
    yield from rows_of_records(
        src,
        _videos_of_lines(lines),
        lambda record, changes: _rows_of_video(record, seed, changes),
        video_root=video_root,
        on_bad_record=on_bad_record,
        report=report,
    )


def _captioned_videos(path: str | os.PathLike) -> Iterator[Record]:
    for index, (video, captions) in enumerate(read_json_object(path).items()):
        if not isinstance(captions, list) or not captions:
            captions = RecordFault("captions", f"is {captions!r:.60}", "Write a list of captions")
        yield Record(f"video '{video}'", index, captions if isinstance(captions, RecordFault) else (video, captions))


def _caption_rows(record: Record, seed: int) -> Iterator[dict[str, Any]]:
    video, captions = record.data
    for index, caption in enumerate(captions):
        row_id = f"{SOURCE}-{video}-caption-{index}"
        answer = clean_text("caption", caption)
        yield sft_row(
            id=row_id,
            source=SOURCE,
            task="qa",
            video={"path": video},
            question=instruction("caption", row_id, seed),
            response=format_qa(answer, 0),
            spans=[],
            all_spans=[],
            duration=None,
            answer=answer,
        )


def _videos_of_lines(lines: Iterator[Record]) -> Iterator[Record]:
    """The lines of each video together, in the order in which the videos begin; unreadable lines come first."""
    lines_of_videos: dict[str, list[Record]] = {}
    for line in lines:
        video = line.data.get("video") if isinstance(line.data, dict) else None
        if isinstance(line.data, dict) and not isinstance(video, str):
            line = line._replace(data=RecordFault("video", f"is {video!r}", "Name the video"))
        if isinstance(line.data, RecordFault):
            yield line
        else:
            lines_of_videos.setdefault(video, []).append(line)
    for index, (video, of_video) in enumerate(lines_of_videos.items()):
        yield Record(f"video '{video}'", index, of_video)


def _rows_of_video(record: Record, seed: int, changes: Counter) -> Iterator[dict[str, Any]]:
    video = get_name(record.data[0].data, "video")
    durations_s = {_number(line, "duration") for line in record.data if line.data.get("duration") not in (None, "")}
    if len(durations_s) > 1:
        raise RecordFault("duration", f"is {sorted(durations_s)} in different lines", "Give a video one duration")
    duration_s = check_duration("duration", next(iter(durations_s), None))
    spans, captions = [], []
    for line in record.data:
        interval = [_number(line, "start"), _number(line, "end")]
        spans += mend_spans(f"{line.where}, start and end", [interval], duration_s, changes)
        captions.append(clean_text(f"{line.where}, caption", line.data.get("caption")))
    spans, captions = in_time_order(spans, captions, changes)
    yield from event_rows(SOURCE, video, duration_s, spans, captions, seed)


def _number(line: Record, key: str) -> float:
    """A number of a line; CSV has it as text."""
    value = get(line.data, key, (int, float, str), what="a number of seconds")
    try:
        return float(value)
    except ValueError:
        raise RecordFault(f"{line.where}, {key}", f"is {value!r}", "Give it a number of seconds") from None
