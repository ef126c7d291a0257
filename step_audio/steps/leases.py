"""Answers whose clients are watched, and ended when those are gone; and the time of all others.

tritonserver tells a step inside an ensemble nothing of its client, but a model that is asked directly. So a client
opens a lease for its answer. One without has so much time and no more: it comes by here on its way to the LLM.
"""

from __future__ import annotations

import enum
import heapq
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.errors import Code, Conflict, InvalidRequest, Overloaded, StepAudioError
from step_audio.steps.tensors import Tensors, required, row, scalar

PREFIX = "lease:"  # of a request's id; what follows is the answer's own
PERIOD = 0.1  # seconds between two looks at all holders
AGAIN = 1.0  # seconds after which a stop is sent once more: the first may have come before the LLM had the request
MAX_LEASES = 4096
MAX_REPORTS = 4096  # of recordings, that nobody has asked for yet
MAX_UNLEASED = 1 << 16  # answers without a lease whose time is not up; nobody says here which of them are complete
ENDED_FOR = 600.0  # seconds in which an answer whose lease has ended is remembered: it may be on its way to the LLM
MAX_SECONDS = 1e6
MAX_ID = 256  # characters
NO_REPORT = np.zeros((2, 0), np.float32)

log = logging.getLogger(__name__)


class Reason(enum.StrEnum):
    """Why a lease has expired."""

    GONE = "gone"  # its client is
    TIME = "time"  # is up


class Holder(Protocol):
    """A request; `end` is called once."""

    def is_gone(self) -> bool:
        """Whether its client is."""

    def end(self, answer: Tensors | Exception) -> None:
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
            self.holder.end(_ended())


class Leases:
    """`stop` ends the answer of an id at the LLM; a thread of its own calls it, and an unknown id is no error.

    `unleased_seconds`: what an answer without a lease has; 0: no bound. `expired` is called by the same thread, once
    for each lease that ends an answer, and may not raise.
    """

    def __init__(
        self,
        stop: Callable[[str], None],
        unleased_seconds: float = 0,
        expired: Callable[[Reason], None] = lambda reason: None,
    ):
        self._stop, self._expired = stop, expired
        self._unleased_seconds = unleased_seconds or math.inf
        self._lock = threading.Lock()
        self._leases: dict[str, _Lease] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()  # answers, and when their leases ended
        self._unleased: dict[str, float] = {}  # answers by id, and when their time is up
        self._due: list[tuple[float, str]] = []  # a heap of the same, and of what is no longer so
        self._reports: OrderedDict[str, Float32Array] = OrderedDict()  # of answers' recordings, where there is one
        self._again: list[tuple[float, str]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="leases", daemon=True)
        self._thread.start()

    def handle(self, request_id: str, inputs: Tensors, holder: Holder) -> None:
        """One request, which is answered, now or when its lease ends. Raises StepAudioError for what is wrong with it.

        With `report` true it asks what is known of an answer's recordings.
        With `open` true it opens a lease and is answered when that ends, with `open` false it closes one; with `stop`
        as well the client leaves its answer, which ends with the lease. Else it is an answer on its way to the LLM.
        """
        if len(request_id) > MAX_ID:
            raise InvalidRequest(f"the request's id has {len(request_id)} characters, at most {MAX_ID} are accepted")
        opens, seconds = scalar(inputs, "open"), scalar(inputs, "seconds")
        if seconds is not None and not 0 < seconds <= MAX_SECONDS:
            raise InvalidRequest(f"seconds must be above 0 and at most {MAX_SECONDS:.0f}, not {seconds:g}", "seconds")
        if scalar(inputs, "report"):
            with self._lock:
                report = self._reports.pop(request_id.removeprefix(PREFIX), NO_REPORT)
            holder.end({"audio_report": report[None]})
            return
        if opens is None:
            lengths = required(inputs, "input_lengths")
            self._pass(request_id, math.inf if seconds is None else seconds)
            self._keep(request_id, row(inputs, "audio_report"))
            holder.end({"input_lengths": lengths[None]})
            return
        answer = request_id.removeprefix(PREFIX)
        if not request_id.startswith(PREFIX) or not answer:
            raise InvalidRequest(f"the request's id must be {PREFIX} and the id of the answer")
        if opens:
            self._open(answer, math.inf if seconds is None else seconds, holder)
        else:
            self._close(answer, bool(scalar(inputs, "stop")))
            holder.end(_ended())

    def close(self) -> None:
        """Ends what is open, without a stop."""
        self._closing.set()
        self._thread.join()
        with self._lock:
            left = list(self._leases.values())
            self._leases.clear()
        for lease in left:
            lease.end()

    def _open(self, answer: str, seconds: float, holder: Holder) -> None:
        with self._lock:
            if len(self._leases) >= MAX_LEASES:
                raise Overloaded(f"{MAX_LEASES} leases are open already")
            if answer in self._leases:  # who guesses an id must not take its lease away
                raise Conflict("there is a lease for this id already")
            self._leases[answer] = _Lease(holder, time.monotonic() + seconds)
            self._unleased.pop(answer, None)
            self._ended.pop(answer, None)

    def _close(self, answer: str, stop: bool) -> None:
        with self._lock:
            lease = self._leases.pop(answer, None)
            self._unleased.pop(answer, None)
            if stop and lease is not None:  # the client itself tells the LLM, where it has the answer already
                self._ended[answer] = time.monotonic()
        if lease is not None:
            lease.end()

    def _pass(self, answer: str, seconds: float) -> None:
        seconds = min(seconds, self._unleased_seconds)
        with self._lock:
            if answer in self._ended:
                raise StepAudioError("the lease of this answer has ended", code=Code.CANCELLED)
            if answer in self._leases or math.isinf(seconds):
                return
            if not answer:
                raise InvalidRequest("the request needs an id, by which its answer can be ended")
            if len(self._due) >= MAX_UNLEASED:
                raise Overloaded(f"{MAX_UNLEASED} answers without a lease are there already")
            # Of several answers with one id the last one counts: a stop ends them all.
            until = max(time.monotonic() + seconds, self._unleased.get(answer, 0))
            self._unleased[answer] = until
            heapq.heappush(self._due, (until, answer))

    def _keep(self, answer: str, report: Float32Array | None) -> None:
        if report is None or not report.any() or not answer:
            return
        with self._lock:
            self._reports[answer] = report
            if len(self._reports) > MAX_REPORTS:
                self._reports.popitem(last=False)

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
                        self._ended[answer] = now
                    self._try_stop(answer)
                    self._again.append((now + AGAIN, answer))
                    self._expired(Reason.TIME if late else Reason.GONE)
                    lease.end()
            due = [answer for when, answer in self._again if when <= now]
            self._again = [(when, answer) for when, answer in self._again if when > now]
            for answer in due + self._overdue(now):
                self._try_stop(answer)

    def _overdue(self, now: float) -> list[str]:
        """Answers without a lease whose time is up; forgets what need not be known any more."""
        with self._lock:
            while self._ended and next(iter(self._ended.values())) < now - ENDED_FOR:
                self._ended.popitem(last=False)
            found = []
            while self._due and self._due[0][0] <= now:
                until, answer = heapq.heappop(self._due)
                if self._unleased.get(answer) == until:  # else it has got a lease, or is complete
                    del self._unleased[answer]
                    found.append(answer)
            return found

    def _try_stop(self, answer: str) -> None:
        try:
            self._stop(answer)
        except Exception:
            log.exception("an answer could not be stopped")


def _ended() -> Tensors:
    return {"ended": np.ones((1, 1), np.bool_)}
