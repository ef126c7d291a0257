"""A model with a script, and the chat stream that asks it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from fake_triton import EOT, TOKENIZER
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatDelta, ChatOptions, Thinking, TtsContent
from step_audio_client.chat_stream import ChatStream
from step_audio_client.tokens import Tokens

ADDED = TOKENIZER.added_tokens
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "title": name}}}
    for name in ("get_time", "get-weather")
)
QUESTION = [{"role": "user", "content": "What?"}]
OFF = Thinking("off")


def tokens(*parts: str, seed: int | None = None) -> list[int]:
    """Ids of the parts; a part that names an added token is it. `seed`: texts in random pieces, as no encoder does."""
    draw, ids = random.Random(seed), []
    for part in parts:
        if part in ADDED:
            ids.append(ADDED[part])
            continue
        cut = 0 if seed is None else draw.randint(0, len(part))
        ids += TOKENIZER.encode(part[:cut]) + TOKENIZER.encode(part[cut:])
    return ids


class Model:
    """Says its lines, one a generation, in pieces of random sizes; keeps what was asked of it."""

    def __init__(self, *lines: list[int], seed: int | None = None):
        self.lines = list(lines)
        self.draw = random.Random(seed)
        self.one_by_one = seed is None
        self.requests = []
        self.left_early: list[bool] = []

    async def __call__(self, request):
        self.requests.append(request)
        self.left_early.append(True)
        line, most = self.lines.pop(0), request.sampling.max_tokens
        reason = "stop" if most is None or len(line) < most or line[most - 1] == EOT else "length"
        line = line[:most]
        at = 0
        while at < len(line):
            size = 1 if self.one_by_one else self.draw.randint(0, 7)
            piece = line[at : at + size]
            at += size
            logprobs = [-token / 1000 for token in piece] if request.sampling.logprobs else []
            others = [[(token, -token / 1000), (EOT, -9.0)][: request.sampling.top_logprobs or 0] for token in piece]
            final = at >= len(line) and self.draw.random() < 0.5
            self.left_early[-1] = not final
            yield Tokens(piece, logprobs, 100 + len(self.requests), reason if final else None, top_logprobs=others)
            if final:
                return
        self.left_early[-1] = False
        yield Tokens([], [], 100 + len(self.requests), reason)  # the end may come alone


_LOOP = asyncio.new_event_loop()  # of all replies: one of its own would cost more than the reply


def reply(
    model: Model, options: ChatOptions | None = None, messages=QUESTION, tokenizer: Tokenizer = TOKENIZER
) -> tuple[ChatDelta, list[ChatDelta]]:
    """The deltas, and all of them in one."""

    async def collect():
        return [d async for d in ChatStream(model, tokenizer, messages, options or ChatOptions()).deltas()]

    deltas = _LOOP.run_until_complete(collect())
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1) and deltas[-1].usage
    heard = [d.tts for d in deltas if d.tts]
    whole = ChatDelta(
        **{name: "".join(getattr(d, name) for d in deltas) for name in ("reasoning", "content", "raw")},
        **{
            name: tuple(x for d in deltas for x in getattr(d, name)) for name in ("tool_calls", "logprobs", "token_ids")
        },
        tts=TtsContent("".join(h.text for h in heard), "".join(h.audio for h in heard)) if heard else None,
        finish_reason=deltas[-1].finish_reason,
        usage=deltas[-1].usage,
    )
    return whole, deltas


def in_order(deltas: Sequence[ChatDelta]) -> list[str | tuple[str, str]]:
    """What is said before, between and behind the calls, and these by name and arguments; their ids are random."""
    found: list[str | tuple[str, str]] = []
    for delta in deltas:
        if delta.content and found and isinstance(found[-1], str):
            found[-1] += delta.content
        elif delta.content:
            found.append(delta.content)
        found += [(call.name, call.arguments) for call in delta.tool_calls]
    return found


CALL = ["<tool_call>", 'function\nget_time\n{"tz": "猫"}', "</tool_call>"]
SMILE = TOKENIZER.encode("🙂")
