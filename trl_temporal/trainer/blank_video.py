# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
A video for batches that have none.

On several processes, all must run the same parts of a model: ZeRO-3 and FSDP gather parameters where they are used,
and gradients are averaged when all have theirs. A process whose batch is text alone runs a video that no row shows, so
that it adds exactly nothing.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ..data.chat_collator import ChatCollator, ChatPreferenceCollator
from ..data.collator import EvidenceCollator, PreferenceCollator
from ..video import Video

OWN_COLLATORS = (EvidenceCollator, PreferenceCollator, ChatCollator, ChatPreferenceCollator)

# Two frames, which is what some towers merge to one. Processors resize them.
_FRAMES = np.zeros((2, 64, 64, 3), dtype=np.uint8)
_BLANK = Video(frames=_FRAMES, timestamps_s=np.array([0.0, 1.0]), duration_s=2.0, path="blank", warnings=[])
_SAY = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in ("Yes.", "No.")]
_ROW = {
    "id": "blank",
    "videos": [{"path": "blank"}],
    "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}],
    "completion": [_SAY[0]],
    "chosen": [_SAY[0]],
    "rejected": [_SAY[1]],
    "spans": [],
    "chosen_spans": [],
    "rejected_spans": [],
}
# Of what a collator makes of the row, these describe its video, and not the row.
_PREFIXES = ("pixel_", "video_grid", "video_features", "second_per_grid")
_NAMES = ("frame_mask", "num_frames", "num_video_features")


def blank_inputs(collator, row: dict | None = None) -> dict[str, torch.Tensor]:
    r"""
    What a model takes of a blank video.

    Args:
        collator ([`EvidenceCollator`], [`PreferenceCollator`], [`ChatCollator`] or [`ChatPreferenceCollator`]):
            That of the run.
        row (`dict`, *optional*):
            Row whose video to take, where a blank one cannot be read: from a feature cache.

    Returns:
        `dict[str, torch.Tensor]`: entries of a batch with this one video, without those that have an entry a row.
    """
    if row is None:
        row, collator = _ROW, dataclasses.replace(collator, read_video=lambda entry: _BLANK)
    batch = dataclasses.replace(collator, max_length=None)([row])
    return {name: value for name, value in batch.items() if name.startswith(_PREFIXES) or name in _NAMES}


def with_blank(inputs: dict[str, torch.Tensor], blank: Callable[[], dict], has_evidence: bool) -> dict:
    r"""
    A batch of text with a blank video that none of its rows shows; one with videos as it is.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            Inputs of a model.
        blank (`Callable`):
            Gives [`blank_inputs`]; called only where there is no video.
        has_evidence (`bool`):
            Whether the model is a D2VLM.

    Returns:
        `dict[str, torch.Tensor]`
    """
    if any(name.startswith(("pixel_", "video_features")) for name in inputs):
        return inputs
    ids, video = inputs["input_ids"], blank()
    inputs = {**inputs, **video, "video_index": torch.full((len(ids),), -1, device=ids.device)}
    if has_evidence:
        empty = torch.zeros(len(ids), 0, video["frame_mask"].shape[1], device=ids.device)
        inputs["frame_index"] = torch.full_like(ids, -1)
        inputs["evidence_frame_mask"], inputs["evidence_stage"] = empty.bool(), empty[..., 0].long()
        inputs["evidence_spans"] = torch.zeros(len(ids), 0, 2, dtype=torch.long, device=ids.device)
    return inputs
