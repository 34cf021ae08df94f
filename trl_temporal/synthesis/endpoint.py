# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Client of an OpenAI-compatible endpoint, such as a vLLM server."""

import base64
import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ..video import Video

RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
# The endpoint does not want this one request: too long, or held back by a content filter.
REFUSED_STATUSES = (400, 413, 422)


def picture(image: Image.Image) -> dict[str, Any]:
    """
    A part of a message that shows a picture, as JPEG.

    Args:
        image (`PIL.Image.Image`):
            RGB.

    Returns:
        `dict`

    Example:
        >>> from PIL import Image
        >>> from trl_temporal.synthesis.endpoint import picture
        >>> picture(Image.new("RGB", (4, 4)))["image_url"]["url"][:23]
        'data:image/jpeg;base64,'
    """
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=90)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def frame_parts(video: Video) -> list[dict[str, Any]]:
    """
    Parts of a message that show a video: each frame as a picture behind a line with its time.

    Args:
        video ([`~trl_temporal.video.Video`]):
            Frames and their times in seconds.

    Returns:
        `list[dict]`

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.endpoint import frame_parts
        >>> from trl_temporal.video import Video
        >>> frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
        >>> frame_parts(Video(frames, np.array([0.0, 2.5]), 5.0, "a.mp4"))[2]
        {'type': 'text', 'text': 'Frame at 2.5 s:'}
    """
    parts = []
    for time_s, frame in zip(video.timestamps_s, video.frames, strict=True):
        parts += [{"type": "text", "text": f"Frame at {time_s:.1f} s:"}, picture(Image.fromarray(frame))]
    return parts


class ChatEndpoint:
    """
    Sends chat completions concurrently, and again where the endpoint fails at times.

    Where the environment variable `OPENAI_API_KEY` is set, it is sent.

    Args:
        base_url (`str`):
            Where the endpoint is, as OpenAI's client takes it: `http://localhost:8000/v1`.
        concurrency (`int`, *optional*, defaults to `32`):
            Requests on their way at the same time.
        timeout_s (`float`, *optional*, defaults to `120.0`):
            Seconds without a sign of the endpoint after which a request is sent again.
        num_retries (`int`, *optional*, defaults to `6`):
            How often a request is sent again after a timeout, a lost connection or a status such as 429 or 503. A
            `Retry-After` of the endpoint is obeyed.
        backoff_s (`float`, *optional*, defaults to `1.0`):
            Wait before the second retry, doubled for each further one up to 60 seconds.

    Example:
        >>> from trl_temporal.synthesis.endpoint import ChatEndpoint
        >>> ChatEndpoint("http://localhost:8000/v1").url
        'http://localhost:8000/v1/chat/completions'
    """

    def __init__(
        self,
        base_url: str,
        *,
        concurrency: int = 32,
        timeout_s: float = 120.0,
        num_retries: int = 6,
        backoff_s: float = 1.0,
    ):
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.num_retries = num_retries
        self.backoff_s = backoff_s

    def ask(
        self,
        requests_by_key: Mapping[str, dict[str, Any]],
        keep: Callable[[str, str], None],
        advice: str = "the answers so far are kept",
        *,
        only_whole: bool = True,
    ) -> tuple[int, dict[str, str]]:
        """
        Send requests, and hand over each answer as it comes.

        Args:
            requests_by_key (`Mapping[str, dict]`):
                Bodies of chat completions.
            keep (`Callable`):
                Gets `(key, answer)` of each request, from several threads.
            advice (`str`, *optional*):
                What an error says about the answers that came before it.
            only_whole (`bool`, *optional*, defaults to `True`):
                Hand over `""` for an answer that was cut off at its longest length.

        Returns:
            `tuple[int, dict[str, str]]`: the number of retries, and the endpoint's words on each request that it
            refused, by their key; of these `keep` hears nothing.

        Raises:
            `ConnectionError`: the endpoint cannot be reached, or fails after all retries.
        """
        num_retries, refusals = 0, {}
        pool = ThreadPoolExecutor(self.concurrency)
        with self._session() as session:
            try:
                futures = {
                    pool.submit(self._ask_one, session, key, request, keep, advice, only_whole): key
                    for key, request in requests_by_key.items()
                }
                for future in as_completed(futures):
                    retries_of_one, refusal = future.result()
                    num_retries += retries_of_one
                    if refusal:
                        refusals[futures[future]] = refusal
            finally:  # an error or Ctrl-C: what is on its way is waited for and kept, the rest is not sent
                pool.shutdown(wait=True, cancel_futures=True)
        return num_retries, refusals

    def _session(self) -> requests.Session:
        retry = Retry(
            total=self.num_retries,
            backoff_factor=self.backoff_s / 2,
            backoff_max=60,
            backoff_jitter=self.backoff_s / 2,
            status_forcelist=RETRIED_STATUSES,
            allowed_methods=None,
            raise_on_status=False,
        )
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=self.concurrency, max_retries=retry)
        session = requests.Session()
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        if api_key := os.environ.get("OPENAI_API_KEY"):
            session.headers["Authorization"] = f"Bearer {api_key}"
        return session

    def _ask_one(
        self,
        session: requests.Session,
        key: str,
        request: dict[str, Any],
        keep: Callable[[str, str], None],
        advice: str,
        only_whole: bool,
    ) -> tuple[int, str]:
        """Hand over one answer; return the number of retries, and the endpoint's words if it refuses."""
        kept = f"Check the endpoint and run again: {advice}"
        try:
            response = session.post(self.url, json=request, timeout=self.timeout_s)
        except requests.RequestException as error:
            tries = f"{self.num_retries + 1} tries"
            raise ConnectionError(f"{self.url} did not answer in {tries} ({error}). {kept}.") from error
        num_retries = len(response.raw.retries.history)
        if response.status_code in REFUSED_STATUSES:
            return num_retries, f"status {response.status_code}, {response.text:.300}"
        if response.status_code != 200:
            said = f"status {response.status_code} after {num_retries} retries: {response.text:.300}"
            raise ConnectionError(f"{self.url} answered with {said}. {kept}.")
        try:
            choice = response.json()["choices"][0]
            answer = choice["message"]["content"] or ""
        except (ValueError, LookupError, TypeError) as error:
            fault = f"no chat completion: {response.text:.300}"
            raise ConnectionError(f"{self.url} answered with {fault}. Is base_url right? It ends in /v1.") from error
        keep(key, "" if only_whole and choice.get("finish_reason") == "length" else answer)
        return num_retries, ""
