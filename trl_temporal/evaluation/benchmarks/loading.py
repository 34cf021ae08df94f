# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A benchmark by its name, its annotations and its videos."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ...data.converters.records import VideoFinder
from ...data.validation import load_rows
from . import GENERATED, SCORED_ONLY, WITH_TRUTH
from .common import find_annotations


def load_benchmark(
    benchmark: str,
    data: str | os.PathLike | Sequence[Mapping[str, Any]] | None,
    *,
    split: str = "test",
    predictions: str | os.PathLike | None = None,
) -> tuple[ModuleType, list[dict[str, Any]]]:
    """
    A benchmark and its references.

    Args:
        benchmark (`str`):
            Its name.
        data (`str`, `os.PathLike` or a list of rows, *optional*):
            Its annotations. May be left out where the file of predictions holds them.
        split (`str`, *optional*, defaults to `"test"`):
            Split of rows of one's own.
        predictions (`str` or `os.PathLike`, *optional*):
            File of predictions that are to be scored; without it a model is to answer.

    Returns:
        `tuple`: module of the benchmark, and its records.

    Raises:
        ValueError: if there is no such benchmark, it is only scored, or its annotations are needed.
    """
    benchmarks = GENERATED if predictions is None else GENERATED | SCORED_ONLY
    if benchmark not in benchmarks:
        hint = ""
        if benchmark in SCORED_ONLY:
            hint = " It is scored with --predictions; docs/lmms_eval.md tells how to answer it."
        raise ValueError(f"benchmark is {benchmark!r}; it must be one of {', '.join(benchmarks)}.{hint}")
    bench = benchmarks[benchmark]
    if data is None:
        if benchmark not in WITH_TRUTH:
            raise ValueError(f"{bench.TITLE} is scored against its annotations; give their file or folder (--data)")
        return bench, bench.read_references(Path(predictions))
    if benchmark == "rows":
        return bench, bench.as_references(_rows_of(data, split))
    return bench, bench.read_references(find_annotations(data, bench.FILES))


def _rows_of(data: str | os.PathLike | Sequence[Mapping[str, Any]], split: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(data, str | os.PathLike):
        return data
    splits = load_rows(data)
    if len(splits) > 1 and split not in splits:
        raise ValueError(f"{data} has no split {split!r}; it has {', '.join(splits)}. Name one by --split.")
    return splits.get(split, next(iter(splits.values())))


def check_scorer(benchmark: str, bench: ModuleType, scorer: str | None, sentence_model: str | None) -> None:
    """Refuse a scorer that a benchmark does not have, before a model is run."""
    if scorer is not None and scorer not in bench.SCORERS:
        known = f"they are {', '.join(bench.SCORERS)}" if bench.SCORERS else "it has but one; leave it out"
        raise ValueError(f"{bench.TITLE} has no scorer {scorer!r}: {known}")
    if sentence_model is not None and benchmark != "etbench":
        raise ValueError(f"{bench.TITLE} uses no sentence model; leave it out")


def default_video_root(data: str | os.PathLike) -> Path:
    """`videos` beside the annotations, or the folder itself."""
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    return folder / "videos" if (folder / "videos").is_dir() else folder


def choose_prompts(bench: ModuleType, has_evidence: bool, changed: Mapping[str, str] | None) -> dict[str, str]:
    """
    Wordings of a benchmark's questions.

    Args:
        bench (module):
            The benchmark.
        has_evidence (`bool`):
            Whether the model has evidence tokens; others are told how to write times.
        changed (`Mapping[str, str]`, *optional*):
            Wordings by task that take the place of the benchmark's.

    Returns:
        `dict[str, str]`: wording by task.

    Raises:
        ValueError: if the benchmark has no such task.
    """
    wordings = bench.PROMPTS["evidence" if has_evidence else "text"]
    if unknown := set(changed or {}) - set(wordings):
        raise ValueError(f"{bench.TITLE} has no prompt {min(unknown)!r}; its prompts are {', '.join(wordings)}")
    return {**wordings, **(changed or {})}


def make_rows(
    bench: ModuleType,
    references: Sequence[Mapping[str, Any]],
    wordings: Mapping[str, str],
    video_root: str | os.PathLike | None,
    allow_missing: bool,
) -> list[dict[str, Any]]:
    """
    The rows to answer, with the paths of their videos.

    Args:
        bench (module):
            The benchmark.
        references (`Sequence[Mapping]`):
            Its records.
        wordings (`Mapping[str, str]`):
            Of [`choose_prompts`].
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos; `None` for rows that name their videos by path.
        allow_missing (`bool`):
            Leave out rows whose video is not there.

    Returns:
        `list[dict]`

    Raises:
        FileNotFoundError: if videos are missing; the message counts them.
    """
    rows = [bench.make_row(reference, wordings) for reference in references]
    if video_root is None:
        return rows
    finder = VideoFinder(video_root)
    found, missing = [], []
    for row in rows:
        name = row["videos"][0]["path"]
        path = finder.find(name)
        if path is None:
            missing.append(name)
        else:
            found.append({**row, "videos": [{**row["videos"][0], "path": path}]})
    if missing and (not found or not allow_missing):
        raise FileNotFoundError(
            f"{len(set(missing))} videos of {len(missing)} samples are not in '{video_root}', such as '{missing[0]}'. "
            "Give their folder (--video-root), or score what is there (--allow-missing-videos)."
        )
    return found
