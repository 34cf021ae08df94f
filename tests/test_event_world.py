# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import hashlib
import re
import shutil
from collections import Counter
from itertools import combinations

import av
import datasets
import numpy as np
import pytest

from trl_temporal.data import event_world
from trl_temporal.data.event_world import (
    SPLIT_STARTS,
    VIDEO_SETTINGS,
    build_event_world,
    distort_event_world_caption,
    frame_tags,
    render,
    simulate,
    video_rows,
    write_video,
)
from trl_temporal.data.event_world_scene import ACTIONS, COLOURS, RADII, object_motion
from trl_temporal.data.schema import validate_dataset
from trl_temporal.spans import iou_matrix

WORLDS = [simulate(0, index) for index in range(200)]
ROWS = [row for world in WORLDS for row in video_rows(world, {"path": f"{world.index}.mp4"})]


def own_events(world, object_index):
    return [event for event in world.events if event.object_index == object_index]


def question(row):
    return row["prompt"][0]["content"][1]["text"]


# Worlds


def test_same_seed_same_world_other_seed_another():
    assert simulate(0, 3) == WORLDS[3]
    assert simulate(1, 3) != WORLDS[3] != WORLDS[4]


def test_worlds_are_those_of_this_version():
    # Videos on disk are kept as long as `version` stays. If this digest changes, raise the version.
    values = [round(value, 4) for event in simulate(0, 0).events for value in (event.start_s, event.end_s, event.rate)]
    values += [round(value, 3) for place in simulate(0, 0).objects for value in (place.x, place.y)]
    digest = hashlib.sha256(str(values).encode()).hexdigest()[:16]
    assert (VIDEO_SETTINGS["version"], digest) == (1, "5806201b43977979")


@pytest.mark.parametrize("world", WORLDS[::4], ids=lambda world: str(world.index))
def test_events_and_objects_keep_the_rules(world):
    assert 16 <= world.duration_s <= 20 and world.duration_s * 8 % 1 == 0
    assert 3 <= len(world.objects) <= 4 and 5 <= len(world.events) <= 7
    assert len({place.colour for place in world.objects}) == len(world.objects)
    edges_s = np.array([[event.start_s, event.end_s] for event in world.events])
    lengths_s, gaps_s = edges_s[:, 1] - edges_s[:, 0], edges_s[1:, 0] - edges_s[:-1, 1]
    assert lengths_s.min() > 1.5 - 1e-9 and lengths_s.max() < 4 + 1e-9 and gaps_s.min() > 0.5 - 1e-9
    assert edges_s[0, 0] > 0.3 - 1e-9 and edges_s[-1, 1] < world.duration_s
    captions = [event.caption for event in world.events]
    assert all(before != after for before, after in zip(captions[:-1], captions[1:], strict=True))
    for event in world.events:
        assert event.object_name == world.objects[event.object_index].name


@pytest.mark.parametrize("world", WORLDS[::4], ids=lambda world: str(world.index))
def test_objects_stay_in_the_frame_and_never_overlap(world):
    times_s = np.arange(0, world.duration_s, 1 / 50)
    boxes = []
    for i, place in enumerate(world.objects):
        x, y, radius, brightness = object_motion(place, own_events(world, i), times_s)
        assert brightness.min() >= 0.25
        boxes.append((x - radius, x + radius, y - radius, y + radius))
        assert boxes[-1][0].min() > 0 and boxes[-1][1].max() < 128
        assert boxes[-1][2].min() > 0 and boxes[-1][3].max() < 128
    for (left, right, top, bottom), (left2, right2, top2, bottom2) in combinations(boxes, 2):
        apart = np.maximum(np.maximum(left2 - right, left - right2), np.maximum(top2 - bottom, top - bottom2))
        assert apart.min() > 0


def test_every_action_is_as_frequent():
    counts = Counter(event.action for world in WORLDS for event in world.events)
    assert set(counts) == set(ACTIONS)
    assert min(counts.values()) > 0.8 * max(counts.values())


# Pixels


def test_a_frame_depends_on_the_world_and_its_time_alone():
    times_s = np.arange(0, 10, 0.7)
    frames = render(WORLDS[0], times_s, size=64)
    assert frames.shape == (15, 64, 64, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(render(WORLDS[0], times_s[4:6], size=64), frames[4:6])
    assert (render(simulate(1, 0), times_s, size=64) != frames).any(axis=(1, 2, 3)).all()
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all()
    assert len(render(WORLDS[0], times_s[:0], size=64)) == 0


def test_small_frames_look_like_averaged_large_ones():
    times_s = np.arange(0, 16, 0.5)
    for world in WORLDS[:5]:
        small = render(world, times_s, size=64).astype(float)
        large = render(world, times_s, size=128).astype(float)
        averaged = large.reshape(len(times_s), 64, 2, 64, 2, 3).mean(axis=(2, 4))
        # Both have their own noise, sigma 2.5 each.
        assert np.abs(small - averaged).mean() < 3.2
        assert np.quantile(np.abs(small - averaged), 0.999) < 20


def test_objects_have_their_colours():
    for world in WORLDS[:10]:
        for i, place in enumerate(world.objects):
            x, y, _, _ = object_motion(place, own_events(world, i), np.zeros(1))
            pixel = render(world, np.zeros(1))[0, int(y[0]) - 1 : int(y[0]) + 2, int(x[0]) - 1 : int(x[0]) + 2]
            nearest = min(COLOURS, key=lambda name: np.abs(pixel.mean(axis=(0, 1)) - COLOURS[name]).sum())
            assert nearest == place.colour


def test_events_are_visible_at_two_frames_a_second():
    """Change at the object's place, against its place at rest: larger in the event than outside any of its events."""
    ratios = {action: [] for action in ACTIONS}
    for world in WORLDS[:30]:
        times_s = np.arange(0, world.duration_s, 0.5)
        frames = render(world, times_s, size=64).astype(float)
        change = np.abs(frames[1:] - frames[:-1]).mean(axis=3)
        middles_s = (times_s[1:] + times_s[:-1]) / 2
        for i, place in enumerate(world.objects):
            events = own_events(world, i)
            x, y, radius, _ = object_motion(place, events, times_s)
            left, right = int((x - radius).min() / 2), int((x + radius).max() / 2) + 1
            top, bottom = int((y - radius).min() / 2), int((y + radius).max() / 2) + 1
            local = change[:, top:bottom, left:right].mean(axis=(1, 2))
            idle = np.all([(middles_s < e.start_s - 0.5) | (middles_s > e.end_s + 0.5) for e in events], axis=0)
            for event in events if idle.any() else []:
                inside = (middles_s > event.start_s) & (middles_s < event.end_s)
                ratios[event.action].append(local[inside].mean() / np.median(local[idle]))
    for action, values in ratios.items():
        assert min(values) > 1.3 and np.median(values) > 2.5, action


def test_frame_tags_follow_the_midpoints():
    names = [*COLOURS, *RADII, *ACTIONS]
    for world in WORLDS[:20]:
        times_s = np.arange(0, world.duration_s, 0.5)
        tags = frame_tags(world, times_s)
        assert tags.shape == (len(times_s), 14) and tags.dtype == np.float32
        ends_s = [*times_s[1:], world.duration_s]
        for time_s, end_s, tag in zip(times_s, ends_s, tags, strict=True):
            middle_s = (time_s + end_s) / 2
            active = [event for event in world.events if event.start_s <= middle_s < event.end_s]
            expected = {value for event in active for value in (event.colour, event.shape, event.action)}
            assert {name for name, value in zip(names, tag, strict=True) if value} == expected


def test_frames_at_two_a_second_can_tell_the_spans():
    """An oracle that marks exactly the right frames scores far above any baseline."""
    hits = []
    for world in WORLDS[:50]:
        times_s = np.arange(0, world.duration_s, 0.5)
        edges_s = np.append(times_s, world.duration_s)
        middles_s = (edges_s[1:] + edges_s[:-1]) / 2
        for event in world.events:
            (inside,) = np.nonzero((middles_s >= event.start_s) & (middles_s < event.end_s))
            iou = iou_matrix([[edges_s[inside[0]], edges_s[inside[-1] + 1]]], [[event.start_s, event.end_s]])
            hits.append(iou[0] >= np.array([0.1, 0.3, 0.5, 0.7]))
    assert np.mean(hits) > 0.97


# Rows


def test_rows_follow_the_contract():
    validate_dataset(ROWS, "sft")
    assert len({row["id"] for row in ROWS}) == len(ROWS) == 4 * len(WORLDS)
    assert ROWS[48]["id"] == "event_world-train-000012-dense"
    assert all(row["spans"] for row in ROWS)
    assert video_rows(WORLDS[5], {"path": "5.mp4"}) == ROWS[20:24]
    assert video_rows(simulate(0, 1_000_007), {"path": "a"})[0]["id"] == "event_world-validation-000007-dense"
    assert video_rows(simulate(0, 2_000_007), {"path": "a"})[3]["id"] == "event_world-test-000007-qa-0"


def test_dense_rows_tell_every_event():
    for world, row in zip(WORLDS, ROWS[::4], strict=True):
        assert row["captions"] == [event.caption for event in world.events]
        assert row["spans"] == row["all_spans"] == [[event.start_s, event.end_s] for event in world.events]


def test_grounding_answers_are_the_events_that_the_question_asks_for():
    base_forms = {base: action for action, base in ACTIONS.items()}
    for world in WORLDS:
        rows = [row for row in video_rows(world, {"path": "a"}, num_grounding=4) if row["task"] == "grounding"]
        assert len({question(row) for row in rows}) == 4
        for row in rows:
            who, what = re.fullmatch(
                r"When does (anything|the \w+ (?:disc|cross)) (do something|[\w ]+)\?", question(row)
            ).groups()
            expected = [
                [event.start_s, event.end_s]
                for event in world.events
                if who in ("anything", f"the {event.object_name}")
                and (what == "do something" or event.action == base_forms[what])
            ]
            assert row["spans"] == expected


def test_qa_answers_are_right_and_unique():
    kinds = Counter()
    for world in WORLDS:
        captions = [event.caption for event in world.events]
        for row in video_rows(world, {"path": "a"}, num_qa=2)[3:]:
            (index,) = [i for i, event in enumerate(world.events) if [event.start_s, event.end_s] == row["spans"][0]]
            event = world.events[index]
            if match := re.fullmatch(r"What does the (.+) do first\?", question(row)):
                kinds["first"] += 1
                assert [e for e in world.events if e.object_name == match[1]][0] == event
                assert row["answer"] == f"It {event.action}"
            elif match := re.fullmatch(r"What happens right after the (.+)\?", question(row)):
                kinds["after"] += 1
                assert captions.count(f"The {match[1]}") == 1
                assert captions[index - 1] == f"The {match[1]}" and row["answer"] == captions[index]
            else:
                kinds["which"] += 1
                action = re.fullmatch(r"Which object (.+)\?", question(row))[1]
                assert [e.action for e in world.events].count(action) == 1
                assert event.action == action and row["answer"] == f"The {event.object_name}"
    assert min(kinds.values()) > 100


def test_too_many_questions_is_an_error():
    with pytest.raises(ValueError, match="this world has only"):
        video_rows(WORLDS[0], {"path": "a"}, num_qa=100)


def test_answering_every_event_does_not_pay():
    rows = [row for row in ROWS if row["task"] == "grounding"]
    shares = np.array([len(row["spans"]) / len(row["all_spans"]) for row in rows])
    # Every true span is among the answers (recall 1) and the share of true ones is the precision, at any IoU.
    assert 0.35 < np.mean(2 * shares / (1 + shares)) < 0.45
    assert 1.3 < np.mean([len(row["spans"]) for row in rows]) < 1.6


def test_distortion_changes_one_attribute():
    rng = np.random.default_rng(0)
    vocabulary = [list(COLOURS), list(RADII), list(ACTIONS)]
    for row in ROWS:
        for text in [*row["captions"], row["answer"]] if row["task"] != "grounding" else []:
            if not text:
                continue
            false_text = distort_event_world_caption(text, rng)
            values = [[v for v in group if v in text] for group in vocabulary]
            false_values = [[v for v in group if v in false_text] for group in vocabulary]
            assert [len(group) for group in values] == [len(group) for group in false_values]
            assert sum(a != b for a, b in zip(values, false_values, strict=True)) == 1
    with pytest.raises(ValueError, match="names no colour, shape or action"):
        distort_event_world_caption("A man opens a door", rng)


# Files


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "event_world"
    return root, build_event_world(root, num_train=2, num_validation=1, num_test=1, progress=False)


def no_rendering(*args):
    raise AssertionError("a video was rendered")


def test_videos_have_the_frames_and_the_duration_of_their_worlds(built):
    root, data = built
    for split, dataset in data.items():
        for row in dataset.filter(lambda row: row["task"] == "dense"):
            number = int(row["id"].split("-")[2])
            world = simulate(0, SPLIT_STARTS[split] + number)
            (entry,) = row["videos"]
            assert entry["path"] == str(root / "videos" / split / f"{number:06d}.mp4")
            with av.open(entry["path"]) as container:
                stream = container.streams.video[0]
                assert float(stream.duration * stream.time_base) == pytest.approx(world.duration_s)
                decoded = list(container.decode(stream))
            times_s = np.array([frame.time for frame in decoded])
            np.testing.assert_allclose(times_s, np.arange(world.duration_s * 8) / 8, atol=1e-6)
            pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(float)
            assert np.abs(pixels - render(world, times_s)).mean() < 6


def test_rows_on_disk_are_the_rows_returned(built, tmp_path):
    root, data = built
    validate_dataset(data["train"], "sft")
    loaded = datasets.load_dataset(str(root), cache_dir=str(tmp_path))
    assert {split: dataset[:] for split, dataset in loaded.items()} == {s: d[:] for s, d in data.items()}
    assert [len(dataset) for dataset in data.values()] == [8, 4, 4]
    ids = [row_id for dataset in data.values() for row_id in dataset["id"]]
    assert len(set(ids)) == len(ids)
    captions = [tuple(row["captions"]) for dataset in data.values() for row in dataset if row["task"] == "dense"]
    assert len(set(captions)) == 4


def test_a_second_build_renders_nothing(built, monkeypatch):
    root, data = built
    monkeypatch.setattr(event_world, "write_video", no_rendering)
    again = build_event_world(root, num_train=2, num_validation=1, num_test=1, progress=False)
    assert again["train"][:] == data["train"][:]


def test_a_larger_build_renders_only_what_is_missing(built, tmp_path, monkeypatch):
    root = shutil.copytree(built[0], tmp_path / "event_world")
    rendered = []
    monkeypatch.setattr(event_world, "write_video", lambda path, world: rendered.append(world.index))
    build_event_world(root, num_train=3, num_validation=0, num_test=2, progress=False)
    assert rendered == [2, 2_000_001]


def test_processes_make_the_same_files(built, tmp_path):
    root, _ = built
    build_event_world(tmp_path / "ew", num_train=2, num_validation=0, num_test=0, num_workers=2, progress=False)
    for name in ("000000.mp4", "000001.mp4"):
        assert (tmp_path / "ew/videos/train" / name).read_bytes() == (root / "videos/train" / name).read_bytes()


def test_an_interrupted_render_leaves_no_video(tmp_path, monkeypatch):
    monkeypatch.setattr(event_world, "render", no_rendering)
    with pytest.raises(AssertionError):
        write_video(tmp_path / "a.mp4", WORLDS[0])
    assert not (tmp_path / "a.mp4").exists()


def test_videos_with_other_settings_are_refused(built, tmp_path):
    root, _ = built
    with pytest.raises(ValueError, match="other settings"):
        build_event_world(root, num_train=1, num_validation=0, num_test=0, seed=1)
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match="without"):
        build_event_world(tmp_path, num_train=1, num_validation=0, num_test=0)


def test_splits_cannot_run_into_each_other(tmp_path):
    with pytest.raises(ValueError, match="at most"):
        build_event_world(tmp_path, num_train=1_000_001, num_validation=0, num_test=0)
