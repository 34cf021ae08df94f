# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from .evidence_config import EvidenceConfigMixin
from .evidence_sft_config import EvidenceSFTConfig
from .fpo_config import FPOConfig

# The SFT stage has these settings of the curriculum, if `then_sft` does not say otherwise ...
SHARED_WITH_SFT = {entry.name for entry in (*fields(TrainingArguments), *fields(EvidenceConfigMixin))} | {
    "model_init_kwargs",
    "trust_remote_code",
}
# ... but for these, as in the released scripts.
SFT_DEFAULTS = {"learning_rate": 1e-4, "freeze_vision_tower": False}
# Keys of `then_sft` that are not of the trainer but of its new adapter.
SFT_LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
}
# The curriculum decides these itself.
NOT_OF_SFT = ("output_dir", "resume_from_checkpoint", "report_to", "deepspeed", "fsdp", "fsdp_config")


@dataclass
class TempleConfig(FPOConfig):
    r"""
    Configuration class for the [`TempleTrainer`].

    This class includes only the parameters that are specific to the curriculum, and those whose defaults differ. All
    others are those of [`FPOConfig`] and hold for every stage: `max_steps`, for example, is that of each stage.

    Parameters:
        > Parameters that control the curriculum

        stages (`list[int]`, *optional*, defaults to `[16, 8, 4, 2]`):
            The `keep_ratio` r of the pairs of each DPO stage, in order: 16 is the easiest. Any list, as `[8]`,
            `[16, 4]` or `[2, 4, 8, 16]`; `[]` leaves SFT alone.
        stage_epochs (`float`, *optional*, defaults to `1.0`):
            Epochs of each DPO stage over its own pairs.
        stage_reset (`str`, *optional*, defaults to `"merge"`):
            What happens between DPO stages. `"merge"`: the LoRA is merged into the weights, a new one starts, and the
            reference is the merged model, as in the released scripts. `"continue"`: the same LoRA is trained on, and
            the reference stays where the first DPO stage began. Without LoRA it is the reference alone that differs.
            The optimizer and the learning-rate schedule start anew either way.
        order (`str`, *optional*, defaults to `"dpo_then_sft"`):
            `"sft_then_dpo"` puts the SFT stage first.
        then_sft (`dict` or `str`, *optional*):
            Fields of [`EvidenceSFTConfig`] that differ in the SFT stage, `{}` for its defaults; a JSON string on the
            command line. `None` leaves the stage out. It has the settings of the curriculum but for `learning_rate`
            (1e-4) and `freeze_vision_tower` (`False`), and a new LoRA, of which `lora_r`, `lora_alpha` (defaults to
            r), `lora_dropout` and `lora_target_modules` can be given; with an unfrozen vision tower and no
            `lora_target_modules`, all its linear layers but those of the aligner get a LoRA too.

        > Parameters with other defaults than in [`FPOConfig`]

        learning_rate (`float`, *optional*, defaults to `5e-6`):
            Peak learning rate of each DPO stage.
        warmup_steps (`float`, *optional*, defaults to `0.05`):
            Share of each stage's steps in which the learning rate rises, or their number.
        num_train_epochs (`float`, *optional*, defaults to `1.0`):
            Not to be set: `stage_epochs` is for DPO, and `then_sft` may have its own.
        reference_free (`bool`, *optional*, defaults to `False`):
            Compare with a reference model, as DPO does.
        grounding_coef (`float`, *optional*, defaults to `0.0`):
            Descriptions have no `<evi>` to ground. `evidence_coef` and `consistency_coef` are 0 too, also in SFT; for
            a D2VLM on rows with spans, give them in `then_sft`.

    Example:

    ```python
    >>> from trl_temporal import TempleConfig
    >>> config = TempleConfig("out", stages=[16, 4], then_sft={"learning_rate": 2e-5}, bf16=False)
    >>> config.stage_names
    ['1_dpo_r16', '2_dpo_r4', '3_sft']
    ```
    """

    _VALID_DICT_FIELDS = FPOConfig._VALID_DICT_FIELDS + ["then_sft"]
    _presets = {}  # the numbers of the released scripts are in recipes/temple/qwen2_5_vl_7b.yaml

    stages: list[int] = field(
        default_factory=lambda: [16, 8, 4, 2],
        metadata={"help": "`keep_ratio` of the pairs of each DPO stage, in order; 16 is the easiest."},
    )
    stage_epochs: float = field(default=1.0, metadata={"help": "Epochs of each DPO stage over its own pairs."})
    stage_reset: str = field(
        default="merge",
        metadata={
            "help": "Between DPO stages: 'merge' the LoRA and start a new one, with the merged model as reference, or "
            "'continue' with the same LoRA and reference.",
            "choices": ["merge", "continue"],
        },
    )
    order: str = field(
        default="dpo_then_sft",
        metadata={"help": "Whether SFT is the last stage or the first.", "choices": ["dpo_then_sft", "sft_then_dpo"]},
    )
    then_sft: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Fields of EvidenceSFTConfig that differ in the SFT stage, as JSON; without, no SFT."},
    )
    learning_rate: float = field(default=5e-6, metadata={"help": "Peak learning rate of each DPO stage."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Share of each stage's steps, or their number."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Not to be set, see `stage_epochs`."})
    reference_free: bool = field(default=False, metadata={"help": "Compare without a reference model."})
    grounding_coef: float = field(default=0.0, metadata={"help": "Weight of log p_g in log π."})
    evidence_coef: float = field(default=0.0, metadata={"help": "Weight of the grounding loss L_gnd."})
    consistency_coef: float = field(default=0.0, metadata={"help": "Weight of the consistency loss L_cons."})

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (("stage_reset", ("merge", "continue")), ("order", ("dpo_then_sft", "sft_then_dpo"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.num_train_epochs != 1:
            raise ValueError(
                "`num_train_epochs` does not say of which stage. Set `stage_epochs` for the DPO stages, and "
                "`then_sft={'num_train_epochs': ...}` for SFT."
            )
        if self.stage_epochs <= 0:
            raise ValueError(f"`stage_epochs` must be above 0, got {self.stage_epochs}.")
        if not all(isinstance(ratio, int) and ratio >= 1 for ratio in self.stages):
            raise ValueError(f"`stages` must be a list of keep ratios such as [16, 8, 4, 2], got {self.stages!r}.")
        if not self.stages and self.then_sft is None:
            raise ValueError("There is no stage: `stages` is empty and `then_sft` is None.")
        if self.then_sft is not None:
            self._check_then_sft()

    def _check_then_sft(self):
        if not isinstance(self.then_sft, dict):
            raise ValueError(f"`then_sft` must be a dictionary, in JSON on the command line; got {self.then_sft!r}.")
        known = {entry.name for entry in fields(EvidenceSFTConfig) if entry.init} | SFT_LORA.keys()
        for name in self.then_sft:
            if name in NOT_OF_SFT or name not in known:
                reason = "is that of the whole run" if name in NOT_OF_SFT else "is no field of EvidenceSFTConfig"
                raise ValueError(f"`then_sft`: `{name}` {reason}. Remove it from there.")
        if self._of_sft()["feature_cache"] is not None and not self._of_sft()["freeze_vision_tower"]:
            raise ValueError(
                "`feature_cache` holds features of a frozen vision tower, and SFT trains it. Set `then_sft` to "
                "{'freeze_vision_tower': True}, or give it {'feature_cache': None}."
            )

    @property
    def stage_names(self) -> list[str]:
        """Folder of each stage within `output_dir`, in order."""
        methods = [f"dpo_r{ratio}" for ratio in self.stages]
        if self.then_sft is not None:
            methods.insert(len(methods) if self.order == "dpo_then_sft" else 0, "sft")
        return [f"{number}_{method}" for number, method in enumerate(methods, start=1)]

    def dpo_config(self, **changes) -> FPOConfig:
        """The configuration of a DPO stage; keyword arguments win."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(FPOConfig) if entry.init}
        return FPOConfig(**{**settings, "num_train_epochs": self.stage_epochs, **changes})

    def sft_config(self, **changes) -> EvidenceSFTConfig:
        """The configuration of the SFT stage; keyword arguments win."""
        settings = {name: value for name, value in self._of_sft().items() if name not in SFT_LORA}
        return EvidenceSFTConfig(**{**settings, **changes})

    def _of_sft(self) -> dict[str, Any]:
        names = [entry.name for entry in fields(self) if entry.init and entry.name in SHARED_WITH_SFT]
        return {**{name: getattr(self, name) for name in names}, **SFT_DEFAULTS, **self.then_sft}
