# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The numbers of the analysis page: how the evidence tokens of a run look at frames, and where its times lie."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..evaluation.evaluator import paired_bootstrap
from ..evaluation.metrics.intervals import iou_pairs
from ..evaluation.run_folder import SavedAnswer
from .analysis_tokens import STAGES, Row, RowF1, Tokens, match_truth, read_row, read_tokens, run_spans

AS_TRAINED = "as trained"
TEMPERATURES = (0.5, 1, 2)
# The page draws .3 to .9. Other similarities are spread in other ways: they may choose from the whole range.
THRESHOLDS = np.array([1, *range(5, 96, 5), 99]) / 100
DRAWN = (THRESHOLDS > 0.29) & (THRESHOLDS < 0.91)
NUM_BINS = 20
# Each edge is the nearest float: those of `linspace` are a hair off, and times on an edge would fall beside it.
EDGES = np.arange(NUM_BINS + 1) / NUM_BINS
EDGES_10_S = np.arange(NUM_BINS + 1) * 10 / NUM_BINS
NUM_CALIBRATION_BINS = 10
MULTIPLES_S = (1, 5, 10)
MAX_COUNT_DIFFERENCE = 5
LOW_PEAK = 0.1
NUM_POINTS = 1000


def auroc(scores: np.ndarray, inside: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """
    How often a frame inside scores above one outside; ties count half.

    Args:
        scores (`np.ndarray` of shape `(n,)`):
            Scores of frames.
        inside (`np.ndarray` of shape `(n,)` and type bool):
            Which frames are inside.
        group (`np.ndarray` of shape `(n,)` and type int, *optional*):
            Group of every frame, from 0 on: only frames of one group are compared. By default all are one group.

    Returns:
        `np.ndarray` of shape `(groups,)`: values in `[0, 1]`, .5 is chance; NaN for a group with frames on one side
        only.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.report.analysis_numbers import auroc
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])).tolist()
        [0.75]
    """
    group = np.zeros(len(scores), dtype=int) if group is None else group
    order = np.lexsort((scores, group))
    scores, inside, group = scores[order], inside[order], group[order]
    sizes = np.bincount(group, minlength=1)
    is_new = np.append(True, (np.diff(scores) != 0) | (np.diff(group) != 0)) if len(scores) else np.zeros(0, bool)
    first = np.flatnonzero(is_new)
    last = np.append(first[1:], len(scores)) - 1
    # Equal scores share the mean of their ranks, counted from 1 in their group.
    rank = ((first + last) / 2 + 1)[np.cumsum(is_new) - 1] - (np.cumsum(sizes) - sizes)[group]
    num_inside = np.bincount(group, weights=inside, minlength=1)
    num_pairs = num_inside * (sizes - num_inside)
    wins = np.bincount(group, weights=rank * inside, minlength=1) - num_inside * (num_inside + 1) / 2
    return np.divide(wins, num_pairs, out=np.full(len(sizes), np.nan), where=num_pairs > 0)


def calibration(probability: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    """
    How far probabilities are from what happens.

    Args:
        probability (`np.ndarray` of shape `(n,)`):
            Values in `[0, 1]`.
        inside (`np.ndarray` of shape `(n,)` and type bool):
            What they speak of.

    Returns:
        `dict`: for each of ten equal bins `probability` (mean), `inside` (share; both `None` in an empty bin) and
        `frames` (share of all), and `expected_error`, the mean distance of the two, weighted by frames (ECE).

    Example:
        >>> import numpy as np
        >>> from trl_temporal.report.analysis_numbers import calibration
        >>> calibration(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, False, False]))["expected_error"]
        0.25
    """
    place = np.clip((probability * NUM_CALIBRATION_BINS).astype(int), 0, NUM_CALIBRATION_BINS - 1)
    count = np.bincount(place, minlength=NUM_CALIBRATION_BINS)
    mean = np.bincount(place, weights=probability, minlength=NUM_CALIBRATION_BINS) / np.maximum(count, 1)
    share = np.bincount(place, weights=inside, minlength=NUM_CALIBRATION_BINS) / np.maximum(count, 1)
    return {
        "probability": [float(value) if n else None for value, n in zip(mean, count, strict=True)],
        "inside": [float(value) if n else None for value, n in zip(share, count, strict=True)],
        "frames": (count / max(count.sum(), 1)).tolist(),
        "expected_error": float((count * np.abs(mean - share)).sum() / max(count.sum(), 1)),
    }


def _mean(values: np.ndarray) -> float | None:
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _shares(values: np.ndarray, edges: np.ndarray) -> list[float]:
    return (np.histogram(values, edges)[0] / max(len(values), 1)).tolist()


def _aurocs(scores: np.ndarray, tokens: Tokens, chosen: np.ndarray) -> dict[str, float | None]:
    """Over all frames of the chosen tokens, and the mean over tokens, whose frames are what the threshold compares."""
    frames = tokens.judged(chosen)
    group = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)[frames]
    return {
        "auroc": _mean(auroc(scores[frames], tokens.inside[frames])),
        "auroc_per_token": _mean(auroc(scores[frames], tokens.inside[frames], group)),
    }


def _distribution(tokens: Tokens, threshold: float) -> dict[str, Any]:
    salience = tokens.similarities["salience"]
    peak = salience.max(axis=1)
    is_salient = (salience >= threshold * peak[:, None]) | ~tokens.frame_mask
    stages = {}
    for number, stage in enumerate(STAGES):
        chosen = tokens.stage == number
        frames = tokens.judged(chosen)
        values, is_inside = salience[frames], tokens.inside[frames]
        if not chosen.any() or not is_inside.any() or is_inside.all():
            continue
        inside, outside = _shares(values[is_inside], EDGES), _shares(values[~is_inside], EDGES)
        stages[stage] = {
            "tokens": int(chosen.sum()),
            "frames_inside": int(is_inside.sum()),
            "frames_outside": int((~is_inside).sum()),
            "inside": inside,
            "outside": outside,
            "overlap": float(np.minimum(inside, outside).sum()),
            **_aurocs(salience, tokens, chosen),
            "peak": _shares(peak[chosen], EDGES),
            "low_peak": float((peak[chosen] < LOW_PEAK).mean()),
            "everywhere": float(is_salient[chosen].all(axis=1).mean()),
        }
    return {"edges": EDGES.tolist(), "stages": stages} if stages else None


def _calibration(tokens: Tokens) -> dict[str, Any]:
    salience = tokens.similarities["salience"]
    peak = salience.max(axis=1, keepdims=True)
    kinds = {"raw": salience, "relative": salience / np.where(peak > 0, peak, 1)}
    every = tokens.judged(np.ones(len(salience), bool))
    return {
        "base_rate": _mean(tokens.inside[every]),
        **{
            kind: {
                stage: calibration(values[frames].astype(np.float64), tokens.inside[frames])
                for number, stage in enumerate(STAGES)
                if (frames := tokens.judged(tokens.stage == number)).any()
            }
            for kind, values in kinds.items()
        },
    }


def _similarities(tokens: Tokens) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values `(N, T)`, from 0 on, of every similarity that can be computed, the trained one first."""
    yield AS_TRAINED, tokens.similarities["salience"]
    if "cosines" in tokens.similarities:
        yield "cosine", (np.clip(tokens.similarities["cosines"], -1, 1) + 1) / 2
    if "logits" in tokens.similarities:
        logits, mask = tokens.similarities["logits"], tokens.frame_mask
        highest = np.where(mask, logits, -np.inf).max(axis=1, keepdims=True)
        lowest = np.where(mask, logits, np.inf).min(axis=1, keepdims=True)
        for temperature in TEMPERATURES:
            weights = np.exp(np.minimum(logits - highest, 0) / temperature) * mask
            yield f"softmax at temperature {temperature:g}", weights / weights.sum(axis=1, keepdims=True)
        reach = np.where(highest > lowest, highest - lowest, 1)
        yield "dot product", np.clip((logits - lowest) / reach, 0, 1)


class _Sweep:
    """F1 of every row with true intervals by threshold, for the tokens of one stage, `tokens`."""

    def __init__(self, rows: list[Row], tokens: Tokens, stage: int, rule: dict[str, str]):
        self.scored = np.array([len(row.truth) > 0 and not row.is_broken for row in rows])
        self.tokens = tokens.select((tokens.stage == stage) & self.scored[tokens.row])
        num_predicted = np.bincount(self.tokens.row, minlength=len(rows))[self.scored]
        self.f1 = RowF1([row.truth for row, kept in zip(rows, self.scored, strict=True) if kept], num_predicted)
        self.rule = rule

    def __call__(self, scores: np.ndarray, threshold: float) -> np.ndarray:
        """Scores `(rows,)` of similarities `(N, T)` of the tokens of the stage."""
        return self.f1(run_spans(scores, self.tokens, threshold, **self.rule))


def _halves(rows: list[Row]) -> np.ndarray:
    """Whether a row is in the half on which thresholds are reported, by a hash of its id."""
    ids = [str(row.answer.id).encode("utf-8", "replace") for row in rows]
    return np.array([hashlib.sha256(id).digest()[0] % 2 == 1 for id in ids], dtype=bool)


def _threshold_sweep(sweeps: dict[str, _Sweep], threshold: float) -> dict[str, Any]:
    stages = {}
    for stage, sweep in sweeps.items():
        salience = sweep.tokens.similarities["salience"]
        f1 = [_mean(sweep(salience, value)) for value in THRESHOLDS[DRAWN]]
        best = int(np.argmax(f1))
        stages[stage] = {
            "f1": f1,
            "best_threshold": float(THRESHOLDS[DRAWN][best]),
            "best_f1": f1[best],
            "configured_f1": _mean(sweep(salience, threshold)),
        }
    return {"thresholds": THRESHOLDS[DRAWN].tolist(), "stages": stages}


def _alternatives(rows: list[Row], sweep: _Sweep, threshold: float) -> dict[str, Any] | None:
    """The best threshold of each similarity on one half of the rows, and its F1 on the other, in the answer."""
    is_held_out = _halves(rows)
    held_out = is_held_out[sweep.scored]
    if held_out.all() or not held_out.any():
        return None
    tokens = sweep.tokens
    configured_f1 = sweep(tokens.similarities["salience"], threshold)[held_out]
    found, held_out_f1 = [], {}
    for name, scores in _similarities(tokens):
        scores = np.ascontiguousarray(scores, dtype=np.float32)
        f1 = np.array([sweep(scores, value) for value in THRESHOLDS])  # (thresholds, rows)
        chosen_on = f1[:, ~held_out].mean(axis=1)
        best = int(chosen_on.argmax())
        held_out_f1[name] = f1[best, held_out]
        difference, low, high = paired_bootstrap(held_out_f1[name], held_out_f1[AS_TRAINED])
        found.append(
            {
                "name": name,
                "f1_by_threshold": chosen_on.tolist(),
                "threshold": float(THRESHOLDS[best]),
                "is_at_the_end": best in (0, len(THRESHOLDS) - 1),
                "f1": _mean(held_out_f1[name]),
                "difference": difference,
                "interval": [low, high],
                **_aurocs(scores, tokens, is_held_out[tokens.row]),
            }
        )
    difference, low, high = paired_bootstrap(configured_f1, held_out_f1[AS_TRAINED])
    return {
        "thresholds": THRESHOLDS.tolist(),
        "rows": [int((~held_out).sum()), int(held_out.sum())],
        "similarities": found,
        "configured": {"f1": _mean(configured_f1), "difference": difference, "interval": [low, high]},
    }


def _times(rows: list[Row]) -> dict[str, Any] | None:
    """Where the times of the answers lie, next to the true ones."""
    none = np.zeros((0, 2))
    spans, phases = ({"predicted": [none], "truth": [none]} for _ in range(2))
    lengths_s, spacings_s = [none], []
    for row in rows:
        timestamps_s = np.asarray(row.answer.timestamps_s, dtype=np.float64)
        spacing_s = float(np.median(np.diff(timestamps_s))) if len(timestamps_s) > 1 else 0.0
        spacings_s += [spacing_s] if spacing_s > 0 else []
        for who, of_row in (("predicted", row.spans["answer"]), ("truth", row.truth)):
            spans[who].append(of_row)
            if spacing_s > 0:
                # Rounded, so that a time on a frame is not a hair before it.
                phases[who].append(np.round((of_row - timestamps_s[0]) / spacing_s, 6) % 1)
        if len(row.truth) and len(row.spans["answer"]):
            matched = row.truth[match_truth(row.spans["answer"], row.truth)]
            lengths_s.append(np.stack([np.diff(matched)[:, 0], np.diff(row.spans["answer"])[:, 0]], axis=1))
    joined = {who: np.concatenate(of_who) for who, of_who in spans.items()}
    if not len(joined["predicted"]):
        return None
    lengths_s = np.concatenate(lengths_s)
    drawn = np.unique(np.linspace(0, len(lengths_s) - 1, min(len(lengths_s), NUM_POINTS)).round().astype(int))
    ratio = lengths_s[:, 1] / np.where(lengths_s[:, 0] > 0, lengths_s[:, 0], np.nan)
    has_spread = len(lengths_s) > 1 and (lengths_s.std(axis=0) > 0).all()
    return {
        "spans": {who: len(of_who) for who, of_who in joined.items()},
        "frame_spacing_s": float(np.median(spacings_s)) if spacings_s else None,
        "phase": {
            who: _shares(np.concatenate(of_who).ravel(), EDGES) for who, of_who in phases.items() if len(of_who) > 1
        },
        "within_10_s": {
            who: _shares(np.round(of_who.ravel(), 6) % 10, EDGES_10_S) for who, of_who in joined.items() if len(of_who)
        },
        "multiples": {
            who: {
                f"{multiple_s}": [
                    _mean(np.abs(times_s / multiple_s - np.round(times_s / multiple_s)) < 1e-6) for times_s in of_who.T
                ]
                for multiple_s in MULTIPLES_S
            }
            for who, of_who in joined.items()
        },
        "median_length_s": {
            who: float(np.median(np.diff(of_who))) if len(of_who) else None for who, of_who in joined.items()
        },
        "lengths_s": lengths_s[drawn].round(3).tolist(),
        "median_length_ratio": float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else None,
        "length_correlation": float(np.corrcoef(lengths_s.T)[0, 1]) if has_spread else None,
    }


def _stage_ious(row: Row) -> np.ndarray:
    evidence, answer = row.spans["evidence"], row.spans["answer"]
    return iou_pairs(evidence, answer) if len(evidence) == len(answer) else np.zeros(0)


def _stages(rows: list[Row]) -> dict[str, Any] | None:
    """Agreement of the two stages, and how many intervals each names."""
    rows = [row for row in rows if row.answer.evidence is not None]
    iou = np.concatenate([*map(_stage_ious, rows), np.zeros(0)])
    if not rows:
        return None
    reach = MAX_COUNT_DIFFERENCE
    counts = {}
    for stage in STAGES:
        difference = np.array([len(row.spans[stage]) - len(row.truth) for row in rows if len(row.truth)], dtype=int)
        if not len(difference):
            continue
        counts[stage] = {
            "difference": _shares(np.clip(difference, -reach, reach), np.arange(-reach, reach + 2) - 0.5),
            "exact": float((difference == 0).mean()),
            "over": float((difference > 0).mean()),
            "under": float((difference < 0).mean()),
        }
    return {
        "pairs": len(iou),
        "edges": EDGES.tolist(),
        "iou": _shares(np.minimum(iou, 1), EDGES),
        "mean_iou": _mean(iou),
        "below_half": _mean(iou < 0.5),
        "unequal_counts": _mean([len(row.spans["evidence"]) != len(row.spans["answer"]) for row in rows]),
        "counts": counts,
    }


def _by_task(rows: list[Row]) -> list[dict[str, Any]]:
    """Scores of the saved intervals of the answers, by task; rows without a true interval are left out."""
    scored = [row for row in rows if len(row.truth)]
    if not scored:
        return []
    predicted = [row.spans["answer"] for row in scored]
    num_predicted = np.array([len(spans) for spans in predicted])
    f1 = RowF1([row.truth for row in scored], num_predicted)(np.concatenate(predicted))
    extra = num_predicted - np.array([len(row.truth) for row in scored])
    agreement = np.array([_mean(_stage_ious(row)) for row in scored], dtype=np.float64)
    tasks = np.array([str(row.answer.task) for row in scored])
    found = []
    for task in [*sorted(set(tasks)), None]:
        of_task = np.ones(len(scored), bool) if task is None else tasks == task
        found.append(
            {
                "task": task,
                "rows": int(of_task.sum()),
                "f1": _mean(f1[of_task]),
                "exact_count": _mean(extra[of_task] == 0),
                "over_answering": _mean(extra[of_task] > 0),
                "stage_agreement": _mean(agreement[of_task]),
            }
        )
    return found if len(found) > 2 else found[-1:]


def analysis_numbers(
    answers: Sequence[SavedAnswer],
    threshold: float = 0.6,
    *,
    time_rule: str = "interval",
    interval_ties: str = "first",
) -> dict[str, Any]:
    """
    How the evidence tokens of a run look at frames, and where its times lie.

    Args:
        answers (`Sequence[SavedAnswer]`):
            Answers of a run, with their similarities if the model has evidence tokens.
        threshold (`float`, *optional*, defaults to `0.6`):
            The model's `salience_threshold`: frames of at least this share of the maximum are salient.
        time_rule (`str`, *optional*, defaults to `"interval"`):
            The processor's `time_rule`: how frames become seconds.
        interval_ties (`str`, *optional*, defaults to `"first"`):
            The model's `interval_ties`: which of equal runs of frames it answers.

    Returns:
        `dict[str, Any]`: plain numbers, lists and dicts. A section that the answers hold nothing for is `None`.

        - `threshold`, `answers`, `without_truth`, `broken` (answers whose similarities do not fit their intervals or
          are not finite), `faults` (rows without an answer), `tokens` (`<evi>` that could be analysed) and
          `reproduced` (share of the saved intervals that the rule gives again at `threshold`).
        - `by_task`: scores of the intervals of the answers.
        - `distribution`: histograms of salience inside and outside the true interval, their overlap and AUROC.
        - `calibration`: `raw` and `relative` (to the token's maximum), each as [`calibration`] by stage.
        - `sweep`: F1 by threshold and stage, from .3 to .9.
        - `alternatives`: other similarities, each at the threshold that is best on one half of the rows, on the
          other half.
        - `times`: where starts and ends lie between frames, shares of round times, lengths.
        - `stages`: agreement of evidence and answer, and the numbers of their intervals.

    Raises:
        ValueError: if there are no answers, or the threshold is not in `(0, 1]`.

    Example:

    ```python
    numbers = analysis_numbers(list(read_answers("runs/eventworld")), threshold=0.6)
    numbers["sweep"]["stages"]["answer"]["best_threshold"]
    ```
    """
    if not answers:
        raise ValueError("there are no answers to analyse")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it is a share of the maximum, above 0 and at most 1")
    rows = [read_row(answer) for answer in answers]
    tokens = read_tokens(rows, time_rule)
    numbers: dict[str, Any] = {
        "threshold": float(threshold),
        "answers": len(rows),
        "without_truth": sum(len(row.truth) == 0 for row in rows),
        "broken": sum(row.is_broken for row in rows),
        "faults": sum(bool(row.answer.fault) for row in rows),
        "tokens": 0 if tokens is None else len(tokens.row),
        "reproduced": None,
        "by_task": _by_task(rows),
    }
    numbers |= dict.fromkeys(("distribution", "calibration", "sweep", "alternatives"))
    if tokens is not None:
        rule = {"time_rule": time_rule, "ties": interval_ties}
        again = run_spans(tokens.similarities["salience"], tokens, threshold, **rule)
        numbers["reproduced"] = _mean(np.isclose(again, tokens.saved_spans, atol=1e-3).all(axis=1))
        if tokens.has_truth.any():
            sweeps = {stage: _Sweep(rows, tokens, number, rule) for number, stage in enumerate(STAGES)}
            numbers["distribution"] = _distribution(tokens, threshold)
            numbers["calibration"] = _calibration(tokens)
            numbers["sweep"] = _threshold_sweep(sweeps, threshold)
            numbers["alternatives"] = _alternatives(rows, sweeps["answer"], threshold)
    return numbers | {"times": _times(rows), "stages": _stages(rows)}
