"""Text to what is said in one go: sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

LEAST = 12  # characters of a piece, for a voice says single words badly
MOST = 400  # characters that a voice is given at once: others wait meanwhile
_END = re.compile(r"[.!?;:…](?=\s)|[。！？；]|\n")


def first_piece(text: str, whole: bool) -> str:
    """What can be said of `text`: up to the end of a sentence. `whole`: nothing comes after it."""
    for end in _END.finditer(text):
        if end.end() >= LEAST:
            return text[: end.end()]
    return text if whole else ""


def words_so_far(text: str) -> str:
    """Up to the last space: what follows may be half a word."""
    return text[: max(text.rfind(" "), text.rfind("\n")) + 1]


def sentences(text: str) -> Iterator[str]:
    """All of `text` but the white space between them; what is longer than MOST in parts."""
    while text:
        piece = first_piece(text, whole=True)
        if len(piece) > MOST:
            piece = words_so_far(piece[:MOST]) or piece[:MOST]
        text = text[len(piece) :]
        if piece := piece.strip():
            yield piece
