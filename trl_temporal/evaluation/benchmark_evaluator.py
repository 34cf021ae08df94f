# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A benchmark while a trainer runs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from .answering import Answering
from .benchmarks.loading import choose_prompts, default_video_root, load_benchmark, make_rows
from .results import EvaluationRun


class BenchmarkEvaluator:
    """
    Answer a benchmark, or a part of it, and score the answers: what
    [`~trl_temporal.evaluation.callback.GroundedEvaluationCallback`] runs, with the numbers of
    [`~trl_temporal.evaluation.runner.evaluate_model`] in `fixed` scoring.

    Args:
        benchmark (`str`):
            As in [`~trl_temporal.evaluation.runner.evaluate_model`].
        data (`str`, `os.PathLike` or a list of rows):
            Annotations of the benchmark.
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the models to evaluate.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos.
        split (`str`, *optional*, defaults to `"validation"`):
            Split of rows of one's own.
        prompts (`Mapping[str, str]`, *optional*):
            Wording of questions by task.
        limit (`int`, *optional*):
            Answer the first samples only.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows generated at once.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer in tokens.
        frame_cache_dir (`str` or `os.PathLike`, *optional*):
            Folder for decoded frames, so that only the first evaluation decodes.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Example:

    ```python
    evaluator = BenchmarkEvaluator("charades_sta", "charades", processor, limit=256)
    trainer.add_callback(GroundedEvaluationCallback(trainer, evaluator, every_n_steps=500))
    ```
    """

    def __init__(
        self,
        benchmark: str,
        data: str | os.PathLike | Sequence[Mapping[str, Any]],
        processor: ProcessorMixin,
        *,
        video_root: str | os.PathLike | None = None,
        split: str = "validation",
        prompts: Mapping[str, str] | None = None,
        limit: int | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 256,
        frame_cache_dir: str | os.PathLike | None = None,
        progress: bool = False,
    ):
        self.benchmark = benchmark
        self.bench, references = load_benchmark(benchmark, data, split=split)
        self.references = references[:limit]
        if benchmark != "rows" and video_root is None:
            video_root = default_video_root(data)
        self.video_root = video_root
        self.processor = processor
        self.prompts = prompts
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.frame_cache_dir = frame_cache_dir
        self.progress = progress

    def __call__(self, model: PreTrainedModel) -> EvaluationRun:
        """
        Evaluate a model.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                Model that the processor belongs to.

        Returns:
            [`EvaluationRun`]
        """
        answering = Answering(
            model,
            self.processor,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            frame_cache_dir=self.frame_cache_dir,
        )
        wordings = choose_prompts(self.bench, answering.has_evidence, self.prompts)
        answers = answering(make_rows(self.bench, self.references, wordings, self.video_root, False), self.progress)
        predictions = [
            self.bench.to_prediction(answer, record) for answer, record in zip(answers, self.references, strict=True)
        ]
        scores = {"fixed": self.bench.score(predictions, self.references)}
        return EvaluationRun(self.benchmark, self.bench.TITLE, scores, {"settings_hash": "in training"})
