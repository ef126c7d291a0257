"""Where a request goes on that a server refuses or loses: on the next one, or on the same when it is back."""

from __future__ import annotations

import asyncio
import time

from step_audio.errors import Retry
from step_audio_client.errors import RequestError, Unavailable
from step_audio_client.run import Run
from step_audio_client.servers import Servers

PATIENCE = 30.0  # seconds without any server, and an answer is given up
PAUSES = (0.1, 0.2, 0.4, 0.8)  # seconds before all servers are tried once more


class Failover:
    """Of one request of `run`.

    `patience` in seconds: how long a server is waited for that has answered before. One that never has is not.
    """

    def __init__(self, servers: Servers, run: Run, patience: float):
        self._servers, self._run, self._patience = servers, run, patience
        self._failures: list[RequestError] = []  # of the servers tried since the last pause
        self._rounds = 0
        self._since: float | None = None  # when no server was left
        self._begun = False

    def progressed(self) -> None:
        """Something of the answer has come."""
        self._begun = True
        self._rounds, self._since = 0, None

    async def after(self, error: RequestError) -> None:
        """Returns when the first server of the run's route is to be tried. Raises `error` where no other helps, or
        what the attempts on all servers come to. Its code decides."""
        if error.code.retry not in (Retry.ELSEWHERE, Retry.WAIT):
            raise error from None
        self._failures.append(error)
        if len(self._run.route) > 1:
            self._run.route.pop(0)
            return
        now = time.monotonic()
        self._since = self._since or now
        busy = next((failure for failure in self._failures if failure.code.retry is Retry.ELSEWHERE), None)
        if busy is not None and not self._begun:
            raise busy from None
        if now - self._since >= self._patience or not any(server.seen for server in self._servers.all):
            raise (error if len(self._servers.all) == 1 else Unavailable("none of the servers answers")) from None
        pause = PAUSES[min(self._rounds, len(PAUSES) - 1)]
        left = self._run.time_left()
        await asyncio.sleep(pause if left is None else min(pause, left))
        self._rounds += 1
        self._failures.clear()
        self._run.route = self._servers.route()
