# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Preference rows: the row's own response is chosen, the same response with one factor made wrong is rejected."""

import hashlib
import json
import warnings
from collections.abc import Sequence

import datasets
import numpy as np

from ..data.event_world import distort_event_world_caption
from ..data.schema import MESSAGES_FEATURE, SPANS_FEATURE
from .factors import (
    FACTORS,
    NUM_DRAWS,
    TEMPORAL_FACTORS,
    TEXT_FACTORS,
    Distort,
    InfeasibleFactor,
    RejectedResponse,
    Row,
    response_text,
)

PREFERENCE_FEATURES = {
    "chosen": MESSAGES_FEATURE,
    "rejected": MESSAGES_FEATURE,
    "chosen_spans": SPANS_FEATURE,
    "rejected_spans": SPANS_FEATURE,
    "factor": datasets.Value("string"),
    "factor_args": datasets.Value("string"),
}


def _message(text: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def _reject(row: Row, factor: str, rng: np.random.Generator, distort: Distort) -> RejectedResponse:
    """Apply one factor, again if the result happens to be the chosen response."""
    apply = (TEMPORAL_FACTORS | TEXT_FACTORS)[factor]
    chosen = response_text(row), [list(span) for span in row["spans"]]
    for _ in range(NUM_DRAWS):
        rejected = apply(row, rng, distort)
        if (rejected.response, rejected.spans) != chosen:
            return rejected
    raise InfeasibleFactor(factor, row["id"], f"it gave the chosen response {NUM_DRAWS} times")


def make_preference_row(
    row: Row,
    *,
    seed: int,
    factors: Sequence[str] = FACTORS,
    distort: Distort = distort_event_world_caption,
) -> Row:
    """
    Add a rejected response to a row.

    One factor is drawn: temporal or text, 1:1 where the row allows both, then evenly among those that it allows.

    Args:
        row (`dict`):
            A row with `id`, `task`, `completion`, `spans`, `captions`, `answer` and `duration`.
        seed (`int`):
            Together with the row's id it decides every choice, so that the order of rows does not matter.
        factors (`Sequence[str]`, *optional*, defaults to all):
            Names of the factors to draw from: `"shift"`, `"add"`, `"delete"`, `"merge"`, `"distort"`, `"repeat"`.
        distort (`Callable[[str, np.random.Generator], str]`, *optional*):
            Makes a caption or an answer false. Defaults to the rules for EventWorld; other data needs its own.

    Returns:
        `dict`: the row with `chosen`, `rejected`, `chosen_spans`, `rejected_spans`, `factor` and `factor_args` (JSON).

    Raises:
        [`InfeasibleFactor`]: the row allows none of the factors.

    Example:
        >>> from trl_temporal.data.event_world import simulate, video_rows
        >>> from trl_temporal.synthesis import make_preference_row
        >>> row = video_rows(simulate(0, 0), {"path": "000000.mp4"})[0]
        >>> make_preference_row(row, seed=0, factors=["delete"])["factor"]
        'delete'
    """
    unknown = set(factors) - set(FACTORS)
    if unknown or not factors:
        raise ValueError(f"factors is {list(factors)}; give at least one of {', '.join(FACTORS)}")
    digest = hashlib.sha256(row["id"].encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])

    groups = [[name for name in factors if name in group] for group in (TEMPORAL_FACTORS, TEXT_FACTORS)]
    order = [name for i in rng.permutation(2) for name in rng.permutation(groups[i]).tolist()]
    reasons = []
    for factor in order:
        try:
            rejected = _reject(row, factor, rng, distort)
        except InfeasibleFactor as error:
            reasons.append(f"{error.factor}: {error.reason}")
            continue
        return {
            **row,
            "chosen": _message(response_text(row)),
            "rejected": _message(rejected.response),
            "chosen_spans": [list(span) for span in row["spans"]],
            "rejected_spans": rejected.spans,
            "factor": factor,
            "factor_args": json.dumps(rejected.factor_args),
        }
    raise InfeasibleFactor(" or ".join(factors), row["id"], "; ".join(reasons))


def _preference_or_empty(row: Row, seed: int, factors: Sequence[str], distort: Distort) -> Row:
    try:
        return make_preference_row(row, seed=seed, factors=factors, distort=distort)
    except InfeasibleFactor as error:
        empty = {name: [] for name in ("chosen", "rejected", "chosen_spans", "rejected_spans")}
        return {**row, **empty, "factor": "", "factor_args": error.reason}


def make_preferences(
    dataset: datasets.Dataset,
    *,
    seed: int = 0,
    factors: Sequence[str] = FACTORS,
    distort: Distort = distort_event_world_caption,
) -> datasets.Dataset:
    """
    Add a rejected response to every row of a data set.

    Rows that allow none of the factors are left out, with a warning that names them.

    Args:
        dataset (`datasets.Dataset`):
            Rows as in [`make_preference_row`].
        seed (`int`, *optional*, defaults to `0`):
            Together with each row's id it decides every choice.
        factors (`Sequence[str]`, *optional*, defaults to all):
            Names of the factors to draw from.
        distort (`Callable[[str, np.random.Generator], str]`, *optional*):
            Makes a caption or an answer false. Defaults to the rules for EventWorld; other data needs its own.

    Returns:
        `datasets.Dataset`: the rows with the columns of [`make_preference_row`] beside their own.
    """
    pairs = dataset.map(
        _preference_or_empty,
        fn_kwargs={"seed": seed, "factors": tuple(factors), "distort": distort},
        features=datasets.Features({**dataset.features, **PREFERENCE_FEATURES}),
        desc="Making preferences",
    )
    # Read from the column, not noted by the mapped function: a result from the cache reports them too.
    drawn = pairs["factor"][:]
    infeasible = [i for i, factor in enumerate(drawn) if not factor]
    if not infeasible:
        return pairs
    shown = "; ".join(f"{pairs[i]['id']} ({pairs[i]['factor_args']})" for i in infeasible[:10])
    more = "" if len(infeasible) <= 10 else f"; and {len(infeasible) - 10} more"
    warnings.warn(
        f"{len(infeasible)} of {len(drawn)} rows allow none of the factors {', '.join(factors)} and are left out: "
        f"{shown}{more}",
        stacklevel=2,
    )
    return pairs.select([i for i, factor in enumerate(drawn) if factor])
