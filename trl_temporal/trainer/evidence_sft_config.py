# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
from dataclasses import dataclass

from trl import SFTConfig

from .evidence_config import EvidenceConfigMixin

EVIDENCE_SFT_PRESETS = {
    # The equations of the paper.
    "paper": {
        "evidence_coef": 1.0,
        "consistency_coef": 1.0,
        "consistency_ramp_start": 0.0,
        "consistency_ramp_end": 0.0,
        "grounding_target": "hard",
    },
    # What the released code computes.
    "d2vlm-release": {
        "evidence_coef": 10.0,
        "consistency_coef": 10.0,
        "consistency_ramp_start": 0.0,
        "consistency_ramp_end": 0.0,
        "grounding_target": "soft",
        "soft_target_base": 2.0,
        "release_quirks": True,
    },
}


@dataclass
class EvidenceSFTConfig(EvidenceConfigMixin, SFTConfig):
    r"""
    Configuration class for the [`EvidenceSFTTrainer`].

    This class includes only the parameters that are specific to training with evidence. For a full list of training
    arguments, please refer to the [`~trl.SFTConfig`] documentation.

    Parameters:
        > Parameters that control the model

        freeze_vision_tower (`bool`, *optional*, defaults to `True`):
            Do not train the vision tower, as in the paper. Set it to `False` for a model from scratch.

        > Parameters that control the training

        evidence_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the grounding loss L_gnd (Eq. 3 of the D2VLM paper).
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
            Build batches as the released code does where that is a fault: texts before the video are padded
            inside the row; spans outside the video are moved into it in silence. Part of the preset
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
    >>> from trl_temporal import EvidenceSFTConfig
    >>> EvidenceSFTConfig.from_preset("d2vlm-release", output_dir="out", bf16=False).evidence_coef
    10.0
    ```
    """

    _presets = EVIDENCE_SFT_PRESETS

    def __post_init__(self):
        super().__post_init__()
        self._check_evidence_fields()
