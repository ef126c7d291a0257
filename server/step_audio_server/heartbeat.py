"""A thread that asks every model of a running server something small, to tell a hang from patience."""

from __future__ import annotations

import asyncio
import threading

from step_audio_client import Tls
from step_audio_client.control import heartbeat
from step_audio_client.servers import Server

PERIOD = 0.5  # seconds between an answer and the next question
PATIENCE = 8.0  # seconds that a model may take, and on a machine with all cores taken does


class Heartbeat:
    """Of the server at `address`, from now on until `stop()`."""

    def __init__(self, address: str, tls: Tls):
        self._address, self._tls = address, tls
        self._fault: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._beat()), name="heartbeat", daemon=True)
        self._thread.start()

    def fault(self) -> str | None:
        """The model that does not answer, None while all do. It is asked again, for it may have been a pause."""
        return self._fault

    def stop(self) -> None:
        self._stopping.set()

    async def _beat(self) -> None:
        server = Server(self._address, self._tls)
        while not self._stopping.is_set():
            silence = await heartbeat(server.stub, PATIENCE)
            # What is behind a model has a keeper of its own, and is no reason to start the server again.
            self._fault = None if silence is None or silence.behind else silence.text
            await asyncio.sleep(PERIOD)
        await server.close()
