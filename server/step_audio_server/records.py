"""What can be read when a server has died: its log, which the next one does not overwrite, and a line of JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

KEPT_LOGS = 10  # of earlier servers


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


def record(file: Path, death: Death, restarts: int) -> None:
    """Adds a line to `file`: the fields of Death, the time, and how many of them there have been since the start."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(death), "restarts": restarts}
    with open(file, "a", encoding="utf-8", opener=private) as stream:
        stream.write(json.dumps(line) + "\n")


def rotate(log: Path) -> None:
    """Puts `log` aside as log.1, what that was as log.2, and so on; the last is dropped."""
    names = [log, *(log.with_name(f"{log.name}.{number}") for number in range(1, KEPT_LOGS + 1))]
    for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
        if newer.exists():
            newer.replace(older)
