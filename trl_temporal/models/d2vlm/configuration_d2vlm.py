# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Configuration of D2VLM. This file travels to the Hub as remote code: torch and transformers only."""

from typing import Literal, NamedTuple

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

PRESETS = {
    # The paper leaves the attention between frames open, and says nothing about ties.
    "paper": {"capture_layer": 6, "similarity_layer": -2, "video_attention": "causal", "interval_ties": "first"},
    # What the released checkpoints were trained and evaluated with.
    "d2vlm-release": {
        "capture_layer": 6,
        "similarity_layer": -2,
        "video_attention": "bidirectional",
        "salience_threshold": 0.6,
        "interval_ties": "span",
    },
}


class BackboneTraits(NamedTuple):
    """
    What has to be known of a family of video models of transformers to give it evidence tokens.

    Args:
        modality (`str`):
            How the family sees a video: `"video"`, or `"image"` where each frame is an image among the text. It is the
            key of `mm_encoder_outputs`.
        stacked (`bool`):
            Whether the model takes the features of several videos as one tensor; others take a list.
        tokens_behind (`int`):
            Tokens of a video behind those of its last frame, which belong to no frame.
        mrope (`bool`):
            Whether positions have three planes (time, height, width), made by the model's `get_rope_index`.
    """

    modality: str
    stacked: bool = False
    tokens_behind: int = 0
    mrope: bool = False


BACKBONES = {
    "internvl": BackboneTraits("image", stacked=True),
    "llava_onevision": BackboneTraits("video", stacked=True, tokens_behind=1),  # `image_newline`
    "qwen2_vl": BackboneTraits("video", mrope=True),
    "qwen2_5_vl": BackboneTraits("video", mrope=True),
    "qwen3_vl": BackboneTraits("video", mrope=True),
    "smolvlm": BackboneTraits("image"),
}


def backbone_traits(config: PreTrainedConfig) -> BackboneTraits:
    r"""
    The traits of a backbone.

    Args:
        config (`PreTrainedConfig`):
            Configuration of a video model of transformers.

    Returns:
        [`BackboneTraits`]

    Raises:
        ValueError: if the family is unknown.

    Example:

    ```python
    >>> from transformers import AutoConfig
    >>> backbone_traits(AutoConfig.for_model("qwen3_vl")).modality
    'video'
    ```
    """
    if config.model_type not in BACKBONES:
        raise ValueError(
            f"{config.model_type!r} is not among the backbones that are known to see videos and to take features "
            f"through `mm_encoder_outputs`: {', '.join(sorted(BACKBONES))}. Start from one of these, or see "
            "docs/backbones.md on how to add one."
        )
    return BACKBONES[config.model_type]


def sparse_attention(config: PreTrainedConfig) -> str | None:
    """Which layers of a language model do not see the whole sequence; `None` if all do."""
    text_config = config.get_text_config().to_dict()
    others = set(text_config.get("layer_types") or []) - {"full_attention"}
    if others:
        return ", ".join(sorted(others))
    has_window = text_config.get("sliding_window") and text_config.get("use_sliding_window", True)
    return "sliding_attention" if has_window else None


def check_backbone(config: PreTrainedConfig) -> None:
    """
    Refuses a backbone that cannot carry evidence tokens.

    Args:
        config (`PreTrainedConfig`):
            Configuration of a video model of transformers.

    Raises:
        ValueError: if the family is unknown, the model is quantized, or its attention has a sliding window.
    """
    backbone_traits(config)
    if config.to_dict().get("quantization_config") is not None:
        raise ValueError(
            "The backbone is quantized. The evidence rows of its embedding are trained and saved in full precision "
            "under names of their own, which quantized weights do not survive: load it unquantized, with a LoRA."
        )
    layers = sparse_attention(config)
    if layers is not None:
        raise ValueError(
            f"The language model has other layers than full attention ({layers}): they neither see the whole video "
            "nor take the mask of a shared prompt. Set `use_sliding_window=False` if the model was trained without "
            "the window, or use another backbone."
        )


class D2VLMConvStemConfig(PreTrainedConfig):
    r"""
    Configuration of the small convolutional frame encoder that is trained from scratch on EventWorld.

    Args:
        image_size (`int`, *optional*, defaults to `64`):
            Height and width of a frame in pixels; a multiple of `2 ** (len(channels) + 1)`.
        channels (`list[int]`, *optional*, defaults to `[32, 64, 128]`):
            Output channels of the convolutions: one of stride 4, then some of stride 2.
        hidden_size (`int`, *optional*, defaults to `128`):
            Size of the one feature vector per frame.
        num_temporal_layers (`int`, *optional*, defaults to `2`):
            Residual convolutions over time (kernel 3) after the spatial ones.
        difference_scale (`float`, *optional*, defaults to `2.0`):
            Factor on the differences to the previous and to the next frame, which enter as extra channels: without
            them the events of a moving object are close to invisible in single frames.
    """

    model_type = "d2vlm_conv_stem"
    base_config_key = "vision_config"

    image_size: int = 64
    channels: list[int] | tuple[int, ...] = (32, 64, 128)
    hidden_size: int = 128
    num_temporal_layers: int = 2
    difference_scale: float = 2.0


class D2VLMConfig(PreTrainedConfig):
    r"""
    Configuration of [`D2VLMForConditionalGeneration`] ([D2VLM](https://huggingface.co/papers/2512.24097)).

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of a video model of transformers that carries the evidence tokens, see
            [`D2VLMForConditionalGeneration.from_backbone`]. The next three are then its own and not given.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the language model; any decoder that `AutoModel` builds. Defaults to Phi-3.
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the vision tower: `blip_2_vision_model` (EVA ViT-G/14 of the paper, the default) or
            `d2vlm_conv_stem`.
        qformer_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the Q-Former of the compressor; InstructBLIP's by default. Unused with `d2vlm_conv_stem`,
            which yields one vector per frame.
        num_query_tokens (`int`, *optional*, defaults to `32`):
            Queries of the Q-Former.
        video_token_id (`int`, *optional*, defaults to `32010`):
            Id of the placeholder that stands once per frame, in a backbone once per token of a frame.
        evidence_token_id (`int`, *optional*, defaults to `32011`):
            Id of `<evi>`.
        evidence_end_token_id (`int`, *optional*, defaults to `32012`):
            Id of `</evi>`.
        capture_layer (`int`, *optional*, defaults to `6`):
            Number of decoder layers after which the frame states are read that `<evi>` tokens capture (§3.2).
        similarity_layer (`int`, *optional*, defaults to `-2`):
            Entry of `hidden_states` from which the similarity between `<evi>` and the frames is computed; `-2` is the
            input of the last decoder layer.
        video_attention (`str`, *optional*, defaults to `"causal"`):
            `"causal"`, or `"bidirectional"` to let the frames of a video see each other (released checkpoints).
        salience_threshold (`float`, *optional*, defaults to `0.6`):
            A frame is salient if its similarity is at least this share of the largest one.
        interval_ties (`str`, *optional*, defaults to `"first"`):
            Of several salient runs with the same mean similarity, answer with the `"first"`, or with the `"span"` from
            the first to the last of them, gaps included (released checkpoints).

    Example:

    ```python
    >>> D2VLMConfig.from_preset("d2vlm-release").video_attention
    'bidirectional'
    ```
    """

    model_type = "d2vlm"
    sub_configs = {
        "backbone_config": AutoConfig,
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "qformer_config": AutoConfig,
    }

    backbone_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    video_token_id: int = 32010
    evidence_token_id: int = 32011
    evidence_end_token_id: int = 32012
    capture_layer: int = 6
    similarity_layer: int = -2
    video_attention: Literal["causal", "bidirectional"] = "causal"
    salience_threshold: float = 0.6
    interval_ties: Literal["first", "span"] = "first"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.backbone_config is not None:
            self.backbone_config = _as_config(self.backbone_config, default=None)
            check_backbone(self.backbone_config)
            self.text_config = self.backbone_config.get_text_config()
            self.vision_config = self.qformer_config = None
        else:
            self._make_native_configs()
        if not 0 < self.capture_layer < self.text_config.num_hidden_layers:
            raise ValueError(
                f"`capture_layer` must lie between 1 and {self.text_config.num_hidden_layers - 1} (one less than the "
                f"language model's layers), got {self.capture_layer}."
            )
        super().__post_init__(**kwargs)

    def _make_native_configs(self) -> None:
        self.text_config = _as_config(self.text_config, default="phi3")
        self.vision_config = _as_config(self.vision_config, default="blip_2_vision_model")
        if self.vision_config.model_type == D2VLMConvStemConfig.model_type:
            self.qformer_config = None
        else:
            self.qformer_config = _as_config(self.qformer_config, default="instructblip_qformer")
            self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        if self.text_config.model_type == "phi3":
            # The released model was trained with full attention: its transformers version did not apply the window.
            self.text_config.sliding_window = None
        self.tie_word_embeddings = self.tie_word_embeddings or bool(self.text_config.tie_word_embeddings)

    def to_dict(self):
        output = super().to_dict()
        if self.backbone_config is not None:
            del output["text_config"]  # it is the backbone's
        return output

    @classmethod
    def from_preset(cls, preset: str, **kwargs) -> "D2VLMConfig":
        """The settings of `"paper"` or `"d2vlm-release"`; keyword arguments win."""
        if preset not in PRESETS:
            raise ValueError(f"There is no preset {preset!r}; the presets are {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[preset], **kwargs})


def _as_config(value: dict | PreTrainedConfig | None, default: str | None) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    value = dict(value or {})
    model_type = value.pop("model_type", default)
    if model_type == D2VLMConvStemConfig.model_type:
        return D2VLMConvStemConfig(**value)
    return CONFIG_MAPPING[model_type](**value)


__all__ = [
    "BACKBONES",
    "BackboneTraits",
    "D2VLMConfig",
    "D2VLMConvStemConfig",
    "backbone_traits",
    "check_backbone",
    "sparse_attention",
]
