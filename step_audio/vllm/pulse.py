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
WORKED = 50_000_000  # nanoseconds of processor time of a thread that are a sign of life
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


class Work:
    """What the other processes of `leader`'s session compute: on a CPU, where one step may last for minutes.

    The processor time of any one thread, for those that only wait have some, too: gloo's a thousandth of a core each.
    """

    def __init__(self, leader: int):
        self._leader, self._count = leader, 0
        self._before = self._had()

    def done(self) -> int:
        """How often a thread has had WORKED since the last time that one had."""
        now = self._had()
        if any(had - self._before.setdefault(thread, 0) >= WORKED for thread, had in now.items()):
            self._count, self._before = self._count + 1, now
        return self._count

    def _had(self) -> dict[str, int]:
        """Nanoseconds by thread."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()  # proc(5)'s, from the state on
                if int(fields[3]) != self._leader or int(folder.name) == self._leader:
                    continue
                for thread in (folder / "task").iterdir():
                    with contextlib.suppress(OSError):  # it has ended
                        found[thread.name] = int((thread / "schedstat").read_text().split()[0])
        return found
