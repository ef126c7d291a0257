"""Who may write to a directory: one process at a time. A lock goes with the process that has it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from step_audio.command_line import Echo


def lock(directory: Path) -> TextIO | None:
    """Holds `directory`, which is made if need be, until the result is closed; None: another has it."""
    held = _open(directory)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return None
    return held


@contextmanager
def building(directory: Path, echo: Echo) -> Iterator[None]:
    """Waits, with a line, while another process builds there."""
    if (held := lock(directory)) is None:
        echo(f"another process is building in {directory}: waiting for it")
        held = _open(directory)
        fcntl.flock(held, fcntl.LOCK_EX)
    with held:
        yield


def _open(directory: Path) -> TextIO:
    directory.mkdir(parents=True, exist_ok=True)
    return (directory / "lock").open("a")
