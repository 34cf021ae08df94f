# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The results of several models in the terminal, with the baselines that they must be read against."""

import math

from rich import box
from rich.console import Console
from rich.table import Table

from .evaluator import EvaluationResult, paired_difference

# Columns of the table: metric, and a heading whose words stand below each other, so that the table fits 80 columns.
COLUMNS = {
    "grounding_f1": "grounding F1",
    "grounding_f1@0.5": "F1 @.5",
    "grounding_count_accuracy": "exact count",
    "grounding_over_answering": "over- answer",
    "dense_f1": "dense F1",
    "caption_exact_match": "caption EM",
    "caption_word_f1": "word F1",
    "qa_exact_match": "QA EM",
}
# Rows below the models: name, and the suffix of its metrics.
BASELINES = {"all events": "all_events", "chance": "chance"}
# Metrics whose paired difference is reported. The two counts tell better grounding from answering more.
COMPARED = {
    "grounding_f1": "grounding F1",
    "grounding_count_accuracy": "exact count",
    "grounding_over_answering": "over-answering",
    "caption_exact_match": "caption EM",
    "qa_exact_match": "QA EM",
}
LOWER_IS_BETTER = {"grounding_over_answering"}


def baseline_metrics(result: EvaluationResult) -> dict[str, dict[str, float]]:
    """
    The baselines as rows of the table.

    Args:
        result ([`EvaluationResult`]):
            Any of the results: baselines depend on the rows alone.

    Returns:
        `dict[str, dict[str, float]]`: metrics of every baseline that has any, under the names of the models' metrics.
    """
    rows = {
        name: {
            metric: result.metrics[f"{metric}_{suffix}"]
            for metric in COLUMNS
            if f"{metric}_{suffix}" in result.metrics
        }
        for name, suffix in BASELINES.items()
    }
    return {name: metrics for name, metrics in rows.items() if metrics}


def paired_differences(
    results: dict[str, EvaluationResult], compare: tuple[str, str]
) -> dict[str, tuple[float, float, float]]:
    """
    Paired differences of two of the models.

    Args:
        results (`dict[str, EvaluationResult]`):
            Results by model name.
        compare (`tuple[str, str]`):
            The two models; the second is subtracted from the first.

    Returns:
        `dict[str, tuple[float, float, float]]`: per metric of `COMPARED` that has rows: difference, and the lower and
        upper end of its 95 % interval.
    """
    first, second = results[compare[0]], results[compare[1]]
    return {metric: paired_difference(first, second, metric) for metric in COMPARED if metric in first.per_row}


def format_score(value: float | None) -> str:
    """A score with three decimals, a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def print_table(
    results: dict[str, EvaluationResult],
    *,
    compare: tuple[str, str] | None = None,
    title: str | None = None,
    console: Console | None = None,
) -> None:
    """
    Print one row a model, the baselines below them, and the paired differences of two models.

    Args:
        results (`dict[str, EvaluationResult]`):
            Results by model name, all on the same rows, in the order of the table.
        compare (`tuple[str, str]`, *optional*):
            Names of two models; the second is subtracted from the first. No differences are printed by default.
        title (`str`, *optional*):
            Title of the table.
        console (`rich.console.Console`, *optional*):
            Where to print; standard output by default.

    Example:

    ```python
    print_table({"start": start, "SFT continued": sft, "FPO": fpo}, compare=("FPO", "SFT continued"))
    ```
    """
    console = console or Console()
    metrics = {name: result.metrics for name, result in results.items()}
    baselines = baseline_metrics(next(iter(results.values())))
    columns = [metric for metric in COLUMNS if any(metric in scores for scores in metrics.values())]

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False, title_justify="left")
    table.add_column("", no_wrap=True)
    for metric in columns:
        width = max(len(word) for word in [*COLUMNS[metric].split(), "0.000"])
        table.add_column(COLUMNS[metric], justify="right", width=width)
    for name, scores in metrics.items():
        is_last = name == list(metrics)[-1]
        table.add_row(name, *(format_score(scores.get(metric)) for metric in columns), end_section=is_last)
    for name, scores in baselines.items():
        table.add_row(name, *(format_score(scores.get(metric)) for metric in columns), style="dim")
    console.print(table)
    console.print()

    malformed = {name: int(scores["malformed"]) for name, scores in metrics.items() if scores["malformed"]}
    if malformed:
        counts = ", ".join(f"{name} {count}" for name, count in malformed.items())
        num_rows = len(next(iter(results.values())).answers)
        console.print(f"Malformed answers (their intervals score 0) of {num_rows}: {counts}.\n")
    if compare is not None:
        console.print(_difference_table(results, compare))


def _difference_table(results: dict[str, EvaluationResult], compare: tuple[str, str]) -> Table:
    table = Table(
        title=f"{compare[0]} − {compare[1]}, paired; 95 % bootstrap interval over videos",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("difference", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("")
    for metric, (difference, low, high) in paired_differences(results, compare).items():
        reading = "the interval includes 0" if low <= 0 <= high else ""
        table.add_row(
            COMPARED[metric], f"{difference:+.3f}", f"[{low:+.3f}, {high:+.3f}]".replace("[", r"\["), reading
        )
    return table
