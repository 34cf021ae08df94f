# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
`trl-temporal objects extract`: the objects of every question of a data set, as columns of it.

The frozen models run once for each video and set of nouns. What they find is kept in a cache by the content of the
video, so that the same call goes on after a kill, and other rows about the same video and nouns cost nothing.
"""

import hashlib
import inspect
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from datatrove.pipeline.base import PipelineStep

from ..data.errors import RowError
from ..data.schema import coerce_videos, without_video_decoding
from ..data.shards import NUM_SHARDS, Executor, run_shards, shard_range, write_whole
from ..data.validation import load_rows
from ..video import VideoError, load_row_video, probe_video
from .detect import Detector, ModelDetector
from .nouns import NounError, NounExtractor, extract_nouns, nouns_of_row
from .stage import OBJECT_FEATURES, ObjectStageConfig, ground_objects
from .track import Sam2Tracker, Tracker

VERSION = 1  # of what a record is made of; another one reads no record of this one
NO_VIDEO = "no_video"  # status of rows about none
# All that a status may say; behind a `:` stands of which noun or how many frames.
STATUSES = ("ok", "partial", "persistence", "floor", "not_found", "track_lost", "mask_full", "no_nouns", NO_VIDEO)


@dataclass(frozen=True)
class _Task:
    """A video and a set of nouns; `key` is None for a row without a video."""

    key: str | None
    entry: dict[str, Any] | None = None
    nouns: tuple[str, ...] = ()


def extract_objects(
    dataset: datasets.Dataset,
    cache: str | os.PathLike,
    *,
    detect: Detector | None = None,
    track: Tracker | None = None,
    extract: NounExtractor = extract_nouns,
    config: ObjectStageConfig | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    num_workers: int = 1,
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
    progress: bool = True,
) -> datasets.Dataset | None:
    """
    Add the columns of [`~trl_temporal.objects.stage.ground_objects`] to a data set.

    A row whose video cannot be read is an error, or is left out and counted; no other video ever takes its place.
    Rows without a video have the status `"no_video"` and nothing else.

    A detector or tracker is known in the cache by the name of the function, or the `repr` of an object (that of a
    dataclass holds its settings): where one does something else under the same name, take another cache.

    Args:
        dataset (`datasets.Dataset`):
            Rows with `videos`, `prompt`, and `objects` where the nouns are known, see
            [`~trl_temporal.objects.nouns.nouns_of_row`].
        cache (`str` or `os.PathLike`):
            Folder of what was found.
        detect (`Callable`, *optional*):
            Detector. Defaults to [`~trl_temporal.objects.detect.ModelDetector`] with GroundingDINO.
        track (`Callable`, *optional*):
            Tracker. Defaults to [`~trl_temporal.objects.track.Sam2Tracker`].
        extract (`Callable`, *optional*, defaults to [`~trl_temporal.objects.nouns.extract_nouns`]):
            Finds the nouns of a question.
        config ([`~trl_temporal.objects.stage.ObjectStageConfig`], *optional*):
            Settings.
        on_error (`str`, *optional*, defaults to `"raise"`):
            `"raise"` names the first row at fault; `"skip"` leaves such rows out, counts them in a warning and lists
            them in `skipped.jsonl` in the cache.
        num_workers (`int`, *optional*, defaults to `1`):
            Number of processes, each with models of its own. A script that starts more than one needs
            `if __name__ == "__main__":`.
        executor (`str`, *optional*, defaults to `"local"`):
            `"local"`, `"slurm"` or `"ray"`, see [`~trl_temporal.data.shards.run_shards`].
        executor_args (`dict`, *optional*):
            More arguments of datatrove's executor; Slurm needs `time` and `partition`.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        `datasets.Dataset` or `None`: the rows in order, with the columns of `OBJECT_FEATURES`. `None` if the work runs
        in Slurm: the same call returns them when it is done.

    Raises:
        [`~trl_temporal.data.schema.RowError`]: a row has no question, more than one video or one that cannot be read;
            or all rows have.
        `ValueError`: a detector or tracker gives arrays of another shape.

    Example:

    ```python
    >>> from trl_temporal.objects.extract import extract_objects
    >>> with_objects = extract_objects(dataset, "objects.cache")  # doctest: +SKIP
    >>> with_objects[0]["object_nouns"], with_objects[0]["grounding_status"]  # doctest: +SKIP
    (['dog', 'red frisbee'], 'ok')
    ```
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
    if len(dataset) == 0:
        raise ValueError("the data set has no rows to find objects for")
    detect, track = detect or ModelDetector(), track or Sam2Tracker()
    config = config or ObjectStageConfig()
    dataset = without_video_decoding(dataset.with_format(None))
    settings = [VERSION, asdict(config), _name_of(detect), _name_of(track)]
    tasks, faults = _tasks(dataset, extract, settings)
    if faults and on_error == "raise":
        raise _error(dataset, faults)

    cache = Path(cache)
    distinct = {task.key: task for task in tasks.values() if task.key is not None}
    if not _run(distinct, cache, detect, track, config, num_workers, executor, executor_args, progress):
        return None
    errors = {key: error for key in distinct if (error := _read_record(cache, key).get("error"))}
    for key in errors:  # the next call looks again
        _record_path(cache, key).unlink()
    faults |= {index: errors[task.key] for index, task in tasks.items() if task.key in errors}
    if faults:
        _report(dataset, dict(sorted(faults.items())), cache, on_error)

    kept = [index for index in range(len(dataset)) if index not in faults]
    keys = [tasks[index].key for index in kept]
    rows = dataset.select(kept).remove_columns([name for name in OBJECT_FEATURES if name in dataset.column_names])
    cache.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps([rows._fingerprint, keys]).encode()).hexdigest()[:16]
    return rows.map(
        lambda _, index: _cells(cache, keys[index]),
        with_indices=True,
        features=datasets.Features({**rows.features, **OBJECT_FEATURES}),
        load_from_cache_file=False,
        cache_file_name=str(cache / f"rows-{name}.arrow"),  # and not in the folder of the data set
        writer_batch_size=100,
        desc="Adding objects" if progress else None,
    )


def _tasks(
    dataset: datasets.Dataset, extract: NounExtractor, settings: list[Any]
) -> tuple[dict[int, _Task], dict[int, str]]:
    """What to look for in which video for each row, and the rows that are at fault."""
    columns = [name for name in ("videos", "prompt", "objects") if name in dataset.column_names]
    tasks, faults, content = {}, {}, {}
    for index, row in enumerate(dataset.select_columns(columns)):
        try:
            entries = coerce_videos(row.get("videos"))
            if not entries:
                tasks[index] = _Task(None)
                continue
            if len(entries) > 1 or "frames" in entries[0]:
                fault = f"has {len(entries)} videos" if len(entries) > 1 else "is a list of frames"
                raise RowError(f"column 'videos': {fault}. Give one file, or one folder of frames, a row.")
            # One order for one set: a joint prompt is not the same in another, and would be another record.
            nouns = tuple(sorted(nouns_of_row(row, extract)))
            source = entries[0].get("path") or entries[0]["frames_dir"]
            if source not in content:
                content[source] = _content(source)
            crop = {name: value for name, value in entries[0].items() if name not in ("path", "frames_dir")}
            key = json.dumps([settings, content[source], crop, nouns], sort_keys=True)
            tasks[index] = _Task(hashlib.sha256(key.encode()).hexdigest()[:32], entries[0], nouns)
        except (RowError, VideoError, OSError) as error:
            faults[index] = str(error)
    return tasks, faults


def _content(source: str) -> str:
    """What a file, or all files of a folder, hold."""
    if not os.path.exists(source):
        raise VideoError(f"{source}: no such file or folder; check the path.")
    digest = hashlib.sha256()
    paths = [Path(source)]
    if os.path.isdir(source):
        paths = sorted(path for path in Path(source).iterdir() if path.is_file())
        digest.update("\n".join(path.name for path in paths).encode())
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _name_of(function: Callable) -> str:
    if inspect.isfunction(function) and "<" not in function.__qualname__:  # lambdas share theirs
        return f"{function.__module__}:{function.__qualname__}"
    return repr(function)


def _run(
    distinct: dict[str, _Task],
    cache: Path,
    detect: Detector,
    track: Tracker,
    config: ObjectStageConfig,
    num_workers: int,
    executor: Executor,
    executor_args: dict[str, Any] | None,
    progress: bool,
) -> bool:
    """Looks at every video and set of nouns that has no record. Returns whether all have one."""
    tasks = [asdict(distinct[key]) for key in sorted(distinct)]
    if not tasks:
        return True
    inputs = json.dumps(tasks)
    work_dir = cache / f"run-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    if all(_record_path(cache, key).exists() for key in distinct):
        shutil.rmtree(work_dir, ignore_errors=True)  # of a run that was killed when all but its end was done
        return True
    work_dir.mkdir(parents=True, exist_ok=True)
    write_whole(work_dir / "inputs.json", inputs)
    num_shards = min(NUM_SHARDS, len(tasks))
    done = run_shards(
        _ObjectStep(str(work_dir.absolute()), detect, track, config),
        [len(shard_range(len(tasks), rank, num_shards)) for rank in range(num_shards)],
        work_dir / "datatrove",
        executor=executor,
        num_workers=num_workers,
        executor_args=executor_args,
        progress="Finding objects" if progress else None,
    )
    if done:
        shutil.rmtree(work_dir)
    return done


class _ObjectStep(PipelineStep):
    """Finds the objects of the tasks of one shard that no record tells of yet."""

    name, type = "find objects", "trl_temporal"

    def __init__(self, work_dir: str, detect: Detector, track: Tracker, config: ObjectStageConfig):
        super().__init__()
        self.work_dir, self.detect, self.track, self.config = work_dir, detect, track, config

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        tasks = json.loads(Path(self.work_dir, "inputs.json").read_text(encoding="utf-8"))
        for index in shard_range(len(tasks), rank, world_size):
            record_path = _record_path(Path(self.work_dir).parent, tasks[index]["key"])
            if record_path.exists():
                continue
            try:
                video = _load(tasks[index]["entry"], self.config)
                record = ground_objects(video, tasks[index]["nouns"], self.detect, self.track, self.config)
            except (VideoError, NounError) as error:
                record = {"error": str(error)}
            record_path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(record_path, json.dumps(record))
        return data


def _load(entry: dict[str, Any], config: ObjectStageConfig):
    """The frames of a video, none larger than the detector needs."""
    if "path" in entry:
        info = probe_video(entry["path"])
        height, width = info.height, info.width
    else:
        start_s = entry.get("start_s", 0.0)
        first = load_row_video({**entry, "end_s": start_s + 1 / entry["fps"]}, num_frames=1)
        height, width = first.frames.shape[1:3]
    scale = config.max_side / max(height, width)
    size = tuple(max(1, round(side * scale)) for side in (height, width)) if scale < 1 else None
    return load_row_video(entry, num_frames=config.num_frames, size=size)


def _record_path(cache: Path, key: str) -> Path:
    return cache / key[:2] / f"{key}.json"


def _read_record(cache: Path, key: str) -> dict[str, Any]:
    return json.loads(_record_path(cache, key).read_text(encoding="utf-8"))


def _cells(cache: Path, key: str | None) -> dict[str, Any]:
    if key is None:
        return {**dict.fromkeys(OBJECT_FEATURES), "grounding_status": NO_VIDEO}
    return _read_record(cache, key)


def _row_name(dataset: datasets.Dataset, index: int) -> str:
    row_id = dataset[index].get("id")
    return f"row {index}" + ("" if row_id is None else f" (id {row_id!r})")


def _error(dataset: datasets.Dataset, faults: dict[int, str]) -> RowError:
    index, reason = next(iter(faults.items()))
    mend = "Mend them, or leave such rows out with on_error='skip'"
    counts = f"objects of {len(faults)} of {len(dataset)} rows cannot be found"
    return RowError(f"{counts}. The first: {_row_name(dataset, index)}, {reason} {mend}.")


def _report(dataset: datasets.Dataset, faults: dict[int, str], cache: Path, on_error: str) -> None:
    if on_error == "raise" or len(faults) == len(dataset):
        raise _error(dataset, faults)
    lines = [{"index": index, "id": dataset[index].get("id"), "reason": reason} for index, reason in faults.items()]
    cache.mkdir(parents=True, exist_ok=True)
    skipped_path = cache / "skipped.jsonl"
    write_whole(skipped_path, "".join(json.dumps(line) + "\n" for line in lines))
    warnings.warn(
        f"left out {len(faults)} of {len(dataset)} rows whose objects cannot be found; {skipped_path} says which and "
        "why",
        stacklevel=3,
    )


def _with_all_columns(rows: Sequence[dict[str, Any]]) -> datasets.Dataset:
    """Rows of JSON as a data set; by itself it takes the columns of the first row alone."""
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in rows])


def count_statuses(statuses: Sequence[str]) -> Counter:
    """
    How often each thing happened in the object stage.

    Args:
        statuses (`Sequence[str]`):
            The column `grounding_status`.

    Returns:
        `Counter`: in how many rows each of `STATUSES` is said, of whatever nouns.

    Example:
        >>> from trl_temporal.objects.extract import count_statuses
        >>> count_statuses(["ok", "partial:dog;partial:cat;persistence:2", "partial:cat"])
        Counter({'partial': 2, 'ok': 1, 'persistence': 1})
    """
    parts = ({part.partition(":")[0] for part in status.split(";")} for status in statuses)
    return Counter(name for names in parts for name in STATUSES if name in names)


def extract_path(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    detector: str | None = None,
    tracker: str | None = None,
    nouns: str | None = None,
    config: ObjectStageConfig | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    cache: str | os.PathLike | None = None,
    num_workers: int = 1,
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
) -> int:
    """
    Add the objects to the data set that `path` names and print what became of it: `trl-temporal objects extract`.

    Args:
        path (`str` or `os.PathLike`):
            A data set as in [`~trl_temporal.data.validation.load_rows`].
        out (`str` or `os.PathLike`):
            Folder to write, for `datasets.load_from_disk`; must not exist, or be empty.
        detector, tracker (`str`, *optional*):
            Folder or Hub repository of GroundingDINO or OWLv2, and of SAM 2.
        nouns (`str`, *optional*):
            `module:function` of another extractor of nouns.
        cache (`str` or `os.PathLike`, *optional*):
            Folder of what was found. Defaults to `<out>.cache`.
        config, on_error, num_workers, executor, executor_args:
            As in [`extract_objects`].

    Returns:
        `int`: the exit code.

    Raises:
        `ValueError`: `out` is not empty, or as in [`extract_objects`].
    """
    from rich.console import Console

    from ..synthesis.temple_selection import _load_function

    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out}: is not empty. Choose another folder, or delete this one.")
    done = {}
    for split, rows in load_rows(path).items():
        done[split] = extract_objects(
            rows if isinstance(rows, datasets.Dataset) else _with_all_columns(rows),
            f"{out}.cache" if cache is None else cache,
            detect=ModelDetector() if detector is None else ModelDetector(detector),
            track=Sam2Tracker() if tracker is None else Sam2Tracker(tracker),
            extract=extract_nouns if nouns is None else _load_function(nouns),
            config=config,
            on_error=on_error,
            num_workers=num_workers,
            executor=executor,
            executor_args=executor_args,
        )
    console = Console()
    if None in done.values():
        console.print("Submitted. Run the same command again when the jobs are done: it writes the data set.")
        return 0
    datasets.DatasetDict(done).save_to_disk(str(out))
    for split, rows in done.items():
        counts = count_statuses(rows["grounding_status"])
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
        console.print(f"{split}: {len(rows):,} rows: {shown}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)
    return 0
