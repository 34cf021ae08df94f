# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Which videos are selected for TEMPLE, and why others are not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.test_video import make_clip
from trl_temporal.cli import main
from trl_temporal.synthesis.temple_grouping import color_histogram
from trl_temporal.synthesis.temple_selection import name_of, select_path, select_video, select_videos
from trl_temporal.synthesis.temple_shots import detect_shots, shots_in_frames, walk_frames

pytest.importorskip("scenedetect")
ROOT = Path(__file__).parent.parent
SIDE = 32


def scene(seed: int, num_frames: int) -> list[np.ndarray]:
    """A picture of coloured blocks, the same for every seed, with a grey line that moves."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3))
    pictures = np.repeat(np.kron(blocks, np.ones((SIDE // 4, SIDE // 4, 1)))[None], num_frames, axis=0)
    for index, picture in enumerate(pictures):
        picture[index % SIDE] = 128
    return list(pictures.astype(np.uint8))


def film(path, *scenes, ticks=None, rate=25) -> str:
    """A video of scenes `(seed, num_frames)`."""
    pictures = [picture for seed, num_frames in scenes for picture in scene(seed, num_frames)]
    ticks = np.arange(len(pictures)) * 512 * 25 // rate if ticks is None else ticks
    return str(make_clip(path, ticks, Fraction(1, 12800), rate, pictures=pictures))


FIVE = [(1, 12), (2, 15), (3, 20), (4, 10), (5, 18)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos by what should become of them."""
    folder = tmp_path_factory.mktemp("videos")
    levels = np.repeat(np.uint8([0, 60, 120, 180, 240]), 20)
    grey = [np.full((SIDE, SIDE, 3), level) for level in levels]
    found = {
        "selected": film(folder / "selected.mp4", *FIVE),
        "one_shot": film(folder / "one_shot.mp4", (1, 100)),
        "many_shots": film(folder / "many_shots.mp4", *((seed, 8) for seed in range(500))),
        "short": film(folder / "short.mp4", *((seed, 4) for seed in range(5))),
        "fast": film(folder / "fast.mp4", *((seed, 10) for seed in range(5)), rate=60),
        "flat": make_clip(folder / "flat.mp4", np.arange(100) * 512, Fraction(1, 12800), 25, pictures=grey),
        "black": make_clip(
            folder / "black.mp4", np.arange(100) * 512, Fraction(1, 12800), 25, pictures=grey[:1] * 100
        ),
        "one_frame": film(folder / "one_frame.mp4", (1, 1)),
        "long": film(folder / "long.mp4", (1, 90), (2, 10), (3, 10), (4, 10), rate=5),
        "alike": film(folder / "alike.mp4", (1, 12), (2, 12), (1, 12), (2, 12), (3, 12)),
        "recurring": film(folder / "recurring.mp4", (1, 12), (2, 12), (3, 12), (4, 12), (1, 12)),
        "copy": folder / "the_copy.mp4",
        "text": folder / "text.mp4",
        "empty": folder / "empty.mp4",
        "cut_off": film(folder / "cut_off.mp4", *FIVE),
        "missing": folder / "missing.mp4",
    }
    found["copy"].write_bytes(Path(found["selected"]).read_bytes())
    Path(found["cut_off"]).write_bytes(Path(found["cut_off"]).read_bytes()[:2000])
    found["text"].write_text("not a video\n" * 50)
    found["empty"].write_bytes(b"")
    return {name: str(path) for name, path in found.items()}


def test_selected(videos):
    found = select_video(videos["selected"], detect_shots, color_histogram)
    assert list(found) == ["duration_s", "clips"] and found["duration_s"] == 3.0
    edges = np.cumsum([0, *(num_frames for _, num_frames in FIVE)]).tolist()
    assert [(clip["start_frame"], clip["end_frame"]) for clip in found["clips"]] == list(
        zip(edges, edges[1:], strict=False)
    )
    assert [clip["group"] for clip in found["clips"]] == [0, 1, 2, 3, 4]
    for clip in found["clips"]:
        assert (clip["start_s"], clip["end_s"]) == (clip["start_frame"] / 25, clip["end_frame"] / 25)
        assert clip["key_frames_s"] == [frame / 25 for frame in clip["key_frames"]]
        assert clip["start_frame"] < clip["key_frames"][0] < clip["key_frames"][1] < clip["end_frame"]
    assert list(clip) == ["start_s", "end_s", "start_frame", "end_frame", "group", "key_frames", "key_frames_s"]


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("one_shot", "too_few_shots", {"shots": 1}),
        ("black", "too_few_shots", {"shots": 1}),
        ("one_frame", "too_few_shots", {"shots": 1}),
        ("many_shots", "too_many_shots", {"shots": 500, "short_or_flat": 0}),
        ("short", "too_few_shots", {"shots": 5, "short_or_flat": 5}),
        ("fast", "too_few_shots", {"shots": 5, "short_or_flat": 5}),
        ("flat", "too_few_shots", {"shots": 5, "short_or_flat": 5}),
        ("long", "clip_too_long", {"longest_s": 18.0, "shots": 4, "short_or_flat": 0}),
        ("recurring", "recurring_group", {"group": 0, "groups_of_clips": [0, 1, 2, 3, 0], "shots": 5}),
        ("text", "undecodable", {"error": "not a readable video"}),
        ("empty", "undecodable", {"error": "the file is empty"}),
        ("cut_off", "undecodable", {"error": "not a readable video"}),
        ("missing", "undecodable", {"error": "no such file"}),
    ],
)
def test_rejected(videos, name, reason, detail):
    found = select_video(videos[name], detect_shots, color_histogram)
    assert list(found) == ["reason", "detail"] and found["reason"] == reason
    for key, value in detail.items():
        if key == "error":
            assert found["detail"][key].startswith(value)
        else:
            assert found["detail"][key] == value


def test_shots_that_look_alike(videos):
    """Groups as an embedder says: shots of one group behind one another are one clip."""

    def embed_as(*groups):
        return lambda frames: np.eye(10)[list(groups)]

    def select(*groups):
        return select_video(videos["selected"], detect_shots, embed_as(*groups))

    clips = select(3, 3, 1, 2, 0)["clips"]
    assert [clip["group"] for clip in clips] == [0, 1, 2, 3]
    assert (clips[0]["start_frame"], clips[0]["end_frame"]) == (0, 27), "two shots"
    first, second = clips[0]["key_frames"]
    assert 5 <= first < 13 and 14 <= second < 22, "around a third and two thirds of both"
    assert select(0, 0, 0, 1, 2) == {
        "reason": "too_few_groups",
        "detail": {"clips": 3, "groups": 3, "shots": 5, "short_or_flat": 0},
    }
    assert select(0, 1, 2, 3, 1)["reason"] == "recurring_group"


def test_a_shot_that_is_left_out_parts_no_clip(videos):
    detect = lambda path: [(0, 0.48), (0.48, 0.6), (0.6, 1.2), (1.2, 1.8), (1.8, 2.4), (2.4, 3.0)]  # noqa: E731
    found = select_video(videos["selected"], detect, lambda frames: np.eye(10)[[0, 0, 1, 2, 3]])
    assert [(clip["start_frame"], clip["end_frame"]) for clip in found["clips"]] == [
        (0, 30),
        (30, 45),
        (45, 60),
        (60, 75),
    ]


def test_times_are_the_decoders(tmp_path):
    """At a rate that varies, and in a file whose timestamps are rounded."""
    gaps = np.random.default_rng(0).integers(400, 2000, 75)
    variable = film(tmp_path / "variable.mp4", *FIVE, ticks=np.cumsum(gaps) - gaps[0])
    edges_s = (np.cumsum(gaps) - gaps[0]) / 12800
    found = select_video(variable, detect_shots, color_histogram)
    starts = np.cumsum([0, *(num_frames for _, num_frames in FIVE)])[:-1]
    assert [clip["start_frame"] for clip in found["clips"]] == starts.tolist()
    for clip in found["clips"]:
        seconds = [clip["start_s"], *clip["key_frames_s"]]
        np.testing.assert_allclose(seconds, edges_s[[clip["start_frame"], *clip["key_frames"]]], atol=1e-6)
    matroska = film(tmp_path / "rounded.mkv", *FIVE, rate=30, ticks=np.arange(75) * 12800 // 30)
    found = select_video(matroska, detect_shots, color_histogram)
    assert [clip["start_frame"] for clip in found["clips"]] == starts.tolist()
    np.testing.assert_allclose([clip["start_s"] for clip in found["clips"]], starts / 30, atol=6e-4)


def test_a_detector_that_fails(videos):
    def fails(path):
        raise RuntimeError("no weights")

    def backwards(path):
        return [(0, 1), (1, 2), (2, 1.5), (2, 3)]

    def overlaps(path):
        return [(0, 1), (0.8, 2), (2, 2.5), (2.5, 3)]

    for detect, words in ((fails, "RuntimeError: no weights"), (backwards, "shot 2"), (overlaps, "shot 1")):
        found = select_video(videos["selected"], detect, color_histogram)
        assert found["reason"] == "detector_failed" and found["detail"]["error"].startswith(words)
    for wrong in ([1, 2, 3, 4], [(0, 1, 2)] * 4, [(0, float("nan"))] * 4):
        assert select_video(videos["selected"], lambda path, it=wrong: it, color_histogram)["reason"] == (
            "detector_failed"
        )


def test_rounded_seconds_find_their_frames():
    edges_s = np.arange(101) / 29.97
    frames = np.array([[0, 30], [30, 77], [77, 100]])
    assert shots_in_frames(np.round(edges_s[frames], 2), edges_s).tolist() == frames.tolist()
    assert shots_in_frames([(0, 1e9)], edges_s).tolist() == [[0, 100]], "the end of the video is the end"


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_manifest(videos, tmp_path):
    paths = [path for name, path in videos.items() if name != "many_shots"]  # it takes long
    counts = select_videos(paths, tmp_path / "one", embed=color_histogram, num_workers=1, progress=False)
    assert counts == {
        "selected": 1,
        "too_few_shots": 6,
        "clip_too_long": 1,
        "recurring_group": 2,
        "undecodable": 4,
        "duplicate": 1,
    }
    selected, rejected = (read_lines(tmp_path / "one" / name) for name in ("selected.jsonl", "rejected.jsonl"))
    assert [line["path"] for line in rejected] == sorted(set(paths) - {videos["selected"]})
    assert selected[0]["video_id"] == "selected" and selected[0]["path"] == videos["selected"]
    assert list(selected[0]) == ["video_id", "path", "duration_s", "clips"]
    assert all(list(line) == ["video_id", "path", "reason", "detail"] for line in rejected)
    reasons = {line["video_id"]: line for line in rejected}
    assert reasons["the_copy"]["reason"] == "duplicate"
    assert reasons["the_copy"]["detail"] == {"of": videos["selected"]}
    assert not list((tmp_path / "one" / "cache").glob("run-*"))

    select_videos(paths[::-1], tmp_path / "two", embed=color_histogram, num_workers=2, progress=False)
    for name in ("selected.jsonl", "rejected.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_names_of_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    film(tmp_path / "a" / "one.mp4", (1, 5))
    film(tmp_path / "b" / "one.mp4", (2, 6))
    film(tmp_path / "b" / "two.mp4", (3, 7))
    assert select_path(tmp_path, tmp_path / "out", embedder="histogram", num_workers=1) == 1
    ids = [line["video_id"] for line in read_lines(tmp_path / "out" / "rejected.jsonl")]
    assert ids == [str(tmp_path / "a" / "one.mp4"), str(tmp_path / "b" / "one.mp4"), "two"]


def test_only_new_and_changed_files_are_looked_at(videos, tmp_path):
    for name in ("selected", "alike"):
        (tmp_path / f"{name}.mp4").write_bytes(Path(videos[name]).read_bytes())
    seen = []

    class Detector:
        def __call__(self, path):
            seen.append(Path(path).stem)
            return detect_shots(path)

        def __repr__(self):
            return "Detector()"

    class Other(Detector):
        def __repr__(self):
            return "Other()"

    embedded = []

    class Embedder:
        def __call__(self, frames):
            embedded.append(len(frames))
            return color_histogram(frames)

        def __repr__(self):
            return "Embedder()"

    def run(detector):
        seen.clear()
        embedded.clear()
        paths = sorted(tmp_path.glob("*.mp4"))
        return select_videos(paths, tmp_path / "out", detect=detector, embed=Embedder(), num_workers=1, progress=False)

    run(Detector())
    assert seen == ["alike", "selected"] and embedded == [5, 5]
    before = (tmp_path / "out" / "selected.jsonl").read_bytes()
    run(Detector())
    assert seen == embedded == [] and (tmp_path / "out" / "selected.jsonl").read_bytes() == before
    film(tmp_path / "new.mp4", *FIVE[:4])
    film(tmp_path / "alike.mp4", *FIVE[1:])
    assert run(Detector()) == {"selected": 3}
    assert seen == ["alike", "new"] and embedded == [4, 4]
    run(Other())
    assert seen == ["alike", "new", "selected"] and embedded == [], "the frames are known"


def test_names_of_functions():
    assert name_of(detect_shots) == "trl_temporal.synthesis.temple_shots:detect_shots"
    for nameless in (lambda path: [], object()):
        with pytest.raises(ValueError, match="another name in each run.*`__repr__` with its settings"):
            name_of(nameless)


def test_videos_that_failed_are_looked_at_again(videos, tmp_path):
    paths = [videos["selected"], videos["one_shot"], videos["missing"]]
    answers = {"one_shot": [(0.0, 1.0)]}  # of detectors; without one it fails

    class Detector:
        def __call__(self, path):
            seen.append(Path(path).stem)
            return answers[Path(path).stem] if Path(path).exists() else detect_shots(path)

        def __repr__(self):
            return "Detector()"

    def run():
        return select_videos(
            paths, tmp_path / "out", detect=Detector(), embed=color_histogram, num_workers=1, progress=False
        )

    seen = []
    assert run() == {"detector_failed": 1, "too_few_shots": 1, "undecodable": 1}
    assert seen == ["missing", "one_shot", "selected"]
    seen = []
    answers["selected"] = detect_shots(videos["selected"])
    assert run() == {"selected": 1, "too_few_shots": 1, "undecodable": 1}
    assert seen == ["missing", "selected"]
    seen = []
    run()
    assert seen == ["missing"]


def test_limits_do_not_depend_on_rounding(tmp_path):
    """Shots of 0.2 s: 0.6 - 0.4 is less in floating point."""
    exact = film(tmp_path / "exact.mp4", *((seed, 8) for seed in range(1, 6)), rate=40)
    detect = lambda path: [(0.2 * i, 0.2 * (i + 1)) for i in range(5)]  # noqa: E731
    found = select_video(exact, detect, lambda frames: np.eye(len(frames)))
    assert [clip["start_frame"] for clip in found["clips"]] == [0, 8, 16, 24, 32]
    # 32.2 - 16.2 is more than 16.
    longest = film(tmp_path / "longest.mp4", (1, 41), (2, 40), (3, 80), (4, 10), rate=5)
    detect = lambda path: [(0, 8.2), (8.2, 16.2), (16.2, 32.2), (32.2, 34.2)]  # noqa: E731
    assert "clips" in select_video(longest, detect, lambda frames: np.eye(len(frames)))


KILLED = """
    import os, signal, sys
    from trl_temporal.synthesis import temple_selection
    from trl_temporal.synthesis.temple_grouping import color_histogram

    out, log, kill_at, *paths = sys.argv[1:]
    temple_selection.NUM_SHARDS = 2
    select_video = temple_selection.select_video

    def select_and_die(path, detect, embed):
        with open(log, "a") as file:
            file.write(path + "\\n")
        if sum(1 for line in open(log)) == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return select_video(path, detect, embed)

    temple_selection.select_video = select_and_die
    temple_selection.select_videos(paths, out, embed=color_histogram, num_workers=1, progress=False)
"""


def test_a_kill_loses_one_video(videos, tmp_path):
    paths = sorted(videos[name] for name in ("selected", "one_shot", "alike", "recurring", "short", "text"))

    def run(kill_at):
        log = tmp_path / f"seen-{kill_at}"
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(KILLED),
            str(tmp_path / "out"),
            str(log),
            str(kill_at),
            *paths,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        code = subprocess.run(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode
        return code, log.read_text().splitlines()

    assert run(3) == (-signal.SIGKILL, paths[:3])
    assert not (tmp_path / "out" / "selected.jsonl").exists()
    assert run(-1) == (0, paths[2:])
    select_videos(paths, tmp_path / "whole", embed=color_histogram, num_workers=1, progress=False)
    for name in ("selected.jsonl", "rejected.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_command_line(videos, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_temple_parts.py").write_text(
        "import numpy as np\n"
        "def halves(path):\n    return [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 3)]\n"
        "def all_differ(frames):\n    return np.eye(len(frames))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = [
        "--detector",
        "my_temple_parts:halves",
        "--embedder",
        "my_temple_parts:all_differ",
        "--num-workers",
        "1",
    ]
    assert main(["temple", "select", videos["selected"], "out", *options]) == 0
    clips = read_lines(tmp_path / "out" / "selected.jsonl")[0]["clips"]
    assert [clip["end_frame"] for clip in clips] == [12, 25, 37, 75]  # 12.5 and 37.5 round down
    assert "selected" in capsys.readouterr().out
    assert main(["temple", "select", videos["text"], "out", "--embedder", "histogram", "--num-workers", "1"]) == 1
    assert "text.mp4: undecodable: not a readable video" in capsys.readouterr().out
    for wrong in ("my_temple_parts:nothing", "no_such_module:f"):
        assert main(["temple", "select", videos["text"], "out", "--detector", wrong]) == 1
        assert f"{wrong} is no function" in capsys.readouterr().err


def test_nothing_to_select_from(tmp_path):
    with pytest.raises(ValueError, match="there is no video to select from"):
        select_videos([], tmp_path, embed=color_histogram)


def test_real_clips(real_data, tmp_path):
    """One has six shots, which no two look alike of; the others have one, also where damage looks like a cut."""
    folder = real_data / "videos"
    assert select_path(folder, tmp_path, embedder="histogram", num_workers=1) == 0
    (bikes,) = read_lines(tmp_path / "selected.jsonl")
    assert bikes["video_id"] == "bikes" and bikes["duration_s"] == 10.0
    edges = [0, 30, 76, 137, 187, 242, 250]
    assert [clip["start_frame"] for clip in bikes["clips"]] == edges[:-1]
    assert [clip["end_frame"] for clip in bikes["clips"]] == edges[1:]
    assert [clip["start_s"] for clip in bikes["clips"]] == [edge / 25 for edge in edges[:-1]]
    assert [clip["key_frames"] for clip in bikes["clips"]] == [
        [10, 20],
        [45, 60],
        [96, 116],
        [153, 170],
        [205, 223],
        [244, 247],
    ]
    rejected = read_lines(tmp_path / "rejected.jsonl")
    assert len(rejected) == 7 and {line["reason"] for line in rejected} == {"too_few_shots"}


def test_timestamps_out_of_order(real_data):
    """An AVI with B-frames: the frames keep decode order, the times are sorted."""
    edges_s = walk_frames(str(real_data / "videos" / "mmaction2_test.avi"))
    assert len(edges_s) == 165 and (np.diff(edges_s) > 0).all()
    np.testing.assert_allclose(edges_s, np.arange(165) / 25, atol=1e-6)
