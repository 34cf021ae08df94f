# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
QVHighlights: moments (`MR-...`: mAP over IoU thresholds, and R1, for all windows and by their length) and highlights
(`HL-...`: mAP and Hit1 of the salience of every two seconds), over all queries, as percentages.

Args:
    predictions (`list[dict]`):
        Answers: `id`, and `windows` (`[[start_s, end_s, score], ...]`), `text` or `spans` (`[[start_s, end_s], ...]`,
        ranked by their order); for the highlights also `saliency` (a score for every 2 seconds).
    references (`list[dict]`):
        Records of Moment-DETR's annotation file: `qid`, `duration`, `relevant_windows`, `relevant_clip_ids`,
        `saliency_scores`.
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of Moment-DETR's scorer.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("qvhighlights"))
    >>> rated = {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 4, 4], [4, 4, 4]]}
    >>> references = [{"qid": 7, "duration": 20, "relevant_windows": [[2, 6]], **rated}]
    >>> scores = metric.compute(predictions=[{"id": 7, "text": "2.0 - 6.0"}], references=references)
    >>> scores["MR-full-mAP"]
    100.0
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.qvhighlights import qvhighlights

_CITATION = """
@inproceedings{lei2021qvhighlights,
  title={{QVHighlights}: Detecting Moments and Highlights in Videos via Natural Language Queries},
  author={Lei, Jie and Berg, Tamara L. and Bansal, Mohit},
  booktitle={NeurIPS},
  year={2021}
}
"""


class Qvhighlights(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(qvhighlights(base.rows(predictions), base.rows(references), **options))
