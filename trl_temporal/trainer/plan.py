# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
`trl-temporal plan`: tokens, steps and memory of a training run before it starts.

The model is built from its configuration on the `meta` device, so nothing of its weights is loaded. Videos are not
decoded: their headers say how many frames of which size the model's own processor is given.
"""

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from rich.console import Group
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from trl import ModelConfig, TrlParser

from ..models.d2vlm.modeling_d2vlm import D2VLMForConditionalGeneration
from ..models.d2vlm.processing_d2vlm import D2VLMBackboneProcessor
from .evidence_sft_config import EvidenceSFTConfig
from .fpo_config import FPOConfig
from .fused_forward import sharing_obstacle
from .plan_memory import Decoder, Step, bytes_of, optimizer_bytes, tower_bytes
from .plan_rows import Sample, measure, sample_rows
from .script_arguments import DataArguments, adds_evidence, lora_config, model_name
from .shared_videos import video_parameters, vision_tower

CONFIGS = {"sft": EvidenceSFTConfig, "fpo": FPOConfig}
RESERVE = 0.1  # of the device, for its context and for memory in pieces too small to use
GIB = 2**30


@dataclass
class Range:
    """The least, the middle and the largest of some numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, numbers) -> "Range":
        return cls(min(numbers), statistics.median(numbers), max(numbers))


@dataclass
class TrainingPlan:
    """
    What [`plan_training`] found out.

    Args:
        method (`str`):
            `"sft"` or `"fpo"`.
        model (`str`):
            Name of the model.
        num_parameters, num_trainable (`int`):
            Its parameters, counted.
        num_rows (`int`, *optional*):
            Rows of the data set, where it is at hand.
        num_sampled (`int`):
            Rows that were measured.
        frames, prompt_tokens, response_tokens, sequence_tokens (`Range`):
            Of the measured rows: frames of a video, tokens of a prompt with its video, of a response, and of what runs
            as one sequence.
        rows_per_step (`int`):
            Rows of an optimizer step, on all devices.
        num_steps (`int`, *optional*):
            Optimizer steps.
        memory (`dict[str, int]`):
            Bytes on each device, by what they are for. All but weights, gradients and optimizer states is estimated.
        device (`str`):
            The device.
        device_memory (`int`):
            Its bytes.
        fits (`bool`):
            Whether all of it is at most nine tenths of that.
        changes (`list[str]`):
            What would save memory, the most effective first; empty where it fits.
        notes (`list[str]`):
            What was assumed, and what is not in the numbers.
    """

    method: str
    model: str
    num_parameters: int
    num_trainable: int
    num_rows: int | None
    num_sampled: int
    frames: Range
    prompt_tokens: Range
    response_tokens: Range
    sequence_tokens: Range
    rows_per_step: int
    num_steps: int | None
    memory: dict[str, int]
    device: str
    device_memory: int
    fits: bool
    changes: list[str]
    notes: list[str]


def read_config(path: str, flags: list[str], method: str | None = None):
    """
    Reads a recipe as the examples do.

    Args:
        path (`str`):
            The YAML file.
        flags (`list[str]`):
            Flags of the training script, which win.
        method (`str`, *optional*):
            `"sft"` or `"fpo"`. Defaults to the name of the file.

    Returns:
        `tuple`: [`DataArguments`], [`EvidenceSFTConfig`] or [`FPOConfig`], and [`~trl.ModelConfig`].

    Raises:
        ValueError: If a key is unknown, or neither `method` nor the name of the file says what is trained.
    """
    method = method or Path(path).stem
    if method not in CONFIGS:
        raise ValueError(
            f"{path}: neither sft.yaml nor fpo.yaml, so what it trains is not clear. Say it: --method sft or fpo."
        )
    parser = TrlParser((DataArguments, CONFIGS[method], ModelConfig))
    if not torch.cuda.is_available():
        parser.set_defaults_with_config(use_cpu=True)  # else `bf16` is refused where there is no GPU
    return parser.parse_args_and_config(["--config", path, *flags])


def plan_training(
    script_args: DataArguments,
    training_args: EvidenceSFTConfig | FPOConfig,
    model_args: ModelConfig,
    *,
    device_memory_gb: float | None = None,
    num_processes: int = 1,
    num_sampled: int = 8,
) -> TrainingPlan:
    """
    Plans a training run: how many tokens and steps it has, and whether it fits the memory of a device.

    Args:
        script_args ([`DataArguments`]):
            Rows and evidence tokens.
        training_args ([`EvidenceSFTConfig`] or [`FPOConfig`]):
            Configuration of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Model and adapter.
        device_memory_gb (`float`, *optional*):
            Memory of a device in GiB. Defaults to that of the GPU, on the CPU to the machine's.
        num_processes (`int`, *optional*, defaults to `1`):
            Devices that train together.
        num_sampled (`int`, *optional*, defaults to `8`):
            Rows to measure, from the shortest to the longest video.

    Returns:
        [`TrainingPlan`]

    Raises:
        ValueError: If the recipe names no model, or one that cannot be trained.

    Example:
        >>> from trl_temporal.trainer.plan import plan_training, read_config
        >>> arguments = read_config("recipes/qwen3_vl_4b/sft.yaml", [])  # doctest: +SKIP
        >>> plan_training(*arguments, device_memory_gb=80).fits  # doctest: +SKIP
        True
    """
    name = model_name(model_args)
    method, notes = "fpo" if isinstance(training_args, FPOConfig) else "sft", []
    model, processor = _empty_model(script_args, model_args)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    rows, num_rows = sample_rows(script_args, method, num_sampled, notes)
    samples = measure(rows, model, processor, training_args, method, notes)

    shared = method == "fpo" and training_args.prefix_sharing and _takes_masks(model_args)
    shared = shared and sharing_obstacle(model) is None
    model = _with_trained_parts(model, processor, script_args, training_args, model_args)
    step = _step(model, samples, training_args, model_args, shared, num_processes, notes)
    device, device_memory = _device(device_memory_gb)
    available = device_memory * (1 - RESERVE)
    fits = _total(step) <= available
    if fits and _total(step) > 0.75 * available:
        notes.append("Less than a quarter of that memory is left, and the estimates may be off by as much.")
    return TrainingPlan(
        method=method,
        model=name,
        num_parameters=num_parameters,
        num_trainable=step.trainable_numbers,
        num_rows=num_rows,
        num_sampled=len(samples),
        frames=Range.of([sample.frames for sample in samples]),
        prompt_tokens=Range.of([sample.prompt for sample in samples]),
        response_tokens=Range.of([length for sample in samples for length in sample.responses]),
        sequence_tokens=Range.of([sample.length(shared) for sample in samples]),
        rows_per_step=_rows_per_step(training_args, num_processes),
        num_steps=_num_steps(training_args, num_rows, num_processes),
        memory=step.memory(),
        device=device,
        device_memory=device_memory,
        fits=fits,
        changes=[] if fits else _changes(step, samples, training_args, available),
        notes=notes,
    )


def format_plan(plan: TrainingPlan) -> Group:
    """
    A plan for the terminal.

    Args:
        plan ([`TrainingPlan`]):
            The plan.

    Returns:
        `rich.console.Group`: two tables, the verdict, what to change and what was assumed.
    """
    rows = "" if plan.num_rows is None else f" of {plan.num_rows:,}"
    lengths = Table("", "min", "median", "max", title=f"{plan.num_sampled}{rows} rows, measured")
    for label, of in {
        "frames of a video": plan.frames,
        "tokens of a prompt, with its video": plan.prompt_tokens,
        "tokens of a response": plan.response_tokens,
        "tokens of a sequence": plan.sequence_tokens,
    }.items():
        lengths.add_row(label, *(f"{number:,.0f}" for number in (of.min, of.median, of.max)))
    memory = Table("", "GiB", "", title="Memory of a device")
    for label, size in plan.memory.items():
        known = label in ("weights", "weights of the reference", "gradients", "optimizer states")
        memory.add_row(label, f"{size / GIB:,.2f}", "counted" if known else "estimated")
    total = sum(plan.memory.values())
    memory.add_section()
    memory.add_row("together", f"{total / GIB:,.2f}", "")
    steps = "An unknown number of" if plan.num_steps is None else f"{plan.num_steps:,}"
    lines = [
        f"{plan.method.upper()} of {plan.model}: {plan.num_parameters:,} parameters; {plan.num_trainable:,} trained",
        f"{steps} optimizer steps of {plan.rows_per_step:,} rows",
    ]
    verdict = (
        f"{'Fits' if plan.fits else 'DOES NOT FIT'}: {total / GIB:,.1f} GiB on {plan.device} with "
        f"{plan.device_memory / GIB:,.1f} GiB, a tenth of which is left free."
    )
    changes = ["Change first:", *(f"  {change}" for change in plan.changes)] if plan.changes else []
    closing = "Activations, logits and video are estimates for the longest measured row."
    return Group(
        *(Text(line) for line in lines),
        lengths,
        memory,
        Text(verdict, style="green" if plan.fits else "bold red"),
        *(Text(line) for line in [*changes, closing, *(f"Note: {note}" for note in plan.notes)]),
    )


def _takes_masks(model_args: ModelConfig) -> bool:
    return model_args.attn_implementation in (None, "sdpa", "eager")


def _empty_model(script_args: DataArguments, model_args: ModelConfig) -> tuple[PreTrainedModel, Any]:
    """The model without memory, and its processor."""
    name, revision = model_args.model_name_or_path, {"revision": model_args.model_revision}
    config = AutoConfig.from_pretrained(name, **revision)
    if config.model_type == "grounded_videodit":
        raise ValueError(
            f"{name} is a Grounded-VideoDiT, for whose memory there are no estimates. `trl-temporal cache build` says "
            "what its features take before it makes them; for a step of training, try one with `max_steps: 1`."
        )
    dtype = config.dtype or torch.float32 if model_args.dtype == "auto" else model_args.dtype
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        if not adds_evidence(script_args, config):
            return model, AutoProcessor.from_pretrained(name, **revision)
        processor = D2VLMBackboneProcessor.from_backbone(name, **revision)
        return D2VLMForConditionalGeneration.from_backbone(model, processor), processor


def _with_trained_parts(model, processor, script_args: DataArguments, training_args, model_args: ModelConfig):
    """The model with its adapter, or with its vision tower frozen, as the trainers make it."""
    if script_args.adapter_name is not None:
        adapter = PeftConfig.from_pretrained(script_args.adapter_name)
        adapter.inference_mode = False
    else:
        adapter = lora_config(model_args, model, processor)
    if adapter is not None:
        with torch.device("meta"):
            return get_peft_model(model, adapter)
    if training_args.freeze_vision_tower:
        for parameter in video_parameters(model).values():
            parameter.requires_grad_(False)
    return model


def _step(
    model,
    samples: list[Sample],
    training_args,
    model_args: ModelConfig,
    shared: bool,
    num_processes: int,
    notes: list[str],
) -> Step:
    """A batch of the longest measured row, as often as the batch has rows."""
    config = model.config
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    states = optimizer_bytes(training_args.optim, trainable)
    if states is None:
        notes.append(f"The states of the optimizer {training_args.optim!r} are not known here: AdamW's are counted.")
        states = 2 * bytes_of(trainable)
    sharded = bool(training_args.deepspeed or training_args.fsdp)
    if sharded:
        notes.append("What DeepSpeed or FSDP share out over the devices is counted as if each held all of it.")
    is_fpo = isinstance(training_args, FPOConfig)
    has_reference = is_fpo and not (
        training_args.reference_free or training_args.precompute_ref_log_probs or isinstance(model, PeftModel)
    )
    longest = max(samples, key=lambda sample: sample.length(shared))
    batch_size = training_args.per_device_train_batch_size
    rows = batch_size * (1 if shared else len(longest.responses))
    # Norms, biases and adapters may have another type: the hidden state has that of the embedding.
    residual = model.get_input_embeddings().weight.element_size()
    half = training_args.bf16 or training_args.fp16
    compute = min(residual, 2) if half else residual
    decoder = Decoder.of(model, config)
    text = config.get_text_config()
    backbone = config.backbone_config if config.to_dict().get("backbone_config") else config
    vision = backbone.vision_config
    sizes = vision.to_dict()
    side = sizes.get("patch_size") or sizes["image_size"]
    side = side if isinstance(side, int) else side[0]
    patches = batch_size * longest.video_numbers / (3 * side**2 * (sizes.get("temporal_patch_size") or 1))
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return Step(
        weight_bytes=bytes_of(parameters),
        trainable_bytes=bytes_of(trainable),
        trainable_numbers=sum(parameter.numel() for parameter in trainable),
        state_bytes=states,
        reference_bytes=bytes_of(parameters) if has_reference else 0,
        decoder=decoder,
        rows=rows,
        length=longest.length(shared),
        scored=batch_size * sum(longest.responses),
        passes=1 + config.capture_layer / text.num_hidden_layers if config.model_type == "d2vlm" else 1,
        video_tokens=rows * longest.video_tokens,
        video_planes=1 + len(sizes.get("deepstack_visual_indexes") or []),
        video_bytes=batch_size * longest.video_bytes,
        tower_bytes=tower_bytes(vision_tower(base), vision, patches, compute, training_args.gradient_checkpointing),
        compute=compute,
        residual=residual,
        adapter=compute if half else 4,
        masked=shared or rows > 1,
        flash=not _takes_masks(model_args),
        checkpointing=training_args.gradient_checkpointing,
        copies_gradients=num_processes > 1 and not sharded,
    )


def _rows_per_step(training_args, num_processes: int) -> int:
    return training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps * num_processes


def _num_steps(training_args, num_rows: int | None, num_processes: int) -> int | None:
    """As the trainer counts them."""
    if training_args.max_steps > 0:
        return training_args.max_steps
    if num_rows is None:
        return None
    batches = math.ceil(num_rows / (training_args.per_device_train_batch_size * num_processes))
    steps_per_epoch = math.ceil(batches / training_args.gradient_accumulation_steps)
    return math.ceil(training_args.num_train_epochs * steps_per_epoch)


def _device(device_memory_gb: float | None) -> tuple[str, int]:
    if device_memory_gb is not None:
        return "a device", round(device_memory_gb * GIB)
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    return "this machine's CPU", psutil.virtual_memory().total


def _changes(step: Step, samples: list[Sample], training_args, available: float) -> list[str]:
    """Settings that would save memory, each alone, the most effective first; then all of them together."""
    changes = {}
    adapted = step.decoder.lora_inputs > 0
    if not step.checkpointing:
        changes["gradient_checkpointing: true"] = lambda step: replace(step, checkpointing=True)
    if not adapted:
        changes["use_peft: true (with lora_target_modules)"] = _adapted
    if adapted and step.residual > 2:
        changes["dtype: bfloat16"] = lambda step: replace(
            step, weight_bytes=step.weight_bytes // 2, residual=2, compute=2
        )
    if step.reference_bytes:
        changes["precompute_ref_log_probs: true"] = lambda step: replace(step, reference_bytes=0)
    batch_size = training_args.per_device_train_batch_size
    if batch_size > 1:
        accumulation = batch_size * training_args.gradient_accumulation_steps
        names = ("rows", "scored", "video_tokens", "video_bytes", "tower_bytes")
        changes[f"per_device_train_batch_size: 1, gradient_accumulation_steps: {accumulation}"] = lambda step: replace(
            step, **{name: vars(step)[name] // batch_size for name in names}
        )
    frames = max(sample.frames for sample in samples)
    if frames > 1:
        name = "max_frames" if training_args.num_frames is None else "num_frames"
        changes[f"{name}: {frames // 2}"] = _with_half_of_the_frames
    total = _total(step)
    left = {what: _total(change(step)) for what, change in changes.items()}
    lines = []
    for what in sorted(left, key=left.get):
        enough = ", which is enough" if left[what] <= available else ""
        lines.append(f"{what} saves {(total - left[what]) / GIB:,.1f} GiB{enough}")
    if not any(size <= available for size in left.values()):
        for change in changes.values():
            step = change(step)
        enough = "enough" if _total(step) <= available else "too much still: take a smaller model, or shard it"
        lines.append(f"with all of that it would be {_total(step) / GIB:,.1f} GiB, {enough}")
    return lines


def _adapted(step: Step) -> Step:
    """With a LoRA, whose own weights are small beside those of the model."""
    decoder = replace(step.decoder, base_trainable=False, head_trainable=False)
    return replace(step, trainable_bytes=0, state_bytes=0, reference_bytes=0, decoder=decoder)


def _with_half_of_the_frames(step: Step) -> Step:
    return replace(
        step,
        length=step.length - step.video_tokens // step.rows // 2,
        video_tokens=step.video_tokens // 2,
        video_bytes=step.video_bytes // 2,
        tower_bytes=step.tower_bytes / 2,
    )


def _total(step: Step) -> int:
    return sum(step.memory().values())
