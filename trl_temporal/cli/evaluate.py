# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal eval` and `analyze`."""

import argparse

from .common import DTYPES


def add_eval_parser(verbs) -> None:
    parser = verbs.add_parser(
        "eval",
        help="score a model, or predictions, on a benchmark",
        description="Answer a benchmark with a model and score the answers; called again, it goes on where it was "
        "stopped. `accelerate launch -m trl_temporal.cli eval ...` uses several GPUs.",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="folder or Hub repository of a D2VLM or a video model"
    )
    parser.add_argument("--endpoint", metavar="URL", help="where MODEL is, if not here: http://localhost:8000/v1")
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
    import torch
    from accelerate import PartialState

    from ..evaluation.runner import evaluate_model, score_predictions

    if (args.model is None) == (args.predictions is None):
        raise ValueError("Give either a MODEL to run or --predictions FILE to score.")
    # Without `cpu`, processes of a launcher on a machine without GPUs would each believe that they are alone.
    state = PartialState(cpu=args.endpoint is not None or not torch.accelerator.is_available())
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
            endpoint=args.endpoint,
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
    if state.is_main_process:
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


def add_analyze_parser(verbs) -> None:
    parser = verbs.add_parser("analyze", help="how the evidence tokens of an evaluation look at frames, as a page")
    parser.add_argument("run_dir", metavar="RUN", help="folder that `trl-temporal eval` wrote")
    parser.add_argument("--output", metavar="FILE", help="page to write (default: RUN/analysis.html)")
    parser.add_argument("--threshold", type=float, help="salience threshold (default: the model's)")
    parser.set_defaults(run=_analyze)


def _analyze(args: argparse.Namespace) -> int:
    from ..report.analysis import analyze

    print(f"Wrote {analyze(args.run_dir, args.output, threshold=args.threshold)}")
    return 0
