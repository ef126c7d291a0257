"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from step_audio_client import Audio
from step_audio_gateway.audio_parts import client_messages
from step_audio_gateway.completions import Completion, Deltas, Item
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ErrorBody
from step_audio_gateway.generations import EventStream, unless_gone
from step_audio_gateway.json_body import JsonRoute
from step_audio_gateway.options import (
    answers_at_once,
    chat_options,
    check_mind_paced,
    check_unsupported,
    split_final_message,
)
from step_audio_gateway.responses import ChatCompletion, FinishReason
from step_audio_gateway.schemas import ChatRequest

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "the request cannot be served as it is",
        401: "no valid API key",
        404: "no such model",
        408: "the body came too slowly",
        413: "larger than the limit",
        415: "the body is not JSON by its Content-Type",
        429: "too much is under way; see Retry-After",
        500: "a fault of the server's",
        503: "the served model cannot be reached",
        504: "not done in time",
    }.items()
}


def events_of(schema: dict[str, Any], end: str | None = None) -> dict[str, Any]:
    """The description of server-sent events whose data is JSON of `schema`, the last one's `end`."""
    data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    if end is not None:
        data = {"anyOf": [{"const": end}, data]}
    return {"text/event-stream": {"schema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}}


def chat_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=FAILURES, tags=["chat"])
    streamed = events_of({"$ref": "#/components/schemas/ChatCompletionChunk"}, end="[DONE]")

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: {"content": streamed}})
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """One or several answers, whole or, with `stream`, as server-sent events."""
        settings, fields = gateway.settings, request.state.log
        model = await gateway.model_name(body.model)
        fields |= {"model": model, "stream": bool(body.stream)}
        check_unsupported(body)
        request.state.admitted.answers(answers_at_once(body))
        messages, proceed = split_final_message(body)
        separate = settings.separate_reasoning if body.separate_reasoning is None else body.separate_reasoning
        tokenizer = await gateway.client.tokenizer()
        options = chat_options(body, tokenizer, proceed, separate, gateway.defaults, settings.request_timeout)
        check_mind_paced(body, options[0], separate)
        limits = (await gateway.client.serving_info())["limits"]
        sent = await unless_gone(request.receive, client_messages(messages, limits, gateway.fetcher))
        if settings.log_content:
            fields["messages"] = _without_audio(sent)
        completion = Completion(model, raw=not separate, logprobs=bool(body.logprobs))
        fields["completion"] = completion.id
        deltas = _logged(gateway.answers(sent, options), fields, settings.log_content)
        if not body.stream:
            whole = await unless_gone(request.receive, completion.whole(deltas))
            return Response(whole.model_dump_json(exclude_unset=True), media_type="application/json")
        # The first delta is waited for, so that what goes wrong before it still has a status of its own.
        first = await unless_gone(request.receive, first_of(deltas))
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(completion.events(_again(first, deltas), include_usage), deltas)

    return router


async def first_of(deltas: Deltas) -> Item:
    return await anext(deltas)


async def _again(first: Item, deltas: Deltas) -> AsyncIterator[Item]:
    """`first` and what comes after it."""
    yield first
    async for item in deltas:
        yield item


async def _logged(deltas: Deltas, fields: dict[str, Any], content: bool) -> Deltas:
    """The deltas, the log's fields filled on their way."""
    for kind in ("prompt_tokens", "audio_tokens", "completion_tokens", "reasoning_tokens"):
        fields[kind] = 0
    fields["finish"] = []
    texts: dict[int, str] = {}
    finish: dict[int, FinishReason | None] = {}
    try:
        async for index, delta in deltas:
            if content:
                texts[index] = texts.get(index, "") + delta.raw
            if delta.usage:
                fields["prompt_tokens"] = delta.usage.prompt_tokens
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
        if content:
            fields["replies"] = [text for _, text in sorted(texts.items())]


def _without_audio(messages: list[dict[str, Any]]) -> Any:
    def size(value: Any) -> Any:
        return {"bytes": len(value.data)} if isinstance(value, Audio) else repr(value)

    return json.loads(json.dumps(messages, default=size))
