# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal <verb>`. A verb is a function that adds its parser and one that runs it, with its imports."""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

DTYPES = ("float32", "bfloat16", "float16")


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
    _add_convert_parser(verbs)
    _add_data_parser(verbs)
    _add_synthesize_parser(verbs)
    _add_eval_parser(verbs)
    _add_analyze_parser(verbs)
    _add_plan_parser(verbs)
    _add_cache_parser(verbs)
    args, others = parser.parse_known_args(argv)
    if args.run is _plan:
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


def _add_convert_parser(verbs) -> None:
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

    from .models.d2vlm.convert_d2vlm_to_hf import ConversionError, convert_d2vlm_to_hf
    from .models.d2vlm.convert_hf_to_d2vlm import convert_hf_to_d2vlm

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


def _add_data_parser(verbs) -> None:
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
    _add_executor_arguments(scan)
    scan.set_defaults(run=_data_scan)

    view = actions.add_parser("view", help="a data set as one HTML page to look through")
    view.add_argument("path", metavar="PATH", help="data set on disk, or a JSONL or Parquet file")
    view.add_argument("--output", metavar="FILE", help="page to write (default: NAME.view.html in this folder)")
    view.add_argument("--max-rows", type=int, default=2000, help="rows in the page (default: 2000)")
    view.add_argument("--no-browser", action="store_true", help="write the page, do not open it")
    view.set_defaults(run=_data_view)


def _add_executor_arguments(parser: argparse.ArgumentParser, num_workers: int = 2) -> None:
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
    from .data.convert import convert

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
    from .data.validation import validate_path

    return validate_path(args.path, limit=args.limit)


def _data_scan(args: argparse.Namespace) -> int:
    from .data.scan import scan_path

    return scan_path(
        args.path,
        args.manifest,
        num_workers=args.num_workers,
        decode="header" if args.header_only else "full",
        executor=args.executor,
        executor_args=args.executor_args,
    )


def _data_view(args: argparse.Namespace) -> int:
    from .report.data_view import view

    page = view(args.path, args.output, max_rows=args.max_rows, open_browser=not args.no_browser)
    print(f"Wrote {page}")
    return 0


def _add_synthesize_parser(verbs) -> None:
    parser = verbs.add_parser("synthesize", help="preference pairs from a data set")
    parser.add_argument(
        "source", metavar="SRC", help="data set on disk or on the Hub, or a JSON, JSONL or Parquet file"
    )
    parser.add_argument("destination", metavar="DST", help="folder to write")
    perturb = parser.add_argument_group("perturbations of the right response")
    perturb.add_argument("--config", metavar="FILE", help="settings, e.g. recipes/synthesis/default.yaml")
    perturb.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    perturb.add_argument("--push-to-hub", metavar="REPO", help="upload DST to this data set repository")
    _add_executor_arguments(perturb)
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
    from .synthesis import SynthesisConfig, push_to_hub, report_table, synthesize_path

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
    _print_table(report_table(report))
    print(f"Wrote {args.destination}")
    if args.push_to_hub is not None:
        print(f"Uploaded to {push_to_hub(args.destination, args.push_to_hub)}")
    return 0


def _synthesize_on_policy(args: argparse.Namespace) -> int:
    from functools import partial

    from accelerate import PartialState

    from .data.validation import load_rows
    from .evaluation.generation import generate_answers
    from .evaluation.loading import load_model
    from .synthesis.on_policy import collect_on_policy

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


def _add_eval_parser(verbs) -> None:
    parser = verbs.add_parser(
        "eval",
        help="score a model, or predictions, on a benchmark",
        description="Answer a benchmark with a model and score the answers; called again, it goes on where it was "
        "stopped. `accelerate launch -m trl_temporal.cli eval ...` uses several GPUs.",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="folder or Hub repository of a D2VLM or a video model"
    )
    parser.add_argument("--predictions", metavar="FILE", help="score these answers instead of running a model")
    parser.add_argument(
        "--benchmark",
        required=True,
        help="etbench, charades_sta, didemo, qvhighlights, youcook2, nextgqa, or rows (a data set of your own); with "
        "--predictions also mvbench, videomme, tempcompass, vinoground",
    )
    parser.add_argument("--data", metavar="PATH", help="annotation file or its folder; of rows a data set")
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: outputs/eval/BENCHMARK)")
    parser.add_argument("--scorer", help="original scorer to report beside ours, e.g. etchat")
    parser.add_argument("--sentence-model", metavar="PATH_OR_ID", help="sentence encoder of E.T. Bench")
    parser.add_argument("--split", default="test", help="split of rows (default: test)")
    answer = parser.add_argument_group("answering")
    answer.add_argument("--video-root", metavar="DIR", help="folder with the videos (default: videos beside --data)")
    answer.add_argument("--prompts", metavar="FILE", help="YAML with other wordings, {task: text}")
    answer.add_argument("--fps", type=float, help="frames per second (default: as the processor says, else 1)")
    answer.add_argument("--num-frames", type=int, help="exactly so many frames of every video instead")
    answer.add_argument("--feature-cache", metavar="DIR", help="folder of `cache build`, made with the same sampling")
    answer.add_argument("--max-frames", type=int, help="longer videos are sampled more thinly")
    answer.add_argument("--size", type=int, help="shorter side of the frames of a stock model in pixels")
    answer.add_argument("--batch-size", type=int, default=16, help="rows that are answered together (default: 16)")
    answer.add_argument("--max-new-tokens", type=int, default=256, help="length of an answer (default: 256)")
    answer.add_argument("--limit", type=int, help="answer the first samples only")
    answer.add_argument("--allow-missing-videos", action="store_true", help="score what is there")
    answer.add_argument("--on-bad-sample", choices=("raise", "skip"), default="raise", help="default: raise")
    answer.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="type of the weights")
    answer.add_argument("--revision", help="revision of MODEL on the Hub")
    answer.add_argument("--trust-remote-code", action="store_true", help="run code of MODEL's repository")
    answer.add_argument("--frame-cache", metavar="DIR", help="folder for decoded frames (D2VLM)")
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    from accelerate import PartialState

    from .evaluation.runner import evaluate_model, score_predictions

    if (args.model is None) == (args.predictions is None):
        raise ValueError("Give either a MODEL to run or --predictions FILE to score.")
    output_dir = args.output or f"outputs/eval/{args.benchmark}"
    shared = {
        "output_dir": output_dir,
        "split": args.split,
        "scorer": args.scorer,
        "sentence_model": args.sentence_model,
    }
    if args.predictions is not None:
        run = score_predictions(args.predictions, args.benchmark, args.data, **shared)
    elif args.data is None:
        raise ValueError("Give the annotations of the benchmark: --data PATH.")
    else:
        run = evaluate_model(
            args.model,
            args.benchmark,
            args.data,
            video_root=args.video_root,
            prompts=_read_prompts(args.prompts),
            fps=args.fps,
            max_frames=args.max_frames,
            num_frames=args.num_frames,
            size=args.size,
            feature_cache=args.feature_cache,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            limit=args.limit,
            allow_missing_videos=args.allow_missing_videos,
            on_bad_sample=args.on_bad_sample,
            dtype=args.dtype,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            frame_cache_dir=args.frame_cache,
            **shared,
        )
    if PartialState().is_main_process:
        run.print_table()
        print(f"Wrote {output_dir}")
    return 0


def _read_prompts(path: str | None) -> dict[str, str] | None:
    if path is None:
        return None
    from pathlib import Path

    import yaml

    prompts = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ValueError(
            f"{path}: write one line for each task, such as `grounding: 'When does this happen: {{event}}?'`"
        )
    return prompts


def _add_analyze_parser(verbs) -> None:
    parser = verbs.add_parser("analyze", help="how the evidence tokens of an evaluation look at frames, as a page")
    parser.add_argument("run_dir", metavar="RUN", help="folder that `trl-temporal eval` wrote")
    parser.add_argument("--output", metavar="FILE", help="page to write (default: RUN/analysis.html)")
    parser.add_argument("--threshold", type=float, help="salience threshold (default: the model's)")
    parser.set_defaults(run=_analyze)


def _analyze(args: argparse.Namespace) -> int:
    from .report.analysis import analyze

    print(f"Wrote {analyze(args.run_dir, args.output, threshold=args.threshold)}")
    return 0


def _add_plan_parser(verbs) -> None:
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
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console

    from .trainer.plan import format_plan, plan_training, read_config

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


def _add_cache_parser(verbs) -> None:
    parser = verbs.add_parser("cache", help="features of videos on disk, for training with a frozen vision tower")
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)
    build = actions.add_parser(
        "build",
        help="encode every video of a data set once",
        description="Encode the videos of a data set with the vision tower of a model. Prints the disk and the time "
        "it takes before it writes; called again, it adds what is missing.",
    )
    build.add_argument("--model", required=True, help="folder or Hub repository of a D2VLM or a video model")
    build.add_argument("--dataset", required=True, metavar="PATH", help="data set, or a JSON, JSONL or Parquet file")
    build.add_argument("--output", required=True, metavar="DIR", help="folder of caches")
    build.add_argument("--fps", type=float, help="frames per second (default: as the trainers)")
    build.add_argument("--max-frames", type=int, help="longer videos are sampled more thinly")
    build.add_argument("--num-frames", type=int, help="exactly so many frames of every video instead")
    build.add_argument("--batch-size", type=int, default=4, help="videos in the vision tower together (default: 4)")
    build.add_argument("--num-threads", type=int, default=2, help="videos decoded at a time (default: 2)")
    build.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="type of weights and features")
    build.add_argument("--device", help="device of the model (default: the GPUs in turn, else the CPU)")
    build.add_argument("--min-free-gib", type=float, default=5, help="what has to stay free on the disk (default: 5)")
    build.add_argument("--on-bad-sample", choices=("raise", "skip"), default="raise", help="default: raise")
    build.add_argument("--revision", help="revision of the model on the Hub")
    build.add_argument("--trust-remote-code", action="store_true", help="run code of the model's repository")
    _add_executor_arguments(build, num_workers=1)
    build.set_defaults(run=_cache_build)


def _cache_build(args: argparse.Namespace) -> int:
    from functools import partial

    from .data.feature_cache_path import build_path
    from .evaluation.loading import load_model

    from_hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    return build_path(
        args.dataset,
        args.output,
        partial(load_model, args.model, dtype=args.dtype, **from_hub),
        min_free_bytes=int(args.min_free_gib * 2**30),
        **{name: vars(args)[name] for name in ("fps", "max_frames", "num_frames", "batch_size", "num_threads")},
        **{name: vars(args)[name] for name in ("device", "on_bad_sample", "num_workers", "executor", "executor_args")},
    )


def _print_table(table) -> None:
    from rich.console import Console

    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
