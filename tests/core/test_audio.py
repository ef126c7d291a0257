"""decode_audio against StepFun's own pipeline, and against every container that a client may send."""

import io
import json

import av
import numpy as np
import pytest

from audio_fixture import TONE, encode, peak, tone, wav
from paths import SHARED
from step_audio.audio import HEADER_SLACK, Budget, decode_audio, encode_wav, read_recording, stated_seconds
from step_audio.audio_file import MOST_CHUNKS, plain_wav
from step_audio.clips import CLIP_SAMPLES, SAMPLE_RATE, content_hash, split_clips
from step_audio.errors import InvalidRequest

SAMPLES = ["big_bench_audio_test", "mmar_test", "mmsu_test", "spoken_mqa_test"]


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


def test_what_is_written_is_read_again():
    samples = np.array([0, 0.5, -0.25, 1, 3, -3], np.float32)
    np.testing.assert_allclose(decode_audio(encode_wav(samples)), [0, 0.5, -0.25, 1, 1, -1], rtol=0, atol=1 / 32767)
    assert len(decode_audio(encode_wav(np.zeros(800, np.float32), rate=8000))) == 1600


@pytest.mark.parametrize("rate", [8_000, SAMPLE_RATE, 44_100])
def test_a_plain_wav_is_read_as_ffmpeg_reads_it(rate):
    body = np.random.default_rng(0).integers(-(2**15), 2**15, 300_000, np.int16).tobytes()
    plain = wav(body, rate=rate, before=b"LIST" + bytes([4, 0, 0, 0]) + b"INFO")
    other = wav(body, rate=rate, before=b"bext" + bytes([4, 0, 0, 0]) + b"unkn")
    assert plain_wav(plain) is not None and plain_wav(other) is None
    np.testing.assert_array_equal(decode_audio(plain), decode_audio(other))
    assert stated_seconds(plain) == pytest.approx(stated_seconds(other)) == 300_000 / rate
    budgets = Budget(99), Budget(99)
    for data, budget in zip((plain, other), budgets, strict=True):
        read_recording(data, budget, channel=0)
        with pytest.raises(InvalidRequest, match="it has 1, counted from 0"):
            read_recording(data, budget, channel=1)
    assert budgets[0] == budgets[1]


def test_a_plain_wav_is_not_looked_for_in_more_chunks_than_any_other():
    """Each costs a look: 100 MB hold 12 million of them."""
    for chunks, found in ((MOST_CHUNKS - 1, True), (MOST_CHUNKS, False)):
        data = wav(bytes(200), before=(b"JUNK" + bytes(4)) * chunks)
        assert (plain_wav(data) is not None) == found


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
    samples = decode_audio(encode(container, codec, tone(2, rate), rate, **options), budget=Budget(3))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 2 * SAMPLE_RATE) <= slack * SAMPLE_RATE
    assert peak(samples) == pytest.approx(TONE, abs=1)
    # Not the maximum: FFmpeg's AAC encoder lets a steady tone swell for a frame or two.
    assert np.percentile(np.abs(samples[8_000:24_000]), 95) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("container", "codec", "rate", "options", "slack"), FORMATS)
def test_what_the_header_states(container, codec, rate, options, slack):
    """The length, or nothing: bare frames and what was streamed do not say it."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    stated = stated_seconds(encode(container, codec, tone(2, rate), rate, **options))
    if container in ("adts", "amr") or options.get("write_xing") == "0" or "live" in options:
        assert stated is None
    else:
        assert stated is not None and 2 <= stated <= 2 + HEADER_SLACK


def test_what_is_no_recording_states_nothing():
    assert [stated_seconds(data) for data in (b"", b"RIFF", b"hello" * 999, wav(b"", bits=16)[:20])] == [None] * 4


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
    import librosa

    expected = librosa.resample(source, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    decoded = decode_audio(wav(source.tobytes(), rate=rate, bits=32, tag=3))
    assert len(decoded) == len(expected)
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-6)


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


def test_more_channels_than_pyav_has_planes_for():
    """Opus of 16 channels, as of a sphere's microphones: channel n is n + 1 times as loud as the first."""
    rate, channels, options = 48_000, 16, {"mapping_family": "255"}
    loudness = np.arange(1, channels + 1, dtype=np.float32) / channels
    rows = tone(1, rate)[0][:, None] * loudness
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=rate, layout="hexadecagonal", options=options)
        stream.codec_context.format = "flt"
        for start in range(0, rate, 960):
            piece = np.ascontiguousarray(rows[start : start + 960].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout="hexadecagonal")
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    loud = [np.abs(read_recording(file.getvalue(), channel=n).samples).max() for n in range(channels)]
    np.testing.assert_allclose(loud, 0.5 * loudness, rtol=0.2)
    assert np.abs(decode_audio(file.getvalue())).max() == pytest.approx(0.5 * loudness.mean(), rel=0.2)
