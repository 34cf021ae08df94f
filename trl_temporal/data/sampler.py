# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Shuffling that keeps the rows of a video together."""

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class VideoGroupSampler(Sampler[int]):
    """
    Shuffles videos, and the rows within each video, but keeps the rows of a video next to each other: a batch then has
    fewer videos to encode.

    Args:
        videos (`Sequence[Hashable]`):
            Video of each row.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order; every epoch has its own.

    Example:

    ```python
    >>> order = list(VideoGroupSampler(["a", "b", "a", "b"]))
    >>> {order[0], order[1]} in ({0, 2}, {1, 3})
    True
    ```
    """

    def __init__(self, videos: Sequence[Hashable], seed: int = 0):
        groups: dict[Hashable, list[int]] = {}
        for row, video in enumerate(videos):
            groups.setdefault(video, []).append(row)
        self.groups = list(groups.values())
        self.num_rows = len(videos)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for group in torch.randperm(len(self.groups), generator=generator).tolist():
            rows = self.groups[group]
            yield from (rows[i] for i in torch.randperm(len(rows), generator=generator).tolist())
