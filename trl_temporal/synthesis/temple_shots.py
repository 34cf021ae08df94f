# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Shots of a video: where they are, in seconds, and which frames they hold.

A detector is any callable `detect(path) -> [(start_s, end_s), ...]`, in seconds from the video's first frame. A model
that answers in frame numbers, such as TransNetV2, becomes one in a few lines of your own:

```python
def detect_with_transnet(path):
    edges_s = walk_frames(path)  # when each frame comes on screen
    return [(edges_s[first], edges_s[last + 1]) for first, last in transnet_scenes(path)]
```
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..video_backends import (
    _last_duration_s,
    _sorted_times,
    decode,
    header_duration_s,
    nothing_decodable,
    open_video,
)

if TYPE_CHECKING:
    import av

DETECTION_SIDE = 256  # pixels of the longer side: cuts are seen in small pictures


def walk_frames(path: str, see: Callable[[int, "av.VideoFrame"], None] | None = None) -> np.ndarray:
    """
    Decode all of a video, one frame at a time.

    Args:
        path (`str`):
            A local video file.
        see (`Callable[[int, av.VideoFrame], None]`, *optional*):
            Called with the index of each frame in decode order, and the frame.

    Returns:
        `np.ndarray` of shape `(num_frames + 1,)`: when each frame comes on screen, by the decoder's timestamps, and
        when the last one goes, in seconds from the first frame. Timestamps that do not increase are sorted and the
        frames keep decode order, as in [`~trl_temporal.video.load_video`].

    Raises:
        VideoError: If the file is missing, empty, not a video, or without a decodable frame.

    Example:
        >>> from trl_temporal.synthesis.temple_shots import walk_frames
        >>> walk_frames("clip.mp4")  # doctest: +SKIP
        array([0.  , 0.04, 0.08, 0.12])
    """
    ticks, frame = [], None
    with open_video(path) as (container, stream):
        header_s = header_duration_s(container, stream)
        for index, frame in enumerate(decode(container, stream, [])):
            if see is not None:
                see(index, frame)
            ticks.append(frame.pts)
    if frame is None:
        raise nothing_decodable(path)
    time_base = float(frame.time_base)
    if None in ticks or (np.diff(ticks) <= 0).any():
        times_s = _sorted_times(path)[0]
    else:
        times_s = (np.array(ticks) - ticks[0]) * time_base
    last_s = float(times_s[-1])
    gap_s = last_s - float(times_s[-2]) if len(times_s) > 1 else 0.0
    return np.append(times_s, last_s + _last_duration_s((frame.duration or 0) * time_base, gap_s, last_s, header_s))


def detect_shots(path: str) -> list[tuple[float, float]]:
    """
    Find the shots of a video with PySceneDetect's `AdaptiveDetector`: a cut is where the picture changes several times
    more than in the frames around it. It finds cuts, not dissolves.

    Our decoder feeds it, so that times are those of the frames, also where their rate varies.

    Args:
        path (`str`):
            A local video file.

    Returns:
        `list[tuple[float, float]]`: start and end of each shot in seconds from the first frame. They cover the video.

    Raises:
        VideoError: If the video cannot be read.
        ImportError: If PySceneDetect is not installed.

    Example:
        >>> from trl_temporal.synthesis.temple_shots import detect_shots
        >>> detect_shots("clip.mp4")  # doctest: +SKIP
        [(0.0, 1.2), (1.2, 3.04)]
    """
    from av.video.reformatter import VideoReformatter

    try:
        from scenedetect import AdaptiveDetector, FrameTimecode
    except ImportError as error:
        raise ImportError(
            "finding shots needs `pip install trl_temporal[temple]`, or a detector of your own (--detector)"
        ) from error

    # One frame: a cut right behind another counts too. Shots that are too short are dropped later, not merged.
    detector = AdaptiveDetector(min_scene_len=1)
    reformatter = VideoReformatter()
    cuts: list[FrameTimecode] = []
    size: list[int] = []

    def see(index: int, frame: "av.VideoFrame") -> None:
        if not size:  # of the first frame: where the picture changes its size, the detector still compares like sizes
            scale = min(1.0, DETECTION_SIDE / max(frame.width, frame.height))
            size.extend(max(1, round(side * scale)) for side in (frame.width, frame.height))
        small = reformatter.reformat(frame, *size, format="bgr24", interpolation="AREA")
        # It only counts frames: the rate has no meaning here.
        cuts.extend(detector.process_frame(FrameTimecode(index, fps=25.0), small.to_ndarray()))

    edges_s = walk_frames(path, see)
    starts = [0, *(cut.frame_num for cut in cuts), len(edges_s) - 1]
    return [(float(edges_s[a]), float(edges_s[b])) for a, b in zip(starts, starts[1:], strict=False)]


def shots_in_frames(shots_s: Sequence[tuple[float, float]], edges_s: np.ndarray) -> np.ndarray:
    """
    Which frames the shots hold. A cut belongs to the nearest frame, so that rounded seconds find theirs.

    Args:
        shots_s (`Sequence[tuple[float, float]]`):
            What a detector found, in order: seconds from the first frame.
        edges_s (`np.ndarray` of shape `(num_frames + 1,)`):
            See [`walk_frames`].

    Returns:
        `np.ndarray` of shape `(num_shots, 2)`: first frame of each shot, and the one behind its last.

    Raises:
        `ValueError`: a shot ends before it starts, begins before the one before it ends, or is not of finite seconds.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.temple_shots import shots_in_frames
        >>> shots_in_frames([(0.0, 0.41), (0.41, 1.0)], np.arange(6) / 5)
        array([[0, 2],
               [2, 5]])
    """
    seconds = np.asarray(shots_s, dtype=np.float64)
    if seconds.ndim != 2 or seconds.shape[1] != 2:
        raise ValueError(f"the detector gave {shots_s!r:.80}; shots are (start_s, end_s)")
    frames = np.searchsorted((edges_s[1:] + edges_s[:-1]) / 2, seconds)
    wrong = ~np.isfinite(seconds).all(axis=1) | (seconds[:, 1] < seconds[:, 0])
    wrong[1:] |= frames[1:, 0] < frames[:-1, 1]
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(
            f"shot {index} of the detector is {tuple(seconds[index].tolist())}; shots are (start_s, end_s) in order "
            "that do not overlap, in seconds from the video's first frame"
        )
    return frames
