"""Spoken questions in real time: from the end of speech to the first text and the first sound, many sessions at once.

    python benchmarks/conversations.py [--sessions 1 4 8] [--turns 5] [--output FILE]

One run of the small trained model with the built-in voice (extra `voice`). All ways take turns; within one, each of the
sessions asks a sum of its own, beginning within the same second, and no recording comes twice.

realtime   the recording is appended as it is spoken, then silence; the server finds its end
requests   /v1/chat/completions: the same recording, sent when it is over: somebody, or something, knows that it is

Either speaks first, while it thinks, or thinks before it speaks; and answers in writing, or aloud.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import math
import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openai

from bench import median_ms, p95_ms, serving
from step_audio.arrays import Float32Array
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.command_line import count, echo
from step_audio.markdown import markdown_table
from step_audio.progress import Progress
from step_audio_client import (
    AudioDelta,
    RealtimeError,
    RealtimeEvent,
    RealtimeSession,
    ResponseDone,
    SpeechStopped,
    TextDelta,
)
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.commands.demo import VOICE
from step_audio_server.launch.ports import free_ports
from step_audio_training.arithmetic import spell_numbers
from step_audio_training.speech import speak

BLOCK = 0.02  # seconds that are appended at once
PATIENCE = 120  # seconds for a question and its answer
MODES = {"speaks first": {"mode": "speak_first"}, "thinks before": None}


class ConversationMode(NamedTuple):
    """How a question is asked and answered."""

    realtime: bool
    mode: str
    aloud: bool


class Taken(NamedTuple):
    """Seconds from the end of speech: until the turn was over, and until something was there; NaN for what was not."""

    turn: float
    first: float


@contextmanager
def talking() -> Iterator[str]:
    """A gateway with a voice, the small model behind it; its URL."""
    (port,) = free_ports(1)
    with serving(embedded_checkpoint()) as service:
        settings = GatewaySettings.create(
            port=port, triton=[service.address], served_model_name=["R1"], speech="built-in"
        )
        gateway = GatewayProcess(settings)
        gateway.start()
        try:
            yield f"http://localhost:{port}"
        finally:
            gateway.stop()


def question(seed: int) -> Float32Array:
    """float32 [n], 16 kHz: a sum, up to the end of its last word, in noise that no other has."""
    drawn = random.Random(seed)
    text = spell_numbers(f"what is {drawn.randint(11, 89)} plus {drawn.randint(11, 89)}?")
    samples = speak(text, VOICE).samples / 2
    samples = samples[: int(np.flatnonzero(np.abs(samples) > 0.01)[-1]) + 1]
    noise = np.random.default_rng(seed).normal(0, 1e-3, len(samples)).astype(np.float32)
    said: Float32Array = samples + noise
    return said


async def play(session: RealtimeSession, samples: Float32Array) -> float:
    """In real time; when the last of it was sent."""
    data = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    size, due = 2 * round(BLOCK * SAMPLE_RATE), time.monotonic()
    for start in range(0, len(data), size):
        due += BLOCK
        await asyncio.sleep(due - time.monotonic())
        await session.append(data[start : start + size])
    return time.monotonic()


async def be_silent(session: RealtimeSession) -> None:
    while True:
        await play(session, np.zeros(SAMPLE_RATE, np.float32))


async def turn(session: RealtimeSession, samples: Float32Array) -> tuple[float, list[tuple[float, RealtimeEvent]]]:
    """When the speech ended, and all events until the answer's end, with their times."""
    ended = await play(session, samples)
    silence, events = asyncio.create_task(be_silent(session)), []
    try:
        async for event in session:
            events.append((time.monotonic(), event))
            if isinstance(event, ResponseDone):
                break
    finally:
        silence.cancel()
        await asyncio.gather(silence, return_exceptions=True)
    return ended, events


async def in_a_session(url: str, way: ConversationMode, samples: Float32Array) -> Taken:
    async with RealtimeSession.connect(url) as session:
        modality = "audio" if way.aloud else "text"
        await session.update(output_modalities=[modality], temperature=0, mind_paced_speaking=MODES[way.mode])
        ended, events = await turn(session, samples)
    over = _first(events, SpeechStopped)
    first = _first(events, AudioDelta if way.aloud else TextDelta)
    return Taken(over - ended, first - ended)


def _first(events: list[tuple[float, RealtimeEvent]], kind: type[RealtimeEvent]) -> float:
    """When it came; NaN where none did."""
    return next((when for when, event in events if isinstance(event, kind)), math.nan)


async def by_a_request(client: openai.AsyncOpenAI, way: ConversationMode, samples: Float32Array) -> Taken:
    await asyncio.sleep(len(samples) / SAMPLE_RATE)  # it is spoken
    ended, first = time.monotonic(), math.nan
    audio = {"data": base64.b64encode(encode_wav(samples)).decode(), "format": "wav"}
    message: Any = {"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}
    more: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"format": "pcm16", "voice": "alloy"}}
    paced = MODES[way.mode]
    stream = await client.chat.completions.create(
        model="R1",
        messages=[message],
        temperature=0,
        stream=True,
        extra_body={"mind_paced_speaking": paced} if paced else None,
        **(more if way.aloud else {}),
    )
    async for chunk in stream:
        if not chunk.choices or not math.isnan(first):
            continue
        delta: Any = chunk.choices[0].delta
        if (delta.audio is not None and delta.audio.data) if way.aloud else delta.content:
            first = time.monotonic()
    return Taken(0.0, first - ended)


async def measured(url: str, sessions: list[int], turns: int) -> dict[tuple[ConversationMode, int], list[Taken]]:
    ways = [ConversationMode(*one) for one in itertools.product((True, False), MODES, (False, True))]
    taken: dict[tuple[ConversationMode, int], list[Taken]] = {}
    seeds, drawn = itertools.count(), random.Random(0)
    progress = Progress("conversations", unit="", total=len(ways) * len(sessions) * (turns + 1))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def ask(way: ConversationMode) -> Taken:
            samples, pause = question(next(seeds)), drawn.random()
            await asyncio.sleep(pause)
            asked = in_a_session(url, way, samples) if way.realtime else by_a_request(client, way, samples)
            try:
                return await asyncio.wait_for(asked, PATIENCE)
            except (TimeoutError, RealtimeError, openai.APIError) as error:
                echo(f"{way}: {type(error).__name__}: {error}")
                return Taken(math.nan, math.nan)

        for round in range(turns + 1):  # nothing of the first counts
            for many in sessions:
                for way in ways:
                    found = await asyncio.gather(*(ask(way) for _ in range(many)))
                    progress.step()
                    if round:
                        taken.setdefault((way, many), []).extend(found)
    return taken


def table(taken: dict[tuple[ConversationMode, int], list[Taken]], sessions: list[int]) -> str:
    """Median and p95 of the time to the first text, or sound; of a session's the share that is the turn's end; how many
    answers had none."""
    rows: list[tuple[str, ...]] = [("", "", "", *(f"{many} at once" for many in sessions))]
    for way in dict.fromkeys(way for way, _ in taken):
        asked = "session" if way.realtime else "/v1/chat/completions"
        names = asked, way.mode, "first sound" if way.aloud else "first text"
        rows.append((*names, *(_cell(taken[way, many], way.realtime) for many in sessions)))
    return markdown_table(rows)


def _cell(taken: list[Taken], shared: bool) -> str:
    there = [one for one in taken if not math.isnan(one.first)]
    less = f"{len(taken) - len(there)} of {len(taken)} without" if len(there) < len(taken) else ""
    if not there:
        return less
    firsts = [one.first for one in there]
    share = f" ({statistics.median(one.turn / one.first for one in there):.0%})" if shared else ""
    return f"{median_ms(firsts)}, {p95_ms(firsts)}{share}{less and f', {less}'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=count, nargs="+", default=[1, 4, 8], help="default %(default)s")
    parser.add_argument("--turns", type=count, default=5, help="of each session and way (default %(default)s)")
    parser.add_argument("--output", type=Path, help="of the table, besides the terminal")
    options = parser.parse_args()
    with talking() as url:
        taken = asyncio.run(measured(url, options.sessions, options.turns))
    text = f"{table(taken, options.sessions)}\n\nload {os.getloadavg()[1]:.1f}\n"
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
