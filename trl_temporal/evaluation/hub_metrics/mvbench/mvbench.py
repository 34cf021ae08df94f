# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
MVBench: accuracy of multiple-choice answers on 20 temporal tasks, every sample counted. `Avg` is the mean over the
tasks, `Total` that over the samples; then one accuracy per task. All are percentages.

Args:
    predictions (`list[dict]`):
        Answers: `id` and `text`.
    references (`list[dict]`):
        Samples: `id`, `task`, `answer` (`"(B) text"`, a letter, or an option's text) and, where known, `options`.
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of the original scorer.
    scorer (`str`, *optional*, defaults to `"d2vlm"`):
        The original scorer: `"d2vlm"` or `"lmms_eval"`.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("mvbench"))
    >>> references = [{"id": "0", "task": "action_count", "answer": "(B) two", "options": ["one", "two"]}]
    >>> metric.compute(predictions=[{"id": "0", "text": "The answer is B."}], references=references)
    {'Avg': 100.0, 'Total': 100.0, 'action_count': 100.0, 'num_samples': 1, 'problems': {}}
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.mvbench import mvbench

_CITATION = """
@inproceedings{li2024mvbench,
  title={{MVBench}: A Comprehensive Multi-modal Video Understanding Benchmark},
  author={Li, Kunchang and Wang, Yali and He, Yinan and Li, Yizhuo and Wang, Yi and Liu, Yi and Wang, Zun and Xu, Jilan
    and Chen, Guo and Luo, Ping and Wang, Limin and Qiao, Yu},
  booktitle={CVPR},
  year={2024}
}
"""


class Mvbench(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(mvbench(base.rows(predictions), base.rows(references), **options))
