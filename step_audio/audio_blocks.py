"""ADPCM's blocks in WAV: behind bytes that are gone, or came twice, each would be read from its middle on."""

from __future__ import annotations

import struct

MICROSOFT, IMA = 2, 17  # tags of WAV
MOST_PREDICTOR, MOST_STEP = 6, 88
BEHIND = (b"LIST", b"id3 ", b"bext", b"cue ", b"JUNK", b"fact")  # kinds of chunks that may stand behind the sound
MOST_GONE = 0.25  # of the sound


def whole_blocks(data: bytes) -> tuple[bytes, int]:
    """A WAV file with as many bytes as its header says, zeros where some are gone, and how many; any other file as is.

    One that is cut off at its end has no block that is out of place, and stays as it is.
    """
    form, at = data.find(b"fmt ", 12, 4096), data.find(b"data", 12, 8192)
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE" or not 0 < form <= len(data) - 24 or not 0 < at <= len(data) - 8:
        return data, 0
    tag, channels, _, _, block = struct.unpack_from("<HHIIH", data, form + 8)
    begin, size = at + 8, int.from_bytes(data[at + 4 : at + 8], "little")
    there = next((start for kind in BEHIND if _is_last(data, start := data.rfind(kind, begin))), len(data))
    gone = begin + size - there
    if tag not in (MICROSOFT, IMA) or block < 8 * channels or gone in (0, -1) or abs(gone) > MOST_GONE * size:
        return data, 0
    for place in range(begin, min(there, begin + size) - block, block):
        if not _is_whole(data, place, tag, channels):
            place = max(place - block, begin)  # where it is broken is in front of what shows it
            return data[:place] + bytes(max(gone, 0)) + data[place + max(-gone, 0) :], max(gone, 0)
    return data, 0


def _is_last(data: bytes, start: int) -> bool:
    """Whether a chunk that begins there ends the file."""
    end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
    return start > 0 and end in (len(data), len(data) - 1)


def _is_whole(data: bytes, place: int, tag: int, channels: int) -> bool:
    """By the block's head."""
    if tag == MICROSOFT:
        return all(predictor <= MOST_PREDICTOR for predictor in data[place : place + channels])
    heads = [data[place + 4 * channel : place + 4 * channel + 4] for channel in range(channels)]
    return all(head[2] <= MOST_STEP and head[3] == 0 for head in heads)
