"""Answers to chat completions, said aloud while they are made."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace

from step_audio_client import ChatDelta
from step_audio_gateway.chunks import Deltas, Item
from step_audio_gateway.errors import refused, unsupported
from step_audio_gateway.realtime.formats import SampleFormat
from step_audio_gateway.schemas import AudioOutput, ChatRequest
from step_audio_gateway.speech.speaker import PieceSpeaker
from step_audio_gateway.speech.voice import NO_VOICE, SpeechVoice


@dataclass(frozen=True)
class SpokenDelta(ChatDelta):
    """`said`: text whose audio begins here; `pcm`: of it, PCM16."""

    said: str = ""
    pcm: bytes = b""


def check_aloud(request: ChatRequest, separate: bool, voice: SpeechVoice | None) -> AudioOutput | None:
    """How it is to be said aloud; None: it is not. `separate`: thought and answer come apart. Raises ApiError."""
    if "audio" not in (request.modalities or ()):
        if request.audio is not None:
            raise refused('audio needs modalities ["text", "audio"]', "audio")
        return None
    if voice is None:
        raise unsupported("modalities", NO_VOICE)
    if (asked := request.audio) is None:
        raise refused('audio is missing: {"voice": ..., "format": ...}', "audio")
    if request.stream and asked.format != "pcm16":
        raise refused("audio.format: what is streamed is pcm16", "audio.format", "unsupported_parameter")
    if (request.n or 1) > 1:
        raise refused("n does not go with modalities audio: one answer is said at a time", "n", "unsupported_parameter")
    if not separate:
        said = "separate_reasoning false does not go with modalities audio: the thought would be said"
        raise refused(said, "separate_reasoning", "unsupported_parameter")
    voice.check(asked.voice)
    return asked


async def said_aloud(deltas: Deltas, voice: SpeechVoice, name: str | None) -> Deltas:
    """SpokenDelta in the place of content; the last delta when all has been said. Raises ApiError, RequestError."""
    told: asyncio.Queue[Item | None] = asyncio.Queue()

    def tell(text: str, pcm: bytes, whole: bool) -> None:
        if text or pcm:
            told.put_nowait((0, SpokenDelta(said=text, pcm=pcm)))

    async def read() -> None:
        async with aclosing(deltas), PieceSpeaker(voice, SampleFormat(), name, 1.0, tell) as speaker:
            async for index, delta in deltas:
                if delta.content:
                    speaker.say(delta.content)
                if delta.finish_reason:
                    await speaker.end()
                told.put_nowait((index, replace(delta, content="")))

    task = asyncio.create_task(read())
    task.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (item := await told.get()) is not None:
            yield item
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
