# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Intervals against true intervals, one or several per sample, from numbers or from text. `R1@t` and `mIoU` take the
first interval of an answer, `F1` the whole set; `count_accuracy` and `over_answering` tell answers with the true
number of intervals from those with more. All are percentages of all samples.

Args:
    predictions (`list[dict]`):
        Answers: `id`, and `text` or `spans` (`[[start_s, end_s], ...]`, used instead of the text).
    references (`list[dict]`):
        Samples: `id`, `spans` (`[[start_s, end_s], ...]`) and, where known, `duration` in seconds.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("spans_metric"))
    >>> references = [{"id": "0", "spans": [[0, 10]]}]
    >>> metric.compute(predictions=[{"id": "0", "text": "From 0 to 10 seconds."}], references=references)["mIoU"]
    100.0
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.spans_metric import span_scores


class SpansMetric(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__)

    def _compute(self, predictions, references):
        return base.result(span_scores(base.rows(predictions), base.rows(references)))
