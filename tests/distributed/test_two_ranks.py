# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Two ranks with gloo on the CPU: a mixed batch does not hang, and two ranks learn what one process learns."""

import os
import subprocess
import sys

import pytest
import torch

from tests.distributed import two_ranks
from tests.helpers import assert_same_gradients


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_equal_one_process(tiny_dir, tmp_path, accumulation):
    """
    Four rows with different numbers of tokens and events, one without video. With two ranks and two accumulated
    batches each rank holds one row at a time, so that the row without video stands beside one with evidence.
    """
    two_ranks.main(str(tiny_dir), str(tmp_path), num_ranks=1, accumulation=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [two_ranks.__file__, str(tiny_dir), str(tmp_path), "2", str(accumulation)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            printed, _ = run.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            run.terminate()  # takes the ranks with it
            pytest.fail("two ranks hang")
    saved = tmp_path / f"results-2-{accumulation}.pt"
    assert saved.exists(), printed
    whole, shared = torch.load(tmp_path / "results-1-1.pt"), torch.load(saved)
    for method in ("sft", "fpo"):
        assert_same_gradients(shared[method]["gradients"], whole[method]["gradients"])
        log, expected = shared[method]["log"], whole[method]["log"]
        for name in ("loss", "loss/sft", "loss/grounding", "loss/consistency"):
            assert log[name] == pytest.approx(expected[name], rel=1e-4), (method, name)
