# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The study of Grounded-VideoDiT's parts: its statistics, its picture, and that it runs and goes on."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from trl_temporal.evaluation.evaluator import paired_bootstrap

FILE = Path(__file__).parents[1] / "benchmarks" / "grounded_videodit_ablation.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("grounded_videodit_ablation", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_ious(num_cells, num_seeds, num_clips=40):
    return np.random.default_rng(0).random((num_cells, num_seeds, num_clips))


def test_with_one_seed_it_is_the_bootstrap_of_the_evaluator(study):
    ious = random_ious(2, 1)
    expected = paired_bootstrap(ious[0, 0], ious[1, 0], num_samples=500)
    assert study.effect(ious, np.array([1, -1]), num_samples=500) == pytest.approx(expected)


def test_main_effects_and_what_two_parts_do_together(study):
    """IoU that is a known sum of parts, over all cells in the order of the factorial."""
    cells = study.factorial()
    value = [10 * cell.dtl + 4 * cell.obj - cell.time + 6 * (cell.dtl and cell.obj) for cell in cells]
    ious = np.tile(np.array(value, dtype=float)[:, None, None], (1, 2, 5))
    found = {factor: study.effect(ious, study.factor_signs(factor), num_samples=10) for factor in study.FACTORS}
    # What two parts do together is shared by the main effects of both.
    assert found == {"DTL": pytest.approx((13,) * 3), "Obj": pytest.approx((7,) * 3), "Time": pytest.approx((-1,) * 3)}
    assert study.effect(ious, study.factor_signs("DTL", "Obj"), num_samples=10) == pytest.approx((6,) * 3)
    assert study.effect(ious, study.factor_signs("DTL", "Time"), num_samples=10) == pytest.approx((0,) * 3)


def test_intervals_cover_the_differences_of_seeds(study):
    """
    Clips that all say the same leave the seeds alone: of 3 runs in 2 cells the interval is as wide as their standard
    error says, and not narrower because so few are drawn from themselves.
    """
    of_seeds = np.array([[0.0, 1.0, 2.0], [3.0, 5.0, 7.0]])
    ious = np.repeat(of_seeds[:, :, None], 4, axis=2)
    mean, low, high = study.effect(ious, np.array([1, -1]), num_samples=20_000)
    standard_error = np.sqrt((of_seeds.var(axis=1, ddof=1) / 3).sum())
    assert mean == -4
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.08)


def test_clips_are_paired(study):
    """Hard and easy clips are hard and easy for all cells, which says nothing about their difference."""
    hardness = 50 * np.random.default_rng(0).random(40)
    ious = np.stack([hardness + 1, hardness])[:, None].repeat(3, axis=1)
    assert study.effect(ious, np.array([1, -1])) == pytest.approx((1, 1, 1))


def test_cells_are_told_apart_and_none_is_trained_twice(study):
    cells = study.cells_of([0, 1, 2])
    assert len(cells) == len({(cell.name, cell.seed) for cell in cells}) == 3 * (8 + 1 + 2 + 3)
    assert [cell.name for cell in cells[:8]] == [cell.name for cell in study.factorial()]
    assert cells[0].name == "none" and cells[7].name == "DTL+Obj+Time" == study.FULL.name


def test_the_picture_is_hollow_where_nothing_is_shown(study):
    effects = {"DTL": [(5.0, 2.0, 8.0)] + [(1.0, -1.0, 3.0)] * 4, "Time": [(-2.0, -3.0, -1.0)] * 5}
    root = ElementTree.fromstring(study.draw(effects, num_clips=256, num_seeds=3))
    fills = [each.get("fill") for each in root.iter() if each.tag.endswith("circle")]
    assert [fill == "#fff" for fill in fills] == [False, True, True, True, True] + [False] * 5
    texts = {each.text for each in root.iter() if each.tag.endswith("text")}
    assert {"DTL", "Time", "0", "object_order"} <= texts


@pytest.mark.slow
def test_the_whole_study_in_small_goes_on_where_it_was(tmp_path):
    """Minutes on a busy core: 14 trainings of two steps."""
    command = [sys.executable, str(FILE), "--smoke", "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, timeout=1200)
    answers = sorted((tmp_path / "answers").iterdir())
    assert len(answers) == 14
    assert {len(json.loads(file.read_text())["spans"]) for file in answers} == {8}
    ElementTree.fromstring((tmp_path / "effects.svg").read_text())
    tables = (tmp_path / "tables.md").read_text()
    assert all(name in tables for name in ("| DTL+Obj+Time |", "| one span for all |", "| 16 / 32 |", "S = 8"))

    answers[0].unlink()
    written = {file: file.stat().st_mtime_ns for file in answers[1:]}
    subprocess.run(command, env=environment, check=True, timeout=1200)
    assert answers[0].exists()
    assert written == {file: file.stat().st_mtime_ns for file in answers[1:]}
    refused = subprocess.run(
        [*command[:2], "--output", str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert refused.returncode != 0 and "other settings" in refused.stderr
