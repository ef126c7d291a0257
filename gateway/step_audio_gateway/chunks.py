"""Deltas of one or several answers to the chunks of a stream, whatever these hold."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic, TypeVar

from pydantic import BaseModel

from step_audio_client import AudioReport, ChatDelta, ChatUsage, RequestError
from step_audio_gateway.controls import StreamOptions
from step_audio_gateway.errors import ApiError, from_client
from step_audio_gateway.responses import CompletionUsage

Item = tuple[int, ChatDelta]  # an answer's index and what is new of it
Deltas = AsyncGenerator[Item]
Choice = TypeVar("Choice", bound=BaseModel)


class Chunks(ABC, Generic[Choice]):
    """One reply to one request. `kind`: what its id begins with; `prompts`: how many its answers are about, in turn."""

    def __init__(self, kind: str, model: str, prompts: int = 1):
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.prompts = prompts

    @abstractmethod
    async def whole(self, deltas: Deltas) -> BaseModel:
        """Read all deltas. Raises RequestError."""

    @abstractmethod
    def chunk_choice(self, index: int, delta: ChatDelta, first: bool) -> Choice | None:
        """None if there is nothing to tell."""

    @abstractmethod
    def chunk(
        self, choices: list[Choice], usage: CompletionUsage | None = None, audio: tuple[AudioReport, ...] = ()
    ) -> str:
        """As JSON."""

    async def events(self, deltas: AsyncIterator[Item], options: StreamOptions | None) -> AsyncGenerator[str]:
        """The chunks and the closing `[DONE]`. A fault in the middle becomes an event of its own."""
        include_usage = options is not None and options.include_usage
        continuous = include_usage and options is not None and options.continuous_usage_stats
        usages: dict[int, ChatUsage] = {}  # in the order in which the answers end
        begun: set[int] = set()
        counted: Counter[int] = Counter()  # tokens of each answer
        try:
            async for index, delta in deltas:
                if delta.usage:
                    usages[index] = delta.usage
                counted[index] += len(delta.token_ids)
                if choice := self.chunk_choice(index, delta, index not in begun):
                    begun.add(index)
                    so_far = CompletionUsage.so_far(delta.prompt_tokens, counted[index]) if continuous else None
                    yield self.chunk([choice], so_far, delta.audio)
            if include_usage:
                yield self.chunk([], self.usage([usage for _, usage in sorted(usages.items())]))
        except RequestError as error:
            yield json.dumps(from_client(error).body().model_dump())
        except ApiError as error:  # of the voice
            yield json.dumps(error.body().model_dump())
        yield "[DONE]"

    def usage(self, answers: list[ChatUsage]) -> CompletionUsage:
        """Of all answers, in their order."""
        return CompletionUsage.of(answers, self.prompts)
