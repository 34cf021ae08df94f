# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Processor of D2VLM. This file travels to the Hub as remote code: torch and transformers only.

Seconds outside, frames inside: spans come in and go out in seconds, and every sampled frame carries its timestamp. The
rule that turns one into the other is [`spans_to_positions`], [`spans_to_frame_mask`] and [`frame_run_to_span`].
"""

import inspect
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AddedToken, AutoConfig, AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.video_utils import VideoMetadata

from .configuration_d2vlm import backbone_traits, check_backbone

# A processor of transformers knows times only as frame number / frame rate. Numbers in milliseconds, at a rate of
# 1000, are the timestamps themselves, whatever the frame rate of the file does.
CLOCK_HZ = 1000

# What is known of every `<evi>` and every frame.
SIMILARITIES = ("salience", "logits", "cosines")


def spans_to_positions(spans: Sequence[Sequence[float]], timestamps_s: Sequence[float]) -> np.ndarray:
    r"""
    The ends of spans as frame indices with a fraction: frame `i` stands at `t_i`, and before the first and behind the
    last frame the indices go on at the same pace. At one frame per second a second is its own index.

    Args:
        spans (`Sequence` of `[start_s, end_s]`):
            Spans in seconds.
        timestamps_s (`Sequence[float]` of length `T`):
            Timestamps of the sampled frames in seconds.

    Returns:
        `np.ndarray` of shape `(len(spans), 2)`, neither rounded nor clipped.

    Example:

    ```python
    >>> spans_to_positions([[1.0, 5.5]], timestamps_s=[0.0, 2.0, 4.0]).tolist()
    [[0.5, 2.75]]
    ```
    """
    spans = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    timestamps_s = np.asarray(timestamps_s, dtype=np.float64)
    last = len(timestamps_s) - 1
    pace_s = (timestamps_s[-1] - timestamps_s[0]) / last if last else 1.0
    inside = np.interp(spans, timestamps_s, np.arange(last + 1))
    before = np.minimum(spans - timestamps_s[0], 0) / pace_s
    behind = np.maximum(spans - timestamps_s[-1], 0) / pace_s
    return inside + before + behind


def spans_to_frame_mask(
    spans: Sequence[Sequence[float]],
    timestamps_s: Sequence[float],
    duration_s: float,
    time_rule: str = "interval",
) -> np.ndarray:
    r"""
    Frames of each span.

    Args:
        spans (`Sequence` of `[start_s, end_s]`):
            Spans in seconds.
        timestamps_s (`Sequence[float]` of length `T`):
            Timestamps of the sampled frames in seconds.
        duration_s (`float`):
            Duration of the video in seconds.
        time_rule (`str`, *optional*, defaults to `"interval"`):
            `"interval"`: frame `i` covers `[t_i, t_{i+1})`, the last one up to the duration; it belongs to a span that
            contains its midpoint, and a span without such a frame takes the nearest one. `"index"` (released code):
            frame `i` stands at `t_i`; both ends are rounded to a frame of the video, put in order, and included.

    Returns:
        `np.ndarray` of shape `(len(spans), T)` and type bool.

    Example:

    ```python
    >>> spans_to_frame_mask([[1.0, 3.0]], timestamps_s=[0.0, 1.0, 2.0, 3.0], duration_s=4.0).tolist()
    [[False, True, True, False]]
    ```
    """
    spans = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    timestamps_s = np.asarray(timestamps_s, dtype=np.float64)
    if time_rule == "index":
        ends = np.sort(np.clip(np.round(spans_to_positions(spans, timestamps_s)), 0, len(timestamps_s) - 1), axis=1)
        frame = np.arange(len(timestamps_s))
        return (frame >= ends[:, :1]) & (frame <= ends[:, 1:])
    midpoints = (timestamps_s + np.append(timestamps_s[1:], duration_s)) / 2
    mask = (midpoints >= spans[:, :1]) & (midpoints < spans[:, 1:])
    empty = ~mask.any(1)
    nearest = np.abs(midpoints[None] - spans.mean(1, keepdims=True)).argmin(1)
    mask[empty, nearest[empty]] = True
    return mask


def frame_run_to_span(
    run: np.ndarray, timestamps_s: Sequence[float], duration_s: float, time_rule: str = "interval"
) -> list[float]:
    r"""
    The span in seconds of frames `a..b`: `[t_a, t_{b+1})`, clipped to the duration, or `[t_a, t_b]` by the rule
    `"index"`.

    Args:
        run (`np.ndarray` of shape `(T,)` and type bool):
            A contiguous run of frames.
        timestamps_s (`Sequence[float]` of length `T`):
            Timestamps of the sampled frames in seconds.
        duration_s (`float`):
            Duration of the video in seconds.
        time_rule (`str`, *optional*, defaults to `"interval"`):
            See [`spans_to_frame_mask`].

    Returns:
        `[start_s, end_s]`.
    """
    frames = np.flatnonzero(run)
    if time_rule == "index":
        return [float(timestamps_s[frames[0]]), float(timestamps_s[frames[-1]])]
    ends_s = [*timestamps_s[1:], duration_s]
    return [float(timestamps_s[frames[0]]), float(min(ends_s[frames[-1]], duration_s))]


def clock_metadata(
    timestamps_s: Sequence[float], duration_s: float, height: int | None = None, width: int | None = None
) -> VideoMetadata:
    r"""
    What the processors of transformers are told about sampled frames, such that they compute the real timestamps.

    Args:
        timestamps_s (`Sequence[float]` of length `T`):
            Timestamps of the frames in seconds.
        duration_s (`float`):
            Duration of the video in seconds.
        height, width (`int`, *optional*):
            Size of the frames in pixels.

    Returns:
        `VideoMetadata`: with `frames_indices` in milliseconds and `fps` 1000, so that its `timestamps` are those of
        the frames to half a millisecond, and its `sampled_fps` is one over their mean distance.

    Example:

    ```python
    >>> metadata = clock_metadata([0.0, 0.52, 2.0], duration_s=2.5)
    >>> metadata.timestamps, metadata.sampled_fps, metadata.duration
    ([0.0, 0.52, 2.0], 1.0, 2.5)
    ```
    """
    timestamps_s = np.asarray(timestamps_s, dtype=np.float64)
    num_frames = len(timestamps_s)
    step_s = (timestamps_s[-1] - timestamps_s[0]) / (num_frames - 1) if num_frames > 1 else duration_s
    return VideoMetadata(
        # What the frames stand for, which `sampled_fps` divides by: the duration would stretch the steps of a video
        # whose last frame stands for less than one.
        total_num_frames=max(1, round(num_frames * step_s * CLOCK_HZ)),
        fps=CLOCK_HZ,
        width=width,
        height=height,
        duration=duration_s,
        frames_indices=np.rint(timestamps_s * CLOCK_HZ).astype(int).tolist(),
    )


def frames_per_step(processor: ProcessorMixin) -> int:
    """Sampled frames that a model of transformers merges into one, by its processor."""
    return processor.video_processor.to_dict().get("temporal_patch_size") or 1


def video_arguments(
    processor: ProcessorMixin,
    videos: Sequence[np.ndarray],
    timestamps_s: Sequence[Sequence[float]],
    duration_s: Sequence[float],
) -> dict:
    r"""
    How a processor of transformers is called with frames that were sampled already.

    Args:
        processor (`ProcessorMixin`):
            The processor.
        videos (`Sequence` of `(T, height, width, 3)` uint8 arrays):
            Frames. A single one is shown twice where two are merged: Qwen3-VL refuses it, its predecessors repeat it.
        timestamps_s, duration_s (`Sequence`):
            Timestamps of the frames of each video, and its duration, in seconds.

    Returns:
        `dict`: keyword arguments; none without videos.
    """
    frames, metadata = [], []
    for video, times, duration in zip(videos, timestamps_s, duration_s, strict=True):
        video = np.array(video)  # a copy: cached frames are read-only
        metadata.append(clock_metadata(times, duration, *video.shape[1:3]))
        if len(video) < frames_per_step(processor):
            video = np.repeat(video, 2, axis=0)
            metadata[-1].frames_indices = metadata[-1].frames_indices * 2
        frames.append(video)
    return {"videos": frames, "video_metadata": metadata, "do_sample_frames": False} if frames else {}


class D2VLMPrompt(NamedTuple):
    """
    A prompt, its video's tokens included.

    Args:
        input_ids (`list[int]`):
            Its tokens.
        frame_index (`list[int]`):
            Frame that each token belongs to, -1 for text.
    """

    input_ids: list[int]
    frame_index: list[int]


class D2VLMProcessor(ProcessorMixin):
    r"""
    Turns text and sampled frames into the inputs of D2VLM, and its generations back into text and seconds.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer with the tokens `<video>`, `<evi>` and `</evi>`.
        chat_template (`str`, *optional*):
            Jinja template; a `{"type": "video"}` part becomes `<video>`.
        image_size (`int`, *optional*, defaults to `224`):
            Frames are resized to this height and width.
        center_crop (`bool`, *optional*, defaults to `False`):
            Keep the proportions of the picture and cut out the middle square (released checkpoints), instead of
            resizing the whole picture to a square.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, for values in `[0, 1]`. Defaults to CLIP's.
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel. Defaults to CLIP's.
        fps (`float`, *optional*, defaults to `1.0`):
            Frames that are sampled per second of video.
        max_frames (`int`, *optional*):
            Longer videos are sampled more thinly.
        num_frames (`int`, *optional*):
            Exactly this many frames of every video, instead of `fps` and `max_frames`.
        time_rule (`str`, *optional*, defaults to `"interval"`):
            How seconds and frames are turned into each other, see [`spans_to_frame_mask`]: `"interval"`, or `"index"`
            for checkpoints of the released code.
        has_qformer_text (`bool`, *optional*, defaults to `False`):
            Whether the Q-Former reads the question, with the tokenizer in the subfolder `qformer_tokenizer`.
    """

    video_token = "<video>"
    evidence_token = "<evi>"
    evidence_end_token = "</evi>"

    def __init__(
        self,
        tokenizer,
        chat_template: str | None = None,
        image_size: int = 224,
        center_crop: bool = False,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        fps: float = 1.0,
        max_frames: int | None = None,
        num_frames: int | None = None,
        time_rule: str = "interval",
        has_qformer_text: bool = False,
    ):
        if time_rule not in ("interval", "index"):
            raise ValueError(f"`time_rule` must be 'interval' or 'index', got {time_rule!r}.")
        super().__init__(tokenizer, chat_template=chat_template)
        self.image_size = image_size
        self.center_crop = center_crop
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.fps = fps
        self.max_frames = max_frames
        self.num_frames = num_frames
        self.time_rule = time_rule
        self.has_qformer_text = has_qformer_text
        self.qformer_tokenizer = None
        ids = tokenizer.convert_tokens_to_ids([self.video_token, self.evidence_token, self.evidence_end_token])
        if None in ids or tokenizer.unk_token_id in ids:
            raise ValueError(
                f"The tokenizer lacks one of {self.video_token}, {self.evidence_token}, {self.evidence_end_token}. "
                "Add them as special tokens and resize the model's embeddings."
            )
        self.video_token_id, self.evidence_token_id, self.evidence_end_token_id = ids

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values_videos", "frame_mask", "video_index"]

    def __call__(
        self,
        text: str | list[str],
        videos: Sequence[np.ndarray | torch.Tensor] | None = None,
        video_index: Sequence[int] | None = None,
        questions: Sequence[str] | None = None,
        timestamps_s: Sequence[Sequence[float]] | None = None,
        duration_s: Sequence[float] | None = None,
        padding: bool = True,
        padding_side: str = "left",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        r"""
        Args:
            text (`str` or `list[str]`):
                Rendered chats with one `<video>` where the video stands.
            videos (`Sequence` of `(T, height, width, 3)` uint8 arrays, *optional*):
                Sampled frames.
            video_index (`Sequence[int]`, *optional*):
                Video of each text, -1 for none; rows that share a video have it encoded once. Defaults to the i-th
                video for the i-th text that has a `<video>`.
            questions (`Sequence[str]`, *optional*):
                What the Q-Former reads; required when the processor has a `qformer_tokenizer`.
            timestamps_s, duration_s (`Sequence`, *optional*):
                Taken as by [`D2VLMBackboneProcessor`]; this model is not told.
            padding (`bool`, *optional*, defaults to `True`):
                Pad to the longest row.
            padding_side (`str`, *optional*, defaults to `"left"`):
                `"left"` for generation, `"right"` for training.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Only `"pt"`.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(rows, L)`, and with videos `pixel_values_videos`
            `(videos, T, 3, image_size, image_size)`, `frame_mask` `(videos, T)` and `video_index` `(rows,)`.

        Raises:
            ValueError: if texts and videos do not agree.
        """
        texts = [text] if isinstance(text, str) else list(text)
        videos = [] if videos is None else list(videos)
        if video_index is None:
            video_index = self._video_index(texts, len(videos))
        frames = [self._to_tensor(video, number) for number, video in enumerate(videos)]
        texts = [
            self._expand_video(row, -1 if index < 0 else len(frames[index]), number)
            for number, (row, index) in enumerate(zip(texts, video_index, strict=True))
        ]
        data = dict(
            self.tokenizer(
                texts,
                padding=padding,
                padding_side=padding_side,
                add_special_tokens=False,
                return_tensors=return_tensors,
                return_token_type_ids=False,
            )
        )
        if videos:
            data.update(self.pad_frames(frames))
            data["video_index"] = torch.tensor(video_index)
        if self.qformer_tokenizer is not None:
            if questions is None:
                raise ValueError("The Q-Former reads the question: pass `questions`, one string per text.")
            data.update(self.encode_questions(questions))
        return BatchFeature(data)

    def apply_chat_template(self, conversation, chat_template: str | None = None, tokenize: bool = False, **kwargs):
        if not tokenize:
            return super().apply_chat_template(conversation, chat_template, **kwargs)
        self._refuse_media(conversation)
        template = chat_template or self.chat_template
        return self.tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=True, **kwargs)

    @staticmethod
    def _refuse_media(conversation) -> None:
        """What pipelines do: transformers would decode the video, and guess its times from an average frame rate."""
        chats = [conversation] if isinstance(conversation[0], dict) else conversation
        contents = [message["content"] for chat in chats for message in chat]
        parts = [part for content in contents if not isinstance(content, str) for part in content]
        if any(part["type"] != "text" for part in parts):
            raise ValueError(
                "A D2VLM needs the frames and the times at which they were decoded, which a pipeline does not give. "
                "Render the chat without `tokenize=True`, and call the processor with `videos` and `timestamps_s`; "
                "`trl_temporal` does both (`generate_answers`)."
            )

    def encode_prompts(
        self,
        texts: Sequence[str],
        videos: Sequence[np.ndarray],
        video_index: Sequence[int],
        timestamps_s: Sequence[Sequence[float]],
        duration_s: Sequence[float],
    ) -> tuple[list[D2VLMPrompt], dict[str, torch.Tensor]]:
        r"""
        Prompts for training, to which responses are appended.

        Args:
            texts (`Sequence[str]`):
                Rendered prompts.
            videos, timestamps_s, duration_s (`Sequence`):
                Frames `(T, height, width, 3)`, timestamps in seconds and duration in seconds of each distinct video.
            video_index (`Sequence[int]`):
                Video of each text, -1 for none.

        Returns:
            A [`D2VLMPrompt`] for each text, and the model's inputs for the videos, each once.
        """
        frames = [self._to_tensor(video, number) for number, video in enumerate(videos)]
        prompts = []
        for number, (text, index) in enumerate(zip(texts, video_index, strict=True)):
            text = self._expand_video(text, -1 if index < 0 else len(frames[index]), number)
            input_ids = np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=int)
            is_frame = input_ids == self.video_token_id
            frame_index = np.where(is_frame, is_frame.cumsum() - 1, -1)
            prompts.append(D2VLMPrompt(input_ids.tolist(), frame_index.tolist()))
        return prompts, self.pad_frames(frames) if frames else {}

    def frame_timestamps(self, timestamps_s: Sequence[float]) -> np.ndarray:
        """When each frame of the model begins, in seconds: the timestamps of the sampled frames."""
        return np.asarray(timestamps_s, dtype=np.float64)

    def encode_questions(self, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the Q-Former reads: `qformer_input_ids` and `qformer_attention_mask`, both `(rows, W)`."""
        encoded = self.qformer_tokenizer(list(questions), padding=True, truncation=True, return_tensors="pt")
        return {"qformer_input_ids": encoded["input_ids"], "qformer_attention_mask": encoded["attention_mask"]}

    def pad_frames(self, frames: Sequence[torch.Tensor | np.ndarray]) -> dict[str, torch.Tensor]:
        """Normalises and pads videos of different length: `pixel_values_videos` and `frame_mask`."""
        frames = [self._to_tensor(video, number) for number, video in enumerate(frames)]
        length = max(len(video) for video in frames)
        shape = (len(frames), length, 3, self.image_size, self.image_size)
        pixel_values, frame_mask = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool)
        mean = torch.tensor(self.image_mean).view(3, 1, 1)
        std = torch.tensor(self.image_std).view(3, 1, 1)
        for number, video in enumerate(frames):
            video = video.permute(0, 3, 1, 2).float()
            if video.shape[-2:] != shape[-2:]:
                video = self._resize(video)
            pixel_values[number, : len(video)] = (video / 255 - mean) / std
            frame_mask[number, : len(video)] = True
        return {"pixel_values_videos": pixel_values, "frame_mask": frame_mask}

    def _resize(self, video: torch.Tensor) -> torch.Tensor:
        """Frames `(T, 3, height, width)` as squares."""
        side, (height, width) = self.image_size, video.shape[-2:]
        resized = (side, side)
        if self.center_crop:
            shorter = min(height, width)
            resized = (max(side * height // shorter, side), max(side * width // shorter, side))
        video = F.interpolate(video, resized, mode="bilinear", antialias=True).clamp(0, 255)
        top, left = ((whole - side) // 2 for whole in resized)
        return video[..., top : top + side, left : left + side]

    def post_process_grounded(
        self,
        output,
        inputs: BatchFeature,
        timestamps_s: Sequence[Sequence[float]],
        duration_s: Sequence[float],
    ) -> list[dict]:
        r"""
        Reads generations as text and spans in seconds, by the processor's `time_rule`.

        Args:
            output ([`D2VLMGenerateOutput`]):
                Of `generate(..., return_dict_in_generate=True)`.
            inputs (`BatchFeature`):
                What was passed to `generate`.
            timestamps_s (`Sequence` of `Sequence[float]`):
                Per row, the timestamps of the sampled frames in seconds; empty for a row without video.
            duration_s (`Sequence[float]`):
                Per row, the duration of the video in seconds.

        Returns:
            `list[dict]`, per row: `text` (the response, with `<evi>` where it refers to evidence), `evidence` and
            `response` (spans `[start_s, end_s]` of both stages, in order), and arrays of shape `(E, T)` with a row for
            every `<evi>`: `salience`, its similarity to the frames, and the `logits` and `cosines` behind it.
        """
        new_ids = output.sequences[:, inputs["input_ids"].shape[1] :].cpu()
        stop_ids = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        answers = []
        for row, ids in enumerate(new_ids.tolist()):
            ids = ids[: next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))]
            times_s = self.frame_timestamps(timestamps_s[row])
            num_frames = len(times_s)
            num_evidence = ids.count(self.evidence_token_id) if num_frames else 0
            similarities, spans = dict.fromkeys(SIMILARITIES, np.zeros((0, num_frames))), []
            if num_evidence:
                similarities = {
                    name: output[f"evidence_{name}"][row, :num_evidence, :num_frames].float().cpu().numpy()
                    for name in SIMILARITIES
                }
                runs = output.evidence_frames[row, :num_evidence, :num_frames].cpu().numpy()
                spans = [frame_run_to_span(run, times_s, duration_s[row], self.time_rule) for run in runs]
            if self.evidence_end_token_id in ids:
                end = ids.index(self.evidence_end_token_id) + 1
            else:  # cut off in the evidence stage, or all of it is an answer
                words = self._decode([token for token in ids if token != self.evidence_token_id])
                end = 0 if words else len(ids)
            num_first = ids[:end].count(self.evidence_token_id)
            answers.append(
                {
                    "text": self._decode(ids[end:]),
                    "evidence": spans[:num_first],
                    "response": spans[num_first:],
                    **similarities,
                }
            )
        return answers

    def _decode(self, ids: list[int]) -> str:
        # `<evi>` swallows the space before it when text is tokenized; give it back.
        text = self.tokenizer.decode(ids).replace(self.evidence_token, f" {self.evidence_token}")
        return " ".join(text.split())

    def _video_index(self, texts: list[str], num_videos: int) -> list[int]:
        has_video = [self.video_token in row for row in texts]
        if sum(has_video) != num_videos:
            raise ValueError(
                f"{sum(has_video)} of {len(texts)} texts have a {self.video_token} placeholder, but {num_videos} "
                "videos were passed. Pass one video per placeholder, or `video_index` for rows that share videos."
            )
        numbers = iter(range(num_videos))
        return [next(numbers) if has else -1 for has in has_video]

    def _expand_video(self, text: str, num_frames: int, row: int) -> str:
        count = text.count(self.video_token)
        if count != (num_frames >= 0):
            raise ValueError(
                f"Row {row} of the batch has {count} {self.video_token} placeholders and "
                f"{int(num_frames >= 0)} video; they must agree and be at most one."
            )
        return text.replace(self.video_token, self.video_token * max(num_frames, 0))

    def _to_tensor(self, video: np.ndarray | torch.Tensor, number: int) -> torch.Tensor:
        video = torch.tensor(np.asarray(video))  # a copy: cached frames are read-only
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != torch.uint8 or len(video) == 0:
            raise ValueError(
                f"Video {number} must be a uint8 array of shape (T, height, width, 3) with T > 0, got "
                f"{tuple(video.shape)} of {video.dtype}."
            )
        return video

    def save_pretrained(self, save_directory, **kwargs):
        self.has_qformer_text = self.qformer_tokenizer is not None
        if self.has_qformer_text:
            self.qformer_tokenizer.save_pretrained(os.path.join(save_directory, "qformer_tokenizer"))
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        if cls is D2VLMProcessor and "backbone_class" in cls.get_processor_dict(pretrained_model_name_or_path)[0]:
            return D2VLMBackboneProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if processor.has_qformer_text:
            where = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
            processor.qformer_tokenizer = AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path, subfolder="qformer_tokenizer", **where
            )
        return processor


class D2VLMBackboneProcessor(D2VLMProcessor):
    r"""
    Processor of a D2VLM on a video model of transformers: the model's own processor with the tokens `<evi>` and
    `</evi>`, which always tells it the real timestamps.

    Args:
        image_processor, tokenizer, video_processor:
            Parts of the backbone's processor.
        chat_template (`str`, *optional*):
            Jinja template of the backbone.
        backbone_class (`str`):
            Class of the backbone's processor, e.g. `"Qwen3VLProcessor"`.
        backbone_kwargs (`dict`, *optional*):
            Its further arguments.
        video_token_id (`int`):
            Id that stands once per token of a frame in the encoded prompt.
        tokens_behind (`int`, *optional*, defaults to `0`):
            Of these, how many stand behind the last frame and belong to none.
        frames_per_step (`int`, *optional*, defaults to `1`):
            Sampled frames that the model merges into one.
        fps (`float`, *optional*, defaults to `1.0`):
            Frames that are sampled per second of video.
        max_frames (`int`, *optional*, defaults to `128`):
            Longer videos are sampled more thinly.
        num_frames (`int`, *optional*):
            Exactly this many frames of every video, instead of `fps` and `max_frames`, for processors that stack them.
        time_rule (`str`, *optional*, defaults to `"interval"`):
            See [`D2VLMProcessor`].
    """

    image_size = None  # frames are read in their own size: the backbone's processor resizes them
    center_crop = False
    qformer_tokenizer = None
    has_qformer_text = False

    def __init__(
        self,
        image_processor,
        tokenizer,
        video_processor,
        chat_template: str | None = None,
        backbone_class: str | None = None,
        backbone_kwargs: dict | None = None,
        video_token_id: int | None = None,
        tokens_behind: int = 0,
        frames_per_step: int = 1,
        fps: float = 1.0,
        max_frames: int | None = 128,
        num_frames: int | None = None,
        time_rule: str = "interval",
    ):
        ProcessorMixin.__init__(self, image_processor, tokenizer, video_processor, chat_template=chat_template)
        self.backbone_class = backbone_class
        self.backbone_kwargs = dict(backbone_kwargs or {})
        self.backbone = processor_class_from_name(backbone_class)(
            image_processor=image_processor,
            tokenizer=tokenizer,
            video_processor=video_processor,
            chat_template=chat_template,
            **self.backbone_kwargs,
        )
        self.video_token_id = video_token_id
        self.tokens_behind = tokens_behind
        self.frames_per_step = frames_per_step
        self.fps = fps
        self.max_frames = max_frames
        self.num_frames = num_frames
        self.time_rule = time_rule
        ids = tokenizer.convert_tokens_to_ids([self.evidence_token, self.evidence_end_token])
        if None in ids or tokenizer.unk_token_id in ids:
            raise ValueError(
                f"The tokenizer lacks {self.evidence_token} or {self.evidence_end_token}. Make the processor with "
                "`D2VLMBackboneProcessor.from_backbone`, which adds them."
            )
        self.evidence_token_id, self.evidence_end_token_id = ids

    @classmethod
    def from_backbone(cls, backbone, fps: float = 1.0, max_frames: int | None = 128, **kwargs):
        r"""
        The processor of a video model with the evidence tokens added to its tokenizer.

        Args:
            backbone (`str` or `ProcessorMixin`):
                Name or folder of the model, or its processor together with `config` among the keyword arguments.
            fps (`float`, *optional*, defaults to `1.0`):
                Frames that are sampled per second of video.
            max_frames (`int`, *optional*, defaults to `128`):
                Longer videos are sampled more thinly.
            **kwargs:
                Of `AutoProcessor.from_pretrained`; or `config`, the model's configuration.

        Returns:
            [`D2VLMBackboneProcessor`]

        Raises:
            ValueError: if the model cannot carry evidence tokens, see [`check_backbone`].

        Example:

        ```python
        >>> D2VLMBackboneProcessor.from_backbone("Qwen/Qwen3-VL-4B-Instruct", fps=2.0)  # doctest: +SKIP
        ```
        """
        config = kwargs.pop("config", None)
        if config is None:
            if not isinstance(backbone, str | os.PathLike):
                raise ValueError("Pass `config` too, the configuration of the model that the processor belongs to.")
            where = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
            config = AutoConfig.from_pretrained(backbone, **where)
        check_backbone(config)
        traits = backbone_traits(config)
        if isinstance(backbone, str | os.PathLike):
            backbone = AutoProcessor.from_pretrained(backbone, **kwargs)
        tokens = [
            AddedToken(token, lstrip=True, special=True) for token in (cls.evidence_token, cls.evidence_end_token)
        ]
        backbone.tokenizer.add_special_tokens(
            {"additional_special_tokens": tokens}, replace_extra_special_tokens=False
        )
        parts = ("image_processor", "tokenizer", "video_processor", "chat_template")
        arguments = set(inspect.signature(type(backbone).__init__).parameters) - {"self", *parts}
        settings = backbone.to_dict()
        return cls(
            **{name: vars(backbone)[name] for name in parts},
            backbone_class=type(backbone).__name__,
            backbone_kwargs={name: settings[name] for name in sorted(arguments) if name in settings},
            video_token_id=config.image_token_id if traits.modality == "image" else config.video_token_id,
            tokens_behind=traits.tokens_behind,
            frames_per_step=frames_per_step(backbone),
            fps=fps,
            max_frames=max_frames,
        )

    @property
    def model_input_names(self):
        return [*self.backbone.model_input_names, "frame_index", "frame_mask", "video_index"]

    def __call__(
        self,
        text: str | list[str],
        videos: Sequence[np.ndarray | torch.Tensor] | None = None,
        video_index: Sequence[int] | None = None,
        questions: Sequence[str] | None = None,
        timestamps_s: Sequence[Sequence[float]] | None = None,
        duration_s: Sequence[float] | None = None,
        padding: bool = True,
        padding_side: str = "left",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        r"""
        Args:
            text (`str` or `list[str]`):
                Rendered chats.
            videos (`Sequence` of `(T, height, width, 3)` uint8 arrays, *optional*):
                Sampled frames.
            video_index (`Sequence[int]`, *optional*):
                Video of each text, -1 for none. Defaults to the i-th video for the i-th text.
            questions (`Sequence[str]`, *optional*):
                Not read.
            timestamps_s (`Sequence` of `Sequence[float]`):
                Timestamps of the frames of each video in seconds.
            duration_s (`Sequence[float]`):
                Duration of each video in seconds.
            padding (`bool`, *optional*, defaults to `True`):
                Pad to the longest row.
            padding_side (`str`, *optional*, defaults to `"left"`):
                `"left"` for generation, `"right"` for training.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Only `"pt"`.

        Returns:
            `BatchFeature`: what the backbone's processor makes of the videos, each once, and `input_ids`,
            `attention_mask` and `frame_index` `(rows, L)`, `frame_mask` `(videos, T)` and `video_index` `(rows,)`.

        Raises:
            ValueError: if texts and videos do not agree, or timestamps are missing.
        """
        texts = [text] if isinstance(text, str) else list(text)
        videos = [] if videos is None else list(videos)
        if video_index is None:
            if videos and len(videos) != len(texts):
                raise ValueError(
                    f"{len(videos)} videos for {len(texts)} texts: pass `video_index` to say which text shows which."
                )
            video_index = list(range(len(videos))) or [-1] * len(texts)
        if videos and (timestamps_s is None or duration_s is None):
            raise ValueError(
                "The model is told when each frame is: pass `timestamps_s` and `duration_s`, one entry per video. "
                "Without them the backbone's processor would take 24 frames per second for granted."
            )
        self._check_index(video_index, len(texts), len(videos))
        frames = [self._to_tensor(video, number).numpy() for number, video in enumerate(videos)]
        counts = [len(video) for video in frames]
        if frames and (counts != [len(times) for times in timestamps_s] or len(duration_s) != len(frames)):
            raise ValueError(
                f"The videos have {', '.join(map(str, counts))} frames, but `timestamps_s` has "
                f"{', '.join(str(len(times)) for times in timestamps_s) or 'no'} entries and `duration_s` "
                f"{len(duration_s)}. Pass a timestamp for every frame and a duration for every video."
            )
        lengths = sorted(set(counts))
        if len(lengths) > 1 and "video_grid_thw" not in self.backbone.model_input_names:
            raise ValueError(
                f"{self.backbone_class} stacks the videos of a batch, which takes equally many frames, but these have "
                f"{', '.join(map(str, lengths))}. Sample a fixed `num_frames` of every video, or one video a batch."
            )
        shown = [number for number in video_index if number >= 0]
        video_kwargs = video_arguments(
            self.backbone,
            [frames[number] for number in shown],
            [timestamps_s[number] for number in shown],
            [duration_s[number] for number in shown],
        )
        data = self.backbone(
            text=texts,
            padding=padding,
            padding_side=padding_side,
            return_tensors=return_tensors,
            add_special_tokens=self._adds_first_token(texts),
            **video_kwargs,
        )
        data = {name: value for name, value in data.items() if name not in ("mm_token_type_ids", "token_type_ids")}
        if not shown:
            return BatchFeature(data)
        tokens = {name: data.pop(name) for name in ("input_ids", "attention_mask")}
        num_steps = [-(-counts[number] // self.frames_per_step) for number in shown]
        once = [shown.index(number) for number in range(len(videos))]
        videos_once = select_videos(data, num_steps, once)
        num_steps = torch.tensor([num_steps[place] for place in once])
        video_index = torch.tensor(video_index)
        num_frames = torch.where(video_index >= 0, num_steps[video_index.clamp(min=0)], 0)
        return BatchFeature(
            {
                **tokens,
                **videos_once,
                "frame_index": self._frame_index(tokens["input_ids"], num_frames),
                "frame_mask": torch.arange(int(num_steps.max())) < num_steps[:, None],
                "video_index": video_index,
            }
        )

    def _check_index(self, video_index: Sequence[int], num_texts: int, num_videos: int) -> None:
        shown = {number for number in video_index if number >= 0}
        if len(video_index) != num_texts or shown != set(range(num_videos)):
            raise ValueError(
                f"`video_index` is {list(video_index)} for {num_texts} texts and {num_videos} videos: give every text "
                "the number of its video, from 0, or -1, and show every video at least once."
            )

    def _adds_first_token(self, texts: Sequence[str]) -> bool:
        """Most templates write the first token themselves; some leave it to the tokenizer."""
        first = self.tokenizer.bos_token
        return first is None or not texts[0].startswith(first)

    def _frame_index(self, input_ids: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """Frame of each token `(rows, L)`, -1 for text; `num_frames (rows,)` as the model merges them."""
        is_video = input_ids == self.video_token_id
        num_tokens = is_video.sum(-1)
        per_frame = (num_tokens - self.tokens_behind) // num_frames.clamp(min=1)
        expected = torch.where(num_frames > 0, per_frame * num_frames + self.tokens_behind, 0)
        if not torch.equal(num_tokens, expected) or bool(((num_frames > 0) & (per_frame < 1)).any()):
            row = int(((num_tokens != expected) | ((num_frames > 0) & (per_frame < 1))).nonzero()[0])
            raise ValueError(
                f"Row {row} of the batch has {int(num_tokens[row])} video tokens for {int(num_frames[row])} frames: "
                "they must agree. Does the chat template render the part {'type': 'video'}, and is it there once?"
            )
        frame = (is_video.cumsum(-1) - 1) // per_frame.clamp(min=1)[:, None]
        return frame.masked_fill(~is_video | (frame >= num_frames[:, None]), -1)

    def encode_prompts(self, texts, videos, video_index, timestamps_s, duration_s):
        inputs = self(
            list(texts), videos, video_index, timestamps_s=timestamps_s, duration_s=duration_s, padding_side="right"
        )
        return split_prompts(inputs)

    def frame_timestamps(self, timestamps_s: Sequence[float]) -> np.ndarray:
        """When each frame of the model begins, in seconds: of frames that are merged, the first."""
        return np.asarray(timestamps_s, dtype=np.float64)[:: self.frames_per_step]

    def apply_chat_template(self, conversation, *args, tokenize: bool = False, **kwargs):
        if tokenize:
            self._refuse_media(conversation)
        # Content in parts, which the templates of all families read.
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message["content"], str)
            else message
            for message in conversation
        ]
        return self.backbone.apply_chat_template(messages, *args, tokenize=tokenize, **kwargs)

    def to_dict(self):
        # One name loads both kinds of processor, so that `AutoProcessor` knows it where the package is installed.
        return {**super().to_dict(), "processor_class": "D2VLMProcessor"}

    def save_pretrained(self, save_directory, **kwargs):
        return ProcessorMixin.save_pretrained(self, save_directory, **kwargs)


def split_prompts(inputs: BatchFeature) -> tuple[list[D2VLMPrompt], dict[str, torch.Tensor]]:
    r"""
    Prompts apart from what describes their videos.

    Args:
        inputs (`BatchFeature`):
            Of [`D2VLMBackboneProcessor`], padded on the right.

    Returns:
        A [`D2VLMPrompt`] for each row, and the inputs that have an entry for each video, frame or patch.
    """
    tokens = ("input_ids", "attention_mask", "frame_index", "video_index")
    ids, lengths = inputs["input_ids"].tolist(), inputs["attention_mask"].sum(-1).tolist()
    frames = inputs["frame_index"].tolist() if "frame_index" in inputs else [[-1] * len(row) for row in ids]
    prompts = [
        D2VLMPrompt(row[:length], frame[:length]) for row, frame, length in zip(ids, frames, lengths, strict=True)
    ]
    return prompts, {name: value for name, value in inputs.items() if name not in tokens}


def select_videos(
    inputs: dict[str, torch.Tensor], num_frames: Sequence[int], videos: Sequence[int]
) -> dict[str, torch.Tensor]:
    r"""
    Some of the videos that a processor of transformers has encoded.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            What it made of videos: tensors with an entry for each video, frame or patch.
        num_frames (`Sequence[int]`):
            Frames of each video, as the model merges them.
        videos (`Sequence[int]`):
            Numbers of the videos to take, in the order to take them in.

    Returns:
        `dict[str, torch.Tensor]`: the same of these videos.

    Example:

    ```python
    >>> select_videos({"pixel_values": torch.arange(5)}, num_frames=[2, 3], videos=[1])
    {'pixel_values': tensor([2, 3, 4])}
    ```
    """
    num_videos = len(num_frames)
    if list(videos) == list(range(num_videos)):
        return inputs
    sizes = {num_videos: [1] * num_videos, sum(num_frames): list(num_frames)}
    if "video_grid_thw" in inputs:
        patches = inputs["video_grid_thw"].prod(-1).tolist()
        sizes[sum(patches)] = patches
    selected = {}
    for name, value in inputs.items():
        pieces = torch.split(value, sizes[len(value)])
        selected[name] = torch.cat([pieces[number] for number in videos])
    return selected


__all__ = [
    "CLOCK_HZ",
    "D2VLMBackboneProcessor",
    "D2VLMProcessor",
    "D2VLMPrompt",
    "clock_metadata",
    "frames_per_step",
    "frame_run_to_span",
    "select_videos",
    "spans_to_frame_mask",
    "spans_to_positions",
    "split_prompts",
    "video_arguments",
]
