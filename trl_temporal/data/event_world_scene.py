# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""EventWorld's worlds: what there is, what happens and where. Lengths are in 1/128 of the frame's side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SIDE = 128
COLOURS = {
    "red": (225, 30, 30),
    "green": (30, 190, 50),
    "blue": (40, 110, 255),
    "yellow": (240, 220, 30),
    "purple": (185, 45, 215),
    "white": (245, 245, 245),
}
RADII = {"disc": 14.0, "cross": 16.0}
# Third person (captions) to base form (questions).
ACTIONS = {
    "blinks": "blink",
    "swells": "swell",
    "shakes": "shake",
    "jumps": "jump",
    "slides left": "slide left",
    "slides right": "slide right",
}

FPS = 8
MIN_EVENT_S, MAX_EVENT_S = 1.5, 4.0
MIN_GAP_S = 0.5
FIRST_START_S = 0.3
LAST_MARGIN_S = 0.2
# Time without an event, beyond the gaps that must be there.
MIN_SLACK_S = 1.5
REPEAT_PROBABILITY = 0.25
# Room between two objects, or an object and the border, at their nearest.
CLEARANCE = 1.5

# How far each action goes.
DIM = 0.25
SWELL = 0.6
SHAKE = 5.0
JUMP = 14.0
DRIFT, DRIFT_PERIOD_S = 1.0, 12.0


@dataclass(frozen=True)
class WorldObject:
    """A named object: its look, the centre where it starts, and the phase of its slow drift."""

    colour: str
    shape: str
    x: float
    y: float
    drift_phase: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class WorldEvent:
    """
    One event of one object. `rate` is px/s for slides and Hz for the other actions; `phase` is in cycles.
    """

    object_index: int
    colour: str
    shape: str
    action: str
    start_s: float
    end_s: float
    rate: float
    phase: float

    @property
    def object_name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def caption(self) -> str:
        return f"The {self.object_name} {self.action}"


@dataclass(frozen=True)
class Walk:
    """The unnamed grey square crosses the scene, in at one side and out at the other."""

    start_s: float
    end_s: float
    start_xy: tuple[float, float]
    end_xy: tuple[float, float]


@dataclass(frozen=True)
class Distractors:
    """What moves and flickers without being an event. Rates in Hz, phases in cycles."""

    walks: tuple[Walk, ...]
    patch_xy: tuple[float, float]
    patch_rate: float
    patch_phase: float
    flicker: float
    flicker_rate: float
    flicker_phase: float


@dataclass(frozen=True)
class World:
    """A whole video: everything that can be seen in it follows from these values."""

    seed: int
    index: int
    duration_s: float
    objects: tuple[WorldObject, ...]
    events: tuple[WorldEvent, ...]
    distractors: Distractors


def cycle(times_s: np.ndarray, rate: float, phase: float) -> np.ndarray:
    """A sine of `rate` Hz, its phase in cycles."""
    return np.sin(2 * np.pi * (rate * times_s + phase))


def object_motion(
    world_object: WorldObject, events: Sequence[WorldEvent], times_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Where an object is and how it looks at the given times.

    Args:
        world_object (`WorldObject`):
            The object.
        events (`Sequence[WorldEvent]`):
            Its events; those of other objects must be left out.
        times_s (`np.ndarray` of shape `(T,)`):
            Times in seconds.

    Returns:
        `tuple` of four `np.ndarray` of shape `(T,)`: centre x, centre y and radius in 1/128 of the side, and
        brightness from 0 to 1.
    """
    x = world_object.x + DRIFT * cycle(times_s, 1 / DRIFT_PERIOD_S, world_object.drift_phase)
    y = world_object.y + DRIFT * cycle(times_s, 1 / DRIFT_PERIOD_S, world_object.drift_phase + 0.25)
    radius = np.full(len(times_s), RADII[world_object.shape])
    brightness = np.ones(len(times_s))
    for event in events:
        since_s = times_s - event.start_s
        active = (times_s >= event.start_s) & (times_s < event.end_s)
        if event.action == "blinks":
            dark = (event.rate * since_s + event.phase) % 1 < 0.5
            brightness = np.where(active & dark, DIM, brightness)
        elif event.action == "swells":
            radius = radius * np.where(active, 1 + SWELL * np.abs(np.sin(np.pi * event.rate * since_s)), 1)
        elif event.action == "shakes":
            # A clipped sine dwells at its ends, so that few sampled frames catch the object near its place.
            sway = np.clip(1.8 * cycle(since_s, event.rate, event.phase), -1, 1)
            x = x + np.where(active, SHAKE * sway, 0)
        elif event.action == "jumps":
            bounce = event.rate * since_s % 1
            y = y - np.where(active, JUMP * 4 * bounce * (1 - bounce), 0)
        else:
            direction = -1 if event.action == "slides left" else 1
            x = x + direction * event.rate * np.clip(since_s, 0, event.end_s - event.start_s)
    return x, y, radius, brightness


def event_spans(rng: np.random.Generator, duration_s: float, num_events: int) -> list[tuple[float, float]]:
    """Sample lengths, shorten them if the video is too full, and share what is left among the gaps."""
    fixed_s = FIRST_START_S + LAST_MARGIN_S + (num_events - 1) * MIN_GAP_S
    room_s = duration_s - fixed_s - MIN_SLACK_S - num_events * MIN_EVENT_S
    extra_s = rng.uniform(0, MAX_EVENT_S - MIN_EVENT_S, num_events)
    lengths_s = MIN_EVENT_S + extra_s * min(1, room_s / extra_s.sum())
    slack_s = duration_s - fixed_s - lengths_s.sum()
    gaps_s = slack_s * rng.dirichlet(np.ones(num_events + 1))[:num_events]
    gaps_s += np.array([FIRST_START_S] + [MIN_GAP_S] * (num_events - 1))
    ends_s = np.cumsum(gaps_s + lengths_s)
    return [(float(end_s - length_s), float(end_s)) for end_s, length_s in zip(ends_s, lengths_s, strict=True)]


def rate_and_phase(rng: np.random.Generator, action: str, length_s: float) -> tuple[float, float]:
    """Rate (px/s for slides, else Hz) and phase in cycles; both ends of the event show at 2 frames a second."""
    if action.startswith("slides"):
        return float(rng.uniform(6, 9)), 0.0
    if action == "blinks":
        # Dark when it starts and dark when it ends.
        phase = float(rng.uniform(0, 0.2))
        return (round(length_s - 0.5) + 0.5 - phase) / length_s, phase
    if action == "shakes":
        # 3 Hz seen at 2 frames a second would always show the same two places.
        return float(rng.uniform(2.6, 2.85)), float(rng.random())
    # Whole bounces or pulses, so that the object is back in its place when the event ends.
    cycles = round(length_s) if action == "jumps" else 1 + int(length_s > 2)
    return cycles / length_s, 0.0


def _sample_events(
    rng: np.random.Generator, looks: Sequence[tuple[str, str]], spans: Sequence[tuple[float, float]]
) -> list[WorldEvent]:
    actions = list(ACTIONS)
    chosen: list[tuple[int, str]] = []
    while len(chosen) < len(spans):
        if chosen and rng.random() < REPEAT_PROBABILITY:
            candidate = chosen[rng.integers(len(chosen))]
        else:
            candidate = (int(rng.integers(len(looks))), actions[rng.integers(len(actions))])
        if not chosen or candidate != chosen[-1]:
            chosen.append(candidate)
    events = []
    for (object_index, action), (start_s, end_s) in zip(chosen, spans, strict=True):
        rate, phase = rate_and_phase(rng, action, end_s - start_s)
        events.append(WorldEvent(object_index, *looks[object_index], action, start_s, end_s, rate, phase))
    return events


def place_objects(
    rng: np.random.Generator, objects: Sequence[WorldObject], events: Sequence[WorldEvent], duration_s: float
) -> list[WorldObject] | None:
    """Put the objects in two rows so that the areas they sweep in the video stay apart; None if they do not fit."""
    times_s = np.arange(0, duration_s, 1 / 32)
    boxes = []
    for object_index, world_object in enumerate(objects):
        own = [event for event in events if event.object_index == object_index]
        x, y, radius, _ = object_motion(world_object, own, times_s)
        edges = [(x - radius).min(), (x + radius).max(), (y - radius).min(), (y + radius).max()]
        boxes.append(np.array(edges) + np.array([-1, 1, -1, 1]) * CLEARANCE / 2)
    boxes = np.array(boxes)

    order = rng.permutation(len(objects))
    rows = [order[:2], order[2:]]
    if rng.random() < 0.5:
        rows.reverse()
    heights = [(boxes[row, 3] - boxes[row, 2]).max() for row in rows]
    spare_y = SIDE - CLEARANCE - sum(heights)
    if spare_y < 0:
        return None
    top = CLEARANCE / 2
    placed = list(objects)
    for row, height, extra_y in zip(rows, heights, spare_y * rng.dirichlet(np.ones(2)), strict=True):
        widths = boxes[row, 1] - boxes[row, 0]
        spare_x = SIDE - CLEARANCE - widths.sum()
        if spare_x < 0:
            return None
        left = CLEARANCE / 2
        for i, width, extra_x in zip(row, widths, spare_x * rng.dirichlet(np.ones(len(row) + 1)), strict=False):
            free_y = height + extra_y - (boxes[i, 3] - boxes[i, 2])
            left += extra_x
            x, y = left - boxes[i, 0], top + free_y * rng.random() - boxes[i, 2]
            placed[i] = replace(objects[i], x=float(x), y=float(y))
            left += width
        top += height + extra_y
    return placed


def sample_distractors(rng: np.random.Generator, duration_s: float) -> Distractors:
    num_walks = int(rng.integers(1, 3))
    walks = []
    for i in range(num_walks):
        length_s = rng.uniform(3, 6)
        share_s = duration_s / num_walks
        start_s = i * share_s + rng.uniform(0, share_s - length_s)
        # In at one side, out at the opposite one.
        ends = np.array([[-8, rng.uniform(16, 112)], [SIDE + 8, rng.uniform(16, 112)]])
        if rng.random() < 0.5:
            ends = ends[::-1]
        walks.append(Walk(float(start_s), float(start_s + length_s), tuple(ends[0].tolist()), tuple(ends[1].tolist())))
    corner = 8.0 + (SIDE - 16.0) * rng.integers(0, 2, size=2)
    return Distractors(
        walks=tuple(walks),
        patch_xy=tuple(corner.tolist()),
        patch_rate=float(rng.uniform(0.6, 1.7)),
        patch_phase=float(rng.random()),
        flicker=float(rng.uniform(0.02, 0.03)),
        flicker_rate=float(rng.uniform(0.3, 1.7)),
        flicker_phase=float(rng.random()),
    )


def simulate(seed: int, index: int) -> World:
    """
    Sample a world. The same seed and index always give the same world.

    Args:
        seed (`int`):
            Seed of the data set.
        index (`int`):
            Number of the world; train counts from 0, validation from 1,000,000 and test from 2,000,000.

    Returns:
        `World`: 3 or 4 objects of different colours in 16 to 20 s, with 5 to 7 events, one after the other.

    Example:
        >>> from trl_temporal.data.event_world import simulate
        >>> [event.caption for event in simulate(0, 0).events][:2]
        ['The blue disc slides right', 'The purple disc slides right']
    """
    rng = np.random.default_rng([seed, index])
    duration_s = int(rng.integers(16 * FPS, 20 * FPS + 1)) / FPS
    spans = event_spans(rng, duration_s, int(rng.integers(5, 8)))
    colours = rng.permutation(list(COLOURS))[: rng.integers(3, 5)].tolist()
    shapes = rng.choice(list(RADII), size=len(colours)).tolist()
    looks = list(zip(colours, shapes, strict=True))
    distractors = sample_distractors(rng, duration_s)
    while True:
        events = _sample_events(rng, looks, spans)
        objects = [WorldObject(*look, 0.0, 0.0, drift_phase=float(rng.random())) for look in looks]
        placed = place_objects(rng, objects, events, duration_s)
        if placed is not None:
            return World(seed, index, duration_s, tuple(placed), tuple(events), distractors)
