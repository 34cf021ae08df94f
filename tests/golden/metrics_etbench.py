# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""E.T. Bench against the four released scorers: parsers, every task and source, and the table."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trl_temporal.evaluation.metrics import etbench_text
from trl_temporal.evaluation.metrics.captioning import CaptionToolsMissing, Meteor
from trl_temporal.evaluation.metrics.etbench import (
    COLUMNS,
    MERGED,
    etbench,
    etbench_id,
    original_evidence_means,
    original_means,
    original_table,
)
from trl_temporal.evaluation.metrics.etbench_captions import CAPTION_SCORES, Tools
from trl_temporal.evaluation.metrics.etbench_original import SCORERS, score_source
from trl_temporal.evaluation.metrics.sentence_similarity import SentenceEncoder, SentenceModelMissing

from .case import EXACT, Case

SCRIPTS = {
    "original_etchat": "etchat",
    "strict_rvq": "etchat_strict_rvq",
    "new": "d2vlm",
    "looser": "d2vlm_looser",
}
ROUNDED = 1e-5 + 1e-9  # scores have 5 decimals
SIMILARITY = 2e-4
TABLE_SIMILARITY = 0.1 + 1e-9  # the table has one decimal
RANDOM_SIMILARITY = 0.1  # other random letters
VIDEO_ORDERS = 50
CAPTION_TASKS = ("dvc", "slc")


def check_parse(golden: dict[str, Any], case: Case) -> None:
    """Times and captions that the scorers read, and where they raise."""
    parsers = {
        "tvg_format_original": etbench_text.read_intervals,
        "tvg_format_old_in_new": etbench_text.read_intervals,
        "tvg_format_new": etbench_text.read_both_halves,
        "dvc_format_original": _captions,
        "dvc_format_new": _captions_of_answer,
    }
    for text, expected in zip(golden["inputs"]["texts"], golden["expected"], strict=True):
        for name, parse in parsers.items():
            case.equal(name, _outcome(parse, text), expected[name])


def _captions(text: str) -> list[Any]:
    found = etbench_text.read_captions(text)
    return [None, None] if found is None else [found.intervals, found.captions]


def _captions_of_answer(text: str) -> list[Any]:
    try:
        found = etbench_text.read_captions_of_answer(text)
    except ValueError:  # the original gives two values back here, at which its caller stops
        return [None, None]
    return [None, None, None] if found is None else list(found)


def _outcome(function: Callable[..., Any], *inputs: Any) -> dict[str, Any]:
    try:
        return {"result": function(*inputs)}
    except (ValueError, ArithmeticError, NotImplementedError) as error:
        return {"error": type(error).__name__}


def check_tasks(golden: dict[str, Any], case: Case) -> None:
    """Every task, source and scorer of grounding, question answering or captions, and where scorers stop."""
    inputs, expected = golden["inputs"], golden["expected"]
    scripts = sorted(
        {name for tasks in expected["metrics"].values() for of_source in tasks.values() for name in of_source}
    )
    with _tools(inputs) as (tools, missing):
        for script in scripts:
            ours = etbench(
                inputs["samples"],
                scoring="original",
                scorer=SCRIPTS[script],
                sentence_model=tools.encoder or False,
                caption_tools=tools.meteor is not None,
            )
            for task, sources in expected["metrics"].items():
                for source, of_source in sources.items():
                    _check_source(case, script, ours.details.get(task, {}).get(source), of_source[script], missing)
            for task in set(expected["metrics"]).intersection(CAPTION_TASKS):
                for source, of_source in expected["metrics"][task].items():
                    samples = _samples(inputs, task, source)
                    _check_captions(case, task, samples, script, of_source[script]["fixed_filler"], tools, missing)
    for sample, of_sample in zip(inputs["crash"], expected["crash"], strict=True):
        for script, theirs in of_sample.items():
            _check_crash(case, sample, script, theirs, tools)


def _check_source(
    case: Case,
    script: str,
    ours: Mapping[str, Any] | None,
    theirs: Mapping[str, Any],
    missing: str,
) -> None:
    """What the public function gives."""
    has_captions = "fixed_filler" in theirs
    if ours is None:
        case.skip(f"{script}: scores", missing or "the source is not there")
        return
    if has_captions:  # with letters of our own
        for theirs_at_random in theirs["random_filler_sentsim"] if "SentSim" in ours else []:
            case.equal(f"{script}: SentSim of any filler", ours["SentSim"], theirs_at_random, RANDOM_SIMILARITY)
        theirs = {name: value for name, value in theirs["fixed_filler"].items() if name not in CAPTION_SCORES}
        ours = {name: value for name, value in ours.items() if name not in CAPTION_SCORES}
    _compare(case, script, ours, theirs)


def _compare(case: Case, script: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    case.equal(f"{script}: names", sorted(ours), sorted(theirs))
    for name in set(ours) & set(theirs):
        kind, tolerance = "scores", ROUNDED
        if name in ("Total", "Failed") or "count" in name.lower():
            kind, tolerance = "counts", EXACT
        case.equal(f"{script}: {kind}", ours[name], theirs[name], tolerance)


def _check_captions(
    case: Case,
    task: str,
    samples: list[dict[str, Any]],
    script: str,
    theirs: Mapping[str, Any],
    tools: Tools,
    missing: str,
) -> dict[str, Any]:
    """
    What captions score with the golden's filler, and the scores themselves.

    The original goes through videos in the order of a set, new in each process, and its tokenizer treats the last word
    of a video's last caption by what the next video begins with: one order must give the golden's numbers.
    """
    for order in range(VIDEO_ORDERS):
        ours = score_source(task, _reordered(samples, order), SCORERS[SCRIPTS[script]], tools)
        attempt = Case(case.name)
        for name in [name for name in CAPTION_SCORES if name in ours]:
            kind, tolerance = ("similarity", SIMILARITY) if name == "SentSim" else ("captions", ROUNDED)
            attempt.equal(f"{script}: {kind}", ours[name], theirs[name], tolerance)
        if all(line.passed for line in attempt.lines.values()):
            break
    for quantity, line in attempt.lines.items():
        case.add(quantity, line.difference, line.tolerance)
    if "CIDEr" not in ours:
        case.skip(f"{script}: captions", missing)
    if "SentSim" not in ours:
        case.skip(f"{script}: similarity", missing)
    return ours


def _reordered(samples: list[dict[str, Any]], order: int) -> list[dict[str, Any]]:
    """Samples by video, in one of many orders of the videos; the first order is that of the samples."""
    videos = list(dict.fromkeys(sample["video"] for sample in samples))
    if order:
        random.Random(order).shuffle(videos)
    return sorted(samples, key=lambda sample: videos.index(sample["video"]))


def _check_crash(case: Case, sample: dict[str, Any], script: str, theirs: dict[str, Any], tools: Tools) -> None:
    scorer = SCRIPTS[script]
    try:
        ours = _outcome(score_source, sample["task"], [sample], SCORERS[scorer], tools)
    except SentenceModelMissing as error:
        case.skip(f"{script}: errors", str(error))
        return
    case.equal(f"{script}: errors", ours.get("error"), theirs.get("error"))
    if "result" in theirs and "result" in ours:
        theirs = theirs["result"].get("fixed_filler", theirs["result"])
        shared = {name: value for name, value in ours["result"].items() if name in theirs and name != "SentSim"}
        case.equal(f"{script}: beside errors", shared, {name: theirs[name] for name in shared}, ROUNDED)
    model = tools.encoder or False
    public = etbench([sample], scoring="original", scorer=scorer, sentence_model=model, caption_tools=False)
    crashes = [problem.id for problem in public.problems if problem.kind == "crash"]
    case.equal(f"{script}: reported", crashes, [etbench_id(sample)] if "error" in theirs else [])


def check_overall(golden: dict[str, Any], case: Case) -> None:
    """A whole file of predictions: numbers of every source, means and the table."""
    inputs = golden["inputs"]
    with _tools(inputs) as (tools, missing):
        for script, expected in golden["expected"].items():
            _check_table(golden, case, script, expected, tools, missing)


def _check_table(
    golden: dict[str, Any], case: Case, script: str, expected: dict[str, Any], tools: Tools, missing: str
) -> None:
    inputs = golden["inputs"]
    public = etbench(
        inputs["samples"],
        scoring="original",
        scorer=SCRIPTS[script],
        sentence_model=tools.encoder or False,
        caption_tools=False,
    )
    details: dict[str, dict[str, Any]] = defaultdict(dict)
    for task, sources in expected["collected"].items():
        for source, theirs in sources.items():
            if task in CAPTION_TASKS:
                details[task][source] = _check_captions(
                    case, task, _samples(inputs, task, source), script, theirs, tools, missing
                )
                theirs = {name: value for name, value in theirs.items() if name not in CAPTION_SCORES}
                ours = {name: value for name, value in details[task][source].items() if name in theirs}
            else:
                ours = public.details.get(task, {}).get(source)
                if ours is None:
                    case.skip(f"{script}: scores", missing or "the source is not there")
                    continue
                details[task][source] = ours
            _compare(case, script, ours, theirs)
    means = original_means(details)
    table = original_table(means)
    theirs = dict(zip(COLUMNS, zip(expected["met"], expected["overall_row"], strict=True), strict=True))
    for column, (mean, printed) in theirs.items():
        if column not in means:
            case.skip(f"{script}: table, {column}", missing or "the column is not there")
            continue
        if column.endswith("Sim"):
            case.equal(f"{script}: means of similarity", means[column], mean, SIMILARITY)
            case.equal(f"{script}: table of similarity", table[column], float(printed), TABLE_SIMILARITY)
        else:
            case.equal(f"{script}: means", means[column], mean, ROUNDED)
            case.equal(f"{script}: table", [str(table[column]), str(public.metrics.get(column))], [printed, printed])
    for name, printed in zip(MERGED, expected["merged"], strict=True):
        if name not in table:
            case.skip(f"{script}: table, {name}", missing or "the column is not there")
        elif name.startswith("Sim"):
            case.equal(f"{script}: table of similarity", table[name], float(printed), TABLE_SIMILARITY)
        else:
            case.equal(f"{script}: merged", str(table[name]), printed)
    if expected["met_evi"] is not None:
        ours = list(original_evidence_means(details).values())
        if len(ours) < len(expected["met_evi"]):
            case.skip(f"{script}: evidence", missing or "a task is not there")
        else:
            case.equal(f"{script}: evidence", ours, expected["met_evi"], ROUNDED)


def _samples(inputs: dict[str, Any], task: str, source: str) -> list[dict[str, Any]]:
    return [sample for sample in inputs["samples"] if (sample["task"], sample["source"]) == (task, source)]


@contextmanager
def _tools(inputs: dict[str, Any]) -> Iterator[tuple[Tools, str]]:
    """Sentence model and caption tools, as far as the samples need them, and what is not installed."""
    tasks = {sample["task"] for sample in inputs["samples"]}
    tools, missing = Tools(filler=inputs.get("filler", "")), []
    if tasks & {"rar", "eca", "rvq", "gvq", *CAPTION_TASKS}:
        try:
            tools = tools._replace(encoder=SentenceEncoder())
        except SentenceModelMissing as error:
            missing.append(str(error))
    meteor = None
    if tasks & set(CAPTION_TASKS):
        try:
            meteor = Meteor()
        except CaptionToolsMissing as error:
            missing.append(str(error))
    try:
        yield tools._replace(meteor=meteor), "; ".join(missing)
    finally:
        if meteor is not None:
            meteor.close()
