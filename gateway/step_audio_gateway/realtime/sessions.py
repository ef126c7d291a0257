"""All sessions of a gateway that are open: a server that stops lets their answers end."""

from __future__ import annotations

import asyncio

from step_audio_gateway.errors import ApiError


class Sessions:
    """Each waits for `stopping`."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()

    def enter(self) -> None:
        """The task that calls it is one, until it ends. Raises ApiError (503) where the server stops."""
        if self.stopping.is_set():
            raise ApiError(503, "the server stops: try again", code="unavailable", headers={"Retry-After": "1"})
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def drain(self, timeout: float) -> None:
        """Returns when all have ended, or after so many seconds."""
        self.stopping.set()
        if self._open:
            await asyncio.wait(self._open, timeout=timeout)
