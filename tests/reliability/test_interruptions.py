"""Answers of a realtime session, said aloud, are interrupted at any moment: slots come free, the history holds what was
heard, and no question is answered that was withdrawn.

RELIABILITY_ROUNDS: `make reliability` sets it, for 200 interruptions. How long each slot was still taken is printed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from raw_triton import active
from realtime_fixture import connected, say, until
from speech_fixture import speech_server
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports
from step_audio_training.speech import Voice, speak

INTERRUPTIONS = 200 if "RELIABILITY_ROUNDS" in os.environ else 10
SECONDS = 60
OLD = 0.06  # seconds: an engine's figures at tritonserver's metrics port are its own of 50 ms before
PCM = 48  # bytes of a millisecond
MS_A_CHARACTER = 10  # of speech_fixture's voice
QUESTION = "what is one plus one"
SILENCE = base64.b64encode(bytes(32_000)).decode()  # a second at 16 kHz: a turn would be over


async def free(service: Any) -> float:
    """Seconds until the engine has nothing to do."""
    begun = since = now = time.monotonic()
    while now - since <= OLD:
        busy = await asyncio.to_thread(active, service)
        now = time.monotonic()
        if busy:
            assert now - begun < SECONDS, "a slot is still taken"
            since = now
        await asyncio.sleep(0.005)
    return since - begun


def after(pieces: list[str], milliseconds: int) -> str:
    """What the voice has said by then: it is silent about the white space around a piece."""
    text, letters = "", milliseconds // MS_A_CHARACTER
    for piece in pieces:
        said = len(piece.strip())
        if letters < said:
            return text + piece[: len(piece) - len(piece.lstrip()) + letters]
        text += piece
        letters -= said
    return text


def quiet(events: list[Any]) -> bool:
    """Nothing is answered, and nothing that was said has become a question."""
    kinds = [event.type for event in events]
    return "input_audio_buffer.committed" not in kinds and not any(kind.startswith("response.") for kind in kinds)


async def interrupted(connection: Any, service: Any, drawn: random.Random, how: str, spoken: str) -> float:
    """One answer. Seconds until its slot was free."""
    await say(connection, QUESTION)
    await connection.response.create(response={"ignore_eos": True, "max_output_tokens": 1500})
    begun = await until(connection, "response.created")
    await asyncio.sleep(drawn.choice((0.0, 0.02, 0.1, 0.3)) * drawn.random())
    if how == "cancelled":
        await connection.response.cancel()
    else:
        await connection.input_audio_buffer.append(audio=spoken)
    taken = await free(service)
    events = await until(connection, "response.done")
    ended = events[-1].response
    assert ended.id == begun[-1].response.id and ended.status == "cancelled"
    later = []
    if how == "spoken":  # who has begun to speak thinks better of it
        await connection.input_audio_buffer.clear()
        await connection.input_audio_buffer.append(audio=SILENCE)
        later += await until(connection, "input_audio_buffer.cleared")
    for item in ended.output:
        audio = [event.delta for event in events if event.type == "response.output_audio.delta"]
        there = sum(len(base64.b64decode(delta)) for delta in audio) // PCM
        heard = drawn.choice((there, drawn.randint(0, there)))
        await connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=heard)
        await connection.conversation.item.retrieve(item_id=item.id)
        later += await until(connection, "conversation.item.retrieved")
        kept = later[-1].item.content[0].transcript or ""
        pieces = [event.delta for event in events if event.type == "response.output_audio_transcript.delta"]
        assert "".join(pieces) == (item.content[0].transcript or "")
        assert after(pieces, heard).startswith(kept), (pieces, heard, kept)
    if not ended.output:
        await withdraw(connection, begun)
    await connection.conversation.item.retrieve(item_id="none")
    assert quiet(later + await until(connection, "error"))
    return taken


async def withdraw(connection: Any, events: list[Any]) -> None:
    """The question that `events` tell of."""
    (item,) = [event.item for event in events if event.type == "conversation.item.done"]
    await connection.conversation.item.delete(item_id=item.id)


async def input_tokens(connection: Any) -> int:
    """Of the question, and all that the model hears before it."""
    await say(connection, QUESTION)
    await connection.response.create(response={"output_modalities": ["text"], "max_output_tokens": 2})
    return (await until(connection, "response.done"))[-1].response.usage.input_tokens


@contextlib.asynccontextmanager
async def speaking(url: str) -> AsyncIterator[Any]:
    async with connected(url, model="R1") as connection:
        heard = {"format": {"type": "audio/pcm", "rate": 16_000}}
        session = {"type": "realtime", "audio": {"input": heard}, "thinking": {"mode": "off"}}
        await connection.session.update(session=session)
        await until(connection, "session.updated")
        yield connection


@pytest.fixture(scope="module")
def url(service):
    (port,) = free_ports(1)
    with speech_server() as speech:
        settings = GatewaySettings.create(port=port, triton=[service.address], served_model_name=["R1"], speech=speech)
        process = GatewayProcess(settings)
        process.start()
        try:
            yield f"http://localhost:{port}"
        finally:
            process.stop()


@pytest.fixture(scope="module")
def spoken():
    """Base64 of PCM16 at 16 kHz: speech, without the silence that would end a turn."""
    samples = speak("what is three plus four", Voice(variant="f3")).samples[:12_000] / 2
    return base64.b64encode((samples * 32767).astype("<i2").tobytes()).decode()


async def test_interruptions(service, url, spoken):
    drawn = random.Random(0)
    taken: dict[str, list[float]] = {"cancelled": [], "spoken": []}
    for begin in range(0, INTERRUPTIONS, 20):  # or the history would be all there is
        async with speaking(url) as connection:
            for i in range(begin, min(begin + 20, INTERRUPTIONS)):
                how = "spoken" if i % 2 else "cancelled"
                taken[how].append(await interrupted(connection, service, drawn, how, spoken))
    for how, seconds in taken.items():
        p50, p95, most = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.95, 1))
        print(f"{how}: {len(seconds)}; slots were free after {p50:.0f} ms (median), {p95:.0f} ms (p95), {most:.0f} ms")


async def test_a_withdrawn_question_is_no_part_of_the_next(service, url, spoken):
    async with speaking(url) as connection:
        alone = await input_tokens(connection)
        assert await input_tokens(connection) > alone, "what was asked before is heard"
    async with speaking(url) as connection:
        await say(connection, "what is forty eight plus thirty four")
        await connection.response.create()
        await connection.response.cancel()
        events = await until(connection, "response.done")
        assert not events[-1].response.output, "it had not begun"
        await withdraw(connection, events)
        await connection.input_audio_buffer.append(audio=spoken)
        await connection.input_audio_buffer.clear()
        await connection.input_audio_buffer.append(audio=SILENCE)
        assert await input_tokens(connection) == alone
