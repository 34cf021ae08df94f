# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Trains small models on every rank of one back-end and writes down what came of it: weights after every step, logs, and
whether the ranks agree. Started under torchrun by `test_zero.py`, which compares with one process.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.torchvision_shim import load_torchvision  # noqa: E402

load_torchvision()  # before transformers

import torch  # noqa: E402
from datasets import Dataset, load_from_disk  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback  # noqa: E402

from tests.helpers import MIXED_PAIRS, MIXED_ROWS, noise_video, preference_row, sft_row  # noqa: E402
from trl_temporal import (  # noqa: E402
    D2VLMBackboneProcessor,
    D2VLMForConditionalGeneration,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    FPOConfig,
    FPOTrainer,
)
from trl_temporal.data.chat_collator import ChatCollator, ChatPreferenceCollator  # noqa: E402
from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator  # noqa: E402
from trl_temporal.data.feature_cache import CachedVideo  # noqa: E402
from trl_temporal.evaluation import runner  # noqa: E402
from trl_temporal.objects.collator import GroundedCollator, GroundedPreferenceCollator  # noqa: E402
from trl_temporal.trainer.sharding import is_sharded, running_modules  # noqa: E402

LEARNING_RATE = 0.1
CASES = (
    "native_sft",  # the tiny D2VLM
    "native_fpo",
    "reference_fpo",  # the same beside a reference model with another vision tower
    "precompute_fpo",  # the reference is the initial model, asked beforehand
    "stream_sft",  # rows that are not known beforehand
    "backbone_sft",  # a Qwen3-VL that is given evidence tokens here
    "backbone_fpo",  # one that was saved with them
    "lora_sft",  # as in the recipes: a LoRA, heads trained whole, rows of tokens, checkpointing
    "stock_sft",  # Qwen2.5-VL as it is
    "stock_fpo",
    "spans_sft",  # a Grounded-VideoDiT with two heads, on features as from a cache
    "spans_fpo",
)
SAVED = ("native_sft", "lora_sft")
EVALUATED = ("native_sft", "reference_fpo")
# A Grounded-VideoDiT is shown a video in every row.
SPAN_ROWS = [*MIXED_ROWS[:3], sft_row("</evi> Nothing.", [], video="noise-3-6")]
SPAN_PAIRS = [*MIXED_PAIRS[:3], preference_row("</evi> No.", [], "</evi> Nothing.", [], factor="distort")]


def deepspeed_config(back_end: str) -> dict | None:
    """That of the recipe; a tiny model is sharded too."""
    if not back_end.startswith("zero"):
        return None
    config = json.loads((ROOT / "recipes" / "deepspeed" / f"{back_end}.json").read_text(encoding="utf-8"))
    if back_end == "zero3":
        sizes = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
        config["zero_optimization"] |= dict(zip(sizes, (5000, 5000, 0), strict=True))
    return config


def settings(output_dir: str, back_end: str) -> dict:
    """Two steps of four rows. Two ranks accumulate one row at a time, so that text stands beside video."""
    ranks, accumulation = (1, 1) if back_end == "one" else (2, 2)
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": 4 // ranks // accumulation,
        "per_device_eval_batch_size": 2 // ranks,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 2,
        "optim": "sgd",  # a step is the gradient
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "consistency_ramp_end": 0.0,
        "consistency_ramp_start": 0.0,
        "cache_frames": False,
        "freeze_vision_tower": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "ddp_backend": None if back_end == "one" else "gloo",
        "deepspeed": deepspeed_config(back_end),
    }


class KeepWeights(TrainerCallback):
    """Keeps the whole weights before and after every optimizer step, and whether all ranks have the same."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.equal, self.running = trainer, [], True, []

    def keep(self) -> None:
        accelerator, weights = self.trainer.accelerator, {}
        for name, parameter in accelerator.unwrap_model(self.trainer.model).named_parameters():
            weights[name] = whole(parameter)
            if accelerator.num_processes > 1:
                first = weights[name].clone()
                torch.distributed.broadcast(first, 0)
                self.equal &= torch.equal(first, weights[name])
        self.steps.append(weights)
        self.running.append(len(running_modules()))

    def on_train_begin(self, *args, **kwargs):
        self.keep()

    def on_step_end(self, *args, **kwargs):
        self.keep()


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


class WatchedCollator(EvidenceCollator):
    """Keeps the ids of the rows that this rank is given."""

    seen: list[str] = []

    def __call__(self, rows):
        self.seen += [row["id"] for row in rows if row["id"] != "blank"]
        return super().__call__(rows)


def noise_features(row: dict) -> CachedVideo:
    """Of frames of `noise_video`, as a frame encoder of size 8 would make them."""
    video = noise_video(row["videos"][0])
    generator = torch.Generator().manual_seed(len(video.frames))
    features = torch.randn(1, len(video.frames), 8, generator=generator)
    return CachedVideo(features, {}, "", video.timestamps_s, video.duration_s, len(video.frames), video.path)


def load(case: str, folder: str) -> tuple:
    """The model of a case and its processor."""
    kind = case.split("_")[0]
    if case in ("backbone_sft", "lora_sft"):
        processor = D2VLMBackboneProcessor.from_backbone(f"{folder}/qwen3_vl", fps=2.0)
        model = D2VLMForConditionalGeneration.from_backbone(f"{folder}/qwen3_vl", processor, capture_layer=2)
        return model, processor
    name = {"backbone": "evidence", "stock": "qwen2_5_vl", "spans": "spans"}.get(kind, "native")
    model = AutoModelForImageTextToText.from_pretrained(f"{folder}/{name}")
    return model, AutoProcessor.from_pretrained(f"{folder}/{name}")


def numbered(rows: list[dict]) -> Dataset:
    return Dataset.from_list([{**row, "id": f"row-{number}"} for number, row in enumerate(rows)])


def adapter(processor: D2VLMBackboneProcessor) -> LoraConfig:
    """As `lora_config` makes it of a recipe."""
    rows = [processor.evidence_token_id, processor.evidence_end_token_id]
    return LoraConfig(
        r=4,
        target_modules=r".*language_model.*\.(q|v|up|down)_proj",
        modules_to_save=["evi_head", "frame_head"],
        trainable_token_indices={"embed_tokens": rows, "lm_head": rows},
    )


def make_trainer(case: str, folder: str, output_dir: str, back_end: str):
    kind, method = case.split("_")
    arguments = settings(output_dir, back_end)
    # The reference has another, frozen tower: whether it equals the policy's decides whether features are shared.
    arguments["freeze_vision_tower"] = kind in ("reference", "lora")
    arguments["gradient_checkpointing"] = kind == "lora"
    is_stock, has_spans, options = kind == "stock", kind == "spans", {}
    if method == "sft":
        config = EvidenceSFTConfig(
            **arguments, **({"evidence_coef": 0.0, "consistency_coef": 0.0} if is_stock else {})
        )
        collator_class = ChatCollator if is_stock else WatchedCollator
    else:
        losses = {"grounding_coef": 0.0} if is_stock else {}
        losses |= {"reference_free": kind not in ("reference", "precompute")}
        config = FPOConfig(beta=1e-2, precompute_ref_log_probs=kind == "precompute", **arguments, **losses)
        collator_class = ChatPreferenceCollator if is_stock else PreferenceCollator
    torch.manual_seed(0)  # of what is new in the model
    model, processor = load(case, folder)
    dataset = numbered(MIXED_ROWS if method == "sft" else MIXED_PAIRS)
    collator = None if has_spans else collator_class(processor, noise_video)
    if has_spans:
        dataset = numbered(SPAN_ROWS if method == "sft" else SPAN_PAIRS)
        collator = (GroundedCollator if method == "sft" else GroundedPreferenceCollator)(processor, noise_features)
    if kind == "precompute":  # the ranks share a file
        dataset = load_from_disk(f"{folder}/pairs")
    if kind == "uneven":  # one rank has three rows, the other two
        dataset = numbered([*MIXED_ROWS, MIXED_ROWS[0]]).to_iterable_dataset(num_shards=2)
    if kind == "stream":
        dataset = dataset.to_iterable_dataset()
    if kind == "lora":
        options["peft_config"] = adapter(processor)
    if kind == "reference":
        options["ref_model"] = D2VLMForConditionalGeneration.from_pretrained(f"{folder}/reference")
    return (EvidenceSFTTrainer if method == "sft" else FPOTrainer)(
        model,
        args=config,
        data_collator=collator,
        train_dataset=dataset,
        processing_class=processor,
        **options,
    )


def train(case: str, folder: str, output_dir: str, back_end: str) -> dict:
    trainer = make_trainer(case, folder, output_dir, back_end)
    WatchedCollator.seen.clear()
    keep = KeepWeights(trainer)
    trainer.add_callback(keep)
    trainer.train()
    state = trainer.accelerator.state
    result = {
        "num_processes": state.num_processes,
        "distributed_type": state.distributed_type.value,
        "sharded": is_sharded(trainer.accelerator),
        "equal": keep.equal,
        "weights": keep.steps,
        "running": keep.running,
        "log": trainer.state.log_history[:2],
        "seen": list(WatchedCollator.seen),
    }
    if case in EVALUATED:
        result["evaluation"] = trainer.evaluate(numbered(MIXED_ROWS if case == "native_sft" else MIXED_PAIRS))
    if case in SAVED:
        trainer.save_model(output_dir)
        result["logits"] = logits(trainer.model_wrapped, trainer.data_collator)
    return result


@torch.no_grad()
def logits(model, collator) -> torch.Tensor:
    batch = {name: value for name, value in collator(MIXED_ROWS).items() if name != "labels"}
    model.eval()  # of DeepSpeed it returns nothing
    return model(**batch).logits


def answer(model: str, rows: str, output_dir: str) -> dict[str, float]:
    """The metrics of an evaluation, whose shards the ranks take turns at."""
    runner.SHARD_ROWS = 5
    options = {"max_new_tokens": 12, "progress": False}
    return runner.evaluate_model(model, "rows", rows, output_dir=output_dir, **options).metrics


def main() -> None:
    back_end, folder, output_dir, *cases = sys.argv[1:]
    if back_end.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__ = {}  # else it compiles a C++ operator first, which takes a minute
        deepspeed.init_distributed("gloo")  # on CPUs the sharded loading of ZeRO-3 comes before accelerate's
    rank, results = os.environ["RANK"], {}
    for case in cases or CASES:
        results[case] = train(case, folder, f"{output_dir}/{case}", back_end)
    if back_end == "ddp":
        results["uneven"] = train("uneven_sft", folder, f"{output_dir}/uneven", back_end)
        results["metrics"] = answer(f"{folder}/native", f"{folder}/rows.jsonl", f"{output_dir}/answers")
    torch.save(results, Path(output_dir) / f"rank_{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # torch now and then hangs or aborts while it takes down gloo at exit


if __name__ == "__main__":
    main()
