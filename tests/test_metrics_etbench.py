# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.evaluation.metrics import etbench as etbench_module
from trl_temporal.evaluation.metrics.captioning import CaptionToolsMissing
from trl_temporal.evaluation.metrics.etbench import COLUMNS, MERGED, etbench, etbench_id
from trl_temporal.evaluation.metrics.etbench_fixed import TASKS
from trl_temporal.evaluation.metrics.etbench_original import SCORERS
from trl_temporal.evaluation.metrics.etbench_text import read_captions, read_captions_of_answer
from trl_temporal.evaluation.metrics.sentence_similarity import SentenceEncoder, SentenceModelMissing

GOLDEN = Path(__file__).parent / "golden" / "metrics"
WORDS = ("whisk", "the", "eggs", "pour", "oil", "cut", "onion", "fry", "slowly", "pan")


class WordEncoder(SentenceEncoder):
    """Bags of words in place of MiniLM: no model to load, and similarities that can be told by hand."""

    def __init__(self):
        self.num_calls = 0

    def encode(self, texts):
        self.num_calls += 1
        if not len(texts):
            return np.zeros((0, 0), np.float32)
        vectors = np.array([[text.split().count(word) for word in WORDS] for text in texts], dtype=np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def record(task, idx=0, source="a", **fields):
    """A sample that `perfect` answers."""
    tgt = {
        "tvg": [5.0, 10.0],
        "epm": [5.0, 10.0],
        "gvq": [5.0, 10.0],
        "vhd": [[[5.0, 10.0]], [[20.0, 22.0], [24.0, 25.5]]],
        "rar": None,
        "eca": None,
        "rvq": None,
    }.get(task, [[5.0, 10.0], [12.0, 20.0]])
    sample = {"version": 1.0, "idx": idx, "task": task, "source": source, "video": f"{idx}.mp4", "duration": 30.0}
    sample |= {"q": "q"} | ({} if tgt is None else {"tgt": tgt})
    if task in ("rar", "eca", "rvq", "gvq"):
        sample |= {"p": 1, "o": ["whisk eggs", "cut the onion", "pour oil", "fry slowly"]}
    if task in ("dvc", "slc"):
        sample |= {"g": ["cut the onion", "fry slowly"]}
    return sample | fields


def perfect(sample):
    """The right answer to a sample, as text."""
    truth = sample.get("tgt")
    if sample["task"] in ("dvc", "slc"):
        return " ".join(f"{s} - {e} seconds, {c}." for (s, e), c in zip(truth, sample["g"], strict=True))
    if sample["task"] == "vhd":
        truth = [truth[-1][-1]] if isinstance(truth[0][0], list) else truth
    letter = f"({'ABCDE'[sample['p']]}) {sample['o'][sample['p']]}. " if "p" in sample else ""
    if truth is None:
        return letter
    pairs = truth if isinstance(truth[0], list) else [truth]
    return letter + ", ".join(f"{s} - {e}" for s, e in pairs)


def answers(samples, texts):
    return [{"id": etbench_id(s), "text": text} for s, text in zip(samples, texts, strict=True)]


def fixed(predictions, samples):
    return etbench(predictions, samples, sentence_model=WordEncoder())


def score(text, sample, column=None, **prediction):
    """The column of a sample's task, when it is answered by this text."""
    column = column or next(name for name, (task, _) in COLUMNS.items() if task == sample["task"])
    return fixed([{"id": etbench_id(sample), "text": text, **prediction}], [sample]).metrics[column]


# --- Random benchmarks ---

times = st.integers(0, 300).map(lambda tenth: tenth / 10)
intervals = st.tuples(times, times).map(sorted)
captions = st.lists(st.sampled_from(WORDS), min_size=2, max_size=4).map(" ".join)


@st.composite
def samples_of(draw, tasks=TASKS):
    count = draw(st.integers(1, 6))
    samples = []
    for idx in range(count):
        task = draw(st.sampled_from(tasks))
        sample = record(task, idx, source=draw(st.sampled_from("ab")), video=draw(st.sampled_from("xy")))
        if task in ("tvg", "epm", "gvq"):
            sample["tgt"] = draw(intervals)
        elif task not in ("rar", "eca", "rvq"):
            sample["tgt"] = draw(st.lists(intervals, min_size=1, max_size=3))
        if "p" in sample:
            sample["p"] = draw(st.integers(0, 3))
        if "g" in sample:
            sample["g"] = [draw(captions) for _ in sample["tgt"]]
        samples.append(sample)
    return samples


answer_texts = st.one_of(
    st.sampled_from(
        ["", "(B)", "C.", "3..5 - 9", "10 - 3", "2 - 3, 5 - 9.", "0 - 1 </evi>", "１０ - ２０", "5 - 1e999"]
    ),
    st.lists(intervals, max_size=4).map(lambda pairs: " ".join(f"{s} - {e}, cut the onion." for s, e in pairs)),
    st.lists(intervals, max_size=4).map(lambda pairs: "9 - 9 </evi>" + " ".join(f"{s} - {e}" for s, e in pairs)),
)


class TestFixedProperties:
    @given(samples=samples_of())
    def test_perfect_answers_score_100(self, samples):
        scores = fixed(answers(samples, map(perfect, samples)), samples)
        assert list(scores.metrics.values()) == pytest.approx([100] * len(scores.metrics))
        assert not [p for p in scores.problems if p.kind != "out of duration"]
        assert scores.num_samples == len(samples)

    @given(samples=samples_of())
    def test_no_and_empty_answers_score_0(self, samples):
        for predictions in ([], answers(samples, [""] * len(samples)), answers(samples, ["no idea"] * len(samples))):
            scores = fixed(predictions, samples)
            assert set(scores.metrics.values()) == {0.0}
            assert len(scores.problems) >= len(samples)

    @given(samples=samples_of(), data=st.data())
    def test_stays_within_0_and_100_and_does_not_depend_on_the_order(self, samples, data):
        predictions = answers(samples, [data.draw(answer_texts) for _ in samples])
        scores = fixed(predictions, samples)
        assert all(0 <= value <= 100 for value in scores.metrics.values())
        rng = random.Random(data.draw(st.integers(0, 9)))
        shuffled = fixed(rng.sample(predictions, len(predictions)), rng.sample(samples, len(samples)))
        assert shuffled.metrics == pytest.approx(scores.metrics)
        assert sorted(shuffled.problems) == sorted(scores.problems)

    @given(samples=samples_of(), data=st.data())
    def test_a_wrong_interval_never_helps(self, samples, data):
        """One behind the video overlaps nothing."""
        texts = [data.draw(answer_texts) for _ in samples]
        before = fixed(answers(samples, texts), samples).metrics
        index = data.draw(st.integers(0, len(samples) - 1))
        texts[index] += " 500.0 - 600.0, hm."
        after = fixed(answers(samples, texts), samples).metrics
        assert all(after[name] <= before[name] + 1e-9 for name in before)

    @given(samples=samples_of(), data=st.data())
    def test_a_second_answer_never_helps(self, samples, data):
        predictions = answers(samples, [data.draw(answer_texts) for _ in samples])
        before = fixed(predictions, samples).metrics
        wrong = {"id": data.draw(st.sampled_from(predictions))["id"], "text": data.draw(answer_texts)}
        after = fixed([*predictions, wrong], samples).metrics
        assert all(after[name] <= before[name] + 1e-9 for name in before)

    @settings(max_examples=200)
    @given(text=st.text(max_size=80) | st.text("0123456789.-:, to\n<>/evi(A)", max_size=80))
    def test_any_text_is_scored_in_both_modes(self, text):
        samples = [record(task, idx) for idx, task in enumerate(TASKS)]
        predictions = answers(samples, [text] * len(samples))
        scores = fixed(predictions, samples)
        assert all(0 <= value <= 100 for value in scores.metrics.values())
        for scorer in SCORERS:
            etbench(
                predictions,
                samples,
                scoring="original",
                scorer=scorer,
                sentence_model=WordEncoder(),
                caption_tools=False,
            )

    @pytest.mark.parametrize("text", [None, 7, float("nan"), ["5 - 10"], {"a": 1}, "\ud800", "٥ - ١٠", "9" * 5000])
    def test_odd_texts(self, text):
        samples = [record(task, idx) for idx, task in enumerate(TASKS)]
        assert fixed(answers(samples, [text] * len(samples)), samples).num_samples == len(TASKS)

    @pytest.mark.parametrize(
        "spans", [5, "5 - 10", [None], [[1]], [[1, 2, 3]], [[math.nan, 2]], [[1, math.inf]], [], {}]
    )
    def test_odd_spans(self, spans):
        samples = [record(task, idx) for idx, task in enumerate(TASKS)]
        scores = fixed([{"id": etbench_id(s), "text": "hm", "spans": spans} for s in samples], samples)
        assert set(scores.metrics.values()) == {0.0}

    def test_thousands_of_intervals(self):
        samples = [record(task, idx) for idx, task in enumerate(TASKS)]
        text = " ".join(f"{i / 10:.1f} - {i / 10 + 0.5:.1f}, cut." for i in range(5000))
        predictions = answers(samples, [text] * len(samples))
        assert fixed(predictions, samples).metrics["TAL"] < 1
        etbench(predictions, samples, scoring="original", sentence_model=WordEncoder(), caption_tools=False)

    def test_the_golden_inputs_are_scored(self):
        for name in ("grounding", "qa", "dvc", "overall"):
            golden = json.loads((GOLDEN / f"etbench_{name}.json").read_text(encoding="utf-8"))
            scores = fixed(golden["inputs"]["samples"], None)
            assert scores.num_samples == len(golden["inputs"]["samples"])
            assert all(0 < value < 100 for value in scores.metrics.values())


class TestFixes:
    """Each number by hand, and that of the original where a bug is fixed."""

    def original(self, texts, samples, scorer="d2vlm", **options):
        options = {"sentence_model": WordEncoder(), "caption_tools": False} | options
        return etbench(answers(samples, texts), samples, scoring="original", scorer=scorer, **options)

    @pytest.mark.parametrize(
        ("end_s", "expected"), [(10, 100), (7, 100), (6.9, 75), (5, 75), (3, 50), (1, 25), (0.9, 0)]
    )
    def test_an_iou_of_exactly_a_threshold_is_a_hit(self, end_s, expected):
        assert score(f"0 - {end_s}", record("tvg", tgt=[0, 10])) == expected

    def test_tvg_misses_at_an_iou_of_0_7_in_the_original_and_tal_does_not(self):
        tvg, tal = record("tvg", tgt=[0, 10]), record("tal", tgt=[[0, 10]])
        metrics = self.original(["</evi>0 - 7"] * 2, [tvg, tal]).metrics
        assert (metrics["TVG"], metrics["TAL"]) == (75, 100)

    @pytest.mark.parametrize("task", ["tvg", "epm", "tem", "gvq", "vhd"])
    def test_the_first_interval_counts(self, task):
        sample = record(task)
        right, letter = ("5 - 10", "(B) ") if task == "gvq" else ("5 - 10", "")
        assert score(f"{letter}{right}, 50 - 60", sample) == 100
        assert score(f"{letter}50 - 60, {right}", sample) == 0

    def test_the_original_takes_the_best_of_all_intervals(self):
        assert self.original(["</evi>50 - 60, 5 - 10"], [record("tvg")]).metrics == {"TVG": 100}
        assert self.original(["50 - 60, 5 - 10"], [record("tvg")], "etchat").metrics == {"TVG": 0}

    @pytest.mark.parametrize(
        "text",
        ["5 - 10", "x </evi>5 - 10", "50 - 60 </evi>from 5 to 10", "</evi>00:05–00:10", "</evi>between 5 and 10s"],
    )
    def test_what_follows_the_evidence_is_read(self, text):
        assert score(text, record("tvg")) == 100

    def test_without_a_delimiter_only_d2vlms_scorer_fails(self):
        assert self.original(["5 - 10"], [record("tvg")]).metrics == {"TVG": 0}
        assert self.original(["5 - 10"], [record("tvg")], "etchat").metrics == {"TVG": 100}

    def test_tal_counts_pairs_of_both_sides(self):
        sample = record("tal", tgt=[[0, 10], [20, 30]])
        assert score("0 - 10", sample) == pytest.approx(200 / 3)  # precision 1, recall 1/2
        assert score("0 - 10, 50 - 60", sample) == pytest.approx(50)

    def test_moments_do_not_undo_other_samples_of_tal(self):
        samples = [record("tal", 0), record("tal", 1, tgt=[[8, 8]])]
        texts = ["</evi>5 - 10, 12 - 20", "</evi>8 - 8"]
        assert fixed(answers(samples, texts), samples).metrics == {"TAL": 100}
        assert self.original(texts, samples).metrics == {"TAL": 0}
        crashed = self.original([text.removeprefix("</evi>") for text in texts], samples, "etchat")
        assert crashed.metrics == {}
        assert [tuple(p)[:2] for p in crashed.problems] == [("tal-a-1", "crash")]
        assert "ZeroDivisionError" in crashed.problems[0].detail

    def test_evs_counts_failures_the_end_of_long_videos_and_no_evidence(self):
        samples = [record("evs", 0, tgt=[[0, 10]]), record("evs", 1, tgt=[[1500, 1510]], duration=2000)]
        texts = ["50 - 60 </evi>0 - 10", "</evi>hm"]
        assert fixed(answers(samples, texts), samples).metrics["EVS"] == 50
        # 10 of 20 predicted seconds, and the second sample left out
        assert self.original(texts, samples).metrics["EVS"] == 66.7
        texts = ["</evi>0 - 10", "</evi>1500 - 1510"]
        assert fixed(answers(samples, texts), samples).metrics["EVS"] == 100
        assert self.original(texts, samples).metrics["EVS"] == 50

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0 - 10", 100),
            ("0 - 6, 4 - 10", 100),  # every second once
            ("0 - 10, 2 - 3, 6 - 9", 100),
            ("0 - 5", 200 / 3),
            ("0 - 20", 200 / 3),
            ("0 - 10, 15 - 15", 100),
            ("20 - 30", 0),
            ("0 - 1" + "0" * 300, 0),
        ],
    )
    def test_evs_by_hand(self, text, expected):
        assert score(text, record("evs", tgt=[[0, 10]])) == pytest.approx(expected)

    def test_events_below_half_a_second_count_in_evs(self):
        sample = record("evs", tgt=[[3.1, 3.3]])
        assert score("3.1 - 3.3", sample) == pytest.approx(100)
        assert self.original(["</evi>3.1 - 3.3"], [sample]).metrics == {"EVS": 0}
        assert score("4 - 4", record("evs", tgt=[[4, 4]])) == 100
        assert score("5 - 5", record("evs", tgt=[[4, 4]])) == 0

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("5 - 9", 100),
            ("2 - 13", 100),
            ("5 - 17", 0),
            ("at 7.5 seconds", 100),
            ("00:07", 100),
            ("The highlight is at 21", 100),
            ("11 - 13", 0),
            ("2 - 5", 0),
            ("-7", 0),
            ("3..5", 0),
        ],
    )
    def test_vhd_takes_the_middle_or_a_single_time(self, text, expected):
        assert score(text, record("vhd")) == expected

    def test_vhd_with_the_highlights_of_one_annotator(self):
        assert score("6", record("vhd", tgt=[[5.0, 10.0], [20.0, 22.0]])) == 100

    def test_a_lone_time_fails_in_d2vlms_scorer(self):
        assert self.original(["</evi>7.5 seconds"], [record("vhd")]).metrics == {"VHD": 0}
        assert self.original(["7.5 seconds"], [record("vhd")], "etchat").metrics == {"VHD": 100}

    @pytest.mark.parametrize(
        "text",
        ["(B)", "B.", "Best Option: (B", "The answer is B", "1 - 2 </evi>(B) cut the onion", "cut the onion", "Ｂ"],
    )
    def test_options_are_read_without_a_model(self, text):
        sample = record("rvq")
        assert etbench(answers([sample], [text]), [sample], sentence_model=False).metrics == {"RVQ": 100}

    @pytest.mark.parametrize("text", ["a dog", "A or B", "(E)", "hm", "(C) cut"])
    def test_what_is_no_option_is_wrong(self, text):
        assert score(text, record("rvq")) == 0

    def test_options_that_are_intervals(self):
        sample = record("rvq", o=[[0, 5], [5, 10.5], [11, 20], [20, 30]])
        assert score("5 - 10.5", sample) == 100
        # By words, only "- 10.5" of option B has something in common with the answer.
        assert self.original(["</evi>the 5 - 10.5 one"], [sample]).details["rvq"]["a"]["Failed"] == 1

    def test_a_dog_is_option_a_in_the_originals(self):
        sample = record("rvq", p=0)
        assert self.original(["</evi>a dog"], [sample]).metrics == {"RVQ": 100}
        assert score("a dog", sample) == 0

    @pytest.mark.parametrize(("scorer", "expected"), [("d2vlm", 0), ("etchat_strict_rvq", 0)])
    def test_a_wrong_letter_is_final_only_in_strict_scorers(self, scorer, expected):
        text = "(C) cut the onion"
        text = f"</evi>{text}" if scorer == "d2vlm" else text
        loose = {"d2vlm": "d2vlm_looser", "etchat_strict_rvq": "etchat"}[scorer]
        assert self.original([text], [record("rvq")], scorer).metrics == {"RVQ": expected}
        assert self.original([text], [record("rvq")], loose).metrics == {"RVQ": 100}

    def test_gvq_needs_option_and_interval(self):
        sample = record("gvq")
        assert score("(B) 5 - 10", sample) == 100
        assert score("(A) 5 - 10", sample) == 0
        assert score("(B) 15 - 20", sample) == 0
        scores = fixed(answers([sample], ["(B) 15 - 20"]), [sample])
        assert scores.details["gvq"]["a"]["Acc"] == 100

    def test_captions_belong_to_their_interval(self):
        sample = record("dvc", tgt=[[5, 10]], g=["whisk the eggs"])
        text = "Here is what is shown: 5.0 - 10.0, whisk the eggs."
        assert score(text, sample, "DVC Sim") == 100
        # The original pairs by position, and the words in front are the first caption.
        assert read_captions(text).captions == ["here is what is shown:"]

    def test_unmatched_captions_and_missing_videos_count_0(self):
        samples = [record("slc", idx, tgt=[[5, 10]], g=["whisk the eggs"]) for idx in range(2)]
        predictions = answers(samples[:1], ["5.0 - 10.0, whisk the eggs. 50.0 - 60.0, whisk the eggs."])
        metrics = fixed(predictions, samples).metrics
        assert metrics["SLC Sim"] == 25
        assert metrics["SLC F1"] == pytest.approx(100 * 2 * 0.25 * 0.5 / 0.75)

    def test_no_caption_is_like_none(self):
        class Alike(WordEncoder):
            def encode(self, texts):
                return np.ones((len(texts), 1), np.float32)

        sample = record("dvc")
        for text, expected in (("5.0 - 10.0, hm.", 100), ("5.0 - 10.0", 0)):
            assert etbench(answers([sample], [text]), [sample], sentence_model=Alike()).metrics["DVC Sim"] == expected

    def test_a_caption_is_compared_with_the_event_that_it_overlaps_most(self):
        sample = record("dvc", tgt=[[0, 10], [5, 14]], g=["whisk eggs", "pour oil"])
        assert score("0.0 - 10.0, whisk eggs.", sample, "DVC Sim") == 100
        assert score("0.0 - 10.0, pour oil.", sample, "DVC Sim") == 0
        half = "5.0 - 14.0, whisk oil."  # one word of two
        assert score(half, sample, "DVC Sim") == pytest.approx(50)

    def test_several_samples_of_a_video_all_count(self):
        samples = [record("dvc", idx, video="same.mp4") for idx in range(2)]
        texts = [perfect(samples[0]), "5.0 - 10.0, hm"]
        assert fixed(answers(samples, texts), samples).metrics["DVC F1"] == pytest.approx(100 * 2 * 1 * 0.75 / 1.75)
        # Only the last one is left, and the video counts as one of two.
        original = self.original([f"</evi>{text} and so on" for text in texts], samples)
        assert original.metrics["DVC F1"] == pytest.approx(100 * 2 * 0.5 * 0.25 / 0.75, abs=0.05)

    def test_spans_come_before_the_text(self):
        assert score("50 - 60", record("tvg"), spans=[[5, 10]]) == 100
        assert score("(B) 50 - 60", record("gvq"), spans=[[5, 10]]) == 100
        assert score("5 - 10", record("tvg"), spans=[]) == 0

    def test_captions_of_given_intervals(self):
        sample, spans = record("dvc"), [[5, 10], [12, 20]]
        for text in ("<evi> cut the onion. <evi> fry slowly.", "1 - 2, cut the onion. 3 - 4, fry slowly."):
            text = f"<evi> <evi> </evi>{text}"
            assert score(text, sample, "DVC Sim", spans=spans) == 100
            assert score(text, sample, "DVC F1", spans=spans) == 100
        text = "</evi><evi> hm. <evi> cut the onion. <evi> fry slowly."
        assert score(text, sample, "DVC Sim", spans=[[math.nan, 3], *spans]) == 100

    def test_sources_weigh_the_same(self):
        samples = [record("tvg", idx, "many") for idx in range(3)] + [record("tvg", 3, "one")]
        texts = ["hm", "hm", "hm", "5 - 10"]
        assert fixed(answers(samples, texts), samples).metrics == {"TVG": 50}


class TestTable:
    def test_columns_in_both_modes(self):
        samples = [record(task, idx) for idx, task in enumerate(TASKS)]
        predictions = answers(samples, [f"</evi>{perfect(sample)}" for sample in samples])
        headline = fixed(predictions, samples)
        assert list(headline.metrics) == [*MERGED, *COLUMNS]
        original = etbench(predictions, samples, scoring="original", sentence_model=WordEncoder(), caption_tools=False)
        without = {"Sim(cap)", "DVC Sim", "SLC Sim"}
        assert set(original.metrics) == set(headline.metrics) - without
        assert set(original.metrics.values()) == {100.0}
        assert list(original.details["met_evi"]) == "TVG EPM TAL EVS VHD DVC SLC TEM GVQ".split()
        assert set(original.details["missing"]) == {"DVC Sim", "SLC Sim", "DVC captions", "SLC captions"}

    def test_merged_numbers_need_all_their_parts(self):
        assert list(fixed([], [record("tem"), record("tal", 1)]).metrics) == ["TAL", "TEM"]
        assert list(fixed([], [record("tem"), record("gvq", 1)]).metrics) == ["Rec(com)", "TEM", "GVQ"]

    def test_without_the_model_only_similarities_are_left_out(self, monkeypatch):
        samples = [record(task, idx) for idx, task in enumerate(TASKS)]
        predictions = answers(samples, map(perfect, samples))
        whole = fixed(predictions, samples).metrics

        def raise_missing(model=None):
            raise SentenceModelMissing("install it")

        monkeypatch.setattr(etbench_module.SentenceEncoder, "__init__", lambda self, model=None: raise_missing())
        scores = etbench(predictions, samples)
        left_out = {"Sim(cap)", "DVC Sim", "SLC Sim"}
        assert scores.metrics == {name: value for name, value in whole.items() if name not in left_out}
        assert scores.details["missing"] == {"DVC Sim": "install it", "SLC Sim": "install it"}
        with pytest.raises(SentenceModelMissing):
            etbench(predictions, samples, sentence_model="no/model")

    def test_original_without_the_model_leaves_out_what_needs_it(self):
        samples = [record("rar", 0), record("eca", 1), record("tvg", 2)]
        predictions = answers(samples, ["</evi>(B)", "</evi>the onion", "</evi>5 - 10"])
        scores = etbench(predictions, samples, scoring="original", sentence_model=False)
        assert scores.metrics == {"RAR": 100, "TVG": 100}  # RAR has a letter
        assert set(scores.details) == {"rar", "tvg", "met_evi", "missing"}
        assert "MiniLM" in scores.details["missing"]["EVC"]

    def test_original_without_java_scores_detections(self, monkeypatch):
        def raise_missing():
            raise CaptionToolsMissing("install Java")

        monkeypatch.setattr(etbench_module, "Meteor", raise_missing)
        scores = etbench(
            answers([record("dvc")], ["</evi>5 - 10, cut the onion."]),
            [record("dvc")],
            scoring="original",
            sentence_model=WordEncoder(),
        )
        assert scores.metrics == {"DVC F1": 66.7}
        assert scores.details["missing"] == {"DVC Sim": "install Java", "DVC captions": "install Java"}

    def test_a_crash_takes_its_task_out_of_the_table(self):
        samples = [record("tvg", 0), record("tvg", 1, source="b"), record("epm", 2)]
        predictions = answers(samples, ["</evi>3..5 - 9", "</evi>5 - 10", "</evi>5 - 10"])
        scores = etbench(predictions, samples, scoring="original")
        assert scores.metrics == {"EPM": 100}
        assert list(scores.details["tvg"]) == ["b"]
        assert [tuple(p)[:2] for p in scores.problems] == [("tvg-a-0", "crash")]
        assert scores.problems[0].detail.startswith("ValueError")

    def test_a_crash_of_the_whole_source_is_reported_once(self):
        samples = [record("rvq", idx, o=["a1", "b1", "c1"][: 3 - idx] + ["d1"] * 2 * idx) for idx in range(2)]
        predictions = answers(samples, ["</evi>(B)", "</evi>(B)"])
        scores = etbench(predictions, samples, scoring="original", sentence_model=False)
        assert scores.problem_counts() == {"crash": 1}
        assert "NotImplementedError" in scores.problems[0].detail

    def test_an_answer_that_is_no_text_stops_the_originals(self):
        samples = [record("evs")]
        scores = etbench(answers(samples, [None]), samples, scoring="original")
        assert scores.metrics == {} and scores.problem_counts() == {"crash": 1}


class TestIds:
    def test_records_with_answers_are_predictions(self):
        samples = [record("tvg", 0), record("epm", 1)]
        released = [sample | {"a": "5 - 10"} for sample in samples]
        assert fixed(released, samples).metrics == {"TVG": 100, "EPM": 100}
        assert fixed(released, None).metrics == {"TVG": 100, "EPM": 100}
        assert etbench(released, None, scoring="original", scorer="etchat").metrics == {"TVG": 100, "EPM": 100}
        assert fixed(released[:1], samples).metrics == {"TVG": 100, "EPM": 0}

    def test_originals_see_only_what_is_there(self):
        samples = [record("tvg", 0), record("tvg", 1)]
        predictions = answers(samples[:1], ["5 - 10"])
        for seen, total in ((predictions, 1), (predictions * 2, 2)):
            scores = etbench(seen, samples, scoring="original", scorer="etchat")
            assert scores.metrics == {"TVG": 100}
            assert scores.details["tvg"]["a"]["Total"] == scores.num_samples == total

    def test_findings(self):
        samples = [record("tal", idx) for idx in range(8)]
        predictions = answers(
            samples[1:], ["", "hm", "3..5 - 9, 6 - 9", "10 - 5", "5 - 99, 6 - 99", "5 - 10", "5 - 10"]
        )
        predictions += [predictions[-1], {**predictions[-2], "text": "6 - 10"}]
        predictions += [{"id": "tal-a-99", "text": "5 - 10"}, {"text": "5 - 10"}]
        scores = fixed(predictions, samples)
        found = sorted((problem.id, problem.kind) for problem in scores.problems)
        assert found == [
            ("", "unknown id"),
            ("tal-a-0", "missing"),
            ("tal-a-1", "empty"),
            ("tal-a-2", "unparsable"),
            ("tal-a-3", "malformed number"),
            ("tal-a-4", "reversed"),
            ("tal-a-5", "out of duration"),
            ("tal-a-6", "conflict"),
            ("tal-a-7", "duplicate"),
            ("tal-a-99", "unknown id"),
        ]
        assert scores.details["tal"]["a"]["Failed"] == 4  # 0, 1, 2, 6

    def test_samples_that_cannot_be_told_apart(self):
        with pytest.raises(ValueError, match="tvg-a-0"):
            fixed([], [record("tvg"), record("tvg")])
        with pytest.raises(ValueError, match="tvg-a-0"):
            fixed([record("tvg") | {"a": "hm"}, record("tvg", tgt=[1, 2]) | {"a": "hm"}], None)
        twice = [record("tvg") | {"a": "5 - 10"}] * 2
        assert fixed(twice, None).metrics == {"TVG": 100}

    def test_predictions_without_references_must_be_records(self):
        with pytest.raises(ValueError, match="references"):
            fixed([{"id": "tvg-a-0", "text": "5 - 10"}], None)

    @pytest.mark.parametrize(
        "fields",
        [
            {"task": "xyz"},
            {"tgt": None},
            {"tgt": []},
            {"tgt": [[1, math.nan]]},
            {"tgt": [1, 2, 3]},
            {"task": "dvc", "g": ["one"]},
            {"task": "rvq", "o": ["a", "b"], "p": 2},
            {"task": "rvq"},
        ],
    )
    def test_records_that_cannot_be_scored_are_refused(self, fields):
        with pytest.raises(ValueError, match="-a-0"):
            fixed([], [record("tal") | fields])

    def test_unknown_modes(self):
        with pytest.raises(ValueError, match="scoring"):
            etbench([], [], scoring="best")
        with pytest.raises(ValueError, match="scorer"):
            etbench([], [], scorer="best")

    def test_nothing_to_score(self):
        for scoring in ("fixed", "original"):
            assert etbench([], [], scoring=scoring).metrics == {}


class TestOriginalCaptions:
    def test_two_values_where_three_are_expected(self):
        sample = record("dvc")
        scores = etbench(
            answers([sample], ["</evi>start time 5, end time 10"]), [sample], scoring="original", caption_tools=False
        )
        assert scores.problem_counts() == {"crash": 1}
        assert read_captions("start time 5, end time 10") is None

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("At 90 seconds, he sits", ([[70.0, 110.0]], ["he sits."])),
            ("At 12.5 seconds he sits", ([[5.0, 45.0]], ["he sits."])),  # the point ends a sentence
            ("At 1:30 he sits", ([[70.0, 110.0]], ["At 1:30 he sits."])),
            ("From 1:30 and 2:00 he sits", ([[90.0, 120.0]], ["From 1:30 and 2:00 he sits."])),
            ("start time: 5 end time: 9 description: he sits", ([[5.0, 9.0]], ["he sits"])),
            ("He sits for 1 and 2 and 3 s", None),
            ("It is 1:2:3:4 o'clock", None),
        ],
    )
    def test_sentences_without_intervals(self, text, expected):
        found = read_captions(text)
        assert (found and (found.intervals, found.captions)) == expected

    def test_evidence_is_kept_as_written(self):
        found = read_captions_of_answer("9 - 4 </evi>9 - 4, he sits down")
        assert (found.intervals, found.evidence) == ([[4.0, 9.0]], [[9.0, 4.0]])
