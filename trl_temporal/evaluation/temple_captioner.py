# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A video model of transformers as the captioner of TEMPLE."""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ..synthesis.temple_requests import CaptionRequest
from ..video import Video
from .text_generation import generate_texts


class ModelCaptioner:
    """
    Answers the requests of [`~trl_temporal.synthesis.temple_captions.caption_path`] with a stock video model.

    A request gets the same answer in any batch, but for the rounding of the model: the noise of its sampling comes
    from a generator of its own. An answer that is cut off counts as empty.

    Args:
        model (`PreTrainedModel`):
            As `AutoModelForImageTextToText` loads it.
        processor (`ProcessorMixin`):
            Its processor.

    Raises:
        `ValueError`: the model is a D2VLM, which answers in a form of its own.

    Example:
        >>> from trl_temporal.evaluation.loading import load_model
        >>> from trl_temporal.evaluation.temple_captioner import ModelCaptioner
        >>> captioner = ModelCaptioner(*load_model("Qwen/Qwen2.5-VL-7B-Instruct"))  # doctest: +SKIP
    """

    def __init__(self, model, processor):
        if model.config.model_type == "d2vlm":
            raise ValueError("A D2VLM cannot caption clips; give the video model that it was made from, or another.")
        self.model = model
        self.processor = processor

    def __call__(self, requests: Sequence[CaptionRequest], videos: Sequence[Video | None]) -> list[str]:
        """
        Answer requests.

        Args:
            requests (`Sequence[CaptionRequest]`):
                The requests; those that differ in the number of frames or in their sampling go one after the other.
            videos (`Sequence[Video | None]`):
                What each of them shows.

        Returns:
            `list[str]`: the answers.
        """
        groups: dict[tuple, list[int]] = {}
        for number, (request, video) in enumerate(zip(requests, videos, strict=True)):
            length = None if video is None else video.num_frames
            kind = (length, request.temperature, request.repetition_penalty, request.max_tokens)
            groups.setdefault(kind, []).append(number)
        answers = [""] * len(requests)
        for (_, temperature, repetition_penalty, max_tokens), numbers in groups.items():
            noise = _Noise(self.model, [requests[number].seed for number in numbers], temperature, max_tokens)
            shown = {str(number): videos[number] for number in numbers}
            found = generate_texts(
                self.model,
                self.processor,
                [_row(str(number), requests[number], videos[number]) for number in numbers],
                batch_size=len(numbers),
                max_new_tokens=max_tokens,
                # The frames of a request have times of their own, so an entry of `videos` is but a name for them.
                read_video=lambda entry, shown=shown: shown[entry["path"]],
                progress=False,
                logits_processor=LogitsProcessorList([noise]),
                repetition_penalty=repetition_penalty,
                temperature=None,
                top_p=None,
                top_k=None,
            )
            for number, answer, cut_off in zip(numbers, found, noise.cut_off, strict=True):
                answers[number] = "" if cut_off else answer.text
        return answers


def _row(name: str, request: CaptionRequest, video: Video | None) -> dict:
    text = {"type": "text", "text": request.prompt}
    content = [text] if video is None else [{"type": "video"}, text]
    return {
        "id": f"{request.video_id}, {request.what}",
        "videos": [] if video is None else [{"path": name}],
        "prompt": [{"role": "user", "content": content}],
    }


class _Noise(LogitsProcessor):
    """
    Samples by the likeliest token of scores plus noise, row by row, and sees which rows do not come to an end.
    """

    def __init__(self, model, seeds: Sequence[int], temperature: float, max_tokens: int):
        stops = model.generation_config.eos_token_id
        self.stops = torch.tensor(stops if isinstance(stops, list) else [stops], device=model.device)
        self.generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.ended = torch.zeros(len(seeds), dtype=torch.bool, device=model.device)
        self.cut_off = [False] * len(seeds)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        if self.temperature:
            # The largest of scores plus Gumbel noise is a sample from their softmax.
            rows = [torch.rand(scores.shape[1], generator=one, device=scores.device) for one in self.generators]
            uniform = torch.stack(rows).clamp(1e-20, 1 - 1e-7)
            scores = scores - self.temperature * torch.log(-torch.log(uniform))
        # The largest score is the token that will be taken.
        self.ended |= torch.isin(scores.argmax(-1), self.stops)
        self.num_tokens += 1
        if self.num_tokens == self.max_tokens:
            self.cut_off = (~self.ended).tolist()
        return scores
