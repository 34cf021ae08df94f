# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What sharing saves in a preference step of a Qwen2.5-VL with random weights: time and peak memory, in one run.

    python benchmarks/vlm_pairs.py                          # some million parameters, on the CPU
    python benchmarks/vlm_pairs.py --size 3b --device cuda  # the dimensions of Qwen2.5-VL-3B, bfloat16

A step is the forward of the policy, that of the reference (the model without its LoRA), and the backward, for pairs
about one video each. Compared are

- `two rows`: chosen and rejected apart, each with its own copy of the video, in policy and reference;
- `encode once`: one run of the vision tower for both rows and both models;
- `shared prompt`: in addition, one copy of the prompt for both responses;
- `cached`: in addition, features of the vision tower read from a cache.
"""

import argparse
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from trl_temporal.models.d2vlm.modeling_d2vlm_backbone import encode_videos
from trl_temporal.trainer.fused_forward import add_text_head
from trl_temporal.trainer.shared_videos import SharedVideos

VIDEO, START, END = 10, 11, 12  # ids of the special tokens
SIZES = {
    "small": {
        "text": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
        | {"num_key_value_heads": 2, "vocab_size": 8192},
        "vision": {"hidden_size": 256, "intermediate_size": 768, "depth": 8, "num_heads": 8, "out_hidden_size": 256},
    },
    "3b": {
        "text": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
        "vision": {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16}
        | {"out_hidden_size": 2048},
    },
}


def build_model(size: str, device: str, gradient_checkpointing: bool):
    sizes = SIZES[size]
    head_size = sizes["text"]["hidden_size"] // sizes["text"]["num_attention_heads"]
    sections = [head_size // 8, 3 * head_size // 16, 3 * head_size // 16]
    config = Qwen2_5_VLConfig(
        text_config={
            **sizes["text"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
            "pad_token_id": 0,
        },
        vision_config={**sizes["vision"], "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2},
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    model.requires_grad_(False)
    lora = LoraConfig(r=16, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)$")
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return get_peft_model(model, lora).train()


def make_batch(model, num_pairs: int, num_frames: int, side: int, device: str) -> dict[str, torch.Tensor]:
    """Pairs with a question of 30 tokens and responses of 60, about frames of `side x side` patches of 14 pixels."""
    steps, tokens = num_frames // 2, (num_frames // 2) * side * side // 4
    generator = torch.Generator().manual_seed(0)
    draw = lambda length: torch.randint(100, 8000, (length,), generator=generator)  # noqa: E731
    prompts = [
        torch.cat([torch.tensor([START]), torch.full((tokens,), VIDEO), torch.tensor([END]), draw(30)])
        for _ in range(num_pairs)
    ]
    input_ids = torch.stack([torch.cat([prompt, draw(60)]) for prompt in prompts * 2])
    labels = input_ids.clone()
    labels[:, : len(prompts[0])] = -100
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "mm_token_type_ids": 2 * (input_ids == VIDEO).int(),
        "pixel_values_videos": torch.randn(num_pairs * steps * side * side, 3 * 2 * 14 * 14, generator=generator),
        "video_grid_thw": torch.tensor([[steps, side, side]] * num_pairs),
        "second_per_grid_ts": torch.full((num_pairs,), 2.0),
        "num_frames": torch.full((num_pairs,), steps),
        "video_index": torch.arange(num_pairs).repeat(2),
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    batch["pixel_values_videos"] = batch["pixel_values_videos"].to(model.dtype)
    return batch


def measure(name: str, args, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Median seconds of a step, and its peak memory in GiB beyond the model (CUDA only)."""
    model = build_model(args.size, args.device, args.gradient_checkpointing)
    base = model.get_base_model()
    add_fused_lm_head(base)
    batch = dict(batch)
    if name == "two rows":
        del batch["video_index"], batch["num_frames"]
        for column in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
            batch[column] = torch.cat([batch[column]] * 2)
    if name == "cached":
        with torch.no_grad():
            features = encode_videos(base.model, batch, batch["num_frames"])
        batch["video_features"], batch["num_video_features"] = features
        del batch["pixel_values_videos"]
    videos = SharedVideos(trained=False, kept=True)
    sharing = name in ("shared prompt", "cached")
    add_text_head(base, span_coef=None, prefix_sharing=sharing, videos=videos, on_output=lambda output: None)
    on_gpu = args.device != "cpu"
    seconds = []
    for step in range(args.num_steps + 1):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            torch.cuda.synchronize()
        begun = time.perf_counter()
        log_probs = model(**batch, fused_lm_head=True).log_probs
        with torch.no_grad(), model.disable_adapter():
            reference = model(**batch, fused_lm_head=True).log_probs
        chosen, rejected = (log_probs - reference).sum(-1).chunk(2)
        torch.nn.functional.logsigmoid(chosen - rejected).mean().neg().backward()
        videos.clear()
        model.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        if step:  # the first one warms up
            seconds.append(time.perf_counter() - begun)
    peak = (torch.cuda.max_memory_allocated() - held) / 2**30 if on_gpu else float("nan")
    return statistics.median(seconds), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_pairs", type=int, default=1)
    parser.add_argument("--num_frames", type=int, default=64)
    parser.add_argument("--side", type=int, default=8, help="patches of 14 pixels along a frame; even")
    parser.add_argument("--num_steps", type=int, default=5)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    args = parser.parse_args()
    model = build_model(args.size, args.device, args.gradient_checkpointing)
    batch = make_batch(model, args.num_pairs, args.num_frames, args.side, args.device)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{millions:,.0f} M parameters, {args.num_frames} frames, {batch['input_ids'].shape[1]} tokens a row")
    del model
    print("                   s    GiB  times as fast")
    first = None
    for name in ("two rows", "encode once", "shared prompt", "cached"):
        seconds, peak = measure(name, args, batch)
        first = first or seconds
        print(f"{name:14s} {seconds:6.3f} {peak:6.2f} {first / seconds:6.2f}")


if __name__ == "__main__":
    main()
