"""From a checked request to answers under way: what every route that takes messages does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from step_audio_client import Audio, ChatOptions
from step_audio_gateway.audio_parts import client_messages
from step_audio_gateway.chunks import Chunks, Deltas, Item
from step_audio_gateway.controls import StreamOptions
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import refused
from step_audio_gateway.generations import EventStream, unless_gone
from step_audio_gateway.options import (
    answers_at_once,
    chat_options,
    check_mind_paced,
    split_final_message,
)
from step_audio_gateway.published import REFUSED, check_published
from step_audio_gateway.responses import FinishReason
from step_audio_gateway.schemas import ChatRequest


@dataclass(frozen=True)
class Asked:
    """What is to be asked: the client library's messages, and options for each answer. `separate`: thought and answer
    come apart."""

    model: str
    separate: bool
    messages: list[dict[str, Any]]
    options: list[ChatOptions]


async def prepare(gateway: Gateway, body: ChatRequest, request: Request) -> Asked:
    """Raises ApiError, RequestError, ClientGone."""
    settings, fields = gateway.settings, request.state.log
    model = await gateway.model_name(body.model)
    fields |= {"model": model, "stream": bool(body.stream)}
    check_published(body.model_extra, REFUSED)
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs needs logprobs", "top_logprobs")
    request.state.admitted.answers(answers_at_once(body))
    messages, proceed = split_final_message(body.messages, body.continue_final_message, body.add_generation_prompt)
    separate = settings.separate_reasoning if body.separate_reasoning is None else body.separate_reasoning
    tokenizer = await gateway.client.tokenizer()
    options = chat_options(body, tokenizer, proceed, separate, gateway.defaults, settings.request_timeout)
    adapter = await gateway.adapter(model)
    options = [replace(option, adapter=adapter) for option in options]
    check_mind_paced(body, options[0], separate)
    limits = (await gateway.client.serving_info())["limits"]
    sent, places = await unless_gone(request.receive, client_messages(messages, limits, gateway.fetcher))
    names = {f"audio[{i}]": place for i, place in enumerate(places)}
    request.state.names = names | getattr(request.state, "names", {})
    if settings.log_content:
        fields["messages"] = _without_audio(sent)
    return Asked(model, separate, sent, options)


def answers(gateway: Gateway, asked: Asked, request: Request) -> Deltas:
    """All answers under way, told to the log on their way."""
    deltas = gateway.answers(asked.messages, asked.options)
    return logged(deltas, request, gateway.settings.log_content, len(asked.options))


async def replied(
    request: Request, reply: Chunks[Any], deltas: Deltas, stream: bool | None, options: StreamOptions | None
) -> Response:
    """Whole, or as server-sent events. Raises ApiError, RequestError, ClientGone."""
    if not stream:
        whole = await unless_gone(request.receive, reply.whole(deltas))
        return Response(whole.model_dump_json(exclude_unset=True), media_type="application/json")
    # The first delta is waited for, so that what goes wrong before it still has a status of its own.
    first = await unless_gone(request.receive, first_of(deltas))
    return EventStream(reply.events(again(first, deltas), options), deltas)


async def first_of(deltas: Deltas) -> Item:
    return await anext(deltas)


async def again(first: Item, deltas: Deltas) -> AsyncIterator[Item]:
    """`first` and what comes after it."""
    yield first
    async for item in deltas:
        yield item


async def logged(deltas: Deltas, request: Request, content: bool, per_prompt: int) -> Deltas:
    """The deltas, the log's fields filled on their way. `per_prompt`: how many answers each prompt has.

    When they have ended, the places of `request` are free again: whoever hears of the end may ask the next at once.
    """
    fields = request.state.log
    for kind in ("prompt_tokens", "audio_tokens", "completion_tokens", "reasoning_tokens"):
        fields[kind] = 0
    fields["finish"] = []
    texts: dict[int, str] = {}
    finish: dict[int, FinishReason | None] = {}
    prompts: dict[int, int] = {}
    try:
        async for index, delta in deltas:
            if content:
                texts[index] = texts.get(index, "") + delta.raw
            if delta.usage:
                prompts[index // per_prompt] = delta.usage.prompt_tokens
                fields["prompt_tokens"] = sum(prompts.values())
                fields["audio_tokens"] = delta.usage.audio_tokens
                fields["completion_tokens"] += delta.usage.completion_tokens
                fields["reasoning_tokens"] += delta.usage.reasoning_tokens
                if lost := sum(report.lost_seconds for report in delta.audio):
                    fields["audio_seconds_lost"] = round(lost, 3)
                finish[index] = delta.finish_reason
                fields["finish"] = [reason for _, reason in sorted(finish.items())]
            yield index, delta
    finally:
        await deltas.aclose()
        request.state.admitted.leave()
        if content:
            fields["replies"] = [text for _, text in sorted(texts.items())]


def _without_audio(messages: list[dict[str, Any]]) -> Any:
    def size(value: Any) -> Any:
        return {"bytes": len(value.data)} if isinstance(value, Audio) else repr(value)

    return json.loads(json.dumps(messages, default=size))
