# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Start/end head of Grounded-VideoDiT (https://huggingface.co/papers/2508.15641): Eq. 15 and 16.

This file travels to the Hub as remote code: torch and transformers only. "Reading" numbers are the rows of the table
of ambiguities in the documentation of the model. Letters in shapes: `rows` sequences, `T` frames, `E` spans of a row,
`H` hidden size.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from .time_tokens import DURATION_SLACK_S


def spans_to_frames(
    spans: Sequence[Sequence[float]], timestamps_s: Sequence[float], duration_s: float
) -> torch.LongTensor:
    r"""
    First and last frame of each span: the labels of the start/end head.

    Frame `i` covers `[t_i, t_{i+1})`, the last one up to the duration; it belongs to a span that contains its
    midpoint, and a span without such a frame, as that of a moment, takes the nearest one.

    Args:
        spans (`Sequence` of `[start_s, end_s]`):
            Spans in seconds.
        timestamps_s (`Sequence[float]` of length `T`):
            Timestamps of the sampled frames in seconds, increasing; padding left out.
        duration_s (`float`):
            Duration of the video in seconds.

    Returns:
        `torch.LongTensor` of shape `(len(spans), 2)`, both ends included.

    Raises:
        ValueError: if a span is reversed, not finite, starts before 0, or ends more than a frame (at least 0.05 s)
            behind the end of the video; if the timestamps do not increase up to the duration. A span that passes the
            end by less is clipped, with a warning.

    Example:

    ```python
    >>> spans_to_frames([[1.0, 3.0], [1.1, 1.1]], timestamps_s=[0.0, 1.0, 2.0, 3.0], duration_s=4.0).tolist()
    [[1, 2], [1, 1]]
    ```
    """
    timestamps, frame_ends = _frame_times(timestamps_s, duration_s)
    bounds = torch.as_tensor(spans, dtype=torch.float64).reshape(-1, 2)
    starts, ends = bounds.unbind(1)
    slack_s = max(duration_s / len(timestamps), DURATION_SLACK_S)
    for bad, fault in (
        (~torch.isfinite(bounds).all(1), "is not finite"),
        (starts > ends, "ends before it starts: swap its ends if they are reversed"),
        (starts < 0, "starts before 0"),
        (ends > duration_s + slack_s, f"ends more than a frame behind the end of the video ({duration_s} s)"),
    ):
        if bad.any():
            number = int(bad.nonzero()[0, 0])
            raise ValueError(f"Span {number}, {bounds[number].tolist()} s, {fault}.")
    if (ends > duration_s).any():
        worst = int(ends.argmax())
        warnings.warn(
            f"Span {worst}, {bounds[worst].tolist()} s, ends behind the end of the video ({duration_s} s), by less "
            "than a frame: it is clipped.",
            stacklevel=2,
        )
        starts, ends = starts.clamp(max=duration_s), ends.clamp(max=duration_s)
    midpoints = (timestamps + frame_ends) / 2
    first = torch.searchsorted(midpoints, starts.contiguous())
    last = torch.searchsorted(midpoints, ends.contiguous()) - 1
    nearest = (midpoints - (starts + ends).unsqueeze(1) / 2).abs().argmin(1)
    is_empty = first > last
    return torch.stack([torch.where(is_empty, nearest, first), torch.where(is_empty, nearest, last)], dim=1)


def frames_to_spans(
    frames: torch.Tensor | Sequence[Sequence[int]], timestamps_s: Sequence[float], duration_s: float
) -> list[list[float]]:
    r"""
    Frames `a..b` as spans in seconds, `[t_a, t_{b+1})`, clipped to the duration: the inverse of [`spans_to_frames`].

    Args:
        frames (`torch.LongTensor` of shape `(E, 2)`):
            First and last frame of each span.
        timestamps_s (`Sequence[float]` of length `T`):
            Timestamps of the sampled frames in seconds.
        duration_s (`float`):
            Duration of the video in seconds.

    Returns:
        `list` of `[start_s, end_s]`, plain floats.

    Raises:
        ValueError: if a frame does not exist, or the timestamps do not increase up to the duration.

    Example:

    ```python
    >>> frames_to_spans([[1, 2], [3, 3]], timestamps_s=[0.0, 1.0, 2.0, 3.0], duration_s=3.5)
    [[1.0, 3.0], [3.0, 3.5]]
    ```
    """
    timestamps, frame_ends = _frame_times(timestamps_s, duration_s)
    frames = torch.as_tensor(frames, dtype=torch.long, device="cpu").reshape(-1, 2)
    _check_frames(frames.unsqueeze(0), torch.ones(1, len(timestamps), dtype=torch.bool), may_be_none=False)
    return torch.stack([timestamps[frames[:, 0]], frame_ends[frames[:, 1]]], dim=1).tolist()


def _frame_times(timestamps_s: Sequence[float], duration_s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """When each frame comes on screen and when it leaves, `(T,)` each, in seconds."""
    starts = torch.as_tensor(timestamps_s, dtype=torch.float64)
    if len(starts) == 0:
        raise ValueError("`timestamps_s` is empty: a video needs at least one frame.")
    ends = F.pad(starts[1:], (0, 1), value=duration_s)
    if not (
        torch.isfinite(ends).all() and (starts[:-1] < starts[1:]).all() and 0 <= starts[0] <= starts[-1] <= ends[-1]
    ):
        raise ValueError(
            f"`timestamps_s` of {len(starts)} frames, {float(starts[0])} to {float(starts[-1])} s, must increase from "
            f"0 or later to at most `duration_s`, {duration_s} s: sort the frames by time, drop duplicates, and pass "
            "both of the same video or crop."
        )
    return starts, ends


def _check_frames(frames: torch.Tensor, is_frame: torch.Tensor, may_be_none: bool = True) -> None:
    """Whether the spans `frames (rows, E, 2)` run forwards between frames that exist, or may be and are -1 twice."""
    inside = frames.clamp(0, is_frame.shape[1] - 1)
    exists = is_frame.gather(1, inside.flatten(1)).view_as(frames) & (frames == inside)
    good = exists.all(-1) & (frames[..., 0] <= frames[..., 1])
    if may_be_none:
        good = good | (frames == -1).all(-1)
    if not good.all():
        row, number = (~good).nonzero()[0].tolist()
        raise ValueError(
            f"Span {number} of row {row} is from frame {int(frames[row, number, 0])} to frame "
            f"{int(frames[row, number, 1])}, but it must run forwards between two of the row's "
            f"{int(is_frame[row].sum())} frames. `spans_to_frames` makes it from seconds."
        )


class SpanContextLayer(nn.Module):
    """One transformer layer in which the frames of a row see each other in both directions."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"`hidden_size` {hidden_size} is not a multiple of the {num_heads} attention heads.")
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
        )

    def forward(self, states: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """`states (rows, T, H)` to the same shape; what stands at padding is not read by any frame."""
        parts = self.qkv(self.attention_norm(states)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=frame_mask[:, None, None])
        states = states + self.output(mixed.transpose(1, 2).flatten(2))
        return states + self.mlp(states)


class SpanHead(nn.Module):
    r"""
    Start/end head (Eq. 15): two classifiers over the frames, `softmax_t(w_s h_t)` and `softmax_t(w_e h_t)`.

    Args:
        hidden_size (`int`):
            Hidden size of the language model.
        span_head_context (`str`, *optional*, defaults to `"bi_layer"`):
            `"bi_layer"`: one bidirectional layer over the frames' states comes first. `"none"`: the equation alone.
        num_heads (`int`, *optional*, defaults to `4`):
            Attention heads of that layer.

    Example:

    ```python
    >>> head = SpanHead(hidden_size=8)
    >>> start_logits, end_logits = head(torch.randn(1, 3, 8), torch.tensor([[True, True, False]]))
    >>> start_logits.shape, start_logits[0, 2].item()
    (torch.Size([1, 3]), -inf)
    ```
    """

    def __init__(self, hidden_size: int, span_head_context: str = "bi_layer", num_heads: int = 4):
        super().__init__()
        if span_head_context not in ("none", "bi_layer"):
            raise ValueError(f"`span_head_context` is {span_head_context!r}: pass 'none' or 'bi_layer'.")
        # Reading 26: under a causal mask the state of frame t has seen neither t + 1 nor a question that follows.
        self.context = SpanContextLayer(hidden_size, num_heads) if span_head_context == "bi_layer" else None
        self.classifiers = nn.Linear(hidden_size, 2, bias=False)  # a bias would fall out of the softmax

    def forward(self, frame_states: torch.Tensor, frame_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            frame_states (`torch.Tensor` of shape `(rows, T, H)`):
                States of the frames in the last layer of the language model.
            frame_mask (`torch.BoolTensor` of shape `(rows, T)`):
                Frames that are not padding.

        Returns:
            `start_logits` and `end_logits`, each of shape `(rows, T)` and float32, `-inf` at padding, so that a
            softmax over the frames is the probability of the equation.

        Raises:
            ValueError: if a row has no frame.
        """
        has_frame = frame_mask.any(1)
        if not has_frame.all():
            row = int((~has_frame).nonzero()[0, 0])
            raise ValueError(
                f"Row {row} has no frame that is not padding: leave rows without a video out of this head."
            )
        # Padding is filled, as 0 times what stands there may be NaN.
        states = frame_states.to(self.classifiers.weight.dtype).masked_fill(~frame_mask.unsqueeze(-1), 0)
        if self.context is not None:
            states = self.context(states, frame_mask)
        logits = self.classifiers(states).float().masked_fill(~frame_mask.unsqueeze(-1), -torch.inf)
        return logits[..., 0], logits[..., 1]


class DecodedSpans(NamedTuple):
    """
    Best span of each row.

    Args:
        frames (`torch.LongTensor` of shape `(rows, 2)`):
            First and last frame, `frames[:, 0] <= frames[:, 1]`.
        log_probs (`torch.Tensor` of shape `(rows,)`):
            `log p_s(s) + log p_e(e)` of that span, in nats.
    """

    frames: torch.Tensor
    log_probs: torch.Tensor


def decode_spans(start_logits: torch.Tensor, end_logits: torch.Tensor) -> DecodedSpans:
    r"""
    The most probable span (Eq. 16), `argmax_{s <= e} p_s(s) p_e(e)`, in one pass over the frames: for each end the
    best start up to it is a running maximum of log-probabilities.

    Args:
        start_logits, end_logits (`torch.Tensor` of shape `(rows, T)`):
            Of [`SpanHead`], `-inf` at padding.

    Returns:
        [`DecodedSpans`]. Of spans with the same probability the one that ends first, and of these the shortest.

    Raises:
        ValueError: if a row has no probable span, because its logits are NaN or `-inf` everywhere.

    Example:

    ```python
    >>> start, end = torch.tensor([[0.0, 2.0, 5.0]]), torch.tensor([[9.0, 8.0, 0.0]])
    >>> decode_spans(start, end).frames.tolist()
    [[1, 1]]
    ```
    """
    log_start, log_end = start_logits.float().log_softmax(1), end_logits.float().log_softmax(1)
    best_start, start_of_end = log_start.cummax(1)
    log_probs, ends = (best_start + log_end).max(1, keepdim=True)
    if not torch.isfinite(log_probs).all():
        row = int((~torch.isfinite(log_probs)).nonzero()[0, 0])
        raise ValueError(
            f"Row {row} has no span: its logits are NaN, or -inf at every start or end that goes together."
        )
    return DecodedSpans(torch.cat([start_of_end.gather(1, ends), ends], dim=1), log_probs.squeeze(1))


def span_log_prob(start_logits: torch.Tensor, end_logits: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    r"""
    Log-probability of spans under the start/end head, `log p_s(s) + log p_e(e)` (the logarithm of what Eq. 16
    maximises): the grounding term of preference optimisation with this head.

    Args:
        start_logits, end_logits (`torch.Tensor` of shape `(rows, T)`):
            Of [`SpanHead`], `-inf` at padding.
        frames (`torch.LongTensor` of shape `(rows, E, 2)`):
            First and last frame of each span; `[-1, -1]` fills up rows with fewer spans.

    Returns:
        `torch.Tensor` of shape `(rows, E)`, in nats; zero where there is no span.

    Raises:
        ValueError: if a span runs backwards or to a frame that does not exist.

    Example:

    ```python
    >>> uniform = torch.zeros(1, 4)
    >>> span_log_prob(uniform, uniform, torch.tensor([[[0, 2], [-1, -1]]])).exp().tolist()
    [[0.0625, 1.0]]
    ```
    """
    _check_frames(frames, torch.isfinite(start_logits))
    starts, ends = frames.clamp(min=0).unbind(-1)
    log_prob = start_logits.float().log_softmax(1).gather(1, starts) + end_logits.float().log_softmax(1).gather(
        1, ends
    )
    return log_prob.masked_fill(frames[..., 0] < 0, 0.0)


def span_cross_entropy(
    start_logits: torch.Tensor, end_logits: torch.Tensor, frames: torch.Tensor, label_sigma: float = 0.0
) -> torch.Tensor:
    r"""
    Loss of the start/end head (the paper gives none): cross-entropy of the start plus that of the end.

    Args:
        start_logits, end_logits (`torch.Tensor` of shape `(rows, T)`):
            Of [`SpanHead`], `-inf` at padding.
        frames (`torch.LongTensor` of shape `(rows, E, 2)`):
            First and last frame of each span; `[-1, -1]` fills up rows with fewer spans.
        label_sigma (`float`, *optional*, defaults to `0.0`):
            Spread of the labels in frames: the target is a normal distribution around the labelled frame, cut off
            where the row's frames end. 0 is one frame.

    Returns:
        `torch.Tensor` of shape `(rows, E)`; zero where there is no span.

    Raises:
        ValueError: if a span runs backwards or to a frame that does not exist, or `label_sigma` is negative.
    """
    if label_sigma < 0:
        raise ValueError(f"`label_sigma` is {label_sigma}: pass the spread of the labels in frames, at least 0.")
    # Reading 27: CE(start) + CE(end). With hard labels it is minus the log-probability of the span.
    if label_sigma == 0:
        return -span_log_prob(start_logits, end_logits, frames)
    _check_frames(frames, torch.isfinite(start_logits))
    loss = _soft_cross_entropy(start_logits, frames[..., 0], label_sigma)
    loss = loss + _soft_cross_entropy(end_logits, frames[..., 1], label_sigma)
    return loss.masked_fill(frames[..., 0] < 0, 0.0)


def _soft_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Cross-entropy `(rows, E)` of `logits (rows, T)` with a normal distribution around each of `labels (rows, E)`."""
    is_padding = ~torch.isfinite(logits)
    frame = torch.arange(logits.shape[1], device=logits.device)
    exponents = -((frame - labels.unsqueeze(-1)) ** 2).float() / (2 * sigma**2)
    targets = exponents.masked_fill(is_padding.unsqueeze(1), -torch.inf).softmax(-1)
    log_prob = logits.float().log_softmax(1).masked_fill(is_padding, 0.0)  # 0 times -inf would be NaN
    return -(targets * log_prob.unsqueeze(1)).sum(-1)
