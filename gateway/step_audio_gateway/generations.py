"""Several answers at once, for as long as somebody wants them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
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


class Streamed(Response):
    """A body of `pieces`, until the client hangs up. `source`, which they are made of, is closed in any case.

    Starlette's StreamingResponse cancels its generator again and again while that cleans up, and closes nothing
    if it is cancelled before the first piece.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes],
        source: AsyncGenerator[Any],
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._pieces = pieces
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
        async for body in self._pieces:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream(Streamed):
    """Server-sent events: `data: ...` for each of `events`; a pair is an event's name and its data."""

    def __init__(self, events: AsyncGenerator[str] | AsyncGenerator[tuple[str, str]], source: AsyncGenerator[Any]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_framed(events), source, "text/event-stream", headers)


async def _framed(events: AsyncGenerator[str] | AsyncGenerator[tuple[str, str]]) -> AsyncGenerator[bytes]:
    async for event in events:
        name, data = ("", event) if isinstance(event, str) else (f"event: {event[0]}\n", event[1])
        yield f"{name}data: {data}\n\n".encode()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait until it has cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
