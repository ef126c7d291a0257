"""The steps' workers on a real server: what they are made to suffer, requests do not notice."""

import asyncio
import os
import signal
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from server_settings import settings_for
from step_audio.audio import encode_wav
from step_audio_client import Audio, RequestError, Sampling, StepAudioClient, user
from step_audio_server.serve import Service
from waiting import wait_until
from worker_processes import worker_of

STEPS = ("audio_featurizer", "prompt_builder", "audio_encoder")
PAUSE = 2.6  # seconds: a stub that is paused so long with a request at hand is given up by tritonserver
GREEDY = Sampling(max_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def server(checkpoint, work_dir):
    """One of its own: its processes are stopped and killed here."""
    with Service(settings_for(checkpoint, work_dir)) as service:
        yield service


def recording(seconds, seed=0):
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)
    return Audio(encode_wav(samples))


def ask(service, use):
    async def run():
        async with StepAudioClient(service.address) as client:
            return await asyncio.wait_for(use(client), 120)

    return asyncio.run(run())


async def answers(client, count, seed=0):
    """Greedy answers about `count` recordings at once."""
    requests = [[user(recording(2 + n % 3, seed + n), f"What is it? {n}")] for n in range(count)]
    return [made.token_ids for made in await asyncio.gather(*(client.complete(r, GREEDY) for r in requests))]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_dies_and_nobody_notices(server, step, number):
    expected = ask(server, lambda client: answers(client, 6))
    pid = worker_of(server, step)

    async def through_the_death(client):
        under_way = asyncio.ensure_future(answers(client, 6))
        await asyncio.sleep(0.02)
        os.kill(pid, number)
        return await under_way

    assert ask(server, through_the_death) == expected
    assert worker_of(server, step) != pid and server.server.fault() is None
    counted = f'step_audio_worker_restarts_total{{step="{step}"}} '
    wait_until(lambda: f"{counted}{1 if number == signal.SIGKILL else 2}" in raw_metrics(server))


def raw_metrics(service) -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{service.ports.metrics}/metrics", timeout=10).read().decode()


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_pauses_for_longer_than_triton_would_wait(server, step):
    expected = ask(server, lambda client: answers(client, 3))
    pid = worker_of(server, step)

    async def through_the_pause(client):
        os.kill(pid, signal.SIGSTOP)
        under_way = asyncio.ensure_future(answers(client, 3))
        await asyncio.sleep(PAUSE)
        assert not under_way.done()
        os.kill(pid, signal.SIGCONT)
        return await under_way

    assert ask(server, through_the_pause) == expected
    assert worker_of(server, step) == pid and server.server.fault() is None


def test_text_does_not_wait_for_the_steps_of_recordings(server):
    async def beside(client):
        stopped = [worker_of(server, step) for step in ("audio_featurizer", "audio_encoder")]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        heard = asyncio.ensure_future(answers(client, 1))
        try:
            assert (await client.complete([user("hello")], GREEDY)).token_ids and not heard.done()
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert await heard

    ask(server, beside)


def test_text_does_not_wait_for_a_long_recording(server):
    """Forty minutes are decoded, and then refused, while text-only requests come and go."""

    async def beside(client):
        long = asyncio.ensure_future(client.complete([user(recording(2400), "What is it?")], GREEDY))
        await asyncio.sleep(0.1)
        done_first = 0
        for n in range(5):
            await client.complete([user(f"hello {n}")], GREEDY)
            done_first += not long.done()
        result = (await asyncio.gather(long, return_exceptions=True))[0]
        return done_first, result

    done_first, result = ask(server, beside)
    assert done_first > 0 and "2400.0 s long, the limit is" in str(result)


def test_nothing_is_left_behind(server):
    """The last test of this module: stopped in the middle of a stream. An error for the client, no process, no shared
    memory."""
    pid = server.server.process.pid

    async def start_and_stop():
        async with StepAudioClient(server.address, patience=1) as client:
            stream = client.generate([user("hello")], Sampling(max_tokens=24_000, temperature=0))
            await anext(stream)
            await asyncio.to_thread(server.stop)
            with pytest.raises(RequestError, match="no server"):
                async for _ in stream:
                    pass

    asyncio.run(start_and_stop())
    states = subprocess.run(["ps", "-o", "stat=", "-g", str(pid)], capture_output=True, text=True).stdout.split()
    assert all(state.startswith("Z") for state in states), states  # dead, at most not yet reaped by init
    assert not list(Path("/dev/shm").glob(f"step_audio_{os.getpid()}_{server.settings.grpc_port}_*"))
