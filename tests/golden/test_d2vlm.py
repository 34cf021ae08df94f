# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The native backbone, the SFT forward and FPO against the released code, on its own weights, inputs and outputs at toy
size (`tests/golden/d2vlm/README.md`). The frame tokens of the SFT and FPO cases are given, since the word pieces that
the Q-Former read there are not stored; the compressor has cases of its own.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Blip2VisionConfig, InstructBlipQFormerConfig, Phi3Config
from trl.trainer.utils import add_fused_lm_head

from trl_temporal.losses import consistency_l1, grounding_bce, grounding_log_prob, soft_targets
from trl_temporal.models.d2vlm import D2VLMConfig, D2VLMForConditionalGeneration, salient_run
from trl_temporal.models.d2vlm.convert_d2vlm_to_hf import convert_state_dict
from trl_temporal.models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_PROMPT, STAGE_RESPONSE
from trl_temporal.trainer.fused_forward import add_evidence_head

DATA = Path(__file__).parent / "d2vlm"
SETTINGS = json.loads((DATA / "config.json").read_text())
EVIDENCE_ID = SETTINGS["special_ids"]["<evi>"]
VIDEO_ID = SETTINGS["model_config"]["vocab_size"] - 1  # unused in the cases
RELEASED_VIDEO_ID = -200


@pytest.fixture(scope="module")
def model() -> D2VLMForConditionalGeneration:
    released = {name: tensor.float() for name, tensor in load_file(DATA / "weights_random.safetensors").items()}
    language, vision, qformer = SETTINGS["model_config"], SETTINGS["vision"], SETTINGS["qformer"]
    config = D2VLMConfig(
        text_config=Phi3Config(
            **{
                name: language[name]
                for name in (
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "rms_norm_eps",
                    "rope_theta",
                    "pad_token_id",
                    "eos_token_id",
                )
            },
            bos_token_id=None,
        ),
        vision_config=Blip2VisionConfig(
            hidden_size=vision["dim"],
            intermediate_size=int(vision["dim"] * vision["mlp"]),
            num_hidden_layers=vision["depth"],
            num_attention_heads=vision["heads"],
            image_size=vision["img"],
            patch_size=vision["patch"],
            layer_norm_eps=vision["layer_norm_eps"],
            hidden_act="gelu",
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=qformer["vocab_size"],
            hidden_size=qformer["hidden"],
            intermediate_size=qformer["inter"],
            num_hidden_layers=qformer["layers"],
            num_attention_heads=qformer["heads"],
            cross_attention_frequency=qformer["cross_attention_every"],
        ),
        num_query_tokens=qformer["queries"],
        video_token_id=VIDEO_ID,
        evidence_token_id=EVIDENCE_ID,
        evidence_end_token_id=SETTINGS["special_ids"]["</evi>"],
        video_attention="bidirectional",
    )
    model = D2VLMForConditionalGeneration(config).eval()
    missing, unexpected = model.load_state_dict(convert_state_dict(released), strict=False)
    assert not unexpected
    assert set(missing) == {f"model.vision_tower.post_layernorm.{name}" for name in ("weight", "bias")}
    return model


@pytest.mark.parametrize("query", ["short", "long", "two"])
@torch.no_grad()
def test_compressor(model, query):
    golden = load_file(DATA / "compressor.safetensors")
    frame_mask = torch.ones(1, len(golden["pixels"]), dtype=torch.bool)
    features = model.model.encode_videos(golden["pixels"].float()[None], frame_mask)
    torch.testing.assert_close(features[0], golden["features"], atol=1e-5, rtol=1e-5)

    expected = golden[f"{query}.frame_tokens"]
    num_texts, num_frames = expected.shape[:2]
    queries = SETTINGS["qformer"]["queries"]
    text_ids = golden[f"{query}.text_ids"].view(num_texts, num_frames, -1)[:, 0]
    text_mask = golden[f"{query}.mask"].view(num_texts, num_frames, -1)[:, 0, queries:]
    tokens = model.model.compressor(
        features.expand(num_texts, -1, -1, -1), frame_mask.expand(num_texts, -1), text_ids, text_mask
    )
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def released_frames(ends: tuple[float, float], num_frames: int) -> torch.Tensor:
    """The released rule: the index of a frame is its second, and both rounded ends belong to the span."""
    start, end = torch.tensor(ends).round().clamp(0, num_frames - 1).sort().values
    frame = torch.arange(num_frames)
    return (frame >= start) & (frame <= end)


def released_soft_targets(spans: list[tuple[float, float]], num_frames: int) -> torch.Tensor:
    """`2 ** -d` with the distance to the unrounded span, `(E, T)`."""
    frame = torch.arange(num_frames)
    start, end = torch.tensor(spans).T.unsqueeze(-1)
    return torch.exp2(-torch.maximum(start - frame, frame - end).clamp(min=0))


def read_case(name: str) -> tuple[dict, dict, dict]:
    """The golden tensors and numbers of a case, and our batch of it, right-padded."""
    golden, numbers = load_file(DATA / f"{name}.safetensors"), json.loads((DATA / f"{name}.json").read_text())
    rows = []
    for i, sample in enumerate(numbers["samples"]):
        prefix = golden["in.input_ids_part1"][i][golden["in.attention_mask1"][i].bool()].tolist()
        place = prefix.index(RELEASED_VIDEO_ID)
        prefix[place : place + 1] = [VIDEO_ID] * sample["frames"]
        question, answer = (
            [*zip(times[::2], times[1::2], strict=False)] for times in (sample["src"] or [], sample["tgt"] or [])
        )
        rows.append(
            {
                "input_ids": prefix + golden[f"in.input_ids_part2.{i}"].tolist(),
                "labels": [-100] * len(prefix) + golden[f"in.loss_labels.{i}"].tolist(),
                "spans": [*question, *answer, *answer],
                "stage": [STAGE_PROMPT] * len(question)
                + [STAGE_EVIDENCE] * len(answer)
                + [STAGE_RESPONSE] * len(answer),
                "frames": sample["frames"],
            }
        )
    length, num_frames = max(len(row["input_ids"]) for row in rows), max(row["frames"] for row in rows)
    num_evidence = max(len(row["stage"]) for row in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), -100),
        "frame_mask": torch.zeros(len(rows), num_frames, dtype=torch.bool),
        "evidence_stage": torch.zeros(len(rows), num_evidence, dtype=torch.long),
        "evidence_frame_mask": torch.zeros(len(rows), num_evidence, num_frames, dtype=torch.bool),
    }
    for i, row in enumerate(rows):
        batch["input_ids"][i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        batch["attention_mask"][i, : len(row["input_ids"])] = 1
        batch["labels"][i, : len(row["input_ids"])] = torch.tensor(row["labels"])
        batch["frame_mask"][i, : row["frames"]] = True
        batch["evidence_stage"][i, : len(row["stage"])] = torch.tensor(row["stage"], dtype=torch.long)
        for k, ends in enumerate(row["spans"]):
            batch["evidence_frame_mask"][i, k, : row["frames"]] = released_frames(ends, row["frames"])
    return golden, numbers, batch


def run(model, golden: dict, batch: dict, monkeypatch):
    """The forward from the given frame tokens on."""
    rows, num_frames = batch["frame_mask"].shape
    frames = torch.zeros(rows, num_frames, model.config.text_config.hidden_size)
    for i in range(rows):
        tokens = golden[f"out.frame_embeds.{i}"]
        frames[i, : len(tokens)] = tokens
    monkeypatch.setattr(model.model, "_embed_frames", lambda *inputs: (frames, batch["frame_mask"]))
    return model(pixel_values_videos=torch.zeros(rows, num_frames, 3, 28, 28), **batch)


@pytest.mark.parametrize("case", ["sft_main", "sft_single", "sft_src", "sft_edge", "sft_no_grounding"])
@torch.no_grad()
def test_sft_forward(model, case, monkeypatch):
    golden, numbers, batch = read_case(case)
    output = run(model, golden, batch, monkeypatch)
    assert output.loss.item() == pytest.approx(numbers["loss"]["lm"], abs=2e-5)
    for i, sample in enumerate(numbers["samples"]):
        num_frames = sample["frames"]
        if f"out.h6_frames.{i}" in golden:
            states = output.frame_states[i, :num_frames]
            torch.testing.assert_close(states, golden[f"out.h6_frames.{i}"], atol=1e-5, rtol=1e-5)
        if f"out.sim_logits.{i}" in golden:
            logits = output.evidence_logits[i][output.evidence_mask[i]][:, :num_frames]
            torch.testing.assert_close(logits, golden[f"out.sim_logits.{i}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["sft_main", "sft_single", "sft_src"])
def test_evidence_losses_and_their_gradients(model, case, monkeypatch):
    golden, numbers, batch = read_case(case)
    output = run(model, golden, batch, monkeypatch)
    stage, frames = batch["evidence_stage"], batch["evidence_frame_mask"]
    grounding = grounding_bce(output.evidence_logits, soft_targets(frames), output.evidence_mask, output.frame_mask)
    consistency = consistency_l1(output.evidence_queries, stage == STAGE_EVIDENCE, stage == STAGE_RESPONSE, frames)
    num_grounded = numbers["loss"]["grounded_samples"]
    for ours, term in ((grounding, "grounding_term"), (consistency, "consistency_term")):
        assert 10 * ours.sum().item() / num_grounded == pytest.approx(numbers["loss"][term], abs=2e-5)

    model.zero_grad()
    (output.loss + 10 * (grounding + consistency).sum() / num_grounded).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    released = {name: tensor for name, tensor in golden.items() if name.startswith("grad.")}
    for name, expected in released.items():
        if "qformer" not in name:  # before the given frame tokens
            (ours,) = convert_state_dict({name.removeprefix("grad."): expected})
            torch.testing.assert_close(gradients[ours], expected, atol=1e-5, rtol=1e-4)


FACTORS = ("shift", "add", "delete", "merge", "repeat", "distort")


def read_pair(factor: str) -> tuple[dict, dict, dict, list[list[tuple[float, float]]]]:
    """A golden preference pair as the two rows of TRL's layout, and the spans of each row's `<evi>` tokens."""
    golden = load_file(DATA / f"fpo_{factor}.safetensors")
    numbers = json.loads((DATA / f"fpo_{factor}.json").read_text())
    num_frames = numbers["samples"][0]["frames"]
    prefix = golden["in.input_ids_part1"][0].tolist()
    place = prefix.index(RELEASED_VIDEO_ID)
    prefix[place : place + 1] = [VIDEO_ID] * num_frames
    rest = golden["in.input_ids_part2.0"].tolist()
    start = numbers["relative_offset"][0] - len(prefix)
    middle = start + len(golden["out.chosen_token_logps.0"])
    prompt, responses = prefix + rest[:start], (rest[start:middle], rest[middle:])
    times = (numbers["samples"][0]["tgt"], numbers["tgt_rejected"][0])
    spans = [2 * [*zip(ends[::2], ends[1::2], strict=True)] for ends in times]
    length = len(prompt) + max(map(len, responses))
    num_evidence = max(map(len, spans))
    batch = {
        "input_ids": torch.zeros(2, length, dtype=torch.long),
        "attention_mask": torch.zeros(2, length, dtype=torch.long),
        "labels": torch.full((2, length), -100),
        "frame_mask": torch.ones(1, num_frames, dtype=torch.bool),
        "video_index": torch.zeros(2, dtype=torch.long),
        "evidence_stage": torch.zeros(2, num_evidence, dtype=torch.long),
        "evidence_frame_mask": torch.zeros(2, num_evidence, num_frames, dtype=torch.bool),
    }
    for i, response in enumerate(responses):
        ids, num_events = prompt + response, len(spans[i]) // 2
        batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][i, : len(ids)] = 1
        batch["labels"][i, len(prompt) : len(ids)] = torch.tensor(response)
        batch["evidence_stage"][i, :num_events] = STAGE_EVIDENCE
        batch["evidence_stage"][i, num_events : 2 * num_events] = STAGE_RESPONSE
        for k, ends in enumerate(spans[i]):
            batch["evidence_frame_mask"][i, k] = released_frames(ends, num_frames)
    return golden, numbers, batch, spans


@pytest.mark.parametrize("prefix_sharing", [True, False])
@pytest.mark.parametrize("factor", FACTORS)
@torch.no_grad()
def test_fpo_pair(model, factor, prefix_sharing, monkeypatch):
    golden, numbers, batch, spans = read_pair(factor)
    model = copy.deepcopy(model)
    frames = golden["out.frame_embeds.0"].unsqueeze(0)
    monkeypatch.setattr(
        model.model,
        "_embed_frames",
        lambda input_ids, *inputs: (
            frames.expand(len(input_ids), -1, -1),
            batch["frame_mask"].expand(len(input_ids), -1),
        ),
    )
    outputs = []
    add_fused_lm_head(model)
    add_evidence_head(model, grounding_coef=1.0, soft=True, prefix_sharing=prefix_sharing, on_output=outputs.append)
    model(pixel_values_videos=torch.zeros(1, frames.shape[1], 3, 28, 28), fused_lm_head=True, **batch)
    (output,) = outputs
    union = []
    for i, side in enumerate(("chosen", "rejected")):
        expected = numbers["pairs"][0][side]
        token_log_probs = output.text_log_probs[i][output.label_mask[i]]
        torch.testing.assert_close(token_log_probs, golden[f"out.{side}_token_logps.0"], atol=1e-5, rtol=1e-5)
        logits = output.evidence_logits[i][output.evidence_mask[i]]
        torch.testing.assert_close(logits, golden[f"out.{side}_sim_logits.0"], atol=1e-5, rtol=1e-5)
        # The released targets of log p_g keep the ends of the spans unrounded, which our frame masks cannot say yet.
        targets = released_soft_targets(spans[i], frames.shape[1])
        grounding = grounding_log_prob(logits[None], targets[None], batch["frame_mask"], soft=True).sum()
        assert grounding.item() == pytest.approx(expected["grounding"], rel=1e-5)
        union.append(token_log_probs.sum() + grounding)
    loss = -torch.nn.functional.logsigmoid(0.1 * (union[0] - union[1]))
    assert loss.item() == pytest.approx(numbers["loss"]["preference_term"], rel=1e-4, abs=2e-5)


def test_salient_run_equals_the_released_interval_rule_but_for_ties(model):
    golden = load_file(DATA / "find_and_merge.safetensors")
    similarity, length = golden["sim"], golden["length"]
    frame_mask = torch.arange(similarity.shape[1]) < length[:, None]
    run = salient_run(similarity, model.config.salience_threshold, frame_mask)
    first, last = run.int().argmax(-1), run.shape[1] - 1 - run.flip(-1).int().argmax(-1)
    ours = torch.stack([first, last], dim=-1)
    differs = (ours != golden["interval"]).any(-1)
    # Where several runs have the same mean, the release answers from the first to the last of them; we take the first.
    assert int(differs.sum()) == 44
    assert (ours[differs, 0] == golden["interval"][differs, 0]).all()
    assert (ours[differs, 1] < golden["interval"][differs, 1]).all()
