# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Two ranks on the CPU learn what one process learns: plain DDP and DeepSpeed's ZeRO 1, 2 and 3, one launch each.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests import families
from tests.distributed import zero_ranks
from tests.helpers import MIXED_PAIRS, MIXED_ROWS, noise_video, train
from trl_temporal import (
    D2VLMBackboneProcessor,
    D2VLMForConditionalGeneration,
    D2VLMProcessor,
    EvidenceSFTConfig,
    EvidenceSFTTrainer,
    FPOConfig,
    FPOTrainer,
)
from trl_temporal.data.chat_collator import ChatCollator
from trl_temporal.data.collator import EvidenceCollator
from trl_temporal.data.feature_cache_build import build_feature_cache
from trl_temporal.models.tiny import build_tiny_grounded_videodit
from trl_temporal.trainer.blank_video import with_blank
from trl_temporal.trainer.evidence_mixin import EvidenceTrainerMixin, frame_cache
from trl_temporal.trainer.sharding import show_exact

BACK_ENDS = {"ddp": "MULTI_CPU", "zero1": "DEEPSPEED", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
TIMEOUT_S = 240
# Of TRL; means over batches, which are other batches on two ranks.
UNEQUAL = ("entropy", "mean_token_accuracy", "logits/", "epoch")
EVALUATION = ("predictions.jsonl", "results.json")


@pytest.fixture(scope="module")
def folder(tiny_dir, event_world, tmp_path_factory):
    """The models that are trained, and the rows that are answered."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "native").symlink_to(tiny_dir)
    reference, processor = (
        D2VLMForConditionalGeneration.from_pretrained(tiny_dir),
        D2VLMProcessor.from_pretrained(tiny_dir),
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in reference.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    reference.save_pretrained(folder / "reference")
    for family in ("qwen3_vl", "qwen2_5_vl"):
        model, processor = families.build(family)
        model.save_pretrained(folder / family)
        processor.save_pretrained(folder / family)
    processor = D2VLMBackboneProcessor.from_backbone(f"{folder}/qwen3_vl", fps=2.0)
    model = D2VLMForConditionalGeneration.from_backbone(f"{folder}/qwen3_vl", processor, capture_layer=2)
    model.save_pretrained(folder / "evidence")
    processor.save_pretrained(folder / "evidence")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = build_tiny_grounded_videodit(
            ["When does it happen?", "<evi> </evi> It happens in <evi>."],
            {"name": "none", "hidden_size": 8},
            vocab_size=280,
            hidden_size=32,
            num_hidden_layers=2,
            grounding_head=["span", "evidence"],
            dtl_config={"width": 16, "num_layers": 2, "num_heads": 2},
            use_kl=True,
        )
    model.save_pretrained(folder / "spans")
    processor.save_pretrained(folder / "spans")
    zero_ranks.numbered(MIXED_PAIRS).save_to_disk(folder / "pairs")
    rows = "".join(json.dumps(row) + "\n" for row in event_world["train"])
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """What one process makes of the same rows."""
    output_dir = str(tmp_path_factory.mktemp("alone"))
    return {case: zero_ranks.train(case, str(folder), f"{output_dir}/{case}", "one") for case in zero_ranks.CASES}


def launch(back_end: str, folder, output_dir) -> list[dict]:
    """What each rank writes down; none outlives the time."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [zero_ranks.__file__, back_end, str(folder), str(output_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **streams) as run:
        try:
            printed, _ = run.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGTERM)  # the launcher then ends the ranks, which have sessions of their own
            try:
                printed, _ = run.communicate(timeout=40)
            finally:
                os.killpg(run.pid, signal.SIGKILL)
            pytest.fail(f"two ranks hang after {TIMEOUT_S} s:\n{printed[-4000:]}")
    assert run.returncode == 0, printed[-8000:]
    return [torch.load(output_dir / f"rank_{rank}.pt") for rank in (0, 1)]


@pytest.mark.timeout(TIMEOUT_S + 120)
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_two_ranks_equal_one_process(back_end, folder, alone, tmp_path, monkeypatch):
    ranks = launch(back_end, folder, tmp_path)
    for case in zero_ranks.CASES:
        for rank in ranks:
            run = rank[case]
            assert (run["num_processes"], run["distributed_type"]) == (2, BACK_ENDS[back_end]), case
            assert run["sharded"] == (back_end == "zero3")
            if case != "lora_sft":  # torch's checkpointing too ends what it runs again early
                assert len(set(run["running"])) == 1, f"{case}: modules that ended early are taken for running"
            assert run["equal"], f"{case}: the ranks have different weights"
        check_gradients(case, ranks[0][case], alone[case])
        check_logs(case, ranks[0][case], alone[case])
    for case in zero_ranks.EVALUATED:
        check_evaluation(case, ranks[0][case]["evaluation"], alone[case]["evaluation"])
    first, second = ranks[0]["stream_sft"]["seen"], ranks[1]["stream_sft"]["seen"]
    assert sorted(first[:2] + second[:2]) == [f"row-{number}" for number in range(4)]  # of the first step
    assert not set(first) & set(second)
    check_saved(tmp_path, folder, ranks[0])
    if back_end == "ddp":
        # A stream that ends for one rank before it does for the other.
        uneven = [rank["uneven"] for rank in ranks]
        assert all(run["equal"] and len(run["weights"]) == 3 for run in uneven)
        assert not set(uneven[0]["seen"]) & set(uneven[1]["seen"])
        monkeypatch.setattr(zero_ranks.runner, "SHARD_ROWS", 5)  # put back at the end
        expected = zero_ranks.answer(f"{folder}/native", f"{folder}/rows.jsonl", str(tmp_path / "alone"))
        assert [rank["metrics"] for rank in ranks] == [expected, expected]
        for name in EVALUATION:
            assert (tmp_path / "answers" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def check_gradients(case: str, actual: dict, expected: dict) -> None:
    """
    Gradients are read off the steps of plain gradient descent. Those of the second step are of weights that have been
    rounded apart, so that they agree less closely.
    """
    for step, tolerance in ((0, 1e-5), (1, 1e-3)):
        before, after = expected["weights"][step : step + 2]
        assert actual["weights"][step].keys() == before.keys()
        moved = 0
        for name, value in after.items():
            gradient = (before[name] - value) / zero_ranks.LEARNING_RATE
            difference = (actual["weights"][step + 1][name] - value).abs().max().item() / zero_ranks.LEARNING_RATE
            assert difference <= tolerance * max(1, gradient.abs().max().item()), (case, step, name, difference)
            moved += bool(gradient.abs().max() > 0)
        assert moved >= 30, (case, step, moved)


def check_logs(case: str, actual: dict, expected: dict) -> None:
    for ours, theirs in zip(actual["log"], expected["log"], strict=True):
        assert ours.keys() == theirs.keys(), (case, ours.keys() ^ theirs.keys())
        for name, value in theirs.items():
            if case == "precompute_fpo" and "accuracies" in name:
                continue  # whether one of two equal numbers is greater
            if not name.startswith(UNEQUAL):
                assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (case, name)


def check_evaluation(case: str, actual: dict, expected: dict) -> None:
    """
    Of weights that two steps have rounded apart. One rank has a batch of text beside the other's with evidence. Other
    losses are means over the rows or tokens of a batch first, as TRL has them, and batches differ.
    """
    for name in ("eval_loss/grounding", "eval_loss/consistency"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-4), (case, name)


@torch.no_grad()
def check_saved(output_dir, folder, run: dict) -> None:
    """What was saved is what was trained."""
    native = D2VLMForConditionalGeneration.from_pretrained(output_dir / "native_sft")
    processor = D2VLMProcessor.from_pretrained(output_dir / "native_sft")
    for name, value in native.named_parameters():
        assert torch.equal(value, run["native_sft"]["weights"][-1][name]), name
    saved = zero_ranks.logits(native, EvidenceCollator(processor, noise_video))
    torch.testing.assert_close(saved, run["native_sft"]["logits"], rtol=1e-5, atol=1e-5)
    model, processor = zero_ranks.load("lora_sft", str(folder))
    model = PeftModel.from_pretrained(model, output_dir / "lora_sft")
    saved = zero_ranks.logits(model, EvidenceCollator(processor, noise_video))
    torch.testing.assert_close(saved, run["lora_sft"]["logits"], rtol=1e-5, atol=1e-5)


def test_processes_that_do_not_know_of_each_other_are_refused(tiny, config, monkeypatch):
    args, fpo_args = config(EvidenceSFTConfig), config(FPOConfig)
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = {"train_dataset": Dataset.from_list(MIXED_ROWS), "processing_class": tiny[1]}
    with pytest.raises(ValueError, match="started 2 processes, but this one knows of 1.*ddp_backend='gloo'"):
        EvidenceSFTTrainer(tiny[0], args=args, **options)
    with pytest.raises(ValueError, match="started 2 processes"):
        FPOTrainer(tiny[0], args=fpo_args, **options)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for, but accelerate leaves it out on CPUs"):
        EvidenceSFTTrainer(tiny[0], args=args, **options)


def test_batches_that_one_process_would_cut_up_are_refused(tiny, config):
    options = {"train_dataset": Dataset.from_list(MIXED_ROWS), "processing_class": tiny[1]}
    with pytest.raises(ValueError, match="`dispatch_batches=True` has one process read all batches"):
        EvidenceSFTTrainer(
            tiny[0], args=config(EvidenceSFTConfig, accelerator_config={"dispatch_batches": True}), **options
        )


def test_a_backbone_in_pieces_is_refused(folder):
    backbone, _ = families.build("qwen3_vl")
    processor = D2VLMBackboneProcessor.from_backbone(f"{folder}/qwen3_vl", fps=2.0)
    backbone.get_input_embeddings().weight.ds_id = 0  # as DeepSpeed marks what it shards
    with pytest.raises(ValueError, match="in pieces.*Pass its name"):
        D2VLMForConditionalGeneration.from_backbone(backbone, processor)


@pytest.mark.parametrize(
    "case", ["native_sft", "native_fpo", "backbone_sft", "backbone_fpo", "stock_sft", "stock_fpo"]
)
def test_a_blank_video_adds_exactly_nothing(case, folder, tmp_path, monkeypatch):
    """Of text alone; every parameter that sees videos has a gradient then, and it is zero."""
    steps = []
    for blank in (False, True):
        if blank:
            monkeypatch.setattr(EvidenceTrainerMixin, "_blank_video", lambda self, trained: self._make_blank_video)
        trainer = zero_ranks.make_trainer(case, str(folder), str(tmp_path), "one")
        trainer.train_dataset = trainer.train_dataset.select([3, 3])
        (gradients, *_) = train(trainer)
        steps.append((gradients, trainer.state.log_history[0]))
    (without, log), (with_blank, same_log) = steps
    assert {name: log[name] for name in ("loss", "loss/sft")} == {
        name: same_log[name] for name in ("loss", "loss/sft")
    }
    for name, gradient in with_blank.items():
        assert torch.equal(gradient, without.get(name, torch.zeros_like(gradient))), name
    more = {name for name in with_blank if name not in without or not without[name].any()}
    assert any("vis" in name for name in more)
    if not case.startswith("stock"):
        assert any("evi_head" in name for name in more) and any("frame_head" in name for name in more)


def test_inputs_that_half_precision_would_change_keep_theirs(folder, tmp_path):
    """DeepSpeed has every floating input cast to the type of the weights."""
    trainer = zero_ranks.make_trainer("stock_fpo", str(folder), str(tmp_path), "one")
    trainer._prepare_input = lambda batch: {  # as of transformers' trainer under DeepSpeed
        name: value.bfloat16() if torch.is_floating_point(value) else value for name, value in batch.items()
    }
    seconds, log_probs = torch.tensor([2 / 3, 0.7]), torch.tensor([-200.37, -1.1])
    batch = {"second_per_grid_ts": seconds, "ref_chosen_logps": log_probs, "pixel_values_videos": torch.rand(2)}
    prepared = trainer._prepare_inputs(batch)
    assert prepared["pixel_values_videos"].dtype == torch.bfloat16
    assert torch.equal(prepared["ref_chosen_logps"], log_probs)
    # FSDP casts what enters the forward, so that this one goes in as an integer.
    assert not prepared["second_per_grid_ts"].is_floating_point()
    assert torch.equal(show_exact(prepared)["second_per_grid_ts"], seconds)


def test_the_fused_forward_reads_exact_inputs(folder, tmp_path):
    """A time grid that is wrong changes the positions, and with them the loss."""
    losses = []
    for factor in (1.0, 1.0, 8.0):
        trainer = zero_ranks.make_trainer("stock_sft", str(folder), str(tmp_path), "one")
        batch = trainer.data_collator([MIXED_ROWS[1]])
        batch["second_per_grid_ts"] = batch["second_per_grid_ts"] * factor
        inputs = trainer._prepare_inputs(batch) if factor == 1.0 and losses else batch
        losses.append(trainer.model(**inputs, fused_lm_head=True).loss.item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_blank_video_of_every_family(family, config):
    model, processor = families.build(family)
    trainer = EvidenceSFTTrainer(
        model,
        args=config(EvidenceSFTConfig, evidence_coef=0.0, consistency_coef=0.0, cache_frames=False),
        data_collator=ChatCollator(processor, noise_video),
        train_dataset=Dataset.from_list(MIXED_ROWS),
        processing_class=processor,
    )
    check_blank(trainer, MIXED_ROWS[3])


@pytest.mark.parametrize("case", ["native", "evidence", "qwen2_5_vl"])
def test_a_blank_video_from_a_feature_cache(case, folder, event_world, config, tmp_path):
    """Which holds none, so that it is one of its own."""
    model = AutoModelForImageTextToText.from_pretrained(folder / case)
    processor = AutoProcessor.from_pretrained(folder / case)
    losses = {"evidence_coef": 0.0, "consistency_coef": 0.0} if case == "qwen2_5_vl" else {}
    args = config(
        EvidenceSFTConfig, freeze_vision_tower=True, feature_cache=str(tmp_path), cache_frames=False, **losses
    )
    reader = frame_cache(args, processor, model.config.model_type)
    build_feature_cache(event_world["train"], tmp_path, model, processor, reader, progress=False)
    trainer = EvidenceSFTTrainer(model, args=args, train_dataset=event_world["train"], processing_class=processor)
    assert "video_features" in trainer._make_blank_video()
    check_blank(trainer, MIXED_ROWS[3])


def check_blank(trainer, row: dict) -> None:
    inputs = trainer._prepare_inputs(trainer.data_collator([row, row]))
    assert not any(name.startswith(("pixel_", "video_")) for name in inputs)
    whole = with_blank(inputs, trainer._make_blank_video, trainer._has_evidence)
    assert any(name.startswith(("pixel_", "video_features")) for name in whole)
    without, blank = (trainer.model(**each, fused_lm_head=True).log_probs for each in (inputs, whole))
    assert torch.equal(without, blank)
