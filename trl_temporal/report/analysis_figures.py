# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The figures of the analysis page, laid out in SVG coordinates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .analysis_numbers import AS_TRAINED, MAX_COUNT_DIFFERENCE
from .curves import nice_ticks

# Size of a figure and of the margins around its plot, in SVG units.
WIDTH, HEIGHT = 360, 226
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 40
# Where its plot lies, for the template.
SIZE = {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "top": TOP,
    "bottom": HEIGHT - BOTTOM,
}

RECOMMENDED = (0.4, 0.8)  # the range of thresholds that the page looks at first
STAGE_COLOURS = {"evidence": 3, "answer": 0}


@dataclass
class Figure:
    """
    A figure in SVG coordinates.

    Args:
        title (`str`):
            Its title.
        reading (`str`):
            What it shows, and what a good and a bad one look like.
        x_label (`str`):
            What the x axis counts.
        y_label (`str`):
            What the y axis counts.
        x (`tuple[float, float]`, *optional*, defaults to `(0, 1)`):
            Ends of the x axis.
        y (`tuple[float, float]`, *optional*, defaults to `(0, 1)`):
            Ends of the y axis.
        is_root (`bool`, *optional*, defaults to `False`):
            Whether heights are square roots, so that a tall bar leaves the small ones visible.
    """

    title: str
    reading: str
    x_label: str
    y_label: str
    x: tuple[float, float] = (0, 1)
    y: tuple[float, float] = (0, 1)
    is_root: bool = False
    shapes: list[dict] = field(default_factory=list)
    legend: list[dict] = field(default_factory=list)

    def place_x(self, value: float) -> float:
        """Place of a value in SVG units."""
        return round(LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT), 2)

    def place_y(self, value: float) -> float:
        """Height of a value in SVG units."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        share = math.sqrt(max(share, 0)) if self.is_root else share
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Place and label of the ticks of the x axis."""
        return [(self.place_x(tick), _number(tick)) for tick in nice_ticks(*self.x, count=6)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Height and label of the ticks of the y axis."""
        ticks = [0, 1, 5, 20, 50, 100] if self.is_root else nice_ticks(*self.y, count=5)
        return [(self.place_y(tick), _number(tick)) for tick in ticks if tick <= self.y[1]]

    def bars(
        self, edges: Sequence[float], heights: Sequence[float], label: str, colour: int, is_outline: bool
    ) -> None:
        """A histogram: filled, or the outline of one that is drawn over another."""
        base, places = self.place_y(0), [self.place_x(edge) for edge in edges]
        if is_outline:
            steps = [f"V{self.place_y(y)}H{right}" for y, right in zip(heights, places[1:], strict=True)]
            self.shapes.append(
                {"kind": "outline", "colour": colour, "path": f"M{places[0]} {base}{''.join(steps)}V{base}"}
            )
        for left, right, height, low, high in zip(places, places[1:], heights, edges, edges[1:], strict=False):
            if not height:
                continue
            # The outline has invisible bars, for their titles.
            self.shapes.append(
                {
                    "kind": "ghost" if is_outline else "fill",
                    "colour": colour,
                    "box": (left + 0.5, self.place_y(height), right - left - 1, base - self.place_y(height)),
                    "title": f"{label}, {_number(low)} to {_number(high)}: {height:.1f} %",
                }
            )
        self.legend.append({"label": label, "colour": colour, "kind": "outline" if is_outline else "fill"})

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float | None],
        label: str,
        colour: int,
        is_dashed: bool = False,
        radii: Sequence[float] | None = None,
    ) -> None:
        """A line through points; those without a value are left out."""
        points = [
            (x, y, radius) for x, y, radius in zip(xs, ys, radii or [2.2] * len(ys), strict=True) if y is not None
        ]
        kind = "dashed" if is_dashed else "line"
        path = " ".join(f"{self.place_x(x)},{self.place_y(y)}" for x, y, _ in points)
        self.shapes.append({"kind": kind, "colour": colour, "points": path})
        for x, y, radius in points:
            place = (self.place_x(x), self.place_y(y), round(radius, 2))
            self.shapes.append({"kind": "dot", "colour": colour, "at": place, "title": f"{label}: {x:.3g}, {y:.3f}"})
        self.legend.append({"label": label, "colour": colour, "kind": kind})

    def cloud(self, points: Sequence[Sequence[float]], label: str, colour: int) -> None:
        """Faint points, whose density is what counts."""
        for x, y in points:
            at = (self.place_x(min(x, self.x[1])), self.place_y(min(y, self.y[1])), 2.4)
            self.shapes.append({"kind": "faint", "colour": colour, "at": at, "title": f"{x:.1f} s, {y:.1f} s"})
        self.legend.append({"label": label, "colour": colour, "kind": "faint"})

    def reference(self, start: tuple[float, float], end: tuple[float, float], label: str) -> None:
        """A thin dotted line to compare with."""
        ends = (self.place_x(start[0]), self.place_y(start[1]), self.place_x(end[0]), self.place_y(end[1]))
        self.shapes.append({"kind": "reference", "ends": ends})
        self.legend.append({"label": label, "colour": 0, "kind": "reference"})

    def band(self, low: float, high: float, label: str) -> None:
        """A range of the x axis."""
        box = (self.place_x(low), TOP, self.place_x(high) - self.place_x(low), HEIGHT - TOP - BOTTOM)
        self.shapes.append({"kind": "band", "box": box})
        self.legend.append({"label": label, "colour": 0, "kind": "band"})


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}".replace("-", "−")


def _percents(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _reach(*series: Sequence[float]) -> float:
    """Upper end of an axis for shares in percent."""
    return max(5.0, 1.06 * max(max(values, default=0) for values in series))


def _f1_axis(values: Sequence[float]) -> tuple[float, float]:
    """Zoomed to the values, but never so far that .01 looks like much."""
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max((high - low) * 0.6, 0.05)
    return max(0.0, middle - half), min(1.0, middle + half)


def _similarity_figures(distribution: Mapping) -> list[Figure]:
    figures, edges = [], distribution["edges"]
    for stage, found in distribution["stages"].items():
        inside, outside = _percents(found["inside"]), _percents(found["outside"])
        figure = Figure(
            f"Similarity inside and outside, {stage}",
            "Similarities of frames inside the true interval and of all others; heights grow with the square root. "
            "Good: inside at the right, outside at the left. Bad: the same shape twice.",
            "similarity",
            "% of the frames",
            y=(0, 100),
            is_root=True,
        )
        figure.bars(edges, inside, f"inside ({found['frames_inside']:,} frames)", 2, is_outline=False)
        figure.bars(edges, outside, f"outside ({found['frames_outside']:,})", 1, is_outline=True)
        figures.append(figure)
    peaks = Figure(
        "Highest similarity of every <evi>",
        "How sure a token is of its best frame. Good: most at the right. Bad: a heap at the left. No frame answers to "
        "these tokens, and since the threshold is a share of the maximum they name an interval all the same.",
        "highest similarity over frames",
        "% of the <evi>",
        y=(0, _reach(*(_percents(found["peak"]) for found in distribution["stages"].values()))),
    )
    for stage, found in distribution["stages"].items():
        peaks.bars(edges, _percents(found["peak"]), stage, STAGE_COLOURS[stage], is_outline=stage == "answer")
    return [*figures, peaks]


def _calibration_figures(numbers: Mapping) -> list[Figure]:
    figures = []
    for kind, title, label, reading in (
        (
            "raw",
            "Similarity as a probability",
            "similarity",
            "Frames in ten groups by their similarity; a dot is the share of a group that is inside (larger: more "
            "frames). Good: on the dotted line. Bad: below it, the model is too sure; above it, not sure enough.",
        ),
        (
            "relative",
            "The same, relative to the maximum",
            "similarity ÷ the token's maximum",
            "The decision compares each frame with the best one of its token: this is what the threshold cuts. Good: "
            "low at its left, high at its right. Bad: flat, the threshold then cuts nothing apart.",
        ),
    ):
        figure = Figure(title, reading, label, "share inside")
        figure.reference((0, 0), (1, 1), "said = happened")
        for stage, found in numbers[kind].items():
            radii = [1.8 + 3.2 * math.sqrt(share) for share in found["frames"]]
            label = f"{stage}, error {found['expected_error']:.3f}"
            xs = [0 if x is None else x for x in found["probability"]]
            figure.line(xs, found["inside"], label, STAGE_COLOURS[stage], stage == "evidence", radii)
        figures.append(figure)
    return figures


def _sweep_figures(sweep: Mapping, threshold: float) -> list[Figure]:
    stages = sweep["stages"]
    figure = Figure(
        "F1 by threshold",
        "F1 (mean over IoU .1, .3, .5, .7) if the model's rule ran with another threshold. Good: high and flat, the "
        "choice hardly matters. Bad: a sharp peak, or one that is far from the configured threshold.",
        "threshold, as a share of the maximum",
        "F1",
        x=(0.3, 0.9),
        y=_f1_axis([value for found in stages.values() for value in found["f1"]]),
    )
    figure.band(*RECOMMENDED, "from .4 to .8")
    if 0.3 <= threshold <= 0.9:
        figure.reference((threshold, figure.y[0]), (threshold, figure.y[1]), f"configured, {threshold:g}")
    for stage, found in stages.items():
        figure.line(sweep["thresholds"], found["f1"], stage, STAGE_COLOURS[stage], stage == "evidence")
    return [figure]


def _alternative_figures(alternatives: Mapping) -> list[Figure]:
    figure = Figure(
        "F1 by threshold, every similarity",
        "Each similarity has its own best threshold, here on the half of the rows that chooses it. Good: a high and "
        "wide plateau. Bad: a narrow peak, which another data set would miss.",
        "threshold, as a share of the maximum",
        "F1 of the answer",
        y=(0, min(1.0, 1.06 * max(max(entry["f1_by_threshold"]) for entry in alternatives["similarities"]) or 1.0)),
    )
    for colour, entry in enumerate(alternatives["similarities"]):
        figure.line(
            alternatives["thresholds"], entry["f1_by_threshold"], entry["name"], colour, entry["name"] != AS_TRAINED
        )
    return [figure]


def _time_figures(times: Mapping) -> list[Figure]:
    figures = []
    for key, reach, title, reading, label in (
        (
            "phase",
            1,
            "Where times lie between two frames",
            f"0 is exactly on a frame, .5 is half-way to the next one; they are {_number(times['frame_spacing_s'])} s "
            "apart. Good: spread like the truth. Bad: all at 0, the model cannot answer between frames, and more of "
            "them a second would sharpen its times.",
            "place between two frames",
        ),
        (
            "within_10_s",
            10,
            "Where times lie within 10 s",
            "0 stands for 0, 10, 20 s and so on, 5 for 5, 15, 25 s. Good: spread like the truth, or evenly over the "
            "times of the frames. Bad: tall bars at 0 and 5, the model answers round times.",
            "time modulo 10 s",
        ),
    ):
        shown = {who: _percents(shares) for who, shares in times[key].items()}
        if not shown:
            continue
        num_bins = len(shown["predicted"])
        figure = Figure(title, reading, label, "% of starts and ends", x=(0, reach), y=(0, _reach(*shown.values())))
        edges = [reach * number / num_bins for number in range(num_bins + 1)]
        for who, heights in shown.items():
            figure.bars(edges, heights, who, 1 if who == "truth" else 0, is_outline=who == "truth")
        figures.append(figure)
    if times["lengths_s"]:
        # The longest few would squeeze all others into a corner; they are drawn at the edge.
        longest = sorted(max(pair) for pair in times["lengths_s"])[int(0.99 * (len(times["lengths_s"]) - 1))]
        reach = max(1.1 * longest, 1e-3)
        figure = Figure(
            "Length of predicted and true intervals",
            "A dot is an interval of the answer and the true one that it stands for. Good: along the dotted line. "
            "Bad: one horizontal band, the model answers the same length whatever happens.",
            "true length, s",
            "predicted length, s",
            x=(0, reach),
            y=(0, reach),
        )
        figure.reference((0, 0), (reach, reach), "equal lengths")
        figure.cloud(times["lengths_s"], "an interval", 0)
        figures.append(figure)
    return figures


def _stage_figures(stages: Mapping) -> list[Figure]:
    figures = []
    if stages["pairs"]:
        heights = _percents(stages["iou"])
        figure = Figure(
            "Agreement of the two stages",
            "Overlap (IoU) of the k-th interval of the evidence stage and the k-th of the answer. Good: all near 1. "
            "Bad: a heap near 0, the answer refers to other moments than the evidence.",
            "IoU of evidence and answer",
            "% of the pairs",
            y=(0, _reach(heights)),
        )
        figure.bars(stages["edges"], heights, f"{stages['pairs']:,} pairs", 0, is_outline=False)
        figures.append(figure)
    if stages["counts"]:
        reach, shown = MAX_COUNT_DIFFERENCE, {s: _percents(c["difference"]) for s, c in stages["counts"].items()}
        figure = Figure(
            "Intervals answered minus true",
            f"How many intervals too many an answer has; {reach} stands for {reach} and more. Good: one bar at 0. "
            "Bad: much at the right, which F1 alone rewards, or at the left, where intervals are left out.",
            "intervals too many",
            "% of the answers",
            x=(-reach - 0.5, reach + 0.5),
            y=(0, _reach(*shown.values())),
        )
        edges = [number - 0.5 for number in range(-reach, reach + 2)]
        for stage, heights in shown.items():
            figure.bars(edges, heights, stage, STAGE_COLOURS[stage], is_outline=stage == "answer")
        figures.append(figure)
    return figures


def analysis_figures(numbers: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """
    The figures of the page.

    Args:
        numbers (`Mapping[str, Any]`):
            Of [`~trl_temporal.report.analysis_numbers.analysis_numbers`].

    Returns:
        `dict[str, list[Figure]]`: by section; empty where there is nothing to show.
    """
    figures = {
        "similarities": ("distribution", _similarity_figures),
        "calibration": ("calibration", _calibration_figures),
        "threshold": ("sweep", lambda sweep: _sweep_figures(sweep, numbers["threshold"])),
        "alternatives": ("alternatives", _alternative_figures),
        "times": ("times", _time_figures),
        "stages": ("stages", _stage_figures),
    }
    return {section: draw(numbers[name]) if numbers[name] else [] for section, (name, draw) in figures.items()}
