# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
TEMPLE: descriptions of a video against descriptions of the same video with its clips dropped, shuffled or reversed.

A video is a list of clips. A perturbation is a list of their indices, as they are shown to whoever writes the rejected
description; the chosen one is written from the untouched list. `keep_ratio`, the paper's r, says how coarse the
perturbation is: at 16 few clips are kept and nearly every clip moves, which is the easiest to tell, at 2 half of them
are kept and two halves change places.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from ..data.rows import VIDEO_FIELDS, assistant_message, row_seed
from ..data.schema import PREFERENCE_FEATURES, RowError, validate_row
from .temple_prompts import QUESTIONS

GENERATOR_VERSION = "temple-1"
KEEP_RATIOS = (16, 8, 4, 2)  # from easy to hard
FACTORS = ("drop", "shuffle", "reverse")  # of the paper
FRAME_FACTORS = (*FACTORS, "partial_reverse", "speed")  # the last two are this package's own
MAX_LENGTH_RATIO = 1.5

# How an answer begins that is no description.
REFUSALS = (
    "i'm sorry", "i am sorry", "sorry,", "i cannot", "i can't", "i can not", "i'm unable", "i am unable", "unable to",
    "as an ai", "i apologize", "i apologise", "there is no video", "please provide", "n/a",
)  # fmt: skip


class Perturbation(NamedTuple):
    """
    What is done to the clips of a video.

    Args:
        factor (`str`):
            One of `FRAME_FACTORS`.
        keep_ratio (`int`):
            The paper's r.
        selected_indices (`list[int]`):
            Clips in the order in which they are shown.
        fast_indices (`list[int]`):
            Clips that are shown at double speed; `speed` alone has any.
    """

    factor: str
    keep_ratio: int
    selected_indices: list[int]
    fast_indices: list[int]

    def changes_nothing(self, num_clips: int) -> bool:
        """Whether a video of so many clips is shown as it is."""
        return not self.fast_indices and self.selected_indices == list(range(num_clips))


def block_size(num_clips: int, keep_ratio: int) -> int:
    """Clips of a block that moves as a whole, and clips that `drop` keeps: `max(1, N // r)`."""
    if num_clips < 1 or keep_ratio < 1:
        raise ValueError(f"got {num_clips} clips and keep_ratio {keep_ratio}; both must be at least 1")
    return max(1, num_clips // keep_ratio)


def perturb(num_clips: int, factor: str, keep_ratio: int, rng: np.random.Generator) -> list[int]:
    """
    Draw which clips of a video are shown, and in what order.

    With g = `max(1, num_clips // keep_ratio)`: `drop` keeps g clips, in order; `shuffle` cuts the clips into blocks of
    g (the last may be shorter) and puts the blocks into another order; `reverse` puts the blocks into backward order.
    Inside a block the order stays. `partial_reverse`, which is no part of the paper, turns a run of `num_clips - g`
    clips around, but at least two.

    Args:
        num_clips (`int`):
            Clips of the video.
        factor (`str`):
            `"drop"`, `"shuffle"`, `"reverse"` or `"partial_reverse"`.
        keep_ratio (`int`):
            The paper's r, such as 16, 8, 4 and 2.
        rng (`np.random.Generator`):
            Draws what `drop` keeps, how the blocks are shuffled (never to where they were), and where the run is.

    Returns:
        `list[int]`: indices of clips. Where there is one block only, all of them in order: nothing can be changed.

    Raises:
        `ValueError`: an unknown factor, or a number below 1.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.temple import perturb
        >>> perturb(7, "reverse", 2, np.random.default_rng(0))
        [6, 3, 4, 5, 0, 1, 2]
    """
    size = block_size(num_clips, keep_ratio)
    clips = list(range(num_clips))
    if factor == "drop":
        return sorted(rng.choice(num_clips, size=size, replace=False).tolist())
    if factor == "partial_reverse":
        if num_clips == 1:
            return clips
        start, length = _run(num_clips, keep_ratio, 2, rng)
        return clips[:start] + clips[start : start + length][::-1] + clips[start + length :]
    if factor not in ("shuffle", "reverse"):
        raise ValueError(f"factor is {factor!r}; it must be one of {', '.join((*FACTORS, 'partial_reverse'))}")
    blocks = [clips[start : start + size] for start in range(0, num_clips, size)]
    order = list(range(len(blocks)))[::-1]
    if factor == "shuffle" and len(blocks) > 1:
        order = sorted(order)
        while order == sorted(order):
            order = rng.permutation(len(blocks)).tolist()
    return [clip for block in order for clip in blocks[block]]


def _run(num_clips: int, keep_ratio: int, least: int, rng: np.random.Generator) -> tuple[int, int]:
    """Where a run of neighbouring clips starts, and how many it has: all but as many as `drop` would keep."""
    length = max(least, num_clips - block_size(num_clips, keep_ratio))
    return int(rng.integers(num_clips - length + 1)), length


def draw_perturbation(video_id: str, num_clips: int, factor: str, keep_ratio: int, seed: int = 0) -> Perturbation:
    """
    The perturbation of a video: the same whenever and wherever it is drawn.

    Args:
        video_id (`str`):
            Name of the video.
        num_clips (`int`):
            Its clips.
        factor (`str`):
            One of `FRAME_FACTORS`. `speed` shows a run of `num_clips - g` clips at double speed.
        keep_ratio (`int`):
            The paper's r.
        seed (`int`, *optional*, defaults to `0`):
            Of the whole data set.

    Returns:
        [`Perturbation`]

    Example:
        >>> from trl_temporal.synthesis.temple import draw_perturbation
        >>> draw_perturbation("bikes", 6, "reverse", 16).selected_indices
        [5, 4, 3, 2, 1, 0]
    """
    rng = np.random.default_rng(row_seed(seed, f"{video_id}/{factor}/{keep_ratio}"))
    if factor == "speed":
        start, length = _run(num_clips, keep_ratio, 1, rng)
        return Perturbation(factor, keep_ratio, list(range(num_clips)), list(range(start, start + length)))
    return Perturbation(factor, keep_ratio, perturb(num_clips, factor, keep_ratio, rng), [])


def same_strength(num_clips: int, keep_ratios: Sequence[int] = KEEP_RATIOS) -> list[list[int]]:
    """
    Keep ratios that do the same to a video, since it has too few clips to tell them apart.

    Args:
        num_clips (`int`):
            Clips of the video.
        keep_ratios (`Sequence[int]`, *optional*, defaults to `(16, 8, 4, 2)`):
            The paper's r.

    Returns:
        `list[list[int]]`: groups of two or more.

    Example:
        >>> from trl_temporal.synthesis.temple import same_strength
        >>> same_strength(6), same_strength(12), same_strength(16)
        ([[16, 8, 4]], [[16, 8]], [])
    """
    groups: dict[int, list[int]] = {}
    for keep_ratio in keep_ratios:
        groups.setdefault(block_size(num_clips, keep_ratio), []).append(keep_ratio)
    return [group for group in groups.values() if len(group) > 1]


def text_fault(text: str | None) -> str | None:
    """
    Say why a model's answer is no description.

    Args:
        text (`str`, *optional*):
            The answer; `None` where there is none.

    Returns:
        `str` or `None`: `"empty"`, `"refusal"` (by how it begins, in English), or `None` for a description.

    Example:
        >>> from trl_temporal.synthesis.temple import text_fault
        >>> text_fault("I'm sorry, but I can't see a video.")
        'refusal'
    """
    words = "" if text is None else text.strip().lower().replace("’", "'")
    if not words:
        return "empty"
    return "refusal" if words.startswith(REFUSALS) else None


def pair_fault(factor: str, chosen: str | None, rejected: str | None) -> str | None:
    """
    Say why two descriptions make no pair. All but the first are rules of the release.

    Args:
        factor (`str`):
            How the clips of the rejected one were perturbed.
        chosen (`str`, *optional*):
            Description of the video.
        rejected (`str`, *optional*):
            Description of the perturbed one.

    Returns:
        `str` or `None`: `"empty"` or `"refusal"` of either; `"chosen_in_rejected"`; `"drop_not_shorter"` (clips are
        missing, but the text is as long, in characters); `"length_ratio"` (of the other factors: one is more than 1.5
        times as long as the other); or `None` for a pair.

    Example:
        >>> from trl_temporal.synthesis.temple import pair_fault
        >>> pair_fault("drop", "A man runs.", "A man runs and falls.")
        'drop_not_shorter'
    """
    if fault := text_fault(chosen) or text_fault(rejected):
        return fault
    if factor == "drop" and len(chosen) <= len(rejected):
        return "drop_not_shorter"
    if chosen in rejected:
        return "chosen_in_rejected"
    longer, shorter = max(len(chosen), len(rejected)), min(len(chosen), len(rejected))
    return "length_ratio" if factor != "drop" and longer > MAX_LENGTH_RATIO * shorter else None


@dataclass
class TempleReport:
    """
    What became of the descriptions.

    Args:
        num_videos (`int`):
            Videos that were read.
        pairs (`dict[str, dict[int, int]]`):
            Number of pairs by factor and keep ratio, 0 where none is left.
        reasons (`dict[str, int]`):
            How often a pair, or a whole video, was left out, by reason.
        skipped (`list[dict]`):
            Each of them: `video_id`, `factor`, `keep_ratio` (both `None` for a whole video), `reason`.
        same_strength (`dict[str, int]`):
            In how many videos keep ratios do the same, e.g. `{"16 = 8": 12}`.
    """

    num_videos: int = 0
    pairs: dict[str, dict[int, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    same_strength: dict[str, int] = field(default_factory=dict)

    @property
    def num_pairs(self) -> int:
        return sum(sum(counts.values()) for counts in self.pairs.values())

    def leave_out(self, video_id: str, reason: str, perturbation: dict[str, Any] | None = None) -> None:
        """Count and name what is left out."""
        perturbation = perturbation or {}
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        place = {name: perturbation.get(name) for name in ("factor", "keep_ratio")}
        self.skipped.append({"video_id": video_id, **place, "reason": reason})


def temple_pairs(
    videos: Iterable[dict[str, Any]],
    *,
    seed: int = 0,
    questions: Sequence[str] = QUESTIONS,
    source: str = "temple",
    check_files: bool = True,
) -> tuple[datasets.Dataset, TempleReport]:
    """
    Make preference pairs of described videos.

    Args:
        videos (`Iterable[dict]`):
            One dictionary a video, as a line of `descriptions.jsonl`: `video_id`, `path`, `duration_s`, `num_clips`,
            `chosen` (a description), and `rejected`, a list of `factor`, `keep_ratio`, `selected_indices`, `text`, and
            `fast_indices` for `speed`. Optional are `captions` of the clips, `level` and `model`. A text that is
            `None` or a refusal is counted.
        seed (`int`, *optional*, defaults to `0`):
            Draws the question of each pair.
        questions (`Sequence[str]`, *optional*):
            What the user may ask.
        source (`str`, *optional*, defaults to `"temple"`):
            Name of the data set, for the column of that name.
        check_files (`bool`, *optional*, defaults to `True`):
            Whether to leave out videos whose file is missing.

    Returns:
        `tuple[datasets.Dataset, TempleReport]`: rows with
        [`~trl_temporal.data.schema.PREFERENCE_FEATURES`], and what was counted.

    Raises:
        `ValueError`: a video lacks a field.
        [`~trl_temporal.data.schema.RowError`]: a pair breaks the data contract.

    Example:
        >>> from trl_temporal.synthesis.temple import temple_pairs
        >>> reverse = {"factor": "reverse", "keep_ratio": 16, "selected_indices": [1, 0], "text": "He falls and runs."}
        >>> video = {"video_id": "a", "path": "a.mp4", "duration_s": 9.0, "num_clips": 2}
        >>> video |= {"chosen": "He runs and falls.", "rejected": [reverse]}
        >>> pairs, report = temple_pairs([video], check_files=False)
        >>> pairs[0]["id"], pairs[0]["factor"], report.pairs
        ('temple-a-reverse-16', 'reverse', {'reverse': {16: 1}})
    """
    report, rows = TempleReport(), []
    seen_videos: set[str] = set()
    seen_pairs: set[tuple] = set()
    strengths: Counter = Counter()
    for number, video in enumerate(videos):
        _check_fields(number, video)
        report.num_videos += 1
        for rejected in video["rejected"]:  # a difficulty of which no pair is left shows as 0
            report.pairs.setdefault(rejected["factor"], {}).setdefault(rejected["keep_ratio"], 0)
        video_id, chosen = video["video_id"], video["chosen"]
        same_video = {f"id {video_id}", f"path {video['path']}"}
        if not seen_videos.isdisjoint(same_video):
            report.leave_out(video_id, "duplicate_video")
            continue
        seen_videos |= same_video
        if check_files and not Path(video["path"]).exists():
            report.leave_out(video_id, "video_missing")
            continue
        if fault := text_fault(chosen):
            report.leave_out(video_id, f"chosen_{fault}")
            continue
        ratios = list(dict.fromkeys(rejected["keep_ratio"] for rejected in video["rejected"]))
        strengths.update(" = ".join(map(str, group)) for group in same_strength(video["num_clips"], ratios))
        for rejected in video["rejected"]:
            perturbation = Perturbation(
                rejected["factor"],
                rejected["keep_ratio"],
                list(rejected["selected_indices"]),
                list(rejected.get("fast_indices") or []),
            )
            if perturbation.changes_nothing(video["num_clips"]):
                report.leave_out(video_id, "nothing_to_perturb", rejected)
                continue
            if fault := pair_fault(rejected["factor"], chosen, rejected["text"]):
                report.leave_out(video_id, fault, rejected)
                continue
            same_pair = (video["path"], rejected["keep_ratio"], rejected["text"])
            if same_pair in seen_pairs:
                report.leave_out(video_id, "duplicate_pair", rejected)
                continue
            seen_pairs.add(same_pair)
            row = _row(video, perturbation, rejected["text"], seed, questions, source)
            try:
                validate_row(row, kind="preference")
            except RowError as error:
                raise RowError(f"video {video_id!r}: {error}") from None
            report.pairs[rejected["factor"]][rejected["keep_ratio"]] += 1
            rows.append(row)
    report.same_strength = dict(sorted(strengths.items()))
    report.reasons = dict(sorted(report.reasons.items()))
    columns = {name: [row[name] for row in rows] for name in PREFERENCE_FEATURES}
    return datasets.Dataset.from_dict(columns, features=PREFERENCE_FEATURES), report


def _check_fields(number: int, video: dict[str, Any]) -> None:
    needed = ("video_id", "path", "num_clips", "chosen", "rejected")
    if missing := [name for name in needed if name not in video]:
        raise ValueError(
            f"video {number} ({video.get('video_id')!r}), field '{missing[0]}': is missing. A described video has "
            f"{', '.join(needed)}, as `trl-temporal temple caption` writes them."
        )
    for rejected in video["rejected"]:
        needed = ("factor", "keep_ratio", "selected_indices", "text")
        if missing := [name for name in needed if name not in rejected]:
            raise ValueError(
                f"video {number} ({video['video_id']!r}), field 'rejected': an entry has no '{missing[0]}'. Each has "
                f"{', '.join(needed)}."
            )


def _row(
    video: dict[str, Any],
    perturbation: Perturbation,
    text: str,
    seed: int,
    questions: Sequence[str],
    source: str,
) -> dict[str, Any]:
    level = video.get("level", "captions")
    factor, keep_ratio = perturbation.factor, perturbation.keep_ratio
    name = f"{video['video_id']}-{factor}-{keep_ratio}"
    rng = np.random.default_rng(row_seed(seed, name))
    question = questions[int(rng.integers(len(questions)))]
    same = [group for group in same_strength(video["num_clips"]) if keep_ratio in group]
    factor_args = {
        "level": level,
        "num_clips": video["num_clips"],
        "selected_indices": perturbation.selected_indices,
        **({"fast_indices": perturbation.fast_indices} if perturbation.fast_indices else {}),
        **({"same_strength": same[0]} if same else {}),
        **({"model": video["model"]} if video.get("model") else {}),
    }
    entry = {"path": os.fspath(video["path"])}
    return {
        "id": f"{source}-{name}" if level == "captions" else f"{source}-{level}-{name}",
        "source": source,
        "source_id": video["video_id"],
        "task": "caption",
        "videos": [{field: entry.get(field) for field in VIDEO_FIELDS}],
        "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}],
        "prompt_spans": None,
        "chosen": assistant_message(video["chosen"]),
        "rejected": assistant_message(text),
        "chosen_spans": [],
        "rejected_spans": [],
        "captions": video.get("captions"),
        "duration": video.get("duration_s"),
        "factor": factor,
        "factor_args": json.dumps(factor_args, ensure_ascii=False),
        "generator_version": GENERATOR_VERSION,
        "keep_ratio": keep_ratio,
    }
