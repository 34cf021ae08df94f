# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal data validate`: what is in a data set, and what is wrong with it."""

import math
import os
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .converters.annotation_files import RecordFault, read_json_lines, read_json_list
from .row_checks import RESPONSES
from .schema import find_faults, kind_of, without_video_decoding

Rows = datasets.Dataset | list[dict[str, Any]]


def load_rows(path: str | os.PathLike) -> dict[str, Rows]:
    """
    Load a data set wherever it is.

    Args:
        path (`str` or `os.PathLike`):
            A folder written by `save_to_disk`, a `.json` (a list, or an object a line), `.jsonl` or `.parquet` file,
            another folder that `datasets.load_dataset` reads, or the name of a data set on the Hub.

    Returns:
        `dict[str, datasets.Dataset | list[dict]]`: the rows of each split. Those of JSON are as they stand in the
        file, since Arrow would refuse some and change others.

    Raises:
        `ValueError`: a JSON file is broken; the message names the line.
        `FileNotFoundError`: there is nothing at `path`, and it is no name on the Hub.
    """
    path = Path(path)
    if path.suffix in (".json", ".jsonl") and path.is_file():
        return {path.stem: list(_json_rows(path))}
    if path.suffix == ".parquet" and path.is_file():
        return {path.stem: datasets.Dataset.from_parquet(str(path))}
    if path.is_file():
        raise ValueError(f"{path}: is no data set. Give a folder, or a .json, .jsonl or .parquet file.")
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        loaded = datasets.load_from_disk(str(path))
    elif path.is_dir() or _may_be_on_the_hub(path):
        loaded = datasets.load_dataset(path.as_posix())
    else:
        raise FileNotFoundError(f"{path}: no such file or folder. Check the path (relative to {os.getcwd()}).")
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _may_be_on_the_hub(path: Path) -> bool:
    return not path.is_absolute() and path.parts[:1] not in [("..",), ("~",)] and len(path.parts) == 2


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        is_list = file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    for record in read_json_list(path) if is_list else read_json_lines(path):
        if isinstance(record.data, RecordFault):
            raise ValueError(f"{path}, {record.where}, {record.data}")
        yield record.data


def validate_path(path: str | os.PathLike, limit: int = 20) -> int:
    """
    Check a data set and print what is in it and what is wrong: `trl-temporal data validate`.

    What the rows are for is told from their columns, see [`~trl_temporal.data.schema.kind_of`].

    Args:
        path (`str` or `os.PathLike`):
            A data set as in [`load_rows`].
        limit (`int`, *optional*, defaults to `20`):
            How many faults of each split are printed.

    Returns:
        `int`: the exit code, 1 if there is a fault or no row.
    """
    console = Console()
    splits = load_rows(path)
    table = Table("split", "kind", "rows", "tasks", "videos", "spans a row", "span length", "faults")
    table.title = escape(str(path))
    listed, bad = [], False
    for split, rows in splits.items():
        columns = rows.column_names if isinstance(rows, datasets.Dataset) else set().union(*rows)
        kind = kind_of(columns)
        faults = find_faults(rows, kind)
        bad |= bool(faults) or not len(rows)
        columns = _columns(rows, ["task", "videos", *RESPONSES[kind].values()])
        table.add_row(
            escape(split),
            kind,
            f"{len(rows):,}",
            escape(", ".join(f"{task} {count:,}" for task, count in Counter(columns["task"]).most_common())),
            f"{len(set(map(repr, filter(None, columns['videos'])))):,}",
            *_span_statistics(columns, kind),
            f"{len(faults):,}",
        )
        listed += [f"{split}, {fault}" for fault in faults[:limit]]
        if len(faults) > limit:
            listed.append(f"{split}: and {len(faults) - limit:,} more faults")
    console.print(table)
    for line in listed:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not any(len(rows) for rows in splits.values()):
        console.print("There are no rows.")
    return int(bad)


def _columns(rows: Rows, names: list[str]) -> dict[str, list[Any]]:
    if isinstance(rows, list):
        return {name: [row.get(name) for row in rows] for name in names}
    rows = without_video_decoding(rows.with_format(None))
    return {name: rows[name][:] if name in rows.column_names else [None] * len(rows) for name in names}


def _span_statistics(columns: dict[str, list[Any]], kind: str) -> tuple[str, str]:
    """The mean number of spans of a response, and the quartiles of their lengths in seconds."""
    cells = [cell for name in RESPONSES[kind].values() for cell in columns[name] if isinstance(cell, list)]
    lengths_s = [
        span[1] - span[0]
        for cell in cells
        for span in cell
        if isinstance(span, list)
        and len(span) == 2
        and all(isinstance(edge, int | float) and math.isfinite(edge) for edge in span)
    ]
    if not cells:
        return "-", "-"
    number = f"{sum(map(len, cells)) / len(cells):.2f}"
    if len(lengths_s) < 2:
        return number, "-"
    return number, " / ".join(f"{quartile:.1f}" for quartile in statistics.quantiles(lengths_s)) + " s"
