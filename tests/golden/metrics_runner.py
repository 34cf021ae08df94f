# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Our metrics in `original` mode against what the original scorers gave on the same inputs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import Case, Check
from .metrics_captions import check_youcook2
from .metrics_choices import check_mcq, check_vinoground
from .metrics_etbench import check_overall, check_parse, check_tasks
from .metrics_spans import check_charades, check_didemo, check_nextgqa, check_qvhighlights

# A file is known by its inputs; the first entry whose names are all there is taken.
CHECKS: list[tuple[set[str], Callable[[dict, Case], None]]] = [
    ({"delimiter", "texts"}, check_parse),
    ({"delimiter", "samples", "crash"}, check_tasks),
    ({"delimiter", "samples"}, check_overall),
    ({"gt", "samples", "lmms_records"}, check_charades),
    ({"segments", "data"}, check_didemo),
    ({"submission", "ground_truth"}, check_qvhighlights),
    ({"cases", "get_tIoU"}, check_nextgqa),
    ({"cases", "dp"}, check_youcook2),
    ({"mvbench_lmms", "tempcompass_mc"}, check_mcq),
    ({"rows"}, check_vinoground),
]


def is_metrics_folder(path: str | Path) -> bool:
    """Whether a folder holds goldens of metrics, `{source, inputs, expected}`, and not tensors."""
    files = sorted(Path(path).glob("*.json"))
    return bool(files) and all({"inputs", "expected"} <= set(json.loads(file.read_text())) for file in files)


def run_metrics(path: str | Path) -> Iterator[Check]:
    """
    Checks every file of a folder.

    Args:
        path (`str` or `Path`):
            Folder of `{source, inputs, expected}` files.

    Yields:
        [`Check`]: line after line.
    """
    for file in sorted(Path(path).glob("*.json")):
        golden = json.loads(file.read_text(encoding="utf-8"))
        case = Case(file.stem)
        check = next((check for names, check in CHECKS if names <= set(golden["inputs"])), None)
        if check is None:
            raise ValueError(f"{file}: nothing here takes the inputs {', '.join(golden['inputs'])}.")
        check(golden, case)
        yield from case.lines.values()
