# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal eval`: answers of a model on a benchmark, in shards that survive a kill, and their scores."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..data.converters.annotation_files import read_json_lines
from ..data.shards import shard_range
from ..synthesis.endpoint import ChatEndpoint
from .answering import Answering, OnBadSample, has_evidence
from .benchmarks import GENERATED
from .benchmarks.common import line_records
from .benchmarks.loading import check_scorer, choose_prompts, default_video_root, load_benchmark, make_rows
from .endpoint_texts import REFUSED
from .loading import describe_model, load_config, load_model
from .metrics.scores import Problem, Scores
from .results import EvaluationRun, write_results
from .run_folder import SETTINGS_FILE, SavedAnswer, has_answers, read_answers, read_settings, write_answers, write_json

# Rows that are lost at most when a process is killed. Fixed, so that a run can go on with another number of processes.
SHARD_ROWS = 128
PARSER = "fixed-1"  # what the `fixed` scoring reads from an answer; to be raised when that changes


def evaluate_model(
    model: str | PreTrainedModel,
    benchmark: str,
    data: str | os.PathLike | Sequence[Mapping[str, Any]],
    *,
    processor: ProcessorMixin | None = None,
    endpoint: str | None = None,
    output_dir: str | os.PathLike | None = None,
    video_root: str | os.PathLike | None = None,
    split: str = "test",
    prompts: Mapping[str, str] | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    num_frames: int | None = None,
    size: int | None = None,
    feature_cache: str | os.PathLike | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    scorer: str | None = None,
    sentence_model: str | None = None,
    limit: int | None = None,
    allow_missing_videos: bool = False,
    on_bad_sample: OnBadSample = "raise",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    frame_cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> EvaluationRun:
    """
    Answer a benchmark with a model and score the answers.

    With `output_dir` the answers are written shard by shard; called again with the same settings, the function goes on
    where it was stopped. Under `accelerate launch` the processes share the shards, and all of them return the scores.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            A D2VLM, or any video model of transformers that writes times as text: folder or name on the Hub, also of
            an adapter of peft, or the model itself with its `processor`.
        benchmark (`str`):
            `"etbench"`, `"charades_sta"`, `"didemo"`, `"qvhighlights"`, `"youcook2"`, `"nextgqa"`, or `"rows"` for a
            data set of one's own.
        data (`str` or `os.PathLike`):
            Annotation file of the benchmark or the folder that holds it; of `"rows"` a data set as in
            [`~trl_temporal.data.validation.load_rows`], or the rows themselves.
        processor ([`~transformers.ProcessorMixin`], *optional*):
            Processor of a model that is passed itself.
        endpoint (`str`, *optional*):
            OpenAI-compatible endpoint where `model` is, e.g. `"http://localhost:8000/v1"` of a vLLM server; `model`
            is its name there. Frames are sent as pictures, see
            [`~trl_temporal.evaluation.endpoint_texts.ask_endpoint`].
        output_dir (`str` or `os.PathLike`, *optional*):
            Folder of the run; nothing is written by default.
        video_root (`str` or `os.PathLike`, *optional*):
            Folder with the videos. Defaults to `videos` beside the annotation file where it exists, else to the
            folder of the file. Rows of one's own name their videos by path.
        split (`str`, *optional*, defaults to `"test"`):
            Split of rows of one's own; of a file without splits, all of it.
        prompts (`Mapping[str, str]`, *optional*):
            Wording of questions by task, instead of that of the benchmark's `PROMPTS`.
        fps (`float`, *optional*):
            Frames per second of video. Defaults to the processor's (D2VLM), else to 1.
        max_frames (`int`, *optional*):
            Longer videos are sampled more thinly. Defaults to the processor's (D2VLM), else to 128.
        num_frames (`int`, *optional*):
            Exactly this many frames of every video, instead of `fps` and `max_frames`. Defaults to the processor's.
        size (`int`, *optional*):
            Shorter side in pixels to which a stock model's frames are shrunk; theirs by default, 448 for an endpoint.
        feature_cache (`str` or `os.PathLike`, *optional*):
            Folder of `trl-temporal cache build`: features of the vision tower, made with the same sampling, instead
            of videos.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows generated at once by a process.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer in tokens.
        scorer (`str`, *optional*):
            Which original scorer is reported beside ours, where a benchmark has several; its first by default.
        sentence_model (`str`, *optional*):
            Sentence encoder of E.T. Bench, a folder or a name on the Hub; the one of the `sim` extra by default.
        limit (`int`, *optional*):
            Answer the first samples only.
        allow_missing_videos (`bool`, *optional*, defaults to `False`):
            Score the samples whose video is there; the coverage stands in the results. By default a missing video is
            an error.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            `"skip"` counts a sample whose video cannot be read, or that an endpoint refuses, as wrong and lists it;
            `"raise"` stops.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Type of the weights of a model that is loaded here.
        revision (`str`, *optional*):
            Revision of a model on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code of a model's repository. A D2VLM needs none, as this package knows it.
        frame_cache_dir (`str` or `os.PathLike`, *optional*):
            Folder for decoded frames of a D2VLM, see [`~trl_temporal.data.frame_cache.FrameCache`].
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`EvaluationRun`]

    Raises:
        ValueError: if the benchmark is unknown or only scored, or `output_dir` holds a run of other settings.
        FileNotFoundError: if the annotation file or videos are missing.

    Example:

    ```python
    >>> from trl_temporal import evaluate_model
    >>> run = evaluate_model("org/d2vlm", "charades_sta", "charades", output_dir="runs/charades")  # doctest: +SKIP
    >>> run.metrics["R1@0.5"]  # doctest: +SKIP
    50.3
    ```
    """
    bench, references = load_benchmark(benchmark, data, split=split)
    check_scorer(benchmark, bench, scorer, sentence_model)
    # What can be wrong with the data is met before the weights are loaded.
    from_hub = {"trust_remote_code": trust_remote_code, "revision": revision}
    if not isinstance(model, str) and processor is None:
        raise ValueError("a model that is loaded already needs its `processor` too")
    if endpoint is not None and not isinstance(model, str):
        raise ValueError("with an `endpoint`, `model` is its name there")
    if endpoint is not None:
        evidence = False
    else:
        config = load_config(model, **from_hub) if isinstance(model, str) else model.config
        evidence = has_evidence(config)
    wordings = choose_prompts(bench, evidence, prompts)
    if benchmark != "rows" and video_root is None:
        video_root = default_video_root(data)
    rows = make_rows(bench, references, wordings, video_root, allow_missing_videos)[:limit]
    if not rows:
        raise ValueError(f"{bench.TITLE}: there is no sample to answer; check the annotations and the limit")
    kept = {row["id"] for row in rows}

    model_name = model if isinstance(model, str) else model.name_or_path
    if endpoint is not None:
        described = {"name": model, "type": "endpoint"}
    else:
        if isinstance(model, str):
            model, processor = load_model(model, dtype=dtype, **from_hub)
            model = model.to(PartialState().device)
        described = describe_model(model, model_name, revision)
    answering = Answering(
        model,
        processor,
        endpoint=None if endpoint is None else ChatEndpoint(endpoint),
        fps=fps,
        max_frames=max_frames,
        num_frames=num_frames,
        size=size,
        feature_cache=feature_cache,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        on_bad_sample=on_bad_sample,
        frame_cache_dir=frame_cache_dir,
    )
    settings = {
        "benchmark": benchmark,
        "references": _hash(references),
        "rows": len(rows),
        "of_rows": len(references),
        "model": described,
        "prompts": wordings,
        **answering.settings(),
        "parser": PARSER,
        "trl_temporal": version("trl_temporal"),
    }
    settings["settings_hash"] = _hash(settings)[:12]

    if output_dir is None:
        answers = answering(rows, progress=progress)
    else:
        answers = _answer_in_shards(answering, rows, Path(output_dir), settings, progress)
    references = [reference for reference in references if reference["id"] in kept]
    run: list[EvaluationRun | None] = [None]
    if PartialState().is_main_process:  # one METEOR, one sentence encoder
        run[0] = _score_run(benchmark, bench, answers, references, settings, scorer, sentence_model)
        if output_dir is not None:
            write_results(output_dir, run[0], answers, bench.to_original(answers, references))
    broadcast_object_list(run)
    return run[0]


def score_predictions(
    predictions: str | os.PathLike,
    benchmark: str,
    data: str | os.PathLike | None = None,
    *,
    output_dir: str | os.PathLike | None = None,
    split: str = "test",
    scorer: str | None = None,
    sentence_model: str | None = None,
) -> EvaluationRun:
    """
    Score answers that any model has given, without running one.

    Args:
        predictions (`str` or `os.PathLike`):
            JSON lines `{"id", "text"}` or `{"id", "spans"}`, such as `predictions.jsonl` of a run, or a file in the
            form of the benchmark's original scorer.
        benchmark (`str`):
            As in [`evaluate_model`], and those that are only scored: `"mvbench"`, `"videomme"`, `"tempcompass"`,
            `"vinoground"`.
        data (`str` or `os.PathLike`, *optional*):
            Annotations as in [`evaluate_model`]. May be left out where the predictions hold them (E.T. Bench).
        output_dir (`str` or `os.PathLike`, *optional*):
            Folder for the results; nothing is written by default.
        split (`str`, *optional*, defaults to `"test"`):
            Split of rows of one's own.
        scorer (`str`, *optional*):
            Which original scorer is reported beside ours, where there are several.
        sentence_model (`str`, *optional*):
            Sentence encoder of E.T. Bench.

    Returns:
        [`EvaluationRun`]

    Example:

    ```python
    >>> from trl_temporal import score_predictions
    >>> score_predictions("etbench_0.json", "etbench").print_table()  # doctest: +SKIP
    ```
    """
    path = Path(predictions)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Give the predictions to score.")
    bench, references = load_benchmark(benchmark, data, split=split, predictions=path)
    check_scorer(benchmark, bench, scorer, sentence_model)
    given = read_predictions(path, bench, references)
    settings = {
        "benchmark": benchmark,
        "references": _hash(references),
        "predictions": _hash(given),
        "file": path.name,
        "parser": PARSER,
        "trl_temporal": version("trl_temporal"),
    }
    settings["settings_hash"] = _hash(settings)[:12]
    scores = _score(bench, given, references, scorer, sentence_model)
    run = EvaluationRun(benchmark, bench.TITLE, scores, settings, bench.ORIGINAL_NAMES)
    if output_dir is not None:
        write_results(output_dir, run, None, {})
    return run


def _answer_in_shards(
    answering: Answering, rows: list[dict[str, Any]], output_dir: Path, settings: dict[str, Any], progress: bool
) -> list[SavedAnswer]:
    """Answers of all rows, those of finished shards from the folder."""
    state = PartialState()
    if (output_dir / SETTINGS_FILE).is_file():
        before = read_settings(output_dir)
        if before["settings_hash"] != settings["settings_hash"]:
            changed = ", ".join(name for name in settings if before.get(name) != settings[name])
            raise ValueError(
                f"{output_dir} holds a run of other settings ({changed} changed). Use a new folder, or remove it."
            )
    elif output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty, and no run. Use a new folder.")
    state.wait_for_everyone()
    if state.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / SETTINGS_FILE, settings)
    num_shards = -(-len(rows) // SHARD_ROWS)
    shards = [shard_range(len(rows), shard, num_shards) for shard in range(num_shards)]
    state.wait_for_everyone()

    own = range(state.process_index, num_shards, state.num_processes)
    todo = [shard for shard in own if not has_answers(output_dir, shard)]
    done = sum(len(shards[shard]) for shard in own) - sum(len(shards[shard]) for shard in todo)
    hidden = not (progress and state.is_main_process)
    with tqdm(total=sum(len(shards[shard]) for shard in own), initial=done, desc="Answering", disable=hidden) as bar:
        for shard in todo:
            write_answers(output_dir, shard, answering([rows[index] for index in shards[shard]]))
            bar.update(len(shards[shard]))
    state.wait_for_everyone()
    answers = list(read_answers(output_dir, with_similarities=False)) if rows else []
    if [answer.id for answer in answers] != [row["id"] for row in rows]:
        raise ValueError(f"{output_dir} holds answers of other rows. Remove the folder and start again.")
    return answers


def _score_run(
    benchmark: str,
    bench: ModuleType,
    answers: Sequence[SavedAnswer],
    references: Sequence[Mapping[str, Any]],
    settings: dict[str, Any],
    scorer: str | None,
    sentence_model: str | None,
) -> EvaluationRun:
    given = [bench.to_prediction(answer, record) for answer, record in zip(answers, references, strict=True)]
    scores = _score(bench, given, references, scorer, sentence_model)
    faults = [
        Problem(answer.id, REFUSED if answer.fault.startswith(REFUSED) else "unreadable video", answer.fault)
        for answer in answers
        if answer.fault
    ]
    for score in scores.values():
        score.problems.extend(faults)
    return EvaluationRun(benchmark, bench.TITLE, scores, settings, bench.ORIGINAL_NAMES)


def _score(
    bench: ModuleType,
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    scorer: str | None,
    sentence_model: str | None,
) -> dict[str, Scores]:
    options = {} if sentence_model is None else {"sentence_model": sentence_model}
    scores = {"fixed": bench.score(predictions, references, **options)}
    if bench is GENERATED["rows"]:  # nobody scored them before
        return scores
    if bench.SCORERS:
        scorer = scorer or bench.SCORERS[0]
        options["scorer"] = scorer
    label = f"original ({scorer})" if scorer else "original"
    scores[label] = bench.score(predictions, references, scoring="original", **options)
    return scores


def read_predictions(
    path: Path, bench: ModuleType, references: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """
    Predictions of a file.

    Args:
        path (`Path`):
            JSON lines with an `id`, with `text` or `spans`, or as a run writes them (`predictions.jsonl`); or a file
            in the form of the benchmark's original scorer.
        bench (module):
            The benchmark.
        references (`Sequence[Mapping]`):
            Its records.

    Returns:
        `list[dict]`: what the benchmark's metric takes.

    Raises:
        ValueError: if a line is no JSON object, or has no id; the message names it.
    """
    first = next(iter(read_json_lines(path)), None) if path.suffix == ".jsonl" else None
    if first is None or not isinstance(first.data, dict) or "id" not in first.data or "qid" in first.data:
        return bench.read_predictions(path, references)
    records = {reference["id"]: reference for reference in references}
    given = []
    for prediction in line_records(path, "id"):
        prediction["id"] = str(prediction["id"])
        if "response" in prediction and prediction["id"] in records:  # of a run
            answer = SavedAnswer(
                id=prediction["id"],
                text=str(prediction.get("text") or ""),
                evidence=prediction.get("evidence"),
                response=prediction["response"],
                truth=[],
                duration_s=0.0,
                timestamps_s=[],
            )
            prediction = bench.to_prediction(answer, records[answer.id])
        given.append(prediction)
    return given


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
