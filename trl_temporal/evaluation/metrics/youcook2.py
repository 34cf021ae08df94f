# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Dense video captioning on YouCook2: F1 of the events, and CIDEr, METEOR and SODA_c of their captions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .captioning import CaptionToolsMissing, Meteor, approximate_tokenize, cider, ptb_tokenize
from .dense_text import read_events
from .intervals import ROUNDING, iou_table
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions
from .time_text import check_spans
from .youcook2_original import IOU_THRESHOLDS, DenseVideo, letters_only, monotone_assignment, original_scores

_APPROXIMATE = "CIDEr (approximate tokens)"
# METEOR runs out of memory on the captions of a model that repeats itself without end. A true one has some 10 words.
_MAX_WORDS = 1000


class _Record(NamedTuple):
    """An annotated video. Its name is the last part of `image_id`, as the original has it."""

    name: str
    duration_s: float
    events: DenseVideo


class _Event(NamedTuple):
    start_s: float
    end_s: float
    caption: str


def youcook2(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    scoring: Scoring = "fixed",
    approximate: bool = False,
) -> Scores:
    """
    Scores of dense captions on YouCook2, or on any data set of the same form.

    `"original"` equals TimeChat's `eval_dvc.py`, which D2VLM uses as well, on the same events. `"fixed"` differs:

    - An IoU counts from the threshold on, up to rounding, and has no 1e-8 in its denominator.
    - CIDEr counts the IDF over all reference captions, each a document. The original counts it over the pairs of one
      video at one threshold: with one pair it is 0, and it depends on what the model answers.
    - METEOR is the mean over pairs, as CIDEr is, and a prediction without a match is 0. The original adds up counts
      over a video's pairs, and compares such a prediction with a random word, which hardly lowers the sum.
    - SODA_c takes events in the order of time, as its authors do, and METEOR gets prediction and reference as such.
      The original keeps the order of the answer, swaps the two, and permutes the scores where there are more than 10
      predictions, as it sorts their numbers as text.
    - Scores of whole paragraphs, in `details`, compare every video with its own reference. In the original they shift
      where a video has no prediction.

    F1, precision and recall of a video are means over the thresholds 0.3, 0.5, 0.7 and 0.9; precision is the share of
    predictions that meet some reference, recall that of references that are met. CIDEr and METEOR are means over the
    pairs of a prediction and a reference that meet at a threshold, and over thresholds. All numbers are means over
    videos; those without a prediction have 0.

    Args:
        predictions (`Sequence[Mapping]`):
            One a video: its `id`, and either `events`, `[{"timestamp": [start_s, end_s], "caption": str}, ...]`, or
            `text`, an answer that [`~trl_temporal.evaluation.metrics.dense_text.read_events`] reads.
        references (`Sequence[Mapping]`):
            TimeChat's records `{"image_id", "duration", "segments", "pure_cap"}`, where captions are separated by
            `". "`. A prediction belongs to a record whose `image_id` ends in the same file name as its `id`.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"` or `"original"`.
        approximate (`bool`, *optional*, defaults to `False`):
            Without Java or pycocoevalcap, give CIDEr on the tokens of
            [`~trl_temporal.evaluation.metrics.captioning.approximate_tokenize`], as `CIDEr (approximate tokens)`.
            With `"fixed"` only.

    Returns:
        [`~trl_temporal.evaluation.metrics.scores.Scores`]: with `"fixed"` `F1_Score`, `CIDEr`, `METEOR`, `SODA_c`,
        `Precision_Mean`, `Recall_Mean`, and `Precision@t` and `Recall@t` for every threshold. All are percentages, but
        for CIDEr, which is 100 times the score as COCO prints it: it goes up to 1000, and equal captions need not
        reach that. `details` has `per_video` (lists), `paragraph`, and `missing`: what was left out because a tool is
        not installed, and why. With `"original"` the metrics are what the original prints, and `details` has
        `per_video` with its keys, `printed` (its lines), and `missing`.

    Raises:
        ValueError: if there are no references, two have the same name, or one has a segment that is not finite or not
            as many captions as segments.

    Example:
        >>> from trl_temporal.evaluation.metrics.youcook2 import youcook2
        >>> references = [{"image_id": "a.mp4", "duration": 60, "segments": [[0, 10]], "pure_cap": "pour the oil"}]
        >>> scores = youcook2([{"id": "a.mp4", "text": "0 - 8 seconds, pour oil."}], references)
        >>> scores.metrics["F1_Score"]  # the IoU is 0.8
        75.0
    """
    check_scoring(scoring)
    records = [_read_record(reference) for reference in references]
    if not records:
        raise ValueError("there are no references to score against")
    problems: list[Problem] = []
    predictions = [{**prediction, "id": _name(prediction["id"])} for prediction in predictions]
    matched = match_predictions([record.name for record in records], predictions, problems)
    if scoring == "original":
        return _score_original(records, predictions, problems)
    return _score_fixed(records, matched, problems, approximate)


def _name(sample_id: Any) -> str:
    return str(sample_id).split("/")[-1]


def _read_record(record: Mapping[str, Any]) -> _Record:
    captions = [f"{caption}." for caption in record["pure_cap"].split(". ")]
    spans = np.array(record["segments"], dtype=np.float64).reshape(-1, 2)
    if len(captions) != len(spans):
        raise ValueError(
            f"the record {record['image_id']!r} has {len(captions)} captions for {len(spans)} segments; separate the "
            "captions in `pure_cap` by '. '"
        )
    if not np.isfinite(spans).all():
        raise ValueError(f"a segment of the record {record['image_id']!r} is not finite: {record['segments']}")
    return _Record(_name(record["image_id"]), float(record.get("duration") or np.inf), DenseVideo(spans, captions))


def _read_events(prediction: Mapping[str, Any]) -> tuple[list[_Event], list[tuple[str, str]]]:
    """The events of a prediction, and kinds and details of its problems."""
    given = prediction.get("events")
    if given is None:
        text = str(prediction.get("text") or "")
        if not text.strip():
            return [], [("empty", "")]
        found, problems = read_events(text)
        return [_Event(*event) for event in found], problems if found or problems else [("unparsable", text[:80])]
    if not isinstance(given, list | tuple):
        return [], [("unparsable", str(given)[:80])]
    events, problems = [], [] if len(given) else [("empty", "")]
    for event in given:
        if not isinstance(event, Mapping) or "timestamp" not in event:
            problems.append(("unparsable", str(event)[:80]))
            continue
        spans, found = check_spans([event["timestamp"]])
        problems.extend(found)
        caption = event.get("caption")
        events.extend(_Event(*span, caption if isinstance(caption, str) else "") for span in spans)
    return events, problems


def _score_fixed(
    records: Sequence[_Record],
    predictions: Sequence[Mapping[str, Any] | None],
    problems: list[Problem],
    approximate: bool,
) -> Scores:
    names = [record.name for record in records]
    answers = [_read_answer(*sample, problems) for sample in zip(records, predictions, strict=True)]
    truths = [DenseVideo(np.sort(record.events.spans, axis=1), record.events.captions) for record in records]
    answers, truths = ([_in_time(_without_stops(video)) for video in videos] for videos in (answers, truths))
    overlaps = [iou_table(truth.spans, answer.spans) for truth, answer in zip(truths, answers, strict=True)]
    per_video = _localisation(overlaps)

    paragraphs = [_unless_endless(letters_only(" ".join(answer.captions))) for answer in answers]
    true_paragraphs = [[letters_only(" ".join(truth.captions))] for truth in truths]
    paragraph = {"CIDEr": 100 * cider(paragraphs, true_paragraphs)[0]}

    missing, cider_name = {}, "CIDEr"
    try:
        with Meteor() as meteor:
            true_tokens, tokens = _tokenized(truths, ptb_tokenize), _tokenized(answers, ptb_tokenize)
            tokens = _without_endless(tokens, names, problems)
            meteors = [_meteor_table(*video, meteor) for video in zip(true_tokens, tokens, overlaps, strict=True)]
            _, single = meteor.score(paragraphs, true_paragraphs)
        paragraph["METEOR"] = 100 * float(single.mean())
        per_video["METEOR"] = _mean_over_pairs(overlaps, meteors)
        per_video["SODA_c"] = np.array([_soda(*video) for video in zip(overlaps, meteors, strict=True)])
    except CaptionToolsMissing as error:
        missing, cider_name = dict.fromkeys(("CIDEr", "METEOR", "SODA_c"), str(error)), _APPROXIMATE
        true_tokens, tokens = _tokenized(truths, approximate_tokenize), _tokenized(answers, approximate_tokenize)
        tokens = _without_endless(tokens, names, problems)
    if not missing or approximate:
        per_video[cider_name] = _mean_over_pairs(overlaps, _cider_tables(true_tokens, tokens, overlaps))

    order = ("F1_Score", cider_name, "METEOR", "SODA_c", "Precision_Mean", "Recall_Mean", *per_video)
    metrics = {key: 100 * float(per_video[key].mean()) for key in dict.fromkeys(order) if key in per_video}
    details = {
        "per_video": {"id": names}
        | {key: (100 * per_video[key]).tolist() for key in metrics}
        | {"num_predictions": [len(answer.captions) for answer in answers]},
        "paragraph": paragraph,
        "missing": missing,
    }
    return Scores(metrics, problems, len(records), details)


def _read_answer(record: _Record, prediction: Mapping[str, Any] | None, problems: list[Problem]) -> DenseVideo:
    if prediction is None:
        return _as_video([])
    events, found = _read_events(prediction)
    late = [event for event in events if event.end_s > record.duration_s + ROUNDING]
    found += [("out of duration", f"{event.start_s} - {event.end_s}") for event in late]
    problems.extend(Problem(record.name, kind, detail) for kind, detail in found)
    return _as_video(events)


def _unless_endless(text: str) -> str:
    return text if text.count(" ") < _MAX_WORDS else ""


def _without_endless(answers: Sequence[DenseVideo], names: Sequence[str], problems: list[Problem]) -> list[DenseVideo]:
    """Endless captions score as empty ones; their intervals stay."""
    for name, answer in zip(names, answers, strict=True):
        endless = [caption for caption in answer.captions if caption and not _unless_endless(caption)]
        problems.extend(Problem(name, "unparsable", f"more than {_MAX_WORDS} words: {text[:40]}") for text in endless)
    return [DenseVideo(answer.spans, list(map(_unless_endless, answer.captions))) for answer in answers]


def _without_stops(video: DenseVideo) -> DenseVideo:
    """The tokenizer takes the full stop behind a single letter for part of it, as in `vitamin a.`."""
    return DenseVideo(video.spans, [caption.rstrip(" .") for caption in video.captions])


def _as_video(events: Sequence[_Event]) -> DenseVideo:
    spans = np.array([(event.start_s, event.end_s) for event in events], dtype=np.float64).reshape(-1, 2)
    return DenseVideo(spans, [event.caption for event in events])


def _in_time(video: DenseVideo) -> DenseVideo:
    order = sorted(range(len(video.captions)), key=lambda index: (*video.spans[index], video.captions[index]))
    return DenseVideo(video.spans[order], [video.captions[index] for index in order])


def _tokenized(videos: Sequence[DenseVideo], tokenize) -> list[DenseVideo]:
    tokens = iter(tokenize([caption for video in videos for caption in video.captions]))
    return [DenseVideo(video.spans, [next(tokens) for _ in video.captions]) for video in videos]


def _localisation(overlaps: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of every video."""
    precision, recall = np.zeros((2, len(overlaps), len(IOU_THRESHOLDS)))
    for index, iou in enumerate(overlaps):
        if iou.shape[1]:
            hits = _hits(iou)
            precision[index], recall[index] = hits.any(axis=0).mean(axis=0), hits.any(axis=1).mean(axis=0)
    scores = {"Precision_Mean": precision.mean(axis=1), "Recall_Mean": recall.mean(axis=1)}
    total = scores["Precision_Mean"] + scores["Recall_Mean"]
    scores["F1_Score"] = 2 * scores["Precision_Mean"] * scores["Recall_Mean"] / np.where(total > 0, total, 1)
    for index, threshold in enumerate(IOU_THRESHOLDS):
        scores[f"Precision@{threshold}"] = precision[:, index]
        scores[f"Recall@{threshold}"] = recall[:, index]
    return scores


def _hits(iou: np.ndarray) -> np.ndarray:
    """Of shape (truth, predicted, thresholds)."""
    return iou[:, :, None] >= np.array(IOU_THRESHOLDS) - ROUNDING


def _mean_over_pairs(overlaps: Sequence[np.ndarray], tables: Sequence[np.ndarray]) -> np.ndarray:
    """
    Score of every video: the mean over pairs that meet, where a prediction that meets nothing is a pair with score 0,
    and over thresholds.
    """
    means = np.zeros(len(overlaps))
    for index, (iou, scores) in enumerate(zip(overlaps, tables, strict=True)):
        if iou.shape[1]:
            hits = _hits(iou)
            num_pairs = np.maximum(hits.sum(axis=0), 1).sum(axis=0)
            means[index] = ((hits * scores[:, :, None]).sum(axis=(0, 1)) / num_pairs).mean()
    return means


def _cider_tables(
    truths: Sequence[DenseVideo], answers: Sequence[DenseVideo], overlaps: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """CIDEr of the pairs that meet at the lowest threshold, 0 elsewhere. The IDF is that of all true captions."""
    meets = [np.nonzero(iou >= IOU_THRESHOLDS[0] - ROUNDING) for iou in overlaps]
    candidates, references = [], []
    for truth, answer, (of_truth, of_answer) in zip(truths, answers, meets, strict=True):
        candidates += [answer.captions[index] for index in of_answer]
        references += [[truth.captions[index]] for index in of_truth]
    _, single = cider(candidates, references, corpus=[[caption] for truth in truths for caption in truth.captions])
    tables = [np.zeros(iou.shape) for iou in overlaps]
    ends = np.cumsum([len(of_truth) for of_truth, _ in meets])
    for table, places, scores in zip(tables, meets, np.split(single, ends[:-1]), strict=True):
        table[places] = scores
    return tables


def _meteor_table(truth: DenseVideo, answer: DenseVideo, iou: np.ndarray, meteor: Meteor) -> np.ndarray:
    """METEOR of the pairs that overlap, 0 elsewhere."""
    of_truth, of_answer = np.nonzero(iou)
    candidates = [answer.captions[index] for index in of_answer]
    _, single = meteor.score(candidates, [[truth.captions[index]] for index in of_truth])
    table = np.zeros(iou.shape)
    table[of_truth, of_answer] = single
    return table


def _soda(iou: np.ndarray, meteors: np.ndarray) -> float:
    if not iou.shape[1]:
        return 0.0
    best, _ = monotone_assignment(iou * meteors)
    return 2 * best / sum(iou.shape)  # the harmonic mean of best / predictions and best / references


def _score_original(
    records: Sequence[_Record], predictions: Sequence[Mapping[str, Any]], problems: list[Problem]
) -> Scores:
    found = {prediction["id"]: prediction for prediction in predictions}  # of several, the last counts
    answers: list[DenseVideo | None] = []
    for record in records:
        prediction = found.get(record.name)
        answers.append(None if prediction is None else _original_video(prediction, record.name, problems))
    scores = original_scores([record.name for record in records], [record.events for record in records], answers)
    problems.extend(Problem("", "crash", crash) for crash in scores.crashes)
    metrics = {"F1_Score": scores.printed["F1_Score"]} | scores.printed
    details = {
        "per_video": scores.per_video,
        "printed": [f"{key} {value}" for key, value in scores.printed.items()],
        "missing": scores.missing,
    }
    return Scores(metrics, problems, len(records), details)


def _original_video(prediction: Mapping[str, Any], name: str, problems: list[Problem]) -> DenseVideo:
    """What the original reads from its file; where it stops with an error, the event is left out."""
    if prediction.get("events") is None:
        events, found = _read_events(prediction)
        problems.extend(Problem(name, kind, detail) for kind, detail in found)
        return _as_video(events)
    given, events = prediction["events"], []
    for event in given if isinstance(given, list | tuple) else [given]:
        try:
            start_s, end_s = map(float, event["timestamp"])
            events.append(_Event(start_s, end_s, str(event["caption"])))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(Problem(name, "crash", f"{type(error).__name__} at {str(event)[:60]}"))
    return _as_video(events)
