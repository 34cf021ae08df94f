# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Kills training with SIGKILL at random points, resumes, and compares the whole run with one that was not killed.

    python benchmarks/kill_points.py

Every other point is a random moment of a random step; the others are in the middle of writing a random file of a
random checkpoint. The differences are those of the losses of all steps and of the final weights, in float32 on the
CPU. Exits 1 where one is above 1e-6, or where a half-written checkpoint was taken for whole. Runs are forks of a
process that has the imports behind it and never trains.
"""

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import TrainerCallback, TrainerState

from trl_temporal import (
    D2VLMForConditionalGeneration,
    D2VLMProcessor,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    FPOConfig,
    FPOTrainer,
)
from trl_temporal.data.event_world import build_event_world
from trl_temporal.models.tiny import build_tiny_d2vlm
from trl_temporal.synthesis.preference import make_preferences
from trl_temporal.trainer import resumable
from trl_temporal.trainer.checkpoints import checkpoint_fault, last_whole_checkpoint

CASES = {
    "sft": "rows grouped by video, gradient accumulation, dropout",
    "fpo": "LoRA with dropout, precomputed reference log-probabilities",
    "stream": "SFT on a shuffled stream, several passes, dropout",
}
FILES = ("*model*.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "whole.json", "trainer_state.json")
TOLERANCE = 1e-6
SAVE_STEPS = 2
LONGEST_RUN_S = 300


class TellSteps(TrainerCallback):
    """Writes a byte into a pipe at the start of training and after every step."""

    def __init__(self, pipe: int):
        self.pipe = pipe

    def on_train_begin(self, args, state, control, **kwargs):
        os.write(self.pipe, b".")

    def on_step_end(self, args, state, control, **kwargs):
        os.write(self.pipe, b".")


def prepare(root: Path) -> dict[str, Dataset]:
    """Saves a tiny model under `root`; the rows and the pairs."""
    rows = build_event_world(root / "world", num_train=3, num_validation=1, num_test=1, progress=False)["train"]
    texts = [row[column][0]["content"][-1]["text"] for row in rows for column in ("prompt", "completion")]
    torch.manual_seed(0)
    model, processor = build_tiny_d2vlm(texts, vocab_size=320, hidden_size=32, num_hidden_layers=3, image_size=16)
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    return {"rows": rows, "pairs": make_preferences(rows, seed=0)}


def train(case: str, root: Path, data: dict[str, Dataset], output_dir: Path, max_steps: int, pipe: int) -> None:
    """Trains, from the last whole checkpoint where there is one, and saves the losses of all steps and the weights."""
    settings = {
        "output_dir": str(output_dir),
        "max_steps": max_steps,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": SAVE_STEPS,
        "save_total_limit": 2,
        "resume_from_checkpoint": "last",
        "frame_cache_dir": str(root / "frames"),
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    model = D2VLMForConditionalGeneration.from_pretrained(root / "model", dtype=torch.float32)
    parts = {"processing_class": D2VLMProcessor.from_pretrained(root / "model"), "callbacks": [TellSteps(pipe)]}
    if case == "fpo":
        adapter = LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"], modules_to_save=["evi_head"])
        config = FPOConfig(reference_free=False, precompute_ref_log_probs=True, disable_dropout=False, **settings)
        trainer = FPOTrainer(model, args=config, train_dataset=data["pairs"], peft_config=adapter, **parts)
    else:
        for module in model.modules():
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.2
        rows = data["rows"]
        if case == "stream":
            rows = rows.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=4)
        config = EvidenceSFTConfig(gradient_accumulation_steps=1 if case == "stream" else 2, **settings)
        trainer = EvidenceSFTTrainer(model, args=config, train_dataset=rows, **parts)
    trainer.train()
    losses = {
        entry["step"]: {name: value for name, value in entry.items() if name.startswith("loss")}
        for entry in trainer.state.log_history
        if "loss" in entry
    }
    weights = {name: value.detach() for name, value in trainer.model.named_parameters()}
    torch.save({"losses": losses, "weights": weights}, output_dir / "result.pt")


def train_and_die(folder: Path, file: str, *arguments) -> None:
    """Trains until SIGKILL strikes when half of a file of a checkpoint is written."""

    def then_die(write: Callable) -> Callable:
        def write_half(*args, **kwargs):
            write(*args, **kwargs)
            for path in folder.glob(file):
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        return write_half

    torch.save, resumable.mark_whole = then_die(torch.save), then_die(resumable.mark_whole)
    TrainerState.save_to_json = then_die(TrainerState.save_to_json)
    for trainer in (EvidenceSFTTrainer, FPOTrainer):
        trainer.save_model = then_die(trainer.save_model)
    train(*arguments)


def run(work: Callable[[int], None], log: Path, kill_after: tuple[int, float] | None = None) -> int:
    """
    Runs `work` in a fork, which tells its steps through a pipe. With `kill_after`, SIGKILL strikes it so many steps
    and seconds after training began. Returns its exit code.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 1
        try:
            work(writer)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    heard = 0  # bytes: one at the start and one a step
    deadline = time.monotonic() + LONGEST_RUN_S
    while time.monotonic() < deadline and (kill_after is None or heard <= kill_after[0]):
        readable, _, _ = select.select([reader], [], [], 1.0)
        if readable and not os.read(reader, 1):
            break  # it has ended
        heard += bool(readable)
    else:
        time.sleep(0 if kill_after is None else kill_after[1])
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def difference(actual: dict, expected: dict) -> float:
    """The largest between two runs, over the losses of all steps and the weights."""
    if actual["losses"].keys() != expected["losses"].keys():
        return float("inf")
    losses = [
        abs(value - actual["losses"][step][name])
        for step, values in expected["losses"].items()
        for name, value in values.items()
    ]
    weights = [(value - actual["weights"][name]).abs().max().item() for name, value in expected["weights"].items()]
    return max(losses + weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    disable_progress_bars()
    torch.set_num_threads(1)  # forks would wait for the threads of this process
    choose, failed = random.Random(args.seed), False
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = prepare(root)
        results, seconds = {}, {}
        for case in args.cases:
            output_dir, log = root / f"{case}-unbroken", root / f"{case}.log"
            start = time.monotonic()
            code = run(partial(train, case, root, data, output_dir, args.steps), log)
            if code != 0:
                sys.exit(f"{case}: the unbroken run ended with {code}:\n{log.read_text()}")
            seconds[case] = (time.monotonic() - start) / args.steps
            results[case] = torch.load(output_dir / "result.pt")
            print(f"{case}: {CASES[case]}; final loss {results[case]['losses'][args.steps]['loss']:.4f}")
        print(f"\n{'case':7} {'killed':50} {'resumed from':14} largest difference")
        for point in range(args.points):
            case = args.cases[point % len(args.cases)]
            output_dir, log = root / f"{case}-{point}", root / f"{case}-{point}.log"
            arguments = (case, root, data, output_dir, args.steps)
            half_written = None
            if point % 2 == 0:
                step, wait_s = choose.randrange(args.steps - 4), choose.uniform(0, seconds[case])
                where = f"{wait_s:.3f} s after step {step}"
                code = run(partial(train, *arguments), log, kill_after=(step, wait_s))
            else:
                step = SAVE_STEPS * choose.randrange(1, args.steps // SAVE_STEPS + 1)
                half_written, file = output_dir / f"checkpoint-{step}", choose.choice(FILES)
                where = f"half of {file} of {half_written.name} written"
                code = run(partial(train_and_die, half_written, file, *arguments), log)
            if code != -signal.SIGKILL:
                sys.exit(f"{case}: to be killed {where}, it ended with {code}:\n{log.read_text()}")
            taken = half_written is not None and checkpoint_fault(half_written) is None
            last = last_whole_checkpoint(output_dir, warn=False)
            code = run(partial(train, *arguments), log)
            if code != 0:
                sys.exit(f"{case}: killed {where}, and resumed, it ended with {code}:\n{log.read_text()}")
            largest = difference(torch.load(output_dir / "result.pt"), results[case])
            failed |= taken or not largest <= TOLERANCE
            print(f"{case:7} {where:50} {Path(last or 'the start').name:14} {largest:.1e}", end="")
            print("  a half-written checkpoint was taken for whole" if taken else "")
    sys.exit(failed)


if __name__ == "__main__":
    main()
