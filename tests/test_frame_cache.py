# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The cache of decoded frames: what it gives back, and when it decodes again."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from trl_temporal.data import frame_cache
from trl_temporal.data.frame_cache import FrameCache
from trl_temporal.video import VideoError


@pytest.fixture
def clip(event_world, tmp_path):
    """A video file of our own that may be changed."""
    path = tmp_path / "clip.mp4"
    shutil.copy(event_world["train"][0]["videos"][0]["path"], path)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """Every entry that was decoded."""
    entries = []
    load = frame_cache.load_row_video
    monkeypatch.setattr(
        frame_cache, "load_row_video", lambda entry, **sampling: entries.append(entry) or load(entry, **sampling)
    )
    return entries


def assert_same_video(actual, expected):
    np.testing.assert_array_equal(actual.frames, expected.frames)
    np.testing.assert_array_equal(actual.timestamps_s, expected.timestamps_s)
    assert (actual.duration_s, actual.path, actual.warnings) == (expected.duration_s, expected.path, expected.warnings)


@pytest.mark.parametrize("crop", [{}, {"start_s": 2.0, "end_s": 6.0}, {"start_s": None, "end_s": None, "fps": None}])
def test_a_hit_equals_a_miss(clip, tmp_path, decoded, crop):
    entry = {"path": str(clip), **crop}
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    miss, hit = read(entry), read(entry)
    assert decoded == [entry]
    assert_same_video(hit, miss)
    assert_same_video(FrameCache(None, fps=2.0, size=16)(entry), miss)
    # Another process finds it, too.
    assert_same_video(FrameCache(tmp_path / "cache", fps=2.0, size=16)(entry), miss)
    assert len(decoded) == 2


def test_a_path_and_an_entry_with_unused_fields_are_the_same_video(clip, tmp_path, decoded):
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    read(str(clip)), read({"path": str(clip), "start_s": None, "frames_dir": None})
    assert len(decoded) == 1


@pytest.mark.parametrize("setting", [{"fps": 1.0}, {"size": 8}, {"max_frames": 5}])
def test_other_sampling_is_another_entry(clip, tmp_path, decoded, setting):
    sampling = {"fps": 2.0, "size": 16}
    first = FrameCache(tmp_path / "cache", **sampling)(str(clip))
    other = FrameCache(tmp_path / "cache", **{**sampling, **setting})(str(clip))
    assert len(decoded) == 2 and other.frames.shape != first.frames.shape


def test_a_cropped_picture_is_another_entry(clip, tmp_path, decoded):
    for center_crop in (False, True):
        FrameCache(tmp_path / "cache", fps=2.0, size=16, center_crop=center_crop)(str(clip))
    assert len(decoded) == 2


def test_a_replaced_file_is_decoded_again(clip, tmp_path, event_world, decoded):
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    before = read(str(clip))
    other = event_world["train"][4]["videos"][0]["path"]
    shutil.copy(other, clip)
    after = read(str(clip))
    assert len(decoded) == 2
    assert after.frames.shape != before.frames.shape or (after.frames != before.frames).any()
    # Also a file of the same size: the time of its last change counts.
    status = os.stat(clip)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    read(str(clip))
    assert len(decoded) == 3


def test_a_changed_frame_in_a_folder_is_read_again(clip, tmp_path, decoded):
    """Writing into a file does not touch its folder."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number:03}.png")
    entry = {"frames_dir": str(folder), "fps": 2.0}
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    before = read(entry)
    Image.new("RGB", (16, 16), (200, 0, 0)).save(folder / "002.png")
    after = read(entry)
    assert len(decoded) == 2
    assert (before.frames[2] != after.frames[2]).any() and (before.frames[1] == after.frames[1]).all()
    read(entry)
    assert len(decoded) == 2


def test_a_fixed_number_of_frames(clip, tmp_path, decoded):
    sparse, dense = (FrameCache(tmp_path / "cache", num_frames=number, size=16) for number in (4, 6))
    videos = [read(str(clip)) for read in (sparse, dense, sparse)]
    assert [len(video.frames) for video in videos] == [4, 6, 4] and len(decoded) == 2
    assert_same_video(videos[0], videos[2])
    edges_s = np.arange(5) / 4 * videos[0].duration_s
    times_s = videos[0].timestamps_s
    assert (edges_s[:-1] < times_s).all() and (times_s < edges_s[1:]).all()  # one in each part, at its own time


def test_a_video_with_fewer_frames_is_an_error_and_no_entry(clip, tmp_path):
    """To show frames twice would invent times; processors that stack cannot take fewer."""
    read = FrameCache(tmp_path / "cache", num_frames=16, size=16)
    with pytest.raises(VideoError, match=r"clip.mp4: num_frames=16 asks for more frames than there are, \d+ in 0.5 s"):
        read({"path": str(clip), "start_s": 1.0, "end_s": 1.5})
    assert not list((tmp_path / "cache").rglob("*.json"))
    assert len(read(str(clip)).frames) == 16


@pytest.mark.parametrize(
    "sampling",
    [{}, {"fps": 2.0, "num_frames": 4}, {"num_frames": 4, "max_frames": 8}, {"max_frames": 8}],
)
def test_sampling_is_by_rate_or_by_number(sampling):
    with pytest.raises(ValueError, match="either fps, with max_frames if there is a limit, or num_frames"):
        FrameCache(None, size=16, **sampling)


def test_a_list_of_files_is_kept_and_frames_in_memory_are_not(tmp_path, decoded):
    arrays = [np.full((16, 16, 3), 40 * number, dtype=np.uint8) for number in range(4)]
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for array, path in zip(arrays, paths, strict=True):
        Image.fromarray(array).save(path)
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    of_files = {"frames": paths, "fps": 2.0}
    first, second = read(of_files), read(of_files)
    assert len(decoded) == 1
    assert_same_video(first, second)
    np.testing.assert_array_equal(first.frames, np.stack(arrays))
    read({"frames": paths[::-1], "fps": 2.0}), read({"frames": paths, "fps": 4.0})
    assert len(decoded) == 3
    Image.fromarray(arrays[0]).save(paths[2])
    assert (read(of_files).frames[2] == 0).all() and len(decoded) == 4
    for _ in range(2):
        np.testing.assert_array_equal(read({"frames": arrays, "fps": 2.0}).frames, first.frames)
    assert len(decoded) == 6
    with pytest.raises(VideoError, match="gone.png: not a readable image"):
        read({"frames": ["gone.png"], "fps": 2.0})


def test_a_write_that_was_cut_off_is_no_entry(clip, tmp_path, decoded):
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    expected = read(str(clip))
    (info,) = (tmp_path / "cache").rglob("*.json")
    info.unlink()  # it is written last
    assert_same_video(read(str(clip)), expected)
    assert len(decoded) == 2


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_an_entry_that_a_crash_has_torn_is_decoded_again(clip, tmp_path, decoded, suffix):
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    read(str(clip))
    (file,) = (tmp_path / "cache").rglob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:40])
    assert_same_video(read(str(clip)), FrameCache(None, fps=2.0, size=16)(str(clip)))
    assert len(decoded) == 3
    read(str(clip))
    assert len(decoded) == 3


def test_faults_are_those_of_the_loader(tmp_path):
    read = FrameCache(tmp_path / "cache", fps=2.0, size=16)
    with pytest.raises(VideoError, match="missing.mp4"):
        read(str(tmp_path / "missing.mp4"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="text.mp4"):
        read(str(tmp_path / "text.mp4"))
    assert not list((tmp_path / "cache").rglob("*.json"))
