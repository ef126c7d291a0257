"""Which of several ways to compute a step is the quickest at the load that is there, found out by timing real steps."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

TIMED = 4  # steps of each way at a trial, of which the first is not counted: it finds nothing in the caches
UNTIL_NEXT = 500  # steps between two trials
WORTH_IT = 0.85  # of the cheaper way's time: what a dearer one may take at most


@dataclass
class _Trial:
    times: list[list[float]]  # of each way, in the present trial
    best: int = 0
    left: int = 0  # steps until the next trial


@dataclass
class Quickest:
    """ways: their number, the cheapest first. Steps are told apart by the power of two of their size."""

    ways: int
    _trials: dict[int, _Trial] = field(init=False)

    def __post_init__(self) -> None:
        self._trials = defaultdict(lambda: _Trial([[] for _ in range(self.ways)]))

    def choose(self, size: int) -> int:
        """The way to compute a step of that many positions."""
        trial = self._trials[size.bit_length()]
        if trial.left or self.ways == 1:
            return trial.best
        return next(way for way, times in enumerate(trial.times) if len(times) < TIMED)

    def took(self, size: int, way: int, seconds: float) -> None:
        """What came of a choice."""
        trial = self._trials[size.bit_length()]
        if trial.left or self.ways == 1:
            trial.left = max(trial.left - 1, 0)
            return
        trial.times[way].append(seconds)
        if all(len(times) == TIMED for times in trial.times):
            typical = [median(times[1:]) for times in trial.times]
            trial.best = 0
            for other in range(1, self.ways):
                if typical[other] <= WORTH_IT * typical[trial.best]:
                    trial.best = other
            trial.times, trial.left = [[] for _ in range(self.ways)], UNTIL_NEXT
