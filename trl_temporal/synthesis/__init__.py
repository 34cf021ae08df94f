# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs from annotated rows."""

from .card import push_to_hub
from .config import SynthesisConfig
from .factors import FACTORS, TEMPORAL_FACTORS, TEXT_FACTORS, InfeasibleFactor
from .pipeline import synthesize_path, synthesize_preferences
from .preference import make_preference_row, make_preferences
from .report import SynthesisReport, report_table

__all__ = [
    "FACTORS",
    "TEMPORAL_FACTORS",
    "TEXT_FACTORS",
    "InfeasibleFactor",
    "SynthesisConfig",
    "SynthesisReport",
    "make_preference_row",
    "make_preferences",
    "push_to_hub",
    "report_table",
    "synthesize_path",
    "synthesize_preferences",
]
