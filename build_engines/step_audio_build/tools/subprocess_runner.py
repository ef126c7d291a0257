"""Runs a program that takes minutes to hours: its output in a log file and, now and then, shown; stopped with us."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from step_audio.command_line import Echo
from step_audio.errors import ArtefactError
from step_audio.settings import children_environment
from step_audio_build.planning.gpus import NUMBERED

SHOW_EVERY = 15.0  # seconds between two lines of a program's output
PATIENCE = 20.0  # seconds that a program has to end by itself when it is told to; mpirun stops its ranks meanwhile
TELLING = re.compile(r"error|exception|no space left|out of memory|failed|fatal|\[E\]", re.IGNORECASE)
# Of Python's tracebacks: places, each followed by its line of the program, and what joins two of them.
FRAME = re.compile(r'File ".*", line \d+')
# trtllm-build with several workers ends in the last of these, behind what its workers have told
# (tensorrt_llm/commands/build.py @65f1d15, parallel_build).
HIDING = re.compile(
    r"The above exception was the direct cause|During handling of the above exception|"
    r"Engine building failed, please check error log"
)
WORKER_KILLED = re.compile(r"BrokenProcessPool|process in the process pool was terminated abruptly")
FOR_MEMORY = (
    "one of its workers was killed, most likely by the kernel because host memory ran out: free memory, raise the "
    "container's limit, or give fewer --workers"
)


def run(
    argv: Sequence[str],
    log: Path,
    echo: Echo = lambda line: None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> None:
    """Wait for `argv` to end, in `directory` or ours. `environment` is for what ours has not set.

    GPUs are numbered for it as nvidia-smi does (`NUMBERED`).

    The program has a session of its own: Ctrl-C reaches us alone, and we end it, whatever it has started included.
    Raises ArtefactError with the most telling line of its output when it cannot be started or fails.
    """
    name = program_name(argv)
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=200)
    with log.open("w", encoding="utf-8") as file:
        print("$", " ".join(argv), file=file, flush=True)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**NUMBERED, **(environment or {}), **children_environment()},
                cwd=directory,
            )
        except FileNotFoundError:
            raise ArtefactError(f"{argv[0]} is not installed; build inside the image for GPUs") from None
        except PermissionError:
            raise ArtefactError(f"{argv[0]} may not be executed; check its permissions") from None
        assert process.stdout is not None
        try:
            shown = -SHOW_EVERY
            for line in _lines(process, process.stdout.fileno()):
                print(line, file=file, flush=True)
                tail.append(line)
                if time.monotonic() - shown >= SHOW_EVERY:
                    shown = time.monotonic()
                    echo(f"{name}: {line}")
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            process.stdout.close()
            _signal(process, signal.SIGKILL)  # what it left behind in its session; nothing as a rule
    if status:
        ended = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise ArtefactError(f"{name} {ended}: {_reason(tail)}; log: {log}")


def _lines(process: subprocess.Popen[bytes], pipe: int) -> Iterator[str]:
    """Its output, which comes out of `pipe`, until it ends, a bar's carriage returns taken for line ends.

    What it has left behind may hold the pipe open: once it has ended, a second of silence is the end.
    """
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=1.0):
                if process.poll() is None:
                    continue
                break
            if not (data := os.read(pipe, 1 << 16)):
                break
            *lines, rest = re.split(rb"[\r\n]+", rest + data)
            yield from (text for line in lines if (text := line.decode("utf-8", "replace").strip()))
    if text := rest.decode("utf-8", "replace").strip():
        yield text


def program_name(argv: Sequence[str]) -> str:
    """What people call it: the last part of a module's name, the name of a script's file."""
    if "-m" in argv:
        return argv[argv.index("-m") + 1].rpartition(".")[2]
    script = next((argument for argument in argv[1:2] if argument.endswith(".py")), argv[0])
    return Path(script).name


def _reason(tail: Sequence[str]) -> str:
    """The last line that tells of a fault, else the last one."""
    if any(WORKER_KILLED.search(line) for line in tail):
        return FOR_MEMORY
    telling = [line for before, line in pairwise(["", *tail]) if TELLING.search(line) and not _hides(before, line)]
    line = (telling or list(tail) or ["it printed nothing"])[-1]
    return line if len(line) <= 300 else line[:300] + " ..."


def _hides(before: str, line: str) -> bool:
    """Whether `line`, which `before` stands above, has the words of a fault and does not say which."""
    return bool(FRAME.match(before) or FRAME.match(line) or HIDING.search(line))


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # start_new_session made its id that of its group
