"""Recordings of every container, odd and damaged, beside what an independent decoder makes of them.

What is wrong is shown as a table: ours beside FFmpeg's command, where there is one, or libsndfile.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import soundfile

from audio_fixture import TONE, encode, peak, wav
from odd_damage import damaged, halves
from odd_recordings import PCM, Odd, endian_pair, sound, whole
from step_audio.audio import Recording, decode_audio, read_recording
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import InvalidRequest

PADDING = 0.16  # seconds: of a codec's blocks, of which not every container tells
FFMPEG = shutil.which("ffmpeg")


def of_another_decoder(data: bytes) -> str:
    """Seconds."""
    if FFMPEG:
        command = [FFMPEG, "-v", "quiet", "-i", "-", "-ac", "1", "-ar", "16000", "-f", "f32le", "-"]
        out = subprocess.run(command, input=data, capture_output=True).stdout
        return f"{len(out) / 4 / SAMPLE_RATE:.2f}"
    try:
        return f"{soundfile.info(io.BytesIO(data)).duration:.2f}"
    except soundfile.LibsndfileError:
        return "cannot"


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
            rows.append(f"{odd.name:60} {odd.seconds:6.2f} {of_another_decoder(odd.data):>8}  {ours}")
    assert not rows, "\n".join(["", f"{'recording':60} {'true':>6} {'another':>8}  ours", *rows])


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
def test_damage_inside_is_skipped_and_told():
    def right(odd: Odd, found: Recording | InvalidRequest) -> bool:
        if not isinstance(found, Recording):
            return False
        seconds = len(found.samples) / SAMPLE_RATE
        nearly = abs(seconds - odd.seconds) < PADDING or abs(seconds + found.lost - odd.seconds) < 0.25
        # Whatever stands there can be decoded, nothing shows that it is not all, or it is all.
        untold = odd.name.startswith(("libopencore", "pcm", "mp2", "libopus in webm", "libopus in mp4"))
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
