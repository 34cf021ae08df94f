# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What is read off run lengths is what the pixels say."""

import numpy as np
import pytest
import torch

from trl_temporal.models.grounded_videodit import masks_to_grid
from trl_temporal.objects.mask_shares import MaskRuns
from trl_temporal.objects.masks import encode_masks, mask_boxes


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (9, 4), (30, 41)])
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_shares_and_boxes_are_those_of_the_pixels(size, side):
    generator = np.random.default_rng(side)
    masks = generator.random((12, *size)) < generator.random((12, 1, 1)) ** 2
    masks[3], masks[5] = False, True
    masks[6], masks[7, :, -1] = False, True
    masks[6, -1, 0] = True
    runs = MaskRuns(encode_masks(masks), *size)
    expected = masks_to_grid(torch.from_numpy(masks), (side, side)).view(12, side, side)
    np.testing.assert_allclose(runs.shares(side), expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(runs.boxes(), mask_boxes(masks))


def test_no_mask():
    assert MaskRuns([], 4, 4).shares(2).shape == (0, 2, 2) and MaskRuns([], 4, 4).boxes().shape == (0, 4)


@pytest.mark.parametrize("counts", [[[16], [15]], [[16], []], [[10, -2, 8], [16]], [[17], [15]], [[16], [8, 9]]])
def test_runs_that_do_not_cover_their_mask(counts):
    with pytest.raises(ValueError, match="do not sum to its 4x4 pixels"):
        MaskRuns(counts, 4, 4)
