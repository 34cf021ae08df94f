# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Trains one step of each method on pairs and rows of noise, one of them without video, and saves the gradients and the
log of rank 0. Started by `test_two_ranks.py`, in one process or under torchrun.
"""

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers import MIXED_PAIRS, MIXED_ROWS, noise_video, train  # noqa: E402
from trl_temporal import (  # noqa: E402
    D2VLMForConditionalGeneration,
    D2VLMProcessor,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    FPOConfig,
    FPOTrainer,
)
from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator  # noqa: E402


def settings(output_dir: str, num_ranks: int, accumulation: int) -> dict:
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": 4 // num_ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "consistency_ramp_end": 0.0,
        "consistency_ramp_start": 0.0,
        "cache_frames": False,
        "freeze_vision_tower": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "ddp_backend": "gloo" if num_ranks > 1 else None,
    }


def main(tiny_dir: str, output_dir: str, num_ranks: int, accumulation: int) -> None:
    results = {}
    for method in ("sft", "fpo"):
        model = D2VLMForConditionalGeneration.from_pretrained(tiny_dir)
        processor = D2VLMProcessor.from_pretrained(tiny_dir)
        arguments = settings(output_dir, num_ranks, accumulation)
        if method == "sft":
            trainer = EvidenceSFTTrainer(
                model,
                EvidenceSFTConfig(**arguments),
                data_collator=EvidenceCollator(processor, noise_video),
                train_dataset=Dataset.from_list(MIXED_ROWS),
                processing_class=processor,
            )
        else:
            trainer = FPOTrainer(
                model,
                args=FPOConfig(beta=1e-2, **arguments),
                data_collator=PreferenceCollator(processor, noise_video),
                train_dataset=Dataset.from_list(MIXED_PAIRS),
                processing_class=processor,
            )
        assert trainer.accelerator.num_processes == num_ranks
        (gradients,) = train(trainer)
        results[method] = {"gradients": gradients, "log": trainer.state.log_history[0]}
    if trainer.accelerator.is_main_process:
        torch.save(results, Path(output_dir) / f"results-{num_ranks}-{accumulation}.pt")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    os._exit(0)  # torch now and then hangs or aborts while it takes down gloo and DDP at exit
