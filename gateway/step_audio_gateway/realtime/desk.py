"""What all sessions of a gateway share, and what one of them holds of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from step_audio.serving_info import ServedLimits
from step_audio_client import ChatOptions
from step_audio_gateway.admission import Admission
from step_audio_gateway.chunks import Deltas
from step_audio_gateway.core import Gateway
from step_audio_gateway.realtime.response import Event
from step_audio_gateway.speech.voice import SpeechVoice


@dataclass(frozen=True)
class Desk:
    """One session's door to the model. `key`: the API key that it came with. `emit` sends an event; it never waits.
    `voice`: says answers aloud, where there is one."""

    gateway: Gateway
    admission: Admission
    key: int
    model: str
    limits: ServedLimits
    emit: Callable[[Event], None]
    voice: SpeechVoice | None = None

    @property
    def most_seconds(self) -> float:
        """Of the audio of one turn."""
        return min(self.gateway.settings.session_buffer_seconds, self.limits["max_audio_seconds"])

    @asynccontextmanager
    async def spare_place(self) -> AsyncIterator[bool]:
        """A place for work that can be left undone, while more than half of all are free. Raises ApiError."""
        places = self.admission.places
        admitted = await self.admission.enter(self.key, 0) if 2 * places.taken <= places.limit else None
        try:
            yield admitted is not None
        finally:
            if admitted is not None:
                admitted.leave()

    @asynccontextmanager
    async def answer(self, messages: list[dict[str, Any]], options: ChatOptions, places: int) -> AsyncIterator[Deltas]:
        """Deltas of an answer that takes so many places until it is left. Raises ApiError where there are none."""
        admitted = await self.admission.enter(self.key, 0)
        try:
            admitted.answers(places)
            options = replace(options, adapter=await self.gateway.adapter(self.model))
            async with aclosing(self.gateway.answers(messages, [options])) as deltas:
                yield deltas
        finally:
            admitted.leave()
