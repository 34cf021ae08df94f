# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Preferences at any scale: rows on disk in, a data set on disk out.

Two steps of datatrove run over the same row ranges, whose number does not depend on the number of workers. The first
finds out which factors each row allows; from the counts the shares of the factors are fitted, once; the second makes
the pairs. Each shard is put in place when it is whole, and one that is there is not made again.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datatrove.pipeline.base import PipelineStep

from ..data.schema import PREFERENCE_FEATURES, RowError
from ..data.shards import NUM_SHARDS, Executor, run_shards, shard_range, write_whole
from ..data.validation import load_rows
from .card import write_card
from .config import SynthesisConfig
from .preference import GENERATOR_VERSION
from .report import SynthesisReport, count_masks, make_report, no_pairs, warn
from .shares import fit_shares
from .tables import BAD_ROW, Skipped, check_columns, check_rows, hash_rows, pair_tables, write_rows

WORK_FOLDER = "unfinished"
RESULT_FILE, SKIPPED_FILE, SETTINGS_FILE = "synthesis.json", "skipped.jsonl", "settings.json"

Rows = dict[str, datasets.Dataset]


def synthesize_preferences(dataset: datasets.Dataset, config: SynthesisConfig | None = None) -> datasets.Dataset:
    """
    Make preference pairs from SFT rows: each row's response is chosen, and one with a single factor made wrong is
    rejected.

    The factors come as often as their weights say over the whole data set, as far as its rows allow. Rows that allow
    none are left out with a warning. The pairs depend on the rows, the configuration and nothing else, but for the
    shares of the factors not even on the other rows.

    Args:
        dataset (`datasets.Dataset`):
            SFT rows, see [`~trl_temporal.data.schema.SFTRow`], with ids.
        config ([`SynthesisConfig`], *optional*):
            Settings.

    Returns:
        `datasets.Dataset`: the pairs, with [`~trl_temporal.data.schema.PREFERENCE_FEATURES`].

    Raises:
        [`~trl_temporal.data.schema.RowError`]: a row is bad and `on_bad_record` is `"raise"`.
        `ValueError`: a column is missing or of another type, or there are no pairs.

    Example:

    ```python
    >>> import datasets
    >>> from trl_temporal.data.event_world import simulate, video_rows
    >>> from trl_temporal.data.schema import SFT_FEATURES
    >>> from trl_temporal.synthesis import SynthesisConfig, synthesize_preferences
    >>> rows = datasets.Dataset.from_list(video_rows(simulate(0, 0), {"path": "0.mp4"}), features=SFT_FEATURES)
    >>> pairs = synthesize_preferences(rows, SynthesisConfig(weights={"shift": 1}))
    >>> pairs["id"][0]
    'event_world-train-000000-dense-shift'
    ```
    """
    config = SynthesisConfig() if config is None else config
    check_columns(dataset, "the dataset")
    distort = config.make_distort()
    rows = range(len(dataset))
    masks, skipped = check_rows(dataset, rows, config, distort)
    _raise_first(skipped, config)
    distort.report.clear()
    shares = fit_shares(count_masks(masks), config.weights, config.num_pairs_per_row)
    counts: Counter = Counter()
    tables = list(pair_tables(dataset, rows, masks, shares, config, distort, counts, skipped))
    skipped.sort()
    if not tables:
        raise ValueError(no_pairs(skipped))
    warn(make_report(masks, counts, len(skipped), distort.report, config), skipped)
    return datasets.Dataset(pa.concat_tables(tables), info=datasets.DatasetInfo(features=PREFERENCE_FEATURES))


def synthesize_path(
    src: str | os.PathLike | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset,
    dst: str | os.PathLike,
    config: SynthesisConfig | None = None,
    *,
    num_workers: int = 2,
    resume: bool = False,
    executor: Executor = "local",
    executor_args: dict[str, Any] | None = None,
    progress: bool = True,
) -> SynthesisReport | None:
    """
    Make preference pairs from SFT rows and write them to a folder: `trl-temporal synthesize`.

    `dst` becomes a `datasets.DatasetDict` that `load_from_disk` and `load_dataset` read, with a data card,
    `skipped.jsonl` (rows without a pair, and why) and `synthesis.json` (settings and counts). Its files are the same,
    byte for byte, for any number of workers, and after a kill and a resume. The memory does not grow with the rows.

    Args:
        src (path, `datasets.Dataset`, `datasets.DatasetDict` or `datasets.IterableDataset`):
            SFT rows, or where they are (see [`~trl_temporal.data.validation.load_rows`]). A stream is written to
            `dst` first.
        dst (`str` or `os.PathLike`):
            Folder to write; it must not exist, or be empty, or be left from a run that `resume` goes on with.
        config ([`SynthesisConfig`], *optional*):
            Settings.
        num_workers (`int`, *optional*, defaults to `2`):
            Number of processes. A script that starts more than one needs `if __name__ == "__main__":`.
        resume (`bool`, *optional*, defaults to `False`):
            Go on with a run that was stopped, if there is one.
        executor (`str`, *optional*, defaults to `"local"`):
            `"local"`, `"slurm"` or `"ray"`, see [`~trl_temporal.data.shards.run_shards`].
        executor_args (`dict`, *optional*):
            More arguments of datatrove's executor; Slurm needs `time` and `partition`.
        progress (`bool`, *optional*, defaults to `True`):
            Show progress bars.

    Returns:
        [`SynthesisReport`] or `None`: what was done; `None` while shards run in Slurm: the same call with
        `resume=True` goes on when they are done, once for the check of the rows and once for the pairs.

    Raises:
        `FileExistsError`: `dst` is there, and `resume` is `False`.
        `ValueError`: `dst` was begun with other settings or rows, a column is missing or of another type, or there are
            no pairs.
        [`~trl_temporal.data.schema.RowError`]: a row is bad and `on_bad_record` is `"raise"`.

    Example:

    ```python
    >>> from trl_temporal.synthesis import SynthesisConfig, synthesize_path
    >>> report = synthesize_path("youcook2", "youcook2-pairs", SynthesisConfig(seed=1))  # doctest: +SKIP
    ```
    """
    config = SynthesisConfig() if config is None else config
    config.make_distort()  # wrong arguments are found before any work
    dst = Path(dst)
    work = dst / WORK_FOLDER
    _check_destination(dst, resume)
    if not (work / SETTINGS_FILE).exists():  # a run that did not come to its first step
        shutil.rmtree(work, ignore_errors=True)
    rows = _open_rows(src, work)
    for split, dataset in rows.items():
        check_columns(dataset, f"split '{split}'")
    settings = {
        "generator_version": GENERATOR_VERSION,
        "config": dataclasses.asdict(config),
        "rows": {split: {"number": len(dataset), "sha256": hash_rows(dataset)} for split, dataset in rows.items()},
    }
    if (finished := _claim(dst, work, settings)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return finished

    num_shards = min(NUM_SHARDS, max(1, *map(len, rows.values())))
    ranges = [
        {split: shard_range(len(ds), rank, num_shards) for split, ds in rows.items()} for rank in range(num_shards)
    ]
    sizes = [sum(map(len, shard.values())) for shard in ranges]
    shared = {"executor": executor, "num_workers": min(num_workers, num_shards), "executor_args": executor_args}
    try:
        checked = run_shards(
            _CheckStep(rows, config, str(work.absolute())), sizes, work / "check",
            progress="Checking rows" if progress else None, **shared,
        )  # fmt: skip
        if not checked:
            return None
        _write_plan(rows, config, work, num_shards)
    except RowError:  # nothing is worth keeping of rows that are to be mended
        shutil.rmtree(work)
        raise
    done = run_shards(
        _PairStep(rows, config, str(work.absolute())), sizes, work / "make",
        progress="Making pairs" if progress else None, **shared,
    )  # fmt: skip
    if not done:
        return None
    masks, counts, distort, skipped = _read_results(rows, work, num_shards)
    report = make_report(masks, counts, sum(map(len, skipped.values())), distort, config)
    if not report.num_pairs:
        shutil.rmtree(work)
        raise ValueError(no_pairs([entry for entries in skipped.values() for entry in entries]))
    _finish(rows, settings, report, skipped, dst, num_shards)
    warn(report, [entry for entries in skipped.values() for entry in entries])
    return report


# The folder


def _check_destination(dst: Path, resume: bool) -> None:
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir())):
        return
    ours = (dst / RESULT_FILE).exists() or (dst / WORK_FOLDER).exists()
    if not ours:
        raise FileExistsError(f"'{dst}' is there already, and not empty. Remove it, or choose another folder.")
    if not resume:
        what = "is finished" if (dst / RESULT_FILE).exists() else "holds a run that was stopped"
        raise FileExistsError(f"'{dst}' {what}. Go on with it by `resume` (--resume), remove it, or choose another.")


def _claim(dst: Path, work: Path, settings: dict[str, Any]) -> SynthesisReport | None:
    """Compare the settings with those that the folder was begun with, or write them. The report, if it is finished."""
    result = dst / RESULT_FILE
    begun = result if result.exists() else work / SETTINGS_FILE
    if not begun.exists():
        _write_json(begun, settings)
        return None
    known = json.loads(begun.read_text(encoding="utf-8"))
    # As they read when they come back from the file.
    for name, value in json.loads(json.dumps(settings)).items():
        then = known[name]
        if then != value:
            if isinstance(value, dict):
                then, value = (
                    {key: d.get(key) for key in d if then.get(key) != value.get(key)} for d in (then, value)
                )
            raise ValueError(
                f"'{dst}' was begun with another '{name}': {then}, not {value}. Resume with the same, remove the "
                f"folder, or choose another."
            )
    return SynthesisReport(**known["report"]) if begun == result else None


def _open_rows(src: Any, work: Path) -> Rows:
    """The rows of each split in files on disk, from where any process can read a range of them."""
    if isinstance(src, str | os.PathLike):
        splits = load_rows(src)
    elif isinstance(src, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = dict(src)
    else:
        splits = {"train": src}
    on_disk = {}
    for split, rows in splits.items():
        if not isinstance(rows, datasets.Dataset) or not rows.cache_files:
            rows = write_rows(rows, work / "rows" / f"{split}.arrow", f"split '{split}'")
        on_disk[str(split)] = rows
    return on_disk


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# The steps


class _RowStep(PipelineStep):
    type = "trl_temporal"

    def __init__(self, rows: Rows, config: SynthesisConfig, work: str):
        super().__init__()
        self.rows, self.config, self.work = rows, config, work


class _CheckStep(_RowStep):
    """Finds out which factors the rows of a shard allow, and which rows are bad."""

    name = "check rows"

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        distort = self.config.make_distort()
        arrays, all_skipped = {}, {}
        for number, (split, dataset) in enumerate(self.rows.items()):
            shard = shard_range(len(dataset), rank, world_size)
            masks, skipped = check_rows(dataset, shard, self.config, distort)
            _raise_first(skipped, self.config)
            ids = dataset.select_columns(["id"]).with_format("arrow")[shard.start : shard.stop]["id"].to_pylist()
            arrays |= {f"masks{number}": masks, f"ids{number}": np.array(list(map(_hash_id, ids)), dtype=np.uint64)}
            all_skipped[split] = skipped
        path = _masks_path(Path(self.work), rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{rank:05d}.{os.getpid()}.part.npz")
        np.savez(partial, **arrays)
        _write_json(path.with_suffix(".json"), all_skipped)
        os.replace(partial, path)


class _PairStep(_RowStep):
    """Makes the pairs of a shard, one file for each split."""

    name = "make pairs"

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        plan = json.loads(Path(self.work, "plan.json").read_text(encoding="utf-8"))
        shares = {int(mask): values for mask, values in plan["shares"].items()}
        distort = self.config.make_distort()
        distort.report.clear()
        result: dict[str, Any] = {}
        for number, (split, dataset) in enumerate(self.rows.items()):
            shard = shard_range(len(dataset), rank, world_size)
            with np.load(_masks_path(Path(self.work), rank)) as arrays:
                masks = arrays[f"masks{number}"]
            for index in plan["repeated"][split]:
                if index in shard:
                    masks[index - shard.start] = BAD_ROW
            counts, skipped = Counter(), []
            path = _pairs_path(Path(self.work), split, rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.part")
            with (
                pa.OSFile(str(partial), "wb") as file,
                pa.ipc.new_stream(file, PREFERENCE_FEATURES.arrow_schema) as out,
            ):
                for table in pair_tables(dataset, shard, masks, shares, self.config, distort, counts, skipped):
                    out.write_table(table)
            os.replace(partial, path)
            result[split] = {"counts": [[*key, count] for key, count in sorted(counts.items())], "skipped": skipped}
        result_path = Path(self.work, "pairs", f"{rank:05d}.json")
        _write_json(result_path, {"splits": result, "distort": dict(distort.report)})


def _masks_path(work: Path, rank: int) -> Path:
    return work / "masks" / f"{rank:05d}.npz"


def _pairs_path(work: Path, split: str, rank: int) -> Path:
    return work / "pairs" / f"{split}-{rank:05d}.arrow"


def _hash_id(row_id: str | None) -> int:
    return int.from_bytes(hashlib.sha256(str(row_id).encode()).digest()[:8], "little")


# Between and after the steps


def _read_shards(work: Path, name: str, num_shards: int) -> np.ndarray:
    """An array of all rows, which the first step has written shard by shard."""
    parts = []
    for rank in range(num_shards):
        with np.load(_masks_path(work, rank)) as arrays:
            parts.append(arrays[name])
    return np.concatenate(parts)


def _write_plan(rows: Rows, config: SynthesisConfig, work: Path, num_shards: int) -> None:
    """Fit the shares of the factors to all rows, and find ids that are there twice."""
    all_masks, repeated = [], {}
    for number, (split, dataset) in enumerate(rows.items()):
        masks = _read_shards(work, f"masks{number}", num_shards)
        ids = _read_shards(work, f"ids{number}", num_shards)
        good = np.flatnonzero(masks != BAD_ROW)
        first = np.unique(ids[good], return_index=True)[1]
        again = np.delete(good, first)
        repeated[split] = again.tolist()
        _raise_first([_repeated(dataset, index) for index in repeated[split][:1]], config)
        masks[again] = BAD_ROW
        all_masks.append(masks)
    shares = fit_shares(count_masks(np.concatenate(all_masks)), config.weights, config.num_pairs_per_row)
    _write_json(work / "plan.json", {"shares": shares, "repeated": repeated})


def _repeated(dataset: datasets.Dataset, index: int) -> Skipped:
    row_id = dataset.select_columns(["id"])[index]["id"]
    fault = f"row {index} (id {row_id!r}), column 'id': is also the id of an earlier row."
    return Skipped(index, row_id, f"{fault} Give every row an id of its own; choices are drawn from it.")


def _raise_first(skipped: Sequence[Skipped], config: SynthesisConfig) -> None:
    if skipped and config.on_bad_record == "raise":
        raise RowError(f"{skipped[0].reason} Or leave bad rows out with on_bad_record='skip'.")


def _read_results(
    rows: Rows, work: Path, num_shards: int
) -> tuple[np.ndarray, Counter, Counter, dict[str, list[Skipped]]]:
    """The masks of all rows, the counts of the pairs and of the distort backend, and the rows without a pair."""
    repeated = _read_json(work / "plan.json")["repeated"]
    checks = [_read_json(_masks_path(work, rank).with_suffix(".json")) for rank in range(num_shards)]
    results = [_read_json(work / "pairs" / f"{rank:05d}.json") for rank in range(num_shards)]
    all_masks, counts, distort, skipped = [], Counter(), Counter(), {}
    for result in results:
        distort.update(result["distort"])
    for number, (split, dataset) in enumerate(rows.items()):
        masks = _read_shards(work, f"masks{number}", num_shards)
        masks[repeated[split]] = BAD_ROW
        all_masks.append(masks)
        entries = [_repeated(dataset, index) for index in repeated[split]]
        for check, result in zip(checks, results, strict=True):
            entries += [Skipped(*entry) for entry in check[split] + result["splits"][split]["skipped"]]
            counts.update({tuple(key): count for *key, count in result["splits"][split]["counts"]})
        skipped[split] = sorted(entries)
    return np.concatenate(all_masks), counts, distort, skipped


def _finish(
    rows: Rows,
    settings: dict[str, Any],
    report: SynthesisReport,
    skipped: dict[str, list[Skipped]],
    dst: Path,
    num_shards: int,
) -> None:
    """Put the shards together, with their card, and the folder in place."""
    work, made = dst / WORK_FOLDER, dst / WORK_FOLDER / "made"
    shutil.rmtree(made, ignore_errors=True)
    pairs = datasets.DatasetDict()
    for split in rows:
        shards = [datasets.Dataset.from_file(str(_pairs_path(work, split, rank))) for rank in range(num_shards)]
        joined = datasets.concatenate_datasets(shards)
        # A name that depends neither on the folder nor on the time.
        fingerprint = hashlib.sha256(json.dumps([settings, split], sort_keys=True).encode()).hexdigest()[:16]
        info = datasets.DatasetInfo(features=PREFERENCE_FEATURES)
        if len(joined):
            pairs[split] = datasets.Dataset(joined.data, info=info, split=split, fingerprint=fingerprint)
    pairs.save_to_disk(made)
    report.content_hash = _hash_files(sorted(made.glob("*/*.arrow")))
    lines = [
        json.dumps({"split": split, **entry._asdict()}, ensure_ascii=False) + "\n"
        for split, entries in skipped.items()
        for entry in entries
    ]
    (made / SKIPPED_FILE).write_text("".join(lines), encoding="utf-8")
    write_card(made, pairs, settings, report)
    for path in sorted(made.iterdir()):
        target = dst / path.name
        if target.is_dir():  # a kill came between two of them
            shutil.rmtree(target)
        os.replace(path, target)
    # The last one: with it the folder is finished.
    _write_json(dst / RESULT_FILE, {**settings, "report": dataclasses.asdict(report)})
    shutil.rmtree(work)


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
