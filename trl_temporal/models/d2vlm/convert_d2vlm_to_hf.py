# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Released D2VLM and E.T. Chat (stage 2) checkpoints to folders that load with `AutoModel.from_pretrained`."""

import copy
from functools import partial
from os import PathLike
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from .configuration_d2vlm import D2VLMConfig
from .modeling_d2vlm import D2VLMForConditionalGeneration
from .processing_d2vlm import D2VLMProcessor
from .released_adapter import ADAPTER_FOLDER, plan_merge, write_adapter
from .released_config import check_config, convert_config, is_d2vlm, released_settings
from .released_folder import (
    MAX_SHARD_SIZE,
    ConversionError,
    ConversionReport,
    LazyTensor,
    ReleasedFolder,
    StoredTensor,
    fetch,
    new_folder,
    open_released_folder,
    push_folder,
    read_json,
    write_shards,
    write_tensors,
)
from .released_names import SPLIT_BIAS, UNUSED, ignored_reason, rename, rename_back
from .released_tokenizer import build_qformer_tokenizer, chat_template, find_qformer_vocab, read_tokenizer

# Tensors that only the released model has, kept beside ours for the way back.
EXTRA_FILE = "released_only.safetensors"
NEW_HEADS_SEED = 0

MODEL_CARD = """---
library_name: transformers
pipeline_tag: video-text-to-text
tags:
- d2vlm
- trl_temporal
license: other
---
# {name}

{kind} ([Factorized Learning for Temporally Grounded Video-Language Models](https://huggingface.co/papers/2512.24097)),
converted from `{source}` by `trl-temporal convert d2vlm` with the settings of the preset `d2vlm-release`.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
question = "When is the pancake tossed?"
messages = [{{"role": "user", "content": [{{"type": "video"}}, {{"type": "text", "text": question}}]}}]
text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
# `frames`: uint8 (T, height, width, 3), one a second, taken at `timestamps_s`
inputs = processor(text=text, videos=[frames], questions=[question])
output = model.generate(**inputs, return_dict_in_generate=True)
print(processor.post_process_grounded(output, inputs, [timestamps_s], [duration_s])[0])
```
{notes}
Licence: the weights stay under that of their source (the code of D2VLM and E.T. Chat is under BSD-3-Clause, Phi-3
under MIT). The three `.py` files here are under Apache-2.0.
"""


def convert_state_dict(released: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of a released checkpoint under our names.

    Args:
        released (`dict[str, torch.Tensor]`):
            Full weights, without LoRA adapters.

    Returns:
        `dict[str, torch.Tensor]`: a state dict of [`D2VLMForConditionalGeneration`] without the vision tower's final
        norm, which neither model uses.

    Raises:
        KeyError: if a tensor is none of a D2VLM checkpoint, or half of a bias is missing.
    """
    converted = {}
    for name, tensor in released.items():
        bias = SPLIT_BIAS.fullmatch(name)
        if bias is None:
            converted[rename(name)] = tensor
        elif name.endswith("q_bias"):
            converted[rename(bias[1] + "qkv.bias")] = _join_bias(tensor, released[bias[1] + "v_bias"])
    return converted


def convert_d2vlm_to_hf(
    source: str,
    destination: str | PathLike,
    dtype: torch.dtype | None = None,
    merge_adapter: bool = False,
    base: str | None = None,
    qformer_tokenizer: str | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    push_to_hub: str | None = None,
) -> ConversionReport:
    """
    Converts a released checkpoint of D2VLM, or the stage-2 one of E.T. Chat that D2VLM is trained from, to a folder
    with model, processor and model card. The weights are read and written tensor by tensor.

    Args:
        source (`str`):
            Released folder or Hub repository: full weights, or LoRA factors and trained tensors.
        destination (`str` or `os.PathLike`):
            The folder to write; must not exist, or be empty. It appears when it is complete.
        dtype (`torch.dtype`, *optional*):
            Type of the weights; that of each tensor in the source by default.
        merge_adapter (`bool`, *optional*, defaults to `False`):
            Merge LoRA factors into the weights. Otherwise they become an adapter of PEFT in the subfolder `adapter`.
        base (`str`, *optional*):
            For LoRA factors: folder or Hub repository with the tensors that were not trained.
        qformer_tokenizer (`str`, *optional*):
            A `vocab.txt`, or a folder or Hub repository with it. Defaults to the one in the source, else to that of
            `google-bert/bert-base-uncased`, as in the released code.
        max_shard_size (`int` or `str`, *optional*, defaults to `"1GB"`):
            Largest size of a file of weights, which is about the memory needed.
        push_to_hub (`str`, *optional*):
            Hub repository to upload the folder to.

    Returns:
        [`ConversionReport`]

    Raises:
        ConversionError: if the source is not such a checkpoint or not whole, or the destination holds something.

    Example:

    ```python
    >>> report = convert_d2vlm_to_hf("PolyU-ChenLab/ETChat-Phi3-Mini-Stage-2", "etchat-stage-2")  # doctest: +SKIP
    >>> sorted({name.split(".")[1] for name in report.new})  # what D2VLM has and E.T. Chat has not  # doctest: +SKIP
    ['evi_head', 'frame_head', 'vision_tower']
    ```
    """
    with new_folder(destination) as folder:
        path = fetch(source)
        check_config(released_settings(read_json(path / "config.json")))
        released = open_released_folder(path, base)
        report = ConversionReport(Path(destination))
        if merge_adapter and not released.adapter:
            raise ConversionError(f"{released.path} has no adapter to merge: leave out --merge-adapter.")
        if released.adapter and not merge_adapter:
            report.notes.append(
                "The LoRA factors are an adapter of PEFT: load the model, then "
                f"`PeftModel.from_pretrained(model, '{Path(destination) / ADAPTER_FOLDER}')`."
            )

        processor, config, num_new = _processor_and_config(released, qformer_tokenizer, report)
        with torch.device("meta"):
            model = D2VLMForConditionalGeneration(config)
        tensors = _plan_tensors(released, model, num_new, report)
        if released.adapter and merge_adapter:
            plan_merge(released, tensors, report)
        report.ignored.update(released.replaced)
        tensors = {name: lazy.cast(dtype) for name, lazy in tensors.items()}

        model.to(tensors["lm_head.weight"].dtype)  # config.json says it
        _save_model_files(model, processor, folder)  # before the weights: it clears old ones away
        write_shards(folder, tensors, max_shard_size, "Converting")
        extra = {name: released.tensors[name].lazy() for name in report.ignored if name in released.tensors}
        if extra:
            write_tensors(folder / EXTRA_FILE, extra)
        if released.adapter and not merge_adapter:
            write_adapter(released, folder / ADAPTER_FOLDER, dtype, destination, report)
        _write_model_card(folder, source, push_to_hub or Path(destination).name, released, report)
    if push_to_hub is not None:
        report.notes.append(f"Uploaded to {push_folder(destination, push_to_hub)}")
    return report


def _processor_and_config(
    released: ReleasedFolder, qformer_tokenizer: str | None, report: ConversionReport
) -> tuple[D2VLMProcessor, D2VLMConfig, int]:
    """Also the number of tokens that were added."""
    settings = released_settings(released.config)
    shapes = {name: stored.shape for name, stored in released.tensors.items()}
    tokenizer, num_added = read_tokenizer(released.path, settings)
    # New tokens take the spare rows of the vocabulary; as in D2VLM's training, it grows only if there are not enough.
    num_rows = max(settings["vocab_size"], len(tokenizer) if num_added else 0)
    tokenizer.add_tokens("<video>", special_tokens=True)
    token_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<video>", "<evi>", "</evi>")}
    for token in ("<evi>", "</evi>"):
        if token_ids[token] >= num_rows:
            raise ConversionError(
                f"{token} has the id {token_ids[token]}, but the vocabulary {num_rows} rows: the tokenizer files are "
                "not those of the checkpoint."
            )
    config = convert_config(released.config, shapes, token_ids)
    config.text_config.vocab_size = num_rows
    config.released_config = released.config
    if num_added:
        report.notes.append(f"{num_added} tokens are new; their rows are the mean of the others.")
    if config.video_attention == "causal":
        report.notes.append(
            "The frames do not see each other (`bi_attention` is off in config.json). D2VLM was trained with it on: "
            'set `video_attention="bidirectional"` to train as it was.'
        )
    template = chat_template(tokenizer)
    tokenizer.eos_token, tokenizer.chat_template = "<|end|>", template
    processor = D2VLMProcessor(
        tokenizer,
        chat_template=template,
        image_size=config.vision_config.image_size,
        center_crop=True,
        time_rule="index",
    )
    vocab = find_qformer_vocab(released.path, qformer_tokenizer)
    processor.qformer_tokenizer = build_qformer_tokenizer(vocab)
    if len(processor.qformer_tokenizer) != config.qformer_config.vocab_size:
        raise ConversionError(
            f"{vocab} makes {len(processor.qformer_tokenizer)} word pieces with [DEC], and the Q-Former has rows for "
            f"{config.qformer_config.vocab_size}: name the vocabulary that it was trained with by --qformer-tokenizer."
        )
    return processor, config, num_added


def _read_bias(query: StoredTensor, value: StoredTensor) -> torch.Tensor:
    return _join_bias(query.read(), value.read())


def _join_bias(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    # The keys have no bias there: a constant on all keys drops out of the softmax.
    return torch.cat([query, torch.zeros_like(query), value])


def _plan_tensors(
    released: ReleasedFolder, model: D2VLMForConditionalGeneration, num_new: int, report: ConversionReport
) -> dict[str, LazyTensor]:
    """Every tensor of our model, checked by name and shape, before anything is read."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = {}
    for name, stored in released.tensors.items():
        reason, bias, lazy = ignored_reason(name), SPLIT_BIAS.fullmatch(name), stored.lazy()
        if reason is not None:
            report.ignored[name] = reason
            continue
        try:
            ours = rename(bias[1] + "qkv.bias" if bias else name)
        except KeyError:
            ours = None
        if ours not in expected:
            raise ConversionError(
                f"{stored.file} has a tensor {name!r} of shape {stored.shape}, for which D2VLM as described by "
                "config.json has no place: do the weights belong to this config.json?"
            )
        if bias:
            report.joined[name] = ours
            if ours in tensors:  # with the other half
                continue
            query, value = (_bias_half(released, bias[1] + half) for half in ("q_bias", "v_bias"))
            lazy = LazyTensor((3 * query.shape[0],), query.dtype, partial(_read_bias, query, value))
        else:
            report.used[name] = ours
            if num_new and ours in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
                lazy = _with_new_rows(stored, expected[ours][0], model.config.video_token_id - num_new, num_new)
        if lazy.shape != expected[ours]:
            raise ConversionError(
                f"{stored.file} has {name!r} of shape {stored.shape}; {ours!r} is {lazy.shape} then, but expected is "
                f"{expected[ours]} by config.json. Do the weights belong to it?"
            )
        tensors[ours] = lazy
    _add_missing(released, model, expected, tensors, report)
    return tensors


def _bias_half(released: ReleasedFolder, name: str) -> StoredTensor:
    if name not in released.tensors:
        raise ConversionError(f"{released.path} has no tensor {name!r}, only the other half of that bias.")
    return released.tensors[name]


def _with_new_rows(stored: StoredTensor, num_rows: int, first: int, num_new: int) -> LazyTensor:
    """
    The rows of new tokens, from `first` on, are the mean of those before. D2VLM's training does so only if the
    vocabulary grows, and leaves whatever a spare row holds.
    """

    def make() -> torch.Tensor:
        rows = stored.read()
        rows = torch.cat([rows, rows.new_zeros(num_rows - len(rows), rows.shape[1])])
        rows[first : first + num_new] = rows[:first].float().mean(0, keepdim=True).to(rows.dtype)
        return rows

    return LazyTensor((num_rows, *stored.shape[1:]), stored.dtype, make)


def _add_missing(
    released: ReleasedFolder,
    model: D2VLMForConditionalGeneration,
    expected: dict[str, tuple[int, ...]],
    tensors: dict[str, LazyTensor],
    report: ConversionReport,
) -> None:
    """What a released checkpoint need not have; anything else that is missing is an error."""
    dtype = tensors["lm_head.weight"].dtype if "lm_head.weight" in tensors else torch.float32
    if not is_d2vlm(released_settings(released.config)):
        for name, tensor in _new_heads(model).items():
            if name not in tensors:
                tensors[name] = LazyTensor(tuple(tensor.shape), dtype, tensor.clone)
                report.new[name] = f"newly initialised (seed {NEW_HEADS_SEED}): E.T. Chat has no such head"
    for name in filter(UNUSED.fullmatch, expected):
        fill = torch.ones if name.endswith("weight") else torch.zeros
        tensors[name] = LazyTensor(expected[name], dtype, partial(fill, expected[name]))
        report.new[name] = "ones and zeros: neither model uses this norm"
    missing = [rename_back(name) for name in expected if name not in tensors]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ConversionError(
            f"The checkpoint in {released.path} has no {', '.join(missing[:5])}{more}: a file may be missing"
            f"{', or the folder given by --base is not the one it was trained from' if released.files else ''}."
        )


def _new_heads(model: D2VLMForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Evidence heads as a new model has them."""
    tensors = {}
    with torch.random.fork_rng():
        torch.manual_seed(NEW_HEADS_SEED)
        for name, head in (("evi_head", model.model.evi_head), ("frame_head", model.model.frame_head)):
            head = copy.deepcopy(head).to_empty(device="cpu")
            for module in head.modules():
                model._init_weights(module)
            tensors.update(head.state_dict(prefix=f"model.{name}."))
    return tensors


def _save_model_files(model: D2VLMForConditionalGeneration, processor: D2VLMProcessor, folder: Path) -> None:
    """All but the weights, with the three source files that travel along."""
    tokenizer = processor.tokenizer
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]  # <|end|>, and what ends a text in pretraining
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.2,
        top_k=0,
        top_p=1.0,
        max_new_tokens=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[*dict.fromkeys(stops)],
        pad_token_id=tokenizer.pad_token_id,
    )
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of zero shards
    model.save_pretrained(folder, state_dict={})
    if shown:
        logging.enable_progress_bar()
    processor.save_pretrained(folder)


def _write_model_card(
    folder: Path, source: str, name: str, released: ReleasedFolder, report: ConversionReport
) -> None:
    grounded = is_d2vlm(released_settings(released.config))
    card = MODEL_CARD.format(
        name=name,
        kind="D2VLM" if grounded else "E.T. Chat, to train D2VLM from: its evidence heads are new and untrained",
        source=Path(source).name if Path(source).is_dir() else source,
        notes="".join(f"\n{note}\n" for note in report.notes),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
