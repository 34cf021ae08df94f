# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Which nouns are looked for: the column, the extractor, and the rules that find them in a question."""

import pytest

from tests.helpers import user
from trl_temporal.data.errors import RowError
from trl_temporal.objects.nouns import distinct_nouns, extract_nouns, nouns_of_row

# Questions as the benchmarks ask them, and what can be seen of what they name.
QUESTIONS = {
    "When does the red disc blink?": ["red disc"],
    "When does the dog first touch the frisbee?": ["dog", "frisbee"],
    "Track the red frisbee; does the dog pick it up?": ["red frisbee", "dog"],
    "When does the green triangle grow the second time?": ["green triangle"],
    "What happens after the yellow cross shakes?": ["yellow cross"],
    "At what time does the woman in a blue dress start dancing with her dog?": ["woman", "blue dress", "dog"],
    "a person is putting a book on a shelf": ["person", "book", "shelf"],
    "person turn a light on.": ["person", "light"],
    "the person starts sneezing": ["person"],
    "Why did the boy pick up one present from the group of them and move to the sofa?": ["boy", "present", "sofa"],
    "A baby's toy falls off the table": ["baby", "toy", "table"],
    "the camera pans left and zooms in on a pair of shoes": ["camera", "shoes"],
    "girl and dog run through the grass": ["girl", "dog", "grass"],
    "What is the person in the red T-shirt holding?": ["person", "red t-shirt"],
    "Does she take a drink?": ["drink"],  # behind an article a verb is a noun
    "When does it happen?": [],
    "Describe the video.": [],
    "Which one is red?": [],
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_nouns_of_a_question(question):
    assert extract_nouns(question) == QUESTIONS[question]


@pytest.mark.parametrize("question", ["", " \n"])
def test_no_question_is_an_error(question):
    with pytest.raises(ValueError, match="the question is empty"):
        extract_nouns(question)


def test_singular_and_plural_are_one():
    given = ["boxes", "box", "Box ", "glass", "glasses", "city", "cities", "bus"]
    assert distinct_nouns(given) == ["boxes", "glass", "city", "bus"]


def test_the_column_objects_wins():
    question = user("When does the dog sit?")
    assert nouns_of_row({"prompt": question}) == ["dog"]
    assert nouns_of_row({"prompt": question, "objects": ["cat", "Cats", "red box"]}) == ["cat", "red box"]
    assert nouns_of_row({"prompt": question, "objects": []}) == []
    assert nouns_of_row({"prompt": question}, lambda text: text.split()[-1:]) == ["sit?"]
    for bad in ("dog", [1], [" "]):
        with pytest.raises(RowError, match="column 'objects'"):
            nouns_of_row({"prompt": question, "objects": bad})


def test_the_question_is_the_words_of_the_last_turn_of_the_user():
    turns = [
        *user("Where is the cat?"),
        {"role": "assistant", "content": "On the sofa."},
        *user("What does the dog do in <evi>?"),  # a time, no thing
    ]
    assert nouns_of_row({"prompt": turns}) == ["dog"]
    filled = [{"role": "user", "content": [{"type": "video", "text": None}, {"type": "text", "text": "A dog?"}]}]
    assert nouns_of_row({"prompt": filled}) == ["dog"]  # with the nulls of Arrow


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (user(" "), "has no question"),
        ([{"role": "system", "content": "A dog."}], "has no question"),
        ("When does the dog sit?", "not a list of messages"),
        (None, "not a list of messages"),
        ([{"role": "user", "content": None}], "the content None"),
    ],
)
def test_a_row_without_a_question_is_refused(prompt, message):
    with pytest.raises(RowError, match=f"column 'prompt'.*{message}"):
        nouns_of_row({"prompt": prompt})
