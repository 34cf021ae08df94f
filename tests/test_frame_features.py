# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Stored features of frame encoders: the same as encoding, once for each video and set of objects that is seen."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from trl_temporal.cli import main
from trl_temporal.cli import train as cli_train
from trl_temporal.data.errors import RowError
from trl_temporal.data.feature_cache import FeatureCache
from trl_temporal.data.feature_key import FeatureCacheError
from trl_temporal.data.frame_cache import FrameCache
from trl_temporal.models.grounded_videodit.dtl_feature import DtlDenoiser, DtlFeatureEncoder
from trl_temporal.models.grounded_videodit.frame_encoders import (
    ClipFrameEncoder,
    FrameEncoderList,
    FrameFeatures,
    noise_from_key,
)
from trl_temporal.objects.frame_features import (
    FrameFeatureReader,
    LiveFrameFeatures,
    build_frame_features,
    frame_feature_key,
)
from trl_temporal.objects.masks import pack_masks
from trl_temporal.objects.row_masks import masks_at, objects_id
from trl_temporal.objects.stage import OBJECT_FEATURES
from trl_temporal.video import VideoError

QUIET = {"min_free_bytes": 0, "progress": False}


class ToyEncoder(nn.Module):
    """Mean colours under the masks and outside of them, projected, with noise from the key."""

    tokens_per_frame, hidden_size = 2, 8

    def __init__(self, uses_masks=True, sigma=0.1):
        super().__init__()
        self.uses_masks, self.sigma = uses_masks, sigma
        torch.manual_seed(0)
        self.projection = nn.Linear(3, self.hidden_size)
        self.register_buffer("prompt", torch.ones(4), persistent=False)
        self.seen = []  # what it was called with

    def settings(self):
        return {"class": type(self).__name__, "sigma": self.sigma, "prompt": self.prompt}

    def forward(self, frames, frame_mask=None, masks=None, keys=None):
        assert frames.dtype == torch.uint8 and frame_mask.all() and frame_mask.shape == frames.shape[:2]
        assert not self.training
        self.seen.append((tuple(frames.shape), None if masks is None else tuple(masks.shape), keys))
        frames = frames.float() / 255
        if masks is None or not self.uses_masks:
            masks = torch.ones(*frames.shape[:2], *frames.shape[3:])
        masks = nn.functional.interpolate(masks.float(), frames.shape[3:])[:, :, None]
        inside, outside = ((frames * weight).mean((3, 4)) for weight in (masks, 1 - masks))
        z = self.projection(torch.stack([inside, outside], dim=2))
        noise = torch.stack([noise_from_key(key, tuple(z.shape[1:])) for key in keys])
        return FrameFeatures(z + self.sigma * noise)


@pytest.fixture(scope="module")
def clips(event_world):
    return sorted({row["videos"][0]["path"] for row in event_world["train"]})


@pytest.fixture(scope="module")
def read_video(tmp_path_factory):
    return FrameCache(tmp_path_factory.mktemp("frames"), num_frames=5, size=32)


def cells(nouns=("red disc",), left=0, times_s=(0.5, 2.5, 4.5)):
    """Object columns with a box from column `left` on."""
    masks = np.zeros((1, len(times_s), 12, 16), dtype=bool)
    masks[..., left : left + 5] = True
    return {
        "object_nouns": list(nouns),
        "object_masks": pack_masks(masks, masks[0]),
        "object_times_s": list(times_s),
    }


def row_of(path, id="a", end_s=None, **columns):
    return {"id": id, "videos": [{"path": path, "end_s": end_s}], **columns}


@pytest.fixture
def rows(clips):
    """The first video with two sets of objects and without any, and twice the second one with the same objects."""
    return [
        row_of(clips[0], "disc", **cells()),
        row_of(clips[0], "cross", **cells(["blue cross"], left=8)),
        row_of(clips[0], "none"),
        row_of(clips[1], "other", **cells(["disc", "cross"])),
        row_of(clips[1], "again", **cells(["cross", "disc"])),
        {"id": "text", "videos": []},
    ]


def stored(folder):
    """All tensors of a cache."""
    return {name: value for path in Path(folder).rglob("*.safetensors") for name, value in load_file(path).items()}


def same_tensors(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_reading_is_encoding(rows, read_video, tmp_path):
    """Bit by bit, and what is read is what the encoder makes of the frames, the masks of the nearest times and id."""
    encoder = ToyEncoder()
    report = build_frame_features(rows, tmp_path, encoder, read_video, dtype="float32", **QUIET)
    assert (report.num_videos, report.num_new) == (4, 4) and report.speed_up > 0
    reader = FrameFeatureReader.open(tmp_path, encoder, read_video.sampling, "float32")
    live = LiveFrameFeatures(encoder, read_video, "float32")
    assert len(reader) == 4 and all(row in reader for row in rows[:-1])
    for row in rows[:-1]:
        hit, miss = reader(row), live(row)
        assert hit.features.shape == (1, 5 * 2, 8) and torch.equal(hit.features, miss.features)
        expected = read_video(row["videos"][0]).timestamps_s.tolist()
        assert hit.timestamps_s.tolist() == miss.timestamps_s.tolist() == expected
        assert (hit.num_frames, hit.duration_s, hit.path) == (5, miss.duration_s, miss.path)

    row, video = rows[1], read_video(rows[1]["videos"][0])
    nearest = [int(np.abs(np.subtract([0.5, 2.5, 4.5], time)).argmin()) for time in video.timestamps_s]
    masks = np.zeros((3, 12, 16), dtype=bool)
    masks[..., 8:13] = True
    masks[1] = False
    row["object_masks"] = pack_masks(masks[None], masks)
    assert (masks_at(row, video.timestamps_s) == masks[nearest]).all() and 1 in nearest
    entry = live(row)
    frames = torch.from_numpy(video.frames.transpose(0, 3, 1, 2).copy())[None]
    (key,) = encoder.seen[-1][2]
    made = encoder(frames, torch.ones(1, 5, dtype=torch.bool), torch.from_numpy(masks[nearest])[None], [key])
    assert torch.equal(entry.features, made.z.flatten(1, 2))
    assert key == FeatureCache(tmp_path, {}).video_id(row["videos"][0], objects_id(row))


def test_order_and_kills_change_no_bit(rows, clips, read_video, tmp_path, monkeypatch):
    rows = rows + [row_of(clips[2], end_s=5.0 + end / 4, **cells(left=end % 9)) for end in range(20)]
    build_frame_features(rows, tmp_path / "whole", ToyEncoder(), read_video, **QUIET)
    whole = stored(tmp_path / "whole")
    assert whole[next(name for name in whole if name.endswith(".features"))].dtype == torch.float16

    build_frame_features(rows[::-1], tmp_path / "turned", ToyEncoder(), read_video, num_threads=1, **QUIET)
    assert same_tensors(features_of(stored(tmp_path / "turned")), features_of(whole))

    encoder = ToyEncoder()
    forward = encoder.forward

    def fail(frames, *args):
        if len(encoder.seen) == 15:
            raise KeyboardInterrupt
        return forward(frames, *args)

    monkeypatch.setattr(encoder, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        build_frame_features(rows, tmp_path / "killed", encoder, read_video, shard_bytes=1, **QUIET)
    before = stored(tmp_path / "killed")
    assert 0 < len(before) < len(whole) and not list(tmp_path.rglob("*.part"))
    encoder = ToyEncoder()
    report = build_frame_features(rows, tmp_path / "killed", encoder, read_video, **QUIET)
    assert report.num_new == 24 - 15 == len(encoder.seen)
    assert same_tensors(features_of(stored(tmp_path / "killed")), features_of(whole))


def features_of(tensors):
    return {name: value for name, value in tensors.items() if not name.endswith(".info")}  # which has a path


@pytest.mark.parametrize("uses_masks", [True, False])
def test_objects_count_where_they_are_seen(uses_masks, rows, clips, read_video, tmp_path):
    encoder = ToyEncoder(uses_masks)
    report = build_frame_features(rows, tmp_path, encoder, read_video, **QUIET)
    assert report.num_videos == (4 if uses_masks else 2)
    assert {masks for _, masks, _ in encoder.seen} == ({(1, 5, 12, 16), None} if uses_masks else {None})
    reader = FrameFeatureReader.open(tmp_path, encoder, read_video.sampling)
    assert torch.equal(reader(rows[3]).features, reader(rows[4]).features)  # a set has no order
    first = reader(rows[0]).features
    assert torch.equal(reader(rows[1]).features, first) != uses_masks
    assert torch.equal(reader(rows[2]).features, first) != uses_masks
    changed = [
        row_of(clips[0], **cells(["green disc"])),
        row_of(clips[0], **cells(left=1)),
        row_of(clips[0], **cells(times_s=(0.5, 2.0, 4.5))),
    ]
    for row in changed:
        assert (row in reader) != uses_masks
    # Tracks and scores do not reach the encoder.
    tracks = cells()
    tracks["object_masks"]["tracks"] = []
    assert torch.equal(reader(row_of(clips[0], **tracks, object_scores=[[0.5]])).features, first)


def test_lengths_and_sizes_are_not_mixed(clips, tmp_path):
    """Videos of several lengths and masks of several sizes in one build; no frame is made up."""
    read = FrameCache(None, fps=1.0, size=16)
    rows = [row_of(clips[0], end_s=end, **cells(left=1)) for end in (3.0, 4.0, 4.5, 6.0)]
    masks = np.ones((2, 7, 9), dtype=bool)
    rows.append(row_of(clips[1], object_masks=pack_masks(masks[None], masks), object_times_s=[0.0, 1.0]))
    encoder = ToyEncoder()
    build_frame_features(rows, tmp_path, encoder, read, dtype="float32", **QUIET)
    reader = FrameFeatureReader.open(tmp_path, encoder, read.sampling, "float32")
    assert [reader(row).num_frames for row in rows[:4]] == [3, 4, 5, 6]
    for row in rows:
        alone = LiveFrameFeatures(encoder, read, "float32")(row)
        assert torch.equal(reader(row).features, alone.features)
        assert reader(row).features.shape[1] == 2 * reader(row).num_frames


class ToyWithMasks(DtlFeatureEncoder):
    """The denoiser over a tower, which is part of the model, in the place of an encoder that is not."""

    def settings(self):
        return {"class": type(self).__name__}


def test_the_encoders_of_the_package(rows, read_video, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    clip = ClipFrameEncoder(CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)))
    latents = ToyWithMasks(clip, DtlDenoiser(16, width=16, num_layers=2, num_heads=2))
    for encoders, num_features in (([clip], 2), ([clip, latents], 4)):
        encoder = FrameEncoderList(encoders)
        assert build_frame_features(rows, tmp_path, encoder, read_video, **QUIET).num_new == num_features
        reader = FrameFeatureReader.open(tmp_path, encoder, read_video.sampling)
        live = LiveFrameFeatures(encoder, read_video)
        for row in rows[:-1]:
            assert torch.equal(reader(row).features, live(row).features)
        assert reader(rows[0]).features.shape == (1, 5, 16 * len(encoders))
        assert reader.key["vision"]["hidden_size"] == 16 * len(encoders)
        assert reader.key["vision"]["encoders"]["0"]["class"] == "ClipFrameEncoder"
    encoder.encoders[0].spatial_pool = 2
    with pytest.raises(FeatureCacheError, match=r"settings of the frame encoder: encoders\.0\.spatial_pool 1 != 2\. "):
        FrameFeatureReader.open(tmp_path, encoder, read_video.sampling)


def test_a_data_set_is_read_as_its_rows(rows, read_video, tmp_path):
    """Arrow, pickled for a worker, and with object columns that are null."""
    columns = ("object_nouns", "object_masks", "object_times_s")
    features = {
        "id": datasets.Value("string"),
        "videos": datasets.List({"path": datasets.Value("string"), "end_s": datasets.Value("float64")}),
    }
    features |= {name: OBJECT_FEATURES[name] for name in columns}
    dataset = datasets.Dataset.from_list(
        [{**dict.fromkeys(columns), **row} for row in rows], features=datasets.Features(features)
    )
    encoder = ToyEncoder()
    report = build_frame_features(dataset, tmp_path, encoder, read_video, **QUIET)
    assert report.num_new == 4
    reader = pickle.loads(pickle.dumps(FrameFeatureReader.open(tmp_path, encoder, read_video.sampling)))
    for row, arrow in zip(rows[:-1], dataset, strict=False):
        assert torch.equal(reader(row).features, reader(arrow).features)
    assert build_frame_features(rows, tmp_path, encoder, read_video, **QUIET).num_new == 0
    nulls = {"object_masks": dict.fromkeys(OBJECT_FEATURES["object_masks"]), "object_times_s": None}
    assert torch.equal(reader({**rows[2], **nulls}).features, reader(rows[2]).features)


def test_called_again_it_adds_new_objects(rows, read_video, tmp_path):
    """Of a video that is there without objects."""
    encoder = ToyEncoder()
    counts = [build_frame_features(part, tmp_path, encoder, read_video, **QUIET).num_new for part in (rows[2:3], rows)]
    assert counts == [1, 3]
    assert all(row in FrameFeatureReader.open(tmp_path, encoder, read_video.sampling) for row in rows[:-1])


def change_frames(encoder, sampling):
    sampling["num_frames"] = 6


def change_sigma(encoder, sampling):
    encoder.sigma = 0.9


def change_weights(encoder, sampling):
    encoder.projection.bias.data.add_(1)


def change_prompt(encoder, sampling):
    encoder.prompt.add_(1)


def change_use(encoder, sampling):
    encoder.uses_masks = False


@pytest.mark.parametrize(
    "change, difference",
    [
        (change_frames, r"sampling: num_frames 5 != 6\. "),
        (change_sigma, r"settings of the frame encoder: sigma 0\.1 != 0\.9\. "),
        (change_weights, r"weights of the frame encoder\. "),
        (change_prompt, r"weights of the frame encoder\. "),
        (change_use, r"settings of the frame encoder: uses_masks True != False\. "),
    ],
)
def test_another_encoder_is_told_what_differs(change, difference, rows, read_video, tmp_path):
    encoder, sampling = ToyEncoder(), dict(read_video.sampling)
    build_frame_features(rows, tmp_path, encoder, read_video, **QUIET)
    assert len(FrameFeatureReader.open(tmp_path, encoder, sampling)) == 4
    with pytest.raises(FeatureCacheError, match=r"dtype: float16 != bfloat16\. "):
        FrameFeatureReader.open(tmp_path, encoder, sampling, "bfloat16")
    change(encoder, sampling)
    with pytest.raises(FeatureCacheError, match=r"\(theirs != of this run\): " + difference):
        FrameFeatureReader.open(tmp_path, encoder, sampling)


def test_without_the_encoder(rows, read_video, tmp_path):
    sampling = read_video.sampling
    with pytest.raises(
        FeatureCacheError, match="holds no features of frame encoders. Build them: `trl-temporal cache"
    ):
        FrameFeatureReader.open_stored(tmp_path, sampling)
    build_frame_features(rows, tmp_path, ToyEncoder(), read_video, **QUIET)
    reader = FrameFeatureReader.open_stored(tmp_path, sampling)
    assert reader.uses_masks and reader.key == frame_feature_key(ToyEncoder(), sampling)
    assert torch.equal(reader(rows[0]).features, LiveFrameFeatures(ToyEncoder(), read_video)(rows[0]).features)
    with pytest.raises(FeatureCacheError, match="differ in .*: sampling: num_frames 5 != 7. Sample like them"):
        FrameFeatureReader.open_stored(tmp_path, {**sampling, "num_frames": 7})
    build_frame_features(rows, tmp_path, ToyEncoder(sigma=0.5), read_video, **QUIET)
    with pytest.raises(FeatureCacheError, match="holds features of several encoders or types"):
        FrameFeatureReader.open_stored(tmp_path, sampling)


def test_a_row_that_is_not_there(rows, clips, read_video, tmp_path):
    encoder = ToyEncoder()
    build_frame_features(rows, tmp_path, encoder, read_video, **QUIET)
    reader = FrameFeatureReader.open(tmp_path, encoder, read_video.sampling)
    message = r"row 'new': .*\.mp4.* with the objects \['b', 'r'\], as in this row, is not among the 4 .*cache build"
    with pytest.raises(VideoError, match=message):
        reader(row_of(clips[0], "new", **cells(["r", "b"])))
    with pytest.raises(VideoError, match="row 'gone': .*gone.mp4: no such file"):
        reader(row_of("gone.mp4", "gone"))
    with pytest.raises(VideoError, match="row 'gone': gone.mp4: no such file"):
        LiveFrameFeatures(encoder, read_video)(row_of("gone.mp4", "gone"))
    with pytest.raises(RowError, match="row 'text', column 'videos': has 0 videos"):
        reader(rows[-1])


def test_bad_rows(rows, clips, read_video, tmp_path):
    encoder = ToyEncoder()
    two = {**rows[0], "videos": clips[:2]}
    with pytest.raises(RowError, match=r"row 1 \(id 'disc'\), column 'videos': has 2 videos"):
        build_frame_features([rows[2], two], tmp_path, encoder, read_video, **QUIET)
    timeless = {**rows[0], "object_times_s": [0.5]}
    with pytest.raises(
        RowError, match="row 0 .*'object_masks': has masks of 3 frames, but 'object_times_s' has 1 .*extr"
    ):
        build_frame_features([timeless], tmp_path, encoder, read_video, **QUIET)
    damaged = row_of(clips[0], "damaged", **cells())
    damaged["object_masks"]["union"][1] = [7]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    bad = [rows[0], damaged, row_of(str(broken), "broken")]
    with pytest.raises(
        VideoError, match=r"row 1 \(id 'damaged'\): column 'object_masks': frame 1: the runs of the mask"
    ):
        build_frame_features(bad, tmp_path, encoder, read_video, **QUIET)
    with pytest.warns(UserWarning, match="skipped 2 videos, of 2 rows") as record:
        report = build_frame_features(bad, tmp_path, encoder, read_video, on_bad_sample="skip", **QUIET)
    assert __file__ in [warning.filename for warning in record]  # and not a line of the package
    skipped = [json.loads(line)["id"] for line in (report.folder / "skipped.jsonl").read_text().splitlines()]
    assert (report.num_new, skipped) == (1, ["damaged", "broken"])
    with pytest.raises(ValueError, match="there is no video to encode"):
        build_frame_features([rows[-1]], tmp_path, encoder, read_video, **QUIET)
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be"):
        build_frame_features(rows, tmp_path, encoder, read_video, dtype="int8", **QUIET)


def test_features_that_cannot_be_stored(rows, read_video, tmp_path):
    encoder = ToyEncoder()
    encoder.projection.bias.data.fill_(1e6)
    with pytest.raises(FeatureCacheError, match=r"\.mp4: .* not finite in torch.float16. Store them as bfloat16"):
        build_frame_features(rows, tmp_path, encoder, read_video, **QUIET)
    assert build_frame_features(rows, tmp_path, encoder, read_video, dtype="bfloat16", **QUIET).num_new == 4
    encoder.tokens_per_frame = 3
    with pytest.raises(FeatureCacheError, match=r"shape \(1, 5, 2, 8\) of it; .* should have \(1, 5, 3, 8\)"):
        build_frame_features(rows, tmp_path, encoder, read_video, dtype="bfloat16", **QUIET)
    with pytest.raises(FeatureCacheError, match="features of 4 videos take about"):
        build_frame_features(rows, tmp_path, ToyEncoder(), read_video, min_free_bytes=2**60, progress=False)


def test_what_is_wrong_with_all_frames_names_the_encoder(rows, read_video, tmp_path, monkeypatch):
    encoder = ToyEncoder()

    def refuse(*args):
        raise ValueError("frames of 8 x 8 pixels are too small")

    monkeypatch.setattr(encoder, "forward", refuse)
    with pytest.raises(FeatureCacheError, match=r"\.mp4: ToyEncoder does not take it: frames of 8 x 8"):
        build_frame_features(rows, tmp_path, encoder, read_video, **QUIET)


@pytest.fixture
def command(rows, tmp_path, monkeypatch):
    """`cache build` for a model whose encoder is the toy."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "grounded_videodit"}))
    monkeypatch.setattr(cli_train, "_load_frame_encoder", load_toy)
    command = ["cache", "build", "--model", str(tmp_path / "model"), "--dataset", str(path), "--min-free-gib", "0"]
    return [*command, "--output", str(tmp_path / "features"), "--device", "cpu"]


def load_toy(name, dtype, sampling, from_hub):
    from trl_temporal.objects.frame_features_path import read_frames_of

    class Processor:
        num_frames, image_size = 4, 24

    assert dtype == "auto"
    return ToyEncoder(), read_frames_of(Processor(), **sampling)


def test_the_command(command, rows, tmp_path, capsys):
    assert main(command) == 0
    assert "4 videos encoded" in capsys.readouterr().out
    (path,) = (tmp_path / "features").glob("*/key.json")
    key = json.loads(path.read_text())
    assert (key["sampling"]["num_frames"], key["sampling"]["size"], key["dtype"]) == (4, 24, "float16")
    assert main([*command, "--fps", "1", "--max-frames", "3", "--size", "16", "--feature-dtype", "float32"]) == 0
    reader = FrameFeatureReader.open(
        tmp_path / "features", ToyEncoder(), FrameCache(None, fps=1.0, max_frames=3, size=16).sampling, "float32"
    )
    assert [reader(row).num_frames for row in rows[:-1]] == [3] * 5
    for flags, message in {"--batch-size 2": "one video at a time", "--max-frames 3": "needs fps"}.items():
        assert main([*command, *flags.split()]) == 1
        assert message in capsys.readouterr().err


def test_flags_of_frame_encoders_are_refused_elsewhere(tiny_dir, rows, tmp_path, capsys):
    command = ["cache", "build", "--model", str(tiny_dir), "--dataset", "rows", "--output", str(tmp_path)]
    for flags in (["--size", "32"], ["--feature-dtype", "float16"]):
        assert main([*command, *flags]) == 1
        assert f"{flags[0]} is for Grounded-VideoDiT" in capsys.readouterr().err
