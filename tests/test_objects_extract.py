# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The object stage on videos: what is stored, what is cached, and what becomes of bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.helpers import user
from tests.oracle_objects import COLORS, oracle_detect, oracle_track
from tests.test_video import make_clip
from tests.toy_objects import save_toy_grounding_dino, save_toy_owlv2, save_toy_sam2
from trl_temporal.cli import main
from trl_temporal.data.errors import RowError
from trl_temporal.objects.detect import Detections
from trl_temporal.objects.extract import STATUSES, count_statuses, extract_objects
from trl_temporal.objects.masks import union_mask, unpack_masks
from trl_temporal.objects.nouns import NounError
from trl_temporal.objects.stage import OBJECT_FEATURES, ObjectStageConfig, ground_objects
from trl_temporal.video import Video, VideoError

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH, NUM_FRAMES = 48, 64, 12
CONFIG = ObjectStageConfig(num_frames=NUM_FRAMES)


def pictures(red, blue):
    """Two boxes on grey; each is there in its frames."""
    shown = np.full((NUM_FRAMES, HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    for index, picture in enumerate(shown):
        if index in red:
            picture[8:24, index : index + 16] = COLORS["red box"]
        if index in blue:
            picture[28:44, 40:56] = COLORS["blue box"]
    return shown


def video(red=range(NUM_FRAMES), blue=range(NUM_FRAMES), **fields):
    given = {"timestamps_s": np.arange(NUM_FRAMES) / 4, "duration_s": NUM_FRAMES / 4, "path": "toy.mp4", **fields}
    return Video(frames=pictures(red, blue), **given)


def ground(nouns=("red box", "blue box"), config=CONFIG, **shown):
    return ground_objects(video(**shown), list(nouns), oracle_detect, oracle_track, config)


def test_objects_are_found_and_tracked():
    found = ground(blue=range(4, NUM_FRAMES))
    assert found["grounding_status"] == "ok" and found["object_nouns"] == ["red box", "blue box"]
    assert found["object_start_s"] == 1.0 and found["object_span"] == [1.0, 3.0]
    assert set(found) == set(OBJECT_FEATURES)
    tracks, union = unpack_masks(found["object_masks"])
    np.testing.assert_array_equal(union, union_mask(tracks))
    areas = tracks.sum(axis=(2, 3))
    assert areas.tolist() == [[256] * 12, [0] * 4 + [256] * 8]  # backward too: red is there before the start
    assert np.array(found["object_scores"]).shape == (12, 2) and np.array(found["object_boxes"]).shape == (12, 2, 4)
    np.testing.assert_allclose(found["object_boxes"][5][1], [40 / 64, 28 / 48, 56 / 64, 44 / 48], atol=1e-4)


def test_the_paper_tracks_forward_alone():
    config = ObjectStageConfig(num_frames=NUM_FRAMES, track_backward=False)
    tracks, union = unpack_masks(ground(config=config, blue=range(4, NUM_FRAMES))["object_masks"])
    assert not union[:4].any() and tracks[0, 4:].any(axis=(1, 2)).all()


def test_no_noun_gives_the_whole_picture():
    found = ground(nouns=[])
    tracks, union = unpack_masks(found["object_masks"])
    assert found["grounding_status"] == "no_nouns" and tracks.shape == (0, 12, HEIGHT, WIDTH) and union.all()
    assert found["object_start_s"] is found["object_span"] is None and found["object_order"] == []


def test_a_noun_that_is_never_seen_is_left_out():
    found = ground(nouns=["kite", "red box"])
    tracks, union = unpack_masks(found["object_masks"])
    assert found["grounding_status"] == "partial:kite" and found["object_order"] == [1]
    assert not tracks[0].any() and tracks[1].any() and not union.all()
    strict = ground(nouns=["kite", "red box"], config=ObjectStageConfig(num_frames=NUM_FRAMES, strict_gate=True))
    assert strict["grounding_status"] == "not_found" and unpack_masks(strict["object_masks"])[1].all()


def test_no_noun_that_is_seen_gives_the_whole_picture():
    found = ground(nouns=["kite"])
    assert found["grounding_status"] == "not_found" and unpack_masks(found["object_masks"])[1].all()


def test_an_object_that_hides_on_the_way_is_not_lost():
    found = ground(red=[0, 1, 2, 3, 8, 9, 10, 11])
    tracks, _ = unpack_masks(found["object_masks"])
    assert found["grounding_status"] == "ok" and not tracks[0, 4:8].any()


def test_an_object_that_leaves_is_told_and_stays_empty():
    found = ground(red=range(6))
    tracks, _ = unpack_masks(found["object_masks"])
    assert found["grounding_status"] == "track_lost:red box" and not tracks[0, 6:].any()


def test_a_track_that_is_empty_from_the_start_is_told():
    def lose(frames, start, boxes, backward):
        return np.zeros((len(boxes), *frames.shape[:3]), dtype=bool)

    found = ground_objects(video(), ["red box"], oracle_detect, lose, CONFIG)
    assert found["grounding_status"] == "track_lost:red box" and not unpack_masks(found["object_masks"])[1].any()


def test_a_mask_of_everything_is_told():
    def everything(frames, start, boxes, backward):
        return np.ones((len(boxes), *frames.shape[:3]), dtype=bool)

    assert ground_objects(video(), ["red box"], oracle_detect, everything, CONFIG)["grounding_status"] == "mask_full"


def test_fewer_frames_than_the_persistence():
    shown = video()
    short = Video(shown.frames[:1], shown.timestamps_s[:1], 0.25, "one.mp4")
    found = ground_objects(short, ["red box"], oracle_detect, oracle_track, CONFIG)
    assert found["grounding_status"] == "ok" and found["object_span"] == [0.0, 0.25]


def test_two_nouns_of_one_thing_are_one_in_the_order():
    def twice(frames, nouns):
        scores, boxes = oracle_detect(frames, ["red box"])
        return Detections(scores * [1.0, 0.9], np.repeat(boxes, 2, axis=1))

    found = ground_objects(video(), ["red box", "red thing"], twice, oracle_track, CONFIG)
    assert found["object_order"] == [0] and len(found["object_masks"]["tracks"]) == 2


def test_stored_masks_are_small_and_binary():
    config = ObjectStageConfig(num_frames=NUM_FRAMES, mask_side=32)
    tracks, _ = unpack_masks(ground(config=config)["object_masks"])
    assert tracks.shape == (2, 12, 24, 32) and tracks[:, 4].sum(axis=(1, 2)).tolist() == [64, 64]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timestamps_s": np.zeros(NUM_FRAMES)}, "have to increase"),
        ({"duration_s": 0.0}, "end before its duration"),
        ({"duration_s": float("nan")}, "end before its duration"),
        ({"timestamps_s": np.arange(3)}, "12 frames and 3 times"),
    ],
)
def test_times_that_cannot_be(fields, message):
    with pytest.raises(VideoError, match=f"toy.mp4: .*{message}"):
        ground_objects(video(**fields), ["red box"], oracle_detect, oracle_track, CONFIG)


@pytest.mark.parametrize(
    ("score", "box", "message"),
    [
        (-2.5, (0, 0, 1, 1), "scores that are not 0 to 1"),
        (float("nan"), (0, 0, 1, 1), "scores that are not 0 to 1"),
        (0.5, (10, 10, 40, 40), "boxes that are none"),
        (0.5, (0.6, 0, 0.2, 1), "boxes that are none"),
        (0.5, (float("nan"), 0, 1, 1), "boxes that are none"),
    ],
)
def test_what_a_detector_cannot_find_is_named_with_the_video(score, box, message):
    def detect(frames, nouns):
        return Detections(np.full((len(frames), 1), score), np.tile(box, (len(frames), 1, 1)))

    with pytest.raises(ValueError, match=f"toy.mp4: the detector gave {message}"):
        ground_objects(video(), ["red box"], detect, oracle_track, CONFIG)


def test_models_that_give_other_shapes_are_named():
    def short(frames, nouns):
        return Detections(np.zeros((1, 1)), np.zeros((1, 1, 4)))

    def logits(frames, start, boxes, backward):
        return np.zeros((len(boxes), *frames.shape[:3]), dtype=np.float32)

    with pytest.raises(ValueError, match="the detector gave scores of shape"):
        ground_objects(video(), ["red box"], short, oracle_track, CONFIG)
    with pytest.raises(ValueError, match="the tracker gave masks of shape .* float32"):
        ground_objects(video(), ["red box"], oracle_detect, logits, CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0"),
        ({"fallback_floor": -0.1}, "fallback_floor is -0.1"),
        ({"detection_threshold": 0.0}, "threshold of 'a noun' is 0.0"),
        ({"detection_threshold": {"dog": 1.5}}, "threshold of 'dog' is 1.5"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectStageConfig(**settings)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    shown = {"both": pictures(range(12), range(12)), "late": pictures(range(12), range(6, 12))}
    return {
        name: str(make_clip(folder / f"{name}.mp4", np.arange(12) * 250, rate=4, pictures=frames))
        for name, frames in shown.items()
    }


def row(path, question, **columns):
    return {"id": "row", "videos": [{"path": path}], "prompt": user(question, path is not None), **columns}


def rows_of(clips):
    return datasets.Dataset.from_list(
        [
            row(clips["both"], "When does the red box touch the blue box?", id="a", objects=None),
            row(clips["late"], "When does the blue box appear?", id="b", objects=["blue box", "red box"]),
            row(clips["both"], "Where are the blue box and the red box?", id="c", objects=None),
            row(clips["both"], "When does it happen?", id="d", objects=None),
        ]
    )


calls = []


def counting_detect(frames, nouns):
    calls.append(tuple(nouns))
    if "unreadable" in nouns:
        raise NounError("the noun 'unreadable' has 99 tokens.")
    return oracle_detect(frames, nouns)


def run(dataset, cache, **arguments):
    given = {"detect": counting_detect, "track": oracle_track, "config": CONFIG, "progress": False, **arguments}
    return extract_objects(dataset, cache, **given)


def test_a_data_set_gets_its_objects_once_for_each_video_and_set_of_nouns(clips, tmp_path):
    calls.clear()
    done = run(rows_of(clips), tmp_path / "cache")
    assert calls == [("blue box", "red box")] * 2  # "a" and "c" are one, and "d" has no noun
    assert done["id"] == ["a", "b", "c", "d"]
    assert done["grounding_status"] == ["ok", "ok", "ok", "no_nouns"]
    assert done[0]["object_masks"] == done[2]["object_masks"] and done[1]["object_start_s"] > 1
    assert done[1]["objects"] == ["blue box", "red box"]  # what the user wrote stays
    tracks, union = unpack_masks(done[0]["object_masks"])
    assert 230 < tracks.sum(axis=(2, 3)).mean() < 280  # of a compressed video
    assert {name: done.features[name] for name in OBJECT_FEATURES} == dict(OBJECT_FEATURES)

    done.save_to_disk(tmp_path / "saved")
    again = run(datasets.load_from_disk(tmp_path / "saved"), tmp_path / "cache")  # the columns are made anew
    assert len(calls) == 2 and again[:] == done[:]


def test_the_cache_goes_by_content_and_settings(clips, tmp_path):
    cache = tmp_path / "cache"
    calls.clear()
    run(rows_of(clips), cache)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(clips["both"]).read_bytes())
    question = "When does the red box touch the blue box?"
    run(datasets.Dataset.from_list([row(str(copy), question)]), cache)
    assert len(calls) == 2
    copy.write_bytes(Path(clips["late"]).read_bytes())  # the same name, another film
    assert run(datasets.Dataset.from_list([row(str(copy), question)]), cache)[0]["object_start_s"] > 1
    assert len(calls) == 2
    run(datasets.Dataset.from_list([row(str(copy), question)]), cache, config=ObjectStageConfig(num_frames=6))
    assert len(calls) == 3
    cropped = row(str(copy), question) | {"videos": [{"path": str(copy), "start_s": 1.0, "end_s": 2.5}]}
    assert len(run(datasets.Dataset.from_list([cropped]), cache)[0]["object_times_s"]) == 6
    assert len(calls) == 4


def test_rows_that_come_later_are_all_that_is_looked_at(clips, tmp_path):
    calls.clear()
    run(rows_of(clips).select([0]), tmp_path / "cache")
    run(rows_of(clips), tmp_path / "cache")
    assert len(calls) == 2  # of "a" and "b"
    assert not list((tmp_path / "cache").glob("run-*"))


def test_what_failed_is_looked_at_again(clips, tmp_path):
    seen = []

    def fail_once(frames, nouns):
        seen.append(nouns)
        if len(seen) == 1:
            raise NounError("the noun 'red box' is too much for the moment.")
        return oracle_detect(frames, nouns)

    rows = rows_of(clips).select([0])
    with pytest.raises(RowError, match="too much"):
        run(rows, tmp_path / "cache", detect=fail_once)
    assert list(run(rows, tmp_path / "cache", detect=fail_once)["grounding_status"]) == ["ok"]


def test_rows_without_a_video_say_so(clips, tmp_path):
    text = {"id": "t", "videos": [], "prompt": user("What is a box?", False), "objects": None}
    dataset = datasets.concatenate_datasets(
        [rows_of(clips), datasets.Dataset.from_list([text], rows_of(clips).features)]
    )
    done = run(dataset, tmp_path / "cache")
    assert done[4]["grounding_status"] == "no_video" and done[4]["object_masks"] is None


def bad_rows(clips, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    question = "When does the red box move?"
    return {
        "broken": row(str(tmp_path / "broken.mp4"), question),
        "empty": row(str(tmp_path / "empty.mp4"), question),
        "missing": row(str(tmp_path / "missing.mp4"), question),
        "two": row(None, question) | {"videos": [{"path": clips["both"]}, {"path": clips["late"]}]},
        "silent": row(clips["both"], "  "),
        "no_list": row(clips["both"], question, objects=[""]),
        "list": row(None, question) | {"videos": [{"frames": ["1.jpg", "2.jpg"], "fps": 2.0}]},
        "noun": row(clips["both"], question, objects=["unreadable"]),
        "late": row(None, question) | {"videos": [{"path": clips["both"], "start_s": 90.0, "end_s": 99.0}]},
    }


MESSAGES = {
    "broken": "broken.mp4",
    "empty": "empty.mp4",
    "missing": "missing.mp4: no such file",
    "two": "has 2 videos",
    "silent": "column 'prompt': has no question",
    "no_list": "column 'objects': is",
    "list": "is a list of frames",
    "noun": "the noun 'unreadable' has 99 tokens",
    "late": "the crop starts at 90.0 s",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_bad_rows_are_named_or_left_out_and_counted(clips, tmp_path, name):
    good = row(clips["both"], "When does the red box move?", id="good", objects=None)
    bad = bad_rows(clips, tmp_path)[name] | {"id": "bad"}
    dataset = datasets.Dataset.from_list([good, bad])
    with pytest.raises(RowError, match=rf"1 of 2 rows .*row 1 \(id 'bad'\), .*{MESSAGES[name]}"):
        run(dataset, tmp_path / "cache")
    with pytest.warns(UserWarning, match="left out 1 of 2 rows"):
        done = run(dataset, tmp_path / "cache", on_error="skip")
    assert done["id"] == ["good"] and done["grounding_status"] == ["ok"]
    skipped = json.loads((tmp_path / "cache" / "skipped.jsonl").read_text())
    assert skipped["index"] == 1 and skipped["id"] == "bad" and skipped["reason"]
    with pytest.raises(RowError, match="1 of 1 rows"):  # nothing would be left
        run(dataset.select([1]), tmp_path / "cache", on_error="skip")


def test_a_video_that_was_mended_is_looked_at_again(clips, tmp_path):
    rows = datasets.Dataset.from_list([bad_rows(clips, tmp_path)["broken"]])
    with pytest.raises(RowError, match="broken.mp4"):
        run(rows, tmp_path / "cache")
    (tmp_path / "broken.mp4").write_bytes(Path(clips["both"]).read_bytes())
    assert run(rows, tmp_path / "cache")["grounding_status"] == ["ok"]


def test_an_empty_data_set_and_an_unknown_choice(clips, tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        run(rows_of(clips).select([]), tmp_path)
    with pytest.raises(ValueError, match="on_error is 'drop'"):
        run(rows_of(clips), tmp_path, on_error="drop")


def test_frames_in_a_folder_are_videos_too(tmp_path):
    from PIL import Image

    folder = tmp_path / "frames"
    folder.mkdir()
    for index, picture in enumerate(pictures(range(12), range(12))):
        Image.fromarray(picture).save(folder / f"{index:03d}.png")
    entry = {"frames_dir": str(folder), "fps": 4.0}
    dataset = datasets.Dataset.from_list([row(None, "Does the red box move?") | {"videos": [entry]}])
    done = run(dataset, tmp_path / "cache", config=ObjectStageConfig(num_frames=12, max_side=32))
    assert done[0]["grounding_status"] == "ok" and len(done[0]["object_times_s"]) == 12
    assert (done[0]["object_masks"]["height"], done[0]["object_masks"]["width"]) == (24, 32)


def test_a_killed_run_goes_on_where_it_was(clips, tmp_path):
    rows_of(clips).save_to_disk(tmp_path / "rows")
    script = textwrap.dedent(
        f"""
        import os, signal, datasets
        from tests.oracle_objects import oracle_detect, oracle_track
        from trl_temporal.objects.extract import extract_objects
        from trl_temporal.objects.stage import ObjectStageConfig

        def detect(frames, nouns):
            with open({str(tmp_path / "calls")!r}, "a") as file:
                file.write("x")
            if os.path.getsize({str(tmp_path / "calls")!r}) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return oracle_detect(frames, nouns)

        done = extract_objects(
            datasets.load_from_disk({str(tmp_path / "rows")!r}), {str(tmp_path / "cache")!r}, detect=detect,
            track=oracle_track, config=ObjectStageConfig(num_frames=12), progress=False,
        )
        print(*done["grounding_status"])
        """
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    results = []
    for attempt in ("first", "second"):
        # Into a file: what is left of a killed run would hold a pipe open.
        with open(tmp_path / attempt, "w") as file:
            code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.DEVNULL).returncode
        results.append((code, (tmp_path / attempt).read_text().strip()))
    assert results == [(-signal.SIGKILL, ""), (0, "ok ok ok no_nouns")]
    assert (tmp_path / "calls").read_text() == "xxx"  # of two tasks one ran twice


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "grounding": str(save_toy_grounding_dino(root / "grounding")),
        "owl": str(save_toy_owlv2(root / "owl")),
        "sam2": str(save_toy_sam2(root / "sam2")),
    }


def write_rows(clips, path):
    rows = [{name: value for name, value in entry.items() if value is not None} for entry in rows_of(clips)]
    path.write_text("\n".join(json.dumps(entry) for entry in rows))  # the first has no column `objects`
    return str(path)


def test_the_command_runs_real_models(clips, models, tmp_path, capsys, monkeypatch):
    command = ["objects", "extract", write_rows(clips, tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    options = ["--detector", models["owl"], "--tracker", models["sam2"], "--num-frames", "4", "--mask-side", "32"]
    options += ["--detection-threshold", "0.02", "--cache", str(tmp_path / "cache")]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert "rows: 4 rows:" in printed and "no_nouns 1" in printed
    done = datasets.load_from_disk(str(tmp_path / "out"))["rows"]
    assert done["objects"] == [None, ["blue box", "red box"], None, None]
    assert len(done) == 4 and np.array(done[0]["object_scores"]).shape == (4, 2)
    assert done[0]["object_start_s"] is not None  # so SAM 2 has run
    assert unpack_masks(done[0]["object_masks"])[0].shape == (2, 4, 24, 32)
    assert done[0]["object_span"] and done[3]["object_span"] is None

    assert main([*command, *options]) == 1
    assert "is not empty" in capsys.readouterr().err
    monkeypatch.setattr("trl_temporal.objects.detect._load_detector", None)  # nothing is looked for again
    assert main([*command[:3], str(tmp_path / "again"), *options]) == 0
    assert datasets.load_from_disk(str(tmp_path / "again"))["rows"][:] == done[:]


def test_the_command_takes_another_detector_and_another_extractor(clips, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_nouns.py").write_text("def last_word(question):\n    return [question.rstrip('?').split()[-1]]\n")
    command = ["objects", "extract", write_rows(clips, tmp_path / "rows.jsonl"), "out", "--num-frames", "3"]
    command += ["--detector", models["grounding"], "--tracker", models["sam2"], "--nouns", "my_nouns:last_word"]
    monkeypatch.syspath_prepend(str(tmp_path))  # and taken back afterwards
    assert main(command) == 0
    done = datasets.load_from_disk("out")["rows"]
    assert list(done["object_nouns"]) == [["box"], ["blue box", "red box"], ["box"], ["happen"]]
    assert np.array(done[0]["object_scores"]).shape == (3, 1)


def test_a_bad_row_is_one_line_of_the_command(clips, models, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(bad_rows(clips, tmp_path)["missing"]))
    command = ["objects", "extract", str(path), str(tmp_path / "out")]
    assert main([*command, "--detector", models["owl"], "--tracker", models["sam2"]]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "row 0 (id 'row')" in error and "missing.mp4: no such file" in error
    assert main([*command, "--and-gate-persistence", "0"]) == 1
    assert "and_gate_persistence is 0" in capsys.readouterr().err


def test_the_docs_do_what_they_say(clips, tmp_path, monkeypatch, capsys):
    """With toy models in folders that are named as those of the Hub."""
    monkeypatch.chdir(tmp_path)
    save_toy_grounding_dino(tmp_path / "IDEA-Research" / "grounding-dino-tiny")
    save_toy_owlv2(tmp_path / "google" / "owlv2-base-patch16-ensemble")
    for size in ("tiny", "small"):
        save_toy_sam2(tmp_path / "facebook" / f"sam2.1-hiera-{size}")
    rows = datasets.Dataset.from_list([row(clips["both"], "When is the red box at the blue box?", spans=[[0.0, 1.0]])])
    datasets.DatasetDict({"train": rows}).save_to_disk("rows")
    names = {}
    page = (ROOT / "docs" / "objects.md").read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(block, "docs/objects.md", "exec"), names)
            continue
        program, *words = block.split()
        assert program == "trl-temporal" and main(words) == 0
    assert names["rows"][0]["object_nouns"] == ["box"] and names["boxes"].shape == (1, 12, 4)
    done = datasets.load_from_disk("with-objects")["train"]
    assert done[0]["object_nouns"] == ["blue box", "red box"] and "Wrote with-objects" in capsys.readouterr().out
    for name in (*OBJECT_FEATURES, *STATUSES, *(field.name for field in fields(ObjectStageConfig))):
        assert f"`{name}" in page or f"--{name.replace('_', '-')}`" in page, f"docs/objects.md says nothing of {name}"


def test_statuses_are_counted_by_what_they_say():
    counts = count_statuses(["ok", "partial:a;b;partial:c;floor", "track_lost:d;mask_full", "ok"])
    assert counts == {"ok": 2, "partial": 1, "floor": 1, "track_lost": 1, "mask_full": 1}
