"""What lies between a microphone and the listener: telephones, codecs of few bits, recordings cut at their ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import av
import numpy as np
import soxr
from av.audio.codeccontext import AudioCodecContext
from av.audio.format import AudioFormat
from av.packet import Packet

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE

TELEPHONE_RATE = 8_000


def transmit(samples: Float32Array, random: np.random.Generator) -> Float32Array:
    """Through a channel drawn at random, none in six of ten cases. Samples float32 at 16 kHz, as long or nearly."""
    if random.random() < 0.6:
        return samples
    return through(tuple(CHANNELS)[random.integers(len(CHANNELS))], samples, random)


def through(channel: str, samples: Float32Array, random: np.random.Generator) -> Float32Array:
    """Through the channel of that name (`CHANNELS`)."""
    return CHANNELS[channel](samples, random)


def cut_ends(samples: Float32Array, random: np.random.Generator, most: float = 0.06) -> Float32Array:
    """Without up to `most` seconds at either end: the button pressed too late, let go too early."""
    first, last = (int(random.uniform(0, most) * SAMPLE_RATE) for _ in range(2))
    return samples[first : max(len(samples) - last, first + 1)]


def _narrow(samples: Float32Array, _: np.random.Generator) -> Float32Array:
    low = soxr.resample(samples, SAMPLE_RATE, TELEPHONE_RATE)
    return np.asarray(soxr.resample(low, TELEPHONE_RATE, SAMPLE_RATE), np.float32)


def _telephone(samples: Float32Array, _: np.random.Generator) -> Float32Array:
    """300 to 3400 Hz, and eight bits by the mu law (ITU-T G.711)."""
    spectrum = np.fft.rfft(samples)
    frequency = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(frequency < 300) | (frequency > 3400)] = 0
    band = np.clip(np.fft.irfft(spectrum, len(samples)), -1, 1)
    companded = np.sign(band) * np.log1p(255 * np.abs(band)) / np.log(256)
    coarse = np.round(companded * 127) / 127
    return np.asarray(np.sign(coarse) * np.expm1(np.abs(coarse) * np.log(256)) / 255, np.float32)


def _gsm(samples: Float32Array, random: np.random.Generator) -> Float32Array:
    """AMR, the code of GSM telephones, from 4.75 to 12.2 kbit/s."""
    return _coded(samples, "libopencore_amrnb", "amrnb", 8_000, (4_750, 7_400, 12_200)[random.integers(3)])


def _opus(samples: Float32Array, random: np.random.Generator) -> Float32Array:
    return _coded(samples, "libopus", "libopus", 16_000, int(random.integers(6, 17)) * 1000)


def _mp3(samples: Float32Array, random: np.random.Generator) -> Float32Array:
    return _coded(samples, "libmp3lame", "mp3float", 16_000, (8_000, 16_000, 24_000)[random.integers(3)])


CHANNELS: dict[str, Callable[[Float32Array, np.random.Generator], Float32Array]] = {
    "8 kHz": _narrow, "telephone": _telephone, "gsm": _gsm, "opus": _opus, "mp3": _mp3,
}  # fmt: skip


def _coded(samples: Float32Array, encoder: str, decoder: str, rate: int, bits: int) -> Float32Array:
    """Encoded and decoded again by FFmpeg's codecs."""
    given = np.asarray(samples if rate == SAMPLE_RATE else soxr.resample(samples, SAMPLE_RATE, rate), np.float32)
    writer = _context(encoder, "w")
    writer.sample_rate, writer.layout, writer.bit_rate = rate, "mono", bits
    writer.format = (writer.codec.audio_formats or [AudioFormat("s16")])[0]
    if encoder == "libopus":
        writer.options = {"application": "voip"}
    writer.open()
    reader = _context(decoder, "r")
    reader.sample_rate, reader.layout = rate, "mono"
    if encoder == "libopus":
        reader.extradata = writer.extradata
    pieces = [frame.to_ndarray() for packet in _packets(writer, given, rate) for frame in reader.decode(packet)]
    pieces += [frame.to_ndarray() for frame in reader.decode(None)]
    heard = np.concatenate([piece.reshape(-1) for piece in pieces])
    loud = np.float32(1 / 32768) if heard.dtype == np.int16 else np.float32(1)
    came_at = reader.sample_rate or rate
    heard = heard.astype(np.float32) * loud
    return np.asarray(heard if came_at == SAMPLE_RATE else soxr.resample(heard, came_at, SAMPLE_RATE), np.float32)


def _context(name: str, mode: Literal["r", "w"]) -> AudioCodecContext:
    context = av.CodecContext.create(name, mode)
    assert isinstance(context, AudioCodecContext)
    return context


def _packets(writer: AudioCodecContext, samples: Float32Array, rate: int) -> Iterator[Packet[Any]]:
    size = writer.frame_size or 160
    whole = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
    resampler = av.AudioResampler(format=writer.format, layout="mono", rate=rate)
    for n, begin in enumerate(range(0, len(whole), size)):
        piece = whole[begin : begin + size]
        if len(piece) < size:
            piece = np.pad(piece, (0, size - len(piece)))
        frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, n * size
        for converted in resampler.resample(frame):
            yield from writer.encode(converted)
    yield from writer.encode(None)
