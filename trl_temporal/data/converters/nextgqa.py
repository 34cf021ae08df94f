# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""NExT-GQA: multiple-choice questions about videos, with the segments that show the answer."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..grammar import format_qa
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_csv, read_json_object
from .records import (
    ConversionReport,
    OnBadRecord,
    get_duration,
    get_name,
    get_text,
    mend_spans,
    rows_of_records,
    spans_of_videos,
)
from .templates import instruction, lettered

NUM_OPTIONS = 5
_COLUMNS = ("video_id", "question", "answer", "qid", *(f"a{index}" for index in range(NUM_OPTIONS)))


def read_nextgqa(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read NExT-GQA: a question-answering row per question, with its segments as evidence.

    Args:
        src (`str` or `os.PathLike`):
            `val.csv` or `test.csv`, with `gsub_val.json` or `gsub_test.json` beside it (`nextgqa_val.csv` goes with
            `nextgqa_gsub_val.json`). `train.csv` has no segments.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos, which may lie in subfolders. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            With the row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.

    Returns:
        `Iterator[dict]`: rows of the data contract with `options` and `answer_index`. An id is
        `nextgqa-<video>_<question>`, with the key of the official scorer behind the hyphen; `all_spans` holds the
        segments of all questions about the video.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.
        `FileNotFoundError`: the file with the segments is not there.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_nextgqa
    >>> rows = list(read_nextgqa("nextgqa/val.csv", video_root="NExTVideo"))  # doctest: +SKIP
    ```
    """
    src = Path(src)
    head, _, split = src.stem.rpartition("_")
    segments_path = src.with_name(f"{head}_gsub_{split}.json" if head else f"gsub_{split}.json")
    if not segments_path.is_file():
        raise FileNotFoundError(f"{src}: there is no '{segments_path.name}' beside it. Put the segments there.")
    videos = read_json_object(segments_path)

    def read(record: Record, changes: Counter) -> tuple[str, float | None, list[list[float]]]:
        video, question = get_name(record.data, "video_id"), get_name(record.data, "qid")
        annotation = videos.get(video)
        if not isinstance(annotation, dict) or not isinstance(annotation.get("location"), dict):
            raise RecordFault("video_id", f"'{video}' is not in {segments_path.name}", "Take both files of one split")
        duration_s = get_duration(annotation)
        segments = annotation["location"].get(question)
        if not segments:
            raise RecordFault("qid", f"{question} of '{video}' has no segment", f"Add it to {segments_path.name}")
        return video, duration_s, sorted(mend_spans("location", segments, duration_s, changes))

    all_spans = spans_of_videos(read_csv(src, _COLUMNS), read)

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        video, duration_s, spans = read(record, changes)
        options = [get_text(record.data, f"a{index}") for index in range(NUM_OPTIONS)]
        answer = get_text(record.data, "answer")
        if options.count(answer) != 1:
            fault = f"is {answer!r}, which is {options.count(answer)} of the options"
            raise RecordFault("answer", fault, "Write the text of one option")
        answer_index = options.index(answer)
        answer = lettered(options)[answer_index]
        question = get_text(record.data, "question")
        question += "" if question.endswith(("?", ".", "!")) else "?"
        row_id = f"nextgqa-{video}_{record.data['qid']}"
        words = {"question": question, "options": "\n".join(lettered(options))}
        row = sft_row(
            id=row_id,
            source="nextgqa",
            task="qa",
            video={"path": video},
            question=instruction("multiple_choice", row_id, seed, **words),
            response=format_qa(answer, len(spans)),
            spans=spans,
            all_spans=all_spans[video],
            duration=duration_s,
            answer=answer,
        )
        yield {**row, "options": options, "answer_index": answer_index, "saliency": None}

    yield from rows_of_records(
        src,
        read_csv(src, _COLUMNS),
        make_rows,
        video_root=video_root,
        on_bad_record=on_bad_record,
        report=report,
        kind="evaluation",
    )
