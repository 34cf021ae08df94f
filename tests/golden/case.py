# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Lines of the golden runner's table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

EXACT = 0.0


@dataclass
class Check:
    """One line of the table: the largest difference of a quantity of a case."""

    case: str
    quantity: str
    difference: float
    tolerance: float
    skipped: str = ""  # why the quantity was not checked

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance and not self.skipped  # false for nan


class Case:
    """Collects the checks of one case; several differences of one quantity make one line."""

    def __init__(self, name: str):
        self.name = name
        self.lines: dict[str, Check] = {}

    def add(self, quantity: str, difference: float, tolerance: float) -> None:
        line = self.lines.setdefault(quantity, Check(self.name, quantity, 0.0, tolerance))
        if not difference <= line.difference:  # nan stays
            line.difference = float(difference)

    def close(self, quantity: str, ours: torch.Tensor, golden: torch.Tensor, tolerance: float) -> None:
        """Largest absolute difference."""
        if ours.shape != golden.shape:
            self.add(quantity, float("inf"), tolerance)
        elif golden.numel():
            self.add(quantity, (ours.double() - golden.double()).abs().max().item(), tolerance)
        else:
            self.add(quantity, 0.0, tolerance)

    def relative(self, quantity: str, ours: torch.Tensor, golden: torch.Tensor, tolerance: float) -> None:
        """Largest difference as a share of the largest golden value."""
        scale = max(golden.abs().max().item(), 1e-8)
        self.close(quantity, ours.double() / scale, golden.double() / scale, tolerance)

    def same(self, quantity: str, ours, golden) -> None:
        """Number of entries that differ."""
        ours, golden = torch.as_tensor(ours), torch.as_tensor(golden)
        if ours.shape != golden.shape:
            self.add(quantity, float("inf"), EXACT)
        else:
            self.add(quantity, (ours != golden).sum().item(), EXACT)

    def skip(self, quantity: str, reason: str) -> None:
        """A quantity that cannot be checked here, and why."""
        self.lines[quantity] = Check(self.name, quantity, 0.0, EXACT, skipped=reason)

    def equal(self, quantity: str, ours: Any, golden: Any, tolerance: float = EXACT) -> None:
        """
        Nested dictionaries and lists: numbers within a tolerance, all else the same. `"NaN"` stands for NaN, and
        tuples are lists, as in JSON.
        """
        self.add(quantity, _difference(ours, golden), tolerance)


def _difference(ours: Any, golden: Any) -> float:
    if golden == "NaN" and isinstance(ours, float):
        return 0.0 if math.isnan(ours) else math.inf
    if isinstance(golden, bool) or isinstance(ours, bool) or golden is None or isinstance(golden, str):
        return 0.0 if type(ours) is type(golden) and ours == golden else math.inf
    if isinstance(golden, Mapping):
        if not isinstance(ours, Mapping) or {str(key) for key in ours} != set(golden):
            return math.inf
        by_name = {str(key): value for key, value in ours.items()}
        return max((_difference(by_name[key], golden[key]) for key in golden), default=0.0)
    if isinstance(golden, Sequence):
        if isinstance(ours, str | Mapping) or not hasattr(ours, "__len__") or len(ours) != len(golden):
            return math.inf
        return max(map(_difference, ours, golden), default=0.0)
    try:
        return abs(float(ours) - float(golden)) if float(ours) != float(golden) else 0.0
    except (TypeError, ValueError):
        return math.inf
