# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""One self-contained HTML file that shows what a run did."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.evaluator import EvaluationResult
from ..evaluation.table import (
    COLUMNS,
    COMPARED,
    LOWER_IS_BETTER,
    baseline_metrics,
    format_score,
    paired_differences,
)
from ..video import Video
from .curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve_groups, factor_table
from .pages import page_environment, settings_groups
from .timeline import choose_rows, example, preference_pair, read_thumbnails

SYNTHETIC_NOTE = (
    "EventWorld is a synthetic world and the models are tiny: these numbers prove that every part is connected and "
    "which way things move. They are not a paper's table."
)
FACTOR_MEANING = {
    "shift": "one or more intervals are moved in time",
    "add": "an event that is not there is added",
    "delete": "one or more events are left out",
    "merge": "two neighbouring events become one",
    "distort": "one or more facts in the words are changed",
    "repeat": "an event takes the words of the one before it",
    "drop": "a part of the video is dropped",
    "shuffle": "parts of the video are shuffled",
    "reverse": "the video runs backwards",
}


def _results_table(results: Mapping[str, EvaluationResult]) -> dict:
    metrics = {name: result.metrics for name, result in results.items()}
    columns = [metric for metric in COLUMNS if any(metric in scores for scores in metrics.values())]
    best = {}
    for metric in columns:
        choose = min if metric in LOWER_IS_BETTER else max
        shown = {format_score(scores[metric]) for scores in metrics.values()}
        best[metric] = choose(shown) if len(shown) > 1 else None

    def cells(scores: Mapping[str, float], is_model: bool) -> list[dict]:
        texts = {metric: format_score(scores.get(metric)) for metric in columns}
        return [{"text": text, "is_best": is_model and text == best[metric]} for metric, text in texts.items()]

    return {
        "columns": [COLUMNS[metric].replace("- ", "-") for metric in columns],
        "models": {name: cells(scores, is_model=True) for name, scores in metrics.items()},
        "baselines": {
            name: cells(scores, is_model=False)
            for name, scores in baseline_metrics(next(iter(results.values()))).items()
        },
    }


def _difference_rows(results: Mapping[str, EvaluationResult], compare: tuple[str, str]) -> list[dict]:
    """Differences as dots with whiskers on an axis that 0 is the middle of; places are percents of its width."""
    differences = paired_differences(dict(results), compare)
    reach = 1.1 * max((max(abs(low), abs(high)) for _, low, high in differences.values()), default=0) or 1.0

    def place(value: float) -> float:
        return 50 + 50 * value / reach

    rows = []
    for metric, (difference, low, high) in differences.items():
        includes_zero = low <= 0 <= high
        is_better = (difference < 0) == (metric in LOWER_IS_BETTER)
        rows.append(
            {
                "metric": COMPARED[metric],
                "lower_is_better": metric in LOWER_IS_BETTER,
                "difference": f"{difference:+.3f}".replace("-", "−"),
                "interval": f"[{low:+.3f}, {high:+.3f}]".replace("-", "−"),
                "dot": place(difference),
                "low": place(low),
                "width": place(high) - place(low),
                "reading": "not told apart from 0" if includes_zero else ("better" if is_better else "worse"),
            }
        )
    return rows


def _readings(results: Mapping[str, EvaluationResult]) -> list[str]:
    """What the grounding numbers say against the baseline that needs no question."""
    sentences = []
    for name, result in results.items():
        metrics = result.metrics
        if "grounding_f1_all_events" not in metrics:
            continue
        margin = metrics["grounding_f1"] - metrics["grounding_f1_all_events"]
        sentences.append(
            f"{name}: grounding F1 is {abs(margin):.3f} {'above' if margin > 0 else 'below'} answering every event of "
            f"the video; {metrics['grounding_count_accuracy']:.0%} of its answers have the exact number of intervals, "
            f"{metrics['grounding_over_answering']:.0%} too many."
        )
    return sentences


def _preference_section(
    preference_rows: Sequence[Mapping],
    log_histories: Mapping[str, Sequence[Mapping]],
    read_video: Callable[[str | dict], Video],
) -> dict | None:
    counts = Counter(row["factor"] for row in preference_rows)
    if not counts:
        return None
    # The middle row of every factor: neighbouring rows often show the same video.
    of_factor = {factor: [row for row in preference_rows if row["factor"] == factor] for factor in counts}
    pairs = [preference_pair(rows[len(rows) // 2], read_video) for rows in of_factor.values()]
    return {
        "counts": counts,
        "pairs": pairs,
        "meaning": FACTOR_MEANING,
        "logged": factor_table(log_histories, list(counts)),
    }


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    results: Mapping[str, EvaluationResult],
    rows: Sequence[Mapping],
    settings: Mapping[str, Any],
    log_histories: Mapping[str, Sequence[Mapping]] | None = None,
    preference_rows: Sequence[Mapping] = (),
    read_video: Callable[[str | dict], Video] = read_thumbnails,
    num_examples: int = 8,
    compare: tuple[str, str] | None = None,
    salience_threshold: float = 0.6,
    note: str = SYNTHETIC_NOTE,
) -> Path:
    """
    Write one HTML file with the metrics, the curves, per-video timelines and preference pairs of a run.

    The file holds its style, script and pictures, asks for nothing outside itself and stays below 5 MB.

    Args:
        path (`str`):
            The file to write; its folder is made.
        title (`str`):
            Title of the page.
        results (`Mapping[str, EvaluationResult]`):
            Results by model name, all on `rows`, in the order of the table.
        rows (`Sequence[Mapping]`):
            The evaluated rows.
        settings (`Mapping[str, Any]`):
            What was run; a nested mapping becomes a group of its own.
        log_histories (`Mapping[str, Sequence[Mapping]]`, *optional*):
            `trainer.state.log_history` by the name of the run.
        preference_rows (`Sequence[Mapping]`, *optional*):
            Preference rows with `chosen`, `rejected`, their spans and `factor`; one pair of every factor is shown.
        read_video (`Callable`, *optional*):
            Reader of the entries of `videos`, for the thumbnails. By default the files are decoded.
        num_examples (`int`, *optional*, defaults to `8`):
            Evaluated rows to show, evenly spread over tasks and rows.
        compare (`tuple[str, str]`, *optional*):
            Names of two models; the second is subtracted from the first. No differences are shown by default.
        salience_threshold (`float`, *optional*, defaults to `0.6`):
            The model's threshold, drawn into the similarity curves as this share of their maximum.
        note (`str`, *optional*):
            What the numbers prove and what they do not. By default it speaks of EventWorld.

    Returns:
        `Path`: the file.

    Example:

    ```python
    write_report(
        "outputs/report.html",
        title="FPO on EventWorld",
        results={"start": start, "SFT continued": sft, "FPO": fpo},
        rows=dataset["test"],
        settings={"command": "examples/fpo.py", "FPO": {"beta": 0.1}},
        log_histories={"SFT continued": sft_trainer.state.log_history, "FPO": fpo_trainer.state.log_history},
        preference_rows=preferences,
        compare=("FPO", "SFT continued"),
    )
    ```
    """
    rows = list(rows)
    for name, result in results.items():
        if len(result.answers) != len(rows):
            raise ValueError(
                f"the result of {name!r} has {len(result.answers)} answers for {len(rows)} rows; pass the rows that "
                "it was evaluated on"
            )
    log_histories = log_histories or {}
    page = (
        page_environment()
        .get_template("template.html.j2")
        .render(
            title=title,
            note=note,
            num_rows=len(rows),
            num_videos=len(set(next(iter(results.values())).videos)),
            settings=settings_groups(settings),
            table=_results_table(results),
            readings=_readings(results),
            compare=compare,
            differences=_difference_rows(results, compare) if compare else [],
            curves=curve_groups(log_histories),
            runs=list(log_histories),
            chart={
                "width": WIDTH,
                "height": HEIGHT,
                "left": LEFT,
                "right": RIGHT,
                "top": TOP,
                "bottom": HEIGHT - BOTTOM,
            },
            examples=[
                example(rows[index], index, results, read_video, salience_threshold)
                for index in choose_rows(rows, num_examples)
            ],
            salience_threshold=salience_threshold,
            preferences=_preference_section(list(preference_rows), log_histories, read_video),
        )
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
