# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal <verb>`. A verb is a function that adds its parser and one that runs it, with its imports."""

import argparse
import sys
from collections.abc import Sequence

from .convert import add_convert_parser
from .data import add_data_parser
from .evaluate import add_analyze_parser, add_eval_parser
from .hub import add_merge_parser, add_push_parser
from .objects import add_objects_parser
from .synthesize import add_synthesize_parser
from .temple import add_temple_parser
from .train import add_cache_parser, add_plan_parser, run_plan


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Its words, e.g. `["convert", "d2vlm", "released", "converted"]`. Defaults to those of the command line.

    Returns:
        `int`: the exit code, 0 for success.
    """
    parser = argparse.ArgumentParser(
        prog="trl-temporal", description="Train, evaluate and publish temporally grounded video-language models."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="<verb>", required=True)
    add_convert_parser(verbs)
    add_data_parser(verbs)
    add_synthesize_parser(verbs)
    add_eval_parser(verbs)
    add_analyze_parser(verbs)
    add_plan_parser(verbs)
    add_cache_parser(verbs)
    add_merge_parser(verbs)
    add_push_parser(verbs)
    add_temple_parser(verbs)
    add_objects_parser(verbs)
    args, others = parser.parse_known_args(argv)
    if args.run is run_plan:
        args.training_flags = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("trl-temporal: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # bad input: our errors say what to do, and a traceback would hide it
        print(f"trl-temporal: {error}", file=sys.stderr)
        return 1
