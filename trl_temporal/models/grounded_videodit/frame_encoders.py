# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What turns the frames of videos into one feature a frame, Z = {z_t} of Grounded-VideoDiT, behind one interface.

A frame encoder is a module that is called with

- `frames` `(videos, T, 3, height, width)`: `uint8`, or floating point from 0 to 1; each encoder resizes and normalises
- `frame_mask` `(videos, T)`: true for frames, false for the padding behind them; all true by default
- `masks` `(videos, T, height, width)`: union of the objects' masks in each frame (M_t, Eq. 6), of any size
- `keys`: a string for each video; the same key draws the same noise

and returns [`FrameFeatures`]. It says how large they are in `tokens_per_frame` (n_v), `hidden_size` (d_v) and
`aux_size` (d_aux, or `None`), and in `uses_masks` whether they depend on the masks. There are three of them, and a
fourth for lists of them (reading 21: an encoder may replace the base stream or join it):

- [`ClipFrameEncoder`]: any vision tower of transformers, frame by frame; its features are also the reference
  E_aux(x_t) of the KL regularisation (Eq. 17)
- `DtlFeatureEncoder` (`dtl_feature.py`): a small trainable denoiser over the features of such a tower
- `VaceFrameEncoder` (`dtl_vace.py`): the activations of a video diffusion model that the masks condition
- [`FrameEncoderList`]

All of them end at Pool(h) of Eq. 9: their features are frozen and can be stored. The learned projection g_phi of that
equation is [`FrameProjection`], which trains with the rest of the model. The query (its embedding is Eq. 10) does not
enter an encoder, except through the masks of the objects that it names.

This file travels to the Hub as remote code: torch and transformers only. Letters in shapes: `T` frames of the longest
video, `n_v` tokens of a frame, `d_v` their size.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

# Of CLIP (`transformers.image_utils.OPENAI_CLIP_MEAN`, `OPENAI_CLIP_STD`).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Frames of a segment: T = 96 frames in K = 12 segments (§IV-A). Shorter videos have fewer segments, not shorter ones.
FRAMES_PER_SEGMENT = 8


@dataclass
class FrameFeatures:
    """
    What a frame encoder makes of videos. Features of padding are 0.

    Args:
        z (`torch.Tensor` of shape `(videos, T, n_v, d_v)`):
            Features of the frames, z_t (Eq. 9 before g_phi).
        aux (`torch.Tensor` of shape `(videos, T, d_aux)`, *optional*):
            Reference features of the whole frames, E_aux(x_t) (Eq. 17), where the encoder has any.
    """

    z: torch.Tensor
    aux: torch.Tensor | None = None


def check_frames(
    frames: torch.Tensor, frame_mask: torch.Tensor | None, masks: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Checks what goes into a frame encoder.

    Args:
        frames (`torch.Tensor` of shape `(videos, T, 3, height, width)`):
            Frames, `uint8` or floating point from 0 to 1.
        frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
            True for frames, false for the padding behind them.
        masks (`torch.Tensor` of shape `(videos, T, mask_height, mask_width)`, *optional*):
            Masks of the objects.

    Returns:
        The frames in floating point from 0 to 1, and the frame mask.

    Raises:
        ValueError: if shapes do not fit, a video has no frame, or padding stands before a frame.

    Example:

    ```python
    >>> frames, frame_mask = check_frames(torch.full((1, 2, 3, 4, 4), 255, dtype=torch.uint8), None)
    >>> frames.max().item(), frame_mask.tolist()
    (1.0, [[True, True]])
    ```
    """
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"`frames` must have shape (videos, T, 3, height, width), not {tuple(frames.shape)}")
    if frame_mask is None:
        frame_mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    check_frame_mask(frame_mask, frames.shape[:2])
    if masks is not None and (masks.ndim != 4 or masks.shape[:2] != frames.shape[:2]):
        raise ValueError(
            f"`masks` must have shape (videos, T, height, width), the union of the objects, with "
            f"{tuple(frames.shape[:2])} in front as in `frames`, not {tuple(masks.shape)}"
        )
    if frames.dtype == torch.uint8:
        return frames.float() / 255, frame_mask
    if not frames.is_floating_point():
        raise ValueError(f"`frames` must be uint8, or floating point from 0 to 1, not {frames.dtype}")
    shown = frames[frame_mask]
    if not (shown.amin() >= 0 and shown.amax() <= 1):  # also if it is no number
        raise ValueError(
            f"`frames` in floating point must lie between 0 and 1, not between {shown.amin():.4g} and "
            f"{shown.amax():.4g}: each encoder normalises by itself, so pass them unnormalised"
        )
    return frames, frame_mask


def check_frame_mask(frame_mask: torch.Tensor, shape: tuple[int, int]) -> None:
    r"""
    Checks a frame mask.

    Args:
        frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
            True for frames, false for the padding behind them.
        shape (`tuple[int, int]`):
            What its shape must be.

    Raises:
        ValueError: if it has another shape or type, a video has no frame, or padding stands before a frame.

    Example:

    ```python
    >>> check_frame_mask(torch.tensor([[True, True], [False, True]]), (2, 2))
    Traceback (most recent call last):
    ...
    ValueError: `frame_mask` of video 1 has padding before a frame: padding goes behind the frames
    ```
    """
    if frame_mask.shape != shape or frame_mask.dtype != torch.bool:
        raise ValueError(
            f"`frame_mask` must be a boolean tensor of shape {tuple(shape)}, not {frame_mask.dtype} of shape "
            f"{tuple(frame_mask.shape)}"
        )
    empty = (~frame_mask.any(1)).nonzero().flatten()
    if len(empty):
        raise ValueError(f"`frame_mask` of video {empty[0].item()} is false everywhere: a video needs a frame")
    broken = (frame_mask[:, 1:] & ~frame_mask[:, :-1]).any(1).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"`frame_mask` of video {broken[0].item()} has padding before a frame: padding goes behind the frames"
        )


def check_keys(keys: list[str] | None, num_videos: int) -> list[str]:
    r"""
    Checks the keys that noise is drawn from.

    Args:
        keys (`list[str]`, *optional*):
            One for each video.
        num_videos (`int`):
            How many there must be.

    Returns:
        `list[str]`: the keys.

    Raises:
        ValueError: if there are none, or not one for each video.

    Example:

    ```python
    >>> check_keys(["kitchen.mp4"], 1)
    ['kitchen.mp4']
    ```
    """
    if keys is None or isinstance(keys, str) or len(keys) != num_videos:
        raise ValueError(
            f"`keys` must be a list of {num_videos} strings, one for each video, not {keys!r}: the noise is drawn "
            "from them, so that the features of a sample are the same every time"
        )
    return list(keys)


def noise_from_key(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    r"""
    Gaussian noise that the key of a sample determines, on any device and in any batch.

    Args:
        key (`str`):
            Key of the sample.
        shape (`tuple[int, ...]`):
            Shape of the noise.

    Returns:
        `torch.FloatTensor` of that shape, on the CPU.

    Example:

    ```python
    >>> torch.equal(noise_from_key("a", (2, 3)), noise_from_key("a", (2, 3)))
    True
    >>> torch.equal(noise_from_key("a", (2, 3)), noise_from_key("b", (2, 3)))
    False
    ```
    """
    seed = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big", signed=True)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def segment_index(num_frames: int, num_segments: int) -> torch.Tensor:
    r"""
    Cuts a video into segments of equal length, which are noised and encoded on their own (reading 8). A short video
    has fewer segments, one for each 8 frames; the last segment repeats the last frame where frames run out.

    Args:
        num_frames (`int`):
            Frames of the video, T.
        num_segments (`int`):
            Segments of a long video, K; 1 takes the video as a whole.

    Returns:
        `torch.LongTensor` of shape `(segments, length)`: the frame in each slot. Read in order, the first `num_frames`
        slots are the frames of the video.

    Example:

    ```python
    >>> segment_index(96, 12).shape
    torch.Size([12, 8])
    >>> segment_index(9, 12).tolist()
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 8]]
    ```
    """
    if num_frames < 1 or num_segments < 1:
        raise ValueError(f"cannot cut {num_frames} frames into {num_segments} segments: both must be at least 1")
    length = math.ceil(num_frames / min(num_segments, math.ceil(num_frames / FRAMES_PER_SEGMENT)))
    segments = math.ceil(num_frames / length)  # rounding the length up may leave no frame for the last ones
    return torch.arange(segments * length).clamp(max=num_frames - 1).view(segments, length)


def cosine_sigmas(sigma: float, num_steps: int) -> tuple[float, ...]:
    r"""
    Noise levels that fall from one towards 0 along a cosine (readings 5 and 7). `cosine_sigmas(0.1, 4)` are the
    paper's: S = 4 and a cosine schedule (Table VI), from tau_0 at 10 % of the trajectory (Fig. 2), which is read as
    little noise; `cosine_sigmas(0.9, 4)` is the other reading, 10 % of denoising (reading 4).

    Args:
        sigma (`float`):
            The first level.
        num_steps (`int`):
            Number of levels, S; 0 would be the one behind the last.

    Returns:
        `tuple[float, ...]`: the levels.

    Example:

    ```python
    >>> [round(sigma, 4) for sigma in cosine_sigmas(0.1, 4)]
    [0.1, 0.0924, 0.0707, 0.0383]
    ```
    """
    return tuple(sigma * math.cos(math.pi / 2 * step / num_steps) for step in range(num_steps))


def check_sigmas(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    r"""
    Checks noise levels.

    Args:
        sigmas (`tuple[float, ...]`):
            Noise levels.

    Returns:
        `tuple[float, ...]`: the same.

    Raises:
        ValueError: if there are none, one is not between 0 and 1, or they do not fall.

    Example:

    ```python
    >>> check_sigmas([0.2, 0.1])
    (0.2, 0.1)
    ```
    """
    sigmas = tuple(sigmas)
    falling = all(left > right for left, right in zip(sigmas, sigmas[1:], strict=False))
    if not sigmas or not falling or not all(0 < sigma <= 1 for sigma in sigmas):
        raise ValueError(f"`sigmas` must be falling noise levels, at most 1 and above 0, not {sigmas}")
    return sigmas


class ClipFrameEncoder(nn.Module):
    """
    Features of a vision tower of transformers, frame by frame, averaged over space. The tower is frozen.

    Args:
        tower (`PreTrainedModel`):
            Model that makes of `pixel_values` a `last_hidden_state` of shape `(frames, tokens, hidden_size)` whose
            last tokens are a square grid of patches, such as `CLIPVisionModel`, `SiglipVisionModel`, `Dinov2Model`.
        image_mean (`tuple[float, float, float]`, *optional*, defaults to that of CLIP):
            Mean that the tower's pixels are normalised with.
        image_std (`tuple[float, float, float]`, *optional*, defaults to that of CLIP):
            Standard deviation that the tower's pixels are normalised with.
        spatial_pool (`int`, *optional*, defaults to `1`):
            Side g of the grid that patches are averaged into: n_v = g * g tokens a frame.
        frames_per_forward (`int`, *optional*, defaults to `256`):
            Frames that go through the tower at once.

    Example:

    ```python
    >>> from transformers import CLIPVisionConfig, CLIPVisionModel
    >>> config = CLIPVisionConfig(
    ...     hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8
    ... )
    >>> encoder = ClipFrameEncoder(CLIPVisionModel(config))
    >>> encoder(torch.rand(2, 5, 3, 24, 24)).z.shape
    torch.Size([2, 5, 1, 8])
    ```
    """

    uses_masks = False

    def __init__(
        self,
        tower: PreTrainedModel,
        image_mean: tuple[float, float, float] = CLIP_MEAN,
        image_std: tuple[float, float, float] = CLIP_STD,
        spatial_pool: int = 1,
        frames_per_forward: int = 256,
    ):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        size = tower.config.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)
        self.spatial_pool = spatial_pool
        self.frames_per_forward = frames_per_forward
        self.tokens_per_frame = spatial_pool**2
        self.hidden_size = self.aux_size = tower.config.hidden_size

    def settings(self) -> dict:
        """What the features depend on besides the weights."""
        # What of the tower its weights do not show, such as heads and the activation; not where it came from.
        others = {*PreTrainedConfig().to_dict(), "transformers_version", "dtype"}
        tower = {name: value for name, value in self.tower.config.to_dict().items() if name not in others}
        return {
            "class": type(self).__name__,
            "tower": type(self.tower).__name__,
            "config": tower,
            "image_mean": self.image_mean.flatten().tolist(),
            "image_std": self.image_std.flatten().tolist(),
            "spatial_pool": self.spatial_pool,
        }

    def train(self, mode: bool = True):
        """Training leaves the frozen tower in evaluation mode, without dropout."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def patch_features(self, frames: torch.Tensor) -> torch.Tensor:
        r"""
        Features of the patches of frames.

        Args:
            frames (`torch.Tensor` of shape `(frames, 3, height, width)`):
                Frames in floating point from 0 to 1.

        Returns:
            `torch.Tensor` of shape `(frames, hidden_size, grid, grid)`.

        Raises:
            ValueError: if what the tower returns has another shape.
        """
        return torch.cat([self._patch_features(part) for part in frames.split(self.frames_per_forward)])

    def _patch_features(self, frames):
        frames = F.interpolate(frames.float(), self.image_size, mode="bilinear", antialias=True, align_corners=False)
        pixels = (frames - self.image_mean) / self.image_std
        tokens = self.tower(pixel_values=pixels.to(self.tower.dtype)).last_hidden_state
        if tokens.ndim != 3 or tokens.shape[-1] != self.hidden_size:
            raise ValueError(
                f"{type(self.tower).__name__} returns a `last_hidden_state` of shape {tuple(tokens.shape)}; wanted is "
                f"(frames, tokens, {self.hidden_size})"
            )
        grid = math.isqrt(tokens.shape[1])  # class and register tokens, where there are any, stand before the patches
        return tokens[:, -(grid**2) :].transpose(1, 2).unflatten(2, (grid, grid)).float()

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
                Not used: E_aux sees whole frames (Eq. 17).
            keys (`list[str]`, *optional*):
                Not used: there is no noise.

        Returns:
            [`FrameFeatures`], with the average of the patches as `aux`.
        """
        frames, frame_mask = check_frames(frames, frame_mask, masks)
        patches = self.patch_features(frames[frame_mask])
        z = patches.new_zeros(*frame_mask.shape, self.tokens_per_frame, self.hidden_size)
        z[frame_mask] = F.adaptive_avg_pool2d(patches, self.spatial_pool).flatten(2).transpose(1, 2)
        aux = patches.new_zeros(*frame_mask.shape, self.hidden_size)
        aux[frame_mask] = patches.mean((2, 3))
        return FrameFeatures(z, aux)


class FrameEncoderList(nn.Module):
    """
    Several frame encoders, whose features are concatenated on d_v (reading 21).

    Args:
        encoders (`list[nn.Module]`):
            Frame encoders with equally many tokens a frame.
        aux_encoder (`nn.Module`, *optional*):
            Frame encoder that only gives the reference features; without it they are those of the first encoder that
            has any.

    Raises:
        ValueError: if there is no encoder, or their numbers of tokens differ.
    """

    def settings(self) -> dict:
        """What the features depend on besides the weights."""
        return {"class": type(self).__name__, "encoders": [encoder.settings() for encoder in self.encoders]}

    def __init__(self, encoders: list[nn.Module], aux_encoder: nn.Module | None = None):
        super().__init__()
        counts = [encoder.tokens_per_frame for encoder in encoders]
        if len(set(counts)) != 1:
            raise ValueError(
                f"the frame encoders give {counts} tokens a frame: it takes at least one encoder, and all with "
                "equally many tokens (`spatial_pool`), since their features are concatenated token by token"
            )
        self.encoders = nn.ModuleList(encoders)
        self.aux_encoder = aux_encoder
        self.tokens_per_frame = counts[0]
        self.uses_masks = any(encoder.uses_masks for encoder in encoders)
        self.hidden_size = sum(encoder.hidden_size for encoder in encoders)
        sizes = [encoder.aux_size for encoder in ([aux_encoder] if aux_encoder else encoders)]
        self.aux_size = next((size for size in sizes if size is not None), None)

    def forward(
        self,
        frames: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        keys: list[str] | None = None,
    ) -> FrameFeatures:
        r"""
        Encodes frames with every encoder.

        Args:
            frames (`torch.Tensor` of shape `(videos, T, 3, height, width)`):
                Frames, `uint8` or floating point from 0 to 1.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True for frames, false for the padding behind them.
            masks (`torch.Tensor` of shape `(videos, T, mask_height, mask_width)`, *optional*):
                Union of the objects' masks in each frame.
            keys (`list[str]`, *optional*):
                Keys that noise is drawn from, one for each video.

        Returns:
            [`FrameFeatures`].
        """
        features = [encoder(frames, frame_mask, masks, keys) for encoder in self.encoders]
        reference = [self.aux_encoder(frames, frame_mask, masks, keys)] if self.aux_encoder else features
        aux = next((each.aux for each in reference if each.aux is not None), None)
        return FrameFeatures(torch.cat([each.z for each in features], dim=-1), aux)


class FrameProjection(nn.Module):
    """
    The lightweight projection head g_phi of Eq. 9, z = g_phi(Pool(h)): a linear layer, GELU, a linear layer, behind a
    layer normalisation, since the scale of a diffusion model's activations depends on the block. It is what is learned
    of the video encoder (§III-B); encoders end before it, so that their features can be stored.

    Args:
        input_size (`int`):
            Size of the features of the frame encoder, its `hidden_size`.
        output_size (`int`):
            Size of z_t.

    Example:

    ```python
    >>> FrameProjection(8, 4)(torch.rand(2, 5, 1, 8)).shape
    torch.Size([2, 5, 1, 4])
    ```
    """

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(input_size)
        self.layers = nn.Sequential(nn.Linear(input_size, output_size), nn.GELU(), nn.Linear(output_size, output_size))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        r"""
        Projects pooled features.

        Args:
            pooled (`torch.Tensor` of shape `(..., input_size)`):
                Pool(h), the `z` of a frame encoder.

        Returns:
            `torch.Tensor` of shape `(..., output_size)`.
        """
        return self.layers(self.norm(pooled))
