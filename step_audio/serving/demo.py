"""`step-audio demo`: the whole way on one machine, from weights to a spoken question's streamed answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import soundfile

from step_audio.audio import SAMPLE_RATE
from step_audio.errors import StepAudioError
from step_audio.serving.repository import source
from step_audio.serving.serve import Service
from step_audio.serving.settings import ServeSettings
from step_audio_client import Sampling
from step_audio_client.chat import chat
from step_audio_training.arithmetic import spell_numbers
from step_audio_training.speech import Voice, speak

MODEL = "espeak-listener-10m"
QUESTION = "What is 48 plus 34?"  # the numbers and the voice are not in the model's training data
WORK_DIR = Path(".work")  # what is built of the embedded checkpoint goes here
VOICE = Voice(accent="en-us", variant="f3", words_per_minute=157)


def embedded_checkpoint() -> Path:
    """The small trained model that comes with the source tree. Raises ArtefactError without one."""
    return source("models") / MODEL


def demo(work_dir: Path, question: str, say: Callable[[str], None]) -> int:
    """Ports are free ones, so that a server that is running is left alone. Returns the exit status.

    Raises StepAudioError.
    """
    recording = work_dir / "question.wav"
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        soundfile.write(recording, 0.5 * speak(spell_numbers(question), VOICE).samples, SAMPLE_RATE)
    except ValueError as error:
        raise StepAudioError(f"{error}; ask in plain English words") from None
    grpc, http, metrics = free_ports(3)
    settings = ServeSettings.create(
        checkpoint=embedded_checkpoint(),
        work_dir=work_dir / f"{MODEL}.step-audio",
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
    )
    say(f"model: {MODEL}, trained on espeak-ng's voices; see models/{MODEL}/README.md for what it can do")
    with Service(settings, say) as service:
        say(f"asking aloud ({recording}): {question}")
        return chat(service.address, [recording], [], Sampling(max_tokens=256, temperature=0))


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
