"""Another's speech server as the voice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx

from step_audio_gateway.settings import GatewaySettings
from step_audio_gateway.speech.voice import failed


class SpeechServer:
    """One that has OpenAI's `POST /v1/audio/speech`. `url`: of what stands before `/audio/speech`."""

    def __init__(self, url: str, settings: GatewaySettings):
        self._url = f"{url.rstrip('/')}/audio/speech"
        self._model, self._name = settings.speech_model, settings.speech_voice
        headers = {"Authorization": f"Bearer {settings.speech_api_key}"} if settings.speech_api_key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=settings.media_timeout)

    def check(self, name: str | None) -> None:
        """Any: the server knows."""

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
                    raise failed(f"status {reply.status_code}")
                async for data in reply.aiter_bytes():
                    yield data
        except httpx.HTTPError:
            raise failed() from None
