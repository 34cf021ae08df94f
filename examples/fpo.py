# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Factorized Preference Optimization.

    accelerate launch examples/fpo.py
    accelerate launch examples/fpo.py --max_steps 100 --num_train 64 --output_dir outputs/short
    accelerate launch examples/fpo.py --config recipes/qwen3_vl_4b/fpo.yaml --dataset_name path/to/pairs
    accelerate launch --config_file recipes/accelerate/zero2.yaml examples/fpo.py ...

Without arguments it runs on EventWorld, against equally long supervised fine-tuning: starts from the tiny model that
ships with the examples, builds preference pairs by perturbing true answers, trains the model with SFT and, from the
same start on the same rows, with FPO, and compares the three on held-out test videos. Ends with a table and an HTML
report.

With `--dataset_name`, a model is trained on preference pairs of your own: a D2VLM, or any video model of transformers,
with `--evidence_tokens true` or on times written as text. `--model_name_or_path` is what training starts from,
`--resume_from_checkpoint last` continues a run that was stopped. `--config_file` puts it on several GPUs, see
docs/distributed.md.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from trl import ModelConfig, TrlParser

from trl_temporal import (
    D2VLMForConditionalGeneration,
    D2VLMProcessor,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    FPOConfig,
    FPOTrainer,
    GroundedEvaluationCallback,
    GroundedEvaluator,
)
from trl_temporal.data.event_world import build_event_world
from trl_temporal.evaluation.table import print_table
from trl_temporal.report import write_report
from trl_temporal.synthesis.preference import make_preferences
from trl_temporal.trainer.evidence_config import EvidenceConfigMixin
from trl_temporal.trainer.script_arguments import DataArguments, load_model, load_split, lora_config, model_name

# The recipe of EventWorld. Command line flags win; a `--config`, or pairs of your own, come without it.
DEFAULTS = {
    "model_name_or_path": str(Path(__file__).parent / "eventworld_tiny"),
    "output_dir": "outputs/fpo",
    "max_steps": 250,
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "preference_coef": 0.1,
    "logging_steps": 5,
    "save_steps": 125,
    "save_total_limit": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "frame_cache_dir": "outputs/frames",
}


@dataclass
class ScriptArguments(DataArguments):
    data_dir: str = field(default="outputs/event_world", metadata={"help": "Where the videos are rendered."})
    num_train: int = field(default=384, metadata={"help": "Training videos, each with four questions."})
    num_validation: int = field(default=16, metadata={"help": "Validation videos, watched during training."})
    num_test: int = field(default=256, metadata={"help": "Test videos of the final table."})
    num_workers: int = field(default=2, metadata={"help": "Processes that render."})
    seed_preferences: int = field(default=0, metadata={"help": "Seed of the perturbations."})


def main() -> None:
    parser = TrlParser((ScriptArguments, FPOConfig, ModelConfig))
    if not any(word.startswith(("--config", "--dataset_name")) for word in sys.argv):
        parser.set_defaults_with_config(**DEFAULTS)
    arguments = parser.parse_args_and_config()
    if arguments[0].dataset_name is not None:
        train_on_pairs(*arguments)
    else:
        compare_on_event_world(*arguments)


def train_on_pairs(script_args: ScriptArguments, training_args: FPOConfig, model_args: ModelConfig) -> None:
    torch.manual_seed(training_args.seed)  # of what is new in the model
    model, processor = load_model(script_args, model_args)
    trainer = FPOTrainer(
        model,
        args=training_args,
        train_dataset=load_split(script_args.dataset_name, script_args.dataset_train_split),
        processing_class=processor,
        peft_config=lora_config(model_args, model, processor),
    )
    trainer.train()
    trainer.save_model()


def compare_on_event_world(script_args: ScriptArguments, training_args: FPOConfig, model_args: ModelConfig) -> None:
    output_dir, start = Path(training_args.output_dir), model_name(model_args)
    dataset = build_event_world(
        script_args.data_dir,
        num_train=script_args.num_train,
        num_validation=script_args.num_validation,
        num_test=script_args.num_test,
        num_workers=script_args.num_workers,
    )
    pairs = make_preferences(dataset["train"], seed=script_args.seed_preferences)
    processor = D2VLMProcessor.from_pretrained(start)

    # Equally long SFT on the same rows in the same order: without it, FPO's gain would be that of more training.
    names = set(DEFAULTS) - {"model_name_or_path", "output_dir", "preference_coef"} | {
        entry.name for entry in fields(EvidenceConfigMixin)
    }
    same = {name: getattr(training_args, name) for name in names}
    sft_args = EvidenceSFTConfig(
        output_dir=str(output_dir / "sft"), resume_from_checkpoint=training_args.resume_from_checkpoint, **same
    )
    training_args.output_dir = str(output_dir / "fpo")

    def load() -> D2VLMForConditionalGeneration:
        return D2VLMForConditionalGeneration.from_pretrained(start, dtype=torch.float32)

    model = load()
    shared = {
        "train_dataset": pairs,
        "processing_class": processor,
        "peft_config": lora_config(model_args, model, processor),
    }
    sft = EvidenceSFTTrainer(load(), args=sft_args, **shared)
    fpo = FPOTrainer(load(), args=training_args, **shared)
    test = GroundedEvaluator(dataset["test"], processor, batch_size=64, read_video=fpo.read_video)
    validation = GroundedEvaluator(
        dataset["validation"], processor, batch_size=64, read_video=fpo.read_video, progress=False
    )

    results = {"start checkpoint": test(model.to(fpo.model.device))}
    for name, trainer in {"SFT continued": sft, "FPO": fpo}.items():
        trainer.add_callback(
            GroundedEvaluationCallback(trainer, validation, every_n_steps=max(training_args.max_steps // 2, 1))
        )
        trainer.train()
        trainer.save_model()
        results[name] = test(trainer.model)

    if fpo.accelerator.is_main_process:
        print_table(results, compare=("FPO", "SFT continued"), title=f"EventWorld, {script_args.num_test} test videos")
        report = write_report(
            output_dir / "report.html",
            title="FPO on EventWorld",
            results=results,
            rows=list(dataset["test"]),
            log_histories={"SFT continued": sft.state.log_history, "FPO": fpo.state.log_history},
            preference_rows=list(pairs),
            compare=("FPO", "SFT continued"),
            settings={
                "start checkpoint": Path(start).name,
                "training videos": script_args.num_train,
                "test videos": script_args.num_test,
                "steps": training_args.max_steps,
                "batch size": training_args.per_device_train_batch_size,
                "learning rate": training_args.learning_rate,
                "beta": training_args.beta,
                "preference_coef": training_args.preference_coef,
                "reference": "none" if training_args.reference_free else "start checkpoint",
            },
        )
        print(f"Report: {report}")


if __name__ == "__main__":
    main()
