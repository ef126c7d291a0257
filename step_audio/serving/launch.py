"""How a server is started: its command line, its environment, and how it is known again.

On a machine without a GPU that is one `tritonserver` of nvidia-pytriton's wheel; for GPUs see `mpi_launch`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from step_audio.errors import ArtefactError, StepAudioError

if TYPE_CHECKING:
    from step_audio.serving.tritonserver import Installation

LOOPBACK = "127.0.0.1"

# Seconds beyond those that it grants requests until it is killed: 2.51 then trips over its own heap instead of
# leaving, and a large model's memory takes a while to be given back.
KILL_AFTER = 3
KILL_AFTER_ON_GPU = 30


class ServerError(StepAudioError):
    """tritonserver could not be found or started, or it died."""


@dataclass(frozen=True)
class Ports:
    grpc: int
    http: int
    metrics: int
    host: str = LOOPBACK  # the address they are opened on

    @property
    def reached_at(self) -> str:
        """From this machine."""
        return LOOPBACK if self.host == "0.0.0.0" else self.host

    def check_free(self) -> None:
        """Raises ServerError that names the flag to change."""
        if len({self.grpc, self.http, self.metrics}) < 3:
            raise ServerError("--grpc-port, --http-port and --metrics-port must differ")
        for name, port in (("grpc", self.grpc), ("http", self.http), ("metrics", self.metrics)):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    said = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                    raise ServerError(f"port {port} {said}: choose another with --{name}-port") from None


@dataclass(frozen=True)
class Launch:
    """How a server is started, and how its processes and shared memory are known again."""

    command: tuple[str, ...]
    environment: dict[str, str]
    prefix: str  # of its shared memory regions; of a rank under mpirun it goes on with the rank's number and "_"
    drain_timeout: int  # seconds that requests in flight get when it stops; new ones are refused at once
    ranks: int = 1  # more than one: the command is mpirun's, and rank 0 is the one that serves
    on_gpu: bool = False

    @property
    def kill_after(self) -> float:
        return self.drain_timeout + (KILL_AFTER_ON_GPU if self.on_gpu else KILL_AFTER)


def shm_prefix(ports: Ports) -> str:
    """Of no other server on this machine."""
    return f"step_audio_{os.getpid()}_{ports.grpc}_"


def shm_flag(prefix: str) -> str:
    return f"--backend-config=python,shm-region-prefix-name={prefix}"


def serving_flags(ports: Ports, drain_timeout: int) -> tuple[str, ...]:
    return (
        *(f"--{name}-address={ports.host}" for name in ("grpc", "http", "metrics")),
        f"--grpc-port={ports.grpc}",
        f"--http-port={ports.http}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={drain_timeout}",
    )


def python_environment() -> dict[str, str]:
    """Ours, less what would lead the stub's interpreter astray, with this interpreter as the first on PATH."""
    bin_folder = Path(sys.executable).parent
    if not (bin_folder / "python3").exists():
        raise ArtefactError(f"{bin_folder} has no python3: run step-audio from a virtual environment")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return environment | {"PATH": f"{bin_folder}:{environment.get('PATH', '/usr/bin:/bin')}"}


def cpu_launch(
    installation: Installation, repository: Path, backends: Path, ports: Ports, drain_timeout: int
) -> Launch:
    """Raises ArtefactError."""
    prefix = shm_prefix(ports)
    environment = python_environment()
    return Launch(
        command=(
            str(installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            shm_flag(prefix),
            "--disable-auto-complete-config",
            *serving_flags(ports, drain_timeout),
            "--allow-gpu-metrics=false",
        ),
        environment=environment
        | {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "LD_LIBRARY_PATH": ":".join(map(str, installation.libraries)),
        },
        prefix=prefix,
        drain_timeout=drain_timeout,
    )
