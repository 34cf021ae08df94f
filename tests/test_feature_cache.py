# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The feature cache: the same as encoding, for every family; what it refuses; what is left after a kill."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader

from tests.families import FAMILIES, build
from tests.helpers import user
from trl_temporal.cli import main
from trl_temporal.data import feature_cache_build
from trl_temporal.data.chat_inputs import encode_prompts
from trl_temporal.data.feature_cache import FeatureCache, VideoIds, encode_cached_prompts
from trl_temporal.data.feature_cache_build import BuildReport, build_feature_cache
from trl_temporal.data.feature_cache_path import read_videos_of
from trl_temporal.data.feature_key import FeatureCacheError, feature_key
from trl_temporal.data.frame_cache import FrameCache
from trl_temporal.evaluation.loading import load_model
from trl_temporal.models.d2vlm import D2VLMBackboneProcessor, D2VLMForConditionalGeneration
from trl_temporal.models.d2vlm.modeling_d2vlm_backbone import features_of_rows, mm_encoder_outputs
from trl_temporal.video import VideoError

ROOT = Path(__file__).parents[1]
NO_MARGIN = {"min_free_bytes": 0, "progress": False}


@pytest.fixture(scope="module")
def clips(event_world, tmp_path_factory):
    """Entries of three videos."""
    return [{"path": path} for path in sorted({row["videos"][0]["path"] for row in event_world["train"]})]


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """A reader of five frames of each video."""
    return FrameCache(tmp_path_factory.mktemp("frames"), fps=1.0, size=None, max_frames=5)


def make(family: str, *, d2vlm: bool):
    model, processor = build(family)
    if not d2vlm:
        return model, processor
    processor = D2VLMBackboneProcessor.from_backbone(processor, config=model.config)
    return D2VLMForConditionalGeneration.from_backbone(model, processor, capture_layer=2), processor


def rows_of(clips):
    """Two rows about the first video, one about the second, and one without; prompts of different lengths."""
    shown = [
        (clips[0], "When?"),
        (None, "Describe every event."),
        (clips[1], "What happens first?"),
        (clips[0], "Why?"),
    ]
    return [{"videos": [clip] if clip else [], "prompt": user(question, clip is not None)} for clip, question in shown]


def cached_inputs(cache, processor, rows, **kwargs):
    entries = [row["videos"][0] if row["videos"] else None for row in rows]
    distinct = [entry for number, entry in enumerate(entries) if entry and entry not in entries[:number]]
    texts = [processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows]
    index = [distinct.index(entry) if entry else -1 for entry in entries]
    return encode_cached_prompts(processor, texts, [cache.get(entry) for entry in distinct], index, **kwargs)


def real_inputs(processor, rows, read_video, **kwargs):
    """The same by the processor of a D2VLM."""
    entries = [row["videos"][0] if row["videos"] else None for row in rows]
    distinct = [entry for number, entry in enumerate(entries) if entry and entry not in entries[:number]]
    videos = [read_video(entry) for entry in distinct]
    return processor(
        [processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows],
        videos=[video.frames for video in videos],
        video_index=[distinct.index(entry) if entry else -1 for entry in entries],
        timestamps_s=[video.timestamps_s for video in videos],
        duration_s=[video.duration_s for video in videos],
        **kwargs,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_model_gets_the_same(family, clips, decoded, tmp_path):
    model, processor = make(family, d2vlm=False)
    build_feature_cache(clips, tmp_path, model, processor, decoded, **NO_MARGIN)
    cache = FeatureCache.open(tmp_path, feature_key(model, processor, decoded.sampling))
    rows = rows_of(clips)
    shown = {json.dumps(entry): decoded(entry) for entry in clips}
    videos = [shown[json.dumps(row["videos"][0])] if row["videos"] else None for row in rows]
    expected = encode_prompts(processor, rows, videos).inputs
    inputs = cached_inputs(cache, processor, rows)

    of_text = [name for name in ("input_ids", "attention_mask", "mm_token_type_ids") if name in expected]
    besides = [name for name in expected if name not in of_text and not name.startswith("pixel")]
    order = inputs["video_index"][inputs["video_index"] >= 0]
    given = {name: inputs[name] for name in of_text} | {name: inputs[name][order] for name in besides}
    for name, value in given.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    unknown = {"video_features", "num_video_features", "video_index", "num_frames"}
    assert set(inputs) == {*given, *unknown}

    features = features_of_rows(inputs["video_features"], inputs["num_video_features"], inputs["video_index"])
    with torch.no_grad():
        actual = model(**given, mm_encoder_outputs=mm_encoder_outputs(model.model, features)).logits
        logits = model(**expected).logits
    mask = expected["attention_mask"].bool()
    torch.testing.assert_close(actual[mask], logits[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", ["<|im_start|>", "<|endoftext|>"])
@pytest.mark.parametrize("d2vlm", [False, True])
def test_the_tokenizer_writes_the_first_token_if_the_template_does_not(first, d2vlm, clips, decoded, tmp_path):
    model, processor = make("internvl", d2vlm=d2vlm)  # whose template begins with <|im_start|>
    tokenizer = processor.tokenizer
    tokenizer.bos_token = first
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)]
    )
    build_feature_cache(clips, tmp_path, model, processor, decoded, **NO_MARGIN)
    cache = FeatureCache.open(tmp_path, feature_key(model, processor, decoded.sampling))
    rows = rows_of(clips)[2:]
    videos = [decoded(row["videos"][0]) for row in rows]
    expected = real_inputs(processor, rows, decoded) if d2vlm else encode_prompts(processor, rows, videos).inputs
    input_ids = cached_inputs(cache, processor, rows)["input_ids"]
    assert torch.equal(input_ids, expected["input_ids"])
    assert (input_ids[0] == tokenizer.bos_token_id).sum() == (2 if first == "<|im_start|>" else 1)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_d2vlm_gets_the_same_from_the_cache_of_its_backbone(family, padding_side, clips, decoded, tmp_path):
    build_feature_cache(clips, tmp_path, *make(family, d2vlm=False), decoded, **NO_MARGIN)
    model, processor = make(family, d2vlm=True)
    cache = FeatureCache.open(tmp_path, feature_key(model, processor, decoded.sampling))
    rows = rows_of(clips)
    expected = real_inputs(processor, rows, decoded, padding_side=padding_side)
    inputs = cached_inputs(cache, processor, rows, padding_side=padding_side)
    same = {name for name in expected if not name.startswith("pixel")}
    assert set(inputs) == same | {"video_features", "num_video_features"}
    for name in same:
        torch.testing.assert_close(inputs[name], expected[name], rtol=0, atol=0, msg=name)
    with torch.no_grad():
        actual, logits = model(**inputs).logits, model(**expected).logits
    torch.testing.assert_close(actual, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tower", ["tiny", "native"])
def test_the_paper_s_d2vlm_gets_the_same(tower, clips, tmp_path, request):
    model, processor = request.getfixturevalue(tower)
    model.eval()
    read_video = read_videos_of(processor, max_frames=5)
    build_feature_cache(clips, tmp_path, model, processor, read_video, **NO_MARGIN)
    cache = FeatureCache.open(tmp_path, feature_key(model, processor, read_video.sampling))
    rows, questions = rows_of(clips), ["When?", "Describe?", "What blinks?", "Why?"]
    expected = real_inputs(processor, rows, read_video, questions=questions)
    inputs = cached_inputs(cache, processor, rows)
    if tower == "native":
        inputs.update(processor.encode_questions(questions))
    for name in set(expected) - {"pixel_values_videos"}:
        torch.testing.assert_close(inputs[name], expected[name], rtol=0, atol=0, msg=name)
    with torch.no_grad():
        actual, logits = model(**inputs).logits, model(**expected).logits
    torch.testing.assert_close(actual, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_rows_without_video_need_no_cache(family):
    _, processor = make(family, d2vlm=False)
    rows = [{"videos": [], "prompt": user(question, video=False)} for question in ("Hello there.", "Hi.")]
    expected = encode_prompts(processor, rows, [None, None]).inputs
    inputs = cached_inputs(None, processor, rows)
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_a_placeholder_without_video_is_an_error():
    _, processor = make("qwen3_vl", d2vlm=False)
    with pytest.raises(ValueError, match="Row 1 of the batch has 1 placeholders .*video_pad.* and 0 video"):
        encode_cached_prompts(processor, ["Hi.", "<|video_pad|>"], [], [-1, -1])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_batches_change_nothing(family, event_world, clips, tmp_path):
    """Videos of several lengths, encoded one by one and in batches, by several threads."""
    model, processor = make(family, d2vlm=False)
    lengths = [{**clip, "end_s": end_s} for end_s in (3.0, 4.0, 5.0, 6.0) for clip in clips]
    caches = []
    for name, sizes in {"one": {"batch_size": 1, "num_threads": 1}, "many": {"batch_size": 3}}.items():
        report = build_feature_cache(lengths, tmp_path / name, model, processor, read_videos_of(processor), **sizes,
                                     **NO_MARGIN)  # fmt: skip
        assert (report.num_videos, report.num_new) == (12, 12)
        caches.append(
            FeatureCache.open(tmp_path / name, feature_key(model, processor, read_videos_of(processor).sampling))
        )
    for entry in lengths:
        one, many = (cache.get(entry) for cache in caches)
        assert one.placeholder == many.placeholder and one.num_frames == int(entry["end_s"])
        torch.testing.assert_close(one.features, many.features, rtol=0, atol=1e-5)
        assert one.inputs.keys() == many.inputs.keys()
        np.testing.assert_array_equal(one.timestamps_s, decode(entry).timestamps_s)
        assert one.duration_s == entry["end_s"]


def decode(entry):
    return FrameCache(None, fps=1.0, size=None)(entry)


@pytest.fixture
def qwen(clips, decoded, tmp_path):
    """A model, its processor and the folder of its features."""
    model, processor = make("qwen2_5_vl", d2vlm=False)
    build_feature_cache(clips, tmp_path / "features", model, processor, decoded, **NO_MARGIN)
    return model, processor, tmp_path / "features"


def change_size(model, processor, sampling):
    processor.video_processor.size = {"shortest_edge": 256, "longest_edge": 1024}


def change_merger(model, processor, sampling):
    model.model.visual.merger.mlp[2].bias.data[0] += 1


def change_dtype(model, processor, sampling):
    model.to(torch.bfloat16)


def change_window(model, processor, sampling):
    model.config.vision_config.window_size = 8


def change_fps(model, processor, sampling):
    sampling["fps"] = 2.0


@pytest.mark.parametrize(
    "change, difference",
    [
        (change_fps, r"sampling: fps 1\.0 != 2\.0\. "),
        (change_size, r"processor settings: size\.longest_edge 512 != 1024\. "),
        (change_merger, r"weights of the vision tower and the projector\. "),
        (change_dtype, r"dtype: float32 != bfloat16\. "),
        (change_window, r"settings of the vision tower: window_size 16 != 8\. "),
    ],
)
def test_another_run_is_told_what_differs(qwen, decoded, change, difference):
    model, processor, folder = qwen
    sampling = dict(decoded.sampling)
    assert len(FeatureCache.open(folder, feature_key(model, processor, sampling))) == 3
    change(model, processor, sampling)
    with pytest.raises(FeatureCacheError, match=r"\(theirs != of this run\): " + difference):
        FeatureCache.open(folder, feature_key(model, processor, sampling))


def test_the_decoder_may_change(qwen, decoded):
    model, processor, folder = qwen
    for parameter in [*model.model.language_model.parameters(), *model.lm_head.parameters()]:
        parameter.data.add_(1)
    assert len(FeatureCache.open(folder, feature_key(model, processor, decoded.sampling))) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_key_of_a_saved_model(family, decoded, tmp_path):
    """Stock or D2VLM, saved or not: the features are the same."""
    key = feature_key(*make(family, d2vlm=False), decoded.sampling)
    for name, d2vlm in {"stock": False, "d2vlm": True}.items():
        for part in make(family, d2vlm=d2vlm):
            part.save_pretrained(tmp_path / name)
        assert feature_key(*load_model(str(tmp_path / name)), decoded.sampling) == key


def test_one_folder_holds_several_caches(qwen, clips, decoded, tmp_path):
    model, processor, folder = qwen
    twice = FrameCache(None, fps=2.0, size=None, max_frames=5)
    build_feature_cache(clips[:1], folder, model, processor, twice, **NO_MARGIN)
    sizes = [len(FeatureCache.open(folder, feature_key(model, processor, read.sampling))) for read in (decoded, twice)]
    assert sizes == [3, 1]


def test_an_empty_folder(tmp_path, decoded):
    with pytest.raises(FeatureCacheError, match="holds no features. Build it: `trl-temporal cache build"):
        FeatureCache.open(tmp_path, {"sampling": {}})


def test_weights_that_are_not_here(decoded):
    model, processor = make("qwen2_5_vl", d2vlm=False)
    model.model.visual.to("meta")
    with pytest.raises(FeatureCacheError, match="visual.* is not loaded here"):
        feature_key(model, processor, decoded.sampling)


def test_what_trains_is_refused(qwen, decoded):
    model, processor, folder = qwen
    cache = FeatureCache.open(folder, feature_key(model, processor, decoded.sampling))
    with pytest.raises(FeatureCacheError, match=r"\d+ parameters .* require gradients, such as visual\.patch_embed"):
        cache.check_frozen(model)
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    model.lm_head.requires_grad_(True)
    cache.check_frozen(model)
    model.model.visual.merger.mlp[0].weight.requires_grad_(True)
    with pytest.raises(FeatureCacheError, match=r"1 parameters .* such as visual\.merger\.mlp\.0\.weight"):
        cache.check_frozen(model)


@pytest.mark.parametrize("targets, refused", [(r".*language_model.*q_proj", None), (r".*visual.*proj", "lora_A")])
def test_an_adapter(qwen, decoded, targets, refused):
    model, processor, folder = qwen
    cache = FeatureCache.open(folder, feature_key(model, processor, decoded.sampling))
    adapted = get_peft_model(model, LoraConfig(target_modules=targets))
    if refused is None:
        assert feature_key(adapted, processor, decoded.sampling) == cache.key
        cache.check_frozen(adapted)
    else:
        with pytest.raises(FeatureCacheError, match=refused):
            cache.check_frozen(adapted)


@pytest.mark.parametrize("tower", ["tiny", "native"])
def test_the_paper_s_tower(tower, clips, tmp_path, request):
    """The compressor may train: it reads the question, too."""
    model, processor = request.getfixturevalue(tower)
    cache = FeatureCache.create(tmp_path, feature_key(model, processor, {"fps": 1.0}))
    with pytest.raises(FeatureCacheError, match="require gradients"):
        cache.check_frozen(model)
    model.model.vision_tower.requires_grad_(False)
    cache.check_frozen(model)
    model.model.compressor.requires_grad_(True)
    next(model.model.compressor.parameters()).data.add_(1)
    assert feature_key(model, processor, {"fps": 1.0}) == cache.key


@pytest.fixture
def encoded(monkeypatch):
    """How many videos went through a tower, call by call."""
    counts, encode = [], feature_cache_build.encode_videos

    def count(backbone, inputs, num_frames):
        counts.append(len(num_frames))
        return encode(backbone, inputs, num_frames)

    monkeypatch.setattr(feature_cache_build, "encode_videos", count)
    return counts


def test_called_again_it_adds_what_is_missing(clips, decoded, tmp_path, encoded, capsys):
    model, processor = make("smolvlm", d2vlm=False)
    model.train()
    report = build_feature_cache(clips[:2], tmp_path, model, processor, decoded, min_free_bytes=0)
    assert encoded == [1, 1] and report.num_new == 2 and report.speed_up > 0
    assert "2 videos to encode: about 0.0" in capsys.readouterr().out
    rows = Dataset.from_list(rows_of(clips) + rows_of(clips[1:]))
    report = build_feature_cache(rows, tmp_path, model, processor, decoded, **NO_MARGIN)
    assert encoded == [1, 1, 1] and (report.num_videos, report.num_new) == (3, 1)
    report = build_feature_cache(rows, tmp_path, model, processor, decoded, **NO_MARGIN)
    assert encoded == [1, 1, 1] and (report.num_new, report.speed_up) == (0, None)
    assert "3 were there already" in str(report)
    assert model.training


def test_a_moved_video_is_known_by_its_bytes(clips, decoded, tmp_path, encoded):
    model, processor = make("internvl", d2vlm=False)
    twice = tmp_path / "twice.mp4"
    shutil.copy(clips[0]["path"], twice)
    build_feature_cache([*clips[:1], twice], tmp_path / "features", model, processor, decoded, **NO_MARGIN)
    cache = FeatureCache.open(tmp_path / "features", feature_key(model, processor, decoded.sampling))
    assert encoded == [1] and len(cache) == 1
    moved = {"path": str(tmp_path / "moved.mp4")}
    shutil.copy(clips[0]["path"], moved["path"])
    assert torch.equal(cache.get(moved).features, cache.get(clips[0]).features)
    assert moved["path"] in cache and clips[1] not in cache and {**moved, "end_s": 4.0} not in cache
    # The next process knows the new name without reading the file.
    build_feature_cache([moved, *clips[:1]], tmp_path / "features", model, processor, decoded, **NO_MARGIN)
    assert encoded == [1]
    again = FeatureCache.open(tmp_path / "features", cache.key)
    assert len(again) == 1 and again.is_known(moved)
    with open(moved["path"], "ab") as file:
        file.write(b"changed")
    with pytest.raises(VideoError, match="moved.mp4: not among the 1 videos .* cache build"):
        again.get(moved)
    os.remove(moved["path"])
    with pytest.raises(VideoError, match="moved.mp4: no such file"):
        again.get(moved)


def test_ids_stay(tmp_path):
    """What is stored is found again by later versions."""
    path = tmp_path / "video.mp4"
    path.write_bytes(b"video")
    ids = VideoIds()
    assert ids.video_id(path) == "c8b91eecded75848db2ecc3da023b129"
    assert ids.video_id({"path": str(path), "start_s": 1, "end_s": 2.5}) == "4a28c98e5b2876c8a1d8c1a8c19ae761"
    assert ids.video_id(path, "objects") not in (ids.video_id(path), ids.video_id(path, "others"))


def test_folders_and_lists_of_frames(clips, decoded, tmp_path):
    frames = decoded(clips[0]).frames
    folder = tmp_path / "frames"
    folder.mkdir()
    paths = [str(folder / f"{number}.png") for number in range(len(frames))]
    for frame, path in zip(frames, paths, strict=True):
        Image.fromarray(frame).save(path)
    entries = [
        {"frames_dir": str(folder), "fps": 1.0},
        {"frames": paths, "fps": 1.0},
        {"frames": list(map(Image.fromarray, frames)), "fps": 1.0},
        {"frames": [{"path": None, "bytes": Path(path).read_bytes()} for path in paths], "fps": 1.0},
    ]
    model, processor = make("llava_onevision", d2vlm=False)
    build_feature_cache(entries, tmp_path / "features", model, processor, decoded, **NO_MARGIN)
    cache = FeatureCache.open(tmp_path / "features", feature_key(model, processor, decoded.sampling))
    features = [cache.get(entry).features for entry in entries]
    assert all(torch.equal(one, features[0]) for one in features)
    assert {**entries[0], "fps": 2.0} not in cache
    Image.fromarray(frames[0] // 2).save(paths[0])
    assert entries[0] not in cache and entries[1] not in cache and entries[2] in cache


def test_a_bad_video_is_named(clips, decoded, tmp_path):
    model, processor = make("qwen2_vl", d2vlm=False)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    rows = rows_of([*clips[:1], {"path": str(broken)}])
    rows[2]["id"] = "second"
    with pytest.raises(VideoError, match=r"row 2 \(id 'second'\): .*broken.mp4.*on_bad_sample='skip'"):
        build_feature_cache(rows, tmp_path, model, processor, decoded, **NO_MARGIN)
    with pytest.warns(UserWarning, match="skipped 1 videos, of 1 rows"):
        report = build_feature_cache(rows, tmp_path, model, processor, decoded, on_bad_sample="skip", **NO_MARGIN)
    assert (report.num_new, report.num_skipped) == (1, 1) and "1 skipped" in str(report)
    (record,) = map(json.loads, (report.folder / "skipped.jsonl").read_text().splitlines())
    assert (record["index"], record["id"]) == (2, "second") and "broken.mp4" in record["reason"]
    with pytest.raises(VideoError, match="no video can be used. The first: row 0: .*broken.mp4"), pytest.warns():
        build_feature_cache([broken], tmp_path, model, processor, decoded, on_bad_sample="skip", **NO_MARGIN)


def test_it_refuses_to_fill_the_disk(clips, decoded, tmp_path):
    model, processor = make("qwen2_vl", d2vlm=False)
    with pytest.raises(FeatureCacheError, match=r"features of 3 videos take about 0\.0\d+ MiB, but .* has [\d.]+ GiB"):
        build_feature_cache(clips, tmp_path, model, processor, decoded, min_free_bytes=2**60, progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_values_that_are_not_finite(clips, decoded, tmp_path):
    model, processor = make("qwen2_vl", d2vlm=False)
    model.model.visual.merger.mlp[2].bias.data.fill_(torch.inf)
    with pytest.raises(FeatureCacheError, match="000000.mp4: .* not finite in torch.float32"):
        build_feature_cache(clips, tmp_path, model, processor, decoded, **NO_MARGIN)


def test_ranks_share_the_work(clips, decoded, tmp_path, encoded):
    model, processor = make("internvl", d2vlm=False)
    for rank in range(2):
        build_feature_cache(clips, tmp_path, model, processor, decoded, rank=rank, world_size=2, **NO_MARGIN)
    assert sum(encoded) == 3
    cache = FeatureCache.open(tmp_path, feature_key(model, processor, decoded.sampling))
    assert len(cache) == 3
    assert sorted(path.name[:5] for path in cache.folder.glob("*.safetensors")) == ["00000", "00001"]


def test_what_is_encoded_stays(clips, decoded, tmp_path, monkeypatch, encoded):
    """Ctrl-C on the way: the videos before are there, and not encoded again."""
    model, processor = make("qwen2_vl", d2vlm=False)
    entries = [{**clips[0], "end_s": float(end_s)} for end_s in range(2, 19)]  # more than are measured first
    process = feature_cache_build._process

    def fail(processor, video):
        if video.duration_s == 15:
            raise KeyboardInterrupt
        return process(processor, video)

    monkeypatch.setattr(feature_cache_build, "_process", fail)
    kwargs = {"batch_size": 1, "num_threads": 1, **NO_MARGIN}
    with pytest.raises(KeyboardInterrupt):
        build_feature_cache(entries, tmp_path, model, processor, decoded, **kwargs)
    monkeypatch.setattr(feature_cache_build, "_process", process)
    before = len(FeatureCache.open(tmp_path, feature_key(model, processor, decoded.sampling)))
    assert 6 < before < 17 and before == sum(encoded)
    build_feature_cache(entries, tmp_path, model, processor, decoded, **kwargs)
    assert sum(encoded) == 17


KILLED = """
import sys, torch
from tests.torchvision_shim import load_torchvision
load_torchvision()
from tests.families import build
from trl_temporal.data import feature_cache_build as module
from trl_temporal.data.feature_cache_path import read_videos_of
save = module.save_file
def slow(tensors, path):  # is killed while its second file is half there
    save(tensors, path)
    if list(path.parent.glob("*.safetensors")):
        path.write_bytes(path.read_bytes()[:-100])
        print("writing", flush=True)
        sys.stdin.read()
module.save_file = slow
model, processor = build("qwen2_vl")
entries = [{"path": sys.argv[1], "end_s": float(end_s)} for end_s in range(2, 19)]
module.build_feature_cache(entries, sys.argv[2], model, processor, read_videos_of(processor, max_frames=5),
                           shard_bytes=1, batch_size=1, min_free_bytes=0, progress=False)
"""


def test_a_kill_leaves_whole_files(clips, tmp_path):
    command = [sys.executable, "-c", KILLED, clips[0]["path"], str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    (folder,) = tmp_path.iterdir()
    (partial,) = folder.glob(".*.part")
    model, processor = make("qwen2_vl", d2vlm=False)
    read_video = read_videos_of(processor, max_frames=5)
    key = feature_key(model, processor, read_video.sampling)
    before = FeatureCache.open(tmp_path, key)
    assert len(before) == 7  # the six measured ones, and the first of the others
    entries = [{**clips[0], "end_s": float(end_s)} for end_s in range(2, 19)]
    report = build_feature_cache(entries, tmp_path, model, processor, read_video, **NO_MARGIN)
    assert report.num_new == 10 and len(FeatureCache.open(tmp_path, key)) == 17
    assert partial.exists()  # it might be that of another process
    old = time.time() - 3600
    os.utime(partial, (old, old))
    build_feature_cache(entries, tmp_path, model, processor, read_video, **NO_MARGIN)
    assert not partial.exists()


def test_a_file_that_was_cut_short(qwen, decoded):
    model, processor, folder = qwen
    (path,) = folder.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FeatureCacheError, match="damaged .* Copy it again, or delete it"):
        FeatureCache.open(folder, feature_key(model, processor, decoded.sampling))


class _Sums(torch.utils.data.Dataset):
    def __init__(self, cache, entries):
        self.cache, self.entries = cache, entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        return self.cache.get(self.entries[index]).features.sum().item()


def test_workers_share_it(qwen, clips, decoded):
    """Forked with files open; spawned workers get what pickle makes of it."""
    model, processor, folder = qwen
    cache = FeatureCache.open(folder, feature_key(model, processor, decoded.sampling))
    expected = [cache.get(entry).features.sum().item() for entry in clips]
    loader = DataLoader(_Sums(cache, clips), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == expected
    spawned = pickle.loads(pickle.dumps(cache))
    assert [spawned.get(entry).features.sum().item() for entry in clips] == expected


def test_it_says_when_it_loses():
    report = BuildReport(
        Path("features"), num_videos=4, num_new=4, read_s=0.1, process_s=0.1, encode_s=0.3, cached_s=0.1
    )
    assert report.speed_up == pytest.approx(5)
    assert "0.5 s (decoding 0.1, processor 0.1, vision tower 0.3) and from the cache 0.1 s: 5 times" in str(report)
    assert "loses" not in str(report)
    report.cached_s = 1.0
    assert "The cache loses: train without it" in str(report)


@pytest.fixture
def rows_file(event_world, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"id": row["id"], "videos": row["videos"], "prompt": row["prompt"]} for row in event_world["train"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command(tiny_dir, tiny, rows_file, clips, tmp_path, capsys):
    command = ["cache", "build", "--model", str(tiny_dir), "--dataset", str(rows_file), "--min-free-gib", "0"]
    command += ["--output", str(tmp_path / "features"), "--max-frames", "7", "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 videos to encode" in printed and "3 videos encoded" in printed and "times faster" in printed
    read_video = read_videos_of(tiny[1], max_frames=7)
    cache = FeatureCache.open(tmp_path / "features", feature_key(*tiny, read_video.sampling))
    assert [cache.get(entry).num_frames for entry in clips] == [7, 7, 7]
    assert main([*command, "--num-frames", "4"]) == 1
    assert "Give either fps, with max_frames if there is a limit, or num_frames" in capsys.readouterr().err


@pytest.mark.slow
def test_several_workers(tiny_dir, tiny, rows_file, tmp_path):
    command = ["cache", "build", "--model", str(tiny_dir), "--dataset", str(rows_file), "--min-free-gib", "0"]
    command += ["--output", str(tmp_path / "features"), "--num-workers", "2", "--device", "cpu"]
    # Not from here: workers would inherit the path of the tests' torchvision, without what makes it load.
    command = [sys.executable, "-m", "trl_temporal.cli", *command]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240)
    assert result.stdout.count("videos encoded") == 2
    cache = FeatureCache.open(tmp_path / "features", feature_key(*tiny, read_videos_of(tiny[1]).sampling))
    assert len(cache) == 3 and len(list(cache.folder.glob("*.safetensors"))) == 2
    assert [path.name for path in (tmp_path / "features").iterdir()] == [cache.folder.name]
