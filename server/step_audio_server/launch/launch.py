"""How a server is started: its command line, its environment, and how it is known again.

`cpu_launch` makes one for a machine without a GPU, `gpu_launch` one for GPUs.
"""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from step_audio import tracing
from step_audio.errors import ArtefactError
from step_audio.settings import children_environment
from step_audio_server.launch.ports import Ports
from step_audio_server.settings import Certificates

# Seconds beyond those that it grants requests until it is killed: 2.51 then trips over its own heap instead of
# leaving, and a large model's memory takes a while to be given back.
KILL_AFTER = 3
KILL_AFTER_ON_GPU = 30

# Of Triton's endpoints, those that nobody needs here: with them a client could end the server, by registering the
# memory that it shares with a stub, or unload a model, or have it write to files.
RESTRICTED = ("shared-memory", "model-repository", "logging", "trace")


KEEPALIVE_MS = 10_000


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
        # One after the other: no slower, since their workers load beside them, and each has more of a busy machine.
        # A model's process that gets no processor for a second while it loads is given up.
        "--model-load-thread-count=1",
        # Requests' objects are not kept for the next ones: each would hold the largest recording that it has seen.
        "--grpc-infer-allocation-pool-size=0",
        # A client whose machine is gone is found out, and its leases end.
        f"--grpc-keepalive-time={KEEPALIVE_MS}",
        f"--grpc-keepalive-timeout={KEEPALIVE_MS // 2}",
        "--grpc-http2-max-pings-without-data=0",
        *restrictions(encrypted=ports.certificates is not None),
        *(() if ports.certificates is None else _tls_flags(ports.certificates)),
    )


def restrictions(encrypted: bool = False) -> tuple[str, ...]:
    """Flags that close what is RESTRICTED to all who do not know a value that is told to nobody.

    `encrypted`: and inference over HTTP, for which Triton has no TLS.
    """
    value = secrets.token_hex(32)
    http = (*RESTRICTED, "inference") if encrypted else RESTRICTED
    return (
        f"--grpc-restricted-protocol={','.join(RESTRICTED)}:closed={value}",
        f"--http-restricted-api={','.join(http)}:closed={value}",
    )


def _tls_flags(files: Certificates) -> tuple[str, ...]:
    own = (f"--grpc-server-cert={files.cert}", f"--grpc-server-key={files.key}")
    if files.root is None:
        return ("--grpc-use-ssl=true", *own)
    return ("--grpc-use-ssl-mutual=true", *own, f"--grpc-root-cert={files.root}")


def python_environment() -> dict[str, str]:
    """Ours without settings and what would lead the stub's interpreter astray, this interpreter the first on PATH.

    Raises ModuleNotFoundError where traces are on, and the models could not send theirs.
    """
    tracing.check()
    bin_folder = Path(sys.executable).parent
    if not (bin_folder / "python3").exists():
        raise ArtefactError(f"{bin_folder} has no python3: run step-audio from a virtual environment")
    environment = {key: value for key, value in children_environment().items() if not key.startswith("PYTHON")}
    return environment | {"PATH": f"{bin_folder}:{environment.get('PATH', '/usr/bin:/bin')}"}
