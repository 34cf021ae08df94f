# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Grounded-VideoDiT: the objects of a question are found and followed, a denoiser reads the frames with their masks, and
a head over the frames' states answers when.

    python examples/grounded_videodit.py
    accelerate launch examples/grounded_videodit.py --max_steps 300 --num_train 300
    accelerate launch examples/grounded_videodit.py --config recipes/grounded_videodit/sft.yaml

Without arguments it runs on the CPU from nothing: it films the object world (mp4 files in which several things happen
to several objects), finds the objects of each question by their colour, stores what a vision tower makes of the
frames, teaches the denoiser to denoise them, trains a small model from scratch, and ends with a table of how well its
spans meet those of held-out clips, beside what one constant span and the frames themselves allow, and a report with
pictures. The tower is random and frozen, and everything is synthetic: it shows that the parts work together, and
nothing about the paper's numbers.

With `--dataset_name`, a model that `model_name_or_path` names is trained on rows of your own, to which
`trl-temporal objects extract` has added the objects.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, CLIPVisionModel
from trl import ModelConfig, TrlParser

from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer
from trl_temporal.data.object_world import KINDS, OBJECT_WORLD_SIDE, build_object_world
from trl_temporal.evaluation.evaluator import EvaluationResult, GroundedEvaluator
from trl_temporal.evaluation.metrics.spans_metric import span_scores
from trl_temporal.evaluation.span_baselines import constant_span, constant_span_predictions, frame_oracle_predictions
from trl_temporal.models.tiny import build_tiny_grounded_videodit
from trl_temporal.objects.collator import GroundedPromptCollator
from trl_temporal.objects.colours import ColourDetector, ColourTracker
from trl_temporal.objects.extract import count_statuses, extract_objects
from trl_temporal.objects.pretraining import pretrain_denoiser
from trl_temporal.objects.stage import ObjectStageConfig
from trl_temporal.report import write_report
from trl_temporal.trainer.script_arguments import DataArguments, load_model, load_split, lora_config

# The recipe of the object world. Command line flags win; a `--config`, or rows of your own, come without it.
DEFAULTS = {
    "output_dir": "outputs/grounded_videodit",
    "per_device_train_batch_size": 32,
    "max_steps": 700,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 50,
    "freeze_vision_tower": False,  # the denoiser learns on
    "group_by_video": False,  # questions about one clip are alike, and a batch of them teaches less
    "logging_steps": 50,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "feature_cache": "outputs/features",
}
NUM_FRAMES, PATCH = 24, 8
TOWER_SIZE, HIDDEN_SIZE, NUM_LAYERS = 32, 128, 3


@dataclass
class ScriptArguments(DataArguments):
    data_dir: str = field(default="outputs/object_world", metadata={"help": "Where the clips are rendered."})
    num_train: int = field(default=700, metadata={"help": "Training clips."})
    num_test: int = field(default=256, metadata={"help": "Test clips of the final table."})
    num_each: int = field(default=2, metadata={"help": "Questions of each of the four kinds about a clip."})
    num_workers: int = field(default=2, metadata={"help": "Processes that render and look for objects."})
    pretraining_steps: int = field(default=300, metadata={"help": "Steps of the denoiser before training."})


def main() -> None:
    parser = TrlParser((ScriptArguments, EvidenceSFTConfig, ModelConfig))
    if not any(word.startswith(("--config", "--dataset_name")) for word in sys.argv):
        parser.set_defaults_with_config(**DEFAULTS)
    script_args, training_args, model_args = parser.parse_args_and_config()
    if script_args.dataset_name is not None:
        train_on_rows(script_args, training_args, model_args)
    else:
        train_on_object_world(script_args, training_args)


def train_on_rows(script_args: ScriptArguments, training_args: EvidenceSFTConfig, model_args: ModelConfig) -> None:
    torch.manual_seed(training_args.seed)  # of what is new in the model
    model, processor = load_model(script_args, model_args)
    trainer = EvidenceSFTTrainer(
        model,
        args=training_args,
        train_dataset=load_split(script_args.dataset_name, script_args.dataset_train_split),
        processing_class=processor,
        peft_config=lora_config(model_args, model, processor),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()


def train_on_object_world(script_args: ScriptArguments, training_args: EvidenceSFTConfig) -> None:
    console = Console(quiet=not PartialState().is_main_process)
    output_dir, clock = Path(training_args.output_dir), Clock(console)
    with PartialState().main_process_first():
        clips = build_object_world(
            script_args.data_dir,
            num_train=script_args.num_train,
            num_validation=0,
            num_test=script_args.num_test,
            num_each=script_args.num_each,
            num_workers=script_args.num_workers,
        )
        clock.tell("Clips are rendered")
        rows = {split: find_objects(clips[split], script_args) for split in ("train", "test")}
        statuses = count_statuses([*rows["train"]["grounding_status"], *rows["test"]["grounding_status"]])
        clock.tell(f"Objects are found ({', '.join(f'{name}: {count}' for name, count in statuses.items())})")
        make_tower(output_dir / "tower", training_args.seed)

    model, processor = make_model(rows["train"], output_dir / "tower", training_args.seed)
    trainer = EvidenceSFTTrainer(
        model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        processing_class=processor,
    )
    read_features = trainer.data_collator.read_features
    clock.tell("Frames are encoded")
    losses = pretrain_denoiser(
        model,
        GroundedPromptCollator(processor, read_features),
        one_row_a_clip(rows["train"]),
        num_steps=script_args.pretraining_steps,
        seed=training_args.seed,
    )
    clock.tell(f"The denoiser denoises: loss {np.mean(losses[:10]):.2f} -> {np.mean(losses[-10:]):.2f}")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    samples = training_args.max_steps * training_args.train_batch_size
    clock.tell(f"The model is trained on {samples} samples")

    if not trainer.accelerator.is_main_process:
        return
    test = GroundedEvaluator(rows["test"], processor, batch_size=64, max_new_tokens=16, read_features=read_features)
    result = test(trainer.accelerator.unwrap_model(trainer.model))
    clock.tell("The test clips are answered")
    print_scores(console, rows, result)
    report = write_report(
        output_dir / "report.html",
        title="Grounded-VideoDiT on the object world",
        results={"Grounded-VideoDiT": result},
        rows=list(rows["test"]),
        log_histories={"Grounded-VideoDiT": trainer.state.log_history},
        settings={
            "training clips": script_args.num_train,
            "test clips": script_args.num_test,
            "frames": NUM_FRAMES,
            "steps": training_args.max_steps,
            "batch size": training_args.per_device_train_batch_size,
            "learning rate": training_args.learning_rate,
        },
    )
    console.print(f"Report: {report}")


def find_objects(rows: datasets.Dataset, script_args: ScriptArguments) -> datasets.Dataset:
    """Boxes and masks of what each question names, by colour; for real videos leave both models out."""
    return extract_objects(
        rows,
        Path(script_args.data_dir) / "objects",
        detect=ColourDetector(),
        track=ColourTracker(),
        config=ObjectStageConfig(num_frames=NUM_FRAMES),
        num_workers=script_args.num_workers,
    )


def make_tower(path: Path, seed: int) -> None:
    """A vision tower with random weights: its patches keep their colours and places."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=TOWER_SIZE,
        intermediate_size=2 * TOWER_SIZE,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=OBJECT_WORLD_SIDE,
        patch_size=PATCH,
        initializer_range=TOWER_SIZE**-0.5,
    )
    CLIPVisionModel(config).save_pretrained(path)


def make_model(rows: datasets.Dataset, tower: Path, seed: int):
    texts = [row["prompt"][0]["content"][-1]["text"] for row in rows.select(range(min(len(rows), 400)))]
    torch.manual_seed(seed)
    return build_tiny_grounded_videodit(
        [*texts, rows[0]["completion"][0]["content"][0]["text"]],
        {"name": str(tower), "hidden_size": TOWER_SIZE},
        vocab_size=360,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_frames=NUM_FRAMES,
        image_size=OBJECT_WORLD_SIDE,
        tokens_per_frame=(OBJECT_WORLD_SIDE // PATCH) ** 2,
        frame_encoders=["clip", "dtl_feature"],
        dtl_config={"width": 128, "num_layers": 2, "block": 0},
    )


def one_row_a_clip(rows: datasets.Dataset) -> datasets.Dataset:
    """The first row about each clip that names an object: its masks are a condition to denoise with."""
    first = {}
    for index, (videos, nouns) in enumerate(zip(rows["videos"], rows["object_nouns"], strict=True)):
        if nouns:
            first.setdefault(videos[0]["path"], index)
    return rows.select(first.values())


def print_scores(console: Console, rows: dict[str, datasets.Dataset], result: EvaluationResult) -> None:
    test = rows["test"]
    answers = [
        {"id": row_id, "spans": [list(span) for span in answer.evidence]}
        for row_id, answer in zip(test["id"], result.answers, strict=True)
    ]
    predictions = {
        "prior": constant_span_predictions(test, constant_span(rows["train"])),
        "model": answers,
        "oracle": frame_oracle_predictions(test, test["object_times_s"]),
    }
    table = Table(
        title=f"{len({videos[0]['path'] for videos in test['videos']})} held-out clips, {len(test)} questions"
    )
    table.add_column("")
    for name in ("mIoU", "R@.3", "R@.5", "R@.7", *KINDS):
        table.add_column(name.replace("_", "_\n"), justify="right", no_wrap=True)
    kinds = np.array(test["kind"])
    for name, spans in predictions.items():
        metrics = span_scores(spans, test).metrics
        cells = [metrics[key] for key in ("mIoU", "R1@0.3", "R1@0.5", "R1@0.7")]
        for kind in KINDS:
            index = np.flatnonzero(kinds == kind)
            cells.append(span_scores([spans[i] for i in index], test.select(index)).metrics["mIoU"])
        table.add_row(name, *(f"{value:.1f}" for value in cells))
    console.print(table)
    console.print(
        f"In percent, synthetic. prior: one span for all questions; oracle: the best that {NUM_FRAMES} frames say. "
        "mIoU over all questions and by their kind: object, a noun tells the event; order, the first or second time; "
        "object_order, both; after, beside another event."
    )


class Clock:
    """Says what is done, and how long it took."""

    def __init__(self, console: Console):
        self.console, self.begun_s = console, time.monotonic()

    def tell(self, what: str) -> None:
        self.console.print(f"{what}: {time.monotonic() - self.begun_s:.0f} s since the start", highlight=False)


if __name__ == "__main__":
    main()
