# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import copy
import json
from pathlib import Path

import pytest

from tests.golden.case import Case
from tests.golden.metrics_spans import check_charades, check_didemo, check_nextgqa, check_qvhighlights

FOLDER = Path(__file__).parent / "metrics"
CHECKS = {
    "charades": check_charades,
    "didemo": check_didemo,
    "nextgqa": check_nextgqa,
    "qvhighlights": check_qvhighlights,
}


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def missed(name, golden):
    case = Case(name)
    CHECKS[name](golden, case)
    return [(line.quantity, line.difference) for line in case.lines.values() if not line.passed]


@pytest.mark.parametrize("name", CHECKS)
def test_original_scoring_equals_the_original_scorers(name):
    assert missed(name, read(name)) == []


def numbers_of(expected, path=()):
    """Paths of all numbers in a nested golden."""
    items = expected.items() if isinstance(expected, dict) else enumerate(expected)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from numbers_of(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)


@pytest.mark.parametrize("name", CHECKS)
def test_every_number_of_the_golden_is_checked(name):
    golden = read(name)
    unchecked = []
    for *path, key in numbers_of(golden["expected"]):
        changed = copy.deepcopy(golden)
        target = changed["expected"]
        for step in path:
            target = target[step]
        target[key] += 1e-2
        if not missed(name, changed):
            unchecked.append((*path, key))
    assert unchecked == []
