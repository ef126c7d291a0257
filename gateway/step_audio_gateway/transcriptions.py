"""POST /v1/audio/transcriptions: a preset question to the same model."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import ValidationError
from starlette.responses import PlainTextResponse, Response

from step_audio.audio import Budget, decode_audio
from step_audio.clips import SAMPLE_RATE
from step_audio.validation import first_fault
from step_audio_client import Audio, AudioReport, ChatOptions, ChatUsage, RequestError, Sampling, Thinking, user
from step_audio_gateway.asking import first_of
from step_audio_gateway.audio_parts import check_length
from step_audio_gateway.chat import FAILURES, events_of
from step_audio_gateway.completions import Deltas, Item, warnings_of
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ApiError, from_client, refused, unsupported
from step_audio_gateway.generations import EventStream, unless_gone
from step_audio_gateway.languages import OWN, name_of
from step_audio_gateway.published import REFUSED_FORM
from step_audio_gateway.responses import Transcription, TranscriptionUsage, VerboseTranscription
from step_audio_gateway.schemas import SamplingFields

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
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        """What is said in a recording. The model gives no times: there are no segments, words and subtitles.

        Sampling parameters are those of /v1/chat/completions, but that nothing is left to chance by default.
        """
        fields = request.state.log
        fields |= {"model": await gateway.model_name(model), "stream": stream}
        if response_format not in ("json", "text", "verbose_json"):
            raise unsupported("response_format", f"{response_format} needs times; use json, text or verbose_json")
        given = {key.partition("[")[0]: value for key, value in (await request.form()).items()}
        _check_unsupported(given)
        spoken = name_of(language)
        data = await file.read()
        limits = (await gateway.client.serving_info())["limits"]
        if not data:
            raise refused("file: it is empty", "file")
        if len(data) > limits["max_audio_bytes"]:
            raise ApiError(413, f"file: larger than {limits['max_audio_bytes']} bytes", "file", "audio_too_large")
        seconds = await asyncio.to_thread(check_length, [data], limits["max_audio_seconds"])
        deltas = gateway.answers(
            [user(Audio(data), _question(gateway.settings.transcription_prompt, spoken, prompt))],
            [
                ChatOptions(
                    sampling=_sampling(given, _max_tokens(seconds)),
                    thinking=Thinking("off"),
                    timeout=gateway.settings.request_timeout,
                )
            ],
        )
        if stream:
            first = await unless_gone(request.receive, first_of(deltas))
            return EventStream(_events(first, deltas), deltas)
        text, used, audio = await unless_gone(request.receive, _whole(deltas))
        if response_format == "text":
            return PlainTextResponse(text + "\n")
        usage = TranscriptionUsage.of(used)
        reply: Transcription | VerboseTranscription = Transcription(text=text, usage=usage, **warnings_of(audio))
        if response_format == "verbose_json":
            samples = await asyncio.to_thread(decode_audio, data, Budget(limits["max_audio_seconds"]), "file")
            reply = VerboseTranscription(
                task="transcribe",
                language=(spoken or "").lower(),
                duration=len(samples) / SAMPLE_RATE,
                text=text,
                usage=usage,
                **warnings_of(audio),
            )
        return Response(reply.model_dump_json(exclude_unset=True), media_type="application/json")

    return router


def _max_tokens(seconds: float) -> int | None:
    """More than anybody says: a model that repeats itself ends there. Nothing is known of 0 seconds."""
    return 128 + round(20 * seconds) if seconds else None


def _check_unsupported(given: Mapping[str, Any]) -> None:
    """Raises ApiError with the first name."""
    for name, value in given.items():
        if name in REFUSED_FORM and value:
            neutral, instead = REFUSED_FORM[name]
            if not isinstance(value, str) or value.lower() not in neutral:
                raise unsupported(name, instead)


def _sampling(given: Mapping[str, Any], max_tokens: int | None) -> Sampling:
    """Raises ApiError."""
    names = SamplingFields.model_fields.keys() & given.keys()
    try:
        fields = SamplingFields.model_validate({name: given[name] or None for name in names})
    except ValidationError as error:
        raise refused(first_fault(error), str(error.errors()[0]["loc"][0])) from None
    values = {name: getattr(fields, name) for name in names}
    if (most := values.pop("max_completion_tokens", None)) is not None:
        values["max_tokens"] = most
    return Sampling(**{"temperature": 0.0, "max_tokens": max_tokens} | values)


def _question(preset: str, spoken: str | None, prompt: str | None) -> str:
    lines = [preset]
    if spoken and spoken != OWN:
        lines.append(f"The language is {spoken}.")
    if prompt:
        lines.append(f"For context: {prompt}")
    return "\n".join(lines)


async def _whole(deltas: Deltas) -> tuple[str, ChatUsage | None, tuple[AudioReport, ...]]:
    text, usage = "", None
    audio: tuple[AudioReport, ...] = ()
    async with contextlib.aclosing(deltas):
        async for _, delta in deltas:
            text += delta.content
            usage, audio = delta.usage or usage, delta.audio or audio
    return text.strip(), usage, audio


async def _events(first: Item, deltas: AsyncIterator[Item]) -> AsyncGenerator[str]:
    """OpenAI's events of a streamed transcription."""
    text, usage = first[1].content, first[1].usage

    def event(kind: str, **values: Any) -> str:
        return json.dumps({"type": kind, **values})

    if text:
        yield event("transcript.text.delta", delta=text)
    try:
        async for _, delta in deltas:
            usage = delta.usage or usage
            if delta.content:
                text += delta.content
                yield event("transcript.text.delta", delta=delta.content)
        used = TranscriptionUsage.of(usage)
        yield event("transcript.text.done", text=text.strip(), **({"usage": used.model_dump()} if used else {}))
    except RequestError as error:
        yield json.dumps(from_client(error).body().model_dump())
