"""A running `step-audio serve`, its words, its processes."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from step_audio_client import Sampling, StepAudioClient, user
from step_audio_server.launch.ports import free_ports
from step_audio_server.processes import arguments
from waiting import SECONDS


class ServeProcess:
    """A running `step-audio serve`; its lines are read as they come."""

    def __init__(self, settings, *extra: str, **environment: str):
        self.settings = settings
        (self.port,) = free_ports(1)
        arguments = [
            *("--checkpoint", str(settings.checkpoint), "--work-dir", str(settings.work_dir)),
            *("--grpc-port", str(settings.grpc_port), "--http-port", str(settings.http_port)),
            *("--metrics-port", str(settings.metrics_port), "--max-seq-len", "4096"),
            *("--port", str(self.port)),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "step_audio_server", "serve", *arguments, *extra],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.put(line.strip())

    def wait_for(self, text: str, seconds: float = SECONDS) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                line = self.lines.get(timeout=0.2)
            except queue.Empty:
                assert self.process.poll() is None, self.seen
                continue
            self.seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not said: {self.seen}")

    def ask(self) -> int:
        async def once() -> int:
            async with StepAudioClient(f"127.0.0.1:{self.settings.grpc_port}") as client:
                answer = await client.complete([user("hello")], Sampling(max_tokens=5, temperature=0), timeout=SECONDS)
                return answer.usage.completion_tokens

        return asyncio.run(once())

    def get(self, path: str) -> bytes:
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=SECONDS).read()

    def family(self) -> list[int]:
        """Process ids below the command, living ones."""
        table = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True).stdout
        rows = [line.split() for line in table.splitlines()]
        found, grown = [self.process.pid], True
        while grown:
            grown = [int(p) for p, parent, s in rows if int(parent) in found and int(p) not in found and s[0] != "Z"]
            found += grown
        return found[1:]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.settings.grpc_port}"

    def pids(self) -> dict[str, int]:
        """Of the server, of each model's process, and of the gateway, by name."""
        found = {}
        for pid in self.family():
            words = arguments(pid)
            if not words:
                continue
            if words[0].endswith("triton_python_backend_stub"):
                found[Path(words[1]).parts[-3]] = pid
            elif words[0].endswith("/tritonserver"):
                found["tritonserver"] = pid
            elif "step_audio_gateway.server" in words:
                found["gateway"] = pid
        return found

    def kill(self, name: str) -> None:
        """What was said before is not waited for any more."""
        while not self.lines.empty():
            self.seen.append(self.lines.get())
        os.kill(self.pids()[name], signal.SIGKILL)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(SECONDS)


def living(pid: int) -> bool:
    """Not gone, and not merely waiting for init to reap it."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")
