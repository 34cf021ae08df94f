# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from .configuration_d2vlm import BACKBONES, D2VLMConfig, D2VLMConvStemConfig, backbone_traits
from .modeling_d2vlm import D2VLMForConditionalGeneration, D2VLMModel, salient_run
from .processing_d2vlm import D2VLMBackboneProcessor, D2VLMProcessor, frame_run_to_span, spans_to_frame_mask

# With the package installed, the Auto classes know D2VLM without remote code ...
AutoConfig.register(D2VLMConfig.model_type, D2VLMConfig, exist_ok=True)
AutoModel.register(D2VLMConfig, D2VLMForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(D2VLMConfig, D2VLMForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(D2VLMConfig, D2VLMForConditionalGeneration, exist_ok=True)
AutoProcessor.register(D2VLMConfig, D2VLMProcessor, exist_ok=True)
# ... and every `save_pretrained` copies the files of this folder that they need, so that they load where it is not.
D2VLMConfig.register_for_auto_class()
D2VLMForConditionalGeneration.register_for_auto_class("AutoModelForCausalLM")
D2VLMProcessor.register_for_auto_class()

__all__ = [
    "BACKBONES",
    "D2VLMBackboneProcessor",
    "D2VLMConfig",
    "D2VLMConvStemConfig",
    "D2VLMForConditionalGeneration",
    "D2VLMModel",
    "D2VLMProcessor",
    "backbone_traits",
    "frame_run_to_span",
    "salient_run",
    "spans_to_frame_mask",
]
