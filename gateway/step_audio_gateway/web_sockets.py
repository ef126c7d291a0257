"""The gateway's WebSockets, among its connections: none that its client leaves half read, or makes to grow.

uvicorn waits for ever for a client that reads no more, also when it has closed, and keeps what it is sent meanwhile.
"""

from __future__ import annotations

from asyncio import BaseTransport
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from step_audio_gateway.connections import Connections

MOST_FRAGMENTS = 4096  # of a message, which might have any number of empty ones; websockets' own clients take as many


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

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # a pong that would wait behind what is not read, as would any number of them

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MOST_FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # for uvicorn a fault of the server's, with a traceback in its log
                return self._fail(CloseCode.INVALID_DATA, "a text message is UTF-8")
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
        else:  # frames that are none, before there was an answer to the handshake: uvicorn expects a close
            self.transport.abort()

    def look(self) -> None:
        """Once a period."""
        waits = self.transport.is_closing() or not self.writable.is_set()
        self._looks = self._looks + 1 if waits else 0
        # A session has ended after half of it: who reads on then is told why.
        if self._looks > 2 * self._all.looks(self._all.settings.send_timeout):
            self._all.metrics.refused.labels("slow").inc()
            self._all.remove(self)
            self.transport.abort()

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Closes it, once: more of the same may have come with it."""
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()
