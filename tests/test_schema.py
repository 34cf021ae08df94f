# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import math
import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from trl_temporal.data import rows
from trl_temporal.data.grammar import format_dense, format_grounding, format_qa
from trl_temporal.data.schema import (
    EVALUATION_FEATURES,
    MESSAGES_FEATURE,
    PREFERENCE_FEATURES,
    SFT_FEATURES,
    RowError,
    coerce_images,
    coerce_videos,
    filter_bad_rows,
    find_faults,
    kind_of,
    span_fault,
    strip_none_parts,
    validate,
    validate_dataset,
    validate_row,
    video_key,
    without_video_decoding,
)


def user(text="When does the red disc blink?", num_videos=1):
    return {"role": "user", "content": [{"type": "video"}] * num_videos + [{"type": "text", "text": text}]}


def assistant(text):
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def sft_row(**changes):
    row = {
        "id": "disc-7",
        "videos": ["disc.mp4"],
        "prompt": [user()],
        "completion": assistant("<evi> <evi> </evi> It happens in <evi> and <evi>."),
        "spans": [[1.0, 2.5], [4.0, 6.0]],
        "duration": 10.0,
    }
    return row | changes


def preference_row(**changes):
    row = {
        "id": "pair-7",
        "videos": ["disc.mp4"],
        "prompt": [user()],
        "chosen": assistant("<evi> </evi> It happens in <evi>."),
        "rejected": assistant("<evi> </evi> It happens in <evi>."),
        "chosen_spans": [[1.0, 2.5]],
        "rejected_spans": [[5.0, 6.5]],
        "factor": "shift",
    }
    return row | changes


def asks_of_images(num_images=1, num_videos=1):
    return [
        {"role": "user", "content": [{"type": "image", "text": None}] * num_images + user("?", num_videos)["content"]}
    ]


TEXT_ONLY = {"videos": [], "prompt": [{"role": "user", "content": "Hello?"}], "completion": assistant("Hello.")}


@pytest.mark.parametrize(
    "row",
    [
        sft_row(),
        sft_row(spans=[[0.0, 2.5], [4.0, 10.04]]),
        sft_row(completion=assistant("</evi> It does not happen."), spans=[]),
        sft_row(completion=[{"role": "assistant", "content": "<evi> </evi> Yes <evi>."}], spans=[[1, 2]]),
        sft_row(completion=assistant("<evi> <evi> </evi> Mostly in <evi>."), response_spans=[[1.0, 6.0]]),
        sft_row(completion=assistant("Often."), spans=[]),
        sft_row(prompt=[user("What follows <evi>?")], prompt_spans=[[0.0, 1.0]]),
        sft_row(prompt=[user("What happens at <evi>?")], prompt_spans=[[1.0, 1.0]]),
        sft_row(prompt=[{"role": "system", "content": "Be brief."}, user(), *assistant("Once."), user("Sure?", 0)]),
        sft_row(videos=[{"frames_dir": "frames", "fps": 4.0, "path": None}]),
        sft_row(videos=[{"frames": ["1.png", {"path": "2.png", "bytes": None}], "fps": 4.0, "path": None}]),
        sft_row(videos=[{"frames": np.zeros((2, 4, 4, 3), dtype=np.uint8), "fps": 4}]),
        sft_row(prompt=asks_of_images(), images="a.png"),
        sft_row(prompt=asks_of_images(2), images=[{"path": None, "bytes": b"0"}, PILImage.new("RGB", (4, 4))]),
        sft_row(**TEXT_ONLY | {"prompt": asks_of_images(1, 0)}, images=["a.PNG"], spans=[]),
        sft_row(images=[]),
        sft_row(videos={"path": "disc.mp4", "start_s": 30.0, "end_s": 40.0}, duration=None),
        sft_row(**TEXT_ONLY, spans=None),
        sft_row(**TEXT_ONLY | {"videos": None}, spans=[]),
    ],
)
def test_good_sft_rows(row):
    validate_row(row, kind="sft")


def test_good_preference_and_prompt_rows():
    validate_row(preference_row(), kind="preference")
    validate_row(preference_row(rejected=assistant("</evi> Never."), rejected_spans=[]), kind="preference")
    validate_row({"prompt": [user()], "videos": ["disc.mp4"]}, kind="prompt")
    validate_row({"prompt": [{"role": "user", "content": "Hello?"}]}, kind="prompt")


NO_EVIDENCE_TEXT = "It happens in <evi> and <evi>."
SFT_FAULTS = {
    "span reversed": ({"spans": [[1.0, 2.5], [6.0, 4.0]]}, "'spans': span 1 runs backwards, from 6.0 s to 4.0 s"),
    "span empty": ({"spans": [[1.0, 1.0], [4.0, 6.0]]}, "'spans': span 0 has zero length, at 1.0 s"),
    "span negative": ({"spans": [[-1.0, 2.5], [4.0, 6.0]]}, "'spans': span 0 has a negative edge"),
    "span too late": ({"spans": [[1.0, 2.5], [4.0, 10.2]]}, "'spans': span 1 ends at 10.2 s, beyond the end"),
    "span beyond crop": ({"videos": [{"path": "a.mp4", "end_s": 5.0}]}, "beyond the end of the video at 5.0 s"),
    "span NaN": ({"spans": [[1.0, math.nan], [4.0, 6.0]]}, "'spans': span 0 has an edge that is not a finite number"),
    "span no pair": ({"spans": [[1.0], [4.0, 6.0]]}, r"'spans': span 0 is \[1.0\]"),
    "span None": ({"spans": [[1.0, None], [4.0, 6.0]]}, r"'spans': span 0 is \[1.0, None\]"),
    "spans flat": ({"spans": [1.0, 2.5, 4.0, 6.0]}, "'spans': span 0 is 1.0"),
    "spans no list": ({"spans": "1-2"}, "'spans': is '1-2'"),
    "spans missing": ({"spans": None}, "'spans': is missing"),
    "all_spans": ({"all_spans": [[3.0, 2.0]]}, "'all_spans': span 0 runs backwards"),
    "duration": ({"duration": math.nan}, "'duration': is nan"),
    "evidence count": ({"spans": [[1.0, 2.5]]}, "'spans': has length 1, but 'completion' has 2 <evi> before </evi>"),
    "response count": (
        {"completion": assistant("<evi> <evi> </evi> It happens in <evi>.")},
        "'spans': has length 2, but 'completion' has 1 <evi> after </evi>",
    ),
    "response_spans count": (
        {"response_spans": [[1.0, 6.0]]},
        "'response_spans': has length 1, but 'completion' has 2 <evi> after </evi>",
    ),
    "no </evi>": ({"completion": assistant(NO_EVIDENCE_TEXT)}, "'completion': has no </evi> between"),
    "two </evi>": ({"completion": assistant("<evi> <evi> </evi> </evi> Yes.")}, "'completion': has </evi> more than"),
    "words first": ({"completion": assistant("So <evi> <evi> </evi> Yes.")}, "'completion': has words before </evi>"),
    "prompt_spans": ({"prompt": [user("And <evi>?")]}, "'prompt_spans': has length 0, but the prompt has 1 <evi>"),
    "</evi> asked": ({"prompt": [user("And </evi>?")]}, "'prompt': has </evi>"),
    "no video": ({"videos": []}, "'videos': is empty, but the prompt has a video part"),
    "no video column": ({"videos": None}, "'videos': is empty, but the prompt has a video part"),
    "no video part": ({"prompt": [user(num_videos=0)]}, "'prompt': has no video part"),
    "string prompt": ({"prompt": [{"role": "user", "content": "When?"}]}, "'prompt': has no video part"),
    "two video parts": ({"prompt": [user(num_videos=2)]}, "'prompt': has 2 video parts"),
    "video in system": (
        {"prompt": [{"role": "system", "content": [{"type": "video"}]}, user(num_videos=0)]},
        "'prompt': has a video part outside the user's messages",
    ),
    "video in answer": (
        {"completion": [{"role": "assistant", "content": [{"type": "video"}]}]},
        "'completion': has a video part",
    ),
    "two videos": ({"videos": ["a.mp4", "b.mp4"]}, "'videos': has 2 entries"),
    "unknown key": ({"videos": [{"path": "a.mp4", "start": 2.0}]}, "'videos': has the unknown key 'start'"),
    "bytes": ({"videos": [{"path": "a.mp4", "bytes": b"0"}]}, "'videos': holds an encoded video"),
    "no source": ({"videos": [{"start_s": 2.0}]}, "'videos': has an entry with no source or two"),
    "two sources": (
        {"videos": [{"path": "a.mp4", "frames_dir": "a", "fps": 1.0}]},
        "'videos': has an entry with no source or two",
    ),
    "frames without fps": ({"videos": [{"frames_dir": "a"}]}, "'videos': has 'frames_dir' or 'fps' alone"),
    "fps of a file": ({"videos": [{"path": "a.mp4", "fps": 2.0}]}, "'videos': has 'frames_dir' or 'fps' alone"),
    "fps zero": ({"videos": [{"frames_dir": "a", "fps": 0.0}]}, "'videos': has 'fps' 0.0"),
    "crop reversed": (
        {"videos": [{"path": "a.mp4", "start_s": 5.0, "end_s": 2.0}]},
        "'videos': has an impossible crop, 5.0 s to 2.0 s",
    ),
    "video object": ({"videos": [object()]}, "'videos': has an entry of type object"),
    "no prompt": ({"prompt": None}, "'prompt': is missing"),
    "no completion": ({"completion": None}, "'completion': is missing"),
    "prompt ends": ({"prompt": [user(), *assistant("Yes.")]}, "'prompt': ends with a message of the assistant"),
    "prompt string": ({"prompt": "When?"}, "'prompt': is 'When\\?', not a list of messages"),
    "unknown role": ({"prompt": [{"role": "human", "content": "When?"}]}, "'prompt': .* role 'human'"),
    "unknown part": ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "'prompt': has the part .*audio"),
    "no image": ({"prompt": asks_of_images()}, "'images': has length 0, but the prompt has 1 image parts"),
    "no image part": ({"images": ["a.png"]}, "'images': has length 1, but the prompt has 0 image parts"),
    "an image less": (
        {"prompt": asks_of_images(2), "images": ["a.png"]},
        "'images': has length 1, .* has 2 image parts",
    ),
    "image in system": (
        {"images": ["a.png"], "prompt": [{"role": "system", "content": [{"type": "image"}]}, user()]},
        "'prompt': has an image part outside the user's messages",
    ),
    "image in answer": (
        {"completion": [{"role": "assistant", "content": [{"type": "image"}]}]},
        "'completion': has an image part",
    ),
    "video in images": (
        {"prompt": asks_of_images(), "images": ["a.Mp4"]},
        "'images': has a video among its images, 'a.Mp4'. Put it into 'videos', with a part",
    ),
    "video entry in images": (
        {"prompt": asks_of_images(), "images": [{"path": "a", "end_s": 2.0}]},
        "'images': has a video among its images, 'a'. Put it into 'videos'",
    ),
    "image without source": (
        {"prompt": asks_of_images(), "images": [{"path": None, "bytes": None}]},
        "'images': has the image {}",
    ),
    "image with more": (
        {"prompt": asks_of_images(), "images": [{"path": "a.png", "size": 4}]},
        "'images': has the image {'path': 'a.png', 'size': 4}",
    ),
    "image None": ({"prompt": asks_of_images(), "images": [None]}, "'images': has an image of type NoneType"),
    "image a number": ({"prompt": asks_of_images(), "images": [3]}, "'images': has an image of type int"),
    "image in videos": ({"videos": ["a.PNG"]}, "'videos': names an image, 'a.PNG'. Put it into 'images'"),
    "image struct in videos": ({"videos": [{"path": "a.jpg"}]}, "'videos': names an image, 'a.jpg'"),
    "bare frames": (
        {"videos": [["1.png", "2.png"]]},
        r"'videos': has an entry that is a list .*{\"frames\": .*\"fps\"",
    ),
    "timeless frames": ({"videos": [{"frames": ["1.png"]}]}, "'videos': has 'frames' without 'fps'"),
    "no frames": ({"videos": [{"frames": [], "fps": 2.0}]}, r"'videos': has 'frames' that are \[\]"),
    "frames None": ({"videos": [{"frames": [None], "fps": 2.0}]}, "'videos': has an image of type NoneType"),
    "videos as frames": (
        {"videos": [{"frames": ["a.mp4"], "fps": 2.0}]},
        "'videos': has a video among its images, 'a.mp4'. Name the images that are its frames",
    ),
    "frames and folder": (
        {"videos": [{"frames": ["1.png"], "frames_dir": "a", "fps": 1.0}]},
        "'videos': has an entry with no source or two",
    ),
    "frames with fps zero": ({"videos": [{"frames": ["1.png"], "fps": 0.0}]}, "'videos': has 'fps' 0.0"),
    "text without text": ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "a text part without text"),
    "no content": ({"prompt": [{"role": "user"}]}, "'prompt': has a message with the content None"),
    "answer by user": ({"completion": [user("Yes.", 0)]}, "'completion': has messages of the roles user"),
    "two answers": (
        {"completion": assistant("</evi> Yes.") * 2},
        "'completion': has messages of the roles assistant, assistant",
    ),
    "empty answer": ({"completion": assistant("  ")}, "'completion': is empty"),
    "evidence without video": (
        TEXT_ONLY | {"completion": assistant("<evi> </evi> Yes <evi>."), "spans": [[1.0, 2.0]]},
        "'completion': refers to evidence, but the row has no video",
    ),
}


@pytest.mark.parametrize("fault", SFT_FAULTS)
def test_bad_sft_rows(fault):
    changes, message = SFT_FAULTS[fault]
    with pytest.raises(RowError, match=message) as caught:
        validate_row(sft_row(**changes), kind="sft", index=3)
    text = str(caught.value)
    assert text.startswith("row 3 (id 'disc-7'), column '")
    assert text.count(". ") >= 1 and text.endswith("."), "fault and mend are sentences of their own"


PREFERENCE_FAULTS = {
    "equal": ({"rejected_spans": [[1.0, 2.5]]}, "'rejected': is equal to 'chosen', in text and spans"),
    "equal, other form": (
        {"rejected": [{"role": "assistant", "content": "<evi> </evi> It happens in <evi>. "}]}
        | {"rejected_spans": [[1, 2.5]]},
        "'rejected': is equal to 'chosen'",
    ),
    "no rejected": ({"rejected": None}, "'rejected': is missing"),
    "no rejected_spans": ({"rejected_spans": None}, "'rejected_spans': is missing"),
    "rejected count": ({"rejected_spans": []}, "'rejected_spans': has length 0, but 'rejected' has 1 <evi>"),
    "rejected reversed": ({"rejected_spans": [[6.0, 5.0]]}, "'rejected_spans': span 0 runs backwards"),
    "chosen no </evi>": ({"chosen": assistant("It happens in <evi>.")}, "'chosen': has no </evi>"),
}


@pytest.mark.parametrize("fault", PREFERENCE_FAULTS)
def test_bad_preference_rows(fault):
    changes, message = PREFERENCE_FAULTS[fault]
    with pytest.raises(RowError, match=message):
        validate_row(preference_row(**changes), kind="preference")


def test_row_is_named_by_what_is_known():
    row = sft_row(spans=None)
    with pytest.raises(RowError, match=r"^row \(id 'disc-7'\), column 'spans'"):
        validate_row(row, kind="sft")
    row["id"] = None
    with pytest.raises(RowError, match=r"^row, column 'spans'"):
        validate_row(row, kind="sft")
    with pytest.raises(RowError, match=r"^row 12, column 'spans'"):
        validate_row(row, kind="sft", index=12)


def test_unknown_kind():
    with pytest.raises(
        ValueError, match="kind is 'dpo'; it must be one of 'sft', 'preference', 'evaluation', 'prompt'"
    ):
        validate_row(sft_row(), kind="dpo")


def test_row_error_leaves_a_worker_process():
    with pytest.raises(RowError) as caught:
        validate_row(sft_row(spans=None), kind="sft", index=3)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_strip_none_parts_undoes_arrow():
    prompt = sft_row()["prompt"]
    messages = Dataset.from_dict({"prompt": [prompt]}, features=Features({"prompt": MESSAGES_FEATURE}))[0]["prompt"]
    assert messages[0]["content"][0] == {"type": "video", "text": None}
    assert strip_none_parts(messages) == prompt
    assert messages[0]["content"][0] == {"type": "video", "text": None}, "the input is left alone"
    assert strip_none_parts([{"role": "user", "content": "When?"}]) == [{"role": "user", "content": "When?"}]


@pytest.mark.parametrize("value", ["a.mp4", ["a.mp4"], {"path": "a.mp4", "bytes": None}, [{"path": "a.mp4"}]])
def test_coerce_videos(value, tmp_path):
    assert coerce_videos(value) == [{"path": "a.mp4"}]
    assert coerce_videos(None) == []
    assert coerce_videos(tmp_path) == [{"path": str(tmp_path)}]


def test_coerce_images(tmp_path):
    image = PILImage.new("RGB", (4, 4))
    assert coerce_images(None) == coerce_images([]) == []
    assert coerce_images("a.png") == coerce_images(["a.png"]) == ["a.png"]
    assert coerce_images([tmp_path / "a.png", image]) == [tmp_path / "a.png", image]
    with pytest.raises(RowError, match="column 'images': has an image of type Video"):
        coerce_images(Video())


def test_video_key_tells_pixels_apart():
    def key(seed, mode="array", fps=2.0):
        array = np.random.default_rng(seed).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
        frames = {"array": array, "arrays": list(array), "images": [PILImage.fromarray(frame) for frame in array]}
        return video_key({"frames": frames[mode], "fps": fps})

    assert key(0) == key(0) and key(0, "arrays") == key(0, "arrays") == key(0, "images")
    assert len({key(0), key(1), key(0, fps=1.0), key(0, "images"), key(1, "images")}) == 5
    palettes = [PILImage.new("P", (4, 4)) for _ in range(2)]
    palettes[1].putpalette([9, 9, 9] * 256)
    assert len({video_key({"frames": [image], "fps": 1.0}) for image in palettes}) == 2
    assert len({video_key({"frames": [{"bytes": data}], "fps": 1.0}) for data in (b"0", b"1")}) == 2
    assert video_key({"path": "a.mp4", "start_s": 1.0}) == video_key({"start_s": 1.0, "path": "a.mp4"})


def test_image_columns_are_not_decoded():
    """Checking a dataset opens no image: these are not there."""
    rows = [sft_row(prompt=asks_of_images(2), images=["no_such_file.png", name]) for name in ("nor_this.png", "a.mkv")]
    dataset = Dataset.from_list(rows).cast_column("images", List(Image()))
    (fault,) = find_faults(dataset.remove_columns("id"), "sft")
    assert (fault.index, fault.column) == (1, "images") and "'a.mkv'" in fault.fault


def test_video_columns_are_not_decoded():
    rows = [sft_row(videos="no_such_file.mp4"), sft_row(videos="nor_this.mp4")]
    dataset = Dataset.from_list(rows).cast_column("videos", Video())
    validate_dataset(dataset, "sft")
    assert coerce_videos(without_video_decoding(dataset)[0]["videos"]) == [{"path": "no_such_file.mp4"}]

    rows = [sft_row(videos=["no_such_file.mp4"])]
    dataset = Dataset.from_list(rows).cast_column("videos", List(Video()))
    validate_dataset(dataset, "sft")
    assert coerce_videos(without_video_decoding(dataset)[0]["videos"]) == [{"path": "no_such_file.mp4"}]


def dataset_with_bad_rows(bad):
    rows = [
        sft_row(id=f"clip-{i}", spans=[[6.0, 4.0], [7.0, 8.0]] if i in bad else [[1.0, 2.0], [4.0, 5.0]])
        for i in range(5)
    ]
    return Dataset.from_list(rows)


def test_validate_dataset_names_the_first_bad_row():
    validate_dataset(dataset_with_bad_rows([]), "sft")
    with pytest.raises(RowError, match=r"row 2 \(id 'clip-2'\), column 'spans'"):
        validate_dataset(dataset_with_bad_rows([2, 4]), "sft")
    with pytest.raises(RowError, match="'completion': is missing. A row of kind 'sft' needs the columns prompt, comp"):
        validate_dataset(dataset_with_bad_rows([]).remove_columns("completion"), "sft")


def test_a_dataset_with_none_of_the_columns_is_bad():
    faults = find_faults(Dataset.from_dict({"question": ["When?", "Who?"]}), "sft")
    assert [(fault.index, fault.column, fault.fault) for fault in faults] == [
        (0, "prompt", "is missing"),
        (1, "prompt", "is missing"),
    ]


def test_filter_bad_rows_counts_and_lists(tmp_path):
    manifest = tmp_path / "skipped" / "rows.jsonl"
    with pytest.warns(UserWarning, match=r"skipped 2 of 5 rows; .*rows.jsonl says which and why"):
        kept = filter_bad_rows(dataset_with_bad_rows([2, 4]), "sft", manifest)
    assert kept["id"][:] == ["clip-0", "clip-1", "clip-3"]
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [(entry["index"], entry["id"]) for entry in entries] == [(2, "clip-2"), (4, "clip-4")]
    assert "runs backwards" in entries[0]["reason"]


def test_filter_bad_rows_without_bad_rows(tmp_path, recwarn):
    dataset = dataset_with_bad_rows([])
    assert filter_bad_rows(dataset, "sft", tmp_path / "rows.jsonl") is dataset
    assert (tmp_path / "rows.jsonl").read_text() == ""
    assert not recwarn


def test_filter_bad_rows_with_nothing_left(tmp_path):
    with pytest.raises(ValueError, match="all 5 rows are bad"):
        filter_bad_rows(dataset_with_bad_rows(range(5)), "sft", tmp_path / "rows.jsonl")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=20).filter(str.strip)


@st.composite
def valid_rows(draw):
    duration_s = draw(st.floats(0.5, 1e4))
    edges = draw(st.lists(st.floats(0, duration_s), min_size=0, max_size=12, unique=True).map(sorted))
    spans = [[edges[i], edges[i + 1]] for i in range(0, len(edges) - 1, 2)]
    task = draw(st.sampled_from(["dense", "grounding", "qa"]))
    if task == "dense":
        response = format_dense([draw(WORDS) for _ in spans])
    elif task == "grounding":
        response = format_grounding(len(spans))
    else:
        response = format_qa(draw(WORDS), len(spans))
    return {
        "id": draw(st.none() | WORDS),
        "source": "test",
        "task": task,
        "videos": draw(st.sampled_from([["a.mp4"], [{"path": "a.mp4"}], [{"frames_dir": "a", "fps": 2.0}]])),
        "prompt": [user(draw(WORDS))],
        "prompt_spans": None,
        "completion": assistant(response),
        "spans": spans,
        "answer": "",
        "captions": [],
        "all_spans": [],
        "duration": draw(st.sampled_from([None, duration_s])),
    }


@given(valid_rows())
def test_random_valid_rows_pass_before_and_after_arrow(row):
    validate_row(row, kind="sft")
    row["videos"] = coerce_videos(row["videos"])
    validate_dataset(Dataset.from_list([row], features=SFT_FEATURES), "sft")


@given(valid_rows(), st.data())
def test_random_rows_with_one_mutated_span_fail(row, data):
    if not row["spans"]:
        row["spans"], row["completion"] = [[0.0, 0.5]], assistant(format_grounding(1))
    position = data.draw(st.integers(0, len(row["spans"]) - 1))
    start_s, end_s = row["spans"][position]
    bad = data.draw(st.sampled_from([[end_s, start_s], [start_s, start_s], [-0.1, end_s], [start_s, math.inf]]))
    row["spans"][position] = bad
    assert span_fault(bad) is not None
    with pytest.raises(RowError, match=f"'spans': span {position} "):
        validate_row(row, kind="sft")


def test_repeated_ids():
    drawn = [sft_row(id=id) for id in ("a", None, "b", "a", None, "a")]
    for dataset in (drawn, Dataset.from_list(drawn)):
        faults = find_faults(dataset, "sft")
        assert [(fault.index, fault.id, fault.column) for fault in faults] == [(3, "a", "id"), (5, "a", "id")]
        assert str(faults[1]) == (
            "row 5 (id 'a'), column 'id': is also the id of row 0. Give every row an id of its own; choices are drawn "
            "from it."
        )
        with pytest.raises(RowError, match=r"row 3 \(id 'a'\), column 'id': is also the id of row 0"):
            validate(dataset, "sft")
        validate_dataset(dataset, "sft")  # training asks for no ids
    validate(Dataset.from_list(drawn).remove_columns("id"), "sft")


def test_faults_come_in_order_and_up_to_a_limit():
    dataset = dataset_with_bad_rows([1, 3, 4])
    assert [fault.index for fault in find_faults(dataset, "sft")] == [1, 3, 4]
    assert [fault.index for fault in find_faults(dataset, "sft", limit=2)] == [1, 3]
    assert find_faults(dataset_with_bad_rows([]), "sft") == []
    with pytest.raises(RowError, match=r"row 1 \(id 'clip-1'\), column 'spans': span 0 runs backwards"):
        validate(dataset, "sft")


def test_faults_behind_the_first_batch(monkeypatch):
    monkeypatch.setattr("trl_temporal.data.schema.BATCH_SIZE", 2)
    assert [fault.index for fault in find_faults(dataset_with_bad_rows([3, 4]), "sft")] == [3, 4]


def test_kind_of():
    assert kind_of(PREFERENCE_FEATURES) == "preference"
    assert kind_of(EVALUATION_FEATURES) == "evaluation"
    assert kind_of(SFT_FEATURES) == "sft"
    assert kind_of(["prompt", "videos"]) == "prompt"


def test_rows_have_every_column():
    row = rows.sft_row(
        id="a",
        source="s",
        task="qa",
        video={"path": "a.mp4"},
        question="What is in <evi>?",
        response="</evi> A disc.",
        spans=[],
        all_spans=[[1, 2]],
        duration=4.0,
        prompt_spans=[(1, 2)],
    )
    assert list(row) == list(SFT_FEATURES)
    assert row["prompt_spans"] == [[1, 2]]
    validate(Dataset.from_list([row], features=SFT_FEATURES), "sft")
