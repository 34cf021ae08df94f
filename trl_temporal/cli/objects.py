# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal objects`."""

import argparse

from .data import add_executor_arguments


def add_objects_parser(verbs) -> None:
    parser = verbs.add_parser("objects", help="find and track the objects of questions in their videos")
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)

    extract = actions.add_parser(
        "extract",
        help="add objects, masks and their status to a data set",
        description="Look for the nouns of every question in its video, track them, and write the data set with the "
        "columns object_* and grounding_status. Nouns are those of the column `objects`, else of the question. Called "
        "again, it goes on where it was stopped.",
    )
    extract.add_argument("source", metavar="SRC", help="data set on disk or on the Hub, or a JSON or Parquet file")
    extract.add_argument("destination", metavar="DST", help="folder to write; must not exist, or be empty")
    extract.add_argument("--detector", metavar="MODEL", help="GroundingDINO (default: its tiny one) or OWLv2")
    extract.add_argument("--tracker", metavar="MODEL", help="SAM 2 for video (default: 2.1, hiera-tiny)")
    extract.add_argument(
        "--nouns",
        metavar="MODULE:FUNCTION",
        help="finds the nouns of a question: text -> [noun, ...] (default: rules)",
    )
    extract.add_argument("--num-frames", type=int, default=96, help="frames of each video (default: 96)")
    extract.add_argument("--max-side", type=int, default=640, help="pixels of larger frames (default: 640)")
    extract.add_argument("--mask-side", type=int, default=224, help="pixels of larger masks (default: 224)")
    extract.add_argument("--detection-threshold", type=float, default=0.25, help="score of a noun (default: 0.25)")
    extract.add_argument(
        "--and-gate-persistence", type=int, default=3, help="frames in a row with all nouns (default: 3)"
    )
    extract.add_argument("--fallback-floor", type=float, default=0.1, help="score of the fallback (default: 0.1)")
    extract.add_argument("--gate-min-span", type=int, default=1, help="frames of the baseline's span (default: 1)")
    extract.add_argument("--strict-gate", action="store_true", help="track nothing where the gate never opens")
    extract.add_argument(
        "--no-track-backward", dest="track_backward", action="store_false", help="as in the paper: from the start on"
    )
    extract.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="default: raise")
    extract.add_argument("--cache", metavar="DIR", help="folder of what was found (default: DST.cache)")
    add_executor_arguments(extract, num_workers=1)
    extract.set_defaults(run=_objects_extract)


def _objects_extract(args: argparse.Namespace) -> int:
    from dataclasses import fields

    from ..objects.extract import extract_path
    from ..objects.stage import ObjectStageConfig

    return extract_path(
        args.source,
        args.destination,
        detector=args.detector,
        tracker=args.tracker,
        nouns=args.nouns,
        config=ObjectStageConfig(**{entry.name: vars(args)[entry.name] for entry in fields(ObjectStageConfig)}),
        on_error=args.on_error,
        cache=args.cache,
        num_workers=args.num_workers,
        executor=args.executor,
        executor_args=args.executor_args,
    )
