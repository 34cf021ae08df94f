# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The model of Grounded-VideoDiT and its processor, tiny and random."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_temporal.models.grounded_videodit import (
    GroundedVideoDiTConfig,
    GroundedVideoDiTForConditionalGeneration,
    GroundedVideoDiTProcessor,
    VideoInput,
    decode_evidence,
)
from trl_temporal.models.tiny import build_tiny_grounded_videodit

HEADS = ["span", "evidence", "time_tokens"]
TEXTS = ["When does the red disc blink?", "<evi> </evi> It happens in <evi>."]
CLIP = {"name": "tower", "hidden_size": 8}


def build(seed=0, **kwargs):
    torch.manual_seed(seed)
    settings = {"tokens_per_frame": 4, "dtl_config": {"width": 16, "num_layers": 2, "num_heads": 2}, "use_kl": True}
    settings |= {"grounding_head": HEADS, "temporal_embedding": "mlp"}
    sizes = {"vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 2, "num_frames": 6}
    model, processor = build_tiny_grounded_videodit(TEXTS, CLIP, **sizes, **{**settings, **kwargs})
    for parameter in model.model.language_model.parameters():  # else next to nothing passes between tokens
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), processor


def video(seed=0, num_frames=6, num_objects=2, tokens=4, size=8):
    generator = np.random.default_rng(seed)
    tracks = generator.random((num_objects, num_frames, 8, 8)) > 0.6
    return VideoInput(
        features=torch.from_numpy(generator.standard_normal((num_frames, tokens, size), dtype=np.float32)),
        timestamps_s=np.arange(num_frames) * 0.5,
        duration_s=num_frames * 0.5,
        noise_seed=seed,
        union=tracks.any(0) if num_objects else np.ones((num_frames, 8, 8), dtype=bool),
        tracks=tracks,
        boxes=generator.random((num_objects, num_frames, 4)),
        scores=generator.random(num_objects),
    )


def encode(processor, videos, index=None, question="When does the red disc blink?", answer="", side="left"):
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True) + answer
    index = list(range(len(videos))) if index is None else index
    return processor([text] * len(index), videos, index, [question] * len(index), padding_side=side)


def test_the_question_stands_before_the_video():
    _, processor = build()
    ids = encode(processor, [video()])["input_ids"][0].tolist()
    text = processor.tokenizer.decode(ids)
    assert text.index("blink") < text.index("<video>")
    assert ids.count(processor.video_token_id) == 4 + 8 + 6


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_its_rows(side):
    """Videos of other lengths, with other numbers of objects, and one that two rows show."""
    model, processor = build()
    videos = [video(0), video(1, num_frames=3, num_objects=1), video(2, num_frames=5, num_objects=0)]
    index, answer = [0, 1, 2, 1], "<evi> </evi> In <evi>."
    whole = model(**encode(processor, videos, index, answer=answer, side=side))
    for row, number in enumerate(index):
        alone = model(**encode(processor, [videos[number]], answer=answer))
        length = len(videos[number].features)
        for name in ("start_logits", "end_logits"):
            torch.testing.assert_close(whole[name][row, :length], alone[name][0], atol=1e-4, rtol=1e-4)
            assert (whole[name][row, length:] == -torch.inf).all()
        torch.testing.assert_close(
            whole.evidence_logits[row, :, :length], alone.evidence_logits[0], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(whole.kl_divergence[number], alone.kl_divergence[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            whole.logits[row, -1 if side == "left" else alone.logits.shape[1] - 1],
            alone.logits[0, -1],
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"video_features": lambda value: value + 1.0 * (torch.arange(6) == 3).view(1, 6, 1, 1)}, "a frame"),
        ({"union_masks": lambda value: value.flip(-1)}, "where the objects are"),
        ({"object_masks": lambda value: value.flip(-1)}, "the tracks"),
        ({"object_boxes": lambda value: value.flip(-1)}, "the boxes"),
        ({"noise_seeds": lambda value: value + 1}, "the noise"),
        ({"timestamps_s": lambda value: value**1.1}, "the times"),
        ({"question_input_ids": lambda value: value.flip(-1) // 2}, "the question"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_everything_that_goes_in_matters(change, where):
    model, processor = build()
    inputs = dict(encode(processor, [video()]))
    changed = inputs | {name: function(inputs[name]) for name, function in change.items()}
    assert (model(**inputs).start_logits - model(**changed).start_logits).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["num_object_tokens", "num_time_anchors"])
def test_parts_can_be_left_out(part):
    model, processor = build(**{part: 0}, temporal_embedding="none", use_kl=False, grounding_head=["span"])
    output = model(**encode(processor, [video()]))
    assert output.start_logits.shape == (1, 6) and output.kl_divergence is None and output.evidence_logits is None


def test_rows_without_a_video():
    model, processor = build()
    texts = ["<|user|>Hello<|end|><|assistant|>", "<|user|>When?<video><|end|><|assistant|>"]
    output = model(**processor(texts, [video()], [-1, 0], ["Hello", "When?"]))
    assert (output.start_logits[0] == -torch.inf).all() and output.start_logits[1].isfinite().all()
    assert output.logits.isfinite().all()
    assert model(**processor(texts[:1])).start_logits is None


def test_generation_equals_the_forward():
    model, processor = build()
    inputs = encode(processor, [video(0), video(1, num_frames=4)])
    output = model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, return_dict_in_generate=True
    )
    prompt = model(**inputs)
    torch.testing.assert_close(output.start_logits, prompt.start_logits, atol=1e-4, rtol=1e-4)
    for row in range(2):  # greedy, token by token, without the cache
        one = encode(processor, [video(0), video(1, num_frames=4)][row : row + 1])
        ids = one["input_ids"]
        for token in output.sequences[row, inputs["input_ids"].shape[1] :]:
            step = {**one, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            assert model(**step).logits[0, -1].argmax() == token
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
    answers = processor.post_process_grounded(output, inputs, [np.arange(6) * 0.5, np.arange(4) * 0.5], [3.0, 2.0])
    for answer, length_s in zip(answers, (3.0, 2.0), strict=True):
        ((start_s, end_s),) = answer["evidence"]
        assert 0 <= start_s < end_s <= length_s
    sampled = model.generate(
        **inputs, max_new_tokens=2, do_sample=True, num_return_sequences=2, return_dict_in_generate=True
    )
    torch.testing.assert_close(sampled.start_logits, output.start_logits.repeat_interleave(2, 0), atol=1e-4, rtol=1e-4)


def test_each_head_is_read():
    """A generation by hand: `<evi>` of the evidence stage and of the response, and times in words."""
    for head in HEADS:
        model, processor = build(grounding_head=[head, *[other for other in HEADS if other != head]])
        inputs = encode(processor, [video()])
        answer = "<evi> <evi> </evi> At <20>--<40>, and <50>--<10>, <evi>."
        ids = torch.tensor([processor.tokenizer(answer, add_special_tokens=False)["input_ids"]])
        output = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
        output.sequences = torch.cat([inputs["input_ids"], ids], dim=1)
        output.evidence_mask = torch.ones(1, 3, dtype=torch.bool)
        output.evidence_frames = torch.tensor([[[0, 1], [2, 3], [4, 5]]])
        output.evidence_logits = torch.zeros(1, 3, 6)
        output.span_frames = torch.tensor([[1, 2]])
        (read,) = processor.post_process_grounded(output, inputs, [np.arange(6) * 0.5], [3.0])
        assert read["heads"]["span"] == [[0.5, 1.5]] and read["num_faults"] == 1
        assert read["heads"]["time_tokens"] == [[1.0, 2.0]]
        assert (
            read["evidence"]
            == {"span": [[0.5, 1.5]], "evidence": [[0.0, 1.0], [1.0, 2.0]], "time_tokens": [[1.0, 2.0]]}[head]
        )
        assert read["response"] == {"span": [[0.5, 1.5]], "evidence": [[2.0, 3.0]], "time_tokens": [[1.0, 2.0]]}[head]
        assert read["text"] == "At <20>--<40>, and <50>--<10>, <evi>."


def test_time_tokens_of_users_are_escaped():
    _, processor = build()
    shown = processor.apply_chat_template([{"role": "user", "content": "Is <24> a tag?"}], add_generation_prompt=True)
    assert "< 24>" in shown
    processor.allow_time_tokens_in_text = True
    assert "<24>" in processor.apply_chat_template([{"role": "user", "content": "What happens at <24>?"}])
    with pytest.raises(ValueError, match="<99>"):
        processor.apply_chat_template([{"role": "user", "content": "What happens at <99>?"}])


def test_decoded_evidence_is_the_best_run():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 2, 9, generator=generator)
    mask = torch.arange(9) < torch.randint(1, 10, (200, 1), generator=generator)
    found = decode_evidence(logits, mask, 0.6)
    for row in range(200):
        for number in range(2):
            salience = logits[row, number, : int(mask[row].sum())].double().sigmoid()
            salient = (salience >= 0.6 * salience.max()).tolist()
            runs = [
                (first, last)
                for first in range(len(salient))
                for last in range(first, len(salient))
                if all(salient[first : last + 1])
                and (first == 0 or not salient[first - 1])
                and (last == len(salient) - 1 or not salient[last + 1])
            ]
            best = max(runs, key=lambda run: salience[run[0] : run[1] + 1].mean().item())
            assert tuple(found[row, number].tolist()) == best


def test_what_trains_beside_a_lora():
    """Reading 30: g_phi, fusion, the MLP of time, object and anchor tokens, heads, LoRA and rows of time tokens."""
    model, processor = build()
    first = model.config.time_token_start_id
    rows = list(range(first, first + model.config.num_time_steps + 1))
    lora = LoraConfig(
        r=64,
        lora_alpha=128,
        target_modules=r"model\.language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        modules_to_save=model.trained_parts,
        trainable_token_indices={"embed_tokens": rows},
    )
    adapted = get_peft_model(model, lora)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    parts = (
        "frame_projection time_embedding fusion object_tokens time_anchors span_head evidence_head feature_alignment"
    )
    kinds = [f".{part}.modules_to_save." for part in parts.split()] + ["lora_", "trainable_tokens_delta"]
    assert all(sum(kind in name for kind in kinds) == 1 for name in trained)
    assert all(any(kind in name for name in trained) for kind in kinds)
    frozen = {name for name, parameter in adapted.named_parameters() if not parameter.requires_grad}
    assert any("denoiser" in name for name in frozen) and not any("denoiser" in name for name in trained)
    originals = (".base_layer.", "original_module", "language_model", "denoiser", "lm_head")
    assert all(any(kind in name for kind in originals) for name in frozen)


BAD_CONFIGS = {
    "frame_encoders": ({"frame_encoders": ["clips"]}, "`frame_encoders` is"),
    "twice": ({"grounding_head": ["span", "span"]}, "each once"),
    "clip_config": ({"frame_encoders": ["clip"]}, "`clip_config` needs `name`"),
    "time": ({"temporal_embedding": "rope"}, "'sinusoidal', 'mlp' or 'none'"),
    "places": ({"tokens_per_frame": 3}, "are a square"),
    "anchors": ({"num_time_anchors": -1}, "at least 0"),
    "time tokens": ({"grounding_head": "time_tokens"}, "time_token_start_id"),
}


@pytest.mark.parametrize(("kwargs", "message"), BAD_CONFIGS.values(), ids=list(BAD_CONFIGS))
def test_bad_configurations(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GroundedVideoDiTConfig(**kwargs)


def test_bad_inputs():
    model, processor = build()
    inputs = dict(encode(processor, [video()]))
    with pytest.raises(ValueError, match="needs timestamps_s"):
        model(**{**inputs, "timestamps_s": None})
    with pytest.raises(ValueError, match="`video_features` are missing"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="of other frame encoders"):
        model(**{**inputs, "video_features": inputs["video_features"][..., :4]})
    with pytest.raises(ValueError, match="needs `noise_seeds`"):
        model(**{**inputs, "noise_seeds": None})
    with pytest.raises(ValueError, match="17 placeholders, but its video has 18"):
        at = inputs["input_ids"][0].tolist().index(processor.video_token_id)
        ids, mask = (
            torch.cat([inputs[name][:, :at], inputs[name][:, at + 1 :]], 1) for name in ("input_ids", "attention_mask")
        )
        model(**{**inputs, "input_ids": ids, "attention_mask": mask})
    with pytest.raises(ValueError, match="question of row 0 of the batch is empty"):
        encode(processor, [video()], question=" ")
    with pytest.raises(ValueError, match="0 <video> placeholders and 1 video"):
        processor(["When?"], [video()], [0], ["When?"])
    with pytest.raises(ValueError, match="pass `questions`"):
        processor(["<video>When?"], [video()], [0])
    with pytest.raises(ValueError, match="tokenize=False"):
        processor.apply_chat_template([], tokenize=True)


def test_a_saved_model_loads_without_the_package(tmp_path):
    """By remote code, without trl_temporal, diffusers and trl; it generates from features, with the same numbers."""
    model, processor = build()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    inputs = encode(processor, [video()])
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    script = """
        import sys, torch
        sys.modules |= dict.fromkeys(["trl_temporal", "diffusers", "trl"])  # as if they were not installed
        from transformers import AutoModel, AutoProcessor
        folder = sys.argv[1]
        model = AutoModel.from_pretrained(folder + "/model", trust_remote_code=True).eval()
        processor = AutoProcessor.from_pretrained(folder + "/model", trust_remote_code=True)
        inputs = torch.load(folder + "/inputs.pt")
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        answer = processor.post_process_grounded(output, inputs, [[0, 0.5, 1, 1.5, 2, 2.5]], [3.0])
        torch.save([output.sequences, output.start_logits, answer], folder + "/output.pt")
        model.save_pretrained(folder + "/again")
    """
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    sequences, start_logits, answer = torch.load(tmp_path / "output.pt", weights_only=False)
    assert torch.equal(sequences, expected.sequences)
    torch.testing.assert_close(start_logits, expected.start_logits, atol=1e-5, rtol=1e-5)
    (wanted,) = processor.post_process_grounded(expected, inputs, [np.arange(6) * 0.5], [3.0])
    np.testing.assert_allclose(answer[0].pop("salience"), wanted.pop("salience"), atol=1e-5)
    assert answer == [wanted]
    assert (tmp_path / "again" / "dtl_feature.py").exists()
    again = GroundedVideoDiTForConditionalGeneration.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(**inputs).start_logits, model(**inputs).start_logits)
    assert GroundedVideoDiTProcessor.from_pretrained(tmp_path / "model").grounding_head == HEADS
