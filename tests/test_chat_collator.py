# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What the collators make of rows for stock models, token by token.

Models and processors are those of transformers, tiny and random.
"""

import functools

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from tests.families import FAMILIES, build, watch_videos
from tests.helpers import assistant, noise_video, preference_row, sft_row, user
from tests.test_video import make_clip
from trl_temporal.data.chat_collator import ChatCollator, ChatPreferenceCollator
from trl_temporal.data.chat_inputs import encode_prompts, prompt_messages
from trl_temporal.data.schema import RowError
from trl_temporal.evaluation.benchmarks.common import format_interval
from trl_temporal.evaluation.text_generation import generate_texts
from trl_temporal.video import load_row_video

# SmolVLM is told whole seconds, and the videos of noise have two frames in each.
pytestmark = pytest.mark.filterwarnings("ignore:row .* frames per second")

ROWS = [
    sft_row("<evi> </evi> It happens in <evi>.", [[0.5, 1.5]], video="noise-1-6", id="a"),
    sft_row(
        "<evi> <evi> </evi> <evi> The red disc blinks. <evi> The blue cross shakes.",
        [[0, 1.25], [1.5, 2.0004]],
        video="noise-2-6",
        question="Describe every event in the video.",
        id="b",
    ),
    sft_row("Hello there.", [], video=None, question="Hello!", id="c"),
    sft_row("</evi> It does not happen.", [], video="noise-1-6", question="When?", id="d"),
]
RESPONSES = [
    "It happens in 0.5 - 1.5.",
    "0.0 - 1.25 The red disc blinks. 1.5 - 2.0 The blue cross shakes.",
    "Hello there.",
    "It does not happen.",
]
PAIRS = [
    preference_row(
        "<evi> </evi> It happens in <evi>.",
        [[0.5, 1.5]],
        "<evi> <evi> </evi> It happens in <evi> and <evi>.",
        [[0.5, 1.5], [2.0, 2.75]],
        video="noise-1-6",
        factor="add",
        ref_chosen_logps=-1.5,
        ref_rejected_logps=-2.5,
    ),
    preference_row(
        "Hello there.", [], "No.", [], video=None, factor="distort", ref_chosen_logps=0, ref_rejected_logps=1
    ),
    preference_row(
        "</evi> Nothing.",
        [],
        "<evi> </evi> A disc <evi>.",
        [[0.0, 0.5]],
        video="noise-2-6",
        factor="distort",
        ref_chosen_logps=-3.0,
        ref_rejected_logps=-4.0,
    ),
]
END = "<|im_end|>\n"  # of the Qwens and InternVL


def learned_text(family, response):
    """A response as the template of a family writes it behind the generation prompt."""
    if family == "smolvlm":
        return f" {response}<end_of_utterance>\n"
    return f"{response}<|im_end|>" if family == "llava_onevision" else response + END


@pytest.fixture
def qwen():
    return build("qwen2_5_vl")[1]


def responses(processor, batch, mask):
    """The text that is learned of each row."""
    return [processor.tokenizer.decode(ids[marked]) for ids, marked in zip(batch["input_ids"], mask, strict=True)]


def prompts_of_generation(processor, rows):
    """Tokens of each prompt as [`generate_texts`] makes them, row by row."""
    videos = [noise_video(row["videos"][0]) if row["videos"] else None for row in rows]
    return [
        encode_prompts(processor, [row], [video]).inputs["input_ids"][0].tolist()
        for row, video in zip(rows, videos, strict=True)
    ]


def check_padding(batch):
    mask = batch["attention_mask"]
    assert mask.sum(1).unique().numel() > 1 and (mask.sum(1) == mask.shape[1]).any()
    assert (mask.diff(dim=1) <= 0).all()  # no padding before a token
    return mask.bool()


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_on_the_response_and_prompts_are_those_of_generation(family):
    model, processor = build(family)
    batch = ChatCollator(processor, noise_video)(ROWS)
    mask, learned = check_padding(batch), batch["labels"] != -100
    assert set(batch["input_ids"][~mask].tolist()) == {processor.tokenizer.pad_token_id}
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    texts = responses(processor, batch, learned)
    for row, text, expected, prompt in zip(
        range(len(ROWS)), texts, RESPONSES, prompts_of_generation(processor, ROWS), strict=True
    ):
        assert text == learned_text(family, expected)
        ids = batch["input_ids"][row, mask[row]]
        assert ids[: len(prompt)].tolist() == prompt
        assert learned[row, mask[row]].tolist() == [False] * len(prompt) + [True] * (len(ids) - len(prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_rows_and_the_loss_sees_the_video(family):
    model, processor = build(family)
    collate = ChatCollator(processor, noise_video)

    @torch.no_grad()
    def losses(batch):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        picked = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return (picked * (labels != -100)).sum(1)

    together = losses(collate(ROWS))
    alone = torch.cat([losses(collate([row])) for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    other = losses(ChatCollator(processor, lambda entry: noise_video("noise-7-6"))(ROWS))
    assert ((other - together).abs() > 1e-3).tolist() == [True, True, False, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_have_the_layout_of_trl(family):
    model, processor = build(family)
    batch = ChatPreferenceCollator(processor, noise_video)(PAIRS)
    mask, learned = check_padding(batch), batch["completion_mask"].bool()
    expected = ["It happens in 0.5 - 1.5.", "Hello there.", "Nothing."]
    expected += ["It happens in 0.5 - 1.5 and 2.0 - 2.75.", "No.", "A disc 0.0 - 0.5."]
    assert responses(processor, batch, learned) == [learned_text(family, text) for text in expected]
    prompts = prompts_of_generation(processor, PAIRS)
    for ids, given, marked, prompt in zip(batch["input_ids"], mask, learned, prompts * 2, strict=True):
        assert ids[given & ~marked].tolist() == prompt
        assert not marked[: len(prompt)].any()
    assert "labels" not in batch
    assert batch["factor"] == ["add", "distort", "distort"]
    assert batch["ref_chosen_logps"].tolist() == [-1.5, 0, -3]
    assert batch["ref_rejected_logps"].tolist() == [-2.5, 1, -4]

    # Each half is what SFT on it would get: the videos go with their rows.
    for half, side in enumerate(("chosen", "rejected")):
        rows = [row | {"completion": row[side], "spans": row[f"{side}_spans"]} for row in PAIRS]
        single = ChatCollator(processor, noise_video)(rows)
        for name, value in single.items():
            if name in ("labels", "input_ids", "attention_mask", "mm_token_type_ids"):
                continue
            assert torch.equal(batch[name].chunk(2)[half], value), name
        length = single["input_ids"].shape[1]
        for name in {"input_ids", "attention_mask", "mm_token_type_ids"} & single.keys():
            assert torch.equal(batch[name].chunk(2)[half][:, :length], single[name]), name


def test_pairs_without_what_passes_through(qwen):
    rows = [{name: value for name, value in row.items() if "ref_" not in name and name != "factor"} for row in PAIRS]
    batch = ChatPreferenceCollator(qwen, noise_video)(rows)
    assert not {"ref_chosen_logps", "ref_rejected_logps", "factor"} & batch.keys()


def test_a_video_is_read_once_a_batch_and_processed_once_a_pair(qwen, monkeypatch):
    read, processed = [], watch_videos(monkeypatch, qwen)
    collate = ChatPreferenceCollator(qwen, lambda entry: read.append(entry["path"]) or noise_video(entry))
    collate([*PAIRS, PAIRS[0]])
    assert (read, [len(call["videos"]) for call in processed]) == (["noise-1-6", "noise-2-6"], [3])


def test_text_alone(qwen):
    batch = ChatCollator(qwen, noise_video)([ROWS[2], ROWS[2]])
    assert not [name for name in batch if name.startswith(("pixel", "video"))]
    batch = ChatPreferenceCollator(qwen, noise_video)([PAIRS[1]])
    assert len(batch["input_ids"]) == 2 and "pixel_values_videos" not in batch


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_videos_may_differ_in_length_and_stacked_ones_may_not(family):
    rows = [*ROWS, sft_row("</evi> No.", [], video="noise-4-9", id="e")]
    collate = ChatCollator(build(family)[1], noise_video)
    if "qwen" in family:
        assert collate(rows)["video_grid_thw"].tolist() == [[3, 4, 4], [3, 4, 4], [3, 4, 4], [5, 4, 4]]
        return
    message = r"stacks .* row 'a' has 6, row 'b' has 6, row 'd' has 6, row 'e' has 9. Sample a fixed `num_frames`"
    with pytest.raises(RowError, match=message):
        collate(rows)
    collate(rows[-1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processor_is_told_the_times(family, monkeypatch):
    processor = build(family)[1]
    told = watch_videos(monkeypatch, processor)
    video = noise_video("noise-1-6")
    video.timestamps_s, video.duration_s = np.array([0.0, 0.25, 1.0, 1.5, 2.0004, 2.5]), 2.75
    ChatPreferenceCollator(processor, lambda entry: video)(PAIRS[:1])
    (call,) = told
    (metadata,) = call["video_metadata"]
    assert call["do_sample_frames"] is False
    assert (metadata.frames_indices, metadata.fps, metadata.duration) == ([0, 250, 1000, 1500, 2000, 2500], 1000, 2.75)


def test_times_of_a_file_are_in_the_prompt(tmp_path):
    ticks = np.concatenate([np.arange(0, 1000, 100), 1000 + np.arange(0, 3000, 900)])
    path = str(make_clip(tmp_path / "variable.mp4", ticks))
    processor = build("qwen3_vl")[1]
    batch = ChatCollator(processor, functools.partial(load_row_video, num_frames=2))([sft_row("Now.", [], video=path)])
    times_s = load_row_video(path, num_frames=2).timestamps_s
    assert f"<{times_s.mean():.1f} seconds>" in processor.tokenizer.decode(batch["input_ids"][0])


def test_responses_of_any_form(qwen):
    def learned(row):
        batch = ChatCollator(qwen, noise_video)([row])
        return responses(qwen, batch, batch["labels"] != -100)[0].removesuffix(END)

    row = ROWS[0]
    assert learned(row | {"completion": [{"role": "assistant", "content": "<evi> </evi> In <evi>."}]}) == (
        "In 0.5 - 1.5."
    )
    assert learned(row | {"response_spans": [[1, 2]]}) == "It happens in 1.0 - 2.0."
    several = assistant("<evi> <evi> </evi> In <evi>.")
    assert learned(row | {"completion": several, "spans": [[0, 1], [1, 2]], "response_spans": [[0, 2]]}) == (
        "In 0.0 - 2.0."
    )
    plain = {name: value for name, value in row.items() if name != "spans"} | {"completion": assistant("A man runs.")}
    assert learned(plain) == "A man runs."
    filled = Dataset.from_list(ROWS)[0]  # Arrow fills parts with None
    assert filled["prompt"][0]["content"][0]["text"] is None
    assert learned(filled) == RESPONSES[0]


def test_times_are_written_as_the_benchmarks_read_them():
    for span in ([0, 1], [12.0, 15.5], [1 / 3, 2 / 3], [0.1 + 0.2, 1e3], [np.float32(0.1), np.float64(7)]):
        row = sft_row("<evi> </evi> In <evi>.", [span])
        written = format_interval(span)
        found = ChatCollator(None, None)._write_response(row, "completion")
        assert found == (f"In {written}.", [(3, 3 + len(written))])


def test_the_prompt_may_speak_of_spans_and_moments(qwen):
    row = sft_row("Yes.", [], question="Is <evi> before <evi>?", prompt_spans=[[0, 1.5], [2, 2]])
    batch = ChatCollator(qwen, noise_video)([row])
    assert "Is 0.0s - 1.5s before 2.0s?" in qwen.tokenizer.decode(batch["input_ids"][0])
    assert prompt_messages(row)[0]["content"][1]["text"] == "Is 0.0s - 1.5s before 2.0s?"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"videos": [{"path": "noise-1-6"}, {"path": "noise-2-6"}]}, r"\(id 'a'\), column 'videos': has 2 entries"),
        ({"videos": []}, r"\(id 'a'\), column 'videos': is empty, but the prompt has a video part"),
        ({"prompt": user("When?", video=False)}, r"\(id 'a'\), column 'prompt': has no video part"),
        ({"images": ["a.png"]}, r"\(id 'a'\), column 'images': has length 1, but the prompt has 0 image parts"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "image"}]}]},
            r"\(id 'a'\), column 'images': has length 0, but the prompt has 1 image parts",
        ),
        ({"spans": []}, r"\(id 'a'\), column 'spans': has length 0, but 'completion' has 1 <evi>"),
        ({"spans": [[2.5, 0.5]]}, r"\(id 'a'\), column 'spans': span 0 runs backwards"),
        ({"spans": [[8.0, 9.0]]}, r"row 'a', column 'spans': .* begins after the end of the video at 3.0 s"),
        ({"response_spans": [[8.0, 9.0]]}, "row 'a', column 'response_spans': .* begins after the end"),
        ({"completion": []}, r"\(id 'a'\), column 'completion': is \[\]"),
        ({"completion": None}, r"\(id 'a'\), column 'completion': is missing"),
        (
            {"completion": user("Why?", video=False)},
            r"\(id 'a'\), column 'completion': has messages of the roles user",
        ),
        ({"completion": user("Why?")}, r"\(id 'a'\), column 'completion'"),
    ],
)
def test_bad_rows_are_named_with_their_column(qwen, change, message):
    with pytest.raises(RowError, match=message):
        ChatCollator(qwen, noise_video)([ROWS[1], ROWS[0] | change])


def test_bad_pairs_are_named_with_their_column(qwen):
    collate = ChatPreferenceCollator(qwen, noise_video)
    with pytest.raises(RowError, match=r"\(id 'pair'\), column 'rejected_spans': has length 0"):
        collate([PAIRS[0] | {"rejected_spans": []}])
    with pytest.raises(RowError, match=r"\(id 'pair'\), column 'videos': has 2 entries"):
        collate([PAIRS[0] | {"videos": ["noise-1-6", "noise-2-6"]}])
    with pytest.raises(RowError, match="row 'pair', column 'rejected_spans': .* begins after the end"):
        collate([PAIRS[0] | {"rejected_spans": [[0, 1], [9, 10]]}])


def test_too_long_is_an_error_with_numbers(qwen):
    length = ChatCollator(qwen, noise_video)(ROWS[:1])["input_ids"].shape[1]
    ChatCollator(qwen, noise_video, length)(ROWS[:1])
    with pytest.raises(
        RowError, match=rf"row 'a': {length} tokens \(\d+ in the prompt with 6 frames, \d+ in the resp"
    ):
        ChatCollator(qwen, noise_video, max_length=length - 1)(ROWS[:1])
    with pytest.raises(RowError, match=f"exceed max_length={length}"):  # the rejected response is longer
        ChatPreferenceCollator(qwen, noise_video, length)(PAIRS)


def test_a_processor_without_pixels_is_refused(qwen, monkeypatch):
    encode = type(qwen).__call__

    def forget(self, **kwargs):
        inputs = encode(self, **kwargs)
        inputs.pop("pixel_values_videos", None)
        return inputs

    monkeypatch.setattr(type(qwen), "__call__", forget)
    with pytest.raises(RuntimeError, match="made no pixel values of 3 videos .* blind"):
        ChatCollator(qwen, noise_video)(ROWS)
    ChatCollator(qwen, noise_video)(ROWS[2:3])


def test_a_template_without_video_is_refused():
    processor = build("llava_onevision")[1]
    change_template(processor, "<video>", "")
    processor.video_token = None  # or the processor counts by itself
    with pytest.raises(RuntimeError, match="row 'a': the chat template .* leaves no place for the video"):
        ChatCollator(processor, noise_video)(ROWS)


def test_other_white_space_before_a_response():
    """The template of LLaVA-OneVision writes a space behind every role, but none in its generation prompt."""
    processor = build("llava_onevision")[1]
    chat = [*user("Hello!", video=False), *assistant("Hello there.")]
    assert processor.apply_chat_template(chat).endswith("<|im_start|>assistant \nHello there.<|im_end|>")
    batch = ChatCollator(processor, noise_video)(ROWS)
    assert responses(processor, batch, batch["labels"] != -100) == [text + "<|im_end|>" for text in RESPONSES]
    for ids, labels, prompt in zip(
        batch["input_ids"], batch["labels"], prompts_of_generation(processor, ROWS), strict=True
    ):
        assert ids[: len(prompt)].tolist() == prompt and labels[len(prompt)] != -100
    assert processor.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def change_template(processor, old, new):
    assert old in processor.chat_template
    processor.chat_template = processor.chat_template.replace(old, new)


@pytest.mark.parametrize(
    "old, new",
    [
        ("assistant\n{% endif %}", "assistant\n<think>{% endif %}"),  # opened for the model, not in the answer
        ("{{ content['text'] }}", "{{ content['text'] | upper }}"),
    ],
)
def test_a_template_that_hides_the_response_is_refused(qwen, old, new):
    change_template(qwen, old, new)
    with pytest.raises(RowError, match="row 'a', column 'completion': the chat template renders"):
        ChatCollator(qwen, noise_video)(ROWS[:1])


def test_a_token_over_the_border_is_refused(qwen):
    change_template(qwen, "assistant\n{% endif %}", "assistant\nFr{% endif %}")
    role = "<|im_start|>{{ message['role'] }}\n"
    change_template(qwen, role, role + "{% if message['role'] == 'assistant' %}Fr{% endif %}")
    whole, start, end = (
        qwen.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Frame", "Fr", "ame")
    )
    assert len(whole) < len(start + end)
    with pytest.raises(RowError, match="row 'a', column 'completion': the tokenizer merges the end of the prompt"):
        ChatCollator(qwen, noise_video)([ROWS[0] | {"completion": assistant("</evi> ame."), "spans": []}])


def test_in_worker_processes(qwen):
    loader = DataLoader(ROWS, batch_size=4, collate_fn=ChatCollator(qwen, noise_video), num_workers=1)
    (batch,) = loader
    assert torch.equal(batch["labels"], ChatCollator(qwen, noise_video)(ROWS)["labels"])


def test_a_step_of_training_teaches_the_answer():
    """Labels, masks and generation fit together: what is learned is what is answered."""
    model, processor = build("qwen2_5_vl")
    rows = [ROWS[0], ROWS[3] | {"prompt": user("Why?")}]
    batch = ChatCollator(processor, noise_video)(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    answers = generate_texts(model, processor, rows, max_new_tokens=40, read_video=noise_video, progress=False)
    assert [answer.text for answer in answers] == [RESPONSES[0], RESPONSES[3]]
