# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The one module that touches TRL's fused LM head.

TRL's trainers replace `model.forward` on the instance: with `fused_lm_head=True` it runs the backbone and returns
per-token log-probabilities, nothing else of the model's output. [`add_evidence_head`] wraps that forward once more:

1. the grounding log-probability (Eq. 6) is added to `log_probs` where an `<evi>` is predicted, so that policy and
   reference, every `loss_type`, precomputation and the logged rewards follow without a copy of TRL's loss;
2. the `2B` rows `[chosen; rejected]` run as `B` rows `[prompt, chosen, rejected]` (prefix sharing);
3. what the evidence losses need is kept in the output, where DDP sees it.
"""

import functools
import types
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from ..data.collator import SPAN_UNIT
from ..losses import grounding_log_prob, soft_targets
from ..models.d2vlm.modeling_d2vlm import STAGE_PROMPT, D2VLMModelOutput, _gather_positions, _positions_of


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
        on_output (`Callable`):
            Receives each [`EvidenceFusedOutput`].
    """
    fused_forward = model.forward
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # peft's TrainableTokensWrapper has none, and the fused head reads it

    @functools.wraps(type(model).forward)  # `generate` validates its inputs against the signature
    def forward(self, *args, fused_lm_head=False, labels=None, **inputs):
        spans = inputs.pop("evidence_spans", None)  # of the losses, not of the model
        if not fused_lm_head:
            return fused_forward(*args, labels=labels, **inputs)
        use_cache = inputs.pop("use_cache", False)
        with _backbone(self, inputs, labels, prefix_sharing) as backbone:
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


def add_text_head(model: PreTrainedModel, *, on_output: Callable[[EvidenceFusedOutput], None]) -> None:
    """
    Wraps the fused forward of a model without evidence tokens, so that the trainers see it as they see a D2VLM, and
    that it never trains blind.

    Args:
        model (`PreTrainedModel`):
            Video model that TRL gave a fused LM head (not a `PeftModel`, but its base).
        on_output (`Callable`):
            Receives each [`EvidenceFusedOutput`]; its grounding log-probabilities are 0.

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
        if not fused_lm_head:
            return fused_forward(*args, labels=labels, **inputs)
        calls = []
        handle = tower.register_forward_hook(lambda *_: calls.append(None))
        try:
            output = fused_forward(*args, fused_lm_head=True, labels=labels, **inputs)
        finally:
            handle.remove()
        pixels = [name for name in inputs if name.startswith("pixel_values")]
        if pixels and not calls:
            raise RuntimeError(
                f"{type(self).__name__} was given `{pixels[0]}`, but its vision tower was not called: it trains "
                "blind. Check that the chat template and the processor belong to this model."
            )
        output = EvidenceFusedOutput(**output, text_log_probs=output.log_probs)
        output.grounding_log_probs = output.log_probs.new_zeros(len(output.log_probs))
        on_output(output)
        return output

    model.forward = types.MethodType(forward, model)


def vision_tower(model: PreTrainedModel) -> torch.nn.Module:
    """
    The vision tower of a model of transformers.

    Raises:
        ValueError: if it has none.
    """
    tower = model.get_encoder(modality="video")
    if tower in (model, model.base_model):  # what transformers returns where it finds none
        raise ValueError(
            f"{type(model).__name__} has no vision tower, so it cannot see a video. Use a video model, or the "
            "trainers of TRL for text."
        )
    return tower


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
def _backbone(model: PreTrainedModel, inputs: dict, labels: torch.Tensor, prefix_sharing: bool):
    """While open, the backbone's output is kept and, with `prefix_sharing`, pairs run in one row."""
    kept = _Backbone()
    pairs = None
    handles = []
    if prefix_sharing:
        pairs = _Pairs(inputs, labels, model.config.get_text_config().pad_token_id)

    def before(module, args, kwargs):
        return args, pairs.pack(kwargs)

    def after(module, args, kwargs, output):
        kept.output = output if pairs is None else pairs.unpack(output)
        return kept.output

    if pairs is not None:
        handles.append(model.base_model.register_forward_pre_hook(before, with_kwargs=True))
    handles.append(model.base_model.register_forward_hook(after, with_kwargs=True))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class _Pairs:
    """
    Maps `2B` right-padded rows `[chosen; rejected]` to `B` rows `[prompt, chosen, rejected]` and back.

    Positions restart for the rejected response, and `segment_ids` keep the responses from seeing each other.
    """

    def __init__(self, inputs: dict, labels: torch.Tensor, pad_token_id: int):
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        self.num_pairs, self.length = len(input_ids) // 2, input_ids.shape[1]
        self.pad_token_id = pad_token_id
        half = self.num_pairs
        prompt = (labels != -100).int().argmax(-1, keepdim=True)  # (2B, 1)
        lengths = attention_mask.sum(-1, keepdim=True)
        position = torch.arange(self.length, device=input_ids.device)
        in_prompt = position < prompt[:half]
        if not torch.equal(prompt[:half], prompt[half:]) or bool(
            ((input_ids[:half] != input_ids[half:]) & in_prompt).any()
        ):
            raise ValueError(
                "The chosen and the rejected rows of a pair have different prompts, so they cannot share one. Set "
                "`prefix_sharing=False`, or use a collator that renders the prompt once."
            )
        self.chosen_length, prompt = lengths[:half], prompt[:half]
        shift = self.chosen_length - prompt  # how far the rejected response moves to the right
        total = self.chosen_length + lengths[half:] - prompt
        packed = torch.arange(int(total.max()), device=input_ids.device)[None]
        second = packed >= self.chosen_length
        self.valid = packed < total
        self.source_position = torch.where(second, packed - shift, packed).clamp(max=self.length - 1)
        self.source_row = torch.arange(half, device=input_ids.device)[:, None] + half * second
        self.segment_ids = torch.where(second, 2, (packed >= prompt).long())
        # Back: position of every token of the 2B rows in its packed row.
        moved = torch.where(position >= prompt, position + shift, position)
        back = torch.cat([position.expand(half, -1), moved])
        self.back = back.clamp(max=packed.shape[1] - 1)

    def pack(self, inputs: dict) -> dict:
        half = self.num_pairs
        packed = dict(inputs)
        packed["input_ids"] = inputs["input_ids"][self.source_row, self.source_position].masked_fill(
            ~self.valid, self.pad_token_id
        )
        packed["attention_mask"] = self.valid.long()
        packed["position_ids"] = self.source_position
        packed["segment_ids"] = self.segment_ids
        for name in ("video_index", "qformer_input_ids", "qformer_attention_mask"):
            if name in inputs:
                packed[name] = inputs[name][:half]
        if "evidence_stage" in inputs:
            chosen, rejected = inputs["evidence_stage"].chunk(2)
            # The prompt's `<evi>` stand once in the packed row. A stable sort moves the padding behind the tokens.
            stage = torch.cat([chosen, rejected.masked_fill(rejected == STAGE_PROMPT, 0)], dim=1)
            self.order = torch.argsort((stage == 0).int(), dim=1, stable=True)
            frames = torch.cat(inputs["evidence_frame_mask"].chunk(2), dim=1)
            packed["evidence_stage"] = stage.gather(1, self.order)
            packed["evidence_frame_mask"] = frames.gather(1, self.order.unsqueeze(-1).expand_as(frames))
        return packed

    def unpack(self, output: D2VLMModelOutput) -> D2VLMModelOutput:
        twice = lambda tensor: torch.cat([tensor, tensor])  # noqa: E731
        unpacked = D2VLMModelOutput(
            last_hidden_state=_gather_positions(twice(output.last_hidden_state), self.back),
        )
        if output.frame_mask is not None:
            unpacked.frame_mask = twice(output.frame_mask)
        if output.evidence_logits is not None:
            inverse = torch.argsort(self.order, dim=1)
            for name in ("evidence_logits", "evidence_queries"):
                unsorted = _gather_positions(getattr(output, name), inverse)
                setattr(unpacked, name, torch.cat(unsorted.chunk(2, dim=1)))
            unpacked.evidence_mask = torch.cat(output.evidence_mask.gather(1, inverse).chunk(2, dim=1))
        return unpacked
