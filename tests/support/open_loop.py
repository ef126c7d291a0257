"""An open loop of requests to a gateway: they come when they come, whatever became of those before."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from dataclasses import dataclass, field

from gateway_calls import CHAT


@dataclass
class Seen:
    """Of one load: seconds to the first token and to the end of what was let in, and to the refusal of what was not."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    others: list[int] = field(default_factory=list)  # statuses that should not be; 0: no reply
    late: list[float] = field(default_factory=list)  # seconds that this side was late itself

    def line(self, name: str) -> str:
        told = (
            f"{name:>8}: {len(self.first):5} let in, first token {quantiles(self.first)}, whole {quantiles(self.whole)}"
        )
        refused = f"{len(self.refused):5} refused, told in {quantiles(self.refused)}; others {self.others}"
        return f"{told}; {refused}" + (f"; asked late by {quantiles(self.late)}" if self.late else "")


def quantiles(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return "/".join(f"{ordered[min(len(ordered) - 1, int(len(ordered) * q))]:.3f}" for q in (0.5, 0.99)) + " s"


async def ask(port: int, seen: Seen, tokens: int, key: str = "") -> int:
    """One streamed request on a connection of its own, as whoever comes first has; read to its end. Its status."""
    body = json.dumps({
        "messages": [{"role": "user", "content": f"question {random.random()}"}],
        "stream": True, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0,
    })  # fmt: skip
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{authorization}Connection: close\r\n"
    start, status = time.monotonic(), 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        status = int((await reader.readline()).split()[1])
        seconds = time.monotonic() - start
        while line := await reader.readline():
            if status == 200 and line.startswith(b"data:"):
                seen.first.append(time.monotonic() - start)
                break
        await reader.read()
        if status == 200:
            seen.whole.append(time.monotonic() - start)
    except ConnectionError:
        status = 0
    finally:
        writer.close()
    if status == 429:
        seen.refused.append(seconds)
    elif status != 200:
        seen.others.append(status)
    return status


async def closed_loop(port: int, width: int, seconds: float, tokens: int) -> float:
    """Answers a second, `width` under way all the time, for `seconds` and until the last has ended."""
    seen, start = Seen(), time.monotonic()

    async def one() -> None:
        while time.monotonic() < start + seconds:
            await ask(port, seen, tokens)

    await asyncio.gather(*(one() for _ in range(width)))
    return len(seen.first) / (time.monotonic() - start)


async def open_loop(port: int, rate: float, seconds: float, tokens: int) -> Seen:
    """`rate` requests a second, at random times."""
    seen, tasks, chance = Seen(), [], random.Random(0)
    gc.collect()
    gc.freeze()  # a test's process has so much in it that looking through it for garbage takes half a second
    start = due = time.monotonic()
    while due < start + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        seen.late.append(time.monotonic() - due)
        tasks.append(asyncio.create_task(ask(port, seen, tokens)))
        due += chance.expovariate(rate)
    await asyncio.gather(*tasks)
    return seen


async def beside(port: int, parallel: int, tokens: int) -> tuple[Seen, Seen]:
    """The key `modest` asks 14 times, one after the other: alone, then beside `parallel` requests of `greedy`."""
    alone, crowded, greedy = Seen(), Seen(), Seen()

    async def insist() -> None:
        while True:
            if await ask(port, greedy, tokens, "greedy") == 429:
                await asyncio.sleep(1)  # as Retry-After says

    for _ in range(14):
        await ask(port, alone, tokens, "modest")
    tasks = [asyncio.create_task(insist()) for _ in range(parallel)]
    await asyncio.sleep(5)
    for _ in range(14):
        await ask(port, crowded, tokens, "modest")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return alone, crowded
