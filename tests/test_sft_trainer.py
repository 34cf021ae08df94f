# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Evidence SFT with TRL's trainer on real files."""

import pytest
import torch
from datasets import Dataset

from tests.helpers import MIXED_ROWS, assert_same_gradients, noise_video, train
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, generate_answers
from trl_temporal.data.collator import SPAN_UNIT, EvidenceCollator
from trl_temporal.losses import consistency_l1, grounding_bce, soft_targets

MIXED = Dataset.from_list(MIXED_ROWS)


def noise_trainer(tiny, args, rows=MIXED, **kwargs):
    """A trainer on noise, which needs no file: for gradients."""
    model, processor = tiny
    trainer = EvidenceSFTTrainer(
        model,
        args,
        data_collator=EvidenceCollator(processor, noise_video, soft_targets=args.grounding_target == "soft"),
        train_dataset=rows,
        processing_class=processor,
        **kwargs,
    )
    return trainer


@pytest.fixture
def sft_config(config):
    def make(**kwargs):
        return config(EvidenceSFTConfig, **kwargs)

    return make


def noise_config(sft_config, **kwargs):
    # The videos of noise are no files: they are not read ahead.
    return sft_config(**{"cache_frames": False, "consistency_ramp_start": 0.0, "consistency_ramp_end": 0.0, **kwargs})


def test_the_vision_tower_is_called_in_every_step(tiny_dir, event_world, sft_config):
    trainer = EvidenceSFTTrainer(str(tiny_dir), sft_config(max_steps=2), train_dataset=event_world["train"])
    calls = []
    trainer.model.model.vision_tower.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    gradients = train(trainer)
    # Rows of one video meet in a batch, and it is encoded once.
    assert [shape[0] for shape in calls] == [1, 1]
    assert all(shape[1] > 30 and shape[2:] == (3, 16, 16) for shape in calls)
    assert all(step["model.vision_tower.convs.0.0.weight"].abs().max() > 0 for step in gradients)


def test_another_video_gives_another_loss(tiny_dir, event_world, sft_config):
    """The same question and answer about two files."""
    row = event_world["train"][1]
    spans = [[1.0, 2.0]] * len(row["spans"])
    losses = []
    for other in (0, 4, 0):
        shown = {**row, "videos": event_world["train"][other]["videos"], "spans": spans, "duration": None}
        rows = Dataset.from_list([shown], features=event_world["train"].features)
        trainer = EvidenceSFTTrainer(str(tiny_dir), sft_config(), train_dataset=rows)
        trainer.train()
        losses.append({name: trainer.state.log_history[0][name] for name in ("loss/sft", "loss/grounding")})
    assert losses[0] == losses[2]
    assert all(abs(losses[0][name] - losses[1][name]) > 1e-4 for name in losses[0])


def test_every_component_is_logged_and_adds_up(tiny_dir, event_world, sft_config):
    args = sft_config(
        max_steps=10, gradient_accumulation_steps=2, evidence_coef=2.0, consistency_coef=0.5, learning_rate=0.0
    )
    trainer = EvidenceSFTTrainer(str(tiny_dir), args, train_dataset=event_world["train"])
    trainer.train()
    logs = trainer.state.log_history[:10]
    for step, log in enumerate(logs):
        # Weight 0 up to 30 % of training, then linear up to 60 %.
        weight = 0.5 * min(max((step / 10 - 0.3) / 0.3, 0), 1)
        expected = log["loss/sft"] + 2 * log["loss/grounding"] + weight * log["loss/consistency"]
        assert log["loss"] == pytest.approx(expected, rel=1e-4)
        assert log["loss/consistency"] > 0
        assert {"mean_token_accuracy", "entropy", "num_tokens", "grad_norm"} <= log.keys()


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_the_evidence_losses_are_those_of_the_model(tiny, sft_config, target):
    args = noise_config(sft_config, per_device_train_batch_size=4, grounding_target=target, learning_rate=0.0)
    trainer = noise_trainer(tiny, args)
    trainer.train()
    log = trainer.state.log_history[0]
    model, batch = tiny[0].eval(), trainer.data_collator(list(MIXED))
    spans = batch.pop("evidence_spans", None)
    with torch.no_grad():
        output = model(**batch)
    stage, frames = batch["evidence_stage"], batch["evidence_frame_mask"]
    grounding = grounding_bce(
        output.evidence_logits,
        frames if spans is None else soft_targets(spans / SPAN_UNIT, frames.shape[-1]),
        output.evidence_mask,
        output.frame_mask,
    )
    consistency = consistency_l1(output.evidence_queries, stage == 2, stage == 3, frames)
    # Means over the two rows that have evidence.
    assert log["loss/sft"] == pytest.approx(output.loss.item(), rel=1e-4)
    assert log["loss/grounding"] == pytest.approx(grounding.sum().item() / 2, rel=1e-4)
    assert log["loss/consistency"] == pytest.approx(consistency.sum().item() / 2, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_accumulated_batches_equal_one_batch(tiny_dir, sft_config, batch_size):
    """The rows differ in tokens, events and video, so that a mean of means would be another number."""
    from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor

    steps = []
    for size in (4, batch_size):
        tiny = D2VLMForConditionalGeneration.from_pretrained(tiny_dir), D2VLMProcessor.from_pretrained(tiny_dir)
        args = noise_config(
            sft_config, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, consistency_coef=1.0
        )
        trainer = noise_trainer(tiny, args)
        (gradients,) = train(trainer)
        steps.append((gradients, trainer.state.log_history[0]["loss"]))
    (whole, loss), (accumulated, accumulated_loss) = steps
    assert accumulated_loss == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(accumulated, whole)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny_dir, sft_config, use_reentrant):
    from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor

    steps = []
    for settings in (
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}},
    ):
        tiny = D2VLMForConditionalGeneration.from_pretrained(tiny_dir), D2VLMProcessor.from_pretrained(tiny_dir)
        args = noise_config(sft_config, per_device_train_batch_size=4, consistency_coef=1.0, **settings)
        steps += train(noise_trainer(tiny, args))
    assert_same_gradients(steps[1], steps[0])


@pytest.mark.parametrize("freeze_vision_tower", [False, True])
def test_every_parameter_is_trained_but_a_frozen_tower(tiny, sft_config, freeze_vision_tower):
    args = noise_config(sft_config, per_device_train_batch_size=4, freeze_vision_tower=freeze_vision_tower)
    (gradients,) = train(noise_trainer(tiny, args))
    idle = {name for name, _ in tiny[0].named_parameters() if name not in gradients or not gradients[name].any()}
    tower = {name for name, _ in tiny[0].named_parameters() if name.startswith("model.vision_tower.")}
    assert idle == (tower if freeze_vision_tower else set())


@pytest.mark.parametrize("rows", [[2], [3], [2, 3]], ids=["no-evidence", "no-video", "both"])
def test_batches_without_any_evidence(tiny, sft_config, rows):
    trainer = noise_trainer(tiny, noise_config(sft_config), MIXED.select(rows))
    (gradients,) = train(trainer)
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(log["loss/sft"], rel=1e-5)
    assert log["loss/grounding"] == log["loss/consistency"] == 0
    assert gradients["model.language_model.layers.0.mlp.up_proj.weight"].any()


def test_evaluation_has_its_own_counts(tiny_dir, event_world, sft_config):
    trainer = EvidenceSFTTrainer(
        str(tiny_dir), sft_config(), train_dataset=event_world["train"], eval_dataset=event_world["validation"]
    )
    before = trainer.evaluate()
    assert before["eval_loss"] > 0 and before["eval_loss/grounding"] > 0
    trainer.train()
    assert trainer.evaluate()["eval_loss"] != before["eval_loss"]


def test_a_trained_model_still_generates(tiny_dir, event_world, sft_config, read_video):
    """TRL patches `forward` on the instance, and the trainer switches the cache off for training."""
    trainer = EvidenceSFTTrainer(
        str(tiny_dir), sft_config(gradient_checkpointing=True), train_dataset=event_world["train"]
    )
    trainer.train()
    rows = event_world["validation"].select(range(2))
    arguments = {"max_new_tokens": 4, "read_video": read_video, "progress": False}
    answers = generate_answers(trainer.model, trainer.processing_class, rows, **arguments)
    trainer.save_model()
    reloaded = type(trainer.model).from_pretrained(trainer.args.output_dir)
    again = generate_answers(reloaded, trainer.processing_class, rows, **arguments)
    assert [answer.text for answer in again] == [answer.text for answer in answers]


def test_learning_by_heart(tiny_dir, event_world, sft_config):
    """The loss of one row goes down, every part of it."""
    row = event_world["train"].select([1])
    args = sft_config(max_steps=30, max_grad_norm=1.0, consistency_ramp_end=0.3)
    trainer = EvidenceSFTTrainer(str(tiny_dir), args, train_dataset=row)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[29]
    assert last["loss/sft"] < 0.5 * first["loss/sft"]
    assert last["loss/grounding"] < 0.8 * first["loss/grounding"]


@pytest.mark.parametrize("freeze", [True, False])
def test_the_vision_tower_trains_only_when_asked(tiny_dir, event_world, config, freeze):
    args = config(EvidenceSFTConfig, freeze_vision_tower=freeze)
    trainer = EvidenceSFTTrainer(str(tiny_dir), args=args, train_dataset=event_world["train"])
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("language_model" in name for name in changed)
    assert any("vision_tower" in name for name in changed) is not freeze


def test_the_model_card_shows_a_video_to_the_model(tiny_dir, event_world, config, tmp_path):
    trainer = EvidenceSFTTrainer(str(tiny_dir), args=config(EvidenceSFTConfig), train_dataset=event_world["train"])
    trainer.create_model_card(model_name="grounded")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "generate_answers" in card and '"videos"' in card and "2512.24097" in card
    assert "time machine" not in card and "[None]" not in card
