# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Pretraining of the denoiser of a Grounded-VideoDiT on the stored features of any videos."""

from collections.abc import Sequence

import torch

from ..models.grounded_videodit import GroundedVideoDiTForConditionalGeneration
from ..models.grounded_videodit.dtl_feature import pretrain
from .collator import GroundedPromptCollator

BATCH_SIZE = 64  # rows that are read together


def pretrain_denoiser(
    model: GroundedVideoDiTForConditionalGeneration,
    collate: GroundedPromptCollator,
    rows: Sequence[dict],
    num_steps: int = 300,
    seed: int = 0,
) -> list[float]:
    r"""
    Teaches the denoiser of the frame encoder `"dtl_feature"` to denoise, before the model is trained; no labels are
    needed. All frames are held in memory, each as two vectors.

    Args:
        model ([`GroundedVideoDiTForConditionalGeneration`]):
            Model, whose denoiser is changed in place.
        collate ([`~trl_temporal.objects.collator.GroundedPromptCollator`]):
            Reads the features of rows.
        rows (`Sequence[dict]`):
            Rows with `prompt`, `videos` and the columns of the object stage or without.
        num_steps (`int`, *optional*, defaults to `300`):
            Steps of 32 videos.
        seed (`int`, *optional*, defaults to `0`):
            Of the order and the noise.

    Returns:
        `list[float]`: the loss of each step, see [`~trl_temporal.models.grounded_videodit.dtl_feature.pretrain`].

    Raises:
        ValueError: if the model has no denoiser, or some rows have masks and some have none.

    Example:

    ```python
    >>> losses = pretrain_denoiser(model, collate, rows)  # doctest: +SKIP
    >>> losses[0], losses[-1]  # doctest: +SKIP
    (2.1, 0.9)
    ```
    """
    if "dtl_feature" not in model.config.frame_encoders:
        raise ValueError(f"the model has no denoiser: its frame_encoders are {model.config.frame_encoders}")
    parts = []
    for first in range(0, len(rows), BATCH_SIZE):
        batch = collate([rows[index] for index in range(first, min(first + BATCH_SIZE, len(rows)))])["inputs"]
        masks = batch.get("union_masks")
        parts.append(model.model.denoiser_inputs(batch["video_features"], batch["frame_mask"], masks))
    if len({frozenset(part) for part in parts}) > 1:
        raise ValueError("some rows have the columns of the object stage and some have none: give rows of one kind")
    num_frames = max(part["features"].shape[1] for part in parts)

    def joined(name: str) -> torch.Tensor:
        """Of all batches, padded to the longest video."""
        values = [part[name] for part in parts]
        padded = [value.new_zeros(len(value), num_frames, *value.shape[2:]) for value in values]
        for whole, value in zip(padded, values, strict=True):
            whole[:, : value.shape[1]] = value
        return torch.cat(padded).to(model.device)

    return pretrain(model.model.denoiser, **{name: joined(name) for name in parts[0]}, num_steps=num_steps, seed=seed)


__all__ = ["pretrain_denoiser"]
