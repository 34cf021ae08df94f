# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Several processes: set-ups that train wrongly without an error, and parameters of which each process has a part."""

import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from ..models.d2vlm.modeling_d2vlm import _in_one_piece


def check_processes(args: TrainingArguments) -> None:
    r"""
    Refuses set-ups in which every process would train on its own, hold all of the model, or cut up batches.

    Args:
        args (`TrainingArguments`):
            Configuration of a trainer.

    Raises:
        ValueError: if the launcher started other processes than train together, one process is to use several
            GPUs, or FSDP was asked for on a CPU.
    """
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started != args.world_size:
        raise ValueError(
            f"The launcher started {started} processes, but this one knows of {args.world_size}: each would train a "
            "model of its own on all rows, and write over the others. On GPUs check that each process sees one "
            "(`CUDA_VISIBLE_DEVICES`, `nvidia-smi`); on CPUs set `use_cpu=True` and `ddp_backend='gloo'`."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and was not started by a launcher: `DataParallel` would cut batches "
            "up by rows, but videos stand in a batch once each, in pieces of different lengths. Start with "
            "`accelerate launch --config_file recipes/accelerate/ddp.yaml`, or show it one GPU: "
            "`CUDA_VISIBLE_DEVICES=0`."
        )
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    if asked and args.device.type == "cpu":
        raise ValueError(
            "FSDP was asked for, but accelerate leaves it out on CPUs: every process would hold the whole model, and "
            "they might not even share their gradients. Use GPUs, or on CPUs plain DDP or DeepSpeed "
            "(docs/distributed.md)."
        )


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of every parameter, which all of them gather together to use it."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.state.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter]):
    """While open, parameters that DeepSpeed has sharded are whole, for reading. To be entered by all processes."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def same_values(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two parameters are equal, sharded or not. To be called by all processes."""
    with gathered([first, second]):
        first, second = (each.full_tensor() if isinstance(each, DTensor) else each for each in (first, second))
        return torch.equal(first, second.to(first.device))


def hash_weights(model: torch.nn.Module) -> str:
    """A hash of all weights, whole: TRL hashes the pieces, which are empty. To be called by all processes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        with gathered([parameter]):
            values = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            digest.update(name.encode() + values.detach().double().cpu().numpy().tobytes())
    return digest.hexdigest()


def adapting(model, adapts: bool = True) -> AbstractContextManager:
    """
    To be open while peft adds to a model. Under ZeRO-3 it takes every model for sharded, and fetches rows of tokens
    from another process; one that [`D2VLMForConditionalGeneration.from_backbone`] made is whole until training starts.
    """
    if not adapts or isinstance(model, str) or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return nullcontext()
    return _in_one_piece()


def running_modules() -> list[torch.nn.Module]:
    """
    The stack of modules that run, as DeepSpeed keeps it: it takes parameters that are read elsewhere than in their
    module for those of the one on top. A pass that ends early leaves its own there.
    """
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    return [] if offload is None else offload.FWD_MODULE_STACK


# Inputs that half precision would change: DeepSpeed casts floating inputs of a batch to the type of the weights, and
# FSDP those of a forward. As integers with the same bits they pass.
EXACT_INPUTS = ("second_per_grid_ts", "timestamps_s", "duration_s")
EXACT_IN_BATCH = ("ref_chosen_logps", "ref_rejected_logps")


def hide_exact(inputs: dict) -> dict:
    r"""
    Inputs with those that must keep their precision as integers.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            A batch.

    Returns:
        `dict[str, torch.Tensor]`

    Example:

    ```python
    >>> hidden = hide_exact({"second_per_grid_ts": torch.tensor([2 / 3])})
    >>> hidden["second_per_grid_ts"].dtype, show_exact(hidden)["second_per_grid_ts"]
    (torch.int32, tensor([0.6667]))
    ```
    """
    names = [name for name in (*EXACT_INPUTS, *EXACT_IN_BATCH) if torch.is_tensor(inputs.get(name))]
    hidden = {name: inputs[name].float().view(torch.int32) for name in names if inputs[name].is_floating_point()}
    return {**inputs, **hidden}


def show_exact(inputs: dict, names: tuple[str, ...] = EXACT_INPUTS) -> dict:
    r"""
    The inverse of [`hide_exact`].

    Args:
        inputs (`dict[str, torch.Tensor]`):
            A batch.
        names (`tuple[str]`, *optional*):
            Those to be put back; by default what the model reads.

    Returns:
        `dict[str, torch.Tensor]`
    """
    hidden = {name: inputs[name] for name in names if torch.is_tensor(inputs.get(name))}
    shown = {name: value.view(torch.float32) for name, value in hidden.items() if value.dtype == torch.int32}
    return {**inputs, **shown}
