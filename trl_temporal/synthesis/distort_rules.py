# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""False captions by rules: numbers, colours, negation, opposites, and words of another caption of the same video."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..data.grammar import normalize

NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple")
OTHER_COLOURS = ("orange", "grey", "gray")  # replaced, but not drawn: "orange" is a fruit too

# Each phrase becomes the other one of its pair.
OPPOSITES = (
    "behind/in front of, above/below, inside/outside, into/out of, towards/away from, upstairs/downstairs, "
    "clockwise/counterclockwise, upwards/downwards, upward/downward, forwards/backwards, forward/backward, "
    "top/bottom, before/after, first/last, with/without, indoors/outdoors, indoor/outdoor, "
    "open/close, opens/closes, opening/closing, opened/closed, push/pull, pushes/pulls, pushing/pulling, "
    "raise/lower, raises/lowers, raising/lowering, add/remove, adds/removes, adding/removing, "
    "enters/exits, entering/exiting, walk/run, walks/runs, walking/running, sit/stand, sits/stands, sitting/standing, "
    "lift/drop, lifts/drops, lifting/dropping, throw/catch, throws/catches, throwing/catching, "
    "pick up/put down, picks up/puts down, picking up/putting down, takes off/puts on, taking off/putting on, "
    "turn on/turn off, turns on/turns off, turning on/turning off, switches on/switches off, "
    "laugh/cry, laughs/cries, laughing/crying, smiles/frowns, smiling/frowning, fills/empties, heat/cool, "
    "cover/uncover, covers/uncovers, faster/slower, quickly/slowly, fast/slow, big/small, tall/short, old/young, "
    "hot/cold, wet/dry, thick/thin, full/empty, day/night, morning/evening, man/woman, men/women, boy/girl, "
    "boys/girls, father/mother, dad/mom, son/daughter, husband/wife, brother/sister, brothers/sisters, guy/lady, "
    "he/she"
)
ONE_WAY = {
    "onto": "off",
    "toward": "away from",
    "under": "on top of",
    "on top of": "under",
    "large": "small",
    "long": "short",
    "huge": "tiny",
    "tiny": "huge",
    "puppy": "kitten",
    "females": "males",
    "female": "male",
}
# Verbs that add "s" and "ing" and nothing else.
ACTIONS = (
    ("hold", "throw", "kick", "pull"),
    ("eat", "cook", "smell"),
    ("talk", "sing", "whisper"),
    ("look", "point", "shout", "laugh"),
    ("jump", "crawl", "climb"),
    ("play", "fight"),
    ("pour", "drink"),
)
# Each word becomes another one of its sets.
EXCLUSIVE_SETS = (
    ("kitchen", "bathroom", "bedroom", "garage", "garden"),
    ("dog", "cat", "horse", "rabbit", "goat"),
    ("dogs", "cats", "horses", "rabbits", "goats"),
    ("hand", "foot", "elbow", "knee", "shoulder"),
    ("hands", "feet", "elbows", "knees", "shoulders"),
    ("bowl", "pan", "bottle", "jar", "bucket"),
    ("table", "chair", "sofa", "bed", "shelf"),
    ("knife", "fork", "spoon", "whisk", "brush"),
    ("water", "oil", "milk", "juice", "vinegar"),
    ("salt", "sugar", "flour", "rice"),
    ("chicken", "beef", "fish", "pork"),
    ("onion", "carrot", "potato", "tomato"),
    ("onions", "carrots", "potatoes", "tomatoes"),
    ("phone", "book", "laptop", "camera", "cup"),
    ("car", "bike", "truck", "boat", "bus"),
    ("ball", "stick", "rope", "bag"),
    ("guitar", "piano", "drum", "violin"),
    ("snow", "sand", "grass", "mud"),
    *(tuple(verb + "s" for verb in verbs) for verbs in ACTIONS),
    *(tuple(verb + "ing" for verb in verbs) for verbs in ACTIONS),
    *ACTIONS,
    ("dance", "sing", "wave", "smile"),
    ("dances", "sings", "waves", "smiles"),
    ("dancing", "singing", "waving", "smiling"),
)
ACTORS = frozenset(
    "man woman boy girl child kid baby toddler person lady guy player chef coach referee dancer dog cat horse bird "
    "rabbit men women boys girls children kids babies people persons ladies guys players dogs cats horses birds "
    "rabbits".split()
)
PLURALS = frozenset(("men", "women", "children", "people", "feet"))
DETERMINERS = frozenset("the a an his her its their some this that another".split())
PREPOSITIONS = frozenset("in on with of into onto from under over behind near at through inside by for".split())
# Words that end a noun phrase.
BOUNDARIES = frozenset(
    DETERMINERS | PREPOSITIONS | set("and or to while as is are was were then who that which when off up down".split())
)

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NUMBER = re.compile(r"(?<![\w.,:/$-])[1-9]\d{0,3}(?![\w:/-]|[.,]\d)")
_AUXILIARY = re.compile(r"\b(?:is|are|was|were|can|will)\b", re.IGNORECASE)
_NOT = re.compile(r"\s+not\b", re.IGNORECASE)
_CONTRACTION = re.compile(r"\b(is|are|was|were|does|do|did|has|have|could|would|should)n['’]t\b", re.IGNORECASE)
_YES_NO = re.compile(r"\W*\b(yes|no)\b\W*", re.IGNORECASE)
# "left" and "right" where they are sides, "up" and "down" where they are ways.
_SIDE = re.compile(
    r"\b(?:the|to|his|her|its|their|far|from|on|upper|lower|top|bottom|turns?|turning|looks?|looking|moves?|moving|"
    r"slides?|sliding|leans?|leaning|walks?|goes)\s+(left|right)\b(?!\s+(?:after|before|now|away))"
    r"|\b(left|right)[\s-](?:hand|side|arm|leg|foot|ear|eye|corner|edge|half|knee|shoulder|wrist|lane)\b"
    r"|^\W*(left|right)\W*$",
    re.IGNORECASE,
)
_WAY = re.compile(
    r"\b(?:go|goes|going|walks?|walking|runs?|running|climbs?|climbing|moves?|moving|slides?|sliding|looks?|looking|"
    r"points?|pointing|jumps?|jumping|swims?|swimming|rolls?|rolling|facing)\s+(up|down)\b",
    re.IGNORECASE,
)
# "turn the light off"
_SWITCH = re.compile(r"\b(?:turn|switch)\w*\s+(?:\w+\s+){1,3}?(on|off)\b", re.IGNORECASE)


def _opposites() -> dict[str, str]:
    pairs = [pair.split("/") for pair in OPPOSITES.split(", ")]
    return {first: second for first, second in pairs} | {second: first for first, second in pairs} | ONE_WAY


_OPPOSITE_OF = _opposites()
_OPPOSITE = re.compile(
    r"(?<![\w'’-])(?:" + "|".join(sorted(map(re.escape, _OPPOSITE_OF), key=len, reverse=True)) + r")(?![\w'’-])",
    re.IGNORECASE,
)
_SET_OF = {
    word: tuple(dict.fromkeys(other for words in EXCLUSIVE_SETS if word in words for other in words if other != word))
    for word in {word for words in EXCLUSIVE_SETS for word in words}
}


class Edit(NamedTuple):
    """A place in a text, and what may stand there instead."""

    start: int
    end: int
    options: tuple[str, ...]


def _number_edits(text: str, words: list[re.Match], captions: Sequence[str]) -> Iterator[Edit]:
    for match in _NUMBER.finditer(text):
        value = int(match[0])
        step = 10 ** (len(match[0]) - 1)
        # 1 would need the singular, and stays as it is for the same reason.
        options = [other for other in (value - step, value + step, value + 2 * step) if other >= 2]
        if value >= 2:
            yield Edit(*match.span(), tuple(map(str, options)))
    for word in words:
        if word[0].lower() in NUMBER_WORDS:
            index = NUMBER_WORDS.index(word[0].lower())
            near = NUMBER_WORDS[max(0, index - 2) : index] + NUMBER_WORDS[index + 1 : index + 3]
            yield Edit(*word.span(), near)


def _colour_edits(text: str, words: list[re.Match], captions: Sequence[str]) -> Iterator[Edit]:
    for index, word in enumerate(words):
        colour = word[0].lower()
        if colour not in COLOURS and colour not in OTHER_COLOURS:
            continue
        after = words[index + 1][0].lower() if index + 1 < len(words) else ""
        if colour == "orange" and len(words) > 1 and (not after or after in BOUNDARIES):
            continue  # the fruit
        yield Edit(*word.span(), tuple(other for other in COLOURS if other != colour))


def _negation_edits(text: str, words: list[re.Match], captions: Sequence[str]) -> Iterator[Edit]:
    if match := _YES_NO.fullmatch(text):
        yield Edit(*match.span(1), ("no" if match[1].lower() == "yes" else "yes",))
    for match in _AUXILIARY.finditer(text):
        if negated := _NOT.match(text, match.end()):
            yield Edit(*negated.span(), ("",))
        elif text[match.end() : match.end() + 1].isspace():  # not "isn't", "can-opener" or a lone "is"
            yield Edit(match.end(), match.end(), (" not",))
    for match in _CONTRACTION.finditer(text):
        yield Edit(*match.span(), (match[1],))


def _opposite_edits(text: str, words: list[re.Match], captions: Sequence[str]) -> Iterator[Edit]:
    for match in _OPPOSITE.finditer(text):
        yield Edit(*match.span(), (_OPPOSITE_OF[match[0].lower()],))
    for pattern, pair in ((_SIDE, ("left", "right")), (_WAY, ("up", "down")), (_SWITCH, ("on", "off"))):
        for match in pattern.finditer(text):
            word = match[match.lastindex].lower()
            yield Edit(*match.span(match.lastindex), (pair[1 - pair.index(word)],))
    for word in words:
        if others := _SET_OF.get(word[0].lower()):
            yield Edit(*word.span(), others)


def _is_plural(word: str) -> bool:
    return word in PLURALS or (word.endswith("s") and not word.endswith("ss"))


# The captions of a video come again with each of its texts.
_normalized = lru_cache(maxsize=65536)(normalize)


@lru_cache(maxsize=65536)
def _nouns(text: str) -> tuple[tuple[int, int, str, bool], ...]:
    """
    Words that are nouns for certain: `(start, end, lower-case word, is it an actor)`.

    Without a tagger, these are the known actors, and a lone word between a determiner or a preposition and the end of
    its phrase ("on a chair and"). What is in doubt is left out: a wrong word there would make no sentence.
    """
    words = list(_WORD.finditer(text))
    found = []
    for index, word in enumerate(words):
        lower = word[0].lower()
        if lower in ACTORS:
            found.append((*word.span(), lower, True))
            continue
        before = words[index - 1][0].lower() if index else ""
        opened = before in DETERMINERS or (before in PREPOSITIONS and not lower.endswith("ing"))
        if not opened or lower in BOUNDARIES or lower in COLOURS or not lower.isalpha() or len(lower) < 3:
            continue
        if text[words[index - 1].end() : word.start()].strip():
            continue  # punctuation between the two
        is_last = index + 1 == len(words)
        gap = "" if is_last else text[word.end() : words[index + 1].start()]
        if is_last or gap.strip().startswith((".", ";", "!", "?")):  # a comma may stand between adjectives
            found.append((*word.span(), lower, False))
        elif gap.isspace() and words[index + 1][0].lower() in BOUNDARIES:
            found.append((*word.span(), lower, False))
    return tuple(found)


def _swap_edits(text: str, words: list[re.Match], captions: Sequence[str]) -> Iterator[Edit]:
    own = {word[0].lower() for word in words}
    others = [noun for caption in captions if caption != text for noun in _nouns(caption)]
    for start, end, word, is_actor in _nouns(text) if others else ():
        options = {
            other
            for *_, other, other_is_actor in others
            if other_is_actor == is_actor and other not in own and _is_plural(other) == _is_plural(word)
        }
        if options:
            yield Edit(start, end, tuple(sorted(options)))


_RULES = {
    "number": _number_edits,
    "colour": _colour_edits,
    "negation": _negation_edits,
    "opposite": _opposite_edits,
    "swap": _swap_edits,
}


def _in_case_of(source: str, word: str) -> str:
    if len(source) > 1 and source.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if source[:1].isupper() else word


def _apply(text: str, edit: Edit, option: str) -> str:
    before, after = text[: edit.start], text[edit.end :]
    option = _in_case_of(text[edit.start : edit.end], option)
    article = re.search(r"\b(a)n?(\s+)$", before, re.IGNORECASE)
    if article and option:
        n = "" if option[0].lower() not in "aeiou" else "N" if option.isupper() else "n"
        before = before[: article.start()] + article[1] + n + article[2]
    return before + option + after


class RuleDistort:
    """
    Makes English captions and answers false by rules, without a model: at most one fact of a text changes.

    The rules are numbers, colours, negation, opposites (directions, positions, common actions, people and things), and
    a noun of another caption of the same video. One of those that fit a text is drawn.

    Attributes:
        report (`collections.Counter`):
            How many texts each rule has changed, and `none`, the texts that no rule fits.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.distort import RuleDistort
        >>> RuleDistort()(["Two dogs run on the beach"], [{"captions": []}], [np.random.default_rng(0)])
        ['Two dogs walk on the beach']
    """

    def __init__(self) -> None:
        self.report: Counter = Counter()

    def __call__(
        self, texts: Sequence[str], contexts: Sequence[dict[str, Any]], rngs: Sequence[np.random.Generator]
    ) -> list[str | None]:
        """
        Falsify texts.

        Args:
            texts (`Sequence[str]`):
                Captions or answers.
            contexts (`Sequence[dict]`):
                Of each text, where it comes from: `captions` has all captions of its row.
            rngs (`Sequence[np.random.Generator]`):
                Of each text, what makes its choices.

        Returns:
            `list[str | None]`: the false texts; `None` where no rule fits.
        """
        return [self._one(*arguments) for arguments in zip(texts, contexts, rngs, strict=True)]

    def _one(self, text: str, context: dict[str, Any], rng: np.random.Generator) -> str | None:
        captions = context.get("captions") or []
        words = list(_WORD.finditer(text))
        # What is true of another event of the video is no false caption, and no change is none either.
        taken = {_normalized(other) for other in (text, *captions)}
        rules = list(_RULES)
        for index in rng.permutation(len(rules)):
            edits = list(_RULES[rules[index]](text, words, captions))
            for position in rng.permutation(len(edits)):
                edit = edits[position]
                for choice in rng.permutation(len(edit.options)):
                    false_text = _apply(text, edit, edit.options[choice])
                    if normalize(false_text) not in taken:
                        self.report[rules[index]] += 1
                        return false_text
        self.report["none"] += 1
        return None
