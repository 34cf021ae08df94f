# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Preference rows: the row's own response is chosen, the same response with one factor made wrong is rejected."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import numpy as np

from ..data.event_world import distort_event_world_caption
from ..data.grammar import EVI, EVI_END, format_dense, format_grounding, format_qa
from ..data.rows import assistant_message, row_seed
from ..data.schema import MESSAGES_FEATURE, SPANS_FEATURE
from .factors import FACTOR_FUNCTIONS, FACTORS, Change, InfeasibleFactor, is_false_version, why_not
from .shares import from_mask, normalized_weights, shares_of_one_row, to_mask

Row = dict[str, Any]
# A batch of texts, of what is known about each (`captions`, `task`, `row_id`), and what makes the choices of each, to
# false texts; None where there is none.
Distort = Callable[[Sequence[str], Sequence[dict[str, Any]], Sequence[np.random.Generator]], list[str | None]]

# Raise this when the same row, seed and settings give another pair than before.
GENERATOR_VERSION = "trl_temporal.synthesis 1"

# Temporal and text factors 1:1, evenly inside each group.
DEFAULT_WEIGHTS = {"shift": 1.0, "add": 1.0, "delete": 1.0, "merge": 1.0, "distort": 2.0, "repeat": 2.0}

OTHER_WORDS = (
    "the completion is not what `trl_temporal.data.grammar` makes of the row's captions, answer and number of spans"
)


class Events(NamedTuple):
    """What the factors read of a row. `captions` is empty but for dense rows; `texts` are captions or the answer."""

    spans: list[list[float]]
    captions: list[str]
    texts: list[str]
    other_spans: list[list[float]]
    duration_s: float


class Pair(NamedTuple):
    """A rejected response for row `row` of a batch; `number` tells apart the pairs of one row."""

    row: int
    number: int
    factor: str
    response: str
    spans: list[list[float]]
    factor_args: dict[str, Any]


def response_text(row: Row) -> str:
    """The text of a row's `completion`, whether its content is a string or a list of parts."""
    content = row["completion"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] or "" for part in content)


def read_events(row: Row) -> Events:
    """What the factors read of a row."""
    spans, captions = row["spans"] or [], row.get("captions") or []
    # An event of the video that the question names is one too.
    other_spans = [*(row.get("all_spans") or []), *(row.get("prompt_spans") or [])]
    duration_s = row.get("duration")
    if duration_s is None:  # the video lasts at least as long as its events
        duration_s = max((span[1] for span in [*spans, *other_spans]), default=0.0)
    captions = list(captions) if row["task"] == "dense" else []
    texts = [row["answer"]] if row["task"] == "qa" and row.get("answer") else captions
    return Events(spans, captions, texts, other_spans, duration_s)


def render(task: str, num_events: int, texts: Sequence[str]) -> str | None:
    """The response about these events; `None` for texts that do not fit them, or a task that is not one of ours."""
    if any(text is None or EVI in text or EVI_END in text for text in texts):
        return None
    if task == "grounding":
        return format_grounding(num_events)
    if task == "qa" and texts:
        return format_qa(texts[0], num_events)
    return format_dense(texts) if task == "dense" and len(texts) == num_events else None


def reasons_against(row: Row, events: Events, *, hard: bool = False) -> dict[str, str]:
    """
    Say which factors a row does not allow.

    Args:
        row (`dict`):
            An SFT row.
        events ([`Events`]):
            Of this row.
        hard (`bool`, *optional*, defaults to `False`):
            Whether shifts are the small ones.

    Returns:
        `dict[str, str]`: the reason for each factor that the row does not allow.
    """
    if row.get("response_spans"):
        return dict.fromkeys(FACTORS, "the response refers to other spans than its evidence stage")
    is_rendered = response_text(row) == render(row["task"], len(events.spans), events.texts)
    against = {}
    for factor in FACTORS:
        texts = events.texts if factor == "distort" else events.captions
        if factor != "shift" and not is_rendered:  # a shift leaves the text as it is
            against[factor] = OTHER_WORDS
        elif reason := why_not(
            factor, events.spans, texts, events.duration_s, all_spans=events.other_spans, hard=hard
        ):
            against[factor] = reason
    return against


def allowed_mask(row: Row, events: Events, *, hard: bool = False) -> int:
    """Bit mask of the factors that a row allows, see [`reasons_against`]."""
    against = reasons_against(row, events, hard=hard)
    return to_mask([factor for factor in FACTORS if factor not in against])


def _apply(factor: str, events: Events, rng: np.random.Generator, hard: bool) -> Change:
    texts = events.texts if factor == "distort" else events.captions
    options: dict[str, Any] = {}
    if factor == "shift":
        options["hard"] = hard
    elif factor == "add":
        options["all_spans"] = events.other_spans
    return FACTOR_FUNCTIONS[factor](events.spans, texts, rng, events.duration_s, **options)


@dataclass
class _Job:
    """A pair that is still to be made."""

    row: int
    number: int
    row_seed: list[int]
    point: float  # in [0, 1): which factor is drawn
    untried: list[str]  # factors
    factor: str = ""
    change: Change | None = None
    false_texts: dict[int, str] = field(default_factory=dict)
    failed_texts: set[int] = field(default_factory=set)

    def rng(self, *more: int) -> np.random.Generator:
        """A generator for the drawn factor alone, so that what was tried before, and beside it, changes nothing."""
        return np.random.default_rng([*self.row_seed, self.number, FACTORS.index(self.factor), *more])


def make_pairs(
    rows: Sequence[Row],
    masks: Sequence[int],
    shares: Mapping[int, Sequence[float]],
    weights: Mapping[str, float],
    *,
    seed: int,
    distort: Distort,
    num_pairs_per_row: int = 1,
    hard: bool = False,
) -> tuple[list[Pair], Counter]:
    """
    Make the pairs of a batch of rows.

    A factor that turns out not to work for a row, because its texts cannot be falsified, is replaced by another one
    that the row allows, drawn by weight.

    Args:
        rows (`Sequence[dict]`):
            SFT rows.
        masks (`Sequence[int]`):
            Bit mask of the factors that each row allows. Rows without any are passed over.
        shares (`Mapping[int, Sequence[float]]`):
            Shares of the factors for each mask, see [`~trl_temporal.synthesis.shares.fit_shares`].
        weights (`Mapping[str, float]`):
            Weights of the factors; those without one are never drawn.
        seed (`int`):
            Together with the id of a row it decides every choice.
        distort (`Callable`):
            Falsifies a batch of texts.
        num_pairs_per_row (`int`, *optional*, defaults to `1`):
            Pairs of each row, of different factors as far as it allows them.
        hard (`bool`, *optional*, defaults to `False`):
            Whether shifts are the small ones.

    Returns:
        `tuple[list[Pair], Counter]`: the pairs, in the order of the rows, and how often each factor was drawn and
        replaced.
    """
    asked = normalized_weights(weights)
    all_events: dict[int, Events] = {}
    jobs = []
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        if mask not in shares:
            continue
        all_events[i] = read_events(row)
        seeds = row_seed(seed, row["id"])
        rng = np.random.default_rng(seeds)
        point = rng.random()
        untried = [factor for factor in from_mask(mask) if asked[FACTORS.index(factor)] > 0]
        for number in range(num_pairs_per_row):
            # Evenly spaced points: each factor is met as often as its share says, and no factor twice that need not.
            job = _Job(i, number, seeds, (point + number / num_pairs_per_row) % 1, list(untried))
            _choose(job, shares[mask])
            job.change = _apply(job.factor, all_events[i], rng if number == 0 else job.rng(), hard)
            jobs.append(job)

    pairs: dict[tuple[int, int], Pair] = {}
    replaced: Counter = Counter()
    responses: dict[int, list] = {}
    while jobs:
        for job in jobs:
            if job.change is None:
                job.change = _apply(job.factor, all_events[job.row], job.rng(), hard)
        _falsify([job for job in jobs if job.change.falsify], rows, all_events, distort)
        still_open = []
        for job in jobs:
            if job.factor == "distort" and not job.false_texts:
                rest = [k for k in range(len(job.change.captions)) if k not in job.failed_texts]
                if rest:  # other texts of the row may be easier
                    most = len(job.change.falsify)
                    job.change = Change(job.change.spans, job.change.captions, {}, falsify=rest[:most])
                    still_open.append(job)
                    continue
                pair = None
            else:
                pair = _finish(job, rows[job.row], all_events[job.row])
            known = responses.setdefault(job.row, [])
            if pair is not None and (pair.response, pair.spans) not in known:
                known.append((pair.response, pair.spans))
                pairs[job.row, job.number] = pair
                continue
            replaced[job.factor] += 1
            if job.untried:
                _choose(job, asked)
                still_open.append(job)
        jobs = still_open
    return [pairs[key] for key in sorted(pairs)], replaced


def _choose(job: _Job, shares: Sequence[float]) -> None:
    """Draw one of the untried factors."""
    shares = [shares[FACTORS.index(factor)] for factor in job.untried]
    left = job.point * sum(shares)
    chosen = 0
    while left >= shares[chosen] and chosen + 1 < len(shares):
        left -= shares[chosen]
        chosen += 1
    job.factor = job.untried.pop(chosen)
    job.change, job.false_texts, job.failed_texts = None, {}, set()


def _falsify(jobs: list[_Job], rows: Sequence[Row], all_events: Mapping[int, Events], distort: Distort) -> None:
    """Falsify the texts that the jobs name, all of them in one call."""
    named = [(job, k) for job in jobs for k in job.change.falsify]
    if not named:
        return
    texts = [job.change.captions[k] for job, k in named]
    contexts = [
        {"captions": all_events[job.row].texts, "task": rows[job.row]["task"], "row_id": rows[job.row]["id"]}
        for job, _ in named
    ]
    rngs = [job.rng(k) for job, k in named]
    for (job, k), text, false_text in zip(named, texts, distort(texts, contexts, rngs), strict=True):
        if false_text is not None and is_false_version(false_text, text):
            job.false_texts[k] = false_text
        else:
            job.failed_texts.add(k)


def _finish(job: _Job, row: Row, events: Events) -> Pair:
    change, task = job.change, row["task"]
    captions, factor_args = list(change.captions), dict(change.factor_args)
    for k, false_text in job.false_texts.items():
        captions[k] = false_text
    if job.factor == "add" and captions:
        factor_args["caption"] = captions[factor_args["event"]]
    if job.factor == "distort":
        factor_args["distorted"] = [
            ({"event": k} if task == "dense" else {}) | {"from": change.captions[k], "to": job.false_texts[k]}
            for k in sorted(job.false_texts)
        ]
    if job.factor == "shift":
        response = response_text(row)
    else:
        texts = events.texts if task == "qa" and job.factor != "distort" else captions
        response = render(task, len(change.spans), texts)
    return Pair(job.row, job.number, job.factor, response, change.spans, factor_args)


# One row at a time


class EventWorldDistort:
    """
    The rules of EventWorld as a backend: one colour, shape or action of a text gets another value.

    Attributes:
        report (`collections.Counter`):
            How many texts were changed, and `none`, the texts without such a word.
    """

    def __init__(self) -> None:
        self.report: Counter = Counter()

    def __call__(
        self, texts: Sequence[str], contexts: Sequence[dict[str, Any]], rngs: Sequence[np.random.Generator]
    ) -> list[str | None]:
        false_texts: list[str | None] = []
        for text, rng in zip(texts, rngs, strict=True):
            try:
                false_texts.append(distort_event_world_caption(text, rng))
            except ValueError:
                false_texts.append(None)
            self.report["none" if false_texts[-1] is None else "changed"] += 1
        return false_texts


def make_preference_row(
    row: Row,
    *,
    seed: int,
    factors: Sequence[str] = FACTORS,
    distort: Callable[[str, np.random.Generator], str] = distort_event_world_caption,
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
    weights = {factor: DEFAULT_WEIGHTS[factor] for factor in factors}
    against = reasons_against(row, read_events(row))
    mask = to_mask([factor for factor in FACTORS if factor not in against])
    shares = shares_of_one_row(mask, weights)

    def distort_batch(texts, contexts, rngs):
        return [distort(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    pairs, _ = make_pairs([row], [mask], {mask: shares} if shares else {}, weights, seed=seed, distort=distort_batch)
    if not pairs:
        reasons = [f"{factor}: {against.get(factor, '`distort` gave no false text')}" for factor in factors]
        raise InfeasibleFactor(" or ".join(factors), "; ".join(reasons), row["id"])
    (pair,) = pairs
    return {
        **row,
        "chosen": assistant_message(response_text(row)),
        "rejected": assistant_message(pair.response),
        "chosen_spans": [list(span) for span in row["spans"]],
        "rejected_spans": pair.spans,
        "factor": pair.factor,
        "factor_args": json.dumps(pair.factor_args, ensure_ascii=False),
    }


def _preference_or_empty(row: Row, seed: int, factors: Sequence[str], distort: Callable) -> Row:
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
    distort: Callable[[str, np.random.Generator], str] = distort_event_world_caption,
) -> datasets.Dataset:
    """
    Add a rejected response to every row of a data set, and keep its columns.

    For small data sets such as EventWorld: every row draws its factor on its own. Rows that allow none of the factors
    are left out, with a warning that names them. [`~trl_temporal.synthesis.synthesize_preferences`] balances the
    factors over the whole data set.

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
        features=datasets.Features({**dataset.features, **_PAIR_FEATURES}),
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


_PAIR_FEATURES = {
    "chosen": MESSAGES_FEATURE,
    "rejected": MESSAGES_FEATURE,
    "chosen_spans": SPANS_FEATURE,
    "rejected_spans": SPANS_FEATURE,
    "factor": datasets.Value("string"),
    "factor_args": datasets.Value("string"),
}
