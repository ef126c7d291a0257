"""The gateway's WebSockets, among its connections: none that its client leaves half read.

uvicorn waits for ever for a client that reads no more, also when it has closed.
"""

from __future__ import annotations

from asyncio import BaseTransport
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from step_audio_gateway.connections import Connections


class WebSocket(WebSocketsSansIOProtocol):
    """One of them. Made by uvicorn."""

    def __init__(self, connections: Connections, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._all = connections
        self._looks = 0  # in which it was seen to wait for its reader

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._all.keep(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        super().connection_lost(exc)

    def look(self) -> None:
        """Once a period."""
        waits = self.transport.is_closing() or not self.writable.is_set()
        self._looks = self._looks + 1 if waits else 0
        if self._looks > self._all.looks(self._all.settings.send_timeout):
            self._all.metrics.refused.labels("slow").inc()
            self._all.remove(self)
            self.transport.abort()
