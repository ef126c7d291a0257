"""When somebody has begun to speak, and has ended: from one probability of speech for each frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio_gateway.realtime.formats import Int16Array, SampleFormat

FRAME = 512  # samples at 16 kHz, the only length that the detector takes
FRAME_MS = 1000 * FRAME / SAMPLE_RATE
LEAST_SPEECH = 4  # frames in a row: a click or a short cough is no turn
HYSTERESIS = 0.15  # below the threshold speech goes on, as Silero's own iterator has it


class Frames:
    """A stream of samples to frames of 16 kHz, float32 [FRAME], -1 to 1."""

    def __init__(self, format: SampleFormat):
        rate = format.rate
        self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None
        self._rest: Float32Array = np.zeros(0, np.float32)

    def push(self, samples: Int16Array) -> Iterator[Float32Array]:
        values = samples.astype(np.float32) / 32768
        if self._resampler is not None:
            values = self._resampler.resample_chunk(values)
        values = np.concatenate([self._rest, values])
        whole = len(values) // FRAME * FRAME
        self._rest = values[whole:]
        yield from values[:whole].reshape(-1, FRAME)


@dataclass(frozen=True)
class Turn:
    """At `position`, ms of all audio that was looked at, speech has `started`, `paused` or `stopped`.

    A pause is half of the silence that ends a turn. `heard`: ms up to which what has stopped is heard: where it paused.
    """

    what: Literal["started", "paused", "stopped"]
    position: float
    heard: float | None = None


class TurnDetector:
    """One stream's. `threshold`: probability from which on a frame is speech; `silence`: ms of it that end a turn.

    What has started is told after LEAST_SPEECH frames, with the position of the first. `begin`: the position of the
    first frame.
    """

    def __init__(self, threshold: float, silence: float, begin: float = 0.0):
        self.threshold = threshold
        self.silence = silence
        self.speaking = False
        self.position = begin
        self._paused: float | None = None  # where; None within speech, and before it
        self._run = 0  # frames of speech in a row before a turn, of silence within it

    def push(self, probability: float) -> Turn | None:
        """Of the next frame."""
        self.position += FRAME_MS
        if not self.speaking:
            self._run = self._run + 1 if probability >= self.threshold else 0
            if self._run < LEAST_SPEECH:
                return None
            self.speaking, self._run, self._paused = True, 0, None
            return Turn("started", self.position - LEAST_SPEECH * FRAME_MS)
        self._run = self._run + 1 if probability < self.threshold - HYSTERESIS else 0
        silent = self._run * FRAME_MS
        if not silent:
            self._paused = None
        elif self._paused is None and silent >= self.silence / 2:
            self._paused = self.position
            if silent < self.silence:
                return Turn("paused", self._paused)
        if self._paused is None or silent < self.silence:
            return None
        self.speaking, self._run = False, 0
        return Turn("stopped", self.position, self._paused)
