# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Questions for annotations that come without one: several wordings per task, chosen by the seed and the row's id."""

from collections.abc import Sequence

import numpy as np

from ..rows import row_seed

# `{event}`, `{label}` and `{question}` stand for the annotation's own words.
TEMPLATES: dict[str, tuple[str, ...]] = {
    # One described event, one interval.
    "grounding": (
        'When does this happen: "{event}"?',
        'At what point of the video can one see this? "{event}"',
        'Search the video for the event "{event}". When is it?',
        'From when to when does this last: "{event}"?',
        'I would like to jump to this scene: "{event}". Where is it?',
        'Point out the part of the video to which these words belong: "{event}"',
    ),
    # One described event that may come several times.
    "grounding_all": (
        'When does this happen? "{event}" Name every time.',
        'In which parts of the video is this the case: "{event}"?',
        'List all scenes that fit the words "{event}".',
        'Somebody looks for "{event}". Which parts of the video should they watch?',
        'Where does the video show this, be it once or more often? "{event}"',
    ),
    # The name of an activity, with all its occurrences.
    "action": (
        'The activity is called "{label}". When does it take place?',
        'Mark every stretch of the video with the activity "{label}".',
        "When do people in the video do this: {label}? Give each time on its own.",
        'How often, and when, does "{label}" occur?',
        'Find all occurrences of the activity "{label}".',
    ),
    # Every event of the video with its caption.
    "dense": (
        "Describe every event in the video.",
        "Go through the video and say what happens in each part of it.",
        "What happens in this video, event by event, and when?",
        "Write a timeline of the video: one sentence for each event.",
        "Tell the story of the video in order, with the time of each event.",
    ),
    # The same for instructions, such as recipes.
    "steps": (
        "Which steps does the video show, and when?",
        "Write down the procedure in this video step by step, with the time of each step.",
        "Somebody wants to repeat what is done here. List the steps and where to find them.",
        "Break the video down into its working steps and describe each of them.",
        "What is done first, what comes next? Describe all steps with their times.",
    ),
    # The whole video in one sentence, without times.
    "caption": (
        "What is this video about? One sentence will do.",
        "Sum up the video in a sentence.",
        "Describe in one sentence what the video shows.",
        "What can be seen in this clip?",
    ),
    # A question with lettered answers, `{options}`, one a line.
    "multiple_choice": (
        "{question}\n{options}\nWhich answer is right, and which part of the video shows it?",
        "{question}\nPick one of these:\n{options}\nSay also where in the video this can be seen.",
        "Here is a question about the video: {question}\n{options}\nChoose an answer and give its evidence.",
        "Watch the video and decide. {question}\n{options}\nName the letter and the moment that proves it.",
    ),
}


def instruction(kind: str, row_id: str, seed: int, **words: str) -> str:
    """
    Question of a row, in one of the wordings of its kind.

    Args:
        kind (`str`):
            Key of `TEMPLATES`.
        row_id (`str`):
            Name of the row. With the seed it decides the wording, so that order and shards do not matter.
        seed (`int`):
            Seed of the data set.
        words (`str`):
            What to put in: `event`, `label`, `question` or `options`, as the kind needs them.

    Returns:
        `str`: the question.

    Example:

    ```python
    >>> from trl_temporal.data.converters.templates import instruction
    >>> instruction("grounding", "charades-1", 0, event="a person laughs")
    'I would like to jump to this scene: "a person laughs". Where is it?'
    ```
    """
    wordings = TEMPLATES[kind]
    rng = np.random.default_rng(row_seed(seed, row_id))
    return wordings[rng.integers(len(wordings))].format(**words)


def lettered(options: Sequence[str]) -> list[str]:
    """
    Answers with their letters.

    Args:
        options (`Sequence[str]`):
            Answers of a multiple-choice question.

    Returns:
        `list[str]`: `"(A) first answer"`, `"(B) second answer"`, ...

    Example:

    ```python
    >>> from trl_temporal.data.converters.templates import lettered
    >>> lettered(["a cat", "a dog"])
    ['(A) a cat', '(B) a dog']
    ```
    """
    return [f"({chr(ord('A') + index)}) {option}" for index, option in enumerate(options)]


def as_event(caption: str) -> str:
    """A caption as it goes between quotation marks: without its full stop."""
    return caption.strip().removesuffix(".").rstrip()
