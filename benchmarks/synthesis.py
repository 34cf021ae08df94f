# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
How fast preferences are synthesised, and in how much memory, from made-up rows as many as E.T. Instruct has.

    python benchmarks/synthesis.py

Each run is a process of its own; the memory is the sum of the resident sets of all its processes, at its highest, with
and without the pages of mapped files, which the system takes back when it needs them. The data files must be the same
for any number of workers. Measured on 2 idle cores, with 164,000 rows:

    workers  pairs/s  seconds  peak MB  unmapped MB
          1    5,456     29.7      464          263
          2    7,975     20.3      924          545

With 41,000 rows it is 246 and 498 MB unmapped: it does not grow with them.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import psutil

from trl_temporal.data.grammar import format_dense, format_grounding, format_qa
from trl_temporal.data.rows import sft_row
from trl_temporal.data.schema import SFT_FEATURES
from trl_temporal.synthesis import SynthesisConfig, synthesize_path

WHO = ("The man", "A woman", "The boy in the blue shirt", "A tall girl", "Two dogs", "The chef", "An old person")
WHAT = ("opens", "closes", "picks up", "washes", "throws", "cuts", "walks towards", "paints", "lifts", "points at")
WHOM = ("the red box", "a small ball", "the kitchen table", "three onions", "the door", "a large pan", "his bike")
WHERE = ("", " in the garden", " on the left", " with a knife", " before turning around", " near the window")
# Shares of the tasks, much as in E.T. Instruct: dense captions, intervals, words with evidence and without.
TASKS = ("dense", "grounding", "qa", "segment")
SHARES = (0.4, 0.35, 0.1, 0.15)


def make_rows(num_rows: int) -> Iterator[dict]:
    """SFT rows of made-up captions in videos of 1 to 6 minutes."""
    rng = np.random.default_rng(0)
    tasks = rng.choice(TASKS, num_rows, p=SHARES)
    for index, task in enumerate(tasks.tolist()):
        duration_s = round(float(rng.uniform(60, 350)), 3)
        num_events = {"dense": int(rng.integers(2, 10)), "grounding": int(rng.geometric(0.7))}.get(task, 1)
        edges_s = np.sort(rng.uniform(0, duration_s, 2 * num_events)).round(1)
        spans = [[start_s, end_s + 0.5] for start_s, end_s in edges_s.reshape(-1, 2).clip(0, duration_s - 1).tolist()]
        words = [rng.integers(0, len(choices), num_events).tolist() for choices in (WHO, WHAT, WHOM, WHERE)]
        captions = [f"{WHO[a]} {WHAT[b]} {WHOM[c]}{WHERE[d]}" for a, b, c, d in zip(*words, strict=True)]
        shared = {
            "id": f"made-{index}",
            "source": f"made/{task}",
            "video": {"path": f"videos/{index // 2:06d}.mp4"},
            "all_spans": spans if task == "dense" else [],
            "duration": duration_s,
        }
        if task == "dense":
            texts = {"question": "Describe every event.", "response": format_dense(captions), "captions": captions}
        elif task == "grounding":
            texts = {"question": f"When does this happen: {captions[0]}?", "response": format_grounding(num_events)}
        elif task == "qa":
            texts = {"question": "What happens?", "response": format_qa(captions[0], 1), "answer": captions[0]}
        else:
            texts = {
                "question": "What happens in <evi>?",
                "response": format_qa(captions[0], 0),
                "answer": captions[0],
            }
            shared["prompt_spans"], spans = spans, []
        yield sft_row(task="qa" if task == "segment" else task, spans=spans, **shared, **texts)


def measure(src: Path, dst: Path, num_workers: int) -> tuple[float, int, int]:
    """Seconds and peak bytes, with and without mapped files, of one synthesis in processes of its own."""
    shutil.rmtree(dst, ignore_errors=True)
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--src", str(src), "--dst", str(dst), "--num_workers", str(num_workers)]
    run = subprocess.Popen(command)
    process, peak, unmapped_peak = psutil.Process(run.pid), 0, 0
    while run.poll() is None:
        used = unmapped = 0
        for part in (process, *_children(process)):
            try:
                memory = part.memory_info()
            except psutil.Error:  # it has just ended
                continue
            used += memory.rss
            unmapped += memory.rss - memory.shared
        peak, unmapped_peak = max(peak, used), max(unmapped_peak, unmapped)
        time.sleep(0.1)
    if run.returncode:
        raise SystemExit(run.returncode)
    return time.perf_counter() - begun, peak, unmapped_peak


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, default=164_000)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--src", type=Path, help=argparse.SUPPRESS)  # of a process that is measured
    parser.add_argument("--dst", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.src:
        synthesize_path(args.src, args.dst, SynthesisConfig(), num_workers=args.num_workers[0], progress=False)
        return

    with tempfile.TemporaryDirectory() as folder:
        src, dst = Path(folder, "rows"), Path(folder, "pairs")
        rows = datasets.Dataset.from_generator(
            make_rows,
            gen_kwargs={"num_rows": args.num_rows},
            features=SFT_FEATURES,
            cache_dir=str(Path(folder, "cache")),
        )
        rows.save_to_disk(src)
        print("workers  pairs/s  seconds  peak MB  unmapped MB  sha256 of the data")
        for num_workers in args.num_workers:
            seconds, peak, unmapped = measure(src, dst, num_workers)
            report = synthesize_path(src, dst, SynthesisConfig(), resume=True)  # finished: read from the folder
            rate = report.num_pairs / seconds
            memory = f"{peak / 1e6:7,.0f}  {unmapped / 1e6:11,.0f}"
            print(f"{num_workers:7}  {rate:7,.0f}  {seconds:7.1f}  {memory}  {report.content_hash[:16]}")


if __name__ == "__main__":
    main()
