# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""FPO with TRL's trainer on real files: references, losses and rewards."""

import math

import pytest
import torch
from datasets import Dataset, load_from_disk
from trl.trainer.utils import disable_dropout_in_model

from tests.helpers import MIXED_PAIRS, assert_same_gradients, noise_video, train
from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor, FPOConfig, FPOTrainer
from trl_temporal.data.collator import PreferenceCollator
from trl_temporal.trainer.fpo_trainer import disable_attention_dropout
from trl_temporal.trainer.fused_forward import add_evidence_head

MIXED = Dataset.from_list(MIXED_PAIRS)


@pytest.fixture
def fpo_config(config):
    def make(**kwargs):
        return config(FPOConfig, **kwargs)

    return make


def load(tiny_dir):
    return D2VLMForConditionalGeneration.from_pretrained(tiny_dir), D2VLMProcessor.from_pretrained(tiny_dir)


def noise_trainer(tiny_dir, args, rows=MIXED):
    model, processor = load(tiny_dir)
    collator = PreferenceCollator(processor, noise_video)
    return FPOTrainer(model, args=args, data_collator=collator, train_dataset=rows, processing_class=processor)


def noise_config(fpo_config, **kwargs):
    # The videos of noise are no files: they are not read ahead.
    defaults = {"cache_frames": False, "consistency_ramp_start": 0.0, "consistency_ramp_end": 0.0}
    return fpo_config(**{"per_device_train_batch_size": 4, **defaults, **kwargs})


def test_no_dropout_is_left_in_preference_training(native):
    """TRL's `disable_dropout` leaves the dropout of attention weights, a tenth in the Q-Former."""
    model, processor = native
    batch = PreferenceCollator(processor, noise_video)(MIXED)
    names = ("frame_mask", "video_index", "qformer_input_ids", "qformer_attention_mask")
    inputs = [batch[name] for name in names]

    def frames():
        features, _ = model.train().model.encode_videos(inputs[0], pixel_values_videos=batch["pixel_values_videos"])
        return model.model._frame_tokens(features, inputs[0], inputs[1].clamp(min=0), *inputs[2:])

    disable_dropout_in_model(model)
    assert not torch.equal(frames(), frames())
    disable_attention_dropout(model)
    assert torch.equal(frames(), frames())


# --- The video ---


def test_a_batch_of_pairs_encodes_each_video_once(tiny_dir, preferences, fpo_config):
    """Three pairs about three files: three videos in one call, not six."""
    rows = preferences.select([0, 4, 8])
    args = fpo_config(per_device_train_batch_size=3, max_steps=2, reference_free=True)
    trainer = FPOTrainer(str(tiny_dir), args=args, train_dataset=rows)
    calls = []
    trainer.model.model.vision_tower.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    gradients = train(trainer)
    assert calls == [3, 3]
    assert all(step["model.vision_tower.convs.0.0.weight"].any() for step in gradients)


def test_another_video_gives_another_loss(tiny_dir, preferences, fpo_config):
    row = preferences[1]
    logs = []
    for other in (0, 4, 0):
        shown = {**row, "videos": preferences[other]["videos"], "duration": None}
        rows = Dataset.from_list([shown], features=preferences.features)
        trainer = FPOTrainer(str(tiny_dir), args=fpo_config(), train_dataset=rows)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss/preference", "loss/sft", "loss/grounding", "logps/chosen", "grounding_logps/rejected"):
        assert logs[0][name] == logs[2][name]
        assert abs(logs[0][name] - logs[1][name]) > 1e-4


# --- References ---


@pytest.mark.parametrize("grounding_target", ["hard", "soft"])
def test_rewards_are_zero_before_the_first_step(tiny_dir, preferences, fpo_config, grounding_target):
    args = fpo_config(reference_free=False, max_steps=2, grounding_target=grounding_target)
    trainer = FPOTrainer(str(tiny_dir), args=args, train_dataset=preferences)
    assert trainer.ref_model is not None
    trainer.train()
    first, second = trainer.state.log_history[:2]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert first[name] == 0 and second[name] != 0
    assert first["loss/preference"] == pytest.approx(math.log(2))


def test_rewards_are_zero_in_bfloat16_too(tiny_dir, preferences, fpo_config):
    args = fpo_config(reference_free=False, bf16=True)
    trainer = FPOTrainer(str(tiny_dir), args=args, train_dataset=preferences)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/chosen"] == trainer.state.log_history[0]["rewards/rejected"] == 0


def test_rewards_are_zero_with_a_precomputed_reference(tiny_dir, preferences, fpo_config):
    """One pair a batch: then padding, and with it the last bit of every sum, is the same in both passes."""
    args = fpo_config(
        reference_free=False, precompute_ref_log_probs=True, per_device_train_batch_size=1, max_steps=len(preferences),
        learning_rate=0.0,
    )  # fmt: skip
    trainer = FPOTrainer(str(tiny_dir), args=args, train_dataset=preferences)
    assert trainer.ref_model is None
    trainer.train()
    logs = trainer.state.log_history[: len(preferences)]
    assert {log["rewards/chosen"] for log in logs} == {log["rewards/rejected"] for log in logs} == {0}
    assert any(log["grounding_logps/chosen"] != 0 for log in logs)


def test_a_precomputed_reference_is_that_of_the_settings(tiny_dir, preferences, fpo_config, tmp_path):
    """TRL caches by model and rows; our coefficient and the sampling of the video change what is cached."""
    preferences.select([1, 5]).save_to_disk(tmp_path / "rows")  # rows in memory would have no cache
    calls, rewards = [], []
    for grounding_coef, fps in ((1.0, 2.0), (1.0, 2.0), (0.5, 2.0), (0.5, 1.0)):
        processor = D2VLMProcessor.from_pretrained(tiny_dir)
        processor.fps = fps
        args = fpo_config(
            reference_free=False, precompute_ref_log_probs=True, per_device_train_batch_size=1,
            grounding_coef=grounding_coef,
        )  # fmt: skip
        model = load(tiny_dir)[0]
        calls.append(0)

        def count(module, args, calls=calls):
            calls[-1] += 1

        model.model.vision_tower.register_forward_pre_hook(count)
        trainer = FPOTrainer(
            model, args=args, train_dataset=load_from_disk(tmp_path / "rows"), processing_class=processor
        )
        trainer.train()
        rewards.append(trainer.state.log_history[0]["rewards/chosen"])
    assert rewards == [0, 0, 0, 0]
    assert calls == [3, 1, 3, 3]  # two pairs are precomputed unless the settings are the same, one is trained on


def test_a_precomputed_reference_equals_a_live_one_after_some_steps(tiny_dir, fpo_config):
    rewards = []
    for precompute in (False, True):
        args = noise_config(fpo_config, reference_free=False, precompute_ref_log_probs=precompute, max_steps=2)
        if precompute:
            trainer = noise_trainer(tiny_dir, args)
        else:
            model, processor = load(tiny_dir)
            trainer = FPOTrainer(
                model,
                ref_model=load(tiny_dir)[0],
                args=args,
                data_collator=PreferenceCollator(processor, noise_video),
                train_dataset=MIXED,
                processing_class=processor,
            )
        trainer.train()
        rewards.append(trainer.state.log_history[1]["rewards/margins"])
    assert rewards[0] != 0 and rewards[1] == pytest.approx(rewards[0], rel=1e-4)


def test_reference_free_training_has_no_second_model(tiny_dir, preferences, fpo_config, monkeypatch):
    loaded = []
    from_pretrained = D2VLMForConditionalGeneration.from_pretrained.__func__
    monkeypatch.setattr(
        D2VLMForConditionalGeneration,
        "from_pretrained",
        classmethod(lambda cls, *args, **kwargs: loaded.append(1) or from_pretrained(cls, *args, **kwargs)),
    )
    trainer = FPOTrainer(str(tiny_dir), args=fpo_config(), train_dataset=preferences)
    calls = []
    trainer.model.model.language_model.register_forward_pre_hook(lambda *args: calls.append(1))
    trainer.train()
    assert trainer.ref_model is None and len(loaded) == 1
    assert len(calls) == 2  # the evidence pass and the one over everything
    log = trainer.state.log_history[0]
    assert log["rewards/chosen"] == pytest.approx(0.1 * log["logps/chosen"], rel=1e-5)
    margin = 0.1 * (log["logps/chosen"] - log["logps/rejected"])
    assert log["rewards/margins"] == pytest.approx(margin, rel=1e-4)


def test_contradictory_settings_are_refused(tiny, fpo_config, preferences):
    with pytest.raises(ValueError, match="ref_model.*reference_free=False"):
        FPOTrainer(tiny[0], ref_model=tiny[0], args=fpo_config(), train_dataset=preferences)
    with pytest.raises(ValueError, match="sync_ref_model.*reference_free=False"):
        fpo_config(sync_ref_model=True)


# --- The loss ---

LOSS_TYPES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
    "sigmoid_norm"
).split()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type_of_trl_trains(tiny_dir, fpo_config, loss_type):
    # The grounding term of a random model is large: at the usual beta, losses saturate and have no gradient.
    args = noise_config(
        fpo_config, loss_type=[loss_type], label_smoothing=1e-3, beta=1e-3, sft_coef=0.0, evidence_coef=0.0,
        consistency_coef=0.0, reference_free=False, precompute_ref_log_probs=True, max_steps=2, learning_rate=1e-3,
    )  # fmt: skip
    trainer = noise_trainer(tiny_dir, args)
    gradients = train(trainer)
    for log, step in zip(trainer.state.log_history, gradients, strict=False):
        assert math.isfinite(log["loss"])
        assert log["loss"] == pytest.approx(log["loss/preference"], rel=1e-5)
        assert all(gradient.isfinite().all() for gradient in step.values())
        assert step["model.language_model.layers.0.mlp.up_proj.weight"].any()
        assert step["model.evi_head.1.weight"].any()  # through log p_g, whatever TRL makes of it


def test_no_loss_type_of_trl_was_forgotten():
    import inspect

    from trl import DPOTrainer

    source = inspect.getsource(DPOTrainer._compute_loss)
    assert all(f'loss_type == "{name}"' in source for name in LOSS_TYPES)
    assert source.count("loss_type == ") == len(LOSS_TYPES)


def test_every_component_is_logged_and_adds_up(tiny_dir, preferences, fpo_config):
    args = fpo_config(
        max_steps=10, learning_rate=0.0, gradient_accumulation_steps=2, preference_coef=0.5, sft_coef=2.0,
        evidence_coef=3.0, consistency_coef=0.5,
    )  # fmt: skip
    trainer = FPOTrainer(str(tiny_dir), args=args, train_dataset=preferences)
    trainer.train()
    factors = set(preferences["factor"])
    seen = set()
    for step, log in enumerate(trainer.state.log_history[:10]):
        weight = 0.5 * min(max((step / 10 - 0.3) / 0.3, 0), 1)
        expected = (
            0.5 * log["loss/preference"]
            + 2 * log["loss/sft"]
            + 3 * log["loss/grounding"]
            + weight * log["loss/consistency"]
        )
        assert log["loss"] == pytest.approx(expected, rel=1e-4)
        assert log["grounding_logps/chosen"] < 0 and log["grounding_logps/rejected"] < 0
        for factor in factors:
            if f"margins/{factor}" in log:
                seen.add(factor)
                assert 0 <= log[f"accuracies/{factor}"] <= 1
    assert seen == factors


def test_margins_of_a_factor_are_those_of_its_pairs(tiny_dir, fpo_config):
    trainer = noise_trainer(tiny_dir, noise_config(fpo_config, grounding_coef=0.25))
    trainer.train()
    log = trainer.state.log_history[0]
    total = log["margins/add"] + log["margins/shift"] + 2 * log["margins/distort"]
    assert 0.1 * total / 4 == pytest.approx(log["rewards/margins"], rel=1e-4)
    assert log["accuracies/add"] == float(log["margins/add"] > 0)


def test_the_grounding_term_is_inside_log_pi(tiny_dir, fpo_config):
    """With 0 it is TRL's text log-probability; else log p_g times the coefficient is added."""
    logs = {}
    for grounding_coef in (0.0, 0.5):
        trainer = noise_trainer(tiny_dir, noise_config(fpo_config, grounding_coef=grounding_coef))
        trainer.train()
        logs[grounding_coef] = trainer.state.log_history[0]
    text, whole = logs[0.0], logs[0.5]
    for side in ("chosen", "rejected"):
        assert whole[f"grounding_logps/{side}"] == text[f"grounding_logps/{side}"] < 0
        expected = text[f"logps/{side}"] + 0.5 * text[f"grounding_logps/{side}"]
        assert whole[f"logps/{side}"] == pytest.approx(expected, rel=1e-5)
    assert whole["rewards/margins"] != text["rewards/margins"]
    assert whole["loss/sft"] == text["loss/sft"]  # the SFT term never has it


def test_preference_without_grounding_does_not_train_the_heads(tiny_dir, fpo_config):
    args = noise_config(fpo_config, grounding_coef=0.0, sft_coef=0.0, evidence_coef=0.0, consistency_coef=0.0)
    (gradients,) = train(noise_trainer(tiny_dir, args))
    assert not gradients["model.evi_head.1.weight"].any()
    assert gradients["model.language_model.layers.0.mlp.up_proj.weight"].any()


def test_prefix_sharing_changes_nothing_in_training(tiny_dir, fpo_config):
    steps = []
    for prefix_sharing in (True, False):
        args = noise_config(fpo_config, prefix_sharing=prefix_sharing, beta=1e-2)
        trainer = noise_trainer(tiny_dir, args)
        (gradients,) = train(trainer)
        steps.append((gradients, trainer.state.log_history[0]))
    (shared, shared_log), (plain, plain_log) = steps
    assert_same_gradients(shared, plain)
    for name, value in plain_log.items():
        assert shared_log[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("batch_size", [1, 2])
def test_accumulated_batches_equal_one_batch(tiny_dir, fpo_config, batch_size):
    steps = []
    for size in (4, batch_size):
        args = noise_config(
            fpo_config, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, consistency_coef=1.0,
            beta=1e-2,
        )  # fmt: skip
        trainer = noise_trainer(tiny_dir, args)
        (gradients,) = train(trainer)
        steps.append((gradients, trainer.state.log_history[0]["loss"]))
    (whole, loss), (accumulated, accumulated_loss) = steps
    assert accumulated_loss == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(accumulated, whole)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny_dir, fpo_config, use_reentrant):
    steps = []
    for settings in (
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}},
    ):
        args = noise_config(fpo_config, reference_free=False, precompute_ref_log_probs=True, **settings)
        steps += train(noise_trainer(tiny_dir, args))
    assert_same_gradients(steps[1], steps[0])


def test_a_batch_without_video(tiny_dir, fpo_config):
    trainer = noise_trainer(tiny_dir, noise_config(fpo_config, beta=1e-2), MIXED.select([3]))
    (gradients,) = train(trainer)
    log = trainer.state.log_history[0]
    assert log["loss/grounding"] == log["loss/consistency"] == log["grounding_logps/chosen"] == 0
    assert gradients["model.language_model.layers.0.mlp.up_proj.weight"].any()


def test_evaluation_reports_rewards(tiny_dir, preferences, fpo_config):
    trainer = FPOTrainer(
        str(tiny_dir), args=fpo_config(), train_dataset=preferences, eval_dataset=preferences.select(range(3))
    )
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/margins"] != 0 and metrics["eval_loss/sft"] > 0
    # A set that the trainer has not seen is checked like the others.
    assert trainer.evaluate(preferences.select([4]))["eval_loss"] != metrics["eval_loss"]


def test_the_wrapper_goes_on_once(tiny_dir, preferences, fpo_config, monkeypatch):
    """Twice would count the grounding term twice."""
    wrapped = []
    monkeypatch.setattr(
        "trl_temporal.trainer.fpo_trainer.add_evidence_head",
        lambda model, **kwargs: wrapped.append(model) or add_evidence_head(model, **kwargs),
    )
    args = fpo_config(reference_free=False, precompute_ref_log_probs=True)
    trainer = FPOTrainer(str(tiny_dir), args=args, train_dataset=preferences)
    assert wrapped == [trainer.model]
