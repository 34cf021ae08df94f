# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
TEMPLE's schedules and orders against each other, on the films of `examples/temple.py`.

    OMP_NUM_THREADS=1 python benchmarks/temple_ablation.py

Every schedule is a configuration of the same trainer on the same pairs and rows, with as many steps in all; the start
of the LoRA and the order of the rows are drawn from the seed, and nothing else. Prints mean and standard deviation
over seeds of the scores that the example explains. Runs that are in the results file already are not run again, so
that the script can be stopped. Measured in 15 minutes of one core, 32 films, 352 pairs, 3 seeds:

    schedule                        steps  order        margin       dropped      what next
    16 8 4 2, then SFT                 68  0.72 ± 0.04  3.01 ± 0.35  0.99 ± 0.01  0.60 ± 0.01
    SFT, then 16 8 4 2                 68  0.67 ± 0.01  4.52 ± 1.49  1.00 ± 0.01  0.58 ± 0.03
    16 4, then SFT                     72  0.80 ± 0.03  3.93 ± 0.47  1.00 ± 0.01  0.61 ± 0.03
    8, then SFT                        72  0.82 ± 0.01  4.10 ± 0.45  0.94 ± 0.04  0.65 ± 0.02
    2 4 8 16, then SFT                 68  0.70 ± 0.03  2.93 ± 0.38  0.99 ± 0.01  0.62 ± 0.02
    16 8 4 2 on one LoRA, then SFT     68  0.76 ± 0.03  4.04 ± 0.37  0.97 ± 0.02  0.59 ± 0.03
    SFT alone                          68  0.72 ± 0.02  1.63 ± 0.13  0.99 ± 0.01  0.52 ± 0.02

The order is scored on 24 films, 168 pairs, so that two schedules must differ by about .1 before it is more than these
films; the seeds do not show that. What can be read here: from easy to hard or from hard to easy is the same; fewer
stages are better, even on a quarter of the pairs, and so, less surely, is one LoRA for all, as one would expect where
every stage warms up and decays within 11 steps; against SFT alone, four stages give wider margins, but the right order
no more often. None of it speaks for or against the paper, whose stages take an hour each on 8 GPUs.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the example is a script

from examples import temple  # noqa: E402
from trl_temporal import D2VLMProcessor, TempleConfig, TempleTrainer  # noqa: E402
from trl_temporal.data.frame_cache import FrameCache, processor_sampling  # noqa: E402
from trl_temporal.synthesis.temple import temple_pairs  # noqa: E402

SCHEDULES = {
    "16 8 4 2, then SFT": {},
    "SFT, then 16 8 4 2": {"order": "sft_then_dpo"},
    "16 4, then SFT": {"stages": [16, 4], "stage_epochs": 2},
    "8, then SFT": {"stages": [8], "stage_epochs": 4},
    "2 4 8 16, then SFT": {"stages": [2, 4, 8, 16]},
    "16 8 4 2 on one LoRA, then SFT": {"stage_reset": "continue"},
    "SFT alone": {"stages": []},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="outputs/event_films", help="films and pairs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("outputs/temple_ablation.jsonl"))
    parser.add_argument("--num_train", type=int, default=32, help="films to train on (default: %(default)s)")
    parser.add_argument("--num_test", type=int, default=24, help="held-out films (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    script_args = temple.ScriptArguments(data_dir=args.data_dir, num_train=args.num_train, num_test=args.num_test)
    films, pairs = temple.make_data(script_args, Console(quiet=True))
    train, test = films[: args.num_train], films[args.num_train :]
    data = {"train_dataset": pairs, "sft_dataset": temple.sft_rows(train)}
    held_out = temple_pairs([temple.describe(film) for film in test], questions=[temple.QUESTION])[0]
    questions = Dataset.from_list([pair for film in test for pair in temple.order_questions(film, 3)])

    args.results.parent.mkdir(parents=True, exist_ok=True)
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.exists() else []
    results = [json.loads(line) for line in lines]
    for seed in args.seeds:
        for name, schedule in SCHEDULES.items():
            key = {"schedule": name, "seed": seed, "num_train": args.num_train, "num_test": args.num_test}
            if any(key.items() <= result.items() for result in results):
                continue
            results.append(key | run(schedule, seed, data, held_out, questions))
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
    same = {"num_train": args.num_train, "num_test": args.num_test}
    print_table([result for result in results if same.items() <= result.items() and result["seed"] in args.seeds])


def run(schedule: dict, seed: int, data: dict, pairs: Dataset, questions: Dataset) -> dict[str, float]:
    """Trains one schedule and scores it: after SFT, or what else comes last."""
    of_lora = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "model_name_or_path")
    settings = {name: value for name, value in temple.DEFAULTS.items() if name not in of_lora}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "seed": seed, "use_cpu": True, **schedule}
    settings["output_dir"] = tempfile.mkdtemp()
    if schedule.get("stages") == []:  # as many steps as the others have
        batch = settings["per_device_train_batch_size"]
        ratios = data["train_dataset"]["keep_ratio"]
        steps = sum(-(-ratios[:].count(ratio) // batch) for ratio in set(ratios))
        epochs = settings["then_sft"]["num_train_epochs"]
        steps += epochs * -(-len(data["sft_dataset"]) // batch)
        settings["then_sft"] = {**settings["then_sft"], "max_steps": steps}
    start = temple.DEFAULTS["model_name_or_path"]
    processor = D2VLMProcessor.from_pretrained(start)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=temple.DEFAULTS["lora_r"],
        lora_alpha=temple.DEFAULTS["lora_alpha"],
        target_modules=temple.DEFAULTS["lora_target_modules"][0],
    )
    trainer = TempleTrainer(start, TempleConfig(**settings), processing_class=processor, peft_config=lora, **data)
    trainer.train()
    read_video = FrameCache(settings["frame_cache_dir"], **processor_sampling(processor))
    margins = [temple.log_prob_margins(trainer.model, processor, rows, read_video) for rows in (pairs, questions)]
    steps = trainer.log_history[-1]["step"]
    shutil.rmtree(settings["output_dir"])
    return {"steps": steps, **temple.score(pairs, *margins)}


def print_table(results: list[dict]) -> None:
    measures = ("order", "margin", "dropped", "what next")
    table = Table(title="Mean ± standard deviation over seeds")
    table.add_column("schedule", no_wrap=True)
    for name in ("seeds", "steps", *measures):
        table.add_column(name, justify="right", no_wrap=True)
    for schedule in SCHEDULES:
        runs = [result for result in results if result["schedule"] == schedule]
        if runs:
            values = {name: np.array([result[name] for result in runs]) for name in measures}
            cells = [f"{value.mean():.2f} ± {value.std(ddof=min(1, len(runs) - 1)):.2f}" for value in values.values()]
            table.add_row(schedule, str(len(runs)), str(runs[0]["steps"]), *cells)
    Console(width=119).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
