# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The factors and what they keep, the draw of a factor, and preference rows one at a time."""

import json
import math
import pickle
import warnings
from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assistant, user
from trl_temporal.data.event_world import simulate, video_rows
from trl_temporal.data.event_world_scene import ACTIONS, COLOURS, RADII
from trl_temporal.data.grammar import (
    EVI,
    format_dense,
    format_grounding,
    format_qa,
    normalize,
    parse_answer,
    parse_captions,
    split_response,
)
from trl_temporal.data.schema import SFT_FEATURES, validate_dataset, validate_row
from trl_temporal.synthesis import (
    FACTORS,
    TEXT_FACTORS,
    InfeasibleFactor,
    make_preference_row,
    make_preferences,
)
from trl_temporal.synthesis.factors import (
    FACTOR_FUNCTIONS,
    add,
    is_false_version,
    merge,
    repeat,
    shift,
    why_not,
)
from trl_temporal.synthesis.preference import (
    DEFAULT_WEIGHTS,
    allowed_mask,
    make_pairs,
    read_events,
    reasons_against,
    response_text,
)
from trl_temporal.synthesis.shares import fit_shares, from_mask, shares_of_one_row, to_mask

ROWS = [row for index in range(100) for row in video_rows(simulate(0, index), {"path": f"{index}.mp4"})]
many = settings(max_examples=200, deadline=None)

caption_texts = st.builds("The {} {} {}".format, *map(st.sampled_from, map(list, (COLOURS, RADII, ACTIONS))))
seeds = st.integers(0, 2**32)


@st.composite
def videos(draw, min_events=1):
    """Events in order that may touch or overlap, their captions, other events, and the length of the video."""
    duration_s = draw(st.floats(5, 300))

    def spans(min_size, max_size):
        starts = sorted(draw(st.lists(st.floats(0, 0.9), min_size=min_size, max_size=max_size)))
        lengths = [draw(st.floats(0.02, 1)) for _ in starts]
        pairs = zip(starts, lengths, strict=True)
        return [[start * duration_s, min(start + length, 1) * duration_s] for start, length in pairs]

    events = spans(min_events, 6)
    captions = draw(st.lists(caption_texts, min_size=len(events), max_size=len(events)))
    return events, captions if draw(st.booleans()) else [], duration_s, spans(0, 3)


def rng(seed=0):
    return np.random.default_rng(seed)


def overlap_s(a, b):
    return max(0, min(a[1], b[1]) - max(a[0], b[0]))


def ious(span, others):
    """As `iou_matrix`, but for moments too."""
    return [overlap_s(span, other) / (max(span[1], other[1]) - min(span[0], other[0])) for other in others]


def starts_in_order(spans):
    return all(before[0] <= after[0] for before, after in zip(spans, spans[1:], strict=False))


def apply(factor, video, seed, **options):
    """The factor's change, or None where it says that it is infeasible. Checks what every factor keeps."""
    spans, captions, duration_s, _ = video
    before = json.dumps([spans, captions])
    try:
        change = FACTOR_FUNCTIONS[factor](spans, captions, rng(seed), duration_s, **options)
    except InfeasibleFactor as error:
        assert error.factor == factor and error.reason == why_not(factor, spans, captions, duration_s, **options)
        return None
    assert not why_not(factor, spans, captions, duration_s, **options)
    assert json.dumps([spans, captions]) == before  # the factor is pure
    assert change == FACTOR_FUNCTIONS[factor](spans, captions, rng(seed), duration_s, **options)
    assert len(change.spans) >= 1
    assert len(change.captions) == (len(change.spans) if captions else 0)
    assert all(0 <= start_s < end_s <= duration_s for start_s, end_s in change.spans)
    assert starts_in_order(change.spans)
    assert (change.spans, change.captions) != (spans, captions) or change.falsify
    assert json.loads(json.dumps(change.factor_args)) == change.factor_args
    return change


# --- Each factor ---


@many
@given(video=videos(), seed=seeds)
def test_shift_moves_spans_away_from_every_true_one(video, seed):
    if (change := apply("shift", video, seed)) is None:
        return
    spans, captions, *_ = video
    assert change.captions == captions
    moved = {entry["event"]: entry["delta_s"] for entry in change.factor_args["shifted"]}
    assert 1 <= len(moved) <= math.ceil(len(spans) / 2)
    for i, (old, new) in enumerate(zip(spans, change.spans, strict=True)):
        if i not in moved:
            assert new == old
            continue
        length_s = old[1] - old[0]
        assert new[1] - new[0] == pytest.approx(length_s, abs=2e-3)
        assert max(ious(new, spans)) < 0.5
        assert new[0] - old[0] == pytest.approx(moved[i], abs=2e-3)
        assert 2 - 1e-3 <= abs(moved[i]) <= max(length_s, 4) + 1e-3


@many
@given(video=videos(), seed=seeds)
def test_hard_shifts_are_of_one_to_two_seconds(video, seed):
    if (change := apply("shift", video, seed, hard=True)) is None:
        return
    spans = video[0]
    for entry in change.factor_args["shifted"]:
        old, new = spans[entry["event"]], change.spans[entry["event"]]
        assert 1 - 2e-3 <= abs(new[0] - old[0]) <= 2 + 2e-3
        assert new not in spans


@many
@given(video=videos(), seed=seeds)
def test_add_reports_one_event_that_is_not_there(video, seed):
    spans, captions, duration_s, other_spans = video
    if (change := apply("add", video, seed, all_spans=other_spans)) is None:
        return
    position = change.factor_args["event"]
    false_span = change.spans[position]
    assert false_span == change.factor_args["span"]
    assert change.spans[:position] + change.spans[position + 1 :] == spans
    assert max(ious(false_span, spans + other_spans)) < 0.1
    # A short one inside of a long true one has a small IoU too.
    for span in spans:
        shorter_s = min(span[1] - span[0], false_span[1] - false_span[0])
        assert overlap_s(false_span, span) < 0.1 * shorter_s + 1e-3
    if captions:
        assert change.captions[:position] + change.captions[position + 1 :] == captions
        neighbour = change.factor_args["neighbour"]
        assert neighbour in (position - 1, position) and change.captions[position] == captions[neighbour]
        assert change.falsify == [position]


@many
@given(video=videos(), seed=seeds)
def test_delete_leaves_out_some_events_and_never_all(video, seed):
    spans, captions, *_ = video
    if (change := apply("delete", video, seed)) is None:
        assert len(spans) == 1
        return
    deleted = change.factor_args["deleted"]
    assert 1 <= len(deleted) <= len(spans) // 2
    kept = [i for i in range(len(spans)) if i not in deleted]
    assert change.spans == [spans[i] for i in kept]
    assert change.captions == [captions[i] for i in kept if captions]


@many
@given(video=videos(), seed=seeds)
def test_merge_makes_one_event_of_two_adjacent_ones(video, seed):
    spans, captions, *_ = video
    if (change := apply("merge", video, seed)) is None:
        assert len(spans) == 1
        return
    first, second = change.factor_args["merged"]
    assert second == first + 1
    pair = spans[first : second + 1]
    hull = [min(span[0] for span in pair), max(span[1] for span in pair)]
    assert change.spans == [*spans[:first], hull, *spans[second + 1 :]]
    if captions:
        kept = change.factor_args["kept_caption"]
        assert kept in (first, second)
        assert change.captions == [*captions[:first], captions[kept], *captions[second + 1 :]]


@many
@given(video=videos(), seed=seeds)
def test_distort_names_texts_and_keeps_spans(video, seed):
    spans, captions, *_ = video
    if (change := apply("distort", video, seed)) is None:
        assert not captions
        return
    assert change.spans == spans and change.captions == captions
    assert 1 <= len(change.falsify) <= math.ceil(len(captions) / 2)
    assert change.falsify == sorted(set(change.falsify)) and set(change.falsify) <= set(range(len(captions)))


@many
@given(video=videos(), seed=seeds)
def test_repeat_copies_the_caption_before(video, seed):
    spans, captions, *_ = video
    if (change := apply("repeat", video, seed)) is None:
        assert len({normalize(caption) for caption in captions}) <= 1
        return
    event = change.factor_args["event"]
    assert change.spans == spans
    assert event >= 1 and captions[event] != captions[event - 1]
    assert change.captions == [*captions[:event], captions[event - 1], *captions[event + 1 :]]


def test_merge_prefers_near_events():
    spans = [[0.0, 2.0], [3.0, 4.0], [80.0, 90.0]]
    merged = [merge(spans, [], rng(seed), 100.0).factor_args["merged"] for seed in range(200)]
    assert merged.count([0, 1]) > 180 and [1, 2] in merged


def test_repeat_needs_two_captions_that_differ():
    with pytest.raises(InfeasibleFactor, match="equal to the one before"):
        repeat([[0.0, 2.0], [3.0, 5.0]], ["It blinks", "it blinks."], rng(), 10.0)


def test_an_event_that_fills_the_video_cannot_be_shifted_or_added_to():
    with pytest.raises(InfeasibleFactor, match="no event has a place with IoU under 0.5"):
        shift([[0.0, 10.0]], [], rng(), 10.0)
    with pytest.raises(InfeasibleFactor, match="no place with IoU under 0.1"):
        add([[0.0, 10.0]], [], rng(), 10.0)
    with pytest.raises(InfeasibleFactor, match="1 to 2 s away"):
        shift([[0.0, 10.0]], [], rng(), 10.0, hard=True)


def test_the_last_place_is_found():
    """Trying at random would miss it."""
    for seed in range(20):
        # 2 s away at the very end, and nowhere else.
        assert shift([[1.0, 7.0]], [], rng(seed), 9.005).spans[0] == pytest.approx([3.0, 9.0], abs=0.01)
        # Only an event a fifth as long as the first fits between the two.
        start_s, end_s = add([[0.0, 40.0], [47.0, 98.0]], [], rng(seed), 98.0).factor_args["span"]
        assert end_s - start_s == pytest.approx(8) and 39.2 < start_s < 39.8


def test_other_events_of_the_video_are_in_the_way_of_an_added_one():
    for seed in range(50):
        (span,) = (s for s in add([[0.0, 5.0]], [], rng(seed), 40.0, all_spans=[[8.0, 38.0]]).spans if s[0] > 0)
        assert overlap_s(span, [8.0, 38.0]) < 0.1 * 35


def test_hypothesis_would_notice_infeasible_everything():
    """The factors are applied to most of the rows that the tests above draw."""
    done = Counter()
    for row in ROWS:
        events = read_events(row)
        done.update(from_mask(allowed_mask(row, events)))
    assert done == Counter(
        shift=done["shift"], add=400, delete=done["delete"], merge=done["delete"], distort=200, repeat=100
    )
    assert done["shift"] > 380 and done["delete"] > 150


def test_infeasible_factor_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(InfeasibleFactor("add", "no place", "a")))
    assert str(error) == "row 'a': no 'add': no place"


def test_what_counts_as_a_false_text():
    assert is_false_version("A cat runs", "A dog runs")
    for text in ("a dog runs!", "", "...", "A <evi> runs", "A cat </evi>"):
        assert not is_false_version(text, "A dog runs")


# --- Rows ---


def grounding_row(spans, duration_s=100.0, **columns):
    return {
        "id": "row", "task": "grounding", "videos": [{"path": "a.mp4"}], "prompt": user("When?"),
        "completion": assistant(format_grounding(len(spans))), "spans": spans, "captions": [], "answer": "",
        "duration": duration_s, **columns,
    }  # fmt: skip


def test_each_row_says_why_it_does_not_allow_a_factor():
    row = grounding_row([[1.0, 5.0]])
    against = reasons_against(row, read_events(row))
    assert set(against) == {"delete", "merge", "distort", "repeat"}
    assert against["delete"] == "it needs 2 events, the row has 1"
    assert against["distort"] == "the row has neither captions nor an answer"


def test_answers_without_evidence_allow_distortion_alone():
    row = grounding_row([], task="qa", answer="A man waves", prompt_spans=[[1.0, 2.0]], prompt=user("What in <evi>?"))
    row["completion"] = assistant(format_qa("A man waves", 0))
    assert from_mask(allowed_mask(row, read_events(row))) == ["distort"]
    pair = make_preference_row(row, seed=0, distort=lambda text, rng: text.replace("man", "dog"))
    assert response_text({"completion": pair["rejected"]}) == "</evi> A dog waves."
    validate_row(pair, kind="preference")


def test_questions_with_evidence_allow_temporal_factors():
    row = grounding_row([[1.0, 5.0], [20.0, 30.0]], task="qa", answer="A man")
    row["completion"] = assistant(format_qa("A man", 2))
    assert from_mask(allowed_mask(row, read_events(row))) == ["shift", "add", "delete", "merge", "distort"]
    for factor, num_events in {"shift": 2, "add": 3, "delete": 1, "merge": 1}.items():
        pair = make_preference_row(row, seed=0, factors=[factor])
        validate_row(pair, kind="preference")
        assert response_text({"completion": pair["rejected"]}) == format_qa("A man", num_events)


def test_events_of_the_question_are_true_ones():
    row = grounding_row([[1.0, 5.0]], 20.0, prompt_spans=[[7.0, 19.0]], prompt=user("When does <evi> begin?"))
    for seed in range(30):
        try:
            pair = make_preference_row(row, seed=seed, factors=["add"])
        except InfeasibleFactor:
            continue
        assert max(ious(pair["rejected_spans"][-1], [[7.0, 19.0]])) < 0.1


def test_a_response_in_other_words_can_be_shifted_alone():
    row = grounding_row([[1.0, 5.0], [20.0, 30.0]], completion=assistant("<evi> <evi> </evi> See <evi>, <evi>!"))
    assert from_mask(allowed_mask(row, read_events(row))) == ["shift"]
    pair = make_preference_row(row, seed=0)
    assert pair["factor"] == "shift" and pair["rejected"] == row["completion"]
    with pytest.raises(InfeasibleFactor, match="is not what `trl_temporal.data.grammar` makes"):
        make_preference_row(row, seed=0, factors=["delete"])


@pytest.mark.parametrize("caption", [None, "A man <evi> waves"])
def test_captions_that_fit_no_response_allow_a_shift_alone(caption):
    row = grounding_row([[1.0, 5.0], [20.0, 30.0]], task="dense", captions=[caption, "A dog"])
    row["completion"] = assistant("<evi> <evi> </evi> <evi> A man waves. <evi> A dog.")
    assert from_mask(allowed_mask(row, read_events(row))) == ["shift"]


def test_a_response_about_other_spans_allows_nothing():
    row = grounding_row([[1.0, 5.0]], response_spans=[[2.0, 3.0]])
    with pytest.raises(InfeasibleFactor, match="other spans than its evidence stage"):
        make_preference_row(row, seed=0)


def test_an_unknown_duration_is_that_of_the_events():
    row = grounding_row([[10.0, 14.0], [50.0, 60.0]], duration_s=None)
    assert read_events(row).duration_s == 60
    pair = make_preference_row(row, seed=0, factors=["shift"])
    assert max(span[1] for span in pair["rejected_spans"]) <= 60


event_world_rows = st.sampled_from(ROWS)


@many
@given(row=event_world_rows, seed=seeds, factor=st.sampled_from(FACTORS))
def test_both_stages_change_together(row, seed, factor):
    try:
        pair = make_preference_row(row, seed=seed, factors=[factor])
    except InfeasibleFactor:
        assert factor in reasons_against(row, read_events(row))
        return
    validate_row(pair, kind="preference")
    text = response_text({"completion": pair["rejected"]})
    num_evidence, response = split_response(text)
    assert num_evidence == response.count(EVI) == len(pair["rejected_spans"]) >= 1
    assert (text, pair["rejected_spans"]) != (response_text(row), row["spans"])
    factor_args = json.loads(pair["factor_args"])
    if factor in TEXT_FACTORS:
        assert pair["rejected_spans"] == row["spans"] and text != response_text(row)
    if factor == "distort" and row["task"] == "qa":
        assert factor_args["distorted"] == [{"from": row["answer"], "to": parse_answer(response)}]
    elif factor == "distort":
        expected = list(row["captions"])
        for entry in factor_args["distorted"]:
            assert entry["from"] == expected[entry["event"]] != entry["to"]
            expected[entry["event"]] = entry["to"]
        assert parse_captions(response) == expected
    if factor == "add" and row["task"] == "dense":
        caption = parse_captions(response)[factor_args["event"]]
        assert caption == factor_args["caption"] != row["captions"][factor_args["neighbour"]]


# --- The draw ---


def achieved(num_rows, shares):
    total = sum(num_rows.values())
    return [sum(num_rows[mask] * shares[mask][i] for mask in shares) / total for i in range(len(FACTORS))]


WEIGHTS = np.array([DEFAULT_WEIGHTS[factor] for factor in FACTORS]) / 8


def test_shares_meet_the_weights_where_the_rows_allow_them():
    num_rows = {
        to_mask(FACTORS): 5000,
        to_mask(["shift", "add"]): 2000,
        to_mask(["shift", "add", "distort"]): 1500,
        to_mask(["distort"]): 1500,
    }
    shares = fit_shares(num_rows, DEFAULT_WEIGHTS)
    assert achieved(num_rows, shares) == pytest.approx(WEIGHTS.tolist(), abs=1e-4)
    for mask, values in shares.items():
        assert sum(values) == pytest.approx(1)
        assert all(value == 0 for i, value in enumerate(values) if not mask >> i & 1)


@many
@given(
    num_rows=st.dictionaries(st.integers(0, 63), st.integers(1, 1000), min_size=1),
    drawn=st.integers(1, 63),
    num_pairs=st.integers(1, 4),
)
def test_shares_are_shares_for_any_rows(num_rows, drawn, num_pairs):
    weights = {factor: 1.0 for factor in from_mask(drawn)}
    shares = fit_shares(num_rows, weights, num_pairs)
    assert set(shares) == {mask for mask in num_rows if mask & drawn}
    for mask, values in shares.items():
        assert sum(values) == pytest.approx(1) and min(values) >= 0
        assert max(values) <= 1 / min(num_pairs, (mask & drawn).bit_count()) + 1e-9
        assert all(value == 0 for i, value in enumerate(values) if not (mask & drawn) >> i & 1)


def test_shares_come_as_close_as_the_rows_allow():
    """Rows with one event allow no `delete`: `shift` and `add` take its place, and the groups stay 1:1."""
    num_rows = {to_mask(["shift", "add", "distort"]): 100}
    assert achieved(num_rows, fit_shares(num_rows, DEFAULT_WEIGHTS)) == pytest.approx([0.25, 0.25, 0, 0, 0.5, 0])
    # Too few rows allow a text factor: all of them get one.
    num_rows = {to_mask(["shift", "add"]): 900, to_mask(["shift", "add", "distort"]): 100}
    values = achieved(num_rows, fit_shares(num_rows, DEFAULT_WEIGHTS))
    assert values == pytest.approx([0.45, 0.45, 0, 0, 0.1, 0], abs=0.005)


def test_one_row_draws_temporal_and_text_factors_evenly():
    assert shares_of_one_row(to_mask(["shift", "distort"]), DEFAULT_WEIGHTS)[:1] == pytest.approx([0.5])
    assert shares_of_one_row(to_mask(FACTORS), DEFAULT_WEIGHTS) == pytest.approx(WEIGHTS.tolist())
    assert shares_of_one_row(0, DEFAULT_WEIGHTS) == []
    for task, text_factors in (("dense", 2), ("qa", 1)):
        row = next(row for row in ROWS if row["task"] == task)
        drawn = [make_preference_row({**row, "id": str(i)}, seed=0)["factor"] for i in range(600)]
        assert abs(np.mean([factor in TEXT_FACTORS for factor in drawn]) - 0.5) < 0.08
        assert len({factor for factor in drawn if factor in TEXT_FACTORS}) == text_factors


# --- Batches ---


def make_batch(rows, distort_batch, **options):
    masks = [allowed_mask(row, read_events(row)) for row in rows]
    weights = options.pop("weights", DEFAULT_WEIGHTS)
    shares = fit_shares(Counter(masks), weights, options.get("num_pairs_per_row", 1))
    return make_pairs(rows, masks, shares, weights, seed=0, distort=distort_batch, **options)


def test_a_text_that_cannot_be_falsified_gives_way_to_another_factor():
    def never(texts, contexts, rngs):
        return [None] * len(texts)

    rows = [row for row in ROWS if row["task"] == "dense"]
    pairs, replaced = make_batch(rows, never)
    assert len(pairs) == len(rows) and replaced["distort"] > 10
    assert {pair.factor for pair in pairs} == set(FACTORS) - {"distort"}
    # An added event keeps its neighbour's caption then.
    for pair in (pair for pair in pairs if pair.factor == "add"):
        assert pair.factor_args["caption"] == rows[pair.row]["captions"][pair.factor_args["neighbour"]]


def test_a_text_that_is_no_false_one_is_not_taken():
    rows = [row for row in ROWS if row["task"] == "dense"][:20]
    pairs, replaced = make_batch(
        rows, lambda texts, *_: [text.upper() + "!" for text in texts], weights={"distort": 1}
    )
    assert not pairs and replaced == {"distort": 20}


def test_other_texts_of_the_row_are_tried_first():
    """Only the last caption can be falsified, whichever is drawn."""
    rows = [row for row in ROWS if row["task"] == "dense"][:20]
    last = {row["captions"][-1] for row in rows}

    def distort_last(texts, contexts, rngs):
        return [f"No {text}" if text in last else None for text in texts]

    pairs, replaced = make_batch(rows, distort_last, weights={"distort": 1})
    assert len(pairs) == 20 and not replaced


def test_backends_are_asked_for_a_batch_with_what_is_known_of_each_text():
    calls = []

    def backend(texts, contexts, rngs):
        calls.append(contexts)
        return [f"{text} {rng.integers(10**6)}" for text, rng in zip(texts, rngs, strict=True)]

    rows = ROWS[:40]
    pairs, _ = make_batch(rows, backend)
    assert len(calls) == 1  # nothing failed
    for context in calls[0]:
        (row,) = (row for row in rows if row["id"] == context["row_id"])
        assert context["task"] == row["task"]
        assert context["captions"] == (row["captions"] or [row["answer"]])
    # Alone or in a batch, a row gets the same pair.
    masks = [allowed_mask(row, read_events(row)) for row in rows]
    shares = fit_shares(Counter(masks), DEFAULT_WEIGHTS)
    for pair in pairs[:10]:
        (alone,), _ = make_pairs([rows[pair.row]], [masks[pair.row]], shares, DEFAULT_WEIGHTS, seed=0, distort=backend)
        assert alone._replace(row=pair.row) == pair


def test_several_pairs_of_a_row_differ():
    rows = ROWS[:40]
    pairs, replaced = make_batch(rows, lambda texts, *_: [f"No {text}" for text in texts], num_pairs_per_row=3)
    by_row = {}
    for pair in pairs:
        by_row.setdefault(pair.row, []).append(pair)
    allowed = [len(from_mask(allowed_mask(row, read_events(row)))) for row in rows]
    assert not replaced and len(by_row) == 40
    for of_row in by_row.values():
        assert len({json.dumps([pair.response, pair.spans]) for pair in of_row}) == len(of_row)
        assert len({pair.factor for pair in of_row}) == min(3, allowed[of_row[0].row])


def test_a_pair_that_the_row_has_already_is_not_made_again():
    """Of two events only one or the other can be left out."""
    row = grounding_row([[1.0, 5.0], [20.0, 30.0]])
    pairs, replaced = make_batch([row], None, weights={"delete": 1}, num_pairs_per_row=9)
    assert sorted(pair.spans for pair in pairs) == [[[1.0, 5.0]], [[20.0, 30.0]]]
    assert replaced == {"delete": 7}


# --- One row at a time ---


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


def test_only_the_given_factors_are_drawn():
    dense = [row for row in ROWS if row["task"] == "dense"]
    assert {make_preference_row(row, seed=0, factors=["merge", "add"])["factor"] for row in dense} == {"merge", "add"}
    with pytest.raises(ValueError, match="factors is"):
        make_preference_row(dense[0], seed=0, factors=["shuffle"])


def test_a_row_without_any_factor_says_why():
    row = grounding_row([[1.0, 5.0]])
    with pytest.raises(InfeasibleFactor, match="delete: it needs 2 events.*repeat: it needs 2 events"):
        make_preference_row(row, seed=0, factors=["delete", "repeat"])


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
            UserWarning, match=r"6 of 8 rows.*event_world-train-000000-grounding-0 \(repeat: it needs 2 events"
        ):
            pairs = make_preferences(dataset, factors=["repeat"])
        assert pairs["id"][:] == ["event_world-train-000000-dense", "event_world-train-000001-dense"]


def test_the_text_of_another_data_set_needs_its_own_distortion():
    row = {**ROWS[0], "spans": [[0.0, 2.0]], "captions": ["A man opens a door"]}
    row["completion"] = assistant(format_dense(row["captions"]))
    with pytest.raises(ValueError, match="pass a `distort`"):
        make_preference_row(row, seed=0, factors=["distort"])
    pair = make_preference_row(row, seed=0, factors=["distort"], distort=lambda text, rng: text.replace("door", "box"))
    assert response_text({"completion": pair["rejected"]}) == "<evi> </evi> <evi> A man opens a box."
