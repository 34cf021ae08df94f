# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A model to evaluate, from a folder or the Hub."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from ..models import d2vlm  # noqa: F401  (known to the Auto classes, so that a D2VLM needs no remote code)


def load_config(name: str, **from_hub) -> PreTrainedConfig:
    """
    The configuration of a model, or of the model that an adapter is for.

    Args:
        name (`str`):
            Folder, or name on the Hub.
        from_hub (*optional*):
            `revision` and `trust_remote_code`, as `from_pretrained` takes them.

    Returns:
        `PreTrainedConfig`
    """
    return AutoConfig.from_pretrained(_base_of(name, from_hub) or name, **from_hub)


def load_model(name: str, dtype: str | torch.dtype = "auto", **from_hub) -> tuple[PreTrainedModel | PeftModel, Any]:
    """
    A model and its processor.

    Args:
        name (`str`):
            Folder, or name on the Hub, of a model or of an adapter of peft.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Type of the weights.
        from_hub (*optional*):
            `revision` and `trust_remote_code`, as `from_pretrained` takes them.

    Returns:
        `tuple`: the model, and the processor that lies beside it.
    """
    processor = AutoProcessor.from_pretrained(name, **from_hub)
    base = _base_of(name, from_hub)
    if base is None:
        return AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **from_hub), processor
    trust = {"trust_remote_code": from_hub.get("trust_remote_code")}
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype, **trust)
    return PeftModel.from_pretrained(model, name, revision=from_hub.get("revision")), processor


def describe_model(model: PreTrainedModel | PeftModel, name: str, revision: str | None) -> dict[str, Any]:
    """
    What tells a model from others: the hash of its weights in a folder, the commit on the Hub.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        name (`str`):
            Folder or name that it came from.
        revision (`str`, *optional*):
            Revision that was asked for.

    Returns:
        `dict`: `name`, `sha256` or `revision` and `commit`, `type` and `dtype`; of an adapter also its `base`.
    """
    folder = Path(name)
    if folder.is_dir():
        made_of = {"name": folder.resolve().name, "sha256": _hash_weights(folder)}
    else:
        made_of = {"name": name, "revision": revision, "commit": model.config._commit_hash}
    if isinstance(model, PeftModel):
        base = Path(model.peft_config[model.active_adapter].base_model_name_or_path or "")
        made_of["base"] = _hash_weights(base) if base.is_dir() else str(base)
    return {**made_of, "type": model.config.model_type, "dtype": str(model.dtype).removeprefix("torch.")}


def _base_of(name: str, from_hub: dict[str, Any]) -> str | None:
    if find_adapter_config_file(name, revision=from_hub.get("revision")) is None:
        return None
    return PeftConfig.from_pretrained(name, revision=from_hub.get("revision")).base_model_name_or_path


def _hash_weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
