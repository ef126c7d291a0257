"""The stub's side of a step whose work is done in a process of its own, the worker.

tritonserver frees a request under a stub that does not answer its heartbeat, so a stub computes nothing: it copies a
request's inputs, hands them to the worker, and sends what comes back. The worker may be slow, and may die: it is then
started again and given what it had not answered, one request at a time, so that the one it dies of a second time is
known, gets an error, and is refused from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from step_audio.errors import Deadly, NotServing, Overloaded, StepAudioError
from step_audio.steps.channel import Channel, Frame
from step_audio.steps.tensors import (
    INTERNAL_ERROR,
    MAX_PENDING,
    MAX_PENDING_BYTES,
    Failed,
    Reply,
    Tensors,
    packed,
    unpacked,
)

BROKEN = -1  # the number of a message that is about the worker itself

MAX_DEATHS = 2  # of the worker, with the same request on its hands
MAX_REFUSED = 256  # requests that are remembered as deadly
PAUSES = (0.0, 0.2, 1.0, 3.0)  # seconds before the worker is started again, by its deaths in a row without an answer

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Pending:
    frame: Frame
    answer: Reply
    deaths: int = 0
    number: int = field(default_factory=count().__next__)


class WorkerClient:
    """`command`: what starts the worker; the number of its socket's descriptor is put behind. `restarted` is called
    when a worker has died and another is started, and may not raise."""

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        restarted: Callable[[], None] = lambda: None,
    ):
        self._command = command
        self._restarted = restarted
        self._environment = {**os.environ, **(environment or {})}
        self._lock = threading.Lock()
        self._pending: OrderedDict[int, _Pending] = OrderedDict()  # sent or to be sent, not answered
        self._suspects: deque[int] = deque()  # that a worker has died with, tried again one by one
        self._refused: OrderedDict[bytes, None] = OrderedDict()
        self._broken: StepAudioError | None = None  # it cannot start, and why
        self._outbox: queue.SimpleQueue[tuple[int, _Pending] | None] = queue.SimpleQueue()
        self._generation = 0  # of the worker: what is meant for an earlier one is not sent
        self._held: list[_Pending] = []  # while suspects are tried
        self._failures = 0  # in a row
        self._closing = False
        self._process, self._channel = self._start()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    def submit(self, inputs: Tensors, answer: Reply) -> None:
        """`answer` is called once, by another thread, with the outputs or with what went wrong.

        `inputs` are copied before this returns. Raises Overloaded, Deadly for a request that has killed workers,
        and NotServing where no worker can be started.
        """
        if self._broken:
            raise self._broken
        frame = Frame.of(packed(inputs))
        pending = _Pending(frame, answer)
        with self._lock:
            size = sum(other.frame.size for other in self._pending.values())
            if len(self._pending) >= MAX_PENDING or (size and size + frame.size > MAX_PENDING_BYTES):
                frame.close()
                raise Overloaded(f"{len(self._pending)} requests are waiting already, {size >> 20} MiB")
            if self._refused and _digest(frame) in self._refused:
                frame.close()
                raise Deadly("this request has ended the process that worked on it, and is not tried again")
            self._pending[pending.number] = pending
            if self._suspects:
                self._held.append(pending)
                return
            self._outbox.put((self._generation, pending))

    def close(self) -> None:
        """Returns when the worker is gone."""
        self._closing = True
        self._outbox.put(None)
        self._channel.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(1)

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[theirs.fileno()],
            )
        return process, Channel(ours)

    def _write(self) -> None:
        """What a dead worker does not get is among the pending when the next one is started."""
        while (entry := self._outbox.get()) is not None:
            generation, pending = entry
            with self._lock:
                channel = self._channel
                if generation != self._generation:
                    continue
            with contextlib.suppress(OSError):
                channel.send(pending.number, pending.frame)

    def _read(self) -> None:
        while True:
            try:
                number, result = self._channel.receive()
            except EOFError:
                if self._closing:
                    return
                self._restart()
                continue
            if number == BROKEN:  # it cannot work, and has logged why
                self._give_up(NotServing("a step of the server could not be started: the server's log says why"))
                return
            self._failures = 0
            self._finish(number, result)

    def _finish(self, number: int, result: Tensors | Failed) -> None:
        with self._lock:
            pending = self._pending.pop(number, None)
            for following in self._next_suspect(number):
                self._outbox.put((self._generation, following))
        if pending is not None:
            pending.frame.close()
            pending.answer(result.error() if isinstance(result, Failed) else unpacked(result))

    def _next_suspect(self, number: int) -> list[_Pending]:
        """What may be sent now that `number` is done: the next suspect, or all that waited for them."""
        if not self._suspects or self._suspects[0] != number:
            return []
        self._suspects.popleft()
        if self._suspects:
            return [self._pending[self._suspects[0]]]
        held, self._held = self._held, []
        return held

    def _restart(self) -> None:
        """Another worker for what the dead one had at hand: who was there at its death, one by one."""
        status = self._process.wait()
        log.error("the worker ended with status %s, %d requests at hand", status, len(self._pending))
        self._channel.close()
        time.sleep(PAUSES[min(self._failures, len(PAUSES) - 1)])
        self._failures += 1
        with self._lock:
            at_hand = [self._suspects[0]] if self._suspects else list(self._pending)
            deadly = self._count_deaths(at_hand)
            self._suspects = deque(number for number in (self._suspects or at_hand) if number in self._pending)
            waiting = [pending for number, pending in self._pending.items() if number not in self._suspects]
            self._process, self._channel = self._start()
            self._generation += 1
            self._held = waiting if self._suspects else []
            for pending in [self._pending[self._suspects[0]]] if self._suspects else waiting:
                self._outbox.put((self._generation, pending))
        for pending in deadly:
            pending.frame.close()
            pending.answer(StepAudioError(INTERNAL_ERROR))
        self._restarted()

    def _count_deaths(self, numbers: list[int]) -> list[_Pending]:
        """Takes those out that have seen too many."""
        deadly = []
        for number in numbers:
            self._pending[number].deaths += 1
            if self._pending[number].deaths >= MAX_DEATHS:
                deadly.append(pending := self._pending.pop(number))
                self._refused[_digest(pending.frame)] = None
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        return deadly

    def _give_up(self, error: StepAudioError) -> None:
        self._broken = error
        with self._lock:
            left = list(self._pending.values())
            self._pending.clear()
        for pending in left:
            pending.answer(error)


def python_command(module: str, *arguments: str) -> list[str]:
    """This environment's interpreter: inside a stub, `sys.executable` is not it, but the first python3 on PATH is."""
    return [shutil.which("python3") or sys.executable, "-P", "-m", module, *arguments]


def _digest(frame: Frame) -> bytes:
    digest = hashlib.blake2b(frame.data, digest_size=16)
    if frame.memory is not None:
        offset = 0
        while block := os.pread(frame.memory, 1 << 20, offset):
            digest.update(block)
            offset += len(block)
    return digest.digest()
