# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""docs/grounded_videodit.md: its equations, readings and names are those of the code, and its example runs."""

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from transformers import TrainingArguments
from transformers.testing_utils import HfDocTestParser

import trl_temporal
from trl_temporal.models import grounded_videodit
from trl_temporal.models.grounded_videodit import dtl_feature, dtl_vace, encoder_loading, frame_encoders
from trl_temporal.models.grounded_videodit import modeling_grounded_videodit as modeling
from trl_temporal.objects import gate, stage, track

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "grounded_videodit.md"
MODEL, OBJECTS = ROOT / "trl_temporal/models/grounded_videodit", ROOT / "trl_temporal/objects"
MODULES = (
    trl_temporal,
    grounded_videodit,
    dtl_feature,
    dtl_vace,
    encoder_loading,
    frame_encoders,
    modeling,
    gate,
    stage,
    track,
)


def table(heading):
    """Cells of the rows of the table under a heading."""
    section = DOCS.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def docstrings(path):
    """The docstrings of a file by name, `""` for its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {"": ast.get_docstring(tree) or ""}

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found[f"{prefix}{child.name}"] = ast.get_docstring(child) or ""
                visit(child, f"{prefix}{child.name}.")

    visit(tree, "")
    return found


def equations(text):
    """Numbers of the equations that a text names, as in "Eq. 2", "Eq. 15 and 16", "Eq. 17-20" and "Eq. 7 to 9"."""
    numbers = set()
    for first, joint, last in re.findall(r"Eq\.\s(\d+)(?:(-|\s(?:and|to)\s)(\d+))?", text):
        numbers |= {int(first)} if not last else {int(first), int(last)}
        numbers |= set() if not last or "and" in joint else set(range(int(first), int(last)))
    return numbers


def test_equations_are_found_in_text():
    assert equations("Eq. 2-4, Eq. 7 and 9;\nEq. 11 to 13 (Eq. 16)") == {2, 3, 4, 7, 9, 11, 12, 13, 16}


def test_every_equation_is_named_in_some_docstring():
    texts = [text for folder in (MODEL, OBJECTS) for path in folder.glob("*.py") for text in docstrings(path).values()]
    assert set().union(*map(equations, texts)) == set(range(1, 21))


def test_every_equation_has_the_place_that_the_table_says():
    rows = table("Equations")
    assert [int(number) for number, _, _ in rows] == list(range(1, 21))
    for number, _, places in rows:
        for file, names in re.findall(r"`([\w/]+\.py)`(?:: ((?:`[\w.]+`(?:, )?)+))?", places):
            path = OBJECTS.parent / file if "/" in file else MODEL / file
            found = docstrings(path)
            for name in re.findall(r"`([\w.]+)`", names) or [""]:
                of_members = "\n".join(text for member, text in found.items() if member.startswith(f"{name}."))
                named = equations(f"{found[name]}\n{of_members}\n{found['']}")
                assert int(number) in named, f"{file}: {name} does not name Eq. {number}"


def test_all_33_readings_are_listed():
    rows = table("Readings")
    assert [int(number) for number, *_ in rows] == list(range(1, 34))
    assert all(len(row) == 4 and all(row) for row in rows)


def resolve(name):
    found = [getattr(module, name) for module in MODULES if hasattr(module, name)]
    assert found, f"there is no {name}"
    return found[0]


@pytest.mark.parametrize("row", table("Readings"), ids=lambda row: row[0])
def test_names_of_the_readings_exist(row):
    names = re.findall(r"`([^`]+)`", row[-1])
    assert names
    for name in set(names) - {LoraConfig.__name__, TrainingArguments.__name__}:
        owner, attribute, argument = re.fullmatch(r"(\w+)(?:\.(\w+)|\((\w+)\))?", name).groups()
        found = resolve(owner)
        if attribute or argument:
            known = set(inspect.signature(found).parameters) | set(dir(found))
            assert attribute in known or argument in known, name


def test_the_numbers_of_the_readings_are_those_of_the_code():
    settings = stage.ObjectStageConfig()
    assert (settings.and_gate_persistence, settings.detection_threshold) == (3, 0.25)
    assert settings.track_backward and not settings.strict_gate
    config = grounded_videodit.GroundedVideoDiTConfig()
    assert (config.temporal_embedding_base, config.time_scale) == (10000.0, "frames")
    assert (config.num_object_tokens, config.num_time_anchors, config.num_time_steps) == (4, 8, 300)
    assert config.span_head_context == "bi_layer" and config.temporal_embedding == "sinusoidal" and not config.use_kl
    assert (config.kl_temperature, config.kl_direction) == (1.0, "diff_aux")
    trained = trl_temporal.EvidenceSFTConfig("unused", bf16=False)
    assert (trained.span_coef, trained.span_label_sigma, trained.kl_coef) == (1.0, 0.0, 0.1)
    assert frame_encoders.FRAMES_PER_SEGMENT == 8 and encoder_loading.PROMPT == "highlight the masked region"
    for encoder in (dtl_vace.VaceFrameEncoder, dtl_feature.DtlDenoiser):
        defaults = inspect.signature(encoder).parameters
        assert defaults["sigmas"].default == (0.1,) and defaults["num_segments"].default == 12


def test_the_example_runs():
    """The ceilings that it prints: labels written down as frames or time tokens, and read back."""
    example = HfDocTestParser().get_doctest(DOCS.read_text(encoding="utf-8"), {}, DOCS.name, None, 0)
    printed = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=printed.append)
    assert example.examples and not runner.failures, "".join(printed)


def test_lora_is_the_equation():
    """W = W_0 + alpha / r * A B (Eq. 14), with the r = 64 and alpha = 128 of the paper; A B is zero at the start."""
    torch.manual_seed(0)
    frozen = torch.nn.Sequential(torch.nn.Linear(80, 96))
    states, weight = torch.randn(3, 80), frozen[0].weight.detach().clone()
    before = frozen(states)
    model = get_peft_model(frozen, LoraConfig(r=64, lora_alpha=128, target_modules=["0"]))
    torch.testing.assert_close(model(states), before)
    layer = next(module for module in model.modules() if isinstance(module, LoraLinear))
    torch.nn.init.normal_(layer.lora_B.default.weight)
    update = 128 / 64 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(model(states), states @ (weight + update).T + layer.bias)
    assert {name.split(".")[-2] for name, part in model.named_parameters() if part.requires_grad} == {"default"}
