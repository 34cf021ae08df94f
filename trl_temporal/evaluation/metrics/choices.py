# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The option in an answer to a multiple-choice question: the one reader of the `fixed` scoring."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...data.grammar import EVI, EVI_END, normalize
from .scores import Problem

_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_CONTAINER = re.compile(r"\\boxed\s*\{([^{}]*)\}|<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_EMPHASIS = re.compile(r"""(?<![\w'])[*_`"'“‘]+\(?([A-Z])[).:]?[*_`"'”’]+(?!\w)""")
# One letter that is no part of a word, a name (`A-list`, `B.com`) or an abbreviation (`e.g.`), with what encloses it.
_LETTER = re.compile(
    r"(?<![\w'’])(?<![\w][-.])(?P<open>[(\[{]\s*)?(?P<letter>[A-Za-z])(?P<close>\s*[)\]}]|[.:](?=[\s(]|$)|)(?![\w'’]|[-.]\w)"
)
_MARKED = re.compile(
    r"(?:\b(?:answer|option|choice)\s*(?:(?:is|would be|should be|must be)\b\s*[:=]?|[:=])"
    r"|\bI\s+(?:choose|select|pick)\b|答案[是为:])"
    r"\s*(?:the\s+)?(?:(?:option|choice)\s*:?\s*)?$",
    re.IGNORECASE,
)
_MARKED_BEHIND = re.compile(r"\s*is\s+(?:the\s+)?(?:correct|right|best)\b", re.IGNORECASE)
_DENIED = re.compile(r"(?:\bnot|n['’]t)\s+(?:(?:option|choice)\s+)?$", re.IGNORECASE)
_DENIED_BEHIND = re.compile(r"\s*(?:is|are)\s*(?:wrong|incorrect|not|n['’]t)\b", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\s*(?:,|/|&|\||and/or\b|or\b|and\b)\s*$", re.IGNORECASE)
_NAMED = re.compile(r"\b(?:answer|option|choice|caption|sentence)\s*$", re.IGNORECASE)
_SENTENCE_STARTS = re.compile(r"(?:^|[.!?:;\n])\s*$")
_SENTENCE_ENDS = re.compile(r"\s*(?:$|[.,;!?\n])")
# "A dog runs" begins with an article, "A because" and "A or B" do not.
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|or|and|but|is|was|seems|looks|with|would)\b)\w{2}", re.IGNORECASE)
_WINDOW = 60  # characters before a letter that may mark it


class _Letter(NamedTuple):
    index: int
    is_marked: bool  # "the answer is C"
    is_label: bool  # "(C)", "C.", "Option C": more than a letter in a sentence


def read_choice(text: str | None, num_options: int, options: Sequence[str] | None = None) -> int | None:
    """
    Read which option an answer chooses.

    A letter that is marked as the answer counts before one that labels something, and that before one that just stands
    in the text; several different letters of the same rank are no answer. Lower-case letters count where they can be
    nothing else, and so does a capital A in front of a word. "Not A" chooses nothing. Without any letter, it is the
    option whose words are in the text, where that is only one. Of `EVIDENCE </evi> ANSWER` the answer is read.

    Args:
        text (`str` or `None`):
            The answer.
        num_options (`int`):
            Number of options, at most 26.
        options (`Sequence[str]`, *optional*):
            Texts of the options, with or without their letters.

    Returns:
        `int` or `None`: index of the option; `None` where the answer names none, an unknown one, or several.

    Example:
        >>> from trl_temporal.evaluation.metrics.choices import read_choice
        >>> [read_choice(text, 4) for text in ("(C) blue", "The answer is C, not A.", "a dog", "A or B", "E")]
        [2, 2, None, None, None]
        >>> read_choice("It is a dog.", 2, ["a cat", "a dog"])
        1
    """
    text = answer_part(text)
    words = normalize(text)
    if not words:
        return None
    option_words = [normalize(_without_label(option, index)) for index, option in enumerate(options or [])]
    exact = [
        index
        for index, option in enumerate(option_words)
        if len(option) > 1 and words in (option, f"{chr(ord('a') + index)} {option}")
    ]
    if len(exact) == 1:
        return exact[0]

    letters = list(_letters(text))
    for rank in ([x for x in letters if x.is_marked], [x for x in letters if x.is_label]):
        if rank:
            return _single({letter.index for letter in rank}, num_options)
    in_range = {letter.index for letter in letters if letter.index < num_options}
    if in_range:
        return _single(in_range, num_options)
    return _contained(words, option_words)


def read_answer(
    sample_id: str, text: str | None, num_options: int, options: Sequence[str] | None, problems: list[Problem]
) -> int | None:
    """
    [`read_choice`] that lists an answer which it cannot read.

    Args:
        sample_id (`str`):
            The sample.
        text (`str` or `None`):
            The answer.
        num_options (`int`):
            Number of options.
        options (`Sequence[str]` or `None`):
            Texts of the options.
        problems (`list[Problem]`):
            Gets an entry where no option could be read.

    Returns:
        `int` or `None`: index of the option.

    Example:
        >>> from trl_temporal.evaluation.metrics.choices import read_answer
        >>> problems = []
        >>> read_answer("a", "no idea", 4, None, problems)
        >>> problems
        [Problem(id='a', kind='unparsable', detail='no idea')]
    """
    choice = read_choice(text, num_options, options)
    if choice is None:
        answer = answer_part(text)
        problems.append(Problem(sample_id, "unparsable" if answer else "empty", answer[:80]))
    return choice


def answer_index(answer: str, options: Sequence[str] | None = None) -> int:
    """
    Index of the right option of a benchmark's record.

    Args:
        answer (`str`):
            `"B"`, `"(B) text"`, `"B. text"`, or the text of one of the options.
        options (`Sequence[str]`, *optional*):
            Texts of the options.

    Returns:
        `int`: the index.

    Raises:
        ValueError: if the answer is none of these.

    Example:
        >>> from trl_temporal.evaluation.metrics.choices import answer_index
        >>> answer_index("(B) text"), answer_index("text", ["word", "text"])
        (1, 1)
    """
    same = [index for index, option in enumerate(options or []) if option == answer]
    if len(same) == 1:
        return same[0]
    match = re.match(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])(?:[.):]|\s*$))", answer)
    if not match:
        raise ValueError(f"the answer {answer!r} is neither an option's letter nor the text of one option")
    index = ord((match[1] or match[2]).upper()) - ord("A")
    if options and index >= len(options):
        raise ValueError(f"the answer {answer!r} is none of the {len(options)} options")
    return index


def answer_part(text: str | None) -> str:
    """
    The part of a model's text that answers: what follows `</evi>`, or stands before it where nothing follows.

    Args:
        text (`str` or `None`):
            The whole text.

    Returns:
        `str`: the answer without markers, with ASCII brackets and letters; empty for `None`.

    Example:
        >>> from trl_temporal.evaluation.metrics.choices import answer_part
        >>> answer_part("1.0 - 2.0 </evi>（Ｂ） blue"), answer_part("C</evi>")
        ('(B) blue', 'C')
    """
    if not isinstance(text, str):
        return ""
    evidence, _, answer = text.partition(EVI_END)
    text = answer if answer.strip() else evidence
    for marker in (EVI, EVI_END, "</s>"):
        text = text.replace(marker, " ")
    return unicodedata.normalize("NFKC", text).strip()


def given_pairs(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """
    What scorers see that read one file of predictions: no missing ones, and those that are there twice, twice.

    Args:
        predictions (`Sequence[Mapping]`):
            Predictions with `id`.
        references (`Sequence[Mapping]`):
            Samples with `id`.

    Returns:
        `list[tuple[Mapping, Mapping]]`: reference and prediction, in the order of the predictions.

    Example:
        >>> from trl_temporal.evaluation.metrics.choices import given_pairs
        >>> len(given_pairs([{"id": "a"}, {"id": "a"}, {"id": "c"}], [{"id": "a"}, {"id": "b"}]))
        2
    """
    by_id = {str(reference["id"]): reference for reference in references}
    known = [prediction for prediction in predictions if str(prediction["id"]) in by_id]
    return [(by_id[str(prediction["id"])], prediction) for prediction in known]


def percentage(right: Sequence[bool]) -> float:
    """
    Share of right answers.

    Args:
        right (`Sequence[bool]`):
            Whether each answer is right.

    Returns:
        `float`: percentage; 0 without answers.

    Example:
        >>> from trl_temporal.evaluation.metrics.choices import percentage
        >>> percentage([True, False])
        50.0
    """
    return 100 * sum(right) / len(right) if len(right) else 0.0


def _letters(text: str) -> Iterator[_Letter]:
    text = _CONTAINER.sub(lambda match: f" answer: {match[1] or match[2] or ''} ", _LATEX.sub(r"\1", text))
    text = _EMPHASIS.sub(r"(\1)", text).strip()
    previous, previous_end = _Letter(-1, False, False), 0
    for match in _LETTER.finditer(text):
        start, end = match.span()
        before, behind = text[max(0, start - _WINDOW) : start], text[end : end + _WINDOW]
        if _DENIED.search(before) or _DENIED_BEHIND.match(behind):
            continue
        is_enclosed = bool(match["close"]) and match["close"].strip() not in (".", ":")
        is_named = bool(_NAMED.search(before))
        is_marked = bool(_MARKED.search(before) or (is_named and _MARKED_BEHIND.match(behind)))
        stands_alone = bool(_SENTENCE_STARTS.search(before) and _SENTENCE_ENDS.match(behind))
        is_label = bool(match["open"] or match["close"] or stands_alone or is_named)
        if previous_end and _ALTERNATIVE.fullmatch(text[previous_end:start]):  # "the answer is A or B" marks both
            is_marked, is_label = is_marked or previous.is_marked, is_label or previous.is_label
        ends = bool(match["close"] or _SENTENCE_ENDS.match(behind))
        if match["letter"].islower():
            if not (is_enclosed or (ends and (start == 0 or is_marked))):
                continue
        elif match["letter"] == "A" and not (match["close"] or is_named) and _ARTICLE.match(behind):
            continue
        elif match["letter"] == "I" and not (ends and (is_label or is_marked)):
            continue
        previous, previous_end = _Letter(ord(match["letter"].upper()) - ord("A"), is_marked, is_label), end
        yield previous


def _single(indices: set[int], num_options: int) -> int | None:
    index = min(indices)
    return index if len(indices) == 1 and index < num_options else None


def _without_label(option: str, index: int) -> str:
    """An option's text without its own letter."""
    return re.sub(rf"^\s*(?:\({chr(ord('A') + index)}\)|{chr(ord('A') + index)}[.):])\s*(?=\S)", "", option)


def _contained(words: str, options: Sequence[str]) -> int | None:
    """The only option whose words are in the text. A longer option hides a shorter one inside it ("a red car")."""
    rest = f" {words} "
    found = set()
    for option in sorted(set(options) - {""}, key=len, reverse=True):
        if f" {option} " in rest:
            rest = rest.replace(f" {option} ", " | ")
            found.add(option)
    indices = [index for index, option in enumerate(options) if option in found]
    return indices[0] if len(indices) == 1 else None
