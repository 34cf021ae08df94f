# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The curriculum: its stages, what each starts from, and that a killed run goes on as if it had not been."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights
from transformers import TrainerCallback

from tests import families
from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor, TempleConfig, TempleTrainer
from trl_temporal.data.event_world import build_event_world
from trl_temporal.data.schema import RowError
from trl_temporal.hub.merge import merge_model
from trl_temporal.synthesis.temple_folder import event_world_pairs
from trl_temporal.trainer import temple_trainer
from trl_temporal.trainer.checkpoints import CheckpointError
from trl_temporal.trainer.temple_trainer import vision_linears

ROOT = Path(__file__).parents[1]
FAST = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
}
LAYERS = r".*language_model.*\.(q|k|v|o)_proj$"


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": LAYERS, **settings})


def lora_and_more(tiny_dir) -> LoraConfig:
    """As `lora_config` makes it of a recipe for a D2VLM."""
    processor = D2VLMProcessor.from_pretrained(tiny_dir)
    tokens = {"embed_tokens": [processor.evidence_token_id, processor.evidence_end_token_id]}
    return lora(modules_to_save=["evi_head", "frame_head"], trainable_token_indices=tokens)


@pytest.fixture(scope="module")
def pairs(event_world):
    return event_world_pairs(event_world["train"])[0]


@pytest.fixture
def make(tiny_dir, pairs, event_world, tmp_path, tmp_path_factory):
    """Makes a trainer of a tiny D2VLM."""

    def make(model=str(tiny_dir), train_dataset=pairs, peft_config="lora", processor=None, **settings):
        settings = {
            **FAST,
            "max_steps": 2,
            "frame_cache_dir": str(tmp_path_factory.getbasetemp() / "frames"),
        } | settings
        sft_dataset = settings.pop(
            "sft_dataset", event_world["train"] if settings.get("then_sft") is not None else None
        )
        return TempleTrainer(
            model,
            TempleConfig(str(tmp_path / "run"), **settings),
            train_dataset=train_dataset,
            sft_dataset=sft_dataset,
            processing_class=processor or D2VLMProcessor.from_pretrained(tiny_dir),
            peft_config=lora() if peft_config == "lora" else peft_config,
        )

    return make


def first_lines(trainer) -> list[dict]:
    """What each stage logged first."""
    return [line for line in trainer.log_history if line["stage_step"] == 1]


def assert_same_weights(model, expected):
    for (name, actual), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual, wanted, msg=name)


def base_of(tiny_dir):
    return D2VLMForConditionalGeneration.from_pretrained(tiny_dir, dtype=torch.float32)


# --- The stages ---


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["1_dpo_r16", "2_dpo_r8", "3_dpo_r4", "4_dpo_r2"]),
        ({"then_sft": {}}, ["1_dpo_r16", "2_dpo_r8", "3_dpo_r4", "4_dpo_r2", "5_sft"]),
        ({"stages": [8], "then_sft": {}, "order": "sft_then_dpo"}, ["1_sft", "2_dpo_r8"]),
        ({"stages": [2, 4, 8, 16]}, ["1_dpo_r2", "2_dpo_r4", "3_dpo_r8", "4_dpo_r16"]),
        ({"stages": [], "then_sft": '{"max_steps": 3}'}, ["1_sft"]),
    ],
)
def test_any_list_is_a_curriculum(settings, names):
    assert TempleConfig("out", bf16=False, **settings).stage_names == names


def test_the_defaults_are_those_of_the_released_scripts():
    config = TempleConfig("out", bf16=False, stage_epochs=2, then_sft={"weight_decay": 0.1})
    dpo, sft = config.dpo_config(), config.sft_config()
    assert (dpo.learning_rate, dpo.warmup_steps, dpo.beta, dpo.sft_coef) == (5e-6, 0.05, 0.1, 1.0)
    assert (dpo.num_train_epochs, dpo.reference_free, dpo.freeze_vision_tower) == (2, False, True)
    assert (dpo.loss_type, dpo.grounding_coef, dpo.evidence_coef) == (["sigmoid"], 0, 0)
    assert (sft.learning_rate, sft.warmup_steps, sft.num_train_epochs) == (1e-4, 0.05, 1)
    assert (sft.freeze_vision_tower, sft.evidence_coef, sft.weight_decay, dpo.weight_decay) == (False, 0, 0.1, 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stages": [16, 0]}, "`stages` must be a list of keep ratios"),
        ({"stages": []}, "There is no stage"),
        ({"stage_reset": "restart"}, "`stage_reset` must be one of merge, continue"),
        ({"order": "sft"}, "`order` must be one of dpo_then_sft"),
        ({"num_train_epochs": 2}, "Set `stage_epochs`"),
        ({"stage_epochs": 0}, "`stage_epochs` must be above 0"),
        ({"then_sft": {"lerning_rate": 1}}, "`lerning_rate` is no field of EvidenceSFTConfig"),
        ({"then_sft": {"output_dir": "x"}}, "`output_dir` is that of the whole run"),
        ({"then_sft": {}, "feature_cache": "x"}, "SFT trains it. Set `then_sft`"),
    ],
)
def test_a_configuration_that_is_none_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TempleConfig("out", bf16=False, **settings)


def test_what_is_missing_is_said_before_any_training(make, pairs, event_world, tiny_dir, tmp_path):
    no_eights = pairs.filter(lambda row: row["keep_ratio"] != 8)
    empty = pairs.map(lambda row, index: {"keep_ratio": None if index == 1 else row["keep_ratio"]}, with_indices=True)
    bad = pairs.map(lambda row, index: {"chosen": [] if index == 3 else row["chosen"]}, with_indices=True)
    adapted = get_peft_model(base_of(tiny_dir), lora())
    cases = [
        (
            {"train_dataset": no_eights},
            "stage '2_dpo_r8' has no pairs.*there are 9 of 16, 9 of 4, .* of 2. Leave 8 out",
        ),
        ({"train_dataset": pairs.remove_columns("keep_ratio")}, "no column 'keep_ratio'"),
        ({"train_dataset": empty}, "row 'temple-event_world-.*column 'keep_ratio': is empty, as in 1 of"),
        ({"train_dataset": None}, "`train_dataset` has no pairs"),
        ({"train_dataset": pairs.to_iterable_dataset()}, "is a stream"),
        ({"then_sft": {}, "sft_dataset": None}, "stage '5_sft' has no rows: give `sft_dataset`"),
        ({"then_sft": {}, "sft_dataset": event_world["train"].select([])}, "stage '5_sft' has no rows: .* is empty"),
        ({"sft_dataset": event_world["train"]}, "set `then_sft={}`"),
        ({"peft_config": lora(target_modules="all-linear")}, r"is 'all-linear', .* such as '\.\*language_model"),
        ({"peft_config": lora(target_modules=None)}, "`target_modules` of `peft_config` is None"),
        ({"then_sft": {"lora_r": 2}, "peft_config": None}, "`lora_r`, but there is no LoRA"),
        ({"then_sft": {"grounding_target": "firm"}}, "`grounding_target` must be one of"),
        ({"model": adapted}, "has an adapter already"),
        ({"push_to_hub": True}, "would upload every stage"),
    ]
    for settings, words in cases:
        with pytest.raises(ValueError, match=words):
            make(**settings)
    with pytest.raises(RowError, match="chosen"):
        make(train_dataset=bad)
    with pytest.raises(ValueError, match="has an adapter already"):
        make(lambda: adapted).train()
    assert not (tmp_path / "run").exists()


# --- What a stage starts from ---


def test_merge_moves_the_reference_along(make, tiny_dir):
    then_sft = {"lora_r": 2, "learning_rate": 1e-2, "evidence_coef": 1.0}
    trainer = make(stages=[16, 2], then_sft=then_sft, peft_config=lora_and_more(tiny_dir))
    metrics = trainer.train()
    assert list(metrics) == ["1_dpo_r16", "2_dpo_r2", "3_sft"] and metrics["3_sft"]["train_loss"] > 0
    for line in first_lines(trainer)[:2]:
        assert line["rewards/chosen"] == line["rewards/rejected"] == 0, line["stage"]
    assert trainer.log_history[1]["rewards/chosen"] != 0

    model, folder = base_of(tiny_dir), trainer.run.path
    for number, stage in enumerate(("1_dpo_r16", "2_dpo_r2", "3_sft")):
        assert_same_weights(trainer.load_model(number), model)
        model = merge_model(PeftModel.from_pretrained(model, folder / stage))
    assert_same_weights(trainer.model, model)
    assert_same_weights(base_of(folder), model)
    assert not torch.equal(model.model.language_model.layers[0].self_attn.q_proj.weight,
                           base_of(tiny_dir).model.language_model.layers[0].self_attn.q_proj.weight)  # fmt: skip
    assert D2VLMProcessor.from_pretrained(folder).fps == trainer.processing_class.fps

    configs = [json.loads((folder / name / "adapter_config.json").read_text()) for name in metrics]
    assert [(config["r"], config["lora_alpha"]) for config in configs] == [(4, 8), (4, 8), (2, 2)]
    assert configs[0]["base_model_name_or_path"] == str(tiny_dir)
    assert "with 1_dpo_r16, 2_dpo_r2 merged into it" in configs[2]["base_model_name_or_path"]
    assert json.loads((folder / "3_sft" / "finished.json").read_text())["merge_first"] == ["1_dpo_r16", "2_dpo_r2"]


def test_continue_keeps_the_adapter_and_the_reference(make, tiny_dir):
    settings = {"stage_reset": "continue", "then_sft": {"evidence_coef": 1.0}, "order": "sft_then_dpo"}
    trainer = make(stages=[16, 2], peft_config=lora_and_more(tiny_dir), **settings)
    trainer.train()
    sft, first, second = first_lines(trainer)
    assert first["rewards/chosen"] == 0 != second["rewards/chosen"]

    started = trainer._trainer(2, trainer.stages[2]).model
    before = load_peft_weights(trainer.run.path / "2_dpo_r16", device="cpu")
    actual = get_peft_model_state_dict(started)
    assert actual.keys() == before.keys() and any("evi_head" in name for name in before)
    for name, value in before.items():
        assert torch.equal(actual[name], value), name
    after_sft = merge_model(PeftModel.from_pretrained(base_of(tiny_dir), trainer.run.path / "1_sft"))
    assert_same_weights(started.unload(), after_sft)
    assert_same_weights(
        trainer.model, merge_model(PeftModel.from_pretrained(after_sft, trainer.run.path / "3_dpo_r2"))
    )


@pytest.mark.parametrize("reset", ["merge", "continue"])
def test_without_lora_the_whole_model_goes_on(make, tiny_dir, reset):
    trainer = make(stages=[16, 2], stage_reset=reset, peft_config=None, learning_rate=1e-3)
    trainer.train()
    first, second = first_lines(trainer)
    assert first["rewards/chosen"] == 0
    assert (second["rewards/chosen"] == 0) is (reset == "merge")
    stage = trainer._trainer(1, trainer.stages[1])
    assert_same_weights(stage.model, base_of(trainer.run.path / "1_dpo_r16"))
    assert_same_weights(stage.ref_model, base_of(trainer.run.path / "1_dpo_r16" if reset == "merge" else tiny_dir))
    assert_same_weights(trainer.model, base_of(trainer.run.path / "2_dpo_r2"))


def test_a_stock_model_learns_to_see_in_sft_alone(make):
    def load():
        return families.build("qwen2_5_vl")[0]

    trainer = make(
        load, processor=families.build("qwen2_5_vl")[1], stages=[16], then_sft={}, max_steps=1, num_frames=4
    )
    trainer.train()
    dpo, sft = (load_peft_weights(trainer.run.path / name, device="cpu").keys() for name in ("1_dpo_r16", "2_sft"))
    assert dpo and not any("visual" in name for name in dpo)
    assert dpo < sft and all("visual" in name for name in sft - dpo)
    assert not any("merger" in name for name in sft)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"])
def test_the_aligner_is_no_part_of_the_vision_tower(family):
    model = families.build(family)[0]
    names = vision_linears(model)
    assert names and not any("merger" in name or "projector" in name or "language_model" in name for name in names)


# --- One run ---


class Watch(TrainerCallback):
    """A reporter that is not there."""

    events: list = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append(("begin", args.output_dir, state.global_step))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append(("log", args.output_dir, state.global_step))

    def on_train_end(self, args, state, control, model, **kwargs):
        assert_same_weights(model, base_of(args.output_dir))  # the finished model, saved by now
        self.events.append(("end", args.output_dir, state.global_step))


def test_there_is_one_log_and_reporters_see_one_run(make, monkeypatch):
    monkeypatch.setattr(temple_trainer, "get_reporting_integration_callbacks", lambda names: [Watch])
    monkeypatch.setattr(Watch, "events", [])
    trainer = make(stages=[16, 2], then_sft={})
    trainer.train()
    steps = [line["step"] for line in trainer.log_history if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["stage_step"] for line in trainer.log_history if "loss" in line] == [1, 2, 1, 2, 1, 2]
    told = [step for event, _, step in Watch.events if event == "log"]
    assert sorted(set(told)) == steps and told == sorted(told)
    assert [event for event, *_ in Watch.events].count("end") == 1 and Watch.events[-1][::2] == ("end", 6)
    assert {folder for _, folder, _ in Watch.events} == {str(trainer.run.path)}


def test_a_run_is_resumed_with_the_settings_it_was_begun_with(make, pairs):
    trainer = make(stages=[16, 2])
    trainer.train()
    with pytest.raises(CheckpointError, match="holds a curriculum already.*_from_checkpoint last.*--output_dir"):
        make(stages=[16, 2]).train()
    fewer = pairs.select(range(len(pairs) - 1))
    cases = [
        ({"learning_rate": 1e-3}, "`learning_rate` was 0.01, now 0.001"),
        ({"stages": [2, 16]}, r"`stages` was \[16, 2\], now \[2, 16\]"),
        ({"then_sft": {}}, "`then_sft`"),
        ({"peft_config": lora(r=8)}, "`peft_config.r` was 4, now 8"),
        ({"train_dataset": fewer}, "`rows.2_dpo_r2` was"),
        ({"per_device_train_batch_size": 2}, "`rows_per_step` was 4, now 2"),
    ]
    for settings, words in cases:
        with pytest.raises(CheckpointError, match=words):
            make(**{"stages": [16, 2], **settings}).train(resume_from_checkpoint="last")
    with pytest.raises(ValueError, match="resumed as a whole"):
        make(stages=[16, 2]).train(resume_from_checkpoint="checkpoint-1")

    def fail(*args, **kwargs):
        raise AssertionError("a finished stage is trained again")

    again = make(stages=[16, 2], logging_steps=5)
    again._train_stage = fail
    assert list(again.train(resume_from_checkpoint=True)) == ["1_dpo_r16", "2_dpo_r2"]
    assert_same_weights(again.model, trainer.model)


def test_a_function_is_told_from_another_by_what_it_loads(make, tiny_dir, tmp_path):
    trainer = make(lambda: base_of(tiny_dir), stages=[2], max_steps=1)
    trainer.train()
    base_of(tiny_dir).save_pretrained(tmp_path / "other")
    cases = [
        (lambda: base_of(tmp_path / "other"), "`model` was '.*', now '.*other'"),
        (lambda: base_of(tiny_dir).bfloat16(), "`model_dtype` was 'torch.float32', now 'torch.bfloat16'"),
    ]
    for load, words in cases:
        with pytest.raises(CheckpointError, match=words):
            make(load, stages=[2], max_steps=1).train(resume_from_checkpoint="last")
    make(lambda: base_of(tiny_dir), stages=[2], max_steps=1).train(resume_from_checkpoint="last")


class Kill(TrainerCallback):
    """SIGKILL in the middle of a step of stage 2."""

    def on_substep_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("2_dpo_r2") and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def child(model: str, world: str, output_dir: str, how: str, settings: str) -> None:
    """The curriculum as a process of its own runs it."""
    data = build_event_world(world, num_train=3, num_validation=1, num_test=1, progress=False)
    kwargs = {**FAST, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2, "max_steps": 4}
    kwargs |= {"gradient_accumulation_steps": 2, "frame_cache_dir": f"{world}/frames", **json.loads(settings)}
    pairs = event_world_pairs(data["train"])[0]
    # Eight of each, which are whole steps: ranks repeat rows where the last step of an epoch is not full.
    eight = [index for ratio in (16, 2) for index in np.flatnonzero(np.array(pairs["keep_ratio"]) == ratio)[:8]]
    trainer = TempleTrainer(
        model,
        TempleConfig(output_dir, stages=[16, 2], then_sft={}, **kwargs),
        train_dataset=pairs.select(eight),
        sft_dataset=data["train"],
        peft_config=lora(),
        callbacks=[Kill()] if how == "kill" else None,
    )
    trainer.train(resume_from_checkpoint="last")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(tiny_dir, event_world, runs):
    """Runs [`child`] here, as one process that is killed, or as two ranks."""
    arguments = [str(tiny_dir), str(Path(event_world["train"][0]["videos"][0]["path"]).parents[2])]
    script = runs / "child.py"
    script.write_text(
        "import sys\nimport tests.conftest\nfrom tests.test_temple_trainer import child\nchild(*sys.argv[1:])"
    )

    def run(folder: str, how: str = "here", **settings) -> None:
        words = [*arguments, str(runs / folder), how, json.dumps(settings)]
        if how == "here":
            child(*words)
            return
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if how == "ranks" else []
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": runs}
        command = [sys.executable, *launcher, str(script), *words]
        with subprocess.Popen(command, env={**os.environ, **threads}, **streams) as process:
            try:
                printed, _ = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.terminate()
                pytest.fail("the curriculum hangs")
        assert process.returncode == (-signal.SIGKILL if how == "kill" else 0), printed

    return run


@pytest.fixture(scope="module")
def whole(run, runs) -> list[dict]:
    """The log of a run that nothing happens to."""
    run("whole")
    return read_log(runs / "whole")


TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def read_log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_a_run_that_is_killed_in_a_stage_goes_on_as_if_it_had_not_been(run, runs, whole):
    run("killed", "kill")
    assert (runs / "killed" / "1_dpo_r16" / "finished.json").exists()
    assert not (runs / "killed" / "2_dpo_r2" / "finished.json").exists()
    assert [line["step"] for line in read_log(runs / "killed")] == [1, 2, 3, 4, 4, 5, 6]
    checkpoint = runs / "killed" / "2_dpo_r2" / "checkpoint-2" / "trainer_state.json"
    written = checkpoint.stat().st_mtime_ns
    run("killed")
    assert checkpoint.stat().st_mtime_ns == written  # the stage did not begin anew
    log = read_log(runs / "killed")
    assert [line["step"] for line in log] == [line["step"] for line in whole] and len(log) == 3 * (4 + 1)
    for line, expected in zip(log, whole, strict=True):
        # Trainers sum these up from where they were resumed.
        for name in line.keys() - {"stage", "train_loss", "num_tokens"}:
            assert line[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), (line["stage"], name)
    assert_same_weights(*(base_of(runs / folder) for folder in ("killed", "whole")))


def test_two_ranks_make_of_it_what_one_process_does(run, runs, whole):
    run("ranks", "ranks", gradient_accumulation_steps=1)
    log = read_log(runs / "ranks")
    assert [line["step"] for line in log] == [line["step"] for line in whole]
    for line, expected in zip(log, whole, strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4), line["stage"]
    assert log[5]["rewards/chosen"] == 0  # of the second stage: both ranks have merged
