# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The answers of a run as arrays: every `<evi>` with its frames, and the intervals that the model's rule makes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.metrics.grounding import IOU_THRESHOLDS
from ..evaluation.metrics.intervals import ROUNDING, iou_pairs, iou_table
from ..evaluation.metrics.time_text import check_spans, read_spans
from ..evaluation.run_folder import SIMILARITIES, SavedAnswer

STAGES = ("evidence", "answer")
RUNS_PER_BATCH = 2048
TIE = 1e-4  # means of runs that are closer may be equal once they are rounded


@dataclass
class Row:
    """
    An answer with clean intervals.

    Attributes:
        answer (`SavedAnswer`):
            The answer.
        truth (`np.ndarray` of shape `(m, 2)`):
            True intervals in seconds.
        spans (`dict[str, np.ndarray]`):
            Intervals of every stage, `(n, 2)` in seconds. Without evidence stage, `"evidence"` is empty.
        similarities (`dict[str, np.ndarray]`):
            Arrays of shape `(E, T)`; empty where there are none, or none that can be used.
        is_broken (`bool`):
            Whether there are similarities that do not fit the intervals or are not finite.
    """

    answer: SavedAnswer
    truth: np.ndarray
    spans: dict[str, np.ndarray]
    similarities: dict[str, np.ndarray]
    is_broken: bool


@dataclass
class Tokens:
    """
    Every `<evi>` whose similarities can be used, in the order of rows and stages.

    Attributes:
        row (`np.ndarray` of shape `(N,)`):
            Index of its row.
        stage (`np.ndarray` of shape `(N,)`):
            Index into `STAGES`.
        saved_spans (`np.ndarray` of shape `(N, 2)`):
            Its interval in the answer, in seconds.
        frames_s (`np.ndarray` of shape `(R, T, 2)`):
            Start and end of the frames of the used rows in seconds.
        place (`np.ndarray` of shape `(N,)`):
            Index into `frames_s`.
        frame_mask (`np.ndarray` of shape `(N, T)` and type bool):
            Frames that are not padding.
        inside (`np.ndarray` of shape `(N, T)` and type bool):
            Frames of the true interval that the token stands for.
        has_truth (`np.ndarray` of shape `(N,)` and type bool):
            Whether there is a true interval.
        similarities (`dict[str, np.ndarray]`):
            Arrays of shape `(N, T)`, zero at padding, of those that every used row has.
    """

    row: np.ndarray
    stage: np.ndarray
    saved_spans: np.ndarray
    frames_s: np.ndarray
    place: np.ndarray
    frame_mask: np.ndarray
    inside: np.ndarray
    has_truth: np.ndarray
    similarities: dict[str, np.ndarray]

    def select(self, chosen: np.ndarray) -> "Tokens":
        """The tokens of a mask `(N,)`."""
        return Tokens(
            row=self.row[chosen],
            stage=self.stage[chosen],
            saved_spans=self.saved_spans[chosen],
            frames_s=self.frames_s,
            place=self.place[chosen],
            frame_mask=self.frame_mask[chosen],
            inside=self.inside[chosen],
            has_truth=self.has_truth[chosen],
            similarities={name: values[chosen] for name, values in self.similarities.items()},
        )

    def judged(self, chosen: np.ndarray) -> np.ndarray:
        """Mask `(N, T)` of the frames of chosen tokens, without padding and tokens that have no true interval."""
        return self.frame_mask & (self.has_truth & chosen)[:, None]


def match_truth(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """
    The true interval that each predicted one stands for.

    Args:
        predicted (`np.ndarray` of shape `(n, 2)`):
            Intervals of one stage of an answer, in seconds.
        truth (`np.ndarray` of shape `(m, 2)`):
            True intervals of its row in seconds, at least one.

    Returns:
        `np.ndarray` of shape `(n,)`: indices into `truth`. The k-th for the k-th if there are as many, else the one
        with the best IoU, and where none overlaps, the one whose midpoint is nearest.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.report.analysis_tokens import match_truth
        >>> match_truth(np.array([[8.0, 9.0], [1.0, 2.0], [4.0, 5.0]]), np.array([[1.0, 3.0], [5.5, 7.0]])).tolist()
        [1, 0, 1]
    """
    if len(predicted) == len(truth):
        return np.arange(len(truth))
    iou = iou_table(predicted, truth)
    distance_s = np.abs(predicted.mean(axis=1)[:, None] - truth.mean(axis=1)[None])
    return np.where(iou.max(axis=1, keepdims=True) > 0, iou, -distance_s).argmax(axis=1)


def _intervals(spans: Sequence[Sequence[float]] | None) -> np.ndarray:
    return np.array(check_spans(list(spans or [])).spans, dtype=np.float64).reshape(-1, 2)


def read_row(answer: SavedAnswer) -> Row:
    """
    An answer with clean intervals; those of a model that writes its times are read from the text.

    Args:
        answer (`SavedAnswer`):
            Answer of a run.

    Returns:
        [`Row`]
    """
    before, end, after = answer.text.partition("</evi>")
    response = read_spans(after if end else before).spans if answer.response is None else answer.response
    spans = {"evidence": _intervals(answer.evidence), "answer": _intervals(response)}
    arrays = {name: np.asarray(values) for name, values in answer.similarities.items() if name in SIMILARITIES}
    shape = (sum(map(len, spans.values())), len(answer.timestamps_s))
    is_usable = "salience" in arrays and all(
        values.shape == shape and np.isfinite(values).all() for values in arrays.values()
    )
    return Row(
        answer,
        truth=_intervals(answer.truth),
        spans=spans,
        similarities=arrays if is_usable else {},
        is_broken=bool(arrays) and not is_usable,
    )


def read_tokens(rows: Sequence[Row], time_rule: str) -> Tokens | None:
    """
    The tokens of all rows.

    Args:
        rows (`Sequence[Row]`):
            Rows of a run.
        time_rule (`str`):
            Which frames are inside of an interval, see [`~trl_temporal.models.d2vlm.spans_to_frame_mask`].

    Returns:
        [`Tokens`] or `None`: `None` where no row has similarities.
    """
    from ..models.d2vlm import spans_to_frame_mask

    used = [number for number, row in enumerate(rows) if row.similarities and row.similarities["salience"].size]
    if not used:
        return None
    names = [name for name in SIMILARITIES if all(name in rows[number].similarities for number in used)]
    counts = np.array([len(rows[number].similarities["salience"]) for number in used])
    num_frames = max(len(rows[number].answer.timestamps_s) for number in used)
    size = (counts.sum(), num_frames)
    tokens = Tokens(
        row=np.repeat(used, counts),
        stage=np.concatenate([np.repeat([0, 1], [len(rows[n].spans[stage]) for stage in STAGES]) for n in used]),
        saved_spans=np.concatenate([rows[n].spans[stage] for n in used for stage in STAGES]),
        frames_s=np.zeros((len(used), num_frames, 2)),
        place=np.repeat(np.arange(len(used)), counts),
        frame_mask=np.zeros(size, dtype=bool),
        inside=np.zeros(size, dtype=bool),
        has_truth=np.repeat([len(rows[n].truth) > 0 for n in used], counts),
        similarities={name: np.zeros(size, dtype=np.float32) for name in names},
    )
    for place, (number, end) in enumerate(zip(used, np.cumsum(counts), strict=True)):
        row, timestamps_s, duration_s = rows[number], rows[number].answer.timestamps_s, rows[number].answer.duration_s
        of_row = slice(end - counts[place], end), slice(0, len(timestamps_s))
        tokens.frames_s[place, of_row[1], 0] = timestamps_s
        tokens.frames_s[place, of_row[1], 1] = np.minimum([*timestamps_s[1:], duration_s], duration_s)
        tokens.frame_mask[of_row] = True
        for name in names:
            tokens.similarities[name][of_row] = row.similarities[name]
        if len(row.truth):
            inside = spans_to_frame_mask(row.truth, timestamps_s, duration_s, time_rule)
            matches = [match_truth(row.spans[stage], row.truth) for stage in STAGES if len(row.spans[stage])]
            tokens.inside[of_row] = inside[np.concatenate(matches)]
    return tokens


def run_spans(
    scores: np.ndarray, tokens: Tokens, threshold: float, *, time_rule: str = "interval", ties: str = "first"
) -> np.ndarray:
    """
    The intervals that the model's own rule makes of similarities.

    Args:
        scores (`np.ndarray` of shape `(N, T)`, float32):
            Similarities from 0 on.
        tokens ([`Tokens`]):
            Whose they are.
        threshold (`float`):
            Frames of at least this share of the maximum are salient.
        time_rule (`str`, *optional*, defaults to `"interval"`):
            How frames become seconds, see [`~trl_temporal.models.d2vlm.frame_run_to_span`].
        ties (`str`, *optional*, defaults to `"first"`):
            Which of equal runs, see [`~trl_temporal.models.d2vlm.modeling_d2vlm.salient_run`].

    Returns:
        `np.ndarray` of shape `(N, 2)`: intervals in seconds.
    """
    import torch

    from ..models.d2vlm.modeling_d2vlm import salient_run

    runs = np.zeros(scores.shape, dtype=bool)
    for start in range(0, len(scores), RUNS_PER_BATCH):
        part = slice(start, start + RUNS_PER_BATCH)
        values, mask = torch.from_numpy(scores[part]), torch.from_numpy(tokens.frame_mask[part])
        run = salient_run(values, threshold, mask)
        if ties == "span":
            # This rule goes token by token. Where no two runs are equally high, both rules give the same one.
            tied = torch.from_numpy(_has_equal_runs(scores[part], tokens.frame_mask[part], threshold))
            run[tied] = salient_run(values[tied], threshold, mask[tied], ties="span")
        runs[part] = run.numpy()
    first, last = runs.argmax(axis=1), runs.shape[1] - 1 - runs[:, ::-1].argmax(axis=1)
    ends_s = tokens.frames_s[tokens.place, last, 0 if time_rule == "index" else 1]
    return np.stack([tokens.frames_s[tokens.place, first, 0], ends_s], axis=1)


def _has_equal_runs(scores: np.ndarray, frame_mask: np.ndarray, threshold: float) -> np.ndarray:
    """Whether the highest mean of a token's salient runs may be that of several."""
    is_salient = (scores >= np.float32(threshold) * scores.max(axis=1, keepdims=True)) & frame_mask
    starts = is_salient.copy()
    starts[:, 1:] &= ~is_salient[:, :-1]
    run = (np.cumsum(starts) - 1).reshape(starts.shape)[is_salient]
    means = np.bincount(run, weights=scores[is_salient]) / np.bincount(run)
    token = np.nonzero(starts)[0]
    highest = np.zeros(len(scores))
    np.maximum.at(highest, token, means)
    return np.bincount(token[means > highest[token] - TIE], minlength=len(scores)) > 1


class RowF1:
    """
    F1 of rows, mean over the IoU thresholds: [`~trl_temporal.evaluation.metrics.grounding.interval_f1`], vectorised.

    The pairs of intervals are laid out once, for many predictions of the same counts.

    Args:
        truths (`Sequence[np.ndarray]`):
            True intervals of every row, `(m, 2)` in seconds.
        num_predicted (`np.ndarray` of shape `(rows,)`):
            How many intervals are predicted for every row.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.report.analysis_tokens import RowF1
        >>> f1 = RowF1([np.array([[0.0, 10.0]]), np.array([[0.0, 1.0]])], num_predicted=np.array([1, 0]))
        >>> f1(np.array([[0.0, 6.0]])).tolist()
        [0.75, 0.0]
    """

    def __init__(self, truths: Sequence[np.ndarray], num_predicted: np.ndarray):
        self.num_truth, self.num_predicted = np.array([len(truth) for truth in truths], dtype=int), num_predicted
        self.truth = np.concatenate([*truths, np.zeros((0, 2))])
        num_pairs = self.num_truth * num_predicted
        row = np.repeat(np.arange(len(truths)), num_pairs)
        within = np.arange(num_pairs.sum()) - (np.cumsum(num_pairs) - num_pairs)[row]
        self.pair_truth = within // num_predicted[row] + (np.cumsum(self.num_truth) - self.num_truth)[row]
        self.pair_predicted = within % num_predicted[row] + (np.cumsum(num_predicted) - num_predicted)[row]

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        """
        Scores of one prediction.

        Args:
            predicted (`np.ndarray` of shape `(intervals, 2)`):
                Intervals of all rows in seconds, in the order of the rows.

        Returns:
            `np.ndarray` of shape `(rows,)`.
        """
        iou = iou_pairs(self.truth[self.pair_truth], predicted[self.pair_predicted])
        f1 = []
        for threshold in IOU_THRESHOLDS:
            hits = iou >= threshold - ROUNDING
            precision = _share_met(self.pair_predicted[hits], self.num_predicted)
            recall = _share_met(self.pair_truth[hits], self.num_truth)
            f1.append(2 * precision * recall / np.maximum(precision + recall, 1e-12))
        # Nothing asked for and nothing answered is right.
        return np.where((self.num_truth == 0) & (self.num_predicted == 0), 1.0, np.mean(f1, axis=0))


def _share_met(met: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of the intervals of every row that are in `met`, indices with repetitions."""
    is_met = np.bincount(met, minlength=counts.sum()) > 0
    row = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(row[is_met], minlength=len(counts)) / np.maximum(counts, 1)
