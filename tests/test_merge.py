# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""An adapter merged into its base: the same logits from a folder in which nothing of peft is left."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from tests.distributed.zero_ranks import SPAN_ROWS, noise_features
from tests.families import build
from tests.helpers import MIXED_ROWS, noise_video
from tests.test_backbones import ROWS
from trl_temporal.cli import main
from trl_temporal.data.collator import EvidenceCollator
from trl_temporal.evaluation.loading import describe_model, load_config, load_model, record_base
from trl_temporal.hub.merge import PEFT_NAMES, merge_adapter
from trl_temporal.models.d2vlm import D2VLMBackboneProcessor, D2VLMForConditionalGeneration
from trl_temporal.models.grounded_videodit import GroundedVideoDiTForConditionalGeneration
from trl_temporal.models.tiny import build_tiny_grounded_videodit
from trl_temporal.objects.collator import GroundedCollator

LAYERS = r".*(language_model|text_model)\.layers.*\.(q_proj|v_proj|qkv_proj)$"


def adapt(model, **settings) -> PeftModel:
    """An adapter with weights that matter."""
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": LAYERS, **settings})
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return adapted.eval()


def rows_of(model, processor) -> dict:
    """The settings for evidence tokens, as `lora_config` makes them."""
    rows = [processor.evidence_token_id, processor.evidence_end_token_id]
    tokens = {"embed_tokens": rows}
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        tokens["lm_head"] = rows
    return {"modules_to_save": ["evi_head", "frame_head"], "trainable_token_indices": tokens}


def save(adapted, processor, folder) -> str:
    """As the trainers do."""
    record_base(adapted, folder)
    adapted.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def logits(model, batch):
    with torch.no_grad():
        output = model.eval()(**batch)
    evidence = [output.evidence_logits.flatten()] if "evidence_logits" in output else []
    return torch.cat([output.logits.flatten(), *evidence])


def check(folder, expected, batch):
    """Loads without peft and says the same, in the files as in memory."""
    model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not any(report.values()), report
    difference = (logits(model, batch) - expected).abs().max()
    assert difference < 2e-5 * expected.abs().max(), difference  # of rounding: the weights of the adapter are large
    assert not list(folder.glob("*.bin")) and not (folder / "adapter_config.json").exists()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert not [name for name in tensors.keys() if any(part in name for part in PEFT_NAMES)]  # noqa: SIM118
    return model


@pytest.fixture(params=["tiny", "native"])
def d2vlm(request, tmp_path):
    """A saved D2VLM with tied embeddings, and one with two."""
    model, processor = request.getfixturevalue(request.param)
    model.generation_config.max_new_tokens = 77
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return load_model(str(tmp_path / "base"), "float32")


def test_a_d2vlm(d2vlm, tmp_path):
    model, processor = d2vlm
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    batch = EvidenceCollator(processor, noise_video)(MIXED_ROWS)
    before = logits(model, batch)
    adapted = adapt(model, **rows_of(model, processor))
    expected = logits(adapted, batch)
    assert (expected - before).abs().max() > 0.1
    adapter = save(adapted, processor, tmp_path / "adapter")
    assert main(["merge", adapter, str(tmp_path / "merged")]) == 0
    merged = check(tmp_path / "merged", expected, batch)
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == is_tied
    assert GenerationConfig.from_pretrained(tmp_path / "merged").max_new_tokens == 77
    again = AutoProcessor.from_pretrained(tmp_path / "merged")
    assert type(again) is type(processor) and again.chat_template == processor.chat_template
    assert (tmp_path / "merged" / "modeling_d2vlm.py").exists()
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert "from `base` and `adapter`." in card.text and str(tmp_path) not in card.content
    assert "generate_answers" in card.text and card.data.library_name == "transformers"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_a_d2vlm_on_a_backbone(family, tmp_path):
    """Its base is nowhere: it is made from the backbone once more, as the adapter says."""
    backbone, plain = build(family)
    backbone.save_pretrained(tmp_path / "backbone")
    plain.save_pretrained(tmp_path / "backbone")
    name = str(tmp_path / "backbone")
    processor = D2VLMBackboneProcessor.from_backbone(name, fps=2.0)
    settings = {"capture_layer": 2, "similarity_layer": -3, "salience_threshold": 0.7}
    model = D2VLMForConditionalGeneration.from_backbone(name, processor, dtype="float32", **settings)
    batch = EvidenceCollator(processor, noise_video)(ROWS)
    adapted = adapt(model, **rows_of(model, processor))
    expected = logits(adapted, batch)
    adapter = save(adapted, processor, tmp_path / "adapter")

    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == name
    config = load_config(adapter)
    assert config.model_type == "d2vlm" and {key: getattr(config, key) for key in settings} == settings
    loaded, again = load_model(adapter, "float32")
    torch.testing.assert_close(logits(loaded, batch), expected)
    assert isinstance(again, D2VLMBackboneProcessor) and loaded.config.salience_threshold == 0.7
    assert len(describe_model(loaded, adapter, None)["base"]) == 64

    merge_adapter(adapter, tmp_path / "merged")
    merged = check(tmp_path / "merged", expected, batch)
    assert {key: getattr(merged.config, key) for key in settings} == settings


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_grounded_videodit(is_tied, tmp_path):
    """What the paper trains: a LoRA, whole parts, and rows of time tokens."""
    torch.manual_seed(0)
    model, processor = build_tiny_grounded_videodit(
        ["When does it happen?"],
        {"name": "none", "hidden_size": 8},
        vocab_size=280,
        hidden_size=32,
        num_hidden_layers=2,
        grounding_head=["span", "time_tokens"],
        dtl_config={"width": 16, "num_layers": 2, "num_heads": 2},
    )
    if not is_tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        model = GroundedVideoDiTForConditionalGeneration(model.config)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == is_tied
    batch = GroundedCollator(processor, noise_features)(SPAN_ROWS)
    batch = {name: value for name, value in batch.items() if not name.startswith(("span_", "labels"))}

    def answer(model):
        with torch.no_grad():
            output = model.eval()(**batch)
        heads = torch.cat([output.start_logits, output.end_logits])
        return torch.cat([output.logits.flatten(), heads[heads.isfinite()]])

    first = model.config.time_token_start_id
    rows = list(range(first, first + model.config.num_time_steps + 1))
    tokens = {"embed_tokens": rows} | ({} if is_tied else {"lm_head": rows})
    before = answer(model)
    adapted = adapt(model, modules_to_save=model.trained_parts, trainable_token_indices=tokens)
    expected = answer(adapted)
    assert (expected - before).abs().max() > 0.1
    adapter = save(adapted, processor, tmp_path / "adapter")
    loaded, again = load_model(adapter, "float32")
    torch.testing.assert_close(answer(loaded), expected)
    assert again.time_tokens.tokens == processor.time_tokens.tokens
    assert main(["merge", adapter, str(tmp_path / "merged")]) == 0
    merged, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values()), report
    assert (answer(merged) - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == is_tied
    card = ModelCard.load(tmp_path / "merged" / "README.md").text
    assert "generate_answers" in card and (tmp_path / "merged" / "modeling_grounded_videodit.py").exists()


def test_a_backbone_that_has_moved(tmp_path):
    backbone, plain = build("smolvlm")
    for folder in ("then", "now"):
        backbone.save_pretrained(tmp_path / folder)
        plain.save_pretrained(tmp_path / folder)
    processor = D2VLMBackboneProcessor.from_backbone(str(tmp_path / "then"))
    model = D2VLMForConditionalGeneration.from_backbone(str(tmp_path / "then"), processor, capture_layer=2)
    adapter = save(adapt(model, **rows_of(model, processor)), processor, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say what model it is for"):
        load_model(adapter)
    assert (
        main(["merge", adapter, str(tmp_path / "merged"), "--model", str(tmp_path / "now"), "--dtype", "bfloat16"])
        == 0
    )
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16 and merged.config.capture_layer == 2
    (tmp_path / "adapter" / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        load_model(adapter, base=str(tmp_path / "now"))


def text_batch(processor):
    return processor.tokenizer(["When? What happens first in the video?"], return_tensors="pt")


TIED = {
    "rows of both": {"trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [5, 6]}},
    "rows of the head": {"trainable_token_indices": {"lm_head": [5, 6]}},
    "rows of the embedding": {"trainable_token_indices": {"embed_tokens": [5, 6]}},
    "other rows": {"trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [6, 7]}},
    "the head": {"modules_to_save": ["lm_head"]},
    "the embedding": {"modules_to_save": ["embed_tokens"]},
    "factors of the head": {"target_modules": ["lm_head", "q_proj"]},
    "factors of the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "factors of both": {"target_modules": ["embed_tokens", "lm_head"]},
    "factors of layers": {},
}


@pytest.mark.parametrize("what", TIED)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_tied_embeddings(family, what, tmp_path):
    """What is for one of the two must not reach the other, nor be lost when the model is loaded."""
    config, processor = build(family)[0].config, build(family)[1]
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = True
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    adapted = adapt(model, **TIED[what])
    batch = text_batch(processor)
    expected = logits(adapted, batch)
    merge_adapter(save(adapted, processor, tmp_path / "adapter"), tmp_path / "merged")
    merged = check(tmp_path / "merged", expected, batch)
    is_tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert is_tied == (what in ("rows of both", "rows of the embedding", "factors of layers"))
    # transformers looks at the weights too, but vLLM believes the configuration, that of the language model included.
    saved = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (saved["tie_word_embeddings"], saved["text_config"]["tie_word_embeddings"]) == (is_tied, is_tied)


def test_tied_embeddings_of_a_d2vlm(tiny, tmp_path):
    model, processor = tiny
    adapted = adapt(model, modules_to_save=["embed_tokens"])
    batch = EvidenceCollator(processor, noise_video)(MIXED_ROWS)
    expected = logits(adapted, batch)
    merge_adapter(save(adapted, processor, tmp_path / "adapter"), tmp_path / "merged")
    merged = check(tmp_path / "merged", expected, batch)
    assert merged.lm_head.weight is not merged.get_input_embeddings().weight


def test_what_is_no_adapter(tiny_dir, tmp_path, capsys):
    assert main(["merge", str(tiny_dir), str(tmp_path / "merged")]) == 1
    assert "is no adapter" in capsys.readouterr().err and not (tmp_path / "merged").exists()


def test_a_folder_that_is_there(tiny, tmp_path, capsys):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    model, processor = tiny
    adapter = save(adapt(model), processor, tmp_path / "adapter")
    assert main(["merge", adapter, str(tmp_path / "merged")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]
