# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""A trained model works where this package is not installed: its three files travel with it."""

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

from tests.helpers import noise_video
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
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "trl_temporal":
            raise ImportError("trl_temporal is not installed")

sys.meta_path.insert(0, Blocker())

import numpy as np
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

folder, frames_file = sys.argv[1:]
video = np.load(frames_file)
times = [number / 2 for number in range(len(video))]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
answers = {"config": config.model_type, "package": "trl_temporal" in sys.modules}
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
    model, report = auto_class.from_pretrained(
        folder, trust_remote_code=True, dtype="float32", output_loading_info=True
    )
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, videos=[video])
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


def run_child(python, folder, frames_file, tmp_path, **environment):
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
        [str(python), str(script), str(folder), str(frames_file)],
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


def expected_answer(trainer, frames_file):
    """The answer of the model in this process, with the child's settings."""
    processor, video = trainer.processing_class, np.load(frames_file)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, videos=[video])
    output = trainer.model.eval().generate(
        **inputs,
        max_new_tokens=12,
        do_sample=False,
        return_dict_in_generate=True,
        sequence_bias=[[[processor.evidence_token_id], 8.0], [[processor.evidence_end_token_id], 6.0]],
    )
    times = [number / 2 for number in range(len(video))]
    return output.sequences.tolist(), processor.post_process_grounded(output, inputs, [times], [len(video) / 2])[0]


def check(found, trainer, frames_file):
    ids, answer = expected_answer(trainer, frames_file)
    assert answer["evidence"], "the answer must have evidence to compare"
    assert not found.pop("package") and found.pop("config") == "d2vlm"
    assert set(found) == {"AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"}
    for model in found.values():
        assert (model["module"], model["class"]) == ("transformers_modules", "D2VLMForConditionalGeneration")
        assert model["faults"] == {}
        assert model["ids"] == ids
        for name in ("text", "evidence", "response"):
            assert model["answer"][name] == answer[name]
        for name in ("salience", "logits", "cosines"):
            np.testing.assert_allclose(model["answer"][name], answer[name], rtol=1e-4, atol=1e-5)


def test_a_trained_model_answers_the_same_without_the_package(saved, tmp_path):
    folder, checkpoint, frames_file, trainer = saved
    assert set(REMOTE_FILES) <= {path.name for path in folder.iterdir()}
    assert set(REMOTE_FILES) <= {path.name for path in checkpoint.iterdir()}
    # The package could be found, but for the blocker.
    found = run_child(sys.executable, folder, frames_file, tmp_path, PYTHONPATH=str(Path(d2vlm.__file__).parents[3]))
    check(found, trainer, frames_file)


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
    check(found, trainer, frames_file)


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
