# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""LoRA with trainable evidence-token rows and evidence heads: training, references, saving and merging."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.helpers import MIXED_ROWS, noise_video, train
from trl_temporal import (
    D2VLMForConditionalGeneration,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    FPOConfig,
    FPOTrainer,
)
from trl_temporal.data.collator import EvidenceCollator


def lora(processor) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=r".*language_model.*\.(q_proj|v_proj)$",
        modules_to_save=["evi_head", "frame_head"],
        trainable_token_indices={"embed_tokens": [processor.evidence_token_id, processor.evidence_end_token_id]},
    )


@pytest.fixture
def adapter_dir(tiny, tiny_dir, event_world, config, tmp_path):
    """An adapter after some SFT steps, so that none of its parts has its initial values."""
    trainer = EvidenceSFTTrainer(
        str(tiny_dir),
        config(EvidenceSFTConfig, max_steps=3),
        train_dataset=event_world["train"],
        peft_config=lora(tiny[1]),
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def batch(tiny):
    return EvidenceCollator(tiny[1], noise_video)(MIXED_ROWS)


def logits(model, batch):
    with torch.no_grad():
        output = model.eval()(**batch)
    return torch.cat([output.logits.flatten(), output.evidence_logits.flatten()])


@pytest.mark.parametrize("method", ["sft", "fpo"])
def test_lora_heads_and_evidence_tokens_are_trained_and_nothing_else(
    tiny, tiny_dir, event_world, preferences, config, method
):
    if method == "sft":
        trainer = EvidenceSFTTrainer(
            str(tiny_dir),
            config(EvidenceSFTConfig, max_steps=2),
            train_dataset=event_world["train"],
            peft_config=lora(tiny[1]),
        )
    else:
        trainer = FPOTrainer(
            str(tiny_dir), args=config(FPOConfig, max_steps=2), train_dataset=preferences, peft_config=lora(tiny[1])
        )
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    gradients = train(trainer)[1]  # in the first step LoRA's A has no gradient, since B is zero
    trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert gradients.keys() == trainable
    parts = ("lora_A", "lora_B", "evi_head.modules_to_save", "frame_head.modules_to_save", "trainable_tokens_delta")
    for part in parts:
        of_part = [name for name in trainable if part in name]
        assert of_part and all(gradients[name].any() for name in of_part), part
    assert all(any(part in name for part in parts) for name in trainable)
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) != (name in trainable), name


def test_rewards_of_a_new_adapter_are_zero(tiny, tiny_dir, preferences, config):
    """The reference is the model with the adapter switched off."""
    args = config(FPOConfig, reference_free=False, max_steps=2)
    trainer = FPOTrainer(str(tiny_dir), args=args, train_dataset=preferences, peft_config=lora(tiny[1]))
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert second["rewards/chosen"] != 0
    assert first["grounding_logps/chosen"] < 0  # the term is there, in both


@pytest.mark.parametrize("precompute", [False, True])
def test_rewards_of_an_sft_adapter_are_zero(tiny, tiny_dir, adapter_dir, preferences, config, precompute):
    """The reference is a copy of the adapter: LoRA, the heads, and the rows of the evidence tokens."""
    model = PeftModel.from_pretrained(
        D2VLMForConditionalGeneration.from_pretrained(tiny_dir), adapter_dir, is_trainable=True
    )
    args = config(
        FPOConfig,
        reference_free=False,
        max_steps=2,
        precompute_ref_log_probs=precompute,
        per_device_train_batch_size=1,
    )
    trainer = FPOTrainer(model, args=args, train_dataset=preferences, processing_class=tiny[1])
    assert "ref" in trainer.model.peft_config
    initial = D2VLMForConditionalGeneration.from_pretrained(tiny_dir)
    parts = {"lora_B": 0, "modules_to_save": 0, "trainable_tokens_delta": 0}
    for name, value in trainer.model.named_parameters():
        if ".default" in name:
            assert torch.equal(value, trainer.model.get_parameter(name.replace(".default", ".ref"))), name
            for part in parts:
                parts[part] += part in name
    assert all(parts.values())
    rows = [tiny[1].evidence_token_id, tiny[1].evidence_end_token_id]
    trained = next(value for name, value in model.named_parameters() if "trainable_tokens_delta.default" in name)
    assert not torch.allclose(trained, initial.get_input_embeddings().weight[rows])

    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    if not precompute:
        assert second["rewards/chosen"] != 0
    assert trainer.model.active_adapters == ["default"]


def test_saved_merged_and_reloaded(tiny, tiny_dir, adapter_dir, batch, tmp_path):
    """An adapter with rows of new tokens has the same logits after each."""
    base = D2VLMForConditionalGeneration.from_pretrained(tiny_dir)
    untrained = logits(base, batch)
    adapted = PeftModel.from_pretrained(base, adapter_dir)
    expected = logits(adapted, batch)
    assert (expected - untrained).abs().max() > 0.1

    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    reloaded, report = D2VLMForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(logits(reloaded, batch), expected, rtol=1e-4, atol=1e-4)
    # Input and output share the rows of the evidence tokens, before and after.
    assert reloaded.lm_head.weight is reloaded.get_input_embeddings().weight


def test_the_adapter_generates_what_it_generated_in_training(tiny, tiny_dir, event_world, config, tmp_path):
    trainer = EvidenceSFTTrainer(
        str(tiny_dir),
        config(EvidenceSFTConfig, max_steps=2, gradient_checkpointing=True),
        train_dataset=event_world["train"],
        peft_config=lora(tiny[1]),
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    ids = tiny[1](text="Hello", return_tensors="pt")
    model = trainer.model.eval()
    expected = model.generate(**ids, max_new_tokens=5, do_sample=False)
    base = D2VLMForConditionalGeneration.from_pretrained(tiny_dir)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(loaded.generate(**ids, max_new_tokens=5, do_sample=False), expected)


def test_an_adapter_on_the_lm_head_is_refused_by_trl(tiny, preferences, config):
    """The fused head reads `lm_head.weight` itself and would not train it."""
    settings = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="lm_head"):
        FPOTrainer(
            get_peft_model(tiny[0], settings), args=config(FPOConfig), train_dataset=preferences,
            processing_class=tiny[1],
        )  # fmt: skip
