# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that training continues from as if it had not stopped."""

import shutil
import warnings
from pathlib import Path

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from .callbacks import InterruptCallback, SamplerEpochCallback
from .checkpoints import (
    CheckpointError,
    changed_settings,
    checkpoint_fault,
    describe_rows,
    last_whole_checkpoint,
    mark_whole,
    unmark,
)

CONTINUE = "Continue with `--resume_from_checkpoint last`"


class ResumableTrainerMixin:
    """Comes before a trainer of transformers in the bases: whole checkpoints, resuming and orderly stops."""

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        r"""
        Trains, see [`~transformers.Trainer.train`]. Ctrl-C finishes the step and writes a checkpoint before it stops.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Checkpoint to continue from; `True` or `"last"` for the newest whole one in the output folder, from
                the start if there is none. Defaults to `args.resume_from_checkpoint`.

        Raises:
            CheckpointError: if the checkpoint is not whole, or is another trainer's.
            KeyboardInterrupt: after an orderly stop by a signal.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        checkpoint = self._find_checkpoint(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is not None:
            self._compare_settings(checkpoint)
        interrupt, sampler_epoch = InterruptCallback(), SamplerEpochCallback()
        self.add_callback(interrupt)
        self.add_callback(sampler_epoch)
        try:
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        except Exception as error:
            last = last_whole_checkpoint(self.args.output_dir, warn=False)
            if last is not None:
                error.add_note(f"The last whole checkpoint is {last}. {CONTINUE} when this is mended.")
            raise
        finally:
            interrupt.restore()
            self.remove_callback(interrupt)
            self.remove_callback(sampler_epoch)
        if interrupt.received is not None:
            folder = self._checkpoint_folder()
            where = f"the checkpoint is in {folder}. {CONTINUE}" if folder.exists() else "there is no checkpoint of it"
            raise KeyboardInterrupt(f"stopped after step {self.state.global_step} of {self.state.max_steps}; {where}.")
        return output

    def _find_checkpoint(self, wanted: str | bool) -> str | None:
        """The checkpoint to continue from: that of the first rank, so that all take the same."""
        if wanted is True or wanted in ("last", "True", "true"):
            found = [last_whole_checkpoint(self.args.output_dir) if self.args.process_index == 0 else None]
            return broadcast_object_list(found)[0]
        fault = checkpoint_fault(wanted)
        if fault is not None:
            raise CheckpointError(
                f"{wanted} is not a whole checkpoint: {fault}. It was cut off while it was written, or copied in "
                "part. Continue from an older one, or from the newest whole one with `--resume_from_checkpoint last`."
            )
        return wanted

    def _settings(self) -> dict:
        """What the order of the rows depends on, and who trained."""
        args = self.args
        return {
            "trainer": type(self).__name__,
            "num_processes": args.world_size,
            "per_device_train_batch_size": self._train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "group_by_video": args.group_by_video,
            **describe_rows(self.train_dataset),
        }

    def _compare_settings(self, checkpoint: str) -> None:
        changed = changed_settings(checkpoint, self._settings())
        if "trainer" in changed:
            before, now = changed["trainer"]
            raise CheckpointError(
                f"{checkpoint} was written by {before}, and this is {now}: its steps and optimizer are of another "
                "task. Choose another `output_dir`, and give the checkpoint as the model to start from."
            )
        if "sample" in changed:
            del changed["sample"]
            before, now = changed.get("rows", (len(self.train_dataset),) * 2)
            changed["rows"] = (before, f"{now}, others or in another order")
        if changed and not self.args.ignore_data_skip and self.args.process_index == 0:
            differences = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
            warnings.warn(
                f"{checkpoint} was written with other settings ({differences}): in this epoch some rows will come "
                "twice and others not at all. Resume with the same settings to go on as if training had not stopped.",
                stacklevel=3,
            )

    def _checkpoint_folder(self, trial=None) -> Path:
        return Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def _save_checkpoint(self, model, trial):
        folder = self._checkpoint_folder(trial)
        try:
            if self.args.should_save:
                unmark(folder)
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            free_gb = shutil.disk_usage(self.args.output_dir).free / 1e9
            raise CheckpointError(
                f"{folder} could not be written: {error}. Its disk has {free_gb:.1f} GB free. What is there of it "
                "will not be taken for a checkpoint; delete it, make room (`save_total_limit` keeps fewer) and resume."
            ) from error

    def _save_rng_state(self, output_dir):
        """The last that ranks write; only `trainer_state.json` follows, and then older checkpoints are deleted."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_whole(output_dir, self._settings())

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        """A stream has no length, so transformers takes every pass for the first; the state says which one it is."""
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or has_length(self.train_dataset) or self.args.ignore_data_skip:
            return position
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint, TRAINER_STATE_NAME)))
        passes = int(saved.epoch)
        return passes, round((saved.epoch - passes) * saved.max_steps * self.args.gradient_accumulation_steps)
