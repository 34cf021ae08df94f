# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""QVHighlights and NExT-GQA: metrics with several true intervals per question."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.evaluation.metrics.nextgqa import nextgqa, nextgqa_references, spans_from_shares
from trl_temporal.evaluation.metrics.qvhighlights import average_precision, qvhighlights


def looped_precision(iou, num_true, threshold):
    """Interpolated average precision of one query at one threshold, step by step."""
    free = set(range(num_true))
    hits = []
    for row in iou:
        # The last of equal ones, as a reversed stable sort puts it first.
        best = max(free, key=lambda index: (row[index], index), default=None)
        hits.append(best is not None and row[best] >= threshold)
        if hits[-1]:
            free.remove(best)
    precision = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits))]
    return sum(max(precision[rank:]) for rank, hit in enumerate(hits) if hit) / num_true


shares = st.integers(0, 20).map(lambda number: number / 20)


class TestAveragePrecision:
    @settings(max_examples=100, deadline=None)
    @given(
        tables=st.lists(
            st.tuples(st.integers(0, 12), st.integers(1, 9)).flatmap(
                lambda shape: st.lists(
                    st.lists(shares, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
                ).map(lambda rows: (rows, shape[1]))
            ),
            min_size=1,
            max_size=4,
        )
    )
    def test_equals_a_loop(self, tables):
        num_windows = max(1, max(len(rows) for rows, _ in tables))
        num_true = max(count for _, count in tables)
        iou = np.full((len(tables), num_windows, num_true), 0.99)  # what is not there must not count
        is_answered = np.zeros((len(tables), num_windows), dtype=bool)
        is_true = np.zeros((len(tables), num_true), dtype=bool)
        for index, (rows, count) in enumerate(tables):
            iou[index, : len(rows), :count] = np.array(rows).reshape(-1, count)
            is_answered[index, : len(rows)] = True
            is_true[index, :count] = True
        thresholds = np.array([0.5, 0.7, 0.95])
        expected = [[looped_precision(*table, threshold) for threshold in thresholds] for table in tables]
        assert average_precision(iou, is_answered, is_true, thresholds) == pytest.approx(np.array(expected))

    def test_a_true_window_is_taken_once(self):
        iou = np.array([[[0.9], [0.8]]])
        both, one = np.ones((1, 2), bool), np.ones((1, 1), bool)
        assert average_precision(iou, both, one, np.array([0.5])).tolist() == [[1]]
        assert average_precision(iou[:, ::-1], both, one, np.array([0.85])).tolist() == [[0.5]]


def query(windows, qid=0, ratings=None, duration=100):
    ratings = ratings or {}
    return {
        "qid": qid,
        "duration": duration,
        "relevant_windows": windows,
        "relevant_clip_ids": list(ratings),
        "saliency_scores": list(ratings.values()),
    }


def original(predictions, references):
    return qvhighlights(predictions, references, scoring="original")


class TestMoments:
    def test_windows_are_ranked_by_score_and_the_original_takes_the_first(self):
        references = [query([[0, 20]])]
        predictions = [{"id": 0, "windows": [[50, 60, 0.1], [0, 20, 0.9]]}]
        assert qvhighlights(predictions, references).metrics["MR-full-R1@0.5"] == 100
        assert qvhighlights(predictions, references).metrics["MR-full-mAP"] == 100
        assert original(predictions, references).metrics["MR-full-R1@0.5"] == 0
        assert original(predictions, references).metrics["MR-full-mAP"] == 100

    def test_the_best_ten_windows_count_and_in_the_original_the_first_ten(self):
        references = [query([[0, 20]])]
        predictions = [{"id": 0, "windows": [*[[50, 60, 0.1]] * 10, [0, 20, 0.9]]}]
        assert qvhighlights(predictions, references).metrics["MR-full-mAP"] == 100
        assert original(predictions, references).metrics["MR-full-mAP"] == 0

    def test_the_order_of_text_is_the_rank(self):
        references = [query([[0, 20]])]
        first = qvhighlights([{"id": 0, "text": "0 - 20, 50 - 60"}], references).metrics
        second = qvhighlights([{"id": 0, "text": "50 - 60, 0 - 20"}], references).metrics
        assert first["MR-full-mAP"] == 100 and second["MR-full-mAP"] == 50
        assert original([{"id": 0, "text": "50 - 60, 0 - 20"}], references).metrics["MR-full-mAP"] == 50

    def test_a_reversed_window_is_turned_round_and_a_hit_in_the_original_wherever_it_lies(self):
        references = [query([[0, 10]])]
        predictions = [{"id": 0, "windows": [[90, 80, 1.0]]}]
        assert original(predictions, references).metrics["MR-full-mAP"] == 100
        scores = qvhighlights(predictions, references)
        assert scores.metrics["MR-full-mAP"] == 0
        assert scores.problem_counts() == {"reversed": 1}

    def test_missing_queries_are_in_the_denominator(self):
        references = [query([[0, 20]], 0), query([[0, 20]], 1)]
        predictions = [{"id": 0, "windows": [[0, 20, 1.0]]}]
        assert qvhighlights(predictions, references).metrics["MR-full-mAP"] == 50
        scores = original(predictions, references)
        assert scores.metrics["MR-full-mAP"] == 100
        assert scores.problem_counts() == {"missing": 1, "crash": 3}  # the ids; no short, no long window

    def test_queries_without_a_window(self):
        references = [query([[0, 20]], 0), query([[0, 20]], 1)]
        predictions = [{"id": 0, "windows": [[0, 20, 1.0]]}, {"id": 1, "windows": []}]
        assert qvhighlights(predictions, references).metrics["MR-full-R1@0.7"] == 50
        assert original(predictions, references).metrics["MR-full-R1@0.7"] == 100

    def test_windows_without_a_finite_score_are_listed(self):
        windows = [[0, 20, math.nan], [0, 20, None], [0, 20], "x", [30, 40, 0.5]]
        scores = qvhighlights([{"id": 0, "windows": windows}], [query([[0, 20]])])
        assert scores.problem_counts() == {"malformed number": 4}
        assert scores.metrics["MR-full-mAP"] == 0

    def test_lengths(self):
        references = [query([[0, 10], [20, 50]], 0), query([[0, 60]], 1)]
        windows = [[[0, 10, 0.9], [20, 50, 0.8]], [[0, 60, 0.5]]]
        predictions = [{"id": index, "windows": of_query} for index, of_query in enumerate(windows)]
        metrics = qvhighlights(predictions, references).metrics
        assert metrics["MR-full-mAP"] == metrics["MR-short-mAP"] == metrics["MR-long-mAP"] == 100
        assert metrics["MR-middle-mAP"] == 50  # the short window stands before it
        assert "MR-short-mAP" not in qvhighlights(predictions[1:], references[1:]).metrics

    def test_of_a_prediction_there_twice_the_original_takes_all_windows(self):
        references = [query([[0, 20]])]
        predictions = [{"id": 0, "windows": [[50, 60, 0.9]]}, {"id": 0, "windows": [[0, 20, 0.1]]}]
        scores = original(predictions, references).metrics
        assert scores["MR-full-mAP"] == 50 and scores["MR-full-R1@0.5"] == 100
        assert qvhighlights(predictions, references).metrics["MR-full-mAP"] == 0

    def test_no_answer_is_not_a_point_at_0(self):
        assert set(qvhighlights([], [query([[0, 0]])]).metrics.values()) == {0}

    def test_a_query_without_a_true_window_is_refused(self):
        with pytest.raises(ValueError, match="'0' has no window"):
            qvhighlights([], [query([])])


class TestHighlights:
    ratings = {3: [4, 4, 4], 4: [4, 4, 4]}

    def scores(self, saliency, scoring="fixed", ratings=None):
        references = [query([[6, 10]], ratings=self.ratings if ratings is None else ratings, duration=20)]
        return qvhighlights([{"id": 0, "saliency": saliency}], references, scoring=scoring)

    def test_without_saliency_there_are_no_highlight_scores(self):
        metrics = qvhighlights([{"id": 0, "text": "6 - 10"}], [query([[6, 10]], ratings=self.ratings)]).metrics
        assert all(key.startswith("MR-") for key in metrics)

    def test_with_saliency_alone_there_are_no_moment_scores(self):
        metrics = self.scores([0, 0, 0, 1, 1, 0, 0, 0, 0, 0]).metrics
        assert set(metrics) == {
            f"HL-min-{level}-{kind}" for level in ("Fair", "Good", "VeryGood") for kind in ("mAP", "Hit1")
        }
        assert set(metrics.values()) == {100}

    @pytest.mark.parametrize(
        ("saliency", "fixed", "original"),
        [
            ([0.1, 0.9, 0.2, 0.8, 0.7, 0, 0, 0, 0, 0], 2 / 3, 2 / 3),
            # Three clips of one score make one step: precision 1 at the first right clip, then 2 of 4.
            ([0, 0.5, 0.5, 1, 0.5, 0, 0, 0, 0, 0], 0.75, 0.75),
            # All of one score: any order is as good.
            ([1] * 10, 0.2, 0.2),
        ],
    )
    def test_precision_by_hand(self, saliency, fixed, original):
        assert self.scores(saliency).metrics["HL-min-Fair-mAP"] == pytest.approx(100 * fixed)
        assert self.scores(saliency, "original").metrics["HL-min-Fair-mAP"] == pytest.approx(100 * original, abs=5e-3)

    def test_clips_of_one_score_count_by_the_recall_that_they_bring(self):
        ratings = {0: [4] * 3, 1: [4] * 3, 2: [4] * 3, 3: [4] * 3}
        saliency = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]  # one right clip, then three of nine
        assert self.scores(saliency, ratings=ratings).metrics["HL-min-Fair-mAP"] == pytest.approx(
            100 * (1 + 3 * 0.4) / 4
        )
        assert self.scores(saliency, "original", ratings).metrics["HL-min-Fair-mAP"] == 70

    def test_missing_clips_are_not_answered_and_0_in_the_original(self):
        saliency = [-0.9, -0.8, -0.7]  # the right clips 3 and 4 have no score
        assert set(self.scores(saliency).metrics.values()) == {0}
        assert self.scores(saliency, "original").metrics["HL-min-Fair-mAP"] == pytest.approx(100 * 2 / 7, abs=5e-3)

    def test_scores_behind_the_end_of_the_video_are_cut(self):
        saliency = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 5]
        assert set(self.scores(saliency).metrics.values()) == {100}
        assert self.scores(saliency, "original").metrics["HL-min-Fair-Hit1"] == 0

    def test_no_score_is_no_hit(self):
        scores = self.scores([math.nan] * 10, ratings={0: [4, 4, 4]})
        assert set(scores.metrics.values()) == {0}
        assert scores.problem_counts() == {"malformed number": 1}
        assert self.scores([math.nan] * 10, "original").problem_counts()["crash"] == 1

    def test_levels_and_annotators(self):
        ratings = {3: [4, 2, 0], 4: [2, 2, 0]}
        metrics = self.scores([0, 0, 0, 1, 0.5, 0, 0, 0, 0, 0], ratings=ratings).metrics
        assert metrics["HL-min-Fair-mAP"] == pytest.approx(200 / 3)  # the third annotator rated nothing
        assert metrics["HL-min-VeryGood-mAP"] == pytest.approx(100 / 3)
        assert metrics["HL-min-VeryGood-Hit1"] == 100

    def test_a_rated_clip_behind_the_end_is_refused(self):
        with pytest.raises(ValueError, match="query 0 has 10 clips, and rates clip 12"):
            self.scores([1], ratings={12: [4, 4, 4]})


class TestNextGQA:
    references = nextgqa_references(
        {"7": {"duration": 30, "location": {"0": [[0, 10]], "1": [[5, 15], [20, 30]]}}}, {"7_0": 2, "7_1": 1}
    )

    def test_references(self):
        assert self.references[1] == {"id": "7_1", "segments": [[5, 15], [20, 30]], "duration": 30, "answer": 1}
        with pytest.raises(ValueError, match="'7_1' has no answer"):
            nextgqa_references({"7": {"duration": 30, "location": {"1": [[5, 15]]}}}, {"7_0": 2})
        answers = {"7_1": {"answer": 0, "options": ["a cat", "a dog"]}}
        assert nextgqa_references({"7": {"duration": 30, "location": {"1": [[5, 15]]}}}, answers)[0]["options"]

    def test_missing_questions_are_in_the_denominator_and_not_in_the_original(self):
        predictions = [{"id": "7_0", "spans": [[0, 10]], "choice": 2}]
        fixed = nextgqa(predictions, self.references).metrics
        assert set(fixed.values()) == {50}
        first = nextgqa(predictions, self.references, scoring="original")
        assert set(first.metrics.values()) == {100} and first.num_samples == 1

    def test_a_right_answer_counts_where_half_of_its_interval_is_in_a_segment(self):
        at_half = {"id": "7_0", "spans": [[5, 15]], "choice": 2}
        below = {"id": "7_0", "spans": [[5, 15.1]], "choice": 2}
        wrong = {"id": "7_0", "spans": [[0, 10]], "choice": 3}
        accuracies = [nextgqa([one], self.references[:1]).metrics for one in (at_half, below, wrong)]
        assert [metrics["Acc@GQA"] for metrics in accuracies] == [100, 0, 0]
        assert [metrics["Acc@QA"] for metrics in accuracies] == [100, 100, 0]
        accuracies = [
            nextgqa([one], self.references[:1], scoring="original").metrics for one in (at_half, below, wrong)
        ]
        assert [metrics["Acc@GQA"] for metrics in accuracies] == [100, 0, 0]

    def test_a_reversed_interval_is_turned_round_and_0_in_the_original(self):
        predictions = [{"id": "7_0", "spans": [[10, 0]], "choice": 2}]
        assert nextgqa(predictions, self.references[:1]).metrics["mIoU"] == 100
        assert nextgqa(predictions, self.references[:1], scoring="original").metrics["mIoU"] == 0

    @pytest.mark.parametrize("scoring", ["fixed", "original"])
    @pytest.mark.parametrize(("point", "iop"), [(5, 100), (10, 100), (11, 0)])
    def test_a_point(self, scoring, point, iop):
        metrics = nextgqa([{"id": "7_0", "spans": [[point, point]]}], self.references[:1], scoring=scoring).metrics
        assert (metrics["mIoP"], metrics["mIoU"]) == (iop, 0)

    def test_the_option_is_read_from_the_text(self):
        predictions = [{"id": "7_0", "text": "1 - 2 </evi> (C) 0 - 10"}, {"id": "7_1", "text": "1 - 2 </evi> 5 - 15"}]
        scores = nextgqa(predictions, self.references)
        assert scores.metrics["Acc@QA"] == scores.metrics["Acc@GQA"] == 50
        assert [(problem.id, problem.kind) for problem in scores.problems] == [("7_1", "unparsable")]

    def test_without_answers_there_is_no_accuracy(self):
        references = [{"id": "7_0", "segments": [[0, 10]], "duration": 30}]
        predictions = [{"id": "7_0", "spans": [[0, 10]], "choice": 2}]
        assert not {"Acc@GQA", "Acc@QA"} & set(nextgqa(predictions, references).metrics)
        assert nextgqa(predictions, references, scoring="original").metrics["Acc@GQA"] == 0
        with pytest.raises(ValueError, match="'7_0' has no answer"):
            nextgqa(predictions, [*references, self.references[1]])

    def test_a_question_without_a_segment_is_refused(self):
        with pytest.raises(ValueError, match="'x' has no segment"):
            nextgqa([], [{"id": "x", "segments": [], "duration": 3}])

    def test_shares_of_the_duration(self):
        predictions = spans_from_shares(
            [{"id": "7_0", "spans": [[0.1, 0.25]]}, {"id": "x", "spans": []}], self.references
        )
        assert predictions == [{"id": "7_0", "spans": [[3.0, 7.5]]}, {"id": "x", "spans": []}]
