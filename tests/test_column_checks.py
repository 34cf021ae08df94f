# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The checks of whole columns say the same as those of single rows."""

import math

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_schema import PREFERENCE_FAULTS, SFT_FAULTS, asks_of_images, assistant, preference_row, sft_row, user
from trl_temporal.data import column_checks, rows
from trl_temporal.data.grammar import format_grounding, format_qa
from trl_temporal.data.schema import (
    EVALUATION_FEATURES,
    PREFERENCE_FEATURES,
    SFT_FEATURES,
    SPANS_FEATURE,
    VIDEOS_FEATURE,
    RowError,
    find_faults,
    validate_dataset,
    validate_row,
)


def faulty(draw):
    """Whether to draw something bad: seldom, so that rows with one fault and rows with none are found too."""
    return draw(st.integers(0, 19)) == 19


def span_cells(draw, num_spans):
    """A cell of spans, mostly of `num_spans` good ones."""
    if not faulty(draw):
        return [[float(k), k + 0.5] for k in range(num_spans)]
    edges = st.sampled_from([None, math.nan, math.inf, -1.0, 0.0, 1.0, 2.5, 10.04, 10.2, 2.0**60])
    return draw(st.none() | st.lists(st.none() | st.lists(edges, max_size=3), max_size=3))


def text_parts(draw, text):
    """Parts of a text that may be cut anywhere, also inside a marker."""
    cut = draw(st.integers(0, len(text)))
    texts = [text[:cut], text[cut:]] if draw(st.booleans()) else [text]
    return [{"type": "text", "text": part} for part in texts]


def responses(draw, num_spans):
    if not faulty(draw):
        text = draw(st.sampled_from([format_grounding(num_spans), format_qa("Ein grüner Ball ⚽", num_spans)]))
    else:
        pieces = ["<evi>", "</evi>", "<e", "vi>", " ", "\x1c", "\u3000", "\v", "a", "."]
        text = draw(st.lists(st.sampled_from(pieces), max_size=6).map("".join))
    messages = [{"role": "assistant", "content": text_parts(draw, text)}]
    faults = [
        None,
        [],
        [None],
        messages * 2,
        [{"role": None, "content": messages[0]["content"]}],
        [{"role": "user", "content": messages[0]["content"]}],
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "content": [{"type": "video", "text": None}, *messages[0]["content"]]}],
        [{"role": "assistant", "content": [{"type": "text", "text": None}]}],
        [{"role": "assistant", "content": [{"type": "image", "text": None}, *messages[0]["content"]]}],
        [{"role": "assistant", "content": [{"type": "audio", "text": "a"}, None]}],
    ]
    return draw(st.sampled_from(faults)) if faulty(draw) else messages


def prompts(draw, num_spans, has_video, num_images=0):
    question = "What is in" + " <evi>" * num_spans + "?"
    parts = [{"type": "video", "text": None}] * has_video + text_parts(draw, question)
    parts = [{"type": "image", "text": None}] * num_images + parts
    ask = {"role": "user", "content": parts}
    faults = [
        None,
        [],
        [ask, {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}],
        [{"role": "system", "content": parts}, {"role": "user", "content": [{"type": "text", "text": "?"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "</e"}]}, {"role": "user", "content": parts}],
        [{"role": "user", "content": parts * 2}],
        [{"role": "robot", "content": parts}],
        [{"role": "user", "content": [*parts, {"type": "text", "text": "</evi>"}]}],
        [{"role": "user", "content": [*parts, {"type": "video", "text": "a"}]}],
        [{"role": "user", "content": [*parts, {"type": "image", "text": "a"}]}],
    ]
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief, <e"}]}
    good = [[ask], [ask], [system, ask]]
    return draw(st.sampled_from(faults)) if faulty(draw) else draw(st.sampled_from(good))


def video_cells(draw, has_video):
    if not has_video:
        return draw(st.sampled_from([None, []]))
    entry = dict.fromkeys((*rows.VIDEO_FIELDS, "frames"))
    good = [{"path": "a.mp4"}, {"frames_dir": "a", "fps": 2.0}, {"path": "a.mp4", "start_s": 1.0, "end_s": 4.0}]
    good += [{"frames": ["1.png", "2.png"], "fps": 2.0, "end_s": 1.0}]
    bad = [
        {},
        {"path": "a.mp4", "frames_dir": "a", "fps": 1.0},
        {"path": "a.mp4", "fps": 1.0},
        {"frames_dir": "a"},
        {"frames_dir": "a", "fps": math.nan},
        {"path": "a.mp4", "start_s": -1.0},
        {"path": "a.mp4", "start_s": 4.0, "end_s": 2.0},
        {"path": "a.mp4", "end_s": math.nan},
        {"path": "a.mp4", "start_s": math.inf},
        {"path": "a.JPG"},
        {"path": "a.mp4", "frames": ["1.png"], "fps": 2.0},
        {"frames": ["1.png"]},
        {"frames": [], "fps": 2.0},
        {"frames": ["1.png", None], "fps": 2.0},
        {"frames": ["1.png", "2.mp4"], "fps": 2.0},
        {"frames": ["1.png"], "fps": math.inf},
    ]
    if faulty(draw):
        return draw(st.sampled_from([[entry | bad[0]] * 2, [None], *([entry | fields] for fields in bad)]))
    return [entry | draw(st.sampled_from(good))]


def image_cells(draw, num_images):
    good = [{"path": "a.png", "bytes": None}, {"path": None, "bytes": b"0"}, {"path": "a", "bytes": b"0"}]
    bad = [None, {"path": None, "bytes": None}, {"path": "a.MKV", "bytes": None}, {"path": "a.avi", "bytes": b"0"}]
    cells = draw(st.lists(st.sampled_from(good), min_size=num_images, max_size=num_images))
    if faulty(draw):
        return draw(st.sampled_from([[*cells, good[0]], cells[1:], *([*cells[1:], image] for image in bad)]))
    return cells or draw(st.sampled_from([None, []]))


@st.composite
def some_rows(draw, features):
    """Rows of which some are good and the others have all kinds of faults."""
    found = []
    for _ in range(draw(st.integers(1, 9))):
        num_spans, num_asked, has_video = draw(st.integers(0, 2)), draw(st.integers(0, 1)), draw(st.booleans())
        num_spans, num_asked = (num_spans, num_asked) if has_video else (0, 0)
        row = dict.fromkeys(features)
        row["id"] = draw(st.none() | st.sampled_from("abcdef"))
        row["videos"] = video_cells(draw, has_video)
        num_images = draw(st.integers(0, 2))
        row["images"] = image_cells(draw, num_images)
        row["prompt"] = prompts(draw, num_asked, has_video, num_images)
        row["prompt_spans"] = span_cells(draw, num_asked)
        row["duration"] = draw(st.sampled_from([1.6, math.nan, -1.0, math.inf] if faulty(draw) else [None, 10.0]))
        for column in set(features) & {"completion", "chosen", "rejected"}:
            row[column] = responses(draw, num_spans)
        for column in set(features) & {"spans", "chosen_spans", "rejected_spans"}:
            row[column] = span_cells(draw, num_spans)
        if "response_spans" in features:
            row["response_spans"] = draw(st.none() | st.just([[0.0, 1.0]] * num_spans))
        if "options" in features:
            row["options"] = draw(st.sampled_from([["a", " "], ["a", None]] if faulty(draw) else [["a", "b"]]))
            row["answer_index"] = draw(st.sampled_from([2, -1] if faulty(draw) else [None, 0, 1]))
            row["saliency"] = draw(st.sampled_from([[math.nan], [None]] if faulty(draw) else [None, [], [0.5]]))
            row["options"] = None if row["answer_index"] is None else row["options"]
        found.append(row)
    return found


def faults_by_row(dataset, kind):
    """What `validate_row` says of each row."""
    found = []
    for index, row in enumerate(dataset):
        try:
            validate_row(row, kind=kind, index=index)
        except RowError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("kind", ["sft", "preference", "evaluation", "prompt"])
def test_columns_and_rows_agree(kind):
    columns = {"sft": SFT_FEATURES, "preference": PREFERENCE_FEATURES, "evaluation": EVALUATION_FEATURES}
    video = VIDEOS_FEATURE.feature | {"frames": List(Value("string"))}
    image = {"path": Value("string"), "bytes": Value("binary")}
    features = Features(
        columns.get(kind, SFT_FEATURES)
        | {"response_spans": SPANS_FEATURE, "videos": List(video), "images": List(image)}
    )
    seen = {"good": 0, "bad": 0, "suspected": 0}

    @settings(max_examples=60, deadline=None)
    @given(some_rows(features), st.randoms(use_true_random=False))
    def check(drawn, random):
        dataset = Dataset.from_list(drawn, features=features)
        if random.random() < 0.5:  # rows of a selection are not those of the table, and slices have offsets
            dataset = dataset.select(random.choices(range(len(drawn)), k=len(drawn)))
        elif random.random() < 0.5:
            dataset = dataset.select(range(len(drawn) // 2, len(drawn)))
        expected = faults_by_row(dataset, kind)
        found = find_faults(dataset, kind)
        assert [str(fault) for fault in found if "also the id" not in fault.fault] == expected
        assert find_faults(dataset.to_list(), kind) == found, "rows alone say the same as columns"
        if expected:
            with pytest.raises(RowError) as caught:
                validate_dataset(dataset, kind)
            assert str(caught.value) == expected[0]
        else:
            validate_dataset(dataset, kind)
        seen["bad"] += len(expected)
        seen["good"] += len(dataset) - len(expected)
        suspected = column_checks.suspicious_rows(dataset.with_format("arrow")[:], kind).sum()
        seen["suspected"] += suspected - len(expected)

    check()
    assert seen["good"] and seen["bad"], seen
    assert seen["suspected"] <= 0.05 * seen["good"], "good rows are not read one by one"


@pytest.mark.parametrize("fault", SFT_FAULTS | PREFERENCE_FAULTS)
def test_every_fault_of_a_row_is_found_in_columns(fault):
    kind, good, changes = "sft", sft_row(), SFT_FAULTS.get(fault, [None])[0]
    if changes is None:
        kind, good, changes = "preference", preference_row(), PREFERENCE_FAULTS[fault][0]
    try:
        dataset = Dataset.from_list([good | changes])
    except (pa.ArrowException, TypeError):
        pytest.skip("Arrow cannot hold this")
    assert [str(error) for error in find_faults(dataset, kind)] == faults_by_row(dataset, kind) != []


PLAIN = [{"role": "user", "content": "Hello?"}]
COLUMN_TYPES = {
    "path": {"videos": ["a.mp4"] * 2},
    "paths": {"videos": [["a.mp4"]] * 2},
    "no video": {"videos": [["a.mp4"], []]},
    "image": {"images": ["a.png"] * 2, "prompt": [asks_of_images()] * 2},
    "images": {"images": [["a.png"]] * 2, "prompt": [asks_of_images()] * 2},
    "video in images": {"images": [["a.png"], ["a.webm"]], "prompt": [asks_of_images()] * 2},
    "image and its size": {
        "images": [[{"path": "a.png", "size": size}] for size in (None, 4)],
        "prompt": [asks_of_images()] * 2,
    },
    "images are numbers": {"images": [[3], [4]], "prompt": [asks_of_images()] * 2},
    "frames of images": {"videos": [[{"frames": [{"path": path}], "fps": 2.0}] for path in ("a.png", "a.mp4")]},
    "frames of frames": {"videos": [[["1.png"]], [["1.png"]]]},
    "unknown key": {"videos": [[{"path": "a.mp4", "start": None}], [{"path": "a.mp4", "start": 2.0}]]},
    "bytes": {"videos": [{"path": "a.mp4", "bytes": None}, {"path": None, "bytes": b"0"}]},
    "text messages": {"prompt": [PLAIN, PLAIN], "videos": [None, None], "spans": [[], []]}
    | {"completion": [[{"role": "assistant", "content": text}] for text in ("Yes.", " ")]},
    "string prompt": {"prompt": ["When?", "When?"]},
    "flat spans": {"spans": [[1.0, 2.0], [1.0, 2.0]]},
    "integers": {"spans": [[[1, 2], [3, 4]], [[1, 2], [5, 4]]], "duration": [10, 10]},
    "booleans": {"duration": [True, False]},
    "texts": {"duration": ["10", "10"]},
    "no spans": {"spans": [[], []]},
    "no completion": {"completion": [None, None]},
}


@pytest.mark.parametrize("name", COLUMN_TYPES)
def test_columns_of_other_types(name):
    good = sft_row(completion=assistant("<evi> <evi> </evi> In <evi> and <evi>."))
    dataset = Dataset.from_dict({column: [cell] * 2 for column, cell in good.items()} | COLUMN_TYPES[name])
    faults = find_faults(dataset.remove_columns("id"), "sft")
    assert [str(fault) for fault in faults] == faults_by_row(dataset.remove_columns("id"), "sft")
    assert bool(faults) == (name not in ("path", "paths", "image", "images"))


@pytest.mark.parametrize("spans", [List(List(Value("float32"))), List(List(Value("float64"), length=2))])
def test_spans_of_other_widths(spans):
    features = Features(SFT_FEATURES | {"spans": spans})
    drawn = [dict.fromkeys(features) | sft_row(spans=[[1.0, 2.5], [4.0, end_s]]) for end_s in (6.0, 3.0, 12.0)]
    for row in drawn:
        row["videos"] = [dict.fromkeys(rows.VIDEO_FIELDS) | {"path": "a.mp4"}]
        row["prompt"][0]["content"][0] = {"type": "video", "text": None}
    dataset = Dataset.from_list(drawn, features=features)
    assert [fault.index for fault in find_faults(dataset, "sft")] == [1, 1, 2, 2]


def test_columns_of_large_types():
    """As polars writes them."""
    text = Value("large_string")
    messages = datasets.LargeList({"role": text, "content": datasets.LargeList({"type": text, "text": text})})
    drawn = [
        {"prompt": [user("Hello?", 0)], "completion": assistant(answer), "spans": []}
        for answer in ("Hi.", " ", "<evi>")
    ]
    spans = datasets.LargeList(datasets.LargeList(Value("float64")))
    features = Features({"prompt": messages, "completion": messages, "spans": spans})
    dataset = Dataset.from_list(drawn, features=features)
    assert column_checks.suspicious_rows(dataset.with_format("arrow")[:], "sft").tolist() == [False, True, True]
    assert [str(fault) for fault in find_faults(dataset, "sft")] == faults_by_row(dataset, "sft")
