# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What a recipe says beside the trainer's configuration: the rows and the model that the examples train."""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel
from trl import ModelConfig, get_peft_config

from ..data.validation import load_rows
from ..models.d2vlm import D2VLMForConditionalGeneration  # the Auto classes know a D2VLM from here on
from ..models.d2vlm.processing_d2vlm import D2VLMBackboneProcessor
from .evidence_sft_trainer import GROUNDED_MODELS
from .sharding import adapting


@dataclass
class DataArguments:
    """
    Arguments of `examples/sft.py` and `examples/fpo.py` that a recipe shares with `trl-temporal plan`.

    Args:
        dataset_name (`str`, *optional*):
            Rows to train on: a data set on disk or on the Hub, or a JSON, JSONL or Parquet file.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split of it that is trained on; a file has only one.
        evidence_tokens (`bool`, *optional*, defaults to `False`):
            Give a stock video model evidence tokens and the heads that ground them. Without, it is trained to write
            times as text.
        adapter_name (`str`, *optional*):
            Adapter to go on with, e.g. that of SFT, in the place of a new one.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Rows to train on: a data set on disk or on the Hub, or a JSON, JSONL or Parquet file."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split of the data set that is trained on."})
    evidence_tokens: bool = field(
        default=False, metadata={"help": "Give a stock video model evidence tokens and the heads that ground them."}
    )
    adapter_name: str | None = field(
        default=None, metadata={"help": "Adapter to go on with, e.g. that of SFT, in the place of a new one."}
    )


def load_split(name: str, split: str):
    """
    The rows of one split of a data set.

    Args:
        name (`str`):
            As `dataset_name` of [`DataArguments`].
        split (`str`):
            The split; not read where a file has but one.

    Returns:
        `datasets.Dataset`

    Raises:
        ValueError: If there is no such split.
        FileNotFoundError: If there is no such data set.
    """
    splits = load_rows(name)
    rows = splits.get(split, next(iter(splits.values())) if len(splits) == 1 else None)
    if rows is None:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}. Set `dataset_train_split`.")
    return Dataset.from_list(rows) if isinstance(rows, list) else rows


def load_model(script_args: DataArguments, model_args: ModelConfig) -> tuple[PreTrainedModel | PeftModel, Any]:
    """
    The model that a recipe names, with evidence tokens and adapter where it says so, and its processor.

    Args:
        script_args ([`DataArguments`]):
            `evidence_tokens` and `adapter_name` are read.
        model_args ([`~trl.ModelConfig`]):
            Name, revision, type of the weights and attention.

    Returns:
        `tuple`: the model and its processor.

    Raises:
        ValueError: If the recipe names no model, or asks for quantized weights.
    """
    name, revision = model_name(model_args), {"revision": model_args.model_revision}
    options = {**revision, "dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    if adds_evidence(script_args, AutoConfig.from_pretrained(name, **revision)):
        processor = D2VLMBackboneProcessor.from_backbone(name, **revision)
        model = D2VLMForConditionalGeneration.from_backbone(name, processor, **options)
    else:
        processor = AutoProcessor.from_pretrained(name, **revision)
        model = AutoModelForImageTextToText.from_pretrained(name, **options)
    if script_args.adapter_name is not None:
        with adapting(model):
            model = PeftModel.from_pretrained(model, script_args.adapter_name, is_trainable=True)
    return model, processor


def model_name(model_args: ModelConfig) -> str:
    """The name of the model, if there is one, and its weights are of a kind that these trainers can train."""
    if model_args.model_name_or_path is None:
        raise ValueError("No model is named: set `model_name_or_path`.")
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError(
            "Quantized weights (`load_in_4bit`, `load_in_8bit`) are not supported. Train a LoRA on weights in half "
            "precision instead: `use_peft: true`, `dtype: bfloat16`."
        )
    return model_args.model_name_or_path


def adds_evidence(script_args: DataArguments, config: PreTrainedConfig) -> bool:
    """Whether evidence tokens are to be added: models with heads for grounding have their own already."""
    return script_args.evidence_tokens and config.model_type not in GROUNDED_MODELS


def lora_config(model_args: ModelConfig, model: PreTrainedModel | PeftModel, processor) -> PeftConfig | None:
    """
    The new adapter that a recipe asks for. Of a D2VLM the evidence heads are trained whole, and the rows of the
    evidence tokens; of a Grounded-VideoDiT its `trained_parts`, and the rows of evidence and time tokens.

    Args:
        model_args ([`~trl.ModelConfig`]):
            `use_peft` and the fields that begin with `lora_`.
        model (`PreTrainedModel` or `PeftModel`):
            The model.
        processor (`ProcessorMixin`):
            Its processor.

    Returns:
        `PeftConfig` or `None`: without `use_peft`, and for a model that has an adapter.
    """
    if isinstance(model, PeftModel):
        return None
    config = get_peft_config(model_args)
    if config is not None and model.config.model_type in GROUNDED_MODELS:
        is_d2vlm = model.config.model_type == "d2vlm"
        parts = ["evi_head", "frame_head"] if is_d2vlm else model.trained_parts
        config.modules_to_save = [*(config.modules_to_save or []), *parts]
        rows = [processor.evidence_token_id, processor.evidence_end_token_id]
        if not is_d2vlm and processor.writes_times:
            rows += processor.tokenizer.convert_tokens_to_ids(processor.time_tokens.tokens)
        config.trainable_token_indices = {"embed_tokens": rows}
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            config.trainable_token_indices["lm_head"] = rows
    return config
