"""`step-audio serve` as a person runs it: a process, its words, its signals, and what it does about a dead model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_process import ServeProcess, living
from server_settings import settings_for
from step_audio_build.convert.make_tiny import make_tiny
<<<<<<< HEAD
from step_audio_client import Sampling, StepAudioClient, user
from step_audio_server.launch.ports import free_ports
from waiting import SECONDS, wait_until
=======
>>>>>>> 03b7b3e (Kill each process in tests while answers are made; clear up behind a killed serve)

pytestmark = pytest.mark.server


<<<<<<< HEAD
class Command:
    """A running `step-audio serve`; its lines are read as they come."""

    def __init__(self, settings, *extra: str):
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
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.put(line.strip())

    def wait_for(self, text: str, seconds: float = 180) -> str:
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


def living(pid: int) -> bool:
    """Not gone, and not merely waiting for init to reap it."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


=======
>>>>>>> 03b7b3e (Kill each process in tests while answers are made; clear up behind a killed serve)
@pytest.fixture
def command(checkpoint, work_dir):
    running = ServeProcess(settings_for(checkpoint, work_dir))
    yield running
<<<<<<< HEAD
    if running.process.poll() is None:
        running.process.terminate()
        running.process.wait(SECONDS)
=======
    running.end()
>>>>>>> 03b7b3e (Kill each process in tests while answers are made; clear up behind a killed serve)


def test_serves_survives_a_dead_model_and_stops(command):
    ready = command.wait_for("ready")
    assert str(command.settings.grpc_port) in ready
    assert command.ask() == 5
    assert json.loads(command.get("/v1/models"))["data"][0]["id"] == command.settings.checkpoint.name
    assert b"<html" in command.get("/").lower()  # the playground

    stubs = [pid for pid in command.family() if "triton_python" in Path(f"/proc/{pid}/comm").read_text()]
    assert len(stubs) == 5  # one a model
    os.kill(stubs[0], signal.SIGKILL)
    command.wait_for("died: starting again")
    command.wait_for("ready")
    assert command.ask() == 5

    family = command.family()
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(SECONDS) == 0
    assert not [pid for pid in family if living(pid)]
    assert not list(Path("/dev/shm").glob(f"step_audio_{command.process.pid}_*"))


def test_a_killed_serve_leaves_no_server(command):
    command.wait_for("ready")
    family = command.family()
    command.process.kill()
    wait_until(lambda: not [pid for pid in family if living(pid)], "the end of tritonserver")


def test_ctrl_c_while_it_starts(command):
    command.wait_for("loading the models")
    family = command.family()
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(SECONDS) == 0
    assert not [pid for pid in family if living(pid)]


def refused(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "step_audio_server", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_what_serve_refuses(checkpoint, work_dir, service, tmp_path):
    here = ("--checkpoint", str(checkpoint), "--work-dir", str(work_dir))
    assert "give --checkpoint DIR" in refused("serve")
    assert "does not exist" in refused("serve", "--checkpoint", str(tmp_path / "nothing"))
    port = str(service.settings.grpc_port)
    assert f"port {port} is in use: choose another with --grpc-port" in refused("serve", *here, "--grpc-port", port)
    assert "max_seq_len 99999999" in refused("serve", *here, "--max-seq-len", "99999999")
    assert "neither default nor published nor a file, got 'nowhere.jinja'" in refused(
        "serve", *here, "--chat-template", "nowhere.jinja"
    )


def test_a_broken_rank_file_is_named(tmp_path):
    """A conversion that was tampered with is not served."""
    checkpoint, work = tmp_path / "tiny", tmp_path / "work"
    make_tiny(checkpoint, dtype="float32")
    from step_audio_server.prepare import build_for_cpu

    settings = settings_for(checkpoint, work, max_seq_len=4096)
    build_for_cpu(settings, lambda line: None)
    rank = work / "decoder-tp4-float32" / "rank2.safetensors"
    rank.write_bytes(rank.read_bytes()[:-100])
    assert "rank2.safetensors" in refused("serve", "--checkpoint", str(checkpoint), "--work-dir", str(work))
