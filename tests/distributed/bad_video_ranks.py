# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What can happen to one of two ranks: it alone gets SIGTERM, it alone meets a video that turned bad, and in the end it
is killed. Started under torchrun by `test_bad_video.py`.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))

from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer  # noqa: E402

RANK = int(os.environ["RANK"])
STEPS = 6  # three in an epoch


class Send(TrainerCallback):
    """A signal from rank 1 to itself within a step."""

    def __init__(self, number: int, step: int):
        self.number, self.step = number, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if RANK == 1 and state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


class Spoil(TrainerCallback):
    """Cuts off the videos of a rank after its first step."""

    def __init__(self, videos: list[str]):
        self.videos = videos

    def on_step_end(self, args, state, control, **kwargs):
        for video in self.videos:
            os.truncate(video, 100)


def make_trainer(kind: str, root: Path, name: str, callbacks=(), **settings):
    """On rows whose videos are copies of this rank's own."""
    rows = [json.loads(line) for line in (root / f"{kind}.jsonl").read_text().splitlines()]
    for row in rows:
        path = Path(row["videos"][0]["path"])
        copy = root / f"{name}-{RANK}" / path.name
        copy.parent.mkdir(exist_ok=True)
        if not copy.exists():
            shutil.copy(path, copy)
        row["videos"] = [{"path": str(copy)}]
    trainer_class, config = {"sft": (EvidenceSFTTrainer, EvidenceSFTConfig), "fpo": (FPOTrainer, FPOConfig)}[kind]
    args = config(
        output_dir=str(root / name),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        logging_steps=1,
        cache_frames=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        ddp_backend="gloo",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    videos = sorted({row["videos"][0]["path"] for row in rows})
    callbacks = [callback if isinstance(callback, TrainerCallback) else callback(videos) for callback in callbacks]
    trainer = trainer_class(str(root / "model"), args=args, train_dataset=Dataset.from_list(rows), callbacks=callbacks)
    assert trainer.accelerator.num_processes == 2
    return trainer


def losses(trainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def spoil_rank_1(videos: list[str]) -> TrainerCallback:
    return Spoil(videos if RANK == 1 else [])


def main(root: Path) -> None:
    whole = make_trainer("sft", root, "whole", save_strategy="no")
    whole.train()
    resume = {"save_steps": 3, "resume_from_checkpoint": "last"}
    stopped = make_trainer("sft", root, "run", [Send(signal.SIGTERM, step=4)], **resume)
    try:
        stopped.train()
    except KeyboardInterrupt as error:
        (root / f"stopped-{RANK}.txt").write_text(str(error))
    resumed = make_trainer("sft", root, "run", **resume)
    resumed.train()
    if RANK == 0:
        for name, trainer in (("whole", whole), ("resumed", resumed)):
            torch.save({"losses": losses(trainer), "weights": trainer.model.state_dict()}, root / f"{name}.pt")
    for kind in ("sft", "fpo"):
        skipping = make_trainer(kind, root, f"skip-{kind}", [spoil_rank_1], on_bad_sample="skip", save_strategy="no")
        skipping.train()
        (root / f"skip-{kind}-{RANK}.json").write_text(json.dumps(skipping.state.log_history))
    try:
        make_trainer("sft", root, "raise", [spoil_rank_1], save_steps=1).train()
    except Exception:
        (root / f"raised-{RANK}.txt").write_text(traceback.format_exc())
    make_trainer("sft", root, "killed", [Send(signal.SIGKILL, step=3)], save_steps=1, save_total_limit=1).train()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)  # torch now and then hangs or aborts while it takes down gloo and DDP at exit
