# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""One annotation format a file, each with a function that returns rows of the data contract."""

from .clip_events import load_clip_events

__all__ = ["load_clip_events"]
