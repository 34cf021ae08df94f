# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What the feature cache saves a video: reading, processing and encoding it against reading its features, in one run.

    python benchmarks/feature_cache.py

Random weights and made-up videos of 640 x 480; only the ratios mean anything. Two towers: the small one of EventWorld,
and a ViT-S of BLIP-2's kind; frames decoded, or from the frame cache. Measured on one CPU core, 4 videos of 10 frames:
see docs/feature_cache.md.
"""

import argparse
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from transformers import Blip2VisionConfig, InstructBlipQFormerConfig

from trl_temporal import D2VLMConfig, D2VLMForConditionalGeneration
from trl_temporal.data.feature_cache_build import build_feature_cache
from trl_temporal.data.feature_cache_path import read_videos_of
from trl_temporal.data.feature_key import feature_key, vision_tensors
from trl_temporal.data.frame_cache import FrameCache
from trl_temporal.models.tiny import build_tiny_d2vlm


def make_video(path: Path, seconds: int, seed: int) -> str:
    """A drifting gradient at 30 frames per second."""
    rows, columns = np.mgrid[:480, :640]
    gradient = np.stack([columns % 200, rows % 200, (rows + columns + seed) % 200], axis=-1).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for index in range(seconds * 30):
            frame = av.VideoFrame.from_ndarray(np.roll(gradient, index + seed, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def make_models() -> dict:
    """Models by the name of their tower; the decoders are tiny."""
    texts = ["When does it happen?"]
    conv = build_tiny_d2vlm(texts, vocab_size=320, hidden_size=128, fps=1.0)
    small, processor = build_tiny_d2vlm(texts, vocab_size=320, hidden_size=128, image_size=224, fps=1.0)
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    config = D2VLMConfig(
        text_config=small.config.text_config,
        vision_config=Blip2VisionConfig(image_size=224, patch_size=14, **sizes),
        qformer_config=InstructBlipQFormerConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2),
        video_token_id=processor.video_token_id,
        evidence_token_id=processor.evidence_token_id,
        evidence_end_token_id=processor.evidence_end_token_id,
        capture_layer=1,
    )
    return {"EventWorld": conv, "ViT-S": (D2VLMForConditionalGeneration(config), processor)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_videos", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        videos = [make_video(root / f"{number}.mp4", args.seconds, number) for number in range(args.num_videos)]
        print("tower       frames       read s  processor s  tower s  cached s  ratio  MiB a video")
        for tower, (model, processor) in make_models().items():
            decode = read_videos_of(processor)
            sampling = {name: value for name, value in decode.sampling.items() if name != "backend"}
            kept = FrameCache(root / "frames", **sampling)
            for video in videos:
                kept(video)
            for frames, read_video in {"decoded": decode, "frame cache": kept}.items():
                report = build_feature_cache(
                    videos, root / tower / frames, model, processor, read_video, min_free_bytes=0, progress=False
                )
                print(
                    f"{tower:<11} {frames:<11} {report.read_s:>7.4f} {report.process_s:>12.4f} "
                    f"{report.encode_s:>8.4f} {report.cached_s:>9.5f} {report.speed_up:>6.0f} "
                    f"{report.num_bytes / len(videos) / 2**20:>12.2f}"
                )
        weights = sum(tensor.nbytes for tensor in vision_tensors(model).values())
        begun = time.perf_counter()
        feature_key(model, processor, decode.sampling)
        seconds = time.perf_counter() - begun
        print(f"The key reads {weights / 2**20:.0f} MiB of weights in {seconds:.2f} s, "
              f"{weights / seconds / 2**30:.2f} GiB/s.")  # fmt: skip


if __name__ == "__main__":
    main()
