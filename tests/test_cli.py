# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The command line: what it prints, its exit codes, and that it starts fast."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.test_convert_d2vlm import released_tensors, weights_of, write_layout
from trl_temporal.cli import main
from trl_temporal.models.d2vlm.released_folder import StoredTensor
from trl_temporal.models.d2vlm.released_names import rename

ROOT = Path(__file__).parents[1]


@pytest.fixture
def released(tmp_path) -> Path:
    return write_layout(tmp_path / "released", "one file")


def test_convert_there_and_back(released, tmp_path, capsys):
    assert main(["convert", "d2vlm", str(released), str(tmp_path / "converted")]) == 0
    printed = capsys.readouterr().out
    assert "229 used, 6 joined or split, 3 ignored, 2 new" in printed
    assert (
        "ignored: word head of the Q-Former" in " ".join(printed.replace("│", " ").split()) or "word head" in printed
    )
    assert "converted" in printed.splitlines()[-1]
    assert main(["convert", "d2vlm", str(tmp_path / "converted"), str(tmp_path / "back"), "--reverse"]) == 0
    back = weights_of(tmp_path / "back")
    assert all(torch.equal(back[name], tensor) for name, tensor in released_tensors().items())


def test_options_arrive(released, tmp_path, monkeypatch):
    pieces = released / "qformer_tokenizer" / "vocab.txt"
    vocab = pieces.rename(tmp_path / "pieces.txt")
    command = ["convert", "d2vlm", str(released), str(tmp_path / "converted"), "--dtype", "bfloat16"]
    uploads = []
    monkeypatch.setattr(
        "trl_temporal.models.d2vlm.convert_d2vlm_to_hf.push_folder", lambda *folder: uploads.append(folder) or "there"
    )
    assert main([*command, "--qformer-tokenizer", str(vocab), "--push-to-hub", "org/name"]) == 0
    assert load_file(tmp_path / "converted" / "model.safetensors")[rename("lm_head.weight")].dtype == torch.bfloat16
    assert uploads == [(str(tmp_path / "converted"), "org/name")]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--merge-adapter"], "no adapter to merge"),
        (["--reverse"], "`model_type` 'etchat_phi3'"),
        (["--reverse", "--merge-adapter"], "--reverse takes none of"),
    ],
)
def test_errors_are_one_line(released, tmp_path, capsys, options, message):
    assert main(["convert", "d2vlm", str(released), str(tmp_path / "converted"), *options]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("trl-temporal: ") and captured.err.count("\n") == 1
    assert not captured.out and not (tmp_path / "converted").exists()


def test_file_errors_are_one_line(released, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["convert", "d2vlm", str(released), str(tmp_path / "file" / "converted")]) == 1
    assert "file" in capsys.readouterr().err


def test_interrupt(released, tmp_path, capsys, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(StoredTensor, "read", interrupt)
    assert main(["convert", "d2vlm", str(released), str(tmp_path / "converted")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


@pytest.mark.parametrize("words", [[], ["convert"], ["no-such-verb"], ["convert", "d2vlm", "only-one"]])
def test_usage(words, capsys):
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2 and "usage: trl-temporal" in capsys.readouterr().err


def test_help_is_fast():
    code = (
        "import sys\nfrom trl_temporal.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "convert" in result.stdout and result.stdout.endswith("False False\n")


def test_as_a_module(tmp_path):
    command = [
        sys.executable,
        "-m",
        "trl_temporal.cli",
        "convert",
        "d2vlm",
        str(tmp_path),
        str(tmp_path / "converted"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "has no config.json" in result.stderr and "Traceback" not in result.stderr


def test_entry_point():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="trl-temporal")
    if not scripts:
        pytest.skip("installed before the command existed: pip install -e .")
    (script,) = scripts
    assert script.load() is main
