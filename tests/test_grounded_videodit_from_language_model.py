# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A Grounded-VideoDiT on a tiny random Phi-3, with the template and the ends of turns of the real one."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from trl_temporal.models.grounded_videodit import VideoInput
from trl_temporal.models.grounded_videodit.from_language_model import from_language_model
from trl_temporal.models.tiny import train_tokenizer

# Of microsoft/Phi-3.5-mini-instruct.
PHI3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CLIP = {"name": "tower", "hidden_size": 8}
SETTINGS = {"frame_encoders": ["clip"], "clip_config": CLIP, "feature_size": 16, "time_embedding_size": 8}
QUESTION = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When does it blink?"}]}]


@pytest.fixture(scope="module", params=["phi3", "qwen3"])
def language_model(request, tmp_path_factory):
    """More rows than tokens and two embeddings (Phi-3), or none left and one."""
    tokenizer = train_tokenizer(["When does the red disc blink?"], vocab_size=280)
    text = tokenizer.backend_tokenizer.to_str()
    for number, name in enumerate(("<evi>", "</evi>", "<video>")):  # which are to be new to the model
        text = text.replace(f'"{name}"', f'"<|placeholder{number}|>"')
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), pad_token="<|pad|>", eos_token="<|pad|>", unk_token="<|pad|>"
    )
    tokenizer.chat_template = PHI3_TEMPLATE
    sizes = {
        "vocab_size": 290 if request.param == "phi3" else len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": [0, tokenizer.convert_tokens_to_ids("<|end|>")],
    }
    torch.manual_seed(0)
    if request.param == "phi3":
        model = Phi3ForCausalLM(Phi3Config(**sizes, sliding_window=4, tie_word_embeddings=False))
    else:
        config = Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=True)
        model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # else next to nothing passes between tokens
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def video():
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 1, 8), dtype=np.float32))
    return VideoInput(features, np.arange(6) * 0.5, 3.0)


def test_text_alone_is_answered_as_before(language_model):
    model, processor = from_language_model(language_model, **SETTINGS, grounding_head=["span", "time_tokens"])
    before = AutoModelForCausalLM.from_pretrained(language_model)
    before.config.sliding_window = None  # frames that the window leaves behind could not be pointed to
    text = processor.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    inputs = processor([text])
    assert inputs["input_ids"].shape[1] > 4
    rows = before.get_input_embeddings().weight.shape[0]
    expected = before(**inputs).logits
    known = min(rows, processor.video_token_id)
    torch.testing.assert_close(model(**inputs).logits[..., :known], expected[..., :known])
    greedy = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": list(range(known, len(processor.tokenizer)))}
    ours = model.generate(**inputs, **greedy)
    greedy["suppress_tokens"] = list(range(known, rows)) or None
    assert torch.equal(ours, before.generate(**inputs, **greedy))


def test_the_prompt_is_the_language_models_with_the_video_behind_the_text(language_model):
    model, processor = from_language_model(language_model, **SETTINGS)
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "<evi> </evi> At <evi>."}]}]
    prompt = "<|user|>\nWhen does it blink?<video><|end|>\n<|assistant|>\n"
    assert processor.apply_chat_template(QUESTION, add_generation_prompt=True) == prompt
    whole = processor.apply_chat_template([*QUESTION, *answer])
    assert whole == prompt + "<evi> </evi> At <evi>.<|end|>\n<|pad|>"  # which was its end of sequence
    assert processor.tokenizer.eos_token == "<|end|>" and model.generation_config.pad_token_id == 0
    inputs = processor([prompt], [video()], None, ["When does it blink?"])
    output = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    (read,) = processor.post_process_grounded(output, inputs, [np.arange(6) * 0.5], [3.0])
    assert len(read["evidence"]) == 1


@pytest.mark.parametrize("heads", ["span", ["time_tokens", "evidence"]])
def test_it_comes_back_from_its_folder(language_model, heads, tmp_path):
    model, processor = from_language_model(language_model, **SETTINGS, grounding_head=heads, num_time_steps=20)
    again, _ = from_language_model(language_model, **SETTINGS, grounding_head=heads, num_time_steps=20)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    processor = type(processor).from_pretrained(tmp_path)
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    inputs = processor([prompt + "<evi>"], [video()], None, ["When does it blink?"])
    name = "start_logits" if heads == "span" else "evidence_logits"
    for other in (loaded, again):
        torch.testing.assert_close(other(**inputs).logits, model(**inputs).logits)
        torch.testing.assert_close(other(**inputs)[name], model(**inputs)[name])
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == ("qwen3" in language_model)
    if heads != "span":
        ids = processor.tokenizer.convert_tokens_to_ids(processor.time_tokens.tokens)
        assert ids[0] == loaded.config.time_token_start_id and ids[-1] < loaded.lm_head.weight.shape[0]


def test_what_cannot_be_built_on(tmp_path):
    tokenizer = train_tokenizer(["When?"], vocab_size=280)
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=280)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        from_language_model(str(tmp_path), **SETTINGS)
    with pytest.raises(ValueError, match="GPT2LMHeadModel, which"):
        from_language_model(str(tmp_path), **SETTINGS, chat_template=PHI3_TEMPLATE)
