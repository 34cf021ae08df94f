# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Prefix sharing and encode-once against plain forwards of two rows, and the grounding term in `log_probs`."""

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from tests.helpers import assert_same_gradients, noise_video, preference_row
from trl_temporal import D2VLMForConditionalGeneration
from trl_temporal.data.collator import PreferenceCollator
from trl_temporal.losses import grounding_log_prob, soft_targets
from trl_temporal.models.d2vlm import modeling_d2vlm
from trl_temporal.trainer import fused_forward
from trl_temporal.trainer.fused_forward import add_evidence_head
from trl_temporal.trainer.pairs import Pairs
from trl_temporal.trainer.shared_videos import SharedVideos

PAIRS = [
    preference_row(  # longer by one event
        "<evi> </evi> It happens in <evi>.",
        [[0.5, 1.5]],
        "<evi> <evi> </evi> It happens in <evi> and <evi>.",
        [[0.5, 1.5], [2.0, 3.0]],
        video="noise-1-8",
    ),
    preference_row(  # other spans alone; the question refers to an event; a longer video
        "<evi> </evi> The red disc <evi>.",
        [[1.0, 2.0]],
        "<evi> </evi> The red disc <evi>.",
        [[2.0, 4.5]],
        video="noise-2-12",
        question="What blinks during <evi> and nothing else?",
        prompt_spans=[[0.0, 2.0]],
    ),
    preference_row(  # no evidence in the worse answer; the video of the first pair
        "<evi> </evi> The blue cross <evi>.", [[0.0, 0.5]], "</evi> Nothing at all.", [], video="noise-1-8"
    ),
    preference_row("Hello there.", [], "No.", [], video=None, question="Hi!"),  # no video
]


def fused(tiny_dir, *, prefix_sharing, attn_implementation="sdpa", video_attention="causal", **kwargs):
    """A fresh tiny model as the trainer patches it, and the list of its outputs."""
    model = D2VLMForConditionalGeneration.from_pretrained(
        tiny_dir, dtype=torch.float32, attn_implementation=attn_implementation
    )
    model.config.video_attention = video_attention
    add_fused_lm_head(model)
    outputs = []
    arguments = {"grounding_coef": 1.0, "soft_target_base": None, **kwargs}
    videos = SharedVideos(trained=True, kept=False)
    add_evidence_head(model, prefix_sharing=prefix_sharing, videos=videos, on_output=outputs.append, **arguments)
    return model, outputs


def run(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return model(**inputs, labels=labels, fused_lm_head=True)


def forward_backward(model, batch):
    """The output, and the gradient of a sum with a random weight on every number that a loss may use."""
    output = run(model, batch)
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for name in ("log_probs", "text_log_probs", "evidence_logits", "evidence_queries"):
        value = output[name]
        if name.startswith("evidence"):
            value = value * output.evidence_mask.unsqueeze(-1)
        total = total + (value * torch.randn(value.shape, generator=generator)).mean()
    total.backward()
    return output, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_shared_equals_plain(tiny_dir, batch, **kwargs):
    plain, expected = forward_backward(fused(tiny_dir, prefix_sharing=False, **kwargs)[0], batch)
    shared, gradients = forward_backward(fused(tiny_dir, prefix_sharing=True, **kwargs)[0], batch)
    torch.testing.assert_close(shared.text_log_probs, plain.text_log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.log_probs, plain.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.grounding_log_probs, plain.grounding_log_probs, rtol=1e-5, atol=1e-5)
    mask = plain.evidence_mask
    assert torch.equal(shared.evidence_mask, mask) and torch.equal(shared.frame_mask, plain.frame_mask)
    for name in ("evidence_logits", "evidence_queries"):
        torch.testing.assert_close(shared[name][mask], plain[name][mask], rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients, expected)


@pytest.fixture
def batch(tiny):
    return PreferenceCollator(tiny[1], noise_video, soft_targets=True)(PAIRS)


ATTENTION = pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
VIDEO_ATTENTION = pytest.mark.parametrize("video_attention", ["causal", "bidirectional"])


@ATTENTION
@VIDEO_ATTENTION
def test_shared_prompts_equal_two_rows(tiny_dir, batch, attn_implementation, video_attention):
    """Log-probabilities, evidence and the gradient of every parameter, in float32."""
    assert_shared_equals_plain(
        tiny_dir, batch, attn_implementation=attn_implementation, video_attention=video_attention
    )


def test_shared_prompts_equal_two_rows_on_real_files(tiny, tiny_dir, preferences, read_video):
    batch = PreferenceCollator(tiny[1], read_video)([preferences[index] for index in (0, 1, 5)])
    del batch["factor"]
    assert_shared_equals_plain(tiny_dir, batch)


def test_shared_prompts_equal_two_rows_on_the_papers_backbone(native, tmp_path):
    """Where the question goes through a Q-Former, too."""
    model, processor = native
    model.save_pretrained(tmp_path)
    assert_shared_equals_plain(tmp_path, PreferenceCollator(processor, noise_video)(PAIRS))


@pytest.mark.parametrize("fault", ["responses see each other", "positions go on", "evidence of the other response"])
def test_the_comparison_notices_a_wrong_mask_and_wrong_positions(tiny_dir, batch, monkeypatch, fault):
    if fault == "responses see each other":
        build = modeling_d2vlm.build_attention_mask
        monkeypatch.setattr(
            modeling_d2vlm,
            "build_attention_mask",
            lambda mask, is_frame, segments, *rest: build(mask, is_frame, torch.zeros_like(segments), *rest),
        )
    else:
        pack = Pairs.pack

        def wrong_pack(pairs, inputs, positions=None):
            packed = pack(pairs, inputs, positions)
            if fault == "positions go on":
                positions = torch.arange(packed["position_ids"].shape[1])
                packed["position_ids"] = positions.expand_as(packed["position_ids"])
            else:
                packed["evidence_frame_mask"] = packed["evidence_frame_mask"].roll(1, dims=1)
            return packed

        monkeypatch.setattr(Pairs, "pack", wrong_pack)
    with pytest.raises(AssertionError):
        assert_shared_equals_plain(tiny_dir, batch)


@pytest.mark.parametrize("prefix_sharing", [True, False])
def test_every_video_is_encoded_once(tiny_dir, batch, prefix_sharing):
    """Four pairs, eight rows, two videos: two videos through the tower in one call."""
    model, _ = fused(tiny_dir, prefix_sharing=prefix_sharing)
    shapes = []
    tower = model.model.vision_tower
    tower.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[:2]))
    run(model, batch)
    assert shapes == [(2, 12)]


def test_sharing_runs_the_prompt_once(tiny_dir, batch):
    """Rows and lengths of what passes through the language model: the evidence pass, then everything."""
    rows = {}
    for prefix_sharing in (True, False):
        model, _ = fused(tiny_dir, prefix_sharing=prefix_sharing)
        shapes = []
        model.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs, shapes=shapes: shapes.append(tuple(args[0].shape[:2])), with_kwargs=True
        )
        run(model, batch)
        rows[prefix_sharing] = shapes
    (evidence_rows, evidence_length), (num_rows, length) = rows[True]
    assert num_rows == len(PAIRS) and rows[False][1][0] == 2 * len(PAIRS)
    assert num_rows * length < rows[False][1][0] * rows[False][1][1]
    # The evidence pass ends with the last frame, and rows that share video and prompt share it too.
    assert evidence_length == 13 and evidence_rows == rows[False][0][0] == 3


def test_different_prompts_cannot_be_shared(tiny_dir, batch):
    batch["input_ids"][len(PAIRS), 2] += 1
    with pytest.raises(ValueError, match="different prompts.*prefix_sharing=False"):
        run(fused(tiny_dir, prefix_sharing=True)[0], batch)


def test_flash_attention_is_refused_with_the_mend(tiny_dir, batch):
    model, _ = fused(tiny_dir, prefix_sharing=True)
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa.*prefix_sharing=False"):
        run(model, batch)


# --- The grounding term ---


@pytest.mark.parametrize("base", [None, 2.0, 3.0])
@pytest.mark.parametrize("grounding_coef", [0.0, 1.0, 0.5])
def test_log_probs_have_the_grounding_term_where_an_evi_is_predicted(tiny_dir, batch, base, grounding_coef):
    model, outputs = fused(tiny_dir, prefix_sharing=True, grounding_coef=grounding_coef, soft_target_base=base)
    with torch.no_grad():
        output = run(model, batch)
    assert outputs == [output]

    # TRL's own, token by token.
    plain = D2VLMForConditionalGeneration.from_pretrained(tiny_dir, dtype=torch.float32)
    inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
    spans = inputs.pop("evidence_spans")
    with torch.no_grad():
        logits = plain(**inputs).logits[:, :-1]
        backbone = plain.model(**inputs)
    text = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:].unsqueeze(-1)).squeeze(-1)
    text = text * batch["completion_mask"][:, 1:]
    torch.testing.assert_close(output.text_log_probs, text, rtol=1e-4, atol=1e-4)

    targets, soft = batch["evidence_frame_mask"], base is not None
    if soft:
        targets = soft_targets(fused_forward.frame_spans({"evidence_spans": spans}), targets.shape[-1], base)
    expected = text.clone()
    log_prob = grounding_log_prob(backbone.evidence_logits, targets, backbone.frame_mask, soft)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        places = [position for position, token in enumerate(ids) if token == plain.config.evidence_token_id]
        for number, position in enumerate(places):
            if batch["evidence_stage"][row, number] >= 2:  # that of the question has no probability
                expected[row, position - 1] += grounding_coef * log_prob[row, number]
    torch.testing.assert_close(output.log_probs, expected, rtol=1e-4, atol=1e-3)
    if grounding_coef == 0:
        assert torch.equal(output.log_probs, output.text_log_probs)
    summed = (expected - text).sum(-1) / (grounding_coef or 1)
    if grounding_coef:
        torch.testing.assert_close(output.grounding_log_probs, summed, rtol=1e-4, atol=1e-3)


def test_without_the_fused_head_the_model_is_itself(tiny_dir, batch):
    """Evaluation and `generate` go through the same patched forward."""
    plain = D2VLMForConditionalGeneration.from_pretrained(tiny_dir, dtype=torch.float32)
    model, outputs = fused(tiny_dir, prefix_sharing=True)
    inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
    with torch.no_grad():
        logits = model(**inputs).logits
        inputs.pop("evidence_spans")
        assert torch.equal(logits, plain(**inputs).logits)
    assert outputs == []
