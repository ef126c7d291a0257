"""A real `tritonserver` as a child process: found, started, watched, stopped; by itself or, a rank each, by mpirun.

The facts behind the oddities: its Python stub embeds an interpreter that ignores PYTHONPATH and VIRTUAL_ENV
and takes the first `python3` on PATH; numpy 2 silently corrupts its arrays; a missing libpython leaves the
server loading for ever; a killed stub is neither restarted nor reported by the health endpoints; a stub whose
server is dead but not yet reaped takes it for alive and stays.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import subprocess
import time
from pathlib import Path

from step_audio_server import processes
from step_audio_server.errors import ServerError
from step_audio_server.launch.launch import Launch, shm_flag
from step_audio_server.launch.ports import Ports

MPIRUN_ENDS_IN = 5.0  # seconds from its SIGTERM; it gives its ranks one of them before it kills them
RANKS_END_IN = 10.0  # seconds in which mpirun ends the other ranks after one has died; then it does not
UNREADY_FOR = 30.0  # seconds of no good word from the health endpoint, and a server on GPUs is given up

# Severity, month, day; or the last words of a crash.
ERROR_LINE = re.compile(r"E\d{4} |terminate called|Signal \(|\[TensorRT-LLM\]\[ERROR\]")
MPIRUN_LINE = re.compile(r"(mpirun|prterun|orterun) |.*not enough slots")
# Of Open MPI 4 and 5: "process rank 2 with PID ...", "Process name: [[22210,1],3]" or "[prterun-node-71@1,3]".
FIRST_TO_END = re.compile(r"process rank (\d+) |Process name: \[.*,(\d+)\]")


class TritonServer:
    """One running server. `stop()` leaves nothing behind: no process, no shared memory."""

    def __init__(self, launch: Launch, ports: Ports, log: Path):
        self.launch = launch
        self.ports = ports
        self.log = log
        self._stubs: set[int] = set()
        self._ranks: dict[int, int] = {}  # rank -> process id, as far as they have been seen
        self._regions: set[Path] = set()  # that the ranks share with one another
        self._ready_at = 0.0  # when the health endpoint last said so
        with log.open("wb") as stream:
            # Its own session: a Ctrl-C in the terminal reaches us alone, and we stop it in order.
            self.process = subprocess.Popen(
                launch.command,
                env=launch.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=processes.end_with_parent,
            )

    @property
    def crashed(self) -> bool:
        """Ended by a signal, as 2.51 now and then does while it loads on a busy machine."""
        return (self.process.poll() or 0) < 0

    def wait_live(self, timeout: float) -> None:
        """Until every model is loaded. Raises ServerError."""
        deadline = time.monotonic() + timeout
        complete_at = time.monotonic()  # when no rank that had begun was missing
        while not self._ready():
            if self.process.poll() is not None:
                raise ServerError("tritonserver did not start")
            if (lost := self._lost_rank()) is None:
                complete_at = time.monotonic()
            elif time.monotonic() - complete_at > RANKS_END_IN:
                raise ServerError(f"rank {lost} of tritonserver ended, and the others wait for it")
            if time.monotonic() > deadline:
                raise ServerError(f"tritonserver was not ready within {timeout:.0f} s")
            time.sleep(0.05 if self.launch.ranks == 1 else 0.25)
        self._ready_at = time.monotonic()
        if self.launch.ranks > 1:
            self._lost_rank()  # sees those that it has not seen yet, the leader among them
            self._regions = processes.ranks_regions(self._ranks.values())
        self._stubs = processes.children(self._leader())

    def fault(self) -> str | None:
        """What has died, None while all is well."""
        if self.process.poll() is not None:
            return f"tritonserver ended with status {self.process.returncode}"
        if (lost := self._lost_rank()) is not None:
            return f"rank {lost} of tritonserver died"
        if self._stubs - processes.children(self._leader()):
            return "a model's process died"
        if self.launch.on_gpu:  # where a peer that hangs, hangs the leader, too
            if self._ready():
                self._ready_at = time.monotonic()
            elif time.monotonic() - self._ready_at > UNREADY_FOR:
                return f"tritonserver has not been ready for {UNREADY_FOR:.0f} s"
        return None

    def reason(self) -> str:
        """The log's first error, for people: those that follow come of it."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        errors = [
            line.split("] ", 1)[-1].strip().strip('"')
            for line in lines
            if ERROR_LINE.match(line) and "CudaDriverHelper" not in line and "unable to create stream" not in line
        ] or [line.strip() for line in lines if MPIRUN_LINE.match(line)]
        first = next((match for line in lines if (match := FIRST_TO_END.search(line))), None)
        rank = "" if first is None else f"rank {next(filter(None, first.groups()))} ended first; "
        return f"{rank}{errors[0] if errors else 'no error in its log'} (log: {self.log})"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left. Returns when all processes are gone."""
        regions = self._regions
        if self.launch.ranks > 1:
            regions = regions | processes.ranks_regions(processes.session(self.process.pid))
        if self.process.poll() is None:
            if self._lost_rank() is None:
                # The leader alone: it answers what is in flight with the workers' help, and lets them go when it ends.
                # They have no handler for SIGTERM, as mpirun would send them, and would die at once.
                processes.kill([self._leader()], signal.SIGTERM)
                self._wait(self.launch.kill_after)
            if self.launch.ranks > 1 and self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                self._wait(MPIRUN_ENDS_IN)
        deadline = time.monotonic() + self.launch.kill_after
        while (left := processes.session(self.process.pid)) and time.monotonic() < deadline:
            processes.kill(left, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()
        processes.remove_regions(self.launch.prefix, regions)

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def _ready(self) -> bool:
        return _http_ok(self.ports.reached_at, self.ports.http, "/v2/health/ready")

    def _leader(self) -> int:
        """The process that serves; mpirun's while its ranks have not begun."""
        return self.process.pid if self.launch.ranks == 1 else self._ranks.get(0, self.process.pid)

    def _lost_rank(self) -> int | None:
        """A rank that had begun and is gone, the lowest; None while there is none, or no mpirun."""
        if self.launch.ranks == 1:
            return None
        if len(self._ranks) < self.launch.ranks:
            self._ranks |= self._find_ranks()
        return min((rank for rank, pid in self._ranks.items() if not processes.alive(pid)), default=None)

    def _find_ranks(self) -> dict[int, int]:
        flag = shm_flag(self.launch.prefix)
        found = {}
        for pid in processes.session(self.process.pid):
            numbers = [part[len(flag) : -1] for part in processes.arguments(pid) if part.startswith(flag)]
            if len(numbers) == 1:  # mpirun, and its child that is not yet a rank, name all
                found[int(numbers[0])] = pid
        return found


def _http_ok(host: str, port: int, path: str) -> bool:
    """GET answered with 200."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
