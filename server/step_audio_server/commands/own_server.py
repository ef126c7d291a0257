"""The server that a command starts for itself, where it is not told of a running one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from step_audio.command_line import Echo
from step_audio_build.stages.cpu_build import default_work_dir
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.launch.ports import free_ports
from step_audio_server.serve import Service
from step_audio_server.settings import ServeSettings

WORK_DIR = Path(".work")  # what is built of the embedded checkpoint goes here


def own_server(checkpoint: Path | None, work_dir: Path = WORK_DIR) -> ServeSettings:
    """On free ports, so that a server that is running is left alone. None: the small model that comes along, built
    in a folder of `work_dir`."""
    served = checkpoint or embedded_checkpoint()
    built = default_work_dir(served) if checkpoint else work_dir / f"{served.name}.step-audio"
    grpc, http, metrics = free_ports(3)
    return ServeSettings.create(
        checkpoint=served,
        work_dir=built.resolve(),
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
    )


@contextlib.contextmanager
def both_doors(
    settings: ServeSettings, log: IO[bytes], echo: Echo, speech: str | None = None
) -> Iterator[tuple[Service, str]]:
    """A server, and the URL of a gateway before it, which writes into `log`; `speech`: who says its answers aloud, as
    GatewaySettings has it. Raises StepAudioError."""
    with Service(settings, echo) as service:
        (door,) = free_ports(1)
        gateway = GatewayProcess(GatewaySettings.create(triton=[service.address], port=door, speech=speech), log)
        gateway.start()
        try:
            yield service, gateway.url
        finally:
            gateway.stop()
