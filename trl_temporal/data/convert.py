# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Annotation files in, a data set on disk out: `trl-temporal data convert`."""

import hashlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets.arrow_writer import ArrowWriter
from huggingface_hub import DatasetCardData
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from . import converters
from .converters.annotation_files import Record, RecordFault, read_json_list
from .converters.records import ConversionReport, OnBadRecord, rows_of_records
from .schema import EVALUATION_FEATURES, PREFERENCE_FEATURES, SFT_FEATURES

SKIPPED_FILE, MISSING_FILE = "skipped.jsonl", "missing_videos.txt"


def _read_d2vlm(
    src: str | os.PathLike,
    *,
    kind: Literal["sft", "preference"],
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    report: ConversionReport | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of `load_d2vlm`, one by one."""

    def make_rows(record: Record, changes: Counter) -> Iterator[dict[str, Any]]:
        row_id = f"{Path(src).stem}-{record.index}"
        try:
            with warnings.catch_warnings(record=True) as mended:
                warnings.simplefilter("always")
                if kind == "sft":
                    row = converters.sft_row_from_d2vlm(record.data, id=row_id)
                else:
                    key = rejected_keys.get(record.index)
                    row = converters.preference_row_from_d2vlm(record.data, id=row_id, rejected_key=key)
        except (TypeError, AttributeError) as error:
            raise RecordFault("record", f"cannot be read ({error})", "Give its fields their released types") from None
        changes["records with intervals turned round or clipped"] += len(mended)
        changes["segments"] += len(row["spans" if kind == "sft" else "chosen_spans"])
        yield row

    rejected_keys: dict[int, str | None] = {}
    if kind == "preference":
        # A record without conversations takes no draw, so the others keep theirs; its fault is found with its row.
        usable = [record for record in read_json_list(src) if _has_conversations(record.data)]
        keys = converters.choose_rejected([record.data for record in usable])
        rejected_keys = {record.index: key for record, key in zip(usable, keys, strict=True)}
    yield from rows_of_records(
        src,
        read_json_list(src),
        make_rows,
        video_root=video_root,
        on_bad_record=on_bad_record,
        report=report,
        kind=kind,
    )


def _has_conversations(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("conversations"), dict)


READERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "etinstruct": converters.read_etinstruct,
    "etbench": converters.read_etbench,
    "charades_sta": converters.read_charades_sta,
    "qvhighlights": converters.read_qvhighlights,
    "youcook2": converters.read_youcook2,
    "activitynet_captions": converters.read_activitynet_captions,
    "nextgqa": converters.read_nextgqa,
    "didemo": converters.read_didemo,
    "spans_file": converters.read_spans_file,
    "clip_events": converters.read_clip_events,
    "d2vlm": partial(_read_d2vlm, kind="sft"),
    "d2vlm_preference": partial(_read_d2vlm, kind="preference"),
}
WITH_SUBSETS = ("youcook2", "activitynet_captions")
WITH_DURATIONS = ("charades_sta", "didemo")

_FEATURES = {
    **dict.fromkeys(READERS, SFT_FEATURES),
    **dict.fromkeys(("etbench", "qvhighlights", "nextgqa"), EVALUATION_FEATURES),
    "d2vlm_preference": PREFERENCE_FEATURES,
}

# What the publishers say, as far as they do; footage often stands under other terms than its annotations.
LICENCES = {
    "etinstruct": "E.T. Instruct 164K: CC BY-NC-SA 4.0 (its data set card). No commercial use.",
    "etbench": "E.T. Bench: CC BY-NC-SA 4.0 (its data set card). No commercial use.",
    "charades_sta": "Charades-STA is derived from Charades, whose licence allows no commercial use.",
    "qvhighlights": "QVHighlights annotations: CC BY-NC-SA 4.0. No commercial use.",
    "youcook2": "YouCook2: the terms of its authors apply; no licence file is known.",
    "activitynet_captions": "ActivityNet Captions: no licence file is known; ask its authors before you publish.",
    "nextgqa": "NExT-GQA annotations: MIT (its repository). The videos have licences of their own.",
    "didemo": "DiDeMo annotations: BSD 2-Clause (its repository). The videos: various Creative Commons licences.",
    "spans_file": "The licence is that of your file.",
    "clip_events": "The licence is that of your file.",
    "d2vlm": "D2VLM's annotations are made from E.T. Instruct 164K, CC BY-NC-SA 4.0. No commercial use.",
    "d2vlm_preference": "D2VLM's annotations are made from E.T. Instruct 164K, CC BY-NC-SA 4.0. No commercial use.",
}


def convert(
    name: str,
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    video_root: str | os.PathLike | None = None,
    seed: int = 0,
    on_bad_record: OnBadRecord = "raise",
    split: str = "train",
    subset: str | None = None,
    durations: str | os.PathLike | None = None,
) -> ConversionReport:
    """
    Convert an annotation file to a data set on disk, with a card, and print what was done.

    Rows are written as they are made, so that the memory stays flat. `dst` appears when everything is in it: a
    conversion that fails or is killed leaves no half of it.

    Args:
        name (`str`):
            Format of the file, a key of `READERS`, e.g. `"etinstruct"`; `docs/datasets.md` lists them.
        src (`str` or `os.PathLike`):
            Annotation file.
        dst (`str` or `os.PathLike`):
            Folder to write; it must not exist, or be empty. `datasets.load_from_disk(dst)` and
            `datasets.load_dataset(dst)` read it. `skipped.jsonl` in it lists the records that were left out, and
            `missing_videos.txt` the videos that were not found.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos. Rows of missing videos are counted and left out. Without it the rows keep the names
            of the videos, and no video is looked for.
        seed (`int`, *optional*, defaults to `0`):
            With each row's id it chooses the wording of the question.
        on_bad_record (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at the first bad record, `"skip"` counts it, lists it and goes on.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split to write.
        subset (`str`, *optional*):
            Subset to read of a file with several (YouCook2, ActivityNet), e.g. `"validation"`.
        durations (`str` or `os.PathLike`, *optional*):
            File with the durations of the videos (Charades-STA, DiDeMo), see the readers.

    Returns:
        `ConversionReport`: what was done.

    Raises:
        `ValueError`: the name is unknown, the file is broken, a record is bad and `on_bad_record` is `"raise"`, or no
            row could be made.
        `FileExistsError`: `dst` is there and not empty.

    Example:

    ```python
    >>> from trl_temporal.data.convert import convert
    >>> report = convert("charades_sta", "charades_sta_test.txt", "charades", split="test")  # doctest: +SKIP
    ```
    """
    if name not in READERS:
        raise ValueError(f"there is no format '{name}'. The formats are: {', '.join(READERS)}.")
    options = {}
    for option, value, names in (("subset", subset, WITH_SUBSETS), ("durations", durations, WITH_DURATIONS)):
        if value is not None and name not in names:
            raise ValueError(f"'{name}' takes no {option}; only {' and '.join(names)} do. Leave it out.")
        options |= {} if value is None else {option: value}
    dst = Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise FileExistsError(f"'{dst}' is there already. Remove it, or choose another folder.")
    digest = _sha256(src)

    report = ConversionReport()
    rows = READERS[name](src, video_root=video_root, seed=seed, on_bad_record=on_bad_record, report=report, **options)
    dst.parent.mkdir(parents=True, exist_ok=True)
    # In the folder of `dst`, so that the last step is a rename.
    with tempfile.TemporaryDirectory(dir=dst.parent, prefix=f".{dst.name}-") as folder:
        work, made = Path(folder), Path(folder) / "made"
        example = _write_rows(rows, name, work / "rows.arrow")
        if not report.rows:
            raise ValueError(_no_rows(src, report))
        dataset = datasets.Dataset.from_file(str(work / "rows.arrow"))
        datasets.DatasetDict({split: dataset}).save_to_disk(made)
        _write_lines(made / SKIPPED_FILE, map(partial(json.dumps, ensure_ascii=False), report.skipped))
        if report.missing_videos:
            _write_lines(made / MISSING_FILE, sorted(report.missing_videos))
        made_of = {"format": name, "file": Path(src).name, "sha256": digest, "seed": seed, **options}
        made_of = {key: Path(value).name if key == "durations" else value for key, value in made_of.items()}
        video = example["videos"][0]
        video["path"] = Path(video["path"]).name  # the card may be published: no folders of this machine
        (made / "README.md").write_text(_card(name, split, made_of, report, example), encoding="utf-8")
        if dst.exists():
            dst.rmdir()
        os.replace(made, dst)
    Console().print(report_table(name, report), highlight=False)
    return report


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_rows(rows: Iterator[dict[str, Any]], name: str, path: Path) -> dict[str, Any] | None:
    """Write the rows to an Arrow file as they come, and return the first."""
    features = _FEATURES[name]
    first = None
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in tqdm(rows, desc=f"Converting {name}", unit=" rows"):
            row = {column: row.get(column) for column in features}
            first = first or row
            writer.write(row)
        if first is not None:
            writer.finalize()
    return first


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _no_rows(src: str | os.PathLike, report: ConversionReport) -> str:
    if report.skipped:
        first = report.skipped[0]
        return (
            f"{src}: none of the {report.records} records can be used. The first: {first['record']}, {first['reason']}"
        )
    if report.missing_videos:
        some = sorted(report.missing_videos)[0]
        return f"{src}: none of the {len(report.videos)} videos is there, such as '{some}'. Mend the video root."
    return f"{src}: has no records. Check that it is the annotation file."


def _counts(report: ConversionReport) -> dict[str, str]:
    """What the table and the card tell, in words."""
    counts = {
        "records": f"{report.records:,}",
        "records left out": f"{len(report.skipped):,}",
        "annotated intervals": f"{report.segments:,}",
        "rows": f"{report.rows:,}",
        **{f"rows, {task}": f"{count:,}" for task, count in sorted(report.tasks.items())},
        "videos": f"{len(report.videos):,}",
    }
    if report.looked_for_videos:
        num_found = len(report.videos) - len(report.missing_videos)
        counts["videos found"] = f"{num_found:,} ({num_found / max(len(report.videos), 1):.1%})"
        counts["rows left out, video missing"] = f"{report.rows_without_video:,}"
    else:
        counts["videos found"] = "not looked for: no video root"
    return {**counts, **{change: f"{count:,}" for change, count in sorted(report.changes.items())}}


def report_table(name: str, report: ConversionReport) -> Table:
    """
    What a conversion did, as a table for the terminal.

    Args:
        name (`str`):
            Format that was converted.
        report (`ConversionReport`):
            Its counts.

    Returns:
        `rich.table.Table`: one line per count.
    """
    table = Table("what", title=f"Converted {name}")
    table.add_column("how many", justify="right")
    for what, count in _counts(report).items():
        table.add_row(what, count)
    for skipped in report.skipped[:5]:
        table.add_row(escape(f"left out: {skipped['record']}, {skipped['reason']}"), "")
    if len(report.skipped) > 5:
        table.add_row(f"and others, see {SKIPPED_FILE}", "")
    return table


def _card(name: str, split: str, made_of: dict[str, Any], report: ConversionReport, example: dict[str, Any]) -> str:
    data = DatasetCardData(
        pretty_name=f"{name}, {split}",
        task_categories=["video-text-to-text"],
        tags=["temporal-grounding", "trl_temporal"],
        size_categories=_size_category(report.rows),
        configs=[{"config_name": "default", "data_files": [{"split": split, "path": f"{split}/*.arrow"}]}],
    )
    counts = "\n".join(f"| {what} | {count} |" for what, count in _counts(report).items())
    sources = "\n".join(f"| {key} | `{value}` |" for key, value in made_of.items())
    return f"""---
{data.to_yaml()}
---

# {name}, split {split}

Rows for `trl_temporal`, made by `trl-temporal data convert {name}` from the annotation file below. Spans are seconds
from the start of the video; `<evi>` in an answer stands for one of them. The videos themselves are not in here.

| made of | |
|---|---|
{sources}

| what | how many |
|---|---|
{counts}

Records that were left out are in `{SKIPPED_FILE}`, with the reason.

## Licence

{LICENCES[name]} The rows quote the annotations and stand under their terms.

## A row

```json
{json.dumps(example, indent=1, ensure_ascii=False)}
```
"""


def _size_category(num_rows: int) -> str:
    for limit, text in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if num_rows < limit:
            return text
    return "n>1M"
