# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from datasets.fingerprint import Hasher
from peft import PeftModel
from transformers.utils import logging
from trl import DPOTrainer

from ..data.chat_collator import ChatPreferenceCollator
from ..data.collator import PreferenceCollator
from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE
from ..objects.collator import GroundedPreferenceCollator
from .evidence_mixin import EvidenceTrainerMixin, frame_cache, hide_images, model_type_of
from .evidence_sft_trainer import GROUNDED_MODELS, EvidenceSFTTrainer, load_processor
from .fpo_config import FPOConfig
from .frame_features import OBJECT_COLUMNS
from .fused_forward import EvidenceFusedOutput, add_evidence_head, add_text_head, sharing_obstacle
from .sharding import adapting, check_processes, hash_weights, is_sharded
from .shared_videos import SharedVideos, same_video_parameters, video_parameters
from .span_forward import add_span_head

logger = logging.get_logger(__name__)


class FPOTrainer(EvidenceTrainerMixin, DPOTrainer):
    r"""
    Trainer for Factorized Preference Optimization (FPO, §4 of [D2VLM](https://huggingface.co/papers/2512.24097)).

    It is a [`~trl.DPOTrainer`] whose log π of a response is the log-probability of its tokens plus the
    log-probability that its `<evi>` tokens ground their spans (Eq. 7). Every `loss_type`, PEFT, precomputed reference
    log-probabilities and the logged rewards work as in [`~trl.DPOTrainer`]. By default there is no reference model
    (Eq. 4).

    Beside TRL's metrics it logs every component of the loss (`loss/preference`, `loss/sft`, `loss/grounding`,
    `loss/consistency`), `grounding_logps/chosen` and `/rejected`, and per factor `margins/<factor>` and
    `accuracies/<factor>`.

    Args:
        model (`str` or [`D2VLMForConditionalGeneration`] or `PreTrainedModel` or `PeftModel`):
            Model to train. With `grounding_coef=0` also any video model of transformers: DPO that sees the video, on
            responses whose spans are written as seconds. With `grounding_log_prob="span_tokens"` its log p_g is that
            of the tokens that write them. The evidence losses are left out.
        ref_model (`PreTrainedModel`, *optional*):
            Reference model with `reference_free=False`; defaults to the initial model.
        args ([`FPOConfig`]):
            Configuration.
        data_collator (`Callable`, *optional*):
            Defaults to [`~trl_temporal.data.collator.PreferenceCollator`] with a frame cache, for other models than a
            D2VLM to [`~trl_temporal.data.chat_collator.ChatPreferenceCollator`].
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows with `videos`, `prompt`, `chosen`, `rejected`, `chosen_spans` and `rejected_spans`
            (`[start_s, end_s]` in seconds, one per event), and optionally `factor`.
        processing_class (`ProcessorMixin`, *optional*):
            Defaults to the one saved with the model.
        **kwargs:
            As in [`~trl.DPOTrainer`]: `eval_dataset`, `callbacks`, `peft_config`, ...

    Raises:
        RowError: if a row is invalid; it names the row, the column and the mend.
        VideoError: if a video cannot be read.

    Example:

    ```python
    >>> from trl_temporal import FPOConfig, FPOTrainer

    >>> trainer = FPOTrainer(
    ...     model="examples/eventworld_tiny", args=FPOConfig("out"), train_dataset=preferences
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    ```
    """

    _tag_names = ["trl", "trl_temporal", "fpo", "d2vlm"]
    _name = "FPO"
    _paper = EvidenceSFTTrainer._paper
    _row_kind = "preference"

    def __init__(
        self, model, ref_model=None, args: FPOConfig = None, data_collator=None, processing_class=None, **kwargs
    ):
        if args is None:
            args = FPOConfig("FPO")
        check_processes(args)
        if args.reference_free and ref_model is not None:
            raise ValueError("`ref_model` was given, but `reference_free=True` uses none. Set `reference_free=False`.")
        model_type = model_type_of(model, args)
        self._has_evidence, self._has_spans = model_type == "d2vlm", model_type == "grounded_videodit"
        if model_type not in GROUNDED_MODELS and args.grounding_log_prob == "evidence" and args.grounding_coef != 0:
            raise ValueError(
                "`grounding_coef` weights the evidence tokens of a D2VLM, and this model has none. Give it some with "
                "`D2VLMForConditionalGeneration.from_backbone`; or, with spans written as seconds, set "
                "`grounding_coef=0` for plain DPO or `grounding_log_prob='span_tokens'` to weight the tokens of spans."
            )
        if model_type in GROUNDED_MODELS and args.grounding_log_prob != "evidence":
            raise ValueError(
                "`grounding_log_prob='span_tokens'` is for models that write spans as text; a D2VLM points to frames, "
                "and a Grounded-VideoDiT has a `grounding_head`. Set `grounding_log_prob='evidence'`."
            )
        if not self._has_evidence:
            self._tag_names = [tag for tag in self._tag_names if tag != "d2vlm"]
        if self._has_spans:
            self._tag_names = [*self._tag_names, "grounded-videodit"]
        processing_class = processing_class or load_processor(model, args)
        self.read_video = frame_cache(args, processing_class, model_type)
        if data_collator is None and self._has_evidence:
            data_collator = PreferenceCollator(
                processing_class,
                self.read_video,
                args.max_length,
                soft_targets=args.grounding_target == "soft",
                release_quirks=args.release_quirks,
            )
        elif data_collator is None and self._has_spans:
            data_collator = GroundedPreferenceCollator(processing_class, max_length=args.max_length)
        elif data_collator is None:
            data_collator = ChatPreferenceCollator(processing_class, self.read_video, args.max_length)
        self._outputs: list[EvidenceFusedOutput] = []
        self._has_evidence_head = False
        if args.reference_free:
            # TRL then loads no reference model, and takes the reference log-probabilities from the batch.
            args.precompute_ref_log_probs = True
        is_peft = kwargs.get("peft_config") is not None or isinstance(model, PeftModel)
        with adapting(model, is_peft):
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=args,
                data_collator=data_collator,
                processing_class=processing_class,
                **hide_images(kwargs),
            )
        self._tell_collator()
        self._install_evidence_head()
        self._open_feature_cache()

    def _install_evidence_head(self) -> None:
        """Once, as soon as TRL's fused head is in place: before reference log-probabilities are precomputed."""
        if self._has_evidence_head:
            return
        self._has_evidence_head = True
        if self._has_spans:
            self._open_frame_features()
        self._freeze_vision_tower()
        models = [self._base_model()]
        if self.ref_model is not None:
            models.append(self.accelerator.unwrap_model(self.ref_model))
        trained = any(parameter.requires_grad for parameter in video_parameters(models[0]).values())
        kept = not trained and same_video_parameters(models[0], models[-1])
        self._videos = SharedVideos(trained=trained, kept=kept, blank=self._blank_video(trained))
        of_tower = self.args.feature_cache is not None and not self._has_spans
        if of_tower and not same_video_parameters(models[0], models[-1]):
            raise ValueError(
                "`feature_cache` holds the features of one vision tower, and the reference model has another. Train "
                "without it, or with a reference that shares the tower."
            )
        shared = {
            "prefix_sharing": self._shares_prefix(models[0]),
            "videos": self._videos,
            "on_output": self._outputs.append,
        }
        for model in models:
            if self.args.disable_dropout:
                disable_attention_dropout(model)
            soft_target_base = self.args.soft_target_base if self.args.grounding_target == "soft" else None
            if self._has_spans:
                add_span_head(
                    model,
                    grounding_coef=self.args.grounding_coef,
                    soft_target_base=soft_target_base,
                    time_token_smoothing=self.args.time_token_smoothing,
                    on_output=self._outputs.append,
                )
                continue
            if not self._has_evidence:
                of_spans = self.args.grounding_log_prob == "span_tokens"
                add_text_head(model, span_coef=self.args.grounding_coef if of_spans else None, **shared)
                continue
            add_evidence_head(
                model,
                grounding_coef=self.args.grounding_coef,
                soft_target_base=soft_target_base,
                **shared,
            )
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            _copy_trainable_tokens(self.model)

    def _shares_prefix(self, model: torch.nn.Module) -> bool:
        obstacle = sharing_obstacle(model) if self.args.prefix_sharing else None
        if obstacle is not None:
            logger.warning(
                f"The two responses of a pair run as two rows, which takes about twice as long as behind one prompt: "
                f"{obstacle}. Set `prefix_sharing=False` to silence this."
            )
        return self.args.prefix_sharing and obstacle is None

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if self.args.reference_free:
            return dataset
        if self.accelerator.num_processes > 1 and isinstance(dataset, Dataset) and not dataset.cache_files:
            raise ValueError(
                f"The {name} dataset is in the memory of each process, so that one cannot pass reference "
                "log-probabilities to the others. Save it with `save_to_disk` and load it with `load_from_disk`, or "
                "set `precompute_ref_log_probs=False`."
            )
        if not self._has_evidence_head:
            self._install_evidence_head()
            if is_sharded(self.accelerator):
                reference = self.ref_model or self.model
                self._precompute_model_hash = hash_weights(self.accelerator.unwrap_model(reference))
            # TRL's cache key knows the model and the rows, not what else the log-probabilities depend on.
            self._precompute_model_hash = Hasher.hash(
                (
                    self._precompute_model_hash,
                    self.args.grounding_coef,
                    self.args.grounding_log_prob,
                    self.args.grounding_target,
                    self.args.soft_target_base,
                    self.args.release_quirks,
                    self.processing_class.to_json_string(),
                    self.processing_class.chat_template,
                )
            )
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [
            "id",
            "videos",
            "images",
            "prompt",
            "chosen",
            "rejected",
            "chosen_spans",
            "rejected_spans",
            "prompt_spans",
            "factor",
            "ref_chosen_logps",
            "ref_rejected_logps",
            *OBJECT_COLUMNS,
        ]

    def _count(self, batch: dict) -> torch.Tensor:
        half = len(batch["input_ids"]) // 2
        grounded = torch.tensor(0)
        if "span_frames" in batch:
            grounded = (batch["span_frames"][:half, :, 0] >= 0).any(-1).sum().cpu()
        elif "evidence_stage" in batch:
            grounded = (batch["evidence_stage"][:half] >= STAGE_EVIDENCE).any(-1).sum().cpu()
        return torch.stack([grounded, batch["completion_mask"][:half, 1:].sum().cpu()])

    def compute_ref_log_probs(self, model, inputs):
        self._outputs.clear()
        self._videos.clear()
        inputs = {name: value for name, value in inputs.items() if name != "factor"}
        return super().compute_ref_log_probs(model, inputs)

    def _compute_loss(self, model, inputs, return_outputs):
        args, half = self.args, len(inputs["input_ids"]) // 2
        factors = inputs.get("factor")
        inputs = {name: value for name, value in inputs.items() if name != "factor"}
        if args.reference_free:
            zeros = torch.zeros(half, device=inputs["input_ids"].device)
            inputs["ref_chosen_logps"] = inputs["ref_rejected_logps"] = zeros
        self._outputs.clear()
        result = super()._compute_loss(model, inputs, return_outputs)
        preference, model_outputs = result if return_outputs else (result, None)
        output = self._outputs[0]  # of the policy; a second one is the reference's

        sft = self._divide(-output.text_log_probs[:half].sum(), 1, inputs)
        grounding, consistency = self._evidence_losses(output, inputs, rows=half)
        loss = (
            args.preference_coef * preference
            + args.sft_coef * sft
            + args.evidence_coef * grounding
            + self._consistency_weight() * consistency
        )
        if self._has_spans:
            span, divergence = self._span_losses(output, inputs, rows=half)
            loss = loss + args.span_coef * span + args.kl_coef * divergence
            self._log_metric("loss/span", span)
            self._log_metric("loss/kl", divergence)
        self._log_metric("loss/preference", preference)
        self._log_metric("loss/sft", sft)
        self._log_metric("loss/grounding", grounding)
        self._log_metric("loss/consistency", consistency)
        chosen, rejected = output.grounding_log_probs.chunk(2)
        self._log_metric("grounding_logps/chosen", chosen.mean())
        self._log_metric("grounding_logps/rejected", rejected.mean())
        if factors is not None:
            self._log_factors(inputs, output, factors)
        self._outputs.clear()
        self._videos.clear()
        return (loss, model_outputs) if return_outputs else loss

    @torch.no_grad()
    def _log_factors(self, inputs: dict, output: EvidenceFusedOutput, factors: list[str]) -> None:
        """Margin of log π between chosen and rejected, and how often it is positive, for each factor of the batch."""
        chosen, rejected = output.log_probs.sum(-1).chunk(2)
        if self.precompute_ref_logps:
            reference = inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"]
        else:
            ref_chosen, ref_rejected = self._outputs[1].log_probs.sum(-1).chunk(2)
            reference = ref_chosen - ref_rejected
        margins = (chosen - rejected - reference).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        for factor, margin in gather_object(list(zip(factors, margins, strict=True))):
            metrics[f"margins/{factor}"].append(margin)
            metrics[f"accuracies/{factor}"].append(float(margin > 0))


def disable_attention_dropout(model: torch.nn.Module) -> None:
    """
    TRL's `disable_dropout` reaches dropout layers only. The attention layers of transformers keep their rate as a
    number, and the Q-Former's is .1: the two responses of a pair would see differently noised frames.
    """
    for module in model.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.0


def _copy_trainable_tokens(model: PeftModel) -> None:
    """
    TRL copies the adapter `default` to `ref` by names that contain ".default."; the rows of trainable tokens end with
    ".default" and would keep their untrained values, so that the reference differs from the policy at step 0.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(".default"):
            model.get_parameter(name.removesuffix("default") + "ref").data.copy_(parameter.data)
