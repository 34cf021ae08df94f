# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The package against the released code, on its inputs and outputs.

Every case goes the way of a user: rows through the collators, the trainers' own training step with the preset
`d2vlm-release`, `generate`. Given are the golden frame tokens where a case has no pixels.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from transformers import LogitsProcessor

from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator, PromptCollator
from trl_temporal.losses import soft_targets
from trl_temporal.models.d2vlm import salient_run
from trl_temporal.models.d2vlm.convert_d2vlm_to_hf import convert_state_dict
from trl_temporal.models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_PROMPT, STAGE_RESPONSE, _input_of
from trl_temporal.trainer.fused_forward import frame_spans

from .builder_case import check_builder
from .case import EXACT, Case, Check
from .folder import RELEASED_VIDEO_ID, GoldenFolder, answer_messages, pad_videos, pairs, prompt_messages, sample_row

RELEASED_ALPHA = 2.0
LOSS, SIMILARITY, STATE, LOG_PROB, LOGIT, GRADIENT = 2e-5, 1e-5, 1e-5, 1e-5, 1e-4, 1e-4


def run_folder(path: str | Path) -> Iterator[Check]:
    """
    Checks every case of a folder.

    Args:
        path (`str` or `Path`):
            Folder of golden tensors, see [`GoldenFolder`].

    Yields:
        [`Check`]: line after line.
    """
    folder = GoldenFolder(path)
    checks: list[tuple[str, Callable[[GoldenFolder, Case], None]]] = [
        *((name, check_compressor) for name in folder.names("compressor")),
        *((name, check_interval_rule) for name in folder.names("find_and_merge")),
        *((name, check_sft) for name in folder.names("sft_*")),
        *((name, check_fpo) for name in folder.names("fpo_*")),
        *((name, check_generation) for name in folder.names("infer*")),
    ]
    if (folder.path / "fpo_builder.json").is_file():
        checks.append(("fpo_builder", check_packing))
    if not checks:
        raise FileNotFoundError(f"{path} has no case: no file named compressor, find_and_merge, sft_*, fpo_*, infer*.")
    for name, check in checks:
        case = Case(name)
        check(folder, case)
        yield from case.lines.values()


@torch.no_grad()
def check_compressor(folder: GoldenFolder, case: Case) -> None:
    """Vision tower, Q-Former and pooling."""
    golden, numbers = folder.read(case.name)
    model = folder.model("random").model
    pixels = golden["pixels"].float()[None]
    frame_mask = torch.ones(pixels.shape[:2], dtype=torch.bool)
    features, _ = model.encode_videos(frame_mask, pixel_values_videos=pixels)
    case.close("features", features[0].unflatten(0, pixels.shape[1:2] + (-1,)), golden["features"], STATE)
    for name, query in numbers["queries"].items():
        encoded = folder.processor.encode_questions(query["texts"])
        ids, mask = encoded["qformer_input_ids"], encoded["qformer_attention_mask"]
        num_texts, num_frames = golden[f"{name}.frame_tokens"].shape[:2]
        released_ids = golden[f"{name}.text_ids"].view(num_texts, num_frames, -1)[:, 0]
        released_mask = golden[f"{name}.mask"].view(num_texts, num_frames, -1)[:, 0, -released_ids.shape[1] :]
        case.same("text ids", ids * mask, released_ids * released_mask)
        tokens = model._frame_tokens(features, frame_mask, torch.zeros(num_texts, dtype=torch.long), ids, mask)
        case.close(f"frame tokens, {name} text", tokens, golden[f"{name}.frame_tokens"], STATE)


def check_interval_rule(folder: GoldenFolder, case: Case) -> None:
    """From similarities to one interval."""
    golden = folder.read_tensors(case.name)
    config = folder.model("random").config
    frame_mask = torch.arange(golden["sim"].shape[1]) < golden["length"][:, None]
    run = salient_run(golden["sim"], config.salience_threshold, frame_mask, config.interval_ties)
    case.same("intervals", ends_of(run), golden["interval"])


def ends_of(run: torch.Tensor) -> torch.Tensor:
    """First and last frame of runs `(..., T)`."""
    return torch.stack([run.int().argmax(-1), run.shape[-1] - 1 - run.flip(-1).int().argmax(-1)], dim=-1)


# --- Supervised fine-tuning ---


def check_sft(folder: GoldenFolder, case: Case) -> None:
    """Forward, each loss term and the gradients of one training step."""
    golden, numbers = folder.read(case.name)
    samples = numbers["samples"]
    collator = EvidenceCollator(folder.processor, folder.read_video, soft_targets=True, release_quirks=True)
    batch = collator(sft_rows(case.name, samples))
    without_single_moments(batch, samples)
    check_rows(case, golden, batch, samples, folder.processor.video_token_id)
    batch = pad_right(batch, golden["out.labels"].shape[1], folder.processor.tokenizer.pad_token_id)

    for checkpointing, prefix in ((False, ""), (True, "checkpointing: ")):
        model = folder.model(numbers["weights"])
        if checkpointing:
            model.gradient_checkpointing_enable()
        with golden_videos(model, golden, batch):
            if not checkpointing:
                check_forward(folder, case, golden, model, batch, samples)
            trainer = make_trainer(folder, EvidenceSFTTrainer, EvidenceSFTConfig, model, collator)
            assert model.model.language_model.layers[0].gradient_checkpointing == checkpointing
            total = training_step(trainer, batch)
        check_losses(case, trainer, total, numbers["loss"], prefix)
        check_gradients(case, model, golden, numbers["grad_norm"], prefix)


def sft_rows(case: str, samples: list[dict]) -> list[dict]:
    """The samples of a case as rows of the data contract."""
    return [
        {
            **with_prompt_spans(sample_row(case, number, sample)),
            "completion": answer_messages(sample["conversation"][1]["value"]),
            "spans": pairs(sample["tgt"]),
        }
        for number, sample in enumerate(samples)
    ]


def with_prompt_spans(row: dict) -> dict:
    """A span for every `<evi>` of the question: those that the release fills are the last ones."""
    question = row["prompt"][0]["content"][-1]["text"] + row["prompt"][0]["content"][0].get("text", "")
    spans = row["prompt_spans"] or []
    return {**row, "prompt_spans": [[0.0, 0.0]] * (question.count("<evi>") - len(spans)) + spans}


def without_single_moments(batch: dict, samples: list[dict]) -> None:
    """In training, the release adds nothing to an `<evi>` of the question that has no pair of numbers."""
    for number, sample in enumerate(samples):
        num_tokens = int((batch["evidence_stage"][number] == STAGE_PROMPT).sum())
        batch["evidence_frame_mask"][number, : num_tokens - len(pairs(sample["src"]))] = False


def check_rows(case: Case, golden: dict, batch: dict, samples: list[dict], video_token_id: int) -> None:
    """Ids, labels and masks of the batch."""
    for number, sample in enumerate(samples):
        prefix = golden["in.input_ids_part1"][number][golden["in.attention_mask1"][number].bool()].tolist()
        place = prefix.index(RELEASED_VIDEO_ID)
        frames = [video_token_id] * sample["frames"]
        ids = prefix[:place] + frames + prefix[place + 1 :] + golden[f"in.input_ids_part2.{number}"].tolist()
        labels = [-100] * (len(prefix) - 1 + sample["frames"]) + golden[f"in.loss_labels.{number}"].tolist()
        kept = batch["attention_mask"][number].bool()
        case.same("ids", batch["input_ids"][number, kept], ids)
        case.same("labels", batch["labels"][number, kept], labels)
    length = batch["attention_mask"].shape[1]
    released = golden["out.attention_mask"].long()
    case.same("attention mask", batch["attention_mask"], released[:, :length])
    case.add("attention mask", released[:, length:].sum().item(), EXACT)


def pad_right(batch: dict, length: int, pad_token_id: int) -> dict:
    """The batch with padding up to the golden length: padding changes nothing."""
    missing = length - batch["input_ids"].shape[1]
    if missing <= 0:
        return batch
    values = {"input_ids": pad_token_id, "attention_mask": 0, "labels": -100, "completion_mask": 0}
    padded = {
        name: torch.nn.functional.pad(batch[name], (0, missing), value=value)
        for name, value in values.items()
        if name in batch
    }
    if "position_ids" in batch:
        padded["position_ids"] = torch.arange(length).expand(len(batch["input_ids"]), -1).contiguous()
    return {**batch, **padded}


@contextmanager
def golden_videos(model, golden: dict, batch: dict):
    """Within, the model sees the golden videos: their pixels, or else the golden frame tokens."""
    num_videos = len(batch["pixel_values_videos"])
    if "in.pixels.0" in golden:
        batch["pixel_values_videos"] = pad_videos([golden[f"in.pixels.{i}"] for i in range(num_videos)])
        yield
        return
    frames = pad_videos([golden[f"out.frame_embeds.{i}"] for i in range(num_videos)])

    def frame_tokens(features, frame_mask, video_index, *qformer_text):
        return frames[video_index]

    model.model._frame_tokens = frame_tokens
    yield
    del model.model._frame_tokens


@torch.no_grad()
def check_forward(folder: GoldenFolder, case: Case, golden: dict, model, batch: dict, samples: list[dict]) -> None:
    """States, logits and similarities of a forward without loss."""
    inputs = {name: value for name, value in batch.items() if name not in ("evidence_spans", "labels")}
    seen = {}

    def look(module, args, kwargs):
        seen.update(inputs_embeds=kwargs["inputs_embeds"], mask=kwargs["attention_mask"])

    handle = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)  # the last call stays
    with _input_of(model.model.language_model.layers[-1]) as last_layer:
        output = model(**inputs)
    handle.remove()
    kept = batch["attention_mask"].bool()
    if "out.inputs_embeds" in golden:
        case.close("embeddings", seen["inputs_embeds"][kept], golden["out.inputs_embeds"][kept], STATE)
    if "out.attn_allowed" in golden:
        check_mask(case, seen["mask"], golden["out.attn_allowed"], kept)
    if "out.h_penult" in golden:
        case.close("h[-2]", last_layer[0][kept], golden["out.h_penult"][kept], LOGIT)
    if "out.logits" in golden:
        case.close("logits", output.logits[kept], golden["out.logits"][kept], LOGIT)
    log_probs = output.logits[:, :-1].log_softmax(-1)
    labelled = batch["labels"][:, 1:] != -100
    label_log_probs = log_probs.gather(-1, batch["labels"][:, 1:, None].clamp(min=0)).squeeze(-1)
    case.close("label log-probs", label_log_probs[labelled], golden["out.label_logps"][labelled], LOG_PROB)
    spans = frame_spans(batch).round()
    for number, sample in enumerate(samples):
        num_frames = sample["frames"]
        if f"out.h6_frames.{number}" in golden:
            case.close("h6", output.frame_states[number, :num_frames], golden[f"out.h6_frames.{number}"], STATE)
        if "in.pixels.0" in golden:
            tokens = seen["inputs_embeds"][number][is_frame(model, batch)[number]]
            case.close("frame tokens", tokens, golden[f"out.frame_embeds.{number}"], STATE)
        if f"out.frm_tokens.{number}" in golden:
            ours = output.frame_features[number, :num_frames]
            case.close("frame features", ours, golden[f"out.frm_tokens.{number}"], SIMILARITY)
        if f"out.sim_logits.{number}" not in golden:
            continue
        stage = batch["evidence_stage"][number]
        for name, value in ("evi_stage1", STAGE_EVIDENCE), ("evi_stage2", STAGE_RESPONSE):
            ours = output.evidence_queries[number][stage == value]
            case.close("evidence queries", ours, golden[f"out.{name}.{number}"], SIMILARITY)
        counted = output.evidence_mask[number]
        logits = output.evidence_logits[number][counted][:, :num_frames]
        case.close("similarities", logits, golden[f"out.sim_logits.{number}"], SIMILARITY)
        targets = soft_targets(spans[number][counted], num_frames, soft_target_base(folder))
        case.close("soft targets", targets, golden[f"out.sim_target.{number}"], 1e-6)


def is_frame(model, batch: dict) -> torch.Tensor:
    return batch["input_ids"] == model.config.video_token_id


def check_mask(case: Case, mask: torch.Tensor, allowed: torch.Tensor, kept: torch.Tensor) -> None:
    """Which position sees which, but for what padding sees."""
    ours = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    case.same("mask", ours[kept], allowed[kept].bool())


def soft_target_base(folder: GoldenFolder) -> float:
    """The preset's, unless the folder was made with another than the release."""
    alpha = folder.settings["model_config"]["alpha"]
    return alpha if alpha != RELEASED_ALPHA else EvidenceSFTConfig._presets["d2vlm-release"]["soft_target_base"]


def make_trainer(folder: GoldenFolder, trainer_class, config_class, model, collator, **changes):
    """A trainer with the released preset, and what the folder's configuration has other than the release."""
    flags = folder.settings["model_config"]
    if not flags["consistency_loss"]:
        changes["consistency_coef"] = 0.0
    changes["soft_target_base"] = soft_target_base(folder)
    with tempfile.TemporaryDirectory() as output_dir:
        args = config_class.from_preset(
            "d2vlm-release",
            output_dir=output_dir,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            cache_frames=False,
            report_to="none",
            max_grad_norm=0.0,
            **changes,
        )
        # The step is given its batch; these rows only let the trainer be built.
        row = {"id": "unused", "videos": [{"path": "unused"}], "prompt": prompt_messages("<image>\na?")}
        if trainer_class is FPOTrainer:
            for side in ("chosen", "rejected"):
                row.update({side: answer_messages(f"</evi> {side}"), f"{side}_spans": []})
        else:
            row.update(completion=answer_messages("</evi> a"), spans=[])
        return trainer_class(
            model,
            args=args,
            train_dataset=datasets.Dataset.from_list([row]),
            data_collator=collator,
            processing_class=folder.processor,
        )


def training_step(trainer, batch: dict) -> float:
    """One step without the optimizer: the loss; gradients are in the model."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.max_steps = 1
    (batch,), num_items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    trainer.model.zero_grad()
    return trainer.training_step(trainer.model, batch, num_items).item()


def check_losses(case: Case, trainer, total: float, released: dict, prefix: str = "") -> None:
    """Each weighted term as it enters the total."""
    args = trainer.args
    terms = {"sft": ("lm", 1.0), "grounding": ("grounding_term", args.evidence_coef)}
    if args.consistency_coef:
        terms["consistency"] = ("consistency_term", args.consistency_coef)
    if "preference_term" in released:
        terms["preference"] = ("preference_term", args.preference_coef)
    for ours, (theirs, weight) in terms.items():
        value = weight * trainer._metrics["train"][f"loss/{ours}"][-1]
        case.add(f"{prefix}loss, {ours}", abs(value - released[theirs]), LOSS)
    case.add(f"{prefix}loss, total", abs(total - released["total"]), LOSS)


def check_gradients(case: Case, model, golden: dict, norms: dict[str, float], prefix: str = "") -> None:
    """The stored gradients, and the norm of every one; relative to the largest value."""
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    has_pixels = "in.pixels.0" in golden
    for name, expected in golden.items():
        if name.startswith("grad.") and (has_pixels or "qformer" not in name):
            (ours,) = convert_state_dict({name.removeprefix("grad."): expected})
            case.relative(f"{prefix}gradients", gradients[ours], expected, GRADIENT)
    largest = max(norms.values())
    for name, expected in norms.items():
        if "vision_tower" in name or ("qformer" in name and not has_pixels):
            continue
        (ours,) = convert_state_dict({name: torch.empty(0)})
        # Norms near zero are rounding noise of the softmax (the key biases): measured on the scale of all.
        difference = abs(gradients[ours].norm().item() - expected) / max(expected, 1e-3 * largest)
        case.add(f"{prefix}gradient norms", difference, GRADIENT)


# --- Preference pairs ---


def check_fpo(folder: GoldenFolder, case: Case) -> None:
    """Log-probabilities, losses and gradients of pairs, with their prompt shared and as two rows."""
    golden, numbers = folder.read(case.name)
    rows = [
        preference_row(folder, case.name, i, sample, golden, numbers) for i, sample in enumerate(numbers["samples"])
    ]
    collator = PreferenceCollator(folder.processor, folder.read_video, soft_targets=True, release_quirks=True)
    for prefix_sharing, prefix in ((True, ""), (False, "two rows: ")):
        batch = pad_right(collator(rows), golden["out.labels"].shape[1], folder.processor.tokenizer.pad_token_id)
        model = folder.model(numbers["weights"])
        trainer = make_trainer(folder, FPOTrainer, FPOConfig, model, collator, prefix_sharing=prefix_sharing)
        with golden_videos(model, golden, batch), packed_rows(model) as packed, kept_outputs(trainer) as outputs:
            total = training_step(trainer, batch)
        if prefix_sharing:
            check_packed(case, golden, numbers, packed, folder)
        check_pairs(case, golden, numbers, outputs[0], prefix)
        check_losses(case, trainer, total, numbers["loss"], prefix)
        check_gradients(case, model, golden, numbers["grad_norm"], prefix)


def preference_row(folder: GoldenFolder, case: str, number: int, sample: dict, golden: dict, numbers: dict) -> dict:
    """A pair as a row of the data contract; the rejected response is read from its ids."""
    event = numbers["conflict_events"][number][-1]
    full_ids = numbers["full_response_ids"]
    full_ids = full_ids[number] if isinstance(full_ids[0], list) else full_ids
    chosen_ids = event["chosen"]["text"]["logit_token_id"]
    if is_text_pair(event):  # stored without the first token of the rejected response, which is that of the chosen one
        rejected_ids = full_ids[:1] + event["reject"]["text"]["logit_token_id"]
    else:
        rejected_ids = full_ids[len(chosen_ids) :]
    return {
        **with_prompt_spans(sample_row(case, number, sample)),
        "chosen": answer_messages(sample["conversation"][1]["value"]),
        "rejected": answer_messages(folder.processor.tokenizer.decode(rejected_ids)),
        "chosen_spans": pairs(sample["tgt"]),
        "rejected_spans": pairs(numbers["tgt_rejected"][number]),
    }


def is_text_pair(event: dict) -> bool:
    return "grounding" not in event["chosen"]


@contextmanager
def kept_outputs(trainer):
    """Within, collects what the trainer's model returns."""
    outputs = []
    handle = trainer.model.register_forward_hook(lambda module, args, output: outputs.append(output))
    yield outputs
    handle.remove()


@contextmanager
def packed_rows(model):
    """Within, collects what the language model is given; the last call stays."""
    seen = {}

    def look_at_ids(module, args):
        seen["input_ids"] = args[0]  # 0 at frames

    def look(module, args, kwargs):
        seen.update({name: kwargs[name] for name in ("inputs_embeds", "position_ids")}, mask=kwargs["attention_mask"])

    handles = [
        model.get_input_embeddings().register_forward_pre_hook(look_at_ids),
        model.model.language_model.register_forward_pre_hook(look, with_kwargs=True),
    ]
    yield seen
    for handle in handles:
        handle.remove()


def check_packed(case: Case, golden: dict, numbers: dict, packed: dict, folder: GoldenFolder) -> None:
    """
    The shared row `[prompt, chosen, rejected]`. The release lets the last `<|end|>`, which predicts nothing, see
    everything, and has another order for pairs of text; these are left out.
    """
    if any(is_text_pair(events[-1]) for events in numbers["conflict_events"]):
        return
    for number, sample in enumerate(numbers["samples"]):
        prefix = golden["in.input_ids_part1"][number][golden["in.attention_mask1"][number].bool()].tolist()
        place = prefix.index(RELEASED_VIDEO_ID)
        ids = prefix[:place] + [0] * sample["frames"] + prefix[place + 1 :]
        ids += golden[f"in.input_ids_part2.{number}"].tolist()
        length = len(ids)
        case.same("ids", packed["input_ids"][number, :length], ids)
        case.same("positions", packed["position_ids"][number, :length], golden["out.position_ids"][number, :length])
        if "out.attn_allowed" in golden:
            kept = torch.arange(length - 1)
            mask = packed["mask"][number, 0]
            mask = mask if mask.dtype == torch.bool else mask == 0
            allowed = golden["out.attn_allowed"][number].bool()
            case.same("mask", mask[kept][:, kept], allowed[kept][:, kept])
        if "out.inputs_embeds" in golden:
            ours = packed["inputs_embeds"][number, :length].detach()
            case.close("embeddings", ours, golden["out.inputs_embeds"][number, :length], STATE)


def check_pairs(case: Case, golden: dict, numbers: dict, output, prefix: str) -> None:
    """Log-probabilities of tokens and of grounding, and the similarities behind them."""
    half = len(output.log_probs) // 2
    for number, (pair, events) in enumerate(zip(numbers["pairs"], numbers["conflict_events"], strict=True)):
        for row, side in ((number, "chosen"), (number + half, "rejected")):
            released = pair[side]
            log_probs = output.text_log_probs[row].detach()[output.label_mask[row].bool()]
            if is_text_pair(events[-1]):
                log_probs = log_probs[1:]  # the first token, the same in both, is outside the released preference
            case.close(f"{prefix}token log-probs", log_probs, golden[f"out.{side}_token_logps.{number}"], LOG_PROB)
            add_sum(case, f"{prefix}log p, text", log_probs.double().sum().item(), released["text"])
            grounding = output.grounding_log_probs[row].item()
            add_sum(case, f"{prefix}log p, grounding", grounding, released["grounding"] or 0.0)
            add_sum(case, f"{prefix}log p, union", log_probs.double().sum().item() + grounding, released["union"])
            if f"out.{side}_sim_logits.{number}" in golden:
                expected = golden[f"out.{side}_sim_logits.{number}"]
                logits = output.evidence_logits[row].detach()[output.evidence_mask[row]][:, : expected.shape[1]]
                case.close(f"{prefix}similarities, {side}", logits, expected, SIMILARITY)


def add_sum(case: Case, quantity: str, ours: float, released: float) -> None:
    """A sum over hundreds of terms: relative to its size."""
    case.add(quantity, abs(ours - released) / max(abs(released), 1.0), LOG_PROB)


# --- Generation ---


class ForcedTokens(LogitsProcessor):
    """Lets every row continue with given tokens; the raw logits stay those of the model."""

    def __init__(self, new_ids: torch.Tensor, prompt_length: int):
        self.new_ids, self.prompt_length = new_ids, prompt_length

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.new_ids[input_ids.shape[1] - self.prompt_length]] = 0
        return forced


@torch.no_grad()
def check_generation(folder: GoldenFolder, case: Case) -> None:
    """Tokens, logits, similarities and intervals of every step, one video after the other, then as one batch."""
    golden, numbers = folder.read(case.name)
    model = folder.model(numbers["weights"])
    scale = numbers.get("evi_head_last_linear_scale", 1.0)
    for parameter in model.model.evi_head[-1].parameters():
        parameter.mul_(scale)
    forced = case.name.startswith("infer_forced")
    collator = PromptCollator(folder.processor, folder.read_video)
    rows = [prompt_row(case.name, number, video) for number, video in enumerate(numbers["videos"])]
    for number, (row, video) in enumerate(zip(rows, numbers["videos"], strict=True)):
        collated = collator([row])
        inputs, new_ids = collated["inputs"], golden[f"new_ids.{number}"]
        inputs["pixel_values_videos"] = golden[f"pixels.{number}"].float()[None]
        prompt_ids = inputs["input_ids"][0]
        ids = [token for token in prompt_ids.tolist() if token != folder.processor.video_token_id]
        released_ids = golden[f"prompt_ids.{number}"].tolist()
        case.same("prompt ids", ids, [token for token in released_ids if token != RELEASED_VIDEO_ID])
        with frame_states_of(model) as frame_states:
            output = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=len(new_ids),
                output_logits=True,
                return_dict_in_generate=True,
                logits_processor=[ForcedTokens(new_ids, len(prompt_ids))] if forced else None,
            )
        case.close("h6", frame_states[0][0], golden[f"h6_frames.{number}"], STATE)
        case.same("new ids", output.sequences[0, len(prompt_ids) :], new_ids)
        case.close("logits", torch.stack(output.logits, dim=1)[0], golden[f"logits.{number}"], LOGIT)
        similarity = output.token_salience[0]
        case.close("similarities", similarity, golden[f"sim.{number}"], SIMILARITY)
        run = salient_run(
            similarity, model.config.salience_threshold, similarity >= 0, ties=model.config.interval_ties
        )
        case.same("intervals", ends_of(run), golden[f"interval_per_step.{number}"])
        (answer,) = folder.processor.post_process_grounded(
            output, inputs, collated["timestamps_s"], collated["duration_s"]
        )
        spans = [*answer["evidence"], *answer["response"]]
        case.same("spans of the answer", spans, torch.tensor(video["evi_intervals"], dtype=torch.float32))
    if not forced:
        inputs = collator(rows)["inputs"]
        inputs["pixel_values_videos"] = pad_videos([golden[f"pixels.{i}"] for i in range(len(rows))])
        longest = max(len(golden[f"new_ids.{i}"]) for i in range(len(rows)))
        batched = model.generate(**inputs, do_sample=False, max_new_tokens=longest)[:, inputs["input_ids"].shape[1] :]
        for number in range(len(rows)):
            new_ids = golden[f"new_ids.{number}"]
            case.same("new ids in one batch", batched[number, : len(new_ids)], new_ids)


def prompt_row(case: str, number: int, video: dict) -> dict:
    """The question of a rendered prompt; a single number in `src` is one frame."""
    question = video["prompt"].split("<|user|>\n")[1].split("<|end|>")[0]
    source = video["src"] or []
    return {
        "id": f"{case} {number}",
        "videos": [{"path": f"{case}/{number}/{video['frames']}"}],
        "prompt": prompt_messages(question),
        "prompt_spans": pairs(source) if len(source) != 1 else [source * 2],
    }


@contextmanager
def frame_states_of(model):
    """Within, collects the states of the frames that `<evi>` tokens capture."""
    states = []
    handle = model.model.register_forward_hook(lambda module, args, output: states.append(output.frame_states))
    yield states
    handle.remove()


def check_packing(folder: GoldenFolder, case: Case) -> None:
    """From annotation records to packed pairs."""
    for quantity, mismatches in check_builder(folder.path):
        case.add(quantity, mismatches, EXACT)
