# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal plan` and `cache`: what comes before training."""

import argparse
import json

from .common import DTYPES
from .data import add_executor_arguments


def add_plan_parser(verbs) -> None:
    parser = verbs.add_parser(
        "plan",
        help="tokens, steps and memory of a training run, before it starts",
        description="Reads a recipe as examples/sft.py and examples/fpo.py do; their flags may follow, and win. Loads "
        "no weights. Exit code 1 if the run would not fit the memory of a device.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="CONFIG", help="YAML file, e.g. recipes/qwen3_vl_4b/sft.yaml")
    parser.add_argument("--method", choices=("sft", "fpo"), help="what is trained (default: the name of the file)")
    parser.add_argument(
        "--device_memory_gb", type=float, help="memory of a device in GiB (default: the GPU's, else the machine's)"
    )
    parser.add_argument("--num_processes", type=int, default=1, help="devices that train together (default: 1)")
    parser.add_argument("--num_sampled", type=int, default=8, help="rows whose tokens are counted (default: 8)")
    parser.add_argument("--json", action="store_true", help="print the plan for a program")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console

    from ..trainer.plan import format_plan, plan_training, read_config

    plan = plan_training(
        *read_config(args.recipe, args.training_flags, args.method),
        device_memory_gb=args.device_memory_gb,
        num_processes=args.num_processes,
        num_sampled=args.num_sampled,
    )
    if args.json:
        print(json.dumps(asdict(plan), indent=2))
    else:
        Console().print(format_plan(plan), highlight=False)
    return 0 if plan.fits else 1


def add_cache_parser(verbs) -> None:
    parser = verbs.add_parser("cache", help="features of videos on disk, for training with a frozen vision tower")
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)
    build = actions.add_parser(
        "build",
        help="encode every video of a data set once",
        description="Encode the videos of a data set with the vision tower of a model. Prints the disk and the time "
        "it takes before it writes; called again, it adds what is missing.",
    )
    build.add_argument(
        "--model", required=True, help="folder or Hub repository of a D2VLM, a video model or a Grounded-VideoDiT"
    )
    build.add_argument("--dataset", required=True, metavar="PATH", help="data set, or a JSON, JSONL or Parquet file")
    build.add_argument("--output", required=True, metavar="DIR", help="folder of caches")
    build.add_argument("--fps", type=float, help="frames per second (default: as the trainers)")
    build.add_argument("--max-frames", type=int, help="longer videos are sampled more thinly")
    build.add_argument("--num-frames", type=int, help="exactly so many frames of every video instead")
    build.add_argument("--size", type=int, help="pixels of a side of frames, for Grounded-VideoDiT (default: its own)")
    build.add_argument("--batch-size", type=int, help="videos in the vision tower together (default: 4)")
    build.add_argument("--num-threads", type=int, default=2, help="videos decoded at a time (default: 2)")
    build.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="type of weights and features")
    build.add_argument(
        "--feature-dtype", choices=DTYPES, help="type of features, for Grounded-VideoDiT (default: float16)"
    )
    build.add_argument("--device", help="device of the model (default: the GPUs in turn, else the CPU)")
    build.add_argument("--min-free-gib", type=float, default=5, help="what has to stay free on the disk (default: 5)")
    build.add_argument("--on-bad-sample", choices=("raise", "skip"), default="raise", help="default: raise")
    build.add_argument("--revision", help="revision of the model on the Hub")
    build.add_argument("--trust-remote-code", action="store_true", help="run code of the model's repository")
    add_executor_arguments(build, num_workers=1)
    build.set_defaults(run=_cache_build)


def _cache_build(args: argparse.Namespace) -> int:
    from functools import partial

    from ..data.feature_cache_path import build_path
    from ..evaluation.loading import load_config, load_model
    from ..models.grounded_videodit import GroundedVideoDiTConfig
    from ..objects.frame_features_path import build_frame_features_path

    from_hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    names = ("num_threads", "device", "on_bad_sample", "num_workers", "executor", "executor_args")
    options = {name: vars(args)[name] for name in names}
    options["min_free_bytes"] = int(args.min_free_gib * 2**30)
    sampling = {name: vars(args)[name] for name in ("fps", "max_frames", "num_frames")}
    if load_config(args.model, **from_hub).model_type == GroundedVideoDiTConfig.model_type:
        if args.batch_size is not None:
            raise ValueError("--batch-size: frame encoders take one video at a time. Leave it out.")
        load = partial(_load_frame_encoder, args.model, args.dtype, {**sampling, "size": args.size}, from_hub)
        dtype = args.feature_dtype or "float16"
        return build_frame_features_path(args.dataset, args.output, load, dtype=dtype, **options)
    for flag, value in {"--size": args.size, "--feature-dtype": args.feature_dtype}.items():
        if value is not None:
            raise ValueError(
                f"{flag} is for Grounded-VideoDiT; here the processor and --dtype decide it. Leave it out."
            )
    options["batch_size"] = 4 if args.batch_size is None else args.batch_size
    load = partial(load_model, args.model, dtype=args.dtype, **from_hub)
    return build_path(args.dataset, args.output, load, **sampling, **options)


def _load_frame_encoder(name: str, dtype: str, sampling: dict, from_hub: dict):
    """The frozen frame encoders of a Grounded-VideoDiT, and the reader of what they are given."""
    import torch
    from transformers import AutoProcessor

    from ..evaluation.loading import load_config
    from ..models.grounded_videodit import load_frame_encoder
    from ..objects.frame_features_path import read_frames_of

    weights = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    encoder = load_frame_encoder(load_config(name, **from_hub), dtype=weights)
    return encoder, read_frames_of(AutoProcessor.from_pretrained(name, **from_hub), **sampling)
