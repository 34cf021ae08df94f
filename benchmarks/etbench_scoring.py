# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
How long it takes to score answers to E.T. Bench, without sentence model and caption tools.

    python benchmarks/etbench_scoring.py [NUM_ANSWERS]

Answers are made up, over all twelve tasks; 7,289 are a whole run.
"""

import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed, too

from trl_temporal.evaluation.metrics.etbench import etbench  # noqa: E402
from trl_temporal.evaluation.metrics.etbench_original import SCORERS  # noqa: E402

NUM_ANSWERS = 7289
# Share of the answers, and number of sources.
TASKS = {
    "rar": (0.07, 1),
    "eca": (0.07, 1),
    "rvq": (0.07, 1),
    "tvg": (0.14, 2),
    "epm": (0.04, 1),
    "tal": (0.13, 3),
    "evs": (0.05, 2),
    "vhd": (0.07, 2),
    "dvc": (0.14, 2),
    "slc": (0.14, 2),
    "tem": (0.05, 2),
    "gvq": (0.03, 1),
}
CAPTION = "the person in the red shirt pours some oil into the pan on the left"


def make_intervals(rng: random.Random, count: int) -> list[list[float]]:
    starts_s = [rng.uniform(0, 150) for _ in range(count)]
    return [[round(start_s, 1), round(start_s + rng.uniform(1, 40), 1)] for start_s in starts_s]


def make_sample(rng: random.Random, task: str, source: str, index: int) -> dict:
    """A record with an answer that overlaps the truth now and then."""
    count = 1 if task in ("tvg", "epm", "gvq") else rng.randint(1, 12)
    truth = make_intervals(rng, count)
    answered = [truth[place % count] if rng.random() < 0.3 else make_intervals(rng, 1)[0] for place in range(count)]
    sample = {"task": task, "source": source, "idx": index, "video": f"{index}.mp4", "duration": 200.0}
    answer = ", ".join(f"{start_s} - {end_s}" for start_s, end_s in answered)
    if task in ("rar", "eca", "rvq", "gvq"):
        sample |= {"p": rng.randrange(4), "o": [f"{CAPTION} {place}" for place in range(4)]}
        answer = f"({rng.choice('ABCD')}) {CAPTION}. It happens in {answer}."
        # A letter first: what names no option would need the sentence model in `original` mode.
        answer = answer.removeprefix("(")
    if task in ("dvc", "slc"):
        sample["g"] = [CAPTION] * count
        answer = " ".join(f"{start_s} - {end_s} seconds, {CAPTION}." for start_s, end_s in answered)
    sample["tgt"] = truth[0] if task in ("tvg", "epm", "gvq") else truth
    evidence = " ".join(f"{start_s} - {end_s}" for start_s, end_s in answered)
    return sample | {"a": f"{evidence} </evi>{answer}"}


def make_samples(num_answers: int) -> list[dict]:
    rng = random.Random(0)
    tasks = rng.choices(list(TASKS), [share for share, _ in TASKS.values()], k=num_answers)
    return [make_sample(rng, task, f"s{index % TASKS[task][1]}", index) for index, task in enumerate(tasks)]


if __name__ == "__main__":
    samples = make_samples(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_ANSWERS)
    runs = {"fixed": {}} | {f"original, {scorer}": {"scoring": "original", "scorer": scorer} for scorer in SCORERS}
    for name, options in runs.items():
        start = time.perf_counter()
        scores = etbench(samples, sentence_model=False, caption_tools=False, **options)
        seconds = time.perf_counter() - start
        print(f"{name}: {scores.num_samples} answers, {len(scores.metrics)} numbers, {seconds:.2f} s")
