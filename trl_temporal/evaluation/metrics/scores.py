# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the metric of a benchmark returns, and how predictions find their samples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Scoring = Literal["fixed", "original"]
SCORINGS = ("fixed", "original")

# Kinds of problems, with what they mean for the score in `fixed` mode.
PROBLEMS = {
    "missing": "no prediction for the sample: it counts as wrong",
    "unknown id": "a prediction for a sample that is not there: left out",
    "duplicate": "the same prediction twice: counted once",
    "conflict": "different predictions for one sample: it counts as wrong",
    "empty": "an empty answer: it counts as wrong",
    "unparsable": "no time, option or caption could be read from the answer: it counts as wrong",
    "malformed number": "a time that is no number, negative or not finite: that interval is left out",
    "reversed": "an interval whose end comes before its start: turned round",
    "out of duration": "an interval that ends behind the video: scored as it is",
    "unreadable video": "the video could not be read: it counts as wrong",
    "refused by the endpoint": "the endpoint did not want the row, too long or filtered: it counts as wrong",
    "crash": "the original scorer stops here with an error",
}


class Problem(NamedTuple):
    """
    Something in the predictions that is not as it should be.

    Attributes:
        id (`str`):
            The sample.
        kind (`str`):
            A key of `PROBLEMS`.
        detail (`str`):
            What was found, cut to a readable length.
    """

    id: str
    kind: str
    detail: str = ""


@dataclass
class Scores:
    """
    Result of a benchmark's metric.

    Attributes:
        metrics (`dict[str, float]`):
            The numbers of the benchmark's table, the headline first. In `fixed` mode all are percentages.
        problems (`list[Problem]`):
            What was wrong with predictions, one entry per finding.
        num_samples (`int`):
            Samples that the numbers are averages over. In `fixed` mode these are all samples of the benchmark.
        details (`dict`):
            Numbers behind the table, such as those per task and source.
    """

    metrics: dict[str, float]
    problems: list[Problem]
    num_samples: int
    details: dict[str, Any] = field(default_factory=dict)

    def problem_counts(self) -> dict[str, int]:
        """How often each kind of problem came up, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())


def check_scoring(scoring: str) -> None:
    """
    Refuse a `scoring` that does not exist.

    Raises:
        ValueError: if it is neither `"fixed"` nor `"original"`.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring is {scoring!r}; it must be one of {SCORINGS}")


def match_predictions(
    ids: Sequence[str], predictions: Iterable[Mapping[str, Any]], problems: list[Problem]
) -> list[Mapping[str, Any] | None]:
    """
    Find the prediction of every sample, in any order of the predictions.

    Args:
        ids (`Sequence[str]`):
            The samples, each once.
        predictions (`Iterable[Mapping]`):
            Predictions, each with the `id` of its sample.
        problems (`list[Problem]`):
            Gets what is found: predictions that are missing, unknown, there twice, or contradict each other.

    Returns:
        `list`: one prediction per sample, `None` where there is none, or several different ones: which of them counts
        must not depend on their order, and a second guess must not help.

    Raises:
        ValueError: if an id of a sample comes twice.

    Example:
        >>> from trl_temporal.evaluation.metrics.scores import match_predictions
        >>> problems = []
        >>> match_predictions(["a", "b"], [{"id": "a", "text": "yes"}], problems)
        [{'id': 'a', 'text': 'yes'}, None]
        >>> problems
        [Problem(id='b', kind='missing', detail='')]
    """
    ids = [str(sample_id) for sample_id in ids]
    counts = Counter(ids)
    if len(counts) < len(ids):
        sample_id, count = counts.most_common(1)[0]
        raise ValueError(f"the sample {sample_id!r} is there {count} times; give every sample an id of its own")
    given: dict[str, list[Mapping[str, Any]]] = {}
    for prediction in predictions:
        given.setdefault(str(prediction.get("id")), []).append(prediction)
    problems.extend(Problem(sample_id, "unknown id") for sample_id in given if sample_id not in counts)
    matched = []
    for sample_id in ids:
        of_sample = given.get(sample_id, [])
        is_clear = all(_same(of_sample[0], other) for other in of_sample)
        if not of_sample:
            problems.append(Problem(sample_id, "missing"))
        elif not is_clear:
            problems.append(Problem(sample_id, "conflict"))
        elif len(of_sample) > 1:
            problems.append(Problem(sample_id, "duplicate"))
        matched.append(of_sample[0] if of_sample and is_clear else None)
    return matched


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return repr(sorted(a.items())) == repr(sorted(b.items()))  # `==` would tell NaN from itself
