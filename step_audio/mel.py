"""The log-mel spectrogram, and how many frames and tokens a clip becomes.

The lengths of every stage behind the spectrogram are worked out here once; the encoder, the prompt
and the serving limits use these functions.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

from step_audio.arrays import Float32Array, Float64Array, Int32Array
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import InvalidRequest

N_MELS = 128
N_FFT = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
TAIL_PAD = 479  # samples of silence behind a clip, so that its last HOP is never dropped
FRAMES_PER_SECOND = SAMPLE_RATE // HOP  # 100
CONV_STRIDE = 2  # the encoder's second convolution: 20 ms per position
POOL_STRIDE = 2  # the encoder's average pooling: 40 ms
ADAPTOR_STRIDE = 2  # the adaptor's convolution: 80 ms per token
TOKENS_PER_SECOND = FRAMES_PER_SECOND / (CONV_STRIDE * POOL_STRIDE * ADAPTOR_STRIDE)  # 12.5

BLOCK = 512  # frames whose spectrum is computed at once: what stays in a core's cache
BAND = 16  # filters that are applied together

LengthRule = Literal["L", "L-2"]
"""How many of a clip's L frames count as audio.

"L" is what Step-Audio-R1 was evaluated and is served with (StepFun's vLLM fork). "L-2" is the rule
of its Hugging Face code, which leaves the last 20 ms out of attention; it gives one token less for a
quarter of all lengths, and none at all below 321 samples.
"""


def frame_count(n_samples: int) -> int:
    """Mel frames L of a clip of `n_samples`."""
    return (n_samples + TAIL_PAD) // HOP


LEAST_FRAMES = frame_count(1)  # of any clip


def valid_frames(frames: int, rule: LengthRule = "L") -> int:
    """How many of L mel frames count as audio."""
    return frames if rule == "L" else max(frames - 2, 0)


def conv_frames(frames: int) -> int:
    """Positions behind the encoder's two convolutions: the length that attention sees."""
    return -(-frames // CONV_STRIDE)


def pooled_frames(frames: int) -> int:
    """Positions behind the encoder's average pooling, which drops an odd last one."""
    return conv_frames(frames) // POOL_STRIDE


def token_count(frames: int, rule: LengthRule = "L") -> int:
    """Audio tokens, that is `<audio_patch>` positions and embeddings, of a clip of L = `frames` mel frames."""
    return -(-pooled_frames(valid_frames(frames, rule)) // ADAPTOR_STRIDE)


def check_clip(frames: int, n_audio_ctx: int) -> None:
    """Raise InvalidRequest where a clip has more frames than the encoder has positions for."""
    if conv_frames(frames) > n_audio_ctx:
        limit = n_audio_ctx * CONV_STRIDE
        raise InvalidRequest(
            f"an audio clip has {frames / FRAMES_PER_SECOND:.2f} s, "
            f"the encoder takes {limit / FRAMES_PER_SECOND:.2f} s; split the audio into shorter clips",
            "frames",
        )


def log_mel(samples: Float32Array, n_mels: int = N_MELS) -> Float32Array:
    """The log-mel spectrogram of one clip.

    `samples` float32 [n] at 16 kHz, n >= 1. Returns float32 [n_mels, frame_count(n)]. The dynamic range is
    cut 8 decades below this clip's own maximum, so the result belongs to this cut of the audio only.
    """
    if not len(samples):
        raise ValueError("log_mel needs at least one sample")
    from scipy.fft import rfft  # in float32, which numpy's is not before 2; a tenth of a second to import

    padded = np.pad(np.pad(samples, (0, TAIL_PAD)), N_FFT // 2, mode="reflect")
    frames = frame_count(len(samples))
    windows = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:frames]
    mel = np.empty((n_mels, frames), np.float32)
    for begin in range(0, frames, BLOCK):
        span = slice(begin, begin + BLOCK)
        spectrum = rfft(windows[span] * _hann(), overwrite_x=True)
        power = np.square(spectrum.real)  # [frames of the block, N_FFT / 2 + 1]
        power += np.square(spectrum.imag)
        for filters, bins, weights in _filter_bands(n_mels):
            np.matmul(weights, power[:, bins].T, out=mel[filters, span])
    np.maximum(mel, 1e-10, out=mel)
    np.log10(mel, out=mel)
    np.maximum(mel, mel.max() - 8, out=mel)
    mel += 4
    mel /= 4
    return mel


def pad_batch(mels: list[Float32Array], n_mels: int = N_MELS) -> tuple[Float32Array, Int32Array]:
    """Stack clips' spectrograms: float32 [clips, n_mels, max L], zeros behind each clip, and int32 [clips] of L."""
    lengths = np.array([mel.shape[1] for mel in mels], np.int32)
    batch = np.zeros((len(mels), n_mels, lengths.max(initial=0)), np.float32)
    for row, mel in zip(batch, mels, strict=True):
        row[:, : mel.shape[1]] = mel
    return batch, lengths


@cache
def _hann() -> Float32Array:
    """The periodic Hann window, float32 [N_FFT]."""
    window: Float32Array = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    return window


@cache
def _filter_bands(n_mels: int) -> list[tuple[slice, slice, Float32Array]]:
    """The filterbank in parts, each with the bins it looks at: of all 201 a filter sees a few, low ones fewer."""
    whole = _filterbank(n_mels)
    bands = []
    for begin in range(0, n_mels, BAND):
        filters = slice(begin, begin + BAND)
        seen = np.flatnonzero(whole[filters].any(0))
        bins = slice(int(seen[0]), int(seen[-1]) + 1)
        bands.append((filters, bins, np.ascontiguousarray(whole[filters, bins])))
    return bands


@cache
def _filterbank(n_mels: int) -> Float32Array:
    """Slaney's mel filters, each of area 1: float32 [n_mels, N_FFT / 2 + 1].

    To the bit those of librosa 0.11, `filters.mel`, which takes more than a second to import.
    """
    bins = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    edges = _hertz(np.linspace(0.0, _mels(SAMPLE_RATE / 2), n_mels + 2))
    width = np.diff(edges)
    distance = edges[:, None] - bins
    rising, falling = -distance[:-2] / width[:-1, None], distance[2:] / width[1:, None]
    filters: Float32Array = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters


# The scale of Slaney's Auditory Toolbox: linear up to 1000 Hz, logarithmic above.
_HERTZ_PER_MEL = 200.0 / 3
_KNEE_HERTZ = 1000.0
_KNEE_MELS = _KNEE_HERTZ / _HERTZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def _mels(hertz: float) -> float:
    """Of a frequency above the knee."""
    return float(_KNEE_MELS + np.log(hertz / _KNEE_HERTZ) / _LOG_STEP)


def _hertz(mels: Float64Array) -> Float64Array:
    return np.where(mels < _KNEE_MELS, _HERTZ_PER_MEL * mels, _KNEE_HERTZ * np.exp(_LOG_STEP * (mels - _KNEE_MELS)))
