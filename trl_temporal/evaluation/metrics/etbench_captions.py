# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Dense captions of E.T. Bench (DVC, SLC) as the released scorers score them, bugs included."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import captioning
from .etbench_text import Interval, read_captions, read_captions_of_answer
from .grounding import IOU_THRESHOLDS
from .sentence_similarity import SentenceEncoder

Sample = Mapping[str, Any]  # a record of the benchmark with the answer under `a`

CAPTION_SCORES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SentSim")

FILLER = "zqxjkvbwpyzqxj"  # any letters that are no word
_MAX_CAPTIONS = 1000


class Tools(NamedTuple):
    """
    What some tasks need beside the samples.

    Attributes:
        encoder ([`SentenceEncoder`], *optional*):
            Sentence model; `None` where there is none.
        meteor ([`Meteor`], *optional*):
            Running METEOR; `None` where the caption tools are missing or not wanted.
        filler (`str`, *optional*):
            What a caption without an event is compared with. The originals draw random letters anew each time, on
            which their similarity of captions depends.
    """

    encoder: SentenceEncoder | None = None
    meteor: captioning.Meteor | None = None
    filler: str = FILLER


class _Video(NamedTuple):
    """What is known of a video: the last sample of several that can be read."""

    captions: list[str]
    true_captions: Sequence[str]
    ious: np.ndarray  # of shape (captions, true events)
    evidence_ious: np.ndarray


def score_captions(samples: Sequence[Sample], is_grounded: bool, tools: Tools) -> dict[str, Any]:
    """
    Score the samples of one source of DVC or SLC.

    Args:
        samples (`Sequence[Mapping]`):
            Records with their answers, at least one.
        is_grounded (`bool`):
            Read `EVIDENCE </evi> ANSWER`, and score both halves.
        tools ([`Tools`]):
            Sentence model and caption tools.

    Returns:
        `dict`: the scorer's numbers, rounded to 5 decimals. Those of captions are left out without their tools.

    Raises:
        ValueError: on an answer at which the released scorer stops.
    """
    read = read_captions_of_answer if is_grounded else read_captions
    videos: dict[str, _Video] = {}
    num_failed = 0
    for sample in samples:
        found = read(sample["a"])
        if found is None:
            num_failed += 1
            continue
        found = found._replace(intervals=found.intervals[:_MAX_CAPTIONS])
        truth = np.array(sample["tgt"], dtype=np.float64)
        tables = [_caption_ious(intervals, truth) for intervals in (found.intervals, found.evidence)]
        videos[sample["video"]] = _Video(found.captions, sample["g"], *tables)
    # Videos without captions lower precision and recall, but not the scores of the captions.
    scale = len(videos) / len(samples)
    scores = {"Total": len(samples), "Failed": num_failed}
    scores |= _detection_f1s([video.ious for video in videos.values()], scale)
    if is_grounded:
        scores |= _detection_f1s([video.evidence_ious for video in videos.values()], scale, "_evi")
    if not videos:
        return scores | dict.fromkeys(CAPTION_SCORES, 0)
    if tools.meteor is None:
        return scores
    return scores | _caption_scores(list(videos.values()), tools)


def _caption_ious(intervals: list[Interval], truth: np.ndarray) -> np.ndarray:
    a, b = np.array(intervals).reshape(-1, 1, 2), truth[None]
    with np.errstate(invalid="ignore"):  # endless intervals
        intersection = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
        intersection = np.maximum(intersection, 0)
        hull = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
        return intersection / (np.minimum(hull, b[..., 1] - b[..., 0] + a[..., 1] - a[..., 0]) + 1e-8)


def _detection_f1s(tables: list[np.ndarray], scale: float, half: str = "") -> dict[str, float]:
    scores, f1s = {}, []
    for threshold in IOU_THRESHOLDS:
        hits = [table > threshold for table in tables]
        precision, recall = (
            sum(table.any(axis=axis).mean() if table.size else 0.0 for table in hits) / max(len(hits), 1) * scale
            for axis in (1, 0)
        )
        f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        scores[f"F1{half}@{threshold}"] = round(float(f1s[-1]), 5)
    return scores | {f"F1{half}": round(float(sum(f1s)) / len(f1s), 5)}


def _caption_scores(videos: list[_Video], tools: Tools) -> dict[str, float]:
    """Means over videos, then over thresholds."""
    vectors: dict[str, np.ndarray] = {}
    means = []
    tokenized = _tokenized_pairs(videos, tools.filler)
    if tools.encoder is not None:
        tokens = [text for of_threshold in tokenized for pairs in of_threshold for pair in pairs for text in pair]
        vectors = dict(zip(tokens, tools.encoder.encode(tokens), strict=True))
    for of_threshold in tokenized:
        means.append(np.mean([_video_scores(pairs, vectors, tools.meteor) for pairs in of_threshold], axis=0))
    means = sum(means) / len(IOU_THRESHOLDS)
    return {name: round(float(mean), 5) for name, mean in zip(CAPTION_SCORES, means, strict=False)}


def _tokenized_pairs(videos: list[_Video], filler: str) -> list[list[list[tuple[str, str]]]]:
    """Tokenised captions with what they are compared with, of every threshold and video."""
    pairs = [[_caption_pairs(video, threshold, filler) for video in videos] for threshold in IOU_THRESHOLDS]
    # The original tokenises all captions of a threshold as one file, and all references as another one. A line can
    # depend on the next one, so the files are kept apart by a word. The original's order of videos is that of a set,
    # and so the videos' last lines vary with it; ours is that of the samples.
    lines = []
    for of_threshold in pairs:
        for side in (0, 1):
            lines += [pair[side] for of_video in of_threshold for pair in of_video] + ["the"]
    tokens = iter(captioning.ptb_tokenize_file(lines))
    tokenized = []
    for of_threshold in pairs:
        counts = [len(of_video) for of_video in of_threshold]
        captions, references = ([next(tokens) for _ in range(sum(counts) + 1)] for _ in range(2))
        of_pairs = zip(captions, references, strict=True)
        tokenized.append([list(itertools.islice(of_pairs, count)) for count in counts])
    return tokenized


def _caption_pairs(video: _Video, threshold: float, filler: str) -> list[tuple[str, str]]:
    """Every caption meets the captions of all events that it overlaps, or else the filler."""
    pairs = []
    for caption, hits in zip(video.captions, video.ious >= threshold, strict=False):
        references = [video.true_captions[index] for index in np.flatnonzero(hits)] or [filler]
        pairs += [(_ascii(caption), _ascii(reference)) for reference in references]
    return pairs


def _ascii(text: str) -> str:
    return re.sub(r"[^\x00-\x7f]", " ", text)


def _video_scores(
    pairs: list[tuple[str, str]], vectors: dict[str, np.ndarray], meteor: captioning.Meteor
) -> list[float]:
    """In the order of `CAPTION_SCORES`, the last one where there are vectors."""
    candidates, references = [candidate for candidate, _ in pairs], [[reference] for _, reference in pairs]
    scores = [
        *captioning.bleu(candidates, references),
        meteor.score(candidates, references)[0],
        captioning.rouge_l(candidates, references),
        captioning.cider(candidates, references)[0],
    ]
    if vectors:
        cosines = [float(vectors[candidate] @ vectors[reference]) for candidate, reference in pairs]
        scores.append(sum(cosines) / len(cosines))
    return scores
