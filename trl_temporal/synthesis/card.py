# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The data card of synthesised preferences, and their way to the Hub."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from huggingface_hub import DatasetCardData, HfApi

from .report import SynthesisReport

NUM_EXAMPLES = 3
WHAT_IS_WRONG = {
    "shift": "events are moved",
    "add": "an event is reported that is not there",
    "delete": "events are left out",
    "merge": "two adjacent events are reported as one",
    "distort": "what happens, or the answer, is false",
    "repeat": "an event has the caption of the event before it",
}
SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M", 1e8: "10M<n<100M"}


def write_card(folder: Path, pairs: datasets.DatasetDict, settings: dict[str, Any], report: SynthesisReport) -> None:
    """
    Write the data card of a folder of pairs, `README.md`.

    Args:
        folder (`Path`):
            What `save_to_disk` has written.
        pairs (`datasets.DatasetDict`):
            The pairs in it.
        settings (`dict`):
            `generator_version`, `config` and `rows`, of which the pairs are made.
        report ([`SynthesisReport`]):
            What was counted.
    """
    config = settings["config"]
    sources = sorted({source for dataset in pairs.values() for source in _distinct(dataset, "source")})
    licenses = sorted({config["licenses"][source] for source in sources if source in config["licenses"]})
    data = DatasetCardData(
        pretty_name="Factorised preference pairs",
        license="other" if len(licenses) != 1 else licenses[0],
        task_categories=["video-text-to-text"],
        tags=["preference", "temporal-grounding", "synthetic", "trl_temporal"],
        size_categories=[next((name for size, name in SIZES.items() if report.num_pairs < size), "n>100M")],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}/*.arrow"} for split in pairs],
            }
        ],
    )
    text = f"""---
{data.to_yaml()}
---

# Factorised preference pairs

Pairs of a true and a false answer about a video, for preference optimisation with `trl_temporal`. The chosen answer is
the annotation's; the rejected one is the same but for one factor. Spans are seconds; the k-th `<evi>` of an answer
stands for the k-th span. The videos themselves are not in here.

{_factor_table(report)}

{report.num_pairs:,} pairs from {report.num_rows:,} rows; {report.num_left_out:,} rows allow none of the factors, and
{report.num_bad_rows:,} were bad (`skipped.jsonl` says which and why). "Not allowed by" counts the rows that do not
allow a factor, such as `delete` with a single event; they were given others.

{_task_table(report)}

## Made by

`{settings["generator_version"]}` with seed {config["seed"]}, {config["num_pairs_per_row"]} pair(s) a row, the text
backend `{config["distort"]}` and {"small shifts of 1 to 2 s" if config["hard"] else "shifts to an IoU under 0.5"}.
Every choice follows from the seed and the row's id. SHA-256 of the data files: `{report.content_hash}`.

| rows of | number | SHA-256 |
|---|---|---|
{_lines(f"| {split} | {rows['number']:,} | `{rows['sha256']}` |" for split, rows in settings["rows"].items())}

## Sources and licences

The pairs quote the annotations of their sources and stand under their terms.

| source | licence |
|---|---|
{_lines(f"| {source} | {config['licenses'].get(source, 'not given')} |" for source in sources)}

## Examples

{_examples(pairs)}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _lines(lines) -> str:
    return "\n".join(lines)


def _distinct(dataset: datasets.Dataset, column: str) -> list[str]:
    return [str(value) for value in pc.unique(dataset.data.column(column)).to_pylist() if value is not None]


def _factor_table(report: SynthesisReport) -> str:
    head = (
        "| factor | what is wrong in the rejected answer | pairs | share | asked for | not allowed by |\n" + "|---" * 6
    )
    counts = {factor: sum(row.get(factor, 0) for row in report.pairs.values()) for factor in report.weights}
    rows = (
        f"| `{factor}` | {WHAT_IS_WRONG[factor]} | {counts[factor]:,} | {report.shares[factor]:.1%} | "
        f"{weight:.1%} | {report.infeasible[factor]:,} |"
        for factor, weight in report.weights.items()
    )
    return f"{head}|\n{_lines(rows)}"


def _task_table(report: SynthesisReport) -> str:
    factors = list(report.weights)
    head = f"| task | {' | '.join(factors)} |\n{'|---' * (len(factors) + 1)}|"
    rows = (
        f"| {task} | {' | '.join(f'{counts.get(factor, 0):,}' for factor in factors)} |"
        for task, counts in report.pairs.items()
    )
    return f"{head}\n{_lines(rows)}"


def _examples(pairs: datasets.DatasetDict) -> str:
    """The first pairs with different factors."""
    shown: dict[str, dict[str, Any]] = {}
    for dataset in pairs.values():
        for row in dataset.select_columns(
            ["id", "factor", "prompt", "chosen", "chosen_spans", "rejected", "rejected_spans", "factor_args"]
        ).select(range(min(len(dataset), 1000))):
            if len(shown) < NUM_EXAMPLES and row["factor"] not in shown:
                shown[row["factor"]] = row
    return "\n\n".join(_example(row) for row in shown.values())


def _example(row: dict[str, Any]) -> str:
    question = " ".join(part["text"] for message in row["prompt"] for part in message["content"] if part["text"])
    answers = {
        name: {"text": row[name][0]["content"][0]["text"], "spans": row[f"{name}_spans"]}
        for name in ("chosen", "rejected")
    }
    shown = {"id": row["id"], "question": question, **answers, "factor_args": json.loads(row["factor_args"])}
    # One line for each key, however deep it is.
    body = ",\n".join(f' "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in shown.items())
    return f"`{row['factor']}`:\n\n```json\n{{\n{body}\n}}\n```"


def push_to_hub(folder: str | os.PathLike, repo_id: str, *, private: bool = False) -> str:
    """
    Publish a folder of [`~trl_temporal.synthesis.synthesize_path`], card included.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        repo_id (`str`):
            Data set on the Hub, `org/name`; made where there is none.
        private (`bool`, *optional*, defaults to `False`):
            Whether a new one is private.

    Returns:
        `str`: its address.

    Raises:
        `FileNotFoundError`: there are no finished pairs in the folder.
    """
    if not Path(folder, "synthesis.json").exists():
        raise FileNotFoundError(f"'{folder}' holds no finished pairs; make them with `trl-temporal synthesize`")
    api = HfApi()
    url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, repo_type="dataset", commit_message="Upload preference pairs"
    )
    return str(url)
