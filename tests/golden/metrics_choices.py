# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Checks of the multiple-choice metrics against the outputs of the original scorers."""

from typing import Any

from trl_temporal.evaluation.metrics.mvbench import mvbench
from trl_temporal.evaluation.metrics.tempcompass import from_records, original_rating, tempcompass
from trl_temporal.evaluation.metrics.videomme import extract_characters_regex, extract_mcq_answer, videomme
from trl_temporal.evaluation.metrics.vinoground import vinoground

from .case import Case

TEMPCOMPASS_FILES = {
    "tempcompass_mc": "multi-choice",
    "tempcompass_yes_no": "yes_no",
    "tempcompass_cm": "caption_matching",
}


def check_mcq(golden: dict[str, Any], case: Case) -> None:
    """Multiple choice: MVBench, Video-MME and TempCompass."""
    inputs, expected = golden["inputs"], golden["expected"]
    if "mvbench_d2vlm" in inputs:
        ours = _mvbench([(answer, text) for text, answer in inputs["mvbench_d2vlm"]], "d2vlm")
        case.equal("mvbench d2vlm", ours, [bool(right) for right in expected["mvbench_d2vlm"]])
    if "mvbench_lmms" in inputs:
        ours = _mvbench(inputs["mvbench_lmms"], "lmms_eval")
        case.equal("mvbench lmms-eval", ours, [bool(right) for right in expected["mvbench_lmms"]])
    for name, scorer, extract in (
        ("videomme_d2vlm", "d2vlm", extract_characters_regex),
        ("videomme_lmms", "lmms_eval", extract_mcq_answer),
    ):
        if name in inputs:
            case.equal(f"{name} letter", [extract(text) for text in inputs[name]], expected[name])
            _check_videomme(name, scorer, inputs[name], expected[name], case)
    for name, task in TEMPCOMPASS_FILES.items():
        if name in inputs:
            _check_tempcompass(name, task, inputs[name], expected[name], case)


def _mvbench(pairs: list, scorer: str) -> list[bool]:
    """One task per sample, so that the table of tasks shows every sample."""
    references = [{"id": str(n), "task": str(n), "answer": answer} for n, (answer, _) in enumerate(pairs)]
    predictions = [{"id": str(n), "text": text} for n, (_, text) in enumerate(pairs)]
    metrics = mvbench(predictions, references, scoring="original", scorer=scorer).metrics
    return [metrics.get(str(n), 0.0) == 100 for n in range(len(pairs))]


def _check_videomme(name: str, scorer: str, texts: list[str], letters: list[str], case: Case) -> None:
    """With the golden's letters as truth, every answer that has one is right."""
    references = [{"id": str(n), "duration": "long", "answer": letter or "A"} for n, letter in enumerate(letters)]
    predictions = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    scores = videomme(predictions, references, scoring="original", scorer=scorer)
    answered = sum(map(bool, letters))
    denominator = answered if scorer == "d2vlm" else len(letters)
    case.equal(f"{name} denominator", scores.num_samples, denominator)
    overall = 100 * answered / denominator if denominator else 0.0
    case.equal(f"{name} overall", scores.metrics["Overall"], overall, 1e-9)


def _check_tempcompass(name: str, task: str, records: dict, expected: dict, case: Case) -> None:
    ours = {
        video: {
            dim: [
                [rating.is_right * 1, rating.is_matched]
                for sample in samples
                for rating in [original_rating({"task": task, **sample}, sample["prediction"])]
            ]
            for dim, samples in dims.items()
        }
        for video, dims in records.items()
    }
    case.equal(f"{name} ratings", ours, expected)
    ratings = [rating for dims in expected.values() for samples in dims.values() for rating in samples]
    metrics = tempcompass(*from_records(records, task), scoring="original").metrics
    average = round(sum(right for right, _ in ratings) * 100 / len(ratings), 1)
    match_rate = round(sum(matched for _, matched in ratings) / len(ratings) * 100, 1)
    case.equal(f"{name} table", [metrics["Avg"], metrics[f"{task}/match_rate"]], [average, match_rate])


def check_vinoground(golden: dict[str, Any], case: Case) -> None:
    """Vinoground: rows of categories and (truth, answer) of pos-text, pos-video, neg-text and neg-video."""
    references, predictions = [], []
    for pair, (major, minor, *answers) in enumerate(golden["inputs"]["rows"]):
        for index, question in enumerate(("pos_text", "pos_video", "neg_text", "neg_video")):
            sample_id = f"{pair}_{question}"
            references.append({"id": sample_id, "major": major, "minor": minor, "answer": answers[2 * index]})
            predictions.append({"id": sample_id, "text": answers[2 * index + 1]})
    scores = vinoground(predictions, references, scoring="original")
    case.equal("text, video, group", list(scores.metrics.values()), golden["expected"])
