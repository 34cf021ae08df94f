# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The command line: what it prints, its exit codes, and that it starts fast."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
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


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["convert"],
        ["no-such-verb"],
        ["convert", "d2vlm", "only-one"],
        ["convert", "d2vlm", "there", "here", "--no-such-flag"],
        ["plan"],
        ["plan", "sft.yaml", "--method", "dpo"],
    ],
)
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


# --- Data ---


def write_spans(path: Path) -> Path:
    path.write_text("video,start,end,caption\na.mp4,1,2.5,A disc blinks\na.mp4,4,6,A cross shakes\n", encoding="utf-8")
    return path


def test_an_annotation_file_becomes_a_data_set_that_is_checked(tmp_path, capsys):
    source, folder = write_spans(tmp_path / "spans.csv"), tmp_path / "data"
    assert main(["data", "convert", "spans_file", str(source), str(folder), "--split", "test"]) == 0
    assert load_from_disk(folder)["test"].num_rows == 3  # one of all events, one of each
    assert main(["data", "validate", str(folder)]) == 0
    assert "test" in capsys.readouterr().out

    rows = load_from_disk(folder)["test"].to_list()
    rows[1]["spans"] = [[6.0, 4.0]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "validate", str(tmp_path / "rows.jsonl")]) == 1
    assert "runs backwards" in " ".join(capsys.readouterr().out.split())

    assert main(["data", "convert", "spans", str(source), str(tmp_path / "other")]) == 1
    assert "formats are" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_videos_are_scanned(event_world, tmp_path, capsys):
    video, manifest = event_world["train"][0]["videos"][0]["path"], tmp_path / "videos.jsonl"
    assert main(["data", "scan", video, str(manifest), "--num-workers", "1"]) == 0
    assert json.loads(manifest.read_text())["decodes_to_end"]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert (
        main(["data", "scan", str(broken), str(tmp_path / "broken.jsonl"), "--header-only", "--num-workers", "1"]) == 1
    )
    assert "unreadable" in capsys.readouterr().out


# --- Synthesis ---


def test_pairs_are_made_from_a_data_set(tmp_path, capsys):
    source, folder = write_spans(tmp_path / "spans.csv"), tmp_path / "data"
    assert main(["data", "convert", "spans_file", str(source), str(folder)]) == 0
    settings = tmp_path / "settings.yaml"
    settings.write_text("seed: 3\nweights: {shift: 1, delete: 1}\n")
    command = ["synthesize", str(folder), str(tmp_path / "pairs"), "--num-workers", "1"]
    assert main([*command, "--config", str(settings)]) == 0
    assert "pairs from 3 rows" in capsys.readouterr().out
    pairs = load_from_disk(tmp_path / "pairs")["train"]
    assert len(pairs) and set(pairs["factor"]) <= {"shift", "delete"}
    assert main(["data", "validate", str(tmp_path / "pairs")]) == 0

    settings.write_text("speed: 3\n")
    assert main([*command[:2], str(tmp_path / "other"), "--config", str(settings)]) == 1
    assert "unknown 'speed'" in capsys.readouterr().err


def test_a_models_own_wrong_answers(tiny_dir, event_world, tmp_path, capsys):
    """A random model is always wrong."""
    event_world["train"].select(range(4)).save_to_disk(tmp_path / "data")
    command = ["synthesize", str(tmp_path / "data"), str(tmp_path / "pairs"), "--on-policy", str(tiny_dir)]
    assert main([*command, "--max-new-tokens", "8"]) == 0
    assert "rows: 4" in capsys.readouterr().out
    assert main([*command, "--config", "settings.yaml"]) == 1
    assert main([*command, "--split", "test"]) == 1
    assert "has no split 'test'; it has train" in capsys.readouterr().err


def test_a_data_set_becomes_a_page(tmp_path, capsys):
    source, folder, page = write_spans(tmp_path / "spans.csv"), tmp_path / "data", tmp_path / "page.html"
    assert main(["data", "convert", "spans_file", str(source), str(folder)]) == 0
    assert main(["data", "view", str(folder), "--output", str(page), "--no-browser"]) == 0
    assert str(page) in capsys.readouterr().out and "A disc blinks" in page.read_text(encoding="utf-8")
    assert main(["data", "view", str(tmp_path / "nothing"), "--no-browser"]) == 1
