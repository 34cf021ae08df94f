# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Pairs of TEMPLE as a folder that `load_dataset` reads, with a card, and pairs of EventWorld."""

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import DatasetCardData
from rich.table import Table

from ..data.schema import validate
from .card import SIZES
from .temple import (
    FACTORS,
    FRAME_FACTORS,
    GENERATOR_VERSION,
    KEEP_RATIOS,
    TempleReport,
    draw_perturbation,
    temple_pairs,
)
from .temple_captions import DESCRIPTIONS_FILE
from .temple_prompts import QUESTIONS

REPORT_FILE, SKIPPED_FILE = "temple.json", "skipped.jsonl"


def read_descriptions(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Read described videos.

    Args:
        path (`str` or `os.PathLike`):
            `descriptions.jsonl`, or its folder.

    Returns:
        `list[dict]`: as [`~trl_temporal.synthesis.temple.temple_pairs`] takes them.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: a line is no JSON object; the message names it.
    """
    path = Path(path)
    path = path / DESCRIPTIONS_FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Make it with `trl-temporal temple caption`.")
    videos = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            videos.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: is no JSON ({error}); remove it, or caption again") from None
        if not isinstance(videos[-1], dict):
            raise ValueError(f"{path}, line {number}: is {line:.60}, not an object; remove it, or caption again")
    return videos


def write_temple_pairs(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    seed: int = 0,
    questions: Sequence[str] = QUESTIONS,
) -> TempleReport:
    """
    Make preference pairs of described videos and write them to a folder: `trl-temporal temple pairs`.

    `destination` becomes a `datasets.DatasetDict` with the split `train`, a card, `skipped.jsonl` (pairs and videos
    that are left out, and why) and `temple.json` (settings and counts). It appears when it is whole, and its files
    follow from the descriptions and the seed alone.

    Args:
        source (`str` or `os.PathLike`):
            `descriptions.jsonl` of [`~trl_temporal.synthesis.temple_captions.caption_path`], or its folder.
        destination (`str` or `os.PathLike`):
            Folder to write; must not exist, or be empty.
        seed (`int`, *optional*, defaults to `0`):
            Draws the question of each pair.
        questions (`Sequence[str]`, *optional*):
            What the user may ask.

    Returns:
        [`~trl_temporal.synthesis.temple.TempleReport`]

    Raises:
        `FileExistsError`: `destination` is there.
        `ValueError`: there are no pairs; the message has the reasons.

    Example:
        >>> from trl_temporal.synthesis.temple_folder import write_temple_pairs
        >>> write_temple_pairs("described", "pairs").pairs  # doctest: +SKIP
        {'drop': {16: 812, 8: 790, 4: 771, 2: 730}, 'shuffle': {16: 901, 8: 899, 4: 893, 2: 871}}
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"'{destination}' is there already, and not empty. Remove it, or choose another folder.")
    videos = read_descriptions(source)
    pairs, report = temple_pairs(videos, seed=seed, questions=questions)
    if not len(pairs):
        raise ValueError(f"{source}: no pair is left of {report.num_videos} videos ({_counted(report.reasons)}).")
    validate(pairs, "preference")
    ratios, rows = _cells(report)
    for number, keep_ratio in enumerate(ratios):
        if not any(counts[number] for _, counts in rows):
            warnings.warn(
                f"no pair with keep_ratio {keep_ratio} is left ({_counted(report.reasons)}): leave {keep_ratio} out "
                "of the stages of training, which refuses a stage without pairs",
                stacklevel=2,
            )
    settings = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "questions": list(questions),
        "descriptions": hashlib.sha256(json.dumps(videos, sort_keys=True).encode()).hexdigest(),
        "models": sorted({video["model"] for video in videos if video.get("model")}),
        "levels": sorted({video.get("level", "captions") for video in videos}),
    }
    partial = destination.with_name(f"{destination.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        # A name that depends neither on the folder nor on the time.
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        info = datasets.DatasetInfo(features=pairs.features)
        named = datasets.Dataset(pairs.data, info=info, split="train", fingerprint=fingerprint)
        datasets.DatasetDict({"train": named}).save_to_disk(partial)
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in report.skipped)
        (partial / SKIPPED_FILE).write_text("".join(lines), encoding="utf-8")
        counts = {name: value for name, value in dataclasses.asdict(report).items() if name != "skipped"}
        content = json.dumps({**settings, **counts, "num_pairs": report.num_pairs}, indent=1, ensure_ascii=False)
        (partial / REPORT_FILE).write_text(content + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(settings, report), encoding="utf-8")
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items()) or "nothing was left out"


def _cells(report: TempleReport) -> tuple[list[int], list[tuple[str, list[int]]]]:
    """The keep ratios from easy to hard, and the number of pairs of each factor at each of them."""
    ratios = sorted({ratio for counts in report.pairs.values() for ratio in counts}, reverse=True)
    factors = [factor for factor in FRAME_FACTORS if factor in report.pairs]
    return ratios, [(factor, [report.pairs[factor].get(ratio, 0) for ratio in ratios]) for factor in factors]


def pairs_table(report: TempleReport) -> Table:
    """
    Numbers of pairs by factor and keep ratio, and why others are left out.

    Args:
        report ([`~trl_temporal.synthesis.temple.TempleReport`]):
            What was counted.

    Returns:
        `rich.table.Table`
    """
    ratios, rows = _cells(report)
    table = Table("pairs", *(f"r = {ratio}" for ratio in ratios), title=f"{report.num_pairs:,} pairs", min_width=64)
    for factor, counts in rows:
        table.add_row(factor, *(f"{count:,}" for count in counts))
    notes = [f"left out: {_counted(report.reasons)}"]
    notes += [f"{ratios} do the same to {count:,} videos" for ratios, count in report.same_strength.items()]
    table.caption = "\n".join(notes)
    return table


def _card(settings: dict[str, Any], report: TempleReport) -> str:
    data = DatasetCardData(
        pretty_name="TEMPLE preference pairs",
        license="other",
        task_categories=["video-text-to-text"],
        tags=["preference", "temporal", "synthetic", "trl_temporal"],
        size_categories=[next((name for size, name in SIZES.items() if report.num_pairs < size), "n>100M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "train/*.arrow"}]}],
    )
    ratios, rows = _cells(report)
    counts = "\n".join(f"| `{factor}` | {' | '.join(f'{n:,}' for n in numbers)} |" for factor, numbers in rows)
    reasons = "\n".join(f"| {reason} | {count:,} |" for reason, count in report.reasons.items()) or "| none | 0 |"
    same = "\n".join(f"| {names} | {count:,} |" for names, count in report.same_strength.items()) or "| none | 0 |"
    described = " and ".join(settings["models"]) or "a model that is not named"
    where = " and ".join("clip captions" if level == "captions" else "key frames" for level in settings["levels"])
    return f"""---
{data.to_yaml()}
---

# TEMPLE preference pairs

Pairs of descriptions of a video, for preference optimisation with `trl_temporal`. The chosen one was written from all
clips in order, the rejected one from the same video with its clips dropped, shuffled or turned around. Both were
written by {described}; what was perturbed are the {where}. The videos themselves are not in here, and the terms of
their source hold.

{report.num_pairs:,} pairs of {report.num_videos:,} videos, by what was done and by `keep_ratio` (16 is the easiest to
tell, 2 the hardest):

| factor | {" | ".join(f"r = {ratio}" for ratio in ratios)} |
|{"---|" * (len(ratios) + 1)}
{counts}

Left out, one entry each in `skipped.jsonl`:

| why | number |
|---|---|
{reasons}

Videos with so few clips that several keep ratios do the same to them:

| keep ratios | videos |
|---|---|
{same}

Made by `{settings["generator_version"]}` with seed {settings["seed"]} from descriptions with SHA-256
`{settings["descriptions"]}`.
"""


def event_world_pairs(
    dataset: Iterable[dict[str, Any]],
    *,
    factors: Sequence[str] = FACTORS,
    keep_ratios: Sequence[int] = KEEP_RATIOS,
    seed: int = 0,
    questions: Sequence[str] = ("Describe every event in the video.",),
    check_files: bool = True,
) -> tuple[datasets.Dataset, TempleReport]:
    """
    Pairs of EventWorld from what is known of it: no captioner, no selection. A clip is an event.

    A world has 5 to 7 events, for which the keep ratios 16, 8 and 4 do the same (see
    [`~trl_temporal.synthesis.temple.same_strength`]): a curriculum on it has two strengths.

    Args:
        dataset (`Iterable[dict]`):
            Rows of [`~trl_temporal.data.event_world.build_event_world`]; the dense ones are used.
        factors (`Sequence[str]`, *optional*):
            Perturbations of a list of captions. Defaults to those of the paper.
        keep_ratios (`Sequence[int]`, *optional*, defaults to `(16, 8, 4, 2)`):
            The paper's r.
        seed (`int`, *optional*, defaults to `0`):
            Of the perturbations.
        questions (`Sequence[str]`, *optional*):
            What the user may ask. By default what EventWorld's dense rows ask.
        check_files (`bool`, *optional*, defaults to `True`):
            Whether to leave out videos whose file is missing.

    Returns:
        `tuple[datasets.Dataset, TempleReport]`: pairs with plain text answers, and what was counted.

    Example:
        >>> from trl_temporal.data.event_world import simulate, video_rows
        >>> from trl_temporal.synthesis.temple_folder import event_world_pairs
        >>> rows = video_rows(simulate(0, 1), {"path": "000001.mp4"})
        >>> pairs, report = event_world_pairs(rows, keep_ratios=(4, 2), check_files=False)
        >>> report.pairs
        {'drop': {4: 1, 2: 1}, 'shuffle': {4: 1, 2: 1}, 'reverse': {4: 1, 2: 1}}
    """
    videos = []
    for row in dataset:
        if row["task"] != "dense":
            continue
        captions, video_id = row["captions"], row["id"].removeprefix("event_world-").removesuffix("-dense")
        drawn = [
            draw_perturbation(video_id, len(captions), factor, keep_ratio, seed)
            for factor in factors
            for keep_ratio in keep_ratios
        ]
        texts = [_sentences([captions[clip] for clip in perturbation.selected_indices]) for perturbation in drawn]
        videos.append(
            {
                "video_id": video_id,
                "path": row["videos"][0]["path"],
                "duration_s": row["duration"],
                "num_clips": len(captions),
                "captions": captions,
                "chosen": _sentences(captions),
                "rejected": [{**p._asdict(), "text": text} for p, text in zip(drawn, texts, strict=True)],
            }
        )
    return temple_pairs(videos, seed=seed, questions=questions, source="temple-event_world", check_files=check_files)


def _sentences(captions: Sequence[str]) -> str:
    return " ".join(f"{caption}." for caption in captions)
