# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
YouCook2 dense captioning, or any data set of the same form: `F1_Score` of the events, and `CIDEr`, `METEOR` and
`SODA_c` of their captions, as means over videos. The last three need pycocoevalcap and Java; what cannot run is left
out.

Args:
    predictions (`list[dict]`):
        One a video: `id`, and `text` or `events` (`[{"timestamp": [start_s, end_s], "caption": str}, ...]`).
    references (`list[dict]`):
        TimeChat's records: `image_id`, `duration`, `segments`, `pure_cap` (captions separated by `". "`).
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of TimeChat's scorer.
    approximate (`bool`, *optional*, defaults to `False`):
        Without Java, give CIDEr on approximate tokens.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("youcook2"))
    >>> references = [{"image_id": "a.mp4", "duration": 60, "segments": [[0, 10]], "pure_cap": "pour the oil"}]
    >>> predictions = [{"id": "a.mp4", "text": "0 - 8 seconds, pour oil."}]
    >>> metric.compute(predictions=predictions, references=references)["F1_Score"]
    75.0
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.youcook2 import youcook2

_CITATION = """
@inproceedings{zhou2018youcook2,
  title={Towards Automatic Learning of Procedures from Web Instructional Videos},
  author={Zhou, Luowei and Xu, Chenliang and Corso, Jason J.},
  booktitle={AAAI},
  year={2018}
}
"""


class Youcook2(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(youcook2(base.rows(predictions), base.rows(references), **options))
