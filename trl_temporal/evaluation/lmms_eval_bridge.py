# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
D2VLM as a model of lmms-eval, for the general benchmarks that it has.

Only lmms-eval imports this module: it finds [`model_manifest`] by the entry point `lmms_eval.models` of this package,
and `lmms-eval --model trl_temporal --model_args pretrained=...` then makes a [`GroundedModel`].
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

try:
    from lmms_eval.api.model import lmms
    from loguru import logger  # with which lmms-eval logs
except ImportError as error:
    raise ImportError(
        f"the bridge to lmms-eval needs lmms-eval, which does not import: {error}. How to install it stands in "
        "docs/lmms_eval.md."
    ) from error

from ..data.schema import video_key

MODEL_ID = "trl_temporal"
DEFAULT_NEW_TOKENS = 256
# On top of what a task allows for the answer (some allow 16), for the evidence stage in front of it.
EVIDENCE_TOKENS = 32


def model_manifest():
    """What lmms-eval's registry of models asks for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, chat_class_path=f"{__name__}.{GroundedModel.__name__}", aliases=("d2vlm",))


class GroundedModel(lmms):
    """
    A D2VLM in lmms-eval, which answers greedily.

    Args:
        pretrained (`str`):
            Folder or Hub repository of the model.
        batch_size (`int`, *optional*, defaults to `1`):
            Questions per batch. Those about one video stand next to each other, and it is encoded once a batch.
        device (`str`, *optional*):
            Such as `"cuda:0"`; by default the GPU where there is one. Under `accelerate launch`, that of the process.
        dtype (`str`, *optional*):
            Such as `"bfloat16"`; by default `"float32"` on the CPU, and on a GPU the type of the saved weights.
        fps (`float`, *optional*):
            Frames per second of video; by default as the model was trained.
        max_frames (`int`, *optional*):
            Longer videos are sampled more thinly; by default as the model was trained.
        spans (`bool`, *optional*, defaults to `True`):
            Whether to write the spans of an answer into it, in seconds, as `12.0 - 15.5`. `False` for benchmarks that
            compare whole answers and know nothing of time.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code of the repository. A D2VLM needs none, as this package knows it.
    """

    is_simple = False  # lmms-eval's word for models that are given a string instead of messages

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        spans: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        import torch
        from accelerate import Accelerator
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from ..models import d2vlm  # noqa: F401  (makes it known to the Auto classes)

        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1:
            self.device = self.accelerator.device
        else:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size, self.spans = int(batch_size), spans
        dtype = dtype or ("float32" if self.device.type == "cpu" else "auto")
        self.processor = AutoProcessor.from_pretrained(pretrained, trust_remote_code=trust_remote_code)
        self.model = AutoModelForImageTextToText.from_pretrained(
            pretrained, dtype=dtype, trust_remote_code=trust_remote_code
        )
        if self.model.config.model_type != d2vlm.D2VLMConfig.model_type:
            raise ValueError(
                f"{pretrained} is a {self.model.config.model_type}, not a D2VLM. For the families of transformers, "
                "lmms-eval has models of its own: see `lmms-eval models`."
            )
        self.model.to(self.device).eval()
        if fps is not None:
            self.processor.fps = float(fps)
        if max_frames is not None:
            self.processor.max_frames = int(max_frames)

    def generate_until(self, requests: Iterable) -> list[str]:
        """
        Answers requests.

        Args:
            requests (`Iterable[Instance]`):
                Whose `args` are the text of the question, a function from a document to messages, the arguments of
                generation, and the document's number, task and split.

        Returns:
            `list[str]`, in the order of the requests.

        Raises:
            ValueError: If a request holds more than text and one video, before any is answered.
        """
        from .generation import generate_answers

        requests = list(requests)
        rows = [self._row(request) for request in requests]
        settings = [_settings(request.args[2]) for request in requests]
        if any(sampled for _, _, sampled in settings):
            # Not a warning of Python's, which lmms-eval filters out.
            logger.warning("A task asks for sampling or beams; the answers are greedy all the same.")
        texts = [""] * len(requests)

        def key(number: int) -> tuple[int, str]:
            return settings[number][0], "".join(map(video_key, rows[number]["videos"]))

        for max_new_tokens, numbers in groupby(sorted(range(len(rows)), key=key), lambda number: settings[number][0]):
            numbers = list(numbers)
            answers = generate_answers(
                self.model,
                self.processor,
                [rows[number] for number in numbers],
                batch_size=self.batch_size,
                max_new_tokens=max_new_tokens + EVIDENCE_TOKENS,
                progress=self.rank == 0,
            )
            for number, answer in zip(numbers, answers, strict=True):
                text = _written(answer, self.spans)
                for stop in settings[number][1]:
                    text = text.split(stop)[0]
                texts[number] = text.strip()
                context, _, generation, *_ = requests[number].args
                self.cache_hook.add_partial("generate_until", (context, generation), texts[number])
        return texts

    def loglikelihood(self, requests):
        raise NotImplementedError(
            "A D2VLM answers by generating, as its evidence decides what it answers: choose tasks with "
            "`output_type: generate_until`."
        )

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("A D2VLM answers one question at a time: choose tasks with one round.")

    def _row(self, request) -> dict[str, Any]:
        """A request as a row of this package's data contract."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        videos, prompt = [], []
        for message in doc_to_messages(self.task_dict[task][split][doc_id]):
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            parts = []
            for part in content:
                if part["type"] == "video":
                    videos.append(_video_entry(part))
                elif part["type"] != "text":
                    raise ValueError(
                        f"document {doc_id} of {task} holds an {part['type']}: a D2VLM reads text and one video. "
                        "Leave that task out."
                    )
                parts.append({"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": "video"})
            prompt.append({"role": message["role"], "content": parts})
        if len(videos) > 1:
            raise ValueError(
                f"document {doc_id} of {task} holds {len(videos)} videos: a D2VLM reads one. Leave that task out."
            )
        return {"id": f"{task}/{split}/{doc_id}", "videos": videos, "prompt": prompt}


def _written(answer, spans: bool) -> str:
    """The text of an answer, with or without its spans. They have no unit, as most scorers expect none."""
    text = answer.text
    for span in answer.response if spans else []:
        text = text.replace("<evi>", str(span).replace("s", ""), 1)
    return " ".join(text.replace(" <evi>", "").replace("<evi>", "").split())


def _video_entry(part: dict[str, Any]) -> dict[str, Any]:
    """The video of a message, with the crop that a task may give in the message or beside the path."""
    source, start_s, end_s = part["url"], part.get("start_time"), part.get("end_time")
    if isinstance(source, dict):
        start_s, end_s = source.get("video_start", start_s), source.get("video_end", end_s)
        source = source.get("path") or source["url"]
    crop = {"start_s": start_s, "end_s": end_s}
    return {"path": str(source), **{name: float(value) for name, value in crop.items() if value is not None}}


def _settings(generation: dict[str, Any]) -> tuple[int, list[str], bool]:
    """Longest answer in tokens, strings that end it, and whether it should not be greedy."""
    until = generation.get("until") or []
    sampled = (
        bool(generation.get("do_sample"))
        or (generation.get("temperature") or 0) > 0
        or (generation.get("num_beams") or 1) > 1
    )
    max_new_tokens = int(generation.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
    return max_new_tokens, [until] if isinstance(until, str) else list(until), sampled
