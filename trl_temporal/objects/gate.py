# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
When tracking starts: the AND gate over the nouns and its persistence, Eq. 2-4 of Grounded-VideoDiT, and what happens
where it never opens. Its longest open run is the paper's baseline for a span (Step 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..spans import Span
from .masks import box_iou

# What Hugging Face's post-processing and the tracking demos of Grounded-SAM-2 take; the paper names no value.
DETECTION_THRESHOLD = 0.25
PERSISTENCE = 3  # frames of 96; the paper names no value
FLOOR = 0.1  # of the least certain noun in the best frame, where no frame passes the thresholds
SAME_BOX_IOU = 0.9  # two nouns of one thing


@dataclass(frozen=True)
class GateDecision:
    """
    Where tracking starts and what was given up for it.

    Attributes:
        start (`int` or `None`):
            Frame in which the objects are seeded (`t_s`); `None` if none are tracked.
        used (`tuple[int, ...]`):
            Indices of the nouns that are tracked.
        gate (`np.ndarray` of shape `(num_frames,)`, bool):
            `g_t` over those nouns, Eq. 3; closed everywhere without any.
        status (`str`):
            `"ok"`, or what was done, in order, with `;` between: `"no_nouns"`, `"partial:<noun>"` (that noun is seen
            nowhere and left out), `"persistence:<k>"` (only k frames in a row pass), `"floor"` (no frame passes: the
            best one), `"not_found"` (nothing is tracked).
    """

    start: int | None
    used: tuple[int, ...]
    gate: np.ndarray
    status: str


def thresholds_of(nouns: Sequence[str], threshold: float | Mapping[str, float] = DETECTION_THRESHOLD) -> np.ndarray:
    """
    The threshold `tau_i` of each noun.

    Args:
        nouns (`Sequence[str]`):
            Nouns.
        threshold (`float` or `Mapping[str, float]`, *optional*, defaults to `0.25`):
            One for all, or of each noun; nouns that a mapping does not name have 0.25.

    Returns:
        `np.ndarray` of shape `(num_nouns,)`, float64.

    Raises:
        `ValueError`: a threshold is not above 0 and at most 1.

    Example:
        >>> from trl_temporal.objects.gate import thresholds_of
        >>> thresholds_of(["dog", "red frisbee"], {"dog": 0.4}).tolist()
        [0.4, 0.25]
    """
    named = threshold if isinstance(threshold, Mapping) else dict.fromkeys(nouns, threshold)
    for noun, value in named.items():
        if not 0 < value <= 1:
            raise ValueError(f"the detection threshold of {noun!r} is {value}; scores lie in 0 to 1: use 0 < tau <= 1")
    return np.array([named.get(noun, DETECTION_THRESHOLD) for noun in nouns], dtype=np.float64)


def and_gate(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Whether all nouns are detected in a frame, Eq. 3: `g_t = prod_i 1[s_{i,t} >= tau_i]`.

    The product over no nouns would be 1 in every frame, and tracking of nothing would start; here it is closed.

    Args:
        scores (`np.ndarray` of shape `(num_frames, num_nouns)`):
            The best score of each noun in each frame, Eq. 2.
        thresholds (`np.ndarray` of shape `(num_nouns,)`):
            See [`thresholds_of`].

    Returns:
        `np.ndarray` of shape `(num_frames,)`, bool.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.gate import and_gate
        >>> and_gate(np.array([[0.9, 0.1], [0.3, 0.25]]), np.array([0.25, 0.25])).tolist()
        [False, True]
    """
    if scores.shape[1] == 0:
        return np.zeros(len(scores), dtype=bool)
    return (scores >= thresholds).all(axis=1)


def persistent(gate: np.ndarray, num_frames: int) -> np.ndarray:
    """
    Where a gate stays open, Eq. 4: `Gamma_t = prod_{u<K} g_{t+u}`. The window has to end inside the video.

    Args:
        gate (`np.ndarray` of shape `(num_frames,)`, bool):
            `g_t`.
        num_frames (`int`):
            `K`, how many frames in a row; in a shorter video all of its frames.

    Returns:
        `np.ndarray` of shape `(num_frames,)`, bool: whether K open frames start here.

    Raises:
        `ValueError`: K is below 1.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.gate import persistent
        >>> persistent(np.array([True, False, True, True]), 2).tolist()
        [False, False, True, False]
    """
    if num_frames < 1:
        raise ValueError(f"the persistence of the gate is {num_frames} frames; it has to be 1 or more")
    starts = np.zeros(len(gate), dtype=bool)
    if len(gate):
        window = min(num_frames, len(gate))
        windows = np.lib.stride_tricks.sliding_window_view(gate, window)
        starts[: len(windows)] = windows.all(axis=1)
    return starts


def find_start(
    scores: np.ndarray,
    nouns: Sequence[str],
    threshold: float | Mapping[str, float] = DETECTION_THRESHOLD,
    persistence: int = PERSISTENCE,
    floor: float = FLOOR,
    strict: bool = False,
) -> GateDecision:
    """
    Find the frame in which tracking starts: the first with all nouns over `persistence` frames in a row (Eq. 3-4).

    Where there is none, a noun that no frame shows is left out; then fewer frames in a row are enough; then the frame
    whose least certain noun is most certain, if that is `floor` or more; else nothing is tracked. The status records
    each step.

    Args:
        scores (`np.ndarray` of shape `(num_frames, num_nouns)`):
            The best score of each noun in each frame, 0 to 1 (Eq. 2).
        nouns (`Sequence[str]`):
            The nouns.
        threshold (`float` or `Mapping[str, float]`, *optional*, defaults to `0.25`):
            `tau`, see [`thresholds_of`].
        persistence (`int`, *optional*, defaults to `3`):
            `K` in frames.
        floor (`float`, *optional*, defaults to `0.1`):
            Score that the least certain noun of the fallback frame needs.
        strict (`bool`, *optional*, defaults to `False`):
            As in the paper: no start but by Eq. 3-4 over all nouns.

    Returns:
        [`GateDecision`]

    Raises:
        `ValueError`: scores and nouns do not fit, there is no frame, or a score is not a number from 0 to 1.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.gate import find_start
        >>> scores = np.array([[0.9, 0.0], [0.8, 0.0], [0.7, 0.1]])
        >>> decision = find_start(scores, ["dog", "kite"], persistence=2)
        >>> decision.start, decision.used, decision.status
        (0, (0,), 'partial:kite')
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(nouns):
        raise ValueError(f"scores have shape {scores.shape}; for {len(nouns)} nouns they need (frames, {len(nouns)})")
    if len(scores) == 0:
        raise ValueError("there is no frame to look for the nouns in")
    if not ((scores >= 0) & (scores <= 1)).all():  # a NaN is neither
        raise ValueError("the scores are not numbers from 0 to 1; pass probabilities, not logits")
    thresholds = thresholds_of(nouns, threshold)
    closed = np.zeros(len(scores), dtype=bool)
    if len(nouns) == 0:
        return GateDecision(None, (), closed, "no_nouns")

    every = tuple(range(len(nouns)))
    seen = tuple(np.flatnonzero((scores >= thresholds).any(axis=0)).tolist())
    used = seen if seen and not strict else every
    notes = [f"partial:{nouns[index]}" for index in every if index not in used]
    gate = and_gate(scores[:, used], thresholds[list(used)])
    longest = min(persistence, len(scores))
    for length in (longest,) if strict else range(longest, 0, -1):
        starts = persistent(gate, length)
        if starts.any():
            notes += [f"persistence:{length}"] if length < longest else []
            return GateDecision(int(starts.argmax()), used, gate, ";".join(notes) or "ok")
    weakest = scores[:, used].min(axis=1)
    best = int(weakest.argmax())
    if not strict and weakest[best] >= floor:
        return GateDecision(best, used, gate, ";".join([*notes, "floor"]))
    return GateDecision(None, (), gate, ";".join([*notes, "not_found"]))


def longest_run(gate: np.ndarray, min_frames: int = 1) -> tuple[int, int] | None:
    """
    The longest run of open frames, Step 5 of the paper; the first of equal ones.

    Args:
        gate (`np.ndarray` of shape `(num_frames,)`, bool):
            `g_t`.
        min_frames (`int`, *optional*, defaults to `1`):
            `L`, the shortest run that counts.

    Returns:
        `tuple[int, int]` or `None`: its first and last frame.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.gate import longest_run
        >>> longest_run(np.array([True, False, True, True, False]))
        (2, 3)
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], gate, [False]]).astype(np.int8)))
    first, behind = edges[::2], edges[1::2]
    if len(first) == 0:
        return None
    longest = int((behind - first).argmax())
    if behind[longest] - first[longest] < min_frames:
        return None
    return int(first[longest]), int(behind[longest]) - 1


def gate_span(gate: np.ndarray, timestamps_s: np.ndarray, duration_s: float, min_frames: int = 1) -> Span | None:
    """
    The span baseline of Step 5: [`longest_run`] in seconds. Frames a to b are on screen from `t_a` up to `t_{b+1}`,
    and the last one up to the end.

    Args:
        gate (`np.ndarray` of shape `(num_frames,)`, bool):
            `g_t`.
        timestamps_s (`np.ndarray` of shape `(num_frames,)`):
            When each frame comes on screen, in seconds.
        duration_s (`float`):
            Length of the video in seconds.
        min_frames (`int`, *optional*, defaults to `1`):
            `L` in frames.

    Returns:
        [`~trl_temporal.spans.Span`] or `None`: nothing if no run is long enough.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.gate import gate_span
        >>> gate_span(np.array([False, True, True]), np.array([0.0, 1.0, 2.0]), 2.5)
        Span(start_s=1.0, end_s=2.5)
    """
    run = longest_run(gate, min_frames)
    if run is None:
        return None
    edges_s = np.append(timestamps_s, duration_s)
    return Span(float(edges_s[run[0]]), float(edges_s[run[1] + 1]))


def order_objects(scores: np.ndarray, boxes: np.ndarray) -> list[int]:
    """
    Which objects get a token of their own, best first: by their mean score, and of two nouns that share a box the
    better alone. A model with N object tokens takes the first N.

    Args:
        scores (`np.ndarray` of shape `(num_frames, num_objects)`):
            Scores of Eq. 2.
        boxes (`np.ndarray` of shape `(num_objects, 4)`):
            Boxes in the frame where tracking starts: left, top, right, bottom.

    Returns:
        `list[int]`: indices of objects.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.objects.gate import order_objects
        >>> boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.99], [0, 0, 0.2, 0.2]])
        >>> order_objects(np.array([[0.5, 0.9, 0.3]]), boxes)
        [1, 2]
    """
    same = box_iou(boxes, boxes) > SAME_BOX_IOU
    kept: list[int] = []
    for index in np.argsort(-scores.mean(axis=0), kind="stable").tolist():
        if not same[index, kept].any():
            kept.append(index)
    return kept
