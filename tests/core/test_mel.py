"""log_mel against the golden numbers and against torch; lengths against the table of the reference's own code."""

import numpy as np
import pytest

from lazy import Lazy
from paths import GOLDEN
from step_audio import mel
from step_audio.errors import InvalidRequest

torch = Lazy("torch")
librosa = Lazy("librosa")

# samples at 16 kHz, mel frames L, tokens with rule "L", tokens with rule "L-2"
LENGTHS = [
    (1, 3, 1, 0),
    (160, 3, 1, 0),
    (320, 4, 1, 0),
    (321, 5, 1, 1),
    (800, 7, 1, 1),
    (801, 8, 1, 1),
    (1600, 12, 2, 1),
    (4000, 27, 4, 3),
    (8000, 52, 7, 6),
    (16000, 102, 13, 13),
    (32000, 202, 25, 25),
    (75093, 472, 59, 59),
    (80000, 502, 63, 63),
    (105140, 660, 83, 82),
    (160000, 1002, 125, 125),
    (160118, 1003, 126, 125),
    (222912, 1396, 175, 174),
    (240000, 1502, 188, 188),
    (254491, 1593, 199, 199),
    (400000, 2502, 313, 313),
    (464000, 2902, 363, 363),
    (479680, 3000, 375, 375),
]


def reference(samples, n_mels=128):
    """The same spectrogram by torch's STFT in float64 and Transformers' filterbank."""
    from transformers.audio_utils import mel_filter_bank

    padded = torch.nn.functional.pad(torch.from_numpy(samples).double(), (0, 479))
    window = torch.hann_window(400, dtype=torch.float64)
    stft = torch.stft(padded, 400, 160, 400, window, center=True, pad_mode="reflect", return_complex=True)
    power = stft[..., :-1].abs() ** 2
    filters = mel_filter_bank(201, n_mels, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    log = torch.clamp(torch.from_numpy(filters).T @ power, min=1e-10).log10()
    return ((torch.maximum(log, log.max() - 8) + 4) / 4).numpy()


def noise(n, level=0.1):
    return np.random.default_rng(n).standard_normal(n).astype(np.float32) * np.float32(level)


@pytest.mark.parametrize("name", ["big_bench_audio_test", "mmar_test", "mmsu_test", "spoken_mqa_test"])
def test_golden(name):
    if not GOLDEN.is_dir():
        pytest.skip("no golden numbers")
    golden = np.load(GOLDEN / "golden.npz")
    ours = mel.log_mel(golden[f"{name}.pcm16k"])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, golden[f"{name}.log_mel"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 159, 160, 161, 320, 321, 401, 1600, 16_001, 80_000])
def test_log_mel_equals_torch(n):
    ours = mel.log_mel(noise(n))
    assert ours.shape == (128, mel.frame_count(n)) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference(noise(n)), rtol=0, atol=1e-4)


def test_log_mel_of_speech_like_dynamics_and_other_bands():
    samples = noise(48_000) * np.linspace(0, 1, 48_000, dtype=np.float32) ** 8  # from silence to loud
    np.testing.assert_allclose(mel.log_mel(samples), reference(samples), rtol=0, atol=1e-4)
    np.testing.assert_allclose(mel.log_mel(samples, 80), reference(samples, 80), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bands", [80, 128])
def test_the_filters_are_librosas(bands):
    expected = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=bands)
    np.testing.assert_array_equal(mel._filterbank(bands), expected, strict=True)


def test_log_mel_of_silence_and_of_nothing():
    np.testing.assert_allclose(mel.log_mel(np.zeros(16_000, np.float32)), np.full((128, 102), -1.5), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="at least one sample"):
        mel.log_mel(np.zeros(0, np.float32))


def test_range_is_cut_at_the_clips_own_maximum():
    ours = mel.log_mel(np.concatenate([np.zeros(8_000, np.float32), noise(8_000)]))
    assert ours.max() - ours.min() == pytest.approx(2, abs=1e-6)  # 8 decades, divided by 4


@pytest.mark.parametrize(("n", "frames", "full", "short"), LENGTHS)
def test_lengths(n, frames, full, short):
    assert mel.frame_count(n) == frames
    assert mel.token_count(frames) == mel.token_count(frames, "L") == full
    assert mel.token_count(frames, "L-2") == short


def test_lengths_are_those_of_the_layers():
    """By the output lengths that torch's layers have, and by the formula of the reference's code."""
    conv = torch.nn.Conv1d(1, 1, 3, stride=2, padding=1)
    pool = torch.nn.AvgPool1d(2, 2)
    for frames in range(3, 200):
        after_conv = conv(torch.zeros(1, 1, frames))
        assert mel.conv_frames(frames) == after_conv.shape[-1]
        assert mel.pooled_frames(frames) == pool(after_conv).shape[-1]
        assert mel.token_count(frames) == conv(pool(after_conv)).shape[-1]
        for rule, length in (("L", frames), ("L-2", frames - 2)):
            pooled = (length + 1) // 2 // 2
            assert mel.valid_frames(frames, rule) == length
            assert mel.token_count(frames, rule) == (pooled - 1) // 2 + 1
        differ = mel.token_count(frames) - mel.token_count(frames, "L-2")
        assert differ == (frames % 8 in (3, 4))


def test_check_clip():
    mel.check_clip(3000, 1500)
    with pytest.raises(InvalidRequest, match=r"30\.01 s.* 30\.00 s"):
        mel.check_clip(3001, 1500)


def test_pad_batch():
    mels = [mel.log_mel(noise(n)) for n in (1600, 4000, 1)]
    batch, lengths = mel.pad_batch(mels)
    assert batch.shape == (3, 128, 27) and batch.dtype == np.float32
    assert lengths.tolist() == [12, 27, 3] and lengths.dtype == np.int32
    for row, one in zip(batch, mels, strict=True):
        np.testing.assert_array_equal(row[:, : one.shape[1]], one)
        assert not row[:, one.shape[1] :].any()
    batch, lengths = mel.pad_batch([], n_mels=80)
    assert batch.shape == (0, 80, 0) and batch.dtype == np.float32
    assert lengths.shape == (0,) and lengths.dtype == np.int32
