# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Video-MME: accuracy of multiple-choice answers about short, medium and long videos, every sample counted. `Overall`,
`short`, `medium` and `long` are percentages.

Args:
    predictions (`list[dict]`):
        Answers: `id` and `text`.
    references (`list[dict]`):
        Samples: `id` (the benchmark's `question_id`), `duration` (`"short"`, `"medium"` or `"long"`), `answer` (a
        letter) and, where known, `options`.
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of the original scorer.
    scorer (`str`, *optional*, defaults to `"d2vlm"`):
        The original scorer: `"d2vlm"` or `"lmms_eval"`.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("videomme"))
    >>> references = [{"id": "001-1", "duration": "short", "answer": "C"}]
    >>> metric.compute(predictions=[{"id": "001-1", "text": "(C)"}], references=references)
    {'Overall': 100.0, 'short': 100.0, 'num_samples': 1, 'problems': {}}
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.videomme import videomme

_CITATION = """
@inproceedings{fu2025videomme,
  title={{Video-MME}: The First-Ever Comprehensive Evaluation Benchmark of Multi-modal {LLMs} in Video Analysis},
  author={Fu, Chaoyou and others},
  booktitle={CVPR},
  year={2025}
}
"""


class Videomme(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(videomme(base.rows(predictions), base.rows(references), **options))
