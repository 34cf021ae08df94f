# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
EventWorld's clips for questions that name an object: all objects are always in view, and each is told apart from the
others only by what it is, what it does, and when.

Two objects do the same two actions, at four times. So neither the noun, nor the verb, nor the place in the video is
enough to answer "When does the red disc blink?", and nothing can be read from where an object is seen. Other questions
name no object, or one that is not the answer.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np

from ..video import Video
from ..video_backends import choose_frames
from .event_world import SPLIT_STARTS, VIDEO_SETTINGS, build_folder, write_video
from .event_world_render import coverage, render
from .event_world_scene import (
    ACTIONS,
    COLOURS,
    FPS,
    RADII,
    SIDE,
    World,
    WorldEvent,
    WorldObject,
    event_spans,
    object_motion,
    place_objects,
    rate_and_phase,
    sample_distractors,
)
from .grammar import format_grounding
from .rows import sft_row
from .schema import SFT_FEATURES

# White has no hue: dimmed it would be one of the greys that mean nothing.
NAMED_COLOURS = tuple(colour for colour in COLOURS if colour != "white")
# Those after which an object is back in its place.
REPEATABLE_ACTIONS = ("blinks", "swells", "shakes", "jumps")
MIN_DURATION_S, MAX_DURATION_S = 12, 16
OBJECT_WORLD_SIDE = 64  # pixels of the files

# What an answer takes: the noun, the order of events in time, both, or the order behind a noun.
KINDS = ("object", "order", "object_order", "after")
OBJECT_WORLD_FEATURES = datasets.Features(
    {**SFT_FEATURES, "objects": datasets.List(datasets.Value("string")), "kind": datasets.Value("string")}
)


def simulate_object_world(seed: int, index: int) -> World:
    """
    Sample a world in which two objects do the same two actions. The same seed and index always give the same world.

    Args:
        seed (`int`):
            Seed of the data set.
        index (`int`):
            Number of the world; train counts from 0, validation from 1,000,000 and test from 2,000,000.

    Returns:
        `World`: 3 or 4 objects of different colours in 12 to 16 s. The first two have two events each, one after the
        other; the rest do nothing.

    Example:
        >>> from trl_temporal.data.object_world import simulate_object_world
        >>> [event.caption for event in simulate_object_world(0, 0).events][:2]
        ['The blue cross jumps', 'The green cross jumps']
    """
    rng = np.random.default_rng([seed, index, 2])  # other worlds than EventWorld's of this seed
    duration_s = int(rng.integers(MIN_DURATION_S * FPS, MAX_DURATION_S * FPS + 1)) / FPS
    spans = event_spans(rng, duration_s, 4)
    colours = rng.permutation(NAMED_COLOURS)[: rng.integers(3, 5)].tolist()
    looks = list(zip(colours, rng.choice(list(RADII), size=len(colours)).tolist(), strict=True))
    distractors = sample_distractors(rng, duration_s)
    while True:
        actions = rng.permutation(REPEATABLE_ACTIONS)[:2].tolist()
        actors = [rng.permutation(2).tolist() for _ in actions]  # who does each action first
        events = []
        for which, (start_s, end_s) in zip(rng.permutation([0, 0, 1, 1]), spans, strict=True):
            actor, action = actors[which].pop(0), actions[which]
            rate, phase = rate_and_phase(rng, action, end_s - start_s)
            events.append(WorldEvent(actor, *looks[actor], action, start_s, end_s, rate, phase))
        objects = [WorldObject(*look, 0.0, 0.0, drift_phase=float(rng.random())) for look in looks]
        placed = place_objects(rng, objects, events, duration_s)
        if placed is not None:
            return World(seed, index, duration_s, tuple(placed), tuple(events), distractors)


def _questions(world: World) -> dict[str, list[tuple[str, list[str], WorldEvent]]]:
    """All (question, nouns, event that is the answer) of each kind: four or more."""
    questions: dict[str, list] = {kind: [] for kind in KINDS}
    for event in world.events:
        name, does = event.object_name, ACTIONS[event.action]
        same_action = [other for other in world.events if other.action == event.action]
        same_object = [other for other in world.events if other.object_index == event.object_index]
        questions["object"].append((f"When does the {name} {does}?", [name], event))
        nth = ("first", "second")[same_action.index(event)]
        questions["order"].append((f"When does anything {does} for the {nth} time?", [], event))
        nth = ("first", "second")[same_object.index(event)]
        asked = f"When does the {name} do something for the {nth} time?"
        questions["object_order"].append((asked, [name], event))
        others = [other for other in world.events if other.action != event.action]
        behind = [other for other in others if other.start_s > event.start_s][:1]
        before = [other for other in others if other.start_s < event.start_s][-1:]
        for words, answers in (("next after", behind), ("last before", before)):
            for answer in answers:
                asked = f"When does anything {ACTIONS[answer.action]} {words} the {name} {event.action}?"
                questions["after"].append((asked, [name], answer))
    return questions


def object_world_rows(world: World, video_entry: dict, *, num_each: int = 1) -> list[dict]:
    """
    Questions about one world, each answered by one span.

    Args:
        world (`World`):
            A world of [`simulate_object_world`].
        video_entry (`dict`):
            The entry of the `videos` column: any of `path`, `start_s`, `end_s`, `frames_dir`, `fps`; the others are
            set to `None`.
        num_each (`int`, *optional*, defaults to `1`):
            Number of different questions of each kind, 1 to 4. The first are the same for every number.

    Returns:
        `list[dict]`: `4 * num_each` rows with the columns of `OBJECT_WORLD_FEATURES`. Beside those of every row:

        - `objects` (`list[str]`): the nouns of the question, see [`~trl_temporal.objects.nouns.nouns_of_row`];
        - `kind` (`str`): `"object"`, "When does the red disc blink?"; `"order"`, "When does anything blink for the
          second time?"; `"object_order"`, "When does the red disc do something for the second time?"; `"after"`,
          "When does anything blink next after (or last before) the red disc jumps?".

    Raises:
        `ValueError`: a world does not have so many questions.

    Example:
        >>> from trl_temporal.data.object_world import object_world_rows, simulate_object_world
        >>> rows = object_world_rows(simulate_object_world(0, 12), {"path": "000012.mp4"})
        >>> rows[0]["id"], rows[0]["objects"]
        ('object_world-train-000012-object-0', ['green disc'])
    """
    if not 1 <= num_each <= 4:
        raise ValueError(f"num_each is {num_each}; a world has 4 questions of each kind: ask for 1 to 4")
    rng = np.random.default_rng([world.seed, world.index, 3])
    split, start = next((name, start) for name, start in reversed(SPLIT_STARTS.items()) if world.index >= start)
    rows = []
    for kind, questions in _questions(world).items():
        for number, drawn in enumerate(rng.permutation(len(questions))[:num_each]):
            question, nouns, event = questions[drawn]
            row = sft_row(
                id=f"object_world-{split}-{world.index - start:06d}-{kind}-{number}",
                source="object_world",
                task="grounding",
                video=video_entry,
                question=question,
                response=format_grounding(1),
                spans=[(event.start_s, event.end_s)],
                all_spans=[(other.start_s, other.end_s) for other in world.events],
                duration=world.duration_s,
            )
            rows.append({**row, "objects": nouns, "kind": kind})
    return rows


def object_masks(world: World, nouns: Sequence[str], times_s: np.ndarray, size: int = OBJECT_WORLD_SIDE) -> np.ndarray:
    """
    Where objects are, exactly: the pixels that they cover by more than half.

    Args:
        world (`World`):
            The world.
        nouns (`Sequence[str]`):
            Names of its objects, such as `"red disc"`.
        times_s (`np.ndarray` of shape `(T,)`):
            Times in seconds.
        size (`int`, *optional*, defaults to `64`):
            Side of the square frames in pixels.

    Returns:
        `np.ndarray` of shape `(len(nouns), T, size, size)`, bool.

    Raises:
        `ValueError`: the world has no such object.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.data.object_world import object_masks, simulate_object_world
        >>> world = simulate_object_world(0, 12)
        >>> object_masks(world, [world.objects[0].name], np.array([0.0, 1.0])).shape
        (1, 2, 64, 64)
    """
    names = [world_object.name for world_object in world.objects]
    if missing := set(nouns) - set(names):
        raise ValueError(f"the world has no {sorted(missing)}; it has {names}")
    times_s = np.asarray(times_s, dtype=np.float64)
    edges = np.broadcast_to(np.arange(size, dtype=np.float64), (len(times_s), size))
    masks = np.zeros((len(nouns), len(times_s), size, size), dtype=bool)
    for mask, noun in zip(masks, nouns, strict=True):
        index = names.index(noun)
        events = [event for event in world.events if event.object_index == index]
        x, y, radius, _ = object_motion(world.objects[index], events, times_s)
        place = (value[:, None] * (size / SIDE) for value in (x, y, radius))
        mask[:] = coverage(world.objects[index].shape, edges, edges, *place) > 0.5
    return masks


def render_video(world: World, num_frames: int, size: int = OBJECT_WORLD_SIDE) -> Video:
    """
    Frames of a world without a file: those that [`~trl_temporal.video.load_video`] with `num_frames` would choose,
    without the traces of compression.

    Args:
        world (`World`):
            The world.
        num_frames (`int`):
            Frames at the midpoints of this many equal parts; fewer where the video has fewer.
        size (`int`, *optional*, defaults to `64`):
            Side of the square frames in pixels.

    Returns:
        [`~trl_temporal.video.Video`]

    Example:
        >>> from trl_temporal.data.object_world import render_video, simulate_object_world
        >>> render_video(simulate_object_world(0, 12), num_frames=24).frames.shape
        (24, 64, 64, 3)
    """
    times_s = np.arange(round(world.duration_s * FPS)) / FPS
    chosen = times_s[choose_frames(times_s, (np.arange(num_frames) + 0.5) / num_frames * world.duration_s)]
    return Video(render(world, chosen, size), chosen, world.duration_s, f"object_world {world.seed}/{world.index}")


def _write_object_world(task: tuple[Path, int, int]) -> None:
    path, seed, index = task
    write_video(path, simulate_object_world(seed, index), OBJECT_WORLD_SIDE)


def build_object_world(
    root: str | os.PathLike,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int = 0,
    num_each: int = 1,
    num_workers: int = 1,
    progress: bool = True,
) -> datasets.DatasetDict:
    """
    Make such a data set on disk: mp4 files, rows as Parquet and a data card.

    Videos that are there already are kept, as in [`~trl_temporal.data.event_world.build_event_world`], so that an
    interrupted or enlarged build only renders what is missing. `datasets.load_dataset(root)` loads the rows later.

    Args:
        root (`str` or `os.PathLike`):
            Folder of the data set. Rows name their videos by this path as it is given, so an absolute one is valid
            from every working directory.
        num_train (`int`):
            Number of training videos.
        num_validation (`int`):
            Number of validation videos.
        num_test (`int`):
            Number of test videos.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all worlds.
        num_each (`int`, *optional*, defaults to `1`):
            Questions of each of the four kinds about each video, 1 to 4.
        num_workers (`int`, *optional*, defaults to `1`):
            Number of processes that render. A script that starts more than one needs `if __name__ == "__main__":`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `datasets.DatasetDict`: the splits `"train"`, `"validation"` and `"test"`, those without videos left out, with
        the columns of `OBJECT_WORLD_FEATURES`.

    Raises:
        `ValueError`: the folder holds videos that were made with other settings, or a split is too large.

    Example:
        >>> from trl_temporal.data.object_world import build_object_world
        >>> data = build_object_world("objects", num_train=8, num_validation=2, num_test=2)  # doctest: +SKIP
    """
    return build_folder(
        root,
        {"train": num_train, "validation": num_validation, "test": num_test},
        seed,
        settings={**VIDEO_SETTINGS, "world": "objects", "version": 1, "size": OBJECT_WORLD_SIDE},
        rows_of=lambda index, entry: object_world_rows(simulate_object_world(seed, index), entry, num_each=num_each),
        write_one=_write_object_world,
        features=OBJECT_WORLD_FEATURES,
        card_of=lambda counts, seed: _data_card(counts, seed, num_each),
        num_workers=num_workers,
        progress=progress,
    )


def _data_card(counts: dict[str, int], seed: int, num_each: int) -> str:
    files = "\n".join(f"  - split: {split}\n    path: data/{split}.parquet" for split in counts)
    sizes = "\n".join(f"| {split} | {count} | {4 * num_each * count} |" for split, count in counts.items())
    return f"""---
pretty_name: EventWorld, objects
license: apache-2.0
tags: [video, temporal-grounding, synthetic, trl_temporal]
configs:
- config_name: default
  data_files:
{files}
---

# EventWorld, objects

Short procedural videos in which two objects do the same two things, and questions about when. No recorded video, no
person and no third-party material is in it.

| split | videos | rows |
|---|---|---|
{sizes}

Videos of {OBJECT_WORLD_SIDE}x{OBJECT_WORLD_SIDE} pixels at {FPS} frames a second, {MIN_DURATION_S} to
{MAX_DURATION_S} s long. Each has 3 or 4 objects of different colours ({", ".join(NAMED_COLOURS)}), all in view all the
time. Two of them have two events each, of 1.5 to 4 s, one after the other: both do the same two of
{", ".join(REPEATABLE_ACTIONS)}.

Every row asks for one span, in `spans`, in seconds. `objects` holds the nouns of the question, and `kind` says what
the answer takes:

| kind | question |
|---|---|
| `object` | When does the red disc blink? |
| `order` | When does anything blink for the second time? |
| `object_order` | When does the red disc do something for the second time? |
| `after` | When does anything blink next after (or last before) the red disc jumps? |

The other columns are those of every supervised row of `trl_temporal`.

Made by `trl_temporal.data.object_world.build_object_world` with seed {seed}. World i of a split is drawn from the seed
and i alone; the splits use disjoint ranges of i. `manifest.json` holds the settings of the video files.
"""
