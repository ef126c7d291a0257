"""Deltas of the client library to OpenAI's text completion, whole or in chunks, which have one shape."""

from __future__ import annotations

import codecs
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from step_audio_client import AudioReport, ChatDelta, ChatUsage, TokenLogprob, TopLogprob
from step_audio_gateway.chunks import Chunks, Deltas
from step_audio_gateway.responses import CompletionUsage


class TextLogprobs(BaseModel):
    """Of each generated token its text, its log-probability, those of the likeliest in its place and of itself by their
    texts, and where it begins in `text`. One that is no whole character is `bytes:\\xf0\\x9f`."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """What the model writes behind one prompt, or what a chunk adds to it; `finish_reason` is null until the end.
    `index` counts the `n` texts of the first prompt, then those of the second, and so on."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(BaseModel):
    """The whole reply, or a chunk of it. `choices` is empty in the last one, which has the usage if that was asked for;
    see StreamOptions for others'."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage | None = None


class RawCompletion(Chunks[TextChoice]):
    """One reply to /v1/completions. `echoed`: the prompts, that go before their texts, or empty texts.

    `per_prompt`: texts that each has.
    """

    def __init__(self, model: str, echoed: Sequence[str], per_prompt: int, logprobs: bool):
        super().__init__("cmpl", model, len(echoed))
        self._echoed = [text for text in echoed for _ in range(per_prompt)]
        self._places = [_Places() for _ in self._echoed]
        self._logprobs = logprobs

    async def whole(self, deltas: Deltas) -> TextCompletion:
        """Read all deltas. Raises RequestError."""
        texts: defaultdict[int, list[str]] = defaultdict(list)
        logprobs: defaultdict[int, list[TokenLogprob]] = defaultdict(list)
        ends: dict[int, tuple[ChatDelta, ChatUsage]] = {}
        async with contextlib.aclosing(deltas):
            async for index, delta in deltas:
                texts[index].append(delta.content)
                logprobs[index] += delta.logprobs
                if delta.usage:
                    ends[index] = delta, delta.usage
        answers = [
            self._choice(i, "".join(texts[i]), logprobs[i], end, first=True) for i, (end, _) in sorted(ends.items())
        ]
        return self._reply(answers, self.usage([usage for _, (_, usage) in sorted(ends.items())]))

    def chunk_choice(self, index: int, delta: ChatDelta, first: bool) -> TextChoice | None:
        choice = self._choice(index, delta.content, delta.logprobs, delta, first)
        return choice if choice.text or choice.logprobs or choice.finish_reason else None

    def chunk(
        self, choices: list[TextChoice], usage: CompletionUsage | None = None, audio: tuple[AudioReport, ...] = ()
    ) -> str:
        return self._reply(choices, usage).model_dump_json(exclude_unset=True)

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], delta: ChatDelta, first: bool
    ) -> TextChoice:
        reason = delta.finish_reason
        assert reason != "tool_calls"
        return TextChoice(
            index=index,
            text=self._echoed[index] + text if first else text,
            logprobs=self._places[index].logprobs_of(logprobs) if self._logprobs and logprobs else None,
            finish_reason=reason,
        )

    def _reply(self, choices: list[TextChoice], usage: CompletionUsage | None) -> TextCompletion:
        reply = TextCompletion(
            id=self.id, object="text_completion", created=self.created, model=self.model, choices=choices
        )
        if usage:
            reply.usage = usage
        return reply


class _Places:
    """Where the tokens of a text begin."""

    def __init__(self) -> None:
        self._characters = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def logprobs_of(self, tokens: Sequence[TokenLogprob]) -> TextLogprobs:
        """Of what comes next."""
        return TextLogprobs(
            tokens=[_shown(one) for one in tokens],
            token_logprobs=[one.logprob for one in tokens],
            top_logprobs=[{_shown(other): other.logprob for other in (*one.top, one)} for one in tokens],
            text_offset=[self._next(bytes(one.bytes)) for one in tokens],
        )

    def _next(self, data: bytes) -> int:
        place = self._characters
        self._characters += len(self._utf8.decode(data))
        return place


def _shown(token: TopLogprob) -> str:
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
