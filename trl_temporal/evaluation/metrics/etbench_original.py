# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
E.T. Bench as the released scorers score it, bugs included: one function a task, on the samples of one source.

A function raises what the released scorer raises where that stops with an error.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...data.grammar import EVI_END
from .etbench_captions import Sample, Tools, score_captions
from .etbench_text import Interval, read_both_halves, read_intervals
from .grounding import IOU_THRESHOLDS
from .sentence_similarity import SentenceEncoder, SentenceModelMissing

_NUM_BINS = 1000
_LETTERS = "abcde"


class OriginalScorer(NamedTuple):
    """
    What tells the released scorers from each other.

    Attributes:
        is_grounded (`bool`):
            Reads `EVIDENCE </evi> ANSWER`, and scores both halves.
        is_strict (`bool`):
            A wrong letter of RAR, EVC and RVQ is a miss. The others then choose the most similar option.
    """

    is_grounded: bool
    is_strict: bool


SCORERS = {
    "d2vlm": OriginalScorer(is_grounded=True, is_strict=True),
    "d2vlm_looser": OriginalScorer(is_grounded=True, is_strict=False),
    "etchat": OriginalScorer(is_grounded=False, is_strict=False),
    "etchat_strict_rvq": OriginalScorer(is_grounded=False, is_strict=True),
}


def score_source(task: str, samples: Sequence[Sample], scorer: OriginalScorer, tools: Tools) -> dict[str, Any]:
    """
    Score the samples of one source of a task.

    Args:
        task (`str`):
            Task of E.T. Bench.
        samples (`Sequence[Mapping]`):
            Records with their answers, at least one.
        scorer ([`OriginalScorer`]):
            Which of the scorers.
        tools ([`Tools`]):
            Sentence model and caption tools.

    Returns:
        `dict`: the scorer's numbers, rounded to 5 decimals. Those of captions are left out without their tools.

    Raises:
        SentenceModelMissing: if options have to be compared, and there is no sentence model.
        ValueError, ZeroDivisionError, OverflowError, NotImplementedError, AttributeError, IndexError: where the
            released scorer stops with that error.
    """
    if task in ("tvg", "epm"):
        return _score_single(samples, scorer)
    if task == "tem":
        return _score_any_window(samples, scorer)
    if task == "tal":
        return _score_sets(samples, scorer)
    if task == "evs":
        return _score_summaries(samples, scorer)
    if task == "vhd":
        return _score_highlights(samples, scorer)
    if task in ("rar", "eca", "rvq"):
        return _score_options(samples, scorer, tools.encoder)
    if task == "gvq":
        return _score_grounded_options(samples, scorer, tools.encoder)
    return score_captions(samples, scorer.is_grounded, tools)


def _read(text: str, scorer: OriginalScorer) -> tuple[list[Interval] | None, list[Interval] | None]:
    return read_both_halves(text) if scorer.is_grounded else (read_intervals(text), None)


# --- Intervals ---


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU in float32 without any guard: NaN of two points, odd numbers of reversed evidence."""
    with np.errstate(all="ignore"):
        a, b = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
        intersection = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
        intersection = np.maximum(intersection, 0)
        return intersection / (a[..., 1] - a[..., 0] + (b[..., 1] - b[..., 0]) - intersection)


def _best_ious(truths: Sequence[Sequence[Interval]], answers: Sequence[Sequence[Interval]]) -> list[float]:
    """The best IoU of every sample, where one side has a single interval. One NaN makes it NaN."""
    if not truths:
        return []
    sizes = [max(len(truth), len(answer)) for truth, answer in zip(truths, answers, strict=True)]
    with np.errstate(over="ignore"):
        sides = [
            np.concatenate(
                [
                    np.broadcast_to(np.asarray(intervals, dtype=np.float32), (size, 2))
                    for intervals, size in zip(side, sizes, strict=True)
                ]
            )
            for side in (truths, answers)
        ]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.maximum.reduceat(_iou(*sides), starts).astype(np.float64).tolist()


def _recalls(ious: list[float], num_samples: int, name: str, mean_name: str, half: str = "") -> dict[str, float]:
    # In double precision: the float32 next to 0.7 lies below, so an IoU of exactly 0.7 is a miss.
    recalls = [sum(iou >= threshold for iou in ious) / num_samples for threshold in IOU_THRESHOLDS]
    scores = {
        f"{name}{half}@{threshold}": round(recall, 5)
        for threshold, recall in zip(IOU_THRESHOLDS, recalls, strict=True)
    }
    scores[f"{mean_name}{half}"] = round(sum(recalls) / len(recalls), 5)
    return scores


def _mean(values: list[float], num_samples: int) -> float:
    return round(sum(values) / num_samples, 5)


def _score_single(samples: Sequence[Sample], scorer: OriginalScorer) -> dict[str, Any]:
    """TVG, EPM. The grounded scorers take the best of all intervals of an answer."""
    read = [(sample["tgt"], *_read(sample["a"], scorer)) for sample in samples]
    read = [(truth, answer, evidence) for truth, answer, evidence in read if answer]
    truths = [[truth] for truth, _, _ in read]
    answers = [answer if scorer.is_grounded else answer[:1] for _, answer, _ in read]
    evidences = [evidence or answer for _, answer, evidence in read]
    return _score_recalls(samples, scorer, truths, answers, evidences, "F1", "F1")


def _score_any_window(samples: Sequence[Sample], scorer: OriginalScorer) -> dict[str, Any]:
    """TEM."""
    read = [(sample["tgt"], *_read(sample["a"], scorer)) for sample in samples]
    read = [(truth, answer, evidence) for truth, answer, evidence in read if answer]
    answers = [answer[:1] for _, answer, _ in read]
    evidences = [(evidence or answer)[:1] for _, answer, evidence in read]
    return _score_recalls(samples, scorer, [truth for truth, _, _ in read], answers, evidences, "R", "mRec")


def _score_recalls(
    samples: Sequence[Sample],
    scorer: OriginalScorer,
    truths: list[list[Interval]],
    answers: list[list[Interval]],
    evidences: list[list[Interval]],
    name: str,
    mean_name: str,
) -> dict[str, Any]:
    num = len(samples)
    ious = _best_ious(truths, answers)
    scores = {"Total": num, "Failed": num - len(ious), "mIoU": _mean(ious, num)}
    scores |= _recalls(ious, num, name, mean_name)
    if scorer.is_grounded:
        ious = _best_ious(truths, evidences)
        scores |= {"mIoU_evi": _mean(ious, num)} | _recalls(ious, num, name, mean_name, "_evi")
    return scores


def _score_sets(samples: Sequence[Sample], scorer: OriginalScorer) -> dict[str, Any]:
    """TAL."""
    num_failed = 0
    sums, evidence_sums = [0.0] * len(IOU_THRESHOLDS), [0.0] * len(IOU_THRESHOLDS)
    for sample in samples:
        answer, evidence = _read(sample["a"], scorer)
        if answer is None:
            num_failed += 1
            continue
        truth = np.array(sample["tgt"], dtype=np.float64)[:, None]
        table = _iou(truth, np.array(answer)[None])
        evidence_table = _iou(truth, np.array(evidence or answer)[None])
        for index, threshold in enumerate(np.float32(IOU_THRESHOLDS)):  # float32 on both sides: 0.7 is a hit
            if table.max() < threshold:
                continue
            sums[index] = _add_f1(sums[index], table, threshold, scorer)
            if scorer.is_grounded:  # only where the answer hits
                evidence_sums[index] = _add_f1(evidence_sums[index], evidence_table, threshold, scorer)
    scores = {"Total": len(samples), "Failed": num_failed, **_mean_f1s(sums, len(samples))}
    return scores | (_mean_f1s(evidence_sums, len(samples), "_evi") if scorer.is_grounded else {})


def _add_f1(total: float, table: np.ndarray, threshold: np.float32, scorer: OriginalScorer) -> float:
    recall, precision = (
        float(np.float32(hits.sum()) / np.float32(len(hits)))
        for hits in (table.max(axis=1) >= threshold, table.max(axis=0) >= threshold)
    )
    # The grounded scorers then begin the sum over samples again; the others divide by zero.
    if scorer.is_grounded and recall == 0 and precision == 0:
        return 0.0
    return total + 2 * precision * recall / (precision + recall)


def _mean_f1s(sums: list[float], num_samples: int, half: str = "") -> dict[str, float]:
    means = [total / num_samples for total in sums]
    scores = {f"F1{half}@{threshold}": round(mean, 5) for threshold, mean in zip(IOU_THRESHOLDS, means, strict=True)}
    return scores | {f"F1{half}": round(sum(means) / len(means), 5)}


def _score_summaries(samples: Sequence[Sample], scorer: OriginalScorer) -> dict[str, Any]:
    """EVS. What cannot be read is not in the mean."""
    scored = []
    for sample in samples:
        answer, evidence = _read(sample["a"], scorer)
        if answer is None:
            continue
        predicted = np.zeros(_NUM_BINS, dtype=bool)
        if scorer.is_grounded:
            visited, answer = _without_endless(answer)
            # Evidence is drawn into the same bins: answer and evidence both score as their union.
            _draw(predicted, visited)
            _draw(predicted, answer if evidence is None else evidence)
        else:
            _draw(predicted, answer)
        true = np.zeros(_NUM_BINS, dtype=bool)
        _draw(true, sample["tgt"])
        num_hits = int((true & predicted).sum())
        recall, precision = (num_hits / int(bins.sum()) if num_hits else 0.0 for bins in (true, predicted))
        scored.append(2 * precision * recall / (precision + recall) if num_hits else 0.0)
    f1 = _mean(scored, len(scored)) if scored else 0.0
    scores = {"Total": len(samples), "Failed": len(samples) - len(scored), "F1": f1}
    return scores | ({"F1_evi": f1} if scorer.is_grounded else {})


def _draw(bins: np.ndarray, intervals: Sequence[Interval]) -> None:
    for start_s, end_s in intervals:
        bins[max(0, round(start_s)) : round(end_s)] = True


def _without_endless(intervals: list[Interval]) -> tuple[list[Interval], list[Interval]]:
    """
    Intervals with a finite end, and what is then left of all.

    The original takes endless ones out of the list that it goes through, and so passes over those behind them.
    """
    visited, left, place = [], list(intervals), 0
    while place < len(left):
        interval = left[place]
        round(interval[0])  # an endless start is an error
        if math.isinf(interval[1]):
            left.remove(interval)
        else:
            visited.append(interval)
        place += 1
    return visited, left


def _score_highlights(samples: Sequence[Sample], scorer: OriginalScorer) -> dict[str, Any]:
    """VHD."""
    num_failed = 0
    hits, evidence_hits = [], []
    for sample in samples:
        if scorer.is_grounded:
            times = _middles(sample["a"])
        else:
            match = re.search(r"[-+]?\d*\.\d+|[-+]?\d+", sample["a"])
            times = (float(match[0]), None) if match else None
        if times is None:
            num_failed += 1
            continue
        truth = sample["tgt"]
        annotators = truth if isinstance(truth[0][0], list | tuple) else [truth]
        time, evidence_time = (
            any(start <= x <= end for segments in annotators for start, end in segments) if x is not None else False
            for x in times
        )
        hits.append(time)
        evidence_hits.append(evidence_time)
    num = len(samples)
    scores = {"Total": num, "Failed": num_failed, "F1": _mean(hits, num)}
    return scores | ({"F1_evi": _mean(evidence_hits, num)} if scorer.is_grounded else {})


def _middles(text: str) -> tuple[float, float] | None:
    """Middle of the first interval of the answer, and of the evidence."""
    evidence, *rest = text.split(EVI_END)
    if not rest:
        return None
    answer, evidence = read_intervals(rest[-1]), read_intervals(evidence)
    if not answer:
        return None
    middles = [(intervals[0][0] + intervals[0][1]) / 2 for intervals in (answer, evidence or answer)]
    return middles[0], middles[1]


# --- Options ---


def _score_options(
    samples: Sequence[Sample], scorer: OriginalScorer, encoder: SentenceEncoder | None
) -> dict[str, Any]:
    """RAR, EVC, RVQ."""
    num_options = _count_options(samples[0])
    num_failed = 0
    choices: list[int | None] = []
    compared: list[tuple[int, str]] = []  # sample, and the text to compare with its options
    num_letters = num_right_letters = 0
    for sample in samples:
        text = sample["a"].split(EVI_END)[-1] if scorer.is_grounded else sample["a"]
        choice, has_letter, rest = _read_letter(text, sample["p"], num_options, scorer)
        if choice is not None:
            num_letters += 1
            num_right_letters += choice == sample["p"]
        elif not rest:
            num_failed += 1
        else:
            num_failed += not has_letter
            compared.append((len(choices), rest))
        choices.append(choice)
    _fill_in(choices, compared, samples, encoder)
    num = len(samples)
    accuracy = sum(choice == sample["p"] for choice, sample in zip(choices, samples, strict=True)) / num
    scores = {"Total": num, "Failed": num_failed, "Acc": round(accuracy, 5)}
    if scorer.is_grounded:
        scores["Matched_count"] = num_letters
        scores["matched_ratio"] = num_letters / num
        scores["correct_ratio_within_matched"] = num_right_letters / (num_letters + 1e-7)
    return scores


def _read_letter(text: str, truth: int, num_options: int, scorer: OriginalScorer) -> tuple[int | None, bool, str]:
    """Option that the text's letter decides, whether there is a letter, and else the text to compare with options."""

    def decides(letter: str) -> bool:
        index = _LETTERS[:num_options].find(letter)
        return index >= 0 and (scorer.is_strict or index == truth)

    has_letter = False
    # The grounded scorers look "(x)" up with its brackets, and never find it.
    in_brackets = None if scorer.is_grounded else re.search(r"\(([A-Za-z])\)", text)
    if in_brackets:
        has_letter = True
        letter = in_brackets[1].lower()
        if decides(letter):
            return _LETTERS.index(letter), has_letter, ""
    text = _without_preamble(text.lower())
    if _begins_with_letter(text):  # "a dog" too
        has_letter = has_letter or not scorer.is_grounded
        if decides(text[0]):
            return _LETTERS.index(text[0]), has_letter, ""
    return None, has_letter, text


def _without_preamble(text: str) -> str:
    if text.lower().startswith("best option:"):
        text = text[len("best option:") :]
    return text.lstrip().lstrip("(").lstrip()


def _begins_with_letter(text: str) -> bool:
    return len(text) == 1 or (len(text) > 1 and text[1] in ("., )"))


def _count_options(sample: Sample) -> int:
    if len(sample["o"]) not in (4, 5):
        raise NotImplementedError(f"{len(sample['o'])} options: the original knows 4 or 5")
    return len(sample["o"])


def _fill_in(
    choices: list[int | None],
    compared: list[tuple[int, str]],
    samples: Sequence[Sample],
    encoder: SentenceEncoder | None,
) -> None:
    """Choose the option that is most similar to the text, the first of equals."""
    if not compared:
        return
    options = [
        [
            f"({'ABCDE'[index]}) " + (f"{option[0]} - {option[1]}" if isinstance(option, list | tuple) else option)
            for index, option in enumerate(samples[place]["o"])
        ]
        for place, _ in compared
    ]
    if encoder is None:
        raise SentenceModelMissing(f"{len(compared)} answers have to be compared with their options by MiniLM")
    encoder.encode(
        [text for (_, text), of_sample in zip(compared, options, strict=True) for text in (text, *of_sample)]
    )
    for (place, text), of_sample in zip(compared, options, strict=True):
        vectors = encoder.encode([text, *of_sample])
        choices[place] = int((vectors[1:] @ vectors[0]).argmax())


def _score_grounded_options(
    samples: Sequence[Sample], scorer: OriginalScorer, encoder: SentenceEncoder | None
) -> dict[str, Any]:
    """GVQ. Intervals count where the option is right."""
    num_failed = num_letters = num_right_letters = 0
    choices: list[int | None] = []
    compared: list[tuple[int, str]] = []
    for sample in samples:
        text = sample["a"].split(EVI_END)[-1] if scorer.is_grounded else sample["a"]
        text = _without_preamble(text)
        choice = None
        if not text:
            num_failed += 1
        else:
            letters = _LETTERS[: _count_options(sample)]
            if _begins_with_letter(text) and text[0].lower() in tuple(letters):
                choice = letters.index(text[0].lower())
                num_letters += 1
                num_right_letters += choice == sample["p"]
            else:
                compared.append((len(choices), text))
        choices.append(choice)
    _fill_in(choices, compared, samples, encoder)
    right = [sample for choice, sample in zip(choices, samples, strict=True) if choice == sample["p"]]
    read = [(sample["tgt"], *_read(sample["a"], scorer)) for sample in right]
    found = [(truth, answer, evidence) for truth, answer, evidence in read if answer]
    truths, answers = [[truth] for truth, _, _ in found], [answer[:1] for _, answer, _ in found]
    evidences = [evidence[:1] if evidence else [[0, 0]] for _, _, evidence in found]
    scores = _score_recalls(samples, scorer, truths, answers, evidences, "R", "mRec")
    scores |= {"Failed": num_failed + len(read) - len(found), "Acc": round(len(right) / len(samples), 5)}
    if scorer.is_grounded:
        scores["Matched count"] = num_letters
        scores["Matched ratio"] = num_letters / len(samples)
        scores["correct count within matched"] = num_right_letters
        scores["correct ratio within matched"] = num_right_letters / (num_letters + 1e-7)
    return scores
