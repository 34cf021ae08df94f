# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from trl_temporal.data.converters import load_clip_events
from trl_temporal.data.schema import strip_none_parts, validate_dataset

REALDATA = Path(os.environ.get("TRL_TEMPORAL_REALDATA", Path(__file__).parents[2] / "shared" / "realdata"))

WAVE = {"span": [0.0, 1.2], "caption": "A man waves"}
JUMP = {"span": [2.0, 3.5], "caption": "A dog jumps"}
WHO = {"question": "Who jumps?", "answer": "A dog", "event": 1}


def clip(**changes):
    return {"video": "videos/a.mp4", "duration": 10.0, "events": [WAVE, JUMP], "qa": [WHO]} | changes


@pytest.fixture
def write_clips(tmp_path):
    """Write clips beside their (empty) videos, and return the annotation file."""
    for folder in ("annotations", "videos"):
        (tmp_path / folder).mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos" / name).touch()

    def write(*clips):
        path = tmp_path / "annotations" / "clips.jsonl"
        path.write_text("\n".join(c if isinstance(c, str) else json.dumps(c) for c in clips))
        return path

    return write


def text_of(messages):
    return strip_none_parts(messages)[-1]["content"][-1]["text"]


def test_rows_of_each_task(write_clips, tmp_path):
    dataset = load_clip_events(write_clips(clip()))
    validate_dataset(dataset, "sft")
    first, second, dense, qa = dataset
    assert dataset["task"][:] == ["grounding", "grounding", "dense", "qa"]
    assert len(set(dataset["id"])) == 4
    assert all(row["source"] == "clips" and row["duration"] == 10.0 for row in dataset)
    assert first["videos"][0]["path"] == str(tmp_path / "videos" / "a.mp4")
    assert all(row["all_spans"] == [WAVE["span"], JUMP["span"]] for row in dataset)

    assert text_of(first["prompt"]) == 'When does this happen: "A man waves"?'
    assert text_of(first["completion"]) == "<evi> </evi> It happens in <evi>."
    assert first["spans"] == [WAVE["span"]] and second["spans"] == [JUMP["span"]]

    assert text_of(dense["completion"]) == "<evi> <evi> </evi> <evi> A man waves. <evi> A dog jumps."
    assert dense["spans"] == [WAVE["span"], JUMP["span"]]
    assert dense["captions"] == ["A man waves", "A dog jumps"]

    assert text_of(qa["prompt"]) == "Who jumps?"
    assert text_of(qa["completion"]) == "<evi> </evi> A dog <evi>."
    assert qa["answer"] == "A dog" and qa["spans"] == [JUMP["span"]]


def test_events_out_of_order_and_repeated(write_clips):
    again = {"span": [5.0, 6.0], "caption": "A man waves"}
    dataset = load_clip_events(write_clips(clip(events=[JUMP, again, WAVE], qa=[WHO | {"event": 0}])))
    validate_dataset(dataset, "sft")
    waves, jumps, dense, qa = dataset
    assert waves["spans"] == [WAVE["span"], again["span"]], "both times are the answer"
    assert jumps["spans"] == [JUMP["span"]]
    assert dense["spans"] == [WAVE["span"], JUMP["span"], again["span"]]
    assert dense["captions"] == ["A man waves", "A dog jumps", "A man waves"]
    assert qa["spans"] == [JUMP["span"]], "the index counts the events as the file lists them"


def test_tasks_and_video_root(write_clips, tmp_path):
    path = write_clips(clip(), "", clip(video="videos/b.mp4", qa=[]))
    assert load_clip_events(path, tasks=["dense"])["task"][:] == ["dense", "dense"]
    assert Counter(load_clip_events(path)["task"]) == {"grounding": 4, "dense": 2, "qa": 1}

    moved = tmp_path / "clips.jsonl"
    path.rename(moved)
    with pytest.raises(FileNotFoundError, match="clips.jsonl, line 1: there is no video .* pass video_root"):
        load_clip_events(moved)
    assert len(load_clip_events(moved, video_root=tmp_path)) == 7


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (clip(events=[WAVE, {"span": [3.5, 2.0], "caption": "A dog jumps"}]), "event 1: its span runs backwards"),
        (clip(duration=3.0), "event 1: its span ends at 3.5 s, beyond the end of the video at 3.0 s"),
        (clip(duration=None), "the duration is None"),
        (clip(events=[{"span": [0, 1]}]), "event 0: 'caption' is missing"),
        (clip(qa=[WHO | {"event": 2}]), "question 0: event 2 is out of range. The clip has 2 events"),
        (clip(qa=[WHO | {"event": -1}]), "question 0: event -1 is out of range"),
        (clip(qa=[{"question": "Who?", "event": 0}]), "question 0: 'answer' is missing"),
        (clip(events=[WAVE | {"caption": "A <evi> waves"}]), "a text holds <evi> or </evi>"),
        ({"video": "videos/b.mp4", "events": []}, "'duration' is missing"),
        ("[]", "'video' is missing"),
        ("{", "no valid JSON"),
        (clip(video="videos/a.mp4"), "'videos/a.mp4' was on line 1 already"),
    ],
)
def test_broken_lines_are_named(write_clips, broken, message):
    with pytest.raises(ValueError, match=f"clips.jsonl, line 2.*{message}"):
        load_clip_events(write_clips(clip(), broken))


def test_missing_video_is_named(write_clips):
    path = write_clips(clip(), clip(video="videos/c.mp4"))
    with pytest.raises(FileNotFoundError, match="line 2: there is no video '.*c.mp4'. Mend the path"):
        load_clip_events(path)


def test_nothing_asked_for(write_clips):
    with pytest.raises(ValueError, match=r"tasks are \['caption'\]; choose from grounding, dense, qa"):
        load_clip_events(write_clips(clip()), tasks=["caption"])
    with pytest.raises(ValueError, match="no rows for the tasks qa"):
        load_clip_events(write_clips(clip(qa=[])), tasks=["qa"])


@pytest.mark.skipif(not REALDATA.is_dir(), reason="the real clips are not here (set TRL_TEMPORAL_REALDATA)")
def test_real_clips():
    dataset = load_clip_events(REALDATA / "annotations" / "real_clips_events.jsonl")
    validate_dataset(dataset, "sft")
    assert Counter(dataset["task"]) == {"grounding": 41, "dense": 8, "qa": 19}
