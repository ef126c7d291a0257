"""Sounds that are not speech, and what a room and a microphone do to speech."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from step_audio.arrays import Float32Array, Float64Array
from step_audio.clips import SAMPLE_RATE

TRAIN_NOISES = ("white", "pink", "hum", "babble", "band", "band")
HELD_OUT_NOISES = ("brown", "fan", "clicks")


_BANK_SECONDS = 40  # of each kind of noise are made once; every noise is a cut out of them


def noise(kind: str, n: int, random: np.random.Generator) -> Float32Array:
    """float32 [n] with a root mean square of about 1; n is at most 40 s."""
    bank = _bank(kind)
    start = random.integers(len(bank) - n + 1)
    return bank[start : start + n]


@cache
def _bank(kind: str) -> Float32Array:
    n, random = _BANK_SECONDS * SAMPLE_RATE, np.random.default_rng(zlib.crc32(kind.encode()))
    match kind:
        case "white":
            samples = random.standard_normal(n)
        case "pink" | "brown":
            samples = _coloured(n, 0.5 if kind == "pink" else 1.0, random)
        case "hum":  # mains and its harmonics, over a little hiss
            t = np.arange(n) / SAMPLE_RATE
            mains = random.choice([50.0, 60.0])
            samples = 0.15 * random.standard_normal(n)
            for k in range(1, 7):
                samples += np.sin(2 * np.pi * k * mains * t + random.uniform(0, 2 * np.pi)) / k
        case "babble":  # the rhythm and the spectrum of many voices
            samples = np.zeros(n)
            for _ in range(6):
                swell = np.interp(np.arange(n), np.linspace(0, n, max(n // 2400, 2)), random.random(max(n // 2400, 2)))
                samples += swell**2 * _band(_coloured(n, 0.5, random), random.uniform(150, 400), 3400)
        case "band":  # every two seconds another band of noise, steady or swelling
            pieces = []
            for _ in range(_BANK_SECONDS // 2):
                low = 10 ** random.uniform(1.7, 3.5)
                piece = _band(random.standard_normal(2 * SAMPLE_RATE), low, low * 10 ** random.uniform(0.2, 1.5))
                swell = random.uniform(0, 0.8) * np.sin(np.linspace(0, random.uniform(5, 300), len(piece)))
                pieces.append((1 + swell) * piece / (np.sqrt(np.mean(piece**2)) + 1e-9))
            samples = np.concatenate(pieces)
        case "fan":  # broad noise that beats with the blades
            t = np.arange(n) / SAMPLE_RATE
            beat = 1 + 0.5 * np.sin(2 * np.pi * random.uniform(8, 20) * t)
            samples = beat * _band(random.standard_normal(n), 100, random.uniform(1000, 2500))
        case "clicks":  # a keyboard, over a little hiss
            samples = 0.1 * random.standard_normal(n)
            for start in random.integers(0, max(n - 400, 1), max(n // 3200, 1)):
                length = min(400, n - start)
                decay = np.exp(-np.arange(length) / 60) * random.uniform(2, 6)
                samples[start : start + length] += decay * random.standard_normal(length)
        case _:
            raise ValueError(f"no noise of kind {kind}")
    return np.asarray(samples / (np.sqrt(np.mean(samples**2)) + 1e-9), np.float32)


def _coloured(n: int, exponent: float, random: np.random.Generator) -> Float64Array:
    """Noise whose amplitude falls as 1 / f**exponent, flat below 30 Hz."""
    spectrum = np.fft.rfft(random.standard_normal(n))
    frequency = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    coloured: Float64Array = np.fft.irfft(spectrum / np.maximum(frequency, 30) ** exponent, n) * 30**exponent
    return coloured


def _band(samples: Float64Array, low: float, high: float) -> Float64Array:
    spectrum = np.fft.rfft(samples)
    frequency = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    band: Float64Array = np.fft.irfft(spectrum * ((frequency > low) & (frequency < high)), len(samples))
    return band


def reverberate(
    samples: Float32Array, seconds: float, random: np.random.Generator, wet: tuple[float, float] = (0.2, 0.6)
) -> Float32Array:
    """In a room whose sound falls by 60 dB in `seconds`: the direct sound, then a decaying tail; same length.

    `wet`: from how loud to how loud the tail is, the direct sound being 1; it is louder far from the speaker."""
    n = int(seconds * SAMPLE_RATE)
    tail = random.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[: SAMPLE_RATE // 200] = 0  # the first reflection is 5 ms late
    tail *= random.uniform(*wet) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    tail[0] = 1
    from scipy.signal import oaconvolve  # loading it takes a second

    return np.asarray(oaconvolve(samples, tail)[: len(samples)], np.float32)


_OCTAVES = np.log2([62.5, 125, 250, 500, 1000, 2000, 4000, 8000])  # where a response is given


def draw_response(random: np.random.Generator) -> tuple[float, ...]:
    """What a microphone and a room's furniture do to the spectrum: decibels at each of the octaves, wandering."""
    steps = random.normal(0, 3.5, len(_OCTAVES)).cumsum()
    return tuple(float(gain) for gain in steps - steps.mean())


def respond(samples: Float32Array, response: Sequence[float]) -> Float32Array:
    """Through a microphone with this `response`; same length."""
    from scipy.fft import next_fast_len

    n = next_fast_len(len(samples), real=True)
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 1)
    gain = 10 ** (np.interp(np.log2(frequency), _OCTAVES, response) / 20)
    return np.asarray(np.fft.irfft(np.fft.rfft(samples, n) * gain, n)[: len(samples)], np.float32)


def add_noise(samples: Float32Array, kind: str, snr_db: float, random: np.random.Generator) -> Float32Array:
    """`snr_db`: power of the sounding parts of `samples` over the noise's, in decibels."""
    sounding = samples[np.abs(samples) > 0.02 * (np.abs(samples).max() + 1e-9)]
    power = np.mean(sounding**2) if len(sounding) else 1e-4
    return samples + noise(kind, len(samples), random) * np.float32(np.sqrt(power / 10 ** (snr_db / 10)))


def beeps(count: int, random: np.random.Generator) -> tuple[Float32Array, list[tuple[float, float]]]:
    """`count` beeps of one pitch, 0.10 to 0.18 s each with pauses of 0.15 to 0.3 s; and from when to when each is."""
    frequency, length = random.uniform(400, 2000), random.uniform(0.10, 0.18)
    beep = _fade(np.sin(2 * np.pi * frequency * np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE))
    pieces, times, at = [], [], 0
    for k in range(count):
        if k:
            pieces.append(np.zeros(int(random.uniform(0.15, 0.3) * SAMPLE_RATE), np.float32))
            at += len(pieces[-1])
        pieces.append(beep)
        times.append((at / SAMPLE_RATE, (at + len(beep)) / SAMPLE_RATE))
        at += len(beep)
    return 0.4 * np.concatenate(pieces), times


def tone(glide: str, random: np.random.Generator) -> Float32Array:
    """A tone of 0.8 to 1.6 s that is "rising", "falling" (by a factor of 1.5 to 2.5) or "steady"."""
    n = int(random.uniform(0.8, 1.6) * SAMPLE_RATE)
    low = random.uniform(250, 900)
    high = low * random.uniform(1.5, 2.5)
    ends = {"rising": (low, high), "falling": (high, low), "steady": (low, low)}[glide]
    phase = 2 * np.pi * np.cumsum(np.geomspace(*ends, n)) / SAMPLE_RATE
    shape = sum(np.sin(k * phase) / k**2 for k in range(1, random.integers(2, 5)))
    return 0.4 * _fade(shape)


def _fade(samples: Float64Array) -> Float32Array:
    ramp = np.minimum(1, np.minimum(np.arange(len(samples)), np.arange(len(samples))[::-1]) / (0.01 * SAMPLE_RATE))
    return np.asarray(samples * ramp, np.float32)


def fundamental(samples: Float32Array) -> float:
    """The voice's fundamental frequency in Hz, the median over the voiced 40 ms frames; 0 where there is none.

    By autocorrelation between 60 and 400 Hz, for clean speech.
    """
    size, hop = SAMPLE_RATE // 25, SAMPLE_RATE // 25
    if len(samples) < size:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop] * np.hanning(size)
    spectrum = np.abs(np.fft.rfft(frames, 2 * size)) ** 2
    correlation = np.fft.irfft(spectrum)[:, :size]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 2 * size)) ** 2)[:size]
    first, last = SAMPLE_RATE // 400, SAMPLE_RATE // 60
    energy = correlation[:, :1]
    lags = (correlation / (energy + 1e-9) / (window / window[0]))[:, first:last]
    # The shortest lag that is nearly the best: a period, not two of them.
    best = lags.max(axis=1)
    lag = first + np.argmax(lags > 0.93 * best[:, None], axis=1)
    for _ in range(8):  # up the slope, to the peak
        after = np.minimum(lag + 1, last - 1)
        rows = np.arange(len(lag))
        lag = np.where(lags[rows, after - first] > lags[rows, lag - first], after, lag)
    voiced = (best > 0.6) & (energy[:, 0] > 0.05 * energy.max())
    return float(SAMPLE_RATE / np.median(lag[voiced])) if voiced.any() else 0.0
