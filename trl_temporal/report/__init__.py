# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The report of a run: one HTML file that opens offline."""

from .report import write_report

__all__ = ["write_report"]
