# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Grounded answers of a model, batched."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.collator import PromptCollator
from ..data.feature_cache import CachedVideo
from ..data.frame_cache import FrameCache, processor_sampling
from ..models.grounded_videodit import GroundedVideoDiTConfig, load_frame_encoder
from ..objects.collator import GroundedPromptCollator
from ..objects.frame_features import LiveFrameFeatures
from ..objects.frame_features_path import read_frames_of
from ..spans import Span


@dataclass
class GroundedAnswer:
    """
    An answer with its evidence.

    Args:
        text (`str`):
            The response, with `<evi>` where it refers to evidence.
        evidence (`list[Span]`):
            Spans of the evidence stage in seconds.
        response (`list[Span]`):
            Spans of the `<evi>` in `text`, in order.
        salience (`np.ndarray` of shape `(E, T)`):
            Similarity in `[0, 1]` of every `<evi>` of both stages to every frame; of the start/end head of a
            Grounded-VideoDiT, the probability that a frame is inside the span.
        timestamps_s (`np.ndarray` of shape `(T,)`):
            Timestamps of the frames in seconds.
        duration_s (`float`):
            Duration of the video in seconds.
        logits (`np.ndarray` of shape `(E, T)`, *optional*):
            Scaled dot products whose sigmoid is `salience`.
        cosines (`np.ndarray` of shape `(E, T)`, *optional*):
            Cosines of the same vectors.
    """

    text: str
    evidence: list[Span]
    response: list[Span]
    salience: np.ndarray
    timestamps_s: np.ndarray
    duration_s: float
    logits: np.ndarray | None = None
    cosines: np.ndarray | None = None

    def __str__(self) -> str:
        """The text with every `<evi>` written in seconds."""
        text = self.text
        for span in self.response:
            text = text.replace("<evi>", f"[{span}]", 1)
        return text


def read_ahead(collate: Callable[[list[dict]], Any], rows: list[dict], batch_size: int) -> Iterator[Any]:
    """
    Batches, each of which is decoded while the model works on the one before.

    Args:
        collate (`Callable`):
            Makes a batch of rows.
        rows (`list[dict]`):
            All rows.
        batch_size (`int`):
            Rows per batch.

    Yields:
        What `collate` returns, batch after batch.
    """
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        upcoming = pool.submit(collate, batches[0]) if batches else None
        for following in [*batches[1:], None][: len(batches)]:
            batch = upcoming.result()
            upcoming = None if following is None else pool.submit(collate, following)
            yield batch


@torch.no_grad()
def generate_answers(
    model,
    processor,
    rows: Iterable[dict],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    read_video: Callable | None = None,
    read_features: Callable[[dict], CachedVideo] | None = None,
    progress: bool = True,
) -> list[GroundedAnswer]:
    r"""
    Answers the prompts of `rows`, greedily.

    Args:
        model ([`D2VLMForConditionalGeneration`] or [`GroundedVideoDiTForConditionalGeneration`]):
            The model; put in evaluation mode for the call.
        processor ([`D2VLMProcessor`] or [`GroundedVideoDiTProcessor`]):
            Its processor.
        rows (`Iterable[dict]`):
            Rows with `prompt` and `videos`. Rows next to each other that share a video have it encoded once.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows per batch.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer in tokens.
        read_video (`Callable`, *optional*):
            Reader of the entries of `videos`; decodes with the processor's sampling by default.
        read_features (`Callable`, *optional*):
            For a Grounded-VideoDiT: reader of the rows' features, such as a
            [`~trl_temporal.objects.frame_features.FrameFeatureReader`]. By default its frame encoders are loaded and
            make them.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[GroundedAnswer]`, in the order of the rows.
    """
    rows = list(rows)
    if model.config.model_type == GroundedVideoDiTConfig.model_type:
        if read_features is None:
            encoder = load_frame_encoder(model.config, device=model.device)
            read_features = LiveFrameFeatures(encoder, read_video or read_frames_of(processor))
        collate = GroundedPromptCollator(processor, read_features)
    else:
        collate = PromptCollator(processor, read_video or FrameCache(None, **processor_sampling(processor)))
    was_training = model.training
    model.eval()
    answers = []
    try:
        for batch in tqdm(
            read_ahead(collate, rows, batch_size),
            total=-(-len(rows) // batch_size),
            desc="Generating",
            disable=not progress,
        ):
            inputs = batch["inputs"].to(model.device)
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True
            )
            for answer, timestamps_s, duration_s in zip(
                processor.post_process_grounded(output, inputs, batch["timestamps_s"], batch["duration_s"]),
                batch["timestamps_s"],
                batch["duration_s"],
                strict=True,
            ):
                answers.append(
                    GroundedAnswer(
                        text=answer["text"],
                        evidence=[Span(*span) for span in answer["evidence"]],
                        response=[Span(*span) for span in answer["response"]],
                        salience=answer["salience"],
                        timestamps_s=np.asarray(timestamps_s),
                        duration_s=duration_s,
                        logits=answer.get("logits"),
                        cosines=answer.get("cosines"),
                    )
                )
    finally:
        model.train(was_training)
    return answers
