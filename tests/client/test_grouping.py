"""The same tokens in other messages are the same reply: texts, calls, log-probabilities, finish reason, usage."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from chat_stream_fixture import CALL, QUESTION, TOOLS, Model, in_order, reply, tokens
from fake_triton import EOT, TOKENIZER, answer, script, served
from step_audio_client import ChatDelta, ChatOptions, Guide, Sampling, Thinking
from step_audio_client.tokens import TokenRequest

SEEDS = (None, 1, 2, 3)  # None: one token a message
WORDS = ["</think>", "<|THINK_END|>", "\n", "</", "a", "b c", "🙂", "猫", "STOP", "ST", *CALL, "<tool_call>", "<|SC|>"]


def drawn(draw: random.Random, most: int = 14) -> list[int]:
    """Markers, calls, halves of characters and words, in any order."""
    ids = [i for word in draw.choices(WORDS, k=draw.randint(0, most)) for i in tokens(word)]
    return [i for i in ids if draw.random() > 0.05] + ([EOT] if draw.random() < 0.5 else [])


def comparable(whole: ChatDelta, deltas: list[ChatDelta], model: Model) -> tuple[Any, ...]:
    """What was asked is compared, too, and whether it was left before its end."""
    asked = [(r.messages, r.sampling, r.guide, r.continue_final_message) for r in model.requests]
    return replace(whole, tool_calls=()), in_order(deltas), [call.index for call in whole.tool_calls], asked


OPTIONS = {
    "plain": {},
    "budget": {"thinking": Thinking(budget=3)},
    "no thought": {"thinking": Thinking("off")},
    "a form": {"guide": Guide("json")},
    "a form within a budget": {"guide": Guide("json"), "thinking": Thinking(budget=3)},
    "a named call": {"tools": TOOLS, "tool_choice": "get_time"},
    "one call": {"tools": TOOLS, "parallel_tool_calls": False},
    "stop": {"tools": TOOLS, "stop": ("STOP", "a<", "b c")},
    "stop in the thought": {"stop": ("STOP", "a<"), "stop_in_thought": True},
    "stop behind the thought": {"stop": ("</think>", "ST")},
    "stop tokens": {"stop_token_ids": (TOKENIZER.added_tokens["<|SC|>"],), "skip_special_tokens": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_chat(name):
    draw = random.Random(name)
    for _ in range(15):
        lines = [drawn(draw) for _ in range(3)]
        for most in (None, draw.randint(1, 12)):
            options = ChatOptions(Sampling(max_tokens=most), logprobs=True, **OPTIONS[name])
            first = None
            for seed in SEEDS:
                model = Model(*map(list, lines), seed=seed)
                whole = comparable(*reply(model, options), model)
                first = first or whole
                assert whole == first, TOKENIZER.decode([i for line in lines for i in line])


def test_a_choice_among_tools():
    for seed in SEEDS:
        model = Model(tokens("so\n</think>\nI"), tokens("get_time", "<|EOT|>"), tokens('{"tz": "猫"}'), seed=seed)
        whole, _ = reply(model, ChatOptions(tools=TOOLS, tool_choice="required"))
        assert [(call.name, call.arguments) for call in whole.tool_calls] == [("get_time", '{"tz": "猫"}')]
        assert whole.finish_reason == "tool_calls"


# As the server sends them


def responses(ids: list[int], seed: int | None) -> list[service_pb2.ModelStreamInferResponse]:
    """Of the LLM: in each message some new tokens and the log-probabilities of all; the final flag with the last or
    alone, with outputs or without; the KV cache's figures with the last outputs."""
    draw = random.Random(seed)
    cuts = [*range(len(ids) + 1)] if seed is None else sorted(draw.choices(range(len(ids) + 1), k=draw.randint(0, 8)))
    pieces = [(i, j) for i, j in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    alone = draw.random() < 0.5
    messages = []
    for n, (begin, end) in enumerate(pieces):
        last = n == len(pieces) - 1
        outputs = {
            "output_ids": np.array([[ids[begin:end]]], np.int32).reshape(1, 1, -1),
            "output_log_probs": np.array([[[-i / 1000 for i in ids[:end]]]], np.float32).reshape(1, 1, -1),
            "num_input_tokens": np.array([[10]], np.int32),
        }
        if begin < end:  # of this response's tokens, the second of them not everywhere
            likeliest = [[i, i + 1 if i % 2 else -1] for i in ids[begin:end]]
            outputs |= {
                "top_log_prob_ids": np.array([[likeliest]], np.int32),
                "top_log_probs": np.array([[likeliest]], np.float32) / -1000,
            }
        if n == 0 or last:
            outputs |= {
                "kv_cache_alloc_total_blocks": np.array([[5]], np.int32),
                "kv_cache_reused_blocks": np.array([[3]], np.int32),
            }
        messages.append(service_pb2.ModelStreamInferResponse(infer_response=answer(outputs, last and not alone)))
    if alone:
        messages.append(service_pb2.ModelStreamInferResponse(infer_response=answer({}, True)))
    return messages


REPLIES = [
    [*tokens("so 🙂\n</think>\n你好"), EOT],
    [*tokens("so\n</think>\n🙂")[:-1]],  # half a character
    [EOT],
]


@pytest.mark.parametrize("ids", REPLIES, ids=["ended", "half a character", "only the end"])
@pytest.mark.parametrize("room", ["more", "just enough"])
async def test_generate(ids, room):
    """The finish reason is told from counts and the last token."""
    most = len(ids) if room == "just enough" else 50
    sampling, first = Sampling(max_tokens=most, logprobs=True), None
    for seed in SEEDS:
        async with served(script(*responses(ids, seed))) as (_, client):
            whole = await client.complete(QUESTION, sampling)
            first = first or whole
            assert whole == first and whole.token_ids == ids
    assert first.finish_reason == ("length" if room == "just enough" and ids[-1] != EOT else "stop")
    assert first.logprobs == [pytest.approx(-i / 1000) for i in ids]


@pytest.mark.parametrize("ids", REPLIES[:2])
async def test_chat_over_the_wire(ids):
    first = None
    for seed in SEEDS:
        async with served(script(*responses(ids, seed))) as (_, client):
            options = ChatOptions(Sampling(top_logprobs=2))
            deltas = [delta async for delta in client.chat(QUESTION, options)]
        for one in (logprob for delta in deltas for logprob in delta.logprobs):
            assert (one.top[0].bytes, one.top[0].logprob) == (one.bytes, pytest.approx(one.logprob))
        whole = (
            *("".join(getattr(d, name) for d in deltas) for name in ("reasoning", "content", "raw")),
            *([x for d in deltas for x in getattr(d, name)] for name in ("token_ids", "logprobs")),
            deltas[-1].finish_reason,
            deltas[-1].usage,
        )
        first = first or whole
        assert whole == first


async def test_blocks_of_the_kv_cache_come_with_the_end():
    """Also where the final response has no outputs."""
    for seed in SEEDS:
        async with served(script(*responses(REPLIES[0], seed))) as (_, client):
            request = TokenRequest(QUESTION, Sampling(50, temperature=0))
            *_, last = [tokens async for tokens in client._tokens(client._pipeline.run(), request)]
        assert (last.finish_reason, last.total_blocks, last.reused_blocks) == ("stop", 5, 3)
