# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.data.grammar import (
    EVI,
    EVI_END,
    format_dense,
    format_grounding,
    format_qa,
    normalize,
    parse_answer,
    parse_captions,
    split_response,
)

texts = st.from_regex(r"[A-Za-z]+([ ,'.-][A-Za-z]+){0,6}", fullmatch=True)


@given(st.lists(texts, min_size=1, max_size=8))
def test_dense_round_trip(captions):
    num_evidence, response = split_response(format_dense(captions))
    assert num_evidence == len(captions) == response.count(EVI)
    assert parse_captions(response) == captions


@given(texts, st.integers(0, 5))
def test_qa_round_trip(answer, num_events):
    num_evidence, response = split_response(format_qa(answer, num_events))
    assert num_evidence == num_events == response.count(EVI)
    assert parse_answer(response) == answer


@pytest.mark.parametrize(
    ("num_events", "response"),
    [
        (0, "</evi> It does not happen."),
        (1, "<evi> </evi> It happens in <evi>."),
        (2, "<evi> <evi> </evi> It happens in <evi> and <evi>."),
        (3, "<evi> <evi> <evi> </evi> It happens in <evi>, <evi> and <evi>."),
    ],
)
def test_grounding(num_events, response):
    assert format_grounding(num_events) == response
    assert split_response(response)[0] == num_events


def test_final_full_stop_is_written_once():
    assert format_dense(["It blinks."]) == format_dense(["It blinks"]) == "<evi> </evi> <evi> It blinks."


def test_no_captions_is_an_answer_without_evidence():
    assert split_response(format_dense([])) == (0, "Nothing happens.")
    assert parse_captions("Nothing happens.") == []


@pytest.mark.parametrize("marker", [EVI, EVI_END])
def test_markers_inside_a_caption_are_refused(marker):
    with pytest.raises(ValueError, match="already holds an evidence marker"):
        format_dense([f"It {marker} blinks"])


def test_generated_text_need_not_follow_the_grammar():
    assert split_response("no marker at all") == (0, "no marker at all")
    assert split_response("<evi> <evi> It never closes <evi>") == (0, "<evi> <evi> It never closes <evi>")
    assert split_response("<evi> </evi> a </evi> b") == (1, "a </evi> b")
    assert parse_captions("before <evi><evi> It blinks. ") == ["", "It blinks"]
    assert parse_answer("<evi>") == ""


def test_normalize():
    assert normalize("  The RED_disc,\n blinks! ") == "the reddisc blinks"
    assert normalize("Élan d'été.") == "élan dété"
