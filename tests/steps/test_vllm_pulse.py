"""Whether vLLM's engine moves: by the steps that it makes."""

import asyncio
import os
import signal
import subprocess
import sys
from itertools import count

import pytest

from step_audio.vllm import pulse as pulses
from step_audio.vllm.pulse import Pulse, Work, keep
from virtual_time import run
from waiting import wait_until

PATIENCE = 8


def test_many_steps_are_no_hang_however_late_the_token_comes():
    """Of a long prompt, or a full batch."""
    pulse, steps, asked = Pulse(), count(), []

    async def never():
        asked.append(1)
        await asyncio.Event().wait()

    async def watched():
        five_seconds = lambda: next(steps) // 10  # noqa: E731  # a look each half
        watching = asyncio.create_task(keep(pulse, five_seconds, lambda: True, never))
        for _ in range(100):
            await asyncio.sleep(3)
            assert pulse.silent < PATIENCE
        watching.cancel()

    run(watched(), pulses)
    assert len(asked) == 1, "one is enough, while nothing has come of it"


def test_an_engine_without_work_is_given_some():
    pulse, made, highest = Pulse(), [], []

    async def step():
        await asyncio.sleep(0.1)
        made.append(1)

    async def watched():
        watching = asyncio.create_task(keep(pulse, lambda: 0, lambda: False, step))  # its answers count by themselves
        for _ in range(60):
            await asyncio.sleep(1)
            highest.append(pulse.silent)
        watching.cancel()

    run(watched(), pulses)
    assert 4 <= len(made) <= 6, "not more: its workers spin for a second after each"
    assert max(highest) <= 1


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_an_engine_that_makes_no_step_is_silent(fails, busy):
    """At once where it has work, else from the first step on that it is asked for."""
    pulse = Pulse()

    async def step():
        if fails:
            raise RuntimeError("no")
        await asyncio.Event().wait()

    async def watched():
        watching = asyncio.create_task(keep(pulse, lambda: 7, lambda: busy, step))
        await asyncio.sleep(PATIENCE + 2 * pulses.PERIOD + (0 if busy else pulses.IDLE))
        watching.cancel()

    run(watched(), pulses)
    assert pulse.silent >= PATIENCE


def test_what_is_paused_altogether_does_not_hang():
    """A virtual machine that is moved: all of it goes on at once."""
    pulse = Pulse()
    pulse.look(1, 0.5, due=True)
    pulse.look(1, 3600, due=True)
    assert pulse.silent == 2 * pulses.PERIOD


def test_threads_that_only_wait_do_no_work(monkeypatch):
    """As those of vLLM's gloo beside an engine that hangs: a millisecond each second. One that works has the more."""
    had = dict.fromkeys(map(str, range(12)), 0)
    monkeypatch.setattr(Work, "_had", lambda self: dict(had))
    work = Work(1)
    for _ in range(2 * PATIENCE):
        for thread in had:
            had[thread] += 1_000_000 // 2
        assert work.done() == 0
    for _ in range(2 * PATIENCE):
        had["5"] += 30_000_000 // 2  # of a machine that has other work
        work.done()
    assert work.done() >= 4


@pytest.mark.processes
def test_on_a_cpu_work_is_a_sign_of_life():
    """A step may last for minutes there."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        work = Work(leader.pid)
        wait_until(lambda: work.done() > 1)
    finally:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()
