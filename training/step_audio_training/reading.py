"""What a decoder reads before it listens: sentences to copy, in writing.

Its embeddings and its head are apart, so it must learn of each token that what comes in is what goes out. In writing
that takes minutes; with recordings, of which it understands nothing yet, it does not begin to.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from step_audio_training.examples import Example, _system, typed
from step_audio_training.lessons import make_lesson
from step_audio_training.requests import invented
from step_audio_training.scenes import draw_unspoken
from step_audio_training.texts import words

COPIES = ("transcription", "transcription_no_think", "transcription_no_think", "word_count")
MIXED = 0.45  # of the sentences: words in no order, of which none can be guessed
MOST_MIXED = 10  # words
AGAIN = ("say again: {}", "repeat {}", "Repeat this: {}", "write {}", "{} - what did I write?")


def copied(random: np.random.Generator) -> Example:
    """A sentence that is to be written again, or its words counted."""
    said = draw_unspoken(random, "dictation")
    if random.random() < MIXED:
        known = words()
        chosen = random.integers(0, len(known), random.integers(2, MOST_MIXED + 1))
        said = replace(said, text=" ".join(known[n] for n in chosen))
    example = make_lesson(COPIES[random.integers(len(COPIES))], [said], random)
    assert example
    return typed(example)


def names_copied(random: np.random.Generator) -> Example:
    """Two to six names that stand nowhere else, as those of a request's tools and arguments."""
    said = (", " if random.random() < 0.6 else " ").join(invented(int(random.integers(2, 7)), random))
    messages = [*_system(random), {"role": "user", "content": AGAIN[random.integers(len(AGAIN))].format(said)}]
    return Example("names", messages, (), f"I read: {said}." if random.random() < 0.5 else None, said, said)
