# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Instruct and E.T. Bench: both spellings of times, all tasks, and what can be wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.data.converters import ConversionReport, RecordError, read_etbench, read_etinstruct
from trl_temporal.data.grammar import parse_captions, split_response

REQUEST = "The format of your response should be: 'The event happens in <start time> - <end time>'."


def record(answer, tgt=None, question="When does a cat jump?", src=None, task="tvg", **fields):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    made = {"task": task, "source": "coin", "video": "coin/a.mp4", "duration": 100.0, "conversations": turns}
    made |= {} if tgt is None else {"tgt": tgt}
    made |= {} if src is None else {"src": src}
    return made | fields


def vid(answer, *args, **kwargs):
    return record(answer.replace("#", "<vid>"), *args, **kwargs)


@pytest.fixture
def read(tmp_path):
    def run(*records, reader=read_etinstruct, **options):
        path = tmp_path / "et.json"
        path.write_text(json.dumps(records))
        return list(reader(path, **options))

    return run


def text_of(row):
    return row["prompt"][0]["content"][1]["text"], row["completion"][0]["content"][0]["text"]


def test_grounding(read):
    (row,) = read(vid("It is in # - #, and # - #.", [30, 40.5, 2, 9.25], question=f"When does a cat jump? {REQUEST}"))
    assert row["spans"] == [[2.0, 9.25], [30.0, 40.5]], "in time order"
    assert text_of(row) == ("When does a cat jump?", "<evi> <evi> </evi> It happens in <evi> and <evi>.")
    assert (row["id"], row["task"], row["source"]) == ("etinstruct-0", "grounding", "etinstruct/tvg/coin")
    assert row["videos"][0]["path"] == "coin/a.mp4" and row["duration"] == 100.0
    assert row["prompt_spans"] is None and row["all_spans"] == []


def test_dense(read):
    (row,) = read(vid("# - #, crack 2 - 3 eggs. # - #, stir: well, 5 minutes.", [36, 44, 49, 57], task="slc"))
    assert row["captions"] == ["crack 2 - 3 eggs", "stir: well, 5 minutes"]
    assert row["spans"] == row["all_spans"] == [[36.0, 44.0], [49.0, 57.0]]
    assert row["task"] == "dense"
    assert text_of(row)[1] == "<evi> <evi> </evi> <evi> crack 2 - 3 eggs. <evi> stir: well, 5 minutes."


def test_dense_with_leads(read):
    (row,) = read(vid("From # to #, a man walks in. From # to #, he sits down.", [[1, 2], [3, 4]], task="dvc"))
    assert row["captions"] == ["a man walks in", "he sits down"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("A red one. The event happens in # - #.", "A red one"),
        ("It is in # - #. He says: 'A red one.'", "He says: 'A red one.'"),
        ("A red one, seen in # - #.", "A red one, seen"),
    ],
)
def test_grounded_answer(read, answer, words):
    (row,) = read(vid(answer, [3, 4], task="gvq"))
    assert (row["task"], row["answer"], row["spans"]) == ("qa", words, [[3.0, 4.0]])
    assert text_of(row)[1] == f"<evi> </evi> {words} <evi>."


def test_question_about_a_segment(read):
    (row,) = read(record("A cat jumps.", question="What happens in <vid> - <vid>?", src=[12, 18], task="rvc"))
    assert text_of(row) == ("What happens in <evi>?", "</evi> A cat jumps.")
    assert row["prompt_spans"] == [[12.0, 18.0]] and row["spans"] == [] and row["answer"] == "A cat jumps"


def test_question_about_a_moment(read):
    (row,) = read(record("A cat jumps.", question="What happens at <vid>?", src=12.5, task="rvc"))
    assert text_of(row)[0] == "What happens at <evi>?"
    assert row["prompt_spans"] == [[12.5, 12.5]]


def test_highlight_is_the_second_around_its_time(read):
    report = ConversionReport()
    rows = read(
        *(vid("The highlight is at #.", [time], task="vhd") for time in (50, 0.2, 100)),
        vid("#, opening. #, the end.", [3.0, 60], task="tvc"),
        report=report,
    )
    assert [row["spans"] for row in rows[:3]] == [[[49.5, 50.5]], [[0.0, 1.0]], [[99.0, 100.0]]]
    assert rows[3]["captions"] == ["opening", "the end"]
    assert report.changes["moments widened to a second"] == 5


def test_both_files_of_the_release_give_the_same_rows(read):
    as_vid = [
        vid("# - #, clean it. # - #, cut 3 pieces.", [36, 44, 49, 57.3], task="slc"),
        vid("Yes. It happens in # - #.", [3.1, 4], task="gvq"),
        vid("The moment is #.", [7.5], task="vhd"),
        record("He jumps.", question="What happens in <vid> - <vid>?", src=[1, 2.5], task="rvc"),
    ]
    as_text = [
        record("36.0 - 44.0 seconds, clean it. 49.0 - 57.3 seconds, cut 3 pieces.", [36, 44, 49, 57.3], task="slc"),
        record("Yes. It happens in 3.1 - 4.0 seconds.", [3.1, 4], task="gvq"),
        record("The moment is 7.5 seconds.", [7.5], task="vhd"),
        record("He jumps.", question="What happens in 1.0 - 2.5 seconds?", src=[1, 2.5], task="rvc"),
    ]
    assert read(*as_vid) == read(*as_text)


def test_text_without_tgt(read):
    rows = read(
        record("It happens in 2.5 - 4.8 seconds, and 6 - 9.", task="tal"),
        record("1 - 2 seconds, a cat jumps. 3.5 - 4, it runs.", task="dvc"),
        record("The answer is 3 - 4 eggs.", task="rvq"),
    )
    assert [row["spans"] for row in rows] == [[[2.5, 4.8], [6.0, 9.0]], [[1.0, 2.0], [3.5, 4.0]], []]


BAD = {
    "too few placeholders": (vid("In # - #.", [1, 2, 3, 4]), "tgt: has 4 times, but the text has 2 <vid>"),
    "too many placeholders": (vid("In # - # and # - #.", [1, 2]), "tgt: has 2 times, but the text has 4 <vid>"),
    "odd": (vid("In # - # and #.", [1, 2, 3]), "tgt: has 3 times, an odd count"),
    "no interval": (vid("It begins at # and ends at #.", [1, 2]), "has the text '<vid>' for an interval"),
    "no length": (vid("In # - #.", [2, 2]), "tgt: has an interval of zero length, at 2.0 s"),
    "far out": (vid("In # - #.", [90, 130]), r"interval \[90, 130\], which is not inside the video \(0 to 100.0 s\)"),
    "behind": (vid("In # - #.", [100, 101]), "not inside the video"),
    "NaN": (vid("In # - #.", [float("nan"), 2]), "tgt: has a time that is no finite number"),
    "text": (vid("In # - #.", ["1", 2]), "tgt: is '1'"),
    "no tgt": (vid("In # - #."), "tgt: has 0 times, but the text has 2 <vid>"),
    "no times": (record("I do not know."), "tgt: is empty, and the answer names no interval"),
    "other times": (record("In 7 - 8 seconds.", [1, 2]), "the text names only 0 of them"),
    "src missing": (record("He runs.", question="What in <vid> - <vid>?", task="rvc"), "src: has 0 times"),
    "unknown task": (vid("In # - #.", [1, 2], task="abc"), "task: is 'abc'. The tasks are tvg, "),
    "empty caption": (vid("# - #, . # - #, it runs.", [1, 2, 3, 4], task="dvc"), "caption: is '', which says nothing"),
    "preamble": (vid("I saw: # - #, he runs.", [1, 2], task="dvc"), "has 'I saw:' before the first time"),
    "empty answer": (vid("It is in # - #.", [1, 2], task="gvq", conversations=[]), "has turns from"),
    "marker": (vid("<evi> runs # - #.", [1, 2]), "holds <evi> or </evi>"),
    "NaN duration": (vid("In # - #.", [1, 2], duration=float("nan")), "duration: is nan"),
    "no video": (vid("In # - #.", [1, 2], video=None), "video: is missing"),
    "no object": ([1, 2], r"record: is \[1, 2\], not an object"),
    "no conversation": ({"task": "tvg"}, "conversations: is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records(read, name):
    bad, message = BAD[name]
    good = vid("In # - #.", [1, 2])
    with pytest.raises(RecordError, match=rf"et.json, record 1, .*{message}"):
        read(good, bad)
    report = ConversionReport()
    rows = read(good, bad, good, on_bad_record="skip", report=report)
    assert [row["id"] for row in rows] == ["etinstruct-0", "etinstruct-2"]
    (skipped,) = report.skipped
    assert skipped["record"] == "record 1" and skipped["file"].endswith("et.json")
    assert (report.records, report.rows, report.segments) == (3, 2, 2), "nothing of a skipped record is counted"


def test_mended_records_are_counted(read):
    report = ConversionReport()
    rows = read(vid("In # - #.", [5, 2]), vid("In # - # and # - #.", [[1, 2], [97, 104]]), report=report)
    assert [row["spans"] for row in rows] == [[[2.0, 5.0]], [[1.0, 2.0], [97.0, 100.0]]]
    assert report.changes == {"intervals turned round": 1, "intervals clipped": 1}


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="<>#"), min_size=1, max_size=8)
letters = st.sampled_from(["A", "é", "雨", "🍳"])
captions = st.builds(lambda head, middle, tail: f"{head} {' '.join(middle)} {tail}", letters, st.lists(words), letters)


@settings(max_examples=100, deadline=None)
@given(st.lists(captions, min_size=1, max_size=5), st.data())
def test_any_caption_survives(tmp_path_factory, texts, data):
    edges = data.draw(st.lists(st.integers(0, 1000), min_size=2 * len(texts), max_size=2 * len(texts), unique=True))
    tgt = [edge / 10 for edge in sorted(edges)]
    path = tmp_path_factory.mktemp("et") / "et.json"
    answer = " ".join(f"# - #, {text}." for text in texts)
    path.write_text(json.dumps([vid(answer, tgt, task="dvc")]))
    (row,) = read_etinstruct(path)
    assert row["captions"] == [" ".join(text.split()) for text in texts]
    assert [edge for span in row["spans"] for edge in span] == tgt
    num_evidence, response = split_response(text_of(row)[1])
    assert num_evidence == len(parse_captions(response)) == len(texts)


def sample(task, **fields):
    made = {"version": 1.0, "idx": 7, "task": task, "source": "star", "video": "star/a.mp4", "duration": 60.0}
    return made | {"q": "What is it?"} | fields


def test_etbench_grounding(read):
    rows = read(
        sample("tvg", tgt=[15.0, 31.0], q=f"Find the jump. {REQUEST}"),
        sample("tal", tgt=[[31.4, 34.9], [15.0, 31.0]]),
        sample("vhd", tgt=[[[1, 2], [5, 6]], [[1, 2], [8, 9]]]),
        sample("tem", tgt=[[20, 30]], src=[1.2, 15.0], q="When does what happens in <vid> - <vid> happen again?"),
        reader=read_etbench,
    )
    assert [row["spans"] for row in rows] == [
        [[15.0, 31.0]],
        [[15.0, 31.0], [31.4, 34.9]],
        [[1.0, 2.0], [5.0, 6.0], [8.0, 9.0]],
        [[20.0, 30.0]],
    ]
    assert text_of(rows[0])[0] == "Find the jump."
    assert (rows[0]["id"], rows[0]["source"]) == ("etbench-tvg-star-7", "etbench/tvg/star")
    assert rows[3]["prompt_spans"] == [[1.2, 15.0]]
    assert text_of(rows[3])[0] == "When does what happens in <evi> happen again?"
    assert all(row["options"] is None and row["answer_index"] is None for row in rows)


def test_etbench_captions(read):
    (row,) = read(sample("dvc", tgt=[[4, 5], [1, 2]], g=["it runs", "a cat..."]), reader=read_etbench)
    assert row["captions"] == ["a cat...", "it runs"] and row["spans"] == [[1.0, 2.0], [4.0, 5.0]]


def test_etbench_options(read):
    rows = read(
        sample("rar", p=1, o=["sits", "runs"], q="What is done? (A) sits (B) runs"),
        sample("eca", p=0, o=[[1, 2.5], [3, 4]]),
        sample("gvq", p=1, o=["a dog", "a cat"], tgt=[3, 4]),
        reader=read_etbench,
    )
    assert text_of(rows[0]) == ("What is done? (A) sits (B) runs", "</evi> (B) runs.")
    assert text_of(rows[1]) == ("What is it?\n(A) 1 - 2.5\n(B) 3 - 4", "</evi> (A) 1 - 2.5.")
    assert text_of(rows[2])[1] == "<evi> </evi> (B) a cat <evi>."
    assert [(row["options"], row["answer_index"], row["task"]) for row in rows] == [
        (["sits", "runs"], 1, "qa"),
        (["1 - 2.5", "3 - 4"], 0, "qa"),
        (["a dog", "a cat"], 1, "qa"),
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample("rar", p=2, o=["sits", "runs"]), "p: is 2, but there are 2 options"),
        (sample("dvc", tgt=[[1, 2]], g=["a", "b"]), "g: has 2 captions for 1 intervals"),
        (sample("tvg", tgt=[1, 2, 3]), "tgt: has 3 numbers, an odd count"),
        (sample("tvg"), "tgt: is empty"),
        (sample("xyz", tgt=[1, 2]), "task: is 'xyz'"),
        (sample("tvg", tgt=[1, 2], idx=None), "idx: is missing"),
    ],
)
def test_etbench_bad_samples(read, bad, message):
    with pytest.raises(RecordError, match=message):
        read(bad, reader=read_etbench)


def test_etbench_ids_are_told_apart(read):
    with pytest.raises(RecordError, match="record 1, id: makes the row 'etbench-tvg-star-7' a second time"):
        read(sample("tvg", tgt=[1, 2]), sample("tvg", tgt=[3, 4]), reader=read_etbench)
