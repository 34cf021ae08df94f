# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Trains one step of each method on rows and pairs of noise, one of them without video, and saves the gradients and the
log of rank 0; then answers a data set. Started under torchrun by `test_two_ranks.py`.
"""

import json
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
from trl_temporal.evaluation import runner  # noqa: E402


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


def train_one_step(method: str, tiny_dir: str, output_dir: str, num_ranks: int, accumulation: int) -> dict:
    model, processor = (
        D2VLMForConditionalGeneration.from_pretrained(tiny_dir),
        D2VLMProcessor.from_pretrained(tiny_dir),
    )
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
    trainer.accelerator.wait_for_everyone()
    return {"gradients": gradients, "log": trainer.state.log_history[0]}


def train_both(tiny_dir: str, output_dir: str, num_ranks: int, accumulation: int) -> dict:
    return {method: train_one_step(method, tiny_dir, output_dir, num_ranks, accumulation) for method in ("sft", "fpo")}


def answer(tiny_dir: str, rows: str, output_dir: str) -> dict[str, float]:
    runner.SHARD_ROWS = 5
    options = {"max_new_tokens": 12, "progress": False}
    return runner.evaluate_model(tiny_dir, "rows", rows, output_dir=output_dir, **options).metrics


if __name__ == "__main__":
    tiny_dir, output_dir, rows = sys.argv[1:]
    results = {accumulation: train_both(tiny_dir, output_dir, 2, accumulation) for accumulation in (1, 2)}
    if os.environ["RANK"] == "0":
        torch.save(results, Path(output_dir) / "results.pt")
    metrics = answer(tiny_dir, rows, f"{output_dir}/answers")
    (Path(output_dir) / f"metrics_{os.environ['RANK']}.json").write_text(json.dumps(metrics))
    torch.distributed.barrier()
    os._exit(0)  # torch now and then hangs or aborts while it takes down gloo and DDP at exit
