"""Sentences to write down, from a small grammar in which no word can be guessed from the others."""

from __future__ import annotations

import numpy as np

from step_audio_training.arithmetic import ONES, in_words

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "orange")
ANIMALS = ("dog", "cat", "horse", "bird", "fish", "mouse", "sheep", "rabbit")
DEEDS = ("sleeps", "waits", "runs", "sings", "hides", "jumps")
PLACES = ("house", "garden", "river", "window", "table", "street", "school", "station")
WHERE = ("behind", "under", "near", "inside", "above")
PEOPLE = ("mother", "father", "sister", "brother", "teacher", "doctor")
ACTS = ("visits", "calls", "helps", "meets", "follows")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
VERBS = ("bring", "send", "show", "give")
THINGS = ("apples", "books", "letters", "chairs", "bottles", "flowers", "boxes", "tickets")


def sentence(random: np.random.Generator) -> str:
    """Lower case, no punctuation.

    >>> sentence(np.random.default_rng(5)).split()[0] in ("the", "my", "please", "a")
    True
    """

    def one(words: tuple[str, ...]) -> str:
        return words[random.integers(len(words))]

    match random.integers(5):
        case 0:
            return f"the {one(COLOURS)} {one(ANIMALS)} {one(DEEDS)} {one(WHERE)} the {one(PLACES)}"
        case 1:
            return f"my {one(PEOPLE)} {one(ACTS)} the {one(PEOPLE)} on {one(DAYS)}"
        case 2:
            return f"please {one(VERBS)} me {in_words(int(random.integers(2, 100)))} {one(COLOURS)} {one(THINGS)}"
        case 3:
            return f"the code is {' '.join(ONES[n] for n in random.integers(0, 10, 4))}"
        case _:
            return f"a {one(ANIMALS)} and a {one(ANIMALS)} {one(WHERE)} the {one(COLOURS)} {one(PLACES)}"
