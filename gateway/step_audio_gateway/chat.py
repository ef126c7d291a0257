"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from step_audio_gateway.asking import answers, prepare, replied
from step_audio_gateway.completions import Completion
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ErrorBody
from step_audio_gateway.json_body import JsonRoute
from step_audio_gateway.responses import ChatCompletion
from step_audio_gateway.schemas import ChatRequest
from step_audio_gateway.speech.aloud import check_aloud, said_aloud
from step_audio_gateway.speech.voice import SpeechVoice

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


def chat_routes(gateway: Gateway, voice: SpeechVoice | None) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=FAILURES, tags=["chat"])
    streamed = events_of({"$ref": "#/components/schemas/ChatCompletionChunk"}, end="[DONE]")

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: {"content": streamed}})
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """One or several answers, whole or, with `stream`, as server-sent events."""
        if "max_completion_tokens" in body.model_fields_set and "max_tokens" not in body.model_fields_set:
            request.state.names = {"max_tokens": "max_completion_tokens"}
        asked = await prepare(gateway, body, request)
        aloud = check_aloud(body, asked.separate, voice)
        completion = Completion(
            asked.model,
            raw=not asked.separate,
            logprobs=bool(body.logprobs),
            audio=aloud.format if aloud else None,
        )
        request.state.log["completion"] = completion.id
        deltas = answers(gateway, asked, request)
        if voice is not None and aloud is not None:
            deltas = said_aloud(deltas, voice, aloud.voice)
        return await replied(request, completion, deltas, body.stream, body.stream_options)

    return router
