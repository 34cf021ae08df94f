# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""YouCook2's dense captions against TimeChat's scorer."""

from typing import Any

import numpy as np
import torch

from trl_temporal.evaluation.metrics.youcook2 import youcook2
from trl_temporal.evaluation.metrics.youcook2_original import (
    FILLER,
    DenseVideo,
    OriginalScores,
    monotone_assignment,
    original_scores,
)

from .case import EXACT, Case

RELATIVE = 1e-6  # of CIDEr and METEOR, and of what is made from them
ROUNDING = 1e-12
WITH_CAPTIONS = ("CIDER", "METEOR", "SODA_c_2")


def check_youcook2(golden: dict[str, Any], case: Case) -> None:
    """Lists over videos, the printed report, and the assignment of SODA."""
    inputs, expected = golden["inputs"], golden["expected"]
    for ours_in, theirs in zip(inputs["cases"], expected["cases"], strict=True):
        per_video, printed, missing = _score(ours_in["gt"], ours_in["pred"], inputs["filler"])
        case.equal(
            "score names",
            sorted([*per_video, *(key for key in missing if key in theirs["per_video"])]),
            sorted(theirs["per_video"]),
        )
        for key, values in theirs["per_video"].items():
            if key in missing:
                case.skip(key, missing[key])
            elif key in WITH_CAPTIONS:
                ours = torch.tensor(per_video.get(key, []), dtype=torch.float64)
                case.relative(key, ours, torch.tensor(values, dtype=torch.float64), RELATIVE)
            else:
                case.equal(key, per_video.get(key, []), values, ROUNDING)
        lines = [line for line in theirs["printed"] if line.split()[0] not in missing]
        case.equal("printed report", printed, lines)
        if missing:
            case.skip("printed captions", next(iter(missing.values())))
    for scores, (best, pairs) in zip(inputs["dp"], expected["dp"], strict=True):
        our_best, our_pairs = monotone_assignment(np.array(scores))
        case.equal("SODA sum", our_best, best, ROUNDING)
        case.equal("SODA pairs", our_pairs, pairs, EXACT)


def _score(records: list[dict], predictions: dict[str, list], filler: str) -> tuple[dict, list[str], dict[str, str]]:
    """Lists over videos, lines of the report, and what could not be computed."""
    if filler == FILLER:  # the public function has it
        answers = [{"id": name, "events": events} for name, events in predictions.items()]
        details = youcook2(answers, records, scoring="original").details
        return details["per_video"], details["printed"], details["missing"]
    names = [record["image_id"].split("/")[-1] for record in records]
    truths = [
        DenseVideo(np.array(record["segments"], dtype=float), [f"{text}." for text in record["pure_cap"].split(". ")])
        for record in records
    ]
    answers = [
        DenseVideo(
            np.array([event["timestamp"] for event in predictions[name]], dtype=float).reshape(-1, 2),
            [event["caption"] for event in predictions[name]],
        )
        if name in predictions
        else None
        for name in names
    ]
    scores: OriginalScores = original_scores(names, truths, answers, filler=filler)
    return scores.per_video, [f"{key} {value}" for key, value in scores.printed.items()], scores.missing
