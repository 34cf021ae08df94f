# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The check of TEMPLE's pairs: how much chosen and rejected differ."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import preference_row
from trl_temporal.cli import main
from trl_temporal.synthesis.temple_signal import check_signal, draw_signal, edit_similarity, signal_table


def distance(a, b):
    """Levenshtein's, the slow way."""
    table = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(replaced, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


words = st.lists(st.sampled_from("abcde"), max_size=12)


@given(first=words, second=words)
def test_edit_similarity(first, second):
    longer = max(len(first), len(second))
    expected = 1 - distance(first, second) / longer if longer else 1.0
    assert edit_similarity(" ".join(first), " ".join(second)) == pytest.approx(expected)


def pairs(similar=False):
    rows = []
    for number in range(6):
        chosen = " ".join(f"word{number}-{i}" for i in range(40))
        for factor, ratio, kept in (("drop", 16, 10), ("drop", 2, 20), ("shuffle", 16, 40), ("shuffle", 2, 40)):
            tokens = chosen.split()[:kept]
            if factor == "shuffle":
                moved = 39 if similar and ratio == 2 else 20
                tokens = tokens[moved:] + tokens[:moved] if moved == 20 else [*tokens[:-1], "other"]
            rows.append(
                preference_row(chosen, [], " ".join(tokens), [], factor=factor, keep_ratio=ratio)
                | {"id": f"{number}-{factor}-{ratio}"}
            )
    return rows


def test_numbers_of_each_difficulty():
    cells = check_signal(pairs())
    assert [(cell.factor, cell.keep_ratio, cell.num_pairs) for cell in cells] == [
        ("drop", 16, 6), ("drop", 2, 6), ("shuffle", 16, 6), ("shuffle", 2, 6),
    ]  # fmt: skip
    assert [cell.edit_similarity for cell in cells] == [0.25, 0.5, 0.0, 0.0]
    assert [cell.length_ratio for cell in cells] == [0.25, 0.5, 1.0, 1.0]
    assert not any(cell.vanishes or cell.warning for cell in cells)
    assert all(cell.cosine is None for cell in cells)


def test_a_signal_that_vanishes_is_named():
    cells = check_signal(pairs(similar=True))
    assert [cell.vanishes for cell in cells] == [False, False, False, True]
    assert cells[-1].edit_similarity == pytest.approx(0.975) and cells[-1].share_alike == 1
    assert "shuffle, keep_ratio 2: chosen and rejected are 0.975 alike" in cells[-1].warning
    assert not any(cell.vanishes for cell in check_signal(pairs(similar=True), threshold=0.98))


def test_cosines_of_an_encoder():
    def same(texts):
        return np.tile([1.0, 0.0], (len(texts), 1))

    cells = check_signal(pairs(), same)
    assert [cell.cosine for cell in cells] == [1.0] * 4
    # What is missing has to show in the embedding, another order has not.
    assert [cell.warning is not None for cell in cells] == [True, True, False, False]


def test_pairs_of_another_kind():
    with pytest.raises(ValueError, match=r"row 0 \(id 'pair'\), column 'factor': is missing"):
        check_signal([preference_row("a", [], "b", [])])
    with pytest.raises(ValueError, match="no pairs"):
        check_signal([])


def test_the_drawing_shows_every_cell():
    cells = check_signal(pairs(similar=True), lambda texts: np.ones((len(texts), 1)))
    root = ElementTree.fromstring(draw_signal(cells))
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 3 * len(cells)
    assert "shuffle, r = 2: 0.975 (6 pairs)" in titles
    width, height = float(root.get("width")), float(root.get("height"))
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        if path.get("transform"):
            x, y = map(float, path.get("transform").removeprefix("translate(").rstrip(")").split())
            assert 0 < x < width and 0 < y < height
    assert signal_table(cells).row_count == 4


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no sentence encoder
    for similar, code in ((False, 0), (True, 1)):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in pairs(similar)), encoding="utf-8")
        assert main(["temple", "check", str(path), "--output", str(tmp_path / "drawing.svg")]) == code
        printed = capsys.readouterr().out
        assert ("the signal vanishes" in " ".join(printed.split())) == similar
        assert "shuffle" in printed and "No cosines" in printed
    assert (tmp_path / "drawing.svg").read_text(encoding="utf-8").startswith("<svg")
    # By default it is drawn in the working folder, also where the pairs are not in another one.
    monkeypatch.chdir(tmp_path)
    Dataset.from_list(pairs()).save_to_disk(tmp_path)
    assert main(["temple", "check", "."]) == 0
    assert (tmp_path / "signal.svg").exists()
