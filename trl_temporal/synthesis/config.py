# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Settings of the preference synthesis, and its distort backends by name."""

import json
import math
import os
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from .distort import OpenAIDistort, RuleDistort, TransformersDistort
from .factors import FACTORS
from .preference import DEFAULT_WEIGHTS, Distort, EventWorldDistort

BACKENDS = {
    "rules": RuleDistort,
    "event_world": EventWorldDistort,
    "transformers": TransformersDistort,
    "openai": OpenAIDistort,
}
# Quick, and whether they can falsify a text does not depend on chance: so it is asked beforehand.
RULE_BACKENDS = ("rules", "event_world")


@dataclass
class SynthesisConfig:
    """
    Settings of [`~trl_temporal.synthesis.synthesize_preferences`] and
    [`~trl_temporal.synthesis.synthesize_path`].

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Together with a row's id it decides every choice.
        weights (`dict[str, float]`, *optional*):
            How often each factor is drawn, relative to each other, over the whole data set; a factor that is left out
            is not drawn. Defaults to temporal and text factors 1:1, evenly inside each group.
        num_pairs_per_row (`int`, *optional*, defaults to `1`):
            Pairs that are made from each row.
        hard (`bool`, *optional*, defaults to `False`):
            Shift by 1 to 2 s only: hard negatives.
        distort (`str`, *optional*, defaults to `"rules"`):
            What falsifies texts: `"rules"`, `"transformers"` (a local model), `"openai"` (an OpenAI-compatible
            endpoint) or `"event_world"` (the rules of EventWorld).
        distort_args (`dict`, *optional*):
            Arguments of the backend's class in [`trl_temporal.synthesis.distort`], such as `model`.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at a row that breaks the data contract, `"skip"` counts it, lists it and goes on.
        licenses (`dict[str, str]`, *optional*):
            Licence of each `source` of the rows, for the data card.

    Raises:
        `ValueError`: a setting cannot be; the message says how to mend it.

    Example:

    ```python
    >>> from trl_temporal.synthesis import SynthesisConfig
    >>> SynthesisConfig(seed=1, weights={"shift": 1, "delete": 1}).distort
    'rules'
    ```
    """

    seed: int = 0
    weights: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    num_pairs_per_row: int = 1
    hard: bool = False
    distort: str = "rules"
    distort_args: dict[str, Any] = field(default_factory=dict)
    on_bad_record: Literal["raise", "skip"] = "raise"
    licenses: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}; give an integer of at least 0")
        if not isinstance(self.weights, dict) or set(self.weights) - set(FACTORS):
            raise ValueError(f"weights is {self.weights!r}; give a number for some of {', '.join(FACTORS)}")
        values = list(self.weights.values())
        numbers = all(isinstance(value, int | float) and 0 <= value < math.inf for value in values)
        if not numbers or sum(values) <= 0:
            raise ValueError(f"weights is {self.weights!r}; they are at least 0, and one of them is more")
        if not isinstance(self.num_pairs_per_row, int) or self.num_pairs_per_row < 1:
            raise ValueError(f"num_pairs_per_row is {self.num_pairs_per_row!r}; it must be at least 1")
        if self.distort not in BACKENDS:
            raise ValueError(f"distort is {self.distort!r}; it must be one of {', '.join(BACKENDS)}")
        if self.on_bad_record not in ("raise", "skip"):
            raise ValueError(f"on_bad_record is {self.on_bad_record!r}; it must be 'raise' or 'skip'")

    @classmethod
    def from_yaml(cls, path: str | os.PathLike) -> "SynthesisConfig":
        """
        Read the settings from a YAML file with a value for any of them.

        Args:
            path (`str` or `os.PathLike`):
                The file.

        Raises:
            `ValueError`: the file holds no settings, or one that there is not.
        """
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"{path}: holds no settings. Write lines such as 'seed: 0'.")
        names = [entry.name for entry in fields(cls)]
        if unknown := set(settings) - set(names):
            raise ValueError(f"{path}: unknown {', '.join(map(repr, sorted(unknown)))}. There are {', '.join(names)}.")
        try:
            return cls(**settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def make_distort(self) -> Distort:
        """The distort backend. A process makes it once, since it may hold a model."""
        return _make_backend(self.distort, json.dumps(self.distort_args, sort_keys=True))


@lru_cache(maxsize=1)
def _make_backend(name: str, args: str) -> Distort:
    try:
        return BACKENDS[name](**json.loads(args))
    except TypeError as error:
        raise ValueError(f"distort_args do not fit the backend '{name}': {error}") from None
