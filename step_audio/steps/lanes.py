"""Threads of a worker that do what is at hand, in an order that keeps the small from waiting for the large."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import ParamSpec, TypeVar

from step_audio.steps.tensors import Reply, Tensors

P = ParamSpec("P")
T = TypeVar("T")


IDLE = 15.0  # seconds
AHEAD = 1 << 18  # of cost, for each place in the queue: so what is dear is overtaken so often, and no more


class Lane:
    """Threads that do the work at hand, the cheapest first, but for what has been overtaken often enough."""

    def __init__(self, work: Callable[[Tensors], Tensors], threads: int = 1):
        self._work = work
        self.threads = threads
        self._queue: queue.PriorityQueue[tuple[int, int, Tensors, Reply]] = queue.PriorityQueue()
        self._serial = count()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"lane-{number}", daemon=True).start()

    def put(self, inputs: Tensors, reply: Reply, cost: int = 0) -> None:
        number = next(self._serial)
        self._queue.put((cost + AHEAD * number, number, inputs, reply))

    def waiting(self) -> int:
        """Requests that no thread has taken."""
        return self._queue.qsize()

    def _run(self) -> None:
        while True:
            _, _, inputs, reply = self._queue.get()
            _answer(reply, attempt(self._work, inputs))
            del inputs, reply  # a recording, which would be kept until the next one comes


class BatchLane:
    """One thread that does all the work at hand at once.

    `work` returns each request's outputs or its error. What it raises concerns them all: each is then tried alone.
    `rest` is called, by the same thread, when it has had no work for IDLE seconds.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Tensors]], Sequence[Tensors | Exception]],
        most: int,
        rest: Callable[[], None] = lambda: None,
    ):
        self._work = work
        self._most = most
        self._rest = rest
        self._queue: queue.SimpleQueue[tuple[Tensors, Reply]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="batches", daemon=True).start()

    def put(self, inputs: Tensors, reply: Reply) -> None:
        self._queue.put((inputs, reply))

    def _run(self) -> None:
        while True:
            batch = [self._next()]
            while len(batch) < self._most and not self._queue.empty():
                batch.append(self._queue.get())
            self._do(batch)
            del batch  # as above

    def _next(self) -> tuple[Tensors, Reply]:
        try:
            return self._queue.get(timeout=IDLE)
        except queue.Empty:
            attempt(self._rest)
            return self._queue.get()

    def _do(self, batch: list[tuple[Tensors, Reply]]) -> None:
        results = attempt(self._work, [inputs for inputs, _ in batch])
        if isinstance(results, Exception):
            if len(batch) > 1:  # the fault is one's, and the others' answers are theirs
                for entry in batch:
                    self._do([entry])
                return
            results = [results]
        for (_, reply), result in zip(batch, results, strict=True):
            _answer(reply, result)


def attempt(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """What `work` returns, or what it raises."""
    try:
        return work(*args, **kwargs)
    except Exception as error:
        return error


def _answer(reply: Reply, result: Tensors | Exception) -> None:
    """An answer that cannot be sent is this request's fault, and not the thread's."""
    if (failure := attempt(reply, result)) is not None:
        reply(failure)
