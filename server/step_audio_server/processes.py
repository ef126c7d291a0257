"""What /proc tells of a server's processes, all of which are in the session that its first one began.

The session finds them where the family tree and the process group do not: mpirun may give each rank a group of its
own, and whose parent was killed belongs to init.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
# What Open MPI, NCCL and Python's multiprocessing (vLLM) share between ranks and, killed, do not remove.
RANKS_REGION = re.compile(r"vader_segment\.|sm_segment\.|nccl-|ucx_shm|psm_")
STOPS_IN = 0.1  # seconds; a rank that the driver holds may not stop, and does not make anything meanwhile


def children(pid: int) -> set[int]:
    """Process ids of all living child processes, whichever thread started them. The dead are never reaped."""
    found: set[int] = set()
    for task in _entries(pid, "task"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            found |= {int(child) for child in (task / "children").read_text().split()}
    return {child for child in found if alive(child)}


def tree(pid: int) -> set[int]:
    """`pid` and all living processes below it."""
    found, new = {pid}, {pid}
    while new:
        new = {child for one in new for child in children(one)} - found
        found |= new
    return found


def role(pid: int) -> str:
    """What a process of ours is for: its model, or its module."""
    words = arguments(pid)
    if models := [word for word in words if word.endswith("/model.py")]:
        return f"stub of {Path(models[0]).parts[-3]}"
    if (worker := "step_audio.steps.worker") in words:
        return f"worker of {words[words.index(worker) + 1]}"
    return next((word for word in words if word.startswith("step_audio_")), Path((words or ["gone"])[0]).name)


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far; 0.0 where it is gone."""
    fields = _stat(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def session(leader: int) -> set[int]:
    """The living processes of the session that `leader` began, itself included."""
    return {
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if (fields := _stat(int(path.name))) is not None and int(fields[3]) == leader and fields[0] not in "ZX"
    }


def alive(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX"


def stopped(pid: int) -> bool:
    """By a signal; not, as a debugger does it, to be looked at."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "T"


def threads_waiting_for_children(pid: int) -> set[int]:
    """Those of its threads that wait for a child process to end. None where the kernel does not tell."""
    found = set()
    for task in _entries(pid, "task"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            if (task / "wchan").read_text() == "do_wait":
                found.add(int(task.name))
    return found


def exit_status(pid: int) -> int | None:
    """Of a dead process that nobody has reaped, as subprocess gives it: a signal's number negative."""
    fields = _stat(pid)
    if fields is None or fields[0] not in "ZX":
        return None
    return os.waitstatus_to_exitcode(int(fields[49]))  # proc(5)'s 52nd, the state being the third


def _entries(pid: int, folder: str) -> list[Path]:
    """Of a process' folder; none when it is gone, were it while they are read (`glob` raises then)."""
    try:
        return list(Path(f"/proc/{pid}/{folder}").iterdir())
    except OSError:
        return []


def _stat(pid: int) -> list[str] | None:
    """proc(5)'s fields from the state on: state, parent, group, session, ...; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def arguments(pid: int) -> list[str]:
    """Empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return []


def kill(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_ranks(pids: set[int]) -> set[Path]:
    """At once; returns the shared memory that they leave. They are stopped first: between a look at what one has and
    its end it would make more."""
    kill(pids, signal.SIGSTOP)
    deadline = time.monotonic() + STOPS_IN
    while any(alive(pid) and not stopped(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.001)
    regions = ranks_regions(pids)
    kill(pids, signal.SIGKILL)
    return regions


def end_session(leader: int, reap: Callable[[], object] = lambda: None, seconds: float = math.inf) -> set[Path]:
    """Kill what is in a session until it is empty, for what is killed may have begun more, or for so long. `reap`: by
    its leader's parent. Returns the shared memory that it leaves."""
    regions: set[Path] = set()
    deadline = time.monotonic() + seconds
    while (left := session(leader)) and time.monotonic() < deadline:
        regions |= kill_ranks(left)
        reap()
        time.sleep(0.01)
    return regions


def ranks_regions(pids: Iterable[int]) -> set[Path]:
    """Shared memory of RANKS_REGION that these processes have mapped, or opened and are about to map."""
    found: set[Path] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines()
            found |= {Path(line.split(maxsplit=5)[5]) for line in lines if "/dev/shm/" in line}
        for file in _entries(pid, "fd"):
            with contextlib.suppress(OSError):
                found.add(file.readlink())
    return {path for path in found if path.parent == SHARED_MEMORY and RANKS_REGION.match(path.name)}


def close_regions(prefix: str) -> None:
    """To other users. Triton makes them 0644, whatever the umask (boost's shared_memory_object does an fchmod)."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            region.chmod(0o600)


def remove_regions(prefix: str, others: Iterable[Path] = ()) -> None:
    """Those whose names begin with `prefix`, and `others`."""
    for region in [*SHARED_MEMORY.glob(f"{prefix}*"), *others]:
        region.unlink(missing_ok=True)
