# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs from annotated rows."""

from .factors import FACTORS, TEMPORAL_FACTORS, TEXT_FACTORS, InfeasibleFactor, RejectedResponse
from .preference import make_preference_row, make_preferences

__all__ = [
    "FACTORS",
    "TEMPORAL_FACTORS",
    "TEXT_FACTORS",
    "InfeasibleFactor",
    "RejectedResponse",
    "make_preference_row",
    "make_preferences",
]
