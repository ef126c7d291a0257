"""What can be read when a server has died: its log, which the next one does not overwrite, and a line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from step_audio.counters import DEATHS, RESTARTS, Counters

FILE = "deaths.jsonl"
KEPT_LOGS = 10  # before the one that is written
MAX_LOG_BYTES = 50 << 20
# The models that have a process, or are asked by the heartbeat.
MODELS = (
    "audio_encoder", "audio_featurizer", "lease", "prompt_builder", "step_audio_prompt", "tensorrt_llm", "tokenizer",
)  # fmt: skip

Process = Literal["tritonserver", "gateway", "vllm"]
PROCESSES: tuple[Process, ...] = get_args(Process)


@dataclass(frozen=True)
class Death:
    """What has died or hangs.

    text: for people; model: whose process it was; signal, status: how it ended; in_flight: requests that the engine
    had, where it could still be asked. None: not known, or does not apply.
    """

    text: str
    model: str | None = None
    signal: str | None = None
    status: int | None = None
    in_flight: int | None = None

    def __str__(self) -> str:
        return self.text


def private(path: str, flags: int) -> int:
    """An opener for `open`: a file that it creates is for this user alone."""
    return os.open(path, flags, 0o600)


class Records:
    """Of the deaths of one service, tritonserver's and the gateway's. Thread-safe."""

    def __init__(self, run_dir: Path):
        self._run_dir = run_dir
        self._deaths: Counter[str] = Counter()  # by process, since the start
        self._lock = threading.Lock()

    def begin(self) -> None:
        """When the run directory is ours, and before anything else."""
        shown = [(DEATHS, name) for name in (*MODELS, *PROCESSES)] + [(RESTARTS, process) for process in PROCESSES]
        self._counters = Counters(self._run_dir, "serve", shown)

    def died(self, process: Process, death: Death) -> None:
        """A line of `deaths.jsonl`: the fields of Death, the time, and how many of the process' deaths there have been
        since the start."""
        with self._lock:
            self._deaths[process] += 1
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = {"time": now, **asdict(death), "restarts": self._deaths[process]}
            with contextlib.suppress(OSError):  # a full disk is no reason not to mend it
                with open(self._run_dir / FILE, "a", encoding="utf-8", opener=private) as stream:
                    stream.write(json.dumps(line) + "\n")
                limit(self._run_dir / FILE)
        self._counters.count(DEATHS, death.model or process)

    def restarted(self, process: Process) -> None:
        self._counters.count(RESTARTS, process)


def rotate(log: Path) -> None:
    """Puts `log` aside as log.1, what that was as log.2, and so on; the last is dropped."""
    _shift([log, *_numbered(log)])


def limit(log: Path) -> None:
    """Puts what is in `log` aside, once it is MAX_LOG_BYTES long. Who writes, by appending, goes on in the emptied
    file; what is written between the copy and that is lost."""
    if log.stat().st_size < MAX_LOG_BYTES:
        return
    numbered = _numbered(log)
    _shift(numbered)
    with open(log, "rb") as full, open(numbered[0], "xb", opener=private) as aside:
        shutil.copyfileobj(full, aside)
    os.truncate(log, 0)


def _numbered(log: Path) -> list[Path]:
    return [log.with_name(f"{log.name}.{number}") for number in range(1, KEPT_LOGS + 1)]


def _shift(names: list[Path]) -> None:
    """Each to the next one's name; the last is dropped."""
    for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
        if newer.exists():
            newer.replace(older)
