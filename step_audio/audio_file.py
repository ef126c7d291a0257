"""A recording's file: opened, its track chosen, and what its header promises."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt

from step_audio.containers import CONTAINERS, Container
from step_audio.errors import InvalidRequest

WAV_PROBE_BYTES = "8192"  # of samples that might be DTS in disguise; by default FFmpeg looks at all, for up to 30 ms
WAV_SIZE_UNKNOWN = 0x7FFF0000  # a WAV streamed to a pipe has a size from here up (or 0): its end is the file's end
MOST_CHUNKS = 4096  # that are looked at: a file can be made of nothing but empty ones
PCM_TAGS = (1, 3, 6, 7, 0xFFFE)  # of WAV: integers, floats, A-law, mu-law, and one of these in a longer header


def open_file(data: bytes) -> av.container.InputContainer:
    """The file with these bytes, its header read. Raises av.FFmpegError."""
    if _is_endless(data):
        raise av.error.InvalidDataError(0, "more chunks than a recording has")
    options = {"format_whitelist": ",".join(one.demuxer for one in CONTAINERS)}
    if data[:4] == b"RIFF":
        options["probesize"] = WAV_PROBE_BYTES
    # Tags are often not UTF-8, and not our business.
    return av.open(io.BytesIO(data), "r", options=options, metadata_errors="replace")


def kind_of(container: av.container.InputContainer) -> Container:
    names = container.format.name.split(",")
    return next(one for one in CONTAINERS if one.demuxer in names)


def track(container: av.container.InputContainer) -> av.AudioStream | None:
    """Of those that can be decoded the one marked as default, else the first; None where there is none."""
    found = [stream for stream in container.streams.audio if stream.codec_context is not None]
    marked = [stream for stream in found if stream.disposition & av.stream.Disposition.default]
    return next(iter(marked + found), None)


def promised_seconds(container: av.container.InputContainer, stream: av.AudioStream, data: bytes) -> float | None:
    """The track's length as the header states it; None where it does not, or where FFmpeg only guesses."""
    if kind_of(container).raw:
        samples = _mp3_samples(data)
        return samples / stream.rate if samples and stream.rate else None
    if stream.codec_context.name == "gsm" and container.format.name == "aiff":  # FFmpeg takes the samples for packets
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:  # else it may be the picture's duration
        return container.duration / av.time_base
    return None


def tag_end(data: bytes, start: int, stop: int) -> int | None:
    """Where a tag ends that begins from `start` to `stop`, between bare frames; None where none does."""
    if (at := data.find(b"ID3", start, stop)) >= 0 and at + 10 <= len(data):
        return at + 10 + (data[at + 6] << 21 | data[at + 7] << 14 | data[at + 8] << 7 | data[at + 9])
    if (at := data.find(b"APETAGEX", start, stop)) >= 0:
        return at + 32 + int.from_bytes(data[at + 12 : at + 16], "little")
    return next((stop for tag in (b"TAG", b"StreamTitle=", b"#!AMR") if data.find(tag, start, stop) >= 0), None)


def _mp3_samples(data: bytes) -> int | None:
    """The length, at the source's rate, that an MP3's first frame states (Xing header), or None.

    FFmpeg reads it too, but replaces it by a guess where anything follows the music, as large tags do.
    """
    start = 0
    if data[:3] == b"ID3":
        start = tag_end(data, 0, 3) or 0
    frame = data[start : start + 64]
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark)
        if at > 0 and frame[0] == 0xFF and len(frame) >= at + 12:
            flags, count = struct.unpack_from(">II", frame, at + 4)
            return count * (1152 if frame[1] & 0x08 else 576) if flags & 1 else None  # MPEG-1, or MPEG-2 and 2.5
    return None


@dataclass(frozen=True)
class _Layout:
    """A file made of chunks; `size` of one with its head where `whole`."""

    start: int  # bytes before the first chunk
    head: str  # kind and size, for struct
    samples: bytes  # the kind of the chunk with the samples
    aligned: int
    whole: bool = False
    skipped: int = 0  # bytes between the head and the samples, which the size counts


_LAYOUTS = {
    b"RIFF": _Layout(12, "<4sI", b"data", 2),
    b"RIFX": _Layout(12, ">4sI", b"data", 2),
    b"RF64": _Layout(12, "<4sI", b"data", 2),
    b"BW64": _Layout(12, "<4sI", b"data", 2),
    b"FORM": _Layout(12, ">4sI", b"SSND", 2, skipped=8),
    b"caff": _Layout(8, ">4sq", b"data", 1, skipped=4),
    b"riff": _Layout(40, "<16sQ", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 8, whole=True),
}


_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def _is_endless(data: bytes) -> bool:
    """Whether it is made of chunks without samples, each of which costs FFmpeg a look."""
    if (layout := _LAYOUTS.get(data[:4])) is None:
        return False
    position, width = layout.start, struct.calcsize(layout.head)
    for _ in range(MOST_CHUNKS):
        if position + width > len(data):
            return False
        kind, size = struct.unpack_from(layout.head, data, position)
        if kind == layout.samples or size < 0:
            return False
        position += -(-max(size + (0 if layout.whole else width), width) // layout.aligned) * layout.aligned
    return True


def promised_bytes(data: bytes) -> tuple[int, int] | None:
    """Of samples: how many a header promises, and how many there are; None where it does not say.

    Of AVI, WMA and Matroska it is the whole file's that are told. FFmpeg passes silently over files that end before
    their stated sizes.
    """
    if (size := _whole_size(data)) is not None:
        return size, min(size, len(data))
    if data[:4] == b".snd" and len(data) >= 24:
        offset, size = struct.unpack_from(">II", data, 4)
        return None if size == 0xFFFFFFFF else (size, min(size, max(len(data) - offset, 0)))
    if (layout := _LAYOUTS.get(data[:4])) is None:
        return None
    position, large = layout.start, None
    width = struct.calcsize(layout.head)
    for _ in range(MOST_CHUNKS):
        if position + width > len(data):
            break
        kind, size = struct.unpack_from(layout.head, data, position)
        size -= width if layout.whole else 0
        position += width
        if kind == b"ds64" and position + 16 <= len(data):
            large = struct.unpack_from("<8xQ", data, position)[0]
        if kind == layout.samples:
            if data[:4] in (b"RF64", b"BW64") and size == 0xFFFFFFFF and large is not None:
                size = large
            elif data[:4] != b"FORM" and layout.head == "<4sI" and (size == 0 or size >= WAV_SIZE_UNKNOWN):
                return None
            if size <= 0:
                return None
            return size - layout.skipped, max(min(size, len(data) - position) - layout.skipped, 0)
        if size < 0:
            break
        position += -(-size // layout.aligned) * layout.aligned
    return None


def _whole_size(data: bytes) -> int | None:
    """Of a file, as it states it itself."""
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return 8 + int.from_bytes(data[4:8], "little") or None
    if data[:16] == _ASF and (at := data.find(_ASF_PROPERTIES, 0, 65_536)) >= 0:
        live = data[at + 88 : at + 89] and data[at + 88] & 1  # written as it was sent: all sizes are guesses
        return None if live else int.from_bytes(data[at + 40 : at + 48], "little") or None
    if data[:4] == _EBML and (at := data.find(_SEGMENT, 0, 4096)) >= 0:
        first = data[at + 4 : at + 5]
        width = 9 - first[0].bit_length() if first and first[0] else 0  # of a number that says how long it is
        size = int.from_bytes(data[at + 4 : at + 4 + width], "big") & ((1 << 7 * width) - 1)
        unknown = size in (0, (1 << 7 * width) - 1)
        return None if unknown else at + 4 + width + size
    return None


def without_rest(data: bytes) -> bytes:
    """An AU or WMA file without what stands behind the end that it states: FFmpeg would take it for sound."""
    end: int | None = None
    if data[:4] == b".snd" and len(data) >= 24:
        offset, size = struct.unpack_from(">II", data, 4)
        end = None if size in (0, 0xFFFFFFFF) else offset + size
    elif data[:16] == _ASF:
        end = _whole_size(data)
    return data if end is None else data[:end]


def wav_rate(data: bytes) -> int | None:
    """Hz, by a WAV's header, before FFmpeg reads it; None for what is no WAV."""
    at = data.find(b"fmt ", 12, 4096)
    if data[:4] not in (b"RIFF", b"RF64", b"BW64") or data[8:12] != b"WAVE" or not 0 < at <= len(data) - 16:
        return None
    rate: int = struct.unpack_from("<I", data, at + 12)[0]
    return rate


def plain_wav(data: bytes) -> tuple[npt.NDArray[np.int16], int] | None:
    """Samples [n], n >= 1, and rate of a whole WAV file of 16 bits and one channel, which needs no decoder; None for
    any other, and for one with chunks that might say something about the samples."""
    if data[:4] != b"RIFF" or data[8:16] != b"WAVEfmt " or len(data) < 44:
        return None
    size, tag, channels, rate, _, _, bits = struct.unpack_from("<IHHIIHH", data, 16)
    if (size, tag, channels, bits) != (16, 1, 1, 16):
        return None
    position = 36
    for _ in range(MOST_CHUNKS):
        if position + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if kind == b"data":
            whole = 0 < size <= len(data) - position and size % 2 == 0 and size < WAV_SIZE_UNKNOWN
            return (np.frombuffer(data, "<i2", size // 2, position), rate) if whole else None
        if kind not in (b"LIST", b"JUNK"):
            return None
        position += size + size % 2
    return None


def little_endian(data: bytes, name: str) -> bytes:
    """A big-endian WAV (RIFX), which FFmpeg takes for a little-endian one, as the other; all else as it is."""
    if data[:4] != b"RIFX" or data[8:12] != b"WAVE":
        return data
    position, form = 12, None
    for _ in range(MOST_CHUNKS):
        if position + 8 > len(data):
            break
        kind, size = struct.unpack_from(">4sI", data, position)
        position += 8
        if kind == b"fmt " and position + 16 <= len(data):
            form = struct.unpack_from(">HHIIHH", data, position)
        if kind == b"data" and form is not None:
            tag, bits = form[0], form[5]
            if tag not in PCM_TAGS or bits not in (8, 16, 24, 32, 64):
                raise InvalidRequest(f"{name}: a big-endian WAV (RIFX) with compressed samples cannot be read", name)
            if tag == 0xFFFE and position >= 12 + 8 + 26:  # the tag proper stands in front of a GUID
                at = data.find(b"fmt ", 12) + 8 + 24
                form = (struct.unpack_from(">H", data, at)[0], *form[1:])
            width = bits // 8
            body = np.frombuffer(data, np.uint8, (len(data) - position) // width * width, position)
            swapped = body.reshape(-1, width)[:, ::-1].tobytes()
            return (
                struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + size & 0xFFFFFFFF, b"WAVE", b"fmt ", 16, *form)
                + struct.pack("<4sI", b"data", size)
                + swapped
            )
        position += size + size % 2
    return data
