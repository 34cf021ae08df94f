# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Answers of a video model behind an OpenAI-compatible endpoint, such as a vLLM server."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.chat_inputs import prompt_messages, read_images, read_videos
from ..synthesis.endpoint import ChatEndpoint, frame_parts, picture
from ..video import Video
from .generation import read_ahead
from .text_generation import TextAnswer

REFUSED = "refused by the endpoint"


def ask_endpoint(
    endpoint: ChatEndpoint,
    model: str,
    rows: Sequence[dict],
    *,
    read_video: Callable[[dict], Video],
    max_new_tokens: int = 256,
    progress: bool = True,
) -> tuple[list[TextAnswer], dict[int, str]]:
    r"""
    Have the prompts of `rows` answered by an endpoint.

    Endpoints differ in which videos they take and in what they tell the model about time, so frames are sent as JPEG
    pictures, each behind a line with the decoder's time, `Frame at 3.0 s:`. A model that was trained on videos sees
    another prompt here than in [`~trl_temporal.evaluation.text_generation.generate_texts`], and may answer otherwise.

    Args:
        endpoint ([`~trl_temporal.synthesis.endpoint.ChatEndpoint`]):
            Where the model is. As many rows are decoded ahead as it is asked at the same time.
        model (`str`):
            Name of the model there.
        rows (`Sequence[dict]`):
            Rows with `prompt`, `videos` and `images`.
        read_video (`Callable`):
            Reader of the entries of `videos`, such as [`~trl_temporal.video.load_row_video`] with its sampling.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer in tokens; one that is longer is cut off, as in generation.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `tuple`: a `list[TextAnswer]` in the order of the rows, and what the endpoint said to those that it refused
        (too long, or held back by a filter), by their number; the text of these is empty.

    Raises:
        RowError: If the videos or images of a row and its prompt do not agree.
        ConnectionError: If the endpoint cannot be reached or fails, as with a model that it does not have.

    Example:
        >>> from functools import partial
        >>> from trl_temporal.evaluation.endpoint_texts import ask_endpoint
        >>> from trl_temporal.synthesis.endpoint import ChatEndpoint
        >>> from trl_temporal.video import load_row_video
        >>> content = [{"type": "video"}, {"type": "text", "text": "When does she open the door? Answer in seconds."}]
        >>> row = {"videos": ["door.mp4"], "prompt": [{"role": "user", "content": content}]}
        >>> endpoint, read = ChatEndpoint("http://localhost:8000/v1"), partial(load_row_video, fps=1, max_frames=64)
        >>> answers, _ = ask_endpoint(endpoint, "org/name", [row], read_video=read)  # doctest: +SKIP
    """
    rows = list(rows)
    answers: list[TextAnswer] = []
    refused: dict[int, str] = {}
    chunks = read_ahead(lambda chunk: (chunk, read_videos(chunk, read_video)), rows, endpoint.concurrency)
    with tqdm(total=len(rows), desc="Asking", disable=not progress) as bar:
        for chunk, videos in chunks:
            asked = zip(chunk, videos, read_images(chunk), strict=True)
            bodies = {
                str(number): {
                    "model": model,
                    "messages": _messages(row, video, images),
                    "temperature": 0.0,
                    "max_tokens": max_new_tokens,
                }
                for number, (row, video, images) in enumerate(asked)
            }
            texts: dict[str, str] = {}
            _, refusals = endpoint.ask(
                bodies, texts.__setitem__, "shards that are complete are kept", only_whole=False
            )
            for number, video in enumerate(videos):
                if str(number) in refusals:
                    refused[len(answers)] = f"{REFUSED} ({refusals[str(number)]})"
                text = texts.get(str(number), "").strip()
                times_s = np.zeros(0) if video is None else np.asarray(video.timestamps_s)
                answers.append(TextAnswer(text, times_s, 0.0 if video is None else video.duration_s))
            bar.update(len(chunk))
    return answers, refused


def _messages(row: dict, video: Video | None, images: list[Image.Image]) -> list[dict]:
    messages, images = prompt_messages(row), iter(images)
    for message in messages:
        content = []
        for part in message["content"]:
            if part["type"] == "video":
                content += frame_parts(video)
            elif part["type"] == "image":
                content.append(picture(next(images)))
            else:
                content.append({"type": "text", "text": part["text"]})
        message["content"] = content
    return messages
