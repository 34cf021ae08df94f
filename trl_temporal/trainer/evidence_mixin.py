# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What the trainers with evidence losses share: data preparation, counts over all ranks and steps, the losses."""

import functools
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from accelerate.data_loader import DataLoaderDispatcher
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel
from transformers.trainer_utils import has_length

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
from ..evaluation.loading import record_base
from ..hub.card import FOLDER, complete_model_card
from ..losses import consistency_l1, grounding_bce, soft_targets
from ..models.d2vlm.configuration_d2vlm import BACKBONES
from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE, STAGE_RESPONSE, D2VLMForConditionalGeneration
from ..models.grounded_videodit import span_cross_entropy
from ..objects.frame_features_path import read_frames_of
from .bad_rows import SKIPPED, BadRowCollator, share_error, write_skipped
from .blank_video import OWN_COLLATORS, blank_inputs
from .frame_features import GROUNDED_COLLATORS, GROUNDED_VIDEODIT_PAPER, find_bad_objects, open_frame_features
from .fused_forward import EvidenceFusedOutput, frame_spans
from .resumable import ResumableTrainerMixin
from .sharding import EXACT_IN_BATCH, gathered, hide_exact, is_sharded, show_exact
from .shared_videos import video_parameters
from .span_forward import SpanFusedOutput


def frame_cache(args, processor, model_type: str) -> FrameCache:
    """
    The reader of videos that a trainer's collator uses.

    Args:
        args ([`EvidenceSFTConfig`] or [`FPOConfig`]):
            Configuration; its sampling goes before the processor's, which then keeps it for generation.
        processor (`ProcessorMixin`):
            Processor of the model.
        model_type (`str`):
            Type of the model. A stock model gets frames in their own size: its processor resizes.

    Returns:
        [`~trl_temporal.data.frame_cache.FrameCache`]
    """
    root = None
    if args.cache_frames:
        root = args.frame_cache_dir or os.path.join(datasets.config.HF_CACHE_HOME, "trl_temporal", "frames")
    if model_type == "grounded_videodit":
        return read_frames_of(processor, args.fps, args.max_frames, args.num_frames, backend=args.video_backend)
    has_evidence = model_type == "d2vlm"
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


def model_type_of(model: str | PreTrainedModel | PeftModel, args) -> str:
    """The type of a model, or of the one of a name."""
    if isinstance(model, str):
        return AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code).model_type
    return model.config.model_type


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


class EvidenceTrainerMixin(ResumableTrainerMixin):
    """
    Comes before a TRL trainer in the bases of [`EvidenceSFTTrainer`] and [`FPOTrainer`].

    The evidence losses of a row are means over its own tokens and frames; over rows they are divided by the number of
    grounded rows of the whole optimizer step, on all ranks and in all accumulated batches, so that the way a batch is
    split changes nothing.
    """

    _row_kind: str  # of the validator: "sft" or "preference"
    _has_evidence: bool  # whether the model is a D2VLM, and not one that writes times as text
    _has_spans: bool  # whether the model is a Grounded-VideoDiT, whose frames are encoded before training
    _num_skipped = 0  # rows that turned out to be bad in training

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """TRL's card, with a quick start that shows the model a video, the data, the settings and the metrics."""
        paper, of_trl = type(self)._paper, super()._paper
        if self._has_spans and self._row_kind == "sft":
            paper = GROUNDED_VIDEODIT_PAPER
        of_preference = self._row_kind == "preference" and self.args.grounding_coef != 0
        is_grounded = self._has_evidence or self._has_spans or of_preference
        if is_grounded:
            citations = [paper["citation"], of_trl.get("citation")]
            self._paper = {**paper, "citation": "\n\n".join(filter(None, citations))}
        else:  # TRL's own method, with video
            self._name, self._paper = super()._name, of_trl
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if self.is_world_process_zero():
            complete_model_card(
                Path(self.args.output_dir, "README.md"),
                name=self.hub_model_id or FOLDER,
                model=self.model,
                args=self.args,
                log_history=self.state.log_history,
                dataset=self.train_dataset,
                dataset_name=dataset_name,
            )

    def _save(self, output_dir=None, state_dict=None):
        if self.args.should_save and isinstance(self.model, PeftModel):
            record_base(self.model, output_dir or self.args.output_dir)
        super()._save(output_dir, state_dict)

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
        if self._has_spans:
            self._open_frame_features()
            return
        if self.args.feature_cache is None:
            return
        model = self._base_model()
        with gathered(video_parameters(model).values()):
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

    def _open_frame_features(self) -> None:
        """Has the collator read what the frozen frame encoders make of the videos; what lacks is made now."""
        if self.args.release_quirks:
            raise ValueError("`release_quirks=True` is for a D2VLM, whose code was released: leave it out.")
        if not isinstance(self.data_collator, GROUNDED_COLLATORS) or self.data_collator.read_features is not None:
            return
        datasets_of_rows = [self.train_dataset]
        datasets_of_rows += self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        self.data_collator.read_features = open_frame_features(
            self._base_model(),
            self.read_video,
            self.args.feature_cache,
            [rows for rows in datasets_of_rows if rows is not None],
            self.accelerator,
            on_bad_sample=self.args.on_bad_sample,
            progress=self.args.should_log and not self.args.disable_tqdm,
        )

    def _blank_video(self, trained: bool) -> Callable[[], dict] | None:
        """
        Gives the video of batches without one, where all processes must run the same parts of the model; `trained`
        says whether what sees videos is trained. `None` where they need not.
        """
        if self._has_spans:  # every row has a video
            return None
        if self.accelerator.num_processes == 1 or not (self._has_evidence or trained or is_sharded(self.accelerator)):
            return None
        if is_sharded(self.accelerator) and "images" in (self.train_dataset.column_names or []):
            raise ValueError(
                "The rows have images, which some batches may lack. Under ZeRO-3 and FSDP all processes must run the "
                "same parts of the model, and those without would wait for ever. Use ZeRO-2, or remove the column."
            )
        model_type = self._base_model().config.model_type
        if model_type in (*BACKBONES, "d2vlm") and isinstance(self.data_collator, OWN_COLLATORS):
            return functools.cache(self._make_blank_video)
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            return None  # DDP finds parameters that have no gradient

        def refuse():
            raise ValueError(
                f"A batch has no video, which other processes may have, and {model_type!r} with this collator cannot "
                "be shown a blank one: processes that run different parts of the model wait for each other. Use rows "
                "that all have a video, the trainer's own collator and a known family, or plain DDP."
            )

        return refuse

    def _make_blank_video(self) -> dict:
        row = None
        if self.args.feature_cache is not None:  # which holds no blank video
            row = next((row for row in self.train_dataset if row.get("videos")), None)
        return self._prepare_inputs(blank_inputs(self.data_collator, row))

    def _freeze_vision_tower(self) -> None:
        # PEFT has frozen it already, but for the adapters that the user put into it.
        if self.args.freeze_vision_tower and not isinstance(self.model, PeftModel):
            for parameter in video_parameters(self.model).values():
                parameter.requires_grad_(False)

    def _prepare_dataset(self, dataset, processing_class, args, *unused, dataset_name: str | None = None):
        """Checks every row and every video before training; TRL's own preparation would tokenize without the video."""
        name = dataset_name or unused[-1]
        if args.accelerator_config.dispatch_batches:
            raise ValueError(
                "`dispatch_batches=True` has one process read all batches and cut them up by rows, but videos stand "
                "in a batch once each, in pieces of different lengths. Leave it out: each process reads its own rows."
            )
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
        no_look = not args.cache_frames or args.feature_cache is not None or self._has_spans
        if no_look or "videos" not in dataset.column_names:
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
        if self._has_spans:
            bad |= dict(find_bad_objects(dataset))
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

    def get_train_dataloader(self):
        """TRL's, with a collator that follows `on_bad_sample` where a video turns bad after the check."""
        collator = self.data_collator
        self.data_collator = BadRowCollator(collator, self.args.on_bad_sample == "skip")
        if isinstance(self.train_dataset, datasets.IterableDataset):
            self.data_collator.advice = ""  # which has no check before training
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, error, skipped = [], None, []
        try:
            batches = list(itertools.islice(epoch_iterator, num_batches))
        except Exception as raised:
            if isinstance(self.callback_handler.train_dataloader, DataLoaderDispatcher):
                raise  # it has read for all ranks, which wait inside for the batches
            error = raised
        if isinstance(self.train_dataset, datasets.IterableDataset) and self.accelerator.num_processes > 1:
            # Shards of a stream may have different lengths, and processes that have no batch left would be waited for.
            numbers = self.accelerator.gather(torch.tensor([len(batches)], device=device))
            batches = batches[: numbers.min().item()]
        for batch in batches:
            skipped += batch.pop(SKIPPED, [])
        grounded_and_tokens = sum(map(self._count, batches), torch.zeros(2, dtype=torch.long))
        counts = torch.cat([grounded_and_tokens, torch.tensor([len(skipped), error is not None])])
        counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        self._step_counts = counts[:2]
        num_skipped, num_errors = counts[2:].tolist()
        if num_errors:
            share_error(self.accelerator, error)
        if num_skipped:
            manifest = Path(self.args.output_dir, "skipped_in_training.jsonl")
            write_skipped(self.accelerator, manifest, self.state.global_step + 1, skipped)
        if self.args.on_bad_sample == "skip":
            self._num_skipped += num_skipped
            self._metrics["train"][SKIPPED] = [self._num_skipped]
        if self.state.global_step == 0:
            self._refuse_blind_batches(batches)
        return super().get_batch_samples(iter(batches), num_batches, device)

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
            count = self.accelerator.reduce(self._count(batch).to(total.device), reduction="sum")[which]
            return total * self.accelerator.num_processes / count.clamp(min=1)
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
        """L_gnd and L_cons of the first `rows` rows; zero for a batch without evidence."""
        if output.evidence_logits is None:
            zero = output.log_probs.new_zeros(())
            return self._divide(zero, 0, inputs), self._divide(zero, 0, inputs)
        if output.evidence_logits.shape[1] == 0:
            # Nothing to sum over, but a gradient: others may have evidence, and all must go the same way back.
            zero = output.evidence_logits.sum() + output.evidence_queries.sum()
            return self._divide(zero, 0, inputs), self._divide(zero, 0, inputs)
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

    def _span_losses(self, output: SpanFusedOutput, inputs: dict, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the start/end head and of Eq. 20, of the first `rows` rows with a span."""
        zero = self._divide(output.log_probs.new_zeros(()), 0, inputs)
        frames = inputs["span_frames"][:rows]
        count = (frames[..., 0] >= 0).sum(-1)
        span = divergence = zero
        if output.start_logits is not None:
            logits = (output.start_logits[:rows], output.end_logits[:rows])
            loss = span_cross_entropy(*logits, frames, self.args.span_label_sigma).sum(-1) / count.clamp(min=1)
            span = self._divide(loss.sum(), 0, inputs)
        if output.kl_divergence is not None:
            divergence = self._divide((output.kl_divergence[:rows] * (count > 0)).sum(), 0, inputs)
        return span, divergence

    def _prepare_inputs(self, inputs):
        return show_exact(super()._prepare_inputs(hide_exact(inputs)), EXACT_IN_BATCH)

    def _log_metric(self, name: str, value: torch.Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        # Not `gather_for_metrics`, which takes the processes for rows and drops some at the end of an epoch.
        self._metrics[mode][name].append(self.accelerator.gather(value.detach().float()).mean().item())


def _checked(row: dict, kind: str) -> dict:
    validate_row(row, kind=kind)
    return row
