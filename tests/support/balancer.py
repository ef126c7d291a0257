"""A balancer of TCP connections, as simple as one can be: each goes to one server, and stays there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence


async def _through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def balancing(ports: Sequence[int]) -> AsyncIterator[int]:
    """Its port. A connection goes to the next of `ports` that takes it; when one end closes, so does the other."""
    turns = itertools.count()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(turns)
        for i in range(len(ports)):
            with contextlib.suppress(OSError):
                answers, asks = await asyncio.open_connection("127.0.0.1", ports[(first + i) % len(ports)])
                break
        else:
            return await _closed(writer)
        ways = [asyncio.create_task(way) for way in (_through(reader, asks), _through(answers, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await asyncio.gather(_closed(asks), _closed(writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
