"""The gateway's connections: not too many, and none that its client leaves half said or half read.

uvicorn waits for a request's headers for ever, and for a client that reads no more. A body is timed in `body.py`, where
a fault of it can be answered in full.
"""

from __future__ import annotations

import asyncio
import enum
import json
from typing import Any, Protocol

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from step_audio_gateway.errors import ApiError
from step_audio_gateway.metrics import Metrics
from step_audio_gateway.settings import GatewaySettings


class Phase(enum.Enum):
    """What a connection waits for."""

    HEADERS = "its client has begun a request, or never has"
    REST = "of a body that has been answered already"
    READER = "its client reads nothing"
    END = "it is closed, and its client has not read the rest"
    US = "our turn, or nobody's: uvicorn ends what is idle between requests"


class Looked(Protocol):
    """One that is open."""

    def look(self) -> None:
        """Once a period."""


class Connections:
    """All that are open. Its limits are counted in looks at them, not by the clock: what keeps the gateway itself
    from its work makes no client slow."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics):
        self.settings = settings
        self.metrics = metrics
        self.open: set[Looked] = set()
        self.idle: dict[Connection, None] = {}  # without a request under way, the longest first
        self._period = min(1.0, settings.receive_timeout / 4, settings.send_timeout / 4)  # seconds
        self._timer: asyncio.TimerHandle | None = None

    def looks(self, seconds: float) -> int:
        return round(seconds / self._period)

    def keep(self, connection: Looked) -> None:
        """It is looked at, whatever it waits for."""
        self.open.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._look)

    def add(self, connection: Connection) -> None:
        self.keep(connection)
        self.idle[connection] = None
        if len(self.open) > self.settings.max_connections:
            longest = next(iter(self.idle))
            # What has only just come may have said all, and not been heard yet: it is to get its 429.
            if longest.waited or len(self.open) > 2 * self.settings.max_connections:
                self.metrics.refused.labels("connections").inc()
                (longest if longest.waited else connection).drop()

    def remove(self, connection: Looked) -> None:
        self.open.discard(connection)
        if isinstance(connection, Connection):
            self.idle.pop(connection, None)

    def _look(self) -> None:
        self._timer = None
        for connection in list(self.open):
            connection.look()
        if self.open:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._look)


class Connection(H11Protocol):
    """One of them. Made by uvicorn."""

    def __init__(self, connections: Connections, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._all = connections
        self._phase = Phase.US
        self._looks = 0  # in this phase

    @property
    def waited(self) -> bool:
        """It has been looked at since it became idle."""
        return self._looks > 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._all.idle.pop(self, None)

    def on_response_complete(self) -> None:
        self._all.idle[self] = None
        self._looks = 0
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._all.remove(self)  # another stands in its place
        super().handle_websocket_upgrade(event)

    def look(self) -> None:
        """Once a period."""
        phase = self._now()
        self._looks = self._looks + 1 if phase is self._phase else 1
        self._phase = phase
        settings = self._all.settings
        if phase in (Phase.HEADERS, Phase.REST) and self._looks > self._all.looks(settings.receive_timeout):
            self._all.metrics.refused.labels("slow").inc()
            if phase is Phase.HEADERS and self.conn.trailing_data[0]:
                self._say(ApiError(408, "the request's headers did not come in time", code="request_timeout"))
            self.transport.close()
        elif phase in (Phase.READER, Phase.END) and self._looks > self._all.looks(settings.send_timeout):
            self._all.metrics.refused.labels("slow").inc()
            self.drop()  # the request sees its client gone, and stops its answers

    def drop(self) -> None:
        self._all.remove(self)
        self.transport.abort()

    def _now(self) -> Phase:
        if self.transport.is_closing():
            return Phase.END
        if self.flow.write_paused:
            return Phase.READER
        if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            return Phase.REST
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return Phase.HEADERS
        return Phase.US

    def _say(self, error: ApiError) -> None:
        body = json.dumps(error.body().model_dump()).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=408, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
