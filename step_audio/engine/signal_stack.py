"""The alternate stack that signal handlers of this thread run on, sigaltstack(2)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SS_DISABLE = 2  # linux/signal.h: there is none


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """What sets another one in here does not keep it.

    OpenVINO 2026.4 does, for the kernel grants AMX only to threads whose stack is large enough, and gives it back when
    its runtime ends. Of two runtimes, the second "restores" the stack of the first, which is gone by then: the next
    signal that has a handler, a Ctrl-C in Python say, is a segmentation fault without a word.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        # The kernel refuses one that is too small, or that is in use; then the new one stays.
        before.flags &= SS_DISABLE
        libc.sigaltstack(ctypes.byref(before), None)
