# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Checks the package against golden tensors of the released D2VLM:

    python -m tests.golden tests/golden/d2vlm

prints one line per case and quantity, and exits with 1 if one of them differs by more than its tolerance.
"""

import argparse
import sys
import warnings

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from .runner import Check, run_folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of golden tensors, in the form of tests/golden/d2vlm/README.md")
    folder = parser.parse_args().folder
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks = list(run_folder(folder))
    print_table(checks)
    missed = [check for check in checks if not check.passed]
    cases = len({check.case for check in checks})
    print(f"{cases} cases, {len(checks)} quantities, {len(missed)} missed")
    return 1 if missed else 0


def print_table(checks: list[Check]) -> None:
    table = Table("case", "quantity", "largest difference", "tolerance", "pass")
    for check in checks:
        table.add_row(
            check.case,
            check.quantity,
            f"{check.difference:.2g}",
            f"{check.tolerance:.0e}" if check.tolerance else "exact",
            "yes" if check.passed else "NO",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
