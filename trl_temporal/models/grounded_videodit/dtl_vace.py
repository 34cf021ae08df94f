# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The object-conditioned diffusion video encoder of Grounded-VideoDiT (§III-B) on Wan and VACE, as diffusers has them.

A video is cut into K = 12 segments, each a sample of the batch with noise of its own (reading 8: VACE takes one noise
level for each sample; reading 9: this K is not that of the gate's persistence). Wan's VAE turns 1 + 4n frames into
1 + n latents and drops frames that do not fill the last four, so that a segment of 8 frames gets a ninth, its last
once more; frame t of a segment, counted from 0, is in latent ceil(t / 4). The latents x_0, normalised with the VAE's
statistics, are perturbed along the flow that Wan was trained on, alpha = 1 - sigma (Eq. 7, readings 4 and 7).

The condition c = (M, y_hl) are the masks of the objects (Eq. 6) and the embedding of one constant sentence, "highlight
the masked region" (reading 19), which is computed once elsewhere: Wan's text encoder has 5.7 billion parameters. h
(Eq. 8) is the activation behind block k with VACE's hint in it (reading 18), and Pool(h) (Eq. 9) the average over the
space of a latent frame, repeated for its frames (reading 17).

The model stops behind block k. The hint of a block is added when the block has returned, so that the input of what
follows is read: of the next block, or of `norm_out`.

This file travels to the Hub as remote code: torch and transformers only; diffusers is imported where it is needed, so
that a model with stored features loads without it. Letters in shapes: `T` frames, `segments` those of a video,
`length` frames of one with its padding, `t` its latent frames, `h`, `w` its latent height and width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .frame_encoders import FrameFeatures, check_frames, check_keys, check_sigmas, noise_from_key, segment_index

# Wan's timesteps for noise levels from 0 to 1 (`num_train_timesteps` of its schedulers).
TIMESTEPS = 1000
# Smaller frames have next to no latents: 32 pixels are 4, which the model joins to 2.
SMALLEST_SIDE = 32


def fold_mask(mask: torch.Tensor, size: int, num_latents: int) -> torch.Tensor:
    r"""
    Moves the pixels of a mask under each latent into channels, and takes the nearest frame for each latent frame, as
    VACE does.

    Args:
        mask (`torch.Tensor` of shape `(segments, length, height, width)`):
            Masks of 0 and 1.
        size (`int`):
            Pixels under a latent along each side, 8 for Wan.
        num_latents (`int`):
            Latent frames, t.

    Returns:
        `torch.Tensor` of shape `(segments, size * size, t, h, w)`.

    Example:

    ```python
    >>> fold_mask(torch.ones(12, 9, 32, 32), 8, 3).shape
    torch.Size([12, 64, 3, 4, 4])
    ```
    """
    folded = mask.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # segments, length, h, size, w, size
    folded = folded.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    return F.interpolate(folded, (num_latents, *folded.shape[3:]), mode="nearest-exact")


class VaceFrameEncoder(nn.Module):
    """
    Features of a frozen masked video diffusion model: perturbed latents (Eq. 7), the activations that E_theta answers
    with (Eq. 8), and their mean over space (Eq. 9).

    Args:
        vae (`diffusers.AutoencoderKLWan`):
            Makes latents of frames.
        transformer (`diffusers.WanVACETransformer3DModel`):
            Denoiser. For one noise level it may end behind the last of `blocks`, which saves half of it; for several
            it must be whole, as an Euler step needs its output.
        prompt_embeds (`torch.Tensor` of shape `(tokens, text_dim)`):
            Embedding of the sentence y_hl by Wan's text encoder (reading 19).
        blocks (`tuple[int, ...]`, *optional*):
            Blocks whose activations are read, counted from 0; several are concatenated (reading 18). The block in the
            middle of `transformer` by default, `num_layers // 2`.
        sigmas (`tuple[float, ...]`, *optional*, defaults to `(0.1,)`):
            Noise levels at which activations are read and averaged, falling; Euler steps lead from one to the next
            (readings 4 and 5). `cosine_sigmas(0.1, 4)` are the paper's.
        guidance_scale (`float`, *optional*, defaults to `1.0`):
            Classifier-free guidance of the Euler steps (reading 6). 1 is none, others double the cost.
        negative_prompt_embeds (`torch.Tensor` of shape `(tokens, text_dim)`, *optional*):
            Embedding of the empty sentence, for guidance.
        num_segments (`int`, *optional*, defaults to `12`):
            Segments of a video, K (reading 8); 1 takes the video as a whole.
        spatial_pool (`int`, *optional*, defaults to `1`):
            Side g of the grid that positions are averaged into: n_v = g * g tokens a frame (reading 17).

    Raises:
        ValueError: if there is no such block, a prompt does not fit, noise levels do not fall, or guidance has no step
            to act on.
    """

    uses_masks = True

    def __init__(
        self,
        vae: nn.Module,
        transformer: nn.Module,
        prompt_embeds: torch.Tensor,
        blocks: tuple[int, ...] | None = None,
        sigmas: tuple[float, ...] = (0.1,),
        guidance_scale: float = 1.0,
        negative_prompt_embeds: torch.Tensor | None = None,
        num_segments: int = 12,
        spatial_pool: int = 1,
    ):
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.transformer = transformer.eval().requires_grad_(False)
        num_layers = len(transformer.blocks)
        self.blocks = (num_layers // 2,) if blocks is None else tuple(blocks)
        if not self.blocks or not all(0 <= block < num_layers for block in self.blocks):
            raise ValueError(f"`blocks` are {self.blocks}, but the transformer has blocks 0 to {num_layers - 1}")
        self.sigmas = check_sigmas(sigmas)
        self.guidance_scale = guidance_scale
        if guidance_scale != 1 and (negative_prompt_embeds is None or len(self.sigmas) == 1):
            raise ValueError(
                f"`guidance_scale` {guidance_scale} needs `negative_prompt_embeds` and several `sigmas`: it acts on "
                "the steps between noise levels"
            )
        text_size = transformer.config.text_dim
        for name, prompt in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
            if prompt is not None and (prompt.ndim != 2 or prompt.shape[1] != text_size):
                raise ValueError(f"`{name}` must have shape (tokens, {text_size}), not {tuple(prompt.shape)}")
            self.register_buffer(name, prompt, persistent=False)
        for name in ("latents_mean", "latents_std"):
            values = torch.tensor(getattr(vae.config, name), dtype=torch.float32).view(1, -1, 1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.num_segments, self.spatial_pool = num_segments, spatial_pool
        self.tokens_per_frame = spatial_pool**2
        self.hidden_size = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.hidden_size *= len(self.blocks)
        self.aux_size = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str,
        prompt_embeds: torch.Tensor,
        blocks: tuple[int, ...] | None = None,
        sigmas: tuple[float, ...] = (0.1,),
        dtype: torch.dtype = torch.float32,
        **kwargs,
    ) -> "VaceFrameEncoder":
        r"""
        Loads Wan's VAE and VACE in the layout of diffusers, of the transformer only what is needed: of VACE 1.3B, with
        2154M parameters, 1116M for block 14.

        Args:
            pretrained (`str`):
                Folder or name on the Hub, such as `Wan-AI/Wan2.1-VACE-1.3B-diffusers`.
            prompt_embeds (`torch.Tensor` of shape `(tokens, text_dim)`):
                Embedding of the sentence y_hl.
            blocks (`tuple[int, ...]`, *optional*):
                Blocks whose activations are read; `num_layers // 2` of the whole model by default.
            sigmas (`tuple[float, ...]`, *optional*, defaults to `(0.1,)`):
                Noise levels. For several the transformer is loaded whole.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
                Type of the weights of the transformer; the VAE's are in float32.
            **kwargs:
                Other arguments of the class.

        Returns:
            [`VaceFrameEncoder`].

        Raises:
            ImportError: if diffusers is not installed.
            ValueError: if the weights do not fit.
        """
        vae = _diffusers().AutoencoderKLWan.from_pretrained(pretrained, subfolder="vae", torch_dtype=torch.float32)
        transformer, blocks = load_vace(pretrained, blocks, whole=len(sigmas) > 1, dtype=dtype)
        return cls(vae, transformer, prompt_embeds, blocks=blocks, sigmas=sigmas, **kwargs)

    def settings(self) -> dict:
        """What the features depend on besides the weights."""
        names = ("blocks", "sigmas", "guidance_scale", "num_segments", "spatial_pool")
        prompts = {"prompt_embeds": self.prompt_embeds}
        if self.negative_prompt_embeds is not None:
            prompts["negative_prompt_embeds"] = self.negative_prompt_embeds
        return {"class": type(self).__name__, **{name: vars(self)[name] for name in names}, **prompts}

    def train(self, mode: bool = True):
        """Training leaves the frozen models in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        self.transformer.eval()
        return self

    @torch.no_grad()
    def forward(
        self,
        frames: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        keys: list[str] | None = None,
    ) -> FrameFeatures:
        r"""
        Encodes videos, one after the other, the segments of each together. What stands in the padding does not matter,
        nor what else is in the batch.

        Args:
            frames (`torch.Tensor` of shape `(videos, T, 3, height, width)`):
                Frames, `uint8` or floating point from 0 to 1. They are resized to the nearest multiples of 16.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`, *optional*):
                True for frames, false for the padding behind them.
            masks (`torch.Tensor` of shape `(videos, T, mask_height, mask_width)`, *optional*):
                Union of the objects' masks in each frame, M_t (Eq. 6). VACE "regenerates" what they cover and keeps
                the rest. Without them, and for a video whose masks are empty in all frames, they cover everything,
                which is VACE's own behaviour; nothing would mean to keep everything.
            keys (`list[str]`):
                Keys that the noise is drawn from, one for each video.

        Returns:
            [`FrameFeatures`] without `aux`.

        Raises:
            ValueError: if shapes do not fit, frames are smaller than 32 pixels, or keys are missing.
        """
        frames, frame_mask = check_frames(frames, frame_mask, masks)
        keys = check_keys(keys, len(frames))
        z = frames.new_zeros(*frame_mask.shape, self.tokens_per_frame, self.hidden_size, dtype=torch.float32)
        for row, count in enumerate(frame_mask.sum(1).tolist()):
            mask = None if masks is None else masks[row, :count]
            z[row, :count] = self._encode_video(frames[row, :count], mask, keys[row])
        return FrameFeatures(z)

    def _encode_video(self, video, mask, key):
        """Features `(T, n_v, d_v)` of a video `(T, 3, height, width)` (Eq. 7-9)."""
        stride = self.vae.config.scale_factor_temporal  # frames of a latent frame, 4
        index = segment_index(len(video), self.num_segments)
        length = index.shape[1]
        index = F.pad(index[:, None].float(), (0, -(length - 1) % stride), mode="replicate")[:, 0].long()
        video, mask = self._fit(video, mask)
        pixels = (video * 2 - 1)[index.to(video.device)].transpose(1, 2)  # segments, 3, length, height, width
        mask = mask[index.to(mask.device)][:, None]

        clean = self._latents(pixels)
        folded = fold_mask(mask[:, 0], self.vae.config.scale_factor_spatial, clean.shape[2])
        condition = torch.cat([self._latents(pixels * (1 - mask)), self._latents(pixels * mask), folded], dim=1)
        noise = noise_from_key(key, tuple(clean.shape)).to(clean.device)

        state = (1 - self.sigmas[0]) * clean + self.sigmas[0] * noise  # Eq. 7
        total = 0.0
        for sigma, following in zip(self.sigmas, (*self.sigmas[1:], None), strict=True):
            hidden, velocity = self._denoise(state, sigma, condition, self.prompt_embeds)
            total = total + hidden
            if following is None:
                break
            if self.guidance_scale != 1:
                _, other = self._denoise(state, sigma, condition, self.negative_prompt_embeds)
                velocity = other + self.guidance_scale * (velocity - other)
            state = state + (following - sigma) * velocity
        pooled = self._pool(total / len(self.sigmas), clean.shape[2:])
        latent_of_frame = (torch.arange(length) + stride - 1) // stride  # ceil(t / 4)
        return pooled[:, latent_of_frame.to(pooled.device)].flatten(0, 1)[: index.max() + 1]

    def _fit(self, video, mask):
        """Frames and masks of 0 and 1 in a size that the model can cut into patches."""
        smallest = min(video.shape[2:])
        if smallest < SMALLEST_SIDE:
            raise ValueError(
                f"frames of {video.shape[2]} x {video.shape[3]} pixels are too small: resize them to {SMALLEST_SIDE} "
                "or more along each side"
            )
        multiple = self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]
        size = tuple(max(1, round(side / multiple)) * multiple for side in video.shape[2:])
        if size != tuple(video.shape[2:]):
            video = F.interpolate(video, size, mode="bilinear", antialias=True, align_corners=False)
        video = video.float()
        if mask is None or not (mask > 0.5).any():
            return video, video.new_ones(len(video), *size)
        mask = (mask > 0.5).to(video)
        return video, F.interpolate(mask[:, None], size, mode="nearest-exact")[:, 0]

    def _latents(self, pixels):
        """Normalised latents `(segments, channels, t, h, w)`."""
        latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - self.latents_mean) / self.latents_std

    def _denoise(self, state, sigma, condition, prompt):
        """Activations behind the blocks `(segments, positions, d_v)` (Eq. 8), and the velocity."""
        dtype = self.transformer.dtype
        captured = {}
        followers = [*self.transformer.blocks[1:], self.transformer.norm_out]
        handles = [
            followers[block].register_forward_pre_hook(
                lambda _, inputs, block=block: captured.update({block: inputs[0].float()})
            )
            for block in self.blocks
        ]
        try:
            velocity = self.transformer(
                hidden_states=state.to(dtype),
                timestep=torch.full((len(state),), sigma * TIMESTEPS, device=state.device),
                encoder_hidden_states=prompt.to(dtype).expand(len(state), *prompt.shape),
                control_hidden_states=condition.to(dtype),
                return_dict=False,
            )[0]
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([captured[block] for block in self.blocks], dim=-1), velocity.float()

    def _pool(self, hidden, latent_shape):
        """Averages over space: `(segments, t, n_v, d_v)` (Eq. 9)."""
        shape = [side // patch for side, patch in zip(latent_shape, self.transformer.config.patch_size, strict=True)]
        grid = hidden.unflatten(1, shape).permute(0, 1, 4, 2, 3)
        pooled = F.adaptive_avg_pool2d(grid.flatten(0, 1), self.spatial_pool).flatten(2).transpose(1, 2)
        return pooled.unflatten(0, grid.shape[:2])


def load_vace(
    pretrained: str,
    blocks: tuple[int, ...] | None = None,
    whole: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, tuple[int, ...]]:
    r"""
    Loads VACE up to the last block that is read. The blocks behind it are neither built nor loaded.

    Args:
        pretrained (`str`):
            Folder or name on the Hub, with the transformer in its subfolder `transformer`.
        blocks (`tuple[int, ...]`, *optional*):
            Blocks whose activations are read; `num_layers // 2` by default.
        whole (`bool`, *optional*, defaults to `False`):
            Whether to load all of it.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Type of its weights.

    Returns:
        The `diffusers.WanVACETransformer3DModel`, and the blocks that are read.

    Raises:
        ImportError: if diffusers is not installed.
        ValueError: if there is no such block or the weights do not fit.
    """
    diffusers = _diffusers()
    config = diffusers.WanVACETransformer3DModel.load_config(pretrained, subfolder="transformer")
    num_layers, vace_layers = config["num_layers"], list(config["vace_layers"])
    blocks = (num_layers // 2,) if blocks is None else tuple(blocks)
    if not blocks or not all(0 <= block < num_layers for block in blocks):
        raise ValueError(
            f"`blocks` are {blocks}, but the transformer of {pretrained} has blocks 0 to {num_layers - 1}"
        )
    kept = num_layers if whole else max(blocks) + 1
    hints = [layer for layer in vace_layers if layer < kept]
    left_out = [f"blocks.{i}." for i in range(kept, num_layers)]
    left_out += [f"vace_blocks.{i}." for i in range(len(hints), len(vace_layers))]
    # diffusers warns of weights that it finds no place for, by name. Here they are left out on purpose, and counted.
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        transformer, info = diffusers.WanVACETransformer3DModel.from_pretrained(
            pretrained,
            subfolder="transformer",
            num_layers=kept,
            vace_layers=hints,
            torch_dtype=dtype,
            output_loading_info=True,
        )
    finally:
        diffusers.logging.set_verbosity(verbosity)
    unknown = [name for name in info["unexpected_keys"] if not name.startswith(tuple(left_out))]
    if info["missing_keys"] or info["mismatched_keys"] or unknown:
        raise ValueError(
            f"the transformer of {pretrained} does not fit: missing {info['missing_keys'][:3]}, of another shape "
            f"{info['mismatched_keys'][:3]}, unknown {unknown[:3]}"
        )
    return transformer, blocks


def _diffusers():
    """The library, which the rest of the folder does without."""
    # All imports of it are in this one `try`: transformers refuses remote code of which any other import is missing,
    # inside functions too.
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "the frame encoder `vace` needs diffusers 0.42 or newer: pip install diffusers. Stored features need none."
        ) from error
    return diffusers
