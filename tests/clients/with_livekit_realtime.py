"""LiveKit agents: the realtime class of its openai plugin, as an agent's session calls it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from cases import MODEL, SUM, WRITTEN, case, holds, main, same, sounds
from livekit import rtc
from livekit.agents import llm
from livekit.plugins import openai
from livekit_questions import ADDRESS, asked, calculator, frames


@asynccontextmanager
async def session_of(modality: str, **settings: Any) -> AsyncIterator[openai.realtime.RealtimeSession]:
    """Which no error has come to when it ends."""
    async with aiohttp.ClientSession() as http:
        model = openai.realtime.RealtimeModel(
            model=MODEL, modalities=[modality], http_session=http, **settings, **ADDRESS
        )
        session, errors = model.session(), []
        session.on("error", errors.append)
        yield session
        await session.aclose()
        assert not errors, errors


@asynccontextmanager
async def answer_to_what_is_spoken(modality: str) -> AsyncIterator[llm.GenerationCreatedEvent]:
    """With the plugin's own settings: the server finds the turn, and answers it."""
    async with session_of(modality) as session:
        answers: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
        session.on("generation_created", answers.put_nowait)
        await session.update_instructions("Listen and answer.")
        silence = rtc.AudioFrame(bytes(2 * 24_000), 24_000, 1, 24_000)
        for frame in (*frames(SUM["file"]), silence, silence):
            session.push_audio(frame)
        yield await answers.get()


@case("realtime.RealtimeModel, spoken")
async def _() -> None:
    async with answer_to_what_is_spoken("text") as answer:
        holds(await said_in(answer), SUM["answer"])


@case("realtime.RealtimeModel, spoken, answered aloud")
async def _() -> None:
    async with answer_to_what_is_spoken("audio") as answer:
        async for message in answer.message_stream:
            audio = [bytes(frame.data) async for frame in message.audio_stream]
            text = "".join([str(text) async for text in message.text_stream])
    holds(text, SUM["answer"])
    sounds(audio)


@asynccontextmanager
async def by_hand(modality: str = "text") -> AsyncIterator[openai.realtime.RealtimeSession]:
    """A session with a written question in it, which answers when it is asked to."""
    async with session_of(modality, turn_detection=None) as session:
        await session.update_chat_ctx(asked())
        yield session


async def said_in(answer: llm.GenerationCreatedEvent) -> str:
    return "".join([str(text) async for message in answer.message_stream async for text in message.text_stream])


@case("realtime.RealtimeModel, written")
async def _() -> None:
    async with by_hand() as session:
        holds(await said_in(await session.generate_reply()), WRITTEN["answer"])


@case("realtime.RealtimeModel, tool call and back")
async def _() -> None:
    async with by_hand() as session:
        await session.update_tools([calculator])
        answer = await session.generate_reply(tool_choice="required")
        (call,) = [call async for call in answer.function_stream]
        same((call.name, list(json.loads(call.arguments))), ("calculator", ["operation", "first", "second"]))
        context = session.chat_ctx.copy()
        context.insert(llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output="777", is_error=False))
        await session.update_chat_ctx(context)
        assert await said_in(await session.generate_reply())


@case("realtime.RealtimeModel, interrupted")
async def _() -> None:
    """And asked again, it answers as before."""
    async with by_hand() as session:
        answer = await session.generate_reply()
        session.interrupt()
        assert len(await said_in(answer)) <= len(WRITTEN["answer"]) + 40
        holds(await said_in(await session.generate_reply()), WRITTEN["answer"])


@case("realtime.RealtimeModel, interrupted while it speaks")
async def _() -> None:
    """And it answers again."""
    async with by_hand("audio") as session:
        answer = await session.generate_reply()
        async for message in answer.message_stream:
            await anext(message.audio_stream)
            session.interrupt()
            session.truncate(message_id=message.message_id, modalities=["audio"], audio_end_ms=100)
        answer = await session.generate_reply()
        holds(await said_in(answer), WRITTEN["answer"])


main()
