# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The frame encoders that a configuration names, from their folders to stored features and spans in the model."""

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, UMT5Config
from transformers import UMT5EncoderModel as TextEncoder

from tests.test_grounded_videodit_vace import folder as vace  # noqa: F401  a fixture
from trl_temporal.data.frame_cache import FrameCache
from trl_temporal.models.grounded_videodit import load_frame_encoder
from trl_temporal.models.grounded_videodit.encoder_loading import PROMPT_FILE, PROMPT_TOKENS, embed_prompt
from trl_temporal.models.tiny import build_tiny_grounded_videodit, train_tokenizer
from trl_temporal.objects.collator import GroundedPromptCollator
from trl_temporal.objects.frame_features import FrameFeatureReader, LiveFrameFeatures, build_frame_features
from trl_temporal.objects.masks import pack_masks


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A saved random CLIP, text model and all."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    path = tmp_path_factory.mktemp("clip")
    CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(**sizes, vocab_size=40, bos_token_id=0, eos_token_id=1), vision_config=vision
        )
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model_of(clip, vace):  # noqa: F811
    """Makes a tiny model over both frozen encoders, with the sentence y_hl embedded beside VACE."""
    text = UMT5Config(vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    TextEncoder(text).save_pretrained(vace / "text_encoder")
    train_tokenizer(["highlight the masked region"], vocab_size=280).save_pretrained(vace / "tokenizer")
    embed_prompt(vace, vace / PROMPT_FILE)
    settings = {
        "frame_encoders": ["clip", "vace"],
        "vace_config": {"name": str(vace), "hidden_size": 24, "blocks": [2]},
        "tokens_per_frame": 4,
        "num_frames": 8,
        "image_size": 32,
        "use_kl": True,
    }
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1}
    return build_tiny_grounded_videodit(["When?"], {"name": str(clip), "hidden_size": 16}, **sizes, **settings)


@pytest.fixture
def row(event_world):
    tracks = np.zeros((1, 8, 16, 16), dtype=bool)
    tracks[:, :, 4:12, 2:9] = True
    row = dict(event_world["train"][0])
    times_s = (np.arange(8) + 0.5) / 8 * row["duration"]
    return row | {
        "object_nouns": ["disc"],
        "object_masks": pack_masks(tracks, tracks.any(0)),
        "object_scores": [[0.9]] * 8,
        "object_order": [0],
        "object_times_s": times_s.tolist(),
    }


def test_the_sentence_is_embedded_once(model_of, vace):  # noqa: F811
    from safetensors.torch import load_file

    embeds = load_file(vace / PROMPT_FILE)["prompt_embeds"]
    assert embeds.shape == (PROMPT_TOKENS, 8) and embeds.abs().sum() > 0 and (embeds[-1] == 0).all()


def test_from_a_video_to_a_span(model_of, row, tmp_path):
    """Both encoders are loaded by name; what is stored is what is made; masks, and the noise of the sample, matter."""
    model, processor = model_of
    encoder = load_frame_encoder(model.config)
    assert encoder.hidden_size == model.config.frozen_size == 40 and encoder.uses_masks
    read_video = FrameCache(None, num_frames=8, size=32)
    report = build_frame_features([row], tmp_path, encoder, read_video, progress=False)
    assert report.num_new == 1
    stored = FrameFeatureReader.open(tmp_path, encoder, read_video.sampling)
    made = LiveFrameFeatures(encoder, read_video)
    assert torch.equal(stored(row).features, made(row).features)

    empty = row | {"object_masks": pack_masks(np.zeros((1, 8, 16, 16), bool), np.ones((8, 16, 16), bool))}
    vace_of = {name: made(each).features[0, :, 16:].float() for name, each in {"row": row, "empty": empty}.items()}
    assert (vace_of["row"] - vace_of["empty"]).abs().max() > 1e-3
    assert torch.equal(made(row).features[..., :16], made(empty).features[..., :16])  # a tower sees whole frames

    inputs = GroundedPromptCollator(processor, stored)([row])["inputs"]
    assert inputs["video_features"].shape == (1, 8, 4, 40)
    output = model.eval()(**inputs)
    assert output.start_logits.isfinite().all() and output.kl_divergence.isfinite().all()


def test_what_does_not_fit_is_named(model_of, vace, tmp_path):  # noqa: F811
    model, _ = model_of
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.clip_config = {**config.clip_config, "hidden_size": 32}
    with pytest.raises(ValueError, match="features of size 16, but the configuration says `hidden_size` 32"):
        load_frame_encoder(config)
    config = model.config.__class__.from_dict(model.config.to_dict())
    other = tmp_path / "vace"
    other.mkdir()
    (other / "vae").symlink_to(vace / "vae")
    (other / "transformer").symlink_to(vace / "transformer")
    config.vace_config = {**config.vace_config, "name": str(other)}
    with pytest.raises(ValueError, match="write it once with `embed_prompt"):
        load_frame_encoder(config)
