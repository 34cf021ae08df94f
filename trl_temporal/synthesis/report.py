# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What a synthesis did, in numbers."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from .config import SynthesisConfig
from .factors import FACTORS
from .shares import normalized_weights
from .tables import BAD_ROW, Skipped

# The shares of the factors may miss their weights by this much without a warning; few pairs miss them by chance.
TOLERANCE = 0.02
MIN_PAIRS = 1000


@dataclass
class SynthesisReport:
    """
    What a synthesis did.

    Args:
        num_rows (`int`):
            Rows that were read.
        num_pairs (`int`):
            Pairs that were made.
        num_bad_rows (`int`):
            Rows that break the data contract and were skipped.
        num_left_out (`int`):
            Good rows that allow none of the factors.
        weights (`dict[str, float]`):
            Share of each factor that was asked for.
        shares (`dict[str, float]`):
            Share of each factor in the pairs.
        pairs (`dict[str, dict[str, int]]`):
            Number of pairs by task and factor.
        infeasible (`dict[str, int]`):
            Number of good rows that do not allow a factor, and were given others.
        replaced (`dict[str, int]`):
            How often a factor was drawn and did not work out, so that another one took its place.
        distort (`dict[str, int]`):
            What the distort backend counted.
        content_hash (`str`, *optional*):
            SHA-256 of the data files.
    """

    num_rows: int
    num_pairs: int
    num_bad_rows: int
    num_left_out: int
    weights: dict[str, float]
    shares: dict[str, float]
    pairs: dict[str, dict[str, int]]
    infeasible: dict[str, int]
    replaced: dict[str, int]
    distort: dict[str, int]
    content_hash: str = ""


def count_masks(masks: np.ndarray) -> Counter:
    """Number of good rows of each bit mask of factors."""
    values, numbers = np.unique(masks, return_counts=True)
    return Counter({int(v): int(n) for v, n in zip(values, numbers, strict=True) if v != BAD_ROW})


def make_report(
    masks: np.ndarray, counts: Counter, num_skipped: int, distort: Counter, config: SynthesisConfig
) -> SynthesisReport:
    """
    Sum up.

    Args:
        masks (`np.ndarray` of shape `(num_rows,)`):
            Bit mask of the factors that each row allows, `BAD_ROW` for bad ones.
        counts (`collections.Counter`):
            Of [`~trl_temporal.synthesis.tables.pair_tables`].
        num_skipped (`int`):
            Rows without a pair.
        distort (`collections.Counter`):
            What the distort backend counted.
        config ([`SynthesisConfig`]):
            Settings.

    Returns:
        [`SynthesisReport`]: the numbers, without a content hash.
    """
    drawn = [factor for factor in FACTORS if config.weights.get(factor)]
    asked = dict(zip(FACTORS, normalized_weights(config.weights).tolist(), strict=True))
    pairs: dict[str, dict[str, int]] = {}
    by_factor: Counter = Counter()
    for (what, task, factor), count in sorted(counts.items()):
        if what == "pairs":
            pairs.setdefault(task, {})[factor] = count
            by_factor[factor] += count
    infeasible: Counter = Counter()
    for mask, number in count_masks(masks).items():
        infeasible.update({factor: number for i, factor in enumerate(FACTORS) if not mask >> i & 1})
    num_pairs, num_bad = by_factor.total(), int((masks == BAD_ROW).sum())
    return SynthesisReport(
        num_rows=len(masks),
        num_pairs=num_pairs,
        num_bad_rows=num_bad,
        num_left_out=num_skipped - num_bad,
        weights={factor: round(asked[factor], 4) for factor in drawn},
        shares={factor: round(by_factor[factor] / max(num_pairs, 1), 4) for factor in drawn},
        pairs=pairs,
        infeasible={factor: infeasible[factor] for factor in drawn},
        replaced={factor: counts["replaced", "", factor] for factor in drawn},
        distort=dict(sorted(distort.items())),
    )


def report_table(report: SynthesisReport) -> Table:
    """
    A report as a table for the terminal, one line a factor.

    Args:
        report ([`SynthesisReport`]):
            The numbers.

    Returns:
        `rich.table.Table`: the table.
    """
    table = Table("factor", title=f"{report.num_pairs:,} pairs from {report.num_rows:,} rows")
    for column in ("pairs", "share", "asked for", "not allowed by", "replaced"):
        table.add_column(column, justify="right")
    for factor, weight in report.weights.items():
        count = sum(row.get(factor, 0) for row in report.pairs.values())
        shares = f"{report.shares[factor]:.1%}", f"{weight:.1%}"
        table.add_row(factor, f"{count:,}", *shares, f"{report.infeasible[factor]:,}", f"{report.replaced[factor]:,}")
    table.caption = f"{report.num_left_out:,} rows allow no factor, {report.num_bad_rows:,} are bad"
    return table


def no_pairs(skipped: Sequence[Skipped]) -> str:
    """The sentence of the error when nothing came out."""
    if not skipped:
        return "there are no rows to make pairs from; check the source"
    return f"none of the {len(skipped)} rows gives a pair. The first: {skipped[0].reason}"


def warn(report: SynthesisReport, skipped: Sequence[Skipped]) -> None:
    """Say which rows have no pair, and which weights the rows do not allow."""
    if skipped:
        more = ", and others" if len(skipped) > 1 else ""
        fault = f"{len(skipped)} of {report.num_rows} rows are left out: {skipped[0].reason}{more}"
        warnings.warn(fault, stacklevel=3)
    missed = {factor: s for factor, s in report.shares.items() if abs(s - report.weights[factor]) > TOLERANCE}
    if missed and report.num_pairs >= MIN_PAIRS:
        shown = [f"{factor} {share:.1%} instead of {report.weights[factor]:.1%}" for factor, share in missed.items()]
        warnings.warn(f"the rows do not allow the weights of the factors: {', '.join(shown)}", stacklevel=3)
