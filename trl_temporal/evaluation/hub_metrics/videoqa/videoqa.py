# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Question answering on videos, every sample counted. `accuracy` is the share of right options; of open questions,
`exact_match` is the share of answers in the right words, `word_f1` their overlap as bags of words, and `judge` what a
judge of yours says. All are percentages.

Args:
    predictions (`list[dict]`):
        Answers: `id` and `text`.
    references (`list[dict]`):
        Samples: `id`; with `options` (texts) and `answer` (a letter, or an option's text), or without options and with
        `answer` (the right words, or a list of several ways to say it). A judge also needs `question`.
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"`: options as lmms-eval reads them in NExT-QA, open questions by the judge only.
    judge (`Callable`, *optional*):
        Function of question, right answer and predicted answer that returns 0 to 1.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("videoqa"))
    >>> references = [{"id": "0", "answer": "a dog"}, {"id": "1", "options": ["run", "jump"], "answer": "jump"}]
    >>> metric.compute(predictions=[{"id": "0", "text": "A cat."}, {"id": "1", "text": "B"}], references=references)
    {'accuracy': 100.0, 'exact_match': 0.0, 'word_f1': 0.0, 'num_samples': 2, 'problems': {}}
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.videoqa import videoqa


class Videoqa(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__)

    def _compute(self, predictions, references, **options):
        return base.result(videoqa(base.rows(predictions), base.rows(references), **options))
