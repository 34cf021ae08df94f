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
from transformers.video_utils import VideoMetadata

from ..data.grammar import EVI
from ..data.schema import RowError, coerce_videos, strip_none_parts
from ..spans import Span
from ..video import Video, load_row_video, probe_video
from .generation import read_ahead

# A processor knows times only as frame number / frame rate. Numbers in milliseconds, at a rate of 1000, are the
# timestamps themselves, whatever the frame rate of the file does.
CLOCK_HZ = 1000


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
    fps: float = 1.0,
    max_frames: int | None = 128,
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
            Rows with `prompt` and `videos`. An `<evi>` in a prompt is replaced by its span of `prompt_spans`, as
            `12.0s - 15.5s`. Rows of a batch that share a video have it decoded once.
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
            Reader of the entries of `videos`, such as a [`~trl_temporal.data.frame_cache.FrameCache`]; `fps`,
            `max_frames` and `size` are not used then.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        generation_kwargs:
            Passed on to `model.generate`, for example `temperature`.

    Returns:
        `list[TextAnswer]`, in the order of the rows.

    Raises:
        RowError: If the videos of a row and its prompt do not agree.
        RuntimeError: If the model would not see the video of a row.

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
            return load_row_video(entry, fps=fps, max_frames=max_frames, size=_frame_size(entry, size))

    any_length = "video_grid_thw" in processor.model_input_names
    answers: list[TextAnswer] = []
    was_training = model.training
    model.eval()
    try:
        chunks = read_ahead(lambda chunk: (chunk, _read_videos(chunk, read_video)), rows, batch_size)
        for chunk, videos in tqdm(chunks, total=-(-len(rows) // batch_size), desc="Generating", disable=not progress):
            texts = [""] * len(chunk)
            for numbers in _batches(videos, any_length):
                inputs = _encode(processor, [chunk[i] for i in numbers], [videos[i] for i in numbers])
                inputs = _to_model(inputs, model)
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
        >>> from trl_temporal.evaluation.text_generation import video_metadata
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


def _frame_size(entry: str | dict, size: int | None) -> tuple[int, int] | None:
    """Height and width with the shorter side `size`, for files whose pictures are larger."""
    path = entry if isinstance(entry, str) else entry.get("path")
    if size is None or path is None:
        return None
    info = probe_video(path)
    scale = size / min(info.height, info.width)
    return None if scale >= 1 else (round(info.height * scale), round(info.width * scale))


def _read_videos(rows: list[dict], read_video: Callable) -> list[Video | None]:
    """The video of each row; one that several rows of the batch show is read once."""
    videos, seen = [], {}
    for row in rows:
        entries = coerce_videos(row.get("videos"))
        parts = [part for message in _messages(row) for part in message["content"] if part["type"] == "video"]
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


def _batches(videos: list[Video | None], any_length: bool) -> list[list[int]]:
    """Numbers of the rows that the processor takes together: all of them, or those with equally many frames."""
    lengths = [0 if any_length or video is None else len(video.frames) for video in videos]
    return [[i for i, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)]


def _messages(row: dict) -> list[dict]:
    """The prompt with its content in parts, which every template reads, and its `<evi>` as spans in seconds."""
    messages = strip_none_parts(row["prompt"])
    spans = [str(Span(*span)) for span in row.get("prompt_spans") or []]
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


def _encode(processor, rows: list[dict], videos: list[Video | None]) -> BatchFeature:
    """The model's inputs, left-padded."""
    chats = [_messages(row) for row in rows]
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
    return inputs


def _length_without_video(processor, chat: list[dict], text_kwargs: dict) -> int:
    """Tokens of the same chat about nothing."""
    chat = [
        {**message, "content": [part for part in message["content"] if part["type"] != "video"]} for message in chat
    ]
    for message in chat:
        message["content"] = message["content"] or [{"type": "text", "text": ""}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return len(processor.tokenizer(text, **text_kwargs)["input_ids"])


def _to_model(inputs: BatchFeature, model) -> dict[str, torch.Tensor]:
    """On the model's device; pictures in its type, and nothing else, as seconds lose their decimals in bfloat16."""
    return {
        name: value.to(model.device, model.dtype if name.startswith("pixel_values") else None)
        for name, value in inputs.items()
    }
