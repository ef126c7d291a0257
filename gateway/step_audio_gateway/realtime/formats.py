"""Audio as it travels in events, and as it is kept: PCM16, or G.711, mono."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import soxr

from step_audio.audio import wav_of
from step_audio_gateway.realtime.faults import Fault

Int16Array: TypeAlias = npt.NDArray[np.int16]
Kind = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
_PIECE = 1 << 20  # characters of base64: nobody else has the processor while it is undone


def _mu_law() -> Int16Array:
    """ITU-T G.711, table 2a: all bits inverted, the sign above 3 bits of the segment and 4 of the step."""
    code = ~np.arange(256) & 0xFF
    size = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return np.where(code & 0x80, -size, size).astype(np.int16)


def _a_law() -> Int16Array:
    """ITU-T G.711, table 1a: every other bit inverted; the lowest two segments have the same steps."""
    code = np.arange(256) ^ 0x55
    segment, step = code >> 4 & 7, (code & 0x0F) << 4
    size = np.where(segment == 0, step + 8, step + 0x108 << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, size, -size).astype(np.int16)


_LAWS = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}


@dataclass(frozen=True)
class SampleFormat:
    """`rate` in Hz. G.711 is at 8,000."""

    kind: Kind = "audio/pcm"
    rate: int = 24_000

    @property
    def sample_bytes(self) -> int:
        return 1 if self.kind in _LAWS else 2

    def seconds(self, size: int) -> float:
        """Of so many bytes."""
        return size / (self.sample_bytes * self.rate)

    def size(self, milliseconds: float) -> int:
        """Bytes of so much audio, whole samples."""
        return round(milliseconds * self.rate / 1000) * self.sample_bytes

    def samples(self, data: bytes | bytearray) -> Int16Array:
        """`data` holds whole samples. Without a copy where it is PCM16 already."""
        if self.kind in _LAWS:
            return _LAWS[self.kind][np.frombuffer(data, np.uint8)]
        return np.frombuffer(data, "<i2")


class Encoder:
    """A stream of PCM16 at `rate` Hz to another format."""

    def __init__(self, rate: int, format: SampleFormat):
        self._rate = rate
        self._format = format
        self._stream = self._resampler()

    def encode(self, data: bytes, last: bool = False) -> bytes:
        """`data` holds whole samples; what comes may belong to earlier ones. `last`: what comes next is another
        stream."""
        samples = np.frombuffer(data, "<i2")
        if self._stream is not None:
            samples = self._stream.resample_chunk(samples, last=last)
            if last:
                self._stream = self._resampler()
        if self._format.kind not in _LAWS:
            return samples.astype("<i2", copy=False).tobytes()
        order, borders = _nearest(self._format.kind)
        return order[np.searchsorted(borders, samples)].tobytes()

    def _resampler(self) -> soxr.ResampleStream | None:
        rate = self._format.rate
        return soxr.ResampleStream(self._rate, rate, 1, dtype="int16") if rate != self._rate else None


@cache
def _nearest(kind: Kind) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """A law's codes by what they stand for, and the borders between them."""
    order = np.argsort(_LAWS[kind], kind="stable").astype(np.uint8)
    values = _LAWS[kind][order].astype(np.float64)
    return order, (values[1:] + values[:-1]) / 2


@dataclass(frozen=True)
class SpokenAudio:
    """What was said in one turn, as it came."""

    format: SampleFormat
    data: bytes

    @property
    def seconds(self) -> float:
        return self.format.seconds(len(self.data))

    def wav(self) -> bytes:
        """A WAV file of 16 bits, at the rate that it came with: it is resampled where every recording is."""
        return wav_of(self.format.samples(self.data).astype("<i2", copy=False).tobytes(), self.format.rate)

    def base64(self) -> str:
        return base64.b64encode(self.data).decode()


def decode(text: str, format: SampleFormat, param: str) -> bytes:
    """Of an event's base64. Raises Fault where it is none, or ends within a sample."""
    try:
        data = b"".join(
            base64.b64decode(text[start : start + _PIECE], validate=True) for start in range(0, len(text), _PIECE)
        )
    except (binascii.Error, ValueError):
        raise Fault("invalid_value", f"{param} is not valid base64", param) from None
    if len(data) % format.sample_bytes:
        raise Fault("invalid_value", f"{param} ends within a sample: {len(data)} bytes of {format.kind}", param)
    return data
