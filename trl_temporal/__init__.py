# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
TRL for temporally grounded video-language models.

The public names are imported on first use, so that `import trl_temporal` is quick and loads no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluation.callback import GroundedEvaluationCallback
    from .evaluation.evaluator import GroundedEvaluator
    from .evaluation.generation import GroundedAnswer, generate_answers
    from .models.d2vlm import (
        D2VLMBackboneProcessor,
        D2VLMConfig,
        D2VLMForConditionalGeneration,
        D2VLMProcessor,
    )
    from .models.grounded_videodit import (
        GroundedVideoDiTConfig,
        GroundedVideoDiTForConditionalGeneration,
        GroundedVideoDiTProcessor,
    )
    from .spans import Span
    from .trainer.evidence_sft_config import EvidenceSFTConfig
    from .trainer.evidence_sft_trainer import EvidenceSFTTrainer
    from .trainer.fpo_config import FPOConfig
    from .trainer.fpo_trainer import FPOTrainer
    from .trainer.temple_config import TempleConfig
    from .trainer.temple_trainer import TempleTrainer

__version__ = "0.1.0.dev0"

_MODULE_OF = {
    "BenchmarkEvaluator": "evaluation.benchmark_evaluator",
    "D2VLMBackboneProcessor": "models.d2vlm",
    "D2VLMConfig": "models.d2vlm",
    "D2VLMForConditionalGeneration": "models.d2vlm",
    "D2VLMProcessor": "models.d2vlm",
    "EvidenceSFTConfig": "trainer.evidence_sft_config",
    "EvidenceSFTTrainer": "trainer.evidence_sft_trainer",
    "FPOConfig": "trainer.fpo_config",
    "FPOTrainer": "trainer.fpo_trainer",
    "GroundedAnswer": "evaluation.generation",
    "GroundedEvaluationCallback": "evaluation.callback",
    "GroundedEvaluator": "evaluation.evaluator",
    "GroundedVideoDiTConfig": "models.grounded_videodit",
    "GroundedVideoDiTForConditionalGeneration": "models.grounded_videodit",
    "GroundedVideoDiTProcessor": "models.grounded_videodit",
    "Span": "spans",
    "TempleConfig": "trainer.temple_config",
    "TempleTrainer": "trainer.temple_trainer",
    "evaluate_model": "evaluation.runner",
    "generate_answers": "evaluation.generation",
    "score_predictions": "evaluation.runner",
}

__all__ = [
    "BenchmarkEvaluator",
    "D2VLMBackboneProcessor",
    "D2VLMConfig",
    "D2VLMForConditionalGeneration",
    "D2VLMProcessor",
    "EvidenceSFTConfig",
    "EvidenceSFTTrainer",
    "FPOConfig",
    "FPOTrainer",
    "GroundedAnswer",
    "GroundedEvaluationCallback",
    "GroundedEvaluator",
    "GroundedVideoDiTConfig",
    "GroundedVideoDiTForConditionalGeneration",
    "GroundedVideoDiTProcessor",
    "Span",
    "TempleConfig",
    "TempleTrainer",
    "evaluate_model",
    "generate_answers",
    "score_predictions",
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'trl_temporal' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *__all__])
