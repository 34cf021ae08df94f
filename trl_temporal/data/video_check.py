# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Reading every video of a dataset before training, so that a bad file is met now and not after hours."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
from tqdm import tqdm

from ..video import Video, VideoError
from .schema import DURATION_SLACK_S, RowError, coerce_videos, video_key

SPAN_COLUMNS = ("prompt_spans", "spans", "response_spans", "chosen_spans", "rejected_spans")


def check_visible(spans: Sequence[Sequence[float]], video: Video) -> None:
    """
    Refuses spans that nobody can see: the nearest frame would stand in for them.

    Args:
        spans (`Sequence` of `[start_s, end_s]`):
            Spans in seconds.
        video ([`~trl_temporal.video.Video`]):
            The video as it was read.

    Raises:
        [`~trl_temporal.data.schema.RowError`]: if a span begins after the end of the video.
    """
    for start_s, end_s in spans:
        if start_s >= video.duration_s:
            raise RowError(
                f"the span [{start_s}, {end_s}] begins after the end of the video at {video.duration_s} s. Check that "
                "the times are seconds of this video or crop, and that the file is whole."
            )


def find_bad_videos(
    dataset: datasets.Dataset, read_video: Callable[[dict], Video], progress: str | None = None
) -> Iterator[tuple[int, ValueError]]:
    """
    Reads every video once and compares it with the spans of its rows. Spans that end after their video are counted in
    a warning.

    Args:
        dataset (`datasets.Dataset`):
            Rows that pass the validator.
        read_video (`Callable`):
            Reader of the entries of `videos`; a [`~trl_temporal.data.frame_cache.FrameCache`] is filled on the way.
        progress (`str`, *optional*):
            Title of the progress bar; none without.

    Yields:
        `tuple[int, ValueError]`: index and fault of each row whose video cannot be read, or ends before one of its
        spans begins.
    """
    rows_of: dict[str, list[int]] = {}
    entries: dict[str, dict] = {}
    for index, videos in enumerate(dataset.select_columns(["videos"])["videos"]):
        if videos:
            (entry,) = coerce_videos(videos)
            key = video_key(entry)
            rows_of.setdefault(key, []).append(index)
            entries[key] = entry
    spans_of = dataset.select_columns([column for column in SPAN_COLUMNS if column in dataset.column_names])
    overhangs_s = []
    for key, indices in tqdm(rows_of.items(), desc=progress, disable=progress is None):
        try:
            video = read_video(entries[key])
        except VideoError as error:
            yield from ((index, error) for index in indices)
            continue
        for index in indices:
            spans = [span for column in spans_of[index].values() for span in column or []]
            try:
                check_visible(spans, video)
            except RowError as error:
                yield index, error
            else:
                overhangs_s.append(max((end_s for _, end_s in spans), default=0.0) - video.duration_s)
    overhangs_s = [overhang_s for overhang_s in overhangs_s if overhang_s > DURATION_SLACK_S]
    if overhangs_s:
        warnings.warn(
            f"{len(overhangs_s)} of {len(dataset)} rows have spans that end after their video, by up to "
            f"{max(overhangs_s):.2f} s; such spans are read up to its end",
            stacklevel=2,
        )


def drop_rows(
    dataset: datasets.Dataset, bad: dict[int, ValueError], manifest_path: Path, indices: Sequence[int]
) -> datasets.Dataset:
    """
    The dataset without the rows in `bad`, which are appended to the manifest.

    Args:
        dataset (`datasets.Dataset`):
            Rows.
        bad (`dict[int, ValueError]`):
            By index, what is wrong.
        manifest_path (`Path`):
            JSON-lines file of `index`, `id` and `reason`.
        indices (`Sequence[int]`):
            Index of each row in the dataset as it was given, for the manifest.

    Returns:
        `datasets.Dataset`: the good rows, in order.

    Raises:
        VideoError: if no row is left.
    """
    if not bad:
        return dataset
    ids = dataset["id"] if "id" in dataset.column_names else [None] * len(dataset)
    with open(manifest_path, "a", encoding="utf-8") as file:
        for index, error in sorted(bad.items()):
            file.write(json.dumps({"index": indices[index], "id": ids[index], "reason": str(error)}) + "\n")
    kept = [index for index in range(len(dataset)) if index not in bad]
    if not kept:
        raise VideoError(f"no row has a video that can be used; mend them as {manifest_path} says")
    warnings.warn(
        f"skipped {len(bad)} of {len(dataset)} rows whose video cannot be used; {manifest_path} says which and why",
        stacklevel=2,
    )
    return dataset.select(kept)
