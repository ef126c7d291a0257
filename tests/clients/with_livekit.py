"""LiveKit agents: the LLM and STT classes of its openai plugin, as an agent's session calls them.

They send the LLM text alone, about which the small model knows no tool: it has to call one, and to go on.
"""

from __future__ import annotations

import json

import httpx2
from cases import DICTATION, MODEL, MOST_TOKENS, WRITTEN, case, holds, main, same
from livekit.agents import llm
from livekit.plugins import openai
from livekit_questions import ADDRESS, asked, calculator, frames
from pydantic import BaseModel


class Sum(BaseModel):
    first: int
    second: int
    result: int


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


@case("STT, language en")
async def _() -> None:
    for detect in (False, True):
        stt = openai.STT(model=MODEL, detect_language=detect, **ADDRESS)
        for one in DICTATION:
            event = await stt.recognize(frames(one["file"]))
            same(event.alternatives[0].text, one["text"])


main()
