# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Rows and videos of noise, for tests that need no real file."""

import numpy as np
import torch
from transformers import TrainerCallback

from trl_temporal.video import Video


def noise_video(entry: str | dict) -> Video:
    """Reader of made-up videos: the path `noise-3-8` is video 3 with 8 frames at 2 fps."""
    path = entry if isinstance(entry, str) else entry["path"]
    seed, num_frames = (int(number) for number in path.split("-")[1:])
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 16, 16, 3), dtype=np.uint8)
    return Video(
        frames=frames,
        timestamps_s=np.arange(num_frames) / 2,
        duration_s=num_frames / 2,
        path=path,
        warnings=[],
    )


def user(question: str, video: bool = True) -> list[dict]:
    """The messages of a prompt."""
    parts = [{"type": "text", "text": question}]
    return [{"role": "user", "content": [{"type": "video"}, *parts] if video else parts}]


def assistant(response: str) -> list[dict]:
    """The messages of a response."""
    return [{"role": "assistant", "content": [{"type": "text", "text": response}]}]


def sft_row(response: str, spans: list, video: str | None = "noise-0-8", question: str = "When?", **columns) -> dict:
    """A row for the SFT trainer."""
    return {
        "id": "row",
        "videos": [{"path": video}] if video else [],
        "prompt": user(question, video is not None),
        "completion": assistant(response),
        "spans": spans,
        **columns,
    }


def preference_row(
    chosen: str,
    chosen_spans: list,
    rejected: str,
    rejected_spans: list,
    video: str | None = "noise-0-8",
    question: str = "When?",
    **columns,
) -> dict:
    """A row for the FPO trainer."""
    return {
        "id": "pair",
        "videos": [{"path": video}] if video else [],
        "prompt": user(question, video is not None),
        "chosen": assistant(chosen),
        "rejected": assistant(rejected),
        "chosen_spans": chosen_spans,
        "rejected_spans": rejected_spans,
        **columns,
    }


# Rows with different numbers of events, one without evidence and one without video.
MIXED_ROWS = [
    sft_row("<evi> </evi> It happens in <evi>.", [[0.5, 1.5]], video="noise-1-5"),
    sft_row(
        "<evi> <evi> </evi> <evi> The red disc blinks. <evi> The blue cross shakes.",
        [[0.0, 1.0], [1.5, 3.0]],
        video="noise-2-8",
    ),
    sft_row("</evi> Nothing.", [], video="noise-2-8"),
    sft_row("Hello there.", [], video=None),
]

# Pairs with different numbers of events and tokens, one of them without video.
MIXED_PAIRS = [
    preference_row(
        "<evi> </evi> It happens in <evi>.",
        [[0.5, 1.5]],
        "<evi> <evi> </evi> It happens in <evi> and <evi>.",
        [[0.5, 1.5], [2.0, 3.0]],
        video="noise-1-8",
        factor="add",
    ),
    preference_row(
        "<evi> <evi> </evi> <evi> The red disc blinks. <evi> The blue cross shakes.",
        [[0.0, 1.0], [1.5, 3.0]],
        "<evi> <evi> </evi> <evi> The red disc blinks. <evi> The blue cross shakes.",
        [[0.0, 1.0], [2.5, 4.0]],
        video="noise-2-12",
        factor="shift",
    ),
    preference_row("</evi> Nothing.", [], "<evi> </evi> A disc <evi>.", [[0.0, 0.5]], factor="distort"),
    preference_row("Hello there.", [], "No.", [], video=None, factor="distort"),
]


class KeepGradients(TrainerCallback):
    """Keeps the gradients of every optimizer step, by the name of the parameter."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = model.named_parameters()
        self.steps.append({name: value.grad.clone() for name, value in named if value.grad is not None})


def train(trainer) -> list[dict[str, torch.Tensor]]:
    """Trains; returns the gradients of every step."""
    keep = KeepGradients()
    trainer.add_callback(keep)
    trainer.train()
    return keep.steps


def assert_same_gradients(actual: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """Equal up to `tolerance` times the largest entry of each parameter's gradient."""
    assert actual.keys() == expected.keys(), actual.keys() ^ expected.keys()
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).abs().max().item()
        assert difference <= tolerance * max(1, gradient.abs().max().item()), (name, difference)
