# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Prefix sharing: the two responses of a pair behind one copy of their prompt."""

import torch

from ..models.d2vlm.modeling_d2vlm import STAGE_PROMPT, D2VLMModelOutput, _gather_positions


class Pairs:
    r"""
    Maps `2B` right-padded rows `[chosen; rejected]` to `B` rows `[prompt, chosen, rejected]` and back.

    Positions restart for the rejected response, and `segment_ids` keep the responses from seeing each other.

    Args:
        input_ids, attention_mask, labels (`torch.LongTensor` of shape `(2B, L)`):
            The rows; labels are -100 on the prompt.
        pad_token_id (`int`):
            Fills the rows `[prompt, chosen, rejected]`.

    Raises:
        ValueError: if the rows of a pair have different prompts.
    """

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, pad_token_id: int):
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

    def pack(self, inputs: dict, positions: torch.Tensor | None = None) -> dict:
        r"""
        Args:
            inputs (`dict`):
                Of the model, for `2B` rows; videos each once.
            positions (`torch.LongTensor` of shape `(..., 2B, L)`, *optional*):
                Positions of the `2B` rows. Defaults to the number of each token.

        Returns:
            `dict`: for `B` rows, with `position_ids` and `segment_ids`.
        """
        half = self.num_pairs
        packed = dict(inputs)
        packed["input_ids"] = self._take(inputs["input_ids"]).masked_fill(~self.valid, self.pad_token_id)
        packed["attention_mask"] = self.valid.long()
        packed["position_ids"] = self.source_position if positions is None else self._take(positions)
        packed["segment_ids"] = self.segment_ids
        if "frame_index" in inputs:
            packed["frame_index"] = self._take(inputs["frame_index"]).masked_fill(~self.valid, -1)
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

    def _take(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the tokens of the `2B` rows `(..., 2B, L)` for those of the `B` rows."""
        return values[..., self.source_row, self.source_position]

    def unpack(self, output) -> D2VLMModelOutput:
        """
        Args:
            output (`ModelOutput`):
                Of the base model, for `B` rows.

        Returns:
            [`~trl_temporal.models.d2vlm.modeling_d2vlm.D2VLMModelOutput`]: for the `2B` rows.
        """
        twice = lambda tensor: torch.cat([tensor, tensor])  # noqa: E731
        unpacked = D2VLMModelOutput(last_hidden_state=_gather_positions(twice(output.last_hidden_state), self.back))
        if output.get("frame_mask") is not None:
            unpacked.frame_mask = twice(output.frame_mask)
        if output.get("evidence_logits") is not None:
            inverse = torch.argsort(self.order, dim=1)
            for name in ("evidence_logits", "evidence_queries"):
                unsorted = _gather_positions(output[name], inverse)
                unpacked[name] = torch.cat(unsorted.chunk(2, dim=1))
            unpacked.evidence_mask = torch.cat(output.evidence_mask.gather(1, inverse).chunk(2, dim=1))
        return unpacked
