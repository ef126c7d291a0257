"""A model with a script for both brains, and the speaker that asks it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import virtual_time
from fake_triton import EOT, TOKENIZER
from step_audio.chat_template import CLOSE_THOUGHT
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatDelta, ChatOptions, MindPaced, RequestError, Sampling, mind_paced
from step_audio_client.mind_paced import MindPacedSpeaker
from step_audio_client.prepared import PreparedPrompt, PreparedRequest
from step_audio_client.tokens import FinishReason, TokenRequest, Tokens

PROMPT, WITHOUT_THOUGHT = [1, 2, 3, 4], [1, 2, 3, 5]
CLOSE = TOKENIZER.encode(CLOSE_THOUGHT)
THOUGHT_TEXT, ANSWER_TEXT = "I hear two and three. 2+3=5. " * 4, "It is five, 你好 五, and that is all."
THOUGHT, ANSWER = TOKENIZER.encode(THOUGHT_TEXT), TOKENIZER.encode(ANSWER_TEXT)
MAX_SEQ_LEN = 1000


def prepared(ids: list[int]) -> PreparedPrompt:
    extra = np.array([[0, 7, 7, 0]], np.uint64)
    words = np.array([[[0], [-1]]], np.int32)
    return PreparedPrompt(
        TokenRequest([], Sampling()),
        np.array([ids], np.int32),
        extra,
        np.array([[EOT]], np.int32),
        words,
        {"frames": np.array([[8]], np.int32), "content_hash": np.array([[7]], np.uint64)},
    )


@dataclass
class Model:
    """Says `answer` to whoever closes the thought, from where they are in it; to others `thought`, then `answer`.

    `seed` draws how many tokens each message has, and whether the end comes with the last or alone; None is one token
    a message. `pauses`: seconds before each token of Formulation and of Articulation. `fault`: raised by the n-th
    generation after so many tokens.
    """

    thought: list[int] = field(default_factory=lambda: [*THOUGHT, *CLOSE])
    answer: list[int] = field(default_factory=lambda: [*ANSWER, EOT])
    seed: int | None = None
    pauses: tuple[float, float] = (0.0, 0.0)
    fault: tuple[int, int] | None = None
    requests: list[PreparedRequest] = field(default_factory=list)
    open: int = 0

    async def __call__(self, request: PreparedRequest) -> AsyncGenerator[Tokens]:
        self.requests.append(request)
        number = len(self.requests)
        line, speaks = self.line(request)
        most = request.sampling.max_tokens
        assert most is not None
        reason: FinishReason = "stop" if len(line) < most or line[most - 1] == EOT else "length"
        line = line[:most]
        fails_at = self.fault[1] if self.fault and self.fault[0] == number else None
        self.open += 1
        try:
            async for tokens in self.messages(line[:fails_at], len(request), reason, self.pauses[speaks], number):
                yield tokens if fails_at is None else Tokens(tokens.token_ids, [], len(request))
            if fails_at is not None:
                raise RequestError("the engine failed")
        finally:
            self.open -= 1

    def line(self, request: PreparedRequest) -> tuple[list[int], bool]:
        """What it says, and whether as Articulation. Checks that both have said what they would have."""
        suffix_ids, ids = list(request.suffix_ids), request.prompt.input_ids[0].tolist()
        if not suffix_ids and ids != WITHOUT_THOUGHT:
            return [*self.thought, *self.answer], False
        if ids != WITHOUT_THOUGHT:
            start = next(n for n in range(len(suffix_ids), -1, -1) if suffix_ids[max(0, n - len(CLOSE)) : n] == CLOSE)
            assert suffix_ids[: start - len(CLOSE)] == self.thought[: start - len(CLOSE)]
            suffix_ids = suffix_ids[start:]
        assert suffix_ids == self.answer[: len(suffix_ids)]
        return self.answer[len(suffix_ids) :], True

    async def messages(
        self, line: list[int], length: int, reason: FinishReason, pause: float, number: int
    ) -> AsyncGenerator[Tokens]:
        draw = None if self.seed is None else random.Random(f"{self.seed} {number}")
        end_alone = draw is not None and draw.random() < 0.5
        at = 0
        while at < len(line):
            piece = line[at : at + (1 if draw is None else draw.randint(0, 12))]
            at += len(piece)
            await asyncio.sleep(pause * len(piece))
            if at == len(line) and not end_alone:
                yield Tokens(piece, [], length, reason, 10, 9)
                return
            yield Tokens(piece, [], length)
        yield Tokens([], [], length, reason, 10, 9)


def speaker(
    model: Any,
    max_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    tools: tuple[Any, ...] = (),
    tokenizer: Tokenizer = TOKENIZER,
    **pace: Any,
) -> MindPacedSpeaker:
    sampling = Sampling(max_tokens, temperature=0)
    options = ChatOptions(
        sampling=sampling,
        stop=stop,
        tools=tools,
        mind_paced=MindPaced(**{"think_tokens": 80, "speak_tokens": 20, **pace}),
    )
    without_thought, start = prepared(WITHOUT_THOUGHT), mind_paced.time.monotonic()
    return MindPacedSpeaker(model, prepared(PROMPT), without_thought, tokenizer, options, MAX_SEQ_LEN, start)


def hear(model: Model, **options: Any) -> tuple[str, str, list[ChatDelta]]:
    """The thought, the speech, all deltas."""

    async def run() -> list[ChatDelta]:
        async with aclosing(speaker(model, **options).deltas()) as deltas:
            return [delta async for delta in deltas]

    deltas = virtual_time.run(run(), mind_paced)
    assert model.open == 0
    assert [delta.finish_reason is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]
    return "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas), deltas


def thoughts(model: Model) -> list[int]:
    """How many tokens of thought each of Articulation's generations was given."""
    known = []
    for request in model.requests:
        suffix_ids = list(request.suffix_ids)
        if request.prompt.input_ids[0].tolist() == WITHOUT_THOUGHT:
            known.append(0)
        elif suffix_ids:
            known.append(next(n for n in range(len(suffix_ids)) if suffix_ids[n : n + len(CLOSE)] == CLOSE))
    return known
