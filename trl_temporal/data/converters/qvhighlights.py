# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""QVHighlights: a query, all windows of the clip that match it, and how salient their parts are."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..grammar import format_grounding
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_json_lines
from .records import (
    ConversionReport,
    OnBadRecord,
    get,
    get_duration,
    get_name,
    get_text,
    mend_spans,
    rows_of_records,
    spans_of_videos,
)
from .templates import as_event, instruction

CLIP_S = 2.0  # the saliency is annotated in clips of this length


def read_qvhighlights(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read QVHighlights: a grounding row per query, with all its windows.

    Times count from the start of the cut-out clip, `<youtube id>_<start>_<end>.mp4`, not of the YouTube video.

    Args:
        src (`str` or `os.PathLike`):
            `highlight_val_release.jsonl`: lines `{"qid", "query", "duration", "vid", "relevant_windows",
            "relevant_clip_ids", "saliency_scores"}`. Without `relevant_windows` (the test file) a line is bad.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the clips. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            With the row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.

    Returns:
        `Iterator[dict]`: rows of the data contract with `saliency`, the mean score (0 to 4) of the annotators for each
        2-second clip of the video, 0 for the clips that no window touches. `all_spans` holds the windows of all
        queries about the video.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_qvhighlights
    >>> rows = list(read_qvhighlights("highlight_val_release.jsonl"))  # doctest: +SKIP
    ```
    """

    def read(record: Record, changes: Counter) -> tuple[str, float | None, list[list[float]]]:
        duration_s = get_duration(record.data)
        windows = get(record.data, "relevant_windows", list, what="[[start_s, end_s], ...]")
        spans = mend_spans("relevant_windows", windows, duration_s, changes)
        if not spans:
            raise RecordFault("relevant_windows", "is empty", "Give the query a window, or remove the record")
        return get_name(record.data, "vid"), duration_s, sorted(spans)

    all_spans = spans_of_videos(read_json_lines(src), read)

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        video, duration_s, spans = read(record, changes)
        row_id = f"qvhighlights-{get(record.data, 'qid', (int, str), what='the number of the query')}"
        row = sft_row(
            id=row_id,
            source="qvhighlights",
            task="grounding",
            video={"path": f"{video}.mp4"},
            question=instruction("grounding_all", row_id, seed, event=as_event(get_text(record.data, "query"))),
            response=format_grounding(len(spans)),
            spans=spans,
            all_spans=all_spans[video],
            duration=duration_s,
        )
        yield {**row, "options": None, "answer_index": None, "saliency": _saliency(record.data, duration_s)}

    yield from rows_of_records(
        src,
        read_json_lines(src),
        make_rows,
        video_root=video_root,
        on_bad_record=on_bad_record,
        report=report,
        kind="evaluation",
    )


def _saliency(record: dict[str, Any], duration_s: float | None) -> list[float] | None:
    """Mean score of each clip of the video, where the record has scores."""
    if duration_s is None or record.get("saliency_scores") is None:
        return None
    clips = get(record, "relevant_clip_ids", list, what="the clips that the scores are for")
    scores = get(record, "saliency_scores", list, what="a list of scores per clip")
    if len(clips) != len(scores):
        fault = f"has {len(scores)} entries for {len(clips)} clips"
        raise RecordFault("saliency_scores", fault, "Give one list of scores per entry of 'relevant_clip_ids'")
    saliency = [0.0] * int(-(-duration_s // CLIP_S))
    for clip, of_annotators in zip(clips, scores, strict=True):
        if not isinstance(clip, int) or not 0 <= clip < len(saliency):
            fault = f"has clip {clip!r}, but the video has {len(saliency)} of {CLIP_S} s"
            raise RecordFault("relevant_clip_ids", fault, "Count the clips from 0")
        if not isinstance(of_annotators, list) or not of_annotators or any(x not in range(5) for x in of_annotators):
            raise RecordFault("saliency_scores", f"has {of_annotators!r:.60}", "Give each annotator's score, 0 to 4")
        saliency[clip] = sum(of_annotators) / len(of_annotators)
    return saliency
