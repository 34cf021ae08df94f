# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import copy
import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

from ..data.feature_key import vision_part
from ..data.schema import validate_dataset
from ..hub.card import FOLDER, write_plain_card
from ..hub.merge import merge_model
from ..models.d2vlm.configuration_d2vlm import BACKBONES
from .evidence_sft_trainer import EvidenceSFTTrainer, load_processor
from .fpo_trainer import FPOTrainer
from .shared_videos import vision_tower
from .temple_config import SFT_LORA, TempleConfig
from .temple_run import RunFolder, StageLogCallback, hash_rows, run_settings, say_base

logger = logging.get_logger(__name__)


@dataclass
class Stage:
    """
    A stage of a curriculum.

    Args:
        name (`str`):
            Its folder within that of the run.
        keep_ratio (`int`, *optional*):
            r of its pairs; `None` for SFT.
        rows (`datasets.Dataset`):
            What it is trained on.
    """

    name: str
    keep_ratio: int | None
    rows: datasets.Dataset


class TempleTrainer:
    r"""
    Trainer for the curriculum of [TEMPLE](https://huggingface.co/papers/2503.16929): DPO on perturbed descriptions,
    stage by stage from easy to hard, then SFT, as one run that can be resumed.

    Each stage is a [`FPOTrainer`] or an [`EvidenceSFTTrainer`] of its own, with a fresh optimizer and schedule, in its
    own folder of the run. A stage starts from the model that `model` names and the adapters of the finished stages,
    merged into it in memory one after another: so a resumed run goes on from exactly what the unbroken one would have,
    and no stage writes a whole model. Training logs to one `log.jsonl` in `output_dir`, with the steps counted over
    all stages, and the merged model is saved to `output_dir` at the end: as large as the model was, beside some
    adapters. Without `peft_config` each stage has a whole model in its folder.

    The adapter in the folder of a stage goes onto the model with the earlier ones merged (its `finished.json` lists
    them), not onto the base alone.

    Args:
        model (`str` or `Callable` or `PreTrainedModel`):
            What training starts from: a folder or a name on the Hub, a function without arguments that loads it, or
            the model itself, of which a copy is then kept in memory. It is loaded once for every stage, by a
            function once more, to compare a resumed run with what it began from.
        args ([`TempleConfig`]):
            Configuration.
        train_dataset (`datasets.Dataset`):
            Pairs of all stages, with a column `keep_ratio`, e.g. of
            [`~trl_temporal.synthesis.temple.temple_pairs`].
        sft_dataset (`datasets.Dataset`, *optional*):
            Rows of the SFT stage.
        processing_class (`ProcessorMixin`, *optional*):
            Defaults to the one saved with the model.
        peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA of each DPO stage; that of SFT differs from it as `then_sft` says.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            Pairs to evaluate on during the DPO stages.
        sft_eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            Rows to evaluate on during SFT, which goes without evaluation otherwise.
        callbacks (`list[TrainerCallback]`, *optional*):
            Of every stage's trainer.

    Attributes:
        stages (`list[Stage]`):
            The stages in order, with their rows.
        model (`PreTrainedModel`):
            The finished model, after [`TempleTrainer.train`].

    Raises:
        ValueError: before any training, if a stage has no rows, or something does not fit together; it names the stage
            and the mend.
        RowError: likewise, if a row is invalid. Videos are looked at when their stage begins.

    Example:

    ```python
    >>> from trl_temporal import TempleConfig, TempleTrainer

    >>> trainer = TempleTrainer(
    ...     "Qwen/Qwen2.5-VL-7B-Instruct",
    ...     args=TempleConfig("out", then_sft={}),
    ...     train_dataset=pairs,
    ...     sft_dataset=rows,
    ...     peft_config=lora,
    ... )  # doctest: +SKIP
    >>> trainer.train(resume_from_checkpoint="last")  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        model: str | Callable[[], PreTrainedModel] | PreTrainedModel,
        args: TempleConfig | None = None,
        train_dataset: datasets.Dataset | None = None,
        sft_dataset: datasets.Dataset | None = None,
        processing_class=None,
        peft_config: LoraConfig | None = None,
        eval_dataset=None,
        sft_eval_dataset=None,
        callbacks: list | None = None,
    ):
        self.args = args = TempleConfig("TEMPLE") if args is None else args
        if peft_config is not None and not isinstance(peft_config, LoraConfig):
            raise ValueError(f"`peft_config` must be a LoraConfig, which can be merged; got {type(peft_config)}.")
        if peft_config is not None and (
            peft_config.target_modules is None or str(peft_config.target_modules).lower() == "all-linear"
        ):
            raise ValueError(
                f"`target_modules` of `peft_config` is {peft_config.target_modules!r}, from which the "
                "LoRA of SFT cannot be told. Give names or a pattern (`lora_target_modules` in a recipe), such as "
                r"'.*language_model.*\.(q|k|v|o|gate|up|down)_proj'."
            )
        _refuse_adapter(model)
        if args.push_to_hub:
            raise ValueError(
                "`push_to_hub` would upload every stage. Leave it out, and upload the finished model with "
                "`trl-temporal push`."
            )
        lora_keys = [name for name in args.then_sft or () if name in SFT_LORA]
        if peft_config is None and lora_keys:
            raise ValueError(f"`then_sft` has `{lora_keys[0]}`, but there is no LoRA: `peft_config` is not given.")
        self.stages = make_stages(args, train_dataset, sft_dataset)
        self._model = model
        self.peft_config = peft_config
        self.eval_dataset, self.sft_eval_dataset = eval_dataset, sft_eval_dataset
        self.callbacks = callbacks or []
        if processing_class is None and not isinstance(model, str | torch.nn.Module):
            raise ValueError("`model` is a function, which does not tell the processor: pass `processing_class`.")
        self.processing_class = processing_class or load_processor(model, args)
        self.run = RunFolder(args.output_dir)
        self.model: PreTrainedModel | None = None
        for stage in self.stages:  # what is wrong with the configuration of a later stage shows now
            self._config(stage)

    def train(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, dict[str, float]]:
        r"""
        Trains all stages that are not finished, and saves the model.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                `True` or `"last"` to go on with the run in `output_dir`, from the start if there is none: finished
                stages are passed over, and the one that was running goes on from its last whole checkpoint. Defaults
                to `args.resume_from_checkpoint`.

        Returns:
            `dict[str, dict]`: the metrics of each stage's training, by its name.

        Raises:
            CheckpointError: if there is a run that is not to be resumed, or that was begun with other settings or
                rows; it names them.
            KeyboardInterrupt: after an orderly stop by a signal.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        if resume_from_checkpoint not in (None, False, True, "last", "True", "true"):
            raise ValueError(
                f"A curriculum is resumed as a whole: `resume_from_checkpoint` must be 'last', got "
                f"{resume_from_checkpoint!r}. Its folder is `output_dir`."
            )
        self.run.open(self._settings(), [stage.name for stage in self.stages], bool(resume_from_checkpoint))
        reporters = [callback() for callback in get_reporting_integration_callbacks(self.args.report_to)]
        for number, stage in enumerate(self.stages):
            if stage.name not in self.run.finished:
                self._train_stage(number, stage, reporters)
        self.model = self.load_model(len(self.stages))
        if PartialState().is_main_process:
            self.model.save_pretrained(self.args.output_dir)
            last = self.run.path / self.stages[-1].name
            AutoProcessor.from_pretrained(last).save_pretrained(self.args.output_dir)
            write_plain_card(self.args.output_dir, FOLDER, self.model.config._name_or_path or None)
        PartialState().wait_for_everyone()
        state = TrainerState(
            global_step=sum(mark["steps"] for mark in self.run.finished.values()),
            is_local_process_zero=PartialState().is_local_main_process,
            is_world_process_zero=PartialState().is_main_process,
        )
        of_run = {"model": self.model, "processing_class": self.processing_class}
        for reporter in reporters:
            reporter.on_train_end(self.args, state, TrainerControl(), **of_run)
        return {name: mark["metrics"] for name, mark in self.run.finished.items()}

    def load_model(self, num_stages: int) -> PreTrainedModel:
        r"""
        Loads the model as it was after the first stages, e.g. to evaluate it in between.

        Args:
            num_stages (`int`):
                How many stages, all of them finished; 0 for what training started from.

        Returns:
            `PreTrainedModel`: with their adapters merged.
        """
        # Adapters are merged into whole weights; DeepSpeed shards them when training begins.
        unset_hf_deepspeed_config()
        set_seed(self.args.seed)  # of what is new in a model, such as evidence tokens
        if isinstance(self._model, str):
            options = {"dtype": torch.float32, "trust_remote_code": self.args.trust_remote_code}
            options |= self.args.model_init_kwargs or {}
            model = AutoModelForImageTextToText.from_pretrained(self._model, **options)
        else:
            model = copy.deepcopy(self._model) if isinstance(self._model, torch.nn.Module) else self._model()
        if self.peft_config is None and num_stages > 0:
            before, attention = self.run.path / self.stages[num_stages - 1].name, model.config._attn_implementation
            return type(model).from_pretrained(before, dtype=model.dtype, attn_implementation=attention)
        for stage in self._merged_before(num_stages) if self.peft_config is not None else ():
            model = merge_model(PeftModel.from_pretrained(model, self.run.path / stage.name))
        return model

    @property
    def log_history(self) -> list[dict[str, Any]]:
        """All that was logged, by all stages: `stage`, `step` over all of them, `stage_step` and the metrics."""
        return self.run.read_log()

    def _train_stage(self, number: int, stage: Stage, reporters: list[TrainerCallback]) -> None:
        logger.info(f"Stage {number + 1} of {len(self.stages)}, {stage.name}: {len(stage.rows)} rows")
        trainer = self._trainer(number, stage)
        first_step = sum(mark["steps"] for mark in self.run.finished.values())
        trainer.add_callback(StageLogCallback(self.run, self.args, reporters, stage.name, first_step))
        output = trainer.train(resume_from_checkpoint="last")
        trainer.save_model()
        merged = [] if self.peft_config is None else [before.name for before in self._merged_before(number)]
        if merged and PartialState().is_main_process:
            say_base(self.run.path / stage.name / "adapter_config.json", merged)
        mark = {"steps": trainer.state.global_step, "metrics": output.metrics, "merge_first": merged}
        self.run.finish(stage.name, mark)
        trainer.accelerator.free_memory()
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _trainer(self, number: int, stage: Stage) -> FPOTrainer | EvidenceSFTTrainer:
        """The trainer of a stage, its model being what the stages before have made of it."""
        model = self.load_model(number)
        set_seed(self.args.seed)  # of the new LoRA
        shared = {
            "processing_class": copy.deepcopy(self.processing_class),  # trainers write into it how videos are sampled
            "train_dataset": stage.rows,
            "callbacks": list(self.callbacks),
        }
        if stage.keep_ratio is None:
            shared["peft_config"] = self._sft_lora(model)
            return EvidenceSFTTrainer(model, self._config(stage), eval_dataset=self.sft_eval_dataset, **shared)
        reference = self._reference(number, model)
        shared["peft_config"] = copy.deepcopy(self.peft_config)
        trainer = FPOTrainer(model, reference, self._config(stage), eval_dataset=self.eval_dataset, **shared)
        if self.peft_config is not None and number > 0 and self._goes_on(number - 1):
            # Into a new adapter, so that switching adapters off gives the reference of the first stage.
            before = self.run.path / self.stages[number - 1].name
            set_peft_model_state_dict(trainer.model, load_peft_weights(before, device="cpu"))
        return trainer

    def _config(self, stage: Stage):
        settings = {
            "output_dir": str(self.run.path / stage.name),
            "report_to": "none",
            "resume_from_checkpoint": None,
        }
        if stage.keep_ratio is not None:
            return self.args.dpo_config(**settings)
        if self.sft_eval_dataset is None:
            settings |= {"eval_strategy": "no", "load_best_model_at_end": False}
        return self.args.sft_config(**settings)

    def _settings(self) -> dict[str, Any]:
        return run_settings(
            self.args,
            **self._start(),
            peft_config=None if self.peft_config is None else self.peft_config.to_dict(),
            rows={stage.name: hash_rows(stage.rows) for stage in self.stages},
        )

    def _start(self) -> dict[str, str]:
        """What training starts from. A function does not say, so it is called to see."""
        if isinstance(self._model, str):
            return {"model": self._model}
        model = self._model if isinstance(self._model, torch.nn.Module) else self.load_model(0)
        _refuse_adapter(model)
        name = model.config._name_or_path
        if not name and model.config.model_type == "d2vlm" and model.config.backbone_config is not None:
            name = model.config.backbone_config._name_or_path
        return {"model": name, "model_dtype": str(model.dtype)}

    # --- What a stage starts from ---

    def _goes_on(self, number: int) -> bool:
        """Whether the next stage trains this stage's adapter on, or keeps its reference."""
        two = self.stages[number : number + 2]
        return self.args.stage_reset == "continue" and len(two) == 2 and None not in [s.keep_ratio for s in two]

    def _merged_before(self, number: int) -> list[Stage]:
        """The stages whose adapters are in the weights that stage `number` starts from."""
        return [self.stages[i] for i in range(number) if not self._goes_on(i)]

    def _reference(self, number: int, model: PreTrainedModel) -> PreTrainedModel | None:
        """The reference of a DPO stage; none with LoRA, where it is the model without."""
        if self.args.reference_free or self.peft_config is not None:
            return None
        first = number
        while first > 0 and self._goes_on(first - 1):
            first -= 1
        return copy.deepcopy(model) if first == number else self.load_model(first)

    def _sft_lora(self, model: PreTrainedModel) -> LoraConfig | None:
        if self.peft_config is None:
            return None
        config = copy.deepcopy(self.peft_config)
        of_sft = self.args.then_sft
        config.r = of_sft.get("lora_r", config.r)
        config.lora_alpha = of_sft.get("lora_alpha", config.r)
        config.lora_dropout = of_sft.get("lora_dropout", config.lora_dropout)
        if "lora_target_modules" in of_sft:
            targets = of_sft["lora_target_modules"]
            config.target_modules = targets if isinstance(targets, str) else set(targets)
        elif not of_sft.get("freeze_vision_tower", False):
            config.target_modules = {
                name
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear) and check_target_module_exists(config, name)
            } | vision_linears(model)
        return config


def _refuse_adapter(model) -> None:
    if isinstance(model, PeftModel):
        raise ValueError(
            "`model` has an adapter already, and every stage makes its own. Merge it first, with `trl-temporal merge`."
        )


def make_stages(
    args: TempleConfig, train_dataset: datasets.Dataset | None, sft_dataset: datasets.Dataset | None
) -> list[Stage]:
    """
    The stages of a curriculum with their rows.

    Args:
        args ([`TempleConfig`]):
            Configuration.
        train_dataset (`datasets.Dataset`, *optional*):
            Pairs with a column `keep_ratio`.
        sft_dataset (`datasets.Dataset`, *optional*):
            Rows of SFT.

    Returns:
        `list[Stage]`

    Raises:
        ValueError: if a stage has no rows, or a pair does not say of which it is.
        RowError: if a row is invalid.
    """
    for name, dataset in (("train_dataset", train_dataset), ("sft_dataset", sft_dataset)):
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                f"`{name}` is a stream, and a curriculum counts the rows of its stages before it begins. Load it "
                "without streaming."
            )
    if (args.then_sft is None) != (sft_dataset is None):
        raise ValueError(
            "`sft_dataset` was given, but `then_sft` is None: set `then_sft={}` for an SFT stage."
            if args.then_sft is None
            else f"stage {next(n for n in args.stage_names if n.endswith('_sft'))!r} has no rows: give `sft_dataset`, "
            "or leave `then_sft` out."
        )
    if sft_dataset is not None and len(sft_dataset) == 0:
        stage = next(name for name in args.stage_names if name.endswith("_sft"))
        raise ValueError(f"stage {stage!r} has no rows: `sft_dataset` is empty. Fill it, or leave `then_sft` out.")
    ratios = _keep_ratios(train_dataset) if args.stages else []
    counts = Counter(ratios)
    found = ", ".join(f"{counts[ratio]} of {ratio}" for ratio in sorted(counts, reverse=True)) or "none"
    stages, of_dpo = [], iter(args.stages)
    for name in args.stage_names:
        if name.endswith("_sft"):
            stages.append(Stage(name, None, sft_dataset))
            continue
        ratio = next(of_dpo)
        if not counts[ratio]:
            raise ValueError(
                f"stage {name!r} has no pairs: none of the train dataset has `keep_ratio` {ratio}; there are {found}. "
                f"Leave {ratio} out of `stages`, or make such pairs."
            )
        rows = [index for index, value in enumerate(ratios) if value == ratio]
        stages.append(Stage(name, ratio, train_dataset.select(rows)))
    unused = {ratio: count for ratio, count in counts.items() if ratio not in args.stages}
    if unused:
        logger.warning(f"{sum(unused.values())} pairs are of no stage: `keep_ratio` {sorted(unused, reverse=True)}.")
    if args.on_bad_sample == "raise":
        for stage in stages:
            validate_dataset(stage.rows, "sft" if stage.keep_ratio is None else "preference")
    return stages


def _keep_ratios(dataset: datasets.Dataset | None) -> list[int]:
    if dataset is None or len(dataset) == 0:
        raise ValueError("`train_dataset` has no pairs, and the DPO stages need some.")
    if "keep_ratio" not in dataset.column_names:
        raise ValueError(
            f"`train_dataset` has no column 'keep_ratio' (it has {', '.join(dataset.column_names)}), which says to "
            "which stage a pair belongs. Make the pairs with `trl_temporal.synthesis.temple`, or add it."
        )
    ratios = dataset["keep_ratio"][:]
    missing = [index for index, ratio in enumerate(ratios) if ratio is None]
    if missing:
        name = dataset[missing[0]].get("id", missing[0])
        raise ValueError(
            f"row {name!r}, column 'keep_ratio': is empty, as in {len(missing)} of {len(ratios)} rows. It says to "
            "which stage a pair belongs; fill it in, or leave these rows out."
        )
    return ratios


def vision_linears(model: PreTrainedModel) -> set[str]:
    """
    Names of the linear layers of a model's vision tower, without those that lead to the language model.

    Args:
        model (`PreTrainedModel`):
            A D2VLM, or a video model of transformers; no `PeftModel`.

    Returns:
        `set[str]`
    """
    if model.config.model_type in (*BACKBONES, "d2vlm"):
        part, decoder = vision_part(model)
        tower = part if decoder is None else vision_tower(part)
    else:
        tower = vision_tower(model)
    inside = {id(module) for module in tower.modules() if isinstance(module, torch.nn.Linear)}
    # Qwen has what leads to the language model within its tower.
    return {name for name, module in model.named_modules() if id(module) in inside and "merger" not in name}
