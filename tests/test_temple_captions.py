# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""TEMPLE's captions: what is asked, who answers, what is kept, and what is missing."""

import base64
import io
import json
import re
import threading

import numpy as np
import pytest
from PIL import Image

from tests.families import build, watch_videos
from tests.test_distort import endpoint
from tests.test_video import make_clip
from trl_temporal.cli import main
from trl_temporal.evaluation.temple_captioner import ModelCaptioner
from trl_temporal.synthesis.answer_cache import AnswerCache
from trl_temporal.synthesis.temple import draw_perturbation, temple_pairs
from trl_temporal.synthesis.temple_captions import (
    TempleCaptionConfig,
    caption_path,
    clean_clip_caption,
    clip_requests,
    description_request,
    read_selected,
)
from trl_temporal.synthesis.temple_folder import read_descriptions
from trl_temporal.synthesis.temple_prompts import TemplePrompts
from trl_temporal.synthesis.temple_requests import CaptionRequest, EndpointCaptioner, answer_requests
from trl_temporal.video import load_video

pytestmark = pytest.mark.filterwarnings("ignore:row .* frames per second")

CLIPS_S = [(0.0, 1.0), (1.0, 2.0), (2.5, 4.0), (4.0, 5.0), (5.0, 6.0)]
QUICK = TempleCaptionConfig(max_tokens=6, clip_max_tokens=6)


def selected(path, video_id="a", clips_s=CLIPS_S):
    clips = [
        {
            "start_s": start_s,
            "end_s": end_s,
            "start_frame": round(10 * start_s),
            "end_frame": round(10 * end_s),
            "group": number,
            "key_frames": [round(10 * start_s) + 2, round(10 * start_s) + 6],
            "key_frames_s": [round(start_s + 0.2, 3), round(start_s + 0.6, 3)],
        }
        for number, (start_s, end_s) in enumerate(clips_s)
    ]
    return {"video_id": video_id, "path": str(path), "duration_s": 6.0, "clips": clips}


@pytest.fixture(scope="module")
def video_path(tmp_path_factory):
    """Ten frames a second, for six seconds."""
    return make_clip(tmp_path_factory.mktemp("videos") / "a.mp4", np.arange(60) * 100)


@pytest.fixture
def folder(tmp_path, video_path):
    """A selection of two videos; the second has fewer clips."""
    other = make_clip(tmp_path / "b.mp4", np.arange(50) * 100)
    videos = [selected(video_path), selected(other, "b", CLIPS_S[:4])]
    return write_selection(tmp_path / "selected", videos)


def write_selection(path, videos):
    path.mkdir(exist_ok=True)
    (path / "selected.jsonl").write_text("".join(json.dumps(video) + "\n" for video in videos), encoding="utf-8")
    return path


class Truth:
    """A captioner that knows: each clip has a caption of its own, and a description is its captions in a row."""

    def __init__(self, bad=None, stop_after=None):
        self.bad, self.stop_after = bad or {}, stop_after
        self.batches = []

    def __call__(self, requests, videos):
        if self.stop_after is not None and len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append([(request.video_id, request.what) for request in requests])
        answers = []
        for request, video in zip(requests, videos, strict=True):
            assert (video is None) == (request.path is None)
            name = (request.video_id, request.what)
            if name in self.bad:
                answers.append(self.bad[name])
            elif request.what.startswith("clip"):
                answers.append(f"1. Something.\n**Caption:** Thing {request.clips[-1]} of {request.video_id}.")
            else:
                answers.append("In order: " + " ".join(request.captions or map(str, request.clips)))
        return answers

    @property
    def asked(self):
        return [name for batch in self.batches for name in batch]


# What is asked


def test_a_clip_is_shown_behind_the_one_before_it(video_path):
    video = selected(video_path)
    requests = clip_requests(video, "hash", TempleCaptionConfig(), TemplePrompts())
    assert [request.clips for request in requests] == [(0,), (0, 1), (1, 2), (2, 3), (3, 4)]
    assert [request.what for request in requests] == [f"clip {number}" for number in range(5)]
    first, _, third, *_ = requests
    assert first.prompt == TemplePrompts().first_clip and first.frames_s == (0.2, 0.6)
    # Real times, from the start of the clip before; between the two clips half a second is no part of either.
    assert third.frames_s == (1.2, 1.6, 2.7, 3.1) and third.shown_s == (0.2, 0.6, 1.7, 2.1)
    assert third.duration_s == 3.0
    assert "the first 2 are of video clip 1, the last 2 of video clip 2" in third.prompt
    assert all(request.temperature == 0 for request in requests)
    shown = third.read_video()
    np.testing.assert_array_equal(shown.timestamps_s, third.shown_s)
    whole = load_video(video_path, fps=10)
    np.testing.assert_array_equal(shown.frames, whole.frames[[12, 16, 27, 31]])


def test_large_frames_are_shrunk(video_path):
    request = CaptionRequest("a", "clip 0", "?", (0,), path=str(video_path), frames_s=(0.2,), shown_s=(0.2,))
    whole = load_video(video_path, num_frames=1).frames[0]
    small = CaptionRequest(**{**vars(request), "max_pixels": whole.shape[0] * whole.shape[1] // 4}).read_video()
    assert small.frames.shape[1:3] == (whole.shape[0] // 2, whole.shape[1] // 2)


def test_descriptions_of_captions(video_path):
    video, config = selected(video_path), TempleCaptionConfig()
    captions = [f"Thing {number}." for number in range(5)]
    plain = description_request(video, captions, None, "hash", config, TemplePrompts())
    reverse = draw_perturbation("a", 5, "reverse", 2)
    other = description_request(video, captions, reverse, "hash", config, TemplePrompts())
    assert plain.path is other.path is None
    assert "- Caption 1: Thing 0.\n- Caption 2: Thing 1." in plain.prompt
    # Blocks of two, the order inside of them kept, numbered as if nothing had happened.
    assert re.findall(r"- (Caption \d: Thing \d)", other.prompt) == [
        f"Caption {place}: Thing {clip}" for place, clip in enumerate([4, 2, 3, 0, 1], start=1)
    ]
    assert (plain.temperature, plain.repetition_penalty) == (0.7, 1.05)
    assert plain.seed != other.seed
    assert (
        description_request(video, captions, None, "", TempleCaptionConfig(seed=1), TemplePrompts()).seed != plain.seed
    )


def test_descriptions_of_frames_are_shown_as_the_perturbed_video_plays(video_path):
    video, config = selected(video_path), TempleCaptionConfig(level="frames")

    def ask(perturbation):
        return description_request(video, None, perturbation, "hash", config, TemplePrompts())

    reverse = ask(draw_perturbation("a", 5, "reverse", 16))
    assert reverse.frames_s == (5.2, 5.6, 4.2, 4.6, 2.7, 3.1, 1.2, 1.6, 0.2, 0.6)
    assert reverse.shown_s == (0.2, 0.6, 1.2, 1.6, 2.2, 2.6, 3.7, 4.1, 4.7, 5.1)
    assert reverse.duration_s == ask(None).duration_s == 5.5
    speed = draw_perturbation("a", 5, "speed", 2)
    fast = speed.fast_indices
    assert len(fast) == 3
    quick = ask(speed)
    assert len(quick.frames_s) == 10 - 3 and (np.diff(quick.shown_s) > 0).all()
    fast_s = sum(end_s - start_s for start_s, end_s in (CLIPS_S[number] for number in fast))
    assert quick.duration_s == pytest.approx(5.5 - fast_s / 2)
    drop = ask(draw_perturbation("a", 5, "drop", 2))
    assert len(drop.frames_s) == 4 and drop.duration_s < 3
    shown = reverse.read_video()
    np.testing.assert_array_equal(shown.frames[0], load_video(video_path, fps=10).frames[52])


@pytest.mark.parametrize(
    "answer, caption",
    [
        ("A man runs.", "A man runs."),
        ("Step 1: a man.\nStep 2: he runs on.\n\n**Detailed caption:** “A man runs.”\n", "A man runs."),
        ("Caption of video clip 2: the dog of video clip 1 sits.", "The dog of the previous clip sits."),
        ("In Video Clip 2 rain; the video clip 1 is dry.", "In this video clip rain; the previous clip is dry."),
        ("<think>Caption: no\n</think>\nVideo clip 2 shows a cat: it eats.", "This video clip shows a cat: it eats."),
        ("He reads the caption aloud.", "He reads the caption aloud."),
        ("", ""),
    ],
)  # fmt: skip
def test_captions_are_cleaned(answer, caption):
    assert clean_clip_caption(answer) == caption


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="level is 'pixels'"):
        TempleCaptionConfig(level="pixels")
    with pytest.raises(ValueError, match="level 'captions' has no factor 'speed'; it has drop, shuffle, reverse"):
        TempleCaptionConfig(factors=("drop", "speed"))
    TempleCaptionConfig(level="frames", factors=("speed", "partial_reverse"))
    with pytest.raises(ValueError, match="at least one factor"):
        TempleCaptionConfig(factors=())


# The run


def test_from_selection_to_pairs(folder, tmp_path):
    truth = Truth()
    report = caption_path(folder, tmp_path / "out", truth, "truth", batch_size=4, progress=False)
    assert (report.num_videos, report.num_described, report.num_cached, report.skipped) == (2, 2, 0, [])
    assert report.num_requests == len(truth.asked) == 5 + 4 + 2 * 13
    assert max(map(len, truth.batches)) == 4
    first, second = read_descriptions(tmp_path / "out")
    assert first["captions"] == [f"Thing {number} of a." for number in range(5)]
    assert first["chosen"] == "In order: " + " ".join(first["captions"])
    assert [len(video["rejected"]) for video in (first, second)] == [12, 12]
    for rejected in first["rejected"]:
        drawn = draw_perturbation("a", 5, rejected["factor"], rejected["keep_ratio"])
        assert rejected["selected_indices"] == drawn.selected_indices
        assert rejected["text"] == "In order: " + " ".join(first["captions"][i] for i in drawn.selected_indices)
    pairs, counted = temple_pairs([first, second])
    assert counted.num_pairs == len(pairs) > 15
    assert json.loads(pairs[0]["factor_args"])["model"] == "truth"


def output_files(path):
    return {name: (path / name).read_bytes() for name in ("descriptions.jsonl", "skipped.jsonl", "manifest.json")}


def test_a_run_that_is_killed_loses_one_batch_and_changes_nothing(folder, tmp_path):
    caption_path(folder, tmp_path / "whole", Truth(), "truth", batch_size=4, progress=False)
    for stop_after in (0, 2, 5):
        out = tmp_path / f"stopped-{stop_after}"
        stopped = Truth(stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt):
            caption_path(folder, out, stopped, "truth", batch_size=4, progress=False)
        assert not (out / "descriptions.jsonl").exists()
        again = Truth()
        report = caption_path(folder, out, again, "truth", batch_size=3, progress=False)
        assert not set(again.asked) & set(stopped.asked)
        assert len(again.asked) + len(stopped.asked) == report.num_requests
        assert report.num_cached == len(stopped.asked)
        assert output_files(out) == output_files(tmp_path / "whole")
        nothing = Truth()
        caption_path(folder, out, nothing, "truth", progress=False)
        assert nothing.asked == [] and output_files(out) == output_files(tmp_path / "whole")


def test_two_processes_write_what_one_does(folder, tmp_path):
    caption_path(folder, tmp_path / "one", Truth(), "truth", progress=False)
    barrier, captioners, reports = threading.Barrier(2), [Truth(), Truth()], [None, None]

    def run(number):
        reports[number] = caption_path(
            folder, tmp_path / "two", captioners[number], "truth",
            batch_size=4, process=(number, 2), wait=lambda: barrier.wait(60), progress=False,
        )  # fmt: skip

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(captioner.asked) > 10 for captioner in captioners)
    assert not set(captioners[0].asked) & set(captioners[1].asked)
    assert output_files(tmp_path / "two") == output_files(tmp_path / "one")
    assert reports[0].num_described == reports[1].num_described == 2


def test_a_process_that_starts_late_leaves_nothing_out(video_path, tmp_path):
    requests = clip_requests(selected(video_path), "hash", TempleCaptionConfig(), TemplePrompts())
    for number in range(2):  # the second one finds the answers of the first
        answer_requests(requests, Truth(), AnswerCache(tmp_path), "truth", batch_size=2, process=(number, 2))
    cache = AnswerCache(tmp_path)
    assert all(request.key("truth") in cache for request in requests)


def test_bad_answers_are_counted_named_and_left_out(folder, tmp_path):
    bad = {("a", "shuffle 8"): "", ("a", "drop 2"): "I'm sorry, I can't help.", ("b", "clip 2"): None}
    report = caption_path(folder, tmp_path / "out", Truth(bad), "truth", progress=False)
    assert report.num_described == 1
    assert report.reasons == {"empty": 1, "refusal": 1, "refused_by_endpoint": 1}
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["video_id"], entry["what"]) for entry in skipped] == [
        ("b", "clip 2"), ("a", "drop 2"), ("a", "shuffle 8"),
    ]  # fmt: skip
    (video,) = read_descriptions(tmp_path / "out")
    assert [rejected["text"] for rejected in video["rejected"]].count(None) == 2
    # A clip that only refuses, or a description: no pairs of the video.
    for name in (("a", "clip 0"), ("a", "description")):
        report = caption_path(folder, tmp_path / name[1], Truth({name: "I cannot see it."}), "truth", progress=False)
        assert report.num_described == 1 and report.reasons == {"refusal": 1}


def test_videos_that_are_missing_or_broken(folder, tmp_path, video_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    videos = [*read_selected(folder), selected(broken, "broken"), selected(tmp_path / "gone.mp4", "gone")]
    report = caption_path(write_selection(folder, videos), tmp_path / "out", Truth(), "truth", progress=False)
    assert report.num_described == 2
    assert report.reasons == {"unreadable": 5, "video_missing": 1}
    assert "broken.mp4: not a readable video" in report.skipped[1]["detail"]


def test_other_settings_need_another_folder(folder, tmp_path):
    caption_path(folder, tmp_path / "out", Truth(), "truth", progress=False)
    with pytest.raises(ValueError, match="'model'.*It was 'truth'"):
        caption_path(folder, tmp_path / "out", Truth(), "other", progress=False)
    with pytest.raises(ValueError, match="begun with another 'config'"):
        caption_path(folder, tmp_path / "out", Truth(), "truth", TempleCaptionConfig(seed=1), progress=False)
    with pytest.raises(ValueError, match="begun with another 'prompts'"):
        prompts = TemplePrompts(video="What?")
        caption_path(folder, tmp_path / "out", Truth(), "truth", prompts=prompts, progress=False)
    write_selection(folder, read_selected(folder)[:1])
    with pytest.raises(ValueError, match="begun with another 'videos'"):
        caption_path(folder, tmp_path / "out", Truth(), "truth", progress=False)


def test_only_what_decides_an_answer_is_part_of_its_hash(folder, tmp_path, video_path):
    def key(name="truth", **changes):
        request = clip_requests(selected(video_path), "hash", TempleCaptionConfig(), TemplePrompts())[1]
        return CaptionRequest(**{**vars(request), **changes}).key(name)

    assert key() == key(video_id="c", path="elsewhere.mp4", what="x")
    changes = ({"name": "other"}, {"prompt": "?"}, {"file_hash": "x"}, {"frames_s": (1.0,)}, {"seed": 3})
    changes += ({"temperature": 0.1}, {"max_tokens": 3}, {"max_pixels": 9}, {"shown_s": (1.0,)})
    keys = [key(**change) for change in changes]
    assert len({key(), *keys}) == len(changes) + 1


def test_a_selection_that_cannot_be_read(tmp_path, video_path):
    with pytest.raises(FileNotFoundError, match="selected.jsonl: no such file.*temple select"):
        read_selected(tmp_path)
    good = selected(video_path)
    for videos, message in (
        ([good, good], "line 2: has the id 'a' of line 1"),
        ([{**good, "clips": []}], r"line 1 \('a'\): has no clips"),
        ([{"video_id": "a"}], "line 1: is no selected video.*'path'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_selected(write_selection(tmp_path / "bad", videos))


def test_a_captioner_has_to_answer_everything(tmp_path):
    requests = [CaptionRequest("a", "description", "?", (0,))]
    with pytest.raises(ValueError, match="0 answers to 1 requests"):
        answer_requests(requests, lambda requests, videos: [], AnswerCache(tmp_path), "none")


# An endpoint


def describe(number, body):
    parts = body["messages"][0]["content"]
    images = sum(part["type"] == "image_url" for part in parts)
    return f"A text about {images} pictures and {len(parts[-1]['text'])} letters."


def test_an_endpoint_sees_the_pictures_and_their_times(folder, tmp_path, video_path, capsys):
    with endpoint(describe) as server:
        command = ["temple", "caption", str(folder), str(tmp_path / "out"), "--endpoint", server.url]
        assert main([*command, "--model", "a-model", "--keep-ratios", "2", "--temperature", "0.5"]) == 0
        assert "Described 2 of 2 videos" in capsys.readouterr().out
        assert len(server.requests) == 5 + 4 + 2 * 4
        assert main([*command, "--model", "a-model", "--keep-ratios", "2", "--temperature", "0.5"]) == 0
        assert len(server.requests) == 5 + 4 + 2 * 4
    clip = next(body for body in server.requests if "Frame at 1.2 s:" in str(body))
    text = next(body for body in server.requests if len(body["messages"][0]["content"]) == 1)
    assert clip["temperature"] == 0 and "repetition_penalty" not in clip
    assert (text["temperature"], text["repetition_penalty"], text["model"]) == (0.5, 1.05, "a-model")
    parts = clip["messages"][0]["content"]
    assert [part["text"] for part in parts[:-1:2]] == [f"Frame at {time_s} s:" for time_s in (0.2, 0.6, 1.2, 1.6)]
    data = parts[1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)
    frames = load_video(video_path, fps=10).frames
    assert picture.shape == frames.shape[1:]
    assert any(np.abs(picture - frames[number]).mean() < 8 for number in (2, 42))  # two windows look alike


def test_an_endpoint_that_refuses_or_goes_away(folder, tmp_path):
    def behave(number, body):
        return (
            (400, {"error": "too many pictures"})
            if len(body["messages"][0]["content"]) > 5
            else describe(number, body)
        )

    requests = clip_requests(read_selected(folder)[0], "hash", TempleCaptionConfig(), TemplePrompts())
    videos = [request.read_video() for request in requests]
    with endpoint(behave) as server:
        captioner = EndpointCaptioner(server.url, "m", backoff_s=0.01, num_retries=1)
        first, *others = captioner(requests, videos)
        assert first.startswith("A text about 2 pictures") and others == [None] * 4
        with pytest.raises(ConnectionError, match="refuses every request: status 400.*too many pictures"):
            captioner(requests[1:], videos[1:])
    with pytest.raises(ConnectionError, match="did not answer in 2 tries.*the batches before are kept"):
        captioner(requests, videos)


def test_what_an_endpoint_refused_is_asked_again_and_ends_no_run(tmp_path):
    requests = [CaptionRequest(f"v{number}", "description", f"List {number}.", (0,)) for number in range(10)]
    refused = {"List 3.", "List 7."}

    def behave(number, body):
        prompt = body["messages"][0]["content"][-1]["text"]
        return (400, {"error": f"no {prompt}"}) if prompt in refused else "A text."

    with endpoint(behave) as server:
        captioner = EndpointCaptioner(server.url, "m")
        for num_asked in (10, 12, 14):
            cache = AnswerCache(tmp_path / "one")
            answer_requests(requests, captioner, cache, "m", batch_size=4)
            assert len(server.requests) == num_asked
            assert [request.key("m") in cache for request in requests] == [i not in (3, 7) for i in range(10)]
        refused |= {request.prompt for request in requests}
        with pytest.raises(ConnectionError, match="refuses every request"):
            answer_requests(requests, captioner, AnswerCache(tmp_path / "two"), "m", batch_size=4)
        assert len(server.requests) == 18, "the first batch tells"


# A model of transformers


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "qwen3_vl"])
def test_a_model_answers_the_same_in_any_batch(family, video_path, monkeypatch):
    model, processor = build(family)
    told = watch_videos(monkeypatch, processor)
    captioner = ModelCaptioner(model, processor)
    video = selected(video_path)
    requests = clip_requests(video, "hash", QUICK, TemplePrompts())[:3]
    captions = ["A dog runs.", "It sleeps.", "It eats.", "It barks.", "It goes."]
    perturbations = (None, draw_perturbation("a", 5, "shuffle", 16), draw_perturbation("a", 5, "drop", 2))
    requests += [description_request(video, captions, one, "hash", QUICK, TemplePrompts()) for one in perturbations]
    videos = [request.read_video() for request in requests]
    answers = captioner(requests, videos)
    times = {tuple(np.round(metadata.timestamps, 3)) for call in told for metadata in call["video_metadata"]}
    assert times == {request.shown_s for request in requests if request.path}
    alone = [captioner([request], [shown])[0] for request, shown in zip(requests, videos, strict=True)]
    assert alone == answers
    assert captioner(requests[::-1], videos[::-1]) == answers[::-1]


def test_descriptions_are_sampled_by_their_seed(video_path):
    model, processor = build("qwen2_5_vl")
    model.generation_config.eos_token_id = list(range(0, 340, 4))  # it comes to an end
    captioner = ModelCaptioner(model, processor)

    def ask(seed, temperature):
        return CaptionRequest("a", "description", "What?", (0,), seed=seed, temperature=temperature, max_tokens=64)

    def answers(temperature):
        return captioner([ask(seed, temperature) for seed in range(6)], [None] * 6)

    assert answers(0.7) == answers(0.7) and len(set(answers(0.7))) > 1
    assert len(set(answers(0.0))) == 1


def test_an_answer_that_is_cut_off_is_empty():
    model, processor = build("qwen2_5_vl")
    captioner = ModelCaptioner(model, processor)
    request = CaptionRequest("a", "description", "What?", (0,), max_tokens=4)
    model.generation_config.eos_token_id = 339  # hardly ever
    assert captioner([request], [None]) == [""]
    model.generation_config.eos_token_id = list(range(340))  # at once
    (answer,) = captioner([CaptionRequest(**{**vars(request), "max_tokens": 1})], [None])
    assert isinstance(answer, str)


@pytest.mark.parametrize("level", ["captions", "frames"])
def test_the_command_with_a_model(folder, tmp_path, capsys, level):
    model, processor = build("qwen2_5_vl")
    model.generation_config.eos_token_id = list(range(0, 340, 4))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    factors = ["shuffle", "drop"] if level == "captions" else ["speed", "partial_reverse"]
    command = ["temple", "caption", str(folder), str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    command += ["--level", level, "--keep-ratios", "4", "2", "--max-pixels", "256", "--factors", *factors]
    assert main([*command, "--dtype", "float32"]) == 0
    assert "Described 2 of 2 videos" in capsys.readouterr().out
    video, _ = read_descriptions(tmp_path / "out")
    assert re.fullmatch(r"model@[0-9a-f]{12}, float32", video["model"])
    assert {(rejected["factor"], rejected["keep_ratio"]) for rejected in video["rejected"]} == {
        (factor, ratio) for factor in factors for ratio in (4, 2)
    }
    assert (video["captions"] is None) == (level == "frames")
    assert video["chosen"] and video["level"] == level


def test_a_d2vlm_is_no_captioner(tiny):
    with pytest.raises(ValueError, match="cannot caption clips"):
        ModelCaptioner(*tiny)
