# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Names of tensors in released D2VLM and E.T. Chat checkpoints, and ours for them."""

import re

VISION = "model.vision_tower.vision_tower."
BLOCK = f"{VISION}blocks.{{n}}."
QFORMER = "model.qformer_bert.bert."
QFORMER_LAYER = f"{QFORMER}encoder.layer.{{n}}."
OUR_VISION = "model.vision_tower."
OUR_BLOCK = f"{OUR_VISION}encoder.layers.{{n}}."
OUR_QFORMER = "model.compressor.qformer."
OUR_QFORMER_LAYER = f"{OUR_QFORMER}encoder.layer.{{n}}."

# How a name begins there, and how it begins here; `{n}` is the number of a layer. The first that fits counts.
BEGINNINGS = [
    ("lm_head.", "lm_head."),
    ("evi_head.", "model.evi_head."),
    ("frm_head.", "model.frame_head."),
    (f"{VISION}cls_token", f"{OUR_VISION}embeddings.class_embedding"),
    (f"{VISION}pos_embed", f"{OUR_VISION}embeddings.position_embedding"),
    (f"{VISION}patch_embed.proj.", f"{OUR_VISION}embeddings.patch_embedding."),
    (f"{BLOCK}norm1.", f"{OUR_BLOCK}layer_norm1."),
    (f"{BLOCK}norm2.", f"{OUR_BLOCK}layer_norm2."),
    (f"{BLOCK}attn.qkv.", f"{OUR_BLOCK}self_attn.qkv."),
    (f"{BLOCK}attn.proj.", f"{OUR_BLOCK}self_attn.projection."),
    (f"{BLOCK}mlp.", f"{OUR_BLOCK}mlp."),
    ("model.qformer_ln.", "model.compressor.memory_norm."),
    ("model.qformer_query", "model.compressor.query_tokens"),
    ("model.qformer_proj.", "model.compressor.query_to_vision."),
    ("model.qformer_q_proj.", "model.compressor.pool_query."),
    ("model.qformer_k_proj.", "model.compressor.pool_key."),
    ("model.qformer_v_proj.", "model.compressor.output."),
    (f"{QFORMER}embeddings.LayerNorm.", f"{OUR_QFORMER}embeddings.layernorm."),
    (f"{QFORMER_LAYER}attention.self.", f"{OUR_QFORMER_LAYER}attention.attention."),
    (f"{QFORMER_LAYER}crossattention.self.", f"{OUR_QFORMER_LAYER}crossattention.attention."),
    (QFORMER, OUR_QFORMER),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
]
# The vision tower there has biases for queries and values; here one for queries, keys (zero) and values.
SPLIT_BIAS = re.compile(rf"({re.escape(VISION)}blocks\.\d+\.attn\.)[qv]_bias")
JOINED_BIAS = re.compile(rf"{re.escape(OUR_VISION)}encoder\.layers\.\d+\.self_attn\.qkv\.bias")
# Final norm of our vision tower, which D2VLM passes by: it reads the output of the last block.
UNUSED = re.compile(rf"{re.escape(OUR_VISION)}post_layernorm\.(weight|bias)")
# What D2VLM has no place for, and why.
IGNORED = [
    (r"model\.qformer_bert\.cls\.", "word head of the Q-Former, which is never run"),
    (r"model\.qformer_bert\.bert\.embeddings\.position_ids$", "a constant: 0, 1, 2, ..."),
    (r".*\.rotary_emb\.inv_freq$", "computed from the configuration"),
    (r"vid_head\.", "matching head of E.T. Chat; D2VLM compares with evi_head"),
]


def _replace_beginning(name: str, pairs: list[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        match = re.match(re.escape(old).replace(r"\{n\}", r"(\d+)"), name)
        if match:
            return new.format(n=match[1] if match.groups() else None) + name[match.end() :]
    return None


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
    ours = _replace_beginning(name, BEGINNINGS)
    if ours is None:
        raise KeyError(f"{name!r} is no tensor of a D2VLM checkpoint: is this the right folder?")
    return ours


def rename_back(name: str) -> str:
    """
    The name in a released checkpoint of one of our tensors; the inverse of [`rename`].

    Args:
        name (`str`):
            Its name here.

    Returns:
        `str`: its name there.

    Raises:
        KeyError: if a released checkpoint has no such tensor.

    Example:

    ```python
    >>> rename_back("model.language_model.layers.3.self_attn.o_proj.weight")
    'model.layers.3.self_attn.o_proj.weight'
    ```
    """
    released = _replace_beginning(name, [(old, new) for new, old in BEGINNINGS])
    if released is None:
        raise KeyError(f"{name!r} has no place in a released D2VLM checkpoint.")
    return released


def ignored_reason(name: str) -> str | None:
    """Why a tensor of a released checkpoint is left out, or `None` if it is not."""
    return next((reason for pattern, reason in IGNORED if re.match(pattern, name)), None)
