"""Ogg's pages and WavPack's blocks: which of them are whole, and whether some are missing."""

from __future__ import annotations

import zlib

HEAD = 27  # bytes
MOST_PAGES = 1 << 17  # that are looked at: a file can be made of nothing but empty ones
WAVPACK_FORMAT = 0xFF800003  # of a block's flags: those of rate and bytes of a sample, and those that have to be 0

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def whole_pages(data: bytes) -> tuple[bytes, int]:
    """An Ogg or WavPack file without its damaged pages, behind which FFmpeg drops whole ones; any other file as is.

    And how many bytes of Ogg's are gone at its two ends: of those between whole pages the file's clock tells.
    """
    mark = data[:4]
    if mark not in (b"OggS", b"wvpk"):
        return data, 0
    kept: list[memoryview] = []
    view, begin, position = memoryview(data), 0, 0  # what is whole from `begin` to `position`
    sound = False  # whether a page with some has come
    front = end = 0
    for _ in range(MOST_PAGES):
        if length := _whole_page(data, position) if mark == b"OggS" else _whole_block(data, position):
            sound, end = sound or _granule(data, position) > 0, 0
            position += length
            continue
        kept.append(view[begin:position])
        begin = data.find(mark, position + 1)
        cut_off = begin < 0 and position + _length(data, position) > len(data)  # that promises nothing
        if data.startswith(b"OggS", position) and _granule(data, position) and not cut_off:
            size = (begin if begin >= 0 else len(data)) - position
            front, end = (front, end + size) if sound else (front + size, end)
        position = begin
        if position < 0:
            break
    else:
        return data, 0
    whole = sum(map(len, kept))
    return (data, 0) if whole in (0, len(data)) else (b"".join(kept), front + end)


def in_order(data: bytes, start: int, stop: int) -> bool:
    """Whether the pages from one at `start` to the one at `stop` are all there."""
    numbers: dict[bytes, int] = {}  # of the last page, by stream
    for _ in range(MOST_PAGES):
        if start > stop or not (length := _length(data, start)):
            return True
        serial, number = data[start + 14 : start + 18], int.from_bytes(data[start + 18 : start + 22], "little")
        if numbers.setdefault(serial, number) != number:
            return False
        numbers[serial] = number + 1
        start += length
    return True


def _whole_page(data: bytes, position: int) -> int:
    """Bytes of the page there, 0 for one that is damaged."""
    length = _length(data, position)
    page = data[position : position + length]
    return length if length and _checksum(page) == int.from_bytes(page[22:26], "little") else 0


def _whole_block(data: bytes, position: int) -> int:
    """The same of WavPack, by what follows it and by the format that all blocks have."""
    length = 8 + int.from_bytes(data[position + 4 : position + 8], "little")
    behind = data[position + length : position + length + 3]
    if data[position : position + 4] != b"wvpk" or behind not in (b"wvp", b"APE", b"TAG", b""):
        return 0
    first, here = (int.from_bytes(data[at + 24 : at + 28], "little") & WAVPACK_FORMAT for at in (0, position))
    return length if here == first else 0


def _length(data: bytes, position: int) -> int:
    """Of the page there, 0 where there is none."""
    head = data[position : position + HEAD]
    if len(head) < HEAD or head[:4] != b"OggS":
        return 0
    return HEAD + head[26] + sum(data[position + HEAD : position + HEAD + head[26]])


def _granule(data: bytes, position: int) -> int:
    """How far the sound is at the end of the page there: 0 in headers, -1 where no packet ends."""
    return int.from_bytes(data[position + 6 : position + 14], "little", signed=True)


def _checksum(page: bytes) -> int:
    """It is zlib's with the bits of all bytes, and of the result, in the other order, and no ones at its ends."""
    bare = page[:22] + bytes(4) + page[26:]
    mirrored = zlib.crc32(bare.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
