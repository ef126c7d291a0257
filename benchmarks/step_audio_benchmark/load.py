"""How requests come: so many at once all the time (closed loop), or so many a second whatever becomes of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from step_audio_benchmark.records import Record
from step_audio_benchmark.targets import Target
from step_audio_benchmark.workload import Question, Workload


@dataclass(frozen=True)
class Level:
    """One of the two is set: requests at once, or requests a second, at random times (a Poisson process)."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.concurrency else f"{self.rate:g}/s"


@dataclass(frozen=True)
class LoadRun:
    """The requests of one level, and the seconds from the first one's sending to the last one's end."""

    records: Sequence[Record]
    seconds: float


class Way(Protocol):
    """How a load reaches the model."""

    @property
    def name(self) -> str: ...

    async def run(
        self, level: Level, questions: Sequence[Question], workload: Workload, on_done: Callable[[], None]
    ) -> LoadRun:
        """Ask every question once."""
        ...


@dataclass(frozen=True)
class OwnLoad:
    """A load of our own on a target."""

    target: Target

    @property
    def name(self) -> str:
        return self.target.name

    async def run(
        self, level: Level, questions: Sequence[Question], workload: Workload, on_done: Callable[[], None]
    ) -> LoadRun:
        start = time.perf_counter()
        try:
            if level.concurrency is not None:
                records = await _closed(level.concurrency, self.target, questions, workload, on_done)
            else:
                assert level.rate is not None
                records = await _open(level.rate, self.target, questions, workload, on_done)
        except* OSError as errors:  # of `on_done`: a pipe that nobody reads
            raise errors.exceptions[0] from None
        return LoadRun(records, max((one.ended or start for one in records), default=start) - start)


async def ask(target: Target, question: Question, workload: Workload) -> Record:
    """An answer of another length than was asked for is a failed one: it would spoil every figure."""
    record = await target.ask(question, workload)
    if record.error is None and record.output_tokens != workload.output_tokens:
        record.error = (
            f"{record.output_tokens} tokens came instead of {workload.output_tokens}: is there room for them?"
        )
    return record


async def _closed(
    width: int, target: Target, questions: Sequence[Question], workload: Workload, on_done: Callable[[], None]
) -> list[Record]:
    queue, records = iter(questions), list[Record]()

    async def work() -> None:
        for question in queue:  # shared: each takes the next one
            records.append(await ask(target, question, workload))
            on_done()

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())
    return records


async def _open(
    rate: float, target: Target, questions: Sequence[Question], workload: Workload, on_done: Callable[[], None]
) -> list[Record]:
    chance, records = random.Random(workload.seed), list[Record]()

    async def one(question: Question) -> None:
        records.append(await ask(target, question, workload))
        on_done()

    due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for question in questions:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(question))
            due += chance.expovariate(rate)
    return records
