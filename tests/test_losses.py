# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The losses against values worked out by hand, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.losses import consistency_l1, grounding_bce, grounding_log_prob, soft_targets


def logit(probability):
    return math.log(probability / (1 - probability))


def random_case(seed, rows=3, num_evidence=4, num_frames=6):
    """Logits, targets and masks with some padding of every kind."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, num_evidence, num_frames, generator=generator)
    targets = torch.rand(rows, num_evidence, num_frames, generator=generator) < 0.4
    evidence_mask = torch.rand(rows, num_evidence, generator=generator) < 0.7
    frame_mask = torch.arange(num_frames) < torch.randint(1, num_frames + 1, (rows, 1), generator=generator)
    return logits, targets, evidence_mask, frame_mask


# --- soft targets ---


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ([1, 2], [0.5, 1, 1, 0.5]),
        ([0, 0], [1, 0.5, 0.25, 0.125]),
        ([3, 3], [0.125, 0.25, 0.5, 1]),
        ([0, 3], [1, 1, 1, 1]),
        ([0.5, 2.5], [2**-0.5, 1, 1, 2**-0.5]),  # not rounded
        ([-2, -1], [0.5, 0.25, 0.125, 0.0625]),  # nor moved into the video
        ([5, 9], [2**-5, 2**-4, 2**-3, 2**-2]),
        ([3, 1], [0.5, 1, 0.5, 1]),  # nor put in order
    ],
)
def test_soft_targets_halve_with_every_frame_of_distance(span, expected):
    assert soft_targets(torch.tensor(span), 4).tolist() == pytest.approx(expected)


def test_soft_targets_take_another_base():
    assert soft_targets(torch.tensor([0.0, 0.0]), 3, base=4.0).tolist() == [1, 0.25, 0.0625]


def test_soft_targets_take_any_leading_shape():
    spans = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [0, 1]]])
    assert soft_targets(spans, 2).tolist() == [[[1, 0.5], [0.5, 1]], [[1, 1], [1, 1]]]
    assert soft_targets(torch.zeros(2, 0, 2), 3).shape == (2, 0, 3)


# --- L_gnd, Eq. 3 ---


def test_grounding_bce_by_hand():
    """One `<evi>`, three frames with similarities .8, .5, .1, the first two inside the span."""
    logits = torch.tensor([[[logit(0.8), logit(0.5), logit(0.1)]]])
    targets = torch.tensor([[[1.0, 1.0, 0.0]]])
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.9)) / 3
    loss = grounding_bce(logits, targets, torch.tensor([[True]]), torch.ones(1, 3, dtype=torch.bool))
    assert loss.tolist() == pytest.approx([expected], rel=1e-6)


def test_grounding_bce_averages_over_evidence_of_both_stages_and_over_real_frames():
    probabilities = torch.tensor([[[0.8, 0.3], [0.6, 0.9], [0.1, 0.1]]])
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    evidence_mask = torch.tensor([[True, True, False]])
    one_frame, two_frames = torch.tensor([[True, False]]), torch.tensor([[True, True]])
    both = -(math.log(0.8) + math.log(0.7) + math.log(0.4) + math.log(0.9)) / 4
    first = -(math.log(0.8) + math.log(0.4)) / 2
    logits = probabilities.logit()
    assert grounding_bce(logits, targets, evidence_mask, two_frames).item() == pytest.approx(both, rel=1e-6)
    assert grounding_bce(logits, targets, evidence_mask, one_frame).item() == pytest.approx(first, rel=1e-6)


def test_grounding_bce_takes_soft_targets():
    logits = torch.tensor([[[logit(0.8)]]])
    expected = -(0.25 * math.log(0.8) + 0.75 * math.log(0.2))
    everything = torch.ones(1, 1, dtype=torch.bool)
    assert grounding_bce(logits, torch.tensor([[[0.25]]]), everything, everything).item() == pytest.approx(expected)


def test_grounding_bce_of_a_row_without_evidence_is_zero():
    logits, targets, evidence_mask, frame_mask = random_case(0)
    evidence_mask[1] = False
    losses = grounding_bce(logits, targets, evidence_mask, frame_mask)
    assert losses[1] == 0 and losses[0] > 0 and losses[2] > 0


# --- log p_g, Eq. 6 ---


def test_grounding_log_prob_by_hand():
    logits = torch.tensor([[[logit(0.8), logit(0.5), logit(0.1)], [logit(0.9), logit(0.2), logit(0.2)]]])
    targets = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    expected = [
        math.log(0.8) + math.log(0.5) + math.log(0.9),
        math.log(0.1) + math.log(0.8) + math.log(0.2),
    ]
    result = grounding_log_prob(logits, targets, torch.ones(1, 3, dtype=torch.bool))
    assert result[0].tolist() == pytest.approx(expected, rel=1e-5)
    # Without the last frame its factor is gone.
    result = grounding_log_prob(logits, targets, torch.tensor([[True, True, False]]))
    assert result[0].tolist() == pytest.approx([math.log(0.4), math.log(0.08)], rel=1e-5)


def test_soft_grounding_log_prob_is_the_log_of_the_mixture():
    logits = torch.tensor([[[logit(0.8), logit(0.3)]]])
    targets = torch.tensor([[[1.0, 0.25]]])
    expected = math.log(0.8) + math.log(0.25 * 0.3 + 0.75 * 0.7)
    result = grounding_log_prob(logits, targets, torch.ones(1, 2, dtype=torch.bool), soft=True)
    assert result.item() == pytest.approx(expected, rel=1e-6)


def test_grounding_log_prob_is_finite_for_a_model_that_is_sure_and_wrong():
    logits = torch.tensor([[[200.0, -200.0]]], requires_grad=True)
    targets = torch.tensor([[[0.0, 1.0]]])
    result = grounding_log_prob(logits, targets, torch.ones(1, 2, dtype=torch.bool))
    result.sum().backward()
    assert result.item() == -400
    assert logits.grad.tolist() == [[[-1, 1]]]


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_grounding_log_prob_is_minus_the_summed_bce(seed):
    logits, targets, _, frame_mask = random_case(seed, num_evidence=1)
    log_prob = grounding_log_prob(logits, targets, frame_mask)[:, 0]
    loss = grounding_bce(logits, targets, torch.ones(3, 1, dtype=torch.bool), frame_mask)
    torch.testing.assert_close(log_prob, -loss * frame_mask.sum(-1))
    # With hard targets the mixture is the same number, up to its epsilon and to what is left of 1 - sim in float32.
    log_prob, mixture = (grounding_log_prob(logits.clamp(-5, 5), targets, frame_mask, soft) for soft in (False, True))
    torch.testing.assert_close(mixture, log_prob, rtol=1e-4, atol=1e-4)


# --- L_cons, Eq. 1 ---

SPAN_A, SPAN_B = [True, False, False], [False, True, True]


def consistency(queries, stages, frames):
    stages = torch.tensor(stages)
    return consistency_l1(torch.tensor(queries), stages == 2, stages == 3, torch.tensor(frames))


def test_consistency_by_hand():
    """Two events: |1 - 2|, |0 - 4| average to 2.5; |5 - 5|, |1 - 0| to 0.5; the row to 1.5."""
    queries = [[[1.0, 0.0], [5.0, 1.0], [2.0, 4.0], [5.0, 0.0]]]
    assert consistency(queries, [[2, 2, 3, 3]], [[SPAN_A, SPAN_B, SPAN_A, SPAN_B]]).tolist() == [1.5]


def test_consistency_pairs_only_equal_spans():
    """The second `<evi>` of the response refers to another event than the second of the evidence stage."""
    queries = [[[1.0], [5.0], [3.0], [9.0]]]
    assert consistency(queries, [[2, 2, 3, 3]], [[SPAN_A, SPAN_B, SPAN_A, SPAN_A]]).tolist() == [2]
    assert consistency(queries, [[2, 2, 3, 3]], [[SPAN_A, SPAN_A, SPAN_B, SPAN_B]]).tolist() == [0]


def test_consistency_leaves_out_the_question_padding_and_evidence_without_partner():
    queries = [[[7.0], [1.0], [5.0], [3.0], [8.0]], [[1.0], [2.0], [0.0], [0.0], [0.0]]]
    stages = [[1, 2, 2, 3, 0], [2, 3, 0, 0, 0]]  # one in the question; the second event is not referred to again
    frames = [[SPAN_A, SPAN_A, SPAN_B, SPAN_A, SPAN_A], [SPAN_B] * 5]
    assert consistency(queries, stages, frames).tolist() == [2, 1]


def test_rows_without_any_evidence_cost_nothing():
    """A batch of `</evi> text` answers has no `<evi>` at all."""
    none = torch.zeros(2, 0, dtype=torch.bool)
    frames = torch.zeros(2, 0, 5, dtype=torch.bool)
    logits, queries = torch.zeros(2, 0, 5), torch.zeros(2, 0, 8)
    frame_mask = torch.ones(2, 5, dtype=torch.bool)
    assert consistency_l1(queries, none, none, frames).tolist() == [0, 0]
    assert grounding_bce(logits, frames, none, frame_mask).tolist() == [0, 0]
    assert grounding_log_prob(logits, frames, frame_mask).shape == (2, 0)


# --- What changes nothing ---


def all_losses(logits, targets, queries, stages, frame_mask):
    """Every loss of every row, `(rows, 3)`."""
    evidence_mask = stages >= 2
    log_prob = grounding_log_prob(logits, targets, frame_mask) * evidence_mask
    return torch.stack(
        [
            grounding_bce(logits, targets, evidence_mask, frame_mask),
            log_prob.sum(-1),
            consistency_l1(queries, stages == 2, stages == 3, targets),
        ],
        dim=1,
    )


def random_rows(seed, rows=3, num_events=2, num_frames=5, size=4):
    generator = torch.Generator().manual_seed(seed)
    stages = torch.tensor([2] * num_events + [3] * num_events).repeat(rows, 1)
    frames = torch.rand(rows, num_events, num_frames, generator=generator) < 0.5
    return (
        torch.randn(rows, 2 * num_events, num_frames, generator=generator),
        torch.cat([frames, frames], dim=1),
        torch.randn(rows, 2 * num_events, size, generator=generator),
        stages,
        torch.arange(num_frames) < torch.randint(1, num_frames + 1, (rows, 1), generator=generator),
    )


@given(st.integers(0, 10_000), st.permutations([0, 1, 2]))
@settings(deadline=None, max_examples=40)
def test_permuting_rows_permutes_losses(seed, order):
    case = random_rows(seed)
    torch.testing.assert_close(all_losses(*(tensor[order] for tensor in case)), all_losses(*case)[order])


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_padding_frames_and_tokens_changes_nothing(seed, more_frames, more_evidence):
    logits, targets, queries, stages, frame_mask = random_rows(seed)
    pad = torch.nn.functional.pad
    padded = (
        pad(logits, (0, more_frames, 0, more_evidence), value=9.0),
        pad(targets, (0, more_frames, 0, more_evidence), value=False),
        pad(queries, (0, 0, 0, more_evidence), value=9.0),
        pad(stages, (0, more_evidence), value=0),
        pad(frame_mask, (0, more_frames), value=False),
    )
    torch.testing.assert_close(all_losses(*padded), all_losses(logits, targets, queries, stages, frame_mask))


def test_gradients_flow_to_what_counts_and_nowhere_else():
    logits, targets, queries, stages, frame_mask = random_rows(3)
    stages[1] = 0
    logits.requires_grad_(), queries.requires_grad_()
    all_losses(logits, targets, queries, stages, frame_mask).sum().backward()
    counts = ((stages >= 2).unsqueeze(-1) & frame_mask.unsqueeze(1)).expand_as(logits)
    assert torch.equal(logits.grad != 0, counts)
    assert (queries.grad[[0, 2]] != 0).all() and (queries.grad[1] == 0).all()


def test_losses_are_computed_in_float32_from_half_precision():
    logits = torch.tensor([[[8.0, -8.0]]], dtype=torch.bfloat16)
    targets = torch.tensor([[[True, False]]])
    log_prob = grounding_log_prob(logits, targets, torch.ones(1, 2, dtype=torch.bool))
    assert log_prob.dtype == torch.float32
    assert log_prob.item() == pytest.approx(2 * math.log(1 / (1 + math.exp(-8))), rel=1e-3)
