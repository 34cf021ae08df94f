# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Videos as strips of thumbnails, with intervals and similarity curves on the same time axis."""

import base64
import difflib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ..data.grammar import EVI, normalize, split_response
from ..evaluation.evaluator import EvaluationResult
from ..evaluation.metrics.dense_caption import match_captions
from ..evaluation.metrics.grounding import scored_spans, truth_spans
from ..evaluation.metrics.qa import question_text
from ..video import Video, load_row_video
from .curves import nice_ticks

if TYPE_CHECKING:
    from ..evaluation.generation import GroundedAnswer

NUM_THUMBNAILS = 12
THUMBNAIL_WIDTH = 128
# Colours of the events in style.css.j2; later events start over.
NUM_COLOURS = 7

Interval = Sequence[float]


def read_thumbnails(entry: str | dict) -> Video:
    """Decode just the frames of a strip: the default reader of the report."""
    return load_row_video(entry, num_frames=NUM_THUMBNAILS)


def strip_jpeg(video: Video) -> str:
    """
    The frames of a video side by side, evenly spread over its duration.

    Args:
        video ([`~trl_temporal.video.Video`]):
            Frames with timestamps.

    Returns:
        `str`: a JPEG as a `data:` URL.
    """
    middles_s = (np.arange(NUM_THUMBNAILS) + 0.5) / NUM_THUMBNAILS * video.duration_s
    on_screen = np.searchsorted(video.timestamps_s, middles_s + 1e-6, side="right") - 1
    height, width = video.frames.shape[1:3]
    size = THUMBNAIL_WIDTH, int(np.clip(THUMBNAIL_WIDTH * height / width, 64, 144))
    strip = Image.new("RGB", (NUM_THUMBNAILS * size[0], size[1]))
    for place, index in enumerate(np.maximum(on_screen, 0)):
        strip.paste(ImageOps.fit(Image.fromarray(video.frames[index]), size), (place * size[0], 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=78, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def time_axis(duration_s: float) -> list[dict]:
    """Ticks of a time axis: position in percent of the duration, and label in seconds."""
    return [{"left": 100 * tick / duration_s, "label": f"{tick:g}"} for tick in nice_ticks(0, duration_s, count=8)]


def seconds(span: Interval) -> str:
    """An interval as it is shown: `2.0–3.5 s`."""
    start_s, end_s = span
    return f"{start_s:.1f}–{end_s:.1f} s"


def bars(spans: Sequence[Interval], duration_s: float) -> list[dict]:
    """Intervals as bars: left edge and width in percent of the duration, number and colour of the event."""
    return [
        {
            "left": 100 * min(start_s / duration_s, 1),
            "width": 100 * max(min(end_s, duration_s) - start_s, 0) / duration_s,
            "number": index + 1,
            "colour": index % NUM_COLOURS,
            "title": seconds((start_s, end_s)),
        }
        for index, (start_s, end_s) in enumerate(spans)
    ]


def salience_curves(answer: "GroundedAnswer", duration_s: float, threshold: float) -> list[dict]:
    """
    The similarity of every `<evi>` to every frame as step curves: frame i lasts until frame i + 1.

    Args:
        answer (`GroundedAnswer`):
            Answer with `salience` of shape `(E, T)` and `timestamps_s` of shape `(T,)`.
        duration_s (`float`):
            Length of the time axis in seconds.
        threshold (`float`):
            Share of its maximum from which a frame counts as salient.

    Returns:
        `list[dict]`: `points` and `threshold` in a box of 1000 by 100 with 0 at the bottom, `stage` and `colour`.
    """
    edges = np.append(answer.timestamps_s, answer.duration_s) / duration_s * 1000
    x = np.repeat(edges, 2)[1:-1]
    curves = []
    for index, similarity in enumerate(np.asarray(answer.salience, dtype=float)):
        is_evidence = index < len(answer.evidence)
        number = index if is_evidence else index - len(answer.evidence)
        y = 100 - 94 * np.repeat(similarity, 2)
        curves.append(
            {
                "points": " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True)),
                "threshold": round(100 - 94 * threshold * float(similarity.max()), 1),
                "stage": "evidence" if is_evidence else "answer",
                "colour": number % NUM_COLOURS,
            }
        )
    return curves


def text_parts(text: str, spans: Sequence[Interval]) -> list[dict]:
    """
    A response with its intervals filled in.

    Args:
        text (`str`):
            Response text with `<evi>`.
        spans (`Sequence`):
            The interval of every `<evi>`, in order; an `<evi>` without one reads `?`.

    Returns:
        `list[dict]`: parts with either `text`, or `interval` and `colour`.
    """
    parts = []
    for index, piece in enumerate(text.split(EVI)):
        if index:
            interval = seconds(spans[index - 1]) if index <= len(spans) else "?"
            parts.append({"interval": interval, "colour": (index - 1) % NUM_COLOURS})
        if piece:
            parts.append({"text": piece})
    return parts


def message_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Text of the last message."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def choose_rows(rows: Sequence[Mapping], num_examples: int) -> list[int]:
    """
    Rows to show: as many of every task, evenly spread over the list, never by their result.

    Args:
        rows (`Sequence[Mapping]`):
            Evaluated rows.
        num_examples (`int`):
            How many to choose.

    Returns:
        `list[int]`: indices, tasks in turn.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    of_task = [[index for index, row in enumerate(rows) if row["task"] == task] for task in tasks]
    chosen = []
    for place, indices in enumerate(of_task):
        share = num_examples // len(tasks) + (place < num_examples % len(tasks))
        share = min(share, len(indices))
        # Another phase for every task, so that the tasks show different videos.
        phase = (place + 0.5) / len(tasks)
        chosen.append([indices[int((k + phase) / share * len(indices))] for k in range(share)])
    longest = max(map(len, chosen), default=0)
    return [indices[k] for k in range(longest) for indices in chosen if k < len(indices)]


def _verdict(row: Mapping, result: EvaluationResult, index: int) -> str:
    answer = result.answers[index]
    counts = f"{len(scored_spans(answer))}/{len(truth_spans(row))} intervals"
    if row["task"] == "grounding":
        return f"F1 {result.per_row['grounding_f1'][index]:.2f}, {counts}"
    if row["task"] == "dense":
        pairs = match_captions(row, answer)
        exact = sum(normalize(truth) == normalize(predicted or "") for truth, predicted in pairs)
        return f"F1 {result.per_row['dense_f1'][index]:.2f}, {counts}, {exact}/{len(pairs)} captions right"
    words = "right" if result.per_row["qa_exact_match"][index] else "wrong"
    return f"{words}, evidence F1 {result.per_row['qa_evidence_f1'][index]:.2f}"


def example(
    row: Mapping,
    index: int,
    results: Mapping[str, EvaluationResult],
    read_video: Callable[[str | dict], Video],
    threshold: float,
) -> dict:
    """
    What the template needs to draw one evaluated row.

    Args:
        row (`Mapping`):
            The row.
        index (`int`):
            Its place among the evaluated rows.
        results (`Mapping[str, EvaluationResult]`):
            Results by model name.
        read_video (`Callable`):
            Reader of an entry of `videos`.
        threshold (`float`):
            Share of its maximum from which a frame counts as salient.

    Returns:
        `dict`
    """
    video = read_video(row["videos"][0])
    truth = truth_spans(row)
    models = []
    for name, result in results.items():
        answer = result.answers[index]
        models.append(
            {
                "name": name,
                "evidence": bars(answer.evidence, video.duration_s),
                "response": bars(answer.response, video.duration_s),
                "curves": salience_curves(answer, video.duration_s, threshold),
                "parts": text_parts(answer.text, [list(span) for span in answer.response]),
                "verdict": _verdict(row, result, index),
            }
        )
    return {
        "id": row.get("id") or f"row {index}",
        "task": row["task"],
        "question": question_text(row),
        "duration_s": video.duration_s,
        "strip": strip_jpeg(video),
        "ticks": time_axis(video.duration_s),
        "truth": bars(truth, video.duration_s),
        "truth_parts": text_parts(split_response(message_text(row["completion"]))[1], truth),
        "models": models,
    }


def _tokens(text: str, spans: Sequence[Interval]) -> list[dict]:
    """Parts of [`text_parts`] with every word, and every white space between them, as a part of its own."""
    tokens = []
    for part in text_parts(text, spans):
        tokens += [part] if "interval" in part else [{"text": word} for word in re.findall(r"\s+|\S+", part["text"])]
    return tokens


def mark_difference(
    chosen: tuple[str, Sequence[Interval]], rejected: tuple[str, Sequence[Interval]]
) -> tuple[list[dict], list[dict]]:
    """
    Two responses as tokens, with those marked that the other one does not have.

    Args:
        chosen (`tuple[str, Sequence]`):
            Response text and its intervals.
        rejected (`tuple[str, Sequence]`):
            The same of the other response.

    Returns:
        `tuple[list[dict], list[dict]]`: parts with `text`, or `interval` and `colour`, and `changed`.
    """
    sides = _tokens(*chosen), _tokens(*rejected)
    a, b = ([token for token in tokens if not token.get("text", "-").isspace()] for tokens in sides)
    keys = [[token.get("text") or (token["interval"],) for token in tokens] for tokens in (a, b)]
    for kind, a_start, a_end, b_start, b_end in difflib.SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        for token in a[a_start:a_end] + b[b_start:b_end]:
            token["changed"] = kind != "equal"
    return sides


def preference_pair(row: Mapping, read_video: Callable[[str | dict], Video]) -> dict:
    """
    What the template needs to draw one preference pair.

    Args:
        row (`Mapping`):
            Preference row.
        read_video (`Callable`):
            Reader of an entry of `videos`.

    Returns:
        `dict`
    """
    video = read_video(row["videos"][0])
    arguments = json.loads(row.get("factor_args") or "{}", parse_float=lambda number: round(float(number), 2))
    texts = [split_response(message_text(row[side]))[1] for side in ("chosen", "rejected")]
    spans = [list(row[f"{side}_spans"]) for side in ("chosen", "rejected")]
    parts = mark_difference((texts[0], spans[0]), (texts[1], spans[1]))
    lanes = [bars(side, video.duration_s) for side in spans]
    for lane, other in (lanes, lanes[::-1]):
        for bar in lane:
            bar["changed"] = bar["title"] not in [other_bar["title"] for other_bar in other]
    return {
        "factor": row["factor"],
        "arguments": {name: json.dumps(value) for name, value in arguments.items()},
        "question": question_text(row),
        "duration_s": video.duration_s,
        "strip": strip_jpeg(video),
        "ticks": time_axis(video.duration_s),
        "sides": [
            {"name": "chosen", "parts": parts[0], "bars": lanes[0]},
            {"name": "rejected", "parts": parts[1], "bars": lanes[1]},
        ],
    }
