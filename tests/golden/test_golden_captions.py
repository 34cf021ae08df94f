# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Dense captions against the original scorer's numbers (see `metrics/README.md`)."""

import copy
import json
from pathlib import Path

import pytest

from tests.golden.case import Case
from tests.golden.metrics_captions import check_youcook2
from trl_temporal.evaluation.metrics import captioning, youcook2, youcook2_original

GOLDEN = json.loads((Path(__file__).parent / "metrics" / "youcook2.json").read_text(encoding="utf-8"))


def lines_of(golden):
    case = Case("youcook2")
    check_youcook2(golden, case)
    return case.lines


def test_youcook2_equals_the_original():
    lines = lines_of(GOLDEN)
    missed = {name: line for name, line in lines.items() if not line.passed and not line.skipped}
    assert not missed
    skipped = {name: line.skipped for name, line in lines.items() if line.skipped}
    if skipped:
        pytest.skip(f"not checked: {skipped}")


class NoMeteor:
    def __init__(self):
        raise captioning.CaptionToolsMissing("no Java")


def test_without_java_the_rest_is_checked_and_the_gap_is_named(monkeypatch):
    monkeypatch.setattr(youcook2_original, "Meteor", NoMeteor)
    lines = lines_of(GOLDEN)
    assert {name for name, line in lines.items() if line.skipped} == {
        "CIDER",
        "METEOR",
        "SODA_c_2",
        "printed captions",
    }
    assert all(line.passed for line in lines.values() if not line.skipped)
    assert lines["printed report"].passed


def test_any_filler_gives_the_same_scores(monkeypatch):
    """Golden files of another filler go through the inner function."""
    monkeypatch.setattr(youcook2_original, "Meteor", NoMeteor)
    golden = copy.deepcopy(GOLDEN)
    golden["inputs"]["filler"] = "qqwwxx"
    assert all(line.passed for line in lines_of(golden).values() if not line.skipped)


@pytest.mark.parametrize("change", ["threshold", "denominator"])
def test_the_check_sees_a_fault(monkeypatch, change):
    monkeypatch.setattr(youcook2_original, "Meteor", NoMeteor)
    if change == "threshold":
        monkeypatch.setattr(youcook2_original, "IOU_THRESHOLDS", (0.3, 0.5, 0.7, 0.95))
    else:
        monkeypatch.setattr(youcook2, "_name", lambda sample_id: str(sample_id))
    assert any(not line.passed and not line.skipped for line in lines_of(GOLDEN).values())
