# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Grounded evaluation while a trainer runs."""

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from .benchmark_evaluator import BenchmarkEvaluator
from .evaluator import EvaluationResult, GroundedEvaluator
from .results import EvaluationRun


class GroundedEvaluationCallback(TrainerCallback):
    """
    A [`~transformers.TrainerCallback`] that generates answers on a validation slice, scores them and logs the metrics
    with the prefix `eval_`, baselines included.

    Without `every_n_steps` it runs after every evaluation of the trainer, and its metrics join the trainer's: with
    `metric_for_best_model="eval_grounding_f1"` they choose the best checkpoint. The main process generates; the others
    wait and receive the metrics.

    Args:
        trainer ([`~transformers.Trainer`]):
            Trainer that the callback is added to; its `log` receives the metrics.
        evaluator ([`GroundedEvaluator`] or [`BenchmarkEvaluator`]):
            Evaluator on the validation slice.
        every_n_steps (`int`, *optional*):
            Steps between two evaluations. By default it runs whenever the trainer evaluates.

    Example:

    ```python
    evaluator = GroundedEvaluator(dataset["validation"].select(range(64)), processor)
    trainer.add_callback(GroundedEvaluationCallback(trainer, evaluator, every_n_steps=100))
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        evaluator: GroundedEvaluator | BenchmarkEvaluator,
        every_n_steps: int | None = None,
    ):
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            # One process cannot run a model whose weights are spread over all of them: it would wait forever.
            raise ValueError(
                "GroundedEvaluationCallback generates on the main process alone, which cannot work on weights sharded "
                "by FSDP or ZeRO-3; evaluate the saved checkpoint after training instead"
            )
        self.trainer = trainer
        self.evaluator = evaluator
        self.every_n_steps = every_n_steps
        self.last_result: EvaluationResult | EvaluationRun | None = None
        self._last_step = -1

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        metrics: dict[str, float],
        **kwargs,
    ) -> None:
        if self.every_n_steps is None:
            metrics.update(self._evaluate(state, model))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        **kwargs,
    ) -> None:
        if self.every_n_steps is None or state.global_step % self.every_n_steps != 0:
            return
        if state.global_step != self._last_step:
            self._evaluate(state, model)

    def _evaluate(self, state: TrainerState, model: torch.nn.Module) -> dict[str, float]:
        self._last_step = state.global_step
        was_training = model.training
        # In training mode, TRL's `log` would add and clear the training averages gathered so far.
        model.eval()
        try:
            metrics: list[dict[str, float] | None] = [None]
            if state.is_world_process_zero:
                with torch.no_grad():
                    self.last_result = self.evaluator(model)
                metrics[0] = {f"eval_{name}": value for name, value in self.last_result.metrics.items()}
                print(f"step {state.global_step}: {self.last_result.summary()}")
            broadcast_object_list(metrics)
            self.trainer.log(dict(metrics[0]))
        finally:
            model.train(was_training)
        return metrics[0]
