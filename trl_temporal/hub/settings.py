# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The settings that a training depends on, for its card, and their hash."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from transformers import TrainingArguments

# Settings, or beginnings of their names, that say where and how a run took place: what is learnt is the same.
OF_THE_MACHINE = tuple(
    (
        "accelerator_config cache_frames dataloader_ dataset_num_proc ddp_ debug deepspeed disable_tqdm do_ eos_token "
        "eval_ feature_cache frame_cache_dir fsdp hub_ include_ jit_mode load_best_model local_rank log_ logging_ "
        "output_dir pad_token parallelism_config project push_to_hub ray_ report_to restore_callback resume_from "
        "run_name save_ skip_memory tensorboard trackio torchdynamo use_cpu video_backend video_manifest"
    ).split()
)
# Shown also where they have their defaults.
ALWAYS_SHOWN = (
    "learning_rate lr_scheduler_type num_train_epochs max_steps per_device_train_batch_size "
    "gradient_accumulation_steps seed bf16 fp16 beta loss_type reference_free preference_coef sft_coef grounding_coef "
    "grounding_target grounding_log_prob evidence_coef consistency_coef fps max_frames num_frames freeze_vision_tower"
).split()
OF_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "trainable_token_indices")


def training_settings(args: TrainingArguments, adapter: LoraConfig | None = None) -> dict[str, Any]:
    """
    The settings that what is learnt depends on: those that are not the defaults, and some that always matter.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Settings of a trainer.
        adapter ([`~peft.LoraConfig`], *optional*):
            Those of its adapter.

    Returns:
        `dict[str, Any]`: the value of each. `num_processes` is among them, as the batch depends on it.

    Example:

    ```python
    >>> from transformers import TrainingArguments
    >>> from trl_temporal.hub.settings import training_settings
    >>> training_settings(TrainingArguments("out", learning_rate=0.001, use_cpu=True))["learning_rate"]
    0.001
    ```
    """
    settings: dict[str, Any] = {"num_processes": args.world_size}
    values = args.to_dict()
    for field in dataclasses.fields(args):
        value = values.get(field.name)
        if value in (None, "", [], {}) or field.name.startswith(OF_THE_MACHINE):
            continue
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        if value != default or field.name in ALWAYS_SHOWN:
            settings[field.name] = value
    of_adapter: Mapping[str, Any] = adapter.to_dict() if adapter is not None else {}
    for name in OF_LORA:
        value = of_adapter.get(name)
        if value:
            settings[f"lora: {name.removeprefix('lora_')}"] = sorted(value) if isinstance(value, set) else value
    return settings


def settings_hash(settings: Mapping[str, Any]) -> str:
    """
    Twelve digits that tell settings from others.

    Args:
        settings (`Mapping[str, Any]`):
            As [`training_settings`] returns them; their order does not matter.

    Returns:
        `str`

    Example:

    ```python
    >>> from trl_temporal.hub.settings import settings_hash
    >>> settings_hash({"beta": 0.1, "seed": 1}) == settings_hash({"seed": 1, "beta": 0.1})
    True
    ```
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
