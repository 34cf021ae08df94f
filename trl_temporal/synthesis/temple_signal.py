# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
How much chosen and rejected descriptions differ, by factor and difficulty.

A hard perturbation may leave the two so alike that nothing is left to prefer: then a stage trains on noise.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from rich.table import Table

from .temple import FRAME_FACTORS

VANISHES_AT = 0.97

# Of the drawing, in SVG units.
PLOT_WIDTH, PLOT_HEIGHT, LEFT, TOP, GAP, BOTTOM = 250, 190, 44, 64, 56, 56
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # told apart by the colour-blind too
MARKS = ("circle", "square", "triangle", "diamond", "cross")


@dataclass
class SignalCell:
    """
    How alike chosen and rejected are in the pairs of one factor and keep ratio.

    Args:
        factor (`str`):
            How the clips were perturbed.
        keep_ratio (`int`):
            The paper's r.
        num_pairs (`int`):
            Number of pairs.
        edit_similarity (`float`):
            Median of 1 - edit distance of the words / number of words of the longer text.
        edit_quartiles (`tuple[float, float]`):
            Quartiles of the same.
        share_alike (`float`):
            Share of pairs whose edit similarity is above the threshold.
        length_ratio (`float`):
            Median of the words of the rejected one by those of the chosen one.
        cosine (`float`, *optional*):
            Median cosine of the embeddings, where there is an encoder.
        threshold (`float`):
            Similarity above which the signal vanishes.
    """

    factor: str
    keep_ratio: int
    num_pairs: int
    edit_similarity: float
    edit_quartiles: tuple[float, float]
    share_alike: float
    length_ratio: float
    cosine: float | None
    threshold: float

    @property
    def vanishes(self) -> bool:
        """Whether more than half of the pairs are nearly equal, word for word."""
        return self.edit_similarity > self.threshold

    @property
    def warning(self) -> str | None:
        """What is to be feared of these pairs, if anything."""
        where = f"{self.factor}, keep_ratio {self.keep_ratio}"
        if self.vanishes:
            return (
                f"{where}: chosen and rejected are {self.edit_similarity:.3f} alike (median, word by word): the "
                "signal vanishes. Leave this difficulty out, or describe the videos in more detail."
            )
        # Another order leaves the embedding nearly as it is; missing clips must not.
        if self.factor == "drop" and self.cosine is not None and self.cosine > self.threshold:
            return (
                f"{where}: the embeddings are {self.cosine:.3f} alike (median), though clips are missing: "
                "what is told hardly depends on them. Leave this difficulty out, or describe the videos more closely."
            )
        return None


def edit_similarity(first: str, second: str) -> float:
    """
    How alike two texts are word by word.

    Args:
        first (`str`):
            A text.
        second (`str`):
            Another one.

    Returns:
        `float`: 1 - Levenshtein distance of the words / number of words of the longer text; 1 for two empty ones.

    Example:
        >>> from trl_temporal.synthesis.temple_signal import edit_similarity
        >>> edit_similarity("He runs and falls", "He runs and then stops")
        0.6
    """
    numbers: dict[str, int] = {}
    a, b = (
        np.array([numbers.setdefault(word, len(numbers)) for word in text.split()], dtype=np.int64)
        for text in (first, second)
    )
    if not max(len(a), len(b)):
        return 1.0
    places = np.arange(len(b) + 1)
    distances = places
    for i, word in enumerate(a, start=1):
        # Deleting or replacing a word looks at the row before; inserting runs along the row itself.
        row = np.minimum(distances[1:] + 1, distances[:-1] + (b != word))
        distances = np.minimum.accumulate(np.concatenate([[i], row]) - places) + places
    return 1 - int(distances[-1]) / max(len(a), len(b))


def check_signal(
    pairs: Iterable[dict[str, Any]],
    embed: Callable[[list[str]], np.ndarray] | None = None,
    threshold: float = VANISHES_AT,
) -> list[SignalCell]:
    """
    Compare chosen and rejected descriptions by factor and keep ratio.

    Args:
        pairs (`Iterable[dict]`):
            Preference rows with `factor` and `keep_ratio`.
        embed (`Callable`, *optional*):
            Sentence encoder: texts to vectors of length 1, `(texts, dimension)`, such as `encode` of
            [`~trl_temporal.evaluation.metrics.sentence_similarity.SentenceEncoder`].
        threshold (`float`, *optional*, defaults to `0.97`):
            Similarity above which the signal vanishes.

    Returns:
        `list[SignalCell]`: by factor, from easy to hard.

    Raises:
        `ValueError`: there are no rows, or none has a keep ratio.

    Example:
        >>> from trl_temporal.data.event_world import simulate, video_rows
        >>> from trl_temporal.synthesis.temple_folder import event_world_pairs
        >>> from trl_temporal.synthesis.temple_signal import check_signal
        >>> pairs, _ = event_world_pairs(video_rows(simulate(0, 1), {"path": "1.mp4"}), check_files=False)
        >>> [(cell.keep_ratio, round(cell.length_ratio, 2)) for cell in check_signal(pairs)][:4]
        [(16, 0.14), (8, 0.14), (4, 0.14), (2, 0.41)]
    """
    groups: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for number, row in enumerate(pairs):
        if row.get("factor") is None or row.get("keep_ratio") is None:
            column = "factor" if row.get("factor") is None else "keep_ratio"
            raise ValueError(
                f"row {number} (id {row.get('id')!r}), column '{column}': is missing. The check is for pairs of "
                "`trl-temporal temple pairs`."
            )
        texts = _text(row["chosen"]), _text(row["rejected"])
        groups.setdefault((row["factor"], row["keep_ratio"]), []).append(texts)
    if not groups:
        raise ValueError("there are no pairs to check")
    cells = []
    for (factor, keep_ratio), texts in sorted(groups.items(), key=lambda group: _place(*group[0])):
        alike = np.array([edit_similarity(chosen, rejected) for chosen, rejected in texts])
        lengths = np.array([len(rejected.split()) / max(1, len(chosen.split())) for chosen, rejected in texts])
        cosine = None
        if embed is not None:
            vectors = [embed([pair[side] for pair in texts]) for side in (0, 1)]
            cosine = float(np.median((vectors[0] * vectors[1]).sum(1)))
        low, median, high = np.quantile(alike, (0.25, 0.5, 0.75)).tolist()
        cells.append(
            SignalCell(
                factor=factor,
                keep_ratio=keep_ratio,
                num_pairs=len(texts),
                edit_similarity=median,
                edit_quartiles=(low, high),
                share_alike=float((alike > threshold).mean()),
                length_ratio=float(np.median(lengths)),
                cosine=cosine,
                threshold=threshold,
            )
        )
    return cells


def _place(factor: str, keep_ratio: int) -> tuple:
    """Factors as they are listed, others behind them; each from easy to hard."""
    known = FRAME_FACTORS.index(factor) if factor in FRAME_FACTORS else len(FRAME_FACTORS)
    return known, factor, -keep_ratio


def _text(message: str | list[dict[str, Any]]) -> str:
    if isinstance(message, str):
        return message
    content = message[-1]["content"]
    return content if isinstance(content, str) else " ".join(part.get("text") or "" for part in content)


def signal_table(cells: Sequence[SignalCell]) -> Table:
    """
    The similarities as a table.

    Args:
        cells (`Sequence[SignalCell]`):
            Of [`check_signal`].

    Returns:
        `rich.table.Table`: a row per factor and keep ratio; one in red has no signal left.
    """
    table = Table("factor", "r", "pairs", "alike", "quartiles", "too alike", "length", "cosine")
    table.title = "How alike chosen and rejected are"
    table.caption = (
        f"alike: edit similarity of the words, median and quartiles; too alike: share of pairs above "
        f"{cells[0].threshold:g}; length: words of rejected by chosen; cosine: of the embeddings"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for before, cell in zip([None, *cells], cells, strict=False):
        if before is not None and before.factor != cell.factor:
            table.add_section()
        low, high = cell.edit_quartiles
        table.add_row(
            cell.factor,
            str(cell.keep_ratio),
            f"{cell.num_pairs:,}",
            f"{cell.edit_similarity:.3f}",
            f"{low:.2f}-{high:.2f}",
            f"{cell.share_alike:.0%}",
            f"{cell.length_ratio:.2f}",
            "-" if cell.cosine is None else f"{cell.cosine:.3f}",
            style="red" if cell.vanishes else None,
        )
    return table


def draw_signal(cells: Sequence[SignalCell]) -> str:
    """
    The similarities as a drawing: one plot per measure, one line per factor, from easy to hard.

    Args:
        cells (`Sequence[SignalCell]`):
            Of [`check_signal`].

    Returns:
        `str`: an SVG document.
    """
    ratios = sorted({cell.keep_ratio for cell in cells}, reverse=True)
    factors = list(dict.fromkeys(cell.factor for cell in cells))
    threshold = cells[0].threshold
    plots: list[tuple[str, str, float | None, float]] = [
        ("Edit similarity, word by word", "edit_similarity", threshold, 1.0),
        ("Length of rejected by chosen", "length_ratio", None, max(1.0, *(cell.length_ratio for cell in cells))),
    ]
    if any(cell.cosine is not None for cell in cells):
        plots.append(("Cosine of the embeddings", "cosine", None, 1.0))
    width = LEFT + len(plots) * (PLOT_WIDTH + GAP)
    height = TOP + PLOT_HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    x = LEFT
    for number, factor in enumerate(factors):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_mark(number, x + 6, 18, colour) + f'<text x="{x + 16}" y="22">{escape(factor)}</text>')
        x += 36 + 7 * len(factor)
    for number, (title, name, line, top) in enumerate(plots):
        parts += _plot(LEFT + number * (PLOT_WIDTH + GAP), title, name, line, top * 1.02, cells, ratios, factors)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _plot(
    left: float,
    title: str,
    name: str,
    threshold: float | None,
    top: float,
    cells: Sequence[SignalCell],
    ratios: Sequence[int],
    factors: Sequence[str],
) -> list[str]:
    bottom = TOP + PLOT_HEIGHT

    def place_x(ratio: int) -> float:
        return left + (ratios.index(ratio) + 0.5) * PLOT_WIDTH / len(ratios)

    def place_y(value: float) -> float:
        return bottom - max(value, 0.0) / top * PLOT_HEIGHT

    parts = [f'<text x="{left}" y="{TOP - 12}" font-weight="600">{title}</text>']
    for tick in np.arange(0, top, 0.25 if top < 1.5 else 0.5):
        y = place_y(tick)
        parts.append(f'<path d="M{left} {y:.1f}h{PLOT_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for ratio in ratios:
        parts.append(f'<text x="{place_x(ratio):.1f}" y="{bottom + 18}" text-anchor="middle">r = {ratio}</text>')
    for place, word, anchor in ((left, "easy", "start"), (left + PLOT_WIDTH, "hard", "end")):
        parts.append(f'<text x="{place}" y="{bottom + 38}" text-anchor="{anchor}" fill="#666">{word}</text>')
    if threshold is not None:
        y, height = place_y(threshold), place_y(threshold) - place_y(1.0)
        parts.append(
            f'<rect x="{left}" y="{y - height:.1f}" width="{PLOT_WIDTH}" height="{height:.1f}" fill="#d00" '
            f'opacity="0.25"/><text x="{left + PLOT_WIDTH}" y="{y + 14:.1f}" text-anchor="end" font-size="11" '
            f'fill="#a00">above {threshold:g}: no signal</text>'
        )
    for number, factor in enumerate(factors):
        colour = COLOURS[number % len(COLOURS)]
        # Side by side, so that equal values do not hide each other.
        shift = (number - (len(factors) - 1) / 2) * 8
        points = [
            (place_x(cell.keep_ratio) + shift, place_y(getattr(cell, name)), cell)
            for cell in cells
            if cell.factor == factor and getattr(cell, name) is not None
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for x, y, cell in points:
            if name == "edit_similarity":
                low, high = (place_y(value) for value in cell.edit_quartiles)
                parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="1"/>')
            said = f"{factor}, r = {cell.keep_ratio}: {getattr(cell, name):.3f} ({cell.num_pairs:,} pairs)"
            parts.append(f"<g>{_mark(number, x, y, colour)}<title>{escape(said)}</title></g>")
    return parts


def _mark(number: int, x: float, y: float, colour: str) -> str:
    """The mark of a factor, so that colour alone does not tell them apart."""
    paths = {
        "square": "M-4-4h8v8h-8z",
        "triangle": "M0-5L5 4H-5z",
        "diamond": "M0-6L5 0L0 6L-5 0z",
        "cross": "M-5-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
        "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    }
    path = paths[MARKS[number % len(MARKS)]]
    return f'<path d="{path}" transform="translate({x:.1f} {y:.1f})" fill="{colour}"/>'
