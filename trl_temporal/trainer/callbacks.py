# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Callbacks of the trainers: an orderly stop at a signal, and the epoch of the sampler after resuming."""

import os
import signal
import threading
import time

import torch
from transformers import TrainerCallback

# A launcher may pass on a signal that the rank has had already.
SAME_SIGNAL_S = 1.0


class InterruptCallback(TrainerCallback):
    """
    Turns Ctrl-C (SIGINT) and SIGTERM into an orderly stop: the running step is finished, a checkpoint is written, and
    training ends, on all ranks after the same step, whichever got the signal. A second Ctrl-C stops at once; SIGTERM
    does not, for what sends it sends SIGKILL next.

    Attributes:
        received (`int` or `None`):
            Number of the signal.
    """

    def __init__(self):
        self.received: int | None = None
        self._time_s = 0.0
        self._process = os.getpid()
        self._previous: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.received, self._process = None, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if os.getpid() != self._process:  # a worker of a data loader, to which launchers send it too
            signal.signal(number, signal.SIG_DFL)
        elif self.received is None:
            self.received, self._time_s = number, time.monotonic()
            print("\nStopping after this step; a checkpoint is written first. Press Ctrl-C again to stop at once.")
        elif number == signal.SIGINT and time.monotonic() - self._time_s > SAME_SIGNAL_S:
            self.restore()
            signal.raise_signal(number)

    def _share(self, args) -> None:
        if args.world_size > 1:
            received = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
            if self.received is None and received.item():
                self.received, self._time_s = received.item(), time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self._share(args)
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False  # what sends SIGTERM does not wait for long
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_training_stop and self.received is not None:
            control.should_save = control.should_evaluate = False  # the step has done what there was to do
        return control

    def on_train_end(self, args, state, control, **kwargs):
        self._share(args)  # one that came behind the last step: all ranks end alike

    def restore(self):
        """Gives the signals back; to be called however training ended."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class SamplerEpochCallback(TrainerCallback):
    """
    Tells the sampler which epoch it is. accelerate does too, but not through the two wrappers that a sampler is in
    when several ranks resume within an epoch: they would go on in the order of the first one.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        sampler = train_dataloader.batch_sampler  # none for a stream
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        if hasattr(sampler, "sampler") and hasattr(sampler.sampler, "set_epoch"):
            sampler.sampler.set_epoch(int(state.epoch or 0))
