"""The cells of a benchmark, level by level and target by target, in interleaved rounds."""

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
from step_audio_benchmark.load import Level, Run, ask, run_load
from step_audio_benchmark.stages import Counters, Stage, between, counters
from step_audio_benchmark.targets import Target
from step_audio_benchmark.workload import Workload

WARM_UP = 4  # requests to each target before anything is measured


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
    """One round of one level at one target. processor: seconds by process; load: of the machine when it began."""

    target: str
    level: Level
    round: int
    run: Run
    figures: Figures
    stages: Mapping[str, Stage]
    processor: Mapping[str, float]
    load: float


async def measure(
    plan: Plan,
    targets: Sequence[Target],
    triton_http: str | None = None,
    processor_time: Callable[[], Mapping[str, float]] = dict,
    stream: TextIO | None = None,
) -> list[Cell]:
    """Each round asks each target new questions, of the same lengths: what one asks is cached by the server.

    triton_http: of the server's HTTP port, for its statistics; processor_time: seconds by process, of a server on this
    machine. Raises StepAudioError where the first request fails.
    """
    for target in targets:
        for question in plan.workload.questions(WARM_UP, begin=10**9):
            record = await ask(target, question, plan.workload)
            if record.error is not None:
                raise StepAudioError(f"{target.name}: {record.error}")
    total = plan.rounds * len(targets) * sum(plan.count(level) for level in plan.levels)
    progress = Progress("requests", unit="", total=total, stream=stream)
    cells, asked = list[Cell](), 0
    try:
        for number in range(plan.rounds):
            for level in plan.levels:
                count = plan.count(level)
                for target in targets:
                    questions = plan.workload.questions(count, asked)
                    asked += plan.workload.turns(count)
                    load, before, spent = os.getloadavg()[0], await _counters(triton_http), processor_time()
                    run = await run_load(
                        level,
                        target,
                        questions,
                        plan.workload,
                        lambda: progress.step(f"{target.name}, {level}"),  # noqa: B023  # called in this turn only
                    )
                    stages = between(before, await _counters(triton_http))
                    processor = {name: seconds - spent.get(name, 0.0) for name, seconds in processor_time().items()}
                    made = figures(run, plan.objective)
                    cells.append(Cell(target.name, level, number, run, made, stages, processor, load))
    finally:
        progress.close()
    return cells


async def _counters(url: str | None) -> Counters:
    if url is None:
        return {}
    with contextlib.suppress(httpx.HTTPError):
        return await counters(url)
    return {}
