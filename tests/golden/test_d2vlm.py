# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The package against the released code (see `runner.py`), and that the runner sees a fault where there is one."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden import __main__ as command
from tests.golden.folder import GoldenFolder, answer_messages
from tests.golden.runner import (
    Case,
    check_fpo,
    check_interval_rule,
    check_sft,
    golden_videos,
    kept_outputs,
    make_trainer,
    pad_right,
    run_folder,
    sft_rows,
    training_step,
)
from tests.golden.variants import write_variant
from trl_temporal import FPOConfig, FPOTrainer
from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator
from trl_temporal.models.d2vlm import configuration_d2vlm, modeling_d2vlm
from trl_temporal.trainer.evidence_sft_config import EVIDENCE_SFT_PRESETS

DATA = Path(__file__).parent / "d2vlm"


@pytest.fixture(scope="module")
def folder() -> GoldenFolder:
    return GoldenFolder(DATA)


def missed(folder: GoldenFolder, check, name: str) -> set[str]:
    """Quantities of a case that do not pass."""
    case = Case(name)
    check(folder, case)
    return {quantity for quantity, line in case.lines.items() if not line.passed}


def test_every_quantity_of_every_case():
    checks = list(run_folder(DATA))
    assert [check for check in checks if not check.passed] == []
    assert {check.case for check in checks} == {
        *(file.stem for file in DATA.glob("*.safetensors") if not file.stem.startswith("weights")),
        "fpo_builder",
    }


def test_the_order_of_samples_and_padding_change_nothing(tmp_path, monkeypatch, capsys):
    write_variant(DATA, tmp_path / "variant", padding=7)
    monkeypatch.setattr(sys, "argv", ["tests.golden", str(tmp_path / "variant")])
    assert command.main() == 0
    assert "0 missed" in capsys.readouterr().out


# --- A fault is seen, in its own line ---


def test_a_miss_is_shown_and_exits_with_one(tmp_path, monkeypatch, capsys):
    for name in ("tokenizer", "qformer_tokenizer"):
        shutil.copytree(DATA / name, tmp_path / name)
    for name in ("config.json", "weights_random.safetensors"):
        shutil.copy(DATA / name, tmp_path)
    golden = load_file(DATA / "find_and_merge.safetensors")
    golden["interval"][3, 1] += 1
    save_file(golden, tmp_path / "find_and_merge.safetensors")
    monkeypatch.setattr(sys, "argv", ["tests.golden", str(tmp_path)])
    assert command.main() == 1
    assert "1 cases, 1 quantities, 1 missed" in capsys.readouterr().out

    (tmp_path / "find_and_merge.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no case"):
        command.main()


def test_targets_that_fall_too_fast(folder, monkeypatch):
    monkeypatch.setitem(EVIDENCE_SFT_PRESETS["d2vlm-release"], "soft_target_base", 3.0)
    assert missed(folder, check_sft, "sft_single") == {
        "soft targets",
        *(
            f"{prefix}{name}"
            for prefix in ("", "checkpointing: ")
            for name in ("loss, grounding", "loss, total", "gradient norms")
        ),
    }
    in_pair = missed(folder, check_fpo, "fpo_shift")
    assert {"log p, grounding", "two rows: log p, grounding", "loss, grounding"} <= in_pair
    assert not {"ids", "token log-probs", "similarities, chosen", "loss, sft"} & in_pair


def test_states_of_another_layer(folder, monkeypatch):
    monkeypatch.setitem(configuration_d2vlm.PRESETS["d2vlm-release"], "capture_layer", 5)
    found = missed(folder, check_sft, "sft_main")
    assert {"h6", "embeddings", "similarities"} <= found
    assert not {"ids", "mask", "soft targets", "frame tokens"} & found


def test_a_rejected_response_that_sees_the_chosen_one(folder, monkeypatch):
    build = modeling_d2vlm.build_attention_mask
    monkeypatch.setattr(
        modeling_d2vlm, "build_attention_mask", lambda mask, frames, segments, *rest: build(mask, frames, None, *rest)
    )
    found = missed(folder, check_fpo, "fpo_repeat")
    assert {"mask", "token log-probs", "loss, preference"} <= found
    # The embeddings are those before attention, and two rows need no mask.
    assert not {"ids", "positions", "embeddings"} & found and not any("two rows" in line for line in found)


def test_ties_that_take_the_first_run(folder, monkeypatch):
    monkeypatch.setitem(configuration_d2vlm.PRESETS["d2vlm-release"], "interval_ties", "first")
    case = Case("find_and_merge")
    check_interval_rule(folder, case)
    assert case.lines["intervals"].difference == 44


# --- What the preset copies and the default mends ---


@torch.no_grad()
def label_log_probs(folder, case: str, rows: list[int], release_quirks: bool) -> list[torch.Tensor]:
    """Log-probability of every label of each row, when these rows make a batch."""
    golden, numbers = folder.read(case)
    samples = sft_rows(case, numbers["samples"])
    collator = EvidenceCollator(folder.processor, folder.read_video, release_quirks=release_quirks)
    batch = collator([samples[i] for i in rows])
    golden = {f"out.frame_embeds.{number}": golden[f"out.frame_embeds.{i}"] for number, i in enumerate(rows)}
    batch = pad_right(batch, 200, folder.processor.tokenizer.pad_token_id)
    model = folder.model("random")
    with golden_videos(model, golden, batch):
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    labels = batch["labels"][:, 1:]
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, labels[..., None].clamp(min=0)).squeeze(-1)
    return [row[row_labels != -100] for row, row_labels in zip(log_probs, labels, strict=True)]


@pytest.mark.parametrize("release_quirks", [False, True])
def test_rows_do_not_depend_on_the_texts_before_other_videos(folder, release_quirks):
    """In the release they do: a shorter text before the video leaves a hole behind it, and shifts what follows."""
    together = label_log_probs(folder, "sft_prefix_pad", [0, 1, 2], release_quirks)
    alone = [label_log_probs(folder, "sft_prefix_pad", [i], release_quirks)[0] for i in range(3)]
    differences = [(one - other).abs().max().item() for one, other in zip(together, alone, strict=True)]
    longest, *others = differences
    assert longest < 1e-5
    assert all(difference > 1e-3 if release_quirks else difference < 1e-5 for difference in others)


@pytest.mark.parametrize("prefix_sharing", [True, False])
def test_pairs_whose_question_refers_to_an_event(folder, prefix_sharing):
    """Where the release crashes, a pair's chosen side is what the release computes for it in supervised training."""
    golden, numbers = folder.read("sft_src")
    chosen = [i for i, sample in enumerate(numbers["samples"]) if sample["src"] and sample["tgt"]]
    assert chosen
    rows = [
        {
            **{name: row[name] for name in ("id", "videos", "prompt", "prompt_spans")},
            "chosen": row["completion"],
            "rejected": answer_messages("<evi> </evi> Never, but in <evi>."),
            "chosen_spans": row["spans"],
            "rejected_spans": [[1.0, 2.0]],
        }
        for row in (sft_rows("sft_src", numbers["samples"])[i] for i in chosen)
    ]
    collator = PreferenceCollator(folder.processor, folder.read_video, soft_targets=True, release_quirks=True)
    batch = collator(rows)
    model = folder.model("random")
    trainer = make_trainer(folder, FPOTrainer, FPOConfig, model, collator, prefix_sharing=prefix_sharing)
    frames = {f"out.frame_embeds.{number}": golden[f"out.frame_embeds.{i}"] for number, i in enumerate(chosen)}
    with golden_videos(model, frames, batch), kept_outputs(trainer) as outputs:
        training_step(trainer, batch)
    (output,) = outputs
    for number, i in enumerate(chosen):
        expected = golden[f"out.sim_logits.{i}"]
        logits = output.evidence_logits[number].detach()[output.evidence_mask[number]][:, : expected.shape[1]]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        log_probs = golden["out.label_logps"][i]
        log_probs = log_probs[log_probs != 0]
        torch.testing.assert_close(
            output.text_log_probs[number].detach()[output.label_mask[number].bool()], log_probs, atol=1e-5, rtol=1e-5
        )
