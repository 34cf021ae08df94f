# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Spans of time in seconds: the only unit that crosses a public boundary of this package."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_SPAN_TEXT = re.compile(r"\s*(\d+(?:\.\d*)?)\s*s?\s*[-–]\s*(\d+(?:\.\d*)?)\s*s?\s*")


@dataclass(frozen=True, order=True)
class Span:
    """
    The half-open interval `[start_s, end_s)` of a video, in seconds from its first frame.

    Args:
        start_s (`float`):
            Start in seconds, at least 0.
        end_s (`float`):
            End in seconds, after `start_s`.

    Raises:
        ValueError: If a bound is not finite, `start_s` is negative, or the span is empty or reversed.

    Example:
        >>> span = Span(12, 15.5)
        >>> str(span), span.duration_s, list(span)
        ('12.0s - 15.5s', 3.5, [12.0, 15.5])
    """

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        # Plain floats, whatever came in (int, numpy scalar), so that a span prints and serialises the same way.
        object.__setattr__(self, "start_s", float(self.start_s))
        object.__setattr__(self, "end_s", float(self.end_s))
        if not (math.isfinite(self.start_s) and math.isfinite(self.end_s)):
            raise ValueError(f"A span needs finite bounds, but got start_s={self.start_s} and end_s={self.end_s}.")
        if self.start_s < 0:
            raise ValueError(f"A span starts at 0 s or later, but got start_s={self.start_s} (end_s={self.end_s}).")
        if self.end_s <= self.start_s:
            raise ValueError(
                f"A span ends after it starts, but got start_s={self.start_s} and end_s={self.end_s}: "
                "swap them if they are reversed, drop the span if it is empty."
            )

    @classmethod
    def parse(cls, text: str) -> "Span":
        """
        Read a span from text such as `"12.0s - 15.5s"`; the unit may be left out.

        Args:
            text (`str`):
                The text, with nothing beside the span.

        Raises:
            ValueError: If the text is not a span.

        Example:
            >>> Span.parse("12.0s - 15.5s")
            Span(start_s=12.0, end_s=15.5)
        """
        match = _SPAN_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a span; write it like '12.0s - 15.5s'.")
        return cls(float(match[1]), float(match[2]))

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s

    @property
    def midpoint_s(self) -> float:
        """Middle of the span in seconds."""
        return self.start_s + self.duration_s / 2

    def iou(self, other: "Span") -> float:
        """Temporal intersection over union with `other`, between 0 and 1."""
        intersection = min(self.end_s, other.end_s) - max(self.start_s, other.start_s)
        if intersection <= 0:
            return 0.0
        # Overlapping spans have no gap between them, so the union is their hull: exactly 1 for equal spans.
        return intersection / (max(self.end_s, other.end_s) - min(self.start_s, other.start_s))

    def clip(self, duration_s: float) -> "Span":
        """
        Cut the span at the end of a video of `duration_s` seconds.

        Raises:
            ValueError: If nothing of the span lies inside the video.
        """
        if self.start_s >= duration_s:
            raise ValueError(
                f"The span {self} lies beyond the end of the video ({duration_s} s): nothing is left of it."
            )
        return Span(self.start_s, min(self.end_s, duration_s))

    def shift(self, delta_s: float) -> "Span":
        """
        Move the span by `delta_s` seconds (negative: earlier).

        Raises:
            ValueError: If the span would start before 0.
        """
        return Span(self.start_s + delta_s, self.end_s + delta_s)

    def __iter__(self) -> Iterator[float]:
        yield self.start_s
        yield self.end_s

    def __str__(self) -> str:
        """The span to the millisecond, with at least one decimal: `"12.0s - 15.5s"`."""
        return f"{_seconds(self.start_s)}s - {_seconds(self.end_s)}s"


def iou_matrix(a: Sequence["Span | Sequence[float]"], b: Sequence["Span | Sequence[float]"]) -> "np.ndarray":
    """
    Temporal IoU of every span of `a` with every span of `b`.

    Args:
        a (`Sequence[Span | Sequence[float]]`):
            Spans, or `[start_s, end_s]` pairs.
        b (`Sequence[Span | Sequence[float]]`):
            The same.

    Returns:
        `np.ndarray` of shape `(len(a), len(b))`, float64, values between 0 and 1.

    Raises:
        ValueError: If a pair is not a valid span.

    Example:
        >>> iou_matrix([[0, 2], [1, 3]], [[0, 2]]).round(2).tolist()
        [[1.0], [0.33]]
    """
    import numpy as np

    # Through Span, so that a reversed pair is an error here too and never a negative length.
    a_start, a_end = np.array([list(Span(*span)) for span in a], dtype=np.float64).reshape(-1, 2).T[:, :, None]
    b_start, b_end = np.array([list(Span(*span)) for span in b], dtype=np.float64).reshape(-1, 2).T[:, None, :]
    intersection = np.maximum(np.minimum(a_end, b_end) - np.maximum(a_start, b_start), 0)
    return intersection / (np.maximum(a_end, b_end) - np.minimum(a_start, b_start))


def _seconds(value_s: float) -> str:
    text = f"{value_s:.3f}".rstrip("0")
    return text + "0" if text.endswith(".") else text
