# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Multiple-choice questions whose wrong options are the rejected responses of a sample (D2VLM, supplement C.2)."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np

from ..data.converters.templates import instruction, lettered
from ..data.grammar import EVI, format_qa, normalize, split_response
from ..data.rows import row_seed, sft_row
from ..data.schema import EVALUATION_FEATURES, strip_none_parts

Row = dict[str, Any]
MAX_OPTIONS = 26  # letters


def in_words(response: str, spans: Sequence[Sequence[float]]) -> str:
    """
    A response as an option: its text, with the times written out.

    Args:
        response (`str`):
            A whole response, evidence stage included.
        spans (`Sequence` of `[start_s, end_s]`):
            Span of each `<evi>` of its text, in seconds.

    Returns:
        `str`: the text without its final full stop.

    Raises:
        `ValueError`: the text has more or fewer `<evi>` than there are spans.

    Example:
        >>> from trl_temporal.synthesis.multiple_choice import in_words
        >>> in_words("<evi> <evi> </evi> It happens in <evi> and <evi>.", [[2, 3.5], [8, 9]])
        'It happens from 2.0 s to 3.5 s and from 8.0 s to 9.0 s'
        >>> in_words("<evi> </evi> <evi> The red disc blinks.", [[2, 3.5]])
        'From 2.0 s to 3.5 s: The red disc blinks'
    """
    text = split_response(response)[1]
    if text.count(EVI) != len(spans):
        raise ValueError(f"the response {response!r} has {text.count(EVI)} {EVI} in its text, but {len(spans)} spans")
    # "in <evi>" becomes "from ... to ..."; an <evi> before a caption gets a colon.
    text = re.sub(rf"\b[Ii]n {EVI}", EVI, text)
    pieces = text.split(EVI)
    written = pieces[0]
    for (start_s, end_s), piece in zip(spans, pieces[1:], strict=True):
        opens_sentence = not written.strip() or written.rstrip().endswith((".", "!", "?"))
        written += f"{'From' if opens_sentence else 'from'} {start_s:.1f} s to {end_s:.1f} s"
        is_caption = opens_sentence and piece[:1].isspace() and piece.strip(" .")
        written += f":{piece}" if is_caption else piece
    return " ".join(written.split()).removesuffix(".").rstrip()


def make_multiple_choice(pairs: Iterable[Row], *, num_options: int = 4, seed: int = 0) -> datasets.Dataset:
    """
    Make multiple-choice questions from preference rows: the right option is the chosen response, the wrong ones are
    the rejected responses of the same sample.

    Where a sample has more rejected responses than are needed, those with different factors are taken first. A sample
    with too few different ones is left out, with a warning that says how many there are.

    Args:
        pairs (`datasets.Dataset` or an iterable of row dictionaries):
            Preference rows, see [`~trl_temporal.data.schema.PREFERENCE_FEATURES`], with several rows per sample
            (`source_id`), in any order.
        num_options (`int`, *optional*, defaults to `4`):
            Options of a question, 2 to 26.
        seed (`int`, *optional*, defaults to `0`):
            Together with each sample's id it decides the wrong options, their order, the place of the right one (each
            is equally likely) and the wording.

    Returns:
        `datasets.Dataset`: rows of [`~trl_temporal.data.schema.EVALUATION_FEATURES`] with the task `"qa"`. The options
        stand in the question with their letters; `answer` is the right one with its letter, and the completion gives
        it with its evidence, so that one can train on the rows too.

    Example:
        >>> from trl_temporal.synthesis.multiple_choice import make_multiple_choice
        >>> part = [{"type": "text", "text": "<evi> </evi> It happens in <evi>."}]
        >>> pair = {
        ...     "id": "a-0",
        ...     "source_id": "a",
        ...     "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}],
        ...     "videos": [{"path": "a.mp4"}],
        ...     "chosen": [{"role": "assistant", "content": part}],
        ...     "rejected": [{"role": "assistant", "content": part}],
        ...     "chosen_spans": [[2.0, 3.5]],
        ...     "rejected_spans": [[6.0, 7.5]],
        ...     "factor": "shift",
        ...     "duration": 10.0,
        ... }
        >>> make_multiple_choice([pair], num_options=2)[0]["options"]
        ['It happens from 6.0 s to 7.5 s', 'It happens from 2.0 s to 3.5 s']
    """
    if not 2 <= num_options <= MAX_OPTIONS:
        raise ValueError(f"num_options is {num_options}; it must be from 2 to {MAX_OPTIONS}")
    samples: dict[str, list[Row]] = {}
    for pair in pairs:
        samples.setdefault(pair["source_id"], []).append(pair)
    rows = list(_choice_rows(samples, num_options, seed))
    num_left_out = len(samples) - len(rows)
    if num_left_out:
        warnings.warn(
            f"{num_left_out} of {len(samples)} samples have fewer than {num_options - 1} different wrong options and "
            f"are left out; make more rejected responses per sample, or fewer options",
            stacklevel=2,
        )
    columns = {name: [row[name] for row in rows] for name in EVALUATION_FEATURES}  # also where no row is left
    return datasets.Dataset.from_dict(columns, features=EVALUATION_FEATURES)


def _choice_rows(samples: dict[str, list[Row]], num_options: int, seed: int) -> Iterator[Row]:
    for source_id, pairs in samples.items():
        row_id = f"{source_id}-choice"
        rng = np.random.default_rng(row_seed(seed, row_id))
        right, wrong = _options(pairs, rng)
        if not normalize(right) or len(wrong) < num_options - 1:
            continue
        answer_index = int(rng.integers(num_options))
        options = wrong[: num_options - 1]
        options.insert(answer_index, right)
        yield _choice_row(row_id, pairs[0], options, answer_index, seed)


def _options(pairs: list[Row], rng: np.random.Generator) -> tuple[str, list[str]]:
    """The right option and all different wrong ones: one of each factor, then a second of each, and so on."""
    right = in_words(_text(pairs[0]["chosen"]), pairs[0]["chosen_spans"])
    # Not in the order of the rows, which may come from any shard.
    of_factor: dict[str, set[str]] = {}
    for pair in pairs:
        option = in_words(_text(pair["rejected"]), pair["rejected_spans"])
        of_factor.setdefault(pair["factor"], set()).add(option)
    piles = [sorted(of_factor[factor]) for factor in sorted(of_factor)]
    piles = [[piles[i][j] for j in rng.permutation(len(piles[i]))] for i in rng.permutation(len(piles))]
    in_turn = [pile[i] for i in range(max(map(len, piles))) for pile in piles if i < len(pile)]
    seen, wrong = {normalize(right)}, []
    for option in in_turn:
        if normalize(option) and normalize(option) not in seen:
            seen.add(normalize(option))
            wrong.append(option)
    return right, wrong


def _choice_row(row_id: str, pair: Row, options: list[str], answer_index: int, seed: int) -> Row:
    letters = lettered(options)
    question = "\n".join(_text([message]) for message in pair["prompt"] if message["role"] == "user")
    spans = pair["chosen_spans"]
    row = sft_row(
        id=row_id,
        source=pair.get("source") or "",
        task="qa",
        video={},
        question=instruction("multiple_choice", row_id, seed, question=question, options="\n".join(letters)),
        response=format_qa(letters[answer_index], len(spans)),
        spans=spans,
        all_spans=pair.get("all_spans") or [],
        duration=pair.get("duration"),
        answer=letters[answer_index],
        prompt_spans=pair.get("prompt_spans"),
    )
    videos = pair.get("videos") or []
    if not videos:
        row["prompt"][0]["content"] = row["prompt"][0]["content"][1:]
    return {**row, "videos": videos, "options": options, "answer_index": answer_index, "saliency": None}


def _text(messages: Sequence[dict]) -> str:
    content = strip_none_parts(messages)[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")
