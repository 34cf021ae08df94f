# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest

from tests.golden.case import Case
from tests.golden.metrics_choices import check_mcq, check_vinoground

FOLDER = Path(__file__).parent / "metrics"


@pytest.mark.parametrize(("name", "check"), [("mcq", check_mcq), ("vinoground", check_vinoground)])
def test_equals_the_original_scorers(name, check):
    case = Case(name)
    check(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), case)
    assert case.lines
    missed = [line for line in case.lines.values() if not line.passed]
    assert not missed, missed


def test_a_changed_output_is_a_miss():
    golden = json.loads((FOLDER / "mcq.json").read_text(encoding="utf-8"))
    golden["expected"]["videomme_d2vlm"][0] = "D"
    golden["expected"]["mvbench_lmms"][0] = 1 - golden["expected"]["mvbench_lmms"][0]
    case = Case("mcq")
    check_mcq(golden, case)
    missed = {line.quantity for line in case.lines.values() if not line.passed}
    assert {"videomme_d2vlm letter", "mvbench lmms-eval"} <= missed
