# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
TempCompass without a judge: multiple choice, yes or no, and caption matching, every sample counted. `Avg` is the mean
over the tasks; each task has `<task>/avg`, one number per dimension, and `<task>/match_rate`, the share of answers
that could be read. All are percentages.

Args:
    predictions (`list[dict]`):
        Answers: `id` and `text`.
    references (`list[dict]`):
        Samples: `id`, `task` (`"multi-choice"`, `"yes_no"` or `"caption_matching"`), `dim` (`"action"`, `"direction"`,
        `"speed"`, `"order"` or `"attribute_change"`), and the benchmark's `question` and `answer`.
        `trl_temporal.evaluation.metrics.tempcompass.from_records` makes both lists of the benchmark's own files.
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the benchmark's own rules with `--disable_llm`.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("tempcompass"))
    >>> references = [{"id": "0", "task": "yes_no", "dim": "speed", "question": "Is it fast?", "answer": "yes"}]
    >>> metric.compute(predictions=[{"id": "0", "text": "Yes."}], references=references)["Avg"]
    100.0
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.tempcompass import tempcompass

_CITATION = """
@inproceedings{liu2024tempcompass,
  title={{TempCompass}: Do Video {LLMs} Really Understand Videos?},
  author={Liu, Yuanxin and Li, Shicheng and Liu, Yi and Wang, Yuxiang and Ren, Shuhuai and Li, Lei and Chen, Sishuo and
    Sun, Xu and Hou, Lu},
  booktitle={Findings of ACL},
  year={2024}
}
"""


class Tempcompass(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(tempcompass(base.rows(predictions), base.rows(references), **options))
