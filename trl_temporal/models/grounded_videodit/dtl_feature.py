# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Diffusion temporal latents of frame features: the small trainable denoiser of Grounded-VideoDiT (§IV-A).

"Injecting Gaussian noise into frame-wise features and performing conditional denoising to derive differentiable
temporal latent tokens" is the paper's second description of its DTL encoder; the first, a frozen video diffusion model
on pixels, is in `dtl_vace.py` (reading 16). This one is cheap, and gradients reach it.

Features x_0 of frames are normalised and cut into K = 12 segments (reading 8), each with noise of its own. A segment
is perturbed along Wan's flow, alpha = 1 - sigma (Eq. 7, readings 4 and 7), and a transformer reads it together with
the condition c: features of the objects, averaged inside their masks (Eq. 6), for each frame. The tokens behind one of
its blocks are h (Eq. 8, reading 18); there is nothing to pool over space, so they are z_t before g_phi (Eq. 9,
reading 17).

This file travels to the Hub as remote code: torch and transformers only. Letters in shapes: `T` frames of the longest
video, `segments` those of all videos, `length` their frames, `d` the size of features.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .frame_encoders import (
    ClipFrameEncoder,
    FrameFeatures,
    check_frame_mask,
    check_frames,
    check_keys,
    check_sigmas,
    noise_from_key,
    segment_index,
)

# Share of the segments that are denoised without their objects in pretraining. An object's features tell much of a
# frame's, all of them where the mask covers it: a denoiser that always sees them would learn to copy.
OBJECT_DROPOUT = 0.5
# Noise levels from 0 to 1 are embedded on the scale of Wan's timesteps.
TIMESTEPS = 1000


def sinusoidal(positions: torch.Tensor, size: int) -> torch.Tensor:
    r"""
    Sines and cosines of positions.

    Args:
        positions (`torch.Tensor` of shape `(...,)`):
            Positions.
        size (`int`):
            Size of the embedding, even.

    Returns:
        `torch.FloatTensor` of shape `(..., size)`.

    Example:

    ```python
    >>> sinusoidal(torch.tensor([0.0]), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    ```
    """
    half = size // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class DtlBlock(nn.Module):
    """
    Transformer block whose normalisations are shifted, scaled and gated by the noise level, as those of Wan.

    Args:
        width (`int`):
            Size of the tokens.
        num_heads (`int`):
            Attention heads.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, tokens: torch.Tensor, level: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        r"""
        Runs the block.

        Args:
            tokens (`torch.Tensor` of shape `(segments, length, width)`):
                Tokens.
            level (`torch.Tensor` of shape `(segments, width)`):
                Embedding of the noise level.
            padding (`torch.BoolTensor` of shape `(segments, length)`):
                True where there is no frame.

        Returns:
            `torch.Tensor` of shape `(segments, length, width)`.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(level)[:, None].chunk(6, dim=-1)
        normed = self.norm1(tokens) * (1 + scale1) + shift1
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)
        tokens = tokens + attended * (1 + gate1)
        return tokens + self.mlp(self.norm2(tokens) * (1 + scale2) + shift2) * (1 + gate2)


class DtlDenoiser(nn.Module):
    """
    Denoiser of perturbed frame features (Eq. 7), E_theta of Eq. 8 in miniature.

    Args:
        feature_size (`int`):
            Size of the features, d.
        width (`int`, *optional*, defaults to `128`):
            Size of its tokens.
        num_layers (`int`, *optional*, defaults to `4`):
            Number of blocks.
        num_heads (`int`, *optional*, defaults to `4`):
            Attention heads.
        block (`int`, *optional*):
            Block whose output is z, counted from 0 (reading 18); `num_layers // 2` by default.
        num_segments (`int`, *optional*, defaults to `12`):
            Segments of a video, K (reading 8); 1 takes the video as a whole.
        sigmas (`tuple[float, ...]`, *optional*, defaults to `(0.1,)`):
            Noise levels at which tokens are read and averaged, falling; Euler steps lead from one to the next
            (readings 4 and 5). For the paper's S = 4 pass `cosine_sigmas(0.1, 4)`.

    Raises:
        ValueError: if there is no such block, or the noise levels are not falling between 1 and 0.

    Example:

    ```python
    >>> denoiser = DtlDenoiser(feature_size=8, width=16, num_layers=2, num_heads=2)
    >>> denoiser(torch.randn(2, 20, 8), keys=["a.mp4", "b.mp4"]).shape
    torch.Size([2, 20, 16])
    ```
    """

    def __init__(
        self,
        feature_size: int,
        width: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        block: int | None = None,
        num_segments: int = 12,
        sigmas: tuple[float, ...] = (0.1,),
    ):
        super().__init__()
        self.feature_size, self.width, self.num_segments = feature_size, width, num_segments
        self.block = num_layers // 2 if block is None else block
        if not 0 <= self.block < num_layers:
            raise ValueError(f"`block` is {block}, but the denoiser has blocks 0 to {num_layers - 1}")
        self.sigmas = check_sigmas(sigmas)
        # Statistics of the features, as the latents of a VAE have; `pretrain` measures them.
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("std", torch.ones(feature_size))
        self.no_object = nn.Parameter(torch.zeros(width))
        self.project_in = nn.Linear(feature_size, width)
        self.project_object = nn.Linear(feature_size, width)
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DtlBlock(width, num_heads) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, feature_size)
        nn.init.normal_(self.no_object, std=0.02)

    def _normalise(self, features):
        return (features.to(self.mean.dtype) - self.mean) / self.std

    def _segments(self, frame_mask):
        """Video and frame of every slot of all segments, `(segments, length)` each, and which slots hold no frame."""
        counts = frame_mask.sum(1).tolist()
        parts = [segment_index(count, self.num_segments) for count in counts]
        longest = max(part.shape[1] for part in parts)
        frame = torch.cat([F.pad(part, (0, longest - part.shape[1]), value=-1) for part in parts])
        video = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))
        # The last frames of a video are repeated to fill its last segment: only the first of each counts.
        position = torch.cat([F.pad(torch.arange(p.numel()).view(p.shape), (0, longest - p.shape[1])) for p in parts])
        padding = (frame < 0) | (frame != position)
        device = frame_mask.device
        return video[:, None].expand_as(frame).to(device), frame.clamp(min=0).to(device), padding.to(device)

    def _objects(self, object_features, object_mask, video, frame):
        """The condition c of every slot, `(segments, length, width)`."""
        if object_features is None:
            return self.no_object.expand(*video.shape, self.width)
        objects = self.project_object(self._normalise(object_features[video, frame]))
        if object_mask is None:
            return objects
        return torch.where(object_mask[video, frame][..., None], objects, self.no_object)

    def _denoise(self, noisy, sigma, objects, padding, whole):
        """Tokens behind the block, and the velocity where all blocks are to run."""
        slots = torch.arange(noisy.shape[1], device=noisy.device)
        tokens = self.project_in(noisy) + objects + sinusoidal(slots, self.width).to(noisy.dtype)
        level = self.level(sinusoidal(sigma * TIMESTEPS, self.width).to(noisy.dtype))
        latent = None
        for index, block in enumerate(self.blocks if whole else self.blocks[: self.block + 1]):
            tokens = block(tokens, level, padding)
            latent = tokens if index == self.block else latent
        return latent, self.project_out(self.norm_out(tokens)) if whole else None

    def forward(
        self,
        features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        object_features: torch.Tensor | None = None,
        object_mask: torch.Tensor | None = None,
        keys: list[str] | None = None,
    ) -> torch.Tensor:
        r"""
        Latent tokens of frames (Eq. 7 and 8). Gradients reach the features and the denoiser.

        Args:
            features (`torch.Tensor` of shape `(videos, T, d)`):
                Features of the frames, of any floating type.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True for frames, false for the padding behind them.
            object_features (`torch.Tensor` of shape `(videos, T, d)`, *optional*):
                Features of the objects.
            object_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True where there is an object; others get a learned embedding. All true by default.
            keys (`list[str]`):
                Keys that the noise is drawn from, one for each video.

        Returns:
            `torch.Tensor` of shape `(videos, T, width)`, 0 in the padding.

        Raises:
            ValueError: if shapes do not fit or keys are missing.
        """
        if frame_mask is None:
            frame_mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        self._check(features, frame_mask, object_features, object_mask)
        keys = check_keys(keys, len(features))
        noise = torch.zeros_like(features, dtype=self.mean.dtype)
        for row, (key, count) in enumerate(zip(keys, frame_mask.sum(1).tolist(), strict=True)):
            noise[row, :count] = noise_from_key(key, (count, self.feature_size)).to(noise)
        video, frame, padding = self._segments(frame_mask)
        objects = self._objects(object_features, object_mask, video, frame)
        state = (1 - self.sigmas[0]) * self._normalise(features[video, frame]) + self.sigmas[0] * noise[video, frame]
        total = 0.0
        for sigma, following in zip(self.sigmas, (*self.sigmas[1:], None), strict=True):
            levels = torch.full((len(state),), sigma, device=state.device)
            latent, velocity = self._denoise(state, levels, objects, padding, whole=following is not None)
            total = total + latent
            if following is not None:
                state = state + (following - sigma) * velocity
        z = total.new_zeros(*frame_mask.shape, self.width)
        return z.index_put((video[~padding], frame[~padding]), (total / len(self.sigmas))[~padding])

    def denoising_loss(
        self,
        features: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        object_features: torch.Tensor | None = None,
        object_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        r"""
        Flow-matching loss: each segment is perturbed at a level of its own (Eq. 7), and the mean squared error of the
        predicted velocity, noise - x_0, is taken over the frames. Half of the segments are denoised without objects.

        Args:
            features (`torch.Tensor` of shape `(videos, T, d)`):
                Features of the frames.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True for frames, false for the padding behind them.
            object_features (`torch.Tensor` of shape `(videos, T, d)`, *optional*):
                Features of the objects.
            object_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True where there is an object.
            generator (`torch.Generator`, *optional*):
                Of the levels, the noise and the segments without objects, on the CPU.

        Returns:
            `torch.Tensor` of shape `()`. A denoiser that always answers 0 has about 2.

        Raises:
            ValueError: if shapes do not fit.
        """
        if frame_mask is None:
            frame_mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        self._check(features, frame_mask, object_features, object_mask)
        video, frame, padding = self._segments(frame_mask)
        clean = self._normalise(features[video, frame])
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        sigma = torch.rand(len(clean), generator=generator).to(clean)
        dropped = (torch.rand(len(clean), generator=generator) < OBJECT_DROPOUT).to(clean.device)
        objects = self._objects(object_features, object_mask, video, frame)
        objects = torch.where(dropped[:, None, None], self.no_object, objects)
        noisy = (1 - sigma[:, None, None]) * clean + sigma[:, None, None] * noise
        _, velocity = self._denoise(noisy, sigma, objects, padding, whole=True)
        return F.mse_loss(velocity[~padding], (noise - clean)[~padding])

    def _check(self, features, frame_mask, object_features, object_mask):
        if features.ndim != 3 or features.shape[2] != self.feature_size:
            raise ValueError(
                f"`features` must have shape (videos, T, {self.feature_size}), not {tuple(features.shape)}"
            )
        check_frame_mask(frame_mask, features.shape[:2])
        if object_features is not None and object_features.shape != features.shape:
            raise ValueError(
                f"`object_features` must have the shape of `features`, {tuple(features.shape)}, not "
                f"{tuple(object_features.shape)}"
            )
        if object_mask is not None and object_mask.shape != features.shape[:2]:
            raise ValueError(
                f"`object_mask` must have shape {tuple(features.shape[:2])}, not {tuple(object_mask.shape)}"
            )


def pretrain(
    denoiser: DtlDenoiser,
    features: torch.Tensor,
    frame_mask: torch.Tensor | None = None,
    object_features: torch.Tensor | None = None,
    object_mask: torch.Tensor | None = None,
    num_steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> list[float]:
    r"""
    Teaches a denoiser to denoise features of any videos; no labels are needed. Sets its statistics first, so train it
    before anything behind it. With AdamW and a learning rate that falls along a cosine.

    Args:
        denoiser ([`DtlDenoiser`]):
            Denoiser, changed in place.
        features (`torch.Tensor` of shape `(videos, T, d)`):
            Features of the frames.
        frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
            True for frames, false for the padding behind them.
        object_features (`torch.Tensor` of shape `(videos, T, d)`, *optional*):
            Features of the objects.
        object_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
            True where there is an object.
        num_steps (`int`, *optional*, defaults to `300`):
            Steps.
        batch_size (`int`, *optional*, defaults to `32`):
            Videos of a step.
        learning_rate (`float`, *optional*, defaults to `2e-3`):
            Highest learning rate.
        seed (`int`, *optional*, defaults to `0`):
            Of the order of the videos and the noise.

    Returns:
        `list[float]`: the loss of each step.

    Raises:
        ValueError: if shapes do not fit.
    """
    if frame_mask is None:
        frame_mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    denoiser._check(features, frame_mask, object_features, object_mask)
    shown = features[frame_mask].float()
    denoiser.mean.copy_(shown.mean(0))
    denoiser.std.copy_(shown.std(0, correction=0).clamp(min=1e-3 * shown.std(correction=0).clamp(min=1e-6)))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    losses = []
    for _ in range(num_steps):
        rows = torch.randperm(len(features), generator=generator)[:batch_size].to(features.device)
        batch = [None if each is None else each[rows] for each in (features, frame_mask, object_features, object_mask)]
        loss = denoiser.denoising_loss(*batch, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


class DtlFeatureEncoder(nn.Module):
    """
    Frame encoder of diffusion temporal latents over the features of a frozen vision tower. The denoiser is trainable.

    Args:
        base ([`ClipFrameEncoder`]):
            Gives the features of the frames (`aux` too) and of the objects.
        denoiser ([`DtlDenoiser`]):
            Denoiser of these features.

    Raises:
        ValueError: if the sizes of the features differ, or the base has several tokens a frame.
    """

    uses_masks = True

    def __init__(self, base: ClipFrameEncoder, denoiser: DtlDenoiser):
        super().__init__()
        if base.tokens_per_frame != 1 or base.hidden_size != denoiser.feature_size:
            raise ValueError(
                f"the denoiser takes 1 token of size {denoiser.feature_size} a frame, the base gives "
                f"{base.tokens_per_frame} of size {base.hidden_size}"
            )
        self.base, self.denoiser = base, denoiser
        self.tokens_per_frame, self.hidden_size, self.aux_size = 1, denoiser.width, base.hidden_size

    @torch.no_grad()
    def base_features(
        self, frames: torch.Tensor, frame_mask: torch.Tensor | None = None, masks: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        r"""
        What the denoiser and its pretraining take, which is frozen and can be stored.

        Args:
            frames (`torch.Tensor` of shape `(videos, T, 3, height, width)`):
                Frames, `uint8` or floating point from 0 to 1.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True for frames, false for the padding behind them.
            masks (`torch.Tensor` of shape `(videos, T, mask_height, mask_width)`, *optional*):
                Union of the objects' masks in each frame, M_t (Eq. 6). Patches count by the share that is covered.

        Returns:
            `dict[str, torch.Tensor]`: arguments of [`DtlDenoiser`], `features`, `frame_mask`, and with masks
            `object_features` and `object_mask`, which is false where a mask is empty.
        """
        frames, frame_mask = check_frames(frames, frame_mask, masks)
        patches = self.base.patch_features(frames[frame_mask])

        def padded(values):
            whole = values.new_zeros(*frame_mask.shape, *values.shape[1:])
            whole[frame_mask] = values
            return whole

        inputs = {"features": padded(patches.mean((2, 3))), "frame_mask": frame_mask}
        if masks is not None:
            covered = (masks[frame_mask].float() > 0.5).float()[:, None]
            share = F.adaptive_avg_pool2d(covered, patches.shape[-1])
            area = share.sum((2, 3))
            inputs["object_features"] = padded((patches * share).sum((2, 3)) / area.clamp(min=1e-6))
            inputs["object_mask"] = padded(area[:, 0] > 0)
        return inputs

    def forward(
        self,
        frames: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        keys: list[str] | None = None,
    ) -> FrameFeatures:
        r"""
        Encodes frames.

        Args:
            frames (`torch.Tensor` of shape `(videos, T, 3, height, width)`):
                Frames, `uint8` or floating point from 0 to 1.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True for frames, false for the padding behind them.
            masks (`torch.Tensor` of shape `(videos, T, mask_height, mask_width)`, *optional*):
                Union of the objects' masks in each frame. Without it there is no condition but the learned one for no
                object.
            keys (`list[str]`):
                Keys that the noise is drawn from, one for each video.

        Returns:
            [`FrameFeatures`], with the features of the base as `aux`.
        """
        inputs = self.base_features(frames, frame_mask, masks)
        return FrameFeatures(self.denoiser(**inputs, keys=keys)[:, :, None], inputs["features"])
