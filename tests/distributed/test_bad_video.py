# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Two ranks, one of which is killed, gets SIGTERM alone, or meets a bad video alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trl_temporal.trainer.checkpoints import last_whole_checkpoint

SCRIPT = Path(__file__).with_name("bad_video_ranks.py")


@pytest.fixture(scope="module")
def launch(tiny_dir, event_world, preferences, tmp_path_factory):
    """The folder and the words of one launch, in which everything happens."""
    root = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny_dir, root / "model")
    for kind, rows in (("sft", event_world["train"]), ("fpo", preferences)):
        rows = list(rows)[::2]
        (root / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(SCRIPT), str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as run:
        try:
            printed, _ = run.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            run.terminate()  # takes the ranks with it
            pytest.fail(f"two ranks hang:\n{run.communicate()[0]}")
    return root, printed, run.returncode


def test_sigterm_to_one_rank_stops_both_after_the_same_step(launch):
    root, printed, _ = launch
    for rank in (0, 1):
        assert (root / f"stopped-{rank}.txt").read_text().startswith("stopped after step 4 of 6"), printed
    files = {path.name for path in (root / "run" / "checkpoint-4").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "whole.json", "trainer_state.json"} <= files


def test_stopped_and_resumed_equals_unbroken(launch):
    """Within the second epoch, of which accelerate does not tell the sampler of several ranks."""
    root, printed, _ = launch
    whole, resumed = torch.load(root / "whole.pt"), torch.load(root / "resumed.pt")
    assert resumed["losses"] == pytest.approx(whole["losses"], abs=1e-6), printed
    for name, expected in whole["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["sft", "fpo"])
def test_skip_leaves_out_what_turned_bad_in_one_rank(launch, kind):
    root, printed, _ = launch
    logs = [json.loads((root / f"skip-{kind}-{rank}.json").read_text()) for rank in (0, 1)]
    for log in logs:
        steps = [entry for entry in log if "loss" in entry]
        assert [entry["step"] for entry in steps] == list(range(1, 7)), printed
        assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in steps)
    lines = [
        json.loads(line) for line in (root / f"skip-{kind}" / "skipped_in_training.jsonl").read_text().splitlines()
    ]
    # accelerate reads a batch ahead: that of step 2 was there when the videos were cut off.
    assert [(line["rank"], line["step"]) for line in lines] == [(1, step) for step in range(3, 7)]
    assert logs[0][5]["skipped_rows"] == 4
    for line in lines:
        assert (
            line["id"] and line["video"].startswith(str(root / f"skip-{kind}-1")) and line["video"] in line["reason"]
        )


def test_raise_ends_both_ranks_with_the_row_the_file_and_the_mend(launch):
    root, printed, _ = launch
    others, own = ((root / f"raised-{rank}.txt").read_text() for rank in (0, 1))
    assert re.search(rf"VideoError: row '[^']+': {root}/raise-1/.*on_bad_sample='skip'", own), own
    assert re.search(rf"RuntimeError: rank 1 met an error in its rows: row '[^']+': {root}/raise-1/", others), others
    for message in (others, own):
        assert f"The last whole checkpoint is {root}/raise/checkpoint-1. Continue with" in message


def test_a_killed_rank_ends_the_other_and_leaves_a_checkpoint(launch):
    root, printed, code = launch
    last = str(root / "killed" / "checkpoint-2")
    assert code != 0 and "Signal 9 (SIGKILL)" in printed
    assert f"The last whole checkpoint is {last}. Continue with `--resume_from_checkpoint last`" in printed
    assert last_whole_checkpoint(root / "killed") == last
