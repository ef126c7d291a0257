"""`step-audio demo`: the whole way on one machine, from weights to a spoken question's streamed answer."""

from __future__ import annotations

from pathlib import Path

from step_audio.audio import encode_wav
from step_audio.command_line import Echo
from step_audio.errors import StepAudioError
from step_audio_client import Sampling
from step_audio_client.chat import chat
from step_audio_server.assets import EMBEDDED_MODEL, embedded_checkpoint
from step_audio_server.launch.ports import free_ports
from step_audio_server.serve import Service
from step_audio_server.settings import ServeSettings
from step_audio_training.arithmetic import spell_numbers
from step_audio_training.speech import Voice, speak

QUESTION = "What is 48 plus 34?"  # the numbers and the voice are not in the model's training data
WORK_DIR = Path(".work")  # what is built of the embedded checkpoint goes here
VOICE = Voice(accent="en-us", variant="f3", words_per_minute=157)


def demo(work_dir: Path, question: str, echo: Echo) -> int:
    """Ports are free ones, so that a server that is running is left alone. Returns the exit status.

    Raises StepAudioError.
    """
    recording = work_dir / "question.wav"
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        recording.write_bytes(encode_wav(0.5 * speak(spell_numbers(question), VOICE).samples))
    except ValueError as error:
        raise StepAudioError(f"{error}; ask in plain English words") from None
    checkpoint = embedded_checkpoint()
    grpc, http, metrics = free_ports(3)
    settings = ServeSettings.create(
        checkpoint=checkpoint,
        work_dir=work_dir / f"{EMBEDDED_MODEL}.step-audio",
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
    )
    echo(f"model: {EMBEDDED_MODEL}, trained on espeak-ng's voices; see {checkpoint / 'README.md'} for what it can do")
    with Service(settings, echo) as service:
        echo(f"asking aloud ({recording}): {question}")
        return chat(service.address, [recording], [], Sampling(max_tokens=256, temperature=0))
