# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Answers of a model to rows, whatever kind of model it is."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from ..data.chat_inputs import DEFAULT_FPS, DEFAULT_MAX_FRAMES
from ..data.feature_cache import CachedVideo, FeatureCache
from ..data.feature_key import feature_key
from ..data.frame_cache import FrameCache
from ..data.schema import coerce_videos, video_key
from ..models.grounded_videodit import GroundedVideoDiTConfig, load_frame_encoder
from ..objects.frame_features import FrameFeatureReader, LiveFrameFeatures
from ..objects.frame_features_path import read_frames_of
from ..synthesis.endpoint import ChatEndpoint
from ..video import Video, VideoError, load_row_video
from .endpoint_texts import ask_endpoint
from .generation import GroundedAnswer, generate_answers
from .metrics.grounding import truth_spans
from .run_folder import SavedAnswer
from .text_generation import TextAnswer, frame_size, generate_texts

OnBadSample = Literal["raise", "skip"]
ENDPOINT_SIZE = 448  # shorter side of the pictures that are sent


def has_evidence(config: PretrainedConfig) -> bool:
    """Whether a model points to its evidence, and does not write times as text."""
    return config.model_type in ("d2vlm", GroundedVideoDiTConfig.model_type)


@dataclass
class Answering:
    """
    Answers rows with a model, whatever its kind.

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`):
            A D2VLM, a Grounded-VideoDiT, or a model that writes times as text; with `endpoint` its name there.
        processor ([`~transformers.ProcessorMixin`] or `None`):
            Its processor; `None` with `endpoint`.
        endpoint ([`~trl_temporal.synthesis.endpoint.ChatEndpoint`], *optional*):
            Where the model is, if not here.
        fps, max_frames, num_frames, size, feature_cache, batch_size, max_new_tokens, on_bad_sample, frame_cache_dir:
            As in [`evaluate_model`].
    """

    model: PreTrainedModel | str
    processor: ProcessorMixin | None
    endpoint: ChatEndpoint | None = None
    fps: float | None = None
    max_frames: int | None = None
    num_frames: int | None = None
    size: int | None = None
    feature_cache: str | os.PathLike | None = None
    batch_size: int = 16
    max_new_tokens: int = 256
    on_bad_sample: OnBadSample = "raise"
    frame_cache_dir: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        if self.on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"on_bad_sample is {self.on_bad_sample!r}; it must be 'raise' or 'skip'")
        self.has_evidence = self.endpoint is None and has_evidence(self.model.config)
        self.has_spans = self.has_evidence and self.model.config.model_type == GroundedVideoDiTConfig.model_type
        self._features = None
        if self.num_frames is not None and (self.fps is not None or self.max_frames is not None):
            raise ValueError("give either `num_frames`, or `fps` and `max_frames`")
        if self.has_evidence:
            if self.size is not None:
                raise ValueError("the size of the frames is that of the model's vision tower; leave `size` out")
            self.size = self.processor.image_size
            if self.fps is None and self.max_frames is None:
                self.num_frames = self.num_frames or self.processor.num_frames
            if self.num_frames is None and not self.has_spans:
                self.fps = self.fps or self.processor.fps or DEFAULT_FPS
                self.max_frames = self.max_frames or self.processor.max_frames
        elif self.num_frames is None:
            self.fps = self.fps or DEFAULT_FPS
            self.max_frames = self.max_frames or DEFAULT_MAX_FRAMES
        if self.endpoint is not None:
            if self.feature_cache is not None:
                raise ValueError("an endpoint takes no features: leave `feature_cache` out")
            self.size = self.size or ENDPOINT_SIZE

    def settings(self) -> dict[str, Any]:
        """What of this decides the answers."""
        sampling = {"fps": self.fps, "max_frames": self.max_frames, "size": self.size, "decoder": "pyav"}
        if self.num_frames is not None:
            sampling["num_frames"] = self.num_frames
        settings = {
            "sampling": sampling,
            "decoding": {"do_sample": False, "max_new_tokens": self.max_new_tokens},
            "on_bad_sample": self.on_bad_sample,
        }
        if self.has_spans:
            settings["grounding_head"] = self.model.config.grounding_head
        elif self.has_evidence:
            sampling |= {"center_crop": self.processor.center_crop, "time_rule": self.processor.time_rule}
            settings["salience_threshold"] = self.model.config.salience_threshold
            settings["interval_ties"] = self.model.config.interval_ties
        return settings

    def __call__(self, rows: Sequence[dict[str, Any]], progress: bool = False) -> list[SavedAnswer]:
        """
        Answer rows.

        Args:
            rows (`Sequence[dict]`):
                Rows of the data contract.
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            `list[SavedAnswer]`: in the order of the rows.
        """
        try:
            return self._answer(rows, progress)
        except VideoError:
            if self.on_bad_sample == "raise":
                raise
        faults = self._unreadable(rows)
        readable = iter(self._answer([row for row in rows if row["id"] not in faults], progress))
        return [
            SavedAnswer(row["id"], "", None, None, _truth(row), 0.0, [], row["task"], faults[row["id"]])
            if row["id"] in faults
            else next(readable)
            for row in rows
        ]

    def _answer(self, rows: Sequence[dict[str, Any]], progress: bool) -> list[SavedAnswer]:
        if self.endpoint is not None:
            return self._ask(rows, progress)
        common = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens, "progress": progress}
        if not self.has_evidence:
            read_video = self._cached() if self.feature_cache is not None else None
            if read_video is None and self.num_frames is not None:
                read_video = FrameCache(None, num_frames=self.num_frames, size=None)
            given = generate_texts(
                self.model,
                self.processor,
                rows,
                fps=self.fps,
                max_frames=self.max_frames,
                size=self.size,
                read_video=read_video,
                **common,
            )
            return [_text_answer(row, answer) for row, answer in zip(rows, given, strict=True)]
        if self.has_spans:
            readers = {"read_features": self._row_features()}
        else:
            readers = {"read_video": self._cached() if self.feature_cache is not None else self._reader()}
        given = generate_answers(self.model, self.processor, rows, **readers, **common)
        return [
            SavedAnswer(
                row["id"],
                answer.text,
                [list(span) for span in answer.evidence],
                [list(span) for span in answer.response],
                _truth(row),
                float(answer.duration_s),
                list(map(float, answer.timestamps_s)),
                row["task"],
                similarities=_similarities(answer),
            )
            for row, answer in zip(rows, given, strict=True)
        ]

    def _ask(self, rows: Sequence[dict[str, Any]], progress: bool) -> list[SavedAnswer]:
        given, refused = ask_endpoint(
            self.endpoint,
            self.model,
            rows,
            read_video=self._read_shrunk,
            max_new_tokens=self.max_new_tokens,
            progress=progress,
        )
        if refused and self.on_bad_sample == "raise":
            number, words = next(iter(refused.items()))
            raise ValueError(
                f"row {rows[number]['id']!r} is {words}. Send less of it, e.g. a lower `max_frames`, or set "
                "on_bad_sample='skip', which counts it as wrong."
            )
        answers = [_text_answer(row, answer) for row, answer in zip(rows, given, strict=True)]
        for number, words in refused.items():
            answers[number].fault = words
        return answers

    def _read_shrunk(self, entry: str | dict) -> Video:
        size = frame_size(entry, self.size)
        return load_row_video(entry, fps=self.fps, num_frames=self.num_frames, max_frames=self.max_frames, size=size)

    def _reader(self) -> FrameCache:
        if self.has_spans:
            return read_frames_of(self.processor, self.fps, self.max_frames, self.num_frames, self.size)
        return self._frames(self.size if self.has_evidence else self.size or 224)

    def _frames(self, size: int | None) -> FrameCache:
        return FrameCache(
            self.frame_cache_dir,
            fps=self.fps,
            num_frames=self.num_frames,
            size=size,
            max_frames=self.max_frames,
            center_crop=self.has_evidence and self.processor.center_crop,
        )

    def _cached(self) -> Callable[[dict], CachedVideo]:
        """Reads features; opened once, as the key is a hash of the weights of the vision tower."""
        if self._features is None:
            key = feature_key(self.model, self.processor, self._frames(self.size).sampling)
            self._features = FeatureCache.open(self.feature_cache, key)
        return self._features.get

    def _row_features(self) -> Callable[[dict], CachedVideo]:
        """Reads or makes what the frozen frame encoders make of the video of a row; they are loaded once."""
        if self._features is None:
            read_video = self._reader()
            try:
                encoder = load_frame_encoder(self.model.config, device=self.model.device)
            except (ImportError, OSError):  # stored features need neither the encoders nor diffusers
                if self.feature_cache is None:
                    raise
                self._features = FrameFeatureReader.open_stored(self.feature_cache, read_video.sampling)
                return self._features
            if self.feature_cache is None:
                self._features = LiveFrameFeatures(encoder, read_video)
            else:
                self._features = FrameFeatureReader.open(self.feature_cache, encoder, read_video.sampling)
        return self._features

    def _unreadable(self, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Ids of rows whose video cannot be read, and why."""
        read, of_video = self._reader(), {}
        for row in rows:
            key = _key(row)
            if key not in of_video and row["videos"]:
                try:
                    read(row["videos"][0])
                    of_video[key] = None
                except VideoError as error:
                    of_video[key] = str(error)
        faults = {row["id"]: of_video.get(_key(row)) for row in rows}
        return {row_id: fault for row_id, fault in faults.items() if fault is not None}


def _key(row: Mapping[str, Any]) -> str:
    return "".join(map(video_key, coerce_videos(row["videos"])))


def _text_answer(row: Mapping[str, Any], answer: TextAnswer) -> SavedAnswer:
    times_s = list(map(float, answer.timestamps_s))
    return SavedAnswer(row["id"], answer.text, None, None, _truth(row), float(answer.duration_s), times_s, row["task"])


def _similarities(answer: GroundedAnswer) -> dict[str, np.ndarray]:
    found = {"salience": answer.salience, "logits": answer.logits, "cosines": answer.cosines}
    return {name: values for name, values in found.items() if values is not None}


def _truth(row: Mapping[str, Any]) -> list[list[float]]:
    return [list(map(float, span)) for span in truth_spans(row)]
