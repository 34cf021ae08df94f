# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Frame encoders on real modules of transformers at toy size, and the small trainable denoiser."""

import importlib.util
import math
import sys

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from trl_temporal.models import grounded_videodit
from trl_temporal.models.grounded_videodit.dtl_feature import DtlDenoiser, DtlFeatureEncoder, pretrain
from trl_temporal.models.grounded_videodit.frame_encoders import (
    CLIP_MEAN,
    CLIP_STD,
    ClipFrameEncoder,
    FrameEncoderList,
    FrameProjection,
    check_sigmas,
    cosine_sigmas,
    noise_from_key,
    segment_index,
)

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tower(family=CLIPVisionModel, config=CLIPVisionConfig, **kwargs):
    torch.manual_seed(0)
    return family(config(**{**SIZES, **kwargs}))


@pytest.fixture
def encoder():
    return ClipFrameEncoder(tower())


@pytest.fixture
def dtl(encoder):
    torch.manual_seed(1)
    return DtlFeatureEncoder(encoder, DtlDenoiser(16, width=16, num_layers=3, num_heads=2))


def frames_of(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def same(left, right):
    """Equal but for the order of sums."""
    return torch.allclose(left, right, atol=1e-5)


def half_masks(videos, num_frames):
    masks = torch.zeros(videos, num_frames, 32, 32, dtype=torch.bool)
    masks[..., :16] = True
    return masks


@pytest.mark.parametrize(
    "family, config, kwargs",
    [
        (CLIPVisionModel, CLIPVisionConfig, {}),  # a class token
        (SiglipVisionModel, SiglipVisionConfig, {"vision_use_head": False}),  # none
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, {"num_register_tokens": 4}),  # class and register tokens
    ],
)
def test_towers_of_transformers(family, config, kwargs):
    encoder = ClipFrameEncoder(tower(family, config, **kwargs), spatial_pool=2)
    frames = frames_of(2, 3, 3, 40, 24)
    features = encoder(frames)
    assert features.z.shape == (2, 3, 4, 16) and features.aux.shape == (2, 3, 16)
    # What the tower says of the last frame itself.
    pixels = torch.nn.functional.interpolate(frames[1, 2:], (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    tokens = encoder.tower((pixels - mean) / std).last_hidden_state[0, -16:]
    assert same(features.aux[1, 2], tokens.mean(0))
    assert same(features.z[1, 2, 1], tokens.view(4, 4, 16)[:2, 2:].mean((0, 1)))  # top right


def test_uint8_and_unit_frames_agree(encoder):
    frames = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    assert same(encoder(frames).z, encoder(frames / 255).z)


def test_the_tower_is_frozen(encoder):
    encoder.train()
    assert not encoder.tower.training and not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("name", ["clip", "dtl_feature", "list"])
def test_padding_does_not_leak(name, encoder, dtl):
    encoder = {"clip": encoder, "dtl_feature": dtl, "list": FrameEncoderList([encoder, dtl])}[name]
    frames, masks = frames_of(2, 20, 3, 32, 32), half_masks(2, 20)
    frame_mask = torch.arange(20) < torch.tensor([[11], [20]])
    features = encoder(frames, frame_mask, masks, ["a", "b"])
    assert features.z.shape == (2, 20, 1, encoder.hidden_size)
    assert not features.z[0, 11:].any() and not features.aux[0, 11:].any()
    other, other_masks = frames.clone(), masks.clone()
    other[0, 11:], other_masks[0, 11:] = float("nan"), False
    assert torch.equal(encoder(other, frame_mask, other_masks, ["a", "b"]).z, features.z)
    alone = encoder(frames[:1, :11], None, masks[:1, :11], ["a"])
    assert same(alone.z[0], features.z[0, :11]) and same(alone.aux[0], features.aux[0, :11])


def test_the_key_decides_the_noise(dtl):
    frames = frames_of(1, 10, 3, 32, 32)
    first = dtl(frames, keys=["a"]).z
    torch.manual_seed(5)
    assert torch.equal(dtl(frames, keys=["a"]).z, first)
    assert not same(dtl(frames, keys=["b"]).z, first)
    with pytest.raises(ValueError, match="`keys` must be a list of 1 strings"):
        dtl(frames)


def test_segments_are_encoded_on_their_own(dtl):
    """Frame 3 changes what its segment of 8 frames becomes, and no other; without segments it reaches all."""
    frames = frames_of(1, 24, 3, 32, 32)
    other = frames.clone()
    other[0, 3] = 0
    changed = (dtl(other, keys=["a"]).z - dtl(frames, keys=["a"]).z).abs().amax((0, 2, 3)) > 1e-6
    assert changed.tolist() == [True] * 8 + [False] * 16
    dtl.denoiser.num_segments = 1
    assert ((dtl(other, keys=["a"]).z - dtl(frames, keys=["a"]).z).abs().amax((0, 2, 3)) > 1e-6).all()


def test_masks_condition_the_denoiser(dtl):
    frames, masks = frames_of(1, 6, 3, 32, 32), half_masks(1, 6)
    masks[0, 2:4] = False  # nothing to be seen
    with_masks = dtl(frames, None, masks, ["a"]).z
    assert with_masks.isfinite().all()
    assert not same(with_masks, dtl(frames, None, ~masks, ["a"]).z)
    # Empty masks are no object at all, a full mask is the whole frame.
    assert same(dtl(frames, None, masks & False, ["a"]).z, dtl(frames, keys=["a"]).z)
    inputs = dtl.base_features(frames, None, masks | True)
    assert same(inputs["object_features"], inputs["features"]) and inputs["object_mask"].all()
    assert dtl.base_features(frames, None, masks)["object_mask"].tolist() == [[True, True, False, False, True, True]]


def test_object_features_are_those_inside_the_mask(dtl):
    frames = frames_of(1, 2, 3, 32, 32)
    inputs = dtl.base_features(frames, None, half_masks(1, 2))
    patches = dtl.base.patch_features(frames[0])
    assert same(inputs["object_features"][0], patches[..., :2].mean((2, 3)))


def test_gradients_reach_the_denoiser_up_to_its_block(dtl):
    features = torch.randn(1, 9, 16, requires_grad=True)
    dtl.denoiser(features, keys=["a"]).square().sum().backward()
    assert features.grad.abs().sum(-1).all()
    trained = [block.mlp[0].weight.grad is not None for block in dtl.denoiser.blocks]
    assert trained == [True, True, False]  # block 3 // 2 is read


def test_half_precision(dtl):
    """Stored features in half precision; the denoiser in bfloat16; a trainer's autocast."""
    features, objects = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    arguments = {"object_mask": torch.rand(2, 9) > 0.5, "keys": ["a", "b"]}
    exact = dtl.denoiser(features, object_features=objects, **arguments)
    stored = dtl.denoiser(features.half(), object_features=objects.half(), **arguments)
    assert stored.dtype == torch.float32 and torch.allclose(stored, exact, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(dtl.denoiser(features, object_features=objects, **arguments), exact, atol=0.2)
        dtl.denoiser.denoising_loss(features, object_features=objects).backward()
    dtl.denoiser.bfloat16()
    halved = dtl.denoiser(features, object_features=objects, **arguments)
    assert halved.dtype == torch.bfloat16 and torch.allclose(halved.float(), exact, atol=0.2)


def test_a_segment_that_is_not_full_sees_its_frames_once(dtl):
    """Nine frames are segments of five and four; what fills up the second one is not there for the others."""
    denoiser, features = dtl.denoiser, torch.randn(1, 9, 16)
    state = 0.9 * features + 0.1 * noise_from_key("a", (9, 16))
    objects, padding = denoiser.no_object.expand(1, 4, 16), torch.zeros(1, 4, dtype=torch.bool)
    expected, _ = denoiser._denoise(state[:, 5:], torch.tensor([0.1]), objects, padding, whole=False)
    assert same(denoiser(features, keys=["a"])[:, 5:], expected)


def test_several_noise_levels(dtl):
    """By hand: two levels, an Euler step along the velocity between them, the tokens averaged."""
    denoiser = dtl.denoiser
    denoiser.sigmas = check_sigmas((0.4, 0.2))
    features = torch.randn(1, 5, 16)
    objects, padding = denoiser.no_object.expand(1, 5, 16), torch.zeros(1, 5, dtype=torch.bool)
    state = 0.6 * features + 0.4 * noise_from_key("a", (5, 16))
    first, velocity = denoiser._denoise(state, torch.tensor([0.4]), objects, padding, whole=True)
    second, _ = denoiser._denoise(state - 0.2 * velocity, torch.tensor([0.2]), objects, padding, whole=True)
    assert same(denoiser(features, keys=["a"]), (first + second) / 2)


def motions(videos, num_frames, generator):
    """Features that turn on circles: what comes next follows from what was."""
    phase = torch.rand(videos, 1, generator=generator) * 6.3 + torch.arange(num_frames) * 0.4
    basis = torch.randn(2, 16, generator=torch.Generator().manual_seed(9))
    return 3 + 2 * torch.stack([phase.sin(), phase.cos()], dim=-1) @ basis


def test_pretraining_learns_to_denoise():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    denoiser = DtlDenoiser(16, width=32, num_layers=2, num_heads=2)
    features, held_out = motions(48, 16, generator), motions(48, 16, generator)
    frame_mask = torch.arange(16) < torch.randint(9, 17, (48, 1), generator=generator)
    features[~frame_mask] = 1e4  # what stands in the padding is neither measured nor learned
    losses = pretrain(denoiser, features, frame_mask, num_steps=60, batch_size=16)
    assert len(losses) == 60 and all(0 < loss < 5 for loss in losses)
    assert same(denoiser.mean, features[frame_mask].mean(0))
    with torch.no_grad():
        loss = denoiser.denoising_loss(held_out, generator=generator)
    # An answer of 0 has 2. Whoever looks at each number alone, of mean 0 and variance 1, keeps of the velocity's
    # variance 1 / ((1 - sigma)^2 + sigma^2), over all levels pi / 2.
    assert loss < 1.35 < math.pi / 2
    fresh = DtlDenoiser(16, width=32, num_layers=2, num_heads=2)
    assert pretrain(fresh, features, frame_mask, num_steps=1, batch_size=16)[0] > 1.5


def test_pretraining_is_reproducible_and_uses_objects():
    features, objects = torch.randn(8, 10, 16), torch.randn(8, 10, 16)
    results = []
    for seen in (objects, objects, None):
        torch.manual_seed(0)
        denoiser = DtlDenoiser(16, width=16, num_layers=2, num_heads=2)
        results.append(pretrain(denoiser, features, object_features=seen, num_steps=3))
    assert results[0] == results[1] != results[2]


def test_a_list_concatenates(encoder, dtl):
    both = FrameEncoderList([encoder, dtl])
    frames = frames_of(1, 4, 3, 32, 32)
    features = both(frames, keys=["a"])
    assert features.z.shape == (1, 4, 1, 32) and both.hidden_size == 32 and both.aux_size == 16
    assert both.uses_masks and not FrameEncoderList([encoder]).uses_masks
    assert torch.equal(features.z[..., :16], encoder(frames).z)
    assert torch.equal(features.z[..., 16:], dtl(frames, keys=["a"]).z)
    reference = ClipFrameEncoder(tower(hidden_size=8))
    assert FrameEncoderList([encoder], aux_encoder=reference)(frames).aux.shape == (1, 4, 8)
    with pytest.raises(ValueError, match=r"\[1, 4\] tokens a frame"):
        FrameEncoderList([encoder, ClipFrameEncoder(tower(), spatial_pool=2)])
    with pytest.raises(ValueError, match=r"\[\] tokens a frame"):
        FrameEncoderList([])


def test_the_projection_learns(encoder):
    projection = FrameProjection(16, 4)
    projection(encoder(frames_of(1, 2, 3, 32, 32)).z).sum().backward()
    assert all(parameter.grad is not None for parameter in projection.parameters())


@pytest.mark.parametrize("num_segments", [1, 3, 12])
def test_every_frame_is_in_one_segment(num_segments):
    for num_frames in range(1, 200):
        index = segment_index(num_frames, num_segments)
        assert index.flatten()[:num_frames].tolist() == list(range(num_frames))
        assert len(index) <= min(num_segments, math.ceil(num_frames / 8))
        assert (index[:, 0].diff() == index.shape[1]).all()  # none is made of padding alone


def test_noise_levels():
    assert cosine_sigmas(0.1, 1) == (0.1,)
    assert cosine_sigmas(0.1, 4) == pytest.approx((0.1, 0.09239, 0.07071, 0.03827), abs=1e-5)
    assert check_sigmas(cosine_sigmas(0.9, 6))[0] == 0.9
    for wrong in ((), (0.1, 0.1), (0.1, 0.2), (1.5,), (0.1, 0.0)):
        with pytest.raises(ValueError, match="falling noise levels"):
            check_sigmas(wrong)
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        DtlDenoiser(16, width=16, num_layers=3, block=3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": torch.rand(4, 3, 32, 32)}, r"shape \(videos, T, 3, height, width\), not \(4, 3, 32, 32\)"),
        ({"frames": torch.rand(1, 4, 3, 32, 32) * 3 - 1}, "must lie between 0 and 1"),
        ({"frames": torch.ones(1, 4, 3, 32, 32, dtype=torch.long)}, "not torch.int64"),
        ({"frame_mask": torch.ones(1, 3, dtype=torch.bool)}, r"boolean tensor of shape \(1, 4\)"),
        ({"frame_mask": torch.ones(1, 4)}, "not torch.float32"),
        ({"frame_mask": torch.zeros(1, 4, dtype=torch.bool)}, "video 0 is false everywhere"),
        ({"frame_mask": torch.tensor([[True, False, True, True]])}, "padding before a frame"),
        ({"masks": torch.ones(1, 4, 2, 32, 32)}, "the union of the objects"),
        ({"masks": torch.ones(1, 3, 32, 32)}, r"\(1, 4\) in front"),
    ],
)
def test_bad_input_is_named(encoder, change, message):
    with pytest.raises(ValueError, match=message):
        encoder(**{"frames": torch.rand(1, 4, 3, 32, 32), **change})


def test_bad_features_are_named(dtl):
    with pytest.raises(ValueError, match=r"\(videos, T, 16\), not \(1, 4, 8\)"):
        dtl.denoiser(torch.rand(1, 4, 8), keys=["a"])
    with pytest.raises(ValueError, match="`object_features` must have the shape"):
        dtl.denoiser(torch.rand(1, 4, 16), object_features=torch.rand(1, 3, 16), keys=["a"])
    with pytest.raises(ValueError, match="`object_mask` must have shape"):
        dtl.denoiser(torch.rand(1, 4, 16), object_mask=torch.ones(1, 3, dtype=torch.bool), keys=["a"])
    with pytest.raises(ValueError, match="1 token of size 16 a frame, the base gives 4"):
        DtlFeatureEncoder(ClipFrameEncoder(tower(), spatial_pool=2), dtl.denoiser)


def test_the_files_import_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    fresh = {}
    for name in ("frame_encoders", "dtl_feature", "dtl_vace"):
        source = importlib.util.find_spec(f"{grounded_videodit.__name__}.{name}").origin
        spec = importlib.util.spec_from_file_location(f"{grounded_videodit.__name__}.{name}_anew", source)
        fresh[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh[name])
    with pytest.raises(ImportError, match="needs diffusers 0.42 or newer"):
        fresh["dtl_vace"].VaceFrameEncoder.from_pretrained("anything", torch.zeros(1, 8))
