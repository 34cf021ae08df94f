# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Caption scores, their tools, and the reader of dense answers."""

import math
import random
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.evaluation.metrics import captioning
from trl_temporal.evaluation.metrics.captioning import (
    CaptionToolsMissing,
    Meteor,
    approximate_tokenize,
    bleu,
    cider,
    ptb_tokenize,
    ptb_tokenize_file,
    rouge_l,
)
from trl_temporal.evaluation.metrics.dense_text import read_events

WORDS = ["pour", "the", "oil", "into", "a", "pan", "stir"]


@pytest.fixture(scope="module")
def meteor():
    try:
        process = Meteor()
    except CaptionToolsMissing as error:
        pytest.skip(str(error))
    with process:
        yield process


@pytest.fixture
def java():
    """Skips where a tool is missing; gives the test a tokenizer that remembers nothing."""
    try:
        captioning._jar(captioning._TOKENIZER_JAR)
    except CaptionToolsMissing as error:
        pytest.skip(str(error))
    captioning._tokens_of.clear()


def cider_by_hand(candidates, references, corpus=None):
    """The definition, n-gram by n-gram."""

    def counts(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    corpus = references if corpus is None else corpus
    scores = []
    for candidate, of_item in zip(candidates, references, strict=True):
        total = 0.0
        for reference in of_item:
            delta = counts(candidate, 2).total() - counts(reference, 2).total()
            for n in range(1, 5):
                vectors = []
                for text in (candidate, reference):
                    vectors.append({})
                    for gram, count in counts(text, n).items():
                        frequency = sum(any(gram in counts(other, n) for other in document) for document in corpus)
                        vectors[-1][gram] = count * (math.log(len(corpus)) - math.log(max(1, frequency)))
                norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]
                dot = sum(
                    min(vectors[0][gram], value) * value for gram, value in vectors[1].items() if gram in vectors[0]
                )
                cosine = dot / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
                total += cosine * math.exp(-(delta**2) / 72) / 4
        scores.append(10 * total / len(of_item))
    return scores


sentences = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
items = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=1, max_size=5)


class TestCider:
    @given(items=items, corpus=st.none() | st.lists(st.lists(sentences, max_size=2), min_size=1, max_size=4))
    @settings(deadline=None)
    def test_is_the_definition(self, items, corpus):
        candidates, references = map(list, zip(*items, strict=True))
        mean, single = cider(candidates, references, corpus)
        assert single == pytest.approx(cider_by_hand(candidates, references, corpus), abs=1e-9)
        assert mean == pytest.approx(single.mean())

    def test_equals_the_package(self):
        scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
        rng = random.Random(0)
        for size in (2, 3, 40):
            candidates = [" ".join(rng.choices(WORDS, k=rng.randrange(30))) for _ in range(size)]
            references = [[" ".join(rng.choices(WORDS, k=5)) for _ in range(rng.randint(1, 3))] for _ in candidates]
            theirs = scorer.compute_score(dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)})
            ours = cider(candidates, references)
            assert ours[0] == pytest.approx(theirs[0], abs=1e-12)
            np.testing.assert_allclose(ours[1], theirs[1], atol=1e-12)

    def test_of_one_item_is_0_and_with_a_corpus_not(self):
        text = "pour the oil slowly"
        assert cider([text], [[text]])[0] == 0
        assert cider([text], [[text]], corpus=[[text], ["stir"]])[0] == pytest.approx(10)

    def test_a_corpus_makes_items_independent(self):
        corpus = [["pour the oil"], ["stir the pan"], ["a pan"]]
        alone = cider(["pour oil"], [["pour the oil"]], corpus)[1]
        together = cider(["pour oil", "the the pan"], [["pour the oil"], ["stir the pan"]], corpus)[1]
        assert together[0] == alone[0]

    def test_no_items(self):
        mean, single = cider([], [])
        assert mean == 0 and single.shape == (0,)

    def test_texts_without_a_word(self):
        assert cider([""], [[""]])[0] == 0
        assert cider(["", "a b"], [["a b"], [""]])[1].tolist() == [0, 0]

    @pytest.mark.parametrize("references", [[], [[]], ["not a list"]])
    def test_bad_references(self, references):
        with pytest.raises(ValueError, match="reference"):
            cider(["a"], references)


class TestTokenizer:
    texts = [
        "Stir (well), don't stop!",
        "",
        "½ cup of crème 炒",
        "two\nlines\r\nhere",
        "cut to x.",
        "The end",
        "no.",
        "5",
    ]

    def test_equals_the_package(self, java):
        package = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
        texts = [text.replace("\r", "") for text in self.texts] * 3
        theirs = package.tokenize({index: [{"caption": text}] for index, text in enumerate(texts)})
        assert ptb_tokenize_file(texts) == [theirs[index][0] for index in range(len(texts))]

    def test_line_breaks_do_not_shift_texts(self, java):
        for line_break in "\n\r\x0b\x0c\x85\u2028\u2029\x1c":
            assert ptb_tokenize([f"a pan{line_break}b", "the oil"])[1] == "the oil"

    def test_texts_do_not_depend_on_each_other(self, java):
        assert ptb_tokenize_file(["cut to x.", "The end"])[0] == "cut to x"
        together = ptb_tokenize(self.texts)
        captioning._tokens_of.clear()
        assert ptb_tokenize(self.texts[::-1]) == together[::-1]
        assert together[4] == "cut to x."

    def test_no_text_is_tokenised_twice(self, java, monkeypatch):
        calls = []
        run = subprocess.run
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: calls.append(1) or run(*args, **kwargs))
        first = ptb_tokenize(["A pan.", "Oil!", "A pan."])
        assert first == ["a pan", "oil", "a pan"] and len(calls) == 1
        assert ptb_tokenize(["Oil!", "A pan."]) == ["oil", "a pan"] and len(calls) == 1
        assert ptb_tokenize([]) == [] and len(calls) == 1

    def test_lone_surrogates(self, java):
        assert ptb_tokenize(["a \ud800 pan", "oil"])[1] == "oil"

    def test_failure_of_java_is_told(self, java, monkeypatch):
        failed = subprocess.CompletedProcess([], 3, b"", b"no memory")
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
        with pytest.raises(RuntimeError, match="exit code 3.*no memory"):
            ptb_tokenize(["a pan"])

    def test_time_limit(self, java, monkeypatch):
        monkeypatch.setattr(captioning, "_TIMEOUT_S", 0.001)
        with pytest.raises(RuntimeError, match="did not finish"):
            ptb_tokenize(["a pan"])

    def test_approximation_is_near(self, java):
        texts = [
            "pour 1/2 cup of half-cooked rice (diced) into the pan.",
            "don't add 400gm of it's 1,200 o'clock onions!",
            "heat at 350 °F; stir, wait: serve - done...",
            'add "fresh" parsley & [b] {c} $5 50% crème',
        ]
        same = [a == b for a, b in zip(approximate_tokenize(texts), ptb_tokenize(texts), strict=True)]
        assert same == [True, True, True, True]


class TestMissingTools:
    def test_java(self, monkeypatch):
        pytest.importorskip("pycocoevalcap")
        monkeypatch.setattr(shutil, "which", lambda name: None)
        monkeypatch.setattr(captioning, "_tokens_of", {})
        for use in (lambda: ptb_tokenize(["a"]), Meteor):
            with pytest.raises(CaptionToolsMissing, match="default-jre-headless"):
                use()

    def test_package(self, monkeypatch):
        monkeypatch.setattr(captioning.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(captioning, "_tokens_of", {})
        for use in (
            lambda: ptb_tokenize(["a"]),
            Meteor,
            lambda: bleu(["a"], [["a"]]),
            lambda: rouge_l(["a"], [["a"]]),
        ):
            with pytest.raises(CaptionToolsMissing, match=r"trl_temporal\[caption\]"):
                use()

    def test_cider_and_the_approximation_need_nothing(self, monkeypatch):
        monkeypatch.setattr(captioning.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert cider(approximate_tokenize(["Pour oil.", "x"]), [["pour oil"], ["y"]])[0] > 0


class TestBleuAndRouge:
    def test_equal_captions(self):
        pytest.importorskip("pycocoevalcap")
        texts = ["pour the oil into a pan", "stir the pan well now"]
        assert bleu(texts, [[text] for text in texts]) == pytest.approx(np.ones(4), abs=1e-6)
        assert rouge_l(texts, [[text] for text in texts]) == pytest.approx(1)

    def test_nothing_in_common_and_no_items(self):
        pytest.importorskip("pycocoevalcap")
        assert bleu(["a b c d"], [["e f g h"]]) == pytest.approx(np.zeros(4), abs=1e-3)
        assert rouge_l(["a b"], [["c d"]]) == 0
        assert bleu([], []).tolist() == [0] * 4
        assert rouge_l([], []) == 0


class TestMeteor:
    def test_scores_come_in_order(self, meteor):
        texts = [f"pour {'the oil ' * n}" for n in range(1, 14)]
        score, single = meteor.score([*texts, "junk"], [[text] for text in [*texts, "pan"]])
        assert single.tolist() == [1.0] * 13 + [0.0]
        assert 0.9 < score < 1

    def test_equals_the_package(self, meteor):
        package = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor()
        rng = random.Random(1)
        candidates = [" ".join(rng.choices(WORDS, k=rng.randrange(9))) for _ in range(200)]
        references = [[" ".join(rng.choices(WORDS, k=6)) for _ in range(rng.randint(1, 2))] for _ in candidates]
        theirs = package.compute_score(dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)})
        score, single = meteor.score(candidates, references)
        assert score == theirs[0]
        assert single.tolist() == theirs[1]

    def test_separators_and_line_breaks(self, meteor):
        plain = meteor.score(["pour the oil", "stir"], [["pour oil"], ["stir"]])[1].tolist()
        nasty = meteor.score(["pour ||| the\noil", "stir"], [["pour\r\noil"], ["stir"]])[1].tolist()
        assert nasty == plain
        # In a reference it separates two, as in the original.
        assert meteor.score(["stir"], [["pour oil ||| stir"]])[0] == 1

    @given(texts=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=20))
    @settings(deadline=None, max_examples=30)
    def test_any_text(self, meteor, texts):
        score, single = meteor.score([a for a, _ in texts], [[b] for _, b in texts])
        assert single.shape == (len(texts),)
        assert ((single >= 0) & (single <= 1)).all()
        assert meteor.score(["stir well"], [["stir well"]])[0] == 1  # still in step

    def test_no_items_and_bad_references(self, meteor):
        assert meteor.score([], [])[0] == 0
        with pytest.raises(ValueError, match="reference"):
            meteor.score(["a"], [[]])

    def test_a_crash_is_told(self, meteor):
        with Meteor() as other:
            other._process.kill()
            with pytest.raises(RuntimeError, match="METEOR stopped with exit code"):
                other.score(["a"], [["b"]])
        with pytest.raises(RuntimeError, match="METEOR was closed"):
            other.score(["a"], [["b"]])

    def test_a_hang_is_told(self, meteor):
        with Meteor(timeout_s=0.01) as other:
            with pytest.raises(RuntimeError, match="did not answer within 0.01 s"):
                other.score(["a"], [["b"]])

    def test_the_process_ends_with_the_block(self, meteor):
        with pytest.raises(KeyError):
            with Meteor() as other:
                raise KeyError
        assert other._process.poll() is not None


class TestReadEvents:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("12.0 - 20.5, pour the oil. 21 - 30, stir.", [(12, 20.5, "pour the oil."), (21, 30, "stir.")]),
            ("12 - 20 seconds, Pour.\n21 - 30 seconds, Stir.", [(12, 20, "Pour."), (21, 30, "Stir.")]),
            ("From 12s to 20s, pour. From 21s to 30s, stir.", [(12, 20, "pour."), (21, 30, "stir.")]),
            ("[12, 20.5] pour\n[21, 30] stir", [(12, 20.5, "pour"), (21, 30, "stir")]),
            ("1. 12 - 20: pour\n2. 21 - 30: stir", [(12, 20, "pour"), (21, 30, "stir")]),
            ("- 12-20: pour\n- 21-30: stir", [(12, 20, "pour"), (21, 30, "stir")]),
            ("00:12 - 01:20 - pour oil\n01:21 - 01:30 - stir", [(12, 80, "pour oil"), (81, 90, "stir")]),
            ("Between 12 and 20 seconds, mix. Between 21 and 30, go.", [(12, 20, "mix."), (21, 30, "go.")]),
            ("12.0 - 20.5 pour 21.0 - 30.0 stir", [(12, 20.5, "pour"), (21, 30, "stir")]),
            ("12 - 20, pour, 21 - 30, stir", [(12, 20, "pour"), (21, 30, "stir")]),
            ("Step 1 (12 - 20): pour. Step 2 (21 - 30): stir", [(12, 20, "pour."), (21, 30, "stir")]),
            ("start time: 12, end time: 20, description: pour.", [(12, 20, "pour.")]),
            # Numbers of the recipe are no events.
            (
                "12 - 20, boil for 5-10 minutes. 21 - 30, add 2 to 3 eggs.",
                [(12, 20, "boil for 5-10 minutes."), (21, 30, "add 2 to 3 eggs.")],
            ),
            # The caption may stand in front.
            ("Pour the oil (12 - 20). Stir (21-30).", [(12, 20, "Pour the oil"), (21, 30, "Stir")]),
            ("The oil is poured from 12 to 20.", [(12, 20, "The oil is poured")]),
            # Only the part behind the evidence counts.
            ("1 - 2 </evi> 3 - 4 , mix.", [(3, 4, "mix.")]),
            ("９ - １２、½ cup “milk”。 21 – 30: Crème", [(9, 12, "½ cup “milk”。"), (21, 30, "Crème")]),
            ("12 - 20", [(12, 20, "")]),
            ("12 - 20 21 - 30 stir", [(12, 20, ""), (21, 30, "stir")]),
            ("30 - 21, stir", [(21, 30, "stir")]),
            ("3..5 - 9, x. 1 - 2, y", [(1, 2, "y")]),
            ("", []),
            ("no times here", []),
        ],
    )
    def test_forms(self, text, expected):
        assert read_events(text).events == expected

    def test_problems(self):
        assert [kind for kind, _ in read_events("3..5 - 9, x. 30 - 21, y").problems] == [
            "malformed number",
            "reversed",
        ]

    @given(
        text=st.text()
        | st.lists(st.sampled_from([*"0123456789.:,-–()[] \n½", "to ", "s ", "</evi>", "word "])).map("".join)
    )
    @settings(deadline=None)
    def test_any_text(self, text):
        for start_s, end_s, caption in read_events(text).events:
            assert 0 <= start_s <= end_s < math.inf
            assert isinstance(caption, str)

    @given(
        events=st.lists(
            st.tuples(st.integers(0, 999), st.integers(1, 99), st.sampled_from(["pour the oil", "stir"])), max_size=20
        )
    )
    def test_written_events_are_read_back(self, events):
        events = [(float(start_s), float(start_s + length_s), caption) for start_s, length_s, caption in events]
        for form in ("{} - {} seconds, {}. ", "{} - {}: {}\n", "From {} to {}, {}.\n"):
            text = "".join(form.format(*event) for event in events)
            assert [(a, b, c.rstrip(".")) for a, b, c in read_events(text).events] == events

    def test_long_answers_are_quick(self):
        text = "".join(f"{start} - {start + 5} seconds, stir the pan. " for start in range(5000))
        assert len(read_events(text).events) == 5000
        read_events("12 - 20" + " " * 100_000 + "x 30 - 40" + "(" * 100_000)
