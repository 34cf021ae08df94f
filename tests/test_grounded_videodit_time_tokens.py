# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Time tokens of Grounded-VideoDiT: writing, reading, escaping, and their place in tokenizers and models."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from trl_temporal.models.grounded_videodit import TimeTokens, add_time_tokens, give_time_rows, time_token_nll
from trl_temporal.models.tiny import train_tokenizer

FORMATS = ["<{i}>", "<|t{i}|>"]
DURATIONS = st.floats(0.5, 10_000)
SHARES = st.floats(0, 1)


@pytest.fixture(params=FORMATS)
def time_tokens(request):
    return TimeTokens(token_format=request.param)


def metaspace_tokenizer():
    """Like those of Llama and Phi-3: spaces are a mark, which the normaliser also puts before the text."""
    alphabet = ["<unk>", "▁"] + [chr(code) for code in range(33, 127)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)


def lowering_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.decoder = normalizers.Lowercase(), decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens(sorted(pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {
    "byte_level": lambda: train_tokenizer(["The dog runs at 12."], vocab_size=300),
    "metaspace": metaspace_tokenizer,
}


@given(
    spans=st.lists(st.tuples(SHARES, SHARES).map(sorted), max_size=4), duration_s=DURATIONS, step=st.integers(1, 999)
)
def test_spans_survive_to_half_a_step(spans, duration_s, step):
    tokens = TimeTokens(num_steps=step)
    spans = [[share * duration_s for share in span] for span in spans]
    parsed = tokens.parse(f"From {tokens.format(spans, duration_s)}.", duration_s)
    assert parsed.num_faults == 0 and len(parsed.spans) == len(spans)
    half = tokens.resolution_s(duration_s) / 2 * (1 + 1e-6)
    for span, (start_s, end_s) in zip(spans, parsed.spans, strict=True):
        assert abs(start_s - span[0]) <= half and abs(end_s - span[1]) <= half and start_s <= end_s


@given(number=st.integers(0, 300), duration_s=DURATIONS)
def test_tokens_survive_exactly(number, duration_s):
    tokens = TimeTokens()
    assert tokens.number(tokens.seconds(number, duration_s), duration_s) == number


def test_rounding_has_no_bias():
    """Rounding down makes times early by half a step (0.05 s of 30 s) on the average."""
    tokens, times = TimeTokens(), torch.linspace(0, 30, 10_001).tolist()
    errors = torch.tensor([tokens.seconds(tokens.number(time_s, 30.0), 30.0) - time_s for time_s in times])
    assert abs(errors.mean()) < 1e-3 and errors.abs().mean() == pytest.approx(0.025, abs=1e-3)


def test_there_are_301_tokens():
    tokens = TimeTokens().tokens
    assert len(set(tokens)) == 301 and tokens[0] == "<0>" and tokens[-1] == "<300>"
    assert TimeTokens(token_format="<|t{i}|>").tokens[24] == "<|t24|>"


@pytest.mark.parametrize(
    ("text", "spans", "faults"),
    [
        ("<30>--<60>", [[3, 6]], {}),
        ("<30> -- <60>", [[3, 6]], {}),  # as some tokenizers decode
        ("at <30>, and <0>--<300>.", [[3, 3], [0, 30]], {}),
        ("<30>--<30>", [[3, 3]], {}),
        ("<60>--<30>, <0>--<30>", [[0, 3]], {"reversed": 1}),
        ("<301> <30>--<999> <999>--<30>", [], {"out_of_range": 3}),
        ("<30>--", [], {"broken": 1}),
        ("--<30> <60>--<", [], {"broken": 2}),
        ("<30>--<60>--<90>", [], {"broken": 1}),
        ("<30>---<60>", [], {"broken": 1}),
        ("<" + "9" * 5000 + ">", [], {"out_of_range": 1}),
        ("<030> < 30> <-1> <3.5> <٣>", [], {}),  # no tokens
        ("nothing", [], {}),
    ],
)
def test_parse(time_tokens, text, spans, faults):
    text = re.sub(r"<(\d+)>", lambda match: time_tokens.token_format.replace("{i}", match[1]), text)
    parsed = time_tokens.parse(text, duration_s=30.0)
    assert parsed.spans == [pytest.approx(span) for span in spans]
    assert {name: count for name, count in vars(parsed).items() if name != "spans" and count} == faults
    assert parsed.num_faults == sum(faults.values())


def test_repair_swaps_and_counts():
    parsed = TimeTokens().parse("<60>--<30>, <999>--<30>", duration_s=30.0, repair=True)
    assert parsed.spans == [[3.0, 6.0]] and parsed.reversed == 1 and parsed.out_of_range == 1


@given(text=st.text(alphabet="<>|t0123456789- ", max_size=60), duration_s=DURATIONS)
def test_any_text_parses(text, duration_s):
    for token_format in FORMATS:
        parsed = TimeTokens(token_format=token_format).parse(text, duration_s)
        assert all(0 <= start_s <= end_s <= duration_s * (1 + 1e-9) for start_s, end_s in parsed.spans)


def test_bad_times_are_refused():
    tokens = TimeTokens()
    with pytest.raises(ValueError, match="31.0 s lies outside the video, which is 30.0 s"):
        tokens.number(31.0, 30.0)
    for time_s in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lies outside"):
            tokens.number(time_s, 30.0)
    for duration_s in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`duration_s` is"):
            tokens.number(0.0, duration_s)
    with pytest.raises(ValueError, match="Span 1, .* ends before it starts"):
        tokens.format([[1.0, 2.0], [4.0, 3.0]], 30.0)
    with pytest.raises(ValueError, match="no time token 301"):
        tokens.seconds(301, 30.0)
    assert tokens.number(30.04, 30.0) == 300  # less than half a step
    # The checks of rows let labels pass the end by 0.05 s, several steps of a short clip.
    assert tokens.number(1.05, 1.0) == 300
    with pytest.raises(ValueError, match="lies outside"):
        tokens.number(1.06, 1.0)


@pytest.mark.parametrize("token_format", ["{i}", "<{i}", "{i}>", "<>", "<{i}{i}>", "<0{i}>", "< {i}>", "-{i}-"])
def test_formats_that_cannot_be_read_are_refused(token_format):
    with pytest.raises(ValueError, match="`token_format` is"):
        TimeTokens(token_format=token_format)
    with pytest.raises(ValueError, match="`num_steps` is 0"):
        TimeTokens(num_steps=0)


@given(text=st.text(alphabet="<>|t0123456789 a<", max_size=40))
@example("<24>--<96>")
@example("<24<24>>")
@example("<|t24|>")
@settings(deadline=None)
def test_escaped_text_has_no_time_token(text):
    for token_format in [*FORMATS, "<{i}<"]:
        tokens = TimeTokens(token_format=token_format)
        escaped = tokens.escape(text)
        assert not any(token in escaped for token in tokens.tokens)
        assert escaped.replace(" ", "") == text.replace(" ", "")  # nothing but spaces is added
        assert tokens.escape(escaped) == escaped
        if not any(token in text for token in tokens.tokens):
            assert escaped == text


def test_unknown_tokens_in_user_text_are_refused():
    TimeTokens().refuse_unknown("What is at <300>, <0300>?")
    with pytest.raises(ValueError, match="'<301>', but time tokens go from <0> to <300>"):
        TimeTokens().refuse_unknown("What is at <301>?")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_reads_and_writes_them(name, time_tokens, tmp_path):
    tokenizer = TOKENIZERS[name]()
    num_before = len(tokenizer)
    ids = add_time_tokens(tokenizer, time_tokens)
    assert ids == list(range(num_before, num_before + 301))
    text = f"The dog runs {time_tokens.format([[2.4, 9.6]], 30.0)}."
    encoded = tokenizer(text, add_special_tokens=False).input_ids
    assert [token for token in encoded if token in ids] == [ids[24], ids[96]]
    decoded = tokenizer.decode(encoded, skip_special_tokens=True)
    assert time_tokens.parse(decoded, 30.0).spans == [pytest.approx([2.4, 9.6])]
    escaped = tokenizer(time_tokens.escape(text), add_special_tokens=False).input_ids
    assert not set(escaped) & set(ids)
    # Again, and after saving: nothing changes.
    assert add_time_tokens(tokenizer, time_tokens) == ids and len(tokenizer) == num_before + 301
    tokenizer.save_pretrained(tmp_path)
    reloaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert add_time_tokens(reloaded, time_tokens) == ids and len(reloaded) == num_before + 301
    assert reloaded(text, add_special_tokens=False).input_ids == encoded


def test_tokenizer_that_lowers_its_text():
    tokenizer, time_tokens = lowering_tokenizer(), TimeTokens(token_format="<T{i}>")
    ids = add_time_tokens(tokenizer, time_tokens)
    assert tokenizer("<T24>", add_special_tokens=False).input_ids == [ids[24]]


def test_tokens_with_another_meaning_are_refused():
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.add_tokens(["<7>"])
    with pytest.raises(ValueError, match="has 1 of the 301 time tokens already, such as '<7>'"):
        add_time_tokens(tokenizer, TimeTokens())
    assert len(add_time_tokens(tokenizer, TimeTokens(token_format="<|t{i}|>"))) == 301


def tiny_llama(vocab_size, tied):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=tied, **sizes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_rows", [300, 500, 900])
def test_rows_are_near_the_mean_and_the_vocabulary_never_shrinks(tied, num_rows):
    """300 rows for 300 tokens; a few spare rows; more rows than are needed."""
    model = tiny_llama(num_rows, tied)
    with torch.no_grad():
        model.get_input_embeddings().weight += 3.0
    before = model.get_input_embeddings().weight[:300].clone()
    ids = list(range(300, 601))
    give_time_rows(model, ids)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is embedding) == tied
    assert len(embedding) == len(head) == model.config.vocab_size == max(num_rows, 601)
    torch.testing.assert_close(embedding[:300], before, rtol=0, atol=0)
    for weight in (embedding, head):
        known, new = weight[:300], weight[ids]
        assert ((new - known.mean(0)).abs() < 0.6 * known.std(0)).all()  # noise of a tenth of the spread
        assert new.unique(dim=0).shape[0] == 301
    again = tiny_llama(num_rows, tied)
    with torch.no_grad():
        again.get_input_embeddings().weight += 3.0
    torch.manual_seed(99)
    give_time_rows(again, ids)
    torch.testing.assert_close(again.get_input_embeddings().weight[ids], embedding[ids], rtol=0, atol=0)


def test_head_with_a_bias():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=300, **sizes))
    with torch.no_grad():
        model.lm_head.bias.uniform_(1, 2)
    give_time_rows(model, list(range(300, 601)))
    torch.testing.assert_close(model.lm_head.bias[300:], model.lm_head.bias[:300].mean().expand(301))


def test_weights_in_pieces_are_refused():
    model = tiny_llama(300, tied=True)
    model.get_input_embeddings().weight.ds_id = 0
    with pytest.raises(ValueError, match="DeepSpeed ZeRO-3"):
        give_time_rows(model, [300])


def test_nll_without_smoothing_is_the_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 7, 20), torch.randint(0, 20, (2, 7))
    labels[0, :3] = -100
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(time_token_nll(logits, labels, torch.arange(10, 20)), expected)


def test_smoothed_nll_matches_soft_labels():
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 7, 20), torch.tensor([19, 4, 5, 6, 2])  # in the order of their times, not of ids
    labels = torch.tensor([[1, 19, 4, -100, 5, 6, 2], [0, 0, -100, 2, 19, 3, 8]])
    nll = time_token_nll(logits, labels, ids, smoothing=0.5)
    for row in range(2):
        for place, label in enumerate(labels[row].tolist()):
            target = torch.zeros(20)
            if label in ids.tolist():
                right = ids.tolist().index(label)
                target[ids] = torch.tensor([0.5 ** abs(step - right) for step in range(len(ids))])
                target /= target.sum()
            elif label >= 0:
                target[label] = 1.0
            expected = -(target * logits[row, place].log_softmax(-1)).sum()
            torch.testing.assert_close(nll[row, place], expected)
    none = time_token_nll(logits, torch.ones_like(labels), ids, smoothing=0.5)  # no time token in the batch
    torch.testing.assert_close(none, -logits.log_softmax(-1)[..., 1])


def test_smoothing_prefers_the_neighbour():
    ids = torch.arange(301)
    logits = 10 * torch.eye(301)
    nll = time_token_nll(logits[[101, 200]], torch.tensor([100, 100]), ids, smoothing=0.5)
    hard = time_token_nll(logits[[101, 200]], torch.tensor([100, 100]), ids)
    assert nll[0] < nll[1] and hard[0] == hard[1]
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match="`smoothing` is"):
            time_token_nll(logits, ids, ids, smoothing=smoothing)
