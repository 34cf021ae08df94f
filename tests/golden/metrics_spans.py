# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The metrics of the span benchmarks against outputs of the original scorers."""

import ast
from typing import Any

import numpy as np

from trl_temporal.evaluation.metrics.charades_sta import charades_sta, lmms_times, to_timechat
from trl_temporal.evaluation.metrics.didemo import didemo
from trl_temporal.evaluation.metrics.nextgqa import nextgqa, nextgqa_references, original_overlaps, spans_from_shares
from trl_temporal.evaluation.metrics.qvhighlights import qvhighlights
from trl_temporal.evaluation.metrics.scores import Scores

from .case import EXACT, Case

FLOAT = 1e-9  # sums and quotients of float64


def check_charades(golden: dict[str, Any], case: Case) -> None:
    """`charades.json`: the scorers of D2VLM, E.T. Chat and lmms-eval."""
    inputs, expected = golden["inputs"], golden["expected"]
    problems = []
    converted = to_timechat(inputs["samples"], problems)
    stops = any(problem.kind == "crash" for problem in problems)
    case.equal("convert, stops", stops, expected["convert_error"] is not None)
    if expected["converted"] is not None:
        case.equal("converted", converted, expected["converted"])

    answers = [{"id": str(sample["idx"]), "text": sample["a"]} for sample in inputs["samples"]]
    if not stops:
        _check_d2vlm(case, "d2vlm", _d2vlm(answers, inputs["gt"]), expected["eval"])
    converted = {key: [value["timestamp"]] if value else [] for key, value in (expected["converted"] or {}).items()}
    answers = [{"id": key, "spans": spans} for key, spans in converted.items()]
    _check_d2vlm(case, "d2vlm, converted file", _d2vlm(answers, inputs["gt"]), expected["eval"])
    dropped = dict.fromkeys(inputs["eval2_drop"], [])
    answers = [{"id": key, "spans": spans} for key, spans in {**converted, **dropped}.items()]
    _check_d2vlm(case, "d2vlm, some failed", _d2vlm(answers, inputs["gt"]), expected["eval_with_failed"])

    samples = list(enumerate(inputs["etchat_eval_grounding"]))
    scores = charades_sta(
        [{"id": index, "spans": [sample["pred"]]} for index, sample in samples],
        [{"id": index, "timestamp": sample["span"]} for index, sample in samples],
        scoring="original",
        scorer="etchat",
    )
    _check_stop(case, "etchat", scores, expected["etchat_eval_grounding"])
    if expected["etchat_eval_grounding"]["error"] is None:
        numbers = {**scores.details, **scores.metrics, "error": None}
        case.equal("etchat", numbers, expected["etchat_eval_grounding"], FLOAT)

    case.equal("lmms-eval, times", [lmms_times(text) for text in inputs["lmms_texts"]], expected["lmms_extract_time"])
    records = [item for record in inputs["lmms_records"] for item in record.items()]
    references = []
    for index, (key, _) in enumerate(records):
        video, caption, timestamp = key.split(">>>")
        reference = {"id": index, "image_id": video, "caption": caption, "timestamp": ast.literal_eval(timestamp)}
        references.append(reference)
    predictions = [{"id": index, "text": text} for index, (_, text) in enumerate(records)]
    scores = charades_sta(predictions, references, scoring="original", scorer="lmms_eval")
    case.equal("lmms-eval", scores.metrics, expected["lmms_metrics"], FLOAT)


def _d2vlm(predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> Scores:
    return charades_sta(predictions, references, scoring="original", scorer="d2vlm")


def _check_stop(case: Case, name: str, scores: Scores, expected: dict[str, Any]) -> None:
    stops = any(problem.kind == "crash" for problem in scores.problems)
    case.equal(f"{name}, stops", stops, expected["error"] is not None)


def _check_d2vlm(case: Case, name: str, scores: Scores, expected: dict[str, Any]) -> None:
    _check_stop(case, name, scores, expected)
    if expected["error"] is not None:
        return
    case.equal(f"{name}, num", scores.details["num"], expected["num"])
    case.equal(f"{name}, Result", scores.details["Result"], expected["Result"], FLOAT)
    printed = dict(line.strip().split(": ") for line in expected["score_file"])
    printed = {key: float(number) for key, number in printed.items()}
    case.equal(f"{name}, table", scores.metrics, printed, FLOAT)


def check_didemo(golden: dict[str, Any], case: Case) -> None:
    """`didemo.json`: the official scorer."""
    references = [{**record, "annotation_id": index} for index, record in enumerate(golden["inputs"]["data"])]
    predictions = [{"id": index, "segments": ranking} for index, ranking in enumerate(golden["inputs"]["segments"])]
    scores = didemo(predictions, references, scoring="original")
    for name, number in golden["expected"].items():
        case.equal(name, scores.metrics[name], number, FLOAT)


def check_qvhighlights(golden: dict[str, Any], case: Case) -> None:
    """`qvhighlights.json`: `eval_submission` of Moment-DETR."""
    names = {"pred_relevant_windows": "windows", "pred_saliency_scores": "saliency"}
    predictions = [
        {"id": record["qid"], **{name: record[key] for key, name in names.items() if key in record}}
        for record in golden["inputs"]["submission"]
    ]
    scores = qvhighlights(predictions, golden["inputs"]["ground_truth"], scoring="original")
    numbers = {"brief": scores.metrics, **scores.details}
    case.equal("parts", sorted(numbers), sorted(golden["expected"]))
    for name, expected in golden["expected"].items():
        case.equal(name, numbers.get(name), expected, EXACT)


def check_nextgqa(golden: dict[str, Any], case: Case) -> None:
    """`nextgqa.json`: `eval_ground` and `get_tIoU`."""
    for index, (inputs, expected) in enumerate(
        zip(golden["inputs"]["cases"], golden["expected"]["cases"], strict=True)
    ):
        answers = inputs["pred_qa"] or {}
        references = nextgqa_references(inputs["gt_ground"])
        if inputs["subset"] is not None:
            references = [reference for reference in references if reference["id"] in set(inputs["subset"])]
        references = [reference | _right_answer(answers.get(reference["id"])) for reference in references]
        predictions = [
            {"id": key, "spans": [span], "choice": answers.get(key, {}).get("prediction")}
            for key, span in inputs["pred_ground"].items()
        ]
        if inputs["gs"]:
            predictions = spans_from_shares(predictions, references)
        scores = nextgqa(predictions, references, scoring="original")
        case.equal(f"case {index}", scores.metrics, expected, FLOAT)

    pairs = np.array(golden["inputs"]["get_tIoU"], dtype=float).reshape(-1, 2, 2)
    overlaps = np.stack(original_overlaps(pairs[:, 0], pairs[:, 1]), axis=1)
    case.equal("get_tIoU", overlaps.tolist(), golden["expected"]["get_tIoU"])


def _right_answer(qa: dict[str, Any] | None) -> dict[str, Any]:
    return {"answer": qa["answer"]} if qa else {}
