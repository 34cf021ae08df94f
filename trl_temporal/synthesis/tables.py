# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Synthesis on batches of Arrow tables: which factors rows allow, and the pairs of rows as a table."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from datasets.table import table_cast

from ..data.schema import PREFERENCE_FEATURES, SFT_FEATURES, SPANS_FEATURE, find_faults
from .config import RULE_BACKENDS, SynthesisConfig
from .factors import FACTORS
from .preference import (
    GENERATOR_VERSION,
    Distort,
    Pair,
    allowed_mask,
    make_pairs,
    read_events,
    reasons_against,
)
from .shares import to_mask

BATCH_SIZE = 1000
BAD_ROW = 255  # in place of a mask

ROW_FEATURES = datasets.Features({**SFT_FEATURES, "response_spans": SPANS_FEATURE})
NEEDED_COLUMNS = ("id", "task", "prompt", "completion", "spans")
# What the factors read; the other columns never become Python objects.
READ_COLUMNS = [
    "id", "task", "completion", "spans", "answer", "captions", "all_spans", "prompt_spans", "response_spans",
    "duration",
]  # fmt: skip
DISTORT_BIT = to_mask(["distort"])


class Skipped(NamedTuple):
    """A row without a pair, and why."""

    index: int
    id: str | None
    reason: str


def write_rows(rows: Iterable[dict[str, Any]], path: Path, name: str) -> datasets.Dataset:
    """
    Write rows to an Arrow file as they come.

    Args:
        rows (iterable of `dict`):
            SFT rows.
        path (`Path`):
            File to write; it is there when it is whole.
        name (`str`):
            What to call the rows in an error.

    Returns:
        `datasets.Dataset`: the rows in the file.

    Raises:
        `ValueError`: a value is of another type than the column.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with ArrowWriter(path=str(partial), features=ROW_FEATURES) as writer:
        try:
            for row in rows:
                writer.write({column: row.get(column) for column in ROW_FEATURES})
            writer.finalize()
        except (TypeError, AttributeError, pa.ArrowException) as error:
            mend = "Make them with `trl_temporal.data.rows.sft_row`"
            raise ValueError(f"{name}: the rows do not fit `SFT_FEATURES` ({error}). {mend}.") from error
    os.replace(partial, path)
    return datasets.Dataset.from_file(str(path))


class _Hash:
    """A file that keeps nothing but the hash of what is written to it."""

    closed = False

    def __init__(self):
        self.sha256 = hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        pass


def hash_rows(dataset: datasets.Dataset) -> str:
    """SHA-256 of the columns that the synthesis reads, so that a resumed run is known to read the same."""
    columns = [column for column in ROW_FEATURES if column in dataset.column_names]
    sink = _Hash()
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as stream:
            stream.write_table(table.combine_chunks())
    return sink.sha256.hexdigest()


def check_columns(dataset: datasets.Dataset, name: str) -> None:
    """
    Check that a data set has the columns of SFT rows, in types that can be read.

    Args:
        dataset (`datasets.Dataset`):
            The rows.
        name (`str`):
            What to call the data set.

    Raises:
        `ValueError`: names the column and the mend.
    """
    if missing := [column for column in NEEDED_COLUMNS if column not in dataset.column_names]:
        raise ValueError(
            f"{name}: column '{missing[0]}' is missing. Preferences are made from SFT rows, such as those of "
            f"`trl-temporal data convert`, with the columns {', '.join(NEEDED_COLUMNS)}."
        )
    for column in ROW_FEATURES:
        if column not in dataset.column_names:
            continue
        try:
            table = dataset.select_columns([column]).with_format("arrow")[: min(1, len(dataset))]
            table_cast(table, datasets.Features({column: ROW_FEATURES[column]}).arrow_schema)
        except (TypeError, ValueError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{name}: column '{column}' is of type {dataset.features[column]}, not {ROW_FEATURES[column]} "
                f"({error}). Make the rows with `trl_temporal.data.rows.sft_row` and `SFT_FEATURES`."
            ) from None


def read_batches(dataset: datasets.Dataset, rows: range, batch_size: int = BATCH_SIZE) -> Iterator[pa.Table]:
    """The rows of a range as tables with `ROW_FEATURES`; columns that the data set lacks are null."""
    columns = [column for column in ROW_FEATURES if column in dataset.column_names]
    dataset = dataset.select_columns(columns).with_format("arrow")
    schema = ROW_FEATURES.arrow_schema
    for start in range(rows.start, rows.stop, batch_size):
        table = dataset[start : min(start + batch_size, rows.stop)]
        for column in set(ROW_FEATURES) - set(columns):
            table = table.append_column(column, pa.nulls(len(table), schema.field(column).type))
        yield table_cast(table.select(list(ROW_FEATURES)), schema)


def check_rows(
    dataset: datasets.Dataset, rows: range, config: SynthesisConfig, distort: Distort
) -> tuple[np.ndarray, list[Skipped]]:
    """
    Find out which factors the rows of a range allow, and which rows break the data contract.

    Args:
        dataset (`datasets.Dataset`):
            SFT rows.
        rows (`range`):
            Which of them.
        config ([`SynthesisConfig`]):
            Settings.
        distort (`Callable`):
            The distort backend. One that works by rules is asked whether it can falsify a text of each row.

    Returns:
        `tuple[np.ndarray, list[Skipped]]`: bit mask of the factors of each row, `(num_rows,)`, `BAD_ROW` for bad ones,
        and what is wrong with those.
    """
    faults = find_faults(dataset.select(rows), "sft")
    bad = [
        Skipped(rows.start + fault.index, fault.id, str(fault._replace(index=rows.start + fault.index)))
        for fault in faults
    ]
    is_bad = {fault.index for fault in bad}
    masks = np.zeros(len(rows), dtype=np.uint8)
    start = rows.start
    for table in read_batches(dataset, rows):
        batch = table.select(READ_COLUMNS).to_pylist()
        all_events = {}
        for index, row in enumerate(batch, start):
            if index not in is_bad and row["id"] is None:
                bad.append(
                    Skipped(index, None, f"row {index}, column 'id': is missing. Give every row an id of its own.")
                )
                is_bad.add(index)
            if index in is_bad:
                masks[index - rows.start] = BAD_ROW
                continue
            all_events[index] = read_events(row)
            masks[index - rows.start] = allowed_mask(row, all_events[index], hard=config.hard)
        if config.distort in RULE_BACKENDS and config.weights.get("distort"):
            texts = {i: events.texts for i, events in all_events.items() if masks[i - rows.start] & DISTORT_BIT}
            for index in _without_false_text(texts, distort):
                masks[index - rows.start] &= ~np.uint8(DISTORT_BIT)
        start += len(batch)
    return masks, sorted(bad)


def _without_false_text(texts: dict[int, list[str]], distort: Distort) -> set[int]:
    """Rows of which no text can be falsified. The first texts are tried for all rows, then the second where needed."""
    left, rng, position = set(texts), np.random.default_rng(0), 0
    none = set()
    while left:
        tried = sorted(index for index in left if position < len(texts[index]))
        none |= left - set(tried)
        contexts = [{"captions": texts[index]} for index in tried]
        false_texts = distort([texts[index][position] for index in tried], contexts, [rng] * len(tried))
        left = {index for index, text in zip(tried, false_texts, strict=True) if text is None}
        position += 1
    return none


def pair_tables(
    dataset: datasets.Dataset,
    rows: range,
    masks: np.ndarray,
    shares: Mapping[int, Sequence[float]],
    config: SynthesisConfig,
    distort: Distort,
    counts: Counter,
    skipped: list[Skipped],
) -> Iterator[pa.Table]:
    """
    Make the pairs of a range of rows.

    Args:
        dataset (`datasets.Dataset`):
            SFT rows.
        rows (`range`):
            Which of them.
        masks (`np.ndarray` of shape `(num_rows,)`):
            Of [`check_rows`].
        shares (`Mapping[int, Sequence[float]]`):
            Of [`~trl_temporal.synthesis.shares.fit_shares`].
        config ([`SynthesisConfig`]):
            Settings.
        distort (`Callable`):
            The distort backend.
        counts (`collections.Counter`):
            Gets the number of pairs, `("pairs", task, factor)`, and of replaced factors, `("replaced", "", factor)`.
        skipped (`list`):
            Gets the rows without a pair.

    Yields:
        `pyarrow.Table`: the pairs of some rows, with `PREFERENCE_FEATURES`.
    """
    start = rows.start
    for table in read_batches(dataset, rows):
        batch = table.select(READ_COLUMNS).to_pylist()
        batch_masks = masks[start - rows.start : start - rows.start + len(batch)].tolist()
        pairs, replaced = make_pairs(
            batch,
            batch_masks,
            shares,
            config.weights,
            seed=config.seed,
            distort=distort,
            num_pairs_per_row=config.num_pairs_per_row,
            hard=config.hard,
        )
        for factor, count in replaced.items():
            counts["replaced", "", factor] += count
        for pair in pairs:
            counts["pairs", batch[pair.row]["task"] or "", pair.factor] += 1
        done = {pair.row for pair in pairs}
        skipped += [
            Skipped(start + i, row["id"], _why_left_out(row, config))
            for i, row in enumerate(batch)
            if i not in done and batch_masks[i] != BAD_ROW
        ]
        if pairs:
            yield _pair_table(table, batch, pairs, config)
        start += len(batch)


def _why_left_out(row: dict[str, Any], config: SynthesisConfig) -> str:
    against = reasons_against(row, read_events(row), hard=config.hard)
    drawn = [factor for factor in FACTORS if config.weights.get(factor)]
    reasons = [f"{factor}: {against.get(factor, 'it gave no false text')}" for factor in drawn]
    return f"row {row['id']!r} allows none of the factors ({'; '.join(reasons)})"


def _pair_table(table: pa.Table, batch: list[dict], pairs: list[Pair], config: SynthesisConfig) -> pa.Table:
    source = table.take(pa.array([pair.row for pair in pairs]))
    number = [f"-{pair.number}" if config.num_pairs_per_row > 1 else "" for pair in pairs]
    schema = PREFERENCE_FEATURES.arrow_schema
    columns = {
        "id": [f"{batch[pair.row]['id']}{n}-{pair.factor}" for pair, n in zip(pairs, number, strict=True)],
        "source_id": source["id"],
        "chosen": source["completion"],
        "rejected": _messages([pair.response for pair in pairs], schema.field("rejected").type),
        "chosen_spans": source["spans"],
        "rejected_spans": [pair.spans for pair in pairs],
        "factor": [pair.factor for pair in pairs],
        "factor_args": [json.dumps(pair.factor_args, ensure_ascii=False) for pair in pairs],
        "generator_version": [GENERATOR_VERSION] * len(pairs),
        "keep_ratio": pa.nulls(len(pairs), pa.int32()),
    }
    # What a pair shares with its row goes over as it is.
    columns |= {
        name: source[name] for name in PREFERENCE_FEATURES if name in source.column_names and name not in columns
    }
    return pa.table({name: columns[name] for name in PREFERENCE_FEATURES}, schema=schema)


def _messages(texts: list[str], type_: pa.DataType) -> pa.Array:
    """One message of the assistant with one part for each text, without a Python object for any."""
    ends = pa.array(range(len(texts) + 1), pa.int32())
    words = {"role": "assistant", "type": "text"}
    content_type = type_.value_type.field("content").type

    def struct(struct_type: pa.StructType, values: dict[str, pa.Array]) -> pa.Array:
        arrays = [
            values[entry.name] if entry.name in values else pa.array([words[entry.name]] * len(texts), entry.type)
            for entry in struct_type
        ]
        return pa.StructArray.from_arrays(arrays, fields=list(struct_type))

    parts = struct(content_type.value_type, {"text": pa.array(texts, pa.string())})
    content = pa.ListArray.from_arrays(ends, parts, type=content_type)
    return pa.ListArray.from_arrays(ends, struct(type_.value_type, {"content": content}), type=type_)
