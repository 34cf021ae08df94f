# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import signal
import threading

from transformers import TrainerCallback


class InterruptCallback(TrainerCallback):
    """
    Turns Ctrl-C (SIGINT) and SIGTERM into an orderly stop: the running step is finished, a checkpoint is written, and
    training ends. A second signal stops at once.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number, frame):
        self.received = number
        self.restore()
        print("\nStopping after this step; a checkpoint is written first. Press Ctrl-C again to stop at once.")

    def on_step_end(self, args, state, control, **kwargs):
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True
        return control

    def restore(self):
        """Gives the signals back; to be called however training ended."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
