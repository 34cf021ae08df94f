# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
NExT-GQA: questions with the moments that show the answer. `Acc@GQA` is the share of right answers whose interval lies
in such a moment for at least a half (IoP 0.5), `Acc@QA` that of right answers; mean IoP and IoU, and their shares of
at least 0.3 and 0.5. All are percentages of all questions.

Args:
    predictions (`list[dict]`):
        Answers: `id`, `text` or `spans` (`[[start_s, end_s], ...]`), of which the first interval counts, and `choice`
        (the chosen option) unless it is to be read from the text.
    references (`list[dict]`):
        Questions: `id`, `segments` (`[[start_s, end_s], ...]`), `duration` in seconds, and, where known, `answer` and
        `options`. `trl_temporal.evaluation.metrics.nextgqa.nextgqa_references` makes them of the annotation files.
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of the original scorer.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("nextgqa"))
    >>> references = [{"id": "42_1", "segments": [[5, 15]], "duration": 30, "answer": 2}]
    >>> predictions = [{"id": "42_1", "spans": [[5, 10]], "choice": 2}]
    >>> scores = metric.compute(predictions=predictions, references=references)
    >>> scores["Acc@GQA"], scores["mIoP"], scores["mIoU"]
    (100.0, 100.0, 50.0)
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.nextgqa import nextgqa

_CITATION = """
@inproceedings{xiao2024nextgqa,
  title={Can {I} Trust Your Answer? Visually Grounded Video Question Answering},
  author={Xiao, Junbin and Yao, Angela and Li, Yicong and Chua, Tat-Seng},
  booktitle={CVPR},
  year={2024}
}
"""


class Nextgqa(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(nextgqa(base.rows(predictions), base.rows(references), **options))
