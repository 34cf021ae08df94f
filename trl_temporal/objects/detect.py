# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The best region and its score for each noun in each frame, Eq. 2 of Grounded-VideoDiT.

A detector is any callable `detect(frames, nouns) -> Detections`: [`ModelDetector`] for GroundingDINO and OWLv2 of
transformers, or one of your own.
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .nouns import NounError

if TYPE_CHECKING:
    import torch

DEFAULT_DETECTOR = "IDEA-Research/grounding-dino-tiny"
# GroundingDINO tells phrases apart by these ids of BERT's vocabulary: [CLS] [SEP] . ?
CLS_ID, SEP_ID, PERIOD_ID, QUESTION_ID = 101, 102, 1012, 1029


class Detections(NamedTuple):
    """
    What a detector finds for each noun in each frame.

    Attributes:
        scores (`np.ndarray` of shape `(num_frames, num_nouns)`, float32):
            `s_{i,t}` of Eq. 2, the score of the best region: 0 to 1.
        boxes (`np.ndarray` of shape `(num_frames, num_nouns, 4)`, float32):
            That region: left, top, right and bottom edge as shares of the picture's width and height, 0 to 1.
    """

    scores: np.ndarray
    boxes: np.ndarray


Detector = Callable[[np.ndarray, Sequence[str]], Detections]


@dataclass(frozen=True)
class ModelDetector:
    """
    Looks for nouns with GroundingDINO (MM-GroundingDINO too) or OWLv2. The model loads when it is first called.

    GroundingDINO reads all nouns in one prompt, `"dog . red frisbee ."`, and a noun's score for a region is the
    highest over its own tokens; OWLv2 scores `"a photo of a dog"`, one query for each noun.

    Args:
        model (`str`, *optional*, defaults to `"IDEA-Research/grounding-dino-tiny"`):
            Folder or Hub repository.
        revision (`str`, *optional*):
            Revision on the Hub.
        prompt_mode (`str`, *optional*, defaults to `"joint"`):
            `"joint"`, or `"per_noun"`: GroundingDINO runs once for each noun, which is slower, but no noun changes the
            scores of another.
        batch_size (`int`, *optional*, defaults to `8`):
            Frames that run together.
        device (`str`, *optional*):
            Device of the model. Defaults to the GPUs in turn, else the CPU.

    Example:
        >>> from trl_temporal.objects.detect import ModelDetector
        >>> detect = ModelDetector("google/owlv2-base-patch16-ensemble")
        >>> detect(frames, ["dog", "red frisbee"]).scores.shape  # doctest: +SKIP
        (96, 2)
    """

    model: str = DEFAULT_DETECTOR
    revision: str | None = None
    prompt_mode: Literal["joint", "per_noun"] = "joint"
    batch_size: int = field(default=8, repr=False)  # `repr` names what is cached
    device: str | None = field(default=None, repr=False)
    files: tuple = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.prompt_mode not in ("joint", "per_noun"):
            raise ValueError(f"prompt_mode is {self.prompt_mode!r}; it must be 'joint' or 'per_noun'")
        object.__setattr__(self, "files", files_of(self.model))

    def __call__(self, frames: np.ndarray, nouns: Sequence[str]) -> Detections:
        """
        Looks for nouns in frames.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8):
                RGB.
            nouns (`Sequence[str]`):
                What to look for.

        Returns:
            [`Detections`]

        Raises:
            `ValueError`: the model is of another kind.
            [`~trl_temporal.objects.nouns.NounError`]: a noun has no token that it could be found by, or too many.
        """
        import torch

        model, tokenizer, image_processor = _load_detector(self)
        is_owl = model.config.model_type == "owlv2"
        if is_owl:
            queries = _owl_queries(tokenizer, nouns, model.config.text_config.max_position_embeddings)
        else:
            prompts = grounding_prompts(tokenizer, nouns, model.config.max_text_len, self.prompt_mode)
        parts = []
        for first in range(0, len(frames), self.batch_size):
            images = list(frames[first : first + self.batch_size])
            pixels = image_processor(images=images, input_data_format="channels_last", return_tensors="pt")
            pixels = pixels.to(model.device)
            with torch.inference_mode():
                if is_owl:
                    scores, boxes = _score_owl(model, pixels, queries)
                else:
                    found = [_score_grounding(model, pixels, ids, spans) for ids, spans in prompts]
                    scores, boxes = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
            parts.append((scores.float().cpu().numpy(), boxes.float().cpu().numpy()))
        scores, boxes = (np.concatenate(part) for part in zip(*parts, strict=True))
        if is_owl:  # it pads to a square, at the right or the bottom, and its boxes are shares of that
            height, width = frames.shape[1:3]
            boxes = boxes * (max(height, width) / np.array([width, height, width, height]))
        return Detections(scores, np.clip(boxes, 0, 1).astype(np.float32))


def files_of(model: str) -> tuple:
    """
    The files of a model's folder with size and time: other weights under the same name give other results.

    Args:
        model (`str`):
            Folder or Hub repository.

    Returns:
        `tuple`: `(name, size, time)` of each file; empty for a repository.
    """
    if not os.path.isdir(model):
        return ()
    status = {file.name: file.stat() for file in sorted(Path(model).iterdir()) if file.is_file()}
    return tuple((name, file.st_size, file.st_mtime_ns) for name, file in status.items())


def pick_device(device: str | None) -> str:
    """
    Where a frozen model runs.

    Args:
        device (`str` or `None`):
            Device that was asked for.

    Returns:
        `str`: that, or one of the GPUs by the process id, since processes that share out videos have different ones,
        or `"cpu"`.

    Example:
        >>> from trl_temporal.objects.detect import pick_device
        >>> pick_device("cpu")
        'cpu'
    """
    import torch

    if device is not None:
        return device
    return f"cuda:{os.getpid() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@functools.lru_cache(maxsize=1)
def _load_detector(detector: ModelDetector):
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

    name, from_hub = detector.model, {"revision": detector.revision}
    kind = AutoConfig.from_pretrained(name, **from_hub).model_type
    if kind not in ("grounding-dino", "mm-grounding-dino", "owlv2"):
        raise ValueError(
            f"{name} is a {kind}; detection knows GroundingDINO, MM-GroundingDINO and OWLv2, or give a detector of "
            "your own: a callable `detect(frames, nouns) -> Detections`"
        )
    model = AutoModelForZeroShotObjectDetection.from_pretrained(name, **from_hub)
    tokenizer = AutoTokenizer.from_pretrained(name, **from_hub)
    image_processor = AutoImageProcessor.from_pretrained(name, **from_hub)
    return model.to(pick_device(detector.device)).eval(), tokenizer, image_processor


def grounding_prompts(
    tokenizer, nouns: Sequence[str], max_tokens: int, prompt_mode: str = "joint"
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """
    GroundingDINO's prompts for nouns: as few as hold them all.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            A tokenizer with BERT's vocabulary.
        nouns (`Sequence[str]`):
            What to look for.
        max_tokens (`int`):
            Tokens that a prompt may have; longer ones would be cut in silence.
        prompt_mode (`str`, *optional*, defaults to `"joint"`):
            `"per_noun"` gives each a prompt of its own.

    Returns:
        `list[tuple[list[int], list[tuple[int, int]]]]`: of each prompt its ids, `[CLS] dog . red frisbee . [SEP]`, and
        from which to which token (exclusive) each of its nouns stands.

    Raises:
        [`~trl_temporal.objects.nouns.NounError`]: a noun has no token of its own, or more than a prompt holds.
    """
    prompts: list[tuple[list[int], list[tuple[int, int]]]] = []
    for noun in nouns:
        ids = tokenizer(noun, add_special_tokens=False)["input_ids"]
        ids = [token for token in ids if token not in (CLS_ID, SEP_ID, PERIOD_ID, QUESTION_ID)]
        if not 0 < len(ids) <= max_tokens - 3:
            raise _unreadable(noun, len(ids), max_tokens - 3)
        if not prompts or prompt_mode == "per_noun" or len(prompts[-1][0]) + len(ids) + 1 > max_tokens:
            prompts.append(([CLS_ID, SEP_ID], []))
        tokens, spans = prompts[-1]
        first = len(tokens) - 1
        tokens[first:first] = [*ids, PERIOD_ID]
        spans.append((first, first + len(ids)))
    return prompts


def _unreadable(noun: str, num_tokens: int, most: int) -> NounError:
    return NounError(
        f"the noun {noun!r:.80} has {num_tokens} tokens; a prompt of the detector holds 1 to {most}. "
        "Write another into the column 'objects'."
    )


def _owl_queries(tokenizer, nouns: Sequence[str], max_tokens: int) -> dict[str, "torch.Tensor"]:
    """`"a photo of a dog"` for each noun, padded to the length that OWLv2 was trained with."""
    template = "a photo of a {}"
    empty = len(tokenizer(template.format(""))["input_ids"])
    for noun in nouns:
        num_tokens = len(tokenizer(template.format(noun))["input_ids"]) - empty
        if not 0 < num_tokens <= max_tokens - empty:
            raise _unreadable(noun, num_tokens, max_tokens - empty)
    texts = [template.format(noun) for noun in nouns]
    return tokenizer(texts, padding="max_length", max_length=max_tokens, return_tensors="pt")


def _score_grounding(model, pixels, ids: list[int], spans: list[tuple[int, int]]) -> tuple["torch.Tensor", ...]:
    """Scores `(frames, nouns)` and boxes of the nouns of a prompt: the highest over a noun's tokens, then Eq. 2."""
    import torch

    input_ids = torch.tensor([ids], device=model.device).expand(len(pixels["pixel_values"]), -1)
    output = model(**pixels, input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    of_tokens = output.logits.sigmoid()  # (frames, regions, tokens)
    of_regions = torch.stack([of_tokens[..., first:behind].amax(dim=-1) for first, behind in spans], dim=-1)
    return _best_regions(of_regions, output.pred_boxes)


def _score_owl(model, pixels, queries: dict[str, "torch.Tensor"]) -> tuple["torch.Tensor", ...]:
    num_frames = len(pixels["pixel_values"])
    tokens = {name: queries[name].repeat(num_frames, 1).to(model.device) for name in ("input_ids", "attention_mask")}
    output = model(pixel_values=pixels["pixel_values"], **tokens)
    return _best_regions(output.logits.sigmoid(), output.pred_boxes)


def _best_regions(scores: "torch.Tensor", boxes: "torch.Tensor") -> tuple["torch.Tensor", ...]:
    """Eq. 2: of scores `(frames, regions, nouns)` the best region of each noun, and the edges of its box."""
    import torch

    best, regions = scores.max(dim=1)
    centers, sizes = torch.gather(boxes, 1, regions[..., None].expand(-1, -1, 4)).split(2, dim=-1)
    return best, torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
