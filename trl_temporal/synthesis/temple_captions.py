# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Descriptions of videos and of perturbed ones, written by any model that is handed in as a callable.

Each clip is captioned by itself, shown behind the clip before it; the captions, perturbed or not, are put together to
a description. Every answer is kept on disk by the hash of what was asked, pictures included, so that a run that was
killed asks nothing twice but the batch it was in.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.rows import row_seed
from ..data.shards import write_whole
from ..video import VideoError
from .answer_cache import AnswerCache
from .temple import FACTORS, FRAME_FACTORS, KEEP_RATIOS, Perturbation, draw_perturbation, text_fault
from .temple_prompts import TemplePrompts
from .temple_requests import Captioner, CaptionRequest, answer_requests, clean_answer
from .temple_selection import SELECTED_FILE

DESCRIPTIONS_FILE, SKIPPED_FILE, MANIFEST_FILE = "descriptions.jsonl", "skipped.jsonl", "manifest.json"
SETTINGS_FILE, CACHE_FOLDER = "settings.json", "cache"
SEEDS = 2**31 - 1


@dataclass(frozen=True)
class TempleCaptionConfig:
    """
    How videos are described.

    Args:
        level (`str`, *optional*, defaults to `"captions"`):
            What is perturbed: `"captions"`, the list of clip captions, as in the release; or `"frames"`, the key
            frames of the clips, which the model then describes at once, without captions.
        factors (`tuple[str, ...]`, *optional*):
            Perturbations. Defaults to `drop`, `shuffle` and `reverse`; `level="frames"` also has `partial_reverse` and
            `speed`, which are no part of the paper.
        keep_ratios (`tuple[int, ...]`, *optional*, defaults to `(16, 8, 4, 2)`):
            The paper's r.
        seed (`int`, *optional*, defaults to `0`):
            Of perturbations and of sampling.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature of descriptions; 0 takes the likeliest token. Clip captions are never sampled.
        repetition_penalty (`float`, *optional*, defaults to `1.05`):
            Of descriptions; 1 is none. An endpoint other than vLLM may not know it.
        clip_max_tokens (`int`, *optional*, defaults to `2048`):
            Longest answer about a clip. One that is cut off counts as empty.
        max_tokens (`int`, *optional*, defaults to `2048`):
            Longest description.
        max_pixels (`int`, *optional*, defaults to `401408`):
            Larger frames are shrunk to this many pixels as they are decoded.

    Raises:
        `ValueError`: an unknown level, or a factor that it does not have.
    """

    level: str = "captions"
    factors: tuple[str, ...] = FACTORS
    keep_ratios: tuple[int, ...] = KEEP_RATIOS
    seed: int = 0
    temperature: float = 0.7
    repetition_penalty: float = 1.05
    clip_max_tokens: int = 2048
    max_tokens: int = 2048
    max_pixels: int = 512 * 28 * 28

    def __post_init__(self):
        known = {"captions": FACTORS, "frames": FRAME_FACTORS}
        if self.level not in known:
            raise ValueError(f"level is {self.level!r}; it must be 'captions' or 'frames'")
        if unknown := set(self.factors) - set(known[self.level]):
            raise ValueError(
                f"level '{self.level}' has no factor {min(unknown)!r}; it has {', '.join(known[self.level])}"
            )
        if not self.factors or not self.keep_ratios or min(self.keep_ratios) < 1:
            raise ValueError("give at least one factor and one keep ratio, each 1 or more")


def clean_clip_caption(answer: str) -> str:
    """
    The caption in an answer about a clip: its last line, without a heading, bold marks and quotes around it.

    Args:
        answer (`str`):
            What the model wrote.

    Returns:
        `str`: the caption. "Video clip 2" is called this video clip, "video clip 1" the previous clip.

    Example:
        >>> from trl_temporal.synthesis.temple_captions import clean_clip_caption
        >>> clean_clip_caption('It stays.\\n**Caption:** "In video clip 2 the man of Video Clip 1 sits."')
        'In this video clip the man of the previous clip sits.'
    """
    caption = (clean_answer(answer).splitlines() or [""])[-1].replace("**", "").strip()
    caption = re.sub(r"^[\w ]{0,30}\b(?:caption|description)\b[\w ]{0,30}:\s*", "", caption, flags=re.I)
    for first, last in ('""', "''", "“”", "‘’"):
        if len(caption) > 2 and caption[0] == first and caption[-1] == last:
            caption = caption[1:-1].strip()
    for number, words in (("2", "this video clip"), ("1", "the previous clip")):
        caption = re.sub(rf"\b(?:the )?video clip {number}\b", words, caption, flags=re.I)
    return caption[:1].upper() + caption[1:]


@dataclass
class CaptionReport:
    """
    What a captioning did.

    Args:
        num_videos (`int`):
            Videos that were selected.
        num_described (`int`):
            Those with a description.
        num_requests (`int`):
            Answers that were needed.
        num_cached (`int`):
            Those that were there from a run before.
        skipped (`list[dict]`):
            What is missing: `video_id`, `what` (`"video"`, `"clip 3"`, `"description"`, `"shuffle 8"`), `reason` and
            `detail`. Without a clip or its description, the whole video is left out.
    """

    num_videos: int = 0
    num_described: int = 0
    num_requests: int = 0
    num_cached: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason occurs."""
        return dict(sorted(Counter(entry["reason"] for entry in self.skipped).items()))

    def leave_out(self, video_id: str, what: str, reason: str, detail: str = "") -> None:
        """Name what is missing."""
        self.skipped.append({"video_id": video_id, "what": what, "reason": reason, "detail": detail})


def clip_requests(
    video: dict[str, Any], file_hash: str, config: TempleCaptionConfig, prompts: TemplePrompts
) -> list[CaptionRequest]:
    """
    Ask for a caption of each clip of a video: the first alone, each other one behind the clip before it.

    Args:
        video (`dict`):
            A line of `selected.jsonl`.
        file_hash (`str`):
            SHA-256 of the file.
        config ([`TempleCaptionConfig`]):
            Settings.
        prompts ([`~trl_temporal.synthesis.temple_prompts.TemplePrompts`]):
            Wordings.

    Returns:
        `list[CaptionRequest]`: one per clip. Frames are shown at their real times, from the start of the first clip
        that is shown.
    """
    requests = []
    for number, clip in enumerate(video["clips"]):
        previous = video["clips"][number - 1] if number else None
        start_s = clip["start_s"] if previous is None else previous["start_s"]
        before_s, own_s = ([] if shown is None else _key_frames_s(shown) for shown in (previous, clip))
        frames_s = (*before_s, *own_s)
        prompt = prompts.next_clip_prompt(len(before_s), len(own_s)) if number else prompts.first_clip
        requests.append(
            CaptionRequest(
                video_id=video["video_id"],
                what=f"clip {number}",
                prompt=prompt,
                clips=(number - 1, number) if number else (0,),
                path=video["path"],
                frames_s=frames_s,
                shown_s=tuple(round(time_s - start_s, 6) for time_s in frames_s),
                duration_s=round(clip["end_s"] - start_s, 6),
                file_hash=file_hash,
                max_pixels=config.max_pixels,
                max_tokens=config.clip_max_tokens,
            )
        )
    return requests


def _key_frames_s(clip: dict[str, Any]) -> list[float]:
    return sorted(set(clip["key_frames_s"]))


def description_request(
    video: dict[str, Any],
    captions: Sequence[str] | None,
    perturbation: Perturbation | None,
    file_hash: str,
    config: TempleCaptionConfig,
    prompts: TemplePrompts,
) -> CaptionRequest:
    """
    Ask for a description of a video, perturbed or not.

    Args:
        video (`dict`):
            A line of `selected.jsonl`.
        captions (`Sequence[str]`, *optional*):
            Of the clips; `None` asks about the key frames (`level="frames"`), which are shown without gaps between
            the clips, as the perturbed video would play. Of a clip at double speed there is one frame.
        perturbation ([`~trl_temporal.synthesis.temple.Perturbation`], *optional*):
            What is done to the clips; nothing without it.
        file_hash (`str`):
            SHA-256 of the file, for the frames.
        config ([`TempleCaptionConfig`]):
            Settings.
        prompts ([`~trl_temporal.synthesis.temple_prompts.TemplePrompts`]):
            Wordings.

    Returns:
        [`~trl_temporal.synthesis.temple_requests.CaptionRequest`]
    """
    clips = list(range(len(video["clips"]))) if perturbation is None else perturbation.selected_indices
    fast = set() if perturbation is None else set(perturbation.fast_indices)
    what = "description" if perturbation is None else f"{perturbation.factor} {perturbation.keep_ratio}"
    rng = np.random.default_rng(row_seed(config.seed, f"{video['video_id']}/{what}"))
    shared = {
        "video_id": video["video_id"],
        "what": what,
        "clips": tuple(clips),
        "temperature": config.temperature,
        "repetition_penalty": config.repetition_penalty,
        "max_tokens": config.max_tokens,
        "seed": int(rng.integers(SEEDS)),
    }
    if captions is not None:
        listed = [captions[clip] for clip in clips]
        return CaptionRequest(prompt=prompts.list_captions(listed), captions=tuple(listed), **shared)
    frames_s: list[float] = []
    shown_s: list[float] = []
    offset_s = 0.0
    for number in clips:
        clip = video["clips"][number]
        speed = 2 if number in fast else 1
        times_s = _key_frames_s(clip)[: 1 if number in fast else None]
        frames_s += times_s
        shown_s += [round(offset_s + (time_s - clip["start_s"]) / speed, 6) for time_s in times_s]
        offset_s += (clip["end_s"] - clip["start_s"]) / speed
    return CaptionRequest(
        prompt=prompts.video,
        path=video["path"],
        frames_s=tuple(frames_s),
        shown_s=tuple(shown_s),
        duration_s=round(offset_s, 6),
        file_hash=file_hash,
        max_pixels=config.max_pixels,
        **shared,
    )


def read_selected(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Read the videos that `trl-temporal temple select` chose.

    Args:
        path (`str` or `os.PathLike`):
            `selected.jsonl`, or its folder.

    Returns:
        `list[dict]`: `video_id`, `path`, `duration_s` and `clips` of each; a clip has `start_s`, `end_s` and
        `key_frames_s`.

    Raises:
        `ValueError`: a line is no such video, or an id is there twice; the message names the line.
        `FileNotFoundError`: there is no such file.
    """
    path = Path(path)
    path = path / SELECTED_FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Make it with `trl-temporal temple select`.")
    videos, lines = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            video = json.loads(line)
            named = {name: video[name] for name in ("video_id", "path", "duration_s", "clips")}
            _ = [clip[name] for clip in video["clips"] for name in ("start_s", "end_s", "key_frames_s")]
        except (ValueError, KeyError, TypeError) as error:
            fault = f"is no selected video ({type(error).__name__}: {error})"
            raise ValueError(f"{path}, line {number}: {fault}. Make it with `trl-temporal temple select`.") from None
        if not video["clips"] or not all(clip["key_frames_s"] for clip in video["clips"]):
            raise ValueError(f"{path}, line {number} ({video['video_id']!r}): has no clips, or one without key frames")
        if (first := lines.setdefault(str(video["video_id"]), number)) != number:
            raise ValueError(f"{path}, line {number}: has the id {video['video_id']!r} of line {first}; remove one")
        videos.append(named)
    return videos


def caption_path(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    captioner: Captioner,
    model_name: str,
    config: TempleCaptionConfig | None = None,
    prompts: TemplePrompts | None = None,
    *,
    batch_size: int = 8,
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> CaptionReport:
    """
    Describe selected videos, and perturbed ones: `trl-temporal temple caption`.

    `destination` gets `descriptions.jsonl` (a line a video, for [`~trl_temporal.synthesis.temple.temple_pairs`]),
    `skipped.jsonl` (what is missing, and why), `manifest.json` (settings and counts) and `cache` (the answers). Called
    again, it goes on; the files do not depend on how often it was stopped, nor on the number of processes.

    Args:
        source (`str` or `os.PathLike`):
            `selected.jsonl`, or its folder.
        destination (`str` or `os.PathLike`):
            Folder to write.
        captioner (`Callable`):
            Answers: `captioner(requests, videos)` gets
            [`~trl_temporal.synthesis.temple_requests.CaptionRequest`] objects and what they show, and returns a text
            for each, or `None` for one that it refuses.
        model_name (`str`):
            Who answers; answers of another one are not taken from the cache.
        config ([`TempleCaptionConfig`], *optional*):
            Settings.
        prompts ([`~trl_temporal.synthesis.temple_prompts.TemplePrompts`], *optional*):
            Wordings.
        batch_size (`int`, *optional*, defaults to `8`):
            Requests that are answered together; a kill loses these.
        process (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            Which process this is, and how many share the work.
        wait (`Callable`, *optional*):
            Waits for the other processes.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.

    Returns:
        [`CaptionReport`]

    Raises:
        `ValueError`: the folder was begun with other settings, or a line of `source` is bad.

    Example:
        >>> from trl_temporal.synthesis.temple_captions import caption_path
        >>> from trl_temporal.synthesis.temple_requests import EndpointCaptioner
        >>> captioner = EndpointCaptioner("http://localhost:8000/v1", "a-model")
        >>> caption_path("selected", "described", captioner, "a-model").reasons  # doctest: +SKIP
        {'refusal': 3}
    """
    config, prompts = config or TempleCaptionConfig(), prompts or TemplePrompts()
    destination, cache_folder = Path(destination), Path(destination) / CACHE_FOLDER
    destination.mkdir(parents=True, exist_ok=True)
    all_videos = read_selected(source)
    settings = {
        "model": model_name,
        "config": dataclasses.asdict(config),
        "prompts": {name: text for name, text in dataclasses.asdict(prompts).items() if name != "questions"},
        "videos": hashlib.sha256(json.dumps(all_videos, sort_keys=True).encode()).hexdigest(),
    }
    settings = json.loads(json.dumps(settings))
    _claim(destination, settings, write=process[0] == 0)
    report = CaptionReport(num_videos=len(all_videos))
    videos, hashes = [], {}
    for video in all_videos:
        if Path(video["path"]).is_file():
            with open(video["path"], "rb") as file:
                hashes[video["video_id"]] = hashlib.file_digest(file, "sha256").hexdigest()
            videos.append(video)
        else:
            report.leave_out(video["video_id"], "video", "video_missing", f"{video['path']}: no such file")

    def answers_to(requests: list[CaptionRequest], title: str) -> AnswerCache:
        before = AnswerCache(cache_folder)
        report.num_requests += len(requests)
        report.num_cached += sum(request.key(model_name) in before for request in requests)
        answer_requests(
            requests, captioner, before, model_name,
            batch_size=batch_size, process=process, progress=title if progress else None,
        )  # fmt: skip
        wait()
        return AnswerCache(cache_folder)  # with the answers of all processes

    all_captions: dict[str, list[str] | None] = {video["video_id"]: None for video in videos}
    if config.level == "captions":
        asked = [clip_requests(video, hashes[video["video_id"]], config, prompts) for video in videos]
        cache = answers_to([request for requests in asked for request in requests], "Captioning clips")
        for video, requests in zip(list(videos), asked, strict=True):
            captions = [_answer(request, cache, model_name, report) for request in requests]
            if all(caption is not None for caption in captions):
                all_captions[video["video_id"]] = [clean_clip_caption(caption) for caption in captions]
            else:
                videos.remove(video)

    asked, lines = [], []
    for video in videos:
        captions, num_clips = all_captions[video["video_id"]], len(video["clips"])
        drawn = [
            draw_perturbation(video["video_id"], num_clips, factor, keep_ratio, config.seed)
            for factor in config.factors
            for keep_ratio in config.keep_ratios
        ]
        asked.append(
            {
                perturbation: None
                if perturbation is not None and drawn[perturbation].changes_nothing(num_clips)
                else description_request(
                    video,
                    captions,
                    None if perturbation is None else drawn[perturbation],
                    hashes[video["video_id"]],
                    config,
                    prompts,
                )
                for perturbation in (None, *range(len(drawn)))
            }
        )
        lines.append(
            {
                **{name: video[name] for name in ("video_id", "path", "duration_s")},
                "level": config.level,
                "model": model_name,
                "num_clips": num_clips,
                "captions": captions,
                "chosen": None,
                "rejected": [{**perturbation._asdict(), "text": None} for perturbation in drawn],
            }
        )
    cache = answers_to(
        [request for requests in asked for request in requests.values() if request is not None], "Describing videos"
    )
    described = []
    for line, requests in zip(lines, asked, strict=True):
        line["chosen"] = _answer(requests[None], cache, model_name, report)
        if line["chosen"] is None:
            continue
        for number, rejected in enumerate(line["rejected"]):
            if requests[number] is not None:
                rejected["text"] = _answer(requests[number], cache, model_name, report)
        described.append(line)
    report.num_described = len(described)
    if process[0] == 0:
        _write_lines(destination / DESCRIPTIONS_FILE, described)
        _write_lines(destination / SKIPPED_FILE, report.skipped)
        counts = {name: getattr(report, name) for name in ("num_videos", "num_described", "num_requests", "reasons")}
        write_whole(destination / MANIFEST_FILE, json.dumps({**settings, "counts": counts}, indent=1) + "\n")
    wait()
    return report


def _claim(destination: Path, settings: dict[str, Any], write: bool) -> None:
    """Compare the settings with those that a folder was begun with, or write them."""
    path = destination / SETTINGS_FILE
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if known.get(name) != value:
                raise ValueError(
                    f"'{destination}' was begun with another '{name}'. Use a new folder, or copy '{CACHE_FOLDER}' to "
                    f"one to keep the answers that still fit. It was {known.get(name)!r:.300}"
                )
    elif write:
        write_whole(path, json.dumps(settings, indent=1) + "\n")


def _answer(request: CaptionRequest, cache: AnswerCache, model_name: str, report: CaptionReport) -> str | None:
    """A good answer as one paragraph; a bad or missing one is named in the report."""
    key = request.key(model_name)
    if key in cache:
        answer = cache[key]
        fault = text_fault(clean_clip_caption(answer) if request.what.startswith("clip") else answer)
        if fault is None:
            return answer if request.what.startswith("clip") else " ".join(clean_answer(answer).split())
        report.leave_out(request.video_id, request.what, fault, answer[:200])
        return None
    try:
        request.read_video()
    except VideoError as error:
        report.leave_out(request.video_id, request.what, "unreadable", str(error))
    else:
        report.leave_out(request.video_id, request.what, "refused_by_endpoint")
    return None


def _write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
