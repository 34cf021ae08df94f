# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
from types import SimpleNamespace

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.data.event_world import simulate, video_rows
from trl_temporal.data.grammar import EVI, EVI_END, split_response
from trl_temporal.data.rows import sft_row
from trl_temporal.data.schema import PREFERENCE_FEATURES, SFT_FEATURES, validate_dataset
from trl_temporal.synthesis.on_policy import collect_on_policy

WORLD = [row for index in range(8) for row in video_rows(simulate(0, index), {"path": f"{index}.mp4"})]
DATASET = datasets.Dataset.from_list(WORLD, features=SFT_FEATURES)


def answer(text, response=(), evidence=None):
    spans = [list(span) for span in response]
    return SimpleNamespace(text=text, response=spans, evidence=spans if evidence is None else evidence)


def right_answer(row):
    return answer(split_response(row["completion"][0]["content"][0]["text"])[1], row["spans"])


def row(task="grounding", spans=((2.0, 6.0),), captions=(), text="", response=None):
    responses = {"grounding": f"It happens in {EVI}.", "qa": f"{text} {EVI}.", "dense": f"{EVI} {text}."}
    return sft_row(
        id=f"a-{task}",
        source="tests",
        task=task,
        video={"path": "a.mp4"},
        question="What?",
        response=f"{EVI} {EVI_END} {response or responses[task]}",
        spans=spans,
        all_spans=spans,
        duration=20.0,
        answer=text if task == "qa" else "",
        captions=captions,
    )


def collect(rows, answers, tmp_path, **options):
    dataset = datasets.Dataset.from_list(rows, features=SFT_FEATURES)
    return collect_on_policy(dataset, lambda rows: answers, tmp_path, progress=False, **options)


def test_right_answers_are_counted_and_wrong_ones_kept(tmp_path):
    def generate(rows):
        # The first two rows of each batch are answered rightly, the others with the wrong half of the video.
        wrong = [answer(f"It is in {EVI}.", [[0.0, 0.01]]) for _ in rows[2:]]
        return [right_answer(row) for row in rows[:2]] + wrong

    pairs, counts = collect_on_policy(DATASET, generate, tmp_path, shard_rows=10, model_name="m", progress=False)
    num_right = 2 * -(-len(DATASET) // 10)
    assert counts == {
        "rows": len(DATASET),
        "kept": len(DATASET) - num_right,
        "right": num_right,
        "skipped": 0,
    }
    assert pairs.features == PREFERENCE_FEATURES and len(pairs) == counts["kept"]
    validate_dataset(pairs, "preference")
    rows = {row["id"]: row for row in DATASET}
    for pair in pairs:
        row = rows[pair["source_id"]]
        assert pair["id"] == f"{row['id']}-on_policy" and pair["factor"] == "on_policy"
        assert pair["chosen"] == row["completion"] and pair["chosen_spans"] == row["spans"]
        assert pair["rejected"][0]["content"][0]["text"] == f"{EVI} {EVI_END} It is in {EVI}."
        assert pair["rejected_spans"] == [[0.0, 0.01]]
        assert {name: pair[name] for name in ("videos", "prompt", "captions", "duration", "source", "task")} == {
            name: row[name] for name in ("videos", "prompt", "captions", "duration", "source", "task")
        }
        assert json.loads(pair["factor_args"])["model"] == "m"
    assert json.loads((tmp_path / "report.json").read_text()) == counts


@pytest.mark.parametrize(
    ("given", "given_answer", "kept"),
    [
        # IoU .75 at .1/.3/.5/.7: F1 1; IoU .5: F1 .75; IoU .25: F1 .25.
        (row(), answer(f"{EVI}", [[2.0, 5.0]]), False),
        (row(), answer(f"{EVI}", [[2.0, 4.0]]), False),
        (row(), answer(f"{EVI}", [[2.0, 3.0]]), True),
        # Two answers for one event: precision 1/2, F1 2/3; four: precision 1/4, F1 .4.
        (row(), answer(f"{EVI} {EVI}", [[2.0, 6.0], [8.0, 9.0]]), False),
        (row(), answer(f"{EVI} {EVI} {EVI} {EVI}", [[2.0, 6.0], [8.0, 9.0], [10.0, 11.0], [12.0, 13.0]]), True),
        (row(), answer("It does not happen."), True),
        # Words: 3 of 4 are right, then 1 of 4.
        (row("qa", text="the red disc blinks"), answer(f"The blue disc blinks {EVI}.", [[2.0, 6.0]]), False),
        (row("qa", text="the red disc blinks"), answer(f"The blue cross rolls {EVI}.", [[2.0, 6.0]]), True),
        (row("qa", text="the red disc blinks"), answer(f"The red disc blinks {EVI}.", [[2.0, 3.0]]), True),
        (
            row("dense", captions=["the red disc blinks"], text="the red disc blinks"),
            answer(f"{EVI} The blue disc blinks.", [[2.0, 6.0]]),
            False,
        ),
        (
            row("dense", captions=["the red disc blinks"], text="the red disc blinks"),
            answer(f"{EVI} A cross.", [[2.0, 6.0]]),
            True,
        ),
    ],
)
def test_bounds(given, given_answer, kept, tmp_path):
    pairs, counts = collect([given], [given_answer], tmp_path)
    assert (len(pairs), counts["kept"], counts["right"]) == (kept, kept, 1 - kept)


def test_bounds_of_zero_keep_nothing_and_of_one_keep_what_is_not_perfect(tmp_path):
    given, wrong = row("qa", text="yes"), answer(f"no {EVI}.", [[10.0, 11.0]])
    assert len(collect([given], [wrong], tmp_path / "0", max_f1=0, max_caption_score=0)[0]) == 0
    assert len(collect([given], [wrong], tmp_path / "1", max_f1=0.1, max_caption_score=0)[0]) == 1
    near = answer(f"yes {EVI}.", [[2.0, 4.0]])
    assert len(collect([given], [near], tmp_path / "2", max_f1=1.0)[0]) == 1
    assert collect([given], [right_answer(given)], tmp_path / "3", max_f1=2.0)[1]["right"] == 1


@pytest.mark.parametrize(
    ("given_answer", "text", "spans", "repair"),
    [
        (answer(f"In {EVI}.", [[8.0, 9.0]], evidence=[]), f"{EVI} {EVI_END} In {EVI}.", [[8.0, 9.0]], "no </evi>"),
        (
            answer(f"In {EVI}.", [[8.0, 9.0]], evidence=[[2.0, 6.0], [8.0, 9.0]]),
            f"{EVI} {EVI_END} In {EVI}.",
            [[8.0, 9.0]],
            "the stages had different numbers of intervals",
        ),
        (
            answer("It does not.", [], evidence=[[2.0, 6.0]]),
            f"{EVI_END} It does not.",
            [],
            "the stages had different numbers of intervals",
        ),
        (
            answer(f"{EVI} {EVI_END} In {EVI}.", [[8.0, 9.0]]),
            f"{EVI} {EVI_END} In {EVI}.",
            [[8.0, 9.0]],
            "the evidence stage was part of the text",
        ),
        (
            answer(f"In {EVI}.", [[18.0, 20.5]]),
            f"{EVI} {EVI_END} In {EVI}.",
            [[18.0, 20.0]],
            "clipped at the end of the video",
        ),
    ],
)
def test_repairs_are_counted(given_answer, text, spans, repair, tmp_path):
    pairs, counts = collect([row()], [given_answer], tmp_path)
    validate_dataset(pairs, "preference")
    assert pairs[0]["rejected"][0]["content"][0]["text"] == text and pairs[0]["rejected_spans"] == spans
    assert counts[f"repaired: {repair}"] == 1
    assert json.loads(pairs[0]["factor_args"])["repairs"] == [repair]


@pytest.mark.parametrize(
    ("given_answer", "why"),
    [
        (answer(f"In {EVI} and {EVI}.", [[8.0, 9.0]]), "another number of intervals than of <evi>"),
        (answer("In it.", [[8.0, 9.0]]), "another number of intervals than of <evi>"),
        (answer(""), "no text"),
        (answer(" . "), "no text"),
        (answer(f"{EVI_END} So {EVI_END} it is."), "more than one </evi>"),
        (answer(f"In {EVI}.", [[18.0, 40.0]]), "impossible interval"),
        (answer(f"In {EVI}.", [[9.0, 8.0]]), "impossible interval"),
    ],
)
def test_answers_that_cannot_be_mended_are_skipped_and_listed(given_answer, why, tmp_path):
    pairs, counts = collect([row()], [given_answer], tmp_path)
    assert len(pairs) == 0 and pairs.features == PREFERENCE_FEATURES
    assert counts == {"rows": 1, "kept": 0, "right": 0, "skipped": 1, f"skipped: {why}": 1}
    (entry,) = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert entry["id"] == "a-grounding" and entry["answer"] == given_answer.text and entry["reason"]


def test_a_row_that_breaks_the_contract_is_skipped_and_listed(tmp_path):
    given = {**row(), "spans": [[2.0, 90.0]]}
    _, counts = collect([given], [answer(f"In {EVI}.", [[8.0, 9.0]])], tmp_path)
    assert counts["skipped: breaks the data contract"] == 1
    assert "beyond the end of the video" in (tmp_path / "skipped.jsonl").read_text()


def wrong_answers(rows):
    return [answer(f"Row {row['id']} in {EVI}.", [[0.0, 0.01]]) for row in rows]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    asked = []

    def generate(rows, fail_at=None):
        if len(asked) == fail_at:
            raise KeyboardInterrupt
        asked.append([row["id"] for row in rows])
        return wrong_answers(rows)

    whole, whole_counts = collect_on_policy(DATASET, wrong_answers, tmp_path / "whole", shard_rows=7, progress=False)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        collect_on_policy(DATASET, lambda rows: generate(rows, 3), folder, shard_rows=7, progress=False)
    assert len(asked) == 3
    (folder / "pairs-00002.json").unlink()  # killed between a shard and its counts
    asked.clear()
    pairs, counts = collect_on_policy(DATASET, generate, folder, shard_rows=7, progress=False)
    assert asked[0][0] == DATASET[14]["id"] and sum(map(len, asked)) == len(DATASET) - 14
    assert list(pairs) == list(whole) and counts == whole_counts
    for path in (tmp_path / "whole").glob("*.parquet"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    # Everything is there: nothing is asked.
    again, _ = collect_on_policy(DATASET, None, folder, shard_rows=7, progress=False)
    assert list(again) == list(whole)
    assert not list(folder.glob("*.part"))


def test_a_folder_of_other_rows_or_settings_is_refused(tmp_path):
    collect_on_policy(DATASET, wrong_answers, tmp_path, shard_rows=10, progress=False)
    for dataset, options in (
        (DATASET.shuffle(seed=0), {}),
        (DATASET, {"max_f1": 0.3}),
        (DATASET, {"model_name": "another"}),
    ):
        with pytest.raises(ValueError, match="made from other rows, another model or other settings.*new folder"):
            collect_on_policy(dataset, wrong_answers, tmp_path, shard_rows=10, progress=False, **options)
    with pytest.raises(ValueError, match="pairs-00001.parquet is of other rows"):
        collect_on_policy(DATASET.select(range(10)), wrong_answers, tmp_path, shard_rows=10, progress=False)


def test_streamed_rows_give_the_same(tmp_path):
    pairs, _ = collect_on_policy(DATASET, wrong_answers, tmp_path / "a", progress=False)
    streamed, _ = collect_on_policy(DATASET.to_iterable_dataset(), wrong_answers, tmp_path / "b", progress=False)
    assert list(streamed) == list(pairs) and len(pairs) == len(DATASET)


def test_mistakes_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="gave 1 answers to 2 rows"):
        collect_on_policy(DATASET.select(range(2)), lambda rows: [None], tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="no rows"):
        collect_on_policy([], wrong_answers, tmp_path / "b", progress=False)
    with pytest.raises(ValueError, match="shard_rows is 0"):
        collect_on_policy(DATASET, wrong_answers, tmp_path / "c", shard_rows=0)


edges = st.floats(-1, 25) | st.sampled_from([0.0, 2.0, 6.0, 20.0, float("nan"), float("inf")])
answers = st.builds(
    lambda parts, response, evidence: answer(" ".join(parts), response, evidence),
    st.lists(st.sampled_from([EVI, EVI_END, "It", "🎉", "happens in", ".", ""]) | st.text(max_size=5), max_size=6),
    st.lists(st.tuples(edges, edges), max_size=3),
    st.lists(st.tuples(edges, edges), max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(given=st.lists(answers, min_size=1, max_size=12), seed=st.integers(0, 99))
def test_any_answer_is_kept_right_or_skipped(tmp_path_factory, given, seed):
    rows = [{**WORLD[(seed + index) % len(WORLD)], "id": str(index)} for index in range(len(given))]
    pairs, counts = collect(rows, given, tmp_path_factory.mktemp("on_policy"))
    validate_dataset(pairs, "preference")
    assert counts["kept"] + counts["right"] + counts["skipped"] == counts["rows"] == len(rows)
    assert len(pairs) == counts["kept"]
    for pair in pairs:
        num_evidence, text = split_response(pair["rejected"][0]["content"][0]["text"])
        assert num_evidence == text.count(EVI) == len(pair["rejected_spans"])
