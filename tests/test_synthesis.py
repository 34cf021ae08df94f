# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import math
import warnings

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.data.event_world import distort_event_world_caption, simulate, video_rows
from trl_temporal.data.event_world_scene import ACTIONS, COLOURS, RADII
from trl_temporal.data.grammar import (
    EVI,
    format_dense,
    format_grounding,
    format_qa,
    parse_answer,
    parse_captions,
    split_response,
)
from trl_temporal.data.schema import SFT_FEATURES, validate_dataset, validate_row
from trl_temporal.spans import iou_matrix
from trl_temporal.synthesis import (
    FACTORS,
    TEMPORAL_FACTORS,
    TEXT_FACTORS,
    InfeasibleFactor,
    make_preference_row,
    make_preferences,
)
from trl_temporal.synthesis.factors import response_text

ROWS = [row for index in range(100) for row in video_rows(simulate(0, index), {"path": f"{index}.mp4"})]
ALL_FACTORS = TEMPORAL_FACTORS | TEXT_FACTORS

caption_texts = st.builds("The {} {} {}".format, *map(st.sampled_from, map(list, (COLOURS, RADII, ACTIONS))))


@st.composite
def rows(draw, tasks=("dense", "grounding", "qa")):
    """Rows with 1 to 6 events that may touch or overlap, up to the end of a video of any length."""
    duration_s = draw(st.floats(5, 300))
    starts = draw(st.lists(st.floats(0, 0.9), min_size=1, max_size=6))
    spans = [[start * duration_s, min(start + draw(st.floats(0.02, 1)), 1) * duration_s] for start in sorted(starts)]
    task = draw(st.sampled_from(tasks))
    captions = draw(st.lists(caption_texts, min_size=len(spans), max_size=len(spans))) if task == "dense" else []
    answer = draw(caption_texts) if task == "qa" else ""
    responses = {
        "dense": format_dense(captions),
        "grounding": format_grounding(len(spans)),
        "qa": format_qa(answer, len(spans)),
    }
    return {
        "id": draw(st.text(max_size=8)),
        "task": task,
        "videos": [{"path": "a.mp4"}],
        "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}],
        "completion": [{"role": "assistant", "content": responses[task]}],
        "spans": spans,
        "captions": captions,
        "answer": answer,
        "duration": duration_s,
    }


event_world_rows = st.sampled_from(ROWS)
seeds = st.integers(0, 2**32)


def apply(factor, row, seed):
    """The factor's result, or None where it says that it is infeasible."""
    try:
        return ALL_FACTORS[factor](row, np.random.default_rng(seed), distort_event_world_caption)
    except InfeasibleFactor as error:
        assert error.factor == factor and error.row_id == row["id"] and error.reason
        return None


def applied(factor, row, seed):
    rejected = apply(factor, row, seed)
    return None if rejected is None else (rejected, *split_response(rejected.response))


# What every factor keeps


@pytest.mark.parametrize("factor", FACTORS)
@given(row=rows() | event_world_rows, seed=seeds)
def test_rejected_is_a_valid_response_that_is_not_the_chosen_one(factor, row, seed):
    before = json.dumps(row)
    rejected = apply(factor, row, seed)
    assert json.dumps(row) == before  # the factor is pure
    assert rejected == apply(factor, row, seed)
    if rejected is None:
        return
    num_evidence, response = split_response(rejected.response)
    assert num_evidence == response.count(EVI) == len(rejected.spans) >= 1
    assert all(0 <= start_s < end_s <= row["duration"] for start_s, end_s in rejected.spans)
    assert (rejected.response, rejected.spans) != (response_text(row), row["spans"])
    assert json.loads(json.dumps(rejected.factor_args)) == rejected.factor_args


@pytest.mark.parametrize(
    ("factor", "tasks"),
    [
        ("shift", {"dense", "grounding", "qa"}),
        ("add", {"dense", "grounding"}),
        ("delete", {"dense", "grounding"}),
        ("merge", {"dense", "grounding"}),
        ("distort", {"dense", "qa"}),
        ("repeat", {"dense"}),
    ],
)
def test_event_world_rows_allow_each_factor_that_fits_their_task(factor, tasks):
    for row in ROWS:
        needs_two = factor in ("delete", "merge", "repeat")
        feasible = row["task"] in tasks and (len(row["spans"]) >= 2 or not needs_two)
        assert (apply(factor, row, 0) is not None) == feasible


# Each factor


@given(row=rows() | event_world_rows, seed=seeds)
def test_shift_moves_spans_away_from_every_true_one(row, seed):
    if (result := applied("shift", row, seed)) is None:
        return
    rejected, _, _ = result
    assert rejected.response == response_text(row)
    moved = [entry["event"] for entry in rejected.factor_args["shifted"]]
    assert 1 <= len(moved) <= math.ceil(len(row["spans"]) / 2)
    for i, (old, new) in enumerate(zip(row["spans"], rejected.spans, strict=True)):
        if i in moved:
            assert new[1] - new[0] == pytest.approx(old[1] - old[0])
            assert iou_matrix([new], row["spans"]).max() < 0.5
        else:
            assert new == old


def test_shift_of_a_short_event_is_at_least_half_its_length():
    for seed in range(100):
        row = {**ROWS[1], "duration": 1000.0, "spans": [[500.0, 502.0]]}
        row["completion"] = [{"role": "assistant", "content": format_grounding(1)}]
        (entry,) = apply("shift", row, seed).factor_args["shifted"]
        assert 1 <= abs(entry["delta_s"]) <= 2
        row["spans"] = [[500.0, 540.0]]
        (entry,) = apply("shift", row, seed).factor_args["shifted"]
        assert 12 <= abs(entry["delta_s"]) <= 40


@given(row=rows(("dense", "grounding")) | event_world_rows, seed=seeds)
def test_add_reports_one_event_that_is_not_there(row, seed):
    if (result := applied("add", row, seed)) is None:
        return
    rejected, _, response = result
    position = rejected.factor_args["event"]
    others = rejected.spans[:position] + rejected.spans[position + 1 :]
    assert others == row["spans"]
    assert iou_matrix([rejected.spans[position]], row["spans"]).max() < 0.1
    assert rejected.spans == sorted(rejected.spans, key=lambda span: span[0])
    if row["task"] == "dense":
        captions = parse_captions(response)
        assert captions[:position] + captions[position + 1 :] == row["captions"]
        neighbour = rejected.factor_args["neighbour"]
        assert neighbour in (position - 1, position) and captions[position] != row["captions"][neighbour]


@given(row=rows(("dense", "grounding")) | event_world_rows, seed=seeds)
def test_delete_leaves_out_some_events_and_never_all(row, seed):
    if (result := applied("delete", row, seed)) is None:
        return
    rejected, _, response = result
    deleted = rejected.factor_args["deleted"]
    assert 1 <= len(deleted) <= len(row["spans"]) // 2
    kept = [i for i in range(len(row["spans"])) if i not in deleted]
    assert rejected.spans == [row["spans"][i] for i in kept]
    if row["task"] == "dense":
        assert parse_captions(response) == [row["captions"][i] for i in kept]


@given(row=rows(("dense", "grounding")) | event_world_rows, seed=seeds)
def test_merge_makes_one_event_of_two(row, seed):
    if (result := applied("merge", row, seed)) is None:
        return
    rejected, _, response = result
    first, second = rejected.factor_args["merged"]
    assert second == first + 1
    pair = row["spans"][first : second + 1]
    hull = [min(span[0] for span in pair), max(span[1] for span in pair)]
    assert rejected.spans == [*row["spans"][:first], hull, *row["spans"][second + 1 :]]
    if row["task"] == "dense":
        kept = row["captions"][rejected.factor_args["kept_caption"]]
        assert kept in row["captions"][first : second + 1]
        assert parse_captions(response) == [*row["captions"][:first], kept, *row["captions"][second + 1 :]]


def test_merge_prefers_near_events():
    row = {**ROWS[0], "duration": 100.0, "spans": [[0.0, 2.0], [3.0, 4.0], [80.0, 90.0]], "captions": ["a", "b", "c"]}
    row["completion"] = [{"role": "assistant", "content": format_dense(row["captions"])}]
    merged = [apply("merge", row, seed).factor_args["merged"] for seed in range(200)]
    assert merged.count([0, 1]) > 180


@given(row=rows(("dense", "qa")) | event_world_rows, seed=seeds)
def test_distort_changes_texts_and_no_span(row, seed):
    if (result := applied("distort", row, seed)) is None:
        return
    rejected, _, response = result
    assert rejected.spans == row["spans"]
    changed = rejected.factor_args["distorted"]
    if row["task"] == "qa":
        assert changed == [{"from": row["answer"], "to": parse_answer(response)}]
        return
    assert 1 <= len(changed) <= math.ceil(len(row["captions"]) / 2)
    expected = list(row["captions"])
    for entry in changed:
        assert entry["from"] == expected[entry["event"]] != entry["to"]
        expected[entry["event"]] = entry["to"]
    assert parse_captions(response) == expected


@given(row=rows(("dense",)) | event_world_rows, seed=seeds)
def test_repeat_copies_the_caption_before(row, seed):
    if (result := applied("repeat", row, seed)) is None:
        return
    rejected, _, response = result
    event = rejected.factor_args["event"]
    assert rejected.spans == row["spans"]
    expected = list(row["captions"])
    assert event >= 1 and expected[event] != expected[event - 1]
    expected[event] = expected[event - 1]
    assert parse_captions(response) == expected


def test_repeat_needs_two_different_captions():
    row = {**ROWS[0], "spans": [[0.0, 2.0], [3.0, 5.0]], "captions": ["It blinks", "It blinks"]}
    row["completion"] = [{"role": "assistant", "content": format_dense(row["captions"])}]
    with pytest.raises(InfeasibleFactor, match="equal to the one before"):
        TEXT_FACTORS["repeat"](row, np.random.default_rng(0), distort_event_world_caption)


def test_an_event_that_fills_the_video_cannot_be_shifted_or_added_to():
    row = {**ROWS[1], "duration": 10.0, "spans": [[0.0, 10.0]]}
    row["completion"] = [{"role": "assistant", "content": format_grounding(1)}]
    with pytest.raises(InfeasibleFactor, match="no place with IoU under 0.5"):
        TEMPORAL_FACTORS["shift"](row, np.random.default_rng(0), distort_event_world_caption)
    # An added event a tenth as long would do, but is too short to be taken for one.
    with pytest.raises(InfeasibleFactor, match="no place with IoU under 0.1"):
        TEMPORAL_FACTORS["add"](row, np.random.default_rng(0), distort_event_world_caption)


def test_a_distorter_that_changes_nothing_is_reported():
    with pytest.raises(InfeasibleFactor, match="unchanged"):
        TEXT_FACTORS["distort"](ROWS[0], np.random.default_rng(0), lambda text, rng: text.upper() + ".")


def test_a_response_in_another_form_is_an_error():
    row = {**ROWS[0], "completion": [{"role": "assistant", "content": "<evi> </evi> In <evi> it blinks."}]}
    with pytest.raises(ValueError, match="is not what `trl_temporal.data.grammar` makes"):
        make_preference_row(row, seed=0)


# Preference rows


@given(row=event_world_rows, seed=seeds)
def test_preference_row_follows_the_contract(row, seed):
    pair = make_preference_row(row, seed=seed)
    validate_row(pair, kind="preference")
    assert pair == make_preference_row(row, seed=seed)
    assert {key: pair[key] for key in row} == row
    assert response_text({"completion": pair["chosen"]}) == response_text(row)
    assert pair["chosen_spans"] == row["spans"]
    assert pair["factor"] in FACTORS
    json.loads(pair["factor_args"])


def test_temporal_and_text_factors_are_drawn_evenly_where_both_are_possible():
    for task, text_factors in (("dense", 2), ("qa", 1)):
        row = next(row for row in ROWS if row["task"] == task)
        drawn = [make_preference_row({**row, "id": str(i)}, seed=0)["factor"] for i in range(600)]
        assert abs(np.mean([factor in TEXT_FACTORS for factor in drawn]) - 0.5) < 0.08
        assert len({factor for factor in drawn if factor in TEXT_FACTORS}) == text_factors


def test_only_the_given_factors_are_drawn():
    dense = [row for row in ROWS if row["task"] == "dense"]
    assert {make_preference_row(row, seed=0, factors=["merge", "add"])["factor"] for row in dense} == {"merge", "add"}
    with pytest.raises(ValueError, match="factors is"):
        make_preference_row(dense[0], seed=0, factors=["shuffle"])


def test_a_row_without_any_factor_says_why():
    with pytest.raises(InfeasibleFactor, match="it does not apply to the task 'qa'.*it does not apply"):
        make_preference_row(ROWS[3], seed=0, factors=["add", "repeat"])


def test_preferences_do_not_depend_on_the_order_of_the_rows():
    dataset = datasets.Dataset.from_list(ROWS[:80], features=SFT_FEATURES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = make_preferences(dataset, seed=3)
    validate_dataset(pairs, "preference")
    shuffled = make_preferences(dataset.shuffle(seed=1), seed=3)
    assert sorted(shuffled, key=lambda row: row["id"]) == sorted(pairs, key=lambda row: row["id"])
    assert make_preferences(dataset, seed=4)["rejected_spans"][:] != pairs["rejected_spans"][:]
    expected = make_preference_row(ROWS[0], seed=3)
    assert pairs[0]["rejected"] == expected["rejected"] and pairs[0]["factor_args"] == expected["factor_args"]


def test_rows_without_a_factor_are_left_out_and_named():
    dataset = datasets.Dataset.from_list(ROWS[:8], features=SFT_FEATURES)
    for _ in range(2):  # the second time from the cache of `datasets`
        with pytest.warns(
            UserWarning, match=r"6 of 8 rows.*event_world-train-000000-grounding-0 \(repeat: it does not"
        ):
            pairs = make_preferences(dataset, factors=["repeat"])
        assert pairs["id"][:] == ["event_world-train-000000-dense", "event_world-train-000001-dense"]


def test_the_text_of_another_data_set_needs_its_own_distortion():
    row = {**ROWS[0], "spans": [[0.0, 2.0]], "captions": ["A man opens a door"]}
    row["completion"] = [{"role": "assistant", "content": format_dense(row["captions"])}]
    with pytest.raises(ValueError, match="pass a `distort`"):
        make_preference_row(row, seed=0, factors=["distort"])
    pair = make_preference_row(row, seed=0, factors=["distort"], distort=lambda text, rng: text.replace("door", "box"))
    assert response_text({"completion": pair["rejected"]}) == "<evi> </evi> <evi> A man opens a box."
