# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal eval`: shards, resuming, settings, models of both kinds, and predictions of others."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import trl_temporal
from trl_temporal import (
    BenchmarkEvaluator,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    GroundedEvaluationCallback,
    evaluate_model,
    score_predictions,
)
from trl_temporal.cli import main
from trl_temporal.evaluation import answering, runner
from trl_temporal.evaluation.metrics.scores import Problem, Scores
from trl_temporal.evaluation.results import EvaluationRun
from trl_temporal.evaluation.run_folder import SavedAnswer, read_answers, read_settings, write_answers
from trl_temporal.evaluation.text_generation import TextAnswer

ROOT = Path(trl_temporal.__file__).parents[1]


@pytest.fixture
def data(event_world, tmp_path):
    """Rows of the training split as a file of one's own."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in event_world["train"]))
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(runner, "SHARD_ROWS", 5)


def test_a_run_leaves_everything_behind(tiny_dir, data, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["eval", str(tiny_dir), "--benchmark", "rows", "--data", str(data), "--output", str(output)]
    assert main([*arguments, "--batch-size", "4", "--max-new-tokens", "24"]) == 0
    table = capsys.readouterr().out
    assert "grounding_f1" in table and "all events" in table and "12 samples" in table
    results = json.loads((output / "results.json").read_text())
    settings = read_settings(output)
    assert results["settings_hash"] == settings["settings_hash"] and len(settings["settings_hash"]) == 12
    assert settings["sampling"]["fps"] and settings["decoding"]["max_new_tokens"] == 24
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in map(json.loads, open(data))]
    card = (output / "card.md").read_text()
    assert "model-index" in card and settings["settings_hash"] in card
    answers = list(read_answers(output))
    assert len(answers) == 12 and len(list((output / "answers").glob("*.jsonl"))) == 3
    for answer in answers:
        shape = (len(answer.evidence) + len(answer.response), len(answer.timestamps_s))
        assert {name: values.shape for name, values in answer.similarities.items()} == dict.fromkeys(
            ("salience", "logits", "cosines"), shape
        )
    # Its predictions, scored again without the model, give the same numbers.
    again = score_predictions(output / "predictions.jsonl", "rows", data)
    assert again.metrics == pytest.approx(results["scores"]["fixed"]["metrics"])


def numbers(output):
    return (output / "predictions.jsonl").read_bytes(), (output / "results.json").read_bytes()


def test_a_killed_run_goes_on_and_the_batch_size_does_not_matter(tiny_dir, data, tmp_path):
    evaluate_model(str(tiny_dir), "rows", data, output_dir=tmp_path / "whole", batch_size=5, max_new_tokens=24)
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "from trl_temporal.evaluation import runner\n"
        "runner.SHARD_ROWS = 5\n"
        "write = runner.write_answers\n"
        "def write_and_die(*args):\n"
        "    write(*args)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "runner.write_answers = write_and_die\n"
        "runner.evaluate_model(sys.argv[1], 'rows', sys.argv[2], output_dir=sys.argv[3], max_new_tokens=24)\n"
    )
    killed = subprocess.run(
        [sys.executable, script, tiny_dir, data, tmp_path / "killed"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(read_answers(tmp_path / "killed"))) == 4
    evaluate_model(str(tiny_dir), "rows", data, output_dir=tmp_path / "killed", batch_size=1, max_new_tokens=24)
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


def test_finished_shards_are_not_answered_again(tiny, data, tmp_path, monkeypatch):
    model, processor = tiny
    options = {"processor": processor, "output_dir": tmp_path / "run", "max_new_tokens": 8, "progress": False}
    first = evaluate_model(model, "rows", data, **options)

    def never(*args, **kwargs):
        raise AssertionError("all answers are there")

    monkeypatch.setattr(answering, "generate_answers", never)
    assert evaluate_model(model, "rows", data, **options).metrics == first.metrics
    with pytest.raises(ValueError, match="other settings.*decoding.*changed"):
        evaluate_model(model, "rows", data, **{**options, "max_new_tokens": 9})
    with pytest.raises(ValueError, match="not empty"):
        evaluate_model(model, "rows", data, **{**options, "output_dir": tmp_path})


def test_the_settings_hash_knows_what_decides_the_answers(tiny, data):
    model, processor = tiny
    options = {"processor": processor, "max_new_tokens": 4, "limit": 2, "progress": False}

    def settings_hash(**changed):
        return evaluate_model(model, "rows", data, **{**options, **changed}).settings["settings_hash"]

    base = settings_hash()
    assert settings_hash(batch_size=1) == base
    changes = [{"fps": 1.0}, {"max_frames": 4}, {"prompts": {"qa": "Say: {question}"}}, {"limit": 3}]
    assert len({base, *(settings_hash(**change) for change in changes)}) == 5


def test_an_unreadable_video(tiny, event_world, tmp_path):
    model, processor = tiny
    rows = [dict(row) for row in event_world["train"]]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    rows[1] = {**rows[1], "videos": [{**rows[1]["videos"][0], "path": str(broken)}]}
    options = {"processor": processor, "max_new_tokens": 8, "progress": False, "output_dir": tmp_path / "run"}
    with pytest.raises(ValueError, match="broken.mp4"):
        evaluate_model(model, "rows", rows, **options)
    run = evaluate_model(model, "rows", rows, on_bad_sample="skip", **{**options, "output_dir": tmp_path / "skip"})
    faults = [problem for problem in run.scores["fixed"].problems if problem.kind == "unreadable video"]
    assert [fault.id for fault in faults] == [rows[1]["id"]] and "broken.mp4" in faults[0].detail
    assert run.scores["fixed"].num_samples == len(rows)
    assert (tmp_path / "skip" / "problems.jsonl").read_text().count("unreadable video") == 1
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        evaluate_model(model, "rows", rows, on_bad_sample="ignore", **options)


def test_a_model_that_writes_times(event_world, monkeypatch, tmp_path):
    """The truth in words, as a stock model would write it, reaches the top."""
    rows = [dict(row) for row in event_world["train"]]

    def generate_texts(model, processor, rows, **options):
        assert options["fps"] == 1.0 and options["batch_size"] == 16
        texts = []
        for row in rows:
            question = row["prompt"][0]["content"][-1]["text"]
            times = [f"{start_s} - {end_s}" for start_s, end_s in row["spans"]]
            if row["task"] == "dense":
                assert "start - end, description" in question
                texts.append("\n".join(f"{time}, {text}" for time, text in zip(times, row["captions"], strict=True)))
            elif row["task"] == "qa":
                texts.append(" ".join([row["answer"], *times]))
            else:
                assert "start - end" in question
                texts.append(", ".join(times))
        return [TextAnswer(text, np.arange(3.0), 3.0) for text in texts]

    class Stock:
        """Stands for a model whose generation is the stub above."""

        name_or_path, dtype = "org/stock", "torch.float32"

        class config:
            model_type = "qwen3_vl"

    monkeypatch.setattr(answering, "generate_texts", generate_texts)
    run = evaluate_model(Stock(), "rows", rows, processor=object(), output_dir=tmp_path / "run", progress=False)
    for name in ("grounding_f1", "dense_f1", "caption_exact_match", "qa_exact_match", "grounding_R1@0.7"):
        assert run.metrics[name] == pytest.approx(100), name
    assert run.settings["model"]["name"] == "org/stock"
    assert run.settings["model"]["commit"] is None  # in memory, never loaded from the Hub
    assert list(read_answers(tmp_path / "run"))[0].response is None


def test_an_adapter(tiny, tiny_dir, data, tmp_path):
    """Folder of an adapter: its base is found, and its weights count."""
    model, processor = tiny
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=r".*language_model.*\.(q_proj|v_proj)$",
        modules_to_save=["evi_head", "frame_head"],
        trainable_token_indices={"embed_tokens": [processor.evidence_token_id, processor.evidence_end_token_id]},
    )
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    options = {"output_dir": tmp_path / "own", "max_new_tokens": 12, "limit": 4, "progress": False}
    evaluate_model(adapted, "rows", data, processor=processor, **options)
    run = evaluate_model(str(tmp_path / "adapter"), "rows", data, **{**options, "output_dir": tmp_path / "loaded"})
    base = evaluate_model(str(tiny_dir), "rows", data, **{**options, "output_dir": tmp_path / "base"})
    own, loaded, other = (list(read_answers(tmp_path / name)) for name in ("own", "loaded", "base"))
    assert [answer.text for answer in loaded] == [answer.text for answer in own]
    assert [answer.text for answer in loaded] != [answer.text for answer in other]
    assert run.settings["model"]["base"] == base.settings["model"]["sha256"]


def test_a_benchmark_while_training(tiny, event_world, config, tmp_path):
    model, processor = tiny
    rows = list(event_world["train"])
    arguments = config(EvidenceSFTConfig, max_steps=2)
    trainer = EvidenceSFTTrainer(model, args=arguments, train_dataset=event_world["train"], processing_class=processor)
    evaluator = BenchmarkEvaluator("rows", rows, processor, limit=8, max_new_tokens=8, frame_cache_dir=tmp_path / "f")
    trainer.add_callback(GroundedEvaluationCallback(trainer, evaluator, every_n_steps=1))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_grounding_R1@0.5" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    alone = evaluate_model(trainer.model, "rows", rows, processor=processor, limit=8, max_new_tokens=8, progress=False)
    assert {f"eval_{name}": value for name, value in alone.metrics.items()}.items() <= logged[-1].items()
    assert evaluator(trainer.model).summary().startswith("Rows: ")


def test_predictions_of_any_kind(event_world, data, tmp_path):
    rows = list(event_world["train"])
    own, words = tmp_path / "own.jsonl", tmp_path / "words.jsonl"
    completions = [row["completion"][0]["content"][0]["text"].split("</evi>")[1].strip() for row in rows]
    own.write_text(
        "".join(
            json.dumps({"id": row["id"], "text": text, "response": row["spans"], "evidence": row["spans"]}) + "\n"
            for row, text in zip(rows, completions, strict=True)
        )
    )
    run = score_predictions(own, "rows", data, output_dir=tmp_path / "scored")
    assert run.metrics["grounding_f1"] == run.metrics["caption_exact_match"] == 100
    assert (tmp_path / "scored" / "results.json").is_file()
    words.write_text(json.dumps({"id": rows[0]["id"], "text": "no idea"}) + "\n")
    run = score_predictions(words, "rows", data)
    assert run.scores["fixed"].problem_counts() == {"missing": len(rows) - 1}
    assert run.metrics["grounding_f1"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "rows"], "either a MODEL"),
        (["model", "--benchmark", "rows"], "--data"),
        (["model", "--benchmark", "mvbench", "--data", "."], "--predictions"),
        (["--predictions", "missing.jsonl", "--benchmark", "etbench"], "no such file"),
        (["--predictions", __file__, "--benchmark", "charades_sta"], "annotations"),
        (["--predictions", __file__, "--benchmark", "no_such"], "must be one of etbench"),
        (["--predictions", __file__, "--benchmark", "etbench"], "test_runner.py"),
    ],
)
def test_what_is_wrong_is_said(arguments, message, capsys):
    assert main(["eval", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_table_says_what_is_missing(capsys):
    scores = Scores({"A": 12.34, "B": 0.5}, [Problem("1", "empty")] * 3, 7, {"missing": {"Sim": "needs pip x[sim]"}})
    original = Scores({"a": 0.1234, "B": 40.0}, [], 7)
    settings = {"settings_hash": "abc", "rows": 7, "of_rows": 9}
    EvaluationRun("x", "X", {"fixed": scores, "original": original}, settings, {"a": "A"}).print_table()
    printed = capsys.readouterr().out
    assert "7 of 9 samples" in printed and "settings abc" in printed
    assert "Without Sim: needs pip x[sim]" in printed and "3  empty" in printed
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert lines["A"] == ["12.3", "0.123"] and lines["B"] == ["0.5", "40.0"]


def test_answers_come_back_as_they_were(tmp_path):
    similarities = {"salience": np.random.rand(2, 3).astype(np.float32)}
    answer = SavedAnswer("ä", "<evi>", [[0.0, 1.0]], [[0.0, 1.5]], [], 3.0, [0.0, 1.0, 2.0], "qa", "", similarities)
    text = SavedAnswer("b", "1 - 2", None, None, [[1.0, 2.0]], 3.0, [], "grounding")
    write_answers(tmp_path, 1, [text])
    write_answers(tmp_path, 0, [answer, answer])
    first, second, last = read_answers(tmp_path)
    np.testing.assert_array_equal(second.similarities["salience"], similarities["salience"])
    assert vars(last) == vars(text)
    assert {**vars(first), "similarities": None} == {**vars(answer), "similarities": None}
