# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Two ranks with gloo on the CPU: a mixed batch does not hang, and two ranks learn what one process learns."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.distributed import two_ranks
from tests.helpers import assert_same_gradients


def test_two_ranks_equal_one_process(tiny_dir, event_world, tmp_path, monkeypatch):
    """
    Four rows with different numbers of tokens and events, one without video. With two accumulated batches each rank
    holds one row at a time, so that the row without video stands beside one with evidence. The ranks share the shards
    of an evaluation, and both know its numbers.
    """
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in event_world["train"]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [two_ranks.__file__, str(tiny_dir), str(tmp_path), str(rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as run:
        try:
            printed, _ = run.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            run.terminate()  # takes the ranks with it
            pytest.fail("two ranks hang")
    assert run.returncode == 0, printed
    whole = two_ranks.train_both(str(tiny_dir), str(tmp_path), num_ranks=1, accumulation=1)
    for shared in torch.load(tmp_path / "results.pt").values():
        for method in ("sft", "fpo"):
            assert_same_gradients(shared[method]["gradients"], whole[method]["gradients"])
            log, expected = shared[method]["log"], whole[method]["log"]
            for name in ("loss", "loss/sft", "loss/grounding", "loss/consistency"):
                assert log[name] == pytest.approx(expected[name], rel=1e-4), (method, name)
    monkeypatch.setattr(two_ranks.runner, "SHARD_ROWS", 5)  # put back at the end
    expected = two_ranks.answer(str(tiny_dir), str(rows), str(tmp_path / "alone"))
    for rank in (0, 1):
        assert json.loads((tmp_path / f"metrics_{rank}.json").read_text()) == expected
    for name in ("predictions.jsonl", "results.json"):
        assert (tmp_path / "answers" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
