"""Memory that comes back to the system when a long recording has been answered.

A model's process shares a region with tritonserver that grows to the largest tensors which were there at once, and
never shrinks. What a tensor held is not read again once it has been copied out or sent; so the whole pages within it
are taken out of the region's file, while the tensor still has them. When the region uses the place again, they are
zeros. What the region itself keeps, its lists of free places, is never within a tensor.

In a process's own memory the C library keeps what is free below something that is in use; it is asked for that, too.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from functools import cache
from typing import Any

from step_audio.arrays import Float32Array
from step_audio.steps import dlpack

LEAST = 1 << 20  # bytes: smaller memory is quicker kept than asked for again

# Of a run of the encoder, clips times the square of the longest one's frames, as attention takes memory. What one clip
# of 25 s takes is kept: to ask for it anew takes as long as a short clip's run.
KEPT = 2500**2

# For the C library: by default it learns from large blocks that are freed to keep up to 32 MB of the next ones, in each
# thread's own heap.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(LEAST), "MALLOC_TRIM_THRESHOLD_": str(LEAST)}

# For tritonserver, whose gRPC reads what is large into blocks of 64 KiB that would stay between others.
SERVER_ALLOCATOR = ALLOCATOR | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}

SETTLED = 3.0  # seconds without large messages, after which free memory is looked for

MMAP_THRESHOLD = -3  # mallopt(3)'s M_MMAP_THRESHOLD
REMOVE = 9  # madvise(2)'s MADV_REMOVE, of Linux

_mallopt = ctypes.CDLL(None).mallopt
_malloc_trim = ctypes.CDLL(None).malloc_trim
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Tidier:
    """Has the C library give back what it has free, when large messages have been and there are no more for a while."""

    def __init__(self, settled: float = SETTLED):
        self._settled = settled
        self._large = threading.Event()
        threading.Thread(target=self._run, name="tidier", daemon=True).start()

    def saw(self, size: int) -> None:
        """A message of so many bytes has come, or gone."""
        if size >= LEAST:
            self._large.set()

    def _run(self) -> None:
        while self._large.wait():
            self._large.clear()
            if not self._large.wait(self._settled):
                _malloc_trim(0)


def reuse_blocks() -> None:
    """In a process that inherits SERVER_ALLOCATOR and computes, where new memory for each block would cost time."""
    _mallopt(MMAP_THRESHOLD, LEAST)


@cache
def tidier() -> Tidier:
    """Of this process."""
    return Tidier()


def is_small(features: Float32Array) -> bool:
    """Whether what the encoder's run of these takes may be kept: [clips, n_mels, frames of the longest]."""
    return len(features) * features.shape[2] ** 2 <= KEPT


def give_back(tensor: Any) -> None:
    """What `tensor` holds, one of pb_utils and not of strings, is lost; memory that is not shared stays as it is."""
    address, size = dlpack.memory(tensor.to_dlpack())
    if size >= LEAST:
        begin, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(begin, end - begin, REMOVE)  # fails on private memory
