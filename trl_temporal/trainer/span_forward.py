# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The fused forward of a Grounded-VideoDiT, which lets the trainers see it as they see a D2VLM.

TRL's fused head reads the last state of `base_model` and drops all else that it returns. The wrapper keeps it, and
adds the log-probability of the spans under the model's reported head to log π, at the first token of the response.
"""

import functools
import types
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..losses import grounding_log_prob, soft_targets
from ..models.grounded_videodit import span_log_prob, time_token_nll
from .fused_forward import EvidenceFusedOutput, frame_spans
from .sharding import show_exact

# What collators write for the losses, and models do not take.
TARGETS = ("span_frames", "span_mask", "evidence_stage", "evidence_frame_mask", "evidence_spans")


@dataclass
class SpanFusedOutput(EvidenceFusedOutput):
    """
    [`EvidenceFusedOutput`] with the start/end head.

    Args:
        start_logits, end_logits (`torch.Tensor` of shape `(rows, T)`, *optional*):
            Of the start/end head, `-inf` at padding.
        kl_divergence (`torch.Tensor` of shape `(rows,)`, *optional*):
            Of the video of each row (Eq. 20), in nats.
    """

    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    kl_divergence: torch.Tensor | None = None


def add_span_head(
    model: PreTrainedModel,
    *,
    grounding_coef: float,
    soft_target_base: float | None,
    time_token_smoothing: float,
    on_output: Callable[[SpanFusedOutput], None],
) -> None:
    """
    Wraps the fused forward of `model`.

    Args:
        model ([`GroundedVideoDiTForConditionalGeneration`]):
            Model that TRL gave a fused LM head (not a `PeftModel`, but its base).
        grounding_coef (`float`):
            Factor on log p_g in `log_probs`. With the head `"span"` it is log p_s(s) + log p_e(e) of each span, with
            `"evidence"` that of the frames of each `<evi>`, with `"time_tokens"` that of these tokens, which are in
            `log_probs` already.
        soft_target_base (`float`, *optional*):
            Base of the soft targets of the evidence head; `None` for hard targets.
        time_token_smoothing (`float`):
            Share of the target that goes to each next time token, see [`time_token_nll`]; 0 for none.
        on_output (`Callable`):
            Receives each [`SpanFusedOutput`].
    """
    fused_forward = model.forward
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # peft's TrainableTokensWrapper has none, and the fused head reads it

    @functools.wraps(type(model).forward)  # `generate` validates its inputs against the signature
    def forward(self, *args, fused_lm_head=False, labels=None, **inputs):
        # peft hands on arguments of language models that are not given, such as `inputs_embeds`.
        inputs = {name: value for name, value in show_exact(inputs).items() if value is not None}
        targets = {name: inputs.pop(name) for name in TARGETS if name in inputs}
        if not fused_lm_head:
            return fused_forward(*args, labels=labels, **inputs)
        inputs.pop("use_cache", None)
        with _kept_output(self.base_model) as kept:
            output = fused_forward(*args, fused_lm_head=True, labels=labels, use_cache=False, **inputs)
        (states,) = kept
        if time_token_smoothing:
            output.log_probs = _smoothed(
                self, states.last_hidden_state, labels, output.log_probs, time_token_smoothing
            )
        output = SpanFusedOutput(**output, text_log_probs=output.log_probs)
        output.start_logits, output.end_logits = states.start_logits, states.end_logits
        output.evidence_logits, output.evidence_queries = states.evidence_logits, states.evidence_queries
        output.evidence_mask, output.frame_mask = states.evidence_mask, states.frame_mask
        if states.kl_divergence is not None:
            output.kl_divergence = states.kl_divergence[inputs["video_index"]]
        reported = self.config.grounding_head[0]
        if reported == "time_tokens":
            of_spans = output.log_probs * targets["span_mask"][:, 1:]
            output.log_probs = output.log_probs + (grounding_coef - 1) * of_spans
            output.grounding_log_probs = of_spans.sum(-1)
        else:
            output.grounding_log_probs = _grounding(reported, output, targets, soft_target_base)
            first = (labels[:, 1:] != -100).int().argmax(-1, keepdim=True)
            added = (grounding_coef * output.grounding_log_probs).to(output.log_probs.dtype)
            output.log_probs = output.log_probs.scatter_add(1, first, added.unsqueeze(-1))
        on_output(output)
        return output

    model.forward = types.MethodType(forward, model)


def _grounding(reported: str, output: SpanFusedOutput, targets: dict, soft_target_base: float | None) -> torch.Tensor:
    """log p_g of each row."""
    if reported == "span":
        return span_log_prob(output.start_logits, output.end_logits, targets["span_frames"]).sum(-1)
    frames, soft = targets["evidence_frame_mask"], soft_target_base is not None
    if soft:
        frames = soft_targets(frame_spans(targets), frames.shape[-1], soft_target_base)
    log_probs = grounding_log_prob(output.evidence_logits, frames, output.frame_mask, soft)
    return (log_probs * output.evidence_mask).sum(-1)


def _smoothed(model, states: torch.Tensor, labels: torch.Tensor, log_probs: torch.Tensor, smoothing: float):
    """Log-probabilities `(rows, L - 1)` in which those of time tokens are smoothed over their neighbours."""
    first = model.config.time_token_start_id
    ids = torch.arange(first, first + model.config.num_time_steps + 1, device=labels.device)
    following = labels[:, 1:]
    is_time = (following >= ids[0]) & (following <= ids[-1])
    logits = model.lm_head(states[:, :-1][is_time])
    nll = time_token_nll(logits, following[is_time], ids, smoothing)
    return log_probs.masked_scatter(is_time, -nll.to(log_probs.dtype))


@contextmanager
def _kept_output(module: torch.nn.Module):
    """While open, outputs of `module` go to the list that it gives."""
    kept = []
    handle = module.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()
