"""Events on their way to the client, in their order, without anybody's waiting until too many are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

MOST_WAITING = 256  # events; then answers wait, and so does what the client sends


class Outbox:
    """`put` never waits."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, event: dict[str, Any]) -> None:
        self._queue.put_nowait(event)
        if self._queue.qsize() >= MOST_WAITING:
            self._room.clear()

    async def room(self) -> None:
        """Until the client has read most of what waits."""
        await self._room.wait()

    async def deliver(self, send: Callable[[str], Awaitable[None]], timeout: float) -> NoReturn:
        """Until cancelled. Raises TimeoutError where the client has read nothing for `timeout` seconds."""
        while True:
            event = await self._queue.get()
            async with asyncio.timeout(timeout):
                await send(json.dumps(event))
            self._queue.task_done()
            if self._queue.qsize() < MOST_WAITING // 2:
                self._room.set()

    async def empty(self) -> None:
        """Until all has been sent."""
        await self._queue.join()
