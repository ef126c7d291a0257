"""`step-audio demo`: the whole way on one machine, from weights to a spoken question's streamed answer."""

from __future__ import annotations

from pathlib import Path

from step_audio.arrays import Float32Array
from step_audio.audio import encode_wav
from step_audio.command_line import Echo
from step_audio.errors import StepAudioError
from step_audio_client import Sampling
from step_audio_client.chat import chat
from step_audio_server.commands.own_server import own_server
from step_audio_server.serve import Service
from step_audio_training.arithmetic import spell_numbers
from step_audio_training.speech import Voice, speak
from step_audio_training.voices import Speaker, installed, say

QUESTION = "What is 48 plus 34?"  # the numbers are not in the model's training data
NATURAL = Speaker("hibari", "heart", 1)  # of the extra `voice`
VOICE = Voice(accent="en-us", variant="f3", words_per_minute=157)  # where that is not installed


def demo(work_dir: Path, question: str, echo: Echo) -> int:
    """Ports are free ones, so that a server that is running is left alone. Returns the exit status.

    Raises StepAudioError.
    """
    recording = work_dir / "question.wav"
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        samples = aloud(question)
    except (OSError, ValueError) as error:  # a voice that cannot read it
        raise StepAudioError(f"{error}; ask in plain English words") from None
    recording.write_bytes(encode_wav(0.5 * samples))
    settings = own_server(None, work_dir)
    name, card = settings.checkpoint.name, settings.checkpoint / "README.md"
    echo(f"model: {name}, a small one, trained on synthetic voices; see {card} for what it can do")
    with Service(settings, echo) as service:
        echo(f"asking aloud ({recording}): {question}")
        return chat(service.address, [recording], [], Sampling(max_tokens=256, temperature=0))


def aloud(question: str, natural: bool | None = None) -> Float32Array:
    """float32 [n] at 16 kHz. `natural`: in a neural network's voice; None: where that is installed.

    Raises OSError or ValueError where the voice cannot say it.
    """
    words = spell_numbers(question)
    natural = bool(installed((NATURAL,))) if natural is None else natural
    return say(words, NATURAL) if natural else speak(words, VOICE).samples
