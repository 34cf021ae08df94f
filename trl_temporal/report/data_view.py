# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""One self-contained HTML file to look through a data set: preference pairs with their differences, or SFT rows."""

import hashlib
import math
import os
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.row_checks import RESPONSES
from ..data.schema import kind_of, without_video_decoding
from ..data.validation import Rows, load_rows
from .curves import nice_ticks
from .data_rows import drawable_spans, response_name, row_record, text_or_empty
from .pages import page_environment
from .report import FACTOR_MEANING

# What the page reads of a row. Other columns, such as images, are not even loaded.
SHOWN_COLUMNS = (
    *("id", "source_id", "task", "factor", "factor_args", "videos", "duration", "prompt", "prompt_spans"),
    *("chosen", "chosen_spans", "rejected", "rejected_spans", "completion", "spans", "response_spans"),
)
FACETS = ("factor", "task", "split")
MEANING = FACTOR_MEANING | {"on_policy": "the model's own wrong answer"}
NUM_BINS = 20


class _Split(NamedTuple):
    name: str
    kind: str
    rows: Rows


def _load(path: str | os.PathLike) -> list[_Split]:
    splits = []
    for name, rows in load_rows(path).items():
        if isinstance(rows, list):
            columns = set().union(*rows)
        else:
            columns = set(rows.column_names)
            shown = [column for column in rows.column_names if column in SHOWN_COLUMNS]
            rows = without_video_decoding(rows.with_format(None).select_columns(shown))
        splits.append(_Split(name, kind_of(columns), rows))
    return splits


def _column(split: _Split, name: str) -> list[Any]:
    if isinstance(split.rows, list):
        return [row.get(name) for row in split.rows]
    return split.rows[name][:] if name in split.rows.column_names else [None] * len(split.rows)


def choose_balanced(ids: Sequence[str], groups: Sequence[str], max_rows: int, seed: int) -> list[int]:
    """
    Choose rows: as many of every group as possible, whatever their order.

    Args:
        ids (`Sequence[str]`):
            Of every row.
        groups (`Sequence[str]`):
            Of every row, such as its factor.
        max_rows (`int`):
            How many to choose at most. A small group leaves its places to the others.
        seed (`int`):
            With the ids it decides which rows of a group.

    Returns:
        `list[int]`: indices, in the order of the rows.

    Example:

    ```python
    >>> from trl_temporal.report.data_view import choose_balanced
    >>> choose_balanced(list("abcde"), ["shift", "shift", "shift", "shift", "add"], max_rows=3, seed=0)
    [0, 1, 4]
    ```
    """
    if len(ids) <= max_rows:
        return list(range(len(ids)))

    def draw(index: int) -> bytes:
        return hashlib.sha256(f"{seed} {ids[index]}".encode("utf-8", "replace")).digest()

    turn: Counter = Counter()
    rounds = []
    for index in sorted(range(len(ids)), key=draw):
        group = groups[index]
        rounds.append((turn[group], group, index))
        turn[group] += 1
    return sorted(index for *_, index in sorted(rounds)[:max_rows])


def _counts(values: Sequence[str]) -> list[dict]:
    total = len(values)
    return [
        {"value": value, "count": count, "share": count / total}
        for value, count in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    ]


def _histogram(splits: Sequence[_Split]) -> dict | None:
    """Lengths of the spans of each response: the last bin takes what is longer."""
    series: dict[str, list[float]] = {}
    for split in splits:
        for response, column in RESPONSES[split.kind].items():
            name = response_name(response)
            lengths_s = series.setdefault(name, [])
            for spans in _column(split, column):
                if isinstance(spans, list):
                    lengths_s += [span[1] - span[0] for span in drawable_spans(spans)]
    series = {name: lengths_s for name, lengths_s in series.items() if lengths_s}
    if not series:
        return None
    longest = sorted(length_s for lengths_s in series.values() for length_s in lengths_s)
    reach_s = max(longest[int(0.98 * (len(longest) - 1))], 0.1)
    edges = nice_ticks(0, reach_s, count=NUM_BINS)
    width_s = edges[1] - edges[0]
    num_bins = max(math.ceil(reach_s / width_s), 1)
    binned = {
        name: Counter(min(int(length_s / width_s + 1e-9), num_bins - 1) for length_s in lengths_s)
        for name, lengths_s in series.items()
    }
    highest = max(count / len(series[name]) for name, bins in binned.items() for count in bins.values())
    return {
        "series": {
            name: [bins[place] / len(series[name]) / highest for place in range(num_bins)]
            for name, bins in binned.items()
        },
        "median": {name: sorted(lengths_s)[len(lengths_s) // 2] for name, lengths_s in series.items()},
        "highest": highest,
        "ticks": [[tick / (num_bins * width_s), f"{tick:g}"] for tick in nice_ticks(0, num_bins * width_s, count=6)],
        "is_open": longest[-1] > num_bins * width_s,
    }


def view(
    path: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    max_rows: int = 2000,
    seed: int = 0,
    open_browser: bool = True,
) -> Path:
    """
    Write one HTML file to look through a data set: `trl-temporal data view`.

    Each row shows its question, its spans on a timeline, and its response; of a preference pair the two responses are
    compared, span by span and word by word. The file holds its style, script and rows, and asks for nothing outside
    itself. Videos are not opened.

    Args:
        path (`str` or `os.PathLike`):
            A data set as in [`~trl_temporal.data.validation.load_rows`].
        output (`str` or `os.PathLike`, *optional*):
            The file to write; its folder is made. By default `<name of path>.view.html` in the current folder.
        max_rows (`int`, *optional*, defaults to `2000`):
            Rows in the page. Of a larger data set, as many of every factor (or task, where there is no factor) are
            drawn; the counts on top are of all rows.
        seed (`int`, *optional*, defaults to `0`):
            With the ids of the rows it decides which are drawn.
        open_browser (`bool`, *optional*, defaults to `True`):
            Whether to open the file in the browser.

    Returns:
        `Path`: the file.

    Raises:
        `ValueError`: a JSON file is broken, or `max_rows` is below 1.
        `FileNotFoundError`: there is nothing at `path`.

    Example:

    ```python
    >>> from trl_temporal.report.data_view import view
    >>> view("preferences", "preferences.html")  # doctest: +SKIP
    ```
    """
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}; it must be at least 1")
    splits = _load(path)
    ids, facets, places = [], {name: [] for name in FACETS}, []
    for split in splits:
        places += [(split, index) for index in range(len(split.rows))]
        ids += [text_or_empty(id) or f"{split.name} row {index}" for index, id in enumerate(_column(split, "id"))]
        for name in ("factor", "task"):
            facets[name] += map(text_or_empty, _column(split, name))
        facets["split"] += [split.name] * len(split.rows)
    groups = facets["factor"] if any(facets["factor"]) else facets["task"]
    chosen = choose_balanced(ids, groups, max_rows, seed)

    anchors: Counter = Counter()
    records = []
    for place in chosen:
        split, index = places[place]
        record = row_record(split.rows[index], split.kind) | {"id": ids[place], "split": split.name}
        # An id that several rows have must still lead to each of them. Addresses hold no half of a surrogate pair.
        anchor = ids[place].encode("utf-8", "replace").decode()
        anchors[anchor] += 1
        records.append(record | {"anchor": anchor if anchors[anchor] == 1 else f"{anchor}~{anchors[anchor]}"})

    is_pairs = bool(splits) and all(split.kind == "preference" for split in splits)
    name = Path(path).resolve().name
    page = (
        page_environment()
        .get_template("data_view.html.j2")
        .render(
            title=name,
            noun="preference pairs" if is_pairs else "rows",
            num_rows=len(ids),
            num_shown=len(chosen),
            balanced_over="factor" if any(facets["factor"]) else "task",
            seed=seed,
            num_faults=sum(bool(record["fault"]) for record in records),
            counts={
                facet: _counts(values)
                for facet, values in facets.items()
                if any(values) and (facet != "split" or len(set(values)) > 1)
            },
            meaning=MEANING,
            histogram=_histogram(splits),
            is_compared=any(split.kind == "preference" for split in splits),
            records=records,
        )
    )
    output = Path(f"{name}.view.html") if output is None else Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Lone surrogates, which JSON allows and UTF-8 does not, become question marks.
    output.write_text(page, encoding="utf-8", errors="replace")
    if open_browser:
        webbrowser.open(output.resolve().as_uri())
    return output
