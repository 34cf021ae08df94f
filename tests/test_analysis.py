# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""How the evidence tokens of a run look at frames: the numbers, and the page about them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_report import Page
from trl_temporal.evaluation.metrics.grounding import interval_f1
from trl_temporal.evaluation.run_folder import SavedAnswer, write_answers
from trl_temporal.models.d2vlm import frame_run_to_span, spans_to_frame_mask
from trl_temporal.models.d2vlm.modeling_d2vlm import salient_run
from trl_temporal.report.analysis import analyze
from trl_temporal.report.analysis_figures import SIZE, analysis_figures
from trl_temporal.report.analysis_numbers import analysis_numbers, auroc, calibration
from trl_temporal.report.analysis_tokens import RowF1, match_truth, read_row, read_tokens, run_spans

FRAME_S = 0.5


def make_answer(number, truth, shown=None, *, num_frames=32, noise=0.0, evidence=None, **fields):
    """
    An answer whose two stages look at `shown` (by default the truth): logits 4 inside and -4 outside, and noise; its
    intervals are what the model's rule makes of them.
    """
    rng = np.random.default_rng(number)
    timestamps_s, duration_s = np.arange(num_frames) * FRAME_S, num_frames * FRAME_S
    answer_looks_at = truth if shown is None else shown
    stages = [answer_looks_at if evidence is None else evidence, answer_looks_at]
    looked_at = [span for stage in stages for span in stage]
    inside = spans_to_frame_mask(looked_at, timestamps_s, duration_s)
    logits = np.where(inside, 4.0, -4.0) + noise * rng.normal(size=inside.shape)
    similarities = {"logits": logits, "salience": 1 / (1 + np.exp(-logits)), "cosines": np.tanh(logits / 8)}
    similarities = {name: values.astype(np.float32) for name, values in similarities.items()}
    runs = salient_run(torch.from_numpy(similarities["salience"]), 0.6).numpy()
    spans = [frame_run_to_span(run, timestamps_s, duration_s) for run in runs]
    answer = SavedAnswer(
        id=f"row-{number}",
        text=" ".join(["It happens in <evi>."] * len(stages[1])),
        evidence=spans[: len(stages[0])],
        response=spans[len(stages[0]) :],
        truth=[list(span) for span in truth],
        duration_s=duration_s,
        timestamps_s=timestamps_s.tolist(),
        task=("grounding", "dense")[number % 2],
        similarities=similarities,
    )
    return replace(answer, **fields)


def make_truth(rng, duration_s=16.0):
    """One to three intervals on the grid of the frames, apart from each other."""
    count = int(rng.integers(1, 4))
    starts_s = np.arange(count) * duration_s / count + FRAME_S * rng.integers(1, 4, count)
    return [[float(start_s), float(start_s + FRAME_S * rng.integers(2, 5))] for start_s in starts_s]


def make_run(num_answers=40, noise=0.0, **kwargs):
    rng = np.random.default_rng(7)
    return [make_answer(number, make_truth(rng), noise=noise, **kwargs) for number in range(num_answers)]


def make_text_answer(number, text, truth, **fields):
    return SavedAnswer(
        **{
            "id": f"text-{number}",
            "text": text,
            "evidence": None,
            "response": None,
            "truth": truth,
            "duration_s": 60.0,
            "timestamps_s": np.arange(60.0).tolist(),
            "task": "grounding",
            **fields,
        }
    )


def text_run(num_answers=30):
    """A model that writes its times as text, always multiples of 5."""
    rng = np.random.default_rng(0)
    answers = []
    for number in range(num_answers):
        start_s, length_s = float(rng.uniform(0, 40)), float(rng.uniform(3, 18))
        said = [5 * round(start_s / 5), 5 * round((start_s + length_s) / 5) + 5]
        answers.append(
            make_text_answer(number, f"From {said[0]} to {said[1]} seconds.", [[start_s, start_s + length_s]])
        )
    return answers


def brute_auroc(scores, inside):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[inside] for b in scores[~inside]]
    return np.mean(pairs) if pairs else np.nan


intervals = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda span: [span[0] / 2, (span[0] + span[1]) / 2]),
    max_size=5,
)


class TestParts:
    @given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40))
    def test_auroc_counts_pairs_with_ties_by_group(self, frames):
        scores, inside, group = (np.array(column) for column in zip(*frames, strict=True))
        np.testing.assert_allclose(auroc(scores, inside), [brute_auroc(scores, inside)])
        expected = [brute_auroc(scores[group == g], inside[group == g]) for g in range(group.max() + 1)]
        np.testing.assert_allclose(auroc(scores, inside, group), expected)

    @settings(max_examples=60)
    @given(st.lists(st.tuples(intervals, intervals), min_size=1, max_size=6))
    def test_f1_of_rows_is_the_f1_of_the_evaluation(self, rows):
        predicted = [np.array(spans, dtype=float).reshape(-1, 2) for _, spans in rows]
        f1 = RowF1(
            [np.array(truth, dtype=float).reshape(-1, 2) for truth, _ in rows], np.array([*map(len, predicted)])
        )
        expected = [interval_f1(truth, spans).mean() for truth, spans in rows]
        np.testing.assert_allclose(f1(np.concatenate(predicted)), expected, atol=1e-9)

    def test_matching(self):
        truth = np.array([[0.0, 2.0], [5.0, 9.0], [12.0, 14.0]])
        as_many = np.array([[12.0, 14.0], [5.0, 9.0], [0.0, 2.0]])
        assert match_truth(as_many, truth).tolist() == [0, 1, 2]  # in order, right or wrong
        assert match_truth(as_many[:2], truth).tolist() == [2, 1]
        assert match_truth(np.array([[3.0, 3.5], [40.0, 41.0]]), truth).tolist() == [
            0,
            2,
        ]  # none overlaps: the nearest
        assert match_truth(np.zeros((0, 2)), truth).tolist() == []

    def test_calibration_of_known_bins(self):
        found = calibration(np.array([0.05, 0.05, 0.95, 0.95, 1.0]), np.array([False, False, True, True, False]))
        assert found["inside"] == [0.0, *[None] * 8, pytest.approx(2 / 3)]
        assert found["frames"] == [0.4, *[0.0] * 8, 0.6]
        assert found["expected_error"] == pytest.approx(0.4 * 0.05 + 0.6 * (2.9 / 3 - 2 / 3))

    @pytest.mark.parametrize("time_rule", ["interval", "index"])
    @pytest.mark.parametrize("ties", ["first", "span"])
    def test_spans_are_those_of_the_models_rule(self, time_rule, ties):
        rng = np.random.default_rng(0)
        answers = [make_answer(n, make_truth(rng, n / 2 + 8), num_frames=n + 16, noise=3) for n in range(20)]
        for answer in answers:  # few values: many ties
            answer.similarities["salience"] = np.round(answer.similarities["salience"] * 3).astype(np.float32) / 3
            answer.timestamps_s = (
                np.array(answer.timestamps_s) * 1.01
            ).tolist()  # the last frames end at the duration
        tokens = read_tokens([read_row(answer) for answer in answers], time_rule)
        for threshold in (0.3, 0.9):
            expected = []
            for answer in answers:
                salience = torch.from_numpy(answer.similarities["salience"])
                runs = salient_run(salience, threshold, ties=ties).numpy()
                expected += [frame_run_to_span(run, answer.timestamps_s, answer.duration_s, time_rule) for run in runs]
            spans = run_spans(tokens.similarities["salience"], tokens, threshold, time_rule=time_rule, ties=ties)
            np.testing.assert_allclose(spans, expected)

    def test_tokens_know_their_frames(self):
        answers = [make_answer(0, [[1.0, 3.0]], num_frames=8), make_answer(1, [[0.0, 1.0], [2.0, 5.0]], num_frames=12)]
        tokens = read_tokens([read_row(answer) for answer in answers], "interval")
        assert tokens.row.tolist() == [0, 0, 1, 1, 1, 1] and tokens.stage.tolist() == [0, 1, 0, 0, 1, 1]
        assert tokens.frame_mask.sum(axis=1).tolist() == [8, 8, 12, 12, 12, 12]
        assert tokens.inside.sum(axis=1).tolist() == [4, 4, 2, 6, 2, 6]
        assert not (tokens.inside & ~tokens.frame_mask).any()


class TestNumbers:
    def test_a_perfect_model(self):
        numbers = analysis_numbers(make_run(), 0.6)
        for stage in ("evidence", "answer"):
            found = numbers["distribution"]["stages"][stage]
            assert found["auroc"] == found["auroc_per_token"] == 1 and found["overlap"] == 0
            assert found["low_peak"] == found["everywhere"] == 0
            assert sum(found["inside"]) == pytest.approx(1) and sum(found["peak"]) == pytest.approx(1)
            assert numbers["sweep"]["stages"][stage]["f1"] == pytest.approx([1.0] * 13)
            assert numbers["stages"]["counts"][stage]["exact"] == 1
        assert numbers["sweep"]["thresholds"] == pytest.approx(np.arange(0.3, 0.91, 0.05).tolist())
        assert numbers["reproduced"] == 1 and numbers["broken"] == numbers["without_truth"] == 0
        assert numbers["stages"]["mean_iou"] == 1 and numbers["stages"]["below_half"] == 0
        assert numbers["times"]["median_length_ratio"] == pytest.approx(1)
        assert [row["task"] for row in numbers["by_task"]] == ["dense", "grounding", None]
        assert all(row["f1"] == pytest.approx(1) for row in numbers["by_task"])
        json.dumps(numbers, allow_nan=False)

    def test_a_model_that_looks_elsewhere(self):
        rng = np.random.default_rng(3)
        answers = [make_answer(n, [[2.0, 4.0]], shown=[[10.0, 12.0 + rng.integers(0, 2)]]) for n in range(20)]
        numbers = analysis_numbers(answers)
        assert numbers["distribution"]["stages"]["answer"]["auroc"] < 0.5
        assert max(numbers["sweep"]["stages"]["answer"]["f1"]) == 0
        assert numbers["calibration"]["raw"]["answer"]["inside"][-1] == 0

    def test_the_sweep_at_the_configured_threshold_is_the_score_of_the_answers(self):
        numbers = analysis_numbers(make_run(noise=2.5), 0.6)
        sweep = numbers["sweep"]["stages"]["answer"]
        assert sweep["configured_f1"] == sweep["f1"][6] == pytest.approx(numbers["by_task"][-1]["f1"])
        assert len(set(np.round(sweep["f1"], 6))) > 3 and sweep["best_f1"] == max(sweep["f1"])
        off_the_grid = analysis_numbers(make_run(noise=2.5), 0.62)
        assert off_the_grid["sweep"]["stages"]["answer"]["f1"] == sweep["f1"]

    def test_salience_that_is_a_probability_is_calibrated(self):
        rng = np.random.default_rng(0)
        answers = []
        for number in range(300):
            answer = make_answer(number, [[4.0, 12.0]])
            inside = spans_to_frame_mask(answer.truth, answer.timestamps_s, answer.duration_s).astype(float)
            # Either side is drawn so that P(inside | salience) = salience: densities 2s and 2(1 - s) at base rate .5.
            salience = np.where(inside, np.sqrt(rng.random((2, 32))), 1 - np.sqrt(rng.random((2, 32))))
            answer.similarities = {"salience": salience.astype(np.float32)}
            answers.append(answer)
        numbers = analysis_numbers(answers)
        raw = numbers["calibration"]["raw"]["answer"]
        assert numbers["calibration"]["base_rate"] == 0.5
        assert raw["expected_error"] < 0.02
        assert numbers["calibration"]["relative"]["answer"]["expected_error"] > raw["expected_error"]
        overconfident = [
            replace(answer, similarities={"salience": np.sqrt(answer.similarities["salience"])}) for answer in answers
        ]
        assert analysis_numbers(overconfident)["calibration"]["raw"]["answer"]["expected_error"] > 0.1

    def test_other_similarities_choose_on_one_half_and_report_on_the_other(self):
        answers = make_run(60, noise=2.5)
        for answer in answers:  # the cosine sees what the trained similarity does not
            clean = make_answer(int(answer.id[4:]), answer.truth)
            answer.similarities["cosines"] = clean.similarities["cosines"]
        found = analysis_numbers(answers)["alternatives"]
        by_name = {entry["name"]: entry for entry in found["similarities"]}
        assert list(by_name) == [
            "as trained",
            "cosine",
            "softmax at temperature 0.5",
            "softmax at temperature 1",
            "softmax at temperature 2",
            "dot product",
        ]
        assert sum(found["rows"]) == 60 and min(found["rows"]) > 15
        assert by_name["cosine"]["f1"] == pytest.approx(1) and by_name["cosine"]["auroc"] == 1
        assert by_name["cosine"]["interval"][0] > 0 and by_name["as trained"]["difference"] == 0
        same_order = [entry["auroc_per_token"] for name, entry in by_name.items() if name != "cosine"]
        assert same_order == pytest.approx([same_order[0]] * 5, abs=1e-4)

        # Rows of the reporting half have no part in the choice, those of the other half none in the report.
        reporting = [replace(answer, truth=[[0.0, 0.5]]) if is_held_out(answer) else answer for answer in answers]
        changed = analysis_numbers(reporting)["alternatives"]["similarities"]
        for entry, before in zip(changed, found["similarities"], strict=True):
            assert entry["f1_by_threshold"] == before["f1_by_threshold"] and entry["threshold"] == before["threshold"]
            assert entry["f1"] < before["f1"]
        choosing = [answer if is_held_out(answer) else replace(answer, truth=[[0.0, 0.5]]) for answer in answers]
        changed = analysis_numbers(choosing)["alternatives"]["similarities"]
        assert (
            changed[1]["auroc"] == 1 and changed[1]["f1_by_threshold"] != found["similarities"][1]["f1_by_threshold"]
        )

    def test_without_logits_and_cosines_only_the_trained_similarity_is_left(self):
        answers = [
            replace(answer, similarities={"salience": answer.similarities["salience"]}) for answer in make_run(20)
        ]
        numbers = analysis_numbers(answers)
        assert [entry["name"] for entry in numbers["alternatives"]["similarities"]] == ["as trained"]

    def test_over_answering_and_disagreement(self):
        answers = [make_answer(0, [[2.0, 4.0]], shown=[[2.0, 4.0], [10.0, 12.0]]), make_answer(1, [[2.0, 4.0]])]
        answers.append(make_answer(2, [[2.0, 4.0]], shown=[[8.0, 9.0]], evidence=[[2.0, 4.0]]))
        answers.append(make_answer(3, [[2.0, 4.0]], shown=[[2.0, 4.0]], evidence=[[2.0, 4.0], [6.0, 7.0]]))
        found = analysis_numbers(answers)["stages"]
        assert found["counts"]["answer"]["over"] == 0.25 and found["counts"]["evidence"]["over"] == 0.5
        assert found["counts"]["answer"]["difference"][5:7] == [0.75, 0.25]
        assert found["unequal_counts"] == 0.25
        assert found["pairs"] == 4 and found["mean_iou"] == 0.75 and found["below_half"] == 0.25

    def test_quantised_times_of_a_text_model(self):
        numbers = analysis_numbers(text_run())
        times = numbers["times"]
        assert times["multiples"]["predicted"]["5"] == [1, 1] and times["multiples"]["predicted"]["1"] == [1, 1]
        assert max(times["multiples"]["truth"]["1"]) < 0.1
        assert 0 < times["multiples"]["predicted"]["10"][0] < 1
        assert times["phase"]["predicted"][0] == 1 and max(times["phase"]["truth"]) < 0.5
        within_10_s = times["within_10_s"]["predicted"]
        assert within_10_s[0] > 0.3 and within_10_s[0] + within_10_s[10] == pytest.approx(1)
        assert max(times["within_10_s"]["truth"]) < 0.2
        assert times["frame_spacing_s"] == 1 and times["length_correlation"] > 0.5
        for section in ("distribution", "calibration", "sweep", "alternatives", "stages", "reproduced"):
            assert numbers[section] is None
        assert numbers["tokens"] == 0 and numbers["by_task"][0]["f1"] > 0

    def test_times_on_the_edge_of_a_bin_fall_into_it(self):
        spans = [[number / 2, number / 2 + 10] for number in range(20)]
        times = analysis_numbers([make_text_answer(0, "", spans, response=spans)])["times"]
        assert times["within_10_s"]["predicted"] == pytest.approx([0.05] * 20)

    def test_times_are_read_behind_the_evidence(self):
        answers = [make_text_answer(0, "3 - 4 </evi> 5 - 10", [[5.0, 10.0]])]
        numbers = analysis_numbers(answers)
        assert numbers["times"]["spans"] == {"predicted": 1, "truth": 1} and numbers["by_task"][0]["f1"] == 1

    def test_times_on_a_frame_have_phase_0_in_spite_of_rounding(self):
        timestamps_s = (np.arange(64) / 29.97 + 0.02).tolist()
        spans = [[timestamps_s[n], timestamps_s[n + 7]] for n in range(40)]
        answers = [
            make_text_answer(0, "", spans, response=spans, timestamps_s=timestamps_s, duration_s=64 / 29.97 + 0.02)
        ]
        phase = analysis_numbers(answers)["times"]["phase"]
        assert phase["predicted"][0] == phase["truth"][0] == 1


def is_held_out(answer):
    """Whether an answer is in the half that thresholds are reported on."""
    from trl_temporal.report.analysis_numbers import _halves

    return bool(_halves([read_row(answer)])[0])


class TestBadInput:
    @pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
    def test_a_threshold_that_is_no_share(self, threshold):
        with pytest.raises(ValueError, match="threshold is"):
            analysis_numbers(make_run(2), threshold)

    def test_no_answers(self):
        with pytest.raises(ValueError, match="no answers"):
            analysis_numbers([])

    def test_broken_similarities_are_left_out_and_counted(self):
        good, answers = make_run(12), make_run(12)
        for number in range(4):
            answers.append(make_answer(100 + number, [[2.0, 4.0]]))
        answers[12].similarities["salience"][0, 3] = np.nan
        answers[13].similarities["logits"][1, 0] = np.inf
        answers[14].similarities["cosines"] = answers[14].similarities["cosines"][:, :-1]
        answers[15].response = [[float("nan"), 3.0]]
        numbers, clean = analysis_numbers(answers), analysis_numbers(good)
        assert numbers["broken"] == 4 and numbers["tokens"] == clean["tokens"]
        assert numbers["sweep"] == clean["sweep"]
        json.dumps(numbers, allow_nan=False)

    @pytest.mark.parametrize(
        "answer",
        [
            make_answer(0, []),
            make_answer(0, [], shown=[[1.0, 2.0]]),
            make_answer(0, [[1.0, 2.0]], shown=[], evidence=[]),
            make_answer(0, [[1.0, 2.0]], num_frames=1),
            make_answer(0, [[5.0, 5.0]], shown=[[1.0, 2.0]]),
            make_answer(0, [[float("nan"), 2.0]], shown=[[1.0, 2.0]]),
            make_answer(0, [[0.0, 16.0]]),  # nothing is outside
            make_answer(0, [[1.0, 2.0]], timestamps_s=[], similarities={}, response=[], evidence=[]),
            make_answer(0, [[1.0, 2.0]], similarities={}),
            make_text_answer(0, "", []),
            make_text_answer(0, "3..5 - 9 and ９ – ١٢ s", [[1.0, 2.0]], timestamps_s=[0.0]),
            make_text_answer(0, "1 - 2. " * 3000, [[1.0, 2.0]], duration_s=float("inf")),
            make_text_answer(0, "9 - 3, 4 - 4 </evi> 5 - 7", [[1.0, float("inf")], [7.0, 5.0]]),
        ],
    )
    def test_awkward_answers_never_crash(self, answer, tmp_path):
        for run in ([answer], [answer, *make_run(6)]):
            numbers = analysis_numbers(run)
            json.dumps(numbers, allow_nan=False)
            folder = tmp_path / str(len(run))
            write_answers(folder, 0, run)
            Page(analyze(folder).read_text(encoding="utf-8"))

    def test_flat_similarities(self):
        answers = make_run(8)
        for answer in answers:
            answer.similarities = {name: np.zeros_like(values) for name, values in answer.similarities.items()}
        numbers = analysis_numbers(answers)
        found = numbers["distribution"]["stages"]["answer"]
        assert found["auroc"] == found["auroc_per_token"] == 0.5
        assert found["low_peak"] == found["everywhere"] == found["overlap"] == 1


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "noisy"
    # One video is longer than all others: its interval is drawn at the edge.
    answers = [*make_run(199, noise=2.5), make_answer(199, [[2.0, 90.0]], num_frames=200)]
    write_answers(folder, 0, answers[:25])
    write_answers(folder, 1, answers[25:])
    settings = {
        "model": {"name": "org/<b>model</b>", "dtype": "float32"},
        "benchmark": "event_world",
        "settings_hash": "0123abcd",
        "salience_threshold": 0.5,
        "sampling": {"fps": 2.0, "time_rule": "interval"},
        "decoding": {"do_sample": False},
        "spans": [1, 2],
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def html(run_dir):
    return analyze(run_dir).read_text(encoding="utf-8")


class TestPage:
    def test_every_section_is_there_and_every_tag_closed(self, html):
        page = Page(html)
        assert [name for name in page.ids if name != "theme"] == [
            "summary",
            "similarities",
            "calibration",
            "threshold",
            "alternatives",
            "times",
            "stages",
            "settings",
        ]
        assert [reference[1:] for reference in page.references] == [name for name in page.ids if name != "theme"]
        text = " ".join(" ".join(page.text).split())
        for words in (
            "200 answers",
            "AUROC",
            "softmax at temperature 0.5",
            "0123abcd",
            "0.5 · configured",
        ):
            assert words in text, words
        assert not re.search(r"\b(nan|inf|None)\b", text)

    def test_every_figure_says_what_is_good_and_bad(self, html):
        readings = re.findall(r'<p class="reading">(.*?)</p>\n</figure>', html)
        assert len(readings) == html.count("<figure") == 3 + 2 + 1 + 1 + 3 + 2
        assert all("Good:" in reading and "Bad:" in reading for reading in readings)

    def test_opens_offline(self, html):
        for forbidden in ("http:", "https:", "url(", "@import", "fetch(", "//cdn"):
            assert forbidden not in html
        assert len(html) < 1_000_000

    def test_has_both_themes(self, html):
        assert "prefers-color-scheme: dark" in html and 'id="theme"' in html

    def test_names_are_text(self, html):
        assert "org/&lt;b&gt;model&lt;/b&gt;" in html and "<b>model" not in html

    def test_numbers_are_next_to_the_answers(self, html, run_dir):
        numbers = json.loads((run_dir / "analysis.json").read_text())
        assert numbers["threshold"] == 0.5 and numbers["answers"] == 200
        assert f"{numbers['sweep']['stages']['answer']['configured_f1']:.3f}" in html

    def test_everything_is_drawn_inside_the_plot(self, run_dir):
        numbers = json.loads((run_dir / "analysis.json").read_text())
        for figure in sum(analysis_figures(numbers).values(), []):
            assert figure.x_ticks and figure.y_ticks
            places = []
            for shape in figure.shapes:
                places += [shape["at"][:2]] if "at" in shape else []
                places += [[float(x) for x in point.split(",")] for point in shape.get("points", "").split()]
                if "box" in shape:
                    left, top, width, height = shape["box"]
                    places += [(left, top), (left + width, top + height)]
                    assert width > 0 and height >= 0
            x, y = np.array(places).T
            assert (SIZE["left"] <= x).all() and (x <= SIZE["right"] + 1e-6).all(), figure.title
            assert (SIZE["top"] <= y).all() and (y <= SIZE["bottom"] + 1e-6).all(), figure.title

    def test_warns_when_the_rule_does_not_give_the_saved_intervals(self, run_dir, html, tmp_path):
        # The answers were made at .6, the settings say .5.
        assert "Not the run's own rule." in html
        assert "Not the run's own rule." not in analyze(run_dir, tmp_path / "a.html", threshold=0.6).read_text()

    def test_output_and_threshold(self, run_dir, tmp_path):
        path = analyze(run_dir, tmp_path / "folder" / "page.html", threshold=0.7)
        assert path == tmp_path / "folder" / "page.html" and "0.7 · configured" in path.read_text()
        analyze(run_dir)  # back to the run's own, for the other tests
        assert json.loads((run_dir / "analysis.json").read_text())["threshold"] == 0.5

    def test_a_model_without_evidence_tokens(self, tmp_path):
        write_answers(tmp_path, 0, text_run())
        page = Page(analyze(tmp_path).read_text(encoding="utf-8"))
        assert page.ids == ["theme", "summary", "times"]
        text = " ".join(" ".join(page.text).split())
        assert "the run holds no similarities of evidence tokens" in text and "no evidence stage" in text
        assert "Multiples of 5 s are 100.0 % of the starts and ends" in text

    def test_the_time_rule_of_the_run(self, tmp_path):
        answers = make_run(6)
        for answer in answers:
            answer.evidence, answer.response = (
                [[start_s, end_s - FRAME_S] for start_s, end_s in spans]
                for spans in (answer.evidence, answer.response)
            )
        write_answers(tmp_path, 0, answers)
        for rule, share in (("index", 1.0), ("interval", 0.0)):
            (tmp_path / "settings.json").write_text(json.dumps({"model": "here", "sampling": {"time_rule": rule}}))
            page = analyze(tmp_path).read_text(encoding="utf-8")
            assert json.loads((tmp_path / "analysis.json").read_text())["reproduced"] == share
            assert ("Not the run's own rule." in page) == (share == 0)

    def test_videos_that_could_not_be_read(self, tmp_path):
        unread = make_text_answer(0, "", [[1.0, 2.0]], fault="not a video", duration_s=0.0, timestamps_s=[])
        write_answers(tmp_path, 0, [*make_run(9), unread])
        assert "since their video could not be read: 1." in analyze(tmp_path).read_text()
        numbers = json.loads((tmp_path / "analysis.json").read_text())
        assert numbers["sweep"]["stages"]["answer"]["configured_f1"] == pytest.approx(0.9)
        assert numbers["by_task"][-1]["f1"] == pytest.approx(0.9) and numbers["stages"]["mean_iou"] == 1

    def test_a_folder_without_answers(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="has no answers"):
            analyze(tmp_path)
