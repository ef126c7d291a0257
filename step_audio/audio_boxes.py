"""MP4's boxes, and CAF's chunks, put back to where their sizes say they end: bytes of sound are gone, or came twice.

All places in the file are counted from its begin, or from a fragment's: behind a loss nothing would be found.
"""

from __future__ import annotations

import av

from step_audio.audio_file import open_file, track
from step_audio.audio_frames import LEAST_EXCESS, OpusLengths

MOST_BOXES = 1 << 16  # that are looked at
KINDS = frozenset(
    b"ftyp styp moov moof mdat mfra sidx ssix free skip wide uuid meta udta pnot emsg prft pdin PICT".split()
)
CAF_KINDS = frozenset(b"pakt info free kuki chan uuid strg mark regn umid ovvw inst midi peak edct".split())
FIRST_WITHIN = {b"moov": b"mvhd", b"moof": b"mfhd", b"mfra": b"tfra"}


def whole_boxes(data: bytes, most_values: float) -> bytes:
    """The file with as many bytes as its boxes have, zeros where some are gone; any other file as is.

    One without fragments is decoded up to what is broken, if that costs no more than `most_values`: samples of all
    channels.
    """
    if data[:4] == b"caff":
        return _whole_chunks(data, most_values)
    if data[4:8] not in KINDS:
        return data
    pieces: list[bytes] = []
    begin = position = filled = 0
    indexes = {kind: -2 for kind in FIRST_WITHIN}  # where the next of each is, found once: -1 where there is none
    for _ in range(MOST_BOXES):
        kind, size = _box(data, position)
        end = position + size
        if end == len(data):
            break
        if end < len(data) and _box(data, end)[0] in KINDS:
            position = end
            continue
        after = _next(data, position + 8, indexes)
        there = len(data) if after < 0 else after  # where the box ends
        filled += abs(end - there)
        if kind != b"mdat" or filled > len(data):
            break
        if not pieces and data[after + 4 : after + 8] != b"moof":
            return _mended(data, there, end - there, most_values)
        if after < 0:
            break
        pieces += [data[begin : min(end, there)], bytes(max(end - there, 0))]
        begin = position = there
    return b"".join([*pieces, data[begin:]]) if pieces else data


def _box(data: bytes, position: int) -> tuple[bytes, int]:
    """Kind and size of the one there; at least its head."""
    size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
    if size == 1:
        size = int.from_bytes(data[position + 8 : position + 16], "big")
    return kind, max(size, 8) if size else len(data) - position


def _next(data: bytes, start: int, indexes: dict[bytes, int]) -> int:
    """Where the next index begins, of a fragment, of all or of the file; -1 where none does."""
    for kind, first in FIRST_WITHIN.items():
        at = indexes[kind]
        while at != -1 and (at < start or data[at + 12 : at + 16] != first):
            at = data.find(kind, max(at + 5, start + 4))
            at = at - 4 if at >= 0 else -1
        indexes[kind] = at
    return min((at for at in indexes.values() if at >= 0), default=-1)


def _mended(data: bytes, there: int, gone: int, most_values: float) -> bytes:
    """`gone` bytes are missing (or too many, where it is negative) somewhere in the sound in front of `there`: where
    the first packet is that cannot be decoded."""
    fill = bytes(max(gone, 0))
    try:
        place = _first_broken(data[: min(there, there + gone)] + fill + data[there:], there, most_values)
    except av.FFmpegError:
        return data
    if place is None:
        return data
    place = min(place, there - max(-gone, 0))  # bare samples are never broken: it is their end that is wrong
    return data[:place] + fill + data[place + max(-gone, 0) :]


def _whole_chunks(data: bytes, most_values: float) -> bytes:
    """The same of a CAF file, whose index stands behind the sound, or in front of it."""
    position = len(b"caff") + 4
    for _ in range(MOST_BOXES):
        kind = data[position : position + 4]
        end = position + 12 + int.from_bytes(data[position + 4 : position + 12], "big")
        if kind == b"data":
            there = data.rfind(b"pakt", position)
            if there > 0 and data[end : end + 4] not in CAF_KINDS and abs(end - there) < (there - position) // 4:
                return _mended(data, there, end - there, most_values)
            break
        if end <= position or end > len(data):
            break
        position = end
    return data


def _first_broken(data: bytes, there: int, most_values: float) -> int | None:
    with open_file(data) as container:
        stream = track(container)
        if stream is None:
            return None
        lengths = OpusLengths()
        for packet in container.demux(stream):
            place = packet.pos
            try:
                frames = packet.decode()
                broken = stream.codec_context.name == "opus" and abs(lengths.excess(packet)) > LEAST_EXCESS
            except av.FFmpegError:
                broken = True
            if broken:
                return place if place is not None and place + packet.size <= there else None
            most_values -= sum(frame.samples * frame.layout.nb_channels for frame in frames)
            if most_values < 0:
                return None
    return there
