"""Spoken turns of several lengths: from their end to the answer's first token, by realtime sessions and by requests.

    python benchmarks/turns.py [--seconds 10 30 60] [--rounds 5] [--speed 5]

One run, one machine, the small trained model without a thought; the ways take turns, and no recording comes twice.

at the end  the recording is sent whole to /v1/chat/completions when it is over
all at once realtime, the recording appended in one go and committed: no time for anything ahead
played      realtime, the recording appended as it is played, `--speed` times as fast, then committed: what was said
            is encoded and computed while the rest comes
found       realtime, played in the same way, its end found by the server: from the last sample of speech, with the
            silence of `--silence` ms, which takes as long as it is
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai

from bench import median_ms, p95_ms, serving
from step_audio.arrays import Float32Array
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import count
from step_audio.markdown import markdown_table
from step_audio.progress import Progress
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.launch.ports import free_ports
from step_audio_training.speech import Voice, speak

PIECE = 0.1  # seconds that are appended at once
TOKENS = 4
OPTIONS: dict[str, Any] = {"thinking": {"mode": "off"}, "ignore_eos": True}
SENTENCES = ("what is three plus four", "the old man went down to the river", "tell me what you know about it")

Way = Callable[[Any, Float32Array], Awaitable[float]]


def recording(seconds: float, seed: int) -> Float32Array:
    """float32 [n], 16 kHz: sentences without longer pauses, in noise that no other has; speech up to the end."""
    rng = np.random.default_rng(seed)
    said = [speak(sentence, Voice(variant="f3"), count_words=False).samples / 2 for sentence in SENTENCES]
    times = int(seconds * SAMPLE_RATE / sum(map(len, said))) + 1
    samples: Float32Array = np.concatenate(said * times)[-round(seconds * SAMPLE_RATE) :]
    samples += rng.normal(0, 1e-3, len(samples)).astype(np.float32)
    return samples


def pcm(samples: Float32Array) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


async def at_the_end(client: openai.AsyncOpenAI, samples: Float32Array) -> float:
    audio = {"data": base64.b64encode(encode_wav(samples)).decode(), "format": "wav"}
    begun = time.monotonic()
    message: Any = {"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}
    stream = await client.chat.completions.create(
        model="R1", messages=[message], max_tokens=TOKENS, stream=True, extra_body=OPTIONS
    )
    taken = 0.0
    async for chunk in stream:
        if not taken and chunk.choices and chunk.choices[0].delta.content:
            taken = time.monotonic() - begun
    return taken


async def _append(connection: Any, data: bytes) -> None:
    await connection.input_audio_buffer.append(audio=base64.b64encode(data).decode())


async def _play(connection: Any, data: bytes, speed: float) -> None:
    size, begun = round(PIECE * SAMPLE_RATE) * 2, time.monotonic()
    for i, start in enumerate(range(0, len(data), size)):
        await asyncio.sleep(max(0.0, begun + (i + 1) * PIECE / speed - time.monotonic()))
        await _append(connection, data[start : start + size])


async def _first(connection: Any, begun: float) -> float:
    """The whole answer is read."""
    taken = 0.0
    while (event := await connection.recv()).type != "response.done":
        assert event.type != "error", event
        if not taken and event.type == "response.output_text.delta":
            taken = time.monotonic() - begun
    return taken


async def _session(client: openai.AsyncOpenAI, detection: dict[str, Any] | None, turn: Callable[[Any], Any]) -> float:
    heard = {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "turn_detection": detection}
    async with client.realtime.connect(model="R1") as connection:
        session: Any = {"type": "realtime", "max_output_tokens": TOKENS, "audio": {"input": heard}, **OPTIONS}
        await connection.session.update(session=session)
        while (await connection.recv()).type != "session.updated":
            pass
        taken: float = await turn(connection)
        return taken


def by_hand(speed: float | None) -> Way:
    """`speed`: None: all at once."""

    async def way(client: openai.AsyncOpenAI, samples: Float32Array) -> float:
        async def turn(connection: Any) -> float:
            if speed is None:
                await _append(connection, pcm(samples))
            else:
                await _play(connection, pcm(samples), speed)
            begun = time.monotonic()
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            return await _first(connection, begun)

        return await _session(client, None, turn)

    return way


def found(silence: int, speed: float) -> Way:
    async def way(client: openai.AsyncOpenAI, samples: Float32Array) -> float:
        async def turn(connection: Any) -> float:
            await _play(connection, pcm(samples), speed)
            begun = time.monotonic()
            quiet = asyncio.create_task(_play(connection, bytes(2 * SAMPLE_RATE * 3), 1.0))
            taken = await _first(connection, begun)
            quiet.cancel()
            await asyncio.gather(quiet, return_exceptions=True)
            return taken

        return await _session(client, {"type": "server_vad", "silence_duration_ms": silence}, turn)

    return way


async def measured(url: str, ways: dict[str, Way], lengths: list[int], rounds: int) -> str:
    taken: dict[tuple[str, int], list[float]] = {}
    progress = Progress("turns", unit="", total=len(ways) * len(lengths) * (rounds + 1))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for turn in range(rounds + 1):  # nothing of the first counts
            for length in lengths:
                for i, (name, way) in enumerate(ways.items()):
                    seconds = await way(client, recording(length, 1000 * turn + 10 * length + i))
                    progress.step()
                    if turn:
                        taken.setdefault((name, length), []).append(seconds)
    rows: list[tuple[str, ...]] = []
    for name in ways:
        mine = [taken[name, length] for length in lengths]
        ratio = statistics.median(mine[-1]) / statistics.median(mine[0])
        rows.append((name, *(f"{median_ms(one)}, {p95_ms(one)}" for one in mine), f"{ratio:.2f}"))
    heads = ("", *(f"{length} s: median, p95" for length in lengths), f"{lengths[-1]} s / {lengths[0]} s")
    return markdown_table([heads, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint(), help="default: %(default)s")
    parser.add_argument("--seconds", type=count, nargs="+", default=[10, 30, 60], help="default %(default)s")
    parser.add_argument("--rounds", type=count, default=5, help="default %(default)s")
    parser.add_argument("--speed", type=float, default=5, help="of what is played (default %(default)s)")
    parser.add_argument("--silence", type=count, default=500, help="ms that end a turn (default %(default)s)")
    options = parser.parse_args()
    ways: dict[str, Way] = {
        "at the end": at_the_end,
        "all at once": by_hand(None),
        "played": by_hand(options.speed),
        "found": found(options.silence, options.speed),
    }
    (port,) = free_ports(1)
    with serving(options.checkpoint) as service:
        gateway = GatewayProcess(GatewaySettings.create(port=port, triton=[service.address], served_model_name=["R1"]))
        gateway.start()
        try:
            print(asyncio.run(measured(f"http://localhost:{port}", ways, options.seconds, options.rounds)))
        finally:
            gateway.stop()


if __name__ == "__main__":
    main()
