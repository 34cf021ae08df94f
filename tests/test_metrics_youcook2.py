# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Dense captions on YouCook2: what `fixed` promises, and each of its differences from the original."""

import copy
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.evaluation.metrics import youcook2 as module
from trl_temporal.evaluation.metrics import youcook2_original as original
from trl_temporal.evaluation.metrics.captioning import CaptionToolsMissing, Meteor, approximate_tokenize
from trl_temporal.evaluation.metrics.youcook2 import youcook2
from trl_temporal.evaluation.metrics.youcook2_original import monotone_assignment

WORDS = "pour oil stir onion fry rice cut bread mix flour boil water add salt".split()
PERCENT = ("F1_Score", "METEOR", "SODA_c", "Precision_Mean", "Recall_Mean")


class WordOverlap:
    """Stands for METEOR: share of equal words."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def score(self, candidates, references):
        words = [(set(a.split()), set(b.split())) for a, (b,) in zip(candidates, references, strict=True)]
        single = np.array([len(a & b) / max(len(a | b), 1) for a, b in words])
        return single.mean() if len(single) else 0.0, single


class NoTools:
    def __init__(self):
        raise CaptionToolsMissing("METEOR needs Java")


@pytest.fixture(scope="class")
def stand_ins():
    """Scores without Java, which would take seconds a call."""
    with pytest.MonkeyPatch.context() as patch:
        for where in (module, original):
            patch.setattr(where, "Meteor", WordOverlap)
        patch.setattr(module, "ptb_tokenize", approximate_tokenize)
        patch.setattr(original, "ptb_tokenize_file", approximate_tokenize)
        yield


@pytest.fixture(scope="module")
def running_meteor():
    try:
        process = Meteor()
    except CaptionToolsMissing as error:
        pytest.skip(str(error))
    with process:
        yield process


@pytest.fixture
def one_meteor(running_meteor, monkeypatch):
    """The real METEOR, started once."""

    class Running(WordOverlap):
        score = staticmethod(running_meteor.score)

    for where in (module, original):
        monkeypatch.setattr(where, "Meteor", Running)


def record(name, segments, captions, duration_s=100.0):
    return {
        "image_id": f"youcook2/{name}",
        "duration": duration_s,
        "segments": segments,
        "pure_cap": ". ".join(captions),
    }


def answer(name, segments, captions):
    events = [{"timestamp": list(span), "caption": text} for span, text in zip(segments, captions, strict=True)]
    return {"id": name, "events": events}


def perfect(references):
    return [answer(r["image_id"], r["segments"], r["pure_cap"].split(". ")) for r in references]


captions_of = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@st.composite
def benchmarks(draw):
    """Records whose steps do not overlap, as in YouCook2, and predictions near them."""
    references, predictions = [], []
    for index in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(st.tuples(st.integers(1, 9), captions_of), min_size=1, max_size=4))
        segments = [[20.0 * step, 20.0 * step + length] for step, (length, _) in enumerate(steps)]
        references.append(record(f"v{index}.mp4", segments, [caption for _, caption in steps]))
        events = draw(
            st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), captions_of), max_size=5)
        )
        spans = [[20.0 * step + start, 20.0 * step + start + length] for step, start, length, _ in events]
        if events or draw(st.booleans()):
            predictions.append(answer(f"v{index}.mp4", spans, [caption for *_, caption in events]))
    return references, predictions


def same(a, b):
    return a.metrics == pytest.approx(b.metrics, abs=1e-9)


@pytest.mark.usefixtures("stand_ins")
class TestProperties:
    @given(benchmark=benchmarks(), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=50)
    def test_order_does_not_matter(self, benchmark, seed):
        references, predictions = benchmark
        rng = random.Random(seed)
        shuffled = [
            {**prediction, "events": rng.sample(prediction["events"], len(prediction["events"]))}
            for prediction in rng.sample(predictions, len(predictions))
        ]
        again = youcook2(shuffled, rng.sample(references, len(references)))
        assert same(youcook2(predictions, references), again)

    @given(benchmark=benchmarks())
    @settings(deadline=None, max_examples=50)
    def test_bounds(self, benchmark):
        references, predictions = benchmark
        scores = youcook2(predictions, references)
        assert scores.num_samples == len(references)
        for key, value in scores.metrics.items():
            assert 0 <= value <= (1000 if key == "CIDEr" else 100 + 1e-9), key

    @given(benchmark=benchmarks())
    @settings(deadline=None, max_examples=50)
    def test_perfect_predictions_have_100(self, benchmark):
        references, _ = benchmark
        scores = youcook2(perfect(references), references)
        assert [scores.metrics[key] for key in PERCENT] == pytest.approx([100] * 5)
        assert not scores.problems

    @given(benchmark=benchmarks())
    @settings(deadline=None, max_examples=20)
    def test_nothing_has_0(self, benchmark):
        references, _ = benchmark
        ids = [reference["image_id"] for reference in references]
        for predictions in ([], [{"id": i, "events": []} for i in ids], [{"id": i, "text": ""} for i in ids]):
            scores = youcook2(predictions, references)
            assert set(scores.metrics.values()) == {0.0}
            assert len(scores.problems) == len(references)

    @given(benchmark=benchmarks(), data=st.data())
    @settings(deadline=None, max_examples=50)
    def test_a_wrong_event_or_answer_never_helps(self, benchmark, data):
        references, predictions = benchmark
        before = youcook2(predictions, references).metrics
        chosen = data.draw(st.sampled_from(references))["image_id"].split("/")[-1]
        caption = data.draw(captions_of)
        worse = copy.deepcopy(predictions)
        if data.draw(st.booleans()):
            worse.append(answer(chosen, [[90, 95]], [caption]))  # a second answer, or a first that is wrong
        else:
            for prediction in worse:
                if prediction["id"] == chosen:
                    prediction["events"].insert(0, {"timestamp": [90, 95], "caption": caption})
        after = youcook2(worse, references).metrics
        assert all(after[key] <= before[key] + 1e-9 for key in before)

    anything = st.recursive(
        st.none() | st.floats() | st.integers() | st.text(max_size=5) | st.booleans(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["timestamp", "caption"]), inner),
        max_leaves=8,
    )

    @given(events=anything, text=anything | st.text())
    @settings(deadline=None, max_examples=200)
    def test_any_answer(self, events, text):
        references = [record("a.mp4", [[0, 10]], ["pour oil"])]
        for prediction in ({"id": "a.mp4", "events": events}, {"id": "a.mp4", "text": text}):
            scores = youcook2([prediction], references)
            assert all(math.isfinite(value) for value in scores.metrics.values())
            youcook2([prediction], references, scoring="original")

    def test_bad_input_is_listed(self):
        references = [record(f"{name}.mp4", [[0, 10]], ["pour oil"], duration_s=50) for name in "abcdef"]
        predictions = [
            {"id": "a.mp4", "events": [{"timestamp": [10, 0], "caption": "pour oil"}]},
            {"id": "b.mp4", "events": [{"timestamp": [math.nan, 5], "caption": "x"}, {"caption": "x"}, 7]},
            {"id": "c.mp4", "text": "0 - 10, pour oil. 40 - 60, stir."},
            {"id": "d.mp4", "text": "I cannot say."},
            {"id": "e.mp4", "text": "0 - 10, pour oil."},
            {"id": "e.mp4", "text": "0 - 10, stir."},
            {"id": "z.mp4", "text": "0 - 10, pour oil."},
        ]
        scores = youcook2(predictions, references)
        assert {(problem.id, problem.kind) for problem in scores.problems} == {
            ("a.mp4", "reversed"),
            ("b.mp4", "malformed number"),
            ("b.mp4", "unparsable"),
            ("c.mp4", "out of duration"),
            ("d.mp4", "unparsable"),
            ("e.mp4", "conflict"),
            ("f.mp4", "missing"),
            ("z.mp4", "unknown id"),
        }
        assert scores.metrics["F1_Score"] == pytest.approx(100 * (1 + 2 / 3) / 6)

    def test_thousands_of_events_and_endless_captions(self):
        references = [record("a.mp4", [[0, 10], [20, 30]], ["pour oil", "stir"])]
        many = answer("a.mp4", [[i / 100, i / 100 + 10] for i in range(5000)], ["pour oil"] * 5000)
        assert 0 < youcook2([many], references).metrics["F1_Score"] < 100
        endless = answer("a.mp4", [[0, 10], [20, 30]], ["pour oil " * 20_000, "stir"])
        scores = youcook2([endless], references)
        assert [problem.kind for problem in scores.problems] == ["unparsable"]
        assert scores.metrics["F1_Score"] == 100 and scores.metrics["METEOR"] == pytest.approx(50)
        assert scores.details["paragraph"]["METEOR"] == 0

    def test_text_and_events_are_the_same(self):
        references = [record("a.mp4", [[0, 10], [20, 30.5]], ["pour oil", "stir for 2 - 3 minutes"])]
        text = {
            "id": "youcook2/a.mp4",
            "text": "0 - 10 seconds, pour oil. 20.0 - 30.5 seconds, stir for 2 - 3 minutes.",
        }
        assert same(youcook2([text], references), youcook2(perfect(references), references))

    def test_bad_references(self):
        good = record("a.mp4", [[0, 10]], ["pour oil"])
        with pytest.raises(ValueError, match="no references"):
            youcook2([], [])
        with pytest.raises(ValueError, match="2 times"):
            youcook2([], [good, good])
        with pytest.raises(ValueError, match="2 captions for 1 segments"):
            youcook2([], [record("a.mp4", [[0, 10]], ["pour oil", "stir"])])
        with pytest.raises(ValueError, match="not finite"):
            youcook2([], [record("a.mp4", [[0, math.nan]], ["pour oil"])])
        with pytest.raises(ValueError, match="scoring"):
            youcook2([], [good], scoring="best")


@pytest.mark.usefixtures("stand_ins")
class TestFixes:
    """Each with the original beside it."""

    def both(self, predictions, references):
        ours = youcook2(predictions, references)
        return ours, youcook2(predictions, references, scoring="original")

    def test_an_iou_on_the_threshold_counts(self):
        references = [record("a.mp4", [[0, 10]], ["pour oil"])]
        ours, theirs = self.both([answer("a.mp4", [[0, 7]], ["pour oil"])], references)
        assert ours.metrics["Recall@0.7"] == 100
        assert theirs.metrics["Recall@0.7"] == 0

    def test_the_idf_is_that_of_the_benchmark(self):
        """In the original a video with one pair has CIDEr 0."""
        references = [
            record("a.mp4", [[0, 10]], ["pour the hot oil"]),
            record("b.mp4", [[0, 10]], ["stir the rice well"]),
        ]
        ours, theirs = self.both(perfect(references), references)
        assert ours.metrics["CIDEr"] == pytest.approx(1000)
        assert theirs.metrics["CIDER"] == 0

    def test_a_prediction_without_a_match_scores_0(self):
        references = [record("a.mp4", [[0, 10]], ["pour the hot oil"]), record("b.mp4", [[0, 10]], ["stir"])]
        spans, captions = [[0, 10], [50, 60], [70, 80]], ["pour the hot oil", "stir", "fry"]
        ours = youcook2([answer("a.mp4", spans, captions)], references)
        assert ours.metrics["METEOR"] == pytest.approx(100 / 3 / 2)
        assert ours.metrics["CIDEr"] == pytest.approx(1000 / 3 / 2)

    def test_soda_takes_events_in_time(self):
        references = [record("a.mp4", [[0, 10], [20, 30]], ["pour oil", "stir"])]
        swapped = [answer("a.mp4", [[20, 30], [0, 10]], ["stir", "pour oil"])]
        ours, theirs = self.both(swapped, references)
        assert ours.metrics["SODA_c"] == pytest.approx(100)
        assert theirs.metrics["SODA_c_2"] == 50

    def test_more_than_10_predictions_keep_their_order(self):
        captions = [" ".join(pair) for pair in zip(WORDS[:12], WORDS[1:13], strict=True)]
        segments = [[8.0 * i, 8.0 * i + 7] for i in range(12)]
        references = [record("a.mp4", segments, captions)]
        ours, theirs = self.both(perfect(references), references)
        assert ours.metrics["SODA_c"] == pytest.approx(100)
        assert theirs.metrics["SODA_c_2"] < 50

    def test_paragraphs_keep_their_videos(self):
        references = [record(f"{name}.mp4", [[0, 10]], [f"pour the {name} now"]) for name in ("oil", "water", "milk")]
        ours, theirs = self.both(perfect(references)[1:], references)
        assert ours.details["paragraph"]["METEOR"] == pytest.approx(100 * 2 / 3)
        assert theirs.metrics["Para_METEOR"] < 70

    def test_soda_weighs_both_numbers_of_events(self):
        references = [record("a.mp4", [[0, 10], [20, 30], [40, 50]], ["pour oil", "stir", "fry"])]
        scores = youcook2([answer("a.mp4", [[0, 5]], ["pour oil"])], references)
        assert scores.metrics["SODA_c"] == pytest.approx(100 * 2 * 0.5 / (1 + 3))


class TestMeteorArguments:
    def test_meteor_gets_the_prediction_as_such(self, monkeypatch):
        calls = []

        class Recorder(WordOverlap):
            def score(self, candidates, references):
                calls.append((list(candidates), [list(of_item) for of_item in references]))
                return super().score(candidates, references)

        for where in (module, original):
            monkeypatch.setattr(where, "Meteor", Recorder)
        monkeypatch.setattr(module, "ptb_tokenize", approximate_tokenize)
        monkeypatch.setattr(original, "ptb_tokenize_file", approximate_tokenize)
        references = [record("a.mp4", [[0, 10]], ["pour oil"])]
        predictions = [answer("a.mp4", [[0, 9]], ["stir"])]
        youcook2(predictions, references)
        assert calls[0] == (["stir"], [["pour oil"]])
        calls.clear()
        youcook2(predictions, references, scoring="original")
        assert calls[-1] == (["pour oil"], [["stir"]])  # SODA comes last


class TestMissingTools:
    references = [record("a.mp4", [[0, 10]], ["pour the hot oil"]), record("b.mp4", [[0, 10]], ["stir the rice well"])]

    @pytest.fixture(autouse=True)
    def no_tools(self, monkeypatch):
        monkeypatch.setattr(module, "Meteor", NoTools)
        monkeypatch.setattr(original, "Meteor", NoTools)

    def test_the_rest_is_scored_and_the_gap_is_named(self):
        scores = youcook2(perfect(self.references), self.references)
        assert scores.metrics["F1_Score"] == 100
        assert not [key for key in scores.metrics if key.startswith(("CIDEr", "METEOR", "SODA_c"))]
        assert scores.details["missing"] == dict.fromkeys(("CIDEr", "METEOR", "SODA_c"), "METEOR needs Java")

    def test_approximate_cider_goes_by_its_own_name(self):
        scores = youcook2(perfect(self.references), self.references, approximate=True)
        assert scores.metrics["CIDEr (approximate tokens)"] == pytest.approx(1000)
        assert "CIDEr" not in scores.metrics and "CIDEr" in scores.details["missing"]

    def test_original(self):
        scores = youcook2(perfect(self.references), self.references, scoring="original")
        assert scores.metrics["F1_Score"] == 100.0 and scores.metrics["Para_CIDER"] == 1000.0
        assert "CIDER" not in scores.metrics and "SODA_c_2" not in scores.details["per_video"]
        assert set(scores.details["missing"]) == {"Para_METEOR", "CIDER", "METEOR", "SODA_c_2"}


@pytest.mark.usefixtures("stand_ins")
class TestOriginal:
    references = [record("a.mp4", [[0, 10]], ["pour oil"]), record("b.mp4", [[0, 10]], ["stir"])]

    def test_of_several_answers_the_last_counts(self):
        right, wrong = (answer("a.mp4", [span], ["pour oil"]) for span in ([0, 10], [50, 60]))
        for predictions, f1 in (([right, wrong], 0.0), ([wrong, right], 50.0)):
            assert youcook2(predictions, self.references, scoring="original").metrics["F1_Score"] == f1

    def test_where_the_original_stops(self):
        predictions = [
            {"id": "a.mp4", "events": [{"timestamp": [0, 10]}, {"timestamp": [0, 10], "caption": "pour oil"}]}
        ]
        scores = youcook2(predictions, self.references, scoring="original")
        assert [problem.kind for problem in scores.problems] == ["missing", "crash"]
        assert scores.metrics["F1_Score"] == 50.0
        empty = youcook2([], self.references, scoring="original")
        assert empty.problem_counts() == {"missing": 2, "crash": 1}
        assert empty.metrics["CIDER"] == 0 and empty.metrics["SODA_c_1"] == -100

    def test_endless_captions_stop_it(self, monkeypatch):
        class OutOfMemory(WordOverlap):
            def score(self, candidates, references):
                raise RuntimeError("METEOR stopped with exit code 1: OutOfMemoryError")

        monkeypatch.setattr(original, "Meteor", OutOfMemory)
        scores = youcook2(perfect(self.references), self.references, scoring="original")
        assert scores.metrics["F1_Score"] == 100.0 and "METEOR" not in scores.metrics
        assert scores.problem_counts() == {"crash": 1}

    def test_reversed_and_nan_times_are_scored_as_they_are(self):
        predictions = [answer("a.mp4", [[10, 0], [math.nan, 5]], ["pour oil", "stir"])]
        scores = youcook2(predictions, self.references, scoring="original")
        assert scores.details["per_video"]["Recall@0.9"] == [1.0, 0.0]
        assert scores.details["per_video"]["Precision@0.9"] == [0.5, 0.0]


def best_by_recursion(scores):
    """The original's recursion, which takes the first of equal states."""
    num_rows, num_columns = scores.shape
    best, path = np.zeros((num_rows, num_columns)), np.zeros((num_rows, num_columns), dtype=int)
    for i in range(num_rows):
        for j in range(num_columns):
            above = best[i - 1, j] if i else -1
            left = best[i, j - 1] if j else -1
            both = scores[i, j] + (best[i - 1, j - 1] if i and j else 0)
            best[i, j], path[i, j] = max(above, left, both), np.argmax([above, left, both])

    def pairs(i, j):
        matched = [column for column in range(j + 1) if path[i, column] == 2]
        if not matched:
            return pairs(i - 1, j) if i else []
        last = matched[-1]
        return (pairs(i - 1, last - 1) if i and last else []) + [(i, last)]

    return best[-1, -1], pairs(num_rows - 1, num_columns - 1)


class TestAssignment:
    @given(
        shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        values=st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0]), min_size=36, max_size=36),
    )
    def test_equals_the_recursion(self, shape, values):
        scores = np.array(values[: shape[0] * shape[1]]).reshape(shape)
        best, pairs = monotone_assignment(scores)
        expected, expected_pairs = best_by_recursion(scores)
        assert best == pytest.approx(expected, abs=1e-12)
        assert pairs == expected_pairs

    def test_large(self):
        scores = np.random.default_rng(0).random((200, 3000))
        assert monotone_assignment(scores)[0] > 150


class TestWithJava:
    """The real tools; the original's numbers are in `golden/`."""

    references = [
        record(
            "a.mp4", [[0, 10], [20, 30], [40, 60]], ["pour the oil into a pan", "add vitamin a", "stir don't (burn)"]
        ),
        record("b.mp4", [[5, 15]], ["slice 1/2 cup of half-cooked rice"]),
    ]

    def test_perfect_predictions(self, one_meteor):
        scores = youcook2(perfect(self.references), self.references)
        assert [scores.metrics[key] for key in PERCENT] == pytest.approx([100] * 5)
        assert scores.details["missing"] == {}
        assert list(scores.metrics)[:4] == ["F1_Score", "CIDEr", "METEOR", "SODA_c"]

    def test_worse_captions_and_times_score_less(self, one_meteor):
        spans = [[0, 9], [21, 30], [41, 55]]
        good = youcook2([answer("a.mp4", spans, ["pour oil", "add vitamin", "stir"])], self.references)
        bad = youcook2([answer("a.mp4", spans, ["pour", "fry", "stir"])], self.references)
        for key in ("CIDEr", "METEOR", "SODA_c"):
            assert 0 < bad.metrics[key] < good.metrics[key] < 50 * (10 if key == "CIDEr" else 1)

    def test_paragraph_and_lists_over_videos(self, one_meteor):
        scores = youcook2(perfect(self.references)[:1], self.references)
        assert scores.details["paragraph"]["METEOR"] == pytest.approx(50)
        assert scores.details["per_video"]["id"] == ["a.mp4", "b.mp4"]
        assert scores.details["per_video"]["SODA_c"] == pytest.approx([100, 0])
        assert scores.details["per_video"]["num_predictions"] == [3, 0]

    def test_endless_captions(self, one_meteor):
        endless = answer("a.mp4", [[0, 10]], ["the pan and " * 20_000])
        assert youcook2([endless], self.references).metrics["METEOR"] == 0

    def test_a_full_stop_behind_a_letter_is_none_of_it(self, one_meteor):
        references = [record("a.mp4", [[0, 10]], ["take vitamin a"]), record("b.mp4", [[0, 10]], ["stir"])]
        bare = youcook2([answer("a.mp4", [[0, 10]], ["take vitamin a"])], references)
        stopped = youcook2([answer("a.mp4", [[0, 10]], ["take vitamin a."])], references)
        assert same(bare, stopped) and bare.metrics["METEOR"] == 50
