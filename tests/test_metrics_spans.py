# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What holds for every span metric in fixed mode; then the generic metric, Charades-STA and DiDeMo one by one."""

import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.evaluation.metrics.charades_sta import charades_sta, d2vlm_timestamp, lmms_times, to_timechat
from trl_temporal.evaluation.metrics.didemo import didemo
from trl_temporal.evaluation.metrics.grounding import interval_f1
from trl_temporal.evaluation.metrics.intervals import iou_table
from trl_temporal.evaluation.metrics.nextgqa import nextgqa
from trl_temporal.evaluation.metrics.qvhighlights import qvhighlights
from trl_temporal.evaluation.metrics.spans_metric import answered_spans, best_iou, flat_spans, span_scores

WRONG = [1000.0, 1001.0]  # beyond every true interval


def spans_references(truths):
    return [{"id": index, "spans": truth, "duration": 100} for index, truth in enumerate(truths)]


def charades_references(truths):
    return [{"id": index, "timestamp": truth[0]} for index, truth in enumerate(truths)]


def didemo_references(truths):
    pieces = [[int(start_s) // 5, int(start_s) // 5 + 1] for ((start_s, _), *_) in truths]
    return [{"annotation_id": index, "times": [piece] * 4} for index, piece in enumerate(pieces)]


def qvhighlights_references(truths):
    rated = {"relevant_clip_ids": [3, 4], "saliency_scores": [[4, 4, 4], [4, 4, 4]]}
    return [{"qid": index, "duration": 100, "relevant_windows": truth, **rated} for index, truth in enumerate(truths)]


def nextgqa_references(truths):
    return [{"id": index, "segments": truth, "duration": 100, "answer": 2} for index, truth in enumerate(truths)]


def perfect(references):
    """Right answers to the references of any of the benchmarks."""
    predictions = []
    for reference in references:
        if "times" in reference:
            first, last = reference["times"][0]
            prediction = {"id": reference["annotation_id"], "spans": [[5 * first, 5 * last + 5]]}
        elif "qid" in reference:
            saliency = [1.0 if clip in reference["relevant_clip_ids"] else -1.0 for clip in range(50)]
            prediction = {"id": reference["qid"], "spans": reference["relevant_windows"], "saliency": saliency}
        else:
            truth = reference.get("spans") or reference.get("segments") or [reference["timestamp"]]
            prediction = {"id": reference["id"], "spans": truth, "choice": 2}
        predictions.append(prediction)
    return predictions


BENCHMARKS = {
    "spans": (span_scores, spans_references),
    "charades_sta": (charades_sta, charades_references),
    "didemo": (didemo, didemo_references),
    "qvhighlights": (qvhighlights, qvhighlights_references),
    "nextgqa": (nextgqa, nextgqa_references),
}
benchmark = pytest.mark.parametrize("name", BENCHMARKS)

tenths = st.integers(0, 990).map(lambda number: number / 10)
interval = st.tuples(tenths, st.integers(1, 300)).map(lambda pair: [pair[0], round(pair[0] + pair[1] / 10, 1)])
truths = st.lists(st.lists(interval, min_size=1, max_size=4), min_size=1, max_size=5)
number = st.one_of(tenths, st.sampled_from([math.nan, math.inf, -math.inf, -3.0, 1e9, 1e300, None, "x"]))
answer_text = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            ["3..5 - 9", "9 - 3", "１２ – ٣٤", " to ", "5", "-5 - 10", "</evi>", "(B)", "00:05 - 00:12", "[1, 2]"]
        ),
        max_size=5,
    ).map(" ".join),
)
prediction = st.fixed_dictionaries(
    {"id": st.sampled_from([0, 1, 2, "0", "zero"])},
    optional={
        "text": answer_text,
        "spans": st.one_of(st.none(), st.just("12"), st.just(7), st.lists(st.lists(number, max_size=3), max_size=4)),
        "windows": st.one_of(st.none(), st.lists(st.lists(number, max_size=4), max_size=14)),
        "segments": st.one_of(st.none(), st.lists(st.lists(number, max_size=3), max_size=4)),
        "saliency": st.one_of(st.none(), st.lists(number, max_size=60)),
        "choice": st.one_of(st.none(), st.integers(-1, 5), st.just("C")),
    },
)
predictions_of_any_kind = st.lists(prediction, max_size=6)


class TestEveryMetric:
    @benchmark
    @settings(max_examples=40, deadline=None)
    @given(truths=truths, predictions=predictions_of_any_kind, seed=st.integers(0, 99))
    def test_any_prediction_is_scored_between_0_and_100_in_any_order(self, name, truths, predictions, seed):
        metric, make = BENCHMARKS[name]
        references = make(truths)
        scores = metric(predictions, references)
        assert scores.num_samples == len(references)
        assert all(0 <= value <= 100 + 1e-9 for value in scores.metrics.values()), scores.metrics
        rng = random.Random(seed)
        shuffled = metric(rng.sample(predictions, len(predictions)), rng.sample(references, len(references)))
        assert shuffled.metrics == scores.metrics
        # Of a prediction that is there twice and contradicts another, the order decides whether it is called both.
        kinds, shuffled_kinds = scores.problem_counts().keys(), shuffled.problem_counts().keys()
        assert kinds - {"duplicate"} == shuffled_kinds - {"duplicate"}

    @benchmark
    @settings(max_examples=25, deadline=None)
    @given(truths=truths)
    def test_right_answers_are_100(self, name, truths):
        metric, make = BENCHMARKS[name]
        references = make(truths)
        scores = metric(perfect(references), references)
        # A range of lengths counts windows of other lengths as wrong, and a truth that is there twice is found once.
        ranges = ("MR-short", "MR-middle", "MR-long")
        wrong = {
            key: value
            for key, value in scores.metrics.items()
            if value != pytest.approx(0 if key == "over_answering" else 100) and not key.startswith(ranges)
        }
        assert not wrong
        assert scores.problem_counts().keys() <= {"out of duration"}

    @benchmark
    @pytest.mark.parametrize("answer", [None, {"text": ""}, {"text": " \n"}, {"spans": []}, {"text": None}, {}])
    def test_no_answer_is_0(self, name, answer):
        metric, make = BENCHMARKS[name]
        references = make([[[2.0, 9.0]], [[30.0, 40.0], [50.0, 60.0]]])
        predictions = [] if answer is None else [{"id": index, **answer} for index in range(2)]
        scores = metric(predictions, references)
        assert scores.metrics and set(scores.metrics.values()) == {0}
        kinds = scores.problem_counts()
        assert kinds["missing" if answer is None else "empty"] == 2

    @benchmark
    @settings(max_examples=40, deadline=None)
    @given(truths=truths, seed=st.integers(0, 99))
    def test_a_wrong_interval_or_prediction_more_never_helps(self, name, truths, seed):
        metric, make = BENCHMARKS[name]
        references = make(truths)
        rng = random.Random(seed)
        predictions = [
            {**right, "spans": right["spans"] if rng.random() < 0.5 else [WRONG]} for right in perfect(references)
        ][: rng.randint(0, len(references))]
        before = metric(predictions, references).metrics

        longer = [{**one, "spans": [*one["spans"], WRONG]} for one in predictions]
        contradicted = [*predictions, {"id": rng.randrange(len(references)), "spans": [WRONG]}]
        for worse in (longer, contradicted):
            after = metric(worse, references).metrics
            raised = {key for key in before if after.get(key, 0) > before[key] + 1e-9}
            assert raised <= {"count_accuracy", "over_answering"}  # these count intervals, right or wrong

    @benchmark
    def test_what_is_wrong_with_predictions_is_listed(self, name):
        metric, make = BENCHMARKS[name]
        references = make([[[2.0, 9.0]]] * 8)
        predictions = [
            {"id": 0, "text": "not visible"},
            {"id": 1, "text": "9 - 3"},
            {"id": 2, "text": "3..5 - 9"},
            {"id": 3, "text": ""},
            {"id": 4, "text": "1 - 2"},
            {"id": 4, "text": "1 - 2"},
            {"id": 5, "text": "1 - 2"},
            {"id": 5, "text": "3 - 4"},
            {"id": 6, "spans": [[2, math.nan]]},
            {"id": "unknown", "text": "1 - 2"},
        ]
        found = {(problem.id, problem.kind) for problem in metric(predictions, references).problems}
        assert found >= {
            ("0", "unparsable"),
            ("1", "reversed"),
            ("2", "malformed number"),
            ("3", "empty"),
            ("4", "duplicate"),
            ("5", "conflict"),
            ("6", "malformed number"),
            ("7", "missing"),
            ("unknown", "unknown id"),
        }

    @benchmark
    def test_of_evidence_and_answer_the_answer_is_read(self, name):
        metric, make = BENCHMARKS[name]
        references = make([[[20.0, 30.0]]])
        right = metric([{"id": 0, "text": "1.0 - 2.0 </evi> It happens in 20 - 30."}], references).metrics
        wrong = metric([{"id": 0, "text": "20 - 30 </evi> It happens in 1.0 - 2.0."}], references).metrics
        keys = [key for key in right if key in ("mIoU", "MR-full-mAP")]
        assert keys and all(right[key] == 100 and wrong[key] == 0 for key in keys)

    @pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "qvhighlights"])
    def test_the_first_interval_counts(self, name):
        metric, make = BENCHMARKS[name]
        references = make([[[20.0, 30.0]]])
        assert metric([{"id": 0, "text": "20 - 30, 50 - 60"}], references).metrics["mIoU"] == 100
        assert metric([{"id": 0, "text": "50 - 60, 20 - 30"}], references).metrics["mIoU"] == 0

    @benchmark
    def test_thousands_of_intervals(self, name):
        metric, make = BENCHMARKS[name]
        text = " ".join(f"{index} - {index + 1}" for index in range(5000))
        start = time.perf_counter()
        scores = metric([{"id": 0, "text": text}], make([[[2.0, 9.0], [11.0, 20.0]]]))
        assert time.perf_counter() - start < 5
        assert all(0 <= value <= 100 for value in scores.metrics.values())

    @benchmark
    def test_no_samples(self, name):
        scores = BENCHMARKS[name][0]([], [])
        assert scores.num_samples == 0 and set(scores.metrics.values()) <= {0}

    @benchmark
    def test_references_that_are_there_twice_or_faulty_are_refused(self, name):
        metric, make = BENCHMARKS[name]
        with pytest.raises(ValueError, match="is there 2 times"):
            metric([], make([[[2.0, 9.0]]]) * 2)
        if name != "didemo":
            with pytest.raises(ValueError, match="reversed"):
                metric([], make([[[9.0, 2.0]]]))

    @pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "spans"])
    def test_a_scoring_that_does_not_exist_is_refused(self, name):
        with pytest.raises(ValueError, match="scoring is 'best'"):
            BENCHMARKS[name][0]([], [], scoring="best")

    @pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "spans"])
    @settings(max_examples=40, deadline=None)
    @given(truths=truths, predictions=predictions_of_any_kind)
    def test_original_scoring_takes_any_prediction_too(self, name, truths, predictions):
        metric, make = BENCHMARKS[name]
        metric(predictions, make(truths), scoring="original")


class TestSpanScores:
    @settings(max_examples=40, deadline=None)
    @given(data=st.lists(st.tuples(st.lists(interval, max_size=4), st.lists(interval, max_size=4)), max_size=6))
    def test_f1_is_that_of_each_sample_alone(self, data):
        references = [{"id": index, "spans": truth} for index, (truth, _) in enumerate(data)]
        predictions = [{"id": index, "spans": answered} for index, (_, answered) in enumerate(data)]
        f1 = np.array([interval_f1(truth, answered) for truth, answered in data]).reshape(-1, 4)
        metrics = span_scores(predictions, references).metrics
        for index, threshold in enumerate((0.1, 0.3, 0.5, 0.7)):
            assert metrics[f"F1@{threshold}"] == pytest.approx(100 * f1[:, index].mean() if data else 0)
        assert metrics["F1"] == pytest.approx(100 * f1.mean() if data else 0)

    def test_the_first_interval_counts_for_recall(self):
        references = [{"id": "a", "spans": [[0, 10], [20, 30]]}]
        wrong_first = span_scores([{"id": "a", "spans": [[50, 60], [0, 10]]}], references).metrics
        right_first = span_scores([{"id": "a", "spans": [[20, 30], [50, 60]]}], references).metrics
        assert wrong_first["mIoU"] == 0 and right_first["mIoU"] == 100
        assert wrong_first["F1"] == right_first["F1"] == 50

    def test_an_iou_of_exactly_the_threshold_is_a_hit(self):
        metrics = span_scores([{"id": 0, "spans": [[0, 0.7]]}], [{"id": 0, "spans": [[0, 1.0]]}]).metrics
        assert metrics["R1@0.7"] == metrics["F1@0.7"] == 100

    def test_counts(self):
        references = [{"id": index, "spans": [[0, 10], [20, 30]]} for index in range(4)]
        answers = [[[0, 10]], [[0, 10], [20, 30]], [[0, 10], [20, 30], [40, 50]], []]
        predictions = [{"id": index, "spans": spans} for index, spans in enumerate(answers)]
        metrics = span_scores(predictions, references).metrics
        assert (metrics["count_accuracy"], metrics["over_answering"]) == (25, 25)

    @pytest.mark.parametrize(
        ("answer", "right"),
        [
            ({"text": "It does not happen."}, True),
            ({"spans": []}, True),
            ({"text": ""}, False),
            ({"text": "3 - 9"}, False),
            ({"text": "3..5 - 9"}, False),
            ({"spans": [[math.nan, 2]]}, False),
            (None, False),
        ],
    )
    def test_a_sample_without_intervals(self, answer, right):
        predictions = [] if answer is None else [{"id": 0, **answer}]
        scores = span_scores(predictions, [{"id": 0, "spans": []}])
        expected = 100 if right else 0
        assert scores.metrics["F1"] == scores.metrics["mIoU"] == scores.metrics["count_accuracy"] == expected
        if right:
            assert scores.problems == []

    def test_intervals_behind_the_end_are_listed_and_scored_as_they_are(self):
        scores = span_scores([{"id": 0, "spans": [[0, 20]]}], [{"id": 0, "spans": [[0, 10]], "duration": 10}])
        assert scores.metrics["mIoU"] == 50
        assert [problem.kind for problem in scores.problems] == ["out of duration"]

    def test_spans_count_instead_of_the_text(self):
        assert answered_spans("a", {"text": "1 - 2", "spans": [[3, 4]]}, []) == [(3, 4)]

    @settings(max_examples=40, deadline=None)
    @given(data=st.lists(st.tuples(st.lists(interval, max_size=4), st.lists(interval, max_size=4)), max_size=6))
    def test_best_iou_is_the_maximum_of_the_samples_table(self, data):
        (spans, counts), (others, other_counts) = (
            (flat_spans(column) for column in zip(*data, strict=True))
            if data
            else (
                flat_spans([]),
                flat_spans([]),
            )
        )
        expected = [
            iou_table(of_sample, among).max(axis=1, initial=0).tolist() for of_sample, among in data if of_sample
        ]
        assert best_iou(spans, counts, others, other_counts).tolist() == [value for row in expected for value in row]


class TestCharades:
    references = [
        {"id": index, "image_id": f"V{index}.mp4", "caption": "person opens a door.", "timestamp": [10.0, 20.0]}
        for index in range(4)
    ]

    def original(self, predictions, scorer):
        return charades_sta(predictions, self.references, scoring="original", scorer=scorer)

    def test_d2vlm_leaves_failures_out_and_fixed_does_not(self):
        predictions = [{"id": 0, "text": "1 - 2 </evi> 10 - 20"}, {"id": 1, "text": "1 - 2 </evi> not visible"}]
        original = self.original([*predictions, {"id": 2, "spans": []}], "d2vlm")
        assert original.details["num"] == 2 and original.metrics["IOU 0.5"] == 50 and original.metrics["mIOU"] == 0.5
        assert charades_sta(predictions, self.references).metrics["R1@0.5"] == 25

    def test_d2vlm_falls_back_to_the_evidence_and_fixed_does_not(self):
        predictions = [{"id": 0, "text": "10 - 20 </evi> not visible"}]
        assert self.original(predictions, "d2vlm").metrics["IOU 0.7"] == 100
        assert charades_sta(predictions, self.references).metrics["R1@0.7"] == 0

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("10 - 20", KeyError),
            ("</evi>", KeyError),
            ("</evi> 10 - 20", TypeError),
            ("1 - 2 </evi> 3..5 - 9", ValueError),
            ("3..5 - 9 </evi> 1 - 2", ValueError),
        ],
    )
    def test_where_d2vlm_stops(self, text, error):
        with pytest.raises(error):
            d2vlm_timestamp(text)
        scores = self.original([{"id": 0, "text": text}, {"id": 1, "spans": [[10, 20]]}], "d2vlm")
        assert ("0", "crash") in {(problem.id, problem.kind) for problem in scores.problems}
        assert scores.details["num"] == 1

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ("9.6 - 9.8, 1 - 2", [9.6, 9.8]),
            ("48.3 - 0.7", [0.7, 48.3]),
            ("from 3 to 9", [3, 9]),
            ("it starts at 3.5\nand ends at 9", [3.5, 9]),
            ("it starts at 00:00:18 and ends at 00:00:23!it happens in 00:01:00", [0, 0]),
            ("10-20-30", [10, 20]),
            ("１ - ２", [1, 2]),
            ("5 - 6 </evi> 7 - 8", [7, 8]),
        ],
    )
    def test_what_d2vlm_reads(self, answer, expected):
        assert d2vlm_timestamp(f"1.5 - 2 </evi>{answer}") == expected

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ("9 - 3", [[3, 9]]),
            ("1 – 2s", [[1, 2]]),
            ("3to9", [[3, 9]]),
            ("12s - 15s", [[12, 15]]),
            ("see 00:05 - 00:12", [[5, 12]]),
            ("at 1:02:03 and 1:02:10", [[3723, 3730]]),
            ("4 - 5\nit happens in 7 - 8", [[7, 8]]),
            ("1 - 2 A specific example is : 20.8 - 30.0 seconds", [[1, 2]]),
            ("12", []),
            ("", []),
        ],
    )
    def test_what_lmms_eval_reads(self, answer, expected):
        assert lmms_times(answer) == expected

    def test_long_runs_of_digits_are_read_in_no_time(self):
        start = time.perf_counter()
        text = "1" * 20_000 + " " * 20_000
        assert lmms_times(text) == []
        with pytest.raises(KeyError):
            d2vlm_timestamp(f"{text}</evi>{text}")
        assert time.perf_counter() - start < 2

    def test_lmms_eval_counts_equal_queries_once(self):
        references = [{**reference, "image_id": "V.mp4"} for reference in self.references[:2]]
        predictions = [{"id": 0, "text": "10 - 20"}, {"id": 1, "text": "50 - 60"}]
        scores = charades_sta(predictions, references, scoring="original", scorer="lmms_eval")
        assert scores.num_samples == 1 and scores.metrics["mIOU"] == 0
        assert charades_sta(predictions, references).metrics["mIoU"] == 50

    def test_etchat_misses_an_iou_of_exactly_point_7(self):
        references = [{"id": 0, "timestamp": [0, 1]}]
        predictions = [{"id": 0, "spans": [[0, 0.7]]}]
        scores = charades_sta(predictions, references, scoring="original", scorer="etchat")
        assert (scores.metrics["R7"], scores.metrics["mIoU"]) == (0, 0.7)
        assert charades_sta(predictions, references).metrics["R1@0.7"] == 100

    def test_a_prediction_of_nan_is_right_in_the_original_only(self):
        predictions = [{"id": 0, "spans": [[math.nan, math.nan]]}]
        assert self.original(predictions, "d2vlm").metrics["IOU 0.7"] == 100
        assert charades_sta(predictions, self.references).metrics["mIoU"] == 0

    def test_to_timechat(self):
        samples = [
            {"idx": 3, "video": "a/b/V3.mp4", "q": "Find 'a door'.", "a": "1 - 2 </evi>not visible"},
            {"idx": 4, "video": "a/b/V4.mp4", "q": "Find 'a door'.", "a": "no"},
            {"idx": 5, "video": "a/b/V5.mp4", "q": "Find a door.", "a": "1 - 2 </evi>3 - 4"},
            {"idx": 6, "task": "epm", "video": "V6.mp4", "q": "Find 'a door'.", "a": "1 - 2 </evi>3 - 4"},
        ]
        problems = []
        converted = to_timechat(samples, problems)
        assert converted == {"3": {"timestamp": [1, 2], "vid": "V3.mp4", "query": "a door. "}, "4": [], "5": []}
        assert [(problem.id, problem.kind) for problem in problems] == [("4", "crash"), ("5", "crash")]

    def test_a_scorer_that_does_not_exist_is_refused(self):
        with pytest.raises(ValueError, match="scorer is 'mine'"):
            charades_sta([], [], scorer="mine")


class TestDidemo:
    ranking = [[first, last] for first in range(6) for last in range(first, 6)]

    def test_the_three_best_annotators_count(self):
        references = [{"annotation_id": 1, "times": [[0, 1], [0, 1], [0, 1], [4, 4]]}]
        assert didemo([{"id": 1, "spans": [[0, 10]]}], references).metrics["mIoU"] == 100
        references = [{"annotation_id": 1, "times": [[0, 1], [0, 1], [4, 4], [4, 4]]}]
        scores = didemo([{"id": 1, "spans": [[0, 10]]}], references).metrics
        assert scores["mIoU"] == pytest.approx(200 / 3) and scores["R1@0.7"] == 0 and scores["R1@0.5"] == 100

    def test_fewer_than_three_annotators(self):
        references = [{"annotation_id": 1, "times": [[0, 1]]}]
        assert didemo([{"id": 1, "spans": [[0, 10]]}], references).metrics["mIoU"] == 100

    def test_pieces_and_seconds_give_the_same_iou(self):
        references = [{"annotation_id": index, "times": [times] * 3} for index, times in enumerate(self.ranking)]
        pieces = [{"id": index, "segments": [[1, 3]]} for index in range(21)]
        seconds = [{"id": index, "spans": [[5, 20]]} for index in range(21)]
        of_pieces, of_seconds = didemo(pieces, references).metrics, didemo(seconds, references).metrics
        assert of_seconds.items() <= of_pieces.items()
        overlap = [max(0, min(3, last) - max(1, first) + 1) for first, last in self.ranking]
        union = [max(3, last) - min(1, first) + 1 for first, last in self.ranking]
        assert of_seconds["mIoU"] == pytest.approx(100 * np.mean(np.array(overlap) / union))

    def test_ranks_are_there_with_segments_only(self):
        references = [{"annotation_id": index, "times": [[0, 1]] * 4} for index in range(2)]
        ranked = {"id": 0, "segments": [[0, 1], *[segment for segment in self.ranking if segment != [0, 1]]]}
        assert "Rank@1" not in didemo([{"id": 0, "text": "0 - 10"}], references).metrics
        metrics = didemo([ranked], references).metrics
        assert metrics["Rank@1"] == metrics["Rank@5"] == metrics["mIoU"] == 50

    def test_a_moment_that_is_not_ranked_stops_the_original_and_is_a_miss(self):
        references = [{"annotation_id": 0, "times": [[0, 1]] * 4}]
        predictions = [{"id": 0, "segments": [[2, 3]]}]
        original = didemo(predictions, references, scoring="original")
        assert original.metrics == {"rank1": 0, "rank5": 0, "miou": 0}
        assert original.problem_counts() == {"crash": 1}
        assert didemo(predictions, references).metrics["Rank@5"] == 0

    def test_the_original_leaves_missing_ones_out(self):
        references = [{"annotation_id": index, "times": [[0, 0]] * 4} for index in range(2)]
        scores = didemo([{"id": 1, "segments": self.ranking}], references, scoring="original")
        assert scores.num_samples == 1 and scores.metrics["rank1"] == 1
        assert didemo([{"id": 1, "segments": self.ranking}], references).metrics["Rank@1"] == 50

    @pytest.mark.parametrize("times", [[], [[1, 0]], [[0.5, 1]], [["a", 1]], [[1]]])
    def test_faulty_times_are_refused(self, times):
        with pytest.raises(ValueError, match="'x' has the times"):
            didemo([], [{"annotation_id": "x", "times": times}])
