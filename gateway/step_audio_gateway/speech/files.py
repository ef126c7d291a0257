"""PCM16 to files, as it comes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import av
import numpy as np

from step_audio.audio import wav_of
from step_audio_gateway.speech.voice import RATE


@dataclass(frozen=True)
class Kind:
    """A file format: FFmpeg's names of the container and the codec, both empty where none is needed."""

    media_type: str
    container: str = ""
    codec: str = ""


KINDS: Mapping[str, Kind] = {
    "mp3": Kind("audio/mpeg", "mp3", "libmp3lame"),
    "opus": Kind("audio/ogg", "ogg", "libopus"),
    "aac": Kind("audio/aac", "adts", "aac"),
    "flac": Kind("audio/flac", "flac", "flac"),
    "wav": Kind("audio/wav"),
    "pcm": Kind(f"audio/pcm;rate={RATE}"),
}


class FileEncoder(Protocol):
    """Whole samples in, bytes of a file out."""

    def add(self, pcm: bytes) -> bytes: ...

    def end(self) -> bytes: ...


def encoder_of(kind: str) -> FileEncoder:
    """`kind`: one of KINDS."""
    return _Encoded(KINDS[kind]) if KINDS[kind].codec else _Plain(_endless_wav() if kind == "wav" else b"")


def file_bytes(pcm: bytes | bytearray, kind: str) -> bytes:
    """The whole file. `kind`: one of KINDS, or `pcm16`, OpenAI's other name for pcm."""
    if kind == "wav":
        return wav_of(bytes(pcm), RATE)
    encoder = encoder_of("pcm" if kind == "pcm16" else kind)
    return encoder.add(bytes(pcm)) + encoder.end()


class _Plain:
    def __init__(self, header: bytes):
        self._header = header

    def add(self, pcm: bytes) -> bytes:
        header, self._header = self._header, b""
        return header + pcm

    def end(self) -> bytes:
        return self.add(b"")


class _Sink:
    """A file that is written from its beginning to its end, and cannot be gone back in."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def take(self) -> bytes:
        data, self.data = bytes(self.data), bytearray()
        return data


class _Encoded:
    def __init__(self, kind: Kind):
        self._sink = _Sink()
        self._container = av.open(self._sink, "w", format=kind.container)
        self._stream = cast(av.AudioStream, self._container.add_stream(kind.codec, rate=RATE, layout="mono"))
        self._samples = 0

    def add(self, pcm: bytes) -> bytes:
        if not pcm:
            return b""
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2")[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._samples
        self._samples += frame.samples
        self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def end(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()


def _endless_wav() -> bytes:
    """The header of a file whose length is not known yet, as of every program that writes into a pipe."""
    form = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", len(form)) + form + b"data\xff\xff\xff\xff"
