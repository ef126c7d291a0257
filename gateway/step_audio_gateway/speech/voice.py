"""What a voice is: text to audio. Whoever has the method can be one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from step_audio_gateway.errors import ApiError

RATE = 24_000  # Hz of what a voice gives: PCM16, as OpenAI's `pcm`
SAMPLE_BYTES = 2
NO_VOICE = "this server has no voice (see --speech)"


class SpeechVoice(Protocol):
    """Says texts, each at once."""

    def check(self, name: str | None) -> None:
        """Whether it has a voice of that name. Raises ApiError."""

    def speak(self, text: str, name: str | None, speed: float) -> AsyncIterator[bytes]:
        """PCM16 as it is made, in bytes that may end within a sample. `name`: of the voice, None: the default.
        Raises ApiError (503, `speech_failed`). Who leaves stops it."""


def failed(why: str = "") -> ApiError:
    """`why`: in brackets behind what the caller is told."""
    return ApiError(503, f"the voice did not speak{why and f' ({why})'}: try again later", code="speech_failed")
