# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The annotation files of the released D2VLM: `evi.json` (SFT) and `fpo_annotation.json` (preference pairs)."""

import json
import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import datasets

from ..grammar import EVI, EVI_END, split_response
from ..rows import VIDEO_FIELDS
from ..schema import MESSAGES_FEATURE, SPANS_FEATURE, VIDEOS_FEATURE, RowError, validate_row

IMAGE = "<image>"  # where the video stands in a released question
CHOSEN = "chosen"

_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("float64")
_COMMON_FEATURES = {
    "id": _TEXT,
    "source": _TEXT,
    "task": _TEXT,
    "videos": VIDEOS_FEATURE,
    "prompt": MESSAGES_FEATURE,
    "prompt_spans": SPANS_FEATURE,
    "duration": _NUMBER,
}
_FEATURES = {
    "sft": datasets.Features({**_COMMON_FEATURES, "completion": MESSAGES_FEATURE, "spans": SPANS_FEATURE}),
    "preference": datasets.Features(
        {
            **_COMMON_FEATURES,
            "chosen": MESSAGES_FEATURE,
            "rejected": MESSAGES_FEATURE,
            "chosen_spans": SPANS_FEATURE,
            "rejected_spans": SPANS_FEATURE,
            "factor": _TEXT,
            "source_id": _TEXT,
        }
    ),
}

# The key of a rejected response is `reject_<kind>_<name>`; the names of the two text distortions say who wrote them.
_FACTORS = {"f": "distort", "qwen": "distort"}


def load_d2vlm(
    path: str | os.PathLike, kind: Literal["sft", "preference"], video_root: str | os.PathLike | None = None
) -> datasets.Dataset:
    """
    Read an annotation file of the released D2VLM and make rows of the data contract from it.

    One warning says what was done to the data: intervals that were turned round or clipped, records that were left out
    and why, and videos that are not there. Of a preference record with several rejected responses one is kept, the one
    that the released builder keeps (see [`choose_rejected`]).

    Args:
        path (`str` or `os.PathLike`):
            JSON file with a list of records.
        kind (`str`):
            `"sft"` for the form of `evi.json`, `"preference"` for that of `fpo_annotation.json`.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder that the paths of the videos are relative to. By default they are kept as the file has them.

    Returns:
        `datasets.Dataset`: one row per record, see [`sft_row_from_d2vlm`] and [`preference_row_from_d2vlm`]. The id of
        a record is the name of the file and its position in it.

    Raises:
        `ValueError`: the file is not such a list, or no record of it can be used.

    Example:

    ```python
    >>> from trl_temporal.data.converters.d2vlm import load_d2vlm
    >>> dataset = load_d2vlm("fpo_annotation.json", "preference", video_root="videos")  # doctest: +SKIP
    ```
    """
    if kind not in _FEATURES:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(map(repr, _FEATURES))}")
    path = Path(path)
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path}: is not a JSON list with records. Pass an annotation file of the released D2VLM.")
    keys = choose_rejected(records) if kind == "preference" else [None] * len(records)

    rows, faults, mended = [], [], Counter()
    for index, (record, key) in enumerate(zip(records, keys, strict=True)):
        id = f"{path.stem}-{index}"
        try:
            if kind == "sft":
                row, changes = _sft_row(record, id, video_root)
            else:
                row, changes = _preference_row(record, id, key, video_root)
            validate_row(row, kind=kind)
        except RowError as error:
            faults.append(str(error))
        else:
            rows.append(row)
            mended += changes
    if not rows:
        raise ValueError(f"{path}: none of the {len(records)} records can be used. The first: {faults[0]}")
    _report(path, rows, faults, mended)
    return datasets.Dataset.from_list(rows, features=_FEATURES[kind])


def _report(path: Path, rows: list[dict[str, Any]], faults: list[str], mended: Counter) -> None:
    found = [f"Intervals {change}: {count}" for change, count in mended.items()]
    if faults:
        more = "" if len(faults) <= 10 else f"; and {len(faults) - 10} more"
        found.append(f"{len(faults)} of {len(rows) + len(faults)} records left out: {'; '.join(faults[:10])}{more}")
    videos = list(dict.fromkeys(row["videos"][0]["path"] for row in rows))
    missing = [video for video in videos if not os.path.isfile(video)]
    if missing:
        found.append(f"{len(missing)} of {len(videos)} videos are not there, such as '{missing[0]}'")
    if found:
        warnings.warn(f"{path}: " + ". ".join(found), stacklevel=3)


def sft_row_from_d2vlm(
    record: dict[str, Any], *, id: str, video_root: str | os.PathLike | None = None
) -> dict[str, Any]:
    r"""
    Make an SFT row from a record of `evi.json`.

    The video part stands where `<image>` stood; the line break behind it is left to the chat template. Without an
    `<image>` the video comes first (the released code draws a side at random). An interval that runs backwards is
    turned round and one that sticks out of the video is clipped, with a warning.

    Args:
        record (`dict`):
            `video`, `duration`, `conversations` (one turn of the human, one of the assistant), `tgt` (the intervals
            of the answer in seconds, `[s, e, s, e]` or `[[s, e], [s, e]]`), and `src` (those of the question; a single
            number is a moment); `task` and `source` where it has them.
        id (`str`):
            Name of the row.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder that the path of the video is relative to.

    Returns:
        `dict`: a [`~trl_temporal.data.schema.SFTRow`]. `prompt_spans` is `None` where the question refers to no
        interval. An answer without `</evi>` is kept as it is, and has no spans.

    Raises:
        [`~trl_temporal.data.schema.RowError`]: names the row, the column, the fault and what to do.

    Example:

    ```python
    >>> from trl_temporal.data.converters.d2vlm import sft_row_from_d2vlm
    >>> question = {"from": "human", "value": "<image>\\nWhen does the dog jump?"}
    >>> answer = {"from": "gpt", "value": "<evi> </evi> It jumps in <evi>."}
    >>> record = {"video": "a.mp4", "duration": 9.5, "conversations": [question, answer], "tgt": [2.0, 3.5]}
    >>> row = sft_row_from_d2vlm(record, id="a")
    >>> row["spans"], row["prompt"][0]["content"]
    ([[2.0, 3.5]], [{'type': 'video'}, {'type': 'text', 'text': '\\nWhen does the dog jump?'}])
    ```
    """
    row, changes = _sft_row(record, id, video_root)
    _warn_changes(id, changes)
    return row


def preference_row_from_d2vlm(
    record: dict[str, Any], *, id: str, rejected_key: str, video_root: str | os.PathLike | None = None
) -> dict[str, Any]:
    """
    Make a preference row from a record of `fpo_annotation.json` and one of its rejected responses.

    Args:
        record (`dict`):
            As for [`sft_row_from_d2vlm`], but `conversations` and `tgt` are dictionaries with an entry `"chosen"` and
            one per rejected response. Records about text alone have no `tgt`. The question is that of `"chosen"`.
        id (`str`):
            Name of the record. It becomes `source_id`; the row is named after it and `rejected_key`.
        rejected_key (`str`):
            Which response is the rejected one, such as `"reject_g_shift"`.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder that the path of the video is relative to.

    Returns:
        `dict`: a [`~trl_temporal.data.schema.PreferenceRow`] with `source_id`; `factor` is read from the key.

    Raises:
        [`~trl_temporal.data.schema.RowError`]: names the row, the column, the fault and what to do.
    """
    row, changes = _preference_row(record, id, rejected_key, video_root)
    _warn_changes(id, changes)
    return row


def choose_rejected(records: Sequence[dict[str, Any]], seed: int = 42) -> list[str | None]:
    """
    Which rejected response of each record the released builder keeps: one, evenly among those it has.

    One generator is seeded once and draws for the records in their order, also for those with a single rejected
    response, so leaving out a record changes the draws behind it.

    Args:
        records (`Sequence[dict]`):
            Records of `fpo_annotation.json`.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the draws. The released files were made with the default.

    Returns:
        `list[str | None]`: a key of `conversations` per record; `None`, without a draw, where it has no rejected
        response.

    Raises:
        [`~trl_temporal.data.schema.RowError`]: a record has no dictionary of conversations.

    Example:

    ```python
    >>> from trl_temporal.data.converters.d2vlm import choose_rejected
    >>> choose_rejected([{"conversations": {"chosen": [], "reject_g_shift": [], "reject_t_f": []}}])
    ['reject_g_shift']
    ```
    """
    rng = random.Random(seed)
    keys = []
    for index, record in enumerate(records):
        conversations = record.get("conversations")
        if not isinstance(conversations, dict):
            raise RowError(
                f"record {index}, column 'conversations': is no dictionary of 'chosen' and rejected responses. Pass "
                "the records of fpo_annotation.json; those of evi.json are of kind 'sft'."
            )
        rejected = [key for key in conversations if key != CHOSEN]
        keys.append(rng.choice(rejected) if rejected else None)
    return keys


def _sft_row(record: dict[str, Any], id: str, video_root: str | os.PathLike | None) -> tuple[dict[str, Any], Counter]:
    changes = Counter()
    question, answer = _turns(record, None, id)
    spans = _spans("spans", "tgt", record.get("tgt"), record.get("duration"), id, changes)
    # Released training strips every message.
    answer = answer.strip()
    _check_counts("completion", answer, "spans", spans, id)
    row = _common_columns(record, question, record.get("src"), id, video_root, changes)
    return row | {"completion": _message("assistant", answer), "spans": spans}, changes


def _preference_row(
    record: dict[str, Any], id: str, rejected_key: str | None, video_root: str | os.PathLike | None
) -> tuple[dict[str, Any], Counter]:
    changes = Counter()
    if rejected_key is None:
        raise _fault(id, "conversations", "has no rejected response", "Add one, or remove the record")
    question, chosen = _turns(record, CHOSEN, id)
    _, rejected = _turns(record, rejected_key, id)
    # One `src` for all responses, or one for each: the question is that of the chosen response.
    src = _branch(record, "src", CHOSEN, id) if isinstance(record.get("src"), dict) else record.get("src")
    row = _common_columns(record, question, src, id, video_root, changes)
    row |= {"id": f"{id}-{rejected_key}", "source_id": id, "factor": _factor(rejected_key)}
    # Not stripped: the released packer tokenizes the responses of a pair as they are.
    for column, key, text in ((CHOSEN, CHOSEN, chosen), ("rejected", rejected_key, rejected)):
        intervals = _branch(record, "tgt", key, id)
        spans = _spans(f"{column}_spans", "tgt", intervals, record.get("duration"), id, changes)
        _check_counts(column, text, f"{column}_spans", spans, id)
        row |= {column: _message("assistant", text), f"{column}_spans": spans}
    return row, changes


def _common_columns(
    record: dict[str, Any],
    question: str,
    src: Any,
    id: str,
    video_root: str | os.PathLike | None,
    changes: Counter,
) -> dict[str, Any]:
    if not record.get("video"):
        raise _fault(id, "videos", "the record has no 'video'", "Name the file, or remove the record")
    path = record["video"] if video_root is None else os.path.join(video_root, record["video"])
    prompt_spans = None
    if src is not None:
        src = src if isinstance(src, list) else [src]
        moment = len(src) == 1 and not isinstance(src[0], list)
        prompt_spans = _spans("prompt_spans", "src", src * 2 if moment else src, record.get("duration"), id, changes)
    if question.count(EVI) != len(prompt_spans or []):
        fault = f"has length {len(prompt_spans or [])}, but the prompt has {question.count(EVI)} {EVI}"
        raise _fault(id, "prompt_spans", fault, f"Give each {EVI} of the question its interval in 'src'")
    return {
        "id": id,
        "source": record.get("source"),
        "task": record.get("task"),
        "videos": [dict.fromkeys(VIDEO_FIELDS) | {"path": path}],
        "prompt": [{"role": "user", "content": _question_parts(question, id)}],
        "prompt_spans": prompt_spans,
        "duration": record.get("duration"),
    }


def _question_parts(question: str, id: str) -> list[dict[str, str]]:
    question = question.strip()
    before, image, after = question.partition(IMAGE)
    if not image:
        before, after = "", question
    if IMAGE in after:
        raise _fault(id, "prompt", f"has {IMAGE} more than once", "Keep one; a row has one video")
    # The line break behind the video is the chat template's.
    parts = [{"type": "text", "text": before}, {"type": "video"}, {"type": "text", "text": after.removeprefix("\n")}]
    return [part for part in parts if part.get("text") != ""]


def _message(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": text}]}]


def _turns(record: dict[str, Any], key: str | None, id: str) -> tuple[str, str]:
    """The human's and the assistant's text, of the branch `key` in a preference record."""
    turns = record.get("conversations") if key is None else _branch(record, "conversations", key, id)
    if not isinstance(turns, list) or [turn.get("from") for turn in turns] != ["human", "gpt"]:
        fault = "is not one turn of the human and one of the assistant" + (f" in '{key}'" if key else "")
        raise _fault(id, "conversations", fault, "Write [{'from': 'human', ...}, {'from': 'gpt', ...}]")
    for turn in turns:
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            raise _fault(id, "conversations", f"has no text from '{turn['from']}'", "Fill its 'value'")
    return turns[0]["value"], turns[1]["value"]


def _branch(record: dict[str, Any], column: str, key: str, id: str) -> Any:
    """The entry `key` of a column of a preference record, or `None` where it has no such column."""
    branches = record.get(column)
    if branches is None:
        return None
    if not isinstance(branches, dict) or key not in branches:
        raise _fault(id, column, f"has no entry '{key}'", "Give each response of the record its own")
    return branches[key]


def _spans(
    column: str, source: str, intervals: Any, duration_s: float | None, id: str, changes: Counter
) -> list[list[float]]:
    """Flat or nested intervals as `[start_s, end_s]` inside the video. What had to be mended is counted."""
    intervals = [] if intervals is None else intervals
    if not isinstance(intervals, list):
        raise _fault(id, column, f"'{source}' is {intervals!r:.60}", "Write a list, [start, end, start, end, ...]")
    nested = any(isinstance(entry, list) for entry in intervals)
    pairs = intervals if nested else [intervals[i : i + 2] for i in range(0, len(intervals), 2)]
    spans = []
    for pair in pairs:
        numbers = isinstance(pair, list) and all(isinstance(edge, int | float) for edge in pair)
        if not numbers or len(pair) != 2 or not all(map(math.isfinite, pair)):
            raise _fault(id, column, f"'{source}' has {pair!r} for an interval", "Write [start, end, start, end, ...]")
        start_s, end_s = sorted(pair)
        changes["turned round"] += pair[0] > pair[1]
        limit_s = math.inf if duration_s is None else duration_s
        if end_s < 0 or start_s > limit_s:
            fault = f"'{source}' has the interval {pair}, which is not inside the video (0 to {limit_s} s)"
            raise _fault(id, column, fault, "Check that the times are seconds of this video")
        changes["clipped"] += start_s < 0 or end_s > limit_s
        spans.append([max(start_s, 0), min(end_s, limit_s)])
    return spans


def _check_counts(column: str, text: str, span_column: str, spans: list[list[float]], id: str) -> None:
    """Both stages of a response refer to the same intervals; a text without `</evi>` refers to none."""
    num_evidence, response = split_response(text)
    for side, num_markers in (("before", num_evidence), ("after", response.count(EVI))):
        if num_markers != len(spans):
            fault = f"has length {len(spans)}, but '{column}' has {num_markers} {EVI} {side} {EVI_END}"
            raise _fault(id, span_column, fault, f"Write one {EVI} per interval of 'tgt' on each side of {EVI_END}")


def _factor(rejected_key: str) -> str:
    fields = rejected_key.split("_")
    name = fields[2] if len(fields) > 2 else rejected_key
    return _FACTORS.get(name, name)


def _fault(id: str, column: str, fault: str, mend: str) -> RowError:
    return RowError(f"row (id {id!r}), column '{column}': {fault}. {mend}.")


def _warn_changes(id: str, changes: Counter) -> None:
    if found := [f"intervals {change}: {count}" for change, count in changes.items() if count]:
        warnings.warn(f"row (id {id!r}): {', '.join(found)}", stacklevel=3)
