# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Which videos TEMPLE makes its pairs of, their clips and the key frames of these: `trl-temporal temple select`.

A video is decoded up to three times and never held in memory: by the detector of shots, for the times of its frames
and which shots are flat, and, unless it is rejected by then, for the middle frames of its shots and how sharp all
frames are. What becomes of it is written at once, so that a kill loses at most the video at hand of each process.
"""

import hashlib
import importlib
import inspect
import json
import operator
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datatrove.pipeline.base import PipelineStep

from ..data.scan import _distinct_paths, _videos_of
from ..data.shards import NUM_SHARDS, Executor, run_shards, shard_range, write_whole
from ..video import VideoError
from ..video_backends import FrameBuffer
from .temple_grouping import (
    DEFAULT_MODEL,
    CachedEmbedder,
    Embedder,
    ModelEmbedder,
    color_histogram,
    group_shots,
    recurring_group,
    runs_of,
)
from .temple_key_frames import key_frames, sharpness
from .temple_shots import detect_shots, shots_in_frames, walk_frames

if TYPE_CHECKING:
    import av
    from rich.table import Table

SELECTED_FILE, REJECTED_FILE, CACHE_FOLDER = "selected.jsonl", "rejected.jsonl", "cache"
VERSION = 1  # of what a record is made of; another one reads no record of this one

MIN_SHOT_FRAMES, MIN_SHOT_S, MIN_GRAY_RANGE = 8, 0.2, 10  # shots with less are no clips
MIN_SHOTS, MAX_SHOTS, MAX_SHOT_S = 4, 32, 16.0
MIN_CLIPS = 4
# What failed may have failed for the moment: a drive that was away, memory, weights that were not there.
RETRIED_REASONS = ("detector_failed", "undecodable")
MAX_PRINTED = 10
EMBEDDED_SIDE = 768  # pixels of the longer side of a frame that is embedded; models look at fewer

Detector = Callable[[str], Sequence[tuple[float, float]]]


def select_video(path: str | os.PathLike, detect: Detector, embed: Embedder) -> dict[str, Any]:
    """
    Find the clips of a video and their key frames, or why it is rejected.

    Shots that are shorter than 8 frames or 0.2 s, or of one gray, are left out. Shots that look alike make a group,
    and shots of one group behind one another make a clip. A video has 4 to 32 shots, none over 16 s, and 4 clips or
    more; and none of its groups comes back in more than a third of the clips (rounded down), or in more than 3.

    Args:
        path (`str` or `os.PathLike`):
            A local video file.
        detect (`Callable[[str], Sequence[tuple[float, float]]]`):
            Detector of shots, see [`trl_temporal.synthesis.temple_shots`].
        embed (`Callable[[np.ndarray], np.ndarray]`):
            Embedder of frames, see [`trl_temporal.synthesis.temple_grouping`].

    Returns:
        `dict`: `{"duration_s", "clips"}`, where a clip is `{"start_s", "end_s", "start_frame", "end_frame", "group",
        "key_frames", "key_frames_s"}` with frames counted in decode order, `end_frame` the one behind the last, and
        seconds by the decoder's timestamps from the first frame. If it is rejected, `{"reason", "detail"}`: one of
        `"undecodable"`, `"detector_failed"`, `"too_few_shots"`, `"too_many_shots"`, `"clip_too_long"`,
        `"too_few_groups"` and `"recurring_group"`, and a `dict` with the numbers.

    Example:
        >>> from trl_temporal.synthesis.temple_grouping import color_histogram
        >>> from trl_temporal.synthesis.temple_selection import select_video
        >>> from trl_temporal.synthesis.temple_shots import detect_shots
        >>> select_video("no_such.mp4", detect_shots, color_histogram)["reason"]
        'undecodable'
    """
    path = os.fspath(path)
    try:
        return _select(path, detect, embed)
    except VideoError as error:
        return _reject("undecodable", error=str(error).removeprefix(f"{path}: "))


def _reject(reason: str, **detail) -> dict[str, Any]:
    return {"reason": reason, "detail": detail}


def _select(path: str, detect: Detector, embed: Embedder) -> dict[str, Any]:
    try:
        shots_s = list(detect(path))
    except (VideoError, ImportError):
        raise
    except Exception as error:  # whatever a detector throws at one file must not end the selection of the others
        return _reject("detector_failed", error=f"{type(error).__name__}: {error}")
    if len(shots_s) < MIN_SHOTS:
        return _reject("too_few_shots", shots=len(shots_s))

    grays: list[tuple[int, int]] = []
    edges_s = walk_frames(path, lambda index, frame: grays.append(_gray_range(frame)))
    try:
        found = shots_in_frames(shots_s, edges_s)
    except ValueError as error:
        return _reject("detector_failed", error=str(error))
    lows, highs = np.array(grays).T
    shots = [
        (start, end)
        for start, end in found.tolist()
        if end - start >= MIN_SHOT_FRAMES
        and _length_s(edges_s, start, end) >= MIN_SHOT_S
        and highs[start:end].max() - int(lows[start:end].min()) >= MIN_GRAY_RANGE
    ]
    counts = {"shots": len(found), "short_or_flat": len(found) - len(shots)}
    if len(shots) < MIN_SHOTS:
        return _reject("too_few_shots", **counts)
    if len(shots) > MAX_SHOTS:
        return _reject("too_many_shots", **counts)
    longest_s = max(_length_s(edges_s, start, end) for start, end in shots)
    if longest_s > MAX_SHOT_S:
        return _reject("clip_too_long", longest_s=longest_s, **counts)

    middles, sharpness_of = _look(path, shots, len(edges_s) - 1)
    runs = runs_of(group_shots(embed(middles)))
    groups = [group for group, _, _ in runs]
    if len(runs) < MIN_CLIPS:
        return _reject("too_few_groups", clips=len(runs), groups=len(set(groups)), **counts)
    if (often := recurring_group(groups)) is not None:
        return _reject("recurring_group", group=often, groups_of_clips=groups, **counts)
    clips = [_clip(group, shots[first][0], shots[last][1], edges_s, sharpness_of) for group, first, last in runs]
    return {"duration_s": round(float(edges_s[-1]), 6), "clips": clips}


def _length_s(edges_s: np.ndarray, start: int, end: int) -> float:
    """Rounded: 0.6 - 0.4 is less than 0.2 in floating point."""
    return round(float(edges_s[end] - edges_s[start]), 6)


def _gray_range(frame: "av.VideoFrame") -> tuple[int, int]:
    gray = frame.to_ndarray(format="gray")
    return int(gray.min()), int(gray.max())


def _look(path: str, shots: Sequence[tuple[int, int]], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle frames of the shots, and how sharp every frame is that may be in a clip."""
    middles = {(start + end) // 2 for start, end in shots}
    sharpness_of: list[float] = []
    buffer = None

    def see(index: int, frame: "av.VideoFrame") -> None:
        nonlocal buffer
        if buffer is None:
            shown = (frame.height, frame.width) if frame.rotation % 180 == 0 else (frame.width, frame.height)
            scale = min(1.0, EMBEDDED_SIDE / max(shown))
            buffer = FrameBuffer(tuple(max(1, round(side * scale)) for side in shown))
        if index in middles:
            buffer.add(index, frame)
        is_inside = shots[0][0] <= index < shots[-1][1]
        sharpness_of.append(sharpness(frame.to_ndarray(format="gray")) if is_inside else 0.0)

    walk_frames(path, see)
    if len(sharpness_of) != num_frames:
        raise VideoError(
            f"{path}: gives {num_frames} frames the first time and {len(sharpness_of)} the next; convert it to mp4."
        )
    return buffer.frames(), np.array(sharpness_of)


def _clip(group: int, start: int, end: int, edges_s: np.ndarray, sharpness_of: np.ndarray) -> dict[str, Any]:
    chosen = key_frames(start, sharpness_of[start:end])
    start_s, end_s, *chosen_s = (round(float(edges_s[index]), 6) for index in (start, end, *chosen))
    return {
        "start_s": start_s,
        "end_s": end_s,
        "start_frame": start,
        "end_frame": end,
        "group": group,
        "key_frames": chosen,
        "key_frames_s": chosen_s,
    }


def select_videos(
    videos: datasets.Dataset | datasets.DatasetDict | Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    detect: Detector = detect_shots,
    embed: Embedder | None = None,
    num_workers: int = 2,
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
    progress: bool = True,
) -> Counter | None:
    """
    Select videos for TEMPLE, see [`select_video`], and write a manifest of all.

    `out` gets `selected.jsonl`, one line `{"video_id", "path", "duration_s", "clips"}` for each video that is
    selected, and `rejected.jsonl`, one line `{"video_id", "path", "reason", "detail"}` for each of the others; of
    files with the same content the first is looked at and the others are `"duplicate"`. Lines are sorted by path, and
    are the same for any number of workers. The id of a video is the name of its file without the ending, or its path
    if another has that name.

    `out/cache` keeps what became of each video, so that the same call goes on after a kill and looks only at new or
    changed files later, and at those that were `"undecodable"` or where the detector failed; and the vectors of
    frames. A detector or embedder is known by the name of the function, or
    the `repr` of an object (that of a dataclass holds its settings): where one does something else under the same
    name, take another `out` or delete its cache.

    Args:
        videos (`datasets.Dataset`, `datasets.DatasetDict` or paths):
            A dataset with a `videos` column, or the files themselves.
        out (`str` or `os.PathLike`):
            Folder to write.
        detect (`Callable`, *optional*, defaults to [`~trl_temporal.synthesis.temple_shots.detect_shots`]):
            Detector of shots.
        embed (`Callable`, *optional*):
            Embedder of frames. Defaults to [`~trl_temporal.synthesis.temple_grouping.ModelEmbedder`] with SigLIP.
        num_workers (`int`, *optional*, defaults to `2`):
            Number of processes, each with a model of its own. A script that starts more than one needs
            `if __name__ == "__main__":`.
        executor (`str`, *optional*, defaults to `"local"`):
            `"local"`, `"slurm"` or `"ray"`, see [`~trl_temporal.data.shards.run_shards`].
        executor_args (`dict`, *optional*):
            More arguments of datatrove's executor; Slurm needs `time` and `partition`.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        `Counter` or `None`: number of videos selected (`"selected"`) and of each reason. `None` if the work runs in
        Slurm: the same call writes the manifest when it is done.

    Raises:
        `ValueError`: there is no video, the embedder does not give one vector for each frame, or a detector or
            embedder has no name that lasts.
        `ImportError`: PySceneDetect is not installed, and there is no other detector.

    Example:

    ```python
    >>> from trl_temporal.synthesis.temple_selection import select_videos
    >>> select_videos(["a.mp4", "b.mp4"], "selection")  # doctest: +SKIP
    Counter({'selected': 1, 'too_few_shots': 1})
    ```
    """
    paths = sorted(_distinct_paths(videos))
    if not paths:
        raise ValueError("there is no video to select from; give paths, or a dataset with videos")
    embed = ModelEmbedder() if embed is None else embed
    if detect is detect_shots:
        import scenedetect  # noqa: F401  # told here, and not by each process
    copies = _copies(paths)
    originals = [path for path in paths if path not in copies]
    settings = [VERSION, name_of(detect), name_of(embed)]
    records = [_record_name(path, settings) for path in originals]

    cache = Path(out, CACHE_FOLDER)
    inputs = json.dumps({"paths": originals, "records": records, "embedder": name_of(embed)})
    work_dir = cache / f"run-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    work_dir.mkdir(parents=True, exist_ok=True)
    write_whole(work_dir / "inputs.json", inputs)
    num_shards = min(NUM_SHARDS, len(originals))
    done = run_shards(
        _SelectStep(str(work_dir.absolute()), detect, embed),
        [len(shard_range(len(originals), rank, num_shards)) for rank in range(num_shards)],
        work_dir / "datatrove",
        executor=executor,
        num_workers=num_workers,
        executor_args=executor_args,
        progress="Selecting videos" if progress else None,
    )
    if not done:
        return None

    selected, rejected = [], []
    record_of = dict(zip(originals, records, strict=True))
    for path, video_id in zip(paths, _video_ids(paths), strict=True):
        if path in copies:
            found = _reject("duplicate", of=copies[path])
        else:
            found = json.loads(_record_path(cache, record_of[path]).read_text(encoding="utf-8"))
        (rejected if "reason" in found else selected).append({"video_id": video_id, "path": path, **found})
    for name, lines in ((SELECTED_FILE, selected), (REJECTED_FILE, rejected)):
        write_whole(Path(out, name), "".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(work_dir)
    return Counter({"selected": len(selected)}) + Counter(line["reason"] for line in rejected)


def name_of(function: Callable) -> str:
    """
    Name of a detector or embedder in the cache.

    Args:
        function (`Callable`):
            A function of a module, or an object.

    Returns:
        `str`: `"module:function"`, or the `repr` of anything else.

    Raises:
        `ValueError`: the `repr` is an address in memory, which is another one in the next run.

    Example:
        >>> from trl_temporal.synthesis.temple_selection import name_of
        >>> from trl_temporal.synthesis.temple_shots import detect_shots
        >>> name_of(detect_shots)
        'trl_temporal.synthesis.temple_shots:detect_shots'
    """
    # One in a function, or a lambda, shares its name with others.
    if inspect.isfunction(function) and "<" not in function.__qualname__:
        return f"{function.__module__}:{function.__qualname__}"
    name = repr(function)
    if " at 0x" in name:
        raise ValueError(
            f"{name} has another name in each run, so that nothing would go on where it was stopped; give a function "
            "of a module, or an object whose class has a `__repr__` with its settings"
        )
    return name


def _copies(paths: Sequence[str]) -> dict[str, str]:
    """Of each file that another one before it has the content of, that one. Only files of one size are read."""
    of_size: dict[int, list[str]] = {}
    for path in paths:
        if os.path.isfile(path):
            of_size.setdefault(os.path.getsize(path), []).append(path)
    first_with: dict[str, str] = {}
    copies = {}
    for path in (path for same in of_size.values() if len(same) > 1 for path in same):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        if first_with.setdefault(content, path) != path:
            copies[path] = first_with[content]
    return copies


def _record_name(path: str, settings: list) -> str:
    """Name of what becomes of a file: as long as neither it nor the settings change."""
    status = os.stat(path) if os.path.exists(path) else None
    version = None if status is None else [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps([os.path.abspath(path), version, settings]).encode()).hexdigest()[:32]


def _record_path(cache: Path, name: str) -> Path:
    return cache / "videos" / name[:2] / f"{name}.json"


def _is_settled(record_path: Path) -> bool:
    if not record_path.exists():
        return False
    return json.loads(record_path.read_text(encoding="utf-8")).get("reason") not in RETRIED_REASONS


def _video_ids(paths: Sequence[str]) -> list[str]:
    count = Counter(Path(path).stem for path in paths)
    return [Path(path).stem if count[Path(path).stem] == 1 else path for path in paths]


class _SelectStep(PipelineStep):
    """Looks at the videos of one shard that no record tells of yet, and again at those that failed."""

    name, type = "select videos", "trl_temporal"

    def __init__(self, work_dir: str, detect: Detector, embed: Embedder):
        super().__init__()
        self.work_dir, self.detect, self.embed = work_dir, detect, embed

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        inputs = json.loads(Path(self.work_dir, "inputs.json").read_text(encoding="utf-8"))
        cache = Path(self.work_dir).parent
        embed = CachedEmbedder(self.embed, inputs["embedder"], cache / "embeddings")
        for index in shard_range(len(inputs["paths"]), rank, world_size):
            record_path = _record_path(cache, inputs["records"][index])
            if not _is_settled(record_path):
                record_path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(record_path, json.dumps(select_video(inputs["paths"][index], self.detect, embed)))
        return data


def select_path(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    detector: str | None = None,
    embedder: str = DEFAULT_MODEL,
    num_workers: int = 2,
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
) -> int:
    """
    Select from the videos that `path` names and print how many: `trl-temporal temple select`.

    Args:
        path (`str` or `os.PathLike`):
            A dataset as in [`~trl_temporal.data.validation.load_rows`], a video, or a folder with videos in it or in
            folders below.
        out (`str` or `os.PathLike`):
            Folder to write, see [`select_videos`].
        detector (`str`, *optional*):
            `module:function` of another detector of shots.
        embedder (`str`, *optional*, defaults to `"google/siglip-so400m-patch14-384"`):
            Folder or Hub repository of a model, `"histogram"`, or `module:function`.
        num_workers, executor, executor_args:
            As in [`select_videos`].

    Returns:
        `int`: the exit code, 1 if no video is selected.
    """
    from rich.console import Console

    if embedder == "histogram":
        embed = color_histogram
    else:
        embed = _load_function(embedder) if ":" in embedder else ModelEmbedder(embedder)
    counts = select_videos(
        _videos_of(Path(path)),
        out,
        detect=detect_shots if detector is None else _load_function(detector),
        embed=embed,
        num_workers=num_workers,
        executor=executor,
        executor_args=executor_args,
    )
    console = Console()
    if counts is None:
        console.print("Submitted. Run the same command again when the jobs are done: it writes the manifest.")
        return 0
    console.print(_count_table(counts, str(path)))
    with open(Path(out, REJECTED_FILE), encoding="utf-8") as file:
        failed = [line for line in map(json.loads, file) if "error" in line["detail"]]
    for line in failed[:MAX_PRINTED]:
        text = f"{line['path']}: {line['reason']}: {line['detail']['error']}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if len(failed) > MAX_PRINTED:
        console.print(f"and {len(failed) - MAX_PRINTED} more")
    console.print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)
    return 0 if counts["selected"] else 1


def _load_function(name: str) -> Callable:
    """The function that `module:function` names; the module may lie in the folder that the command runs in."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return operator.attrgetter(function_name)(importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name} is no function ({error}); write module:function, e.g. my_shots:detect") from error


def _count_table(counts: Counter, title: str) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    total = counts.total()
    table = Table("what became of it", "videos", "share", "", title=escape(f"Videos of {title}"))
    for name, count in [("selected", counts["selected"]), *(counts - Counter(selected=total)).most_common()]:
        table.add_row(name, str(count), f"{count / total:.1%}", "█" * round(30 * count / total))
    return table
