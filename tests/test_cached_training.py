# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Training and answering from cached features, against the same from videos: real mp4 files, real processors."""

import pytest
import torch
from datasets import Dataset

from tests.families import FAMILIES, build
from tests.helpers import assert_same_gradients, train, user
from tests.test_backbones import count_calls, evidence_model
from trl_temporal import (
    D2VLMForConditionalGeneration,
    D2VLMProcessor,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    FPOConfig,
    FPOTrainer,
)
from trl_temporal.data.feature_cache import FeatureCache, FeatureCacheError
from trl_temporal.data.feature_cache_build import build_feature_cache
from trl_temporal.data.feature_key import feature_key
from trl_temporal.data.frame_cache import FrameCache, processor_sampling
from trl_temporal.evaluation.answering import Answering
from trl_temporal.evaluation.generation import generate_answers
from trl_temporal.trainer.shared_videos import vision_tower

NO_EVIDENCE = {"evidence_coef": 0.0, "consistency_coef": 0.0}
SETTINGS = {"num_frames": 6, "freeze_vision_tower": True, "per_device_train_batch_size": 4}


def model_of(kind: str, tiny_dir=None):
    if kind == "d2vlm":
        model = D2VLMForConditionalGeneration.from_pretrained(tiny_dir, dtype=torch.float32)
        return model, D2VLMProcessor.from_pretrained(tiny_dir)
    family, evidence = kind.split("/")
    return evidence_model(family) if evidence == "evidence" else build(family)


def reader(model, processor) -> FrameCache:
    if model.config.model_type == "d2vlm":
        return FrameCache(None, **processor_sampling(processor))
    return FrameCache(None, num_frames=6, size=None)


KINDS = ["d2vlm", *(f"{family}/{kind}" for family in FAMILIES for kind in ("evidence", "plain"))]


@pytest.mark.parametrize("kind", KINDS)
def test_preference_training_from_features_equals_that_from_videos(kind, tiny_dir, preferences, config, tmp_path):
    """Loss and gradients, and no video goes through a tower: of neither policy nor reference."""
    model, processor = model_of(kind, tiny_dir)
    processor.num_frames = 6
    if kind == "d2vlm":
        processor.fps = None
    build_feature_cache(preferences, tmp_path / "features", model, processor, reader(model, processor), progress=False)
    rows = preferences.select(range(4))
    plain = {"grounding_coef": 0.0} if kind.endswith("plain") else {}
    found = []
    for feature_cache in (None, str(tmp_path / "features")):
        args = config(FPOConfig, **SETTINGS, **plain, feature_cache=feature_cache, reference_free=False)
        args.frame_cache_dir = str(tmp_path / "frames")
        model, processor = model_of(kind, tiny_dir)
        reference = model_of(kind, tiny_dir)[0]
        trainer = FPOTrainer(model, reference, args=args, train_dataset=rows, processing_class=processor)
        calls = [count_calls(vision_tower(part)) for part in (trainer.model, trainer.ref_model)]
        (gradients,) = train(trainer)
        found.append((trainer.state.log_history[0], gradients))
        assert [len(seen) for seen in calls] == ([1, 0] if feature_cache is None else [0, 0])
    (videos, expected), (features, gradients) = found
    for name in ("loss", "logps/chosen", "logps/rejected"):
        assert features[name] == pytest.approx(videos[name], rel=1e-5, abs=1e-5), name
    assert features["rewards/chosen"] == 0
    assert_same_gradients(gradients, expected, tolerance=5e-5)


@pytest.mark.parametrize("kind", ["qwen3_vl/evidence", "smolvlm/plain"])
def test_fine_tuning_from_features_equals_that_from_videos(kind, event_world, config, tmp_path):
    model, processor = model_of(kind)
    processor.num_frames = 6
    rows = event_world["train"].select(range(4))
    build_feature_cache(rows, tmp_path / "features", model, processor, reader(model, processor), progress=False)
    plain = NO_EVIDENCE if kind.endswith("plain") else {}
    losses = []
    for feature_cache in (None, str(tmp_path / "features")):
        args = config(EvidenceSFTConfig, **SETTINGS, **plain, feature_cache=feature_cache, cache_frames=False)
        model, processor = model_of(kind)
        trainer = EvidenceSFTTrainer(model, args=args, train_dataset=rows, processing_class=processor)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["d2vlm", "qwen2_5_vl/evidence"])
def test_answers_from_features_are_those_from_videos(kind, tiny_dir, event_world, tmp_path):
    model, processor = model_of(kind, tiny_dir)
    rows = [dict(row) for row in event_world["test"]]
    read_video = reader(model, processor)
    build_feature_cache(rows, tmp_path, model, processor, read_video, progress=False)
    cache = FeatureCache.open(tmp_path, feature_key(model, processor, read_video.sampling))
    expected = generate_answers(model, processor, rows, max_new_tokens=6, read_video=read_video, progress=False)
    calls = count_calls(vision_tower(model))
    found = generate_answers(model, processor, rows, max_new_tokens=6, read_video=cache.get, progress=False)
    assert not calls
    for answer, other in zip(found, expected, strict=True):
        assert (answer.text, answer.evidence, answer.response) == (other.text, other.evidence, other.response)
        assert answer.timestamps_s.tolist() == other.timestamps_s.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_model_answers_from_features_as_from_videos(family, event_world, tmp_path):
    """As the evaluation asks it: with text-only rows and rows that share a video in a batch."""
    model, processor = build(family)
    rows = [dict(row) for row in event_world["test"]]
    rows.append({**rows[0], "id": "text", "videos": [], "prompt": user("Hello!", video=False), "prompt_spans": None})
    build_feature_cache(rows, tmp_path, model, processor, reader(model, processor), progress=False)
    settings = {"num_frames": 6, "batch_size": 5, "max_new_tokens": 6}
    expected = Answering(model, processor, **settings)(rows)
    calls = count_calls(vision_tower(model))
    answers = Answering(model, processor, feature_cache=str(tmp_path), **settings)(rows)
    assert not calls and len({answer.text for answer in answers}) > 2
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.text, answer.timestamps_s) == (other.text, other.timestamps_s)


def test_what_does_not_belong_to_the_features_is_refused(preferences, config, tmp_path):
    model, processor = build("qwen3_vl")
    rows = preferences.select(range(2))
    build_feature_cache(rows, tmp_path, model, processor, reader(model, processor), progress=False)

    def start(rows=rows, **settings):
        model, processor = build("qwen3_vl")
        settings = {
            **SETTINGS,
            "grounding_coef": 0.0,
            "feature_cache": str(tmp_path),
            "cache_frames": False,
        } | settings
        if "change" in settings:
            settings.pop("change")(model)
        args = config(FPOConfig, **settings)
        return FPOTrainer(model, args=args, train_dataset=rows, processing_class=processor)

    start()
    with pytest.raises(FeatureCacheError, match="num_frames 6 != 4"):
        start(num_frames=4)
    with pytest.raises(FeatureCacheError, match="require gradients"):
        start(freeze_vision_tower=False)

    def shift(model):
        with torch.no_grad():
            next(vision_tower(model).parameters()).add_(1e-3)

    with pytest.raises(FeatureCacheError, match="weights of the vision tower"):
        start(change=shift)
    other = [dict(row) for row in preferences][-1]
    with pytest.raises(FeatureCacheError, match="row 2 of the train dataset.*cache build"):
        start(rows=Dataset.from_list([*rows, other]))
