# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Our D2VLM folders to the names and files of the released code, so that its scripts run what was trained here."""

from functools import partial
from os import PathLike
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from .configuration_d2vlm import D2VLMConfig
from .convert_d2vlm_to_hf import EXTRA_FILE
from .modeling_d2vlm import D2VLMForConditionalGeneration
from .released_adapter import ADAPTER_FOLDER, LAYOUT_FILE
from .released_config import config_to_released
from .released_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    MAX_SHARD_SIZE,
    WRAPPER_PREFIX,
    ConversionError,
    ConversionReport,
    LazyTensor,
    StoredTensor,
    fetch,
    list_tensors,
    list_weights,
    new_folder,
    push_folder,
    read_json,
    unwrap,
    write_json,
    write_shards,
    write_tensors,
)
from .released_names import JOINED_BIAS, UNUSED, rename, rename_back
from .released_tokenizer import write_qformer_vocab, write_released_tokenizer

# Of the released code's interval rule; a model with other values answers differently there.
INTERVAL_RULE = {"salience_threshold": 0.6, "interval_ties": "span"}


def convert_hf_to_d2vlm(
    source: str,
    destination: str | PathLike,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    push_to_hub: str | None = None,
) -> ConversionReport:
    """
    Converts one of our folders, converted before or trained here, to a folder that the released code loads. A
    converted folder with an unmerged adapter gets its LoRA layout back, without the tensors of its base folder.

    Args:
        source (`str`):
            Our folder or Hub repository.
        destination (`str` or `os.PathLike`):
            The folder to write; must not exist, or be empty. It appears when it is complete.
        dtype (`torch.dtype`, *optional*):
            Type of the weights; that of each tensor in the source by default.
        max_shard_size (`int` or `str`, *optional*, defaults to `"1GB"`):
            Largest size of a file of weights, which is about the memory needed.
        push_to_hub (`str`, *optional*):
            Hub repository to upload the folder to.

    Returns:
        [`ConversionReport`]

    Raises:
        ConversionError: if the source is not such a folder or not whole, if the released code cannot hold the model,
            or if the destination holds something.

    Example:

    ```python
    >>> report = convert_hf_to_d2vlm("outputs/sft", "sft-for-the-released-code")  # doctest: +SKIP
    >>> report.joined["model.vision_tower.encoder.layers.0.self_attn.qkv.bias"]  # doctest: +SKIP
    'model.vision_tower.vision_tower.blocks.0.attn.q_bias, v_bias'
    ```
    """
    with new_folder(destination) as folder:
        path = fetch(source)
        model_type = read_json(path / "config.json").get("model_type")
        if model_type != D2VLMConfig.model_type:
            raise ConversionError(f"{path} is no D2VLM folder of ours: config.json has `model_type` {model_type!r}.")
        config = D2VLMConfig.from_pretrained(path)
        released_config = config_to_released(config)
        report = ConversionReport(Path(destination))
        report.notes.extend(
            f"`{name}` is {getattr(config, name)!r}; the released code picks intervals by {value!r}, built in."
            for name, value in INTERVAL_RULE.items()
            if getattr(config, name) != value
        )

        tensors = {name: lazy.cast(dtype) for name, lazy in _plan_tensors(path, config, report).items()}
        if (path / EXTRA_FILE).is_file():
            for name, stored in list_tensors(path / EXTRA_FILE).items():
                tensors[name] = stored.lazy()
                report.used[f"{EXTRA_FILE}: {name}"] = name
        if (path / ADAPTER_FOLDER).is_dir():
            _write_trained(path / ADAPTER_FOLDER, tensors, dtype, folder, report)
        else:
            write_shards(folder, tensors, max_shard_size, "Converting back")

        if dtype is not None:
            released_config["torch_dtype"] = str(dtype).removeprefix("torch.")
        write_json(folder / "config.json", released_config)
        _write_tokenizers(path, config, folder)
    if push_to_hub is not None:
        report.notes.append(f"Uploaded to {push_folder(destination, push_to_hub)}")
    return report


def _plan_tensors(path: Path, config: D2VLMConfig, report: ConversionReport) -> dict[str, LazyTensor]:
    """Every tensor by its released name, checked by name and shape, before anything is read."""
    with torch.device("meta"):
        model = D2VLMForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = list_weights(path)
    if not stored:
        raise ConversionError(
            f"{path} has no model.safetensors, nor shards of it. If it is an adapter of PEFT, merge it into its model "
            "and save that."
        )
    tensors = {}
    for name, tensor in stored.items():
        if name not in expected or tensor.shape != expected[name]:
            raise ConversionError(
                f"{tensor.file} has {name!r} of shape {tensor.shape}; expected is "
                f"{expected.get(name, 'no such tensor')} by config.json. Do the weights belong to it?"
            )
        if UNUSED.fullmatch(name):
            report.ignored[name] = "the released code has no such norm, and neither model uses it"
        elif JOINED_BIAS.fullmatch(name):
            prefix = rename_back(name).removesuffix("qkv.bias")
            for number, half in ((0, "q_bias"), (2, "v_bias")):
                shape = (tensor.shape[0] // 3,)
                tensors[prefix + half] = LazyTensor(shape, tensor.dtype, partial(_split_bias, tensor, number))
            report.joined[name] = f"{prefix}q_bias, v_bias"
        else:
            released = rename_back(name)
            tensors[released] = tensor.lazy()
            report.used[name] = released
    missing = [name for name in expected if name not in stored and not UNUSED.fullmatch(name)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ConversionError(f"{path} has no {', '.join(missing[:5])}{more}: a file may be missing.")
    return tensors


def _split_bias(tensor: StoredTensor, number: int) -> torch.Tensor:
    thirds = tensor.read().chunk(3)
    if thirds[1].any():
        raise ConversionError(
            f"{tensor.file} has a bias for keys in {tensor.key!r}, which the released code cannot hold. It has no "
            "effect on the attention: set the middle third to zero."
        )
    return thirds[number].clone()


def _write_trained(
    adapter: Path, tensors: dict[str, LazyTensor], dtype: torch.dtype | None, folder: Path, report: ConversionReport
) -> None:
    """LoRA factors and trained tensors in the released files; what comes from the base folder is left out."""
    if not (adapter / LAYOUT_FILE).is_file():
        raise ConversionError(
            f"{adapter} has no {LAYOUT_FILE}, so it was not made by a conversion: merge it into the model and save "
            "that."
        )
    layout = read_json(adapter / LAYOUT_FILE)
    factors = list_tensors(adapter / ADAPTER_FILE)
    whole = set()
    for file, names in layout["files"].items():
        content = {}
        for name in names:
            if ".lora_" in name:
                module, factor = unwrap(name).replace(".default.", ".").split(".lora_")
                ours = f"{WRAPPER_PREFIX}{rename(f'{module}.weight').removesuffix('weight')}lora_{factor}"
                content[name] = factors[ours].lazy().cast(dtype)
                report.used[f"{ADAPTER_FOLDER}: {ours}"] = f"{file}: {name}"
            else:
                content[name] = tensors[unwrap(name)]
                whole.add(unwrap(name))
        if content:
            write_tensors(folder / file, content)
    for listed in (report.used, report.joined):
        for ours, name in list(listed.items()):
            first = name.split(", ")[0]  # of two halves of a bias
            if first in tensors and first not in whole:
                report.ignored[ours] = "in the base folder, which the released code loads too"
                del listed[ours]
    write_json(folder / ADAPTER_CONFIG_FILE, layout["adapter_config"])


def _write_tokenizers(path: Path, config: D2VLMConfig, folder: Path) -> None:
    end = config.text_config.eos_token_id
    write_released_tokenizer(
        PreTrainedTokenizerFast.from_pretrained(path), end[0] if isinstance(end, list) else end, folder
    )
    if (path / "qformer_tokenizer").is_dir():
        qformer_tokenizer = AutoTokenizer.from_pretrained(path / "qformer_tokenizer")
        write_qformer_vocab(qformer_tokenizer, folder / "qformer_tokenizer")
    settings = {name: getattr(config.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # Null as the released code leaves them: transformers would fill in its own values otherwise.
    settings.update(dict.fromkeys(("repetition_penalty", "temperature", "top_k", "top_p")))
    write_json(folder / "generation_config.json", settings)
