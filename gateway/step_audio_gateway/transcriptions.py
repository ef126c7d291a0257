"""POST /v1/audio/transcriptions: a preset question to the same model."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import PlainTextResponse, Response

from step_audio.audio import Budget, decode_audio
from step_audio.clips import SAMPLE_RATE
from step_audio_client import Audio, ChatOptions, RequestError, Sampling, Thinking, user
from step_audio_gateway.audio_parts import check_length
from step_audio_gateway.chat import FAILURES, events_of, first_of
from step_audio_gateway.completions import Deltas, Item
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ApiError, from_client, refused, unsupported
from step_audio_gateway.generations import EventStream, unless_gone
from step_audio_gateway.responses import Transcription, VerboseTranscription

Format = Literal["json", "text", "verbose_json", "srt", "vtt", "diarized_json"]


def transcription_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(responses=FAILURES, tags=["audio"])
    event = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}
    others = {"text/plain": {"schema": {"type": "string"}}} | events_of(event)

    @router.post(
        "/v1/audio/transcriptions",
        response_model=Transcription | VerboseTranscription,
        responses={200: {"content": others}},
    )
    async def create_transcription(
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str | None, Form()] = None,
        language: Annotated[str | None, Form(max_length=64)] = None,
        prompt: Annotated[str | None, Form(max_length=4096)] = None,
        response_format: Annotated[Format, Form()] = "json",
        temperature: Annotated[float, Form(ge=0, le=1)] = 0,
        stream: Annotated[bool, Form()] = False,
        include: Annotated[list[str] | None, Form(alias="include[]")] = None,
        granularities: Annotated[list[str] | None, Form(alias="timestamp_granularities[]")] = None,
    ) -> Response:
        """What is said in a recording. The model gives no times: there are no segments, words and subtitles."""
        fields = request.state.log
        fields |= {"model": await gateway.model_name(model), "stream": stream}
        if response_format not in ("json", "text", "verbose_json"):
            raise unsupported("response_format", f"{response_format} needs times; use json, text or verbose_json")
        if granularities:
            raise unsupported("timestamp_granularities", "the model gives no times")
        if include:
            raise unsupported("include", "a transcription comes without log-probabilities; ask /v1/chat/completions")
        data = await file.read()
        limits = (await gateway.client.serving_info())["limits"]
        if not data:
            raise refused("file: it is empty", "file")
        if len(data) > limits["max_audio_bytes"]:
            raise ApiError(413, f"file: larger than {limits['max_audio_bytes']} bytes", "file", "audio_too_large")
        seconds = await asyncio.to_thread(check_length, [data], limits["max_audio_seconds"])
        deltas = gateway.answers(
            [user(Audio(data), _question(gateway.settings.transcription_prompt, language, prompt))],
            [
                ChatOptions(
                    sampling=Sampling(temperature=temperature, max_tokens=_max_tokens(seconds)),
                    thinking=Thinking("off"),
                    timeout=gateway.settings.request_timeout,
                )
            ],
        )
        if stream:
            first = await unless_gone(request.receive, first_of(deltas))
            return EventStream(_events(first, deltas), deltas)
        text = await unless_gone(request.receive, _whole(deltas))
        if response_format == "text":
            return PlainTextResponse(text + "\n")
        reply: Transcription | VerboseTranscription = Transcription(text=text)
        if response_format == "verbose_json":
            samples = await asyncio.to_thread(decode_audio, data, Budget(limits["max_audio_seconds"]), "file")
            reply = VerboseTranscription(
                task="transcribe", language=language or "", duration=len(samples) / SAMPLE_RATE, text=text
            )
        return Response(reply.model_dump_json(), media_type="application/json")

    return router


def _max_tokens(seconds: float) -> int | None:
    """More than anybody says: a model that repeats itself ends there. Nothing is known of 0 seconds."""
    return 128 + round(20 * seconds) if seconds else None


def _question(preset: str, language: str | None, prompt: str | None) -> str:
    lines = [preset]
    if language:
        lines.append(f"The language is {language}.")
    if prompt:
        lines.append(f"For context: {prompt}")
    return "\n".join(lines)


async def _whole(deltas: Deltas) -> str:
    async with contextlib.aclosing(deltas):
        return "".join([delta.content async for _, delta in deltas]).strip()


async def _events(first: Item, deltas: AsyncIterator[Item]) -> AsyncGenerator[str]:
    """OpenAI's events of a streamed transcription."""
    text = first[1].content

    def event(kind: str, **values: Any) -> str:
        return json.dumps({"type": kind, **values})

    if text:
        yield event("transcript.text.delta", delta=text)
    try:
        async for _, delta in deltas:
            if delta.content:
                text += delta.content
                yield event("transcript.text.delta", delta=delta.content)
        yield event("transcript.text.done", text=text.strip())
    except RequestError as error:
        yield json.dumps(from_client(error).body().model_dump())
