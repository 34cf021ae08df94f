# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Videos of a batch, encoded once: for all rows that show them, and for policy and reference alike."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..data.feature_key import vision_tensors
from ..models.d2vlm.configuration_d2vlm import BACKBONES
from ..models.d2vlm.modeling_d2vlm import D2VLMModel
from ..models.d2vlm.modeling_d2vlm_backbone import encode_videos
from .sharding import same_values


def vision_tower(model: PreTrainedModel) -> torch.nn.Module:
    """
    The vision tower of a model of transformers.

    Raises:
        ValueError: if it has none.
    """
    tower = model.get_encoder(modality="video")
    if tower in (model, model.base_model):  # what transformers returns where it finds none
        raise ValueError(
            f"{type(model).__name__} has no vision tower, so it cannot see a video. Use a video model, or the "
            "trainers of TRL for text."
        )
    return tower


def video_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    r"""
    The parameters that features of a video depend on.

    Args:
        model (`PreTrainedModel`):
            Model with or without its head, not a `PeftModel`.

    Returns:
        `dict`: by name, see [`~trl_temporal.data.feature_key.vision_tensors`]. Of a Grounded-VideoDiT, whose frozen
        encoders stay outside, those of its denoiser; of a family that is not known, those of the vision tower.

    Raises:
        ValueError: if the model has no vision tower.
    """
    if model.config.model_type == "grounded_videodit":
        return {name: value for name, value in model.base_model.named_parameters() if name.startswith("denoiser.")}
    if model.config.model_type not in (*BACKBONES, "d2vlm"):
        return dict(vision_tower(model).named_parameters())
    tensors = vision_tensors(model)
    return {name: value for name, value in tensors.items() if isinstance(value, torch.nn.Parameter)}


def same_video_parameters(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    """Whether two models make the same features of a video. To be called by all processes."""
    if first is second:
        return True
    ours, theirs = video_parameters(first), video_parameters(second)
    return ours.keys() == theirs.keys() and all(same_values(value, theirs[name]) for name, value in ours.items())


class SharedVideos:
    r"""
    Features of the videos of a batch.

    Args:
        trained (`bool`):
            Whether any of [`video_parameters`] is trained.
        kept (`bool`):
            Whether all models that ask make the same features: those of the last batch are then kept until
            [`SharedVideos.clear`].
        blank (`Callable`, *optional*):
            Gives the inputs of a video for batches without one, where all processes must run the same parts of the
            model; see [`~trl_temporal.trainer.blank_video.with_blank`].
    """

    def __init__(self, trained: bool, kept: bool, blank: Callable[[], dict] | None = None):
        self.trained, self.kept, self.blank = trained, kept, blank
        self.clear()

    def clear(self) -> None:
        self._pixels = self._features = None

    def has(self, inputs: dict[str, torch.Tensor]) -> bool:
        """Whether the features of these inputs are kept."""
        return any(value is self._pixels for name, value in inputs.items() if name.startswith("pixel_values"))

    def encode(self, base: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Features of the videos of a batch.

        Args:
            base (`PreTrainedModel`):
                A [`D2VLMModel`], or the base model of a family in `BACKBONES`.
            inputs (`dict[str, torch.Tensor]`):
                Inputs of the model, with `frame_mask` or `num_frames` that say how many frames each video has.

        Returns:
            Features and the number of entries of each video, see [`D2VLMModel.encode_videos`].
        """
        if "video_features" in inputs:
            return inputs["video_features"], inputs["num_video_features"]
        pixels = next(value for name, value in inputs.items() if name.startswith("pixel_values"))
        if self.has(inputs):
            return self._features
        # With gradient checkpointing and LoRA, transformers has the patches of some towers require gradients, and a
        # frozen tower would be kept for a backward pass that changes nothing.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained):
            if isinstance(base, D2VLMModel):
                videos = {name: value for name, value in inputs.items() if name.startswith(("pixel_", "video_grid"))}
                features = base.encode_videos(inputs["frame_mask"], **videos)
            else:
                features = encode_videos(base, inputs, inputs["num_frames"])
        if self.kept:
            self._pixels, self._features = pixels, features
        return features
