# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Rows of the data contract as inputs of any video-language model of transformers, for training and for answering.

Spans are written into the text as seconds, frames reach the processor with the decoder's timestamps, and a processor
or chat template that would leave the video out is an error.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from ..spans import Span
from ..video import Video
from .grammar import EVI, split_response
from .schema import RowError, coerce_videos, strip_none_parts

# A processor knows times only as frame number / frame rate. Numbers in milliseconds, at a rate of 1000, are the
# timestamps themselves, whatever the frame rate of the file does.
CLOCK_HZ = 1000

DEFAULT_FPS, DEFAULT_MAX_FRAMES = 1.0, 128  # stock processors say nothing about sampling that a decoder could follow


class EncodedPrompts(NamedTuple):
    """
    Prompts as a model takes them, and as they were rendered.

    Args:
        inputs (`BatchFeature`):
            What the processor made of them: texts of shape `(B, L)`, padded on the left, and what it makes of videos,
            all in the order of the rows.
        chats (`list[list[dict]]`):
            The messages of each row, with their content in parts.
        texts (`list[str]`):
            Each chat with its generation prompt, as the template renders it.
        text_kwargs (`dict`):
            How the tokenizer was called.
    """

    inputs: BatchFeature
    chats: list[list[dict]]
    texts: list[str]
    text_kwargs: dict


def video_metadata(video: Video) -> VideoMetadata:
    """
    What the processors of transformers are told about sampled frames, such that they compute the real timestamps.

    Args:
        video ([`~trl_temporal.video.Video`]):
            The frames, with their timestamps.

    Returns:
        `VideoMetadata`: with `frames_indices` in milliseconds and `fps` 1000, so that its `timestamps` are those of
        the video to half a millisecond, and its `sampled_fps` is one over the mean distance of the frames.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.data.chat_inputs import video_metadata
        >>> from trl_temporal.video import Video
        >>> frames = np.zeros((3, 8, 8, 3), dtype=np.uint8)
        >>> metadata = video_metadata(Video(frames, np.array([0.0, 0.52, 2.0]), duration_s=2.5, path="clip.mp4"))
        >>> metadata.timestamps, metadata.sampled_fps, metadata.duration
        ([0.0, 0.52, 2.0], 1.0, 2.5)
    """
    timestamps_s = np.asarray(video.timestamps_s, dtype=np.float64)
    num_frames, height, width = video.frames.shape[:3]
    step_s = (timestamps_s[-1] - timestamps_s[0]) / (num_frames - 1) if num_frames > 1 else video.duration_s
    return VideoMetadata(
        # What the frames stand for, which `sampled_fps` divides by: the duration would stretch the steps of a video
        # whose last frame stands for less than one.
        total_num_frames=max(1, round(num_frames * step_s * CLOCK_HZ)),
        fps=CLOCK_HZ,
        width=width,
        height=height,
        duration=video.duration_s,
        frames_indices=np.rint(timestamps_s * CLOCK_HZ).astype(int).tolist(),
    )


def response_in_seconds(response: str, spans: Sequence[Sequence[float]]) -> str:
    """
    A response as a model without evidence tokens writes it: its text, with intervals in place of `<evi>`.

    Args:
        response (`str`):
            A whole response, evidence stage included.
        spans (`Sequence` of `[start_s, end_s]`):
            Span of each `<evi>` of its text, in seconds.

    Returns:
        `str`: the text, with times to the millisecond. The benchmarks read the times of an answer in this form.

    Raises:
        ValueError: If the text has more or fewer `<evi>` than there are spans.

    Example:
        >>> from trl_temporal.data.chat_inputs import response_in_seconds
        >>> response_in_seconds("<evi> <evi> </evi> It happens in <evi> and <evi>.", [[2, 3.5], [8, 9.25]])
        'It happens in 2.0 - 3.5 and 8.0 - 9.25.'
    """
    pieces = split_response(response)[1].split(EVI)
    if len(pieces) != len(spans) + 1:
        raise ValueError(
            f"the response {response!r:.80} has {len(pieces) - 1} {EVI} in its text, but {len(spans)} spans"
        )
    text = pieces[0]
    for (start_s, end_s), piece in zip(spans, pieces[1:], strict=True):
        text += format_interval((start_s, end_s)) + piece
    return text


def format_interval(span: Sequence[float]) -> str:
    """An interval as models write it and scorers read it: `"12.0 - 15.5"`, to the millisecond."""
    start_s, end_s = (round(float(value), 3) for value in span)
    return f"{start_s} - {end_s}"


def prompt_messages(row: dict) -> list[dict]:
    """
    The prompt of a row with its content in parts, which every template reads, and its `<evi>` as spans in seconds.

    Args:
        row (`dict`):
            Row with `prompt`, and `prompt_spans` where the prompt has `<evi>`.

    Returns:
        `list[dict]`: new messages; an `<evi>` is written as `12.0s - 15.5s`, a moment as `12.0s`.

    Raises:
        RowError: If the prompt has more or fewer `<evi>` than `prompt_spans`.

    Example:
        >>> from trl_temporal.data.chat_inputs import prompt_messages
        >>> prompt_messages({"prompt": [{"role": "user", "content": "What is in <evi>?"}], "prompt_spans": [[2, 3.5]]})
        [{'role': 'user', 'content': [{'type': 'text', 'text': 'What is in 2.0s - 3.5s?'}]}]
    """
    messages = strip_none_parts(row["prompt"])
    spans = [
        f"{float(start_s)}s" if start_s == end_s else str(Span(start_s, end_s))
        for start_s, end_s in row.get("prompt_spans") or []
    ]
    for message in messages:
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        for part in message["content"]:
            while EVI in part.get("text", ""):
                if not spans:
                    raise RowError(
                        f"row {row.get('id')!r}: more {EVI} in the prompt than prompt_spans. Add the spans."
                    )
                part["text"] = part["text"].replace(EVI, spans.pop(0), 1)
    if spans:
        raise RowError(f"row {row.get('id')!r}: more prompt_spans than {EVI} in the prompt. Drop {', '.join(spans)}.")
    return messages


def read_videos(rows: Sequence[dict], read_video: Callable[[dict], Video]) -> list[Video | None]:
    """
    The video of each row; one that several rows show is read once.

    Args:
        rows (`Sequence[dict]`):
            Rows with `prompt` and `videos`.
        read_video (`Callable`):
            Reader of the entries of `videos`.

    Returns:
        `list[Video | None]`: one per row, `None` for a row without video.

    Raises:
        RowError: If a row has several videos, or its `videos` and its prompt do not agree.
    """
    videos, seen = [], {}
    for row in rows:
        entries = coerce_videos(row.get("videos"))
        parts = [part for message in prompt_messages(row) for part in message["content"] if part["type"] == "video"]
        if len(entries) != len(parts) or len(entries) > 1:
            raise RowError(
                f"row {row.get('id')!r}: {len(entries)} videos, but {len(parts)} video parts in its prompt. Give it "
                "one video and one part, or none of both."
            )
        if not entries:
            videos.append(None)
            continue
        key = tuple(sorted(entries[0].items()))
        if key not in seen:
            seen[key] = read_video(entries[0])
        videos.append(seen[key])
    return videos


def takes_any_length(processor) -> bool:
    """Whether a processor takes videos of different lengths together: it flattens them to patches, others stack."""
    return "video_grid_thw" in processor.model_input_names


def encode_prompts(processor, rows: Sequence[dict], videos: Sequence[Video | None]) -> EncodedPrompts:
    """
    Prompts and videos through the processor of a model.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model.
        rows (`Sequence[dict]`):
            Rows with `prompt`.
        videos (`Sequence[Video | None]`):
            The video of each row. Where the processor does not take any length, all of them have equally many frames.

    Returns:
        [`EncodedPrompts`]

    Raises:
        RowError: If the prompt of a row has more or fewer `<evi>` than `prompt_spans`.
        RuntimeError: If the model would not see the video of a row.
    """
    chats = [prompt_messages(row) for row in rows]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    tokenizer = processor.tokenizer
    # Most templates write the first token themselves; some leave it to the tokenizer.
    starts = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    text_kwargs = {"add_special_tokens": not starts}
    shown = [video for video in videos if video is not None]
    video_kwargs = {}
    if shown:
        video_kwargs = {
            "videos": [np.array(video.frames) for video in shown],  # copies: cached frames are read-only
            "video_metadata": [video_metadata(video) for video in shown],
            "do_sample_frames": False,
        }
    inputs = processor(
        text=texts, padding=True, padding_side="left", return_tensors="pt", **text_kwargs, **video_kwargs
    )
    if shown and not any(name.startswith("pixel_values") for name in inputs):
        raise RuntimeError(
            f"{type(processor).__name__} made no pixel values of {len(shown)} videos (only {', '.join(inputs)}), so "
            "the model would answer blind. Use a model and processor of a family that takes videos."
        )
    num_tokens = inputs["attention_mask"].sum(-1).tolist()
    for row, chat, video, length in zip(rows, chats, videos, num_tokens, strict=True):
        if video is not None and length <= _length_without_video(processor, chat, text_kwargs):
            raise RuntimeError(
                f"row {row.get('id')!r}: the chat template of {type(processor).__name__} leaves no place for the "
                "video in the prompt, so the model would answer blind. Use a template that renders the part "
                "{'type': 'video'}."
            )
    return EncodedPrompts(inputs, chats, texts, text_kwargs)


def _length_without_video(processor, chat: list[dict], text_kwargs: dict) -> int:
    """Tokens of the same chat about nothing."""
    chat = [
        {**message, "content": [part for part in message["content"] if part["type"] != "video"]} for message in chat
    ]
    for message in chat:
        message["content"] = message["content"] or [{"type": "text", "text": ""}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return len(processor.tokenizer(text, **text_kwargs)["input_ids"])
