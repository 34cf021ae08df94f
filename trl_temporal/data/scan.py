# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal data scan`: read every video once, write down what it is, and use that to skip or refuse rows."""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..video import VideoError, load_frames_dir, probe_video
from ..video_backends import _last_duration_s, decode, header_duration_s, nothing_decodable, open_video
from .row_checks import RowError, coerce_videos
from .schema import without_video_decoding
from .shards import NUM_SHARDS, Executor, run_shards, shard_range, write_whole
from .validation import load_rows
from .video_check import SPAN_COLUMNS

Decode = Literal["full", "header"]

# One record of the manifest. `duration_s` is what the header says, `decoded_duration_s` what the frames do.
MANIFEST_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("status", pa.string()),
        ("note", pa.string()),
        ("size_bytes", pa.int64()),
        ("codec", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("average_fps", pa.float64()),
        ("num_frames", pa.int64()),
        ("duration_s", pa.float64()),
        ("decoded_frames", pa.int64()),
        ("decoded_duration_s", pa.float64()),
        ("decodes_to_end", pa.bool_()),
        ("variable_frame_rate", pa.bool_()),
    ]
)
OK, DAMAGED, UNREADABLE, MISSING = "ok", "damaged", "unreadable", "missing"

# A video ends early if it lacks more than this of its header's duration, as in `load_video`.
SHORT_S, SHORT_RATIO = 0.5, 0.02
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".ts"}


def scan_videos(
    videos: datasets.Dataset | datasets.DatasetDict | Iterable[str | os.PathLike],
    manifest_path: str | os.PathLike,
    *,
    num_workers: int = 2,
    decode: Decode = "full",
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
    progress: bool = True,
) -> Counter | None:
    """
    Read every distinct video and write a manifest of what it is: one record per video, sorted by path.

    A video that is missing or cannot be read gets a record that says so. Beside the manifest, the folder
    `<manifest>.scan` keeps the shards that are done, so that the same call goes on after a kill; it is removed at the
    end. The manifest is the same, byte for byte, for any number of workers.

    Args:
        videos (`datasets.Dataset`, `datasets.DatasetDict` or paths):
            A dataset with a `videos` column, or the files and folders of frames themselves.
        manifest_path (`str` or `os.PathLike`):
            File to write: Parquet if it ends in `.parquet`, else JSON lines.
        num_workers (`int`, *optional*, defaults to `2`):
            Number of processes. A script that starts more than one needs `if __name__ == "__main__":`.
        decode (`str`, *optional*, defaults to `"full"`):
            `"full"` decodes every frame; `"header"` decodes the first one alone, which is quick, but believes the
            header of a truncated file.
        executor (`str`, *optional*, defaults to `"local"`):
            `"local"`, `"slurm"` or `"ray"`, see [`~trl_temporal.data.shards.run_shards`].
        executor_args (`dict`, *optional*):
            More arguments of datatrove's executor; Slurm needs `time` and `partition`.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        `Counter` or `None`: number of videos of each status (`"ok"`, `"damaged"`: what decodes is less than the header
        promises, or the decoder complains, `"unreadable"`, `"missing"`). `None` if the shards run in Slurm: the same
        call writes the manifest when they are done.

    Raises:
        `ValueError`: there is no video to scan.

    Example:

    ```python
    >>> from trl_temporal.data.scan import scan_videos
    >>> scan_videos(["a.mp4", "b.mp4"], "videos.jsonl")  # doctest: +SKIP
    Counter({'ok': 1, 'missing': 1})
    ```
    """
    if decode not in ("full", "header"):
        raise ValueError(f"decode is {decode!r}; it must be 'full' or 'header'")
    paths = sorted(_distinct_paths(videos))
    if not paths:
        raise ValueError("there is no video to scan; give paths, or a dataset with videos")
    manifest_path = Path(manifest_path)
    inputs = json.dumps({"decode": decode, "paths": paths})
    # Shards of other videos are not those of this scan.
    work_dir = Path(f"{manifest_path}.scan", hashlib.sha256(inputs.encode()).hexdigest()[:16])
    work_dir.mkdir(parents=True, exist_ok=True)
    write_whole(work_dir / "inputs.json", inputs)

    num_shards = min(NUM_SHARDS, len(paths))
    sizes = [len(shard_range(len(paths), rank, num_shards)) for rank in range(num_shards)]
    done = run_shards(
        _ScanStep(str(work_dir.absolute())),
        sizes,
        work_dir / "datatrove",
        executor=executor,
        num_workers=num_workers,
        executor_args=executor_args,
        progress="Scanning videos" if progress else None,
    )
    if not done:
        return None
    records = [record for rank in range(num_shards) for record in _read_lines(_shard_path(work_dir, rank))]
    _write_manifest(records, manifest_path)
    shutil.rmtree(work_dir)
    if not any(work_dir.parent.iterdir()):
        work_dir.parent.rmdir()
    return Counter(record["status"] for record in records)


def _distinct_paths(videos: datasets.Dataset | datasets.DatasetDict | Iterable[str | os.PathLike]) -> set[str]:
    if isinstance(videos, datasets.DatasetDict):
        return set().union(*map(_distinct_paths, videos.values()))
    if isinstance(videos, datasets.Dataset):
        if "videos" not in videos.column_names:
            raise ValueError(f"the dataset has no column 'videos', only {', '.join(videos.column_names)}")
        videos = without_video_decoding(videos.select_columns(["videos"]).with_format(None))
    found = set()
    for index, row in enumerate(videos):
        if not isinstance(row, dict):
            found.add(os.fspath(row))
            continue
        try:
            found |= {_source(entry) for entry in coerce_videos(row.get("videos"))}
        except RowError as error:
            raise RowError(f"row {index}, {error}") from None
    return found


def _source(entry: dict[str, Any]) -> str:
    if "frames" in entry:
        raise RowError("column 'videos': is a list of frames, which a scan cannot look up. Leave such rows out of it.")
    return entry["frames_dir"] if "frames_dir" in entry else entry["path"]


class _ScanStep(PipelineStep):
    """Probes the videos of one shard. It knows only its folder, so that it is small to send to a worker."""

    name, type = "scan videos", "trl_temporal"

    def __init__(self, work_dir: str):
        super().__init__()
        self.work_dir = work_dir

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        work_dir = Path(self.work_dir)
        inputs = json.loads((work_dir / "inputs.json").read_text())
        shard = shard_range(len(inputs["paths"]), rank, world_size)
        records = (probe(inputs["paths"][index], inputs["decode"]) for index in shard)
        write_whole(_shard_path(work_dir, rank), "".join(json.dumps(record) + "\n" for record in records))
        return data


def _shard_path(work_dir: Path, rank: int) -> Path:
    return work_dir / f"shard-{rank:05d}.jsonl"


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def probe(path: str, decode: Decode = "full") -> dict[str, Any]:
    """
    Read one video or folder of frames; whatever is wrong with it is in the record.

    Args:
        path (`str`):
            File, or folder of frames.
        decode (`str`, *optional*, defaults to `"full"`):
            `"full"` or `"header"`, see [`scan_videos`].

    Returns:
        `dict`: the fields of `MANIFEST_SCHEMA`; those that are not known are `None`.
    """
    record: dict[str, Any] = dict.fromkeys(MANIFEST_SCHEMA.names)
    record |= {"path": path, "status": OK}
    try:
        if os.path.isdir(path):
            record |= _probe_frames_dir(path, decode)
        elif os.path.exists(path):
            record |= _probe_file(path, decode)
        else:
            record |= {"status": MISSING, "note": "there is no such file or folder"}
    except VideoError as error:
        record |= {"status": UNREADABLE, "note": str(error).removeprefix(f"{path}: ")}
    except Exception as error:  # whatever else a decoder throws at one file must not end the scan of the others
        record |= {"status": UNREADABLE, "note": f"{type(error).__name__}: {error}"}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in record.items()}


def _probe_frames_dir(path: str, decode: Decode) -> dict[str, Any]:
    num_frames = {"fps": 1.0} if decode == "full" else {"num_frames": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frames of several sizes are resized
        whole = load_frames_dir(path, 1.0, **num_frames, size=8)
        first = load_frames_dir(path, 1.0, num_frames=1, end_s=1.0)
    count, decoded = int(whole.duration_s), len(whole.frames) if decode == "full" else None
    height, width = first.frames.shape[1:3]
    fields = {"codec": "frames", "width": width, "height": height, "num_frames": count, "decoded_frames": decoded}
    return fields | {"decodes_to_end": True if decode == "full" else None}


def _probe_file(path: str, decode: Decode) -> dict[str, Any]:
    info = probe_video(path)
    fields = {
        "size_bytes": os.path.getsize(path),
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "average_fps": info.average_fps,
        "num_frames": info.num_frames,
        "duration_s": info.duration_s,
    }
    return fields | (_decode_all(path) if decode == "full" else {})


def _decode_all(path: str) -> dict[str, Any]:
    """What all frames say; only their times are kept."""
    faults: list[str] = []
    times_s: list[float] = []
    stated_s = 0.0
    with open_video(path) as (container, stream):
        stream.codec_context.thread_count = 1  # the videos are what runs in parallel
        header_s = header_duration_s(container, stream)
        rate = stream.average_rate or stream.guessed_rate
        for frame in decode(container, stream, faults):
            times_s.append(math.nan if frame.pts is None else float(frame.pts * frame.time_base))
            stated_s = float((frame.duration or 0) * frame.time_base)
    if not times_s:
        raise nothing_decodable(path)

    notes = []
    known_s = np.array(times_s)
    missing = np.isnan(known_s)
    if missing.any():
        notes.append(f"{missing.sum()} of {len(known_s)} frames have no timestamp")
        known_s = np.arange(len(known_s)) / float(rate or 1) if missing.all() else known_s[~missing]
    if (np.diff(known_s) <= 0).any():
        notes.append("timestamps do not increase")
        known_s = np.sort(known_s)
    gaps_s = np.diff(known_s)
    last_s = float(np.ptp(known_s))
    decoded_s = last_s + _last_duration_s(stated_s, float(gaps_s[-1]) if len(gaps_s) else 0.0, last_s, header_s)
    short = header_s is not None and header_s - decoded_s > max(SHORT_S, SHORT_RATIO * header_s)
    if short:
        notes.append(f"truncated or damaged: the header says {header_s:.2f} s, but {decoded_s:.2f} s decode")
    if faults:
        notes.append(f"the decoder reports {len(faults)} faults (the first: {faults[0]})")
    return {
        "status": DAMAGED if short or faults else OK,
        "note": "; ".join(notes) or None,
        "decoded_frames": len(times_s),
        "decoded_duration_s": decoded_s,
        "decodes_to_end": not short,
        "variable_frame_rate": _varies(gaps_s),
    }


def _varies(gaps_s: np.ndarray) -> bool:
    """Whether frames stay on screen for different times: by more than a rounded millisecond or two."""
    if len(gaps_s) == 0:
        return False
    usual_s = float(np.median(gaps_s))
    return bool((np.abs(gaps_s - usual_s) > 0.0025 + 0.1 * usual_s).any())


def _write_manifest(records: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        partial = path.with_name(f"{path.name}.part")
        pq.write_table(pa.Table.from_pylist(list(records), schema=MANIFEST_SCHEMA), partial)
        os.replace(partial, path)
    else:
        write_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def read_manifest(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """
    Read a manifest of [`scan_videos`].

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Returns:
        `dict[str, dict]`: the record of each path.
    """
    path = Path(path)
    records = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else _read_lines(path)
    return {record["path"]: record for record in records}


def apply_manifest(
    dataset: datasets.Dataset,
    manifest: str | os.PathLike,
    on_bad_sample: Literal["raise", "skip"] = "raise",
    skipped_path: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """
    Refuse or drop the rows whose video cannot be used, as a manifest says: one that is missing, unreadable or not in
    the manifest, or that ends before a span of the row begins.

    Args:
        dataset (`datasets.Dataset`):
            Rows that pass the validator.
        manifest (`str` or `os.PathLike`):
            A manifest of [`scan_videos`].
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            `"raise"` names the first such row and counts the reasons; `"skip"` drops them all, counts them in a
            warning and lists them in a file.
        skipped_path (`str` or `os.PathLike`, *optional*):
            JSON-lines file to write for `"skip"`, with `index`, `id` and `reason` of every dropped row. Defaults to
            `skipped.jsonl` beside the manifest.

    Returns:
        `datasets.Dataset`: the rows whose video can be used, in order.

    Raises:
        [`~trl_temporal.data.schema.RowError`]: a row has a bad video, or all have.

    Example:

    ```python
    >>> from trl_temporal.data.scan import apply_manifest
    >>> dataset = apply_manifest(dataset, "videos.jsonl", on_bad_sample="skip")  # doctest: +SKIP
    ```
    """
    if on_bad_sample not in ("raise", "skip"):
        raise ValueError(f"on_bad_sample is {on_bad_sample!r}; it must be 'raise' or 'skip'")
    records = read_manifest(manifest)
    columns = [name for name in ("id", "videos", *SPAN_COLUMNS) if name in dataset.column_names]
    bad, kinds = [], Counter()
    for index, row in enumerate(without_video_decoding(dataset.select_columns(columns).with_format(None))):
        if found := _bad_video(row, records):
            kinds[found[0]] += 1
            bad.append({"index": index, "id": row.get("id"), "reason": found[1]})
    if not bad:
        return dataset
    counts = f"{len(bad)} of {len(dataset)} rows ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())})"
    if on_bad_sample == "raise" or len(bad) == len(dataset):
        first = bad[0]
        name = f"row {first['index']}" + ("" if first["id"] is None else f" (id {first['id']!r})")
        mend = "Mend the files and scan again, or drop such rows with on_bad_sample='skip'"
        raise RowError(f"{counts} have a video that cannot be used. The first: {name}, {first['reason']}. {mend}.")
    skipped_path = Path(manifest).with_name("skipped.jsonl") if skipped_path is None else Path(skipped_path)
    skipped_path.parent.mkdir(parents=True, exist_ok=True)
    skipped_path.write_text("".join(json.dumps(entry) + "\n" for entry in bad), encoding="utf-8")
    warnings.warn(f"skipped {counts} whose video cannot be used; {skipped_path} says which and why", stacklevel=2)
    dropped = {entry["index"] for entry in bad}
    return dataset.select([index for index in range(len(dataset)) if index not in dropped])


def _bad_video(row: dict[str, Any], records: dict[str, dict[str, Any]]) -> tuple[str, str] | None:
    """In a word and in a sentence why the video of a row cannot be used."""
    entries = coerce_videos(row.get("videos"))
    if not entries:
        return None
    entry, path = entries[0], _source(entries[0])
    record = records.get(path)
    if record is None:
        return "not scanned", f"video {path}: is not in the manifest"
    if record["status"] in (MISSING, UNREADABLE):
        return record["status"], f"video {path}: {record['note']}"
    if ("frames_dir" in entry) != (record["codec"] == "frames"):
        mend = "'path' names a file, 'frames_dir' with its 'fps' a folder"
        return UNREADABLE, f"video {path}: is {'a folder' if 'path' in entry else 'a file'}; {mend}"
    length_s = record["duration_s"] if record["decoded_duration_s"] is None else record["decoded_duration_s"]
    if "frames_dir" in entry:
        length_s = record["num_frames"] / entry["fps"]
    start_s, end_s = entry.get("start_s", 0.0), entry.get("end_s", math.inf)
    visible_s = min(end_s, math.inf if length_s is None else length_s) - start_s
    if visible_s <= 0:
        return "too short", f"video {path}: ends at {length_s} s, before its crop begins at {start_s} s"
    for column in SPAN_COLUMNS:
        for span in row.get(column) or []:
            if span[0] >= visible_s:
                fault = f"the span {span} of '{column}' begins after the end at {visible_s:.3f} s"
                return "too short", f"video {path}: {fault}"
    return None


def scan_path(
    path: str | os.PathLike,
    manifest_path: str | os.PathLike,
    *,
    num_workers: int = 2,
    decode: Decode = "full",
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
) -> int:
    """
    Scan what `path` names and print a summary: `trl-temporal data scan`.

    Args:
        path (`str` or `os.PathLike`):
            A dataset as in [`~trl_temporal.data.validation.load_rows`], a video, or a folder with videos in it or in
            folders below.
        manifest_path (`str` or `os.PathLike`):
            File to write, see [`scan_videos`].
        num_workers, decode, executor, executor_args:
            As in [`scan_videos`].

    Returns:
        `int`: the exit code, 1 if a video is not `"ok"`.
    """
    options = {"num_workers": num_workers, "decode": decode, "executor": executor, "executor_args": executor_args}
    counts = scan_videos(_videos_of(Path(path)), manifest_path, **options)
    console = Console()
    if counts is None:
        console.print("Submitted. Run the same command again when the jobs are done: it writes the manifest.")
        return 0
    records = list(read_manifest(manifest_path).values())
    table = Table("status", "videos", "hours", "variable rate", title=escape(f"Videos of {path}"))
    for status in (OK, DAMAGED, UNREADABLE, MISSING):
        of_status = [record for record in records if record["status"] == status]
        hours = sum(record["decoded_duration_s"] or record["duration_s"] or 0.0 for record in of_status) / 3600
        variable = sum(bool(record["variable_frame_rate"]) for record in of_status)
        table.add_row(status, str(len(of_status)), f"{hours:.2f}", str(variable))
    console.print(table)
    bad = [record for record in records if record["status"] != OK]
    for record in bad[:10]:
        console.print(f"{record['path']}: {record['note']}", highlight=False, markup=False, soft_wrap=True)
    if len(bad) > 10:
        console.print(f"and {len(bad) - 10} more")
    console.print(f"Wrote {manifest_path}", highlight=False, markup=False, soft_wrap=True)
    return int(bool(bad))


def _videos_of(path: Path) -> Iterable[str]:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return [str(path)]
    if path.is_dir():
        files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        if found := [str(file) for file in files if file.suffix.lower() in VIDEO_SUFFIXES]:
            return found
    return set().union(*(_distinct_paths(rows) for rows in load_rows(path).values()))
