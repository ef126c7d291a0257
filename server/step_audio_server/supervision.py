"""Keeping a process running: a fault is told, what is left is ended, and it is started again, however often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from step_audio.command_line import Echo
from step_audio.errors import StepAudioError
from step_audio_server.errors import ServerCrashed
from step_audio_server.records import Death

WATCH_PERIOD = 0.25  # seconds
# Seconds before a start, by the starts in a row before it that came to nothing: the first fault is mended at once.
PAUSES = (0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
STEADY = 2.0  # seconds of working, with which a start has not come to nothing


class Kept(Protocol):
    """What a Keeper keeps running."""

    def fault(self) -> Death | None:
        """What is wrong, None while all is well."""

    def start(self) -> None:
        """Returns when it works. Raises StepAudioError; then nothing is left of it."""

    def end(self) -> None:
        """At once: nothing that it has in hand can be finished."""

    def restarted(self, death: Death) -> None:
        """It works again after `death`."""


class Keeper:
    """Starts `kept`, or finds it running, and watches over it until `stopping` is set. It never gives up.

    `clock`: seconds, from any beginning.
    """

    def __init__(self, kept: Kept, echo: Echo, stopping: threading.Event, clock: Callable[[], float] = time.monotonic):
        self._kept, self._echo, self._stopping, self._clock = kept, echo, stopping, clock
        self._failures = 0  # in a row
        self._since = clock()  # when it last began to work

    def begin(self) -> bool:
        """The first start; one that crashes is tried again, however often. False: stopped meanwhile.

        Raises StepAudioError for any other: a wrong setting stays wrong.
        """
        try:
            self._kept.start()
        except ServerCrashed as error:
            self._failures = 1
            if not self._start_again(str(error), ServerCrashed):
                return False
        self._since = self._clock()
        return True

    def run(self) -> None:
        while not self._stopping.wait(WATCH_PERIOD):
            if (death := self._kept.fault()) is not None:
                self._restart(death)

    def _restart(self, death: Death) -> None:
        if self._clock() - self._since > STEADY:
            self._failures = 0
        self._kept.end()
        if self._start_again(str(death), StepAudioError):
            self._since = self._clock()
            self._kept.restarted(death)

    def _start_again(self, reason: str, tolerated: type[StepAudioError]) -> bool:
        """False: stopped meanwhile."""
        while True:
            pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
            self._failures += 1
            self._echo(f"{reason}: starting again" + (f" in {pause:.0f} s" if pause else ""))
            if self._stopping.wait(pause):
                return False
            try:
                self._kept.start()
            except tolerated as error:
                if self._stopping.is_set():
                    return False
                reason = str(error)
            else:
                return True
