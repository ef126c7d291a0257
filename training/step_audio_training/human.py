"""Sums in a human voice, for evaluation only: the words and numbers of Debian's `asterisk-core-sounds-en-g722`.

Spoken by Allison Smith; each word by itself, put together as telephone announcements are.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import av
import numpy as np

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio_training.arithmetic import ONES, TENS, Sum, draw_sum
from step_audio_training.recordings import DrawnRecording

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
_FILES = {word: f"digits/{n}" for n, word in enumerate(ONES)} | {
    word: f"digits/{10 * n}" for n, word in enumerate(TENS) if word
}
_FILES |= {"plus": "letters/plus", "minus": "digits/minus", "hundred": "digits/hundred"}


def available() -> bool:
    return (SOUNDS / "digits/1.g722").is_file()


@cache
def word(text: str) -> Float32Array:
    """One word without silence at its ends, at a root mean square of 0.1. Raises OSError where it is not installed."""
    file = SOUNDS / f"{_FILES[text]}.g722"
    if not file.is_file():
        raise OSError(f"{file} does not exist: install asterisk-core-sounds-en-g722")
    with av.open(str(file), format="g722") as container:
        pieces = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    samples = np.concatenate(pieces).astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[max(loud[0] - 320, 0) : loud[-1] + 320]
    return np.asarray(0.1 * samples / np.sqrt(np.mean(samples**2)), np.float32)


def human_sum(random: np.random.Generator) -> DrawnRecording:
    """A held-out sum with plus and minus, without words around it."""
    while True:
        asked: Sum = draw_sum(random, held_out=True, terms=3 if random.random() < 0.2 else 2)
        if "*" not in asked.signs:
            break
    pieces: list[Float32Array] = []
    for part in asked.spoken.split():
        gap = random.uniform(0.12, 0.25) if part in ("plus", "minus") else random.uniform(0.0, 0.08)
        pieces += [np.zeros(int(gap * SAMPLE_RATE), np.float32), word(part)]
    return DrawnRecording("sum", np.concatenate(pieces[1:]), asked.spoken, sum=asked, source="human")
