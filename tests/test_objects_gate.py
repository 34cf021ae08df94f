# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""When tracking starts, and what happens where the gate never opens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trl_temporal.objects.gate import (
    and_gate,
    find_start,
    gate_span,
    longest_run,
    order_objects,
    persistent,
    thresholds_of,
)
from trl_temporal.spans import Span

GATES = arrays(bool, st.integers(0, 12))


def scores(*columns):
    return np.array(columns, dtype=float).T


@given(
    arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.sampled_from([0.0, 0.25, 0.5])),
    st.sampled_from([0.25, 0.3]),
)
@settings(max_examples=200, deadline=None)
def test_the_gate_is_the_product_of_all_nouns(found, tau):
    expected = [all(score >= tau for score in frame) for frame in found]
    assert and_gate(found, np.full(found.shape[1], tau)).tolist() == expected


def test_no_nouns_do_not_open_the_gate():
    assert not and_gate(np.zeros((3, 0)), np.zeros(0)).any()


@given(GATES, st.integers(1, 14))
@settings(max_examples=300, deadline=None)
def test_persistence_is_the_product_over_the_window(gate, length):
    window = min(length, max(len(gate), 1))
    expected = [t + window <= len(gate) and all(gate[t : t + window]) for t in range(len(gate))]
    assert persistent(gate, length).tolist() == expected


@given(GATES, st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_longest_run(gate, min_frames):
    size = len(gate)
    runs = [(a, b) for a in range(size) for b in range(a, size) if gate[a : b + 1].all()]
    runs = [run for run in runs if run[1] - run[0] + 1 >= min_frames]
    assert longest_run(gate, min_frames) == (max(runs, key=lambda run: (run[1] - run[0], -run[0])) if runs else None)


def test_the_span_lasts_until_the_next_frame():
    times_s = np.array([0.5, 1.0, 3.0])
    assert gate_span(np.array([True, True, False]), times_s, 4.0) == Span(0.5, 3.0)
    assert gate_span(np.array([False, False, True]), times_s, 4.0) == Span(3.0, 4.0)
    assert gate_span(np.array([False, False, True]), times_s, 4.0, min_frames=2) is None


def test_start_is_the_first_frame_with_all_nouns_for_long_enough():
    dog = [0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9]
    ball = [0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    decision = find_start(scores(dog, ball), ["dog", "ball"], persistence=3)
    assert (decision.start, decision.used, decision.status) == (4, (0, 1), "ok")
    assert find_start(scores(dog, ball), ["dog", "ball"], persistence=2).start == 1
    assert decision.gate.tolist() == [False, True, True, False, True, True, True]


def test_each_noun_has_its_threshold():
    found = scores([0.3, 0.3, 0.5], [0.3, 0.3, 0.3])
    assert find_start(found, ["dog", "ball"], persistence=1).start == 0
    assert find_start(found, ["dog", "ball"], {"dog": 0.4}, persistence=1).start == 2
    assert thresholds_of(["dog", "ball"], 0.3).tolist() == [0.3, 0.3]


def test_a_video_shorter_than_the_persistence_takes_all_of_its_frames():
    decision = find_start(scores([0.9, 0.9]), ["dog"], persistence=5)
    assert (decision.start, decision.status) == (0, "ok")


def test_without_nouns_nothing_is_tracked():
    decision = find_start(np.zeros((4, 0)), [])
    assert (decision.start, decision.used, decision.status) == (None, (), "no_nouns")
    assert not decision.gate.any()


def test_a_noun_that_is_never_seen_is_left_out():
    decision = find_start(scores([0.9] * 4, [0.1] * 4), ["dog", "kite"])
    assert (decision.start, decision.used, decision.status) == (0, (0,), "partial:kite")
    strict = find_start(scores([0.9] * 4, [0.1] * 4), ["dog", "kite"], strict=True)
    assert (strict.start, strict.used, strict.status) == (None, (), "not_found")


def test_fewer_frames_in_a_row_are_the_next_best():
    found = scores([0.9, 0.1, 0.9, 0.9, 0.1])
    decision = find_start(found, ["dog"], persistence=4)
    assert (decision.start, decision.status) == (2, "persistence:2")
    assert find_start(found, ["dog"], persistence=4, strict=True).status == "not_found"


def test_the_frame_with_the_best_weakest_noun_is_the_next():
    found = scores([0.9, 0.2, 0.15], [0.1, 0.15, 0.9])  # never together
    decision = find_start(found, ["dog", "ball"])
    assert (decision.start, decision.used, decision.status) == (1, (0, 1), "floor")
    assert find_start(found, ["dog", "ball"], floor=0.2).status == "not_found"
    assert find_start(found, ["dog", "ball"], strict=True).start is None


def test_steps_of_the_fallback_add_up():
    found = scores([0.9, 0.1, 0.9], [0.0, 0.0, 0.0])
    assert find_start(found, ["dog", "kite"], persistence=2).status == "partial:kite;persistence:1"


def test_nothing_at_all_is_found():
    decision = find_start(np.zeros((3, 2)), ["dog", "ball"])
    assert (decision.start, decision.used, decision.status) == (None, (), "not_found")


@pytest.mark.parametrize(
    ("found", "nouns", "message"),
    [
        (np.zeros((3, 2)), ["dog"], "for 1 nouns"),
        (np.zeros((0, 1)), ["dog"], "no frame"),
        (np.full((3, 1), np.nan), ["dog"], "not numbers from 0 to 1"),
        (np.full((3, 1), 2.0), ["dog"], "not logits"),
    ],
)
def test_scores_that_cannot_be(found, nouns, message):
    with pytest.raises(ValueError, match=message):
        find_start(found, nouns)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="threshold of 'dog' is 0"):
        find_start(scores([0.5]), ["dog"], 0)
    with pytest.raises(ValueError, match="persistence of the gate is 0"):
        persistent(np.ones(3, bool), 0)


def test_two_nouns_of_one_thing_get_one_token():
    boxes = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.49], [0.5, 0.5, 1, 1]])
    assert order_objects(scores([0.5], [0.6], [0.9]), boxes) == [2, 1]
    assert order_objects(np.zeros((2, 0)), np.zeros((0, 4))) == []
