# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The examples run as they are, on a few videos and for a few steps."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
FEW_STEPS = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "True", "--disable_tqdm", "True"]


@pytest.fixture
def run_example(monkeypatch, tmp_path, capsys):
    """Runs an example in a folder of its own and returns what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_fpo_ends_with_a_table_and_a_report_and_resumes(run_example, tmp_path):
    few = ["--num_train", "4", "--num_validation", "1", "--num_test", "2", "--num_workers", "1", *FEW_STEPS]
    printed = run_example("fpo.py", *few)
    for words in ("start checkpoint", "SFT continued", "FPO", "all events", "chance", "over-", "FPO − SFT continued"):
        assert words in printed
    assert "Timelines" in (tmp_path / "outputs/fpo/report.html").read_text(encoding="utf-8")
    for run in ("sft", "fpo"):
        assert (tmp_path / "outputs/fpo" / run / "model.safetensors").exists()
        assert (tmp_path / "outputs/fpo" / run / "modeling_d2vlm.py").exists()

    run_example("fpo.py", *few, "--max_steps", "3", "--resume_from_checkpoint", "last")
    for run in ("sft", "fpo"):
        state = json.loads((tmp_path / "outputs/fpo" / run / "checkpoint-3/trainer_state.json").read_text())
        assert state["global_step"] == 3


def test_sft_from_scratch(run_example):
    printed = run_example("sft.py", "--num_train", "4", "--num_test", "1", "--num_workers", "1", *FEW_STEPS)
    assert "grounding" in printed and "all events" in printed


def test_predict_answers_in_seconds_on_an_event_world_video(run_example, event_world):
    row = next(row for row in event_world["test"] if row["task"] == "dense")
    printed = run_example("predict.py", row["videos"][0]["path"], row["prompt"][0]["content"][-1]["text"])
    # The shipped model has caption exact match above .9: most captions of one video are right.
    assert sum(caption in printed for caption in row["captions"]) > len(row["captions"]) / 2
    assert re.search(r"\[\d+\.\d+s - \d+\.\d+s\] The", printed)


@pytest.mark.filterwarnings("ignore:.*timestamps do not increase")
def test_predict_runs_on_every_real_clip(run_example, real_data):
    videos = sorted((real_data / "videos").iterdir())
    assert len(videos) == 8
    for video in videos:
        assert "evidence:" in run_example("predict.py", str(video), "When does the red disc blink?")


@pytest.mark.slow
def test_sft_learns_the_real_clips_by_heart(run_example, real_data):
    """About 2.5 minutes on one core."""
    printed = run_example("sft.py", "--dataset", str(real_data / "annotations" / "real_clips_events.jsonl"))
    assert float(re.search(r"SFT +(\d\.\d+)", printed)[1]) >= 0.9
