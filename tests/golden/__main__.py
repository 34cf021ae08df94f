# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Checks the package against the original code, by what that gave on the same inputs: tensors of the released D2VLM, or
scores of the benchmarks' original scorers.

    python -m tests.golden tests/golden/d2vlm
    python -m tests.golden tests/golden/metrics

prints one line per case and quantity, and exits with 1 if one of them differs by more than its tolerance. Scores that
need an extra that is not installed say SKIP, which also makes the exit code 1, unless `--allow-skip` is given.
"""

import argparse
import sys
import warnings

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from .case import Check
from .metrics_runner import is_metrics_folder, run_metrics
from .runner import run_folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="in the form of tests/golden/d2vlm/README.md or tests/golden/metrics/README.md")
    parser.add_argument("--allow-skip", action="store_true", help="exit code 0 although some could not be checked")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks = list(run_metrics(args.folder) if is_metrics_folder(args.folder) else run_folder(args.folder))
    print_table(checks)
    skipped = [check for check in checks if check.skipped]
    missed = [check for check in checks if not check.passed and not check.skipped]
    cases = len({check.case for check in checks})
    print(f"{cases} cases, {len(checks)} quantities, {len(missed)} missed, {len(skipped)} skipped")
    for reason in sorted({check.skipped for check in skipped}):
        print(f"SKIP: {reason}")
    return 1 if missed or (skipped and not args.allow_skip) else 0


def print_table(checks: list[Check]) -> None:
    table = Table("case", "quantity", "largest difference", "tolerance", "pass")
    for check in checks:
        table.add_row(
            check.case,
            check.quantity,
            f"{check.difference:.2g}",
            f"{check.tolerance:.0e}" if check.tolerance else "exact",
            "SKIP" if check.skipped else "yes" if check.passed else "NO",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
