"""What of an answer said aloud has been heard: by shares of its pieces' audio, for voices tell no words' times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SLOW = 100.0  # ms that a slow voice takes for a byte of UTF-8: ten letters a second, or three ideographs
_IDEOGRAPHS = "\u2e80"  # from here on a character stands for itself


@dataclass
class SaidPiece:
    """`milliseconds`: of its audio so far. `whole`: no more of it comes."""

    text: str
    milliseconds: float = 0.0
    whole: bool = False


def heard(pieces: Sequence[SaidPiece], milliseconds: float) -> int:
    """Characters of all `pieces` whose words have been heard to their ends after so much of their audio.

    How long a piece will be whose audio is not whole is not known: it is taken to be said as slowly as the slowest
    before it, and as a slow voice would.
    """
    start, slowest = 0, SLOW
    for piece in pieces:
        said = piece.text
        size = len(said.strip().encode())
        # Clients count whole milliseconds.
        if piece.whole and piece.milliseconds < milliseconds + 1:
            start += len(said)
            milliseconds -= piece.milliseconds
            slowest = max(slowest, piece.milliseconds / size if size else 0.0)
            continue
        length = piece.milliseconds if piece.whole else max(piece.milliseconds, slowest * size)
        share = max(0.0, min(milliseconds, piece.milliseconds)) / length
        first = len(said) - len(said.lstrip())
        at = first + int(share * len(said.strip()))
        while first < at < len(said) and not _between_words(said[at - 1], said[at]):
            at -= 1
        return start + at
    return start


def _between_words(before: str, behind: str) -> bool:
    return before.isspace() or behind.isspace() or max(before, behind) >= _IDEOGRAPHS
