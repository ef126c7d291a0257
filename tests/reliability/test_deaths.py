"""Processes of a running `step-audio serve` are killed while answers are made: what their callers see.

RELIABILITY_ROUNDS: how often each process is killed; `make reliability` sets it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from audio_fixture import wav
from metrics_page import figure
from raw_triton import metrics
from serve_process import living
from step_audio.clips import SAMPLE_RATE
from step_audio_client import Audio, Guide, Sampling, StepAudioClient, user
from step_audio_client.tokens import TokenRequest
from step_audio_server.supervision import STEADY
from waiting import SECONDS, until, wait_until

pytestmark = pytest.mark.server

ROUNDS = int(os.environ.get("RELIABILITY_ROUNDS", "0"))
STREAMS = 20 if ROUNDS else 6
MODELS = ("tensorrt_llm", "audio_encoder", "audio_featurizer", "prompt_builder", "lease", "tokenizer")
# In the short form, one of each kind: the LLM, a step, the server itself.
VICTIMS = (*MODELS, "tritonserver") if ROUNDS else ("tensorrt_llm", "audio_encoder", "tritonserver")
RESTARTS = 'step_audio_restarts_total{process="tritonserver"}'
TOKENS = 120
CLIP = wav(np.random.default_rng(0).normal(0, 300, 2 * SAMPLE_RATE).astype("<i2").tobytes())


def requests(clip: bytes, count: int) -> list[TokenRequest]:
    """Different ones, with audio and without, one of them guided."""
    greedy = Sampling(max_tokens=TOKENS, min_tokens=TOKENS, temperature=0)
    made = [
        TokenRequest([user(*([Audio(clip)] if n % 2 else []), f"question {n} {time.time_ns()}")], greedy)
        for n in range(count - 1)
    ]
    return [*made, TokenRequest([user(f"question {time.time_ns()}")], Sampling(TOKENS, temperature=0), guide=GUIDE)]


GUIDE = Guide("regex", f"[a-z]{{{TOKENS}}}")


async def ids_of(client: StepAudioClient, request: TokenRequest, on_tokens: Callable[[], None] = lambda: None):
    ids: list[int] = []
    async for tokens in client._tokens(client._pipeline.run(timeout=120), request):
        ids += tokens.token_ids
        on_tokens()
    return ids


@pytest.mark.parametrize("victim", VICTIMS)
def test_no_stream_is_lost(running, victim):
    """Each is whole, and the same as without a death."""

    async def round_() -> None:
        asked = requests(CLIP, STREAMS)
        async with StepAudioClient(running.address, patience=5 * SECONDS) as client:
            begun = asyncio.Event()
            streams = [asyncio.create_task(ids_of(client, request, begun.set)) for request in asked]
            await begun.wait()
            running.kill(victim)
            found = await asyncio.gather(*streams)
            await asyncio.to_thread(running.wait_for, "ready")
            for ids, request in zip(found, asked, strict=True):
                assert ids == await ids_of(client, request)

    died = f'step_audio_deaths_total{{model="{victim}"}}'
    wait_until(lambda: not math.isnan(metric(running, RESTARTS)), "the start after an earlier test")
    before = {counted: metric(running, counted) for counted in (died, RESTARTS)}
    for _ in range(max(ROUNDS, 1)):
        asyncio.run(round_())
    for counted, value in before.items():  # over the restarts, with which tritonserver's own begin anew
        wait_until(lambda counted=counted, value=value: metric(running, counted) == value + max(ROUNDS, 1), counted)
    deaths = [json.loads(line) for line in (running.settings.run_dir / "deaths.jsonl").read_text().splitlines()]
    assert deaths[-1]["signal"] == "SIGKILL" and deaths[-1]["model"] == (victim if victim in MODELS else None)


def metric(running, name: str) -> float:
    """Of tritonserver; NaN before its first report, and while it is away."""
    try:
        text = httpx.get(f"http://127.0.0.1:{running.settings.metrics_port}/metrics").text
    except httpx.TransportError:
        return math.nan
    return figure(text, name, math.nan)


def test_the_gateway_is_started_again_by_itself(running):
    """What it streamed breaks off where its reader sees it, the server gets its slots back and is not touched."""

    async def read(http: httpx.AsyncClient, number: int, begun: asyncio.Event) -> list[str]:
        """The lines that came before the break."""
        lines: list[str] = []
        length = {"max_tokens": 3900, "ignore_eos": True}
        body = {"messages": [{"role": "user", "content": f"story {number}"}], "stream": True, **length}
        with pytest.raises(httpx.TransportError):
            async with http.stream("POST", "/v1/chat/completions", json=body | {"temperature": 0}) as response:
                async for line in response.aiter_lines():
                    lines.append(line)
                    begun.set()
        return lines

    async def whole(http: httpx.AsyncClient, number: int) -> None:
        length = {"max_tokens": 9, "ignore_eos": True}
        body = {"messages": [{"role": "user", "content": f"question {number}"}], "temperature": 0, **length}
        reply = (await http.post("/v1/chat/completions", json=body)).json()
        assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 9, reply

    def under_way() -> float:
        return metrics(running.settings.metrics_port)["request.active"]

    async def round_() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", timeout=SECONDS) as http:
            assert (await http.get("/ready")).status_code == 200
            begun = asyncio.Event()
            reading = [asyncio.create_task(read(http, number, begun)) for number in range(STREAMS)]
            await until(lambda: under_way() == STREAMS)
            await begun.wait()  # not of each: a random model may say nothing that can be shown for long
            running.kill("gateway")
            assert not [lines for lines in await asyncio.gather(*reading) if "data: [DONE]" in lines]
            await asyncio.to_thread(running.wait_for, "the gateway ended with status -9: starting again")
            await asyncio.to_thread(running.wait_for, "ready")
            await until(lambda: not under_way(), "the end of what was left")
            await asyncio.gather(*(whole(http, number) for number in range(STREAMS)))

    pids = running.pids()
    for _ in range(max(ROUNDS, 1)):
        asyncio.run(round_())
        if ROUNDS:
            time.sleep(2 * STEADY)  # a gateway that dies at once again is started after a pause, longer each time
    after = running.pids()
    assert pids.pop("gateway") != after.pop("gateway") and pids == after


def test_a_request_that_servers_die_with_twice_is_refused_and_its_neighbours_are_not(running):
    def body(text: str, tokens: int, **more) -> dict:
        message = {"role": "user", "content": f"{text} {time.time_ns()}"}
        return {"messages": [message], "max_tokens": tokens, "ignore_eos": True, "temperature": 0} | more

    def under_way() -> float:
        try:
            return metrics(running.settings.metrics_port)["request.active"]
        except (OSError, KeyError):  # it is away, or has not reported yet
            return 0

    async def deaths() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", timeout=SECONDS) as http:

            def ask(body: dict) -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(http.post("/v1/chat/completions", json=body))

            deadly, neighbour = body("deadly", 3900), body("neighbour", 1500)
            first = ask(deadly)
            await until(lambda: under_way() == 1)
            running.kill("tritonserver")
            await asyncio.to_thread(running.wait_for, "ready")
            second = ask(neighbour)  # it sees one death
            await until(lambda: under_way() == 2)
            running.kill("tritonserver")
            for refused in (await first, await ask(deadly), await ask(deadly | {"stream": True})):
                error = refused.json()["error"]
                assert (refused.status_code, error["code"], error["type"]) == (500, "quarantined", "server_error")
            answered = await second
            await asyncio.to_thread(running.wait_for, "ready")
            assert answered.status_code == 200
            whole = answered.json()["choices"]
            assert whole == (await ask(neighbour)).json()["choices"] and whole[0]["finish_reason"] == "length"
            assert (await ask(body("another", 9))).status_code == 200
            counted = (await http.get("/metrics")).text
            assert "step_audio_requests_quarantined_total 3.0" in counted

    wait_until(lambda: not under_way())
    asyncio.run(deaths())


@pytest.mark.parametrize("name", ["tensorrt_llm", "tritonserver"])
def test_what_is_stopped_is_started_again(running, name):
    """For good, where no process has died."""
    os.kill(running.pids()[name], signal.SIGSTOP)
    with httpx.Client(base_url=f"http://127.0.0.1:{running.port}", timeout=30) as http:
        assert http.get("/ready").status_code == 503
    running.wait_for("starting again")
    assert re.fullmatch(f"{name} is stopped: starting again.*", running.seen[-1])
    running.wait_for("ready")
    logs = sorted(path.name for path in running.settings.run_dir.glob("tritonserver.log*"))
    assert {"tritonserver.log", "tritonserver.log.1"} <= set(logs)


def test_a_killed_serve_leaves_nothing(running):
    """No process, and no shared memory; the last test of this module."""
    prefix = f"step_audio_{running.process.pid}_"
    pids = running.family()
    running.process.kill()
    wait_until(lambda: not any(living(pid) for pid in pids) and not list(Path("/dev/shm").glob(f"{prefix}*")))
