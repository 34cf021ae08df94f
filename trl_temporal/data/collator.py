# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Collators: rows of DESIGN's data contract to the inputs of D2VLM."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_PROMPT, STAGE_RESPONSE
from ..models.d2vlm.processing_d2vlm import D2VLMProcessor, spans_to_frame_mask
from ..video import Video
from .schema import RowError, coerce_videos, strip_none_parts
from .video_check import check_visible


class _Sequence(NamedTuple):
    """One prompt with one response, before padding."""

    input_ids: list[int]
    prompt_length: int
    evidence_stage: list[int]
    evidence_frames: np.ndarray | None  # (E, T)
    video_number: int  # -1 for none
    question: str


@dataclass
class _Collator:
    """
    What the collators share.

    Args:
        processor ([`D2VLMProcessor`]):
            Processor of the model.
        read_video (`Callable`):
            Entry of the `videos` column to [`~trl_temporal.video.Video`], e.g. a
            [`~trl_temporal.data.frame_cache.FrameCache`].
        max_length (`int`, *optional*):
            Longer sequences are an error: nothing is ever truncated, least of all inside the video.
    """

    processor: D2VLMProcessor
    read_video: Callable[[str | dict], Video]
    max_length: int | None = None

    def _read_videos(self, rows: list[dict]) -> tuple[list[Video], list[int]]:
        """The distinct videos of the rows, and which of them each row shows (-1 for none)."""
        videos, numbers, seen = [], [], {}
        for row in rows:
            entries = coerce_videos(row.get("videos"))
            if not entries:
                numbers.append(-1)
                continue
            key = json.dumps(entries[0], sort_keys=True)
            if key not in seen:
                seen[key] = len(videos)
                videos.append(self.read_video(entries[0]))
            numbers.append(seen[key])
        return videos, numbers

    def _prompt_text(self, row: dict) -> tuple[str, list[dict]]:
        messages = strip_none_parts(row["prompt"])
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False), messages

    def _encode(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _sequence(
        self,
        row: dict,
        response: list[dict],
        spans: list[list[float]],
        response_spans: list[list[float]] | None,
        video: Video | None,
        video_number: int,
    ) -> _Sequence:
        processor = self.processor
        prompt_text, messages = self._prompt_text(row)
        whole = processor.apply_chat_template(messages + strip_none_parts(response), tokenize=False)
        if not whole.startswith(prompt_text):
            raise RowError(
                f"row {row.get('id')!r}: the chat template renders the prompt differently when a response follows, so "
                "the response cannot be told apart. Use a template whose generation prompt opens the response."
            )
        prompt_ids, response_ids = self._encode(prompt_text), self._encode(whole[len(prompt_text) :])
        if video is not None:
            place = prompt_ids.index(processor.video_token_id)
            prompt_ids[place : place + 1] = [processor.video_token_id] * len(video.frames)
        evidence, end = processor.evidence_token_id, processor.evidence_end_token_id
        num_prompt = prompt_ids.count(evidence)
        stage_end = response_ids.index(end) if end in response_ids else 0
        num_evidence = response_ids[:stage_end].count(evidence)
        num_response = response_ids[stage_end:].count(evidence)
        prompt_spans = row.get("prompt_spans") or []
        response_spans = spans if response_spans is None else response_spans
        counts = {
            "prompt_spans": (num_prompt, len(prompt_spans)),
            "the evidence stage": (num_evidence, len(spans)),
            "the response stage": (num_response, len(response_spans)),
        }
        for place, (num_tokens, num_spans) in counts.items():
            if num_tokens != num_spans:
                raise RowError(
                    f"row {row.get('id')!r}: {num_tokens} <evi> tokens but {num_spans} spans in {place}. Give every "
                    "<evi> its span, in order."
                )
        all_spans = [*prompt_spans, *spans, *response_spans]
        frames = None
        if video is not None:
            try:
                check_visible(all_spans, video)
            except RowError as error:
                raise RowError(f"row {row.get('id')!r}: {error}") from None
            frames = spans_to_frame_mask(all_spans, video.timestamps_s, video.duration_s)
        elif all_spans:
            raise RowError(f"row {row.get('id')!r}: has spans but no video. Add the video or drop the spans.")
        length = len(prompt_ids) + len(response_ids)
        if self.max_length is not None and length > self.max_length:
            raise RowError(
                f"row {row.get('id')!r}: {length} tokens ({len(prompt_ids)} in the prompt with "
                f"{0 if video is None else len(video.frames)} frames, {len(response_ids)} in the response) exceed "
                f"max_length={self.max_length}. Nothing is truncated: raise max_length, or lower the processor's fps "
                "or max_frames."
            )
        return _Sequence(
            input_ids=prompt_ids + response_ids,
            prompt_length=len(prompt_ids),
            evidence_stage=[STAGE_PROMPT] * num_prompt
            + [STAGE_EVIDENCE] * num_evidence
            + [STAGE_RESPONSE] * num_response,
            evidence_frames=frames,
            video_number=video_number,
            question=_question(messages),
        )

    def _pad(self, sequences: list[_Sequence], videos: list[Video]) -> dict[str, torch.Tensor]:
        """Right-padded batch; `completion_mask` marks the responses."""
        num_rows, length = len(sequences), max(len(row.input_ids) for row in sequences)
        input_ids = torch.full((num_rows, length), self.processor.tokenizer.pad_token_id)
        attention_mask = torch.zeros(num_rows, length, dtype=torch.long)
        completion_mask = torch.zeros(num_rows, length, dtype=torch.long)
        for number, row in enumerate(sequences):
            input_ids[number, : len(row.input_ids)] = torch.tensor(row.input_ids)
            attention_mask[number, : len(row.input_ids)] = 1
            completion_mask[number, row.prompt_length : len(row.input_ids)] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
        if videos:
            batch.update(self.processor.pad_frames([video.frames for video in videos]))
            batch["video_index"] = torch.tensor([row.video_number for row in sequences])
            num_evidence = max(len(row.evidence_stage) for row in sequences)
            num_frames = batch["frame_mask"].shape[1]
            stage = torch.zeros(num_rows, num_evidence, dtype=torch.long)
            frames = torch.zeros(num_rows, num_evidence, num_frames, dtype=torch.bool)
            for number, row in enumerate(sequences):
                stage[number, : len(row.evidence_stage)] = torch.tensor(row.evidence_stage, dtype=torch.long)
                if row.evidence_frames is not None:
                    height, width = row.evidence_frames.shape
                    frames[number, :height, :width] = torch.from_numpy(row.evidence_frames)
            batch["evidence_stage"], batch["evidence_frame_mask"] = stage, frames
        if self.processor.qformer_tokenizer is not None:
            batch.update(self.processor.encode_questions([row.question for row in sequences]))
        return batch


class EvidenceCollator(_Collator):
    """
    Collates SFT rows: `prompt`, `completion`, `spans`, and optionally `prompt_spans` and `response_spans`.

    Rows of a batch that show the same video have it decoded and encoded once.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        videos, numbers = self._read_videos(rows)
        sequences = [
            self._sequence(
                row,
                row["completion"],
                row.get("spans") or [],
                row.get("response_spans"),
                videos[number] if number >= 0 else None,
                number,
            )
            for row, number in zip(rows, numbers, strict=True)
        ]
        batch = self._pad(sequences, videos)
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        return batch


class PreferenceCollator(_Collator):
    """
    Collates preference rows: `prompt`, `chosen`, `rejected`, `chosen_spans`, `rejected_spans`.

    The batch has TRL's layout, all chosen rows and then all rejected rows, with each video once. Precomputed reference
    log-probabilities (`ref_chosen_logps`, `ref_rejected_logps`) and the names of the factors pass through.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        videos, numbers = self._read_videos(rows)
        sequences = [
            self._sequence(
                row,
                row[side],
                row.get(f"{side}_spans") or [],
                None,
                videos[number] if number >= 0 else None,
                number,
            )
            for side in ("chosen", "rejected")
            for row, number in zip(rows, numbers, strict=True)
        ]
        batch = self._pad(sequences, videos)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "factor" in rows[0]:
            batch["factor"] = [row["factor"] for row in rows]
        return batch


class PromptCollator(_Collator):
    """
    Collates prompts for generation, left-padded.

    Returns the model's inputs under `inputs`, and per row `timestamps_s` and `duration_s`, which
    `processor.post_process_grounded` needs to answer in seconds.
    """

    def __call__(self, rows: list[dict]) -> dict:
        videos, numbers = self._read_videos(rows)
        rendered = [self._prompt_text(row) for row in rows]
        inputs = self.processor(
            text=[text for text, _ in rendered],
            videos=[video.frames for video in videos],
            video_index=numbers,
            questions=[_question(messages) for _, messages in rendered],
        )
        return {
            "inputs": inputs,
            "timestamps_s": [videos[number].timestamps_s if number >= 0 else [] for number in numbers],
            "duration_s": [videos[number].duration_s if number >= 0 else 0.0 for number in numbers],
        }


def _question(messages: list[dict]) -> str:
    """The text of the last user turn, which is what a Q-Former reads."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text").strip()
