"""What others on the machine see of a server: its memory, its logs, its children's environment, what it writes."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from serve_process import ServeProcess
from server_settings import settings_for
from step_audio_server.prepare import build_for_cpu
from waiting import SECONDS

pytestmark = pytest.mark.server

KEY = "a-key-that-nobody-else-may-know"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
MACHINE = ("/dev/", "/proc/", "/sys/")  # devices and the kernel's own


@pytest.fixture(scope="module")
def serving(checkpoint, work_dir, tmp_path_factory):
    """With an API key in its environment, and a home and a folder for temporary files that nobody else writes to."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("HOME", "TMPDIR")}
    cache = {"XDG_CACHE_HOME": f"{folders['HOME']}/.cache"}
    settings = settings_for(checkpoint, work_dir, max_seq_len=4096)
    build_for_cpu(settings, lambda line: None)
    running = ServeProcess(settings, STEP_AUDIO_API_KEY=KEY, **folders, **cache)
    running.folders = list(map(Path, folders.values()))
    running.wait_for("ready", seconds=300)
    assert running.ask() == 5
    yield running
    running.end()


def regions(serving: ServeProcess) -> list[Path]:
    return list(Path("/dev/shm").glob(f"step_audio_{serving.process.pid}_*"))


def test_shared_memory_is_for_nobody_else(serving):
    found = regions(serving)
    assert len(found) >= 5 and not [path.name for path in found if path.stat().st_mode & OTHERS]


def test_logs_are_for_nobody_else(serving):
    serving.kill("tokenizer")
    serving.wait_for("starting again")
    serving.wait_for("ready", seconds=300)
    run_dir = serving.settings.run_dir
    logs = [*run_dir.glob("tritonserver.log*"), run_dir / "deaths.jsonl"]
    assert len(logs) == 3 and not [path.name for path in logs if path.stat().st_mode & OTHERS]


def status(serving: ServeProcess, key: str) -> int:
    url = f"http://127.0.0.1:{serving.port}/v1/models"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        return urllib.request.urlopen(request, timeout=SECONDS).status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_child_knows_the_keys(serving):
    assert (status(serving, KEY), status(serving, "another")) == (200, 401)
    family = serving.family()
    assert len(family) >= 11  # the server, 5 stubs, 3 workers, the gateway, the reaper
    for pid in family:
        for source in ("environ", "cmdline"):
            assert KEY.encode() not in Path(f"/proc/{pid}/{source}").read_bytes()


def written(pid: int) -> set[Path]:
    """Files with a name that a process has open for writing."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            target = os.readlink(descriptor)
            flags = int(Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().split("flags:")[1].split()[0], 8)
            if target.startswith("/") and flags & (os.O_WRONLY | os.O_RDWR):
                found.add(Path(target))
    return found


def test_nothing_is_written_outside_the_work_directory(serving):
    mine = written(serving.process.pid)  # what this test's own process has handed down: its output
    allowed = (str(serving.settings.work_dir.resolve()), *MACHINE)
    assert serving.ask() == 5
    found = set.union(*(written(pid) for pid in serving.family())) - mine
    assert any(path.name == "tritonserver.log" for path in found)
    assert not {str(path) for path in found if not str(path).startswith(allowed)}
    shared = {path for path in found if str(path).startswith("/dev/shm/")}
    assert shared <= set(regions(serving))
    assert not [str(path) for folder in serving.folders for path in folder.rglob("*")]
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(300) == 0
    assert not [str(path) for folder in serving.folders for path in folder.rglob("*")]
    assert not regions(serving)
