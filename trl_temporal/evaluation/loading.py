# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A model, or an adapter on its base, from a folder or the Hub."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from ..models import grounded_videodit  # noqa: F401  # the Auto classes know it, and a D2VLM
from ..models.d2vlm import D2VLMBackboneProcessor, D2VLMForConditionalGeneration


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
    adapter = _adapter_config(name, from_hub)
    if adapter is None or _has_config(name, from_hub):
        return AutoConfig.from_pretrained(name, **from_hub)
    base, of_base = _find_base(name, adapter, None, from_hub)
    return AutoConfig.from_pretrained(base, **of_base)


def load_model(
    name: str, dtype: str | torch.dtype = "auto", *, base: str | None = None, **from_hub
) -> tuple[PreTrainedModel | PeftModel, Any]:
    """
    A model and its processor.

    Args:
        name (`str`):
            Folder, or name on the Hub, of a model or of an adapter of peft. The adapter of a D2VLM on a backbone needs
            the `config.json` that [`record_base`] writes beside it, by which the D2VLM is made once more.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Type of the weights.
        base (`str`, *optional*):
            What an adapter goes onto, if not what the adapter says.
        from_hub (*optional*):
            `revision` and `trust_remote_code`, as `from_pretrained` takes them.

    Returns:
        `tuple`: the model, and the processor that lies beside it.

    Raises:
        ValueError: if the base of an adapter is not known, or not how to make it.
    """
    processor = AutoProcessor.from_pretrained(name, **from_hub)
    adapter = _adapter_config(name, from_hub)
    if adapter is None:
        return AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **from_hub), processor
    base, of_base = _find_base(name, adapter, base, from_hub)
    is_plain = AutoConfig.from_pretrained(base, **of_base).model_type != "d2vlm"
    if is_plain and isinstance(processor, D2VLMBackboneProcessor):
        if not _has_config(name, from_hub):
            raise ValueError(
                f"The adapter {name} is for a D2VLM on {base}, but has no config.json to make that D2VLM by. Save the "
                "adapter with `EvidenceSFTTrainer` or `FPOTrainer`, or put the `config.json` of the D2VLM beside it."
            )
        config = AutoConfig.from_pretrained(name, **from_hub)
        parts = {key: getattr(config, key) for key in ("capture_layer", "similarity_layer", "salience_threshold")}
        model = D2VLMForConditionalGeneration.from_backbone(base, processor, dtype=dtype, **parts, **of_base)
    else:
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype, **of_base)
    return PeftModel.from_pretrained(model, name, revision=from_hub.get("revision")), processor


def record_base(model: PeftModel, folder: str | os.PathLike) -> None:
    """
    Has an adapter that is about to be saved say what it goes onto, so that [`load_model`] finds it.

    It matters for a D2VLM on a backbone, which is nowhere as such: the backbone becomes the base, and `config.json`
    says how the D2VLM is made on it. Adapters for other models say enough by themselves.

    Args:
        model ([`~peft.PeftModel`]):
            The model with its adapter.
        folder (`str` or `os.PathLike`):
            Where the adapter will be saved.
    """
    config = model.get_base_model().config
    if config.model_type != "d2vlm" or config.backbone_config is None or config._name_or_path:
        return  # `_name_or_path` is that of a D2VLM that was saved as one
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.to_json_file(Path(folder) / "config.json")
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = adapter.base_model_name_or_path or config.backbone_config._name_or_path


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
    if name and folder.is_dir():
        made_of = {"name": folder.resolve().name, "sha256": _hash_weights(folder)}
    else:
        made_of = {"name": name, "revision": revision, "commit": _commit_of(model, name, revision)}
    if isinstance(model, PeftModel):
        base = Path(model.peft_config[model.active_adapter].base_model_name_or_path or "")
        made_of["base"] = _hash_weights(base) if base.is_dir() else str(base)
    return {**made_of, "type": model.config.model_type, "dtype": str(model.dtype).removeprefix("torch.")}


def _adapter_config(name: str, from_hub: dict[str, Any]) -> PeftConfig | None:
    if find_adapter_config_file(name, revision=from_hub.get("revision")) is None:
        return None
    return PeftConfig.from_pretrained(name, revision=from_hub.get("revision"))


def _has_config(name: str, from_hub: dict[str, Any]) -> bool:
    revision = from_hub.get("revision")
    return cached_file(name, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False) is not None


def _commit_of(model: PreTrainedModel | PeftModel, name: str, revision: str | None) -> str | None:
    # Loading has put the file into the cache. A model that was never loaded from the Hub has none there, whatever its
    # name: it has no commit, and nobody is asked for one.
    file = "adapter_config.json" if isinstance(model, PeftModel) else "config.json"
    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:  # a path
        return None
    return extract_commit_hash(cached, None) if isinstance(cached, str) else None


def _find_base(
    name: str, adapter: PeftConfig, base: str | None, from_hub: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The name of an adapter's base, and how it is loaded: the adapter's own revision is another repository's."""
    trust = {"trust_remote_code": from_hub.get("trust_remote_code")}
    if base is not None:
        return base, trust
    if not adapter.base_model_name_or_path:
        raise ValueError(
            f"The adapter {name} does not say what model it is for: its adapter_config.json has no "
            "`base_model_name_or_path`. Write it there, or merge it with `trl-temporal merge --model BASE`."
        )
    # A revision is a commit on the Hub; the folder that the base was downloaded to has none.
    is_folder = Path(adapter.base_model_name_or_path).is_dir()
    return adapter.base_model_name_or_path, {**trust, "revision": None if is_folder else adapter.revision}


def _hash_weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
