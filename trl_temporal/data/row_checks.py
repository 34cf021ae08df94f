# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The checks of one row behind [`trl_temporal.data.schema`]: what is wrong, in which column, and how to mend it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import ColumnError
from .errors import RowError as RowError
from .grammar import EVI, EVI_END, split_response
from .media import VideoEntry, coerce_images, coerce_videos, without_none

Message = dict[str, Any]

# Labels and container durations are rounded: a span may pass the end by this much.
DURATION_SLACK_S = 0.05

# The column of each response, and the column of its spans.
RESPONSES: dict[str, dict[str, str]] = {
    "sft": {"completion": "spans"},
    "preference": {"chosen": "chosen_spans", "rejected": "rejected_spans"},
    "evaluation": {"completion": "spans"},
    "prompt": {},
}
# The other columns that are checked.
COMMON_COLUMNS = ("videos", "images", "prompt", "prompt_spans", "response_spans", "all_spans", "duration")
EVALUATION_COLUMNS = ("options", "answer_index", "saliency")

ROLES = ("system", "user", "assistant")


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
    messages = [without_none(message) for message in messages]
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = [without_none(part) for part in message["content"]]
    return messages


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


def check_row(row: dict[str, Any], kind: str) -> None:
    """
    Check one row against the data contract.

    Args:
        row (`dict`):
            The row.
        kind (`str`):
            A key of `RESPONSES`.

    Raises:
        [`ColumnError`]: the first fault.
    """
    responses = RESPONSES[kind]
    for column in ("prompt", *responses):
        if row.get(column) is None:
            needed = ", ".join(["prompt", *responses, *responses.values()])
            raise ColumnError(column, "is missing", f"A row of kind '{kind}' needs the columns {needed}")

    prompt = _read_messages("prompt", row["prompt"])
    videos = coerce_videos(row.get("videos"))
    _check_videos_agree(prompt, videos)
    _check_images_agree(prompt, coerce_images(row.get("images")))
    duration_s = _known_duration(row, videos)
    for column in ("prompt_spans", "response_spans", "all_spans", *responses.values()):
        if row.get(column) is not None:
            _check_spans(column, row[column], duration_s)

    _check_prompt(prompt, num_spans=len(row.get("prompt_spans") or []))
    texts = {column: _check_response(row, column, name, bool(videos)) for column, name in responses.items()}
    if kind == "preference" and texts["chosen"] == texts["rejected"]:
        chosen_spans, rejected_spans = ([list(span) for span in row.get(name) or []] for name in responses.values())
        if chosen_spans == rejected_spans:
            raise ColumnError("rejected", "is equal to 'chosen', in text and spans", "Perturb it, or remove the row")
    if kind == "evaluation":
        _check_evaluation(row)


def _check_evaluation(row: dict[str, Any]) -> None:
    options, answer_index, saliency = (row.get(column) for column in EVALUATION_COLUMNS)
    if options is not None and not (
        isinstance(options, list) and all(isinstance(option, str) and option.strip() for option in options)
    ):
        raise ColumnError("options", f"is {options!r:.60}", "Write it as a list of texts, none of them empty")
    num_options = len(options or [])
    if answer_index is not None and not (isinstance(answer_index, int) and 0 <= answer_index < num_options):
        mend = "Count the options from 0; leave it null where there are none"
        raise ColumnError("answer_index", f"is {answer_index!r:.60}, but the row has {num_options} options", mend)
    if saliency is not None and not (
        isinstance(saliency, list) and all(isinstance(x, int | float) and math.isfinite(x) for x in saliency)
    ):
        raise ColumnError("saliency", f"is {saliency!r:.60}", "Write it as a list of finite numbers, one per clip")


class _Turn(NamedTuple):
    role: str
    text: str
    num_videos: int
    num_images: int


def _read_messages(column: str, messages: Any) -> list[_Turn]:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ColumnError(
            column, f"is {messages!r:.60}, not a list of messages", 'Write [{"role": ..., "content": ...}]'
        )
    return [_read_message(column, message) for message in messages]


def _read_message(column: str, message: Any) -> _Turn:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ColumnError(column, f"has a message with the role {role!r}", "Use 'system', 'user' or 'assistant'")
    if isinstance(content, str):
        return _Turn(role, content, num_videos=0, num_images=0)
    if not isinstance(content, list):
        raise ColumnError(column, f"has a message with the content {content!r}", "Give it a string or a list of parts")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "video", "image"):
            raise ColumnError(column, f"has the part {part!r:.60}", "Use parts of type 'text', 'video' and 'image'")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise ColumnError(
                column, "has a text part without text", "Fill its 'text' with a string, or remove the part"
            )
    types = [part["type"] for part in content]
    text = "".join(part["text"] for part in content if part["type"] == "text")
    return _Turn(role, text, num_videos=types.count("video"), num_images=types.count("image"))


def _check_prompt(prompt: list[_Turn], num_spans: int) -> None:
    if prompt[-1].role != "user":
        fault = f"ends with a message of the {prompt[-1].role}"
        raise ColumnError("prompt", fault, "End it with the user's question; the answer has a column of its own")
    text = "".join(turn.text for turn in prompt)
    if EVI_END in text:
        raise ColumnError("prompt", f"has {EVI_END}, which only a response may have", "Remove it")
    if text.count(EVI) != num_spans:
        fault = f"has length {num_spans}, but the prompt has {text.count(EVI)} {EVI}"
        raise ColumnError("prompt_spans", fault, f"Give each {EVI} of the prompt its span, in order")


def _check_videos_agree(prompt: list[_Turn], videos: list[VideoEntry]) -> None:
    if len(videos) > 1:
        raise ColumnError("videos", f"has {len(videos)} entries", "Keep one; this version takes one video a row")
    num_parts = sum(turn.num_videos for turn in prompt)
    if num_parts != sum(turn.num_videos for turn in prompt if turn.role == "user"):
        raise ColumnError("prompt", "has a video part outside the user's messages", "Move it before the question")
    if num_parts > 1:
        raise ColumnError("prompt", f"has {num_parts} video parts", "Keep one; this version takes one video a row")
    if num_parts and not videos:
        raise ColumnError("videos", "is empty, but the prompt has a video part", "Name the video, or remove the part")
    if videos and not num_parts:
        fault = "has no video part, so the model would never see the entry of 'videos'"
        raise ColumnError("prompt", fault, 'Put {"type": "video"} before the question')


def _check_images_agree(prompt: list[_Turn], images: list[Any]) -> None:
    num_parts = sum(turn.num_images for turn in prompt)
    if num_parts != sum(turn.num_images for turn in prompt if turn.role == "user"):
        raise ColumnError("prompt", "has an image part outside the user's messages", "Move it before the question")
    if num_parts != len(images):
        fault = f"has length {len(images)}, but the prompt has {num_parts} image parts"
        raise ColumnError("images", fault, 'Write one {"type": "image"} for each image, in order')


def _known_duration(row: dict[str, Any], videos: list[VideoEntry]) -> float | None:
    """Length in seconds of what the model sees: the `duration` column, or the crop where that is shorter."""
    duration_s = row.get("duration")
    if duration_s is not None and not (isinstance(duration_s, int | float) and 0 < duration_s < math.inf):
        raise ColumnError("duration", f"is {duration_s!r}", "Give the length of the video in seconds")
    known_s = [] if duration_s is None else [duration_s]
    if videos and "end_s" in videos[0]:
        known_s.append(videos[0]["end_s"] - videos[0].get("start_s", 0.0))
    return min(known_s, default=None)


def _check_spans(column: str, spans: Any, duration_s: float | None) -> None:
    if not isinstance(spans, list):
        raise ColumnError(column, f"is {spans!r:.60}", "Write it as a list of [start_s, end_s]")
    for position, span in enumerate(spans):
        if found := span_fault(span, duration_s, moment=column == "prompt_spans"):
            fault, mend = found
            raise ColumnError(column, f"span {position} {fault}", mend)


def _check_response(row: dict[str, Any], column: str, span_column: str, has_video: bool) -> str:
    """Check the response in `column` against its spans, and return its text."""
    turns = _read_messages(column, row[column])
    if [turn.role for turn in turns] != ["assistant"]:
        roles = ", ".join(turn.role for turn in turns)
        raise ColumnError(column, f"has messages of the roles {roles}", "Make it one message of the assistant")
    text = turns[0].text.strip()
    if turns[0].num_videos:
        raise ColumnError(column, "has a video part", "Move it to the user's message in the prompt")
    if turns[0].num_images:
        raise ColumnError(column, "has an image part", "Move it to the user's message in the prompt")
    if not text:
        raise ColumnError(column, "is empty", "Fill in the response")

    spans = row.get(span_column)
    if not has_video:
        if EVI in text or spans:
            raise ColumnError(column, "refers to evidence, but the row has no video", "Name the video")
        return text
    if spans is None:
        raise ColumnError(span_column, "is missing", "List one [start_s, end_s] per event of the response")
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
        raise ColumnError(column, f"has no {EVI_END} between the evidence and the answer", mend)
    if text.count(EVI_END) > 1:
        raise ColumnError(column, f"has {EVI_END} more than once", "Keep the first")
    if text.partition(EVI_END)[0].replace(EVI, "").strip():
        raise ColumnError(column, f"has words before {EVI_END}", f"Move them behind it; only {EVI} may stand before")
    num_evidence, response = split_response(text)
    stages = (("before", num_evidence, evidence_spans), ("after", response.count(EVI), response_spans))
    for side, num_markers, (span_column, num_spans) in stages:
        if num_markers != num_spans:
            fault = f"has length {num_spans}, but '{column}' has {num_markers} {EVI} {side} {EVI_END}"
            mend = f"Write one {EVI} per span on each side, or give the spans of the answer in 'response_spans'"
            raise ColumnError(span_column, fault, mend)
