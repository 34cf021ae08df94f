# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The decoders behind `trl_temporal.video`: what to sample, and one function for each backend.

Each backend function has the signature `(sampling, buffer, header_s) -> (total_s, notes)`: it adds the sampled frames
to `buffer` and returns the decoded duration of the whole video (`None` if the crop ended before it) and what was wrong
with the file.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av

# Matroska and WebM round every pts to a millisecond, so a frame may start up to half of one after its nominal time.
# The odd last digit keeps the comparison off the ticks of the usual time bases (1/1000, 1/30000, 1/90000, ...).
TOLERANCE_S = 0.00055
# torchcodec and decord fetch this many full-size frames at a time: what they cost in memory beside the result.
FETCH_SIZE = 16


class VideoError(ValueError):
    """A video that cannot be read as asked. The message names the file, the fault and the mend."""


class _UnorderedTimestampsError(Exception):
    """The decoder's timestamps are missing or do not increase."""


def nothing_decodable(path: str) -> VideoError:
    return VideoError(f"{path}: not one frame of it can be decoded; copy it again, or convert it to mp4.")


@dataclass(frozen=True)
class Sampling:
    """Which frames of `path` to keep, and at which size: the arguments of `load_video`, checked."""

    path: str
    fps: float | None
    num_frames: int | None
    max_frames: int | None
    start_s: float | None
    end_s: float | None
    size: int | tuple[int, int] | None
    center_crop: bool = False

    def __post_init__(self) -> None:
        if (self.fps is None) == (self.num_frames is None):
            raise ValueError(f"Give exactly one of fps and num_frames, but got {self.fps} and {self.num_frames}.")
        if self.max_frames is not None and self.fps is None:
            raise ValueError("max_frames caps fps sampling; with num_frames leave it out.")
        for name, value in [("fps", self.fps), ("num_frames", self.num_frames), ("max_frames", self.max_frames)]:
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, but is {value}.")
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        if self.size is not None and min(self.size) <= 0:
            raise ValueError(f"size must be positive, but is {self.size}.")
        if self.center_crop and self.size is None:
            raise ValueError("center_crop cuts frames to a size: give one.")

        object.__setattr__(self, "start_s", 0.0 if self.start_s is None else float(self.start_s))
        object.__setattr__(self, "end_s", math.inf if self.end_s is None else float(self.end_s))
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise VideoError(f"{self.path}: a crop starts at 0 s or later, but got start_s={self.start_s}.")
        if not self.end_s > self.start_s:
            raise VideoError(
                f"{self.path}: a crop ends after it starts, but got start_s={self.start_s} and end_s={self.end_s}; "
                "swap them if they are reversed."
            )

    @property
    def needs_total(self) -> bool:
        """Whether the targets depend on where the video ends."""
        return self.num_frames is not None or self.max_frames is not None

    def targets_s(self, total_s: float) -> np.ndarray:
        """Target times, in seconds from the video's first frame, for a video of `total_s` seconds."""
        duration_s = min(self.end_s, total_s) - self.start_s
        if duration_s <= 0:
            return np.empty(0)
        count = self.num_frames
        if self.fps is not None:
            wanted = max(math.ceil((duration_s - TOLERANCE_S) * self.fps), 1)
            if self.max_frames is None or wanted <= self.max_frames:
                return self.start_s + np.arange(wanted) / self.fps
            count = self.max_frames
        return self.start_s + (np.arange(count) + 0.5) * duration_s / count


def choose_frames(times_s: np.ndarray, targets_s: np.ndarray) -> np.ndarray:
    """Indices, each once, of the last frame that starts at or before each target."""
    return np.unique((np.searchsorted(times_s, targets_s + TOLERANCE_S, side="right") - 1).clip(min=0))


class FrameBuffer:
    """Collects sampled frames, resized to one size, in one block of memory that is never copied."""

    def __init__(self, size: tuple[int, int] | None, center_crop: bool = False):
        from av.video.reformatter import VideoReformatter

        self.size = size
        self.center_crop = center_crop
        self.times_s: list[float] = []
        self.size_changed = False
        self._pixels = bytearray()
        self._reformatter = VideoReformatter()
        self._first_size: tuple[int, int] | None = None

    def add(self, time_s: float, frame: "av.VideoFrame") -> None:
        quarter_turns = round(frame.rotation / 90)  # phones film sideways and say so in the header
        sideways = quarter_turns % 2 == 1
        shown_size = (frame.width, frame.height) if sideways else (frame.height, frame.width)
        self._first_size = self._first_size or shown_size
        self.size_changed |= shown_size != self._first_size
        self.size = self.size or shown_size
        width, height = self._resized(shown_size)[:: 1 if sideways else -1]
        # Averaging over the area keeps small things visible when shrinking; it would make blocks when enlarging.
        interpolation = "AREA" if width <= frame.width and height <= frame.height else "BICUBIC"
        frame = self._reformatter.reformat(frame, width, height, format="rgb24", interpolation=interpolation)
        pixels = np.rot90(frame.to_ndarray(), quarter_turns)
        top, left = ((whole - kept) // 2 for whole, kept in zip(pixels.shape, self.size, strict=False))
        pixels = np.ascontiguousarray(pixels[top : top + self.size[0], left : left + self.size[1]])
        self._pixels.extend(memoryview(pixels).cast("B"))
        self.times_s.append(float(time_s))

    def _resized(self, shown_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width before the middle is cut out."""
        if not self.center_crop:
            return self.size
        scale = max(kept / whole for kept, whole in zip(self.size, shown_size, strict=True))
        # Rounded down as torchvision does, but never below what is kept.
        return tuple(max(int(whole * scale + 1e-6), kept) for kept, whole in zip(self.size, shown_size, strict=True))

    def add_pixels(self, time_s: float, pixels: np.ndarray) -> None:
        """Add an RGB array of shape `(height, width, 3)`, uint8."""
        import av

        self.add(time_s, av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))

    def clear(self) -> None:
        self._pixels.clear()
        self.times_s.clear()

    def frames(self) -> np.ndarray:
        """The frames, of shape `(num_frames, height, width, 3)`, uint8. Nothing can be added afterwards."""
        return np.frombuffer(self._pixels, dtype=np.uint8).reshape(len(self.times_s), *self.size, 3)


# PyAV: opens and checks the file for every backend, and decodes in sequence


@contextmanager
def open_video(path: str) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
    """Open a file and its main video stream; whatever is wrong with it is a `VideoError`."""
    import av

    if not os.path.exists(path):
        raise VideoError(f"{path}: no such file; check the path (relative to {os.getcwd()}).")
    if os.path.isdir(path):
        raise VideoError(f"{path}: is a folder, not a video file; for a folder of frames give frames_dir and its fps.")
    if os.path.getsize(path) == 0:
        raise VideoError(f"{path}: the file is empty; copy or download it again.")
    try:
        container = av.open(path)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: not a readable video ({error}); copy it again, or convert it to mp4.") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or av.stream.Disposition.attached_pic in stream.disposition:
            raise VideoError(
                f"{path}: has no video stream (audio only?); leave it out, or give the file with pictures."
            )
        # Not slice threads, PyAV's default: with them FFmpeg does not tell which h264 pictures are damaged.
        stream.thread_type = "AUTO"
        yield container, stream


def header_duration_s(container: "av.container.InputContainer", stream: "av.VideoStream") -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Where only the file has a duration (Matroska), it is the time of the end, so a late start is part of it.
    return (container.duration - max(container.start_time or 0, 0)) / 1e6


def decode(
    container: "av.container.InputContainer", stream: "av.VideoStream", faults: list[str]
) -> Iterator["av.VideoFrame"]:
    """All frames that can be decoded. What the decoder complains about goes into `faults`, and decoding goes on."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = [] if packet is None else packet.decode()
        except av.FFmpegError as error:
            faults.append(error.strerror)
            continue  # a failed demux leaves `packets` exhausted, so this ends
        for frame in frames:
            if frame.is_corrupt:
                faults.append(f"damaged picture at {frame.time} s")
            yield frame
        if packet is None:
            break
    try:
        yield from stream.decode(None)  # what the decoder still holds where the file broke off without a last packet
    except av.FFmpegError:
        pass  # the decoder was already empty


def load_pyav(sampling: Sampling, buffer: FrameBuffer, header_s: float | None) -> tuple[float | None, list[str]]:
    planned_s = None
    if sampling.needs_total:
        crop_is_inside = header_s is not None and sampling.end_s <= header_s
        planned_s = header_s if crop_is_inside else _demuxed_duration_s(sampling.path)
    notes: list[str] = []
    times_s = None
    try:
        total_s, faults = _sample_stream(sampling, buffer, header_s, planned_s, times_s)
    except _UnorderedTimestampsError:
        buffer.clear()
        times_s, note = _sorted_times(sampling.path)
        notes.append(note)
        total_s, faults = _sample_stream(sampling, buffer, header_s, planned_s, times_s)
    if planned_s is not None and total_s is not None:
        if abs(min(total_s, sampling.end_s) - min(planned_s, sampling.end_s)) > TOLERANCE_S:
            # Less (or more) decodes than the packets promised: spread the targets over what there is.
            buffer.clear()
            total_s, faults = _sample_stream(sampling, buffer, header_s, total_s, times_s)
    if faults:
        notes.append(f"the decoder reports {len(faults)} faults (the first: {faults[0]}); pictures may show damage")
    return total_s, notes


def _sample_stream(
    sampling: Sampling,
    buffer: FrameBuffer,
    header_s: float | None,
    planned_s: float | None,
    times_s: np.ndarray | None,
) -> tuple[float | None, list[str]]:
    """One pass of decoding. Only sampled frames are converted and kept; the others live until the next one comes."""
    if planned_s is not None or math.isfinite(sampling.end_s):
        targets_s = iter(sampling.targets_s(sampling.end_s if planned_s is None else planned_s).tolist())
    else:
        targets_s = (sampling.start_s + k / sampling.fps for k in itertools.count())
    target_s = next(targets_s, None)
    last_s = gap_s = 0.0
    last_frame = None
    faults: list[str] = []
    with closing(_timed_frames(sampling.path, sampling.start_s, times_s, faults)) as timed_frames:
        for time_s, frame in timed_frames:
            # Only the next frame tells that the last one was the last at or before the target.
            if last_frame is not None and target_s is not None and time_s > target_s + TOLERANCE_S:
                buffer.add(last_s, last_frame)
                while target_s is not None and time_s > target_s + TOLERANCE_S:
                    target_s = next(targets_s, None)
            if time_s >= sampling.end_s:
                if not buffer.times_s:  # a crop shorter than the tolerance
                    buffer.add(last_s, last_frame)
                return None, faults
            gap_s = time_s - last_s
            last_s, last_frame = time_s, frame
    if last_frame is None:
        raise nothing_decodable(sampling.path)
    stated_s = float((last_frame.duration or 0) * last_frame.time_base)
    total_s = last_s + _last_duration_s(stated_s, gap_s, last_s, header_s)
    if target_s is not None and (target_s + TOLERANCE_S < total_s or not buffer.times_s):
        buffer.add(last_s, last_frame)
    return total_s, faults


def _timed_frames(
    path: str, start_s: float, times_s: np.ndarray | None, faults: list[str]
) -> Iterator[tuple[float, "av.VideoFrame"]]:
    """
    Yield `(seconds since the video's first frame, frame)`, beginning at or before `start_s`. The times are the
    decoder's, unless `times_s` has one for every frame of the video.
    """
    import av

    def timed(frames: Iterator["av.VideoFrame"], first_pts: int) -> Iterator[tuple[float, "av.VideoFrame"]]:
        last_pts = None
        for frame in frames:
            if frame.pts is None or (last_pts is not None and frame.pts <= last_pts):
                raise _UnorderedTimestampsError
            last_pts = frame.pts
            yield float((frame.pts - first_pts) * frame.time_base), frame

    if start_s > 0 and times_s is None:
        with open_video(path) as (container, stream):
            first = next(decode(container, stream, []), None)
            if first is None:
                return
            if first.pts is None:
                raise _UnorderedTimestampsError
            try:
                container.seek(first.pts + math.floor(start_s / first.time_base), stream=stream)
                frames = timed(decode(container, stream, faults), first.pts)
                landing = next(frames, None)
            except av.FFmpegError:
                landing = None
            if landing is not None and landing[0] <= start_s + TOLERANCE_S:
                yield landing
                yield from frames
                return
        faults.clear()  # the seek failed, or landed too late (no index, or the file ends before): from the beginning
    with open_video(path) as (container, stream):
        frames = decode(container, stream, faults)
        if times_s is not None:
            yield from zip(times_s.tolist(), frames, strict=False)
            return
        first = next(frames, None)
        if first is not None:
            yield from timed(itertools.chain([first], frames), first.pts)


def _demuxed_duration_s(path: str) -> float:
    """What the video should decode to by its packets' timestamps, for the price of reading the file."""
    import av

    starts_s, ends_s = [], []
    with open_video(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                start = packet.dts if packet.pts is None else packet.pts
                if start is not None:
                    starts_s.append(float(start * stream.time_base))
                    ends_s.append(starts_s[-1] + float((packet.duration or 0) * stream.time_base))
        except av.FFmpegError:
            pass  # the file breaks off here; the decoding pass reports it
    return max(ends_s) - min(starts_s) if starts_s else 0.0


def _sorted_times(path: str) -> tuple[np.ndarray, str]:
    """Times of all frames in decode order where the decoder's own are out of order or missing, and what was done."""
    with open_video(path) as (container, stream):
        time_base, rate = float(stream.time_base), stream.average_rate or stream.guessed_rate
        pts = np.array([np.nan if f.pts is None else f.pts for f in decode(container, stream, [])], dtype=np.float64)
    missing = np.isnan(pts)
    if missing.all():
        if not rate:
            raise VideoError(f"{path}: the video has neither timestamps nor a frame rate; convert it to mp4.")
        return np.arange(len(pts)) / float(rate), f"has no timestamps; {float(rate):g} fps is assumed from the header"
    note = "timestamps do not increase: the frames keep decode order and get the sorted timestamps"
    if missing.any():
        index = np.arange(len(pts))
        pts[missing] = np.interp(index[missing], index[~missing], np.sort(pts[~missing]))
        note += f"; {missing.sum()} are missing and interpolated"
    pts.sort()
    return (pts - pts[0]) * time_base, note


def _last_duration_s(stated_s: float, gap_s: float, last_s: float, header_s: float | None) -> float:
    """How long the last frame is on screen: as stated, else as long as the one before it, else to the header's end."""
    if stated_s > 0:
        return stated_s
    if gap_s > 0:
        return gap_s
    return max(TOLERANCE_S, (header_s or 0.0) - last_s)


# torchcodec and decord: random access; frames are fetched a few at a time, so that memory stays bounded


def load_torchcodec(sampling: Sampling, buffer: FrameBuffer, header_s: float | None) -> tuple[float | None, list[str]]:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:  # it also raises RuntimeError where FFmpeg is missing
        raise ImportError(
            "backend='torchcodec' needs `pip install trl_temporal[torchcodec]` and FFmpeg's shared libraries "
            f"(`apt-get install ffmpeg`), or use backend='pyav'. Importing it failed with: {error}"
        ) from error

    errors = (RuntimeError, ValueError, IndexError)
    try:
        decoder = VideoDecoder(sampling.path, seek_mode="exact", dimension_order="NHWC", device="cpu")
        first_s = decoder.get_frame_at(0).pts_seconds
    except errors as error:
        raise _backend_refuses(sampling.path, "torchcodec", error) from error
    begin_s, end_s = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    if abs(first_s - begin_s) > TOLERANCE_S:  # its index and its frames disagree, so no time can be looked up
        return _load_with_pyav_instead("torchcodec", sampling, buffer, header_s)

    def fetch(played_s: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        batch = decoder.get_frames_played_at(played_s.tolist())
        return zip((batch.pts_seconds - first_s).tolist(), batch.data.numpy(), strict=True)

    total_s = end_s - begin_s
    asked_s = np.minimum(begin_s + sampling.targets_s(total_s) + TOLERANCE_S, end_s - 1e-6)
    return total_s, _add_in_batches(buffer, fetch, asked_s, errors)


def load_decord(sampling: Sampling, buffer: FrameBuffer, header_s: float | None) -> tuple[float | None, list[str]]:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ImportError(
            "backend='decord' needs `pip install trl_temporal[decord]`, or use backend='pyav'. "
            f"Importing it failed with: {error}"
        ) from error

    errors = (decord.DECORDError, RuntimeError, IndexError)
    try:
        reader = decord.VideoReader(sampling.path, num_threads=1)
        starts_s, ends_s = reader.get_frame_timestamp(np.arange(len(reader))).astype(np.float64).T
    except errors as error:
        raise _backend_refuses(sampling.path, "decord", error) from error
    times_s = starts_s - starts_s[0]
    if np.abs(starts_s).max() > 1e9 or (np.diff(starts_s) <= 0).any():  # e.g. -3.7e17 s, its "no timestamp"
        return _load_with_pyav_instead("decord", sampling, buffer, header_s)
    gap_s = times_s[-1] - times_s[-2] if len(times_s) > 1 else 0.0
    total_s = float(times_s[-1] + _last_duration_s(ends_s[-1] - starts_s[-1], gap_s, times_s[-1], header_s))

    def fetch(indices: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        return zip(times_s[indices].tolist(), reader.get_batch(indices.tolist()).asnumpy(), strict=True)

    return total_s, _add_in_batches(buffer, fetch, choose_frames(times_s, sampling.targets_s(total_s)), errors)


def _load_with_pyav_instead(
    backend: str, sampling: Sampling, buffer: FrameBuffer, header_s: float | None
) -> tuple[float | None, list[str]]:
    total_s, notes = load_pyav(sampling, buffer, header_s)
    return total_s, [f"{backend} has no usable timestamps for it, so PyAV read it", *notes]


def _add_in_batches(
    buffer: FrameBuffer,
    fetch: Callable[[np.ndarray], Iterator[tuple[float, np.ndarray]]],
    asked: np.ndarray,
    errors: tuple[type[Exception], ...],
) -> list[str]:
    """Add what `fetch` gives for `asked`, each frame once. A batch that fails is fetched frame by frame, and noted."""
    failures: list[str] = []
    for first in range(0, len(asked), FETCH_SIZE):
        batch = asked[first : first + FETCH_SIZE]
        try:
            fetched = list(fetch(batch))
        except errors:
            fetched = []
            for one in np.split(batch, len(batch)):
                try:
                    fetched += fetch(one)
                except errors as error:
                    failures.append(_first_line(error))
        for time_s, pixels in fetched:
            if not buffer.times_s or time_s > buffer.times_s[-1]:
                buffer.add_pixels(time_s, pixels)
    if not failures:
        return []
    return [f"{len(failures)} of {len(asked)} sampled frames do not decode (the first: {failures[0]})"]


def _backend_refuses(path: str, backend: str, error: Exception) -> VideoError:
    return VideoError(
        f"{path}: {backend} cannot read it ({_first_line(error)}); it may be damaged or truncated: copy it again, or "
        "use backend='pyav', which reads what there is of it."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
