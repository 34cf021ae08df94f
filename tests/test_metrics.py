# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.data.grammar import format_dense, format_grounding, format_qa, split_response
from trl_temporal.evaluation.metrics.dense_caption import caption_scores, exchange_chance, match_captions, word_f1
from trl_temporal.evaluation.metrics.grounding import (
    all_events_baseline,
    chance_baseline,
    grounding_f1,
    interval_f1,
    scored_spans,
)
from trl_temporal.evaluation.metrics.qa import qa_scores, question_kind
from trl_temporal.spans import Span


def answer_of(response, spans, duration_s=20.0):
    """The answer of a model that writes `response` and points at `spans` in both stages."""
    spans = [Span(*span) for span in spans]
    return SimpleNamespace(
        text=split_response(response)[1], evidence=spans, response=list(spans), duration_s=duration_s
    )


def grounding_answer(spans):
    return answer_of(format_grounding(len(spans)), spans)


def dense_answer(spans, captions):
    return answer_of(format_dense(captions), spans)


intervals = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0.1, 20)).map(lambda pair: [pair[0], pair[0] + pair[1]]), max_size=6
)


class TestIntervalF1:
    @pytest.mark.parametrize(
        ("truth", "predicted", "expected"),
        [
            ([[0, 10]], [[0, 10]], [1, 1, 1, 1]),
            ([[0, 10]], [[0, 7]], [1, 1, 1, 1]),  # an IoU of exactly .7 is a hit
            ([[0, 10]], [[0, 6]], [1, 1, 1, 0]),
            ([[0, 10]], [[0, 2]], [1, 0, 0, 0]),
            ([[0, 10]], [[10, 20]], [0, 0, 0, 0]),
            ([[0, 10]], [[0, 10], [30, 40]], [2 / 3] * 4),  # precision 1/2, recall 1
            ([[0, 10], [30, 40]], [[0, 10]], [2 / 3] * 4),  # precision 1, recall 1/2
            # No one-to-one matching: both predictions hit the same truth. Precision 1, recall 1/2.
            ([[0, 10], [30, 40]], [[0, 10], [0, 9]], [2 / 3] * 4),
            ([], [], [1, 1, 1, 1]),
            ([], [[0, 1]], [0, 0, 0, 0]),
            ([[0, 1]], [], [0, 0, 0, 0]),
        ],
    )
    def test_cases_computed_by_hand(self, truth, predicted, expected):
        assert interval_f1(truth, predicted) == pytest.approx(expected)

    @given(truth=intervals, predicted=intervals)
    def test_lies_between_0_and_1_and_falls_with_the_threshold(self, truth, predicted):
        f1 = interval_f1(truth, predicted)
        assert f1.shape == (4,)
        assert ((f1 >= 0) & (f1 <= 1)).all()
        assert (np.diff(f1) <= 1e-12).all()

    @given(truth=intervals, predicted=intervals, seed=st.integers(0, 100))
    def test_does_not_depend_on_the_order(self, truth, predicted, seed):
        rng = random.Random(seed)
        shuffled = interval_f1(rng.sample(truth, len(truth)), rng.sample(predicted, len(predicted)))
        assert shuffled == pytest.approx(interval_f1(truth, predicted))

    @given(spans=intervals)
    def test_is_1_for_the_truth_itself(self, spans):
        assert interval_f1(spans, spans) == pytest.approx(1)


class TestGrounding:
    rows = [
        {"spans": [[2, 4]], "all_spans": [[2, 4], [6, 9], [12, 15], [16, 18]]},
        {"spans": [[6, 9], [12, 15]], "all_spans": [[2, 4], [6, 9], [12, 15], [16, 18]]},
    ]

    def test_counts_are_told_apart_from_f1(self):
        answers = [grounding_answer([[2, 4], [6, 9]]), grounding_answer([[6, 9]])]
        scores = grounding_f1(self.rows, answers)
        assert scores["f1"] == pytest.approx([2 / 3, 2 / 3])
        assert scores["count_accuracy"].tolist() == [0, 0]
        assert scores["over_answering"].tolist() == [1, 0]
        assert scores["f1@0.5"] == pytest.approx([2 / 3, 2 / 3])

    def test_the_response_stage_is_scored(self):
        answer = grounding_answer([[2, 4]])
        answer.evidence = [Span(10, 12)]
        assert grounding_f1(self.rows[:1], [answer])["f1"] == pytest.approx([1])

    def test_response_spans_of_a_row_win_over_its_spans(self):
        row = {"spans": [[2, 4], [6, 9]], "response_spans": [[6, 9]]}
        assert grounding_f1([row], [grounding_answer([[6, 9]])])["f1"] == pytest.approx([1])

    def test_spans_that_do_not_fit_the_text_score_0(self):
        answer = grounding_answer([[2, 4]])
        answer.text = "It happens in <evi> and <evi>."
        assert scored_spans(answer) == []
        assert grounding_f1(self.rows[:1], [answer])["f1"].tolist() == [0]

    def test_all_events_baseline(self):
        scores = all_events_baseline(self.rows)
        assert scores["f1"] == pytest.approx([2 * 0.25 / 1.25, 2 * 0.5 / 1.5])
        assert scores["over_answering"].tolist() == [1, 1]

    def test_chance_baseline_is_seeded_and_low(self):
        scores = chance_baseline(self.rows, [20.0, 20.0])
        again = chance_baseline(self.rows, [20.0, 20.0])
        assert all((scores[name] == again[name]).all() for name in scores)
        assert (chance_baseline(self.rows, [20.0, 20.0], seed=1)["f1"] != scores["f1"]).any()
        assert 0 < scores["f1"].mean() < 0.4
        assert scores["count_accuracy"].tolist() == [1, 0]

    def test_chance_baseline_against_the_expected_value(self):
        # One event that fills a quarter of the video: a draw of the same length has IoU >= t if its start is off by at
        # most 5 * (1 - t) / (1 + t) seconds.
        row = {"spans": [[7.5, 12.5]], "all_spans": [[7.5, 12.5]]}
        expected = [2 * 5 * (1 - t) / (1 + t) / 15 for t in (0.1, 0.3, 0.5, 0.7)]
        scores = chance_baseline([row], [20.0], num_draws=20_000)
        assert [scores[f"f1@{t}"][0] for t in (0.1, 0.3, 0.5, 0.7)] == pytest.approx(expected, abs=0.02)

    def test_chance_baseline_of_an_event_longer_than_the_video(self):
        scores = chance_baseline([{"spans": [[0, 5]], "all_spans": [[0, 9]]}, {"spans": []}], [5.0, 5.0])
        assert scores["f1"].tolist() == [1, 0]


class TestCaptions:
    row = {"id": "a", "spans": [[0, 4], [6, 10]], "captions": ["The red disc blinks", "The blue cross shakes"]}

    def test_word_f1(self):
        assert word_f1("The red disc blinks", "the red disc blinks.") == 1
        assert word_f1("a b", "c d") == 0
        assert word_f1("a a b", "a b b") == pytest.approx(2 / 3)
        assert word_f1("", "") == 1

    def test_perfect_answer(self):
        scores = caption_scores([self.row], [dense_answer(self.row["spans"], self.row["captions"])])
        assert {name: values.tolist() for name, values in scores.items()} == {
            "events": [2],
            "matched": [2],
            "exact": [2],
            "word_f1": [2],
        }

    def test_an_event_takes_the_caption_of_the_interval_that_overlaps_most(self):
        spans = [[0, 3], [0, 4], [13, 14]]
        captions = ["The red disc spins", "The red disc blinks", "The blue cross shakes"]
        pairs = match_captions(self.row, dense_answer(spans, captions))
        assert pairs == [("The red disc blinks", "The red disc blinks"), ("The blue cross shakes", None)]

    def test_a_missed_event_is_a_miss_and_a_wrong_caption_is_too(self):
        scores = caption_scores([self.row], [dense_answer([[0, 4]], ["The red disc spins"])])
        assert scores["matched"].tolist() == [1]
        assert scores["exact"].tolist() == [0]
        assert scores["word_f1"].tolist() == [0.75]

    def test_the_order_of_the_answer_does_not_matter(self):
        answer = dense_answer(self.row["spans"][::-1], self.row["captions"][::-1])
        assert caption_scores([self.row], [answer])["exact"].tolist() == [2]

    @pytest.mark.parametrize("text", ["", "Nothing happens.", "<evi> <evi> <evi>"])
    def test_malformed_answers_score_0(self, text):
        answer = dense_answer(self.row["spans"], self.row["captions"])
        answer.text = text
        assert caption_scores([self.row], [answer])["matched"].tolist() == [0]

    def test_a_row_with_too_few_captions_is_named(self):
        with pytest.raises(ValueError, match="'a' has 1 captions for 2 spans"):
            match_captions(self.row | {"captions": ["one"]}, dense_answer([[0, 4]], ["one"]))


class TestExchangeChance:
    def test_equals_the_mean_over_permutations(self):
        rows = [["a", "b"], ["a"], ["c", "a"]]
        rng = random.Random(0)
        hits, draws = 0, 20_000
        for _ in range(draws):
            row = rng.choice([0, 0, 1, 2, 2])  # a text drawn evenly has its row this often
            text = rng.choice(rows[row])
            hits += text == rng.choice([other for index, texts in enumerate(rows) if index != row for other in texts])
        assert exchange_chance(rows) == pytest.approx(hits / draws, abs=0.015)

    def test_texts_are_exchanged_within_a_kind(self):
        texts = [["yes"], ["no"], ["yes"], ["no"]]
        assert exchange_chance(texts) == pytest.approx(1 / 3)
        assert exchange_chance(texts, kinds=["x", "y", "x", "y"]) == 1

    def test_a_lone_row_has_no_chance(self):
        assert exchange_chance([["a", "a"]]) == 0
        assert exchange_chance([]) == 0


class TestQuestionAnswering:
    row = {
        "spans": [[3, 6]],
        "answer": "The red disc",
        "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which object blinks?"}]}],
    }

    def test_words_and_evidence_are_scored_apart(self):
        right, wrong_words, wrong_place = (
            answer_of(format_qa(words, 1), [span])
            for words, span in [("the red disc", (3, 6)), ("The blue disc", (3, 6)), ("The red disc", (10, 12))]
        )
        scores = qa_scores([self.row] * 3, [right, wrong_words, wrong_place])
        assert scores["exact_match"].tolist() == [1, 0, 1]
        assert scores["evidence_f1"].tolist() == [1, 1, 0]

    def test_kind_of_a_question(self):
        assert question_kind(self.row) == "which object"
        assert question_kind({"prompt": [{"role": "user", "content": "What does it do?"}]}) == "what does"
