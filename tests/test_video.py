# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Every frame of a test clip carries its own index as 4 x 4 black and white blocks, so the pixels say which frame it is.
"""

import os
import subprocess
import sys
import warnings
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from trl_temporal.video import (
    VideoError,
    load_frames,
    load_frames_dir,
    load_row_video,
    load_video,
    open_image,
    probe_video,
)

ROOT = Path(__file__).parent.parent
REALDATA = Path(os.environ.get("TRL_TEMPORAL_REALDATA", ROOT.parent / "shared" / "realdata"))
REAL_VIDEOS = [
    "bigbuckbunny.mp4",
    "bikes.mp4",
    "carphone_pristine.mp4",
    "flipping_a_pancake.mkv",
    "mmaction2_arm_wrestling_demo.mp4",
    "mmaction2_pool_test.mp4",
    "mmaction2_structuralize.mp4",
    "mmaction2_test.avi",
]
SIDE = 128


def _missing(backend: str) -> str | None:
    try:
        if backend == "torchcodec":
            import torchcodec.decoders  # noqa: F401
        elif backend == "decord":
            import decord  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return f"{backend} does not load here: {str(error).splitlines()[0]}"
    return None


@pytest.fixture(params=["pyav", "torchcodec", "decord"])
def backend(request):
    if reason := _missing(request.param):
        pytest.skip(reason)
    return request.param


def picture(index: int, side: int = SIDE) -> np.ndarray:
    bits = (index >> np.arange(16)) & 1
    blocks = np.kron(bits.reshape(4, 4), np.ones((side // 4, side // 4))) * 215 + 20
    return np.repeat(blocks[:, :, None], 3, axis=2).astype(np.uint8)


def indices(frames: np.ndarray) -> list[int]:
    """The indices that the pixels of frames of shape `(num_frames, height, width, 3)` carry."""
    num_frames, height, width, _ = frames.shape
    blocks = frames.mean(-1).reshape(num_frames, 4, height // 4, 4, width // 4).mean((2, 4))
    return ((blocks > 127).reshape(num_frames, 16) @ (1 << np.arange(16))).tolist()


def make_clip(path, ticks, time_base=Fraction(1, 1000), rate=30, options=None, pictures=None) -> Path:
    """A h264 clip whose frame `i` has the pts `ticks[i]`, with a key frame every 10 frames."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": "10", "preset": "ultrafast", "bf": "0"})
        stream.height, stream.width = (SIDE, SIDE) if pictures is None else pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        for index, pts in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(index) if pictures is None else pictures[index], format="rgb24")
            frame.pts, frame.time_base = int(pts), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def expected(times_s, targets_s) -> list[int]:
    """The rule, written the slow way: the last frame with pts <= target, each frame once."""
    chosen = [max(i for i, time_s in enumerate(times_s) if time_s <= target_s + 5e-4) for target_s in targets_s]
    return sorted(set(chosen))


def check(video, times_s, targets_s, start_s=0.0):
    want = expected(times_s, targets_s)
    assert indices(video.frames) == want
    relative_s = np.maximum(np.array(times_s)[want] - start_s, 0)
    np.testing.assert_allclose(video.timestamps_s, relative_s, atol=1e-5)
    assert video.frames.dtype == np.uint8 and video.timestamps_s.dtype == np.float64
    assert (np.diff(video.timestamps_s) > 0).all()


def midpoints_s(count, start_s, end_s):
    return [start_s + (i + 0.5) * (end_s - start_s) / count for i in range(count)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Name -> (path, true times in seconds from the first frame, duration in seconds)."""
    folder = tmp_path_factory.mktemp("clips")
    constant = np.arange(150) * 512
    gaps_ms = np.random.default_rng(0).integers(17, 500, 60)
    variable = np.concatenate([[0], np.cumsum(gaps_ms)[:-1]])
    ms = np.round(np.arange(150) * 1000 / 30)
    made = {
        "constant": (make_clip(folder / "constant.mp4", constant, Fraction(1, 15360)), constant / 15360, 5.0),
        "variable": (make_clip(folder / "variable.mp4", variable), variable / 1000, None),
        "variable_mkv": (make_clip(folder / "variable.mkv", variable), variable / 1000, None),
        "offset": (make_clip(folder / "offset.mkv", ms + 5000), ms / 1000, 5.0),
        "short": (make_clip(folder / "short.mp4", [0, 40, 80], rate=25), np.array([0, 0.04, 0.08]), 0.12),
        "one_frame": (make_clip(folder / "one.mp4", [0], rate=25), np.array([0.0]), 0.04),
    }
    return made


NAMES = ["constant", "variable", "variable_mkv", "offset", "short", "one_frame"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fps", [1, 2.5, 30])
def test_fps(clips, name, fps, backend):
    path, times_s, duration_s = clips[name]
    video = load_video(path, fps=fps, backend=backend)
    assert video.warnings == []
    if duration_s is not None:
        assert video.duration_s == pytest.approx(duration_s, abs=2e-3)
    assert video.duration_s > times_s[-1]
    check(video, times_s, np.arange(0, video.duration_s - 1e-3, 1 / fps))


@pytest.mark.parametrize("name", NAMES)
def test_num_frames_are_midpoints_of_equal_parts(clips, name, backend):
    path, times_s, _ = clips[name]
    video = load_video(path, num_frames=7, backend=backend)
    check(video, times_s, midpoints_s(7, 0, video.duration_s))


@pytest.mark.parametrize("name", ["constant", "variable", "offset", "short"])
def test_max_frames_spreads_over_the_whole_video(clips, name, backend):
    path, times_s, _ = clips[name]
    video = load_video(path, fps=25, max_frames=2, backend=backend)
    check(video, times_s, midpoints_s(2, 0, video.duration_s))


def test_max_frames_that_is_not_reached_changes_nothing(clips, backend):
    path, times_s, _ = clips["constant"]
    check(load_video(path, fps=2, max_frames=10, backend=backend), times_s, np.arange(0, 5, 0.5))


@pytest.mark.parametrize("name", ["constant", "variable", "variable_mkv", "offset"])
@pytest.mark.parametrize(("start_s", "end_s"), [(0, 1), (1.01, 3.7), (2.2, None), (0.45, 0.46), (4.5, 4.9)])
def test_crop(clips, name, start_s, end_s, backend):
    path, times_s, _ = clips[name]
    total_s = load_video(path, fps=1, backend=backend).duration_s
    stop_s = min(end_s or total_s, total_s)

    video = load_video(path, fps=10, start_s=start_s, end_s=end_s, backend=backend)
    assert video.duration_s == pytest.approx(stop_s - start_s, abs=1e-5)
    check(video, times_s, np.arange(start_s, stop_s - 1e-3, 0.1), start_s)

    video = load_video(path, num_frames=4, start_s=start_s, end_s=end_s, backend=backend)
    check(video, times_s, midpoints_s(4, start_s, stop_s), start_s)


def test_crop_decodes_only_the_crop(clips, monkeypatch):
    """From the key frame before the crop (every 10 frames) to its end, not the 150 frames of the clip."""
    from trl_temporal import video_backends

    decoded = []
    decode = video_backends.decode

    def counting(*args):
        for frame in decode(*args):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video_backends, "decode", counting)
    path, times_s, _ = clips["constant"]
    video = load_video(path, fps=5, start_s=4.1, end_s=4.5)
    check(video, times_s, [4.1, 4.3], 4.1)
    assert len(decoded) <= 1 + 10 + 0.4 * 30 + 2


@pytest.mark.parametrize("start_s", [0.4, 2.5, 4.9])
def test_crop_where_seeking_lands_late(tmp_path, start_s):
    """MPEG-TS has no index: a seek may land after the crop's start, and then decoding begins at the beginning."""
    path = make_clip(tmp_path / "clip.ts", np.arange(150) * 3000, Fraction(1, 90000))
    video = load_video(path, num_frames=3, start_s=start_s)
    assert video.duration_s == pytest.approx(5 - start_s)
    check(video, np.arange(150) / 30, midpoints_s(3, start_s, 5), start_s)
    check(load_video(path, fps=10, start_s=start_s), np.arange(150) / 30, np.arange(start_s, 4.999, 0.1), start_s)


def test_crop_beyond_the_end_is_clipped_and_reported(clips, backend):
    path, _, _ = clips["constant"]
    with pytest.warns(UserWarning, match="asked to end at 9.0 s, but the video ends at 5.000 s"):
        video = load_video(path, fps=1, start_s=3, end_s=9, backend=backend)
    assert video.duration_s == pytest.approx(2)
    assert len(video.warnings) == 1


@pytest.mark.parametrize("kwargs", [{"fps": 1}, {"num_frames": 4}, {"fps": 9, "max_frames": 3}])
def test_crop_that_starts_beyond_the_end(clips, kwargs, backend):
    path, _, _ = clips["constant"]
    with pytest.raises(VideoError, match=r"constant.mp4.*starts at 7.5 s, but the video ends at 5.000 s"):
        load_video(path, start_s=7.5, end_s=9, backend=backend, **kwargs)


@pytest.mark.parametrize(("start_s", "end_s"), [(3, 2), (2, 2), (-1, 2), (float("nan"), 2), (0, float("nan"))])
def test_bad_crops_name_their_numbers(clips, start_s, end_s):
    with pytest.raises(VideoError, match=f"constant.mp4.*start_s={float(start_s)}"):
        load_video(clips["constant"][0], fps=1, start_s=start_s, end_s=end_s)


def test_size(clips, backend):
    path, times_s, _ = clips["constant"]
    small = load_video(path, fps=1, size=32, backend=backend)
    assert small.frames.shape == (5, 32, 32, 3)
    check(small, times_s, range(5))
    wide = load_video(path, fps=1, size=(64, 256), backend=backend)
    assert wide.frames.shape == (5, 64, 256, 3)
    check(wide, times_s, range(5))


def wide_picture(height: int, width: int) -> np.ndarray:
    """White square in the middle of black, a quarter of the shorter side to each side of the centre."""
    pixels, half = np.zeros((height, width, 3), np.uint8), min(height, width) // 4
    pixels[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 255
    return pixels


@pytest.mark.parametrize("shape", [(64, 160), (160, 64)])
def test_the_middle_square_is_cut_out(tmp_path, shape, backend):
    path = make_clip(tmp_path / "wide.mp4", [0, 40], rate=25, pictures=[wide_picture(*shape)] * 2)
    frame = load_video(path, num_frames=1, size=32, center_crop=True, backend=backend).frames[0]
    bright = frame[..., 0] > 128
    assert frame.shape == (32, 32, 3) and bright[10:22, 10:22].all() and 240 <= bright.sum() <= 272
    with pytest.raises(ValueError, match="give one"):
        load_video(path, num_frames=1, center_crop=True, backend=backend)


def test_the_middle_of_a_folder_of_frames_is_cut_out(tmp_path):
    Image.fromarray(wide_picture(64, 100)).save(tmp_path / "0.png")
    frames = load_frames_dir(tmp_path, 1, fps=1, size=(16, 32), center_crop=True).frames
    assert frames.shape == (1, 16, 32, 3) and frames[0, 4:12, 12:20].min() > 100


def test_backends_see_the_same_colours(tmp_path, backend):
    colours = np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[: SIDE // 2, : SIDE // 2], colours[: SIDE // 2, SIDE // 2 :] = (200, 30, 30), (30, 200, 30)
    colours[SIDE // 2 :, : SIDE // 2], colours[SIDE // 2 :, SIDE // 2 :] = (30, 30, 200), (120, 120, 120)
    path = make_clip(tmp_path / "colours.mp4", [0, 40], rate=25, pictures=[colours, colours])
    frame = load_video(path, num_frames=1, backend=backend).frames[0].astype(int)
    for y, x in [(32, 32), (32, 96), (96, 32), (96, 96)]:
        assert np.abs(frame[y, x] - colours[y, x]).max() <= 6


def test_rotated_video_is_shown_upright(tmp_path, backend):
    """Phones store a sideways picture and a rotation in the track header."""
    corner = np.full((SIDE, SIDE, 3), 20, np.uint8)
    corner[:48, :48] = 235
    path = make_clip(tmp_path / "phone.mp4", [0, 40, 80], rate=25, pictures=[corner] * 3)
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 44
    turned = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, SIDE << 16, 0, 1 << 30], ">i4").tobytes()
    data[matrix : matrix + 36] = turned
    path.write_bytes(data)
    frame = load_video(path, num_frames=1, backend=backend).frames[0]
    assert frame[20, SIDE - 20].mean() > 200  # a quarter turn clockwise: top left is now top right
    assert frame[20, 20].mean() < 60


@pytest.mark.parametrize("fps", [1, 3, 10, 15, 30, 29.97])
@pytest.mark.parametrize("name", ["constant", "offset", "short"])
def test_fps_round_trip(clips, name, fps):
    """Sampling at the clip's own rate gives every frame; what fps sampling chose, each timestamp finds again."""
    path, times_s, duration_s = clips[name]
    video = load_video(path, fps=fps)
    if fps == 30:
        assert indices(video.frames) == list(range(len(times_s)))
    for index, timestamp_s in zip(indices(video.frames), video.timestamps_s, strict=True):
        again = load_video(path, fps=1, start_s=float(timestamp_s), end_s=float(timestamp_s) + 0.01)
        assert indices(again.frames) == [index]


@pytest.mark.parametrize("other", ["torchcodec", "decord"])
@pytest.mark.parametrize("kwargs", [{"fps": 4}, {"num_frames": 9}, {"fps": 8, "max_frames": 11, "start_s": 0.7}])
@pytest.mark.parametrize("name", ["variable", "variable_mkv", "offset"])
def test_backends_choose_the_same_frames(clips, other, kwargs, name):
    if reason := _missing(other):
        pytest.skip(reason)
    ours = load_video(clips[name][0], **kwargs)
    theirs = load_video(clips[name][0], backend=other, **kwargs)
    assert indices(ours.frames) == indices(theirs.frames)
    np.testing.assert_allclose(ours.timestamps_s, theirs.timestamps_s, atol=1e-4)
    assert ours.duration_s == pytest.approx(theirs.duration_s, abs=1e-4)


# Damage


@pytest.fixture
def noisy_mp4(tmp_path):
    """150 frames at 30 fps that compress badly, so that bytes are spread over the frames; index in the first block."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (150, SIDE, SIDE, 3), dtype=np.uint8)
    path = tmp_path / "noisy.mp4"
    return make_clip(path, np.arange(150) * 512, Fraction(1, 15360), 30, {"movflags": "faststart"}, pictures)


@pytest.mark.parametrize("kwargs", [{"fps": 4}, {"num_frames": 6}])
def test_truncated_mp4(noisy_mp4, kwargs):
    data = noisy_mp4.read_bytes()
    noisy_mp4.write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"noisy.mp4: truncated.*header says 5.00 s, but only 2\.\d\d s"):
        video = load_video(noisy_mp4, **kwargs)
    assert 2 < video.duration_s < 3
    assert video.timestamps_s[-1] < video.duration_s
    assert any("truncated" in message for message in video.warnings)
    # The frames are spread over what decodes, not over what the header or the last, incomplete packet promises.
    targets_s = midpoints_s(6, 0, video.duration_s) if "num_frames" in kwargs else np.arange(0, video.duration_s, 0.25)
    np.testing.assert_allclose(video.timestamps_s, [i / 30 for i in expected(np.arange(150) / 30, targets_s)])
    with pytest.raises(VideoError, match=r"starts at 4.0 s, but the video ends at 2\.\d+ s.*truncated"):
        load_video(noisy_mp4, start_s=4, end_s=5, **kwargs)


def test_truncated_mkv(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (90, SIDE, SIDE, 3), dtype=np.uint8)
    path = make_clip(tmp_path / "cut.mkv", np.arange(90) * 40, rate=25, pictures=pictures)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for kwargs in ({"fps": 4}, {"num_frames": 6}):
        with pytest.warns(UserWarning, match=r"cut.mkv: truncated.*header says 3.60 s, but only 1\.\d\d s"):
            video = load_video(path, **kwargs)
        assert 1.5 < video.duration_s < 2
        assert len(video.timestamps_s) == kwargs.get("num_frames", int(np.ceil(video.duration_s * 4)))


def test_truncated_on_other_backends_warns_or_refuses(noisy_mp4, backend):
    data = noisy_mp4.read_bytes()
    noisy_mp4.write_bytes(data[: len(data) // 2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            video = load_video(noisy_mp4, fps=4, backend=backend)
        except VideoError as error:
            assert "noisy.mp4" in str(error) and "backend='pyav'" in str(error)
        else:
            assert video.duration_s < 3
            assert any("truncated" in str(warning.message) for warning in caught)


def test_damaged_frames_are_reported_and_decoding_goes_on(noisy_mp4):
    data = bytearray(noisy_mp4.read_bytes())
    for position in np.random.default_rng(1).integers(len(data) // 2, len(data) * 3 // 4, 60):
        data[position] ^= 0xFF
    noisy_mp4.write_bytes(data)
    with pytest.warns(UserWarning, match=r"noisy.mp4: the decoder reports \d+ faults"):
        video = load_video(noisy_mp4, fps=4)
    assert video.duration_s == pytest.approx(5)
    assert len(video.timestamps_s) == 20


def test_missing_timestamps_are_reported(tmp_path):
    """A raw h264 stream has no timestamps at all: the rate is an assumption, and said to be one."""
    path = tmp_path / "raw.h264"
    make_clip(path, np.arange(50), Fraction(1, 25), rate=25)
    with pytest.warns(UserWarning, match="raw.h264: has no timestamps; 25 fps is assumed"):
        video = load_video(path, fps=5)
    assert indices(video.frames) == list(range(0, 50, 5))
    np.testing.assert_allclose(video.timestamps_s, np.arange(0, 2, 0.2), atol=1e-9)


def test_picture_size_that_changes(tmp_path):
    parts = []
    for side in (64, 128):
        path = tmp_path / f"{side}.h264"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
            stream.width = stream.height = side
            for index in range(10):
                frame = av.VideoFrame.from_ndarray(picture(index, side), format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())
        parts.append(path.read_bytes())
    path = tmp_path / "changing.h264"
    path.write_bytes(b"".join(parts))
    with pytest.warns(UserWarning, match="picture size changes"):
        video = load_video(path, fps=25)
    assert video.frames.shape == (20, 64, 64, 3)
    assert indices(video.frames) == [*range(10), *range(10)]


# Not a video


def write_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        samples = (np.sin(np.arange(16000) / 10) * 0.3).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_undecodable(path):
    """A sound header over pictures that are all zeros."""
    data = make_clip(path, np.arange(20) * 40, rate=25, options={"movflags": "faststart"}).read_bytes()
    media = data.find(b"mdat") + 4
    path.write_bytes(data[:media] + bytes(len(data) - media))


def write_without_index(path):
    """An mp4 whose moov box was cut off with the end of the file."""
    data = make_clip(path, np.arange(20) * 40, rate=25).read_bytes()
    path.write_bytes(data[: data.find(b"moov") - 4])


BAD_FILES = {
    "missing": (lambda path: None, "no such file; check the path"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "random": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(50_000)), "not a readable video"),
    "text": (lambda path: path.write_text("not a video at all\n" * 2000), "not a readable video"),
    "no_index": (write_without_index, "not a readable video"),
    "audio": (write_audio, "has no video stream"),
    "undecodable": (write_undecodable, "decoded|cannot read it|not a readable"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("kwargs", [{"fps": 1}, {"num_frames": 3, "start_s": 0.2}])
def test_bad_files_are_video_errors(tmp_path, name, kwargs, backend):
    write, message = BAD_FILES[name]
    path = tmp_path / f"{name}.mp4"
    write(path)
    with pytest.raises(VideoError, match=message) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_video(path, backend=backend, **kwargs)
    assert str(path) in str(error.value)
    with pytest.raises(VideoError, match=message):
        probe_video(path)


def test_arguments(clips):
    path = clips["constant"][0]
    with pytest.raises(ValueError, match="exactly one of fps and num_frames"):
        load_video(path)
    with pytest.raises(ValueError, match="exactly one of fps and num_frames"):
        load_video(path, fps=1, num_frames=4)
    with pytest.raises(ValueError, match="fps must be positive"):
        load_video(path, fps=0)
    with pytest.raises(ValueError, match="max_frames caps fps"):
        load_video(path, num_frames=4, max_frames=2)
    with pytest.raises(ValueError, match="size must be positive"):
        load_video(path, fps=1, size=0)
    with pytest.raises(ValueError, match="pyav, torchcodec, decord"):
        load_video(path, fps=1, backend="opencv")


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_missing_backend_names_its_extra(clips, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.decoders", None)
    with pytest.raises(ImportError, match=rf"pip install trl_temporal\[{name}\]"):
        load_video(clips["constant"][0], fps=1, backend=name)


def test_import_loads_neither_torch_nor_a_decoder():
    code = "import sys, trl_temporal.video, trl_temporal.spans; print({'torch', 'av', 'decord'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_probe(clips):
    info = probe_video(clips["constant"][0])
    assert (info.width, info.height, info.codec, info.num_frames) == (SIDE, SIDE, "h264", 150)
    assert info.duration_s == pytest.approx(5) and info.average_fps == pytest.approx(30)
    assert probe_video(clips["offset"][0]).duration_s == pytest.approx(5, abs=0.01)


# Frame folders and rows


@pytest.fixture
def frames_dir(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(12):  # no leading zeros: 10 must not come before 2
        Image.fromarray(picture(index)).save(folder / f"frame{index}.{'png' if index % 2 else 'jpg'}")
    (folder / "notes.txt").write_text("not a frame")
    return folder


def test_frames_dir(frames_dir):
    times_s = np.arange(12) / 4
    video = load_frames_dir(frames_dir, 4, fps=4)
    assert video.duration_s == 3 and video.path == str(frames_dir)
    check(video, times_s, times_s)
    check(load_frames_dir(frames_dir, 4, fps=1, size=64), times_s, [0, 1, 2])
    check(load_frames_dir(frames_dir, 4, num_frames=5), times_s, midpoints_s(5, 0, 3))
    check(load_frames_dir(frames_dir, 4, fps=2, start_s=1.1, end_s=2.3), times_s, [1.1, 1.6, 2.1], 1.1)
    check(load_frames_dir(frames_dir, 4, fps=4, max_frames=3), times_s, midpoints_s(3, 0, 3))


def test_bad_frames_dirs(frames_dir, tmp_path):
    for declared_fps in (None, 0, float("nan")):
        with pytest.raises(VideoError, match="needs the fps they were taken at"):
            load_frames_dir(frames_dir, declared_fps, fps=1)
    with pytest.raises(VideoError, match="no such folder"):
        load_frames_dir(tmp_path / "nowhere", 4, fps=1)
    (tmp_path / "bare").mkdir()
    with pytest.raises(VideoError, match="no .jpg or .png"):
        load_frames_dir(tmp_path / "bare", 4, fps=1)
    with pytest.raises(VideoError, match="starts at 9.0 s, but the video ends at 3.000 s"):
        load_frames_dir(frames_dir, 4, fps=1, start_s=9)
    (frames_dir / "frame3.png").write_bytes(b"broken")
    with pytest.raises(VideoError, match="frame3.png: not a readable image"):
        load_frames_dir(frames_dir, 4, fps=4)


def test_a_list_of_frames(frames_dir):
    times_s = np.arange(12) / 4
    arrays = np.stack([picture(index) for index in range(12)])
    paths = [str(frames_dir / f"frame{index}.{'png' if index % 2 else 'jpg'}") for index in range(12)]
    images = [Image.fromarray(array) for array in arrays]
    encoded = [{"path": None, "bytes": Path(path).read_bytes()} for path in paths]
    for frames in (arrays, list(arrays), paths, [Path(path) for path in paths], images, encoded):
        check(load_frames(frames, 4, fps=4), times_s, times_s)
    video = load_frames(paths, 4, fps=1, size=64)
    assert video.duration_s == 3 and video.path == "list of 12 frames" and video.frames.shape == (3, 64, 64, 3)
    check(video, times_s, [0, 1, 2])
    check(load_frames(arrays, 4, num_frames=5), times_s, midpoints_s(5, 0, 3))
    check(load_frames(arrays, 4, fps=2, start_s=1.1, end_s=2.3), times_s, [1.1, 1.6, 2.1], 1.1)
    check(load_frames(arrays, 4, fps=4, max_frames=3), times_s, midpoints_s(3, 0, 3))
    # Only frames that are sampled are opened.
    check(load_frames([paths[0], "gone.png", *paths[2:4]], 1, fps=0.5), np.arange(4), [0, 2])


def test_bad_lists_of_frames(frames_dir):
    good = str(frames_dir / "frame0.jpg")
    for declared_fps in (None, 0, float("nan")):
        with pytest.raises(VideoError, match="list of 1 frames: .* needs the fps they were taken at"):
            load_frames([good], declared_fps, fps=1)
    with pytest.raises(VideoError, match="list of 0 frames: there is nothing to see"):
        load_frames([], 1, fps=1)
    for frame, message in [
        ("gone.png", "gone.png: not a readable image"),
        (None, "list of 2 frames, frame 1: None is no image"),
        ({"path": None, "bytes": b"broken"}, "list of 2 frames, frame 1: an encoded image: not a readable image"),
        (np.zeros((4, 4)), r"list of 2 frames, frame 1: an array of float64 of shape \(4, 4\) is no image"),
        (np.zeros((3, 4, 4), np.uint8), r"frame 1: an array of uint8 of shape \(3, 4, 4\) is no image"),
    ]:
        with pytest.raises(VideoError, match=message):
            load_frames([good, frame], 1, fps=1)


def test_a_damaged_image_is_named(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(picture(5)).save(path)
    data = path.read_bytes()
    for damaged in (data[:60], data[:40] + b"x" * 40 + data[80:]):
        path.write_bytes(damaged)
        with pytest.raises(VideoError, match="cut.png: not a readable image"):
            open_image(path)


def test_row_video(clips, frames_dir):
    path, times_s, _ = clips["constant"]
    empty = {"path": None, "start_s": None, "end_s": None, "frames_dir": None, "fps": None}
    check(load_row_video(str(path), fps=1), times_s, range(5))
    check(load_row_video({**empty, "path": str(path)}, fps=1), times_s, range(5))
    cropped = load_row_video({**empty, "path": str(path), "start_s": 1.0, "end_s": 3.0}, num_frames=2)
    check(cropped, times_s, [1.5, 2.5], 1.0)
    folder = load_row_video({**empty, "frames_dir": str(frames_dir), "fps": 4.0}, fps=1, backend="pyav")
    check(folder, np.arange(12) / 4, [0, 1, 2])
    frames = {**empty, "frames": [picture(index) for index in range(12)], "fps": 4.0, "start_s": 1.0}
    check(load_row_video(frames, fps=1, backend="pyav"), np.arange(12) / 4, [1, 2], 1.0)
    for entry, message in [
        (empty, "either a path or a frames_dir"),
        ({**empty, "path": "a.mp4", "frames_dir": "b", "fps": 1}, "either a path or a frames_dir"),
        ({**empty, "frames_dir": str(frames_dir)}, "needs the fps"),
        ({"frames_dir": "a", "frames": ["b.png"], "fps": 1}, "either a path or a frames_dir or frames"),
        ({"frames": ["b.png"]}, "needs the fps"),
        ({**empty, "path": str(path), "fps": 4.0}, "fps declares the rate of a frames_dir"),
        ({"path": str(path), "start": 3}, "unknown fields.*start"),
    ]:
        with pytest.raises(VideoError, match=message):
            load_row_video(entry, fps=1)


# Real footage


def real_video(name):
    path = REALDATA / "videos" / name
    if not path.exists():
        pytest.skip(f"{name} is absent; set TRL_TEMPORAL_REALDATA to the folder that holds videos/{name}")
    return path


@cache
def reference(path):
    """Every frame by PyAV, in decode order, with the sorted pts from 0."""
    with av.open(str(path)) as container:
        small = [frame.reformat(64, 64, "rgb24", interpolation="AREA") for frame in container.decode(video=0)]
        frames = [frame.to_ndarray() for frame in small]
    with av.open(str(path)) as container:
        times_s = sorted(float(frame.pts * frame.time_base) for frame in container.decode(video=0))
    return np.stack(frames), np.array(times_s) - times_s[0]


@pytest.mark.parametrize("name", REAL_VIDEOS)
def test_real_videos(name, backend):
    path = real_video(name)
    frames, times_s = reference(path)
    for kwargs, targets_s in [
        ({"fps": 4}, lambda total_s: np.arange(0, total_s - 1e-3, 0.25)),
        ({"fps": 8, "max_frames": 9}, lambda total_s: midpoints_s(9, 0, total_s)),
        ({"fps": 2, "start_s": 1.3, "end_s": 3.9}, lambda total_s: np.arange(1.3, 3.9, 0.5)),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            video = load_video(path, size=64, backend=backend, **kwargs)
        total_s = times_s[-1] + (times_s[-1] - times_s[-2])
        want = expected(times_s, targets_s(total_s))
        start_s = kwargs.get("start_s", 0.0)
        assert video.duration_s == pytest.approx(2.6 if start_s else total_s, abs=2e-3)
        np.testing.assert_allclose(video.timestamps_s, np.maximum(times_s[want] - start_s, 0), atol=1e-5)
        right, before, after = (
            np.abs(video.frames.astype(int) - frames[np.clip(np.add(want, step), 0, len(frames) - 1)]).mean((1, 2, 3))
            for step in (0, -1, 1)
        )
        assert (right <= np.minimum(before, after) + 0.5).all()  # a wrong rule takes a neighbour
        assert right.max() < (0.01 if backend == "pyav" else 4)  # the others resize in RGB, not in YUV
        if name.endswith(".avi"):
            assert any("timestamps do not increase" in message for message in video.warnings)
        else:
            assert video.warnings == []
