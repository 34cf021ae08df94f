# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Answers of any video-language model of transformers, batched: text, in which the model writes times itself.

Frames are decoded by this package, so that what a processor says about time (`<3.0 seconds>`, `Frame from 00:03:`, the
temporal positions of Qwen2.5-VL) comes from the decoder's timestamps and not from an average frame rate.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import BatchFeature

from ..data.chat_inputs import (
    DEFAULT_FPS,
    DEFAULT_MAX_FRAMES,
    encode_cached_chats,
    encode_prompts,
    read_videos,
    takes_any_length,
    time_ids_per_second,
)
from ..data.feature_cache import is_cached
from ..models.d2vlm.modeling_d2vlm_backbone import features_of_rows, mm_encoder_outputs
from ..video import Video, load_row_video, probe_video
from .generation import read_ahead


@dataclass
class TextAnswer:
    """
    An answer, and what the model was shown.

    Args:
        text (`str`):
            The answer without special tokens.
        timestamps_s (`np.ndarray` of shape `(T,)`):
            Timestamps of the frames in seconds; empty for a row without video.
        duration_s (`float`):
            Duration of the video in seconds; 0 for a row without video.
    """

    text: str
    timestamps_s: np.ndarray
    duration_s: float


@torch.no_grad()
def generate_texts(
    model,
    processor,
    rows: Iterable[dict],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    fps: float = DEFAULT_FPS,
    max_frames: int | None = DEFAULT_MAX_FRAMES,
    size: int | None = None,
    do_sample: bool = False,
    read_video: Callable | None = None,
    progress: bool = True,
    **generation_kwargs,
) -> list[TextAnswer]:
    r"""
    Answers the prompts of `rows` with a stock model.

    Chats are rendered with the processor's own template, and the frames go through its own video processor, which is
    told their timestamps and samples no further. Tried this way, with small random models and the real processors:
    Qwen2-VL, Qwen2.5-VL, Qwen3-VL, SmolVLM2, LLaVA-OneVision and InternVL (of these, Qwen3-VL and SmolVLM2 write the
    timestamps into the prompt, Qwen2.5-VL turns the mean distance of the frames into positions, and the others are
    shown the order of the frames and nothing of time).

    Processors that flatten videos to patches (those with `video_grid_thw`) take videos of any length together. The
    others stack them, so there the rows of a batch are split by number of frames: sampling a fixed number
    (`read_video=functools.partial(load_row_video, num_frames=32)`) keeps batches whole.

    Args:
        model (`PreTrainedModel`):
            A model with `generate`, such as `AutoModelForImageTextToText` loads; put in evaluation mode for the call.
        processor (`ProcessorMixin`):
            Its processor, as of `AutoProcessor`. The video processors of transformers need torchvision.
        rows (`Iterable[dict]`):
            Rows with `prompt`, `videos` and `images`. An `<evi>` in a prompt is replaced by its span of
            `prompt_spans`, as `12.0s - 15.5s`. Rows of a batch that share a video have it decoded once.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows per batch.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer in tokens.
        fps (`float`, *optional*, defaults to `1.0`):
            Frames per second of video.
        max_frames (`int`, *optional*, defaults to `128`):
            Longer videos are sampled more thinly.
        size (`int`, *optional*):
            Frames of video files are shrunk, as they are decoded, to this length of the shorter side in pixels. By
            default the processor gets them as they are; a batch of long high-definition videos takes gigabytes then.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether to sample.
        read_video (`Callable`, *optional*):
            Reader of the entries of `videos`, such as a [`~trl_temporal.data.frame_cache.FrameCache`], or `get` of a
            [`~trl_temporal.data.feature_cache.FeatureCache`]; `fps`, `max_frames` and `size` are not used then.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        generation_kwargs:
            Passed on to `model.generate`, for example `temperature`.

    Returns:
        `list[TextAnswer]`, in the order of the rows.

    Raises:
        RowError: If the videos or images of a row and its prompt do not agree.
        RuntimeError: If the model would not see the video or an image of a row.

    Example:
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor
        >>> name = "Qwen/Qwen3-VL-4B-Instruct"
        >>> model = AutoModelForImageTextToText.from_pretrained(name, device_map="auto")  # doctest: +SKIP
        >>> content = [{"type": "video"}, {"type": "text", "text": "When does she open the door? Answer in seconds."}]
        >>> row = {"videos": ["door.mp4"], "prompt": [{"role": "user", "content": content}]}
        >>> generate_texts(model, AutoProcessor.from_pretrained(name), [row], fps=2)[0].text  # doctest: +SKIP
        'From 3.5 to 6 seconds.'
    """
    rows = list(rows)
    if read_video is None:

        def read_video(entry):
            return load_row_video(entry, fps=fps, max_frames=max_frames, size=frame_size(entry, size))

    any_length, per_second = takes_any_length(processor), time_ids_per_second(processor, model)
    answers: list[TextAnswer] = []
    was_training = model.training
    model.eval()
    try:
        chunks = read_ahead(lambda chunk: (chunk, read_videos(chunk, read_video)), rows, batch_size)
        for chunk, videos in tqdm(chunks, total=-(-len(rows) // batch_size), desc="Generating", disable=not progress):
            texts = [""] * len(chunk)
            for numbers in _batches(videos, any_length):
                shown = [videos[i] for i in numbers]
                if is_cached(shown):
                    prompts = encode_cached_chats(processor, [chunk[i] for i in numbers], shown)
                    inputs = _with_features(_to_model(prompts.inputs, model), model)
                else:
                    prompts = encode_prompts(processor, [chunk[i] for i in numbers], shown, per_second)
                    inputs = _to_model(prompts.inputs, model)
                output = model.generate(
                    **inputs, max_new_tokens=max_new_tokens, do_sample=do_sample, **generation_kwargs
                )
                new_ids = output[:, inputs["input_ids"].shape[1] :]
                decoded = processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
                for number, text in zip(numbers, decoded, strict=True):
                    texts[number] = text.strip()
            for text, video in zip(texts, videos, strict=True):
                if video is None:
                    answers.append(TextAnswer(text, np.zeros(0), 0.0))
                else:
                    answers.append(TextAnswer(text, np.asarray(video.timestamps_s), video.duration_s))
    finally:
        model.train(was_training)
    return answers


def frame_size(entry: str | dict, size: int | None) -> tuple[int, int] | None:
    """
    Height and width of the frames of a file, shrunk to a shorter side.

    Args:
        entry (`str` or `dict`):
            Entry of `videos`.
        size (`int`, *optional*):
            Length of the shorter side in pixels.

    Returns:
        `tuple[int, int]` or `None`: `None` for frames that stay as they are: without `size`, where they are no larger,
        and of what is no video file.
    """
    path = entry if isinstance(entry, str) else entry.get("path")
    if size is None or path is None:
        return None
    info = probe_video(path)
    scale = size / min(info.height, info.width)
    return None if scale >= 1 else (round(info.height * scale), round(info.width * scale))


def _batches(videos: list[Video | None], any_length: bool) -> list[list[int]]:
    """Numbers of the rows that the processor takes together: all of them, or those with equally many frames."""
    any_length = any_length or is_cached(videos)
    lengths = [0 if any_length or video is None else video.num_frames for video in videos]
    return [[i for i, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)]


def _with_features(inputs: dict[str, torch.Tensor], model) -> dict:
    """Inputs of rows with the features of their videos, as `generate` takes them."""
    features, counts, video_index = (
        inputs.pop(name) for name in ("video_features", "num_video_features", "video_index")
    )
    del inputs["num_frames"]
    shown = video_index[video_index >= 0]
    for name in ("video_grid_thw", "second_per_grid_ts"):
        if name in inputs:
            inputs[name] = inputs[name][shown]
    of_rows = features_of_rows(features, counts, video_index)
    return {**inputs, "mm_encoder_outputs": mm_encoder_outputs(model.base_model, of_rows)}


def _to_model(inputs: BatchFeature, model) -> dict[str, torch.Tensor]:
    """On the model's device; pictures in its type, and nothing else, as seconds lose their decimals in bfloat16."""
    return {
        name: value.to(model.device, model.dtype if name.startswith("pixel_values") else None)
        for name, value in inputs.items()
    }
