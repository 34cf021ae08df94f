# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Evidence tokens on models and inputs that are not as they should be: refused with the reason, or handled."""

import logging
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig, LlavaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests import test_backbones
from tests.families import FAMILIES, build
from tests.helpers import assert_same_gradients, noise_video, train, user
from tests.test_backbones import PAIRS, ROWS, evidence_model, fpo, logits, lora
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer
from trl_temporal.data.collator import EvidenceCollator
from trl_temporal.models.d2vlm import D2VLMBackboneProcessor, D2VLMForConditionalGeneration
from trl_temporal.models.d2vlm.configuration_d2vlm import BACKBONES
from trl_temporal.models.d2vlm.modeling_d2vlm_backbone import mm_encoder_outputs
from trl_temporal.trainer.fused_forward import sharing_obstacle

DOCS = Path(__file__).parent.parent / "docs" / "backbones.md"
STACKING = ("llava_onevision", "smolvlm", "internvl")


def with_evidence(backbone, processor):
    """The D2VLM of a backbone, and its processor."""
    processor = D2VLMBackboneProcessor.from_backbone(processor, config=backbone.config, fps=2.0)
    return D2VLMForConditionalGeneration.from_backbone(backbone, processor, capture_layer=2), processor


def num_rows(backbone) -> tuple[int, int]:
    return len(backbone.get_input_embeddings().weight), len(backbone.lm_head.weight)


# --- Models ---


def windowed():
    config = FAMILIES["qwen2_5_vl"]()[0]
    text_config = config.text_config.to_dict() | {"use_sliding_window": True, "sliding_window": 4}
    text_config |= {"max_window_layers": 2, "layer_types": None}
    return AutoConfig.for_model("qwen2_5_vl", text_config=text_config, vision_config=config.vision_config.to_dict())


def mistral():
    text_config = {"model_type": "mistral", "sliding_window": 4}
    return AutoConfig.for_model("llava_onevision", text_config=text_config)


def quantized():
    config = FAMILIES["qwen2_5_vl"]()[0]
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return config


@pytest.mark.parametrize(
    "make, why",
    [
        (LlamaConfig, "'llama' is not among the backbones that are known to see videos and to take features"),
        (LlavaConfig, "'llava' is not among .* through `mm_encoder_outputs`: internvl, .*docs/backbones.md"),
        (windowed, r"other layers than full attention \(sliding_attention\).*`use_sliding_window=False`"),
        (mistral, r"other layers than full attention \(sliding_attention\)"),
        (quantized, "The backbone is quantized.*load it unquantized, with a LoRA"),
    ],
)
def test_what_cannot_carry_evidence_tokens(make, why, tmp_path):
    """Known from the configuration: there are no weights and no processor in the folder."""
    config = make()
    config.save_pretrained(tmp_path)
    for make_it in (D2VLMForConditionalGeneration, D2VLMBackboneProcessor):
        with pytest.raises(ValueError, match=why):
            make_it.from_backbone(str(tmp_path))
    backbone, processor = build("qwen2_5_vl")
    processor = D2VLMBackboneProcessor.from_backbone(processor, config=backbone.config)
    backbone.config = config
    with pytest.raises(ValueError, match=why):
        D2VLMForConditionalGeneration.from_backbone(backbone, processor)


def test_a_window_that_is_not_used_is_none():
    """As in the files of Qwen2-VL and Qwen2.5-VL."""
    backbone, processor = build("qwen2_5_vl")
    backbone.config.text_config.sliding_window = 4
    backbone.config.text_config.use_sliding_window = False
    assert with_evidence(backbone, processor)[0].config.text_config.sliding_window == 4


def test_a_model_that_would_ignore_the_features():
    class Blind(torch.nn.Module):
        config = build("qwen2_5_vl")[0].config

        def forward(self, input_ids=None, **kwargs):
            raise AssertionError

    with pytest.raises(ValueError, match="Blind does not take `mm_encoder_outputs`.*answer blind"):
        mm_encoder_outputs(Blind(), torch.zeros(1, 2, 3))


def test_what_is_no_whole_model():
    backbone, processor = build("qwen2_5_vl")
    adapter = get_peft_model(backbone, LoraConfig(target_modules=["q_proj"]))
    processor = D2VLMBackboneProcessor.from_backbone(processor, config=backbone.config)
    headless, biased = build("qwen2_5_vl")[0].model, build("qwen2_5_vl")[0]
    biased.lm_head = torch.nn.Linear(32, len(biased.lm_head.weight))
    for model, why in (
        (adapter, "is a PeftModel.*`merge_and_unload`"),
        (headless, "Qwen2_5_VLModel is no linear layer.*`AutoModelForImageTextToText`"),
        (biased, "no linear layer without bias"),
    ):
        with pytest.raises(ValueError, match=why):
            D2VLMForConditionalGeneration.from_backbone(model, processor)


def test_processors_that_do_not_belong_to_the_model():
    backbone, processor = build("qwen2_5_vl")
    rows = num_rows(backbone)
    for wrong, why in (
        (None, "`processor` is a NoneType"),
        (processor, "`processor` is a Qwen2_5_VLProcessor.*`D2VLMBackboneProcessor.from_backbone`"),
        (evidence_model("smolvlm")[1], "of another model than the backbone, Qwen2_5_VLForConditionalGeneration"),
    ):
        with pytest.raises(ValueError, match=why):
            D2VLMForConditionalGeneration.from_backbone(backbone, wrong)
    with pytest.raises(ValueError, match="Pass `config` too"):
        D2VLMBackboneProcessor.from_backbone(processor)
    parts = {name: vars(processor)[name] for name in ("image_processor", "tokenizer", "video_processor")}
    with pytest.raises(ValueError, match="The tokenizer lacks <evi> or </evi>"):
        D2VLMBackboneProcessor(**parts, backbone_class="Qwen2_5_VLProcessor")
    processor = D2VLMBackboneProcessor.from_backbone(processor, config=backbone.config)
    with pytest.raises(ValueError, match="`capture_layer` must lie between 1 and 3"):
        D2VLMForConditionalGeneration.from_backbone(backbone, processor, capture_layer=4)
    assert num_rows(backbone) == rows  # what is refused stays as it was


# --- Vocabulary ---


@pytest.mark.parametrize("num_spare", [0, 1, 2, 6])
def test_rows_of_the_vocabulary(num_spare):
    """Spare rows first; never fewer than before, and no more than needed. All others stay bit for bit."""
    config, processor = FAMILIES["qwen2_5_vl"]()
    num_known = len(processor.tokenizer)
    config.text_config.vocab_size = num_known + num_spare
    backbone = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    before = [backbone.get_input_embeddings().weight.clone(), backbone.lm_head.weight.clone()]
    model, processor = with_evidence(backbone, processor)
    evidence = [processor.evidence_token_id, processor.evidence_end_token_id]
    assert evidence == [num_known, num_known + 1]
    expected = num_known + max(num_spare, 2)
    assert num_rows(model) == (expected, expected)
    assert model.config.text_config.vocab_size == model.config.backbone_config.text_config.vocab_size == expected
    for old, new in zip(before, (model.get_input_embeddings().weight, model.lm_head.weight), strict=True):
        others = [row for row in range(len(old)) if row not in evidence]
        assert torch.equal(old[others], new[others])
        known, given = old[:num_known], new[evidence]
        assert (given - known.mean(0)).abs().max() < 0.5 * known.std() and not torch.equal(given[0], given[1])


@pytest.mark.parametrize("num_spare", [0, 6])
def test_what_is_new_is_the_same_every_time(num_spare):
    """An adapter holds what it trains: the rest of a model that it is loaded onto must be what it was trained on."""
    found = []
    for seed in (0, 1):
        config, processor = FAMILIES["qwen2_5_vl"]()
        config.text_config.vocab_size = len(processor.tokenizer) + num_spare
        torch.manual_seed(0)
        backbone = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        torch.manual_seed(seed)
        model, processor = with_evidence(backbone, processor)
        drawn = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(3), drawn)  # nothing is drawn from the user's generator
        evidence = [processor.evidence_token_id, processor.evidence_end_token_id]
        heads = [*model.model.evi_head.parameters(), *model.model.frame_head.parameters()]
        found.append([model.lm_head.weight[evidence], model.get_input_embeddings().weight[evidence], *heads])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_evidence_tokens_that_are_there_already():
    backbone, processor = build("qwen2_5_vl")
    processor.tokenizer.add_tokens(["<evi>", "</evi>"])
    num_tokens = len(processor.tokenizer)
    model, processor = with_evidence(backbone, processor)
    again = D2VLMBackboneProcessor.from_backbone(processor.backbone, config=model.config.backbone_config)
    assert len(processor.tokenizer) == len(again.tokenizer) == num_tokens == len(model.lm_head.weight)
    assert again.evidence_token_id == processor.evidence_token_id == num_tokens - 2


@pytest.mark.parametrize("where", ["both", "top"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "internvl"])
def test_tied_embeddings_stay_tied(family, where, config, tmp_path):
    """Trained, saved, loaded and merged, with the spare rows and without."""
    made, processor = FAMILIES[family]()
    made.tie_word_embeddings = True
    made.text_config.tie_word_embeddings = where == "both"
    torch.manual_seed(0)
    backbone = AutoModelForImageTextToText.from_config(made, dtype=torch.float32)
    model, processor = with_evidence(backbone, processor)
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.config.tie_word_embeddings
    before = model.lm_head.weight.clone()
    trainer = EvidenceSFTTrainer(
        model,
        args=config(EvidenceSFTConfig, cache_frames=False),
        data_collator=EvidenceCollator(processor, noise_video),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=processor,
    )
    trainer.train()
    assert (model.lm_head.weight != before).any() and model.lm_head.weight is model.get_input_embeddings().weight
    trainer.save_model(tmp_path / "whole")
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        assert sum("lm_head" in name or "embed_tokens" in name for name in file.keys()) == 1
    load = AutoModelForImageTextToText.from_pretrained
    again, report = load(tmp_path / "whole", dtype=torch.float32, output_loading_info=True)
    assert again.lm_head.weight is again.get_input_embeddings().weight and not any(report.values())
    batch = EvidenceCollator(processor, noise_video)(ROWS)
    assert torch.equal(logits(again, batch), logits(model, batch))

    trainer = fpo(family, config, model=again, processor=processor, peft_config=lora(processor), max_steps=2)
    trainer.train()
    expected = logits(trainer.model, batch)
    merged = trainer.model.merge_and_unload()
    evidence = [processor.evidence_token_id, processor.evidence_end_token_id]
    assert (merged.lm_head.weight[evidence] != model.lm_head.weight[evidence]).all(-1).any()
    merged.save_pretrained(tmp_path / "merged")
    loaded = load(tmp_path / "merged", dtype=torch.float32)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=1e-3, atol=1e-3)


# --- Inputs of processors ---


def shown(processor, *videos: str):
    """Arguments of a processor for a question about each video."""
    text = processor.apply_chat_template(user("When?"), add_generation_prompt=True, tokenize=False)
    videos = [noise_video(name) for name in videos]
    return {
        "text": [text] * len(videos),
        "videos": [video.frames for video in videos],
        "timestamps_s": [video.timestamps_s for video in videos],
        "duration_s": [video.duration_s for video in videos],
    }


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    model, processor = evidence_model(request.param)
    return request.param, model, processor


def test_every_frame_has_its_time(family):
    _, _, processor = family
    given = shown(processor, "noise-1-8")
    for name in ("timestamps_s", "duration_s"):
        with pytest.raises(ValueError, match="pass `timestamps_s` and `duration_s`.*24 frames per second"):
            processor(**{**given, name: None})
        with pytest.raises(ValueError, match="videos have 8 frames, but .* a duration for every video"):
            processor(**{**given, name: []})
    with pytest.raises(ValueError, match="videos have 8 frames, but `timestamps_s` has 7 entries"):
        processor(**{**given, "timestamps_s": [given["timestamps_s"][0][:7]]})


def test_frames_are_whole_numbers(family):
    _, _, processor = family
    given = shown(processor, "noise-1-8", "noise-2-8")
    frames = given["videos"][1]
    for wrong in (frames / 255, frames[0], frames[:0], frames[..., :1]):
        with pytest.raises(ValueError, match="Video 1 must be a uint8 array of shape"):
            processor(**{**given, "videos": [frames, wrong]})


def test_videos_of_different_lengths(family):
    name, model, processor = family
    given = shown(processor, "noise-1-8", "noise-2-4")
    if name in STACKING:
        with pytest.raises(ValueError, match="stacks the videos.* these have 4, 8. Sample a fixed `num_frames`"):
            processor(**given)
    else:
        assert model(**processor(**given)).logits.isfinite().all()


def test_texts_and_videos_agree(family):
    _, _, processor = family
    given = shown(processor, "noise-1-8", "noise-2-8")
    blank = processor.apply_chat_template(user("When?", video=False), add_generation_prompt=True, tokenize=False)
    text = given["text"][0]
    both = r"`video_index` is {} for {} texts and 2 videos: .* show every video at least once"
    for changes, why in (
        ({"text": [text]}, "2 videos for 1 texts: pass `video_index`"),
        ({"text": [text, text, text]}, "2 videos for 3 texts: pass `video_index`"),
        ({"video_index": [0, 0]}, both.format(r"\[0, 0\]", 2)),
        ({"video_index": [0, 2]}, both.format(r"\[0, 2\]", 2)),
        ({"video_index": [0, 1, 1]}, both.format(r"\[0, 1, 1\]", 2)),
        ({"text": [text, blank]}, "should be the same as the number of videos passed. Found total 1"),
        ({"text": [text + text, blank]}, r"Row . of the batch has \d+ video tokens for . frames"),
        ({"text": [text, text + text]}, "should be the same as the number of videos passed. Found total 3"),
        ({"videos": None, "timestamps_s": None, "duration_s": None}, "Found 2 .* in the text but no videos"),
    ):
        with pytest.raises(ValueError, match=why):
            processor(**{**given, **changes})


def test_a_template_that_drops_the_video(family, monkeypatch):
    """From the trainers' collator, too: no row trains blind."""
    name, _, processor = family
    dropping = "{% for message in messages %}{{ message['content'][-1]['text'] }}{% endfor %}"
    monkeypatch.setattr(processor.backbone, "chat_template", dropping)
    if name == "smolvlm":  # takes a template of its own for videos
        assert (processor(**shown(processor, "noise-1-8"))["frame_index"] == 7).any()
        return
    with pytest.raises(ValueError, match="video"):
        processor(**shown(processor, "noise-1-8"))
    with pytest.raises(ValueError, match="video"):
        EvidenceCollator(processor, noise_video)(ROWS)


# --- Inputs of models ---


def test_what_the_model_misses(family):
    _, model, processor = family
    inputs = processor(**shown(processor, "noise-1-8"))
    optional = {"attention_mask", "video_index", "pixel_attention_mask"}
    expected = model(**inputs).logits
    for name in set(inputs) - {"input_ids"}:
        rest = {other: value for other, value in inputs.items() if other != name}
        if name in optional:
            assert torch.equal(model(**rest).logits, expected)
            continue
        why = "the text has video tokens, but no video" if name.startswith("pixel_values") else f"`{name}` is missing"
        with pytest.raises(ValueError, match=why):
            model(**rest)


def test_what_the_model_does_not_know(family):
    """Nothing is swallowed: not a column of a data set, and no picture beside the video, which nobody would see."""
    name, model, processor = family
    inputs = processor(**shown(processor, "noise-1-8"))
    unknown = {"chosen_spans": torch.ones(1), "inputs_embeds": torch.ones(1), "image_grid_thw": torch.ones(1, 3)}
    if "pixel_values" not in inputs:
        unknown["pixel_values"] = torch.ones(1, 3, 16, 16)
    for key, value in unknown.items():
        with pytest.raises(TypeError, match=rf"inputs it does not know: \['{key}'\]"):
            model(**inputs, **{key: value})


def test_a_text_that_was_cut_in_the_video(family):
    _, model, processor = family
    inputs = processor(**shown(processor, "noise-1-8"))
    end = int((inputs["frame_index"][0] == 3).nonzero()[0])
    cut = {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask", "frame_index")}
    with pytest.raises(ValueError, match="row 0 of the batch has 3 video tokens for . frames.*truncated"):
        model(**{**inputs, **cut})


def test_searches_that_would_lose_the_evidence(family):
    _, model, processor = family
    inputs = processor(**shown(processor, "noise-1-8"))
    for settings in ({"num_beams": 2}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="generates greedily or by sampling, with the cache"):
            model.generate(**inputs, max_new_tokens=2, **settings)


# --- Attention ---


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl"])
def test_attention_without_a_4d_mask_takes_two_rows(name, config, caplog, monkeypatch):
    """Chosen by itself and logged. Flash attention runs on a GPU only: here the name stands for another."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", sdpa_attention_forward)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", sdpa_mask)
    found = []
    for attention in ("sdpa", "flash_attention_2"):
        model, processor = evidence_model(name)
        model.config.text_config._attn_implementation = attention
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer = fpo(name, config, model=model, processor=processor, prefix_sharing=True)
        warned = [record.getMessage() for record in caplog.records if "two rows" in record.getMessage()]
        lengths = []
        model.get_decoder().layers[-1].register_forward_pre_hook(
            lambda module, args, kwargs, seen=lengths: seen.append(len(args[0] if args else kwargs["hidden_states"])),
            with_kwargs=True,
        )
        (gradients,) = train(trainer)
        found.append((warned, lengths[-1], trainer.state.log_history[0]["loss"], gradients))
    (no_warning, num_shared, shared, expected), ((warning,), num_plain, plain, gradients) = found
    assert no_warning == [] and (num_shared, num_plain) == (len(PAIRS), 2 * len(PAIRS))
    assert "'flash_attention_2' attention takes no 4-D mask" in warning and "`prefix_sharing=False`" in warning
    assert plain == pytest.approx(shared, rel=1e-5)
    assert_same_gradients(gradients, expected)


def test_which_attention_shares_prompts():
    model = evidence_model("qwen2_5_vl")[0]
    for attention, shares in (
        ("sdpa", True),
        ("eager", True),
        ("flash_attention_3", False),
        ("flex_attention", False),
    ):
        model.config.text_config._attn_implementation = attention
        assert (sharing_obstacle(model) is None) == shares, attention


# --- The page ---


def blocks(start: str, end: str | None = None) -> str:
    """The Python of the page from one heading to another."""
    page = DOCS.read_text(encoding="utf-8")
    page = page[page.index(start) : page.index(end) if end else None]
    return "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))


def test_the_page_s_first_example_runs(event_world, tmp_path, monkeypatch):
    """With a tiny model in place of the real one, on real video files."""
    monkeypatch.chdir(tmp_path)
    for part in build("qwen3_vl"):
        part.save_pretrained("tiny")
    code = blocks("# Evidence tokens", "## What changes")
    for given, instead in (
        ("Qwen/Qwen3-VL-4B-Instruct", "tiny"),
        ('dtype="bfloat16"', 'dtype="float32", capture_layer=2'),
        ('"outputs/sft"', '"outputs/sft", max_steps=1, bf16=False, use_cpu=True, report_to="none"'),
    ):
        assert code.count(given) == 1
        code = code.replace(given, instead)
    names = {"rows": event_world["train"]}
    train_it, save_it = code.split("\nmerged = ")
    exec(compile(train_it, str(DOCS), "exec"), names)
    trainer, processor = names["trainer"], names["processor"]
    batch = EvidenceCollator(processor, noise_video)(ROWS)
    expected = logits(trainer.model, batch)
    exec(compile("merged = " + save_it, str(DOCS), "exec"), names)
    again = AutoModelForImageTextToText.from_pretrained("outputs/merged", dtype=torch.float32)
    torch.testing.assert_close(logits(again, batch), expected, rtol=1e-3, atol=1e-3)
    start = evidence_model("qwen3_vl")[0]
    for weight, before in (
        (again.lm_head.weight, start.lm_head.weight),
        (again.get_input_embeddings().weight, start.get_input_embeddings().weight),
    ):
        changed = (weight != before).any(-1).nonzero().flatten().tolist()
        assert changed == [processor.evidence_token_id, processor.evidence_end_token_id]


def test_the_page_s_backbone_goes_through_the_tests(config, tmp_path, monkeypatch):
    """A family that is not in the table, with one line."""
    monkeypatch.chdir(tmp_path)
    assert "llava_next_video" not in BACKBONES
    for table in (BACKBONES, FAMILIES):  # back to what they were, whatever the page adds
        monkeypatch.setitem(table, "llava_next_video", None)
    exec(compile(blocks("## Add a backbone"), str(DOCS), "exec"), {})
    for make in (test_backbones.fpo, test_backbones.sft):
        test_backbones.test_every_video_is_encoded_once_and_seen(make, "llava_next_video", config)
    for attention in ("sdpa", "eager"):
        test_backbones.test_shared_prompts_equal_two_rows("llava_next_video", attention, config)
    test_backbones.test_rewards_are_zero_before_the_first_step("llava_next_video", config)
    test_backbones.test_the_states_of_frames_are_those_after_the_first_layers("llava_next_video")
    test_backbones.test_an_adapter_trains_saves_and_merges("llava_next_video", config, tmp_path / "adapter")
    test_backbones.test_a_saved_model_loads_by_the_auto_classes("llava_next_video", tmp_path / "saved")
    test_backbones.test_answers_in_a_batch_are_those_alone("llava_next_video")


def test_the_page_s_table_is_that_of_the_code():
    cells = re.findall(r"^\| `(\w+)` \| (\w+) \| (\d) \| .* \| (any|equal) \|$", DOCS.read_text(), flags=re.MULTILINE)
    found = {name: (seen_as, int(merged), lengths) for name, seen_as, merged, lengths in cells}
    expected = {}
    for name, traits in BACKBONES.items():
        processor = evidence_model(name)[1]
        expected[name] = (traits.modality, processor.frames_per_step, "equal" if name in STACKING else "any")
    assert found == expected and expected.keys() == FAMILIES.keys()
