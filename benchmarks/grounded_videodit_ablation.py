# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
What the parts of Grounded-VideoDiT do for a small model on EventWorld with objects.

    OMP_NUM_THREADS=1 python benchmarks/grounded_videodit_ablation.py --workers 2

A full 2^3 factorial of its parts, each with and without, from scratch and with several seeds:

- DTL: `frame_encoders=["clip", "dtl_feature"]` against `["clip"]`. The denoiser learns to denoise the features of the
  training clips, without labels, and is then frozen.
- Obj: rows with masks and 4 object tokens, against rows without masks and no object tokens.
- Time: sinusoidal time embedding and 8 anchors, against neither.

Beside it: masks of a detector and a tracker with faults; a denoiser that is trained on with the rest, or frozen at
random; other numbers of object tokens and anchors (Table V of the paper); and what noise levels cost (Table VI).

All see the same features of a random vision tower, the same rows and the same test clips. The seed draws the weights,
the noise of the denoiser's pretraining, and the order of the rows. Each training writes its answers to a file of its
own when it is done, so that the script can be stopped and goes on where it was. docs/grounded_videodit.md has what
came out, and how to read it.
"""

import argparse
import itertools
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from xml.sax.saxutils import escape

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel, set_seed

from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer
from trl_temporal.data.object_world import KINDS, build_object_world
from trl_temporal.evaluation.metrics.intervals import iou_pairs
from trl_temporal.evaluation.metrics.spans_metric import RECALL_THRESHOLDS, recall_metrics
from trl_temporal.evaluation.span_baselines import constant_span, constant_span_predictions, frame_oracle_predictions
from trl_temporal.models.grounded_videodit import (
    decode_spans,
    frames_to_spans,
    load_frame_encoder,
)
from trl_temporal.models.grounded_videodit.dtl_feature import DtlDenoiser, pretrain
from trl_temporal.models.grounded_videodit.frame_encoders import cosine_sigmas
from trl_temporal.models.tiny import build_tiny_grounded_videodit
from trl_temporal.objects.collator import GroundedCollator, GroundedPromptCollator
from trl_temporal.objects.colours import ColourDetector, ColourTracker, NoisyDetector, NoisyTracker
from trl_temporal.objects.extract import extract_objects
from trl_temporal.objects.frame_features import FrameFeatureReader, build_frame_features
from trl_temporal.objects.frame_features_path import read_frames_of
from trl_temporal.objects.stage import OBJECT_FEATURES, ObjectStageConfig

FACTORS = ("DTL", "Obj", "Time")
NUM_FRAMES, GRID, TOWER_SIZE = 24, 4, 32
BUDGETS = ((2, 4), (4, 8), (8, 16), (16, 32))  # object tokens and time anchors, Table V
NUM_SIGMAS, FIRST_SIGMAS = (1, 2, 4, 8), (0.1, 0.5, 0.9)  # Table VI
DENOISER = {"width": 64, "num_layers": 2, "num_heads": 4, "block": 0}
MASKS = {"exact": (ColourDetector(), ColourTracker()), "noisy": (NoisyDetector(), NoisyTracker())}


@dataclass(frozen=True)
class Cell:
    """One training."""

    dtl: bool = True
    obj: bool = True
    time: bool = True
    masks: str = "exact"
    denoiser: str = "frozen"  # or "trained": on with the rest, or "random": frozen without pretraining
    budget: tuple[int, int] = (4, 8)
    seed: int = 0

    @property
    def name(self) -> str:
        parts = [factor for factor, on in zip(FACTORS, (self.dtl, self.obj, self.time), strict=True) if on]
        name = "+".join(parts) or "none"
        name += "" if self.masks == "exact" else f", {self.masks} masks"
        name += "" if self.denoiser == "frozen" else f", {self.denoiser} denoiser"
        return name + ("" if self.budget == (4, 8) else f", {self.budget[0]}-{self.budget[1]} tokens")


FULL = Cell()


def factorial() -> list[Cell]:
    """The eight combinations, none first, DTL slowest."""
    return [Cell(*switches) for switches in itertools.product((False, True), repeat=3)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/grounded_videodit_ablation"))
    parser.add_argument("--num_train", type=int, default=1000, help="clips to train on (default: %(default)s)")
    parser.add_argument("--num_test", type=int, default=256, help="held-out clips (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of 32 rows each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, each with one thread")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--smoke", action="store_true", help="two clips, two steps, one seed: does it run?")
    args = parser.parse_args(argv)
    if args.smoke:
        args.num_train, args.num_test, args.steps, args.seeds = 2, 2, 2, args.seeds[:1]

    settings = {"num_train": args.num_train, "num_test": args.num_test, "steps": args.steps}
    args.output.mkdir(parents=True, exist_ok=True)
    settings_file = args.output / "settings.json"
    if settings_file.exists() and json.loads(settings_file.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"{settings_file} has other settings than {settings}: choose another --output")
    settings_file.write_text(json.dumps(settings), encoding="utf-8")
    make_data(args.output, args.num_train, args.num_test, args.workers)
    if not args.report:
        run_all(cells_of(args.seeds), args.output, args.steps, args.workers)
    report(args.output, args.seeds)


def cells_of(seeds: list[int]) -> list[Cell]:
    """All trainings: the factorial of every seed before what stands beside it."""
    groups = (
        [*factorial(), Cell(masks="noisy")],
        [Cell(denoiser="random")],
        [Cell(denoiser="trained")],
        [Cell(budget=budget) for budget in BUDGETS],
    )
    cells = [replace(cell, seed=seed) for group in groups for seed in seeds for cell in group]
    return list(dict.fromkeys(cells))


def make_data(output: Path, num_train: int, num_test: int, num_workers: int) -> None:
    """Clips, rows with both kinds of masks, the tower and its features, as far as they are not there."""
    world = build_object_world(
        output.absolute() / "world",
        num_train=num_train,
        num_validation=0,
        num_test=num_test,
        num_each=4,
        num_workers=num_workers,
    )
    world["test"] = world["test"].filter(lambda row: row["id"].endswith("-0"))  # one question of each kind
    for masks, (detect, track) in MASKS.items():
        for split in ("train", "test"):
            if not rows_folder(output, masks, split).exists():
                config = ObjectStageConfig(num_frames=NUM_FRAMES)
                options = {"detect": detect, "track": track, "config": config, "num_workers": num_workers}
                rows = extract_objects(world[split], output / "objects", **options)
                part = rows_folder(output, masks, f"{split}.part")
                rows.save_to_disk(part)
                part.rename(rows_folder(output, masks, split))
    if not (output / "tower").exists():
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=TOWER_SIZE,
            intermediate_size=2 * TOWER_SIZE,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            initializer_range=TOWER_SIZE**-0.5,
        )
        CLIPVisionModel(config).save_pretrained(output / "tower")
    model, processor = build(FULL, output)
    for split in ("train", "test"):
        rows = load_rows(output, FULL, split)
        build_frame_features(rows, output / "features", load_frame_encoder(model.config), read_frames_of(processor))


def rows_folder(output: Path, masks: str, split: str) -> Path:
    return output / "rows" / f"{masks}-{split}"


def load_rows(output: Path, cell: Cell, split: str) -> datasets.Dataset:
    """Rows of a cell, without objects where it has none."""
    rows = datasets.load_from_disk(rows_folder(output, cell.masks, split))
    return rows if cell.obj else rows.remove_columns(list(OBJECT_FEATURES))


def build(cell: Cell, output: Path):
    """A random model of a cell and its processor; the tokenizer is the same for all."""
    rows = datasets.load_from_disk(rows_folder(output, "exact", "train"))
    questions = {prompt[0]["content"][-1]["text"] for prompt in rows["prompt"][:1600]}
    set_seed(cell.seed)
    return build_tiny_grounded_videodit(
        [*sorted(questions), rows[0]["completion"][0]["content"][0]["text"]],
        {"name": str(output / "tower"), "hidden_size": TOWER_SIZE},
        vocab_size=360,
        hidden_size=64,
        num_hidden_layers=3,
        feature_size=64,
        num_frames=NUM_FRAMES,
        image_size=64,
        tokens_per_frame=GRID**2,
        frame_encoders=["clip", "dtl_feature"] if cell.dtl else ["clip"],
        dtl_config=DENOISER,
        temporal_embedding="sinusoidal" if cell.time else "none",
        num_object_tokens=cell.budget[0] if cell.obj else 0,
        num_time_anchors=cell.budget[1] if cell.time else 0,
    )


def run_all(cells: list[Cell], output: Path, steps: int, num_workers: int) -> None:
    """Trains what has no answers yet."""
    missing = [cell for cell in cells if not answers_file(output, cell).exists()]
    # Processes that are started afresh, since torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))
    try:
        runs = [pool.submit(run, cell, output, steps) for cell in missing]
        for finished in tqdm(as_completed(runs), total=len(runs), desc="Trainings"):
            finished.result()
    finally:
        pool.shutdown(cancel_futures=True)


def answers_file(output: Path, cell: Cell) -> Path:
    return output / "answers" / f"{cell.name}, seed {cell.seed}.json"


def run(cell: Cell, output: Path, steps: int) -> None:
    """Trains one cell and writes what it answers."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    begun = time.perf_counter()
    model, processor = build(cell, output)
    train, test = (load_rows(output, cell, split) for split in ("train", "test"))
    read_features = open_features(model, processor, output)
    collate = GroundedCollator(processor, read_features)
    if cell.dtl:
        batch = collate(list(train.select(range(0, len(train), 16))))  # one question about each clip
        # Without a learning rate it measures the statistics of the features alone.
        learns = (
            {"num_steps": min(steps, 200)} if cell.denoiser != "random" else {"num_steps": 1, "learning_rate": 0.0}
        )
        pretrain_denoiser(model.model.denoiser, batch, seed=cell.seed, **learns)
    with tempfile.TemporaryDirectory() as folder:
        settings = EvidenceSFTConfig(
            folder,
            seed=cell.seed,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 10,
            freeze_vision_tower=cell.denoiser != "trained",
            evidence_coef=0,
            consistency_coef=0,
            group_by_video=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=steps,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
        )
        trainer = EvidenceSFTTrainer(
            model, args=settings, train_dataset=train, processing_class=processor, data_collator=collate
        )
        train_begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - train_begun
    result = {
        **asdict(cell),
        "steps": steps,
        "train_s": round(seconds, 1),
        "span_loss": trainer.state.log_history[0]["loss/span"],
        "spans": answer(model, processor, read_features, test),
        "all_s": round(time.perf_counter() - begun, 1),
    }
    file = answers_file(output, cell)
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.rename(file)


def open_features(model, processor, output: Path) -> FrameFeatureReader:
    encoder = load_frame_encoder(model.config)
    return FrameFeatureReader.open(output / "features", encoder, read_frames_of(processor).sampling)


def pretrain_denoiser(denoiser: DtlDenoiser, batch: dict[str, torch.Tensor], **settings) -> None:
    """Teaches the denoiser the features of the clips, and those of their objects where the rows have them."""
    clip, objects = batch["video_features"].float(), {}
    if "union_masks" in batch:
        share = batch["union_masks"][..., None]
        area = share.sum(2)
        objects["object_features"] = (clip * share).sum(2) / area.clamp(min=1e-6)
        objects["object_mask"] = area[..., 0] > 0
    pretrain(denoiser, clip.mean(2), batch["frame_mask"], **objects, **settings)


@torch.no_grad()
def answer(model, processor, read_features: FrameFeatureReader, test: datasets.Dataset) -> list[list[float]]:
    """Spans in seconds by the start/end head, which needs the prompt alone."""
    model.eval()
    collate, spans = GroundedPromptCollator(processor, read_features), []
    for rows in test.iter(64):
        rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        batch = collate(rows)
        heads = model.model(**batch["inputs"])
        frames = decode_spans(heads.start_logits, heads.end_logits).frames
        times = zip(frames, batch["timestamps_s"], batch["duration_s"], strict=True)
        spans += [frames_to_spans(span[None], *time)[0] for span, *time in times]
    return [[round(value_s, 4) for value_s in span] for span in spans]


def effect(ious: np.ndarray, signs: np.ndarray, num_samples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """
    A sum of cells, each with its sign, and its 95 % bootstrap interval over clips and seeds.

    `ious` of shape `(cells, seeds, clips)`. The same clips are drawn for all cells, so that they are paired; seeds are
    drawn for each cell on its own, since a model with other parts has other weights.
    """
    num_cells, num_seeds, num_clips = ious.shape
    rng = np.random.default_rng(seed)
    drawn = rng.integers(num_clips, size=(num_samples, num_clips))
    shares = np.zeros((num_samples, num_clips))
    np.add.at(shares, (np.arange(num_samples)[:, None], drawn), 1 / num_clips)
    means = (shares @ ious.reshape(-1, num_clips).T).reshape(num_samples, num_cells, num_seeds)
    # Of n seeds, drawn from themselves, the mean varies (n - 1) / n as much as it should.
    center = means.mean(axis=2, keepdims=True)
    means = center + (means - center) * np.sqrt(num_seeds / max(num_seeds - 1, 1))
    seeds = rng.integers(num_seeds, size=(num_samples, num_cells, num_seeds))
    samples = np.take_along_axis(means, seeds, axis=2).mean(axis=2) @ signs
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(ious.mean(axis=(1, 2)) @ signs), float(low), float(high)


def factor_signs(*factors: str) -> np.ndarray:
    """
    What each cell of `factorial` counts in the effect of a factor, on minus off; of two, in how much more the one does
    with the other than without.
    """
    is_on = np.array([(cell.dtl, cell.obj, cell.time) for cell in factorial()])
    signs = np.where(is_on[:, [FACTORS.index(factor) for factor in factors]], 1, -1)
    return signs.prod(axis=1) * 2.0 ** len(factors) / len(signs)


def of_seeds(cell: Cell, seeds: list[int], output: Path) -> list[Cell]:
    """The cell with each of the seeds that it was trained with."""
    each = [replace(cell, seed=seed) for seed in seeds]
    return [cell for cell in each if answers_file(output, cell).exists()]


def report(output: Path, seeds: list[int]) -> None:
    """Prints the tables and writes them and the picture."""
    train, test = (load_rows(output, FULL, split) for split in ("train", "test"))
    if list(test["kind"]) != list(KINDS) * (len(test) // len(KINDS)):
        raise SystemExit(f"the test rows in {output} are not one of each kind for each clip: delete the folder 'rows'")

    def score(spans: list[list[float]]) -> np.ndarray:
        """IoU `(clips, kinds)` in percent."""
        truth = np.array([spans[0] for spans in test["spans"]])
        return 100 * iou_pairs(np.array(spans), truth).reshape(-1, len(KINDS))

    def scores(cell: Cell) -> np.ndarray:
        """IoU `(seeds, clips, kinds)` in percent."""
        files = [answers_file(output, each) for each in of_seeds(cell, seeds, output)]
        return np.array([score(json.loads(file.read_text(encoding="utf-8"))["spans"]) for file in files])

    runs = {cell: scores(cell) for cell in cells_of([0]) if of_seeds(cell, seeds, output)}
    prior = constant_span_predictions(test, constant_span(train))
    oracle = frame_oracle_predictions(test, test["object_times_s"])
    beside = {"one span for all": prior, "frame oracle": oracle}
    beside = {name: score([each["spans"][0] for each in spans])[None] for name, spans in beside.items()}
    lines = {cell.name: ious for cell, ious in runs.items() if cell.budget == FULL.budget} | beside
    tables = [score_table(lines), effect_table(runs), *cost_tables(output, runs)]
    (output / "tables.md").write_text("\n".join(map(as_markdown, tables)), encoding="utf-8")
    (output / "effects.svg").write_text(
        draw(main_effects(runs), len(test) // len(KINDS), len(seeds)), encoding="utf-8"
    )
    for table in tables:
        print_table(*table)


def score_table(lines: dict[str, np.ndarray]) -> tuple[str, list[str], list[list[str]]]:
    """Scores of IoU `(seeds, clips, kinds)` by name."""
    table = []
    for name, ious in lines.items():
        means = ious.mean(axis=(1, 2))
        spread = f" ± {means.std(ddof=1):.1f}" if len(means) > 1 else ""
        recalls = recall_metrics(ious.ravel() / 100)
        recalls = [f"{recalls[f'R1@{threshold}']:.1f}" for threshold in RECALL_THRESHOLDS]
        of_kinds = [f"{value:.1f}" for value in ious.mean(axis=(0, 1))]
        table.append([name, str(len(ious)), f"{means.mean():.1f}{spread}", *recalls, *of_kinds])
    header = ["parts", "runs", "mIoU", *(f"R@{threshold}" for threshold in RECALL_THRESHOLDS), *KINDS]
    return "mIoU ± standard deviation over seeds, recall, and mIoU of each kind, in percent", header, table


def by_group(ious: np.ndarray, signs: np.ndarray) -> list[tuple[float, float, float]]:
    """Effects over all kinds and in each, of IoU `(cells, seeds, clips, kinds)`."""
    groups = [ious.mean(axis=3), *np.moveaxis(ious, 3, 0)]
    return [effect(group, signs) for group in groups]


def main_effects(runs: dict[Cell, np.ndarray]) -> dict[str, list[tuple[float, float, float]]]:
    ious = np.array([runs[cell] for cell in factorial()])
    return {factor: by_group(ious, factor_signs(factor)) for factor in FACTORS}


def effect_table(runs: dict[Cell, np.ndarray]) -> tuple[str, list[str], list[list[str]]]:
    """Main effects, what two parts do together, and what stands beside the factorial."""
    ious = np.array([runs[cell] for cell in factorial()])
    effects = main_effects(runs)
    for pair in itertools.combinations(FACTORS, 2):
        effects[" x ".join(pair)] = by_group(ious, factor_signs(*pair))
    others = {"noisy - exact masks": replace(FULL, masks="noisy")}
    others |= {f"{name} - frozen denoiser": replace(FULL, denoiser=name) for name in ("trained", "random")}
    for name, cell in others.items():
        if cell in runs and len(runs[cell]) == len(runs[FULL]):
            effects[name] = by_group(np.array([runs[cell], runs[FULL]]), np.array([1, -1]))
    table = [
        [name, *(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for mean, low, high in groups)]
        for name, groups in effects.items()
    ]
    title = "Paired differences of mIoU in points [95 % bootstrap interval over clips and seeds]"
    return title, ["effect", "all", *KINDS], table


def cost_tables(output: Path, runs: dict[Cell, np.ndarray]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Counterparts of Tables V and VI of the paper."""
    forwards = {}
    for budget in BUDGETS:
        model, processor = build(replace(FULL, budget=budget), output)
        model.eval()
        rows = list(load_rows(output, FULL, "test").select(range(min(32, len(runs[FULL][0])))))
        inputs = GroundedPromptCollator(processor, open_features(model, processor, output))(rows)["inputs"]
        forwards[budget] = partial(model.model, **inputs)
    seconds = fastest_seconds(forwards)
    trained = {budget: runs[cell] for budget in BUDGETS if (cell := replace(FULL, budget=budget)) in runs}
    num_seeds = min(map(len, trained.values()))  # the same seeds of all
    budgets = []
    for budget in BUDGETS:
        miou = f"{trained[budget][:num_seeds].mean():.1f}" if budget in trained else "-"
        budgets.append([f"{budget[0]} / {budget[1]}", miou, f"{seconds[budget] / seconds[FULL.budget]:.2f}"])

    features = torch.randn(32, NUM_FRAMES, TOWER_SIZE, generator=torch.Generator().manual_seed(0))
    keys = [str(number) for number in range(len(features))]
    encodings = {}
    for first, steps in itertools.product(FIRST_SIGMAS, NUM_SIGMAS):
        denoiser = DtlDenoiser(TOWER_SIZE, sigmas=cosine_sigmas(first, steps))
        encodings[first, steps] = partial(denoiser, features, keys=keys)
    seconds = fastest_seconds(encodings)
    base = seconds[FIRST_SIGMAS[0], NUM_SIGMAS[0]]
    noise = [
        [f"{first:g}", *(f"{base / seconds[first, steps]:.2f}" for steps in NUM_SIGMAS)] for first in FIRST_SIGMAS
    ]
    return [
        (f"Object tokens / anchors, {num_seeds} seeds", ["tokens", "mIoU", "time of a forward"], budgets),
        ("Throughput of the denoiser by noise levels", ["first sigma", *(f"S = {s}" for s in NUM_SIGMAS)], noise),
    ]


@torch.no_grad()
def fastest_seconds(calls: dict, repeats: int = 20) -> dict:
    """Shortest time of each call. They take turns, so that what else the machine does hits all of them."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - begun)
    return seconds


def as_markdown(table: tuple[str, list[str], list[list[str]]]) -> str:
    title, header, rows = table
    lines = [header, ["---"] * len(header), *rows]
    return f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


def draw(effects: dict[str, list[tuple[float, float, float]]], num_clips: int, num_seeds: int) -> str:
    """Effects with their intervals, a block for each part and a line for each kind, as an SVG document."""
    left, top, line, width = 190, 80, 20, 640
    groups = ["all kinds", *KINDS]
    low = min(each[1] for of_part in effects.values() for each in of_part)
    high = max(each[2] for of_part in effects.values() for each in of_part)
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (high - low) / step <= 8)
    ticks = np.arange(np.floor(min(low, 0) / step), np.ceil(max(high, 0) / step) + 1) * step

    def x(points: float) -> float:
        return round(left + (width - left - 30) * (points - ticks[0]) / (ticks[-1] - ticks[0]), 1)

    block = line * len(groups) + 14
    bottom = top + block * len(effects)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 46}" width="{width}" '
        f'height="{bottom + 46}" font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{bottom + 46}" fill="#fff"/>',
        '<text x="16" y="24" font-size="14" font-weight="600">With the part, minus without it</text>',
        '<text x="16" y="44" fill="#555">Points of mIoU on EventWorld with objects, small models.</text>',
        f'<text x="16" y="60" fill="#555">95 % intervals over {num_clips} clips and {num_seeds} seeds; '
        "hollow where 0 is inside.</text>",
    ]
    for tick in ticks:
        colour = "#222" if tick == 0 else "#ddd"
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{bottom}" stroke="{colour}"/>')
        label = "0" if tick == 0 else f"{tick:+g}".replace("-", "\u2212")
        parts.append(f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    for number, (part, of_part) in enumerate(effects.items()):
        start = top + block * number + 7
        parts.append(f'<text x="16" y="{start + 15}" font-size="14" font-weight="600">{escape(part)}</text>')
        for row, (name, (mean, first, last)) in enumerate(zip(groups, of_part, strict=True)):
            y, colour = start + line * row + line / 2, "#b5442e" if row == 0 else "#3b6ea5"
            fill = "#fff" if first <= 0 <= last else colour
            weight = ' font-weight="600"' if row == 0 else ""
            parts += [
                f'<text x="{left - 14}" y="{y + 4}" text-anchor="end"{weight}>{escape(name)}</text>',
                f'<line x1="{x(first)}" x2="{x(last)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
                f'<circle cx="{x(mean)}" cy="{y}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2"/>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
