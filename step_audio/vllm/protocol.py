"""Messages between the LLM's stub and vLLM's process: a socket in the file system, JSON, and bytes behind it.

    uint32  bytes of the JSON          both little-endian
    uint32  bytes behind it
    JSON    one object: `do` says what it is about, `body` names the arrays behind it, and their bytes
    bytes   the arrays, one after the other

No pickle: neither side runs what the other sends.

To vLLM's process: `generate` (request, answers, sampling; arrays `ids`, int32, and `table`, rows of the model's type),
`cancel` (request). From it: `hello` first, then `tokens`, `failed`, `stats` and, twice a second, `pulse`. `hello` and
`pulse` say for how long the engine has been `silent` (`pulse.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEAD = struct.Struct("<II")
MAX_HEADER = 64 << 20  # bytes of JSON
MAX_BODY = (1 << 32) - 1

Message = dict[str, Any]
Arrays = dict[str, memoryview]


class ProtocolError(Exception):
    """What came is no message."""


def pack(message: Message, arrays: Mapping[str, memoryview] | None = None) -> list[bytes | memoryview]:
    """In parts, for the arrays are not copied. Raises ProtocolError for more than a message can hold."""
    arrays = arrays or {}
    sizes = {name: array.nbytes for name, array in arrays.items()}
    text = json.dumps({**message, "body": sizes} if sizes else message, separators=(",", ":")).encode()
    size = sum(sizes.values())
    if len(text) > MAX_HEADER or size > MAX_BODY:
        raise ProtocolError(f"a message of {len(text)} and {size} bytes")
    return [HEAD.pack(len(text), size) + text, *(array.cast("B") for array in arrays.values())]


def sizes_of(head: bytes | bytearray) -> tuple[int, int]:
    """Bytes of JSON, and behind it. Raises ProtocolError."""
    header, body = HEAD.unpack(head)
    if header > MAX_HEADER:
        raise ProtocolError(f"a message of {header} bytes")
    return header, body


def unpack(header: bytes, body: bytes | bytearray) -> tuple[Message, Arrays]:
    """Raises ProtocolError."""
    try:
        message = json.loads(header)
        sizes = message.pop("body", {})
        arrays, start, view = {}, 0, memoryview(body)
        for name, size in sizes.items():
            arrays[name] = view[start : start + size]
            start += size
    except (ValueError, AttributeError, TypeError) as error:
        raise ProtocolError(str(error)) from None
    if start != len(body):
        raise ProtocolError(f"{len(body)} bytes where {start} are named")
    return message, arrays


def receive(end: socket.socket) -> tuple[Message, Arrays]:
    """The next message. Raises EOFError when the other end is gone, ProtocolError, and TimeoutError where `end` has a
    timeout, be it the kernel's (SO_RCVTIMEO)."""
    header, body = sizes_of(_read(end, HEAD.size))
    return unpack(bytes(_read(end, header)), _read(end, body))


def _read(end: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        try:
            read = end.recv_into(view)
        except (TimeoutError, BlockingIOError):
            raise TimeoutError("the other end is silent") from None
        except OSError as error:
            raise EOFError(str(error)) from None
        if not read:
            raise EOFError("the other end is gone")
        view = view[read:]
    return data


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name of the socket `path` with which it can be bound and connected to: theirs end after 107 bytes."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
