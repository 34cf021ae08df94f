# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Object tokens and time anchors of Grounded-VideoDiT (https://huggingface.co/papers/2508.15641).

This file travels to the Hub as remote code: torch and transformers only. The paper has no equation for either, only a
budget of 4 and 8 (Table V). "Reading" numbers are the rows of the table of ambiguities in the documentation of the
model. Letters in shapes: `videos` videos, `T` frames, `M` tracked objects, `P` places of a frame, `K` anchors.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)


def masks_to_grid(masks: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    r"""
    How much of each place of the feature grid a mask covers.

    Args:
        masks (`torch.Tensor` of shape `(..., height, width)`):
            Masks in pixels, boolean or 0 and 1.
        grid (`tuple[int, int]`):
            Rows and columns of the grid of features; `(1, 1)` where a frame has one feature.

    Returns:
        `torch.Tensor` of shape `(..., P)` with `P = rows * columns`, float32 in `[0, 1]`.

    Example:

    ```python
    >>> masks_to_grid(torch.tensor([[True, False, False, False]]), (1, 2)).tolist()
    [0.5, 0.0]
    ```
    """
    pooled = F.adaptive_avg_pool2d(masks.reshape(-1, 1, *masks.shape[-2:]).float(), grid)
    return pooled.view(*masks.shape[:-2], grid[0] * grid[1])


class ObjectTokens(nn.Module):
    r"""
    One token for each tracked object: the mean of the features under its mask over all frames, plus an MLP of its
    boxes. There are always `num_tokens` tokens; those without an object, and those of objects whose masks are all
    empty, are a learned "no object".

    Args:
        feature_size (`int`):
            Size of the features.
        hidden_size (`int`):
            Hidden size of the language model.
        num_tokens (`int`, *optional*, defaults to `4`):
            Number of tokens. Of more objects those with the highest score are kept.

    Example:

    ```python
    >>> tokens = ObjectTokens(feature_size=6, hidden_size=8)
    >>> masks, boxes = torch.ones(1, 2, 3, 5), torch.rand(1, 2, 3, 4)
    >>> tokens(torch.randn(1, 3, 5, 6), masks, boxes, torch.ones(1, 2), torch.ones(1, 3, dtype=torch.bool)).shape
    torch.Size([1, 4, 8])
    ```
    """

    def __init__(self, feature_size: int, hidden_size: int, num_tokens: int = 4):
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = nn.LayerNorm(feature_size)
        self.projection = nn.Linear(feature_size, hidden_size)
        self.box_mlp = nn.Sequential(nn.Linear(4, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.no_object = nn.Embedding(1, hidden_size)  # not a bare parameter: transformers initialises embeddings

    def forward(
        self,
        features: torch.Tensor,
        masks: torch.Tensor,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        frame_mask: torch.Tensor,
    ) -> torch.Tensor:
        r"""
        Args:
            features (`torch.Tensor` of shape `(videos, T, P, feature_size)`):
                Features of the places of each frame.
            masks (`torch.Tensor` of shape `(videos, M, T, P)`):
                How much of each place an object covers, see [`masks_to_grid`]; zero where it is not seen. Slots that
                pad a video with fewer objects are zero everywhere.
            boxes (`torch.Tensor` of shape `(videos, M, T, 4)`):
                Centre, width and height of the objects in shares of the frame; anything where they are not seen.
            scores (`torch.Tensor` of shape `(videos, M)`):
                Mean detection scores.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
                Frames that are not padding.

        Returns:
            `torch.Tensor` of shape `(videos, num_tokens, hidden_size)`, objects in the order in which they come.
        """
        dtype = self.projection.weight.dtype
        masks = masks.to(dtype) * frame_mask[:, None, :, None]
        is_object = masks.flatten(2).any(-1)  # (videos, M)
        kept, is_kept = self._keep(scores, is_object)
        masks, boxes = (
            part.gather(1, kept[..., None, None].expand(-1, -1, *part.shape[2:])) for part in (masks, boxes)
        )
        # Reading 25: mask-pooled features and a box MLP. Padding is filled, as 0 times what stands there may be NaN.
        features = features.to(dtype).masked_fill(~frame_mask[..., None, None], 0)
        area = masks.sum((2, 3)).unsqueeze(-1)
        pooled = torch.einsum("vmtp,vtpc->vmc", masks, features) / area.masked_fill(area == 0, 1)
        seen = masks.any(-1).unsqueeze(-1)  # (videos, kept, T, 1)
        box_codes = self.box_mlp(torch.where(seen, boxes.to(dtype), 0)) * seen
        box_code = box_codes.sum(2) / seen.sum(2).clamp(min=1)
        tokens = self.projection(self.norm(pooled)) + box_code
        no_object = self.no_object.weight.expand(len(tokens), self.num_tokens, -1)
        tokens = torch.where(is_kept.unsqueeze(-1), tokens, no_object[:, : tokens.shape[1]])
        return torch.cat([tokens, no_object[:, tokens.shape[1] :]], dim=1)

    def _keep(self, scores: torch.Tensor, is_object: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices `(videos, at most num_tokens)` of the objects with the highest scores, and whether they are such."""
        # Reading 24: an input budget, by score. An object without a mask says nothing and never displaces another.
        if is_object.sum(1).max() > self.num_tokens:
            logger.warning_once(
                f"A video has more than {self.num_tokens} tracked objects; those with the highest scores are kept. "
                "Raise `num_object_tokens` to keep more."
            )
        ranked = scores.float().masked_fill(~is_object, -torch.inf)
        kept = ranked.topk(min(self.num_tokens, scores.shape[1]), dim=1).indices.sort(dim=1).values
        # Real objects first, so that a gap does not depend on how many slots the batch has.
        is_kept = is_object.gather(1, kept)
        order = (~is_kept).int().argsort(dim=1, stable=True)
        return kept.gather(1, order), is_kept.gather(1, order)


class TimeAnchors(nn.Module):
    r"""
    Learned tokens that stand at equal distances between the frames. Each knows its place: to its embedding comes a
    projection of the time embedding of the frame that it stands before.

    Args:
        hidden_size (`int`):
            Hidden size of the language model.
        time_size (`int`):
            Size of the time embedding; 0 for anchors without time.
        num_anchors (`int`, *optional*, defaults to `8`):
            Number of anchors K.

    Example:

    ```python
    >>> anchors = TimeAnchors(hidden_size=8, time_size=2, num_anchors=2)
    >>> tokens, positions = anchors(torch.ones(1, 6, dtype=torch.bool), torch.randn(1, 6, 2))
    >>> tokens.shape, positions.tolist()
    (torch.Size([1, 2, 8]), [[0, 3]])
    ```
    """

    def __init__(self, hidden_size: int, time_size: int, num_anchors: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(num_anchors, hidden_size)
        self.projection = nn.Linear(time_size, hidden_size) if time_size else None

    def forward(
        self, frame_mask: torch.Tensor, time_embedding: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
                Frames that are not padding; padding is behind the frames.
            time_embedding (`torch.Tensor` of shape `(videos, T, time_size)`, *optional*):
                Time embedding of the frames; none with `time_size=0`.

        Returns:
            Tokens `(videos, K, hidden_size)`, and `torch.LongTensor` of shape `(videos, K)`: the frame before which
            each stands. With fewer frames than anchors several stand before the same frame.
        """
        # Reading 24: 8 input tokens spread over the frames, whatever the size of the vocabulary of time tokens.
        num_anchors = self.embedding.num_embeddings
        anchor = torch.arange(num_anchors, device=frame_mask.device)
        positions = anchor * frame_mask.sum(1, keepdim=True) // num_anchors
        tokens = self.embedding.weight.expand(len(frame_mask), -1, -1)
        if self.projection is not None:
            index = positions.unsqueeze(-1).expand(-1, -1, time_embedding.shape[-1])
            tokens = tokens + self.projection(time_embedding.gather(1, index).to(tokens.dtype))
        return tokens, positions


def weave_anchors(
    anchors: torch.Tensor, positions: torch.Tensor, frames: torch.Tensor, frame_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""
    The sequence `anchor, frames, anchor, frames, ...`.

    Args:
        anchors (`torch.Tensor` of shape `(videos, K, H)`), positions (`torch.LongTensor` of shape `(videos, K)`):
            Of [`TimeAnchors`].
        frames (`torch.Tensor` of shape `(videos, T, H)`):
            Frame tokens.
        frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
            Frames that are not padding; padding is behind the frames.

    Returns:
        Tokens `(videos, K + T, H)` with the padding behind them, `torch.BoolTensor` of shape `(videos, K + T)` that is
        true for tokens, and `torch.LongTensor` of the same shape: the frame of each token, -1 for anchors and padding.

    Example:

    ```python
    >>> mask = torch.tensor([[True, True, False]])
    >>> tokens = weave_anchors(torch.zeros(1, 2, 4), torch.tensor([[0, 1]]), torch.ones(1, 3, 4), mask)
    >>> tokens[2].tolist()
    [[-1, 0, -1, 1, -1]]
    ```
    """
    num_frames, num_anchors = frames.shape[1], anchors.shape[1]
    frame = torch.arange(num_frames, device=frames.device).expand(len(frames), -1)
    places = torch.cat([2 * positions, torch.where(frame_mask, 2 * frame + 1, 2 * num_frames + 1)], dim=1)
    order = places.argsort(dim=1, stable=True)
    tokens = torch.cat([anchors, frames.to(anchors.dtype)], dim=1)
    tokens = tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    mask = F.pad(frame_mask, (num_anchors, 0), value=True).gather(1, order)
    return tokens, mask, torch.where(mask & (order >= num_anchors), order - num_anchors, -1)
