# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import Trainer, TrainingArguments

from trl_temporal.data.grammar import format_dense, format_grounding, format_qa, split_response
from trl_temporal.evaluation import generation
from trl_temporal.evaluation.callback import GroundedEvaluationCallback
from trl_temporal.evaluation.evaluator import (
    GroundedEvaluator,
    evaluate_answers,
    paired_bootstrap,
    paired_difference,
)
from trl_temporal.evaluation.table import print_table
from trl_temporal.spans import Span

EVENTS = [[1.0, 3.0], [4.0, 7.0], [9.0, 12.0], [14.0, 16.0]]
CAPTIONS = ["The red disc blinks", "The blue cross shakes", "The red disc spins", "The green star grows"]


def make_rows(num_videos=6):
    rows = []
    for video in range(num_videos):
        shift = 0.25 * video
        events = [[start + shift, end + shift] for start, end in EVENTS]
        captions = random.Random(video).sample(CAPTIONS, 4)

        def row(task, question, spans, video=video, events=events, **columns):
            content = [{"type": "video"}, {"type": "text", "text": question}]
            return {
                "id": f"{video}-{task}",
                "task": task,
                "videos": [{"path": f"{video}.mp4"}],
                "prompt": [{"role": "user", "content": content}],
                "spans": spans,
                "all_spans": events,
                "duration": 20.0,
                "answer": "",
                "captions": [],
            } | columns

        rows.append(row("dense", "Describe every event.", events, captions=captions))
        rows.append(row("grounding", "When does the red disc move?", events[:1]))
        rows.append(row("grounding", "When does anything shake?", events[1:3]))
        rows.append(row("qa", "Which object blinks?", events[:1], answer=captions[0]))
    return rows


def right_answer(row):
    response = {
        "dense": lambda: format_dense(row["captions"]),
        "grounding": lambda: format_grounding(len(row["spans"])),
        "qa": lambda: format_qa(row["answer"], len(row["spans"])),
    }[row["task"]]()
    spans = [Span(*span) for span in row["spans"]]
    return generation.GroundedAnswer(
        text=split_response(response)[1],
        evidence=spans,
        response=list(spans),
        salience=np.zeros((2 * len(spans), 20)),
        timestamps_s=np.arange(20.0),
        duration_s=row["duration"],
    )


def noisy_answer(row, seed):
    """Right or moved and truncated, by a draw."""
    rng = random.Random(f"{seed}-{row['id']}")
    answer = right_answer(row)
    if rng.random() < 0.5:
        answer.response = [span.shift(rng.uniform(0, 2)) for span in answer.response]
        answer.text = answer.text.replace("red", "blue")
    return answer


class TestEvaluateAnswers:
    def test_right_answers_score_1(self):
        rows = make_rows()
        metrics = evaluate_answers(rows, [right_answer(row) for row in rows]).metrics
        perfect = [
            *("grounding_f1", "grounding_f1@0.1", "grounding_f1@0.7", "grounding_count_accuracy", "dense_f1"),
            *("caption_exact_match", "caption_exact_match_matched", "caption_word_f1"),
            *("qa_exact_match", "qa_evidence_f1", "stage_agreement"),
        ]
        assert [metrics[name] for name in perfect] == pytest.approx([1] * len(perfect))
        assert metrics["grounding_over_answering"] == metrics["malformed"] == metrics["stage_mismatch"] == 0

    def test_baselines_depend_on_the_rows_alone(self):
        rows = make_rows()
        right = evaluate_answers(rows, [right_answer(row) for row in rows]).metrics
        noisy = evaluate_answers(rows, [noisy_answer(row, 0) for row in rows]).metrics
        baselines = [name for name in right if name.endswith(("_chance", "_all_events"))]
        assert "grounding_f1_all_events" in baselines and "qa_exact_match_chance" in baselines
        assert {name: right[name] for name in baselines} == {name: noisy[name] for name in baselines}
        # One of four events, and two of four.
        assert right["grounding_f1_all_events"] == pytest.approx((0.4 + 2 / 3) / 2)
        assert right["grounding_over_answering_all_events"] == 1
        assert right["grounding_f1_chance"] < right["grounding_f1_all_events"]

    def test_no_all_events_baseline_where_the_events_are_unknown(self):
        rows = [row | {"all_spans": None} for row in make_rows()]
        assert "grounding_f1_all_events" not in evaluate_answers(rows, [right_answer(row) for row in rows]).metrics

    def test_the_headline_caption_score_counts_missed_events(self):
        row = make_rows(1)[0]
        answer = right_answer(row)
        answer.text = split_response(format_dense(row["captions"][:2]))[1]
        answer.response = answer.evidence = answer.response[:2]
        metrics = evaluate_answers([row], [answer]).metrics
        assert metrics["caption_exact_match"] == 0.5
        assert metrics["caption_exact_match_matched"] == metrics["caption_word_f1"] == 1
        assert metrics["dense_count_accuracy"] == 0

    @pytest.mark.parametrize(
        ("text", "num_spans"), [("", 0), ("It happens.", 0), ("It happens in <evi>.", 0), ("In <evi> <evi>.", 1)]
    )
    def test_malformed_answers_score_0_and_are_counted(self, text, num_spans):
        rows = make_rows()
        answers = [right_answer(row) for row in rows]
        for answer in answers:
            answer.text, answer.response = text, answer.response[:num_spans]
        metrics = evaluate_answers(rows, answers).metrics
        assert metrics["malformed"] == len(rows)
        assert metrics["grounding_f1"] == metrics["dense_f1"] == metrics["caption_exact_match"] == 0
        assert metrics["qa_exact_match"] == metrics["qa_evidence_f1"] == 0

    def test_stages_that_disagree(self):
        rows = make_rows(1)
        answers = [right_answer(row) for row in rows]
        answers[0].evidence = []  # unequal counts: told, and the response is scored all the same
        answers[1].evidence = [Span(answers[1].response[0].start_s, answers[1].response[0].midpoint_s)]
        metrics = evaluate_answers(rows, answers).metrics
        assert metrics["stage_mismatch"] == 1
        assert metrics["dense_f1"] == 1
        assert metrics["stage_agreement"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)

    def test_order_of_the_rows_does_not_matter(self):
        rows = make_rows()
        answers = [noisy_answer(row, 1) for row in rows]
        metrics = evaluate_answers(rows, answers).metrics
        order = random.Random(0).sample(range(len(rows)), len(rows))
        shuffled = evaluate_answers([rows[i] for i in order], [answers[i] for i in order]).metrics
        drawn = {name for name in metrics if name.startswith("grounding") and name.endswith("_chance")}
        assert {name: shuffled[name] for name in metrics.keys() - drawn} == pytest.approx(
            {name: metrics[name] for name in metrics.keys() - drawn}
        )

    def test_per_row_scores_stand_at_their_rows(self):
        rows = make_rows(2)
        result = evaluate_answers(rows, [right_answer(row) for row in rows])
        for name, task in [("grounding_f1", "grounding"), ("caption_exact_match", "dense"), ("qa_exact_match", "qa")]:
            assert (~np.isnan(result.per_row[name])).tolist() == [row["task"] == task for row in rows]

    def test_absent_tasks_have_no_metrics(self):
        rows = [row for row in make_rows() if row["task"] == "qa"]
        result = evaluate_answers(rows, [right_answer(row) for row in rows])
        assert not any(name.startswith(("grounding", "dense", "caption")) for name in result.metrics)
        assert "QA EM 1.000" in result.summary() and "grounding" not in result.summary()

    def test_wrong_input_is_named(self):
        rows = make_rows(1)
        with pytest.raises(ValueError, match="3 answers for 4 rows"):
            evaluate_answers(rows, [right_answer(row) for row in rows[:3]])
        with pytest.raises(ValueError, match=r"row 1 \(id '0-grounding'\) has the task 'tracking'"):
            evaluate_answers([rows[0], rows[1] | {"task": "tracking"}, *rows[2:]], [right_answer(row) for row in rows])


class TestPairedBootstrap:
    def test_equal_scores_differ_by_0(self):
        scores = np.random.default_rng(0).random(50)
        assert paired_bootstrap(scores, scores) == (0, 0, 0)

    def test_agrees_with_the_normal_interval(self):
        rng = np.random.default_rng(0)
        b = rng.random(400)
        a = b + rng.normal(0.1, 0.2, 400)
        difference, low, high = paired_bootstrap(a, b)
        half_width = 1.96 * (a - b).std() / 20
        assert difference == pytest.approx((a - b).mean())
        assert (difference - low, high - difference) == pytest.approx((half_width, half_width), rel=0.12)

    def test_clusters_widen_the_interval(self):
        values = np.repeat(np.random.default_rng(0).normal(size=40), 5)
        videos = np.repeat([f"{video}.mp4" for video in range(40)], 5)
        _, low, high = paired_bootstrap(values, np.zeros(200))
        _, clustered_low, clustered_high = paired_bootstrap(values, np.zeros(200), clusters=videos)
        assert clustered_high - clustered_low > 1.8 * (high - low)

    def test_weights(self):
        assert paired_bootstrap([1, 0], [0, 0], weights=[3, 1])[0] == 0.75
        assert paired_bootstrap([1, 0], [0, 0], weights=[0, 0]) == (0, 0, 0)

    @settings(max_examples=30)
    @given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
    def test_swapping_the_models_changes_the_sign(self, pairs):
        a, b = np.array(pairs).T
        difference, low, high = paired_bootstrap(a, b, num_samples=200)
        assert -1 <= low <= high <= 1
        assert paired_bootstrap(b, a, num_samples=200) == pytest.approx((-difference, -high, -low), abs=1e-9)

    def test_needs_pairs(self):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_bootstrap([1.0], [1.0, 2.0])
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_bootstrap([], [])

    @pytest.mark.parametrize("metric", ["grounding_f1", "caption_exact_match", "qa_exact_match"])
    def test_difference_equals_that_of_the_metrics(self, metric):
        rows = make_rows(12)
        # Dense rows of unequal size: a caption metric counts events, not rows.
        rows[0] |= {"spans": rows[0]["spans"][:1], "captions": rows[0]["captions"][:1]}
        a, b = (evaluate_answers(rows, [noisy_answer(row, seed) for row in rows]) for seed in (0, 1))
        difference, low, high = paired_difference(a, b, metric)
        assert difference == pytest.approx(a.metrics[metric] - b.metrics[metric])
        assert low <= difference <= high

    def test_results_on_different_rows_are_refused(self):
        a, b = (evaluate_answers(rows, [right_answer(row) for row in rows]) for rows in (make_rows(1), make_rows(2)))
        with pytest.raises(ValueError, match="different rows"):
            paired_difference(a, b, "grounding_f1")


class TestTable:
    def test_fits_80_columns(self):
        rows = make_rows(12)
        names = ["start checkpoint", "SFT continued", "FPO"]
        results = {
            name: evaluate_answers(rows, [noisy_answer(row, seed) for row in rows]) for seed, name in enumerate(names)
        }
        results["FPO"].answers[0].response = []
        results["FPO"] = evaluate_answers(rows, results["FPO"].answers)
        console = Console(width=80, record=True, file=io.StringIO())
        print_table(results, compare=("FPO", "SFT continued"), console=console)
        text = console.export_text()
        lines = [line.rstrip() for line in text.splitlines()]
        for name in [*names, "all events", "chance"]:
            (line,) = [line for line in lines if line.strip().startswith(name) and "−" not in line and "." in line]
            assert len(line.split()) == len(name.split()) + 8, line  # one line a row, all eight columns
        assert "FPO 1." in text and "…" not in text
        assert "FPO − SFT continued" in text
        for metric in ("grounding F1", "over-answering", "caption EM", "QA EM"):
            assert any(metric in line and "[" in line and "]" in line for line in lines)

    def test_only_the_columns_that_have_rows(self, capsys):
        rows = [row for row in make_rows(4) if row["task"] == "qa"]
        print_table({"model": evaluate_answers(rows, [right_answer(row) for row in rows])})
        printed = capsys.readouterr().out
        assert "EM" in printed and "grounding" not in printed


class ToyModel(torch.nn.Module):
    """A model that a Trainer can train, and whose answers the test makes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.modes = []

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - 1) ** 2).mean()}


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    def generate_answers(model, processor, rows, **kwargs):
        model.modes.append((model.training, torch.is_grad_enabled()))
        return [right_answer(row) for row in rows]

    monkeypatch.setattr(generation, "generate_answers", generate_answers)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        logging_steps=1,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        label_names=["labels"],
    )
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
    return Trainer(model=ToyModel(), args=arguments, train_dataset=data, eval_dataset=data[:2])


class TestCallback:
    def evaluator(self):
        return GroundedEvaluator(make_rows(2), processor=SimpleNamespace(), batch_size=2, progress=False)

    def test_after_every_n_steps(self, trainer, capsys):
        trainer.add_callback(GroundedEvaluationCallback(trainer, self.evaluator(), every_n_steps=3))
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "eval_grounding_f1" in entry]
        assert [entry["step"] for entry in logged] == [3]
        assert logged[0]["eval_grounding_f1"] == 1 and "eval_grounding_f1_all_events" in logged[0]
        assert "step 3: grounding F1 1.000 | all events 0.533" in capsys.readouterr().out
        assert trainer.model.modes == [(False, False)]  # in evaluation mode, without gradients

    def test_the_model_goes_on_in_the_mode_it_was_in(self, trainer):
        callback = GroundedEvaluationCallback(trainer, self.evaluator(), every_n_steps=1)
        for training in (True, False):
            trainer.state.global_step += 1
            callback.on_step_end(trainer.args, trainer.state, trainer.control, model=trainer.model.train(training))
            assert trainer.model.training is training
        assert trainer.model.modes == [(False, False)] * 2

    def test_joins_the_trainers_own_evaluation(self, trainer):
        callback = GroundedEvaluationCallback(trainer, self.evaluator())
        trainer.add_callback(callback)
        trainer.train()
        assert [entry["step"] for entry in trainer.state.log_history if "eval_grounding_f1" in entry] == [2, 4]
        metrics = trainer.evaluate()
        assert metrics["eval_grounding_f1"] == 1 and "eval_loss" in metrics
        assert callback.last_result.metrics["grounding_f1"] == 1

    def test_sharded_weights_are_refused(self, trainer):
        trainer.is_fsdp_enabled = True
        with pytest.raises(ValueError, match="FSDP"):
            GroundedEvaluationCallback(trainer, self.evaluator())
