"""Odd recordings: what phones, browsers, call recorders, podcasts and telephone systems write, made here.

`whole()` are recordings of which nothing is missing, however odd.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
import soundfile

from audio_fixture import encode, tone, wav
from step_audio.clips import SAMPLE_RATE

SECONDS = 3.0
PCM = [(8, 1), (16, 1), (24, 1), (32, 1), (32, 3), (64, 3)]  # bits, tag


@dataclass(frozen=True)
class Odd:
    """A file, what it is, and how long the recording in it is; `gap`: seconds of these that it leaves out."""

    name: str
    data: bytes
    seconds: float = SECONDS
    gap: float = 0.0


@cache
def sound(rate: int, channels: int = 1, seconds: float = SECONDS):
    """float32 [channels, n]: a tone in noise, so that no codec makes it shorter than speech."""
    noise = np.random.default_rng(rate).normal(0, 0.02, (channels, round(seconds * rate)))
    return (tone(seconds, rate)[:1] + noise).astype(np.float32)


@cache
def made(muxer: str, codec: str, rate: int, seconds: float = SECONDS, **options: str) -> bytes:
    if muxer not in ("mov", "mp4", "ipod", "3gp", "caf", "ogg", "asf"):
        return encode(muxer, codec, sound(rate, seconds=seconds), rate, **options)
    with tempfile.TemporaryDirectory() as folder:  # what goes back to its header when all is written
        return encode(muxer, codec, sound(rate, seconds=seconds), rate, target=Path(folder) / "a", **options)


@cache
def small_and_dear() -> bytes:
    """A FLAC of silence in 8 channels at 655,350 Hz, 20 s in some 30 kB, whose header states no length."""
    file = io.BytesIO()
    with av.open(file, "w", "flac") as container:
        stream = container.add_stream("flac", 655_350, layout="7.1")
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8 * 655_350), np.int16), "s16", "7.1")
            frame.sample_rate = 655_350
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(file.getvalue())
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)  # of the samples
    return bytes(data)


def by_libsndfile(kind: str, subtype: str, rate: int, seconds: float = SECONDS) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(rate, seconds=seconds)[0], rate, format=kind, subtype=subtype)
    return file.getvalue()


FFMPEG = [  # muxer, codec, rate, options
    ("wav", "pcm_u8", 8_000, {}),
    ("wav", "pcm_s24le", 48_000, {}),
    ("wav", "pcm_s32le", 44_100, {}),
    ("wav", "pcm_f32le", 16_000, {}),
    ("wav", "pcm_f64le", 22_050, {}),
    ("wav", "pcm_alaw", 8_000, {}),
    ("wav", "pcm_mulaw", 8_000, {}),
    ("wav", "adpcm_ms", 22_050, {}),
    ("wav", "adpcm_ima_wav", 11_025, {}),
    ("wav", "libmp3lame", 44_100, {}),
    ("wav", "pcm_s16le", 12_345, {}),
    ("wav", "pcm_s16le", 192_000, {}),
    ("wav", "pcm_s16le", 16_000, {"rf64": "always"}),
    ("w64", "pcm_s16le", 16_000, {}),
    ("w64", "pcm_f32le", 16_000, {}),
    ("w64", "pcm_alaw", 8_000, {}),
    ("avi", "pcm_s16le", 44_100, {}),
    ("matroska", "pcm_s16le", 16_000, {}),
    ("aiff", "pcm_s8", 8_000, {}),
    ("aiff", "pcm_s24be", 48_000, {}),
    ("aiff", "pcm_f32be", 16_000, {}),
    ("aiff", "pcm_alaw", 8_000, {}),
    ("au", "pcm_mulaw", 8_000, {}),
    ("au", "pcm_alaw", 8_000, {}),
    ("au", "pcm_f64be", 16_000, {}),
    ("au", "pcm_s16be", 16_000, {}),
    ("caf", "alac", 44_100, {}),
    ("caf", "alac", 16_000, {}),
    ("caf", "pcm_s16le", 16_000, {}),
    ("caf", "pcm_f32be", 16_000, {}),
    ("caf", "pcm_alaw", 8_000, {}),
    ("flac", "flac", 16_000, {}),
    ("flac", "flac", 44_100, {}),
    ("ogg", "flac", 16_000, {}),
    ("ogg", "libopus", 48_000, {}),
    ("matroska", "libopus", 48_000, {}),
    ("webm", "libopus", 48_000, {"live": "1"}),
    ("matroska", "pcm_s16le", 16_000, {}),
    ("matroska", "libmp3lame", 44_100, {}),
    ("matroska", "aac", 44_100, {}),
    ("mp4", "aac", 44_100, {}),
    ("mp4", "aac", 48_000, {"movflags": "faststart"}),
    ("mp4", "aac", 16_000, {"movflags": "frag_keyframe+empty_moov"}),
    ("mp4", "alac", 44_100, {}),
    ("mp4", "libmp3lame", 44_100, {}),
    ("mp4", "libopus", 48_000, {}),
    ("mov", "pcm_s16le", 16_000, {}),
    ("mov", "pcm_alaw", 8_000, {}),
    ("mov", "adpcm_ima_qt", 22_050, {}),
    ("3gp", "libopencore_amrnb", 8_000, {}),
    ("amr", "libopencore_amrnb", 8_000, {}),
    ("adts", "aac", 44_100, {}),
    ("mp3", "libmp3lame", 44_100, {}),
    ("mp3", "libmp3lame", 22_050, {"write_xing": "0"}),
    ("mp3", "libmp3lame", 8_000, {}),
    ("mp2", "mp2", 44_100, {}),
    ("asf", "wmav2", 44_100, {}),
    ("ac3", "ac3", 48_000, {}),
    ("eac3", "eac3", 44_100, {}),
    ("mpegts", "aac", 44_100, {}),
    ("mpegts", "mp2", 48_000, {}),
    ("avi", "pcm_s16le", 16_000, {}),
    ("avi", "libmp3lame", 44_100, {}),
    ("wv", "wavpack", 44_100, {}),
]
LIBSNDFILE = [  # container, codec, rate
    ("WAV", "GSM610", 8_000),
    ("W64", "GSM610", 8_000),
    ("AIFF", "GSM610", 8_000),
    ("AIFF", "IMA_ADPCM", 22_050),
    ("CAF", "ALAC_24", 48_000),
    ("CAF", "ALAC_16", 22_050),
    ("RF64", "PCM_24", 16_000),
    ("WAVEX", "PCM_U8", 16_000),
    ("OGG", "VORBIS", 44_100),
    ("OGG", "OPUS", 24_000),
    ("MP3", "MPEG_LAYER_III", 32_000),
]


def with_gap(muxer: str, codec: str, rate: int, first: float, last: float, again: float = 0.0) -> bytes:
    """As call recorders write it: without the packets of `first` to `last` seconds, and again `again` seconds later."""
    whole = made("matroska", codec, rate)
    left_out = [(first, last)] + ([(first + again, last + again)] if again else [])
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "a"
        with av.open(io.BytesIO(whole)) as source, av.open(str(target), "w", format=muxer) as out:
            stream = out.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(audio=0):
                if packet.dts is None:
                    continue
                time = packet.pts * packet.time_base
                if not any(start <= time < stop for start, stop in left_out):
                    packet.stream = stream
                    out.mux(packet)
        return target.read_bytes()


def tracks(muxer: str, codec: str, rate: int, marked: int, count: int = 2) -> bytes:
    """Several tracks, of which the one that is marked as default is SECONDS long, and the others a quarter of it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "a"
        with av.open(str(target), "w", format=muxer) as out:
            streams = []
            for i in range(count):
                stream = out.add_stream(codec, rate=rate, layout="mono")
                stream.disposition = av.stream.Disposition.default if i == marked else av.stream.Disposition(0)
                streams.append(stream)
            for i, stream in enumerate(streams):
                samples = sound(rate)[:, : len(sound(rate)[0]) // (1 if i == marked else 4)]
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = rate, 0
                codec_context = stream.codec_context
                resampler = av.AudioResampler(
                    codec_context.codec.audio_formats[0], "mono", rate, codec_context.frame_size or 1024
                )
                for piece in resampler.resample(frame) + resampler.resample(None):
                    out.mux(stream.encode(piece))
                out.mux(stream.encode(None))
        return target.read_bytes()


def id3(size: int) -> bytes:
    """A tag, as one with a picture."""
    body = b"APIC" + struct.pack(">IH", size - 10, 0) + np.random.default_rng(size).bytes(size - 10)
    return b"ID3\3\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + body


def icy(data: bytes, every: int = 8192) -> bytes:
    """As a radio station sends it: every so many bytes the title, or a zero where it is the same."""
    title = b"StreamTitle='A song';".ljust(32, b"\0")
    pieces = [data[start : start + every] for start in range(0, len(data), every)]
    blocks = [b"\2" + title if i % 3 == 0 else b"\0" for i in range(len(pieces) - 1)]
    return b"".join(piece + block for piece, block in zip(pieces, [*blocks, b""], strict=True))


def endian_pair(bits: int, tag: int) -> tuple[bytes, bytes]:
    """A WAV, and the same as big-endian machines wrote it (RIFX); `tag` 1: integers, 3: floats."""
    scale = 1 if tag == 3 else 2 ** (bits - 1) - 1
    if bits == 24:
        values = np.round(sound(SAMPLE_RATE)[0].astype(np.float64) * scale).astype("<i4")
        body = values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    elif bits == 8:
        body = np.round(sound(SAMPLE_RATE)[0] * scale + 128).astype(np.uint8).tobytes()
    else:
        body = (
            (sound(SAMPLE_RATE)[0].astype(np.float64) * scale)
            .astype(f"<{'f' if tag == 3 else 'i'}{bits // 8}")
            .tobytes()
        )
    little = wav(body, bits=bits, tag=tag)
    swapped = np.frombuffer(body, np.uint8).reshape(-1, bits // 8)[:, ::-1].tobytes()
    size, *fields = struct.unpack("<4xI8xIHHIIHH4xI", little[:44])
    head = struct.pack(">4sI4s4sIHHIIHH4sI", b"RIFX", size, b"WAVE", b"fmt ", *fields[:-1], b"data", fields[-1])
    return little, head + swapped


def _sized(data: bytes, off: int) -> bytes:
    """A WAV whose size field says so many bytes more than there are."""
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", struct.unpack_from("<I", data, at)[0] + off) + data[at + 4 :]


def _joined() -> Iterator[tuple[str, bytes]]:
    mp3, tag = made("mp3", "libmp3lame", 44_100), b"TAG" + bytes(125)
    ape = b"APETAGEX" + struct.pack("<IIII8x", 2000, 5000, 1, 0) + bytes(range(1, 251)) * 20
    yield "MP3, ID3v1, ID3v2, MP3", mp3 + tag + id3(3000) + mp3
    yield "MP3, ID3v2 with a picture, MP3", mp3 + id3(200_000) + mp3
    yield "MP3, APE tag, MP3", mp3 + ape + mp3
    yield "MP3 of two rates", mp3 + id3(300) + made("mp3", "libmp3lame", 22_050)
    yield "MP3 without a length", made("mp3", "libmp3lame", 44_100, write_xing="0") * 2
    yield "AAC, ID3v2, AAC", made("adts", "aac", 44_100) + id3(2000) + made("adts", "aac", 44_100)
    yield "AMR twice", made("amr", "libopencore_amrnb", 8_000) * 2
    yield "chained Ogg, Opus", made("ogg", "libopus", 48_000) * 2
    yield "chained Ogg, Vorbis", by_libsndfile("OGG", "VORBIS", 44_100) * 2
    yield "FLAC twice", made("flac", "flac", 16_000) * 2
    yield "MPEG-TS twice", made("mpegts", "aac", 44_100) * 2


def _followed() -> Iterator[tuple[str, bytes]]:
    """Behind its own end stands what is none of it, as servers and carriers leave it."""
    page = b"<html>\n" * 500
    yield "AU", made("au", "pcm_mulaw", 8_000) + page
    yield "WAV", made("wav", "pcm_s16le", 16_000) + page
    yield "WMA", made("asf", "wmav2", 44_100) + page
    yield "M4A", made("mp4", "aac", 44_100) + bytes(4096)
    yield "Ogg", made("ogg", "libopus", 48_000) + page
    yield "FLAC", made("flac", "flac", 16_000) + b"TAG" + bytes(125)
    yield "AMR", made("amr", "libopencore_amrnb", 8_000) + bytes(4096)
    yield "AMR again", made("amr", "libopencore_amrnb", 8_000) + page


def whole() -> Iterator[Odd]:
    for muxer, codec, rate, options in FFMPEG:
        yield Odd(f"{codec} in {muxer}, {rate} Hz {options or ''}".strip(), made(muxer, codec, rate, **options))
    for kind, subtype, rate in LIBSNDFILE:
        yield Odd(f"{subtype} in {kind}, {rate} Hz", by_libsndfile(kind, subtype, rate))
    for name, data in _joined():
        yield Odd(f"joined: {name}", data, 2 * SECONDS)
    for name, data in _followed():
        yield Odd(f"{name}, and what is none of it", data)
    for bits, tag in PCM:
        yield Odd(f"RIFX, {bits} bits, {tag}", endian_pair(bits, tag)[1])
    for off in (1, 2, 36, 100, -2):
        yield Odd(f"WAV, size field {off:+}", _sized(made("wav", "pcm_s16le", 16_000), off))
    for muxer, codec, rate in [
        ("ogg", "libopus", 48_000),
        ("ogg", "flac", 16_000),
        ("mp4", "aac", 44_100),
        ("mov", "aac", 44_100),
        ("mp4", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("mpegts", "aac", 44_100),
    ]:
        yield Odd(f"a gap in {muxer}, {codec}", with_gap(muxer, codec, rate, 1.5, 2.5), gap=1)
    yield Odd("two gaps in webm, opus", with_gap("webm", "libopus", 48_000, 0.5, 1, again=1.2), gap=1)
    for muxer, codec in [("matroska", "aac"), ("mp4", "aac"), ("mov", "alac"), ("matroska", "flac")]:
        for marked in (0, 1):
            yield Odd(f"two tracks in {muxer}, {codec}, default {marked}", tracks(muxer, codec, 44_100, marked))
    for channels in (3, 6, 8):
        data = encode("wav", "pcm_s16le", sound(16_000), 16_000)
        body = np.repeat(np.frombuffer(data[data.index(b"data") + 8 :], "<i2"), channels).tobytes()
        yield Odd(f"{channels} channels", wav(body, channels=channels))
