# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""YouCook2: the steps of cooking videos, as the original annotation file or as TimeChat's."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..grammar import format_dense
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_json_object, records_of_subset
from .records import (
    OVERHANG_RATIO,
    ConversionReport,
    OnBadRecord,
    clean_text,
    get,
    get_duration,
    get_name,
    get_text,
    in_time_order,
    mend_spans,
    pair_up,
    rows_of_records,
)
from .templates import instruction


def read_youcook2(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
    subset: str | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read YouCook2: a dense row per video, with all its steps.

    Args:
        src (`str` or `os.PathLike`):
            `youcookii_annotations_trainval.json` (`{"database": {video: {"duration", "subset", "annotations":
            [{"segment", "sentence"}]}}}`), or TimeChat's `.json` (`{"annotations": [{"image_id", "duration",
            "segments", "pure_cap"}]}`, captions joined by full stops).
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos, which may lie in subfolders. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            With the row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.
        subset (`str`, *optional*):
            `"training"` or `"validation"`; the original file holds both, so that one has to be chosen.

    Returns:
        `Iterator[dict]`: rows of the data contract. Where a step begins after the end of the video, the given
        duration is wrong (it is so for a validation video): it is left out of the row, and counted.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_youcook2
    >>> rows = list(read_youcook2("youcookii_annotations_trainval.json", subset="validation"))  # doctest: +SKIP
    ```
    """

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        name, video, segments, captions = _read_steps(record)
        duration_s = _trusted_duration(get_duration(record.data), segments, changes)
        spans = mend_spans("segments", segments, duration_s, changes)
        if not spans:
            raise RecordFault("segments", "is empty", "Give the video a step, or remove the record")
        spans, captions = in_time_order(spans, captions, changes)
        row_id = f"youcook2-{name}"
        yield sft_row(
            id=row_id,
            source="youcook2",
            task="dense",
            video={"path": video},
            question=instruction("steps", row_id, seed),
            response=format_dense(captions),
            spans=spans,
            all_spans=spans,
            duration=duration_s,
            captions=captions,
        )

    records = _records(src, subset)
    yield from rows_of_records(
        src, records, make_rows, video_root=video_root, on_bad_record=on_bad_record, report=report
    )


def _records(path: str | os.PathLike, subset: str | None) -> Iterator[Record]:
    content = read_json_object(path)
    if isinstance(content.get("database"), dict):
        yield from records_of_subset(path, content["database"], subset)
    elif isinstance(content.get("annotations"), list) and subset is None:
        for index, annotation in enumerate(content["annotations"]):
            if not isinstance(annotation, dict):
                annotation = RecordFault("record", f"is {annotation!r:.60}", "Write an object")
            yield Record(f"record {index}", index, annotation)
    elif subset is None:
        raise ValueError(f"{path}: has neither 'database' nor 'annotations'. Pass an annotation file of YouCook2.")
    else:
        raise ValueError(f"{path}: has no subsets, but subset='{subset}' was asked for. Leave it out.")


def _read_steps(record: Record) -> tuple[str, str, list[list[float]], list[str]]:
    """Name of the record, its video, its segments and their captions, from either form."""
    if "segments" not in record.data:  # the original file
        video = record.data["video"]
        steps = get(record.data, "annotations", list, what='[{"segment": [start_s, end_s], "sentence": ...}]')
        if not all(isinstance(step, dict) for step in steps):
            raise RecordFault("annotations", "has an entry that is no object", 'Write {"segment", "sentence"}')
        segments = pair_up("segment", [get(step, "segment", list, what="[start_s, end_s]") for step in steps])
        return video, video, segments, [get_text(step, "sentence") for step in steps]

    video = get_name(record.data, "image_id")
    segments = pair_up("segments", record.data["segments"])
    captions = [clean_text("pure_cap", caption) for caption in get_text(record.data, "pure_cap").split(". ")]
    if len(captions) != len(segments):
        fault = f"has {len(captions)} captions for {len(segments)} segments"
        raise RecordFault("pure_cap", fault, "Write one caption per segment, separated by '. '")
    return os.path.splitext(video)[0], video, segments, captions


def _trusted_duration(duration_s: float | None, segments: list[list[float]], changes: Counter) -> float | None:
    if duration_s is None:
        return None
    late = [segment for segment in segments if min(segment) >= duration_s]
    # Close behind the end the duration is wrong; far behind it, `mend_spans` refuses the segment.
    if not late or max(map(max, late)) > duration_s * (1 + OVERHANG_RATIO):
        return duration_s
    changes["durations left out, because a step begins after them"] += 1
    return None
