"""Frames as they say themselves what they are: AMR's, where one whose bytes are gone lets all behind it be read out of
place, and Opus'."""

from __future__ import annotations

from typing import Any

import av

FRAME_SECONDS = 0.02
# Bytes behind the first, by kind: those of speech, a pause's, none.
_NARROW = (12, 13, 15, 17, 19, 20, 26, 31, 5, 6, 5, 5, -1, -1, -1, 0)
_WIDE = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, -1, -1, -1, -1, 0, 0)
_HEADS = {b"#!AMR\n": _NARROW, b"#!AMR-WB\n": _WIDE}
_SPEECH = {_NARROW: 8, _WIDE: 9}  # kinds of it
_LOST = 14  # a kind of wide band's: what was said is lost
ALIKE = 4  # frames in a row that random bytes are not
LEAST_EXCESS = 0.002  # seconds
MOST_SEARCHED = 1 << 20  # bytes, in all


def whole_frames(data: bytes, most_seconds: float) -> tuple[bytes, int]:
    """An AMR file without what are no frames, and how many bytes of these stood between frames.

    Any other file as is, and one of more than `most_seconds`.
    """
    head = next((head for head in _HEADS if data.startswith(head)), None)
    if head is None:
        return data, 0
    sizes, most = _HEADS[head], most_seconds / FRAME_SECONDS
    kept: list[bytes] = []
    begin, position, gone, searched, frames = 0, len(head), 0, 0, 0
    while position < len(data):
        if frames > most or searched > MOST_SEARCHED:
            return data, 0
        if size := _frame(data, position, sizes):
            position += size
            frames += 1
            continue
        kept.append(data[begin:position])
        begin = position
        if data.startswith(head, position):  # another recording was put behind the first one
            position += len(head)
            begin = position
            frames += 1
            continue
        while position < len(data) and searched <= MOST_SEARCHED and not _run(data, position, sizes):
            position += 1
            searched += 1
        gone += position - begin if position < len(data) else 0
        begin = position
    return (b"".join([*kept, data[begin:]]), gone) if kept else (data, 0)


def _frame(data: bytes, position: int, sizes: tuple[int, ...]) -> int:
    """Bytes of the frame there; 0 where there is none, or one of zeros."""
    first = data[position]
    size = 1 + sizes[first >> 3 & 15]
    if first & 0x83 or position + size > len(data):
        return 0
    return size if first or any(data[position : position + size]) else 0


def _run(data: bytes, position: int, sizes: tuple[int, ...]) -> bool:
    for _ in range(ALIKE):
        if position == len(data):
            return True
        size = _frame(data, position, sizes)
        if not size:
            return data.startswith(b"#!AMR", position)
        position += size
    return True


def amr_frames(packet: bytes, wide: bool) -> list[tuple[bool, bool]]:
    """Of each frame: whether it is speech, and no part of a pause, and whether it is whole by its own word."""
    sizes, position, found = _WIDE if wide else _NARROW, 0, []
    while position < len(packet):
        kind = packet[position] >> 3 & 15
        found.append((kind < _SPEECH[sizes], bool(packet[position] & 4) and not (wide and kind == _LOST)))
        position += 1 + max(sizes[kind], 0)
    return found


class OpusLengths:
    """Packets' lengths by their first bytes (RFC 6716, 3.1), beside those that their file has.

    The decoder takes whatever bytes it is given: by a difference those of something else are known.
    """

    def __init__(self) -> None:
        self._usual = 0.0  # seconds that the file has for a packet

    def excess(self, packet: av.Packet[Any]) -> float:
        """Seconds that it is longer than its file has it; 0 where that says nothing, or has a pause behind it."""
        if packet.size < 1 or not packet.duration or packet.time_base is None:
            return 0.0
        data, stated = bytes(packet), float(packet.duration * packet.time_base)
        kind, code = data[0] >> 3, data[0] & 3
        lengths = (10.0, 20.0, 40.0, 60.0) if kind < 12 else (10.0, 20.0) * 2 if kind < 16 else (2.5, 5.0, 10.0, 20.0)
        count = (1, 2, 2, data[1] & 63 if len(data) > 1 else 0)[code]
        found = lengths[kind & 3] * count / 1000 - stated  # of milliseconds
        if abs(found) < LEAST_EXCESS:
            self._usual = stated
        return 0.0 if found < 0 and stated > self._usual + LEAST_EXCESS else found
