"""What the parsers of streamed text share: a marker may arrive in pieces."""

from __future__ import annotations

from collections.abc import Iterable


def partial_marker(text: str, markers: Iterable[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a marker; 0 if none.

    >>> partial_marker("done </th", ["</think>"])
    4
    """
    return max((_beginning(text, marker) for marker in markers), default=0)


def _beginning(text: str, marker: str) -> int:
    start = max(len(text) - len(marker) + 1, 0)
    while (start := text.find(marker[0], start)) >= 0:  # rarely there at all
        if marker.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
