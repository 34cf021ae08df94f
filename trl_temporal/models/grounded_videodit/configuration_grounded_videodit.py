# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Grounded-VideoDiT. This file travels to the Hub as remote code: torch and transformers only."""

import math
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

FRAME_ENCODERS = ("clip", "vace", "dtl_feature")
GROUNDING_HEADS = ("span", "evidence", "time_tokens")


class GroundedVideoDiTConfig(PreTrainedConfig):
    r"""
    Configuration of [`GroundedVideoDiTForConditionalGeneration`]
    ([Grounded-VideoDiT](https://huggingface.co/papers/2508.15641)). "Reading" numbers are the rows of the table of
    ambiguities in the documentation.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the language model; any decoder that `AutoModel` builds. Defaults to Phi-3.
        frame_encoders (`list[str]`, *optional*, defaults to `["vace"]`):
            What z_t is made of, concatenated: `"clip"`, a frozen vision tower; `"vace"`, activations of a frozen video
            diffusion model; `"dtl_feature"`, the latents of a small denoiser over the tower's features (readings 16
            and 21).
        clip_config (`dict`, *optional*):
            The vision tower, which is not part of the model: `name` (folder or name on the Hub), `hidden_size`, and
            optionally other arguments of [`ClipFrameEncoder`]. Needed for `"clip"`, `"dtl_feature"` and `use_kl`.
        vace_config (`dict`, *optional*):
            The diffusion model, which is not part of the model either: `name`, `hidden_size`, and optionally other
            arguments of [`VaceFrameEncoder.from_pretrained`].
        dtl_config (`dict`, *optional*):
            Arguments of [`DtlDenoiser`] for `"dtl_feature"`, which is part of the model; its size comes from
            `clip_config`.
        tokens_per_frame (`int`, *optional*, defaults to `1`):
            Places of a frame that the frozen encoders give features of, a square number. A frame's token is made of
            their mean; object tokens of those that an object covers.
        feature_size (`int`, *optional*, defaults to `1024`):
            Size of z_t behind the projection g_phi (Eq. 9).
        temporal_embedding (`str`, *optional*, defaults to `"sinusoidal"`):
            e_time: `"sinusoidal"` (Eq. 11), `"mlp"` (Eq. 12) or `"none"`.
        time_embedding_size (`int`, *optional*, defaults to `256`):
            Size of e_time.
        temporal_embedding_base (`float`, *optional*, defaults to `10000.0`):
            Base of the wavelengths of Eq. 11 (reading 1).
        time_scale (`str` or `float`, *optional*, defaults to `"frames"`):
            What normalised times are multiplied by in Eq. 11 (reading 2).
        num_object_tokens (`int`, *optional*, defaults to `4`):
            Tokens of tracked objects; 0 for none (reading 24).
        num_time_anchors (`int`, *optional*, defaults to `8`):
            Learned tokens between the frames; 0 for none (reading 24).
        grounding_head (`str` or `list[str]`, *optional*, defaults to `"span"`):
            What answers "when": `"span"`, the start/end head (Eq. 15 and 16); `"evidence"`, the similarity of `<evi>`
            tokens and frames (D2VLM); `"time_tokens"`, words of the answer. Of several, the first one is reported
            (reading 22).
        span_head_context (`str`, *optional*, defaults to `"bi_layer"`):
            Whether one bidirectional layer over the frames' states precedes the start/end head: `"bi_layer"` or
            `"none"` (reading 26).
        salience_threshold (`float`, *optional*, defaults to `0.6`):
            With `"evidence"`: a frame is salient if its similarity is at least this share of the largest one.
        use_kl (`bool`, *optional*, defaults to `False`):
            Whether the model has the regularisation of Eq. 17 to 20. Its weight is the trainer's.
        kl_temperature (`float`, *optional*, defaults to `1.0`):
            What features are divided by before their softmax (reading 28).
        kl_direction (`str`, *optional*, defaults to `"diff_aux"`):
            `"diff_aux"` as printed, or `"aux_diff"` (reading 28).
        num_time_steps (`int`, *optional*, defaults to `300`):
            With `"time_tokens"`: steps of the duration; there is one token more (reading 23).
        time_token_start_id (`int`, *optional*):
            With `"time_tokens"`: id of the first one; the others follow.
        video_token_id (`int`, *optional*, defaults to `32010`):
            Id of the placeholder that stands once for each token of the video.
        evidence_token_id (`int`, *optional*, defaults to `32011`):
            Id of `<evi>`.

    Raises:
        `ValueError`: settings that do not go together.

    Example:

    ```python
    >>> config = GroundedVideoDiTConfig(
    ...     frame_encoders=["clip", "dtl_feature"],
    ...     clip_config={"name": "openai/clip-vit-large-patch14", "hidden_size": 1024},
    ...     dtl_config={"width": 256},
    ... )
    >>> config.frozen_encoders, config.frozen_size, config.encoder_size
    (['clip'], 1024, 1280)
    ```
    """

    model_type = "grounded_videodit"
    sub_configs = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    frame_encoders: list[str] | tuple[str, ...] = ("vace",)
    clip_config: dict[str, Any] | None = None
    vace_config: dict[str, Any] | None = None
    dtl_config: dict[str, Any] | None = None
    tokens_per_frame: int = 1
    feature_size: int = 1024
    temporal_embedding: str = "sinusoidal"
    time_embedding_size: int = 256
    temporal_embedding_base: float = 10000.0
    time_scale: str | float = "frames"
    num_object_tokens: int = 4
    num_time_anchors: int = 8
    grounding_head: str | list[str] | tuple[str, ...] = "span"
    span_head_context: str = "bi_layer"
    salience_threshold: float = 0.6
    use_kl: bool = False
    kl_temperature: float = 1.0
    kl_direction: str = "diff_aux"
    num_time_steps: int = 300
    time_token_start_id: int | None = None
    video_token_id: int = 32010
    evidence_token_id: int = 32011
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        text_config = self.text_config or {}
        if isinstance(text_config, dict):
            text_config = dict(text_config)
            text_config = CONFIG_MAPPING[text_config.pop("model_type", "phi3")](**text_config)
        if text_config.model_type == "phi3":
            text_config.sliding_window = None  # frames that the window leaves behind could not be pointed to
        self.text_config = text_config
        self.tie_word_embeddings = self.tie_word_embeddings or bool(text_config.tie_word_embeddings)
        heads = [self.grounding_head] if isinstance(self.grounding_head, str) else list(self.grounding_head)
        self.grounding_head, self.frame_encoders = heads, list(self.frame_encoders)
        if self.clip_config is None and self.vace_config is None:
            self.vace_config = {"name": "Wan-AI/Wan2.1-VACE-1.3B-diffusers", "hidden_size": 1536}
        self._check()
        super().__post_init__(**kwargs)

    @property
    def frozen_encoders(self) -> list[str]:
        """The encoders whose features the model takes, in their order on d_v."""
        needs_clip = self.use_kl or {"clip", "dtl_feature"} & set(self.frame_encoders)
        return ["clip"] * bool(needs_clip) + ["vace"] * ("vace" in self.frame_encoders)

    @property
    def frozen_size(self) -> int:
        """Size d_v of the features that the model takes."""
        sizes = {"clip": self.clip_config, "vace": self.vace_config}
        return sum(sizes[name]["hidden_size"] for name in self.frozen_encoders)

    @property
    def encoder_size(self) -> int:
        """Size of the features before g_phi: those of all `frame_encoders`, concatenated."""
        dtl = (self.dtl_config or {}).get("width", 128)
        sizes = {"clip": self.clip_config, "vace": self.vace_config, "dtl_feature": {"hidden_size": dtl}}
        return sum(sizes[name]["hidden_size"] for name in self.frame_encoders)

    @property
    def grid_side(self) -> int:
        """Rows and columns of places in a frame."""
        return math.isqrt(self.tokens_per_frame)

    def _check(self) -> None:
        for name, known in (("frame_encoders", FRAME_ENCODERS), ("grounding_head", GROUNDING_HEADS)):
            given = getattr(self, name)
            if not given or set(given) - set(known) or len(set(given)) < len(given):
                raise ValueError(f"`{name}` is {given}: give some of {', '.join(known)}, each once.")
        for name, config in (("clip", self.clip_config), ("vace", self.vace_config)):
            if name in self.frozen_encoders and not {"name", "hidden_size"} <= (config or {}).keys():
                raise ValueError(
                    f"`{name}_config` needs `name` and `hidden_size` of the frozen encoder, got {config}. It is used "
                    f"by frame_encoders={self.frame_encoders} and use_kl={self.use_kl}."
                )
        if self.temporal_embedding not in ("sinusoidal", "mlp", "none"):
            raise ValueError(f"`temporal_embedding` is {self.temporal_embedding!r}: 'sinusoidal', 'mlp' or 'none'.")
        if self.tokens_per_frame < 1 or self.grid_side**2 != self.tokens_per_frame:
            raise ValueError(f"`tokens_per_frame` is {self.tokens_per_frame}: the places of a frame are a square.")
        if self.num_object_tokens < 0 or self.num_time_anchors < 0:
            raise ValueError("`num_object_tokens` and `num_time_anchors` are at least 0.")
        if "time_tokens" in self.grounding_head and self.time_token_start_id is None:
            raise ValueError("The head 'time_tokens' needs `time_token_start_id`, see `add_time_tokens`.")


__all__ = ["FRAME_ENCODERS", "GROUNDING_HEADS", "GroundedVideoDiTConfig"]
