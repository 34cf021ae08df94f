# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the verbs share."""

DTYPES = ("float32", "bfloat16", "float16")


def print_table(table) -> None:
    from rich.console import Console

    Console().print(table)
