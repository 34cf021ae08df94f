# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Released checkpoints to our folders and back, on the golden toy weights in every layout that is released."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoProcessor, GenerationConfig, PreTrainedTokenizerFast

from trl_temporal.models.d2vlm import D2VLMForConditionalGeneration, D2VLMProcessor
from trl_temporal.models.d2vlm.convert_d2vlm_to_hf import (
    ConversionError,
    build_qformer_tokenizer,
    convert_config,
    convert_d2vlm_to_hf,
    convert_state_dict,
)
from trl_temporal.models.d2vlm.convert_hf_to_d2vlm import convert_hf_to_d2vlm
from trl_temporal.models.d2vlm.released_folder import LazyTensor, StoredTensor, unwrap, write_shards
from trl_temporal.models.d2vlm.released_names import JOINED_BIAS, SPLIT_BIAS, UNUSED, rename, rename_back
from trl_temporal.models.d2vlm.released_tokenizer import chat_template, read_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "d2vlm"
SETTINGS = json.loads((GOLDEN / "config.json").read_text())
# What the released model has and ours has not.
EXTRA = {
    "model.qformer_bert.cls.predictions.bias": torch.arange(168).half(),
    "model.qformer_bert.cls.predictions.transform.dense.weight": torch.eye(32).half(),
    "model.qformer_bert.bert.embeddings.position_ids": torch.arange(512)[None],
}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none", "peft_type": "LORA", "task_type": "CAUSAL_LM"}
LORA |= {"target_modules": ["qkv_proj", "o_proj"], "base_model_name_or_path": "work_dirs/etchat-stage-2"}


def released_config(**settings) -> dict:
    """The golden settings as the released code saves them; the numbers of heads cannot be read off the tensors."""
    heads = {name: {"heads": SETTINGS[name]["heads"]} for name in ("vision", "qformer")}
    return {**SETTINGS["model_config"], **heads, "architectures": ["ETChatPhi3ForCausalLM"], **settings}


def released_tensors() -> dict[str, torch.Tensor]:
    return {**load_file(GOLDEN / "weights_random.safetensors"), **EXTRA}


def write_config(folder: Path, config: dict) -> Path:
    """A folder with all but the weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file in (GOLDEN / "tokenizer").iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / "qformer_tokenizer").mkdir(exist_ok=True)
    shutil.copyfile(GOLDEN / "qformer_tokenizer" / "vocab.txt", folder / "qformer_tokenizer" / "vocab.txt")
    return folder


def write_sharded(folder: Path, tensors: dict, suffix: str, save, max_shard_size: int | str = 400_000) -> None:
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size, filename_pattern=suffix)
    assert plan.is_sharded
    for file, names in plan.filename_to_tensors.items():
        save({name: tensors[name] for name in names}, folder / file)
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / f"{suffix.format(suffix='')}.index.json").write_text(json.dumps(index))


def write_layout(folder: Path, layout: str) -> Path:
    """The golden weights in a layout of full weights."""
    write_config(folder, released_config())
    tensors = released_tensors()
    if layout == "one file":
        save_file(tensors, folder / "model.safetensors")
    elif layout == "shards":
        write_sharded(folder, tensors, "model{suffix}.safetensors", save_file)
    elif layout == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        write_sharded(folder, tensors, "pytorch_model{suffix}.bin", torch.save)
    return folder


@pytest.fixture
def released(tmp_path) -> Path:
    return write_layout(tmp_path / "released", "one file")


@pytest.fixture
def lora(tmp_path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """The LoRA layout, its base folder, and the released tensors with the factors merged in float32."""
    base = write_layout(tmp_path / "base", "one file")
    folder = write_config(tmp_path / "lora", released_config(model_name_or_path="work_dirs/etchat-stage-2"))
    torch.manual_seed(0)
    tensors = released_tensors()
    trained, factors = {}, {}
    for name in tensors:
        if name.startswith(("lm_head", "model.embed_tokens", "evi_head", "frm_head", "model.qformer_query")):
            trained[f"base_model.model.{name}"] = tensors[name] = torch.randn(tensors[name].shape) / 8
    merged = {name: tensor.float() for name, tensor in tensors.items()}
    for name in tensors:
        if "qkv_proj" in name or "o_proj" in name:
            down, up = torch.randn(4, tensors[name].shape[1]) / 8, torch.randn(tensors[name].shape[0], 4) / 8
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
            merged[name] = merged[name] + 2 * up @ down
    save_file(factors, folder / "adapter_model.safetensors")
    save_file(trained, folder / "pytorch_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    return folder, base, merged


def in_memory(tensors: dict[str, torch.Tensor]) -> D2VLMForConditionalGeneration:
    """The model of released tensors, by the map of names alone."""
    tensors = {name: tensor.float() for name, tensor in tensors.items() if name not in EXTRA}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    model = D2VLMForConditionalGeneration(convert_config(SETTINGS, shapes, {"<video>": 379}))
    missing, unexpected = model.load_state_dict(convert_state_dict(tensors), strict=False)
    assert len(missing) == 2 and not unexpected
    return model.eval()


@torch.no_grad()
def logits(model, processor) -> torch.Tensor:
    frames = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    question = "What happens?"
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return model.eval()(**processor(text=text, videos=[frames], questions=[question])).logits


def load(folder: Path):
    model, info = D2VLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model, D2VLMProcessor.from_pretrained(folder)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names, types and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def left_behind(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.name.startswith("converted")]


def test_auto_model(released, tmp_path):
    report = convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    folder = tmp_path / "converted"
    model, info = AutoModel.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(logits(model, processor), logits(in_memory(released_tensors()), processor))
    names = released_tensors().keys()
    assert report.used.keys() | report.joined.keys() | report.ignored.keys() == names
    assert report.ignored.keys() == EXTRA.keys() and len(report.joined) == 2 * SETTINGS["vision"]["depth"]
    assert {name.split(".")[2] for name in report.new} == {"post_layernorm"}
    assert AutoModel.from_pretrained(folder, trust_remote_code=True).dtype == torch.float16  # as released
    assert "papers/2512.24097" in (folder / "README.md").read_text()
    assert left_behind(tmp_path) == ["converted"]


# Runs in a fresh process in which the package cannot be imported.
CHILD = """
import sys

sys.modules["trl_temporal"] = None
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

folder, inputs_file, logits_file = sys.argv[1:]
model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True)
assert not any(info.values()), info
assert type(model).__module__.startswith("transformers_modules")
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text="<|user|>\\n<video>\\nWhen?", videos=[np.load(inputs_file)], questions=["When?"])
with torch.no_grad():
    np.save(logits_file, model.eval()(**inputs).logits.numpy())
"""


def test_remote_code(released, tmp_path):
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 28, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    (tmp_path / "child.py").write_text(CHILD)
    files = [str(tmp_path / name) for name in ("child.py", "converted", "frames.npy", "logits.npy")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *files], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "newly initialized" not in result.stderr
    processor = D2VLMProcessor.from_pretrained(tmp_path / "converted")
    inputs = processor(text="<|user|>\n<video>\nWhen?", videos=[frames], questions=["When?"])
    with torch.no_grad():
        expected = in_memory(released_tensors())(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["one file", "shards", "bin", "bin shards"])
def test_there_and_back(tmp_path, layout):
    source = write_layout(tmp_path / "released", layout)
    convert_d2vlm_to_hf(str(source), tmp_path / "converted", max_shard_size=300_000)
    assert len(list((tmp_path / "converted").glob("model-*-of-*.safetensors"))) > 3
    model, processor = load(tmp_path / "converted")
    torch.testing.assert_close(logits(model, processor), logits(in_memory(released_tensors()), processor))
    report = convert_hf_to_d2vlm(str(tmp_path / "converted"), tmp_path / "back")
    assert_same(weights_of(tmp_path / "back"), released_tensors())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == released_config()
    assert set(report.ignored) == {f"model.vision_tower.post_layernorm.{name}" for name in ("weight", "bias")}
    # ... and there again.
    convert_d2vlm_to_hf(str(tmp_path / "back"), tmp_path / "again")
    assert_same(weights_of(tmp_path / "again"), weights_of(tmp_path / "converted"))


def test_every_name_there_and_back():
    for name in load_file(GOLDEN / "weights_random.safetensors"):
        if not SPLIT_BIAS.fullmatch(name):
            assert rename_back(rename(name)) == name
    for strange in ("model.mm_projector.0.weight", "transformer.h.0.weight"):
        with pytest.raises(KeyError, match=strange):
            rename(strange)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype(released, tmp_path, dtype):
    convert_d2vlm_to_hf(str(released), tmp_path / "converted", dtype=dtype)
    tensors = load_file(tmp_path / "converted" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert_same(
        {name: tensors[name] for name in convert_state_dict(load_file(GOLDEN / "weights_random.safetensors"))},
        {
            name: tensor.to(dtype)
            for name, tensor in convert_state_dict(load_file(GOLDEN / "weights_random.safetensors")).items()
        },
    )
    assert D2VLMForConditionalGeneration.from_pretrained(tmp_path / "converted").dtype == dtype
    convert_hf_to_d2vlm(str(tmp_path / "converted"), tmp_path / "back", dtype=torch.float16)
    assert load_file(tmp_path / "back" / "model.safetensors")["lm_head.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float16"


def test_adapter_merged_and_not(lora, tmp_path):
    source, base, merged = lora
    convert_d2vlm_to_hf(str(source), tmp_path / "merged", merge_adapter=True, base=str(base), dtype=torch.float32)
    report = convert_d2vlm_to_hf(str(source), tmp_path / "kept", base=str(base), dtype=torch.float32)
    assert any("adapter" in note for note in report.notes)
    model, processor = load(tmp_path / "merged")
    expected = logits(in_memory(merged), processor)
    assert torch.equal(logits(model, processor), expected)
    model, _ = load(tmp_path / "kept")
    assert not torch.allclose(logits(model, processor), expected, atol=1e-3)
    with_adapter = PeftModel.from_pretrained(model, tmp_path / "kept" / "adapter")
    torch.testing.assert_close(logits(with_adapter, processor), expected, atol=1e-5, rtol=1e-5)


def test_merging_rounds_once(lora, tmp_path):
    source, base, merged = lora
    convert_d2vlm_to_hf(str(source), tmp_path / "converted", merge_adapter=True, base=str(base))
    found = load_file(tmp_path / "converted" / "model.safetensors")
    name = "model.layers.3.self_attn.qkv_proj.weight"
    assert found[rename(name)].dtype == torch.float16
    torch.testing.assert_close(found[rename(name)], merged[name].half(), atol=0, rtol=2**-10)


def test_adapter_there_and_back(lora, tmp_path):
    source, base, _ = lora
    convert_d2vlm_to_hf(str(source), tmp_path / "converted", base=str(base))
    report = convert_hf_to_d2vlm(str(tmp_path / "converted"), tmp_path / "back")
    for file in ("adapter_model.safetensors", "pytorch_model.safetensors"):
        assert_same(load_file(tmp_path / "back" / file), load_file(source / file))
    for file in ("adapter_config.json", "config.json"):
        assert json.loads((tmp_path / "back" / file).read_text()) == json.loads((source / file).read_text())
    assert "model.language_model.norm.weight" in report.ignored  # the base folder's
    assert not (tmp_path / "back" / "model.safetensors").exists()


def test_base_folder_of_the_config(lora, tmp_path):
    source, base, _ = lora
    (source / "config.json").write_text(json.dumps(released_config(model_name_or_path=str(base))))
    convert_d2vlm_to_hf(str(source), tmp_path / "converted", merge_adapter=True)
    load(tmp_path / "converted")


def write_etchat(folder: Path, vocab_size: int | None = None) -> Path:
    """A stage-2 folder of E.T. Chat: no evidence heads, no evidence tokens."""
    dropped = ("evidence_token_id", "evidence_end_token_id", "use_evidence", "arch_module", "consistency_loss")
    config = {name: value for name, value in released_config(bi_attention=False).items() if name not in dropped}
    tensors = {name: t for name, t in released_tensors().items() if not name.startswith(("evi_head", "frm_head"))}
    if vocab_size is not None:
        config["vocab_size"] = vocab_size
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            tensors[name] = tensors[name][:vocab_size].clone()
    write_config(folder, config)
    save_file(tensors, folder / "model.safetensors")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if "evi>" not in token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {token["id"]: token for token in content["added_tokens"]}
    for token in settings["added_tokens_decoder"].values():
        token.pop("id")
    settings["additional_special_tokens"] = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink()
    return folder


def test_etchat_stage_2(tmp_path):
    source = write_etchat(tmp_path / "released")
    report = convert_d2vlm_to_hf(str(source), tmp_path / "converted")
    model, processor = load(tmp_path / "converted")
    ids = (processor.evidence_token_id, processor.evidence_end_token_id, processor.video_token_id)
    assert ids == (377, 378, 379)  # spare rows of the vocabulary
    assert (model.config.evidence_token_id, model.config.evidence_end_token_id, model.config.video_token_id) == ids
    assert model.config.text_config.vocab_size == 384 and model.config.video_attention == "causal"
    assert any("bidirectional" in note for note in report.notes)
    heads = {name for name in report.new if "_head." in name}
    assert len(heads) == 12 and all("newly initialised" in report.new[name] for name in heads)
    assert 0.8 < model.model.evi_head[1].weight.std() * 64**0.5 < 1.2 and not model.model.evi_head[1].bias.any()
    assert logits(model, processor).isfinite().all()
    torch.manual_seed(1)
    convert_d2vlm_to_hf(str(source), tmp_path / "again")
    assert_same(weights_of(tmp_path / "again"), weights_of(tmp_path / "converted"))  # the new heads too
    # Back it is a folder of D2VLM.
    convert_hf_to_d2vlm(str(tmp_path / "converted"), tmp_path / "back")
    back = weights_of(tmp_path / "back")
    for name, released in weights_of(source).items():
        if name in ("lm_head.weight", "model.embed_tokens.weight"):  # the spare rows that `<evi>` and `</evi>` took
            expected = released[:377].float().mean(0).to(released.dtype)
            assert torch.equal(back[name][377:379], expected.expand(2, -1))
            back[name][377:379] = released[377:379]
        assert torch.equal(back[name], released), name
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["use_evidence"] and config["evidence_token_id"] == 377 and config["arch_module"] == "d2vlm_arch"
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "back").convert_tokens_to_ids("<evi>") == 377


def test_etchat_without_spare_rows_grows(tmp_path):
    source = write_etchat(tmp_path / "released", vocab_size=378)  # one row to spare, two tokens to add
    convert_d2vlm_to_hf(str(source), tmp_path / "converted", dtype=torch.float32)
    model, processor = load(tmp_path / "converted")
    assert model.config.text_config.vocab_size == 379 and processor.video_token_id == 379
    rows = load_file(source / "model.safetensors")["model.embed_tokens.weight"].float()
    found = model.get_input_embeddings().weight
    assert torch.equal(found[:377], rows[:377])
    torch.testing.assert_close(found[377:], rows[:377].mean(0).expand(2, -1), atol=1e-4, rtol=0)
    assert logits(model, processor).shape[-1] == 379


def test_etchat_stage_3_keeps_what_it_can(tmp_path):
    source = write_etchat(tmp_path / "released")
    tensors = load_file(source / "model.safetensors")
    heads = {name: t for name, t in released_tensors().items() if name.startswith("frm_head")}
    tensors |= heads | {name.replace("frm_head", "vid_head"): tensor.clone() for name, tensor in heads.items()}
    save_file(tensors, source / "model.safetensors")
    report = convert_d2vlm_to_hf(str(source), tmp_path / "converted")
    assert {name for name in report.new if "_head." in name} == {name for name in report.new if "evi_head" in name}
    assert "E.T. Chat" in report.ignored["vid_head.0.weight"]
    assert "frm_head.0.weight" in report.used
    convert_hf_to_d2vlm(str(tmp_path / "converted"), tmp_path / "back")
    assert torch.equal(weights_of(tmp_path / "back")["vid_head.0.weight"], tensors["vid_head.0.weight"])


def test_prompt_is_the_released_one(released, tmp_path):
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    processor = D2VLMProcessor.from_pretrained(tmp_path / "converted")
    cases = json.loads((GOLDEN / "infer.json").read_text())["videos"]
    golden = load_file(GOLDEN / "infer.safetensors")
    assert cases
    for number, case in enumerate(cases):
        content = [{"type": "video"}, {"type": "text", "text": case["query"][0]}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text == case["prompt"].replace("<image>", "<video>")
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [-200 if token == processor.video_token_id else token for token in ids]
        assert ids == golden[f"prompt_ids.{number}"].flatten().tolist()
    answer = [{"role": "assistant", "content": [{"type": "text", "text": " </evi> Yes. "}]}]
    whole = processor.apply_chat_template(messages + answer, tokenize=False)
    assert whole == text + "</evi> Yes.<|end|>"
    assert processor.apply_chat_template([{"role": "system", "content": "Be brief."}, *messages], tokenize=False) == (
        text.replace("You are a helpful AI assistant.", "Be brief.").removesuffix("\n<|assistant|>\n")
    )


@pytest.mark.parametrize("with_start_token", [True, False])
def test_prompt_of_a_tokenizer_like_phi3s(tmp_path, with_start_token):
    """The released code tokenizes the text before and after `<image>` alone; here it is one text with `<video>`."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if with_start_token:  # and a space before every piece of text
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    alphabet = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=alphabet, show_progress=False)
    backend.train_from_iterator(["You are a helpful AI assistant. When does it jump?"] * 3, trainer)
    if with_start_token:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<evi>", "</evi>")
    backend.add_special_tokens([AddedToken(name, rstrip="|" in name, normalized=False) for name in names])
    original = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")
    original.save_pretrained(tmp_path)

    tokenizer, _ = read_tokenizer(tmp_path, {})
    template = chat_template(tokenizer)
    tokenizer.add_tokens("<video>", special_tokens=True)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When does <evi> jump?"}]}]
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    before, after = text.removeprefix("<s>").split("<video>")
    expected = original(before)["input_ids"] + [len(original)]
    expected += [token for token in original(after)["input_ids"] if token != original.bos_token_id]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert (expected[0] == original.bos_token_id) == with_start_token


def test_processor_and_generation_settings(released, tmp_path):
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    processor = D2VLMProcessor.from_pretrained(tmp_path / "converted")
    assert (processor.time_rule, processor.fps, processor.image_size) == ("index", 1.0, 28)
    assert processor.tokenizer.eos_token == "<|end|>" and processor.tokenizer.pad_token == "<|endoftext|>"
    assert processor.video_token_id == 379
    settings = GenerationConfig.from_pretrained(tmp_path / "converted")
    assert (settings.do_sample, settings.temperature, settings.max_new_tokens) == (True, 0.2, 2048)
    assert settings.eos_token_id == [376, 372] and settings.top_k == 0
    config = D2VLMForConditionalGeneration.from_pretrained(tmp_path / "converted").config
    assert (config.video_attention, config.interval_ties, config.capture_layer) == ("bidirectional", "span", 6)
    assert config.text_config.sliding_window is None


def test_qformer_tokenizer_gives_the_released_pieces(released, tmp_path):
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    saved = D2VLMProcessor.from_pretrained(tmp_path / "converted").qformer_tokenizer
    queries = json.loads((GOLDEN / "compressor.json").read_text())["queries"]
    golden = load_file(GOLDEN / "compressor.safetensors")
    for tokenizer in (build_qformer_tokenizer(GOLDEN / "qformer_tokenizer" / "vocab.txt"), saved):
        assert tokenizer.bos_token_id == len(tokenizer) - 1 == SETTINGS["qformer"]["vocab_size"] - 1
        for name, query in queries.items():
            encoded = tokenizer(query["texts"], padding=True, truncation=True, return_tensors="pt")
            num_texts = len(query["texts"])
            expected = golden[f"{name}.text_ids"].view(num_texts, -1, encoded["input_ids"].shape[1])
            assert (expected == encoded["input_ids"][:, None]).all()
            mask = golden[f"{name}.mask"].view(num_texts, expected.shape[1], -1)[..., SETTINGS["qformer"]["queries"] :]
            assert (mask == encoded["attention_mask"][:, None]).all()


def test_config_of_a_long_context_phi3():
    scaling = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = released_config(rope_scaling=scaling, original_max_position_embeddings=256, sliding_window=512)
    shapes = {name: tensor.shape for name, tensor in released_tensors().items()}
    rope = convert_config(config, shapes).text_config.rope_parameters
    assert rope["rope_type"] == "longrope" and rope["long_factor"] == [2.0] * 8
    assert rope["original_max_position_embeddings"] == 256 and rope["rope_theta"] == 10000.0
    assert config["rope_scaling"]["type"] == "su"  # untouched


def test_config_trained_here_has_all_that_the_released_code_reads(released, tmp_path):
    """A folder without the memory of a conversion gives the same settings."""
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    model, processor = load(tmp_path / "converted")
    del model.config.released_config
    model.half().save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    trained, _ = load(tmp_path / "trained")
    convert_hf_to_d2vlm(str(tmp_path / "trained"), tmp_path / "back")
    back, expected = json.loads((tmp_path / "back" / "config.json").read_text()), released_config()
    for name in (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "rope_theta", "rope_scaling"),
        *("rms_norm_eps", "eos_token_id", "pad_token_id", "model_type", "arch_module", "vision_tower", "conv_type"),
        *("vision_processor", "mm_projector", "use_evidence", "use_matching", "use_time_tag", "bi_attention", "alpha"),
        *("consistency_loss", "evidence_token_id", "evidence_end_token_id", "vision", "qformer", "architectures"),
    ):
        assert back[name] == expected[name], name
    weights = released_tensors()
    assert_same(weights_of(tmp_path / "back"), {name: weights[name] for name in weights if name not in EXTRA})
    convert_d2vlm_to_hf(str(tmp_path / "back"), tmp_path / "again")
    again, processor = load(tmp_path / "again")
    assert torch.equal(logits(again, processor), logits(trained, processor))


def test_trained_adapter_is_merged_first(released, tmp_path):
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    model, _ = load(tmp_path / "converted")
    get_peft_model(model, LoraConfig(target_modules=["o_proj"])).save_pretrained(tmp_path / "trained")
    shutil.copyfile(tmp_path / "converted" / "config.json", tmp_path / "trained" / "config.json")
    with pytest.raises(ConversionError, match="merge it"):
        convert_hf_to_d2vlm(str(tmp_path / "trained"), tmp_path / "back")


def test_tokenizer_back_is_one_for_older_libraries(released, tmp_path):
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    convert_hf_to_d2vlm(str(tmp_path / "converted"), tmp_path / "back")
    back, original = (PreTrainedTokenizerFast.from_pretrained(path) for path in (tmp_path / "back", released))
    assert back.get_vocab() == original.get_vocab() and back.pad_token == original.pad_token
    text = "<|user|>\nWhen does the cat jump? <evi> </evi> In <evi>.<|end|>"
    assert back(text)["input_ids"] == original(text)["input_ids"]
    content = json.loads((tmp_path / "back" / "tokenizer.json").read_text())
    assert all(isinstance(pair, str) for pair in content["model"]["merges"])
    settings = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert (
        settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "<evi>" in settings["additional_special_tokens"]
    )
    assert (tmp_path / "back" / "special_tokens_map.json").is_file()


def edit_config(folder: Path, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def edit_weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<evi>"]
    file.write_text(json.dumps(content))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "config.json is no JSON object"),
    "foreign config": (lambda f: (f / "config.json").write_text('{"model_type": "llava"}'), "'llava'"),
    "cut off config": (lambda f: (f / "config.json").write_text('{"model_type": "etchat_phi3"}'), "no `vocab_size`"),
    "another model": (lambda f: edit_config(f, model_type="llava"), "`model_type` 'llava'"),
    "another projector": (lambda f: edit_config(f, mm_projector="mlp2x_gelu"), "`mm_projector` 'mlp2x_gelu'"),
    "time tags": (lambda f: edit_config(f, use_time_tag=True), "use_time_tag"),
    "few layers": (lambda f: edit_config(f, num_hidden_layers=6), "capture_layer"),
    "heads unknown": (lambda f: edit_config(f, vision={}), r'44 wide.*"vision": {"heads"'),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "cut off": (cut_off, "model.safetensors cannot be read"),
    "unexpected": (
        lambda f: edit_weights(f, lambda t: t.update({"model.mm_projector.weight": torch.zeros(2)})),
        r"model\.safetensors has a tensor 'model.mm_projector.weight'",
    ),
    "layer too many": (lambda f: edit_config(f, num_hidden_layers=7), r"'model\.layers\.7\."),
    "missing": (lambda f: edit_weights(f, lambda t: t.pop("frm_head.1.weight")), "has no frm_head.1.weight"),
    "half a bias": (
        lambda f: edit_weights(f, lambda t: t.pop("model.vision_tower.vision_tower.blocks.1.attn.v_bias")),
        r"has no tensor '.*blocks\.1\.attn\.v_bias'",
    ),
    "no vision tower": (
        lambda f: edit_weights(f, lambda t: t.pop("model.vision_tower.vision_tower.patch_embed.proj.weight")),
        "patch_embed.proj.weight",
    ),
    "mis-shaped": (
        lambda f: edit_weights(f, lambda t: t.update({"evi_head.1.weight": torch.zeros(3, 64)})),
        r"'evi_head.1.weight' of shape \(3, 64\).*expected is \(32, 64\)",
    ),
    "vocabulary": (lambda f: edit_config(f, vocab_size=400), r"\(384, 64\).*\(400, 64\)"),
    "no evidence token": (drop_tokens, "lacks <evi>"),
    "another id": (lambda f: edit_config(f, evidence_token_id=378), "<evi> has the id 377 .* and 378 in config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "word pieces": (
        lambda f: (f / "qformer_tokenizer" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"),
        "makes 7 word pieces .* 168",
    ),
    "no word pieces": (lambda f: shutil.rmtree(f / "qformer_tokenizer"), "vocab.txt.*--qformer-tokenizer"),
    "not of BERT": (lambda f: (f / "qformer_tokenizer" / "vocab.txt").write_text("a\n"), r"has no line \[UNK\]"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_folder(released, tmp_path, fault):
    spoil, message = BAD[fault]
    spoil(released)
    with pytest.raises(ConversionError, match=f"(?s){message}"):
        convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    assert not left_behind(tmp_path)


def spoil_shards(folder: Path, suffix: str, fault: str) -> None:
    shard = sorted(folder.glob(f"*-00002-of-*{suffix}"))[0]
    (index,) = folder.glob("*.index.json")
    if fault == "shard":
        shard.unlink()
    elif fault == "cut off":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif fault == "tensor":
        content = json.loads(index.read_text())
        content["weight_map"]["model.layers.9.norm.weight"] = shard.name
        index.write_text(json.dumps(content))
    else:
        index.unlink()


@pytest.mark.parametrize("layout, suffix", [("shards", ".safetensors"), ("bin shards", ".bin")])
@pytest.mark.parametrize(
    "fault, message",
    [
        ("shard", "00002-of-.*missing"),
        ("cut off", "00002-of-.*cannot be read"),
        ("tensor", "no tensor 'model.layers.9.norm.weight'"),
        ("index", "no index of the shards"),
    ],
)
def test_bad_shards(tmp_path, layout, suffix, fault, message):
    source = write_layout(tmp_path / "released", layout)
    spoil_shards(source, suffix, fault)
    with pytest.raises(ConversionError, match=message):
        convert_d2vlm_to_hf(str(source), tmp_path / "converted")
    assert not left_behind(tmp_path)


def test_pickled_code_does_not_run(released, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    (released / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, released / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="pytorch_model.bin cannot be read"):
        convert_d2vlm_to_hf(str(released), tmp_path / "converted")
    assert not (tmp_path / "evil").exists()


def test_bad_adapter_folders(lora, tmp_path):
    source, base, _ = lora

    def refused(message, **kwargs):
        with pytest.raises(ConversionError, match=f"(?s){message}"):
            convert_d2vlm_to_hf(str(source), tmp_path / "converted", **{"base": str(base), **kwargs})
        assert not left_behind(tmp_path)

    refused(r"model\.vision_tower\.\*.*model\.layers\.\*.*'work_dirs/etchat-stage-2'.*--base", base=None)
    refused("neither a folder", base=str(tmp_path / "nowhere"))
    refused("no full weights", base=str(source))
    (source / "adapter_config.json").write_text(json.dumps({**LORA, "use_dora": True}))
    refused("use_dora", merge_adapter=True)
    (source / "adapter_config.json").write_text(json.dumps(LORA))
    factors = load_file(source / "adapter_model.safetensors")
    save_file(dict(list(factors.items())[1:]), source / "adapter_model.safetensors")
    refused("only one of the two LoRA factors")
    wide = {name: torch.zeros(4, 63) if "lora_A" in name else tensor for name, tensor in factors.items()}
    save_file(wide, source / "adapter_model.safetensors")
    refused("do not fit")
    save_file(
        {**factors, "base_model.model.model.layers.0.lora_magnitude_vector": torch.ones(2)},
        source / "adapter_model.safetensors",
    )
    refused("only plain LoRA")
    (source / "adapter_model.safetensors").unlink()
    (source / "pytorch_model.safetensors").unlink()
    refused("no adapter_model.safetensors")


def test_nothing_to_merge(released, tmp_path):
    with pytest.raises(ConversionError, match="no adapter to merge"):
        convert_d2vlm_to_hf(str(released), tmp_path / "converted", merge_adapter=True)


def test_destination_that_holds_something(released, tmp_path):
    (tmp_path / "converted").mkdir()
    convert_d2vlm_to_hf(str(released), tmp_path / "converted")  # empty: fine
    for convert, source in ((convert_d2vlm_to_hf, released), (convert_hf_to_d2vlm, tmp_path / "converted")):
        with pytest.raises(ConversionError, match="not empty"):
            convert(str(source), tmp_path / "converted")
    assert left_behind(tmp_path) == ["converted"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, OSError])
def test_interrupted_in_the_middle(released, tmp_path, monkeypatch, exception):
    read, count = StoredTensor.read, iter(range(1000))

    def read_some(self):
        if next(count) == 100:
            assert left_behind(tmp_path)  # under another name
            assert not (tmp_path / "converted").exists()
            raise exception
        return read(self)

    monkeypatch.setattr(StoredTensor, "read", read_some)
    with pytest.raises(exception):
        convert_d2vlm_to_hf(str(released), tmp_path / "converted", max_shard_size=100_000)
    assert not left_behind(tmp_path)


def test_bad_folders_of_ours(released, tmp_path, tiny_dir):
    def refused(source, message):
        with pytest.raises(ConversionError, match=message):
            convert_hf_to_d2vlm(str(source), tmp_path / "back")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("back")]

    refused(released, "`model_type` 'etchat_phi3'")
    refused(tiny_dir, "d2vlm_conv_stem")
    converted = tmp_path / "ours"
    convert_d2vlm_to_hf(str(released), converted)
    bias = "model.vision_tower.encoder.layers.1.self_attn.qkv.bias"
    edit_weights(converted, lambda t: t[bias][44:88].fill_(0.5))
    refused(converted, "bias for keys in 'model.vision_tower.encoder.layers.1")
    edit_weights(converted, lambda t: t.pop(bias))
    refused(converted, "layers.1.self_attn.qkv.bias")
    edit_weights(converted, lambda t: t.update({"model.new_head.weight": torch.zeros(2)}))
    refused(converted, "model.new_head.weight")
    edit_config(converted, capture_layer=5)
    refused(converted, "`capture_layer` 5")


def test_writing_holds_one_shard(tmp_path):
    """Tensors of 64 kB in shards of 512 kB: never more than a shard is alive."""
    alive, most = 0, 0

    def make():
        nonlocal alive, most
        tensor = torch.zeros(1 << 14)
        alive, most = alive + tensor.nbytes, max(most, alive + tensor.nbytes)

        def freed(size=tensor.nbytes):
            nonlocal alive
            alive -= size

        weakref.finalize(tensor, freed)
        return tensor

    tensors = {f"layer.{number}": LazyTensor((1 << 14,), torch.float32, make) for number in range(64)}
    write_shards(tmp_path, tensors, max_shard_size=1 << 19)
    assert len(list(tmp_path.glob("*.safetensors"))) == 8
    assert most <= 1 << 19 and alive == 0
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) == 64


# Converts, and prints the most memory before and after, in kB.
MEMORY_CHILD = """
import resource, sys

from trl_temporal.models.d2vlm.convert_d2vlm_to_hf import convert_d2vlm_to_hf

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_d2vlm_to_hf(sys.argv[1], sys.argv[2], max_shard_size="100MB")
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shards", "bin shards"])
def test_memory_of_a_large_conversion(tmp_path, layout):
    """A wider model of the golden form, 1.3 GB in shards of 800 MB to shards of 100 MB: less than three in memory."""
    config = released_config(vocab_size=20_000, hidden_size=2048, intermediate_size=8192)
    source = write_config(tmp_path / "released", config)
    small, wide = released_tensors(), {}
    shapes = {name: tensor.shape for name, tensor in small.items()}
    with torch.device("meta"):
        expected = D2VLMForConditionalGeneration(convert_config(config, shapes)).state_dict()
    for name, tensor in expected.items():
        if JOINED_BIAS.fullmatch(name) or UNUSED.fullmatch(name):
            continue
        wide[rename_back(name)] = torch.zeros(tensor.shape)
    wide |= {name: tensor for name, tensor in small.items() if SPLIT_BIAS.fullmatch(name)}
    assert sum(tensor.nbytes for tensor in wide.values()) > 1.2e9
    suffix, save = (
        ("model{suffix}.safetensors", save_file) if layout == "shards" else ("pytorch_model{suffix}.bin", torch.save)
    )
    write_sharded(source, wide, suffix, save, max_shard_size="800MB")
    command = [sys.executable, "-c", MEMORY_CHILD, str(source), str(tmp_path / "converted")]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    before, after = map(int, result.stdout.split())
    assert after - before < 300_000


def test_reading_does_not_load_the_file(released):
    stored = StoredTensor(released / "model.safetensors", "lm_head.weight", (384, 64), torch.float16)
    tensor = stored.read()
    assert torch.equal(tensor, released_tensors()["lm_head.weight"])
    assert unwrap("base_model.model.model.layers.0.self_attn.o_proj.base_layer.weight") == (
        "model.layers.0.self_attn.o_proj.weight"
    )


def test_push_to_hub(released, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, repository, exist_ok):
            calls.append(repository)
            return type("Url", (), {"repo_id": "org/d2vlm"})

        def upload_folder(self, folder_path, repo_id, commit_message):
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return "https://huggingface.co/org/d2vlm"

    monkeypatch.setattr("trl_temporal.models.d2vlm.released_folder.HfApi", Hub)
    report = convert_d2vlm_to_hf(str(released), tmp_path / "converted", push_to_hub="d2vlm")
    assert calls[0] == "d2vlm" and calls[1][0] == "org/d2vlm" and "model.safetensors" in calls[1][1]
    assert "https://huggingface.co/org/d2vlm" in report.notes[-1]


@pytest.mark.parametrize("name", ["org/d2vlm", "org/d2vlm/inside"])
def test_from_the_hub(released, tmp_path, monkeypatch, name):
    asked = []

    def download(repository, allow_patterns, ignore_patterns=()):
        """Copies what the Hub would send."""
        assert repository == "org/d2vlm"
        asked.append(allow_patterns)
        place = tmp_path / "download" / name.removeprefix("org/d2vlm").strip("/")
        for file in filter(Path.is_file, released.rglob("*")):
            there = str((place / file.relative_to(released)).relative_to(tmp_path / "download"))
            wanted = any(fnmatch(there, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(there, pattern) for pattern in ignore_patterns):
                (tmp_path / "download" / there).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, tmp_path / "download" / there)
        return str(tmp_path / "download")

    monkeypatch.setattr("trl_temporal.models.d2vlm.released_folder.snapshot_download", download)
    convert_d2vlm_to_hf(name, tmp_path / "converted")
    assert f"`{name}`" in (tmp_path / "converted" / "README.md").read_text()
    assert not any(pattern.endswith(("*.safetensors", "*.bin")) for pattern in asked[0])  # first what is small
    if name.endswith("inside"):
        with pytest.raises(ConversionError, match="folders inside have one"):
            convert_d2vlm_to_hf("org/d2vlm", tmp_path / "another")
        assert len(asked) == 3  # no weights
