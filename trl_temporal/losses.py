# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Losses of D2VLM and FPO (https://huggingface.co/papers/2512.24097) as pure functions on tensors.

Letters in shapes: `rows` responses, `E` `<evi>` tokens of a row in order, `T` frames, `H` hidden size.
"""

import torch
import torch.nn.functional as F


def soft_targets(spans: torch.Tensor, num_frames: int, base: float = 2.0) -> torch.Tensor:
    r"""
    The soft frame targets of the released code: `base ** -d` with `d` the distance in frames to the nearer end of the
    span.

    Args:
        spans (`torch.Tensor` of shape `(..., 2)`):
            First and last frame of each span; fractions and ends outside the video are taken as they are.
        num_frames (`int`):
            Number of frames T.
        base (`float`, *optional*, defaults to `2.0`):
            What the target is divided by with every frame of distance.

    Returns:
        `torch.Tensor` of shape `(..., T)`: 1 inside; .5, .25, ... outside.

    Example:

    ```python
    >>> soft_targets(torch.tensor([1.0, 1.5]), num_frames=4).tolist()
    [0.5, 1.0, 0.7071067690849304, 0.3535533845424652]
    ```
    """
    start, end = spans.unsqueeze(-2).unbind(-1)
    frame = torch.arange(num_frames, device=spans.device)
    distance = torch.minimum((frame - start).abs(), (frame - end).abs())
    inside = (frame >= start) & (frame <= end)
    return torch.pow(base, -distance.masked_fill(inside, 0)).float()


def grounding_bce(
    logits: torch.Tensor, targets: torch.Tensor, evidence_mask: torch.Tensor, frame_mask: torch.Tensor
) -> torch.Tensor:
    r"""
    Grounding loss L_gnd (Eq. 3): binary cross-entropy between the similarity of an `<evi>` to every frame and the
    frames of its event, averaged over frames and over the `<evi>` tokens of both stages.

    Args:
        logits (`torch.Tensor` of shape `(rows, E, T)`):
            Similarities before the sigmoid.
        targets (`torch.Tensor` of shape `(rows, E, T)`):
            1 for frames of the event, 0 else; or soft targets.
        evidence_mask (`torch.BoolTensor` of shape `(rows, E)`):
            `<evi>` tokens that count.
        frame_mask (`torch.BoolTensor` of shape `(rows, T)`):
            Frames that are not padding.

    Returns:
        `torch.Tensor` of shape `(rows,)`: the loss of each row, zero for rows without evidence.
    """
    mask = evidence_mask.unsqueeze(-1) & frame_mask.unsqueeze(1)
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (loss * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)


def grounding_log_prob(
    logits: torch.Tensor, targets: torch.Tensor, frame_mask: torch.Tensor, soft: bool = False
) -> torch.Tensor:
    r"""
    Log-probability that the model grounds a span, log p_g (Eq. 6): the sum over frames of `log sim` inside and
    `log (1 - sim)` outside.

    Args:
        logits (`torch.Tensor` of shape `(rows, E, T)`):
            Similarities before the sigmoid.
        targets (`torch.Tensor` of shape `(rows, E, T)`):
            1 for frames of the span, 0 else; or soft targets.
        frame_mask (`torch.BoolTensor` of shape `(rows, T)`):
            Frames that are not padding.
        soft (`bool`, *optional*, defaults to `False`):
            Use the mixture `log (y sim + (1 - y) (1 - sim) + 1e-10)` of the released code, which soft targets need.

    Returns:
        `torch.Tensor` of shape `(rows, E)`, in nats.
    """
    logits, targets = logits.float(), targets.float()
    if soft:
        similarity = logits.sigmoid()
        log_prob = (targets * similarity + (1 - targets) * (1 - similarity) + 1e-10).log()
    else:
        log_prob = -F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (log_prob * frame_mask.unsqueeze(1)).sum(-1)


def consistency_l1(
    queries: torch.Tensor, evidence_mask: torch.Tensor, response_mask: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    r"""
    Consistency loss L_cons (Eq. 1): mean absolute difference between the `<evi>` of an event in the evidence stage and
    in the response stage. The k-th `<evi>` of each stage form a pair if they refer to the same span.

    Args:
        queries (`torch.Tensor` of shape `(rows, E, H)`):
            Projected states of the `<evi>` tokens.
        evidence_mask (`torch.BoolTensor` of shape `(rows, E)`):
            `<evi>` tokens of the evidence stage.
        response_mask (`torch.BoolTensor` of shape `(rows, E)`):
            `<evi>` tokens of the response stage.
        frames (`torch.BoolTensor` of shape `(rows, E, T)`):
            Frames of the span of each `<evi>`.

    Returns:
        `torch.Tensor` of shape `(rows,)`: the loss of each row, zero for rows without a pair.
    """
    if queries.shape[1] == 0:  # no `<evi>` in the whole batch
        return queries.new_zeros(len(queries))
    rank_first, rank_second = evidence_mask.cumsum(-1), response_mask.cumsum(-1)
    pairs = (rank_first.unsqueeze(2) == rank_second.unsqueeze(1)) & (
        evidence_mask.unsqueeze(2) & response_mask.unsqueeze(1)
    )  # (rows, E, E): at most one true entry a line
    partner = pairs.int().argmax(-1)
    other_frames = frames.gather(1, partner.unsqueeze(-1).expand_as(frames))
    paired = pairs.any(-1) & (frames == other_frames).all(-1)
    difference = (queries - queries.gather(1, partner.unsqueeze(-1).expand_as(queries))).abs().mean(-1)
    return (difference * paired).sum(-1) / paired.sum(-1).clamp(min=1)
