# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The use of docs/grounded_videodit.md, word for word, with toy models in folders with the names of the real ones."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import datasets
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from tests.toy_objects import save_toy_grounding_dino, save_toy_sam2
from trl_temporal.cli import main
from trl_temporal.models.grounded_videodit import encoder_loading
from trl_temporal.models.tiny import train_tokenizer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "grounded_videodit.md"
# Of toys, in the place of those of the page.
SIZES = {'"hidden_size": 1024': '"hidden_size": 16', '"hidden_size": 1536': '"hidden_size": 24'}
ON_THE_CPU = "--max_steps 1 --dtype float32 --bf16 false --use_cpu true --per_device_train_batch_size 2"
ON_THE_CPU += " --gradient_accumulation_steps 1 --gradient_checkpointing false --disable_tqdm true"


def save_toys(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers", minversion="0.42", reason="the frame encoder `vace` needs diffusers")
    torch.manual_seed(0)
    sizes = {"intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    tokenizer = train_tokenizer(["When does it blink?"], vocab_size=280)
    turn = "<|{{ message.role }}|>{{ message.content }}<|end|>"
    tokenizer.chat_template = f"{{% for message in messages %}}{turn}{{% endfor %}}"
    tokenizer.chat_template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenizer.save_pretrained(folder / "microsoft" / "Phi-3.5-mini-instruct")
    ids = {"vocab_size": 290, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    language_model = Phi3ForCausalLM(Phi3Config(**sizes, **ids, hidden_size=32))
    language_model.save_pretrained(folder / "microsoft" / "Phi-3.5-mini-instruct")
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, hidden_size=16, image_size=32, patch_size=16))
    tower.save_pretrained(folder / "openai" / "clip-vit-large-patch14")
    wan = folder / "Wan-AI" / "Wan2.1-VACE-1.3B-diffusers"
    diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(wan / "vae")
    diffusers.WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=3,
        vace_layers=[0, 1],
        rope_max_seq_len=64,
    ).save_pretrained(wan / "transformer")
    save_toy_grounding_dino(folder / "IDEA-Research" / "grounding-dino-tiny")
    save_toy_sam2(folder / "facebook" / "sam2.1-hiera-tiny")


def test_the_docs_do_what_they_say(event_world, tmp_path, monkeypatch, capsys):
    save_toys(tmp_path)
    monkeypatch.chdir(tmp_path)

    def shorten(row):  # to eight frames
        video = {**row["videos"][0], "end_s": 1.0}
        return {"videos": [video], "spans": [[0.2, 0.8]], "all_spans": None, "duration": 1.0, "objects": ["dog"]}

    of_one = event_world.filter(lambda row: row["task"] == "grounding" and len(row["spans"]) == 1)
    splits = {"train": of_one["train"].select([0, 1]), "test": of_one["train"].select([2])}
    datasets.DatasetDict({name: rows.map(shorten) for name, rows in splits.items()}).save_to_disk("rows")

    def embed(pretrained, output):  # by a text encoder of 11 GB
        encoder_loading.save_file({"prompt_embeds": torch.linspace(-1, 1, 24).view(3, 8)}, output)

    monkeypatch.setattr(encoder_loading, "embed_prompt", embed)
    section, names = PAGE.read_text(encoding="utf-8").split("## Use\n")[1].split("\n## ")[0], {}
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            for size, toy in SIZES.items():
                block = block.replace(size, toy)
            exec(compile(block, PAGE.name, "exec"), names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            if program == "trl-temporal":
                assert main(words) == 0
            elif program == "accelerate":
                script, flag, config, *others = words[1:]
                assert (words[0], flag) == ("launch", "--config")
                monkeypatch.setattr(sys, "argv", [script, flag, str(ROOT / config), *others, *ON_THE_CPU.split()])
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                assert program == "python" and (ROOT / words[0]).is_file()
    assert len(names["answer"].evidence) == 1 and names["answer"].salience.shape == (1, 8)
    assert names["peft_config"].modules_to_save == names["model"].get_base_model().trained_parts
    assert len(list(Path("features").glob("*/key.json"))) == 1  # for the command, the trainer and the evaluation
    assert "Wrote with-objects" in capsys.readouterr().out
