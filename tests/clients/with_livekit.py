"""LiveKit agents: the LLM and STT classes of its openai plugin, as an agent's session calls them.

They send the LLM text alone, about which the small model knows no tool: it has to call one, and to go on.
"""

from __future__ import annotations

import asyncio
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import aiohttp
import httpx2
from cases import DICTATION, KEY, MODEL, MOST_TOKENS, SUM, URL, WRITTEN, case, holds, main, same
from livekit import rtc
from livekit.agents import function_tool, llm
from livekit.plugins import openai
from pydantic import BaseModel

ADDRESS = {"base_url": URL, "api_key": KEY}


class Sum(BaseModel):
    first: int
    second: int
    result: int


@function_tool
async def calculator(operation: Literal["plus", "minus"], first: int, second: int) -> str:
    """Work out a sum exactly."""
    return "777"


def asked() -> llm.ChatContext:
    context = llm.ChatContext()
    context.add_message(role="system", content="Listen and answer.")
    context.add_message(role="user", content=WRITTEN["text"])
    return context


def cases_of(api: str, model: llm.LLM) -> None:
    @case(f"{api}, chat")
    async def _() -> None:
        async with model.chat(chat_ctx=asked()) as stream:
            chunks = [chunk async for chunk in stream]
        said = [chunk.delta.content for chunk in chunks if chunk.delta and chunk.delta.content]
        holds("".join(said), WRITTEN["answer"])
        assert chunks[-1].usage.completion_tokens > 0

    @case(f"{api}, tool call and back")
    async def _() -> None:
        context = asked()
        async with model.chat(chat_ctx=context, tools=[calculator], tool_choice="required") as stream:
            reply = await stream.collect()
        (call,) = reply.tool_calls
        same((call.name, list(json.loads(call.arguments))), ("calculator", ["operation", "first", "second"]))
        context.insert(llm.FunctionCall(call_id=call.call_id, name=call.name, arguments=call.arguments))
        context.insert(llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output="777", is_error=False))
        async with model.chat(chat_ctx=context, tools=[calculator]) as stream:
            assert (await stream.collect()).text


chat = openai.LLM(model=MODEL, temperature=0, max_completion_tokens=MOST_TOKENS, **ADDRESS)
cases_of("LLM", chat)
cases_of(
    "responses.LLM",
    openai.responses.LLM(
        model=MODEL,
        temperature=0,
        max_output_tokens=MOST_TOKENS,
        use_websocket=False,
        store=False,
        timeout=httpx2.Timeout(60),
        **ADDRESS,
    ),
)


@case("LLM, response_format")
async def _() -> None:
    async with chat.chat(chat_ctx=asked(), response_format=Sum) as stream:
        Sum.model_validate_json((await stream.collect()).text)


def frames(path: str) -> list[rtc.AudioFrame]:
    """Of 100 ms."""
    with wave.open(path) as file:
        rate, found = file.getframerate(), []
        while data := file.readframes(rate // 10):
            found.append(rtc.AudioFrame(data, rate, 1, len(data) // 2))
    return found


@case("STT, language en")
async def _() -> None:
    for detect in (False, True):
        stt = openai.STT(model=MODEL, detect_language=detect, **ADDRESS)
        for one in DICTATION:
            event = await stt.recognize(frames(one["file"]))
            same(event.alternatives[0].text, one["text"])


@case("realtime.RealtimeModel, spoken")
async def _() -> None:
    """With the plugin's own settings: the server finds the turn, and answers it."""
    async with aiohttp.ClientSession() as http:
        model = openai.realtime.RealtimeModel(model=MODEL, modalities=["text"], http_session=http, **ADDRESS)
        session, answers = model.session(), asyncio.Queue()
        session.on("generation_created", answers.put_nowait)
        await session.update_instructions("Listen and answer.")
        silence = rtc.AudioFrame(bytes(2 * 24_000), 24_000, 1, 24_000)
        for frame in (*frames(SUM["file"]), silence, silence):
            session.push_audio(frame)
        holds(await said_in(await answers.get()), SUM["answer"])
        await session.aclose()


@asynccontextmanager
async def by_hand() -> AsyncIterator[openai.realtime.RealtimeSession]:
    """A session with a written question in it, which answers when it is asked to."""
    async with aiohttp.ClientSession() as http:
        model = openai.realtime.RealtimeModel(
            model=MODEL, modalities=["text"], turn_detection=None, http_session=http, **ADDRESS
        )
        session = model.session()
        await session.update_chat_ctx(asked())
        yield session
        await session.aclose()


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


main()
