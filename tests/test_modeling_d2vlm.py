# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The forward of D2VLM against slow references that work on one row, one frame and one token at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import noise_video, sft_row
from trl_temporal import D2VLMConfig, D2VLMForConditionalGeneration
from trl_temporal.data.collator import EvidenceCollator
from trl_temporal.models.d2vlm import salient_run
from trl_temporal.models.d2vlm.configuration_d2vlm import D2VLMConvStemConfig

GROUNDING = sft_row("<evi> </evi> It happens in <evi>.", [[0.5, 1.5]], video="noise-1-5")
DENSE = sft_row(
    "<evi> <evi> </evi> <evi> The red disc blinks. <evi> The blue cross shakes.",
    [[0.0, 1.0], [1.5, 3.0]],
    video="noise-2-8",
    question="Describe every event in the video.",
)
QUESTION = sft_row(
    "<evi> </evi> The disc <evi>.",
    [[2.0, 3.0]],
    video="noise-2-8",
    question="What follows <evi>?",
    prompt_spans=[[0.0, 2.0]],
)
TEXT_ONLY = sft_row("Hello there.", [], video=None, question="Hi!")
ROWS = [GROUNDING, DENSE, TEXT_ONLY, QUESTION]


@pytest.fixture
def collate(tiny):
    return EvidenceCollator(tiny[1], noise_video)


def backbone(model, batch):
    with torch.no_grad():
        return model.model(**{name: value for name, value in batch.items() if name != "labels"})


# --- The slow reference ---


def reference_attention(row, config):
    """Who sees whom, one pair of tokens at a time; `None` for causal attention."""
    if config.video_attention == "causal":
        return None
    ids = row["input_ids"][0].tolist()
    allowed = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for query, query_id in enumerate(ids):
        for key, key_id in enumerate(ids):
            allowed[query, key] = key <= query or query_id == key_id == config.video_token_id
    return allowed[None, None]


@torch.no_grad()
def reference_forward(model, row):
    """What the paper computes for one row without padding: last hidden states, frame states and similarities."""
    core, config = model.model, model.config
    ids = row["input_ids"][0].tolist()
    embeddings = core.get_input_embeddings()(row["input_ids"])[0].clone()
    mask = reference_attention(row, config)
    if config.video_token_id not in ids:
        return core.language_model(inputs_embeds=embeddings[None]).last_hidden_state[0], None, None
    frames = core.compressor(core.vision_tower(row["pixel_values_videos"], row["frame_mask"]))[0, :, 0]
    frame_positions = [position for position, token in enumerate(ids) if token == config.video_token_id]
    for frame, position in enumerate(frame_positions):
        embeddings[position] = frames[frame]

    def run(embeddings):
        return core.language_model(inputs_embeds=embeddings[None], attention_mask=mask, output_hidden_states=True)

    states = run(embeddings).hidden_states[config.capture_layer][0]
    frame_states = torch.stack([states[position] for position in frame_positions])
    evidence_positions = [position for position, token in enumerate(ids) if token == config.evidence_token_id]
    for number, position in enumerate(evidence_positions):
        chosen = [frame for frame, inside in enumerate(row["evidence_frame_mask"][0, number]) if inside]
        source = frames if row["evidence_stage"][0, number] == 1 else frame_states
        embeddings[position] += sum(source[frame] for frame in chosen) / len(chosen)

    output = run(embeddings)
    similarity_states = output.hidden_states[config.similarity_layer][0]
    logits = torch.zeros(len(evidence_positions), len(frames))
    for number, position in enumerate(evidence_positions):
        query = core.evi_head(similarity_states[position - 1])  # the state that predicts the `<evi>`
        for frame, frame_position in enumerate(frame_positions):
            key = core.frame_head(similarity_states[frame_position])
            logits[number, frame] = query @ key / len(query) ** 0.5
    return output.last_hidden_state[0], frame_states, logits


def assert_equals_reference(model, collate, rows):
    output, batch = backbone(model, collate(rows)), collate(rows)
    for number, row in enumerate(rows):
        alone = collate([row])
        hidden_states, frame_states, logits = reference_forward(model, alone)
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(output.last_hidden_state[number, :length], hidden_states, rtol=1e-4, atol=1e-5)
        if frame_states is None:
            continue
        num_evidence, num_frames = logits.shape
        assert output.frame_mask[number].sum() == num_frames
        torch.testing.assert_close(output.frame_states[number, :num_frames], frame_states, rtol=1e-4, atol=1e-5)
        actual = output.evidence_logits[number, :num_evidence, :num_frames]
        torch.testing.assert_close(actual, logits, rtol=1e-4, atol=1e-4)
        assert output.evidence_mask[number].tolist() == (batch["evidence_stage"][number] >= 2).tolist()


@pytest.mark.parametrize("video_attention", ["causal", "bidirectional"])
def test_capture_and_similarity_equal_the_slow_reference(tiny, collate, video_attention):
    """Batched, padded, with rows that share a video, a question about an event and a row without video."""
    model = tiny[0].eval()
    model.config.video_attention = video_attention
    assert_equals_reference(model, collate, ROWS)


@pytest.mark.parametrize(("capture_layer", "similarity_layer"), [(1, -1), (2, -3), (1, 1), (2, -2)])
def test_layers_are_counted_as_in_hidden_states(tiny, collate, capture_layer, similarity_layer):
    model = tiny[0].eval()
    model.config.capture_layer, model.config.similarity_layer = capture_layer, similarity_layer
    assert_equals_reference(model, collate, [DENSE])


def test_bidirectional_video_attention_changes_the_result(tiny, collate):
    model, batch = tiny[0].eval(), collate([DENSE])
    causal = backbone(model, batch)
    model.config.video_attention = "bidirectional"
    bidirectional = backbone(model, batch)
    assert (causal.evidence_logits - bidirectional.evidence_logits).abs().max() > 1e-2
    assert (causal.frame_states[:, 0] - bidirectional.frame_states[:, 0]).abs().max() > 1e-2  # sees later frames


@pytest.mark.parametrize("video_attention", ["causal", "bidirectional"])
def test_eager_equals_sdpa(tiny, tiny_dir, collate, video_attention):
    batch = collate(ROWS)
    outputs = []
    for implementation in ("sdpa", "eager"):
        model = D2VLMForConditionalGeneration.from_pretrained(
            tiny_dir, dtype=torch.float32, attn_implementation=implementation
        ).eval()
        assert model.model.language_model.config._attn_implementation == implementation
        model.config.video_attention = video_attention
        outputs.append(backbone(model, batch))
    real = batch["attention_mask"].bool()
    sdpa, eager = outputs
    torch.testing.assert_close(sdpa.last_hidden_state[real], eager.last_hidden_state[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sdpa.evidence_logits, eager.evidence_logits, rtol=1e-4, atol=1e-4)


def test_attention_without_a_4d_mask_is_refused_where_one_is_needed(tiny, collate):
    model = tiny[0].eval()
    model.config.video_attention = "bidirectional"
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2.*sdpa"):
        backbone(model, collate([DENSE]))


# --- Shapes, videos and rows ---


def test_shapes(tiny, collate):
    model, batch = tiny[0].eval(), collate(ROWS)
    output = model(**batch)
    rows, length = batch["input_ids"].shape
    hidden_size = model.config.text_config.hidden_size
    assert output.logits.shape == (rows, length, model.config.text_config.vocab_size)
    assert output.last_hidden_state.shape == (rows, length, hidden_size)
    assert output.evidence_logits.shape == (rows, 4, 8) and output.evidence_mask.shape == (rows, 4)
    assert output.evidence_queries.shape == (rows, 4, hidden_size)
    assert output.frame_states.shape == output.frame_features.shape == (rows, 8, hidden_size)
    assert output.frame_mask.tolist() == [[True] * 5 + [False] * 3, [True] * 8, [False] * 8, [True] * 8]
    labels = batch["labels"][:, 1:]
    log_probs = output.logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(output.loss, -log_probs[labels != -100].mean())


def test_rows_that_share_a_video_equal_rows_with_a_copy_each(tiny, collate):
    model, batch = tiny[0].eval(), collate([DENSE, QUESTION])
    assert batch["video_index"].tolist() == [0, 0]
    separate = {**batch, "video_index": torch.tensor([0, 1])}
    for name in ("pixel_values_videos", "frame_mask"):
        separate[name] = torch.cat([batch[name], batch[name]])
    shared, separate = backbone(model, batch), backbone(model, separate)
    for name in ("last_hidden_state", "evidence_logits", "frame_states"):
        torch.testing.assert_close(shared[name], separate[name])


def test_padding_on_the_left_takes_no_position(tiny, collate):
    model = tiny[0].eval()
    batch = collate([GROUNDING])
    ids, pad = batch["input_ids"], torch.full((1, 3), tiny[1].tokenizer.pad_token_id)
    padded = {**batch, "input_ids": torch.cat([pad, ids], dim=1)}
    padded["attention_mask"] = (torch.arange(padded["input_ids"].shape[1]) >= 3).long()[None]
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"][0].tolist()), with_kwargs=True
    )
    output = backbone(model, padded)
    length = ids.shape[1]
    assert seen[-1] == [0, 0, 0, *range(length)]
    expected = backbone(model, batch)
    for name in ("evidence_logits", "frame_states"):
        torch.testing.assert_close(output[name], expected[name])
    torch.testing.assert_close(output.last_hidden_state[:, 3:], expected.last_hidden_state)


def test_a_row_without_video_does_not_see_the_videos_of_others(tiny, collate):
    model = tiny[0].eval()
    batch, alone = collate([DENSE, TEXT_ONLY]), collate([TEXT_ONLY])
    length = alone["input_ids"].shape[1]
    mixed = backbone(model, batch)
    torch.testing.assert_close(mixed.last_hidden_state[1, :length], backbone(model, alone).last_hidden_state[0])
    assert not mixed.frame_mask[1].any()


def test_answers_without_evidence(tiny, collate):
    model = tiny[0].eval()
    output = model(**collate([sft_row("</evi> Nothing.", [])]))
    assert output.evidence_logits.shape == (1, 0, 8) and output.loss.isfinite()


def test_the_frames_are_seen(tiny, collate):
    model, batch = tiny[0].eval(), collate([DENSE])
    before = model(**batch)
    batch["pixel_values_videos"][:, 3] += 1
    after = model(**batch)
    assert (before.loss - after.loss).abs() > 1e-5
    assert (before.evidence_logits - after.evidence_logits).abs().max() > 1e-3


def test_padding_frames_do_not_reach_the_vision_tower(tiny, collate):
    """The stem looks at neighbouring frames and over time; padding must be no neighbour."""
    model, batch = tiny[0].eval(), collate([GROUNDING, DENSE])
    padding = ~batch["frame_mask"]
    assert padding.any()

    def encode(num_videos=None, num_frames=None):
        pixels = batch["pixel_values_videos"][:num_videos, :num_frames]
        return model.model.encode_videos(batch["frame_mask"][:num_videos, :num_frames], pixel_values_videos=pixels)[0]

    before = encode()
    batch["pixel_values_videos"][padding] = 7.0
    assert torch.equal(before, encode())
    torch.testing.assert_close(before[:, :5], encode(1, 5))


# --- What is refused ---


def test_fewer_video_tokens_than_frames(tiny, collate):
    model, batch = tiny[0].eval(), collate([DENSE, GROUNDING])
    first_frame = (batch["input_ids"][1] == model.config.video_token_id).nonzero()[0]
    batch["input_ids"][1, first_frame] = tiny[1].tokenizer.pad_token_id
    with pytest.raises(ValueError, match="row 1 of the batch has 4 video tokens for 5 frames"):
        backbone(model, batch)


def test_video_tokens_without_frames(tiny, collate):
    batch = collate([DENSE])
    with pytest.raises(ValueError, match="blind"):
        tiny[0](input_ids=batch["input_ids"])


def test_videos_without_rows(tiny, collate):
    batch = collate([DENSE, QUESTION])
    del batch["video_index"]
    with pytest.raises(ValueError, match="2 rows with 1 videos.*video_index"):
        backbone(tiny[0], batch)


def test_evidence_that_disagrees_with_the_text(tiny, collate):
    batch = collate([DENSE])
    batch["evidence_stage"][0, -1] = 0
    with pytest.raises(ValueError, match="every `<evi>`"):
        backbone(tiny[0], batch)


@pytest.mark.parametrize("unknown", ["chosen_spans", "pixel_values", "second_per_grid_ts"])
def test_unknown_inputs_are_named(tiny, collate, unknown):
    batch = collate([DENSE])
    for model in (tiny[0], tiny[0].model):
        with pytest.raises(TypeError, match=unknown):
            model(**{name: value for name, value in batch.items() if name != "labels"}, **{unknown: torch.zeros(1)})


@pytest.mark.parametrize("capture_layer", [0, 3])
def test_a_capture_layer_that_does_not_exist(tiny, capture_layer):
    config = tiny[0].config.to_dict()
    with pytest.raises(ValueError, match="capture_layer"):
        D2VLMConfig(**{**config, "capture_layer": capture_layer})


# --- The native backbone: BLIP-2's vision tower, a Q-Former that reads the question, Phi-3 ---


def test_native_backbone_trains_every_part(native):
    model, collate = native[0], EvidenceCollator(native[1], noise_video)
    batch = collate([DENSE, GROUNDING, TEXT_ONLY])
    assert batch["qformer_input_ids"].shape == batch["qformer_attention_mask"].shape
    output = model(**batch)
    (output.loss + output.evidence_logits.square().sum()).backward()
    # BLIP-2's final norm and its class token are not used: the paper's tower ends before them.
    unused = {"model.vision_tower.post_layernorm.weight", "model.vision_tower.post_layernorm.bias"}
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without <= unused, without


def test_the_qformer_reads_the_question(native):
    model, collate = native[0], EvidenceCollator(native[1], noise_video)
    model.eval()

    def frame_tokens(question):
        batch = collate([{**GROUNDING, "prompt": sft_row("", [], question=question)["prompt"]}])
        features, _ = model.model.encode_videos(batch["frame_mask"], pixel_values_videos=batch["pixel_values_videos"])
        return model.model._frame_tokens(
            features, batch["frame_mask"], batch["video_index"], batch["qformer_input_ids"],
            batch["qformer_attention_mask"],
        )  # fmt: skip

    assert (frame_tokens("When?") - frame_tokens("What blinks?")).abs().max() > 1e-3
    assert torch.equal(frame_tokens("When?"), frame_tokens("When?"))


def test_rows_that_ask_a_qformer_different_questions_about_one_video(native):
    """Their frame tokens differ, so the states of their frames cannot be shared."""
    model, collate = native[0], EvidenceCollator(native[1], noise_video)
    model.eval()
    rows = [DENSE, {**GROUNDING, "videos": DENSE["videos"]}, {**DENSE, "spans": [[0.5, 1.0], [1.0, 1.5]]}]
    together = backbone(model, collate(rows))
    for number, row in enumerate(rows):
        alone = backbone(model, collate([row]))
        torch.testing.assert_close(together.frame_states[number], alone.frame_states[0], rtol=1e-4, atol=1e-5)
        num_evidence = alone.evidence_logits.shape[1]
        torch.testing.assert_close(
            together.evidence_logits[number, :num_evidence], alone.evidence_logits[0], rtol=1e-4, atol=1e-4
        )


def test_native_backbone_without_a_question_is_refused(native):
    model, collate = native[0], EvidenceCollator(native[1], noise_video)
    batch = {name: value for name, value in collate([DENSE]).items() if not name.startswith("qformer")}
    with pytest.raises(ValueError, match="qformer_tokenizer"):
        model(**batch)


def test_patches_come_from_the_last_block_without_class_token_and_final_norm(native):
    model, collate = native[0], EvidenceCollator(native[1], noise_video)
    model.eval()
    batch = collate([GROUNDING])
    tower = model.model.vision_tower
    with torch.no_grad():
        features, num_patches = model.model.encode_videos(
            batch["frame_mask"], pixel_values_videos=batch["pixel_values_videos"]
        )
        expected = tower(batch["pixel_values_videos"][0], output_hidden_states=True).hidden_states[-1]
    assert features.shape == (1, 5 * 4, 32) and num_patches.tolist() == [20]
    torch.testing.assert_close(features[0], expected[:, 1:].flatten(0, 1))


def test_phi3_attends_without_its_sliding_window(native):
    assert native[0].config.text_config.sliding_window is None


def test_the_default_is_the_papers_backbone():
    # transformers also builds the default configuration, to write down only what differs from it.
    config = D2VLMConfig()
    assert config.text_config.model_type == "phi3" and config.text_config.sliding_window is None
    assert config.vision_config.model_type == "blip_2_vision_model"
    assert config.qformer_config.encoder_hidden_size == config.vision_config.hidden_size


@pytest.mark.parametrize("backbone_name", ["conv_stem", "native"])
def test_saved_and_loaded(tiny, native, tmp_path, backbone_name):
    model, processor = tiny if backbone_name == "conv_stem" else native
    batch = EvidenceCollator(processor, noise_video)(ROWS)
    model.eval().save_pretrained(tmp_path)
    loaded, report = D2VLMForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(loaded.config.text_config) is type(model.config.text_config)
    assert isinstance(loaded.config.vision_config, D2VLMConvStemConfig) == (backbone_name == "conv_stem")
    assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)


# --- The salient run ---


def salient_run_reference(salience, threshold, frame_mask, ties="first"):
    """Runs of frames of at least `threshold * max`; the one with the largest mean, of equals the first or all."""
    real = [number for number, exists in enumerate(frame_mask) if exists]
    if not real:
        return [False] * len(salience)
    bound = threshold * max(salience[frame] for frame in real)
    runs, run = [], []
    for frame in range(len(salience)):
        if frame_mask[frame] and salience[frame] >= bound:
            run.append(frame)
            continue
        runs, run = runs + [run], []
    runs = [run for run in runs + [run] if run]
    means = [sum(salience[frame] for frame in run) / len(run) for run in runs]
    equals = [run for run, mean in zip(runs, means, strict=True) if mean == max(means)]
    best = equals[0] if ties == "first" else range(equals[0][0], equals[-1][-1] + 1)
    return [frame in best for frame in range(len(salience))]


@given(
    st.lists(st.tuples(st.integers(0, 16), st.booleans()), min_size=1, max_size=9),
    st.sampled_from([0.25, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=200)
def test_salient_run_equals_the_plain_loop(frames, threshold):
    # Sixteenths are exact in binary, so that equal means are equal.
    salience, frame_mask = [value / 16 for value, _ in frames], [exists for _, exists in frames]
    run = salient_run(torch.tensor([[salience]]), threshold, torch.tensor([[frame_mask]]))
    assert run[0, 0].tolist() == salient_run_reference(salience, threshold, frame_mask)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 9), st.sampled_from([0.25, 0.5, 1.0]))
@settings(deadline=None, max_examples=200)
def test_the_span_of_equal_runs_equals_the_plain_loop(frames, num_padding, threshold):
    salience = [value / 16 for value in frames] + [0.7] * num_padding
    frame_mask = [True] * len(frames) + [False] * num_padding
    # Two rows, the other without a frame.
    masks = torch.tensor([[frame_mask], [[False] * len(frame_mask)]])
    run = salient_run(torch.tensor([[salience], [salience]]), threshold, masks, ties="span")
    assert run[0, 0].tolist() == salient_run_reference(salience, threshold, frame_mask, ties="span")
    assert not run[1].any()


def test_the_placeholder_of_frames_needs_no_row_in_the_embedding(native):
    """Released checkpoints have none for it; its id is then beyond the vocabulary, and no token that is generated."""
    model, processor = native
    row = sft_row("<evi> </evi> It blinks in <evi>.", [[0.0, 1.0]], video="noise-1-4")
    batch = EvidenceCollator(processor, noise_video)([row])
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        beyond = model.config.text_config.vocab_size + 3
        batch["input_ids"].masked_fill_(batch["input_ids"] == model.config.video_token_id, beyond)
        model.config.video_token_id = beyond
        assert torch.equal(model(**batch).logits, expected)


def test_salient_run_of_several_rows_at_once():
    salience = torch.tensor([[0.9, 0.1, 0.8, 0.8], [0.2, 0.2, 0.1, 0.0]])
    assert salient_run(salience, 0.6).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
