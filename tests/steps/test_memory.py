"""Pages of shared memory that are given back, in a region of our own."""

import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lazy import Lazy
from step_audio.steps.memory import ALLOCATOR, LEAST, give_back

torch = Lazy("torch")
to_dlpack = Lazy("torch.utils.dlpack:to_dlpack")


def tensor(array):
    return SimpleNamespace(to_dlpack=lambda: to_dlpack(torch.from_numpy(array)))


def test_a_large_tensor_s_pages_leave_the_region_and_no_others():
    region = os.memfd_create("region")
    os.ftruncate(region, 4 * LEAST)
    whole = np.frombuffer(mmap.mmap(region, 4 * LEAST), np.uint8)
    whole[:] = 7
    held = os.fstat(region).st_blocks

    give_back(tensor(whole[100 : 100 + LEAST // 2]))  # a small one
    assert os.fstat(region).st_blocks == held

    begin, end = 100, 100 + 2 * LEAST  # neither begins nor ends with a page
    give_back(tensor(whole[begin:end]))
    assert (held - os.fstat(region).st_blocks) * 512 == 2 * LEAST - mmap.PAGESIZE
    assert (whole[:begin] == 7).all() and (whole[end:] == 7).all()

    whole[begin:end] = 9  # as the next tensor in this place
    assert (whole[begin:end] == 9).all() and os.fstat(region).st_blocks == held


def test_memory_that_is_not_shared_keeps_what_it_holds():
    private = np.full(4 * LEAST, 7, np.uint8)
    give_back(tensor(private))
    assert (private == 7).all()


IN_USE_AND_FREE = """
import re, time
from pathlib import Path
from step_audio.steps.memory import LEAST, Tidier

def held():
    return int(re.search(r"Pss_Anon:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1]) << 10

tidier = Tidier(0.2)
blocks = [b"x" * 100_000 for _ in range(1000)]
whole = held()
last = blocks[-1]
del blocks
tidier.saw(LEAST - 1)
time.sleep(2)
small = held()
tidier.saw(LEAST)
deadline = time.monotonic() + 300
while held() > whole - 90_000_000:
    assert time.monotonic() < deadline
    time.sleep(0.1)
assert small > whole - 10_000_000 and last == b"x" * 100_000
"""


@pytest.mark.processes
def test_what_is_free_between_what_is_in_use_comes_back_behind_large_messages():
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", **ALLOCATOR}
    subprocess.run([sys.executable, "-c", IN_USE_AND_FREE], env=environment, check=True)
