"""The counters of a run directory on Triton's metrics port."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from step_audio.counters import FAMILIES, FOLDER, Values, read

PERIOD = 1.0  # seconds

log = logging.getLogger(__name__)


class CounterReport:
    """Reads all files again and again. `pb_utils` is handed in: it exists only inside Triton's Python backend."""

    def __init__(self, pb_utils: Any, run_dir: Path):
        self._pb_utils = pb_utils
        self._folder = run_dir / FOLDER
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], Any] = {}
        self._shown: Values = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counters", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        # While Triton's backend is there: it crashes when it takes back a metric after its own end.
        self._metrics.clear()
        self._families.clear()

    def _run(self) -> None:
        while True:
            try:
                self._report()
            except Exception:
                log.exception("the counters could not be reported")
            if self._closing.wait(PERIOD):
                return

    def _report(self) -> None:
        for file in self._folder.glob("*.json"):
            for key, number in read(file).items():
                self._raise(key, number)

    def _raise(self, key: tuple[str, str], number: int) -> None:
        """To `number`: it began anew with tritonserver."""
        name, value = key
        if name not in FAMILIES:  # of another version's file
            return
        family = FAMILIES[name]
        if name not in self._families:
            kind = self._pb_utils.MetricFamily
            self._families[name] = kind(name=name, description=family.description, kind=kind.COUNTER)
        if key not in self._metrics:
            self._metrics[key] = self._families[name].Metric(labels={family.label: value})
        if (more := number - self._shown.get(key, 0)) > 0:
            self._metrics[key].increment(more)
            self._shown[key] = number
