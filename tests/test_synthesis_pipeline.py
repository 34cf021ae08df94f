# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Whole data sets of preferences: shares, workers, kills, bad rows, cards, and training on the result."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import datasets
import pytest
import yaml

from tests.helpers import assistant, user
from trl_temporal.data.grammar import format_dense, format_grounding, format_qa
from trl_temporal.data.schema import PREFERENCE_FEATURES, SFT_FEATURES, RowError, validate
from trl_temporal.synthesis import (
    FACTORS,
    SynthesisConfig,
    push_to_hub,
    report_table,
    synthesize_path,
    synthesize_preferences,
)
from trl_temporal.synthesis import pipeline as pipeline_module

ROOT = Path(__file__).parent.parent
CAPTIONS = (
    "A man opens the red box",
    "Two dogs run on the left",
    "The chef cuts an onion 🧅",
    "Ein Mädchen tanzt mit ihm",
)


# Tasks and numbers of events, which take turns. The last caption is one that the rules cannot falsify.
KINDS = [("dense", 3), ("dense", 1), ("dense", 2), ("grounding", 2), ("qa", 1), ("grounding", 1), ("dense", 4)]
SINGLE = {i for i, (_, num_events) in enumerate(KINDS) if num_events == 1}


def make_row(index, **columns):
    task, num_events = KINDS[index % len(KINDS)]
    spans = [
        [round(2.0 + 9 * i + index % 7 / 7, 3), round(6.0 + 9 * i + index % 11 / 11, 3)] for i in range(num_events)
    ]
    captions = [CAPTIONS[(index + i) % len(CAPTIONS)] for i in range(num_events)]
    responses = {
        "dense": format_dense(captions),
        "grounding": format_grounding(num_events),
        "qa": format_qa(captions[0], num_events),
    }
    return {
        "id": f"row-{index}",
        "source": "made",
        "task": task,
        "videos": [{"path": "noise-1-8", "start_s": None, "end_s": None, "frames_dir": None, "fps": None}],
        "prompt": user("What?"),
        "prompt_spans": None,
        "completion": assistant(responses[task]),
        "spans": spans,
        "answer": captions[0] if task == "qa" else "",
        "captions": captions if task == "dense" else [],
        "all_spans": spans,
        "duration": 60.0,
        **columns,
    }


@pytest.fixture(autouse=True, scope="module")
def few_shards():
    """A shard costs a few hundredths of a second, whatever is in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_module, "NUM_SHARDS", 5)
        yield


def make_dataset(num_rows, **columns):
    return datasets.Dataset.from_list([make_row(i, **columns) for i in range(num_rows)], features=SFT_FEATURES)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(210)


def synthesize(src, dst, config=None, **kwargs):
    return synthesize_path(src, dst, config, **{"num_workers": 1, "progress": False, **kwargs})


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """The data set on disk, with one worker."""
    path = tmp_path_factory.mktemp("pairs") / "pairs"
    synthesize(dataset, path, SynthesisConfig(licenses={"made": "cc-by-4.0"}))
    return path


# --- The pairs ---


def test_pairs_follow_the_schema(dataset):
    pairs = synthesize_preferences(dataset)
    assert pairs.features == PREFERENCE_FEATURES
    validate(pairs, "preference")
    rows = {row["id"]: row for row in dataset}
    for pair in pairs:
        row = rows[pair["source_id"]]
        assert pair["id"] == f"{row['id']}-{pair['factor']}"
        assert pair["chosen"] == row["completion"] and pair["chosen_spans"] == row["spans"]
        for column in ("source", "task", "videos", "prompt", "prompt_spans", "captions", "duration"):
            assert pair[column] == row[column]
        assert pair["generator_version"] == "trl_temporal.synthesis 1" and pair["keep_ratio"] is None
        json.loads(pair["factor_args"])
    assert set(pairs["factor"]) == set(FACTORS)


def test_factors_come_as_often_as_their_weights_on_ten_thousand_rows():
    dataset = make_dataset(10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = synthesize_preferences(dataset)
        counts = Counter(pairs["factor"])
        weights = {"shift": 1, "add": 1, "delete": 1, "merge": 1, "distort": 2, "repeat": 2}
        for factor, weight in weights.items():
            assert abs(counts[factor] / 10_000 - weight / 8) < 0.02
        config = SynthesisConfig(weights={"shift": 2, "delete": 1, "distort": 1}, seed=1)
        pairs = synthesize_preferences(dataset, config)
        counts = Counter(pairs["factor"])
        for factor, share in {"shift": 0.5, "delete": 0.25, "distort": 0.25}.items():
            assert abs(counts[factor] / len(pairs) - share) < 0.02


def test_weights_that_the_rows_do_not_allow_are_reported(tmp_path):
    """Rows with a single event: no `delete`, `merge` or `repeat`; what is drawn instead is said."""
    single = make_dataset(7000).filter(lambda row: len(row["spans"]) == 1)
    with pytest.warns(UserWarning, match="shift 25.* instead of 12.5%.*delete 0.0% instead of 12.5%"):
        report = synthesize(single, tmp_path / "pairs")
    assert report.num_pairs == 3000 and report.num_left_out == 0
    assert report.infeasible["delete"] == report.infeasible["repeat"] == 3000
    assert report.infeasible["distort"] == 1000 + 500  # those that ask when, and what the rules cannot falsify
    assert report.shares["delete"] == 0 and report.weights["delete"] == 0.125
    assert abs(report.shares["distort"] - 0.5) < 0.02 and abs(report.shares["add"] - 0.25) < 0.02
    card = (tmp_path / "pairs" / "README.md").read_text()
    assert f"| {report.shares['shift']:.1%} | 12.5% |" in card


def test_a_row_gets_the_same_pair_whatever_stands_beside_it(dataset):
    """But for the shares, which the counts decide: here every class has the same number of rows twice."""
    pairs = {pair["source_id"]: pair for pair in synthesize_preferences(dataset)}
    assert {pair["source_id"]: pair for pair in synthesize_preferences(dataset.shuffle(seed=0))} == pairs
    other = {pair["source_id"]: pair for pair in synthesize_preferences(dataset, SynthesisConfig(seed=1))}
    assert sum(other[id]["factor"] != pair["factor"] for id, pair in pairs.items()) > 50


def test_hard_shifts_and_several_pairs_a_row(dataset):
    pairs = synthesize_preferences(dataset, SynthesisConfig(weights={"shift": 1}, hard=True, num_pairs_per_row=2))
    assert len(pairs) == 420 and len(set(pairs["id"])) == 420
    assert pairs["id"][:2] == ["row-0-0-shift", "row-0-1-shift"]
    for pair in pairs:
        moved = json.loads(pair["factor_args"])["shifted"]
        assert all(1 - 2e-3 <= abs(entry["delta_s"]) <= 2 + 2e-3 for entry in moved)
    validate(pairs, "preference")


def test_rows_that_allow_nothing_are_left_out_and_listed(dataset, tmp_path):
    config = SynthesisConfig(weights={"repeat": 1})
    with pytest.warns(UserWarning, match="120 of 210 rows are left out: row 'row-1' allows none of the factors"):
        report = synthesize(dataset, tmp_path / "pairs", config)
    assert (report.num_pairs, report.num_left_out, report.num_bad_rows) == (90, 120, 0)
    lines = [json.loads(line) for line in (tmp_path / "pairs" / "skipped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"row-{i}" for i in range(210) if i % 7 not in (0, 2, 6)]
    assert "repeat: it needs 2 events, the row has 1" in lines[0]["reason"]
    with pytest.raises(ValueError, match="none of the 8 rows gives a pair. The first: row 'row-1'"):
        synthesize(dataset.select([i for i in range(15) if i % 7 not in (0, 2, 6)]), tmp_path / "none", config)
    assert not (tmp_path / "none" / "unfinished").exists()


# --- Any number of workers, a kill, a resume ---


def test_all_inputs_and_worker_counts_give_the_same_files(dataset, folder, tmp_path):
    on_disk = tmp_path / "rows"
    dataset.save_to_disk(on_disk)
    dataset.to_parquet(tmp_path / "train.parquet")
    dataset.to_json(tmp_path / "train.jsonl", force_ascii=False)
    config = SynthesisConfig(licenses={"made": "cc-by-4.0"})
    data = {
        name: content for name, content in files(folder).items() if name != "synthesis.json" and "README" not in name
    }
    assert len(data) == 5
    for name, (src, num_workers) in {
        "two-workers": (on_disk, 2),
        "parquet": (tmp_path / "train.parquet", 1),
        "jsonl": (tmp_path / "train.jsonl", 1),
        "stream": (dataset.to_iterable_dataset(num_shards=3), 1),
    }.items():
        report = synthesize(src, tmp_path / name, config, num_workers=num_workers)
        made = files(tmp_path / name)
        arrow = "train/data-00000-of-00001.arrow"
        assert made[arrow] == data[arrow]
        assert report.content_hash in (folder / "README.md").read_text()
        if name == "two-workers":
            two_workers = made
    synthesize(on_disk, tmp_path / "one-worker", config)
    assert files(tmp_path / "one-worker") == two_workers


SCRIPT = """
import sys
from trl_temporal.synthesis import SynthesisConfig, synthesize_path
if __name__ == "__main__":
    src, dst = sys.argv[1:]
    synthesize_path(src, dst, SynthesisConfig(), num_workers=2, resume=True, progress=False)
"""


def test_killed_and_resumed_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_module, "NUM_SHARDS", 64)  # as in the processes that are killed
    make_dataset(2000).save_to_disk(tmp_path / "rows")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    synthesize(tmp_path / "rows", whole)
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "run.py", tmp_path / "rows", killed]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for step, num_done in (("check", 20), ("make", 30)):
        marks = killed / "unfinished" / step / "completions"
        run = subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (marks.is_dir() and len(list(marks.iterdir())) >= num_done):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert not (killed / "synthesis.json").exists()
        done = len(list(marks.iterdir()))
        assert num_done <= done < 64
    synthesize(tmp_path / "rows", killed, resume=True)
    assert files(killed) == files(whole)


def test_a_kill_in_the_last_step_is_mended(dataset, tmp_path, monkeypatch):
    """Half of the folder was in place."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    synthesize(dataset, whole)
    replace = os.replace

    def replace_until_train(path, target):
        replace(path, target)
        if Path(target) == killed / "train":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline_module.os, "replace", replace_until_train)
        synthesize(dataset, killed)
    assert (killed / "train").exists() and not (killed / "synthesis.json").exists()
    synthesize(dataset, killed, resume=True)
    assert files(killed) == files(whole)


def test_a_run_goes_on_with_the_same_settings_alone(dataset, tmp_path, monkeypatch):
    pairs = tmp_path / "pairs"

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline_module, "_finish", stopped)
        synthesize(dataset, pairs)
    with pytest.raises(FileExistsError, match="holds a run that was stopped. Go on with it by `resume`"):
        synthesize(dataset, pairs)
    with pytest.raises(
        ValueError, match=r"begun with another 'config': \{'seed': 0\}, not \{'seed': 1\}. Resume with"
    ):
        synthesize(dataset, pairs, SynthesisConfig(seed=1), resume=True)
    with pytest.raises(ValueError, match="begun with another 'rows'"):
        synthesize(dataset.select(range(209)), pairs, resume=True)
    report = synthesize(dataset, pairs, resume=True)
    assert report.num_pairs == 210
    # Finished: nothing is made again, and nothing is left of the work.
    times = {path: path.stat().st_mtime_ns for path in pairs.rglob("*")}
    assert synthesize(dataset, pairs, resume=True) == report
    assert {path: path.stat().st_mtime_ns for path in pairs.rglob("*")}.keys() == times.keys()
    with pytest.raises(FileExistsError, match="is finished"):
        synthesize(dataset, pairs)
    with pytest.raises(ValueError, match="another 'config'"):
        synthesize(dataset, pairs, SynthesisConfig(hard=True), resume=True)


def test_a_folder_of_something_else_is_left_alone(dataset, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="not empty. Remove it, or choose another folder"):
            synthesize(dataset, tmp_path, resume=resume)


def test_splits_are_kept(dataset, tmp_path):
    splits = datasets.DatasetDict({"train": dataset, "test": dataset.select([0, 2, 4])})
    report = synthesize(splits, tmp_path / "pairs")
    pairs = datasets.load_from_disk(tmp_path / "pairs")
    assert {split: len(rows) for split, rows in pairs.items()} == {"train": 210, "test": 3}
    assert report.num_rows == 213


def test_slurm_is_asked_step_by_step(dataset, tmp_path, monkeypatch):
    """Each call submits what is not done; the third one writes the data set."""
    real, submitted = pipeline_module.run_shards, []

    def submit(step, sizes, logging_dir, *, executor, executor_args, **kwargs):
        assert executor == "slurm" and executor_args == {"time": "1:00:00", "partition": "cpu"}
        if step.name in submitted:
            return True
        submitted.append(step.name)
        real(step, sizes, logging_dir, num_workers=1)
        return False

    monkeypatch.setattr(pipeline_module, "run_shards", submit)
    args = {"executor": "slurm", "executor_args": {"time": "1:00:00", "partition": "cpu"}, "resume": True}
    assert synthesize(dataset, tmp_path / "pairs", **args) is None
    assert synthesize(dataset, tmp_path / "pairs", **args) is None
    assert synthesize(dataset, tmp_path / "pairs", **args).num_pairs == 210
    assert submitted == ["check rows", "make pairs"]


@pytest.mark.slow
def test_a_local_ray_gives_the_same_files(dataset, folder, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2)
    try:
        config = SynthesisConfig(licenses={"made": "cc-by-4.0"})
        report = synthesize(dataset, tmp_path / "pairs", config, executor="ray", num_workers=2)
    finally:
        ray.shutdown()
    assert report.content_hash in (folder / "README.md").read_text()


# --- Bad rows ---


def bad_rows():
    rows = [make_row(i) for i in range(100)]
    rows[7]["spans"] = [[5.0, float("nan")]]
    rows[30]["spans"] = [[9.0, 3.0]] * len(rows[30]["spans"])
    rows[31]["spans"] = [[50.0, 70.0]]
    rows[62]["completion"] = assistant("<evi> </evi> One event in <evi>.")
    rows[90]["id"] = "row-10"
    return rows


def test_a_bad_row_stops_the_synthesis(tmp_path):
    dataset = datasets.Dataset.from_list(bad_rows(), features=SFT_FEATURES)
    for run in (
        lambda: synthesize_preferences(dataset),
        lambda: synthesize(dataset, tmp_path / "pairs", num_workers=2),
    ):
        with pytest.raises(RowError, match=r"row \d+ \(id 'row-\d+'\), column .*on_bad_record='skip'"):
            run()
    assert not (tmp_path / "pairs" / "unfinished").exists()


def test_bad_rows_are_skipped_and_listed(tmp_path):
    dataset = datasets.Dataset.from_list(bad_rows(), features=SFT_FEATURES)
    config = SynthesisConfig(on_bad_record="skip")
    with pytest.warns(UserWarning, match="5 of 100 rows are left out: row 7"):
        report = synthesize(dataset, tmp_path / "pairs", config)
    assert (report.num_rows, report.num_pairs, report.num_bad_rows, report.num_left_out) == (100, 95, 5, 0)
    lines = [json.loads(line) for line in (tmp_path / "pairs" / "skipped.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [7, 30, 31, 62, 90]
    for line, word in zip(lines, ["finite", "backwards", "beyond the end", "<evi>", "also the id"], strict=True):
        assert word in line["reason"]
    with pytest.warns(UserWarning, match="5 of 100"):
        in_memory = synthesize_preferences(dataset, config)
    assert list(in_memory) == list(datasets.load_from_disk(tmp_path / "pairs")["train"])


def test_an_id_that_a_far_row_has_too_is_found(tmp_path):
    """Rows of different shards."""
    dataset = make_dataset(100).map(lambda row, i: {"id": "row-0" if i == 99 else row["id"]}, with_indices=True)
    with pytest.raises(RowError, match=r"row 99 \(id 'row-0'\), column 'id': is also the id of an earlier row"):
        synthesize(dataset, tmp_path / "pairs")


def test_missing_and_mistyped_columns_are_named(dataset, tmp_path):
    with pytest.raises(ValueError, match="column 'completion' is missing. Preferences are made from SFT rows"):
        synthesize_preferences(dataset.remove_columns("completion"))
    strings = dataset.remove_columns("spans").add_column("spans", ["0-1"] * len(dataset))
    with pytest.raises(ValueError, match="column 'spans' is of type"):
        synthesize_preferences(strings)
    with pytest.raises(ValueError, match="do not fit `SFT_FEATURES`"):
        synthesize(datasets.IterableDataset.from_generator(lambda: iter([make_row(0, spans="0-1")])), tmp_path / "a")
    # A later try does not take up what was left.
    assert synthesize(dataset, tmp_path / "a", resume=True).num_pairs == 210


def test_columns_that_are_not_needed_may_be_missing(dataset):
    fewer = dataset.filter(lambda row: row["task"] == "grounding").select_columns(
        ["id", "task", "videos", "prompt", "completion", "spans"]
    )
    pairs = synthesize_preferences(fewer, SynthesisConfig(weights={"shift": 1}))
    assert pairs.features == PREFERENCE_FEATURES and set(pairs["duration"]) == {None}


# --- The folder ---


def test_the_folder_is_a_data_set_with_a_card(folder, tmp_path):
    for pairs in (
        datasets.load_from_disk(folder),
        datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache")),
    ):
        assert isinstance(pairs, datasets.DatasetDict) and list(pairs) == ["train"]
        assert pairs["train"].features == PREFERENCE_FEATURES and len(pairs["train"]) == 210
        validate(pairs["train"], "preference")
    _, head, card = (folder / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "cc-by-4.0"
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "train/*.arrow"}]
    counts = Counter(pairs["train"]["factor"])
    assert all(f"| `{factor}` | " in card and f" | {counts[factor]} | " in card for factor in FACTORS)
    assert "seed 0" in card and "| made | cc-by-4.0 |" in card and card.count("```json") == 3
    assert not list(folder.rglob("*.part")) and not (folder / "unfinished").exists()


def test_the_report_is_in_the_folder(folder):
    result = json.loads((folder / "synthesis.json").read_text())
    assert result["config"]["seed"] == 0 and result["generator_version"] == "trl_temporal.synthesis 1"
    report = pipeline_module.SynthesisReport(**result["report"])
    counts = Counter(datasets.load_from_disk(folder)["train"]["factor"])
    for factor in FACTORS:
        assert sum(row.get(factor, 0) for row in report.pairs.values()) == counts[factor]
    table = report_table(report)
    assert table.row_count == 6 and "210 pairs from 210 rows" in table.title


def test_push_to_hub_uploads_the_folder(folder, tmp_path, monkeypatch):
    calls = {}
    monkeypatch.setattr(
        "trl_temporal.synthesis.card.HfApi.create_repo", lambda self, *a, **k: calls.update(create=k) or "U"
    )
    monkeypatch.setattr("trl_temporal.synthesis.card.HfApi.upload_folder", lambda self, **k: calls.update(upload=k))
    assert push_to_hub(folder, "me/pairs", private=True) == "U"
    assert calls["create"]["private"] and calls["create"]["repo_type"] == calls["upload"]["repo_type"] == "dataset"
    assert calls["upload"]["folder_path"] == folder and calls["upload"]["repo_id"] == "me/pairs"
    with pytest.raises(FileNotFoundError, match="holds no finished pairs"):
        push_to_hub(tmp_path, "me/pairs")


def test_fpo_trains_on_the_pairs(event_world, tiny_dir, config, tmp_path):
    from trl_temporal import FPOConfig, FPOTrainer

    synthesize(event_world["train"], tmp_path / "pairs", SynthesisConfig(distort="event_world"))
    pairs = datasets.load_dataset(str(tmp_path / "pairs"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(set(pairs["factor"])) >= 3
    trainer = FPOTrainer(str(tiny_dir), args=config(FPOConfig, max_steps=2), train_dataset=pairs)
    trainer.train()
    logs = trainer.state.log_history
    assert logs[0]["loss/preference"] > 0 and logs[1]["loss"] != logs[0]["loss"]


# --- Settings ---


def test_the_recipe_has_the_defaults():
    path = ROOT / "recipes" / "synthesis" / "default.yaml"
    assert path.read_text().startswith("# trl-temporal synthesize SRC DST --config recipes/synthesis/default.yaml\n")
    assert SynthesisConfig.from_yaml(path) == SynthesisConfig()
    assert set(yaml.safe_load(path.read_text())) == set(vars(SynthesisConfig()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"weights": {"shuffle": 1}}, "give a number for some of shift, add"),
        ({"weights": {"shift": 0}}, "one of them is more"),
        ({"weights": {"shift": -1, "add": 2}}, "at least 0"),
        ({"num_pairs_per_row": 0}, "at least 1"),
        ({"distort": "magic"}, "one of rules, event_world, transformers, openai"),
        ({"on_bad_record": "ignore"}, "'raise' or 'skip'"),
        ({"sed": 1}, "unknown 'sed'. There are seed, weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=f"config.yaml: .*{message}"):
        SynthesisConfig.from_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="holds no settings"):
        SynthesisConfig.from_yaml(tmp_path / "config.yaml")


def test_wrong_arguments_of_a_backend_are_found_before_any_work(dataset, tmp_path):
    with pytest.raises(ValueError, match="distort_args do not fit the backend 'openai'"):
        synthesize(dataset, tmp_path / "pairs", SynthesisConfig(distort="openai", distort_args={"modle": "x"}))
    assert not (tmp_path / "pairs").exists()
