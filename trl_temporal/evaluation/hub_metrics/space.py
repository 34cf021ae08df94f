# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The files of a Hub space, from which `evaluate.load("user/metric")` loads a metric."""

import importlib
import json
import os
import shutil
from pathlib import Path

from . import metric_path

# What a metric needs beside the package.
_EXTRAS = {"etbench": "[caption,sim]", "youcook2": "[caption]"}

_README = """\
---
title: {name}
sdk: gradio
sdk_version: 6.31.0
app_file: app.py
pinned: false
tags:
- evaluate
- metric
description: {quoted}
---

# {name}

{description}

```python
import evaluate

metric = evaluate.load("USER/{name}")  # the name of this space
metric.compute(predictions=predictions, references=references)
```

It needs the package `trl_temporal`, which holds the metric itself.

## Inputs

```
{inputs}
```
"""

_APP = """\
import json

import evaluate
import gradio as gr

metric = evaluate.load("{name}.py")


def compute(predictions, references):
    return metric.compute(predictions=json.loads(predictions), references=json.loads(references))


boxes = [gr.Code("[]", language="json", label=label) for label in ("predictions", "references")]
gr.Interface(compute, boxes, gr.JSON(label="scores"), title=metric.name, description=metric.description).launch()
"""


def write_space(name: str, folder: str | os.PathLike) -> Path:
    """
    Write the files of a metric's Hub space, for `huggingface_hub.upload_folder`.

    The space must bear the name of the metric, as `evaluate.load("user/mvbench")` loads `mvbench.py` from it. Whoever
    loads it must have the package installed; the space itself installs it from its requirements.

    Args:
        name (`str`):
            Name of the metric, one of `METRICS`.
        folder (`str` or `os.PathLike`):
            Folder to write; it is made where it is missing.

    Returns:
        `Path`: the folder, with `README.md`, `app.py`, `requirements.txt`, the metric's file, and `packages.txt` where
        the metric needs Java.

    Raises:
        ValueError: if there is no such metric.

    Example:
        >>> import tempfile
        >>> from trl_temporal.evaluation.hub_metrics.space import write_space
        >>> folder = write_space("mvbench", tempfile.mkdtemp())
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'app.py', 'mvbench.py', 'requirements.txt']
    """
    source = metric_path(name)
    module = importlib.import_module(f"{__package__}.{name}.{name}")
    description, _, inputs = module.__doc__.strip().partition("\n\nArgs:\n")
    first_sentence = " ".join(description.split(". ")[0].split()).removesuffix(".") + "."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    readme = _README.format(name=name, quoted=json.dumps(first_sentence), description=description, inputs=inputs)
    if "_CITATION" in vars(module):
        readme += f"\n## Citation\n\n```bibtex\n{module._CITATION.strip()}\n```\n"
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / "app.py").write_text(_APP.format(name=name), encoding="utf-8")
    (folder / "requirements.txt").write_text(
        f"trl_temporal{_EXTRAS.get(name, '')}\nevaluate>=0.4.6\n", encoding="utf-8"
    )
    if name in _EXTRAS:  # METEOR and the tokenizer of captions run in Java
        (folder / "packages.txt").write_text("default-jre-headless\n", encoding="utf-8")
    shutil.copyfile(source, folder / f"{name}.py")
    return folder
