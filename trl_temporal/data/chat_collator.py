# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Collators: rows of the data contract to the inputs of any video-language model of transformers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import ProcessorMixin

from ..models.d2vlm.processing_d2vlm import select_videos
from ..video import Video
from .chat_inputs import (
    EncodedPrompts,
    encode_cached_chats,
    encode_prompts,
    format_interval,
    read_videos,
    takes_any_length,
)
from .feature_cache import is_cached
from .grammar import EVI, response_after, split_response
from .row_checks import RESPONSES
from .schema import RowError, RowKind, strip_none_parts, validate_row
from .video_check import check_visible

# What processors make of text, one value a token; of everything else they make one entry a video, frame or patch.
TEXT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass
class _ChatCollator:
    """
    What the collators share.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model, as of `AutoProcessor`.
        read_video (`Callable`):
            Entry of the `videos` column to [`~trl_temporal.video.Video`], e.g. a
            [`~trl_temporal.data.frame_cache.FrameCache`].
        max_length (`int`, *optional*):
            Longer sequences are an error: nothing is ever truncated, least of all inside the video.
        videos_once (`bool`, *optional*, defaults to `False`):
            Leave each video in the batch once, with `video_index` that says which rows show it and `num_frames`, for
            the trainers of families in `BACKBONES`. The model alone takes a video for each row.
        format_span (`Callable`, *optional*):
            How a span `(start_s, end_s)` is written; defaults to `12.0 - 15.5`. A model with time tokens has its own.
        time_ids_per_second (`float`, *optional*):
            As of [`~trl_temporal.data.chat_inputs.time_ids_per_second`], for the warning that frames are too dense.
    """

    processor: ProcessorMixin
    read_video: Callable[[str | dict], Video]
    max_length: int | None = None
    videos_once: bool = False
    format_span: Callable[[tuple[float, float]], str] = format_interval
    time_ids_per_second: float | None = None

    def _collate(self, rows: list[dict], kind: RowKind) -> dict[str, torch.Tensor]:
        """
        All rows with their first response, then all with the next, padded on the right; `completion_mask` marks the
        responses. Every prompt and video is processed once.
        """
        columns = RESPONSES[kind]
        for row in rows:
            _check_row(row, kind)
        videos = read_videos(rows, self.read_video)
        for row, video in zip(rows, videos, strict=True):
            if video is not None:
                _check_spans(row, columns, video)
        cached = is_cached(videos)
        if not cached and not takes_any_length(self.processor):
            self._check_equal_lengths(rows, videos)
        if cached:
            prompts = encode_cached_chats(self.processor, rows, videos)
        else:
            prompts = encode_prompts(self.processor, rows, videos, self.time_ids_per_second)
        names = [name for name in TEXT_INPUTS if name in prompts.inputs]
        sequences = [
            self._sequence(row, column, video, prompts, number)
            for column in columns
            for number, (row, video) in enumerate(zip(rows, videos, strict=True))
        ]
        fill = {"input_ids": self.processor.tokenizer.pad_token_id}
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(
                [sequence[name] for sequence in sequences], batch_first=True, padding_value=fill.get(name, 0)
            )
            for name in [*names, "completion_mask", "span_mask"]
        }
        media = {name: value for name, value in prompts.inputs.items() if name not in names}
        if cached:
            return batch | {**media, "video_index": media["video_index"].repeat(len(columns))}
        if self.videos_once and media and not any(row.get("images") for row in rows):
            return batch | _once(media, videos, repeats=len(columns))
        return batch | {name: torch.cat([value] * len(columns)) for name, value in media.items()}

    def _sequence(
        self, row: dict, column: str, video: Video | None, prompts: EncodedPrompts, number: int
    ) -> dict[str, torch.Tensor]:
        """A prompt as it is in generation, with the tokens of its video, and a response behind it; not padded."""
        given = prompts.inputs["attention_mask"][number].bool()
        prompt = {name: prompts.inputs[name][number, given] for name in TEXT_INPUTS if name in prompts.inputs}
        response_ids, is_span = self._response_ids(row, column, prompts, number)
        self._check_length(row, len(prompt["input_ids"]), len(response_ids), video)
        ones, zeros = torch.ones_like(response_ids), torch.zeros_like(response_ids)
        response = {"input_ids": response_ids, "attention_mask": ones}
        sequence = {name: torch.cat([value, response.get(name, zeros)]) for name, value in prompt.items()}
        outside = torch.zeros_like(prompt["input_ids"])
        sequence["completion_mask"] = torch.cat([outside, ones])
        sequence["span_mask"] = torch.cat([outside, is_span])
        return sequence

    def _response_ids(
        self, row: dict, column: str, prompts: EncodedPrompts, number: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of a response and of the end of its turn, and which of them write spans."""
        tokenizer, text = self.processor.tokenizer, prompts.texts[number]
        content, ranges = self._write_response(row, column)
        response = self._response_text(row, column, content, prompts.chats[number], text)
        prompt_ids = tokenizer(text, **prompts.text_kwargs)["input_ids"]
        encoded = tokenizer(text + response, return_offsets_mapping=True, **prompts.text_kwargs)
        ids = encoded["input_ids"]
        if ids[: len(prompt_ids)] != prompt_ids:
            raise RowError(
                f"row {row.get('id')!r}, column '{column}': the tokenizer merges the end of the prompt "
                f"{text[-20:]!r} with the start of the response {response[:20]!r}, so that the model would learn a "
                "prompt that it never gets. Use a template whose generation prompt ends where a token does."
            )
        offsets = torch.tensor(encoded["offset_mapping"][len(prompt_ids) :])
        ranges = torch.tensor(ranges).view(-1, 2) + len(text) + response.index(content)
        overlaps = (offsets[:, :1] < ranges[:, 1]) & (offsets[:, 1:] > ranges[:, 0])
        return torch.tensor(ids[len(prompt_ids) :]), overlaps.any(-1).long()

    def _write_response(self, row: dict, column: str) -> tuple[str, list[tuple[int, int]]]:
        """The text of a response, its evidence stage left out and its spans written, and where these stand in it."""
        (message,) = strip_none_parts(row[column])
        content = message["content"]
        whole = content if isinstance(content, str) else "".join(part["text"] for part in content)
        spans = row.get("spans" if column == "completion" else f"{column}_spans")
        if column == "completion" and row.get("response_spans") is not None:
            spans = row["response_spans"]
        text, *pieces = split_response(whole)[1].split(EVI)
        if len(pieces) != len(spans or []):
            raise RowError(
                f"row {row.get('id')!r}, column '{column}': {len(pieces)} {EVI} in the text of the response, but "
                f"{len(spans or [])} spans. Give every {EVI} its span, in order."
            )
        ranges = []
        for span, piece in zip(spans or [], pieces, strict=True):
            written = self.format_span(span)
            ranges.append((len(text), len(text) + len(written)))
            text += written + piece
        return text, ranges

    def _response_text(self, row: dict, column: str, content: str, chat: list[dict], prompt: str) -> str:
        """What the template writes behind the generation prompt: the response and the end of its turn."""
        message = {"role": "assistant", "content": [{"type": "text", "text": content}]}
        whole = self.processor.apply_chat_template([*chat, message], tokenize=False)
        response = response_after(prompt, whole)
        if response is None or content not in response:
            raise RowError(
                f"row {row.get('id')!r}, column '{column}': the chat template renders the prompt differently when a "
                "response follows, or changes the response, so the response cannot be told apart. Use a template "
                "whose generation prompt opens the response."
            )
        return response

    def _check_length(self, row: dict, num_prompt: int, num_response: int, video: Video | None) -> None:
        length = num_prompt + num_response
        if self.max_length is not None and length > self.max_length:
            raise RowError(
                f"row {row.get('id')!r}: {length} tokens ({num_prompt} in the prompt with "
                f"{0 if video is None else video.num_frames} frames, {num_response} in the response) exceed "
                f"max_length={self.max_length}. Nothing is truncated: raise max_length, lower fps or max_frames, or "
                "let the processor make frames smaller."
            )

    def _check_equal_lengths(self, rows: list[dict], videos: list[Video | None]) -> None:
        lengths = [
            (row.get("id"), video.num_frames) for row, video in zip(rows, videos, strict=True) if video is not None
        ]
        if len({num_frames for _, num_frames in lengths}) > 1:
            raise RowError(
                f"{type(self.processor).__name__} stacks the videos of a batch, which takes equally many frames, but "
                + ", ".join(f"row {id!r} has {num_frames}" for id, num_frames in lengths)
                + ". Sample a fixed `num_frames` of every video, or train with a batch size of 1 per device."
            )


class ChatCollator(_ChatCollator):
    """
    Collates SFT rows, `prompt` and `completion`, for a stock model.

    A response is written as text: its evidence stage is left out, and every `<evi>` becomes an interval such as
    `12.0 - 15.5`, from `response_spans` where a row has them, else from `spans`. Rows without video may be among those
    with one. Processors that stack videos need equally many frames of every video.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model, as of `AutoProcessor`.
        read_video (`Callable`):
            Entry of the `videos` column to [`~trl_temporal.video.Video`], e.g. a
            [`~trl_temporal.data.frame_cache.FrameCache`].
        max_length (`int`, *optional*):
            Longer sequences are an error: nothing is ever truncated.

    Returns:
        `dict[str, torch.Tensor]`, of a call: what the processor makes of the prompts, with the responses behind them,
        padded on the right, and `labels` of shape `(B, L)`, -100 on the prompt and the padding.

    Raises:
        RowError: If a row breaks the data contract, has several videos, or is too long. It names the row.
        RuntimeError: If the model would not see the video of a row.

    Example:
        >>> import functools
        >>> from transformers import AutoProcessor
        >>> from trl_temporal.data.chat_collator import ChatCollator
        >>> from trl_temporal.video import load_row_video
        >>> processor = AutoProcessor.from_pretrained("Qwen/Qwen3-VL-4B-Instruct")  # doctest: +SKIP
        >>> collate = ChatCollator(processor, functools.partial(load_row_video, fps=2))  # doctest: +SKIP
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self._collate(rows, "sft")
        del batch["span_mask"]
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        return batch


class ChatPreferenceCollator(_ChatCollator):
    """
    Collates preference rows, `prompt`, `chosen` and `rejected`, for a stock model.

    Responses are written as [`ChatCollator`] does. The batch has TRL's layout, all chosen rows and then all rejected
    rows; each prompt is rendered and each video processed once, and what the processor makes of the videos is there
    twice, once for each half. Precomputed reference log-probabilities (`ref_chosen_logps`, `ref_rejected_logps`) and
    the names of the factors pass through.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model, as of `AutoProcessor`.
        read_video (`Callable`):
            Entry of the `videos` column to [`~trl_temporal.video.Video`].
        max_length (`int`, *optional*):
            Longer sequences are an error: nothing is ever truncated.

    Returns:
        `dict[str, torch.Tensor]`, of a call: as of [`ChatCollator`], `2B` rows, and instead of `labels` a
        `completion_mask` of shape `(2B, L)`, 1 on the responses.

    Raises:
        RowError: If a row breaks the data contract, has several videos, or is too long. It names the row.
        RuntimeError: If the model would not see the video of a row.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self._collate(rows, "preference")
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "factor" in rows[0]:
            batch["factor"] = [row["factor"] for row in rows]
        return batch


def _once(media: dict[str, torch.Tensor], videos: list[Video | None], repeats: int) -> dict[str, torch.Tensor]:
    """What the processor made of the videos of the rows, with each video once, for `repeats` times the rows."""
    shown = [video for video in videos if video is not None]
    if "video_grid_thw" in media:
        num_frames = media["video_grid_thw"][:, 0].tolist()
    else:
        num_frames = [video.num_frames for video in shown]
    numbers, first = [], {}  # rows that show one video have the same object
    for video in videos:
        numbers.append(-1 if video is None else first.setdefault(id(video), len(first)))
    distinct = [next(place for place, video in enumerate(shown) if id(video) == key) for key in first]
    return {
        **select_videos(media, num_frames, distinct),
        "num_frames": torch.tensor([num_frames[place] for place in distinct]),
        "video_index": torch.tensor(numbers * repeats),
    }


def _check_row(row: dict, kind: RowKind) -> None:
    """The data contract, in which a row of plain text may leave the columns of spans out."""
    validate_row(row | {name: row.get(name) or [] for name in RESPONSES[kind].values()}, kind=kind)


def _check_spans(row: dict, columns: dict[str, str], video: Video) -> None:
    for column in ("prompt_spans", "response_spans", *columns.values()):
        try:
            check_visible(row.get(column) or [], video)
        except RowError as error:
            raise RowError(f"row {row.get('id')!r}, column '{column}': {error}") from None
