# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What reaches stock models beside videos: images, times, and what is refused. The processors are the real ones."""

import functools
import io
import logging
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List
from PIL import Image as PILImage

from tests.families import FAMILIES, build
from tests.helpers import noise_video, sft_row
from tests.test_video import make_clip
from trl_temporal.data.chat_inputs import encode_prompts, read_images, read_videos, time_ids_per_second
from trl_temporal.data.frame_cache import FrameCache
from trl_temporal.data.schema import MESSAGES_FEATURE, RowError
from trl_temporal.evaluation.text_generation import generate_texts
from trl_temporal.video import Video, load_row_video

# SmolVLM is told whole seconds, and the videos of noise have two frames in each.
pytestmark = pytest.mark.filterwarnings("ignore:row .* frames per second")


def picture(seed, height=16, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def row(id, *kinds, question="When?", **columns):
    """A row whose prompt has parts of these kinds before its question."""
    parts = [{"type": kind} for kind in kinds] + [{"type": "text", "text": question}]
    return {"id": id, "prompt": [{"role": "user", "content": parts}], **columns}


MIXED = [
    row("video", "video", videos=["noise-1-6"]),
    row("image", "image", question="What?", images=[picture(1)]),
    row("text", question="Hello there, you?"),
    row("images", "image", "image", question="Who?", images=[picture(2, 16, 32), picture(3)]),
    row("video 2", "video", question="Where is it?", videos=["noise-2-6"], images=None),
]
BOTH = row("both", "image", "video", question="Whom?", images=[picture(4)], videos=["noise-3-6"])


def encode(processor, rows, **kwargs):
    return encode_prompts(processor, rows, read_videos(rows, noise_video), **kwargs).inputs


@torch.no_grad()
def last_logits(model, inputs):
    return model(**inputs).logits[:, -1]


# Images


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_images_and_text_in_one_batch(family):
    model, processor = build(family)
    rows = MIXED if family == "smolvlm" else [*MIXED, BOTH]
    together = last_logits(model, encode(processor, rows))
    alone = torch.cat([last_logits(model, encode(processor, [row])) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    backwards = last_logits(model, encode(processor, rows[::-1]))
    torch.testing.assert_close(backwards.flip(0), alone, rtol=1e-3, atol=1e-3)

    # Every image is seen, by its own row alone.
    for number, row in enumerate(rows):
        for place in range(len(row.get("images") or [])):
            images = list(row["images"])
            images[place] = 255 - images[place]
            other = last_logits(
                model, encode(processor, [*rows[:number], row | {"images": images}, *rows[number + 1 :]])
            )
            changed = ((other - together).abs().amax(1) > 1e-2).tolist()
            assert changed == [index == number for index in range(len(rows))], row["id"]


def test_smolvlm_takes_a_video_or_images():
    """Its processor gives pixels of both one name; the video's would take the place of the images'."""
    model, processor = build("smolvlm")
    with pytest.raises(RowError, match="row 'both': has a video and images, of which SmolVLMProcessor would drop"):
        encode(processor, [MIXED[0], BOTH])
    inputs = encode(processor, MIXED)
    empty = (inputs["pixel_values"] == 0).flatten(2).all(2)
    assert empty.sum(1).tolist() == [2, 3, 0, 2] and (empty.int().diff(dim=1) >= 0).all()  # they come last
    processor.image_processor.max_image_size = {"longest_edge": 32}
    with pytest.raises(ValueError, match=r"pictures of the sizes \[\(16, 16\), \(32, 32\)\]"):
        encode(processor, MIXED[:2])


def test_images_of_any_form(tmp_path):
    array = picture(1)
    path = tmp_path / "image.png"
    PILImage.fromarray(array).save(path)
    forms = [
        array,
        PILImage.fromarray(array),
        PILImage.fromarray(np.dstack([array, np.full((16, 16), 255, np.uint8)])),  # RGBA
        str(path),
        path,
        {"path": str(path), "bytes": None},
        {"path": "gone.png", "bytes": path.read_bytes()},
    ]
    for form in forms:
        for cell in (form, [form]):
            ((image,),) = read_images([row("a", "image", images=cell)])
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), array)


def test_a_photo_held_sideways_is_upright():
    pixels = picture(1, 16, 32)
    stored = PILImage.fromarray(pixels)
    exif = stored.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    buffer = io.BytesIO()
    stored.save(buffer, format="png", exif=exif)
    ((image,),) = read_images([row("a", "image", images=[{"bytes": buffer.getvalue()}])])
    np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels, -1))


@pytest.mark.parametrize("decode", [True, False])
def test_rows_from_arrow_have_unused_fields(decode, tmp_path):
    processor = build("qwen2_5_vl")[1]
    rows = []
    for number, plain in enumerate([MIXED[1], MIXED[2], MIXED[3]]):
        paths = []
        for place, array in enumerate(plain.get("images") or []):
            paths.append(str(tmp_path / f"{number}-{place}.png"))
            PILImage.fromarray(array).save(paths[-1])
        rows.append({"id": plain["id"], "prompt": plain["prompt"], "images": paths})
    features = Features({"id": Dataset.from_list(rows).features["id"], "prompt": MESSAGES_FEATURE})
    dataset = Dataset.from_list(rows, features=Features(features | {"images": List(Image(decode=decode))}))
    assert dataset[0]["prompt"][0]["content"][0] == {"type": "image", "text": None}
    expected = encode(processor, MIXED[1:4])
    actual = encode(processor, dataset.to_list() if not decode else [dataset[index] for index in range(3)])
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value)


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "row 'a': 0 images, but 1 image parts in its prompt"),
        ([picture(1)] * 2, "row 'a': 2 images, but 1 image parts"),
        (["clip.MP4"], "row 'a', column 'images': has a video among its images, 'clip.MP4'. Put it into 'videos'"),
        ([{"path": "clip.mkv", "bytes": None}], "row 'a', column 'images': has a video among .* 'clip.mkv'"),
        ([{"path": "clip", "start_s": 1.0}], "row 'a', column 'images': has a video among .* 'clip'. Put it into"),
        ([{"frames_dir": "frames", "fps": 2.0}], "row 'a', column 'images': has a video among"),
        ([noise_video("noise-1-2")], "row 'a', column 'images': has an image of type Video.*into 'videos'"),
        ([[picture(1), picture(2)]], "row 'a', column 'images': has an image of type list"),
        ([None], "row 'a', column 'images': has an image of type NoneType"),
        ([{"bytes": None}], "row 'a', column 'images': has the image {}"),
        ([{"url": "a.png"}], "row 'a', column 'images': has the image {'url': 'a.png'}"),
        (["gone.png"], "row 'a', column 'images': gone.png: not a readable image"),
        ([{"bytes": b"moov"}], "row 'a', column 'images': an encoded image: not a readable image"),
        ([np.zeros((4, 4))], r"row 'a', column 'images': an array of float64 of shape \(4, 4\)"),
        ([np.zeros((2, 4, 4, 3), np.uint8)], r"row 'a', column 'images': an array of uint8 of shape \(2, 4, 4, 3\)"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(RowError, match=message):
        read_images([MIXED[1], row("a", "image", images=images)])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_film_in_an_image_file_is_a_video(suffix, tmp_path):
    path = tmp_path / f"film.{suffix}"
    first, second = (PILImage.fromarray(picture(seed)) for seed in (1, 2))
    first.save(path, save_all=True, append_images=[second])
    with pytest.raises(RowError, match=rf"row 'a', column 'images': .*film.{suffix}: is a film of 2 pictures"):
        read_images([row("a", "image", images=[str(path)])])
    first.save(path)
    read_images([row("a", "image", images=[str(path)])])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_template_that_leaves_a_part_out_is_refused(family, kind):
    """Also where the other part of the row, or other rows, are seen."""
    processor = build(family)[1]
    tokens = {"image": "<I>", "video": "<V>"} | {kind: ""}
    template = (
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% elif part.type == 'image' %}" + tokens["image"] + "{% else %}" + tokens["video"] + "{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    render = type(processor).apply_chat_template
    processor.apply_chat_template = lambda chat, **kwargs: render(processor, chat, template, **kwargs)
    with pytest.raises(RuntimeError, match=f"row 'both': the chat template of .* leaves no place for the {kind}"):
        encode(processor, [BOTH])


def test_pixels_that_are_left_out_are_noticed(monkeypatch):
    processor = build("qwen2_5_vl")[1]
    process = type(processor).__call__

    def forget(self, **kwargs):
        inputs = process(self, **kwargs)
        return {name: value for name, value in inputs.items() if not name.startswith("pixel")}

    monkeypatch.setattr(type(processor), "__call__", forget)
    with pytest.raises(RuntimeError, match="made no pixel values of 0 videos and 3 images"):
        encode(processor, MIXED[1:4])
    encode(processor, MIXED[2:3])


# Videos


@pytest.mark.parametrize(
    "videos, message",
    [
        (["noise-1-6", "noise-2-6"], "row 'a': 2 videos, but 1 video parts in its prompt"),
        ([], "row 'a': 0 videos, but 1 video parts"),
        ([["1.png", "2.png"]], r"row 'a', column 'videos': .* list of frames.*\{\"frames\": .*, \"fps\": 2.0\}"),
        ([[picture(1), picture(2)]], "row 'a', column 'videos': has an entry that is a list of frames"),
        ([np.zeros((2, 4, 4, 3), np.uint8)], "row 'a', column 'videos': has an entry that is a list of frames"),
        ([{"frames": ["1.png"]}], "row 'a', column 'videos': has 'frames' without 'fps'"),
        (["1.png", "2.png"], "row 'a', column 'videos': names an image, '1.png'. Put it into 'images'.*frames"),
    ],
)
def test_bad_videos_are_named(videos, message):
    with pytest.raises(RowError, match=message):
        read_videos([MIXED[0], row("a", "video", videos=videos)], noise_video)


def test_a_list_of_frames_has_the_times_it_says(tmp_path):
    processor = build("qwen3_vl")[1]
    arrays = [picture(seed) for seed in range(4)]
    paths = [str(tmp_path / f"{index}.png") for index in range(4)]
    for array, path in zip(arrays, paths, strict=True):
        PILImage.fromarray(array).save(path)
    read = []

    def read_video(entry):
        read.append(entry)
        return load_row_video(entry, fps=5)

    entries = [
        {"frames": paths, "fps": 5.0},
        {"frames": arrays, "fps": 5.0},
        {"frames": [array.copy() for array in arrays], "fps": 5.0},  # pixels tell that it is the same
        {"frames": arrays[::-1], "fps": 5.0},
        {"frames": arrays, "fps": 10.0},
    ]
    rows = [row(str(index), "video", videos=[entry]) for index, entry in enumerate(entries)]
    videos = read_videos(rows, read_video)
    assert len(read) == 4
    texts = processor.tokenizer.batch_decode(encode_prompts(processor, rows, videos).inputs["input_ids"])
    assert ["<0.1 seconds>" in text and "<0.5 seconds>" in text for text in texts] == [True] * 4 + [False]
    for video in videos[:3]:
        np.testing.assert_array_equal(video.frames, np.stack(arrays))
        np.testing.assert_array_equal(video.timestamps_s, [0, 0.2, 0.4, 0.6])
    np.testing.assert_array_equal(videos[3].frames, np.stack(arrays[::-1]))


# Times


def video_at(fps, num_frames=24):
    """Frames of noise, `fps` a second."""
    frames = noise_video(f"noise-1-{num_frames}").frames
    return Video(frames, np.arange(num_frames) / fps, num_frames / fps, "noise.mp4")


def warned_of(processor, fps, num_frames=24, **kwargs):
    """The warnings about rows with a video of so many frames a second."""
    rows = [MIXED[2], row("dense", "video"), row("again", "video")]
    videos = [None, *[video_at(fps, num_frames)] * 2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prompts = encode_prompts(processor, rows, videos, **kwargs)
    return prompts.inputs, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("fps, collapses", [(1, False), (2, False), (4, False), (5, True), (8, True), (30, True)])
def test_equal_positions_of_qwen2_5_vl(fps, collapses):
    model, processor = build("qwen2_5_vl")
    per_second = time_ids_per_second(processor, model)
    assert per_second == 2
    inputs, messages = warned_of(processor, fps, time_ids_per_second=per_second)
    # As the model itself sees it: the first of its three positions, once for each step of the first video.
    given = {name: inputs[name] for name in ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")}
    positions, _ = model.model.get_rope_index(**given, attention_mask=inputs["attention_mask"])
    of_video = positions[0, 1, inputs["input_ids"][1] == processor.video_token_id]
    steps = of_video.view(inputs["video_grid_thw"][0, 0], -1)[:, 0]
    assert (steps.diff() == 0).any() == collapses
    assert len(messages) == collapses
    if collapses:
        assert messages[0].startswith(
            f"row 'dense': at {fps} frames per second, {(steps.diff() == 0).sum()} of the 12"
        )
        assert f"(the first is {steps[1:][steps.diff() == 0][0] - steps[0]})" in messages[0]
        assert "lower `fps`, `max_frames`" in messages[0]
        advice = float(messages[0].split("Sample about ")[1].split(" ")[0])
        assert 2.5 <= advice <= 4.2  # two positions a second, two frames a position


def test_the_warning_comes_once_for_each_processor():
    model, processor = build("qwen2_5_vl")
    per_second = time_ids_per_second(processor, model)
    assert not warned_of(processor, 1, time_ids_per_second=per_second)[1]
    assert not warned_of(processor, 8)[1]  # nothing is known of the model
    assert len(warned_of(processor, 8, time_ids_per_second=per_second)[1]) == 1
    assert not warned_of(processor, 8, time_ids_per_second=per_second)[1]
    other = build("qwen2_5_vl")[1]
    assert len(warned_of(other, 8, time_ids_per_second=per_second)[1]) == 1


@pytest.mark.parametrize(
    "family, fps, collapses",
    [
        ("qwen3_vl", 4, False),
        ("qwen3_vl", 19, False),
        ("qwen3_vl", 30, True),
        ("smolvlm", 1, False),
        ("smolvlm", 2, True),
        ("qwen2_vl", 30, False),  # knows nothing of time
        ("llava_onevision", 30, False),
        ("internvl", 30, False),
    ],
)
def test_equal_times_in_the_text(family, fps, collapses):
    model, processor = build(family)
    assert time_ids_per_second(processor, model) is None
    inputs, messages = warned_of(processor, fps)
    assert len(messages) == collapses
    if collapses:
        assert messages[0].startswith(f"row 'dense': at {fps} frames per second, ")
        time = messages[0].split("the first is '")[1].split("'")[0]
        assert processor.tokenizer.decode(inputs["input_ids"][1]).count(time) > 1


def test_the_rounding_of_frame_times_is_no_collapse():
    """At 1 fps a film of 29.97 fps gives 0, 0.967, 1.968, ...: two frames at 00:00, and no rate would mend it."""
    processor = build("smolvlm")[1]
    times_s = np.floor(np.arange(12) * 29.97) / 29.97
    video = video_at(1, 12)
    video.timestamps_s = times_s
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = encode_prompts(processor, [row("a", "video")], [video]).inputs
    assert processor.tokenizer.decode(inputs["input_ids"][0]).count("Frame from 00:00:") == 2


def test_answering_warns_too():
    model, processor = build("qwen2_5_vl")
    with pytest.warns(UserWarning, match="row 'a': at 8 frames per second"):
        rows = [row("a", "video", videos=["x"])]
        generate_texts(model, processor, rows, max_new_tokens=1, read_video=lambda entry: video_at(8), progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_frame_rate_is_made_up(family, monkeypatch):
    """Without metadata, processors take 24 frames per second; some of them log it, some do not."""
    model, processor = build(family)
    logged = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda self, message, *args: logged.append(message))
    monkeypatch.setattr(logging.Logger, "warning", lambda self, message, *args: logged.append(message))
    told = []
    process = type(processor.video_processor).__call__

    def watch(self, videos, **kwargs):
        told.append(kwargs)
        return process(self, videos, **kwargs)

    monkeypatch.setattr(type(processor.video_processor), "__call__", watch)
    inputs = encode(processor, MIXED)
    generate_texts(model, processor, MIXED, max_new_tokens=1, read_video=noise_video, progress=False)
    assert told and all(metadata.fps == 1000 for call in told for metadata in call["video_metadata"])
    assert not [message for message in logged if "24" in message]
    if family == "qwen2_5_vl":
        assert inputs["second_per_grid_ts"].tolist() == [1, 1]  # two frames, half a second apart
    if family in ("qwen3_vl", "smolvlm"):  # that this would have been noticed
        text = processor.apply_chat_template(MIXED[0]["prompt"], tokenize=False)
        processor(
            text=[text],
            videos=[np.array(noise_video("noise-1-6").frames)],
            do_sample_frames=False,
            return_tensors="pt",
        )
        assert [message for message in logged if "fps=24" in message]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten seconds at 10 frames per second."""
    return str(make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", np.arange(100) * 100))


@pytest.mark.parametrize(
    "sampling, times_s",
    [
        ({"fps": 1}, np.arange(10)),
        ({"fps": 1, "max_frames": 4}, [1.2, 3.7, 6.2, 8.7]),
        ({"fps": 2, "max_frames": 4}, [1.2, 3.7, 6.2, 8.7]),
        ({"num_frames": 4}, [1.2, 3.7, 6.2, 8.7]),
        ({"num_frames": 8}, [0.6, 1.8, 3.1, 4.3, 5.6, 6.8, 8.1, 9.3]),
    ],
)
def test_times_follow_a_cap_of_frames(clip, sampling, times_s):
    rows = [row("a", "video", videos=[clip])]
    videos = read_videos(rows, functools.partial(load_row_video, **sampling))
    np.testing.assert_allclose(videos[0].timestamps_s, times_s, atol=0.11)  # which frame is the decoder's matter
    times_s = videos[0].timestamps_s
    patches_s = np.reshape(times_s, (-1, 2))

    inputs = encode_prompts(build("qwen2_5_vl")[1], rows, videos).inputs
    between_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 * between_s], rel=1e-3)

    processor = build("qwen3_vl")[1]
    text = processor.tokenizer.decode(encode_prompts(processor, rows, videos).inputs["input_ids"][0])
    written = [float(piece.split(" ")[0]) for piece in text.split("<") if piece.endswith(" seconds>")]
    np.testing.assert_allclose(written, patches_s.mean(1), atol=0.051)


@pytest.mark.parametrize("family", ["llava_onevision", "smolvlm", "internvl"])
def test_one_number_of_frames_lets_processors_stack(family, clip, tmp_path):
    model, processor = build(family)
    short = str(make_clip(tmp_path / "short.mp4", np.arange(30) * 100))
    rows = [row(path, "video", videos=[path]) for path in (clip, short)]
    videos = read_videos(rows, FrameCache(None, num_frames=6, size=16))
    assert [len(video.frames) for video in videos] == [6, 6]
    assert videos[0].duration_s > 3 * videos[1].duration_s
    together = last_logits(model, encode_prompts(processor, rows, videos).inputs)
    alone = [encode_prompts(processor, [row], [video]).inputs for row, video in zip(rows, videos, strict=True)]
    expected = torch.cat([last_logits(model, inputs) for inputs in alone])
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_mixed_rows(family):
    model, processor = build(family)
    options = {"max_new_tokens": 8, "read_video": noise_video, "progress": False}
    answers = generate_texts(model, processor, MIXED, batch_size=5, **options)
    alone = generate_texts(model, processor, MIXED, batch_size=1, **options)
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert [len(answer.timestamps_s) for answer in answers] == [6, 0, 0, 0, 6]
    rows = [row | {"images": [255 - image for image in row.get("images") or []]} for row in MIXED]
    others = generate_texts(model, processor, rows, batch_size=5, **options)
    changed = [other.text != answer.text for other, answer in zip(others, answers, strict=True)]
    assert changed == [False, True, False, True, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_of_one_frame_is_a_video(family):
    """Qwen merges two frames, and Qwen3-VL alone does not repeat a single one by itself."""
    model, processor = build(family)
    row = sft_row("", [], video="noise-1-1")
    prompts = encode_prompts(processor, [row], [noise_video("noise-1-1")])
    assert model(**prompts.inputs).logits.isfinite().all()
    if family == "qwen3_vl":
        assert processor.tokenizer.decode(prompts.inputs["input_ids"][0]).count("seconds>") == 1
