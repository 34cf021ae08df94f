# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal data`."""

import argparse
import json


def add_data_parser(verbs) -> None:
    parser = verbs.add_parser("data", help="annotation files to data sets; check, scan and look at data sets")
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)

    convert = actions.add_parser("convert", help="an annotation file to a data set on disk")
    convert.add_argument("name", metavar="NAME", help="format, e.g. charades_sta; an unknown one lists them all")
    convert.add_argument("source", metavar="SRC", help="annotation file")
    convert.add_argument("destination", metavar="DST", help="folder to write")
    convert.add_argument(
        "--video-root", metavar="DIR", help="folder with the videos: rows without theirs are left out"
    )
    convert.add_argument("--seed", type=int, default=0, help="decides the wording of the questions (default: 0)")
    convert.add_argument("--on-bad-record", choices=("raise", "skip"), default="raise", help="default: raise")
    convert.add_argument("--split", default="train", help="name of the split (default: train)")
    convert.add_argument("--subset", help="of files that hold several, e.g. validation of youcook2")
    convert.add_argument("--durations", metavar="FILE", help="CSV of video and seconds, where SRC does not say them")
    convert.set_defaults(run=_data_convert)

    validate = actions.add_parser("validate", help="check every row; exit code 1 if one is at fault")
    validate.add_argument(
        "path", metavar="PATH", help="data set on disk or on the Hub, or a JSON, JSONL or Parquet file"
    )
    validate.add_argument("--limit", type=int, default=20, help="faults to print (default: 20)")
    validate.set_defaults(run=_data_validate)

    scan = actions.add_parser("scan", help="read every video; the manifest tells training which can be used")
    scan.add_argument("path", metavar="PATH", help="data set, video, or folder of videos")
    scan.add_argument("manifest", metavar="MANIFEST", help="file to write: .jsonl or .parquet")
    scan.add_argument("--header-only", action="store_true", help="decode the first frame alone (quick, but trusting)")
    add_executor_arguments(scan)
    scan.set_defaults(run=_data_scan)

    view = actions.add_parser("view", help="a data set as one HTML page to look through")
    view.add_argument("path", metavar="PATH", help="data set on disk, or a JSONL or Parquet file")
    view.add_argument("--output", metavar="FILE", help="page to write (default: NAME.view.html in this folder)")
    view.add_argument("--max-rows", type=int, default=2000, help="rows in the page (default: 2000)")
    view.add_argument("--no-browser", action="store_true", help="write the page, do not open it")
    view.set_defaults(run=_data_view)


def add_executor_arguments(parser: argparse.ArgumentParser, num_workers: int = 2) -> None:
    parser.add_argument("--num-workers", type=int, default=num_workers, help=f"processes (default: {num_workers})")
    parser.add_argument(
        "--executor", choices=("local", "slurm", "ray"), default="local", help="where they run (default: local)"
    )
    parser.add_argument(
        "--executor-args",
        type=json.loads,
        metavar="JSON",
        help="""more of datatrove's executor, e.g. '{"partition": "cpu", "time": "2:00:00"}' for Slurm""",
    )


def _data_convert(args: argparse.Namespace) -> int:
    from ..data.convert import convert

    convert(
        args.name,
        args.source,
        args.destination,
        video_root=args.video_root,
        seed=args.seed,
        on_bad_record=args.on_bad_record,
        split=args.split,
        subset=args.subset,
        durations=args.durations,
    )
    return 0


def _data_validate(args: argparse.Namespace) -> int:
    from ..data.validation import validate_path

    return validate_path(args.path, limit=args.limit)


def _data_scan(args: argparse.Namespace) -> int:
    from ..data.scan import scan_path

    return scan_path(
        args.path,
        args.manifest,
        num_workers=args.num_workers,
        decode="header" if args.header_only else "full",
        executor=args.executor,
        executor_args=args.executor_args,
    )


def _data_view(args: argparse.Namespace) -> int:
    from ..report.data_view import view

    page = view(args.path, args.output, max_rows=args.max_rows, open_browser=not args.no_browser)
    print(f"Wrote {page}")
    return 0
