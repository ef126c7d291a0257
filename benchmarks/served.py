"""What serving costs: the whole pipeline beside the bare engine, and how soon a cancelled request is gone.

    python benchmarks/served.py

One run, one machine, one small random model (hidden 256, 4 layers, bf16). Every request brings the same 6.6 s
recording and asks for 128 tokens; KV reuse is on in both, so after the first request prompts cost little and the
comparison is of the way, not of the prompt. Ratios mean something; the absolute figures are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import re
import statistics
import threading
import time

import numpy as np

from bench import serving_random
from step_audio.engine.engine import Engine, EngineOptions
from step_audio.engine.request import GenerationRequest
from step_audio_client import Audio, Sampling, StepAudioClient, user
from step_audio_server.assets import asset

RECORDING = "mmsu_test.wav"
NEW_TOKENS = 128
GREEDY = Sampling(max_tokens=NEW_TOKENS, temperature=0)


async def served(address: str, at_once: int, audio: Audio) -> tuple[float, float]:
    """Tokens per second, median seconds to the first token."""
    firsts = []

    async def one(client: StepAudioClient) -> int:
        start, tokens = time.perf_counter(), 0
        async for delta in client.generate([user(audio, "What do you hear?")], GREEDY):
            if not tokens:
                firsts.append(time.perf_counter() - start)
            tokens += len(delta.token_ids)
        return tokens

    async with StepAudioClient(address) as client:
        await one(client)
        firsts.clear()
        start = time.perf_counter()
        total = sum(await asyncio.gather(*(one(client) for _ in range(at_once))))
        return total / (time.perf_counter() - start), statistics.median(firsts)


def bare(engine: Engine, at_once: int, positions: int) -> tuple[float, float]:
    """The same for the engine alone, with prompts of as many text positions."""
    ids = np.random.default_rng(0).integers(0, 500, positions).astype(np.int32)
    done, left, firsts, total = threading.Event(), at_once, [], 0
    start = time.perf_counter()

    def on_output(output) -> None:
        nonlocal left, total
        if output.token_ids and output.request_id not in seen:
            seen.add(output.request_id)
            firsts.append(time.perf_counter() - start)
        total += len(output.token_ids)
        if output.final:
            left -= 1
            if not left:
                done.set()

    seen: set[str] = set()
    for i in range(at_once):
        engine.submit(GenerationRequest(str(i), ids, NEW_TOKENS, on_output))
    done.wait()
    return total / (time.perf_counter() - start), statistics.median(firsts)


def active(port: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(r'request_type="active".*\} (\S+)', page)[1])


async def cancel_latency(address: str, metrics_port: int) -> float:
    """Seconds from leaving a stream to the server's gauge of active requests at 0."""
    async with StepAudioClient(address) as client:
        stream = client.generate([user("go on")], Sampling(max_tokens=8000, temperature=0))
        await anext(stream)
        while active(metrics_port) != 1:
            await asyncio.sleep(0.005)
        start = time.perf_counter()
        await stream.aclose()
        while active(metrics_port) != 0:
            await asyncio.sleep(0.005)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement; medians are printed")
    rounds = parser.parse_args().rounds
    audio = Audio.load(asset("examples") / RECORDING)
    print("at once | served tokens/s | engine tokens/s | served/engine | first token served | engine")
    with serving_random() as service:
        engine = Engine(
            EngineOptions(service.settings.run_dir / "engine", precision="bf16", max_tokens_in_paged_kv_cache=65_536)
        )
        bare(engine, 1, 107)
        for at_once in (1, 8, 32):
            pairs = [
                (asyncio.run(served(service.address, at_once, audio)), bare(engine, at_once, 107))
                for _ in range(rounds)
            ]
            rates, firsts = zip(*[((s[0], e[0]), (s[1], e[1])) for s, e in pairs], strict=True)
            (served_rate, engine_rate), (served_first, engine_first) = (
                [statistics.median(column) for column in zip(*rows, strict=True)] for rows in (rates, firsts)
            )
            ratio = statistics.median(s / e for s, e in rates)
            print(f"{at_once:7} | {served_rate:15.0f} | {engine_rate:15.0f} | {ratio:13.2f} | "
                  f"{served_first * 1000:15.0f} ms | {engine_first * 1000:.0f} ms", flush=True)  # fmt: skip
        engine.shutdown()
        times = sorted(asyncio.run(cancel_latency(service.address, service.settings.metrics_port)) for _ in range(20))
    print(f"cancelled to slot free: median {times[10] * 1000:.0f} ms, largest of 20 {times[-1] * 1000:.0f} ms "
          "(the gauge is renewed every 50 ms)")  # fmt: skip


if __name__ == "__main__":
    main()
