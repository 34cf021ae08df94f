# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Scores of grounded answers: pure functions on `(rows, answers)` that return one value per row."""
