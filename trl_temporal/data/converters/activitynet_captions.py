# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""ActivityNet Captions, and files with the labelled activities of ActivityNet."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..grammar import format_grounding
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_json_object, records_of_subset
from .records import (
    ConversionReport,
    OnBadRecord,
    clean_text,
    event_rows,
    get,
    get_duration,
    get_text,
    in_time_order,
    mend_spans,
    rows_of_records,
)
from .templates import instruction


def read_activitynet_captions(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
    subset: str | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read ActivityNet Captions: per video a dense row and a grounding row per caption.

    Files with labels in place of captions (ActivityNet's own, also those that mmaction2 trains from) give a grounding
    row per label of a video, with all its segments.

    Args:
        src (`str` or `os.PathLike`):
            `train.json`, `val_1.json` or `val_2.json` (`{video: {"duration", "timestamps", "sentences"}}`), or a file
            with labels (`{video: {"duration", "annotations": [{"segment", "label"}]}}`, also below `"database"` and
            with `duration_second` for `duration`).
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            With the row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.
        subset (`str`, *optional*):
            `"training"` or `"validation"`, where the videos of a file have a `subset`. A file with several needs it.

    Returns:
        `Iterator[dict]`: rows of the data contract.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_activitynet_captions
    >>> rows = list(read_activitynet_captions("val_1.json", video_root="videos"))  # doctest: +SKIP
    ```
    """

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        if "annotations" in record.data:
            yield from _label_rows(record.data, seed, changes)
        else:
            yield from _caption_rows(record.data, seed, changes)

    content = read_json_object(src)
    if isinstance(content.get("database"), dict):
        content = content["database"]
    records = records_of_subset(src, content, subset)
    yield from rows_of_records(
        src, records, make_rows, video_root=video_root, on_bad_record=on_bad_record, report=report
    )


def _caption_rows(record: dict[str, Any], seed: int, changes: Counter) -> Iterator[dict[str, Any]]:
    duration_s = get_duration(record)
    intervals = get(record, "timestamps", list, what="[[start_s, end_s], ...]")
    captions = get(record, "sentences", list, what="one sentence per interval")
    if len(captions) != len(intervals):
        fault = f"has {len(captions)} entries for {len(intervals)} intervals"
        raise RecordFault("sentences", fault, "Write one sentence per entry of 'timestamps'")
    captions = [clean_text("sentences", caption) for caption in captions]
    spans = mend_spans("timestamps", intervals, duration_s, changes)
    if not spans:
        raise RecordFault("timestamps", "is empty", "Give the video an event, or remove the record")
    spans, captions = in_time_order(spans, captions, changes)
    yield from event_rows("activitynet_captions", record["video"], duration_s, spans, captions, seed)


def _label_rows(record: dict[str, Any], seed: int, changes: Counter) -> Iterator[dict[str, Any]]:
    key = "duration_second" if "duration_second" in record else "duration"
    duration_s = get_duration(record, key)
    annotations = get(record, "annotations", list, what='[{"segment": [start_s, end_s], "label": ...}]')
    if not annotations or not all(isinstance(annotation, dict) for annotation in annotations):
        raise RecordFault("annotations", f"is {annotations!r:.60}", 'Write [{"segment", "label"}]')
    segments = [get(annotation, "segment", list, what="[start_s, end_s]") for annotation in annotations]
    labels = [get_text(annotation, "label") for annotation in annotations]
    spans, labels = in_time_order(mend_spans("segment", segments, duration_s, changes), labels, changes)
    for index, label in enumerate(dict.fromkeys(labels)):
        answer = [span for span, other in zip(spans, labels, strict=True) if other == label]
        row_id = f"activitynet_captions-{record['video']}-action-{index}"
        yield sft_row(
            id=row_id,
            source="activitynet_captions",
            task="grounding",
            video={"path": record["video"]},
            question=instruction("action", row_id, seed, label=label),
            response=format_grounding(len(answer)),
            spans=answer,
            all_spans=spans,
            duration=duration_s,
        )
