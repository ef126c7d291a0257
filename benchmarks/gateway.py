"""What the OpenAI-compatible door costs: streamed chat completions beside the gRPC client library.

    python benchmarks/gateway.py 2>/dev/null        (stderr has the gateway's log)

One run, one machine, one server with a small random model (hidden 256, 4 layers, bf16). Every request brings the same
6.6 s recording and asks for 128 tokens, streamed; both ways take turns. Ratios mean something; the absolute figures
are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx

from bench import serving_random
from served import GREEDY, NEW_TOKENS, RECORDING, served
from step_audio_client import Audio
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.assets import asset
from step_audio_server.launch.ports import free_ports


async def through_http(url: str, at_once: int, audio: Audio) -> tuple[float, float]:
    """Tokens per second, median seconds to the first token, as `served` has them."""
    clip = {"data": base64.b64encode(audio.data).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": clip}, {"type": "text", "text": "What do you hear?"}]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": GREEDY.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    firsts = []

    async def one(client: httpx.AsyncClient) -> int:
        start, first, tokens = time.perf_counter(), None, 0
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
                elif first is None and chunk["choices"]:  # there may be no text yet: tokens are random bytes
                    first = time.perf_counter() - start
        firsts.append(first)
        return tokens

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await one(client)
        firsts.clear()
        start = time.perf_counter()
        total = sum(await asyncio.gather(*(one(client) for _ in range(at_once))))
        assert total == at_once * NEW_TOKENS
        return total / (time.perf_counter() - start), statistics.median(firsts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement; medians are printed")
    rounds = parser.parse_args().rounds
    audio = Audio.load(asset("examples") / RECORDING)
    with serving_random() as service:
        (door,) = free_ports(1)
        gateway = GatewayProcess(GatewaySettings.create(triton=[service.address], port=door))
        gateway.start()
        try:
            _compare(service.address, gateway.url, audio, rounds)
        finally:
            gateway.stop()


def _compare(address: str, url: str, audio: Audio, rounds: int) -> None:
    ways: tuple[Callable[[int], Awaitable[tuple[float, float]]], ...] = (
        lambda n: served(address, n, audio),
        lambda n: through_http(url, n, audio),
    )
    print("at once | gRPC tokens/s | HTTP tokens/s | HTTP/gRPC | first token gRPC | HTTP")
    for at_once in (1, 8, 32):
        pairs = [[asyncio.run(way(at_once)) for way in ways] for _ in range(rounds)]
        (grpc, http), (grpc_first, http_first) = (
            [statistics.median(pair[way][figure] for pair in pairs) for way in range(2)] for figure in range(2)
        )
        ratio = statistics.median(pair[1][0] / pair[0][0] for pair in pairs)
        print(f"{at_once:7} | {grpc:13.0f} | {http:13.0f} | {ratio:9.2f} | {grpc_first * 1000:13.0f} ms | "
              f"{http_first * 1000:.0f} ms", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
