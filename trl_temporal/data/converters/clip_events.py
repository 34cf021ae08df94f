# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Clips with their events and questions, one JSON object a line: `{video, duration, events, qa}`."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..grammar import EVI, EVI_END, format_dense, format_grounding, format_qa
from ..rows import sft_row
from ..schema import SFT_FEATURES, RowError, span_fault
from .annotation_files import Record, read_text
from .records import ConversionReport, OnBadRecord, rows_of_records

TASKS = ("grounding", "dense", "qa")


def load_clip_events(
    path: str | os.PathLike, *, video_root: str | os.PathLike | None = None, tasks: Sequence[str] = TASKS
) -> datasets.Dataset:
    """
    Read clips with labelled events and make rows of the data contract from them.

    A line of the file is one clip: `{"video": "videos/a.mp4", "duration": 10.0, "events": [{"span": [0.0, 1.2],
    "caption": "A man waves"}], "qa": [{"question": "Who waves?", "answer": "A man", "event": 0}]}`. Spans are seconds
    from the first frame, `event` is the index of the event that shows the answer, and `qa` may be left out.

    Args:
        path (`str` or `os.PathLike`):
            JSON-lines file.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder that the paths of the videos are relative to. By default the parent of the file's folder, so that
            `annotations/clips.jsonl` finds `videos/a.mp4` beside `annotations`.
        tasks (`Sequence[str]`, *optional*, defaults to `("grounding", "dense", "qa")`):
            Rows to make: `"grounding"` asks when a caption happens, once per different caption of a clip (the answer
            is every event with it); `"dense"` asks for all events, once per clip; `"qa"` is one row per
            question, with its event as evidence.

    Returns:
        `datasets.Dataset`: SFT rows, see [`~trl_temporal.data.schema.SFTRow`].

    Raises:
        `ValueError`: a line is broken; the message names the file, the line, the fault and what to do.
        `FileNotFoundError`: a line names a video that does not exist.

    Example:

    ```python
    >>> from trl_temporal.data.converters import load_clip_events
    >>> dataset = load_clip_events("annotations/clips.jsonl", tasks=["grounding"])  # doctest: +SKIP
    ```
    """
    unknown = set(tasks) - set(TASKS)
    if unknown or not tasks:
        raise ValueError(f"tasks are {list(tasks)}; choose from {', '.join(TASKS)}")
    path = Path(path)
    root = path.resolve().parent.parent if video_root is None else Path(video_root)

    rows = []
    lines_of_videos: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        clip = _read_clip(line, where)
        first = lines_of_videos.setdefault(clip["video"], number)
        if first != number:
            raise ValueError(f"{where}: '{clip['video']}' was on line {first} already. Join the two lines.")
        video_path = root / clip["video"]
        if not video_path.is_file():
            raise FileNotFoundError(f"{where}: there is no video '{video_path}'. Mend the path or pass video_root.")
        rows.extend(row for row in _clip_rows(clip, str(video_path), source=path.stem) if row["task"] in tasks)
    if not rows:
        raise ValueError(f"{path}: no rows for the tasks {', '.join(tasks)}. Check that the file has events and qa.")
    return datasets.Dataset.from_list(rows, features=SFT_FEATURES)


def read_clip_events(
    src: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
) -> Iterator[dict[str, Any]]:
    """
    Read the rows of [`load_clip_events`] one by one, as the other converters do.

    Args:
        src (`str` or `os.PathLike`):
            JSON-lines file, see [`load_clip_events`].
        video_root (`str` or `os.PathLike`, *optional*):
            Folder that the paths of the videos are relative to. By default the parent of the file's folder. Rows of
            missing videos are counted and left out.
        seed (`int`, *optional*, defaults to `0`):
            Not used: the questions have one wording.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"`, or `"skip"` to count and list bad lines.
        report (`ConversionReport`, *optional*):
            Counts what is done.

    Returns:
        `Iterator[dict]`: rows of the data contract.

    Raises:
        [`RecordError`]: a line is bad and `on_bad_record` is `"raise"`.
    """
    src = Path(src)

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        try:
            clip = _read_clip(record.data, "clip")
            yield from _clip_rows(clip, clip["video"], source=src.stem)
        except ValueError as error:
            raise RowError(str(error)) from None
        except (TypeError, AttributeError) as error:
            mend = "Give video, duration, events and qa the types of the format"
            raise RowError(f"clip: cannot be read ({error}). {mend}.") from None
        changes["segments"] += len(clip["events"])

    lines = enumerate(read_text(src).splitlines())
    records = (Record(f"line {index + 1}", index, line) for index, line in lines if line.strip())
    root = src.resolve().parent.parent if video_root is None else video_root
    yield from rows_of_records(src, records, make_rows, video_root=root, on_bad_record=on_bad_record, report=report)


def _read_clip(line: str, where: str) -> dict[str, Any]:
    try:
        clip = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON ({error}). Write one object a line.") from error
    for key in ("video", "duration", "events"):
        if not isinstance(clip, dict) or key not in clip:
            raise ValueError(f"{where}: '{key}' is missing. A line is one object with video, duration, events and qa.")
    if EVI in line or EVI_END in line:
        raise ValueError(f"{where}: a text holds {EVI} or {EVI_END}. Remove it; the responses get their own.")
    clip.setdefault("qa", [])

    if not isinstance(clip["duration"], int | float) or not clip["duration"] > 0:
        raise ValueError(f"{where}: the duration is {clip['duration']!r}. Give the length of the video in seconds.")
    for index, event in enumerate(clip["events"]):
        _check_keys(event, ("span", "caption"), f"{where}, event {index}")
        if found := span_fault(event["span"], clip["duration"]):
            fault, mend = found
            raise ValueError(f"{where}, event {index}: its span {fault}. {mend}.")
    for index, question in enumerate(clip["qa"]):
        _check_keys(question, ("question", "answer", "event"), f"{where}, question {index}")
        if question["event"] not in range(len(clip["events"])):
            raise ValueError(
                f"{where}, question {index}: event {question['event']} is out of range. "
                f"The clip has {len(clip['events'])} events; the first has index 0."
            )
    return clip


def _check_keys(entry: dict[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if entry.get(key) in (None, "", []):
            raise ValueError(f"{where}: '{key}' is missing. Fill it in.")


def _clip_rows(clip: dict[str, Any], video_path: str, source: str) -> Iterator[dict[str, Any]]:
    # In time order; the questions refer to the order of the file.
    in_time = sorted(clip["events"], key=lambda event: event["span"])

    def row(name: str, task: str, question: str, response: str, events: Sequence[dict[str, Any]], **texts) -> dict:
        return sft_row(
            id=f"{source}-{clip['video']}-{name}",
            source=source,
            task=task,
            video={"path": video_path},
            question=question,
            response=response,
            spans=[event["span"] for event in events],
            all_spans=[event["span"] for event in in_time],
            duration=clip["duration"],
            **texts,
        )

    captions = [event["caption"] for event in in_time]
    for index, caption in enumerate(dict.fromkeys(captions)):
        events = [event for event in in_time if event["caption"] == caption]
        question = f'When does this happen: "{caption}"?'
        yield row(f"grounding-{index}", "grounding", question, format_grounding(len(events)), events)
    if in_time:
        question = "Describe every event in the video."
        yield row("dense", "dense", question, format_dense(captions), in_time, captions=captions)
    for index, qa in enumerate(clip["qa"]):
        evidence = [clip["events"][qa["event"]]]
        response = format_qa(qa["answer"], num_events=1)
        yield row(f"qa-{index}", "qa", qa["question"], response, evidence, answer=qa["answer"])
