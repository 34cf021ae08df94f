# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Time embedding, fusion, object tokens and time anchors of Grounded-VideoDiT."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.models.grounded_videodit import (
    MLPTimeEmbedding,
    ObjectTokens,
    SinusoidalTimeEmbedding,
    TemporalFusion,
    TimeAnchors,
    masks_to_grid,
    normalized_times,
    object_tokens,
    weave_anchors,
)


def frames(*num_frames):
    """Mask of a batch with so many frames."""
    return torch.arange(max(num_frames)) < torch.tensor(num_frames).unsqueeze(1)


def paper_times(num_frames):
    """(t - 1) / (T - 1): uniform frames the last of which stands at the end."""
    return torch.arange(num_frames).float().unsqueeze(0) / max(num_frames - 1, 1)


@pytest.mark.parametrize("num_frames", [1, 2, 96])
def test_times_of_uniform_frames_are_those_of_the_paper(num_frames):
    seconds = 0.5 * torch.arange(num_frames).unsqueeze(0)
    duration_s = torch.tensor([max(0.5 * (num_frames - 1), 0.5)])
    times = normalized_times(seconds, duration_s, frames(num_frames))
    torch.testing.assert_close(times, paper_times(num_frames))


def test_times_do_not_depend_on_padding():
    mask = frames(2, 4)
    timestamps_s = torch.tensor([[0.0, 2.0, math.nan, -7.0], [0.0, 1.0, 2.0, 9.0]])
    times = normalized_times(timestamps_s, torch.tensor([4.0, 10.0]), mask)
    torch.testing.assert_close(times, torch.tensor([[0.0, 0.5, 0.0, 0.0], [0.0, 0.1, 0.2, 0.9]]))


@pytest.mark.parametrize("duration_s", [0.0, -1.0, math.nan, math.inf])
def test_unknown_duration_is_refused(duration_s):
    with pytest.raises(ValueError, match="`duration_s` of video 1 is"):
        normalized_times(torch.zeros(2, 1), torch.tensor([1.0, duration_s]), frames(1, 1))


@pytest.mark.parametrize(
    ("timestamps_s", "fault"),
    [
        ([0.0, 1.0, 1.0], "1.0 at frame 2 after 1.0"),
        ([0.0, 2.0, 1.0], "1.0 at frame 2"),
        ([-1.0, 0.0, 1.0], "-1.0 at"),
        ([0.0, 1.0, 4.5], "4.5 at frame 2, but `duration_s` is 4.0"),
    ],
)
def test_bad_timestamps_are_refused(timestamps_s, fault):
    with pytest.raises(ValueError, match=f"`timestamps_s` of video 1 is {fault}"):
        normalized_times(torch.tensor([[0.0, 1.0, 2.0], timestamps_s]), torch.tensor([4.0, 4.0]), frames(3, 3))


@pytest.mark.parametrize("time_scale", ["frames", 1.0, 1000.0])
def test_sinusoidal_embedding_is_the_equation(time_scale):
    size, mask = 8, frames(5)
    scale = 4 if time_scale == "frames" else time_scale
    embedding = SinusoidalTimeEmbedding(size, time_scale=time_scale)(paper_times(5), mask)[0]
    for t in range(5):
        for k in range(size // 2):
            angle = scale * (t / 4) / 10000 ** (2 * k / size)
            assert embedding[t, 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert embedding[t, 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)


def participation_rank(codes):
    """In how many dimensions the codes spread: (sum of variances)^2 / sum of their squares, along the main axes."""
    variances = torch.linalg.svdvals(codes.double() - codes.double().mean(0)) ** 2
    return (variances.sum() ** 2 / (variances**2).sum()).item()


@pytest.mark.parametrize(("size", "ranks"), [(64, (1.02, 11.2, 22.0)), (256, (1.02, 11.8, 26.5))])
def test_scale_in_frames_tells_frames_apart(size, ranks):
    """Why the equation is not taken literally: its codes of 96 frames lie on a line, the first near the last."""
    for time_scale, rank in zip((1.0, "frames", 1000.0), ranks, strict=True):
        codes = SinusoidalTimeEmbedding(size, time_scale=time_scale)(paper_times(96), frames(96))[0]
        assert participation_rank(codes) == pytest.approx(rank, rel=0.01)
        assert (torch.cosine_similarity(codes[0], codes[-1], dim=0) > 0.96) == (time_scale == 1.0)


def test_scale_counts_the_frames_of_each_video():
    embed = SinusoidalTimeEmbedding(16)
    short, long = paper_times(3), paper_times(9)
    batch = torch.cat([torch.nn.functional.pad(short, (0, 6)), long])
    both = embed(batch, frames(3, 9))
    torch.testing.assert_close(both[0, :3], embed(short, frames(3))[0])
    torch.testing.assert_close(both[1], embed(long, frames(9))[0])


@pytest.mark.parametrize("embed", [SinusoidalTimeEmbedding(8), MLPTimeEmbedding(8)])
def test_one_frame(embed):
    embedding = embed(normalized_times(torch.zeros(1, 1), torch.ones(1), frames(1)), frames(1))
    assert embedding.shape == (1, 1, 8) and embedding.isfinite().all()
    later = embed(normalized_times(torch.ones(1, 1), torch.full((1,), 2.0), frames(1)), frames(1))
    assert later.isfinite().all() and not torch.allclose(later, embedding)  # its scale is 1, not 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"size": 7}, "even"),
        ({"size": 0}, "even"),
        ({"size": 8, "base": 0.0}, "`base` is 0.0"),
        ({"size": 8, "time_scale": "seconds"}, "`time_scale` is 'seconds'"),
        ({"size": 8, "time_scale": 0.0}, "`time_scale` is 0.0"),
    ],
)
def test_bad_settings_of_the_embedding(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        SinusoidalTimeEmbedding(**arguments)


def test_mlp_embedding_reads_time_and_its_square():
    embed = MLPTimeEmbedding(4)
    seen = []
    embed.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embed(torch.tensor([[0.0, 0.5]]), frames(2))
    assert seen[0].tolist() == [[[0.0, 0.0], [0.5, 0.25]]]


def test_fusion_is_the_equation():
    torch.manual_seed(0)
    fusion = TemporalFusion(feature_size=3, text_size=2, time_size=4, hidden_size=5)
    torch.nn.init.normal_(fusion.norm.weight)
    z, text, time = torch.randn(2, 6, 3), torch.randn(2, 2), torch.randn(2, 6, 4)
    fused = fusion(z, text, time)
    joined = torch.cat([z[1, 4], text[1], time[1, 4]])
    normed = (joined - joined.mean()) / (joined.var(correction=0) + 1e-5).sqrt() * fusion.norm.weight
    torch.testing.assert_close(fused[1, 4], fusion.projection.weight @ normed + fusion.projection.bias)


def test_fusion_takes_cached_half_precision_and_no_time():
    fusion = TemporalFusion(feature_size=3, text_size=2, time_size=0, hidden_size=5)
    assert fusion(torch.randn(2, 6, 3).half(), torch.randn(2, 2).bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"sizes \(3, 2, 4\), but this module fuses \(3, 2, 0\)"):
        fusion(torch.randn(2, 6, 3), torch.randn(2, 2), torch.randn(2, 6, 4))


def test_masks_to_grid_is_the_covered_share():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, :2, :2] = True  # the first of 2 x 2 places, two thirds of it
    assert masks_to_grid(masks, (2, 2)).tolist()[0] == pytest.approx([2 / 3, 0, 0, 0])
    assert masks_to_grid(masks, (1, 1)).tolist() == [[pytest.approx(4 / 24)], [0.0]]
    assert masks_to_grid(masks.view(1, 2, 1, 4, 6), (2, 3)).shape == (1, 2, 1, 6)


def object_inputs(num_objects, num_frames=3, num_places=5, feature_size=6):
    torch.manual_seed(num_objects)
    return {
        "features": torch.randn(2, num_frames, num_places, feature_size),
        "masks": torch.rand(2, num_objects, num_frames, num_places),
        "boxes": torch.rand(2, num_objects, num_frames, 4),
        "scores": torch.rand(2, num_objects),
        "frame_mask": torch.ones(2, num_frames, dtype=torch.bool),
    }


def test_object_token_is_the_mean_under_the_mask_and_the_boxes():
    tokens, inputs = ObjectTokens(6, 8, num_tokens=2), object_inputs(2)
    inputs["masks"][0, 1, 2] = 0  # not seen in the last frame
    inputs["boxes"][0, 1, 2] = math.nan
    weights = inputs["masks"][0, 1].flatten()
    mean = (weights.unsqueeze(1) * inputs["features"][0].flatten(0, 1)).sum(0) / weights.sum()
    boxes = tokens.box_mlp(inputs["boxes"][0, 1, :2]).mean(0)
    torch.testing.assert_close(tokens(**inputs)[0, 1], tokens.projection(tokens.norm(mean)) + boxes)


def test_full_mask_is_the_mean_frame():
    tokens, inputs = ObjectTokens(6, 8, num_tokens=1), object_inputs(1)
    inputs["masks"].fill_(1.0)
    mean = inputs["features"].mean((1, 2))
    expected = tokens.projection(tokens.norm(mean)) + tokens.box_mlp(inputs["boxes"][:, 0]).mean(1)
    torch.testing.assert_close(tokens(**inputs)[:, 0], expected)


@pytest.mark.parametrize("num_objects", [0, 1, 3])
def test_empty_masks_are_no_object_without_nan(num_objects):
    tokens, inputs = ObjectTokens(6, 8), object_inputs(num_objects)
    inputs["masks"].zero_()
    inputs["boxes"].fill_(math.nan)
    inputs["scores"].fill_(math.nan)
    inputs["features"].requires_grad_()
    out = tokens(**inputs)
    torch.testing.assert_close(out, tokens.no_object.weight.expand(2, 4, -1))
    out.square().sum().backward()
    gradients = [parameter.grad for parameter in tokens.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert tokens.no_object.weight.grad.abs().sum() > 0


def test_object_tokens_do_not_depend_on_padding():
    tokens, inputs = ObjectTokens(6, 8), object_inputs(2)
    alone = tokens(**inputs)
    padded = dict(inputs)
    padded["features"] = torch.cat([inputs["features"], torch.full((2, 2, 5, 6), math.nan)], 1)
    padded["masks"] = torch.cat([inputs["masks"], torch.ones(2, 2, 2, 5)], 2)
    padded["boxes"] = torch.cat([inputs["boxes"], torch.full((2, 2, 2, 4), math.nan)], 2)
    padded["frame_mask"] = frames(3, 5)[:1].expand(2, -1)
    out = tokens(**padded)
    torch.testing.assert_close(out, alone)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in tokens.parameters())


def test_budget_keeps_the_highest_scores_in_order(monkeypatch):
    warned = []
    monkeypatch.setattr(object_tokens.logger, "warning_once", warned.append)
    tokens, inputs = ObjectTokens(6, 8, num_tokens=2), object_inputs(4)
    inputs["scores"] = torch.tensor([[0.3, 0.9, 0.1, 0.5], [0.9, 0.2, 0.8, 0.7]])
    inputs["masks"][1, 0] = 0  # lost from the start: does not displace another, whatever its score
    every = ObjectTokens(6, 8, num_tokens=4)
    every.load_state_dict(tokens.state_dict())
    both = every(**inputs)
    kept = tokens(**inputs)
    torch.testing.assert_close(kept[0], both[0, [1, 3]])
    torch.testing.assert_close(kept[1], both[1, [1, 2]])  # `every` has put the lost one behind: 1, 2, 3, none
    assert len(warned) == 1 and "more than 2 tracked objects" in warned[0]


def test_objects_change_their_tokens():
    tokens, inputs = ObjectTokens(6, 8), object_inputs(2)
    before = tokens(**inputs)
    for name in ("masks", "boxes", "features"):
        changed = {**inputs, name: inputs[name].clone()}
        changed[name][0, 0] = changed[name][0, 0].flip(-1) + 0.1
        after = tokens(**changed)
        assert not torch.allclose(after[0, 0], before[0, 0])
        torch.testing.assert_close(after[1], before[1])


@given(num_frames=st.lists(st.integers(1, 20), min_size=1, max_size=4), num_anchors=st.integers(1, 9))
@settings(deadline=None)
def test_woven_sequence(num_frames, num_anchors):
    """Every frame and every anchor once, frames in order, anchors in front of their frames, padding behind."""
    mask = frames(*num_frames)
    time = torch.randn(*mask.shape, 2)
    anchors, positions = TimeAnchors(4, 2, num_anchors)(mask, time)
    frame_tokens = torch.randn(*mask.shape, 4)
    tokens, token_mask, frame_index = weave_anchors(anchors, positions, frame_tokens, mask)
    for row, count in enumerate(num_frames):
        length = count + num_anchors
        assert token_mask[row].tolist() == [True] * length + [False] * (len(token_mask[row]) - length)
        index = frame_index[row].tolist()
        assert [frame for frame in index if frame >= 0] == list(range(count)) and set(index[length:]) <= {-1}
        is_anchor = frame_index[row, :length] < 0
        torch.testing.assert_close(tokens[row, :length][is_anchor], anchors[row])
        torch.testing.assert_close(tokens[row, :length][~is_anchor], frame_tokens[row, :count])
        following = [next(frame for frame in index[place:] if frame >= 0) for place in is_anchor.nonzero()[:, 0]]
        assert following == positions[row].tolist()
        gaps = torch.tensor(following + [count]).diff()
        assert following[0] == 0 and gaps.max() - gaps.min() <= 1  # at equal distances


def test_anchors_know_their_time():
    mask = frames(8, 16)
    time = torch.randn(2, 16, 6)
    anchors = TimeAnchors(hidden_size=4, time_size=6)
    tokens, positions = anchors(mask, time)
    assert positions.tolist() == [list(range(8)), list(range(0, 16, 2))]
    expected = anchors.embedding.weight[3] + anchors.projection(time[1, 6])
    torch.testing.assert_close(tokens[1, 3], expected)
    timeless, _ = TimeAnchors(hidden_size=4, time_size=0)(mask)
    torch.testing.assert_close(timeless[0], timeless[1])
