"""The three ports of a tritonserver."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from step_audio_server.errors import ServerError
from step_audio_server.settings import Certificates

LOOPBACK = "127.0.0.1"
LOWEST = 10_000  # of the ports that are looked through: below, many have a meaning
BLOCK = 64  # ports that a process reserves at once


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
    """Loopback ports that nothing listens on now, each given once in this process's life, and meanwhile to no other.

    So none is taken by another who asks before a server listens on it, or while that is being started again. None of
    those that the system gives out by itself: it would to any connection. Raises ServerError.
    """
    found: list[int] = []
    with _ASKING:
        for port in _RESERVED:
            with socket.socket() as probe, suppress(OSError):
                probe.bind((LOOPBACK, port))
                found.append(port)
            if len(found) == count:
                return found
    raise ServerError(f"no port of {LOOPBACK} is free: end what listens on them")


def _reserve() -> Iterator[int]:
    """Ports block by block, each block held by a name in the network's namespace, which ends with the process."""
    given = _given_out()
    ports = [*range(LOWEST, given.start), *range(max(LOWEST, given.stop), 1 << 16)] or [*range(LOWEST, 1 << 16)]
    blocks = [ports[i : i + BLOCK] for i in range(0, len(ports), BLOCK)]
    SystemRandom().shuffle(blocks)  # not one that several processes have seeded alike
    held: list[socket.socket] = []
    for block in blocks:
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0step-audio-ports-{block[0]}")
        except OSError:  # another process's
            holder.close()
            continue
        held.append(holder)
        yield from block


_ASKING = threading.Lock()
_RESERVED = _reserve()


def _given_out() -> range:
    """The ports that the system takes for connections, and for whoever asks for any."""
    file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first, last = map(int, file.read_text().split()) if file.is_file() else (32_768, 60_999)
    return range(first, last + 1)
