"""The servers behind one client: one gRPC channel each, taken in turns.

gRPC keeps the connections: it opens them, tries again when they break, and knows which of them stand; a server that
cannot be reached is left out until it can. The turns are taken here and not by gRPC's `round_robin` policy, which
picks a server for every call and does not say which: `stop` must reach the server that runs the request, and the
second part of an answer the one that holds the first part's KV cache. (gRPC's health protocol adds nothing:
tritonserver does not have its `Watch` method, and gRPC then takes the connection for health, as is done here.)
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from step_audio_client import calls, wire
from step_audio_client.tls import Tls

_ORDER = {  # the best first
    grpc.ChannelConnectivity.READY: 0,
    grpc.ChannelConnectivity.IDLE: 1,
    grpc.ChannelConnectivity.CONNECTING: 1,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE: 2,
    grpc.ChannelConnectivity.SHUTDOWN: 2,
}


@dataclass(frozen=True)
class Death:
    """Of the server of that address, noticed at `began`, by time.monotonic()."""

    address: str
    began: float


class Server:
    """One address. It must stand for one server: behind a balancer a `stop` would reach another."""

    def __init__(self, address: str, tls: Tls | None):
        self.address = address
        self.channel = wire.channel(address, tls)
        self.stub = wire.Stub(self.channel)
        self.seen = False  # it has answered, at some time
        self.reached = -math.inf  # when it was last seen to be connected
        self._death = Death(address, -math.inf)  # the last one
        self._dead_until = -math.inf  # what is asked before then meets that one; no end while the server tells of it

    def renewed(self, begun: float) -> None:
        """What was asked at `begun`, by time.monotonic(), is answered, or the server is not there: if it told of its
        death until now, it does so no longer."""
        if self._dead_until == math.inf and begun > self._death.began:
            self._dead_until = time.monotonic()

    def lost(self, begun: float, stands: bool) -> Death | None:
        """The death that met what was asked at `begun`; None where that death had been noticed before.

        `stands`: the server is there, and says it of one of its processes, to everybody, until it is started anew.
        """
        now = time.monotonic()
        if begun >= self._dead_until:
            self._death = Death(self.address, now)
        self._dead_until = math.inf if stands else now
        return self._death if begun <= self._death.began else None

    async def close(self) -> None:
        """When the calls under way have ended."""
        await calls.ended(self.stub)
        await self.channel.close()

    def rank(self) -> int:
        """How likely a call succeeds, 0 the most; makes an idle connection open."""
        return _ORDER[self.channel.get_state(try_to_connect=True)]


class Servers:
    """`addresses`: `host:port` or `grpcs://host:port`, several of them with commas between or in a sequence."""

    def __init__(self, addresses: str | Sequence[str], tls: Tls | None = None):
        text = addresses if isinstance(addresses, str) else ",".join(addresses)
        names = [name for name in re.split(r"[,\s]+", text) if name]
        if not names:
            raise ValueError("a client needs the address of a server, such as 127.0.0.1:8001")
        self.all = [Server(name, tls) for name in dict.fromkeys(names)]
        self._turn = 0

    def route(self, first: str | None = None) -> list[Server]:
        """All of them in the order to try them: that of the address `first`, else whose turn it is; those out of reach
        last."""
        turn = next((i for i, server in enumerate(self.all) if server.address == first), self._turn % len(self.all))
        if first is None:
            self._turn += 1
        return sorted(self.all[turn:] + self.all[:turn], key=Server.rank)

    def expected(self, seconds: float) -> int:
        """How many are in reach, or were so within `seconds`: those that are being restarted count on."""
        now, ranks = time.monotonic(), [server.rank() for server in self.all]
        for server, rank in zip(self.all, ranks, strict=True):
            if rank == 0:
                server.reached = now
        return sum(
            rank < max(_ORDER.values()) or now - server.reached <= seconds
            for server, rank in zip(self.all, ranks, strict=True)
        )

    async def close(self) -> None:
        """When what is under way has ended."""
        await asyncio.gather(*(server.close() for server in self.all))
