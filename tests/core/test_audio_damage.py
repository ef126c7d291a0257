"""decode_audio against files that are damaged, cut off, foreign, hostile or too long."""

import contextlib
import io
import struct
import subprocess
import sys

import av
import numpy as np
import pytest

from audio_fixture import TONE, encode, peak, tone, wav
from odd_recordings import made, small_and_dear
from step_audio.audio import Budget, decode_audio, likely_values, read_recording
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import InvalidRequest
from step_audio.mel import log_mel


def pcm16(samples):
    """[channels, n] in [-1, 1] to interleaved bytes."""
    return np.round(samples.T * 32767).astype("<i2").tobytes()


def refused(data, match, **kwargs):
    with pytest.raises(InvalidRequest, match=match) as caught:
        read_recording(data, name="audio[2]", **kwargs)
    text = str(caught.value)
    assert text.startswith("audio[2]: ") and "\n" not in text and "/" not in text, text


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
def test_wav_streamed_to_a_pipe(size):
    source = tone(1, SAMPLE_RATE)
    assert len(decode_audio(wav(pcm16(source), size=size))) == SAMPLE_RATE


def test_wav_with_foreign_tags():
    tags = b"LIST" + struct.pack("<I", 16) + b"INFOINAM" + struct.pack("<I", 4) + b"\xe9\xe8\xff\0"
    assert len(decode_audio(wav(pcm16(tone(1, SAMPLE_RATE)), before=tags))) == SAMPLE_RATE


def test_video_is_ignored():
    data = encode("mp4", "aac", tone(2, 44_100), 44_100, with_video=True)
    samples = decode_audio(data)
    assert abs(len(samples) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE and peak(samples) == pytest.approx(TONE, abs=1)


def test_mp3_with_a_tag_behind_it():
    for options in ({}, {"write_xing": "0"}):
        data = encode("mp3", "libmp3lame", tone(1, 44_100), 44_100, **options)
        clean = len(decode_audio(data))
        for tag in (b"TAG" + bytes(125), b"APETAGEX" + bytes(range(256)) * 50):
            assert abs(len(decode_audio(data + tag)) - clean) < 0.1 * SAMPLE_RATE


def test_what_is_not_audio():
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    for data in [b"x", b"RIFF", b"hello world " * 1000, png, np.random.default_rng(0).bytes(50_000)]:
        refused(data, "not an audio file")
    refused(wav(pcm16(tone(1, SAMPLE_RATE)))[:20], "not an audio file")


@pytest.mark.parametrize(
    "head", [b"RIFF\xff\xff\xff\xffWAVE", b"RIFX\0\0\0\0WAVE", b"FORM\0\0\0\0AIFF", b"caff\0\1\0\0"]
)
def test_what_is_made_of_empty_chunks(head):
    refused(head + bytes(1_000_000), "not an audio file|index cannot be read")


def test_no_bytes_no_samples_no_stream():
    refused(b"", "there are no bytes")
    refused(wav(b""), "no samples")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        out.mux(video.encode(frame.reformat(format="yuv420p")))
        out.mux(video.encode(None))
    refused(file.getvalue(), "no audio stream")


@pytest.mark.parametrize("rate", [0, 1, 999, 4_000_000_000])
def test_sample_rate_that_no_recorder_has(rate):
    refused(wav(pcm16(tone(1, SAMPLE_RATE)), rate=rate), f"{rate} Hz")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("kind", "bits"), [("<f4", 32), ("<f8", 64)])
def test_samples_that_are_not_numbers(bad, kind, bits):
    samples = np.zeros(200_000, kind)
    samples[150_000] = bad
    refused(wav(samples.tobytes(), bits=bits, tag=3), "NaN or infinity")
    if bits == 64:
        samples[150_000] = 1e300  # finite, but not in float32
        refused(wav(samples.tobytes(), bits=bits, tag=3), "NaN or infinity")


def test_samples_that_no_spectrum_can_hold():
    loud = np.full(1000, 2e12, "<f4")
    refused(wav(loud.tobytes(), bits=32, tag=3), r"the samples hold NaN or infinity, or reach 1e\+12")
    assert np.isfinite(log_mel(decode_audio(wav((loud / 2).tobytes(), bits=32, tag=3)))).all()


@pytest.mark.parametrize(("missing", "lost"), [(1, 0), (1000, 0.031), (7000, 0.219)])
def test_wav_whose_end_is_missing(missing, lost):
    recording = read_recording(wav(pcm16(tone(1, SAMPLE_RATE)))[:-missing])
    assert len(recording.samples) == (32_000 - missing) // 2 and recording.lost == pytest.approx(lost, abs=0.001)


def test_wav_cut_off():
    refused(wav(pcm16(tone(1, SAMPLE_RATE)))[:-20_000], r"of 1\.00 s, 0\.6\d s are lost; at most 25% may be")


CUTS = [
    ("flac", "flac", {}),
    ("mp3", "libmp3lame", {}),
    ("mp4", "aac", {"movflags": "faststart"}),
    ("mp4", "alac", {"movflags": "faststart"}),
    ("mp4", "aac", {}),  # its index is at the end
    ("webm", "libopus", {}),
]


@pytest.mark.parametrize("kept", [0.4, 0.7])
@pytest.mark.parametrize(("container", "codec", "options"), CUTS)
def test_other_files_cut_off(container, codec, options, kept, tmp_path):
    data = encode(container, codec, tone(3, 48_000), 48_000, target=tmp_path / "tone", **options)
    assert abs(len(decode_audio(data)) - 3 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    refused(data[: int(len(data) * kept)], "cut off|not an audio file")


def test_ogg_cut_off_is_a_shorter_file():
    """Ogg states its length in its last page only: nothing is promised that is not there."""
    data = encode("ogg", "libopus", tone(3, 48_000), 48_000)
    samples = decode_audio(data[: len(data) // 2])
    assert 0.5 * SAMPLE_RATE < len(samples) < 2.5 * SAMPLE_RATE and peak(samples) == pytest.approx(TONE, abs=1)


def test_bare_aac_may_end_within_a_frame():
    """What recorders that are switched off leave: bare frames promise no length."""
    data = encode("adts", "aac", tone(1, 48_000), 48_000)
    assert abs(len(decode_audio(data[:-5])) - SAMPLE_RATE) < 0.1 * SAMPLE_RATE


def test_webm_that_leaves_silence_out():
    """Discontinuous Opus in WebM: packets are missing, the clock says for how long it was silent."""
    file, full = io.BytesIO(), io.BytesIO(encode("webm", "libopus", tone(3, 48_000), 48_000))
    with av.open(full) as source, av.open(file, "w", format="webm") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None and not 1 < packet.pts * packet.time_base < 2:
                packet.stream = stream
                out.mux(packet)
    recording = read_recording(file.getvalue())
    assert len(recording.samples) == pytest.approx(3 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE) and not recording.lost
    assert not recording.samples[round(1.1 * SAMPLE_RATE) : round(1.9 * SAMPLE_RATE)].any()


def test_ogg_that_lacks_a_page_in_its_middle():
    data = bytearray(encode("ogg", "libopus", tone(5, 48_000), 48_000))
    data[len(data) // 2] ^= 0xFF  # the page's checksum fails, which holds a second
    recording = read_recording(bytes(data))
    assert len(recording.samples) == pytest.approx(5 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert recording.lost == pytest.approx(1, abs=0.1)
    silent = np.flatnonzero(recording.samples == 0)
    assert len(silent) > 0.9 * SAMPLE_RATE and np.ptp(silent[:-1]) < 1.2 * SAMPLE_RATE


def test_flac_and_alac_that_lack_their_end(tmp_path):
    flac = encode("flac", "flac", tone(3, 48_000), 48_000)
    alac = encode("mp4", "alac", tone(3, 48_000), 48_000, target=tmp_path / "tone", movflags="faststart")
    for data in (flac, alac):
        recording = read_recording(data[:-5])  # the last frame
        assert len(recording.samples) / SAMPLE_RATE + recording.lost == pytest.approx(3, abs=0.001)
        assert 0 < recording.lost < 0.1


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp4", "aac"), ("adts", "aac")])
def test_damage_in_the_middle(container, codec):
    """It is skipped, told, and refused by who takes whole recordings only."""
    data = bytearray(encode(container, codec, tone(3, 48_000), 48_000))
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(1).bytes(300)
    recording = read_recording(bytes(data))
    assert 2.7 * SAMPLE_RATE < len(recording.samples) < 3.1 * SAMPLE_RATE and 0.01 < recording.lost < 0.3
    assert peak(recording.samples) == pytest.approx(TONE, abs=1)
    refused(bytes(data), "cut off or damaged: .* only whole recordings are taken here", most_lost=0)
    whole = encode(container, codec, tone(3, 48_000), 48_000)
    assert read_recording(whole, most_lost=0).lost == 0


def test_damage_never_raises_anything_else():
    noise = np.random.default_rng(5)
    for container, codec, rate in [
        ("wav", "pcm_s16le", 16_000),
        ("aiff", "pcm_s16be", 16_000),
        ("flac", "flac", 16_000),
        ("mp3", "libmp3lame", 16_000),
        ("mp4", "aac", 16_000),
        ("ogg", "libopus", 16_000),
        ("webm", "libopus", 16_000),
        ("amr", "libopencore_amrnb", 8_000),
    ]:
        clean = encode(container, codec, tone(0.5, rate), rate)
        for _ in range(30):
            data = bytearray(clean)
            for position in noise.integers(0, len(data), noise.integers(1, 30)):
                data[position] = noise.integers(0, 256)
            gone = noise.integers(0, len(data))
            del data[gone : gone + noise.choice([0, 1, 300])]
            with contextlib.suppress(InvalidRequest):
                part = bytes(data[: noise.integers(1, len(data) + 1)])
                assert np.isfinite(decode_audio(part, Budget(60))).all()


def test_playlists_open_nothing(tmp_path):
    target = tmp_path / "secret.wav"
    target.write_bytes(wav(pcm16(tone(1, SAMPLE_RATE))))
    for text in [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{target}'\n",
        f"ffconcat version 1.0\nfile '{target.name}'\n",
        f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>',
    ]:
        refused(text.encode(), "not an audio file")


def test_duration_limit():
    body = wav(pcm16(tone(5, SAMPLE_RATE)))
    assert len(decode_audio(body, budget=Budget(5))) == 5 * SAMPLE_RATE
    refused(body, "5.0 s long, the limit is 2.5 s", budget=Budget(2.5))
    refused(body, "longer than the limit of 4.5 s", budget=Budget(4.5))
    for container in ("mp3", "flac", "webm"):
        codec = {"mp3": "libmp3lame", "webm": "libopus"}.get(container, container)
        refused(encode(container, codec, tone(5, 48_000), 48_000), r"5\.\d s long, the limit", budget=Budget(2))
    for container, codec, options in [("mp3", "libmp3lame", {"write_xing": "0"}), ("webm", "libopus", {"live": "1"})]:
        refused(encode(container, codec, tone(5, 48_000), 48_000, **options), "longer than", budget=Budget(2))


def test_a_long_file_is_refused_at_once():
    seconds = 2 * 3600
    body = wav(bytes(seconds * 1000), rate=1000, bits=8)  # 2 hours in 7 MB
    refused(body, "7200.0 s long, the limit is 5400 s", budget=Budget(5400))
    # No length in the header: the samples are counted, and not beyond the limit.
    refused(wav(bytes(seconds * 1000), rate=1000, bits=8, size=0), "limit is 5400 s", budget=Budget(5400))
    flac = encode("flac", "flac", np.zeros((1, 20 * 48_000), np.float32), 48_000)
    unknown = bytearray(flac)  # STREAMINFO's 36 bits of total samples, zeroed: length unknown
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    refused(bytes(unknown), "longer than the limit of 3 s", budget=Budget(3))


def test_samples_and_channels_have_a_budget():
    """Told by the header, or counted; one recording leaves the next what it has not used."""
    many = "too long to decode at 192000 Hz with 8 channels; send up to 96000 Hz in mono or stereo"
    refused(wav(bytes(3 * 192_000 * 8), rate=192_000, channels=8, bits=8), many, budget=Budget(5))
    refused(wav(bytes(3 * 192_000 * 8), rate=192_000, channels=8, bits=8, size=0), many, budget=Budget(5))
    studio, budget = wav(bytes(3 * 192_000 * 2), rate=192_000, channels=2, bits=8), Budget(8)
    assert len(decode_audio(studio, budget)) == 3 * SAMPLE_RATE and (budget.seconds, budget.values) == (5, 384_000)
    refused(studio, "too long to decode at 192000 Hz with 2 channels", budget=budget)
    stereo = wav(bytes(2 * 96_000 * 2), rate=96_000, channels=2, bits=8)
    assert len(decode_audio(stereo, budget)) == 2 * SAMPLE_RATE and (budget.seconds, budget.values) == (3, 0)


def test_what_decoding_costs_is_told_by_the_header():
    """And by no file's size."""
    dear = small_and_dear()
    assert len(dear) < 100_000 and likely_values(dear, 30) == 30 * 8 * 655_350
    assert likely_values(dear, 1e9) == len(dear) / 500 * 8 * 655_350
    assert likely_values(wav(bytes(2 * 16_000)), 30) == 16_000
    assert likely_values(wav(bytes(3 * 192_000 * 8), rate=192_000, channels=8, bits=8), 30) == 3 * 192_000 * 8
    assert likely_values(wav(bytes(3 * 192_000 * 8), rate=192_000, channels=8, bits=8), 1) == 192_000 * 8
    spoken = made("webm", "libopus", 48_000, live="1")
    assert likely_values(spoken, 1000) < 100 * 48_000
    assert likely_values(b"no sound", 30) == likely_values(b"", 30) == 0


@pytest.mark.processes
def test_memory_stays_near_the_output():
    """5 minutes of stereo FLAC: 115 MB as float32, 19 MB as the result."""
    script = """if True:
        import resource, numpy as np, io, av
        from step_audio.audio import decode_audio
        file = io.BytesIO()
        with av.open(file, "w", format="flac") as out:
            stream = out.add_stream("flac", rate=48000, layout="stereo")
            for i in range(5 * 60):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.int16), format="s16", layout="stereo")
                frame.sample_rate, frame.pts = 48000, i * 48000
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        data = file.getvalue()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        samples = decode_audio(data)
        print(len(samples), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    samples, kilobytes = out.stdout.split()
    assert int(samples) == 5 * 60 * SAMPLE_RATE
    assert int(kilobytes) < 1.6 * int(samples) * 4 / 1024
    assert out.stderr == ""


@pytest.mark.processes
def test_nothing_is_written_to_stderr():
    """FFmpeg's own log would fill a server's with every client's damaged file."""
    script = """if True:
        import sys
        from step_audio.audio import decode_audio
        from step_audio.errors import InvalidRequest
        for data in sys.argv[1:]:
            try:
                decode_audio(bytes.fromhex(data))
            except InvalidRequest as error:
                print(error)
    """
    flac = encode("flac", "flac", tone(0.1, 48_000), 48_000)
    damaged = [flac[: len(flac) // 2], b"nothing" * 99, wav(b"\0" * 999, tag=0x55)]
    command = [sys.executable, "-c", script, *(data.hex() for data in damaged)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.partition(": ")[0] for line in out.stdout.splitlines()] == ["audio"] * 3 and out.stderr == ""
