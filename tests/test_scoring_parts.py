# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The parser of times, the overlap of intervals, and how predictions find their samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.evaluation.metrics.intervals import iou_pairs, iou_table
from trl_temporal.evaluation.metrics.scores import PROBLEMS, check_scoring, match_predictions
from trl_temporal.evaluation.metrics.time_text import check_spans, read_spans, split_at_spans, to_seconds
from trl_temporal.spans import Span


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("It happens in 3.5s - 9s.", [(3.5, 9)]),
        ("from 5 seconds to 9 seconds", [(5, 9)]),
        ("between 4 and 8.25 sec", [(4, 8.25)]),
        ("00:01:18 - 00:02:03.5", [(78, 123.5)]),
        ("0:05 until 0:09", [(5, 9)]),
        ("[1.5, 3], (4,5.5)", [(1.5, 3), (4, 5.5)]),
        ("１２ — １５ and ٣ – ٤", [(12, 15), (3, 4)]),
        ("1,200.5 - 1,300 s", [(1200.5, 1300)]),
        ("start time: 5.2, end time: 9.1", [(5.2, 9.1)]),
        ("starts at 00:00:18\nends at 00:01:23", [(18, 83)]),
        ("- 5 - 9: a bullet\n- 10 - 12: another", [(5, 9), (10, 12)]),
        ("1 - 2 3 - 4", [(1, 2), (3, 4)]),
        ("It ends at 5.0 - 7.", [(5, 7)]),
        ("10-20-30", [(10, 20)]),
        ("7 - 7", [(7, 7)]),
        ("no time at all", []),
        ("12", []),
        ("", []),
    ],
)
def test_times_in_text(text, spans):
    assert read_spans(text) == (spans, [])


@pytest.mark.parametrize(
    ("text", "spans", "kind"),
    [
        ("3..5 - 9", [], "malformed number"),
        ("-5 - 10", [], "malformed number"),
        ("5 - -10", [], "malformed number"),
        ("[-1, 2]", [], "malformed number"),
        ("9" * 400 + " - 3", [], "malformed number"),
        ("9 - 5", [(5, 9)], "reversed"),
    ],
)
def test_faults_are_named(text, spans, kind):
    read = read_spans(text)
    assert read.spans == spans
    assert [problem for problem, _ in read.problems] == [kind]


@given(st.text(alphabet="0123456789.:,-–[]() stoandbewn\n<evi>٣", max_size=60))
def test_any_text_is_read(text):
    read = read_spans(text)
    assert all(0 <= start_s <= end_s < math.inf for start_s, end_s in read.spans)
    assert {kind for kind, _ in read.problems} <= set(PROBLEMS)
    parts = split_at_spans(text)
    assert [span for span, _ in parts[1:]] == read.spans


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5))
def test_written_times_are_read_again(pairs):
    spans = [(min(pair) / 1000, max(pair) / 1000) for pair in pairs]
    assert read_spans(", ".join(f"{start_s} - {end_s}" for start_s, end_s in spans)).spans == spans
    parts = split_at_spans("steps: " + "".join(f"{start_s} - {end_s}, cut. " for start_s, end_s in spans))
    assert parts == [(None, "steps: "), *((span, ", cut. ") for span in spans)]


@given(st.lists(st.one_of(st.none(), st.text(max_size=3), st.lists(st.floats(), max_size=3)), max_size=5))
def test_any_intervals_are_checked(spans):
    read = check_spans(spans)
    assert all(0 <= start_s <= end_s < math.inf for start_s, end_s in read.spans)
    assert len(read.spans) + sum(kind == "malformed number" for kind, _ in read.problems) == len(spans)


def test_seconds():
    assert [to_seconds(text) for text in ("5.", "1:02", "1:1:1")] == [5, 62, 3661]
    assert {to_seconds(text) for text in ("1.2.3", "-1", "1:x")} == {None}


def test_what_is_no_interval_is_malformed():
    assert check_spans(["12", {"1": 0, "2": 0}, [1, 2]]).spans == [(1, 2)]


@given(*[st.tuples(st.integers(0, 30), st.integers(1, 30)).map(lambda pair: [pair[0], sum(pair)])] * 2)
def test_iou_is_that_of_spans(a, b):
    assert iou_table([a], [b])[0, 0] == pytest.approx(Span(*a).iou(Span(*b)))


def test_iou_of_points():
    points = np.array([[5, 5], [5, 5], [5, 5]])
    assert iou_pairs(points, np.array([[5, 5], [6, 6], [4, 6]])).tolist() == [1, 0, 0]
    assert iou_table(np.zeros((0, 2)), points).shape == (0, 3)


def test_predictions_find_their_samples():
    problems = []
    given = [
        {"id": 1, "text": "x"},
        {"id": "b", "spans": [[math.nan, 1]]},
        {"id": "b", "spans": [[math.nan, 1]]},
        {"id": "c", "text": "y"},
        {"id": "c", "text": "z"},
        {"id": "c", "text": "y"},
        {"id": "e"},
        {"text": "without an id"},
    ]
    matched = match_predictions(["1", "b", "c", "d"], given, problems)
    assert matched == [given[0], given[1], None, None]
    kinds = {(problem.id, problem.kind) for problem in problems}
    assert kinds == {
        ("b", "duplicate"),
        ("c", "conflict"),
        ("e", "unknown id"),
        ("None", "unknown id"),
        ("d", "missing"),
    }
    with pytest.raises(ValueError, match="'a' is there 2 times"):
        match_predictions(["a", "b", "a"], [], [])
    with pytest.raises(ValueError, match="must be one of"):
        check_scoring("new")
