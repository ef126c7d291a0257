"""The voice: pieces of an answer's text to audio. Whoever has the method can be one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import httpx

from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.formats import Format
from step_audio_gateway.settings import GatewaySettings

SPOKEN = Format()  # what a voice gives: PCM16 at 24 kHz, as OpenAI's `pcm`
FAILED = "the speech server did not speak: try again later"


class Voice(Protocol):
    """Says pieces one after the other, each at once."""

    def speak(self, text: str, name: str | None, speed: float) -> AsyncIterator[bytes]:
        """`SPOKEN`, as it is made, in bytes that may end within a sample. `name`: of the voice. Raises Fault."""


class SpeechServer:
    """One that has OpenAI's `POST /v1/audio/speech`."""

    def __init__(self, settings: GatewaySettings):
        assert settings.speech_url is not None
        self._url = f"{settings.speech_url.rstrip('/')}/audio/speech"
        self._model, self._name = settings.speech_model, settings.speech_voice
        headers = {"Authorization": f"Bearer {settings.speech_api_key}"} if settings.speech_api_key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=settings.media_timeout)

    async def speak(self, text: str, name: str | None, speed: float) -> AsyncIterator[bytes]:
        asked: dict[str, Any] = {
            "model": self._model,
            "input": text,
            "voice": name or self._name,
            "response_format": "pcm",
        }
        if speed != 1.0:
            asked["speed"] = speed
        try:
            async with self._client.stream("POST", self._url, json=asked) as reply:
                if reply.status_code != 200:
                    raise Fault("speech_failed", f"{FAILED} (status {reply.status_code})", kind="server_error")
                async for data in reply.aiter_bytes():
                    yield data
        except httpx.HTTPError:
            raise Fault("speech_failed", FAILED, kind="server_error") from None
