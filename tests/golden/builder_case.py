# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The released packer of preference pairs against our path: converter, `PreferenceCollator`, shared prefix.

The packer writes both responses of a pair into one row, `[prompt | chosen | <|end|> | rejected]`, to which training
appends a last `<|end|>`. It counts positions and indices from the first token of the chosen response; -1 is the end of
the prompt.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from trl_temporal.data.collator import PreferenceCollator
from trl_temporal.data.converters.d2vlm import choose_rejected, preference_row_from_d2vlm
from trl_temporal.models.d2vlm import D2VLMProcessor
from trl_temporal.models.d2vlm.modeling_d2vlm import STAGE_PROMPT, build_attention_mask
from trl_temporal.models.d2vlm.released_tokenizer import CHAT_TEMPLATE
from trl_temporal.trainer.fused_forward import frame_spans
from trl_temporal.trainer.pairs import Pairs
from trl_temporal.video import Video


def released_processor(folder: Path) -> D2VLMProcessor:
    """The processor for a golden folder: its tokenizer, the released chat and the released rule of time."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    return D2VLMProcessor(tokenizer, chat_template=CHAT_TEMPLATE, image_size=1, time_rule="index")


def blank_video(duration_s: float) -> Video:
    """A video whose frame i stands at second i, as released training samples it."""
    num_frames = max(round(duration_s), 1)
    frames = np.zeros((num_frames, 1, 1, 3), dtype=np.uint8)
    return Video(frames, np.arange(num_frames, dtype=float), duration_s=float(duration_s), path="blank")


def check_builder(folder: Path) -> list[tuple[str, float]]:
    """
    Compare our path with `fpo_builder.json`.

    Args:
        folder (`Path`):
            Golden folder with `fpo_builder.json`, `config.json` and `tokenizer/`.

    Returns:
        `list[tuple[str, float]]`: the number of mismatches in each quantity, over all records.
    """
    golden = json.loads((folder / "fpo_builder.json").read_text())
    end_id = json.loads((folder / "config.json").read_text())["special_ids"]["<|end|>"]
    processor = released_processor(folder)
    pairs = list(zip(golden["records"], golden["outputs"], strict=True))
    # Every one of `records` was a call of the builder by itself; `multi_records` went through one call.
    kept = [choose_rejected([record])[0] for record in golden["records"]]
    expected = [output["processed_response"]["class"] for output in golden["outputs"]]
    if "multi_records" in golden:
        pairs += zip(golden["multi_records"], golden["multi_outputs"], strict=True)
        kept += choose_rejected(golden["multi_records"])
        expected += golden["multi_chosen_keys"]

    mismatches = Counter({"chosen keys": _differences(kept, expected)})
    for number, (record, output) in enumerate(pairs):
        mismatches.update(_compare(record, output, number, processor, end_id))
    return [(name, float(count)) for name, count in mismatches.items()]


def _compare(record: dict, output: dict, number: int, processor: D2VLMProcessor, end_id: int) -> dict[str, int]:
    packed = output["processed_response"]
    event = packed["conflict_events"][-1]  # the one that training reads
    row = preference_row_from_d2vlm(record, id=str(number), rejected_key=packed["class"])
    collator = PreferenceCollator(
        processor, lambda entry: blank_video(record["duration"]), soft_targets=True, release_quirks=True
    )
    batch = collator([row])
    completion = batch.pop("completion_mask").bool()
    labels = batch["input_ids"].masked_fill(~completion, -100)
    shared = Pairs(batch["input_ids"], batch["attention_mask"], labels, processor.tokenizer.pad_token_id)
    ours = shared.pack(batch)
    prompt = int(completion[0].int().argmax())
    ids, segments = ours["input_ids"][0, prompt:].tolist(), ours["segment_ids"][0, prompt:].tolist()
    visible = build_attention_mask(
        ours["attention_mask"], None, ours["segment_ids"], dtype=torch.float32, attn_implementation="sdpa"
    )[0, 0, prompt:, prompt:]

    grounded = "grounding" in event["chosen"]
    their_ids, their_positions = list(packed["full_token_ids"]), list(packed["pos_id"])
    if grounded:
        # Training appends the last <|end|> at the next position; it predicts nothing, so the packer hides nothing.
        their_ids.append(end_id)
        their_positions.append(their_positions[-1] + 1)
        index_of = list(range(len(their_ids)))
    else:
        index_of = _text_pair_indices(event, len(their_ids), len(ids))
    # Our place of a token to theirs; a place that only one side has counts as a mismatch.
    placed = {place: index for place, index in enumerate(index_of[: len(ids)]) if index is not None}

    hidden = {
        row: {key for first, last in ranges for key in range(first, last + 1)}
        for row, ranges in packed["special_mask_list"]
    }
    wrong_rows = 0
    for place, index in placed.items():
        if index >= len(packed["full_token_ids"]):
            continue
        seen = {index_of[key] for key in visible[place].nonzero().flatten().tolist()}
        wrong_rows += seen != set(range(index + 1)) - hidden.get(index, set())

    result = {
        "ids": _differences([ids[place] for place in placed], [their_ids[index] for index in placed.values()])
        + len(set(range(len(their_ids))) - set(placed.values())),
        "positions": _differences(
            (ours["position_ids"][0, prompt:][list(placed)] - prompt).tolist(),
            [their_positions[index] for index in placed.values()],
        ),
        "mask": wrong_rows,
        "labels": _differences(
            [token for token, segment in zip(ids, segments, strict=True) if segment == 1],
            [label for label in packed["label"] if label != -100],
        ),
    }

    for side, branch in enumerate((event["chosen"], event["reject"])):
        tokens = completion[side].nonzero().flatten()
        # The packer leaves the first token of a text pair out: both sides have it in common, so it would cancel.
        tokens = tokens if grounded else tokens[1:]
        evidence = tokens[batch["input_ids"][side, tokens] == processor.evidence_token_id]
        response = batch["evidence_stage"][side] > STAGE_PROMPT
        measured = {
            "text predictors": (_predictors(shared, side, tokens, prompt, index_of), branch["text"]["input_index"]),
            "text targets": (batch["input_ids"][side, tokens].tolist(), branch["text"]["logit_token_id"]),
            "predictors": (
                _predictors(shared, side, evidence, prompt, index_of),
                branch["grounding"]["input_index"] if grounded else [],
            ),
        }
        for name, (have, want) in measured.items():
            result[name] = result.get(name, 0) + _differences(have, want)
        # At 1 fps the frame is the second. The batch holds millionths of a frame.
        spans = frame_spans(batch)[side][response].round(decimals=5).tolist()
        want = [[round(edge, 5) for edge in span] for span in branch["grounding"]["tgt"]] if grounded else []
        result["spans"] = result.get("spans", 0) + _differences(spans, want)
    return result


def _text_pair_indices(event: dict, num_theirs: int, num_ours: int) -> list[int | None]:
    """
    For each token of our packed row its index in theirs, in a pair of texts without evidence.

    Theirs: `c0 .. c(n-2) | w1 .. w(m-2) | c(n-1)`, where the rejected tokens share `c0` and sit before the last chosen
    token. Ours: `c0 .. c(n-1) | c0 w1 .. w(m-1)`, with a copy of `c0`. The last rejected token is a target in theirs,
    without a place in the row.
    """
    num_chosen = len(event["chosen"]["text"]["input_index"]) + 1
    chosen = [*range(num_chosen - 1), num_theirs - 1]
    rejected = [0, *range(num_chosen - 1, num_theirs - 1)]
    return chosen + rejected + [None] * (num_ours - len(chosen) - len(rejected))


def _predictors(shared: Pairs, side: int, tokens: torch.Tensor, prompt: int, index_of: list) -> list[int | None]:
    """Indices, as the packer counts them, of the states that predict the tokens of one row."""
    places = (shared.back[side, tokens - 1] - prompt).tolist()
    return [-1 if place < 0 else index_of[place] for place in places]


def _differences(have: list, want: list) -> int:
    return sum(a != b for a, b in zip(have, want, strict=False)) + abs(len(have) - len(want))
