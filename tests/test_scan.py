# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Video
from PIL import Image

from tests.test_video import SIDE, make_clip
from trl_temporal.data.row_checks import RowError
from trl_temporal.data.rows import sft_row
from trl_temporal.data.scan import MANIFEST_SCHEMA, apply_manifest, probe, read_manifest, scan_path, scan_videos
from trl_temporal.data.schema import SFT_FEATURES
from trl_temporal.data.shards import run_shards, shard_range
from trl_temporal.video import VideoError, load_video

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Good videos and bad ones, by name."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (90, SIDE, SIDE, 3), dtype=np.uint8)
    faststart = {"movflags": "faststart"}
    found = {
        "constant": make_clip(folder / "constant.mp4", np.arange(60) * 512, Fraction(1, 15360)),
        "variable": make_clip(folder / "variable.mp4", np.cumsum(rng.integers(17, 500, 20))),
        "rounded": make_clip(folder / "rounded.mkv", np.round(np.arange(60) * 1000 / 30)),
        "untimed": make_clip(folder / "untimed.h264", np.arange(50), Fraction(1, 25), rate=25),
        "one_frame": make_clip(folder / "one_frame.mp4", [0], rate=25),
        "cut": make_clip(folder / "cut.mp4", np.arange(90) * 512, Fraction(1, 15360), 30, faststart, noise),
        "scratched": make_clip(
            folder / "scratched.mp4", np.arange(90) * 512, Fraction(1, 15360), 30, faststart, noise
        ),
        "headless": make_clip(folder / "headless.mp4", np.arange(60) * 512, Fraction(1, 15360)),
        "empty": folder / "empty.mp4",
        "text": folder / "text.mp4",
        "missing": folder / "missing.mp4",
        "frames": folder / "frames",
        "no_frames": folder / "no_frames",
    }
    data = found["cut"].read_bytes()
    found["cut"].write_bytes(data[: len(data) // 2])
    data = bytearray(found["scratched"].read_bytes())
    for position in rng.integers(len(data) // 2, len(data) * 3 // 4, 60):
        data[position] ^= 0xFF
    found["scratched"].write_bytes(data)
    data = found["headless"].read_bytes()
    found["headless"].write_bytes(data[: len(data) // 2])  # its index is at the end
    found["empty"].write_bytes(b"")
    found["text"].write_text("not a video\n" * 100)
    found["no_frames"].mkdir()
    found["frames"].mkdir()
    for index in range(4):
        Image.fromarray(noise[index, :32]).save(found["frames"] / f"{index}.png")
    return {name: str(path) for name, path in found.items()}


def test_good_videos(videos):
    record = probe(videos["constant"])
    assert list(record) == MANIFEST_SCHEMA.names
    assert record == {
        "path": videos["constant"],
        "status": "ok",
        "note": None,
        "size_bytes": os.path.getsize(videos["constant"]),
        "codec": "h264",
        "width": SIDE,
        "height": SIDE,
        "average_fps": 30.0,
        "num_frames": 60,
        "duration_s": 2.0,
        "decoded_frames": 60,
        "decoded_duration_s": 2.0,
        "decodes_to_end": True,
        "variable_frame_rate": False,
    }
    assert probe(videos["variable"])["variable_frame_rate"] is True
    assert probe(videos["rounded"])["variable_frame_rate"] is False, "Matroska rounds to milliseconds"
    assert probe(videos["one_frame"])["decoded_frames"] == 1
    untimed = probe(videos["untimed"])
    assert untimed["note"] == "50 of 50 frames have no timestamp" and untimed["decoded_duration_s"] == 2.0


@pytest.mark.parametrize("name", ["constant", "variable", "rounded", "untimed", "one_frame", "cut", "scratched"])
def test_a_scan_says_what_training_will_see(videos, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        video = load_video(videos[name], fps=4)
    record = probe(videos[name])
    assert record["decoded_duration_s"] == pytest.approx(video.duration_s, abs=1e-6)
    assert record["decodes_to_end"] == (not any("truncated" in note for note in video.warnings))
    assert (record["status"] == "damaged") == any("truncated" in note or "faults" in note for note in video.warnings)
    assert bool(record["note"]) == bool(caught)


def test_bad_videos(videos):
    cut = probe(videos["cut"])
    assert cut["status"] == "damaged" and cut["decodes_to_end"] is False and cut["duration_s"] == 3.0
    assert 1 < cut["decoded_duration_s"] < 2 and cut["decoded_frames"] < cut["num_frames"] == 90
    assert cut["note"].startswith("truncated or damaged: the header says 3.00 s, but 1.")
    scratched = probe(videos["scratched"])
    assert scratched["status"] == "damaged" and scratched["decodes_to_end"] is True
    assert "the decoder reports" in scratched["note"]
    for name in ("headless", "empty", "text", "no_frames"):
        record = probe(videos[name])
        assert record["status"] == "unreadable" and record["note"], name
        assert not record["note"].startswith(videos[name]), "the path has a field of its own"
    assert probe(videos["missing"])["status"] == "missing"


def test_header_alone_believes_a_truncated_file(videos):
    record = probe(videos["cut"], decode="header")
    assert record["status"] == "ok" and record["duration_s"] == 3.0 and record["decoded_duration_s"] is None
    assert record["decodes_to_end"] is None and record["variable_frame_rate"] is None
    assert probe(videos["text"], decode="header")["status"] == "unreadable"


@pytest.mark.parametrize("decode", ["full", "header"])
def test_folders_of_frames(videos, decode, tmp_path):
    record = probe(videos["frames"], decode)
    assert (record["status"], record["codec"], record["num_frames"]) == ("ok", "frames", 4)
    assert (record["width"], record["height"]) == (SIDE, 32)
    for name in ("0.png", "1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "2.png").write_text("no image")
    assert probe(str(tmp_path), decode)["status"] == ("unreadable" if decode == "full" else "ok")


def test_a_decoder_that_crashes_costs_one_video(videos, monkeypatch):
    def fail(path):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr("trl_temporal.data.scan.probe_video", fail)
    record = probe(videos["constant"])
    assert record["status"] == "unreadable" and record["note"].startswith("UnicodeDecodeError: ")


def rows_dataset(entries, spans=((0.5, 1.0),)):
    rows = [
        sft_row(
            id=f"row-{index}",
            source="test",
            task="grounding",
            video=entry,
            question="When?",
            response="<evi> </evi> It happens in <evi>.",
            spans=spans,
            all_spans=(),
            duration=2.0,
        )
        for index, entry in enumerate(entries)
    ]
    return Dataset.from_list(rows, features=SFT_FEATURES)


def test_manifest_is_the_same_for_any_number_of_workers(videos, tmp_path):
    dataset = rows_dataset([{"path": path} for path in videos.values() if not os.path.isdir(path)] * 2)
    dataset = DatasetDict({"train": dataset, "test": rows_dataset([{"frames_dir": videos["frames"], "fps": 2.0}])})
    for workers in (1, 3):
        counts = scan_videos(dataset, tmp_path / f"{workers}.jsonl", num_workers=workers, progress=False)
    assert counts == {"ok": 6, "damaged": 2, "unreadable": 3, "missing": 1}
    written = [(tmp_path / f"{workers}.jsonl").read_bytes() for workers in (1, 3)]
    assert written[0] == written[1]
    records = list(map(json.loads, written[0].splitlines()))
    assert [record["path"] for record in records] == sorted(set(videos.values()) - {videos["no_frames"]})
    assert sorted(os.listdir(tmp_path)) == ["1.jsonl", "3.jsonl"], "nothing is left over"

    scan_videos(dataset, tmp_path / "1.parquet", num_workers=1, progress=False)
    assert read_manifest(tmp_path / "1.parquet") == read_manifest(tmp_path / "1.jsonl")


def test_paths_of_other_columns(videos, tmp_path):
    paths = [videos["constant"], videos["variable"], videos["constant"]]
    as_videos = Dataset.from_dict({"videos": paths}).cast_column("videos", Video())
    for source in (paths, map(Path, paths), as_videos, [{"videos": [path]} for path in paths]):
        scan_videos(source, tmp_path / "videos.jsonl", num_workers=1, decode="header", progress=False)
        assert list(read_manifest(tmp_path / "videos.jsonl")) == sorted(set(paths))


def test_more_videos_than_shards(videos, tmp_path):
    paths = [str(tmp_path / f"{index:03d}.mp4") for index in range(150)]
    for path in paths[::2]:
        os.link(videos["one_frame"], path)
    counts = scan_videos(paths, tmp_path / "videos.jsonl", num_workers=1, decode="header", progress=False)
    assert counts == {"ok": 75, "missing": 75}
    assert list(read_manifest(tmp_path / "videos.jsonl")) == paths


@pytest.mark.parametrize("num_items, num_shards", [(0, 1), (1, 1), (5, 2), (64, 64), (1000, 64)])
def test_shards_have_every_item_once(num_items, num_shards):
    shards = [shard_range(num_items, rank, num_shards) for rank in range(num_shards)]
    assert [index for shard in shards for index in shard] == list(range(num_items))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


KILLED_SCAN = """
    import os, signal, sys
    from trl_temporal.data import scan

    manifest, log, kill_at, *paths = sys.argv[1:]
    probe = scan.probe

    def probe_and_die(path, decode):
        with open(log, "a") as file:
            file.write(path + "\\n")
        if sum(1 for line in open(log)) == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return probe(path, decode)

    scan.probe = probe_and_die
    scan.scan_videos(paths, manifest, num_workers=1, progress=False)
"""


def test_a_killed_scan_goes_on(videos, tmp_path):
    paths = sorted(path for path in videos.values() if not os.path.isdir(path))

    def scan(kill_at):
        log = tmp_path / f"probed-{kill_at}"
        arguments = [str(tmp_path / "killed.jsonl"), str(log), str(kill_at), *paths]
        command = [sys.executable, "-c", textwrap.dedent(KILLED_SCAN), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        code = subprocess.run(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode
        return code, log.read_text().splitlines()

    code, probed = scan(kill_at=6)
    assert code == -signal.SIGKILL and probed == paths[:6] and not (tmp_path / "killed.jsonl").exists()
    code, probed = scan(kill_at=-1)
    assert code == 0 and probed == paths[5:], "only the shard that was running is lost"
    assert not (tmp_path / "killed.jsonl.scan").exists()

    scan_videos(paths, tmp_path / "whole.jsonl", num_workers=1, progress=False)
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_shards_of_other_videos_are_not_taken(videos, tmp_path, monkeypatch):
    manifest = tmp_path / "videos.jsonl"
    monkeypatch.setattr("trl_temporal.data.scan._write_manifest", lambda *_: 1 / 0)  # every shard is done, no manifest
    with pytest.raises(ZeroDivisionError):
        scan_videos([videos["constant"]], manifest, num_workers=1, progress=False)
    monkeypatch.undo()
    for decode, frames in (("header", None), ("full", 60)):
        scan_videos([videos["constant"]], manifest, num_workers=1, decode=decode, progress=False)
        assert read_manifest(manifest)[videos["constant"]]["decoded_frames"] == frames
    scan_videos([videos["variable"]], manifest, num_workers=1, progress=False)
    assert list(read_manifest(manifest)) == [videos["variable"]]


def test_progress_and_no_more(videos, tmp_path):
    code = "import sys; from trl_temporal.data.scan import scan_videos; scan_videos(sys.argv[2:], sys.argv[1])"
    arguments = [str(tmp_path / "videos.jsonl"), videos["constant"], videos["variable"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == ""
    assert "Scanning videos: 100%" in result.stderr and "2/2" in result.stderr
    assert "datatrove" not in result.stderr and "PIPELINE" not in result.stderr


def test_nothing_to_scan(tmp_path):
    with pytest.raises(ValueError, match="there is no video to scan"):
        scan_videos([], tmp_path / "videos.jsonl")
    with pytest.raises(ValueError, match="no column 'videos', only prompt"):
        scan_videos(Dataset.from_dict({"prompt": ["?"]}), tmp_path / "videos.jsonl")
    with pytest.raises(ValueError, match="decode is 'all'; it must be 'full' or 'header'"):
        scan_videos(["a.mp4"], tmp_path / "videos.jsonl", decode="all")
    with pytest.raises(ValueError, match="executor is 'dask'; it must be one of 'local', 'slurm', 'ray'"):
        scan_videos(["a.mp4"], tmp_path / "videos.jsonl", executor="dask")
    with pytest.raises(RowError, match="row 1, column 'videos': has an entry with no source or two"):
        scan_videos([{"videos": ["a.mp4"]}, {"videos": [{}]}], tmp_path / "videos.jsonl")


def test_slurm_submits_and_the_second_call_collects(videos, tmp_path, monkeypatch):
    """Without a cluster: what would be submitted has the shards, and a scan that is not done writes no manifest."""
    import datatrove.executor

    made = {}

    class Submits(datatrove.executor.LocalPipelineExecutor):
        def __init__(self, *, time, partition, **kwargs):
            super().__init__(**kwargs)
            made.update(time=time, partition=partition, tasks=self.tasks, pipeline=self.pipeline)

        def run(self):
            pass

    monkeypatch.setattr(datatrove.executor, "SlurmPipelineExecutor", Submits)
    arguments = {"executor": "slurm", "executor_args": {"time": "01:00:00", "partition": "cpu"}, "num_workers": 1}
    paths = [videos["constant"], videos["missing"]]
    assert scan_videos(paths, tmp_path / "videos.jsonl", **arguments) is None
    assert (made["time"], made["partition"], made["tasks"]) == ("01:00:00", "cpu", 2)
    assert not (tmp_path / "videos.jsonl").exists()
    monkeypatch.setattr(Submits, "run", datatrove.executor.LocalPipelineExecutor.run)
    assert scan_videos(paths, tmp_path / "videos.jsonl", **arguments) == {"ok": 1, "missing": 1}


@pytest.mark.slow
def test_ray(videos, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})
    try:
        paths = [path for path in videos.values() if not os.path.isdir(path)]
        arguments = {"executor": "ray", "executor_args": {"mem_per_cpu_gb": 0.5}}
        counts = scan_videos(paths, tmp_path / "ray.jsonl", progress=False, **arguments)
    finally:
        ray.shutdown()
    assert scan_videos(paths, tmp_path / "local.jsonl", num_workers=1, progress=False) == counts
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_an_error_in_a_worker_is_raised(tmp_path):
    from trl_temporal.data.scan import _ScanStep

    for workers in (1, 2):
        with pytest.raises(FileNotFoundError, match="inputs.json"):
            run_shards(_ScanStep(str(tmp_path / "nowhere")), [1, 1], tmp_path / "log", num_workers=workers)


# Training


@pytest.fixture(scope="module")
def manifest(videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "videos.jsonl"
    scan_videos(videos.values(), path, num_workers=1, progress=False)
    return path


def test_rows_with_good_videos_are_kept(videos, manifest):
    entries = [
        {"path": videos["constant"]},
        {"path": videos["cut"]},  # the span is in the part that decodes
        {"path": videos["constant"], "start_s": 0.5, "end_s": 1.8},
        {"frames_dir": videos["frames"], "fps": 2.0},
    ]
    dataset = rows_dataset(entries)
    assert apply_manifest(dataset, manifest) is dataset
    text_only = Dataset.from_dict({"videos": [[]], "prompt": ["Hello?"]})
    assert apply_manifest(text_only, manifest) is text_only


BAD_ENTRIES = {
    "missing": ({"path": "missing"}, "missing.mp4: there is no such file or folder"),
    "unreadable": ({"path": "text"}, "text.mp4: not a readable video"),
    "not scanned": ({"path": "other"}, "other: is not in the manifest"),
    "span": (
        {"path": "one_frame"},
        r"one_frame.mp4: the span \[0.5, 1.0\] of 'spans' begins after the end at 0.040 s",
    ),
    "folder as file": ({"path": "frames"}, "frames: is a folder; 'path' names a file"),
    "file as folder": ({"frames_dir": "constant", "fps": 2.0}, "constant.mp4: is a file; 'path' names a file"),
    "crop": ({"path": "constant", "start_s": 2.5}, "ends at 2.0 s, before its crop begins at 2.5 s"),
    "span of crop": (
        {"path": "constant", "start_s": 1.6},
        r"span \[0.5, 1.0\] of 'spans' begins after the end at 0.4",
    ),
    "frames": ({"frames_dir": "frames", "fps": 10.0}, r"frames: the span \[0.5, 1.0\] .* after the end at 0.400 s"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_rows_with_bad_videos_are_refused(videos, manifest, name):
    entry, message = BAD_ENTRIES[name]
    entry = {key: videos.get(value, value) if isinstance(value, str) else value for key, value in entry.items()}
    with pytest.raises(
        RowError, match=rf"^1 of 2 rows \(1 .*\) .* The first: row 1 \(id 'row-1'\), video .*{message}"
    ):
        apply_manifest(rows_dataset([{"path": videos["constant"]}, entry]), manifest)


def test_rows_with_bad_videos_are_dropped_and_counted(videos, manifest, tmp_path):
    names = ["constant", "missing", "text", "missing", "cut", "one_frame"]
    dataset = rows_dataset([{"path": videos[name]} for name in names])
    skipped = tmp_path / "skipped" / "videos.jsonl"
    message = r"skipped 4 of 6 rows \(2 missing, 1 unreadable, 1 too short\).*videos.jsonl says which and why"
    with pytest.warns(UserWarning, match=message):
        kept = apply_manifest(dataset, manifest, "skip", skipped)
    assert kept["id"][:] == ["row-0", "row-4"]
    entries = list(map(json.loads, skipped.read_text().splitlines()))
    assert [(entry["index"], entry["id"]) for entry in entries] == [(i, f"row-{i}") for i in (1, 2, 3, 5)]
    assert "no such file" in entries[0]["reason"]
    with pytest.warns(UserWarning):
        apply_manifest(dataset, manifest, "skip")
    assert (manifest.parent / "skipped.jsonl").read_bytes() == skipped.read_bytes()


def test_no_row_left(videos, manifest):
    with pytest.raises(
        RowError, match=r"2 of 2 rows \(2 missing\) have a video that cannot be used. The first: row 0"
    ):
        apply_manifest(rows_dataset([{"path": videos["missing"]}] * 2), manifest, "skip")
    with pytest.raises(ValueError, match="on_bad_sample is 'ignore'"):
        apply_manifest(rows_dataset([{"path": videos["missing"]}]), manifest, "ignore")


def test_what_the_manifest_keeps_can_be_read(videos, manifest):
    dataset = rows_dataset([{"path": path} for path in videos.values()])
    with pytest.warns(UserWarning):
        kept = apply_manifest(dataset, manifest, "skip")
        readable = []
        for row in dataset:
            try:
                readable.append(load_video(row["videos"][0]["path"], fps=2, end_s=1.0).duration_s > 0.5)
            except VideoError:
                readable.append(False)
    assert kept["id"][:] == [f"row-{index}" for index, good in enumerate(readable) if good]


# Command


def test_scan_path(videos, event_world, tmp_path, capsys):
    event_world.save_to_disk(tmp_path / "world")
    assert scan_path(tmp_path / "world", tmp_path / "world.jsonl", num_workers=1) == 0
    output = capsys.readouterr().out
    assert f"ok         │ {len(read_manifest(tmp_path / 'world.jsonl'))} " in output
    for split in event_world.values():
        assert apply_manifest(split, tmp_path / "world.jsonl") is split

    folder = Path(videos["constant"]).parent
    assert scan_path(folder, tmp_path / "folder.jsonl", num_workers=1) == 1
    output = capsys.readouterr().out
    assert "cut.mp4: truncated or damaged" in output and "empty.mp4: the file is empty" in output
    statuses = Counter(record["status"] for record in read_manifest(tmp_path / "folder.jsonl").values())
    assert statuses == {"ok": 4, "damaged": 2, "unreadable": 3}  # of the videos by suffix
    assert scan_path(videos["constant"], tmp_path / "one.jsonl", num_workers=1) == 0

    lines = [json.dumps({"videos": [videos["constant"]]}), json.dumps({"videos": [{"path": videos["missing"]}]})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert scan_path(tmp_path / "rows.jsonl", tmp_path / "rows_manifest.jsonl", num_workers=1) == 1
    assert "missing    │ 1 " in capsys.readouterr().out
