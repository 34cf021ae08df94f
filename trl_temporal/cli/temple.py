# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal temple`."""

import argparse

from .common import DTYPES, print_table
from .data import add_executor_arguments


def add_temple_parser(verbs) -> None:
    parser = verbs.add_parser("temple", help="TEMPLE: from videos to preference pairs that differ in time")
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)

    select = actions.add_parser(
        "select",
        help="find videos of several scenes, their clips and key frames",
        description="Select videos and write OUT/selected.jsonl, and OUT/rejected.jsonl with the reason of each "
        "rejection; called again, it goes on where it was stopped. Exit code 1 if no video is selected.",
    )
    select.add_argument("videos", metavar="VIDEOS", help="folder of videos, data set, or video")
    select.add_argument("output", metavar="OUT", help="folder to write")
    select.add_argument(
        "--detector",
        metavar="MODULE:FUNCTION",
        help="finds shots: from a path to [(start_s, end_s), ...] (default: PySceneDetect)",
    )
    select.add_argument(
        "--embedder",
        metavar="MODEL",
        default="google/siglip-so400m-patch14-384",
        help="folder or Hub repository of SigLIP, CLIP or their like, MODULE:FUNCTION, or histogram, which needs no "
        "weights (default: %(default)s)",
    )
    add_executor_arguments(select)
    select.set_defaults(run=_temple_select)

    caption = actions.add_parser(
        "caption",
        help="describe the selected videos, and perturbed ones",
        description="Caption the clips of selected videos and put the captions together, in order and perturbed. "
        "Writes DST/descriptions.jsonl, and DST/skipped.jsonl with what is missing; called again, it goes on where it "
        "was stopped. `accelerate launch -m trl_temporal.cli temple caption ...` uses several GPUs.",
    )
    caption.add_argument("selected", metavar="SELECTED", help="folder of `temple select`")
    caption.add_argument("destination", metavar="DST", help="folder to write")
    caption.add_argument("--model", required=True, help="video model: folder, Hub repository, or name at --endpoint")
    caption.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1")
    caption.add_argument("--prompts", metavar="FILE", help="YAML with other wordings, see docs/temple.md")
    caption.add_argument("--level", choices=("captions", "frames"), default="captions", help="what is perturbed")
    caption.add_argument("--factors", nargs="+", metavar="FACTOR", help="default: drop shuffle reverse")
    caption.add_argument("--keep-ratios", nargs="+", type=int, metavar="R", help="default: 16 8 4 2")
    caption.add_argument("--seed", type=int, help="of perturbations and sampling (default: 0)")
    caption.add_argument("--temperature", type=float, help="of descriptions (default: 0.7)")
    caption.add_argument("--repetition-penalty", type=float, help="of descriptions (default: 1.05; 1 for OpenAI)")
    caption.add_argument("--max-tokens", type=int, help="length of a description (default: 2048)")
    caption.add_argument("--max-pixels", type=int, help="larger frames are shrunk (default: 401408)")
    caption.add_argument(
        "--batch-size", type=int, help="requests together (default: 8; with --endpoint 128, of which 32 at a time)"
    )
    caption.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="type of the weights")
    caption.add_argument("--revision", help="revision of the model on the Hub")
    caption.add_argument("--trust-remote-code", action="store_true", help="run code of the model's repository")
    caption.set_defaults(run=_temple_caption)

    pairs = actions.add_parser("pairs", help="descriptions to a data set of preference pairs")
    pairs.add_argument("described", metavar="DESCRIBED", help="folder of `temple caption`")
    pairs.add_argument("destination", metavar="DST", help="folder to write; must not exist, or be empty")
    pairs.add_argument("--prompts", metavar="FILE", help="YAML whose `questions` the user asks")
    pairs.add_argument("--seed", type=int, default=0, help="draws the questions (default: 0)")
    pairs.set_defaults(run=_temple_pairs)

    check = actions.add_parser(
        "check",
        help="how much chosen and rejected differ, by difficulty",
        description="Exit code 1 if at some difficulty more than half of the pairs are nearly equal.",
    )
    check.add_argument("pairs", metavar="PAIRS", help="folder of `temple pairs`, or another data set of pairs")
    check.add_argument(
        "--output", metavar="FILE", default="signal.svg", help="drawing to write (default: %(default)s)"
    )
    check.add_argument("--threshold", type=float, default=0.97, help="similarity without a signal (default: 0.97)")
    check.add_argument(
        "--sentence-model", metavar="PATH_OR_ID", help="encoder for cosines (default: all-MiniLM-L6-v2, if installed)"
    )
    check.set_defaults(run=_temple_check)


def _temple_select(args: argparse.Namespace) -> int:
    from ..synthesis.temple_selection import select_path

    return select_path(
        args.videos,
        args.output,
        detector=args.detector,
        embedder=args.embedder,
        num_workers=args.num_workers,
        executor=args.executor,
        executor_args=args.executor_args,
    )


def _temple_caption(args: argparse.Namespace) -> int:
    from dataclasses import fields

    import torch
    from accelerate import PartialState

    from ..synthesis.temple_captions import TempleCaptionConfig, caption_path
    from ..synthesis.temple_prompts import read_prompts
    from ..synthesis.temple_requests import EndpointCaptioner

    names = [entry.name for entry in fields(TempleCaptionConfig) if vars(args).get(entry.name) is not None]
    given = {name: vars(args)[name] for name in names}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    config, prompts = TempleCaptionConfig(**given), read_prompts(args.prompts)
    # Without `cpu` accelerate looks for an accelerator, and without one each process would do all of the work.
    state = PartialState(cpu=args.endpoint is not None or not torch.accelerator.is_available())
    if args.endpoint is None:
        from ..evaluation.loading import describe_model, load_model
        from ..evaluation.temple_captioner import ModelCaptioner

        from_hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
        model, processor = load_model(args.model, args.dtype, **from_hub)
        described = describe_model(model, args.model, args.revision)
        captioner = ModelCaptioner(model.to(state.device), processor)
        version = (described.get("sha256") or described.get("commit") or "")[:12]
        name = f"{described['name']}@{version}, {described['dtype']}"
    else:
        captioner, name = EndpointCaptioner(args.endpoint, args.model), args.model
    report = caption_path(
        args.selected,
        args.destination,
        captioner,
        name,
        config,
        prompts,
        batch_size=args.batch_size or (8 if args.endpoint is None else 128),
        process=(state.process_index, state.num_processes),
        wait=state.wait_for_everyone,
        progress=state.is_main_process,
    )
    if state.is_main_process:
        print(f"Described {report.num_described:,} of {report.num_videos:,} videos")
        for reason, count in report.reasons.items():
            print(f"missing, {reason}: {count:,}")
        print(f"Wrote {args.destination}")
    return 0 if report.num_described else 1


def _temple_pairs(args: argparse.Namespace) -> int:
    from ..synthesis.temple_folder import pairs_table, write_temple_pairs
    from ..synthesis.temple_prompts import read_prompts

    questions = read_prompts(args.prompts).questions
    report = write_temple_pairs(args.described, args.destination, seed=args.seed, questions=questions)
    print_table(pairs_table(report))
    print(f"Wrote {args.destination}")
    return 0


def _temple_check(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..data.validation import load_rows
    from ..evaluation.metrics.sentence_similarity import SentenceEncoder, SentenceModelMissing
    from ..synthesis.temple_signal import check_signal, draw_signal, signal_table

    rows = [row for split in load_rows(args.pairs).values() for row in split]
    try:
        embed = SentenceEncoder(args.sentence_model).encode
    except SentenceModelMissing as error:
        if args.sentence_model is not None:
            raise ValueError(str(error)) from error
        print(f"No cosines: {error}")
        embed = None
    cells = check_signal(rows, embed, args.threshold)
    print_table(signal_table(cells))
    for cell in cells:
        if cell.warning:
            print(f"Warning: {cell.warning}")
    Path(args.output).write_text(draw_signal(cells), encoding="utf-8")
    print(f"Wrote {args.output}")
    return int(any(cell.vanishes for cell in cells))
