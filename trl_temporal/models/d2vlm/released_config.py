# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The config.json of released D2VLM and E.T. Chat checkpoints in terms of ours, and back."""

import copy
import re
from collections.abc import Mapping

from transformers import Blip2VisionConfig, InstructBlipQFormerConfig, Phi3Config

from .configuration_d2vlm import D2VLMConfig
from .released_folder import ConversionError
from .released_names import QFORMER, VISION

# Neither of these can be read off the shapes of the tensors; the values are those of all released checkpoints.
VISION_HEADS = 16
QFORMER_HEADS = 12
# What a released config.json must say, where it says anything: there is no code for other values here.
REQUIRED = {
    "language_model": "phi3",
    "conv_type": "phi3",
    "vision_tower": "eva_vit",
    "vision_output_token": "patch",
    "mm_projector": "qformer",
}
PHI3_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "resid_pdrop",
    "embd_pdrop",
    "attention_dropout",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def is_d2vlm(settings: dict) -> bool:
    """Whether a released config.json is that of D2VLM. That of E.T. Chat, of the same type, has no evidence tokens."""
    return bool(settings.get("use_evidence")) or settings.get("evidence_token_id") is not None


def released_settings(released: dict) -> dict:
    """A released config.json's settings of the language model, which may stand in a dict `"model_config"`."""
    return released.get("model_config", released)


def convert_config(
    released: dict, shapes: Mapping[str, tuple[int, ...]], token_ids: Mapping[str, int] | None = None
) -> D2VLMConfig:
    """
    Our configuration of a released checkpoint, by the preset `d2vlm-release`.

    Args:
        released (`dict`):
            Its config.json. What is not in there (sizes of the vision tower and the Q-Former) is read off the shapes;
            an optional `"vision"` or `"qformer"` dict can give `"heads"`, which cannot. Settings of the language model
            may also stand in a dict `"model_config"`, and ids in `"special_ids"`.
        shapes (`Mapping[str, tuple[int, ...]]`):
            Shape of each tensor by its released name.
        token_ids (`Mapping[str, int]`, *optional*):
            Ids of `<video>`, `<evi>` and `</evi>`. Those not given are taken from the configuration; `<video>` is then
            the first id without a row in the embedding, since it needs none.

    Returns:
        [`D2VLMConfig`]

    Raises:
        ConversionError: if the configuration is not that of an E.T. Chat or D2VLM checkpoint, or one that the released
            code cannot run.
    """
    vision, qformer = released.get("vision", {}), released.get("qformer", {})
    token_ids = {**released.get("special_ids", {}), **(token_ids or {})}
    released = copy.deepcopy(released_settings(released))
    check_config(released)
    evidence = token_ids.get("<evi>", released.get("evidence_token_id"))
    evidence_end = token_ids.get("</evi>", released.get("evidence_end_token_id"))
    if evidence is None or evidence_end is None:
        raise ConversionError("config.json has no `evidence_token_id`, and no ids of <evi> and </evi> were given.")
    try:
        return D2VLMConfig.from_preset(
            "d2vlm-release",
            text_config=_text_config(released),
            vision_config=_vision_config(shapes, vision),
            qformer_config=_qformer_config(shapes, qformer),
            num_query_tokens=_shape(shapes, "model.qformer_query")[1],
            video_token_id=token_ids.get("<video>", released["vocab_size"]),
            evidence_token_id=evidence,
            evidence_end_token_id=evidence_end,
            video_attention="bidirectional" if released.get("bi_attention") else "causal",
        )
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"config.json does not describe a model: {error}") from error


def check_config(released: dict) -> None:
    """
    Refuses what is no config.json of D2VLM or E.T. Chat, and what the released code cannot run.

    Raises:
        ConversionError: if it finds such a thing.
    """
    model_type = released.get("model_type")
    if model_type != "etchat_phi3":
        raise ConversionError(
            f"config.json has `model_type` {model_type!r}, not 'etchat_phi3': pass the folder of a D2VLM or E.T. Chat "
            "checkpoint."
        )
    if "vocab_size" not in released:
        raise ConversionError("config.json has no `vocab_size`: it is cut off, download it again.")
    for name, value in REQUIRED.items():
        if released.get(name, value) != value:
            raise ConversionError(
                f"config.json has `{name}` {released[name]!r}; only {value!r} can be converted, as in all released "
                "checkpoints."
            )
    if released.get("use_time_tag"):
        raise ConversionError(
            "config.json has `use_time_tag` true: the released code crashes with it on videos of more than one frame, "
            "so no such checkpoint was trained. If the flag was set by mistake, set it to false."
        )


def _text_config(released: dict) -> Phi3Config:
    rope = {name: released[name] for name in ("rope_theta", "partial_rotary_factor") if name in released}
    scaling = dict(released.get("rope_scaling") or {})
    if scaling:
        scaling.pop("type", None)  # "longrope", or "su" in older files: there is no other for Phi-3
        rope.update(scaling, rope_type="longrope")
    return Phi3Config(**{name: released[name] for name in PHI3_FIELDS if name in released}, rope_parameters=rope)


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ConversionError(
            f"The checkpoint has no tensor {name!r}. Is it one of D2VLM or E.T. Chat, and are all its files there?"
        )
    return tuple(shapes[name])


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Number of layers whose names are `prefix` and a number."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, shapes) if match), default=-1)


def _vision_config(shapes: Mapping[str, tuple[int, ...]], given: dict) -> Blip2VisionConfig:
    hidden_size, _, _, patch_size = _shape(shapes, f"{VISION}patch_embed.proj.weight")
    num_patches = _shape(shapes, f"{VISION}pos_embed")[1] - 1
    heads = given.get("heads", VISION_HEADS)
    _check_heads("vision", "vision tower", hidden_size, heads)
    return Blip2VisionConfig(
        hidden_size=hidden_size,
        intermediate_size=_shape(shapes, f"{VISION}blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=_count(shapes, f"{VISION}blocks."),
        num_attention_heads=heads,
        image_size=round(num_patches**0.5) * patch_size,
        patch_size=patch_size,
        layer_norm_eps=given.get("layer_norm_eps", 1e-6),
        hidden_act="gelu",
        qkv_bias=f"{VISION}blocks.0.attn.q_bias" in shapes,
    )


def _qformer_config(shapes: Mapping[str, tuple[int, ...]], given: dict) -> InstructBlipQFormerConfig:
    vocab_size, hidden_size = _shape(shapes, f"{QFORMER}embeddings.word_embeddings.weight")
    num_layers = _count(shapes, f"{QFORMER}encoder.layer.")
    cross = [i for i in range(num_layers) if f"{QFORMER}encoder.layer.{i}.crossattention.self.query.weight" in shapes]
    frequency = cross[1] if len(cross) > 1 else num_layers
    if cross != [*range(0, num_layers, frequency)]:
        raise ConversionError(
            f"The Q-Former has cross-attention in layers {cross} of {num_layers}; it must start in layer 0 and come "
            "at even distances. Is a tensor missing?"
        )
    heads = given.get("heads", QFORMER_HEADS)
    _check_heads("qformer", "Q-Former", hidden_size, heads)
    return InstructBlipQFormerConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        intermediate_size=_shape(shapes, f"{QFORMER}encoder.layer.0.intermediate.dense.weight")[0],
        max_position_embeddings=_shape(shapes, f"{QFORMER}embeddings.position_embeddings.weight")[0],
        layer_norm_eps=given.get("layer_norm_eps", 1e-12),
        cross_attention_frequency=frequency,
    )


def _check_heads(key: str, what: str, hidden_size: int, heads: int) -> None:
    if hidden_size % heads:
        raise ConversionError(
            f"The {what} is {hidden_size} wide, which {heads} attention heads do not divide, and the tensors do not "
            f'tell their number: add "{key}": {{"heads": ...}} to config.json.'
        )


def config_to_released(config: D2VLMConfig) -> dict:
    """
    The config.json of the released code for one of our models; the inverse of [`convert_config`].

    Args:
        config ([`D2VLMConfig`]):
            Our configuration. If the model was converted, its `released_config` is the starting point.

    Returns:
        `dict`

    Raises:
        ConversionError: if the released code has no such model.
    """
    if config.vision_config.model_type != "blip_2_vision_model" or config.text_config.model_type != "phi3":
        raise ConversionError(
            f"The model has the vision tower {config.vision_config.model_type!r} and the language model "
            f"{config.text_config.model_type!r}; the released code runs 'blip_2_vision_model' with 'phi3' only."
        )
    for name, value in {"capture_layer": 6, "similarity_layer": -2}.items():
        if getattr(config, name) != value:
            raise ConversionError(
                f"The model has `{name}` {getattr(config, name)}; the released code has {value} built in and would "
                "compute something else."
            )
    converted_from = config.to_dict().get("released_config")
    released = copy.deepcopy(converted_from) if converted_from else _new_released_config(config)
    settings = released_settings(released)
    settings.update(
        vocab_size=config.text_config.vocab_size,
        evidence_token_id=config.evidence_token_id,
        evidence_end_token_id=config.evidence_end_token_id,
        use_evidence=True,
        use_matching=False,
        bi_attention=config.video_attention == "bidirectional",
    )
    # What D2VLM's training script adds to a config.json of E.T. Chat.
    for name, value in {"arch_module": "d2vlm_arch", "consistency_loss": True, "full_question": False}.items():
        settings.setdefault(name, value)
    return released


def _new_released_config(config: D2VLMConfig) -> dict:
    """For a model that was not converted from a released one."""
    text, vision, qformer = config.text_config, config.vision_config, config.qformer_config
    rope = text.rope_parameters
    scaling = {name: rope[name] for name in ("short_factor", "long_factor") if name in rope}
    released = {
        **{name: getattr(text, name) for name in PHI3_FIELDS},
        **REQUIRED,
        "architectures": ["ETChatPhi3ForCausalLM"],
        "model_type": "etchat_phi3",
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "longrope", **scaling} if scaling else None,
        "sliding_window": None,
        "vision_processor": f"clip_center_{vision.image_size}",
        "vision_output_layer": vision.num_hidden_layers - 41,  # counted from the end of the 40 blocks of EVA ViT-G
        "use_time_tag": False,
        "alpha": 2.0,
        "load_base_models": False,
        "pretrain_vision_tower": None,
        "pretrain_qformer": None,
        "pretrain_projector": None,
    }
    if rope["rope_type"] == "longrope":
        released["rope_scaling"] = {
            "type": "longrope",
            **{name: rope[name] for name in ("short_factor", "long_factor")},
        }
    if vision.num_attention_heads != VISION_HEADS:
        released["vision"] = {"heads": vision.num_attention_heads}
    if qformer.num_attention_heads != QFORMER_HEADS:
        released["qformer"] = {"heads": qformer.num_attention_heads}
    return released
