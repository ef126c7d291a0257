"""Runs the gateway: in the foreground, or as a process beside another."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvicorn
from fastapi import FastAPI

from step_audio import tracing
from step_audio.errors import SettingsError
from step_audio.tracing import Tracer
from step_audio_client import StepAudioClient
from step_audio_gateway.app import create_app
from step_audio_gateway.connections import Connection, Connections
from step_audio_gateway.middleware import JsonLines
from step_audio_gateway.settings import GatewaySettings
from step_audio_gateway.speech.built_in import BuiltInVoice
from step_audio_gateway.web_sockets import WebSocket

# Seconds. Longer than clients and load balancers keep idle connections (httpx 5, AWS 60): who closes first must be the
# other end, or a request may meet the closing.
KEEP_ALIVE = 75
SHUTDOWN_TIMEOUT = 10  # seconds that answers under way may still take
SEND_BUFFER = 1 << 17  # bytes
MAX_MESSAGE = 16 << 20  # bytes of one of a WebSocket's: OpenAI lets 15 MiB of audio be appended at once
PING_INTERVAL = 20.0  # seconds
PING_TIMEOUT = 20.0  # seconds for a pong; then the client is taken for gone


def serve(settings: GatewaySettings) -> None:
    """Until SIGINT or SIGTERM. Raises SettingsError."""
    asyncio.run(_serve(settings, leave_with_stdin=False))


async def _serve(settings: GatewaySettings, leave_with_stdin: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("step_audio_gateway").setLevel(settings.log_level.upper())
    _raise_descriptor_limit()
    with listen(settings) as listener, closing_tracer() as tracer:
        async with StepAudioClient(settings.triton, tls=settings.tls()) as client:
            server = server_of(settings, client, tracer)
            if leave_with_stdin:
                threading.Thread(target=_leave_at_end_of_stdin, args=[server], daemon=True).start()
            gc.freeze()  # to look through what stays anyway keeps everybody waiting for 50 ms each time
            await server.serve(sockets=[listener])


@contextlib.contextmanager
def closing_tracer() -> Iterator[Tracer | None]:
    tracer = tracing.tracer("step-audio-gateway")
    try:
        yield tracer
    finally:
        if tracer is not None:
            tracer.close()


class GatewayServer(uvicorn.Server):
    """Stops when the answers of realtime sessions have ended, as those of requests."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # nobody else comes meanwhile
        begun, most = time.monotonic(), self.config.timeout_graceful_shutdown or SHUTDOWN_TIMEOUT
        state = cast(FastAPI, self.config.app).state
        await state.sessions.drain(most)
        self.config.timeout_graceful_shutdown = max(1, round(begun + most - time.monotonic()))
        await super().shutdown(sockets)
        if isinstance(state.voice, BuiltInVoice):
            state.voice.close()


def server_of(settings: GatewaySettings, client: StepAudioClient, tracer: Tracer | None = None) -> uvicorn.Server:
    """To be given a listening socket. Raises SettingsError."""
    app = create_app(settings, client, tracer=tracer)
    connections = Connections(settings, app.state.metrics)
    return GatewayServer(
        uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], partial(Connection, connections)),
            ws=cast(type[asyncio.Protocol], partial(WebSocket, connections)),
            ws_max_size=MAX_MESSAGE,
            ws_ping_interval=PING_INTERVAL,
            ws_ping_timeout=PING_TIMEOUT,
            ws_per_message_deflate=False,  # base64 of speech is hardly smaller for it, and a bomb is made of it
            log_config=None,
            log_level="warning",  # the middleware has a line for every request
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
        )
    )


def listen(settings: GatewaySettings) -> socket.socket:
    """The listening socket. Raises SettingsError that names the flag to change."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {settings.port} is in use: choose another with --port") from None
        raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    # Connections inherit it, and asyncio does not set it for a socket that is handed in. Without it a chunk waits for
    # the client's acknowledgement of the one before, which may take 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Inherited, too. The kernel would take megabytes of an answer that its client does not read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return listener


def _raise_descriptor_limit() -> None:
    """To what the system allows: the usual 1024 are fewer than the connections that may be open, and what else is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave_at_end_of_stdin(server: uvicorn.Server) -> None:
    """The other end of the pipe is the parent's, and closed however it dies."""
    sys.stdin.buffer.read()
    server.should_exit = True


if __name__ == "__main__":  # GatewayProcess's: the settings come first, then nothing until the end
    asyncio.run(_serve(GatewaySettings.model_validate_json(sys.stdin.buffer.readline()), leave_with_stdin=True))
