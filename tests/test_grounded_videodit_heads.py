# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Start/end head, its decoding and its labels, and the KL regularisation of Grounded-VideoDiT."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.data import row_checks
from trl_temporal.models.d2vlm import frame_run_to_span, spans_to_frame_mask
from trl_temporal.models.grounded_videodit import (
    FeatureAlignment,
    SpanHead,
    decode_spans,
    feature_alignment,
    frames_to_spans,
    span_cross_entropy,
    span_log_prob,
    spans_to_frames,
)
from trl_temporal.models.grounded_videodit.time_tokens import DURATION_SLACK_S


def frames(*num_frames):
    """Mask of a batch with so many frames."""
    return torch.arange(max(num_frames)) < torch.tensor(num_frames).unsqueeze(1)


def brute_force(start_logits, end_logits):
    """Log-probabilities of all spans that run forwards, `(rows, T, T)`."""
    scores = start_logits.log_softmax(1).unsqueeze(2) + end_logits.log_softmax(1).unsqueeze(1)
    return scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).triu(), -torch.inf)


@pytest.mark.parametrize("kind", ["normal", "sharp", "ties"])
def test_decoding_equals_brute_force_on_10_000_cases(kind):
    generator = torch.Generator().manual_seed(0)
    cases = 0
    for num_frames in (1, 2, 3, 5, 8, 13, 24, 40, 64, 96):
        size = (1000, num_frames)
        start, end = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
        if kind == "sharp":  # probabilities that a product of them, not in logarithms, would round to zero
            start, end = 100 * start, 100 * end
        if kind == "ties":
            start, end = start.round(), end.round()
        num_real = torch.randint(1, num_frames + 1, (1000, 1), generator=generator)
        offset = torch.randint(0, num_frames, (1000, 1), generator=generator) % (num_frames - num_real + 1)
        frame = torch.arange(num_frames)
        is_padding = (frame < offset) | (frame >= offset + num_real)  # on either side
        start, end = start.masked_fill(is_padding, -torch.inf), end.masked_fill(is_padding, -torch.inf)
        decoded = decode_spans(start, end)
        scores = brute_force(start, end).flatten(1)
        best, index = scores.max(1)
        torch.testing.assert_close(decoded.log_probs, best, rtol=0, atol=0)
        first, last = decoded.frames.unbind(1)
        assert (first <= last).all() and not is_padding.gather(1, decoded.frames).any()
        torch.testing.assert_close(scores.gather(1, (first * num_frames + last).unsqueeze(1))[:, 0], best)
        # Of equal spans the one that ends first, and of these the shortest.
        tied = (scores == best.unsqueeze(1)).view(-1, num_frames, num_frames)
        earliest = tied.any(1).int().argmax(1)
        latest_start = (
            num_frames
            - 1
            - tied.flip(1).gather(2, earliest.view(-1, 1, 1).expand(-1, num_frames, 1)).int().argmax(1)[:, 0]
        )
        assert (last == earliest).all() and (first == latest_start).all()
        if kind == "normal":
            assert (first == index // num_frames).all() and (last == index % num_frames).all()
        cases += len(start)
    assert cases == 10_000


def test_decoding_does_not_take_each_maximum_alone():
    start, end = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    assert decode_spans(start, end).frames.tolist() == [[2, 2]]
    uniform = torch.zeros(1, 3)
    assert decode_spans(uniform, uniform).frames.tolist() == [[0, 0]]


@pytest.mark.parametrize("logits", [[math.nan, 0.0], [-math.inf, -math.inf]])
def test_decoding_refuses_what_has_no_span(logits):
    batch = torch.tensor([[0.0, 0.0], logits])
    with pytest.raises(ValueError, match="Row 1 has no span"):
        decode_spans(batch, batch)


@pytest.mark.parametrize("context", ["none", "bi_layer"])
def test_probabilities_are_those_of_the_real_frames(context):
    torch.manual_seed(0)
    head = SpanHead(16, span_head_context=context)
    states, mask = torch.randn(3, 7, 16), frames(7, 4, 1)
    garbage = states.masked_fill(~mask.unsqueeze(-1), math.nan).requires_grad_()
    start, end = head(garbage, mask)
    assert (start.isinf() == ~mask).all() and (end.isinf() == ~mask).all()
    torch.testing.assert_close(start.softmax(1).sum(1), torch.ones(3))
    for row, count in enumerate((7, 4, 1)):
        alone = head(states[row : row + 1, :count], frames(count))
        torch.testing.assert_close(start[row, :count], alone[0][0])
        torch.testing.assert_close(end[row, :count], alone[1][0])
    (span_cross_entropy(start, end, torch.tensor([[[0, 3]], [[1, 2]], [[0, 0]]])).sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_head_is_the_equation():
    torch.manual_seed(0)
    head, states = SpanHead(16, span_head_context="none"), torch.randn(1, 5, 16)
    start, end = head(states, frames(5))
    w_s, w_e = head.classifiers.weight
    torch.testing.assert_close(start.softmax(1), (states @ w_s).softmax(1))
    torch.testing.assert_close(end.softmax(1), (states @ w_e).softmax(1))
    assert head.classifiers.bias is None


def test_context_layer_sees_both_directions():
    """A head without it, over causal states, cannot tell a start from what follows."""
    torch.manual_seed(0)
    states, mask = torch.randn(1, 6, 16, requires_grad=True), frames(6)
    for context, sees in (("none", False), ("bi_layer", True)):
        start, _ = SpanHead(16, span_head_context=context)(states, mask)
        (gradient,) = torch.autograd.grad(start[0, 2], states)
        others = gradient[0, [0, 1, 3, 4, 5]].abs().sum(-1)
        assert (others > 0).all() if sees else (others == 0).all()


def test_head_refuses_rows_without_frames_and_bad_settings():
    mask = frames(3, 3)
    mask[1] = False
    with pytest.raises(ValueError, match="Row 1 has no frame"):
        SpanHead(8)(torch.randn(2, 3, 8), mask)
    with pytest.raises(ValueError, match="`span_head_context` is 'both'"):
        SpanHead(8, span_head_context="both")
    with pytest.raises(ValueError, match="`hidden_size` 10 is not a multiple of the 4"):
        SpanHead(10)


def test_head_in_half_precision_gives_float32():
    start, _ = SpanHead(8).bfloat16()(torch.randn(1, 3, 8), frames(3))
    assert start.dtype == torch.float32


def padded_logits():
    torch.manual_seed(0)
    is_padding = ~frames(5, 3)
    return [torch.randn(2, 5).masked_fill(is_padding, -torch.inf) for _ in range(2)]


def test_log_prob_of_all_spans_is_that_of_brute_force():
    start, end = padded_logits()
    spans = torch.tensor([[[a, b] for a in range(5) for b in range(a, 5)]])
    expected = brute_force(start, end)[0][tuple(spans[0].T)]
    torch.testing.assert_close(span_log_prob(start[:1], end[:1], spans)[0], expected)
    # The best of all is what is decoded.
    torch.testing.assert_close(expected.max(), decode_spans(start, end).log_probs[0])


def test_rows_may_have_fewer_spans():
    start, end = (logits.requires_grad_() for logits in padded_logits())
    spans = torch.tensor([[[0, 4], [1, 1]], [[0, 2], [-1, -1]]])
    for sigma in (0.0, 1.0):
        loss = span_cross_entropy(start, end, spans, label_sigma=sigma)
        assert loss[1, 1] == 0 and (loss.flatten()[:3] > 0).all()
        gradient, _ = torch.autograd.grad(loss.sum(), (start, end))
        assert gradient.isfinite().all()
    assert span_log_prob(start, end, torch.zeros(2, 0, 2, dtype=torch.long)).shape == (2, 0)


def test_hard_loss_is_cross_entropy():
    start, end = padded_logits()
    spans = torch.tensor([[[1, 4]], [[0, 2]]])
    expected = torch.nn.functional.cross_entropy(start, spans[:, 0, 0], reduction="none")
    expected += torch.nn.functional.cross_entropy(end, spans[:, 0, 1], reduction="none")
    torch.testing.assert_close(span_cross_entropy(start, end, spans)[:, 0], expected)
    torch.testing.assert_close(span_cross_entropy(start, end, spans, label_sigma=1e-2)[:, 0], expected)


def test_soft_loss_is_cross_entropy_with_a_cut_normal_distribution():
    start, end = padded_logits()
    loss = span_cross_entropy(start, end, torch.tensor([[[1, 4]], [[0, 2]]]), label_sigma=1.5)
    expected = 0.0
    for logits, label in ((start[1, :3], 0), (end[1, :3], 2)):  # the second row has three frames
        weights = torch.tensor([math.exp(-((frame - label) ** 2) / (2 * 1.5**2)) for frame in range(3)])
        expected -= (weights / weights.sum() * logits.log_softmax(0)).sum()
    torch.testing.assert_close(loss[1, 0], expected)


@pytest.mark.parametrize("span", [[2, 1], [0, 5], [-1, 2], [-2, -2], [1, 3]])
@pytest.mark.parametrize("score", [span_log_prob, span_cross_entropy])
def test_spans_that_do_not_exist_are_refused(score, span):
    start, end = padded_logits()  # row 1 has three frames
    with pytest.raises(ValueError, match="Span 0 of row 1 is from frame"):
        score(start, end, torch.tensor([[[0, 0]], [span]]))


def test_negative_sigma_is_refused():
    start, end = padded_logits()
    with pytest.raises(ValueError, match="`label_sigma` is -1.0"):
        span_cross_entropy(start, end, torch.tensor([[[0, 0]], [[0, 0]]]), label_sigma=-1.0)


@st.composite
def clips(draw):
    """Timestamps at any distances and the duration."""
    steps = draw(st.lists(st.floats(0.05, 5), min_size=1, max_size=20))
    return np.cumsum([0.0, *steps[:-1]]).tolist(), float(np.cumsum(steps)[-1])


@given(clips(), st.lists(st.tuples(st.floats(0, 0.99), st.floats(0, 1)).map(sorted), max_size=4))
@settings(deadline=None)
def test_labels_follow_the_rule_of_frames(clip, shares):
    """Frames by their midpoints, the same as those of the other model of this package."""
    timestamps_s, duration_s = clip
    spans = [[share * duration_s for share in span] for span in shares]
    labels = spans_to_frames(spans, timestamps_s, duration_s)
    masks = spans_to_frame_mask(spans, timestamps_s, duration_s)
    seconds = frames_to_spans(labels, timestamps_s, duration_s)
    for (first, last), mask, span_s in zip(labels.tolist(), masks, seconds, strict=True):
        assert np.flatnonzero(mask).tolist() == list(range(first, last + 1))
        assert span_s == frame_run_to_span(mask, timestamps_s, duration_s)


@given(clips(), st.data())
@settings(deadline=None)
def test_frames_survive_seconds(clip, data):
    timestamps_s, duration_s = clip
    index = st.integers(0, len(timestamps_s) - 1)
    runs = data.draw(st.lists(st.tuples(index, index).map(sorted), max_size=4))
    assert spans_to_frames(frames_to_spans(runs, timestamps_s, duration_s), timestamps_s, duration_s).tolist() == runs


@pytest.mark.parametrize(
    ("span", "fault"),
    [
        ([3.0, 1.0], "ends before it starts"),
        ([-1.0, 1.0], "starts before 0"),
        ([5.1, 5.1], "ends more than a frame behind"),
        ([1.0, 5.5], "ends more than a frame behind"),
        ([1.0, math.nan], "is not finite"),
    ],
)
def test_bad_labels_are_refused(span, fault):
    with pytest.raises(ValueError, match=f"Span 1, .* s, {fault}"):
        spans_to_frames([[0.0, 1.0], span], timestamps_s=[0.0, 1.0, 2.0, 3.0], duration_s=4.0)


def test_a_label_slightly_too_long_is_clipped_with_a_warning():
    with pytest.warns(UserWarning, match=r"Span 0, \[1.0, 4.5\] s, ends behind the end"):
        assert spans_to_frames([[1.0, 4.5]], [0.0, 1.0, 2.0, 3.0], 4.0).tolist() == [[1, 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spans_to_frames([[1.0, 4.0]], [0.0, 1.0, 2.0, 3.0], 4.0).tolist() == [[1, 3]]
    # A moment at the end, and a label that starts there: the last frame.
    assert spans_to_frames([[4.0, 4.0]], [0.0, 1.0, 2.0, 3.0], 4.0).tolist() == [[3, 3]]
    with pytest.warns(UserWarning, match="it is clipped"):
        assert spans_to_frames([[4.2, 4.5]], [0.0, 1.0, 2.0, 3.0], 4.0).tolist() == [[3, 3]]
    # What the checks of rows let pass is no error here, however short the frames.
    with pytest.warns(UserWarning, match="it is clipped"):
        assert spans_to_frames([[0.0, 1.04]], [index / 100 for index in range(100)], 1.0).tolist() == [[0, 99]]


def test_what_rows_may_pass_the_end_by_is_the_same_everywhere():
    assert DURATION_SLACK_S == row_checks.DURATION_SLACK_S


@pytest.mark.parametrize(
    ("timestamps_s", "duration_s", "fault"),
    [
        ([], 4.0, "at least one frame"),
        ([0.0, 2.0, 1.0], 4.0, "must increase"),
        ([0.0, 1.0, 1.0], 4.0, "must increase"),
        ([-1.0, 1.0], 4.0, "must increase"),
        ([0.0, 5.0], 4.0, "must increase from 0 or later to at most `duration_s`, 4.0 s"),
        ([0.0, math.nan], 4.0, "must increase"),
        ([0.0, 1.0], math.nan, "must increase"),
    ],
)
def test_bad_times_of_frames_are_refused(timestamps_s, duration_s, fault):
    with pytest.raises(ValueError, match=fault):
        spans_to_frames([[0.0, 1.0]], timestamps_s, duration_s)
    with pytest.raises(ValueError, match=fault):
        frames_to_spans([[0, 0]], timestamps_s, duration_s)


def test_frames_that_do_not_exist_have_no_seconds():
    with pytest.raises(ValueError, match="Span 1 of row 0"):
        frames_to_spans([[0, 1], [1, 2]], timestamps_s=[0.0, 1.0], duration_s=2.0)
    with pytest.raises(ValueError, match="Span 0 of row 0 is from frame -1"):
        frames_to_spans([[-1, -1]], timestamps_s=[0.0, 1.0], duration_s=2.0)


@pytest.mark.parametrize("direction", ["diff_aux", "aux_diff"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_the_equation(direction, temperature):
    torch.manual_seed(0)
    align = FeatureAlignment(6, 4, kl_temperature=temperature, kl_direction=direction)
    features, aux, mask = torch.randn(2, 5, 6), 3 * torch.randn(2, 5, 4), frames(5, 3)
    p_diff = (align.kl_proj(features) / temperature).softmax(-1)
    p_aux = (aux / temperature).softmax(-1)
    p, q = (p_diff, p_aux) if direction == "diff_aux" else (p_aux, p_diff)
    divergence = (p * (p.log() - q.log())).sum(-1)
    expected = torch.stack([divergence[0].mean(), divergence[1, :3].mean()])
    features, aux = (part.masked_fill(~mask.unsqueeze(-1), math.nan) for part in (features, aux))
    features.requires_grad_(), aux.requires_grad_()
    loss = align(features, aux, mask)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert aux.grad is None  # a target, not something to learn
    assert features.grad[mask].abs().sum() > 0 and features.grad.isfinite().all()
    assert align.kl_proj.weight.grad.isfinite().all() and align.kl_proj.weight.grad.abs().sum() > 0


def test_kl_is_zero_for_equal_features_and_its_direction_matters():
    align = FeatureAlignment(4, 4)
    with torch.no_grad():
        align.kl_proj.weight.copy_(torch.eye(4))
        align.kl_proj.bias.zero_()
    features = torch.randn(1, 3, 4, requires_grad=True)
    assert align(features, features, frames(3)).abs() < 1e-6
    other = FeatureAlignment(4, 4, kl_direction="aux_diff")
    other.load_state_dict(align.state_dict())
    aux = 5 * torch.randn(1, 3, 4)
    assert not torch.allclose(align(features, aux, frames(3)), other(features, aux, frames(3)))


def test_kl_says_when_it_teaches_nothing(monkeypatch):
    warned = []
    monkeypatch.setattr(feature_alignment.logger, "warning_once", warned.append)
    align, aux, mask = FeatureAlignment(6, 4), torch.randn(1, 3, 4), frames(3)
    align(torch.randn(1, 3, 6, requires_grad=True), aux, mask)
    align.eval()(torch.randn(1, 3, 6), aux, mask)
    assert not warned
    align.train()(torch.randn(1, 3, 6), aux, mask)
    assert len(warned) == 1 and "trains nothing but its own projection" in warned[0]


@pytest.mark.parametrize("arguments", [{"kl_temperature": 0.0}, {"kl_direction": "both"}])
def test_bad_settings_of_the_kl(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FeatureAlignment(6, 4, **arguments)
