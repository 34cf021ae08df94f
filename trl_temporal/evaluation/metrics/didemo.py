# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""DiDeMo: a ranking of candidate moments, or one interval, against the moments that several annotators marked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .intervals import iou_pairs
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions
from .spans_metric import answered_spans, flat_spans, percentage, recall_metrics

PIECE_S = 5.0
NUM_AGREEING = 3  # of the annotators of a description, usually four, the best three count

Segment = tuple[int, int]


def didemo(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
) -> Scores:
    """
    Scores on DiDeMo.

    The official scorer wants a ranking of the 21 moments that a video of six pieces has. A model that answers with an
    interval in seconds is scored in fixed mode, with the official rule applied to its IoU: the mean over the three
    annotators that it agrees with most. These numbers are not comparable with the official table. Annotators disagree,
    so that no answer reaches 100.

    Args:
        predictions (`Sequence[Mapping]`):
            One per description: `id`, and `segments` (all moments, best first, `[first, last]` in pieces of five
            seconds, both included), or in fixed mode also `text` or `spans` (`[[start_s, end_s], ...]`). The first
            interval counts; of `segments` it is the first moment.
        references (`Sequence[Mapping]`):
            Official records: `annotation_id` and `times` (`[first, last]` of every annotator, in pieces).
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: all descriptions are in the denominator. `"original"`: equal to the official scorer on the
            descriptions that have `segments`. Where an annotator's moment is not among them, it would stop with an
            error; here that is listed as `"crash"`, and the moment's rank is infinite.

    Returns:
        [`Scores`]: fixed, in percent: `R1@0.3`, `R1@0.5`, `R1@0.7`, `mIoU`, and where any prediction has `segments`
        also `Rank@1` and `Rank@5` (descriptions where the mean rank of the best three annotators is at most 1 or 5).
        Original, as shares: `rank1`, `rank5`, `miou`.

    Raises:
        ValueError: if `scoring` does not exist, or references are faulty.

    Example:
        >>> from trl_temporal.evaluation.metrics.didemo import didemo
        >>> references = [{"annotation_id": 7, "times": [[1, 2], [1, 2], [1, 2], [0, 0]]}]
        >>> didemo([{"id": 7, "text": "It happens in 5.0 - 10.0."}], references).metrics
        {'R1@0.3': 100.0, 'R1@0.5': 100.0, 'R1@0.7': 0.0, 'mIoU': 50.0}
    """
    check_scoring(scoring)
    ids = [str(reference["annotation_id"]) for reference in references]
    times = [_annotated(reference) for reference in references]
    problems: list[Problem] = []
    if scoring == "original":
        return _original(ids, times, predictions, problems)

    matched = match_predictions(ids, predictions, problems)
    rankings = [_ranking(*pair, problems) for pair in zip(ids, matched, strict=True)]
    spans = []
    for sample_id, prediction, ranking, reference in zip(ids, matched, rankings, references, strict=True):
        if ranking is None:
            answered = answered_spans(sample_id, prediction, problems, duration_s=reference.get("duration")) or []
        else:
            answered = [_seconds(segment) for segment in ranking[:1] if segment is not None]
        spans.append(answered[0] if answered else (np.nan, np.nan))
    iou = _agreed_iou(spans, [[_seconds(segment) for segment in annotated] for annotated in times])
    metrics = recall_metrics(iou)
    if any(ranking is not None for ranking in rankings):
        ranks = np.array([_agreed_rank(ranking or [], t) for ranking, t in zip(rankings, times, strict=True)])
        metrics |= {"Rank@1": percentage(ranks <= 1), "Rank@5": percentage(ranks <= 5)}
    return Scores(metrics, problems, len(references))


def _original(
    ids: list[str], times: list[list[Segment]], predictions: Sequence[Mapping[str, Any]], problems: list[Problem]
) -> Scores:
    by_id = {str(prediction["id"]): prediction for prediction in predictions}
    known = set(ids)
    problems.extend(Problem(sample_id, "unknown id") for sample_id in by_id if sample_id not in known)
    answered, annotated, ranks = [], [], []
    for sample_id, sample_times in zip(ids, times, strict=True):
        if sample_id not in by_id:
            problems.append(Problem(sample_id, "missing"))
            continue
        ranking = _ranking(sample_id, by_id[sample_id], problems)
        if not ranking or ranking[0] is None:
            problems.append(Problem(sample_id, "crash", "the original needs a ranking of moments"))
            continue
        if not set(sample_times) <= set(ranking):
            problems.append(Problem(sample_id, "crash", "an annotated moment is not in the ranking"))
        answered.append(_seconds(ranking[0]))
        annotated.append([_seconds(segment) for segment in sample_times])
        ranks.append(_agreed_rank(ranking, sample_times))
    if not answered:
        return Scores({"rank1": 0.0, "rank5": 0.0, "miou": 0.0}, problems, 0)
    iou = _agreed_iou(answered, annotated)
    metrics = {
        "rank1": float(np.mean(np.array(ranks) <= 1)),
        "rank5": float(np.mean(np.array(ranks) <= 5)),
        "miou": float(np.mean(iou)),
    }
    return Scores(metrics, problems, len(answered))


def _annotated(reference: Mapping[str, Any]) -> list[Segment]:
    segments = [_segment(pair) for pair in reference["times"]]
    if not segments or None in segments:
        raise ValueError(
            f"the description {reference['annotation_id']!r} has the times {reference['times']!r}; "
            "write [first, last] of every annotator, in pieces"
        )
    return segments


def _segment(pair: Any) -> Segment | None:
    """First and last piece, or `None` where the pair is none."""
    try:
        first, last = pair
        if int(first) == first and int(last) == last and 0 <= first <= last:
            return int(first), int(last)
    except (TypeError, ValueError, OverflowError):
        pass
    return None


def _ranking(
    sample_id: str, prediction: Mapping[str, Any] | None, problems: list[Problem]
) -> list[Segment | None] | None:
    """The ranked moments, with `None` for what is no moment; `None` where the prediction has no ranking."""
    segments = prediction.get("segments") if prediction else None
    if segments is None:
        return None
    if not isinstance(segments, Sequence) or isinstance(segments, str):
        problems.append(Problem(sample_id, "unparsable", f"segments: {segments!r:.60}"))
        return []
    ranking = [_segment(pair) for pair in segments]
    if not ranking:
        problems.append(Problem(sample_id, "empty"))
    if None in ranking:
        problems.append(Problem(sample_id, "malformed number", f"segments: {segments[ranking.index(None)]!r:.60}"))
    return ranking


def _seconds(segment: Segment) -> tuple[float, float]:
    # The official IoU of pieces, with 1 added to the last one, is the IoU of these seconds.
    return PIECE_S * segment[0], PIECE_S * (segment[1] + 1)


def _agreed_rank(ranking: Sequence[Segment | None], annotated: Sequence[Segment]) -> float:
    """Mean rank of the moments of the three annotators that rank best; infinite for one that is not there."""
    rank_of = {segment: index + 1 for index, segment in reversed(list(enumerate(ranking)))}
    return float(np.mean(sorted(rank_of.get(segment, np.inf) for segment in annotated)[:NUM_AGREEING]))


def _agreed_iou(answered: list[tuple[float, float]], annotated: list[list[tuple[float, float]]]) -> np.ndarray:
    """Mean IoU with the three annotators that agree most, shape `(samples,)`."""
    truth, counts = flat_spans(annotated)
    iou = iou_pairs(np.repeat(np.array(answered, dtype=float).reshape(-1, 2), counts, axis=0), truth)
    table = np.full((len(counts), max(NUM_AGREEING, counts.max(initial=0))), -np.inf)
    table[np.arange(table.shape[1]) < counts[:, None]] = iou
    best = np.sort(table, axis=1)[:, -NUM_AGREEING:]
    return np.where(best >= 0, best, 0).sum(axis=1) / np.minimum(counts, NUM_AGREEING)
