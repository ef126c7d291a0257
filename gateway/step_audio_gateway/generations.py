"""Several answers at once, for as long as somebody wants them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from step_audio_client import ChatDelta
from step_audio_gateway.errors import ClientGone

Result = TypeVar("Result")

WAITING = 256  # deltas that are not sent yet; then the answers wait for their reader


async def merged(answers: Sequence[AsyncGenerator[ChatDelta]]) -> AsyncGenerator[tuple[int, ChatDelta]]:
    """Deltas of all answers as they come, each with its answer's index.

    The first answer that fails ends all. Left early or not, every answer is closed when this ends.
    """
    queue: asyncio.Queue[tuple[int, ChatDelta] | asyncio.Task[None]] = asyncio.Queue()
    room = asyncio.Semaphore(WAITING)

    async def pump(index: int, answer: AsyncGenerator[ChatDelta]) -> None:
        async with contextlib.aclosing(answer):
            async for delta in answer:
                await room.acquire()
                queue.put_nowait((index, delta))

    tasks = [asyncio.create_task(pump(i, answer)) for i, answer in enumerate(answers)]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, asyncio.Task):
                item.result()
                running -= 1
            else:
                room.release()
                yield item
    finally:
        await _end(tasks)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up first; then raises ClientGone.

    `receive`: of a request whose body has been read: what is still to come is its end.
    """
    watch = asyncio.create_task(_disconnected(receive))
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((watch, task), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _end((watch, task))


class EventStream(Response):
    """Server-sent events: `data: ...` for each of `events`, until the client hangs up; a pair is an event's name and
    its data. `source`, which the events are made of, is closed in any case.

    Starlette's StreamingResponse cancels its generator again and again while that cleans up, and closes nothing
    if it is cancelled before the first event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str] | AsyncGenerator[tuple[str, str]], source: AsyncGenerator[Any]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except ClientGone:  # too late for another response
            scope["state"]["log"]["error"] = "client_gone"
        finally:
            await self._source.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            name, data = ("", event) if isinstance(event, str) else (f"event: {event[0]}\n", event[1])
            body = f"{name}data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait until it has cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
