"""Losses that a decoder hides: it takes whatever it is given, or a damaged piece is left out in front of it."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from audio_fixture import TONE, encode, peak
from odd_recordings import made, sound
from step_audio import audio_clusters
from step_audio.audio import decode_audio, read_recording
from step_audio.audio_clusters import CLUSTER, whole_clusters
from step_audio.audio_frames import OpusLengths
from step_audio.clips import SAMPLE_RATE

SECONDS = 12.0
WEBM = [("webm", "libopus", 48_000, {}), ("webm", "libopus", 48_000, {"live": "1"}), ("matroska", "aac", 44_100, {})]
NARROW, WIDE = 31, 33  # bytes of a frame: 12.2 and 12.65 kbit/s
PAUSE, NOTHING = b"\x44" + bytes(5), b"\x7c"


def seconds(samples) -> float:
    return len(samples) / SAMPLE_RATE


def amr(change, count=300, wide=False) -> bytes:
    """`change`: of a frame's bytes and number, its bytes."""
    if wide:
        frames = [bytes([2 << 3 | 4]) + np.random.default_rng(i).bytes(WIDE - 1) for i in range(count)]
    else:
        data = made("amr", "libopencore_amrnb", 8_000, SECONDS, b="12200")
        assert data[6] == 7 << 3 | 4 or data[6] == 4
        size = 13 if data[6] == 4 else NARROW + 1
        frames = [data[i : i + size] for i in range(6, 6 + count * size, size)]
    return (b"#!AMR-WB\n" if wide else b"#!AMR\n") + b"".join(change(frame, i) for i, frame in enumerate(frames))


@pytest.mark.parametrize("left_out", [PAUSE, NOTHING, PAUSE + NOTHING * 7])
@pytest.mark.parametrize("start", [0, 100])
def test_pauses_of_amr_are_as_long_as_they_were(left_out, start):
    """Phones leave them out; what has no sound takes its time nonetheless, and is no loss."""
    each = 8 if len(left_out) > 6 else 1
    data = amr(lambda frame, i: left_out if i < 96 else frame, 296)
    if start:
        data = amr(lambda frame, i: left_out if start <= i < 196 else frame, 296)
    recording = read_recording(data)
    assert seconds(recording.samples) == pytest.approx((200 + 96 * each) * 0.02, abs=0.03) and recording.lost == 0
    silent = recording.samples[round((start + 2) * 0.02 * SAMPLE_RATE) :][: round((96 * each - 4) * 0.02 * SAMPLE_RATE)]
    assert np.abs(silent).max() < 0.01
    assert abs(peak(recording.samples) - TONE) < 1


@pytest.mark.parametrize("wide", [False, True])
def test_frames_of_amr_that_are_lost_by_their_own_word(wide):
    """A bit says that a frame was damaged on its way; in wide band a kind of frame that it never came."""

    def bad(frame, i):
        return bytes([frame[0] & ~4]) + frame[1:] if 100 <= i < 120 else frame

    def lost(frame, i):
        return b"\x74" if i < 30 else frame

    changes = [bad, *([lost] if wide else [lambda frame, i: b"\x78" if 50 <= i < 70 else frame])]
    for change, told in zip(changes, (0.4, 0.6 if wide else 0.4), strict=True):
        recording = read_recording(amr(change, wide=wide))
        assert recording.lost == pytest.approx(told) and seconds(recording.samples) == pytest.approx(6, abs=0.03)


def test_a_writer_that_never_sets_the_bit_says_nothing_by_it():
    assert read_recording(amr(lambda frame, i: bytes([frame[0] & ~4]) + frame[1:])).lost == 0


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (b"\x00", 10),
        (b"\x78", 20),
        (b"\xfc", 20),
        (b"\xfd\0", 40),
        (b"\xfb\x03", 60),
        (b"\xe3\x30", 120),
        (b"\x18", 60),
        (b"\x6a", 40),
    ],
)
def test_how_long_a_packet_of_opus_is(start, length):
    def excess(start: bytes, stated: float) -> float:
        packet = av.Packet(start)
        packet.time_base, packet.duration = Fraction(1, 10_000), round(10 * stated)
        return lengths.excess(packet) * 1000

    lengths = OpusLengths()
    assert excess(start, 1) == pytest.approx(length - 1)
    assert excess(start, length) == 0
    assert excess(start, 1000) == 0, "a pause is behind it"
    assert excess(start, 0) == 0, "the file says nothing"
    assert excess(b"\xe0", length) == pytest.approx(2.5 - length)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("count", [300, 500, 2000])
def test_what_opus_in_mp4_lacks_is_told(place, count):
    """Its decoder makes something of any bytes."""
    data = made("mp4", "libopus", 48_000, SECONDS)
    at = round(len(data) * place)
    recording = read_recording(data[:at] + data[at + count :])
    assert seconds(recording.samples) == pytest.approx(SECONDS, abs=0.05)
    assert count / len(data) * SECONDS * 0.7 < recording.lost < 0.5
    assert is_a_tone(recording.samples)


def is_a_tone(samples, most_wrong: float = 0.0) -> bool:
    """But for `most_wrong` seconds, and a window at each place where something begins or ends."""
    windows = samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)
    spectra = np.abs(np.fft.rfft(windows * np.hanning(1600))) ** 2
    at = round(TONE * 1600 / SAMPLE_RATE)
    tonal = spectra[:, at - 2 : at + 3].sum(1) > 0.5 * spectra.sum(1)
    return np.count_nonzero(~tonal) * 0.1 <= most_wrong + 0.4


@pytest.mark.long
@pytest.mark.parametrize(("muxer", "codec", "rate", "options"), WEBM)
def test_damage_costs_no_whole_cluster(muxer, codec, rate, options):
    """Wherever it is. A cluster may be half a minute long, and FFmpeg goes on at the next one."""
    data = made(muxer, codec, rate, SECONDS, **options)
    rng = np.random.default_rng(7)
    first = data.index(CLUSTER) + 200
    for number in range(10):
        at, count = int(rng.integers(first, len(data) - 3000)), int(rng.choice([1, 20, 450, 1500]))
        if CLUSTER in data[at - 40 : at + count + 40]:
            continue
        gone = data[:at] + data[at + count :]
        other = data[:at] + rng.bytes(count) + data[at + count :]
        twice = data[: at + count] + data[at:]
        for name, damaged in (("gone", gone), ("other", other), ("twice", twice)):
            recording = read_recording(damaged)
            told = f"{name} {number}: {count} bytes at {at}"
            # A packet of Opus says itself how long it is: a wrong byte may make a quarter of a second of it.
            assert seconds(recording.samples) == pytest.approx(SECONDS, abs=0.25), told
            assert recording.lost < count / len(data) * SECONDS + 0.2, told
            assert is_a_tone(recording.samples, recording.lost), told
            if name == "gone" and count >= 450:
                assert recording.lost > count / len(data) * SECONDS * 0.5, told


def test_a_clusters_head_that_is_damaged_costs_that_cluster():
    """Its clock is gone: where its blocks belong is not known."""
    data = made("webm", "libopus", 48_000, SECONDS, cluster_time_limit="1000")
    heads = [at for at in range(len(data)) if data.startswith(CLUSTER, at)]
    assert len(heads) > 10
    for at in (heads[3], heads[3] + 1, heads[6] + 2):
        recording = read_recording(data[:at] + b"\x00\x00\x00" + data[at + 3 :])
        assert seconds(recording.samples) == pytest.approx(SECONDS, abs=0.05)
        assert recording.lost == pytest.approx(1, abs=0.3) and is_a_tone(recording.samples, 1.3)


@pytest.mark.parametrize(("muxer", "codec", "rate", "options"), [*WEBM, ("matroska", "flac", 16_000, {})])
def test_what_is_whole_stays_as_it_is(muxer, codec, rate, options):
    data = made(muxer, codec, rate, SECONDS, **options)
    assert whole_clusters(data) is data
    for other in (data[: len(data) // 2], data[: len(data) // 2 + 7], b"", data[:4], data[:100], data[100:]):
        assert whole_clusters(other) is other


def test_elements_that_nobody_knows_are_no_damage():
    data = made("webm", "libopus", 48_000, SECONDS, live="1")
    at = data.index(b"\xa3", data.index(CLUSTER) + 12)
    for foreign in (b"\x5a\x01\x83abc", b"\x8f\x80", b"\x3a\xbc\xde\x82xy"):
        odd = data[:at] + foreign + data[at:]
        assert whole_clusters(odd) is odd


def test_a_file_of_nothing_but_damage_costs_little(monkeypatch):
    """Places where something might go on are counted over all of the file."""
    tried = []
    element = audio_clusters._element
    monkeypatch.setattr(audio_clusters, "_element", lambda *given: tried.append(1) or element(*given))
    monkeypatch.setattr(audio_clusters, "MOST_ELEMENTS", 1 << 12)
    monkeypatch.setattr(audio_clusters, "MOST_TRIED", 1 << 11)
    data = made("webm", "libopus", 48_000, 1.0, live="1")
    at = data.index(b"\xa3", data.index(CLUSTER) + 12)
    for filling in (b"\xa3", b"\xa0", b"\xec\x80", CLUSTER, b"\xa3\x84\x81\0\0\0" + bytes(3)):
        tried.clear()
        whole_clusters(data[:at] + filling * (60_000 // len(filling)))
        assert len(tried) < 5 * (audio_clusters.MOST_ELEMENTS + audio_clusters.MOST_TRIED)


def test_video_beside_the_sound_is_passed_over():
    """Damage in a picture loses no sound."""
    file = io.BytesIO()
    with av.open(file, "w", "matroska") as container:
        video = container.add_stream("mpeg4", 10)
        video.width = video.height = 320
        voice = container.add_stream("libopus", 48_000, layout="mono")
        noise = np.random.default_rng(0)
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 255, (320, 320, 3), np.uint8), "rgb24")
            frame.pts = i
            container.mux(video.encode(frame))
            part = av.AudioFrame.from_ndarray(sound(48_000)[:, i * 4800 : (i + 1) * 4800], "flt", "mono")
            if part.samples:
                part.sample_rate, part.pts = 48_000, i * 4800
                container.mux(voice.encode(part))
        container.mux(video.encode())
        container.mux(voice.encode())
    data = file.getvalue()
    whole = decode_audio(data)
    at = len(data) // 2
    recording = read_recording(data[:at] + data[at + 500 :])
    assert seconds(recording.samples) == pytest.approx(seconds(whole), abs=0.05) and recording.lost < 0.3


@pytest.mark.parametrize(
    ("codec", "rate"), [("adpcm_ms", 22_050), ("adpcm_ima_wav", 11_025), ("adpcm_ima_wav", 44_100)]
)
@pytest.mark.parametrize("behind", [b"", b"LIST\x0a\0\0\0INFOsoft\0\0"])
def test_blocks_of_adpcm_that_are_out_of_place_are_put_right(codec, rate, behind):
    """Those of a telephone's or a dictation machine's WAV: behind a loss all were heard as noise, or refused."""
    data = made("wav", codec, rate, SECONDS) + behind
    for place in (0.2, 0.5, 0.8):
        at = round(len(data) * place)
        for name, damaged, least in (
            ("gone", data[:at] + data[at + 700 :], 500 / len(data) * SECONDS),
            ("twice", data[:at] + data[at - 700 :], 0),
        ):
            recording = read_recording(damaged)
            assert seconds(recording.samples) == pytest.approx(SECONDS, abs=0.2), (name, place)
            assert least <= recording.lost < 0.4 and is_a_tone(recording.samples, recording.lost), (name, place)
    whole, cut_off = read_recording(data + b"\xff" * 3000), read_recording(data[: len(data) * 9 // 10])
    assert whole.lost == 0 and cut_off.lost == pytest.approx(SECONDS / 10, abs=0.1)
    assert seconds(cut_off.samples) == pytest.approx(0.9 * SECONDS, abs=0.1)


def test_the_tone_is_one():
    assert is_a_tone(decode_audio(encode("wav", "pcm_s16le", sound(16_000), 16_000)))
    assert not is_a_tone(np.random.default_rng(0).normal(0, 0.1, 48_000))
