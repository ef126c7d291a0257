"""Messages between a step's stub and its worker, two processes of one machine: Python objects over a socket.

Arrays and buffers of some size travel in a memory file whose descriptor is sent along, so that the reader maps what the
writer wrote, the socket carries a few bytes, and the memory is given back when the reader has done with it. Bytes,
which may only be read, are copied out of it, by a call that lets other threads run.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from step_audio.steps.memory import tidier

INLINE = 1 << 16  # bytes that are sent through the socket itself
# Number of the message, bytes of the pickle, number of buffers, bytes of the memory file (0: there is none).
_HEAD = struct.Struct("<qIIQ")
_SIZE = struct.Struct("<Q?")  # of a buffer, and whether it may only be read


@dataclass(frozen=True)
class Frame:
    """A message ready to be sent, and sent again: it holds copies of all that was in it."""

    shape: tuple[int, int, int]  # bytes of the pickle, number of buffers, bytes of the memory file
    data: bytes  # sizes of the buffers, pickle and, where there is no memory file, the buffers
    memory: int | None  # the memory file's descriptor

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.data) + self.shape[2]

    @classmethod
    def of(cls, message: Any) -> Frame:
        """`message`: anything that pickles. Arrays, and bytes as `pickle.PickleBuffer`, stay out of the pickle."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        size = sum(view.nbytes for view in raw)
        sizes = b"".join(_SIZE.pack(view.nbytes, view.readonly) for view in raw)
        if size <= INLINE:
            return cls((len(pickled), len(raw), 0), b"".join([sizes, pickled, *raw]), None)
        memory = os.memfd_create("step_audio", os.MFD_CLOEXEC)
        for view in raw:
            _write(memory, view)
        return cls((len(pickled), len(raw), size), b"".join([sizes, pickled]), memory)

    def close(self) -> None:
        """The message will not be sent again."""
        if self.memory is not None:
            os.close(self.memory)


class Channel:
    """One end of a socket pair. Sending is for any thread, receiving for one."""

    def __init__(self, end: socket.socket):
        self._socket = end
        self._lock = threading.Lock()

    def send(self, number: int, frame: Frame) -> None:
        """Blocks while the other end does not read. Raises OSError when it is gone."""
        data = _HEAD.pack(number, *frame.shape) + frame.data
        with self._lock:
            sent = 0
            if frame.memory is not None:
                sent = socket.send_fds(self._socket, [data], [frame.memory])
            self._socket.sendall(memoryview(data)[sent:])
        tidier().saw(frame.size)

    def receive(self) -> tuple[int, Any]:
        """The next message and its number. Raises EOFError when the other end is gone."""
        try:
            head, descriptors, _, _ = socket.recv_fds(self._socket, _HEAD.size, 1)
            if len(head) < _HEAD.size:
                head += self._read(_HEAD.size - len(head))
            number, pickled_size, count, memory_size = _HEAD.unpack(head)
            sizes: list[tuple[int, bool]] = list(_SIZE.iter_unpack(self._read(count * _SIZE.size)))
            pickled = self._read(pickled_size)
            if memory_size:
                (memory,) = descriptors
                buffers = _parts(mmap.mmap(memory, memory_size, prot=mmap.PROT_READ | mmap.PROT_WRITE), sizes, memory)
                os.close(memory)
            else:
                buffers = _parts(self._read(sum(size for size, _ in sizes)), sizes)
        except OSError as error:
            raise EOFError(str(error)) from None
        tidier().saw(memory_size)
        return number, pickle.loads(pickled, buffers=buffers)

    def close(self) -> None:
        """The other end reads EOFError."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            read = self._socket.recv_into(view)
            if not read:
                raise EOFError("the other end is gone")
            view = view[read:]
        return data


def _write(descriptor: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(descriptor, view) :]


def _parts(
    whole: mmap.mmap | bytearray, sizes: Sequence[tuple[int, bool]], memory: int | None = None
) -> list[memoryview | bytes]:
    """The buffers, of `sizes` as `_SIZE` has them; `memory`: the file that is mapped."""
    parts: list[memoryview | bytes] = []
    start, view = 0, memoryview(whole)
    for size, readonly in sizes:
        parts.append(_copy(memory, size, start) if memory is not None and readonly else view[start : start + size])
        start += size
    return parts


def _copy(memory: int, size: int, start: int) -> bytes:
    """Of a file: a call reads at most 2 GiB."""
    data = os.pread(memory, size, start)
    return data if len(data) == size else data + _copy(memory, size - len(data), start + len(data))
