# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Videos of the models of transformers, encoded once: whoever needs the features again passes them on.

This file travels to the Hub as remote code: torch and transformers only. Letters in shapes: `rows` sequences, `videos`
videos, `L` tokens of a row, `N` video tokens of all videos, `H` hidden size, `D` layers with features of their own.
"""

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from .configuration_d2vlm import backbone_traits


@dataclass
class EncoderOutput(ModelOutput):
    """
    What the models of transformers take as an entry of `mm_encoder_outputs`.

    Args:
        pooler_output (`torch.Tensor` or `list[torch.Tensor]`):
            Features as they enter the language model.
        deepstack_features (`list[list[torch.Tensor]]`):
            Features that are added behind its first layers (Qwen3-VL).
    """

    pooler_output: torch.Tensor | list[torch.Tensor] | None = None
    deepstack_features: list[list[torch.Tensor]] | None = None


def _encoder(backbone: PreTrainedModel):
    image = backbone_traits(backbone.config).modality == "image"
    return backbone.get_image_features if image else backbone.get_video_features


def _grid_names(backbone: PreTrainedModel) -> list[str]:
    """Inputs that positions of videos are made of."""
    if not backbone_traits(backbone.config).mrope:
        return []
    known = inspect.signature(backbone.get_rope_index).parameters
    return [name for name in ("video_grid_thw", "second_per_grid_ts") if name in known]


def video_input_names(backbone: PreTrainedModel) -> set[str]:
    r"""
    Inputs that features and positions of videos are made of.

    Args:
        backbone (`PreTrainedModel`):
            Base model of a family in `BACKBONES`.

    Returns:
        `set[str]`: of what its processor makes, what is read.
    """
    parameters = inspect.signature(_encoder(backbone)).parameters.values()
    return {each.name for each in parameters if each.kind != each.VAR_KEYWORD} | set(_grid_names(backbone))


def encode_videos(
    backbone: PreTrainedModel, inputs: dict[str, torch.Tensor], num_frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Runs the vision tower and the projector of a backbone.

    Args:
        backbone (`PreTrainedModel`):
            Base model of a family in `BACKBONES`, such as `Qwen3VLModel`.
        inputs (`dict[str, torch.Tensor]`):
            What its processor made of the videos; other entries are not read.
        num_frames (`torch.LongTensor` of shape `(videos,)`):
            Frames of each video, as the model merges them.

    Returns:
        Features of shape `(1 + D, N, H)`, video after video, and the number of tokens of each, `(videos,)`.
    """
    encode = _encoder(backbone)
    known = inspect.signature(encode).parameters
    output = encode(**{name: value for name, value in inputs.items() if name in known}, return_dict=True)
    pooled = output.pooler_output
    if torch.is_tensor(pooled):
        if len(pooled) != len(num_frames):  # an entry for each frame
            pooled = torch.split(pooled, num_frames.tolist())
        pooled = [video.flatten(0, -2) for video in pooled]
    planes = [pooled, *output.get("deepstack_features", [])]
    num_tokens = torch.tensor([len(video) for video in pooled], device=num_frames.device)
    return torch.stack([torch.cat(list(plane)) for plane in planes]), num_tokens


def features_of_rows(features: torch.Tensor, num_tokens: torch.Tensor, video_index: torch.Tensor) -> torch.Tensor:
    r"""
    Features in the order in which rows show them, those of a shared video several times.

    Args:
        features (`torch.Tensor` of shape `(1 + D, N, H)`):
            Of [`encode_videos`].
        num_tokens (`torch.LongTensor` of shape `(videos,)`):
            Of [`encode_videos`].
        video_index (`torch.LongTensor` of shape `(rows,)`):
            Video of each row, -1 for none.

    Returns:
        `torch.Tensor` of shape `(1 + D, N', H)`.

    Example:

    ```python
    >>> features = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> features_of_rows(features, torch.tensor([2, 1]), torch.tensor([1, -1, 0, 0])).flatten().tolist()
    [3.0, 1.0, 2.0, 1.0, 2.0]
    ```
    """
    shown = video_index[video_index >= 0]
    counts = num_tokens[shown]
    start_of_video, start_of_row = num_tokens.cumsum(0)[shown] - counts, counts.cumsum(0) - counts
    shift = torch.repeat_interleave(start_of_video - start_of_row, counts)
    return features[:, torch.arange(len(shift), device=features.device) + shift]


def mm_encoder_outputs(backbone: PreTrainedModel, features: torch.Tensor) -> dict[str, EncoderOutput]:
    r"""
    Features as a backbone takes them, instead of pixels.

    Args:
        backbone (`PreTrainedModel`):
            Base model of a family in `BACKBONES`.
        features (`torch.Tensor` of shape `(1 + D, N, H)`):
            One for every video token of the rows, in order.

    Returns:
        `dict`: the argument `mm_encoder_outputs` of one forward, which writes into it.

    Raises:
        ValueError: if the backbone does not take it.
    """
    if "mm_encoder_outputs" not in inspect.signature(backbone.forward).parameters:
        raise ValueError(
            f"{type(backbone).__name__} does not take `mm_encoder_outputs`, so the features of a video cannot be "
            "passed to it: it would answer blind. Use another backbone."
        )
    traits = backbone_traits(backbone.config)
    first = features[0]
    output = EncoderOutput(
        pooler_output=first[None] if traits.stacked else [first],
        deepstack_features=[[plane] for plane in features[1:]],
    )
    return {traits.modality: output}


def backbone_positions(
    backbone: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    is_video: torch.Tensor,
    video_index: torch.Tensor | None,
    inputs: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""
    Positions of plain rows, one response each, as the backbone makes them.

    Args:
        backbone (`PreTrainedModel`):
            Base model of a family in `BACKBONES`.
        input_ids, attention_mask (`torch.LongTensor` of shape `(rows, L)`):
            The rows.
        is_video (`torch.BoolTensor` of shape `(rows, L)`):
            Tokens of videos.
        video_index (`torch.LongTensor` of shape `(rows,)`, *optional*):
            Video of each row, -1 for none.
        inputs (`dict[str, torch.Tensor]`):
            What the processor made of the videos, each once.

    Returns:
        Positions of shape `(rows, L)`, or `(3, rows, L)` with three planes; then also by how much the position of a
        token that follows differs from its number, `(rows, 1)`.

    Raises:
        ValueError: if what the positions are made of is missing.
    """
    if not backbone_traits(backbone.config).mrope:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0), None
    videos = {}
    if video_index is not None:
        shown = video_index[video_index >= 0]
        missing = [name for name in _grid_names(backbone) if name not in inputs]
        if missing:
            raise ValueError(f"`{missing[0]}` is missing: the processor of the model makes it.")
        videos = {name: inputs[name][shown] for name in _grid_names(backbone)}
    return backbone.get_rope_index(
        input_ids, mm_token_type_ids=2 * is_video.int(), attention_mask=attention_mask, **videos
    )


__all__ = [
    "EncoderOutput",
    "backbone_positions",
    "encode_videos",
    "features_of_rows",
    "mm_encoder_outputs",
    "video_input_names",
]
