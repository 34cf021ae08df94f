# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""An adapter and its base as one model, which serves without peft: `trl-temporal merge`."""

import os
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from ..evaluation.loading import load_model
from ..models.d2vlm.released_folder import new_folder
from .card import write_merged_card

PEFT_NAMES = ("base_layer", "lora_", "modules_to_save", "original_module", "token_adapter", "trainable_tokens")


def merge_adapter(
    adapter: str,
    output: str | os.PathLike,
    *,
    model: str | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """
    Merge an adapter into its base, and save the model with its processor.

    LoRA factors are added to the weights, whole modules (`modules_to_save`) and rows of tokens
    (`trainable_token_indices`) take the place of the base's. What comes out is a model like any other, in safetensors.

    Args:
        adapter (`str`):
            Folder, or name on the Hub, of an adapter and the processor beside it.
        output (`str` or `os.PathLike`):
            Folder to write; must not exist, or be empty.
        model (`str`, *optional*):
            Base, if not the one that the adapter names. Of a D2VLM on a backbone, the backbone.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Type of the weights, which are also merged in it. Defaults to that of the base.
        revision (`str`, *optional*):
            Revision of the adapter on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code of the base's repository.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if there is no adapter, its base is not known, or it is of a kind that cannot be merged.

    Example:

    ```python
    >>> from trl_temporal.hub.merge import merge_adapter
    >>> merge_adapter("outputs/sft", "outputs/merged")  # doctest: +SKIP
    ```
    """
    if find_adapter_config_file(adapter, revision=revision) is None:
        raise ValueError(f"{adapter} is no adapter: it has no adapter_config.json. A whole model needs no merging.")
    with new_folder(output) as folder:
        adapted, processor = load_model(
            adapter, dtype, base=model, revision=revision, trust_remote_code=trust_remote_code
        )
        base = model or adapted.peft_config[adapted.active_adapter].base_model_name_or_path
        merge_model(adapted).save_pretrained(folder)
        processor.save_pretrained(folder)
        write_merged_card(folder, adapter, base, revision)
    return Path(output)


def merge_model(model: PeftModel) -> PreTrainedModel:
    """
    Merge an adapter in memory; the logits stay the same.

    Args:
        model ([`~peft.PeftModel`]):
            The model with its adapter, which is used up.

    Returns:
        `PreTrainedModel`: without a trace of peft. If input and output embeddings were one tensor and the adapter has
        changed one of them only, they are two from here on, and the configuration says so.

    Raises:
        ValueError: if something of peft is left.

    Example:

    ```python
    >>> from trl_temporal.hub.merge import merge_model
    >>> merge_model(trainer.model).save_pretrained("outputs/merged")  # doctest: +SKIP
    ```
    """
    was_tied = _separate_embeddings(model)
    merged = model.merge_and_unload(safe_merge=True)
    if was_tied and merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight:
        _say_untied(merged.config)
    left = [name for name in merged.state_dict() if any(part in name for part in PEFT_NAMES)]
    if left:
        raise ValueError(
            f"peft did not merge {', '.join(left[:3])}{' ...' if left[3:] else ''}. Only LoRA, whole modules and rows "
            "of tokens can be merged."
        )
    return merged


def _separate_embeddings(model: PeftModel) -> bool:
    """
    Whether input and output embeddings are one tensor. If so, and the adapter is for one of the two alone, the output
    gets a copy: merged into the shared tensor it would change both.
    """
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or _unwrap(embedding).weight is not _unwrap(head).weight:
        return False
    # peft trains the rows of both as one where it wraps the two together.
    have_rows_in_common = isinstance(head, TrainableTokensWrapper) and head.token_adapter.tied_adapter is not None
    if (_is_wrapped(embedding) or _is_wrapped(head)) and not have_rows_in_common:
        head = _unwrap(head)
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return True


def _is_wrapped(module: torch.nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _unwrap(module: torch.nn.Module) -> torch.nn.Module:
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _say_untied(config: PreTrainedConfig) -> None:
    """Else they would be tied again as the model is loaded, and the trained one of the two lost."""
    config.tie_word_embeddings = False
    for name in config.sub_configs:
        part = getattr(config, name)
        if isinstance(part, PreTrainedConfig) and part.to_dict().get("tie_word_embeddings"):
            _say_untied(part)
