"""The cells of a benchmark, level by level and way by way, in interleaved rounds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import httpx

from step_audio.errors import StepAudioError
from step_audio.progress import Progress
from step_audio_benchmark.figures import Figures, Objective, figures
from step_audio_benchmark.load import Level, LoadRun, Way
from step_audio_benchmark.stages import Counters, StageTimes, between, counters
from step_audio_benchmark.workload import Workload

WARM_UP = 4  # requests each way before anything is measured


@dataclass(frozen=True)
class Plan:
    """What is measured. requests: of a cell; None: four for each at once, 64 at least of an open loop."""

    workload: Workload
    levels: Sequence[Level]
    rounds: int = 3
    requests: int | None = None
    objective: Objective = field(default_factory=Objective)

    def count(self, level: Level) -> int:
        """Requests of one cell."""
        return self.requests or (4 * level.concurrency if level.concurrency else 64)


@dataclass(frozen=True)
class Cell:
    """One round of one level by one way. processor: seconds by process; load: of the machine when it began."""

    target: str
    level: Level
    round: int
    run: LoadRun
    figures: Figures
    stages: Mapping[str, StageTimes]
    processor: Mapping[str, float]
    load: float


async def measure(
    plan: Plan,
    ways: Sequence[Way],
    triton_http: str | None = None,
    processor_time: Callable[[], Mapping[str, float]] = dict,
    stream: TextIO | None = None,
) -> list[Cell]:
    """Each round asks new questions each way, of the same lengths: what one asks is cached by the server.

    triton_http: of the server's HTTP port, for its statistics; processor_time: seconds by process, of a server on this
    machine. Raises StepAudioError where the first request fails.
    """
    for way in ways:
        questions = plan.workload.questions(WARM_UP, begin=10**9)
        warm_up = await way.run(Level(concurrency=1), questions, plan.workload, lambda: None)
        if errors := [record.error for record in warm_up.records if record.error is not None]:
            raise StepAudioError(f"{way.name}: {errors[0]}")
    total = plan.rounds * len(ways) * sum(plan.count(level) for level in plan.levels)
    progress = Progress("requests", unit="", total=total, stream=stream)
    cells, asked = list[Cell](), 0
    try:
        for number in range(plan.rounds):
            for level in plan.levels:
                count = plan.count(level)
                for way in ways:
                    questions = plan.workload.questions(count, asked)
                    asked += plan.workload.turns(count)
                    load, before, spent = os.getloadavg()[0], await _counters(triton_http), processor_time()
                    told = f"{way.name}, {level}"
                    run = await way.run(
                        level,
                        questions,
                        plan.workload,
                        lambda note=told: progress.step(note),  # type: ignore[misc]
                    )
                    stages = between(before, await _counters(triton_http))
                    processor = {name: seconds - spent.get(name, 0.0) for name, seconds in processor_time().items()}
                    made = figures(run, plan.objective)
                    cells.append(Cell(way.name, level, number, run, made, stages, processor, load))
    finally:
        progress.close()
    return cells


async def _counters(url: str | None) -> Counters:
    if url is None:
        return {}
    with contextlib.suppress(httpx.HTTPError):
        return await counters(url)
    return {}
