# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Collators: rows of DESIGN's data contract to the inputs of D2VLM."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_PROMPT, STAGE_RESPONSE
from ..models.d2vlm.processing_d2vlm import (
    D2VLMBackboneProcessor,
    D2VLMProcessor,
    D2VLMPrompt,
    spans_to_frame_mask,
    spans_to_positions,
    split_prompts,
)
from ..video import Video
from .chat_inputs import warn_of_equal_times
from .feature_cache import encode_cached_prompts, is_cached
from .grammar import response_after
from .schema import RowError, coerce_videos, strip_none_parts, video_key
from .video_check import check_visible

# Ends of spans in a batch are integers in millionths of a frame: mixed precision (DeepSpeed, FSDP) casts floating
# inputs, and bfloat16 cannot tell frame 301 from 302.
SPAN_UNIT = 1_000_000


class _Sequence(NamedTuple):
    """One prompt with one response, before padding."""

    input_ids: list[int]
    prompt_length: int
    frame_index: list[int]  # frame of each token of the prompt, -1 for text
    evidence_stage: list[int]
    evidence_frames: np.ndarray | None  # (E, T)
    evidence_spans: np.ndarray | None  # (E, 2), in frames
    video_number: int  # -1 for none
    question: str


@dataclass
class _Collator:
    """
    What the collators share.

    Args:
        processor ([`D2VLMProcessor`]):
            Processor of the model, with or without a backbone of transformers.
        read_video (`Callable`):
            Entry of the `videos` column to [`~trl_temporal.video.Video`], e.g. a
            [`~trl_temporal.data.frame_cache.FrameCache`].
        max_length (`int`, *optional*):
            Longer sequences are an error: nothing is ever truncated, least of all inside the video.
        soft_targets (`bool`, *optional*, defaults to `False`):
            Add `evidence_spans` to the batch, from which soft targets are computed.
        release_quirks (`bool`, *optional*, defaults to `False`):
            Build the batch as the released code does where that is a fault: see the table of presets in the docs.
        time_ids_per_second (`float`, *optional*):
            As of [`~trl_temporal.data.chat_inputs.time_ids_per_second`], for the warning that frames are too dense for
            a backbone.
    """

    processor: D2VLMProcessor
    read_video: Callable[[str | dict], Video]
    max_length: int | None = None
    soft_targets: bool = False
    release_quirks: bool = False
    time_ids_per_second: float | None = None

    def __post_init__(self):
        if self.release_quirks and isinstance(self.processor, D2VLMBackboneProcessor):
            raise ValueError(
                "`release_quirks` repeats faults of the released code, which knew one model; this one has a backbone "
                "of transformers. Leave it out, or take the preset 'paper'."
            )

    def _read_videos(self, rows: list[dict]) -> tuple[list[Video], list[int]]:
        """The distinct videos of the rows, and which of them each row shows (-1 for none)."""
        videos, numbers, seen = [], [], {}
        for row in rows:
            if row.get("images"):
                raise RowError(
                    f"row {row.get('id')!r}, column 'images': has images, which this model is not shown. Remove them, "
                    "or train a model without evidence tokens."
                )
            entries = coerce_videos(row.get("videos"))
            if not entries:
                numbers.append(-1)
                continue
            key = video_key(entries[0])
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

    def _encode_prompts(self, rows: list[dict], videos: list[Video], numbers: list[int]):
        """The rendered and the encoded prompt of each row, and the model's inputs for the videos."""
        texts = [self._prompt_text(row) for row in rows]
        if is_cached(videos):
            inputs = encode_cached_prompts(
                self.processor, [text for text, _ in texts], videos, numbers, padding_side="right"
            )
            prompts, video_inputs = split_prompts(inputs)
        else:
            prompts, video_inputs = self.processor.encode_prompts(
                [text for text, _ in texts],
                [video.frames for video in videos],
                numbers,
                [video.timestamps_s for video in videos],
                [video.duration_s for video in videos],
            )
            if isinstance(self.processor, D2VLMBackboneProcessor):
                first = [numbers.index(number) for number in range(len(videos))]  # row of each video
                ids = [torch.tensor(prompts[row].input_ids) for row in first]
                inputs = {**video_inputs, "input_ids": ids}
                shown = [rows[row] for row in first]
                warn_of_equal_times(self.processor.backbone, shown, videos, inputs, self.time_ids_per_second)
        return list(zip(texts, prompts, strict=True)), video_inputs

    def _sequence(
        self,
        row: dict,
        response: list[dict],
        spans: list[list[float]],
        response_spans: list[list[float]] | None,
        video: Video | None,
        video_number: int,
        encoded: tuple[tuple[str, list[dict]], D2VLMPrompt],
    ) -> _Sequence:
        processor = self.processor
        (prompt_text, messages), prompt = encoded
        whole = processor.apply_chat_template(messages + strip_none_parts(response), tokenize=False)
        response_text = response_after(prompt_text, whole)
        if response_text is None:
            raise RowError(
                f"row {row.get('id')!r}: the chat template renders the prompt differently when a response follows, so "
                "the response cannot be told apart. Use a template whose generation prompt opens the response."
            )
        prompt_ids, response_ids = prompt.input_ids, self._encode(response_text)
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
        frames, frame_spans = self._evidence(row, [*prompt_spans, *spans, *response_spans], video)
        length = len(prompt_ids) + len(response_ids)
        if self.max_length is not None and length > self.max_length:
            raise RowError(
                f"row {row.get('id')!r}: {length} tokens ({len(prompt_ids)} in the prompt with "
                f"{0 if video is None else video.num_frames} frames, {len(response_ids)} in the response) exceed "
                f"max_length={self.max_length}. Nothing is truncated: raise max_length, or lower the processor's fps "
                "or max_frames."
            )
        return _Sequence(
            input_ids=prompt_ids + response_ids,
            prompt_length=len(prompt_ids),
            frame_index=prompt.frame_index,
            evidence_stage=[STAGE_PROMPT] * num_prompt
            + [STAGE_EVIDENCE] * num_evidence
            + [STAGE_RESPONSE] * num_response,
            evidence_frames=frames,
            evidence_spans=frame_spans,
            video_number=video_number,
            question=_question(messages),
        )

    def _evidence(
        self, row: dict, spans: list[list[float]], video: Video | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The frames of each span, `(E, T)`, and its ends in frames, `(E, 2)`."""
        if video is None:
            if spans:
                raise RowError(f"row {row.get('id')!r}: has spans but no video. Add the video or drop the spans.")
            return None, None
        time_rule = self.processor.time_rule
        if not self.release_quirks:
            try:
                check_visible(spans, video)
            except RowError as error:
                raise RowError(f"row {row.get('id')!r}: {error}") from None
        timestamps_s = self.processor.frame_timestamps(video.timestamps_s)
        frames = spans_to_frame_mask(spans, timestamps_s, video.duration_s, time_rule)
        if time_rule == "index":
            return frames, spans_to_positions(spans, timestamps_s)
        last = frames.shape[1] - 1 - frames[:, ::-1].argmax(1)
        return frames, np.stack([frames.argmax(1), last], axis=1)

    def _pad(self, sequences: list[_Sequence], video_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
        if video_inputs:
            batch.update(video_inputs)
            frame_index = torch.full((num_rows, length), -1)
            for number, row in enumerate(sequences):
                frame_index[number, : row.prompt_length] = torch.tensor(row.frame_index)
            batch["frame_index"] = frame_index
            batch["video_index"] = torch.tensor([row.video_number for row in sequences])
            num_evidence = max(len(row.evidence_stage) for row in sequences)
            num_frames = batch["frame_mask"].shape[1]
            stage = torch.zeros(num_rows, num_evidence, dtype=torch.long)
            frames = torch.zeros(num_rows, num_evidence, num_frames, dtype=torch.bool)
            spans = torch.zeros(num_rows, num_evidence, 2, dtype=torch.long)
            for number, row in enumerate(sequences):
                stage[number, : len(row.evidence_stage)] = torch.tensor(row.evidence_stage, dtype=torch.long)
                if row.evidence_frames is not None:
                    height, width = row.evidence_frames.shape
                    frames[number, :height, :width] = torch.from_numpy(row.evidence_frames)
                    units = np.rint(row.evidence_spans * SPAN_UNIT).astype(np.int64)
                    spans[number, :height] = torch.from_numpy(units)
            batch["evidence_stage"], batch["evidence_frame_mask"] = stage, frames
            if self.soft_targets:
                batch["evidence_spans"] = spans
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
        prompts, video_inputs = self._encode_prompts(rows, videos, numbers)
        sequences = [
            self._sequence(
                row,
                row["completion"],
                row.get("spans") or [],
                row.get("response_spans"),
                videos[number] if number >= 0 else None,
                number,
                prompt,
            )
            for row, number, prompt in zip(rows, numbers, prompts, strict=True)
        ]
        batch = self._pad(sequences, video_inputs)
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        if self.release_quirks:
            self._pad_prefixes(batch, sequences)
        return batch

    def _pad_prefixes(self, batch: dict[str, torch.Tensor], sequences: list[_Sequence]) -> None:
        """
        The released code pads the texts before the videos to one length and leaves the holes in, masked, between the
        frames and the question, whose positions they shift.
        """
        starts = [row.frame_index.index(0) if 0 in row.frame_index else 0 for row in sequences]
        ends = [start + max(row.frame_index) + 1 for start, row in zip(starts, sequences, strict=True)]
        holes = [max(starts) - start if end else 0 for start, end in zip(starts, ends, strict=True)]
        length = max(len(row.input_ids) + hole for row, hole in zip(sequences, holes, strict=True))
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        for name, value in fill.items():
            moved = torch.full((len(sequences), length), value)
            for number, (row, hole) in enumerate(zip(sequences, holes, strict=True)):
                before, end = ends[number], len(row.input_ids)
                moved[number, :before] = batch[name][number, :before]
                moved[number, before + hole : end + hole] = batch[name][number, before:end]
            batch[name] = moved
        batch["position_ids"] = torch.arange(length).expand(len(sequences), -1).contiguous()


class PreferenceCollator(_Collator):
    """
    Collates preference rows: `prompt`, `chosen`, `rejected`, `chosen_spans`, `rejected_spans`.

    The batch has TRL's layout, all chosen rows and then all rejected rows, with each video once. Precomputed reference
    log-probabilities (`ref_chosen_logps`, `ref_rejected_logps`) and the names of the factors pass through.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        videos, numbers = self._read_videos(rows)
        prompts, video_inputs = self._encode_prompts(rows, videos, numbers)
        sequences = [
            self._sequence(
                row,
                row[side],
                row.get(f"{side}_spans") or [],
                None,
                videos[number] if number >= 0 else None,
                number,
                prompt,
            )
            for side in ("chosen", "rejected")
            for row, number, prompt in zip(rows, numbers, prompts, strict=True)
        ]
        if self.release_quirks:
            sequences = self._trim_text_pairs(sequences)
        batch = self._pad(sequences, video_inputs)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "factor" in rows[0]:
            batch["factor"] = [row["factor"] for row in rows]
        return batch

    def _trim_text_pairs(self, sequences: list[_Sequence]) -> list[_Sequence]:
        """
        Of pairs without evidence the released code leaves out the end of the turn, and takes the first token of the
        rejected response for that of the chosen one.
        """
        tokenizer = self.processor.tokenizer
        ends = set(tokenizer.all_special_ids) - {
            self.processor.evidence_token_id,
            self.processor.evidence_end_token_id,
        }
        half = len(sequences) // 2
        chosen_rows, rejected_rows = list(sequences[:half]), list(sequences[half:])
        for number, (chosen, rejected) in enumerate(zip(sequences[:half], sequences[half:], strict=True)):
            if STAGE_EVIDENCE in chosen.evidence_stage + rejected.evidence_stage:
                continue
            prompt = chosen.input_ids[: chosen.prompt_length]
            first, second = (
                row.input_ids[row.prompt_length : max(i for i, token in enumerate(row.input_ids) if token in ends)]
                for row in (chosen, rejected)
            )
            chosen_rows[number] = chosen._replace(input_ids=prompt + first)
            rejected_rows[number] = rejected._replace(input_ids=prompt + first[:1] + second[1:])
        return chosen_rows + rejected_rows


class PromptCollator(_Collator):
    """
    Collates prompts for generation, left-padded; `<evi>` in a prompt refer to its `prompt_spans`.

    Returns the model's inputs under `inputs`, and per row `timestamps_s` and `duration_s`, which
    `processor.post_process_grounded` needs to answer in seconds.
    """

    def __call__(self, rows: list[dict]) -> dict:
        videos, numbers = self._read_videos(rows)
        rendered = [self._prompt_text(row) for row in rows]
        texts, questions = [text for text, _ in rendered], [_question(messages) for _, messages in rendered]
        if is_cached(videos):
            inputs = encode_cached_prompts(self.processor, texts, videos, numbers)
            if self.processor.qformer_tokenizer is not None:
                inputs.update(self.processor.encode_questions(questions))
        else:
            inputs = self.processor(
                text=texts,
                videos=[video.frames for video in videos],
                video_index=numbers,
                questions=questions,
                timestamps_s=[video.timestamps_s for video in videos],
                duration_s=[video.duration_s for video in videos],
            )
        inputs.update(
            self._prompt_evidence(rows, [videos[number] if number >= 0 else None for number in numbers], inputs)
        )
        return {
            "inputs": inputs,
            "timestamps_s": [videos[number].timestamps_s if number >= 0 else [] for number in numbers],
            "duration_s": [videos[number].duration_s if number >= 0 else 0.0 for number in numbers],
        }

    def _prompt_evidence(self, rows: list[dict], videos: list[Video | None], inputs: dict) -> dict[str, torch.Tensor]:
        """What the `<evi>` tokens of the prompts capture; nothing where no prompt has one."""
        num_tokens = (inputs["input_ids"] == self.processor.evidence_token_id).sum(-1).tolist()
        for row, number in zip(rows, num_tokens, strict=True):
            num_spans = len(row.get("prompt_spans") or [])
            if number != num_spans:
                raise RowError(
                    f"row {row.get('id')!r}: {number} <evi> tokens but {num_spans} spans in prompt_spans. Give every "
                    "<evi> its span, in order."
                )
        if not any(num_tokens):
            return {}
        stage = torch.zeros(len(rows), max(num_tokens), dtype=torch.long)
        mask = torch.zeros(*stage.shape, inputs["frame_mask"].shape[1], dtype=torch.bool)
        for number, (row, video) in enumerate(zip(rows, videos, strict=True)):
            frames, _ = self._evidence(row, row.get("prompt_spans") or [], video)
            if frames is not None:
                stage[number, : len(frames)] = STAGE_PROMPT
                mask[number, : len(frames), : frames.shape[1]] = torch.from_numpy(frames)
        return {"evidence_stage": stage, "evidence_frame_mask": mask}


def _question(messages: list[dict]) -> str:
    """The text of the last user turn, which is what a Q-Former reads."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text").strip()
