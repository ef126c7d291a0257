"""Sentences to write down, of an open vocabulary: the examples in Princeton's WordNet (Debian's `wordnet-base`)."""

from __future__ import annotations

import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from step_audio_training.sentences import sentence

WORDNET = Path("/usr/share/wordnet")
LEAST_WORDS, MOST_WORDS, MOST_LETTERS = 3, 12, 70


def held_out(text: str) -> bool:
    """One sentence in sixteen is for evaluation, by a hash."""
    return zlib.crc32(text.encode()) % 16 == 0


@cache
def sentences(kept: bool) -> tuple[str, ...]:
    """Those for training, or those kept for evaluation; none where WordNet is not installed.

    Lower case; nothing but letters, apostrophes and single spaces.
    """
    found: set[str] = set()
    for part in ("adj", "adv", "noun", "verb"):
        file = WORDNET / f"data.{part}"
        if file.is_file():
            found |= {plain(quoted) for quoted in re.findall(r'"([^"\n]+)"', file.read_text(errors="replace"))}
    return tuple(sorted(text for text in found if _speakable(text) and held_out(text) == kept))


def plain(text: str) -> str:
    """
    >>> plain("The full-length play; don't!")
    "the full length play don't"
    """
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower().replace("`", "'")).replace(" '", " ").split())


def _speakable(text: str) -> bool:
    words = text.split()
    return LEAST_WORDS <= len(words) <= MOST_WORDS and len(text) <= MOST_LETTERS and "'" not in (text[0], text[-1])


def dictation(random: np.random.Generator, kept: bool = False) -> str:
    """A sentence to write down; of the small grammar where there are no others."""
    known = sentences(kept)
    return known[random.integers(len(known))] if known else sentence(random)


@cache
def words() -> tuple[str, ...]:
    """Of all that is written down in training."""
    known = sentences(False) or [sentence(np.random.default_rng(n)) for n in range(1000)]
    return tuple(sorted({word for text in known for word in text.split()}))
