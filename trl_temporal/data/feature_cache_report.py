# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What filling a feature cache has cost and saves."""

from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass
class BuildReport:
    """
    What a build did, and whether the cache is worth having.

    Args:
        folder (`Path`):
            Folder of the cache.
        num_videos (`int`):
            Distinct videos that were asked for.
        num_new (`int`):
            Of these, how many were encoded now.
        num_skipped (`int`):
            Of these, how many cannot be used.
        num_bytes (`int`):
            Size of the new features.
        seconds (`float`):
            How long it took.
        read_s, process_s, encode_s (`float`, *optional*):
            Seconds that one video takes without the cache: to decode, in the processor, in the vision tower. Measured
            one after the other, in eval mode, on the first videos.
        cached_s (`float`, *optional*):
            Seconds that one video takes from the cache, read from disk.
    """

    folder: Path
    num_videos: int
    num_new: int = 0
    num_skipped: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    read_s: float | None = None
    process_s: float | None = None
    encode_s: float | None = None
    cached_s: float | None = None

    @property
    def speed_up(self) -> float | None:
        """How many times faster a video is read than made; `None` where nothing was encoded."""
        if self.cached_s is None:
            return None
        return (self.read_s + self.process_s + self.encode_s) / self.cached_s

    def __str__(self) -> str:
        there = self.num_videos - self.num_new - self.num_skipped
        text = (
            f"{self.num_new} videos encoded in {duration_text(self.seconds)} ({size_text(self.num_bytes)}), "
            f"{self.num_skipped} skipped, {there} were there already: {self.folder}"
        )
        if self.speed_up is None:
            return text
        text += (
            f"\nA video takes {self.read_s + self.process_s + self.encode_s:.3g} s (decoding {self.read_s:.3g}, "
            f"processor {self.process_s:.3g}, vision tower {self.encode_s:.3g}) and from the cache "
            f"{self.cached_s:.3g} s: {self.speed_up:.3g} times faster."
        )
        if self.speed_up <= 1:
            text += " The cache loses: train without it."
        return text


def size_text(num_bytes: float) -> str:
    """Bytes to read."""
    return f"{num_bytes / GIB:.3g} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.3g} MiB"


def duration_text(seconds: float) -> str:
    """Seconds to read."""
    return (
        f"{seconds:.3g} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


__all__ = ["GIB", "BuildReport", "duration_text", "size_text"]
