# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Reading annotation files record by record, with errors that say where a file is broken."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_SPACE = re.compile(r"\s*")


class RecordFault(Exception):
    """The fault of one record, before it is known which file and record it is."""

    def __init__(self, field: str, fault: str, mend: str):
        super().__init__(f"{field}: {fault}. {mend}.")


class Record(NamedTuple):
    """One record of an annotation file: where it stands, its position, and its content, or why it has none."""

    where: str
    index: int
    data: Any


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file; a file that is something else is an error that names the byte."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is no UTF-8. Save the file as UTF-8.") from None


def read_json(path: str | os.PathLike) -> Any:
    """The JSON value in a file; where it breaks off, the error names the byte and the line."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken_json(path, text, error) from None


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: is not a JSON object. Pass the annotation file of this benchmark.")
    return value


def read_json_list(path: str | os.PathLike) -> Iterator[Record]:
    """
    Records of a file that is one JSON list, decoded one at a time.

    Only the text of the file is in memory, not the objects of all its records.
    """
    text = read_text(path)
    decoder = json.JSONDecoder()

    def skip_space(position: int) -> int:
        return _SPACE.match(text, position).end()

    position = skip_space(0)
    if not text.startswith("[", position):
        raise ValueError(f"{path}: is not a JSON list with records. Pass the annotation file of this benchmark.")
    position = skip_space(position + 1)
    index = 0
    try:
        while index == 0 and not text.startswith("]", position) or index and text.startswith(",", position):
            position = skip_space(position + (index > 0))
            value, position = decoder.raw_decode(text, position)
            yield _object_record(f"record {index}", index, value)
            index += 1
            position = skip_space(position)
        if not text.startswith("]", position):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        position = skip_space(position + 1)
        if position < len(text):
            raise json.JSONDecodeError("Text behind the list", text, position)
    except json.JSONDecodeError as error:
        raise _broken_json(path, text, error, f"record {index}, ") from None


def read_json_lines(path: str | os.PathLike) -> Iterator[Record]:
    """Records of a file with one JSON object a line. A broken line is a bad record; empty lines are passed over."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # no JSON, or no UTF-8
                value = RecordFault("line", f"is no valid JSON ({error})", "Write one object a line, in UTF-8")
            yield _object_record(f"line {number}", number - 1, value)


def read_csv(path: str | os.PathLike, columns: Iterable[str]) -> Iterator[Record]:
    """Records of a CSV file with a header, which has to have the `columns`."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if missing := [column for column in columns if column not in (reader.fieldnames or [])]:
            raise ValueError(f"{path}: has no column '{missing[0]}'. Give the first line the names of the columns.")
        for index, row in enumerate(reader):
            if None in row or None in row.values():
                row = RecordFault("line", "has more or fewer fields than the header", "Quote fields with commas")
            yield Record(f"line {reader.line_num}", index, row)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: is no CSV ({error}). Mend the line.") from None


def _object_record(where: str, index: int, value: Any) -> Record:
    if not isinstance(value, dict | RecordFault):
        value = RecordFault("record", f"is {value!r:.60}, not an object", 'Write {"key": value, ...}')
    return Record(where, index, value)


def _broken_json(path: str | os.PathLike, text: str, error: json.JSONDecodeError, record: str = "") -> ValueError:
    byte = len(text[: error.pos].encode())
    ends_here = not text[error.pos :].strip() or error.msg.startswith("Unterminated string")
    fault = "the JSON stops before its end" if ends_here else "the JSON is broken"
    mend = "The file is incomplete; fetch it again" if ends_here else "Mend it there, or fetch the file again"
    return ValueError(f"{path}: {fault}, at {record}byte {byte}, line {error.lineno} ({error.msg}). {mend}.")


def records_of_subset(
    path: str | os.PathLike, videos: dict[str, dict[str, Any]], subset: str | None
) -> Iterator[Record]:
    """
    Records of an object `{video: annotation}`, with the name in the annotation's `video`.

    Where the annotations have a `subset`, those of the subset that is asked for; a file with several needs it.
    """
    annotations = [annotation for annotation in videos.values() if isinstance(annotation, dict)]
    counts = Counter(str(annotation["subset"]) for annotation in annotations if "subset" in annotation)
    names = ", ".join(f"'{name}' ({count} videos)" for name, count in counts.items()) or "none"
    if subset is not None and subset not in counts:
        raise ValueError(f"{path}: has no subset '{subset}'. It has: {names}.")
    if subset is None and len(counts) > 1:
        raise ValueError(f"{path}: has several subsets: {names}. Choose one with subset=...")
    for index, (video, annotation) in enumerate(videos.items()):
        if not isinstance(annotation, dict):
            annotation = RecordFault("annotation", f"is {annotation!r:.60}", "Write an object")
        elif subset is not None and annotation.get("subset") != subset:
            continue
        else:
            annotation = {**annotation, "video": video}
        yield Record(f"video '{video}'", index, annotation)


def read_durations(path: str | os.PathLike | None) -> dict[str, float]:
    """
    Durations of videos by name, without suffix.

    The file is a JSON object `{video: seconds}`, or a CSV file with the columns `id` or `video`, and `length` or
    `duration` (the files of Charades have `id` and `length`). Without a path there are none.
    """
    if path is None:
        return {}
    if Path(path).suffix == ".json":
        pairs = list(read_json_object(path).items())
    else:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns = reader.fieldnames or []
        name = next((column for column in ("id", "video") if column in columns), None)
        length = next((column for column in ("length", "duration") if column in columns), None)
        if name is None or length is None:
            raise ValueError(f"{path}: has the columns {', '.join(columns)}. It needs 'id' and 'length'.")
        pairs = [(row[name], row[length]) for row in reader]
    durations = {}
    for video, seconds in pairs:
        try:
            durations[os.path.splitext(video)[0]] = float(seconds)
        except (TypeError, ValueError):
            raise ValueError(f"{path}: the duration of '{video}' is {seconds!r}. Give seconds.") from None
    return durations
