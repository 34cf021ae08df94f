# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Masks of objects: run lengths, union and boxes."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trl_temporal.objects.masks import (
    box_iou,
    decode_masks,
    encode_masks,
    mask_boxes,
    pack_masks,
    union_mask,
    unpack_masks,
)
from trl_temporal.objects.stage import OBJECT_FEATURES

MASKS = arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 6)))


@given(MASKS)
@settings(max_examples=300, deadline=None)
def test_masks_survive_their_run_lengths(masks):
    counts = encode_masks(masks)
    assert len(counts) == len(masks)
    assert all(sum(runs) == masks[0].size and 0 not in runs[1:] for runs in counts)
    np.testing.assert_array_equal(decode_masks(counts, *masks.shape[1:]), masks)


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_those_of_coco(masks):
    coco = pytest.importorskip("pycocotools.mask")
    for mask, runs in zip(masks, encode_masks(masks), strict=True):
        theirs = coco.frPyObjects({"size": list(mask.shape), "counts": runs}, *mask.shape)
        np.testing.assert_array_equal(coco.decode(theirs).astype(bool), mask)
        assert theirs["counts"] == coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]


@given(arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))))
@settings(max_examples=20, deadline=None)
def test_a_cell_survives_arrow(tracks):
    union = union_mask(tracks)
    feature = {"object_masks": OBJECT_FEATURES["object_masks"]}
    rows = datasets.Dataset.from_list([{"object_masks": pack_masks(tracks, union)}], datasets.Features(feature))
    read_tracks, read_union = unpack_masks(rows[0]["object_masks"])
    np.testing.assert_array_equal(read_tracks, tracks)
    np.testing.assert_array_equal(read_union, union)


@given(arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))))
@settings(max_examples=200, deadline=None)
def test_boxes_hold_exactly_the_mask(masks):
    height, width = masks.shape[1:]
    for mask, (left, top, right, bottom) in zip(masks, mask_boxes(masks), strict=True):
        if not mask.any():
            assert (left, top, right, bottom) == (0, 0, 0, 0)
            continue
        rows, columns = np.nonzero(mask)
        expected = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        np.testing.assert_allclose([left, top, right, bottom], expected, rtol=1e-6)


def test_union_is_the_or_of_all_objects():
    tracks = np.random.default_rng(0).random((3, 4, 5, 6)) < 0.3
    np.testing.assert_array_equal(union_mask(tracks), tracks[0] | tracks[1] | tracks[2])
    assert not union_mask(tracks[:0]).any() and union_mask(tracks[:0]).shape == (4, 5, 6)


@pytest.mark.parametrize("runs", [[3], [5], [], [-1, 5]])
def test_damaged_run_lengths_are_refused(runs):
    with pytest.raises(ValueError, match="frame 1: the runs of the mask"):
        decode_masks([[4], runs], 2, 2)


@pytest.mark.parametrize("masks", [np.zeros((2, 2), bool), np.zeros((1, 2, 2), np.float32), np.zeros((1, 0, 2), bool)])
def test_what_is_no_mask_is_refused(masks):
    with pytest.raises(ValueError, match="they have to be bool of shape"):
        encode_masks(masks)


def test_tracks_and_union_have_to_agree():
    with pytest.raises(ValueError, match="frames or sizes differ"):
        pack_masks(np.zeros((1, 2, 4, 4), bool), np.zeros((3, 4, 4), bool))


def test_iou_of_boxes():
    a = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.2, 0.2, 0.2, 0.2]])
    b = np.array([[0, 0, 1, 1], [0.25, 0, 0.75, 1], [0.2, 0.2, 0.2, 0.2]])
    np.testing.assert_allclose(box_iou(a, b), [[1 / 2, 1 / 3, 0], [1 / 2, 1 / 3, 0], [0, 0, 0]])
