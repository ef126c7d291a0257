"""Whether vLLM's engine moves, for the process before it answers on when the engine does not.

What moves makes steps, for whomever. An engine that has work and makes none is asked for a token, and then it moves, or
it hangs. A long prompt is computed in many steps, as is a full batch, and while they go on the token may be late as it
likes. One that has no work is asked now and then alone: after each step vLLM's workers look for the next one for a
second, with all of a core each (`SpinCondition` of vllm/distributed/device_communicators/shm_broadcast.py, 0.32.0).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

PERIOD = 0.5  # seconds between two looks
IDLE = 10.0  # seconds without a step, and without work, after which one is asked for
COUNTED = 2 * PERIOD  # at most, of what has passed since the last look: where all of it was paused, nobody hung


class Pulse:
    """`silent`: seconds in which the engine was to make a step and made none; `quiet`: in which it made none at all."""

    def __init__(self) -> None:
        self.silent = self.quiet = 0.0
        self._progress: object = None

    def look(self, progress: object, passed: float, due: bool) -> None:
        """`progress` differs where a step was made; `passed`: seconds since the last look; `due`: one was wanted."""
        if progress != self._progress:
            self._progress, self.silent, self.quiet = progress, 0.0, 0.0
            return
        self.quiet += min(passed, COUNTED)
        if due:
            self.silent += min(passed, COUNTED)


async def keep(
    pulse: Pulse, progress: Callable[[], object], busy: Callable[[], bool], ask: Callable[[], Awaitable[None]]
) -> None:
    """Looks until it is cancelled. `busy`: whether the engine has work; `ask`: has it make a step, and its error is no
    sign of life."""
    asked: asyncio.Future[None] | None = None
    answers, before = 0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(PERIOD)
            due = asked is not None or busy()
            if asked is not None and asked.done():
                answers += not asked.cancelled() and asked.exception() is None
                asked = None
            now = time.monotonic()
            pulse.look((progress(), answers), now - before, due)
            before = now
            if asked is None and (pulse.silent or pulse.quiet >= IDLE):
                asked = asyncio.ensure_future(ask())
    finally:
        if asked is not None:
            asked.cancel()


def processor_time(leader: int) -> int:
    """Ticks that the other processes of `leader`'s session have had: on a CPU, where one step may last for minutes."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # proc(5)'s, from the state on
            if int(folder.name) != leader and int(fields[3]) == leader:
                ticks += int(fields[11]) + int(fields[12])
    return ticks
