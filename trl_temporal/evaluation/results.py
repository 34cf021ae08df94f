# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation leaves behind: a table, files, and a row for the model card."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..data.shards import write_whole
from .metrics.scores import PROBLEMS, Scores
from .run_folder import SavedAnswer, write_json, write_json_lines


@dataclass
class EvaluationRun:
    """
    Scores of one model, or one file of predictions, on a benchmark.

    Attributes:
        benchmark (`str`):
            Name of the benchmark.
        title (`str`):
            Its title.
        scores (`dict[str, Scores]`):
            `"fixed"`, the headline, and `"original"` or `"original (<scorer>)"` beside it.
        settings (`dict`):
            What the answers depend on; `settings_hash` names it.
        original_names (`dict[str, str]`, *optional*):
            Names of numbers in the original scoring, and in the `fixed` one, where they differ: they share a line.
    """

    benchmark: str
    title: str
    scores: dict[str, Scores]
    settings: dict[str, Any]
    original_names: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the `fixed` scoring."""
        return self.scores["fixed"].metrics

    def summary(self) -> str:
        """One line with the first numbers."""
        some = list(self.metrics.items())[:6]
        return f"{self.title}: " + " | ".join(f"{name} {value:.1f}" for name, value in some)

    def print_table(self, console: Console | None = None) -> None:
        """
        Print every number in both scorings, and what was wrong with the predictions.

        Args:
            console (`rich.console.Console`, *optional*):
                Where to print; standard output by default.
        """
        console = console or Console()
        console.print(self._table())
        fixed = self.scores["fixed"]
        for name, reason in fixed.details.get("missing", {}).items():
            console.print(f"Without {name}: {reason}", style="yellow", soft_wrap=True, markup=False)
        for kind, count in fixed.problem_counts().items():
            console.print(f"  {count:>6,}  {kind}: {PROBLEMS[kind]}", highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        coverage = f"{self.scores['fixed'].num_samples:,} samples"
        if self.settings.get("of_rows", 0) > self.settings.get("rows", 0):
            coverage = f"{self.settings['rows']:,} of {self.settings['of_rows']:,} samples"
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column(f"{self.title}, {coverage}\nsettings {self.settings['settings_hash']}", no_wrap=True)
        columns = {
            label: {self.original_names.get(name, name): value for name, value in scores.metrics.items()}
            for label, scores in self.scores.items()
        }
        columns |= self.scores["fixed"].details.get("baselines", {})
        for label in columns:
            table.add_column(label, justify="right")
        for name in dict.fromkeys(name for column in columns.values() for name in column):
            cells = [_format(column.get(name), label.startswith("original")) for label, column in columns.items()]
            table.add_row(name, *cells)
        return table

    def card_rows(self) -> str:
        """
        The numbers for a model card: the `model-index` of its header, and a line of a table.

        Returns:
            `str`: Markdown.
        """
        from huggingface_hub import EvalResult
        from huggingface_hub.repocard_data import eval_results_to_model_index
        from yaml import safe_dump

        fixed = self.scores["fixed"]
        results = [
            EvalResult(
                task_type="video-text-to-text",
                dataset_type=self.benchmark,
                dataset_name=self.title,
                metric_type=name,
                metric_value=round(value, 2),
                dataset_args={"settings": self.settings["settings_hash"]},
            )
            for name, value in fixed.metrics.items()
            if value == value
        ]
        name = self.settings.get("model", {}).get("name", self.settings.get("file", ""))
        index = safe_dump({"model-index": eval_results_to_model_index(name, results)}, sort_keys=False)
        numbers = ", ".join(f"{key} {value:.1f}" for key, value in fixed.metrics.items())
        line = f"| {self.title} | {fixed.num_samples:,} | {numbers} | `{self.settings['settings_hash']}` |"
        heading = "| benchmark | samples | fixed scoring | settings |\n|---|---|---|---|"
        return f"---\n{index}---\n\n{heading}\n{line}\n"


def _format(value: float | None, may_be_share: bool) -> str:
    if value is None:
        return "–"
    if isinstance(value, int | str):
        return str(value)
    # Some original scorers give shares and not percentages.
    return f"{value:.3f}" if may_be_share and 0 < abs(value) < 1 else f"{value:.1f}"


def write_results(
    output_dir: str | os.PathLike,
    run: EvaluationRun,
    answers: Sequence[SavedAnswer] | None,
    original_files: Mapping[str, Any],
) -> None:
    """
    Write what a run has found.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the run. It gets `results.json`, `problems.jsonl`, `card.md`, and of a model's answers
            `predictions.jsonl` in our form and the files of the original form.
        run ([`EvaluationRun`]):
            The scores.
        answers (`Sequence[SavedAnswer]`, *optional*):
            The answers that were scored.
        original_files (`Mapping[str, Any]`):
            Contents of the files in the original form by name; of a `.jsonl` the list of its lines.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if answers is not None:
        fields = ("id", "text", "evidence", "response", "duration_s")
        write_json_lines(
            folder / "predictions.jsonl", ({name: vars(answer)[name] for name in fields} for answer in answers)
        )
    for name, content in original_files.items():
        write = write_json_lines if name.endswith(".jsonl") else write_json
        write(folder / name, content)
    write_json_lines(
        folder / "problems.jsonl",
        (
            {"scoring": label, **problem._asdict()}
            for label, scores in run.scores.items()
            for problem in scores.problems
        ),
    )
    results = {
        "benchmark": run.benchmark,
        "settings_hash": run.settings["settings_hash"],
        "settings": run.settings,
        "scores": {
            label: {
                "metrics": scores.metrics,
                "num_samples": scores.num_samples,
                "problems": scores.problem_counts(),
                "details": scores.details,
            }
            for label, scores in run.scores.items()
        },
    }
    write_whole(folder / "card.md", run.card_rows())
    write_json(folder / "results.json", results)
