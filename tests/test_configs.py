# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The configurations: defaults, presets, and what is refused."""

import logging

import pytest

from trl_temporal import D2VLMConfig, EvidenceSFTConfig, FPOConfig

# Default, `paper` and `d2vlm-release`.
BOTH = {
    "evidence_coef": (1.0, 1.0, 10.0),
    "consistency_coef": (0.1, 1.0, 10.0),
    "consistency_ramp_start": (0.3, 0.0, 0.0),
    "consistency_ramp_end": (0.6, 0.0, 0.0),
    "grounding_target": ("hard", "hard", "soft"),
    "soft_target_base": (2.0, 2.0, 2.0),
    "release_quirks": (False, False, True),
    "max_length": (None, None, None),
}
FPO = {
    **BOTH,
    "reference_free": (True, True, True),
    "beta": (0.1, 1.0, 0.1),
    "preference_coef": (1.0, 1.0, 1.0),
    "grounding_coef": (1.0, 1.0, 1.0),
    "sft_coef": (1.0, 0.0, 1.0),
    "prefix_sharing": (True, True, True),
    "loss_type": (["sigmoid"],) * 3,
}


@pytest.mark.parametrize(("config_class", "table"), [(EvidenceSFTConfig, BOTH), (FPOConfig, FPO)])
def test_defaults_and_presets(config_class, table, tmp_path):
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    columns = [
        config_class(**arguments),
        config_class.from_preset("paper", **arguments),
        config_class.from_preset("d2vlm-release", **arguments),
    ]
    for name, expected in table.items():
        assert tuple(getattr(column, name) for column in columns) == expected, name
    assert config_class.from_preset("d2vlm-release", evidence_coef=3.0, **arguments).evidence_coef == 3.0


@pytest.mark.parametrize("config_class", [EvidenceSFTConfig, FPOConfig])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grounding_target": "fuzzy"}, "grounding_target.*hard, soft.*fuzzy"),
        ({"soft_target_base": 1.0}, "soft_target_base.*1.0"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample.*raise, skip"),
        ({"video_backend": "opencv"}, "video_backend.*pyav"),
        ({"consistency_ramp_start": 0.7}, "consistency_ramp_start.*0.7"),
        ({"consistency_ramp_end": 1.5}, "consistency_ramp_end.*1.5"),
    ],
)
def test_impossible_settings_are_refused(config_class, arguments, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        config_class(output_dir=str(tmp_path), use_cpu=True, bf16=False, **arguments)


def test_an_unknown_preset_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="released.*paper, d2vlm-release"):
        FPOConfig.from_preset("released", output_dir=str(tmp_path))


def test_preference_without_the_sft_term_warns(tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("transformers")  # keeps its messages from the root, where `caplog` listens
    monkeypatch.setattr(logging.getLogger("trl_temporal"), "propagate", True)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        FPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, sft_coef=0.0)
    assert "collapsed" in caplog.text


@pytest.mark.parametrize("config_class", [EvidenceSFTConfig, FPOConfig])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bf16": True}, "bf16.*use_cpu"),  # TRL's default: without a GPU it has to be said that the CPU is meant
        ({"bf16": False, "fp16": True}, "fp16=True.*GPU"),
    ],
    ids=["bf16", "fp16"],
)
def test_a_gpu_that_is_not_there(config_class, arguments, words, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=words):
        config_class(output_dir=str(tmp_path), use_cpu=False, **arguments)


def test_presets_of_the_model():
    ours, paper, release = D2VLMConfig(), D2VLMConfig.from_preset("paper"), D2VLMConfig.from_preset("d2vlm-release")
    assert [config.video_attention for config in (ours, paper, release)] == ["causal", "causal", "bidirectional"]
    assert [config.interval_ties for config in (ours, paper, release)] == ["first", "first", "span"]
    assert {(config.capture_layer, config.similarity_layer) for config in (ours, paper, release)} == {(6, -2)}
    assert D2VLMConfig.from_preset("d2vlm-release", capture_layer=3).capture_layer == 3
    with pytest.raises(ValueError, match="paper, d2vlm-release"):
        D2VLMConfig.from_preset("release")
