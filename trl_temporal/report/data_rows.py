# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Rows of a data set as the data browser draws them: spans and words, and how two responses differ in them."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..data.grammar import EVI, split_response
from ..data.row_checks import RESPONSES
from ..data.schema import RowError, validate_row
from ..evaluation.metrics.qa import question_text
from .curves import nice_ticks
from .timeline import NUM_COLOURS, mark_difference, message_text, seconds, text_parts

Interval = Sequence[float]  # [start_s, end_s]

# Spans are equal if both edges are this near: whole milliseconds may have been written as float32.
SAME_S = 0.005
# Times beyond this are faults, and would only make a timeline of nothing else.
LONGEST_S = 1e7
SHORTEST_AXIS_S = 0.001
RAW_CHARACTERS = 4000


class Aligned(NamedTuple):
    """
    A span, and what became of it in the other response.

    Args:
        kind (`str`):
            `"same"`, `"moved"` (another start or end), `"added"`, `"removed"` or `"merged"`.
        label (`str`):
            Number of the event in the chosen response, from 1; `"2∪3"` for two that were merged, `""` for an added
            one.
        detail (`str`):
            The change in words.
    """

    kind: str
    label: str
    detail: str


def align_spans(
    chosen: Sequence[Interval], rejected: Sequence[Interval]
) -> tuple[list[Aligned], list[Aligned], list[int]]:
    """
    Say what happened to every span between two responses, from the times alone.

    Equal spans belong together first. Of the others, a rejected one that runs from the start to the end of several
    chosen ones is their merge. What is then left is paired in order if there are as many on both sides, else where it
    overlaps; the rest was removed or added.

    Args:
        chosen (`Sequence` of `[start_s, end_s]`):
            Spans of the better response.
        rejected (`Sequence` of `[start_s, end_s]`):
            Spans of the worse response.

    Returns:
        `tuple[list[Aligned], list[Aligned], list[int]]`: of every chosen span, of every rejected span, and the indices
        of the chosen spans that the rejected response does not have in their place.

    Example:

    ```python
    >>> from trl_temporal.report.data_rows import align_spans
    >>> _, rejected, missing = align_spans([[0, 2], [3, 5]], [[0, 2], [7, 9]])
    >>> [span.kind for span in rejected], rejected[1].detail, missing
    (['same', 'moved'], 'moved by +4.0 s', [1])
    ```
    """
    of_chosen: dict[int, Aligned] = {}
    of_rejected: dict[int, Aligned] = {}

    def left() -> tuple[list[int], list[int]]:
        return (
            [i for i in range(len(chosen)) if i not in of_chosen],
            [j for j in range(len(rejected)) if j not in of_rejected],
        )

    def pair(i: int, j: int, kind: str, detail: str) -> None:
        of_chosen[i] = of_rejected[j] = Aligned(kind, str(i + 1), detail)

    for j in range(len(rejected)):
        for i in left()[0]:
            if _near(chosen[i][0], rejected[j][0]) and _near(chosen[i][1], rejected[j][1]):
                pair(i, j, "same", "")
                break

    for j in left()[1]:
        start_s, end_s = rejected[j]
        parts = [i for i in left()[0] if chosen[i][0] >= start_s - SAME_S and chosen[i][1] <= end_s + SAME_S]
        starts_s, ends_s = [chosen[i][0] for i in parts], [chosen[i][1] for i in parts]
        if len(parts) > 1 and _near(min(starts_s), start_s) and _near(max(ends_s), end_s):
            numbers = [str(i + 1) for i in parts]
            detail = f"events {_listed(numbers)} became one"
            of_rejected[j] = Aligned("merged", "∪".join(numbers), detail)
            of_chosen |= {i: Aligned("merged", str(i + 1), detail) for i in parts}

    lefts = left()
    if len(lefts[0]) == len(lefts[1]):
        pairs = list(zip(*lefts, strict=True))
    else:
        overlaps_s = {(i, j): _overlap_s(chosen[i], rejected[j]) for i in lefts[0] for j in lefts[1]}
        pairs = sorted((pair for pair, overlap_s in overlaps_s.items() if overlap_s > 0), key=lambda p: -overlaps_s[p])
    for i, j in pairs:
        if i not in of_chosen and j not in of_rejected:
            pair(i, j, "moved", _move(chosen[i], rejected[j]))

    for i in left()[0]:
        of_chosen[i] = Aligned("removed", str(i + 1), "left out")
    for j in left()[1]:
        of_rejected[j] = Aligned("added", "", "added")
    sides = [of_chosen[i] for i in range(len(chosen))], [of_rejected[j] for j in range(len(rejected))]
    return *sides, [i for i, span in enumerate(sides[0]) if span.kind != "same"]


def _near(a: float, b: float) -> bool:
    return abs(a - b) < SAME_S


def _overlap_s(a: Interval, b: Interval) -> float:
    return min(a[1], b[1]) - max(a[0], b[0])


def _signed(seconds_: float) -> str:
    return f"{seconds_:+.1f} s".replace("-", "−")


def _move(chosen: Interval, rejected: Interval) -> str:
    start_s, end_s = rejected[0] - chosen[0], rejected[1] - chosen[1]
    if abs(start_s - end_s) < 0.05:
        return f"moved by {_signed(start_s)}"
    edges = {"start": start_s, "end": end_s}
    return ", ".join(f"{edge} {_signed(delta_s)}" for edge, delta_s in edges.items() if abs(delta_s) >= SAME_S)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def describe_arguments(factor_args: str | None) -> str:
    """
    The arguments of a factor in words.

    Args:
        factor_args (`str`, *optional*):
            JSON as the synthesis writes it. What is not of this form is shown as it is.

    Returns:
        `str`: events counted from 1, in the order of the chosen response.

    Example:

    ```python
    >>> from trl_temporal.report.data_rows import describe_arguments
    >>> describe_arguments('{"deleted": [0, 2]}')
    'events 1 and 3 left out'
    ```
    """
    try:
        args = json.loads(factor_args or "{}")
    except ValueError:
        return str(factor_args)
    if not isinstance(args, dict):
        return str(factor_args)
    try:
        return _known_arguments(args)
    except (KeyError, TypeError, ValueError):  # another program's
        return " · ".join(f"{name} {_plain(value)}" for name, value in args.items())


def _known_arguments(args: dict[str, Any]) -> str:
    match args:
        case {"shifted": moves}:
            return ", ".join(f"event {move['event'] + 1} moved by {_signed(move['delta_s'])}" for move in moves)
        case {"deleted": events}:
            numbers = [str(event + 1) for event in events]
            return f"event{'s' if len(numbers) > 1 else ''} {_listed(numbers)} left out"
        case {"merged": [first, second]}:
            caption = f", with the words of event {args['kept_caption'] + 1}" if "kept_caption" in args else ""
            return f"events {first + 1} and {second + 1} became one{caption}"
        case {"event": _, "span": span}:
            caption = f", with the words of event {args['neighbour'] + 1} made false" if "neighbour" in args else ""
            return f"an event added at {seconds(span)}{caption}"
        case {"distorted": changes}:
            return ", ".join(
                (f"event {change['event'] + 1}: " if "event" in change else "")
                + _changed_words(change["from"], change["to"])
                for change in changes
            )
        case {"event": event} if len(args) == 1:
            return f"event {event + 1} has the words of event {event}"
    raise ValueError("of no known form")


def _changed_words(before: str, after: str) -> str:
    a, b = before.split(), after.split()
    opcodes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    pairs = [(" ".join(a[i:j]), " ".join(b[k:m])) for kind, i, j, k, m in opcodes if kind != "equal"]
    return ", ".join(
        f"“{old}” → “{new}”" if old and new else f"{'−' if old else '+'} “{old or new}”" for old, new in pairs
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# One row


def row_record(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """
    What the page needs of a row, JSON-able.

    Args:
        row (`Mapping`):
            A row. One that breaks the data contract is shown with its fault; as JSON where it cannot be drawn.
        kind (`str`):
            What it is for, see [`~trl_temporal.data.schema.kind_of`].

    Returns:
        `dict`
    """
    try:
        validate_row(dict(row), kind=kind)
        fault = ""
    except RowError as error:
        fault = str(error)
    record = {
        "fault": fault,
        "id": text_or_empty(row.get("id")),
        "factor": text_or_empty(row.get("factor")),
        "task": text_or_empty(row.get("task")),
    }
    try:
        return record | _drawn(row, kind)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        if not fault:
            raise
        return record | {"raw": json.dumps(row, ensure_ascii=False, default=str, indent=1)[:RAW_CHARACTERS]}


def response_name(column: str) -> str:
    """The column of a response as it is shown."""
    return "response" if column == "completion" else column


def text_or_empty(value: Any) -> str:
    """A value as text; nothing for `None`."""
    return "" if value is None else str(value)


def _drawn(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    duration_s = _duration_s(row)
    responses = [(name, message_text(row[name]), _spans(row, spans)) for name, spans in RESPONSES[kind].items()]
    prompt_spans = drawable_spans(row.get("prompt_spans"))
    ends_s = [span[1] for *_, spans in responses for span in spans] + [span[1] for span in prompt_spans]
    # Without a duration, or with spans beyond it, the axis ends with the last span.
    axis_s = max([duration_s or 0.0, *ends_s])
    axis_s = axis_s if axis_s >= SHORTEST_AXIS_S else 1.0

    texts = [split_response(text)[1] for _, text, _ in responses]
    if len(responses) == 2:
        (*_, chosen), (*_, rejected) = responses
        *aligned, missing = align_spans(chosen, rejected)
        has_captions = row.get("task") == "dense" and [text.count(EVI) for text in texts] == list(map(len, aligned))
        if has_captions:
            parts, aligned = _captions_difference(texts, (chosen, rejected), aligned)
        else:
            parts = mark_difference((texts[0], chosen), (texts[1], rejected))
    else:
        aligned = [[Aligned("same", str(i + 1), "") for i in range(len(spans))] for *_, spans in responses]
        missing = []
        parts = [text_parts(text, spans) for text, (*_, spans) in zip(texts, responses, strict=True)]

    sides = []
    for number, (name, text, spans) in enumerate(responses):
        side = aligned[number]
        bars, lanes = _bars(spans, side, axis_s)
        ghosts = [responses[0][2][i] for i in missing] if name == "rejected" else []
        sides.append(
            {
                "name": response_name(name),
                "bars": bars,
                "lanes": lanes,
                "ghosts": [_place(span, axis_s) for span in ghosts],
                "text": _runs(parts[number], side, is_pair=len(responses) == 2),
                "note": _stage_note(text, row, spans),
            }
        )
    prompt = [Aligned("same", str(i + 1), "") for i in range(len(prompt_spans))]
    prompt_bars, prompt_lanes = _bars(prompt_spans, prompt, axis_s)
    return {
        "source_id": text_or_empty(row.get("source_id")),
        "question": _runs(text_parts(question_text(row), prompt_spans), prompt, is_pair=True),
        "asked": {"bars": prompt_bars, "lanes": prompt_lanes},
        "video": _video_name(row.get("videos")),
        "duration": "no duration" if duration_s is None else f"{duration_s:.1f} s",
        "end": round(100 * duration_s / axis_s, 3) if duration_s and duration_s < axis_s else None,
        "ticks": [[round(100 * tick / axis_s, 3), f"{tick:g}"] for tick in nice_ticks(0, axis_s, count=8)],
        "sides": sides,
        "arguments": describe_arguments(row.get("factor_args")),
    }


def _duration_s(row: Mapping[str, Any]) -> float | None:
    duration_s = row.get("duration")
    is_number = isinstance(duration_s, int | float) and not isinstance(duration_s, bool)
    return float(duration_s) if is_number and SHORTEST_AXIS_S <= duration_s < LONGEST_S else None


def _spans(row: Mapping[str, Any], column: str) -> list[Interval]:
    spans = row.get(column)
    if column == "spans" and row.get("response_spans") is not None:
        spans = row["response_spans"]
    return drawable_spans(spans)


def drawable_spans(spans: Sequence[Any] | None) -> list[Interval]:
    """Spans with two finite edges in order, which can be drawn; the fault of the row names the others."""
    return [
        [float(span[0]), float(span[1])]
        for span in spans or []
        if isinstance(span, Sequence)
        and len(span) == 2
        and all(isinstance(edge, int | float) for edge in span)
        and 0 <= span[0] <= span[1] < LONGEST_S
    ]


def _stage_note(text: str, row: Mapping[str, Any], spans: Sequence[Interval]) -> str:
    """Where the text and its spans do not match, which no timeline shows."""
    num_evidence, response = split_response(text)
    has_two_lists = row.get("response_spans") is not None
    evidence_spans = drawable_spans(row.get("spans")) if has_two_lists else spans
    counts = [("evidence stage", num_evidence, len(evidence_spans)), ("text", response.count(EVI), len(spans))]
    # A stage without any may be left out: the text of an answer need not name its evidence.
    wrong = [
        f"the {stage} has {count} {EVI} for {num_spans} span{'' if num_spans == 1 else 's'}"
        for stage, count, num_spans in counts
        if count not in (0, num_spans)
    ]
    return _listed(wrong) if wrong else ""


def _video_name(videos: Sequence[Any] | None) -> dict[str, str]:
    entry = (videos or [None])[0]
    entry = entry if isinstance(entry, Mapping) else {"path": entry}
    path = text_or_empty(entry.get("path") or entry.get("frames_dir"))
    name = path.replace("\\", "/").rstrip("/").rpartition("/")[2] or "no video name"
    if entry.get("start_s") is not None or entry.get("end_s") is not None:
        edges = [entry.get("start_s") or 0, entry.get("end_s")]
        name += f", {edges[0]:.1f}–{'end' if edges[1] is None else format(edges[1], '.1f') + ' s'}"
    return {"name": name, "path": path}


def _captions_difference(
    texts: Sequence[str], spans: tuple[Sequence[Interval], Sequence[Interval]], aligned: list[list[Aligned]]
) -> tuple[tuple[list[dict], list[dict]], list[list[Aligned]]]:
    """
    The parts of two dense responses, with the words of each event compared with those of the same event. Events of the
    same time with other words become `"reworded"`.
    """
    pieces = [text.split(EVI) for text in texts]
    words = [[_piece_difference(piece, "")[0] for piece in side] for side in pieces]  # all of an unpaired event
    words[0][0], words[1][0] = _piece_difference(pieces[0][0], pieces[1][0])
    aligned = [list(side) for side in aligned]
    for j, there in enumerate(aligned[1]):
        if not there.label:
            continue
        # The words of merged events are those of one of them.
        i = max(
            (int(number) - 1 for number in there.label.split("∪")),
            key=lambda i: difflib.SequenceMatcher(None, pieces[0][i + 1], pieces[1][j + 1], autojunk=False).ratio(),
        )
        words[0][i + 1], words[1][j + 1] = _piece_difference(pieces[0][i + 1], pieces[1][j + 1])
        if there.kind == "same" and any(part["changed"] for part in words[1][j + 1] + words[0][i + 1]):
            aligned[0][i] = aligned[1][j] = there._replace(kind="reworded", detail="other words")
    parts = []
    for side in (0, 1):
        parts.append(list(words[side][0]))
        for span, event_words in zip(spans[side], words[side][1:], strict=True):
            parts[side] += [{"interval": seconds(span)}, *event_words]
    return tuple(parts), aligned


def _piece_difference(chosen: str, rejected: str) -> tuple[list[dict], list[dict]]:
    sides = mark_difference((chosen, []), (rejected, []))
    return tuple([{"changed": False} | part for part in side] for side in sides)


def _place(span: Interval, axis_s: float) -> list[float]:
    """Left edge and width in percent of the axis."""
    return [round(100 * span[0] / axis_s, 3), round(100 * (span[1] - span[0]) / axis_s, 3)]


def _bars(spans: Sequence[Interval], side: Sequence[Aligned], axis_s: float) -> tuple[list[dict], int]:
    """Bars in as few lanes as keep them from covering each other, and the number of lanes."""
    lane_ends_s: list[float] = []
    lane_of = {}
    for index in sorted(range(len(spans)), key=lambda index: spans[index]):
        start_s, end_s = spans[index]
        free = (lane for lane, lane_end_s in enumerate(lane_ends_s) if start_s >= lane_end_s - 1e-6)
        lane_of[index] = next(free, len(lane_ends_s))
        lane_ends_s[lane_of[index] :] = [end_s, *lane_ends_s[lane_of[index] + 1 :]]
    bars = [
        {
            "place": _place(span, axis_s),
            "lane": lane_of[index],
            "kind": aligned.kind,
            "label": aligned.label,
            "mark": _glyph(aligned),
            "title": f"{'event ' + aligned.label + ', ' if aligned.label else ''}{seconds(span)}"
            + (f": {aligned.detail}" if aligned.detail else ""),
        }
        for index, (span, aligned) in enumerate(zip(spans, side, strict=True))
    ]
    return bars, max(len(lane_ends_s), 1)


def _glyph(aligned: Aligned) -> str:
    if aligned.kind == "moved":
        if aligned.detail.startswith("moved by"):
            return "←" if "−" in aligned.detail else "→"
        return "↔"
    return {"same": "", "added": "+", "removed": "−", "merged": "∪", "reworded": "≠"}[aligned.kind]


def _runs(parts: Sequence[Mapping[str, Any]], side: Sequence[Aligned], *, is_pair: bool) -> list[dict]:
    """Text as runs of marked and unmarked words, and intervals with the number and kind of their event."""
    runs: list[dict] = []
    event = 0
    for part in parts:
        if "interval" in part:
            aligned = side[event] if event < len(side) else Aligned("same", "?", "")
            runs.append({"interval": part["interval"], "kind": aligned.kind, "label": aligned.label or "+"})
            if not is_pair:
                runs[-1]["colour"] = event % NUM_COLOURS
            event += 1
            continue
        changed = int(part.get("changed", False))
        if runs and "text" in runs[-1] and runs[-1]["changed"] == changed:
            runs[-1]["text"] += part["text"]
        else:
            runs.append({"text": part["text"], "changed": changed})
    return _joined(runs)


def _joined(runs: list[dict]) -> list[dict]:
    """White space between two marked words is marked with them, so that a changed phrase is one mark."""
    joined: list[dict] = []
    for index, run in enumerate(runs):
        before, after = joined[-1:], runs[index + 1 : index + 2]
        is_gap = "text" in run and run["text"].isspace() and before and after
        if is_gap and before[0].get("changed") and after[0].get("changed"):
            before[0]["text"] += run["text"]
        elif before and before[0].get("changed") and run.get("changed") and before[0]["text"][-1:].isspace():
            before[0]["text"] += run["text"]
        else:
            joined.append(dict(run))
    return joined
