# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The examples of the docstrings run, fenced as those of transformers or not."""

import doctest
import importlib

import pytest
from transformers.testing_utils import HfDocTestParser

from tests.test_house import MODULES, module_name

# lmms-eval imports the bridge, and is not installed here. The metrics for `evaluate` write modules into a cache, so
# that their examples run in `test_hub_metrics.py`, with a cache of their own.
WITH_EXAMPLES = [
    module_name(path)
    for path in MODULES
    if ">>>" in path.read_text(encoding="utf-8")
    and path.stem != "lmms_eval_bridge"
    and ">>> metric = evaluate.load(" not in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    if ".hub_metrics" in name:
        pytest.importorskip("evaluate")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(parser=HfDocTestParser()), doctest.DocTestRunner(verbose=False)
    found = [test for test in finder.find(module, name) if test.examples]
    printed = []
    for test in found:
        runner.run(test, out=printed.append)
    assert found and not runner.failures, "".join(printed)
