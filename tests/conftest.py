# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Shared fixtures: a small EventWorld of real mp4 files and a tiny random model. No network, no GPU."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the examples and recipes are scripts, not part of the package

from tests.torchvision_shim import load_torchvision  # noqa: E402

load_torchvision()  # before transformers, which looks for torchvision once
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real clips, where they are."""
    path = Path(os.environ.get("TRL_TEMPORAL_REALDATA", ROOT.parent / "shared" / "realdata"))
    if not path.is_dir():
        pytest.skip("real clips not found: set TRL_TEMPORAL_REALDATA")
    return path


@pytest.fixture(scope="session")
def event_world(tmp_path_factory):
    """Three training, one validation and one test video with their rows."""
    from trl_temporal.data.event_world import build_event_world

    return build_event_world(
        tmp_path_factory.mktemp("event_world"), num_train=3, num_validation=1, num_test=1, progress=False
    )


@pytest.fixture(scope="session")
def preferences(event_world):
    """One preference pair for each training row that admits one."""
    from trl_temporal.synthesis.preference import make_preferences

    return make_preferences(event_world["train"], seed=0)


def spread_out(model):
    """Random weights that attend, so that a wrong mask is noticed, and similarities that differ between frames."""
    model = model.model
    for std, modules in ((0.15, model.language_model.layers), (0.35, (model.evi_head, model.frame_head))):
        for module in modules:
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    torch.nn.init.normal_(parameter, std=std)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, event_world) -> Path:
    """A saved tiny D2VLM with random weights."""
    from trl_temporal.models.tiny import build_tiny_d2vlm

    torch.manual_seed(0)
    texts = [row["prompt"][0]["content"][-1]["text"] for row in event_world["train"]]
    texts += [row["completion"][0]["content"][0]["text"] for row in event_world["train"]]
    model, processor = build_tiny_d2vlm(texts, vocab_size=320, hidden_size=32, num_hidden_layers=3, image_size=16)
    spread_out(model)
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def tiny(tiny_dir):
    """A fresh copy of the tiny model, and its processor."""
    from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor

    return (
        D2VLMForConditionalGeneration.from_pretrained(tiny_dir, dtype=torch.float32),
        D2VLMProcessor.from_pretrained(tiny_dir),
    )


@pytest.fixture
def native(tiny):
    """A tiny D2VLM on the paper's backbone: BLIP-2's vision tower, a Q-Former that reads the question, and Phi-3."""
    from transformers import Blip2VisionConfig, InstructBlipQFormerConfig, Phi3Config

    from trl_temporal import D2VLMConfig, D2VLMForConditionalGeneration
    from trl_temporal.models.tiny import train_tokenizer

    processor = tiny[1]
    processor.qformer_tokenizer = train_tokenizer(["When? What blinks?"], vocab_size=280)
    torch.manual_seed(0)
    config = D2VLMConfig(
        text_config=Phi3Config(
            vocab_size=len(processor.tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=processor.tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=processor.tokenizer.eos_token_id,
            sliding_window=4,
        ),
        vision_config=Blip2VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=280, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
        ),
        num_query_tokens=3,
        video_token_id=processor.video_token_id,
        evidence_token_id=processor.evidence_token_id,
        evidence_end_token_id=processor.evidence_end_token_id,
        capture_layer=1,
    )
    model = D2VLMForConditionalGeneration(config)
    spread_out(model)
    for parameter in model.model.compressor.parameters():  # else next to nothing of the question gets through it
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model, processor


@pytest.fixture
def read_video(tiny, tmp_path_factory):
    """Reader of videos with the tiny processor's sampling."""
    from trl_temporal.data.frame_cache import FrameCache

    processor = tiny[1]
    return FrameCache(tmp_path_factory.getbasetemp() / "frames", fps=processor.fps, size=processor.image_size)


@pytest.fixture
def config(tmp_path, tmp_path_factory):
    """Makes the configuration of a run of a few steps on the CPU."""

    def make(config_class, **kwargs):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "frame_cache_dir": str(tmp_path_factory.getbasetemp() / "frames"),
            "per_device_train_batch_size": 2,
            "max_steps": 1,
            "learning_rate": 1e-2,
            "max_grad_norm": 0.0,  # tests look at gradients
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "freeze_vision_tower": False,
        }
        return config_class(**{**defaults, **kwargs})

    return make
