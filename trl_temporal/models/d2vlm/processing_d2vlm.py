# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Processor of D2VLM. This file travels to the Hub as remote code: torch and transformers only.

Seconds outside, frames inside: spans come in and go out in seconds, and every sampled frame carries its timestamp. The
rule that turns one into the other is [`spans_to_positions`], [`spans_to_frame_mask`] and [`frame_run_to_span`].
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

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
            num_frames = len(timestamps_s[row])
            num_evidence = ids.count(self.evidence_token_id) if num_frames else 0
            similarities, spans = dict.fromkeys(SIMILARITIES, np.zeros((0, num_frames))), []
            if num_evidence:
                similarities = {
                    name: output[f"evidence_{name}"][row, :num_evidence, :num_frames].float().cpu().numpy()
                    for name in SIMILARITIES
                }
                runs = output.evidence_frames[row, :num_evidence, :num_frames].cpu().numpy()
                spans = [frame_run_to_span(run, timestamps_s[row], duration_s[row], self.time_rule) for run in runs]
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
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if processor.has_qformer_text:
            where = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
            processor.qformer_tokenizer = AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path, subfolder="qformer_tokenizer", **where
            )
        return processor


__all__ = ["D2VLMProcessor", "frame_run_to_span", "spans_to_frame_mask", "spans_to_positions"]
