# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""On-policy preference rows: the rejected response is the model's own answer, where that is wrong."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import datasets
import pyarrow.parquet as pq
from tqdm import tqdm

from ..data.grammar import EVI, EVI_END, normalize, parse_answer, split_response
from ..data.rows import assistant_message
from ..data.schema import PREFERENCE_FEATURES, RowError, span_fault, validate_row, without_video_decoding
from ..data.shards import write_whole
from ..evaluation.metrics.dense_caption import match_captions, word_f1
from ..evaluation.metrics.grounding import interval_f1, truth_spans
from .preference import GENERATOR_VERSION, response_text

Row = dict[str, Any]
# Spans of an answer come from frames: one may pass the end of the row's video by less than a frame.
OVERHANG_S = 1.0


class Answer(Protocol):
    """What a model said, as in [`~trl_temporal.evaluation.generation.GroundedAnswer`]."""

    text: str
    evidence: Sequence[Sequence[float]]
    response: Sequence[Sequence[float]]


class _Answer(NamedTuple):
    """An answer that can be written as a response: one span for every `<evi>` of its text."""

    text: str
    response: list[list[float]]
    repairs: list[str]


class _MalformedAnswer(ValueError):
    """What is wrong with an answer, in words that are counted, and the details."""


def collect_on_policy(
    dataset: Iterable[Row],
    generate: Callable[[list[Row]], Sequence[Answer]],
    output_dir: str | os.PathLike,
    *,
    max_f1: float = 0.5,
    max_caption_score: float = 0.5,
    model_name: str = "",
    shard_rows: int = 512,
    progress: bool = True,
) -> tuple[datasets.Dataset, dict[str, int]]:
    """
    Collect the wrong answers of a model as rejected responses.

    An answer is kept where its grounding F1 (mean over IoU .1, .3, .5 and .7, of the response stage) is below
    `max_f1`, or its caption score is below `max_caption_score`: the mean word F1 of the captions of found events in a
    dense row, the word F1 of the answer in a question-answering row. The other answers are counted as right.

    A preference row has one list of spans for both stages of its response, so the evidence stage is written again with
    the intervals of the response. An answer whose `<evi>` and intervals do not match cannot be written; it is skipped,
    counted, and listed in `skipped.jsonl`.

    A shard is written as soon as its rows are done. Called again with the same arguments, the function goes on after
    the last one.

    Args:
        dataset (`datasets.Dataset` or an iterable of row dictionaries):
            SFT rows, see [`~trl_temporal.data.schema.SFT_FEATURES`], always in the same order.
        generate (`Callable`):
            Answers rows: a list of rows in, one answer per row out, each with `text`, `evidence` and `response` as in
            [`~trl_temporal.evaluation.generation.GroundedAnswer`].
        output_dir (`str` or `os.PathLike`):
            Folder of the shards (`pairs-00000.parquet`, ...), their counts, `report.json` and `skipped.jsonl`.
        max_f1 (`float`, *optional*, defaults to `0.5`):
            Bound of the grounding F1; 0 keeps nothing for its intervals.
        max_caption_score (`float`, *optional*, defaults to `0.5`):
            Bound of the caption score; 0 keeps nothing for its words.
        model_name (`str`, *optional*, defaults to `""`):
            Name of the model, for `factor_args`.
        shard_rows (`int`, *optional*, defaults to `512`):
            Rows that `generate` gets at once, and that a shard stands for.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `tuple[datasets.Dataset, dict[str, int]]`: rows of [`~trl_temporal.data.schema.PREFERENCE_FEATURES`] with the
        factor `"on_policy"`, and the counts: `rows`, `kept`, `right`, `skipped`, `skipped: <why>` and
        `repaired: <what>`.

    Raises:
        `ValueError`: the folder holds shards of other rows or settings, or `generate` gave another number of answers.

    Example:
        >>> import functools
        >>> from trl_temporal.evaluation.generation import generate_answers
        >>> from trl_temporal.synthesis.on_policy import collect_on_policy
        >>> generate = functools.partial(generate_answers, model, processor)  # doctest: +SKIP
        >>> pairs, counts = collect_on_policy(dataset, generate, "on_policy")  # doctest: +SKIP
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows is {shard_rows}; it must be at least 1")
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    total = len(dataset) if hasattr(dataset, "__len__") else None
    if isinstance(dataset, datasets.Dataset):
        dataset = without_video_decoding(dataset)
    settings = [GENERATOR_VERSION, max_f1, max_caption_score, model_name, shard_rows]

    counts, skipped, paths, files = Counter(), [], [], []
    with tqdm(total=total, desc="Collecting on-policy answers", disable=not progress) as bar:
        for number, rows in enumerate(_batches(dataset, shard_rows)):
            path = output_dir / f"pairs-{number:05d}.parquet"
            key = hashlib.sha256(json.dumps([settings, [row["id"] for row in rows]]).encode()).hexdigest()
            summary = _read_summary(path, key)
            if summary is None:
                summary = {"key": key, **_write_shard(path, rows, generate, max_f1, max_caption_score, model_name)}
                # After the shard: where it is, the shard is whole.
                write_whole(path.with_suffix(".json"), json.dumps(summary))
            counts.update(summary["counts"])
            skipped += summary["skipped"]
            paths.append(path)
            files += [str(path)] if summary["counts"].get("kept") else []  # `datasets` reads no empty ones
            bar.update(len(rows))
    if not paths:
        raise ValueError("the data set has no rows; check what was loaded")
    beyond = set(output_dir.glob("pairs-*.parquet")) - set(paths)
    if beyond:
        raise ValueError(f"{min(beyond)} is of other rows than the data set has now; use a new folder")

    report = {name: counts[name] for name in ("rows", "kept", "right", "skipped")} | dict(sorted(counts.items()))
    write_whole(output_dir / "report.json", json.dumps(report, indent=2))
    write_whole(output_dir / "skipped.jsonl", "".join(json.dumps(entry) + "\n" for entry in skipped))
    if not files:
        return datasets.Dataset.from_dict({name: [] for name in PREFERENCE_FEATURES}, PREFERENCE_FEATURES), report
    return datasets.Dataset.from_parquet(files, cache_dir=str(output_dir / ".cache")), report


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _read_summary(path: Path, key: str) -> dict[str, Any] | None:
    """What was counted in a finished shard, or `None` where it is not finished."""
    summary_path = path.with_suffix(".json")
    if not summary_path.exists():
        return None
    summary = json.loads(summary_path.read_text(encoding="utf-8"))
    if summary["key"] != key:
        raise ValueError(
            f"{path} was made from other rows, another model or other settings; use a new folder, or remove this one"
        )
    return summary


def _write_shard(
    path: Path,
    rows: list[Row],
    generate: Callable[[list[Row]], Sequence[Answer]],
    max_f1: float,
    max_caption_score: float,
    model_name: str,
) -> dict[str, Any]:
    answers = generate(rows)
    if len(answers) != len(rows):
        raise ValueError(f"`generate` gave {len(answers)} answers to {len(rows)} rows; it must give one per row")
    counts, skipped, pairs = Counter(rows=len(rows)), [], []
    for row, given in zip(rows, answers, strict=True):
        try:
            answer = _repair(given, row)
            scores = _scores(row, answer)
            if not _is_wrong(row, answer, scores, max_f1, max_caption_score):
                counts["right"] += 1
                continue
            pair = _pair(row, answer, scores, model_name)
            validate_row(pair, kind="preference")
        except _MalformedAnswer as error:
            counts.update(["skipped", f"skipped: {error.args[0]}"])
            skipped.append({"id": row["id"], "reason": ": ".join(error.args), "answer": given.text})
        except RowError as error:
            counts.update(["skipped", "skipped: breaks the data contract"])
            skipped.append({"id": row["id"], "reason": str(error), "answer": given.text})
        else:
            counts.update(["kept", *(f"repaired: {what}" for what in answer.repairs)])
            pairs.append(pair)
    temporary = path.with_suffix(".part")
    columns = {name: [pair[name] for pair in pairs] for name in PREFERENCE_FEATURES}
    pq.write_table(datasets.Dataset.from_dict(columns, features=PREFERENCE_FEATURES).data.table, temporary)
    os.replace(temporary, path)
    return {"counts": counts, "skipped": skipped}


def _repair(given: Answer, row: Row) -> _Answer:
    """The answer with one span of the row's video for every `<evi>` of its text; what cannot be mended is an error."""
    text, response = given.text.strip(), [list(map(float, span)) for span in given.response]
    repairs = []
    if EVI_END in text:  # the whole response, evidence stage included
        text = split_response(text)[1]
        repairs.append("the evidence stage was part of the text")
    if EVI_END in text:
        raise _MalformedAnswer(f"more than one {EVI_END}")
    if not normalize(text.replace(EVI, "")) and not response:
        raise _MalformedAnswer("no text")
    if text.count(EVI) != len(response):
        raise _MalformedAnswer(f"another number of intervals than of {EVI}")
    if response and not given.evidence:
        repairs.append(f"no {EVI_END}")
    elif len(given.evidence) != len(response):
        repairs.append("the stages had different numbers of intervals")
    duration_s = row.get("duration")
    for span in response:
        if duration_s is not None and duration_s < span[1] <= duration_s + OVERHANG_S and span[0] < duration_s:
            span[1] = float(duration_s)
            repairs.append("clipped at the end of the video")
        if found := span_fault(span, duration_s):
            raise _MalformedAnswer("impossible interval", f"it {found[0]}")
    return _Answer(text, response, repairs)


def _scores(row: Row, answer: _Answer) -> dict[str, float]:
    scores = {"f1": float(interval_f1(truth_spans(row), answer.response).mean())}
    if row["task"] == "dense":
        matched = [(truth, found) for truth, found in match_captions(row, answer) if found is not None]
        found = [word_f1(*pair) for pair in matched]
        scores["caption_score"] = sum(found) / len(found) if found else 0.0
    elif row["task"] == "qa":
        scores["caption_score"] = word_f1(row["answer"], parse_answer(answer.text))
    return {name: round(score, 6) for name, score in scores.items()}


def _is_wrong(row: Row, answer: _Answer, scores: dict, max_f1: float, max_caption_score: float) -> bool:
    if scores["f1"] < max_f1 or scores.get("caption_score", 1.0) < max_caption_score:
        # With a bound above 1, the right answer word for word is still not a rejected one.
        right = split_response(response_text(row))[1], [list(span) for span in row["spans"]]
        return (answer.text, answer.response) != right
    return False


def _pair(row: Row, answer: _Answer, scores: dict[str, float], model_name: str) -> Row:
    text = " ".join([EVI] * len(answer.response) + [EVI_END, answer.text])
    factor_args = {**scores, "model": model_name, "repairs": answer.repairs}
    return {
        **{name: row.get(name) for name in PREFERENCE_FEATURES},
        "id": f"{row['id']}-on_policy",
        "source_id": row["id"],
        "chosen": assistant_message(response_text(row)),
        "rejected": assistant_message(text),
        "chosen_spans": [list(span) for span in row["spans"]],
        "rejected_spans": answer.response,
        "factor": "on_policy",
        "factor_args": json.dumps(factor_args),
        "generator_version": GENERATOR_VERSION,
        "keep_ratio": None,
    }
