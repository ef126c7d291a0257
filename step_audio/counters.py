"""What has happened to a server, counted over all its restarts.

Each process that counts has a file of its own in the run directory. The model `lease` shows them all on Triton's
metrics port (`step_audio.steps.counter_report`), for `step-audio serve` has no port.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = "counters"  # in the run directory


@dataclass(frozen=True)
class Family:
    """One counter, with one label."""

    name: str
    description: str
    label: str


DEATHS = Family(
    "step_audio_deaths_total",
    "Processes that died or hung, a model's, tritonserver or the gateway",
    "model",
)
RESTARTS = Family("step_audio_restarts_total", "Starts after a death, of tritonserver or of the gateway", "process")
WORKER_RESTARTS = Family("step_audio_worker_restarts_total", "Starts of a step's worker after its death", "step")
LEASES_EXPIRED = Family(
    "step_audio_leases_expired_total", "Answers ended because their client was gone, or their time was up", "reason"
)
FAMILIES = {family.name: family for family in (DEATHS, RESTARTS, WORKER_RESTARTS, LEASES_EXPIRED)}

log = logging.getLogger(__name__)

Values = dict[tuple[str, str], int]  # by family and the label's value


class Counters:
    """Those of one process, in `FOLDER/NAME.json`: what is there is gone on from. Thread-safe, and never raises: a full
    disk is no reason not to serve.

    `known`: shown from the start, at 0, without which a first event would not be seen as a rise.
    """

    def __init__(self, run_dir: Path, name: str, known: Iterable[tuple[Family, str]]):
        self._file = run_dir / FOLDER / f"{name}.json"
        self._lock = threading.Lock()
        self._values: Values = {(family.name, value): 0 for family, value in known}
        self._values |= read(self._file)
        self._write()

    def count(self, family: Family, value: str) -> None:
        """One more with this value of the label."""
        with self._lock:
            self._values[family.name, value] = self._values.get((family.name, value), 0) + 1
            self._write()

    def _write(self) -> None:
        """In one step: it is read while it is written."""
        lines = [[name, value, number] for (name, value), number in self._values.items()]
        new = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_text(json.dumps(lines), "utf-8")
            new.replace(self._file)
        except OSError:
            log.warning("%s could not be written", self._file, exc_info=True)


def read(file: Path) -> Values:
    """Nothing of a file that is missing or damaged."""
    try:
        return {(name, value): int(number) for name, value, number in json.loads(file.read_text("utf-8"))}
    except (OSError, ValueError, TypeError):
        return {}
