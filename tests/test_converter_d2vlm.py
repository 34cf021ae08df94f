# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.golden.builder_case import blank_video, check_builder, released_processor
from trl_temporal.data.collator import EvidenceCollator
from trl_temporal.data.converters.d2vlm import (
    choose_rejected,
    load_d2vlm,
    preference_row_from_d2vlm,
    sft_row_from_d2vlm,
)
from trl_temporal.data.schema import RowError, strip_none_parts, validate_dataset, validate_row

GOLDEN = Path(__file__).parent / "golden" / "d2vlm"
BUILDER = json.loads((GOLDEN / "fpo_builder.json").read_text())
RELEASED_VIDEO_ID = -200


def record(question="<image>\nWhen?", answer="<evi> </evi> In <evi>.", **columns):
    conversations = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {
        "task": "tvg",
        "video": "a.mp4",
        "duration": 10.0,
        "conversations": conversations,
        "tgt": [2.0, 3.5],
        **columns,
    }


def pair(**columns):
    released = record(**columns)
    conversations = released["conversations"]
    shifted = {"conversations": {"chosen": conversations, "reject_g_shift": conversations}}
    return released | shifted | {"tgt": {"chosen": [2.0, 3.5], "reject_g_shift": [6.0, 7.5]}}


def text_of(messages):
    return "".join(part.get("text", "<video>") for part in strip_none_parts(messages)[0]["content"])


# The released text


def golden_samples():
    for path in sorted(GOLDEN.glob("sft_*.json")):
        for number, sample in enumerate(json.loads(path.read_text())["samples"]):
            yield pytest.param(path.stem, number, sample, id=f"{path.stem}-{number}")


@pytest.mark.filterwarnings("ignore:row .* intervals (turned|clipped)")
@pytest.mark.parametrize(("case", "number", "sample"), golden_samples())
def test_golden_chats_are_reproduced(case, number, sample):
    """Token by token, with the labels: what the released code trains on."""
    released = record(conversations=sample["conversation"], duration=sample["frames"])
    released |= {"tgt": sample["tgt"], "src": sample["src"]}
    if sample["tgt"] == [7.0, 9.0]:  # of a video of 6 s, where the released code trains on the last frame
        with pytest.raises(RowError, match=r"column 'spans'.*\[7.0, 9.0\], which is not inside the video \(0 to 6 s"):
            sft_row_from_d2vlm(released, id="outside")
        return
    row = sft_row_from_d2vlm(released, id=case)
    processor = released_processor(GOLDEN)
    batch = EvidenceCollator(processor, lambda entry: blank_video(sample["frames"]))([row])

    golden = load_file(GOLDEN / f"{case}.safetensors")
    before = golden["in.input_ids_part1"][number][golden["in.attention_mask1"][number].bool()].tolist()
    place = before.index(RELEASED_VIDEO_ID)
    before[place : place + 1] = [processor.video_token_id] * sample["frames"]
    assert batch["input_ids"][0].tolist() == before + golden[f"in.input_ids_part2.{number}"].tolist()
    labels = [-100] * len(before) + golden[f"in.labels_part2.{number}"].tolist()
    assert batch["labels"][0].tolist() == labels


def test_the_packer_of_the_release():
    assert {name: count for name, count in check_builder(GOLDEN) if count} == {}


def test_the_check_of_the_packer_sees_every_difference(tmp_path):
    """Golden outputs with one fault each, in a folder of their own."""
    for name in ("tokenizer", "config.json"):
        (tmp_path / name).symlink_to(GOLDEN / name)

    def faults(spoil):
        golden = json.loads((GOLDEN / "fpo_builder.json").read_text())
        packed = golden["outputs"][1]["processed_response"]
        spoil(packed, packed["conflict_events"][0]["reject"])
        (tmp_path / "fpo_builder.json").write_text(json.dumps(golden))
        found, clean = dict(check_builder(tmp_path)), dict(check_builder(GOLDEN))
        return {name for name in found if found[name] != clean[name]}

    def set_item(entries, index, value):
        entries[index] = value

    assert faults(lambda packed, event: set_item(packed["full_token_ids"], 3, 0)) == {"ids"}
    assert faults(lambda packed, event: set_item(packed["pos_id"], 30, 0)) == {"positions"}
    assert faults(lambda packed, event: packed["special_mask_list"].pop()) == {"mask"}
    assert faults(lambda packed, event: set_item(packed["label"], 0, 0)) == {"labels"}
    assert faults(lambda packed, event: event["text"]["input_index"].pop()) == {"text predictors"}
    assert faults(lambda packed, event: set_item(event["text"]["logit_token_id"], 1, 0)) == {"text targets"}
    assert faults(lambda packed, event: set_item(event["grounding"]["input_index"], 1, 0)) == {"predictors"}
    assert faults(lambda packed, event: set_item(event["grounding"]["tgt"], 0, [0.0, 1.0])) == {"spans"}


# SFT rows


def test_sft_row():
    row = sft_row_from_d2vlm(
        record(
            "Look first. <image>\nBetween <evi> and the end, when?\n",
            " <evi> <evi> </evi> <evi>, it jumps. <evi>, it runs. ",
            src=[1, 2.5],
            tgt=[[2.0, 3.5], [4.0, 5.0]],
            source="coin",
        ),
        id="a",
        video_root="videos",
    )
    validate_row(row, kind="sft")
    assert row["videos"] == [{"path": "videos/a.mp4", "start_s": None, "end_s": None, "frames_dir": None, "fps": None}]
    assert row["prompt"][0]["content"] == [
        {"type": "text", "text": "Look first. "},
        {"type": "video"},
        {"type": "text", "text": "Between <evi> and the end, when?"},
    ]
    assert text_of(row["completion"]) == "<evi> <evi> </evi> <evi>, it jumps. <evi>, it runs."
    assert row["spans"] == [[2.0, 3.5], [4.0, 5.0]] and row["prompt_spans"] == [[1, 2.5]]
    assert (row["id"], row["task"], row["source"], row["duration"]) == ("a", "tvg", "coin", 10.0)


@pytest.mark.parametrize(
    ("question", "text"),
    [("<image>\nWhen?", "<video>When?"), ("When?\n<image>", "When?\n<video>"), ("When?", "<video>When?")],
)
def test_the_video_stands_where_the_image_stood(question, text):
    row = sft_row_from_d2vlm(record(question), id="a")
    assert text_of(row["prompt"]) == text
    assert all(part.get("text") != "" for part in row["prompt"][0]["content"])


@pytest.mark.parametrize("src", [4.0, [4.0]])
def test_a_moment_of_the_question(src):
    row = sft_row_from_d2vlm(record("<image>\nWhat happens at <evi>?", src=src), id="a")
    assert row["prompt_spans"] == [[4.0, 4.0]]


@pytest.mark.parametrize("tgt", [None, []])
def test_an_answer_of_text_alone(tgt):
    row = sft_row_from_d2vlm(record("<image>\nWhat is in <evi>?", "a door.", src=[1.0, 2.0], tgt=tgt), id="a")
    assert text_of(row["completion"]) == "a door." and row["spans"] == []


@given(st.lists(st.lists(st.floats(0, 10), min_size=2, max_size=2).map(sorted), max_size=4))
def test_flat_and_nested_intervals_are_the_same(intervals):
    answer = "<evi> " * len(intervals) + "</evi> Then" + ", <evi>" * len(intervals)
    flat = sum(intervals, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [sft_row_from_d2vlm(record(answer=answer, tgt=tgt), id="a") for tgt in (flat, intervals)]
    assert rows[0] == rows[1]
    assert rows[0]["spans"] == intervals


@given(st.floats(-5, 15), st.floats(-5, 15))
def test_any_interval_that_meets_the_video_is_brought_into_it(start_s, end_s):
    first_s, last_s = sorted([start_s, end_s])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            row = sft_row_from_d2vlm(record(tgt=[start_s, end_s]), id="a")
        except RowError:
            assert last_s < 0 or first_s > 10
            return
    assert row["spans"] == [[max(first_s, 0), min(last_s, 10)]]
    said = " ".join(str(warning.message) for warning in caught)
    assert ("intervals turned round: 1" in said) == (start_s > end_s)
    assert ("intervals clipped: 1" in said) == (first_s < 0 or last_s > 10)


def test_without_a_duration_no_end_is_clipped():
    assert sft_row_from_d2vlm(record(tgt=[2.0, 99.0], duration=None), id="a")["spans"] == [[2.0, 99.0]]


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_a_wrong_number_of_markers_always_raises(num_evidence, num_response, num_spans):
    released = record(
        answer="<evi> " * num_evidence + "</evi> Then" + " <evi>" * num_response,
        tgt=[float(edge) for edge in range(2 * num_spans)],
    )
    if num_evidence == num_response == num_spans:
        validate_row(sft_row_from_d2vlm(released, id="a"), kind="sft")
        return
    wrong = (num_evidence, "before") if num_evidence != num_spans else (num_response, "after")
    message = (
        rf"row \(id 'a'\), column 'spans': has length {num_spans}, but 'completion' has {wrong[0]} <evi> {wrong[1]}"
        r" </evi>\. Write one <evi> per interval"
    )
    with pytest.raises(RowError, match=message):
        sft_row_from_d2vlm(released, id="a")


@given(st.integers(0, 3), st.integers(0, 3))
def test_a_wrong_number_of_markers_in_the_question_always_raises(num_markers, num_spans):
    released = record(
        "<image>\nWhat is in" + " <evi>" * num_markers, src=[float(edge) for edge in range(2 * num_spans)]
    )
    if num_markers == num_spans:
        validate_row(sft_row_from_d2vlm(released, id="a"), kind="sft")
        return
    message = f"'prompt_spans': has length {num_spans}, but the prompt has {num_markers} <evi>. Give each <evi> of"
    with pytest.raises(RowError, match=message):
        sft_row_from_d2vlm(released, id="a")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record(tgt=[1.0, 2.0, 3.0]), r"'spans': 'tgt' has \[3.0\] for an interval. Write \[start, end, start, end"),
        (record(tgt=[[1.0, 2.0], 3.0]), r"'tgt' has 3.0 for an interval"),
        (record(tgt=["1", "2"]), r"'tgt' has \['1', '2'\] for an interval"),
        (record(tgt=[1.0, float("nan")]), r"'tgt' has \[1.0, nan\] for an interval"),
        (record(tgt=2.0), r"'spans': 'tgt' is 2.0. Write a list"),
        (record("<image>\nIn <evi>?", src=[11.0]), r"'prompt_spans': 'src' has the interval \[11.0, 11.0\], which is"),
        (record(answer="In <evi>."), "'completion' has 0 <evi> before </evi>"),
        (record("<image> and <image>"), "'prompt': has <image> more than once. Keep one"),
        (record(video=None), "'videos': the record has no 'video'"),
        (record(answer="  "), "'conversations': has no text from 'gpt'. Fill its 'value'"),
        (record(conversations=[]), "'conversations': is not one turn of the human and one of the assistant"),
        (pair(), "'conversations': is not one turn of the human and one of the assistant"),
    ],
)
def test_bad_records_are_named(broken, message):
    with pytest.raises(RowError, match=rf"^row \(id 'a'\), column .*{message}"):
        sft_row_from_d2vlm(broken, id="a")


# Preference rows


@pytest.mark.parametrize("released", BUILDER["records"], ids=lambda released: list(released["conversations"])[1])
def test_golden_pairs(released):
    (key,) = set(released["conversations"]) - {"chosen"}
    row = preference_row_from_d2vlm(released, id="a", rejected_key=key)
    factors = {"f": "distort", "qwen": "distort"}
    assert row["factor"] == factors.get(key.split("_")[2], key.split("_")[2])
    assert (row["source_id"], row["id"]) == ("a", f"a-{key}")
    for column, branch in (("chosen", "chosen"), ("rejected", key)):
        assert text_of(row[column]) == released["conversations"][branch][1]["value"]
        assert sum(row[f"{column}_spans"], []) == released.get("tgt", {branch: []})[branch]
    assert row["prompt_spans"] == ([[3.1, 6.8]] if "src" in released else None)
    if "tgt" in released:
        validate_row(row, kind="preference")


def test_the_factor_of_another_key():
    released = pair()
    for key, factor in (("reject_g_merge_2", "merge"), ("other", "other")):
        released["conversations"][key] = released["conversations"]["chosen"]
        released["tgt"][key] = [6.0, 7.5]
        assert preference_row_from_d2vlm(released, id="a", rejected_key=key)["factor"] == factor


def test_the_question_may_have_one_src_for_all():
    for src in ([1.0, 2.0], {"chosen": [1.0, 2.0], "reject_g_shift": [1.0, 2.0]}):
        row = preference_row_from_d2vlm(
            pair(question="<image>\nIn <evi>?", src=src), id="a", rejected_key="reject_g_shift"
        )
        assert row["prompt_spans"] == [[1.0, 2.0]]


def test_bad_pairs_are_named():
    with pytest.raises(RowError, match=r"row \(id 'a'\), column 'conversations': has no entry 'reject_t_f'"):
        preference_row_from_d2vlm(pair(), id="a", rejected_key="reject_t_f")
    with pytest.raises(RowError, match="column 'tgt': has no entry 'reject_g_shift'. Give each response"):
        preference_row_from_d2vlm(pair() | {"tgt": {"chosen": [1.0, 2.0]}}, id="a", rejected_key="reject_g_shift")
    with pytest.raises(RowError, match="column 'rejected_spans': has length 2, but 'rejected' has 1 <evi> before"):
        tgt = {"chosen": [1.0, 2.0], "reject_g_shift": [1.0, 2.0, 3.0, 4.0]}
        preference_row_from_d2vlm(pair() | {"tgt": tgt}, id="a", rejected_key="reject_g_shift")


def test_a_changed_interval_of_a_pair_is_reported():
    tgt = {"chosen": [3.5, 2.0], "reject_g_shift": [6.0, 12.0]}
    with pytest.warns(UserWarning, match=r"row \(id 'a'\): intervals turned round: 1, intervals clipped: 1"):
        row = preference_row_from_d2vlm(pair() | {"tgt": tgt}, id="a", rejected_key="reject_g_shift")
    assert row["chosen_spans"] == [[2.0, 3.5]] and row["rejected_spans"] == [[6.0, 10.0]]


def test_the_builder_draws_the_same():
    assert choose_rejected(BUILDER["multi_records"]) == BUILDER["multi_chosen_keys"]
    assert choose_rejected(BUILDER["multi_records"], seed=0) != BUILDER["multi_chosen_keys"]


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 100))
def test_one_sample_per_record_from_one_generator(counts, seed):
    """The builder's draw is `random.sample(variants, 1)`, and an empty sample of a record without variants."""
    records = [{"conversations": {"chosen": []} | {f"reject_g_{i}": [] for i in range(count)}} for count in counts]
    rng = random.Random(seed)
    expected = [rng.sample([f"reject_g_{i}" for i in range(count)], min(1, count)) for count in counts]
    assert choose_rejected(records, seed) == [keys[0] if keys else None for keys in expected]


# Files


@pytest.fixture
def write(tmp_path):
    def write(records):
        path = tmp_path / "anno.json"
        path.write_text(json.dumps(records))
        return path

    (tmp_path / "a.mp4").touch()
    return write


def test_load_sft(write, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_d2vlm(write([record(), record("<image>\nIn <evi>?", src=[1, 2])]), "sft", video_root=tmp_path)
    validate_dataset(dataset, "sft")
    assert dataset["id"][:] == ["anno-0", "anno-1"]
    assert dataset["prompt_spans"][:] == [None, [[1.0, 2.0]]]
    assert strip_none_parts(dataset[0]["prompt"])[0]["content"][0] == {"type": "video"}


def test_load_preference(write):
    grounded = [released for released in BUILDER["records"] if "tgt" in released]
    with pytest.warns(UserWarning, match=r"anno.json: 1 of 1 videos are not there, such as 'toy.mp4'$"):
        dataset = load_d2vlm(write(grounded), "preference")
    validate_dataset(dataset, "preference")
    assert dataset["factor"][:] == ["shift", "add", "delete", "merge", "repeat", "distort"]
    assert len(set(dataset["id"])) == len(dataset)


def test_load_says_what_it_did(write, tmp_path):
    records = [
        record(tgt=[3.5, 2.0]),
        record(tgt=[-1.0, 3.5], video="b.mp4"),
        record(tgt=[1.0]),
        record(tgt=[8.0, 11.0]),
        record(video="c.mp4"),
    ]
    with pytest.warns(UserWarning) as caught:
        dataset = load_d2vlm(write(records), "sft", video_root=tmp_path)
    assert dataset["id"][:] == ["anno-0", "anno-1", "anno-3", "anno-4"]
    (warning,) = caught
    said = str(warning.message)
    assert warning.filename == __file__
    assert (
        "anno.json: Intervals turned round: 1. Intervals clipped: 2. 1 of 5 records left out: row (id 'anno-2')"
        in said
    )
    assert f"2 of 3 videos are not there, such as '{tmp_path / 'b.mp4'}'" in said


def test_a_record_without_rejected_response_is_left_out(write, tmp_path):
    lonely = pair()
    del lonely["conversations"]["reject_g_shift"]
    with pytest.warns(UserWarning, match="1 of 2 records left out: .*'anno-0'.* has no rejected response. Add one"):
        dataset = load_d2vlm(write([lonely, pair()]), "preference", video_root=tmp_path)
    assert dataset["source_id"][:] == ["anno-1"]


def test_a_pair_without_a_difference_is_left_out(write, tmp_path):
    same = pair() | {"tgt": {"chosen": [2.0, 3.5], "reject_g_shift": [2.0, 3.5]}}
    with pytest.warns(UserWarning, match="1 of 2 records left out: .*'anno-1-reject_g_shift'.* is equal to 'chosen'"):
        dataset = load_d2vlm(write([pair(), same]), "preference", video_root=tmp_path)
    assert dataset["source_id"][:] == ["anno-0"]


def test_files_that_cannot_be_used(write):
    with pytest.raises(ValueError, match="kind is 'fpo'; it must be one of 'sft', 'preference'"):
        load_d2vlm(write([record()]), "fpo")
    with pytest.raises(ValueError, match="anno.json: is not a JSON list with records"):
        load_d2vlm(write({"a": 1}), "sft")
    with pytest.raises(ValueError, match="anno.json: is not a JSON list with records"):
        load_d2vlm(write([[1.0]]), "preference")
    with pytest.raises(ValueError, match="anno.json: none of the 2 records can be used. The first: row .*'anno-0'"):
        load_d2vlm(write([pair(), pair()]), "sft")
    with pytest.raises(RowError, match="record 0, column 'conversations'.*those of evi.json are of kind 'sft'"):
        load_d2vlm(write([record()]), "preference")


@pytest.mark.parametrize(
    "released",
    [
        record("<image>\nWhat is in <evi>?", "a door.", src=[1.0, 2.0], tgt=None),
        record("<image>\nWhat happens at <evi>?", src=4.0),
    ],
    ids=["text alone", "moment of the question"],
)
def test_load_text_alone_and_moments(write, tmp_path, released):
    assert len(load_d2vlm(write([released]), "sft", video_root=tmp_path)) == 1


def test_an_event_of_no_length_is_left_out(write, tmp_path):
    with pytest.warns(UserWarning, match="1 of 2 records left out: .*zero length"):
        assert len(load_d2vlm(write([record(), record(tgt=[4.0, 4.0])]), "sft", video_root=tmp_path)) == 1
