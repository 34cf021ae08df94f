# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Vinoground: pairs of captions and videos that differ in their order only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .choices import answer_index, read_answer
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions

# The questions of a pair, as they end the ids.
QUESTIONS = ("pos_text", "neg_text", "pos_video", "neg_video")
NUM_PAIRS = 500


def vinoground(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], *, scoring: Scoring = "fixed"
) -> Scores:
    """
    Score answers to Vinoground.

    Args:
        predictions (`Sequence[Mapping]`):
            Answers: `id` and `text`.
        references (`Sequence[Mapping]`):
            The four questions of every pair: `id` (the benchmark's `index`: `"<pair>_pos_text"`, `"<pair>_neg_text"`,
            `"<pair>_pos_video"` and `"<pair>_neg_video"`), `answer` (`"A"` or `"B"`), and, where known, `options`
            (texts), `major` and `minor` (categories, the latter several with `;` between them).
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: [`read_choice`] reads the answers. `"original"`: their first character is the answer. Missing
            ones are wrong in both.

    Returns:
        [`Scores`]: percentages of pairs: `text` (both captions chosen right), `video` (both videos), `group` (both).
        `details` has the same for every category, and `accuracy` over all questions. `num_samples` is the number of
        pairs.

    Raises:
        ValueError: if `scoring` does not exist, an id has another form, or a pair lacks a question.

    Example:
        >>> from trl_temporal.evaluation.metrics.vinoground import QUESTIONS, vinoground
        >>> samples = [{"id": f"0_{question}", "answer": "A"} for question in QUESTIONS]
        >>> answers = ["A", "(A)", "A.", "B"]
        >>> vinoground([{"id": s["id"], "text": a} for s, a in zip(samples, answers)], samples).metrics
        {'text': 100.0, 'video': 0.0, 'group': 0.0}
    """
    check_scoring(scoring)
    problems: list[Problem] = []
    matched = match_predictions([reference["id"] for reference in references], predictions, problems)
    if scoring == "original":
        # Of several predictions for one question the original keeps the last.
        last = {str(prediction["id"]): prediction for prediction in predictions}
        matched = [last.get(str(reference["id"])) for reference in references]
    is_right = _is_right if scoring == "fixed" else _is_right_by_first_character
    right_of = {
        str(reference["id"]): prediction is not None and is_right(reference, prediction, problems)
        for reference, prediction in zip(references, matched, strict=True)
    }
    pairs = _pairs(references)
    if scoring == "original" and len(pairs) != NUM_PAIRS:
        problems.append(Problem("", "crash", f"{len(pairs)} pairs, the original wants {NUM_PAIRS}"))
    right = np.array([[right_of[f"{pair}_{question}"] for question in QUESTIONS] for pair in pairs], dtype=bool)
    right = right.reshape(-1, len(QUESTIONS))
    text, video = right[:, :2].all(axis=1), right[:, 2:].all(axis=1)
    scores = {"text": text, "video": video, "group": text & video}
    categories = {category: [] for category in sorted({name for names in pairs.values() for name in names})}
    for row, names in enumerate(pairs.values()):
        for name in names:
            categories[name].append(row)
    return Scores(
        {name: _percent(values) for name, values in scores.items()},
        problems,
        num_samples=len(pairs),
        details={
            "accuracy": _percent(right.ravel()),
            "categories": {
                category: {name: _percent(values[rows]) for name, values in scores.items()}
                for category, rows in categories.items()
            },
        },
    )


def _percent(right: np.ndarray) -> float:
    return float(right.mean() * 100) if right.size else 0.0


def _pairs(references: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The pairs with their categories, all with all four questions."""
    categories, questions = {}, {}
    for reference in references:
        pair, _, question = str(reference["id"]).partition("_")
        if question not in QUESTIONS:
            raise ValueError(f"the id {reference['id']!r} is not of the form '<pair>_<question>', one of {QUESTIONS}")
        minor = reference.get("minor")
        names = [reference["major"]] if reference.get("major") else []
        categories[pair] = list(
            dict.fromkeys([*categories.get(pair, []), *names, *(minor.split(";") if minor else [])])
        )
        questions.setdefault(pair, set()).add(question)
    for pair, found in questions.items():
        if len(found) < len(QUESTIONS):
            raise ValueError(f"the pair {pair!r} lacks the questions {sorted(set(QUESTIONS) - found)}")
    return categories


def _is_right(reference: Mapping[str, Any], prediction: Mapping[str, Any], problems: list[Problem]) -> bool:
    options = reference.get("options")
    answer = read_answer(str(reference["id"]), prediction.get("text"), 2, options, problems)
    return answer is not None and answer == answer_index(reference["answer"], options)


def _is_right_by_first_character(
    reference: Mapping[str, Any], prediction: Mapping[str, Any], problems: list[Problem]
) -> bool:
    # "(A)" is wrong for the original, "a dog" chooses A.
    text = prediction.get("text")
    if not isinstance(text, str) or not text:
        problems.append(Problem(str(reference["id"]), "crash", f"the prediction is {text!r}"))
        return False
    return text[0].lower() == reference["answer"].lower()
