"""A process that hangs: it stands still, and no signal has stopped it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17  # linux/ptrace.h
WALL = 0x40000000  # linux/wait.h: threads, too

libc = ctypes.CDLL(None, use_errno=True)


def _ptrace(request: int, thread: int) -> None:
    if libc.ptrace(request, ctypes.c_long(thread), None, None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextlib.contextmanager
def hanging(pid: int) -> Iterator[None]:
    """All its threads; it may be killed meanwhile. Raises OSError where that is not allowed. For one thread alone."""
    threads: list[int] = []
    try:
        while new := [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir() if int(path.name) not in threads]:
            for thread in new:  # those that are not held yet may begin others
                with contextlib.suppress(ProcessLookupError):
                    _ptrace(SEIZE, thread)
                    _ptrace(INTERRUPT, thread)
                    os.waitpid(thread, WALL)
                threads.append(thread)
        yield
    finally:
        for thread in sorted(threads, key=lambda thread: thread == pid):  # the first ends after the others
            try:
                _ptrace(DETACH, thread)
            except OSError:  # it is dead, which its own parent is told when we have looked
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(thread, WALL)
