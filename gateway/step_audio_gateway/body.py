"""A request's body on its way in: not too large, and not too slow."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive

from step_audio_gateway.admission import Admitted
from step_audio_gateway.errors import ApiError
from step_audio_gateway.metrics import Metrics
from step_audio_gateway.settings import GatewaySettings


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most} bytes", code="request_too_large")


class Body:
    """Stands in for `receive`, whose faults are raised within the application, which answers them.

    Time is counted in short pieces, each at most once: what has come while the gateway itself had no time does not
    make its sender slow.
    """

    def __init__(self, receive: Receive, settings: GatewaySettings, admitted: Admitted | None, metrics: Metrics):
        self._receive = receive
        self._settings = settings
        self._admitted = admitted
        self._metrics = metrics
        self._piece = min(1.0, settings.receive_timeout / 4)  # seconds
        self._read = 0
        self._seconds = 0.0
        self._ended = False

    async def receive(self) -> Message:
        """Raises ApiError: 408, 413, 429."""
        if self._ended:  # what is still to come is the connection's end, however late
            return await self._receive()
        message = await self._in_time()
        self._ended = not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)
        if self._admitted is not None:
            self._admitted.received(self._read)
        return message

    async def _in_time(self) -> Message:
        timeout, piece = self._settings.receive_timeout, self._piece
        allowed = timeout + self._read / self._settings.min_receive_rate
        waited = 0.0
        message = asyncio.ensure_future(self._receive())
        try:
            while True:
                begun = time.monotonic()
                done, _ = await asyncio.wait((message,), timeout=piece)
                seconds = min(time.monotonic() - begun, piece)
                waited, self._seconds = waited + seconds, self._seconds + seconds
                if done:
                    return message.result()
                if waited >= timeout or self._seconds >= allowed:
                    self._metrics.refused.labels("slow").inc()
                    said = f"the request's body came too slowly: {self._read} bytes in {self._seconds:.0f} s"
                    raise ApiError(408, said, code="request_timeout", headers={"Connection": "close"})
        finally:
            message.cancel()
