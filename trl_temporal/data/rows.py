# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""One row of a data set, written once."""

import hashlib
from collections.abc import Sequence

VIDEO_FIELDS = ("path", "start_s", "end_s", "frames_dir", "fps")


def sft_row(
    *,
    id: str,
    source: str,
    task: str,
    video: dict,
    question: str,
    response: str,
    spans: Sequence[Sequence[float]],
    all_spans: Sequence[Sequence[float]],
    duration: float,
    answer: str = "",
    captions: Sequence[str] = (),
    prompt_spans: Sequence[Sequence[float]] | None = None,
) -> dict:
    """
    A single-turn row about a video, with every column of [`~trl_temporal.data.schema.SFT_FEATURES`].

    Args:
        id (`str`):
            Name of the row, which errors and manifests use.
        source (`str`):
            Data set that it comes from.
        task (`str`):
            `"grounding"`, `"dense"` or `"qa"`.
        video (`dict`):
            Any of `path`, `start_s`, `end_s`, `frames_dir`, `fps`; the others become `None`.
        question (`str`):
            The user's turn, behind the video.
        response (`str`):
            The assistant's turn, in the form of [`trl_temporal.data.grammar`].
        spans (`Sequence` of `[start_s, end_s]`):
            Span of each event that the response refers to, in order.
        all_spans (`Sequence` of `[start_s, end_s]`):
            Every event of the video, for the all-events baseline.
        duration (`float`):
            Duration of the video in seconds.
        answer (`str`, *optional*, defaults to `""`):
            The answer in words, for `"qa"`.
        captions (`Sequence[str]`, *optional*):
            One caption per event, for `"dense"`.
        prompt_spans (`Sequence` of `[start_s, end_s]`, *optional*):
            Span of each `<evi>` in the question, in order.

    Returns:
        `dict`: the row.
    """
    user = [{"type": "video"}, {"type": "text", "text": question}]
    return {
        "id": id,
        "source": source,
        "task": task,
        "videos": [{name: video.get(name) for name in VIDEO_FIELDS}],
        "prompt": [{"role": "user", "content": user}],
        "prompt_spans": None if prompt_spans is None else [list(span) for span in prompt_spans],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": response}]}],
        "spans": [list(span) for span in spans],
        "answer": answer,
        "captions": list(captions),
        "all_spans": [list(span) for span in all_spans],
        "duration": duration,
    }


def assistant_message(text: str) -> list[dict]:
    """A response as messages."""
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def row_seed(seed: int, row_id: str) -> list[int]:
    """
    What seeds every choice that is made for a row: the same in any shard and order.

    Args:
        seed (`int`):
            Of the whole run.
        row_id (`str`):
            Name of the row.

    Returns:
        `list[int]`: for `np.random.default_rng`.
    """
    return [seed, int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "little")]
