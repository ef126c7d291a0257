"""What the parsers of streamed text share: a marker may arrive in pieces."""

from __future__ import annotations

from collections.abc import Iterable


def partial_marker(text: str, markers: Iterable[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a marker; 0 if none.

    >>> partial_marker("done </th", ["</think>"])
    4
    """
    return max(
        (size for marker in markers for size in range(1, len(marker)) if text.endswith(marker[:size])),
        default=0,
    )
