# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The tiny stock models and processors are what they stand for, and the real code of torchvision runs in the tests."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
import transformers

from tests.families import FAMILIES, build, watch_videos
from tests.helpers import noise_video
from trl_temporal.data.chat_inputs import video_metadata

PIXELS = ("pixel_values_videos", "pixel_values")


def wide_video(num_frames: int):
    """Frames of 32 x 64 pixels, half a second apart."""
    video = noise_video(f"noise-1-{num_frames}")
    video.frames = np.random.default_rng(0).integers(0, 256, (num_frames, 32, 64, 3), dtype=np.uint8)
    return video


def encode(processor, *media):
    """A question about pictures `(H, W, 3)` and videos."""
    images = [one for one in media if isinstance(one, np.ndarray)]
    videos = [one for one in media if not isinstance(one, np.ndarray)]
    content = [{"type": "image" if isinstance(one, np.ndarray) else "video"} for one in media]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": "When?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    kwargs = {}
    if videos:
        kwargs["videos"] = [video.frames for video in videos]
        kwargs["video_metadata"] = [video_metadata(video) for video in videos]
        kwargs["do_sample_frames"] = False
    if images:
        kwargs["images"] = images
    return processor(text=[text], return_tensors="pt", **kwargs)


def prompt(processor, *media):
    return processor.tokenizer.decode(encode(processor, *media)["input_ids"][0])


def squash(text: str, *tokens: str) -> str:
    """Runs of a token as the token and their length."""
    for token in tokens:
        for length in range(text.count(token), 1, -1):
            text = text.replace(token * length, f"{token}*{length}")
    return text


IMAGE_TAIL = "When?<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN2 = SYSTEM + "<|im_start|>user\n<|vision_start|><|video_pad|>*24<|vision_end|>" + IMAGE_TAIL
SMOLVLM_IMAGE = "<fake_token_around_image>{}<image>*4"


@pytest.mark.parametrize(
    "family, expected",
    [
        ("qwen2_vl", QWEN2),  # 3 x 16 x 32 pixels, of which 2 x 8 x 8 are a token
        ("qwen2_5_vl", QWEN2),
        (
            "qwen3_vl",
            "<|im_start|>user\n<|vision_start|>"  # of the template; the others are the processor's, around every time
            + "".join(f"<{time} seconds><|vision_start|><|video_pad|>*8<|vision_end|>" for time in (0.2, 1.2, 2.2))
            + "<|vision_end|>"
            + IMAGE_TAIL,
        ),
        ("llava_onevision", "<|im_start|>user <video>*25\nWhen?<|im_end|><|im_start|>assistant\n"),
        (
            "smolvlm",
            "<|im_start|>User: You are provided the following series of six frames from a 0:00:03 [H:MM:SS] video.\n"
            + "".join(
                f"\nFrame from 00:0{second}:{SMOLVLM_IMAGE.format('<global-img>')}<fake_token_around_image>"
                for second in (0, 0, 1, 1, 2, 2)
            )
            + "\n\nWhen?<end_of_utterance>\nAssistant:",
        ),
        (
            "internvl",
            "<|im_start|>user\n"
            + "\n".join(f"Frame{number}: <img><IMG_CONTEXT>*4</img>" for number in range(1, 7))
            + "\n"
            + IMAGE_TAIL,
        ),
    ],
)
def test_a_video_in_the_prompt(family, expected):
    """Real tokens, with the times that the family writes, in so many tokens as there are features."""
    text = prompt(build(family)[1], wide_video(6))
    assert squash(text, "<|video_pad|>", "<video>", "<image>", "<IMG_CONTEXT>") == expected


@pytest.mark.parametrize(
    "family, expected",
    [
        ("qwen2_vl", SYSTEM + "<|im_start|>user\n<|vision_start|><|image_pad|>*8<|vision_end|>" + IMAGE_TAIL),
        ("qwen2_5_vl", SYSTEM + "<|im_start|>user\n<|vision_start|><|image_pad|>*8<|vision_end|>" + IMAGE_TAIL),
        ("qwen3_vl", "<|im_start|>user\n<|vision_start|><|image_pad|>*8<|vision_end|>" + IMAGE_TAIL),
        # The whole picture, two tiles and the end of each of four lines.
        ("llava_onevision", "<|im_start|>user <image>*52\nWhen?<|im_end|><|im_start|>assistant\n"),
        (
            "smolvlm",
            "<|im_start|>User:"
            + "".join(SMOLVLM_IMAGE.format(f"<row_1_col_{column}>") for column in (1, 2))
            + "\n\n"
            + SMOLVLM_IMAGE.format("<global-img>")
            + "<fake_token_around_image>When?<end_of_utterance>\nAssistant:",
        ),
        ("internvl", "<|im_start|>user\n<img><IMG_CONTEXT>*12</img>\n" + IMAGE_TAIL),  # two tiles and the whole
    ],
)
def test_a_picture_in_the_prompt(family, expected):
    text = prompt(build(family)[1], wide_video(1).frames[0])
    assert squash(text, "<|image_pad|>", "<image>", "<IMG_CONTEXT>") == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("media", ["video", "picture"])
def test_the_model_takes_what_the_processor_makes(family, media):
    model, processor = build(family)
    assert model.config.get_text_config().num_hidden_layers == 4
    made = [wide_video(9), noise_video("noise-3-9")]
    if media == "picture":
        made = [video.frames[0] for video in made]
    outputs = [model(**encode(processor, one)).logits[0, -1] for one in made]
    assert all(output.isfinite().all() for output in outputs)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_beside_a_video(family):
    model, processor = build(family)
    pictures = [wide_video(1).frames[0], noise_video("noise-3-1").frames[0]]
    videos = [wide_video(6), noise_video("noise-3-6")]
    if family == "smolvlm":  # both are its `pixel_values`, of which its processor keeps one
        with pytest.raises(ValueError, match="features and image tokens do not match"):
            model(**encode(processor, pictures[0], videos[0]))
        return
    outputs = [model(**encode(processor, *media)).logits[0, -1] for media in itertools.product(pictures, videos)]
    for one, other in itertools.combinations(outputs, 2):
        assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(family, tmp_path):
    model, processor = build(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded_model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded_model) is type(model) and type(loaded) is type(processor)
    for part in ("video_processor", "image_processor", "tokenizer"):
        assert type(getattr(loaded, part)) is type(getattr(processor, part)), part
    assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
    assert loaded.chat_template == processor.chat_template
    for media in (wide_video(6), wide_video(1).frames[0]):
        inputs, same = encode(processor, media), encode(loaded, media)
        assert inputs.keys() == same.keys()
        for name, value in inputs.items():
            assert torch.equal(value, same[name]), name
        with torch.no_grad():
            assert torch.equal(loaded_model.eval()(**same).logits, model(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_the_same_every_time(family):
    model, again = build(family)[0], build(family)[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_frames", [2, 6, 9])
def test_frames_are_neither_dropped_nor_sampled(family, num_frames, monkeypatch):
    """Every frame of a video reaches the model once; Qwen repeats the last one to fill a pair."""
    processor = build(family)[1]
    calls = watch_videos(monkeypatch, processor)
    video = wide_video(num_frames)
    # One grey level a frame, which resizing keeps and normalisation keeps in order.
    video.frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 20 + np.zeros_like(video.frames)
    inputs = encode(processor, video)
    assert len(calls) == 1 and len(calls[0]["videos"][0]) == num_frames
    pixels = next(inputs[name] for name in PIXELS if name in inputs)
    mean, std = (torch.tensor(getattr(processor.video_processor, name)) for name in ("image_mean", "image_std"))
    if "qwen" in family:
        time, *_ = inputs["video_grid_thw"][0].tolist()
        frames = pixels.view(time, -1, 3, 2, 16).movedim(3, 1).flatten(0, 1).transpose(1, 2).flatten(2)
        expected = [*range(num_frames), *[num_frames - 1] * (num_frames % 2)]
    else:
        frames = pixels.reshape(-1, 3, 16 * 16)
        expected = list(range(num_frames))
    levels = (frames * std[:, None] + mean[:, None]) * 255 / 20
    assert len(levels) == len(expected)
    torch.testing.assert_close(
        levels, torch.tensor(expected).float()[:, None, None].expand_as(levels), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_one_frame_is_a_video_but_not_for_qwen3_vl(family):
    model, processor = build(family)
    if family == "qwen3_vl":
        with pytest.raises(ValueError, match="t:1 must be larger than temporal_factor:2"):
            encode(processor, wide_video(1))
        return
    assert model(**encode(processor, wide_video(1))).logits.isfinite().all()


def test_what_the_families_make_of_videos_of_different_lengths():
    """Why the collators refuse them where videos are stacked: errors, and frames of nothing."""
    videos = [wide_video(6).frames, wide_video(9).frames]
    made = {}
    for family in FAMILIES:
        try:
            made[family] = build(family)[1].video_processor(videos, return_tensors="pt", do_sample_frames=False)
        except ValueError:
            made[family] = None
    assert made["llava_onevision"] is made["internvl"] is None
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        assert made[family]["video_grid_thw"][:, 0].tolist() == [3, 5]
    frames = made["smolvlm"]["pixel_values"]
    assert frames.shape[:2] == (2, 9) and not frames[0, 6:].any()  # black is -1 there: what is 0 is no picture


def test_qwen_patches_are_those_of_the_formula():
    """Every number of a small clip, not resized, as a loop over patches computes it."""
    video = np.random.default_rng(0).integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)
    processor = transformers.Qwen2VLVideoProcessor(patch_size=4, do_resize=False, cap_pixels_per_frame=False)
    made = processor([video], return_tensors="pt", do_sample_frames=False)
    assert made["video_grid_thw"].tolist() == [[2, 2, 4]]
    pixels = (video / 255 - np.array(processor.image_mean)) / np.array(processor.image_std)
    pixels = np.concatenate([pixels, pixels[-1:]])  # the last frame fills its pair
    patches = []
    for time, row, column in itertools.product(range(0, 4, 2), range(0, 8, 8), range(0, 16, 8)):
        for y, x in itertools.product((row, row + 4), (column, column + 4)):  # the four patches of a token
            patch = pixels[time : time + 2, y : y + 4, x : x + 4]
            patches.append([patch[t, i, j, c] for c in range(3) for t in range(2) for i in range(4) for j in range(4)])
    np.testing.assert_allclose(made["pixel_values_videos"].numpy(), np.array(patches), atol=1e-6)


def test_resizing_is_that_of_torch():
    """Bicubic, with anti-aliasing, of whole numbers."""
    video = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    processor = transformers.Qwen2VLVideoProcessor(
        size={"shortest_edge": 16 * 16, "longest_edge": 16 * 32},
        patch_size=4,
        do_rescale=False,
        do_normalize=False,
        cap_pixels_per_frame=False,
    )
    made = processor([video], return_tensors="pt", do_sample_frames=False)
    assert made["video_grid_thw"].tolist() == [[1, 4, 8]]
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(frames, size=(16, 32), mode="bicubic", antialias=True)
    small = small.round().clamp(0, 255)  # (2, 3, 16, 32)
    patches = small.view(2, 3, 2, 2, 4, 4, 2, 4).permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(32, -1)
    torch.testing.assert_close(made["pixel_values_videos"].float(), patches, atol=1, rtol=0)  # other rounding


@pytest.mark.skipif(torchvision.extension._has_ops(), reason="torchvision imports by itself here")
def test_what_is_missing_raises():
    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
    with pytest.raises(RuntimeError, match="custom C"):
        torchvision.ops.nms(boxes, scores, 0.5)
    with pytest.raises(NotImplementedError, match="torchvision::nms"):
        torch.ops.torchvision.nms(boxes, scores, 0.5)
    with pytest.raises(RuntimeError, match="image extension"):
        torchvision.io.encode_png(torch.zeros(3, 8, 8, dtype=torch.uint8))


def test_the_environment_works_without_the_shim():
    """A torchvision that does not import must not be where transformers finds it."""
    code = """
import importlib.util
from transformers import AutoProcessor, Trainer
from trl_temporal import FPOTrainer
from tests.torchvision_shim import load_torchvision
if importlib.util.find_spec("torchvision"):
    import torchvision
else:
    try:
        load_torchvision()
    except RuntimeError as error:
        assert "before" in str(error)
    else:
        raise AssertionError("too late, and not noticed")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
