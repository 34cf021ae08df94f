# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Evidence head for Grounded-VideoDiT, as an alternative to start and end: `<evi>` tokens that point to frames.

It is that of D2VLM (https://huggingface.co/papers/2512.24097, Eq. 3), and can answer with several spans. This file
travels to the Hub as remote code: torch and transformers only. Letters in shapes: `rows` sequences, `T` frames, `E`
`<evi>` of a row, `H` hidden size.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class EvidenceHead(nn.Module):
    r"""
    Similarity of the states that predict `<evi>` and the states of the frames, as logits: a dot product of two
    projections, divided by the root of their size.

    Args:
        hidden_size (`int`):
            Hidden size of the language model.

    Example:

    ```python
    >>> head = EvidenceHead(hidden_size=8)
    >>> logits, queries = head(torch.randn(1, 2, 8), torch.randn(1, 5, 8))
    >>> logits.shape, queries.shape
    (torch.Size([1, 2, 5]), torch.Size([1, 2, 8]))
    ```
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.evi_head, self.frame_head = (
            nn.Sequential(
                nn.LayerNorm(hidden_size),
                nn.Linear(hidden_size, hidden_size),
                nn.GELU(),
                nn.Linear(hidden_size, hidden_size),
            )
            for _ in range(2)
        )

    def forward(self, states: torch.Tensor, frame_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            states (`torch.Tensor` of shape `(rows, E, H)`):
                States that predict each `<evi>`.
            frame_states (`torch.Tensor` of shape `(rows, T, H)`):
                States of the frames.

        Returns:
            Logits `(rows, E, T)`, whose sigmoid is the similarity, and the projected queries `(rows, E, H)`.
        """
        queries = self.evi_head(states)
        return queries @ self.frame_head(frame_states).mT / states.shape[-1] ** 0.5, queries


def decode_evidence(logits: torch.Tensor, frame_mask: torch.Tensor, threshold: float = 0.6) -> torch.LongTensor:
    r"""
    The run of salient frames with the largest mean similarity.

    Args:
        logits (`torch.Tensor` of shape `(rows, E, T)`):
            Of [`EvidenceHead`].
        frame_mask (`torch.BoolTensor` of shape `(rows, T)`):
            Frames that are not padding; at least one of each row.
        threshold (`float`, *optional*, defaults to `0.6`):
            Frames are salient whose similarity is at least this share of the largest one.

    Returns:
        `torch.LongTensor` of shape `(rows, E, 2)`: first and last frame. Of runs with the same mean, the first one.

    Example:

    ```python
    >>> decode_evidence(torch.tensor([[[2.0, -9.0, 3.0, 2.5]]]), torch.ones(1, 4, dtype=torch.bool)).tolist()
    [[[2, 3]]]
    ```
    """
    salience = logits.double().sigmoid().masked_fill(~frame_mask[:, None], -1.0)
    salient = salience >= threshold * salience.amax(-1, keepdim=True)
    starts = salient & ~F.pad(salient, (1, 0))[..., :-1]
    run = starts.cumsum(-1) * salient  # 1, 2, ... in the runs and 0 outside
    sums = salience.new_zeros(*salience.shape[:-1], salience.shape[-1] + 1)
    means = sums.scatter_add(-1, run, salience) / sums.scatter_add(-1, run, torch.ones_like(salience)).clamp(min=1)
    best = run == means[..., 1:].argmax(-1, keepdim=True) + 1
    first = best.int().argmax(-1)
    return torch.stack([first, first + best.sum(-1) - 1], dim=-1)


__all__ = ["EvidenceHead", "decode_evidence"]
