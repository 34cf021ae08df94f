# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of grounded answers: generate, score, and compare two models on the same rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..data.grammar import EVI
from ..data.schema import coerce_videos, video_key
from ..spans import Span
from .metrics.dense_caption import caption_scores, exchange_chance
from .metrics.grounding import Row, all_events_baseline, chance_baseline, grounding_f1, truth_spans
from .metrics.qa import qa_scores, question_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from ..data.feature_cache import CachedVideo
    from ..video import Video
    from .generation import GroundedAnswer

TASKS = ("grounding", "dense", "qa")


@dataclass
class EvaluationResult:
    """
    Scores of one model on a list of rows.

    Attributes:
        metrics (`dict[str, float]`):
            One number per metric; those of a task without rows are absent.
        answers (`list[GroundedAnswer]`):
            The answers, in the order of the rows.
        per_row (`dict[str, np.ndarray]`):
            Scores of shape `(rows,)`, NaN on the rows that a metric does not apply to.
        weights (`dict[str, np.ndarray]`):
            For metrics whose unit is not the row but the event: how many units each row has, shape `(rows,)`.
        videos (`list[str]`):
            Video of every row. Rows of one video are not independent, which [`paired_bootstrap`] takes into account.
    """

    metrics: dict[str, float]
    answers: "list[GroundedAnswer]"
    per_row: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    videos: list[str]

    def summary(self) -> str:
        """One line with the scores and the baseline that the grounding F1 must be read against."""
        names = {
            "grounding_f1": "grounding F1",
            "grounding_f1_all_events": "all events",
            "grounding_count_accuracy": "exact count",
            "grounding_over_answering": "over-answering",
            "dense_f1": "dense F1",
            "caption_exact_match": "caption EM",
            "caption_word_f1": "word F1",
            "qa_exact_match": "QA EM",
        }
        return " | ".join(f"{label} {self.metrics[name]:.3f}" for name, label in names.items() if name in self.metrics)


def _video_name(row: Row) -> str:
    if not row.get("videos"):
        return str(row.get("id"))
    (video,) = coerce_videos(row["videos"])
    if "frames" in video:
        return video_key(video)
    return str((video.get("path") or video.get("frames_dir"), video.get("start_s")))


def _is_malformed(row: Row, answer: "GroundedAnswer") -> bool:
    """Whether the answer names no interval where there is one, or intervals and `<evi>` of its response disagree."""
    return answer.text.count(EVI) != len(answer.response) or bool(truth_spans(row) and not answer.response)


def _stage_agreement(answers: "Sequence[GroundedAnswer]") -> float:
    ious = [
        Span(*evidence).iou(Span(*response))
        for answer in answers
        if len(answer.evidence) == len(answer.response)
        for evidence, response in zip(answer.evidence, answer.response, strict=True)
    ]
    return float(np.mean(ious)) if ious else 0.0


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    return float(numerator.sum() / denominator.sum()) if denominator.sum() else 0.0


def evaluate_answers(rows: Sequence[Row], answers: "Sequence[GroundedAnswer]") -> EvaluationResult:
    """
    Score the answers of a model.

    Args:
        rows (`Sequence[Mapping]`):
            Rows with `task` (`"grounding"`, `"dense"` or `"qa"`) and the columns of that task.
        answers (`Sequence[GroundedAnswer]`):
            One answer per row, in the same order.

    Returns:
        [`EvaluationResult`]: with the metrics

        - `grounding_f1` (mean over IoU .1/.3/.5/.7) and `grounding_f1@0.1` ... `grounding_f1@0.7`,
          `grounding_count_accuracy` and `grounding_over_answering` (share of answers with the exact number, and with
          too many intervals); each also with the suffix `_chance` and, where rows have `all_spans`, `_all_events`;
        - `dense_f1` and its thresholds, counts and over-answering; `caption_exact_match` (over all true events, so a
          missed event counts as a miss), `caption_exact_match_matched` and `caption_word_f1` (over events found at IoU
          .5) and `caption_exact_match_chance`;
        - `qa_exact_match`, `qa_evidence_f1` and `qa_exact_match_chance`;
        - `stage_agreement` (mean IoU of the k-th intervals of the evidence and the response stage, over answers with
          equal counts), `stage_mismatch` (number of answers with unequal counts) and `malformed` (number of answers
          without an interval where there is one, or whose response has another number of intervals than `<evi>`).

    Raises:
        ValueError: if the numbers of rows and answers differ, or a row has an unknown task.
    """
    rows, answers = list(rows), list(answers)
    if len(rows) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(rows)} rows; give one answer per row, in the same order")
    for index, row in enumerate(rows):
        if row["task"] not in TASKS:
            raise ValueError(
                f"row {index} (id {row.get('id')!r}) has the task {row['task']!r}; expected one of {TASKS}"
            )

    metrics: dict[str, float] = {}
    per_row: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    of_task = {task: [i for i, row in enumerate(rows) if row["task"] == task] for task in TASKS}

    def select(task: str) -> tuple[list[Row], "list[GroundedAnswer]"]:
        return [rows[i] for i in of_task[task]], [answers[i] for i in of_task[task]]

    def spread(task: str, values: np.ndarray) -> np.ndarray:
        """Values of one task at the places of its rows, NaN elsewhere."""
        spread_values = np.full(len(rows), np.nan)
        spread_values[of_task[task]] = values
        return spread_values

    def add(task: str, scores: dict[str, np.ndarray], prefix: str) -> None:
        for name, values in scores.items():
            metrics[f"{prefix}_{name}"] = float(values.mean())
            per_row[f"{prefix}_{name}"] = spread(task, values)

    if of_task["grounding"]:
        task_rows, task_answers = select("grounding")
        add("grounding", grounding_f1(task_rows, task_answers), "grounding")
        baselines = {"chance": chance_baseline(task_rows, [answer.duration_s for answer in task_answers])}
        if all(row.get("all_spans") for row in task_rows):
            baselines["all_events"] = all_events_baseline(task_rows)
        for baseline, scores in baselines.items():
            metrics |= {f"grounding_{name}_{baseline}": float(values.mean()) for name, values in scores.items()}

    if of_task["dense"]:
        task_rows, task_answers = select("dense")
        add("dense", grounding_f1(task_rows, task_answers), "dense")
        captions = caption_scores(task_rows, task_answers)
        metrics["caption_exact_match"] = _ratio(captions["exact"], captions["events"])
        metrics["caption_exact_match_matched"] = _ratio(captions["exact"], captions["matched"])
        metrics["caption_word_f1"] = _ratio(captions["word_f1"], captions["matched"])
        metrics["caption_exact_match_chance"] = exchange_chance([row["captions"] for row in task_rows])
        # A row without events has no captions to get right: weight 0.
        exact_share = captions["exact"] / np.maximum(captions["events"], 1)
        per_row["caption_exact_match"] = spread("dense", exact_share)
        weights["caption_exact_match"] = spread("dense", captions["events"])

    if of_task["qa"]:
        task_rows, task_answers = select("qa")
        add("qa", qa_scores(task_rows, task_answers), "qa")
        metrics["qa_exact_match_chance"] = exchange_chance(
            [[row["answer"]] for row in task_rows], kinds=[question_kind(row) for row in task_rows]
        )

    metrics["stage_agreement"] = _stage_agreement(answers)
    metrics["stage_mismatch"] = float(sum(len(answer.evidence) != len(answer.response) for answer in answers))
    metrics["malformed"] = float(sum(map(_is_malformed, rows, answers)))
    return EvaluationResult(metrics, answers, per_row, weights, [_video_name(row) for row in rows])


class GroundedEvaluator:
    """
    Generate answers to a fixed list of rows and score them.

    Args:
        rows (`datasets.Dataset` or `list[dict]`):
            Evaluation rows, see [`evaluate_answers`].
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the models to evaluate.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows generated at once.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer in tokens.
        read_video (`Callable`, *optional*):
            Reader of the entries of `videos`, such as the trainer's [`~trl_temporal.data.frame_cache.FrameCache`].
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        read_features (`Callable`, *optional*):
            For a Grounded-VideoDiT: reader of the rows' features, such as the `read_features` of the trainer's
            collator.

    Example:

    ```python
    evaluator = GroundedEvaluator(dataset["test"], processor)
    print_table({"start": evaluator(start_model), "FPO": evaluator(trainer.model)})
    ```
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: "ProcessorMixin",
        batch_size: int = 32,
        max_new_tokens: int = 256,
        read_video: "Callable[[str | dict], Video] | None" = None,
        progress: bool = True,
        read_features: "Callable[[dict], CachedVideo] | None" = None,
    ):
        self.rows = list(rows)
        self.processor = processor
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.read_video = read_video
        self.read_features = read_features
        self.progress = progress

    def __call__(self, model: "PreTrainedModel") -> EvaluationResult:
        """
        Evaluate a model.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                Model that the processor belongs to.

        Returns:
            [`EvaluationResult`]
        """
        # Scoring needs no torch; only generation does.
        from .generation import generate_answers

        answers = generate_answers(
            model,
            self.processor,
            self.rows,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            read_video=self.read_video,
            read_features=self.read_features,
            progress=self.progress,
        )
        return evaluate_answers(self.rows, answers)


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    num_samples: int = 2000,
    seed: int = 0,
    *,
    weights: np.ndarray | None = None,
    clusters: Sequence[str] | None = None,
) -> tuple[float, float, float]:
    """
    Mean difference of two models on the same rows, with its 95 % bootstrap interval.

    Args:
        a (`np.ndarray` of shape `(rows,)`):
            Scores of the first model.
        b (`np.ndarray` of shape `(rows,)`):
            Scores of the second model on the same rows.
        num_samples (`int`, *optional*, defaults to `2000`):
            Bootstrap samples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        weights (`np.ndarray` of shape `(rows,)`, *optional*):
            Units that each row stands for, such as its events. By default every row counts once.
        clusters (`Sequence[str]` of length `rows`, *optional*):
            Group of every row, such as its video: whole groups are drawn, since questions on one video fail together.
            By default every row is its own group.

    Returns:
        `tuple[float, float, float]`: mean of `a - b`, and the lower and upper end of the interval.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.evaluation.evaluator import paired_bootstrap
        >>> paired_bootstrap(np.ones(8), np.zeros(8))
        (1.0, 1.0, 1.0)
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"scores of shapes {a.shape} and {b.shape} cannot be paired; give one score per row for both")
    weights = np.ones(len(a)) if weights is None else np.asarray(weights, dtype=float)
    group = np.arange(len(a)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    # Sums and weights per group; a sample's mean is the ratio of their totals.
    sums = np.bincount(group, weights=weights * (a - b))
    totals = np.bincount(group, weights=weights)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(num_samples, len(sums)))
    drawn_totals = totals[drawn].sum(axis=1)
    means = np.divide(sums[drawn].sum(axis=1), drawn_totals, out=np.zeros(num_samples), where=drawn_totals > 0)
    low, high = np.quantile(means, [0.025, 0.975])
    difference = sums.sum() / totals.sum() if totals.sum() else 0.0
    return float(difference), float(low), float(high)


def paired_difference(a: EvaluationResult, b: EvaluationResult, metric: str) -> tuple[float, float, float]:
    """
    Difference of two models in one metric, with its 95 % interval from a bootstrap over videos.

    Args:
        a ([`EvaluationResult`]):
            First model.
        b ([`EvaluationResult`]):
            Second model, evaluated on the same rows.
        metric (`str`):
            A key of `per_row`, such as `"grounding_f1"`.

    Returns:
        `tuple[float, float, float]`: `a.metrics[metric] - b.metrics[metric]`, and the ends of the interval.
    """
    if a.videos != b.videos:
        raise ValueError("the two results come from different rows; evaluate both models on the same rows")
    asked = ~np.isnan(a.per_row[metric])
    return paired_bootstrap(
        a.per_row[metric][asked],
        b.per_row[metric][asked],
        weights=a.weights[metric][asked] if metric in a.weights else None,
        clusters=np.array(a.videos)[asked],
    )
