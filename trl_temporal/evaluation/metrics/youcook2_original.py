# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""YouCook2 as TimeChat's `eval_dvc.py` scores it (D2VLM's copy does the same), faults included."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .captioning import CaptionToolsMissing, Meteor, cider, ptb_tokenize_file

IOU_THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
# The original draws a new string of 10 to 20 letters per unmatched prediction. Any that is no word gives the same
# scores.
FILLER = "zqxjkvbwpyzqxj"


class DenseVideo(NamedTuple):
    """Intervals in seconds, and one caption each."""

    spans: np.ndarray  # (n, 2)
    captions: list[str]


class OriginalScores(NamedTuple):
    """
    What the original prints and returns.

    Attributes:
        per_video (`dict[str, list]`):
            Its result: a list over videos per score, in its order.
        printed (`dict[str, float]`):
            Its report: percentages rounded to 1 decimal, but for `n_preds`.
        crashes (`list[str]`):
            Where it stops with an error; the score is 0 there.
        missing (`dict[str, str]`):
            Scores that were not computed, and why.
    """

    per_video: dict[str, list]
    printed: dict[str, float]
    crashes: list[str]
    missing: dict[str, str]


def original_scores(
    names: Sequence[str],
    truths: Sequence[DenseVideo],
    predictions: Sequence[DenseVideo | None],
    *,
    filler: str = FILLER,
) -> OriginalScores:
    """
    Score dense captions as the original does.

    Args:
        names (`Sequence[str]`):
            Names of the videos.
        truths (`Sequence[DenseVideo]`):
            Their annotations.
        predictions (`Sequence[DenseVideo or None]`):
            Their predictions, as read from the file; `None` where the file has none.
        filler (`str`, *optional*):
            What unmatched predictions are compared with.

    Returns:
        [`OriginalScores`]
    """
    paragraphs = [" ".join(truth.captions) for truth in truths]
    # Videos that are not in the file have no paragraph, and the pairs behind them shift.
    answers = [". ".join(prediction.captions) for prediction in predictions if prediction is not None]
    predictions = [prediction or DenseVideo(np.zeros((0, 2)), []) for prediction in predictions]
    overlaps = [_iou(truth.spans, predicted.spans) for truth, predicted in zip(truths, predictions, strict=True)]
    crashes: list[str] = []
    missing: dict[str, str] = {}
    averages = {}
    pairs = list(zip(map(letters_only, answers), map(letters_only, paragraphs), strict=False))
    averages["Para_CIDER"] = _cider(pairs, "paragraphs", crashes)
    captions: dict[str, list[float]] = {}
    soda: dict[str, list[float]] = {}
    try:
        with Meteor() as meteor:
            averages["Para_METEOR"] = _meteor(_in_order_of_text(pairs, range(len(pairs))), meteor)
            captions = _caption_scores(names, truths, predictions, overlaps, filler, meteor, crashes)
            tokenized = zip(_tokenized(truths), _tokenized(predictions), overlaps, strict=True)
            soda["SODA_c_2"] = [_soda(truth, predicted, iou, meteor) for truth, predicted, iou in tokenized]
    except (CaptionToolsMissing, RuntimeError) as error:
        missing = dict.fromkeys(("Para_METEOR", "CIDER", "METEOR", "SODA_c_2"), str(error))
        averages.pop("Para_METEOR", None)
        captions, soda = {}, {}
        if isinstance(error, RuntimeError):  # METEOR runs out of memory on endless captions
            crashes.append(str(error))

    per_video = captions | _localisation_scores(overlaps, predictions) | soda
    per_video["n_preds"] = [len(prediction.captions) for prediction in predictions]
    per_video["key"] = list(names)
    # The split of the annotation file (2) is part of the key; the original reports -1 for split 1.
    per_video["SODA_c_1"] = [-1] * len(names)
    printed = {key: round(score * 100, 1) for key, score in averages.items()}
    for key, values in per_video.items():
        if key != "key":
            printed[key] = round(sum(values) / len(values) * (1 if key == "n_preds" else 100), 1)
    return OriginalScores(per_video, printed, crashes, missing)


def monotone_assignment(scores: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """
    The best sum of pairs in which rows and columns both go forward, as SODA finds it.

    Args:
        scores (`np.ndarray` of shape `(n, m)`):
            Score of every pair, from 0 on.

    Returns:
        `tuple[float, list]`: the sum, and the pairs that the original traces back. It goes to the last column where
        the row was matched, whether the best path goes there or not, so the pairs may have a lower sum.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.metrics.youcook2_original import monotone_assignment
        >>> monotone_assignment(np.array([[1.0, 0.0], [3.0, 1.0]]))
        (3.0, [(1, 0)])
    """
    num_rows, num_columns = scores.shape
    best = np.zeros(num_columns)  # of the rows so far, up to each column
    is_matched = np.zeros(scores.shape, dtype=bool)
    for row in range(num_rows):
        diagonal = np.concatenate([[0.0], best[:-1]]) + scores[row]
        above = best if row else np.full(num_columns, -1.0)
        best = np.maximum.accumulate(np.maximum(above, diagonal))
        left = np.concatenate([[-1.0], best[:-1]])
        is_matched[row] = diagonal > np.maximum(above, left)  # a draw goes to the others
    pairs = []
    row, column = num_rows - 1, num_columns - 1
    while row >= 0 and column >= 0:
        matched = np.flatnonzero(is_matched[row, : column + 1])
        if len(matched):
            pairs.append((row, int(matched[-1])))
            column = matched[-1] - 1
        row -= 1
    return float(best[-1]), pairs[::-1]


def _first_less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Python's `min(a, b)`, which takes `a` where one is NaN."""
    return np.where(b < a, b, a)


def _first_greater(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Python's `max(a, b)`, which takes `a` where one is NaN."""
    return np.where(b > a, b, a)


def _iou(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Of shape (truth, predicted); of reversed intervals that of the interval turned round."""
    with np.errstate(invalid="ignore"):  # endless intervals
        low_p, high_p = (bound(predicted[:, 0], predicted[:, 1])[None] for bound in (_first_less, _first_greater))
        low_t, high_t = (bound(truth[:, 0], truth[:, 1])[:, None] for bound in (_first_less, _first_greater))
        intersection = _first_less(high_p, high_t) - _first_greater(low_p, low_t)
        intersection = np.where(intersection > 0, intersection, 0.0)
        hull = _first_greater(high_p, high_t) - _first_less(low_p, low_t)
        return intersection / (_first_less(hull, high_p - low_p + high_t - low_t) + 1e-8)


def _localisation_scores(overlaps: Sequence[np.ndarray], predictions: Sequence[DenseVideo]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {
        f"{name}@{threshold}": [] for threshold in IOU_THRESHOLDS for name in ("Precision", "Recall")
    } | {"Precision_Mean": [], "Recall_Mean": [], "F1_Score": []}
    for iou, predicted in zip(overlaps, predictions, strict=True):
        means = {"Precision": 0.0, "Recall": 0.0}
        for threshold in IOU_THRESHOLDS:
            hits = iou > threshold
            precision = int(hits.any(axis=0).sum()) / max(len(predicted.spans), 1)
            recall = int(hits.any(axis=1).sum()) / len(iou)
            for name, value in (("Precision", precision), ("Recall", recall)):
                scores[f"{name}@{threshold}"].append(value)
                means[name] += value
        precision, recall = (value / len(IOU_THRESHOLDS) for value in means.values())
        scores["Precision_Mean"].append(precision)
        scores["Recall_Mean"].append(recall)
        scores["F1_Score"].append(2 * recall * precision / (recall + precision) if recall + precision > 0 else 0)
    return scores


def _tokenized(videos: Sequence[DenseVideo]) -> list[DenseVideo]:
    tokens = iter(ptb_tokenize_file([caption for video in videos for caption in video.captions]))
    return [DenseVideo(video.spans, [next(tokens) for _ in video.captions]) for video in videos]


def _caption_scores(
    names: Sequence[str],
    truths: Sequence[DenseVideo],
    predictions: Sequence[DenseVideo],
    overlaps: Sequence[np.ndarray],
    filler: str,
    meteor: Meteor,
    crashes: list[str],
) -> dict[str, list[float]]:
    """Per video the means over thresholds of the scores over its pairs. The IDF of CIDEr is that of these pairs."""
    of_videos = [_pairs(*video, filler) for video in zip(truths, predictions, overlaps, strict=True)]
    scores = np.zeros((2, len(names), len(IOU_THRESHOLDS)))
    for index, threshold in enumerate(IOU_THRESHOLDS):
        of_threshold = [pairs[index] for pairs in of_videos]
        candidates = iter(ptb_tokenize_file([pair.candidate for pairs in of_threshold for pair in pairs]))
        references = iter(ptb_tokenize_file([pair.reference for pairs in of_threshold for pair in pairs]))
        for video, (name, pairs) in enumerate(zip(names, of_threshold, strict=True)):
            if pairs:
                texts = [(next(candidates), next(references)) for _ in pairs]
                scores[0, video, index] = _cider(texts, f"{name}, IoU {threshold}", crashes)
                texts = _in_order_of_text(texts, [pair.number for pair in pairs])
                scores[1, video, index] = _meteor(texts, meteor)
    # Numpy's numbers, which the report rounds in another way than Python's.
    return {key: list(values) for key, values in zip(("CIDER", "METEOR"), scores.mean(axis=2), strict=True)}


class _Pair(NamedTuple):
    number: int  # over all thresholds
    candidate: str
    reference: str


def _pairs(truth: DenseVideo, predicted: DenseVideo, iou: np.ndarray, filler: str) -> list[list[_Pair]]:
    """Of every threshold. A prediction that meets nothing is compared with the filler."""
    hits = iou.T[:, :, None] >= np.array(IOU_THRESHOLDS)
    is_pair = np.concatenate([hits, ~hits.any(axis=1, keepdims=True)], axis=1)
    numbers = np.cumsum(is_pair).reshape(is_pair.shape) - 1
    references = [*truth.captions, filler]
    return [
        [
            _Pair(
                int(numbers[of_prediction, of_truth, index]), predicted.captions[of_prediction], references[of_truth]
            )
            for of_prediction, of_truth in np.argwhere(is_pair[:, :, index])
        ]
        for index in range(len(IOU_THRESHOLDS))
    ]


def _soda(truth: DenseVideo, predicted: DenseVideo, iou: np.ndarray, meteor: Meteor) -> float:
    if not predicted.captions:
        return 0.0
    # The original swaps the two for METEOR, and has the scores in the order of the predictions' numbers as text
    # ("0", "1", "10", "2"), but the IoU in that of the predictions.
    columns = _in_order_of_text(predicted.captions, range(len(predicted.captions)))
    candidates = [caption for caption in truth.captions for _ in columns]
    _, single = meteor.score(candidates, [[caption] for _ in truth.captions for caption in columns])
    best, _ = monotone_assignment(iou * np.nan_to_num(single).reshape(iou.shape))
    precision, recall = best / len(predicted.captions), best / len(truth.captions)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _cider(pairs: Sequence[tuple[str, str]], where: str, crashes: list[str]) -> float:
    if not any(reference.split() for _, reference in pairs):
        crashes.append(f"CIDEr of {where}: no reference has a word")
        return 0.0
    score, _ = cider([candidate for candidate, _ in pairs], [[reference] for _, reference in pairs])
    return score


def _meteor(pairs: Sequence[tuple[str, str]], meteor: Meteor) -> float:
    score, _ = meteor.score([candidate for candidate, _ in pairs], [[reference] for _, reference in pairs])
    return float(np.nan_to_num(score))


def _in_order_of_text(values: Sequence[Any], numbers: Sequence[int]) -> list[Any]:
    """Values sorted by their numbers, where 10 comes before 2."""
    return [value for _, value in sorted(zip(map(str, numbers), values, strict=True), key=lambda pair: pair[0])]


def letters_only(text: str) -> str:
    """Words of ASCII letters in lower case: how paragraphs are compared."""
    return " ".join(re.sub("[^a-zA-Z]", " ", text).lower().split())
