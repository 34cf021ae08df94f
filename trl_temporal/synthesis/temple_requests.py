# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What a captioner is asked, who may be one, and how its answers are kept."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..video import Video, VideoError, load_video, probe_video
from .answer_cache import AnswerCache
from .endpoint import ChatEndpoint, frame_parts

FRAME_S = 0.005  # of a crop that holds one frame


@dataclass(frozen=True)
class CaptionRequest:
    """
    One thing that a captioner is asked.

    Args:
        video_id (`str`):
            Name of the video.
        what (`str`):
            `"clip 3"`, `"description"`, or `"shuffle 8"`.
        prompt (`str`):
            The text.
        clips (`tuple[int, ...]`):
            Indices of the clips that are shown or listed, in order.
        captions (`tuple[str, ...]`, *optional*):
            Captions that are listed in the prompt.
        path (`str`, *optional*):
            Video that the frames are of; `None` for a text alone.
        frames_s (`tuple[float, ...]`, *optional*):
            Where the frames are in the video, in seconds.
        shown_s (`tuple[float, ...]`, *optional*):
            Time that each frame is shown at, in seconds, increasing.
        duration_s (`float`, *optional*):
            Duration of what is shown in seconds.
        file_hash (`str`, *optional*):
            SHA-256 of the video.
        max_pixels (`int`, *optional*):
            Largest picture.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 takes the likeliest token.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            1 is none.
        max_tokens (`int`, *optional*, defaults to `2048`):
            Longest answer.
        seed (`int`, *optional*, defaults to `0`):
            Of the sampling.
    """

    video_id: str
    what: str
    prompt: str
    clips: tuple[int, ...]
    captions: tuple[str, ...] = ()
    path: str | None = None
    frames_s: tuple[float, ...] = ()
    shown_s: tuple[float, ...] = ()
    duration_s: float = 0.0
    file_hash: str = ""
    max_pixels: int = 0
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 2048
    seed: int = 0

    def key(self, model_name: str) -> str:
        """Hash of all that decides the answer; names and places do not."""
        named = ("video_id", "what", "path", "clips", "captions")
        asked = {name: value for name, value in dataclasses.asdict(self).items() if name not in named}
        return hashlib.sha256(json.dumps([model_name, asked], sort_keys=True).encode()).hexdigest()

    def read_video(self) -> Video | None:
        """
        The frames, with the times that they are shown at.

        Returns:
            [`~trl_temporal.video.Video`] or `None` for a text alone.

        Raises:
            [`~trl_temporal.video.VideoError`]: the file cannot be read.
        """
        if self.path is None:
            return None
        info = probe_video(self.path)
        scale = min(1.0, (self.max_pixels / (info.width * info.height)) ** 0.5)
        size = (max(1, int(info.height * scale)), max(1, int(info.width * scale)))
        frames = {
            time_s: load_video(self.path, fps=1.0, start_s=time_s, end_s=time_s + FRAME_S, size=size).frames[0]
            for time_s in set(self.frames_s)
        }
        shown = np.stack([frames[time_s] for time_s in self.frames_s])
        return Video(shown, np.array(self.shown_s), self.duration_s, self.path)


Captioner = Callable[[Sequence[CaptionRequest], Sequence[Video | None]], Sequence[str | None]]


class EverythingRefused(ConnectionError):
    """A captioner wants none of several requests: its settings are wrong, or these are too much for it."""


class EndpointCaptioner:
    """
    Asks a video model behind an OpenAI-compatible endpoint, such as a vLLM server, with frames as JPEG pictures.

    Args:
        base_url (`str`):
            Where the endpoint is: `http://localhost:8000/v1`.
        model (`str`):
            Name of the model.
        endpoint_kwargs:
            `concurrency`, `timeout_s`, `num_retries` and `backoff_s` of
            [`~trl_temporal.synthesis.endpoint.ChatEndpoint`].

    Example:
        >>> from trl_temporal.synthesis.temple_requests import EndpointCaptioner
        >>> EndpointCaptioner("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-7B-Instruct").endpoint.concurrency
        32
    """

    def __init__(self, base_url: str, model: str, **endpoint_kwargs):
        self.model = model
        self.endpoint = ChatEndpoint(base_url, **endpoint_kwargs)

    def __call__(self, requests: Sequence[CaptionRequest], videos: Sequence[Video | None]) -> list[str | None]:
        """
        Answer requests.

        Args:
            requests (`Sequence[CaptionRequest]`):
                The requests.
            videos (`Sequence[Video | None]`):
                What each of them shows.

        Returns:
            `list[str | None]`: the answers; `None` where the endpoint refused.

        Raises:
            `ConnectionError`: the endpoint cannot be reached, or fails.
            `EverythingRefused`: it refuses all of several requests.
        """
        bodies = {str(i): self._body(*asked) for i, asked in enumerate(zip(requests, videos, strict=True))}
        answers: dict[str, str] = {}
        _, refusals = self.endpoint.ask(bodies, answers.__setitem__, "the batches before are kept")
        if len(refusals) == len(bodies) > 1:
            words = next(iter(refusals.values()))
            raise EverythingRefused(f"{self.endpoint.url} refuses every request: {words}. Mend the settings.")
        return [answers.get(key) for key in bodies]

    def _body(self, request: CaptionRequest, video: Video | None) -> dict[str, Any]:
        content = [*([] if video is None else frame_parts(video)), {"type": "text", "text": request.prompt}]
        penalty = {} if request.repetition_penalty == 1 else {"repetition_penalty": request.repetition_penalty}
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": request.temperature,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
            **penalty,
        }


def clean_answer(answer: str) -> str:
    """An answer without the thoughts before it, and with single spaces and line breaks."""
    answer = answer.encode(errors="ignore").decode()  # half a surrogate pair fits into no file
    lines = (" ".join(line.split()) for line in answer.rpartition("</think>")[2].splitlines())
    return "\n".join(line for line in lines if line)


def answer_requests(
    requests: Sequence[CaptionRequest],
    captioner: Captioner,
    cache: AnswerCache,
    model_name: str,
    *,
    batch_size: int = 8,
    process: tuple[int, int] = (0, 1),
    progress: str | None = None,
) -> None:
    """
    Have requests answered that the cache does not hold, batch by batch.

    A request whose video cannot be read stays without an answer, as does one that the captioner refuses.

    Args:
        requests (`Sequence[CaptionRequest]`):
            The requests.
        captioner (`Callable`):
            Gets a list of requests and one of their videos; returns the answers, `None` for one that it refuses.
        cache ([`~trl_temporal.synthesis.answer_cache.AnswerCache`]):
            Gets the answers of each batch as soon as it is done.
        model_name (`str`):
            Who answers; part of the hash.
        batch_size (`int`, *optional*, defaults to `8`):
            Requests that are answered together.
        process (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            Which process this is, and how many there are: each takes its share.
        progress (`str`, *optional*):
            Title of the progress bar; none without.

    Raises:
        `ValueError`: the captioner gave another number of answers.
        `EverythingRefused`: the captioner refuses a whole batch, and none of `requests` has an answer.
    """
    by_key = {request.key(model_name): request for request in requests}
    # Requests of one kind together: less padding, and videos of equally many frames.
    order = sorted(by_key, key=lambda key: (len(by_key[key].frames_s), len(by_key[key].prompt), key))
    # The share comes before the cache, to which the other processes may be adding already.
    share = order[process[0] :: process[1]]
    keys = [key for key in share if key not in cache]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]

    def read(batch: list[str]) -> list[tuple[str, Video | None]]:
        shown = []
        for key in batch:
            with suppress(VideoError):
                shown.append((key, by_key[key].read_video()))
        return shown

    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        tqdm(total=len(share), initial=len(share) - len(keys), desc=progress, disable=progress is None) as bar,
    ):
        upcoming = pool.submit(read, batches[0]) if batches else None
        for number, batch in enumerate(batches):
            shown = upcoming.result()
            # The next batch is decoded while the model works on this one.
            upcoming = pool.submit(read, batches[number + 1]) if number + 1 < len(batches) else None
            try:
                answers = captioner([by_key[key] for key, _ in shown], [video for _, video in shown]) if shown else []
            except EverythingRefused:
                # Where others have an answer, the settings are right and these are what cannot be answered.
                if not any(key in cache for key in by_key):
                    raise
                answers = [None] * len(shown)
            if len(answers) != len(shown):
                raise ValueError(f"the captioner gave {len(answers)} answers to {len(shown)} requests; give one each")
            for (key, _), answer in zip(shown, answers, strict=True):
                if answer is not None:
                    cache.add(key, clean_answer(answer))
            bar.update(len(batch))
