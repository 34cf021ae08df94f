# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""One self-contained HTML file about how the evidence tokens of a run look at frames: `trl-temporal analyze`."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.run_folder import read_answers, read_settings, write_json
from .analysis_figures import RECOMMENDED, SIZE, analysis_figures
from .analysis_numbers import AS_TRAINED, LOW_PEAK, MULTIPLES_S, analysis_numbers
from .pages import page_environment, settings_groups


def _f(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", "\u00a0%")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _readings(numbers: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    sentences = []
    if numbers["distribution"]:
        shares = ", ".join(
            f"{_percent(found['auroc_per_token'])} ({stage})"
            for stage, found in numbers["distribution"]["stages"].items()
        )
        sentences.append(
            f"A frame inside the true interval scores above one outside in {shares} of the comparisons that a token "
            "makes; chance is 50 %."
        )
        for stage, found in numbers["distribution"]["stages"].items():
            if found["low_peak"] + found["everywhere"] > 0.01:
                sentences.append(
                    f"Degenerate tokens, {stage}: {_percent(found['low_peak'])} stay below {LOW_PEAK} at every frame, "
                    f"{_percent(found['everywhere'])} find every frame salient."
                )
    if numbers["calibration"]:
        errors = ", ".join(
            f"{_f(found['expected_error'])} ({stage})" for stage, found in numbers["calibration"]["raw"].items()
        )
        sentences.append(
            f"Read as a probability of being inside, similarity is off by {errors} on average; "
            f"{_percent(numbers['calibration']['base_rate'])} of the frames are inside."
        )
    if numbers["sweep"] and "answer" in numbers["sweep"]["stages"]:
        found = numbers["sweep"]["stages"]["answer"]
        low, high = RECOMMENDED
        between = [
            f1
            for t, f1 in zip(numbers["sweep"]["thresholds"], found["f1"], strict=True)
            if low - 1e-9 < t < high + 1e-9
        ]
        sentences.append(
            f"With the configured threshold {numbers['threshold']:g} the answers have an F1 of "
            f"{_f(found['configured_f1'])}; with {found['best_threshold']:g}, the best of .3 to .9 on the same rows, "
            f"it is {_f(found['best_f1'])}. Between .4 and .8 it moves by {_f(max(between) - min(between))}."
        )
    if numbers["alternatives"]:
        others = [entry for entry in numbers["alternatives"]["similarities"] if entry["name"] != AS_TRAINED]
        better = [entry["name"] for entry in others if entry["interval"][0] > 0]
        worse = [entry["name"] for entry in others if entry["interval"][1] < 0]
        alike = [entry["name"] for entry in others if entry["name"] not in better + worse]
        if others:
            groups = (("better", better), ("worse", worse), ("not told apart", alike))
            said = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups if names)
            sentences.append(f"Against the similarity as trained, each at its own threshold: {said}.")
    if numbers["times"]:
        shares = {
            who: [share for share in of_who[str(MULTIPLES_S[1])] if share is not None]
            for who, of_who in numbers["times"]["multiples"].items()
        }
        of_ends = {who: sum(values) / len(values) for who, values in shares.items() if values}
        truth = f", {_percent(of_ends['truth'])} of the true ones" if "truth" in of_ends else ""
        sentences.append(
            f"Multiples of {MULTIPLES_S[1]} s are {_percent(of_ends['predicted'])} of the starts and ends in the "
            f"answers{truth}."
        )
    if numbers["stages"] and numbers["stages"]["mean_iou"] is not None:
        found = numbers["stages"]
        sentences.append(
            f"The intervals of evidence and answer overlap with a mean IoU of {_f(found['mean_iou'])}; "
            f"{_percent(found['below_half'])} of the pairs stay below .5, and {_percent(found['unequal_counts'])} of "
            "the answers have another number of intervals than their evidence."
        )
    return sentences


def _model_name(settings: Mapping[str, Any]) -> str:
    model = settings.get("model") or settings.get("file") or ""
    return str(model.get("name") or "") if isinstance(model, Mapping) else str(model)


def _missing(numbers: Mapping[str, Any]) -> list[str]:
    """What the page lacks, and why."""
    missing = []
    if numbers["tokens"] == 0:
        missing.append(
            "Similarities, calibration, threshold and alternatives are missing: the run holds no similarities of "
            "evidence tokens. A model that writes its times as text has none; its times are read from its answers."
        )
    elif numbers["sweep"] is None:
        missing.append("Everything that needs true intervals is missing: no row with evidence tokens has one.")
    elif numbers["alternatives"] is None:
        missing.append("Other similarities are missing: too few rows to choose thresholds on one half of them.")
    if numbers["times"] is None:
        missing.append("Times are missing: no answer names an interval.")
    if numbers["stages"] is None:
        missing.append("The agreement of the stages is missing: the model has no evidence stage.")
    if numbers["broken"]:
        missing.append(
            f"Answers whose similarities do not fit their intervals or are not finite: {numbers['broken']:,}. They "
            "are left out wherever similarities are needed."
        )
    if numbers["faults"]:
        missing.append(
            f"Rows without an answer, since their video could not be read: {numbers['faults']:,}. F1 counts them as 0."
        )
    if numbers["without_truth"]:
        missing.append(
            f"Answers without a true interval: {numbers['without_truth']:,}. They count only where none is needed."
        )
    return missing


def analyze(
    run_dir: str | os.PathLike, output: str | os.PathLike | None = None, threshold: float | None = None
) -> Path:
    """
    Write one HTML file about how the evidence tokens of a run look at frames: `trl-temporal analyze`.

    It shows the similarities inside and outside the true intervals, their calibration, F1 by threshold, other
    similarities, where the times of the answers lie, and how the two stages agree. The numbers are written next to the
    answers as `analysis.json`. Neither the model nor its videos are needed.

    Args:
        run_dir (`str` or `os.PathLike`):
            Folder of the run, as `trl-temporal eval` writes it; finished or not.
        output (`str` or `os.PathLike`, *optional*):
            The file to write; its folder is made. By default `analysis.html` in the folder of the run.
        threshold (`float`, *optional*):
            The salience threshold to compare with. By default that of the run's settings, else 0.6.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: if the folder holds no answers.
        ValueError: if the threshold is not in `(0, 1]`.

    Example:

    ```python
    >>> from trl_temporal.report.analysis import analyze
    >>> analyze("runs/eventworld")  # doctest: +SKIP
    PosixPath('runs/eventworld/analysis.html')
    ```
    """
    run_dir = Path(run_dir)
    answers = list(read_answers(run_dir))
    try:
        settings = read_settings(run_dir)
    except FileNotFoundError:
        settings = {}
    configured = settings.get("salience_threshold") or 0.6
    numbers = analysis_numbers(
        answers,
        configured if threshold is None else threshold,
        time_rule=settings.get("sampling", {}).get("time_rule") or "interval",
        interval_ties=settings.get("interval_ties") or "first",
    )
    write_json(run_dir / "analysis.json", numbers)

    environment = page_environment()
    environment.filters |= {"f": _f, "percent": _percent, "signed": _signed}
    page = environment.get_template("analysis.html.j2").render(
        name=_model_name(settings) or run_dir.resolve().name,
        benchmark=str(settings.get("benchmark") or ""),
        numbers=numbers,
        as_trained=AS_TRAINED,
        low_peak=LOW_PEAK,
        # Another threshold than the run's gives other intervals; nothing is wrong with that.
        is_own_threshold=threshold is None or threshold == configured,
        readings=_readings(numbers),
        missing=_missing(numbers),
        settings=settings_groups(settings),
        sections=analysis_figures(numbers),
        size=SIZE,
    )
    output = run_dir / "analysis.html" if output is None else Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8", errors="replace")
    return output
