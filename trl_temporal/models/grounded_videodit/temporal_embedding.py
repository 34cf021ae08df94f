# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Time of the frames and fusion with the question in Grounded-VideoDiT (https://huggingface.co/papers/2508.15641).

This file travels to the Hub as remote code: torch and transformers only. "Reading" numbers are the rows of the table
of ambiguities in the documentation of the model. Letters in shapes: `videos` videos, `T` frames.
"""

import math

import torch
import torch.nn as nn


def normalized_times(timestamps_s: torch.Tensor, duration_s: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    r"""
    Normalised times tau of the frames (text before Eq. 11): the timestamp divided by the duration.

    Args:
        timestamps_s (`torch.Tensor` of shape `(videos, T)`):
            Timestamps of the sampled frames in seconds; anything at padding.
        duration_s (`torch.Tensor` of shape `(videos,)`):
            Durations in seconds.
        frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
            Frames that are not padding.

    Returns:
        `torch.Tensor` of shape `(videos, T)`, float32; zero at padding.

    Raises:
        ValueError: if a duration is not a positive number, a timestamp is negative, behind the duration or not finite,
            or timestamps do not increase.

    Example:

    ```python
    >>> mask = torch.ones(1, 3, dtype=torch.bool)
    >>> normalized_times(torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([4.0]), mask).tolist()
    [[0.0, 0.5, 0.75]]
    ```
    """
    # Reading 3: the paper says "absolute time" and writes (t - 1) / (T - 1), the index of the frame. The timestamp is
    # right for frames at any distance; for uniform frames the last of which stands at the end, both are the same.
    bad = ~(torch.isfinite(duration_s) & (duration_s > 0))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"`duration_s` of video {row} is {float(duration_s[row])}: pass its length in seconds, a positive number."
        )
    bad = (~torch.isfinite(timestamps_s) | (timestamps_s < 0)) & frame_mask
    bad[:, 1:] |= (timestamps_s.diff(dim=1) <= 0) & frame_mask[:, 1:] & frame_mask[:, :-1]
    if bad.any():
        row, frame = bad.nonzero()[0].tolist()
        before = f" after {float(timestamps_s[row, frame - 1])}" if frame else ""
        raise ValueError(
            f"`timestamps_s` of video {row} is {float(timestamps_s[row, frame])} at frame {frame}{before}: timestamps "
            "are seconds from the first frame, finite and increasing. Sort the frames by time and drop duplicates."
        )
    bad = (timestamps_s > duration_s.unsqueeze(1)) & frame_mask
    if bad.any():
        row, frame = bad.nonzero()[0].tolist()
        raise ValueError(
            f"`timestamps_s` of video {row} is {float(timestamps_s[row, frame])} at frame {frame}, but `duration_s` "
            f"is {float(duration_s[row])}: pass both in seconds, of the same video or crop."
        )
    times = timestamps_s.double() / duration_s.double().unsqueeze(1)
    return times.float().masked_fill(~frame_mask, 0.0)


class SinusoidalTimeEmbedding(nn.Module):
    r"""
    Sinusoidal time embedding (Eq. 11): `sin(tau / w_k)` and `cos(tau / w_k)` with `w_k = base ** (2k / size)`.

    Args:
        size (`int`):
            Size of the embedding, even.
        base (`float`, *optional*, defaults to `10000.0`):
            Base of the wavelengths.
        time_scale (`str` or `float`, *optional*, defaults to `"frames"`):
            What tau is multiplied by: `"frames"` is the number of frames of the video less one; `1.0` is the equation
            as printed.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    ```python
    >>> embed = SinusoidalTimeEmbedding(size=2, time_scale=1.0)
    >>> embed(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)).tolist()
    [[[0.0, 1.0]]]
    ```
    """

    def __init__(self, size: int, base: float = 10000.0, time_scale: str | float = "frames"):
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(f"`size` is {size}: the embedding has as many sines as cosines, so pass an even number.")
        # Reading 1: the two layers of the equation print 10000 and 0000; 0 would divide by zero.
        if not (math.isfinite(base) and base > 1):
            raise ValueError(f"`base` is {base}: pass a number above 1; the paper's is 10000.")
        if time_scale != "frames" and (isinstance(time_scale, str) or not 0 < time_scale < math.inf):
            raise ValueError(f"`time_scale` is {time_scale!r}: pass 'frames' or a positive number.")
        self.size, self.base, self.time_scale = size, base, time_scale

    def forward(self, times: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            times (`torch.Tensor` of shape `(videos, T)`):
                Of [`normalized_times`].
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
                Frames that are not padding.

        Returns:
            `torch.Tensor` of shape `(videos, T, size)`, float32: sines at even, cosines at odd places.
        """
        # Reading 2: tau in [0, 1] divided by wavelengths of at least 1 hardly differs from frame to frame (the codes
        # of 96 frames span 1.02 dimensions in effect); in units of frames it does (11). One frame has scale 1.
        if self.time_scale == "frames":
            scale = (frame_mask.sum(1, keepdim=True) - 1).clamp(min=1).float()
        else:
            scale = self.time_scale
        # Not a buffer: those that are not saved are lost when transformers makes a model on the meta device.
        exponents = torch.arange(0, self.size, 2, device=times.device, dtype=torch.float32) / self.size
        angles = (times.float() * scale).unsqueeze(-1) * self.base**-exponents
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class MLPTimeEmbedding(nn.Module):
    r"""
    Learned time embedding (Eq. 12): an MLP of `[tau, tau ** 2]`.

    Args:
        size (`int`):
            Size of the embedding.
    """

    def __init__(self, size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, size), nn.GELU(), nn.Linear(size, size))

    def forward(self, times: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            times (`torch.Tensor` of shape `(videos, T)`):
                Of [`normalized_times`].
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
                Frames that are not padding; not read, since nothing here depends on the number of frames.

        Returns:
            `torch.Tensor` of shape `(videos, T, size)`.
        """
        return self.mlp(torch.stack([times, times**2], dim=-1).to(self.mlp[0].weight.dtype))


class TemporalFusion(nn.Module):
    r"""
    Fusion of each frame with the question and its time (Eq. 13): `W LN([z_t; e_text; e_time(t)]) + b`.

    Args:
        feature_size (`int`):
            Size of the frame features.
        text_size (`int`):
            Size of the question's embedding.
        time_size (`int`):
            Size of the time embedding; 0 for fusion without time.
        hidden_size (`int`):
            Hidden size of the language model.

    Example:

    ```python
    >>> fusion = TemporalFusion(feature_size=6, text_size=4, time_size=2, hidden_size=8)
    >>> fusion(torch.randn(1, 3, 6), torch.randn(1, 4), torch.randn(1, 3, 2)).shape
    torch.Size([1, 3, 8])
    ```
    """

    def __init__(self, feature_size: int, text_size: int, time_size: int, hidden_size: int):
        super().__init__()
        self.sizes = (feature_size, text_size, time_size)
        self.norm = nn.LayerNorm(sum(self.sizes))
        self.projection = nn.Linear(sum(self.sizes), hidden_size)

    def forward(
        self, features: torch.Tensor, text: torch.Tensor, time_embedding: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""
        Args:
            features (`torch.Tensor` of shape `(videos, T, feature_size)`):
                Frame features z of any floating type.
            text (`torch.Tensor` of shape `(videos, text_size)`):
                Embedding of the question (Eq. 10).
            time_embedding (`torch.Tensor` of shape `(videos, T, time_size)`, *optional*):
                Of [`SinusoidalTimeEmbedding`] or [`MLPTimeEmbedding`]; none with `time_size=0`.

        Returns:
            `torch.Tensor` of shape `(videos, T, hidden_size)`.

        Raises:
            ValueError: if the sizes are not those of the module.
        """
        given = (features.shape[-1], text.shape[-1], 0 if time_embedding is None else time_embedding.shape[-1])
        if given != self.sizes:
            raise ValueError(
                f"Features, question and time have the sizes {given}, but this module fuses {self.sizes}: the "
                "features are of another encoder than the configuration names, or the time embedding was left out."
            )
        parts = [features, text.unsqueeze(1).expand(-1, features.shape[1], -1)]
        if time_embedding is not None:
            parts.append(time_embedding)
        dtype = self.norm.weight.dtype
        return self.projection(self.norm(torch.cat([part.to(dtype) for part in parts], dim=-1)))
