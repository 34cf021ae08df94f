# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
from dataclasses import dataclass, field

from transformers.utils import logging
from trl import DPOConfig

from .evidence_config import EvidenceConfigMixin
from .evidence_sft_config import EVIDENCE_SFT_PRESETS

logger = logging.get_logger(__name__)

FPO_PRESETS = {
    "paper": {**EVIDENCE_SFT_PRESETS["paper"], "beta": 1.0, "sft_coef": 0.0},
    "d2vlm-release": {**EVIDENCE_SFT_PRESETS["d2vlm-release"], "beta": 0.1, "sft_coef": 1.0},
}


@dataclass
class FPOConfig(EvidenceConfigMixin, DPOConfig):
    r"""
    Configuration class for the [`FPOTrainer`].

    This class includes only the parameters that are specific to FPO. For a full list of training arguments, please
    refer to the [`~trl.DPOConfig`] documentation. `beta`, `loss_type` and the other parameters of DPO keep their
    meaning, with log π as in Eq. 7.

    Parameters:
        > Parameters that control the model

        freeze_vision_tower (`bool`, *optional*, defaults to `True`):
            Do not train the vision tower, as in the paper. Set it to `False` for a model from scratch.

        > Parameters that control the preference loss

        reference_free (`bool`, *optional*, defaults to `True`):
            Compare log π of the policy alone (Eq. 4). `False` compares the log-ratios to a reference model, as in DPO.
        preference_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the preference loss.
        grounding_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the grounding log-probability log p_g in log π (Eq. 7); `0.0` is text-only preference.
        grounding_log_prob (`str`, *optional*, defaults to `"evidence"`):
            What log p_g is: `"evidence"`, of the frames of each `<evi>` of a D2VLM; `"span_tokens"`, of the tokens
            that write the spans, with a model that answers in seconds or time tokens. They then count
            `grounding_coef` times, and 1 is plain DPO.
        sft_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the negative log-likelihood of the chosen response. With `0.0` training collapses while the
            preference accuracy stays high.
        prefix_sharing (`bool`, *optional*, defaults to `True`):
            Run chosen and rejected behind one copy of their prompt. Models whose attention takes no 4-D mask, as flash
            attention, run two rows, and a warning says so.

        > Parameters that control the evidence losses (of the chosen response)

        evidence_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the grounding loss L_gnd (Eq. 3).
        consistency_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the consistency loss L_cons (Eq. 1).
        consistency_ramp_start (`float`, *optional*, defaults to `0.3`):
            Share of training before which L_cons has weight 0.
        consistency_ramp_end (`float`, *optional*, defaults to `0.6`):
            Share of training from which L_cons has its full weight; linear in between.
        grounding_target (`str`, *optional*, defaults to `"hard"`):
            `"hard"`: 1 for the frames of a span, 0 for the others. `"soft"`: `2 ** -distance` (released code).
        soft_target_base (`float`, *optional*, defaults to `2.0`):
            What soft targets are divided by with every frame of distance to the span.
        span_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the loss of the start/end head of a Grounded-VideoDiT.
        span_label_sigma (`float`, *optional*, defaults to `0.0`):
            Spread of its labels in frames; 0 is one frame.
        kl_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the KL regularisation of a Grounded-VideoDiT with `use_kl` (Eq. 20 of its paper).
        time_token_smoothing (`float`, *optional*, defaults to `0.0`):
            Target of each next time token of a Grounded-VideoDiT, as a share of the one before.

        > Parameters that control the data

        fps (`float`, *optional*):
            Frames per second of video. Defaults to the processor's (D2VLM), else to 1.
        max_frames (`int`, *optional*):
            Longer videos are sampled more thinly. Defaults to the processor's (D2VLM), else to 128.
        num_frames (`int`, *optional*):
            Exactly this many frames of every video, instead of `fps` and `max_frames`: the processors of
            LLaVA-OneVision, SmolVLM and InternVL stack the videos of a batch.
        release_quirks (`bool`, *optional*, defaults to `False`):
            Build batches as the released code does where that is a fault: pairs without evidence are compared without
            their ends; spans outside the video are moved into it in silence. Part of the preset
            `"d2vlm-release"`.
        max_length (`int`, *optional*):
            Longer sequences are an error that states the numbers; nothing is truncated.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            What to do with a row that is invalid or whose video cannot be read: `"raise"`, or `"skip"`, which counts,
            warns and lists it in `skipped_<split>.jsonl` in the output folder.
        video_manifest (`str`, *optional*):
            Manifest of `trl-temporal data scan`. It says which videos can be used; without it every video is read
            before the first step to see.
        cache_frames (`bool`, *optional*, defaults to `True`):
            Keep decoded frames on disk, so that no video is decoded twice.
        frame_cache_dir (`str`, *optional*):
            Folder of the decoded frames. Defaults to `trl_temporal/frames` in the Hugging Face cache.
        feature_cache (`str`, *optional*):
            Folder of `trl-temporal cache build`. Videos are then neither decoded nor encoded; it is an error if the
            vision tower is trained, or if the features are of another model, processor or sampling.
        group_by_video (`bool`, *optional*, defaults to `True`):
            Shuffle videos instead of rows, so that rows that share a video meet in a batch and it is encoded once.
        video_backend (`str`, *optional*, defaults to `"pyav"`):
            Decoder: `"pyav"`, `"torchcodec"` or `"decord"`.

    Example:

    ```python
    >>> from trl_temporal import FPOConfig
    >>> FPOConfig.from_preset("d2vlm-release", output_dir="out", bf16=False).grounding_target
    'soft'
    ```
    """

    reference_free: bool = field(
        default=True,
        metadata={"help": "Compare log π of the policy alone (Eq. 4), without a reference model."},
    )
    preference_coef: float = field(
        default=1.0,
        metadata={"help": "Weight of the preference loss."},
    )
    grounding_coef: float = field(
        default=1.0,
        metadata={"help": "Weight of the grounding log-probability log p_g in log π (Eq. 7)."},
    )
    grounding_log_prob: str = field(
        default="evidence",
        metadata={
            "help": "What log p_g is: 'evidence' (of the frames of each `<evi>`), or 'span_tokens' (of the tokens "
            "that write the spans, with a model that answers in seconds or time tokens).",
            "choices": ["evidence", "span_tokens"],
        },
    )
    sft_coef: float = field(
        default=1.0,
        metadata={"help": "Weight of the negative log-likelihood of the chosen response."},
    )
    prefix_sharing: bool = field(
        default=True,
        metadata={"help": "Run chosen and rejected behind one copy of their prompt."},
    )

    _presets = FPO_PRESETS

    def __post_init__(self):
        super().__post_init__()
        self._check_evidence_fields()
        if self.grounding_log_prob not in ("evidence", "span_tokens"):
            raise ValueError(
                f"`grounding_log_prob` must be 'evidence' or 'span_tokens', got {self.grounding_log_prob!r}."
            )
        if self.on_bad_sample == "skip" and "sft" in self.loss_type:
            raise ValueError(
                "`on_bad_sample='skip'` leaves pairs without tokens, of which TRL's `loss_type` 'sft' takes a mean. "
                "Leave 'sft' out of `loss_type` and set `sft_coef`, which is the same term."
            )
        if self.sft_coef == 0:
            logger.warning(
                "`sft_coef=0`: in every measured run the model collapsed without the SFT term while the preference "
                "accuracy stayed near 1. Watch generations, not that accuracy."
            )
        if self.reference_free and self.sync_ref_model:
            raise ValueError("`sync_ref_model=True` needs a reference model: set `reference_free=False`.")
