"""decode_audio against StepFun's own pipeline, against every container that a client may send, and against damage."""

import contextlib
import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import av
import librosa
import numpy as np
import pytest

from step_audio.audio import CLIP_SAMPLES, SAMPLE_RATE, content_hash, decode_audio, split_clips
from step_audio.errors import InvalidRequest

SHARED = Path(__file__).parents[1].parent / "shared"
TONE = 440  # Hz
SAMPLES = ["big_bench_audio_test", "mmar_test", "mmsu_test", "spoken_mqa_test"]


def tone(seconds, rate, channels=1):
    """[channels, n]: the tone; a second channel has it an octave up at a third of the level."""
    time_axis = np.arange(round(seconds * rate)) / rate
    rows = [0.5 * np.sin(2 * np.pi * TONE * time_axis), 0.15 * np.sin(4 * np.pi * TONE * time_axis)]
    return np.stack(rows[:channels]).astype(np.float32)


def encode(container, codec, samples, rate, target=None, with_video=False, **options):
    """Encode float32 [channels, n] with PyAV. `target`: a path, for muxers that must read their file again."""
    file = target or io.BytesIO()
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(file) if target else file, "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        sample_format = stream.codec_context.codec.audio_formats[0]
        if with_video:
            video = out.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            for i in range(20):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")
                out.mux(video.encode(picture.reformat(format="yuv420p")))
            out.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate, frame_size=size)
        for piece in resampler.resample(frame) + resampler.resample(None):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return Path(target).read_bytes() if target else file.getvalue()


def wav(body, rate=SAMPLE_RATE, channels=1, bits=16, tag=1, size=None, before=b""):
    """A WAV file by hand; `size` is what the data chunk states."""
    step = channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, (rate * step) & 0xFFFFFFFF, step, bits)
    data = struct.pack("<4sI", b"data", len(body) if size is None else size) + body
    riff = len(fmt + before + data) + 4 if size is None else size
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + fmt + before + data


def pcm16(samples):
    """[channels, n] in [-1, 1] to interleaved bytes."""
    return np.round(samples.T * 32767).astype("<i2").tobytes()


def peak(samples):
    """The strongest frequency, Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * SAMPLE_RATE / len(samples)


def refused(data, match, **kwargs):
    with pytest.raises(InvalidRequest, match=match) as caught:
        decode_audio(data, name="audio[2]", **kwargs)
    text = str(caught.value)
    assert text.startswith("audio[2]: ") and "\n" not in text and "/" not in text, text


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_samples(name):
    file = SHARED / "samples" / f"{name}.wav"
    if not file.exists():
        pytest.skip("no shared samples")
    expected = json.loads((SHARED / "golden" / "golden.json").read_text())[name]
    golden = np.load(SHARED / "golden" / "golden.npz")[f"{name}.pcm16k"]
    samples = decode_audio(file.read_bytes())
    assert samples.dtype == np.float32 and samples.ndim == 1
    clip = split_clips(samples)[0]
    assert len(clip) == expected["samples"]
    # Zero but for the MP3, where two decoders round differently.
    np.testing.assert_allclose(clip, golden, rtol=0, atol=2e-6)


FORMATS = [  # container, encoder, rate, muxer's options, tolerated difference in length in seconds
    ("wav", "pcm_u8", 16_000, {}, 0),
    ("wav", "pcm_s16le", 44_100, {}, 0),
    ("wav", "pcm_s24le", 48_000, {}, 0),
    ("wav", "pcm_s32le", 8_000, {}, 0),
    ("wav", "pcm_f32le", 22_050, {}, 0),
    ("wav", "pcm_f64le", 96_000, {}, 0),
    ("wav", "pcm_mulaw", 8_000, {}, 0),
    ("aiff", "pcm_s16be", 44_100, {}, 0),
    ("flac", "flac", 44_100, {}, 0),
    ("mp3", "libmp3lame", 44_100, {}, 0),
    ("mp3", "libmp3lame", 24_000, {"write_xing": "0"}, 0.15),
    ("ogg", "libopus", 48_000, {}, 0.01),
    ("ogg", "flac", 32_000, {}, 0),
    ("mp4", "aac", 44_100, {}, 0.1),
    ("mp4", "aac", 48_000, {"movflags": "frag_keyframe+empty_moov"}, 0.1),
    ("mp4", "alac", 44_100, {}, 0),
    ("adts", "aac", 44_100, {}, 0.1),
    ("webm", "libopus", 48_000, {}, 0.01),
    ("webm", "libopus", 48_000, {"live": "1"}, 0.01),  # what a browser's MediaRecorder writes: no duration
    ("amr", "libopencore_amrnb", 8_000, {}, 0.05),
]


@pytest.mark.parametrize(("container", "codec", "rate", "options", "slack"), FORMATS)
def test_every_format(container, codec, rate, options, slack):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    samples = decode_audio(encode(container, codec, tone(2, rate), rate, **options), max_seconds=3)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 2 * SAMPLE_RATE) <= slack * SAMPLE_RATE
    assert peak(samples) == pytest.approx(TONE, abs=1)
    # Not the maximum: FFmpeg's AAC encoder lets a steady tone swell for a frame or two.
    assert np.percentile(np.abs(samples[8_000:24_000]), 95) == pytest.approx(0.5, abs=0.1)


def test_ogg_vorbis():
    if "vorbis" not in av.codecs_available:
        pytest.skip("this PyAV has no vorbis")
    file = io.BytesIO()
    samples = tone(2, 44_100, channels=2)  # FFmpeg's own encoder takes stereo only, and only when told so
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("vorbis", rate=44_100, layout="stereo", options={"strict": "-2"})
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44_100, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    decoded = decode_audio(file.getvalue())
    assert abs(len(decoded) - 2 * SAMPLE_RATE) < 0.05 * SAMPLE_RATE
    assert peak(decoded) == pytest.approx(TONE, abs=1)


@pytest.mark.parametrize(("bits", "tag", "kind"), [(16, 1, "<i2"), (32, 1, "<i4"), (32, 3, "<f4"), (64, 3, "<f8")])
def test_pcm_is_exact(bits, tag, kind):
    source = tone(1, SAMPLE_RATE)[0].astype(np.float64)
    scale = 1 if tag == 3 else 2 ** (bits - 1)
    stored = (source * scale).astype(kind)
    expected = (stored.astype(np.float64) / scale).astype(np.float32)
    np.testing.assert_array_equal(decode_audio(wav(stored.tobytes(), bits=bits, tag=tag)), expected)


def test_pcm_8_and_24_bits_are_exact():
    np.testing.assert_array_equal(
        decode_audio(wav(bytes([0, 64, 128, 255] * 100), bits=8))[:4], np.float32([-1, -0.5, 0, 127 / 128])
    )
    body = b"".join(int(v).to_bytes(3, "little", signed=True) for v in [-(2**23), 0, 2**22, 2**23 - 1] * 100)
    expected = np.float32([-1, 0, 0.5, (2**23 - 1) / 2**23])
    np.testing.assert_array_equal(decode_audio(wav(body, bits=24))[:4], expected)


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("mp3", "libmp3lame")])
def test_stereo_is_the_channels_mean(container, codec):
    both = tone(1, SAMPLE_RATE, channels=2)
    decoded = decode_audio(encode(container, codec, both, SAMPLE_RATE))
    np.testing.assert_allclose(decoded, both.mean(axis=0), atol=1e-4 if container == "wav" else 2e-2)


def test_float_samples_are_not_clipped():
    loud = np.float32([3.5, -2.25] * 500)
    np.testing.assert_array_equal(decode_audio(wav(loud.tobytes(), bits=32, tag=3)), loud)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("n", [1, 7, 1000, 70_001, 200_003])
def test_resampling_equals_the_reference(rate, n):
    """The stream of blocks gives what librosa gives for the whole, its length included."""
    source = np.random.default_rng(n).standard_normal(n).astype(np.float32) * 0.1
    expected = librosa.resample(source, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    decoded = decode_audio(wav(source.tobytes(), rate=rate, bits=32, tag=3))
    assert len(decoded) == len(expected)
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("missing", [1, 1000, 20_000])
def test_wav_cut_off(missing):
    refused(wav(pcm16(tone(1, SAMPLE_RATE)))[:-missing], "cut off")


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
    """Discontinuous Opus in WebM: packets are missing, the header's duration counts them."""
    file, full = io.BytesIO(), io.BytesIO(encode("webm", "libopus", tone(3, 48_000), 48_000))
    with av.open(full) as source, av.open(file, "w", format="webm") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None and not 1 < packet.pts * packet.time_base < 2:
                packet.stream = stream
                out.mux(packet)
    assert abs(len(decode_audio(file.getvalue())) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE


def test_ogg_that_lacks_a_page_in_its_middle():
    data = bytearray(encode("ogg", "libopus", tone(5, 48_000), 48_000))
    data[len(data) // 2] ^= 0xFF  # the page's checksum fails, FFmpeg skips the page
    refused(bytes(data), "cut off or damaged")


def test_flac_and_alac_that_lack_their_end(tmp_path):
    flac = encode("flac", "flac", tone(3, 48_000), 48_000)
    refused(flac[:-5], "damaged or cut off")
    alac = encode("mp4", "alac", tone(3, 48_000), 48_000, target=tmp_path / "tone", movflags="faststart")
    refused(alac[:-5], "cut off")


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp4", "aac"), ("adts", "aac")])
def test_damage_in_the_middle(container, codec):
    data = bytearray(encode(container, codec, tone(3, 48_000), 48_000))
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(1).bytes(300)
    refused(bytes(data), "damaged")


def test_damage_never_raises_anything_else():
    noise = np.random.default_rng(5)
    source = tone(0.5, 16_000)
    for container, codec in [
        ("wav", "pcm_s16le"),
        ("aiff", "pcm_s16be"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("mp4", "aac"),
        ("ogg", "libopus"),
        ("webm", "libopus"),
    ]:
        clean = encode(container, codec, source, 16_000)
        for _ in range(30):
            data = bytearray(clean)
            for position in noise.integers(0, len(data), noise.integers(1, 30)):
                data[position] = noise.integers(0, 256)
            with contextlib.suppress(InvalidRequest):
                assert np.isfinite(decode_audio(bytes(data[: noise.integers(1, len(data) + 1)]), max_seconds=60)).all()


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
    assert len(decode_audio(body, max_seconds=5)) == 5 * SAMPLE_RATE
    refused(body, "5.0 s long, the limit is 2.5 s", max_seconds=2.5)
    refused(body, "longer than the limit of 4.5 s", max_seconds=4.5)
    for container in ("mp3", "flac", "webm"):
        codec = {"mp3": "libmp3lame", "webm": "libopus"}.get(container, container)
        refused(encode(container, codec, tone(5, 48_000), 48_000), r"5\.\d s long, the limit", max_seconds=2)
    for container, codec, options in [("mp3", "libmp3lame", {"write_xing": "0"}), ("webm", "libopus", {"live": "1"})]:
        refused(encode(container, codec, tone(5, 48_000), 48_000, **options), "longer than", max_seconds=2)


def test_a_long_file_is_refused_at_once():
    seconds = 10 * 3600
    body = wav(bytes(seconds * 1000), rate=1000, bits=8)  # 10 hours in 36 MB
    refused(body, "36000.0 s long, the limit is 5400 s", max_seconds=5400)
    # No length in the header: the samples are counted, and not beyond the limit.
    refused(wav(bytes(seconds * 1000), rate=1000, bits=8, size=0), "limit is 5400 s", max_seconds=5400)
    flac = encode("flac", "flac", np.zeros((1, 100 * 48_000), np.float32), 48_000)
    unknown = bytearray(flac)  # STREAMINFO's 36 bits of total samples, zeroed: length unknown
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    refused(bytes(unknown), "longer than the limit of 3 s", max_seconds=3)


def test_memory_stays_near_the_output():
    """30 minutes of stereo FLAC: 690 MB as float32, 115 MB as the result."""
    script = """if True:
        import resource, numpy as np, io, av
        from step_audio.audio import decode_audio
        file = io.BytesIO()
        with av.open(file, "w", format="flac") as out:
            stream = out.add_stream("flac", rate=48000, layout="stereo")
            for i in range(30 * 60):
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
    assert int(samples) == 30 * 60 * SAMPLE_RATE
    assert int(kilobytes) < 1.6 * int(samples) * 4 / 1024
    assert out.stderr == ""


def test_nothing_is_written_to_stderr():
    """FFmpeg's own log would fill a server's with every client's damaged file."""
    script = """if True:
        import sys
        from step_audio.audio import decode_audio
        from step_audio.errors import InvalidRequest
        try:
            decode_audio(sys.stdin.buffer.read())
        except InvalidRequest as error:
            print(error)
    """
    flac = encode("flac", "flac", tone(1, 48_000), 48_000)
    for data in [flac[: len(flac) // 2], b"nothing" * 99, wav(b"\0" * 999, tag=0x55)]:
        out = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
        assert out.stdout.startswith(b"audio: ") and out.stderr == b""


def test_split_clips():
    assert CLIP_SAMPLES == 400_000
    rng = np.random.default_rng(3)
    for _ in range(300):
        size = int(rng.integers(1, 50))
        samples = rng.standard_normal(int(rng.integers(0, 400))).astype(np.float32)
        clips = split_clips(samples, size)
        assert all(len(clip) == size for clip in clips[:-1]) and all(0 < len(clip) <= size for clip in clips)
        np.testing.assert_array_equal(np.concatenate([*clips, np.empty(0, np.float32)]), samples)
        assert all(np.shares_memory(clip, samples) for clip in clips)
    assert [len(clip) for clip in split_clips(np.zeros(2 * CLIP_SAMPLES, np.float32))] == [CLIP_SAMPLES] * 2
    assert [len(clip) for clip in split_clips(np.zeros(CLIP_SAMPLES + 1, np.float32))] == [CLIP_SAMPLES, 1]


def test_content_hash():
    rng = np.random.default_rng(4)
    clips = [rng.standard_normal(100).astype(np.float32) for _ in range(50)]
    hashes = [content_hash(clip) for clip in clips]
    assert len(set(hashes)) == 50 and all(0 < value < 2**63 for value in hashes)
    # From `printf '\\x00\\x00\\x00\\x3f\\x00\\x00\\x80\\xbf' | sha256sum`: stable over machines and versions.
    assert content_hash(np.float32([0.5, -1])) == int.from_bytes(bytes.fromhex("031a5e93e726630d"), "little") >> 1
    assert content_hash(np.repeat(clips[0], 2)[::2]) == hashes[0]  # the samples count, not their layout
    assert content_hash(clips[0][:-1]) != hashes[0]
