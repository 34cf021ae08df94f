# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Generation with evidence: batched, cached, sampled, and what is refused."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tests.helpers import noise_video, sft_row
from trl_temporal import GroundedAnswer, Span, generate_answers
from trl_temporal.data.collator import PromptCollator
from trl_temporal.models.d2vlm import D2VLMForConditionalGeneration

ROWS = [
    sft_row("", [], video="noise-1-5"),
    sft_row("", [], video="noise-2-9", question="Describe every event in the video, one after the other."),
    sft_row("", [], video=None, question="Hello!"),
    sft_row("", [], video="noise-1-5", question="What happens first?"),
]
NUM_NEW = 9


class Grammar(LogitsProcessor):
    """Two `<evi>`, `</evi>`, then the model's words with an `<evi>` among them; alone it would write no evidence."""

    def __init__(self, model, num_prompt: int):
        self.evi, self.end = model.config.evidence_token_id, model.config.evidence_end_token_id
        self.forbidden = [self.evi, self.end, model.config.video_token_id, model.generation_config.eos_token_id]
        self.num_prompt = num_prompt

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.num_prompt
        forced = {0: self.evi, 1: self.evi, 2: self.end, 5: self.evi}.get(step)
        scores = scores.clone()
        if forced is None:
            scores[:, self.forbidden] = -torch.inf
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, forced] = 0
        return only


def generate(model, processor, rows, **kwargs):
    """The output for `rows`, and the inputs."""
    inputs = PromptCollator(processor, noise_video)(rows)["inputs"]
    kwargs = {"max_new_tokens": NUM_NEW, "do_sample": False, "return_dict_in_generate": True, **kwargs}
    grammar = LogitsProcessorList([Grammar(model, inputs["input_ids"].shape[1])])
    return model.generate(**inputs, logits_processor=grammar, **kwargs), inputs


@pytest.fixture(params=["causal", "bidirectional", "native"])
def models(request):
    """The tiny model with either attention, and the paper's backbone."""
    model, processor = request.getfixturevalue("native" if request.param == "native" else "tiny")
    if request.param == "bidirectional":
        model.config.video_attention = "bidirectional"
    return model.eval(), processor


def test_a_batch_with_left_padding_equals_one_row_at_a_time(models):
    model, processor = models
    output, inputs = generate(model, processor, ROWS, output_logits=True)
    assert output.evidence_mask.tolist() == [[True] * 3] * 4
    for number, row in enumerate(ROWS):
        alone, own = generate(model, processor, [row], output_logits=True)
        new_ids = output.sequences[number, inputs["input_ids"].shape[1] :]
        assert new_ids.tolist() == alone.sequences[0, own["input_ids"].shape[1] :].tolist()
        logits = torch.stack(output.logits, dim=1)[number]
        torch.testing.assert_close(logits, torch.stack(alone.logits, dim=1)[0], rtol=1e-4, atol=1e-4)
        if "pixel_values_videos" not in own:
            assert not output.evidence_frames[number].any()
            continue
        num_frames = own["frame_mask"].shape[1]
        salience = output.evidence_salience[number]
        torch.testing.assert_close(salience[:, :num_frames], alone.evidence_salience[0], rtol=1e-4, atol=1e-5)
        assert (salience[:, num_frames:] == 0).all()
        assert torch.equal(output.evidence_frames[number, :, :num_frames], alone.evidence_frames[0])
        assert not output.evidence_frames[number, :, num_frames:].any()


def assert_equals_teacher_forcing(model, output, inputs, num_prompt):
    """The cache and what it carries, against one forward over the whole answer with the same evidence."""
    ids = output.sequences
    frames = output.evidence_frames
    is_end = ids[0, num_prompt:] == model.config.evidence_end_token_id
    is_evidence = ids[0, num_prompt:] == model.config.evidence_token_id
    stage = torch.where(is_end.cumsum(0)[is_evidence] > 0, 3, 2)[None]
    with torch.no_grad():
        whole = model(
            **{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)},
            evidence_frame_mask=frames,
            evidence_stage=stage,
        )
    steps = torch.stack(output.logits, dim=1)
    torch.testing.assert_close(steps, whole.logits[:, num_prompt - 1 : -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.evidence_salience, whole.evidence_logits.sigmoid(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [0, 1])
def test_the_cache_equals_computing_everything_again(models, row):
    model, processor = models
    output, inputs = generate(model, processor, [ROWS[row]], output_logits=True)
    runs = output.evidence_frames[0]
    assert (runs.sum(-1) > 0).all() and (runs.sum(-1) < runs.shape[-1]).any()  # spans, not whole videos
    assert_equals_teacher_forcing(model, output, inputs, inputs["input_ids"].shape[1])
    # The control: an answer that captured other frames would have other logits.
    output.evidence_frames = ~runs[None]
    with pytest.raises(AssertionError):
        assert_equals_teacher_forcing(model, output, inputs, inputs["input_ids"].shape[1])


def test_without_return_dict_the_ids_are_the_same(tiny):
    model, processor = tiny[0].eval(), tiny[1]
    output, _ = generate(model, processor, ROWS)
    ids, _ = generate(model, processor, ROWS, return_dict_in_generate=False)
    assert torch.equal(ids, output.sequences)


def test_sampling_several_answers_a_row(tiny):
    model, processor = tiny[0].eval(), tiny[1]
    torch.manual_seed(0)
    output, inputs = generate(model, processor, ROWS, do_sample=True, num_return_sequences=3)
    assert len(output.sequences) == 12 and output.evidence_salience.shape == (12, 3, 9)
    answers = output.sequences[:, inputs["input_ids"].shape[1] :]
    assert len({tuple(answer) for answer in answers[:3].tolist()}) > 1
    prompts = output.sequences[:, : inputs["input_ids"].shape[1]]
    assert torch.equal(prompts, inputs["input_ids"].repeat_interleave(3, dim=0))
    # The first `<evi>` is predicted by the prompt: it is the same for the samples of a row.
    greedy, _ = generate(model, processor, ROWS)
    expected = greedy.evidence_salience[:, 0].repeat_interleave(3, dim=0)
    torch.testing.assert_close(output.evidence_salience[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_sampling_several_answers_about_one_video_each(tiny):
    """Without `video_index`, the i-th row shows the i-th video, also when rows are repeated."""
    model, processor = tiny[0].eval(), tiny[1]
    inputs = PromptCollator(processor, noise_video)(ROWS[:2])["inputs"]
    expected = model.generate(**inputs, max_new_tokens=3, do_sample=False).repeat_interleave(2, dim=0)
    del inputs["video_index"]
    torch.manual_seed(0)
    ids = model.generate(**inputs, max_new_tokens=3, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(ids, expected)


def test_answers_that_end_early_and_answers_without_evidence(tiny):
    model, processor = tiny[0].eval(), tiny[1]
    inputs = PromptCollator(processor, noise_video)(ROWS)["inputs"]
    evi, eos = processor.evidence_token_id, processor.tokenizer.eos_token_id
    # Row 0 ends at once, row 1 after one `<evi>`, the others go on.
    plan = {0: [eos] * 4, 1: [evi, eos, eos, eos], 2: [eos] * 4, 3: [evi, evi, evi, evi]}

    def allowed(row, ids):
        return [plan[row][len(ids) - inputs["input_ids"].shape[1]]]

    arguments = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    output = model.generate(**inputs, prefix_allowed_tokens_fn=allowed, **arguments)
    assert output.evidence_mask.sum(-1).tolist() == [0, 1, 0, 4]
    assert output.evidence_frames.any(-1).sum(-1).tolist() == [0, 1, 0, 4]

    output = model.generate(**inputs, prefix_allowed_tokens_fn=lambda row, ids: [eos], **arguments)
    assert output.evidence_salience.shape == (4, 0, 9) and output.evidence_mask.shape == (4, 0)


def test_similarities_that_underflow_still_have_a_run(tiny):
    """A model that is sure of nothing: every similarity rounds to 0, and the span is the whole video, not an error."""
    model, processor = tiny[0].eval(), tiny[1]
    with torch.no_grad():
        # The same projection for every state: the product with itself, with a minus.
        for head, sign in ((model.model.evi_head, 1), (model.model.frame_head, -1)):
            head[3].weight.zero_()
            head[3].bias.fill_(sign * 40)
    output, _ = generate(model, processor, ROWS[:2])
    assert (output.evidence_salience == 0).all()
    assert output.evidence_frames.sum(-1).tolist() == [[5] * 3, [9] * 3]


def test_gradient_checkpointing_does_not_disturb_generation(tiny):
    """A trainer evaluates with checkpointing switched on."""
    model, processor = tiny[0].eval(), tiny[1]
    expected, _ = generate(model, processor, ROWS)
    model.gradient_checkpointing_enable()
    output, _ = generate(model, processor, ROWS)
    assert torch.equal(output.sequences, expected.sequences)
    torch.testing.assert_close(output.evidence_salience, expected.evidence_salience)
    model.train()
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        generate(model, processor, ROWS)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams"),
        ({"assistant_model": D2VLMForConditionalGeneration}, "assist"),
        ({"prompt_lookup_num_tokens": 2}, "assist"),
        ({"use_cache": False}, "use_cache"),
    ],
    ids=["beams", "config", "assistant", "prompt-lookup", "no-cache"],
)
def test_what_would_lose_the_evidence_is_refused(tiny, kwargs, words):
    with pytest.raises(ValueError, match=words):
        generate(tiny[0].eval(), tiny[1], ROWS[:2], **kwargs)


# --- Answers in seconds ---


@pytest.fixture
def talkative(tiny):
    """A model that prefers `<evi>` and `</evi>`, so that its own answers have evidence."""
    model, processor = tiny
    model.generation_config.sequence_bias = [
        [[processor.evidence_token_id], 6.0],
        [[processor.evidence_end_token_id], 5.0],
    ]
    return model, processor


def test_answers_do_not_depend_on_the_batch(talkative):
    model, processor = talkative
    model.train()
    arguments = {"max_new_tokens": 6, "read_video": noise_video, "progress": False}
    alone = generate_answers(model, processor, ROWS, batch_size=1, **arguments)
    together = generate_answers(model, processor, ROWS, batch_size=3, **arguments)
    assert model.training  # as it was
    assert any(answer.evidence + answer.response for answer in alone)
    for one, other, row in zip(alone, together, ROWS, strict=True):
        assert (one.text, one.evidence, one.response) == (other.text, other.evidence, other.response)
        np.testing.assert_allclose(one.salience, other.salience, rtol=1e-4, atol=1e-5)
        if row["videos"]:
            video = noise_video(row["videos"][0])
            assert one.timestamps_s.tolist() == video.timestamps_s.tolist() and one.duration_s == video.duration_s
            assert one.salience.shape == (len(one.evidence) + len(one.response), len(video.frames))
            assert all(span.end_s <= video.duration_s for span in [*one.evidence, *one.response])
        else:
            assert one.evidence == one.response == [] and one.duration_s == 0


def test_an_answer_prints_its_evidence_in_seconds():
    answer = GroundedAnswer(
        text="First <evi>, then <evi>.",
        evidence=[],
        response=[Span(0.0, 1.5), Span(2.0, 3.0)],
        salience=np.zeros((2, 4)),
        timestamps_s=np.arange(4.0),
        duration_s=4.0,
    )
    assert str(answer) == "First [0.0s - 1.5s], then [2.0s - 3.0s]."


def test_a_question_about_an_event_sees_its_frames(models):
    """The answer changes with the span of the question, is that of teacher forcing, and the same in a batch."""
    model, processor = models
    question = {"question": "What happens during <evi>?", "video": "noise-2-9"}
    rows = [sft_row("", [], prompt_spans=[span], **question) for span in ([0.0, 0.5], [3.0, 4.5])]
    first, inputs = generate(model, processor, rows[:1], output_logits=True)
    second, _ = generate(model, processor, rows[1:], output_logits=True)
    assert not torch.equal(first.logits[0], second.logits[0])
    with torch.no_grad():
        forced = model(**{name: value for name, value in inputs.items()}).logits[:, -1]
    torch.testing.assert_close(first.logits[0], forced, rtol=1e-4, atol=1e-4)
    together, _ = generate(model, processor, [ROWS[1], *rows], output_logits=True)
    for number, alone in ((1, first), (2, second)):
        torch.testing.assert_close(together.logits[0][number], alone.logits[0][0], rtol=1e-4, atol=1e-4)


def test_the_salience_of_every_token(models):
    model, processor = models
    output, inputs = generate(model, processor, ROWS[:2])
    new_ids = output.sequences[:, inputs["input_ids"].shape[1] :]
    assert output.token_salience.shape == (2, NUM_NEW, 9)
    for row in range(2):
        at_evidence = output.token_salience[row, new_ids[row] == model.config.evidence_token_id]
        assert torch.equal(at_evidence.clamp(min=0), output.evidence_salience[row])
    assert (output.token_salience[0, :, 5:] == -1).all()  # the first video has 5 frames
