# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""SFT and FPO of a Grounded-VideoDiT by the trainers of D2VLM: from mp4 files to gradients in every part."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.helpers import assert_same_gradients, train
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
from trl_temporal.data.errors import RowError
from trl_temporal.data.feature_cache import CachedVideo
from trl_temporal.data.feature_key import FeatureCacheError
from trl_temporal.evaluation import answering
from trl_temporal.evaluation.evaluator import GroundedEvaluator
from trl_temporal.evaluation.runner import evaluate_model
from trl_temporal.models.grounded_videodit import span_cross_entropy, span_log_prob
from trl_temporal.models.tiny import build_tiny_grounded_videodit
from trl_temporal.objects.collator import GroundedCollator
from trl_temporal.objects.frame_features import frame_feature_key
from trl_temporal.objects.frame_features_path import read_frames_of
from trl_temporal.objects.masks import pack_masks
from trl_temporal.trainer import frame_features
from trl_temporal.trainer.frame_features import find_bad_objects, open_frame_features
from trl_temporal.video import VideoError

HEADS = ["span", "evidence", "time_tokens"]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A saved random vision tower."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    path = tmp_path_factory.mktemp("tower")
    CLIPVisionModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def build(tower, event_world):
    """Makes a tiny random model and its processor."""
    texts = [row["prompt"][0]["content"][-1]["text"] for row in event_world["train"]]
    texts += [row["completion"][0]["content"][0]["text"] for row in event_world["train"]]

    def make(**kwargs):
        torch.manual_seed(0)
        settings = {"tokens_per_frame": 4, "dtl_config": {"width": 16, "num_layers": 2, "num_heads": 2}}
        settings |= {"use_kl": True, "grounding_head": HEADS, "num_frames": 8, "image_size": 32, **kwargs}
        clip = {"name": str(tower), "hidden_size": 16}
        sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
        return build_tiny_grounded_videodit(texts, clip, **sizes, **settings)

    return make


def with_objects(rows):
    """Rows with the columns of the object stage: two objects at random places."""

    def add(row, index):
        generator = np.random.default_rng(index)
        tracks = generator.random((2, 8, 16, 16)) > 0.7
        return {
            "object_nouns": ["disc", "cross"],
            "object_masks": pack_masks(tracks, tracks.any(0)),
            "object_boxes": generator.random((8, 2, 4)).tolist(),
            "object_scores": generator.random((8, 2)).tolist(),
            "object_order": [1, 0],
            "object_times_s": ((np.arange(8) + 0.5) / 8 * row["duration"]).tolist(),
        }

    return rows.map(add, with_indices=True)


@pytest.fixture(scope="module")
def grounded(event_world):
    """Rows with one span."""
    return with_objects(event_world["train"].filter(lambda row: row["task"] == "grounding" and len(row["spans"]) == 1))


@pytest.fixture
def sft(build, config, grounded, tmp_path):
    def make(model=None, processor=None, rows=grounded, **kwargs):
        if model is None:
            model, processor = build()
        peft_config = kwargs.pop("peft_config", None)
        args = config(EvidenceSFTConfig, **{"feature_cache": str(tmp_path / "features"), "kl_coef": 0.5, **kwargs})
        return EvidenceSFTTrainer(
            model=model, args=args, train_dataset=rows, processing_class=processor, peft_config=peft_config
        )

    return make


@pytest.mark.parametrize("head", HEADS)
def test_every_part_learns(sft, build, head):
    """TRL's fused head would train the language model alone."""
    trainer = sft(*build(grounding_head=[head], temporal_embedding="mlp"), max_steps=2)
    (gradients, *_) = train(trainer)
    parts = {"frame_projection", "time_embedding", "fusion", "object_tokens", "time_anchors", "feature_alignment"}
    parts |= {"language_model", "denoiser"}
    parts |= {"span": {"span_head"}, "evidence": {"evidence_head"}, "time_tokens": set()}[head]
    moved = {name.split(".")[1] for name, value in gradients.items() if value.abs().sum() > 0}
    assert moved - {"weight"} >= parts
    logged = trainer.state.log_history[0]
    assert (logged["loss/span"] > 0) == (head == "span") and logged["loss/kl"] > 0
    assert (logged["loss/grounding"] > 0) == (head == "evidence")


def test_the_loss_is_what_the_model_says(sft, build):
    """Language, start and end, evidence and KL, by hand from the model's own output."""
    model, processor = build(grounding_head=["span", "evidence"])
    trainer = sft(model, processor, consistency_coef=0.0, evidence_coef=0.0, span_coef=2.0)
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset.select(range(2))])
    inputs = {name: value for name, value in batch.items() if not name.startswith(("span_", "evidence_"))}
    model.eval()
    output = model.__class__.forward(model, **inputs)
    span = span_cross_entropy(output.start_logits, output.end_logits, batch["span_frames"]).sum(-1).mean()
    expected = output.loss + 2 * span + 0.5 * output.kl_divergence[batch["video_index"]].mean()
    with torch.no_grad():
        actual = trainer.compute_loss(model, batch)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_a_batch_split_over_steps_has_the_same_gradient(sft, build):
    whole = train(sft(*build(), per_device_train_batch_size=4))
    parts = train(sft(*build(), per_device_train_batch_size=2, gradient_accumulation_steps=2))
    assert_same_gradients(parts[0], whole[0], tolerance=1e-4)


def test_features_are_made_once(sft, build, monkeypatch):
    calls = []
    forward = CLIPVisionModel.forward
    monkeypatch.setattr(
        CLIPVisionModel, "forward", lambda self, *args, **kwargs: calls.append(1) or forward(self, *args, **kwargs)
    )
    model, processor = build()
    sft(model, processor).train()
    made = len(calls)
    assert made > 0
    sft(*build()).train()
    assert len(calls) == made


def test_stored_features_need_no_encoders(sft, build, grounded, tmp_path, monkeypatch):
    """Nor diffusers; but all of them have to be there."""
    sft(*build(), rows=grounded.select(range(2))).train()

    def load(*args, **kwargs):
        raise ImportError("needs diffusers")

    warned = []
    monkeypatch.setattr(frame_features.logger, "warning", warned.append)
    monkeypatch.setattr(frame_features, "load_frame_encoder", load)
    monkeypatch.setattr(answering, "load_frame_encoder", load)
    trainer = sft(*build(), rows=grounded.select(range(2)))
    trainer.train()
    settings = {"output_dir": tmp_path / "run", "max_new_tokens": 2, "progress": False}
    settings |= {"processor": trainer.processing_class, "feature_cache": trainer.args.feature_cache}
    rows = [{**row, "task": "grounding"} for row in grounded.select(range(2))]
    assert evaluate_model(trainer.model, "rows", rows, **settings).metrics["grounding_R1@0.3"] >= 0
    assert "cannot be loaded" in warned[0] and "needs diffusers" in warned[0]
    others = grounded.select([0]).map(lambda row: {"videos": [{**row["videos"][0], "end_s": 9.0}], "duration": None})
    others = others.map(lambda row: {"spans": [[1.0, 2.0]], "all_spans": None})
    with pytest.raises(FeatureCacheError, match="has no features of its video, and .* needs diffusers"):
        sft(*build(), rows=others)
    with pytest.raises(ImportError, match="needs diffusers"):
        sft(*build(), feature_cache=None)


def test_row_30_with_a_lora(sft, build):
    """Exactly the parts of the reading train, and the denoiser stays."""
    model, processor = build(temporal_embedding="mlp")
    parts, first = model.trained_parts, model.config.time_token_start_id
    lora = LoraConfig(
        r=4,
        target_modules=r"model\.language_model.*\.(q_proj|v_proj)",
        modules_to_save=parts,
        trainable_token_indices={"embed_tokens": list(range(first, first + 61))},
    )
    trainer = sft(model, processor, peft_config=lora, max_steps=1)
    gradients = train(trainer)[0]
    assert not any("denoiser" in name for name in gradients)
    for kind in (*parts, "lora_B", "trainable_tokens_delta"):
        assert any(kind in name and value.abs().sum() > 0 for name, value in gradients.items()), kind


def preference(row):
    """A pair whose rejected span is the last quarter of the video, or the first one of a late event."""
    length_s = row["duration"]
    moved = [0.0, length_s / 4] if row["spans"][0][0] > length_s / 2 else [length_s * 3 / 4, length_s]
    return {
        "chosen": row["completion"],
        "rejected": row["completion"],
        "chosen_spans": row["spans"],
        "rejected_spans": [moved],
        "factor": "shift",
    }


@pytest.fixture
def fpo(build, config, grounded, tmp_path):
    rows = grounded.map(preference, remove_columns=["completion", "spans"])

    def make(model, processor, **kwargs):
        args = config(FPOConfig, feature_cache=str(tmp_path / "features"), **kwargs)
        return FPOTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)

    return make


@pytest.mark.parametrize("head", HEADS)
def test_fpo_prefers_the_right_span(fpo, build, head):
    """The two responses of a pair say the same, but for the span."""
    model, processor = build(grounding_head=[head])
    trainer = fpo(model, processor, max_steps=30, learning_rate=3e-3, sft_coef=0.0, evidence_coef=0.0, span_coef=0.0)
    trainer.train()
    margins = [log["margins/shift"] for log in trainer.state.log_history if "margins/shift" in log]
    assert np.mean(margins[-5:]) > np.mean(margins[:3]) + 1


def test_log_pi_has_the_span(fpo, build):
    model, processor = build(grounding_head=["span"])
    trainer = fpo(model, processor, grounding_coef=2.0)
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset.select(range(2))])
    model.eval()
    with torch.no_grad():
        trainer.compute_loss(model, dict(batch))
        inputs = {
            name: value for name, value in batch.items() if not name.startswith(("span_", "factor", "completion"))
        }
        output = model.__class__.forward(model, **inputs)
        expected = span_log_prob(output.start_logits, output.end_logits, batch["span_frames"]).sum(-1)
    half = len(expected) // 2
    metrics = trainer._metrics["eval"]
    assert metrics["grounding_logps/chosen"] == [pytest.approx(expected[:half].mean().item(), abs=1e-4)]
    assert metrics["grounding_logps/rejected"] == [pytest.approx(expected[half:].mean().item(), abs=1e-4)]
    # The words are the same, so that the margin is the span's alone.
    margin = 2 * (expected[:half] - expected[half:])
    assert metrics["margins/shift"] == pytest.approx(margin.tolist(), abs=1e-3)


@pytest.mark.parametrize("precompute", [False, True])
def test_rewards_are_zero_before_the_first_step(fpo, build, precompute, tmp_path):
    model, processor = build(grounding_head=["span"])
    model.save_pretrained(tmp_path / "model")
    settings = {"reference_free": False, "precompute_ref_log_probs": precompute, "per_device_train_batch_size": 1}
    trainer = fpo(str(tmp_path / "model"), processor, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(trainer.state.log_history[0]["grounding_logps/chosen"]) > 0.1


def test_responses_of_each_head(build, grounded):
    """`<evi>`, or ranges of time tokens in their place; the evidence head keeps its stage."""
    row = dict(grounded[0])
    start_s, end_s = row["spans"][0]
    first, last = (round(time_s / row["duration"] * 60) for time_s in (start_s, end_s))
    wanted = {
        ("span",): "<evi> </evi> It happens in <evi>.",
        ("time_tokens", "span"): f"It happens in <{first}>--<{last}>.",
        ("evidence", "time_tokens"): f"<evi> </evi> It happens in <{first}>--<{last}>.",
    }
    for heads, text in wanted.items():
        _, processor = build(grounding_head=list(heads))
        length_s = row["duration"]
        video = CachedVideo(torch.zeros(1, 32, 16), {}, "", (np.arange(8) + 0.5) / 8 * length_s, length_s, 8, "a.mp4")
        batch = GroundedCollator(processor, lambda row, video=video: video)([row])
        shown = processor.tokenizer.decode(batch["input_ids"][0][batch["labels"][0] != -100])
        assert (
            shown.replace("<evi>", " <evi>").replace("</evi>", " </evi>").replace("  ", " ").strip()
            == text + "<|end|>"
        )
        if "time_tokens" in heads:
            assert batch["span_mask"].sum() == 2
        if "evidence" in heads:
            assert batch["evidence_stage"].tolist() == [[2]]


def test_bad_rows(build, grounded):
    _, processor = build()
    row = dict(grounded[0])
    length_s = row["duration"]
    video = CachedVideo(torch.zeros(1, 32, 16), {}, "", (np.arange(8) + 0.5) / 8 * length_s, length_s, 8, "a.mp4")
    collate = GroundedCollator(processor, lambda row: video)
    with pytest.raises(RowError, match="has 0 videos"):
        prompt = [{"role": "user", "content": "When?"}]
        collate(
            [
                {
                    **row,
                    "videos": [],
                    "prompt": prompt,
                    "spans": [],
                    "completion": [{"role": "assistant", "content": "</evi> No."}],
                }
            ]
        )
    with pytest.raises(RowError, match="exceed max_length=10"):
        GroundedCollator(processor, lambda row: video, max_length=10)([row])
    with pytest.raises(RowError, match="more than a frame behind the end"):
        collate([{**row, "spans": [[0.0, length_s * 1.2]], "duration": None}])
    with pytest.raises(RowError, match="'object_times_s' has 3 times"):
        collate([{**row, "object_times_s": [0.0, 1.0, 2.0]}])


def test_answers_of_the_trained_model(sft, build, grounded, tmp_path):
    """What is read from the cache, and what is made of the videos, is answered and scored alike; so by the runner."""
    model, processor = build(grounding_head=["span"])
    trainer = sft(model, processor)
    rows = [dict(row) for row in grounded]
    for row in rows:
        row["task"] = "grounding"
    settings = {"batch_size": 2, "max_new_tokens": 4, "progress": False}
    stored = GroundedEvaluator(rows, processor, read_features=trainer.data_collator.read_features, **settings)(model)
    live = GroundedEvaluator(rows, processor, **settings)(model)
    assert [answer.evidence for answer in stored.answers] == [answer.evidence for answer in live.answers]
    assert all(len(answer.evidence) == 1 and answer.salience.shape == (1, 8) for answer in stored.answers)
    run = evaluate_model(
        model,
        "rows",
        rows,
        processor=processor,
        output_dir=tmp_path / "run",
        max_new_tokens=4,
        progress=False,
        feature_cache=tmp_path / "features",
    )
    assert run.metrics["grounding_R1@0.3"] >= 0
    assert run.settings["grounding_head"] == ["span"]


def test_all_splits_are_encoded_at_once(build, grounded, tmp_path, monkeypatch):
    """One of them has no video; the weights of the encoder are read once."""
    hashed = []
    monkeypatch.setattr(
        "trl_temporal.objects.frame_features.frame_feature_key",
        lambda *args, **kwargs: hashed.append(1) or frame_feature_key(*args, **kwargs),
    )
    model, processor = build()
    text = grounded.select([0]).map(lambda row: {"videos": []}, features=grounded.features)
    splits = [grounded.select([0, 1]), text, grounded.select([2])]
    reader = open_frame_features(
        model, read_frames_of(processor), tmp_path, splits, Accelerator(cpu=True), progress=False
    )
    assert len(hashed) == 1
    assert all(grounded[index] in reader for index in range(3))
    with pytest.raises(ValueError, match="no video to encode"):
        open_frame_features(model, read_frames_of(processor), tmp_path, [text], Accelerator(cpu=True), progress=False)


def test_a_bad_video_of_one_process_ends_the_others(build, grounded, tmp_path, monkeypatch):
    """They learn of it and raise its words, where they would wait for its features for ever."""
    model, processor = build()
    read_video, accelerator = read_frames_of(processor), Accelerator(cpu=True)
    shown = []
    monkeypatch.setattr(frame_features, "share_error", lambda _, error: shown.append(error) or 1 / 0)
    monkeypatch.setattr(accelerator, "reduce", lambda number, reduction: number + 1)  # of another process
    with pytest.raises(ZeroDivisionError):
        open_frame_features(model, read_video, tmp_path, [grounded], accelerator, progress=False)
    missing = grounded.select([0]).map(lambda row: {"videos": [{**row["videos"][0], "path": "missing.mp4"}]})
    with pytest.raises(ZeroDivisionError):
        open_frame_features(model, read_video, tmp_path, [missing], accelerator, progress=False)
    assert shown[0] is None and isinstance(shown[1], VideoError) and "missing.mp4" in str(shown[1])


def test_bad_rows_are_left_out_with_skip(sft, build, grounded, tmp_path):
    missing = {"videos": [{**grounded[0]["videos"][0], "path": "missing.mp4"}]}
    rows = grounded.select(range(4)).map(lambda row, index: missing if index == 2 else {}, with_indices=True)
    with pytest.raises(VideoError, match=rf"{rows[2]['id']}.*missing.mp4"):
        sft(*build(), rows=rows)
    trainer = sft(*build(), rows=rows, on_bad_sample="skip")
    assert trainer.train_dataset["id"][:] == [rows[index]["id"] for index in (0, 1, 3)]
    listed = Path(trainer.args.output_dir, "skipped_train.jsonl").read_text()
    assert rows[2]["id"] in listed and "missing.mp4" in listed
    trainer.train()


def test_damaged_masks_are_found(grounded, sft, build):
    def damage(row, index):
        masks = row["object_masks"]
        return {"object_masks": {**masks, "union": masks["union"][:-1]} if index == 1 else masks}

    assert list(find_bad_objects(grounded.remove_columns("object_masks"))) == []
    damaged = grounded.map(damage, with_indices=True)
    ((index, error),) = find_bad_objects(damaged)
    assert index == 1 and "masks of 7 frames" in str(error)
    trainer = sft(*build(), rows=damaged, on_bad_sample="skip")
    assert grounded[1]["id"] not in trainer.train_dataset["id"] and len(trainer.train_dataset) == len(grounded) - 1
    assert "masks of 7 frames" in Path(trainer.args.output_dir, "skipped_train.jsonl").read_text()


def test_a_short_video_shows_all_its_frames(build, grounded, sft, tmp_path):
    """96 frames are asked of a video that has fewer; its batch is padded."""
    model, processor = build(num_frames=2000)
    row = grounded[0]
    cut = [{**row["videos"][0], "end_s": 0.9 * row["duration"]}]
    shorter = {"videos": cut, "duration": 0.9 * row["duration"]}
    rows = grounded.map(lambda row, index: shorter if index == 1 else {}, with_indices=True)
    rows = rows.select([0, 1]).map(lambda row: {"spans": [[0.0, 1.0]]})
    rows = rows.remove_columns([name for name in rows.column_names if name.startswith(("object_", "all_"))])
    trainer = sft(model, processor, rows=rows)
    counts = trainer.data_collator([dict(row) for row in trainer.train_dataset])["frame_mask"].sum(1).tolist()
    whole = round(row["duration"] * 8)
    assert counts == [pytest.approx(whole, abs=1), pytest.approx(0.9 * whole, abs=2)] and counts[1] < counts[0]
    trainer.train()
    rows = [dict(row, task="grounding") for row in rows]
    settings = {"max_new_tokens": 2, "progress": False}
    run = evaluate_model(model, "rows", rows, processor=processor, output_dir=tmp_path / "run", **settings)
    assert run.metrics["grounding_R1@0.3"] >= 0


def test_what_is_for_a_d2vlm(sft, fpo, build):
    for make in (sft, fpo):
        with pytest.raises(ValueError, match="`release_quirks=True` is for a D2VLM"):
            make(*build(), release_quirks=True)
    settings = [{}, {"evidence_coef": 5.0, "consistency_coef": 5.0, "grounding_target": "soft"}]
    logs = [train(sft(*build(grounding_head=["span"]), **each)) for each in settings]
    assert_same_gradients(logs[0][0], logs[1][0], tolerance=1e-6)  # there is no evidence to weight


def test_a_stream_is_refused(sft, build, grounded):
    with pytest.raises(ValueError, match="The rows are a stream.*without streaming"):
        sft(*build(), rows=grounded.to_iterable_dataset())


def test_a_collator_that_leaves_the_videos_out_is_refused(build, config, grounded):
    model, processor = build()
    tokenizer = processor.tokenizer

    def blind(rows):
        ids = torch.tensor([tokenizer("It happens")["input_ids"]] * len(rows))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    trainer = EvidenceSFTTrainer(
        model, args=config(EvidenceSFTConfig), data_collator=blind, train_dataset=grounded, processing_class=processor
    )
    with pytest.raises(RuntimeError, match="the model would train blind"):
        trainer.train()


def test_a_step_in_half_precision(sft, fpo, build):
    for make in (sft, fpo):
        trainer = make(*build(temporal_embedding="mlp"), bf16=True)
        trainer.train()
        assert np.isfinite(trainer.state.log_history[0]["loss"])
        assert trainer.state.log_history[0]["grad_norm"] > 0
