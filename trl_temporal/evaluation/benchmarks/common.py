# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: rows to answer, and answers as the text that scorers read."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.chat_inputs import format_interval
from ...data.converters.annotation_files import read_json_lines, read_json_list
from ...data.grammar import EVI, EVI_END
from ...data.rows import VIDEO_FIELDS
from ..metrics.time_text import read_spans
from ..run_folder import SavedAnswer

Record = Mapping[str, Any]


def find_annotations(data: str | os.PathLike, names: Sequence[str]) -> Path:
    """
    The annotation file of a benchmark.

    Args:
        data (`str` or `os.PathLike`):
            The file, or a folder that holds it.
        names (`Sequence[str]`):
            Names that the file may have, as patterns, the best first.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: if there is none; the message lists the names.
    """
    data = Path(data)
    if data.is_file():
        return data
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such file or folder. Give the annotation file of the benchmark (--data).")
    for name in names:
        for folder in (".", "*"):
            found = sorted(data.glob(f"{folder}/{name}"))
            if len(found) > 1:
                raise ValueError(f"{data} holds several annotation files: {', '.join(map(str, found))}. Pass one.")
            if found:
                return found[0]
    raise FileNotFoundError(f"{data} holds none of {', '.join(names)}. Give the annotation file itself (--data).")


def list_records(path: str | os.PathLike, key: str) -> list[dict[str, Any]]:
    """
    The records of a JSON list.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        key (`str`):
            Field that every record must have.

    Returns:
        `list[dict]`

    Raises:
        ValueError: if the file is broken, or a record has no such field; the message names the place.
    """
    return [_checked(record.data, key, f"{path}, {record.where}") for record in read_json_list(path)]


def line_records(path: str | os.PathLike, key: str) -> list[dict[str, Any]]:
    """The same for one JSON object a line."""
    return [_checked(record.data, key, f"{path}, {record.where}") for record in read_json_lines(path)]


def load_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Records of a JSON list, or of a `.jsonl` file with one a line.

    Raises:
        ValueError: if the file is broken or has no record.
    """
    read = read_json_lines if Path(path).suffix == ".jsonl" else read_json_list
    records = [_checked(record.data, None, f"{path}, {record.where}") for record in read(path)]
    if not records:
        raise ValueError(f"{path}: has no records")
    return records


def _checked(record: Any, key: str | None, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {record}")
    if key is not None and key not in record:
        raise ValueError(f"{where}: has no field {key!r}. Pass a file of this benchmark.")
    return record


def load_json(path: str | os.PathLike) -> Any:
    """A JSON file, with an error that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}). Save it anew, or pass another file.") from None


def evaluation_row(
    *,
    id: str,
    source: str,
    task: str,
    video: str,
    question: str,
    spans: Sequence[Sequence[float]],
    duration: float | None = None,
    prompt_spans: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """
    A row to answer, in the data contract.

    Args:
        id (`str`):
            Id of the sample in the benchmark.
        source (`str`):
            Name of the benchmark.
        task (`str`):
            `"grounding"`, `"dense"` or `"qa"`.
        video (`str`):
            Name of the video in the annotations.
        question (`str`):
            The user's turn, behind the video.
        spans (`Sequence` of `[start_s, end_s]`):
            True intervals, for the analysis; the benchmark scores with its own record.
        duration (`float`, *optional*):
            Duration of the video in seconds.
        prompt_spans (`Sequence` of `[start_s, end_s]`, *optional*):
            Span of each `<evi>` in the question.

    Returns:
        `dict`: the row.
    """
    return {
        "id": id,
        "source": source,
        "task": task,
        "videos": [dict.fromkeys(VIDEO_FIELDS) | {"path": video}],
        "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}],
        "prompt_spans": None if prompt_spans is None else [list(map(float, span)) for span in prompt_spans],
        "spans": [list(map(float, span)) for span in spans],
        "duration": duration,
    }


def in_words(text: str, spans: Sequence[Sequence[float]] | None) -> str:
    """A response with its intervals written in place of its `<evi>`; those beyond the intervals go."""
    for span in spans or []:
        text = text.replace(EVI, format_interval(span), 1)
    return " ".join(text.replace(EVI, " ").split())


def answer_text(answer: SavedAnswer) -> str:
    """
    An answer as the text that the released scorers read.

    Args:
        answer ([`~trl_temporal.evaluation.run_folder.SavedAnswer`]):
            Answer of a run.

    Returns:
        `str`: `"EVIDENCE </evi>RESPONSE"` of a model with evidence tokens, its times in seconds; else the text.

    Example:
        >>> from trl_temporal.evaluation.benchmarks.common import answer_text
        >>> from trl_temporal.evaluation.run_folder import SavedAnswer
        >>> answer_text(SavedAnswer("1", "It happens in <evi>.", [[1, 2.5]], [[1, 2.5]], [], 9.0, []))
        '1.0 - 2.5 </evi>It happens in 1.0 - 2.5.'
    """
    if answer.response is None:
        return answer.text
    evidence = "".join(f"{format_interval(span)} " for span in answer.evidence or [])
    return f"{evidence}{EVI_END}{in_words(answer.text, answer.response)}"


def span_prediction(answer: SavedAnswer) -> dict[str, Any]:
    """What the span metrics take: the intervals themselves where the model has them, else the text to read."""
    prediction = {"id": answer.id, "text": answer_text(answer)}
    return prediction if answer.response is None else {**prediction, "spans": answer.response}


def answer_spans(answer: SavedAnswer) -> list[list[float]]:
    """The intervals of an answer: the model's own, or those that its text tells."""
    if answer.response is not None:
        return answer.response
    return [list(span) for span in read_spans(answer.text).spans]
