# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What features of videos depend on: sampling, processor, vision tower and projector with their weights."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.d2vlm.configuration_d2vlm import backbone_traits
from ..models.d2vlm.modeling_d2vlm import D2VLMModel
from ..models.d2vlm.processing_d2vlm import D2VLMBackboneProcessor, D2VLMProcessor

# Parts of the key, and what messages call them.
PARTS = {
    "sampling": "sampling",
    "processor": "processor settings",
    "vision": "settings of the vision tower",
    "dtype": "dtype",
    "weights": "weights of the vision tower and the projector",
}
# Those of a frame encoder.
FRAME_PARTS = PARTS | {"vision": "settings of the frame encoder", "weights": "weights of the frame encoder"}


class FeatureCacheError(ValueError):
    """A cache that is not there or not of this run. The message names what differs and what to do."""


def vision_tensors(model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """
    The tensors that features of a video depend on: of the paper's D2VLM those of the vision tower (its Q-Former reads
    the question too and runs every time), of a model of transformers all but those of its decoder.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A D2VLM, or a model of a family in `BACKBONES`.

    Returns:
        `dict[str, torch.Tensor]`: parameters and buffers by name within the tower or the backbone, so that a model and
        the D2VLM made of it have the same.

    Raises:
        ValueError: if the family of the model is unknown.
    """
    part, decoder = vision_part(model)
    tensors = part.state_dict(keep_vars=True)
    if decoder is None:
        return tensors
    prefix = next(name for name, module in part.named_modules() if module is decoder) + "."
    return {name: value for name, value in tensors.items() if not name.startswith(prefix)}


def vision_part(model: PreTrainedModel | PeftModel) -> tuple[PreTrainedModel, torch.nn.Module | None]:
    """The part of a model with what encodes videos, and the decoder in it, if there is one."""
    base = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
    if isinstance(base, D2VLMModel) and not base.has_backbone:
        return base.vision_tower, None
    backbone = base.backbone if isinstance(base, D2VLMModel) else base
    backbone_traits(backbone.config)
    return backbone, backbone.get_decoder()


def feature_key(model: PreTrainedModel | PeftModel, processor, sampling: dict[str, Any]) -> dict[str, Any]:
    """
    What features depend on, for [`FeatureCache.open`]. It reads all weights of the vision tower, about a second for a
    gigabyte; whole ones, so call it before DeepSpeed or FSDP shards the model, or on one rank that tells the others.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        processor (`ProcessorMixin`):
            Its processor.
        sampling (`dict`):
            How frames are sampled: the `sampling` of a [`~trl_temporal.data.frame_cache.FrameCache`].

    Returns:
        `dict`: of JSON's types, with `sampling`, `processor`, `vision`, `dtype` and `weights`.

    Raises:
        FeatureCacheError: if the weights of the model are not loaded.

    Example:

    ```python
    >>> from trl_temporal.data.frame_cache import FrameCache
    >>> read_video = FrameCache(None, fps=1.0, size=None, max_frames=128)
    >>> key = feature_key(model, processor, read_video.sampling)  # doctest: +SKIP
    ```
    """
    tensors = vision_tensors(model)
    key = {
        "sampling": sampling,
        "processor": _processor_settings(processor),
        "vision": _vision_settings(vision_part(model)[0].config),
        "dtype": str(next(value.dtype for value in tensors.values() if value.is_floating_point()))[len("torch.") :],
        "weights": hash_tensors(tensors),
    }
    return json.loads(json.dumps(key))  # tuples as lists, as they come back from the file


def _processor_settings(processor) -> dict[str, Any]:
    """What decides pixels and placeholders; the same for a model and for the D2VLM made of it."""
    if isinstance(processor, D2VLMProcessor) and not isinstance(processor, D2VLMBackboneProcessor):
        names = ("image_size", "center_crop", "image_mean", "image_std")
        return {"class": "D2VLMProcessor", **{name: vars(processor)[name] for name in names}}
    stock = stock_processor(processor)
    settings = {**stock.to_dict(), **stock.video_processor.to_dict()}
    # Parts of their own, and who loads the file.
    others = {"image_processor", "tokenizer", "video_processor", "chat_template", "processor_class", "auto_map"}
    return {"class": type(stock).__name__, **{name: settings[name] for name in settings if name not in others}}


def _vision_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What of a tower or a backbone its weights do not show, without what is of text."""
    settings = config.to_dict()
    settings |= settings.pop("vision_config", {})
    others = {*PreTrainedConfig().to_dict(), "text_config", "use_cache"} - {"model_type"}
    return {
        name: value
        for name, value in settings.items()
        if name not in others and not name.endswith(("token_id", "token_index", "tie_word_embeddings"))
    }


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """Hash of named tensors: their names, types, shapes and values."""

    def digest(item: tuple[str, torch.Tensor]) -> str:
        name, value = item
        if value.is_meta or value.numel() == 0:
            raise FeatureCacheError(
                f"The weight {name} of the vision tower is not loaded here ({value.device}, {tuple(value.shape)}), so "
                "the features cannot be told apart from those of other weights. Call `feature_key` before DeepSpeed "
                "or FSDP shards the model, or on the rank that has it."
            )
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        return f"{name} {value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}"

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        lines = list(pool.map(digest, sorted(tensors.items())))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def stock_processor(processor):
    """The processor of transformers inside that of a D2VLM; another is its own."""
    return processor.backbone if isinstance(processor, D2VLMBackboneProcessor) else processor


def key_differences(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """
    In which parts two keys differ.

    Args:
        stored, asked (`dict`):
            Keys of [`feature_key`].

    Returns:
        `list[str]`: one entry a difference, `"sampling: fps 1.0 != 2.0"`. Weights of different types are not compared.

    Example:

    ```python
    >>> key = {"sampling": {"fps": 1.0}, "processor": {}, "vision": {}, "dtype": "float32", "weights": "5e1f"}
    >>> key_differences(key, {**key, "sampling": {"fps": 2.0}, "weights": "0c9a"})
    ['sampling: fps 1.0 != 2.0', 'weights of the vision tower and the projector']
    ```
    """
    differences = []
    names = FRAME_PARTS if "uses_masks" in asked["vision"] else PARTS
    for part in ("sampling", "processor", "vision"):
        ours, theirs = _flatten(stored[part]), _flatten(asked[part])
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                differences.append(f"{names[part]}: {name} {ours.get(name)!r} != {theirs.get(name)!r}")
    if stored["dtype"] != asked["dtype"]:
        differences.append(f"{names['dtype']}: {stored['dtype']} != {asked['dtype']}")
    elif stored["weights"] != asked["weights"]:
        differences.append(names["weights"])
    return differences


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


__all__ = ["FeatureCacheError", "feature_key", "hash_tensors", "key_differences", "stock_processor", "vision_tensors"]
