# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Evidence tokens on video models of transformers: tiny random models, the real processors of their families."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.families import FAMILIES, build
from tests.helpers import MIXED_PAIRS, MIXED_ROWS, assert_same_gradients, noise_video, train
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
from trl_temporal.data.chat_inputs import encode_prompts
from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator, PromptCollator
from trl_temporal.evaluation.answering import Answering
from trl_temporal.evaluation.generation import generate_answers
from trl_temporal.models.d2vlm import D2VLMBackboneProcessor, D2VLMForConditionalGeneration, D2VLMProcessor
from trl_temporal.trainer.shared_videos import vision_tower

# Videos of one length, for families that stack them; two rows share one.
ROWS = [{**row, "videos": [{"path": "noise-1-8"}] if row["videos"] else []} for row in MIXED_ROWS]
ROWS[1]["videos"] = [{"path": "noise-2-8"}]
PAIRS = [{**row, "videos": [{"path": "noise-1-8"}] if row["videos"] else []} for row in MIXED_PAIRS]
PAIRS[1]["videos"] = [{"path": "noise-2-8"}]


def evidence_model(family: str):
    """A D2VLM on a tiny model of a family, with similarities that differ between frames."""
    backbone, processor = build(family)
    processor = D2VLMBackboneProcessor.from_backbone(processor, config=backbone.config, fps=2.0)
    torch.manual_seed(1)
    model = D2VLMForConditionalGeneration.from_backbone(backbone, processor, capture_layer=2)
    for head in (model.model.evi_head, model.model.frame_head):
        for parameter in head.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.35)
    return model, processor


def other_video(entry):
    return noise_video("noise-9-8")


def fpo(family, config, read_video=noise_video, pairs=PAIRS, model=None, processor=None, **settings):
    if model is None:
        model, processor = evidence_model(family)
    ref_model, peft_config = settings.pop("ref_model", None), settings.pop("peft_config", None)
    defaults = {"cache_frames": False, "per_device_train_batch_size": len(pairs), "consistency_ramp_end": 0.0}
    return FPOTrainer(
        model,
        ref_model,
        args=config(FPOConfig, **{**defaults, "consistency_ramp_start": 0.0, **settings}),
        data_collator=PreferenceCollator(processor, read_video),
        train_dataset=Dataset.from_list(pairs),
        processing_class=processor,
        peft_config=peft_config,
    )


def sft(family, config, read_video=noise_video, rows=ROWS, **settings):
    model, processor = evidence_model(family)
    defaults = {"cache_frames": False, "per_device_train_batch_size": len(rows), "consistency_ramp_end": 0.0}
    return EvidenceSFTTrainer(
        model,
        args=config(EvidenceSFTConfig, **{**defaults, "consistency_ramp_start": 0.0, **settings}),
        data_collator=EvidenceCollator(processor, read_video),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


def logits(model, batch):
    with torch.no_grad():
        output = model.eval()(**batch)
    return torch.cat([output.logits.flatten(), output.evidence_logits.flatten()])


# --- The model ---


@pytest.mark.parametrize("family", FAMILIES)
def test_without_evidence_the_backbone_is_itself(family):
    """Its own logits on prompts through its own processor: positions, text between frames and padding included."""
    backbone, plain_processor = build(family)
    model, processor = evidence_model(family)
    videos = [noise_video(row["videos"][0]) if row["videos"] else None for row in ROWS]
    prompts = encode_prompts(plain_processor, ROWS, videos)
    inputs = PromptCollator(processor, noise_video)(ROWS)["inputs"]
    assert torch.equal(inputs["input_ids"], prompts.inputs["input_ids"])
    if "mm_token_type_ids" not in prompts.inputs:  # such models count the padding on the left too
        prompts.inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = backbone(**prompts.inputs).logits
        found = model(**inputs).logits
    vocabulary = expected.shape[-1]
    given = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[given][:, :vocabulary], expected[given], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_those_of_the_processor(family):
    """Every frame has tokens, equally many and in order; two sampled frames that are merged begin with the first."""
    _, processor = evidence_model(family)
    batch = EvidenceCollator(processor, noise_video)(ROWS[:1])
    (frame_index,) = batch["frame_index"]
    counts = torch.bincount(frame_index[frame_index >= 0])
    merged = 2 if family.startswith("qwen") else 1
    assert len(counts) == 8 // merged == batch["frame_mask"].shape[1] and counts.min() == counts.max() > 0
    assert (frame_index[frame_index >= 0].diff() >= 0).all()
    assert processor.frame_timestamps(noise_video("noise-1-8").timestamps_s).tolist() == [
        merged * frame / 2 for frame in range(8 // merged)
    ]
    # The span [0.5, 1.5]: by midpoints of one second or half a second each.
    assert batch["evidence_frame_mask"][0, 0].nonzero().flatten().tolist() == ([0] if merged == 2 else [1, 2])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_rows(family):
    model, processor = evidence_model(family)
    collate = EvidenceCollator(processor, noise_video)
    batch = collate(ROWS)
    with torch.no_grad():
        together = model(**batch)
        for number, row in enumerate(ROWS):
            alone_batch = collate([row])
            alone = model(**alone_batch)
            length = alone_batch["input_ids"].shape[1]
            torch.testing.assert_close(together.logits[number, :length], alone.logits[0], rtol=1e-4, atol=1e-4)
            if row["spans"]:
                num_evidence = alone.evidence_logits.shape[1]
                torch.testing.assert_close(
                    together.evidence_logits[number, :num_evidence], alone.evidence_logits[0], rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_of_frames_are_those_after_the_first_layers(family):
    """Captured by leaving after `capture_layer` layers: the means of the hidden states of a whole forward."""
    model, processor = evidence_model(family)
    batch = PromptCollator(processor, noise_video)(ROWS[:1])["inputs"]
    with torch.no_grad():
        states = model(**batch, use_cache=True).frame_states
        seen = []
        layer = model.model.get_decoder().layers[2]
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        model(**batch)
    (frame_index,) = batch["frame_index"]
    expected = torch.stack([seen[0][0, frame_index == frame].mean(0) for frame in range(states.shape[1])])
    torch.testing.assert_close(states[0], expected, rtol=1e-5, atol=1e-5)


# --- Training ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [fpo, sft])
def test_every_video_is_encoded_once_and_seen(make, family, config):
    losses = []
    for read_video in (noise_video, noise_video, other_video):
        trainer = make(family, config, read_video)
        calls = count_calls(vision_tower(trainer.model))
        (gradients,) = train(trainer)
        assert len(calls) == 1
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
        assert {name.split(".")[1] for name in gradients} >= {"evi_head", "frame_head"}
        losses.append(trainer.state.log_history[0]["loss"])
        assert trainer.state.log_history[0]["loss/grounding"] > 0
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_are_zero_before_the_first_step(family, config):
    """And the reference does not encode the videos again."""
    settings = {"reference_free": False, "freeze_vision_tower": True}
    trainer = fpo(family, config, ref_model=evidence_model(family)[0], **settings)
    calls = [count_calls(vision_tower(model)) for model in (trainer.model, trainer.ref_model)]
    trainer.train()
    assert [len(seen) for seen in calls] == [1, 0]
    log = trainer.state.log_history[0]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert log[name] == 0, name


def test_a_trained_tower_is_asked_again(config):
    settings = {"reference_free": False, "freeze_vision_tower": False}
    trainer = fpo("qwen2_5_vl", config, ref_model=evidence_model("qwen2_5_vl")[0], **settings)
    calls = [count_calls(vision_tower(model)) for model in (trainer.model, trainer.ref_model)]
    trainer.train()
    assert [len(seen) for seen in calls] == [1, 1]
    assert trainer.state.log_history[0]["rewards/chosen"] == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_equal_two_rows(family, attention, config):
    found = []
    for prefix_sharing in (False, True):
        model, processor = evidence_model(family)
        model.set_attn_implementation(attention)
        trainer = fpo(family, config, model=model, processor=processor, prefix_sharing=prefix_sharing)
        (gradients,) = train(trainer)
        found.append((trainer.state.log_history[0], gradients))
    (plain, expected), (shared, gradients) = found
    for name in ("loss", "logps/chosen", "logps/rejected", "grounding_logps/chosen", "loss/consistency"):
        assert shared[name] == pytest.approx(plain[name], rel=1e-5, abs=1e-5), name
    # Of weights this large the gradient has a norm of about 100.
    assert_same_gradients(gradients, expected, tolerance=5e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(family, config):
    found = []
    for checkpointing in (False, True):
        trainer = fpo(family, config, gradient_checkpointing=checkpointing)
        found.append(train(trainer)[0])
    assert_same_gradients(found[1], found[0], tolerance=5e-5)


@pytest.mark.parametrize("family, fps", [("qwen2_5_vl", 8), ("qwen3_vl", 60)])
def test_frames_that_get_the_same_time_are_warned_of(family, fps, config):
    """Qwen2.5-VL counts time in halves of a second here, and Qwen3-VL writes tenths."""

    def dense(entry):
        video = noise_video(entry)
        video.timestamps_s, video.duration_s = np.arange(8) / fps, 8 / fps
        return video

    pairs = [{**PAIRS[0], "chosen_spans": [[0.0, 0.1]], "rejected_spans": [[0.0, 0.1], [0.05, 0.1]]}]
    with pytest.warns(UserWarning, match="row 'pair': at .* frames per second, .* the same time"):
        fpo(family, config, dense, pairs).train()


# --- Adapters, files, answers ---


def lora(processor) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=r".*(language_model|text_model).*\.(q_proj|v_proj)$",
        modules_to_save=["evi_head", "frame_head"],
        trainable_token_indices={"embed_tokens": [processor.evidence_token_id, processor.evidence_end_token_id]},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_trains_saves_and_merges(family, config, tmp_path):
    model, processor = evidence_model(family)
    trainer = fpo(
        family,
        config,
        model=model,
        processor=processor,
        peft_config=lora(processor),
        reference_free=False,
        max_steps=2,
    )
    trainer.train()
    assert trainer.state.log_history[0]["rewards/chosen"] == 0
    trainer.save_model(tmp_path / "adapter")
    batch = EvidenceCollator(processor, noise_video)(ROWS)
    expected = logits(trainer.model, batch)
    assert (expected - logits(evidence_model(family)[0], batch)).abs().max() > 0.5
    loaded = PeftModel.from_pretrained(evidence_model(family)[0], tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded, batch), expected)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-3, atol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    again = D2VLMForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(again, batch), logits(merged, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_by_the_auto_classes(family, tmp_path):
    model, processor = evidence_model(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = EvidenceCollator(processor, noise_video)(ROWS)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again, batch), logits(model, batch))
    for load in (AutoProcessor, D2VLMProcessor, D2VLMBackboneProcessor):
        loaded = load.from_pretrained(tmp_path)
        assert type(loaded) is D2VLMBackboneProcessor and loaded.fps == 2.0
        same = EvidenceCollator(loaded, noise_video)(ROWS)
        assert batch.keys() == same.keys() and all(torch.equal(batch[name], same[name]) for name in batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_a_batch_are_those_alone(family):
    """With evidence: few other tokens are allowed, so that captured frames enter the text that follows."""
    model, processor = evidence_model(family)
    evidence = [processor.evidence_token_id, processor.evidence_end_token_id]
    with torch.no_grad():
        model.lm_head.weight[evidence] = 2 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    allowed = {*evidence, 290}
    model.generation_config.suppress_tokens = sorted(set(range(len(processor.tokenizer))) - allowed)
    answers = generate_answers(model, processor, ROWS, batch_size=4, max_new_tokens=6, read_video=noise_video)
    assert any(answer.evidence or answer.response for answer in answers)
    for row, answer in zip(ROWS, answers, strict=True):
        (alone,) = generate_answers(model, processor, [row], max_new_tokens=6, read_video=noise_video)
        assert (answer.text, answer.evidence) == (alone.text, alone.evidence)
        for span in answer.evidence + answer.response:
            assert 0 <= span.start_s < span.end_s <= 4.0


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_from_files_to_scores(family, config, event_world, tmp_path):
    """Real mp4 files, the trainer's own collator, a saved folder, and the evaluation of what it loads."""
    model, processor = evidence_model(family)
    settings = {"num_frames": 6} if family == "smolvlm" else {"fps": 1.0, "max_frames": 8}
    args = config(EvidenceSFTConfig, frame_cache_dir=str(tmp_path / "frames"), max_steps=1, **settings)
    trainer = EvidenceSFTTrainer(model, args=args, train_dataset=event_world["train"], processing_class=processor)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    loaded = D2VLMForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    loaded_processor = D2VLMProcessor.from_pretrained(tmp_path / "model")
    answer = Answering(loaded, loaded_processor, batch_size=4, max_new_tokens=4)
    rows = [dict(row) for row in event_world["test"]]
    answers = answer(rows)
    assert len(answers) == len(rows)
    num_frames = {len(answer.timestamps_s) for answer in answers}
    assert num_frames == {6} if family == "smolvlm" else max(num_frames) <= 8
    assert answer.settings()["sampling"].get("num_frames") == settings.get("num_frames")
