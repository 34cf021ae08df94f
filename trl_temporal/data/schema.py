# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The rows that the trainers and the evaluation read, and the checks that name the row and the fault."""

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import datasets

from .grammar import EVI, EVI_END, split_response

RowKind = Literal["sft", "preference", "prompt"]
Message = dict[str, Any]
Interval = Sequence[float]  # [start_s, end_s]

# Labels and container durations are rounded: a span may pass the end by this much.
DURATION_SLACK_S = 0.05


class VideoEntry(TypedDict):
    """One entry of the `videos` column: a file or a folder of frames, whole or cropped. Unused fields are `None`."""

    path: NotRequired[str | None]
    start_s: NotRequired[float | None]
    end_s: NotRequired[float | None]
    frames_dir: NotRequired[str | None]
    fps: NotRequired[float | None]


class PromptRow(TypedDict):
    """What every row has: a question about at most one video. Times are seconds from the start of the crop."""

    prompt: list[Message]
    videos: NotRequired[list[VideoEntry]]
    prompt_spans: NotRequired[list[Interval]]
    duration: NotRequired[float]
    id: NotRequired[str]
    task: NotRequired[str]
    source: NotRequired[str]


class SFTRow(PromptRow):
    """A row with the response to learn; `spans` holds one interval per `<evi>` of its evidence stage, in order."""

    completion: list[Message]
    spans: list[Interval]
    response_spans: NotRequired[list[Interval]]
    answer: NotRequired[str]
    captions: NotRequired[list[str]]
    all_spans: NotRequired[list[Interval]]


class PreferenceRow(PromptRow):
    """A row with a better and a worse response, and what was perturbed to get the worse one."""

    chosen: list[Message]
    rejected: list[Message]
    chosen_spans: list[Interval]
    rejected_spans: list[Interval]
    factor: NotRequired[str]
    factor_args: NotRequired[str]
    keep_ratio: NotRequired[int]


# The column of each response, and the column of its spans.
_RESPONSES: dict[str, dict[str, str]] = {
    "sft": {"completion": "spans"},
    "preference": {"chosen": "chosen_spans", "rejected": "rejected_spans"},
    "prompt": {},
}
_COMMON_COLUMNS = ("id", "videos", "prompt", "prompt_spans", "response_spans", "all_spans", "duration")

# Features of the columns that Arrow would otherwise guess from the values (a field that no row uses becomes `null`).
_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("float64")
MESSAGES_FEATURE = datasets.List({"role": _TEXT, "content": datasets.List({"type": _TEXT, "text": _TEXT})})
SPANS_FEATURE = datasets.List(datasets.List(_NUMBER))
VIDEOS_FEATURE = datasets.List(
    {"path": _TEXT, "start_s": _NUMBER, "end_s": _NUMBER, "frames_dir": _TEXT, "fps": _NUMBER}
)
SFT_FEATURES = datasets.Features(
    {
        "id": _TEXT,
        "source": _TEXT,
        "task": _TEXT,
        "videos": VIDEOS_FEATURE,
        "prompt": MESSAGES_FEATURE,
        "completion": MESSAGES_FEATURE,
        "spans": SPANS_FEATURE,
        "answer": _TEXT,
        "captions": datasets.List(_TEXT),
        "all_spans": SPANS_FEATURE,
        "duration": _NUMBER,
    }
)


class RowError(ValueError):
    """A row that breaks the data contract. The message names the row, the column, the fault and what to do."""


def _fault(column: str, fault: str, mend: str) -> RowError:
    return RowError(f"column '{column}': {fault}. {mend}.")


def strip_none_parts(messages: Sequence[Message]) -> list[Message]:
    """
    Remove the `None` values that Arrow fills into messages whose parts have different keys.

    Args:
        messages (`Sequence[dict]`):
            Messages as a `datasets.Dataset` returns them.

    Returns:
        `list[dict]`: the messages without `None` values, in the message and in its parts. The input is not changed.

    Example:

    ```python
    >>> from trl_temporal.data.schema import strip_none_parts
    >>> strip_none_parts([{"role": "user", "content": [{"type": "video", "text": None}], "name": None}])
    [{'role': 'user', 'content': [{'type': 'video'}]}]
    ```
    """
    messages = [_without_none(message) for message in messages]
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = [_without_none(part) for part in message["content"]]
    return messages


def _without_none(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


def coerce_videos(value: Any) -> list[VideoEntry]:
    """
    Bring the `videos` cell of a row into its one form, a list of entries without unused fields.

    Args:
        value (`str`, `os.PathLike`, `dict`, a list of these, or `None`):
            Cell of the `videos` column. A dictionary is a [`VideoEntry`] or what `datasets.Video(decode=False)`
            returns (`{"path": ..., "bytes": None}`).

    Returns:
        `list[dict]`: one [`VideoEntry`] per video.

    Raises:
        [`RowError`]: an entry names no source or two, has an unknown key, holds encoded bytes or a decoder, or has a
            crop or a frame rate that cannot be.

    Example:

    ```python
    >>> from trl_temporal.data.schema import coerce_videos
    >>> coerce_videos(["a.mp4", {"path": "b.mp4", "start_s": 2.0, "end_s": None}])
    [{'path': 'a.mp4'}, {'path': 'b.mp4', 'start_s': 2.0}]
    ```
    """
    if value is None:
        return []
    return [_coerce_video(entry) for entry in (value if isinstance(value, list) else [value])]


def _coerce_video(entry: Any) -> VideoEntry:
    if isinstance(entry, str | os.PathLike):
        return {"path": os.fspath(entry)}
    if not isinstance(entry, dict):
        fault = f"has an entry of type {type(entry).__name__}"
        raise _fault("videos", fault, "Give the path of the file, or cast to `datasets.Video(decode=False)`")
    entry = _without_none(entry)
    if "bytes" in entry:
        raise _fault("videos", "holds an encoded video in 'bytes'", "Write it to a file and give its path")
    known = VideoEntry.__annotations__
    for key in entry:
        if key not in known:
            raise _fault("videos", f"has the unknown key '{key}'", f"Remove it; the keys are {', '.join(known)}")
    if ("path" in entry) == ("frames_dir" in entry):
        raise _fault("videos", "has an entry with no source or two", "Give it either a 'path' or a 'frames_dir'")
    if ("frames_dir" in entry) != ("fps" in entry):
        raise _fault("videos", "has 'frames_dir' or 'fps' alone", "Give a folder of frames, and only it, its 'fps'")
    if not 0 < entry.get("fps", 1.0) < math.inf:
        raise _fault("videos", f"has 'fps' {entry['fps']}", "Give the positive number of frames per second")
    start_s, end_s = entry.get("start_s", 0.0), entry.get("end_s", math.inf)
    if not 0 <= start_s < end_s:
        raise _fault("videos", f"has an impossible crop, {start_s} s to {end_s} s", "Use 0 <= start_s < end_s")
    return entry


def span_fault(span: Any, duration_s: float | None = None, moment: bool = False) -> tuple[str, str] | None:
    """
    Say what is wrong with one span.

    Args:
        span (`Sequence[float]`):
            `[start_s, end_s]`, in seconds.
        duration_s (`float`, *optional*):
            Length of the video, when it is known; a span may pass it by 0.05 s.
        moment (`bool`, *optional*, defaults to `False`):
            Allow zero length, for a question about a moment.

    Returns:
        `tuple[str, str]` or `None`: the fault and its mend, or `None` for a good span.

    Example:

    ```python
    >>> from trl_temporal.data.schema import span_fault
    >>> span_fault([4.0, 2.0])
    ('runs backwards, from 4.0 s to 2.0 s', 'Swap its ends')
    ```
    """
    if not isinstance(span, Sequence) or len(span) != 2 or not all(isinstance(edge, int | float) for edge in span):
        return f"is {span!r}", "Write it as [start_s, end_s], two numbers in seconds"
    start_s, end_s = span
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        return f"has an edge that is not a finite number ([{start_s}, {end_s}])", "Give both ends in seconds"
    if start_s < 0 or end_s < 0:
        return f"has a negative edge ([{start_s}, {end_s}])", "Count seconds from the first frame of the video or crop"
    if start_s > end_s:
        return f"runs backwards, from {start_s} s to {end_s} s", "Swap its ends"
    if start_s == end_s and not moment:
        return f"has zero length, at {start_s} s", "Give the event an end after its start, or remove it"
    if duration_s is not None and end_s > duration_s + DURATION_SLACK_S:
        fault = f"ends at {end_s} s, beyond the end of the video at {duration_s} s"
        return fault, "Clip it, and check that the times are seconds of this video or crop"
    return None


def validate_row(row: dict[str, Any], *, kind: RowKind, index: int | None = None) -> None:
    """
    Check one row against the data contract.

    Args:
        row (`dict`):
            A [`SFTRow`], [`PreferenceRow`] or [`PromptRow`]; other columns are not looked at.
        kind (`str`):
            `"sft"` (prompt and completion), `"preference"` (prompt, chosen, rejected) or `"prompt"` (prompt alone).
        index (`int`, *optional*):
            Position of the row in its dataset, for the message.

    Raises:
        [`RowError`]: names the row, the column, the fault and what to do.

    Example:

    ```python
    >>> from trl_temporal.data.schema import validate_row
    >>> row = {
    ...     "videos": ["a.mp4"],
    ...     "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}],
    ...     "completion": [{"role": "assistant", "content": "<evi> </evi> It happens in <evi>."}],
    ...     "spans": [[1.0, 2.5]],
    ... }
    >>> validate_row(row, kind="sft")
    ```
    """
    if kind not in _RESPONSES:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(map(repr, _RESPONSES))}")
    try:
        _check_row(row, kind)
    except RowError as error:
        name = "row" if index is None else f"row {index}"
        if row.get("id") is not None:
            name += f" (id {row['id']!r})"
        raise RowError(f"{name}, {error}") from None


def validate_dataset(dataset: Iterable[dict[str, Any]], kind: RowKind) -> None:
    """
    Check every row of a dataset; the first bad one raises.

    Args:
        dataset (`datasets.Dataset` or an iterable of row dictionaries):
            Rows to check. A streaming dataset is read to its end.
        kind (`str`):
            `"sft"`, `"preference"` or `"prompt"`, see [`validate_row`].

    Raises:
        [`RowError`]: names the row, the column, the fault and what to do.
    """
    for index, row in enumerate(_contract_columns(dataset, kind)):
        validate_row(row, kind=kind, index=index)


def filter_bad_rows(dataset: datasets.Dataset, kind: RowKind, manifest_path: str | os.PathLike) -> datasets.Dataset:
    """
    Keep the rows that pass [`validate_row`] and list the others in a file, for `on_bad_sample="skip"`.

    Args:
        dataset (`datasets.Dataset`):
            Rows to check.
        kind (`str`):
            `"sft"`, `"preference"` or `"prompt"`, see [`validate_row`].
        manifest_path (`str` or `os.PathLike`):
            JSON-lines file to write, with `index`, `id` and `reason` of every skipped row. Where no row is skipped,
            it is written empty.

    Returns:
        `datasets.Dataset`: the good rows, in order.

    Raises:
        `ValueError`: no row is good.
    """
    good, skipped = [], []
    for index, row in enumerate(_contract_columns(dataset, kind)):
        try:
            validate_row(row, kind=kind, index=index)
        except RowError as error:
            skipped.append({"index": index, "id": row.get("id"), "reason": str(error)})
        else:
            good.append(index)

    manifest_path = Path(manifest_path)
    manifest_path.parent.mkdir(parents=True, exist_ok=True)
    manifest_path.write_text("".join(json.dumps(entry) + "\n" for entry in skipped), encoding="utf-8")
    if not skipped:
        return dataset
    total = len(good) + len(skipped)
    if not good:
        raise ValueError(f"all {total} rows are bad, so no data is left; mend them as {manifest_path} says")
    warnings.warn(f"skipped {len(skipped)} of {total} rows; {manifest_path} says which and why", stacklevel=2)
    return dataset.select(good)


def _contract_columns(dataset: Iterable[dict[str, Any]], kind: RowKind) -> Iterator[dict[str, Any]]:
    """The rows with the columns that are checked alone, so that no image or video is decoded on the way."""
    if isinstance(dataset, datasets.Dataset):
        checked = (*_COMMON_COLUMNS, *_RESPONSES[kind], *_RESPONSES[kind].values())
        dataset = dataset.select_columns([column for column in dataset.column_names if column in checked])
        dataset = without_video_decoding(dataset)
    return iter(dataset)


def without_video_decoding(dataset: datasets.Dataset) -> datasets.Dataset:
    """
    Turn a `datasets.Video` column `videos` (or a list of them) into paths that the package's own loader reads.

    Args:
        dataset (`datasets.Dataset`):
            Any dataset.

    Returns:
        `datasets.Dataset`: the dataset with `Video(decode=False)` in its `videos` column, or itself.
    """
    feature = dataset.features.get("videos")
    undecoded = datasets.Video(decode=False)
    if isinstance(feature, datasets.Video):
        return dataset.cast_column("videos", undecoded)
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Video):
        return dataset.cast_column("videos", datasets.List(undecoded))
    return dataset


def _check_row(row: dict[str, Any], kind: RowKind) -> None:
    responses = _RESPONSES[kind]
    for column in ("prompt", *responses):
        if row.get(column) is None:
            needed = ", ".join(["prompt", *responses, *responses.values()])
            raise _fault(column, "is missing", f"A row of kind '{kind}' needs the columns {needed}")

    prompt = _read_messages("prompt", row["prompt"])
    videos = coerce_videos(row.get("videos"))
    _check_videos_agree(prompt, videos)
    duration_s = _known_duration(row, videos)
    for column in ("prompt_spans", "response_spans", "all_spans", *responses.values()):
        if row.get(column) is not None:
            _check_spans(column, row[column], duration_s)

    _check_prompt(prompt, num_spans=len(row.get("prompt_spans") or []))
    texts = {column: _check_response(row, column, name, bool(videos)) for column, name in responses.items()}
    if kind == "preference" and texts["chosen"] == texts["rejected"]:
        chosen_spans, rejected_spans = ([list(span) for span in row.get(name) or []] for name in responses.values())
        if chosen_spans == rejected_spans:
            raise _fault("rejected", "is equal to 'chosen', in text and spans", "Perturb it, or remove the row")


class _Turn(NamedTuple):
    role: str
    text: str
    num_videos: int


def _read_messages(column: str, messages: Any) -> list[_Turn]:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise _fault(column, f"is {messages!r:.60}, not a list of messages", 'Write [{"role": ..., "content": ...}]')
    return [_read_message(column, message) for message in messages]


def _read_message(column: str, message: Any) -> _Turn:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise _fault(column, f"has a message with the role {role!r}", "Use 'system', 'user' or 'assistant'")
    if isinstance(content, str):
        return _Turn(role, content, num_videos=0)
    if not isinstance(content, list):
        raise _fault(column, f"has a message with the content {content!r}", "Give it a string or a list of parts")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "video"):
            raise _fault(column, f"has the part {part!r:.60}", "Use parts of type 'text' and 'video'")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise _fault(column, "has a text part without text", "Fill its 'text' with a string, or remove the part")
    texts = [part["text"] for part in content if part["type"] == "text"]
    return _Turn(role, "".join(texts), num_videos=len(content) - len(texts))


def _check_prompt(prompt: list[_Turn], num_spans: int) -> None:
    if prompt[-1].role != "user":
        fault = f"ends with a message of the {prompt[-1].role}"
        raise _fault("prompt", fault, "End it with the user's question; the answer has a column of its own")
    text = "".join(turn.text for turn in prompt)
    if EVI_END in text:
        raise _fault("prompt", f"has {EVI_END}, which only a response may have", "Remove it")
    if text.count(EVI) != num_spans:
        fault = f"has length {num_spans}, but the prompt has {text.count(EVI)} {EVI}"
        raise _fault("prompt_spans", fault, f"Give each {EVI} of the prompt its span, in order")


def _check_videos_agree(prompt: list[_Turn], videos: list[VideoEntry]) -> None:
    if len(videos) > 1:
        raise _fault("videos", f"has {len(videos)} entries", "Keep one; this version takes one video a row")
    num_parts = sum(turn.num_videos for turn in prompt)
    if num_parts != sum(turn.num_videos for turn in prompt if turn.role == "user"):
        raise _fault("prompt", "has a video part outside the user's messages", "Move it before the question")
    if num_parts > 1:
        raise _fault("prompt", f"has {num_parts} video parts", "Keep one; this version takes one video a row")
    if num_parts and not videos:
        raise _fault("videos", "is empty, but the prompt has a video part", "Name the video, or remove the part")
    if videos and not num_parts:
        fault = "has no video part, so the model would never see the entry of 'videos'"
        raise _fault("prompt", fault, 'Put {"type": "video"} before the question')


def _known_duration(row: dict[str, Any], videos: list[VideoEntry]) -> float | None:
    """Length in seconds of what the model sees: the `duration` column, or the crop where that is shorter."""
    duration_s = row.get("duration")
    if duration_s is not None and not (isinstance(duration_s, int | float) and 0 < duration_s < math.inf):
        raise _fault("duration", f"is {duration_s!r}", "Give the length of the video in seconds")
    known_s = [] if duration_s is None else [duration_s]
    if videos and "end_s" in videos[0]:
        known_s.append(videos[0]["end_s"] - videos[0].get("start_s", 0.0))
    return min(known_s, default=None)


def _check_spans(column: str, spans: Any, duration_s: float | None) -> None:
    if not isinstance(spans, list):
        raise _fault(column, f"is {spans!r:.60}", "Write it as a list of [start_s, end_s]")
    for position, span in enumerate(spans):
        if found := span_fault(span, duration_s, moment=column == "prompt_spans"):
            fault, mend = found
            raise _fault(column, f"span {position} {fault}", mend)


def _check_response(row: dict[str, Any], column: str, span_column: str, has_video: bool) -> str:
    """Check the response in `column` against its spans, and return its text."""
    turns = _read_messages(column, row[column])
    if [turn.role for turn in turns] != ["assistant"]:
        roles = ", ".join(turn.role for turn in turns)
        raise _fault(column, f"has messages of the roles {roles}", "Make it one message of the assistant")
    text = turns[0].text.strip()
    if turns[0].num_videos:
        raise _fault(column, "has a video part", "Move it to the user's message in the prompt")
    if not text:
        raise _fault(column, "is empty", "Fill in the response")

    spans = row.get(span_column)
    if not has_video:
        if EVI in text or spans:
            raise _fault(column, "refers to evidence, but the row has no video", "Name the video")
        return text
    if spans is None:
        raise _fault(span_column, "is missing", "List one [start_s, end_s] per event of the response")
    response_column = span_column
    if column == "completion" and row.get("response_spans") is not None:
        response_column = "response_spans"
    _check_grammar(text, column, (span_column, len(spans)), (response_column, len(row[response_column])))
    return text


def _check_grammar(text: str, column: str, evidence_spans: tuple[str, int], response_spans: tuple[str, int]) -> None:
    """The grammar of a response: K `<evi>`, `</evi>`, then text with an `<evi>` per span; or text and no spans."""
    if EVI not in text and EVI_END not in text and evidence_spans[1] == response_spans[1] == 0:
        return  # plain text, as in chats about other things
    if EVI_END not in text:
        mend = f"Write '{EVI} {EVI_END} The answer {EVI}.', or '{EVI_END} The answer.' where there is no evidence"
        raise _fault(column, f"has no {EVI_END} between the evidence and the answer", mend)
    if text.count(EVI_END) > 1:
        raise _fault(column, f"has {EVI_END} more than once", "Keep the first")
    if text.partition(EVI_END)[0].replace(EVI, "").strip():
        raise _fault(column, f"has words before {EVI_END}", f"Move them behind it; only {EVI} may stand before")
    num_evidence, response = split_response(text)
    stages = (("before", num_evidence, evidence_spans), ("after", response.count(EVI), response_spans))
    for side, num_markers, (span_column, num_spans) in stages:
        if num_markers != num_spans:
            fault = f"has length {num_spans}, but '{column}' has {num_markers} {EVI} {side} {EVI_END}"
            mend = f"Write one {EVI} per span on each side, or give the spans of the answer in 'response_spans'"
            raise _fault(span_column, fault, mend)
