# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Model cards: how to use the model, what it was trained on and with, and what came of it."""

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import cached_file

from ..data.chat_inputs import DEFAULT_FPS, DEFAULT_MAX_FRAMES
from ..evaluation.answering import has_evidence
from ..evaluation.loading import load_config
from .settings import settings_hash, training_settings

PIPELINE = "video-text-to-text"
PLACEHOLDER = "[More Information Needed]"  # in the card that peft writes where there is none
FOLDER = "path/to/this/folder"  # names a model until it is on the Hub

_GROUNDED = """\
from trl_temporal.evaluation.generation import generate_answers
from trl_temporal.evaluation.loading import load_model

model, processor = load_model("{name}")
{row}
print(*generate_answers(model, processor, [row]))"""
_STOCK = """\
from trl_temporal.evaluation.loading import load_model
from trl_temporal.evaluation.text_generation import generate_texts
from trl_temporal.video import load_row_video

model, processor = load_model("{name}")
{row}
print(*generate_texts(model, processor, [row], read_video=lambda video: load_row_video(video, {sampling})))"""
_ROW = """\
content = [{"type": "video"}, {"type": "text", "text": "When does it happen?"}]
row = {"videos": [{"path": "video.mp4"}], "prompt": [{"role": "user", "content": content}]}"""
_REMOTE = (
    "Without the package, `AutoModelForImageTextToText` and `AutoProcessor` load it with `trust_remote_code=True`."
)
_ADAPTER = "It is an adapter: `trl-temporal merge {name} FOLDER` makes a model of it, which needs no peft."


def quick_start(name: str, *, has_evidence: bool, is_adapter: bool, sampling: str | None = None) -> str:
    """
    The part of a card that shows a video to the model.

    Args:
        name (`str`):
            Name of the model on the Hub, or its folder.
        has_evidence (`bool`):
            Whether it is a D2VLM or a Grounded-VideoDiT.
        is_adapter (`bool`):
            Whether it is an adapter of peft.
        sampling (`str`, *optional*):
            How frames are sampled for a model that is no D2VLM, as arguments of `load_row_video`. Defaults to what the
            trainers do. The processor of a D2VLM knows it.

    Returns:
        `str`: Markdown.

    Example:

    ```python
    >>> from trl_temporal.hub.card import quick_start
    >>> "generate_answers" in quick_start("me/model", has_evidence=True, is_adapter=False)
    True
    ```
    """
    sampling = sampling or f"fps={DEFAULT_FPS}, max_frames={DEFAULT_MAX_FRAMES}"
    code = (_GROUNDED if has_evidence else _STOCK).format(name=name, row=_ROW, sampling=sampling)
    parts = ["## Quick start", f"```python\n{code}\n```"]
    if is_adapter:
        parts.append(_ADAPTER.format(name=name))
    elif has_evidence:
        parts.append(_REMOTE)
    return "\n\n".join(parts)


def complete_model_card(
    path: str | os.PathLike,
    *,
    name: str,
    model: PreTrainedModel | PeftModel,
    args: TrainingArguments,
    log_history: list[dict[str, Any]],
    dataset: datasets.Dataset | datasets.IterableDataset,
    dataset_name: str | None = None,
) -> None:
    """
    Complete the card that a trainer of TRL has written: a quick start with a video, data, settings and metrics.

    Args:
        path (`str` or `os.PathLike`):
            The card, `README.md`; it is written over.
        name (`str`):
            Name of the model on the Hub, or its folder.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The trained model.
        args ([`~transformers.TrainingArguments`]):
            Settings of the training.
        log_history (`list[dict]`):
            What was logged, as in the trainer's state.
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            What it was trained on.
        dataset_name (`str`, *optional*):
            Name of that on the Hub.
    """
    adapter = model.peft_config[model.active_adapter] if isinstance(model, PeftModel) else None
    settings = training_settings(args, adapter)
    steps = max((entry.get("step", 0) for entry in log_history), default=0)
    base = _base_of(model)
    of_base = _header_of_base(base)
    about = f"Fine-tuned from {_link(base)}" if base else "Trained"
    about += " with trl_temporal and [TRL](https://github.com/huggingface/trl)."
    if adapter is not None and not of_base:
        about += " Its base is not on the Hub: pass the folder as `load_model(..., base=FOLDER)`."

    card = ModelCard.load(path)
    title = re.search("^# .*$", card.text, flags=re.MULTILINE).group()
    training, versions = card.text.index("## Training procedure"), card.text.index("### Framework versions")
    sections = [
        title,
        about,
        quick_start(
            name,
            has_evidence=has_evidence(model.config),
            is_adapter=adapter is not None,
            sampling=_sampling(args),
        ),
        card.text[training:versions],
        "### Data",
        _describe_data(dataset, dataset_name),
        "### Settings",
        f"Most defaults are left out. Hash of the settings: `{settings_hash(settings)}`.",
        _table(settings),
        "### Metrics",
        f"As logged last; training ended at step {steps}.",
        _metrics_table(log_history),
        card.text[versions:].replace("- TRL:", f"- trl_temporal: {version('trl_temporal')}\n- TRL:", 1),
    ]
    text = re.sub(r"\n\s*\n", "\n\n", "\n\n".join(sections))  # TRL leaves lines empty where it has nothing to say

    header = {key: value for key, value in card.data.to_dict().items() if key not in ("licence", "base_model")}
    header |= {"pipeline_tag": PIPELINE, **of_base}
    header["tags"] = sorted(header["tags"])
    if adapter is not None:
        header["library_name"] = "peft"
        header["tags"].append("lora")
    _write(path, header, text)


def write_plain_card(folder: str | os.PathLike, name: str, base: str | None = None) -> None:
    """
    Write the card of a model of which nothing else is known.

    Args:
        folder (`str` or `os.PathLike`):
            Where the model is.
        name (`str`):
            Its name on the Hub.
        base (`str`, *optional*):
            What it was made from.
    """
    is_adapter = Path(folder, "adapter_config.json").exists()
    evidence = has_evidence(load_config(str(folder)))
    library = "peft" if is_adapter else "transformers"
    header = {"library_name": library, "pipeline_tag": PIPELINE, "tags": ["trl_temporal"], **_header_of_base(base)}
    about = f"Made from {_link(base)}." if base else "A model for temporal grounding in videos."
    start = quick_start(name, has_evidence=evidence, is_adapter=is_adapter)
    _write(Path(folder, "README.md"), header, f"# {name}\n\n{about}\n\n{start}")


def write_merged_card(
    folder: str | os.PathLike, adapter: str, base: str | None = None, revision: str | None = None
) -> None:
    """
    Write the card of a merged model: that of its adapter, with another way to load it.

    Args:
        folder (`str` or `os.PathLike`):
            Where the merged model is.
        adapter (`str`):
            Folder, or name on the Hub, of the adapter.
        base (`str`, *optional*):
            The same of its base.
        revision (`str`, *optional*):
            Revision of the adapter.
    """
    path = Path(folder, "README.md")
    write_plain_card(folder, FOLDER, base)
    plain = ModelCard.load(path)
    title, _, start = plain.text.strip().split("\n\n", maxsplit=2)  # named `FOLDER`, as `push` will find it
    about = f"Merged by `trl-temporal merge` from {' and '.join(_link(part) for part in (base, adapter) if part)}."
    header = plain.data.to_dict()
    of_adapter = cached_file(adapter, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
    card = ModelCard.load(of_adapter) if of_adapter else None
    if card is None or "## Quick start" not in card.text:
        _write(path, header, "\n\n".join([title, about, start]))
        return

    rest = card.text.split("## Quick start", maxsplit=1)[1]
    rest = re.sub(r'load_model\(".*?"\)', f'load_model("{FOLDER}")', rest)
    note = _REMOTE if _REMOTE in start else ""
    rest = re.sub(r"^It is an adapter: .*\n\n", note and f"{note}\n\n", rest, flags=re.MULTILINE)
    of_training = {key: value for key, value in card.data.to_dict().items() if key in ("datasets", "license", "tags")}
    of_training["tags"] = [tag for tag in of_training["tags"] if tag != "lora" and not tag.startswith("base_model:")]
    _write(path, header | of_training, f"{title}\n\n{about}\n\n## Quick start{rest}")


def name_model(path: str | os.PathLike, name: str, base: str | None = None) -> None:
    """
    Have a card name the model, and an adapter's base, as they are on the Hub: before, it may have named folders.

    Args:
        path (`str` or `os.PathLike`):
            The card, `README.md`; it is written over.
        name (`str`):
            The model on the Hub.
        base (`str`, *optional*):
            The base of an adapter on the Hub.
    """
    card = ModelCard.load(path)
    header = card.data.to_dict()
    if base is not None:
        header["base_model"] = base
        header["tags"] = [tag for tag in header.get("tags", []) if not tag.startswith("base_model:")]
    _write(path, header, card.text.replace(FOLDER, name))


def _write(path: str | os.PathLike, header: dict[str, Any], text: str) -> None:
    lines = ["---", ModelCardData(**header).to_yaml(), "---", "", text.strip(), ""]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def _base_of(model: PreTrainedModel | PeftModel) -> str | None:
    """What the model was made from: a name on the Hub or a folder."""
    name = model.config._name_or_path
    if not name and model.config.model_type == "d2vlm" and model.config.backbone_config is not None:
        name = model.config.backbone_config._name_or_path
    return name or None


def _header_of_base(base: str | None) -> dict[str, str]:
    return {} if base is None or os.path.isdir(base) else {"base_model": base}


def _link(source: str) -> str:
    """A link to a repository; of a folder its name, as the rest of its path is nobody's business."""
    return f"`{Path(source).name}`" if os.path.isdir(source) else f"[{source}](https://huggingface.co/{source})"


def _sampling(args: TrainingArguments) -> str:
    """As the trainers sample for models that are no D2VLM."""
    if args.num_frames is not None:
        return f"num_frames={args.num_frames}"
    return f"fps={args.fps or DEFAULT_FPS}, max_frames={args.max_frames or DEFAULT_MAX_FRAMES}"


def _describe_data(dataset: datasets.Dataset | datasets.IterableDataset, name: str | None) -> str:
    where = f"[{name}](https://huggingface.co/datasets/{name})" if name else "A data set that was not named"
    if isinstance(dataset, datasets.IterableDataset):
        return f"{where}, streamed."
    sources = sorted(filter(None, dataset.unique("source"))) if "source" in dataset.column_names else []
    made_of = f", from {', '.join(sources)}" if sources else ""
    return f"{where}: {len(dataset):,} rows, fingerprint `{dataset._fingerprint}`{made_of}."


def _metrics_table(log_history: list[dict[str, Any]]) -> str:
    """The last value of each metric, those of evaluation first."""
    last: dict[str, float] = {}
    for entry in log_history:
        last |= {name: value for name, value in entry.items() if isinstance(value, int | float)}
    of_the_run = {"epoch", "step", "learning_rate", "num_tokens", "total_flos", "grad_norm"}
    names = [name for name in last if name not in of_the_run and not name.endswith(("_runtime", "_per_second"))]
    names.sort(key=lambda name: (not name.startswith("eval_"), name))
    return _table({name: f"{last[name]:.4g}" for name in names}) if names else "Nothing was logged."


def _table(values: Mapping[str, Any]) -> str:
    lines = [f"| `{name}` | {str(value).replace('|', chr(92) + '|')} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
