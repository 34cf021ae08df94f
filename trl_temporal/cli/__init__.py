# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The command line, `trl-temporal`."""

from .main import main

__all__ = ["main"]
