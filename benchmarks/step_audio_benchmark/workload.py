"""What a benchmark asks: recordings of given lengths, a text, and answers of a fixed number of tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.audio import decode_audio, encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import StepAudioError
from step_audio_client import Sampling

GAIN = (0.5, 1.0)  # clips differ in loudness, so that no two have the same content


@dataclass(frozen=True)
class Question:
    """One request. `audio`: a WAV file, None without a recording."""

    text: str
    audio: bytes | None
    audio_seconds: float
    seed: int


@dataclass(frozen=True)
class Workload:
    """Question n is a function of these and n alone, so that every target is asked the same.

    clip_seconds: drawn from, each as often as it is there; empty: text only. distinct: how many different questions
    there are, in turn; 0: no two are alike, so nothing of a prompt is cached.
    """

    recordings: tuple[Path, ...]
    clip_seconds: tuple[float, ...]
    output_tokens: int
    text: str = "What do you hear?"
    distinct: int = 0
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})  # the API's names

    def __post_init__(self) -> None:
        if self.clip_seconds and not self.recordings:
            raise StepAudioError("no recordings to make clips of: give --audio FILE, or --clip-seconds 0")
        if any(seconds <= 0 for seconds in self.clip_seconds):
            raise StepAudioError("the length of a clip must be more than 0 seconds")

    def question(self, n: int) -> Question:
        if self.distinct:
            n %= self.distinct
        chance = random.Random(f"{self.seed} {n}")
        text = f"{self.text} ({n})" if not self.clip_seconds else self.text
        if not self.clip_seconds:
            return Question(text, None, 0.0, n)
        seconds = self.clip_seconds[n % len(self.clip_seconds)]
        source = _speech(self.recordings)
        begin, length = chance.randrange(len(source)), round(seconds * SAMPLE_RATE)
        clip = np.resize(np.roll(source, -begin), length) * np.float32(chance.uniform(*GAIN))
        return Question(text, encode_wav(clip), seconds, n)

    def questions(self, count: int, begin: int = 0) -> list[Question]:
        """Made before the clock runs."""
        return [self.question(begin + n) for n in range(count)]

    def turns(self, count: int) -> int:
        """How far to go on behind `count` questions, for as many new ones with the same lengths."""
        every = len(self.clip_seconds) or 1
        return -(-count // every) * every

    def sampling_of(self, question: Question) -> Sampling:
        """An answer of exactly `output_tokens`: the end is suppressed until then."""
        tokens = self.output_tokens
        return Sampling(**self.sampling, max_tokens=tokens, min_tokens=tokens, seed=question.seed)


@lru_cache(1)
def _speech(recordings: Sequence[Path]) -> Float32Array:
    """All recordings one after the other, float32 [samples] at 16 kHz."""
    return np.concatenate([decode_audio(path.read_bytes(), name=str(path)) for path in recordings])
