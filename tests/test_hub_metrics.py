# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The metrics as `evaluate` loads them: by path, by folder and from a Hub space."""

import ast
import doctest
import importlib
import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from trl_temporal.evaluation.hub_metrics import METRICS, metric_path
from trl_temporal.evaluation.metrics.charades_sta import charades_sta
from trl_temporal.evaluation.metrics.mvbench import mvbench
from trl_temporal.spans import Span

evaluate = pytest.importorskip("evaluate")

REFERENCES = [
    {"id": str(n), "task": "ab"[n % 2], "answer": f"({letter}) {word}", "options": ["up", "down", "left"]}
    for n, (letter, word) in enumerate([("A", "up"), ("B", "down"), ("C", "left")])
]
PREDICTIONS = [{"id": "1", "text": "B"}, {"id": "0", "text": "(B)"}]


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """Nothing is written to the caches of the user. One folder for all, as Python remembers the modules in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path_factory.mktemp("metrics")))
        yield


def test_all_metrics_are_listed():
    folder = Path(metric_path("mvbench")).parents[1]
    assert sorted(METRICS) == sorted(path.stem for path in folder.glob("*/*.py"))
    assert all(Path(metric_path(name)).parent.name == name for name in METRICS)


def test_unknown_metric():
    with pytest.raises(ValueError, match="mvbench"):
        metric_path("rouge")


@pytest.mark.parametrize("name", METRICS)
def test_loads_by_file_and_by_folder(name):
    for path in (metric_path(name), str(Path(metric_path(name)).parent)):
        metric = evaluate.load(path)
        assert isinstance(metric, evaluate.Metric)
        assert metric.name == name
        assert metric.description and "predictions (`list[dict]`)" in metric.compute.__doc__


@pytest.mark.parametrize("name", METRICS)
def test_examples(name, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Java, which takes seconds to start: the examples do not show its numbers
    module = importlib.import_module(f"trl_temporal.evaluation.hub_metrics.{name}.{name}")
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("name", METRICS)
def test_files_stand_alone(name):
    """`evaluate` copies the file away from its folder, so that it may only import installed packages."""
    assert {(kind, package) for kind, package, *_ in evaluate.loading.get_imports(metric_path(name))} == {
        ("library", "trl_temporal")
    }


def test_result_is_that_of_the_function():
    scores = mvbench(PREDICTIONS, REFERENCES)
    result = evaluate.load(metric_path("mvbench")).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {**scores.metrics, "num_samples": 3, "problems": {"missing": 1}}
    options = {"scoring": "original", "scorer": "lmms_eval"}
    result = evaluate.load(metric_path("mvbench")).compute(predictions=PREDICTIONS, references=REFERENCES, **options)
    assert result["Total"] == mvbench(PREDICTIONS, REFERENCES, **options).metrics["Total"] == 50


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([], REFERENCES), (PREDICTIONS, []), (None, REFERENCES), (PREDICTIONS * 3, REFERENCES)],
)
def test_lists_of_different_lengths(predictions, references):
    result = evaluate.load(metric_path("mvbench")).compute(predictions=predictions, references=references)
    assert result["num_samples"] == len(references)
    assert result["Total"] == mvbench(predictions or [], references).metrics["Total"]


def test_batches_in_any_order():
    metric = evaluate.load(metric_path("mvbench"))
    metric.add_batch(predictions=PREDICTIONS[:1], references=REFERENCES[1:])
    metric.add(prediction=PREDICTIONS[1])
    metric.add(reference=REFERENCES[0])
    assert metric.compute()["Total"] == pytest.approx(100 / 3)
    # And once more from the start.
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES)["num_samples"] == 3


def test_numbers_arrive_as_they_are():
    rng = random.Random(0)
    references = [{"id": n, "timestamp": [rng.random(), 1 + rng.random()]} for n in range(20)]
    references = [{"image_id": "a", "caption": "b", **reference} for reference in references]
    spans = [[rng.random(), 1 + rng.random()] for _ in range(17)]
    spans += [[float("nan"), 1.0], [float("inf"), 2.0], [0.1, 1 / 3]]
    predictions = [{"id": n, "spans": [span]} for n, span in enumerate(spans)]
    expected = charades_sta(predictions, references)
    result = evaluate.load(metric_path("charades_sta")).compute(predictions=predictions, references=references)
    assert result == {**expected.metrics, "num_samples": 20, "problems": expected.problem_counts()}


@pytest.mark.parametrize(
    "spans", [np.array([[1.0, 2.5]]), [np.array([1.0, 2.5])], [(np.float32(1), np.float64(2.5))], [Span(1.0, 2.5)]]
)
def test_arrays_and_spans(spans):
    predictions = [{"id": np.int64(0), "spans": spans}]
    references = [{"id": "0", "spans": [[1.0, 2.5]]}]
    result = evaluate.load(metric_path("spans_metric")).compute(predictions=predictions, references=references)
    assert result["mIoU"] == 100


def test_records_without_references():
    record = {"task": "tvg", "source": "didemo", "idx": 0, "video": "a.mp4", "duration": 30.0, "tgt": [5, 10]}
    metric = evaluate.load(metric_path("etbench"))
    assert metric.compute(predictions=[{**record, "a": "</evi>5 - 10"}])["TVG"] == 100
    assert metric.compute(predictions=[{**record, "a": "</evi>5 - 10"}], scoring="original")["num_samples"] == 1


def test_a_refused_option_leaves_the_metric_usable():
    metric = evaluate.load(metric_path("mvbench"))
    with pytest.raises(ValueError, match="scoring"):
        metric.compute(predictions=PREDICTIONS, references=REFERENCES, scoring="best")
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES)["num_samples"] == 3


@pytest.mark.parametrize("name", METRICS)
def test_space(name, tmp_path):
    from trl_temporal.evaluation.hub_metrics.space import write_space

    folder = write_space(name, tmp_path / "space")
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    _, header, text = files["README.md"].split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["title"] == name and header["sdk"] == "gradio" and header["app_file"] == "app.py"
    assert header["tags"] == ["evaluate", "metric"]
    assert header["description"].endswith(".") and "`id`" in text
    requirements = files["requirements.txt"].split()
    assert requirements[0].split("[")[0] == "trl_temporal" and requirements[1].startswith("evaluate")
    assert ("packages.txt" in files) == ("caption" in requirements[0])
    assert files[f"{name}.py"] == Path(metric_path(name)).read_text(encoding="utf-8")
    assert f'evaluate.load("{name}.py")' in files["app.py"]
    ast.parse(files["app.py"])


def test_loads_from_a_space(tmp_path, monkeypatch):
    from trl_temporal.evaluation.hub_metrics.space import write_space

    folder = write_space("mvbench", tmp_path)
    asked = []

    def download(url, download_config):
        asked.append(url)
        return str(folder / url.rsplit("/", 1)[1])

    monkeypatch.setattr(evaluate.loading, "cached_path", download)
    monkeypatch.setattr(evaluate.loading, "increase_load_count", lambda *args, **kwargs: None)
    metric = evaluate.load("someone/mvbench")
    assert len(asked) == 1 and "spaces/someone/mvbench" in asked[0]
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES)["num_samples"] == 3


def test_a_space_is_written_over(tmp_path):
    from trl_temporal.evaluation.hub_metrics.space import write_space

    (tmp_path / "mvbench.py").write_text("old")
    write_space("mvbench", str(tmp_path))
    assert "Mvbench" in (tmp_path / "mvbench.py").read_text()
