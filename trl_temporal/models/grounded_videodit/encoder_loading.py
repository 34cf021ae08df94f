# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The frozen frame encoders of a configuration. This file travels to the Hub: torch and transformers only.

They are named in the configuration and not saved with the model: a user who has stored features needs none of them.
"""

import os

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, UMT5EncoderModel
from transformers.utils import cached_file

from .configuration_grounded_videodit import GroundedVideoDiTConfig
from .dtl_vace import VaceFrameEncoder
from .frame_encoders import ClipFrameEncoder, FrameEncoderList

# y_hl of Eq. 8 (reading 19): "highlight the masked region". It is the same for all videos, so that its embedding is
# made once, by an encoder of 5.7 billion parameters, and never loaded again.
PROMPT = "highlight the masked region"
PROMPT_FILE = "prompt_embeds.safetensors"
PROMPT_TOKENS = 512


def load_frame_encoder(
    config: GroundedVideoDiTConfig, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> FrameEncoderList:
    r"""
    Loads the frozen encoders that a model takes features of.

    Args:
        config ([`GroundedVideoDiTConfig`]):
            Configuration of the model, with `clip_config` or `vace_config`. Besides `name` and `hidden_size` these
            hold arguments of [`ClipFrameEncoder`] and [`VaceFrameEncoder.from_pretrained`]; that of VACE also
            `prompt_embeds`, a file of [`embed_prompt`].
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Device of the encoders.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Type of their weights.

    Returns:
        [`FrameEncoderList`]: the encoders of `config.frozen_encoders`, with features of size `config.frozen_size`.

    Raises:
        ImportError: if `"vace"` is among them and diffusers is not installed.
        ValueError: if the encoders have features of another size than the configuration says.

    Example:

    ```python
    >>> encoder = load_frame_encoder(model.config, device="cuda")  # doctest: +SKIP
    >>> encoder(frames).z.shape  # doctest: +SKIP
    torch.Size([1, 96, 1, 1024])
    ```
    """
    encoders = []
    for name in config.frozen_encoders:
        settings = dict(config.clip_config if name == "clip" else config.vace_config)
        pretrained, size = settings.pop("name"), settings.pop("hidden_size")
        settings["spatial_pool"] = config.grid_side
        if name == "clip":
            encoder = ClipFrameEncoder(_load_tower(pretrained, dtype), **settings)
        else:
            prompt = _load_prompt(settings.pop("prompt_embeds", None), pretrained)
            encoder = VaceFrameEncoder.from_pretrained(pretrained, prompt, dtype=dtype, **settings)
        if encoder.hidden_size != size:
            raise ValueError(
                f"the encoder {name!r} of {pretrained} has features of size {encoder.hidden_size}, but the "
                f"configuration says `hidden_size` {size}: mend `{name}_config`"
            )
        encoders.append(encoder)
    return FrameEncoderList(encoders).to(device)


def embed_prompt(pretrained: str, output: str | os.PathLike, prompt: str = PROMPT) -> None:
    r"""
    Writes the embedding of the sentence that conditions VACE. It loads Wan's text encoder, 11 GB in bfloat16; once is
    enough for all videos.

    Args:
        pretrained (`str`):
            Folder or name on the Hub, such as `Wan-AI/Wan2.1-VACE-1.3B-diffusers`.
        output (`str` or `os.PathLike`):
            File to write, for `prompt_embeds` in `vace_config`.
        prompt (`str`, *optional*, defaults to `"highlight the masked region"`):
            The sentence.
    """
    tokenizer = AutoTokenizer.from_pretrained(pretrained, subfolder="tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(pretrained, subfolder="text_encoder", dtype=torch.bfloat16)
    inputs = tokenizer([prompt], max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embeds = encoder(**inputs).last_hidden_state[0].float()
    # As in Wan's pipelines, zeros follow up to a fixed length.
    embeds = torch.nn.functional.pad(embeds, (0, 0, 0, PROMPT_TOKENS - len(embeds)))
    save_file({"prompt_embeds": embeds}, output)


def _load_tower(pretrained: str, dtype: torch.dtype):
    """The vision tower of a model of images, or of images and text."""
    config = AutoConfig.from_pretrained(pretrained)
    tower = AutoModel.from_pretrained(pretrained, dtype=dtype)
    return tower.vision_model if "vision_config" in config.sub_configs else tower


def _load_prompt(file: str | None, pretrained: str) -> torch.Tensor:
    """The embedding of the sentence y_hl: a file of its own, or one beside the model."""
    if file is None:
        file = cached_file(pretrained, PROMPT_FILE, _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise ValueError(
            f"{pretrained} has no {PROMPT_FILE}: write it once with `embed_prompt({pretrained!r}, FILE)`, and name "
            "the file as `prompt_embeds` in `vace_config`"
        )
    return load_file(file)["prompt_embeds"]


__all__ = ["embed_prompt", "load_frame_encoder"]
