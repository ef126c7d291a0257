"""Recordings of every container, odd and damaged, beside what libsndfile makes of them.

docs/recordings.md has them all, with FFmpeg's command beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from audio_fixture import TONE, encode, peak, wav
from odd_damage import damaged, halves
from odd_recordings import PCM, SECONDS, Odd, endian_pair, sound, whole
from other_decoders import by_libsndfile
from step_audio.audio import Recording, decode_audio, read_recording
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import InvalidRequest

PADDING = 0.16  # seconds: of a codec's blocks, of which not every container tells


def check(recordings: Iterable[Odd], right: Callable[[Odd, Recording | InvalidRequest], bool]) -> None:
    rows = []
    for odd in recordings:
        found: Recording | InvalidRequest
        try:
            found = read_recording(odd.data)
        except InvalidRequest as error:
            found = error
        if not right(odd, found):
            ours = str(found)
            if isinstance(found, Recording):
                ours = f"{len(found.samples) / SAMPLE_RATE:.2f} s, {found.lost:.2f} s lost"
            rows.append(f"{odd.name:60} {odd.seconds:6.2f} {by_libsndfile(odd.data) or 0.0:10.2f}  {ours}")
    assert not rows, "\n".join(["", f"{'recording':60} {'true':>6} {'libsndfile':>10}  ours", *rows])


@pytest.mark.long
def test_whole_ones_are_read_to_their_end():
    def right(odd: Odd, found: Recording | InvalidRequest) -> bool:
        return (
            isinstance(found, Recording)
            and abs(len(found.samples) / SAMPLE_RATE - odd.seconds) < PADDING * (2 if odd.seconds > 5 else 1)
            and found.lost == 0
            and not found.cancelled
            and abs(peak(found.samples) - TONE) < 1
            and abs(np.count_nonzero(found.samples == 0) / SAMPLE_RATE - odd.gap) < 0.1
        )

    check(whole(), right)


@pytest.mark.long
def test_they_are_as_long_as_for_an_independent_decoder():
    """Which reads the first of joined ones, and no silence that is in a clock alone."""
    compared = 0
    for odd in whole():
        theirs = None if odd.gap or odd.seconds > SECONDS else by_libsndfile(odd.data)
        if theirs is not None:
            compared += 1
            assert len(decode_audio(odd.data)) / SAMPLE_RATE == pytest.approx(theirs, abs=0.05), odd.name
    assert compared > 50


@pytest.mark.long
def test_damage_inside_is_skipped_and_told():
    def right(odd: Odd, found: Recording | InvalidRequest) -> bool:
        if not isinstance(found, Recording):
            return False
        seconds = len(found.samples) / SAMPLE_RATE
        nearly = abs(seconds - odd.seconds) < PADDING or abs(seconds + found.lost - odd.seconds) < 0.25
        # Whatever stands there can be decoded, nothing shows that it is not all, or it is all.
        untold = odd.name.startswith(
            (
                "libopencore_amrnb in amr: lost",
                "libopencore_amrnb in 3gp",
                "pcm",
                "mp2",
            )
        )
        untold |= odd.name.endswith("twice")
        return (nearly or untold) and (untold or found.lost > 0.01) and abs(peak(found.samples) - TONE) < 1

    check(damaged(), right)


def test_a_half_is_refused():
    def right(odd: Odd, found: Recording | InvalidRequest) -> bool:
        return isinstance(found, InvalidRequest) and "cut off" in str(found)

    check(halves(), right)


@pytest.mark.parametrize(("bits", "tag"), PCM)
def test_big_endian_wav_is_the_same(bits, tag):
    little, big = endian_pair(bits, tag)
    np.testing.assert_array_equal(decode_audio(big), decode_audio(little))


def test_big_endian_wav_that_is_compressed_is_refused():
    big = endian_pair(16, 1)[1]
    with pytest.raises(InvalidRequest, match=r"RIFX\) with compressed samples cannot be read"):
        read_recording(big[:20] + b"\x00\x02" + big[22:])


@pytest.mark.parametrize(
    ("muxer", "codec", "rate"),
    [("wav", "pcm_s16le", 16_000), ("mp3", "libmp3lame", 44_100), ("ogg", "libopus", 48_000), ("flac", "flac", 44_100)],
)
def test_channels_that_cancel_each_other(muxer, codec, rate):
    one = sound(rate)
    data = encode(muxer, codec, np.concatenate([one, -one]), rate)
    recording = read_recording(data)
    assert recording.cancelled and np.abs(recording.samples).max() < 0.1
    for channel in (0, 1):
        chosen = read_recording(data, channel=channel)
        assert not chosen.cancelled and np.abs(chosen.samples).max() > 0.4
    np.testing.assert_allclose(
        read_recording(data, channel=0).samples[1000:-1000], -chosen.samples[1000:-1000], atol=0.05
    )


def test_channels_that_do_not_cancel_each_other():
    one = sound(SAMPLE_RATE)
    noise = np.random.default_rng(0).normal(0, 0.1, one.shape).astype(np.float32)
    for other in (one, noise, 0 * one, -0.5 * one):
        assert not read_recording(encode("wav", "pcm_s16le", np.concatenate([one, other]), SAMPLE_RATE)).cancelled
    silence = np.zeros((2, SAMPLE_RATE), np.float32)
    assert not read_recording(encode("wav", "pcm_s16le", silence, SAMPLE_RATE)).cancelled


def test_a_channel_that_is_not_there():
    with pytest.raises(InvalidRequest, match=r"^audio\[3\]: channel 2: it has 2, counted from 0$"):
        read_recording(wav(bytes(1000), channels=2), name="audio[3]", channel=2)
    assert len(read_recording(wav(bytes(1000)), channel=0).samples) == 500
