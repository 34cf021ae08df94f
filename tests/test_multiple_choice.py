# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.data.event_world import simulate, video_rows
from trl_temporal.data.grammar import (
    EVI,
    EVI_END,
    format_dense,
    format_grounding,
    format_qa,
    normalize,
    split_response,
)
from trl_temporal.data.schema import EVALUATION_FEATURES, SFT_FEATURES, validate_dataset
from trl_temporal.evaluation.evaluator import evaluate_answers
from trl_temporal.evaluation.generation import GroundedAnswer
from trl_temporal.spans import Span
from trl_temporal.synthesis import SynthesisConfig, synthesize_preferences
from trl_temporal.synthesis.multiple_choice import in_words, make_multiple_choice


def message(text):
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def pair(source_id, rejected, rejected_spans, factor, chosen=None, chosen_spans=((2.0, 3.5),), number=0):
    question = [{"type": "video", "text": None}, {"type": "text", "text": "When does {it} blink?"}]
    return {
        "id": f"{source_id}-{factor}-{number}",
        "source_id": source_id,
        "source": "tests",
        "task": "grounding",
        "videos": [{"path": "a.mp4", "start_s": None, "end_s": None, "frames_dir": None, "fps": None}],
        "prompt": [{"role": "user", "content": question}],
        "prompt_spans": None,
        "chosen": message(chosen or format_grounding(len(chosen_spans))),
        "chosen_spans": [list(span) for span in chosen_spans],
        "rejected": message(rejected),
        "rejected_spans": [list(span) for span in rejected_spans],
        "factor": factor,
        "duration": 20.0,
    }


def sample(source_id):
    return [
        pair(source_id, format_grounding(1), [[6.0, 7.5]], "shift"),
        pair(source_id, format_grounding(1), [[9.0, 10.5]], "shift", number=1),
        pair(source_id, format_grounding(1), [[11.0, 12.5]], "shift", number=2),
        pair(source_id, format_grounding(2), [[2.0, 3.5], [15.0, 16.0]], "add"),
        pair(source_id, format_grounding(1), [[2.0, 9.0]], "merge"),
    ]


@pytest.mark.parametrize(
    ("response", "spans", "words"),
    [
        (format_grounding(1), [[2, 3.5]], "It happens from 2.0 s to 3.5 s"),
        (format_grounding(0), [], "It does not happen"),
        (
            format_grounding(3),
            [[0, 1], [2, 3], [4, 5]],
            "It happens from 0.0 s to 1.0 s, from 2.0 s to 3.0 s and from 4.0 s to 5.0 s",
        ),
        (
            format_dense(["A man 🎉 waves", "漢字"]),
            [[0, 1], [2, 3]],
            "From 0.0 s to 1.0 s: A man 🎉 waves. From 2.0 s to 3.0 s: 漢字",
        ),
        (format_qa("The red disc", 1), [[2, 3.25]], "The red disc from 2.0 s to 3.2 s"),
        (format_qa("The red disc", 0), [], "The red disc"),
        ("<evi> </evi> <evi>", [[1, 2]], "From 1.0 s to 2.0 s"),
        ("<evi> </evi> In <evi> it blinks.", [[1, 2]], "From 1.0 s to 2.0 s: it blinks"),
    ],
)
def test_in_words(response, spans, words):
    assert in_words(response, spans) == words


def test_in_words_needs_a_span_for_every_marker():
    with pytest.raises(ValueError, match="2 <evi> in its text, but 1 spans"):
        in_words(format_grounding(2), [[1, 2]])


def test_rows_follow_the_schema_and_hold_the_right_answer():
    rows = make_multiple_choice([pair for index in range(10) for pair in sample(f"s{index}")])
    assert rows.features == EVALUATION_FEATURES and len(rows) == 10
    validate_dataset(rows, "evaluation")
    for row in rows:
        assert row["options"][row["answer_index"]] == "It happens from 2.0 s to 3.5 s"
        letter = "ABCD"[row["answer_index"]]
        assert row["answer"] == f"({letter}) It happens from 2.0 s to 3.5 s"
        (question,) = row["prompt"]
        text = question["content"][1]["text"]
        assert "When does {it} blink?" in text and "(A) " + row["options"][0] + "\n(B) " in text
        num_evidence, response = split_response(row["completion"][0]["content"][0]["text"])
        assert num_evidence == 1 and response == f"{row['answer']} {EVI}."
        assert row["spans"] == [[2.0, 3.5]] and row["duration"] == 20.0 and row["source"] == "tests"


def test_wrong_options_have_different_causes_first():
    rows = make_multiple_choice([pair for index in range(10) for pair in sample(f"s{index}")])
    for row in rows:
        options = set(row["options"])
        assert "It happens from 2.0 s to 9.0 s" in options  # merge
        assert "It happens from 2.0 s to 3.5 s and from 15.0 s to 16.0 s" in options  # add
    assert len({tuple(sorted(row["options"])) for row in rows}) == 3  # any of the three shifts


def test_the_place_of_the_right_answer_is_uniform():
    rows = make_multiple_choice([pair for index in range(2000) for pair in sample(f"s{index}")])
    counts = np.bincount(rows["answer_index"][:], minlength=4)
    assert (np.abs(counts - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_order_and_shards_do_not_matter():
    pairs = [pair for index in range(20) for pair in sample(f"s{index}")]
    rows = {row["id"]: row for row in make_multiple_choice(pairs, seed=3)}
    shuffled = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    assert {row["id"]: row for row in make_multiple_choice(shuffled, seed=3)} == rows
    assert list(make_multiple_choice(pairs[-5:], seed=3)) == [rows["s19-choice"]]
    assert {row["id"]: row for row in make_multiple_choice(pairs, seed=4)} != rows


def test_equal_options_count_once_and_samples_with_too_few_are_left_out():
    pairs = [
        *sample("enough"),
        pair("few", format_grounding(1), [[2.01, 3.52]], "shift"),  # reads as the right answer
        pair("few", format_grounding(1), [[6.0, 7.5]], "shift", number=1),
        pair("few", format_grounding(1), [[6.0, 7.52]], "shift", number=2),
    ]
    with pytest.warns(UserWarning, match="1 of 2 samples have fewer than 3 different wrong options"):
        assert make_multiple_choice(pairs)["id"][:] == ["enough-choice"]
    (row,) = make_multiple_choice(pairs[5:], num_options=2)
    assert sorted(row["options"]) == ["It happens from 2.0 s to 3.5 s", "It happens from 6.0 s to 7.5 s"]
    with pytest.raises(ValueError, match="num_options is 1"):
        make_multiple_choice(pairs, num_options=1)


def test_questions_with_evidence_keep_it():
    question = [{"type": "text", "text": f"What happens in {EVI}?"}]
    asked = {
        **pair("a", format_qa("It rolls", 0), [], "distort", chosen=format_qa("It blinks", 0), chosen_spans=[]),
        "prompt": [{"role": "user", "content": [{"type": "video"}, *question]}],
        "prompt_spans": [[1.0, 2.0]],
    }
    rows = make_multiple_choice([asked], num_options=2)
    validate_dataset(rows, "evaluation")
    assert rows[0]["prompt_spans"] == [[1.0, 2.0]]
    assert rows[0]["completion"][0]["content"][0]["text"].startswith(f"{EVI_END} (")


def test_the_evaluation_scores_them():
    (row,) = make_multiple_choice(sample("a"))
    for index, right in ((row["answer_index"], 1.0), (row["answer_index"] - 1, 0.0)):
        answer = f"({'ABCD'[index]}) {row['options'][index]} {EVI}."
        answers = [GroundedAnswer(answer, [Span(2, 3.5)], [Span(2, 3.5)], np.zeros((2, 0)), np.zeros(0), 20.0)]
        assert evaluate_answers([row], answers).metrics["qa_exact_match"] == right


def test_they_are_made_from_the_pairs_of_the_synthesis():
    rows = [row for index in range(20) for row in video_rows(simulate(0, index), {"path": f"{index}.mp4"})]
    dense = datasets.Dataset.from_list([row for row in rows if row["task"] == "dense"], features=SFT_FEATURES)
    pairs = synthesize_preferences(dense, SynthesisConfig(num_pairs_per_row=5, distort="event_world"))
    choices = make_multiple_choice(pairs)
    validate_dataset(choices, "evaluation")
    assert choices["id"][:] == [f"{row['id']}-choice" for row in dense]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=15) | st.sampled_from(
    ["A man waves", "a man  waves!"]
)


@st.composite
def samples(draw):
    """Dense samples with captions of any characters."""

    def response():
        captions = draw(st.lists(texts, min_size=1, max_size=3))
        spans = [[draw(st.floats(0, 9)), draw(st.floats(10, 20))] for _ in captions]
        return format_dense(captions), spans

    pairs = []
    for index in range(draw(st.integers(1, 3))):
        chosen, chosen_spans = response()
        for number in range(draw(st.integers(1, 5))):
            rejected, spans = response()
            factor = draw(st.sampled_from(["shift", "distort", "add"]))
            pairs.append(pair(f"s{index}", rejected, spans, factor, chosen, chosen_spans, number))
    return pairs


@pytest.mark.filterwarnings("ignore:.*samples have fewer")
@settings(deadline=None)
@given(pairs=samples(), num_options=st.integers(2, 4), seed=st.integers(0, 2**32))
def test_options_of_any_text(pairs, num_options, seed):
    rows = make_multiple_choice(pairs, num_options=num_options, seed=seed)
    validate_dataset(rows, "evaluation")
    for row in rows:
        assert len({normalize(option) for option in row["options"]}) == len(row["options"]) == num_options
        own = next(pair for pair in pairs if f"{pair['source_id']}-choice" == row["id"])
        right = in_words(own["chosen"][0]["content"][0]["text"], own["chosen_spans"])
        assert row["options"][row["answer_index"]] == right
        assert EVI not in "".join(row["options"])
