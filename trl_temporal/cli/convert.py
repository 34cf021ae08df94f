# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal convert`."""

import argparse
import re
from collections import Counter
from collections.abc import Iterable

from .common import DTYPES


def add_convert_parser(verbs) -> None:
    parser = verbs.add_parser("convert", help="convert released checkpoints to folders for `AutoModel`, and back")
    families = parser.add_subparsers(title="model families", metavar="<family>", required=True)
    d2vlm = families.add_parser(
        "d2vlm",
        help="D2VLM, and the stage-2 checkpoint of E.T. Chat that it is trained from",
        description="Convert a checkpoint of D2VLM or E.T. Chat (stage 2), or one of ours back with --reverse.",
    )
    d2vlm.add_argument("source", metavar="SRC", help="folder, or repository (org/name or org/name/folder) on the Hub")
    d2vlm.add_argument("destination", metavar="DST", help="folder to write; must not exist, or be empty")
    d2vlm.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: as in SRC)")
    d2vlm.add_argument(
        "--merge-adapter", action="store_true", help="merge LoRA factors (default: DST/adapter for PEFT)"
    )
    d2vlm.add_argument("--base", metavar="DIR", help="folder or repository with the weights that LoRA did not train")
    d2vlm.add_argument(
        "--qformer-tokenizer",
        metavar="PATH_OR_ID",
        help="vocab.txt, or folder or repository with it (default: in SRC, else google-bert/bert-base-uncased)",
    )
    d2vlm.add_argument("--reverse", action="store_true", help="from our folder SRC to a released one")
    d2vlm.add_argument("--push-to-hub", metavar="REPO", help="upload DST to this repository")
    d2vlm.set_defaults(run=_convert_d2vlm)


def _convert_d2vlm(args: argparse.Namespace) -> int:
    import torch

    from ..models.d2vlm.convert_d2vlm_to_hf import ConversionError, convert_d2vlm_to_hf
    from ..models.d2vlm.convert_hf_to_d2vlm import convert_hf_to_d2vlm

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    shared = {"dtype": dtypes.get(args.dtype), "push_to_hub": args.push_to_hub}
    if args.reverse:
        if args.merge_adapter or args.base or args.qformer_tokenizer:
            raise ConversionError("--reverse takes none of --merge-adapter, --base and --qformer-tokenizer.")
        report = convert_hf_to_d2vlm(args.source, args.destination, **shared)
    else:
        report = convert_d2vlm_to_hf(
            args.source,
            args.destination,
            merge_adapter=args.merge_adapter,
            base=args.base,
            qformer_tokenizer=args.qformer_tokenizer,
            **shared,
        )
    _print_conversion(report)
    return 0


def _print_conversion(report) -> None:
    """The fate of every tensor; what was only renamed is shown by the beginnings of the names that differ."""
    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(name, overflow="fold") for name in ("in SRC", "in DST", "how")]
    table = Table(*columns, Column("tensors", justify="right"), title="Tensors")
    kinds = {"used": report.used, "joined or split": report.joined, "merged": report.merged}
    for kind, names in kinds.items():
        for (source, target), count in _count_alike(map(_shorten, names.items())).items():
            table.add_row(source, target, kind, str(count))
    for (source, reason), count in _count_alike(report.ignored.items()).items():
        table.add_row(source, "-", f"ignored: {reason}", str(count))
    for (target, reason), count in _count_alike(report.new.items()).items():
        table.add_row("-", target, reason, str(count))
    console = Console()
    console.print(table)
    counts = {**{kind: len(names) for kind, names in kinds.items()}, "ignored": len(report.ignored)}
    console.print(", ".join(f"{count} {kind}" for kind, count in {**counts, "new": len(report.new)}.items() if count))
    for note in report.notes:
        console.print(note, highlight=False, markup=False)
    console.print(f"Wrote {report.destination}", highlight=False, markup=False)


def _shorten(names: tuple[str, str]) -> tuple[str, str]:
    """Two names without the part at the end that they share."""
    source, target = (name.split(".") for name in names)
    if source == target:
        return names
    while source[1:] and source[-1] == target[-1]:
        source.pop()
        target.pop()
    rest = "" if ".".join(source) == names[0] else ".*"
    return ".".join(source) + rest, ".".join(target) + rest


def _count_alike(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """How often each pair occurs, whatever the numbers of the layers."""
    return Counter(tuple(re.sub(r"\.\d+(?=\.)", ".N", text) for text in pair) for pair in pairs)
