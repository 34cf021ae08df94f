# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C leaves a checkpoint from which training goes on as if nothing had happened."""

import os
import signal
import time

import pytest
import torch
from transformers import TrainerCallback

from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer
from trl_temporal.trainer.callbacks import InterruptCallback


class PressCtrlC(TrainerCallback):
    """In the middle of step 2."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def make_trainer(tiny_dir, event_world, output_dir, frames, callbacks=None, **kwargs):
    args = EvidenceSFTConfig(
        output_dir=str(output_dir),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        frame_cache_dir=str(frames),
        **kwargs,
    )
    return EvidenceSFTTrainer(str(tiny_dir), args=args, train_dataset=event_world["train"], callbacks=callbacks)


def test_ctrl_c_leaves_a_checkpoint_that_resume_continues(tiny_dir, event_world, tmp_path):
    frames = tmp_path / "frames"
    whole = make_trainer(tiny_dir, event_world, tmp_path / "whole", frames)
    whole.train()

    handler = signal.getsignal(signal.SIGINT)
    stopped = make_trainer(tiny_dir, event_world, tmp_path / "run", frames, callbacks=[PressCtrlC()])
    with pytest.raises(
        KeyboardInterrupt, match="stopped after step 2 of 4.*checkpoint-2.*resume_from_checkpoint last"
    ):
        stopped.train()
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").exists()

    resumed = make_trainer(tiny_dir, event_world, tmp_path / "run", frames, resume_from_checkpoint="last")
    resumed.train()
    assert resumed.state.global_step == 4
    for (name, expected), actual in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("the disk is full")


def test_a_failed_training_gives_the_signals_back(tiny_dir, event_world, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tiny_dir, event_world, tmp_path / "run", tmp_path / "frames", callbacks=[Fail()])
    with pytest.raises(RuntimeError, match="disk is full"):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has jobs in the background ignore it
    interrupt = InterruptCallback()
    interrupt.on_train_begin(None, None, None)
    try:
        # Launchers and schedulers may send it twice.
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert interrupt.received == signal.SIGTERM
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s + 5)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        interrupt.restore()
        signal.signal(signal.SIGINT, before)
