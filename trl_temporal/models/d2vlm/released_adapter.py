# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""LoRA factors of released checkpoints: merged, or as an adapter of PEFT for our model."""

import math
import re
from os import PathLike
from pathlib import Path

import torch

from .released_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    WRAPPER_PREFIX,
    ConversionError,
    ConversionReport,
    LazyTensor,
    ReleasedFolder,
    StoredTensor,
    unwrap,
    write_json,
    write_tensors,
)
from .released_names import rename

# The adapter's folder, and a file in it with the names in the released files, for the way back.
ADAPTER_FOLDER, LAYOUT_FILE = "adapter", "released_layout.json"


def lora_factors(released: ReleasedFolder) -> dict[str, dict[str, StoredTensor]]:
    """
    The LoRA factors `A` and `B` of each weight, by the weight's released name.

    Raises:
        ConversionError: if they are not those of plain LoRA, not in pairs, or do not fit the weights.
    """
    factors: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in released.adapter.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", unwrap(name))
        if match is None:
            raise ConversionError(f"{stored.file} has {name!r}: only plain LoRA on linear layers can be converted.")
        factors.setdefault(f"{match[1]}.weight", {})[match[2]] = stored
    for name, pair in factors.items():
        if name not in released.tensors:
            raise ConversionError(f"{ADAPTER_FILE} has LoRA factors for {name!r}, a weight that is not there.")
        if set(pair) != {"A", "B"}:
            raise ConversionError(f"{ADAPTER_FILE} has only one of the two LoRA factors of {name!r}.")
        shape, shape_a, shape_b = released.tensors[name].shape, pair["A"].shape, pair["B"].shape
        if (shape_b[0], shape_a[1]) != shape or shape_a[0] != shape_b[1]:
            raise ConversionError(
                f"{ADAPTER_FILE} has LoRA factors A {shape_a} and B {shape_b} for {name!r} of shape {shape}: they do "
                "not fit. Is the base folder the one it was trained from?"
            )
    return factors


def _scale(released: ReleasedFolder) -> float:
    settings = released.adapter_config
    unknown = [name for name in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if settings.get(name)]
    if unknown:
        raise ConversionError(f"{ADAPTER_CONFIG_FILE} sets {', '.join(unknown)}, which only PEFT itself can merge.")
    rank = settings["r"]
    return settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def plan_merge(released: ReleasedFolder, tensors: dict[str, LazyTensor], report: ConversionReport) -> None:
    """Puts `W + scale B A` in the place of each adapted weight, computed in float32 and rounded once."""
    scale = _scale(released)
    for name, pair in lora_factors(released).items():

        def make(weight=released.tensors[name], pair=pair) -> torch.Tensor:
            return torch.addmm(weight.read().float(), pair["B"].read().float(), pair["A"].read().float(), alpha=scale)

        ours = rename(name)
        tensors[ours] = tensors[ours]._replace(make=make)
    report.merged.update({name: rename(_weight_of(name)) for name in released.adapter})


def _weight_of(factor: str) -> str:
    return re.sub(r"\.lora_[AB](\.default)?\.weight$", ".weight", unwrap(factor))


def write_adapter(
    released: ReleasedFolder,
    folder: Path,
    dtype: torch.dtype | None,
    destination: str | PathLike,
    report: ConversionReport,
) -> None:
    """The LoRA factors as an adapter of PEFT for our model."""
    folder.mkdir()
    tensors = {}
    for name, pair in lora_factors(released).items():
        module = WRAPPER_PREFIX + rename(name).removesuffix(".weight")
        for factor, stored in sorted(pair.items()):
            tensors[f"{module}.lora_{factor}.weight"] = stored.lazy().cast(dtype)
    write_tensors(folder / ADAPTER_FILE, tensors)
    # Biases that were trained with the factors are in the model itself.
    settings = {**released.adapter_config, "base_model_name_or_path": str(destination), "bias": "none"}
    write_json(folder / ADAPTER_CONFIG_FILE, settings)
    write_json(folder / LAYOUT_FILE, {"adapter_config": released.adapter_config, "files": released.files})
    report.used.update({name: f"{ADAPTER_FOLDER}: {rename(_weight_of(name))}" for name in released.adapter})
