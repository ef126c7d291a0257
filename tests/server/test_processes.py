"""What is known of processes that end, and what killed ranks leave in shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from step_audio_server import processes

MAKES = """
import mmap, sys, time
made = open(sys.argv[1], "w+b")
made.truncate(4096)
if sys.argv[2] == "mapped":
    mapped = mmap.mmap(made.fileno(), 4096)
    made.close()
print(flush=True)
time.sleep(600)
"""


@pytest.mark.processes
@pytest.mark.parametrize("how", ["opened", "mapped"])
@pytest.mark.parametrize("name", ["vader_segment.{}", "nccl-{}", "psm_{}", "sm_segment.{}", "of_somebody_{}"])
def test_a_killed_rank_s_region_is_found(how, name):
    region = Path("/dev/shm") / name.format(f"test_{os.getpid()}")
    process = subprocess.Popen([sys.executable, "-IS", "-c", MAKES, region, how], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        found = processes.kill_ranks({process.pid})
        assert found == (set() if name.startswith("of") else {region})
        assert process.wait(60) == -9
    finally:
        region.unlink(missing_ok=True)


@pytest.mark.processes
def test_who_is_gone_has_none():
    process = subprocess.Popen([sys.executable, "-IS", "-c", ""])
    process.wait()
    assert processes.kill_ranks({process.pid}) == set()


@pytest.mark.parametrize(
    "look", [processes.children, processes.threads_waiting_for_children, lambda pid: processes.ranks_regions([pid])]
)
def test_a_process_may_end_while_it_is_looked_at(look, monkeypatch):
    """Between a look for its folder and one into it."""

    def gone(folder: object) -> None:
        raise FileNotFoundError(folder)

    with monkeypatch.context() as patch:
        for listing in ("scandir", "listdir"):
            patch.setattr(os, listing, gone)
        found = look(os.getpid())
    assert found == set()
