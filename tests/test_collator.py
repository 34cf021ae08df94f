# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the collators make of rows, token by token."""

import pytest
import torch
from datasets import Dataset

from tests.helpers import noise_video, preference_row, sft_row, user
from trl_temporal.data.collator import SPAN_UNIT, EvidenceCollator, PreferenceCollator, PromptCollator
from trl_temporal.data.schema import RowError


@pytest.fixture
def processor(tiny):
    return tiny[1]


def tokens(processor, ids):
    return processor.tokenizer.convert_ids_to_tokens(ids)


def text_of(processor, ids):
    return processor.tokenizer.decode(ids)


# frames of 0.5 s: 0-0.5, 0.5-1, ...; 4 of them
DENSE = sft_row(
    "<evi> <evi> </evi> <evi> The red disc blinks. <evi> The blue cross shakes.",
    [[0.0, 1.0], [1.5, 2.0]],
    video="noise-0-4",
    question="Describe every event in the video.",
)
GROUNDING = sft_row("<evi> </evi> It happens in <evi>.", [[0.5, 1.5]], video="noise-1-3", question="When?")
QA = sft_row("<evi> </evi> The red disc <evi>.", [[1.0, 3.0]], video="noise-2-6", question="What blinks?")


@pytest.mark.parametrize(
    ("row", "stages", "frames"),
    [
        (DENSE, [2, 2, 3, 3], [[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]),
        (GROUNDING, [2, 3], [[0, 1, 1], [0, 1, 1]]),
        (QA, [2, 3], [[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]),
    ],
    ids=["dense", "grounding", "qa"],
)
def test_one_row_of_each_task(processor, row, stages, frames):
    batch = EvidenceCollator(processor, noise_video)([row])
    question = row["prompt"][0]["content"][1]["text"]
    response = row["completion"][0]["content"][0]["text"]
    num_frames = len(frames[0])

    prompt = f"<|user|>{'<video>' * num_frames}{question}<|end|><|assistant|>"
    # `<evi>` takes the space before it into its token.
    whole = prompt + response.replace(" <evi>", "<evi>").replace(" </evi>", "</evi>") + "<|end|>"
    assert text_of(processor, batch["input_ids"][0]) == whole
    assert batch["attention_mask"].all()
    labelled = batch["labels"][0] != -100
    assert text_of(processor, batch["input_ids"][0][labelled]) == whole.removeprefix(prompt)
    assert torch.equal(batch["labels"][0][labelled], batch["input_ids"][0][labelled])
    assert labelled.tolist() == sorted(labelled.tolist())  # the response is the end of the row

    assert batch["evidence_stage"].tolist() == [stages]
    assert batch["evidence_frame_mask"].int().tolist() == [frames]
    assert batch["frame_mask"].tolist() == [[True] * num_frames]
    assert batch["video_index"].tolist() == [0]


def test_rows_are_padded_on_the_right_and_so_are_their_frames_and_evidence(processor):
    collate = EvidenceCollator(processor, noise_video)
    batch, alone = collate([DENSE, GROUNDING]), collate([GROUNDING])
    length = alone["input_ids"].shape[1]
    assert batch["input_ids"][1, :length].tolist() == alone["input_ids"][0].tolist()
    assert set(batch["input_ids"][1, length:].tolist()) == {processor.tokenizer.pad_token_id}
    assert batch["attention_mask"][1].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
    assert (batch["labels"][1, length:] == -100).all()
    assert batch["frame_mask"].tolist() == [[True] * 4, [True] * 3 + [False]]
    assert batch["evidence_stage"].tolist() == [[2, 2, 3, 3], [2, 3, 0, 0]]
    assert batch["evidence_frame_mask"][1].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    assert torch.equal(batch["pixel_values_videos"][1, :3], alone["pixel_values_videos"][0])


def test_question_and_answer_spans_of_their_own(processor):
    row = sft_row(
        "<evi> </evi> First <evi>, then <evi>.",
        [[0.0, 1.0]],
        video="noise-0-4",
        question="What follows <evi>?",
        prompt_spans=[[1.5, 2.0]],
        response_spans=[[0.5, 1.0], [1.0, 1.5]],
    )
    batch = EvidenceCollator(processor, noise_video)([row])
    assert batch["evidence_stage"].tolist() == [[1, 2, 3, 3]]
    frames = [[0, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert batch["evidence_frame_mask"].int().tolist() == [frames]
    assert (batch["labels"] == processor.evidence_token_id).sum() == 3  # that of the question is not learnt


def test_rows_without_evidence_or_without_video(processor):
    no_events = sft_row("</evi> Nothing of the kind.", [], video="noise-0-4")
    text_only = sft_row("Hello there.", [], video=None)
    batch = EvidenceCollator(processor, noise_video)([no_events, text_only])
    assert batch["evidence_stage"].shape == (2, 0) and batch["evidence_frame_mask"].shape == (2, 0, 4)
    assert batch["video_index"].tolist() == [0, -1]
    assert processor.video_token_id not in batch["input_ids"][1]
    batch = EvidenceCollator(processor, noise_video)([text_only])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_rows_that_show_the_same_video_have_it_read_once(processor):
    read = []

    def reader(entry):
        read.append(entry["path"])
        return noise_video(entry)

    other = {**GROUNDING, "videos": [{"path": "noise-0-4"}], "spans": [[0.0, 0.5]]}
    batch = EvidenceCollator(processor, reader)([DENSE, GROUNDING, other])
    assert read == ["noise-0-4", "noise-1-3"]
    assert batch["video_index"].tolist() == [0, 1, 0]
    assert len(batch["pixel_values_videos"]) == 2
    # Two crops of a file are two videos.
    crops = [{**QA, "videos": [{"path": "noise-2-6", "start_s": start_s}]} for start_s in (0.0, 1.0)]
    assert EvidenceCollator(processor, reader)(crops)["video_index"].tolist() == [0, 1]


def test_preference_rows_are_all_chosen_then_all_rejected(processor):
    rows = [
        preference_row(
            "<evi> </evi> It happens in <evi>.",
            [[0.0, 1.0]],
            "<evi> <evi> </evi> It happens in <evi> and <evi>.",
            [[0.0, 1.0], [1.5, 2.0]],
            video="noise-0-4",
            factor="add",
            ref_chosen_logps=-1.5,
            ref_rejected_logps=-2.5,
        ),
        preference_row(
            "</evi> Nothing.", [], "<evi> </evi> A disc <evi>.", [[0.5, 1.0]], video="noise-1-3", factor="distort",
            ref_chosen_logps=-3.5, ref_rejected_logps=-4.5,
        ),
    ]  # fmt: skip
    batch = PreferenceCollator(processor, noise_video)(rows)
    assert len(batch["input_ids"]) == 4
    assert len(batch["pixel_values_videos"]) == 2  # once, not per response
    assert batch["video_index"].tolist() == [0, 1, 0, 1]
    assert batch["evidence_stage"].tolist() == [[2, 3, 0, 0], [0] * 4, [2, 2, 3, 3], [2, 3, 0, 0]]
    assert batch["evidence_frame_mask"][0, 0].int().tolist() == [1, 1, 0, 0]
    assert batch["evidence_frame_mask"][2, 1].int().tolist() == [0, 0, 0, 1]
    assert batch["evidence_frame_mask"][3, 0].int().tolist() == [0, 1, 0, 0]
    assert batch["factor"] == ["add", "distort"]
    assert batch["ref_chosen_logps"].tolist() == [-1.5, -3.5]
    assert batch["ref_rejected_logps"].tolist() == [-2.5, -4.5]
    responses = [
        text_of(processor, ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert responses == [
        "<evi></evi> It happens in<evi>.<|end|>",
        "</evi> Nothing.<|end|>",
        "<evi><evi></evi> It happens in<evi> and<evi>.<|end|>",
        "<evi></evi> A disc<evi>.<|end|>",
    ]


def test_none_that_arrow_fills_into_messages_is_ignored(processor):
    """Arrow gives all parts of a message the same keys, and `None` where a part had none."""
    rows = [DENSE, {**QA, "spans": [[1.0, 3.0]]}]
    through_arrow = list(Dataset.from_list(rows))
    assert "text" in through_arrow[0]["prompt"][0]["content"][0]
    collate = EvidenceCollator(processor, noise_video)
    expected, batch = collate(rows), collate(through_arrow)
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_prompts_for_generation_are_padded_on_the_left(processor):
    batch = PromptCollator(processor, noise_video)([DENSE, GROUNDING, sft_row("Hi.", [], video=None)])
    inputs = batch["inputs"]
    text = text_of(processor, inputs["input_ids"][1][inputs["attention_mask"][1].bool()])
    assert text == "<|user|>" + "<video>" * 3 + "When?<|end|><|assistant|>"
    assert inputs["attention_mask"][1].tolist() == sorted(inputs["attention_mask"][1].tolist())
    assert inputs["video_index"].tolist() == [0, 1, -1]
    assert [list(times) for times in batch["timestamps_s"]] == [[0.0, 0.5, 1.0, 1.5], [0.0, 0.5, 1.0], []]
    assert batch["duration_s"] == [2.0, 1.5, 0.0]


# --- Faults ---


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**GROUNDING, "spans": []}, ["1 <evi>", "0 spans", "evidence stage"]),
        ({**GROUNDING, "response_spans": [[0, 1], [1, 2]]}, ["1 <evi>", "2 spans", "response stage"]),
        ({**GROUNDING, "prompt_spans": [[0, 1]]}, ["0 <evi>", "1 spans", "prompt_spans"]),
        ({**GROUNDING, "videos": [], "prompt": user("When?", video=False)}, ["no video"]),
        ({**GROUNDING, "spans": [[1.5, 2.5]]}, ["1.5", "end of the video"]),
    ],
    ids=["evidence", "response", "prompt", "no-video", "beyond-the-video"],
)
def test_a_row_that_cannot_be_encoded_names_itself(processor, row, words):
    with pytest.raises(RowError) as error:
        EvidenceCollator(processor, noise_video)([row])
    assert all(word in str(error.value) for word in ["'row'", *words]), error.value


def test_too_long_is_an_error_with_the_numbers(processor):
    length = EvidenceCollator(processor, noise_video)([QA])["input_ids"].shape[1]
    EvidenceCollator(processor, noise_video, max_length=length)([QA])
    with pytest.raises(RowError) as error:
        EvidenceCollator(processor, noise_video, max_length=length - 1)([QA])
    message = str(error.value)
    assert "'row'" in message and f"{length} tokens" in message and f"max_length={length - 1}" in message
    assert "6 frames" in message and "fps" in message


def test_a_template_that_rewrites_the_prompt_is_refused(processor):
    """Some templates render earlier turns differently once an answer follows."""
    processor.chat_template = "{{ messages | length }}" + processor.chat_template
    with pytest.raises(RowError, match="'row'.*template"):
        EvidenceCollator(processor, noise_video)([GROUNDING])


# --- The released code's rules ---


def index_processor(processor):
    processor.time_rule = "index"
    return processor


def test_spans_of_the_released_time_rule_stay_unrounded_for_soft_targets(processor):
    row = {**DENSE, "spans": [[0.2, 1.0], [1.4, 2.0]]}  # frames stand at 0, .5, 1, 1.5 s
    collate = EvidenceCollator(index_processor(processor), noise_video, soft_targets=True)
    batch = collate([row, GROUNDING])
    assert batch["evidence_spans"].dtype == torch.long  # mixed precision would round floats
    spans = batch["evidence_spans"] / SPAN_UNIT
    expected = torch.tensor([[0.4, 2.0], [2.8, 4.0]])
    torch.testing.assert_close(spans[0], torch.cat([expected, expected]))
    assert spans[1, 2:].eq(0).all()
    # What an `<evi>` captures is rounded, and inside the video.
    assert batch["evidence_frame_mask"][0].int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]] * 2
    assert "evidence_spans" not in EvidenceCollator(processor, noise_video)([row])


def test_spans_of_our_time_rule_are_whole_frames(processor):
    batch = EvidenceCollator(processor, noise_video, soft_targets=True)([DENSE])
    assert (batch["evidence_spans"] / SPAN_UNIT).tolist() == [[[0, 1], [3, 3]] * 2]


def test_released_batches_have_holes_behind_shorter_prefixes(processor):
    parts = [{"type": "text", "text": "Watch."}, {"type": "video"}, {"type": "text", "text": "When?"}]
    longer = {**GROUNDING, "prompt": [{"role": "user", "content": parts}]}
    rows = [longer, DENSE]
    plain = EvidenceCollator(processor, noise_video)(rows)
    batch = EvidenceCollator(processor, noise_video, release_quirks=True)(rows)
    prefix = plain["input_ids"][0].tolist().index(processor.video_token_id)
    hole = prefix - plain["input_ids"][1].tolist().index(processor.video_token_id)
    assert hole > 0
    end = prefix - hole + 4  # of DENSE's four frames
    assert batch["attention_mask"][1, : end + hole + 1].tolist() == [1] * end + [0] * hole + [1]
    assert batch["position_ids"].tolist() == [list(range(batch["input_ids"].shape[1]))] * 2
    for row in range(2):  # but for the hole it is the same row
        for name in ("input_ids", "labels"):
            kept, plainly = batch["attention_mask"][row].bool(), plain["attention_mask"][row].bool()
            assert torch.equal(batch[name][row, kept], plain[name][row, plainly])
    text_only = sft_row("Hello there.", [], video=None)
    mixed = EvidenceCollator(processor, noise_video, release_quirks=True)([longer, text_only])
    assert mixed["attention_mask"][1].tolist() == sorted(mixed["attention_mask"][1].tolist(), reverse=True)
    alike = EvidenceCollator(processor, noise_video, release_quirks=True)([DENSE, GROUNDING])
    expected = EvidenceCollator(processor, noise_video)([DENSE, GROUNDING])
    assert all(torch.equal(alike[name], expected[name]) for name in expected)


def test_released_pairs_of_text_end_early_and_start_alike(processor):
    rows = [
        preference_row("It blinks twice.", [], "Nothing blinks.", [], video="noise-0-4"),
        preference_row("<evi> </evi> So <evi>.", [[0.0, 1.0]], "</evi> No.", [], video="noise-1-3"),
    ]
    plain = PreferenceCollator(processor, noise_video)(rows)
    batch = PreferenceCollator(processor, noise_video, release_quirks=True)(rows)

    def responses(batch):
        masks = batch["completion_mask"].bool()
        return [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], masks, strict=True)]

    (chosen, grounded, rejected, other), after = responses(plain), responses(batch)
    assert after == [chosen[:-1], grounded, chosen[:1] + rejected[1:-1], other]


def test_released_batches_take_spans_outside_the_video(processor):
    row = {**GROUNDING, "spans": [[7.0, 9.0]]}
    with pytest.raises(RowError, match="begins after the end"):
        EvidenceCollator(processor, noise_video)([row])
    collate = EvidenceCollator(index_processor(processor), noise_video, soft_targets=True, release_quirks=True)
    batch = collate([row])
    assert batch["evidence_frame_mask"][0, 0].int().tolist() == [0, 0, 1]
    assert (batch["evidence_spans"][0, 0] / SPAN_UNIT).tolist() == [14.0, 18.0]


# --- Prompts that refer to events ---


def test_prompts_that_refer_to_events(processor):
    rows = [
        {**GROUNDING, "prompt": user("What follows <evi> and <evi>?"), "prompt_spans": [[0.0, 0.5], [1.0, 1.0]]},
        DENSE,
        sft_row("", [], video=None, question="Hello!"),
    ]
    inputs = PromptCollator(processor, noise_video)(rows)["inputs"]
    assert inputs["evidence_stage"].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert inputs["evidence_frame_mask"].int().tolist()[0] == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert not inputs["evidence_frame_mask"][1:].any()
    assert "evidence_stage" not in PromptCollator(processor, noise_video)([DENSE])["inputs"]
    with pytest.raises(RowError, match="2 <evi> tokens but 1 spans in prompt_spans"):
        PromptCollator(processor, noise_video)([{**rows[0], "prompt_spans": [[0.0, 0.5]]}])
