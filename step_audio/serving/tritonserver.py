"""A real `tritonserver` as a child process: found, started on loopback, watched, stopped.

The facts behind the oddities: its Python stub embeds an interpreter that ignores PYTHONPATH and VIRTUAL_ENV
and takes the first `python3` on PATH; numpy 2 silently corrupts its arrays; a missing libpython leaves the
server loading for ever; a killed stub is neither restarted nor reported by the health endpoints.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import http.client
import importlib.metadata
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from step_audio.errors import ArtefactError, StepAudioError

EXIT_TIMEOUT = 5  # seconds that tritonserver grants requests in flight; new ones it refuses at once
# Seconds until it is killed: when the time it grants is over, 2.51 trips over its own heap instead of leaving.
KILL_AFTER = EXIT_TIMEOUT + 3

ERROR_LINE = re.compile(r"E\d{4} |terminate called|Signal \(")  # severity, month, day; or the last words of a crash


PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ServerError(StepAudioError):
    """tritonserver could not be found or started, or it died."""


@dataclass(frozen=True)
class Installation:
    """Where a tritonserver's parts are."""

    binary: Path
    backends: Path
    stub: Path
    libraries: tuple[Path, ...]  # for LD_LIBRARY_PATH

    @classmethod
    def find(cls) -> Installation:
        """The server inside nvidia-pytriton's wheel. Raises ServerError that says what to install."""
        spec = importlib.util.find_spec("pytriton")
        if spec is None or spec.origin is None:
            raise ServerError("no tritonserver here: pip install -e '.[cpu]'")
        if int(importlib.metadata.version("numpy").split(".")[0]) >= 2:
            raise ServerError("this tritonserver corrupts numpy 2 arrays: pip install 'numpy==1.26.4'")
        site = Path(spec.origin).resolve().parents[1]
        root = site / "pytriton" / "tritonserver"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.is_file():
            raise ServerError(f"this tritonserver has no stub for Python {version}: use Python 3.11 or 3.12")
        return cls(
            binary=root / "bin" / "tritonserver",
            backends=root / "backends",
            stub=stub,
            libraries=(site / "nvidia_pytriton.libs", _libpython_folder()),
        )


def _libpython_folder() -> Path:
    """The folder of this interpreter's libpython, which the stub loads."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    soname = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    candidates = [
        Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"),
        Path(sys.base_prefix) / "lib",
        Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or ""),
        Path("/usr/lib64"),
    ]
    for folder in candidates:
        if (folder / soname).exists():
            return folder
    raise ServerError(
        f"{soname} is missing (this Python has {name or 'none'}): install your system's libpython "
        f"(Debian: apt-get install libpython{sysconfig.get_python_version()}) or a Python built with --enable-shared"
    )


@dataclass(frozen=True)
class Ports:
    grpc: int
    http: int
    metrics: int

    def check_free(self) -> None:
        """Raises ServerError that names the flag to change."""
        if len({self.grpc, self.http, self.metrics}) < 3:
            raise ServerError("--grpc-port, --http-port and --metrics-port must differ")
        for name, port in (("grpc", self.grpc), ("http", self.http), ("metrics", self.metrics)):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    said = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                    raise ServerError(f"port {port} {said}: choose another with --{name}-port") from None


class TritonServer:
    """One running server. `stop()` leaves nothing behind: no process, no shared memory."""

    def __init__(self, installation: Installation, repository: Path, backends: Path, ports: Ports, log: Path):
        self.log = log
        self.ports = ports
        self._prefix = f"step_audio_{os.getpid()}_{ports.grpc}_"
        bin_folder = Path(sys.executable).parent
        if not (bin_folder / "python3").exists():
            raise ArtefactError(f"{bin_folder} has no python3: run step-audio from a virtual environment")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= {
            "PATH": f"{bin_folder}:/usr/bin:/bin",
            "LD_LIBRARY_PATH": ":".join(map(str, installation.libraries)),
        }
        command = [
            str(installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--disable-auto-complete-config",
            *(f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")),
            f"--grpc-port={ports.grpc}",
            f"--http-port={ports.http}",
            f"--metrics-port={ports.metrics}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={EXIT_TIMEOUT}",
        ]
        with log.open("wb") as stream:
            # Its own session: a Ctrl-C in the terminal reaches us alone, and we stop it in order.
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._stubs: set[int] = set()

    @property
    def crashed(self) -> bool:
        """Ended by a signal, as 2.51 now and then does while it loads on a busy machine."""
        return (self.process.poll() or 0) < 0

    def wait_live(self, timeout: float) -> None:
        """Until every model is loaded. Raises ServerError."""
        deadline = time.monotonic() + timeout
        while not _http_ok(self.ports.http, "/v2/health/ready"):
            if self.process.poll() is not None:
                raise ServerError("tritonserver did not start")
            if time.monotonic() > deadline:
                raise ServerError(f"tritonserver was not ready within {timeout:.0f} s")
            time.sleep(0.05)
        self._stubs = _children(self.process.pid)

    def fault(self) -> str | None:
        """What has died, None while all is well."""
        if self.process.poll() is not None:
            return f"tritonserver ended with status {self.process.returncode}"
        if self._stubs - _children(self.process.pid):
            return "a model's process died"
        return None

    def reason(self) -> str:
        """The log's first error, for people: those that follow come of it."""
        errors = [
            line.split("] ", 1)[-1].strip().strip('"')
            for line in self.log.read_text("utf-8", "replace").splitlines()
            if ERROR_LINE.match(line) and "CudaDriverHelper" not in line and "unable to create stream" not in line
        ]
        return f"{errors[0] if errors else 'no error in its log'} (log: {self.log})"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left. Returns when all processes are gone."""
        stubs = self._stubs | _children(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(KILL_AFTER)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + KILL_AFTER
        while any(map(_alive, stubs)) and time.monotonic() < deadline:
            time.sleep(0.01)
        for region in Path("/dev/shm").glob(f"{self._prefix}*"):
            region.unlink(missing_ok=True)


def _end_with_parent() -> None:
    """In the child, before it becomes tritonserver: a SIGTERM when the thread that starts it dies, however it dies.
    Without it a killed `step-audio serve` leaves a server behind that holds the ports."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _http_ok(port: int, path: str) -> bool:
    """GET answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _children(pid: int) -> set[int]:
    """Process ids of all living child processes, whichever thread started them. The dead are never reaped."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            found |= {int(child) for child in task.read_text().split()}
    return {child for child in found if _alive(child)}


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
