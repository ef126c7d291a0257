"""POST /v1/responses."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from step_audio_client import Sampling
from step_audio_gateway.asking import again, answers, first_of, prepare
from step_audio_gateway.chat import FAILURES, events_of
from step_audio_gateway.core import Gateway
from step_audio_gateway.generations import EventStream, unless_gone
from step_audio_gateway.json_body import JsonRoute
from step_audio_gateway.response_events import ResponseWriter
from step_audio_gateway.response_object import ResponseObject
from step_audio_gateway.response_request import NAMES, ResponseRequest


def response_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=FAILURES, tags=["responses"])
    event = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type", "sequence_number"]}

    @router.post("/v1/responses", response_model=ResponseObject, responses={200: {"content": events_of(event)}})
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        """An answer as a list of items, whole or, with `stream`, as server-sent events of OpenAI's names."""
        chat = body.as_chat()
        request.state.names = NAMES
        asked = await prepare(gateway, chat, request)
        about = _about(body, asked.model, asked.options[0].sampling)
        request.state.log["completion"] = about.id
        writer, deltas = ResponseWriter(about), answers(gateway, asked, request)
        if not body.stream:
            whole = await unless_gone(request.receive, writer.whole(deltas))
            without = None if whole.audio_warnings else {"audio_warnings"}
            return Response(whole.model_dump_json(exclude=without), media_type="application/json")
        first = await unless_gone(request.receive, first_of(deltas))
        return EventStream(writer.events(again(first, deltas)), deltas)

    return router


def _about(body: ResponseRequest, model: str, sampling: Sampling) -> ResponseObject:
    """What the response says of its request."""

    def said(value: Any) -> Any:
        return value.model_dump(by_alias=True, exclude_none=True) if hasattr(value, "model_dump") else value

    return ResponseObject(
        id=f"resp_{uuid.uuid4().hex}",
        created_at=int(time.time()),
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning={"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        temperature=sampling.temperature,
        text={"format": {"type": "text"}} | (said(body.text) or {}),
        tool_choice=said(body.tool_choice) or "auto",
        tools=[{"parameters": None, "strict": None} | said(tool) for tool in body.tools or ()],
        top_p=sampling.top_p,
    )
