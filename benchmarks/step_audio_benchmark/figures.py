"""Figures of a load: times to the first token, between tokens, rates, and how many requests met an objective."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from step_audio_benchmark.load import LoadRun
from step_audio_benchmark.records import Record


@dataclass(frozen=True)
class Objective:
    """What a request must keep to count as good: seconds to its first token, and on average between tokens."""

    first_token: float | None = None
    token_seconds: float | None = None

    def met(self, record: Record) -> bool:
        first, between = record.first_token, record.token_seconds
        if record.error is not None or first is None:
            return False
        in_time = self.first_token is None or first <= self.first_token
        return in_time and (self.token_seconds is None or between is None or between <= self.token_seconds)


@dataclass(frozen=True)
class Quantiles:
    """Seconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Quantiles | None:
        """None where there are none."""
        known = [value for value in values if value is not None]
        return cls(*(float(np.percentile(known, q)) for q in (50, 90, 99))) if known else None


@dataclass(frozen=True)
class Figures:
    """Of one run. Rates are per second of it."""

    requests: int
    failed: int
    tokens_rate: float
    audio_rate: float  # seconds of audio in answered requests
    requests_rate: float
    goodput: float  # requests that met the objective
    request_tokens_rate: float | None  # of one request, from its sending to its end: the median
    first_token: Quantiles | None
    first_answer: Quantiles | None
    token_seconds: Quantiles | None  # of requests' averages
    gaps: Quantiles | None  # between messages, over all of them


def figures(run: LoadRun, objective: Objective) -> Figures:
    good = [record for record in run.records if record.error is None]
    seconds = run.seconds or float("nan")
    speeds = [record.output_tokens / record.seconds for record in good if record.seconds]
    return Figures(
        requests=len(run.records),
        failed=len(run.records) - len(good),
        tokens_rate=sum(record.output_tokens for record in good) / seconds,
        audio_rate=sum(record.audio_seconds for record in good) / seconds,
        requests_rate=len(good) / seconds,
        goodput=sum(map(objective.met, run.records)) / seconds,
        request_tokens_rate=statistics.median(speeds) if speeds else None,
        first_token=Quantiles.of(record.first_token for record in good),
        first_answer=Quantiles.of(
            None if record.first_answer is None else record.first_answer - record.sent for record in good
        ),
        token_seconds=Quantiles.of(record.token_seconds for record in good),
        gaps=Quantiles.of(gap for record in good for gap in record.gaps),
    )


def flat(one: Figures) -> dict[str, float | None]:
    """By name, quantiles as `first_token.p50`."""
    found: dict[str, float | None] = {}
    for name, value in asdict(one).items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": part for key, part in value.items()}
        else:
            found[name] = value
    return found


@dataclass(frozen=True)
class Spread:
    """A figure over rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None
