"""POST /v1/audio/speech: a text, said aloud."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from step_audio_gateway.chat import FAILURES, events_of
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ApiError, refused
from step_audio_gateway.generations import EventStream, Streamed, unless_gone
from step_audio_gateway.json_body import JsonRoute
from step_audio_gateway.nulls import Lenient
from step_audio_gateway.published import REFUSED_SPEECH, check_published
from step_audio_gateway.speech.files import KINDS, encoder_of
from step_audio_gateway.speech.voice import NO_VOICE, SAMPLE_BYTES, SpeechVoice


class SpeechRequest(Lenient):
    """A text of at most 4,096 characters."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="the served model's name, or that of --speech-model")
    input: str = Field(min_length=1, max_length=4096)
    voice: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: Literal["audio", "sse"] = "audio"


def speech_routes(gateway: Gateway, voice: SpeechVoice | None) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=FAILURES, tags=["audio"])
    event = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}
    binary = {"schema": {"type": "string", "format": "binary"}}
    replies = {kind.media_type: binary for kind in KINDS.values()} | events_of(event)

    @router.post("/v1/audio/speech", response_class=Response, responses={200: {"content": replies}})
    async def create_speech(body: SpeechRequest, request: Request) -> Response:
        """A text, said aloud by the server's voice, as it is made: the file begins before it is whole."""
        if voice is None:
            raise refused(NO_VOICE)
        if body.model != gateway.settings.speech_model:
            await gateway.model_name(body.model)
        check_published(body.model_extra, REFUSED_SPEECH)
        voice.check(body.voice)
        pieces = file_of(voice, body.input, body.voice, body.speed, body.response_format)
        # The first is waited for, so that what goes wrong before it still has a status of its own.
        first = await unless_gone(request.receive, _first(pieces))
        if body.stream_format == "sse":
            return EventStream(_events(first, pieces), pieces)
        return Streamed(_all(first, pieces), pieces, KINDS[body.response_format].media_type)

    return router


async def file_of(voice: SpeechVoice, text: str, name: str | None, speed: float, kind: str) -> AsyncGenerator[bytes]:
    """Bytes of the file as they are made. `kind`: one of KINDS. Raises ApiError."""
    encoder, rest = encoder_of(kind), b""
    async for data in voice.speak(text, name, speed):
        data = rest + data
        whole = len(data) // SAMPLE_BYTES * SAMPLE_BYTES
        rest = data[whole:]
        if piece := await asyncio.to_thread(encoder.add, data[:whole]):
            yield piece
    if piece := await asyncio.to_thread(encoder.end):
        yield piece


async def _first(pieces: AsyncGenerator[bytes]) -> bytes:
    return await anext(pieces, b"")


async def _all(first: bytes, pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for piece in pieces:
        yield piece


async def _events(first: bytes, pieces: AsyncGenerator[bytes]) -> AsyncGenerator[str]:
    try:
        async for piece in _all(first, pieces):
            yield json.dumps({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
    except ApiError as error:
        yield json.dumps(error.body().model_dump())
        return
    usage = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0)  # the voice has no tokens
    yield json.dumps({"type": "speech.audio.done", "usage": usage})
