"""Requests are ended by their clients, in every way and at any moment: nothing stays taken.

RELIABILITY_ROUNDS: `make reliability` sets it, for 500 endings. How long each slot was still taken is printed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from uuid import uuid4

import grpc
import numpy as np
import pytest

from audio_fixture import wav
from front_door_fixture import door
from raw_triton import metrics, scalar, steps, texts
from step_audio_client import Audio, ChatOptions, MindPaced, RequestError, Sampling, StepAudioClient, user, wire
from step_audio_client.control import stop

LONG = "RELIABILITY_ROUNDS" in os.environ
WAYS = ("http", "http_whole", "http_stalled", "client", "mind_paced", "raw", "killed")
AT_ONCE = 40  # in one burst, more than there are slots, so that some are ended while they wait
ALONE = 20 if LONG else len(WAYS)  # before a burst
ENDINGS = 500 if LONG else ALONE + AT_ONCE
CALM = 0.5 if LONG else 0.2  # seconds without work until the server counts as free: a request may be on its way
TOKENS = 20_000  # of an answer that is to be left, and as many of the engine's steps
ENOUGH = 2  # seconds until an answer is left of which fewer pieces come than it was to be left after
SECONDS = 60
RECORDING = wav(np.random.default_rng(0).normal(0, 500, 16_000 * 20).astype("<i2").tobytes())
LONG_TEXT = "a word and another " * 800
KILLED = f"""
import asyncio, sys
from step_audio_client import Audio, Sampling, StepAudioClient, user

async def run():
    async with StepAudioClient(sys.argv[1]) as client:
        recording = sys.stdin.buffer.read()
        await client.ready()
        print("asks", flush=True)
        content = [Audio(recording), "what?"] if recording else ["what?"]
        async for _ in client.generate([user(*content)], Sampling(max_tokens={TOKENS}, min_tokens={TOKENS})):
            print("token", flush=True)

asyncio.run(run())
"""


class Ways:
    """Each begins a request and yields whenever something of its answer has come; closing it is the ending."""

    def __init__(self, address: str, url: str):
        self.address, self.port = address, int(url.rpartition(":")[2])

    async def killed(self, content: str, tokens: int):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", KILLED, self.address), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            process.stdin.write(RECORDING if content == "audio" else b"")
            process.stdin.close()
            await process.stdout.readline()
            yield "begun"
            while line := await process.stdout.readline():
                yield line
        finally:
            process.kill()
            await process.wait()

    async def client(self, content: str, tokens: int):
        async with StepAudioClient(self.address) as client:
            yield "begun"
            stream = client.generate([message(content)], Sampling(max_tokens=tokens, min_tokens=tokens))
            async with contextlib.aclosing(stream):
                async for delta in stream:
                    yield delta

    async def mind_paced(self, content: str, tokens: int):
        options = ChatOptions(
            sampling=Sampling(max_tokens=tokens), mind_paced=MindPaced("think_first", think_tokens=200, speak_tokens=10)
        )
        async with StepAudioClient(self.address) as client:
            yield "begun"
            async with contextlib.aclosing(client.chat([message(content)], options)) as stream:
                async for delta in stream:
                    yield delta

    async def raw(self, content: str, tokens: int):
        """No lease: it says itself that it is to stop."""
        parts = [{"type": "audio"}] if content == "audio" else []
        text = LONG_TEXT if content == "long" else "what?"
        inputs = {
            "messages": texts(json.dumps([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])),
            "request_output_len": scalar(tokens, np.int32),
            "end_id": scalar(-1, np.int32),
            "streaming": scalar(True, np.bool_),
        } | ({"audio": texts(RECORDING)} if parts else {})
        async with wire.channel(self.address) as channel:
            stub = wire.Stub(channel)
            id_ = uuid4().hex
            call = stub.ModelStreamInfer()
            await call.write(wire.infer_request("step_audio_r1", id_, inputs))
            yield "begun"
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    yield message
            finally:
                call.cancel()  # as others do it; our own client does not
                await asyncio.shield(stop(stub, id_, SECONDS))

    async def http(self, content: str, tokens: int, stream: bool = True, stalls: bool = False):
        parts = []
        if content == "audio":
            data = base64.b64encode(RECORDING).decode()
            parts = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
        text = LONG_TEXT if content == "long" else "what?"
        body = json.dumps({
            "model": "R1", "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
            "max_tokens": tokens, "min_tokens": tokens, "stream": stream,
        }).encode()  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 12)
        try:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            yield "begun"
            while line := await reader.readline():
                if line.startswith((b"data:", b"{")):
                    yield line
                if stalls:
                    await asyncio.sleep(SECONDS)
        finally:
            writer.transport.abort()

    def http_whole(self, content: str, tokens: int):
        return self.http(content, tokens, stream=False)

    def http_stalled(self, content: str, tokens: int):
        return self.http(content, tokens, stalls=True)


def message(content: str):
    return user(*({"audio": [Audio(RECORDING), "what?"], "long": [LONG_TEXT]}.get(content, ["what?"])))


async def ended(begin, content: str, moment: str, seconds: float, pieces: int) -> str:
    """One request, ended after so many seconds, or so many pieces of its answer, or at about its own end."""
    tokens = pieces if moment == "end" else TOKENS

    async def run() -> str:
        came = -1
        async with contextlib.aclosing(begin(content, tokens)) as stream:
            async for _ in stream:
                came += 1
                if came == 0:
                    clock.reschedule(asyncio.get_running_loop().time() + seconds)
                if moment == "tokens" and came == pieces:
                    return "left"
        return "complete"

    try:
        async with asyncio.timeout(None) as clock:
            return await run()
    except TimeoutError:
        return "left"
    except RequestError as error:
        return type(error).__name__


class Server:
    """What it has at hand, by its gauges."""

    def __init__(self, service):
        self.port = service.settings.metrics_port

    async def free_after(self) -> float:
        """Seconds until it had nothing more to do."""
        start = calm = time.monotonic()
        while time.monotonic() < calm + CALM:
            assert time.monotonic() < start + SECONDS, await self.busy()
            if any((await self.busy()).values()):
                calm = time.monotonic()
            await asyncio.sleep(0.01)
        return calm - start

    async def busy(self) -> dict[str, float]:
        gauges = await asyncio.to_thread(metrics, self.port)
        return {name: gauges[name] for name in ("request.active", "request.waiting", "kv_cache_block.used")}


@pytest.fixture(scope="module")
def url(service):
    yield from door(service.address)


def test_endings(service, url):
    draw = random.Random(ENDINGS)
    ways, server = Ways(service.address, url), Server(service)
    outcomes: Counter[tuple[str, str, str, str]] = Counter()
    taken: list[tuple[float, str]] = []

    async def first_token(content: str) -> float:
        """Seconds."""
        start = time.monotonic()
        await ended(ways.client, content, "tokens", SECONDS, 1)
        return time.monotonic() - start

    async def one(way: str) -> str:
        content = draw.choice(["text", "long", "audio"])
        moment = draw.choice(["time", "tokens", "end"])
        seconds = draw.uniform(0, 1.5) * usual[content] if moment != "tokens" else ENOUGH
        outcome = await ended(getattr(ways, way), content, moment, seconds, draw.randint(1, 20))
        outcomes[way, content, moment, outcome] += 1
        return f"{way} {content} {moment} {outcome}"

    async def run() -> None:
        for content in ("text", "long", "audio"):
            await first_token(content)
            usual[content] = await first_token(content)
        done = 0
        while done < ENDINGS:
            burst = AT_ONCE if done % 100 == ALONE else 1
            ways_ = [draw.choice(WAYS[:-1]) for _ in range(burst)] if burst > 1 else [turns[len(taken) % len(turns)]]
            before = await asyncio.to_thread(steps, service)
            what = await asyncio.gather(*(one(way) for way in ways_))
            free = await server.free_after()
            assert await asyncio.to_thread(steps, service) - before < TOKENS - 1000, (
                what,
                "answers went on to their ends",
            )
            done += burst
            if burst == 1:
                taken.append((free, what[0]))

    turns = (*WAYS, *WAYS[:-1])  # a process takes a second to start, so there are fewer of them, and none in a burst
    usual: dict[str, float] = {}
    asyncio.run(run())
    seconds = sorted(free for free, _ in taken)
    p50, p99 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    print(f"{sum(outcomes.values())} endings, still taken for {1000 * p50:.0f} ms (p50), {1000 * p99:.0f} ms (p99)")
    print(f"the longest: {[(round(1000 * free), what) for free, what in sorted(taken)[-8:]]}")
    assert {way for way, *_ in outcomes} == set(WAYS)
    assert not any(asyncio.run(server.busy()).values()) and service.server.fault() is None
