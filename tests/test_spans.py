# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.spans import Span, iou_matrix

spans = st.builds(
    lambda start_s, duration_s: Span(start_s, start_s + duration_s),
    st.floats(0, 1e4, allow_nan=False),
    st.floats(0.01, 1e4, allow_nan=False),
)


@given(spans, spans)
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    assert a.iou(b) == b.iou(a)
    assert 0 <= a.iou(b) <= 1
    assert a.iou(a) == 1


@given(spans, spans, st.integers(-1000, 1000))
def test_iou_does_not_depend_on_where_the_video_starts(a, b, delta_s):
    if min(a.start_s, b.start_s) + delta_s >= 0:
        assert a.shift(delta_s).iou(b.shift(delta_s)) == pytest.approx(a.iou(b), abs=1e-6)


@given(spans, st.floats(0, 2e4))
def test_clip_stays_inside_the_video(span, duration_s):
    if span.start_s >= duration_s:
        with pytest.raises(ValueError, match="beyond the end"):
            span.clip(duration_s)
    else:
        clipped = span.clip(duration_s)
        assert clipped.start_s == span.start_s
        assert clipped.end_s <= min(duration_s, span.end_s)
        assert clipped.clip(duration_s) == clipped


@given(spans)
def test_parse_reads_what_str_writes(span):
    parsed = Span.parse(str(span))
    assert list(parsed) == pytest.approx(list(span), abs=5.1e-4)
    assert Span.parse(str(parsed)) == parsed


@given(spans)
def test_duration_and_midpoint(span):
    assert span.start_s + span.duration_s == pytest.approx(span.end_s)
    assert span.start_s < span.midpoint_s < span.end_s


@given(st.lists(spans, max_size=5), st.lists(spans, max_size=5))
def test_iou_matrix_equals_pairwise_iou(a, b):
    matrix = iou_matrix(a, [list(span) for span in b])
    assert matrix.shape == (len(a), len(b)) and matrix.dtype == np.float64
    expected = np.array([[x.iou(y) for y in b] for x in a]).reshape(len(a), len(b))
    np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_iou_by_hand():
    assert Span(0, 2).iou(Span(1, 3)) == pytest.approx(1 / 3)
    assert Span(0, 1).iou(Span(1, 2)) == 0
    assert Span(0, 10).iou(Span(2, 3)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("12.0s - 15.5s", [12.0, 15.5]),
        (" 1 - 2 ", [1.0, 2.0]),
        ("0.25s–3s", [0.25, 3.0]),
        ("7.125s - 7.25s", [7.125, 7.25]),
    ],
)
def test_parse(text, pair):
    assert list(Span.parse(text)) == pair


@pytest.mark.parametrize("text", ["", "12.0s", "-1.0s - 2.0s", "5s - 3s", "from 1s - 2s", "nan - 2"])
def test_parse_refuses(text):
    with pytest.raises(ValueError):
        Span.parse(text)


def test_text_form():
    assert str(Span(12, 15.5)) == "12.0s - 15.5s"
    assert str(Span(0, 10 + 1 / 3)) == "0.0s - 10.333s"


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        (5, 3, "start_s=5.0 and end_s=3.0"),
        (2, 2, "start_s=2.0 and end_s=2.0"),
        (-1, 3, "start_s=-1.0"),
        (0, float("inf"), "finite"),
        (float("nan"), 1, "finite"),
    ],
)
def test_bad_spans_name_their_numbers(start_s, end_s, message):
    with pytest.raises(ValueError, match=message):
        Span(start_s, end_s)
    with pytest.raises(ValueError, match=message):
        iou_matrix([[start_s, end_s]], [[0, 1]])


def test_shift_refuses_a_negative_start():
    assert Span(2, 3).shift(-2) == Span(0, 1)
    with pytest.raises(ValueError, match="start_s=-1.0"):
        Span(2, 3).shift(-3)


def test_spans_sort_hash_and_serialise():
    assert sorted([Span(2, 3), Span(1, 5), Span(1, 2)]) == [Span(1, 2), Span(1, 5), Span(2, 3)]
    assert len({Span(1, 2), Span(1.0, 2.0)}) == 1
    assert json.dumps(list(Span(np.float32(1), np.int64(2)))) == "[1.0, 2.0]"
