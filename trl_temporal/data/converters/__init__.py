# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""One annotation format a file, each with a function that returns rows of the data contract."""

from .clip_events import load_clip_events
from .d2vlm import choose_rejected, load_d2vlm, preference_row_from_d2vlm, sft_row_from_d2vlm

__all__ = [
    "choose_rejected",
    "load_clip_events",
    "load_d2vlm",
    "preference_row_from_d2vlm",
    "sft_row_from_d2vlm",
]
