# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Recall, IoU and interval F1 of answers with times, on anybody's data, and what the span benchmarks share."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ...data.grammar import EVI_END
from .intervals import ROUNDING, iou_pairs
from .scores import Problem, Scores, match_predictions
from .time_text import check_spans, read_spans

F1_THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
RECALL_THRESHOLDS = (0.3, 0.5, 0.7)

Spans = list[tuple[float, float]]


def span_scores(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Scores:
    """
    Scores of intervals against true intervals: one or several per sample, from numbers or from text.

    `R1@t` and `mIoU` take the first interval of an answer, in the order of the answer, with the true one that it
    overlaps most. `F1@t` compares the two sets, without one-to-one matching: recall is the share of true intervals
    that some answered one meets, precision the share of answered ones that meet some true one. F1 alone rewards
    answering too much, so read it beside `count_accuracy` and `over_answering`.

    A sample may have no true interval: right is then an answer that names none ("It does not happen."), and wrong are
    any interval, an empty text and a missing prediction.

    Args:
        predictions (`Sequence[Mapping]`):
            One per sample: `id`, and `text` (the answer; of `EVIDENCE </evi> ANSWER` the second part is read) or
            `spans` (`[[start_s, end_s], ...]`, used instead of the text).
        references (`Sequence[Mapping]`):
            Samples: `id`, `spans` (`[[start_s, end_s], ...]`), and optionally `duration` in seconds, by which
            intervals behind the end of the video are found and listed.

    Returns:
        [`Scores`]: percentages over all samples: `R1@0.3`, `R1@0.5`, `R1@0.7`, `mIoU`, `F1` (mean over the
        thresholds), `F1@0.1`, `F1@0.3`, `F1@0.5`, `F1@0.7`, `count_accuracy` (answers with the true number of
        intervals) and `over_answering` (answers with more).

    Raises:
        ValueError: if an id of a sample comes twice, or its spans are no intervals in seconds.

    Example:
        >>> from trl_temporal.evaluation.metrics.spans_metric import span_scores
        >>> references = [{"id": "a", "spans": [[0, 10]]}, {"id": "b", "spans": [[5, 15], [20, 30]]}]
        >>> predictions = [{"id": "a", "text": "From 0 to 6 seconds."}, {"id": "b", "spans": [[5, 15]]}]
        >>> scores = span_scores(predictions, references).metrics
        >>> round(scores["mIoU"], 1), round(scores["F1@0.5"], 1), scores["count_accuracy"]
        (80.0, 83.3, 50.0)
    """
    ids = [str(reference["id"]) for reference in references]
    truths = [true_spans(reference["id"], reference["spans"]) for reference in references]
    problems: list[Problem] = []
    matched = match_predictions(ids, predictions, problems)
    answers = [
        answered_spans(
            sample_id, prediction, problems, duration_s=reference.get("duration"), none_is_right=not len(truth)
        )
        for sample_id, prediction, reference, truth in zip(ids, matched, references, truths, strict=True)
    ]
    true, num_true = flat_spans(truths)
    answered, num_answered = flat_spans([answer or () for answer in answers])
    is_answered = np.array([answer is not None for answer in answers], dtype=bool)
    right_none = is_answered & (num_true == 0) & (num_answered == 0)

    first, num_first = flat_spans([(answer or ())[:1] for answer in answers])
    iou = right_none.astype(float)
    iou[num_first > 0] = best_iou(first, num_first, true, num_true)

    thresholds = np.array(F1_THRESHOLDS) - ROUNDING
    precision = _means(best_iou(answered, num_answered, true, num_true)[:, None] >= thresholds, num_answered)
    recall = _means(best_iou(true, num_true, answered, num_answered)[:, None] >= thresholds, num_true)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    f1[right_none] = 1

    metrics = {
        **recall_metrics(iou),
        "F1": percentage(f1.mean(axis=1)),
        **{f"F1@{threshold}": percentage(f1[:, index]) for index, threshold in enumerate(F1_THRESHOLDS)},
        "count_accuracy": percentage(is_answered & (num_answered == num_true)),
        "over_answering": percentage(num_answered > num_true),
    }
    return Scores(metrics, problems, len(references))


def answered_spans(
    sample_id: str,
    prediction: Mapping[str, Any] | None,
    problems: list[Problem],
    *,
    duration_s: float | None = None,
    none_is_right: bool = False,
) -> Spans | None:
    """
    The intervals that a prediction names.

    Args:
        sample_id (`str`):
            The sample, for `problems`.
        prediction (`Mapping` or `None`):
            Prediction with `spans` or `text`, see [`span_scores`]. `None` for a missing one, which is in `problems`
            already.
        problems (`list[Problem]`):
            Gets what is found.
        duration_s (`float`, *optional*):
            Duration of the video in seconds.
        none_is_right (`bool`, *optional*, defaults to `False`):
            Whether an answer without intervals is one.

    Returns:
        `list[tuple[float, float]]` or `None`: intervals in seconds in the order of the answer, `None` where there is
        no answer.

    Example:
        >>> from trl_temporal.evaluation.metrics.spans_metric import answered_spans
        >>> answered_spans("a", {"id": "a", "text": "1.0 - 2.0 </evi> It happens in 3 - 9."}, [])
        [(3.0, 9.0)]
    """
    if prediction is None:
        return None
    given, text = prediction.get("spans"), prediction.get("text")
    if given is not None:
        if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
            problems.append(Problem(sample_id, "unparsable", f"spans: {given!r:.60}"))
            return None
        found, is_empty, names_none, detail = check_spans(list(given)), len(given) == 0, len(given) == 0, ""
    elif text is None or isinstance(text, str):
        text = text or ""
        text = text.partition(EVI_END)[2] if EVI_END in text else text
        found, is_empty, detail = read_spans(text), not text.strip(), text[:80]
        names_none = not is_empty and not found.problems
    else:
        problems.append(Problem(sample_id, "unparsable", f"text: {text!r:.60}"))
        return None

    problems.extend(Problem(sample_id, kind, found_detail) for kind, found_detail in found.problems)
    if not found.spans:
        if none_is_right and names_none:
            return []
        problems.append(Problem(sample_id, "empty" if is_empty else "unparsable", detail))
        return None
    last_s = max(end_s for _, end_s in found.spans)
    if duration_s is not None and last_s > duration_s + ROUNDING:
        problems.append(Problem(sample_id, "out of duration", f"{last_s} s of {duration_s} s"))
    return found.spans


def first_spans(
    ids: Sequence[str],
    predictions: Sequence[Mapping[str, Any] | None],
    problems: list[Problem],
    durations_s: Sequence[float | None] | None = None,
) -> np.ndarray:
    """
    The first interval of every prediction: the answer where a question has one.

    Args:
        ids (`Sequence[str]`):
            The samples.
        predictions (`Sequence`):
            Prediction of every sample, or `None`, see [`answered_spans`].
        problems (`list[Problem]`):
            Gets what is found.
        durations_s (`Sequence`, *optional*):
            Duration of every sample's video in seconds, or `None`.

    Returns:
        `np.ndarray` of shape `(samples, 2)`: seconds; two NaN, which overlap with nothing, where there is no interval.

    Example:
        >>> from trl_temporal.evaluation.metrics.spans_metric import first_spans
        >>> first_spans(["a", "b"], [{"text": "3 - 9, 12 - 15"}, None], []).tolist()
        [[3.0, 9.0], [nan, nan]]
    """
    firsts = np.full((len(ids), 2), np.nan)
    for index, (sample_id, prediction) in enumerate(zip(ids, predictions, strict=True)):
        duration_s = durations_s[index] if durations_s is not None else None
        spans = answered_spans(sample_id, prediction, problems, duration_s=duration_s)
        if spans:
            firsts[index] = spans[0]
    return firsts


def true_spans(sample_id: Any, spans: Sequence[Sequence[float]]) -> np.ndarray:
    """
    The true intervals of a sample.

    Args:
        sample_id (`Any`):
            The sample, for the error.
        spans (`Sequence` of `[start_s, end_s]`):
            Intervals in seconds.

    Returns:
        `np.ndarray` of shape `(intervals, 2)`

    Raises:
        ValueError: if they are no intervals in seconds, start before end.

    Example:
        >>> from trl_temporal.evaluation.metrics.spans_metric import true_spans
        >>> true_spans("a", [[9, 3]])
        Traceback (most recent call last):
            ...
        ValueError: the sample 'a' has the true interval '[9, 3]' (reversed); write [start_s, end_s]
    """
    checked = check_spans(list(spans))
    for kind, detail in checked.problems:
        raise ValueError(f"the sample {sample_id!r} has the true interval {detail!r} ({kind}); write [start_s, end_s]")
    return np.array(checked.spans, dtype=np.float64).reshape(-1, 2)


def flat_spans(spans_of_samples: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """
    All intervals in one array.

    Args:
        spans_of_samples (`Sequence`):
            Intervals of every sample.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: intervals of shape `(intervals, 2)`, and the number of those of every sample.

    Example:
        >>> from trl_temporal.evaluation.metrics.spans_metric import flat_spans
        >>> [array.tolist() for array in flat_spans([[[0, 1]], [], [[2, 3], [4, 5]]])]
        [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [1, 0, 2]]
    """
    counts = np.array([len(spans) for spans in spans_of_samples], dtype=np.int64)
    flat = np.array(list(chain.from_iterable(spans_of_samples)), dtype=np.float64)
    return flat.reshape(-1, 2), counts


def best_iou(spans: np.ndarray, counts: np.ndarray, others: np.ndarray, other_counts: np.ndarray) -> np.ndarray:
    """
    IoU of every interval with the one of the same sample that it overlaps most.

    Args:
        spans (`np.ndarray` of shape `(n, 2)`):
            Intervals in seconds, sample after sample.
        counts (`np.ndarray` of shape `(samples,)`):
            How many of them every sample has.
        others (`np.ndarray` of shape `(m, 2)`):
            The intervals to compare with.
        other_counts (`np.ndarray` of shape `(samples,)`):
            How many of these every sample has.

    Returns:
        `np.ndarray` of shape `(n,)`: 0 where the sample has nothing to compare with.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.spans_metric import best_iou
        >>> spans, others = np.array([[0, 10], [3, 4]]), np.array([[0, 5], [0, 8]])
        >>> best_iou(spans, np.array([1, 1]), others, np.array([2, 0])).tolist()
        [0.8, 0.0]
    """
    num_pairs = np.repeat(other_counts, counts)
    first_pairs = np.cumsum(num_pairs) - num_pairs
    first_others = np.repeat(np.cumsum(other_counts) - other_counts, counts)
    pair_others = np.arange(num_pairs.sum()) + np.repeat(first_others - first_pairs, num_pairs)
    iou = iou_pairs(np.repeat(spans, num_pairs, axis=0), others[pair_others])
    best = np.zeros(len(spans))
    has_pairs = num_pairs > 0
    if has_pairs.any():
        best[has_pairs] = np.maximum.reduceat(iou, first_pairs[has_pairs])
    return best


def recall_metrics(iou: np.ndarray) -> dict[str, float]:
    """
    Recall and mean of the IoU of one answer per sample.

    Args:
        iou (`np.ndarray` of shape `(samples,)`):
            IoU of every sample, 0 where there is no answer.

    Returns:
        `dict[str, float]`: percentages `R1@0.3`, `R1@0.5`, `R1@0.7`, `mIoU`.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.spans_metric import recall_metrics
        >>> recall_metrics(np.array([1, 0.5]))
        {'R1@0.3': 100.0, 'R1@0.5': 100.0, 'R1@0.7': 50.0, 'mIoU': 75.0}
    """
    recalls = {f"R1@{threshold}": percentage(iou >= threshold - ROUNDING) for threshold in RECALL_THRESHOLDS}
    return {**recalls, "mIoU": percentage(iou)}


def percentage(values: np.ndarray) -> float:
    """
    Mean in percent, the same in any order of the values.

    Args:
        values (`np.ndarray` of shape `(samples,)`):
            Values from 0 to 1.

    Returns:
        `float`: 0 where there are none.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.spans_metric import percentage
        >>> percentage(np.array([True, False]))
        50.0
    """
    return 100 * math.fsum(values.tolist()) / len(values) if len(values) else 0.0


def hull_overlap(truth: np.ndarray, answered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Overlap and hull as original scorers compute them with Python's `min` and `max`, which do not turn NaN into NaN.

    Args:
        truth (`np.ndarray` of shape `(..., 2)`):
            True intervals in seconds.
        answered (`np.ndarray` of shape `(..., 2)`):
            Answered intervals, in any order of their ends.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: seconds of the overlap (negative for a gap), and from the first start to the
        last end. An answer of two NaN yields the truth itself for both.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.spans_metric import hull_overlap
        >>> [seconds.tolist() for seconds in hull_overlap(np.array([[0, 4]]), np.array([[3, 9]]))]
        [[1], [9]]
    """
    later_start = np.where(answered[..., 0] > truth[..., 0], answered[..., 0], truth[..., 0])
    earlier_start = np.where(answered[..., 0] < truth[..., 0], answered[..., 0], truth[..., 0])
    later_end = np.where(answered[..., 1] > truth[..., 1], answered[..., 1], truth[..., 1])
    earlier_end = np.where(answered[..., 1] < truth[..., 1], answered[..., 1], truth[..., 1])
    return earlier_end - later_start, later_end - earlier_start


def _means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of every sample's rows of `values`, shape `(samples, columns)`; 0 for a sample without rows."""
    means = np.zeros((len(counts), values.shape[1]))
    has_rows = counts > 0
    if has_rows.any():
        starts = (np.cumsum(counts) - counts)[has_rows]
        means[has_rows] = np.add.reduceat(values, starts, axis=0, dtype=float) / counts[has_rows, None]
    return means
