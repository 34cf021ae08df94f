# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The frame encoder on Wan's VAE and VACE: the real modules of diffusers at toy size, with random weights."""

from types import SimpleNamespace

import pytest
import torch

from trl_temporal.models.grounded_videodit.dtl_vace import VaceFrameEncoder, fold_mask, load_vace
from trl_temporal.models.grounded_videodit.frame_encoders import FrameEncoderList, cosine_sigmas, noise_from_key

diffusers = pytest.importorskip("diffusers", minversion="0.42", reason="the frame encoder `vace` needs diffusers")

PROMPT = torch.linspace(-1, 1, 24).view(3, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A VAE and a VACE of five blocks, three of which have a hint, in the layout of diffusers."""
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=5,
        vace_layers=[0, 2, 3],
        rope_max_seq_len=64,
    )
    for block in transformer.vace_blocks:  # hints as loud as what they are added to
        torch.nn.init.normal_(block.proj_out.weight, std=0.5)
    path = tmp_path_factory.mktemp("vace")
    vae.save_pretrained(path / "vae")
    transformer.save_pretrained(path / "transformer")
    return path


@pytest.fixture(scope="module")
def models(folder):
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    return (
        AutoencoderKLWan.from_pretrained(folder, subfolder="vae"),
        WanVACETransformer3DModel.from_pretrained(folder, subfolder="transformer"),
    )


@pytest.fixture(scope="module")
def encoder(folder):
    return VaceFrameEncoder.from_pretrained(folder, PROMPT, blocks=(2,))


def frames_of(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def half_masks(videos, num_frames, size=32):
    masks = torch.zeros(videos, num_frames, size, size, dtype=torch.bool)
    masks[..., : size // 2] = True
    return masks


def same(left, right):
    """Equal but for the order of sums."""
    return torch.allclose(left, right, atol=2e-5, rtol=1e-4)


def changed_frames(left, right):
    return (left - right).abs().amax((0, 2, 3)).gt(1e-4).nonzero().flatten().tolist()


def test_wans_vae_drops_frames_that_do_not_fill_a_latent(models):
    """Why segments are filled up: of 8 frames the last three leave no trace, of 9 all do."""
    video = frames_of(1, 3, 9, 32, 32)
    other = video.clone()
    other[:, :, 5:8] = 0
    encode = models[0].encode
    with torch.no_grad():
        assert torch.equal(encode(video[:, :, :8]).latent_dist.mode(), encode(other[:, :, :8]).latent_dist.mode())
        assert not same(encode(video).latent_dist.mode(), encode(other).latent_dist.mode())


@pytest.mark.parametrize("block", range(5))
def test_truncated_equals_whole_with_the_hint(block, folder, models):
    """By hand from the whole model: behind block k, and its hint on top, which a hook of its output would miss."""
    vae, whole = models
    short, blocks = load_vace(folder, (block,))
    assert blocks == (block,) and len(short.blocks) == block + 1 == short.config.num_layers
    assert short.config.vace_layers == [layer for layer in (0, 2, 3) if layer <= block]
    frames, masks = frames_of(1, 8, 3, 32, 32), half_masks(1, 8)
    outputs, hints = {}, []
    handles = [whole.blocks[block].register_forward_hook(lambda _, __, output: outputs.update(block=output))]
    handles += [
        each.register_forward_hook(lambda _, __, output: hints.append(output[0])) for each in whole.vace_blocks
    ]
    try:
        from_whole = VaceFrameEncoder(vae, whole, PROMPT, blocks=(block,))(frames, None, masks, ["a"]).z
    finally:
        for handle in handles:
            handle.remove()
    without_hint = outputs["block"]
    expected = without_hint + (hints[[0, 2, 3].index(block)] if block in (0, 2, 3) else 0)
    pooled = expected.view(1, 3, 4, 24).mean(2)[:, [0, 1, 1, 1, 1, 2, 2, 2], None]
    truncated = VaceFrameEncoder(vae, short, PROMPT, blocks=(block,))(frames, None, masks, ["a"]).z
    assert same(truncated, pooled) and same(truncated, from_whole)
    if block in (0, 2, 3):
        assert not same(truncated, without_hint.view(1, 3, 4, 24).mean(2)[:, [0, 1, 1, 1, 1, 2, 2, 2], None])


def test_weights_that_do_not_fit_are_an_error(folder, tmp_path, models):
    from safetensors.torch import load_file, save_file

    whole = models[1]
    whole.save_pretrained(tmp_path / "transformer")
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({**weights, "blocks.0.extra": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="unknown .'blocks.0.extra'"):
        load_vace(tmp_path, (1,))
    del weights["blocks.1.ffn.net.2.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing .*blocks.1.ffn.net.2.bias"):
        load_vace(tmp_path, (1,))
    with pytest.raises(ValueError, match="blocks 0 to 4"):
        load_vace(folder, (5,))


def test_the_condition_is_that_of_the_pipeline(encoder, models):
    """What reaches the model is what the pipeline of diffusers makes of the same segment."""
    from diffusers import WanVACEPipeline

    vae, whole = models
    video, mask = frames_of(1, 9, 3, 32, 48), torch.rand(1, 9, 32, 48) > 0.5
    pipeline = SimpleNamespace(
        vae=vae, transformer=whole, vae_scale_factor_temporal=4, vae_scale_factor_spatial=8, _execution_device="cpu"
    )
    pixels, channels = (video * 2 - 1).transpose(1, 2), mask[:, None].float().expand(-1, 3, -1, -1, -1)
    with torch.no_grad():
        latents = WanVACEPipeline.prepare_video_latents(pipeline, pixels, channels, [[]])
        everything = torch.ones_like(channels)
        clean = WanVACEPipeline.prepare_video_latents(pipeline, pixels, everything, [[]])[:, 16:]
    folded = WanVACEPipeline.prepare_masks(pipeline, channels, [[]])
    seen = {}
    handle = encoder.transformer.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        encoder.num_segments = 1
        encoder(video, None, mask, ["a"])
    finally:
        handle.remove()
        encoder.num_segments = 12
    assert same(seen["control_hidden_states"], torch.cat([latents, folded], dim=1))
    assert seen["control_hidden_states"].shape == (1, 96, 3, 4, 6)
    assert same(seen["hidden_states"], 0.9 * clean + 0.1 * noise_from_key("a", (1, 16, 3, 4, 6)))
    assert seen["timestep"].tolist() == [100.0]
    assert torch.equal(seen["encoder_hidden_states"][0], PROMPT)


def test_mask_folding_keeps_every_pixel():
    mask = torch.rand(2, 9, 32, 48)
    folded = fold_mask(mask, 8, 3)
    assert torch.equal(folded[1, 8 * 5 + 7, 0, 2, 3], mask[1, 1, 2 * 8 + 5, 3 * 8 + 7])


@pytest.mark.parametrize("num_segments, changed", [(12, range(88, 96)), (1, range(93, 96))])
def test_no_frame_of_96_is_dropped(num_segments, changed, models):
    """Frames 94 to 96, counted from 1, each change features: all of their segment (attention looks both ways)."""
    encoder = VaceFrameEncoder(*models, PROMPT, blocks=(2,), num_segments=num_segments)
    frames = frames_of(1, 96, 3, 32, 32)
    plain = encoder(frames, keys=["a"]).z
    assert plain.shape == (1, 96, 1, 24) and plain.isfinite().all()
    for frame in (93, 94, 95):
        other = frames.clone()
        other[0, frame] = 1 - other[0, frame]
        found = changed_frames(encoder(other, keys=["a"]).z, plain)
        assert found == list(changed) if num_segments == 12 else set(changed) <= set(found)


def test_segments_are_one_batch_and_frames_find_their_latent(encoder):
    """Frame t of a segment has latent ceil(t / 4); frames of a latent share features."""
    shapes = []
    handle = encoder.transformer.patch_embedding.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape))
    try:
        z = encoder(frames_of(1, 96, 3, 32, 32), keys=["a"]).z
    finally:
        handle.remove()
    assert shapes == [(12, 16, 3, 4, 4)]
    segment = z[0, 8:16, 0]
    groups = [[0], [1, 2, 3, 4], [5, 6, 7]]
    for group in groups:
        assert (segment[group] == segment[group[0]]).all()
    assert not same(segment[0], segment[1]) and not same(segment[4], segment[5])
    assert not same(z[0, :8], z[0, 8:16])  # the next segment has other frames and other noise


def test_each_segment_has_noise_of_its_own(encoder):
    z = encoder(frames_of(1, 8, 3, 32, 32).repeat(1, 2, 1, 1, 1), keys=["a"]).z
    assert not same(z[0, :8], z[0, 8:])


def test_masks_condition_the_features(encoder):
    frames, masks = frames_of(1, 9, 3, 32, 32), half_masks(1, 9)
    plain = encoder(frames, keys=["a"]).z
    left, right = encoder(frames, None, masks, ["a"]).z, encoder(frames, None, ~masks, ["a"]).z
    assert not same(left, right) and not same(left, plain)
    assert torch.equal(encoder(frames, None, masks | True, ["a"]).z, plain)  # the fallback covers everything
    assert torch.equal(encoder(frames, None, masks & False, ["a"]).z, plain)
    masks[0, :5] = False  # not yet in view
    assert encoder(frames, None, masks, ["a"]).z.isfinite().all()
    assert not same(encoder(frames, None, masks, ["a"]).z, left)
    # Masks of another size than the frames: the same halves.
    assert torch.equal(encoder(frames, None, half_masks(1, 9, size=8), ["a"]).z, left)


def test_the_key_decides_the_noise(encoder):
    frames = frames_of(1, 9, 3, 32, 32)
    first = encoder(frames, keys=["a"]).z
    torch.manual_seed(5)
    assert torch.equal(encoder(frames, keys=["a"]).z, first)
    assert not same(encoder(frames, keys=["b"]).z, first)
    with pytest.raises(ValueError, match="`keys` must be a list of 1 strings"):
        encoder(frames)


def test_padding_does_not_leak(encoder):
    frames, masks = frames_of(2, 20, 3, 32, 32), half_masks(2, 20)
    frame_mask = torch.arange(20) < torch.tensor([[11], [20]])
    z = encoder(frames, frame_mask, masks, ["a", "b"]).z
    assert not z[0, 11:].any() and z[1].any(-1).all()
    other, other_masks = frames.clone(), masks.clone()
    other[0, 11:], other_masks[0, 11:] = float("nan"), False
    assert torch.equal(encoder(other, frame_mask, other_masks, ["a", "b"]).z, z)
    assert torch.equal(encoder(frames[:1, :11], None, masks[:1, :11], ["a"]).z[0], z[0, :11])


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 9, 13, 97, 100])
def test_any_number_of_frames(encoder, num_frames):
    """Every frame has features, and the last one counts."""
    frames = frames_of(1, num_frames, 3, 32, 32)
    other = frames.clone()
    other[0, -1] = 1 - other[0, -1]
    z = encoder(frames, keys=["a"]).z
    assert z.shape == (1, num_frames, 1, 24) and z.isfinite().all()
    assert num_frames - 1 in changed_frames(encoder(other, keys=["a"]).z, z)


def test_sizes_that_are_no_multiples_of_16(encoder):
    assert encoder(frames_of(1, 3, 3, 40, 57), None, half_masks(1, 3), ["a"]).z.isfinite().all()
    resized = torch.nn.functional.interpolate(frames_of(3, 3, 40, 57), (32, 64), mode="bilinear", antialias=True)
    assert same(encoder(resized[None].clamp(0, 1), keys=["a"]).z, encoder(frames_of(1, 3, 3, 40, 57), keys=["a"]).z)
    with pytest.raises(ValueError, match="31 x 64 pixels are too small: resize"):
        encoder(frames_of(1, 3, 3, 31, 64), keys=["a"])


def test_several_noise_levels_with_euler_steps_and_guidance(models):
    """By hand: forwards of the whole model at S = 4 levels, Euler steps between, activations averaged."""
    vae, whole = models
    sigmas = cosine_sigmas(0.1, 4)
    frames = frames_of(1, 8, 3, 32, 32)
    once = VaceFrameEncoder(vae, whole, PROMPT, blocks=(2,))
    seen = {}
    handle = whole.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    single = once(frames, keys=["a"]).z
    handle.remove()
    state, total = seen["hidden_states"], 0
    control = {"control_hidden_states": seen["control_hidden_states"], "return_dict": False}
    with torch.no_grad():
        for step, sigma in enumerate(sigmas):
            hidden, _ = once._denoise(state, sigma, seen["control_hidden_states"], PROMPT)
            total = total + hidden / 4
            if step < 3:
                timestep = torch.tensor([1000 * sigma])
                with_prompt = whole(state, timestep, PROMPT[None], **control)[0]
                without = whole(state, timestep, -PROMPT[None], **control)[0]
                state = state + (sigmas[step + 1] - sigma) * (without + 1.5 * (with_prompt - without))
    expected = total.view(1, 3, 4, 24).mean(2)[:, [0, 1, 1, 1, 1, 2, 2, 2], None]
    guided = VaceFrameEncoder(
        *models, PROMPT, blocks=(2,), sigmas=sigmas, guidance_scale=1.5, negative_prompt_embeds=-PROMPT
    )
    unguided = VaceFrameEncoder(*models, PROMPT, blocks=(2,), sigmas=sigmas)
    z = guided(frames, keys=["a"]).z
    assert same(z, expected) and not same(z, single)
    assert not torch.equal(z, unguided(frames, keys=["a"]).z)


def test_several_noise_levels_load_the_whole_model(folder):
    several = VaceFrameEncoder.from_pretrained(folder, PROMPT, sigmas=(0.2, 0.1))
    assert several.blocks == (2,) and len(several.transformer.blocks) == 5
    one = VaceFrameEncoder.from_pretrained(folder, PROMPT)
    assert one.blocks == (2,) and len(one.transformer.blocks) == 3


def test_several_blocks_and_a_grid(folder, models):
    frames = frames_of(1, 8, 3, 64, 64)
    both = VaceFrameEncoder.from_pretrained(folder, PROMPT, blocks=(3, 1), spatial_pool=2)
    z = both(frames, keys=["a"]).z
    assert z.shape == (1, 8, 4, 48) and both.hidden_size == 48 and both.tokens_per_frame == 4
    for block, part in zip((3, 1), z.chunk(2, dim=-1), strict=True):
        one = VaceFrameEncoder(*models, PROMPT, blocks=(block,))
        assert same(one(frames, keys=["a"]).z, part.mean(2, keepdim=True))


def test_bfloat16_runs(folder):
    encoder = VaceFrameEncoder.from_pretrained(folder, PROMPT, blocks=(2,), dtype=torch.bfloat16)
    assert encoder.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    frames = frames_of(1, 8, 3, 32, 32)
    z = encoder(frames, keys=["a"]).z
    exact = VaceFrameEncoder.from_pretrained(folder, PROMPT, blocks=(2,))(frames, keys=["a"]).z
    assert z.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(z.flatten(), exact.flatten(), dim=0) > 0.999


def test_everything_is_frozen_and_joins_a_list(encoder):
    encoder.train()
    assert not encoder.vae.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    joined = FrameEncoderList([encoder, encoder])
    z = joined(frames_of(1, 8, 3, 32, 32), keys=["a"]).z
    assert z.shape == (1, 8, 1, 48) and not z.requires_grad and joined.aux_size is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blocks": (5,)}, "blocks 0 to 4"),
        ({"blocks": ()}, "blocks 0 to 4"),
        ({"prompt_embeds": torch.zeros(3, 4)}, r"`prompt_embeds` must have shape \(tokens, 8\), not \(3, 4\)"),
        ({"sigmas": (0.1, 0.2)}, "falling noise levels"),
        ({"guidance_scale": 1.5}, "needs `negative_prompt_embeds` and several `sigmas`"),
        ({"guidance_scale": 1.5, "negative_prompt_embeds": PROMPT}, "several `sigmas`"),
    ],
)
def test_bad_settings_are_named(models, change, message):
    with pytest.raises(ValueError, match=message):
        VaceFrameEncoder(*models, **{"prompt_embeds": PROMPT, **change})
