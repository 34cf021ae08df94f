# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Every annotation file of the real data: its counts, and its spans and captions back from the written data set."""

import csv
import json

import datasets
import pytest

from trl_temporal.data.convert import convert
from trl_temporal.data.converters.templates import TEMPLATES
from trl_temporal.data.grammar import parse_answer, parse_captions, split_response
from trl_temporal.data.schema import kind_of, strip_none_parts, validate_dataset


@pytest.fixture
def converted(real_data, tmp_path):
    """Convert a real file, and return its report and the rows that are on disk."""

    def run(name, file, **options):
        report = convert(name, real_data / "annotations" / file, tmp_path / "made", split="test", **options)
        dataset = datasets.load_from_disk(tmp_path / "made")["test"]
        validate_dataset(dataset, kind_of(dataset.column_names))
        assert len(dataset) == report.rows and len(set(dataset["id"])) == report.rows
        assert not report.skipped
        return report, dataset

    return run


@pytest.fixture
def source(real_data):
    return lambda file: (real_data / "annotations" / file).read_text(encoding="utf-8")


def one_line(text):
    return " ".join(text.split())


def texts(row):
    prompt = strip_none_parts(row["prompt"])[0]["content"]
    assert [part["type"] for part in prompt] == ["video", "text"]
    return prompt[1]["text"], strip_none_parts(row["completion"])[0]["content"][0]["text"]


def event_in(row):
    """The words that the question puts into one of the templates."""
    question, _ = texts(row)
    for wording in TEMPLATES["grounding"] + TEMPLATES["grounding_all"]:
        head, tail = wording.split("{event}")
        if question.startswith(head) and question.endswith(tail):
            return question[len(head) : len(question) - len(tail)]
    raise AssertionError(question)


def test_charades_sta(converted, source):
    report, dataset = converted("charades_sta", "charades_sta_test_timechat.json")
    annotations = json.loads(source("charades_sta_test_timechat.json"))["annotations"]
    assert report.records == report.rows == report.segments == len(annotations) == 3720
    assert len(report.videos) == 1334
    spans_of = {}
    for annotation in annotations:
        spans_of.setdefault(annotation["image_id"], []).append(annotation["timestamp"])
    for row, annotation in zip(dataset, annotations, strict=True):
        assert row["spans"] == [annotation["timestamp"]]
        assert row["videos"][0]["path"] == annotation["image_id"]
        assert event_in(row) == one_line(annotation["caption"]).removesuffix(".")
        assert all(span in row["all_spans"] for span in spans_of[annotation["image_id"]])
        assert row["duration"] is None


def test_qvhighlights(converted, source):
    report, dataset = converted("qvhighlights", "qvhighlights_val.jsonl")
    queries = [json.loads(line) for line in source("qvhighlights_val.jsonl").splitlines()]
    assert report.records == report.rows == len(queries) == 1550
    assert report.segments == 2803 == sum(len(row["spans"]) for row in dataset)
    assert len(report.videos) == 1519
    for row, query in zip(dataset, queries, strict=True):
        assert row["id"] == f"qvhighlights-{query['qid']}"
        assert row["spans"] == sorted(query["relevant_windows"])
        assert row["duration"] == query["duration"]
        assert row["videos"][0]["path"] == f"{query['vid']}.mp4"
        assert event_in(row) == one_line(query["query"]).removesuffix(".").rstrip()
        assert len(row["saliency"]) == query["duration"] / 2
        scored = zip(query["relevant_clip_ids"], query["saliency_scores"], strict=True)
        marked = {clip: sum(scores) / 3 for clip, scores in scored}
        assert row["saliency"] == [marked.get(clip, 0.0) for clip in range(len(row["saliency"]))]


def test_qvhighlights_one_record(converted):
    report, dataset = converted("qvhighlights", "qvhighlights_example_1rec.jsonl")
    assert report.rows == 1 and dataset[0]["spans"] == [[106.0, 122.0]]


def test_youcook2(converted, source):
    report, dataset = converted("youcook2", "youcook2_val_timechat_noasr.json")
    videos = json.loads(source("youcook2_val_timechat_noasr.json"))["annotations"]
    assert report.records == report.rows == len(videos) == 415
    assert report.segments == 3187
    durations_left_out = 0
    for row, video in zip(dataset, videos, strict=True):
        captions = [one_line(caption) for caption in video["pure_cap"].split(". ")]
        num_evidence, response = split_response(texts(row)[1])
        assert row["spans"] == video["segments"] and num_evidence == len(captions)
        assert parse_captions(response) == row["captions"] == captions
        durations_left_out += row["duration"] is None
        assert row["duration"] in (None, video["duration"])
    assert durations_left_out == 1, "one validation video has a step behind its end"


def test_nextgqa(converted, source):
    report, dataset = converted("nextgqa", "nextgqa_val.csv")
    questions = list(csv.DictReader(source("nextgqa_val.csv").splitlines()))
    videos = json.loads(source("nextgqa_gsub_val.json"))
    assert report.records == report.rows == len(questions) == 3358
    assert report.segments == 3931 == sum(len(row["spans"]) for row in dataset)
    assert report.changes == {"intervals clipped": 3}
    for row, question in zip(dataset, questions, strict=True):
        video = videos[question["video_id"]]
        segments = video["location"][question["qid"]]
        assert row["id"] == f"nextgqa-{question['video_id']}_{question['qid']}"
        assert row["spans"] == [[start, min(end, video["duration"])] for start, end in segments]
        assert row["options"] == [one_line(question[f"a{i}"]) for i in range(5)]
        assert row["options"][row["answer_index"]] == one_line(question["answer"])
        asked, answered = texts(row)
        assert one_line(question["question"]) in asked and all(option in asked for option in row["options"])
        assert parse_answer(split_response(answered)[1]) == row["answer"]
        letter = "ABCDE"[row["answer_index"]]
        assert row["answer"] == f"({letter}) {one_line(question['answer'])}"


@pytest.mark.parametrize(
    ("file", "duration"),
    [("mmaction2_action_test_anno.json", "duration_second"), ("mmaction2_eval_localization_gt.json", "duration")],
)
def test_activitynet_labels(converted, source, file, duration):
    report, dataset = converted("activitynet_captions", file)
    videos = json.loads(source(file))
    assert report.records == len(videos) == 2
    assert report.segments == sum(len(video["annotations"]) for video in videos.values())
    for row, (name, video) in zip(dataset, videos.items(), strict=True):  # one label a video
        assert row["videos"][0]["path"] == f"{name}.mp4"
        assert row["spans"] == [annotation["segment"] for annotation in video["annotations"]]
        assert row["duration"] == video[duration]
        assert video["annotations"][0]["label"] in texts(row)[0]


def test_captions_of_whole_videos(converted, source):
    report, dataset = converted("spans_file", "mmaction2_video_text_test_list.json")
    ((video, captions),) = json.loads(source("mmaction2_video_text_test_list.json")).items()
    assert report.rows == 2 and report.segments == 0
    assert dataset["answer"][:] == captions and dataset["spans"][:] == [[], []]
    assert {row["videos"][0]["path"] for row in dataset} == {video}
    assert texts(dataset[0])[1] == f"</evi> {captions[0]}."


def test_clip_events(converted, source, real_data):
    report, dataset = converted("clip_events", "real_clips_events.jsonl")
    clips = [json.loads(line) for line in source("real_clips_events.jsonl").splitlines()]
    assert report.records == len(clips) == 8 and report.segments == 41
    assert report.tasks == {"grounding": 41, "dense": 8, "qa": 19}
    assert report.looked_for_videos and not report.missing_videos
    dense = [row for row in dataset if row["task"] == "dense"]
    for row, clip in zip(dense, clips, strict=True):
        assert row["videos"][0]["path"] == str(real_data.resolve() / clip["video"])
        assert row["spans"] == [event["span"] for event in clip["events"]]
        assert row["captions"] == [event["caption"] for event in clip["events"]]
