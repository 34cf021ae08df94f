# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.data.grammar import format_dense, format_grounding, format_qa, split_response
from trl_temporal.evaluation.evaluator import evaluate_answers
from trl_temporal.report.curves import FACTORS, curve_groups, factor_table, nice_ticks
from trl_temporal.report.report import SYNTHETIC_NOTE, write_report
from trl_temporal.report.timeline import (
    bars,
    choose_rows,
    mark_difference,
    salience_curves,
    strip_jpeg,
    text_parts,
    time_axis,
)
from trl_temporal.spans import Span
from trl_temporal.video import Video

DURATION_S = 16.0
EVENTS = [[1.0, 3.0], [4.0, 7.0], [9.0, 12.0], [13.0, 15.0]]
CAPTIONS = ["The red disc blinks", "The blue cross shakes", "The red disc spins", "The green star grows"]
VOID_TAGS = {"meta", "img", "br", "link", "input", "hr"}


def message(role, text):
    return [{"role": role, "content": [{"type": "text", "text": text}]}]


def make_row(video, task, question, spans, response, **columns):
    return {
        "id": f"{video}-{task}",
        "task": task,
        "videos": [{"path": f"{video}.mp4"}],
        "prompt": message("user", question),
        "completion": message("assistant", response),
        "spans": spans,
        "all_spans": EVENTS,
        "duration": DURATION_S,
        "answer": "",
        "captions": [],
    } | columns


def make_rows(num_videos=6):
    rows = []
    for video in range(num_videos):
        rows += [
            make_row(video, "dense", "Describe it.", EVENTS, format_dense(CAPTIONS), captions=CAPTIONS),
            make_row(video, "grounding", "When does the red disc move?", EVENTS[::2], format_grounding(2)),
            make_row(
                video, "qa", "Who <b>blinks</b>?", EVENTS[:1], format_qa("The red disc", 1), answer="The red disc"
            ),
        ]
    return rows


def make_answer(row, rng):
    spans = [Span(start + rng.uniform(0, 1), end + rng.uniform(0, 1)) for start, end in row["spans"]]
    timestamps_s = np.arange(0, DURATION_S, 0.5)
    return SimpleNamespace(
        text=split_response(row["completion"][0]["content"][0]["text"])[1],
        evidence=spans,
        response=list(spans),
        salience=rng.random((2 * len(spans), len(timestamps_s))),
        timestamps_s=timestamps_s,
        duration_s=DURATION_S,
    )


def make_history(num_steps, factors=()):
    history = []
    for step in range(1, num_steps + 1):
        entry = {
            "loss": 2 / step,
            "loss/sft": 1 / step,
            "learning_rate": 1e-4,
            "num_tokens": 10.0 * step,
            "step": step,
        }
        entry |= {f"margins/{factor}": float(step) for factor in factors}
        entry |= {f"accuracies/{factor}": 1 - 0.5 / step for factor in factors}
        history.append(entry)
        if step % 10 == 0:
            validation = {"eval_grounding_f1": step / 100, "eval_grounding_f1_all_events": 0.5}
            history.append(validation | {"eval_grounding_f1@0.5": step / 100, "step": step, "eval_runtime": 2.0})
    return history + [{"train_runtime": 3.0, "train_loss": 1.0, "step": num_steps}]


def make_preferences():
    chosen, shifted = [[1.0, 3.0], [4.0, 7.0]], [[1.0, 3.0], [9.0, 12.0]]
    texts = [format_dense(CAPTIONS[:2]), format_dense([CAPTIONS[0], "The green cross shakes"])]
    rows = []
    for factor, response, spans in [
        ("shift", texts[0], shifted),
        ("distort", texts[1], chosen),
        ("delete", format_dense(CAPTIONS[:1]), chosen[:1]),
    ]:
        rows.append(
            make_row(len(rows), "dense", "Describe it.", chosen, texts[0])
            | {
                "chosen": message("assistant", texts[0]),
                "rejected": message("assistant", response),
                "chosen_spans": chosen,
                "rejected_spans": spans,
                "factor": factor,
                "factor_args": json.dumps({"event": 1}),
            }
        )
    return rows


def read_video(entry):
    """Noise, another one per file: the hardest picture for JPEG."""
    rng = np.random.default_rng(int(entry["path"].removesuffix(".mp4")))
    frames = rng.integers(0, 255, (16, 90, 120, 3), dtype=np.uint8)
    return Video(frames=frames, timestamps_s=np.arange(16.0), duration_s=DURATION_S, path=entry["path"])


class Page(HTMLParser):
    """Checks that every tag is closed, and collects ids, references and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.references, self.text = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.references += [attributes[name] for name in ("src", "href", "srcset", "action") if name in attributes]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    rows = make_rows()
    results = {
        name: evaluate_answers(
            rows, [make_answer(row, np.random.default_rng([seed, i])) for i, row in enumerate(rows)]
        )
        for seed, name in enumerate(["start", "SFT continued", "FPO"])
    }
    path = write_report(
        tmp_path_factory.mktemp("report") / "folder" / "report.html",
        title="FPO on a test",
        results=results,
        rows=rows,
        settings={"command": "examples/fpo.py", "FPO": {"beta": 0.1}},
        log_histories={"SFT continued": make_history(40), "FPO": make_history(40, ("shift", "distort"))},
        preference_rows=make_preferences(),
        read_video=read_video,
        compare=("FPO", "SFT continued"),
    )
    return path.read_text(encoding="utf-8")


class TestReport:
    def test_every_section_is_there_and_every_tag_closed(self, html):
        page = Page(html)
        assert [name for name in page.ids if name != "theme"] == [
            "results",
            "timelines",
            "preferences",
            "curves",
            "settings",
        ]
        text = " ".join(" ".join(page.text).split())
        for words in (
            "FPO on a test",
            "all events",
            "chance",
            "FPO − SFT continued",
            "95 % interval",
            SYNTHETIC_NOTE,
            "loss/sft",
            "eval_grounding_f1",
            "margins by factor",
            "similarity",
            "chosen",
            "rejected",
            "examples/fpo.py",
            "beta",
        ):
            assert words in text, words

    def test_opens_offline(self, html):
        assert all(reference.startswith(("#", "data:image/jpeg")) for reference in Page(html).references)
        without_pictures = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", html)
        for forbidden in ("http", "url(", "@import", "fetch(", "//cdn"):
            assert forbidden not in without_pictures

    def test_stays_small(self, html):
        assert len(html) < 5_000_000

    def test_eight_examples_of_all_tasks(self, html):
        tasks = re.findall(r'<article class="card example" data-task="(\w+)"', html)
        assert tasks == ["dense", "grounding", "qa"] * 2 + ["dense", "grounding"]
        # Truth, and two stages of three models; three pairs have two lanes each.
        assert html.count('<div class="lane">') == 8 * 7 + 3 * 2
        assert html.count('<div class="lane curve">') == 8 * 3

    def test_one_pair_of_every_factor(self, html):
        assert re.findall(r'pair">\s*<header><span class="tag">(\w+)', html) == ["shift", "distort", "delete"]
        assert "<mark>green</mark>" in html

    def test_text_is_escaped(self, html):
        assert "Who &lt;b&gt;blinks&lt;/b&gt;?" in html and "Who <b>" not in html

    def test_bare_minimum(self, tmp_path):
        rows = [row for row in make_rows(2) if row["task"] == "qa"]
        result = evaluate_answers(rows, [make_answer(row, np.random.default_rng(0)) for row in rows])
        path = write_report(
            tmp_path / "report.html",
            title="QA",
            results={"model": result},
            rows=rows,
            settings={},
            read_video=read_video,
        )
        page = Page(path.read_text())
        assert page.ids == ["theme", "results", "timelines", "settings"]

    def test_rows_of_another_evaluation_are_refused(self, tmp_path):
        rows = make_rows(1)
        result = evaluate_answers(rows, [make_answer(row, np.random.default_rng(0)) for row in rows])
        with pytest.raises(ValueError, match="'model' has 3 answers for 2 rows"):
            write_report(tmp_path / "r.html", title="", results={"model": result}, rows=rows[:2], settings={})


class TestCurves:
    def test_groups_families_and_baselines(self):
        groups = curve_groups({"SFT": make_history(30), "FPO": make_history(30, FACTORS[:2])})
        titles = {name: [chart.title for chart in charts] for name, charts in groups.items()}
        assert titles == {
            "Losses": ["loss", "loss/sft"],
            "Validation": [
                "eval_grounding_f1",
                "eval_grounding_f1 by IoU threshold, SFT",
                "eval_grounding_f1 by IoU threshold, FPO",
            ],
            "Preference": ["margins by factor, FPO", "accuracies by factor, FPO"],
            "Optimisation": ["learning_rate"],
        }
        assert [line.label for line in groups["Losses"][0].lines] == ["SFT", "FPO"]
        assert [line.label for line in groups["Validation"][0].lines] == ["SFT", "FPO", "all events"]
        assert [line.label for line in groups["Preference"][0].lines] == ["shift", "add"]

    def test_points_lie_inside_the_plot(self):
        rng = np.random.default_rng(0)
        history = [{"loss": float(rng.normal()), "step": step} for step in range(1, 1001)]
        (chart,) = curve_groups({"run": history})["Losses"]
        (line,) = chart.lines
        points = np.array([point.split(",") for point in line.points.split()], dtype=float)
        assert len(points) == len(line.values) == 400
        assert (points >= [46, 8]).all() and (points <= [350, 182]).all()
        assert len(line.smooth.split()) == 400

    @pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-2.0, -2.0], [1e-9, 2e-9], [1e12, float("nan"), -1e12]])
    def test_awkward_values(self, values):
        history = [{"loss": value, "step": step} for step, value in enumerate(values)]
        (chart,) = curve_groups({"run": history})["Losses"]
        assert chart.y_ticks and "nan" not in chart.lines[0].points

    def test_no_log_no_charts(self):
        assert curve_groups({}) == curve_groups({"run": [{"train_runtime": 1.0}]}) == {}

    @given(low=st.floats(-1e6, 1e6), extent=st.floats(1e-3, 1e6))
    def test_ticks_are_few_and_inside(self, low, extent):
        ticks = nice_ticks(low, low + extent)
        assert 1 <= len(ticks) <= 12
        assert all(low - 1e-3 * extent <= tick <= low + 1.001 * extent for tick in ticks)

    def test_factor_table(self):
        rows = factor_table({"FPO": make_history(4, ("shift",))}, ["shift", "merge"])
        assert rows == [{"factor": "shift", "margin": (1.0, 4.0), "accuracy": (0.5, 0.875)}]


class TestTimeline:
    def test_strip_shows_what_is_on_screen(self):
        frames = np.zeros((2, 30, 40, 3), dtype=np.uint8)
        frames[1] = 255
        strip = strip_jpeg(Video(frames=frames, timestamps_s=np.array([0.0, 12.0]), duration_s=16.0, path="a.mp4"))
        import base64
        import io

        from PIL import Image

        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.split(",")[1]))))
        assert picture.shape == (96, 12 * 128, 3)
        levels = picture.reshape(96, 12, 128, 3)[:, :, 8:-8].mean(axis=(0, 2, 3))
        assert (levels < 10).tolist() == [True] * 9 + [False] * 3  # dark for 12 of 16 seconds

    def test_bars_and_axis_share_a_scale(self):
        (bar,) = bars([[4.0, 20.0]], 16.0)
        assert (bar["left"], bar["width"], bar["title"]) == (25, 75, "4.0–20.0 s")
        assert {"left": 25.0, "label": "4"} in time_axis(16.0)

    def test_salience_steps_at_the_timestamps(self):
        answer = make_answer(make_rows(1)[2], np.random.default_rng(0))
        answer.timestamps_s, answer.salience = np.array([0.0, 4.0, 8.0]), np.array([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]])
        evidence, response = salience_curves(answer, 16.0, threshold=0.6)
        assert evidence["points"] == "0,100.0 250,100.0 250,6.0 500,6.0 500,53.0 1000,53.0"
        assert evidence["threshold"] == pytest.approx(100 - 94 * 0.6)
        assert (evidence["stage"], response["stage"]) == ("evidence", "answer")

    def test_text_with_times(self):
        parts = text_parts("It happens in <evi> and <evi>.", [[1.0, 2.5]])
        assert [part.get("text") or part["interval"] for part in parts] == [
            "It happens in ",
            "1.0–2.5 s",
            " and ",
            "?",
            ".",
        ]

    @pytest.mark.parametrize(
        ("rejected", "changed"),
        [
            (("It happens in <evi> and <evi>.", [[1, 2], [3, 5]]), (["3.0–4.0 s"], ["3.0–5.0 s"])),
            (("It happens in <evi>.", [[1, 2]]), (["and", "3.0–4.0 s"], [])),
            (("It ends in <evi> and <evi>.", [[1, 2], [3, 4]]), (["happens"], ["ends"])),
        ],
    )
    def test_differences_are_marked(self, rejected, changed):
        sides = mark_difference(("It happens in <evi> and <evi>.", [[1, 2], [3, 4]]), rejected)
        marked = [[part.get("text") or part["interval"] for part in side if part.get("changed")] for side in sides]
        assert tuple(marked) == changed

    @given(num_examples=st.integers(0, 30), num_videos=st.integers(0, 8))
    def test_rows_are_chosen_once_and_evenly(self, num_examples, num_videos):
        rows = make_rows(num_videos)
        chosen = choose_rows(rows, num_examples)
        assert len(set(chosen)) == len(chosen) == min(num_examples, len(rows))
        if len(chosen) >= 3:
            assert {rows[index]["task"] for index in chosen[:3]} == {"dense", "grounding", "qa"}
