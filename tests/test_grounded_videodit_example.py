# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`examples/grounded_videodit.py`, from nothing to its table, as small as can be."""

import sys

from examples import grounded_videodit


def test_without_rows_of_ones_own(tmp_path, monkeypatch, capsys):
    words = {
        "output_dir": tmp_path / "out",
        "data_dir": tmp_path / "world",
        "feature_cache": tmp_path / "features",
        "num_train": 4,
        "num_test": 2,
        "num_each": 1,
        "num_workers": 1,
        "pretraining_steps": 2,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
    }
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["grounded_videodit.py", *flags])
    grounded_videodit.main()
    printed = capsys.readouterr().out
    assert "Objects are found (ok: 18, no_nouns: 6)" in printed
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    miou = {name: float(cells[0]) for name, *cells in lines if name in ("prior", "model", "oracle")}
    assert 80 < miou["oracle"] <= 100 and 5 < miou["prior"] < 60 and 0 <= miou["model"] <= miou["oracle"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "out" / "config.json").exists() and (tmp_path / "out" / "processor_config.json").exists()
