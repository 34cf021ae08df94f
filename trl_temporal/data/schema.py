# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The rows that the trainers and the evaluation read, and the checks that name the row and the fault."""

import heapq
import itertools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import datasets

from .column_checks import suspicious_rows
from .errors import ColumnError, RowError
from .media import VideoEntry, coerce_images, coerce_videos, video_key
from .row_checks import (
    COMMON_COLUMNS,
    DURATION_SLACK_S,
    EVALUATION_COLUMNS,
    RESPONSES,
    Message,
    check_row,
    span_fault,
    strip_none_parts,
)

__all__ = [
    "DURATION_SLACK_S",
    "EVALUATION_FEATURES",
    "MESSAGES_FEATURE",
    "PREFERENCE_FEATURES",
    "SFT_FEATURES",
    "SPANS_FEATURE",
    "VIDEOS_FEATURE",
    "EvaluationRow",
    "Message",
    "PreferenceRow",
    "PromptRow",
    "RowError",
    "RowFault",
    "RowKind",
    "SFTRow",
    "VideoEntry",
    "coerce_images",
    "coerce_videos",
    "filter_bad_rows",
    "find_faults",
    "kind_of",
    "span_fault",
    "strip_none_parts",
    "validate",
    "validate_dataset",
    "validate_row",
    "video_key",
    "without_video_decoding",
]

RowKind = Literal["sft", "preference", "evaluation", "prompt"]
Interval = Sequence[float]  # [start_s, end_s]

BATCH_SIZE = 10_000  # rows that are checked at a time


class PromptRow(TypedDict):
    """
    What every row has: a question about at most one video, and any number of images. Times are seconds from the start
    of the crop.
    """

    prompt: list[Message]
    videos: NotRequired[list[VideoEntry]]
    images: NotRequired[list]
    prompt_spans: NotRequired[list[Interval]]
    objects: NotRequired[list[str]]
    duration: NotRequired[float]
    id: NotRequired[str]
    task: NotRequired[str]
    source: NotRequired[str]


class SFTRow(PromptRow):
    """A row with the response to learn; `spans` holds one interval per `<evi>` of its evidence stage, in order."""

    completion: list[Message]
    spans: list[Interval]
    response_spans: NotRequired[list[Interval]]
    answer: NotRequired[str]
    captions: NotRequired[list[str]]
    all_spans: NotRequired[list[Interval]]


class EvaluationRow(SFTRow):
    """A row to score: with the options of a multiple choice and the right one, or how salient each clip is."""

    options: NotRequired[list[str]]
    answer_index: NotRequired[int]
    saliency: NotRequired[list[float]]


class PreferenceRow(PromptRow):
    """A row with a better and a worse response, and what was perturbed to get the worse one."""

    chosen: list[Message]
    rejected: list[Message]
    chosen_spans: list[Interval]
    rejected_spans: list[Interval]
    source_id: NotRequired[str]
    captions: NotRequired[list[str]]
    factor: NotRequired[str]
    factor_args: NotRequired[str]
    generator_version: NotRequired[str]
    keep_ratio: NotRequired[int]


# Features of the columns that Arrow would otherwise guess from the values (a field that no row uses becomes `null`).
_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("float64")
MESSAGES_FEATURE = datasets.List({"role": _TEXT, "content": datasets.List({"type": _TEXT, "text": _TEXT})})
SPANS_FEATURE = datasets.List(datasets.List(_NUMBER))
VIDEOS_FEATURE = datasets.List(
    {"path": _TEXT, "start_s": _NUMBER, "end_s": _NUMBER, "frames_dir": _TEXT, "fps": _NUMBER}
)
_PROMPT_FEATURES = {
    "id": _TEXT,
    "source": _TEXT,
    "task": _TEXT,
    "videos": VIDEOS_FEATURE,
    "prompt": MESSAGES_FEATURE,
    "prompt_spans": SPANS_FEATURE,
}
SFT_FEATURES = datasets.Features(
    {
        **_PROMPT_FEATURES,
        "completion": MESSAGES_FEATURE,
        "spans": SPANS_FEATURE,
        "answer": _TEXT,
        "captions": datasets.List(_TEXT),
        "all_spans": SPANS_FEATURE,
        "duration": _NUMBER,
    }
)
PREFERENCE_FEATURES = datasets.Features(
    {
        **_PROMPT_FEATURES,
        "source_id": _TEXT,
        "chosen": MESSAGES_FEATURE,
        "rejected": MESSAGES_FEATURE,
        "chosen_spans": SPANS_FEATURE,
        "rejected_spans": SPANS_FEATURE,
        "captions": datasets.List(_TEXT),
        "duration": _NUMBER,
        "factor": _TEXT,
        "factor_args": _TEXT,
        "generator_version": _TEXT,
        "keep_ratio": datasets.Value("int32"),
    }
)
EVALUATION_FEATURES = datasets.Features(
    {
        **SFT_FEATURES,
        "options": datasets.List(_TEXT),
        "answer_index": datasets.Value("int32"),
        "saliency": datasets.List(_NUMBER),
    }
)


class RowFault(NamedTuple):
    """One fault of one row; as a string it is the sentence of a [`RowError`]."""

    index: int
    id: Any
    column: str
    fault: str
    mend: str

    def __str__(self) -> str:
        return f"{_row_name(self.index, self.id)}, column '{self.column}': {self.fault}. {self.mend}."


def kind_of(columns: Iterable[str]) -> RowKind:
    """
    Tell what rows are for by their columns.

    Args:
        columns (`Iterable[str]`):
            Names of the columns.

    Returns:
        `str`: `"preference"` where there is a `chosen` or `rejected`, `"evaluation"` where there are `options`,
        `answer_index` or `saliency`, `"sft"` where there is a `completion`, else `"prompt"`.

    Example:

    ```python
    >>> from trl_temporal.data.schema import kind_of
    >>> kind_of(["prompt", "completion", "spans"])
    'sft'
    ```
    """
    columns = set(columns)
    if columns & {"chosen", "rejected"}:
        return "preference"
    if columns & {"options", "answer_index", "saliency"}:
        return "evaluation"
    return "sft" if "completion" in columns else "prompt"


def _check_kind(kind: str) -> None:
    if kind not in RESPONSES:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(map(repr, RESPONSES))}")


def _row_name(index: int | None, id: Any) -> str:
    name = "row" if index is None else f"row {index}"
    return name if id is None else f"{name} (id {id!r})"


def validate_row(row: dict[str, Any], *, kind: RowKind, index: int | None = None) -> None:
    """
    Check one row against the data contract.

    Args:
        row (`dict`):
            A [`SFTRow`], [`PreferenceRow`], [`EvaluationRow`] or [`PromptRow`]; other columns are not looked at.
        kind (`str`):
            `"sft"` (prompt and completion), `"preference"` (prompt, chosen, rejected), `"evaluation"` (like `"sft"`,
            with `options`, `answer_index` and `saliency`) or `"prompt"` (prompt alone).
        index (`int`, *optional*):
            Position of the row in its dataset, for the message.

    Raises:
        [`RowError`]: names the row, the column, the fault and what to do.

    Example:

    ```python
    >>> from trl_temporal.data.schema import validate_row
    >>> row = {
    ...     "videos": ["a.mp4"],
    ...     "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}],
    ...     "completion": [{"role": "assistant", "content": "<evi> </evi> It happens in <evi>."}],
    ...     "spans": [[1.0, 2.5]],
    ... }
    >>> validate_row(row, kind="sft")
    ```
    """
    _check_kind(kind)
    try:
        check_row(row, kind)
    except RowError as error:
        raise RowError(f"{_row_name(index, row.get('id'))}, {error}") from None


def find_faults(
    dataset: datasets.Dataset | Iterable[dict[str, Any]], kind: RowKind, limit: int | None = None
) -> list[RowFault]:
    """
    List what is wrong with a dataset: the first fault of every bad row, and every id that an earlier row has.

    The columns of a `datasets.Dataset` are checked whole, and only rows that look wrong are read one by one.

    Args:
        dataset (`datasets.Dataset` or an iterable of row dictionaries):
            Rows to check. A streaming dataset is read to its end.
        kind (`str`):
            What the rows are for, see [`validate_row`].
        limit (`int`, *optional*):
            Stop after this many faults.

    Returns:
        `list[RowFault]`: `(index, id, column, fault, mend)` of each, in the order of the rows.

    Example:

    ```python
    >>> from trl_temporal.data.schema import find_faults
    >>> [str(fault) for fault in find_faults([{"id": "a", "prompt": None}], "prompt")]
    ["row 0 (id 'a'), column 'prompt': is missing. A row of kind 'prompt' needs the columns prompt."]
    ```
    """
    return list(itertools.islice(_all_faults(dataset, kind), limit))


def validate(dataset: datasets.Dataset | Iterable[dict[str, Any]], kind: RowKind) -> None:
    """
    Check every row of a dataset, and that no two rows have one id; the first fault raises.

    Args:
        dataset (`datasets.Dataset` or an iterable of row dictionaries):
            Rows to check. A streaming dataset is read to its end.
        kind (`str`):
            What the rows are for, see [`validate_row`].

    Raises:
        [`RowError`]: names the row, the column, the fault and what to do.
    """
    for fault in _all_faults(dataset, kind):
        raise RowError(str(fault))


def validate_dataset(dataset: datasets.Dataset | Iterable[dict[str, Any]], kind: RowKind) -> None:
    """
    Check every row of a dataset for training, which needs no ids; the first bad one raises.

    Args:
        dataset (`datasets.Dataset` or an iterable of row dictionaries):
            Rows to check. A streaming dataset is read to its end.
        kind (`str`):
            What the rows are for, see [`validate_row`].

    Raises:
        [`RowError`]: names the row, the column, the fault and what to do.
    """
    for fault in _row_faults(dataset, kind):
        raise RowError(str(fault))


def filter_bad_rows(dataset: datasets.Dataset, kind: RowKind, manifest_path: str | os.PathLike) -> datasets.Dataset:
    """
    Keep the rows that pass [`validate_row`] and list the others in a file, for `on_bad_sample="skip"`.

    Args:
        dataset (`datasets.Dataset`):
            Rows to check.
        kind (`str`):
            What the rows are for, see [`validate_row`].
        manifest_path (`str` or `os.PathLike`):
            JSON-lines file to write, with `index`, `id` and `reason` of every skipped row. Where no row is skipped,
            it is written empty.

    Returns:
        `datasets.Dataset`: the good rows, in order.

    Raises:
        `ValueError`: no row is good.
    """
    skipped = {
        fault.index: {"index": fault.index, "id": fault.id, "reason": str(fault)}
        for fault in _row_faults(dataset, kind)
    }
    manifest_path = Path(manifest_path)
    manifest_path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry) + "\n" for entry in skipped.values()]
    manifest_path.write_text("".join(lines), encoding="utf-8")
    if not skipped:
        return dataset
    total = len(dataset)
    if len(skipped) == total:
        raise ValueError(f"all {total} rows are bad, so no data is left; mend them as {manifest_path} says")
    warnings.warn(f"skipped {len(skipped)} of {total} rows; {manifest_path} says which and why", stacklevel=2)
    return dataset.select([index for index in range(total) if index not in skipped])


def _all_faults(dataset: Iterable[dict[str, Any]], kind: RowKind) -> Iterator[RowFault]:
    """Faults of the rows, and of ids that are there twice, in the order of the rows."""
    _check_kind(kind)
    if isinstance(dataset, datasets.Dataset):
        ids = dataset.select_columns("id").with_format(None)["id"][:] if "id" in dataset.column_names else []
        repeated = _repeated_ids(enumerate(ids))
        return heapq.merge(_row_faults(dataset, kind), repeated, key=lambda fault: fault.index)
    # One pass over what may be a stream.
    first_rows: dict[str, int] = {}
    return (
        fault
        for index, row in enumerate(dataset)
        for fault in itertools.chain(
            _faults_of_row(row, kind, index), _repeated_ids([(index, row.get("id"))], first_rows)
        )
    )


def _repeated_ids(ids: Iterable[tuple[int, Any]], first_rows: dict[str, int] | None = None) -> Iterator[RowFault]:
    first_rows = {} if first_rows is None else first_rows
    for index, id in ids:
        if id is not None and (first := first_rows.setdefault(str(id), index)) != index:
            fault = f"is also the id of row {first}"
            yield RowFault(index, id, "id", fault, "Give every row an id of its own; choices are drawn from it")


def _row_faults(dataset: Iterable[dict[str, Any]], kind: RowKind) -> Iterator[RowFault]:
    """The first fault of every bad row."""
    _check_kind(kind)
    checked = ("id", *COMMON_COLUMNS, *RESPONSES[kind], *RESPONSES[kind].values(), *EVALUATION_COLUMNS)
    if isinstance(dataset, datasets.Dataset):
        columns = [column for column in dataset.column_names if column in checked]
        # A table without columns would have no rows either.
        dataset = dataset.select_columns(columns) if columns else [{}] * len(dataset)
    if not isinstance(dataset, datasets.Dataset):
        for index, row in enumerate(dataset):
            yield from _faults_of_row(row, kind, index)
        return
    # Batches of Arrow tables: memory stays flat, and no image or video is decoded on the way.
    index = 0
    for table in without_video_decoding(dataset).with_format("arrow").iter(batch_size=BATCH_SIZE):
        suspicious = suspicious_rows(table, kind).nonzero()[0]
        rows = table.take(suspicious).to_pylist()
        for position, row in zip(suspicious.tolist(), rows, strict=True):
            yield from _faults_of_row(row, kind, index + position)
        index += len(table)


def _faults_of_row(row: dict[str, Any], kind: RowKind, index: int) -> list[RowFault]:
    try:
        check_row(row, kind)
    except ColumnError as error:
        return [RowFault(index, row.get("id"), error.column, error.fault, error.mend)]
    return []


def without_video_decoding(dataset: datasets.Dataset) -> datasets.Dataset:
    """
    Turn a `datasets.Video` column `videos` (or a list of them) into paths that the package's own loader reads.

    Args:
        dataset (`datasets.Dataset`):
            Any dataset.

    Returns:
        `datasets.Dataset`: the dataset with `Video(decode=False)` in its `videos` column, or itself.
    """
    feature = dataset.features.get("videos")
    undecoded = datasets.Video(decode=False)
    if isinstance(feature, datasets.Video):
        return dataset.cast_column("videos", undecoded)
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Video):
        return dataset.cast_column("videos", datasets.List(undecoded))
    return dataset
