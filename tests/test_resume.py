# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Training that was killed, or could not write, goes on from the last whole checkpoint as if nothing had happened."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from tests.helpers import MIXED_PAIRS, MIXED_ROWS, noise_video
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator
from trl_temporal.trainer.bad_rows import BadRowCollator
from trl_temporal.trainer.checkpoints import CheckpointError, checkpoint_fault, last_whole_checkpoint
from trl_temporal.video import VideoError

KILL_POINTS = Path(__file__).parent.parent / "benchmarks" / "kill_points.py"


def test_killed_and_resumed_equals_unbroken():
    """
    Three points: SFT and a stream in its second pass at a random moment, FPO in the middle of writing a checkpoint.
    The script compares the losses of all steps and the weights.
    """
    command = [sys.executable, str(KILL_POINTS), "--points", "3", "--seed", "631"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **streams) as run:
        try:
            printed, _ = run.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, 9)
            pytest.fail("a run hangs")
    assert run.returncode == 0, printed
    resumed_from = re.findall(r"^(\w+) +(half of)?.* checkpoint-(\d+) +\d\.\de", printed, flags=re.MULTILINE)
    assert [(case, half) for case, half, _ in resumed_from] == [("sft", ""), ("fpo", "half of"), ("stream", "")]
    assert int(resumed_from[2][2]) > 6  # rows of a pass, two a step


@pytest.fixture(scope="module")
def run_of_two(tiny_dir, event_world, tmp_path_factory):
    """A run with checkpoints after steps 1 and 2, which tests copy."""
    output_dir = tmp_path_factory.mktemp("resume") / "run"
    make_trainer(tiny_dir, event_world, output_dir, max_steps=2).train()
    return output_dir


@pytest.fixture
def run_dir(run_of_two, tmp_path):
    return Path(shutil.copytree(run_of_two, tmp_path / "run"))


def make_trainer(tiny_dir, event_world, output_dir, callbacks=None, **settings):
    defaults = {
        "output_dir": str(output_dir),
        "frame_cache_dir": str(output_dir.parent / "frames"),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = EvidenceSFTConfig(**{**defaults, **settings})
    return EvidenceSFTTrainer(str(tiny_dir), args=args, train_dataset=event_world["train"], callbacks=callbacks)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("marked", [True, False], ids=["ours", "of another trainer"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_file_that_is_cut_off_or_missing_is_noticed(run_dir, name, marked):
    folder = run_dir / "checkpoint-2"
    if not marked:
        (folder / "whole.json").unlink()
    assert checkpoint_fault(folder) is None
    cut(folder / name)
    assert name in checkpoint_fault(folder)
    (folder / name).unlink()
    assert name in checkpoint_fault(folder) or checkpoint_fault(folder) in (
        "the weights are missing",
        "it holds the model without the optimizer, as `save_only_model=True` leaves it",
    )
    with pytest.warns(UserWarning, match="checkpoint-2 is not whole"):
        assert last_whole_checkpoint(run_dir) == str(run_dir / "checkpoint-1")


def test_files_of_shards_and_ranks(run_dir):
    folder = run_dir / "checkpoint-2"
    (folder / "whole.json").unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert checkpoint_fault(folder) == "model-00002-of-00002.safetensors is missing"
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    assert checkpoint_fault(folder) is None
    (folder / "rng_state.pth").rename(folder / "rng_state_1.pth")
    assert checkpoint_fault(folder) == "rng_state.pth, or that of one of the ranks, is missing"
    shutil.copy(folder / "rng_state_1.pth", folder / "rng_state_0.pth")
    assert checkpoint_fault(folder) is None
    (folder / "optimizer.pt").unlink()
    (folder / "latest").write_text("global_step2")
    assert checkpoint_fault(folder) == "DeepSpeed's global_step2 is missing"
    (folder / "global_step2").mkdir()
    shutil.copy(folder / "scheduler.pt", folder / "global_step2" / "mp_rank_00_model_states.pt")
    assert checkpoint_fault(folder) is None


def test_a_torn_checkpoint_that_was_asked_for_is_refused(tiny_dir, event_world, run_dir):
    cut(run_dir / "checkpoint-2" / "optimizer.pt")
    trainer = make_trainer(tiny_dir, event_world, run_dir)
    with pytest.raises(CheckpointError, match="checkpoint-2 is not a whole checkpoint: optimizer.pt has .* bytes"):
        trainer.train(resume_from_checkpoint=str(run_dir / "checkpoint-2"))
    with pytest.warns(UserWarning, match="checkpoint-2 is not whole"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3 and checkpoint_fault(run_dir / "checkpoint-2") is None  # written anew


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(tiny_dir, event_world, run_dir, monkeypatch):
    trainer = make_trainer(tiny_dir, event_world, run_dir, max_steps=2)

    def stop(output_dir):
        raise ValueError("the machine stopped")

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", stop)
    with pytest.raises(ValueError, match="the machine stopped") as error:
        trainer.train(resume_from_checkpoint=str(run_dir / "checkpoint-1"))
    assert error.value.__notes__ == [
        f"The last whole checkpoint is {run_dir / 'checkpoint-1'}. Continue with `--resume_from_checkpoint last` when "
        "this is mended."
    ]


class FillDisk(TrainerCallback):
    """From step 2 on no file can be longer than 10 kB."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def test_a_full_disk_leaves_the_checkpoint_before(tiny_dir, event_world, tmp_path):
    trainer = make_trainer(tiny_dir, event_world, tmp_path / "run", callbacks=[FillDisk()], save_total_limit=1)
    try:
        with pytest.raises(CheckpointError, match="checkpoint-2 could not be written: .*too large.*GB free.*resume"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert last_whole_checkpoint(tmp_path / "run", warn=False) == str(tmp_path / "run" / "checkpoint-1")


def test_other_settings_are_told(tiny_dir, event_world, run_dir):
    # All steps are done, so that nothing is trained.
    trainer = make_trainer(tiny_dir, event_world, run_dir, per_device_train_batch_size=1, seed=7, max_steps=2)
    with pytest.warns(
        UserWarning, match="per_device_train_batch_size 2 -> 1, seed 42 -> 7.*some rows will come twice"
    ):
        trainer.train(resume_from_checkpoint="last")
    trainer.train_dataset = trainer.train_dataset.shuffle(seed=0)
    with pytest.warns(UserWarning, match="rows 12 -> 12, others or in another order"):
        trainer.train(resume_from_checkpoint=str(run_dir / "checkpoint-2"))


def test_the_checkpoint_of_another_method_is_refused(tiny_dir, preferences, run_dir, config):
    trainer = FPOTrainer(str(tiny_dir), args=config(FPOConfig, output_dir=str(run_dir)), train_dataset=preferences)
    with pytest.raises(
        CheckpointError, match="checkpoint-2 was written by EvidenceSFTTrainer, and this is FPOTrainer"
    ):
        trainer.train(resume_from_checkpoint="last")


def test_a_checkpoint_of_the_model_alone_is_refused(run_dir):
    folder = run_dir / "checkpoint-2"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "whole.json"):  # what `save_only_model` leaves out
        (folder / name).unlink()
    assert "it holds the model without the optimizer, as `save_only_model=True`" in checkpoint_fault(folder)


def collate(rows):
    """Refuses the row `b`, and batches of three rows."""
    if any(row["id"] == "b" for row in rows):
        raise VideoError("b.mp4: cannot be read. Replace it.")
    if len(rows) == 3:
        raise VideoError("three rows")
    return {"labels": torch.ones(len(rows), 2), "completion_mask": torch.ones(2 * len(rows), 2)}


def test_the_collator_names_the_row():
    rows = [{"id": id, "videos": [f"{id}.mp4"]} for id in "abc"]
    with pytest.raises(
        VideoError, match=r"^row 'b': b.mp4: cannot be read. Replace it. Or set `on_bad_sample='skip'`"
    ):
        BadRowCollator(collate, skip=False)(rows[:2])
    with pytest.raises(VideoError, match="^three rows$"):
        BadRowCollator(collate, skip=True)([rows[0]] * 3)


def test_a_bad_row_becomes_one_with_nothing_to_learn(tiny):
    def read_video(entry):
        if entry["path"] == "noise-9-9":
            raise VideoError("noise-9-9: cannot be read.")
        return noise_video(entry)

    bad = {"videos": [{"path": "noise-9-9"}], "id": "bad"}
    for collator, rows, mask in (
        (EvidenceCollator, MIXED_ROWS[:3], "labels"),
        (PreferenceCollator, MIXED_PAIRS[:3], "completion_mask"),
    ):
        collate = collator(tiny[1], read_video)
        batch = BadRowCollator(collate, skip=True)([rows[0], {**rows[1], **bad}, rows[2]])
        (skipped,) = batch["skipped_rows"]
        assert skipped == {"id": "bad", "video": "noise-9-9", "reason": "noise-9-9: cannot be read."}
        nothing, step = {"labels": -100, "completion_mask": 0}[mask], len(rows)
        assert (batch[mask][1::step] == nothing).all() and (batch["evidence_stage"][1::step] == 0).all()
        alone = collate([rows[0], rows[2]])
        length = alone[mask].shape[1]
        for kept, row in ((0, 0), (2, 1)):
            assert batch[mask][kept::step, :length].equal(alone[mask][row::2])
