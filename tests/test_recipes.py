# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The recipes: they are understood, planned at the size of their models, and run on tiny ones of the same family."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands import launch as accelerate_launch
from safetensors.torch import load_file
from transformers.integrations import deepspeed
from trl import ModelConfig, TrlParser

import examples.fpo
import examples.sft
from tests import families
from trl_temporal import EvidenceSFTConfig, FPOConfig
from trl_temporal.cli import main
from trl_temporal.models.grounded_videodit import GroundedVideoDiTConfig, GroundedVideoDiTForConditionalGeneration
from trl_temporal.models.tiny import train_tokenizer
from trl_temporal.trainer.script_arguments import DataArguments, load_model, load_split

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/qwen*/*.yaml"))
LAUNCHERS = sorted(ROOT.glob("recipes/accelerate/*.yaml"))
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
    (several,) = (words for words in others if "--config_file" in words)
    assert several[:3] == ["accelerate", "launch", "--config_file"] and several[4:] == [launch[2], "..."]
    assert ROOT / several[3] in LAUNCHERS
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


@pytest.fixture
def launch_line(monkeypatch):
    """What accelerate makes of the launch line in a file: its arguments, and the environment of the processes."""
    monkeypatch.chdir(ROOT)

    def read(path: Path) -> tuple:
        text = re.search(r"^#     (accelerate launch (?:.*\\\n# +)*.*)$", path.read_text(), flags=re.MULTILINE).group(
            1
        )
        words = shlex.split(re.sub(r"\\\n# +", "", text))
        assert words[2:4] == ["--config_file", str(path.relative_to(ROOT))]
        words = ["0" if word == "RANK" else word for word in words[2:]]
        args, defaults, _ = accelerate_launch._validate_launch_command(
            accelerate_launch.launch_command_parser().parse_args(words)
        )
        if args.use_deepspeed:  # as `launch_command` does
            args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            return args, accelerate_launch.prepare_deepspeed_cmd_env(args)[1]
        if args.num_processes > 1:
            return args, accelerate_launch.prepare_multi_gpu_env(args)
        return args, accelerate_launch.prepare_simple_launcher_cmd_env(args)[1]

    return read


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_accelerate_understands_the_launch_line(path, launch_line):
    pytest.importorskip("deepspeed")
    args, environment = launch_line(path)
    uses = {name for name in ("use_deepspeed", "use_fsdp", "multi_gpu") if getattr(args, name)}
    expected = {"single": set(), "ddp": {"multi_gpu"}, "fsdp2": {"use_fsdp"}}
    assert uses == expected.get(path.stem, {"use_deepspeed"})
    assert args.num_processes == {"single": 1, "multi_node": 16}.get(path.stem, 8)
    assert args.num_machines == (2 if path.stem == "multi_node" else 1)
    assert (ROOT / args.training_script).is_file()
    if "use_deepspeed" in uses:
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        stage = "zero2" if path.stem == "multi_node" else path.stem
        assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == f"recipes/deepspeed/{stage}.json"
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == str("zero3" in stage).lower()


def test_there_is_a_launcher_for_each_back_end():
    names = "ddp fsdp2 multi_node single zero1 zero2 zero3 zero3_offload"
    assert [path.stem for path in LAUNCHERS] == names.split()


def test_fsdp2_is_what_accelerate_makes_of_its_file(launch_line, monkeypatch):
    """A dry run: no GPU, so nothing is sharded."""
    _, environment = launch_line(ROOT / "recipes" / "accelerate" / "fsdp2.yaml")
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    model, _ = families.build("qwen3_vl")
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {layer.__name__ for layer in wrapped} == {"Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/deepspeed/*.json")), ids=lambda path: path.stem)
def test_deepspeed_knows_every_key_and_nothing_stays_auto(path, tiny, tmp_path):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    args = EvidenceSFTConfig(str(tmp_path), use_cpu=True, bf16=True, report_to="none")
    config = deepspeed.HfTrainerDeepSpeedConfig(str(path))
    try:
        config.trainer_config_process(args)
        config.trainer_config_finalize(args, tiny[0], 10)
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert "auto" not in json.dumps(config.config) and config.config["bf16"]["enabled"]
    known = DeepSpeedConfig(config.config)
    assert known.zero_config.stage == int(path.stem[4])
    offload = known.zero_config.offload_param
    assert (offload is not None) == ("offload" in path.stem)


def test_the_scripts_for_several_machines(tmp_path):
    """torchrun's words, as the script writes them; the other one is read by its shell."""
    folder = ROOT / "recipes" / "multi_node"
    subprocess.run(["bash", "-n", str(folder / "slurm.sh")], check=True)
    (tmp_path / "torchrun").write_text("#!/bin/sh\necho $@\n")
    (tmp_path / "torchrun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODES": "2", "HEAD": "10.0.0.1"}
    command = [str(folder / "torchrun.sh"), "examples/sft.py", "--max_steps", "1"]
    words = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    assert words[:4] == ["--nnodes", "2", "--nproc_per_node", "8"] and "10.0.0.1:29500" in words
    assert words[-4:] == ["--max_steps", "1", "--deepspeed", "recipes/deepspeed/zero2.json"]
    assert (ROOT / words[-1]).is_file()


# --- D2VLM as it was released: native, so that there is no stock model below it ---

D2VLM_RECIPES = sorted(ROOT.glob("recipes/d2vlm_phi3/*.yaml"))
every_d2vlm_recipe = pytest.mark.parametrize("recipe", D2VLM_RECIPES, ids=lambda path: path.stem)


@every_d2vlm_recipe
def test_the_recipe_of_d2vlm_has_what_the_release_computes(recipe):
    config_class = {"sft": EvidenceSFTConfig, "fpo": FPOConfig}[recipe.stem]
    settings = yaml.safe_load(recipe.read_text())
    for name, value in config_class._presets["d2vlm-release"].items():
        assert settings[name] == value, name
    launch, *others = commands_of(recipe)
    several = ["accelerate", "launch", "--config_file", "recipes/accelerate/zero2.yaml", launch[2], "..."]
    assert several in others and ["trl-temporal", "plan", launch[4], *launch[5:]] in others
    assert "Not measured" in comment_of(recipe)


@every_d2vlm_recipe
def test_the_launch_line_of_d2vlm_trains(recipe, tiny_dir, event_world, preferences, tmp_path, monkeypatch):
    rows = event_world["train"].select(range(2)) if recipe.stem == "sft" else preferences.select(range(2))
    rows.save_to_disk(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    script = commands_of(recipe)[0][2]
    words = [
        script, "--config", str(recipe), "--dataset_name", str(tmp_path / "rows"), "--model_name_or_path",
        str(tiny_dir), "--max_steps", "1", "--gradient_accumulation_steps", "1", "--logging_steps", "1", "--use_cpu",
        "true", "--disable_tqdm", "true", "--dtype", "float32", "--bf16", "false", "--frame_cache_dir",
        str(tmp_path / "frames"), "--lora_target_modules", ".*language_model.*q_proj",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / script), run_name="__main__")
    output = tmp_path / yaml.safe_load(recipe.read_text())["output_dir"]
    names = adapter_of(output).keys()
    for part in ("lora_B", "evi_head", "frame_head", "embed_tokens"):
        assert any(part in name for name in names), part


# --- Grounded-VideoDiT, whose start is made of a language model ---

VIDEODIT_RECIPES = sorted(ROOT.glob("recipes/grounded_videodit/*.yaml"))
every_videodit_recipe = pytest.mark.parametrize("recipe", VIDEODIT_RECIPES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def videodit_start(tmp_path_factory):
    """By the script of the recipe, of a tiny Phi-3 and a tiny tower; without VACE, which is not asked as it starts."""
    folder = tmp_path_factory.mktemp("videodit")
    tokenizer = train_tokenizer(["When does it blink?"], vocab_size=280)
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    )
    tokenizer.chat_template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenizer.save_pretrained(folder / "phi3")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes, **ids)).save_pretrained(folder / "phi3")
    tower = transformers.CLIPVisionConfig(**{**sizes, "num_hidden_layers": 1}, image_size=16, patch_size=8)
    transformers.CLIPVisionModel(tower).save_pretrained(folder / "tower")
    start = runpy.run_path(str(ROOT / "recipes" / "grounded_videodit" / "start.py"))
    clip = {"name": str(folder / "tower"), "hidden_size": 32}
    start["make_start"](str(folder / "start"), "prompt_embeds", str(folder / "phi3"), clip)
    config = json.loads((folder / "start" / "config.json").read_text())
    assert config["frame_encoders"] == ["clip", "vace"] and config["vace_config"]["prompt_embeds"] == "prompt_embeds"
    config["frame_encoders"] = ["clip"]
    del config["vace_config"]
    config = GroundedVideoDiTConfig(**config)
    torch.manual_seed(0)
    GroundedVideoDiTForConditionalGeneration(config).save_pretrained(folder / "start")
    return folder / "start"


@every_videodit_recipe
def test_the_launch_line_of_grounded_videodit_trains(
    recipe, videodit_start, event_world, preferences, tmp_path, monkeypatch
):
    """What the paper trains, and nothing else: a LoRA on all linear layers, what is new, and rows of new tokens."""
    rows = event_world["train"] if recipe.stem == "sft" else preferences
    rows.filter(lambda row: row["videos"]).select(range(2)).save_to_disk(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    launch, *others = commands_of(recipe)
    several = ["accelerate", "launch", "--config_file", "recipes/accelerate/zero2.yaml", launch[2], "..."]
    assert several in others and "Not measured" in comment_of(recipe)
    words = [
        launch[2], "--config", str(recipe), "--dataset_name", str(tmp_path / "rows"), "--model_name_or_path",
        str(videodit_start), "--max_steps", "1", "--gradient_accumulation_steps", "1", "--logging_steps", "1",
        "--use_cpu", "true", "--disable_tqdm", "true", "--dtype", "float32", "--bf16", "false", "--warmup_steps", "0",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / launch[2]), run_name="__main__")
    output = tmp_path / yaml.safe_load(recipe.read_text())["output_dir"]
    names = adapter_of(output).keys()
    assert all(value.any() for name, value in adapter_of(output).items() if "lora_B" in name)
    model = GroundedVideoDiTForConditionalGeneration.from_pretrained(videodit_start)
    layers = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    parts = [*(f"{layer}.lora_B" for layer in layers), *model.trained_parts, "embed_tokens", "lm_head"]
    for part in parts:
        assert any(part in name for name in names), part
    assert all(any(part in name for part in [*parts, "lora_A"]) for name in names)


def test_the_recipe_of_grounded_videodit_is_the_papers(videodit_start):
    settings = yaml.safe_load(VIDEODIT_RECIPES[-1].read_text())
    assert (settings["lora_r"], settings["lora_alpha"], settings["learning_rate"]) == (64, 128, 1e-4)
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 128
    processor = transformers.AutoProcessor.from_pretrained(videodit_start)
    assert (processor.num_frames, processor.num_object_tokens, processor.num_time_anchors) == (96, 4, 8)


@every_videodit_recipe
def test_grounded_videodit_cannot_be_planned(recipe, videodit_start, capsys):
    assert main(["plan", str(recipe), "--model_name_or_path", str(videodit_start)]) == 1
    assert "is a Grounded-VideoDiT, for whose memory there are no estimates" in capsys.readouterr().err


@pytest.mark.parametrize("module", [examples.sft, examples.fpo], ids=["sft", "fpo"])
def test_the_recipe_of_eventworld_is_what_the_example_does_without_arguments(module):
    recipe = yaml.safe_load((ROOT / "recipes" / "eventworld" / f"{Path(module.__file__).stem}.yaml").read_text())
    name = "model_name_or_path"
    same = {name: str(ROOT / recipe[name])} if name in recipe else {}
    assert recipe | same == module.DEFAULTS
