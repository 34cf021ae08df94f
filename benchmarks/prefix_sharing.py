# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What one copy of the prompt saves in an FPO step: forward and backward with and without prefix sharing, in one run.

    python benchmarks/prefix_sharing.py

Random weights and made-up videos; only the ratio means anything. Measured on one CPU core, 8 dense-caption pairs of
the tiny model: 1.19 with 40 frames, 1.32 with 160, 1.37 with 640. The mask is dense, so long prompts do not reach 2.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from trl.trainer.utils import add_fused_lm_head

from trl_temporal.data.collator import PreferenceCollator
from trl_temporal.data.event_world import simulate, video_rows
from trl_temporal.models.tiny import build_tiny_d2vlm
from trl_temporal.synthesis.preference import make_preference_row
from trl_temporal.trainer.fused_forward import add_evidence_head
from trl_temporal.trainer.shared_videos import SharedVideos
from trl_temporal.video import Video


def make_batch(processor, num_pairs: int, num_frames: int) -> dict[str, torch.Tensor]:
    """Pairs of EventWorld rows over videos of noise."""
    rows = []
    for index in range(num_pairs):
        row = video_rows(simulate(0, index), {"path": str(index)})[0]
        rows.append(make_preference_row(row, seed=0))

    def read_video(entry: dict) -> Video:
        duration_s = 20.0
        shape = (num_frames, processor.image_size, processor.image_size, 3)
        frames = np.random.default_rng(int(entry["path"])).integers(0, 256, shape, dtype=np.uint8)
        timestamps_s = np.arange(num_frames) * duration_s / num_frames
        return Video(frames=frames, timestamps_s=timestamps_s, duration_s=duration_s, path=entry["path"], warnings=[])

    batch = PreferenceCollator(processor, read_video)(rows)
    completion_mask = batch.pop("completion_mask")
    batch.pop("factor")
    return {**batch, "labels": batch["input_ids"].masked_fill(completion_mask == 0, -100)}


def time_step(model, batch: dict[str, torch.Tensor], num_steps: int) -> float:
    """Median seconds of a forward and backward pass."""
    seconds = []
    for step in range(num_steps + 1):
        begun = time.perf_counter()
        model(**batch, fused_lm_head=True).log_probs.sum().backward()
        model.zero_grad(set_to_none=True)
        if step:  # the first one warms up
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pairs", type=int, default=8)
    parser.add_argument("--num_frames", type=int, nargs="+", default=[40, 160, 640])
    parser.add_argument("--num_steps", type=int, default=3)
    args = parser.parse_args()

    texts = [row["completion"][0]["content"][0]["text"] for row in video_rows(simulate(0, 0), {"path": ""})]
    print("frames  two rows s  shared s  ratio")
    for num_frames in args.num_frames:
        seconds = {}
        for prefix_sharing in (False, True):
            torch.manual_seed(0)
            model, processor = build_tiny_d2vlm(texts, vocab_size=320, image_size=16)
            add_fused_lm_head(model)
            add_evidence_head(
                model,
                grounding_coef=1.0,
                soft_target_base=None,
                prefix_sharing=prefix_sharing,
                videos=SharedVideos(trained=True, kept=False),
                on_output=lambda output: None,
            )
            batch = make_batch(processor, args.num_pairs, num_frames)
            seconds[prefix_sharing] = time_step(model, batch, args.num_steps)
        ratio = seconds[False] / seconds[True]
        print(f"{num_frames:6d}  {seconds[False]:10.3f}  {seconds[True]:8.3f}  {ratio:5.2f}")


if __name__ == "__main__":
    main()
