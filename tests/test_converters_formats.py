# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks in their own formats, on small made-up records, and what can be wrong in them."""

import json

import pytest

from trl_temporal.data.converters import (
    ConversionReport,
    RecordError,
    read_activitynet_captions,
    read_charades_sta,
    read_clip_events,
    read_didemo,
    read_nextgqa,
    read_qvhighlights,
    read_spans_file,
    read_youcook2,
)


@pytest.fixture
def write(tmp_path):
    """Write a file of text, or of JSON, or of JSON lines, and return its path."""

    def run(name, content):
        if name.endswith(".jsonl"):
            content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in content)
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return run


def text_of(row):
    return row["prompt"][0]["content"][1]["text"], row["completion"][0]["content"][0]["text"]


# Charades-STA


def test_charades_text(write):
    src = write("charades_sta_test.txt", "3MSZA 24.3 30.4##person turn a light on.\n\n3MSZA 5.0 0.0##he sits.\n")
    first, second = read_charades_sta(src)
    assert (first["id"], second["id"]) == ("charades_sta-0", "charades_sta-2")
    assert first["spans"] == [[24.3, 30.4]] and second["spans"] == [[0.0, 5.0]]
    assert first["all_spans"] == second["all_spans"] == [[0.0, 5.0], [24.3, 30.4]]
    assert first["videos"][0]["path"] == "3MSZA.mp4" and first["duration"] is None
    assert '"person turn a light on"' in text_of(first)[0]
    assert text_of(first)[1] == "<evi> </evi> It happens in <evi>."


@pytest.mark.parametrize(
    ("name", "content"),
    [("lengths.csv", "id,subject,length\n3MSZA,x,30.0\n"), ("durations.json", {"3MSZA.mp4": 30.0})],
)
def test_charades_durations(write, name, content):
    src = write("test.txt", "3MSZA 24.3 30.4##person turn a light on.\nABCDE 1 2##he sits.\n")
    report = ConversionReport()
    first, second = read_charades_sta(src, durations=write(name, content), report=report)
    assert first["duration"] == 30.0 and first["spans"] == [[24.3, 30.0]]
    assert second["duration"] is None
    assert report.changes == {"intervals clipped": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3MSZA 24.3##no end", "line 2, line: is '3MSZA 24.3##no end'. Write 'VIDEO start end##sentence'"),
        ("3MSZA 1 2##", "line 2, caption: is '', which says nothing"),
        ("3MSZA 1 x##he sits", "line 2, line: is"),
        ("3MSZA nan 2##he sits", r"line 2, timestamp: has the interval \[nan, 2.0\]"),
        ("3MSZA 2 2##he sits", "line 2, timestamp: has an interval of zero length"),
    ],
)
def test_charades_bad_lines(write, line, message):
    src = write("test.txt", f"ABCDE 1 2##he sits.\n{line}\n")
    with pytest.raises(RecordError, match=message):
        list(read_charades_sta(src))
    report = ConversionReport()
    assert len(list(read_charades_sta(src, on_bad_record="skip", report=report))) == 1
    assert len(report.skipped) == 1


# QVHighlights

QUERY = {
    "qid": 1,
    "query": "A cat jumps.",
    "duration": 10,
    "vid": "abc_60.0_210.0",
    "relevant_clip_ids": [1, 2, 4],
    "saliency_scores": [[4, 1, 1], [3, 3, 3], [0, 0, 1]],
    "relevant_windows": [[8, 10], [2, 6]],
}


def test_qvhighlights(write):
    first, second = read_qvhighlights(write("val.jsonl", [QUERY, QUERY | {"qid": 2, "relevant_windows": [[0, 2]]}]))
    assert first["spans"] == [[2.0, 6.0], [8.0, 10.0]]
    assert first["saliency"] == [0.0, 2.0, 3.0, 0.0, pytest.approx(1 / 3)]
    assert first["all_spans"] == second["all_spans"] == [[0.0, 2.0], [2.0, 6.0], [8.0, 10.0]]
    assert first["videos"][0]["path"] == "abc_60.0_210.0.mp4", "the dots of the name are no suffix"
    assert text_of(first)[1] == "<evi> <evi> </evi> It happens in <evi> and <evi>."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant_windows": None}, "line 2, relevant_windows: is missing"),
        ({"relevant_windows": []}, "relevant_windows: is empty"),
        ({"saliency_scores": [[1]]}, "saliency_scores: has 1 entries for 3 clips"),
        ({"relevant_clip_ids": [1, 2, 5]}, "relevant_clip_ids: has clip 5, but the video has 5"),
        ({"query": " ."}, "query: is ' .', which says nothing"),
        ({"duration": -1}, "duration: is -1"),
        ({}, "id: makes the row 'qvhighlights-1' a second time"),
    ],
)
def test_qvhighlights_bad_lines(write, change, message):
    src = write("val.jsonl", [QUERY, QUERY | {"qid": 2} | change if change else QUERY])
    with pytest.raises(RecordError, match=message):
        list(read_qvhighlights(src))


def test_broken_line_is_one_bad_record(write):
    src = write("val.jsonl", [QUERY, '{"qid": 2, "que', QUERY | {"qid": 3}])
    with pytest.raises(RecordError, match="val.jsonl, line 2, line: is no valid JSON"):
        list(read_qvhighlights(src))
    report = ConversionReport()
    rows = list(read_qvhighlights(src, on_bad_record="skip", report=report))
    assert [row["id"] for row in rows] == ["qvhighlights-1", "qvhighlights-3"]
    assert report.records == 3 and report.skipped[0]["record"] == "line 2"


# YouCook2

STEPS = {
    "duration": 60.0,
    "subset": "validation",
    "annotations": [
        {"id": 0, "segment": [30, 40], "sentence": "cook it"},
        {"id": 1, "segment": [1, 9], "sentence": "cut it"},
    ],
}


def test_youcook2_original_file(write):
    src = write("trainval.json", {"database": {"abc": STEPS, "xyz": STEPS | {"subset": "training"}}})
    (row,) = read_youcook2(src, subset="validation")
    assert row["id"] == "youcook2-abc" and row["videos"][0]["path"] == "abc.mp4"
    assert row["spans"] == row["all_spans"] == [[1.0, 9.0], [30.0, 40.0]]
    assert row["captions"] == ["cut it", "cook it"]
    assert text_of(row)[1] == "<evi> <evi> </evi> <evi> cut it. <evi> cook it."
    with pytest.raises(ValueError, match=r"several subsets: 'validation' \(1 videos\), 'training' \(1 videos\)"):
        list(read_youcook2(src))
    with pytest.raises(ValueError, match="no subset 'val'. It has: 'validation'"):
        list(read_youcook2(src, subset="val"))


def test_youcook2_duration_that_is_wrong(write):
    video = {"image_id": "a.mp4", "id": 0, "duration": 216.0, "segments": [[1, 2], [216, 224]], "pure_cap": "cut. eat"}
    report = ConversionReport()
    (row,) = read_youcook2(write("val.json", {"annotations": [video]}), report=report)
    assert row["duration"] is None and row["spans"] == [[1.0, 2.0], [216.0, 224.0]]
    assert sum(report.changes.values()) == 1
    far = video | {"segments": [[1, 2], [300, 310]]}
    with pytest.raises(RecordError, match="not inside the video"):
        list(read_youcook2(write("val.json", {"annotations": [far]})))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"annotations": [{"image_id": "a.mp4", "segments": [[1, 2]], "pure_cap": "cut. eat"}]},
            "2 captions for 1 seg",
        ),
        ({"database": {"a": {"duration": 9}}}, "video 'a', annotations: is missing"),
        ({"database": {"a": {"annotations": [{"sentence": "x"}]}}}, "segment: is missing"),
        ({"database": {"a": {"annotations": []}}}, "segments: is empty"),
        ({"database": {"a": {"annotations": [{"sentence": "", "segment": [1, 2]}]}}}, "sentence: is ''"),
        ({"database": {"a": 3}}, "annotation: is 3"),
        ({}, "has neither 'database' nor 'annotations'"),
    ],
)
def test_youcook2_bad_files(write, content, message):
    with pytest.raises(ValueError, match=message):
        list(read_youcook2(write("val.json", content)))


# ActivityNet


def test_activitynet_captions(write):
    video = {
        "duration": 82.73,
        "timestamps": [[17.4, 60.8], [0.8, 19.9], [70, 83]],
        "sentences": [" He skis 🎿.", "A man stands.", "He skis 🎿."],
    }
    report = ConversionReport()
    dense, first, second = read_activitynet_captions(write("val_1.json", {"v_abc": video}), report=report)
    assert dense["spans"] == [[0.8, 19.9], [17.4, 60.8], [70.0, 82.73]]
    assert dense["captions"] == ["A man stands.", "He skis 🎿.", "He skis 🎿."]
    assert '"A man stands"' in text_of(first)[0] and first["spans"] == [[0.8, 19.9]]
    assert '"He skis 🎿"' in text_of(second)[0]
    assert second["spans"] == [[17.4, 60.8], [70.0, 82.73]], "the same words: both times are the answer"
    assert {row["videos"][0]["path"] for row in (dense, first, second)} == {"v_abc.mp4"}
    assert report.segments == 3
    assert report.changes == {"intervals clipped": 1, "lists of events put in time order": 1}


def test_activitynet_labels_below_database(write):
    annotations = [{"segment": [1, 2], "label": "a"}, {"segment": [3, 4], "label": "b"}]
    video = {"duration": 9, "subset": "validation", "annotations": annotations}
    src = write("activity_net.json", {"version": "1.3", "taxonomy": [], "database": {"abc": video}})
    first, second = read_activitynet_captions(src)
    assert first["spans"] == [[1.0, 2.0]] and second["spans"] == [[3.0, 4.0]]
    assert first["all_spans"] == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"duration": 9, "timestamps": [[1, 2]], "sentences": []}, "sentences: has 0 entries for 1 intervals"),
        ({"duration": 9, "timestamps": [], "sentences": []}, "timestamps: is empty"),
        ({"duration": 9, "timestamps": [[1, 20]], "sentences": ["x"]}, "not inside the video"),
        ({"duration": 9, "timestamps": [[1, 2]], "sentences": ["a <evi>"]}, "holds <evi>"),
        ({"duration": 9, "timestamps": [[1, 2]], "sentences": [3]}, "sentences: is 3"),
        ({"duration": 9, "annotations": []}, r"annotations: is \[\]"),
    ],
)
def test_activitynet_bad_videos(write, video, message):
    with pytest.raises(RecordError, match=f"val_1.json, video 'v_a', .*{message}"):
        list(read_activitynet_captions(write("val_1.json", {"v_a": video})))


# NExT-GQA

HEADER = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
SEGMENTS = {"12": {"duration": 34, "location": {"1": [[20.0, 23.5], [1.2, 34.4]], "2": [[3, 4]]}, "fps": 29.97}}


def test_nextgqa(write):
    write("gsub_val.json", SEGMENTS)
    eats = '12,99,64,48,why is "he" here,"to eat, drink",1,CW,a,b,"to eat, drink",d,e'
    src = write("val.csv", f"{HEADER}{eats}\n12,9,6,4,how,a,2,TN,a,b,c,d,e\n")
    row, _ = read_nextgqa(src)
    assert row["id"] == "nextgqa-12_1" and row["task"] == "qa"
    assert row["spans"] == [[1.2, 34.0], [20.0, 23.5]]
    assert row["all_spans"] == [[1.2, 34.0], [3.0, 4.0], [20.0, 23.5]], "with those of the other question"
    assert (row["options"], row["answer_index"]) == (["a", "b", "to eat, drink", "d", "e"], 2)
    asked, answered = text_of(row)
    assert 'why is "he" here?\n' in asked and "(A) a\n(B) b\n(C) to eat, drink\n(D) d\n(E) e" in asked
    assert answered == "<evi> <evi> </evi> (C) to eat, drink <evi> <evi>."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("13,9,6,4,why,a,1,CW,a,b,c,d,e", "line 2, video_id: '13' is not in gsub_val.json"),
        ("12,9,6,4,why,a,7,CW,a,b,c,d,e", "qid: 7 of '12' has no segment"),
        ("12,9,6,4,why,x,1,CW,a,b,c,d,e", "answer: is 'x', which is 0 of the options"),
        ("12,9,6,4,why,a,1,CW,a,a,c,d,e", "answer: is 'a', which is 2 of the options"),
        ("12,9,6,4,why,a,1,CW,a,b,c,d", "line: has more or fewer fields than the header"),
    ],
)
def test_nextgqa_bad_lines(write, line, message):
    write("gsub_val.json", SEGMENTS)
    with pytest.raises(RecordError, match=message):
        list(read_nextgqa(write("val.csv", HEADER + line + "\n")))


def test_nextgqa_needs_its_segments(write):
    with pytest.raises(FileNotFoundError, match="no 'gsub_train.json' beside it"):
        list(read_nextgqa(write("train.csv", HEADER)))
    write("gsub_val.json", SEGMENTS)
    with pytest.raises(ValueError, match="val.csv: has no column 'video_id'"):
        list(read_nextgqa(write("val.csv", "video,question\n")))


# DiDeMo


def moment(times, **fields):
    made = {"annotation_id": 4, "description": "A cat jumps.", "video": "1@N_2.avi", "times": times, "num_segments": 6}
    return made | fields


def test_didemo(write):
    src = write(
        "val_data.json",
        [
            moment([[1, 1], [0, 2], [0, 2], [3, 3]]),
            moment([[5, 5], [0, 0]], annotation_id=5),
        ],
    )
    first, second = read_didemo(src)
    assert first["spans"] == [[0.0, 15.0]], "most annotators say so"
    assert second["spans"] == [[25.0, 30.0]], "the first of equally many"
    assert first["all_spans"] == [[0.0, 15.0], [25.0, 30.0]]
    assert first["id"] == "didemo-4" and first["videos"][0]["path"] == "1@N_2.avi"
    first, second = read_didemo(src, durations=write("durations.json", {"1@N_2": 28.2}))
    assert second["spans"] == [[25.0, 28.2]] and second["duration"] == 28.2


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([[5, 5]], r"times: has \[5, 5\], but the video has pieces 0 to 4"),
        ([[3, 2]], r"times: has \[3, 2\]"),
        ([], "times: is empty"),
        ([[1, 2, 3]], "times: has .1, 2, 3. for an interval"),
        ([[0.5, 1]], r"times: has \[0.5, 1\]"),
    ],
)
def test_didemo_bad_times(write, times, message):
    with pytest.raises(RecordError, match=f"record 0, {message}"):
        list(read_didemo(write("val_data.json", [moment(times, num_segments=5)])))


# Plain files

EVENTS = 'video,start,end,caption\nb.mp4,3,4.5,"He sits, then stands"\na.mp4,0.5,2,A cat\nb.mp4,1,2,It rains ☔\n'


def test_spans_file(write):
    lines = [
        {"video": "b.mp4", "start": 3, "end": 4.5, "caption": "He sits, then stands"},
        {"video": "a.mp4", "start": 0.5, "end": 2, "caption": "A cat"},
        {"video": "b.mp4", "start": 1, "end": 2, "caption": "It rains ☔"},
    ]
    rows = list(read_spans_file(write("events.csv", EVENTS)))
    assert rows == list(read_spans_file(write("events.jsonl", lines)))
    assert [(row["videos"][0]["path"], row["task"], row["spans"]) for row in rows] == [
        ("b.mp4", "dense", [[1.0, 2.0], [3.0, 4.5]]),
        ("b.mp4", "grounding", [[1.0, 2.0]]),
        ("b.mp4", "grounding", [[3.0, 4.5]]),
        ("a.mp4", "dense", [[0.5, 2.0]]),
        ("a.mp4", "grounding", [[0.5, 2.0]]),
    ]
    assert rows[0]["captions"] == ["It rains ☔", "He sits, then stands"]
    assert rows[0]["duration"] is None


def test_spans_file_with_durations(write):
    src = write("events.csv", "caption,duration,video,start,end\nA cat,10,a,1,10.4\nA dog,,a,2,3\n")
    dense, *_ = read_spans_file(src)
    assert dense["duration"] == 10.0 and dense["spans"] == [[1.0, 10.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4,x,2,A cat", "video 'a.mp4', line 3, start: is 'x'"),
        ("a.mp4,nan,2,A cat", r"line 3, start and end: has the interval \[nan, 2.0\]"),
        ("a.mp4,1,2,", "line 3, caption: is '', which says nothing"),
        ("a.mp4,2,2,A cat", "line 3, start and end: has an interval of zero length"),
        ("a.mp4,-9,2,A cat", "line 3, start and end: has the interval .*not inside the video"),
        ("a.mp4,1,2", "line 3, line: has more or fewer fields"),
    ],
)
def test_spans_file_bad_lines(write, line, message):
    src = write("events.csv", f"video,start,end,caption\nb.mp4,1,2,A dog\n{line}\n")
    with pytest.raises(RecordError, match=message):
        list(read_spans_file(src))
    report = ConversionReport()
    rows = list(read_spans_file(src, on_bad_record="skip", report=report))
    assert {row["videos"][0]["path"] for row in rows} == {"b.mp4"} and len(report.skipped) == 1


def test_bad_line_leaves_no_dense_row_with_a_gap(write):
    src = write("events.csv", "video,start,end,caption\na.mp4,1,2,A dog\na.mp4,x,2,A cat\n")
    assert list(read_spans_file(src, on_bad_record="skip")) == []


def test_durations_that_disagree(write):
    src = write("events.csv", "video,start,end,caption,duration\na,1,2,A dog,9\na,3,4,A cat,8\n")
    with pytest.raises(RecordError, match=r"duration: is \[8.0, 9.0\] in different lines"):
        list(read_spans_file(src))


# Clips with events


def test_clip_events_by_policy(write, tmp_path):
    clip = {"video": "a.mp4", "duration": 9, "events": [{"span": [1, 2], "caption": "A cat"}]}
    bad = {"video": "b.mp4", "duration": 9, "events": [{"span": [3, 2], "caption": "A dog"}]}
    src = write("clips.jsonl", [clip, bad])
    with pytest.raises(RecordError, match="line 2, clip, event 0: its span runs backwards"):
        list(read_clip_events(src))
    report = ConversionReport()
    assert list(read_clip_events(src, video_root=tmp_path, on_bad_record="skip", report=report)) == []
    assert report.missing_videos == {"a.mp4"} and report.rows_without_video == 2
    (tmp_path / "a.mp4").touch()
    rows = list(read_clip_events(src, video_root=tmp_path, on_bad_record="skip"))
    assert {row["videos"][0]["path"] for row in rows} == {str(tmp_path / "a.mp4")}
