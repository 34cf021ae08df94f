# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`convert`: what is on disk afterwards, coverage of videos, policies, broken files; and what the converters share."""

import json
import re
from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.data import converters
from trl_temporal.data.convert import LICENCES, READERS, convert
from trl_temporal.data.converters.annotation_files import RecordFault, read_json_list
from trl_temporal.data.converters.records import VideoFinder, mend_spans
from trl_temporal.data.converters.templates import TEMPLATES, instruction
from trl_temporal.data.schema import PREFERENCE_FEATURES, SFT_FEATURES, validate_dataset

EVENTS = "video,start,end,caption\na.mp4,3,4.5,He sits\nb.mp4,0.5,2,A cat\na.mp4,1,2,It rains ☔\n"


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(EVENTS, encoding="utf-8")
    return path


def turn(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def instructions(tmp_path):
    """A file in the form of E.T. Instruct whose record 1 is bad."""
    common = {"task": "tvg", "source": "coin", "video": "coin/雨.mp4", "duration": 10.0}
    records = [
        common | {"conversations": turn("<image>\nWhen?", "In <vid> - <vid>."), "tgt": tgt}
        for tgt in ([1, 2], [1, 2, 3], [4, 5])
    ]
    path = tmp_path / "et.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")  # bytes are not characters
    return path


def test_both_loaders_read_it(events, tmp_path):
    report = convert("spans_file", events, tmp_path / "made", split="validation")
    from_disk = datasets.load_from_disk(tmp_path / "made")
    loaded = datasets.load_dataset(str(tmp_path / "made"), cache_dir=str(tmp_path / "cache"))
    assert list(from_disk) == list(loaded) == ["validation"]
    for dataset in (from_disk["validation"], loaded["validation"]):
        assert dataset.features == SFT_FEATURES
        validate_dataset(dataset, "sft")
        assert len(dataset) == report.rows == 5
        assert dataset["captions"][0] == ["It rains ☔", "He sits"]
    assert (report.records, report.segments, len(report.videos)) == (2, 3, 2)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_card_and_table(events, tmp_path, capsys):
    convert("spans_file", events, tmp_path / "made", video_root=None, seed=3)
    card = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    for text in ("| rows | 5 |", "| rows, dense | 2 |", "| file | `events.csv` |", "| seed | `3` |", "sha256", "☔"):
        assert text in card
    assert LICENCES["spans_file"] in card
    assert str(tmp_path) not in card, "the card may be published"
    table = capsys.readouterr().out
    assert "annotated intervals" in table and "not looked for: no video root" in table


def test_same_rows_again_and_other_wordings_with_another_seed(events, tmp_path):
    def rows(name, seed):
        convert("spans_file", events, tmp_path / name, seed=seed)
        return datasets.load_from_disk(tmp_path / name)["train"].to_list()

    assert rows("a", 0) == rows("b", 0)
    assert any(rows(f"seed{seed}", seed) != rows(f"again{seed}", 0) for seed in (1, 2, 3))


def test_coverage_of_videos(events, tmp_path, capsys):
    videos = tmp_path / "videos" / "deep"
    videos.mkdir(parents=True)
    (videos / "b.mkv").touch()
    report = convert("spans_file", events, tmp_path / "made", video_root=tmp_path / "videos")
    dataset = datasets.load_from_disk(tmp_path / "made")["train"]
    assert {row["videos"][0]["path"] for row in dataset} == {str(videos / "b.mkv")}
    assert report.missing_videos == {"a.mp4"} and report.rows_without_video == 3 and report.rows == 2
    assert (tmp_path / "made" / "missing_videos.txt").read_text() == "a.mp4\n"
    assert "1 (50.0%)" in capsys.readouterr().out
    assert str(tmp_path) not in (tmp_path / "made" / "README.md").read_text()


def test_no_video_at_all(events, tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match="none of the 2 videos is there, such as 'a.mp4'"):
        convert("spans_file", events, tmp_path / "made", video_root=tmp_path / "videos")
    with pytest.raises(FileNotFoundError, match="video_root .* is not a folder"):
        convert("spans_file", events, tmp_path / "made", video_root=tmp_path / "nowhere")
    assert not (tmp_path / "made").exists()


def test_finding_videos(tmp_path):
    for name in ("a.mp4", "x/b.webm", "x/c.mp4", "y/c.mp4", "x/d_60.0_210.0.MP4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    find = VideoFinder(tmp_path).find
    assert find("a") == find("a.mp4") == find("a.avi") == str(tmp_path / "a.mp4")
    assert find("x/b.mp4") == find("b") == str(tmp_path / "x" / "b.webm")
    assert find("d_60.0_210.0") == str(tmp_path / "x" / "d_60.0_210.0.MP4")
    assert find("c") is None, "there are two"
    assert find("y/b.mp4") is None, "a name with a folder is not looked for elsewhere"
    assert find("e") is None
    without_root = VideoFinder(None).find
    assert (without_root("a"), without_root("a_1.0_2.0"), without_root("a.avi")) == ("a.mp4", "a_1.0_2.0.mp4", "a.avi")


def test_policies(instructions, tmp_path):
    with pytest.raises(converters.RecordError, match="et.json, record 1, tgt: has 3 times, an odd count"):
        convert("etinstruct", instructions, tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["et.json"], "nothing half-written stays"
    report = convert("etinstruct", instructions, tmp_path / "made", on_bad_record="skip")
    assert datasets.load_from_disk(tmp_path / "made")["train"]["id"][:] == ["etinstruct-0", "etinstruct-2"]
    (skipped,) = map(json.loads, (tmp_path / "made" / "skipped.jsonl").read_text().splitlines())
    assert skipped == report.skipped[0]
    assert skipped["record"] == "record 1" and skipped["reason"].startswith("tgt: has 3 times")
    with pytest.raises(ValueError, match="on_bad_record is 'ignore'; it must be 'raise' or 'skip'"):
        convert("etinstruct", instructions, tmp_path / "other", on_bad_record="ignore")


def test_nothing_usable(instructions, tmp_path):
    records = json.loads(instructions.read_text(encoding="utf-8"))
    instructions.write_text(json.dumps(records[1:2]))
    with pytest.raises(ValueError, match="none of the 1 records can be used. The first: record 0, tgt"):
        convert("etinstruct", instructions, tmp_path / "made", on_bad_record="skip")
    instructions.write_text("[]")
    with pytest.raises(ValueError, match="has no records"):
        convert("etinstruct", instructions, tmp_path / "made")


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_json_that_stops(instructions, tmp_path, policy):
    text = instructions.read_text(encoding="utf-8").replace("[1, 2, 3]", "[1, 2]")
    instructions.write_text(text[: text.index("[4, 5]")], encoding="utf-8")
    size = instructions.stat().st_size
    pattern = rf"et.json: the JSON stops before its end, at record 2, byte {size}, line 1 .* fetch it again"
    with pytest.raises(ValueError, match=pattern):
        convert("etinstruct", instructions, tmp_path / "made", on_bad_record=policy, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["et.json"]


@given(st.data())
def test_json_cut_anywhere_is_an_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "et.json"
    records = [{"ö": [1, {"b": "☔"}]}, {}, {"c": None}]
    text = json.dumps(records, ensure_ascii=False, indent=data.draw(st.sampled_from([None, 2])))
    path.write_text(text, encoding="utf-8")
    assert [record.data for record in read_json_list(path)] == records
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    path.write_text(cut, encoding="utf-8")
    with pytest.raises(ValueError, match=r"et.json: (the JSON stops|the JSON is broken|is not a JSON list)") as error:
        list(read_json_list(path))
    if match := re.search(r"byte (\d+)", str(error.value)):
        assert int(match[1]) <= len(cut.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1} {"b": 2}]', "broken, at record 1, byte 10, line 1"),
        ('[{"a": 1}] x', "broken, at record 1, byte 11"),
        ('[{"a": 1},\n]', "record 1, byte 11, line 2"),
        ('{"a": 1}', "is not a JSON list"),
        (b"[\xff]", "byte 1 is no UTF-8"),
    ],
)
def test_broken_json_lists(tmp_path, content, message):
    path = tmp_path / "et.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        list(read_json_list(path))


def test_unknown_names_and_options(events, tmp_path):
    with pytest.raises(ValueError, match="no format 'charades'. The formats are: etinstruct, etbench, charades_sta"):
        convert("charades", events, tmp_path / "made")
    with pytest.raises(ValueError, match="'spans_file' takes no subset; only youcook2 and activitynet_captions do"):
        convert("spans_file", events, tmp_path / "made", subset="validation")
    assert set(LICENCES) == set(READERS)


def test_folder_that_is_there(events, tmp_path):
    (tmp_path / "made").mkdir()
    convert("spans_file", events, tmp_path / "made")
    with pytest.raises(FileExistsError, match="made' is there already"):
        convert("spans_file", events, tmp_path / "made")


def test_d2vlm(tmp_path):
    common = {"task": "dvc", "video": "a.mp4", "duration": 10.0}
    sft = common | {"conversations": turn("<image>\nWhen?", "<evi> </evi> In <evi>."), "tgt": [3, 2]}
    (tmp_path / "evi.json").write_text(json.dumps([sft, sft | {"tgt": [1, 2, 3, 4]}]))
    with pytest.raises(converters.RecordError, match="evi.json, record 1, row .*column 'spans': has length 2"):
        convert("d2vlm", tmp_path / "evi.json", tmp_path / "sft")
    report = convert("d2vlm", tmp_path / "evi.json", tmp_path / "sft", on_bad_record="skip")
    (row,) = datasets.load_from_disk(tmp_path / "sft")["train"]
    assert row["id"] == "evi-0" and row["spans"] == [[2.0, 3.0]] and report.segments == 1
    assert report.changes == {"records with intervals turned round or clipped": 1}

    pair = common | {
        "conversations": {"chosen": sft["conversations"], "reject_g_shift": sft["conversations"]},
        "tgt": {"chosen": [2, 3], "reject_g_shift": [6, 7]},
    }
    (tmp_path / "fpo.json").write_text(json.dumps([{"bad": 1}, pair]))
    convert("d2vlm_preference", tmp_path / "fpo.json", tmp_path / "pairs", on_bad_record="skip")
    dataset = datasets.load_from_disk(tmp_path / "pairs")["train"]
    assert dataset.features == PREFERENCE_FEATURES
    validate_dataset(dataset, "preference")
    (row,) = dataset
    assert (row["factor"], row["chosen_spans"], row["rejected_spans"]) == ("shift", [[2.0, 3.0]], [[6.0, 7.0]])


numbers = st.floats(-50, 150, allow_nan=False) | st.integers(-50, 150)


@given(st.lists(st.tuples(numbers, numbers), max_size=6), st.none() | st.floats(1, 120), st.booleans())
def test_mended_spans_are_good_spans(pairs, duration_s, nested):
    intervals = [list(pair) for pair in pairs] if nested else [edge for pair in pairs for edge in pair]
    changes = Counter()
    try:
        spans = mend_spans("tgt", intervals, duration_s, changes)
    except RecordFault:
        low, high = 0, float("inf") if duration_s is None else duration_s
        assert any(min(pair) < low or max(pair) > high or pair[0] == pair[1] for pair in pairs)
        return
    assert len(spans) == len(pairs) == changes["segments"]
    for (start_s, end_s), pair in zip(spans, pairs, strict=True):
        assert 0 <= start_s < end_s <= (duration_s or end_s)
        slack = 1.0 if duration_s is None else max(1.0, 0.05 * duration_s)
        assert min(pair) <= start_s <= min(pair) + slack and max(pair) - slack <= end_s <= max(pair)
    assert changes["intervals turned round"] == sum(a > b for a, b in pairs)
    num_changed = sum(span != sorted(map(float, pair)) for span, pair in zip(spans, pairs, strict=True))
    assert changes["intervals clipped"] == num_changed


@pytest.mark.parametrize("bad", [[1, 2, 3], [[1, 2], [3]], [[1, 2], 3], ["1", 2], [True, 2], 5, None, [[1, None]]])
def test_intervals_that_are_none(bad):
    with pytest.raises(RecordFault, match="tgt: (has|is) "):
        mend_spans("tgt", bad, 10.0, Counter())


def test_wordings():
    words = {"event": "a {cat} jumps", "label": "Ski", "question": "Why?", "options": "(A) a"}
    for kind, wordings in TEMPLATES.items():
        assert len(wordings) >= 4 and len(set(wordings)) == len(wordings)
        chosen = Counter(instruction(kind, f"row-{index}", 0, **words) for index in range(300))
        assert len(chosen) == len(wordings) and min(chosen.values()) > 20, "all are used, about evenly"
        assert instruction(kind, "row-1", 0, **words) == instruction(kind, "row-1", 0, **words)
        assert any(
            instruction(kind, "row-1", seed, **words) != instruction(kind, "row-1", 0, **words) for seed in range(9)
        )
        names = {name for wording in wordings for name in re.findall(r"{(\w+)}", wording)}
        assert all(re.findall(r"{(\w+)}", wording).count(name) == 1 for wording in wordings for name in names)


EXAMPLES = {
    "etinstruct": [
        {"task": "dvc", "source": "coin", "video": "a.mp4", "duration": 9.0, "src": [1], "tgt": [1, 2]}
        | {"conversations": turn("<image>\nWhat at <vid>?", "<vid> - <vid>, a cat.")}
    ],
    "etbench": [
        {"idx": 0, "task": "gvq", "source": "star", "video": "a.mp4", "duration": 9.0, "tgt": [1, 2], "p": 0, "q": "?"}
        | {"o": ["a", "b"]}
    ],
    "charades_sta": {"annotations": [{"image_id": "a.mp4", "caption": "he sits", "timestamp": [1, 2], "id": 0}]},
    "qvhighlights": [
        {"qid": 0, "query": "he sits", "vid": "a", "duration": 9, "relevant_windows": [[2, 4]]}
        | {"relevant_clip_ids": [1], "saliency_scores": [[1, 2, 3]]}
    ],
    "youcook2": {
        "database": {
            "a": {"duration": 9, "subset": "validation", "annotations": [{"segment": [1, 2], "sentence": "cut"}]}
        }
    },
    "activitynet_captions": {"a": {"duration": 9, "timestamps": [[1, 2]], "sentences": ["he sits"]}},
    "didemo": [{"annotation_id": 0, "description": "he sits", "video": "a.avi", "times": [[1, 2]], "num_segments": 6}],
    "spans_file": [{"video": "a", "start": 1, "end": 2, "caption": "he sits", "duration": 9}],
    "clip_events": [{"video": "a.mp4", "duration": 9, "events": [{"span": [1, 2], "caption": "he sits"}], "qa": []}],
    "d2vlm": [
        {"task": "tvg", "video": "a.mp4", "duration": 9.0, "tgt": [1, 2]}
        | {"conversations": turn("<image>\nWhen?", "<evi> </evi> In <evi>.")}
    ],
}
LINES = ("qvhighlights", "spans_file", "clip_events")


def places(value, path=()):
    """The paths to all values inside a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield from places(child, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", EXAMPLES)
@given(data=st.data())
def test_anything_is_a_row_or_a_fault(tmp_path_factory, name, data):
    """Whatever stands in one place of a file: rows that pass, or an error that names the file."""
    example = EXAMPLES[name]
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.mp4").touch()
    odd = st.sampled_from(
        [None, True, -1, 0, 7, 1e99, float("nan"), "", "x", "<evi>", "<vid>", [], [1], [[]], {}, ["x"]]
    )
    broken = replaced(example, data.draw(st.sampled_from([path for path in places(example) if path])), data.draw(odd))
    if name in LINES:
        path = folder / "file.jsonl"
        path.write_text("\n".join(map(json.dumps, broken)))
    else:
        path = folder / "file.json"
        path.write_text(json.dumps(broken))
    report = converters.ConversionReport()
    options = {"video_root": folder} if name == "clip_events" else {}
    try:
        rows = list(READERS[name](path, on_bad_record="skip", report=report, **options))
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert len(rows) == report.rows
    assert rows or report.skipped or report.missing_videos or not report.records
    for skipped in report.skipped:
        assert skipped["reason"].endswith(".") and ": " in skipped["reason"]
