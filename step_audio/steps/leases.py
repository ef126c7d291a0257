"""Answers whose clients are watched, and ended when those are gone."""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

PREFIX = "lease:"  # of a request's id; what follows is the answer's own
PERIOD = 0.1  # seconds between two looks at all holders
AGAIN = 1.0  # seconds after which a stop is sent once more: the first may have come before the LLM had the request
MAX_LEASES = 4096
MAX_SECONDS = 1e6

log = logging.getLogger(__name__)


class Reason(enum.StrEnum):
    """Why a lease has expired."""

    GONE = "gone"  # its client is
    TIME = "time"  # is up


class Holder(Protocol):
    """The request that opened a lease; `end` is called once."""

    def is_gone(self) -> bool:
        """Whether its client is."""

    def end(self, error: str | None = None) -> None:
        """Answers it."""


@dataclass(eq=False)
class _Lease:
    """Triton frees a request with its answer, and a question about it from another thread then crashes the server: so
    the two exclude each other, and after the answer nothing is asked."""

    holder: Holder
    until: float
    _ended: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_gone(self) -> bool:
        with self._lock:
            return not self._ended and self.holder.is_gone()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self.holder.end()


class Leases:
    """`stop` ends the answer of an id at the LLM; a thread of its own calls it, and an unknown id is no error.

    `expired` is called by the same thread, once for each answer that is ended, and may not raise.
    """

    def __init__(self, stop: Callable[[str], None], expired: Callable[[Reason], None] = lambda reason: None):
        self._stop, self._expired = stop, expired
        self._lock = threading.Lock()
        self._leases: dict[str, _Lease] = {}
        self._again: list[tuple[float, str]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="leases", daemon=True)
        self._thread.start()

    def handle(self, request_id: str, opens: bool, seconds: float | None, holder: Holder) -> None:
        """One request: it opens a lease, and is answered when that ends; or it closes one, and is answered at once."""
        answer = request_id.removeprefix(PREFIX)
        if not request_id.startswith(PREFIX) or not answer:
            holder.end(f"the request's id must be {PREFIX} and the id of the answer")
        elif not opens:
            with self._lock:
                lease = self._leases.pop(answer, None)
            if lease is not None:
                lease.end()
            holder.end()
        elif seconds is not None and not 0 < seconds <= MAX_SECONDS:
            holder.end(f"seconds must be above 0 and at most {MAX_SECONDS:.0f}, not {seconds:g}")
        elif (error := self._open(answer, math.inf if seconds is None else seconds, holder)) is not None:
            holder.end(error)

    def close(self) -> None:
        """Ends what is open, without a stop."""
        self._closing.set()
        self._thread.join()
        with self._lock:
            left = list(self._leases.values())
            self._leases.clear()
        for lease in left:
            lease.end()

    def _open(self, answer: str, seconds: float, holder: Holder) -> str | None:
        """What is against it, if anything is."""
        with self._lock:
            if len(self._leases) >= MAX_LEASES:
                return f"{MAX_LEASES} leases are open already"
            if answer in self._leases:  # who guesses an id must not take its lease away
                return "there is a lease for this id already"
            self._leases[answer] = _Lease(holder, time.monotonic() + seconds)
        return None

    def _watch(self) -> None:
        while not self._closing.wait(PERIOD):
            now = time.monotonic()
            with self._lock:
                held = list(self._leases.items())
            for answer, lease in held:
                late = now > lease.until
                if late or lease.is_gone():
                    with self._lock:
                        if self._leases.pop(answer, None) is None:  # closed meanwhile
                            continue
                    self._end(answer, now)
                    self._expired(Reason.TIME if late else Reason.GONE)
                    lease.end()
            due = [answer for when, answer in self._again if when <= now]
            self._again = [(when, answer) for when, answer in self._again if when > now]
            for answer in due:
                self._try_stop(answer)

    def _end(self, answer: str, now: float) -> None:
        self._try_stop(answer)
        self._again.append((now + AGAIN, answer))

    def _try_stop(self, answer: str) -> None:
        try:
            self._stop(answer)
        except Exception:
            log.exception("an answer could not be stopped")
