# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Collators: rows of the data contract, with the columns of the object stage, to the inputs of Grounded-VideoDiT."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..data.collator import SPAN_UNIT
from ..data.errors import RowError
from ..data.feature_cache import CachedVideo
from ..data.grammar import EVI, EVI_END, response_after, split_response
from ..data.row_checks import RESPONSES
from ..data.schema import RowKind, coerce_videos, strip_none_parts, validate_row, video_key
from ..data.video_check import check_visible
from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_RESPONSE
from ..models.grounded_videodit import GroundedVideoDiTProcessor, VideoInput, spans_to_frames
from .mask_shares import MaskRuns
from .row_masks import nearest, objects_id


class _Sequence(NamedTuple):
    """One prompt with one response, before padding."""

    input_ids: list[int]
    prompt_length: int
    span_frames: torch.Tensor  # (E, 2): the spans, as frames
    evidence_frames: torch.Tensor  # (E, 2): those of each `<evi>` of both stages
    evidence_stage: list[int]


@dataclass
class _GroundedCollator:
    """
    What the collators share.

    Args:
        processor ([`GroundedVideoDiTProcessor`]):
            Processor of the model.
        read_features (`Callable`, *optional*):
            Row to [`~trl_temporal.data.feature_cache.CachedVideo`], e.g. a
            [`~trl_temporal.objects.frame_features.FrameFeatureReader`].
        max_length (`int`, *optional*):
            Longer sequences are an error: nothing is ever truncated, least of all inside the video.
    """

    processor: GroundedVideoDiTProcessor
    read_features: Callable[[dict], CachedVideo] | None = None
    max_length: int | None = None

    def _read_videos(self, rows: list[dict]) -> tuple[list[VideoInput], list[int]]:
        """The distinct videos of the rows with their objects, and which of them each row shows."""
        videos, numbers, seen = [], [], {}
        for row in rows:
            entries = coerce_videos(row.get("videos"))
            if len(entries) != 1:
                raise RowError(
                    f"row {row.get('id')!r}, column 'videos': has {len(entries)} videos, and this model is shown one. "
                    "Remove the row, or train it with another model. (`on_bad_sample='skip'` leaves out a video "
                    "that turns bad in training in the same way, which this model cannot do.)"
                )
            key = (video_key(entries[0]), objects_id(row))
            if key not in seen:
                seen[key] = len(videos)
                videos.append(self._video(row, entries[0], key[1]))
            numbers.append(seen[key])
        return videos, numbers

    def _video(self, row: dict, entry: dict, objects: str | None) -> VideoInput:
        cached = self.read_features(row)
        # The name and the cut, not the folder, so that the noise is the same elsewhere.
        name = Path(entry.get("path") or entry.get("frames_dir") or video_key(entry)).name
        key = json.dumps([name, entry.get("start_s"), entry.get("end_s")])
        return VideoInput(
            features=cached.features.view(cached.num_frames, -1, cached.features.shape[-1]),
            timestamps_s=cached.timestamps_s,
            duration_s=cached.duration_s,
            noise_seed=int(hashlib.sha256(key.encode()).hexdigest()[:12], 16),
            **({} if objects is None else _objects_at(row, cached.timestamps_s, self.processor.tokens_per_frame)),
        )

    def _messages(self, row: dict) -> list[dict]:
        return strip_none_parts(row["prompt"])

    def _prompt_text(self, row: dict) -> str:
        return self.processor.apply_chat_template(self._messages(row), add_generation_prompt=True)

    def _encode(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _collate(self, rows: list[dict], kind: RowKind) -> dict[str, torch.Tensor]:
        """All rows with their first response, then all with the next, padded on the right."""
        for row in rows:
            validate_row(row, kind=kind)
            if row.get("prompt_spans"):
                raise RowError(
                    f"row {row.get('id')!r}, column 'prompt_spans': Grounded-VideoDiT cannot be asked about a span. "
                    "Remove the row, or train it with a D2VLM."
                )
        videos, numbers = self._read_videos(rows)
        columns = RESPONSES[kind]
        sequences = [
            self._sequence(row, column, columns[column], videos[number])
            for column in columns
            for row, number in zip(rows, numbers, strict=True)
        ]
        batch = self._pad(sequences, max(len(video.features) for video in videos))
        questions = [question_of(self._messages(row)) for row in rows]
        batch |= self.processor.stack_videos(videos)
        encoded = self.processor.encode_questions(questions)
        batch |= {name: torch.cat([value] * len(columns)) for name, value in encoded.items()}
        batch["video_index"] = torch.tensor(numbers * len(columns))
        return batch

    def _sequence(self, row: dict, column: str, span_column: str, video: VideoInput) -> _Sequence:
        processor, name = self.processor, f"row {row.get('id')!r}"
        prompt_text = self._prompt_text(row)
        spans = row.get(span_column) or []
        response_spans = row.get("response_spans") if column == "completion" else None
        response_spans = spans if response_spans is None else response_spans
        try:
            check_visible([*spans, *response_spans], video)
            frames, of_response = (
                spans_to_frames(each, video.timestamps_s, video.duration_s) for each in (spans, response_spans)
            )
        except (RowError, ValueError) as error:
            raise RowError(f"{name}, column '{span_column}': {error}") from None
        text = self._write(row, column, response_spans, video)
        message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        whole = processor.apply_chat_template([*self._messages(row), message])
        response = response_after(prompt_text, whole)
        if response is None:
            raise RowError(
                f"{name}: the chat template renders the prompt differently when a response follows, so the response "
                "cannot be told apart. Use a template whose generation prompt opens the response."
            )
        prompt_ids = self._encode(processor.expand_video(prompt_text, video, 0))
        ids = prompt_ids + self._encode(response)
        if self.max_length is not None and len(ids) > self.max_length:
            raise RowError(
                f"{name}: {len(ids)} tokens ({len(prompt_ids)} in the prompt with {len(video.features)} frames, "
                f"{len(ids) - len(prompt_ids)} in the response) exceed max_length={self.max_length}. Nothing is "
                "truncated: raise max_length, or lower the processor's num_frames."
            )
        num_tokens = ids.count(processor.evidence_token_id)
        stage = [STAGE_EVIDENCE] * len(spans) + [STAGE_RESPONSE] * len(response_spans)
        evidence_frames = torch.cat([frames, of_response])[:num_tokens]  # time tokens stand for those of the response
        return _Sequence(ids, len(prompt_ids), frames, evidence_frames, stage[:num_tokens])

    def _write(self, row: dict, column: str, spans: list, video: VideoInput) -> str:
        """
        The text of a response. A model that writes times does so in place of the `<evi>` of the response, and has an
        evidence stage only for its evidence head.
        """
        (message,) = strip_none_parts(row[column])
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if not self.processor.writes_times:
            return text
        num_evidence, response = split_response(text)
        first, *pieces = response.split(EVI)
        if "evidence" in self.processor.grounding_head:
            first = " ".join([*[EVI] * num_evidence, EVI_END, first])
        written = [self.processor.time_tokens.format([span], video.duration_s) for span in spans]
        return first + "".join(span + piece for span, piece in zip(written, pieces, strict=True))

    def _pad(self, sequences: list[_Sequence], num_frames: int) -> dict[str, torch.Tensor]:
        """Right-padded batch; `completion_mask` marks the responses."""
        processor, pad = self.processor, torch.nn.utils.rnn.pad_sequence
        ids = pad(
            [torch.tensor(row.input_ids) for row in sequences],
            batch_first=True,
            padding_value=processor.tokenizer.pad_token_id,
        )
        lengths = torch.tensor([[row.prompt_length, len(row.input_ids)] for row in sequences])
        position = torch.arange(ids.shape[1])
        batch = {"input_ids": ids, "attention_mask": (position < lengths[:, 1:]).long()}
        batch["completion_mask"] = ((position >= lengths[:, :1]) & (position < lengths[:, 1:])).long()
        batch["span_frames"] = pad([row.span_frames for row in sequences], batch_first=True, padding_value=-1)
        if processor.writes_times:
            ends = processor.time_tokens.tokens[:: processor.num_time_steps]
            first, last = processor.tokenizer.convert_tokens_to_ids(ends)
            batch["span_mask"] = (ids >= first) & (ids <= last) & batch["completion_mask"].bool()
        if "evidence" in processor.grounding_head:
            frames = pad([row.evidence_frames for row in sequences], batch_first=True, padding_value=-1)
            stage = [torch.tensor(row.evidence_stage, dtype=torch.long) for row in sequences]
            frame = torch.arange(num_frames)
            batch["evidence_stage"] = pad(stage, batch_first=True)
            batch["evidence_frame_mask"] = (frame >= frames[..., :1]) & (frame <= frames[..., 1:])
            batch["evidence_spans"] = frames * SPAN_UNIT
        return batch


class GroundedCollator(_GroundedCollator):
    """
    Collates SFT rows, `prompt`, `completion` and `spans`, with the columns of `OBJECT_FEATURES` or without.

    Rows of a batch that show the same video and objects have it once.

    Args:
        processor ([`GroundedVideoDiTProcessor`]):
            Processor of the model. With its head `"time_tokens"` a response has ranges of them in place of `<evi>`.
        read_features (`Callable`, *optional*):
            Row to [`~trl_temporal.data.feature_cache.CachedVideo`]; the trainers give their own.
        max_length (`int`, *optional*):
            Longer sequences are an error: nothing is ever truncated.

    Returns:
        `dict[str, torch.Tensor]`, of a call: arguments of the model, `labels` of shape `(B, L)`, and as targets of the
        heads `span_frames` `(B, E, 2)` (first and last frame, filled up with -1), `evidence_stage` `(B, E)` and
        `evidence_frame_mask` `(B, E, T)`.

    Raises:
        RowError: if a row breaks the data contract, has no video, or is too long. It names the row.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self._collate(rows, "sft")
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        return batch


class GroundedPreferenceCollator(_GroundedCollator):
    """
    Collates preference rows: `prompt`, `chosen`, `rejected`, `chosen_spans`, `rejected_spans`. The batch has TRL's
    layout, all chosen rows and then all rejected rows, with each video once.

    Args:
        processor, read_features, max_length:
            As of [`GroundedCollator`].

    Returns:
        `dict[str, torch.Tensor]`, of a call: as of [`GroundedCollator`], `2B` rows, and instead of `labels` a
        `completion_mask` of shape `(2B, L)`.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self._collate(rows, "preference")
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "factor" in rows[0]:
            batch["factor"] = [row["factor"] for row in rows]
        return batch


class GroundedPromptCollator(_GroundedCollator):
    """
    Collates prompts for generation, left-padded.

    Returns the model's inputs under `inputs`, and per row `timestamps_s` and `duration_s`, which
    `processor.post_process_grounded` needs to answer in seconds.
    """

    def __call__(self, rows: list[dict]) -> dict:
        videos, numbers = self._read_videos(rows)
        texts = [self._prompt_text(row) for row in rows]
        questions = [question_of(self._messages(row)) for row in rows]
        return {
            "inputs": self.processor(texts, videos, numbers, questions),
            "timestamps_s": [videos[number].timestamps_s for number in numbers],
            "duration_s": [videos[number].duration_s for number in numbers],
        }


def question_of(messages: list[dict]) -> str:
    """The text of the last user turn, with which frames are fused."""
    content = [message["content"] for message in messages if message["role"] == "user"][-1]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text").strip()


def _objects_at(row: dict, timestamps_s: np.ndarray, tokens_per_frame: int) -> dict[str, np.ndarray]:
    """The objects of a row with masks in the frames of its video: what they cover of each place, instead of pixels."""
    cell, order, side = row["object_masks"], row["object_order"], math.isqrt(tokens_per_frame)
    num_times, index = len(cell["union"]), nearest(row["object_times_s"], timestamps_s)
    counts = list(chain(cell["union"], *(cell["tracks"][number] for number in order)))
    try:
        masks = MaskRuns(counts, cell["height"], cell["width"])
    except ValueError as error:
        raise RowError(
            f"row {row.get('id')!r}, column 'object_masks': {error}. The column is damaged: extract the objects again."
        ) from None
    union, *tracks = masks.shares(side).reshape(-1, num_times, side, side)[:, index]
    if not order:
        return {"union": union}
    _, *boxes = masks.boxes().reshape(-1, num_times, 4)[:, index]
    scores = np.asarray(row["object_scores"], dtype=np.float32)[:, order]
    return {"union": union, "tracks": np.stack(tracks), "boxes": _centred(np.stack(boxes)), "scores": scores.mean(0)}


def _centred(corners: np.ndarray) -> np.ndarray:
    """Boxes as centre, width and height, in shares of the frame."""
    first, last = corners[..., :2], corners[..., 2:]
    return np.concatenate([(first + last) / 2, last - first], axis=-1).astype(np.float32)


__all__ = ["GroundedCollator", "GroundedPreferenceCollator", "GroundedPromptCollator", "question_of"]
