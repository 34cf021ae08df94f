# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the trainers make of data, good and bad, and of a run that is stopped and continued."""

import json
import shutil

import datasets
import pytest
import torch
from datasets import Dataset

from tests.helpers import preference_row, sft_row
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
from trl_temporal.data.scan import scan_videos
from trl_temporal.data.schema import RowError
from trl_temporal.video import VideoError


@pytest.fixture
def make_trainer(tiny_dir, config):
    """Makes the trainer of a method on rows."""

    def make(method, rows, **kwargs):
        if method == "sft":
            return EvidenceSFTTrainer(str(tiny_dir), config(EvidenceSFTConfig, **kwargs), train_dataset=rows)
        return FPOTrainer(str(tiny_dir), args=config(FPOConfig, **kwargs), train_dataset=rows)

    return make


@pytest.fixture
def paths(event_world):
    """The files of the three training videos."""
    return sorted({row["videos"][0]["path"] for row in event_world["train"]})


METHODS = pytest.mark.parametrize("method", ["sft", "fpo"])


def rows_of(method, videos, **columns):
    """One row per file, with the names row-0, row-1, ..."""
    rows = []
    for number, video in enumerate(videos):
        answer = "<evi> </evi> It happens in <evi>."
        if method == "sft":
            row = sft_row(answer, [[0.5, 1.5]], video=video, **columns)
        else:
            row = preference_row(answer, [[0.5, 1.5]], answer, [[2.0, 3.0]], video=video, **columns)
        rows.append({**row, "id": f"row-{number}", "duration": None})
    return rows


# --- The `videos` column ---


@pytest.mark.parametrize("form", ["path", "list of paths", "entry", "video feature", "list of video feature"])
def test_forms_of_the_videos_column(make_trainer, paths, form):
    rows = rows_of("sft", paths[:2])
    for row, path in zip(rows, paths, strict=False):
        forms = {"path": path, "entry": [{"path": path, "start_s": 0.0}], "video feature": path}
        row["videos"] = forms.get(form, [path])
    dataset = Dataset.from_list(rows)
    if form == "video feature":
        dataset = dataset.cast_column("videos", datasets.Video(decode=False))
    if form == "list of video feature":
        dataset = dataset.cast_column("videos", datasets.List(datasets.Video(decode=False)))
    trainer = make_trainer("sft", dataset)
    trainer.train()
    assert trainer.state.log_history[0]["loss/grounding"] > 0


@METHODS
def test_streaming(make_trainer, paths, method):
    rows = Dataset.from_list(rows_of(method, paths)).to_iterable_dataset()
    trainer = make_trainer(method, rows, max_steps=3)
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history[:3]] == [1, 2, 3]


def test_streaming_meets_a_bad_row_when_it_comes(make_trainer, paths):
    rows = rows_of("sft", paths)
    rows[2]["spans"] = [[3.0, 2.0]]
    trainer = make_trainer("sft", Dataset.from_list(rows).to_iterable_dataset(), max_steps=3)
    with pytest.raises(RowError, match="row-2.*backwards"):
        trainer.train()


@METHODS
def test_streaming_cannot_skip(make_trainer, paths, method):
    rows = Dataset.from_list(rows_of(method, paths)).to_iterable_dataset()
    with pytest.raises(ValueError, match="on_bad_sample.*streaming"):
        make_trainer(method, rows, on_bad_sample="skip")


# --- Bad rows ---


def bad_files(paths, tmp_path):
    """A whole file, a missing one, an empty one, one that is no video, and one that is cut off."""
    empty, text, cut = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4"
    empty.touch()
    text.write_text("no video " * 100)
    cut.write_bytes(open(paths[1], "rb").read()[:2000])
    return [paths[0], str(tmp_path / "missing.mp4"), str(empty), str(text), str(cut)]


@METHODS
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_video_that_cannot_be_read_names_its_row_and_the_mend(make_trainer, paths, tmp_path, method, number):
    rows = rows_of(method, bad_files(paths, tmp_path))
    with pytest.raises(VideoError, match=rf"row-{number}.*on_bad_sample='skip'"):
        make_trainer(method, Dataset.from_list([rows[0], rows[number]]))


@METHODS
@pytest.mark.parametrize("cache_frames", [True, False])
def test_bad_rows_are_skipped_counted_and_listed(make_trainer, paths, tmp_path, method, cache_frames):
    rows = rows_of(method, bad_files(paths, tmp_path))
    spans = "spans" if method == "sft" else "chosen_spans"
    rows += [{**rows[0], "id": "reversed", spans: [[3.0, 1.0]]}]
    rows += [{**rows[0], "id": "late", spans: [[500.0, 501.0]]}]
    rows.insert(0, {**rows[0], "id": "count", spans: []})
    with pytest.warns(UserWarning, match="skipped") as warned:
        trainer = make_trainer(method, Dataset.from_list(rows), on_bad_sample="skip", cache_frames=cache_frames)
    assert list(trainer.train_dataset["id"]) == ["row-0"]
    messages = " ".join(str(warning.message) for warning in warned)
    assert "skipped 2 of 8 rows" in messages and "skipped 5 of 6 rows" in messages
    manifest = (tmp_path / "out" / "skipped_train.jsonl").read_text().splitlines()
    listed = {entry["id"]: entry for entry in map(json.loads, manifest)}
    assert set(listed) == {"count", "reversed", "late", "row-1", "row-2", "row-3", "row-4"}
    # The place in the dataset that was given, not in what was left of it.
    assert {name: rows[entry["index"]]["id"] for name, entry in listed.items()} == {name: name for name in listed}
    assert "missing.mp4" in listed["row-1"]["reason"] and "backwards" in listed["reversed"]["reason"]
    trainer.train()


@METHODS
def test_no_row_left_is_an_error(make_trainer, tmp_path, method):
    rows = Dataset.from_list(rows_of(method, [str(tmp_path / "missing.mp4")]))
    with pytest.raises(VideoError, match="no row.*skipped_train.jsonl"):
        make_trainer(method, rows, on_bad_sample="skip")


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("sft", {"spans": [[2.0, 1.0]]}, "backwards"),
        ("sft", {"spans": [[-1.0, 1.0]]}, "negative"),
        ("sft", {"spans": [[0.5, 99.0]], "duration": 12.0}, "beyond the end of the video"),
        ("sft", {"spans": [[500.0, 501.0]]}, "after the end of the video"),
        ("sft", {"spans": []}, "length 0"),
        ("sft", {"videos": []}, "video"),
        ("fpo", {"rejected_spans": [[0.5, 1.5]]}, "equal to 'chosen'"),
        ("fpo", {"rejected_spans": [[0.5, 1.5], [2.0, 3.0]]}, "length 2"),
    ],
)
def test_bad_rows_are_named_before_training(make_trainer, paths, method, changes, words):
    good, bad = rows_of(method, paths[:2])
    with pytest.raises(RowError, match=rf"row-1.*{words}"):
        make_trainer(method, Dataset.from_list([good, {**bad, **changes}]))


def test_spans_that_end_after_the_video_are_counted(make_trainer, paths):
    """Labels are often rounded up: no error, but no silence."""
    rows = rows_of("sft", paths)
    rows[1]["spans"] = [[3.0, 99.0]]
    with pytest.warns(UserWarning, match="1 of 3 rows have spans that end after their video, by up to 8"):
        make_trainer("sft", Dataset.from_list(rows))


def test_two_videos_in_a_row_are_refused(make_trainer, paths):
    (row,) = rows_of("sft", paths[:1])
    row["videos"] = row["videos"] * 2
    with pytest.raises(RowError, match="row-0.*2 entries"):
        make_trainer("sft", Dataset.from_list([row]))


@METHODS
def test_too_long_is_an_error_with_the_numbers(make_trainer, paths, method):
    trainer = make_trainer(method, Dataset.from_list(rows_of(method, paths[:1])), max_length=30)
    with pytest.raises(RowError, match=r"row-0.*\d+ tokens.*\d+ frames.*max_length=30.*fps"):
        trainer.train()


def test_a_damaged_video_warns_and_goes_on(make_trainer, paths, tmp_path, caplog):
    """Its container promises more than can be decoded."""
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(open(paths[0], "rb").read())
    place = content.index(b"mdat") + 400
    content[place : place + 300] = bytes(300)
    damaged.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged.mp4"):
        trainer = make_trainer("sft", Dataset.from_list(rows_of("sft", [str(damaged)])))
    trainer.train()


# --- Stopped and continued ---


@METHODS
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_trainer, event_world, preferences, tmp_path, method):
    rows = event_world["train"] if method == "sft" else preferences
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    through = make_trainer(method, rows, **settings)
    through.train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = make_trainer(method, rows, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    logged = {log["step"] for log in resumed.state.log_history}
    assert logged == {1, 2, 3, 4}
    expected = through.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_resuming_from_nothing_starts(make_trainer, paths):
    trainer = make_trainer("sft", Dataset.from_list(rows_of("sft", paths[:1])))
    trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 1


# --- A manifest of a scan instead of a look at every video ---


@METHODS
def test_a_manifest_says_which_videos_can_be_used(make_trainer, paths, method, tmp_path, monkeypatch):
    missing = str(tmp_path / "gone.mp4")
    rows = Dataset.from_list(rows_of(method, [paths[0], missing, paths[1]]))
    manifest = tmp_path / "videos.jsonl"
    scan_videos(rows, manifest, num_workers=1, progress=False)
    monkeypatch.setattr("trl_temporal.trainer.evidence_mixin.find_bad_videos", None)  # no video is read ahead
    with pytest.raises(RowError, match="row-1.*gone.mp4"):
        make_trainer(method, rows, video_manifest=str(manifest))
    with pytest.warns(UserWarning, match="skipped 1 of 3 rows"):
        trainer = make_trainer(method, rows, video_manifest=str(manifest), on_bad_sample="skip")
    assert trainer.train_dataset["id"] == ["row-0", "row-2"]
    (listed,) = (json.loads(line) for line in open(f"{trainer.args.output_dir}/skipped_videos_train.jsonl"))
    assert listed["id"] == "row-1" and "gone.mp4" in listed["reason"]
