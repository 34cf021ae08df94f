# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Which nouns of a question are looked for in its video, Eq. 1 of Grounded-VideoDiT: `N = E(q)`.

The column `objects` of the data set wins. Without it an extractor is asked: any callable `extract(question) ->
[noun, ...]`. [`extract_nouns`] is the one that needs nothing installed; with spaCy and a model of your own it is
`lambda question: [chunk.text for chunk in nlp(question).noun_chunks]`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..data.errors import ColumnError
from ..data.grammar import EVI
from ..data.row_checks import _read_messages, strip_none_parts

NounExtractor = Callable[[str], Sequence[str]]


class NounError(ValueError):
    """A noun that a detector cannot look for. It is a fault of the row, so that it can be left out and counted."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Behind these a noun phrase begins, and the next word is no verb: "a drink", "her walk".
_DETERMINERS = _words(
    "a an the this that these those my your his her its our their some any every each no all both another two "
    "three four five six seven eight nine ten several many few"
)
# No part of a noun phrase: they end it.
_STOPS = _DETERMINERS | _words(
    "i you he she it we they me him us them who whom whose which what when where why how there here one ones "
    "other others anyone anybody anything anywhere someone somebody something nothing everyone everybody "
    "everything himself herself itself themselves is are was were be been being am do does did done doing has "
    "have had having can could will would shall should may might must not don doesn didn isn aren s t and or but "
    "nor so if then than as because while although though until since of in on at by for from to into onto out up "
    "down off over under above below behind beside between through across along around about against with without "
    "within near next toward towards away back again after before during upon inside outside per via first second "
    "third last finally once twice now later already still just only also too very really quickly slowly suddenly "
    "together forward backward backwards forwards left-to-right please exactly right-to-left more most"
)
# Verbs of questions about videos, in their base form; other forms are made of it.
_VERBS = _words(
    "add adjust answer appear apply approach arrive ask attach bake balance be become begin bend bite blink blow "
    "boil bounce break bring brush build burn carry catch change chase chop clean climb close collect color "
    "colour come continue cook cough cover crawl cross cry cut dance describe dig disappear dive drag draw "
    "dribble drink drive drop dry dunk eat empty end enlarge enter exit explain fall feed fight fill find finish "
    "fix flip float fly fold follow freeze get give go grab grow hang happen hear hit hold hop hug identify jump "
    "keep kick kiss knock laugh lay lead lean leave lick lie lift listen locate look lose make meet melt mix move "
    "occur open pan pass pat peel pet pick place play point pour press pull push put raise reach read remove repair "
    "rest return ride rinse roll rotate rub run say scratch see sell serve set sew shake shave shift shoot shout "
    "show shrink sing sit skate skip slap sleep slice slide smell smile smoke sneeze snuggle spill spin splash "
    "spray spread squat squeeze stack stand start stay steal stir stop stretch strike strum surf sweep swell swim "
    "swing take talk taste teach tear tell throw tidy tie tilt touch track try turn twirl twist type undress unlock "
    "use vacuum vanish wait wake walk wash watch wave wear wipe work wrap write yell zoom"
)
_IRREGULAR = _words(
    "ate became began bent bit blew broke brought built burnt came caught clung crept cut dealt did dove drank "
    "drawn drew driven drove drunk eaten fallen fed fell felt flew flown found gave given gone got grew grown "
    "held hidden hit hung kept knelt laid lain lay led leapt left lit lost made met put ran ridden rode rose run "
    "said sang sat saw seen sent shook shot shown shrank slept slid sold spoke spun stood stole stolen struck "
    "stuck sung swam swept swum swung taken taught thrown told took tore torn threw thrown went woke wore worn "
    "wrote written"
)
# Words that describe: alone they name nothing that can be seen.
_ADJECTIVES = _words(
    "red green blue yellow orange purple pink white black brown grey gray cyan magenta big small large little "
    "tall short long tiny huge old young new same different whole entire left right upper lower front bright dark "
    "happy sad visible open closed empty full"
)
# Nouns of the question, not of the picture.
_ABSTRACT = _words(
    "video clip scene moment time times timestamp timestamps interval span event events part segment section "
    "second seconds minute minutes frame frames beginning start end middle way action actions activity thing "
    "things kind type order question answer description caption query sentence reason number place front back "
    "side left right top bottom object objects"
)
_MEASURES = _words("pair pairs group couple bunch set piece pieces kind type sort lot number row stack pile slice")


def _forms(verb: str) -> list[str]:
    stem = verb.removesuffix("e")
    doubled = verb + verb[-1]  # "stopped", "running"
    third = verb[:-1] + "ies" if verb[-1] == "y" and verb[-2] not in "aeiou" else None
    third = third or (verb + "es" if re.search(r"(s|x|z|ch|sh|o)$", verb) else verb + "s")
    past = verb[:-1] + "ied" if third.endswith("ies") else stem + "ed"
    return [verb, third, past, stem + "ing", verb + "ing", doubled + "ed", doubled + "ing"]


_VERB_FORMS = frozenset(form for verb in _VERBS for form in _forms(verb)) | _IRREGULAR


def extract_nouns(question: str) -> list[str]:
    """
    Find the noun phrases of an English question by rules: a word behind an article, a number or a possessive opens
    one, and a verb, a preposition or a mark ends it. It knows a few hundred words and no grammar, so it errs: use the
    column `objects` or a parser where that matters.

    Args:
        question (`str`):
            What the user asks.

    Returns:
        `list[str]`: noun phrases in lower case without articles, in order, each once ("dog" and "dogs" are one).

    Raises:
        `ValueError`: the question is empty.

    Example:
        >>> from trl_temporal.objects.nouns import extract_nouns
        >>> extract_nouns("Track the red frisbee; does the dog pick it up?")
        ['red frisbee', 'dog']
        >>> extract_nouns("When does it happen?")
        []
    """
    if not question.strip():
        raise ValueError("the question is empty, so there is no noun to look for; write one, or drop the row")
    phrases: list[list[str]] = [[]]
    previous = ""
    for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*|\d+|[^\w\s'’]|['’](?=s?\b)", question.lower()):
        is_verb = word in _VERB_FORMS and previous not in _DETERMINERS and not _describes(phrases[-1], word)
        if not word[0].isalpha() or word in _STOPS or is_verb or (word in _MEASURES and previous in _DETERMINERS):
            phrases.append([])
        else:
            phrases[-1].append(word)
        previous = word
    nouns = []
    for phrase in phrases:
        while phrase and (phrase[-1] in _ABSTRACT or phrase[-1].endswith("ly")):
            phrase = phrase[:-1]
        if phrase and not set(phrase) <= _ADJECTIVES:
            nouns.append(" ".join(phrase))
    return distinct_nouns(nouns)


def _describes(phrase: Sequence[str], word: str) -> bool:
    """Whether a word that may be a verb goes on a phrase: all before it only describe, "the small drop"."""
    return bool(phrase) and set(phrase) <= _ADJECTIVES and word in _VERBS


def distinct_nouns(nouns: Sequence[str]) -> list[str]:
    """
    Each noun once, in the first form it has.

    Args:
        nouns (`Sequence[str]`):
            Nouns.

    Returns:
        `list[str]`: without outer spaces, without empty ones, and without those that another one before is the
        singular or plural of, whatever their case.

    Example:
        >>> from trl_temporal.objects.nouns import distinct_nouns
        >>> distinct_nouns(["dogs", "red box", "Dog", " ", "red boxes"])
        ['dogs', 'red box']
    """
    found: dict[str, str] = {}
    for noun in (" ".join(noun.split()) for noun in nouns):
        if noun:
            found.setdefault(_singular(noun.lower()), noun)
    return list(found.values())


def _singular(noun: str) -> str:
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("ses", "xes", "zes", "ches", "shes")):
        return noun[:-2]
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
        return noun[:-1]
    return noun


def nouns_of_row(row: dict[str, Any], extract: NounExtractor = extract_nouns) -> list[str]:
    """
    The nouns of a row: its column `objects` if it has one, else those of the user's last turn.

    Args:
        row (`dict`):
            A row with `prompt`, and `objects` (`list[str]`) if it is known what to look for. An empty list says that
            there is nothing.
        extract (`Callable[[str], Sequence[str]]`, *optional*, defaults to [`extract_nouns`]):
            Finds the nouns of a question.

    Returns:
        `list[str]`: each once.

    Raises:
        [`~trl_temporal.data.schema.RowError`]: `objects` is no list of texts, `prompt` are no messages, or they have
            no question.

    Example:
        >>> from trl_temporal.objects.nouns import nouns_of_row
        >>> nouns_of_row({"prompt": [{"role": "user", "content": "When does the dog sit?"}]})
        ['dog']
        >>> nouns_of_row({"objects": ["collar"], "prompt": [{"role": "user", "content": "When does the dog sit?"}]})
        ['collar']
    """
    given = row.get("objects")
    if given is not None:
        if not isinstance(given, list) or not all(isinstance(noun, str) and noun.strip() for noun in given):
            raise ColumnError("objects", f"is {given!r:.80}", 'Write nouns, e.g. ["dog", "red frisbee"]')
        return distinct_nouns(given)
    question = _question(row.get("prompt"))
    if not question.strip():
        raise ColumnError("prompt", "has no question to find nouns in", "Write one, or give the nouns in 'objects'")
    return distinct_nouns(extract(question))


def _question(prompt: Any) -> str:
    """The words of the user's last turn; an `<evi>` among them stands for a time, and is none."""
    if isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt):
        prompt = strip_none_parts(prompt)
    _read_messages("prompt", prompt)
    content = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
    if not isinstance(content, str):
        content = " ".join(part["text"] for part in content if part["type"] == "text")
    return content.replace(EVI, " ")
