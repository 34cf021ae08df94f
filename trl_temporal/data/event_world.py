# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""EventWorld: procedural videos whose events are known to the exact second, with questions about them."""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
from tqdm.auto import tqdm

from .event_world_render import render
from .event_world_scene import ACTIONS, COLOURS, FPS, RADII, SIDE, World, WorldEvent, simulate
from .grammar import format_dense, format_grounding, format_qa
from .rows import sft_row
from .schema import SFT_FEATURES

__all__ = [
    "World",
    "WorldEvent",
    "build_event_world",
    "distort_event_world_caption",
    "frame_tags",
    "render",
    "simulate",
    "video_rows",
    "write_video",
]

# Worlds of different splits have disjoint indices.
MAX_VIDEOS_PER_SPLIT = 1_000_000
SPLIT_STARTS = {"train": 0, "validation": MAX_VIDEOS_PER_SPLIT, "test": 2 * MAX_VIDEOS_PER_SPLIT}

# Raise `version` when the same seed and index give another video than before.
VIDEO_SETTINGS = {
    "version": 1,
    "fps": FPS,
    "size": SIDE,
    "codec": "libx264",
    "pix_fmt": "yuv420p",
    "options": {"crf": "20", "preset": "veryfast", "g": "32"},
}


def frame_tags(world: World, timestamps_s: np.ndarray) -> np.ndarray:
    """
    What happens in each sampled frame, as labels to train a frame encoder on.

    Args:
        world (`World`):
            The world.
        timestamps_s (`np.ndarray` of shape `(T,)`):
            Increasing times of the frames in seconds. Frame i covers the time up to frame i + 1, the last one up to
            the duration; the event at the midpoint of that interval counts.

    Returns:
        `np.ndarray` of shape `(T, 14)`, float32: multi-hot over `COLOURS`, `RADII` (shapes) and `ACTIONS`, in this
        order; a frame between events is all zeros.
    """
    midpoints_s = (timestamps_s + np.append(timestamps_s[1:], world.duration_s)) / 2
    names = [*COLOURS, *RADII, *ACTIONS]
    tags = np.zeros((len(midpoints_s), len(names)), dtype=np.float32)
    for event in world.events:
        inside = (midpoints_s >= event.start_s) & (midpoints_s < event.end_s)
        for name in (event.colour, event.shape, event.action):
            tags[inside, names.index(name)] = 1
    return tags


def _grounding_questions(world: World) -> list[list[tuple[str, list[WorldEvent]]]]:
    """All "when" questions with their answer events, in three groups: by caption, by object, by action."""
    groups: list[dict[str, list[WorldEvent]]] = [defaultdict(list) for _ in range(3)]
    for event in world.events:
        groups[0][f"When does the {event.object_name} {ACTIONS[event.action]}?"].append(event)
        groups[1][f"When does the {event.object_name} do something?"].append(event)
        groups[2][f"When does anything {ACTIONS[event.action]}?"].append(event)
    return [list(group.items()) for group in groups]


def _qa_questions(world: World) -> list[list[tuple[str, str, WorldEvent]]]:
    """All (question, answer, evidence) in three groups: what first, what next, which object."""
    events = world.events
    first, following, which = [], [], []
    seen = set()
    for event in events:
        if event.object_name not in seen:
            seen.add(event.object_name)
            first.append((f"What does the {event.object_name} do first?", f"It {event.action}", event))
    captions = [event.caption for event in events]
    actions = [event.action for event in events]
    for event, follower in zip(events[:-1], events[1:], strict=True):
        if captions.count(event.caption) == 1:
            question = f"What happens right after the {event.object_name} {event.action}?"
            following.append((question, follower.caption, follower))
    for event in events:
        if actions.count(event.action) == 1:
            which.append((f"Which object {event.action}?", f"The {event.object_name}", event))
    return [group for group in (first, following, which) if group]


def _draw_questions(
    rng: np.random.Generator, groups: list[list], weight: Callable[[Any], float], num_questions: int
) -> list:
    """Draw different questions: first the group, evenly, then one of its questions by weight."""
    groups = [list(group) for group in groups]
    drawn = []
    while len(drawn) < num_questions:
        groups = [group for group in groups if group]
        if not groups:
            raise ValueError(f"{num_questions} different questions were asked for, this world has only {len(drawn)}")
        group = groups[rng.integers(len(groups))]
        weights = np.array([weight(question) for question in group])
        drawn.append(group.pop(rng.choice(len(group), p=weights / weights.sum())))
    return drawn


def _few_events_weight(when: tuple[str, list[WorldEvent]]) -> float:
    # Questions with many answer events are rare: answering every event of the video to all of them must not pay.
    return 1.0 if len(when[1]) <= 2 else 0.2


def video_rows(
    world: World,
    video_entry: dict,
    *,
    num_grounding: int = 2,
    num_qa: int = 1,
    rng: np.random.Generator | None = None,
) -> list[dict]:
    """
    Rows about one world: a dense caption, questions about when, and questions about what.

    Args:
        world (`World`):
            The world.
        video_entry (`dict`):
            The entry of the `videos` column: any of `path`, `start_s`, `end_s`, `frames_dir`, `fps`; the others are
            set to `None`.
        num_grounding (`int`, *optional*, defaults to `2`):
            Number of "when" questions.
        num_qa (`int`, *optional*, defaults to `1`):
            Number of "what" and "which" questions.
        rng (`np.random.Generator`, *optional*):
            Draws the questions. By default they follow from the world's seed and index.

    Returns:
        `list[dict]`: `1 + num_grounding + num_qa` rows.

    Example:
        >>> from trl_temporal.data.event_world import simulate, video_rows
        >>> [row["id"] for row in video_rows(simulate(0, 12), {"path": "000012.mp4"})][:2]
        ['event_world-train-000012-dense', 'event_world-train-000012-grounding-0']
    """
    if rng is None:
        rng = np.random.default_rng([world.seed, world.index, 1])
    split, start = next((name, start) for name, start in reversed(SPLIT_STARTS.items()) if world.index >= start)

    def row(name: str, task: str, question: str, response: str, events: Sequence[WorldEvent], **texts) -> dict:
        return sft_row(
            id=f"event_world-{split}-{world.index - start:06d}-{name}",
            source="event_world",
            task=task,
            video=video_entry,
            question=question,
            response=response,
            spans=[(event.start_s, event.end_s) for event in events],
            all_spans=[(event.start_s, event.end_s) for event in world.events],
            duration=world.duration_s,
            **texts,
        )

    captions = [event.caption for event in world.events]
    question = "Describe every event in the video."
    rows = [row("dense", "dense", question, format_dense(captions), world.events, captions=captions)]
    whens = _draw_questions(rng, _grounding_questions(world), _few_events_weight, num_grounding)
    for i, (question, events) in enumerate(whens):
        rows.append(row(f"grounding-{i}", "grounding", question, format_grounding(len(events)), events))
    whats = _draw_questions(rng, _qa_questions(world), lambda what: 1.0, num_qa)
    for i, (question, answer, event) in enumerate(whats):
        rows.append(row(f"qa-{i}", "qa", question, format_qa(answer, 1), [event], answer=answer))
    return rows


def distort_event_world_caption(text: str, rng: np.random.Generator) -> str:
    """
    Make a caption or an answer false: one attribute, a colour, shape or action, gets another value.

    Args:
        text (`str`):
            An EventWorld caption or answer.
        rng (`np.random.Generator`):
            Draws the attribute and its new value.

    Returns:
        `str`: the false text, never equal to `text`.

    Raises:
        `ValueError`: the text has no EventWorld attribute.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.data.event_world import distort_event_world_caption
        >>> distort_event_world_caption("The red disc blinks", np.random.default_rng(0))
        'The red disc slides left'
    """
    found = []
    for values in (list(COLOURS), list(RADII), list(ACTIONS)):
        found += [(value, values) for value in values if re.search(rf"\b{value}\b", text)]
    if not found:
        raise ValueError(f"{text!r} names no colour, shape or action of EventWorld; pass a `distort` for such text")
    value, values = found[rng.integers(len(found))]
    others = [other for other in values if other != value]
    return re.sub(rf"\b{value}\b", others[rng.integers(len(others))], text, count=1)


def write_video(path: str | os.PathLike, world: World, size: int = VIDEO_SETTINGS["size"]) -> None:
    """
    Render a world to an mp4 file. The file appears under its name only when it is whole.

    Args:
        path (`str` or `os.PathLike`):
            File to write.
        world (`World`):
            The world.
        size (`int`, *optional*, defaults to `128`):
            Side of the square frames in pixels, an even number.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    num_frames = round(world.duration_s * FPS)
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream(VIDEO_SETTINGS["codec"], rate=FPS, options=VIDEO_SETTINGS["options"])
        stream.width = stream.height = size
        stream.pix_fmt = VIDEO_SETTINGS["pix_fmt"]
        stream.codec_context.thread_count = 1
        for frame in render(world, np.arange(num_frames) / FPS, size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(unfinished, path)


def _write_world(task: tuple[Path, int, int]) -> None:
    path, seed, index = task
    write_video(path, simulate(seed, index))


@contextmanager
def _mapper(num_workers: int) -> Iterator[Callable]:
    if num_workers == 1:
        yield map
        return
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, tasks: pool.map(function, tasks, chunksize=4)


def _claim_folder(root: Path, settings: dict[str, Any]) -> None:
    """Write the manifest before any video, or check that the one that is there says the same."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    manifest = root / "manifest.json"
    if manifest.exists():
        known = json.loads(manifest.read_text(encoding="utf-8"))
        if known["hash"] != digest:
            raise ValueError(
                f"{manifest}: the videos of this folder were made with other settings, {known['settings']}, not "
                f"{settings}. Choose another folder, or delete this one"
            )
        return
    if (root / "videos").exists():
        raise ValueError(f"{root / 'videos'} exists without {manifest}. Choose another folder, or delete this one")
    root.mkdir(parents=True, exist_ok=True)
    unfinished = root / f".manifest.{os.getpid()}.tmp"
    unfinished.write_text(json.dumps({"hash": digest, "settings": settings}, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, manifest)


def build_event_world(
    root: str | os.PathLike,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int = 0,
    num_workers: int = 1,
    progress: bool = True,
) -> datasets.DatasetDict:
    """
    Make an EventWorld data set on disk: mp4 files, rows as Parquet and a data card.

    Videos that are there already are kept, so that an interrupted or enlarged build only renders what is missing.
    `datasets.load_dataset(root)` loads the rows later.

    Args:
        root (`str` or `os.PathLike`):
            Folder of the data set. Rows name their videos by this path as it is given, so an absolute one is valid
            from every working directory.
        num_train (`int`):
            Number of training videos; each gives 4 rows.
        num_validation (`int`):
            Number of validation videos.
        num_test (`int`):
            Number of test videos.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all worlds.
        num_workers (`int`, *optional*, defaults to `1`):
            Number of processes that render.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `datasets.DatasetDict`: the splits `"train"`, `"validation"` and `"test"`, those without videos left out.

    Raises:
        `ValueError`: the folder holds videos that were made with other settings, or a split is too large.

    Example:
        >>> from trl_temporal.data.event_world import build_event_world
        >>> data = build_event_world("event_world", num_train=8, num_validation=2, num_test=2)  # doctest: +SKIP
    """
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    return build_folder(
        root,
        counts,
        seed,
        settings=VIDEO_SETTINGS,
        rows_of=lambda index, video_entry: video_rows(simulate(seed, index), video_entry),
        write_one=_write_world,
        features=SFT_FEATURES,
        card_of=_data_card,
        num_workers=num_workers,
        progress=progress,
    )


def build_folder(
    root: str | os.PathLike,
    counts: dict[str, int],
    seed: int,
    *,
    settings: dict[str, Any],
    rows_of: Callable[[int, dict], list[dict]],
    write_one: Callable[[tuple[Path, int, int]], None],
    features: datasets.Features,
    card_of: Callable[[dict[str, int], int], str],
    num_workers: int,
    progress: bool,
) -> datasets.DatasetDict:
    """
    What [`build_event_world`] does, for any kind of world.

    Args:
        root (`str` or `os.PathLike`):
            Folder of the data set.
        counts (`dict[str, int]`):
            Number of videos of each split; those without videos are left out.
        seed (`int`):
            Seed of all worlds.
        settings (`dict`):
            What the video files depend on beside the seed; a folder that was made with others is refused.
        rows_of (`Callable[[int, dict], list[dict]]`):
            Rows of a world by its index and its entry of the column `videos`.
        write_one (`Callable[[tuple[Path, int, int]], None]`):
            Writes the video of `(path, seed, index)`; other processes have to be able to import it.
        features (`datasets.Features`):
            Columns of the rows.
        card_of (`Callable[[dict[str, int], int], str]`):
            Data card by the number of videos of each split and the seed.
        num_workers (`int`):
            Number of processes that render.
        progress (`bool`):
            Whether to show a progress bar.

    Returns:
        `datasets.DatasetDict`: the splits.

    Raises:
        `ValueError`: the folder holds videos that were made with other settings, or a split is too large.
    """
    counts = {split: count for split, count in counts.items() if count > 0}
    if max(counts.values(), default=0) > MAX_VIDEOS_PER_SPLIT:
        raise ValueError(f"a split has at most {MAX_VIDEOS_PER_SPLIT} videos, but got {counts}")
    root = Path(root)
    _claim_folder(root, {**settings, "seed": seed})
    rows: dict[str, list[dict]] = {}
    missing = []
    for split, count in counts.items():
        folder = root / "videos" / split
        folder.mkdir(parents=True, exist_ok=True)
        rows[split] = []
        for i in range(count):
            index, path = SPLIT_STARTS[split] + i, folder / f"{i:06d}.mp4"
            rows[split] += rows_of(index, {"path": str(path)})
            if not path.exists():
                missing.append((path, seed, index))

    bar = tqdm(total=len(missing), desc="Rendering EventWorld", unit="video", disable=not progress or not missing)
    with bar, _mapper(num_workers) as mapped:
        for _ in mapped(write_one, missing):
            bar.update()

    data = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows[split], features=features) for split in counts}
    )
    (root / "data").mkdir(exist_ok=True)
    for split, dataset in data.items():
        dataset.to_parquet(root / "data" / f"{split}.parquet")
    (root / "README.md").write_text(card_of(counts, seed), encoding="utf-8")
    return data


def _data_card(counts: dict[str, int], seed: int) -> str:
    files = "\n".join(f"  - split: {split}\n    path: data/{split}.parquet" for split in counts)
    sizes = "\n".join(f"| {split} | {count} | {4 * count} |" for split, count in counts.items())
    return f"""---
pretty_name: EventWorld
license: apache-2.0
tags: [video, temporal-grounding, synthetic, trl_temporal]
configs:
- config_name: default
  data_files:
{files}
---

# EventWorld

Short procedural videos whose events are known to the exact second, for tests and demos of temporally grounded
video-language models. No recorded video, no person and no third-party material is in it.

| split | videos | rows |
|---|---|---|
{sizes}

## What is seen

Videos of {SIDE}x{SIDE} pixels at {FPS} frames a second, 16 to 20 s long. Each has 3 or 4 objects of different colours
({", ".join(COLOURS)}), a disc or a cross each, and 5 to 7 events of 1.5 to 4 s, one after the other, at
least 0.5 s apart: an object {", ".join(ACTIONS)}. A wandering grey square, a flickering patch in a corner, flicker of
the whole picture, a slow drift of the objects and noise are not events.

## Rows

Four a video: every event described, two questions about when, and one question about what.

| column | meaning |
|---|---|
| `id`, `source`, `task` | name of the row, `event_world`, and `dense`, `grounding` or `qa` |
| `videos` | the file, one struct with `path`; the path starts with the folder name that the build was given |
| `prompt`, `completion` | messages; the response marks evidence with `<evi>` and `</evi>` |
| `spans` | `[start_s, end_s]` of each event of the response, in the order of its `<evi>` |
| `answer`, `captions` | the answer of `qa` rows, the sentences of `dense` rows |
| `all_spans` | `[start_s, end_s]` of every event of the video |
| `duration` | seconds |

## How it was made

`python -m trl_temporal.data.event_world` with seed {seed}. World i of a split is drawn from the seed and i alone; the
splits use disjoint ranges of i. `manifest.json` holds the settings of the video files.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an EventWorld data set: videos, rows and a data card.")
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("--num-train", type=int, default=1000, help="training videos (default: %(default)s)")
    parser.add_argument("--num-validation", type=int, default=100, help="validation videos (default: %(default)s)")
    parser.add_argument("--num-test", type=int, default=200, help="test videos (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all worlds (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=1, help="rendering processes (default: %(default)s)")
    print(build_event_world(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
