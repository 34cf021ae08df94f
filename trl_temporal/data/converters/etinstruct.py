# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Instruct 164K: instructions about events, with times as text (`_txt`) or as `<vid>` placeholders (`_vid`)."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..grammar import format_dense, format_grounding, format_qa
from ..rows import sft_row
from .annotation_files import Record, RecordFault, read_json_list
from .et_times import (
    MOMENT_TASKS,
    TASK_OF,
    VID,
    TimeInText,
    convert_question,
    find_times,
    flatten,
    intervals_in,
    spans_of_times,
)
from .records import (
    ConversionReport,
    OnBadRecord,
    clean_text,
    get,
    get_duration,
    get_name,
    in_time_order,
    rows_of_records,
)

# A word that leads over to a time belongs to the time, not to the caption.
_LEAD = re.compile(r"(?:^|(?<=\W))(?:from|in|at|during|between)\s*$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def read_etinstruct(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read E.T. Instruct 164K: one row per record. Both files of the release give the same rows.

    The question is the record's own, without the request for a form of answer; its times become `<evi>` with
    `prompt_spans`. The answer is taken apart and written anew in the form of our responses: intervals (tvg, tal, evs,
    vhd), captions with their intervals (dvc, slc, tvc), or words with evidence (gvq) and without (rvc, ...). A single
    time in an answer (vhd, tvc) becomes the second around it.

    Args:
        src (`str` or `os.PathLike`):
            `et_instruct_164k_vid.json` or `et_instruct_164k_txt.json`: a list of `{"task", "source", "video",
            "duration", "src", "tgt", "conversations"}`.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder `videos` of the release. Rows of missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            Not used: the records bring their questions.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad records.
        report (`ConversionReport`, *optional*):
            Counts what is done.

    Returns:
        `Iterator[dict]`: rows of the data contract. `source` is `etinstruct/<task>/<source>`. `all_spans` is empty but
        for dense rows, since a record does not tell the other events of its video.

    Raises:
        [`RecordError`]: a record is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.data.converters import read_etinstruct
    >>> rows = read_etinstruct("et_instruct_164k_vid.json", video_root="videos", on_bad_record="skip")
    >>> first = next(rows)  # doctest: +SKIP
    ```
    """
    yield from rows_of_records(
        src, read_json_list(src), _rows, video_root=video_root, on_bad_record=on_bad_record, report=report
    )


def _rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
    released_task = get_name(record.data, "task")
    if released_task not in TASK_OF:
        raise RecordFault("task", f"is '{released_task}'", f"The tasks are {', '.join(TASK_OF)}")
    task = TASK_OF[released_task]
    duration_s = get_duration(record.data)
    asked, answered = _turns(record.data)
    question, prompt_spans = convert_question(asked, record.data.get("src"), duration_s, changes)

    times = _answer_times(answered, record.data.get("tgt"), released_task)
    spans = spans_of_times("tgt", times, duration_s, changes)
    answer, captions = "", []
    if task == "grounding":
        _check_any(spans)
        spans.sort()
        response = format_grounding(len(spans))
    elif task == "dense":
        _check_any(spans)
        spans, captions = in_time_order(spans, _captions(answered, times), changes)
        response = format_dense(captions)
    else:
        answer = _answer_words(answered, times)
        response = format_qa(answer, len(spans))
    yield sft_row(
        id=f"etinstruct-{record.index}",
        source=f"etinstruct/{released_task}/{record.data.get('source', 'unknown')}",
        task=task,
        video={"path": get_name(record.data, "video")},
        question=question,
        response=response,
        spans=spans,
        all_spans=spans if task == "dense" else [],
        duration=duration_s,
        answer=answer,
        captions=captions,
        prompt_spans=prompt_spans,
    )


def _turns(record: dict[str, Any]) -> tuple[str, str]:
    turns = get(record, "conversations", list, what="a question and an answer")
    roles = [turn.get("from") if isinstance(turn, dict) else None for turn in turns]
    if roles != ["human", "gpt"]:
        raise RecordFault("conversations", f"has turns from {roles!r:.60}", "Write one of 'human', then one of 'gpt'")
    return get(turns[0], "value", str, what="a text"), clean_text("value", turns[1].get("value"))


def _answer_times(text: str, tgt: Any, released_task: str) -> list[TimeInText]:
    """Where the answer speaks of its times. Without `tgt`, the intervals that the text spells out count."""
    if tgt is None and VID not in text.lower():
        has_evidence = TASK_OF[released_task] != "qa" or released_task == "gvq"
        return intervals_in(text) if has_evidence else []
    return find_times(text, "tgt", flatten("tgt", tgt), moments=released_task in MOMENT_TASKS)


def _check_any(spans: list[list[float]]) -> None:
    if not spans:
        raise RecordFault("tgt", "is empty, and the answer names no interval", "Give the answer its times")


def _captions(text: str, times: list[TimeInText]) -> list[str]:
    """The words behind each time, up to the next one."""
    before = text[: times[0].begin].strip()
    lead = _LEAD.search(before)
    if before and not (lead and lead.start() == 0):
        raise RecordFault("conversations", f"has '{before:.40}' before the first time", "Begin with a time")
    ends = [time.begin for time in times[1:]] + [len(text)]
    captions = []
    for time, end in zip(times, ends, strict=True):
        caption = text[time.end : end].strip()
        if before and end < len(text):
            caption = _LEAD.sub("", caption)
        caption = caption.lstrip(" ,;:-–").rstrip(" ,;\n").removesuffix(".")
        captions.append(clean_text("conversations, a caption", caption))
    return captions


def _answer_words(text: str, times: list[TimeInText]) -> str:
    """The answer without the sentence that gives its times, or without the end of its only sentence."""
    if not times:
        return text.removesuffix(".")
    kept, begin = [], 0
    for sentence in _SENTENCE_END.split(text):
        begin = text.index(sentence, begin)
        end = begin + len(sentence)
        if not any(begin <= time.begin < end for time in times):
            kept.append(sentence)
        begin = end
    words = " ".join(kept) or _LEAD.sub("", text[: times[0].begin].rstrip()).rstrip(" ,;:-(")
    return clean_text("conversations, the answer", words).removesuffix(".")
