# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Answers of stock models: batches, real timestamps, and no model that answers blind.

Models and the text side of their processors are those of transformers, tiny and random. Its video processors need
torchvision; where that does not import, the plain ones below take their places.
"""

import importlib.util
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers.processing_utils import VideosKwargs
from transformers.video_utils import make_batched_metadata

from tests.helpers import noise_video, sft_row, user
from tests.test_video import make_clip
from trl_temporal.data.chat_inputs import video_metadata
from trl_temporal.data.schema import RowError
from trl_temporal.evaluation.text_generation import generate_texts
from trl_temporal.models.tiny import train_tokenizer
from trl_temporal.video import Video, load_video

ROWS = [
    sft_row("", [], video="noise-1-6"),
    sft_row("", [], video="noise-2-9", question="Describe every event in the video, one after the other."),
    sft_row("", [], video=None, question="Hello!"),
    sft_row("", [], video="noise-1-6", question="What happens first?"),
    sft_row("", [], video="noise-3-6"),
]
PATCH, MERGE, TEMPORAL = 8, 2, 2
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{% for part in message.content %}"
    "{% if part.type == 'video' %}VIDEO{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class PlainVideos:
    """Keeps what it was told."""

    valid_kwargs = VideosKwargs

    def __call__(self, videos, video_metadata=None, do_sample_frames=None, **kwargs):
        self.metadata, self.do_sample_frames = make_batched_metadata(videos, video_metadata), do_sample_frames
        return self.preprocess([torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255 for video in videos])


class PatchVideos(PlainVideos):
    """What the video processor of Qwen does, less the resizing: frames to patches of two frames each."""

    model_input_names = ["pixel_values_videos", "video_grid_thw"]
    merge_size, temporal_patch_size = MERGE, TEMPORAL

    def preprocess(self, videos):
        patches, grids = [], []
        for video in videos:
            video = torch.cat([video, video[-1:].expand(-len(video) % TEMPORAL, -1, -1, -1)])
            time, rows, columns = len(video) // TEMPORAL, video.shape[2] // PATCH, video.shape[3] // PATCH
            video = video.view(time, TEMPORAL, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
            patches.append(video.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(time * rows * columns, -1))
            grids.append([time, rows, columns])
        return {
            "pixel_values_videos": torch.cat(patches),
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": self.metadata,
        }


class StackVideos(PlainVideos):
    """What the video processor of LLaVA-OneVision does, less the resizing."""

    model_input_names = ["pixel_values_videos"]

    def preprocess(self, videos):
        return {"pixel_values_videos": torch.stack(videos)}


def make_tokenizer(*tokens):
    tokenizer = train_tokenizer(["When? What happens first in the video?"], vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    return tokenizer


# Weights are large, so that answers differ from row to row and a wrong mask or video is noticed.
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}
SIGLIP = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, "vision_use_head": False}


def text_config(tokenizer, **kwargs):
    return {
        **SIZES,
        "vocab_size": len(tokenizer),
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **kwargs,
    }


def qwen(model_type, processor_class, video_class, vision_config, **text_kwargs):
    """Makes a builder of Qwen2-VL and its successors."""

    def make(torchvision):
        tokenizer = make_tokenizer("<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>")
        ids = {
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
            "video_token_id": "<|video_pad|>",
            "image_token_id": "<|image_pad|>",
        }
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        config = transformers.AutoConfig.for_model(
            model_type,
            text_config=text_config(tokenizer, rope_parameters=rope, **text_kwargs),
            vision_config={
                "depth": 1,
                "num_heads": 2,
                "hidden_size": 32,
                "patch_size": PATCH,
                "initializer_range": 0.4,
                **vision_config,
            },
            **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
        )
        videos = PatchVideos()
        if torchvision:
            size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
            videos = getattr(transformers, video_class)(size=size, patch_size=PATCH, cap_pixels_per_frame=False)
        # Qwen3-VL frames every two pictures by itself, behind their time.
        place = "<|video_pad|>" if "Qwen3" in processor_class else "<|vision_start|><|video_pad|><|vision_end|>"
        return config, processor_class, tokenizer, videos, place, {}

    return make


def llava_onevision(torchvision):
    tokenizer = make_tokenizer("<video>", "<image>")
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config={**SIZES, **SIGLIP, "intermediate_size": 48},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[16, 16]],
    )
    videos = StackVideos()
    if torchvision:
        videos = transformers.LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16})
    kwargs = {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}
    return config, "LlavaOnevisionProcessor", tokenizer, videos, "<video>", kwargs


def smolvlm(torchvision):
    tokenizer = make_tokenizer("<video>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={**SIZES, "intermediate_size": 48, "image_size": 16, "patch_size": 4},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    videos = transformers.SmolVLMVideoProcessor(size={"longest_edge": 16}, max_image_size={"longest_edge": 16})
    return config, "SmolVLMProcessor", tokenizer, videos, "<video>", {"image_seq_len": 4}


def internvl(torchvision):
    tokenizer = make_tokenizer("<video>", "<IMG_CONTEXT>", "<img>", "</img>")
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config={**SIZES, "intermediate_size": 48, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    videos = transformers.InternVLVideoProcessor(size={"height": 16, "width": 16})
    return config, "InternVLProcessor", tokenizer, videos, "<video>", {"image_seq_length": 4}


FAMILIES = {
    "qwen2_vl": qwen("qwen2_vl", "Qwen2VLProcessor", "Qwen2VLVideoProcessor", {"embed_dim": 32}),
    "qwen2_5_vl": qwen(
        "qwen2_5_vl",
        "Qwen2_5_VLProcessor",
        "Qwen2VLVideoProcessor",
        {"intermediate_size": 48, "out_hidden_size": 32, "fullatt_block_indexes": [0], "tokens_per_second": 2},
    ),
    "qwen3_vl": qwen(
        "qwen3_vl",
        "Qwen3VLProcessor",
        "Qwen3VLVideoProcessor",
        {
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        head_dim=16,
    ),
    "llava_onevision": llava_onevision,
    "smolvlm": smolvlm,
    "internvl": internvl,
}
PLAIN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"]


def build(family: str, torchvision: bool = False):
    """A model and its processor, with the video processor of transformers or a plain one."""
    config, processor_class, tokenizer, videos, place, kwargs = FAMILIES[family](torchvision)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id

    class Processor(getattr(transformers, processor_class)):
        def check_argument_for_proper_class(self, name, argument):
            """Anything is: the proper classes need torchvision."""

    images = SimpleNamespace(model_input_names=["pixel_values"])
    return model, Processor(images, tokenizer, videos, chat_template=TEMPLATE.replace("VIDEO", place), **kwargs)


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


def check_batches(model, processor):
    texts = answer(model, processor, ROWS, batch_size=1)
    assert len(set(texts)) == len(ROWS)
    assert answer(model, processor, ROWS, batch_size=4) == texts
    assert answer(model, processor, ROWS[::-1], batch_size=5) == texts[::-1]
    other = answer(model, processor, ROWS, batch_size=5, read_video=lambda entry: noise_video("noise-7-6"))
    assert other != texts and other[2] == texts[2]  # the row without video


@pytest.mark.parametrize("family", PLAIN)
def test_batches_equal_single_rows_and_the_video_matters(family):
    check_batches(*build(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_video_processors_of_transformers(family):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # the latter where it is built for another torch
        pytest.skip(f"torchvision does not import: {str(error).splitlines()[0]}")
    if family == "smolvlm" and importlib.util.find_spec("num2words") is None:
        pytest.skip("SmolVLM's processor needs num2words")
    check_batches(*build(family, torchvision=True))


def test_prompts_are_padded_left_and_text_rows_have_no_video(calls):
    model, processor = build("qwen2_5_vl")
    kept = calls(model)
    answer(model, processor, ROWS, batch_size=5)
    (inputs,) = kept
    mask = inputs["attention_mask"]
    assert mask.sum(1).unique().numel() > 2
    assert (mask.diff(dim=1) >= 0).all()  # no token is followed by padding
    assert inputs["video_grid_thw"].tolist() == [[3, 2, 2], [5, 2, 2], [3, 2, 2], [3, 2, 2]]
    num_video = (inputs["input_ids"] == processor.video_token_id).sum(1).tolist()
    assert num_video == [3, 5, 0, 3, 3]


def test_stacked_videos_go_together_by_length(calls):
    model, processor = build("llava_onevision")
    kept = calls(model)
    answer(model, processor, ROWS, batch_size=5)
    assert [len(inputs["pixel_values_videos"]) for inputs in kept if "pixel_values_videos" in inputs] == [3, 1]
    assert [len(inputs["input_ids"]) for inputs in kept] == [3, 1, 1]


@pytest.mark.parametrize("family", PLAIN)
def test_the_processor_is_told_the_times(family):
    model, processor = build(family)
    video = noise_video("noise-1-6")
    video.timestamps_s = np.array([0.0, 0.25, 1.0, 1.5, 2.0004, 2.5])
    video.duration_s = 2.75
    answer(model, processor, ROWS[:1], read_video=lambda entry: video)
    (metadata,) = processor.video_processor.metadata
    assert processor.video_processor.do_sample_frames is False
    assert metadata.frames_indices[:5] == [0, 250, 1000, 1500, 2000]
    assert (metadata.fps, metadata.duration, metadata.width, metadata.height) == (1000, 2.75, 16, 16)
    np.testing.assert_allclose(metadata.timestamps[:6], video.timestamps_s, atol=5e-4)
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
    new = tokenizer.encode(" From 3.5 to 6<|end|>") + [tokenizer.pad_token_id]
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
    tokenizer.bos_token = "<|system|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.bos_token_id)]
    )
    if in_template:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    kept = calls(model)
    answer(model, processor, ROWS)
    assert (kept[0]["input_ids"] == tokenizer.bos_token_id).sum(1).tolist() == [1] * len(ROWS)


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
    assert "<|system|>Be brief.<|end|>" in processor.tokenizer.decode(kept[0]["input_ids"][0])


@pytest.mark.parametrize("videos, video_part", [([], True), (["noise-1-6"], False), (["noise-1-6"] * 2, True)])
def test_videos_and_prompt_must_agree(videos, video_part):
    model, processor = build("qwen2_5_vl")
    row = {"id": "a", "videos": videos, "prompt": user("When?", video=video_part)}
    with pytest.raises(RowError, match=f"row 'a': {len(videos)} videos, but {int(video_part)} video parts"):
        answer(model, processor, [row])


@pytest.mark.parametrize("size, expected", [(None, (32, 64)), (16, (16, 32)), (48, (32, 64))])
def test_size_is_of_the_shorter_side(size, expected, tmp_path):
    pictures = [np.full((32, 64, 3), 5 * index, dtype=np.uint8) for index in range(20)]
    path = str(make_clip(tmp_path / "wide.mp4", np.arange(20) * 100, pictures=pictures))
    model, processor = build("qwen2_5_vl")
    for entry, num_frames in ((path, 4), ({"path": path, "start_s": 0.5, "end_s": 1.5}, 3)):
        rows = [{"videos": [entry], "prompt": user("When?")}]
        (found,) = generate_texts(model, processor, rows, max_new_tokens=1, fps=3, max_frames=4, size=size)
        (metadata,) = processor.video_processor.metadata
        assert (metadata.height, metadata.width) == expected
        assert len(found.timestamps_s) == len(metadata.frames_indices) == num_frames


def test_no_rows():
    assert generate_texts(*build("llava_onevision"), [], progress=False) == []
