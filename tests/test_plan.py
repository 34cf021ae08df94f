# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal plan`: what it counts is exact, what it estimates is near what is measured, and its verdict."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from trl import ModelConfig

from tests.families import FAMILIES, build
from tests.families import SIZES as SIZES_OF_FAMILIES
from trl_temporal.cli import main
from trl_temporal.data.chat_collator import ChatCollator
from trl_temporal.models.d2vlm.modeling_d2vlm import D2VLMEvidenceHead
from trl_temporal.trainer.evidence_mixin import frame_cache
from trl_temporal.trainer.evidence_sft_config import EvidenceSFTConfig
from trl_temporal.trainer.plan import plan_training, read_config
from trl_temporal.trainer.plan_memory import Decoder, bytes_of, optimizer_bytes
from trl_temporal.trainer.script_arguments import DataArguments

ROOT = Path(__file__).parents[1]
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
}


def make_model(config_class=LlamaConfig, dtype=torch.float32, lora=False, layers=4):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**SIZES, num_hidden_layers=layers), dtype=dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model.train()


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
@pytest.mark.parametrize(("dtype", "lora"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_weights_gradients_and_optimizer_states_are_counted_exactly(dtype, lora, optim):
    """On the `meta` device the same as after a step."""
    with torch.device("meta"):
        empty = make_model(dtype=dtype, lora=lora)
    model = make_model(dtype=dtype, lora=lora)
    optimizer = {"adamw_torch": torch.optim.AdamW, "sgd": torch.optim.SGD}[optim](
        parameter for parameter in model.parameters() if parameter.requires_grad
    )
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    trainable = [parameter for parameter in empty.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    moments = [
        value for state in optimizer.state.values() for name, value in state.items() if name.startswith("exp_avg")
    ]
    assert bytes_of(empty.parameters()) == bytes_of(model.parameters())
    assert bytes_of(trainable) == bytes_of(gradients) > 0
    assert optimizer_bytes(optim, trainable) == bytes_of(moments)


def saved_bytes(model, rows: int, length: int, autocast: bool, masked: bool) -> int:
    """Bytes of all that the layers keep for the backward pass, weights aside."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other gets its place
        return tensor

    embeds = torch.randn(rows, length, SIZES["hidden_size"], dtype=base.dtype, requires_grad=True)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -1] = not masked
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
        base.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


KINDS = {
    "float32": (torch.float32, False, False),
    "bfloat16": (torch.bfloat16, False, False),
    "autocast": (torch.float32, False, True),
    "lora": (torch.bfloat16, True, False),
    "lora, autocast": (torch.bfloat16, True, True),
    "lora on float32, autocast": (torch.float32, True, True),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_activations_are_near_what_layers_keep(config_class, kind, masked):
    dtype, lora, autocast = KINDS[kind]
    model = make_model(config_class, dtype, lora)
    rows, short, long = 2, 64, 128
    # The difference of two lengths is without what does not depend on it, such as copies of weights.
    measured = saved_bytes(model, rows, long, autocast, masked) - saved_bytes(model, rows, short, autocast, masked)
    decoder = Decoder.of(model, model.config)
    compute = 2 if autocast else dtype.itemsize
    per_token = decoder.layer_bytes(compute, dtype.itemsize, compute if autocast else 4, masked)
    estimated = decoder.layers * per_token * rows * (long - short)
    assert estimated == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_keeps_the_input_of_every_layer(dtype):
    rows, length, measured = 2, 128, []
    for layers in (2, 6):
        model = make_model(dtype=dtype, layers=layers)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        measured.append(saved_bytes(model, rows, length, autocast=False, masked=False))
    assert measured[1] - measured[0] == 4 * rows * length * dtype.itemsize * SIZES["hidden_size"]


@pytest.fixture(autouse=True)
def deep(monkeypatch):
    """As deep as evidence tokens need it: their states are captured behind layer 6."""
    monkeypatch.setitem(SIZES_OF_FAMILIES, "num_hidden_layers", 8)


@pytest.fixture
def tiny_vlm(deep, tmp_path):
    """A saved model of the family Qwen2.5-VL, and its processor."""
    for part in build("qwen2_5_vl"):
        part.save_pretrained(tmp_path / "vlm")
    return tmp_path / "vlm"


@pytest.fixture
def recipe(tmp_path, tiny_vlm):
    """Writes a recipe for the model; the name of the file says what it trains."""

    def write(name="sft.yaml", **fields):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"model_name_or_path": str(tiny_vlm), "output_dir": "out", **fields}))
        return str(path)

    return write


def plan(capsys, *words) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tokens_are_those_of_the_collator(recipe, tiny_vlm, event_world, tmp_path, capsys, config):
    """Which reads the videos, where the plan reads their headers."""
    rows = event_world["train"]
    rows.save_to_disk(tmp_path / "rows")
    fields = {"dataset_name": str(tmp_path / "rows"), "fps": 2.0, "max_frames": 10}
    words = recipe(**fields), "--num_sampled", str(len(rows))
    made = plan(capsys, *words)
    assert made["num_rows"] == made["num_sampled"] == len(rows) and not made["notes"]
    processor = build("qwen2_5_vl")[1]
    args = config(EvidenceSFTConfig, fps=2.0, max_frames=10)
    collate = ChatCollator(processor, frame_cache(args, processor, "qwen2_5_vl"))
    lengths = [collate([row])["input_ids"].shape[1] for row in rows]
    assert made["sequence_tokens"]["min"] == min(lengths) and made["sequence_tokens"]["max"] == max(lengths)
    assert made["frames"] == {"min": 10, "median": 10, "max": 10}


def test_no_video_is_decoded(recipe, event_world, tmp_path, monkeypatch, capsys):
    event_world["train"].save_to_disk(tmp_path / "rows")
    monkeypatch.setattr("trl_temporal.video.load_video", lambda *_, **__: pytest.fail("decoded"))
    assert plan(capsys, recipe(dataset_name=str(tmp_path / "rows")))["frames"]["max"] > 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 11),
        ({"num_train_epochs": 2}, 22),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 3}, 9),
        ({"max_steps": 7}, 7),
    ],
)
def test_steps_are_counted_as_the_trainer_does(recipe, event_world, tmp_path, capsys, settings, expected):
    event_world["train"].select(range(11)).save_to_disk(tmp_path / "rows")
    defaults = {"per_device_train_batch_size": 1, "num_train_epochs": 1}
    made = plan(capsys, recipe(dataset_name=str(tmp_path / "rows"), **{**defaults, **settings}))
    assert made["num_steps"] == expected


def test_more_processes_take_fewer_steps_and_reduce_gradients(recipe, event_world, tmp_path, capsys):
    event_world["train"].select(range(11)).save_to_disk(tmp_path / "rows")
    path = recipe(dataset_name=str(tmp_path / "rows"), per_device_train_batch_size=1, num_train_epochs=1)
    one, four = plan(capsys, path), plan(capsys, path, "--num_processes", "4")
    assert (four["num_steps"], four["rows_per_step"]) == (3, 4)
    assert four["memory"]["gradients"] == 2 * one["memory"]["gradients"]


def test_flags_of_the_training_script_win(recipe, capsys):
    path = recipe(learning_rate=1e-3, max_frames=8, fps=2.0)
    assert plan(capsys, path)["frames"]["max"] == 8
    assert plan(capsys, path, "--max_frames", "4", "--learning_rate", "1e-4")["frames"]["max"] == 4
    assert plan(capsys, recipe(), "--num_frames", "6")["frames"]["max"] == 6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["sft", "fpo"])
def test_every_family_is_planned(family, method, tmp_path):
    for part in build(family):
        part.save_pretrained(tmp_path)
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "fps": 1.0, "max_frames": 4}
    path = tmp_path / f"{method}.yaml"
    path.write_text(yaml.safe_dump(arguments))
    for evidence in ("false", "true"):
        flags = ["--model_name_or_path", str(tmp_path), "--evidence_tokens", evidence]
        made = plan_training(*read_config(str(path), flags))
        assert made.fits and made.frames.max == 4
        assert 0 < made.num_trainable < made.num_parameters  # the tower is frozen
        assert made.prompt_tokens.max > made.response_tokens.max > 0


def test_a_d2vlm_is_planned(recipe, capsys):
    made = plan(capsys, recipe(model_name_or_path=str(ROOT / "examples" / "eventworld_tiny")))
    assert made["prompt_tokens"]["max"] > made["frames"]["max"] == 128  # a token each


def test_what_is_trained_is_what_the_settings_say(recipe, tiny_vlm):
    def trainable(**settings):
        arguments = {"output_dir": "out", "use_cpu": True, "freeze_vision_tower": settings.pop("freeze", True)}
        data = DataArguments(evidence_tokens=settings.pop("evidence", False))
        model_args = ModelConfig(model_name_or_path=str(tiny_vlm), **settings)
        return plan_training(data, EvidenceSFTConfig(**arguments), model_args)

    model = build("qwen2_5_vl")[0]
    everything, tower = (sum(value.numel() for value in part.parameters()) for part in (model, model.model.visual))
    plain = trainable()
    assert plain.num_parameters == trainable(freeze=False).num_trainable == everything
    assert plain.num_trainable == everything - tower
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": [r".*language_model.*\.q_proj"]}
    layers, hidden = model.config.text_config.num_hidden_layers, model.config.text_config.hidden_size
    queries = layers * 2 * (hidden + hidden)
    assert trainable(**lora).num_trainable == queries
    evidence = trainable(**lora, evidence=True)
    heads = 2 * sum(parameter.numel() for parameter in D2VLMEvidenceHead(hidden).parameters())
    rows = 2 * 2 * hidden  # of two tokens, in the embedding and in the LM head, which are not tied
    assert evidence.num_trainable == queries + heads + rows


def test_a_reference_has_weights_too(recipe, capsys):
    path = recipe("fpo.yaml", grounding_coef=0.0, evidence_coef=0.0, consistency_coef=0.0)
    free = plan(capsys, path)["memory"]
    assert "weights of the reference" not in free
    for flags, doubled in (
        ([], True),
        (["--precompute_ref_log_probs", "true"], False),
        (["--use_peft", "true", "--lora_target_modules", ".*q_proj"], False),
    ):
        memory = plan(capsys, path, "--reference_free", "false", *flags)["memory"]
        assert (memory.get("weights of the reference") == free["weights"]) is doubled, flags


def test_what_does_not_fit_is_refused_with_what_to_change(recipe, capsys):
    path = recipe(per_device_train_batch_size=8, gradient_checkpointing=False, max_frames=16)
    assert main(["plan", path, "--device_memory_gb", "0.0001"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "DOES NOT FIT",
        "gradient_checkpointing: true saves",
        "per_device_train_batch_size: 1, gradient_accumulation_steps: 8 saves",
        "max_frames: 8 saves",
        "use_peft: true (with lora_target_modules) saves",
        "too much still: take a smaller model, or shard it",
        "are estimates",
        "names no data set",
    ):
        assert words in printed, words
    assert main(["plan", path, "--device_memory_gb", "10"]) == 0
    assert "Fits: " in capsys.readouterr().out


def test_changes_save_what_they_say(recipe, capsys, monkeypatch):
    monkeypatch.setattr("trl_temporal.trainer.plan.GIB", 1)  # bytes: the model is small
    path = recipe(per_device_train_batch_size=8, gradient_checkpointing=False, max_frames=64)
    before = sum(plan(capsys, path, "--device_memory_gb", "1e9")["memory"].values())
    budget = before  # a tenth of which is left free
    assert main(["plan", path, "--device_memory_gb", str(budget), "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)["changes"]
    tried = 0
    for change in changes:
        settings, _, effect = change.partition(" saves ")
        if "lora" in settings:
            continue
        flags = [word for setting in settings.split(", ") for word in f"--{setting}".split(": ")]
        after = plan(capsys, path, "--device_memory_gb", "1e9", *flags)["memory"]
        saved = float(effect.split(" GiB")[0].replace(",", ""))
        assert before - sum(after.values()) == pytest.approx(saved, rel=0.05), change
        assert ("enough" in effect) == (before - saved <= 0.9 * budget), change
        tried += 1
    assert tried == 3


@pytest.mark.parametrize(
    ("name", "fields", "flags", "message"),
    [
        ("recipe.yaml", {}, [], "--method sft or fpo"),
        ("sft.yaml", {"beta": 0.1}, [], "beta"),
        ("sft.yaml", {"load_in_4bit": True}, [], "Quantized weights"),
        ("sft.yaml", {"model_name_or_path": None}, [], "set `model_name_or_path`"),
        ("sft.yaml", {}, ["--no_such_flag", "1"], "no_such_flag"),
    ],
)
def test_errors_are_one_line(recipe, capsys, name, fields, flags, message):
    assert main(["plan", recipe(name, **fields), *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("trl-temporal: ") and error.count("\n") == 1


def test_the_method_can_be_said(recipe, capsys):
    assert plan(capsys, recipe("recipe.yaml"), "--method", "fpo")["method"] == "fpo"


def test_videos_that_are_not_there_are_assumed(recipe, event_world, tmp_path, capsys):
    rows = event_world["train"].select(range(2))
    rows = rows.map(lambda row: {"videos": [{**row["videos"][0], "path": "elsewhere.mp4"}]})
    rows.save_to_disk(tmp_path / "rows")
    made = plan(capsys, recipe(dataset_name=str(tmp_path / "rows"), fps=1.0, max_frames=64))
    assert made["frames"]["max"] == -(-max(rows["duration"]) // 1)
    assert "2 videos cannot be read, e.g. elsewhere.mp4" in made["notes"][0]
