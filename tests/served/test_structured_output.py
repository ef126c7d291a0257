"""Answers of a given form by the served small model, which has learned none: as long as the form bounds strings and
lists, they come to an end, and clients make objects of them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from paths import ROOT

SEEDS = range(12)


class Sum(BaseModel):
    """A sum and its result."""

    operation: Literal["plus", "minus", "times"]
    numbers: Annotated[list[int], Field(min_length=2, max_length=3)]
    result: int | None
    sure: bool
    words: Annotated[str, Field(max_length=40)]


class Twice(BaseModel):
    first: Sum
    second: Sum


SPOKEN = base64.b64encode((ROOT / "examples/sum.wav").read_bytes()).decode()
AUDIO = {"type": "input_audio", "input_audio": {"data": SPOKEN, "format": "wav"}}
QUESTION = [{"role": "user", "content": [AUDIO]}]


async def by_chat(client: Any, kind: type[BaseModel], **options: Any) -> BaseModel | None:
    reply = await client.chat.completions.parse(messages=QUESTION, response_format=kind, max_tokens=700, **options)
    return reply.choices[0].message.parsed


async def by_stream(client: Any, kind: type[BaseModel], **options: Any) -> BaseModel | None:
    ask = client.chat.completions.stream
    async with ask(messages=QUESTION, response_format=kind, max_tokens=700, **options) as events:
        return (await events.get_final_completion()).choices[0].message.parsed


async def by_responses(client: Any, kind: type[BaseModel], **options: Any) -> BaseModel | None:
    body = {"seed": options.pop("seed")}
    reply = await client.responses.parse(
        input=QUESTION, text_format=kind, max_output_tokens=700, extra_body=body, **options
    )
    return reply.output_parsed


async def by_a_call(client: Any, kind: type[BaseModel], **options: Any) -> BaseModel | None:
    import openai

    tool = openai.pydantic_function_tool(kind)
    reply = await client.chat.completions.parse(
        messages=QUESTION, tools=[tool], tool_choice="required", max_tokens=700, **options
    )
    (call,) = reply.choices[0].message.tool_calls
    return call.function.parsed_arguments


@pytest.mark.parametrize(
    ("way", "kind"), [(by_chat, Sum), (by_chat, Twice), (by_stream, Sum), (by_responses, Sum), (by_a_call, Twice)]
)
def test_every_answer_is_whole(url, way: Callable[..., Awaitable[BaseModel | None]], kind):
    """At temperature 1, of every seed."""
    import openai

    async def run() -> list[BaseModel | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(way(client, kind, model="R1", seed=s, temperature=1) for s in SEEDS))

    found = asyncio.run(run())
    assert all(isinstance(one, kind) for one in found) and len({one.model_dump_json() for one in found if one}) > 6
