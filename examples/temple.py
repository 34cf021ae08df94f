# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
TEMPLE: preferences between a video told right and told with its clips dropped, shuffled or reversed, from easy to
hard, then supervised fine-tuning.

    accelerate launch examples/temple.py
    accelerate launch examples/temple.py --stages 16 4 --stage_reset continue
    accelerate launch examples/temple.py --config recipes/temple/qwen2_5_vl_7b.yaml --dataset_name path/to/pairs \
        --sft_dataset_name path/to/rows

Without arguments it runs on the CPU from nothing but the tiny model that ships with the examples: it films EventWorld
(mp4 files of 16 shots, an event each), selects videos and finds their clips, has the clips captioned, by what is known
of the world in the place of a captioner, makes pairs, and runs the curriculum. Ends with a table of how likely the
model finds the true order of held-out films against a wrong one, after each stage, and a drawing of it.

With `--dataset_name`, a model is trained on pairs of your own, as `trl-temporal temple pairs` makes them, and on
`--sft_dataset_name` if there is `then_sft`. A run that was stopped goes on with `--resume_from_checkpoint last`.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from trl import ModelConfig, TrlParser

from trl_temporal import D2VLMForConditionalGeneration, D2VLMProcessor, TempleConfig, TempleTrainer
from trl_temporal.data.collator import PreferenceCollator
from trl_temporal.data.event_world import SPLIT_STARTS, VIDEO_SETTINGS, render, simulate
from trl_temporal.data.event_world_scene import FPS, SIDE, WorldEvent
from trl_temporal.data.frame_cache import FrameCache, processor_sampling
from trl_temporal.data.grammar import EVI_END
from trl_temporal.data.rows import assistant_message, sft_row
from trl_temporal.data.schema import SFT_FEATURES
from trl_temporal.data.shards import write_whole
from trl_temporal.synthesis.temple import FACTORS, KEEP_RATIOS, draw_perturbation, temple_pairs
from trl_temporal.synthesis.temple_captions import caption_path
from trl_temporal.synthesis.temple_folder import pairs_table, read_descriptions
from trl_temporal.synthesis.temple_selection import select_videos
from trl_temporal.synthesis.temple_shots import walk_frames
from trl_temporal.synthesis.temple_signal import check_signal, signal_table
from trl_temporal.trainer.script_arguments import DataArguments, load_model, load_split, lora_config, model_name

# The recipe of EventWorld. Command line flags win; a `--config`, or pairs of your own, come without it.
DEFAULTS = {
    "model_name_or_path": str(Path(__file__).parent / "eventworld_tiny"),
    "output_dir": "outputs/temple",
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "then_sft": {
        "learning_rate": 1e-3,
        "num_train_epochs": 3,
        "freeze_vision_tower": True,  # that of EventWorld forgets when it is trained
    },
    "use_peft": True,
    "lora_r": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.0,
    "lora_target_modules": [r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"],
    "logging_steps": 3,
    "save_steps": 6,
    "save_total_limit": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "frame_cache_dir": "outputs/frames",
}
# Films and their shots are worlds of these indices, far from those of EventWorld's splits and of the model's training.
FIRST_INDEX, SHOTS_PER_FILM, MAX_SHOT_S = 20_000_000, 16, 2.0
QUESTION = "Describe every event in the video."


@dataclass
class ScriptArguments(DataArguments):
    sft_dataset_name: str | None = field(
        default=None, metadata={"help": "Rows of the SFT stage, as `dataset_name`; the split is that of the pairs."}
    )
    data_dir: str = field(default="outputs/event_films", metadata={"help": "Where films and pairs are made."})
    num_train: int = field(default=48, metadata={"help": "Films to train on."})
    num_test: int = field(default=24, metadata={"help": "Films of the final table."})
    num_workers: int = field(default=1, metadata={"help": "Processes that select videos."})
    against_sft: bool = field(
        default=True, metadata={"help": "Compare with SFT alone, from the same start and with as many steps."}
    )


def main() -> None:
    parser = TrlParser((ScriptArguments, TempleConfig, ModelConfig))
    if not any(word.startswith(("--config", "--dataset_name")) for word in sys.argv):
        parser.set_defaults_with_config(**DEFAULTS)
    script_args, training_args, model_args = parser.parse_args_and_config()
    if script_args.adapter_name is not None:
        raise ValueError(
            "`adapter_name`: a curriculum begins with adapters of its own. Merge this one first, with "
            "`trl-temporal merge`, and give the merged model as `model_name_or_path`."
        )
    if script_args.dataset_name is not None:
        train_on_pairs(script_args, training_args, model_args)
    else:
        train_on_event_world(script_args, training_args, model_args)


def train_on_pairs(script_args: ScriptArguments, training_args: TempleConfig, model_args: ModelConfig) -> None:
    def load():
        return load_model(script_args, model_args)[0]

    model, processor = load_model(script_args, model_args)
    peft_config = lora_config(model_args, model, processor)
    del model  # every stage loads it anew
    split, sft_rows = script_args.dataset_train_split, script_args.sft_dataset_name
    trainer = TempleTrainer(
        load,
        training_args,
        train_dataset=load_split(script_args.dataset_name, split),
        sft_dataset=None if sft_rows is None else load_split(sft_rows, split),
        processing_class=processor,
        peft_config=peft_config,
    )
    trainer.train()


def train_on_event_world(script_args: ScriptArguments, training_args: TempleConfig, model_args: ModelConfig) -> None:
    start, output_dir = model_name(model_args), Path(training_args.output_dir)
    console = Console(quiet=not PartialState().is_main_process)
    with PartialState().main_process_first():
        films, pairs = make_data(script_args, console)
    test = [films.pop() for _ in range(script_args.num_test)]
    test_pairs, _ = temple_pairs([describe(film) for film in test], questions=[QUESTION])
    test_questions = Dataset.from_list([pair for film in test for pair in order_questions(film, 3)])
    processor = D2VLMProcessor.from_pretrained(start)
    model = D2VLMForConditionalGeneration.from_pretrained(start)
    data = {
        "train_dataset": pairs,
        "sft_dataset": None if training_args.then_sft is None else sft_rows(films),
        "processing_class": processor,
        "peft_config": lora_config(model_args, model, processor),
    }
    trainer = TempleTrainer(start, training_args, **data)
    trainer.train()

    read_video = FrameCache(training_args.frame_cache_dir, **processor_sampling(processor))
    scores = {}

    def evaluate(name: str, model: D2VLMForConditionalGeneration) -> None:
        model.to(training_args.device)
        margins = [log_prob_margins(model, processor, rows, read_video) for rows in (test_pairs, test_questions)]
        scores[name] = score(test_pairs, *margins)

    for number, name in enumerate(["start", *[stage.name for stage in trainer.stages]]):
        evaluate(name, trainer.load_model(number))
    if script_args.against_sft and training_args.then_sft is not None and training_args.stages:
        training_args.output_dir, training_args.stages = str(output_dir / "sft_alone"), []
        training_args.then_sft["max_steps"] = trainer.log_history[-1]["step"]
        alone = TempleTrainer(start, training_args, **data)
        alone.train()
        evaluate("SFT alone", alone.model)

    if PartialState().is_main_process:
        print_scores(console, scores, script_args.num_test)
        write_whole(output_dir / "scores.json", json.dumps(scores, indent=2) + "\n")
        write_whole(output_dir / "order.svg", draw_scores(scores))
        print(f"Drawing: {output_dir / 'order.svg'}")


# --- Films: shots of EventWorld behind one another, so that there are clips to find ---


@dataclass(frozen=True)
class Film:
    """An mp4 file and what happens in it."""

    path: str
    events: list[WorldEvent]
    spans: list[tuple[float, float]]

    @property
    def captions(self) -> list[str]:
        return [event.caption for event in self.events]


def make_film(path: Path, number: int) -> Film:
    """Every shot shows one event of another world; no two of a film have the same caption."""
    rng = np.random.default_rng([FIRST_INDEX, number])
    worlds, events, spans = [], [], []
    for index in range(1000):
        world = simulate(0, FIRST_INDEX + 1000 * number + index)
        event = world.events[rng.integers(len(world.events))]
        if event.caption in [other.caption for other in events]:
            continue
        start_s = spans[-1][1] if spans else 0.0
        length_s = min(MAX_SHOT_S, math.floor(2 * (event.end_s - event.start_s)) / 2)
        worlds, events, spans = [*worlds, world], [*events, event], [*spans, (start_s, start_s + length_s)]
        if len(events) == SHOTS_PER_FILM:
            break
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream(VIDEO_SETTINGS["codec"], rate=FPS, options=VIDEO_SETTINGS["options"])
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, VIDEO_SETTINGS["pix_fmt"]
            stream.codec_context.thread_count = 1
            for world, event, (start_s, end_s) in zip(worlds, events, spans, strict=True):
                times_s = event.start_s + np.arange(round((end_s - start_s) * FPS)) / FPS
                for frame in render(world, times_s, SIDE):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        partial.rename(path)
    return Film(str(path), events, spans)


def make_data(script_args: ScriptArguments, console: Console) -> tuple[list[Film], Dataset]:
    """All films, those to train on first, and pairs of the latter: selected, captioned, perturbed."""
    folder = Path(script_args.data_dir)
    console.print("Filming ...")
    train = [make_film(folder / f"train/{i:06d}.mp4", i) for i in range(script_args.num_train)]
    first = SPLIT_STARTS["test"]
    test = [make_film(folder / f"test/{i:06d}.mp4", first + i) for i in range(script_args.num_test)]

    work = folder / f"temple_{script_args.num_train}"
    paths = [film.path for film in train]
    if PartialState().is_main_process:  # the others read what it has written
        found = select_videos(paths, work, detect=find_cuts, embed=bright_things, num_workers=script_args.num_workers)
        console.print(f"Selection: {', '.join(f'{count} {reason}' for reason, count in found.items())}")
        caption_path(work, work / "descriptions", Truth(train), "what is known of EventWorld")
    pairs, report = temple_pairs(read_descriptions(work / "descriptions"), questions=[QUESTION])
    console.print(pairs_table(report), signal_table(check_signal(pairs)), sep="\n")
    return train + test, pairs


def find_cuts(path: str) -> list[tuple[float, float]]:
    """Shots: behind a cut, more of the picture has changed than any event changes in an eighth of a second."""
    cuts, last = [0], []

    def see(index: int, frame: av.VideoFrame) -> None:
        gray = frame.to_ndarray(format="gray").astype(np.int16)
        if last and (np.abs(gray - last.pop()) > 25).mean() > 0.08:
            cuts.append(index)
        last.append(gray)

    edges_s = walk_frames(path, see)
    return [(edges_s[a], edges_s[b]) for a, b in zip(cuts, [*cuts[1:], len(edges_s) - 1], strict=True)]


def bright_things(frames: np.ndarray) -> np.ndarray:
    """Frames as vectors: where they are brighter than the ground, in cells of 8 x 8 pixels, and in which colour."""
    number, height, width, _ = frames.shape
    cells = np.clip(frames.astype(np.float32) - 70, 0, None).reshape(number, height // 8, 8, width // 8, 8, 3)
    vectors = cells.mean((2, 4)).reshape(number, -1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Truth:
    """A captioner that knows the films: what happens where a clip is looked at, and the list of captions as a text."""

    def __init__(self, films: Sequence[Film]):
        self.films = {film.path: film for film in films}

    def __call__(self, requests, videos) -> list[str]:
        return [self.describe(request) if request.captions else self.caption(request) for request in requests]

    def caption(self, request) -> str:
        film, last_s = self.films[request.path], request.frames_s[-1]
        return next(c for c, (_, end_s) in zip(film.captions, film.spans, strict=True) if last_s < end_s)

    def describe(self, request) -> str:
        return as_text(request.captions)


def as_text(captions: Sequence[str]) -> str:
    """A description without evidence, in the grammar of a D2VLM's responses."""
    return " ".join([EVI_END, *(f"{caption}." for caption in captions)])


# --- What is asked of held-out films ---


def describe(film: Film) -> dict:
    """A film with all its perturbations, as a line of `descriptions.jsonl`."""
    name, captions = Path(film.path).stem, film.captions
    drawn = [draw_perturbation(name, len(captions), factor, r) for factor in FACTORS for r in KEEP_RATIOS]
    texts = [as_text([captions[clip] for clip in perturbation.selected_indices]) for perturbation in drawn]
    return {
        "video_id": name,
        "path": film.path,
        "num_clips": len(captions),
        "chosen": as_text(captions),
        "rejected": [{**p._asdict(), "text": text} for p, text in zip(drawn, texts, strict=True)],
    }


def order_questions(film: Film, count: int) -> list[dict]:
    """What happens right after an event, against what happened right before it, as preference rows."""
    name, captions = Path(film.path).stem, film.captions
    rng = np.random.default_rng([FIRST_INDEX, int(name)])
    rows = []
    for number in rng.choice(np.arange(1, len(captions) - 1), size=count, replace=False).tolist():
        event = film.events[number]
        question = f"What happens right after the {event.object_name} {event.action}?"
        rows.append(
            {
                "id": f"{name}-after-{number}",
                "videos": [{"path": film.path}],
                "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}],
                "chosen": assistant_message(as_text([captions[number + 1]])),
                "chosen_spans": [],
                "rejected": assistant_message(as_text([captions[number - 1]])),
                "rejected_spans": [],
            }
        )
    return rows


def sft_rows(films: Sequence[Film]) -> Dataset:
    """The description of each film, and a question about the order of its events."""
    rows = []
    for film in films:
        told = {"id": Path(film.path).stem, "question": QUESTION, "response": as_text(film.captions)}
        asked = [
            {
                "id": pair["id"],
                "question": pair["prompt"][0]["content"][1]["text"],
                "response": pair["chosen"][0]["content"][0]["text"],
            }
            for pair in order_questions(film, 1)
        ]
        same = {"source": "event_films", "video": {"path": film.path}, "spans": [], "all_spans": film.spans}
        rows += [sft_row(**row, **same, task="qa", duration=film.spans[-1][1]) for row in (told, *asked)]
    return Dataset.from_list(rows, features=SFT_FEATURES)


@torch.no_grad()
def log_prob_margins(model, processor, pairs: Dataset, read_video, batch_size: int = 16) -> np.ndarray:
    """By how much the chosen response of each pair is likelier, `(pairs, 2)`: in nats, and in nats a token."""
    model.eval()
    collate, margins = PreferenceCollator(processor, read_video), []
    for first in range(0, len(pairs), batch_size):
        batch = collate(pairs.select(range(first, min(first + batch_size, len(pairs)))).to_list())
        mask = batch["completion_mask"][:, 1:].to(model.device)
        inputs = {name: value.to(model.device) for name, value in batch.items() if torch.is_tensor(value)}
        ids = inputs["input_ids"][:, 1:, None]
        del inputs["completion_mask"]
        log_probs = model(**inputs).logits[:, :-1].log_softmax(-1).gather(-1, ids).squeeze(-1)
        sums = torch.stack([(log_probs * mask).sum(-1), (log_probs * mask).sum(-1) / mask.sum(-1)], dim=-1)
        chosen, rejected = sums.chunk(2)
        margins.append((chosen - rejected).float().cpu())
    return torch.cat(margins).numpy()


def score(pairs: Dataset, margins: np.ndarray, of_questions: np.ndarray) -> dict[str, float]:
    """
    Shares of pairs in which the true description is likelier. Shuffled and reversed ones have the same sentences in
    another order; those with sentences dropped are shorter, and are compared by their mean over tokens.
    """
    factors, ratios = np.array(pairs["factor"]), np.array(pairs["keep_ratio"])
    ordered = factors != "drop"
    scores = {f"r={ratio}": float((margins[ordered & (ratios == ratio), 0] > 0).mean()) for ratio in KEEP_RATIOS}
    return {
        **scores,
        "order": float((margins[ordered, 0] > 0).mean()),
        "margin": float(margins[ordered, 0].mean()),
        "dropped": float((margins[~ordered, 1] > 0).mean()),
        "what next": float((of_questions[:, 0] > 0).mean()),
    }


def print_scores(console: Console, scores: dict[str, dict[str, float]], num_films: int) -> None:
    table = Table(title=f"Which is likelier? {num_films} held-out films")
    table.add_column("after", no_wrap=True)
    for name in next(iter(scores.values())):
        table.add_column(name, justify="right")
    for name, values in scores.items():
        table.add_row(name, *(f"{value:.2f}" for value in values.values()))
    console.print(table)
    console.print(
        "r=16 ... r=2, order: share of films whose true order is likelier than a shuffled or reversed one (guessing: "
        ".5); margin: by how many nats. dropped: the whole description against one with sentences missing, by the "
        "mean over tokens. what next: the event right after another, against the one right before it (guessing: .5)."
    )


def draw_scores(scores: dict[str, dict[str, float]]) -> str:
    """The share of true orders after each stage, a line per keep ratio, as an SVG document."""
    stages = [name for name in scores if name != "SFT alone"]
    left, top, step, height = 50, 30, 90, 240
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = top + height * (1 - tick)
        dash = ' stroke-dasharray="4"' if tick == 0.5 else ""
        parts.append(f'<path d="M{left} {y}H{left + step * (len(stages) - 1)}" stroke="#ccc"{dash}/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{tick}</text>')
    parts += [f'<text x="{left + step * i}" y="{top + height + 20}">{name}</text>' for i, name in enumerate(stages)]
    for number, (ratio, colour) in enumerate(
        zip(KEEP_RATIOS, ("#4477aa", "#228833", "#ccbb44", "#cc3311"), strict=True)
    ):
        heights = [top + height * (1 - scores[stage][f"r={ratio}"]) for stage in stages]
        points = " ".join(f"{left + step * i},{y:.1f}" for i, y in enumerate(heights))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 80 * number}" y="16" fill="{colour}">r = {ratio}</text>')
    size = f'width="{left + step * len(stages) + 20}" height="{top + height + 35}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    main()
