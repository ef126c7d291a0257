"""Ctrl-C, and what else ends a command that talks: its task is cancelled, so that what it holds is given back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Any

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def cancel_on_signals() -> asyncio.Task[Any]:
    """The task that calls it, which SIGINT, SIGTERM and SIGHUP cancel from now on."""
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError):  # not the main thread, or not Unix
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last when the terminal is closed
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return task


def stopped(task: asyncio.Task[Any]) -> int:
    """Says that `task` was cancelled so, which goes on. The exit status."""
    task.uncancel()
    with contextlib.suppress(OSError):  # the terminal may be gone
        print("\nstopped", file=sys.stderr)
    return INTERRUPTED
