# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Supervised fine-tuning with evidence tokens.

    accelerate launch examples/sft.py
    accelerate launch examples/sft.py --dataset path/to/real_clips_events.jsonl
    accelerate launch examples/sft.py --config recipes/qwen3_vl_4b/sft.yaml --dataset_name path/to/rows
    accelerate launch --config_file recipes/accelerate/zero2.yaml examples/sft.py ...

Without arguments a tiny model begins to learn EventWorld from rendered videos; 400 steps from scratch leave it below
the baselines, and `recipes/eventworld/pretrain.py` is how the model that ships with the examples was made. With
`--dataset`, the clips of a file in the `{video, duration, events, qa}` form are learnt by heart at 4 frames a second
and the model is scored on those same clips: proof that the whole path works on real footage, not that it generalises.

With `--dataset_name`, a model is trained on rows of your own: a D2VLM, or any video model of transformers, with
`--evidence_tokens true` or on times written as text. `--model_name_or_path` is what training starts from,
`--resume_from_checkpoint last` continues a run that was stopped. `--config_file` puts it on several GPUs, see
docs/distributed.md.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trl import ModelConfig, TrlParser

from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, GroundedEvaluator
from trl_temporal.data.converters.clip_events import load_clip_events
from trl_temporal.data.event_world import build_event_world
from trl_temporal.evaluation.table import print_table
from trl_temporal.models.tiny import build_tiny_d2vlm
from trl_temporal.trainer.script_arguments import DataArguments, load_model, load_split, lora_config

# The recipe of the first two. Command line flags win; a `--config`, or rows of your own, come without it.
DEFAULTS = {
    "output_dir": "outputs/sft",
    "max_steps": 400,
    "per_device_train_batch_size": 16,
    "learning_rate": 1.5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 50,
    "logging_steps": 10,
    "save_steps": 250,
    "save_total_limit": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "frame_cache_dir": "outputs/frames",
}


@dataclass
class ScriptArguments(DataArguments):
    dataset: str | None = field(
        default=None, metadata={"help": "JSON-lines file of clips with events; EventWorld if not given."}
    )
    data_dir: str = field(default="outputs/event_world", metadata={"help": "Where EventWorld is rendered."})
    num_train: int = field(default=384, metadata={"help": "EventWorld training videos."})
    num_test: int = field(default=64, metadata={"help": "EventWorld test videos."})
    num_workers: int = field(default=2, metadata={"help": "Processes that render EventWorld."})


def texts_of(rows) -> list[str]:
    """Questions and responses, which the tokenizer of a model from scratch is trained on."""
    texts = []
    for row in rows:
        texts += [row["prompt"][-1]["content"][-1]["text"], row["completion"][0]["content"][0]["text"]]
    return texts


def main() -> None:
    parser = TrlParser((ScriptArguments, EvidenceSFTConfig, ModelConfig))
    if not any(word.startswith(("--config", "--dataset_name")) for word in sys.argv):
        parser.set_defaults_with_config(**DEFAULTS)
    script_args, training_args, model_args = parser.parse_args_and_config()

    test = None
    if script_args.dataset_name is not None:
        train = load_split(script_args.dataset_name, script_args.dataset_train_split)
    elif script_args.dataset is not None:
        train = test = load_clip_events(script_args.dataset)
        title = f"{Path(script_args.dataset).name}: the training clips themselves"
    else:
        dataset = build_event_world(
            script_args.data_dir,
            num_train=script_args.num_train,
            num_validation=0,
            num_test=script_args.num_test,
            num_workers=script_args.num_workers,
        )
        train, test = dataset["train"], dataset["test"]
        title = f"EventWorld, {script_args.num_test} test videos"

    torch.manual_seed(training_args.seed)  # of what is new in a model
    if script_args.dataset_name is not None or model_args.model_name_or_path is not None:
        model, processor = load_model(script_args, model_args)
    else:
        training_args.freeze_vision_tower = False
        fps = training_args.fps or (2.0 if script_args.dataset is None else 4.0)  # clips have shorter events
        model, processor = build_tiny_d2vlm(texts_of(train), fps=fps)

    trainer = EvidenceSFTTrainer(
        model,
        args=training_args,
        train_dataset=train,
        processing_class=processor,
        peft_config=lora_config(model_args, model, processor),
    )
    trainer.train()
    trainer.save_model()
    if test is None:
        return
    evaluate = GroundedEvaluator(test, processor, batch_size=64, max_new_tokens=512, read_video=trainer.read_video)
    result = evaluate(trainer.model)
    if trainer.accelerator.is_main_process:
        print_table({"SFT": result}, title=title)


if __name__ == "__main__":
    main()
