# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
One benchmark a file. Each has

- `TITLE`, `FILES` (names of its annotation file), `SCORERS` (original scorers, the default first), `ORIGINAL_NAMES`
  (original names of numbers that the `fixed` scoring names otherwise) and `PROMPTS` (in our words, for models with
  evidence tokens and for those that write times);
- `read_references(path)`: the annotation records, each with an `id`;
- `make_row(reference, prompts)`: the row to answer;
- `to_prediction(answer, reference)`: an answer as its metric takes it;
- `to_original(answers, references)`: files in the form of the released scorer;
- `read_predictions(path, references)`: predictions from such files;
- `score`: its metric.

Benchmarks that are only scored here have no prompts and no rows; lmms-eval generates for them: `docs/lmms_eval.md`.
"""

from types import ModuleType

from . import (
    charades_sta,
    didemo,
    etbench,
    mvbench,
    nextgqa,
    qvhighlights,
    rows,
    tempcompass,
    videomme,
    vinoground,
    youcook2,
)

GENERATED: dict[str, ModuleType] = {
    "etbench": etbench,
    "charades_sta": charades_sta,
    "didemo": didemo,
    "qvhighlights": qvhighlights,
    "youcook2": youcook2,
    "nextgqa": nextgqa,
    "rows": rows,
}

SCORED_ONLY: dict[str, ModuleType] = {
    "mvbench": mvbench,
    "videomme": videomme,
    "tempcompass": tempcompass,
    "vinoground": vinoground,
}
# Their files of predictions hold the truth too.
WITH_TRUTH = ("etbench", "mvbench", "videomme", "tempcompass")
