# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The folder of a curriculum: what it was begun with, which stages are finished, and one log over all of them.

    curriculum.json        settings and hashes of the rows, which must not change while the run goes on
    log.jsonl              every logged step of every stage
    1_dpo_r16/ ...         a stage: its checkpoints, then its adapter or model, and finished.json, written last
"""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..data.shards import write_whole
from .checkpoints import CheckpointError
from .temple_config import TempleConfig

# What training arguments decide the weights that come out, beside those of the methods.
_OF_TRAINING = (
    "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "bf16", "fp16",
    "dataloader_drop_last",
)  # fmt: skip
# Of the methods, what does not.
_NO_MATTER = {
    "cache_frames", "frame_cache_dir", "feature_cache", "video_manifest", "video_backend", "dataset_num_proc",
    "precompute_ref_log_probs", "precompute_ref_batch_size",
}  # fmt: skip
# What a row teaches. Files may move: rows are told apart by their words.
_HASHED_COLUMNS = (
    "id", "prompt", "prompt_spans", "chosen", "chosen_spans", "rejected", "rejected_spans", "completion", "spans",
    "response_spans", "keep_ratio",
)  # fmt: skip


def hash_rows(dataset: datasets.Dataset) -> str:
    """
    What tells rows from others, or from the same in another order.

    Args:
        dataset (`datasets.Dataset`):
            Rows for training.

    Returns:
        `str`: a hash of their words and spans.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_temporal.trainer.temple_run import hash_rows
    >>> hash_rows(Dataset.from_dict({"id": ["a", "b"]})) == hash_rows(Dataset.from_dict({"id": ["b", "a"]}))
    False
    ```
    """
    columns = [name for name in _HASHED_COLUMNS if name in dataset.column_names]
    digest = hashlib.sha256()
    for rows in dataset.select_columns(columns).with_format(None).iter(1000):
        digest.update(json.dumps(rows, default=str).encode())
    return digest.hexdigest()[:16]


def run_settings(args: TempleConfig, **others: Any) -> dict[str, Any]:
    """
    What must stay as it is while a curriculum goes on.

    Args:
        args ([`TempleConfig`]):
            Configuration.
        **others:
            More of the kind, as the rows' hashes.

    Returns:
        `dict`: flat, as it comes back from JSON; fields of dictionaries are named `then_sft.learning_rate`.
    """
    of_methods = {entry.name for entry in fields(args)} - {entry.name for entry in fields(TrainingArguments)}
    values = args.to_dict()
    settings = {name: values[name] for name in sorted(of_methods - _NO_MATTER | set(_OF_TRAINING))}
    settings["rows_per_step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings |= others
    flat = {}
    for name, value in settings.items():
        parts = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": part for key, part in parts.items()} or {name: value}
    return json.loads(json.dumps(flat, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


class RunFolder:
    """
    The folder of a curriculum, as all processes see it: the first one reads and writes, and tells the others.

    Args:
        path (`str` or `os.PathLike`):
            The folder.

    Attributes:
        finished (`dict[str, dict]`):
            By name of the stage what its `finished.json` says: `steps`, `metrics`, `merge_first`.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.finished: dict[str, dict] = {}

    def open(self, settings: dict[str, Any], stages: list[str], resume: bool) -> None:
        r"""
        Begins a run, or goes on with one.

        Args:
            settings (`dict`):
                See [`run_settings`].
            stages (`list[str]`):
                Names of the stages.
            resume (`bool`):
                Go on with the run that is in the folder, if there is one.

        Raises:
            CheckpointError: if there is a run in the folder that is not to be resumed, or was begun with other
                settings; it names them.
        """
        state = PartialState()
        answer = [self._open(settings, stages, resume)] if state.is_main_process else [None]
        fault, self.finished = broadcast_object_list(answer)[0] if state.num_processes > 1 else answer[0]
        if fault is not None:
            raise CheckpointError(fault)

    def _open(self, settings, stages, resume) -> tuple[str | None, dict[str, dict]]:
        begun = self.path / "curriculum.json"
        if begun.exists() and not resume:
            return (
                f"{self.path} holds a curriculum already. Go on with it by `--resume_from_checkpoint last`, or begin "
                "another one in another folder, by `--output_dir`."
            ), {}
        if begun.exists():
            before = json.loads(begun.read_text(encoding="utf-8"))
            names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            if names:
                changes = "; ".join(f"`{name}` was {before.get(name)!r}, now {settings.get(name)!r}" for name in names)
                return (
                    f"The curriculum in {self.path} was begun with other settings: {changes}. Resume it with the "
                    "same, or choose another `output_dir`."
                ), {}
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(begun, json.dumps(settings, indent=2) + "\n")
        marks = {name: self.path / name / "finished.json" for name in stages}
        return None, {
            name: json.loads(mark.read_text(encoding="utf-8")) for name, mark in marks.items() if mark.exists()
        }

    def finish(self, stage: str, mark: dict[str, Any]) -> None:
        """Marks a stage as finished. Called by all processes, when all have written what they have of it."""
        state = PartialState()
        state.wait_for_everyone()
        self.finished[stage] = mark
        if state.is_main_process:
            write_whole(self.path / stage / "finished.json", json.dumps(mark, indent=2) + "\n")
        state.wait_for_everyone()

    @property
    def log_path(self) -> Path:
        return self.path / "log.jsonl"

    def read_log(self) -> list[dict[str, Any]]:
        """The log of all stages so far."""
        if not self.log_path.exists():
            return []
        return [json.loads(line) for line in self.log_path.read_text(encoding="utf-8").splitlines()]


class StageLogCallback(TrainerCallback):
    """
    Writes what a stage logs behind the stages before it, with steps counted over all of them.

    Args:
        run ([`RunFolder`]):
            Of the curriculum.
        args ([`TempleConfig`]):
            Configuration of the curriculum.
        reporters (`list[TrainerCallback]`):
            TensorBoard, Weights & Biases and the like, which are told of all stages as of one training.
        stage (`str`):
            Name of the stage.
        first_step (`int`):
            Steps of the stages before it.
    """

    def __init__(
        self, run: RunFolder, args: TempleConfig, reporters: list[TrainerCallback], stage: str, first_step: int
    ):
        self.run, self.args, self.reporters, self.stage, self.first_step = run, args, reporters, stage, first_step

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            # What was logged behind the checkpoint that training resumes from will be logged once more.
            kept = [line for line in self.run.read_log() if line["stage"] in self.run.finished]
            kept += [self._line(logs) for logs in state.log_history]
            write_whole(self.run.log_path, "".join(json.dumps(line) + "\n" for line in kept))
        for reporter in self.reporters:
            reporter.on_train_begin(self.args, self._of_run(state), control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with self.run.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._line(state.log_history[-1])) + "\n")
        for reporter in self.reporters:
            reporter.on_log(self.args, self._of_run(state), control, logs=logs, **kwargs)

    def _line(self, logs: dict[str, Any]) -> dict[str, Any]:
        step = logs["step"]
        return {"stage": self.stage, "stage_step": step, **logs, "step": self.first_step + step}

    def _of_run(self, state: TrainerState) -> TrainerState:
        return replace(state, global_step=self.first_step + state.global_step)


def say_base(adapter_config: Path, merged: list[str]) -> None:
    """
    Has an adapter say that it goes onto more than its base, so that nobody loads it onto the base alone.

    Args:
        adapter_config (`Path`):
            The `adapter_config.json` of a stage.
        merged (`list[str]`):
            Names of the stages whose adapters were merged before.
    """
    config = json.loads(adapter_config.read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"] or "its base"
    config["base_model_name_or_path"] = f"{base} with {', '.join(merged)} merged into it"
    write_whole(adapter_config, json.dumps(config, indent=2) + "\n")
