# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`examples/temple.py` as it is, on a few films and for a few steps, and the recipes of TEMPLE."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
import yaml
from peft import load_peft_weights
from rich.console import Console
from trl import ModelConfig, TrlParser

import examples.temple
from tests import families
from trl_temporal import TempleConfig
from trl_temporal.synthesis.temple_folder import event_world_pairs
from trl_temporal.synthesis.temple_selection import select_video

ROOT = Path(__file__).parents[1]
QWEN, EVENT_WORLD = (ROOT / "recipes/temple" / f"{name}.yaml" for name in ("qwen2_5_vl_7b", "eventworld"))


def commands_of(recipe: Path) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^#     (.*)$", recipe.read_text(), flags=re.MULTILINE)]


def parse(*words: str):
    parser = TrlParser((examples.temple.ScriptArguments, TempleConfig, ModelConfig))
    return parser.parse_args_and_config([*words, "--use_cpu", "true"])


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the example in a folder of its own and returns what it printed."""

    def run(*words: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["temple.py", *words, "--use_cpu", "true", "--disable_tqdm", "true"])
        runpy.run_path(str(ROOT / "examples/temple.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_from_films_to_a_table(run, tmp_path):
    printed = run(
        "--num_train", "2", "--num_test", "1", "--max_steps", "1", "--warmup_steps", "0", "--stages", "16", "2"
    )
    assert "2 selected" in printed and re.search(r"reverse.* 16 .* 2 ", printed)
    stages = ["start", "1_dpo_r16", "2_dpo_r2", "3_sft", "SFT alone"]
    assert all(name in printed for name in stages)
    scores = json.loads((tmp_path / "outputs/temple/scores.json").read_text())
    assert list(scores) == stages and all(0 <= values["order"] <= 1 for values in scores.values())
    assert len({values["margin"] for values in scores.values()}) == len(stages)
    assert (tmp_path / "outputs/temple/order.svg").read_text().count("<polyline") == 4
    assert (tmp_path / "outputs/temple/model.safetensors").exists()


def test_the_shots_of_a_film_are_found(tmp_path):
    film = examples.temple.make_film(tmp_path / "film.mp4", 3)
    found = select_video(film.path, examples.temple.find_cuts, examples.temple.bright_things)
    assert [(clip["start_s"], clip["end_s"]) for clip in found["clips"]] == film.spans
    assert len(set(film.captions)) == len(film.captions) == 16


def test_one_process_makes_the_data_and_the_others_read_it(tmp_path, monkeypatch):
    args = examples.temple.ScriptArguments(data_dir=str(tmp_path), num_train=2, num_test=1)
    films, pairs = examples.temple.make_data(args, Console(quiet=True))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(examples.temple, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    again, read = examples.temple.make_data(args, Console(quiet=True))
    assert again == films and read.to_list() == pairs.to_list() and len(pairs) > 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_adapter_is_to_be_merged_first(run):
    with pytest.raises(ValueError, match="Merge this one first, with `trl-temporal merge`"):
        run("--adapter_name", "sft")


def test_the_recipe_of_event_world_is_what_the_example_does_without():
    recipe = yaml.safe_load(EVENT_WORLD.read_text())
    defaults = examples.temple.DEFAULTS
    same = {"stages": [16, 8, 4, 2], "model_name_or_path": "examples/eventworld_tiny"}
    same["lora_target_modules"] = defaults["lora_target_modules"][0]
    assert recipe == {**defaults, **same}


@pytest.mark.parametrize("recipe", [QWEN, EVENT_WORLD], ids=lambda path: path.stem)
def test_every_key_and_flag_of_a_recipe_is_known(recipe):
    parsed = {name: value for part in parse("--config", str(recipe)) for name, value in vars(part).items()}
    for name, value in yaml.safe_load(recipe.read_text()).items():
        assert parsed[name] == ([] if name == "report_to" else value), name
    schedules = [words[1:] for words in commands_of(recipe) if words[0] == "..." and words[-1] != "last"]
    stages = [parse("--config", str(recipe), *flags)[1].stage_names for flags in schedules]
    assert stages[0] == ["1_dpo_r8", "2_sft"] and stages[1] == ["1_dpo_r16", "2_dpo_r4", "3_sft"]
    assert stages[2][0] == "1_dpo_r2" and stages[4][0] == "1_sft"


def test_the_recipe_of_the_paper_is_that_of_its_scripts():
    _, args, model_args = parse("--config", str(QWEN))
    dpo, sft = args.dpo_config(), args.sft_config()
    assert (dpo.learning_rate, dpo.warmup_steps, dpo.beta, dpo.sft_coef) == (5e-6, 0.05, 0.1, 1.0)
    assert (sft.learning_rate, sft.warmup_steps, sft.freeze_vision_tower) == (1e-4, 0.05, False)
    assert (model_args.lora_r, model_args.lora_alpha, model_args.lora_dropout) == (32, 64, 0.05)
    assert (args.then_sft["lora_alpha"], sft.num_train_epochs, dpo.num_train_epochs) == (32, 1, 1)
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 16


def test_the_launch_line_trains_a_stock_model(run, event_world, tmp_path):
    config, processor = families.FAMILIES["qwen2_5_vl"]()
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    event_world_pairs(event_world["train"])[0].save_to_disk(tmp_path / "pairs")
    event_world["train"].save_to_disk(tmp_path / "rows")
    launch = commands_of(QWEN)[0]
    assert launch[:3] == ["accelerate", "launch", "examples/temple.py"]
    words = [str(tmp_path / word.removeprefix("path/to/")) if word.startswith("path/to/") else word for word in launch]
    words[words.index("--config") + 1] = str(QWEN)
    settings = {
        "model_name_or_path": tmp_path / "model",
        "dtype": "float32",
        "bf16": "false",
        "output_dir": tmp_path / "out",
        "frame_cache_dir": tmp_path / "frames",
        "max_frames": 8,
        "max_steps": 1,
        "logging_steps": 1,
    }
    flags = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    run(*words[3:], *flags, "--stages", "8", "2")
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    losses = {line["stage"]: line for line in log if "loss" in line}
    assert list(losses) == ["1_dpo_r8", "2_dpo_r2", "3_sft"]
    assert losses["2_dpo_r2"]["rewards/chosen"] == 0 < losses["2_dpo_r2"]["grad_norm"]
    dpo, sft = (load_peft_weights(tmp_path / "out" / name, device="cpu").keys() for name in ("2_dpo_r2", "3_sft"))
    assert not any("visual" in name for name in dpo) and any("visual.blocks" in name for name in sft)
    transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
