"""Pages of shared memory that are given back, in a region of our own."""

import mmap
import os
from types import SimpleNamespace

import numpy as np

from lazy import Lazy
from step_audio.steps.memory import LEAST, give_back

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
