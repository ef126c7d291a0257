"""How a peer's process talks with the comparison: lines of JSON, and nothing but the standard library.

It says `{"versions": {...}}` when it is ready. Then, for each line `{"concurrency": n, "tokens": m, "sampling": {...},
"requests": [{"ids": [...], "seed": s}, ...]}`, it answers all requests, n at once, each with m tokens, and says
`{"records": [{"sent": t, "pieces": [[t, ids], ...], "ended": t}, ...]}`. Times are seconds of the monotonic clock,
which all processes share.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

now = time.perf_counter


@dataclass
class Answer:
    """Of one request. pieces: a time, and the ids that were there by then."""

    sent: float
    pieces: list[tuple[float, list[int]]] = field(default_factory=list)
    ended: float = 0.0
    count: int = 0

    def take(self, ids: list[int], when: float) -> None:
        self.pieces.append((when, ids))
        self.count += len(ids)
        self.ended = when


@dataclass(frozen=True)
class PeerCell:
    """What is asked at once. sampling: the API's names; a temperature of 0 is greedy."""

    concurrency: int
    tokens: int
    sampling: dict[str, Any]
    requests: list[dict[str, Any]]

    @property
    def greedy(self) -> bool:
        return not self.sampling.get("temperature")


class Closed:
    """The closed loop: which requests are under way. `start` hands one over to the peer, under a number."""

    def __init__(self, cell: PeerCell, start: Callable[[int, dict[str, Any]], None]):
        self.answers: dict[int, Answer] = {}
        self.active: set[int] = set()
        self._cell, self._start = cell, start
        self._fill()

    def _fill(self) -> None:
        while len(self.active) < self._cell.concurrency and len(self.answers) < len(self._cell.requests):
            number = len(self.answers)
            self.answers[number] = Answer(now())
            self.active.add(number)
            self._start(number, self._cell.requests[number])

    def take(self, number: int, ids: list[int], when: float) -> bool:
        """Whether this was the end of that answer; then the next request has been started."""
        answer = self.answers[number]
        answer.take(ids, when)
        if answer.count < self._cell.tokens:
            return False
        self.active.discard(number)
        self._fill()
        return True


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--positions", type=int, required=True, help="of a request, at most")
    parser.add_argument("--concurrency", type=int, required=True, help="at most")
    parser.add_argument("--exact", action="store_true", help="compute in float32")
    return parser.parse_args()


def in_bfloat16(given: argparse.Namespace) -> bool:
    """Whether to: only where the processor has instructions for it."""
    return not given.exact and "avx512_bf16" in Path("/proc/cpuinfo").read_text()


def answer_cells(
    packages: list[str], load: Callable[[argparse.Namespace], Callable[[PeerCell], Iterator[Answer]]]
) -> None:
    """What a peer prints goes to stderr, that its words are not taken for ours."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run = load(arguments())

    def say(words: dict[str, Any]) -> None:
        out.write(json.dumps(words) + "\n")
        out.flush()

    say({"versions": {name: metadata.version(name) for name in packages}})
    for line in sys.stdin:
        say({"records": [asdict(answer) for answer in run(PeerCell(**json.loads(line)))]})
