# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""TEMPLE's perturbations against the paper's table, its pair filters, and the data set of pairs."""

import json
import math
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import train
from trl_temporal import FPOConfig, FPOTrainer
from trl_temporal.cli import main
from trl_temporal.data.schema import PREFERENCE_FEATURES, find_faults
from trl_temporal.data.validation import load_rows
from trl_temporal.synthesis.temple import (
    FACTORS,
    KEEP_RATIOS,
    Perturbation,
    draw_perturbation,
    pair_fault,
    perturb,
    same_strength,
    temple_pairs,
    text_fault,
)
from trl_temporal.synthesis.temple_folder import event_world_pairs, write_temple_pairs
from trl_temporal.synthesis.temple_prompts import QUESTIONS, TemplePrompts, read_prompts

# N: for r = 16, 8, 4, 2 the clips that are kept, and the lengths of the blocks.
TABLE = {
    4: [(1, [1] * 4), (1, [1] * 4), (1, [1] * 4), (2, [2, 2])],
    5: [(1, [1] * 5), (1, [1] * 5), (1, [1] * 5), (2, [2, 2, 1])],
    8: [(1, [1] * 8), (1, [1] * 8), (2, [2] * 4), (4, [4, 4])],
    16: [(1, [1] * 16), (2, [2] * 8), (4, [4] * 4), (8, [8, 8])],
    24: [(1, [1] * 24), (3, [3] * 8), (6, [6] * 4), (12, [12, 12])],
    31: [(1, [1] * 31), (3, [3] * 10 + [1]), (7, [7] * 4 + [3]), (15, [15, 15, 1])],
    32: [(2, [2] * 16), (4, [4] * 8), (8, [8] * 4), (16, [16, 16])],
}


def blocks_of(lengths):
    ends = np.cumsum(lengths)
    return [list(range(end - length, end)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def joined(blocks):
    return [clip for block in blocks for clip in block]


@pytest.mark.parametrize("num_clips, of_ratios", TABLE.items())
def test_the_papers_table(num_clips, of_ratios):
    for keep_ratio, (num_kept, lengths) in zip(KEEP_RATIOS, of_ratios, strict=True):
        blocks = blocks_of(lengths)
        rng = np.random.default_rng(0)
        assert len(perturb(num_clips, "drop", keep_ratio, rng)) == num_kept
        assert perturb(num_clips, "reverse", keep_ratio, rng) == joined(blocks[::-1])
        for _ in range(5):
            left = perturb(num_clips, "shuffle", keep_ratio, rng)
            while left:  # whole blocks, one after the other
                block = next(block for block in blocks if block[0] == left[0])
                assert left[: len(block)] == block
                left = left[len(block) :]


clips = st.integers(4, 32)
ratios = st.sampled_from(KEEP_RATIOS)


@given(num_clips=clips, keep_ratio=ratios, seed=st.integers(0, 2**32))
def test_properties_of_perturbations(num_clips, keep_ratio, seed):
    size = max(1, math.floor(num_clips / keep_ratio))
    whole = list(range(num_clips))
    drop, shuffle, reverse, partial = (
        perturb(num_clips, factor, keep_ratio, np.random.default_rng(seed)) for factor in (*FACTORS, "partial_reverse")
    )
    assert len(drop) == size and drop == sorted(set(drop)) and set(drop) <= set(whole)
    for order in (shuffle, reverse, partial):
        assert sorted(order) == whole and order != whole
    # The order inside of a block stays, and a block stays in one piece.
    for order in (shuffle, reverse):
        for first, second in zip(order[:-1], order[1:], strict=True):
            if first // size == second // size:
                assert second == first + 1
        firsts = [clip // size for clip in order if clip % size == 0]
        assert firsts == list(dict.fromkeys(clip // size for clip in order))
    num_blocks = math.ceil(num_clips / size)
    assert list(dict.fromkeys(clip // size for clip in reverse)) == list(range(num_blocks))[::-1]
    # One run is turned around, all but `size` clips long.
    length = max(2, num_clips - size)
    assert partial in [
        whole[:start] + whole[start : start + length][::-1] + whole[start + length :]
        for start in range(num_clips - length + 1)
    ]


@given(num_clips=st.integers(1, 40), keep_ratio=st.integers(1, 20), seed=st.integers(0, 99))
def test_all_sizes_and_ratios(num_clips, keep_ratio, seed):
    one_block = num_clips <= max(1, num_clips // keep_ratio)
    for factor in FACTORS:
        found = perturb(num_clips, factor, keep_ratio, np.random.default_rng(seed))
        assert (found == list(range(num_clips))) == one_block


def test_a_shuffle_draws_every_order_but_the_first():
    orders = {tuple(perturb(3, "shuffle", 16, np.random.default_rng(seed))) for seed in range(60)}
    assert len(orders) == math.factorial(3) - 1 and (0, 1, 2) not in orders
    kept = {tuple(perturb(5, "drop", 2, np.random.default_rng(seed))) for seed in range(200)}
    assert len(kept) == math.comb(5, 2)


def test_perturbations_follow_from_video_factor_ratio_and_seed():
    def draw(video_id="a", factor="shuffle", keep_ratio=8, seed=0):
        return draw_perturbation(video_id, 24, factor, keep_ratio, seed)

    assert draw() == draw()
    # Written down: another version of the package must not make other data of the same videos.
    assert draw_perturbation("bikes", 6, "shuffle", 16).selected_indices == [1, 5, 0, 3, 2, 4]
    assert draw_perturbation("bikes", 6, "drop", 2).selected_indices == [0, 4, 5]
    assert draw().selected_indices != draw(seed=1).selected_indices
    assert draw().selected_indices != draw(video_id="b").selected_indices
    fast = draw(factor="speed")
    assert fast.selected_indices == list(range(24)) and len(fast.fast_indices) == 24 - 3
    assert not fast.changes_nothing(24)


def test_ratios_that_a_short_video_cannot_tell_apart():
    for num_clips in range(4, 33):
        groups = same_strength(num_clips)
        assert any({16, 8} <= set(group) for group in groups) == (num_clips < 16)
        assert any({8, 4} <= set(group) for group in groups) == (num_clips < 8)
        for group in groups:
            orders = {tuple(perturb(num_clips, "reverse", ratio, np.random.default_rng(0))) for ratio in group}
            assert len(orders) == 1


def test_impossible_perturbations():
    with pytest.raises(ValueError, match="'blur'; it must be one of drop, shuffle, reverse"):
        perturb(4, "blur", 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="0 clips and keep_ratio 2"):
        perturb(0, "drop", 2, np.random.default_rng(0))


# Filters


@pytest.mark.parametrize(
    "factor, chosen, rejected, fault",
    [
        ("drop", "a b c", "a b", None),
        ("drop", "a b c", "c b a", "drop_not_shorter"),
        ("drop", "a b", "a b c", "drop_not_shorter"),
        ("shuffle", "a b c", "c b a", None),
        ("shuffle", "a b c", "a b c", "chosen_in_rejected"),
        ("reverse", "a b c", "x a b c", "chosen_in_rejected"),
        ("shuffle", "x" * 10, "y" * 15, None),
        ("shuffle", "x" * 10, "y" * 16, "length_ratio"),
        ("reverse", "x" * 16, "y" * 10, "length_ratio"),
        ("drop", "x" * 100, "y", None),
        ("shuffle", "a b c", "", "empty"),
        ("shuffle", "a b c", None, "empty"),
        ("shuffle", "N/A", "a b c", "refusal"),
        ("shuffle", "a b c", "I’m sorry, I cannot see it.", "refusal"),
    ],
)
def test_pair_filters(factor, chosen, rejected, fault):
    assert pair_fault(factor, chosen, rejected) == fault


def test_descriptions_are_not_taken_for_refusals():
    for text in ("A man says he is sorry.", "Nothing moves.", "The dog, unable to jump, sits.", "None of them moves."):
        assert text_fault(text) is None


# Rows


@pytest.fixture
def videos(tmp_path):
    """Two described videos, of 4 and 17 clips."""
    described = []
    for name, num_clips in (("short", 4), ("long", 17)):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(b"video")
        captions = [f"In {name}, thing {clip} happens." for clip in range(num_clips)]
        rejected = []
        for factor in FACTORS:
            for ratio in KEEP_RATIOS:
                perturbation = draw_perturbation(name, num_clips, factor, ratio)
                text = " ".join(captions[clip] for clip in perturbation.selected_indices)
                rejected.append({**perturbation._asdict(), "text": text})
        described.append(
            {
                "video_id": name,
                "path": str(path),
                "duration_s": 2.0 * num_clips,
                "level": "captions",
                "model": "truth",
                "num_clips": num_clips,
                "captions": captions,
                "chosen": " ".join(captions),
                "rejected": rejected,
            }
        )
    return described


def test_rows_keep_the_contract(videos):
    pairs, report = temple_pairs(videos)
    assert pairs.features == PREFERENCE_FEATURES
    assert find_faults(pairs, "preference") == []
    assert len(set(pairs["id"])) == len(pairs) == report.num_pairs
    row = next(row for row in pairs if row["id"] == "temple-long-drop-8")
    args = json.loads(row["factor_args"])
    assert (row["source_id"], row["factor"], row["keep_ratio"], row["duration"]) == ("long", "drop", 8, 34.0)
    assert args["num_clips"] == 17 and len(args["selected_indices"]) == 2 and args["level"] == "captions"
    assert "same_strength" not in args
    shown = [videos[1]["captions"][clip] for clip in args["selected_indices"]]
    assert row["rejected"][0]["content"][0]["text"] == " ".join(shown)
    assert row["chosen"][0]["content"][0]["text"] == videos[1]["chosen"]
    assert row["prompt"][0]["content"][0]["type"] == "video"
    questions = {row["prompt"][0]["content"][1]["text"] for row in pairs}
    assert 1 < len(questions) and questions <= set(QUESTIONS)
    # Four clips: 16, 8 and 4 do the same. Where they even draw the same, the second is a pair of another stage.
    assert report.same_strength == {"16 = 8 = 4": 1}
    reverse = [row["keep_ratio"] for row in pairs if row["source_id"] == "short" and row["factor"] == "reverse"]
    assert {16, 8, 4} <= set(reverse)


def test_what_is_left_out_is_counted_and_named(videos):
    short, long = videos
    short["rejected"][0]["text"] = None
    short["rejected"][1]["text"] = "I'm sorry, there is nothing to see."
    short["rejected"][4]["text"] = short["chosen"]
    one_clip = {**long, "video_id": "one", "path": long["path"] + "1", "num_clips": 1}
    one_clip["rejected"] = [{"factor": "shuffle", "keep_ratio": 2, "selected_indices": [0], "text": None}]
    Path(one_clip["path"]).write_bytes(b"video")
    no_words = {**long, "video_id": "empty", "path": long["path"] + "2", "chosen": ""}
    Path(no_words["path"]).write_bytes(b"video")
    gone = {**long, "video_id": "gone", "path": long["path"] + "3"}
    again = {**long, "video_id": "again"}
    same_id = {**long, "path": short["path"] + "4"}
    _, report = temple_pairs([short, long, one_clip, no_words, gone, again, same_id])
    counts = dict(report.reasons)
    counts.pop("duplicate_pair")  # both halves in the other order: the one shuffle of two blocks is their reversal
    assert counts == {
        "chosen_empty": 1,
        "chosen_in_rejected": 1,
        "duplicate_video": 2,
        "empty": 1,
        "nothing_to_perturb": 1,
        "refusal": 1,
        "video_missing": 1,
    }
    assert len(report.skipped) == sum(report.reasons.values())
    named = {(entry["video_id"], entry["factor"], entry["keep_ratio"], entry["reason"]) for entry in report.skipped}
    assert ("short", "drop", 16, "empty") in named and ("gone", None, None, "video_missing") in named


def test_the_order_of_videos_changes_no_row(videos):
    rows = {row["id"]: row for row in temple_pairs(videos)[0]}
    assert {row["id"]: row for row in temple_pairs(videos[::-1])[0]} == rows
    assert {row["id"]: row for row in temple_pairs(videos[1:])[0]}.items() <= rows.items()
    others = temple_pairs(videos, seed=1)[0]["prompt"][:]
    assert others != temple_pairs(videos)[0]["prompt"][:]


def test_faults_name_the_video_and_the_field(videos):
    del videos[1]["rejected"][3]["text"]
    with pytest.raises(ValueError, match=r"video 1 \('long'\), field 'rejected': an entry has no 'text'"):
        temple_pairs(videos)
    del videos[0]["chosen"]
    with pytest.raises(ValueError, match=r"video 0 \('short'\), field 'chosen': is missing.*temple caption"):
        temple_pairs(videos)


def write_descriptions(folder, videos):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(video) + "\n" for video in videos)
    (folder / "descriptions.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_a_folder_that_datasets_reads(videos, tmp_path, capsys):
    described = write_descriptions(tmp_path / "described", videos)
    assert main(["temple", "pairs", str(described), str(tmp_path / "pairs")]) == 0
    printed = capsys.readouterr().out
    assert "shuffle" in printed and "16 = 8 = 4 do the same to 1" in " ".join(printed.split())
    expected, report = temple_pairs(videos)
    (split,) = load_rows(tmp_path / "pairs").values()
    assert split[:] == expected[:]
    streamed = datasets.load_dataset(str(tmp_path / "pairs"), split="train", cache_dir=str(tmp_path / "cache"))
    assert streamed["id"][:] == expected["id"][:]
    card = (tmp_path / "pairs" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| `drop` \| 2 \| 2 \| 2 \| 2 \|", card) and "| 16 = 8 = 4 | 1 |" in card
    manifest = json.loads((tmp_path / "pairs" / "temple.json").read_text(encoding="utf-8"))
    assert manifest["num_pairs"] == report.num_pairs and manifest["reasons"] == report.reasons
    assert manifest["models"] == ["truth"]
    skipped = (tmp_path / "pairs" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in skipped] == report.skipped

    # The same again, byte for byte; and nothing is written over.
    write_temple_pairs(described, tmp_path / "again")
    files = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert len(files) >= 6
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "pairs" / name).read_bytes(), name
    assert main(["temple", "pairs", str(described), str(tmp_path / "pairs")]) == 1
    assert "is there already" in capsys.readouterr().err


def test_stages_without_pairs_and_no_pairs_at_all(videos, tmp_path):
    for rejected in videos[1]["rejected"]:
        if rejected["keep_ratio"] == 4:
            rejected["text"] = ""
    described = write_descriptions(tmp_path / "described", videos[1:])
    with pytest.warns(UserWarning, match=r"no pair with keep_ratio 4 is left \(.*empty: 3"):
        write_temple_pairs(described, tmp_path / "pairs")
    videos[1]["chosen"] = "N/A"
    described = write_descriptions(tmp_path / "described", videos[1:])
    with pytest.raises(ValueError, match=r"no pair is left of 1 videos \(chosen_refusal: 1\)"):
        write_temple_pairs(described, tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("none")] == []
    (described / "descriptions.jsonl").write_text("{}\n{broken\n", encoding="utf-8")
    with pytest.raises(ValueError, match="descriptions.jsonl, line 2: is no JSON"):
        write_temple_pairs(described, tmp_path / "none")


# EventWorld


def test_event_world_pairs_train_the_tiny_model(event_world, tiny, read_video, config):
    pairs, report = event_world_pairs(event_world["train"], keep_ratios=(4, 2))
    assert report.num_videos == 3 and set(report.pairs) == set(FACTORS)
    dense = next(row for row in event_world["train"] if row["task"] == "dense")
    first = pairs[0]
    assert first["chosen"][0]["content"][0]["text"] == " ".join(f"{caption}." for caption in dense["captions"])
    assert first["videos"][0]["path"] == dense["videos"][0]["path"]
    model, processor = tiny
    trainer = FPOTrainer(model, args=config(FPOConfig, max_steps=1), train_dataset=pairs, processing_class=processor)
    (gradients,) = train(trainer)
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    logged = [key for entry in trainer.state.log_history for key in entry]
    assert any(key.endswith(FACTORS) for key in logged)


def test_the_shipped_tokenizer_knows_the_words():
    from transformers import AutoTokenizer

    from trl_temporal.data.event_world import simulate, video_rows

    folder = Path(__file__).parents[1] / "examples" / "eventworld_tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs, _ = event_world_pairs(video_rows(simulate(0, 3), {"path": "3.mp4"}), check_files=False)
    for row in pairs:
        for text in (row["chosen"], row["rejected"]):
            text = text[0]["content"][0]["text"]
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert len(ids) <= 2 * len(text.split())  # words, and a full stop each sentence


# Wordings


def test_prompts_can_be_replaced_one_by_one(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("aggregate: 'Like {this}: {captions}'\nquestions: ['What?']\n", encoding="utf-8")
    prompts = read_prompts(path)
    assert prompts.list_captions(["b {x}", "a"]) == "Like {this}: - Caption 1: b {x}\n- Caption 2: a"
    assert prompts.questions == ("What?",) and prompts.first_clip == TemplePrompts().first_clip
    for text, message in (
        ("aggregate: nothing", r"the prompt `aggregate` has no \{captions\}"),
        ("agregate: nothing", "any of first_clip, next_clip"),
        ("questions: [What?]", "is no YAML"),
        ("questions: What?", "`questions` is 'What\\?'; write a list"),
        ("questions: []", "at least one"),
        ("first_clip: 3", "`first_clip` is 3; write a text"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"prompts.yaml.*{message}"):
            read_prompts(path)


def test_numbering_starts_again_after_a_perturbation():
    perturbation = Perturbation("drop", 2, [1, 3], [])
    captions = ["a", "b", "c", "d"]
    listed = TemplePrompts().list_captions([captions[clip] for clip in perturbation.selected_indices])
    assert "- Caption 1: b\n- Caption 2: d\n" in listed and "Caption 3" not in listed
