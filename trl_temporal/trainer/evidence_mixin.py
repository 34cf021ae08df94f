# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the trainers with evidence losses share: data preparation, counts over all ranks and steps, the losses."""

import json
import os
from pathlib import Path

import datasets
import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint, has_length

from ..data.chat_collator import ChatCollator, ChatPreferenceCollator
from ..data.chat_inputs import DEFAULT_FPS, DEFAULT_MAX_FRAMES, time_ids_per_second
from ..data.collator import EvidenceCollator, PreferenceCollator
from ..data.feature_cache import FeatureCache, FeatureCacheError
from ..data.feature_key import feature_key
from ..data.frame_cache import FrameCache, processor_sampling
from ..data.sampler import VideoGroupSampler
from ..data.scan import apply_manifest
from ..data.schema import (
    coerce_videos,
    filter_bad_rows,
    validate_dataset,
    validate_row,
    video_key,
    without_video_decoding,
)
from ..data.video_check import drop_rows, find_bad_videos
from ..losses import consistency_l1, grounding_bce, soft_targets
from ..models.d2vlm.configuration_d2vlm import BACKBONES
from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_RESPONSE, D2VLMForConditionalGeneration
from .callbacks import InterruptCallback
from .fused_forward import EvidenceFusedOutput, frame_spans
from .shared_videos import video_parameters


def frame_cache(args, processor, has_evidence: bool) -> FrameCache:
    """
    The reader of videos that a trainer's collator uses.

    Args:
        args ([`EvidenceSFTConfig`] or [`FPOConfig`]):
            Configuration; its sampling goes before the processor's, which then keeps it for generation.
        processor (`ProcessorMixin`):
            Processor of the model.
        has_evidence (`bool`):
            Whether the model is a D2VLM. A stock model gets frames in their own size: its processor resizes.

    Returns:
        [`~trl_temporal.data.frame_cache.FrameCache`]
    """
    root = None
    if args.cache_frames:
        root = args.frame_cache_dir or os.path.join(datasets.config.HF_CACHE_HOME, "trl_temporal", "frames")
    if not has_evidence and args.num_frames is not None:
        return FrameCache(root, num_frames=args.num_frames, size=None, backend=args.video_backend)
    if not has_evidence:
        fps, max_frames = args.fps or DEFAULT_FPS, args.max_frames or DEFAULT_MAX_FRAMES
        return FrameCache(root, fps=fps, size=None, max_frames=max_frames, backend=args.video_backend)
    if args.num_frames is not None:
        processor.fps, processor.max_frames, processor.num_frames = None, None, args.num_frames
    elif args.fps is not None or args.max_frames is not None:
        processor.fps = args.fps or processor.fps or DEFAULT_FPS
        processor.max_frames, processor.num_frames = args.max_frames or processor.max_frames, None
    return FrameCache(root, **processor_sampling(processor), backend=args.video_backend)


def is_d2vlm(model: str | PreTrainedModel | PeftModel, args) -> bool:
    """Whether a model, or the one of a name, has evidence tokens."""
    if isinstance(model, str):
        return AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code).model_type == "d2vlm"
    return model.config.model_type == "d2vlm"


# TRL takes rows with a column `images` for its own kind, which it neither prepares nor compares without a reference.
_IMAGES = "images_of_row"


def hide_images(kwargs: dict) -> dict:
    """Arguments of a trainer with the column `images` of its data sets under a name that TRL does not know."""

    def hide(dataset):
        if isinstance(dataset, dict):
            return {name: hide(part) for name, part in dataset.items()}
        has_images = dataset is not None and "images" in (dataset.column_names or [])
        return dataset.rename_column("images", _IMAGES) if has_images else dataset

    return {
        name: hide(value) if name in ("train_dataset", "eval_dataset") else value for name, value in kwargs.items()
    }


QUICK_START = """## Quick start

```python
from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor, generate_answers

model = D2VLMForConditionalGeneration.from_pretrained("{name}")
processor = D2VLMProcessor.from_pretrained("{name}")
content = [{{"type": "video"}}, {{"type": "text", "text": "When does it happen?"}}]
row = {{"videos": [{{"path": "video.mp4"}}], "prompt": [{{"role": "user", "content": content}}]}}
print(*generate_answers(model, processor, [row]))
```

Without the package, `AutoModelForImageTextToText` and `AutoProcessor` load it with `trust_remote_code=True`.

"""


class EvidenceTrainerMixin:
    """
    Comes before a TRL trainer in the bases of [`EvidenceSFTTrainer`] and [`FPOTrainer`].

    The evidence losses of a row are means over its own tokens and frames; over rows they are divided by the number of
    grounded rows of the whole optimizer step, on all ranks and in all accumulated batches, so that the way a batch is
    split changes nothing.
    """

    _row_kind: str  # of the validator: "sft" or "preference"
    _has_evidence: bool  # whether the model is a D2VLM, and not one that writes times as text

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
            interrupt.restore()
            self.remove_callback(interrupt)
        if interrupt.received is not None:
            raise KeyboardInterrupt(
                f"stopped after step {self.state.global_step} of {self.state.max_steps}; the checkpoint is in "
                f"{self.args.output_dir}. Continue with `--resume_from_checkpoint last`."
            )
        return output

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """TRL's card, of a D2VLM with a quick start that shows it a video instead of asking a text model."""
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if not (self._has_evidence and self.is_world_process_zero()):
            return
        path = Path(self.args.output_dir, "README.md")
        head, rest = path.read_text(encoding="utf-8").split("## Quick start", maxsplit=1)
        rest = rest[rest.index("## Training procedure") :]
        # A model that was loaded from a folder has no page to link to.
        head = head.replace("This model is a fine-tuned version of [None](https://huggingface.co/None).\n", "")
        quick_start = QUICK_START.format(name=self.hub_model_id or model_name or "path/to/this/folder")
        path.write_text(head + quick_start + rest, encoding="utf-8")

    def _base_model(self) -> D2VLMForConditionalGeneration:
        """The model without its PEFT wrapper."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _tell_collator(self) -> None:
        """What a collator for models of transformers cannot know: which model it is for."""
        collator, model = self.data_collator, self._base_model()
        if isinstance(collator, ChatCollator | ChatPreferenceCollator):
            collator.videos_once = model.config.model_type in BACKBONES
            collator.time_ids_per_second = time_ids_per_second(collator.processor, model)
        elif isinstance(collator, EvidenceCollator | PreferenceCollator) and model.model.has_backbone:
            collator.time_ids_per_second = time_ids_per_second(collator.processor.backbone, model.model.backbone)

    def _open_feature_cache(self) -> None:
        """Has the collator read features, if the cache holds those of this model and of all rows."""
        if self.args.feature_cache is None:
            return
        model = self._base_model()
        key = feature_key(model, self.data_collator.processor, self.read_video.sampling)
        cache = FeatureCache.open(self.args.feature_cache, key)
        cache.check_frozen(model)
        dataset = self.train_dataset
        if not isinstance(dataset, datasets.IterableDataset) and "videos" in dataset.column_names:
            for index, cell in enumerate(dataset.select_columns(["videos"])["videos"]):
                entry = next(iter(coerce_videos(cell)), None)
                if entry is not None and not cache.is_known(entry) and entry not in cache:
                    raise FeatureCacheError(
                        f"row {index} of the train dataset: its video {entry} is not among the {len(cache)} of the "
                        f"feature cache {self.args.feature_cache}. Run `trl-temporal cache build` again with these "
                        "rows, which adds what is missing."
                    )
        self.data_collator.read_video = cache.get

    def _freeze_vision_tower(self) -> None:
        # PEFT has frozen it already, but for the adapters that the user put into it.
        if self.args.freeze_vision_tower and not isinstance(self.model, PeftModel):
            for parameter in video_parameters(self.model).values():
                parameter.requires_grad_(False)

    def _prepare_dataset(self, dataset, processing_class, args, *unused, dataset_name: str | None = None):
        """Checks every row and every video before training; TRL's own preparation would tokenize without the video."""
        name = dataset_name or unused[-1]
        if _IMAGES in (dataset.column_names or []):
            dataset = dataset.rename_column(_IMAGES, "images")
        skip = args.on_bad_sample == "skip"
        if isinstance(dataset, datasets.IterableDataset):
            if skip:
                raise ValueError(
                    "`on_bad_sample='skip'` looks at all rows before training, which a streaming dataset does not "
                    "allow. Load it without streaming, or filter it first."
                )
            return dataset.map(_checked, fn_kwargs={"kind": self._row_kind})
        dataset = without_video_decoding(dataset)
        with args.main_process_first(desc=f"checking the {name} dataset"):  # the others find the frames in the cache
            return self._skip_bad_rows(dataset, args, name) if skip else self._refuse_bad_rows(dataset, args, name)

    def _refuse_bad_rows(self, dataset, args, name: str):
        validate_dataset(dataset, self._row_kind)
        if args.video_manifest is not None and "videos" in dataset.column_names:
            return apply_manifest(dataset, args.video_manifest)
        if not args.cache_frames or args.feature_cache is not None or "videos" not in dataset.column_names:
            # To decode only to look would double the work: a bad video is met in training, or was in the cache's.
            return dataset
        for index, error in find_bad_videos(dataset, self.read_video, self._progress(args, name)):
            raise type(error)(
                f"row {dataset[index].get('id', index)!r} of the {name} dataset: {error} Or set "
                "`on_bad_sample='skip'` to go on without such rows."
            ) from error
        return dataset

    def _skip_bad_rows(self, dataset, args, name: str):
        # Every rank finds the same rows; one writes them down.
        manifest = Path(args.output_dir, f"skipped_{name}.jsonl") if args.process_index == 0 else Path(os.devnull)
        indices = range(len(dataset))
        dataset = filter_bad_rows(dataset, self._row_kind, manifest)
        skipped = {json.loads(line)["index"] for line in manifest.read_text(encoding="utf-8").splitlines()}
        indices = [index for index in indices if index not in skipped]
        if "videos" not in dataset.column_names:
            return dataset
        if args.video_manifest is not None:
            if args.process_index == 0:
                manifest = manifest.with_name(f"skipped_videos_{name}.jsonl")
            return apply_manifest(dataset, args.video_manifest, "skip", manifest)
        bad = dict(find_bad_videos(dataset, self.read_video, self._progress(args, name)))
        return drop_rows(dataset, bad, manifest, indices)

    def _progress(self, args, name: str) -> str | None:
        return f"Reading videos of the {name} dataset" if args.should_log and not args.disable_tqdm else None

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_video or not has_length(dataset) or "videos" not in dataset.column_names:
            return super()._get_train_sampler(train_dataset)
        cells = map(coerce_videos, dataset.select_columns(["videos"])["videos"])
        videos = [video_key(entries[0]) if entries else "" for entries in cells]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return VideoGroupSampler(videos, seed=seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batch_samples, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step == 0:
            self._refuse_blind_batches(batch_samples)
        counts = sum((self._count(batch) for batch in batch_samples), torch.zeros(2, dtype=torch.long))
        self._step_counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        return batch_samples, num_items_in_batch

    def _refuse_blind_batches(self, batches: list[dict]) -> None:
        """A collator of one's own may leave the videos out; then the model would train without an error, and blind."""
        dataset = self.train_dataset
        if isinstance(dataset, datasets.IterableDataset) or "videos" not in dataset.column_names:
            return
        if any(name.startswith(("pixel_values", "video_features")) for batch in batches for name in batch):
            return
        if all(dataset.select_columns(["videos"])["videos"]):
            raise RuntimeError(
                "every row has a video in its column 'videos', but the first batches hold no pixel values (only "
                f"{', '.join(batches[0])}): the model would train blind. Use the trainer's own collator, or return "
                "what the processor makes of the videos."
            )

    def _count(self, batch: dict) -> torch.Tensor:
        """Grounded rows and labelled tokens of the responses that are learnt from."""
        raise NotImplementedError

    def _divide(self, total: torch.Tensor, which: int, batch: dict) -> torch.Tensor:
        """
        `total` over the count of the whole optimizer step, so that the mean over ranks and accumulated batches, which
        is what the trainer trains on and logs, is the loss of the step.
        """
        if not self.model.training:
            return total / self._count(batch)[which].clamp(min=1)
        scale = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        return total * scale / self._step_counts[which].clamp(min=1)

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
        self, output: EvidenceFusedOutput, inputs: dict, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """L_gnd and L_cons of the first `rows` rows; zero for a batch without video, which other ranks may have."""
        if output.evidence_logits is None:
            zero = output.log_probs.new_zeros(())
            return zero, zero
        stage, frames = inputs["evidence_stage"][:rows], inputs["evidence_frame_mask"][:rows]
        targets = frames
        if self.args.grounding_target == "soft":
            spans = frame_spans(inputs)[:rows].round()  # log p_g takes them as they are
            targets = soft_targets(spans, frames.shape[-1], self.args.soft_target_base)
        grounding = grounding_bce(
            output.evidence_logits[:rows], targets, output.evidence_mask[:rows], output.frame_mask[:rows]
        )
        consistency = consistency_l1(
            output.evidence_queries[:rows], stage == STAGE_EVIDENCE, stage == STAGE_RESPONSE, frames
        )
        return self._divide(grounding.sum(), 0, inputs), self._divide(consistency.sum(), 0, inputs)

    def _log_metric(self, name: str, value: torch.Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][name].append(self.accelerator.gather_for_metrics(value.detach().float()).mean().item())


def _checked(row: dict, kind: str) -> dict:
    validate_row(row, kind=kind)
    return row
