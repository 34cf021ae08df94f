# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Grounded-VideoDiT (https://huggingface.co/papers/2508.15641): Eq. 7 to 20 of the paper, each named where it is made.

Eq. 1 to 6 are the object stage, which is offline: `trl_temporal.objects`. The low-rank update of the language model,
W = W_0 + alpha / r * A B (Eq. 14), is peft's LoRA. docs/grounded_videodit.md has the table.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from .configuration_grounded_videodit import GroundedVideoDiTConfig
from .encoder_loading import load_frame_encoder
from .evidence_head import EvidenceHead, decode_evidence
from .feature_alignment import FeatureAlignment
from .grounding_heads import (
    DecodedSpans,
    SpanHead,
    decode_spans,
    frames_to_spans,
    span_cross_entropy,
    span_log_prob,
    spans_to_frames,
)
from .modeling_grounded_videodit import GroundedVideoDiTForConditionalGeneration, GroundedVideoDiTModel
from .object_tokens import ObjectTokens, TimeAnchors, masks_to_grid, weave_anchors
from .processing_grounded_videodit import GroundedVideoDiTProcessor, VideoInput
from .temporal_embedding import MLPTimeEmbedding, SinusoidalTimeEmbedding, TemporalFusion, normalized_times
from .time_tokens import ParsedTimes, TimeTokens, add_time_tokens, give_time_rows, time_token_nll

# With the package installed, the Auto classes know the model without remote code ...
AutoConfig.register(GroundedVideoDiTConfig.model_type, GroundedVideoDiTConfig, exist_ok=True)
AutoModel.register(GroundedVideoDiTConfig, GroundedVideoDiTForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(GroundedVideoDiTConfig, GroundedVideoDiTForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(GroundedVideoDiTConfig, GroundedVideoDiTForConditionalGeneration, exist_ok=True)
AutoProcessor.register(GroundedVideoDiTConfig, GroundedVideoDiTProcessor, exist_ok=True)
# ... and every `save_pretrained` copies the files of this folder that they need, so that they load where it is not.
GroundedVideoDiTConfig.register_for_auto_class()
GroundedVideoDiTForConditionalGeneration.register_for_auto_class("AutoModelForCausalLM")
GroundedVideoDiTProcessor.register_for_auto_class()

__all__ = [
    "DecodedSpans",
    "EvidenceHead",
    "FeatureAlignment",
    "GroundedVideoDiTConfig",
    "GroundedVideoDiTForConditionalGeneration",
    "GroundedVideoDiTModel",
    "GroundedVideoDiTProcessor",
    "MLPTimeEmbedding",
    "ObjectTokens",
    "ParsedTimes",
    "SinusoidalTimeEmbedding",
    "SpanHead",
    "TemporalFusion",
    "TimeAnchors",
    "TimeTokens",
    "VideoInput",
    "add_time_tokens",
    "decode_evidence",
    "decode_spans",
    "frames_to_spans",
    "give_time_rows",
    "load_frame_encoder",
    "masks_to_grid",
    "normalized_times",
    "span_cross_entropy",
    "span_log_prob",
    "spans_to_frames",
    "time_token_nll",
    "weave_anchors",
]
