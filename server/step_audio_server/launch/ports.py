"""The three ports of a tritonserver."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from step_audio_server.errors import ServerError
from step_audio_server.settings import Certificates

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where one tritonserver listens."""

    grpc: int
    http: int
    metrics: int
    host: str = LOOPBACK  # the address they are opened on
    certificates: Certificates | None = None  # of the gRPC port; None: no TLS

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


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
