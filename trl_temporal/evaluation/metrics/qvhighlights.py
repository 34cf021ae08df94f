# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""QVHighlights: all moments of a query (mAP, R1) and the salience of every clip (mAP, Hit1)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .intervals import ROUNDING, iou_pairs
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions
from .spans_metric import answered_spans, percentage, true_spans
from .time_text import check_spans

CLIP_S = 2
MAX_WINDOWS = 10
IOU_THRESHOLDS = np.array([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
# Seconds that a true window must be longer than, and may have at most.
LENGTHS_S = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (-math.inf, math.inf)}
SALIENCY_LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}

Windows = list[tuple[float, float, float]]


def qvhighlights(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
) -> Scores:
    """
    Scores on QVHighlights.

    Moments: mAP over the IoU thresholds .5 to .95 of at most 10 windows, matched greedily in the order of their
    scores, and R1 of the best window, for all true windows and for those of up to 10 s (short), 10 s to 30 s (middle)
    and 30 s to 150 s (long). For these three, windows of another length are left out of the truth and not of the
    answer, so that a full answer to a query with both does not reach 100.

    Highlights: mAP over the clips of 2 s, and whether the best one is right (Hit1), for clips that an annotator rated
    Fair (2), Good (3) or VeryGood (4) and better. mAP is the mean over the three annotators, with 0 for one who rated
    no clip as high; Hit1 takes the best of them. Annotators disagree, so that no answer reaches 100.

    Args:
        predictions (`Sequence[Mapping]`):
            One per query: `id`, `windows` (`[[start_s, end_s, score], ...]`), and optionally `saliency` (a score for
            every 2 seconds). Instead of `windows`, `text` (the answer) or `spans` (`[[start_s, end_s], ...]`): all
            their windows have the score 1, and their order is the rank. Windows say nothing about salience, so that
            without `saliency` in any prediction there are no highlight scores.
        references (`Sequence[Mapping]`):
            Records of Moment-DETR's annotation file: `qid`, `duration`, `relevant_windows`, `relevant_clip_ids`,
            `saliency_scores`.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: all queries are in the denominator, windows are ranked by score before they are cut to 10,
            clips without a score are not answered, and clips of equal score count by the recall that they bring.
            `"original"`: equal to `standalone_eval`, rounded to two decimals. It takes the first window for R1 and the
            first 10 for mAP, whatever their scores, counts a reversed window as long as a true one as a hit, and pads
            saliency with 0. It refuses predictions for other queries than those of the references, has no answer for
            queries without a window, and none for lengths that no true window has: listed as `"crash"`, and left out.

    Returns:
        [`Scores`]: percentages `MR-full-mAP`, `MR-full-mAP@0.5`, `MR-full-mAP@0.75`, `MR-full-R1@0.5`,
        `MR-full-R1@0.7`, `MR-short-mAP`, `MR-middle-mAP`, `MR-long-mAP` (those that the references have), and
        `HL-min-Fair-mAP`, `HL-min-Fair-Hit1` and so on. `details` has the numbers of all thresholds.

    Raises:
        ValueError: if `scoring` does not exist, or references are faulty.

    Example:
        >>> from trl_temporal.evaluation.metrics.qvhighlights import qvhighlights
        >>> rated = {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 4, 4], [4, 4, 4]]}
        >>> references = [{"qid": 7, "duration": 20, "relevant_windows": [[2, 6]], **rated}]
        >>> scores = qvhighlights([{"id": 7, "text": "8.0 - 12.0 and 2.0 - 6.0"}], references).metrics
        >>> scores["MR-full-mAP"], scores["MR-full-R1@0.5"]
        (50.0, 0.0)
    """
    check_scoring(scoring)
    ids = [str(reference["qid"]) for reference in references]
    truths = [true_spans(reference["qid"], reference["relevant_windows"]) for reference in references]
    for sample_id, truth in zip(ids, truths, strict=True):
        if not len(truth):
            raise ValueError(f"the query {sample_id!r} has no window; give at least one")
    problems: list[Problem] = []
    if scoring == "original":
        return _original(ids, truths, predictions, references, problems)

    matched = match_predictions(ids, predictions, problems)
    has_saliency = any(prediction and prediction.get("saliency") is not None for prediction in matched)
    metrics, details = {}, {}
    if not has_saliency or any(prediction and _has_windows(prediction) for prediction in matched):
        windows = [
            _ranked(_windows(sample_id, prediction, reference["duration"], problems))
            for sample_id, prediction, reference in zip(ids, matched, references, strict=True)
        ]
        metrics, details = _fixed_moments(windows, truths)
    if has_saliency:
        more_metrics, more_details = _fixed_highlights(ids, matched, references, problems)
        metrics, details = metrics | more_metrics, details | more_details
    return Scores(metrics, problems, len(references), details)


def _has_windows(prediction: Mapping[str, Any]) -> bool:
    return any(prediction.get(name) is not None for name in ("windows", "spans", "text"))


def _windows(
    sample_id: str, prediction: Mapping[str, Any] | None, duration_s: float, problems: list[Problem]
) -> Windows:
    """The windows of a prediction, in its order."""
    given = prediction.get("windows") if prediction else None
    if given is None:
        spans = answered_spans(sample_id, prediction, problems, duration_s=duration_s) or []
        return [(start_s, end_s, 1.0) for start_s, end_s in spans]
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
        problems.append(Problem(sample_id, "unparsable", f"windows: {given!r:.60}"))
        return []
    windows = []
    for window in given:
        try:
            start_s, end_s, score = map(float, window)
            if not math.isfinite(score):
                raise ValueError("a window without a score has no rank")
        except (TypeError, ValueError):
            problems.append(Problem(sample_id, "malformed number", f"window: {window!r:.60}"))
            continue
        checked = check_spans([(start_s, end_s)])
        problems.extend(Problem(sample_id, kind, detail) for kind, detail in checked.problems)
        windows.extend((start_s, end_s, score) for start_s, end_s in checked.spans)
    if not windows:
        problems.append(Problem(sample_id, "unparsable" if len(given) else "empty"))
    elif (last_s := max(end_s for _, end_s, _ in windows)) > duration_s + ROUNDING:
        problems.append(Problem(sample_id, "out of duration", f"{last_s} s of {duration_s} s"))
    return windows


def _ranked(windows: Windows) -> Windows:
    return sorted(windows, key=lambda window: -window[2])[:MAX_WINDOWS]


def _fixed_moments(windows: list[Windows], truths: list[np.ndarray]) -> tuple[dict[str, float], dict[str, Any]]:
    answered, is_answered = _padded(windows, 3)
    truth, is_true = _padded(truths, 2)
    iou = iou_pairs(answered[:, :, None, :2], truth[:, None])
    thresholds = IOU_THRESHOLDS - ROUNDING
    details = {}
    for name, in_range, kept in _by_length(truth, is_true):
        precision = average_precision(iou[kept], is_answered[kept], in_range[kept], thresholds)
        best_iou = np.where(in_range & is_answered[:, :1], iou[:, 0], 0).max(axis=1)[kept]
        details[name] = {
            "MR-mAP": _named([percentage(column) for column in precision.T], percentage(precision.mean(axis=1))),
            "MR-R1": _named([percentage(best_iou >= threshold) for threshold in thresholds]),
        }
    return _brief(details), details


def _by_length(truth: np.ndarray, is_true: np.ndarray):
    """Name of every range of lengths, the true windows in it, and the queries that have any: left out if none has."""
    lengths_s = truth[:, :, 1] - truth[:, :, 0]
    for name, (shortest_s, longest_s) in LENGTHS_S.items():
        in_range = is_true & (lengths_s > shortest_s) & (lengths_s <= longest_s)
        kept = in_range.any(axis=1)
        if kept.any() or name == "full":
            yield name, in_range, kept


def _named(numbers: Sequence[float], average: float | None = None) -> dict[str, float]:
    named = {str(threshold): number for threshold, number in zip(IOU_THRESHOLDS.tolist(), numbers, strict=True)}
    return named if average is None else {**named, "average": average}


def _brief(details: Mapping[str, Any]) -> dict[str, float]:
    """The table of the benchmark."""
    full = details["full"]
    return {
        "MR-full-mAP": full["MR-mAP"]["average"],
        "MR-full-mAP@0.5": full["MR-mAP"]["0.5"],
        "MR-full-mAP@0.75": full["MR-mAP"]["0.75"],
        "MR-full-R1@0.5": full["MR-R1"]["0.5"],
        "MR-full-R1@0.7": full["MR-R1"]["0.7"],
        **{
            f"MR-{name}-mAP": details[name]["MR-mAP"]["average"]
            for name in ("short", "middle", "long")
            if name in details
        },
    }


def average_precision(
    iou: np.ndarray, is_answered: np.ndarray, is_true: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """
    Interpolated average precision of every query at every threshold.

    In the order of their rank, windows take the free true window that they overlap most, if they reach the threshold.

    Args:
        iou (`np.ndarray` of shape `(queries, windows, true windows)`):
            IoU of windows, best first, with true windows.
        is_answered (`np.ndarray` of shape `(queries, windows)`):
            Which windows are there; the others come behind.
        is_true (`np.ndarray` of shape `(queries, true windows)`):
            Which true windows are there, at least one.
        thresholds (`np.ndarray` of shape `(thresholds,)`):
            IoU that is a hit.

    Returns:
        `np.ndarray` of shape `(queries, thresholds)`: values in `[0, 1]`.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.qvhighlights import average_precision
        >>> iou = np.array([[[0.1], [0.6]]])  # the second of two windows hits
        >>> average_precision(iou, np.ones((1, 2), bool), np.ones((1, 1), bool), np.array([0.5, 0.7])).tolist()
        [[0.5, 0.0]]
    """
    num_queries, num_windows, _ = iou.shape
    hits = np.zeros((num_queries, len(thresholds), num_windows), dtype=bool)
    # Of two true windows that overlap equally, the original takes the last.
    free = np.repeat(is_true[:, None, ::-1], len(thresholds), axis=1)
    for rank in range(num_windows):
        candidates = np.where(free, iou[:, None, rank, ::-1], -np.inf)
        taken = candidates.argmax(axis=2)[:, :, None]
        hit = np.take_along_axis(candidates, taken, axis=2) >= thresholds[:, None]
        hit &= is_answered[:, None, rank, None]
        np.put_along_axis(free, taken, np.take_along_axis(free, taken, axis=2) & ~hit, axis=2)
        hits[:, :, rank] = hit[:, :, 0]

    num_hits = hits.cumsum(axis=2)
    precision = num_hits / np.arange(1, num_windows + 1)
    precision = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    recall = num_hits / is_true.sum(axis=1)[:, None, None]
    gained = np.diff(recall, axis=2, prepend=0) * precision
    # Where recall is not full, the original's sum has a last term of 0, which counts in numpy's grouping of terms.
    gained = np.concatenate([gained, np.zeros_like(gained[:, :, :1])], axis=2)
    hits = np.concatenate([hits, recall[:, :, -1:] != 1], axis=2)
    return _sums(gained, hits)[0]


def _original_moments(
    windows: Mapping[str, list[Windows]], truths: Mapping[str, np.ndarray], problems: list[Problem]
) -> tuple[dict[str, float], dict[str, Any]]:
    """`windows` are those of all predictions of a query: mAP takes them together, R1 the last."""
    for sample_id in [sample_id for sample_id, given in windows.items() if not given[-1]]:
        problems.append(Problem(sample_id, "crash", "no window"))
    windows = {sample_id: given for sample_id, given in windows.items() if given[-1]}
    ranked = [
        sorted((window for record in given for window in record[:MAX_WINDOWS]), key=lambda window: -window[2])
        for given in windows.values()
    ]
    answered, is_answered = _padded(ranked, 3)
    first = np.array([given[-1][0][:2] for given in windows.values()]).reshape(-1, 1, 2)
    truth, is_true = _padded([truths[sample_id] for sample_id in windows], 2)
    iou = _original_iou(answered[:, :, None, :2], truth[:, None])
    first_iou = _original_iou(first, truth)
    overlap = np.maximum(np.minimum(first[..., 1], truth[..., 1]) - np.maximum(first[..., 0], truth[..., 0]), 0)
    hull = np.maximum(first[..., 1], truth[..., 1]) - np.minimum(first[..., 0], truth[..., 0])
    hull_iou = np.where(hull != 0, overlap / np.where(hull != 0, hull, 1), 0)

    details = {}
    for name, in_range, kept in _by_length(truth, is_true):
        if not kept.any():
            continue
        precision = average_precision(iou[kept], is_answered[kept], in_range[kept], IOU_THRESHOLDS).mean(axis=0)
        # The true window is chosen by the IoU, and compared by the share of the hull.
        best = np.where(in_range, first_iou, -np.inf).argmax(axis=1)[:, None]
        best_iou = np.take_along_axis(hull_iou, best, axis=1)[kept, 0]
        details[name] = {
            "MR-mAP": _named([_rounded(number) for number in precision], _rounded(np.mean(precision))),
            "MR-R1": _named([_rounded(np.mean(best_iou >= threshold)) for threshold in IOU_THRESHOLDS]),
        }
    for name in [name for name in LENGTHS_S if name not in details]:
        problems.append(Problem("", "crash", f"no true window is {name}"))
    return (_brief(details) if details else {}), details


def _original_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    overlap = np.maximum(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = overlap / union
    # 0/0 comes first in its order, and is below no threshold: a reversed window as long as a true one is a hit.
    return np.where(np.isnan(iou), np.inf, iou)


def _fixed_highlights(
    ids: list[str],
    matched: Sequence[Mapping[str, Any] | None],
    references: Sequence[Mapping[str, Any]],
    problems: list[Problem],
) -> tuple[dict[str, float], dict[str, Any]]:
    ratings = _ratings(references)
    scores = np.full(ratings.shape[:2], np.nan)
    for index, (sample_id, prediction) in enumerate(zip(ids, matched, strict=True)):
        given = _saliency(sample_id, prediction, problems)[: _num_clips(references[index])]
        scores[index, : len(given)] = given
    best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    best_ratings = ratings[np.arange(len(ids)), best].max(axis=1)
    is_answered = ~np.isnan(scores).all(axis=1)
    metrics, details = {}, {}
    for name, level in SALIENCY_LEVELS.items():
        gained, precision, is_right = _saliency_curve(scores, ratings >= level)
        num_right = np.maximum(is_right.sum(axis=2), 1)
        mean_precision = percentage(((gained * precision).sum(axis=2) / num_right).mean(axis=1))
        hit = percentage(is_answered & (best_ratings >= level))
        details[f"HL-min-{name}"] = {"HL-mAP": mean_precision, "HL-Hit1": hit}
        metrics |= {f"HL-min-{name}-mAP": mean_precision, f"HL-min-{name}-Hit1": hit}
    return metrics, details


def _original_highlights(
    answered: Mapping[str, Mapping[str, Any]], references: Mapping[str, Mapping[str, Any]], problems: list[Problem]
) -> tuple[dict[str, float], dict[str, Any]]:
    saliency = {}
    for sample_id, prediction in answered.items():
        given = _saliency(sample_id, prediction, [])
        if len(given) == 0 or np.isnan(given).any():
            problems.append(Problem(sample_id, "crash", "saliency is missing or no number"))
        else:
            saliency[sample_id] = given
    if not saliency:
        return {}, {}
    ratings = _ratings([references[sample_id] for sample_id in saliency])
    scores = np.full(ratings.shape[:2], np.nan)
    best_ratings = np.zeros(len(saliency))
    for index, (sample_id, given) in enumerate(saliency.items()):
        num_clips, best = _num_clips(references[sample_id]), np.argmax(given)
        scores[index, :num_clips] = 0  # clips without a score come before those of a negative one
        scores[index, : min(len(given), num_clips)] = given[:num_clips]
        best_ratings[index] = ratings[index, best].max() if best < num_clips else -1
    metrics, details = {}, {}
    for name, level in SALIENCY_LEVELS.items():
        gained, precision, _ = _saliency_curve(scores, ratings >= level)
        # The mean over levels of recall, from the last: a level that brings several clips at once counts once.
        sums, counts = _sums(precision[:, :, ::-1], gained[:, :, ::-1] > 0)
        mean_precision = _rounded(np.mean(sums / np.maximum(counts, 1)))
        hit = _rounded(np.mean(best_ratings >= level))
        details[f"HL-min-{name}"] = {"HL-mAP": mean_precision, "HL-Hit1": hit}
        metrics |= {f"HL-min-{name}-mAP": mean_precision, f"HL-min-{name}-Hit1": hit}
    return metrics, details


def _num_clips(reference: Mapping[str, Any]) -> int:
    return int(reference["duration"] / CLIP_S)


def _ratings(references: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Ratings of all clips by the three annotators, shape `(queries, clips, 3)`; -1 behind the end of the video."""
    num_clips = [_num_clips(reference) for reference in references]
    ratings = np.full((len(references), max(num_clips, default=1), 3), -1)
    for index, (reference, length) in enumerate(zip(references, num_clips, strict=True)):
        clip_ids = np.array(reference["relevant_clip_ids"], dtype=int)
        if clip_ids.max(initial=0) >= length:
            raise ValueError(f"the query {reference['qid']!r} has {length} clips, and rates clip {clip_ids.max()}")
        ratings[index, :length] = 0
        ratings[index, clip_ids] = np.array(reference["saliency_scores"]).reshape(-1, 3)
    return ratings


def _saliency(sample_id: str, prediction: Mapping[str, Any] | None, problems: list[Problem]) -> np.ndarray:
    """The scores of a prediction, NaN for what is no number."""
    given = prediction.get("saliency") if prediction else None
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
        if prediction:
            problems.append(Problem(sample_id, "empty" if given is None else "unparsable", f"saliency: {given!r:.60}"))
        return np.zeros(0)
    try:
        scores = np.array(given, dtype=float).reshape(len(given))
    except (TypeError, ValueError):
        scores = np.array([score if isinstance(score, int | float) else math.nan for score in given], dtype=float)
    if not np.isfinite(scores).all():
        problems.append(Problem(sample_id, "malformed number", "a clip's saliency is no number"))
    return np.where(np.isfinite(scores), scores, np.nan)


def _saliency_curve(scores: np.ndarray, is_right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Clips in the order of their scores (queries, clips; NaN for none), against those that annotators take for right
    (queries, clips, annotators).

    Returns, of shape (queries, annotators, clips): right clips that each step down gains, where clips of one score
    make one step, at the last of them; the best precision from there on; and the right clips as they came.
    """
    order = np.argsort(-scores, axis=1, kind="stable")  # NaN last
    ranked = np.take_along_axis(scores, order, axis=1)
    is_answered = ~np.isnan(ranked)
    is_step = is_answered & (ranked != np.append(ranked[:, 1:], np.full_like(ranked[:, :1], np.nan), axis=1))
    is_right = is_right.transpose(0, 2, 1)
    hits = np.take_along_axis(is_right, order[:, None], axis=2) & is_answered[:, None]
    num_hits = np.where(is_step[:, None], hits.cumsum(axis=2), 0)
    gained = np.where(is_step[:, None], np.diff(np.maximum.accumulate(num_hits, axis=2), axis=2, prepend=0), 0)
    precision = num_hits / np.arange(1, scores.shape[1] + 1)
    return gained, np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1], is_right


def _original(
    ids: list[str],
    truths: list[np.ndarray],
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    problems: list[Problem],
) -> Scores:
    by_id = dict(zip(ids, references, strict=True))
    predictions = [(str(prediction["id"]), prediction) for prediction in predictions]
    unknown = [sample_id for sample_id, _ in predictions if sample_id not in by_id]
    missing = by_id.keys() - {sample_id for sample_id, _ in predictions}
    problems.extend(Problem(sample_id, "unknown id") for sample_id in unknown)
    problems.extend(Problem(sample_id, "missing") for sample_id in ids if sample_id in missing)
    if unknown or missing:
        problems.append(Problem("", "crash", "the queries of predictions and references differ"))
    last: dict[str, Mapping[str, Any]] = {}
    windows: dict[str, list[Windows]] = {}
    known = [(sample_id, prediction) for sample_id, prediction in predictions if sample_id in by_id]
    for sample_id, prediction in known:
        if sample_id in last:
            problems.append(
                Problem(sample_id, "duplicate", "windows of both count for mAP, the last one for the rest")
            )
        last[sample_id] = prediction
        if _has_windows(known[0][1]):
            duration_s = by_id[sample_id]["duration"]
            windows.setdefault(sample_id, []).append(_given_windows(sample_id, prediction, duration_s, problems))
    metrics, details = {}, {}
    if windows:
        metrics, details = _original_moments(windows, dict(zip(ids, truths, strict=True)), problems)
    if known and known[0][1].get("saliency") is not None:  # the first prediction decides for all
        more_metrics, more_details = _original_highlights(last, by_id, problems)
        metrics, details = metrics | more_metrics, details | more_details
    return Scores(metrics, problems, len(last), details)


def _given_windows(
    sample_id: str, prediction: Mapping[str, Any], duration_s: float, problems: list[Problem]
) -> Windows:
    """The windows as they are, or none where one of them is no three numbers."""
    if prediction.get("windows") is None:
        return _windows(sample_id, prediction, duration_s, problems)
    try:
        return [(float(window[0]), float(window[1]), float(window[2])) for window in prediction["windows"]]
    except (TypeError, ValueError, IndexError, KeyError):
        problems.append(Problem(sample_id, "crash", f"windows: {prediction['windows']!r:.60}"))
        return []


def _rounded(share: float) -> float:
    return float(f"{100 * share:.2f}")


def _padded(rows: Sequence[Sequence], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different length in an array `(rows, longest row, width)`, and where they are."""
    counts = np.array([len(row) for row in rows], dtype=int)
    is_there = np.arange(max(counts.max(initial=0), 1)) < counts[:, None]
    padded = np.zeros((*is_there.shape, width))
    padded[is_there] = np.array([item for row in rows for item in row], dtype=float).reshape(-1, width)
    return padded, is_there


def _sums(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Sums over the chosen of the last axis, and their numbers. The sum is that of an array of the chosen alone: numpy
    adds arrays of 8 numbers and more in another order than those of fewer.
    """
    shape, num_columns = values.shape[:-1], values.shape[-1]
    values, chosen = values.reshape(math.prod(shape), num_columns), chosen.reshape(math.prod(shape), num_columns)
    counts = chosen.sum(axis=1)
    packed = np.zeros(values.shape)
    packed[np.arange(num_columns) < counts[:, None]] = values[chosen]
    sums = np.zeros(len(values))
    for count in np.unique(counts):
        sums[counts == count] = packed[counts == count, :count].sum(axis=1)
    return sums.reshape(shape), counts.reshape(shape)
