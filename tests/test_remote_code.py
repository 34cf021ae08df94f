# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A trained model works where this package is not installed: its files of Python travel with it."""

import ast
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import torchvision_shim
from tests.families import FAMILIES
from tests.helpers import noise_video
from tests.test_backbones import evidence_model
from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer
from trl_temporal.models import d2vlm

REMOTE_FILES = (
    "configuration_d2vlm.py",
    "modeling_d2vlm.py",
    "modeling_d2vlm_backbone.py",
    "processing_d2vlm.py",
)

# Runs in a fresh process. The model answers as text with spans in seconds, which needs every part of it.
CHILD = """
import importlib.abc, importlib.util, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "trl_temporal":
            raise ImportError("trl_temporal is not installed")

sys.meta_path.insert(0, Blocker())
folder, frames_file, *shim = sys.argv[1:]
if shim:  # the processors of transformers need a torchvision that imports
    spec = importlib.util.spec_from_file_location("shim", shim[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load_torchvision()

import numpy as np
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

video = np.load(frames_file)
times = [number / 2 for number in range(len(video))]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
answers = {
    "config": config.model_type,
    "package": "trl_temporal" in sys.modules,
    "processor": [type(processor).__module__.split(".")[0], type(processor).__name__],
}
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
    model, report = auto_class.from_pretrained(
        folder, trust_remote_code=True, dtype="float32", output_loading_info=True
    )
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, videos=[video], timestamps_s=[times], duration_s=[len(video) / 2])
    output = model.eval().generate(
        **inputs, max_new_tokens=12, do_sample=False, return_dict_in_generate=True,
        sequence_bias=[[[processor.evidence_token_id], 8.0], [[processor.evidence_end_token_id], 6.0]],
    )
    answer = processor.post_process_grounded(output, inputs, [times], [len(video) / 2])[0]
    answer.update((name, answer[name].tolist()) for name in ("salience", "logits", "cosines"))
    answers[auto_class.__name__] = {
        "module": type(model).__module__.split(".")[0],
        "class": type(model).__name__,
        "faults": {name: sorted(map(str, keys)) for name, keys in report.items() if keys},
        "ids": output.sequences.tolist(),
        "answer": answer,
    }
print("RESULT " + json.dumps(answers))
"""


def run_child(python, folder, frames_file, tmp_path, *shim, **environment):
    """What the fresh process found."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    result = subprocess.run(
        [str(python), str(script), str(folder), str(frames_file), *map(str, shim)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture
def saved(tiny_dir, event_world, config, tmp_path):
    """A folder that the trainer saved, frames of a video, and the answer of the trained model."""
    args = config(EvidenceSFTConfig, save_strategy="steps", save_steps=1)
    trainer = EvidenceSFTTrainer(str(tiny_dir), args, train_dataset=event_world["train"])
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    frames_file = tmp_path / "frames.npy"
    np.save(frames_file, noise_video("noise-3-9").frames)
    return tmp_path / "saved", Path(args.output_dir) / "checkpoint-1", frames_file, trainer


def expected_answer(model, processor, frames_file):
    """The answer of the model in this process, with the child's settings."""
    video = np.load(frames_file)
    times = [number / 2 for number in range(len(video))]
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, videos=[video], timestamps_s=[times], duration_s=[len(video) / 2])
    output = model.eval().generate(
        **inputs,
        max_new_tokens=12,
        do_sample=False,
        return_dict_in_generate=True,
        sequence_bias=[[[processor.evidence_token_id], 8.0], [[processor.evidence_end_token_id], 6.0]],
    )
    return output.sequences.tolist(), processor.post_process_grounded(output, inputs, [times], [len(video) / 2])[0]


def check(found, model, processor, frames_file):
    ids, answer = expected_answer(model, processor, frames_file)
    assert answer["evidence"], "the answer must have evidence to compare"
    assert not found.pop("package") and found.pop("config") == "d2vlm"
    assert found.pop("processor") == ["transformers_modules", type(processor).__name__]
    assert set(found) == {"AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"}
    for loaded in found.values():
        assert (loaded["module"], loaded["class"]) == ("transformers_modules", "D2VLMForConditionalGeneration")
        assert loaded["faults"] == {}
        assert loaded["ids"] == ids
        for name in ("text", "evidence", "response"):
            assert loaded["answer"][name] == answer[name]
        for name in ("salience", "logits", "cosines"):
            np.testing.assert_allclose(loaded["answer"][name], answer[name], rtol=1e-4, atol=1e-5)


def test_a_trained_model_answers_the_same_without_the_package(saved, tmp_path):
    folder, checkpoint, frames_file, trainer = saved
    assert set(REMOTE_FILES) <= {path.name for path in folder.iterdir()}
    assert set(REMOTE_FILES) <= {path.name for path in checkpoint.iterdir()}
    # The package could be found, but for the blocker.
    found = run_child(sys.executable, folder, frames_file, tmp_path, PYTHONPATH=str(Path(d2vlm.__file__).parents[3]))
    check(found, trainer.model, trainer.processing_class, frames_file)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_a_backbone_answers_the_same_without_the_package(family, tmp_path):
    """Saved by itself, not by a trainer; the processor of the family and its chat template are in the folder too."""
    model, processor = evidence_model(family)
    folder, frames_file = tmp_path / "saved", tmp_path / "frames.npy"
    np.save(frames_file, noise_video("noise-3-9").frames)
    evidence = [processor.evidence_token_id, processor.evidence_end_token_id]
    for seed in range(20):  # until a random head comes to ground
        with torch.no_grad():
            model.lm_head.weight[evidence] = 2 * torch.randn(2, 32, generator=torch.Generator().manual_seed(seed))
        if expected_answer(model, processor, frames_file)[1]["evidence"]:
            break
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert set(REMOTE_FILES) <= {path.name for path in folder.iterdir()}
    package = str(Path(d2vlm.__file__).parents[3])
    found = run_child(sys.executable, folder, frames_file, tmp_path, torchvision_shim.__file__, PYTHONPATH=package)
    check(found, model, processor, frames_file)


@pytest.mark.slow
def test_a_trained_model_answers_the_same_in_another_environment(saved, tmp_path):
    """An environment of its own with torch, numpy and transformers, and without this package, trl or peft."""
    folder, _, frames_file, trainer = saved
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    import transformers

    packages = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={transformers.__version__}", "numpy"]
    try:
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages, "jinja2"], check=True, timeout=1800)
    except subprocess.CalledProcessError:
        pytest.skip("no package index to make a second environment from")
    found = run_child(python, folder, frames_file, tmp_path)
    check(found, trainer.model, trainer.processing_class, frames_file)


def test_what_travels_needs_only_torch_numpy_and_transformers():
    allowed = {"torch", "numpy", "transformers"}
    for name in REMOTE_FILES:
        path = Path(d2vlm.__file__).parent / name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module.split(".")[0]]
            elif isinstance(node, ast.ImportFrom):
                # Remote files lie side by side: only `from .file import name`.
                assert node.level == 1 and f"{node.module}.py" in REMOTE_FILES, ast.unparse(node)
                continue
            else:
                continue
            assert all(module in allowed or module in sys.stdlib_module_names for module in modules), modules
