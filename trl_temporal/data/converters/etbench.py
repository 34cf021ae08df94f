# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Bench: twelve tasks about events, for evaluation."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..grammar import format_dense, format_grounding, format_qa
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_json_list
from .et_times import TASK_OF, convert_question
from .records import (
    ConversionReport,
    OnBadRecord,
    clean_text,
    get,
    get_duration,
    get_name,
    in_time_order,
    mend_spans,
    rows_of_records,
)
from .templates import lettered


def read_etbench(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read E.T. Bench: one evaluation row per sample. Both styles, `txt` and `vid`, give the same rows.

    Args:
        src (`str` or `os.PathLike`):
            `etbench_vid_v1.0.json`, `etbench_txt_v1.0.json`, or the file of one task: a list of `{"version", "idx",
            "task", "source", "video", "duration", "src", "tgt", "p", "o", "g", "q"}`.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder `videos` of the release. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            Not used: the samples bring their questions.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.

    Returns:
        `Iterator[dict]`: rows of the data contract with `options` and `answer_index` (rar, eca, rvq, gvq). `source` is
        `etbench/<task>/<source>`, by which the benchmark averages, and the id ends with the sample's `idx`. Of vhd,
        `spans` holds the highlights of all annotators, any of which counts.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_etbench
    >>> rows = list(read_etbench("etbench_vid_v1.0.json", video_root="videos"))  # doctest: +SKIP
    ```
    """
    yield from rows_of_records(
        src,
        read_json_list(src),
        _rows,
        video_root=video_root,
        on_bad_record=on_bad_record,
        report=report,
        kind="evaluation",
    )


def _rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
    sample = record.data
    released_task, source = get_name(sample, "task"), get_name(sample, "source")
    if released_task not in TASK_OF:
        raise RecordFault("task", f"is '{released_task}'", f"The tasks are {', '.join(TASK_OF)}")
    task = TASK_OF[released_task]
    duration_s = get_duration(sample)
    question, prompt_spans = convert_question(
        get(sample, "q", str, what="the question"), sample.get("src"), duration_s, changes
    )
    spans = mend_spans("tgt", _flat_pairs(sample.get("tgt")), duration_s, changes)

    answer, captions, options, answer_index = "", [], None, None
    if task == "qa":
        options, answer_index = _options(sample)
        answer = lettered(options)[answer_index]
        if not all(option in question for option in options):
            question = "\n".join([question, *lettered(options)])
        response = format_qa(answer, len(spans))
    elif not spans:
        raise RecordFault("tgt", "is empty", "Give the sample its times, or remove it")
    elif task == "dense":
        captions = [clean_text("g", caption) for caption in get(sample, "g", list, what="the captions")]
        if len(captions) != len(spans):
            raise RecordFault("g", f"has {len(captions)} captions for {len(spans)} intervals", "Give one for each")
        spans, captions = in_time_order(spans, captions, changes)
        response = format_dense(captions)
    else:
        spans = sorted(spans)
        response = format_grounding(len(spans))
    row = sft_row(
        id=f"etbench-{released_task}-{source}-{get(sample, 'idx', int, what='the number of the sample')}",
        source=f"etbench/{released_task}/{source}",
        task=task,
        video={"path": get_name(sample, "video")},
        question=question,
        response=response,
        spans=spans,
        all_spans=spans if task == "dense" else [],
        duration=duration_s,
        answer=answer,
        captions=captions,
        prompt_spans=prompt_spans,
    )
    yield {**row, "options": options, "answer_index": answer_index, "saliency": None}


def _flat_pairs(tgt: Any) -> list[Any]:
    """`tgt` is one pair, a list of pairs, or (vhd) a list of the annotators' lists of pairs."""
    if tgt is None:
        return []
    if not isinstance(tgt, list):
        raise RecordFault("tgt", f"is {tgt!r:.60}", "Write [start_s, end_s], or a list of such pairs")
    by_annotator = bool(tgt) and all(isinstance(entry, list) and entry for entry in tgt)
    if not by_annotator or not all(isinstance(pair, list) for entry in tgt for pair in entry):
        return tgt
    pairs = [pair for annotator in tgt for pair in annotator]
    return [pair for index, pair in enumerate(pairs) if pair not in pairs[:index]]


def _options(sample: dict[str, Any]) -> tuple[list[str], int]:
    options = get(sample, "o", list, what="the answers to choose from")
    # An interval for an option is written as the benchmark's own scorer writes it.
    options = [" - ".join(map(str, option)) if isinstance(option, list) else option for option in options]
    options = [clean_text("o", option) for option in options]
    index = get(sample, "p", int, what="the index of the right answer")
    if not 0 <= index < len(options):
        raise RecordFault("p", f"is {index}, but there are {len(options)} options", "Count from 0")
    return options, index
