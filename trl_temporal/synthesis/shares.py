# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
How often each factor is drawn from rows that do not allow every factor.

Rows are put into classes by the factors that they allow, a bit mask over `FACTORS`. Drawing among the allowed ones by
weight would miss the weights over the whole data set: rows with one event allow no `delete`, so `delete` would come
too seldom. Instead the rows that do allow it draw it more often, by shares that are fitted once to the counts of the
classes. A row's draw then depends on its class, its id and the seed alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .factors import FACTORS, TEMPORAL_FACTORS

MAX_ITERATIONS = 5000
TOLERANCE = 1e-10

_IS_TEMPORAL = np.array([factor in TEMPORAL_FACTORS for factor in FACTORS])


def to_mask(factors: Sequence[str]) -> int:
    """Bit mask of factors, the bits in the order of `FACTORS`."""
    return sum(1 << FACTORS.index(factor) for factor in factors)


def from_mask(mask: int) -> list[str]:
    """Factors of a bit mask, in the order of `FACTORS`."""
    return [factor for i, factor in enumerate(FACTORS) if mask >> i & 1]


def normalized_weights(weights: Mapping[str, float]) -> np.ndarray:
    """Weights in the order of `FACTORS`, with sum 1; `(num_factors,)`."""
    values = np.array([weights.get(factor, 0.0) for factor in FACTORS], dtype=float)
    return values / values.sum()


def fit_shares(
    num_rows: Mapping[int, int], weights: Mapping[str, float], num_pairs_per_row: int = 1
) -> dict[int, list[float]]:
    """
    Fit the shares of the factors in each class of rows, so that over all rows they come as close to the weights as the
    rows allow.

    Iterative proportional fitting: in turns the factors, then the temporal and the text factors as groups, are scaled
    to their weights, and each class to its number of rows. Where the weights can be met, they are, with the shares as
    even over the classes as can be. Where they cannot, the two groups come before the factors inside them.

    Args:
        num_rows (`Mapping[int, int]`):
            Number of rows of each class, by the bit mask of the allowed factors.
        weights (`Mapping[str, float]`):
            Weight of each factor; they need not sum to 1. A factor that is left out is not drawn.
        num_pairs_per_row (`int`, *optional*, defaults to `1`):
            Pairs of each row. With several, no share is so large that a factor has to come twice in a row, unless the
            row allows fewer factors than it gets pairs.

    Returns:
        `dict[int, list[float]]`: for each class that allows a factor, the share of each factor in the order of
        `FACTORS`, with sum 1.

    Example:
        >>> from trl_temporal.synthesis.shares import fit_shares, to_mask
        >>> one_event, more_events = to_mask(["shift"]), to_mask(["shift", "delete"])
        >>> shares = fit_shares({one_event: 10, more_events: 30}, {"shift": 1, "delete": 1})
        >>> [round(share, 3) for share in shares[more_events]]
        [0.333, 0.0, 0.667, 0.0, 0.0, 0.0]
    """
    target = normalized_weights(weights)
    drawn = [int(i) for i in target.nonzero()[0]]
    masks = sorted(mask for mask, count in num_rows.items() if count and any(mask >> i & 1 for i in drawn))
    if not masks:
        return {}
    rows = np.array([[num_rows[mask]] for mask in masks], dtype=float)
    rows /= rows.sum()
    allowed = np.array([[mask >> i & 1 for i in range(len(FACTORS))] for mask in masks], dtype=bool)
    largest = 1 / np.minimum(num_pairs_per_row, allowed[:, drawn].sum(axis=1))[:, None]
    shares = _fit_rows(np.where(allowed, target, 0.0), largest)
    for _ in range(MAX_ITERATIONS):
        before = shares
        joint = shares * rows
        joint = joint * _ratio(target, joint.sum(axis=0))
        for group in (_IS_TEMPORAL, ~_IS_TEMPORAL):
            joint = np.where(group, joint * _ratio(target[group].sum(), joint[:, group].sum()), joint)
        shares = _fit_rows(joint, largest)
        if np.abs(shares - before).max() < TOLERANCE:
            break
    return dict(zip(masks, shares.tolist(), strict=True))


def _ratio(wanted: np.ndarray, is_now: np.ndarray) -> np.ndarray:
    return np.divide(wanted, is_now, out=np.ones_like(is_now, dtype=float), where=is_now > 0)


def _fit_rows(shares: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Scale each class to sum 1; what would be over its largest share is cut there, and the rest scaled up for it."""
    cut = np.zeros(shares.shape, dtype=bool)
    for _ in FACTORS:
        rest = np.where(cut, 0.0, shares)
        left = 1 - (cut * largest).sum(axis=1, keepdims=True)
        scaled = np.where(cut, largest, rest * _ratio(left, rest.sum(axis=1, keepdims=True)))
        over = scaled > largest
        if not over.any():
            break
        cut |= over
    return scaled


def shares_of_one_row(mask: int, weights: Mapping[str, float]) -> list[float]:
    """
    Shares of the factors for a row on its own: temporal and text factors by their groups' weights where the row allows
    both, then by weight among those that it allows.

    Args:
        mask (`int`):
            Bit mask of the factors that the row allows.
        weights (`Mapping[str, float]`):
            Weight of each factor.

    Returns:
        `list[float]`: share of each factor in the order of `FACTORS`, with sum 1; empty if the row allows none.
    """
    return fit_shares({mask: 1}, weights).get(mask, [])
