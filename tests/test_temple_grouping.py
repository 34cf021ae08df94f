# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Embeddings of frames, their cache, groups of shots and the runs of these."""

import numpy as np
import pytest
import torch

from trl_temporal.synthesis.temple_grouping import (
    CachedEmbedder,
    ModelEmbedder,
    color_histogram,
    group_shots,
    group_similar,
    recurring_group,
    runs_of,
)


def greedy_groups(similarity, threshold=0.8):
    """The two most alike become one, whose similarities are the plain mean of theirs, while they are alike enough."""
    groups = [[index] for index in range(len(similarity))]
    matrix = similarity.copy()
    while len(groups) > 1:
        np.fill_diagonal(matrix, -np.inf)
        first, second = sorted(np.unravel_index(matrix.argmax(), matrix.shape))
        if matrix[first, second] <= threshold:
            break
        matrix[first] = matrix[:, first] = (matrix[first] + matrix[second]) / 2
        matrix = np.delete(np.delete(matrix, second, 0), second, 1)
        groups[first] += groups.pop(second)
    return {frozenset(group) for group in groups}


def partition(labels):
    return {frozenset(np.flatnonzero(np.array(labels) == label).tolist()) for label in set(labels)}


def test_grouping_is_greedy_mean_merging():
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(300):
        count = int(rng.integers(4, 33))
        centres = rng.normal(size=(int(rng.integers(1, count + 1)), 16))
        vectors = centres[rng.integers(0, len(centres), count)] + rng.uniform(0.1, 0.8) * rng.normal(size=(count, 16))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        labels = group_shots(vectors)
        assert partition(labels) == greedy_groups(unit @ unit.T)
        assert labels == group_similar(unit @ unit.T)
        assert list(dict.fromkeys(labels)) == list(range(max(labels) + 1)), "numbered as they come"
        sizes.append(len(set(labels)) / count)
    assert sum(0.1 < size < 0.9 for size in sizes) > 100, "else the matrices show nothing"


def test_groups_of_few_shots():
    assert group_shots(np.zeros((0, 4))) == []
    assert group_shots(np.ones((1, 4))) == [0]
    assert group_shots(np.array([[1.0, 0.0], [5.0, 0.0], [0.0, 0.0]])) == [0, 0, 1], "length does not count"


def test_runs():
    assert runs_of([]) == []
    assert runs_of([3]) == [(3, 0, 0)]
    assert runs_of([0, 1, 1, 0, 0, 2]) == [(0, 0, 0), (1, 1, 2), (0, 3, 4), (2, 5, 5)]


@pytest.mark.parametrize(
    ("groups", "group"),
    [
        ([0, 1, 2, 3], None),
        ([0, 1, 2, 0], 0),  # of 4 or 5 runs none may come back
        ([0, 1, 2, 3, 1], 1),
        ([0, 1, 0, 2, 3, 4], None),  # 2 of 6
        ([0, 1, 0, 2, 0, 3], 0),  # 3 of 6
        ([0, 1, 0, 2, 0, 3, 4, 5, 6], None),  # 3 of 9
        ([0, 1, 0, 2, 0, 3, 0, 4, 5, 6, 7, 8, 9], 0),  # 4 of 13: more than three are too many in any video
    ],
)
def test_recurrence(groups, group):
    assert recurring_group(groups) == group


@pytest.fixture
def siglip_dir(tmp_path):
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        vision_config={**sizes, "image_size": 16, "patch_size": 8}, text_config={**sizes, "vocab_size": 8}
    )
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (40, 24, 20, 3), dtype=np.uint8)


def test_model_embedder(siglip_dir, frames):
    from transformers import SiglipModel

    frames = frames[:, :16, :16]  # of the model's size: nothing is resized
    vectors = ModelEmbedder(str(siglip_dir))(frames)  # in two batches
    assert vectors.shape == (40, 16) and vectors.dtype == np.float32
    pixels = torch.tensor(frames).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.no_grad():
        expected = SiglipModel.from_pretrained(siglip_dir).eval().get_image_features(pixels).pooler_output
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)
    assert np.abs(np.diff(vectors, axis=0)).max() > 0.05, "else equal vectors would pass"
    assert ModelEmbedder(str(siglip_dir))(np.zeros((2, 40, 9, 3), dtype=np.uint8)).shape == (2, 16)


def test_a_model_that_embeds_no_images(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel, which has no `get_image_features`"):
        ModelEmbedder(str(tmp_path))(np.zeros((1, 8, 8, 3), dtype=np.uint8))


def test_vectors_are_cached(frames, tmp_path):
    calls = []

    def embed(shown):
        calls.append(len(shown))
        return shown.reshape(len(shown), -1)[:, :3].astype(np.float32)

    cached = CachedEmbedder(embed, "mine", tmp_path)
    first = cached(frames)
    np.testing.assert_array_equal(CachedEmbedder(embed, "mine", tmp_path)(frames), first)
    assert calls == [40]
    changed = frames.copy()
    changed[7, 3, 2, 1] ^= 1
    cached(changed)
    cached(frames[:5])
    CachedEmbedder(embed, "another", tmp_path)(frames)
    assert calls == [40, 40, 5, 40]


def test_other_weights_have_another_name(siglip_dir):
    before = repr(ModelEmbedder(str(siglip_dir)))
    assert repr(ModelEmbedder(str(siglip_dir), device="cpu")) == before
    with open(siglip_dir / "model.safetensors", "ab") as file:
        file.write(b" ")
    assert repr(ModelEmbedder(str(siglip_dir))) != before


@pytest.mark.parametrize("wrong", [np.zeros((39, 4)), np.zeros(40), np.full((40, 2), np.nan)])
def test_wrong_vectors(frames, wrong, tmp_path):
    with pytest.raises(ValueError, match="the embedder mine gave an array of shape .* for 40 frames"):
        CachedEmbedder(lambda shown: wrong, "mine", tmp_path)(frames)


def test_color_histogram():
    picture = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    picture[1, :, 4:] = (255, 0, 0)  # the right half is red
    vectors = color_histogram(picture)
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, rtol=1e-6)
    assert vectors[0] @ vectors[1] == pytest.approx(0.5)
    assert color_histogram(np.zeros((1, 3, 2, 3), dtype=np.uint8)).sum() > 0, "also of the smallest pictures"
