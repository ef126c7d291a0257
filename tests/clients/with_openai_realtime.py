"""openai, the package for Python: realtime sessions."""

from __future__ import annotations

import base64
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
from cases import CALCULATOR, KEY, LARGE, MODEL, SUM, URL, WRITTEN, case, holds, main, same, sounds

SILENCE = 1.5  # seconds
BY_HAND = {"turn_detection": None}
ENDLESS = {"ignore_eos": True, "max_output_tokens": 3000}


@asynccontextmanager
async def session(audio: dict[str, Any], **settings: Any) -> AsyncIterator[Any]:
    """Of recordings as they are in files, at 16 kHz; answers in writing."""
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY) as client, client.realtime.connect(model=MODEL) as found:
        same((await found.recv()).type, "session.created")
        heard = {"format": {"type": "audio/pcm", "rate": 16_000}} | audio
        session = {"type": "realtime", "output_modalities": ["text"], "audio": {"input": heard}}
        await found.session.update(session=session | settings)
        same((await found.recv()).type, "session.updated")
        yield found


async def speak(connection: Any, path: str, silence: float = 0.0) -> None:
    """In pieces of 100 ms, as they are recorded."""
    with wave.open(path) as file:
        data = file.readframes(file.getnframes()) + bytes(2 * round(16_000 * silence))
    for begin in range(0, len(data), 3200):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[begin : begin + 3200]).decode())


async def until(connection: Any, kind: str) -> list[Any]:
    events = [await connection.recv()]
    while events[-1].type != kind:
        assert events[-1].type != "error", events[-1]
        events.append(await connection.recv())
    return events


def said(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@case("realtime, spoken, server VAD")
async def _() -> None:
    async with session({"turn_detection": {"type": "server_vad"}}) as connection:
        await speak(connection, SUM["file"], SILENCE)
        events = await until(connection, "response.done")
        kinds = [event.type for event in events]
        assert kinds.index("input_audio_buffer.speech_started") < kinds.index("input_audio_buffer.speech_stopped")
        holds(said(events), SUM["answer"])
        same(events[-1].response.status, "completed")
        assert events[-1].response.usage.input_token_details.audio_tokens > 12


@case("realtime, spoken, answered aloud")
async def _() -> None:
    async with session({"turn_detection": {"type": "server_vad"}}, output_modalities=["audio"]) as connection:
        await speak(connection, SUM["file"], SILENCE)
        events = await until(connection, "response.done")
        same(events[-1].response.status, "completed")
        (part,) = events[-1].response.output[-1].content
        holds(part.transcript, SUM["answer"])
        same("".join(event.delta for event in events if event.type.endswith("audio_transcript.delta")), part.transcript)
        sounds([base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta"])


@case("realtime, tool call and back")
async def _() -> None:
    async with session(BY_HAND, tools=[{"type": "function", **CALCULATOR}], temperature=0) as connection:
        await speak(connection, LARGE["file"])
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        (call,) = (await until(connection, "response.done"))[-1].response.output
        same(json.loads(call.arguments), {"expression": LARGE["expression"]})
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "777"}
        await connection.conversation.item.create(item=result)
        await connection.response.create()
        holds(said(await until(connection, "response.done")), "777")


@case("realtime, interrupted by speech")
async def _() -> None:
    async with session({"turn_detection": {"type": "server_vad"}}, **ENDLESS) as connection:
        part = {"type": "input_text", "text": WRITTEN["text"]}
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
        await connection.response.create()
        await until(connection, "response.created")
        await speak(connection, SUM["file"])
        events = await until(connection, "response.done")
        same(events[-1].response.status, "cancelled")
        same(events[-1].response.status_details.reason, "turn_detected")
        await connection.session.update(session={"type": "realtime", "ignore_eos": False})
        await until(connection, "session.updated")
        await connection.input_audio_buffer.append(audio=base64.b64encode(bytes(48_000)).decode())
        events = await until(connection, "response.done")
        same(events[-1].response.status, "completed")
        holds(said(events), SUM["answer"])


main()
