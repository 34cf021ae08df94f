# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Rows of the data contract as inputs of any video-language model of transformers, for training and for answering.

Spans are written into the text as seconds, frames reach the processor with the decoder's timestamps, and a processor
or chat template that would leave a video or an image out is an error.
"""

import re
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from ..models.d2vlm.processing_d2vlm import clock_metadata, video_arguments
from ..spans import Span
from ..video import Video, VideoError, open_image
from .feature_cache import CachedVideo, encode_cached_prompts
from .grammar import EVI
from .schema import RowError, coerce_images, coerce_videos, strip_none_parts, video_key

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_FPS, DEFAULT_MAX_FRAMES = 1.0, 128  # stock processors say nothing about sampling that a decoder could follow

# How Qwen3-VL and SmolVLM write the time of frames into a prompt.
TIME_TEXT = re.compile(r"<\d+\.\d seconds>|Frame from \d+:\d+:")


class EncodedPrompts(NamedTuple):
    """
    Prompts as a model takes them, and as they were rendered.

    Args:
        inputs (`BatchFeature`):
            What the processor made of them: texts of shape `(B, L)`, padded on the left, and what it makes of videos
            and images, all in the order of the rows.
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
    """What the processors of transformers are told about a video, see [`clock_metadata`]."""
    return clock_metadata(video.timestamps_s, video.duration_s, *video.frames.shape[1:3])


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
        try:
            entries = coerce_videos(row.get("videos"))
        except RowError as error:
            raise RowError(f"row {row.get('id')!r}, {error}") from None
        num_parts = sum(_count_parts(message, "video") for message in strip_none_parts(row["prompt"]))
        if len(entries) != num_parts or len(entries) > 1:
            raise RowError(
                f"row {row.get('id')!r}: {len(entries)} videos, but {num_parts} video parts in its prompt. Give it "
                "one video and one part, or none of both."
            )
        if not entries:
            videos.append(None)
            continue
        key = video_key(entries[0])
        if key not in seen:
            seen[key] = read_video(entries[0])
        videos.append(seen[key])
    return videos


def read_images(rows: Sequence[dict]) -> list[list["Image"]]:
    """
    The images of each row.

    Args:
        rows (`Sequence[dict]`):
            Rows with `prompt` and `images`, if any: paths, PIL images, arrays, or `{"path", "bytes"}`.

    Returns:
        `list[list[PIL.Image.Image]]`: one list per row, of images in RGB.

    Raises:
        RowError: If the images of a row and its prompt do not agree, or one cannot be read or is a video.
    """
    images = []
    for row in rows:
        num_parts = sum(_count_parts(message, "image") for message in strip_none_parts(row["prompt"]))
        try:
            entries = coerce_images(row.get("images"))
            images.append([open_image(entry) for entry in entries])
        except RowError as error:
            raise RowError(f"row {row.get('id')!r}, {error}") from None
        except VideoError as error:
            raise RowError(f"row {row.get('id')!r}, column 'images': {error}") from error
        if len(entries) != num_parts:
            raise RowError(
                f"row {row.get('id')!r}: {len(entries)} images, but {num_parts} image parts in its prompt. Give it "
                'one part {"type": "image"} for each image, in order.'
            )
    return images


def _count_parts(message: dict, kind: str) -> int:
    return 0 if isinstance(message["content"], str) else sum(part["type"] == kind for part in message["content"])


def takes_any_length(processor) -> bool:
    """Whether a processor takes videos of different lengths together: it flattens them to patches, others stack."""
    return "video_grid_thw" in processor.model_input_names


def time_ids_per_second(processor, model) -> float | None:
    """
    How fine the time positions of a model are that counts them in parts of a second, as Qwen2.5-VL does.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model.
        model (`PreTrainedModel`):
            The model, which alone knows.

    Returns:
        `float` or `None`: positions per second, for [`encode_prompts`]; `None` for a model that counts frames or reads
        times as text.
    """
    if "second_per_grid_ts" not in processor.model_input_names:
        return None
    return model.config.vision_config.tokens_per_second


def encode_prompts(
    processor, rows: Sequence[dict], videos: Sequence[Video | None], time_ids_per_second: float | None = None
) -> EncodedPrompts:
    """
    Prompts, videos and images through the processor of a model.

    It warns, once for each processor, where frames are sampled so densely that the model is told the same time of
    frames that follow each other.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model.
        rows (`Sequence[dict]`):
            Rows with `prompt`, and `images` if any.
        videos (`Sequence[Video | None]`):
            The video of each row. Where the processor does not take any length, all of them have equally many frames.
        time_ids_per_second (`float`, *optional*):
            As of [`time_ids_per_second`]; without it the positions of Qwen2.5-VL are not checked for equal times.

    Returns:
        [`EncodedPrompts`]

    Raises:
        RowError: If the prompt of a row has more or fewer `<evi>` than `prompt_spans`, its images and its prompt do
            not agree, or it has what the processor cannot take together.
        RuntimeError: If the model would not see the video or an image of a row.
    """
    images = read_images(rows)
    chats = [prompt_messages(row) for row in rows]
    texts = [_render(processor, chat) for chat in chats]
    for row, chat, text, video, row_images in zip(rows, chats, texts, videos, images, strict=True):
        for kind, shown in (("video", video is not None), ("image", bool(row_images))):
            if shown and _render(processor, _without_parts(chat, kind)) == text:
                raise RuntimeError(
                    f"row {row.get('id')!r}: the chat template of {type(processor).__name__} leaves no place for the "
                    f"{kind} in the prompt, so the model would answer blind. Use a template that renders the part "
                    f"{{'type': '{kind}'}}."
                )
    text_kwargs = _text_kwargs(processor, texts)
    if any(images) and any(video is not None for video in videos) and _one_name_for_both(processor):
        inputs = _process_apart(processor, rows, texts, videos, images, text_kwargs)
    else:
        inputs = _process(processor, texts, videos, images, text_kwargs)
    warn_of_equal_times(processor, rows, videos, inputs, time_ids_per_second)
    return EncodedPrompts(inputs, chats, texts, text_kwargs)


def encode_cached_chats(processor, rows: Sequence[dict], videos: Sequence[CachedVideo | None]) -> EncodedPrompts:
    """
    Prompts as of [`encode_prompts`], with features of the vision tower in place of pixels.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model.
        rows (`Sequence[dict]`):
            Rows with `prompt`, without images.
        videos (`Sequence[CachedVideo | None]`):
            The video of each row, as of a [`~trl_temporal.data.feature_cache.FeatureCache`].

    Returns:
        [`EncodedPrompts`]: its inputs have each video once.

    Raises:
        RowError: If a row has images, which no cache holds.
    """
    for row in rows:
        if row.get("images"):
            raise RowError(
                f"row {row.get('id')!r}, column 'images': has images, which the feature cache does not hold. Train "
                "such rows without `feature_cache`."
            )
    chats = [prompt_messages(row) for row in rows]
    texts = [_render(processor, chat) for chat in chats]
    numbers, distinct = [], {}
    for video in videos:
        numbers.append(-1 if video is None else distinct.setdefault(id(video), len(distinct)))
    once = [next(video for video in videos if id(video) == key) for key in distinct]
    inputs = encode_cached_prompts(processor, texts, once, numbers)
    return EncodedPrompts(inputs, chats, texts, _text_kwargs(processor, texts))


def _text_kwargs(processor, texts: list[str]) -> dict:
    """Most templates write the first token themselves; some leave it to the tokenizer."""
    first = processor.tokenizer.bos_token
    return {"add_special_tokens": first is None or not texts[0].startswith(first)}


def _render(processor, chat: list[dict]) -> str:
    return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def _without_parts(chat: list[dict], kind: str) -> list[dict]:
    """The same chat about nothing."""
    chat = [{**message, "content": [part for part in message["content"] if part["type"] != kind]} for message in chat]
    for message in chat:
        message["content"] = message["content"] or [{"type": "text", "text": ""}]
    return chat


def _process(
    processor,
    texts: list[str],
    videos: Sequence[Video | None],
    images: Sequence[list["Image"]],
    text_kwargs: dict,
) -> BatchFeature:
    shown = [video for video in videos if video is not None]
    kwargs = video_arguments(
        processor,
        [video.frames for video in shown],
        [video.timestamps_s for video in shown],
        [video.duration_s for video in shown],
    )
    if any(images):
        kwargs["images"] = list(images)
    inputs = processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **text_kwargs, **kwargs)
    if kwargs and not any(name.startswith("pixel_values") for name in inputs):
        raise RuntimeError(
            f"{type(processor).__name__} made no pixel values of {len(shown)} videos and {sum(map(len, images))} "
            f"images (only {', '.join(inputs)}), so the model would answer blind. Use a model and processor of a "
            "family that takes them."
        )
    return inputs


def _one_name_for_both(processor) -> bool:
    """Whether what a processor makes of videos takes the place of what it makes of images, as in SmolVLM."""
    names = set(processor.image_processor.model_input_names) & set(processor.video_processor.model_input_names)
    return any(name.startswith("pixel_values") for name in names)


def _process_apart(
    processor,
    rows: Sequence[dict],
    texts: list[str],
    videos: Sequence[Video | None],
    images: Sequence[list["Image"]],
    text_kwargs: dict,
) -> BatchFeature:
    """Rows with images and rows with a video, or with none of both, each by themselves, and put together again."""
    with_images = [number for number, row_images in enumerate(images) if row_images]
    for number in with_images:
        if videos[number] is not None:
            raise RowError(
                f"row {rows[number].get('id')!r}: has a video and images, of which {type(processor).__name__} would "
                "drop the images. Make them two rows, or train a model of another family."
            )
    found = {}  # by name and row
    for group in (with_images, [number for number in range(len(rows)) if not images[number]]):
        inputs = _process(
            processor,
            [texts[number] for number in group],
            [videos[number] for number in group],
            [images[number] for number in group],
            text_kwargs,
        )
        seeing = [number for number in group if images[number] or videos[number] is not None]
        for name, values in inputs.items():
            owners = seeing if name.startswith("pixel") else group
            found.setdefault(name, {}).update(zip(owners, values, strict=True))
    sizes = {tuple(pictures.shape[-2:]) for pictures in found["pixel_values"].values()}
    if len(sizes) > 1:
        raise ValueError(
            f"{type(processor).__name__} makes pictures of the sizes {sorted(sizes)} of images and videos, which do "
            "not go into one batch. Give its image processor and its video processor one `max_image_size`."
        )
    fill = {"input_ids": processor.tokenizer.pad_token_id}
    merged = {}
    for name, of_row in found.items():
        values = [of_row[number] for number in sorted(of_row)]
        side = "right" if name.startswith("pixel") else "left"  # the model skips pictures that are all zeros
        merged[name] = torch.nn.utils.rnn.pad_sequence(
            values, batch_first=True, padding_value=fill.get(name, 0), padding_side=side
        )
    return BatchFeature(merged)


# Processors whose user has been told: rows that follow would say the same again.
_warned = weakref.WeakSet()


def warn_of_equal_times(
    processor, rows: Sequence[dict], videos: Sequence[Video | None], inputs: BatchFeature, per_second: float | None
) -> None:
    """
    Warns, once for each processor, where a model of transformers is told the same time of frames that follow each
    other.

    Args:
        processor (`ProcessorMixin`):
            Its processor.
        rows (`Sequence[dict]`):
            Rows, for their ids.
        videos (`Sequence[Video | None]`):
            The video of each row.
        inputs (`BatchFeature`):
            What the processor made of them: `input_ids`, `video_grid_thw` and `second_per_grid_ts` are read.
        per_second (`float`, *optional*):
            As of [`time_ids_per_second`].
    """
    if processor in _warned:
        return
    numbers = [number for number, video in enumerate(videos) if video is not None]
    for place, number in enumerate(numbers):
        video = videos[number]
        if per_second is not None:
            # As the model computes them.
            steps = torch.arange(int(inputs["video_grid_thw"][place][0]))
            times = (steps * (per_second * inputs["second_per_grid_ts"][place])).long().tolist()
        else:
            times = _time_texts(processor, inputs["input_ids"][number])
        twice = [time for time, following in zip(times, times[1:], strict=False) if time == following]
        # One, or one in ten, is the rounding of frame times.
        if len(twice) < 2 or len(twice) <= len(times) / 10:
            continue
        fps = video_metadata(video).sampled_fps
        advice = fps * (len(times) - 1 - len(twice)) / (len(times) - 1)
        warnings.warn(
            f"row {rows[number].get('id')!r}: at {fps:.3g} frames per second, {len(twice)} of the {len(times)} steps "
            f"of the video get the same time as the step before (the first is {twice[0]!r}), so the model cannot tell "
            f"them apart by time. Sample about {advice:.2g} frames per second: lower `fps`, `max_frames` or "
            "`num_frames`.",
            stacklevel=3,
        )
        _warned.add(processor)
        return


def _time_texts(processor, input_ids: torch.Tensor) -> list[str]:
    """The times that a processor wrote into a prompt, one for each step of the video."""
    vision_ids = [id for id in (*processor.image_token_ids, *processor.video_token_ids) if id is not None]
    is_text = ~torch.isin(input_ids, torch.tensor(vision_ids))
    return TIME_TEXT.findall(processor.tokenizer.decode(input_ids[is_text]))
