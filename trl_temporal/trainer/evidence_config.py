# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass
class EvidenceConfigMixin:
    """Fields that [`EvidenceSFTConfig`] and [`FPOConfig`] share; described there."""

    _presets: ClassVar[dict[str, dict]]

    max_length: int | None = field(
        default=None,
        metadata={"help": "Longer sequences are an error (nothing is truncated). `None` for no limit."},
    )
    remove_unused_columns: bool = field(
        default=True,
        metadata={"help": "Drop the columns that training does not read."},
    )
    freeze_vision_tower: bool = field(
        default=True,
        metadata={"help": "Do not train the vision tower, as in the paper."},
    )
    fps: float | None = field(
        default=None,
        metadata={"help": "Frames per second of video. Defaults to the processor's (D2VLM), else to 1."},
    )
    max_frames: int | None = field(
        default=None,
        metadata={"help": "Longer videos are sampled more thinly. Defaults to the processor's (D2VLM), else to 128."},
    )
    num_frames: int | None = field(
        default=None,
        metadata={
            "help": "Exactly this many frames of every video, for processors that stack videos. Instead of `fps` and "
            "`max_frames`."
        },
    )
    evidence_coef: float = field(
        default=1.0,
        metadata={"help": "Weight of the grounding loss L_gnd (Eq. 3)."},
    )
    consistency_coef: float = field(
        default=0.1,
        metadata={"help": "Weight of the consistency loss L_cons (Eq. 1)."},
    )
    consistency_ramp_start: float = field(
        default=0.3,
        metadata={"help": "Share of training before which L_cons has weight 0."},
    )
    consistency_ramp_end: float = field(
        default=0.6,
        metadata={"help": "Share of training from which L_cons has its full weight."},
    )
    grounding_target: str = field(
        default="hard",
        metadata={
            "help": "Frame targets: 'hard' (1 inside the span, 0 outside) or 'soft' (2 ** -distance, released code).",
            "choices": ["hard", "soft"],
        },
    )
    soft_target_base: float = field(
        default=2.0,
        metadata={"help": "What soft targets are divided by with every frame of distance to the span."},
    )
    span_coef: float = field(
        default=1.0,
        metadata={"help": "Weight of the loss of the start/end head (Grounded-VideoDiT)."},
    )
    span_label_sigma: float = field(
        default=0.0,
        metadata={"help": "Spread of the labels of the start/end head in frames; 0 is one frame."},
    )
    kl_coef: float = field(
        default=0.1,
        metadata={"help": "Weight of the KL regularisation (Grounded-VideoDiT with `use_kl`)."},
    )
    time_token_smoothing: float = field(
        default=0.0,
        metadata={"help": "Target of each next time token, as a share of the one before (Grounded-VideoDiT)."},
    )
    release_quirks: bool = field(
        default=False,
        metadata={"help": "Build batches as the released code does where that is a fault (see the docs on presets)."},
    )
    on_bad_sample: str = field(
        default="raise",
        metadata={
            "help": "What to do with a row that is invalid or whose video cannot be read: 'raise', or 'skip', which "
            "counts, warns and lists it in `skipped_<split>.jsonl` in the output folder.",
            "choices": ["raise", "skip"],
        },
    )
    video_manifest: str | None = field(
        default=None,
        metadata={
            "help": "Manifest of `trl-temporal data scan`: says which videos can be used, so none is read to see."
        },
    )
    cache_frames: bool = field(
        default=True,
        metadata={"help": "Keep decoded frames on disk, so that no video is decoded twice."},
    )
    frame_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the decoded frames. Defaults to `trl_temporal/frames` in the HF cache."},
    )
    feature_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder of `trl-temporal cache build`: features of a frozen vision tower instead of videos."
        },
    )
    group_by_video: bool = field(
        default=True,
        metadata={"help": "Shuffle videos instead of rows, so that rows that share a video meet in a batch."},
    )
    video_backend: str = field(
        default="pyav",
        metadata={"help": "Decoder: 'pyav', 'torchcodec' or 'decord'.", "choices": ["pyav", "torchcodec", "decord"]},
    )

    @classmethod
    def from_preset(cls, preset: str, **kwargs):
        """The settings of `"paper"` or `"d2vlm-release"`; keyword arguments win."""
        if preset not in cls._presets:
            raise ValueError(f"There is no preset {preset!r}; the presets are {', '.join(cls._presets)}.")
        return cls(**{**cls._presets[preset], **kwargs})

    def _check_evidence_fields(self):
        choices = {
            "grounding_target": ("hard", "soft"),
            "on_bad_sample": ("raise", "skip"),
            "video_backend": ("pyav", "torchcodec", "decord"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.num_frames is not None and (self.fps is not None or self.max_frames is not None):
            raise ValueError("Give either `num_frames`, which is how many in all, or `fps` and `max_frames`.")
        if self.span_label_sigma < 0 or not 0 <= self.time_token_smoothing < 1:
            raise ValueError(
                "`span_label_sigma` is at least 0, and `time_token_smoothing` at least 0 and below 1; got "
                f"{self.span_label_sigma} and {self.time_token_smoothing}."
            )
        if self.soft_target_base <= 1:
            raise ValueError(
                f"`soft_target_base` must be above 1, or targets would not fall with distance; got "
                f"{self.soft_target_base}."
            )
        if self.fp16 and self.device.type == "cpu":
            raise ValueError(
                "`fp16=True` needs a GPU, but there is none or `use_cpu=True`; on the CPU it would be ignored. Set "
                "`fp16=False`, or `bf16=True` with `use_cpu=True`."
            )
        if not 0 <= self.consistency_ramp_start <= self.consistency_ramp_end <= 1:
            raise ValueError(
                "`consistency_ramp_start` and `consistency_ramp_end` are shares of training with 0 <= start <= end <= "
                f"1, got {self.consistency_ramp_start} and {self.consistency_ramp_end}."
            )
