"""WS /v1/realtime, and the secrets that open it."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Literal

from fastapi import APIRouter, Request, WebSocket
from pydantic import BaseModel, Field
from starlette.websockets import WebSocketDisconnect, WebSocketState

from step_audio_gateway.admission import Admission, HeldSession
from step_audio_gateway.auth import Keys
from step_audio_gateway.chat import FAILURES
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ApiError, refused
from step_audio_gateway.json_body import JsonRoute
from step_audio_gateway.nulls import Lenient
from step_audio_gateway.realtime.client_secrets import Caller, make_secret
from step_audio_gateway.realtime.connection import GONE, SessionConnection
from step_audio_gateway.realtime.desk import Desk
from step_audio_gateway.realtime.faults import TOLD, Fault
from step_audio_gateway.realtime.items import new_id
from step_audio_gateway.realtime.session import Session, default_config
from step_audio_gateway.realtime.sessions import Sessions
from step_audio_gateway.speech.voice import SpeechVoice

SUBPROTOCOL = "realtime"  # which a browser offers beside its key


class ExpiresAfter(Lenient):
    """When a secret ends, which its sessions outlive."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(default=600, ge=10, le=7200)


class SecretRequest(Lenient):
    """`session`: as session.update has it; the secret's holder may change it."""

    expires_after: ExpiresAfter = ExpiresAfter()
    session: dict[str, Any] = Field(default_factory=dict)


class ClientSecret(BaseModel):
    """To be sent in the place of an API key, by the header or as the subprotocol `openai-insecure-api-key.VALUE`."""

    value: str
    expires_at: int
    session: dict[str, Any]


def realtime_routes(
    gateway: Gateway, admission: Admission, keys: Keys, sessions: Sessions, voice: SpeechVoice | None
) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=FAILURES, tags=["realtime"])

    @router.post("/v1/realtime/client_secrets", response_model=ClientSecret)
    async def create_client_secret(body: SecretRequest, request: Request) -> ClientSecret:
        """A secret that opens realtime sessions for some minutes: for browsers, which are to see no API key."""
        try:
            config = default_config(voice is not None).updated(body.session, "session")
        except Fault as fault:
            raise refused(str(fault), fault.param, fault.code) from None
        model = await gateway.model_name(config.model)
        expires_at = round(time.time()) + body.expires_after.seconds
        session = config.public() | {"id": new_id("sess"), "object": "realtime.session", "model": model}
        value = make_secret(keys, request.state.key, body.session, expires_at)
        return ClientSecret(value=value, expires_at=expires_at, session=session)

    @router.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        fields, caller = socket.state.log, socket.state.caller
        try:
            sessions.enter()
            connection = SessionConnection(socket, gateway.settings, sessions.stopping)
            desk = await _desk(gateway, admission, socket, caller, connection, voice)
            config = default_config(voice is not None).updated(caller.session, "session")
            held = HeldSession(admission, caller.key)
        except TOLD as error:
            told = error if isinstance(error, ApiError) else refused(str(error))
            fields["error"] = told.code
            return await socket.send_denial_response(told.response())
        session = Session(desk, config, held, connection.outbox.room)
        fields |= {"session": session.id, "model": desk.model}
        try:
            await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
            close = await connection.run(session)
        finally:
            await session.close()
        prompt, completion = session.tokens
        fields |= {"turns": session.turns, "prompt_tokens": prompt, "completion_tokens": completion}
        fields["closed"] = close.reason
        if close is not GONE and socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it may have gone meanwhile
                await socket.close(close.code, close.reason)

    return router


async def _desk(
    gateway: Gateway,
    admission: Admission,
    socket: WebSocket,
    caller: Caller,
    connection: SessionConnection,
    voice: SpeechVoice | None,
) -> Desk:
    """Raises ApiError, RequestError."""
    query = socket.query_params
    if query.get("intent", "conversation") != "conversation" or "call_id" in query:
        raise refused("there are conversations only: no transcription sessions, and no calls", "intent")
    model = await gateway.model_name(query.get("model") or caller.session.get("model"))
    limits = (await gateway.client.serving_info())["limits"]
    return Desk(gateway, admission, caller.key, model, limits, connection.outbox.put, voice)
