# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
DiDeMo for models that answer with an interval in seconds: recall at IoU 0.3, 0.5 and 0.7, and mean IoU, over all
descriptions, as percentages. The IoU is the mean over the three annotators that the answer agrees with most. The
official table ranks the 21 moments of a video instead: `Rank@1` and `Rank@5` appear where predictions have `segments`.

Args:
    predictions (`list[dict]`):
        Answers: `id`, and `text`, `spans` (`[[start_s, end_s], ...]`) or `segments` (all moments, best first, as
        `[first, last]` in pieces of five seconds).
    references (`list[dict]`):
        Official records: `annotation_id` and `times` (`[first, last]` of every annotator).
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of the official scorer.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("didemo"))
    >>> references = [{"annotation_id": 7, "times": [[1, 2], [1, 2], [1, 2], [0, 0]]}]
    >>> metric.compute(predictions=[{"id": 7, "text": "It happens in 5.0 - 10.0."}], references=references)["mIoU"]
    50.0
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.didemo import didemo

_CITATION = """
@inproceedings{hendricks2017didemo,
  title={Localizing Moments in Video with Natural Language},
  author={Hendricks, Lisa Anne and Wang, Oliver and Shechtman, Eli and Sivic, Josef and Darrell, Trevor and
    Russell, Bryan},
  booktitle={ICCV},
  year={2017}
}
"""


class Didemo(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(didemo(base.rows(predictions), base.rows(references), **options))
