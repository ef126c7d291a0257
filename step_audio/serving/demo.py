"""`step-audio demo`: the whole way on one machine, from weights to a streamed answer to a recording."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from step_audio.serving.repository import source
from step_audio.serving.serve import Service
from step_audio.serving.settings import ServeSettings
from step_audio_build.make_tiny import make_tiny
from step_audio_client import Sampling
from step_audio_client.chat import chat

RECORDING = "mmsu_test.wav"
QUESTION = "What do you hear?"


def demo(work_dir: Path, say: Callable[[str], None]) -> int:
    """Ports are free ones, so that a server that is running is left alone. Returns the exit status."""
    checkpoint = work_dir / "tiny"
    make_tiny(checkpoint, dtype="bfloat16", max_position_embeddings=32_768)
    say(f"checkpoint: {checkpoint.name}, random weights in the published layout; its answers are noise")
    grpc, http, metrics = free_ports(3)
    settings = ServeSettings.create(
        checkpoint=checkpoint,
        work_dir=work_dir / "tiny.step-audio",
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
    )
    recording = source("examples") / RECORDING
    with Service(settings, say) as service:
        say(f"asking {QUESTION!r} about examples/{RECORDING}")
        return chat(service.address, [recording], [QUESTION], Sampling(max_tokens=128, seed=1))


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
