"""Clients that vanish: the slot that their answer had is free again, and the LLM works for nobody."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from raw_triton import active
from step_audio_client import Sampling, StepAudioClient, user
from waiting import wait_until

CLIENT = """
import asyncio, sys
from step_audio_client import Sampling, StepAudioClient, user

async def run():
    async with StepAudioClient(sys.argv[1]) as client:
        asks = [client.generate([user(f"{n}")], Sampling(max_tokens=8000, min_tokens=8000)) for n in range(4)]
        for each in asks:
            await anext(each)
        print("begun", flush=True)
        await asyncio.gather(*(drain(each) for each in asks))

async def drain(stream):
    async for _ in stream:
        pass

asyncio.run(run())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_client_s_slots_are_free(service, number):
    client = subprocess.Popen([sys.executable, "-c", CLIENT, service.address], stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "begun\n"
    wait_until(lambda: active(service) == 4)
    client.send_signal(number)
    client.wait()
    wait_until(lambda: active(service) == 0, "a free slot")
    client.stdout.close()


def test_an_answer_that_nobody_reads_ends_with_its_time(service):
    """The server needs no word of the client for it."""

    async def run() -> None:
        async with StepAudioClient(service.address) as client:
            stream = client.generate([user("x")], Sampling(max_tokens=8000, min_tokens=8000), timeout=3)
            await anext(stream)
            client._pipeline._open.clear()  # it forgets to stop
            await asyncio.to_thread(wait_until, lambda: active(service) == 0)

    asyncio.run(run())
