"""The same recordings with something missing: `damaged()` lack a little inside, `halves()` their end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from odd_recordings import SECONDS, Odd, by_libsndfile, endian_pair, icy, made

LOST = 500  # bytes
LONG = 12.0  # seconds: 500 bytes must be a small part
DAMAGED = [  # muxer, codec, rate, options
    ("mp3", "libmp3lame", 44_100, {}),
    ("mp3", "libmp3lame", 44_100, {"write_xing": "0"}),
    ("adts", "aac", 44_100, {}),
    ("amr", "libopencore_amrnb", 8_000, {}),
    ("ogg", "libopus", 48_000, {}),
    ("ogg", "flac", 16_000, {}),
    ("flac", "flac", 16_000, {}),
    ("webm", "libopus", 48_000, {"live": "1"}),
    ("webm", "libopus", 48_000, {}),
    ("matroska", "aac", 44_100, {}),
    ("ac3", "ac3", 48_000, {}),
    ("mpegts", "mp2", 48_000, {}),
    ("asf", "wmav2", 44_100, {}),
    ("wv", "wavpack", 44_100, {}),
    ("wav", "pcm_mulaw", 8_000, {}),
    ("wav", "adpcm_ms", 22_050, {}),
]
INDEXED = [  # by an index of places in the file, which bytes that are gone would put out of place
    ("mp4", "aac", 44_100, {}),
    ("mp4", "aac", 48_000, {"movflags": "faststart"}),
    ("mp4", "aac", 44_100, {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
    ("mp4", "libopus", 48_000, {}),
    ("mov", "alac", 44_100, {}),
    ("mov", "pcm_s16le", 44_100, {}),
    ("caf", "alac", 44_100, {}),
]
OVERWRITTEN = [("3gp", "libopencore_amrnb", 8_000, {})]


def damaged() -> Iterator[Odd]:
    """LOST bytes of the middle are gone, or something else stands there."""
    for muxer, codec, rate, options in DAMAGED + INDEXED + OVERWRITTEN:
        data = made(muxer, codec, rate, LONG, **options)
        middle, name = len(data) // 2, f"{codec} in {muxer} {options or ''}".strip()
        before, behind = data[:middle], data[middle + LOST :]
        yield Odd(f"{name}: random", before + np.random.default_rng(1).bytes(LOST) + behind, LONG)
        if (muxer, codec, rate, options) not in OVERWRITTEN:
            yield Odd(f"{name}: lost", before + behind, LONG)
        if (muxer, codec, rate, options) in INDEXED:
            yield Odd(f"{name}: twice", before + data[middle - LOST :], LONG)
    for data, name in [
        (made("ogg", "libopus", 48_000, LONG), "Opus"),
        (by_libsndfile("OGG", "VORBIS", 44_100, LONG), "Vorbis"),
    ]:
        for share, where in ((0.05, "first"), (0.95, "last")):
            place = round(len(data) * share)
            rest = data[place + LOST :]
            yield Odd(f"{name} in Ogg: random in the {where} page", data[:place] + bytes(LOST) + rest, LONG)
    for name, data in [("MP3", made("mp3", "libmp3lame", 44_100, LONG)), ("AAC", made("adts", "aac", 44_100, LONG))]:
        yield Odd(f"ICY titles in {name}", icy(data, 16_000), LONG)


def halves() -> Iterator[Odd]:
    """Of files that say how long they are; `seconds` are those that are left."""
    for muxer, codec, rate in [
        ("wav", "pcm_s16le", 16_000),
        ("w64", "pcm_s16le", 16_000),
        ("caf", "pcm_s16le", 16_000),
        ("aiff", "pcm_s24be", 48_000),
        ("au", "pcm_s16be", 16_000),
        ("flac", "flac", 16_000),
        ("mp3", "libmp3lame", 44_100),
        ("matroska", "libopus", 48_000),
        ("asf", "wmav2", 44_100),
        ("avi", "libmp3lame", 44_100),
        ("wv", "wavpack", 44_100),
    ]:
        data = made(muxer, codec, rate)
        yield Odd(f"half of {codec} in {muxer}", data[: len(data) // 2], SECONDS / 2)
    faststart = made("mp4", "aac", 48_000, movflags="faststart")
    yield Odd("half of aac in mp4", faststart[: len(faststart) // 2], SECONDS / 2)
    yield Odd("half of a RIFX", endian_pair(16, 1)[1][:48_000], SECONDS / 2)
    rf64 = made("wav", "pcm_s16le", 16_000, rf64="always")
    yield Odd("half of an RF64", rf64[: len(rf64) // 2], SECONDS / 2)
    for kind, subtype in [("W64", "GSM610"), ("CAF", "ALAC_16")]:
        data = by_libsndfile(kind, subtype, 8_000 if subtype == "GSM610" else 16_000)
        yield Odd(f"half of {subtype} in {kind}", data[: len(data) // 2], SECONDS / 2)
