"""The same tokens in other messages are the same reply over HTTP: whole, streamed, transcribed, counted, logged."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from chat_stream_fixture import CALL, TOOLS, Model, tokens
from fake_triton import EOT, TOKENIZER
from gateway_fixture import FakeClient, events, http, shared, wav
from step_audio.tokenizer import Tokenizer
from step_audio_client import ChatDelta, ChatOptions
from step_audio_client.chat_stream import ChatStream

CHAT = {"messages": [{"role": "user", "content": "hello"}], "logprobs": True}
SEEDS = (None, 1, 2, 3, 4)  # None: one token a message


class Grouped(FakeClient):
    """The client library itself on tokens in messages of random sizes; of several answers now one is ahead, now
    another."""

    def __init__(self, lines: list[list[int]], seed: int | None):
        super().__init__()
        self.lines, self.seed = lines, seed
        self.draw = random.Random(seed)

    async def chat(
        self, messages: list[dict[str, Any]], options: ChatOptions, *, request_id: str | None = None
    ) -> AsyncGenerator[ChatDelta]:
        line = self.lines[self.begun]
        self.begun += 1
        seed = None if self.seed is None else self.seed + self.begun
        async for delta in ChatStream(Model(line, seed=seed), TOKENIZER, messages, options).deltas():
            for _ in range(self.draw.randint(0, 5)):
                await asyncio.sleep(0)
            yield delta

    async def tokenizer(self) -> Tokenizer:
        return TOKENIZER


def joined(chunks: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """A streamed answer as the whole one has it."""
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    deltas = [choice["delta"] for choice in choices]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert [c["finish_reason"] is None for c in choices] == [True] * (len(choices) - 1) + [False]
    return {
        **{name: "".join(d.get(name) or "" for d in deltas) for name in ("content", "reasoning_content", "reasoning")},
        "calls": [call["function"] for d in deltas for call in d.get("tool_calls", [])],
        "logprobs": [entry for c in choices for entry in (c.get("logprobs") or {"content": []})["content"]],
        "finish_reason": choices[-1]["finish_reason"],
    }


def whole(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    return {
        **{name: message.get(name) or "" for name in ("content", "reasoning_content", "reasoning")},
        "calls": [call["function"] for call in message.get("tool_calls", [])],
        "logprobs": choice["logprobs"]["content"],
        "finish_reason": choice["finish_reason"],
    }


async def answers(client: httpx.AsyncClient, **body: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Of a request, whole or streamed: what each choice has, and the usage."""
    response = await client.post("/v1/chat/completions", json=CHAT | body)
    assert response.status_code == 200, response.text
    if not body["stream"]:
        return [whole(choice) for choice in response.json()["choices"]], response.json()["usage"]
    *chunks, last = events(response.text)
    return [joined(chunks, index) for index in range(body.get("n", 1))], last["usage"]


REPLIES = {
    "text": (["so 🙂\n</think>\n你好, 猫🙂", "<|EOT|>"], {}),
    "raw": (["so 🙂\n</think>\n你好", *CALL], {"separate_reasoning": False}),
    "calls": (["so\n</think>\nI ask.", *CALL, *CALL, "<|EOT|>"], {"tools": list(TOOLS)}),
    "half a call": (["so\n</think>\n", *CALL[:2]], {"tools": list(TOOLS), "max_tokens": 20}),
    "stop": (["so\n</think>\nFour, ST", "OP and", "<|EOT|>"], {"stop": ["STOP"]}),
    "length": (["so\n</think>\nFour and five and six"], {"max_tokens": 12}),
    "no end of the thought": (["so 🙂 it", "<|EOT|>"], {}),
}


@pytest.mark.parametrize("name", REPLIES)
async def test_whole_and_streamed(name):
    parts, body = REPLIES[name]
    first = None
    for seed in SEEDS:
        for stream in (False, True):
            more = {"stream_options": {"include_usage": True}} if stream else {}
            async with shared(Grouped([tokens(*parts)], seed)) as client:
                got = await answers(client, stream=stream, **more, **body)
            first = first or got
            assert got == first


async def test_several_answers_and_what_is_counted_and_logged(caplog):
    """Whichever ends first."""
    ends = [["one", "<|EOT|>"], ["two three " * 9], ["🙂", *CALL]]
    lines = [tokens("so\n</think>\n", *end) for end in ends]
    body = {"n": 3, "max_tokens": len(lines[2]) + 1, "stream_options": {"include_usage": True}, "tools": list(TOOLS)}
    first = None
    for seed in SEEDS:
        caplog.clear()
        with caplog.at_level("INFO"):
            async with http(Grouped(list(lines), seed), log_content=True) as client:
                got = await answers(client, stream=True, **body)
                text = (await client.get("/metrics")).text
        counted = sorted(line for line in text.splitlines() if line.startswith("step_audio_tokens_total"))
        logged = next(f for f in (vars(record).get("fields", {}) for record in caplog.records) if "finish" in f)
        kept = {key: logged[key] for key in logged if key.endswith("tokens") or key in ("finish", "replies")}
        first = first or (got, counted, kept)
        assert (got, counted, kept) == first
    assert first[2]["finish"] == ["stop", "length", "tool_calls"]


@pytest.mark.parametrize("seed", SEEDS)
async def test_usage_so_far(seed):
    """Of the answer that a chunk belongs to; the last one's is that of all."""
    lines = [tokens("so\n</think>\n", "one two three " * n, "<|EOT|>") for n in (1, 5)]
    body = CHAT | {"n": 2, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    async with shared(Grouped(list(lines), seed)) as client:
        *chunks, last = events((await client.post("/v1/chat/completions", json=body)).text)
        told = {i: [c["usage"] for c in chunks if c["choices"][0]["index"] == i] for i in (0, 1)}
        for i, line in enumerate(lines):
            counts = [usage["completion_tokens"] for usage in told[i]]
            assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == len(line)
            assert {usage["prompt_tokens"] for usage in told[i]} == {101}
            assert all(usage["total_tokens"] == 101 + usage["completion_tokens"] for usage in told[i])
        assert not last["choices"] and last["usage"]["completion_tokens"] == sum(map(len, lines))
    async with shared(Grouped(list(lines), seed)) as client:  # as vLLM has it: only where usage is asked for at all
        body["stream_options"] = {"continuous_usage_stats": True}
        assert not any("usage" in c for c in events((await client.post("/v1/chat/completions", json=body)).text))


@pytest.mark.parametrize("response_format", ["json", "text"])
async def test_transcriptions(response_format):
    first = None
    for seed in SEEDS:
        for stream in (False, True):
            form = {"response_format": response_format, "stream": json.dumps(stream)}
            async with shared(Grouped([[*tokens("\nTwo 🙂 猫."), EOT]], seed)) as client:
                response = await client.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav())}, data=form)
            said = response.text.strip() if response_format == "text" and not stream else None
            if stream:
                *deltas, done = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-1]]
                assert "".join(event["delta"] for event in deltas).strip() == done["text"]
                said = done["text"]
            said = said or response.json()["text"]
            first = first or said
            assert said == first == "Two 🙂 猫."


@pytest.mark.parametrize("stream", [False, True])
async def test_responses(stream):
    """What is said before a call, between two and behind them are items of their own, with their log-probabilities."""
    tools = [{"type": "function", "name": tool["function"]["name"], "parameters": {}} for tool in TOOLS]
    body = {"input": "hello", "tools": tools, "include": ["message.output_text.logprobs"], "stream": stream}
    line = tokens("so\n</think>\nI ask.", *CALL, "And", *CALL, *CALL, "more.", "<|EOT|>")
    first = None
    for seed in SEEDS:
        async with shared(Grouped([line], seed)) as client:
            reply = await client.post("/v1/responses", json=body)
        assert reply.status_code == 200, reply.text
        last = json.loads(reply.text.rstrip().rpartition("data: ")[2])["response"] if stream else reply.json()
        items = [
            (item["type"], item.get("arguments"), [part.items() for part in item.get("content", ())])
            for item in last["output"]
        ]
        first = first or items
        assert items == first
    assert [kind for kind, *_ in first] == [
        "reasoning", "message", "function_call", "message", "function_call", "function_call", "message"
    ]  # fmt: skip
