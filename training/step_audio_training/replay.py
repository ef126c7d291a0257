"""Recordings that are heard again and again, each time otherwise: what the encoder and the adaptor learn to hear on,
and what adaptor and decoder learn on whose encoder stays as it is.

To say a sentence takes a synthesizer longer than it takes a small encoder to learn of it, and an answer's decoder takes
longer still. Here every recording is drawn by its number and kept for a while, so that a draw depends on nothing but
its seed and its own number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from step_audio.arrays import AnyArray, Float32Array
from step_audio_training.hearing import heard_by
from step_audio_training.recordings import Conditions, DrawnRecording, record
from step_audio_training.scenes import draw_short_scene

NEW = 24  # recordings of a draw that none before it had
KEPT = 5000  # of the latest ones are heard again
FRESH, FRESH_SHARE = 100, 0.3  # so many of the latest make up this share of a draw
TAKES = 4  # of each recording: rooms, channels, noises
CLEAN = 0.4  # of the takes: none of these, and not loud
DICTATED = 0.35  # of the recordings, beyond the kinds' shares
BANDS, MOST_BANDS, MOST_FRAMES = 2, 8, 10  # that are masked: twice some mel bands, once some frames


@dataclass(frozen=True, slots=True)
class Take:
    """`heard`: what was made of it; `before`: seconds of silence in front of what `recording` says."""

    heard: Float32Array
    before: float
    recording: DrawnRecording


class Replay:
    """`Replay(...).draw(n, count)` is the n-th draw, in the order of the recordings' lengths."""

    def __init__(
        self,
        seed: int,
        make: Callable[[Float32Array], Float32Array],
        longest: float,
        clean: float = CLEAN,
        dictated: float = DICTATED,
    ):
        """`make`: of samples what is kept, in 16 bits; `longest`: seconds of a recording; `clean` of the takes are so;
        `dictated`: as for `draw_short_scene`."""
        self.seed, self.make, self.longest, self.clean, self.dictated = seed, make, longest, clean, dictated
        self._said: dict[int, DrawnRecording] = {}
        self._heard: dict[tuple[int, int], tuple[AnyArray, float]] = {}

    def draw(self, n: int, count: int) -> list[Take]:
        random = np.random.default_rng([self.seed, 0, n])
        end = NEW * (n + 1)
        first = max(0, end - KEPT)
        self._forget(first)
        latest = random.random(count) < FRESH_SHARE
        chosen = np.where(
            latest, random.integers(max(first, end - FRESH), end, count), random.integers(first, end, count)
        )
        takes = [self._take(int(number), int(random.integers(TAKES))) for number in chosen]
        return sorted(takes, key=lambda take: take.heard.size)

    def _take(self, number: int, which: int) -> Take:
        if number not in self._said:
            random = np.random.default_rng([self.seed, 2, number])
            self._said[number] = draw_short_scene(random, self.longest, self.dictated)
        said = self._said[number]
        if (number, which) not in self._heard:
            random = np.random.default_rng([self.seed, 1, number, which])
            samples, before = clean(said, random) if random.random() < self.clean else heard_by(said, random)
            self._heard[number, which] = self.make(samples).astype(np.float16), before
        heard, before = self._heard[number, which]
        return Take(heard.astype(np.float32), before, said)

    def _forget(self, first: int) -> None:
        self._said = {number: said for number, said in self._said.items() if number >= first}
        self._heard = {key: heard for key, heard in self._heard.items() if key[0] >= first}


def clean(said: DrawnRecording, random: np.random.Generator) -> tuple[Float32Array, float]:
    """As `heard_by`, with nothing but a little silence around it."""
    before, behind = (float(random.uniform(0.05, 0.3)) for _ in "ab")
    quiet = Conditions("", None, 0.0, float(random.uniform(-30.5, -10.5)), before, behind)
    return record(said, quiet, random), before


def masked(mel: Float32Array, random: np.random.Generator) -> Float32Array:
    """A copy with some bands and some frames at its mean (SpecAugment, arXiv:1904.08779, in little)."""
    out, mean = mel.copy(), mel.mean()
    n_mels, frames = mel.shape
    for _ in range(BANDS):
        width = int(random.integers(min(MOST_BANDS, n_mels // 4) + 1))
        start = int(random.integers(n_mels - width + 1))
        out[start : start + width] = mean
    width = int(random.integers(min(MOST_FRAMES, frames // 6) + 1))
    start = int(random.integers(frames - width + 1))
    out[:, start : start + width] = mean
    return out
