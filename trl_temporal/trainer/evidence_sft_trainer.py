# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import textwrap

import torch
from peft import PeftModel
from transformers import AutoProcessor
from trl import SFTTrainer

from ..data.chat_collator import ChatCollator
from ..data.collator import EvidenceCollator
from ..models.d2vlm.modeling_d2vlm import STAGE_EVIDENCE
from ..objects.collator import GroundedCollator
from .evidence_mixin import EvidenceTrainerMixin, frame_cache, hide_images, model_type_of
from .evidence_sft_config import EvidenceSFTConfig
from .frame_features import OBJECT_COLUMNS
from .fused_forward import EvidenceFusedOutput, add_evidence_head, add_text_head
from .sharding import adapting, check_processes
from .shared_videos import SharedVideos, video_parameters
from .span_forward import add_span_head

# Models with heads for grounding; others write times as text.
GROUNDED_MODELS = ("d2vlm", "grounded_videodit")


class EvidenceSFTTrainer(EvidenceTrainerMixin, SFTTrainer):
    r"""
    Trainer for supervised fine-tuning with evidence tokens: L = L_sft + L_gnd + L_cons (Eq. 2 of
    [D2VLM](https://huggingface.co/papers/2512.24097)).

    It is an [`~trl.SFTTrainer`] whose rows have a video and the spans that the `<evi>` tokens of the response refer
    to; all arguments are those of [`~trl.SFTTrainer`]. Every row and every video is checked before the first step.

    Args:
        model (`str` or [`D2VLMForConditionalGeneration`] or `PreTrainedModel` or `PeftModel`):
            Model to train. With `evidence_coef=0` and `consistency_coef=0` also any video model of transformers, on
            responses whose spans are written as seconds.
        args ([`EvidenceSFTConfig`]):
            Configuration.
        data_collator (`Callable`, *optional*):
            Defaults to [`~trl_temporal.data.collator.EvidenceCollator`] with a frame cache, for other models than a
            D2VLM to [`~trl_temporal.data.chat_collator.ChatCollator`].
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows with `videos`, `prompt`, `completion` and `spans` (`[start_s, end_s]` in seconds, one per event).
        processing_class (`ProcessorMixin`, *optional*):
            Defaults to the one saved with the model.
        **kwargs:
            As in [`~trl.SFTTrainer`]: `eval_dataset`, `callbacks`, `peft_config`, ...

    Raises:
        RowError: if a row is invalid; it names the row, the column and the mend.
        VideoError: if a video cannot be read.

    Example:

    ```python
    >>> from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer

    >>> trainer = EvidenceSFTTrainer(
    ...     model="examples/eventworld_tiny", args=EvidenceSFTConfig("out"), train_dataset=dataset
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    ```
    """

    _tag_names = ["trl", "trl_temporal", "sft", "d2vlm"]
    _name = "Evidence SFT"
    _paper = {
        "title": "Factorized Learning for Temporally Grounded Video-Language Models",
        "id": "2512.24097",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{d2vlm,
                title     = {{Factorized Learning for Temporally Grounded Video-Language Models}},
                author    = {Wenzheng Zeng and Difei Gao and Mike Zheng Shou and Hwee Tou Ng},
                year      = 2025,
                booktitle = {ICCV},
                url       = {https://huggingface.co/papers/2512.24097}
            }"""),
    }
    _row_kind = "sft"

    def __init__(self, model, args: EvidenceSFTConfig, data_collator=None, processing_class=None, **kwargs):
        check_processes(args)
        model_type = model_type_of(model, args)
        self._has_evidence, self._has_spans = model_type == "d2vlm", model_type == "grounded_videodit"
        if model_type not in GROUNDED_MODELS and (args.evidence_coef != 0 or args.consistency_coef != 0):
            raise ValueError(
                "`evidence_coef` and `consistency_coef` weight the evidence tokens of a D2VLM, and this model has "
                "none. Set both to 0 for fine-tuning on the words alone, in which spans are written as seconds."
            )
        if not self._has_evidence:
            self._tag_names = [tag for tag in self._tag_names if tag != "d2vlm"]
        if self._has_spans:
            self._tag_names = [*self._tag_names, "grounded-videodit"]
        processing_class = processing_class or load_processor(model, args)
        self.read_video = frame_cache(args, processing_class, model_type)
        if data_collator is None and self._has_evidence:
            data_collator = EvidenceCollator(
                processing_class,
                self.read_video,
                args.max_length,
                soft_targets=args.grounding_target == "soft",
                release_quirks=args.release_quirks,
            )
        elif data_collator is None and self._has_spans:
            data_collator = GroundedCollator(processing_class, max_length=args.max_length)
        elif data_collator is None:
            data_collator = ChatCollator(processing_class, self.read_video, args.max_length)
        is_peft = kwargs.get("peft_config") is not None or isinstance(model, PeftModel)
        with adapting(model, is_peft):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                processing_class=processing_class,
                **hide_images(kwargs),
            )
        # A loss that is counted over the whole step, also for models that would average it over each batch: TRL takes
        # theirs from the log-probabilities.
        self.model_accepts_loss_kwargs = True
        self._outputs: list[EvidenceFusedOutput] = []
        self._freeze_vision_tower()
        self._tell_collator()
        self._open_feature_cache()
        trained = any(parameter.requires_grad for parameter in video_parameters(self._base_model()).values())
        shared = {
            "prefix_sharing": False,
            "videos": SharedVideos(trained=trained, kept=False, blank=self._blank_video(trained)),
            "on_output": self._outputs.append,
        }
        if self._has_spans:
            add_span_head(
                self._base_model(),
                grounding_coef=0.0,
                soft_target_base=None,
                time_token_smoothing=args.time_token_smoothing,
                on_output=self._outputs.append,
            )
        elif self._has_evidence:
            add_evidence_head(self._base_model(), grounding_coef=0.0, soft_target_base=None, **shared)
        else:
            add_text_head(self._base_model(), span_coef=None, **shared)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [
            "id",
            "videos",
            "images",
            "prompt",
            "completion",
            "spans",
            "prompt_spans",
            "response_spans",
            *OBJECT_COLUMNS,
        ]

    def _count(self, batch: dict) -> torch.Tensor:
        tokens = (batch["labels"][:, 1:] != -100).sum().cpu()
        grounded = torch.tensor(0)
        if "span_frames" in batch:
            grounded = (batch["span_frames"][..., 0] >= 0).any(-1).sum().cpu()
        elif "evidence_stage" in batch:
            grounded = (batch["evidence_stage"] >= STAGE_EVIDENCE).any(-1).sum().cpu()
        return torch.stack([grounded, tokens])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._outputs.clear()
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, model_outputs = result if return_outputs else (result, None)
        output = self._outputs[0]
        grounding, consistency = self._evidence_losses(output, inputs, rows=len(inputs["input_ids"]))
        evidence = self.args.evidence_coef * grounding + self._consistency_weight() * consistency
        if self._has_spans:
            span, divergence = self._span_losses(output, inputs, rows=len(inputs["input_ids"]))
            evidence = evidence + self.args.span_coef * span + self.args.kl_coef * divergence
            self._log_metric("loss/span", span)
            self._log_metric("loss/kl", divergence)
        # With `num_items_in_batch`, TRL's loss is summed over the accumulated batches, not averaged.
        loss = loss + evidence / (1 if num_items_in_batch is None else self.current_gradient_accumulation_steps)
        self._log_metric("loss/sft", self._divide(-output.text_log_probs.sum(), 1, inputs))
        self._log_metric("loss/grounding", grounding)
        self._log_metric("loss/consistency", consistency)
        self._outputs.clear()
        return (loss, model_outputs) if return_outputs else loss


def load_processor(model, args):
    """The processor is needed before TRL's `__init__` would load it: its sampling decides how videos are read."""
    name = model if isinstance(model, str) else model.config._name_or_path
    if not name:
        raise ValueError(
            "The model was not loaded from a folder or the Hub, so its processor is not known: pass "
            "`processing_class`, for one of `from_backbone` that of `D2VLMBackboneProcessor.from_backbone`."
        )
    return AutoProcessor.from_pretrained(name, trust_remote_code=args.trust_remote_code)
