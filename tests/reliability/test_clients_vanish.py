"""Clients vanish in the middle of their answers while a process of the server is killed: before, after,
while it is away. Nothing of theirs stays, and whoever is still there has a whole answer, or one clear error.

RELIABILITY_ROUNDS: how often each process is killed; `make reliability` sets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import httpx
import numpy as np
import pytest

from metrics_page import figure
from raw_triton import metrics, scalar, send, steps, texts
from step_audio.errors import Code
from step_audio_client import Sampling, StepAudioClient, calls, user
from step_audio_client.errors import request_error
from vanishing import LEASING, RAW, TOKENS, WEB, await_beginnings, started
from waiting import SECONDS, until

pytestmark = pytest.mark.server

ROUNDS = int(os.environ.get("RELIABILITY_ROUNDS", "0"))
STREAMS = 6 if ROUNDS else 3
MODELS = ("tensorrt_llm", "lease", "audio_encoder", "audio_featurizer", "prompt_builder", "tokenizer")
# In the short form, what holds the leases, with which all of the server dies, and what is a client of it.
VICTIMS = (*MODELS, "tritonserver", "gateway") if ROUNDS else ("lease", "gateway")
MOMENTS = ("back", "before", "away")  # of what is killed; and whoever vanishes when it is back has resumed its answers
LENGTH = 300  # tokens of an answer that is read to its end
APART = 1.0 if ROUNDS else 0.2  # seconds at most between two of the moments
PATIENCE = 5 * SECONDS  # a start is waited for so long: on a busy machine it takes minutes
HELD = ("step_audio_requests_in_flight", "step_audio_answers_running", "step_audio_body_bytes_in_flight")
GONE = (Code.SERVER_LOST, Code.UNAVAILABLE)


@dataclass(frozen=True)
class Leaver:
    """A client that vanishes. `resumed`: its answers that are made after the death of `victim`, too."""

    process: subprocess.Popen[str]
    moment: str
    resumed: int


@contextlib.contextmanager
def leavers(running, victim: str, number: int):
    """Of each kind; when all their answers have begun. Whatever the `number`, some vanish at each of the moments."""
    web = f"http://127.0.0.1:{running.port}"
    subject = f"{victim} {number}"  # what servers have died with twice is refused, and two clients ask the same here
    kinds = (
        (4, started(LEASING, running.address)),
        (0, started(RAW, running.address, "5")),
        (0 if victim == "gateway" else 2, started(WEB, web, subject)),
        (0 if victim == "gateway" else 2, started(WEB, web, subject)),
    )
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(kind) for _, kind in kinds]
        await_beginnings(*processes)
        yield [
            Leaver(process, MOMENTS[(number + i) % len(MOMENTS)], resumed)
            for i, ((resumed, _), process) in enumerate(zip(kinds, processes, strict=True))
        ]


async def whole(client: StepAudioClient, text: str, on_token: Callable[[], None] = lambda: None) -> str:
    answer = ""
    async for delta in client.generate([user(text)], Sampling(max_tokens=LENGTH, min_tokens=LENGTH, temperature=0)):
        answer += delta.text
        on_token()
    return answer


async def whole_or_told(address: str) -> int:
    """Tokens of an answer to whoever has no library that goes on with it; 0: the server is gone, and that was said."""
    inputs = {
        "messages": texts('[{"role": "user", "content": "hello"}]'),
        "request_output_len": scalar(LENGTH, np.int32),
        "end_id": scalar(-1, np.int32),
        "streaming": scalar(True, np.bool_),
    }
    try:
        responses = await send(address, "step_audio_r1", inputs)
    except (calls.ConnectionLost, grpc.aio.AioRpcError):
        return 0
    except calls.StreamError as error:
        assert request_error(str(error)).code in GONE, error
        return 0
    assert responses[-1].final
    return sum(response.outputs["output_ids"].size for response in responses if "output_ids" in response.outputs)


def figures(running) -> dict[str, float]:
    """Of the engine; none while it is away."""
    try:
        return metrics(running.settings.metrics_port)
    except OSError:
        return {}


def page(running, path: str) -> str:
    """Of the gateway; empty while it is away, or has nothing good to say."""
    try:
        reply = httpx.get(f"http://127.0.0.1:{running.port}{path}", timeout=SECONDS)
    except httpx.TransportError:
        return ""
    return reply.text if reply.status_code == 200 else ""


def none_held(running) -> bool:
    """The gateway counts nobody as there."""
    told = page(running, "/metrics")
    return all(figure(told, name, 1) == 0 for name in HELD)


async def restarted(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_of_a_vanished_client_stays(running, victim):
    async def kill() -> None:
        await restarted(lambda: victim in running.pids())  # tritonserver may crash of a client that vanishes
        running.kill(victim)

    async def round_(number: int) -> None:
        chance = random.Random(f"{victim} {number}")
        before, server = steps(running), running.pids()["tritonserver"]
        with leavers(running, victim, number) as there:

            def vanish(moment: str) -> None:
                for leaver in there:
                    if leaver.moment == moment:
                        leaver.process.kill()

            async with StepAudioClient(running.address, patience=PATIENCE) as client:
                asked = [f"question {number} {time.time_ns()}" for number in range(STREAMS)]
                under_way = asyncio.Event()
                streams = [asyncio.create_task(whole(client, text, under_way.set)) for text in asked]
                others = [asyncio.create_task(whole_or_told(running.address)) for _ in range(2)]
                await under_way.wait()
                vanish("before")
                await asyncio.sleep(chance.uniform(0, APART))
                await kill()
                await asyncio.sleep(chance.uniform(0, APART))
                vanish("away")
                answers = await asyncio.gather(*streams)
                assert set(await asyncio.gather(*others)) <= {0, LENGTH}
                await restarted(lambda: page(running, "/ready"))
                resumed = sum(leaver.resumed for leaver in there if leaver.moment == "back")
                await restarted(lambda: figures(running).get("request.active", 0) >= resumed)
                vanish("back")
                await until(lambda: figures(running).get("request.active") == 0, "free slots")
                await until(lambda: none_held(running), "free places")
                if running.pids()["tritonserver"] != server:
                    before = 0  # its engine counts anew
                # They have not simply come to their ends.
                assert steps(running) - before < TOKENS - 1000
                for text, answer in zip(asked, answers, strict=True):
                    assert answer == await whole(client, text)

    for number in range(max(ROUNDS, 1)):
        asyncio.run(round_(number))
