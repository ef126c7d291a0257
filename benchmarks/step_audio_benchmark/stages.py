"""Where the time of requests goes: Triton's own statistics of each model, before and after a load.

Through the HTTP port's `/v2/models/stats`, in the statistics extension of the KServe protocol: for each model how many
requests there were, and nanoseconds in its queue, copying inputs, computing, copying outputs. For a decoupled model
the computing ends with `execute`, so the engine's time is the ensemble's less that of the other steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class StageTimes:
    """One model's mean milliseconds a request."""

    requests: int
    queue: float
    compute: float  # with the copying of inputs and outputs
    total: float  # from arrival to answer


Counters = dict[str, dict[str, tuple[int, int]]]  # model -> part -> (count, nanoseconds)


async def counters(url: str) -> Counters:
    """Of the server whose HTTP port this is. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(timeout=10) as client:
        response = await client.get(f"{url}/v2/models/stats")
        response.raise_for_status()
    return read(response.json())


def read(page: dict[str, Any]) -> Counters:
    """Of the body of `/v2/models/stats`."""
    return {
        model["name"]: {
            part: (int(kept.get("count", 0)), int(kept.get("ns", 0)))
            for part in ("success", *PARTS)
            if (kept := model["inference_stats"].get(part)) is not None
        }
        for model in page["model_stats"]
    }


def between(before: Counters, after: Counters) -> dict[str, StageTimes]:
    """What each model did meanwhile; those that did nothing are left out."""
    found = {}
    for model, parts in after.items():
        passed = {part: _less(value, before.get(model, {}).get(part, (0, 0))) for part, value in parts.items()}
        requests = passed.get("success", (0, 0))[0]
        if not requests:
            continue
        mean = {part: ns / requests / 1e6 for part, (_, ns) in passed.items()}
        found[model] = StageTimes(
            requests,
            queue=mean.get("queue", 0.0),
            compute=sum(mean.get(part, 0.0) for part in PARTS[1:]),
            total=mean.get("success", 0.0),
        )
    return found


def _less(after: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    return after[0] - before[0], after[1] - before[1]
