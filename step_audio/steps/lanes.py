"""Threads of a worker that do what is at hand, in an order that keeps the small from waiting for the large."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from itertools import count

from step_audio.steps.tensors import Reply, Tensors


class Lane:
    """Threads that do the work at hand, the cheapest first."""

    def __init__(self, work: Callable[[Tensors], Tensors], threads: int = 1):
        self._work = work
        self._queue: queue.PriorityQueue[tuple[int, int, Tensors, Reply]] = queue.PriorityQueue()
        self._serial = count()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"lane-{number}", daemon=True).start()

    def put(self, inputs: Tensors, reply: Reply, cost: int = 0) -> None:
        self._queue.put((cost, next(self._serial), inputs, reply))

    def _run(self) -> None:
        while True:
            _, _, inputs, reply = self._queue.get()
            try:
                reply(self._work(inputs))
            except Exception as error:
                reply(error)


class BatchLane:
    """One thread that does all the work at hand at once."""

    def __init__(self, work: Callable[[Sequence[Tensors]], list[Tensors]], most: int):
        self._work = work
        self._most = most
        self._queue: queue.SimpleQueue[tuple[Tensors, Reply]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="batches", daemon=True).start()

    def put(self, inputs: Tensors, reply: Reply) -> None:
        self._queue.put((inputs, reply))

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < self._most and not self._queue.empty():
                batch.append(self._queue.get())
            self._do(batch)

    def _do(self, batch: list[tuple[Tensors, Reply]]) -> None:
        try:
            results = self._work([inputs for inputs, _ in batch])
        except Exception as error:
            if len(batch) > 1:  # the fault is one's, and the others' answers are theirs
                for entry in batch:
                    self._do([entry])
            else:
                batch[0][1](error)
            return
        for (_, reply), result in zip(batch, results, strict=True):
            reply(result)
