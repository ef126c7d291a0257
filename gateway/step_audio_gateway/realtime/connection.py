"""One WebSocket: its client's messages in, events out, until one of the two ends it or its time is up."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect

from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.outbox import Outbox
from step_audio_gateway.realtime.response import event
from step_audio_gateway.realtime.session import Session
from step_audio_gateway.settings import GatewaySettings

log = logging.getLogger("step_audio_gateway")

LAST_WORDS = 5.0  # seconds for what still waits to be sent, before the close


class Close(NamedTuple):
    """RFC 6455's code, and a text for people."""

    code: int
    reason: str


GONE = Close(1000, "the client has left")
EXPIRED = Close(1001, "the session's time is up")
IDLE = Close(1001, "the session was idle")
RESTART = Close(1012, "the server stops: connect again")
FAULT = Close(1011, "internal error")
SLOW = Close(1008, "the client reads too slowly")


class SessionConnection:
    """`stopping`: set when the server stops."""

    def __init__(self, socket: WebSocket, settings: GatewaySettings, stopping: asyncio.Event):
        self.outbox = Outbox()
        self._socket = socket
        self._settings = settings
        self._stopping = stopping
        self._begun = time.monotonic()

    async def run(self, session: Session) -> Close:
        """Why it has ended. The session is closed then."""
        session.open(round(time.time() + self._settings.session_seconds))
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read(session))
        watch = asyncio.create_task(self._watch(session))
        try:
            done, _ = await asyncio.wait((writer, reader, watch), return_when=asyncio.FIRST_COMPLETED)
            close = _why(done.pop())
            reader.cancel()
            if close is RESTART:
                await session.finish()
            await session.close()
            if close not in (GONE, SLOW):
                last = asyncio.create_task(self.outbox.empty())
                await asyncio.wait((last, writer), timeout=LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
                last.cancel()
            return close
        finally:
            for task in (reader, watch, writer):
                task.cancel()
            await asyncio.gather(reader, watch, writer, return_exceptions=True)

    async def _write(self) -> Close:
        try:
            await self.outbox.deliver(self._socket.send_text, self._settings.send_timeout)
        except TimeoutError:
            return SLOW
        except WebSocketDisconnect:
            return GONE

    async def _read(self, session: Session) -> Close:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return GONE
            text = message.get("text")
            if text is None:
                fault = Fault("invalid_json", "messages are text: JSON objects")
                self.outbox.put(event("error", error=fault.body(None)))
                await self.outbox.room()
            else:
                await session.handle(text)

    async def _watch(self, session: Session) -> Close:
        settings = self._settings
        while True:
            left = min(
                self._begun + settings.session_seconds - time.monotonic(),
                settings.session_idle_seconds - session.idle,
            )
            try:
                async with asyncio.timeout(max(0.01, left)):
                    await self._stopping.wait()
                return RESTART
            except TimeoutError:
                pass
            if time.monotonic() >= self._begun + settings.session_seconds:
                said = f"Your session hit the maximum duration of {settings.session_seconds:g} seconds."
                self.outbox.put(event("error", error=Fault("session_expired", said).body(None)))
                return EXPIRED
            if session.idle >= settings.session_idle_seconds:
                said = f"The session was idle for {settings.session_idle_seconds:g} seconds."
                self.outbox.put(event("error", error=Fault("session_idle", said).body(None)))
                return IDLE


def _why(task: asyncio.Task[Close]) -> Close:
    if (error := task.exception()) is not None:
        log.error("fault", exc_info=error)
        return FAULT
    return task.result()
