# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The recipes: they are understood, planned at the size of their models, and run on tiny ones of the same family."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from trl import ModelConfig, TrlParser

import examples.fpo
import examples.sft
from tests import families
from trl_temporal import EvidenceSFTConfig, FPOConfig
from trl_temporal.cli import main
from trl_temporal.trainer.script_arguments import DataArguments, load_model, load_split

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/qwen*/*.yaml"))
FAMILY = {"qwen3_vl_4b": "qwen3_vl", "qwen2_5_vl_7b": "qwen2_5_vl"}
PLAIN = {
    "sft": ["--evidence_tokens", "false", "--evidence_coef", "0", "--consistency_coef", "0"],
    "fpo": [
        "--evidence_tokens", "false", "--grounding_coef", "0", "--evidence_coef", "0", "--consistency_coef", "0",
    ],
}  # fmt: skip
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")


def comment_of(recipe: Path) -> str:
    return "".join(line for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))


def commands_of(recipe: Path) -> list[list[str]]:
    """The commands of the opening comment, word by word."""
    return [shlex.split(line) for line in re.findall(r"^#     (.*)$", comment_of(recipe), flags=re.MULTILINE)]


def test_there_are_recipes():
    assert len(RECIPES) == 4


@every_recipe
def test_a_recipe_opens_with_its_launch_line_and_what_was_not_measured(recipe):
    name = str(recipe.relative_to(ROOT))
    launch, *others = commands_of(recipe)
    assert launch[:5] == ["accelerate", "launch", f"examples/{recipe.stem}.py", "--config", name]
    assert ["trl-temporal", "plan", name, *launch[5:]] in others
    assert ["...", *PLAIN[recipe.stem]] in others
    assert "Not measured" in comment_of(recipe)


@every_recipe
def test_every_key_is_known_to_the_example(recipe):
    module, config_class = {"sft": (examples.sft, EvidenceSFTConfig), "fpo": (examples.fpo, FPOConfig)}[recipe.stem]
    parser = TrlParser((module.ScriptArguments, config_class, ModelConfig))
    arguments = parser.parse_args_and_config(["--config", str(recipe), "--use_cpu", "true"])
    parsed = {name: value for part in arguments for name, value in vars(part).items()}
    for name, value in yaml.safe_load(recipe.read_text()).items():
        assert parsed[name] == ([] if name == "report_to" else value), name
    assert (arguments[0].evidence_tokens, arguments[2].use_peft) == (True, True)


def save_real_sizes(family: str, folder: Path) -> None:
    """A configuration with the sizes of the released model and the real processing of videos; a tiny tokenizer."""
    small, processor = families.FAMILIES[family]()
    tokens = {name: value for name, value in small.to_dict().items() if name.endswith("_token_id")}
    if family == "qwen3_vl":
        config = transformers.Qwen3VLConfig(
            text_config={
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
            vision_config={
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "out_hidden_size": 2560,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            tie_word_embeddings=True,
            **tokens,
        )
        size = {"shortest_edge": 4096, "longest_edge": 25165824}
        processor.video_processor = transformers.Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=False)
    else:
        config = transformers.Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
            },
            vision_config={"hidden_size": 1280, "tokens_per_second": 2},
            **tokens,
        )
        processor.video_processor = transformers.Qwen2VLVideoProcessor(cap_pixels_per_frame=False)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


@every_recipe
def test_a_recipe_is_planned_at_its_size(recipe, tmp_path, capsys):
    """Without weights: there is nothing but a configuration and a processor in the folder."""
    save_real_sizes(FAMILY[recipe.parent.name], tmp_path)
    words = ["plan", str(recipe), "--model_name_or_path", str(tmp_path), "--json"]
    assert main([*words, "--device_memory_gb", "80"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["method"] == recipe.stem and plan["changes"] == []
    expected = {"qwen3_vl_4b": 4.44e9, "qwen2_5_vl_7b": 8.29e9}[recipe.parent.name]
    assert plan["num_parameters"] == pytest.approx(expected, rel=0.01)
    assert 0.005 < plan["num_trainable"] / plan["num_parameters"] < 0.03
    assert plan["memory"]["weights"] / plan["num_parameters"] == pytest.approx(2, rel=0.05)
    assert plan["frames"]["max"] == 64 and 5_000 < plan["prompt_tokens"]["max"] < 40_000
    total = sum(plan["memory"].values()) / 2**30
    assert total > plan["memory"]["weights"] / 2**30 + 3

    assert main([*words, "--device_memory_gb", str(0.8 * total)]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert not refused["fits"] and any("max_frames: 32" in change for change in refused["changes"])


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Runs the launch line of a recipe for a step, in this process, on a tiny model of the family."""
    monkeypatch.setitem(families.SIZES, "num_hidden_layers", 8)  # evidence is captured behind layer 6
    monkeypatch.chdir(tmp_path)

    def run(recipe: Path, rows, *flags: str) -> Path:
        config, processor = families.FAMILIES[FAMILY[recipe.parent.name]]()
        config.tie_word_embeddings = recipe.parent.name == "qwen3_vl_4b"  # as in the released model
        transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        rows.save_to_disk(tmp_path / recipe.stem / "rows")
        script, _, config, *dataset = commands_of(recipe)[0][2:]
        assert dataset[0] == "--dataset_name"
        words = [
            script, "--config", str(ROOT / config), "--dataset_name", str(tmp_path / recipe.stem / "rows"),
            "--model_name_or_path", str(tmp_path / "model"), "--max_steps", "1", "--gradient_accumulation_steps", "2",
            "--max_frames", "8", "--learning_rate", "1e-2", "--warmup_steps", "0", "--logging_steps", "1",
            "--use_cpu", "true", "--disable_tqdm", "true", "--frame_cache_dir", str(tmp_path / "frames"), *flags,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / script), run_name="__main__")
        output = tmp_path / yaml.safe_load(recipe.read_text())["output_dir"]
        state = json.loads((output / "checkpoint-1" / "trainer_state.json").read_text())
        assert state["global_step"] == 1 and state["log_history"][0]["grad_norm"] > 0
        return output

    return run


def adapter_of(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors")


@every_recipe
def test_the_launch_line_trains_the_adapter_the_heads_and_the_rows(recipe, launch, event_world, preferences):
    rows = event_world["train"].select(range(4)) if recipe.stem == "sft" else preferences.select(range(4))
    initial = adapter_of(launch(recipe, rows, "--learning_rate", "0"))
    trained = adapter_of(launch(recipe, rows))
    parts = ["lora_A", "lora_B", "evi_head", "frame_head", "embed_tokens"]
    parts += ["lm_head"] if recipe.parent.name == "qwen2_5_vl_7b" else []  # the other one's is the embedding
    for part in parts:
        assert any(part in name for name in trained), part
    for name, value in trained.items():
        # In the first step LoRA's A has no gradient, since B is zero.
        assert torch.equal(value, initial[name]) == ("lora_A" in name), name
        assert any(part in name for part in parts) and "visual" not in name


@every_recipe
def test_without_evidence_tokens_it_trains_the_model_as_it_is(recipe, launch, event_world, preferences):
    rows = event_world["train"].select(range(4)) if recipe.stem == "sft" else preferences.select(range(4))
    adapter = adapter_of(launch(recipe, rows, *PLAIN[recipe.stem]))
    assert all("lora_" in name for name in adapter)


def test_rows_are_read_from_a_file_and_from_a_split(event_world, tmp_path):
    rows = event_world["train"].select(range(2))
    rows.to_json(tmp_path / "rows.jsonl")
    assert load_split(str(tmp_path / "rows.jsonl"), "train")["id"][:] == rows["id"][:]
    event_world.save_to_disk(tmp_path / "world")
    assert len(load_split(str(tmp_path / "world"), "validation")) == len(event_world["validation"])
    with pytest.raises(ValueError, match="no split 'valid'; it has .*Set `dataset_train_split`"):
        load_split(str(tmp_path / "world"), "valid")


def test_quantized_weights_are_refused():
    with pytest.raises(ValueError, match="Quantized weights"):
        load_model(DataArguments(), ModelConfig(model_name_or_path="model", load_in_4bit=True))


def test_fpo_goes_on_from_the_adapter_of_sft(launch, event_world, preferences, tmp_path, capsys):
    sft, fpo = (ROOT / "recipes" / "qwen3_vl_4b" / f"{method}.yaml" for method in ("sft", "fpo"))
    first = adapter_of(launch(sft, event_world["train"].select(range(4))))
    flags = ["--adapter_name", "outputs/qwen3_vl_4b/sft"]
    assert ["...", *flags] in commands_of(fpo)
    second = adapter_of(launch(fpo, preferences.select(range(4)), *flags, "--learning_rate", "1e-9"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-4)
    capsys.readouterr()
    words = ["plan", str(fpo), "--model_name_or_path", str(tmp_path / "model"), "--json"]
    counts = []
    for more in ([], flags):
        assert main([*words, *more]) == 0
        counts.append(json.loads(capsys.readouterr().out)["num_trainable"])
    assert counts[0] == counts[1]
