# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal synthesize`."""

import argparse

from .common import print_table
from .data import add_executor_arguments


def add_synthesize_parser(verbs) -> None:
    parser = verbs.add_parser("synthesize", help="preference pairs from a data set")
    parser.add_argument(
        "source", metavar="SRC", help="data set on disk or on the Hub, or a JSON, JSONL or Parquet file"
    )
    parser.add_argument("destination", metavar="DST", help="folder to write")
    perturb = parser.add_argument_group("perturbations of the right response")
    perturb.add_argument("--config", metavar="FILE", help="settings, e.g. recipes/synthesis/default.yaml")
    perturb.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    perturb.add_argument("--push-to-hub", metavar="REPO", help="upload DST to this data set repository")
    add_executor_arguments(perturb)
    on_policy = parser.add_argument_group("a model's own wrong answers instead; called again, it goes on")
    on_policy.add_argument("--on-policy", metavar="MODEL", help="folder or Hub repository of a D2VLM")
    on_policy.add_argument("--split", default="train", help="split of SRC (default: train)")
    on_policy.add_argument("--max-f1", type=float, default=0.5, help="grounding F1 below which an answer is wrong")
    on_policy.add_argument("--max-caption-score", type=float, default=0.5, help="the same for its words")
    on_policy.add_argument("--batch-size", type=int, default=32, help="rows that are answered together (default: 32)")
    on_policy.add_argument("--max-new-tokens", type=int, default=256, help="length of an answer (default: 256)")
    parser.set_defaults(run=_synthesize)


def _synthesize(args: argparse.Namespace) -> int:
    if args.on_policy is not None:
        return _synthesize_on_policy(args)
    from ..synthesis import SynthesisConfig, push_to_hub, report_table, synthesize_path

    report = synthesize_path(
        args.source,
        args.destination,
        None if args.config is None else SynthesisConfig.from_yaml(args.config),
        num_workers=args.num_workers,
        resume=args.resume,
        executor=args.executor,
        executor_args=args.executor_args,
    )
    if report is None:
        print("Submitted. Run the same command with --resume when the jobs are done.")
        return 0
    print_table(report_table(report))
    print(f"Wrote {args.destination}")
    if args.push_to_hub is not None:
        print(f"Uploaded to {push_to_hub(args.destination, args.push_to_hub)}")
    return 0


def _synthesize_on_policy(args: argparse.Namespace) -> int:
    from functools import partial

    from accelerate import PartialState

    from ..data.validation import load_rows
    from ..evaluation.generation import generate_answers
    from ..evaluation.loading import load_model
    from ..synthesis.on_policy import collect_on_policy

    if args.config is not None:
        raise ValueError("--config is for perturbations; --on-policy takes --max-f1 and --max-caption-score.")
    splits = load_rows(args.source)
    if args.split not in splits:
        raise ValueError(
            f"{args.source} has no split {args.split!r}; it has {', '.join(splits)}. Name one by --split."
        )
    model, processor = load_model(args.on_policy)
    generate = partial(
        generate_answers,
        model.to(PartialState().device),
        processor,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        progress=False,
    )
    _, counts = collect_on_policy(
        splits[args.split],
        generate,
        args.destination,
        max_f1=args.max_f1,
        max_caption_score=args.max_caption_score,
        model_name=args.on_policy,
    )
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"Wrote {args.destination}")
    return 0
