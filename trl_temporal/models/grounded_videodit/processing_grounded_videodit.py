# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Processor of Grounded-VideoDiT. This file travels to the Hub as remote code: torch and transformers only.

Seconds outside, frames inside: every frame carries its timestamp, and answers come back in seconds. Letters in shapes:
`rows` texts, `videos` distinct videos, `T` frames, `P` places of a frame, `M` tracked objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .grounding_heads import frames_to_spans
from .object_tokens import masks_to_grid
from .time_tokens import TimeTokens


@dataclass
class VideoInput:
    """
    What the model is shown of a video.

    Args:
        features (`torch.Tensor` of shape `(T, P, d_v)`):
            Features of the frozen frame encoders.
        timestamps_s (`np.ndarray` of shape `(T,)`):
            Timestamps of the frames in seconds.
        duration_s (`float`):
            Duration in seconds.
        noise_seed (`int`, *optional*, defaults to `0`):
            What the noise of the encoder `"dtl_feature"` is drawn from.
        union (`np.ndarray` of shape `(T, height, width)`, *optional*):
            Union of the objects' masks, bool or the share of each place that is covered; all ones where there is no
            track.
        tracks (`np.ndarray` of shape `(M, T, height, width)`, *optional*):
            Mask of each object, bool or the share of each place that is covered.
        boxes (`np.ndarray` of shape `(M, T, 4)`, *optional*):
            Centre, width and height of the objects in shares of the frame.
        scores (`np.ndarray` of shape `(M,)`, *optional*):
            Mean detection scores.
    """

    features: torch.Tensor
    timestamps_s: np.ndarray
    duration_s: float
    noise_seed: int = 0
    union: np.ndarray | None = None
    tracks: np.ndarray | None = None
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None


class GroundedVideoDiTProcessor(ProcessorMixin):
    r"""
    Turns text and features of frames into the inputs of Grounded-VideoDiT, and its answers back into text and seconds.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer with the tokens `<video>`, `<evi>` and `</evi>`, and with the head `"time_tokens"` those of
            [`add_time_tokens`].
        chat_template (`str`, *optional*):
            Jinja template; a `{"type": "video"}` part becomes `<video>`. It is rendered behind the text of its message
            (Fig. 2), so that frames see the question.
        num_frames (`int`, *optional*, defaults to `96`):
            Frames of each video, at the midpoints of equal parts.
        image_size (`int`, *optional*, defaults to `224`):
            Height and width of the frames that the frame encoders are given, in pixels.
        tokens_per_frame, num_object_tokens, num_time_anchors (`int`, *optional*, defaults to `1`, `4` and `8`):
            As in [`GroundedVideoDiTConfig`].
        grounding_head (`list[str]`, *optional*, defaults to `["span"]`):
            As in [`GroundedVideoDiTConfig`]: the first one is reported.
        num_time_steps (`int`, *optional*, defaults to `300`):
            Steps of the time tokens, see [`TimeTokens`].
        time_token_format (`str`, *optional*, defaults to `"<{i}>"`):
            How they are written.
        allow_time_tokens_in_text (`bool`, *optional*, defaults to `False`):
            Whether a user may write time tokens. They are escaped otherwise.
    """

    video_token = "<video>"
    evidence_token = "<evi>"
    evidence_end_token = "</evi>"

    def __init__(
        self,
        tokenizer,
        chat_template: str | None = None,
        num_frames: int = 96,
        image_size: int = 224,
        tokens_per_frame: int = 1,
        num_object_tokens: int = 4,
        num_time_anchors: int = 8,
        grounding_head: Sequence[str] = ("span",),
        num_time_steps: int = 300,
        time_token_format: str = "<{i}>",
        allow_time_tokens_in_text: bool = False,
    ):
        super().__init__(tokenizer, chat_template=chat_template)
        self.num_frames = num_frames
        self.image_size = image_size
        self.tokens_per_frame = tokens_per_frame
        self.num_object_tokens = num_object_tokens
        self.num_time_anchors = num_time_anchors
        self.grounding_head = list(grounding_head)
        self.num_time_steps = num_time_steps
        self.time_token_format = time_token_format
        self.allow_time_tokens_in_text = allow_time_tokens_in_text
        ids = tokenizer.convert_tokens_to_ids([self.video_token, self.evidence_token, self.evidence_end_token])
        if None in ids or tokenizer.unk_token_id in ids:
            raise ValueError(
                f"The tokenizer lacks one of {self.video_token}, {self.evidence_token}, {self.evidence_end_token}. "
                "Add them as special tokens and resize the model's embeddings."
            )
        self.video_token_id, self.evidence_token_id, self.evidence_end_token_id = ids
        if self.writes_times and not set(self.time_tokens.tokens) <= set(tokenizer.get_vocab()):
            raise ValueError("The tokenizer lacks time tokens, which this model writes: see `add_time_tokens`.")

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "video_features", "frame_mask", "video_index"]

    @property
    def time_tokens(self) -> TimeTokens:
        """The time tokens."""
        return TimeTokens(self.num_time_steps, self.time_token_format)

    @property
    def writes_times(self) -> bool:
        """Whether answers have time tokens instead of `<evi>`."""
        return "time_tokens" in self.grounding_head

    def apply_chat_template(self, conversation, chat_template: str | None = None, tokenize: bool = False, **kwargs):
        if tokenize:
            raise ValueError(
                "Grounded-VideoDiT takes features of frames and their times, which a chat does not hold. Render it "
                "with `tokenize=False`, and call the processor with `videos`; `trl_temporal` does both."
            )
        messages = [{**message, "content": self._in_order(message)} for message in conversation]
        return super().apply_chat_template(messages, chat_template, tokenize=False, **kwargs)

    def _in_order(self, message: dict):
        """The content of a message with the video behind the text, and a user's time tokens escaped."""
        content = message["content"]
        escapes = self.writes_times and message["role"] != "assistant"

        def escaped(text: str) -> str:
            if not escapes:
                return text
            if self.allow_time_tokens_in_text:
                self.time_tokens.refuse_unknown(text)
                return text
            return self.time_tokens.escape(text)

        if isinstance(content, str):
            return escaped(content)
        parts = [{**part, "text": escaped(part["text"])} if part["type"] == "text" else part for part in content]
        return sorted(parts, key=lambda part: part["type"] == "video")

    def __call__(
        self,
        text: str | list[str],
        videos: Sequence[VideoInput] | None = None,
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
            videos (`Sequence[VideoInput]`, *optional*):
                The distinct videos.
            video_index (`Sequence[int]`, *optional*):
                Video of each text, -1 for none. By default each text has its own.
            questions (`Sequence[str]`, *optional*):
                The question of each text, whose embedding is fused with the frames (Eq. 10). Needed with videos.
            padding (`bool`, *optional*, defaults to `True`):
                Pad to the longest row.
            padding_side (`str`, *optional*, defaults to `"left"`):
                `"left"` for generation, `"right"` for training.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Only `"pt"`.

        Returns:
            `BatchFeature` with the arguments of [`GroundedVideoDiTModel.forward`].

        Raises:
            ValueError: if texts and videos do not agree, or a question is empty.
        """
        texts = [text] if isinstance(text, str) else list(text)
        videos = list(videos or [])
        if video_index is None:
            video_index = list(range(len(texts))) if videos else [-1] * len(texts)
        rows = [
            self.expand_video(row, None if index < 0 else videos[index], number)
            for number, (row, index) in enumerate(zip(texts, video_index, strict=True))
        ]
        data = dict(
            self.tokenizer(
                rows,
                padding=padding,
                padding_side=padding_side,
                add_special_tokens=False,
                return_tensors=return_tensors,
                return_token_type_ids=False,
            )
        )
        if videos:
            if questions is None:
                raise ValueError("Frames are fused with the question: pass `questions`, one string per text.")
            data |= self.encode_questions(questions) | self.stack_videos(videos)
            data["video_index"] = torch.tensor(video_index)
        return BatchFeature(data)

    def expand_video(self, text: str, video: VideoInput | None, row: int) -> str:
        """The text with a placeholder for each token of its video: objects, anchors and frames."""
        count = text.count(self.video_token)
        if count != (video is not None):
            raise ValueError(
                f"Row {row} of the batch has {count} {self.video_token} placeholders and {int(video is not None)} "
                "video; they must agree and be at most one."
            )
        if video is None:
            return text
        num_tokens = self.num_object_tokens + self.num_time_anchors + len(video.features)
        return text.replace(self.video_token, self.video_token * num_tokens)

    def encode_questions(self, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """The questions alone: `question_input_ids` and `question_attention_mask`, both `(rows, W)`."""
        for row, question in enumerate(questions):
            if not question.strip():
                raise ValueError(f"The question of row {row} of the batch is empty: the frames are fused with it.")
        encoded = self.tokenizer(
            list(questions), padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
        )
        return {"question_input_ids": encoded["input_ids"], "question_attention_mask": encoded["attention_mask"]}

    def stack_videos(self, videos: Sequence[VideoInput]) -> dict[str, torch.Tensor]:
        """The model's inputs for videos of different length, padded behind their frames."""
        num_frames = max(len(video.features) for video in videos)
        num_objects = max([1, *(len(video.tracks) for video in videos if video.tracks is not None)])
        shape, places = (len(videos), num_frames), self.tokens_per_frame
        side = round(places**0.5)
        data = {
            "video_features": videos[0].features.new_zeros(*shape, *videos[0].features.shape[1:]),
            "frame_mask": torch.zeros(shape, dtype=torch.bool),
            "timestamps_s": torch.zeros(shape),
            "duration_s": torch.tensor([float(video.duration_s) for video in videos]),
            "noise_seeds": torch.tensor([video.noise_seed for video in videos]),
        }
        if any(video.union is not None for video in videos):
            data["union_masks"] = torch.zeros(*shape, places)
            data["object_masks"] = torch.zeros(len(videos), num_objects, num_frames, places)
            data["object_boxes"] = torch.zeros(len(videos), num_objects, num_frames, 4)
            data["object_scores"] = torch.zeros(len(videos), num_objects)
        for number, video in enumerate(videos):
            length = len(video.features)
            data["video_features"][number, :length] = video.features
            data["frame_mask"][number, :length] = True
            data["timestamps_s"][number, :length] = torch.as_tensor(np.asarray(video.timestamps_s))
            if video.union is not None:
                data["union_masks"][number, :length] = masks_to_grid(torch.tensor(video.union), (side, side))
            if video.tracks is not None and len(video.tracks):
                count = len(video.tracks)
                data["object_masks"][number, :count, :length] = masks_to_grid(torch.tensor(video.tracks), (side, side))
                data["object_boxes"][number, :count, :length] = torch.as_tensor(np.asarray(video.boxes))
                data["object_scores"][number, :count] = torch.as_tensor(np.asarray(video.scores))
        return data

    def post_process_grounded(
        self,
        output,
        inputs: BatchFeature,
        timestamps_s: Sequence[Sequence[float]],
        duration_s: Sequence[float],
        repair: bool = False,
    ) -> list[dict]:
        r"""
        Reads answers as text and spans in seconds.

        Args:
            output ([`GroundedVideoDiTGenerateOutput`]):
                Of `generate(..., return_dict_in_generate=True)`.
            inputs (`BatchFeature`):
                What was passed to `generate`.
            timestamps_s (`Sequence` of `Sequence[float]`):
                Per row, the timestamps of the frames in seconds.
            duration_s (`Sequence[float]`):
                Per row, the duration of the video in seconds.
            repair (`bool`, *optional*, defaults to `False`):
                Swap the ends of ranges of time tokens that run backwards. They are left out otherwise, and counted.

        Returns:
            `list[dict]`, per row: `text`, the response behind `</evi>`; `evidence`, the spans `[start_s, end_s]` of
            the reported head; `response`, those that the text refers to, in order; `num_faults`, how many time tokens
            and ranges were not as they should be; `heads`, the spans of each head by its name; `salience` of shape
            `(E, T)`, how probable each frame is inside each span of the reported head (none for time tokens).
        """
        new_ids = output.sequences[:, inputs["input_ids"].shape[1] :].cpu()
        stop_ids = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        answers = []
        for row, ids in enumerate(new_ids.tolist()):
            ids = ids[: next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))]
            times_s, length_s = np.asarray(timestamps_s[row], dtype=float), float(duration_s[row])
            end = ids.index(self.evidence_end_token_id) + 1 if self.evidence_end_token_id in ids else 0
            num_first, text = ids[:end].count(self.evidence_token_id), self._decode(ids[end:])
            heads, num_faults, response = {}, 0, []
            salience = {"time_tokens": np.zeros((0, len(times_s)))}
            if len(times_s):
                if "span" in self.grounding_head:
                    heads["span"] = frames_to_spans(output.span_frames[row : row + 1].cpu(), times_s, length_s)
                    p_start, p_end = (
                        logits[row, : len(times_s)].float().cpu().softmax(-1)
                        for logits in (output.start_logits, output.end_logits)
                    )  # begun at t or before, and not ended before t
                    salience["span"] = (p_start.cumsum(-1) * p_end.flip(-1).cumsum(-1).flip(-1))[None].numpy()
                if "evidence" in self.grounding_head:
                    mask = output.evidence_mask[row].cpu()
                    heads["evidence"] = frames_to_spans(output.evidence_frames[row].cpu()[mask], times_s, length_s)
                    logits = output.evidence_logits[row, :, : len(times_s)].float().cpu()[mask]
                    salience["evidence"] = logits.sigmoid().numpy()
                if self.writes_times:
                    parsed = self.time_tokens.parse(text, length_s, repair)
                    heads["time_tokens"], num_faults = parsed.spans, parsed.num_faults
            reported = self.grounding_head[0]
            spans = heads.get(reported, [])
            if reported == "evidence":
                spans, response = spans[:num_first], spans[num_first:]
            elif reported == "span":  # the one span, wherever the text refers to it
                response = spans * ids[end:].count(self.evidence_token_id)
            else:
                response = spans
            answers.append(
                {
                    "text": text,
                    "evidence": spans,
                    "response": response,
                    "num_faults": num_faults,
                    "heads": heads,
                    "salience": salience.get(reported, np.zeros((0, len(times_s)))),
                }
            )
        return answers

    def _decode(self, ids: list[int]) -> str:
        # `<evi>` swallows the space before it when text is tokenized; give it back.
        text = self.tokenizer.decode(ids).replace(self.evidence_token, f" {self.evidence_token}")
        return " ".join(text.split())


__all__ = ["GroundedVideoDiTProcessor", "VideoInput"]
