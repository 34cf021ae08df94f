# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What rows make of a batch, told without decoding their videos: the headers say how many frames of which size the
model's own processor is given.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.chat_collator import ChatCollator, ChatPreferenceCollator
from ..data.chat_inputs import DEFAULT_MAX_FRAMES
from ..data.collator import EvidenceCollator, PreferenceCollator
from ..data.schema import without_video_decoding
from ..models.d2vlm.configuration_d2vlm import BACKBONES
from ..video import Video, VideoError, load_row_video, probe_video
from ..video_backends import Sampling
from .evidence_mixin import frame_cache
from .script_arguments import DataArguments, load_split

ASSUMED_SIZE = (720, 1280)  # height and width of a video that is not there


@dataclass
class Sample:
    """What one row makes of a batch."""

    prompt: int
    responses: list[int]
    frames: int
    video_tokens: int
    video_bytes: int
    video_numbers: int

    def length(self, shared: bool) -> int:
        """Tokens of its longest sequence, or of all of its responses behind one prompt."""
        return self.prompt + (sum(self.responses) if shared else max(self.responses))


def sample_rows(
    script_args: DataArguments, method: str, num_sampled: int, notes: list[str]
) -> tuple[list[dict[str, Any]], int | None]:
    """
    Rows to measure.

    Args:
        script_args ([`DataArguments`]):
            Names the data set.
        method (`str`):
            `"sft"` or `"fpo"`.
        num_sampled (`int`):
            How many.
        notes (`list[str]`):
            Receives what was assumed.

    Returns:
        `tuple`: rows from the shortest to the longest video, and how many the data set has; without one, a row that is
        made up, and `None`.
    """
    name = script_args.dataset_name
    try:
        dataset = None if name is None else load_split(name, script_args.dataset_train_split)
    except (FileNotFoundError, ConnectionError):
        dataset = None
    if dataset is None:
        where = "The recipe names no data set" if name is None else f"The data set {name} is not here"
        notes.append(f"{where}: one row with as long a video as is allowed, of {_size_in_words()}, was made up.")
        return [_made_up_row(method)], None
    if not len(dataset):
        raise ValueError(f"{name} has no rows.")
    dataset = without_video_decoding(dataset)
    order = np.arange(len(dataset))
    if "duration" in dataset.column_names:
        order = np.argsort([duration or 0.0 for duration in dataset["duration"]], kind="stable")
    picked = np.unique(np.linspace(0, len(order) - 1, num_sampled).round().astype(int))
    return [dataset[int(index)] for index in order[picked]], len(dataset)


def _made_up_row(method: str) -> dict[str, Any]:
    responses = {"sft": {"completion": "spans"}, "fpo": {"chosen": "chosen_spans", "rejected": "rejected_spans"}}
    content = [{"type": "video"}, {"type": "text", "text": "When does someone open the door of the red car?"}]
    row = {"id": "made up", "videos": [{"path": ""}], "prompt": [{"role": "user", "content": content}]}
    for start_s, (response, spans) in enumerate(responses[method].items()):
        text = {"type": "text", "text": "<evi> <evi> </evi> It happens in <evi> and <evi>."}
        row |= {
            response: [{"role": "assistant", "content": [text]}],
            spans: [[start_s, start_s + 1.0], [start_s + 2.0, start_s + 3.0]],
        }
    return row


def measure(
    rows: list[dict[str, Any]], model: PreTrainedModel, processor, training_args, method: str, notes: list[str]
) -> list[Sample]:
    """
    Each row through the trainer's own collator, with empty frames in the place of its video.

    Args:
        rows (`list[dict]`):
            Of [`sample_rows`].
        model (`PreTrainedModel`):
            The model, on any device.
        processor (`ProcessorMixin`):
            Its processor.
        training_args ([`EvidenceSFTConfig`] or [`FPOConfig`]):
            Says how videos are sampled.
        method (`str`):
            `"sft"` or `"fpo"`.
        notes (`list[str]`):
            Receives what was assumed.

    Returns:
        `list[Sample]`
    """
    has_evidence = model.config.model_type == "d2vlm"
    sampling = frame_cache(training_args, processor, model.config.model_type).sampling
    if has_evidence:
        collator = PreferenceCollator if method == "fpo" else EvidenceCollator
    else:
        collator = ChatPreferenceCollator if method == "fpo" else ChatCollator
        collator = partial(collator, videos_once=model.config.model_type in BACKBONES)
    names = ("video_token_id", "image_token_id", "video_token_index", "image_token_index")
    video_ids = torch.tensor([value for name, value in model.config.to_dict().items() if name in names])
    samples, missing = [], []
    for row in rows:
        videos = []

        def read_video(entry, row=row, videos=videos) -> Video:
            videos.append(_empty_video(entry, row, sampling, missing))
            return videos[-1]

        batch = collator(processor, read_video, max_length=training_args.max_length)([row])
        responses = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
        responses = responses.sum(-1).tolist()
        pixels = [value for name, value in batch.items() if name.startswith("pixel_values")]
        samples.append(
            Sample(
                prompt=int(batch["attention_mask"][0].sum()) - responses[0],
                responses=responses,
                frames=sum(len(video.frames) for video in videos),
                video_tokens=int(torch.isin(batch["input_ids"][0], video_ids).sum()),
                video_bytes=sum(value.numel() * value.element_size() for value in pixels),
                video_numbers=sum(value.numel() for value in pixels),
            )
        )
    if any(missing):
        notes.append(
            f"{len(missing)} videos cannot be read, e.g. {missing[0]}: assumed are the duration that their row says, "
            f"or as long as is allowed, and {_size_in_words()}."
        )
    return samples


def _size_in_words() -> str:
    return f"{ASSUMED_SIZE[1]} x {ASSUMED_SIZE[0]} pixels"


def _empty_video(entry: dict, row: dict, sampling: dict, missing: list[str]) -> Video:
    """As many frames as would be sampled, of their size, all black; they take no memory."""
    path = entry.get("path")
    if path is None:  # a folder or list of images
        return load_row_video(entry, **sampling)
    try:
        info = probe_video(path)
        duration_s, size = info.duration_s, (info.height, info.width)
    except VideoError:
        missing.append(path)
        duration_s, size = row.get("duration"), ASSUMED_SIZE
    crop = {name: entry.get(name) for name in ("start_s", "end_s")}
    sampling = {name: value for name, value in sampling.items() if name != "backend"}
    wanted = Sampling(path, **sampling, **crop)
    if not duration_s:  # long enough for all spans, and for as many frames as are allowed
        ends_s = [span[1] for name, spans in row.items() if name.endswith("spans") for span in spans or []]
        frames_s = (wanted.max_frames or DEFAULT_MAX_FRAMES) / wanted.fps if wanted.fps else 1.0
        duration_s = wanted.start_s + max([*ends_s, frames_s])
    timestamps_s = wanted.targets_s(duration_s) - wanted.start_s
    shape = (len(timestamps_s), *(wanted.size or size), 3)
    frames = np.broadcast_to(np.zeros((), np.uint8), shape)
    return Video(frames, timestamps_s, min(duration_s, wanted.end_s) - wanted.start_s, path)
