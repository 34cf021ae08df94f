# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The one module that touches TRL's fused LM head.

TRL's trainers replace `model.forward` on the instance: with `fused_lm_head=True` it runs the backbone and returns
per-token log-probabilities, nothing else of the model's output. [`add_evidence_head`] wraps that forward once more:

1. the grounding log-probability (Eq. 6) is added to `log_probs` where an `<evi>` is predicted, so that policy and
   reference, every `loss_type`, precomputation and the logged rewards follow without a copy of TRL's loss;
2. each video is encoded once, and the `2B` rows `[chosen; rejected]` run as `B` rows `[prompt, chosen, rejected]`
   (prefix sharing);
3. what the evidence losses need is kept in the output, where DDP sees it.

[`add_text_head`] does the same for a video model of transformers as it is, which has no evidence tokens.
"""

import functools
import types
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from trl.trainer import utils as trl_utils
from trl.trainer.utils import FusedCausalLMOutput

from ..data.collator import SPAN_UNIT
from ..losses import grounding_log_prob, soft_targets
from ..models.d2vlm.configuration_d2vlm import BACKBONES, sparse_attention
from ..models.d2vlm.modeling_d2vlm import D2VLMModelOutput, _positions_of, build_attention_mask
from ..models.d2vlm.modeling_d2vlm_backbone import backbone_positions, features_of_rows, mm_encoder_outputs
from .blank_video import with_blank
from .pairs import Pairs
from .sharding import running_modules, show_exact
from .shared_videos import SharedVideos, vision_tower

# What collators write for the forwards below, and processors for models; features stand for all of it.
VIDEO_INPUTS = ("video_index", "num_frames", "num_video_features", "mm_token_type_ids", "token_type_ids")
VIDEO_PREFIXES = ("pixel_", "video_", "second_per_grid")

_gather_head = trl_utils.maybe_gather_lm_head_ctx


def _gather_sharded_head(*weights: torch.Tensor | None):
    """
    Under ZeRO-3 the fused head gathers its weight, but that of a head with trainable rows is put together from two
    parameters, gathered already, and is none itself.
    """
    return _gather_head(*(weight for weight in weights if hasattr(weight, "ds_status")))


trl_utils.maybe_gather_lm_head_ctx = _gather_sharded_head


@dataclass
class EvidenceFusedOutput(FusedCausalLMOutput):
    """
    TRL's fused output with the evidence.

    Args:
        text_log_probs (`torch.Tensor` of shape `(rows, L - 1)`):
            Log-probability of each label, without the grounding term.
        grounding_log_probs (`torch.Tensor` of shape `(rows,)`):
            Sum of log p_g over the `<evi>` of each row, in nats; not scaled by the coefficient.
        evidence_logits, evidence_queries, evidence_mask, frame_mask:
            See [`~trl_temporal.models.d2vlm.modeling_d2vlm.D2VLMModelOutput`].
    """

    text_log_probs: torch.Tensor | None = None
    grounding_log_probs: torch.Tensor | None = None
    evidence_logits: torch.Tensor | None = None
    evidence_queries: torch.Tensor | None = None
    evidence_mask: torch.Tensor | None = None
    frame_mask: torch.Tensor | None = None


def add_evidence_head(
    model: PreTrainedModel,
    *,
    grounding_coef: float,
    soft_target_base: float | None,
    prefix_sharing: bool,
    videos: SharedVideos,
    on_output: Callable[[EvidenceFusedOutput], None],
) -> None:
    """
    Wraps the fused forward of `model`, see the module's description.

    Args:
        model ([`D2VLMForConditionalGeneration`]):
            Model that TRL gave a fused LM head (not a `PeftModel`, but its base).
        grounding_coef (`float`):
            Factor on log p_g in `log_probs`.
        soft_target_base (`float`):
            Base of the soft targets in log p_g, as in the released code; `None` for hard targets.
        prefix_sharing (`bool`):
            Whether the rows are pairs `[chosen; rejected]` that run with their prompt shared.
        videos ([`~trl_temporal.trainer.shared_videos.SharedVideos`]):
            Encodes the videos; one for policy and reference.
        on_output (`Callable`):
            Receives each [`EvidenceFusedOutput`].
    """
    fused_forward = model.forward
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # peft's TrainableTokensWrapper has none, and the fused head reads it

    @functools.wraps(type(model).forward)  # `generate` validates its inputs against the signature
    def forward(self, *args, fused_lm_head=False, labels=None, **inputs):
        inputs = show_exact(inputs)
        if fused_lm_head and videos.blank is not None:
            inputs = with_blank(inputs, videos.blank, has_evidence=True)
        spans = inputs.pop("evidence_spans", None)  # of the losses, not of the model
        if not fused_lm_head:
            return fused_forward(*args, labels=labels, **inputs)
        use_cache = inputs.pop("use_cache", False)
        with _backbone(self, inputs, labels, prefix_sharing, videos) as backbone:
            output = fused_forward(*args, fused_lm_head=True, labels=labels, use_cache=use_cache, **inputs)
        output = EvidenceFusedOutput(**output, text_log_probs=output.log_probs)
        output.grounding_log_probs = output.log_probs.new_zeros(len(output.log_probs))
        evidence = backbone.output
        if evidence.evidence_logits is not None:
            targets, soft = inputs["evidence_frame_mask"], soft_target_base is not None
            if soft:
                targets = soft_targets(frame_spans({"evidence_spans": spans}), targets.shape[-1], soft_target_base)
            log_probs = grounding_log_prob(evidence.evidence_logits, targets, evidence.frame_mask, soft)
            log_probs = log_probs * evidence.evidence_mask
            positions = _positions_of(inputs["input_ids"] == self.config.evidence_token_id, log_probs.shape[1])
            # The entry of `log_probs` that predicts the token at position p is p - 1. Padding adds zero to entry 0.
            output.log_probs = output.log_probs.scatter_add(
                1, (positions - 1).clamp(min=0), (grounding_coef * log_probs).to(output.log_probs.dtype)
            )
            output.grounding_log_probs = log_probs.sum(-1)
            output.evidence_logits = evidence.evidence_logits
            output.evidence_queries = evidence.evidence_queries
            output.evidence_mask = evidence.evidence_mask
            output.frame_mask = evidence.frame_mask
        on_output(output)
        return output

    model.forward = types.MethodType(forward, model)


def add_text_head(
    model: PreTrainedModel,
    *,
    span_coef: float | None,
    prefix_sharing: bool,
    videos: SharedVideos,
    on_output: Callable[[EvidenceFusedOutput], None],
) -> None:
    """
    Wraps the fused forward of a model without evidence tokens, so that the trainers see it as they see a D2VLM, and
    that it never trains blind.

    Args:
        model (`PreTrainedModel`):
            Video model that TRL gave a fused LM head (not a `PeftModel`, but its base).
        span_coef (`float`, *optional*):
            Factor on the log-probability of the tokens that write spans, which then is the grounding log-probability;
            `None` for text like any other.
        prefix_sharing (`bool`):
            Whether the rows are pairs `[chosen; rejected]` that run with their prompt shared.
        videos ([`~trl_temporal.trainer.shared_videos.SharedVideos`]):
            Encodes the videos; one for policy and reference.
        on_output (`Callable`):
            Receives each [`EvidenceFusedOutput`].

    Raises:
        ValueError: if the model has no vision tower.
    """
    fused_forward = model.forward
    tower = vision_tower(model)
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # peft's TrainableTokensWrapper has none, and the fused head reads it

    @functools.wraps(type(model).forward)  # `generate` validates its inputs against the signature
    def forward(self, *args, fused_lm_head=False, labels=None, **inputs):
        inputs = show_exact(inputs)
        if fused_lm_head and videos.blank is not None:
            inputs = with_blank(inputs, videos.blank, has_evidence=False)
        span_mask = inputs.pop("span_mask", None)  # of the losses, not of the model
        if not fused_lm_head:
            return fused_forward(*args, labels=labels, **inputs)
        calls, encoded = [], videos.has(inputs)
        handle = tower.register_forward_hook(lambda *_: calls.append(None))
        try:
            with _stock_backbone(self, inputs, labels, prefix_sharing, videos):
                output = fused_forward(*args, fused_lm_head=True, labels=labels, **inputs)
        finally:
            handle.remove()
        pixels = [name for name in inputs if name.startswith("pixel_values")]
        if pixels and not calls and not encoded:
            raise RuntimeError(
                f"{type(self).__name__} was given `{pixels[0]}`, but its vision tower was not called: it trains "
                "blind. Check that the chat template and the processor belong to this model."
            )
        output = EvidenceFusedOutput(**output, text_log_probs=output.log_probs)
        output.grounding_log_probs = output.log_probs.new_zeros(len(output.log_probs))
        if span_coef is not None:
            if span_mask is None:
                raise ValueError(
                    "`grounding_log_prob='span_tokens'` needs `span_mask` in the batch, which the trainer's own "
                    "collator makes."
                )
            of_spans = output.log_probs * span_mask[:, 1:]
            output.log_probs = output.log_probs + (span_coef - 1) * of_spans
            output.grounding_log_probs = of_spans.sum(-1)
        on_output(output)
        return output

    model.forward = types.MethodType(forward, model)


def sharing_obstacle(model: PreTrainedModel) -> str | None:
    """
    Why the two responses of a pair cannot share their prompt.

    Args:
        model (`PreTrainedModel`):
            Model to train, not a `PeftModel`.

    Returns:
        `str`, or `None` if they can.
    """
    attention = model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"{attention!r} attention takes no 4-D mask; 'sdpa' and 'eager' do"
    if model.config.model_type not in (*BACKBONES, "d2vlm"):
        return f"{model.config.model_type!r} is not among the families it is known of: {', '.join(sorted(BACKBONES))}"
    layers = sparse_attention(model.config)
    if layers is not None:
        return f"the language model has other layers than full attention ({layers}), which take no mask of their own"
    return None


def frame_spans(inputs: dict) -> torch.Tensor:
    """The ends of the spans of a batch, `(rows, E, 2)`, in frames."""
    if inputs.get("evidence_spans") is None:
        raise ValueError(
            "`grounding_target='soft'` needs `evidence_spans` in the batch: build the collator with "
            "`soft_targets=True`."
        )
    return inputs["evidence_spans"].double() / SPAN_UNIT


@dataclass
class _Backbone:
    output: D2VLMModelOutput | None = None


@contextmanager
def _backbone(model: PreTrainedModel, inputs: dict, labels: torch.Tensor, prefix_sharing: bool, videos: SharedVideos):
    """While open, videos are encoded once, the backbone's output is kept and, if asked, pairs run in one row."""
    kept = _Backbone()
    pairs = _pairs(model, inputs, labels) if prefix_sharing else None

    def before(module, args, inputs):
        positions = None
        names = [name for name in inputs if name.startswith(VIDEO_PREFIXES)]
        if pairs is not None and module.has_backbone:
            grids = {name: inputs[name] for name in ("video_grid_thw", "second_per_grid_ts") if name in inputs}
            of_rows = (inputs["input_ids"], inputs["attention_mask"], inputs.get("frame_index"))
            positions, _ = module.plain_positions(*of_rows, inputs.get("video_index"), **grids)
        if names:
            features, num_features = videos.encode(module, inputs)
            pixels = [name for name in names if name.startswith("pixel_")]
            inputs = {name: value for name, value in inputs.items() if name not in pixels}
            inputs |= {"video_features": features, "num_video_features": num_features}
        return args, inputs if pairs is None else pairs.pack(inputs, positions)

    def after(module, args, kwargs, output):
        kept.output = output if pairs is None else pairs.unpack(output)
        return kept.output

    with _hooks(model.base_model, before, after):
        yield kept


@contextmanager
def _stock_backbone(
    model: PreTrainedModel, inputs: dict, labels: torch.Tensor, prefix_sharing: bool, videos: SharedVideos
):
    """
    The same for a model of transformers, if it is of a known family and the batch has each video once. A batch that
    has them as often as its rows, as with images among them, runs as it is.
    """
    once = "video_index" in inputs or not any(name.startswith(VIDEO_PREFIXES) for name in inputs)
    if model.config.model_type not in BACKBONES or not once:
        yield
        return
    pairs = _pairs(model, inputs, labels) if prefix_sharing else None

    def before(module, args, inputs):
        given, video_index = inputs, inputs.get("video_index")
        names = [name for name in inputs if name.startswith(VIDEO_PREFIXES) or name in VIDEO_INPUTS]
        inputs = {name: value for name, value in inputs.items() if name not in names}
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        is_video = torch.zeros_like(ids, dtype=torch.bool)
        if video_index is not None and "mm_token_type_ids" in given:
            is_video = given["mm_token_type_ids"] == 2
        positions, _ = backbone_positions(module, ids, mask, is_video, video_index, given)
        inputs["position_ids"] = positions
        if pairs is not None:
            inputs = pairs.pack(inputs, positions)
            attention = module.config.get_text_config()._attn_implementation
            # Not by its name: ZeRO-3 would gather the weight for the whole forward.
            dtype = next(module.get_input_embeddings().parameters()).dtype
            inputs["attention_mask"] = build_attention_mask(
                inputs["attention_mask"], None, inputs.pop("segment_ids"), dtype, attention
            )
        if video_index is not None:
            features = features_of_rows(*videos.encode(module, given), video_index[: len(inputs["input_ids"])])
            inputs["mm_encoder_outputs"] = mm_encoder_outputs(module, features)
        return args, inputs

    def after(module, args, kwargs, output):
        return output if pairs is None else pairs.unpack(output)

    with _hooks(model.base_model, before, after):
        yield


def _pairs(model: PreTrainedModel, inputs: dict, labels: torch.Tensor) -> Pairs:
    pad_token_id = model.config.get_text_config().pad_token_id
    return Pairs(inputs["input_ids"], inputs["attention_mask"], labels, 0 if pad_token_id is None else pad_token_id)


@contextmanager
def _hooks(module: torch.nn.Module, before: Callable, after: Callable):
    running = running_modules()
    depth = len(running)

    def forget_early_exits(*_):
        del running[depth:]

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
        module.register_forward_hook(forget_early_exits),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
