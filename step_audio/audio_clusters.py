"""Matroska's clusters, WebM's too: what is damaged in them is cut out, so that what stands behind it can be read.

FFmpeg drops all from the first wrong byte to the next cluster, which may be half a minute.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MOST_ELEMENTS = 1 << 17  # that are looked at: a file can be made of nothing but empty ones
MOST_TRIED = 1 << 16  # places where something might begin
ALIKE = 3  # elements in a row that random bytes are not
LEAP = 5000  # of a cluster's clock, of milliseconds, over what is damaged
MOST_USUAL = 64  # bytes that a millisecond takes
SLACK = 2048  # bytes that may have come twice
VOID = b"\xec\x01" + (256).to_bytes(7, "big") + bytes(256)  # an element of nothing, too long not to be seen
UNKNOWN = b"\x01" + b"\xff" * 7  # a size
LONGEST_HEAD = 4096  # of a file

EBML, SEGMENT, CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
CLOCK, BLOCK, GROUP, BLOCK_OF_GROUP = b"\xe7", b"\xa3", b"\xa0", b"\xa1"
_OTHERS = "114d9b74 1549a966 1654ae6b 1c53bb6b 1043a770 1254c367 1941a469 a7 ab 5854 af ec bf"
_KINDS = {CLUSTER, CLOCK, BLOCK, GROUP, *map(bytes.fromhex, _OTHERS.split())}
_WHERE_TO_GO_ON = re.compile(b"|".join(map(re.escape, (CLUSTER, BLOCK, GROUP))))


@dataclass(frozen=True)
class _Element:
    """`end`: of a cluster that of its head, for what is within is walked through, too. `track`, `time`: a block's."""

    kind: bytes
    end: int
    track: int = -1
    time: int = 0


@dataclass
class _Cluster:
    """The one at hand. `size`: where its size stands. `times`: of each track's last block, -1 where none has come."""

    size: tuple[int, int]
    times: dict[int, int] = field(default_factory=dict)


def whole_clusters(data: bytes) -> bytes:
    """The file without what is damaged, and with an empty element in its place; any other file as is."""
    at = data.find(SEGMENT, 0, LONGEST_HEAD) + len(SEGMENT)
    if data[:4] != EBML or at < len(SEGMENT) or (size := _size(data, at)) is None:
        return data
    view = memoryview(data)
    pieces: list[bytes | memoryview] = [view[:at], UNKNOWN]
    tried = 0
    begin = position = before = size[1]  # `before`: of the last element, whose end may be wrong
    cluster: _Cluster | None = None
    last: _Element | None = None
    tracks: set[int] = set()
    for _ in range(MOST_ELEMENTS):
        if position >= len(data) or data.startswith(EBML, position):
            break
        element = _element(data, position) or _foreign(data, position)
        if element is not None and element.end <= len(data):
            if cluster is not None and last is not None and last.track >= 0:  # it ends where another begins
                cluster.times[last.track] = last.time
            last = element
            if element.kind == CLUSTER:
                tracks |= cluster.times.keys() if cluster is not None else set()
                cluster = _Cluster((position + len(CLUSTER), element.end))
            elif element.kind == CLOCK and cluster is not None:
                cluster.times = dict.fromkeys(tracks, -1)
            before, position = position, element.end
            continue
        if cluster is None:
            break
        after, more = _where_to_go_on(data, before, cluster, MOST_TRIED - tried)
        tried += more
        if after is None:
            break
        start, end = cluster.size
        if begin <= start < before:
            pieces += [view[begin:start], UNKNOWN]
            begin = end
        pieces += [view[begin:before], VOID]
        begin = position = before = after
        last = None
    else:
        return data
    return b"".join([*pieces, view[begin:]]) if len(pieces) > 2 else data


def _element(data: bytes, position: int) -> _Element | None:
    """The one there, of those that a segment and its clusters have."""
    first = data[position : position + 1]
    kind = data[position : position + 5 - (first[0] >> 4).bit_length()] if first else b""
    if kind not in _KINDS or (size := _size(data, position + len(kind))) is None:
        return None
    length, start = size
    if kind == CLUSTER:
        return _Element(kind, start)
    end = start + length
    if kind == GROUP:
        inner = _size(data, start + 1) if data.startswith(BLOCK_OF_GROUP, start) else None
        if inner is None or start + 1 + inner[0] > end:
            return None
        start = inner[1]
    if kind in (BLOCK, GROUP):
        if start + 4 > min(end, len(data)) or not data[start] & 0x80:
            return None
        return _Element(kind, end, data[start] & 0x7F, int.from_bytes(data[start + 1 : start + 3], "big", signed=True))
    return _Element(kind, end)


def _foreign(data: bytes, position: int) -> _Element | None:
    """One of another kind, behind which come those that are known."""
    first = data[position] >> 4
    if not first or (size := _size(data, position + 5 - first.bit_length())) is None:
        return None
    end = size[1] + size[0]
    return _Element(b"", end) if end < len(data) and _run(data, end) else None


def _size(data: bytes, position: int) -> tuple[int, int] | None:
    """The number there, and where what it is about begins; None where there is none."""
    first = data[position : position + 1]
    width = 9 - first[0].bit_length() if first else 9
    if width > 8 or position + width > len(data):
        return None
    number = int.from_bytes(data[position : position + width], "big") & ((1 << 7 * width) - 1)
    return number, position + width


def _where_to_go_on(data: bytes, before: int, cluster: _Cluster, most: int) -> tuple[int | None, int]:
    """Where the next cluster begins, or the next block that is later than its track's last one, and not by less than
    what lies between takes: it would be of a cluster whose head is damaged. And how many places were tried."""
    tried = 0
    for found in _WHERE_TO_GO_ON.finditer(data, before + 1):
        if tried == most:
            break
        tried += 1
        element = _element(data, found.start())
        if element is None:
            continue
        goes_on = element.kind == CLUSTER
        if element.track in cluster.times:
            last = cluster.times[element.track]
            leap = element.time - last
            usual = 2 * (before - cluster.size[1]) / last if last > 0 else MOST_USUAL
            goes_on = 0 < leap <= LEAP and found.start() - before <= SLACK + leap * usual
        if goes_on and _run(data, element.end):
            return found.start(), tried
    return None, tried


def _run(data: bytes, position: int) -> bool:
    for _ in range(ALIKE):
        if position == len(data):
            return True
        element = _element(data, position)
        if element is None:
            return False
        position = element.end
    return True
