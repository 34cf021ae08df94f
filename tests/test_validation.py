# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from trl_temporal.data import schema
from trl_temporal.data.rows import sft_row
from trl_temporal.data.schema import EVALUATION_FEATURES, PREFERENCE_FEATURES, SFT_FEATURES
from trl_temporal.data.validation import load_rows, validate_path

DOCS = Path(__file__).parent.parent / "docs" / "data.md"


def row(index, **changes):
    made = sft_row(
        id=f"row-{index}",
        source="test",
        task="grounding",
        video={"path": f"{index // 2}.mp4"},
        question="Wann? 🥚",
        response="<evi> </evi> It happens in <evi>.",
        spans=[[1.0, 2.0 + index]],
        all_spans=[],
        duration=20.0,
    )
    return made | changes


BAD = row(2, spans=[[5.0, 4.0]])


def cells(output, split):
    """Cells of the table's line of a split."""
    line = next(line for line in output.splitlines() if re.match(rf"│ {split} ", line))
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_saved_datasets(tmp_path, capsys):
    good = Dataset.from_list([row(0), row(1), row(3, task="qa")], features=SFT_FEATURES)
    bad = Dataset.from_list([row(0), row(1), BAD, row(0)], features=SFT_FEATURES)
    DatasetDict({"train": good, "test": bad}).save_to_disk(tmp_path / "both")
    assert validate_path(tmp_path / "both") == 1
    output = capsys.readouterr().out
    assert cells(output, "train") == ["train", "sft", "3", "grounding 2, qa 1", "2", "1.00", "1.0 / 2.0 / 4.0 s", "0"]
    assert cells(output, "test")[:5] == ["test", "sft", "4", "grounding 4", "2"] and cells(output, "test")[-1] == "2"
    assert "test, row 2 (id 'row-2'), column 'spans': span 0 runs backwards, from 5.0 s to 4.0 s. Swap" in output
    assert "test, row 3 (id 'row-0'), column 'id': is also the id of row 0. Give every row" in output

    good.save_to_disk(tmp_path / "good")
    assert validate_path(tmp_path / "good") == 0
    assert cells(capsys.readouterr().out, "train")[-1] == "0"


def test_folders_and_files_of_parquet(tmp_path, capsys):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    dataset = Dataset.from_list([row(0), BAD], features=SFT_FEATURES)
    for path in (tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", tmp_path / "rows.parquet"):
        dataset.to_parquet(path)
    for path, split in ((tmp_path / "hub", "train"), (tmp_path / "rows.parquet", "rows")):
        assert validate_path(path) == 1
        output = capsys.readouterr().out
        assert cells(output, split)[-1] == "1" and f"{split}, row 1 (id 'row-2'), column 'spans'" in output


@pytest.mark.parametrize("name, separator", [("rows.json", ",\n"), ("rows.jsonl", "\n"), ("lines.json", "\n")])
def test_json(tmp_path, capsys, name, separator):
    path = tmp_path / name
    lines = separator.join(json.dumps(each, ensure_ascii=False) for each in (row(0), row(1), BAD))
    path.write_text(f"[{lines}]" if separator == ",\n" else lines, encoding="utf-8")
    assert load_rows(path) == {path.stem: [row(0), row(1), BAD]}
    assert validate_path(path) == 1
    assert "row 2 (id 'row-2'), column 'spans'" in capsys.readouterr().out


def test_json_that_arrow_would_refuse_or_change(tmp_path, capsys):
    """Messages as text and as parts, and a column that the first row has not: every row is checked as it stands."""
    plain = {"prompt": [{"role": "user", "content": "Hello?"}]}
    drawn = [
        plain | {"completion": [{"role": "assistant", "content": "Hi."}]},
        row(1),
        row(2, spans=[[1.0, float("nan")]]),
        row(3, duration="20 s"),
        row(4, spans="1-2"),
        row(5, videos="5.mp4"),
        plain,
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(map(json.dumps, drawn)))
    assert validate_path(path) == 1
    output = capsys.readouterr().out
    assert cells(output, "mixed")[-1] == "4"
    for message in (
        "row 2 (id 'row-2'), column 'spans': span 0 has an edge that is not a finite number",
        "row 3 (id 'row-3'), column 'duration': is '20 s'",
        "row 4 (id 'row-4'), column 'spans': is '1-2'",
        "row 6, column 'completion': is missing",
    ):
        assert message in output


def test_kind_is_told_from_the_columns(tmp_path, capsys):
    evaluation = row(0) | {"options": ["a", "b"], "answer_index": 2, "saliency": None}
    pair = {name: value for name, value in row(0).items() if name in PREFERENCE_FEATURES}
    response = row(0)["completion"]
    pair |= dict.fromkeys(PREFERENCE_FEATURES.keys() - pair.keys())
    pair |= {"chosen": response, "rejected": response, "chosen_spans": [[1.0, 2.0]], "rejected_spans": [[1.0, 2.0]]}
    Dataset.from_list([evaluation], features=EVALUATION_FEATURES).save_to_disk(tmp_path / "evaluation")
    Dataset.from_list([pair], features=PREFERENCE_FEATURES).save_to_disk(tmp_path / "preference")
    for kind, message in (
        ("evaluation", "column 'answer_index': is 2, but the row has 2 options"),
        ("preference", "column 'rejected': is equal to 'chosen', in text and spans"),
    ):
        assert validate_path(tmp_path / kind) == 1
        output = capsys.readouterr().out
        assert cells(output, "train")[1] == kind and message in output


def test_only_the_first_faults_are_printed(tmp_path, capsys):
    Dataset.from_list([row(index, spans=[[2, 1]]) for index in range(9)], features=SFT_FEATURES).save_to_disk(tmp_path)
    assert validate_path(tmp_path, limit=4) == 1
    output = capsys.readouterr().out
    assert output.count("runs backwards") == 4 and "train: and 5 more faults" in output


LIST = json.dumps([row(0), row(1)], indent=1)
BROKEN = {
    "list stops in a record": ("a.json", LIST[: LIST.rindex('"answer"')], r"a.json: the JSON stops .*line \d\d"),
    "list stops in a text": ("a.json", LIST[: LIST.rindex("grounding") + 3], r"a.json: the JSON stops .*line \d\d"),
    "line stops": (
        "a.jsonl",
        json.dumps(row(0)) + "\n" + json.dumps(row(1))[:50],
        r"a.jsonl, line 2, line: is no val",
    ),
    "no object": ("a.jsonl", json.dumps(row(0)) + "\n[1]\n", r"a.jsonl, line 2, record: is \[1\], not an object"),
    "text": ("a.txt", "video,start", "a.txt: is no data set. Give a folder, or a .json"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files(tmp_path, fault):
    name, text, message = BROKEN[fault]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        validate_path(tmp_path / name)


def test_nothing_there(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        validate_path(tmp_path / "nothing")
    (tmp_path / "empty.jsonl").write_text("")
    assert validate_path(tmp_path / "empty.jsonl") == 1
    assert "There are no rows." in capsys.readouterr().out


def test_data_sets_on_the_hub(monkeypatch, capsys):
    asked = []

    def load_dataset(name):
        asked.append(name)
        return DatasetDict({"train": Dataset.from_list([row(0)], features=SFT_FEATURES)})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert validate_path("someone/events") == 0
    assert asked == ["someone/events"]


# The page


def test_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(DOCS), "exec"), {})
    assert validate_path("kitchen") == 0
    assert cells(capsys.readouterr().out, "train")[:6] == ["train", "sft", "1", "dense 1", "1", "2.00"]


def test_page_names_every_column():
    lines = re.findall(r"^\| (`.*?) \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {column for line in lines for column in re.findall(r"`(\w+)`", line)}
    features = set(SFT_FEATURES) | set(PREFERENCE_FEATURES) | set(EVALUATION_FEATURES)
    rows = (schema.PromptRow, schema.SFTRow, schema.PreferenceRow, schema.EvaluationRow)
    others = {"response_spans", "images", "objects"}
    assert named == features | others == features.union(*(kind.__annotations__ for kind in rows))
