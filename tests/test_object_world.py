# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import hashlib
import re
from collections import Counter

import datasets
import numpy as np
import pytest

from trl_temporal.data import event_world, object_world
from trl_temporal.data.event_world import build_event_world
from trl_temporal.data.event_world_scene import ACTIONS, object_motion
from trl_temporal.data.object_world import (
    KINDS,
    OBJECT_WORLD_FEATURES,
    REPEATABLE_ACTIONS,
    build_object_world,
    object_masks,
    object_world_rows,
    render_video,
    simulate_object_world,
)
from trl_temporal.data.schema import validate_dataset
from trl_temporal.evaluation.metrics.spans_metric import span_scores
from trl_temporal.evaluation.span_baselines import (
    constant_span,
    constant_span_predictions,
    frame_oracle_predictions,
)
from trl_temporal.objects.colours import (
    ColourDetector,
    ColourTracker,
    NoisyDetector,
    NoisyTracker,
    oracle_objects,
)
from trl_temporal.objects.extract import extract_objects
from trl_temporal.objects.masks import mask_boxes, unpack_masks
from trl_temporal.objects.nouns import extract_nouns, nouns_of_row
from trl_temporal.objects.stage import OBJECT_FEATURES, ObjectStageConfig, ground_objects
from trl_temporal.synthesis import SynthesisConfig, synthesize_preferences
from trl_temporal.video import load_row_video

WORLDS = [simulate_object_world(0, index) for index in range(200)]
ROWS = [row for world in WORLDS for row in object_world_rows(world, {"path": f"{world.index}.mp4"}, num_each=4)]
WORLD_OF_ROW = [world for world in WORLDS for _ in range(4 * len(KINDS))]
CONFIG = ObjectStageConfig(num_frames=24)


def question(row):
    return row["prompt"][0]["content"][1]["text"]


def names_of(world):
    return [world_object.name for world_object in world.objects]


# Worlds


def test_same_seed_same_world_other_seed_another():
    assert simulate_object_world(0, 3) == WORLDS[3]
    assert simulate_object_world(1, 3) != WORLDS[3] != WORLDS[4]


def test_worlds_are_those_of_this_version():
    # Videos on disk are kept as long as the settings stay. If this digest changes, raise "version" in them.
    values = [round(value, 4) for event in WORLDS[0].events for value in (event.start_s, event.end_s, event.rate)]
    values += [round(value, 3) for place in WORLDS[0].objects for value in (place.x, place.y)]
    assert hashlib.sha256(str(values).encode()).hexdigest()[:16] == "8eb5fa9a28494847"


def test_two_objects_do_the_same_two_actions_at_different_times():
    for world in WORLDS:
        assert 3 <= len(world.objects) <= 4 and 12 <= world.duration_s <= 16
        assert len({place.colour for place in world.objects}) == len(world.objects)
        assert len(world.events) == 4
        done = {(event.object_index, event.action) for event in world.events}
        assert done == {(actor, event.action) for actor in (0, 1) for event in world.events} and len(done) == 4
        edges_s = np.array([[event.start_s, event.end_s] for event in world.events])
        assert (edges_s[1:, 0] - edges_s[:-1, 1]).min() > 0.5 - 1e-9
        assert edges_s.min() > 0 and edges_s.max() < world.duration_s


def test_every_object_is_whole_and_in_view_all_the_time():
    for world in WORLDS[:60]:
        times_s = np.arange(0, world.duration_s, 0.1)
        for index, place in enumerate(world.objects):
            own = [event for event in world.events if event.object_index == index]
            x, y, radius, _ = object_motion(place, own, times_s)
            assert min((x - radius).min(), (y - radius).min()) > 0
            assert max((x + radius).max(), (y + radius).max()) < 128
        areas = object_masks(world, names_of(world), times_s[::5]).sum(axis=(2, 3))
        assert areas.min() > 100


def test_objects_actions_and_places_in_time_are_balanced():
    events = [(place, event) for world in WORLDS for place, event in enumerate(world.events)]
    actions = Counter((place, event.action) for place, event in events)
    assert len(actions) == 4 * len(REPEATABLE_ACTIONS) and min(actions.values()) > 0.6 * max(actions.values())
    actors = Counter((place, event.object_index) for place, event in events)
    assert len(actors) == 8 and min(actors.values()) > 0.8 * max(actors.values())
    orders = Counter("".join("ab"[e.action != world.events[0].action] for e in world.events) for world in WORLDS)
    assert set(orders) == {"aabb", "abab", "abba"} and min(orders.values()) > 45


# Rows


def test_rows_follow_the_contract():
    validate_dataset(ROWS, "sft")
    assert len({row["id"] for row in ROWS}) == len(ROWS) == 200 * 16
    assert [row["kind"] for row in ROWS[:16]] == [kind for kind in KINDS for _ in range(4)]
    assert all(len({question(row) for row in ROWS[first : first + 16]}) == 16 for first in range(0, len(ROWS), 16))
    assert object_world_rows(WORLDS[5], {"path": "5.mp4"}) == ROWS[80:96:4]
    row = object_world_rows(simulate_object_world(0, 2_000_007), {"path": "a"})[1]
    assert row["id"] == "object_world-test-000007-order-0"
    assert datasets.Dataset.from_list(ROWS[:16], features=OBJECT_WORLD_FEATURES)[0]["objects"] == ROWS[0]["objects"]
    for num_each in (0, 5):
        with pytest.raises(ValueError, match="ask for 1 to 4"):
            object_world_rows(WORLDS[0], {"path": "a"}, num_each=num_each)


def answer_of(text, world):
    """The event that a question asks for, by its words alone; the answer must be the only one."""
    base_forms = {base: action for action, base in ACTIONS.items()}
    events = world.events
    if match := re.fullmatch(r"When does the (\w+ \w+) do something for the (first|second) time\?", text):
        found = [event for event in events if event.object_name == match[1]]
        return found[("first", "second").index(match[2])], len(found)
    if match := re.fullmatch(r"When does anything (\w+) for the (first|second) time\?", text):
        found = [event for event in events if event.action == base_forms[match[1]]]
        return found[("first", "second").index(match[2])], len(found)
    if match := re.fullmatch(r"When does anything (\w+) (next after|last before) the (\w+ \w+) (\w+)\?", text):
        (named,) = [event for event in events if (event.object_name, event.action) == (match[3], match[4])]
        found = [event for event in events if event.action == base_forms[match[1]]]
        later = [event for event in found if event.start_s > named.end_s]
        earlier = [event for event in found if event.end_s < named.start_s]
        return (later[0] if match[2] == "next after" else earlier[-1]), len(found)
    who, does = re.fullmatch(r"When does the (\w+ \w+) (\w+)\?", text).groups()
    found = [event for event in events if event.action == base_forms[does]]
    (event,) = [event for event in found if event.object_name == who]
    return event, len(found)


def test_answers_are_right_and_a_part_of_the_question_is_not_enough():
    for world, row in zip(WORLD_OF_ROW, ROWS, strict=True):
        event, num_alike = answer_of(question(row), world)
        assert row["spans"] == [[event.start_s, event.end_s]]
        assert num_alike == 2  # without the noun, or without the order, there is another
        assert row["all_spans"] == [[other.start_s, other.end_s] for other in world.events]


def test_nouns_are_those_of_the_question():
    for world, row in zip(WORLD_OF_ROW, ROWS, strict=True):
        assert nouns_of_row(row) == row["objects"] == extract_nouns(question(row))
        assert set(row["objects"]) <= set(names_of(world)[:2])
        assert len(row["objects"]) == (row["kind"] != "order")


def test_no_span_is_right_often():
    test_rows = [
        row for index in range(2_000_000, 2_000_150) for row in object_world_rows(simulate_object_world(0, index), {})
    ]
    predictions = constant_span_predictions(test_rows, constant_span(ROWS))
    assert 15 < span_scores(predictions, test_rows).metrics["mIoU"] < 25
    for kind in KINDS:
        span = constant_span([row for row in ROWS if row["kind"] == kind])
        of_kind = [row for row in test_rows if row["kind"] == kind]
        assert span_scores(constant_span_predictions(of_kind, span), of_kind).metrics["mIoU"] < 30
    ceilings = [
        span_scores(frame_oracle_predictions(test_rows[::4], num_frames=num_frames), test_rows[::4]).metrics["mIoU"]
        for num_frames in (16, 96)
    ]
    assert 80 < ceilings[0] < 87 and ceilings[1] > 96


def test_the_synthesis_of_preferences_takes_the_rows():
    dataset = datasets.Dataset.from_list(ROWS[:64], features=OBJECT_WORLD_FEATURES)
    pairs = synthesize_preferences(dataset, SynthesisConfig(weights={"shift": 1, "add": 1}))
    assert len(pairs) == 64 and set(pairs["factor"]) == {"shift", "add"}


def spans_read_from(world, name, action):
    """Frames in which the truth about an object differs from its rest, as a span: what a model could see."""
    video = render_video(world, 24)
    cells = oracle_objects(world, video, [name], CONFIG)
    masks = unpack_masks(cells["object_masks"])[0][0]
    area = masks.sum(axis=(1, 2))
    color = (video.frames * masks[..., None]).sum(axis=(1, 2, 3)) / area
    x, y = ((masks.sum(axis=axis) * (np.arange(64) + 0.5)).sum(axis=1) / area for axis in (1, 2))
    signal = {"blinks": color / 50, "swells": area / 20, "shakes": x / 0.8, "jumps": y / 0.8}[action]
    (is_off,) = np.nonzero(np.abs(signal - np.median(signal)) > 1)
    edges_s = np.append(video.timestamps_s, video.duration_s)
    return [[edges_s[is_off[0]], edges_s[is_off[-1] + 1]]] if len(is_off) else [[0, 0.1]]


def test_the_masked_pixels_show_when_and_those_of_the_other_object_do_not():
    scores = {}
    for who in ("named", "other"):
        predictions, rows = [], []
        for world, row in zip(WORLD_OF_ROW[::16], ROWS[::16], strict=True):
            event, _ = answer_of(question(row), world)
            name = names_of(world)[event.object_index if who == "named" else 1 - event.object_index]
            predictions.append({"id": row["id"], "spans": spans_read_from(world, name, event.action)})
            rows.append(row)
            if len(rows) == 40:
                break
        scores[who] = span_scores(predictions, rows).metrics["mIoU"]
    assert scores["named"] > 60 and scores["other"] < 5


# Files


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "objects"
    return root, build_object_world(root, num_train=10, num_validation=0, num_test=1, progress=False)


def test_files_show_the_worlds(built):
    root, data = built
    assert {split: len(rows) for split, rows in data.items()} == {"train": 40, "test": 4}
    assert data["train"].features == OBJECT_WORLD_FEATURES
    validate_dataset(data["train"], "sft")
    for number in range(3):
        entry = data["train"][4 * number]["videos"][0]
        assert entry["path"] == str(root / "videos/train" / f"{number:06d}.mp4")
        for num_frames in (24, 1000):
            video, expected = load_row_video(entry, num_frames=num_frames), render_video(WORLDS[number], num_frames)
            np.testing.assert_allclose(video.timestamps_s, expected.timestamps_s, atol=1e-6)
            assert video.duration_s == pytest.approx(expected.duration_s)
            assert np.abs(video.frames.astype(float) - expected.frames).mean() < 6  # noise that the codec drops


def test_the_folder_is_found_again(built, tmp_path, monkeypatch):
    root, data = built
    monkeypatch.setattr(event_world, "write_video", None)
    monkeypatch.setattr(object_world, "write_video", None)
    again = build_object_world(root, num_train=10, num_validation=0, num_test=1, num_each=2, progress=False)
    assert again["train"][:8:2] == data["train"][:4]
    with pytest.raises(ValueError, match="other settings"):
        build_event_world(root, num_train=1, num_validation=0, num_test=0)
    with pytest.raises(ValueError, match="other settings"):
        build_object_world(root, num_train=1, num_validation=0, num_test=0, seed=1)
    loaded = datasets.load_dataset(str(root), cache_dir=str(tmp_path))
    assert loaded["train"][:] == again["train"][:]


# Detection


@pytest.fixture(scope="module")
def videos(built):
    _, data = built
    return [load_row_video(row["videos"][0], num_frames=24) for row in data["train"].select(range(0, 40, 4))]


def test_colours_are_found_in_the_files(videos):
    overlaps, boxes_off = [], []
    for world, video in zip(WORLDS, videos, strict=False):
        names = names_of(world)
        cells = ground_objects(video, [*names, "kite"], ColourDetector(), ColourTracker(), CONFIG)
        assert cells["grounding_status"] == "partial:kite"
        tracks, _ = unpack_masks(cells["object_masks"])
        truth = object_masks(world, names, video.timestamps_s)
        assert not tracks[-1].any() and np.array(cells["object_scores"])[:, :-1].min() > 0.8
        overlaps.append((tracks[:-1] & truth).sum(axis=(2, 3)) / (tracks[:-1] | truth).sum(axis=(2, 3)))
        boxes_off.append(np.abs(np.array(cells["object_boxes"])[:, :-1] - mask_boxes(truth).swapaxes(0, 1)))
    overlaps = np.concatenate([part.ravel() for part in overlaps])
    assert overlaps.mean() > 0.95 and np.quantile(overlaps, 0.01) > 0.7
    # The grey walker beside an object takes on its colour in a file, which has colours at half the resolution.
    assert np.quantile(np.concatenate([part.ravel() for part in boxes_off]), 0.99) < 3 / 64


def test_colours_that_are_not_there_are_not_found(videos):
    for world, video in zip(WORLDS, videos, strict=False):
        missing = set(object_world.NAMED_COLOURS) - {place.colour for place in world.objects}
        assert ColourDetector()(video.frames, [f"{colour} disc" for colour in missing]).scores.max() == 0
    blank = np.full((2, 32, 48, 3), 30, dtype=np.uint8)
    assert not ColourTracker()(blank, 0, np.array([[0.1, 0.1, 0.9, 0.9]]), True).any()


def test_tracking_goes_back_only_where_it_should(videos):
    box = ColourDetector()(videos[0].frames, names_of(WORLDS[0])[:1]).boxes[5]
    whole, forward = (ColourTracker()(videos[0].frames, 5, box, backward) for backward in (True, False))
    assert whole.any(axis=(2, 3)).all() and not forward[:, :5].any()
    np.testing.assert_array_equal(whole[:, 5:], forward[:, 5:])


def test_the_oracle_gives_the_exact_masks():
    video, names = render_video(WORLDS[0], 24), names_of(WORLDS[0])
    cells = oracle_objects(WORLDS[0], video, names[:2], CONFIG)
    assert set(cells) == set(OBJECT_FEATURES) and cells["grounding_status"] == "ok"
    tracks, union = unpack_masks(cells["object_masks"])
    truth = object_masks(WORLDS[0], names[:2], video.timestamps_s)
    np.testing.assert_array_equal(tracks, truth)
    np.testing.assert_array_equal(union, truth.any(axis=0))
    none = oracle_objects(WORLDS[0], video, [], CONFIG)
    assert none["grounding_status"] == "no_nouns" and unpack_masks(none["object_masks"])[1].all()
    with pytest.raises(ValueError, match="has no"):
        oracle_objects(WORLDS[0], video, ["white disc"], CONFIG)


def test_the_object_stage_runs_on_the_data_set(built, tmp_path):
    rows = built[1]["test"]
    noisy = {"detect": NoisyDetector(late_start=0.5), "track": NoisyTracker(late_start=0.5)}
    for faults in ({"detect": ColourDetector(), "track": ColourTracker()}, noisy):
        found = extract_objects(rows, tmp_path / "cache", config=CONFIG, progress=False, **faults)
        for row in found:
            tracks, union = unpack_masks(row["object_masks"])
            assert row["object_nouns"] == row["objects"] and len(row["object_times_s"]) == 24
            if row["kind"] == "order":
                assert row["grounding_status"] == "no_nouns" and union.all()
            else:
                first_half = tracks[0, :12].any(axis=(1, 2))
                assert not first_half.any() if faults is noisy else first_half.all()


def test_faults_are_as_often_and_as_large_as_asked(videos):
    num_missed, shifts, areas, moves = [], [], [], []
    detect, track = NoisyDetector(miss_rate=0.3, jitter_px=2), NoisyTracker(miss_rate=0.3, jitter_px=2)
    for world, video in zip(WORLDS, videos[:6], strict=False):
        names = names_of(world)
        clean, noisy = ColourDetector()(video.frames, names), detect(video.frames, names)
        is_seen = noisy.scores > 0
        num_missed.append(1 - is_seen.mean())
        shifts.append((noisy.boxes - clean.boxes)[is_seen] * 64)
        masks = track(video.frames, 0, clean.boxes[0], True)
        areas.append(masks.any(axis=(2, 3)).mean())
        np.testing.assert_array_equal(masks, track(video.frames, 0, clean.boxes[0], True))
        assert (masks != NoisyTracker(seed=1)(video.frames, 0, clean.boxes[0], True)).any()
        whole = ColourTracker()(video.frames, 0, clean.boxes[0], True)
        kept = masks.any(axis=(2, 3))
        assert (masks.sum(axis=(2, 3)) <= whole.sum(axis=(2, 3))).all()  # moved, and at most cut off at the border
        moves.append((mask_boxes(masks) - mask_boxes(whole))[kept] * 64)
    assert np.mean(num_missed) == pytest.approx(0.3, abs=0.06) and np.mean(areas) == pytest.approx(0.7, abs=0.06)
    np.testing.assert_allclose(np.concatenate(shifts).std(axis=0), 2, atol=0.3)
    np.testing.assert_allclose(np.concatenate(moves).std(axis=0), 2, atol=0.3)
    clean = NoisyDetector(miss_rate=0, jitter_px=0)(videos[0].frames, names_of(WORLDS[0]))
    np.testing.assert_array_equal(clean.boxes, ColourDetector()(videos[0].frames, names_of(WORLDS[0])).boxes)
    moved = NoisyTracker(miss_rate=0, jitter_px=0)(videos[0].frames, 0, clean.boxes[0], True)
    np.testing.assert_array_equal(moved, ColourTracker()(videos[0].frames, 0, clean.boxes[0], True))
    for fault in ({"miss_rate": 1.5}, {"late_start": -0.1}, {"jitter_px": -1}):
        for kind in (NoisyDetector, NoisyTracker):
            with pytest.raises(ValueError, match="jitter"):
                kind(**fault)
