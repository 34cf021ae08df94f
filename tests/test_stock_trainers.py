# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Plain preference training and fine-tuning of stock video models: TRL's trainers that see the video."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image

from tests.families import FAMILIES, build
from tests.helpers import MIXED_PAIRS, MIXED_ROWS, assert_same_gradients, noise_video, train
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
from trl_temporal.data.chat_collator import ChatCollator, ChatPreferenceCollator
from trl_temporal.trainer.fused_forward import vision_tower

# SmolVLM is told whole seconds, and the videos of noise have two frames in each.
pytestmark = pytest.mark.filterwarnings("ignore:row .* frames per second")

NO_EVIDENCE = {"evidence_coef": 0.0, "consistency_coef": 0.0}
# Videos of one length, for families that stack them.
PAIRS = [{**row, "videos": [{"path": "noise-0-8"}] if row["videos"] else []} for row in MIXED_PAIRS]
ROWS = [{**row, "videos": [{"path": "noise-0-8"}] if row["videos"] else []} for row in MIXED_ROWS]


def other_video(entry):
    return noise_video("noise-9-8")


def fpo(family, config, read_video=noise_video, pairs=PAIRS, **settings):
    model, processor = build(family)
    ref_model, peft_config = settings.pop("ref_model", None), settings.pop("peft_config", None)
    defaults = {"grounding_coef": 0.0, "cache_frames": False, "per_device_train_batch_size": len(pairs)}
    return FPOTrainer(
        model,
        ref_model,
        args=config(FPOConfig, **{**defaults, **settings}),
        data_collator=ChatPreferenceCollator(processor, read_video),
        train_dataset=Dataset.from_list(pairs),
        processing_class=processor,
        peft_config=peft_config,
    )


def sft(family, config, read_video=noise_video, rows=ROWS, **settings):
    model, processor = build(family)
    defaults = {**NO_EVIDENCE, "cache_frames": False, "per_device_train_batch_size": len(rows)}
    return EvidenceSFTTrainer(
        model,
        args=config(EvidenceSFTConfig, **{**defaults, **settings}),
        data_collator=ChatCollator(processor, read_video),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [fpo, sft])
def test_the_video_is_seen(make, family, config):
    """The tower is called, a row without video goes along, and another video is another loss."""
    losses = []
    for read_video in (noise_video, noise_video, other_video):
        trainer = make(family, config, read_video)
        calls = count_calls(vision_tower(trainer.model))
        (gradients,) = train(trainer)
        assert len(calls) == 1 and all(torch.isfinite(gradient).all() for gradient in gradients.values())
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == losses[1] != losses[2]
    log = trainer.state.log_history[0]
    assert log["loss/grounding"] == log["loss/consistency"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_are_zero_before_the_first_step(family, config):
    """And the reference does not encode the videos again."""
    settings = {"reference_free": False, "freeze_vision_tower": True}
    trainer = fpo(family, config, ref_model=build(family)[0], **settings)
    calls = [count_calls(vision_tower(model)) for model in (trainer.model, trainer.ref_model)]
    trainer.train()
    assert [len(seen) for seen in calls] == [1, 0]
    log = trainer.state.log_history[0]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert log[name] == 0, name


def test_the_log_probabilities_are_the_models_own(config):
    """Of a pair alone, against a plain forward of the untouched model."""
    trainer = fpo("qwen2_5_vl", config, pairs=PAIRS[:1])
    batch = trainer.data_collator(PAIRS[:1])
    trainer.train()
    model, _ = build("qwen2_5_vl")
    skipped = ("completion_mask", "span_mask", "video_index", "num_frames")
    inputs = {name: value for name, value in batch.items() if torch.is_tensor(value) and name not in skipped}
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):  # once for both rows
        inputs[name] = torch.cat([inputs[name]] * 2)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[:, :-1].log_softmax(-1)
    token_log_probs = logits.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    chosen, rejected = (token_log_probs * batch["completion_mask"][:, 1:]).sum(-1).tolist()
    log = trainer.state.log_history[0]
    assert log["logps/chosen"] == pytest.approx(chosen, rel=1e-4)
    assert log["logps/rejected"] == pytest.approx(rejected, rel=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_equal_two_rows(family, attention, config):
    """Two videos, one of which two pairs show, and a pair without video; and one forward of the language model."""
    pairs = [*PAIRS, {**PAIRS[0], "videos": [{"path": "noise-3-8"}]}]
    found, lengths = [], []
    for prefix_sharing in (False, True):
        trainer = fpo(family, config, pairs=pairs, prefix_sharing=prefix_sharing)
        trainer.model.set_attn_implementation(attention)
        seen = []
        trainer.model.model.get_decoder().layers[0].register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append((args[0] if args else kwargs["hidden_states"]).shape),
            with_kwargs=True,
        )
        (gradients,) = train(trainer)
        found.append((trainer.state.log_history[0], gradients))
        ((rows, length, _),) = seen
        assert rows == len(pairs) * (1 if prefix_sharing else 2)
        lengths.append(rows * length)
    (plain, expected), (shared, gradients) = found
    assert lengths[1] < 0.8 * lengths[0]
    for name in ("loss", "logps/chosen", "logps/rejected"):
        assert shared[name] == pytest.approx(plain[name], rel=1e-5, abs=1e-5), name
    # Of weights this large the gradient has a norm of about 1,000.
    assert_same_gradients(gradients, expected, tolerance=5e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_once_equal_a_video_for_each_row(family, config, monkeypatch):
    """The batch as the model alone takes it, with the vision tower called by the model."""
    found = []
    for once in (True, False):
        trainer = fpo(family, config, prefix_sharing=False)
        trainer.data_collator.videos_once = once
        found.append((train(trainer)[0], trainer.state.log_history[0]))
    assert found[0][1]["loss"] == pytest.approx(found[1][1]["loss"], rel=1e-5)
    assert_same_gradients(found[0][0], found[1][0])


def test_rows_with_images_go_along(config):
    pictures = [Image.fromarray(noise_video("noise-7-2").frames[0])]
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "When?"}]}]
    pairs = [*PAIRS[:2], {**PAIRS[0], "videos": [], "images": pictures, "prompt": prompt}]
    pairs[2] |= {
        "chosen": PAIRS[3]["chosen"],
        "chosen_spans": [],
        "rejected": PAIRS[3]["rejected"],
        "rejected_spans": [],
    }
    pairs = [{"images": [], **pair} for pair in pairs]
    trainer = fpo("qwen3_vl", config, pairs=pairs)
    calls = count_calls(vision_tower(trainer.model))
    (gradients,) = train(trainer)
    assert len(calls) == 2 and all(torch.isfinite(gradient).all() for gradient in gradients.values())


# --- The log-probability of written spans ---


@pytest.mark.parametrize("coef", [0.0, 1.0, 2.0])
def test_the_tokens_of_spans_count_as_often_as_asked(coef, config):
    """`log pi` is that of the other tokens and `coef` times that of the tokens that write spans."""
    settings = {"grounding_log_prob": "span_tokens", "grounding_coef": coef, "reference_free": True}
    trainer = fpo("qwen3_vl", config, pairs=PAIRS[:1], **settings)
    batch = trainer.data_collator(PAIRS[:1])
    written = [
        trainer.processing_class.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["span_mask"], strict=True)
    ]
    assert [text.replace(" ", "") for text in written] == ["0.5-1.5", "0.5-1.52.0-3.0"]
    trainer.train()
    log = trainer.state.log_history[0]
    plain = fpo("qwen3_vl", config, pairs=PAIRS[:1])
    plain.train()
    plain = plain.state.log_history[0]
    for side in ("chosen", "rejected"):
        spans = log[f"grounding_logps/{side}"]
        assert spans < 0
        assert log[f"logps/{side}"] == pytest.approx(plain[f"logps/{side}"] + (coef - 1) * spans, rel=1e-5)
    assert log["loss/sft"] == pytest.approx(plain["loss/sft"], rel=1e-6)


def test_a_model_with_time_tokens_writes_spans_its_own_way(config):
    trainer = fpo("qwen3_vl", config, pairs=PAIRS[:1], grounding_log_prob="span_tokens", grounding_coef=1.0)
    trainer.data_collator.format_span = lambda span: f"<t{span[0]:.0f}><t{span[1]:.0f}>"
    batch = trainer.data_collator(PAIRS[:1])
    decode = trainer.processing_class.tokenizer.decode
    assert decode(batch["input_ids"][0][batch["span_mask"][0].bool()]).strip() == "<t0><t2>"
    assert "It happens in <t0><t2>." in decode(batch["input_ids"][0])


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "collator_class", "settings"),
    [
        (FPOTrainer, FPOConfig, ChatPreferenceCollator, {"grounding_coef": 0.0}),
        (EvidenceSFTTrainer, EvidenceSFTConfig, ChatCollator, NO_EVIDENCE),
    ],
)
def test_videos_are_sampled_as_the_configuration_says(
    trainer_class, config_class, collator_class, settings, config, event_world, preferences, tmp_path
):
    """Real files, the default collator, and a model card that does not call it a D2VLM."""
    model, processor = build("qwen2_5_vl")
    args = config(config_class, fps=0.5, max_frames=4, frame_cache_dir=str(tmp_path), **settings)
    rows = preferences if trainer_class is FPOTrainer else event_world["train"]
    trainer = trainer_class(model, args=args, train_dataset=rows.select(range(2)), processing_class=processor)
    assert isinstance(trainer.data_collator, collator_class)
    video = trainer.read_video(rows[0]["videos"][0])
    assert len(video.frames) == 4 and video.timestamps_s[1] > 1.9
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trl_temporal" in card and "- d2vlm" not in card


def test_a_d2vlm_keeps_the_sampling_that_it_was_trained_with(tiny, config, event_world):
    model, processor = tiny
    args = config(EvidenceSFTConfig, fps=1.0, max_frames=6)
    trainer = EvidenceSFTTrainer(model, args=args, train_dataset=event_world["train"], processing_class=processor)
    assert (processor.fps, processor.max_frames) == (1.0, 6)
    assert len(trainer.read_video(event_world["train"][0]["videos"][0]).frames) == 6


@pytest.mark.parametrize("freeze", [True, False])
def test_the_vision_tower_is_frozen_unless_asked(freeze, config):
    trainer = sft("qwen2_5_vl", config, freeze_vision_tower=freeze)
    (gradients,) = train(trainer)
    assert any("visual" in name for name in gradients) is not freeze


def test_lora(config):
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=r".*language_model.*\.(q_proj|v_proj)$")
    trainer = fpo("qwen2_5_vl", config, peft_config=lora, reference_free=False)
    (gradients,) = train(trainer)
    assert gradients and all("lora" in name for name in gradients)
    assert trainer.state.log_history[0]["rewards/chosen"] == 0


def test_a_model_that_does_not_call_its_tower_is_stopped(config, monkeypatch):
    """One that is given pixels, as of a family that is not known."""
    trainer = sft("qwen2_5_vl", config)
    trainer.data_collator.videos_once = False
    base = trainer.model.model

    def blind(*args, pixel_values_videos=None, video_grid_thw=None, **kwargs):
        return type(base).forward(base, *args, **kwargs)

    monkeypatch.setattr(base, "forward", blind)
    with pytest.raises(RuntimeError, match="trains blind"):
        trainer.train()


def test_a_collator_that_drops_the_videos_is_stopped(config):
    trainer = sft("qwen2_5_vl", config, rows=ROWS[:2])
    collate = trainer.data_collator
    kept = ("input_ids", "attention_mask", "labels")
    trainer.data_collator = lambda rows: {name: collate(rows)[name] for name in kept}
    with pytest.raises(RuntimeError, match="column 'videos'.*train blind"):
        trainer.train()


def test_what_needs_evidence_tokens_is_refused(config):
    with pytest.raises(ValueError, match="grounding_coef=0"):
        fpo("qwen2_5_vl", config, grounding_coef=1.0)
    with pytest.raises(ValueError, match="Set both to 0"):
        sft("qwen2_5_vl", config, evidence_coef=1.0)


def test_a_text_model_is_refused():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50))
    with pytest.raises(ValueError, match="no vision tower"):
        vision_tower(model)
