# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the pages share: their templates, and how settings are shown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_environment() -> Environment:
    """The templates of this folder, in which a name that is not given is an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def settings_groups(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Plain values under one heading, every nested mapping under its own."""
    groups: dict[str, dict[str, str]] = {"Run": {}}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            groups[name] = {inner: str(inner_value) for inner, inner_value in value.items()}
        else:
            groups["Run"][name] = str(value)
    return {name: group for name, group in groups.items() if group}
