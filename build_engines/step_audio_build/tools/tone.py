"""The sound that engines are compared on: like speech in pitch and pauses, and the same on every machine."""

from __future__ import annotations

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE


def gliding_tone(seconds: float, seed: int) -> Float32Array:
    """A broken tone of gliding pitch with its harmonics, and a little noise: float32 [n] at 16 kHz."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(140 + 60 * np.sin(1.7 * t + seed)) / SAMPLE_RATE
    voice = np.sum([np.sin(k * phase) / k for k in range(1, 9)], axis=0) * (np.sin(9 * t) > -0.5)
    noise = np.random.default_rng(seed).standard_normal(len(t))
    tone: Float32Array = (0.1 * voice + 0.003 * noise).astype(np.float32)
    return tone
