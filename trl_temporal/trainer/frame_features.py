# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the frozen frame encoders of a Grounded-VideoDiT make of the rows of a training, made before its first step."""

import os
import textwrap
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import datasets
import torch
from accelerate import Accelerator
from torch.utils.data import ConcatDataset
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.errors import RowError
from ..data.feature_cache import FeatureCache, stored_keys
from ..data.feature_key import FeatureCacheError
from ..data.frame_cache import FrameCache
from ..models.grounded_videodit import load_frame_encoder
from ..objects.collator import GroundedCollator, GroundedPreferenceCollator
from ..objects.frame_features import FrameFeatureReader, build_frame_features, object_rows
from ..objects.row_masks import masks_at
from ..objects.stage import OBJECT_FEATURES
from .bad_rows import share_error

logger = logging.get_logger(__name__)

GROUNDED_COLLATORS = (GroundedCollator, GroundedPreferenceCollator)
OBJECT_COLUMNS = tuple(OBJECT_FEATURES)
_TITLE = "When and What: Diffusion-Grounded VideoLLM with Entity-Aware Segmentation for Long Video Understanding"
GROUNDED_VIDEODIT_PAPER = {
    "title": _TITLE,
    "id": "2508.15641",
    # docstyle-ignore
    "citation": textwrap.dedent(f"""\
        @article{{grounded_videodit,
            title   = {{{{{_TITLE}}}}},
            author  = {{Pengcheng Fang and Yuxia Chen and Rui Guo}},
            year    = 2025,
            journal = {{arXiv preprint arXiv:2508.15641}}
        }}"""),
}


def open_frame_features(
    model: PreTrainedModel,
    read_video: FrameCache,
    root: str | os.PathLike | None,
    rows: list[datasets.Dataset],
    accelerator: Accelerator,
    on_bad_sample: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> FrameFeatureReader:
    """
    The stored features of rows, which are made where they lack: everything before the fusion is frozen, so that no
    video is encoded twice. Each process makes its part.

    Args:
        model ([`GroundedVideoDiTForConditionalGeneration`]):
            The model, whose configuration names the encoders.
        read_video ([`~trl_temporal.data.frame_cache.FrameCache`]):
            Reader of videos.
        root (`str` or `os.PathLike`, *optional*):
            Folder of caches. Defaults to `trl_temporal/features` in the Hugging Face cache. Where one is named that
            holds the features of all rows, neither the encoders nor diffusers need be there.
        rows (`list[datasets.Dataset]`):
            Data sets for training and evaluation.
        accelerator (`Accelerator`):
            Of the trainer.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            As of [`~trl_temporal.objects.frame_features.build_frame_features`].
        progress (`bool`, *optional*, defaults to `True`):
            Show the estimate and a progress bar.

    Returns:
        [`~trl_temporal.objects.frame_features.FrameFeatureReader`]

    Raises:
        ValueError: for a stream of rows, whose videos are not known before.
        FeatureCacheError: if the encoders cannot be loaded, and their features are not all there.
        VideoError: if a video is bad and `on_bad_sample` is `"raise"`. The other processes raise a `RuntimeError`
            with its words.
    """
    if any(isinstance(each, datasets.IterableDataset) for each in rows):
        raise ValueError(
            "The rows are a stream, but the videos of a Grounded-VideoDiT are encoded before the first step. Load "
            "them without streaming."
        )
    try:
        encoder = load_frame_encoder(model.config, device=accelerator.device)
    except (ImportError, OSError) as missing:
        if root is None:
            raise
        return _open_stored(root, read_video, rows, missing)
    root = root or os.path.join(datasets.config.HF_CACHE_HOME, "trl_temporal", "features")
    report = error = None
    try:  # of all splits at once, so that the weights of the encoder are hashed once, and a split may have no video
        report = build_frame_features(
            ConcatDataset([object_rows(each) for each in rows if len(each)]),
            root,
            encoder,
            read_video,
            on_bad_sample=on_bad_sample,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            progress=progress,
        )
    except Exception as raised:
        error = raised
    num_errors = accelerator.reduce(torch.tensor(int(error is not None), device=accelerator.device), reduction="sum")
    if num_errors:
        share_error(accelerator, error)
    del encoder
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return FrameFeatureReader(FeatureCache(report.folder, stored_keys(Path(root))[report.folder]))


def _open_stored(
    root: str | os.PathLike, read_video: FrameCache, rows: list[datasets.Dataset], missing: Exception
) -> FrameFeatureReader:
    """The features in a folder without the encoders that made them, if they are those of all rows."""
    reader = FrameFeatureReader.open_stored(root, read_video.sampling)
    logger.warning(f"The frame encoders cannot be loaded; what {root} holds is taken for theirs. ({missing})")
    for row in chain.from_iterable(map(object_rows, rows)):
        if row.get("videos") and row not in reader:
            raise FeatureCacheError(
                f"row {row.get('id')!r}: {root} has no features of its video{' and objects' * reader.uses_masks}, and "
                f"the frame encoders that make them cannot be loaded: {missing}"
            ) from missing
    return reader


def find_bad_objects(dataset: datasets.Dataset) -> Iterator[tuple[int, RowError]]:
    """
    Reads the masks of every row, which a row without the columns of the object stage has not.

    Args:
        dataset (`datasets.Dataset`):
            Rows that pass the validator.

    Yields:
        `tuple[int, RowError]`: index and fault of each row whose masks cannot be used.
    """
    if "object_masks" not in dataset.column_names:
        return
    for index, row in enumerate(dataset.select_columns(["object_masks", "object_times_s"])):
        try:
            masks_at(row, row["object_times_s"] or [])
        except RowError as error:
            yield index, error
