# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Names of the released D2VLM checkpoints in terms of ours."""

import re

import torch

# Released name (a regular expression) -> ours. The first match counts; biases of the fused q, k, v are joined apart.
RENAMES = [
    (r"lm_head\.", r"lm_head."),
    (r"evi_head\.", r"model.evi_head."),
    (r"frm_head\.", r"model.frame_head."),
    (r"model\.vision_tower\.vision_tower\.cls_token", r"model.vision_tower.embeddings.class_embedding"),
    (r"model\.vision_tower\.vision_tower\.pos_embed", r"model.vision_tower.embeddings.position_embedding"),
    (r"model\.vision_tower\.vision_tower\.patch_embed\.proj\.", r"model.vision_tower.embeddings.patch_embedding."),
    (
        r"model\.vision_tower\.vision_tower\.blocks\.(\d+)\.norm([12])\.",
        r"model.vision_tower.encoder.layers.\1.layer_norm\2.",
    ),
    (
        r"model\.vision_tower\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.",
        r"model.vision_tower.encoder.layers.\1.self_attn.qkv.",
    ),
    (
        r"model\.vision_tower\.vision_tower\.blocks\.(\d+)\.attn\.proj\.",
        r"model.vision_tower.encoder.layers.\1.self_attn.projection.",
    ),
    (r"model\.vision_tower\.vision_tower\.blocks\.(\d+)\.mlp\.", r"model.vision_tower.encoder.layers.\1.mlp."),
    (r"model\.qformer_ln\.", r"model.compressor.memory_norm."),
    (r"model\.qformer_query$", r"model.compressor.query_tokens"),
    (r"model\.qformer_proj\.", r"model.compressor.query_to_vision."),
    (r"model\.qformer_q_proj\.", r"model.compressor.pool_query."),
    (r"model\.qformer_k_proj\.", r"model.compressor.pool_key."),
    (r"model\.qformer_v_proj\.", r"model.compressor.output."),
    (r"model\.qformer_bert\.bert\.embeddings\.LayerNorm\.", r"model.compressor.qformer.embeddings.layernorm."),
    (
        r"model\.qformer_bert\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.",
        r"model.compressor.qformer.encoder.layer.\1.\2.attention.",
    ),
    (r"model\.qformer_bert\.bert\.", r"model.compressor.qformer."),
    (r"model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
]
QKV_BIAS = re.compile(r"(model\.vision_tower\.vision_tower\.blocks\.\d+\.attn\.)[qv]_bias")


def rename(name: str) -> str:
    """
    Our name of a tensor of a released checkpoint.

    Args:
        name (`str`):
            Its name there.

    Returns:
        `str`: its name here.

    Raises:
        KeyError: if the name is none of a D2VLM checkpoint.

    Example:

    ```python
    >>> rename("frm_head.0.weight")
    'model.frame_head.0.weight'
    ```
    """
    for pattern, replacement in RENAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    raise KeyError(f"{name!r} is no tensor of a D2VLM checkpoint: is this the right folder?")


def convert_state_dict(released: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of a released checkpoint under our names.

    Args:
        released (`dict[str, torch.Tensor]`):
            Full weights, without LoRA adapters.

    Returns:
        `dict[str, torch.Tensor]`: a state dict of [`D2VLMForConditionalGeneration`] without the vision tower's final
        norm, which neither model uses.

    Raises:
        KeyError: if a tensor is none of a D2VLM checkpoint, or half of a bias is missing.
    """
    converted = {}
    for name, tensor in released.items():
        bias = QKV_BIAS.fullmatch(name)
        if bias is None:
            converted[rename(name)] = tensor
        elif name.endswith("q_bias"):
            # The keys have no bias there: a constant on all keys drops out of the softmax.
            query, value = tensor, released[bias[1] + "v_bias"]
            converted[rename(bias[1] + "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    return converted
