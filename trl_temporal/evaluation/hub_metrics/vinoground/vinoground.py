# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Vinoground: pairs of captions and videos that differ in their order only. `text`, `video` and `group` are the
percentages of pairs of which both captions, both videos, and all four were chosen right.

Args:
    predictions (`list[dict]`):
        Answers: `id` and `text`.
    references (`list[dict]`):
        The four questions of every pair: `id` (the benchmark's `index`: `"<pair>_pos_text"`, `"<pair>_neg_text"`,
        `"<pair>_pos_video"`, `"<pair>_neg_video"`) and `answer` (`"A"` or `"B"`).
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"`, which compares the first character only.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("vinoground"))
    >>> ids = ["0_pos_text", "0_neg_text", "0_pos_video", "0_neg_video"]
    >>> references = [{"id": index, "answer": "A"} for index in ids]
    >>> metric.compute(predictions=[{"id": index, "text": "(A)"} for index in ids], references=references)
    {'text': 100.0, 'video': 100.0, 'group': 100.0, 'num_samples': 1, 'problems': {}}
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.vinoground import vinoground

_CITATION = """
@article{zhang2024vinoground,
  title={{Vinoground}: Scrutinizing {LMMs} over Dense Temporal Reasoning with Short Videos},
  author={Zhang, Jianrui and Cai, Mu and Lee, Yong Jae},
  journal={arXiv preprint arXiv:2410.02763},
  year={2024}
}
"""


class Vinoground(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(vinoground(base.rows(predictions), base.rows(references), **options))
