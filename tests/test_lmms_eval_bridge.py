# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The bridge to lmms-eval: requests to rows, answers to text, in the order and with the limits of the requests.

All but the last test run against a stand-in for the few names of lmms-eval that the bridge touches.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from loguru import logger

from tests.test_video import make_clip
from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor, GroundedAnswer, Span, generate_answers
from trl_temporal.evaluation import generation

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "eventworld_tiny"
BRIDGE = "trl_temporal.evaluation.lmms_eval_bridge"
ENTRY_POINT = f"trl_temporal = {BRIDGE}:model_manifest"


class StandIn:
    """`lmms_eval.api.model.lmms`, as far as models see it."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.task_dict = {}
        self.kept = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *args: self.kept.append(args))

    @property
    def rank(self):
        return self._rank


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class Request:
    """`lmms_eval.api.instance.Instance`, as far as models see it."""

    args: tuple = field(default_factory=tuple)


@pytest.fixture
def bridge(monkeypatch):
    """The module, imported beside the stand-in."""
    contents = {"api.model": {"lmms": StandIn}, "models.registry_v2": {"ModelManifest": Manifest}}
    for name in ("", ".api", ".models", *(f".{name}" for name in contents)):
        module = ModuleType(f"lmms_eval{name}")
        vars(module).update(contents.get(name[1:], {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    # Afterwards the module is forgotten, so that nobody finds one of the stand-in.
    monkeypatch.setitem(sys.modules, BRIDGE, None)
    monkeypatch.delitem(sys.modules, BRIDGE)
    return importlib.import_module(BRIDGE)


def messages(question, *media):
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def video(url, **crop):
    return {"type": "video", "url": url, **crop}


def requests_of(model, documents, settings=None):
    """One request per document, which is its messages."""
    model.task_dict["task"] = {"test": documents}
    settings = settings or [{"max_new_tokens": 64, "until": None}] * len(documents)
    return [Request((f"q{i}", lambda doc: doc, settings[i], i, "task", "test")) for i in range(len(documents))]


@pytest.fixture
def rows(event_world):
    """Questions about two videos, in turns."""
    train = [row for row in event_world["train"] if row["task"] != "dense"]
    paths = sorted({row["videos"][0]["path"] for row in train})[:2]
    of_each = [[row for row in train if row["videos"][0]["path"] == path][:3] for path in paths]
    return [row for pair in zip(*of_each, strict=True) for row in pair]


def as_document(row):
    return messages(row["prompt"][0]["content"][-1]["text"], video(row["videos"][0]["path"]))


def test_answers_are_those_of_the_model_with_spans_in_seconds(bridge, rows):
    model = bridge.GroundedModel(pretrained=str(EXAMPLE), batch_size="4", device="cpu")
    expected = generate_answers(
        D2VLMForConditionalGeneration.from_pretrained(EXAMPLE, dtype=torch.float32),
        D2VLMProcessor.from_pretrained(EXAMPLE),
        rows,
        max_new_tokens=96,
        progress=False,
    )
    requests = requests_of(model, [as_document(row) for row in rows])
    texts = model.generate_until(requests)
    assert any(answer.response for answer in expected)
    for text, answer in zip(texts, expected, strict=True):
        for span in answer.response:
            assert f"{span.start_s:.1f} - {span.end_s:.1f}" in text
        assert "<evi>" not in text
        words = answer.text.replace("<evi>", "").split()
        assert [word for word in text.split() if word[0].isalpha()] == [word for word in words if word[0].isalpha()]
    assert [call[1:] for call in sorted(model.kept, key=lambda call: call[1][0])] == [
        ((f"q{i}", requests[i].args[2]), text) for i, text in enumerate(texts)
    ]
    plain = bridge.GroundedModel(pretrained=str(EXAMPLE), spans=False, device="cpu")
    without = plain.generate_until(requests_of(plain, [as_document(row) for row in rows]))
    assert without == [" ".join(answer.text.replace(" <evi>", "").replace("<evi>", "").split()) for answer in expected]


@pytest.fixture
def recorded(bridge, monkeypatch):
    """A model whose answers are its questions, and the calls that it got."""
    calls = []

    def answer(model, processor, rows, **kwargs):
        calls.append((rows, kwargs))
        return [
            GroundedAnswer(
                text=f"It is {row['prompt'][-1]['content'][-1]['text']} in <evi>, and <evi>.",
                evidence=[],
                response=[Span(0, 1.25), Span(12, 15.5)],
                salience=np.zeros((0, 0)),
                timestamps_s=np.zeros(0),
                duration_s=0.0,
            )
            for row in rows
        ]

    monkeypatch.setattr(generation, "generate_answers", answer)
    return bridge.GroundedModel(pretrained=str(EXAMPLE), batch_size=3, device="cpu"), calls


def test_order_and_limits(recorded):
    model, calls = recorded
    documents = [messages("A", video("2.mp4")), messages("B", video("1.mp4")), messages("C", video("2.mp4"))]
    settings = [{"max_new_tokens": 16}, {"max_new_tokens": 16}, {"max_new_tokens": 8, "until": ["\n\n", " in"]}]
    texts = model.generate_until(requests_of(model, documents * 2, settings * 2))
    assert (
        texts == ["It is A in 0.0 - 1.25, and 12.0 - 15.5.", "It is B in 0.0 - 1.25, and 12.0 - 15.5.", "It is C"] * 2
    )
    assert [kwargs["max_new_tokens"] for _, kwargs in calls] == [8 + 32, 16 + 32]
    assert all((kwargs["batch_size"], kwargs["progress"]) == (3, True) for _, kwargs in calls)
    # Questions about one video follow each other.
    assert [row["videos"][0]["path"] for row in calls[1][0]] == ["1.mp4", "1.mp4", "2.mp4", "2.mp4"]


def test_requests_to_rows(recorded):
    model, calls = recorded
    system = {"role": "system", "content": "Be brief."}
    documents = [
        [system, *messages("A", video("a.mp4", start_time=2, end_time=None))],
        messages("B", video({"path": "b.mp4", "video_start": 1.5, "video_end": 3})),
        messages("C"),
    ]
    model.generate_until(requests_of(model, documents))
    found = {row["id"]: row for row in calls[0][0]}
    assert found["task/test/0"]["videos"] == [{"path": "a.mp4", "start_s": 2.0}]
    assert [message["content"] for message in found["task/test/0"]["prompt"]] == [
        [{"type": "text", "text": "Be brief."}],
        [{"type": "video"}, {"type": "text", "text": "A"}],
    ]
    assert found["task/test/1"]["videos"] == [{"path": "b.mp4", "start_s": 1.5, "end_s": 3.0}]
    assert found["task/test/2"]["videos"] == []


@pytest.mark.parametrize(
    "media, fault", [([{"type": "image", "url": "a.png"}], "holds an image"), ([video("a"), video("b")], "2 videos")]
)
def test_what_the_model_cannot_see_is_refused_first(recorded, media, fault):
    model, calls = recorded
    documents = [messages("A", video("a.mp4")), messages("B", *media)]
    with pytest.raises(ValueError, match=f"document 1 of task holds.*{fault.split()[-1]}"):
        model.generate_until(requests_of(model, documents))
    assert not calls


@pytest.mark.parametrize("asked", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}])
def test_sampling_is_reported(recorded, asked):
    model, _ = recorded
    logged = []
    sink = logger.add(logged.append, level="WARNING")
    model.generate_until(requests_of(model, [messages("A")], [{"temperature": 0, "num_beams": 1, "do_sample": False}]))
    assert not logged
    model.generate_until(requests_of(model, [messages("A")], [asked]))
    logger.remove(sink)
    assert "the answers are greedy all the same" in logged[0]


def test_no_requests(recorded):
    assert recorded[0].generate_until([]) == []


@pytest.mark.parametrize("method", ["loglikelihood", "generate_until_multi_round"])
def test_what_the_model_does_not_do(recorded, method):
    with pytest.raises(NotImplementedError, match="choose tasks with"):
        getattr(recorded[0], method)([])


def test_arguments(bridge):
    model = bridge.GroundedModel(str(EXAMPLE), batch_size="2", device="cpu", fps=1, max_frames=4, dtype="bfloat16")
    assert (model.batch_size, model.processor.fps, model.processor.max_frames) == (2, 1.0, 4)
    assert (model.model.dtype, model.device.type, model.model.training) == (torch.bfloat16, "cpu", False)
    model = bridge.GroundedModel(str(EXAMPLE), device="cpu")
    assert (model.model.dtype, model.processor.fps) == (torch.float32, D2VLMProcessor.from_pretrained(EXAMPLE).fps)


def test_another_kind_of_model_is_refused(bridge, monkeypatch):
    import transformers

    other = SimpleNamespace(config=SimpleNamespace(model_type="qwen3_vl"))
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda *args, **kwargs: other)
    with pytest.raises(ValueError, match="is a qwen3_vl, not a D2VLM"):
        bridge.GroundedModel(str(EXAMPLE), device="cpu")


def test_manifest(bridge):
    manifest = bridge.model_manifest()
    module, _, name = manifest.chat_class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert issubclass(found, StandIn) and not found.is_simple
    assert manifest.model_id == "trl_temporal" and manifest.simple_class_path is None


def test_the_entry_point_is_declared():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"lmms_eval.models"' in setup and ENTRY_POINT in setup


def test_without_lmms_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delitem(sys.modules, BRIDGE, raising=False)
    with pytest.raises(ImportError, match="needs lmms-eval.*docs/lmms_eval.md"):
        importlib.import_module(BRIDGE)


TASK = """
task: event_world_stub
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
process_results: !function utils.results
metric_list:
  - metric: has_span
    aggregation: mean
    higher_is_better: true
"""
TASK_FUNCTIONS = r"""
import re


def visual(doc):
    return [doc["video"]]


def results(doc, answers):
    return {"has_span": float(bool(re.search(r"\d\.\d+ - \d+\.\d", answers[0])))}
"""


def test_lmms_eval_itself(tmp_path, rows):
    """A task of three questions, through its command line."""
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip("lmms_eval is not installed")
    questions = [
        {"video": row["videos"][0]["path"], "question": row["prompt"][0]["content"][-1]["text"], "answer": "-"}
        for row in rows[:2]
    ]
    make_clip(tmp_path / "other.mp4", np.arange(20) * 100)
    questions.append({"video": str(tmp_path / "other.mp4"), "question": "When does anything blink?", "answer": "-"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "stub.yaml").write_text(TASK.format(rows=data))
    (tasks / "utils.py").write_text(TASK_FUNCTIONS)
    installed = tmp_path / "site" / "entry-0.dist-info"  # as an installed package declares it
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: entry\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[lmms_eval.models]\n{ENTRY_POINT}\n")
    paths = [str(installed.parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "lmms_eval", "--model", "trl_temporal", "--tasks", "event_world_stub"),
            *("--model_args", f"pretrained={EXAMPLE},fps=2", "--batch_size", "2", "--device", "cpu"),
            *("--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--log_samples"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (scores,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(scores.read_text())["n-samples"]["event_world_stub"]["effective"] == 3
    (samples,) = (tmp_path / "out").rglob("*_samples_*.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    answers = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    expected = generate_answers(
        D2VLMForConditionalGeneration.from_pretrained(EXAMPLE, dtype=torch.float32),
        D2VLMProcessor.from_pretrained(EXAMPLE),
        rows[:2],
        max_new_tokens=48,
        progress=False,
    )
    for text, answer in zip(answers[:2], expected, strict=True):
        assert all(f"{span.start_s:.1f} - {span.end_s:.1f}" in text for span in answer.response)
    assert len(answers) == 3
