"""A preset question about one recording, without a thought: what transcriptions and translations share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, File, Form, Request, UploadFile
from pydantic import ValidationError
from starlette.formparsers import MultiPartParser
from starlette.responses import PlainTextResponse, Response

from step_audio.audio import Budget, decode_audio
from step_audio.clips import SAMPLE_RATE
from step_audio.conversation import MAX_CHANNELS
from step_audio.errors import one_line
from step_audio.validation import first_fault
from step_audio_client import Audio, AudioReport, ChatOptions, ChatUsage, RequestError, Sampling, Thinking, user
from step_audio_gateway.asking import first_of, logged
from step_audio_gateway.audio_parts import check_length
from step_audio_gateway.chunks import Deltas, Item
from step_audio_gateway.completions import warnings_of
from step_audio_gateway.core import Gateway
from step_audio_gateway.errors import ApiError, from_client, refused, unsupported
from step_audio_gateway.generations import EventStream, unless_gone
from step_audio_gateway.languages import OWN
from step_audio_gateway.messages import HEARD
from step_audio_gateway.responses import AudioWarning, Transcription, TranscriptionUsage, VerboseTranscription
from step_audio_gateway.schemas import SamplingFields

MultiPartParser.spool_max_size = sys.maxsize  # uploads stay in memory, whose bytes are bounded, and make no files
WARNINGS = "X-Audio-Warnings"  # a header
Format = Literal["json", "text", "verbose_json", "srt", "vtt", "diarized_json"]


@dataclass(frozen=True)
class Upload:
    """A recording and what is said of it, in a form; its other fields are looked at by name."""

    file: UploadFile
    model: str | None
    language: str | None
    prompt: str | None
    response_format: Format
    channel: int | None


def _upload(
    file: Annotated[UploadFile, File()],
    model: Annotated[str | None, Form()] = None,
    language: Annotated[str | None, Form(max_length=64)] = None,
    prompt: Annotated[str | None, Form(max_length=4096)] = None,
    response_format: Annotated[Format, Form()] = "json",
    channel: Annotated[int | None, Form(ge=0, lt=MAX_CHANNELS, description=HEARD)] = None,
) -> Upload:
    return Upload(file, model, language, prompt, response_format, channel)


UploadForm = Annotated[Upload, Depends(_upload)]


@dataclass(frozen=True)
class Task:
    """What is asked of a recording. `language`: of the text, as verbose_json says it. `refused`: fields of the form
    that are not honoured, each with what asks for nothing, and what to do instead."""

    name: Literal["transcribe", "translate"]
    question: str
    language: str
    refused: Mapping[str, tuple[tuple[str, ...], str]]


def question_of(preset: str, spoken: str | None, prompt: str | None) -> str:
    lines = [preset]
    if spoken and spoken != OWN:
        lines.append(f"The language is {spoken}.")
    if prompt:
        lines.append(f"For context: {prompt}")
    return "\n".join(lines)


async def reply_to(gateway: Gateway, request: Request, task: Task, form: Upload, stream: bool = False) -> Response:
    """The text that the model answers with. Raises ApiError, RequestError, ClientGone."""
    fields = request.state.log
    request.state.names = {"audio[0]": "file", "messages": "file"}
    fields |= {"model": await gateway.model_name(form.model), "stream": stream}
    if form.response_format not in ("json", "text", "verbose_json"):
        raise unsupported("response_format", f"{form.response_format} needs times; use json, text or verbose_json")
    given = {key.partition("[")[0]: value for key, value in (await request.form()).items()}
    _check_unsupported(given, task.refused)
    data = await form.file.read()
    await form.file.close()  # it has a copy, which would stay as long as the answer takes
    limits = (await gateway.client.serving_info())["limits"]
    if not data:
        raise refused("file: it is empty", "file")
    if len(data) > limits["max_audio_bytes"]:
        raise ApiError(413, f"file: larger than {limits['max_audio_bytes']} bytes", "file", "audio_too_large")
    seconds = await asyncio.to_thread(check_length, [data], limits["max_audio_seconds"])
    deltas = gateway.answers(
        [user(Audio(data, form.channel), task.question)],
        [
            ChatOptions(
                sampling=_sampling(given, most_tokens(seconds)),
                thinking=Thinking("off"),
                adapter=await gateway.adapter(fields["model"]),
                timeout=gateway.settings.request_timeout,
            )
        ],
    )
    deltas = logged(deltas, request, gateway.settings.log_content, 1)
    if stream:
        first = await unless_gone(request.receive, first_of(deltas))
        return EventStream(_events(first, deltas), deltas)
    text, used, audio = await unless_gone(request.receive, _whole(deltas))
    if form.response_format == "text":
        return PlainTextResponse(text + "\n", headers=_warned(audio))
    usage = TranscriptionUsage.of(used)
    reply: Transcription | VerboseTranscription = Transcription(text=text, usage=usage, **warnings_of(audio))
    if form.response_format == "verbose_json":
        samples = await asyncio.to_thread(decode_audio, data, Budget(limits["max_audio_seconds"]), "file")
        reply = VerboseTranscription(
            task=task.name,
            language=task.language,
            duration=len(samples) / SAMPLE_RATE,
            text=text,
            usage=usage,
            **warnings_of(audio),
        )
    return Response(reply.model_dump_json(exclude_unset=True), media_type="application/json")


def _warned(audio: tuple[AudioReport, ...]) -> dict[str, str]:
    """What a text has no place for."""
    said = one_line("; ".join(report.text for report in audio)).encode("ascii", "replace").decode()
    return {WARNINGS: said} if said else {}


def most_tokens(seconds: float) -> int | None:
    """More than anybody says: a model that repeats itself ends there. Nothing is known of 0 seconds."""
    return 128 + round(20 * seconds) if seconds else None


def _check_unsupported(given: Mapping[str, Any], table: Mapping[str, tuple[tuple[str, ...], str]]) -> None:
    """Raises ApiError with the first name."""
    for name, value in given.items():
        if name in table and value:
            neutral, instead = table[name]
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
    text, usage, audio = first[1].content, first[1].usage, first[1].audio

    def event(kind: str, **values: Any) -> str:
        return json.dumps({"type": kind, **values})

    if text:
        yield event("transcript.text.delta", delta=text)
    try:
        async for _, delta in deltas:
            usage, audio = delta.usage or usage, delta.audio or audio
            if delta.content:
                text += delta.content
                yield event("transcript.text.delta", delta=delta.content)
        used = TranscriptionUsage.of(usage)
        about: dict[str, Any] = {"usage": used.model_dump()} if used else {}
        if audio:
            about["audio_warnings"] = [AudioWarning.of(report).model_dump() for report in audio]
        yield event("transcript.text.done", text=text.strip(), **about)
    except RequestError as error:
        yield json.dumps(from_client(error).body().model_dump())
