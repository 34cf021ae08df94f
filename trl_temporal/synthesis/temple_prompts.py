# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What TEMPLE's captioner is asked, and what the user of a pair asks. A YAML file can replace any of it."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

FIRST_CLIP = """\
These frames come from one clip of a video. Say in detail what can be seen: who or what is there, what it looks like, \
what it does, where it is, and what changes from frame to frame. Write one paragraph and nothing else."""

NEXT_CLIP = """\
You see frames of two clips that follow each other in a video: the first {num_previous} are of video clip 1, the last \
{num_current} of video clip 2. Work in three steps.
First list what can be seen in video clip 2.
Then think about how the two clips belong together: what stays, what is new, and what may have happened in between.
At the end write a last line with a detailed caption of video clip 2 alone. It may refer to video clip 1 where that \
helps to understand what happens, but must not retell it. Write nothing after this line."""

AGGREGATE = """\
A video was cut into clips, and each clip was described by itself. Here are the captions, in the order of the clips:
{captions}
Put them together into one description of the whole video: a single detailed paragraph that tells in order what \
happens, reads smoothly, says nothing twice and adds nothing. Do not speak of clips or captions. Reply with the \
paragraph alone."""

VIDEO = """\
Describe this video from its beginning to its end: a single detailed paragraph that tells in order what happens. \
Reply with the paragraph alone."""

QUESTIONS = (
    "Describe the video in detail.",
    "What happens in this video, from beginning to end?",
    "Tell in order what is shown in the video.",
    "Write a detailed caption for this video.",
    "Give a thorough account of the events in the video.",
    "Walk me through what can be seen in this video.",
)

# What has to stand in each text, for it is filled in.
PLACES = {"next_clip": ("{num_previous}", "{num_current}"), "aggregate": ("{captions}",)}


@dataclass(frozen=True)
class TemplePrompts:
    """
    Wordings of the requests.

    Args:
        first_clip (`str`, *optional*):
            Asks for the caption of a video's first clip.
        next_clip (`str`, *optional*):
            Asks for the caption of a clip that is shown behind the one before it; `{num_previous}` and `{num_current}`
            stand for the numbers of frames. The last line of the answer counts.
        aggregate (`str`, *optional*):
            Asks for a description from the list `{captions}`.
        video (`str`, *optional*):
            Asks for a description from the frames, for `level="frames"`.
        questions (`tuple[str, ...]`, *optional*):
            What the user of a pair asks, one of them drawn for each.

    Raises:
        `ValueError`: a text has no place for what is filled in, or there is no question.

    Example:
        >>> from trl_temporal.synthesis.temple_prompts import TemplePrompts
        >>> TemplePrompts(aggregate="Sum up: {captions}").list_captions(["A dog runs.", "It stops."])
        'Sum up: - Caption 1: A dog runs.\\n- Caption 2: It stops.'
    """

    first_clip: str = FIRST_CLIP
    next_clip: str = NEXT_CLIP
    aggregate: str = AGGREGATE
    video: str = VIDEO
    questions: tuple[str, ...] = QUESTIONS

    def __post_init__(self):
        for name, places in PLACES.items():
            for place in places:
                if place not in getattr(self, name):
                    raise ValueError(f"the prompt `{name}` has no {place}; write it where it belongs")
        if not self.questions or not all(isinstance(text, str) and text.strip() for text in self.questions):
            raise ValueError("`questions` must be a list of questions, with at least one")

    def next_clip_prompt(self, num_previous: int, num_current: int) -> str:
        """`next_clip` with the numbers of frames; not `str.format`, since a prompt may hold braces."""
        filled = self.next_clip.replace("{num_previous}", str(num_previous))
        return filled.replace("{num_current}", str(num_current))

    def list_captions(self, captions: list[str]) -> str:
        """`aggregate` with a list of captions, numbered from 1 whatever was dropped or moved."""
        lines = (f"- Caption {number}: {caption}" for number, caption in enumerate(captions, start=1))
        return self.aggregate.replace("{captions}", "\n".join(lines))


def read_prompts(path: str | os.PathLike | None) -> TemplePrompts:
    """
    Read wordings from a file.

    Args:
        path (`str` or `os.PathLike`, *optional*):
            YAML file with any of the fields of [`TemplePrompts`]; without it, the defaults.

    Returns:
        [`TemplePrompts`]

    Raises:
        `ValueError`: an unknown field, or one that is no text.
    """
    if path is None:
        return TemplePrompts()
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is no YAML ({error}); put texts with : or ? in quotes") from None
    names = [entry.name for entry in fields(TemplePrompts)]
    if not isinstance(given, dict) or set(given) - set(names):
        raise ValueError(f"{path}: write a mapping with any of {', '.join(names)}, each a text, `questions` a list")
    for name, text in given.items():
        if not isinstance(text, list if name == "questions" else str):
            raise ValueError(f"{path}: `{name}` is {text!r:.60}; write a {'list' if name == 'questions' else 'text'}")
    if "questions" in given:
        given["questions"] = tuple(given["questions"])
    try:
        return replace(TemplePrompts(), **given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
