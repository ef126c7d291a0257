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
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TypedDict

from step_audio_client import Tls
from step_audio_server import processes
from step_audio_server.errors import ServerError
from step_audio_server.heartbeat import Heartbeat
from step_audio_server.launch.launch import Launch, shm_flag
from step_audio_server.launch.ports import Ports
from step_audio_server.reaper import Reaper
from step_audio_server.records import Death, private, rotate

MPIRUN_ENDS_IN = 5.0  # seconds from its SIGTERM; it gives its ranks one of them before it kills them
STUB_ENDS_IN = 5.0  # seconds in which a model's process ends that tritonserver waits for, if it does
# Looks, a watch period apart, at which a process is stopped: not when all were, and go on one after the other.
STOPPED_LOOKS = 2
RANKS_END_IN = 10.0  # seconds in which mpirun ends the other ranks after one has died; then it does not

# Severity, month, day; or the last words of a crash.
ERROR_LINE = re.compile(r"E\d{4} |terminate called|Signal \(|\[TensorRT-LLM\]\[ERROR\]")
MPIRUN_LINE = re.compile(r"(mpirun|prterun|orterun) |.*not enough slots")
# The engine's gauge, ours and NVIDIA's.
ACTIVE_REQUESTS = re.compile(r'^nv_trt_llm_request_metrics\{[^}]*request_type="active"[^}]*\} (\S+)$', re.MULTILINE)
# Of Open MPI 4 and 5: "process rank 2 with PID ...", "Process name: [[22210,1],3]" or "[prterun-node-71@1,3]".
FIRST_TO_END = re.compile(r"process rank (\d+) |Process name: \[.*,(\d+)\]")


class TritonServer:
    """One running server. `stop()` leaves nothing behind: no process, no shared memory."""

    def __init__(self, launch: Launch, ports: Ports, log: Path):
        self.launch = launch
        self.ports = ports
        self.log = log
        self._stubs: dict[int, str] = {}  # process id -> its model
        self._ranks: dict[int, int] = {}  # rank -> process id, as far as they have been seen
        self._regions: set[Path] = set()  # that the ranks share with one another
        self._stopped: Counter[int] = Counter()  # process id -> looks in a row at which it was stopped
        self._heartbeat: Heartbeat | None = None
        self._waiting: dict[int, float] = {}  # its threads that wait for a child's end, and since when
        rotate(log)
        with open(log, "ab", opener=private) as stream:  # or it would go on where it was when `limit` empties it
            # Its own session: a Ctrl-C in the terminal reaches us alone, and we stop it in order.
            self.process = subprocess.Popen(
                launch.command,
                env=launch.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                umask=0o077,
                start_new_session=True,
            )
        self._reaper = Reaper(self.process.pid, launch.prefix, launch.kill_after)

    @property
    def crashed(self) -> bool:
        """It died of its own fault: a pause of a second while a model loads, of the whole machine too, may do it.

        2.51 then gives the model's process up. Either one of them is ended by a signal, or it waits for ever for the
        process, which lives, to end.
        """
        death = self.fault()
        return self._gave_up() or (death is not None and death.signal is not None)

    def wait_live(self, timeout: float, stopping: threading.Event | None = None) -> None:
        """Until every model is loaded. Raises ServerError, and KeyboardInterrupt as soon as `stopping` is set."""
        stopping = stopping or threading.Event()
        deadline = time.monotonic() + timeout
        looked_at = time.monotonic()
        complete_at = time.monotonic()  # when no rank that had begun was missing
        while not self._ready():
            if self.process.poll() is not None:
                raise ServerError("tritonserver did not start")
            if (lost := self._lost_rank()) is None:
                complete_at = time.monotonic()
            elif time.monotonic() - complete_at > RANKS_END_IN:
                raise ServerError(f"rank {lost} of tritonserver ended, and the others wait for it")
            if time.monotonic() - looked_at > 1:  # at all its threads, some 200
                looked_at = time.monotonic()
                if self._gave_up():
                    raise ServerError("tritonserver has given up a model's process that lives, and waits for its end")
            if time.monotonic() > deadline:
                raise ServerError(f"tritonserver was not ready within {timeout:.0f} s")
            processes.close_regions(self.launch.prefix)
            if stopping.wait(0.05 if self.launch.ranks == 1 else 0.25):
                raise KeyboardInterrupt
        processes.close_regions(self.launch.prefix)
        if self.launch.ranks > 1:
            self._lost_rank()  # sees those that it has not seen yet, the leader among them
            self._regions = processes.ranks_regions(self._ranks.values())
        self._stubs = {pid: _model(pid) for pid in processes.children(self._leader())}

    def fault(self) -> Death | None:
        """What has died or hangs, None while all is well."""
        if (status := self.process.poll()) is not None:
            return Death(f"tritonserver ended with status {status}", **_how_ended(status))
        if (lost := self._lost_rank()) is not None:
            return Death(f"rank {lost} of tritonserver died")
        if dead := set(self._stubs) - processes.children(self._leader()):
            pid = min(dead)
            model, status = self._stubs[pid], processes.exit_status(pid)
            return Death(f"the process of {model} died", model, in_flight=self._in_flight(), **_how_ended(status))
        if (halted := self._halted()) is not None:
            whose = self._stubs.get(halted)
            return Death(f"{whose or 'tritonserver'} is stopped", whose)
        if self._heartbeat is not None and (silent := self._heartbeat.fault()) is not None:
            return Death(silent, silent.partition(" ")[0], in_flight=self._in_flight())
        return None

    def watch(self, address: str, tls: Tls) -> None:
        """From now on a model that does not answer at `address` is a fault, too."""
        self._heartbeat = Heartbeat(address, tls)

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
        self._stop_heartbeat()
        regions = self._all_regions()
        if self.process.poll() is None:
            if self._lost_rank() is None:
                # The leader alone: it answers what is in flight with the workers' help, and lets them go when it ends.
                # They have no handler for SIGTERM, as mpirun would send them, and would die at once.
                processes.kill([self._leader()], signal.SIGTERM)
                self._wait(self.launch.kill_after)
            if self.launch.ranks > 1 and self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                self._wait(MPIRUN_ENDS_IN)
        self._kill(regions)

    def kill(self) -> None:
        """At once, for a server with a dead part finishes nothing. Returns when all processes are gone."""
        self._stop_heartbeat()
        self._kill(self._all_regions())

    def _kill(self, regions: set[Path]) -> None:
        regions |= processes.end_session(self.process.pid, self.process.poll, self.launch.kill_after)
        self.process.wait()
        processes.remove_regions(self.launch.prefix, regions)
        self._reaper.dismiss()

    def _halted(self) -> int | None:
        """A process that a signal has stopped. tritonserver would give it up a second after the next heartbeat; no load
        looks like this."""
        watched = {self._leader(), *self._ranks.values(), *self._stubs}
        self._stopped = Counter({pid: self._stopped[pid] + 1 for pid in watched if processes.stopped(pid)})
        return next((pid for pid, looks in self._stopped.items() if looks >= STOPPED_LOOKS), None)

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _all_regions(self) -> set[Path]:
        if self.launch.ranks == 1:
            return self._regions
        return self._regions | processes.ranks_regions(processes.session(self.process.pid))

    def _in_flight(self) -> int | None:
        """Requests that the engine has, by its gauge; None where it is not to be had."""
        text = _http_get(self.ports.reached_at, self.ports.metrics, "/metrics", timeout=0.3)
        found = ACTIVE_REQUESTS.search(text or "")
        return None if found is None else int(float(found[1]))

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def _ready(self) -> bool:
        return _http_get(self.ports.reached_at, self.ports.http, "/v2/health/ready") is not None

    def _gave_up(self) -> bool:
        """While it loads: it waits for a model's process that does not end."""
        if self.launch.ranks > 1 and 0 not in self._ranks:
            return False
        now = time.monotonic()
        threads = processes.threads_waiting_for_children(self._leader())
        self._waiting = {thread: self._waiting.get(thread, now) for thread in threads}
        return any(now - since > STUB_ENDS_IN for since in self._waiting.values())

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


def _model(stub: int) -> str:
    """Whose process it is: its second argument is REPOSITORY/MODEL/VERSION/model.py."""
    words = processes.arguments(stub)
    return Path(words[1]).parts[-3] if len(words) > 1 and len(Path(words[1]).parts) > 2 else "a model"


class _HowEnded(TypedDict):
    signal: str | None
    status: int | None


def _how_ended(status: int | None) -> _HowEnded:
    """`status`: subprocess' form, a signal's number negative."""
    if status is not None and status < 0:
        return {"signal": signal.Signals(-status).name, "status": None}
    return {"signal": None, "status": status}


def _http_get(host: str, port: int, path: str, timeout: float = 2) -> str | None:
    """The body of a 200, None for anything else."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read().decode("utf-8", "replace") if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
