# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Line charts of a trainer's log, laid out in SVG coordinates."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..evaluation.table import BASELINES

FACTORS = ("shift", "add", "delete", "merge", "distort", "repeat", "drop", "shuffle", "reverse")

# Size of a chart and of the margins around its plot, in SVG units.
WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 34

MAX_POINTS = 400  # more than the pixels of a chart only make the file larger
MIN_POINTS_TO_SMOOTH = 20

# Logged, but not about learning.
_NOT_DRAWN = re.compile(r"step|epoch|total_flos|train_.*|.*num_(input_)?tokens.*|.*(runtime|_per_second|_time)")
_BASELINE_OF = {suffix: name for name, suffix in BASELINES.items()}


@dataclass
class Line:
    """One line of a chart; `points` are SVG coordinates, `smooth` is empty for short series."""

    label: str
    colour: int
    is_baseline: bool
    steps: list[float]
    values: list[float]
    points: str = ""
    smooth: str = ""


@dataclass
class Chart:
    """A chart with its ticks: `(position, label)` in SVG coordinates."""

    title: str
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)

    @property
    def hover(self) -> list[dict]:
        """What the script shows under the pointer."""
        return [
            {
                "label": line.label,
                "colour": line.colour,
                "x": [float(point.split(",")[0]) for point in line.points.split()],
                "step": line.steps,
                "value": [float(f"{value:.4g}") for value in line.values],
            }
            for line in self.lines
            if not line.is_baseline
        ]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """
    Round numbers between two values.

    Args:
        low (`float`):
            Smallest value.
        high (`float`):
            Largest value, above `low`.
        count (`int`, *optional*, defaults to `5`):
            About how many ticks.

    Returns:
        `list[float]`: multiples of 1, 2 or 5 times a power of ten.

    Example:
        >>> from trl_temporal.report.curves import nice_ticks
        >>> nice_ticks(0, 23)
        [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = min((multiple * power for multiple in (1, 2, 5, 10)), key=lambda step: abs((high - low) / step - count))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Average over about a tenth of the series around every point, weighted by a Hann window."""
    window = np.hanning(max(len(values) // 10, 3) + 2)[1:-1]
    window = window if len(window) % 2 else window[1:]
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _is_noisy(values: np.ndarray) -> bool:
    """Whether a series goes up and down so much that a smoothed line helps."""
    return len(values) >= MIN_POINTS_TO_SMOOTH and np.abs(np.diff(values)).sum() > 3 * np.ptp(values)


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"


def _lay_out(chart: Chart) -> Chart:
    steps = np.concatenate([line.steps for line in chart.lines])
    values = np.concatenate([line.values for line in chart.lines])
    x_low, x_high = 0.0, float(max(steps.max(), 1))
    padding = 0.06 * (values.max() - values.min()) or 0.05 * abs(values.max()) or 0.05
    y_low, y_high = float(values.min() - padding), float(values.max() + padding)
    if values.min() >= 0:
        y_low = max(y_low, 0.0)

    def place_x(step):
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def place_y(value):
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    def polyline(steps, values):
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(place_x(steps), place_y(values), strict=True))

    chart.x_ticks = [(place_x(tick), _label(tick)) for tick in nice_ticks(x_low, x_high)]
    chart.y_ticks = [(place_y(tick), _label(tick)) for tick in nice_ticks(y_low, y_high)]
    for line in chart.lines:
        if line.is_baseline:  # a constant: over the whole width
            line.points = polyline(np.array([x_low, x_high]), np.array([line.values[-1]] * 2))
            continue
        steps, values = np.array(line.steps), np.array(line.values)
        smoothed = _smooth(values) if _is_noisy(values) else None
        kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).round().astype(int))
        line.steps, line.values = steps[kept].tolist(), values[kept].tolist()
        line.points = polyline(steps[kept], values[kept])
        if smoothed is not None:
            line.smooth = polyline(steps[kept], smoothed[kept])
    return chart


def read_series(history: Sequence[Mapping]) -> dict[str, tuple[list[float], list[float]]]:
    """
    Series of a trainer's log.

    Args:
        history (`Sequence[Mapping]`):
            `trainer.state.log_history`.

    Returns:
        `dict[str, tuple[list[float], list[float]]]`: steps and finite values of every key that is about learning.
    """
    series: dict[str, tuple[list[float], list[float]]] = {}
    for entry in history:
        for key, value in entry.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if is_number and not _NOT_DRAWN.fullmatch(key):
                steps, values = series.setdefault(key, ([], []))
                steps.append(entry.get("step", len(steps)))
                values.append(value)
    return series


def _split(key: str) -> tuple[str, str | None, str | None]:
    """Key without its variant (a factor or an IoU threshold), the variant, and the baseline that it stands for."""
    baseline = next((suffix for suffix in _BASELINE_OF if key.endswith(f"_{suffix}")), None)
    if baseline:
        key = key.removesuffix(f"_{baseline}")
    stem, _, variant = key.rpartition("/")
    if variant in FACTORS:
        return stem, variant, baseline
    stem, _, variant = key.rpartition("@")
    return (stem + "@", variant, baseline) if stem else (key, None, baseline)


def _group(key: str) -> str:
    if "loss" in key:
        return "Losses"
    if key.startswith("eval_"):
        return "Validation"
    if key.split("/")[0] in ("rewards", "logps", "grounding_logps", "logits", "margins", "accuracies"):
        return "Preference"
    return "Optimisation"


def curve_groups(log_histories: Mapping[str, Sequence[Mapping]]) -> dict[str, list[Chart]]:
    """
    Charts of everything that was logged.

    One chart a key with a line per run; the variants of one key (per factor, per IoU threshold) share a chart per run,
    and baselines are dashed lines in the chart of their metric.

    Args:
        log_histories (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` of every run, by name.

    Returns:
        `dict[str, list[Chart]]`: charts by group (losses, validation, preference, optimisation); empty groups are left
        out.
    """
    charts: dict[tuple[str, str | None], Chart] = {}
    baselines: list[tuple[str, Line]] = []
    for colour, (run, history) in enumerate(log_histories.items()):
        for key, (steps, values) in read_series(history).items():
            stem, variant, baseline = _split(key)
            if baseline:
                if variant is None:
                    baselines.append((stem, Line(_BASELINE_OF[baseline], 0, True, steps, values)))
                continue
            name = (
                stem.rstrip("@")
                if variant is None
                else f"{stem.rstrip('@')} by " + ("IoU threshold" if stem.endswith("@") else "factor")
            )
            of_run = None if variant is None else run
            chart = charts.setdefault((stem, of_run), Chart(name if of_run is None else f"{name}, {run}"))
            line_colour = colour if variant is None else len(chart.lines)
            chart.lines.append(Line(variant or run, line_colour, False, steps, values))
    for stem, line in baselines:
        chart = charts.get((stem, None))
        if chart and line.label not in [other.label for other in chart.lines]:
            chart.lines.append(line)

    groups: dict[str, list[Chart]] = {"Losses": [], "Validation": [], "Preference": [], "Optimisation": []}
    for (stem, _), chart in sorted(charts.items(), key=lambda item: item[0][1] is not None):  # families last
        groups[_group(stem)].append(_lay_out(chart))
    return {name: members for name, members in groups.items() if members}


def factor_table(log_histories: Mapping[str, Sequence[Mapping]], factors: Sequence[str]) -> list[dict]:
    """
    Margin and preference accuracy of every factor at the start and at the end of training.

    Args:
        log_histories (`Mapping[str, Sequence[Mapping]]`):
            Logs by run; keys such as `margins/shift` and `accuracies/shift` are read.
        factors (`Sequence[str]`):
            Factors of the preference rows.

    Returns:
        `list[dict]`: `factor`, and `margin` and `accuracy` as `(first, last)` where they were logged.
    """
    logged: dict[str, list[float]] = {}
    for history in log_histories.values():
        logged |= {key: values for key, (_, values) in read_series(history).items() if not key.startswith("eval_")}
    table = []
    for factor in factors:
        found = {}
        for column, word in (("margin", "margins"), ("accuracy", "accuracies")):
            key = next((key for key in logged if key.endswith(f"{word}/{factor}")), None)
            found[column] = (logged[key][0], logged[key][-1]) if key else None
        if any(found.values()):
            table.append({"factor": factor} | found)
    return table
