# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The time rule, and the processor: seconds outside, frames inside."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal import D2VLMProcessor
from trl_temporal.models.d2vlm import frame_run_to_span, spans_to_frame_mask
from trl_temporal.models.d2vlm.modeling_d2vlm import D2VLMGenerateOutput
from trl_temporal.models.d2vlm.processing_d2vlm import spans_to_positions
from trl_temporal.models.tiny import train_tokenizer


@pytest.fixture
def processor(tiny):
    return tiny[1]


def frames(num_frames, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)


# --- The time rule ---

clips = st.lists(st.floats(0.01, 3.0), min_size=1, max_size=12).map(
    lambda gaps: (np.cumsum([0.0, *gaps[:-1]]), float(np.sum(gaps)))
)  # timestamps and duration of a clip with a variable frame rate


@pytest.mark.parametrize(
    ("span", "frames"),
    [
        ([0.0, 4.0], [1, 1, 1, 1]),
        ([1.0, 3.0], [0, 1, 1, 0]),
        ([0.6, 2.4], [0, 1, 0, 0]),  # of the midpoints .5, 1.5, 2.5, 3.5 only 1.5 is inside
        ([0.5, 2.5], [1, 1, 0, 0]),  # the start belongs to the span, the end does not
        ([2.6, 2.8], [0, 0, 1, 0]),  # none: the nearest
        ([2.9, 3.1], [0, 0, 1, 0]),  # equally near: the first
        ([3.8, 9.0], [0, 0, 0, 1]),
    ],
)
def test_frames_of_a_span(span, frames):
    assert spans_to_frame_mask([span], [0.0, 1.0, 2.0, 3.0], 4.0).astype(int).tolist() == [frames]


def test_the_last_frame_reaches_to_the_duration():
    assert spans_to_frame_mask([[5.0, 8.0]], [0.0, 1.0], 10.0).tolist() == [[False, True]]
    assert frame_run_to_span(np.array([False, True]), [0.0, 1.0], 10.0) == [1.0, 10.0]


def test_no_spans():
    assert spans_to_frame_mask([], [0.0, 1.0], 2.0).shape == (0, 2)


@given(clips, st.data())
@settings(deadline=None, max_examples=100)
def test_spans_on_frame_boundaries_come_back_exactly(clip, data):
    timestamps_s, duration_s = clip
    first = data.draw(st.integers(0, len(timestamps_s) - 1))
    last = data.draw(st.integers(first, len(timestamps_s) - 1))
    edges = np.append(timestamps_s, duration_s)
    span = [edges[first], edges[last + 1]]
    (run,) = spans_to_frame_mask([span], timestamps_s, duration_s)
    assert np.flatnonzero(run).tolist() == list(range(first, last + 1))
    assert frame_run_to_span(run, timestamps_s, duration_s) == span


@given(clips, st.floats(0, 40), st.floats(0.001, 40))
@settings(deadline=None, max_examples=100)
def test_every_span_has_one_run_of_frames_and_misses_by_at_most_half_a_frame(clip, start_s, length_s):
    timestamps_s, duration_s = clip
    span = [start_s, start_s + length_s]
    (run,) = spans_to_frame_mask([span], timestamps_s, duration_s)
    numbers = np.flatnonzero(run)
    assert numbers.tolist() == list(range(numbers[0], numbers[-1] + 1))
    edges = np.append(timestamps_s, duration_s)
    midpoints = (edges[1:] + edges[:-1]) / 2
    inside = (midpoints >= span[0]) & (midpoints < span[1])
    if inside.any():
        assert run.tolist() == inside.tolist()
        read = frame_run_to_span(run, timestamps_s, duration_s)
        half = np.diff(edges).max() / 2 + 1e-9
        assert abs(read[0] - span[0]) <= half
        assert abs(read[1] - min(span[1], duration_s)) <= half
    else:
        assert run.sum() == 1
        distance = np.abs(midpoints - np.mean(span))
        assert distance[numbers[0]] == distance.min()


@pytest.mark.parametrize(
    ("span", "frames"),
    [
        ([1.0, 2.0], [0, 1, 1, 0]),  # both ends
        ([0.5, 2.5], [1, 1, 1, 0]),  # rounded to the even frame
        ([2.6, 2.8], [0, 0, 0, 1]),
        ([2.2, 1.2], [0, 1, 1, 0]),  # put in order
        ([-3.0, 0.4], [1, 0, 0, 0]),
        ([7.0, 9.0], [0, 0, 0, 1]),  # moved into the video
    ],
)
def test_frames_of_a_span_by_the_released_rule(span, frames):
    assert spans_to_frame_mask([span], [0.0, 1.0, 2.0, 3.0], 4.0, "index").astype(int).tolist() == [frames]


def test_a_run_by_the_released_rule_ends_where_its_last_frame_stands():
    run = np.array([False, True, True, False])
    assert frame_run_to_span(run, [0.0, 1.0, 2.0, 3.0], 4.0, "index") == [1.0, 2.0]


def test_positions_go_on_before_and_behind_the_frames():
    positions = spans_to_positions([[-1.0, 0.25], [2.0, 7.0]], [0.0, 0.5, 1.0, 3.0])
    assert positions.tolist() == [[-1.0, 0.5], [2.5, 7.0]]
    assert spans_to_positions([[2.5, 3.0]], [0.0]).tolist() == [[2.5, 3.0]]
    assert spans_to_positions([], [0.0, 1.0]).shape == (0, 2)


@given(st.lists(st.tuples(st.floats(-5, 20), st.floats(-5, 20)), min_size=1, max_size=5), st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_at_one_frame_a_second_a_second_is_its_index(spans, num_frames):
    np.testing.assert_allclose(spans_to_positions(spans, np.arange(num_frames)), spans, rtol=0, atol=1e-9)


# --- The processor ---


def test_one_placeholder_becomes_one_token_a_frame(processor):
    batch = processor(text=["<video>a", "b", "<video>c"], videos=[frames(3), frames(2)])
    assert (batch["input_ids"] == processor.video_token_id).sum(-1).tolist() == [3, 0, 2]
    assert batch["video_index"].tolist() == [0, -1, 1]
    assert batch["pixel_values_videos"].shape == (2, 3, 3, 16, 16)
    assert batch["frame_mask"].tolist() == [[True] * 3, [True] * 2 + [False]]
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist())  # left padding
    shared = processor(text=["<video>a", "<video>b"], videos=[frames(3)], video_index=[0, 0])
    assert (shared["input_ids"] == processor.video_token_id).sum(-1).tolist() == [3, 3]
    assert len(shared["pixel_values_videos"]) == 1


def test_frames_are_resized_and_normalised(processor):
    video = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    video[..., 1] = 255
    pixels = processor.pad_frames([video])["pixel_values_videos"]
    assert pixels.shape == (1, 2, 3, 16, 16)
    expected = (torch.tensor([0.0, 1.0, 0.0]) - 0.5) / 0.25
    torch.testing.assert_close(pixels[0, 0, :, 5, 5], expected)


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (32, 96)])
def test_the_middle_square_of_frames(processor, shape):
    """The picture's proportions stay: a square in the middle stays one, where resizing would stretch it."""
    video = np.zeros((1, *shape, 3), dtype=np.uint8)
    (height, width), half = shape, min(shape) // 4
    video[:, height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 255
    processor.center_crop = True
    bright = processor.pad_frames([video])["pixel_values_videos"][0, 0, 0] > 0
    assert bright.shape == (16, 16) and bright[4:12, 4:12].all() and bright.sum() == 64


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"text": "no placeholder", "videos": [frames(2)]}, "0 of 1 texts"),
        ({"text": "<video>"}, "1 of 1 texts"),
        ({"text": "<video><video>", "videos": [frames(2)]}, "Row 0.*2 <video>"),
        ({"text": ["<video>"], "videos": [frames(2)], "video_index": [-1]}, "Row 0"),
        ({"text": "<video>", "videos": [np.zeros((2, 3, 16, 16), dtype=np.uint8)]}, "Video 0.*uint8"),
        ({"text": "<video>", "videos": [np.zeros((2, 16, 16, 3), dtype=np.float32)]}, "Video 0.*uint8"),
        ({"text": "<video>", "videos": [frames(0)]}, "Video 0.*T > 0"),
    ],
)
def test_texts_and_videos_that_disagree_are_refused(processor, kwargs, words):
    with pytest.raises(ValueError, match=words):
        processor(**kwargs)


def test_a_tokenizer_without_the_evidence_tokens_is_refused(processor):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), unk_token="<unk>")
    with pytest.raises(ValueError, match="<evi>.*special tokens"):
        D2VLMProcessor(bare)


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=50)
def test_any_text_survives_the_tokenizer(text):
    tokenizer = any_text_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.decode(ids) == text


@lru_cache
def any_text_tokenizer():
    return train_tokenizer(["The red disc blinks."], vocab_size=300)


def test_generations_are_read_as_text_and_seconds(processor, monkeypatch):
    evi, end, eos, pad = (
        processor.evidence_token_id,
        processor.evidence_end_token_id,
        processor.tokenizer.eos_token_id,
        processor.tokenizer.pad_token_id,
    )
    words = processor.tokenizer(" It blinks", add_special_tokens=False)["input_ids"]
    first = [evi, evi, end, *words, evi, eos]
    rows = [first, [end, *words, eos], [evi], [evi, end, eos], [evi, *words]]
    new_ids = torch.tensor([row + [pad] * (len(first) - len(row)) for row in rows])
    runs = torch.zeros(5, 3, 5, dtype=torch.bool)
    runs[0, 0, :2] = runs[0, 1, 2:] = runs[0, 2, 1] = True
    runs[2, 0, 3] = runs[4, 0, 3] = True
    output = D2VLMGenerateOutput(
        sequences=torch.cat([torch.ones(5, 2, dtype=torch.long), new_ids], dim=1),
        evidence_salience=runs.float(),
        evidence_frames=runs,
        evidence_logits=runs * 2.0,
        evidence_cosines=runs * 0.5,
    )
    inputs = {"input_ids": torch.ones(5, 2)}
    timestamps_s = [np.arange(5.0), np.arange(5.0), np.arange(4.0), [], np.arange(4.0)]
    answers = processor.post_process_grounded(output, inputs, timestamps_s, [5.5, 5.5, 4.0, 0.0, 4.0])
    assert [answer["text"] for answer in answers] == ["It blinks <evi>", "It blinks", "", "", "<evi> It blinks"]
    assert answers[0]["evidence"] == [[0.0, 2.0], [2.0, 5.5]]
    assert answers[0]["response"] == [[1.0, 2.0]]
    assert answers[0]["salience"].shape == (3, 5)
    assert answers[0]["logits"].max() == 2 and answers[0]["cosines"].max() == 0.5
    assert answers[1]["evidence"] == answers[1]["response"] == []
    assert answers[2]["evidence"] == [[3.0, 4.0]]  # cut off before `</evi>`: evidence, and no answer
    assert answers[3]["evidence"] == []  # no video, nothing to refer to
    assert (answers[4]["evidence"], answers[4]["response"]) == ([], [[3.0, 4.0]])  # no `</evi>`: an answer at once
    monkeypatch.setattr(processor, "time_rule", "index")  # both ends are frames of the run
    (answer, *_) = processor.post_process_grounded(output, inputs, timestamps_s, [5.5, 5.5, 4.0, 0.0, 4.0])
    assert (answer["evidence"], answer["response"]) == ([[0.0, 1.0], [2.0, 4.0]], [[1.0, 1.0]])


@pytest.mark.parametrize("with_qformer", [False, True])
def test_saved_and_loaded(processor, with_qformer, tmp_path):
    if with_qformer:
        processor.qformer_tokenizer = train_tokenizer(["What blinks?"], vocab_size=280)
    processor.max_frames, processor.time_rule, processor.center_crop = 7, "index", True
    processor.save_pretrained(tmp_path)
    loaded = D2VLMProcessor.from_pretrained(tmp_path)
    assert (tmp_path / "qformer_tokenizer").exists() == with_qformer
    assert (loaded.fps, loaded.max_frames, loaded.image_size) == (processor.fps, 7, 16)
    assert loaded.time_rule == "index" and loaded.center_crop
    assert loaded.chat_template == processor.chat_template
    arguments = {"text": ["<video>What blinks?"], "videos": [frames(3)], "questions": ["What blinks?"]}
    expected, batch = processor(**arguments), loaded(**arguments)
    assert ("qformer_input_ids" in batch) == with_qformer
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    if with_qformer:
        with pytest.raises(ValueError, match="questions"):
            loaded(text="<video>", videos=[frames(2)])


def test_a_pipeline_would_guess_the_times_and_is_refused(tiny_dir):
    processor = D2VLMProcessor.from_pretrained(tiny_dir)
    content = [{"type": "video", "path": "video.mp4"}, {"type": "text", "text": "When?"}]
    messages = [{"role": "user", "content": content}]
    for conversation in (messages, [messages]):
        with pytest.raises(ValueError, match="call the processor with `videos` and `timestamps_s`"):
            processor.apply_chat_template(conversation, tokenize=True)
    assert "<video>" in processor.apply_chat_template(messages)
    assert processor.apply_chat_template([{"role": "user", "content": "When?"}], tokenize=True)
