# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Charades-STA: recall of the first interval at IoU 0.3, 0.5 and 0.7, and mean IoU, over all queries, as percentages.

Args:
    predictions (`list[dict]`):
        Answers: `id`, and `text` or `spans` (`[[start_s, end_s], ...]`, used instead of the text).
    references (`list[dict]`):
        Records of TimeChat's annotation file: `id`, `image_id`, `caption`, `timestamp` (`[start_s, end_s]`).
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of the original scorer.
    scorer (`str`, *optional*, defaults to `"d2vlm"`):
        The original scorer: `"d2vlm"`, `"etchat"` or `"lmms_eval"`.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("charades_sta"))
    >>> references = [{"id": 0, "image_id": "3MSZA.mp4", "caption": "a person sits", "timestamp": [24, 30]}]
    >>> metric.compute(predictions=[{"id": 0, "text": "24.0 - 30.0"}], references=references)
    {'R1@0.3': 100.0, 'R1@0.5': 100.0, 'R1@0.7': 100.0, 'mIoU': 100.0, 'num_samples': 1, 'problems': {}}
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.charades_sta import charades_sta

_CITATION = """
@inproceedings{gao2017tall,
  title={{TALL}: Temporal Activity Localization via Language Query},
  author={Gao, Jiyang and Sun, Chen and Yang, Zhenheng and Nevatia, Ram},
  booktitle={ICCV},
  year={2017}
}
"""


class CharadesSta(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(charades_sta(base.rows(predictions), base.rows(references), **options))
