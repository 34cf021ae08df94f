# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""KL regularisation of the frame features of Grounded-VideoDiT (https://huggingface.co/papers/2508.15641): Eq. 17-20.

This file travels to the Hub as remote code: torch and transformers only. "Reading" numbers are the rows of the table
of ambiguities in the documentation of the model.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)


class FeatureAlignment(nn.Module):
    r"""
    Pulls the frame features towards those of an auxiliary encoder: both become distributions by a softmax over their
    channels (Eq. 18), and the loss is the KL divergence between the two (Eq. 19), averaged over the frames (Eq. 20).

    Args:
        feature_size (`int`):
            Size of the frame features F_diff (Eq. 17), pooled and behind their projection.
        aux_size (`int`):
            Size of the auxiliary features F_aux (Eq. 17).
        kl_temperature (`float`, *optional*, defaults to `1.0`):
            What both features are divided by before the softmax. Features of large scale need a large one: their
            softmax is one channel otherwise.
        kl_direction (`str`, *optional*, defaults to `"diff_aux"`):
            `"diff_aux"`: KL(p_diff | p_aux), as printed. `"aux_diff"`: KL(p_aux | p_diff), which is the cross-entropy
            with a fixed target, up to a constant.

    Example:

    ```python
    >>> align = FeatureAlignment(feature_size=6, aux_size=4)
    >>> align(torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)).shape
    torch.Size([2])
    ```
    """

    def __init__(self, feature_size: int, aux_size: int, kl_temperature: float = 1.0, kl_direction: str = "diff_aux"):
        super().__init__()
        if not kl_temperature > 0:
            raise ValueError(f"`kl_temperature` is {kl_temperature}: pass a positive number.")
        if kl_direction not in ("diff_aux", "aux_diff"):
            raise ValueError(f"`kl_direction` is {kl_direction!r}: pass 'diff_aux' or 'aux_diff'.")
        self.kl_temperature, self.kl_direction = kl_temperature, kl_direction
        # Reading 28: the two features have different sizes, so that ours is projected to the size of the other.
        self.kl_proj = nn.Linear(feature_size, aux_size)

    def forward(self, features: torch.Tensor, aux_features: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            features (`torch.Tensor` of shape `(videos, T, feature_size)`):
                Frame features.
            aux_features (`torch.Tensor` of shape `(videos, T, aux_size)`):
                Features of the auxiliary encoder, which gets no gradient.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
                Frames that are not padding.

        Returns:
            `torch.Tensor` of shape `(videos,)`: the loss of each video, in nats.
        """
        # Reading 29: the encoder is frozen, so that the loss teaches what lies between it and here, if anything does.
        if self.training and torch.is_grad_enabled() and not features.requires_grad:
            logger.warning_once(
                "The KL regularisation sees frame features without a gradient: it trains nothing but its own "
                "projection. Put a trainable projection behind the frame encoder, or leave `use_kl` off."
            )
        # Padding is filled, as the gradient of what stands there may be NaN.
        padding = ~frame_mask.unsqueeze(-1)
        features = features.to(self.kl_proj.weight.dtype).masked_fill(padding, 0)
        diff = (self.kl_proj(features).float() / self.kl_temperature).log_softmax(-1)
        aux = aux_features.detach().float().masked_fill(padding, 0)
        aux = (aux / self.kl_temperature).log_softmax(-1)
        # torch's first argument is the second of the divergence.
        first, second = (diff, aux) if self.kl_direction == "diff_aux" else (aux, diff)
        divergence = F.kl_div(second, first, reduction="none", log_target=True).sum(-1)
        return divergence.masked_fill(~frame_mask, 0.0).sum(1) / frame_mask.sum(1).clamp(min=1)
