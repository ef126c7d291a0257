"""Encoded clips, kept for the next request that brings or names them."""

from __future__ import annotations

from collections import OrderedDict

from step_audio.arrays import AnyArray

ClipKey = tuple[int, int]  # a clip's content hash and its frames


class ClipCache:
    """Rows of prompt tables within `max_bytes`, the least recently used dropped first. For one thread."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._rows: OrderedDict[ClipKey, AnyArray] = OrderedDict()
        self._bytes = 0

    def get(self, key: ClipKey) -> AnyArray | None:
        if (rows := self._rows.get(key)) is not None:
            self._rows.move_to_end(key)
        return rows

    def put(self, key: ClipKey, rows: AnyArray) -> None:
        """`rows` [n, hidden] own their memory, or more than they count is kept."""
        if (known := self._rows.pop(key, None)) is not None:
            self._bytes -= known.nbytes
        self._rows[key] = rows
        self._bytes += rows.nbytes
        while self._bytes > self._max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self._bytes -= oldest.nbytes
