"""Answers of a realtime session, said aloud, are interrupted at any moment: slots come free, and the history holds a
beginning of what was said.

RELIABILITY_ROUNDS: `make reliability` sets it, for 200 interruptions. How long each slot was still taken is printed.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import time
from typing import Any

import numpy as np

from raw_triton import active
from realtime_fixture import connected, until
from speech_fixture import speech_server
from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.launch.ports import free_ports
from step_audio_training.speech import Voice, speak

INTERRUPTIONS = 200 if "RELIABILITY_ROUNDS" in os.environ else 10
SECONDS = 60
PCM = 48  # bytes of a millisecond


async def free(service: Any) -> float:
    """Seconds until the engine has nothing to do."""
    begun = time.monotonic()
    while await asyncio.to_thread(active, service):
        assert time.monotonic() - begun < SECONDS, "a slot is still taken"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


async def interrupted(connection: Any, service: Any, drawn: random.Random, how: str, spoken: str) -> float:
    """One answer. Seconds until its slot was free."""
    question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what is one plus one"}]}
    await connection.conversation.item.create(item=question)
    await connection.response.create(response={"ignore_eos": True, "max_output_tokens": 1500})
    mine = (await until(connection, "response.created"))[-1].response.id
    await asyncio.sleep(drawn.choice((0.0, 0.02, 0.1, 0.3)) * drawn.random())
    if how == "cancelled":
        await connection.response.cancel()
    else:
        await connection.input_audio_buffer.append(audio=spoken)
    taken = await free(service)
    events = await until(connection, "response.done")
    assert events[-1].response.id == mine and events[-1].response.status == "cancelled"
    if how == "spoken":  # who has begun to speak thinks better of it
        await connection.input_audio_buffer.clear()
        events += await until(connection, "input_audio_buffer.cleared")
    for item in next(event for event in events if event.type == "response.done").response.output:
        audio = [event.delta for event in events if event.type == "response.output_audio.delta"]
        there = sum(len(base64.b64decode(delta)) for delta in audio) // PCM
        heard = drawn.randint(0, there)
        await connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=heard)
        await until(connection, "conversation.item.truncated")
        await connection.conversation.item.retrieve(item_id=item.id)
        kept = (await until(connection, "conversation.item.retrieved"))[-1].item.content[0].transcript or ""
        assert (item.content[0].transcript or "").startswith(kept)
    return taken


async def test_interruptions(service):
    drawn = random.Random(0)
    samples = speak("what is three plus four", Voice(variant="f3")).samples[:12_000] / 2
    spoken = base64.b64encode((samples * 32767).astype("<i2").tobytes()).decode()
    (port,) = free_ports(1)
    taken: dict[str, list[float]] = {"cancelled": [], "spoken": []}
    with speech_server() as speech:
        settings = GatewaySettings.create(port=port, triton=[service.address], served_model_name=["R1"], speech=speech)
        process = GatewayProcess(settings)
        await asyncio.to_thread(process.start)
        try:
            for begin in range(0, INTERRUPTIONS, 20):  # or the history would be all there is
                async with connected(f"http://localhost:{port}", model="R1") as connection:
                    heard = {"format": {"type": "audio/pcm", "rate": 16_000}}
                    session = {"type": "realtime", "audio": {"input": heard}, "thinking": {"mode": "off"}}
                    await connection.session.update(session=session)
                    await until(connection, "session.updated")
                    for i in range(begin, min(begin + 20, INTERRUPTIONS)):
                        how = "spoken" if i % 2 else "cancelled"
                        taken[how].append(await interrupted(connection, service, drawn, how, spoken))
        finally:
            await asyncio.to_thread(process.stop)
    for how, seconds in taken.items():
        p50, p95, most = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.95, 1))
        print(f"{how}: {len(seconds)}; slots were free after {p50:.0f} ms (median), {p95:.0f} ms (p95), {most:.0f} ms")
