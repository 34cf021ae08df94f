# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.evaluation.metrics.choices import answer_index, read_choice
from trl_temporal.evaluation.metrics.mvbench import check_ans, mcq_acc, mvbench
from trl_temporal.evaluation.metrics.tempcompass import from_records, original_rating, tempcompass
from trl_temporal.evaluation.metrics.videomme import extract_characters_regex, extract_mcq_answer, videomme
from trl_temporal.evaluation.metrics.videoqa import parse_multi_choice_response, videoqa
from trl_temporal.evaluation.metrics.vinoground import QUESTIONS, vinoground

OPTIONS = ["a red car", "a dog", "a dark red car", "Vitamin A"]
MULTI_CHOICE = "Where does it go?\nA. up\nB. down\nC. left\nD. nowhere"
CAPTIONS = "Which is better?\nOption 1: The dog sits.\nOption 2: The dog runs."


class TestReadChoice:
    @pytest.mark.parametrize(
        "text",
        [
            *("C", "(C)", "C.", "C)", "(C", "C: blue", "C) blue", "**C**", '"C"', "`C`", "[C]", "c", "c.", "c) it is"),
            *("Best Option: (C", "The answer is (C).", "Answer:\nC", "the correct option is c", "I choose (C)"),
            *(
                "Option C",
                "option C is correct, not A",
                "C, not (A)",
                "It isn't A, so C",
                "A is wrong, so C",
                r"So $\boxed{C}$",
                r"\boxed{\text{C}}",
                "<answer>C</answer>",
            ),
            *(
                "C</evi>",
                "1.0 - 2.0 </evi>C",
                "A </evi> C",
                "<evi> <evi> </evi> C <evi>.",
                "C\nbecause of A",
                "C </s>",
            ),
            *("A. up B. down C. left D. nowhere. Answer: C", "I think it is C because A dog runs", "答案是 C"),
            *("Ｃ", "（Ｃ）", "C, because it is round", "It is not clear, but I would say (C)", "The U.S. team, so C"),
        ],
    )
    def test_forms_of_an_option(self, text):
        assert read_choice(text, 4) == 2

    @pytest.mark.parametrize(
        "text",
        [
            *("", "  ", ".", None, "</evi>", "none of these", "a dog runs", "A dog runs", "A cat sits here", "I see"),
            *("E", "(E) x", "The answer is E.", "Z", "A or B", "A, B", "A/B", "(A) (B)", "The answer is A or B."),
            *("The answer is (C). The best answer is D", "A. up B. down C. left D. nowhere", "(D) not sure. B"),
            *(
                "The answer is not A.",
                "Option A is not it",
                "e.g. this",
                "x-ray",
                "A-list",
                "B.com",
                "Because",
                "it's",
                "the answer is a dog",
            ),
        ],
    )
    def test_what_is_no_option(self, text):
        assert read_choice(text, 4) is None

    @pytest.mark.parametrize(
        ("text", "index"),
        [
            ("A dog", 1),  # an article, not the letter
            ("It is a dog.", 1),
            ("a dark red car", 2),  # not also "a red car"
            ("A RED CAR!", 0),
            ("Vitamin A.", 3),
            ("(D) Vitamin A", 3),
            ("(B) a red car", 1),  # the letter counts
            ("a red car or a dog", None),
            ("a red car, no, a dark red car", None),
            ("a car", None),
        ],
    )
    def test_texts_of_options(self, text, index):
        assert read_choice(text, 4, OPTIONS) == index
        assert read_choice(text, 4, [f"{letter}. {o}" for letter, o in zip("ABCD", OPTIONS, strict=True)]) == index

    def test_an_option_inside_another(self):
        options = ["red car", "dark red car"]
        assert read_choice("There is a dark red car.", 2, options) == 1
        assert read_choice("There is a red car.", 2, options) == 0
        assert read_choice("There is a dark red car and a red car.", 2, options) is None

    def test_two_options_of_one_text_are_not_told_apart(self):
        assert read_choice("yes", 3, ["yes", "yes", "no"]) is None
        assert read_choice("no", 3, ["yes", "yes", "no"]) == 2

    def test_letters_as_options(self):
        assert read_choice("B", 2, ["B", "A"]) == 1

    @given(text=st.text(max_size=60), num_options=st.integers(1, 26))
    def test_any_text(self, text, num_options):
        assert read_choice(text, num_options) in (None, *range(num_options))

    @given(
        letters=st.lists(st.sampled_from(["A", "(B)", "C.", "or", "the answer is", "</evi>", ",", "dog"]), max_size=8)
    )
    def test_lists_of_letters(self, letters):
        assert read_choice(" ".join(letters), 3, OPTIONS[:3]) in (None, 0, 1, 2)


class TestAnswerIndex:
    @pytest.mark.parametrize(
        ("answer", "options", "index"),
        [("B", None, 1), ("(b) x", None, 1), ("B. x", None, 1), ("A dog", ["x", "A dog"], 1), ("x", ["A", "x"], 1)],
    )
    def test_forms(self, answer, options, index):
        assert answer_index(answer, options) == index

    @pytest.mark.parametrize(("answer", "options"), [("dog", None), ("A dog", ["x", "y"]), ("C", ["x", "y"])])
    def test_bad_references(self, answer, options):
        with pytest.raises(ValueError, match="the answer"):
            answer_index(answer, options)


def mvbench_samples():
    tasks = ["action_count", "action_count", "state_change", "scene_transition", "scene_transition"]
    letters = "ABCDA"
    return [
        {"id": str(n), "task": task, "answer": f"({letter}) {OPTIONS['ABCD'.index(letter)]}", "options": OPTIONS}
        for n, (task, letter) in enumerate(zip(tasks, letters, strict=True))
    ]


def videomme_samples():
    durations = ["short", "short", "medium", "long", "long"]
    return [
        {"id": f"{n}", "duration": duration, "answer": letter, "domain": "Knowledge"}
        for n, (duration, letter) in enumerate(zip(durations, "ABCDA", strict=True))
    ]


def tempcompass_samples():
    return [
        {"id": "0", "task": "multi-choice", "dim": "direction", "question": MULTI_CHOICE, "answer": "A. up"},
        {"id": "1", "task": "multi-choice", "dim": "speed", "question": MULTI_CHOICE, "answer": "C. left"},
        {"id": "2", "task": "yes_no", "dim": "order", "question": "Is it?", "answer": "yes"},
        {"id": "3", "task": "yes_no", "dim": "action", "question": "Is it?", "answer": "no"},
        {
            "id": "4",
            "task": "caption_matching",
            "dim": "order",
            "question": CAPTIONS,
            "answer": CAPTIONS.split("\n")[2],
        },
    ]


def vinoground_samples():
    return [
        {"id": f"{pair}_{question}", "answer": "AB"[pair % 2], "major": "object", "minor": "spatial;cyclical"}
        for pair in range(3)
        for question in QUESTIONS
    ]


def videoqa_samples():
    return [
        {"id": "0", "options": OPTIONS, "answer": "a dog"},
        {"id": "1", "options": OPTIONS, "answer": "D"},
        {"id": "2", "question": "What?", "answer": "a red car"},
        {"id": "3", "question": "Who?", "answer": ["the man", "man in black"]},
    ]


METRICS = {
    "mvbench": (mvbench, mvbench_samples()),
    "videomme": (videomme, videomme_samples()),
    "tempcompass": (tempcompass, tempcompass_samples()),
    "vinoground": (vinoground, vinoground_samples()),
    "videoqa": (videoqa, videoqa_samples()),
}
TEXTS = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.sampled_from(["A", "(B)", "C.", "d", "yes", "No.", "a dog", "the man", "Option 2", "A or B", "</evi>", "３"]),
)


def right_answers(samples):
    return [
        {"id": sample["id"], "text": sample["answer"] if isinstance(sample["answer"], str) else sample["answer"][0]}
        for sample in samples
    ]


@pytest.fixture(params=METRICS)
def metric(request):
    return METRICS[request.param]


class TestEveryMetric:
    def test_right_answers_are_100(self, metric):
        score, samples = metric
        scores = score(right_answers(samples), samples)
        assert set(scores.metrics.values()) == {100.0}
        assert scores.problems == []

    @pytest.mark.parametrize("text", ["", None, "no idea", "</evi>"])
    def test_no_answers_are_0(self, metric, text):
        score, samples = metric
        scores = score([{"id": sample["id"], "text": text} for sample in samples], samples)
        values = {name: value for name, value in scores.metrics.items() if not name.endswith("match_rate")}
        # "no idea" is an answer to a yes-no question.
        assert (
            max(value for name, value in values.items() if text != "no idea" or "yes_no" not in name and name != "Avg")
            == 0
        )
        assert set(scores.problem_counts()) <= {"empty", "unparsable"}

    def test_missing_answers_count_as_wrong(self, metric):
        score, samples = metric
        everything, nothing = score(right_answers(samples), samples), score([], samples)
        assert set(nothing.metrics.values()) == {0.0}
        assert nothing.num_samples == everything.num_samples
        assert nothing.problem_counts() == {"missing": len(samples)}

    def test_unknown_and_twice_the_same_change_nothing(self, metric):
        score, samples = metric
        answers = right_answers(samples)
        scores = score([*answers, answers[0], {"id": "nobody", "text": "A"}], samples)
        assert scores.metrics == score(answers, samples).metrics
        assert scores.problem_counts() == {"duplicate": 1, "unknown id": 1}

    def test_without_samples(self, metric):
        score, _ = metric
        scores = score([], [])
        assert scores.num_samples == 0 and set(scores.metrics.values()) <= {0.0}

    def test_unknown_scoring(self, metric):
        score, samples = metric
        with pytest.raises(ValueError, match="scoring"):
            score([], samples, scoring="best")

    @pytest.mark.parametrize("name", METRICS)
    @given(texts=st.lists(TEXTS, min_size=12, max_size=12), seed=st.integers(0, 99), data=st.data())
    def test_any_answers(self, name, texts, seed, data):
        score, samples = METRICS[name]
        answers = [{"id": sample["id"], "text": text} for sample, text in zip(samples, texts, strict=False)]
        scores = score(answers, samples)
        assert all(0 <= value <= 100 for value in scores.metrics.values())
        rng = random.Random(seed)
        shuffled = score(rng.sample(answers, len(answers)), rng.sample(samples, len(samples)))
        assert shuffled.metrics == scores.metrics and shuffled.details == scores.details
        # A second answer to a question never helps, whether it differs or not.
        other = {"id": data.draw(st.sampled_from(samples))["id"], "text": data.draw(TEXTS)}
        more = score([*answers, other], samples)
        assert all(more.metrics[name] <= value for name, value in scores.metrics.items())

    @pytest.mark.parametrize("name", METRICS)
    @pytest.mark.parametrize("scorer", ["d2vlm", "lmms_eval"])
    @given(texts=st.lists(TEXTS, min_size=12, max_size=12))
    def test_originals_go_on_where_they_would_stop(self, name, scorer, texts):
        score, samples = METRICS[name]
        answers = [{"id": sample["id"], "text": text} for sample, text in zip(samples, texts, strict=False)]
        options = {"scorer": scorer} if name in ("mvbench", "videomme") else {}
        options |= {"judge": lambda question, truth, answer: truth == answer} if name == "videoqa" else {}
        scores = score(answers, samples, scoring="original", **options)
        assert all(0 <= value <= 100 for value in scores.metrics.values())
        empty = [sample["id"] for sample, text in zip(samples, texts, strict=False) if text is None]
        crashed = {problem.id for problem in scores.problems if problem.kind == "crash"}
        if name in ("mvbench", "vinoground"):
            assert crashed >= set(empty)


class TestMVBench:
    def test_headline_is_the_mean_over_tasks(self):
        answers = right_answers(mvbench_samples())
        answers[2]["text"] = "(A)"
        metrics = mvbench(answers, mvbench_samples()).metrics
        assert list(metrics) == ["Avg", "Total", "action_count", "scene_transition", "state_change"]
        assert metrics["Avg"] == pytest.approx(200 / 3)
        assert metrics["Total"] == pytest.approx(80)

    def test_an_empty_answer_is_right_for_d2vlm_and_left_out_by_lmms_eval(self):
        answers = [{"id": sample["id"], "text": ""} for sample in mvbench_samples()]
        assert mvbench(answers, mvbench_samples(), scoring="original").metrics["Total"] == 100
        lmms = mvbench(answers, mvbench_samples(), scoring="original", scorer="lmms_eval")
        assert lmms.num_samples == 0 and lmms.metrics["Total"] == 0

    def test_d2vlm_rounds_to_two_decimals(self):
        samples = [{"id": str(n), "task": "t", "answer": "(A) x"} for n in range(3)]
        answers = [{"id": "0", "text": "A"}, {"id": "1", "text": "B"}, {"id": "2", "text": "B"}]
        assert mvbench(answers, samples, scoring="original").metrics["t"] == 33.33
        assert mvbench(answers, samples).metrics["t"] == pytest.approx(100 / 3, abs=1e-12)

    def test_d2vlm_counts_only_what_is_there(self):
        scores = mvbench(right_answers(mvbench_samples())[:1] * 2, mvbench_samples(), scoring="original")
        assert scores.num_samples == 2 and scores.metrics["Total"] == 100
        assert scores.problem_counts() == {"missing": 4, "duplicate": 1}

    @pytest.mark.parametrize(("answer", "crashes"), [("B", True), ("(B)", True), ("(B) x", False), ("B. x", True)])
    def test_d2vlm_wants_the_text_of_the_answer(self, answer, crashes):
        scores = mvbench([{"id": "0", "text": "B"}], [{"id": "0", "task": "t", "answer": answer}], scoring="original")
        assert scores.metrics["t"] == 100
        assert ("crash" in scores.problem_counts()) == crashes

    @pytest.mark.parametrize(
        ("text", "d2vlm", "lmms"),
        [
            ("B", 1, 1),
            (")", 1, 0),
            ("b.", 1, 1),
            ("(B)x", 1, 1),
            ("It is B", 0, 1),
            ("It is a B", 0, 0),
            ("B or A", 1, 1),
        ],
    )
    def test_original_rules(self, text, d2vlm, lmms):
        assert check_ans(text, "(B) down") == d2vlm
        assert mcq_acc("B", text) == lmms

    def test_lmms_eval_removes_32_full_stops(self):
        assert not mcq_acc("B", ". " * 31 + "b.c")
        assert mcq_acc("B", ". " * 32 + "b.c")

    def test_unknown_scorer(self):
        with pytest.raises(ValueError, match="scorer"):
            mvbench([], [], scorer="etchat")


class TestVideoMME:
    def test_durations_and_groups(self):
        answers = right_answers(videomme_samples())
        answers[0]["text"] = "no idea"
        scores = videomme(answers, videomme_samples())
        assert scores.metrics == {"Overall": 80.0, "short": 50.0, "medium": 100.0, "long": 100.0}
        assert scores.details == {"domain": {"Knowledge": 80.0}}

    def test_unread_answers_leave_the_original_denominator(self):
        answers = right_answers(videomme_samples())
        answers[0]["text"] = "no idea"
        scores = videomme(answers, videomme_samples(), scoring="original")
        assert scores.metrics["short"] == 100 and scores.num_samples == 4
        lmms = videomme(answers, videomme_samples(), scoring="original", scorer="lmms_eval")
        assert lmms.metrics["short"] == 50 and lmms.num_samples == 5

    def test_the_original_wants_300_videos_of_every_duration(self):
        samples = [{**sample, "video_id": sample["id"]} for sample in videomme_samples()]
        scores = videomme(right_answers(samples), samples, scoring="original")
        assert [problem.id for problem in scores.problems if problem.kind == "crash"] == ["short", "medium", "long"]

    @pytest.mark.parametrize(
        ("text", "own", "lmms"),
        [
            ("Because", "B", "B"),  # a letter inside a word
            ("1.0 - 2.0 </evi>B", "", "B"),  # cut at the first full stop
            ("The best option isThe correct option is B", "B", "B"),
            ("The best option is D", "D", "D"),
            ("A or B", "A", "A"),
            ("The answer is (C). The best answer is D", "C", "D"),
            ("c", "", ""),
        ],
    )
    def test_original_readers(self, text, own, lmms):
        assert extract_characters_regex(text) == own
        assert extract_mcq_answer(text) == lmms

    def test_unknown_duration(self):
        with pytest.raises(ValueError, match="duration"):
            videomme([], [{"id": "0", "duration": "tiny", "answer": "A"}])


class TestTempCompass:
    @pytest.mark.parametrize(
        ("index", "text", "is_right", "original"),
        [
            (0, "(A)", True, False),
            (0, "The answer is A.", True, False),
            (0, "up", True, False),
            (0, "B", False, False),
            (2, "I think yes", True, False),
            (2, "Yesterday", False, True),
            (2, "yes or no", True, True),
            (3, "nothing", False, True),
            (3, "It is no dog, yes", False, False),
            (4, "Option 2.", True, True),
            (4, "2", True, True),
            (4, "The dog runs", True, False),
            (4, "Option 2 fits better", True, False),
            (4, "Option 1 or option 2", False, False),
        ],
    )
    def test_answers(self, index, text, is_right, original):
        sample = tempcompass_samples()[index]
        scores = tempcompass([{"id": sample["id"], "text": text}], [sample])
        assert scores.metrics["Avg"] == 100 * is_right
        assert original_rating(sample, text).is_right == original

    def test_keys_and_match_rate(self):
        answers = right_answers(tempcompass_samples())
        answers[1]["text"] = "no idea"
        metrics = tempcompass(answers, tempcompass_samples()).metrics
        assert list(metrics)[:5] == [
            "Avg",
            "multi-choice/avg",
            "multi-choice/direction",
            "multi-choice/speed",
            "multi-choice/match_rate",
        ]
        assert metrics["multi-choice/match_rate"] == 50
        assert metrics["Avg"] == pytest.approx(250 / 3)

    def test_records_without_a_prediction(self):
        question = {"question": "Is it?", "answer": "no"}
        records = {"1": {"speed": [question, {**question, "response": "no"}, {**question, "prediction": None}]}}
        predictions, references = from_records(records, "yes_no")
        assert len(predictions) == 2 and len(references) == 3
        assert tempcompass(predictions, references).metrics["Avg"] == pytest.approx(100 / 3)
        original = tempcompass(predictions, references, scoring="original")
        assert original.metrics["yes_no/avg"] == 50 and "crash" in original.problem_counts()

    @pytest.mark.parametrize(
        "change", [{"task": "captioning"}, {"dim": "colour"}, {"answer": "Z. none"}, {"task": "yes_no"}]
    )
    def test_bad_references(self, change):
        with pytest.raises(ValueError):
            tempcompass([], [{**tempcompass_samples()[0], **change}])


class TestVinoground:
    def test_pairs_need_both_sides(self):
        answers = right_answers(vinoground_samples())
        answers[0]["text"] = "B"  # pair 0, pos_text
        answers[7]["text"] = "A"  # pair 1, neg_video
        scores = vinoground(answers, vinoground_samples())
        assert scores.metrics == pytest.approx({"text": 200 / 3, "video": 200 / 3, "group": 100 / 3})
        assert scores.details["accuracy"] == pytest.approx(1000 / 12)
        assert scores.details["categories"]["cyclical"] == pytest.approx(scores.metrics)
        assert scores.num_samples == 3

    @pytest.mark.parametrize(
        ("text", "fixed", "original"),
        [("(A)", 100, 0), ("a dog", 0, 100), ("A", 100, 100), ("The answer is A", 100, 0)],
    )
    def test_the_original_reads_one_character(self, text, fixed, original):
        samples = [{**sample, "answer": "A"} for sample in vinoground_samples()]
        answers = [{"id": sample["id"], "text": text} for sample in samples]
        assert vinoground(answers, samples).metrics["group"] == fixed
        assert vinoground(answers, samples, scoring="original").metrics["group"] == original

    def test_the_original_stops_at_an_empty_answer(self):
        answers = right_answers(vinoground_samples())
        answers[0]["text"] = ""
        crashes = [
            p for p in vinoground(answers, vinoground_samples(), scoring="original").problems if p.kind == "crash"
        ]
        assert [problem.id for problem in crashes] == ["0_pos_text", ""]  # and it wants 500 pairs

    @pytest.mark.parametrize(("index", "message"), [("0", "form"), ("0_pos_caption", "form")])
    def test_bad_ids(self, index, message):
        with pytest.raises(ValueError, match=message):
            vinoground([], [{"id": index, "answer": "A"}])

    def test_a_pair_that_is_not_whole(self):
        with pytest.raises(ValueError, match="neg_video"):
            vinoground([], vinoground_samples()[:3])


class TestVideoQA:
    def test_words(self):
        answers = right_answers(videoqa_samples())
        answers[2]["text"] = "</evi>The dark red car <evi>."
        answers[3]["text"] = "Man in black."
        scores = videoqa(answers, videoqa_samples())
        assert scores.metrics == pytest.approx({"accuracy": 100, "exact_match": 50, "word_f1": 100 * (0.8 + 1) / 2})

    def test_judge(self):
        asked = []

        def judge(question, truth, answer):
            asked.append((question, truth, answer))
            return 0.5

        answers = right_answers(videoqa_samples())[:3]
        assert videoqa(answers, videoqa_samples(), judge=judge).metrics["judge"] == 25  # one is missing
        assert asked == [("What?", "a red car", "a red car")]

    @pytest.mark.parametrize("verdict", [-1, 5, math.nan])
    def test_a_judge_says_0_to_1(self, verdict):
        with pytest.raises(ValueError, match="judge"):
            videoqa(right_answers(videoqa_samples()), videoqa_samples(), judge=lambda *_: verdict)

    def test_the_original_of_open_questions_is_a_judge(self):
        with pytest.raises(ValueError, match="judge"):
            videoqa(right_answers(videoqa_samples()), videoqa_samples(), scoring="original")

    def test_the_original_draws_where_it_reads_nothing(self):
        samples = videoqa_samples()[:2]
        answers = [{"id": "0", "text": "B"}, {"id": "1", "text": "???"}]
        scores = videoqa(answers, samples, scoring="original")
        assert scores.metrics["accuracy"] == pytest.approx(100 * (1 + 1 / 4) / 2)
        assert videoqa(answers, samples).metrics["accuracy"] == 50

    @pytest.mark.parametrize(
        ("text", "index"),
        [
            ("(A) and (B)", 1),
            ("B", 1),
            ("A is wrong, B is right", 1),
            ("It is clearly not the right dog", 1),
            ("dog", None),
            ("X", None),
        ],
    )
    def test_original_reader(self, text, index):
        assert parse_multi_choice_response(text, ["cat", "dog"]) == index
