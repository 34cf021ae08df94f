# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Shuffling that keeps the rows of a video together."""

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.data.sampler import VideoGroupSampler


@given(st.lists(st.sampled_from("abcde"), max_size=20), st.integers(0, 100), st.integers(0, 3))
def test_every_row_once_and_every_video_in_one_piece(videos, seed, epoch):
    sampler = VideoGroupSampler(videos, seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(videos))) and len(sampler) == len(videos)
    pieces = [video for video, _ in groupby(videos[row] for row in order)]
    assert len(pieces) == len(set(videos))
    assert list(sampler) == order  # a resumed epoch has the same order


def test_epochs_and_seeds_have_orders_of_their_own():
    videos = [number // 3 for number in range(30)]
    orders = set()
    for seed in range(2):
        sampler = VideoGroupSampler(videos, seed=seed * 10)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 6
