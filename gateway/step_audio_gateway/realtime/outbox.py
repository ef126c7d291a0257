"""Events on their way to the client, in their order, without anybody's waiting until too many are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

# Then answers wait, and so does what the client sends.
MOST_WAITING = 256  # events
MOST_CHARACTERS = 4 << 20  # of all of them: a recording that is told is one event


class Outbox:
    """`put` never waits."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._size = 0  # characters of what waits
        self._room = asyncio.Event()
        self._room.set()

    def put(self, event: dict[str, Any]) -> None:
        text = json.dumps(event)
        self._queue.put_nowait(text)
        self._size += len(text)
        if self._queue.qsize() >= MOST_WAITING or self._size >= MOST_CHARACTERS:
            self._room.clear()

    async def room(self) -> None:
        """Until the client has read most of what waits."""
        await self._room.wait()

    async def deliver(self, send: Callable[[str], Awaitable[None]], timeout: float) -> NoReturn:
        """Until cancelled. Raises TimeoutError where the client has read nothing for `timeout` seconds."""
        while True:
            text = await self._queue.get()
            async with asyncio.timeout(timeout):
                await send(text)
            self._queue.task_done()
            self._size -= len(text)
            if self._queue.qsize() < MOST_WAITING // 2 and self._size < MOST_CHARACTERS // 2:
                self._room.set()

    async def empty(self) -> None:
        """Until all has been sent."""
        await self._queue.join()
