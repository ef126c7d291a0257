"""What realtime sessions cost in which nobody speaks: memory of the gateway, and its processor time where they listen.

    python benchmarks/idle_sessions.py [--sessions 50 200] [--seconds 10]

open       connected, and nothing is sent
listening  each gets silence in real time, in pieces of 100 ms, in which the server looks for speech

The small model is served behind the gateway, and not asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
from pathlib import Path

from bench import serving
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import count
from step_audio.markdown import markdown_table
from step_audio_client import RealtimeSession
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.launch.ports import free_ports
from step_audio_server.processes import children, processor_seconds

PIECE = 0.1  # seconds
QUIET = 0.02  # seconds of a processor within one: all that came has been looked at


def memory(pid: int) -> float:
    """Bytes of the process's own."""
    found = re.findall(r"^Private_\w+: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return 1024 * sum(map(int, found))


async def quiet(pid: int) -> float:
    """Processor seconds of the process so far, when it has nothing to do."""
    before = -1.0
    while (now := processor_seconds(pid)) > before + QUIET:
        before = now
        await asyncio.sleep(1)
    return now


async def listen(session: RealtimeSession, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    for _ in range(round(seconds / PIECE)):
        due += PIECE
        await asyncio.sleep(due - loop.time())
        await session.append(bytes(2 * round(PIECE * SAMPLE_RATE)))


async def measured(gateway: GatewayProcess, pid: int, sessions: list[int], seconds: float) -> str:
    rows: list[tuple[str, ...]] = [("sessions", "memory of an open one", "of one that listens", "processor time of it")]
    async with RealtimeSession.connect(gateway.url) as first:  # what all share is loaded
        await listen(first, 1)
    for many in sessions:
        await quiet(pid)
        empty = memory(pid)
        async with contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(RealtimeSession.connect(gateway.url)) for _ in range(many)]
            before, idle = await quiet(pid), memory(pid)
            await asyncio.gather(*(listen(session, seconds) for session in opened))
            taken, hearing = await quiet(pid) - before, memory(pid)
        sizes = (f"{(now - empty) / many / 1000:.0f} kB" for now in (idle, hearing))
        rows.append((str(many), *sizes, f"{taken / many / seconds:.2%} of a core"))
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=count, nargs="+", default=[50, 200], help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="that they listen (default %(default)s)")
    options = parser.parse_args()
    (port,) = free_ports(1)
    with serving(embedded_checkpoint()) as service:
        settings = GatewaySettings.create(port=port, triton=[service.address], max_sessions=max(options.sessions) + 1)
        gateway = GatewayProcess(settings)
        before = children(os.getpid())
        gateway.start()
        try:
            (pid,) = children(os.getpid()) - before
            print(asyncio.run(measured(gateway, pid, options.sessions, options.seconds)))
        finally:
            gateway.stop()


if __name__ == "__main__":
    main()
