# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Answers of stock models: batches, real timestamps, and no model that answers blind.

Models and processors are those of transformers, tiny and random.
"""

import re

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tests.families import FAMILIES, build, watch_videos
from tests.helpers import noise_video, sft_row, user
from tests.test_video import make_clip
from trl_temporal.data.chat_inputs import video_metadata
from trl_temporal.data.schema import RowError
from trl_temporal.evaluation.text_generation import generate_texts
from trl_temporal.video import Video, load_video

# SmolVLM is told whole seconds, and the videos of noise have two frames in each.
pytestmark = pytest.mark.filterwarnings("ignore:row .* frames per second")

ROWS = [
    sft_row("", [], video="noise-1-6"),
    sft_row("", [], video="noise-2-9", question="Describe every event in the video, one after the other."),
    sft_row("", [], video=None, question="Hello!"),
    sft_row("", [], video="noise-1-6", question="What happens first?"),
    sft_row("", [], video="noise-3-6"),
]


def answer(model, processor, rows, **kwargs):
    """The texts."""
    kwargs = {"max_new_tokens": 8, "read_video": noise_video, "progress": False, **kwargs}
    return [one.text for one in generate_texts(model, processor, rows, **kwargs)]


@pytest.fixture
def calls(monkeypatch):
    """Keeps the arguments of every call of `generate` of the models that it is given."""

    def watch(model):
        kept, generate = [], model.generate
        monkeypatch.setattr(model, "generate", lambda **kwargs: kept.append(kwargs) or generate(**kwargs))
        return kept

    return watch


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_equal_single_rows_and_the_video_matters(family):
    model, processor = build(family)
    texts = answer(model, processor, ROWS, batch_size=1)
    assert len(set(texts)) == len(ROWS)
    assert answer(model, processor, ROWS, batch_size=4) == texts
    assert answer(model, processor, ROWS[::-1], batch_size=5) == texts[::-1]
    others = answer(model, processor, ROWS, batch_size=5, read_video=lambda entry: noise_video("noise-7-6"))
    changed = [other != text for other, text in zip(others, texts, strict=True)]
    assert changed == [True, True, False, True, True]  # all but the row without video


def test_prompts_are_padded_left_and_text_rows_have_no_video(calls):
    model, processor = build("qwen2_5_vl")
    kept = calls(model)
    answer(model, processor, ROWS, batch_size=5)
    (inputs,) = kept
    mask = inputs["attention_mask"]
    assert mask.sum(1).unique().numel() > 2
    assert (mask.diff(dim=1) >= 0).all()  # no token is followed by padding
    assert inputs["video_grid_thw"].tolist() == [[3, 4, 4], [5, 4, 4], [3, 4, 4], [3, 4, 4]]
    num_video = (inputs["input_ids"] == processor.video_token_id).sum(1).tolist()
    assert num_video == [12, 20, 0, 12, 12]  # four patches are a token


@pytest.mark.parametrize(
    "family, name, shapes",
    [
        ("llava_onevision", "pixel_values_videos", [(3, 6), (1, 9)]),
        ("smolvlm", "pixel_values", [(3, 6), (1, 9)]),
        ("internvl", "pixel_values", [(3 * 6,), (9,)]),
    ],
)
def test_stacked_videos_go_together_by_length(family, name, shapes, calls):
    model, processor = build(family)
    kept = calls(model)
    answer(model, processor, ROWS, batch_size=5)
    assert [inputs[name].shape[:-3] for inputs in kept if name in inputs] == shapes
    assert [len(inputs["input_ids"]) for inputs in kept] == [3, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processor_is_told_the_times(family, monkeypatch):
    model, processor = build(family)
    told = watch_videos(monkeypatch, processor)
    video = noise_video("noise-1-6")
    video.timestamps_s = np.array([0.0, 0.25, 1.0, 1.5, 2.0004, 2.5])
    video.duration_s = 2.75
    answer(model, processor, ROWS[:1], read_video=lambda entry: video)
    (call,) = told
    (metadata,) = call["video_metadata"]
    assert call["do_sample_frames"] is False
    assert metadata.frames_indices == [0, 250, 1000, 1500, 2000, 2500]
    assert (metadata.fps, metadata.duration, metadata.width, metadata.height) == (1000, 2.75, 16, 16)
    np.testing.assert_allclose(metadata.timestamps, video.timestamps_s, atol=5e-4)
    assert metadata.sampled_fps == pytest.approx(2)  # six frames, half a second apart on average


def test_a_variable_frame_rate_keeps_its_times(tmp_path, calls):
    ticks = np.concatenate([np.arange(0, 1000, 100), 1000 + np.arange(0, 9000, 900)])  # 10 a second, then 1.1
    path = str(make_clip(tmp_path / "variable.mp4", ticks))
    model, processor = build("qwen3_vl")
    kept = calls(model)
    row = {"videos": [path], "prompt": user("When?")}
    (found,) = generate_texts(model, processor, [row], max_new_tokens=2, progress=False)
    whole = load_video(path, fps=1.0)
    assert found.duration_s == whole.duration_s
    np.testing.assert_array_equal(found.timestamps_s, whole.timestamps_s)
    np.testing.assert_allclose(found.timestamps_s[:4], [0.0, 1.0, 1.9, 2.8], atol=1e-3)  # on screen at 0, 1, 2, 3 s
    # Qwen3-VL writes the mean time of every two frames.
    times_s = np.append(found.timestamps_s, found.timestamps_s[-1:])[: len(whole.frames) + len(whole.frames) % 2]
    prompt = processor.tokenizer.decode(kept[0]["input_ids"][0])
    written = [float(number) for number in re.findall(r"<([\d.]+) seconds>", prompt)]
    np.testing.assert_allclose(written, times_s.reshape(-1, 2).mean(1), atol=0.051)


def test_seconds_per_patch_are_not_rounded(calls):
    """Qwen2.5-VL places frames by this number, and bfloat16 knows no 0.714."""
    model, processor = build("qwen2_5_vl")
    model = model.bfloat16()
    video = noise_video("noise-1-6")
    video.timestamps_s = np.arange(6) * 0.357
    kept = calls(model)
    answer(model, processor, ROWS[:1], read_video=lambda entry: video)
    assert kept[0]["pixel_values_videos"].dtype == torch.bfloat16
    assert kept[0]["second_per_grid_ts"].tolist() == pytest.approx([0.714], abs=1e-4)


def test_metadata_of_one_frame_and_of_midpoints():
    frames = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    assert video_metadata(Video(frames, np.array([0.0]), 2.0, "x")).sampled_fps == 0.5
    frames = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    metadata = video_metadata(Video(frames, np.array([0.25, 0.75, 1.25, 1.75]), 2.0, "x"))
    assert (metadata.timestamps, metadata.sampled_fps) == ([0.25, 0.75, 1.25, 1.75], 2.0)


def test_a_processor_without_pixels_is_refused(monkeypatch):
    model, processor = build("qwen2_5_vl")
    encode = type(processor).__call__

    def forget(self, **kwargs):
        inputs = encode(self, **kwargs)
        inputs.pop("pixel_values_videos", None)
        return inputs

    monkeypatch.setattr(type(processor), "__call__", forget)
    with pytest.raises(RuntimeError, match="Processor made no pixel values of 1 videos .*answer blind"):
        answer(model, processor, ROWS[:1])
    assert len(answer(model, processor, ROWS[2:3])) == 1  # text alone needs none


def test_a_template_without_video_is_refused():
    model, processor = build("llava_onevision")
    processor.chat_template = processor.chat_template.replace("<video>", "")
    processor.video_token = None  # or the processor counts by itself
    with pytest.raises(RuntimeError, match="row 'row': the chat template .* leaves no place for the video"):
        answer(model, processor, ROWS[:1])


def test_only_new_tokens_without_special_ones(monkeypatch):
    model, processor = build("qwen2_5_vl")
    tokenizer = processor.tokenizer
    new = tokenizer.encode(" From 3.5 to 6<|im_end|>") + [tokenizer.pad_token_id]
    monkeypatch.setattr(
        model,
        "generate",
        lambda input_ids, **kwargs: torch.cat([input_ids, torch.tensor([new] * len(input_ids))], dim=1),
    )
    assert answer(model, processor, ROWS) == ["From 3.5 to 6"] * len(ROWS)


@pytest.mark.parametrize("in_template", [True, False])
def test_the_first_token_is_there_once(in_template, calls):
    model, processor = build("qwen2_5_vl")
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    if in_template:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    kept = calls(model)
    answer(model, processor, ROWS)
    first = (kept[0]["input_ids"] == tokenizer.bos_token_id) & kept[0]["attention_mask"].bool()  # it pads, too
    assert first.sum(1).tolist() == [1] * len(ROWS)


def test_memory_errors_pass_and_the_model_is_left_as_it_was(monkeypatch):
    model, processor = build("qwen2_5_vl")
    model.train()
    answer(model, processor, ROWS[:1])
    assert model.training

    def fail(**kwargs):
        assert not model.training
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        answer(model, processor, ROWS)
    assert model.training


def test_generation_arguments_are_passed_on(calls):
    model, processor = build("qwen2_5_vl")
    kept = calls(model)
    answer(model, processor, ROWS[:1], do_sample=True, temperature=0.5)
    assert (kept[0]["do_sample"], kept[0]["temperature"], kept[0]["max_new_tokens"]) == (True, 0.5, 8)


def test_a_shared_video_is_read_once_a_batch():
    model, processor = build("qwen2_5_vl")
    read = []
    answer(model, processor, ROWS, batch_size=5, read_video=lambda entry: read.append(entry) or noise_video(entry))
    assert [entry["path"] for entry in read] == ["noise-1-6", "noise-2-9", "noise-3-6"]


def test_the_prompt_may_speak_of_spans(calls):
    model, processor = build("qwen2_5_vl")
    kept = calls(model)
    prompt = user("Is <evi> like <evi>?")
    row = {"videos": ["noise-1-6"], "prompt": prompt, "prompt_spans": [[0, 1.5], [2, 3]]}
    answer(model, processor, [row])
    assert "Is 0.0s - 1.5s like 2.0s - 3.0s?" in processor.tokenizer.decode(kept[0]["input_ids"][0])
    assert prompt == user("Is <evi> like <evi>?")
    for spans in ([[0, 1]], [[0, 1], [1, 2], [2, 3]]):
        with pytest.raises(RowError, match="more"):
            answer(model, processor, [{**row, "prompt_spans": spans}])


def test_content_may_be_a_string_and_have_unused_fields(calls):
    model, processor = build("qwen2_5_vl")
    kept = calls(model)
    parts = [{"type": "video", "text": None}, {"type": "text", "text": "When?"}]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer(model, processor, [{"videos": [{"path": "noise-1-6", "fps": None}], "prompt": prompt}])
    assert "<|im_start|>system\nBe brief.<|im_end|>" in processor.tokenizer.decode(kept[0]["input_ids"][0])


@pytest.mark.parametrize("videos, video_part", [([], True), (["noise-1-6"], False), (["noise-1-6"] * 2, True)])
def test_videos_and_prompt_must_agree(videos, video_part):
    model, processor = build("qwen2_5_vl")
    row = {"id": "a", "videos": videos, "prompt": user("When?", video=video_part)}
    with pytest.raises(RowError, match=f"row 'a': {len(videos)} videos, but {int(video_part)} video parts"):
        answer(model, processor, [row])


@pytest.mark.parametrize("size, expected", [(None, (32, 64)), (16, (16, 32)), (48, (32, 64))])
def test_size_is_of_the_shorter_side(size, expected, tmp_path, monkeypatch):
    pictures = [np.full((32, 64, 3), 5 * index, dtype=np.uint8) for index in range(20)]
    path = str(make_clip(tmp_path / "wide.mp4", np.arange(20) * 100, pictures=pictures))
    model, processor = build("qwen2_5_vl")
    told = watch_videos(monkeypatch, processor)
    for entry, num_frames in ((path, 4), ({"path": path, "start_s": 0.5, "end_s": 1.5}, 3)):
        rows = [{"videos": [entry], "prompt": user("When?")}]
        (found,) = generate_texts(model, processor, rows, max_new_tokens=1, fps=3, max_frames=4, size=size)
        (metadata,) = told.pop()["video_metadata"]
        assert (metadata.height, metadata.width) == expected
        assert len(found.timestamps_s) == len(metadata.frames_indices) == num_frames


def test_no_rows():
    assert generate_texts(*build("llava_onevision"), [], progress=False) == []
