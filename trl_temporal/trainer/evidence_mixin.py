# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the trainers with evidence losses share: data preparation, counts over all ranks and steps, the losses."""

import json
import os
import warnings
from pathlib import Path

import datasets
import torch
from tqdm import tqdm
from transformers.trainer_utils import get_last_checkpoint, has_length

from ..data.frame_cache import FrameCache
from ..data.sampler import VideoGroupSampler
from ..data.schema import coerce_videos, filter_bad_rows, validate_dataset, validate_row, without_video_decoding
from ..losses import consistency_l1, grounding_bce, soft_targets
from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_RESPONSE
from ..video import VideoError
from .callbacks import InterruptCallback
from .fused_forward import EvidenceFusedOutput


def frame_cache(args, processor) -> FrameCache:
    """The reader of videos that a trainer's collator uses, with the processor's sampling."""
    root = None
    if args.cache_frames:
        root = args.frame_cache_dir or os.path.join(datasets.config.HF_CACHE_HOME, "trl_temporal", "frames")
    return FrameCache(
        root,
        fps=processor.fps,
        size=processor.image_size,
        max_frames=processor.max_frames,
        backend=args.video_backend,
    )


class EvidenceTrainerMixin:
    """
    Comes before a TRL trainer in the bases of [`EvidenceSFTTrainer`] and [`FPOTrainer`].

    The evidence losses of a row are means over its own tokens and frames; over rows they are divided by the number of
    grounded rows of the whole optimizer step, on all ranks and in all accumulated batches, so that the way a batch is
    split changes nothing.
    """

    _row_kind: str  # of the validator: "sft" or "preference"

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        r"""
        Trains, see [`~transformers.Trainer.train`]. Ctrl-C finishes the step and writes a checkpoint before it stops.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Checkpoint to continue from; `True` or `"last"` for the newest in the output folder, from the start if
                there is none. Defaults to `args.resume_from_checkpoint`.

        Raises:
            KeyboardInterrupt: after an orderly stop by a signal.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        if resume_from_checkpoint is True or resume_from_checkpoint in ("last", "True", "true"):
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
        interrupt = InterruptCallback()
        self.add_callback(interrupt)
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.remove_callback(interrupt)
        if interrupt.received is not None:
            raise KeyboardInterrupt(
                f"stopped after step {self.state.global_step} of {self.state.max_steps}; the checkpoint is in "
                f"{self.args.output_dir}. Continue with `--resume_from_checkpoint last`."
            )
        return output

    def _prepare_dataset(self, dataset, processing_class, args, *unused, dataset_name: str | None = None):
        """Checks every row and every video before training; TRL's own preparation would tokenize without the video."""
        name = dataset_name or unused[-1]
        if isinstance(dataset, datasets.IterableDataset):
            return dataset.map(_checked, fn_kwargs={"kind": self._row_kind})
        dataset = without_video_decoding(dataset)
        manifest = Path(args.output_dir) / f"skipped_{name}.jsonl"
        if args.on_bad_sample == "skip":
            dataset = filter_bad_rows(dataset, self._row_kind, manifest)
        else:
            validate_dataset(dataset, self._row_kind)
        return self._check_videos(dataset, args, name, manifest)

    def _check_videos(self, dataset, args, name: str, manifest: Path):
        """Decodes every video once, into the frame cache; without a cache a bad video is met in training."""
        if not args.cache_frames or "videos" not in dataset.column_names:
            return dataset
        rows_of: dict[str, list[int]] = {}
        for index, videos in enumerate(dataset.select_columns(["videos"])["videos"]):
            if videos:
                rows_of.setdefault(json.dumps(coerce_videos(videos)[0], sort_keys=True), []).append(index)
        bad: dict[int, str] = {}
        bar = tqdm(
            rows_of.items(),
            desc=f"Reading videos of the {name} dataset",
            disable=not args.should_log or bool(args.disable_tqdm),
        )
        for entry, indices in bar:
            try:
                self.read_video(json.loads(entry))
            except VideoError as error:
                row_id = dataset[indices[0]].get("id", indices[0])
                if args.on_bad_sample == "raise":
                    raise VideoError(
                        f"row {row_id!r} of the {name} dataset: {error} Or set `on_bad_sample='skip'` to go on "
                        "without such rows."
                    ) from error
                bad.update(dict.fromkeys(indices, str(error)))
        if not bad:
            return dataset
        ids = dataset["id"] if "id" in dataset.column_names else None
        with open(manifest, "a", encoding="utf-8") as file:
            for index, reason in bad.items():
                row_id = None if ids is None else ids[index]
                file.write(json.dumps({"index": index, "id": row_id, "reason": reason}) + "\n")
        warnings.warn(
            f"skipped {len(bad)} of {len(dataset)} rows of the {name} dataset whose video cannot be read; {manifest} "
            "says which and why",
            stacklevel=2,
        )
        kept = [index for index in range(len(dataset)) if index not in bad]
        if not kept:
            raise VideoError(f"No row of the {name} dataset has a readable video; mend them as {manifest} says.")
        return dataset.select(kept)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_video or not has_length(dataset) or "videos" not in dataset.column_names:
            return super()._get_train_sampler(train_dataset)
        videos = [json.dumps(videos, sort_keys=True) for videos in dataset.select_columns(["videos"])["videos"]]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return VideoGroupSampler(videos, seed=seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batch_samples, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = sum((self._count(batch) for batch in batch_samples), torch.zeros(2, dtype=torch.long))
        self._step_counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        return batch_samples, num_items_in_batch

    def _count(self, batch: dict) -> torch.Tensor:
        """Grounded rows and labelled tokens of the responses that are learnt from."""
        raise NotImplementedError

    def _divide(self, total: torch.Tensor, which: int, batch: dict, undo_accumulation: bool) -> torch.Tensor:
        """
        `total` over the count of the whole optimizer step. The trainer averages over ranks, and, if
        `undo_accumulation`, over the accumulated batches: that is undone here.
        """
        if not self.model.training:
            return total / self._count(batch)[which].clamp(min=1)
        count = self._step_counts[which].clamp(min=1)
        scale = self.accelerator.num_processes
        if undo_accumulation:
            scale *= self.current_gradient_accumulation_steps
        return total * scale / count

    def _consistency_weight(self) -> float:
        """`consistency_coef` behind its ramp."""
        start, end = self.args.consistency_ramp_start, self.args.consistency_ramp_end
        progress = self.state.global_step / max(self.state.max_steps, 1)
        if progress >= end:
            return self.args.consistency_coef
        if progress <= start:
            return 0.0
        return self.args.consistency_coef * (progress - start) / (end - start)

    def _evidence_losses(
        self, output: EvidenceFusedOutput, stage: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """L_gnd and L_cons, summed over the rows of `stage` (which may be fewer than those of `output`)."""
        rows = len(stage)
        targets = soft_targets(frames) if self.args.grounding_target == "soft" else frames
        grounding = grounding_bce(
            output.evidence_logits[:rows], targets, output.evidence_mask[:rows], output.frame_mask[:rows]
        )
        consistency = consistency_l1(
            output.evidence_queries[:rows], stage == STAGE_EVIDENCE, stage == STAGE_RESPONSE, frames
        )
        return grounding.sum(), consistency.sum()

    def _log_metric(self, name: str, value: torch.Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][name].append(self.accelerator.gather_for_metrics(value.detach().float()).mean().item())


def _checked(row: dict, kind: str) -> dict:
    validate_row(row, kind=kind)
    return row
